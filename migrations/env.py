"""Alembic's way in: runs on the connection that `eventstore.schema` hands over."""

from alembic import context

from eventstore.log.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=False,  # the caller has begun, and will commit
)
context.run_migrations()
