"""What the adapter does beside the official suite: messages, groups, time to live."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asgi import Client, client_of
from parcels import Parcel, ParcelMoved, ParcelPosted, run
from sqlalchemy import Column, Table, Text

from eventstore import EventStore, TableProjection, on
from eventstore.aio import AsyncEventStore
from eventstore.http import DurableStreams

# --- messages ------------------------------------------------------------------------------------


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


# --- groups --------------------------------------------------------------------------------------


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


# --- time to live --------------------------------------------------------------------------------


def test_what_has_expired_is_erased_from_the_log(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.http.expiring._PAUSE", 0.05)

    async def story(client: Client) -> None:
        over = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
        await client.put("brief/1", "[1]", stream_expires_at=over)
        assert (await client.get("brief/1")).json == [1]
        while not any(head.deleted for head in store.streams("brief")):
            await asyncio.sleep(0.05)
        assert (await client.get("brief/1")).status == 404
        assert (await client.put("brief/1", "[2]")).status == 201
        assert (await client.get("brief/1")).json == [2]

    run(store, story)


# --- what is served ------------------------------------------------------------------------------


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
