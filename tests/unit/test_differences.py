"""What differs between two tables of one name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    DateTime,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Table,
    create_engine,
    text,
)
from sqlalchemy.types import TypeEngine

from eventstore import Difference
from eventstore.projections.differences import differences


@pytest.fixture
def db() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def keyed(**types: TypeEngine[Any] | type[TypeEngine[Any]]) -> Table:
    columns = (Column(name, type) for name, type in types.items())
    return Table("things", MetaData(), Column("id", Integer, primary_key=True), *columns)


def bare(**types: TypeEngine[Any] | type[TypeEngine[Any]]) -> Table:
    columns = (Column(name, type) for name, type in types.items())
    return Table("things", MetaData(), *columns)


def made(db: Connection, table: Table, schema: str, rows: list[dict[str, Any]]) -> None:
    copy = table.to_metadata(MetaData(), schema=schema)
    copy.create(db, checkfirst=False)
    if rows:
        db.execute(copy.insert(), rows)


def compared(
    db: Connection,
    table: Table,
    living: list[dict[str, Any]],
    rebuilt: list[dict[str, Any]],
    *,
    before: Table | None = None,
    limit: int = 100,
) -> list[tuple[Any, Any]]:
    """Pairs of a living and a rebuilt row. `before` is what the living table is declared as."""
    made(db, table if before is None else before, "main", living)
    made(db, table, "temp", rebuilt)
    found = differences(db, [table], "temp", "main", limit)
    assert {d.table for d in found} <= {"things"}
    return [(d.living, d.rebuilt) for d in found]


def test_equal_tables_do_not_differ(db: Connection) -> None:
    rows = [{"id": 1, "name": "a"}, {"id": 2, "name": None}]
    assert compared(db, keyed(name=String), rows, rows) == []


def test_rows_of_one_key_are_put_side_by_side(db: Connection) -> None:
    a, b, c = ({"id": n, "name": "x"} for n in (1, 2, 3))
    changed = {"id": 1, "name": "y"}
    assert compared(db, keyed(name=String), [a, b], [changed, c]) == [
        (a, changed),
        (None, c),
        (b, None),
    ]


@pytest.mark.parametrize(("living", "rebuilt"), [(None, ""), ("", None), ("a", "A"), ("a", "a ")])
def test_what_is_nearly_the_same_is_not(db: Connection, living: Any, rebuilt: Any) -> None:
    was, becomes = {"id": 1, "name": living}, {"id": 1, "name": rebuilt}
    assert compared(db, keyed(name=String), [was], [becomes]) == [(was, becomes)]


@pytest.mark.parametrize(
    ("living", "rebuilt", "same"),
    [
        (0.1 + 0.2, 0.3, True),
        (0.1 + 0.2 - 0.3, 0.0, True),
        (1e15 + 0.3, 1e15, True),
        (1.0, 1.000001, False),
        (0.0, None, False),
        (None, 0.0, False),
        (None, None, True),
        (float("inf"), float("inf"), True),
        (float("inf"), 1.0, False),
        (1.0, float("inf"), False),
        (1.0, -1.0, False),
    ],
)
@pytest.mark.parametrize("type", [Float, Numeric(20, 4, asdecimal=False)])
def test_numbers_in_floating_point_may_differ_by_their_noise(
    db: Connection, type: Any, living: Any, rebuilt: Any, same: bool
) -> None:
    rows = [{"id": 1, "n": living}], [{"id": 1, "n": rebuilt}]
    assert bool(compared(db, keyed(n=type), *rows)) is not same


def test_whole_numbers_may_not(db: Connection) -> None:
    rows = [{"id": 1, "n": 10**15}], [{"id": 1, "n": 10**15 + 1}]
    assert len(compared(db, keyed(n=Integer), *rows)) == 1


def test_values_are_shown_as_they_are_declared(db: Connection) -> None:
    from datetime import datetime

    row = {"id": 1, "d": {"a": [1, None]}, "t": datetime(2026, 3, 1), "b": b"\0", "f": True}
    table = keyed(d=JSON, t=DateTime, b=LargeBinary, f=Boolean)
    assert compared(db, table, [row], [{**row, "f": False}]) == [(row, {**row, "f": False})]


def test_rows_without_a_key_are_counted(db: Connection) -> None:
    a, b, none = {"n": 1, "d": {"x": 1}}, {"n": 2, "d": None}, {"n": None, "d": {"x": 1}}
    table = bare(n=Integer, d=JSON)
    found = compared(db, table, [a, a, b, none], [none, a, b, b])
    assert sorted(
        (was and was["n"], becomes and becomes["n"]) for was, becomes in found if was
    ) == [(1, None)]
    assert [becomes["n"] for was, becomes in found if becomes] == [2]
    assert len(found) == 2


def test_only_what_both_have_is_compared(db: Connection) -> None:
    before = keyed(name=String, gone=String)
    rows = [{"id": 1, "name": "a", "gone": "x"}], [{"id": 1, "name": "a", "new": "y"}]
    assert compared(db, keyed(name=String, new=String), *rows, before=before) == []


def test_a_table_that_was_not_there_is_left_out(db: Connection) -> None:
    table = keyed(name=String)
    made(db, table, "temp", [{"id": 1, "name": "a"}])
    assert differences(db, [table], "temp", "main", 10) == []


def test_a_column_of_another_type_is_compared_as_text(db: Connection) -> None:
    rows = (
        [{"id": 1, "n": 1}, {"id": 2, "n": 2}],
        [{"id": 1, "n": "1"}, {"id": 2, "n": "two"}],
    )
    assert compared(db, keyed(n=String), *rows, before=keyed(n=Integer)) == [
        ({"id": 2, "n": 2}, {"id": 2, "n": "two"})
    ]


def test_a_table_of_another_key_is_compared_row_by_row(db: Connection) -> None:
    columns = Column("id", Integer), Column("code", String, primary_key=True)
    before = Table("things", MetaData(), *columns)
    after = keyed(code=String)
    rows = [{"id": 1, "code": "a"}, {"id": 2, "code": "b"}]
    changed = {"id": 2, "code": "c"}
    assert compared(db, after, rows, [rows[0], changed], before=before) == [(rows[1], changed)]
    db.execute(text("DROP TABLE main.things"))
    made(db, bare(code=String), "main", [{"code": "a"}, {"code": "a"}])
    found = differences(db, [after], "temp", "main", 10)
    assert [(d.living, d.rebuilt) for d in found] == [
        ({"code": "a"}, None),
        (None, {"code": "c"}),
    ]


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("table", [keyed(name=String), bare(id=Integer, name=String)])
def test_no_more_are_found_than_were_asked_for(db: Connection, table: Table, limit: int) -> None:
    living = [{"id": n, "name": "x"} for n in range(5)]
    rebuilt = [{"id": n, "name": "y"} for n in range(3, 8)]
    assert len(compared(db, table, living, rebuilt, limit=limit)) == limit


def test_names_may_need_quotes(db: Connection) -> None:
    table = Table(
        'odd "table": 5%',
        MetaData(),
        Column("Odd Key", Integer, primary_key=True),
        Column("select", String),
    )
    made(db, table, "main", [{"Odd Key": 1, "select": "x"}])
    made(db, table, "temp", [{"Odd Key": 1, "select": "y"}])
    (found,) = differences(db, [table], "temp", "main", 10)
    row = {"Odd Key": 1, "select": "x"}
    assert found == Difference('odd "table": 5%', row, {**row, "select": "y"})
    assert str(found) == f"{found.table}: {found.living} -> {found.rebuilt}"
