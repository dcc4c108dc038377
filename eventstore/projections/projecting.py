"""Projecting: the log folded into a pure projection, from the latest state that was kept."""

from __future__ import annotations

import contextlib
import logging
from typing import Final, TypeVar

from eventstore.errors import DefinitionError, LogError
from eventstore.log.base import Bounds, Log
from eventstore.log.folds import Folds
from eventstore.projections.declared import owner_of
from eventstore.projections.feed import Feed
from eventstore.projections.projection import Projection
from eventstore.snapshots import StateCodec, state_codec

P = TypeVar("P", bound=Projection)

logger = logging.getLogger(__name__)

#: Events a page, at the most: so few that the garbage collector takes no notice of them.
_PAGE: Final = 500


def project(log: Log, cls: type[P], until: Bounds) -> P:
    """The fold of the log up to a position, and a time. `until.position` has to be final."""
    if not cls.__handlers__.declared:
        raise DefinitionError(owner_of(cls), "it handles no event: declare a handler with @on")
    projection = cls()
    every = cls.__snapshot_every__
    state = state_codec(cls) if every else None
    folds = Folds(log, kept_name(cls), state.fingerprint) if state else None
    if state and folds:
        _restore(projection, state, folds, until)
    feed = Feed(log, cls.__handlers__, categories=cls.__categories__)
    new = 0
    with contextlib.closing(feed.pages(projection.position, until, _PAGE)) as pages:
        for page in pages:
            feed.apply(projection, page)
            projection.position = page[-1][0]
            new += len(page)
            if every and state and folds and new >= every:
                _keep(projection, state, folds)
                new = 0
    projection.position = max(projection.position, until.position or 0)
    return projection


def kept_name(cls: type[Projection]) -> str:
    """The name under which its states are kept: a new version begins anew."""
    return f"{cls.__follower__} {cls.version}"


def _restore(projection: Projection, state: StateCodec, folds: Folds, until: Bounds) -> None:
    kept = folds.latest(until)
    if kept is not None and state.restore(projection, kept.state):
        projection.position = kept.position


def _keep(projection: Projection, state: StateCodec, folds: Folds) -> None:
    encoded = state.encode(projection)
    if encoded is None:
        return
    try:
        folds.keep(projection.position, encoded)
    except LogError:
        # Only a cache: the fold itself has succeeded.
        logger.warning("the state of %r was not kept", type(projection), exc_info=True)
