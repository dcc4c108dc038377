"""A rebuild swaps tables: what others have made of them, shards, progress and side effects."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from rebuilt import (
    Accounts,
    Ignored,
    Mailing,
    Moved,
    Opened,
    Sent,
    Sharded,
    balances,
    filled,
    hook,
    leftovers,
    newer,
    resharded,
    untouched,
)
from sqlalchemy import (
    Column,
    ForeignKey,
    Integer,
    String,
    Table,
    create_engine,
    event,
    func,
    inspect,
    select,
    text,
    update,
)

from eventstore import (
    EventStore,
    LogError,
    Progress,
    ProjectionOutdatedError,
    RecordedEvent,
    TableProjection,
    TableTakenError,
    on,
)
from eventstore.followers import rebuild as rebuilding
from eventstore.followers.rebuild import Rebuild
from eventstore.log import tables as own
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


# --- shards --------------------------------------------------------------------------------------


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


# --- what is swapped -----------------------------------------------------------------------------


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


# --- what others have made of the tables ---------------------------------------------------------


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


# --- progress ------------------------------------------------------------------------------------


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


# --- side effects --------------------------------------------------------------------------------


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


# --- foreign keys that SQLite enforces -----------------------------------------------------------


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
