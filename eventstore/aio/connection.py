"""A connection of the sync engine, used from an event loop: each statement is a hop."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, CursorResult, Executable, ScalarResult

from eventstore.aio.hops import Hops

P = ParamSpec("P")
R = TypeVar("R")


class HoppingConnection:
    """What `AsyncEventStore.connect` and `as_of` give: a SQLAlchemy connection, awaited.

        async with store.as_of(Balances, at=then) as db:
            rows = (await db.execute(select(Balances.accounts))).all()

    One statement at a time. `run` takes any function of the connection to the other thread whole.
    """

    def __init__(self, hops: Hops, connection: Connection) -> None:
        self._hops = hops
        self._connection = connection

    async def run(
        self, function: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call a function with the connection, in one hop."""
        return await self._hops.run(function, self._connection, *args, **kwargs)

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Execute a statement; its rows are there when this returns."""
        return await self._hops.run(self._connection.execute, statement, parameters)

    async def scalars(self, statement: Executable, parameters: Any = None) -> ScalarResult[Any]:
        """Execute a statement; the first column of its rows."""
        return await self._hops.run(self._connection.scalars, statement, parameters)

    async def scalar(self, statement: Executable, parameters: Any = None) -> Any:
        """Execute a statement; its first value."""
        return await self._hops.run(self._connection.scalar, statement, parameters)

    async def commit(self) -> None:
        """Commit the transaction."""
        await self._hops.run(self._connection.commit)

    async def rollback(self) -> None:
        """Roll the transaction back."""
        await self._hops.run(self._connection.rollback)


class HoppingBlock:
    """A context manager that gives a connection, entered and left by a hop."""

    def __init__(self, hops: Hops, enter: Callable[[], Any]) -> None:
        self._hops = hops
        self._enter = enter

    async def __aenter__(self) -> HoppingConnection:
        self._block = self._enter()
        return HoppingConnection(self._hops, await self._hops.run(self._block.__enter__))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._hops.run(self._block.__exit__, kind, error, trace)
