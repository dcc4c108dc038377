"""Accounts whose tables are rebuilt, and what a test does with them meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Column, ForeignKey, Integer, String, Table, inspect, select

from eventstore import Event, EventStore, RecordedEvent, TableProjection, on
from eventstore.log.followers import Followers
from eventstore.projections.places import SHADOW


class Opened(Event, name="rebuild-opened"):
    owner: str


class Moved(Event, name="rebuild-moved"):
    amount: int


class Ignored(Event, name="rebuild-ignored"):
    """Nobody handles it."""


class Sent(Event, name="rebuild-sent"):
    """Only a side effect has to do with it."""


class Hook:
    """What a test lets happen in a handler, without its being part of the handler's code."""

    def __init__(self) -> None:
        self.call: Callable[[str], None] = lambda _: None
        self.mails: list[str] = []

    def __call__(self, stream: str) -> None:
        self.call(stream)


hook = Hook()


class Accounts(TableProjection, name="rebuild-accounts"):
    accounts = Table(
        "rebuild_accounts",
        TableProjection.metadata,
        Column("account", String, primary_key=True),
        Column("owner", String, nullable=False),
        Column("balance", Integer, nullable=False),
    )
    moves = Table(
        "rebuild_moves",
        TableProjection.metadata,
        Column("position", Integer, primary_key=True),
        Column("account", String, ForeignKey("rebuild_accounts.account"), nullable=False),
        Column("amount", Integer, nullable=False),
    )

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        self.insert(self.accounts, account=record.aggregate_id, owner=event.owner, balance=0)

    @on(Moved)
    def _moved(self, event: Moved, record: RecordedEvent) -> None:
        id = record.aggregate_id
        hook(id)
        self.add(self.accounts, id, balance=event.amount)
        self.insert(self.moves, position=record.position, account=id, amount=event.amount)


class Mailing(TableProjection, name="rebuild-mailing"):
    mailed = Table(
        "rebuild_mailed",
        TableProjection.metadata,
        Column("position", Integer, primary_key=True),
    )

    @on(Moved)
    def _moved(self, event: Moved, record: RecordedEvent) -> None:
        self.insert(self.mailed, position=record.position)

    @on(Moved, side_effect=True)
    def _mail(self, event: Moved, record: RecordedEvent) -> None:
        hook.mails.append(record.aggregate_id)

    @on(Sent, side_effect=True)
    def _send(self, event: Sent) -> None:
        hook.mails.append("sent")


def newer() -> type[TableProjection]:
    """Version 2 of Accounts: a column and an index more, and a table less."""

    class Accounts(TableProjection, name="rebuild-accounts"):
        __qualname__ = "Accounts"
        version = 2
        accounts = Table(
            "rebuild_accounts",
            TableProjection.metadata,
            Column("account", String, primary_key=True),
            Column("owner", String, nullable=False, index=True),
            Column("balance", Integer, nullable=False),
            Column("moves", Integer, nullable=False),
        )

        @on(Opened)
        def _opened(self, event: Opened, record: RecordedEvent) -> None:
            values = {"account": record.aggregate_id, "owner": event.owner}
            self.insert(self.accounts, **values, balance=0, moves=0)

        @on(Moved)
        def _moved(self, event: Moved, record: RecordedEvent) -> None:
            self.add(self.accounts, record.aggregate_id, balance=event.amount, moves=1)

    return Accounts


class Sharded(TableProjection, name="rebuild-sharded", shards=2):
    totals = Table(
        "rebuild_totals",
        TableProjection.metadata,
        Column("account", String, primary_key=True),
        Column("total", Integer, nullable=False),
    )

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        self.insert(self.totals, account=record.aggregate_id, total=0)

    @on(Moved)
    def _moved(self, event: Moved, record: RecordedEvent) -> None:
        self.add(self.totals, record.aggregate_id, total=event.amount)


def resharded(number: int) -> type[TableProjection]:
    class Sharded(TableProjection, name="rebuild-sharded", shards=number):
        __qualname__ = "Sharded"
        totals = globals()["Sharded"].totals
        _opened = globals()["Sharded"]._opened
        _moved = globals()["Sharded"]._moved

    Sharded.__tables__ = globals()["Sharded"].__tables__
    return Sharded


def filled(store: EventStore, ids: str = "abc", moves: int = 3) -> None:
    """A log in which account "a" has moved by 1 so often, "b" by 2, and so on."""
    for number, id in enumerate(ids, 1):
        store.append(f"rebuild/{id}", [Opened(id.upper()), *[Moved(number)] * moves, Ignored()])


def balances(store: EventStore, cls: type[TableProjection] = Accounts) -> dict[str, int]:
    table = cls.__tables__[0]
    with store.connect() as db:
        names = ("total",) if "total" in table.c else ("balance",)
        return dict(map(tuple, db.execute(select(table.c.account, *(table.c[n] for n in names)))))


def untouched(store: EventStore, cls: type[TableProjection]) -> Any:
    """All that a failed rebuild must leave as it is."""
    rows = [row._replace(advanced_at=0) for row in Followers(store.log).find(cls.__follower__)]
    with store.connect() as db:
        return rows, [sorted(map(str, db.execute(select(each)))) for each in cls.__tables__]


def leftovers(store: EventStore) -> list[Any]:
    """What a rebuild has left behind."""
    left: list[Any] = [status for status in store.status() if status.rebuild]
    with store.connect() as db:
        left += inspect(db).get_table_names(SHADOW) if is_postgres(store) else []
        left += [] if is_postgres(store) else inspect(db).get_temp_table_names()
    return left


def is_postgres(store: EventStore) -> bool:
    return store.engine.dialect.name == "postgresql"


@contextmanager
def in_a_thread(call: Callable[..., Any], *args: Any, **options: Any) -> Iterator[Future[Any]]:
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(call, *args, **options)


def fail_on(bad: str) -> Callable[[str], None]:
    def fail(id: str) -> None:
        if id == bad:
            raise RuntimeError("no")

    return fail
