"""From append to handler: how long until a live subscriber has an event, in milliseconds.

    python benchmarks/subscription.py   # QUICK=1 for a first look

One writer begins an append every 5 ms; the time is from there until the subscriber has the decoded
event, so the commit is in it. The subscriber is a thread beside the writer, or a process of its
own. Moments are of the machine's monotonic clock, which is one for all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import contenders
import harness
import raw
import raw_subscription
from harness import TimedRun, Waiting, Waits
from live import WARM_UP, Contender, latencies
from workload import Account

from eventstore import EventStore, RecordedEvent

APPENDS: Final = 25 if harness.QUICK else 400
EVERY: Final = 0.005
ROUNDS: Final = 1 if harness.QUICK else min(7, harness.ROUNDS)

#: Emmett looks for new events now and then, and with its defaults waits longer each time that
#: fewer came than it asked for, up to a second. Without a pause it looks all the time.
PULLING: Final = {
    "Emmett": {"batchSize": 10, "pullingFrequencyInMs": 0},
    "Emmett, defaults": {},
}


def main() -> None:
    print(harness.machine(ROUNDS))
    results = []
    with harness.folder() as folder, ExitStack() as stack:
        results += sqlite(folder, stack)
    with harness.postgres() as new_database, ExitStack() as stack:
        results += postgres(new_database, stack)
    pace = f"{APPENDS} appends, one each {EVERY * 1000:.0f} ms"
    harness.report_waits(f"From append to handler: {pace}; p50 / p99 in ms", results)


def sqlite(folder: Path, opened: ExitStack) -> list[Waits]:
    """In one file each, WAL mode, synchronous=FULL for all."""
    hand, store = contenders.sqlite(folder, "full", opened)
    path = str(folder / "raw-full.db")
    follow = partial(raw_subscription.sqlite, path)
    runs = {
        "raw": Contender(writing(hand.save, raw.Account("live")), hand.head, follow, follow),
        "ours": ours(store, f"sqlite:///{folder / 'ours-full.db'}"),
    }
    target = str(folder / "emmett.db")
    return waits("SQLite FULL", runs, [contenders.emmett("sqlite", target, opened) for _ in "rw"])


def postgres(new_database: Callable[[], str], opened: ExitStack) -> list[Waits]:
    """In one database each, on one server."""
    urls = []

    def noted() -> str:
        urls.append(new_database())
        return urls[-1]

    hand, store = contenders.postgres(noted, opened)
    save = writing(hand.save, raw.Account("live"))

    def append() -> None:
        save()
        hand.notify(raw_subscription.CHANNEL)

    follow = partial(raw_subscription.postgres, urls[0])
    runs = {"raw": Contender(append, hand.head, follow, follow), "ours": ours(store, urls[1])}
    peer = contenders.postgres_peer(new_database, opened)
    if peer is not None:
        head = peer.bank.recorder.max_notification_id
        runs[peer.name] = Contender(
            writing(peer.save, peer.new()), head, peer.follow, partial(follow_peer, peer.env)
        )
    target = new_database()
    return waits("PostgreSQL", runs, [contenders.emmett("postgres", target, opened) for _ in "rw"])


def waits(database: str, python: dict[str, Contender], emmetts: list[Any]) -> list[Waits]:
    """With the subscriber in a thread, and in a process."""
    results = []
    for apart, where in ((False, "thread"), (True, "process")):
        runs: dict[str, TimedRun] = {
            name: partial(latencies, contender, APPENDS, EVERY, apart)
            for name, contender in python.items()
        }
        reader, writer = emmetts
        if reader is not None:
            for name, pulling in PULLING.items():
                runs[name] = partial(on_node, reader, writer if apart else reader, pulling)
        goal = 1.3 if database == "PostgreSQL" else None
        ahead = {name: 1.0 for name in runs if name in ("eventsourcing", *PULLING)}
        results.append(
            harness.wait(Waiting(f"{database}, to a {where}", runs, goal, ahead), ROUNDS)
        )
    return results


def writing(save: Callable[[Any], object], account: Any) -> Callable[[], object]:
    """An append of one event, again and again."""
    account.open()
    save(account)

    def append() -> None:
        account.deposit(1)
        save(account)

    return append


def ours(store: EventStore, url: str) -> Contender:
    append = writing(store.save, Account("live"))
    return Contender(append, store.head, partial(subscribed, store), partial(subscribed_to, url))


def subscribed(store: EventStore, after: int) -> Iterator[RecordedEvent]:
    with store.subscribe(after=after) as subscription:
        yield from subscription


def subscribed_to(url: str, after: int) -> Iterator[RecordedEvent]:
    with EventStore(url) as store:
        yield from subscribed(store, after)


def follow_peer(env: dict[str, str], after: int) -> Iterator[Any]:
    from peers import eventsourcing_

    peer = eventsourcing_.Peer(env)
    try:
        yield from peer.follow(after)
    finally:
        peer.close()


def on_node(reader: Any, writer: Any, pulling: dict[str, int]) -> list[float]:
    """The same with both on Node: in one process, which has one thread, or in two."""
    reader.follow(pulling)
    writer.append(WARM_UP)
    reader.arrived(WARM_UP)
    begun = writer.append(APPENDS, EVERY * 1000)
    arrived = reader.arrived(WARM_UP + APPENDS)
    reader.stop()
    return [end - start for start, end in zip(begun, arrived[WARM_UP:], strict=True)]


if __name__ == "__main__":
    main()
