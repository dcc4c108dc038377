"""The command `eventstore`, as operators and scripts use it."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from waiting import PATIENCE, eventually

from eventstore import EventStore
from eventstore.cli import main, output
from eventstore.followers.rebuild import Progress

# What an application has; the command finds it in the current folder.
SHOP = """
import os
from pathlib import Path

from sqlalchemy import Column, Integer, String, Table

from eventstore import Event, EventHandler, RecordedEvent, TableProjection, on


class Sold(Event, name="cli-sold"):
    amount: int


class Sales(TableProjection, name="cli-sales", shards=2):
    version = int(os.environ.get("SHOP_VERSION", "1"))
    sales = Table(
        "cli_sales",
        TableProjection.metadata,
        Column("shop", String, primary_key=True),
        Column("total", Integer, nullable=False),
    )

    @on(Sold)
    def _sold(self, event: Sold, record: RecordedEvent) -> None:
        if event.amount < 0 and not Path("lenient").exists():
            raise ValueError("no sale\\nof that amount")
        found = self.get(self.sales, record.stream) or {"total": 0}
        self.put(self.sales, shop=record.stream, total=found["total"] + event.amount)


class Letters(EventHandler, name="cli-letters"):
    def __init__(self, paper: str = "white") -> None:
        self.paper = paper

    @on(Sold)
    def _sold(self, event: Sold) -> None:
        if Path("dies").exists():
            Path("dies").unlink()
            os._exit(3)


letters = Letters("blue")


def some_letters():
    return Letters("red")


def needs_more(more):
    return Letters(more)


