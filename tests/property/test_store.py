"""The store against a plain model of it: dicts, lists and a fold written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete
from tallies import MICROSECOND, START, Added, Labelled, Tally, facts, folded, offsets, state

from eventstore import (
    ANY,
    NO_STREAM,
    STREAM_EXISTS,
    Aggregate,
    Cut,
    Event,
    EventStore,
    EventStoreError,
    Expected,
    IdempotencyKeyReusedError,
    InvalidArgumentError,
    Receipt,
    RecordedEvent,
    StreamDeletedError,
    StreamNotFoundError,
    Write,
    WrongExpectedVersionError,
)
from eventstore.log.tables import appends, events, snapshots, streams

# --- the model -----------------------------------------------------------------------------------


@dataclass
class Entry:
    position: int
    stream: str
    version: int
    event: Event | None  # None: the tombstone
    at: datetime

    @property
    def type(self) -> str:
        return "$deleted" if self.event is None else type(self.event).__event_name__

    @property
    def category(self) -> str:
        return self.stream.partition("/")[0]


@dataclass
class Model:
    log: list[Entry] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    latest: dict[str, datetime] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    keys: dict[str, tuple[Receipt, ...]] = field(default_factory=dict)

    def refusals(
        self, writes: list[Write], key: str | None
    ) -> tuple[set[type[EventStoreError]], tuple[Receipt, ...] | None]:
        """The errors that an append may end with (none: it succeeds), and its first receipts."""
        if key in self.keys:
            first = self.keys[key]
            same = [r.stream for r in first] == [w.stream for w in writes]
            return (set(), first) if same else ({IdempotencyKeyReusedError}, None)
        return {e for e in map(self._refusal, writes) if e is not None}, None

    def _refusal(self, write: Write) -> type[EventStoreError] | None:
        version = self.versions.get(write.stream, 0)
        if write.stream in self.deleted:
            return StreamDeletedError
        fits = write.expected in {ANY, version, STREAM_EXISTS if version else NO_STREAM}
        return None if fits else WrongExpectedVersionError

    def moment(self, names: Iterable[str], given: datetime) -> datetime:
        return max([given, *(self.latest[name] for name in names if name in self.latest)])

    def add(self, stream: str, facts: Sequence[Event | None], at: datetime, last: int) -> None:
        """Append to one stream; `last` is the position that the store gave to the last event."""
        for index, fact in enumerate(facts):
            version = self.versions[stream] = self.versions.get(stream, 0) + 1
            position = last - len(facts) + index + 1
            self.log.append(Entry(position, stream, version, fact, at))
        self.latest[stream] = at
        self.log.sort(key=lambda entry: entry.position)

    def erase(self, stream: str, at: datetime, position: int) -> None:
        self.log = [entry for entry in self.log if entry.stream != stream]
        self.add(stream, [None], at, position)
        self.deleted.add(stream)

    def of(self, stream: str) -> list[Entry]:
        return [entry for entry in self.log if entry.stream == stream]

    def as_of(self, entries: Iterable[Entry], at: datetime | Cut | None) -> list[Entry]:
        if isinstance(at, Cut):
            entries = [e for e in entries if e.position <= at.position]
            at = at.at
        return [e for e in entries if at is None or e.at <= at]


def seen(record: RecordedEvent) -> tuple[Any, ...]:
    event = None if record.type == "$deleted" else record.event
    return record.position, record.stream, record.version, event, record.recorded_at, record.type


def meant(entry: Entry) -> tuple[Any, ...]:
    return entry.position, entry.stream, entry.version, entry.event, entry.at, entry.type


# --- what is drawn -------------------------------------------------------------------------------


IDS = ("a", "b/c")
STREAMS = (*(f"property-tally/{id}" for id in IDS), "property-other/x", "property-else")
CATEGORIES: tuple[type[Aggregate] | str, ...] = (Tally, "property-other", "property-else", "none")
TYPES: tuple[type[Event] | str, ...] = (Added, Labelled, "property-passed", "$deleted", "none")


expectations: st.SearchStrategy[Expected | str] = st.one_of(
    st.sampled_from([ANY, "present", STREAM_EXISTS, NO_STREAM]), st.integers(0, 6)
)
keys = st.one_of(st.none(), st.sampled_from(["k1", "k2", "k3"]))


small = st.integers(0, 12)
maybe = st.one_of(st.none(), small)
ats = st.one_of(st.none(), st.integers(-6, 60))


class Machine(RuleBasedStateMachine):
    """Each rule does one thing to the store and to the model, and compares the two."""

    main: EventStore

    def __init__(self) -> None:
        super().__init__()
        with self.main.engine.begin() as connection:
            for table in (events, streams, snapshots, appends):
                connection.execute(delete(table))
        self.now = START
        self.store = EventStore(self.main.engine, clock=lambda: self.now)
        self.cached = EventStore(self.main.engine, clock=lambda: self.now, cache=1)
        self.model = Model()
        self.cuts: list[Cut] = []
        self.held: list[tuple[Tally, list[Event]]] = []

    def teardown(self) -> None:
        self.store.close()
        self.cached.close()

    def present(self, stream: str, expected: Expected | str) -> Expected:
        return self.model.versions.get(stream, 0) if isinstance(expected, str) else expected

    # --- writing -------------------------------------------------------------------------------

    @initialize(first=st.lists(facts, max_size=3))
    def begin(self, first: list[Event]) -> None:
        if first:
            self.append(STREAMS[0], first, ANY, None, None, False)

    @rule(by=offsets)
    def tick(self, by: int) -> None:
        self.now += by * MICROSECOND

    @rule(
        stream=st.sampled_from(STREAMS),
        new=st.lists(facts, min_size=1, max_size=3),
        expected=expectations,
        key=keys,
        imported=st.one_of(st.none(), offsets),
        cached=st.booleans(),
    )
    def append(
        self,
        stream: str,
        new: list[Event],
        expected: Expected | str,
        key: str | None,
        imported: int | None,
        cached: bool,
    ) -> None:
        write = Write(stream, new, self.present(stream, expected))
        at = None if imported is None else self.now + imported * MICROSECOND
        store = self.cached if cached else self.store

        def call() -> tuple[Receipt, ...]:
            receipt = store.append(
                stream, new, expected=write.expected, idempotency_key=key, recorded_at=at
            )
            return (receipt,)

        self.compare([write], key, at, call)

    @rule(
        writes=st.lists(
            st.tuples(st.sampled_from(STREAMS), st.lists(facts, max_size=2), expectations),
            min_size=1,
            max_size=3,
            unique_by=lambda write: write[0],
        ),
        key=keys,
    )
    def append_all(
        self, writes: list[tuple[str, list[Event], Expected | str]], key: str | None
    ) -> None:
        asked = [Write(name, new, self.present(name, expected)) for name, new, expected in writes]
        self.compare(asked, key, None, lambda: self.store.append_all(asked, idempotency_key=key))

    def compare(
        self,
        writes: list[Write],
        key: str | None,
        given: datetime | None,
        call: Callable[[], tuple[Receipt, ...]],
    ) -> None:
        refusals, first = self.model.refusals(writes, key)
        if refusals:
            with pytest.raises(tuple(refusals)) as caught:
                call()
            if isinstance(caught.value, WrongExpectedVersionError):
                actual = self.model.versions.get(caught.value.stream, 0)
                assert caught.value.actual == actual
            return
        receipts = call()
        if first is not None:
            assert receipts == first
            return
        at = self.model.moment((w.stream for w in writes), given or self.now)
        for write, receipt in zip(writes, receipts, strict=True):
            new = list(write.events)  # type: ignore[arg-type]
            if new:
                self.model.add(write.stream, new, at, receipt.position)
                assert receipt.recorded_at == at
            assert receipt.stream == write.stream
            assert receipt.version == self.model.versions.get(write.stream, 0)
        if key is not None:
            self.model.keys[key] = receipts

    @rule(stream=st.sampled_from(STREAMS), expected=expectations, sure=st.integers(0, 3))
    def delete(self, stream: str, expected: Expected | str, sure: int) -> None:
        if sure:  # else nearly every stream would soon be gone
            return
        wanted = self.present(stream, expected)
        version = self.model.versions.get(stream, 0)
        error: type[EventStoreError] | None = None
        if wanted in (0, NO_STREAM):
            error = InvalidArgumentError
        elif stream in self.model.deleted:
            error = StreamDeletedError
        elif not version:
            error = StreamNotFoundError
        elif isinstance(wanted, int) and wanted != version:
            error = WrongExpectedVersionError
        if error is not None:
            with pytest.raises(error):
                self.store.delete_stream(stream, expected=wanted)
            return
        at = self.model.moment([stream], self.now)
        receipt = self.store.delete_stream(stream, expected=wanted)
        assert (receipt.version, receipt.recorded_at) == (version + 1, at)
        self.model.erase(stream, at, receipt.position)

    # --- aggregates ----------------------------------------------------------------------------

    @rule(id=st.sampled_from(IDS), cached=st.booleans())
    def hold(self, id: str, cached: bool) -> None:
        """Load an aggregate, or make it, and keep it until it is stale."""
        store = self.cached if cached else self.store
        try:
            tally = store.load(Tally, id)
        except (StreamNotFoundError, StreamDeletedError):
            tally = Tally(id)
        self.held.append((tally, []))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), new=st.lists(facts, min_size=1, max_size=3))
    def record(self, data: st.DataObject, new: list[Event]) -> None:
        tally, recorded = data.draw(st.sampled_from(self.held), "held")
        for fact in new:
            tally.record(fact)
        recorded += new
        assert list(tally.pending) == recorded

    @precondition(lambda self: any(new for _, new in self.held))
    @rule(count=st.integers(1, 2), key=keys, cached=st.booleans())
    def save(self, count: int, key: str | None, cached: bool) -> None:
        changed = {tally.id: (tally, new) for tally, new in self.held if new}
        chosen = list(changed.values())[:count]
        writes = [
            Write(f"property-tally/{tally.id}", list(new), tally.version) for tally, new in chosen
        ]
        tallies = [tally for tally, _ in chosen]
        store = self.cached if cached else self.store

        def call() -> tuple[Receipt, ...]:
            before = store.head()
            store.save(*tallies, idempotency_key=key)
            made = {r.stream: r for r in store.read_all(after=before)}
            first = self.model.keys.get(key or "")
            if first is not None:
                assert made == {}
                return first
            return tuple(
                Receipt(w.stream, r.version, r.position, r.recorded_at)
                for w in writes
                for r in [made[w.stream]]
            )

        self.compare(writes, key, None, call)
        for tally, new in chosen:
            if tally.pending:
                assert list(tally.pending) == new
                self.held = [one for one in self.held if one[0] is not tally]  # it stays stale
                continue
            new.clear()
            stream = f"property-tally/{tally.id}"
            if stream not in self.model.deleted:
                facts = [e.event for e in self.model.of(stream)[: tally.version]]
                assert state(tally) == folded(facts)

    @rule(id=st.one_of(st.none(), st.sampled_from(IDS)))
    def delete_snapshots(self, id: str | None) -> None:
        self.store.delete_snapshots(*(() if id is None else (Tally, id)))

    @rule(id=st.sampled_from(IDS), cached=st.booleans())
    def load_everything_that_ever_was(self, id: str, cached: bool) -> None:
        store = self.cached if cached else self.store
        entries = self.model.of(f"property-tally/{id}")
        if not entries or entries[-1].event is None:
            error = StreamDeletedError if entries else StreamNotFoundError
            for bound in ({}, {"version": 1}, {"at": self.now}):
                with pytest.raises(error):
                    store.load(Tally, id, **bound)
            assert not store.exists(Tally, id)
            return
        assert store.exists(Tally, id)
        self.agree(store.load(Tally, id), entries)
        for count in range(1, len(entries) + 1):
            self.agree(store.load(Tally, id, version=count), entries[:count])
        moments = {e.at + by * MICROSECOND for e in entries for by in (-1, 0, 1)}
        for at in sorted(moments):
            then = self.model.as_of(entries, at)
            if then:
                self.agree(store.load(Tally, id, at=at), then)
            else:
                with pytest.raises(StreamNotFoundError) as caught:
                    store.load(Tally, id, at=at)
                assert caught.value.when == at

    def agree(self, tally: Tally, entries: list[Entry]) -> None:
        assert tally.version == len(entries)
        assert state(tally) == folded(e.event for e in entries)
        assert tally.pending == ()

    @rule(id=st.sampled_from(IDS), after=small, until=maybe)
    def history(self, id: str, after: int, until: int | None) -> None:
        entries = self.model.of(f"property-tally/{id}")
        if not entries or entries[-1].event is None or after > len(entries):
            with pytest.raises((StreamNotFoundError, StreamDeletedError, InvalidArgumentError)):
                self.store.history(Tally, id, after=after, until=until)
            return
        steps = list(self.store.history(Tally, id, after=after, until=until))
        end = len(entries) if until is None else until
        assert [seen(step.record) for step in steps] == [meant(e) for e in entries[after:end]]
        for step in steps:
            self.agree(step.state, entries[: step.record.version])

    # --- reading -------------------------------------------------------------------------------

    @rule(
        stream=st.sampled_from(STREAMS),
        after=small,
        until=maybe,
        limit=maybe,
        at=ats,
        backwards=st.booleans(),
        types=st.one_of(st.none(), st.sets(st.sampled_from(TYPES))),
    )
    def read(self, stream: str, at: int | None, **options: Any) -> None:
        moment = None if at is None else START + at * MICROSECOND
        found = self.store.read(stream, at=moment, **options)
        entries = self.model.as_of(self.model.of(stream), moment)
        expected = narrowed(entries, lambda entry: entry.version, **options)
        assert [seen(record) for record in found] == [meant(entry) for entry in expected]

    @rule(
        after=small,
        until=maybe,
        limit=maybe,
        at=ats,
        cut=st.booleans(),
        backwards=st.booleans(),
        types=st.one_of(st.none(), st.sets(st.sampled_from(TYPES))),
        categories=st.one_of(st.none(), st.sets(st.sampled_from(CATEGORIES))),
    )
    def read_all(
        self,
        after: int,
        until: int | None,
        at: int | None,
        cut: bool,
        categories: set[type[Aggregate] | str] | None,
        **options: Any,
    ) -> None:
        base = self.model.log[0].position - 1 if self.model.log else 0
        bounds: dict[str, Any] = {
            "after": base + after,
            "until": None if until is None else base + until,
        }
        moment: datetime | Cut | None = None if at is None else START + at * MICROSECOND
        if cut:
            moment = self.cuts[-1] if self.cuts else self.store.cut()
        found = self.store.read_all(at=moment, categories=categories, **bounds, **options)
        entries = self.model.as_of(self.model.log, moment)
        if categories is not None:
            named = {c if isinstance(c, str) else "property-tally" for c in categories}
            entries = [entry for entry in entries if entry.category in named]
        expected = narrowed(entries, lambda entry: entry.position, **bounds, **options)
        assert [seen(record) for record in found] == [meant(entry) for entry in expected]

    @rule(at=ats)
    def cut(self, at: int | None) -> None:
        cut = self.store.cut(None if at is None else START + at * MICROSECOND)
        assert cut.position == (self.model.log[-1].position if self.model.log else 0)
        self.cuts.append(cut)

    @precondition(lambda self: self.cuts)
    @rule(data=st.data())
    def read_at_a_cut(self, data: st.DataObject) -> None:
        """However much was appended or imported since, the cut holds what it held."""
        cut = data.draw(st.sampled_from(self.cuts), "cut")
        expected = {}
        for id in IDS:
            entries = self.model.of(f"property-tally/{id}")
            then = self.model.as_of(entries, cut)
            if then and entries[-1].event is not None:
                expected[id] = then
        found = list(self.store.load_all(Tally, at=cut))
        assert [tally.id for tally in found] == sorted(expected)
        for tally in found:
            self.agree(tally, expected[tally.id])
        records = [seen(r) for r in self.store.read_all(at=cut)]
        assert records == [meant(e) for e in self.model.as_of(self.model.log, cut)]

    @invariant()
    def heads_agree(self) -> None:
        model = self.model
        heads = [(s.name, s.version, s.recorded_at, s.deleted) for s in self.store.streams()]
        assert heads == [
            (name, version, model.latest[name], name in model.deleted)
            for name, version in sorted(model.versions.items())
        ]
        alive = [id for id in IDS if f"property-tally/{id}" in set(model.versions) - model.deleted]
        assert list(self.store.ids(Tally)) == alive
        assert self.store.head() == (model.log[-1].position if model.log else 0)


def narrowed(
    entries: list[Entry],
    place: Callable[[Entry], int],
    *,
    after: int,
    until: int | None,
    limit: int | None,
    backwards: bool,
    types: set[type[Event] | str] | None,
) -> list[Entry]:
    entries = [e for e in entries if after < place(e) and (until is None or place(e) <= until)]
    if types is not None:
        names = {t if isinstance(t, str) else t.__event_name__ for t in types}
        entries = [e for e in entries if e.type in names]
    if backwards:
        entries.reverse()
    return entries[:limit]


@pytest.fixture
def store(database_url: str) -> Iterator[EventStore]:
    with EventStore(database_url) as opened:
        yield opened


def test_the_store_does_what_its_model_does(store: EventStore) -> None:
    class Bound(Machine):
        main = store

    run_state_machine_as_test(
        Bound,
        settings=settings(
            max_examples=25 if store.engine.dialect.name == "postgresql" else 100,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
