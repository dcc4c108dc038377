"""The past of a read model: its tables as they were at a cut of the log, in scratch tables."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Final

from sqlalchemy import Connection

from eventstore.log.base import Bounds, Log
from eventstore.log.transactions import own_errors
from eventstore.projections.places import scratch
from eventstore.projections.replaying import Replay
from eventstore.projections.table_projection import TableProjection

#: Events a page, at the most.
_PAGE: Final = 500
#: Events that are applied as one, about, at the most.
_BATCH: Final = 200_000


@contextlib.contextmanager
def as_of(log: Log, cls: type[TableProjection], until: Bounds) -> Generator[Connection]:
    """A connection on which the projection's tables are those of a cut. See `EventStore.as_of`."""
    replay = Replay(log, cls)
    with scratch(log, cls.__tables__) as connection:
        with own_errors(connection):
            with contextlib.closing(replay.pages(0, until, _PAGE)) as pages:
                while not replay.batch(connection, next(pages, None), pages, _BATCH).is_last:
                    pass
            connection.hold()
        yield connection
