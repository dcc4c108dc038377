"""The published clients, in TypeScript and in Python, on orders as event-sourced pages use them.

The server is a process that knows no class of ours; aggregates are saved and loaded here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import durable_streams
import pytest
from nodejs import PACKAGES, PATIENCE, Node
from ordering import Order
from serving import eventstore_serve, serving

from eventstore import EventStore


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database for all tests here, that two processes can have open."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('clients') / 'events.db'}"
    url: str = request.getfixturevalue("shared_postgres_url")
    return url


@pytest.fixture(scope="module")
def store(shared_url: str) -> Iterator[EventStore]:
    with EventStore(shared_url) as store:
        yield store


@pytest.fixture(scope="module")
def server(store: EventStore, shared_url: str) -> Iterator[str]:
    with serving(eventstore_serve(shared_url, "--long-poll-timeout", "2")) as server:
        yield server


@pytest.fixture
def id() -> str:
    """Of an order that no other test has."""
    return uuid.uuid4().hex


class Client:
    """The flows of `node/flows.mjs` against a server."""

    def __init__(self, node: Node, server: str) -> None:
        self._node = node
        self._server = server

    def run(self, flow: str, *arguments: object) -> list[Any]:
        """What a flow says until its end."""
        with self.start(flow, *arguments) as told:
            return list(told)

    @contextlib.contextmanager
    def start(self, flow: str, *arguments: object) -> Iterator[Iterator[Any]]:
        """Start a flow; what it says, as it says it."""
        command = ["flows.mjs", flow, self._server, *map(str, arguments)]
        run = self._node.start(*command, cwd=PACKAGES)
        assert run.stdout is not None
        patience = threading.Timer(PATIENCE, run.kill)
        patience.start()
        try:
            yield map(told, run.stdout)
        finally:
            patience.cancel()
            run.kill()
            run.communicate(timeout=PATIENCE)


def told(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise AssertionError(f"the client failed: {line}") from None


@pytest.fixture
def client(node: Node, server: str) -> Client:
    return Client(node, server)


def milliseconds(moment: datetime) -> int:
    """As JavaScript counts them: those that are over."""
    return int(moment.timestamp() * 1000)


def later_than(moment: datetime) -> None:
    """Wait for the next millisecond: what is recorded in the same one has the same timestamp."""
    while milliseconds(datetime.now(UTC)) == milliseconds(moment):
        time.sleep(0.0005)


def ordered(store: EventStore, id: str) -> Order:
    """An order of two events, saved by Python."""
    order = Order(id)
    order.create("Ada")
    order.add("tea", 2)
    store.save(order)
    return order


# --- the TypeScript client ------------------------------------------------------------------------


def test_typescript_replays_follows_and_resumes_what_python_saves(
    store: EventStore, client: Client, id: str
) -> None:
    order = ordered(store, id)
    [replayed] = client.run("replay", id)
    assert replayed["state"] == {"customer": "Ada", "items": {"tea": 2}, "paid": False}

    with client.start("tail", id, "true", "-1") as batches:
        first = next(batches)
        assert first["state"] == replayed["state"]
        order.add("jam", 1)
        store.save(order)
        assert next(batches)["types"] == ["ItemAdded"]
        order.pay()
        store.save(order)
        last = next(batches)
    assert last["state"] == {"customer": "Ada", "items": {"tea": 2, "jam": 1}, "paid": True}

    # From its checkpoint on a reader gets what it has not had, and from the last one only what
    # comes then.
    saved = json.dumps(first["state"])
    with client.start("tail", id, "sse", first["checkpoint"], saved) as batches:
        resumed = next(batches)
        assert resumed["types"] == ["ItemAdded", "OrderPaid"]
        assert (resumed["state"], resumed["checkpoint"]) == (last["state"], last["checkpoint"])
        order.add("cup", 4)
        store.save(order)
        assert next(batches)["types"] == ["ItemAdded"]


def test_typescript_gets_events_as_they_were_recorded(
    store: EventStore, client: Client, id: str
) -> None:
    ordered(store, id)
    [replayed] = client.run("replay", id)
    assert replayed["events"] == [
        {
            "type": record.type,
            "id": str(record.id),
            "version": record.version,
            "timestamp": milliseconds(record.recorded_at),
            "data": json.loads(record.data),
            "metadata": record.metadata,
        }
        for record in store.read(f"orders/{id}/events")
    ]


def test_typescript_has_the_state_at_a_time(store: EventStore, client: Client, id: str) -> None:
    order = ordered(store, id)
    yesterday = datetime.now(UTC)
    later_than(yesterday)
    order.pay()
    store.save(order)
    [then] = client.run("stateAt", id, milliseconds(yesterday))
    assert then == {"customer": "Ada", "items": {"tea": 2}, "paid": False}
    [now] = client.run("stateAt", id, milliseconds(datetime.now(UTC)))
    assert now["paid"]
    [before] = client.run("stateAt", id, milliseconds(yesterday) - 86_400_000)
    assert before == {"customer": None, "items": {}, "paid": False}


def test_what_typescript_writes_are_events_of_aggregates(
    store: EventStore, client: Client, id: str
) -> None:
    made = client.run("create", id)
    assert [told["url"].split("/v1/stream/")[1] for told in made] == [
        f"orders/{id}/events",
        f"users/{id}/events",
        f"workspaces/{id}/events",
    ]
    assert {told["contentType"] for told in made} == {"application/json"}

    client.run("append", id)
    order = store.load(Order, id)
    assert (order.customer, order.items, order.paid) == ("Ada", {"tea": 2}, False)

    # Python goes on where the other left off, and the other reads it.
    order.pay()
    store.save(order)
    [replayed] = client.run("replay", id)
    assert replayed["state"] == {"customer": "Ada", "items": {"tea": 2}, "paid": True}
    assert [event["version"] for event in replayed["events"]] == [1, 2, 3]
    records = list(store.read(f"orders/{id}/events"))
    assert [str(record.id) for record in records] == [e["id"] for e in replayed["events"]]
    assert records[0].metadata["source"] == "web"


def test_a_typescript_producer_writes_each_event_once(
    store: EventStore, client: Client, id: str
) -> None:
    client.run("create", id)
    [produced] = client.run("produce", id, 60)
    assert produced["failed"] == []
    assert produced["next"] > 5  # batches: more than are on their way at the same time
    assert list(store.load(Order, id).items) == [f"sku-{number}" for number in range(60)]


@pytest.mark.parametrize("live", ["true", "sse"])
def test_a_typescript_tail_goes_on_when_the_server_is_there_again(
    node: Node, sqlite_url: str, id: str, live: str
) -> None:
    with EventStore(sqlite_url) as store, contextlib.ExitStack() as servers:
        order = ordered(store, id)
        server = servers.enter_context(serving(eventstore_serve(sqlite_url)))
        with Client(node, server).start("tail", id, live, "-1") as batches:
            assert next(batches)["types"] == ["OrderCreated", "ItemAdded"]
            servers.close()
            order.pay()
            store.save(order)
            port = server.rpartition(":")[2]
            servers.enter_context(serving(eventstore_serve(sqlite_url, "--port", port)))
            assert next(batches)["types"] == ["OrderPaid"]


# --- the Python client ----------------------------------------------------------------------------


def url(server: str, id: str) -> str:
    return f"{server}/v1/stream/orders/{id}/events"


def message(version: int, type: str, **data: object) -> dict[str, object]:
    return {
        "type": type,
        "id": str(uuid.uuid4()),
        "version": version,
        "timestamp": milliseconds(datetime.now(UTC)),
        "data": data,
        "metadata": {"source": "python"},
    }


@pytest.mark.parametrize("live", ["auto", "long-poll", "sse"])
def test_python_replays_follows_and_resumes_an_aggregate(
    store: EventStore, server: str, id: str, live: durable_streams.LiveMode
) -> None:
    order = ordered(store, id)
    with durable_streams.stream(url(server, id), offset="-1", live=live) as response:
        seen: list[str] = []
        for batch in response.iter_events(mode="json"):
            seen += [event["type"] for event in batch.data]
            if seen[-1] == "OrderPaid":
                break
            if not order.paid:
                order.pay()
                store.save(order)
    assert seen == ["OrderCreated", "ItemAdded", "OrderPaid"]

    order.add("jam", 1)
    store.save(order)
    with durable_streams.stream(url(server, id), offset=batch.next_offset, live=live) as response:
        assert next(response.iter_json())["data"] == {"sku": "jam", "quantity": 1}


def test_python_has_the_state_at_a_time(store: EventStore, server: str, id: str) -> None:
    order = ordered(store, id)
    moment = list(store.read(f"orders/{id}/events"))[-1].recorded_at
    later_than(moment)
    order.pay()
    store.save(order)
    with durable_streams.stream(url(server, id), offset="-1", live=False) as response:
        events = response.read_json()
    then = [event for event in events if event["timestamp"] <= milliseconds(moment)]
    assert [event["version"] for event in then] == [1, 2]
    assert [event["version"] for event in events] == [1, 2, 3]


def test_what_python_writes_over_http_are_events_of_aggregates(
    store: EventStore, server: str, id: str
) -> None:
    with durable_streams.DurableStream.create(
        url(server, id), content_type="application/json"
    ) as stream:
        stream.append(message(1, "OrderCreated", customer="Ada"), seq="1")
        stream.append(message(2, "ItemAdded", sku="tea", quantity=2), seq="2")
        with pytest.raises(durable_streams.SeqConflictError):
            stream.append(message(2, "ItemAdded", sku="tea", quantity=2), seq="2")
        order = store.load(Order, id)
        assert (order.customer, order.items, order.version) == ("Ada", {"tea": 2}, 2)
        order.pay()
        store.save(order)
        with stream.stream(offset="-1", live=False) as response:
            assert [e["type"] for e in response.read_json()] == [
                "OrderCreated",
                "ItemAdded",
                "OrderPaid",
            ]
    with pytest.raises(durable_streams.StreamNotFoundError):
        durable_streams.DurableStream.connect(url(server, "nobody"))


async def _many_appended_at_once(url: str, live: durable_streams.LiveMode) -> list[Any]:
    """What a live reader has of a stream, from its beginning, while 20 appends are made."""
    async with (
        await durable_streams.AsyncDurableStream.create(
            url,
            content_type="application/json",
            body=json.dumps([message(1, "OrderCreated", customer="Ada")]),
        ) as stream,
        stream.stream(offset="-1", live=live) as response,
    ):
        items = response.iter_json()
        seen = [await anext(items)]
        added = (message(2 + n, "ItemAdded", sku=f"sku-{n}", quantity=1) for n in range(20))
        await asyncio.gather(*map(stream.append, added))
        while len(seen) < 21:
            seen.append(await anext(items))
    return seen


@pytest.mark.parametrize("live", ["long-poll", "sse"])
def test_asynchronous_python_reads_what_it_appends_at_once(
    store: EventStore, server: str, id: str, live: durable_streams.LiveMode
) -> None:
    seen = asyncio.run(_many_appended_at_once(url(server, id), live))
    assert [event["type"] for event in seen] == ["OrderCreated"] + ["ItemAdded"] * 20
    items = {event["data"]["sku"]: 1 for event in seen[1:]}
    assert len(items) == 20
    assert store.load(Order, id).items == items


def test_a_retry_of_a_python_producer_writes_nothing_twice(
    store: EventStore, server: str, id: str
) -> None:
    # This version of the client has no producer of its own; its headers do.
    with durable_streams.DurableStream.create(
        url(server, id), content_type="application/json"
    ) as made:
        made.append(message(1, "OrderCreated", customer="Ada"))
    for sequence in (0, 0, 1, 1):
        with durable_streams.DurableStream(
            url(server, id),
            content_type="application/json",
            headers={"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": str(sequence)},
        ) as stream:
            stream.append(message(2 + sequence, "ItemAdded", sku="tea", quantity=1))
    assert store.load(Order, id).items == {"tea": 2}
