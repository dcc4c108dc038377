"""Writes of a projection's handlers, merged in memory until they are flushed."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from operator import itemgetter
from typing import Any, Final, Literal, TypeAlias
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy import Column, Connection, Dialect, Table
from sqlalchemy.schema import sort_tables_and_constraints

from eventstore.errors import InvalidArgumentError, RowNotFoundError

#: The primary key's value, or a tuple of them.
Key: TypeAlias = Any
Values: TypeAlias = dict[str, Any]
Names: TypeAlias = tuple[str, ...]

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

    def __init__(self, connection: Connection) -> None:
        """A buffer for a connection in an open transaction, which stays the caller's."""
        self._connection = connection
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
                row.kind, row.values = "insert", new
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
            row.kind, row.values = "insert", rows.with_defaults(values)
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
        rows = self._tables.get(table) or self._open(table)
        row = rows.at(key)
        if not rows.numbers.issuperset(amounts):
            raise rows.unknown_column(amounts, rows.numbers)
        if row is None:
            rows.begin(key, "update", {}, dict(amounts))
            self.pending = True
        else:
            rows.require(key, row)
            row.add(amounts, rows.plan.unknown)

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

    def discard(self) -> None:
        """Forget what is pending, as after a rollback."""
        for rows in self._tables.values():
            rows.pending = {}
            rows.loose = []
        self.pending = False

    def _open(self, table: Table) -> _Rows:
        rows = self._tables[table] = _Rows(table, self._connection.dialect)
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

    __slots__ = ("adds", "defaults", "existed", "kind", "removed", "values")

    def __init__(self, kind: Kind, values: Values, adds: Values) -> None:
        self.kind = kind
        self.values = values
        self.adds = adds
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

    def add(self, amounts: Mapping[str, Any], unknown: frozenset[str]) -> None:
        values, adds = self.values, self.adds
        for name, amount in amounts.items():
            if name in values:
                values[name] = _sum(values[name], amount)
            elif name in adds:
                adds[name] = _sum(adds[name], amount)
            elif self.kind != "insert" or name in unknown:
                if adds is _NOTHING:
                    adds = self.adds = {}
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

    def __init__(self, table: Table, dialect: Dialect) -> None:
        self.table = table
        self.plan = _plan(table, dialect)
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

    def _insert(self, statement: _Statement, names: Names, rows: list[Values]) -> None:
        statement.run(self._connection, [[values[name] for values in rows] for name in names])

    def _update(self, groups: dict[tuple[Names, Names], list[tuple[Key, _Row]]]) -> None:
        for (names, adds), group in groups.items():
            columns = [[row.values[name] for _, row in group] for name in names]
            columns += [[row.adds[name] for _, row in group] for name in adds]
            keys = [key for key, _ in group]
            self._change(self._statement("update", names, adds), keys, columns)

    def _change(self, statement: _Statement, keys: list[Key], columns: list[list[Any]]) -> None:
        """Run an update, and raise RowNotFoundError if one of its rows is not there."""
        if statement.run(self._connection, self._by_key(keys) + columns) != len(keys):
            for key in keys:
                if self._rows.stored(self._connection, key) is None:
                    raise RowNotFoundError(self._rows.table.fullname, key)

    def _by_key(self, keys: list[Key]) -> list[list[Any]]:
        if len(self._plan.primary_key) == 1:
            return [keys]
        return [list(column) for column in zip(*keys, strict=True)]

    def _statement(self, verb: str, names: Names = (), more: Names = ()) -> _Statement:
        found = self._plan.statements.get((verb, names, more))
        if found is None:
            writer = _Writer(self._rows.table, self._connection.dialect)
            found = self._plan.statements[verb, names, more] = writer.statement(verb, names, more)
        return found


def _sorted(keys: Iterable[Key]) -> Iterable[Key]:
    """In order, so that two transactions lock common rows in the same one and do not deadlock."""
    try:
        return sorted(keys)
    except TypeError:
        return keys


