"""Read models against a rebuild, which ends where it has compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from eventstore.errors import (
    HandlerError,
    LogError,
    ProjectionChangedError,
    ProjectionOutdatedError,
    RebuildDiffersError,
    RebuildRunningError,
    StoredEventError,
)
from eventstore.followers.rebuild import Progress, Rebuild
from eventstore.followers.registration import check_code
from eventstore.projections.table_projection import TableProjection
from eventstore.verification.findings import Finding, Report, Walked

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from eventstore.projections.places import Shadow
    from eventstore.store import EventStore


class Comparison(Rebuild):
    """A rebuild that never swaps: it raises RebuildDiffersError, with what it has found."""

    def _compare(self, tables: Shadow, connection: Connection, living: Sequence[str]) -> None:
        super()._compare(tables, connection, living)
        raise RebuildDiffersError(self._name, (), False)


def compare(store: EventStore, cls: type[TableProjection], report: Report) -> Iterator[Finding]:
    """The rows in which a read model differs from what the log comes to, at its checkpoint."""
    name = cls.__follower__
    found = store._followers.find(name)
    if not found:
        yield Finding(
            "uncompared", f"{name!r} has never been started", is_error=False, follower=name
        )
        return
    if store._followers.rebuild(name) is not None:
        text = f"{name!r} is being rebuilt, or was and is to go on: not compared"
        yield Finding("uncompared", text, is_error=False, follower=name)
        return

    def tell(progress: Progress) -> None:
        report(Walked(f"rebuilding {name}", progress.position, progress.head, progress.events))

    comparison = store._rebuilding(Comparison, cls, True, tell)
    try:
        check_code(cls, found[0].version, found[0].fingerprint)
        comparison.run()
    except RebuildDiffersError as error:
        for difference in error.differences:
            yield Finding("projection", f"{name!r}: {difference}", follower=name)
        if error.more:
            yield Finding("projection", f"{name!r}: and more rows", follower=name)
    except (
        HandlerError,
        StoredEventError,
        ProjectionChangedError,
        ProjectionOutdatedError,
    ) as error:
        yield Finding("projection", f"cannot be rebuilt: {error}", follower=name)
    except RebuildRunningError as error:
        yield Finding("uncompared", str(error), is_error=False, follower=name)
    except LogError as error:
        yield Finding("uncompared", f"{name!r}: {error}", is_error=False, follower=name)
