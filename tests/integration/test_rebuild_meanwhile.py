"""Readers, writers and workers while a projection is rebuilt."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from rebuilt import (
    Accounts,
    Ignored,
    Moved,
    balances,
    filled,
    hook,
    in_a_thread,
    leftovers,
    newer,
    untouched,
)
from sqlalchemy import func, select

from eventstore import EventStore, LeaseLostError, LogLockedError, Progress, ProjectionOutdatedError
from eventstore.followers import rebuild as rebuilding
from eventstore.followers.rebuild import Rebuild
from eventstore.log.followers import Followers


@pytest.fixture(autouse=True)
def _hook_is_reset() -> Iterator[None]:
    yield
    hook.__init__()  # type: ignore[misc]


@pytest.fixture
def postgres_store(postgres_url: str) -> Iterator[EventStore]:
    with EventStore(postgres_url) as opened:
        yield opened


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilding, "BATCH", 10)


def test_readers_never_see_a_missing_an_empty_or_a_partial_table(
    store: EventStore, small_batches: None
) -> None:
    filled(store, "abcdefgh")
    store.catch_up(Accounts)
    complete = balances(store)
    done = threading.Event()
    seen: list[int] = []

    def read(_: int) -> None:
        count = 0
        with store.connect() as db:
            while not done.is_set() or not count:
                query = select(Accounts.accounts.c.account, Accounts.accounts.c.balance)
                assert dict(map(tuple, db.execute(query))) == complete
                db.rollback()
                count += 1
        seen.append(count)

    with ThreadPoolExecutor(3) as threads:
        readers = threads.map(read, range(3))
        try:
            for _ in range(3):
                store.rebuild(Accounts)
            store.rebuild(newer())
        finally:
            done.set()
        list(readers)
    assert min(seen) > 0


def stepping_back(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Is set when a swap has let others pass."""
    stepped = threading.Event()
    finish = Rebuild._finish

    def watched(*args: Any) -> Any:
        try:
            return finish(*args)
        except LogLockedError:
            stepped.set()
            raise

    monkeypatch.setattr(Rebuild, "_finish", watched)
    return stepped


