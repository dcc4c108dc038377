"""The statements of a write buffer: many rows at once, as fast as each database takes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from operator import itemgetter
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy import Column, Connection, Dialect, Table

#: The primary key's value, or a tuple of them.
Key: TypeAlias = Any
Names: TypeAlias = tuple[str, ...]


class Statement:
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


class StatementWriter:
    """Makes the statements for one table."""

    def __init__(self, table: Table, dialect: Dialect) -> None:
        self._table = table
        self._dialect = dialect
        # Without what SQLAlchemy adds to statements for a Table: onupdate, returning.
        bare = (sa.column(column.name, column.type) for column in table.c)
        self._bare = sa.table(table.name, *bare, schema=table.schema)
        self._keys: Names = tuple(column.key for column in table.primary_key)

    def statement(self, verb: str, names: Names, more: Names) -> Statement:
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
        return Statement(
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


class Plan:
    """What is known of a table, for one database: kept for as long as both are.

    It must not refer to the table itself, which it would keep for ever.
    """

    def __init__(self, table: Table, relatives: Sequence[Table]) -> None:
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
            for other in {*table.metadata.tables.values(), *relatives}
            for key in other.foreign_key_constraints
            if key.referred_table is table
        )
        self.checked: set[Names] = set()
        self.ordered: dict[Names, Names] = {}
        self.statements: dict[tuple[str, Names, Names], Statement] = {}


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
_PLANS: WeakKeyDictionary[Dialect, WeakKeyDictionary[Table, Plan]] = WeakKeyDictionary()


def plan_of(table: Table, dialect: Dialect, relatives: Sequence[Table]) -> Plan:
    """What is known of a table: found out once."""
    plans = _PLANS.get(dialect)
    if plans is None:
        plans = _PLANS[dialect] = WeakKeyDictionary()
    plan = plans.get(table)
    if plan is None:
        plan = plans[table] = Plan(table, relatives)
    return plan