class _Statement:
    """A statement that writes many rows, given as columns."""

    def __init__(
        self,
        text: str,
        processors: Sequence[Callable[[Any], Any] | None],
        order: Sequence[int] | None,
        names: Sequence[str],
        constants: Sequence[Any],
        arrays: _Arrays | None,
    ) -> None:
        self._text = text
        self._processors = processors
        self._order = order
        self._names = names
        self._constants = constants
        self._arrays = arrays

    def run(self, connection: Connection, columns: list[list[Any]]) -> int:
        """Write the rows; how many there were to write."""
        for i, process in enumerate(self._processors):
            if process is not None:
                columns[i] = [process(value) for value in columns[i]]
        if self._arrays is not None:
            arrays = self._arrays.of(columns)
            if arrays is not None:
                return _run(connection, self._arrays.text, arrays)
        columns = columns + [[value] * len(columns[0]) for value in self._constants]
        if self._order is not None:
            columns = [columns[i] for i in self._order]
        rows: list[Any] = list(zip(*columns, strict=True))
        if self._order is None:
            rows = [dict(zip(self._names, row, strict=True)) for row in rows]
        return _run(connection, self._text, rows)


def _run(connection: Connection, text: str, parameters: Any) -> int:
    # As text: Core would look at each row again. Still SQLAlchemy's errors, events and log.
    options = {"preserve_rowcount": True}
    return connection.exec_driver_sql(text, parameters, execution_options=options).rowcount


class _Arrays:
    """The same statement for PostgreSQL, with one array a column: one trip, planned once."""

    def __init__(self, text: str, elements: Sequence[str]) -> None:
        self.text = text
        self._elements = elements

    def of(self, columns: list[list[Any]]) -> tuple[list[Any], ...] | None:
        """The parameters; None if a column mixes types, which an array cannot."""
        arrays = []
        for column, element in zip(columns, self._elements, strict=True):
            types = set(map(type, column)) - {type(None)}
            if len(types) > 1:
                if types == {int, Decimal} and element == "NUMERIC":
                    column = [None if value is None else Decimal(value) for value in column]
                elif types == {int, float} and element == "FLOAT8":
                    column = [None if value is None else float(value) for value in column]
                else:
                    return None
            arrays.append(column)
        return tuple(arrays)


