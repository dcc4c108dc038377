"""The runner: workers share followers, die, stall and come back, and the tables are right.

This module is also the program that the worker processes run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, String, Table, select, update
from sqlalchemy.event import listen

from eventstore import (
    Event,
    EventHandler,
    EventStore,
    InvalidArgumentError,
    ProjectionOutdatedError,
    RecordedEvent,
    StoreClosedError,
    TableProjection,
    on,
)
from eventstore.followers.follower import TableFollower
from eventstore.log.base import Log
from eventstore.log.followers import Followers
from eventstore.log.tables import followers as follower_rows

PATIENCE = 60.0


class Opened(Event, name="runner-opened"):
    pass


class Paid(Event, name="runner-paid"):
    amount: int


class Stalled(Event, name="runner-stalled"):
    """The first worker that meets it stalls."""


class Copied(Event, name="runner-copied"):
    amount: int


class Balances(TableProjection, name="runner-balances", shards=6):
    accounts = Table(
        "runner_balances",
        TableProjection.metadata,
        Column("account", String, primary_key=True),
        Column("balance", Integer, nullable=False),
        Column("events", Integer, nullable=False),
    )

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        self.insert(self.accounts, account=record.stream, balance=0, events=1)

    @on(Paid)
    def _paid(self, event: Paid, record: RecordedEvent) -> None:
        self.add(self.accounts, record.stream, balance=event.amount, events=1)

    @on(Stalled)
    def _stalled(self, event: Stalled, record: RecordedEvent) -> None:
        self.add(self.accounts, record.stream, events=1)
        self.db.execute(select(self.accounts))  # so the row is written, and locked
        _stall("handler", None)


class Copies(EventHandler, name="runner-copies", shards=2):
    """Appends to another stream, once for each event."""

    @on(Paid)
    def _paid(self, event: Paid, record: RecordedEvent) -> None:
        self.store.append(
            f"copy/{record.stream}", Copied(amount=event.amount), idempotency_key=str(record.id)
        )

    @on(Stalled)
    def _stalled(self, event: Stalled) -> None:
        _stall("handler", self.store.log)


# --- in the worker processes -------------------------------------------------------------------


_here = threading.local()


def _stall(where: str, log: Log | None) -> None:
    """Once, and only where the test wants it: wait to be stopped, and to be told to go on.

    With a log, no other thread of this process is in the middle of writing to SQLite meanwhile.
    """
    folder = os.environ.get("STALL_FOLDER")
    if folder is None or os.environ["STALL_AT"] != where:
        return
    try:
        (Path(folder) / "stalled").touch(exist_ok=False)
    except FileExistsError:
        return
    with getattr(log, "_turn", contextlib.nullcontext()):
        (Path(folder) / "pid").write_text(f"{os.getpid()}\n")
        while not (Path(folder) / "go-on").exists():
            time.sleep(0.01)
    _here.has_stalled = True


def balances_that_may_stall() -> type[Balances]:
    """The projection; what becomes of the batch that has stalled is written down."""
    handle = TableFollower._handle

    def handled(self: TableFollower, page: Any, to: int) -> None:
        # What has been read includes an event, and the transaction has not begun.
        if page and to >= int(os.environ["STALL_POSITION"]):
            _stall("page", self._log)
        try:
            handle(self, page, to)
        except Exception as error:
            # In the thread that stalled: others of the process are stopped along with it.
            if getattr(_here, "has_stalled", False):
                (Path(os.environ["STALL_FOLDER"]) / "outcome").write_text(type(error).__name__)
            raise

    TableFollower._handle = handled  # type: ignore[method-assign]
    return Balances


# --- in the test -------------------------------------------------------------------------------


def eventually(what: Callable[[], Any]) -> Any:
    """What it returns, once that is true."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < deadline, "it has not become so"
        time.sleep(0.02)


