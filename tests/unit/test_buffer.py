"""The write buffer: what it merges, and what it refuses at the call."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Connection,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    select,
)
from sqlalchemy.exc import IntegrityError

from eventstore.errors import InvalidArgumentError, RowNotFoundError
from eventstore.projections.buffer import WriteBuffer

metadata = MetaData()
accounts = Table(
    "accounts",
    metadata,
    Column("id", String, primary_key=True),
    Column("amount", Integer),
    Column("moves", Integer, nullable=False, server_default="0"),
    Column("owner", String, default="nobody"),
)
seats = Table(
    "seats",
    metadata,
    Column("row", Integer, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("taken", Integer),
)
notes = Table("notes", metadata, Column("text", String))
parents = Table("parents", metadata, Column("id", Integer, primary_key=True))
children = Table(
    "children",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("parent", ForeignKey("parents.id", ondelete="CASCADE")),
)


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys = on"))
    metadata.create_all(engine)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def buffer(connection: Connection) -> WriteBuffer:
    return WriteBuffer(connection)


@pytest.fixture
def written(connection: Connection) -> list[tuple[str, int]]:
    """The verb of each statement from now on, and how many rows it wrote."""
    seen: list[tuple[str, int]] = []

    @event.listens_for(connection, "before_cursor_execute")
    def saw(_c: Any, _cursor: Any, text: str, parameters: Any, _context: Any, many: bool) -> None:
        seen.append((text.split()[0], len(parameters) if many else 1))

    return seen


def amount(connection: Connection, id: str = "ann") -> int | None:
    return connection.execute(select(accounts.c.amount).where(accounts.c.id == id)).scalar_one()


def ann(connection: Connection, amount: int | None = 1) -> None:
    connection.execute(accounts.insert(), {"id": "ann", "amount": amount})


def test_nothing_is_written_before_the_flush(
    connection: Connection, buffer: WriteBuffer, written: list[tuple[str, int]]
) -> None:
    assert not buffer.pending
    buffer.insert(accounts, {"id": "ann", "amount": 1})
    assert buffer.pending
    assert written == []
    buffer.flush()
    assert not buffer.pending
    assert amount(connection) == 1


def test_an_empty_flush_runs_no_statement(
    buffer: WriteBuffer, written: list[tuple[str, int]]
) -> None:
    buffer.flush()
    assert written == []


def test_changes_of_a_row_are_written_once(
    connection: Connection, buffer: WriteBuffer, written: list[tuple[str, int]]
) -> None:
    buffer.insert(accounts, {"id": "ann", "amount": 1})
    for _ in range(10):
        buffer.add(accounts, "ann", {"amount": 2})
    buffer.update(accounts, "ann", {"owner": "ann"})
    buffer.put(accounts, {"id": "ann", "moves": 3})
    buffer.flush()
    assert written == [("INSERT", 1)]
    assert connection.execute(select(accounts)).one() == ("ann", 21, 3, "ann")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([{"add": 2}, {"add": 3}], 6),
        ([{"update": 5}, {"add": 3}], 8),
        ([{"add": 3}, {"update": 5}], 5),
        ([{"add": 3}, {"put": 5}, {"add": 1}], 6),
        ([{"update": None}, {"add": 3}], None),
        ([{"add": 3}, {"add": None}, {"add": 3}], None),
        ([{"put": 5}, {"update": 6}, {"add": 1}], 7),
    ],
)
def test_changes_of_a_stored_row_merge_into_one_statement(
    connection: Connection,
    buffer: WriteBuffer,
    written: list[tuple[str, int]],
    changes: list[dict[str, int | None]],
    expected: int | None,
) -> None:
    ann(connection)
    written.clear()
    for change in changes:
        for verb, value in change.items():
            if verb == "put":
                buffer.put(accounts, {"id": "ann", "amount": value})
            else:
                getattr(buffer, verb)(accounts, "ann", {"amount": value})
    buffer.flush()
    assert len(written) == 1
    assert amount(connection) == expected


def test_rows_with_the_same_columns_share_a_statement(
    buffer: WriteBuffer, written: list[tuple[str, int]]
) -> None:
    buffer.insert(accounts, {"id": "ann", "amount": 1})
    buffer.insert(accounts, {"amount": 1, "id": "bob"})
    buffer.insert(accounts, {"id": "cleo", "moves": 1})
    buffer.flush()
    assert written == [("INSERT", 2), ("INSERT", 1)]


def test_adding_to_null_leaves_null(connection: Connection, buffer: WriteBuffer) -> None:
    ann(connection, None)
    buffer.add(accounts, "ann", {"amount": 1})
    buffer.insert(accounts, {"id": "bob"})
    buffer.add(accounts, "bob", {"amount": 1, "moves": 2})
    buffer.flush()
    assert amount(connection) is None
    rest = select(accounts).where(accounts.c.id == "bob")
    assert connection.execute(rest).one() == ("bob", None, 2, "nobody")


def test_a_put_of_a_stored_row_leaves_its_other_columns(
    connection: Connection, buffer: WriteBuffer
) -> None:
    connection.execute(accounts.insert(), {"id": "ann", "amount": 1, "owner": "ann"})
    buffer.put(accounts, {"id": "ann", "moves": 7})
    buffer.add(accounts, "ann", {"amount": 1})
    buffer.flush()
    assert connection.execute(select(accounts)).one() == ("ann", 2, 7, "ann")


def test_a_row_that_was_deleted_can_be_inserted_again(
    connection: Connection, buffer: WriteBuffer
) -> None:
    connection.execute(accounts.insert(), {"id": "ann", "amount": 1, "owner": "ann"})
    buffer.delete(accounts, "ann")
    buffer.insert(accounts, {"id": "ann", "amount": 2})
    buffer.flush()
    assert connection.execute(select(accounts)).one() == ("ann", 2, 0, "nobody")


def test_a_row_inserted_and_deleted_leaves_nothing_and_must_have_been_new(
    connection: Connection, buffer: WriteBuffer
) -> None:
    buffer.insert(accounts, {"id": "ann"})
    buffer.delete(accounts, "ann")
    buffer.flush()
    assert connection.execute(select(accounts)).all() == []
    ann(connection)
    buffer.insert(accounts, {"id": "ann"})
    buffer.delete(accounts, "ann")
    with pytest.raises(IntegrityError):
        buffer.flush()


def test_an_update_before_a_delete_needs_the_row(buffer: WriteBuffer) -> None:
    buffer.add(accounts, "ann", {"amount": 1})
    buffer.delete(accounts, "ann")
    with pytest.raises(RowNotFoundError):
        buffer.flush()


def test_a_second_insert_is_an_integrity_error(buffer: WriteBuffer) -> None:
    buffer.put(accounts, {"id": "ann"})
    with pytest.raises(IntegrityError):
        buffer.insert(accounts, {"id": "ann"})
    assert not buffer.pending


def test_a_missing_row_is_named(connection: Connection, buffer: WriteBuffer) -> None:
    connection.execute(seats.insert(), {"row": 1, "number": 1, "taken": 0})
    buffer.add(seats, (1, 1), {"taken": 1})
    buffer.add(seats, (1, 2), {"taken": 1})
    buffer.add(seats, (1, 3), {"taken": 1})
    with pytest.raises(RowNotFoundError, match=r"'seats' has no row \(1, 2\)") as caught:
        buffer.flush()
    assert (caught.value.table, caught.value.key) == ("seats", (1, 2))
    assert not buffer.pending
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.table, copy.key) == ("seats", (1, 2))


@pytest.mark.parametrize("verb", ["update", "add"])
def test_a_change_of_a_row_just_deleted_is_refused_at_once(buffer: WriteBuffer, verb: str) -> None:
    buffer.delete(accounts, "ann")
    with pytest.raises(RowNotFoundError):
        getattr(buffer, verb)(accounts, "ann", {"amount": 1})


def test_an_update_of_nothing_still_needs_the_row(
    connection: Connection, buffer: WriteBuffer
) -> None:
    ann(connection)
    buffer.update(accounts, "ann", {})
    buffer.flush()
    buffer.update(accounts, "bob", {})
    with pytest.raises(RowNotFoundError):
        buffer.flush()


def test_discard_forgets(connection: Connection, buffer: WriteBuffer) -> None:
    buffer.insert(accounts, {"id": "ann"})
    buffer.insert(notes, {"text": "a"})
    buffer.discard()
    assert not buffer.pending
    buffer.flush()
    assert connection.execute(select(accounts)).all() == []
    assert buffer.get(accounts, "ann") is None


def test_a_table_without_primary_key_takes_inserts(
    connection: Connection, buffer: WriteBuffer
) -> None:
    buffer.insert(notes, {"text": "a"})
    buffer.insert(notes, {"text": "a"})
    buffer.insert(notes, {})
    buffer.flush()
    assert sorted(connection.scalars(select(notes.c.text)), key=str) == [None, "a", "a"]


def test_what_the_caller_changes_later_is_not_written(
    connection: Connection, buffer: WriteBuffer
) -> None:
    values: dict[str, Any] = {"id": "ann", "amount": 1}
    buffer.insert(accounts, values)
    values["amount"] = 2
    row = buffer.get(accounts, "ann")
    buffer.flush()
    assert row is None or row.update(amount=3) is None
    assert amount(connection) == 1


def test_tables_are_written_in_the_order_of_their_foreign_keys(
    connection: Connection, buffer: WriteBuffer
) -> None:
    buffer.insert(children, {"id": 1, "parent": 1})
    buffer.insert(parents, {"id": 1})
    buffer.flush()
    buffer.delete(parents, 1)
    buffer.delete(children, 1)
    buffer.flush()
    assert connection.execute(select(parents)).all() == []


def test_a_delete_that_cascades_finds_what_came_before_it(
    connection: Connection, buffer: WriteBuffer
) -> None:
    buffer.insert(parents, {"id": 1})
    buffer.put(children, {"id": 1, "parent": 1})
    buffer.delete(parents, 1)
    buffer.insert(parents, {"id": 1})
    buffer.flush()
    assert connection.execute(select(children)).all() == []


def test_python_defaults_that_are_called(connection: Connection) -> None:
    numbers = iter(range(5))
    table = Table(
        "numbered",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("number", Integer, default=lambda: next(numbers)),
    )
    table.create(connection)
    buffer = WriteBuffer(connection)
    buffer.insert(table, {"id": 1})
    buffer.put(table, {"id": 2})
    buffer.put(table, {"id": 3, "number": 9})
    assert buffer.get(table, 2) == {"id": 2, "number": 1}
    buffer.flush()
    assert connection.execute(select(table)).all() == [(1, 0), (2, 1), (3, 9)]
    buffer.put(table, {"id": 3})
    buffer.flush()
    assert buffer.get(table, 3) == {"id": 3, "number": 9}


def test_columns_go_by_their_keys(connection: Connection) -> None:
    table = Table(
        "keyed",
        MetaData(),
        Column("the id", Integer, key="id", primary_key=True),
        Column("100 %", Integer, key="share"),
    )
    table.create(connection)
    buffer = WriteBuffer(connection)
    buffer.insert(table, {"id": 1, "share": 1})
    buffer.flush()
    buffer.add(table, 1, {"share": 1})
    buffer.put(table, {"id": 2, "share": 5})
    buffer.flush()
    assert buffer.get(table, 1) == {"id": 1, "share": 2}
    assert buffer.get(table, 2) == {"id": 2, "share": 5}


Call = Callable[[WriteBuffer], Any]


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda b: b.insert(accounts, {"id": "ann", "colour": 1}), "'colour': is no column"),
        (lambda b: b.put(accounts, {"id": "ann", "colour": 1}), "'colour': is no column"),
        (lambda b: b.update(accounts, "ann", {"colour": 1}), "'colour': is no column"),
        (lambda b: b.add(accounts, "ann", {"colour": 1}), "'colour': is no column"),
        (lambda b: b.add(accounts, "ann", {"owner": 1}), "is no column of numbers"),
        (lambda b: b.update(accounts, "ann", {"id": "bob"}), "is in the primary key"),
        (lambda b: b.add(seats, (1, 2), {"row": 1}), "is in the primary key"),
        (lambda b: b.insert(accounts, {"amount": 1}), "has not 'id'"),
        (lambda b: b.put(seats, {"row": 1}), "has not 'number'"),
        (lambda b: b.insert(accounts, {"id": None}), "has None"),
        (lambda b: b.put(seats, {"row": 1, "number": None}), "has None"),
        (lambda b: b.update(seats, 1, {"taken": 1}), "a tuple of row, number"),
        (lambda b: b.add(seats, (1, 2, 3), {"taken": 1}), "a tuple of row, number"),
        (lambda b: b.delete(accounts, ("ann",)), "a value of 'id' alone"),
        (lambda b: b.get(seats, (1,)), "a tuple of row, number"),
        (lambda b: b.get(accounts, ["ann"]), "not hashable"),
        (lambda b: b.put(notes, {"text": "a"}), "no primary key"),
        (lambda b: b.update(notes, "a", {"text": "a"}), "no primary key"),
        (lambda b: b.add(notes, "a", {"text": 1}), "no primary key"),
        (lambda b: b.delete(notes, "a"), "no primary key"),
        (lambda b: b.get(notes, "a"), "no primary key"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused_at_once(
    buffer: WriteBuffer, call: Call, problem: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        call(buffer)
    assert not buffer.pending


def test_an_amount_of_another_type_is_refused(buffer: WriteBuffer) -> None:
    buffer.add(accounts, "ann", {"amount": 1})
    with pytest.raises(InvalidArgumentError, match="cannot be added"):
        buffer.add(accounts, "ann", {"amount": "1"})
