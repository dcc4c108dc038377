"""Operations of several callers at once: one trip for the loads, one commit for the appends.

Each has an outcome of its own. What cannot be decided so (a conflict, a long stream, one that is
not there) is left open, to be done alone: that is always right, and only takes longer.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeAlias

from eventstore import metadata
from eventstore.aggregate import Aggregate, Pending, blank
from eventstore.errors import InvalidNameError, LogError, WrongExpectedVersionError, copied
from eventstore.log.base import Write
from eventstore.log.grouping import Request

if TYPE_CHECKING:
    from eventstore.store import EventStore

Page: TypeAlias = Sequence[tuple[int, bytes]]
Arguments: TypeAlias = tuple[Any, ...]
Options: TypeAlias = Mapping[str, Any]

_NOTHING: Final[Sequence[Pending]] = ()


class Operation(ABC):
    """What a caller asks of a store, in the caller's context, and its outcome once it is done."""

    __slots__ = ("aggregate", "cls", "context", "done", "error", "id", "result")

    #: Whether it begins with the aggregate's events, and whether it may append.
    reads: ClassVar[bool] = True
    appends: ClassVar[bool] = True

    def __init__(self, cls: type[Aggregate], id: str) -> None:
        self.cls = cls
        self.id = id
        self.context = copy_context()
        self.aggregate: Aggregate | None = None
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None

    @classmethod
    @abstractmethod
    def of(cls, arguments: Arguments, options: Options) -> Self | None:
        """The operation that is called with these; None if it can only be done alone."""

    @abstractmethod
    def call(self, store: EventStore) -> Any:
        """Do it alone."""

    @abstractmethod
    def decide(self, store: EventStore, page: Page) -> Sequence[Pending]:
        """What there is to append, by the aggregate's events so far. It may be done by that."""

    def alone(self, store: EventStore) -> None:
        """Do it alone, for the outcome, whatever that is."""
        try:
            self.result = self.context.run(self.call, store)
        except BaseException as error:
            self.error = error
        self.done = True

    def request(self, store: EventStore, stream: str, page: Page) -> Request | None:
        """The append that it takes, if any."""
        pending = self.decide(store, page)
        if not pending or self.aggregate is None:
            return None
        new = store._codec.new_events(pending, metadata.current())
        return Request([Write(stream, new, self.aggregate.version)], None, None)

    def settle(self, request: Request) -> None:
        """Take the outcome of its append."""
        if isinstance(request.error, WrongExpectedVersionError):
            return  # another was first: alone it is tried again, or found to be in conflict
        self.done = True
        self.error = request.error
        if request.receipts is not None and self.aggregate is not None:
            self.aggregate.version = request.receipts[0].version
            self.aggregate._pending.clear()

    def loaded(self, store: EventStore, page: Page) -> Aggregate:
        self.aggregate = aggregate = blank(self.cls, self.id)
        store._fold(self.cls).apply(aggregate, page)
        return aggregate


class Load(Operation):
    """`store.load(cls, id)`."""

    __slots__ = ()

    appends = False

    @classmethod
    def of(cls, arguments: Arguments, options: Options) -> Self | None:
        return cls(*arguments) if len(arguments) == 2 and not options else None

    def call(self, store: EventStore) -> Any:
        return store.load(self.cls, self.id)

    def decide(self, store: EventStore, page: Page) -> Sequence[Pending]:
        self.result = self.loaded(store, page)
        self.done = True
        return _NOTHING


class Save(Operation):
    """`store.save(aggregate)`."""

    __slots__ = ()

    reads = False

    @classmethod
    def of(cls, arguments: Arguments, options: Options) -> Self | None:
        if len(arguments) != 1 or options or not isinstance(arguments[0], Aggregate):
            return None
        one = cls(type(arguments[0]), arguments[0].id)
        one.aggregate = arguments[0]
        return one

    def call(self, store: EventStore) -> Any:
        assert self.aggregate is not None
        store.save(self.aggregate)

    def decide(self, store: EventStore, page: Page) -> Sequence[Pending]:
        assert self.aggregate is not None
        self.done = not self.aggregate._pending
        return self.aggregate._pending


class Transact(Operation):
    """`store.transact(cls, id, command, ...)`."""

    __slots__ = ("command",)

    command: Callable[[Aggregate], Any]

    @classmethod
    def of(cls, arguments: Arguments, options: Options) -> Self | None:
        if len(arguments) < 3:
            return None
        aggregate_class, id, command, *rest = arguments
        one = cls(aggregate_class, id)
        one.command = lambda aggregate: command(aggregate, *rest, **options)
        return one

    def call(self, store: EventStore) -> Any:
        return store.transact(self.cls, self.id, self.command)

    def decide(self, store: EventStore, page: Page) -> Sequence[Pending]:
        aggregate = self.loaded(store, page)
        try:
            self.result = self.command(aggregate)
        except BaseException as error:
            self.error, self.done = error, True
            return _NOTHING
        self.done = not aggregate._pending
        return aggregate._pending


def do_together(store: EventStore, operations: Sequence[Operation]) -> None:
    """Give an outcome to those of the operations that can be decided together."""
    shared: dict[str, Operation] = {}
    for one in operations:
        # Of two on one stream the second would be in conflict, or is to see what the first did.
        with contextlib.suppress(InvalidNameError):  # alone it will say so
            shared.setdefault(one.cls.__stream__.stream(one.id), one)
    if len(shared) > 1:
        _share(store, shared)


def _share(store: EventStore, operations: Mapping[str, Operation]) -> None:
    read = [stream for stream, one in operations.items() if one.reads]
    pages: dict[str, Page | None] = {}
    try:
        if read:
            pages.update(zip(read, store.log.fold_together(read), strict=True))
    except LogError as error:
        for one in operations.values():
            one.error, one.done = copied(error), True
        return
    requests: dict[str, Request] = {}
    for stream, one in operations.items():
        page = pages.get(stream) or ()
        if one.reads and not page:
            continue
        try:
            request = one.context.run(one.request, store, stream, page)
        except Exception:
            continue  # as alone, where it is its caller's
        if request is not None:
            requests[stream] = request
    if requests:
        store.log.append_together(list(requests.values()))
    for stream, request in requests.items():
        operations[stream].settle(request)
