"""verify: all of a log looked at, page by page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from eventstore.log.transactions import reading
from eventstore.projections.table_projection import TableProjection
from eventstore.verification.caches import Caches
from eventstore.verification.chain import Anchor, ChainCheck
from eventstore.verification.comparing import compare
from eventstore.verification.findings import Finding, Report, Walked
from eventstore.verification.followers import check_followers, check_keys, check_parked
from eventstore.verification.streams import Streams

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from eventstore.store import EventStore


def verify(
    store: EventStore,
    *,
    projections: Iterable[type[TableProjection]] = (),
    anchors: Iterable[Anchor] = (),
    repair: bool = False,
    progress: Report | None = None,
) -> Iterator[Finding]:
    """What is wrong in a store's database, as it is found; nothing where all is as it should be.

    Writers and followers may go on meanwhile. Memory does not grow with the log. Kinds of findings:

    - "database": SQLite's own check of the file
    - "hole", "lost": events that ought to be there are not
    - "order", "time": positions or times that go back within a stream
    - "deleted": events in a stream beside its tombstone
    - "head": the head row of a stream disagrees with its events
    - "orphan": events of no stream; "type": events of no type
    - "payload", "metadata", "id": what an event holds is not what it should hold
    - "key": an idempotency key with receipts that make no sense
    - "snapshot", "fold": a kept state that is not what a replay comes to
    - "checkpoint", "follower", "parked": a follower's rows make no sense
    - "altered", "removed", "unsealed": since the log was sealed (see `seal`); "seal": the chain
      itself is broken; "anchor": the chain is not the one that one of `anchors` was taken from
    - "projection": one of `projections` differs from a rebuild at its checkpoint

    and of notes, which are no errors: "unknown" and "newer" (events whose classes, or code, this
    program has not got: only their JSON was checked), "uncompared".

    With `repair`, what can be recomputed is: snapshots and folds that are wrong are deleted, heads
    are computed anew where the events are complete. Events are never touched. Raises LogError.
    """
    log = store.log
    report: Report = progress or _untold
    yield from _database(log.engine)
    yield from Streams(log, report, repair=repair).findings()
    yield from ChainCheck(log, anchors, report).findings()
    yield from check_keys(log)
    yield from Caches(log, report, repair=repair).findings()
    yield from check_followers(log)
    yield from check_parked(log)
    for cls in projections:
        yield from compare(store, cls, report)


def _untold(_walked: Walked) -> None:
    """Nobody wants to know."""


def _database(engine: Engine) -> Iterator[Finding]:
    if engine.dialect.name != "sqlite":
        return
    with reading(engine) as connection:
        for (told,) in connection.exec_driver_sql("PRAGMA integrity_check"):
            if told != "ok":
                yield Finding("database", str(told))
