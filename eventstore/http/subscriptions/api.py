"""The control APIs below `__ds`: a request becomes a call of the ledger. PROTOCOL.md, section 6.

Who may subscribe to what a subscription was made for may also see and remove it; for others there
is none. A wake's receiver is known by its token alone, which nothing else accepts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

import msgspec

from eventstore import moments
from eventstore.aio.hops import Hops
from eventstore.http.access import Authorize, LocalOnly, Operation, check_path
from eventstore.http.committing import Committer
from eventstore.http.limits import Bodies
from eventstore.http.live import Hub
from eventstore.http.offsets import offset
from eventstore.http.problems import Problem
from eventstore.http.requests import Request, base_url, stream_path
from eventstore.http.responses import Answer, Receive, Scope
from eventstore.http.subscriptions.bodies import (
    RESERVED,
    Claim,
    Report,
    Streams,
    Wanted,
    checked_path,
    checked_paths,
    decoded,
)
from eventstore.http.subscriptions.delivery import Webhooks, described, is_pull, link_type
from eventstore.http.subscriptions.keys import Keys
from eventstore.http.subscriptions.ledger import MOST_LISTED, Ledger, wake_of
from eventstore.http.subscriptions.refusals import NO_PENDING_WORK, Refused, invalid, unknown
from eventstore.http.subscriptions.signing import ALGORITHM, jwks
from eventstore.http.subscriptions.state import Fence, Wake
from eventstore.http.subscriptions.targets import target
from eventstore.http.subscriptions.tokens import checked, token
from eventstore.http.subscriptions.waking import Waker
from eventstore.log.base import Log
from eventstore.log.wakes import Link, Subscription
from eventstore.names import is_claimed

#: Bytes of a body, at the most: one that names a thousand streams fits.
_LARGEST_BODY: Final = 1024 * 1024
_MANAGED: Final = (Operation.SUBSCRIBE, Operation.READ)


class Subscriptions:
    """The subscriptions of one log, on one event loop."""

    def __init__(
        self,
        log: Log,
        hub: Hub,
        hops: Hops,
        committer: Committer,
        authorize: Authorize | None,
        bodies: Bodies,
        root: str,
        base_url: str | None,
        local_webhooks: bool | None,
    ) -> None:
        self._hops = hops
        self._authorize = authorize
        self._bodies = bodies
        self._root = root
        self._base_url = base_url
        self._local = local_webhooks
        self._is_of_this_machine = LocalOnly(("*",), None)
        self._ledger = Ledger(log)
        self._keys = Keys(self._ledger.wakes)
        self._waker = Waker(
            self._ledger, self._keys, hub, hops, committer, Webhooks(local=local_webhooks)
        )

    async def close(self) -> None:
        """End what runs for them. What was under way goes on when a server runs again."""
        await self._waker.close()

    async def answer(self, scope: Scope, encoded: bytes, receive: Receive) -> Answer:
        """Do what is asked. `encoded` is the path below the root. Raises Problem, Disconnected."""
        segments = _segments(encoded)
        request = Request(scope, "/".join(segments))
        method = request.method
        if segments[1:] == ["jwks.json"]:
            _allow(method, ("GET", "HEAD"))
            return await self._published()
        if len(segments) < 3 or segments[1] != "subscriptions":
            raise Problem(404, "there is no such control API")
        id = _id(segments[2])
        if len(segments) == 3:
            _allow(method, ("GET", "HEAD", "PUT", "DELETE"))
            if method == "PUT":
                return await self._create(request, receive, id)
            if method == "DELETE":
                return await self._delete(request, id)
            return await self._describe(request, id)
        if segments[3] == "streams" and len(segments) == 5:
            _allow(method, ("DELETE",))
            return await self._remove_stream(request, id, checked_path(segments[4]))
        act = self._actions.get(segments[3])
        if act is None or len(segments) != 4:
            raise Problem(404, "there is no such control API")
        _allow(method, ("POST",))
        return await act(self, request, receive, id)

    # --- what there is -------------------------------------------------------------------------

    async def _create(self, request: Request, receive: Receive, id: str) -> Answer:
        wanted = await self._body(request, receive, Wanted)
        wanted.check()
        await self._check(request, wanted.pattern, wanted.streams, wanted.wake_stream)
        local = self._is_local(request)
        url = None
        if wanted.webhook is not None:
            url = wanted.webhook.url
            target(url, local=local)
            Webhooks.require()
            await self._hops.run(self._keys.signing)
        elif wanted.wake_stream is not None and is_claimed(wanted.wake_stream):
            raise invalid(f"{wanted.wake_stream!r} is a stream of the application")
        base = f"{base_url(request.scope, self._base_url)}{self._root}"
        if "://" not in base:
            raise invalid("a Host header is missing")
        await self._hops.run(self._keys.tokens)
        new = Subscription(
            id,
            wanted.type,
            wanted.pattern,
            msgspec.json.encode(wanted.streams).decode(),
            url,
            wanted.wake_stream,
            wanted.lease_ttl_ms * 1000,
            wanted.description,
            wanted.digest,
            base,
            local,
            0,
            False,
            *Wake(),
        )
        found, is_new = await self._hops.run(self._ledger.create, new, wanted.streams)
        if is_new:
            self._waker.changed()
        return _json(201 if is_new else 200, await self._described(request, found))

    async def _describe(self, request: Request, id: str) -> Answer:
        return _json(200, await self._described(request, await self._managed(request, id)))

    async def _delete(self, request: Request, id: str) -> Answer:
        await self._managed(request, id)
        await self._hops.run(self._ledger.delete, id)
        self._waker.changed()
        return Answer(204)

    async def _add_streams(self, request: Request, receive: Receive, id: str) -> Answer:
        await self._managed(request, id)
        paths = checked_paths((await self._body(request, receive, Streams)).streams)
        await self._check(request, None, paths, None)
        await self._hops.run(self._ledger.add_streams, id, paths)
        self._waker.due()
        return Answer(204)

    async def _remove_stream(self, request: Request, id: str, path: str) -> Answer:
        await self._managed(request, id)
        await self._hops.run(self._ledger.remove_stream, id, path)
        return Answer(204)

    async def _published(self) -> Answer:
        keys = await self._hops.run(self._keys.published)
        headers = {
            "Content-Type": "application/jwk-set+json",
            # A set without keys is not to be remembered: the first may come at any moment.
            "Cache-Control": "public, max-age=300" if keys else "no-store",
        }
        return Answer(200, headers, jwks(keys))

    # --- what workers do -----------------------------------------------------------------------

    async def _claim(self, request: Request, receive: Receive, id: str) -> Answer:
        await self._managed(request, id)
        claim = await self._body(request, receive, Claim)
        claim.check()
        try:
            found, links = await self._hops.run(self._ledger.claim, id, claim.worker)
        except Refused as refused:
            if refused.code != NO_PENDING_WORK:
                raise
            # A stream that has just been made, by a client that knows it, is linked by then.
            await self._waker.caught_up()
            found, links = await self._hops.run(self._ledger.claim, id, claim.worker)
        self._waker.due()  # when the lease is over
        fence = Fence(found.generation, found.wake_id or "")
        secret = await self._hops.run(self._keys.tokens)
        answer = {
            "wake_id": found.wake_id,
            "generation": found.generation,
            "token": token(secret, id, fence, moments.now()),
            "streams": described(await self._readable(request, links)),
            "lease_ttl_ms": found.lease_ttl // 1000,
        }
        return _json(200, answer)

    async def _callback(self, request: Request, receive: Receive, id: str) -> Answer:
        return await self._acknowledge(request, receive, id, is_pull=False)

    async def _ack(self, request: Request, receive: Receive, id: str) -> Answer:
        return await self._acknowledge(request, receive, id, is_pull=True)

    async def _acknowledge(
        self, request: Request, receive: Receive, id: str, *, is_pull: bool
    ) -> Answer:
        fence, report = await self._report(request, receive, id)
        next_wake = await self._hops.run(
            self._ledger.acknowledge, id, fence, report.places, done=report.done, is_pull=is_pull
        )
        self._waker.due()
        return _json(200, {"ok": True, "next_wake": next_wake})

    async def _release(self, request: Request, receive: Receive, id: str) -> Answer:
        fence, _ = await self._report(request, receive, id)
        await self._hops.run(self._ledger.release, id, fence)
        self._waker.due()
        return Answer(204)

    async def _report(self, request: Request, receive: Receive, id: str) -> tuple[Fence, Report]:
        """The wake that a request is about, by its token and its body. Raises Refused."""
        scheme, _, text = (request.header(b"authorization") or "").partition(" ")
        secret = await self._hops.run(self._keys.known_tokens)
        if secret is None or scheme.lower() != "bearer":
            raise Refused(401, "TOKEN_INVALID", "the token of the wake is missing: Bearer <token>")
        fence = checked(secret, id, text.strip(), moments.now())
        report: Report = await self._body(request, receive, Report)
        report.check()
        if (report.generation, report.wake_id) != fence:
            # Of another wake than the token: whichever is the present one, this is neither's.
            return Fence(-1, ""), report
        return fence, report

    _actions: Final[Mapping[str, Callable[..., Awaitable[Answer]]]] = {
        "streams": _add_streams,
        "callback": _callback,
        "claim": _claim,
        "ack": _ack,
        "release": _release,
    }

    # --- who may -------------------------------------------------------------------------------

    async def _managed(self, request: Request, id: str) -> Subscription:
        """A subscription that a request is about. Raises Refused (404), also if it may not."""
        if isinstance(self._authorize, LocalOnly):
            await check_path(self._authorize, request, request.path, Operation.SUBSCRIBE)
        found = await self._hops.run(self._ledger.find, id)
        try:
            streams = msgspec.json.decode(found.streams, type=list[str])
            await self._check(request, found.pattern, streams, found.wake_stream)
        except Refused:
            raise
        except Problem as problem:
            raise unknown(id) from problem
        return found

    async def _check(
        self,
        request: Request,
        pattern: str | None,
        streams: Iterable[str],
        wake_stream: str | None,
    ) -> None:
        """Raise Problem unless the request may subscribe to these, and have events written."""
        if self._authorize is None:
            return
        for path in (*streams, *([] if pattern is None else [pattern])):
            for operation in _MANAGED:
                await check_path(self._authorize, request, path, operation)
        if wake_stream is not None:
            await check_path(self._authorize, request, wake_stream, Operation.APPEND)

    async def _readable(self, request: Request, links: list[Link]) -> list[Link]:
        """Those of which a request may know."""
        if self._authorize is None:
            return links
        found = []
        for link in links:
            try:
                await check_path(self._authorize, request, link.path, Operation.READ)
            except Problem:
                continue
            found.append(link)
        return found

    def _is_local(self, request: Request) -> bool:
        """Whether a webhook may be on this machine: if that was said, or for who is on it too."""
        if self._local is not None:
            return self._local
        if self._base_url is not None:
            return False  # a server with a public name is none for development
        try:
            return self._is_of_this_machine(request, request.path, Operation.SUBSCRIBE)
        except Problem:
            return False

    # --- parts ---------------------------------------------------------------------------------

    async def _body(self, request: Request, receive: Receive, shape: Any) -> Any:
        length = request.header(b"content-length") or ""
        if length.isdigit() and int(length[:15]) > _LARGEST_BODY:
            raise _too_large()
        try:
            body = await self._bodies.read(request, receive)
            if len(body) > _LARGEST_BODY:
                raise _too_large()
            return decoded(request, body, shape)
        finally:
            self._bodies.release(request)

    async def _described(self, request: Request, found: Subscription) -> dict[str, Any]:
        links = await self._hops.run(self._ledger.wakes.links, found.id, MOST_LISTED)
        links = [link for link in links if link.explicit or link.tail >= 0]
        created = moments.from_micros(found.created_at).isoformat(timespec="milliseconds")
        webhook = None
        if not is_pull(found):
            key = await self._hops.run(self._keys.signing)
            base = f"{base_url(request.scope, self._base_url)}{self._root}"
            signing = {
                "alg": ALGORITHM,
                "kid": key.id,
                "jwks_url": f"{base}/{RESERVED}/jwks.json",
            }
            webhook = {"url": found.url, "signing": signing}
        return {
            "id": found.id,
            "subscription_id": found.id,
            "type": found.type,
            "pattern": found.pattern,
            "streams": [
                {
                    "path": link.path,
                    "link_type": link_type(link),
                    "acked_offset": offset(link.incarnation, link.acked),
                }
                for link in await self._readable(request, links)
            ],
            "webhook": webhook,
            "wake_stream": found.wake_stream,
            "lease_ttl_ms": found.lease_ttl // 1000,
            "created_at": created.replace("+00:00", "Z"),
            "status": wake_of(found).status,
            "description": found.description,
        }


def concerns(encoded: bytes) -> bool:
    """Whether a path below the root, as it was sent, is of the control APIs."""
    if encoded[:1] not in (b"_", b"%"):
        return False
    return unquote_to_bytes(encoded).partition(b"/")[0] == RESERVED.encode()


def _segments(encoded: bytes) -> list[str]:
    """The parts of a path: `__ds`, the API, a subscription, what is asked, and the rest."""
    try:
        return unquote_to_bytes(encoded).decode("utf-8").split("/", 4)
    except UnicodeDecodeError:
        raise invalid("the path is not UTF-8, percent-encoded") from None


def _id(segment: str) -> str:
    """A subscription's id: what could be a segment of a stream's path. Raises Refused (400)."""
    try:
        return stream_path(quote(segment, safe="").encode())
    except Problem as problem:
        raise invalid(f"{segment!r} cannot be a subscription's id: {problem.detail}") from None


def _allow(method: str, methods: tuple[str, ...]) -> None:
    if method not in methods:
        raise Problem(405, f"{method} is not supported", {"Allow": ", ".join(methods)})


def _json(status: int, content: Any) -> Answer:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return Answer(status, headers, msgspec.json.encode(content))


def _too_large() -> Problem:
    return Problem(413, f"the body is larger than {_LARGEST_BODY} bytes", {"Connection": "close"})
