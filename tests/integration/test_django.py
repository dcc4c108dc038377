"""Events appended inside Django's `transaction.atomic`, on Django's own connection."""

from __future__ import annotations

from collections.abc import Iterator

import django
import pytest
from django.conf import settings
from django.db import connection, connections, models, transaction
from sqlalchemy import Column, DateTime, Integer, String, Table, make_url, select
from sqlalchemy.dialects.postgresql import JSONB

from eventstore import (
    Aggregate,
    Event,
    EventStore,
    InvalidArgumentError,
    RecordedEvent,
    TableProjection,
    WrongExpectedVersionError,
    joining,
    on,
)

settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql"}}, USE_TZ=True)
django.setup()


class Order(models.Model):
    id = models.AutoField(primary_key=True)
    item = models.TextField(unique=True)

    class Meta:
        app_label = "shop"


class Deposited(Event, name="django-deposited"):
    amount: int


class Account(Aggregate, stream="django-account/{id}"):
    balance: int = 0

    def deposit(self, amount: int) -> None:
        self.record(Deposited(amount=amount))

    @on(Deposited)
    def _deposited(self, event: Deposited) -> None:
        self.balance += event.amount


class Deposits(TableProjection, name="django-deposits"):
    table = Table(
        "django_deposits",
        TableProjection.metadata,
        Column("stream", String, primary_key=True),
        Column("count", Integer, nullable=False),
        Column("amounts", JSONB, nullable=False),
        Column("last", DateTime(timezone=True), nullable=False),
    )

    @on(Deposited)
    def _deposited(self, event: Deposited, record: RecordedEvent) -> None:
        row = self.get(self.table, record.stream)
        before = row["amounts"] if row else []
        self.put(
            self.table,
            stream=record.stream,
            count=len(before) + 1,
            amounts=[*before, event.amount],
            last=record.recorded_at,
        )


@pytest.fixture
def store(postgres_url: str) -> Iterator[EventStore]:
    """A store in the database to which Django is connected."""
    url = make_url(postgres_url)
    connections.settings["default"] |= {
        "NAME": url.database,
        "USER": url.username or "",
        "PASSWORD": url.password or "",
        "HOST": str(url.host or url.query.get("host") or ""),
        "PORT": str(url.port or url.query.get("port") or ""),
    }
    with connection.schema_editor() as editor:
        editor.create_model(Order)
    with EventStore(postgres_url) as store:
        yield store
    connection.close()
    del connections["default"]  # the next test has another database


def deposited(id: str, amount: int) -> Account:
    account = Account(id)
    account.deposit(amount)
    return account


def save(store: EventStore, account: Account) -> None:
    with joining(store, connection.connection, on_commit=transaction.on_commit) as db:
        store.save(account, connection=db)


def items() -> list[str]:
    return list(Order.objects.order_by("item").values_list("item", flat=True))


def streams(store: EventStore) -> list[str]:
    return [stream.name for stream in store.streams()]


def test_an_atomic_block_commits_the_row_and_the_events(store: EventStore) -> None:
    with transaction.atomic():
        Order.objects.create(item="tea")
        save(store, deposited("ann", 5))
        assert streams(store) == []
        Order.objects.create(item="milk")
    assert items() == ["milk", "tea"]
    assert store.load(Account, "ann").balance == 5


def test_an_exception_rolls_both_back(store: EventStore) -> None:
    def fail() -> None:
        with transaction.atomic():
            Order.objects.create(item="tea")
            save(store, deposited("ann", 5))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert items() == []
    assert streams(store) == []
    store.save(deposited("ann", 1))


def test_a_nested_block_that_is_rolled_back_takes_its_events_back(store: EventStore) -> None:
    def fail() -> None:
        with transaction.atomic():
            Order.objects.create(item="milk")
            save(store, deposited("bob", 7))
            raise ZeroDivisionError

    with transaction.atomic():
        Order.objects.create(item="tea")
        save(store, deposited("ann", 5))
        with pytest.raises(ZeroDivisionError):
            fail()
    assert items() == ["tea"]
    assert streams(store) == ["django-account/ann"]


