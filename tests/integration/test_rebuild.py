"""Rebuilds: new tables beside the living ones, and readers who see the old or the new, whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Column,
    Float,
    ForeignKey,
    Integer,
    Numeric,
    String,
    Table,
    create_engine,
    event,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)

from eventstore import (
    Event,
    EventStore,
    HandlerError,
    LeaseLostError,
    LogError,
    LogLockedError,
    NewerEventError,
    Progress,
    ProjectionOutdatedError,
    RebuildDiffersError,
    RebuildRunningError,
    RecordedEvent,
    TableProjection,
    TableTakenError,
    on,
)
from eventstore.followers import rebuild as rebuilding
from eventstore.followers.rebuild import Rebuild
from eventstore.log import tables as own
from eventstore.log.followers import Followers
from eventstore.log.tables import REBUILD
from eventstore.projections.places import SHADOW


class Opened(Event, name="rebuild-opened"):
    owner: str


class Moved(Event, name="rebuild-moved"):
    amount: int


class Ignored(Event, name="rebuild-ignored"):
    """Nobody handles it."""


class Sent(Event, name="rebuild-sent"):
    """Only a side effect has to do with it."""


class Hook:
    """What a test lets happen in a handler, without its being part of the handler's code."""

    def __init__(self) -> None:
        self.call: Callable[[str], None] = lambda _: None
        self.mails: list[str] = []

    def __call__(self, stream: str) -> None:
        self.call(stream)


hook = Hook()


@pytest.fixture(autouse=True)
def _hook_is_reset() -> Iterator[None]:
    yield
    hook.__init__()  # type: ignore[misc]


class Accounts(TableProjection, name="rebuild-accounts"):
    accounts = Table(
        "rebuild_accounts",
        TableProjection.metadata,
        Column("account", String, primary_key=True),
        Column("owner", String, nullable=False),
        Column("balance", Integer, nullable=False),
    )
    moves = Table(
        "rebuild_moves",
        TableProjection.metadata,
        Column("position", Integer, primary_key=True),
        Column("account", String, ForeignKey("rebuild_accounts.account"), nullable=False),
        Column("amount", Integer, nullable=False),
    )

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        self.insert(self.accounts, account=record.aggregate_id, owner=event.owner, balance=0)

    @on(Moved)
    def _moved(self, event: Moved, record: RecordedEvent) -> None:
        id = record.aggregate_id
        hook(id)
        self.add(self.accounts, id, balance=event.amount)
        self.insert(self.moves, position=record.position, account=id, amount=event.amount)


class Mailing(TableProjection, name="rebuild-mailing"):
    mailed = Table(
        "rebuild_mailed",
        TableProjection.metadata,
        Column("position", Integer, primary_key=True),
    )

    @on(Moved)
    def _moved(self, event: Moved, record: RecordedEvent) -> None:
        self.insert(self.mailed, position=record.position)

    @on(Moved, side_effect=True)
    def _mail(self, event: Moved, record: RecordedEvent) -> None:
        hook.mails.append(record.aggregate_id)

    @on(Sent, side_effect=True)
    def _send(self, event: Sent) -> None:
        hook.mails.append("sent")


def newer() -> type[TableProjection]:
    """Version 2 of Accounts: a column and an index more, and a table less."""

    class Accounts(TableProjection, name="rebuild-accounts"):
        __qualname__ = "Accounts"
        version = 2
        accounts = Table(
            "rebuild_accounts",
            TableProjection.metadata,
            Column("account", String, primary_key=True),
            Column("owner", String, nullable=False, index=True),
            Column("balance", Integer, nullable=False),
            Column("moves", Integer, nullable=False),
        )

        @on(Opened)
        def _opened(self, event: Opened, record: RecordedEvent) -> None:
            values = {"account": record.aggregate_id, "owner": event.owner}
            self.insert(self.accounts, **values, balance=0, moves=0)

        @on(Moved)
        def _moved(self, event: Moved, record: RecordedEvent) -> None:
            self.add(self.accounts, record.aggregate_id, balance=event.amount, moves=1)

    return Accounts


