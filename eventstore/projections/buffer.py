"""Writes of a projection's handlers, merged in memory until they are flushed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import sqlalchemy as sa
from sqlalchemy import Connection, Dialect, Table
from sqlalchemy.schema import sort_tables_and_constraints

from eventstore.errors import InvalidArgumentError, RowNotFoundError
from eventstore.projections.statements import Key, Names, Statement, StatementWriter, plan_of

Values: TypeAlias = dict[str, Any]

#: What is pending for a row that must be there, one that may be, one that must not be there (or no
#: longer), one that is deleted, and one that was inserted and deleted again.
Kind: TypeAlias = Literal["update", "put", "insert", "gone", "brief"]


class WriteBuffer:
    """Rows to be written, merged by primary key until they are flushed.

        buffer.add(balances, event.account, {"amount": event.amount})

    The outcome is that of running each call at once, as SQL, in the order of the calls, but a
    flush writes a row once, however often it was changed. An error in what is stored (a row that
    is missing, or there already) may come as late as the flush. After a flush that failed nothing
    is pending, and the transaction is to be rolled back.

    `key` is the primary key's value, or a tuple in the order of the table's primary key. Columns
    go by their keys in `table.c`. Values are plain ones, not SQL, of the column's own type; a row
    goes by the same key always (not "a" and "A", nor 1 and "1", even where the database takes them
    for the same). They are kept, not copied: do not change a list after you gave it.

    What merging changes:

    - A flush has an order of its own: children's deletes before their parents', parents' rows
      before their children's; in a table deletes, updates, puts, inserts. In a table with a
      unique constraint beside its primary key, or with foreign keys, that order can break a
      constraint that the order of the calls would have kept: on an IntegrityError or
      RowNotFoundError, roll back and replay with a flush after each event. A value that is
      replaced before the flush is not checked at all.
    - Amounts are summed before they are rounded to the column's scale, and floats in another
      order.
    - Python's defaults are taken when the row is given; `onupdate` is not run; triggers see what
      is flushed.
    """

    def __init__(self, connection: Connection, relatives: Sequence[Table] = ()) -> None:
        """A buffer for a connection in an open transaction, which stays the caller's.

        `relatives` are tables whose foreign keys may refer to those that are written.
        """
        self._connection = connection
        self._relatives = relatives
        self._tables: dict[Table, _Rows] = {}
        self._order: list[_Rows] | None = None
        #: Whether there is anything to flush.
        self.pending = False

    def insert(self, table: Table, values: Mapping[str, Any]) -> None:
        """A new row. If there is one with its primary key, the flush raises IntegrityError.

        Raises InvalidArgumentError.
        """
        rows = self._tables.get(table) or self._open(table)
        columns = tuple(values)
        if columns not in rows.checked:
            rows.check(columns)
        new = rows.with_defaults(values)
        if not rows.primary_key:
            rows.loose.append(new)
        else:
            key = rows.key_of(values)
            row = rows.at(key)
            if row is None:
                rows.begin(key, "insert", new, _NOTHING)
            elif row.kind in ("gone", "brief"):
                row.come_back(new)
            else:
                # It is there already: let the database say so, and with its own words.
                self.flush()
                rows.begin(key, "insert", new, _NOTHING)
                self.pending = True
                self.flush()
                return
        self.pending = True

    def put(self, table: Table, values: Mapping[str, Any]) -> None:
        """Insert a row, or set those columns of the row that has this primary key.

        As with SQL's upsert, a column that must have a value needs it here (or a default), even
        if the row is there. Raises InvalidArgumentError.
        """
        rows = self._tables.get(table) or self._open(table)
        columns = tuple(values)
        if columns not in rows.checked:
            rows.check(columns)
        if not rows.primary_key:
            raise _refused(table, "has no primary key: only insert works")
        key = rows.key_of(values)
        row = rows.at(key)
        if row is None:
            row = rows.begin(key, "put", dict(values), _NOTHING)
            if rows.plan.defaults:
                new = rows.with_defaults(values)
                row.defaults = {name: new[name] for name in new if name not in values}
        elif row.kind in ("gone", "brief"):
            row.come_back(rows.with_defaults(values))
        else:
            row.set({name: values[name] for name in values if name not in rows.primary_key})
        self.pending = True

    def update(self, table: Table, key: Key, values: Mapping[str, Any]) -> None:
        """Set columns of a row. If there is none, the flush, if not this, raises RowNotFoundError.

        Raises InvalidArgumentError.
        """
        rows = self._tables.get(table) or self._open(table)
        row = rows.at(key)
        if not rows.settable.issuperset(values):
            raise rows.unknown_column(values, rows.settable)
        if row is None:
            rows.begin(key, "update", dict(values), _NOTHING)
            self.pending = True
        else:
            rows.require(key, row)
            row.set(values)

    def add(self, table: Table, key: Key, amounts: Mapping[str, Any]) -> None:
        """Add numbers to columns of a row; NULL stays NULL.

        If there is no such row, the flush, if not this, raises RowNotFoundError. Raises
        InvalidArgumentError.
        """
        # By far the commonest call, so it does for itself what others call for.
        rows = self._tables.get(table) or self._open(table)
        try:
            row = rows.pending.get(key)
        except TypeError:
            row = rows.at(key)  # which says what is wrong with the key
        if not rows.numbers.issuperset(amounts):
            raise rows.unknown_column(amounts, rows.numbers)
        if row is None:
            rows.begin(key, "update", {}, dict(amounts))
            self.pending = True
            return
        sums = row.sums
        if sums is None:
            raise RowNotFoundError(table.fullname, key)
        for name, amount in amounts.items():
            try:
                sums[name] = sums[name] + amount
            except (KeyError, TypeError):
                row.add(name, amount, rows.plan.unknown)

    def delete(self, table: Table, key: Key) -> None:
        """Delete a row, if it is there. Raises InvalidArgumentError."""
        rows = self._tables.get(table) or self._open(table)
        if rows.cascades and self.pending:
            # The delete reaches rows of other tables: those as they are now, not as they will be.
            self.flush()
        row = rows.at(key)
        if row is None:
            row = rows.begin(key, "gone", {}, _NOTHING)
            row.removed = True
            self.pending = True
        else:
            row.delete()

    def get(self, table: Table, key: Key) -> Values | None:
        """The row as it will be once it is flushed, or None: a copy of it.

        Values that are pending are as they were given: not yet rounded, say. A pending row with
        a default that only the database knows is flushed first. Raises RowNotFoundError,
        InvalidArgumentError.
        """
        rows = self._tables.get(table) or self._open(table)
        row = rows.at(key)
        if row is None:
            return rows.stored(self._connection, key)
        if row.kind in ("gone", "brief"):
            return None
        stored = None
        if row.kind != "insert":
            stored = rows.stored(self._connection, key)
            if stored is None and row.kind == "update":
                raise RowNotFoundError(table.fullname, key)
        if stored is None:
            new = {**row.defaults, **row.values}
            if row.adds or not rows.plan.unknown.issubset(new):
                # The database knows its defaults, we do not.
                self.flush()
                return rows.stored(self._connection, key)
            stored = dict.fromkeys(rows.plan.columns)
            stored.update(new)
        else:
            stored.update(row.values)
            for name, amount in row.adds.items():
                stored[name] = _sum(stored[name], amount)
        return copy.deepcopy(stored)

    def flush(self) -> None:
        """Write everything that is pending.

        Raises RowNotFoundError for an update of a row that is not there, and SQLAlchemy's errors,
        IntegrityError among them.
        """
        if not self.pending:
            return
        try:
            batches = [
                rows.batch(self._connection)
                for rows in self._in_order()
                if rows.pending or rows.loose
            ]
            for batch in reversed(batches):
                batch.remove()
            for batch in batches:
                batch.write()
            for batch in reversed(batches):
                batch.remove_brief()
        finally:
            self.discard()

    @property
    def size(self) -> int:
        """How many rows are pending."""
        return sum(len(rows.pending) + len(rows.loose) for rows in self._tables.values())

    def lend(self) -> Connection:
        """The connection, for other statements. What is pending is written first."""
        if self.pending:
            self.flush()
        return self._connection

    def discard(self) -> None:
        """Forget what is pending, as after a rollback."""
        for rows in self._tables.values():
            rows.pending = {}
            rows.loose = []
        self.pending = False

    def _open(self, table: Table) -> _Rows:
        rows = self._tables[table] = _Rows(table, self._connection.dialect, self._relatives)
        self._order = None
        return rows

    def _in_order(self) -> list[_Rows]:
        """The tables, those that are referred to before those that refer to them."""
        if self._order is None:
            tables = list(self._tables)
            if len(tables) > 1 and any(table.foreign_keys for table in tables):
                # Unlike sort_tables, this does not warn of a cycle, in which no order is right.
                ordered = [t for t, _ in sort_tables_and_constraints(tables)]  # type: ignore[no-untyped-call]
                tables = [table for table in ordered if table is not None]
            self._order = [self._tables[table] for table in tables]
        return self._order


class _Row:
    """A row's pending changes: perhaps a delete, then `values`, then `adds`."""

    __slots__ = ("adds", "defaults", "existed", "kind", "removed", "sums", "values")

    def __init__(self, kind: Kind, values: Values, adds: Values) -> None:
        self.kind = kind
        self.values = values
        self.adds = adds
        #: Where most of what is added goes: to the values, if there are any. None if it is gone.
        self.sums: Values | None = None if kind == "gone" else values or adds
        #: What a put sets only if it inserts.
        self.defaults: Values = _NOTHING
        #: Whether a delete comes first, and whether it is an error if it finds no row.
        self.removed = False
        self.existed = False

    def set(self, values: Mapping[str, Any]) -> None:
        self.values.update(values)
        if self.adds:
            self.adds = {name: self.adds[name] for name in self.adds if name not in values}
        if self.defaults:
            self.defaults = {n: self.defaults[n] for n in self.defaults if n not in values}
        self.sums = self.values or self.adds

    def add(self, name: str, amount: Any, unknown: frozenset[str]) -> None:
        values, adds = self.values, self.adds
        if name in values:
            values[name] = _sum(values[name], amount)
        elif name in adds:
            adds[name] = _sum(adds[name], amount)
        elif self.kind != "insert" or name in unknown:
            if adds is _NOTHING:
                adds = self.adds = {}
                self.sums = values or adds
            adds[name] = amount
        # Else the column is NULL and stays so.

    def delete(self) -> None:
        if self.kind == "insert" and not self.removed:
            self.kind = "brief"
        elif self.kind != "brief":
            self.existed = self.existed or self.kind == "update"
            self.removed = True
            self.kind, self.values = "gone", {}
        self.adds = self.defaults = _NOTHING
        self.sums = None

    def come_back(self, values: Values) -> None:
        """Be inserted again, after a delete."""
        self.kind, self.values, self.sums = "insert", values, values


