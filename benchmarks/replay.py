"""Replaying a log of a million typed events through a handler that does nothing.

    python benchmarks/replay.py         # QUICK=1 for a first look

By hand and ours read one log, in which the accounts' events are mixed; the peer has fewer of the
same in its own. Memory is what a process of its own holds at its peak above what it held before,
in a replay and in a rebuild of the read model of projection.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any, Final

import contenders
import harness
import raw_replay
from harness import Result, Run, Workload, emit, spread
from projection import LENGTH, fill
from read_models import Balances
from workload import AccountOpened, MoneyDeposited, MoneyWithdrawn

from eventstore import EventStore, Projection, on

ACCOUNTS: Final = 1_000 if harness.QUICK else 10_000
FEW: Final = harness.sized(200)
#: Notifications a page of the peer.
PAGE: Final = 5_000
ROUNDS: Final = 1 if harness.QUICK else 7


class Nothing(Projection):
    """A handler for each event, which does nothing."""

    @on(AccountOpened)
    def _opened(self, event: AccountOpened) -> None:
        pass

    @on(MoneyDeposited)
    def _deposited(self, event: MoneyDeposited) -> None:
        pass

    @on(MoneyWithdrawn)
    def _withdrawn(self, event: MoneyWithdrawn) -> None:
        pass


def main() -> None:
    print(harness.machine(ROUNDS))
    results = []
    with harness.folder() as folder, ExitStack() as stack:
        url = f"sqlite:///{folder / 'log.db'}"
        store = stack.enter_context(EventStore(url))
        hand: Any = stack.enter_context(closing(raw_replay.Sqlite(str(folder / "log.db"))))
        peer = contenders.sqlite_peer(folder, "full", stack)
        results.append(replays("SQLite", url, store, hand.replay, peer, ahead=3.0))
    with harness.postgres() as new_database, ExitStack() as stack:
        url = new_database()
        store = stack.enter_context(EventStore(url, migrate=True))
        hand = stack.enter_context(closing(raw_replay.Postgres(url)))
        peer = contenders.postgres_peer(new_database, stack)
        results.append(replays("PostgreSQL", url, store, hand.replay, peer, ahead=2.0))
    harness.report("The log replayed (events a second)", results)


def replays(
    database: str,
    url: str,
    store: EventStore,
    by_hand: Callable[[], int],
    peer: Any,
    *,
    ahead: float,
) -> Result:
    fill(store, ACCOUNTS)
    size = ACCOUNTS * LENGTH
    runs: dict[str, Run] = {"raw": by_hand, "ours": lambda: store.project(Nothing).position}
    sizes = {}
    if peer is not None:
        peer.fill_in_turns(FEW, LENGTH)
        runs[peer.name] = lambda: notified(peer)
        sizes[peer.name] = FEW * LENGTH
        if runs[peer.name]() != sizes[peer.name]:
            raise AssertionError(f"{peer.name} has not replayed all of its events")
    if by_hand() != store.project(Nothing).position:
        raise AssertionError("the log was not replayed to its end")
    name = f"{database}, {size:,} events replayed"
    for what, prepare in (("replayed", replaying), ("rebuilt from", rebuilding)):
        peaks = [harness.peak(prepare, url) for _ in range(min(3, ROUNDS))]
        emit(spread(f"{database}, memory, {size:,} {what}", peaks, "MiB", goal=100, at_most=True))
        print(f"{database}, {size:,} events {what}: {max(peaks):.0f} MiB at the most")
    return harness.measure(
        Workload(
            name,
            size,
            runs,
            0.85,
            ahead={} if peer is None else {peer.name: ahead},
            sizes=sizes,
            rounds=ROUNDS,
        )
    )


def notified(peer: Any) -> int:
    """How many events there are in the peer's notification log, each decoded."""
    recorder, decode, last, count = peer.bank.recorder, peer.bank.mapper.to_domain_event, 0, 0
    while page := recorder.select_notifications(start=last, limit=PAGE, inclusive_of_start=False):
        for notification in page:
            decode(notification)
        last, count = page[-1].id, count + len(page)
    return count


def replaying(url: str) -> Run:
    store = EventStore(url)
    return lambda: store.project(Nothing)


def rebuilding(url: str) -> Run:
    store = EventStore(url)
    return lambda: store.rebuild(Balances)


if __name__ == "__main__":
    main()
