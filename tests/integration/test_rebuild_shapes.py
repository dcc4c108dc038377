"""Whatever a table can have, it has after a rebuild too, and under the same name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import (
    CheckConstraint,
    Column,
    Computed,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    String,
    Table,
    UniqueConstraint,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)

from eventstore import Event, EventStore, RecordedEvent, TableProjection, on
from eventstore.log import tables as own


class Opened(Event, name="shape-opened"):
    owner: str


class Left(Event, name="shape-left"):
    """The last one who came leaves, with all visits."""


@pytest.fixture
def store(database_url: str) -> Iterator[EventStore]:
    with EventStore(database_url) as opened:
        yield opened


def is_postgres(store: EventStore) -> bool:
    return store.engine.dialect.name == "postgresql"


class Shapes(TableProjection, name="shape-shapes"):
    """Tables with whatever a table can have."""

    people = Table(
        "shape_people",
        TableProjection.metadata,
        Column("id", Integer, Identity(), primary_key=True),
        Column("name", String(50), nullable=False, unique=True),
        Column("town", String, index=True, server_default="Bonn"),
        Column("age", Integer, CheckConstraint("age >= 0", name="shape_age_is_right")),
        Column("mood", Enum("good", "bad", name="shape_mood"), comment="of late"),
        Column("twice", Integer, Computed("age * 2")),
        UniqueConstraint("name", "town", name="shape_one_of_a_town"),
        Index("shape_people_by_age", "age", "name"),
        CheckConstraint("length(name) < 40"),
        comment="of whom there are many",
        sqlite_autoincrement=True,
    )
    visits = Table(
        "shape_visits",
        TableProjection.metadata,
        Column("id", Integer, primary_key=True, autoincrement=True),
        Column("host", ForeignKey("shape_people.id", ondelete="CASCADE"), nullable=False),
        Column("guest", Integer),
        ForeignKeyConstraint(["guest"], ["shape_people.id"], name="shape_guest_is_there"),
    )
    odd = Table(
        'Shape "odd": 5%',
        TableProjection.metadata,
        Column("Odd Column", Integer, primary_key=True),
        Column("select", String, index=True),
        Index("Shape odd: 5%", "select", "Odd Column"),
    )

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        person = insert(self.people).values(name=event.owner, age=record.position, mood="good")
        self.db.execute(person)
        guest = select(func.max(self.people.c.id)).scalar_subquery()
        self.db.execute(insert(self.visits).values(host=guest, guest=guest))
        self.insert(self.odd, **{"Odd Column": record.position, "select": "100%"})

    @on(Left)
    def _left(self, event: Left, record: RecordedEvent) -> None:
        self.db.execute(self.visits.delete())
        last = select(func.max(self.people.c.id)).scalar_subquery()
        self.db.execute(self.people.delete().where(self.people.c.id == last))


def described(store: EventStore) -> dict[str, Any]:
    """Everything that the database knows about a projection's tables."""
    with store.connect() as db:
        inspector = inspect(db)
        known: dict[str, Any] = {
            each.name: (
                inspector.get_columns(each.name),
                inspector.get_pk_constraint(each.name),
                inspector.get_foreign_keys(each.name),
                inspector.get_unique_constraints(each.name),
                inspector.get_check_constraints(each.name),
                inspector.get_indexes(each.name),
            )
            for each in Shapes.__tables__
        }
        catalogs = _POSTGRES_CATALOGS if is_postgres(store) else _SQLITE_CATALOGS
        for catalog in catalogs:
            known[catalog] = db.exec_driver_sql(catalog).all()
    return json.loads(json.dumps(known, default=repr))


_SQLITE_CATALOGS = (
    "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name LIKE '%shape%' ORDER BY 2",
    "SELECT name, seq FROM main.sqlite_sequence ORDER BY 1",
)
_POSTGRES_CATALOGS = (
    """SELECT relname, relkind, nspname, obj_description(c.oid, 'pg_class')
         FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
        WHERE relname ILIKE '%%shape%%' ORDER BY 1, 2, 3""",
    """SELECT conname, contype, pg_get_constraintdef(oid), conrelid::regclass::text
         FROM pg_constraint WHERE conrelid::regclass::text ILIKE '%%shape%%' ORDER BY 1, 4""",
    "SELECT indexname, indexdef FROM pg_indexes WHERE tablename ILIKE '%%shape%%' ORDER BY 1",
    "SELECT schemaname, sequencename, last_value FROM pg_sequences ORDER BY 1, 2",
    "SELECT pg_get_serial_sequence('shape_people', 'id')",
    "SELECT pg_get_serial_sequence('shape_visits', 'id')",
    """SELECT attrelid::regclass::text, attname, attidentity, format_type(atttypid, atttypmod),
              pg_get_expr(adbin, adrelid), col_description(attrelid, attnum)
         FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attrelid::regclass::text ILIKE '%%shape%%' AND attnum > 0 ORDER BY 1, attnum""",
)


def test_everything_keeps_its_name_and_its_definition(store: EventStore) -> None:
    store.append("shape/a", [Opened("A"), Opened("B"), Opened("C")])
    store.append("shape/a", [Left(), Opened("D"), Left()])
    store.catch_up(Shapes)
    before = described(store)
    for _ in range(2):
        store.rebuild(Shapes, verify=True)
        assert described(store) == before
    store.append("shape/a", Opened("E"))
    store.catch_up(Shapes)
    with store.connect() as db:  # ids go on, and none is given twice
        assert list(db.scalars(select(Shapes.people.c.id).order_by("id"))) == [1, 2, 5]
        assert db.scalar(select(Shapes.people.c.twice).where(Shapes.people.c.id == 1)) == 2


class Moods(TableProjection, name="shape-moods"):
    version = 2
    moods = Table(
        "shape_moods",
        TableProjection.metadata,
        Column("account", String, primary_key=True),
        Column("mood", Enum("good", "bad", name="shape_other_mood"), nullable=False),
    )

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        self.insert(self.moods, account=record.aggregate_id, mood="good")


def test_a_type_that_a_new_version_needs_is_the_living_tables(store: EventStore) -> None:
    store.catch_up(Moods)
    with store.log.transaction() as db:  # as version 1 may have had it
        db.execute(text("DROP TABLE shape_moods"))
        db.execute(text("CREATE TABLE shape_moods (account VARCHAR PRIMARY KEY)"))
        if is_postgres(store):
            db.execute(text("DROP TYPE shape_other_mood"))
        db.execute(update(own.followers).values(version=1))
    store.append("shape/a", Opened("A"))
    store.rebuild(Moods)
    store.append("shape/b", Opened("B"))
    store.catch_up(Moods)
    with store.as_of(Moods) as past, store.connect() as db:
        for connection in (past, db):
            assert connection.scalar(select(func.count()).select_from(Moods.moods)) == 2
