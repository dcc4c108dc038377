"""Subscriptions: who is woken, by what, how often, and what a worker that was too slow can do."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgi import Client, Response, client_of
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from receiver import PATIENCE, Notification, Receiver, accepted, broken
from serving import _address, eventstore_serve
from sqlalchemy import text

from eventstore import Aggregate, Event, EventStore, on
from eventstore.http import DurableStreams, Operation, Request, allow_all
from eventstore.http.subscriptions import delivery
from eventstore.http.subscriptions.ledger import Delivery
from eventstore.http.subscriptions.signing import SigningKey
from eventstore.http.subscriptions.state import Wake
from eventstore.log.wakes import Subscription

SUBSCRIPTIONS = "__ds/subscriptions/"
JSON = {"content_type": "application/json"}
FIRST = "0000000000000000_0000000000000001"
START = "0000000000000000_0000000000000000"


class LampLit(Event):
    by: str


class Lamp(Aggregate, stream="lamps/{id}/events"):
    lit: int = 0

    def light(self, by: str) -> None:
        self.record(LampLit(by=by))

    @on(LampLit)
    def _lit(self, _: LampLit) -> None:
        self.lit += 1


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    with EventStore(url) as store:
        yield store


@pytest.fixture
def sqlite_store() -> Iterator[EventStore]:
    """Where the database makes no difference."""
    with EventStore("sqlite://") as store:
        yield store


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def run(store: EventStore, act: Callable[[Client], Awaitable[None]], **options: Any) -> None:
    """Do something with a server of the store's streams."""

    async def main() -> None:
        async with client_of(DurableStreams(store, **options)) as client:
            await act(client)

    asyncio.run(main())


async def subscribe(client: Client, id: str, **wanted: Any) -> Response:
    kind = "pull-wake" if "wake_stream" in wanted else "webhook"
    return await client.put(SUBSCRIPTIONS + id, json.dumps({"type": kind, **wanted}))


async def act(client: Client, id: str, action: str, body: Any, token: str = "") -> Response:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return await client.post(f"{SUBSCRIPTIONS}{id}/{action}", json.dumps(body), **headers)


async def claim(client: Client, id: str, worker: str = "w") -> Any:
    answer = await act(client, id, "claim", {"worker": worker})
    assert answer.status == 200, answer.body
    return answer.json


async def ack(
    client: Client, id: str, given: Any, acks: dict[str, str], *, done: bool, action: str = "ack"
) -> Response:
    body = {
        "wake_id": given["wake_id"],
        "generation": given["generation"],
        "acks": [{"stream": stream, "offset": offset} for stream, offset in acks.items()],
        "done": done,
    }
    return await act(client, id, action, body, given.get("token") or given["callback_token"])


async def released(client: Client, id: str, given: Any) -> Response:
    body = {"wake_id": given["wake_id"], "generation": given["generation"]}
    return await act(client, id, "release", body, given["token"])


def tails(given: Any) -> dict[str, str]:
    return {stream["path"]: stream["tail_offset"] for stream in given["streams"]}


def code(answer: Response) -> tuple[int, str]:
    return answer.status, answer.json["error"]["code"]


async def links(client: Client, id: str) -> dict[str, tuple[str, str]]:
    found = (await client.get(SUBSCRIPTIONS + id)).json["streams"]
    return {link["path"]: (link["link_type"], link["acked_offset"]) for link in found}


