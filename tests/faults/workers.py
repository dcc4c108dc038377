"""The processes that are killed: forked from one that has everything imported and nothing open.

`python workers.py` takes a round a line on its standard input, as JSON, and answers with what
became of it. It has no threads and no connections when it forks.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, NamedTuple

import killing
import psycopg  # noqa: F401  so that each of the forked has it already
from ledger import (
    ACCOUNTS,
    KINDS,
    Added,
    Flagged,
    Ledger,
    Marks,
    Notes,
    Opened,
    Shares,
    Tally,
    Totals,
)

import eventstore.followers.follower
import eventstore.followers.rebuild
import eventstore.followers.runner
import eventstore.log.postgres
import eventstore.log.sqlite
from eventstore import STREAM_EXISTS, EventHandler, EventStore, TableProjection, Write
from eventstore.errors import (
    LeaseLostError,
    LogLockedError,
    RebuildRunningError,
    StreamDeletedError,
    StreamNotFoundError,
    WrongExpectedVersionError,
)
from eventstore.log import opening
from eventstore.log.opening import open_engine

#: Seconds after which a process that is neither done nor dead says where it hangs, and fails.
PATIENCE = 60.0
FOLLOWERS: dict[str, type[TableProjection] | type[EventHandler]] = {
    "ledger": Ledger,
    "shares": Shares,
    "notes": Notes,
}
PROJECTIONS: dict[str, type[TableProjection]] = {"ledger": Ledger, "shares": Shares, "tally": Tally}


class Job(NamedTuple):
    """What a process is to do, and how it ends: by a fuse, after so long, or by itself."""

    work: str
    fuse: str | None = None
    passings: int = 0
    after: float | None = None


class Outcome(NamedTuple):
    """How a process has ended: by a signal (negative) or with an exit code; after how long."""

    code: int
    seconds: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


# --- what they do ------------------------------------------------------------------------------


def follow(store: EventStore, what: list[str], chance: random.Random) -> None:
    for name in what:
        for _ in range(20):
            # Others take over, rebuild, or lock rows the other way round: then once more.
            with contextlib.suppress(LeaseLostError, LogLockedError):
                store.catch_up(FOLLOWERS[name])
                break


def run(store: EventStore, what: list[str], chance: random.Random) -> None:
    with store.runner(*(FOLLOWERS[name] for name in what), lease=5.0):
        time.sleep(chance.uniform(0.01, 0.08))


def rebuild(store: EventStore, what: list[str], chance: random.Random) -> None:
    for name in what:
        with contextlib.suppress(RebuildRunningError):
            store.rebuild(PROJECTIONS[name])


def fold(store: EventStore, what: list[str], chance: random.Random) -> None:
    store.project(Totals)


def write(store: EventStore, what: list[str], chance: random.Random) -> None:
    """Append to new accounts and old ones, several at once, in transactions that are rolled back
    too; delete one.
    """
    prefix = what[0]
    mine = []
    for number in range(chance.randint(1, 3)):
        mine.append((f"{ACCOUNTS}/{prefix}-{number}", chance.choice(KINDS)))
        store.append(mine[-1][0], Opened(kind=mine[-1][1]))
    for turn in range(chance.randint(2, 8)):
        (stream, kind), (other, _) = chance.choice(mine), chance.choice(mine)
        events: list[Any] = [
            Added(kind=kind, amount=chance.randint(-9, 99)) for _ in range(chance.randint(1, 5))
        ]
        match chance.choice(("one", "one", "flag", "several", "commit", "roll back", "keeper")):
            case "one":
                store.append(stream, events)
            case "flag":
                store.append(stream, Flagged(reason=f"{turn}"))
            case "several" if other != stream:
                writes = [Write(stream, events), Write(other, Flagged(reason="both"))]
                store.append_all(writes)
            case "commit" | "roll back" as end:
                with store.connect() as connection:
                    store.append(stream, events, connection=connection)
                    store.append(stream, Flagged(reason="joined"), connection=connection)
                    getattr(connection, "commit" if end == "commit" else "rollback")()
            case _:
                kind = chance.choice(KINDS)
                added = Added(kind=kind, amount=chance.randint(-9, 99))
                store.append(f"{ACCOUNTS}/keeper-{kind}", added, expected=STREAM_EXISTS)
    gone = chance.choice(what)
    with contextlib.suppress(StreamDeletedError, StreamNotFoundError, WrongExpectedVersionError):
        store.delete_stream(f"{ACCOUNTS}/{gone}-0")


WORK: dict[str, Callable[[EventStore, list[str], random.Random], None]] = {
    "follow": follow,
    "run": run,
    "rebuild": rebuild,
    "fold": fold,
    "write": write,
}


class Place(NamedTuple):
    """Where they work, and whether a projection runs in step with what they append."""

    url: str
    marks: str
    in_step: bool


def work(place: Place, job: Job, seed: str) -> None:
    """One process's whole life."""
    chance = random.Random(seed)
    kind, *what = job.work.split()
    notify = kind == "write"
    Ledger.marks = Notes.marks = Marks(Path(place.marks))
    # Small ones, so that there are many, and much is between them.
    eventstore.followers.follower.BATCH = chance.choice((7, 30, 1000))  # type: ignore[misc]
    eventstore.followers.rebuild.BATCH = chance.choice((40, 300, 5000))  # type: ignore[misc]
    if job.fuse is not None:
        killing.lay(job.fuse, job.passings)
    in_step = [Tally] if place.in_step else []
    with EventStore(place.url, notify=notify, in_step=in_step) as store:
        WORK[kind](store, what, chance)