nothing = 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with an application in it."""
    (tmp_path / "cli_shop.py").write_text(SHOP)
    (tmp_path / "cli_broken.py").write_text("import os\n\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("cli_shop", "cli_broken"):
        sys.modules.pop(name, None)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    found: str = request.getfixturevalue(f"{request.param}_url")
    monkeypatch.setenv("EVENTSTORE_URL", found)
    return found


@pytest.fixture
def store(url: str, folder: Path) -> Iterator[EventStore]:
    with EventStore(url, lock_timeout=30) as opened:
        yield opened


@pytest.fixture
def sell(store: EventStore) -> Callable[..., None]:
    """Appends sales, as the application would."""
    sys.path.insert(0, os.getcwd())
    shop = importlib.import_module("cli_shop")

    def sell(*amounts: int, stream: str = "shop/1") -> None:
        store.append(stream, [shop.Sold(amount=amount) for amount in amounts])

    return sell


def totals(store: EventStore) -> dict[str, int]:
    with store.engine.connect() as connection:
        rows = connection.execute(text("SELECT shop, total FROM cli_sales"))
        return {row.shop: row.total for row in rows}


# --- what is caught up, rebuilt and accepted -----------------------------------------------------


def test_catch_up_brings_projections_and_handlers_up_to_date(
    store: EventStore, sell: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    sell(1, 2)
    assert main(["catch-up", "cli_shop:Sales", "cli_shop:letters"]) == 0
    head = store.head()
    assert capsys.readouterr().out.splitlines() == [
        f"cli-sales is up to date at position {head}",
        f"cli-letters is up to date at position {head}",
    ]
    assert totals(store) == {"shop/1": 3}


def test_rebuild_builds_the_tables_anew(
    store: EventStore, sell: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    sell(1, 2)
    assert main(["catch-up", "cli_shop:Sales"]) == 0
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE cli_sales SET total = 99"))
    capsys.readouterr()
    assert main(["rebuild", "cli_shop:Sales", "--verify"]) == 1
    assert "shop/1" in one_line(capsys.readouterr().err)
    assert totals(store) == {"shop/1": 99}
    assert main(["rebuild", "cli_shop:Sales"]) == 0
    assert capsys.readouterr().out.endswith(f"up to position {store.head()}: 2 events\n")
    assert totals(store) == {"shop/1": 3}


def test_a_change_of_code_can_be_accepted(
    store: EventStore, sell: Callable[..., None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sell(1)
    assert main(["catch-up", "cli_shop:Sales"]) == 0
    changed = SHOP.replace('or {"total": 0}', 'or {"total": 0 + 0 * len(record.stream)}')
    (folder / "cli_shop.py").write_text(changed)
    sys.modules.pop("cli_shop")
    importlib.invalidate_caches()
    assert main(["catch-up", "cli_shop:Sales"]) == 1
    assert "accept" in one_line(capsys.readouterr().err)
    assert main(["accept", "cli_shop:Sales"]) == 0
    assert main(["catch-up", "cli_shop:Sales"]) == 0


# --- what is shown -----------------------------------------------------------------------------


def test_status_is_a_table_for_people_and_json_for_programs(
    store: EventStore, sell: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status"]) == 0
    assert capsys.readouterr().out == "nothing follows this log yet\n"
    sell(1, 2)
    main(["catch-up", "cli_shop:Sales"])
    caught_up = store.head()
    sell(3, 4)
    capsys.readouterr()

    assert main(["status", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["follower"], row["shard"], row["shards"]) for row in rows] == [
        ("cli-sales", 0, 2),
        ("cli-sales", 1, 2),
    ]
    assert [(row["position"], row["behind"], row["owner"]) for row in rows] == [
        (caught_up, 2, None)
    ] * 2
    assert sum(row["handled"] for row in rows) == 2
    assert all(row["lag"] > 0 for row in rows)

    assert main(["status"]) == 0
    heads, *lines = capsys.readouterr().out.splitlines()
    assert heads.split() == [
        *("follower", "shard", "position", "behind", "lag"),
        *("rate", "handled", "parked", "owner"),
    ]
    assert [line.split()[:6] for line in lines] == [
        ["cli-sales", str(shard), "of", "2", str(caught_up), "2"] for shard in (0, 1)
    ]


def test_on_a_terminal_tables_and_progress_are_drawn(
    store: EventStore,
    sell: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("rich")
    sell(1)
    main(["catch-up", "cli_shop:Sales"])
    monkeypatch.setattr(output, "_is_rich", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "cli-sales" in shown
    assert "┃" in shown
    assert main(["rebuild", "cli_shop:Sales"]) == 0
    assert "rebuilding cli-sales" in capsys.readouterr().out


def test_elsewhere_progress_is_told_in_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(output.time, "monotonic", lambda: now)
    with output.show_progress("rebuilding sales") as show:
        show(Progress(position=10, head=5000, events=10, seconds=0.1))  # too soon to tell
        now += 2
        show(Progress(position=2000, head=5000, events=1000, seconds=2.0))
    assert capsys.readouterr().out == (
        "rebuilding sales: position 2,000 of 5,000, 500 events/s, 3 s left\n"
    )


def test_parked_events_are_shown_retried_and_discarded(
    store: EventStore, sell: Callable[..., None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sell(5, -1, 6)
    sell(-2, stream="shop/2")
    sell(7, stream="shop/3")
    main(["catch-up", "cli_shop:Sales"])
    assert totals(store) == {"shop/1": 5, "shop/3": 7}
    capsys.readouterr()

    assert main(["parked", "cli-sales"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:5] for line in lines[1:]] == [
        ["2", "shop/1", "2", "cli-sold", "2"],
        ["3", "shop/1", "3", "cli-sold", "0"],
        ["4", "shop/2", "1", "cli-sold", "2"],
    ]
    assert main(["parked", "cli-sales", "--stream", "shop/2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["status", "--json"]) == 0
    assert [row["parked"] for row in json.loads(capsys.readouterr().out)] == [3, 3]

    # One is given up, and what stood behind it has its effect.
    assert main(["parked", "cli-sales", "--discard", "2"]) == 0
    assert main(["parked", "cli-sales", "--discard", "2"]) == 1
    assert "discard=2" in one_line(capsys.readouterr().err)
    assert main(["parked", "cli-sales", "--discard", "4", "--stream", "shop/1"]) == 1
    main(["catch-up", "cli_shop:Sales"])
    assert totals(store) == {"shop/1": 11, "shop/3": 7}

    # The other one is tried again once the handler has been mended.
    (folder / "lenient").touch()
    capsys.readouterr()
    assert main(["parked", "cli-sales", "--retry", "--stream", "shop/2"]) == 0
    assert capsys.readouterr().out.startswith("1 events will be tried again")
    main(["catch-up", "cli_shop:Sales"])
    assert totals(store) == {"shop/1": 11, "shop/2": -2, "shop/3": 7}
    capsys.readouterr()
    assert main(["parked", "cli-sales"]) == 0
    assert capsys.readouterr().out == "nothing is parked\n"


# --- errors ------------------------------------------------------------------------------------


def one_line(told: str) -> str:
    """An error as it was told."""
    assert told.startswith("eventstore: ")
    assert told.count("\n") == 1
    return told


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("cli_shop", "module:Name"),
        ("cli_shop:", "module:Name"),
        ("cli_nowhere:Sales", "No module named 'cli_nowhere'"),
        ("cli_broken:Sales", "line 3"),
        ("cli_shop:Purchases", "there is no Purchases in"),
        ("cli_shop:nothing", "neither"),
        ("cli_shop:Sold", "neither"),
        ("cli_shop:needs_more", "calling needs_more failed: TypeError"),
    ],
)
@pytest.mark.parametrize("command", ["run", "catch-up", "rebuild", "accept"])
def test_a_target_that_is_not_to_be_had_is_told_in_one_line(
    command: str,
    target: str,
    said: str,
    folder: Path,
    sqlite_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([command, target, "--url", sqlite_url]) == 1
    assert said in one_line(capsys.readouterr().err)


def test_a_function_makes_a_target(
    store: EventStore, sell: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    sell(1)
    assert main(["catch-up", "cli_shop:some_letters"]) == 0
    assert main(["rebuild", "cli_shop:some_letters"]) == 1
    assert "only a TableProjection has tables" in one_line(capsys.readouterr().err)


def test_without_a_url_the_command_says_how_to_give_one(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVENTSTORE_URL", raising=False)
    for command in (["status"], ["run", "cli_shop:Sales"], ["parked", "x"]):
        assert main(command) == 1
        assert "EVENTSTORE_URL" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:sesame@127.0.0.1:1/there",
        "mysql://ann:sesame@127.0.0.1/there",
        "ann:sesame",
    ],
)
def test_a_password_is_never_shown(
    url: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["status"], ["run", "cli_shop:Sales"], ["catch-up", "cli_shop:Sales"]):
        assert main([*command, "--url", url]) == 1
        told = capsys.readouterr()
        assert "sesame" not in told.out + one_line(told.err)


@pytest.mark.parametrize("option", [["--workers", "0"], ["--lease", "0"], ["--lease", "inf"]])
def test_options_that_make_no_sense_are_refused(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["run", "cli_shop:Sales", *option])


def test_status_does_not_make_tables(
    empty_postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--url", empty_postgres_url]) == 1
    assert "migrate" in one_line(capsys.readouterr().err)


# --- run ---------------------------------------------------------------------------------------


@pytest.fixture
def start(url: str, folder: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **env: str) -> subprocess.Popen[bytes]:
        with (folder / "run.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "eventstore", "run", *arguments],
                env={**os.environ, **env},
                stderr=log,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
    sys.stderr.write((folder / "run.log").read_text())


def owners(store: EventStore, follower: str) -> list[int]:
    """The processes that hold its shards; 0 for nobody."""
    rows = [row for row in store.status() if row.follower == follower]
    return [int(row.owner.split(":")[1]) if row.owner else 0 for row in rows]


def both_at_work(store: EventStore) -> list[int]:
    """The two processes that share the two shards, once they do."""

    def found() -> list[int]:
        pids = owners(store, "cli-sales")
        return pids if len(set(pids)) == 2 and 0 not in pids else []

    pids: list[int] = eventually(found)
    return pids


def is_gone(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_several_workers_share_and_end_together(
    store: EventStore,
    sell: Callable[..., None],
    start: Callable[..., subprocess.Popen[bytes]],
    number: signal.Signals,
) -> None:
    sell(1, 2)
    process = start("cli_shop:Sales", "cli_shop:letters", "--workers", "2")
    pids = both_at_work(store)
    assert process.pid not in pids
    sell(3)
    eventually(lambda: totals(store) == {"shop/1": 6})
    process.send_signal(number)
    assert process.wait(PATIENCE) == 0
    assert all(map(is_gone, pids))
    assert owners(store, "cli-sales") == [0, 0]
    assert owners(store, "cli-letters") == [0]


def test_a_worker_that_dies_is_started_again(
    store: EventStore,
    sell: Callable[..., None],
    start: Callable[..., subprocess.Popen[bytes]],
    folder: Path,
) -> None:
    process = start("cli_shop:Sales", "cli_shop:Letters", "--workers", "2")
    before = both_at_work(store)
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: not set(both_at_work(store)) & {before[0]})
    (folder / "dies").touch()
    sell(1)
    eventually(lambda: not (folder / "dies").exists())
    both_at_work(store)
    sell(2)
    eventually(lambda: totals(store) == {"shop/1": 3})
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0


def test_workers_do_not_outlive_the_command(
    store: EventStore, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = start("cli_shop:Sales", "--workers", "2", "--lease", "3600")
    pids = both_at_work(store)
    process.kill()
    process.wait()
    eventually(lambda: all(map(is_gone, pids)))
    assert owners(store, "cli-sales") == [0, 0]  # they have ended cleanly


def test_what_stands_in_the_way_ends_all_workers(
    store: EventStore,
    sell: Callable[..., None],
    start: Callable[..., subprocess.Popen[bytes]],
    folder: Path,
) -> None:
    sell(1)
    main(["catch-up", "cli_shop:Sales"])
    process = start("cli_shop:Sales", "--workers", "2", SHOP_VERSION="2")
    assert process.wait(PATIENCE) == 1
    assert "rebuild it" in (folder / "run.log").read_text()
