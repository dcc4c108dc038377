"""Is what clients of the HTTP server were told true of the streams as they are in the end?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from http_wire import Batch, Report

from eventstore import RecordedEvent


class Found(NamedTuple):
    """A stream as it is: the version of each message, with its id; and whether it is closed."""

    messages: Sequence[tuple[int, str]]
    closed: bool


def check(report: Report, found: dict[str, Found]) -> Iterator[str]:
    """What is wrong, in words."""
    batches: dict[str, list[Batch]] = defaultdict(list)
    for batch in report.batches:
        batches[batch.stream].append(batch)
    inherited = {}
    for fork in report.forks:
        source = found[fork.source].messages
        inherited[fork.stream] = [place for place in source if place[0] <= fork.version]
    for stream, there in found.items():
        yield from _stream(stream, there, batches[stream], inherited.get(stream, []))
    for seen in report.followed:
        messages = found[seen.stream].messages
        due = [id for version, id in messages if seen.first < version <= seen.last]
        if seen.messages != due:
            yield (
                f"a reader of {seen.stream} from {seen.first} to {seen.last} missed "
                f"{sorted(set(due) - set(seen.messages))[:3]}, was given "
                f"{sorted(set(seen.messages) - set(due))[:3]} that are not there, and "
                f"{len(seen.messages) - len(set(seen.messages))} twice"
            )
        if seen.ended and not found[seen.stream].closed:
            yield f"a reader was told that {seen.stream} is closed, and it is not"


def _stream(
    stream: str, there: Found, batches: list[Batch], past: Sequence[tuple[int, str]]
) -> Iterator[str]:
    if list(there.messages[: len(past)]) != list(past):
        yield f"{stream} does not begin as its source did"
    own = there.messages[len(past) :]
    # In the order of the stream: each batch that is there, whole.
    order: list[Batch] = []
    at = 0
    known = {batch.op: batch for batch in batches}
    while at < len(own):
        op = own[at][1].partition("/")[0]
        batch = known.get(op)
        if batch is None:
            yield f"nobody has appended {own[at]} to {stream}"
            return
        places = own[at : at + batch.messages]
        if [id for _, id in places] != [f"{op}/{n}" for n in range(batch.messages)]:
            yield f"{batch} is there in part, or mixed with others: {places}"
            return
        if batch.version is not None and batch.version != places[-1][0]:
            yield f"{batch} is at {places}"
        order.append(batch)
        at += batch.messages
    yield from _once(batches, order)
    yield from _in_order(order)
    yield from _end(stream, there, batches, order)


def _once(batches: Iterable[Batch], order: Sequence[Batch]) -> Iterator[str]:
    times: dict[str, int] = defaultdict(int)
    for batch in order:
        times[batch.op] += 1
    for batch in batches:
        count = times[batch.op]
        allowed = {"acknowledged": (1,), "refused": (0,), "unknown": (0, 1)}[batch.outcome]
        if count not in allowed:
            yield f"{batch} is there {count} times"


def _in_order(order: Iterable[Batch]) -> Iterator[str]:
    last: dict[str, tuple[int, int]] = {}
    for batch in order:
        if batch.producer is not None:
            id, *number = batch.producer
            epoch, seq = number
            before = last.get(id, (epoch, -1))
            if (epoch, seq) not in {(before[0], before[1] + 1), (before[0] + 1, 0)}:
                yield f"{batch} comes after {before}"
            last[id] = (epoch, seq)


def _end(
    stream: str, there: Found, batches: Iterable[Batch], order: Sequence[Batch]
) -> Iterator[str]:
    closing = [batch for batch in order if batch.closes]
    if there.closed:
        if len(closing) != 1 or order[-1] is not closing[0]:
            yield f"{stream} is closed, and its last is {order[-1:]}, of {closing}"
    elif closing or any(b.closes and b.outcome == "acknowledged" for b in batches):
        yield f"{stream} was closed, and is open"


def payload(records: Iterable[RecordedEvent]) -> Iterator[tuple[int, bytes]]:
    """What `store.read` gives, as HTTP has it: versions, with messages and commas or text."""
    for record in records:
        data = record.data
        yield record.version, data[1:-1] if record.type == "$batch" else data
