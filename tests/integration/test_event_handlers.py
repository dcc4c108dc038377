"""Event handlers: side effects at least once, in order, with failures set aside."""

from __future__ import annotations

import threading
import types
from collections.abc import Iterator
from typing import ClassVar

import pytest

from eventstore import (
    Aggregate,
    DefinitionError,
    Event,
    EventHandler,
    EventStore,
    InvalidArgumentError,
    RecordedEvent,
    context,
    on,
)
from eventstore.followers.follower import HandlerFollower


class Ordered(Event, name="react-ordered"):
    item: str


class Reserved(Event, name="react-reserved"):
    item: str


class Shelved(Event, name="react-shelved"):
    """An item is in stock."""


class Stock(Aggregate, stream="react-stock/{id}"):
    reserved: int = 0

    def reserve(self, item: str) -> None:
        self.record(Reserved(item=item))

    @on(Reserved)
    def _reserved(self, event: Reserved) -> None:
        self.reserved += 1


class Mailer(EventHandler, name="react-mailer", attempts=3, backoff=0):
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.broken: set[str] = set()

    @on(Ordered)
    def _mail(self, event: Ordered, record: RecordedEvent) -> None:
        self.calls.append(event.item)
        if event.item in self.broken:
            raise ConnectionError(f"no route for {event.item}")


class Reserve(EventHandler, name="react-reserve"):
    """Each order reserves once, however often it is told of one."""

    @on(Ordered)
    def _reserve(self, event: Ordered, record: RecordedEvent) -> None:
        key = f"reserve {record.id}"
        self.store.transact_once(key, Stock, event.item, Stock.reserve, event.item)


@pytest.fixture
def store(database_url: str) -> Iterator[EventStore]:
    with EventStore(database_url) as opened:
        yield opened


def ordered(store: EventStore, stream: str, *items: str) -> None:
    store.append(f"react-order/{stream}", [Ordered(item) for item in items])


@pytest.fixture(autouse=True)
def _shelf(store: EventStore) -> None:
    for item in "abcdefghi":
        store.append(f"react-stock/{item}", Shelved())


def test_each_event_is_handled_once_where_nothing_fails(store: EventStore) -> None:
    mailer = Mailer()
    assert store.catch_up(mailer) == store.head()
    ordered(store, "1", "a", "b")
    ordered(store, "2", "c")
    store.append("react-stock/x", Reserved("x"))
    assert store.catch_up(mailer) == store.head()
    store.catch_up(mailer)
    assert mailer.calls == ["a", "b", "c"]
    assert store.catch_up(Mailer()) == store.head()  # the checkpoint is the name's


def test_a_class_without_arguments_may_be_given_itself(store: EventStore) -> None:
    ordered(store, "1", "a", "a")
    store.catch_up(Reserve)
    assert store.load(Stock, "a").reserved == 2


def test_events_that_a_handler_appends_carry_the_causation(store: EventStore) -> None:
    with context(correlation_id="request-7"):
        ordered(store, "1", "a")
    store.catch_up(Reserve)
    (cause,) = store.read("react-order/1")
    _, effect = store.read("react-stock/a")
    assert effect.metadata.causation_id == str(cause.id)
    assert effect.metadata.correlation_id == "request-7"


