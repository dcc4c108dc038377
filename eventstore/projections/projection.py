"""Projection: a pure fold of many streams' events into one value in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from eventstore.aggregate import Aggregate
from eventstore.event import Event, RecordedEvent
from eventstore.projections.declared import (
    checked_categories,
    checked_name,
    checked_version,
    owner_of,
)
from eventstore.state import Stateful, check_snapshot_every


class Projection(Stateful):
    """State that the events of the whole log add up to.

        class Totals(Projection):
            deposited: int = 0

            @on(MoneyDeposited)
            def _deposited(self, event: MoneyDeposited) -> None:
                self.deposited += event.amount

        store.project(Totals).deposited

    Annotated attributes with defaults are its state; handlers change it and do nothing else. A
    handler may take the RecordedEvent as a second argument. Events come in the order of the log;
    those that it does not handle are not read.

    Class options: `name` is the name that its kept state bears (the class's own by default);
    `categories` leaves out the events of all others; `snapshot_every` keeps the state each time
    so many events were folded, so that the next call reads only what is new. Kept state is used
    only by code of the same fingerprint: `version`, state, handlers and their events.
    """

    __slots__ = ("__weakref__", "position")
    __reserved__ = frozenset({"position", "version", "apply"})

    #: The position in the log up to which events are folded in.
    position: int
    #: Raise it when something that no fingerprint sees has changed.
    version: ClassVar[int] = 1

    __follower__: ClassVar[str]
    __categories__: ClassVar[tuple[str, ...] | None] = None
    __snapshot_every__: ClassVar[int | None] = None

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        categories: Iterable[type[Aggregate] | str] | None = None,
        snapshot_every: int | None = None,
    ) -> None:
        super().__init_subclass__(may_take_record=True)
        cls.__follower__ = checked_name("projection", cls.__name__ if name is None else name, cls)
        checked_version(cls, cls.version)
        if categories is not None:
            cls.__categories__ = checked_categories(cls, categories)
        if snapshot_every is not None:
            check_snapshot_every(owner_of(cls), snapshot_every)
            cls.__snapshot_every__ = snapshot_every

    def __init__(self) -> None:
        """The state before the first event."""
        self.position = 0
        self._set_defaults()

    def apply(self, event: Event, record: RecordedEvent | None = None) -> None:
        """Apply one event, where it is handled: for tests, without a store."""
        handler = self.__handlers__.find(type(event))
        if handler is None:
            return
        if handler in self.__handlers__.takes_record:
            handler(self, event, record)
        else:
            handler(self, event)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} @{self.position}{self._state_shown()}>"
