"""A transaction of the log's own on the driver's cursor: for what is hot and more than appends."""

from __future__ import annotations

from typing import Any, TypeAlias

from sqlalchemy import Connection

from eventstore.log.base import EventType
from eventstore.log.seats import Seat


class Work(Seat):
    """What `Log.work` gives, and methods of the log take as `connection`. For one thread.

    Unlike in a caller's transaction, an error of the log ends it: nothing may be done after one.
    """

    __slots__ = ("has_news", "new_types")

    def __init__(self, cursor: Any) -> None:
        super().__init__(cursor.connection, cursor, None)
        #: Whether those that wait are to be told when it is committed. An append is news.
        self.has_news = False
        #: Ids that event types have got in it.
        self.new_types: dict[EventType, int] = {}


#: A transaction in which the log works, and which is not that one call's own.
Joinable: TypeAlias = Connection | Work
