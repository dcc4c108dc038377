"""What clients did to a log and what they were told: recorded while it happens, read back later.

A line a step, each written at once, so that a client that is killed has said what it had begun.
Times are of the monotonic clock of the machine, in nanoseconds, which all its processes share.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from eventstore import Event, RecordedEvent

#: Later than everything: the end of what has none.
NEVER: Final = 2**62
#: Bytes after which a recorder takes another file.
MOST: Final = 100_000
#: What became of an append, as its caller was told. Only the first is written for certain, only of
#: the last nothing is known.
Outcome = Literal["acknowledged", "refused", "not written", "unknown"]


class Put(Event, name="history-put"):
    """The event that clients append. `op` and `n` tell it from every other one."""

    op: str
    n: int
    amount: int = 0
    pad: str = ""


class Part(NamedTuple):
    """Events for one stream of an append. `expected` is a version, or a word: "any"."""

    stream: str
    events: int
    expected: int | str = "any"


class Entry(NamedTuple):
    """An event as a reader saw it."""

    position: int
    stream: str
    version: int
    op: str
    n: int


class Append(msgspec.Struct, tag=True):
    """One attempt. Attempts of one `op` bear one idempotency key, and there is an event once."""

    op: str
    parts: list[Part]
    start: int
    end: int = NEVER
    outcome: Outcome = "unknown"
    #: Version and last position of each stream, of one that is acknowledged.
    receipts: list[tuple[int, int]] = []
    #: The stream that was not as expected, and its version, of one that is refused.
    found: tuple[str, int] | None = None


class Read(msgspec.Struct, tag=True):
    """A read of a stream to its end, past a version; or of its version only (`entries` None)."""

    stream: str
    after: int
    version: int
    start: int
    end: int
    entries: list[Entry] | None = None


class Scan(msgspec.Struct, tag=True):
    """A read of the whole log, past a position up to its end; or as far as a follower got."""

    after: int
    entries: list[Entry]
    start: int
    end: int
    to_the_end: bool = True
    #: Where a follower resumes.
    checkpoint: str = ""


class _Begun(msgspec.Struct, tag=True):
    number: int
    append: Append


class _Ended(msgspec.Struct, tag=True):
    number: int
    end: int
    outcome: Outcome
    receipts: list[tuple[int, int]] = []
    found: tuple[str, int] | None = None


class History(NamedTuple):
    """All that the clients did, in no order."""

    appends: list[Append]
    reads: list[Read]
    scans: list[Scan]

    @property
    def total(self) -> int:
        return len(self.appends) + len(self.reads) + len(self.scans)


_decoder: Final = msgspec.json.Decoder(_Begun | _Ended | Read | Scan)


def entry(record: RecordedEvent) -> Entry:
    event = record.event
    op, n = (event.op, event.n) if isinstance(event, Put) else (f"{record.type} {record.id}", 0)
    return Entry(record.position, record.stream, record.version, op, n)


class Recorder:
    """Writes down what one process does, in several files, as small ones fit on a full disk.

    Safe for threads.
    """

    def __init__(self, path: Path) -> None:
        self._files = _files(path)
        self._guard = threading.Lock()
        self._open_next()
        self._numbers = itertools.count()

    def begin(self, op: str, parts: Sequence[Part]) -> int:
        number = next(self._numbers)
        self._write(_Begun(number, Append(op, list(parts), time.monotonic_ns())))
        return number

    def end(
        self,
        number: int,
        outcome: Outcome,
        receipts: Iterable[tuple[int, int]] = (),
        found: tuple[str, int] | None = None,
    ) -> None:
        self._write(_Ended(number, time.monotonic_ns(), outcome, list(receipts), found))

    def seen(self, what: Read | Scan) -> None:
        self._write(what)

    def close(self) -> None:
        os.close(self._file)

    def _write(self, line: msgspec.Struct) -> None:
        written = msgspec.json.encode(line) + b"\n"
        with self._guard:
            if self._size > MOST:
                os.close(self._file)
                self._open_next()
            self._size += os.write(self._file, written)

    def _open_next(self) -> None:
        self._file = os.open(next(self._files), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._size = 0


def _files(path: Path) -> Iterator[Path]:
    return (Path(f"{path}.{number}") for number in itertools.count())


def recorded(paths: Iterable[Path]) -> History:
    """What the recorders of some processes have written."""
    history = History([], [], [])
    for path in paths:
        begun: dict[int, Append] = {}
        files = itertools.takewhile(Path.exists, _files(path))
        for line in b"".join(file.read_bytes() for file in files).splitlines():
            match _decoder.decode(line):
                case _Begun(number, append):
                    begun[number] = append
                    history.appends.append(append)
                case _Ended() as ended:
                    append = begun[ended.number]
                    append.end, append.outcome = ended.end, ended.outcome
                    append.receipts, append.found = ended.receipts, ended.found
                case Read() as read:
                    history.reads.append(read)
                case Scan() as scan:
                    _add(history.scans, scan)
    return history


def _add(scans: list[Scan], scan: Scan) -> None:
    """A follower writes down each event by itself: together they are one scan."""
    last = scans[-1] if scans else None
    if (
        last is None
        or last.to_the_end
        or scan.to_the_end
        or last.entries[-1].position != scan.after
    ):
        scans.append(scan)
    else:
        last.entries += scan.entries
        last.end, last.checkpoint = scan.end, scan.checkpoint