async def until(look: Callable[[], Awaitable[Any]]) -> Any:
    """What is found in the end; a test that waits in vain fails."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await look()
            if found:
                return found
            await asyncio.sleep(0.01)


async def came(receiver: Receiver) -> Notification:
    return await asyncio.to_thread(receiver.next)


async def events(client: Client, stream: str, count: int) -> list[Any]:
    """That many events of a wake stream, when they are there."""

    async def look() -> list[Any] | None:
        found = (await client.get(stream)).json
        return found if len(found) >= count else None

    found: list[Any] = await until(look)
    return found


@contextmanager
def started(url: str, log: Path) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    """A server of its own, which is killed, and a client for its streams."""
    with log.open("w") as output:
        process = subprocess.Popen(eventstore_serve(url), stdout=output, stderr=output)
    try:
        base = f"{_address(process, log)}/v1/stream/"
        with httpx.Client(base_url=base, timeout=PATIENCE) as client:
            yield client, process
    finally:
        process.kill()
        process.wait()


def verify(notification: Notification, keys: Any) -> None:
    """Raise InvalidSignature unless one of the published keys has signed it."""
    said = dict(part.split("=", 1) for part in notification.headers["webhook-signature"].split(","))
    (key,) = [key for key in keys["keys"] if key["kid"] == said["kid"]]
    raw = base64.urlsafe_b64decode(key["x"] + "==")[:32]
    signature = base64.urlsafe_b64decode(said["ed25519"] + "==")
    message = said["t"].encode() + b"." + notification.body
    Ed25519PublicKey.from_public_bytes(raw).verify(signature, message)


# --- webhooks ------------------------------------------------------------------------------------


def test_a_webhook_is_told_of_what_python_and_clients_write(
    store: EventStore, receiver: Receiver
) -> None:
    async def main(client: Client) -> None:
        await client.put("lamps/old/notes", "[1]")
        made = await subscribe(client, "s", pattern="lamps/**", webhook={"url": receiver.url})
        assert made.status == 201
        # What there is, is linked where it ends.
        assert await links(client, "s") == {"lamps/old/notes": ("glob", FIRST)}
        keys = (await client.get("__ds/jwks.json")).json
        assert made.json["webhook"]["signing"]["kid"] in {key["kid"] for key in keys["keys"]}

        lamp = Lamp("a")
        lamp.light("Ann")
        await asyncio.to_thread(store.save, lamp)
        first = await came(receiver)
        assert first.json["streams"] == [
            {
                "path": "lamps/a/events",
                "link_type": "glob",
                "acked_offset": START,
                "tail_offset": FIRST,
                "has_pending": True,
            }
        ]
        verify(first, keys)
        with pytest.raises(InvalidSignature):
            verify(first._replace(body=first.body + b" "), keys)

        await client.post("lamps/old/notes", "2")
        second = await came(receiver)
        assert second.paths == ["lamps/old/notes"]
        assert second.wake == ("s", first.json["generation"] + 1)
        assert second.json["wake_id"] != first.json["wake_id"]

        async def all_acknowledged() -> bool:
            found = await links(client, "s")
            return {offset[-1] for _, offset in found.values()} == {"1", "2"}

        await until(all_acknowledged)
        # Elsewhere nothing wakes it.
        await client.put("others/a", "[1]")
        await client.put("lamps/b/notes", "[1]")
        assert (await came(receiver)).paths == ["lamps/b/notes"]

    run(store, main)


def test_what_comes_while_a_receiver_works_wakes_it_again(
    store: EventStore, receiver: Receiver
) -> None:
    receiver.answer = accepted

    async def main(client: Client) -> None:
        await client.put("jobs/1", "[1]")
        await subscribe(client, "s", streams=["jobs/1"], webhook={"url": receiver.url})
        await client.post("jobs/1", "2")
        first = (await came(receiver)).json
        await client.post("jobs/1", "3")
        went_on = await ack(client, "s", first, {}, done=False, action="callback")
        assert went_on.json == {"ok": True, "next_wake": False}
        ended = await ack(client, "s", first, tails(first), done=True, action="callback")
        assert ended.json == {"ok": True, "next_wake": True}
        second = (await came(receiver)).json
        assert second["generation"] == first["generation"] + 1
        assert second["streams"][0]["acked_offset"] == first["streams"][0]["tail_offset"]
        # The first is over, for whoever still works on it.
        late = await ack(client, "s", first, tails(first), done=True, action="callback")
        assert code(late) == (409, "FENCED")
        mixed = {**first, "callback_token": second["callback_token"]}
        assert code(await ack(client, "s", mixed, {}, done=True, action="callback")) == (
            409,
            "FENCED",
        )
        ended = await ack(client, "s", second, tails(second), done=True, action="callback")
        assert ended.json == {"ok": True, "next_wake": False}

    run(store, main)


def test_a_failed_delivery_is_tried_again_also_by_the_next_server(
    store: EventStore, receiver: Receiver
) -> None:
    receiver.answer = broken

    async def status(client: Client) -> str:
        found: str = (await client.get(SUBSCRIPTIONS + "s")).json["status"]
        return found

    async def before(client: Client) -> None:
        hook = {"url": receiver.url}
        await subscribe(client, "s", pattern="jobs/*", webhook=hook, lease_ttl_ms=600_000)
        await client.put("jobs/1", "[1]")
        first = await came(receiver)
        await until(lambda: failing(client))
        assert first.wake == ("s", 1)

    async def failing(client: Client) -> bool:
        return await status(client) == "failed"

    run(store, before)
    with store.connect() as db:
        due, failures = db.execute(
            text("SELECT due_at, failures FROM eventstore_subscriptions")
        ).one()
    assert failures >= 1
    while not receiver.came.empty():
        receiver.next()

    async def after(client: Client) -> None:
        assert await status(client) == "failed"
        receiver.answer = lambda _: (200, {"done": True})
        again = await came(receiver)
        # The same wake: its lease is not over.
        assert again.wake == ("s", 1)
        signed = dict(part.split("=", 1) for part in again.headers["webhook-signature"].split(","))
        assert int(signed["t"]) >= due // 1_000_000

        async def well() -> bool:
            return await status(client) == "active"

        await until(well)

    run(store, after)


@pytest.mark.parametrize(
    "answer", [(302, "http://127.0.0.1:1/"), (404, {"done": True}), (200, "x" * 100_000)]
)
def test_only_a_short_yes_from_the_receiver_itself_acknowledges(
    sqlite_store: EventStore, receiver: Receiver, answer: tuple[int, Any]
) -> None:
    receiver.answer = lambda _: answer

    async def main(client: Client) -> None:
        await subscribe(client, "s", pattern="jobs/*", webhook={"url": receiver.url})
        await client.put("jobs/1", "[1]")
        given = (await came(receiver)).json
        assert await links(client, "s") == {"jobs/1": ("glob", START)}
        # A receiver that has answered badly has the wake all the same.
        ended = await ack(client, "s", given, tails(given), done=True, action="callback")
        assert ended.status == 200

    run(sqlite_store, main)


def test_two_servers_of_a_database_deliver_each_wake_once(url: str, receiver: Receiver) -> None:
    seen: list[tuple[str, int]] = []

    def answer(notification: Notification) -> tuple[int, Any]:
        seen.append(notification.wake)
        return 200, {"done": True}

    receiver.answer = answer
    ids = [f"s{number}" for number in range(6)]

    async def main(one: Client, other: Client) -> None:
        for number, id in enumerate(ids):
            by = (one, other)[number % 2]
            made = await subscribe(by, id, pattern=f"{id}/*", webhook={"url": receiver.url})
            assert made.status == 201
        for round in range(3):
            for id in ids:
                await (one, other)[round % 2].put(f"{id}/{round}", "[1]")

        async def all_acknowledged() -> bool:
            found = [await links(one, id) for id in ids]
            return all(
                len(each) == 3 and {offset for _, offset in each.values()} == {FIRST}
                for each in found
            )

        await until(all_acknowledged)

    async def both() -> None:
        with EventStore(url) as first, EventStore(url) as second:
            async with (
                client_of(DurableStreams(first)) as one,
                client_of(DurableStreams(second)) as other,
            ):
                await main(one, other)

    asyncio.run(both())
    assert len(seen) == len(set(seen)), "a wake was delivered twice"
    assert {id for id, _ in seen} == set(ids)


# --- pull-wake -----------------------------------------------------------------------------------


async def pool(client: Client, **wanted: Any) -> None:
    """A subscription "s" to `jobs/*`, whose wake stream is `wake`."""
    await client.put("wake", "[]")
    made = await subscribe(client, "s", pattern="jobs/*", wake_stream="wake", **wanted)
    assert made.status == 201, made.body


def test_workers_race_for_a_wake_and_one_has_it(store: EventStore) -> None:
    async def main(client: Client) -> None:
        await pool(client)
        nothing = await act(client, "s", "claim", {"worker": "w"})
        assert code(nothing) == (409, "NO_PENDING_WORK")
        await client.put("jobs/1", "[1]")
        (event,) = await events(client, "wake", 1)
        assert event.pop("ts") > 1_700_000_000_000
        assert event == {
            "type": "wake",
            "subscription_id": "s",
            "stream": "jobs/1",
            "generation": 1,
        }
        workers = [f"w{number}" for number in range(8)]
        answers = await asyncio.gather(
            *(act(client, "s", "claim", {"worker": worker}) for worker in workers)
        )
        won = [worker for worker, a in zip(workers, answers, strict=True) if a.status == 200]
        assert len(won) == 1
        for answer in answers:
            if answer.status != 200:
                assert code(answer) == (409, "ALREADY_CLAIMED")
                assert answer.json["error"]["current_holder"] == won[0]
                assert answer.json["error"]["generation"] == 1
        (given,) = [answer.json for answer in answers if answer.status == 200]
        assert given["lease_ttl_ms"] == 30_000

        # It says how far it is, in steps, never backwards and never too far.
        await client.post("jobs/1", "[2]")
        two = FIRST[:-1] + "2"
        assert (await ack(client, "s", given, {"jobs/1": two}, done=False)).status == 200
        assert (await ack(client, "s", given, {"jobs/1": FIRST}, done=False)).status == 200
        assert await links(client, "s") == {"jobs/1": ("glob", two)}
        for stream, offset in (("jobs/1", FIRST[:-1] + "3"), ("others/2", START)):
            beyond = await ack(client, "s", given, {"jobs/1": two, stream: offset}, done=True)
            assert code(beyond) == (409, "INVALID_OFFSET")
        ended = await ack(client, "s", given, {}, done=True)
        assert ended.json == {"ok": True, "next_wake": False}
        assert code(await ack(client, "s", given, {}, done=True)) == (409, "FENCED")
        assert code(await released(client, "s", given)) == (409, "FENCED")
        assert len(await events(client, "wake", 1)) == 1

    run(store, main)


def test_work_that_is_given_back_or_left_over_is_offered_again(store: EventStore) -> None:
    async def main(client: Client) -> None:
        await pool(client)
        await client.put("jobs/1", "[1]")
        await client.put("jobs/2", "[1]")
        await events(client, "wake", 1)
        first = await claim(client, "s")
        assert (await released(client, "s", first)).status == 204
        assert [event["generation"] for event in await events(client, "wake", 2)] == [1, 2]
        second = await claim(client, "s")
        assert second["generation"] == 2
        assert code(await ack(client, "s", first, tails(first), done=True)) == (409, "FENCED")
        half = await ack(client, "s", second, {"jobs/1": FIRST}, done=True)
        assert half.json == {"ok": True, "next_wake": True}
        last = (await events(client, "wake", 3))[-1]
        assert (last["generation"], last["stream"]) == (3, "jobs/2")
        third = await claim(client, "s")
        assert tails(third) == {"jobs/2": FIRST}
        ended = await ack(client, "s", third, tails(third), done=True)
        assert ended.json == {"ok": True, "next_wake": False}

    run(store, main)


def test_a_worker_that_falls_silent_loses_the_wake(store: EventStore) -> None:
    async def main(client: Client) -> None:
        await pool(client, lease_ttl_ms=1000)
        await client.put("jobs/1", "[1]")
        await events(client, "wake", 1)
        slow = await claim(client, "s", "slow")
        assert len(await events(client, "wake", 2)) == 2  # nobody has asked for it
        assert code(await ack(client, "s", slow, tails(slow), done=True)) == (409, "FENCED")
        assert await links(client, "s") == {"jobs/1": ("glob", START)}

        async def quick() -> bool:
            given = await claim(client, "s", "quick")
            assert given["generation"] > slow["generation"]
            return (await ack(client, "s", given, tails(given), done=True)).status == 200

        await until(quick)

    run(store, main)


def test_a_wake_stream_that_is_missing_gets_the_event_when_it_is_there(
    sqlite_store: EventStore,
) -> None:
    async def main(client: Client) -> None:
        await subscribe(client, "s", pattern="**", wake_stream="wake")
        await client.put("jobs/1", "[1]")

        async def failed() -> bool:
            found: str = (await client.get(SUBSCRIPTIONS + "s")).json["status"]
            return found == "failed"

        await until(failed)
        await client.put("wake", "[]")
        (event,) = await events(client, "wake", 1)
        assert event["generation"] == 1
        # A wake is no work, or the pattern would wake itself for ever.
        given = await claim(client, "s")
        assert tails(given) == {"jobs/1": FIRST}
        assert (await ack(client, "s", given, tails(given), done=True)).json["next_wake"] is False

    run(sqlite_store, main)


def test_a_stream_that_is_made_anew_is_pending_from_its_start(store: EventStore) -> None:
    async def main(client: Client) -> None:
        await pool(client)
        await client.put("jobs/1", "[1, 2]")
        await events(client, "wake", 1)
        given = await claim(client, "s")
        await client.ask("DELETE", "jobs/1")
        # What is gone cannot be worked on, and is nobody's mistake.
        assert (await ack(client, "s", given, tails(given), done=True)).json["next_wake"] is False
        assert await links(client, "s") == {}
        await client.put("jobs/1", "[3]")
        await events(client, "wake", 2)
        given = await claim(client, "s")
        assert tails(given) == {"jobs/1": "0000000000000001_0000000000000001"}
        assert (await ack(client, "s", given, tails(given), done=True)).json["next_wake"] is False

    run(store, main)


def test_a_server_that_is_killed_leaves_schedule_and_fence_to_the_next(
    url: str, tmp_path: Path
) -> None:
    """Also the keys: a token of the first is good for the second."""
    EventStore(url).close()  # the tables
    with started(url, tmp_path / "first") as (streams, _):
        streams.put("wake", json=[]).raise_for_status()
        wanted = {"type": "pull-wake", "pattern": "jobs/*", "wake_stream": "wake"}
        for id, lease in (("s", 600_000), ("t", 1_000)):
            answer = streams.put(SUBSCRIPTIONS + id, json={**wanted, "lease_ttl_ms": lease})
            answer.raise_for_status()
        streams.put("jobs/1", json=[1]).raise_for_status()
        claims = {
            id: streams.post(f"{SUBSCRIPTIONS}{id}/claim", json={"worker": "w"}) for id in "st"
        }
        given = {id: claim.raise_for_status().json() for id, claim in claims.items()}
    with started(url, tmp_path / "second") as (streams, _):
        # One lease is over meanwhile: with nobody to remind it, the server offers the wake again.
        seen: list[Any] = []
        offset = START
        while not any((e["subscription_id"], e["generation"]) == ("t", 2) for e in seen):
            page = streams.get("wake", params={"offset": offset, "live": "long-poll"})
            seen += page.json() if page.raise_for_status().status_code == 200 else []
            offset = page.headers["stream-next-offset"]
        answers = {}
        for id in "st":
            report = {key: given[id][key] for key in ("wake_id", "generation")}
            answers[id] = streams.post(
                f"{SUBSCRIPTIONS}{id}/ack",
                json={**report, "acks": [{"stream": "jobs/1", "offset": FIRST}], "done": True},
                headers={"authorization": f"Bearer {given[id]['token']}"},
            )
    assert answers["s"].json() == {"ok": True, "next_wake": False}
    assert (answers["t"].status_code, answers["t"].json()["error"]["code"]) == (409, "FENCED")


# --- what a subscription is ----------------------------------------------------------------------


def test_a_deleted_subscription_takes_nothing_and_its_successor_is_another(
    store: EventStore,
) -> None:
    async def main(client: Client) -> None:
        await pool(client)
        await client.put("jobs/1", "[1]")
        given = await claim(client, "s")
        assert (await client.ask("DELETE", SUBSCRIPTIONS + "s")).status == 204
        assert code(await client.get(SUBSCRIPTIONS + "s")) == (404, "SUBSCRIPTION_NOT_FOUND")
        for answer in (
            await ack(client, "s", given, tails(given), done=True),
            await released(client, "s", given),
            await act(client, "s", "claim", {"worker": "w"}),
            await act(client, "s", "streams", {"streams": ["a"]}),
            await client.ask("DELETE", SUBSCRIPTIONS + "s"),
        ):
            assert code(answer) == (404, "SUBSCRIPTION_NOT_FOUND")
        made = await subscribe(client, "s", streams=["jobs/1", "jobs/2"], wake_stream="wake")
        assert made.status == 201
        assert await links(client, "s") == {
            "jobs/1": ("explicit", FIRST),
            "jobs/2": ("explicit", START),
        }
        await client.put("jobs/2", "[1]")
        again = await claim(client, "s")
        assert again["generation"] > given["generation"]
        assert code(await ack(client, "s", given, tails(given), done=True)) == (409, "FENCED")

    run(store, main)


def test_the_same_configuration_confirms_and_another_is_refused(store: EventStore) -> None:
    async def main(client: Client) -> None:
        wanted: dict[str, Any] = {"streams": ["b", "a", "b"], "wake_stream": "wake"}
        assert (await subscribe(client, "s", **wanted)).status == 201
        await act(client, "s", "streams", {"streams": ["c"]})
        same = await subscribe(client, "s", streams=["a", "b"], wake_stream="wake")
        assert same.status == 200
        assert [link["path"] for link in same.json["streams"]] == ["a", "b", "c"]
        for other in (
            {**wanted, "lease_ttl_ms": 1000},
            {**wanted, "description": "x"},
            {**wanted, "pattern": "*"},
            {**wanted, "streams": ["a"]},
            {**wanted, "wake_stream": "woken"},
        ):
            refused = await subscribe(client, "s", **other)
            assert code(refused) == (409, "SUBSCRIPTION_ALREADY_EXISTS")

    run(store, main)


def test_the_explicit_link_goes_before_the_pattern_and_leaves_it(store: EventStore) -> None:
    async def main(client: Client) -> None:
        await pool(client)
        await act(client, "s", "streams", {"streams": ["jobs/1", "else/1"]})
        await act(client, "s", "streams", {"streams": ["jobs/1"]})
        explicit = {"else/1": ("explicit", START), "jobs/1": ("explicit", START)}
        assert await links(client, "s") == explicit
        await client.put("jobs/1", "[1]")
        await client.put("else/1", "[1]")
        assert await links(client, "s") == explicit
        for path in ("jobs%2F1", "else/1", "else/1"):
            removed = await client.ask("DELETE", f"{SUBSCRIPTIONS}s/streams/{path}")
            assert removed.status == 204
        assert await links(client, "s") == {"jobs/1": ("glob", START)}
        assert tails(await claim(client, "s")) == {"jobs/1": FIRST}

    run(store, main)


MALFORMED = [
    "",
    "{",
    "[]",
    '{"type": "webhook"}',
    '{"type": "mail", "streams": ["a"]}',
    '{"type": "pull-wake", "wake_stream": "w"}',
    '{"type": "pull-wake", "wake_stream": "w", "streams": []}',
    '{"type": "pull-wake", "streams": ["a"]}',
    '{"type": "pull-wake", "wake_stream": "a", "streams": ["a"]}',
    '{"type": "pull-wake", "wake_stream": "__ds/x", "streams": ["a"]}',
    '{"type": "pull-wake", "wake_stream": "lamps/a/events", "streams": ["a"]}',
    '{"type": "pull-wake", "wake_stream": "w", "streams": ["__ds/a"]}',
    '{"type": "pull-wake", "wake_stream": "w", "streams": ["../a"]}',
    '{"type": "pull-wake", "wake_stream": "w", "streams": ["a\\u0000"]}',
    '{"type": "pull-wake", "wake_stream": "w", "streams": ["/a"]}',
    '{"type": "pull-wake", "wake_stream": "w", "streams": "a"}',
    '{"type": "pull-wake", "wake_stream": "w", "pattern": ""}',
    '{"type": "pull-wake", "wake_stream": "w", "pattern": "a//*"}',
    '{"type": "pull-wake", "wake_stream": "w", "pattern": "a", "lease_ttl_ms": 999}',
    '{"type": "pull-wake", "wake_stream": "w", "pattern": "a", "lease_ttl_ms": 600001}',
    '{"type": "pull-wake", "wake_stream": "w", "pattern": "a", "lease_ttl_ms": 1e400}',
    '{"type": "pull-wake", "wake_stream": "w", "pattern": "a", "secret": "x"}',
    '{"type": "webhook", "pattern": "a", "webhook": {"url": "https://a.example", "x": 1}}',
    "[" * 10_000,
]


def test_what_is_malformed_is_refused(sqlite_store: EventStore) -> None:
    async def main(client: Client) -> None:
        for body in MALFORMED:
            answer = await client.put(SUBSCRIPTIONS + "s", body)
            assert code(answer) == (400, "INVALID_REQUEST"), body
        assert (await client.get(SUBSCRIPTIONS + "s")).status == 404

    run(sqlite_store, main)


def test_requests_that_make_no_sense_are_refused(
    sqlite_store: EventStore, receiver: Receiver
) -> None:
    async def main(client: Client) -> None:
        await pool(client)
        await client.put("jobs/1", "[1]")
        given = await claim(client, "s")
        token = given["token"]
        whole = {"wake_id": given["wake_id"], "generation": given["generation"]}
        for body in (
            {},
            {**whole, "generation": "1"},
            {**whole, "acks": [{"stream": "jobs/1", "offset": "-1"}]},
            {**whole, "acks": [{"stream": "jobs/1", "offset": "now"}]},
            {**whole, "acks": [{"stream": "jobs//1", "offset": FIRST}]},
            {**whole, "acks": [{"stream": "jobs/1"}]},
            {**whole, "done": "yes"},
        ):
            answer = await act(client, "s", "ack", body, token)
            assert code(answer) == (400, "INVALID_REQUEST"), body
        for worker in ("", "x" * 256, "a\n", 1):
            answer = await act(client, "s", "claim", {"worker": worker})
            assert code(answer) == (400, "INVALID_REQUEST")
        many = [f"a/{number}" for number in range(1001)]
        assert (await act(client, "s", "streams", {"streams": many})).status == 400
        large = "{" + " " * 1_100_000
        assert (await client.put(SUBSCRIPTIONS + "large", large)).status == 413
        plain = await client.put(SUBSCRIPTIONS + "s", "{}", content_type="text/plain")
        assert code(plain) == (400, "INVALID_REQUEST")
        for id in ("..", "a%2Fb", "%00", "%ff", "a" * 600):
            assert (await subscribe(client, id, streams=["a"], wake_stream="w")).status in (
                400,
                404,
            )

        # What is of the one kind is not of the other.
        assert code(await act(client, "s", "callback", whole, token)) == (400, "INVALID_REQUEST")
        await subscribe(client, "hook", streams=["a"], webhook={"url": receiver.url})
        answer = await act(client, "hook", "claim", {"worker": "w"})
        assert code(answer) == (400, "INVALID_REQUEST")

        for method, path, status in (
            ("POST", "s", 405),
            ("GET", "s/claim", 405),
            ("POST", "s/streams/a", 405),
            ("POST", "s/nothing", 404),
            ("POST", "s/claim/a", 404),
        ):
            assert (await client.ask(method, SUBSCRIPTIONS + path)).status == status
        for path in ("__ds", "__ds/", "__ds/subscriptions", "%5F%5fds/other", "__ds%2Fother"):
            assert (await client.put(path, "[]")).status in (400, 404), path

    run(sqlite_store, main)


def test_without_the_token_of_the_wake_nothing_is_acknowledged(sqlite_store: EventStore) -> None:
    headers = ["", "Basic {token}", "Bearer", "Bearer {token}x", "{token}"]

    async def main(client: Client) -> None:
        await pool(client)
        await client.put("jobs/1", "[1]")
        given = await claim(client, "s")
        for action, header in itertools.product(("ack", "release"), headers):
            answer = await client.post(
                f"{SUBSCRIPTIONS}s/{action}?token={given['token']}",
                json.dumps({"wake_id": given["wake_id"], "generation": 1, "token": given["token"]}),
                **({"authorization": header.format(token=given["token"])} if header else {}),
            )
            assert code(answer) == (401, "TOKEN_INVALID")
        assert (await ack(client, "s", given, {}, done=True)).status == 200

    run(sqlite_store, main)


# --- where webhooks may be -----------------------------------------------------------------------


def test_a_webhook_on_this_machine_is_for_those_who_are_there(
    sqlite_store: EventStore, receiver: Receiver
) -> None:
    async def refused(client: Client) -> None:
        answer = await subscribe(client, "s", streams=["a"], webhook={"url": receiver.url})
        assert code(answer) == (400, "WEBHOOK_URL_REJECTED")

    async def from_elsewhere(client: Client) -> None:
        client._client = "203.0.113.5"
        await refused(client)

    run(sqlite_store, refused, local_webhooks=False)
    run(sqlite_store, refused, base_url="https://shop.example")
    run(sqlite_store, from_elsewhere, authorize=allow_all)


def test_a_name_that_leads_into_the_network_is_not_called(
    sqlite_store: EventStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    async def lying(*_: object, **__: object) -> list[Any]:
        asked.set()
        port = receiver.port
        public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14", port))
        private = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        return [public, private]

    async def main(client: Client) -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lying, raising=False)
        url = "https://hooks.example.com/hook"
        made = await subscribe(client, "s", pattern="jobs/*", webhook={"url": url})
        assert made.status == 201
        await client.put("jobs/1", "[1]")

        async def failed() -> bool:
            found: str = (await client.get(SUBSCRIPTIONS + "s")).json["status"]
            return found == "failed"

        await until(failed)

    run(sqlite_store, main)
    assert asked.is_set()
    assert receiver.came.empty()


def certificate(name: str, folder: Path) -> tuple[Path, Path]:
    """A certificate for a name, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(Encoding.PEM))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(pem)
    return folder / "cert.pem", folder / "key.pem"


