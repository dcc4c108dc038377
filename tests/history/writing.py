"""A client that appends and reads at random, and writes down what it was told."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from operations import Entry, Outcome, Part, Put, Read, Recorder, Scan, entry
from sqlalchemy.exc import DBAPIError

from eventstore import ANY, NO_STREAM, STREAM_EXISTS, EventStore, Receipt, Write
from eventstore.errors import (
    LogError,
    LogLockedError,
    LogReadOnlyError,
    LogUnavailableError,
    WrongExpectedVersionError,
)

EXPECTED: Final[dict[int | str, Any]] = {
    "any": ANY,
    "no stream": NO_STREAM,
    "a stream": STREAM_EXISTS,
}
#: Seconds after an error, before the next thing is done.
PAUSE: Final = 0.01
#: How often an append with a key is tried, until its outcome is known.
TRIES: Final = 40


class Writer:
    """One thread that appends, reads, and writes down what it was told."""

    def __init__(
        self,
        store: EventStore,
        streams: Sequence[str],
        recorder: Recorder,
        name: str,
        seed: str,
        after: int = 0,
    ) -> None:
        """`name` is in what it appends, so it must be its own. It reads the log past `after`."""
        self._store = store
        self._streams = streams
        self._recorder = recorder
        self._name = name
        self._chance = random.Random(f"{seed} {name}")
        self._versions = dict.fromkeys(streams, 0)
        self._seen = after
        self._count = 0

    def work(self, goes_on: Callable[[], bool]) -> None:
        """One thing after another. What the database does not do is written down, and no error."""
        kinds = (
            [self._any] * 4
            + [self._expecting] * 4
            + [self._keyed] * 3
            + [self._several] * 2
            + [self._joined] * 2
            + [self._read] * 3
            + [self._look] * 2
            + [self._scan] * 2
        )
        while goes_on():
            try:
                self._chance.choice(kinds)()
            except _Failed:
                time.sleep(PAUSE)

    # --- appending -------------------------------------------------------------------------------

    def _any(self) -> None:
        self._append([self._part("any")])

    def _expecting(self) -> None:
        stream = self._chance.choice(self._streams)
        known = self._versions[stream]
        expected = self._chance.choice((known, known, known, "no stream", "a stream", known + 1))
        self._append([self._part(expected, stream)])

    def _several(self) -> None:
        streams = self._chance.sample(self._streams, 2)
        self._append([self._part("any", stream) for stream in streams])

    def _keyed(self) -> None:
        """The same append again, until it is known what became of it; sometimes even then."""
        stream = self._chance.choice(self._streams)
        parts = [self._part(self._chance.choice(("any", self._versions[stream])), stream)]
        op = self._op()
        events = self._events(op, parts)
        for _ in range(TRIES):
            with contextlib.suppress(_Failed):
                outcome = self._attempt(
                    op, parts, lambda: self._written(parts, events, idempotency_key=op)
                )
                if outcome == "refused" or self._chance.random() < 0.8:
                    return
            time.sleep(PAUSE)

    def _joined(self) -> None:
        """In a transaction of the caller's, who commits or rolls back."""
        parts = [self._part("any")]
        op = self._op()
        events = self._events(op, parts)
        number = self._recorder.begin(op, parts)
        outcome: Outcome = "not written"
        receipts: list[Receipt] = []
        try:
            with self._store.connect() as connection:
                receipts = self._written(parts, events, connection=connection)
                if self._chance.random() < 0.7:
                    outcome = "unknown"
                    connection.commit()
                    outcome = "acknowledged"
                else:
                    connection.rollback()
        except (LogError, DBAPIError) as error:
            if outcome == "acknowledged":  # giving the connection back has failed
                self._end(number, outcome, receipts)
            else:
                self._recorder.end(number, outcome)
            raise _Failed from error
        if outcome == "acknowledged":
            self._end(number, outcome, receipts)
        else:
            self._recorder.end(number, outcome)

    def _append(self, parts: list[Part]) -> None:
        op = self._op()
        events = self._events(op, parts)
        self._attempt(op, parts, lambda: self._written(parts, events))

    def _attempt(self, op: str, parts: list[Part], append: Callable[[], list[Receipt]]) -> Outcome:
        number = self._recorder.begin(op, parts)
        try:
            receipts = append()
        except WrongExpectedVersionError as error:
            self._versions[error.stream] = error.actual
            self._recorder.end(number, "refused", found=(error.stream, error.actual))
            return "refused"
        except (LogLockedError, LogReadOnlyError) as error:
            self._recorder.end(number, "not written")
            raise _Failed from error
        except LogUnavailableError as error:
            self._recorder.end(number, error.outcome)
            raise _Failed from error
        except LogError as error:
            self._recorder.end(number, "unknown")
            raise _Failed from error
        self._end(number, "acknowledged", receipts)
        return "acknowledged"

    def _end(self, number: int, outcome: Outcome, receipts: list[Receipt]) -> None:
        self._recorder.end(number, outcome, [(r.version, r.position) for r in receipts])
        for receipt in receipts:
            self._versions[receipt.stream] = receipt.version
            self._seen = max(self._seen, receipt.position - 50)

    def _written(self, parts: list[Part], events: list[list[Put]], **options: Any) -> list[Receipt]:
        writes = [
            Write(part.stream, new, EXPECTED.get(part.expected, part.expected))
            for part, new in zip(parts, events, strict=True)
        ]
        return list(self._store.append_all(writes, **options))

    def _op(self) -> str:
        self._count += 1
        return f"{self._name} {self._count}"

    def _part(self, expected: int | str, stream: str | None = None) -> Part:
        count = self._chance.choice((1, 1, 1, 2, 5))
        return Part(stream or self._chance.choice(self._streams), count, expected)

    def _events(self, op: str, parts: list[Part]) -> list[list[Put]]:
        pad = "x" * self._chance.choice((0, 0, 50, 1500))
        events = [
            Put(op=op, n=n, amount=self._chance.randint(-9, 99), pad=pad)
            for n in range(sum(part.events for part in parts))
        ]
        made = []
        for part in parts:
            made.append(events[: part.events])
            events = events[part.events :]
        return made

    # --- reading ---------------------------------------------------------------------------------

    def _read(self) -> None:
        stream = self._chance.choice(self._streams)
        after = self._chance.choice((0, max(0, self._versions[stream] - 2)))
        start = time.monotonic_ns()
        entries = self._answered(lambda: list(map(entry, self._store.read(stream, after=after))))
        end = time.monotonic_ns()
        version = entries[-1].version if entries else after
        self._versions[stream] = max(self._versions[stream], version)
        self._recorder.seen(Read(stream, after, version, start, end, entries))

    def _look(self) -> None:
        stream = self._chance.choice(self._streams)
        start = time.monotonic_ns()
        version = self._answered(lambda: self._store.version(stream))
        self._recorder.seen(Read(stream, 0, version, start, time.monotonic_ns()))
        self._versions[stream] = version

    def _scan(self) -> None:
        after = self._seen
        start = time.monotonic_ns()
        entries: list[Entry] = self._answered(
            lambda: list(map(entry, self._store.read_all(after=after)))
        )
        self._recorder.seen(Scan(after, entries, start, time.monotonic_ns()))
        if entries:
            self._seen = max(self._seen, entries[-1].position - 50)

    def _answered(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except LogError as error:
            raise _Failed from error


class _Failed(Exception):
    """The database did not do it. That is no wonder here."""