#: Shared by the rows that have none; never changed.
_NOTHING: Final[Values] = {}


def _sum(value: Any, amount: Any) -> Any:
    if value is None or amount is None:
        return None
    try:
        return value + amount
    except TypeError as error:
        raise InvalidArgumentError(
            "amounts", amount, f"cannot be added to {value!r} ({error}): use the column's own type"
        ) from None


class _Rows:
    """The pending rows of one table."""

    def __init__(self, table: Table, dialect: Dialect, relatives: Sequence[Table]) -> None:
        self.table = table
        self.plan = plan_of(table, dialect, relatives)
        self.primary_key: Names = self.plan.primary_key
        self.parts = len(self.primary_key)
        self.key_of: Callable[[Mapping[str, Any]], Key] = self.plan.key_of
        self.settable = self.plan.settable
        self.numbers = self.plan.numbers
        self.cascades = self.plan.cascades
        #: The sets of columns that make a row.
        self.checked = self.plan.checked
        self.pending: dict[Key, _Row] = {}
        #: New rows of a table without a primary key.
        self.loose: list[Values] = []
        self._select: Any = None

    def at(self, key: Key) -> _Row | None:
        try:
            return self.pending.get(key)
        except TypeError:
            raise InvalidArgumentError("key", key, "is not hashable, so no key") from None

    def begin(self, key: Key, kind: Kind, values: Values, adds: Values) -> _Row:
        """The first pending change of a row. Raises InvalidArgumentError."""
        if self.parts != 1 or key is None or isinstance(key, tuple):
            self._check_key(key)
        row = self.pending[key] = _Row(kind, values, adds)
        return row

    def require(self, key: Key, row: _Row) -> None:
        if row.kind in ("gone", "brief"):
            raise RowNotFoundError(self.table.fullname, key)

    def _check_key(self, key: Key) -> None:
        """Refuse a key that can be none of this table's."""
        names = self.primary_key
        if not names:
            raise _refused(self.table, "has no primary key: only insert works")
        if len(names) == 1:
            if isinstance(key, tuple):
                raise InvalidArgumentError("key", key, f"is to be a value of {names[0]!r} alone")
            parts: tuple[Any, ...] = (key,)
        elif isinstance(key, tuple) and len(key) == len(names):
            parts = key
        else:
            raise InvalidArgumentError("key", key, f"is to be a tuple of {', '.join(names)}")
        if None in parts:
            raise InvalidArgumentError("key", key, "has None in it")

    def check(self, columns: Names) -> None:
        """Refuse a set of columns that cannot make a row; remember one that can."""
        if not self.plan.known.issuperset(columns):
            raise self.unknown_column(columns, self.plan.known)
        for name in self.primary_key:
            if name not in columns:
                raise InvalidArgumentError(
                    "values", columns, f"has not {name!r}, of the primary key of {self.table.name}"
                )
        self.checked.add(columns)

    def unknown_column(self, names: Iterable[str], allowed: frozenset[str]) -> InvalidArgumentError:
        """The error for the first of the names that is not allowed."""
        name = next(name for name in names if name not in allowed)
        if not self.primary_key:
            return _refused(self.table, "has no primary key: only insert works")
        if name not in self.plan.known:
            reason = f"is no column of {self.table.name}: it has {', '.join(self.plan.columns)}"
        elif name in self.primary_key:
            reason = "is in the primary key: delete the row and insert another"
        else:
            reason = "is no column of numbers"
        return InvalidArgumentError("column", name, reason)

    def with_defaults(self, values: Mapping[str, Any]) -> Values:
        """The values as a new row, with Python's defaults for columns that are not given."""
        new = dict(values)
        for name, default in self.plan.defaults:
            if name not in new:
                new[name] = default()
        return new

    def stored(self, connection: Connection, key: Key) -> Values | None:
        """The row as it is in the database."""
        self._check_key(key)
        if self._select is None:
            columns = self.table.c
            self._select = sa.select(*(column.label(column.key) for column in columns)).where(
                *(columns[name] == sa.bindparam(f"key_{i}") for i, name in self._numbered())
            )
        parts = key if self.parts > 1 else (key,)
        given = {f"key_{i}": parts[i] for i, _ in self._numbered()}
        found = connection.execute(self._select, given).mappings().one_or_none()
        return None if found is None else dict(found)

    def _numbered(self) -> Iterable[tuple[int, str]]:
        return enumerate(self.primary_key)

    def batch(self, connection: Connection) -> _Batch:
        return _Batch(self, connection)


