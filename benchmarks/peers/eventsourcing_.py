"""The library `eventsourcing` 9.5, in the fastest configuration that its documentation shows.

Events are msgspec structs with a mapper of their own, as in its example aggregates 9 and 10; the
aggregate is a plain object with a projector function. Its database functions on PostgreSQL stay
off: they are faster, and give up the order of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar, Final
from uuid import UUID, uuid4

import msgspec
from eventsourcing.application import Application
from eventsourcing.persistence import Mapper, StoredEvent, Transcoder
from eventsourcing.projection import ApplicationSubscription
from eventsourcing.utils import get_topic, resolve_topic
from sqlalchemy import make_url
from workload import DEPOSIT, VISIT, turns


class PeerEvent(msgspec.Struct, frozen=True, gc=False):
    originator_id: UUID
    originator_version: int
    timestamp: datetime


class AccountOpened(PeerEvent, frozen=True):
    owner: str
    iban: str
    currency: str


class MoneyDeposited(PeerEvent, frozen=True):
    amount: int
    currency: str
    payer: str
    channel: str
    reference: str
    note: str


class Account:
    """The state of `workload.Account`, as this library takes it."""

    __slots__ = ("balance", "entries", "id", "new", "owner", "version")

    def __init__(self, id: UUID) -> None:
        self.id = id
        self.version = 0
        self.new: list[PeerEvent] = []
        self.owner = ""
        self.balance = 0
        self.entries = 0

    def open(self) -> None:
        self._record(
            AccountOpened(
                self.id,
                self.version + 1,
                datetime.now(UTC),
                "Alice Example",
                "GB82 WEST 1234 5698 7654 32",
                "EUR",
            )
        )

    def deposit(self, amount: int) -> None:
        if amount <= 0:
            raise ValueError("a deposit must be positive")
        now = datetime.now(UTC)
        self._record(MoneyDeposited(self.id, self.version + 1, now, amount, **DEPOSIT))

    def _record(self, event: PeerEvent) -> None:
        _APPLY[type(event)](self, event)
        self.version = event.originator_version
        self.new.append(event)

    def collect_events(self) -> list[PeerEvent]:
        new, self.new = self.new, []
        return new


def _opened(account: Account, event: AccountOpened) -> None:
    account.owner = event.owner


def _deposited(account: Account, event: MoneyDeposited) -> None:
    account.balance += event.amount
    account.entries += 1


_APPLY: Final[dict[type[PeerEvent], Callable[[Any, Any], None]]] = {
    AccountOpened: _opened,
    MoneyDeposited: _deposited,
}


def _project(initial: Account | None, events: Any) -> Account | None:
    account = initial
    for event in events:
        if account is None:
            account = Account(event.originator_id)
        _APPLY[type(event)](account, event)
        account.version = event.originator_version
    return account


_encode: Final = msgspec.json.Encoder().encode
_decoders: Final = {cls: msgspec.json.Decoder(cls).decode for cls in _APPLY}


class MsgspecMapper(Mapper[UUID]):
    def to_stored_event(self, domain_event: Any) -> StoredEvent:
        return StoredEvent(
            originator_id=domain_event.originator_id,
            originator_version=domain_event.originator_version,
            topic=get_topic(type(domain_event)),
            state=_encode(domain_event),
        )

    def to_domain_event(self, stored_event: StoredEvent) -> Any:
        return _decoders[resolve_topic(stored_event.topic)](stored_event.state)


class NullTranscoder(Transcoder):
    def encode(self, obj: Any) -> bytes:
        raise NotImplementedError

    def decode(self, data: bytes) -> Any:
        raise NotImplementedError


class Bank(Application[UUID]):
    env: ClassVar[dict[str, str]] = {
        "MAPPER_TOPIC": get_topic(MsgspecMapper),
        "TRANSCODER_TOPIC": get_topic(NullTranscoder),
    }


class Peer:
    """What the benchmarks ask of it."""

    name = "eventsourcing"

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env
        self.bank = Bank(env=env)
        self.save = self.bank.save
        self.close = self.bank.close

    def new(self) -> Account:
        return Account(uuid4())

    def load(self, id: UUID) -> Any:
        return self.bank.repository.get(id, projector_func=_project)

    def fill(self, accounts: int, length: int) -> list[UUID]:
        """So many accounts of so many events; their ids."""
        made = [self.new() for _ in range(accounts)]
        for account in made:
            account.open()
            for number in range(1, length):
                account.deposit(1)
                if number % 500 == 0:  # one pipelined insert of thousands never returns
                    self.save(account)
            self.save(account)
        return [account.id for account in made]

    def fill_in_turns(self, accounts: int, length: int) -> None:
        """So many accounts of so many events, side by side."""
        made = [self.new() for _ in range(accounts)]
        for version, numbers in turns(accounts, length):
            for start in range(0, accounts, 100):  # one pipelined insert of thousands never returns
                some = [made[number] for number in numbers[start : start + 100]]
                for account in some:
                    for new in range(version, version + VISIT):
                        account.deposit(1) if new else account.open()
                self.save(*some)

    def follow(self, after: int) -> Iterator[Any]:
        """Its live subscription, which listens for PostgreSQL's notifications."""
        with ApplicationSubscription(self.bank, gt=after) as subscription:
            for event, _ in subscription:
                yield event


def sqlite(path: str, durability: str) -> Peer:
    """On a SQLite file: WAL mode is its own choice, `synchronous` is set as for the others."""
    peer = Peer({"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": path})
    pool = peer.bank.factory.datastore.pool  # type: ignore[attr-defined]
    create = pool._create_connection

    def created() -> Any:
        connection = create()
        synchronous = "FULL" if durability == "full" else "NORMAL"
        connection._sqlite_conn.execute(f"PRAGMA synchronous = {synchronous}")
        return connection

    pool._create_connection = created
    for pooled in list(pool._pool):  # those that made the tables
        pool._pool.remove(pooled)
        pooled.close()
    return peer


def postgres(url: str) -> Peer:
    """On a PostgreSQL database."""
    parts = make_url(url)
    host = parts.host or parts.query.get("host", "localhost")
    return Peer(
        {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": parts.database or "",
            "POSTGRES_HOST": str(host),
            "POSTGRES_PORT": str(parts.port or 5432),
            "POSTGRES_USER": parts.username or "",
            "POSTGRES_PASSWORD": parts.password or "",
        }
    )