# --- who forks them ------------------------------------------------------------------------------


def serve(place: Place) -> None:
    prepare(place)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    for line in sys.stdin:
        seed, *jobs = json.loads(line)
        outcomes = _round(place, seed, [Job(*job) for job in jobs])
        print(json.dumps(outcomes), flush=True)  # noqa: T201


def prepare(place: Place) -> None:
    """Do some of each work once, so that the forked begin theirs at once: statements are compiled.

    Nothing is open afterwards, and there is no other thread.
    """
    engine, close = open_engine(place.url, durability="relaxed")
    opening.open_engine = lambda *_, **__: (engine, close)
    following = ("follow ledger shares", "run ledger shares notes", "rebuild ledger shares", "fold")
    for words in ("write warm", *(("rebuild tally",) if place.in_step else following)):
        work(place, Job(words), words)
    assert not engine.pool.checkedout()  # type: ignore[attr-defined]
    assert threading.active_count() == 1


def _round(place: Place, seed: str, jobs: list[Job]) -> list[Outcome]:
    began = time.monotonic()
    running = {_forked(place, job, f"{seed} {n}"): n for n, job in enumerate(jobs)}
    due = {pid: jobs[n].after for pid, n in running.items()}
    outcomes: dict[int, Outcome] = {}
    while running:
        now = time.monotonic() - began
        for pid, after in due.items():
            if pid in running and after is not None and after <= now:
                os.kill(pid, signal.SIGKILL)  # not yet waited for, so it is still that one
                due[pid] = None
        left = min((after - now for after in due.values() if after is not None), default=PATIENCE)
        signal.sigtimedwait([signal.SIGCHLD], max(left, 0.0))
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                outcomes[running.pop(pid)] = Outcome(code, time.monotonic() - began)
                del due[pid]
    return [outcomes[n] for n in range(len(jobs))]


def _forked(place: Place, job: Job, seed: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        work(place, job, seed)
        code = 0
    except BaseException:
        print(job, file=sys.stderr)  # noqa: T201
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


class Workers:
    """The forking process, as the test sees it."""

    def __init__(self, process: Popen[str]) -> None:
        self._process = process

    def round(self, seed: str, jobs: list[Job]) -> list[Outcome]:
        """Have the jobs done at the same time; how each has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([seed, *jobs]) + "\n")
        self._process.stdin.flush()
        return [Outcome(*outcome) for outcome in json.loads(self._process.stdout.readline())]


@contextlib.contextmanager
def workers(place: Place) -> Iterator[Workers]:
    command = [sys.executable, __file__, json.dumps(place)]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        yield Workers(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE) == 0


if __name__ == "__main__":
    serve(Place(*json.loads(sys.argv[1])))
