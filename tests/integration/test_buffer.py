"""The write buffer on real databases, against a plain model and with every kind of column."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Connection, Engine, MetaData, Table, select
from sqlalchemy.exc import IntegrityError

from eventstore.errors import RowNotFoundError
from eventstore.log.opening import open_engine
from eventstore.projections.buffer import WriteBuffer

metadata = MetaData()
simple = Table(
    "simple",
    metadata,
    Column("id", sa.Integer, primary_key=True),
    Column("amount", sa.Numeric(12, 2)),
    Column("count", sa.BigInteger, nullable=False, server_default="5"),
    Column("text", sa.String(40), default="new"),
)
pair = Table(
    "pair",
    metadata,
    Column("name", sa.String(10), primary_key=True),
    Column("number", sa.SmallInteger, primary_key=True),
    Column("count", sa.Integer, default=7),
    Column("text", sa.Text),
)
DEFAULTS: dict[str, dict[str, Any]] = {
    "simple": {"amount": None, "count": 5, "text": "new"},
    "pair": {"count": 7, "text": None},
}
TABLES = {"simple": simple, "pair": pair}
KEYS: dict[str, list[Any]] = {"simple": [1, 2, 3], "pair": [("a", 1), ("a", 2), ("b", 1)]}


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Halved(sa.types.TypeDecorator[int]):
    """Stored as half of itself."""

    impl = sa.Integer
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else value // 2

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else value * 2


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine, close = open_engine(request.getfixturevalue(f"{request.param}_url"))
    yield engine
    close()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """In a transaction, even though the store's own engine commits each statement."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="READ COMMITTED")
        with connection.begin():
            yield connection


class Stop(Exception):
    """The model's refusal of an operation."""


