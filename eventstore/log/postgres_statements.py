"""The statements that are PostgreSQL's own: appends in one trip, and a page of several streams."""

from __future__ import annotations

from typing import Any, Final

from eventstore.log.base import ANY, NO_STREAM, STREAM_EXISTS
from eventstore.log.queries import PAGE

# As late as possible: evaluated when the head row has been locked.
_NOW: Final = "COALESCE(%(now)s::bigint, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)"
_HEAD_NEW: Final = f"""
    INSERT INTO eventstore_streams AS s (name, category, version, recorded_at)
    VALUES (%(stream)s, %(category)s, %(count)s, {_NOW})
    ON CONFLICT (name) DO NOTHING
    RETURNING id, version, recorded_at"""
_HEAD_ANY: Final = f"""
    INSERT INTO eventstore_streams AS s (name, category, version, recorded_at)
    VALUES (%(stream)s, %(category)s, %(count)s, {_NOW})
    ON CONFLICT (name) DO UPDATE
       SET version = s.version + excluded.version,
           recorded_at = GREATEST(s.recorded_at, {_NOW})
     WHERE NOT s.deleted
    RETURNING id, version, recorded_at"""
_HEAD_EXISTS: Final = f"""
    UPDATE eventstore_streams
       SET version = version + %(count)s, recorded_at = GREATEST(recorded_at, {_NOW})
     WHERE name = %(stream)s AND NOT deleted
    RETURNING id, version, recorded_at"""
_HEAD_AT: Final = f"""
    UPDATE eventstore_streams
       SET version = version + %(count)s, recorded_at = GREATEST(recorded_at, {_NOW})
     WHERE name = %(stream)s AND version = %(expected)s AND NOT deleted
    RETURNING id, version, recorded_at"""
_HEADS: Final[dict[Any, str]] = {
    0: _HEAD_NEW,
    NO_STREAM: _HEAD_NEW,
    ANY: _HEAD_ANY,
    STREAM_EXISTS: _HEAD_EXISTS,
}
_ONE_EVENT: Final = """
    WITH head AS ({head}),
    new AS (
        INSERT INTO eventstore_events
            (stream_id, version, type_id, recorded_at, id, data, metadata)
        SELECT head.id, head.version, %(type)s, head.recorded_at, %(id)b, %(data)b, %(metadata)b
          FROM head
        RETURNING position)
    SELECT head.version, head.recorded_at, new.position FROM head, new"""
_EVENTS: Final = """
    WITH head AS ({head}),
    new AS (
        INSERT INTO eventstore_events
            (stream_id, version, type_id, recorded_at, id, data, metadata)
        SELECT head.id, head.version - %(count)s + e.number, e.type_id, head.recorded_at,
               e.id, e.data, e.metadata
          FROM head,
               unnest(%(types)b::int[], %(ids)b::bytea[], %(data)b::bytea[], %(metadata)b::bytea[])
               WITH ORDINALITY AS e (type_id, id, data, metadata, number)
        RETURNING position)
    SELECT head.version, head.recorded_at, (SELECT max(position) FROM new) FROM head"""
ONE: Final = {kind: _ONE_EVENT.format(head=head) for kind, head in _HEADS.items()}
MANY: Final = {kind: _EVENTS.format(head=head) for kind, head in _HEADS.items()}
ONE_AT: Final = _ONE_EVENT.format(head=_HEAD_AT)
MANY_AT: Final = _EVENTS.format(head=_HEAD_AT)

# A page of each of several streams.
FOLDS: Final = f"""
    SELECT wanted.number, e.type_id, e.data
      FROM unnest(%(streams)s::text[]) WITH ORDINALITY AS wanted (name, number)
      JOIN eventstore_streams s ON s.name = wanted.name,
           LATERAL (
               SELECT version, type_id, data FROM eventstore_events
                WHERE stream_id = s.id ORDER BY version LIMIT {PAGE}) AS e
     ORDER BY wanted.number, e.version"""

# All heads of an append are locked first, in one order for all appends. Where there is no head yet,
# a row at version 0 is the lock: the order must hold for new streams and old ones alike.
LOCK_HEADS: Final = """
    INSERT INTO eventstore_streams AS s (name, category, version, recorded_at)
    SELECT name, category, 0, -9223372036854775808
      FROM unnest(%(names)s::text[], %(categories)s::text[]) AS wanted (name, category)
     ORDER BY name COLLATE "C"
    ON CONFLICT (name) DO UPDATE SET version = s.version
    RETURNING name, version, recorded_at, deleted,
              (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"""
UNLOCK_NEW: Final = "DELETE FROM eventstore_streams WHERE name = ANY(%(names)s) AND version = 0"
CLAIM: Final = """
    INSERT INTO eventstore_appends (key, receipts, recorded_at) VALUES (%(key)s, '', 0)
    ON CONFLICT (key) DO NOTHING RETURNING key"""
DELETED: Final = "UPDATE eventstore_streams SET deleted = true WHERE name = %(stream)s RETURNING id"
ERASE: Final = """
    WITH gone AS (DELETE FROM eventstore_snapshots WHERE stream_id = %(id)s),
    folded AS (
        DELETE FROM eventstore_folds WHERE position >=
            (SELECT min(position) FROM eventstore_events WHERE stream_id = %(id)s))
    DELETE FROM eventstore_events WHERE stream_id = %(id)s AND version < %(version)s"""
# Durable whatever the session's setting is: programs remember a type's id, and go on using it when
# a crash of the server has lost the last commits.
NEW_TYPES: Final = """
    WITH durable AS (
        SELECT set_config('synchronous_commit', COALESCE(NULLIF(
                   current_setting('synchronous_commit'), 'off'), 'local'), true))
    INSERT INTO eventstore_types (name, version)
    SELECT t.* FROM durable, unnest(%(names)s::text[], %(versions)s::int[]) AS t
    ON CONFLICT (name, version) DO NOTHING"""
