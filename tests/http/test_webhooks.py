"""Webhooks: who is woken, by what, how often, and where they may be."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgi import Client, client_of
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from receiver import Notification, Receiver, accepted, broken
from sqlalchemy import text
from subscribing import (
    FIRST,
    START,
    SUBSCRIPTIONS,
    Lamp,
    ack,
    came,
    code,
    links,
    run,
    subscribe,
    tails,
    until,
    verify,
)

from eventstore import EventStore
from eventstore.http import DurableStreams, allow_all
from eventstore.http.subscriptions import delivery
from eventstore.http.subscriptions.ledger import Delivery
from eventstore.http.subscriptions.signing import SigningKey
from eventstore.http.subscriptions.state import Wake
from eventstore.log.wakes import Subscription

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
