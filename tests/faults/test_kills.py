"""Whatever is killed at whatever moment, a read model is what a plain fold of the log says.

`EVENTSTORE_FAULTS_ROUNDS` makes it longer, `EVENTSTORE_FAULTS_SEED` has one run's choices again
(the moments of the kills are the machine's).
"""

from __future__ import annotations

import json
import os
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from databases import buried, described, is_sqlite, mortal, rows, shadows
from killing import IN_STEP, POINTS
from ledger import (
    ACCOUNTS,
    KINDS,
    Ledger,
    Marks,
    Model,
    Notes,
    Opened,
    Shares,
    Tally,
    Totals,
    modelled,
)
from workers import FOLLOWERS, PROJECTIONS, Job, Outcome, Place, Workers, workers

from eventstore import EventStore, TableProjection
from eventstore.log.followers import Followers
from eventstore.log.opening import open_engine

ROUNDS = int(os.environ.get("EVENTSTORE_FAULTS_ROUNDS", "40"))
SEED = os.environ.get("EVENTSTORE_FAULTS_SEED") or str(random.SystemRandom().randrange(10**9))


@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
def test_killed_workers_leave_read_models_that_equal_a_plain_fold(
    database_url: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    faults = Following(database_url, tmp_path)
    for name, value in faults.run(ROUNDS).items():
        record_property(name, value)
    assert faults.rebuilding >= faults.rounds // 4


@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
def test_killed_appends_leave_a_read_model_in_step_with_the_log(
    database_url: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    faults = Stepping(database_url, tmp_path)
    for name, value in faults.run(max(1, ROUNDS // 5)).items():
        record_property(name, value)


class Faults(ABC):
    """Rounds of work with kills on one database, and what is checked after each."""

    in_step: Sequence[type[TableProjection]] = ()

    def __init__(self, url: str, folder: Path) -> None:
        path = folder / "marks"
        self.place = Place(mortal(url), str(path), bool(self.in_step))
        self.marks = Ledger.marks = Notes.marks = Marks(path)
        # One engine, and another store each time, with nothing that the one before knew.
        self.engine, self._close = open_engine(url, durability="relaxed")
        self.chance = random.Random(SEED)
        self.names: list[str] = []
        #: How long each kind of work takes: kills are to hit it in the middle.
        self._seconds: dict[str, float] = {}
        #: Rounds in which somebody was killed, and those of them where that was a rebuild.
        self.rounds = 0
        self.rebuilding = 0
        self.kills: Counter[str] = Counter()
        self.done = 0
        with self.store() as store:
            for kind in KINDS:  # whose streams are never deleted
                store.append(f"{ACCOUNTS}/keeper-{kind}", Opened(kind=kind))
            self.begin(store)
            self.whole = described(store)

    def store(self) -> EventStore:
        return EventStore(self.engine, notify=False, in_step=self.in_step)

    def run(self, rounds: int) -> dict[str, int]:
        """So many rounds in which somebody is killed; how many of what kind there were."""
        print(f"seed {SEED}", end=" ")  # noqa: T201
        with workers(self.place) as forked:
            while self.rounds < rounds:
                self._round(forked)
        with self.store() as store:
            self.finish(store)
            with store.connect() as connection:
                assert shadows(connection) == []
            assert not any(status.rebuild for status in store.status())
        self._close()
        report = {
            "rounds": self.rounds,
            "of a rebuild": self.rebuilding,
            **dict(sorted(self.kills.items())),
        }
        print(json.dumps(report, indent=1))  # noqa: T201
        return report

    def _round(self, forked: Workers) -> None:
        self.done += 1
        jobs = self.jobs()
        outcomes = forked.round(f"{SEED} {self.done}", jobs)
        try:
            assert all(outcome.killed or outcome.code == 0 for outcome in outcomes)
            self._count(jobs, outcomes)
            with self.store() as store:
                self.check(store)
        except BaseException as error:
            error.add_note(f"seed {SEED}, round {self.done}: {jobs} {outcomes}")
            raise

    def _count(self, jobs: list[Job], outcomes: list[Outcome]) -> None:
        killed = []
        for job, outcome in zip(jobs, outcomes, strict=True):
            kind = job.work.split()[0]
            known = self._seconds.get(kind, outcome.seconds)
            if outcome.killed:
                killed.append(kind)
                self.kills[f"{kind}: {job.fuse or 'at random'}"] += 1
                if job.fuse:  # it would have taken longer
                    self._seconds[kind] = max(known, outcome.seconds)
            else:
                self._seconds[kind] = known * 0.8 + outcome.seconds * 0.2
        self.rounds += bool(killed)
        self.rebuilding += "rebuild" in killed

    # --- making jobs ---------------------------------------------------------------------------

    def writers(self, count: int) -> Iterator[str]:
        """What writers do: with accounts of their own, and some that were there before."""
        names = [f"{self.done}-{number}" for number in range(count)]
        for name in names:
            old = self.chance.sample(self.names, min(3, len(self.names)))
            yield " ".join(["write", name, *old])
        self.names += names

    def job(self, words: str, points: Sequence[tuple[str, int]]) -> Job:
        """A job that is to be killed: at one of these points, or just at some moment."""
        if self.chance.random() < 0.35:
            return self.timed(words, 0.9)
        point, most = self.chance.choice(points)
        return Job(words, point, self.chance.randint(1, most))

    def timed(self, words: str, likely: float) -> Job:
        """A job that is to be killed at some moment, if at all."""
        usual = self._seconds.get(words.split()[0], 0.1)
        is_killed = self.chance.random() < likely
        return Job(words, after=self.chance.uniform(0, usual) if is_killed else None)

    @abstractmethod
    def begin(self, store: EventStore) -> None:
        """Bring everything to where rounds begin."""

    @abstractmethod
    def jobs(self) -> list[Job]:
        """What is done at the same time in one round."""

    @abstractmethod
    def check(self, store: EventStore) -> None:
        """What must hold after each round."""

    @abstractmethod
    def finish(self, store: EventStore) -> None:
        """Rebuild at rest: nothing changes, and what others have left is cleared away."""


class Following(Faults):
    """Projections and a handler that follow the log."""

    def begin(self, store: EventStore) -> None:
        for follower in FOLLOWERS.values():
            store.catch_up(follower)

    def jobs(self) -> list[Job]:
        chance = self.chance
        jobs = [self.timed(words, 0.4) for words in self.writers(chance.choice((1, 1, 2)))]
        if chance.random() < 0.5:
            jobs.append(self.job(f"rebuild {chance.choice(REBUILT)}", POINTS["rebuild"]))
            if chance.random() < 0.5:
                jobs.append(self._following())
        else:
            jobs += [self._following() for _ in range(chance.choice((1, 1, 2)))]
            if chance.random() < 0.3:
                jobs.append(self.job("fold", POINTS["fold"]))
        return jobs[-3:]

    def _following(self) -> Job:
        chance = self.chance
        what = chance.sample(list(FOLLOWERS), chance.choice((1, 2, 3)))
        return self.job(" ".join([chance.choice(("follow", "run")), *what]), POINTS["follow"])

    def check(self, store: EventStore) -> None:
        tables = (Ledger.kinds, Ledger.accounts, Shares.totals, Shares.holders)
        with store.connect() as connection:
            assert all(rows(connection, table) for table in tables)  # at once
        if not is_sqlite(store.log):
            if self.chance.random() < 0.5:  # while the server may still hold locks of the dead
                store.catch_up(self.chance.choice(list(FOLLOWERS.values())))
            buried(store)
        assert described(store) == self.whole
        behind = min(Followers(store.log).positions(Ledger.__follower__))
        for follower in self.chance.sample(list(FOLLOWERS.values()), len(FOLLOWERS)):
            head = store.head()
            assert store.catch_up(follower) >= head
        self._compare(store, behind)
        assert described(store) == self.whole

    def _compare(self, store: EventStore, behind: int) -> None:
        records = list(store.read_all())
        model = modelled(records)
        accounts = [(id, *model.accounts[id]) for id in sorted(model.accounts)]
        kinds = [(kind, *model.kinds[kind]) for kind in sorted(KINDS)]
        with store.connect() as connection:
            assert rows(connection, Ledger.accounts) == accounts
            assert rows(connection, Ledger.kinds) == kinds
            assert rows(connection, Shares.holders) == [account[:4] for account in accounts]
            assert rows(connection, Shares.totals) == kinds
        assert store.project(Totals).amounts == {account[0]: account[2] for account in accounts}
        for follower in FOLLOWERS.values():
            assert store.parked(follower) == []
            shards = Followers(store.log).find(follower.__follower__)
            assert [row.shard for row in shards] == list(range(follower.__shards__))
            assert {row.owner for row in shards} == {None}
            assert all(row.position <= records[-1].position for row in shards)
        self._compare_effects(model, behind)

    def _compare_effects(self, model: Model, behind: int) -> None:
        assert len(model.noted) == len(set(model.noted))  # at most once,
        assert set(model.to_note) <= set(model.noted)  # at least once if it is still there,
        assert set(model.noted) <= self._marked("call")  # and never out of nothing
        # Those of a projection do not run for what a rebuild has gone past.
        assert {id for position, id in model.added if position > behind} <= self._marked("effect")

    def _marked(self, what: str) -> set[str]:
        return {id for kind, id in self.marks.all() if kind == what}

    def finish(self, store: EventStore) -> None:
        before = self.marks.all()
        for name in REBUILT:
            store.rebuild(PROJECTIONS[name], verify=True)
            store.rebuild(PROJECTIONS[name])
        store.forget(Totals)
        self._compare(store, store.head())
        assert self.marks.all() == before
        assert described(store) == self.whole


#: The projections that are rebuilt while they follow the log.
REBUILT = ("ledger", "shares")


class Stepping(Faults):
    """A projection that runs in the transaction of each append."""

    in_step = (Tally,)

    def begin(self, store: EventStore) -> None:
        """It has been brought up to date as the store was opened."""

    def jobs(self) -> list[Job]:
        jobs = [self.job(words, IN_STEP) for words in self.writers(2)]
        if self.chance.random() < 0.6:
            jobs.append(self.job("rebuild tally", POINTS["rebuild"]))
        return jobs

    def check(self, store: EventStore) -> None:
        if not is_sqlite(store.log):
            buried(store)
        self._compare(store)
        assert described(store) == self.whole

    def _compare(self, store: EventStore) -> None:
        model = modelled(store.read_all())  # nobody has to catch up
        with store.connect() as connection:
            assert rows(connection, Tally.entries) == [
                (id, *model.accounts[id][:3]) for id in sorted(model.accounts)
            ]
        (shard,) = Followers(store.log).find(Tally.__follower__)
        assert shard.in_step
        assert store.parked(Tally) == []

    def finish(self, store: EventStore) -> None:
        store.rebuild(Tally, verify=True)
        self._compare(store)
        store.leave_step(Tally)
        store.append(f"{ACCOUNTS}/late", Opened(kind="cash"))
        store.catch_up(Tally)
        with store.connect() as connection:
            assert ("late", "cash", 0, 1) in rows(connection, Tally.entries)
