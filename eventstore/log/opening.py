"""From a URL or an engine to a log. Drivers are imported here, when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

from sqlalchemy import URL, Engine

from eventstore import moments
from eventstore.errors import InvalidArgumentError, LogError
from eventstore.log.base import Log
from eventstore.log.seats import KEPT
from eventstore.urls import parse

if TYPE_CHECKING:
    from eventstore.log.postgres import PostgresLog

Durability: TypeAlias = Literal["full", "relaxed"]


def open_log(
    target: str | URL | Engine | Log,
    *,
    durability: Durability = "full",
    lock_timeout: float = 5.0,
    clock: Callable[[], int] | None = None,
    notify: bool = True,
) -> tuple[Log, Callable[[], None]]:
    """The log behind a URL or an engine, and what closes the connections it has opened.

    An engine, and a log, stay the caller's. Raises InvalidArgumentError, LogError.
    """
    if durability not in ("full", "relaxed"):
        raise InvalidArgumentError("durability", durability, 'use "full" or "relaxed"')
    close: Callable[[], None] = _nothing
    keep = 0
    if isinstance(target, (str, URL)):
        engine, close = open_engine(target, durability=durability, lock_timeout=lock_timeout)
        keep = KEPT
    elif isinstance(target, Engine):
        engine = target
    else:
        return target, close
    if engine.dialect.name == "sqlite":
        from eventstore.log.sqlite import SqliteLog

        clock = clock or moments.now
        return SqliteLog(engine, clock=clock, lock_timeout=lock_timeout, keep=keep), close
    if engine.dialect.name == "postgresql" and engine.dialect.driver == "psycopg":
        return _postgres()(engine, clock=clock, keep=keep, notify=notify), close
    raise InvalidArgumentError(
        "target",
        f"{engine.dialect.name}+{engine.dialect.driver}",
        "use an engine for sqlite or for postgresql+psycopg",
    )


def open_engine(
    target: str | URL, *, durability: Durability = "full", lock_timeout: float = 5.0
) -> tuple[Engine, Callable[[], None]]:
    """An engine for a URL, and what closes it. Raises InvalidArgumentError, LogError."""
    url = parse(target)
    if url.get_backend_name() == "sqlite":
        from eventstore.log.sqlite import open_sqlite

        return open_sqlite(url, durability=durability, lock_timeout=lock_timeout)
    _postgres()
    from eventstore.log.postgres import open_postgres

    return open_postgres(url, durability=durability)


def _postgres() -> type[PostgresLog]:
    try:
        from eventstore.log.postgres import PostgresLog
    except ImportError as error:
        raise LogError(
            f"PostgreSQL needs the psycopg driver ({error}): pip install 'eventstore[postgres]'"
        ) from error
    return PostgresLog


def _nothing() -> None:
    """There is nothing of ours to close."""
