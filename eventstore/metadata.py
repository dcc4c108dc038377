"""Metadata: what is known about an event beside its payload, carried by a context.

    with context(correlation_id="req-42", user="ann"):
        store.save(account)  # its new events carry both

The context is a `contextvars` variable: asyncio tasks inherit it, and `bind` takes it along to
a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import msgspec

from eventstore.errors import InvalidEventError

if TYPE_CHECKING:
    from eventstore.event import RecordedEvent

P = ParamSpec("P")
R = TypeVar("R")


class Metadata(Mapping[str, Any]):
    """The metadata of an event: a read-only mapping of names to JSON values.

    `correlation_id` names the whole conversation that an event belongs to, `causation_id` the
    id of its direct cause; any other name is the application's own.
    """

    __slots__ = ("_values", "encoded")

    #: The metadata as stored, UTF-8 JSON; None when empty.
    encoded: bytes | None

    def __init__(self, values: Mapping[str, Any]) -> None:
        """Raises InvalidEventError for a value that JSON cannot hold."""
        try:
            encoded = msgspec.json.encode(dict(values))
            self._values: dict[str, Any] = msgspec.json.decode(encoded, type=dict[str, Any])
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidEventError("metadata", str(error)) from error
        self.encoded = encoded if self._values else None

    @classmethod
    def stored(cls, encoded: bytes | None) -> Metadata:
        """The metadata that was stored as `encoded`."""
        metadata = cls.__new__(cls)
        metadata._values = msgspec.json.decode(encoded, type=dict[str, Any]) if encoded else {}
        metadata.encoded = encoded
        return metadata

    @property
    def correlation_id(self) -> str | None:
        """The conversation that the event belongs to."""
        return self._values.get("correlation_id")

    @property
    def causation_id(self) -> str | None:
        """The id of the event (or command) that caused this one."""
        return self._values.get("causation_id")

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Metadata({self._values!r})"


_NOTHING = Metadata({})
_current: ContextVar[Metadata] = ContextVar("eventstore metadata", default=_NOTHING)


def current() -> Metadata:
    """The metadata that events appended here and now will carry."""
    return _current.get()


@contextmanager
def context(**values: Any) -> Generator[Metadata]:
    """Add `values` to the metadata of every event that is appended inside the block.

    Blocks nest; an inner value wins. Raises InvalidEventError at once for what JSON cannot hold.
    """
    token = _current.set(Metadata({**_current.get(), **values}))
    try:
        yield _current.get()
    finally:
        _current.reset(token)


@contextmanager
def caused_by(record: RecordedEvent) -> Generator[Metadata]:
    """Events appended inside the block name `record` as their cause, and share its conversation.

    A record without a correlation id starts a conversation that is named by its own id.
    """
    cause = str(record.id)
    with context(
        causation_id=cause, correlation_id=record.metadata.correlation_id or cause
    ) as metadata:
        yield metadata


def bind(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, to be called with today's metadata wherever it runs: `pool.submit(bind(work))`.

    A thread of its own starts with an empty context; a task of asyncio does not need this.
    """
    metadata = _current.get()

    @wraps(function)
    def bound(*args: P.args, **kwargs: P.kwargs) -> R:
        token = _current.set(metadata)
        try:
            return function(*args, **kwargs)
        finally:
            _current.reset(token)

    return bound
