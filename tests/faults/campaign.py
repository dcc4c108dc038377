"""A campaign: clients work on one database, faults strike, and after each round all is compared."""

from __future__ import annotations

import random
import signal
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

from checking import Crash, check
from clients import FOLLOWERS, PROJECTIONS, Place
from databases import mortal, rows, shadows
from operations import Entry, History, entry, recorded
from processes import PATIENCE, VICTIMS, Process, Victim, started
from sheet import Parts, Sheet, folded

from eventstore import EventStore
from eventstore.errors import CheckpointAheadError
from eventstore.verification import verify

#: Streams on which the writers of a round meet.
STREAMS: Final = 6

Durability = Literal["full", "relaxed"]


class Broken(Exception):
    """A promise was not kept."""


class Counts(NamedTuple):
    """What was done, and what became of it. Kept for a kind of database, over its campaigns."""

    #: Rounds, faults and operations of each kind.
    rounds: Counter[str]
    faults: Counter[str]
    operations: Counter[str]
    #: Acknowledged appends that are gone, as was promised to be possible, by the reason.
    lost: Counter[str]


class Running(NamedTuple):
    """A victim at work."""

    victim: Victim
    place: Place
    process: Process


class Campaign(ABC):
    """Rounds on one database, each with streams of its own."""

    def __init__(
        self,
        durability: Durability,
        folder: Path,
        seed: str,
        counts: Counts,
        victims: Sequence[Victim] = VICTIMS,
    ) -> None:
        self.durability = durability
        self.folder = folder
        self.chance = random.Random(seed)
        self.counts = counts
        self.running: list[Running] = []
        #: The log as it was before the round, and as it was when it was last looked at.
        self.base: list[Entry] = []
        self.log: list[Entry] = []
        #: Where this round's clients are or were at work.
        self.places: list[Place] = []
        #: When all was dead in this round, where that may lose something.
        self.crashed: int | None = None
        #: When a backup was begun in this round.
        self.backed_up: int | None = None
        #: Whether this round's clients are all killed in the end.
        self.all_killed = False
        self._victims = victims
        self._seed = seed
        self._number = 0
        self._streams: list[str] = []
        self._of_round: list[str] = []

    # --- the database ----------------------------------------------------------------------------

    @abstractmethod
    def url(self, *, proxied: bool = False) -> str:
        """Where clients find it."""

    @abstractmethod
    def strike(self) -> None:
        """Do something to the database, or to the way there."""

    @abstractmethod
    def back_up(self) -> None:
        """Begin to copy the database while all work, or do it."""

    @abstractmethod
    def settle(self) -> None:
        """Take all faults away, and wait until nothing is under way any more."""

    @abstractmethod
    def afterwards(self, history: History) -> None:
        """What may be done to a database at rest, after its round was found right."""

    @abstractmethod
    def prepare(self) -> None:
        """Make what a round needs beside its clients."""

    @abstractmethod
    def look(self) -> None:
        """See whether the database lives, and what has to be done."""

    def store(self) -> EventStore:
        """For what this program does itself. It leaves no thread and no connection behind."""
        return EventStore(self.url(), durability="relaxed", notify=False)

    # --- rounds ----------------------------------------------------------------------------------

    def begin(self) -> None:
        with self.store() as store:
            for follower in FOLLOWERS:
                store.catch_up(follower)

    def round(self, seconds: float) -> None:
        """Some seconds of work and faults. Raises Broken."""
        self._number += 1
        self.base, self.running, self.places = self.log, [], []
        self.crashed = self.backed_up = None
        self.all_killed = self.chance.random() < 0.4
        new = [f"faults-sheet/{self._number}-{n}" for n in range(STREAMS)]
        old = self.chance.sample(self._streams, min(1, len(self._streams)))
        self._of_round = new + old
        self._streams += new
        try:
            self.prepare()
            for victim in self._victims:
                self.start(victim, self.last_position)
            self._work(time.monotonic() + seconds)
            self._end()
            self.settle()
            history = self._recorded()
            crash = None if self.crashed is None else Crash(self.crashed, may_lose=True)
            self.compare(history, crash, "crash of the server")
            self.afterwards(history)
        except Exception as error:
            error.add_note(f"seed {self._seed}, round {self._number}, in {self.folder}")
            raise
        for file in self.folder.glob(f"{self._number}-*"):
            file.unlink()
        self.counts.rounds["rounds"] += 1

    def start(self, victim: Victim, after: int, checkpoint: str = "") -> None:
        name = f"{self._number}-{len(self.places)}-{victim.name}"
        place = Place(
            mortal(self.url(proxied=victim.proxied and self.chance.random() < 0.7)),
            self.durability,
            self._of_round,
            self.folder / name,
            f"{self._seed} {name}",
            clock=self.chance.random() < 0.3,
            after=after,
            checkpoint=checkpoint,
        )
        if place.clock and victim.name == "writer":
            self.note("clock that steps back (a writer's)")
        self.places.append(place)
        process = started(victim.start(place), self.folder / f"{name}.errors")
        self.running.append(Running(victim, place, process))

    def note(self, fault: str, count: int = 1) -> None:
        self.counts.faults[fault] += count

    @property
    def last_position(self) -> int:
        return self.base[-1].position if self.base else 0

    def _work(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, self.chance.uniform(0.02, 0.25)))
            self.look()
            for victim, _, process in self.running:
                if process.has_ended:
                    raise Broken(f"a {victim.name} has ended: {process.errors}")
            if self.backed_up is None and self.chance.random() < 0.1:
                self.back_up()
            elif self.chance.random() < 0.45:
                self.replace(self.chance.choice(self.running))
            else:
                self.strike()

    def replace(self, running: Running) -> None:
        """Kill a client, and have another one go on in its place."""
        self.kill(running)
        victim, place, _ = running
        seen = recorded([place.journal]).scans if victim.name == "follower" else []
        self.start(victim, place.after, seen[-1].checkpoint if seen else place.checkpoint)

    def kill(self, running: Running) -> None:
        running.process.kill()
        self.running.remove(running)
        self.note(f"kill of a {running.victim.name}")

    def _end(self) -> None:
        """Have all clients end: what they have begun, or at once."""
        for victim, _, process in self.running:
            if self.all_killed or self.chance.random() < 0.2:
                process.signal(signal.SIGKILL)
                self.note(f"kill of a {victim.name}")
            else:
                process.signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while any(not process.has_ended for _, _, process in self.running):
            self.look()
            if time.monotonic() > deadline:
                for _, _, process in self.running:
                    process.signal(signal.SIGABRT)
                    process.wait()
                errors = [process.errors for _, _, process in self.running]
                raise Broken(f"clients do not end: {errors}")
            time.sleep(0.005)
        for victim, _, process in self.running:
            # One that has just begun may not listen yet, and ends by the signal itself.
            if process.wait() not in (0, -signal.SIGKILL, -signal.SIGTERM):
                raise Broken(f"a {victim.name} has failed: {process.errors}")
        self.running = []

    def _recorded(self) -> History:
        history = recorded(place.journal for place in self.places)
        done = self.counts.operations
        for append in history.appends:
            done[f"append: {append.outcome}"] += 1
        done["read of a stream"] += len(history.reads)
        for scan in history.scans:
            if scan.to_the_end:
                done["read of the log"] += 1
            else:
                done["event followed"] += len(scan.entries)
        return history

    # --- comparing -------------------------------------------------------------------------------

    def compare(self, history: History, crash: Crash | None, reason: str) -> list[str]:
        """The log with what clients were told, then the read models with the log; what is lost.

        Raises Broken.
        """
        with self.store() as store:
            records = list(store.read_all())
            self.log = list(map(entry, records))
            wrong, lost = check(history, self.log, base=self.base, crash=crash)
            latest: dict[str, int] = {}
            for record in records:
                if record._micros < latest.get(record.stream, 0):
                    wrong.append(f"{record} was recorded before the event that precedes it")
                latest[record.stream] = record._micros
            if wrong:
                raise Broken(f"{len(wrong)} answers were wrong: {wrong[:5]}")
            self._compare_models(store)
            for victim in self._victims:
                if victim.check is not None:
                    victim.check(store, self.places)
        self.counts.lost[reason] += len(lost)
        return lost

    def _compare_models(self, store: EventStore) -> None:
        for follower in self.chance.sample(FOLLOWERS, len(FOLLOWERS)):
            store.catch_up(follower)
            if parked := store.parked(follower):
                raise Broken(f"{follower.__name__} has parked {parked[0]}")
        records = list(store.read_all())  # with the echoes of what was just caught up
        self.log = list(map(entry, records))
        fold = folded(records)
        if fold.firsts != fold.echoed:
            raise Broken(f"of {len(fold.firsts)} streams, {len(fold.echoed)} were echoed")
        with store.connect() as connection:
            for table, due in ((Sheet.lines, fold.lines), (Parts.buckets, fold.buckets)):
                if (found := rows(connection, table)) != due:
                    raise Broken(f"{table} differs: {sorted(set(found) ^ set(due))[:6]}")

    def compare_restored(self, history: History) -> None:
        """The database is a backup of this round now: what was there before it, and nothing else.

        Raises Broken.
        """
        ends: dict[str, int] = {}
        for append in history.appends:
            if append.outcome == "acknowledged":
                ends[append.op] = min(append.end, ends.get(append.op, append.end))
        followed = self.log[-1].position if self.log else 0
        with self.store() as store:
            if store.head() < followed:
                try:
                    store.subscribe(followed).stop()
                except CheckpointAheadError:
                    pass
                else:
                    raise Broken("a follower is not told that an older log was restored")
        crash = Crash(time.monotonic_ns(), may_lose=True)
        assert self.backed_up is not None
        for op in self.compare(history, crash, "restored from a backup"):
            if ends[op] < self.backed_up:
                raise Broken(f"{op} was acknowledged before the backup, and is not in it")
        self.note("restored from a backup")

    def finish(self) -> None:
        """Rebuild at rest, and have all verified: nothing differs. Raises Broken."""
        with self.store() as store:
            for projection in PROJECTIONS:
                store.rebuild(projection, verify=True)
            with store.connect() as connection:
                left = shadows(connection)
            if left:
                raise Broken(f"rebuilds have left {left}")
            if found := list(verify(store, projections=PROJECTIONS)):
                raise Broken(f"eventstore verify finds {found[:3]}")

    def close(self) -> None:
        for _, _, process in self.running:
            process.kill()