def test_a_swap_lets_readers_pass_and_tries_again(
    postgres_store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = postgres_store
    filled(store)
    store.catch_up(Accounts)
    stepped = stepping_back(monkeypatch)
    table = Accounts.accounts
    with store.connect() as db:
        before = db.execute(select(table).order_by("account")).all()
        with in_a_thread(store.rebuild, Accounts) as rebuilt:
            assert stepped.wait(30)
            store.append("rebuild/a", Moved(10))
            assert db.execute(select(table).order_by("account")).all() == before
            assert balances(store) == {"a": 3, "b": 6, "c": 9}
            db.rollback()
            assert rebuilt.result(30).position == store.head()
    assert balances(store) == {"a": 13, "b": 6, "c": 9}


def test_a_reader_that_does_not_end_stops_a_swap_and_nothing_else(
    postgres_store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = postgres_store
    filled(store)
    store.catch_up(Accounts)
    before = untouched(store, Accounts)
    with store.connect() as db:
        db.execute(select(Accounts.accounts)).all()
        with monkeypatch.context() as patched:
            patched.setattr(rebuilding, "_READERS", 0)
            with pytest.raises(LogLockedError):
                store.rebuild(Accounts)
    assert untouched(store, Accounts) == before
    assert store.rebuild(Accounts).events == 0  # what was built is still there
    assert leftovers(store) == []


@pytest.mark.parametrize("verify", [False, True])
def test_what_is_appended_meanwhile_is_neither_missed_nor_doubled(
    store: EventStore, small_batches: None, verify: bool
) -> None:
    filled(store, "abcd")
    store.catch_up(Accounts)
    done = threading.Event()

    def write(id: str) -> int:
        count = 0
        while count < 5 or (not done.is_set() and count < 60):
            store.append(f"rebuild/{id}", [Moved(1), Ignored()])
            count += 1
        return count

    with ThreadPoolExecutor(4) as threads:
        counts = threads.map(write, "abcd")
        try:
            for _ in range(2):
                store.rebuild(Accounts, verify=verify)
        finally:
            done.set()
        written = dict(zip("abcd", counts, strict=True))
    store.catch_up(Accounts)
    assert balances(store) == {id: 3 * number + written[id] for number, id in enumerate("abcd", 1)}
    with store.connect() as db:
        moves = db.scalar(select(func.count()).select_from(Accounts.moves))
    assert moves == 12 + sum(written.values())
    store.rebuild(Accounts, verify=True)


def test_workers_go_on_with_the_living_tables_and_then_with_the_new_ones(
    store: EventStore, small_batches: None
) -> None:
    filled(store, "abcd", moves=20)
    with store.runner(Accounts):
        store.wait_for(Accounts, timeout=30)
        (before,) = Followers(store.log).find("rebuild-accounts")

        def living(progress: Progress) -> None:
            if progress.head == store.head() and progress.position < progress.head:
                receipt = store.append("rebuild/a", Moved(1))
                store.wait_for(Accounts, receipt.position, timeout=30)
                with store.connect() as db:
                    query = select(func.count()).select_from(Accounts.moves)
                    counts.append(db.scalar(query) or 0)

        counts: list[int] = []
        store.rebuild(Accounts, progress=living)
        assert counts == list(range(81, 81 + len(counts)))
        assert counts
        (after,) = Followers(store.log).find("rebuild-accounts")
        assert after.epoch > before.epoch
        assert after.position >= before.position
        receipt = store.append("rebuild/b", Moved(100))
        store.wait_for(Accounts, receipt.position, timeout=30)
        assert balances(store)["b"] == 140
    store.rebuild(Accounts, verify=True)


def test_a_worker_that_was_in_a_batch_cannot_commit_it(
    postgres_store: EventStore, small_batches: None
) -> None:
    store = postgres_store
    filled(store)
    store.catch_up(Accounts)
    entered, go = threading.Event(), threading.Event()
    worker: list[int] = []

    def wait(_: str) -> None:
        if threading.get_ident() in worker:
            entered.set()
            assert go.wait(30)

    def work() -> None:
        worker.append(threading.get_ident())
        store.catch_up(Accounts)

    store.append("rebuild/a", Moved(10))
    hook.call = wait
    with in_a_thread(work) as working:
        try:
            assert entered.wait(30)
            store.rebuild(Accounts)
        finally:
            go.set()
        working.result(30)  # it has gone on, with the new tables
    assert balances(store)["a"] == 13  # and not 23
    store.rebuild(Accounts, verify=True)


def test_a_worker_with_the_old_lease_cannot_write(store: EventStore) -> None:
    filled(store)
    store.catch_up(Accounts)
    followers = Followers(store.log)
    (row,) = followers.find("rebuild-accounts")
    worker = store._claimed(Accounts, row, "a worker", 60)
    assert worker is not None
    store.append("rebuild/a", Moved(10))
    store.rebuild(newer())
    store.append("rebuild/a", Moved(100))
    with pytest.raises(LeaseLostError):
        worker.step(store.head())
    assert balances(store)["a"] == 13


def test_a_running_worker_of_an_old_version_is_told(url: str) -> None:
    with EventStore(url) as store:
        filled(store)
        runner = store.runner(Accounts, lease=0.4)
        failure: list[BaseException] = []

        def run() -> None:
            try:
                runner.run()
            except BaseException as error:
                failure.append(error)

        working = threading.Thread(target=run)
        working.start()
        try:
            store.wait_for(Accounts, timeout=30)
            later = newer()
            store.rebuild(later)
            working.join(30)
        finally:
            runner.stop()
            working.join()
        assert [type(error) for error in failure] == [ProjectionOutdatedError]
        store.append("rebuild/a", Moved(1))
        store.catch_up(later)
        assert balances(store, later) == {"a": 4, "b": 6, "c": 9}


def test_a_projection_in_step_is_rebuilt_under_appends(database_url: str) -> None:
    with EventStore(database_url, in_step=[Accounts]) as store:
        filled(store, "abcd")
        done = threading.Event()
        once = threading.Barrier(5)

        def write(id: str) -> int:
            count = 0
            while count < 5 or (not done.is_set() and count < 60):
                store.append(f"rebuild/{id}", Moved(1))
                count += 1
                if count == 5:
                    once.wait(30)
            return count

        with ThreadPoolExecutor(4) as threads:
            counts = threads.map(write, "abcd")
            once.wait(30)
            try:
                store.rebuild(Accounts)
                store.rebuild(Accounts, verify=True)
            finally:
                done.set()
            written = dict(zip("abcd", counts, strict=True))
        expected = {id: 3 * number + written[id] for number, id in enumerate("abcd", 1)}
        assert balances(store) == expected
        assert all(row.in_step for row in Followers(store.log).find("rebuild-accounts"))
        store.rebuild(Accounts, verify=True)
        store.leave_step(Accounts)
        store.append("rebuild/a", Moved(1))
        assert balances(store) == expected
        store.catch_up(Accounts)
        assert balances(store)["a"] == expected["a"] + 1