def test_a_conflict_can_be_caught_inside(store: EventStore) -> None:
    store.save(deposited("ann", 1))
    with transaction.atomic():
        Order.objects.create(item="tea")
        with pytest.raises(WrongExpectedVersionError):
            save(store, deposited("ann", 5))
        save(store, deposited("bob", 5))
        Order.objects.create(item="milk")
    assert items() == ["milk", "tea"]
    assert store.load(Account, "ann").balance == 1
    assert store.load(Account, "bob").balance == 5


def test_what_was_saved_is_read_in_the_same_transaction(store: EventStore) -> None:
    with (
        transaction.atomic(),
        joining(store, connection.connection) as db,
    ):
        store.save(deposited("ann", 5), deposited("bob", 6), idempotency_key="k", connection=db)
        loaded = store.load(Account, "ann", connection=db)
        loaded.deposit(2)
        loaded.deposit(3)
        store.save(loaded, connection=db)
        read = store.read("django-account/ann", connection=db)
        assert [record.event for record in read] == [Deposited(n) for n in (5, 2, 3)]
        assert not store.exists(Account, "ann")
    assert store.load(Account, "ann").balance == 10


def test_a_reader_is_woken_after_djangos_commit(store: EventStore) -> None:
    signal = store.log.signal
    seen = signal.count
    with transaction.atomic():
        save(store, deposited("ann", 5))
        assert signal.count == seen
    assert signal.count != seen
    with store.subscribe() as subscription:
        assert next(iter(subscription)).stream == "django-account/ann"


def test_nobody_is_woken_by_a_rollback(store: EventStore) -> None:
    seen = store.log.signal.count
    with transaction.atomic():
        save(store, deposited("ann", 5))
        transaction.set_rollback(True)
    assert store.log.signal.count == seen
    assert streams(store) == []


def test_a_projection_in_step_runs_in_the_atomic_block(
    postgres_url: str, store: EventStore
) -> None:
    with EventStore(postgres_url, in_step=[Deposits]) as in_step:
        for amount in (5, 6):
            with transaction.atomic(), joining(in_step, connection.connection) as db:
                in_step.append("django-account/ann", Deposited(amount), connection=db)
            with transaction.atomic():
                with joining(in_step, connection.connection) as db:
                    in_step.append("django-account/ann", Deposited(100), connection=db)
                transaction.set_rollback(True)
        with in_step.connect() as db:
            (row,) = db.execute(select(Deposits.table))
        assert (row.count, row.amounts) == (2, [5, 6])


def test_the_transaction_is_not_ours_to_end(store: EventStore) -> None:
    with transaction.atomic():
        Order.objects.create(item="tea")
        with joining(store, connection.connection) as db:
            store.save(deposited("ann", 5), connection=db)
            with pytest.raises(InvalidArgumentError):
                db.commit()
        with joining(store, connection.connection) as db, pytest.raises(InvalidArgumentError):
            db.rollback()
        Order.objects.create(item="milk")
    assert items() == ["milk", "tea"]
    assert streams(store) == ["django-account/ann"]


def test_outside_of_an_atomic_block_there_is_nothing_to_join(store: EventStore) -> None:
    connection.ensure_connection()
    with pytest.raises(InvalidArgumentError, match="autocommit"):
        save(store, deposited("ann", 5))
    assert streams(store) == []


def test_only_a_psycopg_connection_can_be_joined(store: EventStore, sqlite_url: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught, joining(store, connection):
        pass
    assert caught.value.argument == "raw"
    with (
        EventStore(sqlite_url) as other,
        pytest.raises(InvalidArgumentError) as caught,
        joining(other, connection.connection),
    ):
        pass
    assert caught.value.argument == "store"