def test_a_crash_between_effect_and_checkpoint_repeats_that_one_event(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordered(store, "1", "a", "b", "c")
    store.catch_up(Reserve)  # so that the shard is there; nothing of what follows is handled yet
    ordered(store, "2", "d", "e", "f")
    mailer = Mailer()
    store.catch_up(mailer)
    mailer.calls.clear()
    ordered(store, "3", "g", "h", "i")

    class Crash(BaseException): ...

    advance = HandlerFollower._advance

    def crash(self: HandlerFollower, *arguments: object) -> object:
        if mailer.calls[-1] == "h":
            raise Crash
        return advance(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(HandlerFollower, "_advance", crash)
        with pytest.raises(Crash):
            store.catch_up(mailer)
    store.catch_up(mailer)
    assert mailer.calls == ["g", "h", "h", "i"]


def test_a_handler_that_fails_is_called_again_and_then_goes_on(store: EventStore) -> None:
    class Flaky(EventHandler, name="react-flaky", attempts=3, backoff=0):
        calls: ClassVar[list[str]] = []

        @on(Ordered)
        def _ordered(self, event: Ordered) -> None:
            self.calls.append(event.item)
            if self.calls.count(event.item) < 3:
                raise TimeoutError

    Flaky.calls.clear()
    ordered(store, "1", "a", "b")
    store.catch_up(Flaky)
    assert Flaky.calls == ["a"] * 3 + ["b"] * 3
    assert store.parked(Flaky) == []


def test_after_the_last_attempt_the_event_is_parked_with_its_stream(store: EventStore) -> None:
    mailer = Mailer()
    mailer.broken = {"bad"}
    ordered(store, "1", "a", "bad", "b")
    ordered(store, "2", "c")
    ordered(store, "1", "d")
    assert store.catch_up(mailer) == store.head()
    assert mailer.calls == ["a", "bad", "bad", "bad", "c"]
    poison, *behind = store.parked(mailer)
    assert poison.error == "ConnectionError: no route for bad"
    assert (poison.attempts, poison.stream, poison.version) == (3, "react-order/1", 2)
    assert [(p.version, p.error) for p in behind] == [(3, None), (4, None)]
    assert store.parked("react-mailer", "react-order/2") == []


def test_a_retry_goes_on_with_the_stream_in_its_order(store: EventStore) -> None:
    mailer = Mailer()
    mailer.broken = {"bad"}
    ordered(store, "1", "bad", "b")
    store.catch_up(mailer)
    ordered(store, "1", "c")
    store.catch_up(mailer)
    mailer.calls.clear()
    assert store.retry(mailer) == 3
    store.catch_up(mailer)
    assert mailer.calls == ["bad"]
    assert [p.attempts for p in store.parked(mailer)] == [4, 0, 0]
    mailer.broken.clear()
    store.retry(mailer, "react-order/1")
    ordered(store, "1", "d")
    store.catch_up(mailer)
    assert mailer.calls == ["bad", "bad", "b", "c", "d"]
    assert store.parked(mailer) == []


def test_a_discarded_event_is_given_up_for_ever(store: EventStore) -> None:
    mailer = Mailer()
    mailer.broken = {"bad"}
    ordered(store, "1", "bad", "b")
    store.catch_up(mailer)
    mailer.calls.clear()
    store.discard(mailer, store.parked(mailer)[0].position)
    store.catch_up(mailer)
    assert mailer.calls == ["b"]
    assert store.parked(mailer) == []


def test_a_retried_handler_may_append(store: EventStore) -> None:
    class Late(EventHandler, name="react-late", attempts=1):
        ready = False

        @on(Ordered)
        def _ordered(self, event: Ordered) -> None:
            if not self.ready:
                raise RuntimeError("not yet")
            self.store.transact(Stock, event.item, Stock.reserve, event.item)

    late = Late()
    ordered(store, "1", "a")
    store.catch_up(late)
    late.ready = True
    store.retry(late)
    store.catch_up(late)
    assert store.load(Stock, "a").reserved == 1


def test_an_event_that_cannot_be_decoded_is_parked(store: EventStore) -> None:
    from eventstore.log import tables

    mailer = Mailer()
    ordered(store, "1", "a", "b")
    with store.engine.begin() as db:
        db.execute(tables.events.update().where(tables.events.c.version == 1).values(data=b"{}"))
    store.catch_up(mailer)
    assert mailer.calls == []
    assert "CorruptEventError" in (store.parked(mailer)[0].error or "")


def test_a_handler_follows_live_and_stops_between_two_events(store: EventStore) -> None:
    mailer = Mailer()
    handled = threading.Event()

    class Watching(Mailer, name="react-watching"):
        @on(Ordered)
        def _mail(self, event: Ordered, record: RecordedEvent) -> None:
            mailer.calls.append(event.item)
            handled.set()

    with store.runner(Watching()) as runner:
        ordered(store, "1", "a")
        assert handled.wait(30)
        runner.stop()
        runner.join()
    assert mailer.calls == ["a"]
    (status,) = store.status()
    assert (status.owner, status.behind) == (None, 0)


@pytest.mark.parametrize(
    "options", [{"attempts": 0}, {"backoff": -1}, {"shards": 0}, {"categories": "react"}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(DefinitionError):
        types.new_class("Bad", (EventHandler,), options)


def test_what_is_no_follower_is_refused(store: EventStore) -> None:
    with pytest.raises(InvalidArgumentError, match="TableProjection"):
        store.catch_up(Stock)  # type: ignore[arg-type]

    class Idle(EventHandler, name="react-idle"): ...

    with pytest.raises(DefinitionError, match="@on"):
        store.catch_up(Idle)
