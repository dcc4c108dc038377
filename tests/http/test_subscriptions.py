"""What a subscription is, what it takes, and who may have one."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from typing import Any

from asgi import Client, Response
from receiver import Receiver
from subscribing import (
    FIRST,
    JSON,
    START,
    SUBSCRIPTIONS,
    ack,
    act,
    claim,
    code,
    events,
    links,
    pool,
    released,
    run,
    subscribe,
    tails,
    until,
)

from eventstore import EventStore
from eventstore.http import Operation, Request

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