class Program:
    """Starts workers, as an operator would."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *targets: str, lease: float = 10.0, **env: str) -> subprocess.Popen[bytes]:
        names = [f"{Path(__file__).stem}:{target}" for target in targets]
        with (self.folder / f"worker-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "eventstore", "run", *names, "--lease", str(lease)],
                cwd=Path(__file__).parent,
                env={**os.environ, "EVENTSTORE_URL": self.url, **env},
                stderr=log,
            )
        self.processes.append(process)
        return process

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()  # a stopped one too
            process.wait()
        for log in sorted(self.folder.glob("worker-*.log")):
            sys.stderr.write(f"{log.name}\n{log.read_text()}\n")


@pytest.fixture(params=["sqlite", "postgres", "pgbouncer"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    # Several processes write to one file, on a machine that may be busy.
    with EventStore(url, lock_timeout=30) as opened:
        yield opened


@pytest.fixture
def program(url: str, store: EventStore, tmp_path: Path) -> Iterator[Program]:
    found = Program(url, tmp_path)
    yield found
    found.end()


class Model:
    """What the tables have to be, in Python; it appends as well."""

    def __init__(self, store: EventStore, seed: int = 1) -> None:
        self.store = store
        self.chance = random.Random(seed)
        self.balances: dict[str, tuple[int, int]] = {}

    def append(self, count: int, *events: Event) -> None:
        """Some accounts with payments; and then these events, on one of them."""
        for _ in range(count):
            stream = f"account/{self.chance.randint(1, 20)}"
            amounts = [self.chance.randint(-50, 100) for _ in range(self.chance.randint(1, 3))]
            new: list[Event] = [Paid(amount=amount) for amount in amounts]
            if stream not in self.balances:
                new.insert(0, Opened())
            balance, number = self.balances.get(stream, (0, 0))
            self.balances[stream] = (balance + sum(amounts), number + len(new))
            self.store.append(stream, new)
        for event in events:
            stream = min(self.balances)
            self.store.append(stream, event)
            self.balances[stream] = (self.balances[stream][0], self.balances[stream][1] + 1)

    def check_balances(self) -> None:
        self.store.wait_for(Balances, timeout=PATIENCE)
        with self.store.engine.connect() as connection:
            rows = connection.execute(select(Balances.accounts)).all()
        assert {row.account: (row.balance, row.events) for row in rows} == self.balances

    def check_copies(self) -> None:
        self.store.wait_for(Copies, timeout=PATIENCE)
        copied = Counter[str]()
        events = 0
        for record in self.store.read_all(types=[Copied]):
            assert isinstance(record.event, Copied)
            copied[record.stream.removeprefix("copy/")] += record.event.amount
            events += 1
        paid = sum(1 for _ in self.store.read_all(types=[Paid]))
        assert {stream: copied[stream] for stream in self.balances} == {
            stream: balance for stream, (balance, _) in self.balances.items()
        }
        assert events == paid  # none twice


@pytest.fixture
def model(store: EventStore) -> Model:
    return Model(store)


def owners(store: EventStore, follower: str = "runner-balances") -> Counter[int]:
    """How many shards each process holds; those that nobody does as 0."""
    rows = [row for row in store.status() if row.follower == follower and not row.rebuild]
    return Counter(int(row.owner.split(":")[1]) if row.owner else 0 for row in rows)


# --- processes ---------------------------------------------------------------------------------


def test_processes_share_the_shards_and_one_that_is_killed_is_replaced(
    store: EventStore, program: Program, model: Model
) -> None:
    model.append(40)
    workers = [program.start("Balances", "Copies", lease=4) for _ in range(3)]
    fair = {worker.pid: 2 for worker in workers}
    eventually(lambda: owners(store) == fair)
    model.append(40)
    model.check_balances()

    workers[0].kill()  # its number stays taken, as nobody asks for its status
    eventually(lambda: owners(store) == {workers[1].pid: 3, workers[2].pid: 3})
    model.append(40)
    model.check_balances()
    model.check_copies()
    assert set(owners(store, "runner-copies")) <= {workers[1].pid, workers[2].pid}

    latecomer = program.start("Balances", "Copies", lease=4)
    eventually(lambda: owners(store)[latecomer.pid] == 2)
    model.append(40)
    model.check_balances()
    model.check_copies()


def test_a_worker_that_is_told_to_end_gives_its_shards_to_the_next_one(
    store: EventStore, program: Program, model: Model
) -> None:
    model.append(10)
    # With leases that long, nobody could wait for them to run out.
    first = program.start("Balances", lease=3600)
    eventually(lambda: owners(store) == {first.pid: 6})
    model.check_balances()
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE) == 0
    assert owners(store) == {0: 6}
    second = program.start("Balances", lease=3600)
    model.append(10)
    eventually(lambda: owners(store) == {second.pid: 6})
    model.check_balances()
    second.send_signal(signal.SIGINT)
    assert second.wait(PATIENCE) == 0
    assert owners(store) == {0: 6}


def stop_it(folder: Path) -> int:
    """Stop the worker that stalls, and return its number."""
    eventually((folder / "pid").exists)
    pid = int(eventually((folder / "pid").read_text))
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)  # or it might still see the next line
    (folder / "go-on").touch()
    return pid


def stall_of_the_next(store: EventStore, folder: Path, where: str) -> dict[str, str]:
    return {
        "STALL_FOLDER": str(folder),
        "STALL_AT": where,
        "STALL_POSITION": str(store.head() + 1),
    }


# On SQLite a process that is stopped inside its write transaction keeps all writers waiting, those
# of events too: no lease can help there. So it stalls before it begins one, with events in hand,
# and while none of its threads has begun one.
def test_a_worker_that_stalls_before_its_transaction_is_replaced_and_then_cannot_write(
    store: EventStore, program: Program, model: Model, tmp_path: Path
) -> None:
    model.append(20)
    store.catch_up(Balances)
    env = stall_of_the_next(store, tmp_path, "page")
    workers = [program.start("balances_that_may_stall", lease=1, **env) for _ in range(2)]
    eventually(lambda: owners(store) == {worker.pid: 3 for worker in workers})
    model.append(1)
    stalled = stop_it(tmp_path)
    model.append(20)
    (other,) = {worker.pid for worker in workers} - {stalled}
    eventually(lambda: owners(store) == {other: 6})
    model.check_balances()

    os.kill(stalled, signal.SIGCONT)
    outcome = eventually(lambda: _text(tmp_path / "outcome"))
    assert outcome == "LeaseLostError"
    eventually(lambda: owners(store) == {worker.pid: 3 for worker in workers})  # it works again
    model.append(20)
    model.check_balances()
    assert store.parked(Balances) == []


@pytest.mark.parametrize("url", ["postgres", "pgbouncer"], indirect=True)
def test_a_worker_that_stalls_inside_its_transaction_loses_its_row_locks(
    store: EventStore, program: Program, model: Model, tmp_path: Path
) -> None:
    model.append(20)
    store.catch_up(Balances)
    env = stall_of_the_next(store, tmp_path, "handler")
    workers = [program.start("balances_that_may_stall", lease=1, **env) for _ in range(2)]
    eventually(lambda: owners(store) == {worker.pid: 3 for worker in workers})
    model.append(0, Stalled())
    stalled = stop_it(tmp_path)
    model.append(20)
    (other,) = {worker.pid for worker in workers} - {stalled}
    eventually(lambda: owners(store) == {other: 6})
    model.check_balances()  # with the row that the stalled one had locked

    os.kill(stalled, signal.SIGCONT)
    # The server has ended its transaction. (Its retry may find that the lease is lost as well.)
    outcome = eventually(lambda: _text(tmp_path / "outcome"))
    assert outcome in ("LogUnavailableError", "LeaseLostError", "LogError")
    eventually(lambda: owners(store) == {worker.pid: 3 for worker in workers})
    model.append(20)
    model.check_balances()
    assert store.parked(Balances) == []


def test_an_event_handler_that_stalls_is_replaced_and_its_checkpoint_is_refused(
    store: EventStore, program: Program, model: Model, tmp_path: Path
) -> None:
    model.append(20)
    store.catch_up(Copies)
    env = stall_of_the_next(store, tmp_path, "handler")
    workers = [program.start("Copies", lease=1, **env) for _ in range(2)]
    eventually(lambda: owners(store, "runner-copies") == {w.pid: 1 for w in workers})
    model.append(0, Stalled())
    stalled = stop_it(tmp_path)
    model.append(20)
    (other,) = {worker.pid for worker in workers} - {stalled}
    eventually(lambda: owners(store, "runner-copies") == {other: 2})
    model.check_copies()
    reached = store.wait_for(Copies)

    os.kill(stalled, signal.SIGCONT)
    eventually(lambda: owners(store, "runner-copies") == {w.pid: 1 for w in workers})
    assert store.wait_for(Copies, 0) >= reached  # and it has not gone back
    model.append(20)
    model.check_copies()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_status_tells_who_holds_what_and_how_far_it_is(
    url: str, store: EventStore, program: Program, model: Model
) -> None:
    model.append(10)
    store.catch_up(Balances)
    caught_up = store.head()
    for _ in range(3):
        store.append("elsewhere/1", Paid(amount=1))
    status = subprocess.run(
        [sys.executable, "-m", "eventstore", "status", "--json", "--url", url],
        capture_output=True,
        check=True,
    )
    rows = json.loads(status.stdout)
    assert [row["shard"] for row in rows] == list(range(6))
    events = sum(1 for _ in store.read_all(types=[Opened, Paid]))
    assert sum(row["handled"] for row in rows) == events - 3
    for row in rows:
        assert (row["follower"], row["shards"]) == ("runner-balances", 6)
        assert (row["position"], row["behind"], row["owner"]) == (caught_up, 3, None)
        assert row["lag"] > 0
        assert row["parked"] == 0


# --- threads -----------------------------------------------------------------------------------


class Notes(EventHandler, name="runner-notes", attempts=1):
    """Keeps what it was given in memory."""

    def __init__(self, act: Callable[[RecordedEvent], None] = lambda record: None) -> None:
        self.act = act
        self.seen: list[int] = []

    @on(Paid)
    def _paid(self, event: Paid, record: RecordedEvent) -> None:
        self.act(record)
        self.seen.append(event.amount)


class Unmakeable(EventHandler, name="runner-unmakeable"):
    def __init__(self, needed: object) -> None:
        self.needed = needed

    @on(Paid)
    def _paid(self, event: Paid) -> None:
        raise AssertionError("nobody can make it")


def pay(store: EventStore, *amounts: int, stream: str = "account/1") -> None:
    store.append(stream, [Paid(amount=amount) for amount in amounts])


def test_stop_ends_run_from_any_thread_and_frees_the_leases(store: EventStore) -> None:
    notes = Notes()
    runner = store.runner(notes, lease=3600)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(runner.run)
        pay(store, 1, 2)
        store.wait_for(notes)
        assert owners(store, "runner-notes") == {os.getpid(): 1}
        runner.stop()
        running.result(PATIENCE)
    assert owners(store, "runner-notes") == {0: 1}
    assert notes.seen == [1, 2]


def test_an_error_in_one_follower_does_not_stop_another(store: EventStore) -> None:
    notes = Notes()
    with store.runner(Unmakeable, notes, lease=1):
        pay(store, 1)
        store.wait_for(notes)
    assert notes.seen == [1]
    assert owners(store, "runner-unmakeable") == {0: 1}


def test_a_lease_goes_on_while_a_handler_takes_long(store: EventStore) -> None:
    working, finish = threading.Event(), threading.Event()

    def act(record: RecordedEvent) -> None:
        working.set()
        assert finish.wait(PATIENCE)

    ours, theirs = Notes(act), Notes(act)
    with store.runner(ours, lease=0.4), store.runner(theirs, lease=0.4):
        pay(store, 1)
        assert working.wait(PATIENCE)
        for _ in range(3):  # past its end, if it were not renewed
            ends = expiry(store)
            eventually(lambda ends=ends: expiry(store) > ends + 400_000)
        finish.set()
        store.wait_for(Notes, timeout=PATIENCE)
    assert ours.seen + theirs.seen == [1]


def expiry(store: EventStore, follower: str = "runner-notes") -> int:
    """When its lease ends, if it is not renewed."""
    with store.engine.connect() as connection:
        query = select(follower_rows.c.expires_at).where(follower_rows.c.name == follower)
        return int(connection.execute(query).scalar_one())


def test_a_lease_goes_on_while_the_end_is_waited_for(store: EventStore) -> None:
    working, finish = threading.Event(), threading.Event()

    def act(record: RecordedEvent) -> None:
        working.set()
        assert finish.wait(PATIENCE)

    notes = Notes(act)
    runner = store.runner(notes, lease=0.4)
    runner.start()
    pay(store, 1)
    assert working.wait(PATIENCE)
    runner.stop()
    ends = expiry(store)
    eventually(lambda: expiry(store) > ends + 400_000)
    finish.set()
    runner.join()
    assert notes.seen == [1]
    assert owners(store, "runner-notes") == {0: 1}


class Slow(TableProjection, name="runner-slow"):
    payments = Table(
        "runner_slow",
        TableProjection.metadata,
        Column("position", Integer, primary_key=True),
    )

    @on(Paid)
    def _paid(self, event: Paid, record: RecordedEvent) -> None:
        time.sleep(0.02)
        self.insert(self.payments, position=record.position)


def test_batches_are_smaller_where_handlers_are_slow(store: EventStore) -> None:
    # All at once they would take longer than the server lets a transaction be silent.
    pay(store, *range(100))
    with store.runner(Slow, lease=1):
        store.wait_for(Slow, timeout=PATIENCE)
    with store.engine.connect() as connection:
        assert len(connection.execute(select(Slow.payments)).all()) == 100


def counting(number: int, shards_: int = 1) -> type[TableProjection]:
    """One projection, as programs of several versions declare it."""

    class Counting(TableProjection, name="runner-counting", shards=shards_):
        version = number
        counts = Table(
            "runner_counting",
            TableProjection.metadata,
            Column("stream", String, primary_key=True),
            Column("count", Integer, nullable=False),
        )

        @on(Paid)
        def _paid(self, event: Paid, record: RecordedEvent) -> None:
            if event.amount == 13:
                raise ValueError("unlucky")
            found = self.get(self.counts, record.stream)
            self.put(
                self.counts,
                stream=record.stream,
                count=self.version + (found or {"count": 0})["count"],
            )

    return Counting


def counts(store: EventStore) -> dict[str, int]:
    with store.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT stream, count FROM runner_counting")
        return {row.stream: row.count for row in rows}


def test_after_a_rebuild_the_work_goes_on_with_the_new_tables(store: EventStore) -> None:
    cls = counting(1)
    with store.runner(cls, lease=3600) as runner:
        pay(store, 1, 2)
        store.wait_for(cls)
        store.rebuild(cls)
        pay(store, 3)
        store.wait_for(cls, timeout=PATIENCE)
        assert counts(store) == {"account/1": 3}
        assert not runner.given_up


def test_a_superseded_version_is_given_up_and_the_rest_goes_on(store: EventStore) -> None:
    old, notes = counting(1), Notes()
    with store.runner(old, notes, lease=1) as runner:
        pay(store, 1, 2)
        store.wait_for(old)
        store.rebuild(counting(2))
        pay(store, 3)
        eventually(lambda: runner.given_up)
        assert isinstance(runner.given_up["runner-counting"], ProjectionOutdatedError)
        pay(store, 4)
        store.wait_for(notes, timeout=PATIENCE)
        assert counts(store) == {"account/1": 4}  # nothing of the old code is in the new tables
        store.catch_up(counting(2))
        assert counts(store) == {"account/1": 8}


def test_who_takes_a_shard_just_after_a_rebuild_by_newer_code_gives_it_back(
    store: EventStore,
) -> None:
    old = counting(1)
    store.catch_up(old)
    (seen,) = store._followers.find("runner-counting")
    store.rebuild(counting(2))
    with pytest.raises(ProjectionOutdatedError):
        store._claimed(old, seen, "somebody", 3600)
    assert owners(store, "runner-counting") == {0: 1}


def test_run_raises_when_all_are_given_up(store: EventStore) -> None:
    old = counting(1)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(store.run, old, lease=1)
        pay(store, 1)
        eventually(lambda: any(row.follower == "runner-counting" for row in store.status()))
        store.rebuild(counting(2))
        with pytest.raises(ProjectionOutdatedError):
            running.result(PATIENCE)


def test_code_of_another_python_is_left_alone(store: EventStore) -> None:
    # Two programs that took the projection from each other in turns would never get anywhere.
    cls = counting(1)
    with store.runner(cls, lease=0.4):
        pay(store, 1)
        store.wait_for(cls)
        with store.engine.begin() as connection:
            connection.execute(
                update(follower_rows)
                .where(follower_rows.c.name == "runner-counting")
                .values(fingerprint="cpython-309:00")
            )
        for _ in range(3):
            ends = expiry(store, "runner-counting")
            pay(store, 2)
            store.wait_for(cls)
            eventually(lambda ends=ends: expiry(store, "runner-counting") > ends)
        with store.engine.connect() as connection:
            assert set(connection.scalars(select(follower_rows.c.fingerprint))) == {
                "cpython-309:00"
            }


@pytest.mark.parametrize("url", ["sqlite", "postgres"], indirect=True)
def test_projections_that_run_in_step_are_passed_over(url: str, store: EventStore) -> None:
    cls, notes = counting(1), Notes()
    with EventStore(url, in_step=[cls]) as writer:
        pay(writer, 1)
        with writer.runner(cls, notes, lease=0.4) as runner:
            pay(writer, 2)
            writer.wait_for(notes, timeout=PATIENCE)
            assert owners(writer, "runner-counting") == {0: 1}
            writer.leave_step(cls)
            eventually(lambda: owners(writer, "runner-counting") == {os.getpid(): 1})
            pay(writer, 3)
            writer.wait_for(cls, timeout=PATIENCE)
            assert counts(writer) == {"account/1": 3}
            assert not runner.given_up


def test_what_is_parked_does_not_make_the_others_slow(store: EventStore) -> None:
    broken = counting(1)
    store.catch_up(broken)
    pay(store, 13, stream="account/13")
    store.catch_up(broken)
    assert [row.stream for row in store.parked(broken)] == ["account/13"]
    savepoints: list[object] = []
    listen(store.engine, "savepoint", lambda *given: savepoints.append(given))
    for number in range(20):
        pay(store, 1, stream=f"account/{number}")
    store.catch_up(broken)
    assert savepoints == []  # which events have that are tried one by one
    assert counts(store) == {f"account/{number}": 1 for number in range(20) if number != 13}
    assert [row.attempts for row in store.parked(broken)] == [2, 0]


def test_what_is_parked_is_tried_again_when_asked_for(store: EventStore) -> None:
    broken = True

    def act(record: RecordedEvent) -> None:
        if broken and record.stream == "account/1":
            raise ValueError("no")

    notes = Notes(act)
    with store.runner(notes, lease=3600):
        pay(store, 1, 2)
        pay(store, 3, stream="account/2")
        store.wait_for(notes)
        assert [(row.attempts, row.error) for row in store.parked(notes)] == [
            (1, "ValueError: no"),
            (0, None),
        ]
        assert notes.seen == [3]
        broken = False
        store.retry(notes)
        eventually(lambda: not store.parked(notes))
    assert notes.seen == [3, 1, 2]


def test_a_closed_store_ends_the_runner(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> None:
        raise StoreClosedError

    # To really close it would leave connections open that are in use at that very moment.
    runner = store.runner(Notes(), lease=0.4)
    runner.start()
    eventually(lambda: owners(store, "runner-notes") == {os.getpid(): 1})
    monkeypatch.setattr(Followers, "heartbeat", closed)
    runner.join()
    assert owners(store, "runner-notes") == {0: 1}


@pytest.mark.parametrize("url", ["postgres", "pgbouncer"], indirect=True)
def test_nobody_waits_for_a_row_that_somebody_else_has_locked(store: EventStore) -> None:
    locked, free = Notes(), counting(1)
    store.catch_up(locked)
    with store.engine.begin() as connection:
        row = select(follower_rows).where(follower_rows.c.name == "runner-notes")
        connection.execute(row.with_for_update()).all()
        with store.runner(locked, free, lease=1):
            pay(store, 1)
            store.wait_for(free)
            assert owners(store, "runner-notes") == {0: 1}
            connection.rollback()
            store.wait_for(locked, timeout=PATIENCE)


@pytest.mark.parametrize("lease", [0, -1])
def test_a_lease_takes_some_time(store: EventStore, lease: float) -> None:
    with pytest.raises(InvalidArgumentError):
        store.runner(Notes, lease=lease)


def test_the_same_follower_twice_is_refused(store: EventStore) -> None:
    with pytest.raises(InvalidArgumentError, match="twice"):
        store.runner(Notes(), Notes())
    with pytest.raises(InvalidArgumentError, match="at least one"):
        store.runner()
