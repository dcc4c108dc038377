"""PUT, POST and DELETE: a request becomes a command."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import quote

from eventstore.aggregate import Aggregate
from eventstore.http.access import Authorize, Operation, check, check_path
from eventstore.http.commands import Append, Create, Delete, Source
from eventstore.http.committing import Committer
from eventstore.http.limits import Bodies
from eventstore.http.messages import BYTES, JSON, events_of, media_type
from eventstore.http.offsets import parsed
from eventstore.http.problems import Problem
from eventstore.http.requests import Request, base_url, expiry, producing, stream_path
from eventstore.http.responses import Answer, Receive
from eventstore.http.transaction import not_writable
from eventstore.http.validating import validated
from eventstore.log.base import NewEvent
from eventstore.names import is_claimed

_LONGEST_TYPE: Final = 255


class Writing:
    """Answers the requests that change streams."""

    def __init__(
        self,
        committer: Committer,
        authorize: Authorize | None,
        writable: Iterable[type[Aggregate]],
        bodies: Bodies,
        root: str,
        base_url: str | None,
    ) -> None:
        self._committer = committer
        self._authorize = authorize
        self._writable = tuple(writable)
        self._bodies = bodies
        self._root = root
        self._base_url = base_url

    async def answer(self, request: Request, receive: Receive) -> Answer:
        """Do what is asked. Raises Problem, Disconnected, LogError."""
        try:
            if request.method == "POST":
                return await self._append(request, receive)
            if request.method == "PUT":
                return await self._create(request, receive)
            return await self._delete(request)
        finally:
            if request.held:
                self._bodies.release(request)

    # --- the three -----------------------------------------------------------------------------

    async def _append(self, request: Request, receive: Receive) -> Answer:
        await check(self._authorize, request, Operation.APPEND)
        body = await self._bodies.read(request, receive)
        cls = self._class(request.path)
        closes = request.closes
        media: str | None = None
        events: Sequence[NewEvent] = ()
        if not body:
            if not closes:
                raise Problem(400, "the body is empty: only a request that closes may be so")
        else:
            content_type = _content_type(request)
            if content_type is None:
                raise Problem(400, "Content-Type is missing")
            media = media_type(content_type)
            events = self._events(cls, body, media)
            if not events:
                raise Problem(400, "an empty array appends nothing")
        return await self._committer.commit(
            Append(
                request.path,
                media,
                events,
                closes,
                seq=request.headers.get(b"stream-seq"),
                producer=producing(request),
                expected=request.whole(b"stream-expected-version"),
                adopts=cls is not None,
            )
        )

    async def _create(self, request: Request, receive: Receive) -> Answer:
        await check(self._authorize, request, Operation.CREATE)
        source = self._source(request)
        if source is not None:
            await check_path(self._authorize, request, source.path, Operation.READ)
        ttl, expires_at = expiry(request)
        body = await self._bodies.read(request, receive)
        cls = self._class(request.path)
        content_type = _content_type(request)
        events: Sequence[NewEvent] = ()
        if cls is not None:
            if ttl is not None or expires_at is not None or source is not None:
                raise Problem(400, "a stream of events neither expires nor is made as a fork")
            content_type = content_type or JSON
        if source is None:
            media = media_type(content_type or BYTES)
            events = self._events(cls, body, media)
        answer = await self._committer.commit(
            Create(
                request.path,
                content_type if source is not None else content_type or BYTES,
                ttl,
                expires_at,
                request.closes,
                body,
                events,
                source,
                adopts=cls is not None,
            )
        )
        if answer.status == 201:
            answer.headers = {**answer.headers, "Location": self._url(request)}
        return answer

    async def _delete(self, request: Request) -> Answer:
        await check(self._authorize, request, Operation.DELETE)
        if is_claimed(request.path):
            raise not_writable(request.path)
        return await self._committer.commit(Delete(request.path))

    # --- their parts ---------------------------------------------------------------------------

    def _class(self, path: str) -> type[Aggregate] | None:
        """The aggregate class whose events are written to a path. Raises Problem (405)."""
        if not is_claimed(path):
            return None
        for cls in self._writable:
            if cls.__stream__.id(path) is not None:
                return cls
        raise not_writable(path)

    def _events(self, cls: type[Aggregate] | None, body: bytes, media: str) -> Sequence[NewEvent]:
        if cls is None:
            return events_of(body, media)
        if media != JSON:
            raise Problem(409, f"the stream has the content type {JSON}")
        return validated(cls, body)

    def _source(self, request: Request) -> Source | None:
        """What a fork is made of."""
        text = request.header(b"stream-forked-from")
        sub = request.whole(b"stream-fork-sub-offset")
        place = request.header(b"stream-fork-offset")
        if text is None:
            if sub is not None or place is not None:
                raise Problem(400, "Stream-Fork-Offset needs Stream-Forked-From")
            return None
        encoded = text.encode("latin-1").partition(b"?")[0]
        root = self._root.encode() + b"/"
        at = encoded.find(root)
        if at < 0:
            raise Problem(400, f"Stream-Forked-From must be the path of a stream: {root.decode()}…")
        path = stream_path(encoded[at + len(root) :])
        return Source(path, None if place is None else parsed(place), sub or 0)

    def _url(self, request: Request) -> str:
        """The URL of the request's stream, as its client knows it."""
        return f"{base_url(request.scope, self._base_url)}{self._root}/{quote(request.path)}"


def _content_type(request: Request) -> str | None:
    text = request.header(b"content-type")
    if text is None or not text.strip():
        return None
    if len(text) > _LONGEST_TYPE or not text.isprintable():
        raise Problem(400, f"Content-Type must be printable, of at most {_LONGEST_TYPE} characters")
    return text