class _Writer:
    """Makes the statements for one table."""

    def __init__(self, table: Table, dialect: Dialect) -> None:
        self._table = table
        self._dialect = dialect
        # Without what SQLAlchemy adds to statements for a Table: onupdate, returning.
        bare = (sa.column(column.name, column.type) for column in table.c)
        self._bare = sa.table(table.name, *bare, schema=table.schema)
        self._keys: Names = tuple(column.key for column in table.primary_key)

    def statement(self, verb: str, names: Names, more: Names) -> _Statement:
        if verb in ("insert", "put"):
            columns = names + more
            core = self._insert(columns, None if verb == "insert" else names)
        elif verb == "update":
            columns = self._keys + names + more
            core = self._update(names, more)
        else:
            columns = self._keys
            core = sa.delete(self._bare).where(*self._has_key())
        compiled = core.compile(dialect=self._dialect)
        given = [f"given_{i}" for i in range(len(columns))]
        # A default that is SQL may have values of its own.
        constants = [name for name in compiled.params if name not in given]
        at = {name: i for i, name in enumerate(given + constants)}
        order = compiled.positiontup
        return _Statement(
            str(compiled),
            [self._processor(self._table.c[name].type) for name in columns],
            None if order is None else [at[name] for name in order],
            given + constants,
            [self._constant(compiled.binds[name]) for name in constants],
            self._arrays(verb, columns, names, more),
        )

    def _processor(self, kind: Any) -> Callable[[Any], Any] | None:
        processor: Callable[[Any], Any] | None
        processor = kind.dialect_impl(self._dialect).bind_processor(self._dialect)
        return processor

    def _constant(self, bind: Any) -> Any:
        processor = self._processor(bind.type)
        return bind.effective_value if processor is None else processor(bind.effective_value)

    def _given(self, i: int, name: str) -> Any:
        return sa.bindparam(f"given_{i}", type_=self._table.c[name].type)

    def _has_key(self) -> list[Any]:
        return [
            self._bare.c[self._table.c[name].name] == self._given(i, name)
            for i, name in enumerate(self._keys)
        ]

    def _insert(self, columns: Names, put: Names | None) -> Any:
        # Of the Table itself, for the defaults that are SQL.
        values = {self._table.c[name]: self._given(i, name) for i, name in enumerate(columns)}
        if put is None:
            return sa.insert(self._table).values(values).inline()
        upsert: Any
        if self._dialect.name == "sqlite":
            from sqlalchemy.dialects.sqlite import insert as upsert
        else:
            from sqlalchemy.dialects.postgresql import insert as upsert
        query = upsert(self._table).values(values).inline()
        replaced = {name: query.excluded[name] for name in put if name not in self._keys}
        key = [self._table.c[name] for name in self._keys]
        if not replaced:
            return query.on_conflict_do_nothing(index_elements=key)
        return query.on_conflict_do_update(index_elements=key, set_=replaced)

    def _update(self, names: Names, adds: Names) -> Any:
        columns = {column.key: self._bare.c[column.name] for column in self._table.c}
        first = len(self._keys)
        values = {columns[name]: self._given(first + i, name) for i, name in enumerate(names)}
        first += len(names)
        for i, name in enumerate(adds):
            values[columns[name]] = columns[name] + self._given(first + i, name)
        # With nothing to set it still says whether the row is there.
        values = values or {columns[self._keys[0]]: columns[self._keys[0]]}
        return sa.update(self._bare).where(*self._has_key()).values(values)

    def _arrays(self, verb: str, columns: Names, names: Names, more: Names) -> _Arrays | None:
        if self._dialect.name != "postgresql" or self._dialect.driver != "psycopg":
            return None
        elements = [_element(self._table.c[name], self._dialect) for name in columns]
        if not elements or None in elements:
            return None
        preparer = self._dialect.identifier_preparer
        quoted = {column.key: preparer.quote(column.name) for column in self._table.c}
        table = preparer.format_table(self._table)
        # Binary: a text array takes up to twice the time.
        unnest = f"unnest({', '.join(f'%b::{element}[]' for element in elements)})"
        if verb in ("insert", "put"):
            for column in self._table.c:
                sql = column.default is not None and not (
                    column.default.is_scalar or column.default.is_callable
                )
                if sql and column.key not in columns:
                    return None  # leave it to Core, which writes the default out
            text = f"INSERT INTO {table} ({', '.join(quoted[name] for name in columns)}) "
            text += f"SELECT * FROM {unnest}"
            if verb == "put":
                text += f" ON CONFLICT ({', '.join(quoted[name] for name in self._keys)}) DO "
                sets = [f"{quoted[n]} = excluded.{quoted[n]}" for n in names if n not in self._keys]
                text += f"UPDATE SET {', '.join(sets)}" if sets else "NOTHING"
            return _Arrays(text, [str(element) for element in elements])
        fields = [f"f{i}" for i in range(len(columns))]
        joined = " AND ".join(
            f"t.{quoted[name]} = _given.{field}"
            for name, field in zip(self._keys, fields, strict=False)
        )
        # A join visits rows in an order of its own, so they are locked first, in the order given:
        # two fifths more time than without, and two such statements cannot deadlock.
        text = (
            f"WITH _given AS MATERIALIZED (SELECT {', '.join(f'_given.{f}' for f in fields)} "
            f"FROM {unnest} WITH ORDINALITY AS _given ({', '.join(fields)}, place) "
            f"JOIN {table} AS t ON {joined} ORDER BY _given.place "
            f"FOR {'UPDATE' if verb == 'delete' else 'NO KEY UPDATE'} OF t) "
        )
        if verb == "delete":
            text += f"DELETE FROM {table} AS t USING _given WHERE {joined}"
        else:
            rest = dict(zip(columns, fields, strict=True))
            sets = [f"{quoted[name]} = _given.{rest[name]}" for name in names]
            sets += [f"{quoted[name]} = t.{quoted[name]} + _given.{rest[name]}" for name in more]
            sets = sets or [f"{quoted[self._keys[0]]} = t.{quoted[self._keys[0]]}"]
            text += f"UPDATE {table} AS t SET {', '.join(sets)} FROM _given WHERE {joined}"
        return _Arrays(text, [str(element) for element in elements])