class Sharded(TableProjection, name="rebuild-sharded", shards=2):
    totals = Table(
        "rebuild_totals",
        TableProjection.metadata,
        Column("account", String, primary_key=True),
        Column("total", Integer, nullable=False),
    )

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        self.insert(self.totals, account=record.aggregate_id, total=0)

    @on(Moved)
    def _moved(self, event: Moved, record: RecordedEvent) -> None:
        self.add(self.totals, record.aggregate_id, total=event.amount)


@pytest.fixture
def store(database_url: str) -> Iterator[EventStore]:
    with EventStore(database_url) as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgres"])
def shared_url(request: pytest.FixtureRequest) -> str:
    """A database that several stores can open."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def postgres_store(postgres_url: str) -> Iterator[EventStore]:
    with EventStore(postgres_url) as opened:
        yield opened


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilding, "BATCH", 10)


def filled(store: EventStore, ids: str = "abc", moves: int = 3) -> None:
    """A log in which account "a" has moved by 1 so often, "b" by 2, and so on."""
    for number, id in enumerate(ids, 1):
        store.append(f"rebuild/{id}", [Opened(id.upper()), *[Moved(number)] * moves, Ignored()])


def balances(store: EventStore, cls: type[TableProjection] = Accounts) -> dict[str, int]:
    table = cls.__tables__[0]
    with store.connect() as db:
        names = ("total",) if "total" in table.c else ("balance",)
        return dict(map(tuple, db.execute(select(table.c.account, *(table.c[n] for n in names)))))


def untouched(store: EventStore, cls: type[TableProjection]) -> Any:
    """All that a failed rebuild must leave as it is."""
    rows = [row._replace(advanced_at=0) for row in Followers(store.log).find(cls.__follower__)]
    with store.connect() as db:
        return rows, [sorted(map(str, db.execute(select(each)))) for each in cls.__tables__]


def leftovers(store: EventStore) -> list[Any]:
    """What a rebuild has left behind."""
    left: list[Any] = [status for status in store.status() if status.rebuild]
    with store.connect() as db:
        left += inspect(db).get_table_names(SHADOW) if is_postgres(store) else []
        left += [] if is_postgres(store) else inspect(db).get_temp_table_names()
    return left


def is_postgres(store: EventStore) -> bool:
    return store.engine.dialect.name == "postgresql"


@contextmanager
def in_a_thread(call: Callable[..., Any], *args: Any, **options: Any) -> Iterator[Future[Any]]:
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(call, *args, **options)


# --- what is swapped ---------------------------------------------------------------------------


def test_a_first_version_may_be_built_by_a_rebuild(store: EventStore) -> None:
    filled(store)
    progress = store.rebuild(Accounts)
    assert (progress.position, progress.events) == (store.head(), 12)
    assert balances(store) == {"a": 3, "b": 6, "c": 9}
    store.append("rebuild/a", Moved(5))
    store.catch_up(Accounts)
    assert balances(store)["a"] == 8
    assert store.rebuild(Accounts, verify=True).events == 13


def test_a_log_without_events_is_rebuilt(store: EventStore) -> None:
    reports: list[Progress] = []
    progress = store.rebuild(Accounts, progress=reports.append)
    assert reports == [progress]
    assert (progress.position, progress.events, progress.rate) == (0, 0, 0.0)
    assert progress.seconds_left is None
    assert balances(store) == {}


def test_a_new_version_may_have_another_shape(store: EventStore) -> None:
    filled(store)
    store.catch_up(Accounts)
    later = newer()
    with pytest.raises(ProjectionOutdatedError, match=r"store\.rebuild") as caught:
        store.catch_up(later)
    assert (caught.value.found, caught.value.required) == (1, 2)
    store.rebuild(later, verify=True)  # the columns and tables that both have
    store.append("rebuild/a", Moved(1))
    store.catch_up(later)
    with store.connect() as db:
        (table,) = later.__tables__
        assert db.execute(select(table).order_by("account")).all() == [
            ("a", "A", 4, 4),
            ("b", "B", 6, 3),
            ("c", "C", 9, 3),
        ]
        inspector = inspect(db)
        assert not inspector.has_table("rebuild_moves")
        names = [index["name"] for index in inspector.get_indexes("rebuild_accounts")]
        assert names == ["ix_rebuild_accounts_owner"]
    for old in (store.catch_up, store.rebuild):
        with pytest.raises(ProjectionOutdatedError, match="deploy that code here too"):
            old(Accounts)
    assert leftovers(store) == []


def test_a_new_versions_table_may_be_taken_by_another(store: EventStore) -> None:
    later = newer()
    store.rebuild(later)
    with store.log.transaction() as db:
        db.execute(text("CREATE TABLE rebuild_moves (mine INTEGER)"))
        db.execute(update(own.followers).values(version=0))
    with pytest.raises(TableTakenError) as caught:
        store.rebuild(Accounts)
    assert caught.value.table == "rebuild_moves"
    assert leftovers(store) == []


class Bare(TableProjection, name="rebuild-bare"):
    @on(Moved)
    def _moved(self, event: Moved, record: RecordedEvent) -> None:
        hook(record.aggregate_id)


def test_a_projection_without_tables_can_be_rebuilt(store: EventStore) -> None:
    filled(store)
    store.catch_up(Bare)
    assert store.rebuild(Bare, verify=True).events == 9


# --- what others have made of the tables -------------------------------------------------------


def test_views_and_foreign_keys_of_the_application_stay(store: EventStore) -> None:
    filled(store)
    store.catch_up(Accounts)
    with store.log.transaction() as db:
        for statement in (
            "CREATE VIEW rebuild_rich AS SELECT * FROM rebuild_accounts WHERE owner LIKE '%%'",
            "CREATE VIEW rebuild_count AS SELECT count(*) AS count FROM rebuild_rich",
            "CREATE TABLE rebuild_orders (id INTEGER PRIMARY KEY, account VARCHAR, "
            "CONSTRAINT rebuild_payer FOREIGN KEY (account) REFERENCES rebuild_accounts (account))",
            "INSERT INTO rebuild_orders VALUES (1, 'b')",
        ):
            db.exec_driver_sql(statement)
    with store.connect() as db:
        before = inspect(db).get_foreign_keys("rebuild_orders")
    for _ in range(2):
        store.rebuild(Accounts)
    with store.connect() as db:
        assert inspect(db).get_foreign_keys("rebuild_orders") == before
        assert db.execute(text("SELECT count FROM rebuild_count")).scalar() == 3
        query = "SELECT balance FROM rebuild_rich JOIN rebuild_orders USING (account)"
        assert db.execute(text(query)).scalar() == 6


def test_rights_owners_and_comments_stay(postgres_store: EventStore) -> None:
    store = postgres_store
    filled(store)
    store.catch_up(Accounts)
    state = text("""
        SELECT relname, relowner::regrole::text, relacl::text, reloptions::text,
               obj_description(c.oid, 'pg_class'),
               array(SELECT attacl::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0)
          FROM pg_class c WHERE relname IN ('rebuild_accounts', 'rebuild_moves', 'rebuild_rich')
         ORDER BY relname""")
    with store.log.transaction() as db:
        for statement in (
            'CREATE ROLE "rebuild {reader}"',
            "CREATE ROLE rebuild_owner",
            "GRANT CREATE ON SCHEMA public TO rebuild_owner",
            'GRANT SELECT ON rebuild_accounts TO "rebuild {reader}" WITH GRANT OPTION',
            "GRANT SELECT, INSERT ON rebuild_accounts TO PUBLIC",
            'GRANT SELECT (amount), UPDATE (amount) ON rebuild_moves TO "rebuild {reader}"',
            "ALTER TABLE rebuild_moves OWNER TO rebuild_owner",
            "CREATE VIEW rebuild_rich WITH (security_barrier=true) AS "
            "SELECT account FROM rebuild_accounts WHERE balance > 5",
            "COMMENT ON VIEW rebuild_rich IS 'who''s rich'",
            'GRANT SELECT ON rebuild_rich TO "rebuild {reader}"',
            "ALTER VIEW rebuild_rich OWNER TO rebuild_owner",
        ):
            db.exec_driver_sql(statement)
    try:
        with store.connect() as db:
            before = db.execute(state).all()
        store.rebuild(Accounts)
        with store.connect() as db:
            assert db.execute(state).all() == before
        store.rebuild(newer())  # which has no rebuild_moves
    finally:
        with store.log.transaction() as db:
            for role in ('"rebuild {reader}"', "rebuild_owner"):
                db.exec_driver_sql(f"DROP OWNED BY {role} CASCADE")
                db.exec_driver_sql(f"DROP ROLE {role}")


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("CREATE MATERIALIZED VIEW rebuild_kept AS SELECT * FROM rebuild_moves", "rebuild_kept"),
        ("CREATE VIEW rebuild_amounts AS SELECT amount FROM rebuild_moves", "rebuild_amounts"),
        (
            "CREATE TABLE rebuild_notes (move INTEGER, "
            "CONSTRAINT rebuild_noted FOREIGN KEY (move) REFERENCES rebuild_moves)",
            "rebuild_noted",
        ),
        (
            "CREATE FUNCTION rebuild_sum() RETURNS bigint LANGUAGE sql "
            "BEGIN ATOMIC SELECT sum(amount) FROM rebuild_moves; END",
            "rebuild_sum",
        ),
    ],
)
def test_what_does_not_fit_the_new_tables_is_named(
    postgres_store: EventStore, statement: str, named: str
) -> None:
    store = postgres_store
    filled(store)
    store.catch_up(Accounts)
    with store.log.transaction() as db:
        db.exec_driver_sql(statement)
    before = untouched(store, Accounts)
    with pytest.raises(LogError, match=named):
        store.rebuild(newer())
    assert untouched(store, Accounts) == before


# --- readers and writers meanwhile -------------------------------------------------------------


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


def test_a_running_worker_of_an_old_version_is_told(shared_url: str) -> None:
    with EventStore(shared_url) as store:
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


# --- shards ------------------------------------------------------------------------------------


def resharded(number: int) -> type[TableProjection]:
    class Sharded(TableProjection, name="rebuild-sharded", shards=number):
        __qualname__ = "Sharded"
        totals = globals()["Sharded"].totals
        _opened = globals()["Sharded"]._opened
        _moved = globals()["Sharded"]._moved

    Sharded.__tables__ = globals()["Sharded"].__tables__
    return Sharded


def at_two_positions(store: EventStore) -> None:
    """A projection of two shards, one of which has not seen the last events."""
    filled(store, "abcdef")
    store.catch_up(Sharded)
    old, position = balances(store, Sharded), store.head()
    for id in "abcdef":
        store.append(f"rebuild/{id}", Moved(100))
    (_, late) = Followers(store.log).find("rebuild-sharded")
    worker = store._claimed(Sharded, late, "a worker", 60)
    assert worker is not None
    while worker.position < store.head():
        worker.step(store.head())
    worker.release()
    assert [row.position for row in Followers(store.log).find("rebuild-sharded")] == [
        position,
        store.head(),
    ]
    mixed = balances(store, Sharded)
    assert {mixed[id] - old[id] for id in "abcdef"} == {0, 100}


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("verify", [False, True])
def test_shards_at_different_positions(store: EventStore, number: int, verify: bool) -> None:
    at_two_positions(store)
    cls = Sharded if number == 2 else resharded(number)
    before = max(row.epoch for row in Followers(store.log).find("rebuild-sharded"))
    store.rebuild(cls, verify=verify)
    rows = Followers(store.log).find("rebuild-sharded")
    assert len(rows) == number
    assert min(row.epoch for row in rows) >= before
    assert len({row.position for row in rows}) == (2 if verify and number == 2 else 1)
    store.catch_up(cls)
    assert balances(store, Sharded) == {id: 103 + 3 * n for n, id in enumerate("abcdef")}
    store.rebuild(cls, verify=True)


# --- failures ----------------------------------------------------------------------------------


def fail_on(bad: str) -> Callable[[str], None]:
    def fail(id: str) -> None:
        if id == bad:
            raise RuntimeError("no")

    return fail


def test_a_handler_that_fails_leaves_nothing_behind(store: EventStore, small_batches: None) -> None:
    filled(store, "abcdefg")
    store.catch_up(Accounts)
    before = untouched(store, Accounts)
    hook.call = fail_on("e")
    with pytest.raises(HandlerError, match="RuntimeError: no") as caught:
        store.rebuild(Accounts)
    found = caught.value
    assert (found.follower, found.stream, found.version) == ("rebuild-accounts", "rebuild/e", 2)
    (record,) = store.read("rebuild/e", after=1, limit=1)
    assert (found.position, found.event_type) == (record.position, "rebuild-moved")
    assert isinstance(found.__cause__, RuntimeError)
    assert untouched(store, Accounts) == before
    assert leftovers(store) == []
    hook.call = lambda _: None
    store.rebuild(Accounts, verify=True)


def test_an_event_that_fails_as_the_tables_are_swapped_is_the_one_to_blame(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store)
    store.catch_up(Accounts)
    finish = Rebuild._finish

    def late(*args: Any) -> Any:
        with monkeypatch.context():
            monkeypatch.setattr(Rebuild, "_finish", finish)
            filled(store, "xyz")
            store.catch_up(Accounts)
            hook.call = fail_on("y")
            return finish(*args)

    monkeypatch.setattr(Rebuild, "_finish", late)
    with pytest.raises(HandlerError) as caught:
        store.rebuild(Accounts)
    assert (caught.value.stream, caught.value.version) == ("rebuild/y", 2)
    assert leftovers(store) == []
    assert len(balances(store)) == 6


def test_an_event_that_cannot_be_read_is_told_with_its_place(
    store: EventStore, small_batches: None
) -> None:
    filled(store)
    store.catch_up(Accounts)
    last = store.head() - 1
    with store.log.transaction() as db:
        db.execute(insert(own.types).values(name="rebuild-moved", version=9))
        later = db.scalar(select(own.types.c.id).where(own.types.c.version == 9))
        where = own.events.c.position == last
        db.execute(update(own.events).where(where).values(type_id=later))
    before = untouched(store, Accounts)
    with pytest.raises(NewerEventError) as caught:
        store.rebuild(Accounts)
    assert (caught.value.stream, caught.value.version) == ("rebuild/c", 4)
    assert untouched(store, Accounts) == before
    assert leftovers(store) == []


class Unique(TableProjection, name="rebuild-unique"):
    seats = Table(
        "rebuild_seats",
        TableProjection.metadata,
        Column("account", String, primary_key=True),
        Column("seat", Integer, unique=True),
    )

    @on(Moved)
    def _moved(self, event: Moved, record: RecordedEvent) -> None:
        self.put(self.seats, account=record.aggregate_id, seat=event.amount)


def test_events_that_only_fit_one_after_the_other_are_applied_so(store: EventStore) -> None:
    for id, seat in [("a", 1), ("b", 2), ("a", 3), ("b", 1), ("a", 2)]:
        store.append(f"rebuild/{id}", Moved(seat))
    store.rebuild(Unique)
    with store.as_of(Unique) as past, store.connect() as db:
        for connection in (past, db):
            rows = connection.execute(select(Unique.seats).order_by("account")).all()
            assert rows == [("a", 2), ("b", 1)]


class Stopped(Exception):
    """Somebody pulls the plug."""


def test_an_interrupted_rebuild_goes_on_or_begins_anew(
    store: EventStore, small_batches: None
) -> None:
    filled(store, "abcdefgh", moves=10)
    store.catch_up(Accounts)
    before = untouched(store, Accounts)
    reports: list[Progress] = []
    handled: list[str] = []
    hook.call = handled.append

    def stop(progress: Progress) -> None:
        reports.append(progress)
        if len(reports) == 5:
            raise Stopped

    with pytest.raises(Stopped):
        store.rebuild(Accounts, progress=stop)
    assert untouched(store, Accounts) == before
    assert [p.events for p in reports] == [10, 20, 30, 40, 50]
    first = len(handled)
    status = [s for s in store.status() if s.rebuild]
    handled.clear()
    if is_postgres(store):
        assert [(s.position, s.handled, s.owner) for s in status] == [
            (reports[-1].position, 50, None)
        ]
        progress = store.rebuild(Accounts, progress=reports.append)
        assert (progress.events, progress.started) == (88 - 50, status[0].position)
        assert len(handled) == 80 - first
    else:
        assert leftovers(store) == []
        progress = store.rebuild(Accounts)
        assert (progress.events, progress.started) == (88, 0)
        assert len(handled) == 80
    assert leftovers(store) == []
    store.rebuild(Accounts, verify=True)


@pytest.mark.parametrize("reason", ["other code", "a comparison with what is further back"])
def test_what_does_not_fit_any_more_is_begun_anew(
    postgres_store: EventStore, small_batches: None, reason: str
) -> None:
    store = postgres_store
    filled(store, "abcdefgh", moves=10)

    def stop(progress: Progress) -> None:
        if progress.events == 50:
            raise Stopped

    store.catch_up(Sharded)  # so that Accounts has not even begun
    with pytest.raises(Stopped):
        store.rebuild(Accounts, progress=stop)
    if reason == "other code":
        assert store.rebuild(newer()).events == 88
    else:
        progress = store.rebuild(Accounts, verify=True)
        assert (progress.events, progress.position) == (0, 0)
        store.catch_up(Accounts)
        assert store.rebuild(Accounts, verify=True).events == 88
    assert leftovers(store) == []
    assert len(balances(store)) == 8


def test_two_rebuilds_at_once_are_one_too_many(store: EventStore) -> None:
    filled(store)
    store.catch_up(Accounts)
    caught: list[str] = []

    def again(_: Progress) -> None:
        if not caught:
            with pytest.raises(RebuildRunningError, match="rebuild-accounts") as error:
                store.rebuild(Accounts)
            caught.append(error.value.owner)
            (status,) = (s for s in store.status() if s.rebuild)
            assert status.owner == error.value.owner

    assert store.rebuild(Accounts, progress=again).events == 12
    assert caught
    assert leftovers(store) == []


def test_who_has_lost_a_rebuild_to_another_leaves_his_tables_alone(
    postgres_store: EventStore, small_batches: None
) -> None:
    store = postgres_store
    filled(store, "abcdef")
    store.catch_up(Accounts)
    hook.call = fail_on("f")

    def lose(_: Progress) -> None:
        with store.log.transaction() as db:
            where = own.followers.c.shard == REBUILD
            db.execute(update(own.followers).where(where).values(owner="another", epoch=99))

    with pytest.raises((LeaseLostError, HandlerError)):
        store.rebuild(Accounts, progress=lose)
    (status,) = (s for s in store.status() if s.rebuild)
    assert status.owner == "another"
    with store.connect() as db:
        assert sorted(inspect(db).get_table_names(SHADOW)) == ["rebuild_accounts", "rebuild_moves"]


# --- progress ----------------------------------------------------------------------------------


def test_progress_only_grows_and_only_handled_events_are_read(
    store: EventStore, small_batches: None
) -> None:
    store.append("rebuild/q", Opened("Q"))
    for _ in range(5):
        store.append("other/z", [Ignored()] * 100)
        store.append("rebuild/q", [Moved(1)] * 10)
    reports: list[Progress] = []
    last = store.rebuild(Accounts, progress=reports.append)
    assert reports[-1] == last
    assert (last.position, last.head, last.events) == (store.head(), store.head(), 51)
    for one, next in pairwise(reports):
        assert one.position <= next.position <= next.head
        assert one.head <= next.head
        assert one.events <= next.events
        assert one.seconds <= next.seconds
        assert next.seconds_left is not None
        assert next.rate > 0
    assert len(reports) == 6 + 1  # 51 events by tens, and the swap: the 500 others take none


# --- side effects ------------------------------------------------------------------------------


def test_side_effects_run_neither_in_a_rebuild_nor_in_the_past(store: EventStore) -> None:
    filled(store)
    store.append("rebuild/a", Sent())
    store.catch_up(Mailing)
    assert sorted(hook.mails) == [*"aaabbbccc", "sent"]
    hook.mails.clear()
    store.rebuild(Mailing, verify=True)
    with store.as_of(Mailing) as db:
        assert db.scalar(select(func.count()).select_from(Mailing.mailed)) == 9
    assert hook.mails == []


def test_a_rebuild_goes_no_further_than_side_effects_have_run(store: EventStore) -> None:
    filled(store)
    reached = store.catch_up(Mailing)
    store.append("rebuild/a", [Moved(1), Moved(2)])
    hook.mails.clear()
    assert store.rebuild(Mailing).position == reached
    store.catch_up(Mailing)
    assert hook.mails == ["a", "a"]
    with store.connect() as db:
        assert db.scalar(select(func.count()).select_from(Mailing.mailed)) == 11


# --- verifying ---------------------------------------------------------------------------------


def test_a_comparison_finds_changed_missing_and_extra_rows(store: EventStore) -> None:
    filled(store)
    store.catch_up(Accounts)
    store.rebuild(Accounts, verify=True)
    accounts, moves = Accounts.accounts, Accounts.moves
    first = store.head()
    with store.log.transaction() as db:
        db.execute(update(accounts).where(accounts.c.account == "b").values(balance=0))
        db.execute(moves.delete().where(moves.c.amount == 3))
        db.execute(accounts.delete().where(accounts.c.account == "c"))
        db.execute(insert(accounts).values(account="z", owner="Z", balance=1))
        db.execute(insert(moves).values(position=first + 1000, account="z", amount=1))
    before = untouched(store, Accounts)
    with pytest.raises(RebuildDiffersError, match="7 rows") as caught:
        store.rebuild(Accounts, verify=True)
    assert untouched(store, Accounts) == before
    assert leftovers(store) == []
    found = caught.value.differences
    c = {"account": "c", "owner": "C", "balance": 9}
    z = {"account": "z", "owner": "Z", "balance": 1}
    b = {"account": "b", "owner": "B"}
    assert [(d.living, d.rebuilt) for d in found if d.table == "rebuild_accounts"] == [
        ({**b, "balance": 0}, {**b, "balance": 6}),
        (None, c),
        (z, None),
    ]
    of_moves = [(d.living, d.rebuilt) for d in found if d.table == "rebuild_moves"]
    assert [living for living, _ in of_moves[:3]] == [None] * 3
    assert [rebuilt["amount"] for _, rebuilt in of_moves[:3] if rebuilt] == [3, 3, 3]
    assert of_moves[3] == ({"position": first + 1000, "account": "z", "amount": 1}, None)
    assert not caught.value.more
    store.rebuild(Accounts)
    store.rebuild(Accounts, verify=True)


def test_no_more_differences_are_told_than_can_be_read(store: EventStore) -> None:
    store.append("rebuild/a", [Opened("A"), *[Moved(1)] * 150])
    store.catch_up(Accounts)
    with store.log.transaction() as db:
        db.execute(Accounts.moves.delete())
    with pytest.raises(RebuildDiffersError, match="more than 100 rows") as caught:
        store.rebuild(Accounts, verify=True)
    assert caught.value.more
    assert len(caught.value.differences) == 100


def test_a_living_projection_that_is_behind_is_compared_where_it_is(store: EventStore) -> None:
    filled(store, "ab")
    position = store.catch_up(Accounts)
    filled(store, "c")
    progress = store.rebuild(Accounts, verify=True)
    assert (progress.position, progress.events) == (position, 8)
    assert balances(store) == {"a": 3, "b": 6}
    store.catch_up(Accounts)
    assert len(balances(store)) == 3


class Kinds(TableProjection, name="rebuild-kinds"):
    kinds = Table(
        "rebuild_kinds",
        TableProjection.metadata,
        Column("account", String, primary_key=True),
        Column("document", JSON),
        Column("sum", Float, nullable=False),
        Column("exact", Numeric(20, 4), nullable=False),
        Column("blank", String),
    )
    log = Table(
        "rebuild_kinds_log", TableProjection.metadata, Column("what", JSON), Column("n", Integer)
    )

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        document = {"owner": event.owner, "list": [1, None]}
        values = {"account": record.aggregate_id, "document": document, "sum": 0.0, "exact": 0}
        self.insert(self.kinds, **values)

    @on(Moved)
    def _moved(self, event: Moved, record: RecordedEvent) -> None:
        self.add(self.kinds, record.aggregate_id, sum=event.amount / 10)
        self.insert(self.log, what={"amount": event.amount}, n=None)


def test_json_floats_and_nulls_are_compared(store: EventStore) -> None:
    store.append("rebuild/a", Opened("A"))
    store.append("rebuild/b", Opened("B"))
    for number in range(1, 12):  # in batches of one, so that sums are not made in one order
        store.append("rebuild/a", [Moved(number), Moved(number)])
        store.catch_up(Kinds)
    store.rebuild(Kinds, verify=True)
    kinds, log = Kinds.kinds, Kinds.log
    with store.log.transaction() as db:
        a = update(kinds).where(kinds.c.account == "a")
        db.execute(a.values(document={"owner": "A", "list": [1, 0]}, sum=kinds.c.sum + 1e-6))
        db.execute(update(kinds).where(kinds.c.account == "b").values(blank="something"))
        db.execute(insert(log).values(what={"amount": 1}, n=None))  # there are two of it already
    with pytest.raises(RebuildDiffersError) as caught:
        store.rebuild(Kinds, verify=True)
    found = caught.value.differences
    assert [d.table for d in found] == ["rebuild_kinds", "rebuild_kinds", "rebuild_kinds_log"]
    a_was, a_is = found[0].living, found[0].rebuilt
    assert a_was is not None
    assert a_is is not None
    assert (a_was["document"]["list"], a_is["document"]["list"]) == ([1, 0], [1, None])
    assert found[1].living == {**(found[1].rebuilt or {}), "blank": "something"}
    assert found[2].rebuilt is None
    assert found[2].living is not None
    assert found[2].living["n"] is None


def test_a_parked_event_counts_as_a_difference(store: EventStore) -> None:
    filled(store, "ab")
    hook.call = fail_on("b")
    store.catch_up(Accounts)
    assert len(store.parked(Accounts)) == 3
    hook.call = lambda _: None
    with pytest.raises(RebuildDiffersError):
        store.rebuild(Accounts, verify=True)
    assert len(store.parked(Accounts)) == 3
    store.rebuild(Accounts)
    assert store.parked(Accounts) == []
    assert balances(store) == {"a": 3, "b": 6}


# --- foreign keys that SQLite enforces ---------------------------------------------------------


class Cascading(TableProjection, name="rebuild-cascading"):
    homes = Table(
        "rebuild_homes", TableProjection.metadata, Column("account", String, primary_key=True)
    )
    rooms = Table(
        "rebuild_rooms",
        TableProjection.metadata,
        Column("number", Integer, primary_key=True),
        Column("account", ForeignKey("rebuild_homes.account", ondelete="CASCADE"), nullable=False),
    )

    @on(Opened)
    def _opened(self, event: Opened, record: RecordedEvent) -> None:
        self.insert(self.homes, account=record.aggregate_id)
        self.insert(self.rooms, number=record.position, account=record.aggregate_id)

    @on(Moved)
    def _moved(self, event: Moved, record: RecordedEvent) -> None:
        self.delete(self.homes, record.aggregate_id)


def test_enforced_foreign_keys_work_in_the_new_tables_and_spare_the_applications(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create_engine(sqlite_url)

    @event.listens_for(engine, "connect")
    def connected(raw: Any, _: Any) -> None:
        raw.execute("PRAGMA foreign_keys = ON")

    with EventStore(engine) as store:
        filled(store, "abc", moves=0)
        store.catch_up(Cascading)
        with store.log.transaction() as db:
            db.exec_driver_sql(
                "CREATE TABLE rebuild_guests (home VARCHAR "
                "REFERENCES rebuild_homes (account) ON DELETE CASCADE)"
            )
            db.exec_driver_sql("INSERT INTO rebuild_guests VALUES ('a')")
        finish = Rebuild._finish
        late = iter("bc")

        def appended(*args: Any) -> Any:
            for id in late:
                store.append(f"rebuild/{id}", Moved(1))
                store.catch_up(Cascading)
                break
            return finish(*args)

        monkeypatch.setattr(Rebuild, "_finish", appended)
        monkeypatch.setattr(rebuilding, "_PAUSE", 0)
        store.rebuild(Cascading)
        with store.connect() as db:
            assert list(db.scalars(select(Cascading.rooms.c.account))) == ["a"]
            assert db.exec_driver_sql("SELECT home FROM rebuild_guests").all() == [("a",)]
            assert db.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    engine.dispose()
