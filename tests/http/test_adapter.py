"""What the adapter does beside the official suite: aggregates, groups, live readers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asgi import Client, client_of
from sqlalchemy import Column, Table, Text

from eventstore import Aggregate, Event, EventStore, TableProjection, on
from eventstore.aio import AsyncEventStore
from eventstore.http import DurableStreams
from eventstore.http.live import Hub
from eventstore.http.reading import Reader


class ParcelPosted(Event):
    address: str


class ParcelMoved(Event):
    to: str
    hours: int = 0


class Parcel(Aggregate, stream="parcels/{id}/events"):
    where: str = ""
    moves: int = 0

    def post(self, address: str) -> None:
        self.record(ParcelPosted(address=address))

    def move(self, to: str, hours: int = 0) -> None:
        self.record(ParcelMoved(to=to, hours=hours))

    @on(ParcelPosted)
    def _posted(self, event: ParcelPosted) -> None:
        self.where = event.address

    @on(ParcelMoved)
    def _moved(self, event: ParcelMoved) -> None:
        self.where = event.to
        self.moves += 1


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    name = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    found: str = request.getfixturevalue(name)
    return found


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    with EventStore(url) as store:
        yield store


def run(store: EventStore, story: Callable[[Client], Awaitable[None]], **options: Any) -> None:
    """Let a story happen with a client of an adapter of the store."""

    async def happen() -> None:
        async with client_of(DurableStreams(store, **options)) as client:
            await story(client)

    asyncio.run(happen())


def posted(store: EventStore, id: str, address: str = "Berlin") -> None:
    parcel = Parcel(id)
    parcel.post(address)
    store.save(parcel)


# --- aggregates -----------------------------------------------------------------------------------


def test_what_an_aggregate_has_recorded_is_readable_in_the_envelope(store: EventStore) -> None:
    posted(store, "p1")
    (record,) = store.read("parcels/p1/events")

    async def story(client: Client) -> None:
        response = await client.get("parcels/p1/events?offset=-1")
        assert response.status == 200
        assert response.headers["content-type"] == "application/json"
        assert response.headers["cache-control"].startswith("private")
        assert response.json == [
            {
                "type": "ParcelPosted",
                "id": str(record.id),
                "version": 1,
                "timestamp": record.timestamp,
                "data": {"address": "Berlin"},
                "metadata": {},
            }
        ]

    run(store, story, is_public=True)


def test_a_live_reader_has_an_event_when_it_is_saved(store: EventStore) -> None:
    posted(store, "p1")

    async def story(client: Client) -> None:
        async with client.events("parcels/p1/events?offset=now&live=sse") as reading:
            assert (await reading.control())["upToDate"]
            await asyncio.to_thread(store.transact, Parcel, "p1", Parcel.move, "Hamburg")
            (message,) = await reading.messages()
            assert message["data"] == {"to": "Hamburg", "hours": 0}
            assert message["version"] == 2

    run(store, story)


def test_a_long_poll_ends_with_the_event_of_another_store(url: str, store: EventStore) -> None:
    posted(store, "p1")
    with EventStore(url) as other:  # as another process would

        async def story(client: Client) -> None:
            tail = (await client.get("parcels/p1/events")).offset
            waiting = asyncio.create_task(
                client.get(f"parcels/p1/events?offset={tail}&live=long-poll")
            )
            await asyncio.sleep(0.1)
            await asyncio.to_thread(other.transact, Parcel, "p1", Parcel.move, "Hamburg")
            response = await waiting
            assert [message["type"] for message in response.json] == ["ParcelMoved"]

        run(store, story)


def test_streams_of_the_application_are_read_only(store: EventStore) -> None:
    posted(store, "p1")
    store.append("diary", ParcelPosted(address="x"))

    async def story(client: Client) -> None:
        event = json.dumps({"type": "ParcelMoved", "data": {"to": "x"}})
        for path in ("parcels/p1/events", "parcels/new/events", "diary"):
            for method in ("PUT", "POST", "DELETE"):
                response = await client.ask(method, path, event, content_type="application/json")
                assert response.status == 405, (method, path)
                assert "POST" not in response.headers["allow"]
        assert (await client.get("parcels/new/events")).status == 404

    run(store, story)
    assert store.version("parcels/p1/events") == store.version("diary") == 1


def test_a_writable_aggregate_takes_events_that_its_class_has(store: EventStore) -> None:
    posted(store, "p1")

    async def story(client: Client) -> None:
        event = {
            "type": "ParcelMoved",
            "id": "018f0000-0000-7000-8000-000000000001",
            "data": {"to": "Hamburg", "hours": 3},
            "metadata": {"user": "eve"},
        }
        response = await client.post(
            "parcels/p1/events", json.dumps(event), stream_expected_version="1"
        )
        assert response.status == 204, response.body
        assert (await client.get("parcels/p1/events")).json[1]["data"] == event["data"]

    run(store, story, writable=[Parcel])
    parcel = store.load(Parcel, "p1")
    assert (parcel.where, parcel.moves) == ("Hamburg", 1)
    record = list(store.read("parcels/p1/events"))[1]
    assert record.event == ParcelMoved(to="Hamburg", hours=3)
    assert str(record.id).endswith("0001")
    assert record.metadata["user"] == "eve"


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"type": "ParcelEaten", "data": {}}, "ParcelEaten"),
        ({"type": "ParcelMoved", "data": {"to": 3}}, "$.to"),
        ({"type": "ParcelMoved", "data": {}}, "to"),
        ({"type": "ParcelMoved"}, "data"),
        ({"type": "ParcelMoved", "data": {"to": "x"}, "id": "no"}, "id"),
        ("just text", "object"),
        ([[1, 2]], "object"),
    ],
)
def test_what_is_no_event_of_the_class_is_refused_with_the_reason(
    sqlite_url: str, event: Any, reason: str
) -> None:
    with EventStore(sqlite_url) as store:
        good = {"type": "ParcelPosted", "data": {"address": "x"}}

        async def story(client: Client) -> None:
            body = json.dumps([good, event] if isinstance(event, dict) else event)
            response = await client.post("parcels/p1/events", body)
            assert response.status == 400
            assert reason in response.json["detail"]

        posted(store, "p1")
        run(store, story, writable=[Parcel])
        assert store.version("parcels/p1/events") == 1


def test_the_expected_version_is_a_condition(store: EventStore) -> None:
    async def story(client: Client) -> None:
        event = json.dumps({"type": "ParcelPosted", "data": {"address": "x"}})
        assert (await client.put("parcels/p1/events")).status == 201
        first = await client.post("parcels/p1/events", event, stream_expected_version="0")
        assert first.status == 204
        again = await client.post("parcels/p1/events", event, stream_expected_version="0")
        assert again.status == 412
        assert again.headers["stream-version"] == "1"
        head = await client.ask("HEAD", "parcels/p1/events")
        assert head.headers["stream-version"] == "1"

    run(store, story, writable=[Parcel])
    assert store.load(Parcel, "p1").where == "x"


def test_a_stream_made_over_http_loads_as_an_aggregate(store: EventStore) -> None:
    events = [
        {"type": "ParcelPosted", "timestamp": 1, "data": {"address": "Berlin"}},
        {"type": "ParcelMoved", "data": {"to": "Bonn"}, "metadata": {"user": "eve"}},
    ]

    async def story(client: Client) -> None:
        # Through a stream of another name: the class claims its own in this process.
        assert (await client.put("inbox/1", json.dumps(events))).status == 201
        assert (await client.get("inbox/1")).json == events

    run(store, story)
    fork = store.log.fork("inbox/1", 2, "parcels/p9/events")
    assert fork.version == 2
    parcel = store.load(Parcel, "p9")
    assert (parcel.where, parcel.moves) == ("Bonn", 1)
    records = list(store.read("parcels/p9/events"))
    assert records[0].event == ParcelPosted(address="Berlin")
    assert records[1].metadata["user"] == "eve"
    store.transact(Parcel, "p9", Parcel.move, "Köln")
    assert store.load(Parcel, "p9").moves == 2


def test_an_aggregate_can_be_forked_over_http(store: EventStore) -> None:
    posted(store, "p1")
    store.transact(Parcel, "p1", Parcel.move, "Bonn")

    async def story(client: Client) -> None:
        places = [(await client.get("parcels/p1/events?offset=-1")).offset]
        response = await client.ask(
            "PUT",
            "what-if/p1",
            stream_forked_from="/v1/stream/parcels/p1/events",
            stream_fork_offset="0000000000000000_0000000000000001",
        )
        assert response.status == 201
        assert places == ["0000000000000000_0000000000000002"]
        (message,) = (await client.get("what-if/p1")).json
        assert message["data"] == {"address": "Berlin"}
        more = json.dumps({"type": "ParcelMoved", "data": {"to": "Rome"}})
        assert (await client.post("what-if/p1", more)).status == 204
        assert len((await client.get("what-if/p1")).json) == 2

    run(store, story)


# --- messages -------------------------------------------------------------------------------------


def test_messages_keep_their_text(store: EventStore) -> None:
    texts = [
        "123456789012345678901234567890",
        "1.0",
        '{"a":1,"a":2}',
        '"\\u00e9é"',
        "[1, [2]]",
        "null",
    ]

    async def story(client: Client) -> None:
        await client.put("raw/1")
        await client.post("raw/1", f" [{' , '.join(texts)}]\n")
        for text in texts[:-3]:
            await client.post("raw/1", f"\t{text} ")
        body = (await client.get("raw/1")).body.decode()
        assert body == "[" + " , ".join(texts) + "," + ",".join(texts[:-3]) + "]"

    run(store, story)


def test_python_reads_what_was_posted(store: EventStore) -> None:
    async def story(client: Client) -> None:
        await client.put("raw/1")
        await client.post("raw/1", '{"x": 1}')
        await client.post("raw/1", "[1, 2]")
        await client.put("bytes/1", b"\x00\xff", content_type="image/png")

    run(store, story)
    records = list(store.read("raw/1"))
    assert [(r.type, r.data) for r in records] == [("$json", b'{"x": 1}'), ("$batch", b"[1, 2]")]
    assert [(r.type, r.data) for r in store.read("bytes/1")] == [("$bytes", b"\x00\xff")]


def test_a_stream_of_many_pages_is_read_whole(store: EventStore, monkeypatch: Any) -> None:
    monkeypatch.setattr("eventstore.http.reading.MOST", 2_000)

    async def story(client: Client) -> None:
        await client.put("long/1")
        for number in range(30):
            await client.post("long/1", json.dumps([{"n": number, "text": "x" * 200}] * 3))
        found: list[Any] = []
        offset, pages = "-1", 0
        while True:
            response = await client.get(f"long/1?offset={offset}")
            assert len(response.body) < 3_000
            found += response.json
            offset = response.offset
            pages += 1
            if "stream-up-to-date" in response.headers:
                break
            assert "max-age" in response.headers["cache-control"]
        assert [message["n"] for message in found] == [n for n in range(30) for _ in range(3)]
        assert pages > 5
        async with client.events("long/1?offset=-1&live=sse") as reading:
            streamed: list[Any] = []
            while len(streamed) < 90:
                streamed += await reading.messages()
            assert streamed == found

    run(store, story)


def test_an_offset_of_a_deleted_stream_is_not_one_of_its_successor(store: EventStore) -> None:
    async def story(client: Client) -> None:
        old = await client.put("a/1", "[1,2,3]")
        assert (await client.ask("DELETE", "a/1")).status == 204
        assert (await client.get("a/1")).status == 404
        new = await client.put("a/1", "[4]")
        assert new.status == 201
        assert new.offset > old.offset
        assert (await client.get(f"a/1?offset={old.offset}")).status == 410
        assert (await client.get("a/1?offset=-1")).json == [4]
        beyond = new.offset[:-1] + "9"
        assert (await client.get(f"a/1?offset={beyond}")).status == 400

    run(store, story)


def test_a_stream_made_anew_knows_no_producer_and_no_sequence(store: EventStore) -> None:
    producer = {"producer_id": "p", "producer_epoch": "3", "producer_seq": "0"}

    async def story(client: Client) -> None:
        for _ in range(2):
            assert (await client.put("a/1")).status == 201
            assert (await client.post("a/1", "1", stream_seq="7", **producer)).status == 200
            assert (await client.post("a/1", "1", stream_seq="7", **producer)).status == 204
            assert (await client.post("a/1", "1", stream_seq="7")).status == 409
            assert (await client.ask("DELETE", "a/1")).status == 204

    run(store, story)


def test_a_name_that_was_made_anew_has_one_url(store: EventStore) -> None:
    async def story(client: Client) -> None:
        await client.put("a/1", "[1]")
        await client.ask("DELETE", "a/1")
        await client.put("a/1", "[2]")
        for name in store.streams():
            if name.name != "a/1":
                assert (await client.get(name.name)).status == 400
                assert (await client.get(name.name.replace("\\", "%5C"))).status == 400

    run(store, story)


# --- groups ---------------------------------------------------------------------------------------


def test_requests_at_once_each_have_their_own_outcome(store: EventStore) -> None:
    async def story(client: Client) -> None:
        for name in ("a", "b"):
            await client.put(f"group/{name}")
        await client.put("group/text", content_type="text/plain")
        await client.post("group/b", stream_closed="true")
        asked = [
            *(client.post("group/a", str(number)) for number in range(50)),
            client.post("group/b", "1"),
            client.post("group/none", "1"),
            client.post("group/text", "1"),
            client.post("group/a", "7", stream_expected_version="3000"),
            client.post("group/a", "8", producer_id="p", producer_epoch="0", producer_seq="1"),
            client.put("group/new", "[1]"),
            client.put("group/new", "[1]"),
        ]
        answers = await asyncio.gather(*asked)
        statuses = [answer.status for answer in answers]
        assert statuses[:50] == [204] * 50
        assert statuses[50:] == [409, 404, 409, 412, 409, 201, 200]
        offsets = {answer.offset for answer in answers[:50]}
        assert len(offsets) == 50
        assert sorted((await client.get("group/a")).json) == list(range(50))
        assert (await client.get("group/new")).json == [1]

    run(store, story)


def test_a_batch_that_comes_twice_is_written_once(store: EventStore) -> None:
    async def story(client: Client) -> None:
        await client.put("twice/1")
        headers = {"producer_id": "p", "producer_epoch": "0"}
        answers = await asyncio.gather(
            *(
                client.post("twice/1", str(seq), producer_seq=str(seq), **headers)
                for seq in (0, 0, 1, 1, 1, 0, 2)
            )
        )
        assert [a.status for a in answers] == [200, 204, 200, 204, 204, 204, 200]
        assert (await client.get("twice/1")).json == [0, 1, 2]

    run(store, story)


def test_the_application_and_http_write_to_one_stream(store: EventStore) -> None:
    """The application's appends come between the adapter's look at a stream and its append."""

    async def story(client: Client) -> None:
        assert (await client.put("parcels/p1/events")).status == 201
        stop = threading.Event()
        written = 0

        def write() -> None:
            nonlocal written
            while not stop.is_set():
                store.append("parcels/p1/events", ParcelMoved(to="x"))
                written += 1

        writer = asyncio.create_task(asyncio.to_thread(write))
        event = json.dumps({"type": "ParcelPosted", "data": {"address": "x"}})
        answers = [await client.post("parcels/p1/events", event) for _ in range(20)]
        stop.set()
        await writer
        assert {answer.status for answer in answers} == {204}
        messages = (await client.get("parcels/p1/events")).json
        assert [m["version"] for m in messages] == list(range(1, written + 21))
        for answer in answers:  # each was told the truth about where its event is
            version = int(answer.offset.rpartition("_")[2])
            assert messages[version - 1]["type"] == "ParcelPosted"

    run(store, story, writable=[Parcel])


def test_two_servers_write_to_one_stream(url: str, store: EventStore) -> None:
    """Each batch goes to both, as a client would do that has lost an answer."""

    async def both() -> None:
        with EventStore(url) as far:
            async with (
                client_of(DurableStreams(store)) as here,
                client_of(DurableStreams(far)) as there,
            ):
                made = await asyncio.gather(here.put("race/1"), there.put("race/1"))
                assert sorted(answer.status for answer in made) == [200, 201]
                for seq in range(15):
                    headers = {"producer_id": "p", "producer_epoch": "0", "producer_seq": str(seq)}
                    answers = await asyncio.gather(
                        here.post("race/1", str(seq), **headers),
                        there.post("race/1", str(seq), **headers),
                        here.post("race/1", '"x"'),
                        there.post("race/1", '"x"'),
                    )
                    assert sorted(answer.status for answer in answers[:2]) == [200, 204]
                    assert {answer.status for answer in answers[2:]} == {204}
                    assert answers[2].offset != answers[3].offset
                messages = (await there.get("race/1")).json
                assert [m for m in messages if m != "x"] == list(range(15))
                assert messages.count("x") == 30

    asyncio.run(both())


# --- live -----------------------------------------------------------------------------------------


def test_the_last_message_comes_before_the_end(store: EventStore) -> None:
    async def story(client: Client) -> None:
        await client.put("end/1")
        tail = (await client.get("end/1")).offset
        async with client.events("end/1?offset=-1&live=sse") as reading:
            await reading.control()
            poll = asyncio.create_task(client.get(f"end/1?offset={tail}&live=long-poll"))
            await asyncio.sleep(0.05)
            await client.post("end/1", "[1]", stream_closed="true")
            kind, data = await reading.event()
            assert (kind, data) == ("data", "[1]")
            assert (await reading.control())["streamClosed"]
            await reading.ended()
            response = await poll
            assert (response.status, response.json) == (200, [1])
            assert response.headers["stream-closed"] == "true"

    run(store, story)


def test_readers_hear_of_the_end_that_another_server_made(url: str, store: EventStore) -> None:
    async def both() -> None:
        with EventStore(url) as far:
            async with (
                client_of(DurableStreams(store)) as here,
                client_of(DurableStreams(far)) as there,
            ):
                await there.put("end/1")
                await there.put("end/2", "[1]")
                async with (
                    here.events("end/1?offset=-1&live=sse") as one,
                    here.events("end/2?offset=now&live=sse") as two,
                ):
                    await one.control()
                    await two.control()
                    await there.post("end/1", stream_closed="true")
                    assert (await one.control())["streamClosed"]
                    await there.ask("DELETE", "end/2")
                    await two.ended()

    asyncio.run(both())


def test_an_append_is_read_once_for_all_its_readers(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    page = Reader.page

    def counted(self: Reader, found: Any, start: int) -> Any:
        reads.append(found.resource.path)
        return page(self, found, start)

    async def story(client: Client) -> None:
        await client.put("many/1")
        await client.put("other/1")
        async with asyncio.TaskGroup() as group:
            ready = asyncio.Barrier(101)
            told: list[Any] = []

            async def read() -> None:
                async with client.events("many/1?offset=now&live=sse") as reading:
                    await reading.control()
                    await ready.wait()
                    told.append(await reading.messages())

            for _ in range(100):
                group.create_task(read())
            await ready.wait()
            await asyncio.sleep(0.3)  # what has woken them at the start is over
            monkeypatch.setattr(Reader, "page", counted)
            await client.post("other/1", "0")
            await client.post("many/1", "7")
        assert told == [[7]] * 100
        assert 1 <= reads.count("many/1") <= 3
        assert "other/1" not in reads

    with EventStore(sqlite_url) as store:
        run(store, story)


def test_thousands_of_idle_readers_hold_neither_threads_nor_connections(sqlite_url: str) -> None:
    count = 5_000

    async def story(client: Client) -> None:
        for number in range(50):
            await client.put(f"idle/{number}")
        app = client._app
        gone = asyncio.Event()
        controls = 0
        ready = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal controls
            if b"control" in message.get("body", b""):
                controls += 1
                if controls == count:
                    ready.set()

        tasks = [
            asyncio.create_task(
                app(client._scope("GET", f"idle/{n % 50}?offset=now&live=sse", {}), receive, send)
            )
            for n in range(count)
        ]
        await asyncio.wait_for(ready.wait(), 60)
        assert threading.active_count() < 40
        assert store.engine.pool.checkedout() < 20  # type: ignore[attr-defined]
        assert (await client.post("idle/3", "1")).status == 204  # others are served
        gone.set()
        await asyncio.gather(*tasks)

    with EventStore(sqlite_url) as store:
        run(store, story)


def test_draining_sends_live_readers_away(sqlite_url: str) -> None:
    async def story(client: Client) -> None:
        await client.put("a/1")
        tail = (await client.get("a/1")).offset
        async with client.events("a/1?offset=-1&live=sse") as reading:
            await reading.control()
            poll = asyncio.create_task(client.get(f"a/1?offset={tail}&live=long-poll"))
            await asyncio.sleep(0.05)
            client._app.drain()
            assert (await poll).status == 204
            await reading.ended()

    with EventStore(sqlite_url) as store:
        run(store, story)


def test_the_watching_ends_with_the_last_reader(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.http.live._LINGER", 0.01)

    def watching() -> bool:
        return any(thread.name == "eventstore-http" for thread in threading.enumerate())

    async def story(client: Client) -> None:
        await client.put("a/1")
        async with client.events("a/1?offset=-1&live=sse") as reading:
            await reading.control()
            assert watching()
        while watching():
            await asyncio.sleep(0.01)
        async with client.events("a/1?offset=now&live=sse") as reading:
            await reading.control()
            await asyncio.to_thread(store.append, "b/1", ParcelMoved(to="x"))
            await client.post("a/1", "1")
            assert await reading.messages() == [1]

    with EventStore(sqlite_url) as store:
        run(store, story)


# --- time to live ---------------------------------------------------------------------------------


def test_what_has_expired_is_erased_from_the_log(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.http.expiring._PAUSE", 0.05)

    async def story(client: Client) -> None:
        over = (datetime.now(UTC) + timedelta(seconds=0.2)).isoformat()
        await client.put("brief/1", "[1]", stream_expires_at=over)
        assert (await client.get("brief/1")).json == [1]
        while not any(head.deleted for head in store.streams("brief")):
            await asyncio.sleep(0.05)
        assert (await client.get("brief/1")).status == 404
        assert (await client.put("brief/1", "[2]")).status == 201
        assert (await client.get("brief/1")).json == [2]

    run(store, story)


def test_a_hub_without_readers_tells_nobody(sqlite_url: str) -> None:
    async def story() -> None:
        with EventStore(sqlite_url) as store:
            app = DurableStreams(store)
            async with client_of(app) as client:
                await client.put("a/1", "[1]")
                hub: Hub = app._running.hub  # type: ignore[union-attr]
                assert hub._feeds == {}
                assert hub._watcher is None

    asyncio.run(story())


def test_an_async_store_is_served_as_well(sqlite_url: str) -> None:
    async def story() -> None:
        async with AsyncEventStore(sqlite_url) as store, client_of(DurableStreams(store)) as client:
            await store.append("parcels/p1/events", ParcelPosted(address="x"))
            assert len((await client.get("parcels/p1/events")).json) == 1
            assert (await client.put("a/1", "[1]")).status == 201

    asyncio.run(story())


def test_a_stream_of_changes_is_read_only(sqlite_url: str) -> None:
    class ParcelsByPlace(TableProjection, changes="projections/parcels"):
        version = 1
        places = Table(
            "parcels_by_place", TableProjection.metadata, Column("place", Text, primary_key=True)
        )

        @on(ParcelMoved)
        def _moved(self, event: ParcelMoved) -> None:
            self.put(self.places, place=event.to)

    async def story(client: Client) -> None:
        for method in ("PUT", "POST", "DELETE"):
            response = await client.ask(
                method, "projections/parcels", "[1]", content_type="application/json"
            )
            assert response.status == 405
        await asyncio.to_thread(store.append, "parcels/p1/events", ParcelMoved(to="Bonn"))
        await asyncio.to_thread(store.catch_up, ParcelsByPlace)
        (message,) = (await client.get("projections/parcels")).json
        assert (message["key"], message["headers"]["operation"]) == ("Bonn", "insert")

    with EventStore(sqlite_url) as store:
        run(store, story)