#: Types of PostgreSQL whose arrays psycopg makes and unnest takes apart without loss. Without
#: lengths and scales: a cast would cut what an assignment refuses.
_ELEMENTS: Final = {
    **{
        name: name
        for name in ("SMALLINT", "INTEGER", "BIGINT", "NUMERIC", "BOOLEAN", "DATE", "INTERVAL")
    },
    **{name: name for name in ("BYTEA", "UUID", "JSON", "JSONB", "TEXT", "REAL")},
    **{f"{name} {zone} TIME ZONE": f"{name} {zone} TIME ZONE"
       for name in ("TIMESTAMP", "TIME") for zone in ("WITH", "WITHOUT")},
    "FLOAT": "FLOAT8",
    "DOUBLE PRECISION": "FLOAT8",
    "VARCHAR": "TEXT",
}  # fmt: skip


def _element(column: Column[Any], dialect: Dialect) -> str | None:
    """The type of a column's values in an array; None if they are to be given one by one."""
    kind = column.type
    if kind.bind_expression(sa.bindparam("value", type_=kind)) is not None:
        return None
    name = kind.compile(dialect=dialect)
    if isinstance(kind, sa.Enum) and kind.native_enum:
        return name
    return _ELEMENTS.get(re.sub(r" ?\([^)]*\)", "", name))


class _Plan:
    """What is known of a table, for one database: kept for as long as both are.

    It must not refer to the table itself, which it would keep for ever.
    """

    def __init__(self, table: Table) -> None:
        self.columns: Names = tuple(table.c.keys())
        self.known = frozenset(self.columns)
        self.primary_key: Names = tuple(column.key for column in table.primary_key)
        self.key_of: Callable[[Mapping[str, Any]], Key] = (
            itemgetter(*self.primary_key) if self.primary_key else lambda values: None
        )
        self.settable = self.known.difference(self.primary_key if self.primary_key else self.known)
        self.numbers = frozenset(name for name in self.settable if _is_number(table.c[name].type))
        self.defaults: list[tuple[str, Callable[[], Any]]] = []
        unknown = set()
        for column in table.c:
            if column.default is not None and column.default.is_scalar:
                self.defaults.append((column.key, _constant(column.default.arg)))  # type: ignore[attr-defined]
            elif column.default is not None and column.default.is_callable:
                self.defaults.append((column.key, _called(column.default.arg)))  # type: ignore[attr-defined]
            elif column.default is not None or column.server_default is not None:
                unknown.add(column.key)
        #: Columns whose default only the database knows.
        self.unknown = frozenset(unknown)
        #: Whether a delete changes rows of other tables.
        self.cascades = any(
            key.ondelete is not None and key.ondelete.upper() not in ("RESTRICT", "NO ACTION")
            for other in table.metadata.tables.values()
            for key in other.foreign_key_constraints
            if key.referred_table is table
        )
        self.checked: set[Names] = set()
        self.ordered: dict[Names, Names] = {}
        self.statements: dict[tuple[str, Names, Names], _Statement] = {}


def _is_number(kind: Any) -> bool:
    while isinstance(kind, sa.types.TypeDecorator):
        kind = kind.impl_instance
    return isinstance(kind, (sa.Integer, sa.Numeric, sa.Float))


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _called(default: Callable[[Any], Any]) -> Callable[[], Any]:
    # SQLAlchemy has wrapped it to take an execution context, which there is none of.
    return lambda: default(None)


#: By dialect, so by engine: its statements are text of that dialect.
_PLANS: WeakKeyDictionary[Dialect, WeakKeyDictionary[Table, _Plan]] = WeakKeyDictionary()


def _plan(table: Table, dialect: Dialect) -> _Plan:
    plans = _PLANS.get(dialect)
    if plans is None:
        plans = _PLANS[dialect] = WeakKeyDictionary()
    plan = plans.get(table)
    if plan is None:
        plan = plans[table] = _Plan(table)
    return plan


def _refused(table: Table, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError("table", table.name, reason)
