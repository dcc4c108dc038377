"""The Alembic environment of eventstore: `eventstore.schema.migrate` runs it on its connection.

To write the next migration, run `alembic revision --rev-id 0002 -m "what it does"` in a checkout
and fill it in by hand, for both databases. `eventstore/log/tables.py` and `eventstore/schema.py`
change with it, and tests hold them together.
"""

from __future__ import annotations

from alembic import context

from eventstore.log import tables
from eventstore.schema import is_ours

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("run it by: eventstore migrate URL")

context.configure(
    connection=connection,
    target_metadata=tables.metadata,
    version_table=tables.VERSION_TABLE,
    include_name=lambda name, type_, _: type_ != "table" or is_ours(name or ""),
)
with context.begin_transaction():
    context.run_migrations()
