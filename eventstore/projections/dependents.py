"""What has been made on top of a table in PostgreSQL, and has to outlive the table's replacement.

A swap drops the living tables, and PostgreSQL drops no table on which others depend. So views, and
foreign keys of other tables, go with it and come back in the same transaction, as do the owner and
the privileges of the table itself. Triggers, indexes and publications that others have added go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.exc import DBAPIError

from eventstore.errors import LogError
from eventstore.projections.applying import raise_if_passing

_FOREIGN_KEYS: Final = text("""
    SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', k.conrelid::regclass, k.conname),
           format('ALTER TABLE %s ADD CONSTRAINT %I %s',
                  k.conrelid::regclass, k.conname, pg_get_constraintdef(k.oid))
      FROM pg_constraint k
     WHERE k.contype = 'f' AND k.conparentid = 0
       AND k.confrelid IN :tables AND k.conrelid NOT IN :tables
     ORDER BY k.conrelid, k.conname""").bindparams(bindparam("tables", expanding=True))

# Those that are made of tables first, then those that are made of views.
_VIEWS: Final = text("""
    WITH RECURSIVE view (oid, depth) AS (
        SELECT c.oid, 0 FROM pg_class c WHERE c.oid IN :tables
      UNION
        SELECT r.ev_class, v.depth + 1
          FROM view v
          JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = v.oid
           AND d.classid = 'pg_rewrite'::regclass AND d.deptype = 'n'
          JOIN pg_rewrite r ON r.oid = d.objid
         WHERE r.ev_class <> v.oid)
    SELECT c.oid, format('%I.%I', n.nspname, c.relname),
           c.relkind = 'v' AND NOT c.relhastriggers,
           format('CREATE VIEW %I.%I%s AS %s', n.nspname, c.relname,
                  ' WITH (' || array_to_string(c.reloptions, ', ') || ')', pg_get_viewdef(c.oid)),
           format('COMMENT ON VIEW %I.%I IS %L',
                  n.nspname, c.relname, obj_description(c.oid, 'pg_class'))
      FROM view v JOIN pg_class c ON c.oid = v.oid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE v.depth > 0
     GROUP BY c.oid, n.nspname
     ORDER BY max(v.depth), c.oid""").bindparams(bindparam("tables", expanding=True))

_RIGHTS: Final = text("""
    WITH relation AS (
        SELECT c.*, format('%I.%I', n.nspname, c.relname) AS name
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = :oid),
    rights AS (
        SELECT a.*, '' AS of_column, NULL AS attname
          FROM relation r, aclexplode(r.relacl) a
      UNION ALL
        SELECT a.*, format(' (%I)', t.attname), t.attname
          FROM pg_attribute t, aclexplode(t.attacl) a
         WHERE t.attrelid = :oid AND NOT t.attisdropped)
    SELECT format('ALTER TABLE %s OWNER TO %I', r.name, pg_get_userbyid(r.relowner)), NULL
      FROM relation r WHERE pg_get_userbyid(r.relowner) <> current_user
  UNION ALL
    SELECT format('GRANT %s%s ON %s TO %s%s', g.privilege_type, g.of_column, r.name,
                  CASE g.grantee WHEN 0 THEN 'PUBLIC'
                                 ELSE quote_ident(pg_get_userbyid(g.grantee)) END,
                  CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' END), g.attname
      FROM relation r, rights g WHERE g.grantee <> r.relowner""")


_IN_THE_WAY: Final = (
    "a rebuild replaces tables, and this is made of them: {}; drop it, rebuild, and make it again; "
    "nothing was written"
)


class Dependents(NamedTuple):
    """How what depends on some tables goes, before they do, and how it comes back."""

    removing: list[str]
    restoring: list[str]


def dependents(connection: Connection, tables: Sequence[int]) -> Dependents:
    """What depends on the tables with these ids.

    Raises LogError for what is made of them and cannot be made again as it is.
    """
    found = Dependents([], [])
    if not tables:
        return found
    views: list[str] = []
    obstacles: list[str] = []
    for oid, name, plain, make, comment in connection.execute(_VIEWS, {"tables": tables}):
        (views if plain else obstacles).append(name)
        found.restoring.extend((make, comment))
        found.restoring.extend(rights(connection, oid))
    if obstacles:
        raise LogError(_IN_THE_WAY.format(", ".join(obstacles)))
    if views:
        found.removing.append(f"DROP VIEW {', '.join(views)}")
    for remove, restore in connection.execute(_FOREIGN_KEYS, {"tables": tables}):
        found.removing.append(remove)
        found.restoring.append(restore)
    return found


def rights(connection: Connection, oid: int, columns: Sequence[str] | None = None) -> list[str]:
    """What gives a relation its owner and its privileges, should it be made again.

    With `columns`, only these of its columns are there by then.
    """
    return [
        statement
        for statement, column in connection.execute(_RIGHTS, {"oid": oid})
        if column is None or columns is None or column in columns
    ]


def drop_all(connection: Connection, tables: Sequence[str]) -> None:
    """Drop tables, given as quoted names. Raises LogError for what depends on them."""
    try:
        run(connection, f"DROP TABLE {', '.join(tables)}")
    except DBAPIError as error:
        cause: Any = error.orig
        if cause.sqlstate != "2BP01":  # dependent objects still exist
            raise
        raise LogError(_IN_THE_WAY.format(cause.diag.message_detail)) from cause


def restore(connection: Connection, statements: Sequence[str]) -> None:
    """Make again what depended on tables, now that others are in their place.

    Raises LogError, for a view say of a column that they have no longer.
    """
    for statement in statements:
        try:
            run(connection, statement)
        except DBAPIError as error:
            raise_if_passing(error, connection)
            raise LogError(
                f"what depends on the old tables does not fit the new ones: {error.orig} (in: "
                f"{statement}): drop it, rebuild, and make it anew; nothing was written"
            ) from error.orig


def run(connection: Connection, statement: str) -> None:
    """Execute SQL to the letter: in what was read from the catalogs nothing is a parameter."""
    connection.exec_driver_sql(statement.replace("%", "%%"))
