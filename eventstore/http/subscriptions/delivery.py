"""Delivering a wake: a signed request to a webhook, or an event in a wake stream."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec

from eventstore.http.commands import Append
from eventstore.http.committing import Committer
from eventstore.http.messages import JSON, events_of
from eventstore.http.offsets import offset
from eventstore.http.problems import Problem
from eventstore.http.requests import Producing
from eventstore.http.subscriptions.ledger import PULL, Delivery
from eventstore.http.subscriptions.refusals import Refused
from eventstore.http.subscriptions.signing import SigningKey
from eventstore.http.subscriptions.targets import Target, resolved, target
from eventstore.log.wakes import Link, Subscription
from eventstore.names import is_claimed

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

#: Bytes of a receiver's answer: what it says fits in a few.
_MOST: Final = 64 * 1024


class _Answer(msgspec.Struct):
    done: bool = False


_answer: Final = msgspec.json.Decoder(_Answer).decode


class Failed(Exception):
    """The wake could not be delivered, for now."""


class Webhooks:
    """Calls the receivers of webhooks. To be used on one event loop."""

    def __init__(self, *, local: bool | None) -> None:
        """`local` says whether receivers on this machine are allowed; None leaves it to each."""
        self._local = local
        self._client: httpx.AsyncClient | None = None

    @staticmethod
    def require() -> None:
        """Raise Problem (501) where the extra `http` is not installed."""
        _httpx()

    async def call(
        self, delivery: Delivery, links: Sequence[Link], key: SigningKey, token: str
    ) -> bool:
        """Deliver a wake; whether the receiver is done with it. Raises Failed."""
        subscription = delivery.subscription
        httpx = _httpx()
        body = msgspec.json.encode(
            {
                "subscription_id": subscription.id,
                "wake_id": subscription.wake_id,
                "generation": subscription.generation,
                "streams": described(links),
                "callback_url": control_url(subscription, "callback"),
                "callback_token": token,
            }
        )
        try:
            async with asyncio.timeout(delivery.seconds):
                where = target(
                    subscription.url or "", local=subscription.local and self._local is not False
                )
                return await self._post(where, body, key)
        except TimeoutError:
            raise Failed(f"no answer within {delivery.seconds:.3g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, Refused) as error:
            raise Failed(str(error) or type(error).__name__) from error

    async def _post(self, where: Target, body: bytes, key: SigningKey) -> bool:
        response = await self._send(where, body, key)
        try:
            if not response.is_success:
                raise Failed(f"the receiver answered {response.status_code}")
            return _is_done(await _start_of(response))
        finally:
            await response.aclose()

    async def _send(self, where: Target, body: bytes, key: SigningKey) -> httpx.Response:
        """The start of the answer. To an address that was checked: asked again, DNS might lie."""
        httpx = _httpx()
        client = self._opened()
        url = httpx.URL(where.url)
        headers = {
            "Host": url.netloc.decode("ascii"),
            "Content-Type": JSON,
            "Webhook-Signature": key.signature(body, int(time.time())),
            "Accept": JSON,
            "Accept-Encoding": "identity",
            "User-Agent": "eventstore",
        }
        *others, last = await resolved(where)
        for address in (*others, last):
            request = client.build_request(
                "POST",
                url.copy_with(host=address),
                headers=headers,
                content=body,
                extensions={"sni_hostname": where.host},
            )
            try:
                return await client.send(request, stream=True)
            except httpx.ConnectError:
                if address == last:
                    raise
        raise AssertionError("the last address either answers or raises")

    def _opened(self) -> httpx.AsyncClient:
        client = self._client
        if client is None:
            httpx = _httpx()
            # Without kept connections: one to an address was made for one name's certificate.
            client = self._client = httpx.AsyncClient(
                timeout=None,
                trust_env=False,
                follow_redirects=False,
                limits=httpx.Limits(max_keepalive_connections=0),
            )
        return client

    async def close(self) -> None:
        """Give back what was opened."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


async def announce(committer: Committer, subscription: Subscription, path: str) -> None:
    """Append the wake event of a subscription to its wake stream, once. Raises Failed."""
    wake_stream = subscription.wake_stream or ""
    event = {
        "type": "wake",
        "subscription_id": subscription.id,
        "stream": path,
        "generation": subscription.generation,
        "ts": time.time_ns() // 1_000_000,
    }
    if is_claimed(wake_stream):
        raise Failed(f"{wake_stream!r} is a stream of the application")
    command = Append(
        wake_stream,
        JSON,
        events_of(msgspec.json.encode(event), JSON),
        closes=False,
        # So that it is there once, also if a server dies before it has noted that.
        producer=Producing(f"__ds/{subscription.id}", subscription.generation, 0),
    )
    try:
        await committer.commit(command)
    except Problem as problem:
        if problem.status != 403:  # a later wake has been announced
            raise Failed(problem.detail) from problem


def described(links: Sequence[Link]) -> list[dict[str, Any]]:
    """Streams with something pending, as receivers and workers are told of them."""
    return [
        {
            "path": link.path,
            "link_type": link_type(link),
            "acked_offset": offset(link.incarnation, link.acked),
            "tail_offset": offset(link.tail_incarnation, link.tail),
            "has_pending": True,
        }
        for link in links
    ]


def link_type(link: Link) -> str:
    """How a stream is linked: what is explicit goes before (section 6.1)."""
    return "explicit" if link.explicit else "glob"


def control_url(subscription: Subscription, action: str) -> str:
    """The URL of a request about a subscription."""
    id = quote(subscription.id, safe="")
    return f"{subscription.base_url}/__ds/subscriptions/{id}/{action}"


def is_pull(subscription: Subscription) -> bool:
    """Whether its wakes are events in a stream."""
    return subscription.type == PULL


async def _start_of(response: httpx.Response) -> bytes:
    """The body; nothing of one that is too large to be meant for us."""
    body = b""
    async for part in response.aiter_raw():
        body += part
        if len(body) > _MOST:
            return b""
    return body


def _is_done(body: bytes) -> bool:
    try:
        return _answer(body).done
    except (msgspec.MsgspecError, RecursionError):
        return False


def _httpx() -> Any:
    try:
        import httpx
    except ImportError:
        raise Problem(501, "this server has no webhooks: install eventstore[http] there") from None
    return httpx
