"""Tallies, a fold of them written out by hand, and what is drawn for them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from eventstore import Aggregate, Event, on

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class Added(Event, name="property-added"):
    amount: int


class Labelled(Event, name="property-labelled", aliases=["property-named"]):
    text: str


class Passed(Event, name="property-passed"):
    """Nobody handles it."""


class Tally(Aggregate, stream="property-tally/{id}", snapshot_every=2):
    trail: list[int] = []  # noqa: RUF012 (each instance has its own copy)
    label: str = ""

    @on(Added)
    def _added(self, event: Added) -> None:
        self.trail.append(event.amount + len(self.trail))

    @on(Labelled)
    def _labelled(self, event: Labelled) -> None:
        self.label += event.text


def folded(facts: Iterable[Event | None]) -> tuple[list[int], str]:
    """The state that the events lead to, by other code than the aggregate's."""
    trail: list[int] = []
    label = ""
    for fact in facts:
        match fact:
            case Added(amount=amount):
                trail.append(amount + len(trail))
            case Labelled(text=text):
                label += text
    return trail, label


def state(tally: Tally) -> tuple[list[int], str]:
    return tally.trail, tally.label


facts = st.one_of(
    st.builds(Added, st.integers(-5, 5)),
    st.builds(Labelled, st.sampled_from(["x", "é", "\\", "🐚"])),
    st.just(Passed()),
)
offsets = st.integers(-4, 8)
