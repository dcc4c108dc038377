"""What a rebuilt table has that the living one has not, and the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Inspector,
    Table,
    and_,
    cast,
    column,
    except_,
    func,
    inspect,
    not_,
    or_,
    select,
    table,
    true,
    type_coerce,
)
from sqlalchemy.types import JSON, Float, Numeric, Text, TypeEngine

#: Numbers in floating point are the same if they differ by no more than this part: sums of them
#: depend on the order, and on which of them were written together.
_NOISE: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Difference:
    """A row of a read model that a rebuild would change.

    `living` is the row as it is now and `rebuilt` as it would be, as mappings of column names to
    values; None where there is none.
    """

    table: str
    living: dict[str, Any] | None
    rebuilt: dict[str, Any] | None

    def __str__(self) -> str:
        return f"{self.table}: {self.living} -> {self.rebuilt}"


def differences(
    connection: Connection, tables: Sequence[Table], rebuilt: str, living: str, limit: int
) -> list[Difference]:
    """Rows that differ between the tables of two schemas: at most `limit` of each table.

    What both sides have is compared: a table that only one of them has is left out, and so is a
    column. Rows of one primary key are put side by side.
    """
    inspector = inspect(connection)
    found: list[Difference] = []
    for each in tables:
        if inspector.has_table(each.name, schema=living):
            found += _Comparison(connection, inspector, each, rebuilt, living).differences(limit)
    return found


class _Comparison:
    """One table in two schemas."""

    def __init__(
        self, connection: Connection, inspector: Inspector, each: Table, rebuilt: str, living: str
    ) -> None:
        self._connection = connection
        self._is_postgres = connection.dialect.name == "postgresql"
        self._table = each
        new, old = (_types(inspector, each.name, schema) for schema in (rebuilt, living))
        shared = [c for c in each.columns if c.name in old]
        self._names = [c.name for c in shared]
        # A column whose type has changed is compared, and read, as what it is on each side.
        self._changed = {n for n in self._names if repr(new[n]) != repr(old[n])}
        old_types = [old[c.name] if c.name in self._changed else c.type for c in shared]
        self._new = _side(each.name, self._names, [c.type for c in shared], rebuilt)
        self._old = _side(each.name, self._names, old_types, living)
        key = [c.name for c in each.primary_key.columns]
        self._key = key if set(key) <= set(self._names) else []

    def differences(self, limit: int) -> list[Difference]:
        if self._key:
            return [*self._changes(limit), *self._losses(limit)][:limit]
        gained = [(None, row) for row in self._surplus(self._new, self._old, limit)]
        lost = [(row, None) for row in self._surplus(self._old, self._new, limit)]
        return [self._difference(*pair) for pair in (*lost, *gained)][:limit]

    # --- by primary key ------------------------------------------------------------------------

    def _changes(self, limit: int) -> list[Difference]:
        """Rows that the rebuilt table has, and the living one has not, or not so."""
        new, old, count = self._new, self._old, len(self._names)
        missing = old.c[self._key[0]].is_(None)
        differ = [self._differ(name) for name in self._names if name not in self._key]
        query = (
            select(*new.c, *old.c, missing)
            .select_from(new.outerjoin(old, self._same_key()))
            .where(or_(missing, *differ))
            .order_by(*(new.c[name] for name in self._key))
            .limit(limit)
        )
        return [
            self._difference(None if row[-1] else row[count:-1], row[:count])
            for row in self._connection.execute(query)
        ]

    def _losses(self, limit: int) -> list[Difference]:
        """Rows that only the living table has."""
        new, old = self._new, self._old
        query = (
            select(*old.c)
            .select_from(old.outerjoin(new, self._same_key()))
            .where(new.c[self._key[0]].is_(None))
            .order_by(*(old.c[name] for name in self._key))
            .limit(limit)
        )
        return [self._difference(row, None) for row in self._connection.execute(query)]

    def _same_key(self) -> ColumnElement[bool]:
        return and_(*(self._value(self._new, n) == self._value(self._old, n) for n in self._key))

    def _differ(self, name: str) -> ColumnElement[bool]:
        new, old = self._value(self._new, name), self._value(self._old, name)
        distinct = new.is_distinct_from(old)
        if name in self._changed or not self._is_inexact(name):
            return distinct
        gap = func.abs(type_coerce(new, Float) - type_coerce(old, Float))
        near = and_(*(gap <= _NOISE * (1 + func.abs(type_coerce(v, Float))) for v in (new, old)))
        return and_(distinct, func.coalesce(not_(near), true()))

    def _is_inexact(self, name: str) -> bool:
        # SQLite has no other numbers than integers and floats.
        kinds = (Float,) if self._is_postgres else (Float, Numeric)
        return isinstance(self._new.c[name].type, kinds)

    # --- without one ---------------------------------------------------------------------------

    def _surplus(self, one: FromClause, other: FromClause, limit: int) -> list[tuple[Any, ...]]:
        """Rows of which one side has more than the other."""
        query = except_(self._numbered(one), self._numbered(other)).limit(limit)
        return [tuple(row[:-1]) for row in self._connection.execute(query)]

    def _numbered(self, side: FromClause) -> Any:
        """Rows, of which those that are alike are told apart by a number."""
        values = [self._value(side, name) for name in self._names]
        number = func.row_number().over(partition_by=values)
        return select(*(v.label(n) for v, n in zip(values, self._names, strict=True)), number)

    # --- both ----------------------------------------------------------------------------------

    def _value(self, side: FromClause, name: str) -> ColumnElement[Any]:
        """A column's value as it can be compared."""
        value = side.c[name]
        if name in self._changed:
            return cast(value, Text)
        if not isinstance(value.type, JSON):
            return value
        if not self._is_postgres:
            return type_coerce(value, Text)
        from sqlalchemy.dialects.postgresql import JSONB  # 20 ms, which most programs never need

        return cast(value, JSONB)  # its own json cannot be compared

    def _difference(self, living: Any, rebuilt: Any) -> Difference:
        return Difference(self._table.name, self._shown(living), self._shown(rebuilt))

    def _shown(self, row: Any) -> dict[str, Any] | None:
        return None if row is None else dict(zip(self._names, row, strict=True))


def _types(inspector: Inspector, name: str, schema: str) -> dict[str, TypeEngine[Any]]:
    return {c["name"]: c["type"] for c in inspector.get_columns(name, schema=schema)}


def _side(
    name: str, names: Sequence[str], types: Sequence[TypeEngine[Any]], schema: str
) -> FromClause:
    columns = (column(n, t) for n, t in zip(names, types, strict=True))
    return table(name, *columns, schema=schema)
