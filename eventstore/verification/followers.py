"""Followers, what they have parked, and idempotency keys: whether they name what is there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import msgspec
from sqlalchemy import and_, exists, inspect, select

from eventstore.checkpoints import Mark, check_mark
from eventstore.errors import CheckpointAheadError
from eventstore.log.base import Log, Receipt
from eventstore.log.followers import Checkpoint
from eventstore.log.tables import REBUILD, appends, events, followers, parked, streams, types
from eventstore.log.transactions import reading
from eventstore.verification.findings import Finding
from eventstore.verification.reading import pages

_c, _p, _e, _s = followers.c, parked.c, events.c, streams.c
_receipts = msgspec.json.Decoder(tuple[Receipt, ...])


def check_followers(log: Log) -> Iterator[Finding]:
    """Checkpoints, shards and tables of every follower."""
    query = select(followers).order_by(_c.name, _c.shard)
    with reading(log.engine) as connection:
        found = connection.execute(query).all()
    rows = [Checkpoint(*row) for row in found]
    for row in rows:
        try:
            check_mark(log, Mark(row.position, row.event))
        except CheckpointAheadError as error:
            text = f"the checkpoint of {row.name!r}, shard {row.shard}: {error}"
            yield Finding("checkpoint", text, follower=row.name, position=row.position)
    for name, shards in groupby(rows, lambda row: row.name):
        yield from _shards(log, name, [row for row in shards if row.shard != REBUILD])


def _shards(log: Log, name: str, rows: Sequence[Checkpoint]) -> Iterator[Finding]:
    if not rows:
        yield Finding("follower", f"{name!r} has a rebuild and no shards", follower=name)
        return
    if [row.shard for row in rows] != list(range(rows[0].shards)):
        text = f"{name!r} has the shards {[row.shard for row in rows]} out of {rows[0].shards}"
        yield Finding("follower", text, follower=name)
    if len({(r.shards, r.version, r.fingerprint, r.tables, r.in_step) for r in rows}) > 1:
        yield Finding("follower", f"the shards of {name!r} are not alike", follower=name)
    if any(row.position < 0 or row.handled < 0 for row in rows):
        yield Finding("follower", f"{name!r} has a number below 0", follower=name)
    try:
        tables = [str(table) for table in json.loads(rows[0].tables)]
    except (ValueError, TypeError):
        yield Finding("follower", f"{name!r} has no list of its tables", follower=name)
        return
    with reading(log.engine) as connection:
        inspector = inspect(connection)
        lost = [table for table in tables if not inspector.has_table(table)]
    if lost:
        text = f"{name!r} has no table {', '.join(lost)} any more: rebuild it"
        yield Finding("follower", text, follower=name)


def check_parked(log: Log) -> Iterator[Finding]:
    """Whether what is parked is an event that its follower has passed."""
    key = (_p.follower, _p.shard, _p.position)
    before = parked.alias()
    first = ~exists().where(
        before.c.follower == _p.follower,
        before.c.shard == _p.shard,
        before.c.stream == _p.stream,
        before.c.position < _p.position,
    )
    query = (
        select(
            *key,
            _p.stream,
            _p.version,
            _c.position.label("checkpoint"),
            and_(_s.name == _p.stream, _e.version == _p.version).label("fits"),
            types.c.name.label("type"),
            _p.type.label("parked_type"),
            and_(_p.error.is_(None), ~_p.retry, first).label("behind_nobody"),
            exists().where(_gone(_p.stream, _p.version)).label("erased"),
        )
        .outerjoin(followers, and_(_c.name == _p.follower, _c.shard == _p.shard))
        .outerjoin(events, _e.position == _p.position)
        .outerjoin(streams, _s.id == _e.stream_id)
        .outerjoin(types, types.c.id == _e.type_id)
    )
    for page in pages(log.engine, query, *key):
        for row in page:
            problem = _parked_problem(row)
            if problem is not None:
                text = f"what {row.follower!r} has parked at position {row.position} {problem}"
                yield Finding(
                    "parked",
                    text,
                    follower=row.follower,
                    stream=row.stream,
                    version=row.version,
                    position=row.position,
                )


def _gone(stream: Any, version: Any) -> Any:
    """The condition that an event was erased with its stream."""
    head = streams.alias().c
    return and_(head.name == stream, head.deleted, head.version > version)


def _parked_problem(row: Any) -> str | None:
    if row.checkpoint is None:
        return f"belongs to no follower (shard {row.shard})"
    if row.position > row.checkpoint and row.shard != REBUILD:
        return f"lies beyond its checkpoint ({row.checkpoint})"
    if row.fits is None:
        return None if row.erased else "is no event"
    if not row.fits or row.type != row.parked_type:
        return "is another event there"
    return "has no error, and stands behind none that has" if row.behind_nobody else None


def check_keys(log: Log) -> Iterator[Finding]:
    """Whether idempotency keys have receipts of what is there."""
    query = select(appends.c.key, appends.c.receipts)
    for page in pages(log.engine, query, appends.c.key):
        receipts: list[tuple[str, Receipt]] = []
        for key, encoded in page:
            try:
                receipts += [(key, receipt) for receipt in _receipts.decode(encoded)]
            except msgspec.MsgspecError as error:
                yield Finding("key", f"the receipts of idempotency key {key!r}: {error}")
        names = {receipt.stream for _, receipt in receipts}
        with reading(log.engine) as connection:
            heads = select(_s.name, _s.version).where(_s.name.in_(names))
            versions = {name: version for name, version in connection.execute(heads)}  # noqa: C416
        for key, receipt in receipts:
            if receipt.version > versions.get(receipt.stream, 0):
                text = (
                    f"idempotency key {key!r} has a receipt for version {receipt.version} of "
                    f"{receipt.stream!r}, which is not there"
                )
                yield Finding("key", text, stream=receipt.stream, version=receipt.version)