class _Batch:
    """The pending rows of one table in groups, each of which one statement writes."""

    def __init__(self, rows: _Rows, connection: Connection) -> None:
        self._rows = rows
        self._connection = connection
        self._plan = rows.plan
        self._removed: list[Key] = []
        self._existed: list[Key] = []
        self._brief: list[Key] = []
        #: By which columns they set, and to which they add.
        self._updates: dict[tuple[Names, Names], list[tuple[Key, _Row]]] = {}
        self._late_adds: dict[tuple[Names, Names], list[tuple[Key, _Row]]] = {}
        #: By which columns they set, and which they have by default.
        self._puts: dict[tuple[Names, Names], list[Values]] = {}
        self._inserts: dict[Names, list[Values]] = {}
        for key in _sorted(rows.pending):
            self._take(key, rows.pending[key])
        for values in rows.loose:
            self._inserts.setdefault(self._names(values), []).append(values)

    def _take(self, key: Key, row: _Row) -> None:
        kind = row.kind
        if kind == "update":
            shape = self._names(row.values), self._names(row.adds)
            self._updates.setdefault(shape, []).append((key, row))
            return
        if row.removed:
            self._removed.append(key)
            if row.existed:
                self._existed.append(key)
        if kind == "put":
            shape = self._names(row.values), self._names(row.defaults)
            values = {**row.values, **row.defaults} if row.defaults else row.values
            self._puts.setdefault(shape, []).append(values)
        elif kind != "gone":
            self._inserts.setdefault(self._names(row.values), []).append(row.values)
            if kind == "brief":
                self._brief.append(key)
        if row.adds:
            self._late_adds.setdefault(((), self._names(row.adds)), []).append((key, row))

    def _names(self, values: Values) -> Names:
        """The columns of some values, in one order whatever theirs is."""
        names = tuple(values)
        ordered = self._plan.ordered.get(names)
        if ordered is None:
            ordered = self._plan.ordered[names] = tuple(sorted(names))
        return ordered

    def remove(self) -> None:
        if self._existed:
            # Once they are deleted nobody could say which was missing: touch them first.
            self._change(self._statement("update"), self._existed, [])
        if self._removed:
            self._statement("delete").run(self._connection, self._by_key(self._removed))

    def write(self) -> None:
        self._update(self._updates)
        for (names, defaults), puts in self._puts.items():
            self._insert(self._statement("put", names, defaults), names + defaults, puts)
        for names, inserts in self._inserts.items():
            self._insert(self._statement("insert", names), names, inserts)
        self._update(self._late_adds)

    def remove_brief(self) -> None:
        if self._brief:
            self._statement("delete").run(self._connection, self._by_key(self._brief))

    def _insert(self, statement: Statement, names: Names, rows: list[Values]) -> None:
        statement.run(self._connection, [[values[name] for values in rows] for name in names])

    def _update(self, groups: dict[tuple[Names, Names], list[tuple[Key, _Row]]]) -> None:
        for (names, adds), group in groups.items():
            columns = [[row.values[name] for _, row in group] for name in names]
            columns += [[row.adds[name] for _, row in group] for name in adds]
            keys = [key for key, _ in group]
            self._change(self._statement("update", names, adds), keys, columns)

    def _change(self, statement: Statement, keys: list[Key], columns: list[list[Any]]) -> None:
        """Run an update, and raise RowNotFoundError if one of its rows is not there."""
        if statement.run(self._connection, self._by_key(keys) + columns) != len(keys):
            for key in keys:
                if self._rows.stored(self._connection, key) is None:
                    raise RowNotFoundError(self._rows.table.fullname, key)

    def _by_key(self, keys: list[Key]) -> list[list[Any]]:
        if len(self._plan.primary_key) == 1:
            return [keys]
        return [list(column) for column in zip(*keys, strict=True)]

    def _statement(self, verb: str, names: Names = (), more: Names = ()) -> Statement:
        found = self._plan.statements.get((verb, names, more))
        if found is None:
            writer = StatementWriter(self._rows.table, self._connection.dialect)
            found = self._plan.statements[verb, names, more] = writer.statement(verb, names, more)
        return found


def _sorted(keys: Iterable[Key]) -> Iterable[Key]:
    """In order, so that two transactions lock common rows in the same one and do not deadlock."""
    try:
        return sorted(keys)
    except TypeError:
        return keys


def _refused(table: Table, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError("table", table.name, reason)
