"""The state of a subscription's wake: decided purely, from what is stored and the time.

    IDLE      nobody works and nobody is called
    WAKING    a wake is issued, and is to be delivered at `due_at`, again and again until it is
    OFFERED   the event is in the wake stream (pull-wake), and waits for a worker that claims it
    HELD      a worker has it, until `lease_until`

Only from IDLE does a new wake begin, with the next generation and a name of its own. A request must
name the present wake, and its lease may not have run out: whoever was stopped for longer than that
changes nothing any more. Times are microseconds since the epoch, by the clock of the database.
PROTOCOL.md, section 7.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from eventstore.http.subscriptions.refusals import Refused, fenced

SECOND: Final = 1_000_000
#: Microseconds between a first failed attempt and the next; doubled with each, up to the longest.
_FIRST: Final = SECOND
_LONGEST: Final = 60 * SECOND
#: How much longer or shorter a pause may be by chance.
_JITTER: Final = 0.2


class Phase(enum.IntEnum):
    """Where a wake is."""

    IDLE = 0
    WAKING = 1
    OFFERED = 2
    HELD = 3


class Wake(NamedTuple):
    """The state, as it is stored."""

    generation: int = 0
    phase: int = Phase.IDLE
    wake_id: str | None = None
    holder: str | None = None
    lease_until: int | None = None
    due_at: int | None = None
    attempt: int = 0
    failures: int = 0

    @property
    def status(self) -> str:
        """What clients are told (section 6.3)."""
        return "failed" if self.failures and self.phase == Phase.WAKING else "active"

    def is_over(self, now: int) -> bool:
        """Whether its lease has run out. A wake that nobody holds has none."""
        return self.lease_until is not None and self.lease_until <= now


class Fence(NamedTuple):
    """Which wake a request is about."""

    generation: int
    wake_id: str


def begun(wake: Wake, now: int, wake_id: str, lease: int | None) -> Wake:
    """A new wake, from IDLE. `lease` is its length: a webhook's begins here, a claim's later."""
    return wake._replace(
        generation=wake.generation + 1,
        phase=Phase.WAKING,
        wake_id=wake_id,
        holder=None,
        lease_until=None if lease is None else now + lease,
        due_at=now,
    )


def ended(wake: Wake, now: int) -> Wake:
    """No wake. It is due at once: somebody has to look for what is pending, after this."""
    return wake._replace(phase=Phase.IDLE, wake_id=None, holder=None, lease_until=None, due_at=now)


def settled(wake: Wake, now: int, pending: bool, wake_id: str, lease: int | None) -> Wake:
    """What becomes of an idle one when somebody has looked; any other stays as it is."""
    if wake.phase != Phase.IDLE:
        return wake
    if pending:
        return begun(wake, now, wake_id, lease)
    return wake._replace(due_at=None)


def expired(wake: Wake, now: int) -> Wake:
    """What becomes of it if its holder's lease has run out."""
    return ended(wake, now) if wake.phase == Phase.HELD and wake.is_over(now) else wake


# --- delivery ------------------------------------------------------------------------------------


def attempted(wake: Wake, now: int, wake_id: str, lease: int | None, span: int) -> Wake | None:
    """An attempt to deliver begins, which has `span` to end; None if none is due.

    If it does not end, because its server has, the next is due then. A wake whose lease is over
    before it is delivered becomes another one.
    """
    if wake.phase != Phase.WAKING or wake.due_at is None or wake.due_at > now:
        return None
    if wake.is_over(now):
        wake = begun(wake, now, wake_id, lease)
    return wake._replace(attempt=wake.attempt + 1, due_at=now + span)


def delivered(wake: Wake, fence: Fence) -> Wake:
    """It has arrived: a webhook's receiver holds it until its lease ends, a worker may claim it."""
    if wake.phase != Phase.WAKING or not _is(wake, fence):
        return wake
    held = wake.lease_until is not None
    return wake._replace(
        phase=Phase.HELD if held else Phase.OFFERED, due_at=wake.lease_until, failures=0
    )


def failed(wake: Wake, fence: Fence, attempt: int, now: int, chance: float) -> Wake:
    """An attempt has failed, if no later one has begun: when the next is due.

    `chance` is from 0 to 1.
    """
    if wake.phase != Phase.WAKING or not _is(wake, fence) or wake.attempt != attempt:
        return wake
    pause = min(_FIRST << min(wake.failures, 10), _LONGEST)
    pause += round(pause * _JITTER * (2 * chance - 1))
    return wake._replace(failures=wake.failures + 1, due_at=now + pause)


# --- what clients ask for ------------------------------------------------------------------------


def claimed(wake: Wake, now: int, worker: str, lease: int, pending: bool, wake_id: str) -> Wake:
    """A worker asks for the wake. With nothing pending nobody holds it afterwards.

    Raises Refused: ALREADY_CLAIMED.
    """
    wake = expired(wake, now)
    if wake.phase == Phase.HELD:
        raise Refused(
            409,
            "ALREADY_CLAIMED",
            f"{wake.holder!r} holds the subscription",
            {"current_holder": wake.holder or "", "generation": wake.generation},
        )
    if not pending:
        return wake if wake.phase == Phase.IDLE else ended(wake, now)
    if wake.phase == Phase.IDLE:
        wake = begun(wake, now, wake_id, None)
    return wake._replace(
        phase=Phase.HELD, holder=worker, lease_until=now + lease, due_at=now + lease, failures=0
    )


def acknowledged(wake: Wake, fence: Fence, now: int, lease: int, *, done: bool) -> Wake:
    """A receiver or worker says how far it is: it goes on for another lease, or is done.

    Raises Refused: FENCED.
    """
    check(wake, fence, now)
    wake = wake._replace(failures=0)
    if done:
        return ended(wake, now)
    return wake._replace(phase=Phase.HELD, lease_until=now + lease, due_at=now + lease)


def released(wake: Wake, fence: Fence, now: int) -> Wake:
    """A worker gives the wake back. Raises Refused: FENCED."""
    check(wake, fence, now)
    return ended(wake, now)


def check(wake: Wake, fence: Fence, now: int) -> None:
    """Raise Refused (FENCED) unless this is the present wake, and somebody has it."""
    if not _is(wake, fence) or wake.lease_until is None or wake.is_over(now):
        raise fenced()


def _is(wake: Wake, fence: Fence) -> bool:
    return (wake.generation, wake.wake_id) == fence
