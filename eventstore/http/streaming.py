"""GET and HEAD: what is there, and what comes. PROTOCOL.md, sections 5.5 to 5.8."""

from __future__ import annotations

from typing import Final

from eventstore import moments
from eventstore.aio.hops import Hops
from eventstore.errors import EventStoreError
from eventstore.http import events
from eventstore.http.access import Authorize, Operation, check
from eventstore.http.commands import Touch
from eventstore.http.committing import Committer
from eventstore.http.cursors import cursor
from eventstore.http.live import Hub
from eventstore.http.messages import joined
from eventstore.http.offsets import parsed
from eventstore.http.problems import Problem
from eventstore.http.reading import Found, Page, Reader
from eventstore.http.requests import Request
from eventstore.http.responses import Answer, Headers, Receive, Send
from eventstore.http.waiting import Waiting
from eventstore.moments import from_micros

#: Seconds after which a reader of events is sent away, to come again (section 5.8).
_LIFE: Final = 60.0
#: A time to live is only written anew if that changes it by so many microseconds.
_FINE: Final = 50_000


class Streaming:
    """Answers the requests that read streams."""

    def __init__(
        self,
        hub: Hub,
        committer: Committer,
        hops: Hops,
        reader: Reader,
        authorize: Authorize | None,
        *,
        timeout: float,
        is_public: bool,
    ) -> None:
        self._hub = hub
        self._committer = committer
        self._hops = hops
        self._reader = reader
        self._authorize = authorize
        self._timeout = timeout
        self._is_public = is_public

    async def answer(
        self, request: Request, receive: Receive, send: Send, common: Headers
    ) -> Answer | None:
        """The answer; None where it has been sent already. Raises Problem, LogError."""
        await check(self._authorize, request, Operation.READ)
        if request.method == "HEAD":
            return self._described(await self._find(request))
        live = request.query.get("live")
        if live is None:
            return await self._catch_up(request)
        if live not in ("long-poll", "sse"):
            raise Problem(400, f"live={live!r} is neither long-poll nor sse")
        if "offset" not in request.query:
            raise Problem(400, f"live={live} needs an offset")
        start = await self._start(request)
        if live == "sse":
            await self._events(request, *start, receive, send, common)
            return None
        return await self._long_poll(request, *start, receive)

    # --- what is there -------------------------------------------------------------------------

    async def _find(self, request: Request) -> Found:
        return await self._hops.run(self._reader.find, request.path, moments.now())

    async def _start(self, request: Request) -> tuple[Found, int]:
        """The stream, and the version after which to read. Raises Problem."""
        place = _Place(request)
        found = await self._find(request)
        await self._touch(found)
        return found, place.version(found)

    async def _touch(self, found: Found) -> None:
        """A read starts the time to live anew."""
        resource = found.resource
        if resource.ttl is not None and resource.due_at is not None:
            span = resource.ttl * 1_000_000
            if moments.now() + span - resource.due_at > max(_FINE, span // 100):
                await self._committer.commit(Touch(resource.path))

    async def _catch_up(self, request: Request) -> Answer:
        place = _Place(request)
        now = moments.now()

        def read() -> Page:
            found = self._reader.find(request.path, now)
            return self._reader.page(found, place.version(found))

        page = await self._hops.run(read)
        await self._touch(page.found)
        if place.is_now:
            headers = _page_headers(page) | {"Cache-Control": "no-store"}
            return Answer(200, headers, joined((), page.found.media))
        headers = _page_headers(page) | {
            "ETag": _etag(page),
            "Cache-Control": self._cache_control(page),
        }
        if _is_known(request.header(b"if-none-match"), headers["ETag"]):
            del headers["Content-Type"]
            return Answer(304, headers)
        return Answer(200, headers, joined(page.messages, page.found.media))

    def _described(self, found: Found) -> Answer:
        resource = found.resource
        headers = {
            "Content-Type": resource.content_type,
            "Stream-Next-Offset": found.offset(found.version),
            "Stream-Version": str(found.version),
            "Cache-Control": "no-store",
        }
        if resource.ttl is not None:
            headers["Stream-TTL"] = str(resource.ttl)
        if resource.expires_at is not None:
            moment = from_micros(resource.expires_at)
            headers["Stream-Expires-At"] = moment.isoformat().replace("+00:00", "Z")
        if resource.closed:
            headers["Stream-Closed"] = "true"
        if found.of_application:
            headers["Allow"] = "GET, HEAD, OPTIONS"
        return Answer(200, headers)

    def _cache_control(self, page: Page) -> str:
        """How long a response may be kept: one that may yet grow is asked for again."""
        shared = self._is_public and self._authorize is None and not page.found.of_application
        scope = "public" if shared else "private"
        if page.is_last:
            return f"{scope}, no-cache"
        return f"{scope}, max-age=60, stale-while-revalidate=300"

    # --- what comes ----------------------------------------------------------------------------

    async def _long_poll(
        self, request: Request, found: Found, start: int, receive: Receive
    ) -> Answer:
        stream = found.resource.stream
        with self._hub.feed(stream) as feed, Waiting(receive, self._timeout) as waiting:
            while True:
                seen = feed.count
                page = await self._hub.page(feed, request.path, start)
                if page.messages or page.is_end or self._hub.is_draining:
                    break
                if not await waiting.news(feed, seen):
                    break
        headers = _page_headers(page)
        if not page.is_end:
            headers["Stream-Cursor"] = cursor(request.query.get("cursor"))
        if not page.messages:
            del headers["Content-Type"]
            return Answer(204, headers | {"Cache-Control": "no-store"})
        headers["ETag"] = _etag(page)
        headers["Cache-Control"] = self._cache_control(page)
        return Answer(200, headers, joined(page.messages, page.found.media))

    async def _events(
        self,
        request: Request,
        found: Found,
        start: int,
        receive: Receive,
        send: Send,
        common: Headers,
    ) -> None:
        headers = [*events.headers(found.media), *common]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        echoed = request.query.get("cursor")
        is_first = True
        with self._hub.feed(found.resource.stream) as feed, Waiting(receive, _LIFE) as waiting:
            while True:
                seen = feed.count
                try:
                    page = await self._hub.page(feed, request.path, start)
                except EventStoreError:
                    break  # deleted, or not to be had now: whoever comes again is told
                start, is_last, is_end = page.end, page.is_last, page.is_end
                body = _event_bytes(page, echoed) if page.messages or is_end or is_first else b""
                del page  # whoever waits, or takes it slowly, must not hold it
                if body:
                    message = {"type": "http.response.body", "body": body, "more_body": True}
                    del body
                    await send(message)
                    del message
                    is_first = False
                if is_end or self._hub.is_draining:
                    break
                if is_last and not await waiting.news(feed, seen):
                    break
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Place:
    """Where a request reads from: its offset."""

    def __init__(self, request: Request) -> None:
        """Raises Problem (400)."""
        self._text = request.query.get("offset", "-1")
        self.is_now = self._text == "now"
        self._parsed = None if self.is_now or self._text == "-1" else parsed(self._text)

    def version(self, found: Found) -> int:
        """The version that it means in a stream. Raises Problem: 400, 410."""
        if self._parsed is None:
            return found.version if self.is_now else 0
        incarnation, version = self._parsed
        if version and incarnation != found.resource.incarnation:
            raise Problem(410, f"{self._text} is of a stream that was deleted: read from -1")
        if version > found.version:
            end = found.offset(found.version)
            raise Problem(400, f"{self._text} is beyond the stream's end, {end}")
        return version


def _page_headers(page: Page) -> dict[str, str]:
    headers = {
        "Content-Type": page.found.resource.content_type,
        "Stream-Next-Offset": page.found.offset(page.end),
    }
    if page.is_last:
        headers["Stream-Up-To-Date"] = "true"
    if page.is_end:
        headers["Stream-Closed"] = "true"
    return headers


def _etag(page: Page) -> str:
    resource = page.found.resource
    end = ":c" if page.is_end else ""
    return f'"{resource.created_at:x}-{resource.incarnation}:{page.start}:{page.end}{end}"'


def _is_known(if_none_match: str | None, etag: str) -> bool:
    if if_none_match is None:
        return False
    known = (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
    return if_none_match.strip() == "*" or etag in known


def _event_bytes(page: Page, echoed: str | None) -> bytes:
    """What a reader of events is sent for a page."""
    return page.events(None if page.is_end else cursor(echoed))
