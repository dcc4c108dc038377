"""Reading a stream: bytes from the row to the response, decoded by nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from eventstore.http.events import control_event, data_event
from eventstore.http.messages import Form, enveloped, form_of, media_type
from eventstore.http.offsets import offset
from eventstore.http.transaction import gone, not_found, of_application
from eventstore.log.base import Bounds, Log, Row
from eventstore.log.resources import ERASED, KEPT, Resource, Resources
from eventstore.projections.changes import is_told

#: Bytes of messages in a response, about: one message more may be in it.
MOST: Final = 4 * 1024 * 1024
#: So few are read without asking how large they are, and so many at a time are asked about.
_FEW: Final = 4
_MANY: Final = 10_000


class Found(NamedTuple):
    """A stream that there is, and its version."""

    resource: Resource
    version: int
    of_application: bool

    @property
    def media(self) -> str:
        return media_type(self.resource.content_type)

    def offset(self, version: int) -> str:
        return offset(self.resource.incarnation, version)


@dataclass(slots=True, eq=False)
class Page:
    """Messages past the version `start`, up to `end`."""

    found: Found
    start: int
    end: int
    messages: Sequence[bytes]
    _data: bytes | None = None
    _events: tuple[str | None, bytes] | None = None

    def events(self, cursor: str | None) -> bytes:
        """As server-sent events: made once for all readers that have the same cursor."""
        if self._events is None or self._events[0] != cursor:
            if self._data is None:
                self._data = data_event(self.messages, self.found.media) if self.messages else b""
            control = control_event(
                self.found.offset(self.end),
                cursor=cursor,
                up_to_date=self.is_last,
                closed=self.is_end,
            )
            self._events = cursor, self._data + control
        return self._events[1]

    @property
    def is_last(self) -> bool:
        """Whether there was nothing after it."""
        return self.end >= self.found.version

    @property
    def is_end(self) -> bool:
        """Whether nothing will ever come after it."""
        return self.is_last and self.found.resource.closed


class Reader:
    """Reads the streams of one log. Its methods wait for the database."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._resources = Resources(log)
        self._forms: dict[int, Form] = {}

    def find(self, path: str, now: int) -> Found:
        """The stream of a path. Raises Problem: 404, 410."""
        found = self._resources.find(path)
        if found is None:
            head = self._log.stream(path)
            if head is None and is_told(self._log, path):
                return Found(of_application(path), 0, True)  # nothing has changed yet
            if head is None or not head.version or head.deleted:
                raise not_found(path)
            return Found(of_application(path), head.version, True)
        resource, version = found
        if resource.gone == KEPT:
            raise gone(path)
        if resource.gone == ERASED or resource.is_over(now):
            raise not_found(path)
        return Found(resource, version, False)

    def page(self, found: Found, start: int) -> Page:
        """The messages past a version, as many as a response may hold."""
        if start >= found.version:
            return Page(found, start, start, ())
        # Not beyond what was found: a page is the last one if it gets so far.
        end = self._end(found, start)
        messages: list[bytes] = []
        read = start
        _, pages = self._log.fold(found.resource.stream, start, Bounds(version=end))
        for page in pages:
            messages += self._messages(found, read, page)
            read += len(page)
        return Page(found, start, read, messages)

    def _end(self, found: Found, start: int) -> int:
        """Up to which version a page goes, so that memory is bounded."""
        if found.version - start <= _FEW:
            return found.version
        end, size = start, 0
        for bytes_ in self._log.sizes(found.resource.stream, start, found.version, _MANY):
            size += bytes_
            end += 1
            if size >= MOST:
                break
        return max(end, start + 1)

    def _messages(
        self, found: Found, after: int, page: Sequence[tuple[int, bytes]]
    ) -> Sequence[bytes]:
        """What a response holds for each event of a page: a message, or several with commas."""
        forms = {key: self._form(key) for key, _ in page}
        kinds = set(forms.values())
        if kinds == {Form.MESSAGE}:
            return [data for _, data in page]
        if Form.EVENT not in kinds:
            return [data[1:-1] if forms[key] is Form.BATCH else data for key, data in page]
        until = Bounds(version=after + len(page))
        rows = self._log.read(found.resource.stream, after, until, limit=len(page))
        return [self._message(row, forms.get(row.type)) for row in rows]

    def _message(self, row: Row, form: Form | None) -> bytes:
        if form is Form.BATCH:
            return row.data[1:-1]
        if form is Form.MESSAGE:
            return row.data
        return enveloped(row, self._log.event_type(row.type))

    def _form(self, key: int) -> Form:
        known = self._forms.get(key)
        if known is None:
            known = self._forms[key] = form_of(self._log.event_type(key))
        return known
