"""EventHandler: side effects of events, at least once, with a checkpoint that outlives crashes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from eventstore.aggregate import Aggregate
from eventstore.errors import DefinitionError
from eventstore.handlers import Handlers
from eventstore.projections.declared import checked_categories, claim, owner_of

if TYPE_CHECKING:
    from eventstore.store import EventStore


class EventHandler:
    """What is to be done when something has happened: a mail, a call, a command to an aggregate.

        class Welcome(EventHandler, name="welcome"):
            @on(AccountOpened)
            def _mail(self, event: AccountOpened, record: RecordedEvent) -> None:
                send_mail(event.owner, key=f"welcome {record.id}")

        store.run(Welcome)

    Each event is handled at least once, in the order of its stream: the checkpoint moves when the
    handler has returned, so a crash in between repeats that one event. What must not be done
    twice takes the event's id as its key: `store.transact_once(f"welcome {record.id}", ...)`.
    Events that a handler appends carry the causation and correlation of the one it handles.

    A handler that raises is called again, at most `attempts` times in all, after pauses that double
    from `backoff` seconds. Then the event is parked with its error, and so is what follows in
    its stream; other streams go on. See `store.parked`, `store.retry` and `store.discard`.

    `self.store` is the store. Where the class needs more, give an instance instead of the class:
    `store.run(Welcome(mailer))`. Class options: `name` is the name of its checkpoint (the class's
    own by default); `categories`, and `shards` for more workers, as in TableProjection.
    """

    store: EventStore

    __follower__: ClassVar[str]
    __handlers__: ClassVar[Handlers]
    __categories__: ClassVar[tuple[str, ...] | None] = None
    __shards__: ClassVar[int] = 1
    __attempts__: ClassVar[int] = 5
    __backoff__: ClassVar[float] = 0.1

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        categories: Iterable[type[Aggregate] | str] | None = None,
        shards: int | None = None,
        attempts: int | None = None,
        backoff: float | None = None,
    ) -> None:
        super().__init_subclass__()
        owner = owner_of(cls)
        cls.__follower__ = claim("follower", cls.__name__ if name is None else name, cls)
        cls.__handlers__ = Handlers(cls, may_take_record=True)
        if categories is not None:
            cls.__categories__ = checked_categories(cls, categories)
        for option, value in (("shards", shards), ("attempts", attempts)):
            if value is None:
                continue
            if type(value) is not int or value < 1:
                raise DefinitionError(owner, f"{option}={value!r} must be a whole number from 1")
            setattr(cls, f"__{option}__", value)
        if backoff is not None:
            if backoff < 0:
                raise DefinitionError(owner, f"backoff={backoff!r} must be seconds from 0")
            cls.__backoff__ = backoff
