"""Snapshots change no answer, whenever they were kept and whoever throws them away."""

from __future__ import annotations

from datetime import datetime

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tallies import MICROSECOND, START, Tally, facts, folded, offsets, state

from eventstore import Event, EventStore, StreamNotFoundError


def record(tally: Tally, new: list[Event]) -> None:
    for fact in new:
        tally.record(fact)


def _tally_class(every: int) -> type[Tally]:
    class Snapped(Tally, stream=f"property-every-{every}/{{id}}", snapshot_every=every):
        pass

    return Snapped


SNAPPED = {every: _tally_class(every) for every in range(1, 6)}


appends_in_turn = st.lists(
    st.tuples(
        st.lists(facts, min_size=1, max_size=3),
        offsets,  # the clock's next step
        st.sampled_from(["append", "save", "transact", "load", "delete"]),
    ),
    min_size=1,
    max_size=8,
)


def test_deleting_every_snapshot_changes_no_answer(store: EventStore) -> None:
    clock = [START]
    kept = 0
    number = iter(range(10**6))
    ticking = EventStore(store.engine, clock=lambda: clock[0])

    @settings(
        max_examples=15 if store.engine.dialect.name == "postgresql" else 50,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(every=st.integers(1, 5), turns=appends_in_turn)
    def check(every: int, turns: list[tuple[list[Event], int, str]]) -> None:
        nonlocal kept
        cls, id = SNAPPED[every], str(next(number))
        stream = f"property-every-{every}/{id}"
        past: list[tuple[Event, datetime]] = []
        for new, step, how in turns:
            clock[0] += step * MICROSECOND
            at = max([clock[0], *(at for _, at in past[-1:])])
            if how == "delete":
                ticking.delete_snapshots(cls, id)
            if how == "append" or not past:
                ticking.append(stream, new)
            else:
                ticking.transact(cls, id, record, new)
            if how == "load":
                ticking.load(cls, id)
            past += [(fact, at) for fact in new]

        def answers(of: EventStore) -> list[object]:
            found: list[object] = []
            for version in range(1, len(past) + 1):
                tally = of.load(cls, id, version=version)
                found.append((tally.version, *state(tally)))
            for at in moments:
                try:
                    tally = of.load(cls, id, at=at)
                    found.append((tally.version, *state(tally)))
                except StreamNotFoundError:
                    found.append(None)
            tally = of.load(cls, id)
            return [*found, (tally.version, *state(tally))]

        moments = sorted({at + by * MICROSECOND for _, at in past for by in (-1, 0, 1)})
        counts = [*range(1, len(past) + 1)]
        counts += [sum(then <= at for _, then in past) for at in moments]
        expected = [
            (count, *folded(fact for fact, _ in past[:count])) if count else None
            for count in [*counts, len(past)]
        ]
        with EventStore(store.engine, cache=5) as cached:
            assert answers(ticking) == expected
            assert answers(cached) == expected
            kept += ticking.delete_snapshots(cls, id)
            assert answers(cached) == expected
            assert answers(ticking) == expected
        ticking.delete_snapshots()
        with EventStore(store.engine, cache=5) as fresh:
            assert answers(fresh) == expected

    check()
    assert kept, "no example had a snapshot"
    ticking.close()
