"""Streams made over HTTP as the database knows them. `eventstore.http` decides about them.

A resource is locked from the moment it is found in a transaction that writes until that one ends,
so that whoever decides by what was found decides alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Integer, bindparam, delete, func, literal_column, select, update

from eventstore.log.base import Log
from eventstore.log.queries import Statement
from eventstore.log.tables import ERASED, KEPT, PRESENT, producers, resources, streams
from eventstore.log.transactions import reading
from eventstore.log.work import Work

__all__ = ["ERASED", "KEPT", "PRESENT", "Producer", "Resource", "Resources"]

_c = resources.c
_p = producers.c
_NONE: Final = literal_column("0", Integer())


class Resource(NamedTuple):
    """A stream made over HTTP. Times are microseconds since the epoch."""

    path: str
    stream: str
    incarnation: int
    content_type: str
    ttl: int | None = None
    expires_at: int | None = None
    due_at: int | None = None
    closed: bool = False
    closed_by: str | None = None
    seq: bytes | None = None
    forked_from: str | None = None
    fork_version: int | None = None
    fork_sub: int | None = None
    gone: int = PRESENT
    created_at: int = 0

    def is_over(self, now: int) -> bool:
        """Whether its time is over, and nobody has erased it yet."""
        return self.gone == PRESENT and self.due_at is not None and self.due_at <= now


class Producer(NamedTuple):
    """What is known of an idempotent producer of a stream."""

    path: str
    producer: str
    epoch: int
    seq: int


class Resources:
    """The resources of one log."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._add = self._made(log.insert(resources).on_conflict_do_nothing())
        self._set = self._made(
            update(resources)
            .where(_c.path == bindparam("_path"))
            .values({name: bindparam(f"_{name}") for name in Resource._fields[1:]})
        )
        upsert = log.insert(producers)
        self._put_producer = self._made(
            upsert.on_conflict_do_update(
                index_elements=["path", "producer"],
                set_={name: upsert.excluded[name] for name in ("epoch", "seq")},
            )
        )
        found = select(resources, func.coalesce(streams.c.version, _NONE)).outerjoin(
            streams, streams.c.name == _c.stream
        )
        self._one = self._made(found.where(_c.path == bindparam("path")))
        self._lock_one = self._made(
            found.where(_c.path == bindparam("path")).with_for_update(of=resources)
        )
        self._lock_some = self._made(
            found.where(log.one_of(_c.path, "paths"))
            .order_by(_c.path)
            .with_for_update(of=resources)
        )
        self._hold = self._made(
            select(streams.c.name, streams.c.version)
            .where(log.one_of(streams.c.name, "names"))
            .order_by(streams.c.name)
            .with_for_update()
        )
        self._producers = self._made(
            select(producers).where(
                _p.path == bindparam("path"), log.one_of(_p.producer, "producers")
            )
        )
        self._forget = self._made(delete(producers).where(_p.path == bindparam("path")))
        self._forks = self._made(
            select(func.count()).where(
                _c.forked_from == bindparam("path"), _c.gone != bindparam("gone")
            )
        )

    def _made(self, statement: Any) -> Statement:
        return Statement(statement, self._log.engine.dialect)

    # --- in a transaction ----------------------------------------------------------------------

    def lock(self, work: Work, paths: Iterable[str]) -> dict[str, tuple[Resource, int]]:
        """Those that there are, by path, each with the version of its log stream."""
        paths = list(paths)
        if len(paths) == 1:
            rows = self._log.query(self._lock_one, {"path": paths[0]}, work)
        else:
            values = {"paths": self._log.list_value(paths)}
            rows = self._log.query(self._lock_some, values, work)
        return {row[0]: _found(row) for row in rows}

    def hold(self, work: Work, names: Iterable[str]) -> dict[str, int]:
        """The versions of log streams, to which nobody else appends before the work is done."""
        values = {"names": self._log.list_value(names)}
        return dict(self._log.query(self._hold, values, work))

    def add(self, work: Work, new: Sequence[Resource]) -> bool:
        """Write resources whose paths were not found; False if another was quicker with one."""
        rows = [resource._asdict() for resource in new]
        return self._log.change(self._add, rows, work) == len(new)

    def put(self, work: Work, changed: Sequence[Resource]) -> None:
        """Write resources that were found."""
        rows = [{f"_{k}": v for k, v in resource._asdict().items()} for resource in changed]
        self._log.change(self._set, rows, work)

    def producers(
        self, work: Work, keys: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], Producer]:
        """What is known of producers, by path and name."""
        found: dict[tuple[str, str], Producer] = {}
        by_path: dict[str, list[str]] = {}
        for path, name in keys:
            by_path.setdefault(path, []).append(name)
        for path, names in by_path.items():
            values = {"path": path, "producers": self._log.list_value(names)}
            for row in self._log.query(self._producers, values, work):
                found[row[0], row[1]] = Producer(*row)
        return found

    def put_producers(self, work: Work, changed: Sequence[Producer]) -> None:
        """Write what is known of producers."""
        self._log.change(self._put_producer, [producer._asdict() for producer in changed], work)

    def forget_producers(self, work: Work, path: str) -> None:
        """A stream is gone, and what comes under its name knows no producer."""
        self._log.change(self._forget, [{"path": path}], work)

    def has_forks(self, work: Work, path: str) -> bool:
        """Whether there is a fork of it that is not erased."""
        ((count,),) = self._log.query(self._forks, {"path": path, "gone": ERASED}, work)
        return bool(count)

    # --- alone ---------------------------------------------------------------------------------

    def find(self, path: str) -> tuple[Resource, int] | None:
        """The resource of a path, and the version of its log stream."""
        rows = self._log.query(self._one, {"path": path})
        return _found(rows[0]) if rows else None

    def due(self, now: int, limit: int) -> list[str]:
        """Paths whose time is over."""
        query = select(_c.path).where(_c.due_at <= now, _c.gone == PRESENT).limit(limit)
        with reading(self._log.engine) as connection:
            return list(connection.scalars(query))

    def ended(self, names: Sequence[str]) -> list[str]:
        """Of these log streams, those that are closed or gone."""
        query = select(_c.stream).where(_c.stream.in_(names), _c.closed | (_c.gone != PRESENT))
        with reading(self._log.engine) as connection:
            return list(connection.scalars(query))


def _found(row: Any) -> tuple[Resource, int]:
    """A row of resources, with the version that stands behind it."""
    *values, version = row
    resource = Resource(*values)
    if resource.closed.__class__ is not bool:  # SQLite has none
        resource = resource._replace(closed=bool(resource.closed))
    return resource, version
