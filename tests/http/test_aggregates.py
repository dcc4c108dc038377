"""Aggregates over HTTP: read in the envelope, read-only or written with what their class has."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from asgi import Client
from parcels import Parcel, ParcelMoved, ParcelPosted, posted, run

from eventstore import EventStore


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
