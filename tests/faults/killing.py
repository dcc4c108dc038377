"""Fuses: where in its work a process kills itself, as SIGKILL from outside cannot be aimed."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine.default import DefaultDialect

from eventstore import EventStore, TableProjection
from eventstore.followers.follower import HandlerFollower
from eventstore.followers.rebuild import Rebuild
from eventstore.log.folds import Folds
from eventstore.log.followers import Followers
from eventstore.projections.buffer import WriteBuffer
from eventstore.projections.places import PostgresShadow, SqliteShadow

_DDL = re.compile(r"\s*(LOCK|DROP|ALTER|CREATE|INSERT)\b")

#: Where work of each kind can be cut off, and at how many passings at the most.
POINTS = {
    "follow": (
        ("claimed", 2),
        ("in a handler", 9),
        ("flushed", 3),
        ("checkpoint moved", 4),
        ("before a commit", 6),
        ("after a commit", 6),
        ("event handled", 2),
        ("keyed append done", 2),
    ),
    "rebuild": (
        ("shadows made", 1),
        ("in a handler", 20),
        ("flushed", 3),
        ("before a commit", 4),
        ("after a commit", 4),
        ("statement of the swap", 6),
        ("statement of the swap", 6),
        ("checkpoint of the swap", 1),
        ("before the commit of the swap", 1),
        ("after the commit of the swap", 1),
    ),
    "fold": (("state kept", 1), ("before a commit", 1), ("after a commit", 1)),
}
POINTS["run"] = POINTS["follow"]
#: Of appends, where a projection runs in step with them.
IN_STEP = (("in a handler", 20), ("flushed", 10), ("before a commit", 10), ("after a commit", 10))


class Fuse:
    """Kills this process when it has been passed so often."""

    def __init__(self, count: int) -> None:
        self._left = count

    def burn(self) -> None:
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)

    def after(self, owner: type, method: str) -> None:
        original: Callable[..., Any] = getattr(owner, method)

        def fused(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self.burn()
            return result

        setattr(owner, method, fused)


def lay(point: str, count: int) -> None:
    """Lay a fuse in this process, which is not to do anything else afterwards."""
    fuse = Fuse(count)
    match point:
        case "claimed":
            fuse.after(Followers, "claim")
        case "in a handler":
            fuse.after(TableProjection, "add")
        case "flushed":
            fuse.after(WriteBuffer, "flush")
        case "checkpoint moved":
            fuse.after(Followers, "advance")
        case "before a commit" | "after a commit":
            _around_commits(fuse, before=point.startswith("before"), only_swap=False)
        case "event handled":
            fuse.after(HandlerFollower, "_call")
        case "keyed append done":
            fuse.after(EventStore, "append")
            fuse.after(EventStore, "transact_once")
        case "shadows made":
            fuse.after(PostgresShadow, "make")
            fuse.after(SqliteShadow, "make")
        case "statement of the swap":
            _in_swap(fuse)
        case "checkpoint of the swap":
            fuse.after(Rebuild, "_adopt")
        case "before the commit of the swap" | "after the commit of the swap":
            _around_commits(fuse, before=point.startswith("before"), only_swap=True)
        case "state kept":
            fuse.after(Folds, "keep")
        case _:
            raise ValueError(point)


def _in_swap(fuse: Fuse) -> None:
    swapping = _swapping()

    @event.listens_for(Engine, "after_cursor_execute")
    def executed(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if swapping and _DDL.match(statement):
            fuse.burn()


def _around_commits(fuse: Fuse, *, before: bool, only_swap: bool) -> None:
    original = DefaultDialect.do_commit
    swapping = _swapping() if only_swap else [True]

    def commit(self: DefaultDialect, connection: Any) -> None:
        if before and swapping:
            fuse.burn()
        original(self, connection)
        if not before and swapping:
            fuse.burn()

    DefaultDialect.do_commit = commit  # type: ignore[method-assign]


def _swapping() -> list[bool]:
    """Is not empty from the moment at which tables begin to be swapped."""
    begun: list[bool] = []
    for kind in (PostgresShadow, SqliteShadow):
        original = kind.swap

        def swap(*args: Any, original: Any = original, **kwargs: Any) -> None:
            begun.append(True)
            original(*args, **kwargs)

        kind.swap = swap  # type: ignore[method-assign]
    return begun
