"""A subscription's wake: whatever happens in whatever order, what the protocol promises holds."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from eventstore.http.subscriptions import state
from eventstore.http.subscriptions.refusals import Refused
from eventstore.http.subscriptions.state import SECOND, Fence, Phase, Wake

LEASE = 30 * SECOND
SPAN = 35 * SECOND


class Subscribed(RuleBasedStateMachine):
    """One stream, its subscription, and workers of whom some are late, some gone and some wrong."""

    is_pull: bool

    def __init__(self) -> None:
        super().__init__()
        self.wake = Wake()
        self.now = 0
        self.tail = 0
        self.acked = 0
        self.count = 0
        #: Who was ever given a wake: by claiming it, or as a webhook's receiver.
        self.given: dict[Fence, str] = {}
        self.attempts: list[tuple[Fence, int]] = []
        self.generations: dict[int, str] = {}
        #: Of which wake a worker has heard, and was told that there is nothing to do.
        self.answered: str | None = None

    # --- what the server does ------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        return self.tail > self.acked

    @property
    def lease(self) -> int | None:
        return None if self.is_pull else LEASE

    def new_id(self) -> str:
        self.count += 1
        return f"w_{self.count}"

    def become(self, wake: Wake) -> None:
        assert wake.generation >= self.wake.generation
        assert wake.attempt >= self.wake.attempt
        if wake.wake_id is not None:
            # A generation has one wake, for ever.
            assert self.generations.setdefault(wake.generation, wake.wake_id) == wake.wake_id
        self.wake = wake

    def settle(self, wake: Wake, now: int, pending: bool) -> Wake:
        return state.settled(wake, now, pending, self.new_id(), self.lease)

    def swept(self, wake: Wake, now: int) -> Wake:
        """What a server makes of one that is due."""
        if wake.due_at is None or wake.due_at > now:
            return wake
        wake = state.expired(wake, now)
        attempt = state.attempted(wake, now, self.new_id(), self.lease, SPAN)
        return attempt or self.settle(wake, now, self.pending)

    # --- what happens ----------------------------------------------------------------------------

    @rule(told=st.booleans())
    def append(self, told: bool) -> None:
        """An event; the news of it come at once, or only when the subscription is busy anyhow."""
        self.tail += 1
        if told or self.wake.phase == Phase.IDLE:
            self.become(self.settle(self.wake, self.now, True))

    @rule()
    def lose_streams(self) -> None:
        """What was pending is not there any more: the stream was deleted."""
        self.acked = self.tail

    @rule(seconds=st.sampled_from([0.5, 1, 10, 29, 30, 31, 60, 300]))
    def wait(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)

    @rule()
    def sweep(self) -> None:
        before = self.wake.attempt
        self.become(self.swept(self.wake, self.now))
        if self.wake.attempt > before:
            fence = Fence(self.wake.generation, self.wake.wake_id or "")
            self.attempts.append((fence, self.wake.attempt))
            if not self.is_pull:
                self.given[fence] = "receiver"

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def attempt_succeeds(self, data: st.DataObject) -> None:
        fence, _ = data.draw(st.sampled_from(self.attempts))
        self.become(state.delivered(self.wake, fence))

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), chance=st.floats(0, 1))
    def attempt_fails(self, data: st.DataObject, chance: float) -> None:
        fence, attempt = data.draw(st.sampled_from(self.attempts))
        before = self.wake
        self.become(state.failed(before, fence, attempt, self.now, chance))
        if self.wake != before:
            assert before.attempt == attempt
            assert self.wake.due_at is not None
            pause = self.wake.due_at - self.now
            assert 0.8 * SECOND <= pause <= 72 * SECOND

    @precondition(lambda self: self.is_pull)
    @rule(worker=st.sampled_from("ab"))
    def claim(self, worker: str) -> None:
        held = self.wake.phase == Phase.HELD and not self.wake.is_over(self.now)
        try:
            wake = state.claimed(self.wake, self.now, worker, LEASE, self.pending, self.new_id())
        except Refused:
            assert held
            return
        assert not held
        self.become(wake)
        assert (wake.phase == Phase.HELD) == self.pending
        if not self.pending:
            self.answered = self.wake.wake_id
        else:
            fence = Fence(wake.generation, wake.wake_id or "")
            assert fence not in self.given, "a wake was given twice"
            assert fence.generation not in {other.generation for other in self.given}
            self.given[fence] = worker

    @precondition(lambda self: self.given)
    @rule(data=st.data(), done=st.booleans(), back=st.integers(0, 2))
    def acknowledge(self, data: st.DataObject, done: bool, back: int) -> None:
        fence = data.draw(st.sampled_from(sorted(self.given)))
        valid = self.is_valid(fence)
        try:
            wake = state.acknowledged(self.wake, fence, self.now, LEASE, done=done)
        except Refused:
            assert not valid
            return
        assert valid
        self.acked = max(self.acked, self.tail - back)
        self.become(wake)
        if not done:
            assert self.wake.lease_until == self.now + LEASE

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        fence = data.draw(st.sampled_from(sorted(self.given)))
        valid = self.is_valid(fence)
        try:
            wake = state.released(self.wake, fence, self.now)
        except Refused:
            assert not valid
            return
        assert valid
        self.become(wake)

    def is_valid(self, fence: Fence) -> bool:
        present = (self.wake.generation, self.wake.wake_id) == fence
        return present and self.wake.lease_until is not None and self.now < self.wake.lease_until

    # --- what holds always -----------------------------------------------------------------------

    @invariant()
    def the_state_is_whole(self) -> None:
        wake = self.wake
        idle = wake.phase == Phase.IDLE
        assert (wake.wake_id is None) == idle
        assert (wake.holder is not None) == (self.is_pull and wake.phase == Phase.HELD)
        if wake.phase in (Phase.WAKING, Phase.HELD):
            assert wake.due_at is not None
        if wake.phase == Phase.HELD:
            assert wake.due_at == wake.lease_until
        if wake.phase == Phase.OFFERED:
            assert self.is_pull

    @invariant()
    def what_is_pending_leads_to_a_wake(self) -> None:
        """Whatever has happened: without any further news, servers that look find a way there."""
        if not self.pending:
            return
        wake, now = self.wake, self.now
        first = wake.attempt
        for _ in range(4):
            if wake.phase == Phase.OFFERED:
                assert wake.wake_id != self.answered, "its workers have come and gone"
                return
            if wake.attempt > first:
                return
            assert wake.due_at is not None, "nobody would ever look at it again"
            now = max(now, wake.due_at)
            wake = self.swept(wake, now)
        raise AssertionError(f"no wake: {self.wake}")


class Pull(Subscribed):
    is_pull = True


class Webhook(Subscribed):
    is_pull = False


TestPull = Pull.TestCase
TestWebhook = Webhook.TestCase
TestPull.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestWebhook.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_pauses_between_attempts_double_up_to_a_minute() -> None:
    wake = state.begun(Wake(), 0, "w_1", None)
    pauses = []
    now = 0
    for _ in range(9):
        attempted = state.attempted(wake, now, "w_2", None, SPAN)
        assert attempted is not None
        wake = state.failed(attempted, Fence(1, "w_1"), attempted.attempt, now, 0.5)
        assert wake.due_at is not None
        pauses.append((wake.due_at - now) / SECOND)
        now = wake.due_at
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert wake.status == "failed"
    assert state.delivered(wake, Fence(1, "w_1")).status == "active"


def test_an_attempt_is_of_another_wake_once_the_lease_of_the_first_is_over() -> None:
    wake = state.begun(Wake(), 0, "w_1", LEASE)
    early = state.attempted(wake, LEASE - 1, "w_2", LEASE, SPAN)
    late = state.attempted(wake, LEASE, "w_2", LEASE, SPAN)
    assert early is not None
    assert late is not None
    assert (early.generation, early.wake_id) == (1, "w_1")
    assert (late.generation, late.wake_id, late.lease_until) == (2, "w_2", 2 * LEASE)


def test_the_failure_of_an_attempt_whose_server_was_given_up_changes_nothing() -> None:
    wake = state.begun(Wake(), 0, "w_1", None)
    first = state.attempted(wake, 0, "-", None, SPAN)
    assert first is not None
    assert state.attempted(first, SPAN - 1, "-", None, SPAN) is None
    second = state.attempted(first, SPAN, "-", None, SPAN)
    assert second is not None
    assert state.failed(second, Fence(1, "w_1"), first.attempt, SPAN, 0.5) == second
    assert state.failed(second, Fence(1, "w_1"), second.attempt, SPAN, 0.5).failures == 1


def test_an_offer_to_which_there_is_nothing_any_more_is_taken_back() -> None:
    wake = state.attempted(state.begun(Wake(), 0, "w_1", None), 0, "-", None, SPAN)
    assert wake is not None
    offered = state.delivered(wake, Fence(1, "w_1"))
    assert offered.phase == Phase.OFFERED
    # Or its worker would have come in vain, and none would come for what is pending later.
    answered = state.claimed(offered, 1, "a", LEASE, False, "w_2")
    assert (answered.phase, answered.due_at) == (Phase.IDLE, 1)
    idle = state.settled(answered, 1, False, "w_2", None)
    assert state.claimed(idle, 2, "a", LEASE, False, "w_2") == idle


def test_a_receiver_that_answers_before_its_request_has_ended_holds_the_wake() -> None:
    wake = state.attempted(state.begun(Wake(), 0, "w_1", LEASE), 0, "-", LEASE, SPAN)
    assert wake is not None
    fence = Fence(1, "w_1")
    held = state.acknowledged(wake, fence, 1, LEASE, done=False)
    assert held.phase == Phase.HELD
    # Neither the end of the request nor its failure takes it away.
    assert state.delivered(held, fence) == held
    assert state.failed(held, fence, 1, 2, 0.5) == held


@pytest.mark.parametrize(
    "fence", [Fence(2, "w_1"), Fence(1, "w_2"), Fence(0, "w_1"), Fence(-1, "")]
)
def test_another_wake_is_fenced(fence: Fence) -> None:
    wake = state.claimed(Wake(), 0, "a", LEASE, True, "w_1")
    for act in (
        lambda: state.acknowledged(wake, fence, 1, LEASE, done=True),
        lambda: state.released(wake, fence, 1),
    ):
        with pytest.raises(Refused) as refused:
            act()
        assert (refused.value.status, refused.value.code) == (409, "FENCED")


def test_who_comes_second_is_told_who_holds_it() -> None:
    wake = state.claimed(Wake(), 0, "a", LEASE, True, "w_1")
    with pytest.raises(Refused) as refused:
        state.claimed(wake, LEASE - 1, "b", LEASE, True, "w_2")
    assert refused.value.code == "ALREADY_CLAIMED"
    assert refused.value.more == {"current_holder": "a", "generation": 1}
    later = state.claimed(wake, LEASE, "b", LEASE, True, "w_2")
    assert (later.holder, later.generation, later.wake_id) == ("b", 2, "w_2")
