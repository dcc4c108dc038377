"""Projections: what the events of the log add up to, in memory or in SQL tables."""

from eventstore.projections.projection import Projection
from eventstore.projections.table_projection import TableProjection

__all__ = ["Projection", "TableProjection"]