class Model:
    """Tables as dicts, each operation done at once."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, Any], dict[str, Any]] = {}

    def run(self, verb: str, table: str, key: Any, values: dict[str, Any]) -> None:
        row = self.rows.get((table, key))
        if verb == "delete":
            self.rows.pop((table, key), None)
        elif verb == "insert" or (verb == "put" and row is None):
            if row is not None:
                raise Stop
            self.rows[table, key] = DEFAULTS[table] | values
        elif row is None:
            raise Stop
        elif verb == "add":
            for name, amount in values.items():
                row[name] = None if None in (row[name], amount) else row[name] + amount
        else:
            row.update(values)


def with_key(table: str, key: Any, values: dict[str, Any]) -> dict[str, Any]:
    names = [column.name for column in TABLES[table].primary_key]
    return dict(zip(names, key if isinstance(key, tuple) else (key,), strict=True)) | values


def run(buffer: WriteBuffer, verb: str, name: str, key: Any, values: dict[str, Any]) -> None:
    table = TABLES[name]
    if verb == "delete":
        buffer.delete(table, key)
    elif verb == "update":
        buffer.update(table, key, values)
    elif verb == "add":
        buffer.add(table, key, values)
    else:
        getattr(buffer, verb)(table, with_key(name, key, values))


def stored(connection: Connection) -> dict[tuple[str, Any], dict[str, Any]]:
    found = {}
    for name, table in TABLES.items():
        size = len(table.primary_key)
        for row in connection.execute(select(table)).all():
            key = tuple(row[:size]) if size > 1 else row[0]
            found[name, key] = dict(row._mapping)
            for column in table.primary_key:
                del found[name, key][column.name]
    return found


counts = st.integers(-9, 9)
amounts = st.decimals(-9, 9, places=2) | st.integers(-9, 9)
texts = st.none() | st.sampled_from(["", "x", "naïve % 'quoted'"])
SETS = {
    "simple": {"amount": st.none() | amounts, "count": counts, "text": texts},
    "pair": {"count": st.none() | counts, "text": texts},
}
ADDS = {
    "simple": {"amount": amounts, "count": counts},
    "pair": {"count": counts | st.none()},
}


#: A verb, a table, a key, values, and whether to do it even if the model refuses it. Most are then
#: left out, or few sequences would come to their end.
Step = tuple[str, str, Any, dict[str, Any], bool]


@st.composite
def operations(draw: st.DrawFn) -> Step:
    verb = draw(st.sampled_from(["put", "add", "get", "update", "insert", "flush", "delete"]))
    table = draw(st.sampled_from(sorted(TABLES)))
    key = draw(st.sampled_from(KEYS[table]))
    if verb in ("delete", "flush", "get"):
        return verb, table, key, {}, False
    possible = (ADDS if verb == "add" else SETS)[table]
    names = draw(st.lists(st.sampled_from(sorted(possible)), unique=True))
    anyway = draw(st.integers(0, 19)) == 19
    return verb, table, key, {name: draw(possible[name]) for name in names}, anyway


def check(connection: Connection, steps: list[Step]) -> None:
    buffer, model, failed = WriteBuffer(connection), Model(), False
    try:
        for verb, table, key, values, anyway in [*steps, ("flush", "simple", 1, {}, False)]:
            if verb == "flush":
                buffer.flush()
                assert not failed
                assert stored(connection) == model.rows
            elif verb == "get":
                row = buffer.get(TABLES[table], key)
                if not failed:
                    mine = model.rows.get((table, key))
                    assert row == (None if mine is None else with_key(table, key, mine))
            else:
                if not failed:
                    try:
                        model.run(verb, table, key, values)
                    except Stop:
                        if not anyway:
                            continue
                        failed = True
                run(buffer, verb, table, key, values)
    except (RowNotFoundError, IntegrityError):
        assert failed
        assert not buffer.pending or verb != "flush"


@pytest.fixture
def with_tables(connection: Connection) -> Connection:
    """Its tables are made once: to look for them takes as long as many an example."""
    metadata.create_all(connection)
    return connection


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(operations(), min_size=10, max_size=40))
def test_any_sequence_is_as_if_each_operation_ran_at_once(
    with_tables: Connection, steps: list[Step]
) -> None:
    with with_tables.begin_nested() as savepoint:
        check(with_tables, steps)
        savepoint.rollback()


every_type = Table(
    "every_type",
    MetaData(),
    Column("id", sa.Uuid, primary_key=True),
    Column("small", sa.SmallInteger),
    Column("big", sa.BigInteger),
    Column("exact", sa.Numeric(20, 4)),
    Column("real", sa.Float),
    Column("double", sa.Double),
    Column("flag", sa.Boolean),
    Column("text", sa.Text),
    Column("short", sa.String(8)),
    Column("fixed", sa.CHAR(4)),
    Column("bytes", sa.LargeBinary),
    Column("day", sa.Date),
    Column("clock", sa.Time),
    Column("moment", sa.DateTime),
    Column("instant", sa.DateTime(timezone=True)),
    Column("span", sa.Interval),
    Column("json", sa.JSON),
    Column("null_json", sa.JSON(none_as_null=True)),
    Column("colour", sa.Enum(Colour, name="a colour")),
    Column("word", sa.Enum("yes", "no", native_enum=False)),
    Column("halved", Halved),
)
MOMENT = datetime(2026, 3, 1, 12, 30, 15, 123456)
FULL: dict[str, Any] = {
    "small": -(2**15),
    "big": 2**62,
    "exact": Decimal("12345678.0625"),
    "real": 0.5,
    "double": 1e300,
    "flag": True,
    "text": "naïve 'quotes' \\ \n {braces} NULL \U0001f600",
    "short": "12345678",
    "fixed": "abcd",
    "bytes": bytes(range(256)),
    "day": date(2024, 2, 29),
    "clock": time(23, 59, 59, 999999),
    "moment": MOMENT,
    "instant": MOMENT.replace(tzinfo=UTC),
    "span": timedelta(days=400, seconds=5, microseconds=7),
    "json": {"a": [1, None, "é"], "b": {}},
    "null_json": [1.5],
    "colour": Colour.BLUE,
    "word": "no",
    "halved": 8,
}
EMPTY = dict.fromkeys(FULL) | {"text": "", "bytes": b"", "json": []}


def rows_of(connection: Connection, table: Table) -> list[dict[str, Any]]:
    return [
        dict(row)
        for row in connection.execute(select(table).order_by(*table.primary_key)).mappings()
    ]


@pytest.mark.parametrize("verb", ["insert", "put", "update"])
def test_values_of_every_type_come_back(connection: Connection, verb: str) -> None:
    every_type.create(connection)
    buffer = WriteBuffer(connection)
    ids = sorted(uuid.UUID(int=n) for n in range(1, 5))
    values = dict(zip(ids, [FULL, dict.fromkeys(FULL), EMPTY, FULL], strict=True))
    for id, full in values.items():
        if verb == "update":
            buffer.insert(every_type, {"id": id})
            buffer.flush()
            buffer.update(every_type, id, full)
        else:
            getattr(buffer, verb)(every_type, {"id": id} | full)
    buffer.flush()
    expected = {id: {"id": id} | full for id, full in values.items()}
    for row in rows_of(connection, every_type):
        if row["instant"] is not None and connection.dialect.name == "sqlite":
            row["instant"] = row["instant"].replace(tzinfo=UTC)  # SQLite forgets it
        assert row == expected.pop(row["id"])
    assert expected == {}


@pytest.mark.parametrize(
    ("kind", "key", "other"),
    [
        (sa.String(20), "a", "b"),
        (sa.CHAR(4), "abcd", "zzzz"),
        (sa.Uuid(), uuid.UUID(int=1), uuid.UUID(int=2)),
        (sa.LargeBinary(), b"\x00", b"\xff"),
        (sa.Date(), date(2026, 1, 1), date(2026, 1, 2)),
        (sa.DateTime(), MOMENT, MOMENT + timedelta(microseconds=1)),
        (sa.Numeric(10, 2), Decimal("1.25"), Decimal("1.50")),
        (sa.Enum(Colour, name="colour_key"), Colour.RED, Colour.BLUE),
        (Halved(), 2, 4),
    ],
)
def test_keys_of_many_types_find_their_rows(
    connection: Connection, kind: Any, key: Any, other: Any
) -> None:
    table = Table(
        "by key", MetaData(), Column("id", kind, primary_key=True), Column("n", sa.Integer)
    )
    table.create(connection)
    buffer = WriteBuffer(connection)
    for each in (key, other):
        buffer.insert(table, {"id": each, "n": 1})
    buffer.flush()
    buffer.add(table, key, {"n": 1})
    buffer.put(table, {"id": other, "n": 7})
    buffer.flush()
    assert buffer.get(table, key) == {"id": key, "n": 2}
    buffer.delete(table, key)
    buffer.flush()
    assert rows_of(connection, table) == [{"id": other, "n": 7}]


def test_numbers_of_several_types_in_one_column(connection: Connection) -> None:
    table = Table(
        "numbers",
        MetaData(),
        Column("id", sa.Integer, primary_key=True),
        Column("exact", sa.Numeric(10, 2)),
        Column("real", sa.Float),
        Column("whole", sa.Integer),
    )
    table.create(connection)
    buffer = WriteBuffer(connection)
    buffer.insert(table, {"id": 1, "exact": 1, "real": 1, "whole": True})
    buffer.insert(table, {"id": 2, "exact": Decimal("0.25"), "real": 0.5, "whole": 2**31 - 1})
    buffer.insert(table, {"id": 3, "exact": None, "real": None, "whole": None})
    buffer.flush()
    assert [tuple(row.values()) for row in rows_of(connection, table)] == [
        (1, Decimal(1), 1.0, 1),
        (2, Decimal("0.25"), 0.5, 2**31 - 1),
        (3, None, None, None),
    ]


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)  # SQLite has no lengths
def test_text_that_is_too_long_is_refused_and_not_cut(connection: Connection) -> None:
    every_type.create(connection)
    buffer = WriteBuffer(connection)
    buffer.insert(every_type, {"id": uuid.UUID(int=1), "short": "123456789"})
    with pytest.raises(sa.exc.DataError), connection.begin_nested():
        buffer.flush()


def test_defaults_of_every_kind(connection: Connection) -> None:
    table = Table(
        "with_defaults",
        MetaData(),
        Column("id", sa.Integer, primary_key=True),
        Column("python", sa.Integer, default=1),
        Column("called", sa.Text, default=lambda: "made"),
        Column("sql", sa.Text, default=sa.func.lower("SQL")),
        Column("server", sa.Integer, server_default="3"),
        Column("twice", sa.Integer, sa.Computed("python * 2")),
        Column("n", sa.Integer, server_default="1"),
    )
    table.create(connection)
    buffer = WriteBuffer(connection)
    buffer.insert(table, {"id": 1})
    buffer.add(table, 1, {"n": 1, "server": 1, "python": 1})
    buffer.put(table, {"id": 2})
    buffer.add(table, 2, {"n": 1, "python": 4})
    buffer.put(table, {"id": 3, "sql": "mine"})
    first = {"id": 1, "python": 2, "called": "made", "sql": "sql", "server": 4, "twice": 4, "n": 2}
    second = {"id": 2, "python": 5, "called": "made", "sql": "sql", "server": 3, "twice": 10}
    assert buffer.get(table, 2) == second | {"n": 2}
    buffer.flush()
    assert buffer.get(table, 1) == first
    third = buffer.get(table, 3)
    assert third is not None
    assert (third["sql"], third["server"]) == ("mine", 3)
    buffer.put(table, {"id": 1, "n": 9})
    buffer.flush()
    assert buffer.get(table, 1) == first | {"n": 9}


def test_get_sees_what_is_pending_and_what_is_stored(connection: Connection) -> None:
    metadata.create_all(connection)
    buffer = WriteBuffer(connection)
    assert buffer.get(pair, ("a", 1)) is None
    buffer.insert(pair, {"name": "a", "number": 1})
    expected = {"name": "a", "number": 1, "count": 7, "text": None}
    assert buffer.get(pair, ("a", 1)) == expected
    buffer.flush()
    assert buffer.get(pair, ("a", 1)) == expected
    buffer.add(pair, ("a", 1), {"count": 1})
    buffer.update(pair, ("a", 1), {"text": "x"})
    row = buffer.get(pair, ("a", 1))
    assert row == expected | {"count": 8, "text": "x"}
    row["text"] = "y"  # it is a copy
    assert buffer.get(pair, ("a", 1)) == expected | {"count": 8, "text": "x"}
    buffer.delete(pair, ("a", 1))
    assert buffer.get(pair, ("a", 1)) is None
    buffer.add(pair, ("b", 1), {"count": 1})
    with pytest.raises(RowNotFoundError):
        buffer.get(pair, ("b", 1))


def test_many_rows_in_one_flush(connection: Connection) -> None:
    metadata.create_all(connection)
    buffer = WriteBuffer(connection)
    for n in range(3000):
        buffer.insert(simple, {"id": n, "amount": n})
    buffer.flush()
    for n in range(3000):
        buffer.add(simple, n, {"amount": Decimal("0.5"), "count": n})
        buffer.put(pair, {"name": "a", "number": n})
    for n in range(0, 3000, 2):
        buffer.delete(simple, n)
        if n % 4:
            buffer.insert(simple, {"id": n, "text": "again"})
    buffer.flush()
    odd = {"amount": Decimal("1.5"), "count": 6, "text": "new"}
    assert buffer.get(simple, 1) == {"id": 1} | odd
    assert buffer.get(simple, 2) == {"id": 2, "amount": None, "count": 5, "text": "again"}
    assert connection.scalar(select(sa.func.count()).select_from(simple)) == 2250
    assert connection.scalar(select(sa.func.count()).select_from(pair)) == 3000


def test_a_schema_and_odd_names_are_quoted(connection: Connection) -> None:
    schema = "main" if connection.dialect.name == "sqlite" else "Odd Schema"
    if schema != "main":
        connection.execute(sa.schema.CreateSchema(schema))
    table = Table(
        "select",
        MetaData(),
        Column("order by", sa.Integer, primary_key=True),
        Column("100 %", sa.Integer),
        Column('a "quote"', sa.Text),
        schema=schema,
    )
    table.create(connection)
    buffer = WriteBuffer(connection)
    buffer.insert(table, {"order by": 1, "100 %": 1})
    buffer.put(table, {"order by": 2, "100 %": 1})
    buffer.flush()
    buffer.add(table, 1, {"100 %": 1})
    buffer.put(table, {"order by": 2, 'a "quote"': "x"})
    buffer.flush()
    buffer.delete(table, 2)
    assert buffer.get(table, 1) == {"order by": 1, "100 %": 2, 'a "quote"': None}
    buffer.flush()
    assert buffer.get(table, 2) is None


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
def test_types_without_arrays_of_their_own(connection: Connection) -> None:
    """What unnest cannot take apart is written row by row."""
    table = Table(
        "arrays",
        MetaData(),
        Column("id", sa.Integer, primary_key=True),
        Column("list", sa.ARRAY(sa.Integer)),
        Column("n", sa.Integer),
    )
    table.create(connection)
    buffer = WriteBuffer(connection)
    buffer.insert(table, {"id": 1, "list": [1, 2], "n": 1})
    buffer.put(table, {"id": 2, "list": [], "n": 1})
    buffer.flush()
    buffer.update(table, 1, {"list": [3]})
    buffer.add(table, 1, {"n": 1})
    buffer.flush()
    assert [tuple(row.values()) for row in rows_of(connection, table)] == [(1, [3], 2), (2, [], 1)]
    buffer.update(table, 3, {"list": [3]})
    with pytest.raises(RowNotFoundError):
        buffer.flush()