@pytest.mark.parametrize("name", ["hooks.example.com", "others.example.com"])
def test_a_certificate_is_checked_for_the_name_though_the_address_is_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = certificate("hooks.example.com", tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    async def here(_: object) -> list[str]:
        return ["127.0.0.1"]

    monkeypatch.setattr(delivery, "resolved", here)

    async def main(receiver: Receiver) -> bool:
        webhooks = delivery.Webhooks(local=False)
        trusting = ssl.create_default_context(cafile=str(cert))
        webhooks._client = httpx.AsyncClient(verify=trusting, trust_env=False)
        url = f"https://{name}:{receiver.port}/hook"
        wanted = Subscription(
            "s", "webhook", "*", "[]", url, None, 1, None, b"", "", False, 0, False, *Wake()
        )
        try:
            return await webhooks.call(Delivery(wanted, 10), [], SigningKey(b"s" * 32), "token")
        finally:
            await webhooks.close()

    with Receiver(tls=context) as receiver:
        if name == "hooks.example.com":
            assert asyncio.run(main(receiver))
            assert receiver.next().headers["host"] == f"{name}:{receiver.port}"
        else:
            with pytest.raises(delivery.Failed, match="certificate"):
                asyncio.run(main(receiver))
            assert receiver.came.empty()


# --- who may -------------------------------------------------------------------------------------


def hook(request: Request, path: str, operation: Operation) -> bool:
    """Each tenant has what is below its name; all may wake by `wake`."""
    tenant = request.header(b"x-tenant")
    if operation is Operation.READ and "/secret" in path:
        return False
    return path.split("/")[0] in (tenant, "wake" if operation is Operation.APPEND else tenant)


def test_a_subscription_tells_nobody_of_what_he_may_not_read(sqlite_store: EventStore) -> None:
    async def main(client: Client) -> None:
        a, b = {"x_tenant": "a"}, {"x_tenant": "b"}

        async def ask(method: str, path: str, body: Any, **tenant: str) -> Response:
            return await client.ask(
                method, SUBSCRIPTIONS + path, json.dumps(body), **JSON, **tenant
            )

        wanted = {"type": "pull-wake", "wake_stream": "wake"}
        for refused in (
            {**wanted, "pattern": "b/*"},
            {**wanted, "pattern": "**"},
            {**wanted, "streams": ["a/1", "b/1"]},
            {**wanted, "streams": ["a/1"], "wake_stream": "b/wake"},
        ):
            assert (await ask("PUT", "s", refused, **a)).status == 401
        assert (await ask("PUT", "s", {**wanted, "pattern": "a/*"}, **a)).status == 201
        await client.put("a/1", "[1]", **a)
        await client.put("a/secret", "[1]", **a)

        async def linked() -> bool:
            (path,) = [s["path"] for s in (await ask("GET", "s", None, **a)).json["streams"]] or [
                ""
            ]
            return path == "a/1"

        await until(linked)
        for method, path, body in (
            ("GET", "s", None),
            ("DELETE", "s", None),
            ("POST", "s/claim", {"worker": "w"}),
            ("POST", "s/streams", {"streams": ["b/1"]}),
            ("DELETE", "s/streams/a/1", None),
        ):
            answer = await ask(method, path, body, **b)
            assert code(answer) == (404, "SUBSCRIPTION_NOT_FOUND")
            assert answer.body.replace(b"other", b"s") == (
                await ask(method, path.replace("s", "other", 1), body, **b)
            ).body.replace(b"other", b"s")
        assert (await ask("POST", "s/streams", {"streams": ["b/1"]}, **a)).status == 401
        given = (await ask("POST", "s/claim", {"worker": "w"}, **a)).json
        assert list(tails(given)) == ["a/1"]

    run(sqlite_store, main, authorize=hook)


def test_keys_are_published_once_there_are_any(store: EventStore, receiver: Receiver) -> None:
    async def main(client: Client) -> None:
        none = await client.get("__ds/jwks.json")
        assert (none.json, none.headers["cache-control"]) == ({"keys": []}, "no-store")
        await asyncio.gather(
            *(
                subscribe(client, f"s{number}", streams=["a"], webhook={"url": receiver.url})
                for number in range(4)
            )
        )
        published = await client.get("__ds/jwks.json")
        assert len(published.json["keys"]) == 1
        assert published.headers["content-type"] == "application/jwk-set+json"
        assert published.headers["cache-control"] == "public, max-age=300"

    run(store, main)


def test_a_server_without_subscriptions_listens_to_nothing(sqlite_store: EventStore) -> None:
    async def main(client: Client) -> None:
        await client.put("jobs/1", "[1]")
        assert "eventstore-http" not in {thread.name for thread in threading.enumerate()}
        await pool(client)
        await client.post("jobs/1", "[1]")
        await events(client, "wake", 1)
        assert "eventstore-http" in {thread.name for thread in threading.enumerate()}

    run(sqlite_store, main)
