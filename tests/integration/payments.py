"""Accounts and payments, and what follows them, which stalls where a test wants it.

This module is also the program that the worker processes run.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Integer, String, Table, select

from eventstore import Event, EventHandler, EventStore, RecordedEvent, TableProjection, on
from eventstore.followers.follower import TableFollower
from eventstore.log.base import Log


class Opened(Event, name="runner-opened"):
    pass


class Paid(Event, name="runner-paid"):
    amount: int


class Stalled(Event, name="runner-stalled"):
    """The first worker that meets it stalls."""


class Copied(Event, name="runner-copied"):
    amount: int


class Balances(TableProjection, name="runner-balances", shards=6):
    accounts = Table(
        "runner_balances",
        TableProjection.metadata,
        Column("account", String, primary_key=True),
        Column("balance", Integer, nullable=False),
        Column("events", Integer, nullable=False),
    )

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        self.insert(self.accounts, account=record.stream, balance=0, events=1)

    @on(Paid)
    def _paid(self, event: Paid, record: RecordedEvent) -> None:
        self.add(self.accounts, record.stream, balance=event.amount, events=1)

    @on(Stalled)
    def _stalled(self, event: Stalled, record: RecordedEvent) -> None:
        self.add(self.accounts, record.stream, events=1)
        self.db.execute(select(self.accounts))  # so the row is written, and locked
        _stall("handler", None)


class Copies(EventHandler, name="runner-copies", shards=2):
    """Appends to another stream, once for each event."""

    @on(Paid)
    def _paid(self, event: Paid, record: RecordedEvent) -> None:
        self.store.append(
            f"copy/{record.stream}", Copied(amount=event.amount), idempotency_key=str(record.id)
        )

    @on(Stalled)
    def _stalled(self, event: Stalled) -> None:
        _stall("handler", self.store.log)


_here = threading.local()


def _stall(where: str, log: Log | None) -> None:
    """Once, and only where the test wants it: wait to be stopped, and to be told to go on.

    With a log, no other thread of this process is in the middle of writing to SQLite meanwhile.
    """
    folder = os.environ.get("STALL_FOLDER")
    if folder is None or os.environ["STALL_AT"] != where:
        return
    try:
        (Path(folder) / "stalled").touch(exist_ok=False)
    except FileExistsError:
        return
    with getattr(log, "_turn", contextlib.nullcontext()):
        (Path(folder) / "pid").write_text(f"{os.getpid()}\n")
        while not (Path(folder) / "go-on").exists():
            time.sleep(0.01)
    _here.has_stalled = True


def balances_that_may_stall() -> type[Balances]:
    """The projection; what becomes of the batch that has stalled is written down."""
    handle = TableFollower._handle

    def handled(self: TableFollower, page: Any, to: int) -> None:
        # What has been read includes an event, and the transaction has not begun.
        if page and to >= int(os.environ["STALL_POSITION"]):
            _stall("page", self._log)
        try:
            handle(self, page, to)
        except Exception as error:
            # In the thread that stalled: others of the process are stopped along with it.
            if getattr(_here, "has_stalled", False):
                (Path(os.environ["STALL_FOLDER"]) / "outcome").write_text(type(error).__name__)
            raise

    TableFollower._handle = handled  # type: ignore[method-assign]
    return Balances


def owners(store: EventStore, follower: str = "runner-balances") -> Counter[int]:
    """How many shards each process holds; those that nobody does as 0."""
    rows = [row for row in store.status() if row.follower == follower and not row.rebuild]
    return Counter(int(row.owner.split(":")[1]) if row.owner else 0 for row in rows)
