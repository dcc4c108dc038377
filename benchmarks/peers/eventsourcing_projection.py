"""Read models of `eventsourcing`: its Projection, its tracking recorders, its ProjectionRunner.

As in its documentation: a view is a tracking recorder with a table of its own, and a change of the
view is one transaction with the position of the event that made it, so one transaction an event.
The runner subscribes to the application, which is for PostgreSQL only; on SQLite the same
projection is fed from the notification log here, page by page.

`rebuild_by_page` is what its parts allow beyond what is documented: a page of notifications at a
time, folded in memory and written with the tracking of the last one.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from functools import singledispatchmethod
from typing import Any, ClassVar, Final
from uuid import UUID

from eventsourcing.persistence import (
    InfrastructureFactory,
    Notification,
    Tracking,
    TrackingRecorder,
)
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from eventsourcing.sqlite import SQLiteTrackingRecorder
from eventsourcing.utils import Environment
from peers.eventsourcing_ import AccountOpened, Bank, MoneyDeposited, Peer
from psycopg.sql import SQL, Identifier

PAGE: Final = 5_000
_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS accounts (
        account TEXT PRIMARY KEY, owner TEXT NOT NULL, balance BIGINT NOT NULL,
        entries BIGINT NOT NULL)"""
_INSERT: Final = "INSERT INTO accounts VALUES (%s, %s, %s, %s)"
_UPDATE: Final = """
    UPDATE accounts SET balance = balance + %s, entries = entries + %s WHERE account = %s"""
_SUMS: Final = "SELECT count(*) AS n, sum(balance) AS b, sum(entries) AS e FROM accounts"

Rows = list[tuple[Any, ...]]


class View(TrackingRecorder):
    """The accounts, and up to which event they are right."""

    @abstractmethod
    def write(self, new: Rows, changed: Rows, tracking: Tracking) -> None: ...

    @abstractmethod
    def clear(self) -> None: ...

    @abstractmethod
    def rows(self) -> tuple[int, int, int]: ...


class PostgresView(PostgresTrackingRecorder, View):
    def __init__(self, datastore: Any, **names: Any) -> None:
        super().__init__(datastore, **names)
        self.sql_create_statements.append(SQL(_TABLE))

    def write(self, new: Rows, changed: Rows, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            for statement, rows in ((SQL(_INSERT), new), (SQL(_UPDATE), changed)):
                if len(rows) == 1:
                    cursor.execute(statement, rows[0], prepare=True)
                elif rows:
                    cursor.executemany(statement, rows)

    def clear(self) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            cursor.execute("DELETE FROM accounts")
            tracking = Identifier(self.tracking_table_name)
            forget = SQL("DELETE FROM {} WHERE application_name = %s").format(tracking)
            cursor.execute(forget, (Bank.name,))

    def rows(self) -> tuple[int, int, int]:
        with self.datastore.transaction() as cursor:
            row: Any = cursor.execute(_SUMS).fetchone()
        return row["n"], int(row["b"]), int(row["e"])


class SqliteView(SQLiteTrackingRecorder, View):
    def construct_create_table_statements(self) -> list[str]:
        return [*super().construct_create_table_statements(), _TABLE]

    def write(self, new: Rows, changed: Rows, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            for statement, rows in ((_SQLITE_INSERT, new), (_SQLITE_UPDATE, changed)):
                if len(rows) == 1:
                    cursor.execute(statement, rows[0])
                elif rows:
                    cursor.executemany(statement, rows)

    def clear(self) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            cursor.execute("DELETE FROM accounts")
            cursor.execute("DELETE FROM tracking WHERE application_name = ?", (Bank.name,))

    def rows(self) -> tuple[int, int, int]:
        with self.datastore.transaction(commit=False) as cursor:
            cursor.execute(_SUMS)
            row = cursor.fetchone()
        return row["n"], row["b"], row["e"]


_SQLITE_INSERT: Final = _INSERT.replace("%s", "?")
_SQLITE_UPDATE: Final = _UPDATE.replace("%s", "?")


class Accounts(Projection[View]):
    """One event at a time."""

    name = "accounts"
    #: The runner says only by polling how far it is: this is set when it has come to `last`.
    last: ClassVar[int] = 0
    reached: ClassVar[threading.Event] = threading.Event()

    @singledispatchmethod
    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        raise NotImplementedError

    @process_event.register
    def _opened(self, event: AccountOpened, tracking: Tracking) -> None:
        self.view.write([(str(event.originator_id), event.owner, 0, 0)], [], tracking)
        self._done(tracking)

    @process_event.register
    def _deposited(self, event: MoneyDeposited, tracking: Tracking) -> None:
        self.view.write([], [(event.amount, 1, str(event.originator_id))], tracking)
        self._done(tracking)

    def _done(self, tracking: Tracking) -> None:
        if tracking.notification_id == self.last:
            self.reached.set()


class ReadModel:
    """What the benchmark asks of it."""

    name = Peer.name

    def __init__(self, peer: Peer, view: type[Any]) -> None:
        self._bank, self._env = peer.bank, peer.env
        self.fill_in_turns = peer.fill_in_turns
        self._view_class = view
        # The tables have the projection's name, as the runner has it.
        environment = Environment(Accounts.name, self._env)
        factory: Any = InfrastructureFactory.construct(environment)
        self._view: Any = factory.tracking_recorder(view)
        self.rows, self.close = self._view.rows, factory.close

    def rebuild(self) -> None:
        """One transaction an event."""
        self._view.clear()
        recorder = self._bank.recorder
        Accounts.last = recorder.max_notification_id() or 0
        Accounts.reached.clear()
        if self._view_class is SqliteView:
            accounts, map = Accounts(self._view), self._bank.mapper.to_domain_event
            for page in self._pages():
                for notification in page:
                    tracking = Tracking(Bank.name, notification.id)
                    accounts.process_event(map(notification), tracking)
            return
        with ProjectionRunner(
            application_class=Bank,
            projection_class=Accounts,
            view_class=self._view_class,
            env=self._env,
        ) as runner:
            while not Accounts.reached.wait(timeout=1):
                runner.run_forever(timeout=0)  # raises what has gone wrong

    def rebuild_by_page(self) -> None:
        """One transaction a page."""
        self._view.clear()
        map = self._bank.mapper.to_domain_event
        for page in self._pages():
            new, changed = _folded(map(notification) for notification in page)
            self._view.write(new, changed, Tracking(Bank.name, page[-1].id))

    def _pages(self) -> Iterator[list[Notification]]:
        last = 0
        while page := self._bank.recorder.select_notifications(
            start=last, limit=PAGE, inclusive_of_start=False
        ):
            yield list(page)
            last = page[-1].id


def _folded(events: Iterable[Any]) -> tuple[Rows, Rows]:
    new: dict[UUID, list[Any]] = {}  # owner, balance, entries
    changed: dict[UUID, list[int]] = {}  # balance, entries
    for event in events:
        id = event.originator_id
        if type(event) is AccountOpened:
            new[id] = [event.owner, 0, 0]
        elif id in new:
            new[id][1] += event.amount
            new[id][2] += 1
        else:
            change = changed.setdefault(id, [0, 0])
            change[0] += event.amount
            change[1] += 1
    return (
        [(str(id), *values) for id, values in new.items()],
        [(*values, str(id)) for id, values in changed.items()],
    )
