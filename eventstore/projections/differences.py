"""What a rebuilt table has that the living one has not, and the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, MetaData, Table, cast, except_, inspect, select
from sqlalchemy.types import JSON, Text


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
    """Rows that are in the tables of one schema and not in those of the other.

    At most `limit` of each table. Rows of one primary key are put side by side. A table that
    one schema lacks, or whose columns differ, has all of its rows.
    """
    found: list[Difference] = []
    inspector = inspect(connection)
    for table in tables:
        if not inspector.has_table(table.name, schema=living):
            continue
        old = {column["name"] for column in inspector.get_columns(table.name, schema=living)}
        shared = [column for column in table.columns if column.name in old]
        now, then = (_rows(table, shared, schema) for schema in (rebuilt, living))
        gained = connection.execute(except_(now, then).limit(limit)).mappings().all()
        lost = connection.execute(except_(then, now).limit(limit)).mappings().all()
        found += _paired(table, [dict(row) for row in lost], [dict(row) for row in gained])[:limit]
    return found


def _rows(table: Table, columns: Sequence[Any], schema: str) -> Any:
    copy = Table(table.name, MetaData(), *(c._copy() for c in table.columns), schema=schema)
    # PostgreSQL cannot compare values of its type json.
    return select(
        *(
            cast(copy.c[c.name], Text).label(c.name) if isinstance(c.type, JSON) else copy.c[c.name]
            for c in columns
        )
    )


def _paired(
    table: Table, lost: list[dict[str, Any]], gained: list[dict[str, Any]]
) -> list[Difference]:
    names = [column.name for column in table.primary_key.columns]

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in names)

    # Without a primary key no two rows belong together.
    old = {key(row): row for row in lost} if names else {}
    pairs = [(old.pop(key(row), None) if names else None, row) for row in gained]
    rest = [(row, None) for row in (old.values() if names else lost)]
    return [Difference(table.name, was, becomes) for was, becomes in (*pairs, *rest)]
