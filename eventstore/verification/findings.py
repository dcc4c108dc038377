"""What a verification finds, as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in the database that is not as it ought to be; or a note.

    `kind` is for programs: one of those that `verify` lists. `stream`, `version`, `position` and
    `follower` say where it is, as far as it is anywhere; `text` says all of it in words.
    """

    kind: str
    text: str
    #: A note tells what could not be looked at, or is worth knowing: it is no error.
    is_error: bool = True
    stream: str | None = None
    version: int | None = None
    position: int | None = None
    follower: str | None = None
    #: Whether it could be computed anew, and has been.
    is_repaired: bool = False

    def repaired(self) -> Finding:
        """The same, now that it is mended."""
        return replace(self, is_repaired=True)


@dataclass(frozen=True, slots=True)
class Walked:
    """How far a verification is with one of its parts: `done` out of `total`, in no certain unit.

    `events` counts what it has looked at so far.
    """

    part: str
    done: int
    total: int
    events: int


#: What is told of the progress.
Report: TypeAlias = Callable[[Walked], None]


class Tally:
    """Findings of which there may be one for each event: told once, with their number."""

    def __init__(self) -> None:
        self._counts: Counter[Hashable] = Counter()
        self._firsts: dict[Hashable, Finding] = {}

    def add(self, finding: Finding) -> None:
        """Count a finding: those of one kind and text are one."""
        key = (finding.kind, finding.text)
        self._counts[key] += 1
        self._firsts.setdefault(key, finding)

    def findings(self) -> Iterator[Finding]:
        """One of each, where it was first met."""
        for key, first in self._firsts.items():
            count = self._counts[key]
            first = replace(first, text=f"{first.text} ({count:,} in all)")
            yield first
