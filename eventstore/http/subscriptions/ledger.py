"""What is done to subscriptions in the database: each a short transaction, decided by `state`.

The methods wait for the database. News that come while a subscription is busy wake nobody; so
whatever makes it idle leaves it due, and looks for what is pending *after* it has committed. If
that server dies in between, another finds it due.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from sqlalchemy import Connection

from eventstore.http.subscriptions import state
from eventstore.http.subscriptions.bodies import is_reserved
from eventstore.http.subscriptions.globs import Glob
from eventstore.http.subscriptions.refusals import Refused, invalid, nothing_pending, unknown
from eventstore.http.subscriptions.state import SECOND, Fence, Phase, Wake
from eventstore.log.base import Log
from eventstore.log.wakes import PAGE, Link, Subscription, Tail, Wakes

#: Streams that a wake tells of, at the most; the next one tells of the others.
MOST_PENDING: Final = 1000
#: Streams of a subscription that are listed, at the most.
MOST_LISTED: Final = 10_000
#: Microseconds that an attempt may take, and how much later another server may begin the next.
_ATTEMPT: Final = 30 * SECOND
_GRACE: Final = 5 * SECOND

PULL: Final = "pull-wake"

Places = Mapping[str, tuple[int, int]]


class Interests:
    """What all subscriptions look for, so that a stream that moves is known without a query."""

    def __init__(self, found: Iterable[tuple[str, str | None, str | None]] = ()) -> None:
        self.ids: set[str] = set()
        self.globs: dict[str, Glob] = {}
        #: The same by the first segment of what they match: "" for any.
        self._by_first: dict[str, list[tuple[str, Glob]]] = {}
        self._wake_streams: set[str] = set()
        for id, pattern, wake_stream in found:
            self.ids.add(id)
            if pattern is not None:
                glob = self.globs[id] = Glob(pattern)
                first = glob.prefix.partition("/")[0]
                self._by_first.setdefault(first, []).append((id, glob))
            if wake_stream is not None:
                self._wake_streams.add(wake_stream)

    def of(self, path: str) -> list[str]:
        """The subscriptions whose patterns have a stream."""
        first = path.partition("/")[0]
        some = [*self._by_first.get(first, ()), *self._by_first.get("", ())]
        return [id for id, glob in some if self.matches(glob, path)]

    def matches(self, glob: Glob, path: str) -> bool:
        """Whether a pattern has a stream. None has wake streams: they would wake each other."""
        return glob.matches(path) and path not in self._wake_streams and is_addressable(path)


class Delivery(NamedTuple):
    """An attempt to deliver the present wake of a subscription."""

    subscription: Subscription
    #: That it may take: a webhook's receiver has its lease meanwhile.
    seconds: float

    @property
    def fence(self) -> Fence:
        return Fence(self.subscription.generation, self.subscription.wake_id or "")


class Ledger:
    """The subscriptions of one log."""

    def __init__(self, log: Log) -> None:
        self.wakes = Wakes(log)

    # --- what there is -------------------------------------------------------------------------

    def interests(self) -> Interests:
        """What all subscriptions look for."""
        return Interests(self.wakes.interests())

    def find(self, id: str) -> Subscription:
        """A subscription. Raises Refused (404)."""
        found = self.wakes.find(id)
        if found is None:
            raise unknown(id)
        return found

    def create(self, wanted: Subscription, streams: Sequence[str]) -> tuple[Subscription, bool]:
        """The subscription, and whether it is new: what there is, is linked at its present end.

        Raises Refused (409) if there is another one of that id.
        """
        interests = self.interests()
        glob = None if wanted.pattern is None else Glob(wanted.pattern)

        def matches(path: str) -> bool:
            return glob is not None and interests.matches(glob, path) and path != wanted.wake_stream

        # Before the transaction, which keeps all other writers of SQLite waiting.
        tails: list[Tail] = []
        if glob is not None:
            every = self.wakes.every_tail(glob.prefix)
            tails = [tail for tail in every if matches(tail.path)]
        made = False
        while not made:
            with self.wakes.transaction() as connection:
                found = self.wakes.lock(connection, wanted.id)
                if found is not None and not found.deleted:
                    if found.digest != wanted.digest:
                        raise _other(wanted.id)
                    return found, False
                if found is not None:
                    # Its generations go on, so that nothing of the deleted one is ever valid.
                    wanted = wanted._replace(generation=found.generation, attempt=found.attempt)
                now = self.wakes.now(connection)
                wanted = wanted._replace(created_at=now, due_at=now)
                if found is not None:
                    self.wakes.replace(connection, wanted)
                    made = True
                else:
                    made = self.wakes.add(connection, wanted)
                if made:
                    self._link(connection, wanted.id, streams, matches)
                    self.wakes.link(connection, wanted.id, tails, matches, explicit=False)
        if glob is not None:
            # Streams that were made since these were listed: they are new from their start.
            self._discover(wanted.id, glob, matches)
        self.settle(wanted.id)
        return wanted, True

    def delete(self, id: str) -> None:
        """End a subscription: what comes for it from now on is refused. Raises Refused (404)."""
        with self.wakes.transaction() as connection:
            found = self._locked(connection, id)
            gone = _with(found, state.ended(wake_of(found), 0))
            self.wakes.replace(connection, gone._replace(deleted=True, due_at=None))
            self.wakes.unlink(connection, id)

    def add_streams(self, id: str, paths: Sequence[str]) -> None:
        """Link streams explicitly. Raises Refused (400, 404)."""
        interests = self.interests()
        with self.wakes.transaction() as connection:
            found = self._locked(connection, id)
            if found.wake_stream in paths:
                raise invalid("a subscription cannot wake by a stream that it follows")
            glob = None if found.pattern is None else Glob(found.pattern)
            self._link(
                connection,
                id,
                paths,
                lambda path: glob is not None and interests.matches(glob, path),
            )
        self.settle(id)

    def remove_stream(self, id: str, path: str) -> None:
        """Remove an explicit link. Raises Refused (404)."""
        with self.wakes.transaction() as connection:
            self._locked(connection, id)
            self.wakes.unlink(connection, id, path)

    def _link(
        self,
        connection: Connection,
        id: str,
        paths: Iterable[str],
        matches: Callable[[str], bool],
    ) -> None:
        """Link streams explicitly at their present end; what there is not, at its start."""
        tails = self.wakes.tails(paths, connection)
        every = [tails.get(path) or Tail(path, 0, 0) for path in paths]
        self.wakes.link(connection, id, every, matches, explicit=True)

    # --- what wakes ----------------------------------------------------------------------------

    def notice(self, paths: Iterable[str], interests: Interests) -> None:
        """These streams have moved: link those that are new, and wake who has to know."""
        paths = [path for path in paths if not is_reserved(path)]
        known = self.wakes.linking(paths)
        waking = {id for (id, _), is_pending in known.items() if is_pending}
        new: dict[str, list[str]] = {}
        for path in paths:
            for id in interests.of(path):
                if (id, path) not in known:
                    new.setdefault(id, []).append(path)
        for id, some in new.items():
            if self._link_new(id, interests.globs[id], self.wakes.tails(some).values()):
                waking.add(id)
        for id in waking:
            self.wake(id)

    def look(self, interests: Interests) -> None:
        """Anything may have moved."""
        for id, glob in interests.globs.items():
            self._discover(id, glob, partial(interests.matches, glob))
        self.recheck(interests)

    def recheck(self, interests: Interests) -> None:
        """Wake who has something pending, whatever was heard. New streams are not looked for."""
        gone = self.wakes.gone(PAGE)
        if gone:
            # Or the links to streams that come and go would be ever more.
            with self.wakes.transaction() as connection:
                self.wakes.drop(connection, sorted(gone))
            # Those that were made anew meanwhile are linked again.
            self.notice({path for _, path in gone}, interests)
        for id in self.wakes.waking():
            self.wake(id)

    def _discover(self, id: str, glob: Glob, matches: Callable[[str], bool]) -> None:
        """Link the streams that match and are not linked yet: they are new."""
        some: list[Tail] = []
        for tail in self.wakes.every_tail(glob.prefix):
            if matches(tail.path):
                some.append(tail)
            if len(some) == PAGE:
                self._link_new(id, glob, some)
                some = []
        if some:
            self._link_new(id, glob, some)

    def _link_new(self, id: str, glob: Glob, tails: Iterable[Tail]) -> bool:
        """Link streams at their start, unless they are linked; whether any was new."""
        every = {tail.path: tail for tail in tails}
        for path in self.wakes.linked(id, list(every)):
            del every[path]
        if not every:
            return False
        starts = [Tail(path, tail.incarnation, 0) for path, tail in every.items()]
        with self.wakes.transaction() as connection:
            found = self.wakes.lock(connection, id)
            if found is None or found.deleted or found.pattern != glob.text:
                return False
            self.wakes.link(connection, id, starts, glob.matches, explicit=False)
        return True

    def wake(self, id: str) -> None:
        """Something is pending, by what was seen: begin a wake if there is none."""
        with self.wakes.transaction() as connection:
            found = self.wakes.lock(connection, id)
            if found is not None and not found.deleted:
                now = self.wakes.now(connection)
                wake = state.settled(wake_of(found), now, True, _new_id(), _lease(found))
                self._put(connection, found, wake)

    def settle(self, id: str) -> bool:
        """Look for what is pending of one that is idle; whether a wake is on its way then."""
        seen = self.wakes.find(id)
        if seen is None or seen.phase != Phase.IDLE:
            return seen is not None and seen.phase in (Phase.WAKING, Phase.OFFERED)
        pending = self.wakes.is_pending(id)
        with self.wakes.transaction() as connection:
            found = self.wakes.lock(connection, id)
            if found is None or found.deleted:
                return False
            # What was not pending may be by now, if somebody has worked on it meanwhile.
            if pending or wake_of(found) == wake_of(seen):
                now = self.wakes.now(connection)
                wake = state.settled(wake_of(found), now, pending, _new_id(), _lease(found))
                found = self._put(connection, found, wake)
            return found.phase in (Phase.WAKING, Phase.OFFERED)

    # --- delivery ------------------------------------------------------------------------------

    def take(self, limit: int) -> list[Delivery]:
        """See to what is due; the wakes that this server is to deliver now."""
        taken = []
        for id in self.wakes.due(limit):
            with self.wakes.transaction() as connection:
                found = self.wakes.lock(connection, id)
                if found is None or found.deleted:
                    continue
                now = self.wakes.now(connection)
                lease = _lease(found)
                wake = state.expired(wake_of(found), now)
                span = min(_ATTEMPT, found.lease_ttl) + _GRACE
                attempt = state.attempted(wake, now, _new_id(), lease, span)
                found = self._put(connection, found, attempt or wake)
            if attempt is not None:
                left = (attempt.lease_until or now + _ATTEMPT) - now
                taken.append(Delivery(found, min(_ATTEMPT, left) / SECOND))
            else:
                self.settle(id)
        return taken

    def contents(self, delivery: Delivery) -> list[Link]:
        """What a wake is to tell of. If nothing is pending any more, it is withdrawn."""
        id = delivery.subscription.id
        pending = self.wakes.pending(id, MOST_PENDING)
        if not pending:
            with self.wakes.transaction() as connection:
                found = self.wakes.lock(connection, id)
                if found is None or wake_of(found) != wake_of(delivery.subscription):
                    return []
                now = self.wakes.now(connection)
                self._put(connection, found, state.ended(wake_of(found), now))
            self.settle(id)
        return pending

    def delivered(self, delivery: Delivery, acks: Places | None = None) -> None:
        """An attempt has come to its end; with `acks` the receiver is done with these."""
        id, fence = delivery.subscription.id, delivery.fence
        with self.wakes.transaction() as connection:
            found = self.wakes.lock(connection, id)
            if found is None or found.deleted:
                return
            now = self.wakes.now(connection)
            wake = state.delivered(wake_of(found), fence)
            if acks is not None:
                try:
                    wake = state.acknowledged(wake, fence, now, found.lease_ttl, done=True)
                except Refused:
                    acks = None  # too late: another wake tells of it again
                else:
                    self.wakes.acknowledge(connection, id, acks)
            self._put(connection, found, wake)
        if acks is not None:
            self.settle(id)

    def failed(self, delivery: Delivery) -> None:
        """An attempt has failed: the next is due later."""
        id, fence = delivery.subscription.id, delivery.fence
        with self.wakes.transaction() as connection:
            found = self.wakes.lock(connection, id)
            if found is not None and not found.deleted:
                now = self.wakes.now(connection)
                attempt = delivery.subscription.attempt
                wake = state.failed(wake_of(found), fence, attempt, now, random.random())
                self._put(connection, found, wake)

    # --- workers -------------------------------------------------------------------------------

    def claim(self, id: str, worker: str) -> tuple[Subscription, list[Link]]:
        """Give a wake to a worker; it, and what is pending. Raises Refused: 400, 404, 409."""
        while True:
            # It is a look at every stream: not with a lock in hand, which on SQLite is that of all.
            seen = self.find(id)
            _check_kind(seen, is_pull=True)
            # Whoever comes in vain is told before: then it does not matter what is pending.
            state.claimed(wake_of(seen), self.wakes.now(), worker, seen.lease_ttl, True, "")
            pending = self.wakes.pending(id, MOST_PENDING)
            with self.wakes.transaction() as connection:
                found = self._locked(connection, id, is_pull=True)
                if wake_of(found) != wake_of(seen):
                    continue  # somebody has claimed it meanwhile, or acknowledged what was seen
                now = self.wakes.now(connection)
                wake = state.claimed(
                    wake_of(found), now, worker, found.lease_ttl, bool(pending), _new_id()
                )
                found = self._put(connection, found, wake)
                break
        if not pending:
            if found.due_at is not None:
                self.settle(id)
            raise nothing_pending()
        return found, pending

    def acknowledge(
        self, id: str, fence: Fence, acks: Places, *, done: bool, is_pull: bool
    ) -> bool:
        """Move cursors, and go on or end; whether another wake follows.

        Raises Refused: 400, 404, 409.
        """
        with self.wakes.transaction() as connection:
            found = self._locked(connection, id, is_pull=is_pull)
            now = self.wakes.now(connection)
            wake = state.acknowledged(wake_of(found), fence, now, found.lease_ttl, done=done)
            links = self.wakes.links_of(id, acks, connection)
            _check_places(acks, links, None if found.pattern is None else Glob(found.pattern))
            self.wakes.acknowledge(connection, id, acks)
            self._put(connection, found, wake)
        return self.settle(id) if done else False

    def release(self, id: str, fence: Fence) -> None:
        """Take a wake back from its worker. Raises Refused: 400, 404, 409."""
        with self.wakes.transaction() as connection:
            found = self._locked(connection, id, is_pull=True)
            now = self.wakes.now(connection)
            self._put(connection, found, state.released(wake_of(found), fence, now))
        self.settle(id)

    # --- their parts ---------------------------------------------------------------------------

    def _locked(
        self, connection: Connection, id: str, *, is_pull: bool | None = None
    ) -> Subscription:
        found = self.wakes.lock(connection, id)
        if found is None or found.deleted:
            raise unknown(id)
        if is_pull is not None:
            _check_kind(found, is_pull=is_pull)
        return found

    def _put(self, connection: Connection, found: Subscription, wake: Wake) -> Subscription:
        if wake == wake_of(found):
            return found
        self.wakes.put(connection, found.id, wake)
        return _with(found, wake)


def is_addressable(path: str) -> bool:
    """Whether a stream of the log has a URL: the application may have named it otherwise."""
    return (
        "\\" not in path
        and not is_reserved(path)
        and not any(segment in ("", ".", "..") for segment in path.split("/"))
    )


def wake_of(found: Subscription) -> Wake:
    """The state of a subscription."""
    return Wake(
        found.generation,
        found.phase,
        found.wake_id,
        found.holder,
        found.lease_until,
        found.due_at,
        found.attempt,
        found.failures,
    )


def _with(found: Subscription, wake: Wake) -> Subscription:
    return found._replace(**wake._asdict())


def _lease(found: Subscription) -> int | None:
    """How long a lease is that begins with the wake."""
    return None if found.type == PULL else found.lease_ttl


def _check_kind(found: Subscription, *, is_pull: bool) -> None:
    """Raise Refused (400) for a request that belongs to the other kind."""
    if is_pull != (found.type == PULL):
        raise invalid(f"the subscription is {found.type}, which has no such request")


def _new_id() -> str:
    return f"w_{secrets.token_urlsafe(16)}"


def _other(id: str) -> Refused:
    return Refused(
        409,
        "SUBSCRIPTION_ALREADY_EXISTS",
        f"there is a subscription {id!r} with another configuration: delete it first",
    )


def _check_places(places: Places, links: Mapping[str, Link], glob: Glob | None) -> None:
    """Raise Refused (409) unless there are messages up to all of these.

    A stream may be gone since its worker was told of it, and its link too: that is no mistake.
    """
    for path, place in places.items():
        link = links.get(path)
        if link is None:
            if glob is not None and glob.matches(path):
                continue
            raise Refused(409, "INVALID_OFFSET", f"{path!r} is no stream of the subscription")
        if link.tail >= 0 and place > (link.tail_incarnation, link.tail):
            raise Refused(409, "INVALID_OFFSET", f"{path!r} has no such offset yet")
