"""Worker processes share followers, die, stall and come back, and the tables are right."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from payments import Balances, Copied, Copies, Opened, Paid, Stalled, owners
from sqlalchemy import select
from waiting import PATIENCE, eventually

from eventstore import Event, EventStore


@pytest.fixture(params=["sqlite", "postgres", "pgbouncer"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    # Several processes write to one file, on a machine that may be busy.
    with EventStore(url, lock_timeout=30) as opened:
        yield opened


class Program:
    """Starts workers, as an operator would."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *targets: str, lease: float = 10.0, **env: str) -> subprocess.Popen[bytes]:
        names = [f"payments:{target}" for target in targets]
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


# --- processes -----------------------------------------------------------------------------------


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
