"""Snapshots: state at a version, as bytes. A cache that may be thrown away at any time."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, Final, TypeAlias, TypeVar
from uuid import UUID

import msgspec

from eventstore.aggregate import Aggregate, at_version, blank
from eventstore.fingerprint import fingerprint
from eventstore.state import Stateful, state_fields, state_type

S = TypeVar("S", bound=Aggregate)

logger = logging.getLogger(__name__)


class StateCodec:
    """The state of one class, to bytes (MessagePack) and back."""

    def __init__(self, cls: type[Stateful]) -> None:
        """Raises DefinitionError for state that has no schema."""
        self._type = state_type(cls)
        self._fields = state_fields(cls)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(self._type).decode
        self._warned = False
        self.fingerprint = fingerprint(cls)

    def encode(self, owner: Stateful) -> bytes | None:
        """The state as bytes, or None if these would not give the same state back.

        A replay is the truth: what its snapshot would change is not kept, and a warning says so.
        """
        values = [getattr(owner, field) for field in self._fields]
        encoded: bytes | None = None
        try:
            # By way of builtins, since MessagePack's own timestamps forget the UTC offset.
            plain = msgspec.to_builtins(self._type(*values), builtin_types=(bytes, bytearray))
            encoded = self._encode(plain)
            restored = self._decode(encoded)
            changed = [
                field
                for field, value in zip(self._fields, values, strict=True)
                if not _same(getattr(restored, field), value)
            ]
            problem = f"{', '.join(changed)} would come back changed" if changed else ""
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
            problem = str(error)
        if not problem:
            return encoded
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s cannot be kept as a snapshot: %s; correct the annotations of its state",
                type(owner).__qualname__,
                problem,
                extra={"eventstore.class": type(owner).__qualname__},
            )
        return None

    def restore(self, owner: Stateful, encoded: bytes) -> bool:
        """Set the owner's state; False, with nothing changed, if the bytes are no state."""
        try:
            state = self._decode(encoded)
        except msgspec.MsgspecError as error:
            logger.warning(
                "a snapshot of %r is ignored: %s",
                owner,
                error,
                extra={
                    "eventstore.class": type(owner).__qualname__,
                    "eventstore.error": type(error).__name__,
                },
            )
            return False
        for field in self._fields:
            setattr(owner, field, getattr(state, field))
        return True


def _same(restored: Any, value: Any) -> bool:
    # A defaultdict equals the dict that it would come back as, and behaves otherwise.
    return restored == value and (
        type(restored) is type(value) or isinstance(value, (int, datetime))
    )


@cache
def state_codec(cls: type[Stateful]) -> StateCodec:
    """The codec of a class's state. Made once."""
    return StateCodec(cls)


def crosses(every: int, before: int, after: int) -> bool:
    """Whether the policy wants a snapshot when a stream goes from one version to another."""
    return before // every != after // every


_fields = cache(state_fields)

#: The types of values that many may share. Of these alone, a state needs no bytes: a quarter of
#: the time.
_UNCHANGING: Final = frozenset(
    {int, str, bool, float, bytes, type(None), Decimal, UUID, datetime, date, timedelta}
)
State: TypeAlias = tuple[Any, ...] | bytes


class AggregateCache:
    """The latest known state of the aggregates used last, at most `size` of them.

    It holds values that nothing can change, or else bytes: no two callers share anything that one
    of them could change for the other. Safe for threads.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[type[Aggregate], str], tuple[int, State]] = OrderedDict()

    def get(self, cls: type[S], id: str) -> S | None:
        """An aggregate as it was when it was put here; events may have followed."""
        key = (cls, id)
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            self._kept.move_to_end(key)
        version, state = kept
        if isinstance(state, tuple):
            return at_version(cls, id, version, _fields(cls), state)
        aggregate = blank(cls, id)
        if not state_codec(cls).restore(aggregate, state):
            return None
        aggregate.version = version
        return aggregate

    def put(self, aggregate: Aggregate) -> None:
        """Keep an aggregate's state, unless a later one is kept already."""
        cls = type(aggregate)
        values = tuple([getattr(aggregate, field) for field in _fields(cls)])
        shareable = _UNCHANGING.issuperset(map(type, values))
        state = values if shareable else state_codec(cls).encode(aggregate)
        if state is None:
            return
        key = (cls, aggregate.id)
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or kept[0] <= aggregate.version:
                self._kept[key] = (aggregate.version, state)
                self._kept.move_to_end(key)
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)

    def drop(self, cls: type[Aggregate], id: str) -> None:
        """Forget an aggregate."""
        with self._lock:
            self._kept.pop((cls, id), None)
