"""Streams made over HTTP as the database knows them. `eventstore.http` decides about them.

A resource is locked from the moment it is found in a transaction that writes until that one ends,
so that whoever decides by what was found decides alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from eventstore.log.base import Log
from eventstore.log.tables import ERASED, KEPT, PRESENT, producers, resources, streams
from eventstore.log.transactions import reading

__all__ = ["ERASED", "KEPT", "PRESENT", "Producer", "Resource", "Resources"]

_c = resources.c
_p = producers.c
_INSERT: Final[dict[str, Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


class Resource(NamedTuple):
    """A stream made over HTTP. Times are microseconds since the epoch."""

    path: str
    stream: str
    incarnation: int
    content_type: str
    ttl: int | None
    expires_at: int | None
    due_at: int | None
    closed: bool
    closed_by: str | None
    seq: bytes | None
    forked_from: str | None
    fork_version: int | None
    fork_sub: int | None
    gone: int
    created_at: int


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
        insert = _INSERT[log.engine.dialect.name]
        self._add = insert(resources).on_conflict_do_nothing().returning(_c.path)
        self._set = (
            update(resources)
            .where(_c.path == bindparam("_path"))
            .values({name: bindparam(f"_{name}") for name in Resource._fields[1:]})
        )
        upsert = insert(producers)
        self._put_producer = upsert.on_conflict_do_update(
            index_elements=["path", "producer"],
            set_={name: upsert.excluded[name] for name in ("epoch", "seq")},
        )
        found = select(resources, func.coalesce(streams.c.version, 0)).outerjoin(
            streams, streams.c.name == _c.stream
        )
        self._one = found.where(_c.path == bindparam("path"))
        self._some = (
            found.where(_c.path.in_(bindparam("paths", expanding=True)))
            .order_by(_c.path)
            .with_for_update(of=resources)
        )

    # --- in a transaction ----------------------------------------------------------------------

    def lock(self, connection: Connection, paths: Iterable[str]) -> dict[str, tuple[Resource, int]]:
        """Those that there are, by path, each with the version of its log stream."""
        rows = connection.execute(self._some, {"paths": list(paths)})
        return {row[0]: (Resource(*row[:-1]), row[-1]) for row in rows}

    def add(self, connection: Connection, new: Sequence[Resource]) -> bool:
        """Write resources whose paths were not found; False if another was quicker with one."""
        rows = [resource._asdict() for resource in new]
        return len(connection.execute(self._add, rows).all()) == len(new)

    def put(self, connection: Connection, changed: Sequence[Resource]) -> None:
        """Write resources that were found."""
        rows = [{f"_{k}": v for k, v in resource._asdict().items()} for resource in changed]
        connection.execute(self._set, rows)

    def producers(
        self, connection: Connection, keys: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], Producer]:
        """What is known of producers, by path and name."""
        found: dict[tuple[str, str], Producer] = {}
        by_path: dict[str, list[str]] = {}
        for path, name in keys:
            by_path.setdefault(path, []).append(name)
        for path, names in by_path.items():
            query = select(producers).where(_p.path == path, _p.producer.in_(names))
            found.update({(row[0], row[1]): Producer(*row) for row in connection.execute(query)})
        return found

    def put_producers(self, connection: Connection, changed: Sequence[Producer]) -> None:
        """Write what is known of producers."""
        connection.execute(self._put_producer, [producer._asdict() for producer in changed])

    def forget_producers(self, connection: Connection, path: str) -> None:
        """A stream is gone, and what comes under its name knows no producer."""
        connection.execute(delete(producers).where(_p.path == path))

    def has_forks(self, connection: Connection, path: str) -> bool:
        """Whether there is a fork of it that is not erased."""
        query = select(_c.path).where(_c.forked_from == path, _c.gone != ERASED).limit(1)
        return connection.execute(query).first() is not None

    # --- alone ---------------------------------------------------------------------------------

    def find(self, path: str) -> tuple[Resource, int] | None:
        """The resource of a path, and the version of its log stream."""
        with reading(self._log.engine) as connection:
            row = connection.execute(self._one, {"path": path}).first()
        return None if row is None else (Resource(*row[:-1]), row[-1])

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

    def paths(self, after: str, limit: int) -> list[tuple[Resource, int]]:
        """Those that are present, by path, past one."""
        query = (
            select(resources, func.coalesce(streams.c.version, 0))
            .outerjoin(streams, streams.c.name == _c.stream)
            .where(_c.path > after, _c.gone == PRESENT)
            .order_by(_c.path)
            .limit(limit)
        )
        with reading(self._log.engine) as connection:
            return [(Resource(*row[:-1]), row[-1]) for row in connection.execute(query)]
