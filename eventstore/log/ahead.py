"""Reading ahead in SQLite: a thread gets rows off the file while others are handled.

Python's driver gives up the interpreter's lock for each row, and getting it back from a busy thread
takes milliseconds. So the thread asks SQLite for a block of rows as one row: each column of numbers
as a JSON list, each column of bytes as one long value. Taking it apart costs a third of what
fetching the rows does, and SQLite puts it together without the lock.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import accumulate, islice, pairwise, repeat
from queue import Empty, Queue
from typing import Any, Final

import msgspec

#: Rows a block, at the most: enough that the wait for the interpreter's lock, up to 5 ms, is small.
_ROWS: Final = 16_000
#: Bytes of payload that a block should not exceed.
_BYTES: Final = 4_000_000

_numbers: Final = msgspec.json.Decoder(list[int]).decode

#: A block as SQLite gives it.
Block = tuple[Any, ...]


def has_idle_core() -> bool:
    """Whether a thread that reads ahead gets a core of its own, about. In all it costs more."""
    try:
        cores, busy = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    except (AttributeError, OSError):  # not on Linux
        return (os.cpu_count() or 1) > 1
    return cores > 1 and busy < cores + 0.5  # of which we may be one and a half


def block_of(scan: str, whole: bool) -> str:
    """The statement that gives what a scan does as one row."""
    columns = [_joined("position"), _joined("type_id"), _joined("length(data)"), _bytes("data")]
    if whole:
        columns += map(_joined, ("stream_id", "version", "recorded_at"))
        columns += [_bytes("id"), _joined("coalesce(length(metadata), -1)"), _bytes("metadata")]
    return f"SELECT {', '.join(columns)} FROM ({scan})"


def _joined(number: str) -> str:
    return f"'[' || group_concat({number}) || ']'"


def _bytes(column: str) -> str:
    return f"CAST(group_concat({column}, '') AS BLOB)"


def rows_of(block: Block, whole: bool) -> Iterator[tuple[Any, ...]] | None:
    """The rows of a block; None where they cannot be told from it."""
    positions, types, lengths = map(_numbers, block[:3])
    data = _parts(block[3], lengths)
    if positions != sorted(positions) or data is None:
        return None
    if not whole:
        return zip(positions, types, data, strict=True)
    streams, versions, moments = map(_numbers, block[4:7])
    ids = _parts(block[7], [16] * len(positions))
    metadata: Any = repeat(None, len(positions))
    if block[9] is not None:
        metadata = _parts(block[9], _numbers(block[8]))
    if ids is None or metadata is None:
        return None
    return zip(positions, streams, versions, types, data, metadata, ids, moments, strict=True)


def _parts(joined: bytes, lengths: Sequence[int]) -> list[bytes | None] | None:
    """A long value in parts; a negative length is that of NULL. None if they do not fit."""
    if min(lengths) < 0:
        present = iter(_parts(joined, [length for length in lengths if length >= 0]) or ())
        found = [None if length < 0 else next(present, b"") for length in lengths]
        return found if sum(map(len, filter(None, found))) == len(joined) else None
    if sum(lengths) != len(joined):
        return None
    return [joined[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]


def read_ahead(
    read: Callable[[int, int], Block], after: int, size: int, whole: bool
) -> Generator[list[tuple[Any, ...]]]:
    """Pages of at most `size` rows past a position, each block read while the last is handled.

    `read` gives the block of so many rows past a position. It ends before the last row where a
    block cannot be taken apart (somebody has put text where bytes should be): go on without it.
    """
    blocks: Queue[Block | BaseException | None] = Queue(1)
    stopped = threading.Event()

    def run() -> None:
        try:
            for block in _blocks(read, after):
                blocks.put(block)
                if stopped.is_set():
                    return
            blocks.put(None)
        except BaseException as error:
            blocks.put(error)

    thread = threading.Thread(target=run, name="eventstore-ahead", daemon=True)
    thread.start()
    try:
        while (block := blocks.get()) is not None:
            if isinstance(block, BaseException):
                raise block
            rows = rows_of(block, whole)
            if rows is None:
                return
            while page := list(islice(rows, size)):
                yield page
    finally:
        stopped.set()
        while thread.is_alive():
            with contextlib.suppress(Empty):
                blocks.get_nowait()  # it may wait for room
            thread.join(0.01)


def _blocks(read: Callable[[int, int], Block], after: int) -> Iterator[Block]:
    rows, full = _ROWS // 4, True
    while full:
        block = read(after, rows)
        positions, data = block[0], block[3]
        if positions is None:  # none at all
            return
        yield block
        count = positions.count(",") + 1
        full = count == rows
        after = int(positions[positions.rfind(",") + 1 : -1].lstrip("["))
        rows = max(1, min(_ROWS, _BYTES * count // max(1, len(data))))
