"""What the tests of subscriptions ask of a server, and wait for."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from asgi import Client, Response, client_of
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from receiver import PATIENCE, Notification, Receiver
from serving import _address, eventstore_serve

from eventstore import Aggregate, Event, EventStore, on
from eventstore.http import DurableStreams

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


async def pool(client: Client, **wanted: Any) -> None:
    """A subscription "s" to `jobs/*`, whose wake stream is `wake`."""
    await client.put("wake", "[]")
    made = await subscribe(client, "s", pattern="jobs/*", wake_stream="wake", **wanted)
    assert made.status == 201, made.body
