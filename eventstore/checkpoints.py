"""Checkpoints: places in one certain log, and whether a log is still that one.

A position alone says nothing about the log that it was given by: when an older log has been
restored and has grown again, other events stand at the same positions. So a checkpoint also holds
the id of the event at its position. Nobody has to announce a restore.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from eventstore.errors import CheckpointAheadError, InvalidArgumentError
from eventstore.log.base import DELETED, Bounds, Log, Wanted
from eventstore.numbers import LARGEST, check_whole

_WRITTEN: Final = re.compile(r"(0|[1-9][0-9]{0,18})(?::([0-9a-f]{32}))?", re.ASCII)
_DELETIONS: Final = Wanted(types=(DELETED,))


class Mark(NamedTuple):
    """A position, and the id of the event there, or of the last one before it (None: unknown)."""

    position: int
    id: bytes | None = None

    def __str__(self) -> str:
        return str(self.position) if self.id is None else f"{self.position}:{self.id.hex()}"


def mark(after: int | str) -> Mark:
    """The place that a position, or a checkpoint as text, stands for.

    Raises InvalidArgumentError.
    """
    if isinstance(after, str):
        written = _WRITTEN.fullmatch(after)
        if written is not None and int(written[1]) <= LARGEST:
            return Mark(int(written[1]), bytes.fromhex(written[2]) if written[2] else None)
        raise InvalidArgumentError("after", after, "this text is not a checkpoint")
    if check_whole("after", after) < 0:
        raise InvalidArgumentError("after", after, "positions are whole numbers from 0")
    return Mark(after)


def check_mark(log: Log, place: Mark) -> None:
    """Raise CheckpointAheadError for a place that this log, as it is now, has not given to anybody.

    An event that was erased with its stream is no sign of another log. Raises LogError.
    """
    position, id = place
    if not position:
        return
    # The last row, and not the frontier: another process may have known more than this one.
    last = log.read_all(0, Bounds(), limit=1, backwards=True)
    head = last[0].position if last else 0
    if position > head:
        raise CheckpointAheadError(position, head)
    if id is None:
        return
    found = log.read_all(0, Bounds(position=position), limit=1, backwards=True)
    if found and found[0].id == id:
        return
    erased = not found or found[0].position < position
    if erased and log.read_all(position, Bounds(), limit=1, wanted=_DELETIONS):
        return
    raise CheckpointAheadError(position, head, is_replaced=True)
