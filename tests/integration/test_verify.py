"""`eventstore.verification.verify` and the command: what is wrong is found, and nothing else is."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Integer,
    String,
    Table,
    delete,
    insert,
    make_url,
    select,
    text,
    update,
)

from eventstore import (
    Aggregate,
    Event,
    EventHandler,
    EventStore,
    LogError,
    Projection,
    RecordedEvent,
    TableProjection,
    on,
)
from eventstore.cli import main
from eventstore.log.base import EventType, NewEvent
from eventstore.log.base import Write as LogWrite
from eventstore.log.tables import (
    events,
    folds,
    followers,
    parked,
    snapshots,
    streams,
    types,
)
from eventstore.verification import Finding, Walked, seal, verify

BEYOND = 10**9


class Put(Event, name="verify-put"):
    amount: int


class Other(Event, name="verify-other"):
    """Nobody handles it."""


class Large(Event, name="verify-large"):
    text: str


class Box(Aggregate, stream="verify-box/{id}", snapshot_every=2):
    total: int = 0

    @on(Put)
    def _put(self, event: Put) -> None:
        self.total += event.amount


class Sum(Projection, name="verify-sum", snapshot_every=1):
    total: int = 0

    @on(Put)
    def _put(self, event: Put) -> None:
        self.total += event.amount


class Rows(TableProjection, name="verify-rows"):
    boxes = Table(
        "verify_boxes",
        TableProjection.metadata,
        Column("box", String, primary_key=True),
        Column("total", Integer, nullable=False),
    )

    @on(Put)
    def _put(self, event: Put, record: RecordedEvent) -> None:
        found = self.get(self.boxes, record.stream) or {"total": 0}
        self.put(self.boxes, box=record.stream, total=found["total"] + event.amount)


class Picky(EventHandler, name="verify-picky", attempts=1):
    @on(Put)
    def _put(self, event: Put) -> None:
        if event.amount == 13:
            raise ValueError("not that one")


NAMES = ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l")


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest) -> Iterator[EventStore]:
    """A log with everything in it that a log can have, and all of it as it should be."""
    yield from filled(request.getfixturevalue(f"{request.param}_url"))


#: For what is the same on both.
on_sqlite = pytest.mark.parametrize("store", ["sqlite"], indirect=True)


def filled(url: str) -> Iterator[EventStore]:
    with EventStore(url) as store:
        for name in NAMES:
            box = f"verify-box/{name}"
            store.append(box, [Put(amount=n) for n in range(5)], idempotency_key=f"key {name}")
            store.load(Box, name)
        store.append("verify-box/gone", [Put(amount=13), Put(amount=1)])
        store.append("verify-box/stuck", [Put(amount=13), Put(amount=1), Put(amount=2)])
        store.append("verify-else/1", [Other(), Other()])
        store.project(Sum)
        store.catch_up(Rows)
        store.catch_up(Picky)
        store.delete_stream("verify-else/1")
        yield store


def found(store: EventStore, **options: Any) -> set[tuple[str, str | None, int | None]]:
    """The errors, by what programs know them by."""
    return {(f.kind, f.stream, f.version) for f in verify(store, **options) if f.is_error}


def damage(store: EventStore, *statements: Any) -> None:
    with store.log.transaction() as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount, statement


def dumped(store: EventStore) -> list[Any]:
    with store.connect() as connection:
        rows = [connection.execute(select(table)).all() for table in (streams, events)]
    return [sorted(map(str, each)) for each in rows]


def id_of(name: str) -> Any:
    return select(streams.c.id).where(streams.c.name == f"verify-box/{name}").scalar_subquery()


def at(name: str, version: int) -> Any:
    return (events.c.stream_id == id_of(name)) & (events.c.version == version)


def position_of(store: EventStore, name: str, version: int) -> int:
    (record,) = store.read(f"verify-box/{name}", after=version - 1, limit=1)
    return record.position


def test_nothing_is_found_where_all_is_well(store: EventStore) -> None:
    seen: list[Walked] = []
    assert list(verify(store, projections=[Rows], progress=seen.append)) == []
    assert {walked.part for walked in seen} == {"streams", "snapshots", "rebuilding verify-rows"}
    assert max(w.events for w in seen if w.part == "streams") == 5 * len(NAMES) + 2 + 3 + 1


def test_nothing_is_found_in_an_empty_log_nor_in_memory(database_url: str) -> None:
    with EventStore(database_url) as store:
        assert list(verify(store)) == []
    if database_url == "sqlite://":
        for store in filled(database_url):
            assert list(verify(store, projections=[Rows])) == []


def test_each_damage_is_found_and_nothing_else(store: EventStore) -> None:
    third = position_of(store, "k", 3)
    damage(
        store,
        delete(events).where(at("a", 3)),
        delete(events).where(at("b", 5)),
        delete(events).where(events.c.stream_id == id_of("c")),
        delete(snapshots).where(snapshots.c.stream_id == id_of("c")),
        update(events).where(at("d", 2)).values(recorded_at=events.c.recorded_at + 10**12),
        update(events).where(at("e", 2)).values(data=b'{"amount": "x"}'),
        update(events).where(at("f", 2)).values(data=b"\xff", metadata=b"[]", id=b"short"),
        update(streams).where(streams.c.id == id_of("g")).values(version=3),
        update(streams).where(streams.c.id == id_of("h")).values(deleted=True),
        update(events).where(at("i", 4)).values(type_id=BEYOND),
        update(events).where(at("k", 3)).values(position=BEYOND),
        update(events).where(at("k", 4)).values(position=third),
        update(streams)
        .where(streams.c.id == id_of("l"))
        .values(category="else", recorded_at=streams.c.recorded_at + 1),
        delete(streams).where(streams.c.name == "verify-box/j"),
    )
    box = "verify-box/"
    errors = found(store)
    assert {error for error in errors if error[0] not in ("snapshot", "fold", "key", "parked")} == {
        ("hole", f"{box}a", 3),
        ("lost", f"{box}b", 5),
        ("lost", f"{box}c", 1),
        ("time", f"{box}d", 3),
        ("payload", f"{box}e", 2),
        ("payload", f"{box}f", 2),
        ("metadata", f"{box}f", 2),
        ("id", f"{box}f", 2),
        ("head", f"{box}g", 5),
        ("head", f"{box}h", 5),
        ("type", None, 4),
        ("order", f"{box}k", 4),
        ("head", f"{box}l", 5),
        ("orphan", None, None),
    }
    assert {error[1] for error in errors if error[0] == "key"} == {f"{box}g", f"{box}j"}
    assert ("snapshot", None, 5) in errors  # that of stream j, which is not there any more


@on_sqlite
def test_events_beside_a_tombstone_are_found(store: EventStore) -> None:
    tombstone = select(types.c.id).where(types.c.name == "$deleted")
    damage(
        store,
        update(events).where(at("a", 3)).values(type_id=tombstone.scalar_subquery()),
    )
    assert ("deleted", "verify-box/a", 3) in found(store)
    assert ("deleted", "verify-box/a", 4) in found(store)


def test_caches_that_are_wrong_are_found_and_deleted(store: EventStore) -> None:
    before = store.load(Box, "a").total
    right = store.project(Sum).total
    state = select(snapshots.c.state).where(
        snapshots.c.stream_id == id_of("b"), snapshots.c.version == 5
    )
    with store.connect() as connection:
        wrong = connection.execute(state).scalar_one().replace(b"\x0a", b"\x0b")
    damage(
        store,
        update(snapshots).where(snapshots.c.stream_id == id_of("a")).values(state=wrong),
        update(snapshots).where(snapshots.c.stream_id == id_of("c")).values(position=1),
        update(snapshots).where(snapshots.c.stream_id == id_of("d")).values(state=b"\xff"),
        update(snapshots).where(snapshots.c.stream_id == id_of("e")).values(version=BEYOND),
        update(snapshots).where(snapshots.c.stream_id == id_of("f")).values(stream_id=BEYOND),
        update(folds).values(state=wrong),
    )
    assert store.load(Box, "a").total == before + 1
    box = "verify-box/"
    errors = found(store)
    assert {error[0] for error in errors} == {"snapshot", "fold"}
    assert {error[1] for error in errors if error[0] == "snapshot"} == {
        *(f"{box}{name}" for name in "acde"),
        None,
    }
    mended = [finding for finding in verify(store, repair=True) if finding.is_error]
    assert len(mended) == len(errors)
    assert all(finding.is_repaired for finding in mended)
    assert found(store) == set()
    assert store.load(Box, "a").total == before
    assert store.project(Sum).total == right


def test_heads_are_computed_anew_where_the_events_are_whole(store: EventStore) -> None:
    def head(name: str) -> Any:
        return update(streams).where(streams.c.name == name)

    right = list(store.streams())
    damage(
        store,
        head("verify-box/a").values(version=2, recorded_at=0, category="x"),
        head("verify-box/b").values(deleted=True),
        head("verify-else/1").values(deleted=False, version=1),
    )
    assert {e[:2] for e in found(store) if e[0] == "head"} == {
        ("head", "verify-box/a"),
        ("head", "verify-box/b"),
        ("head", "verify-else/1"),
    }
    assert all(f.is_repaired for f in verify(store, repair=True) if f.kind == "head")
    assert found(store) == set()
    assert list(store.streams()) == right
    store.append("verify-box/a", Put(amount=1), expected=5)


@on_sqlite
def test_a_head_is_not_made_to_fit_what_is_left_of_a_stream(store: EventStore) -> None:
    damage(
        store,
        delete(events).where(at("a", 2)),
        update(streams).where(streams.c.id == id_of("a")).values(version=4),
        delete(events).where(at("b", 5)),
    )
    before = dumped(store)
    told = [f for f in verify(store, repair=True) if f.kind in ("head", "hole", "lost")]
    assert {f.kind for f in told} == {"head", "hole", "lost"}
    assert not any(finding.is_repaired for finding in told)
    assert dumped(store) == before


def test_followers_that_make_no_sense_are_found(store: EventStore) -> None:
    row = {c.name: 0 for c in parked.columns} | {"stream": "verify-box/a", "type": "verify-put"}
    row |= {"follower": "verify-picky", "error": None, "retry": False}
    one, two = (position_of(store, "a", version) for version in (1, 2))
    with store.connect() as connection:
        whole = connection.execute(select(followers)).mappings().first()
    assert whole is not None
    damage(
        store,
        update(followers).where(followers.c.name == "verify-rows").values(position=BEYOND),
        insert(followers).values(**{**whole, "name": "verify-none", "shard": 1, "tables": "{"}),
        insert(followers).values(**{**whole, "name": "verify-lost", "tables": '["nowhere"]'}),
        insert(parked).values(**{**row, "position": one, "version": 1}),
        insert(parked).values(**{**row, "position": two, "version": 7, "error": "x"}),
        insert(parked).values(**{**row, "follower": "nobody", "version": 1, "position": one}),
        insert(parked).values(**{**row, "position": BEYOND, "version": 1, "error": "x"}),
    )
    told = [finding for finding in verify(store) if finding.is_error]
    assert sorted((f.kind, f.follower) for f in told) == [
        ("checkpoint", "verify-rows"),
        ("follower", "verify-lost"),
        ("follower", "verify-none"),
        ("follower", "verify-none"),
        ("parked", "nobody"),
        *[("parked", "verify-picky")] * 3,
    ]
    texts = " ".join(finding.text for finding in told)
    for part in ("stands behind none", "another event", "no follower", "beyond its checkpoint"):
        assert part in texts


def test_what_is_erased_is_in_no_kept_fold(store: EventStore) -> None:
    before = store.project(Sum).total
    store.delete_stream("verify-box/a")
    assert store.project(Sum).total == before - 10
    assert found(store) == set()


@on_sqlite
def test_what_is_parked_of_a_deleted_stream_is_no_error(store: EventStore) -> None:
    assert store.parked(Picky)
    store.delete_stream("verify-box/stuck")
    assert found(store) == set()


def test_a_read_model_that_differs_is_found_and_left_alone(store: EventStore) -> None:
    damage(store, update(Rows.boxes).where(Rows.boxes.c.box == "verify-box/a").values(total=99))
    before = store.status()
    (finding,) = verify(store, projections=[Rows])
    assert (finding.kind, finding.follower) == ("projection", "verify-rows")
    assert "verify-box/a" in finding.text
    assert "99" in finding.text
    with store.connect() as connection:
        kept = select(Rows.boxes.c.total).where(Rows.boxes.c.box == "verify-box/a")
        assert connection.scalar(kept) == 99
    after = store.status()
    assert [(r.follower, r.position, r.parked) for r in after] == [
        (r.follower, r.position, r.parked) for r in before
    ]


def test_a_read_model_that_nobody_has_started_is_not_compared() -> None:
    with EventStore("sqlite://") as store:
        (finding,) = verify(store, projections=[Rows])
        assert (finding.kind, finding.is_error) == ("uncompared", False)
        assert store.status() == []


@on_sqlite
def test_what_is_not_known_here_is_noted_and_still_has_to_be_json(store: EventStore) -> None:
    name = text("UPDATE eventstore_types SET name = 'verify-foreign' WHERE name = 'verify-put'")
    damage(
        store,
        name,
        update(events).where(at("a", 2)).values(data=b"{"),
        update(snapshots).values(fingerprint=b"0" * 16),
        delete(folds),
    )
    notes = [finding for finding in verify(store) if not finding.is_error]
    assert {note.kind for note in notes} == {"unknown", "uncompared"}
    assert len(notes) == 2
    assert found(store) >= {("payload", "verify-box/a", 2)}


@on_sqlite
def test_messages_that_came_over_http_are_json_or_bytes_of_any_kind(store: EventStore) -> None:
    def write(name: str, data: bytes) -> None:
        store.log.append([LogWrite("web/1", [NewEvent(EventType(name, 1), data, bytes(16))])])

    write("$json", b'[1, "x"]')
    write("$batch", b"[{}, 2]")
    write("$bytes", b"\xff\x00{")
    assert list(verify(store)) == []
    write("$json", b"{")
    write("$batch", b"\xff")
    assert found(store) == {("payload", "web/1", 4), ("payload", "web/1", 5)}


def test_writers_and_deletions_meanwhile_are_no_errors(
    request: pytest.FixtureRequest, tmp_path: Any
) -> None:
    for kind in ("sqlite", "postgres"):
        url = request.getfixturevalue(f"{kind}_url")
        with EventStore(url, lock_timeout=30) as store:
            for number in range(40):
                store.append(f"verify-box/{number}", [Put(amount=n) for n in range(20)])
            stop = threading.Event()

            def write(store: EventStore = store, stop: threading.Event = stop) -> None:
                number = 0
                while not stop.is_set():
                    number += 1
                    store.append(f"verify-box/{number % 40 + 40}", Put(amount=1))
                    store.append(f"verify-box/{number % 20 + 20}", Put(amount=1))
                    if number < 20:
                        store.delete_stream(f"verify-box/{number}")

            writer = threading.Thread(target=write)
            writer.start()
            try:
                for _ in range(3):
                    assert found(store) == set()
            finally:
                stop.set()
                writer.join()


def test_a_damaged_file_is_found(sqlite_url: str) -> None:
    """An index that has missed a row, as a torn page of a disk may leave it."""
    with EventStore(sqlite_url) as store:
        store.append("verify-box/a", Put(amount=1))
    file, index = make_url(sqlite_url).database or "", "eventstore_streams_category_name_idx"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as raw:
        raw.execute("PRAGMA writable_schema = ON")
        row = raw.execute("SELECT * FROM sqlite_master WHERE name = ?", (index,)).fetchone()
        raw.execute("DELETE FROM sqlite_master WHERE name = ?", (index,))
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as raw:
        raw.execute("INSERT INTO eventstore_streams VALUES (9, 'b', 'b', 0, 0, 0)")
        raw.execute("PRAGMA writable_schema = ON")
        raw.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", row)
    with EventStore(sqlite_url) as store:
        told = [finding for finding in verify(store) if finding.kind == "database"]
        assert told
        assert index in " ".join(finding.text for finding in told)


def test_memory_does_not_grow_with_the_log(sqlite_url: str) -> None:
    with EventStore(sqlite_url) as store:
        for number in range(40):
            store.append(f"verify-large/{number % 3}", [Large(text="x" * 10_000)] * 100)
        tracemalloc.start()
        try:
            seal(store)
            assert list(verify(store)) == []
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 16_000_000  # of 40 million bytes of payloads


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def sound(url: str) -> Callable[[], EventStore]:
    with EventStore(url) as store:
        store.append("verify-box/a", [Put(amount=1), Put(amount=2)])
        store.catch_up(Rows)
    return lambda: EventStore(url)


def test_the_exit_status_tells_scripts(
    url: str, sound: Callable[[], EventStore], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", url, f"{__name__}:Rows"]) == 0
    assert capsys.readouterr().out == "all is well\n"
    with sound() as store:
        damage(store, update(streams).values(version=1))
    assert main(["verify", "--url", url, "--json"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert (told["kind"], told["stream"], told["is_error"]) == ("head", "verify-box/a", True)
    assert main(["verify", url, "--repair"]) == 1
    assert "repaired (head)" in capsys.readouterr().out
    assert main(["verify", url]) == 0


def test_what_cannot_be_looked_at_has_a_status_of_its_own(
    url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("EVENTSTORE_URL", raising=False)
    with EventStore(url):
        pass
    assert main(["verify"]) == 2
    assert main(["verify", f"sqlite:///{tmp_path}/nowhere/log.db"]) == 2
    assert main(["verify", url, "--import", "no_such_module_at_all"]) == 2
    assert main(["verify", url, url]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_on_a_terminal_progress_is_drawn_beside_the_findings(
    url: str,
    sound: Callable[[], EventStore],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["verify", url]) == 0
    captured = capsys.readouterr()
    assert captured.out == "all is well\n"
    assert "streams" in captured.err
    assert main(["verify", url, "--json"]) == 0
    assert capsys.readouterr().err == ""


def test_findings_carry_nothing_that_a_terminal_would_obey(
    url: str, sound: Callable[[], EventStore], capsys: pytest.CaptureFixture[str]
) -> None:
    with sound() as store:
        damage(store, update(streams).values(category="\x1b[2J"))
    assert main(["verify", url]) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_a_database_that_goes_away_is_an_error(sqlite_url: str) -> None:
    with EventStore(sqlite_url) as store:
        store.append("verify-box/a", Put(amount=1))
        with store.engine.begin() as connection:
            connection.execute(text("DROP TABLE eventstore_parked"))
        with pytest.raises(LogError, match="eventstore_parked"):
            list(verify(store))


@on_sqlite
def test_a_finding_is_data(store: EventStore) -> None:
    damage(store, delete(events).where(at("a", 3)))
    (finding,) = (f for f in verify(store) if f.kind == "hole")
    assert finding == Finding("hole", finding.text, stream="verify-box/a", version=3)
