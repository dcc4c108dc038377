"""Is there one order of everything, in which each client was told the truth?

For events that bear their versions the question is an easy one: the order of a stream's appends is
that of their versions, and who saw a version stands between two of them. So a history is
linearizable if and only if nobody who began after another one had ended stands before him. The
same holds for the whole log, with positions.

An append whose caller was not told (its connection was cut, it was killed) may have happened, at
any time after it began, or not at all. A crash that may lose what it acknowledged divides a history
in two: what had been answered when all was dead, and what began afterwards or is still there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from operations import NEVER, Append, Entry, History, Read, Scan


class Crash(NamedTuple):
    """A moment at which nothing lived, and whether the last acknowledged appends may be lost."""

    dead: int
    may_lose: bool


class Verdict(NamedTuple):
    """What is wrong, in words; and the acknowledged appends that a crash was allowed to lose."""

    wrong: list[str]
    lost: list[str]


class Span(NamedTuple):
    """Somebody who was busy from `start` to `end`, and where he stands in an order.

    What comes after him is at `low` or later, what came before him at `high` or earlier.
    """

    start: int
    end: int
    low: int
    high: int
    what: str


class Effect(NamedTuple):
    """An append that has happened: its events in each stream (first, last), and in the log."""

    op: str
    start: int
    end: int
    versions: dict[str, tuple[int, int]]
    positions: tuple[int, int]


def check(
    history: History,
    log: Sequence[Entry],
    *,
    base: Sequence[Entry] = (),
    crash: Crash | None = None,
) -> Verdict:
    """Compare what clients were told with the log as it is now, read from its beginning.

    `base` is the log as it was before the history began.
    """
    checking = _Checking(history, log, base, crash)
    checking.run()
    return Verdict(checking.wrong, checking.lost)


def in_real_time(spans: Iterable[Span]) -> Iterator[str]:
    """Those who stand before somebody who had ended when they began."""
    by_start = sorted(spans, key=lambda span: span.start)
    by_end = sorted(by_start, key=lambda span: span.end)
    ended, latest = 0, None
    for span in by_start:
        while by_end[ended].end < span.start:
            if latest is None or by_end[ended].low > latest.low:
                latest = by_end[ended]
            ended += 1
        if latest is not None and latest.low > span.high:
            yield f"{span.what} began after the end of {latest.what}, and stands before it"


def in_one_sequence(log: Sequence[Entry]) -> Iterator[str]:
    """What is wrong with a log by itself."""
    seen: dict[tuple[str, int], Entry] = {}
    versions: dict[str, int] = defaultdict(int)
    last = 0
    for entry in log:
        if entry.position <= last:
            yield f"{entry} stands after position {last}"
        last = entry.position
        if entry.version != versions[entry.stream] + 1:
            yield f"{entry} follows version {versions[entry.stream]}"
        versions[entry.stream] = entry.version
        twin = seen.setdefault((entry.op, entry.n), entry)
        if twin is not entry:
            yield f"{entry} is there twice: {twin}"


def follows(log: Sequence[Entry], seen: Sequence[Entry], after: int = 0) -> Iterator[str]:
    """What is wrong with what a follower was given, as the log is this one."""
    last = seen[-1].position if seen else after
    begin, end = (bisect_right(log, at, key=_position) for at in (after, last))
    due = log[begin:end]
    if list(seen) != list(due):
        given, there = set(seen), set(due)
        yield (
            f"a follower from {after} to {last} missed {sorted(there - given)[:3]}, was given "
            f"{sorted(given - there)[:3]} that are not there, and {len(seen) - len(given)} twice"
        )


def _position(entry: Entry) -> int:
    return entry.position


class _Checking:
    def __init__(
        self, history: History, log: Sequence[Entry], base: Sequence[Entry], crash: Crash | None
    ) -> None:
        self.wrong: list[str] = []
        self.lost: list[str] = []
        self._history = history
        self._log = log
        self._base = base
        self._dead = NEVER if crash is None else crash.dead
        self._crash = crash
        self._attempts: dict[str, list[Append]] = defaultdict(list)
        for append in history.appends:
            self._attempts[append.op].append(append)
        self._entries: dict[str, list[Entry]] = defaultdict(list)
        for entry in log:
            self._entries[entry.op].append(entry)

    def run(self) -> None:
        self.wrong += in_one_sequence(self._log)
        self.wrong += self._base_is_there()
        there = [self._there(op, attempts) for op, attempts in self._attempts.items()]
        effects = [effect for effect in there if effect is not None]
        if self._crash is None:
            self._order(effects, self._history, self._log)
            return
        dead = self._dead
        answered = [
            effect
            for attempts in self._attempts.values()
            if (effect := _receipt(attempts)) is not None and effect.end <= dead
        ]
        self._order(answered, _stretch(self._history, 0, dead), None)
        self._order(effects, _stretch(self._history, dead, NEVER), self._log)
        self._lost_from_the_end(answered)
        for scan in self._history.scans:
            if scan.start < dead < scan.end and not scan.to_the_end:
                self.wrong += self._missed_after_crash(scan)

    def _missed_after_crash(self, scan: Scan) -> Iterator[str]:
        """A follower that is given what came after a crash has missed nothing of what is there."""
        if any(
            append.start > self._dead
            for entry in scan.entries
            for append in self._attempts.get(entry.op, ())[:1]
        ):
            last = scan.entries[-1].position
            due = {entry for entry in self._log if scan.after < entry.position <= last}
            missed = due.difference(scan.entries)
            if missed:
                yield f"a follower went on after a crash, and missed {sorted(missed)[:3]}"

    # --- appends ---------------------------------------------------------------------------------

    def _base_is_there(self) -> Iterator[str]:
        missing = set(self._base) - set(self._log)
        if missing:
            yield f"{len(missing)} older events are gone: {sorted(missing)[:3]}"
        known = self._attempts.keys() | {entry.op for entry in self._base}
        for op in self._entries.keys() - known:
            if not op.startswith("echo"):
                yield f"nobody has appended {self._entries[op][0]}"

    def _there(self, op: str, attempts: list[Append]) -> Effect | None:
        """What an append has done, if its events are in the log; is that what was promised?"""
        acknowledged = [append for append in attempts if append.outcome == "acknowledged"]
        if self._crash is not None and self._crash.may_lose:
            # What was lost may have been done again afterwards, under its key.
            later = [append for append in acknowledged if append.end > self._dead]
            acknowledged = later or acknowledged
        receipts = {tuple(append.receipts) for append in acknowledged}
        if len(receipts) > 1:
            self.wrong.append(f"{op} has several receipts: {receipts}")
        entries = self._entries.get(op)
        if entries is None:
            if acknowledged:
                self._missing(op, acknowledged)
            return None
        if all(append.outcome in ("refused", "not written") for append in attempts):
            self.wrong.append(f"{op} was told to be {attempts[-1].outcome}, and is there")
        parts = attempts[0].parts
        start = min(append.start for append in attempts)
        effect = _effect(op, start, acknowledged, entries)
        torn = [entry.n for entry in entries] != list(range(sum(part.events for part in parts)))
        for part in parts:
            first, last = effect.versions.get(part.stream, (0, 0))
            torn = torn or last - first + 1 != part.events
            if not _allows(part.expected, first - 1):
                self.wrong.append(f"{op} expected {part} and was written at {first - 1}")
        if torn:
            self.wrong.append(f"{op} is there in part: {entries}")
        for append in acknowledged:
            versions = [effect.versions.get(part.stream, (0, 0))[1] for part in parts]
            if [version for version, _ in append.receipts] != versions:
                self.wrong.append(f"{op} has receipts {append.receipts} and is at {versions}")
            elif max(position for _, position in append.receipts) != effect.positions[1]:
                self.wrong.append(f"{op} has receipts {append.receipts}, and is {entries}")
        for append in attempts:
            if append.outcome == "refused" and append.start > effect.end:
                self.wrong.append(f"{op} was acknowledged, and then refused to its retry")
        return effect

    def _missing(self, op: str, acknowledged: list[Append]) -> None:
        began = min(append.start for append in acknowledged)
        if self._crash is not None and self._crash.may_lose and began <= self._dead:
            self.lost.append(op)
        else:
            self.wrong.append(f"{op} was acknowledged, and is not there: {acknowledged[0]}")

    def _lost_from_the_end(self, answered: list[Effect]) -> None:
        """Nothing that was acknowledged before the begin of what is still there is lost."""
        lost = [effect for effect in answered if effect.op not in self._entries]
        if not lost:
            return
        first = min(lost, key=lambda effect: effect.end)
        for effect in answered:
            again = any(append.end > self._dead for append in self._attempts[effect.op])
            if effect.op in self._entries and effect.start > first.end and not again:
                self.wrong.append(f"{first.op} is lost, and {effect.op}, which came later, is not")

    # --- the order -------------------------------------------------------------------------------

    def _order(self, effects: list[Effect], seen: History, log: Sequence[Entry] | None) -> None:
        """One stretch without a crash. `log` is None for one that is over: then witnesses agree."""
        spans: dict[str, list[Span]] = defaultdict(list)
        whole: list[Span] = []
        for op, start, end, versions, (first, last) in effects:
            for stream, (low, high) in versions.items():
                spans[stream].append(Span(start, end, high, low - 1, op))
            whole.append(Span(start, end, last, first - 1, op))
        for append in seen.appends:
            if append.found is not None:
                stream, actual = append.found
                what = f"the refusal of {append.op} at {actual} of {stream}"
                expected = {part.stream: part.expected for part in append.parts}[stream]
                if _allows(expected, actual):
                    self.wrong.append(f"{what} has no reason, it expected {expected}")
                spans[stream].append(Span(append.start, append.end, actual, actual, what))
        for read in seen.reads:
            low = read.version if read.version > read.after else 0
            what = f"a read of {read.stream} at {read.version}"
            spans[read.stream].append(Span(read.start, read.end, low, read.version, what))
        for scan in seen.scans:
            last = scan.entries[-1].position if scan.entries else 0
            what = f"a reader of the log up to {last or scan.after}"
            high = (last or scan.after) if scan.to_the_end else NEVER
            whole.append(Span(scan.start, scan.end, last, high, what))
        for of_stream in spans.values():
            self.wrong += in_real_time(of_stream)
        self.wrong += in_real_time(whole)
        self.wrong += _agree(seen, log)


def _stretch(history: History, begin: int, end: int) -> History:
    """What both began and ended between two moments."""

    def within(what: Append | Read | Scan) -> bool:
        return begin <= what.start and what.end <= end

    return History(
        [append for append in history.appends if within(append)],
        [read for read in history.reads if within(read)],
        [scan for scan in history.scans if within(scan)],
    )


def _agree(history: History, log: Sequence[Entry] | None) -> Iterator[str]:
    """Did all see the same events at the same places, and none of the log with a hole?"""
    seen = [entry for scan in history.scans for entry in scan.entries]
    seen += [entry for read in history.reads for entry in read.entries or ()]
    known = {entry.position: entry for entry in (seen if log is None else log)}
    for entry in seen:
        if known.get(entry.position) != entry:
            yield f"{entry} was seen, and {known.get(entry.position)} is there"
    order = sorted(known.values()) if log is None else log
    streams: dict[str, list[Entry]] = defaultdict(list)
    for entry in order:
        streams[entry.stream].append(entry)
    for scan in history.scans:
        yield from follows(order, scan.entries, scan.after)
    for read in history.reads:
        if read.entries is not None:
            due = [e for e in streams[read.stream] if read.after < e.version <= read.version]
            if read.entries != due:
                yield f"a read of {read.stream} past {read.after} up to {read.version} has holes"


def _receipt(attempts: list[Append]) -> Effect | None:
    """An append as its receipts tell it."""
    told = min(
        (append for append in attempts if append.outcome == "acknowledged"),
        key=lambda append: append.end,
        default=None,
    )
    if told is None:
        return None
    versions = {
        part.stream: (version - part.events + 1, version)
        for part, (version, _) in zip(told.parts, told.receipts, strict=True)
    }
    # Where each stream's last one is: an event that is certain to be there.
    positions = [position for _, position in told.receipts]
    start = min(append.start for append in attempts)
    return Effect(told.op, start, told.end, versions, (min(positions), max(positions)))


def _effect(op: str, start: int, acknowledged: list[Append], entries: list[Entry]) -> Effect:
    """An append as the log has it."""
    versions: dict[str, tuple[int, int]] = {}
    for entry in entries:
        first, _ = versions.get(entry.stream, (entry.version, 0))
        versions[entry.stream] = (first, entry.version)
    end = min((append.end for append in acknowledged), default=NEVER)
    return Effect(op, start, end, versions, (entries[0].position, entries[-1].position))


def _allows(expected: int | str, version: int) -> bool:
    match expected:
        case "any":
            return True
        case "no stream":
            return version == 0
        case "a stream":
            return version > 0
        case _:
            return expected == version
