"""Another library's psycopg connection, as SQLAlchemy may use it: its transaction is not ours."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.rows import tuple_row
from sqlalchemy import Engine

from eventstore.errors import InvalidArgumentError


class Guest:
    """What SQLAlchemy takes for the driver's connection; `raw` is the real one.

    It refuses to end the transaction until `leave`, and does nothing of the kind from then on.
    """

    def __init__(self, engine: Engine, raw: Any) -> None:
        """`engine` is the one whose statements are to run. Raises InvalidArgumentError."""
        if not isinstance(raw, psycopg.Connection):
            raise InvalidArgumentError("raw", raw, "give an open connection of psycopg 3")
        if raw.autocommit:
            raise InvalidArgumentError(
                "raw", raw, "it is in autocommit, so it has no transaction to join: begin one first"
            )
        self.raw: psycopg.Connection[Any] = raw
        if getattr(engine.dialect, "server_version_info", None) is None:
            with engine.connect():
                pass  # the first connection asks the server what it is
        self._adapters: AdaptersMap = (
            getattr(engine.dialect, "_psycopg_adapters_map", None) or psycopg.adapters
        )
        self._left = False

    def cursor(self, name: str = "") -> Any:
        # Not one of the connection's own making: Django's does not parse JSON, for instance.
        return self.raw.cursor(name) if name else _Cursor(self.raw, self._adapters)

    def leave(self) -> None:
        """From now on the transaction is left alone without a word."""
        self._left = True

    def commit(self) -> None:
        self._end()

    def rollback(self) -> None:
        self._end()

    def close(self) -> None:
        """It stays open."""

    def _end(self) -> None:
        if not self._left:
            raise InvalidArgumentError("raw", self.raw, "its transaction is not ours to end")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


class _Cursor(psycopg.Cursor[Any]):
    """A cursor that converts values as on the store's own connections."""

    def __init__(self, raw: psycopg.Connection[Any], adapters: AdaptersMap) -> None:
        self._own = AdaptersMap(adapters)
        super().__init__(raw, row_factory=tuple_row)

    @property
    def adapters(self) -> AdaptersMap:
        return self._own
