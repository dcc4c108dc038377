"""The chain: what was altered since it was sealed is found, and an auditor can compute it anew."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update

from eventstore import Event, EventStore, InvalidArgumentError, context
from eventstore.cli import commands, main
from eventstore.log.tables import chain, events, streams, types
from eventstore.verification import Anchor, seal, verify
from eventstore.verification.chain import hash_of, seal_of


class Booked(Event, name="chain-booked"):
    amount: int


class Wired(Event, name="chain-wired"):
    amount: int


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest) -> Iterator[EventStore]:
    with EventStore(request.getfixturevalue(f"{request.param}_url")) as store:
        for number in range(6):
            with context(user=f"user {number}"):
                store.append("book/a", Booked(amount=number))
                store.append("book/b", [Booked(amount=number), Wired(amount=number)])
        yield store


#: For what is the same on both.
on_sqlite = pytest.mark.parametrize("store", ["sqlite"], indirect=True)


def found(store: EventStore, *anchors: Anchor) -> set[tuple[str, str | None, int | None]]:
    return {(f.kind, f.stream, f.version) for f in verify(store, anchors=anchors)}


def at(store: EventStore, stream: str, version: int) -> Any:
    (record,) = store.read(stream, after=version - 1, limit=1)
    return events.c.position == record.position


def alter(store: EventStore, *statements: Any) -> None:
    with store.log.transaction() as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount


def test_a_sealed_log_is_as_it_should_be(store: EventStore) -> None:
    anchor = seal(store)
    assert anchor is not None
    assert anchor.position == store.head()
    assert found(store, anchor) == set()
    assert seal(store) == anchor
    assert Anchor.parse(str(anchor)) == anchor


def test_there_is_nothing_to_seal_in_an_empty_log(database_url: str) -> None:
    with EventStore(database_url) as store:
        assert seal(store) is None
        assert found(store) == set()


def test_the_chain_goes_on_as_if_it_had_been_made_at_once(store: EventStore) -> None:
    first = seal(store)
    store.append("book/a", [Booked(amount=n) for n in range(1_200)])
    store.append("book/c", Booked(amount=1))
    last = seal(store)
    assert first is not None
    assert last is not None
    assert found(store, first, last) == set()
    alter(store, delete(chain))
    assert seal(store) == last


@on_sqlite
def test_an_auditor_can_compute_it_from_what_is_read(store: EventStore) -> None:
    """By the recipe of docs/guarantees.md, with other code than the library's."""
    anchor = seal(store)
    hashes: dict[str, bytes] = {}
    sealed = bytes(32)
    for record in store.read_all():
        digest = hashlib.sha256(hashes.get(record.stream, bytes(32)))
        micros = round(record.recorded_at.timestamp() * 1_000_000)
        text = [record.stream, record.version, record.type, record.schema_version, micros]
        fields = [str(each).encode() for each in text]
        for field in (*fields, record.id.bytes, record.data, record.metadata.encoded):
            if field is None:
                digest.update(b"\xff\xff\xff\xff\xff\xff\xff\xff")
            else:
                digest.update(len(field).to_bytes(8, "big") + field)
        hashes[record.stream] = digest.digest()
        sealed = hashlib.sha256(
            sealed + record.position.to_bytes(8, "big") + digest.digest()
        ).digest()
    assert anchor == (record.position, sealed)


CHANGES: dict[str, dict[str, Any]] = {
    "payload": {"data": b'{"amount":7}'},
    "metadata": {"metadata": b'{"user":"eve"}'},
    "no metadata": {"metadata": None},
    "time": {"recorded_at": events.c.recorded_at - 1},
    "id": {"id": b"0123456789abcdef"},
    "type": {"type_id": select(types.c.id).where(types.c.name == "chain-wired").scalar_subquery()},
}


def test_whatever_is_altered_is_found(store: EventStore) -> None:
    anchor = seal(store)
    assert anchor is not None
    for change in CHANGES.values():
        one = at(store, "book/a", 3)
        with store.connect() as connection:
            before = connection.execute(select(events).where(one)).mappings().one()
        alter(store, update(events).where(one).values(change))
        assert {f for f in found(store, anchor) if f[0] != "time"} == {("altered", "book/a", 3)}
        alter(store, update(events).where(one).values(**before))
    assert found(store, anchor) == set()
    alter(store, update(streams).where(streams.c.name == "book/a").values(name="book/x"))
    assert found(store, anchor) == {("altered", "book/x", version) for version in range(1, 7)}


def test_what_is_removed_put_in_or_moved_is_found(store: EventStore) -> None:
    anchor = seal(store)
    assert anchor is not None
    last = at(store, "book/a", 6)
    alter(
        store,
        delete(events).where(last),
        update(streams).where(streams.c.name == "book/a").values(version=5),
    )
    assert ("removed", "book/a", 6) in found(store, anchor)
    fourth, fifth = at(store, "book/a", 4), at(store, "book/a", 5)
    alter(
        store,
        update(events).where(fourth).values(version=99),
        update(events).where(fifth).values(version=4),
        update(events).where(events.c.version == 99).values(version=5),
    )
    assert found(store, anchor) >= {("altered", "book/a", 4), ("altered", "book/a", 5)}


@on_sqlite
def test_an_event_put_in_below_the_seal_is_found(store: EventStore) -> None:
    with store.connect() as connection:
        row = dict(connection.execute(select(events).limit(1)).mappings().one())
    alter(store, update(events).where(at(store, "book/b", 12)).values(position=99))
    anchor = seal(store)
    assert anchor == Anchor(99, anchor.seal if anchor else b"")
    alter(
        store,
        insert(events).values(**{**row, "position": 98, "version": 7}),
        update(streams).where(streams.c.name == "book/a").values(version=7),
    )
    assert ("unsealed", "book/a", 7) in found(store)


@on_sqlite
def test_a_chain_that_was_made_anew_is_told_by_an_anchor(store: EventStore) -> None:
    early = seal(store)
    store.append("book/a", Booked(amount=9))
    late = seal(store)
    assert early is not None
    assert late is not None
    alter(store, update(events).where(at(store, "book/a", 2)).values(data=b'{"amount":0}'))
    alter(store, delete(chain))
    assert found(store, early) == {("anchor", None, None)}
    seal(store)
    assert found(store) == set()  # all by itself, it cannot be known
    assert found(store, early, late) == {("anchor", None, None)}


@on_sqlite
def test_a_chain_that_was_tampered_with_is_broken(store: EventStore) -> None:
    seal(store)
    one = (
        chain.c.stream_id
        == select(streams.c.id).where(streams.c.name == "book/a").scalar_subquery()
    )
    previous = bytes(32)
    record = next(store.read("book/a", after=2))
    with store.connect() as connection:
        previous = connection.execute(
            select(chain.c.hash).where(one, chain.c.version == 2)
        ).scalar_one()
    data = b'{"amount":0}'
    forged = hash_of(
        # The event's own hash can be made to fit, but not what follows from it.
        _sealable(record, data),
        previous,
    )
    alter(
        store,
        update(events).where(at(store, "book/a", 3)).values(data=data),
        update(chain).where(one, chain.c.version == 3).values(hash=forged),
    )
    assert found(store) == {("altered", "book/a", 4), ("seal", None, None)}


def _sealable(record: Any, data: bytes) -> Any:
    from eventstore.verification.chain import Sealable

    micros = round(record.recorded_at.timestamp() * 1_000_000)
    encoded = record.metadata.encoded
    return Sealable(
        record.stream,
        record.version,
        record.type,
        record.schema_version,
        micros,
        record.id.bytes,
        data,
        encoded,
    )


def test_a_deleted_stream_is_no_breach(store: EventStore) -> None:
    early = seal(store)
    store.append("book/a", Booked(amount=1))
    store.delete_stream("book/a")
    assert early is not None
    assert found(store, early) == set()
    late = seal(store)
    assert late is not None
    assert found(store, early, late) == set()
    tombstone = at(store, "book/a", 8)
    alter(store, update(events).where(tombstone).values(recorded_at=events.c.recorded_at + 1))
    assert ("altered", "book/a", 8) in found(store, late)


def test_hashes_do_not_run_together() -> None:
    """What ends one field cannot be taken for the beginning of the next."""
    from eventstore.verification.chain import Sealable

    def of(stream: str, type: str, data: bytes, metadata: bytes | None) -> bytes:
        return hash_of(Sealable(stream, 1, type, 1, 0, bytes(16), data, metadata), bytes(32))

    made = [
        of("a", "bc", b"", None),
        of("ab", "c", b"", None),
        of("a", "bc", b"", b""),
        of("a", "bc", b"x", b""),
        of("a", "bc", b"", b"x"),
    ]
    assert len(set(made)) == len(made)
    assert seal_of(1, made[0], made[1]) != seal_of(1, made[1], made[0])


@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
def test_many_may_seal_while_others_write(database_url: str) -> None:
    with EventStore(database_url, lock_timeout=60) as store:
        stop = threading.Event()
        anchors: list[Anchor] = []

        def write(name: str) -> None:
            while not stop.is_set():
                store.append(f"book/{name}", [Booked(amount=1), Booked(amount=2)])

        def keep_sealing() -> None:
            while not stop.is_set():
                anchor = seal(store)
                if anchor is not None:
                    anchors.append(anchor)

        threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
        threads += [threading.Thread(target=keep_sealing) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            while len(anchors) < 20:
                threading.Event().wait(0.002)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        seal(store)
        assert found(store, *anchors) == set()
        assert store.head() > 20


@pytest.mark.parametrize("text", ["", "1", "x:" + "0" * 64, "1:" + "0" * 63, "0:" + "0" * 64])
def test_text_that_is_no_anchor_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        Anchor.parse(text)


def test_the_command_seals_and_verifies(
    sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with EventStore(sqlite_url) as store:
        store.append("book/a", [Booked(amount=1), Booked(amount=2)])
    assert main(["seal", "--url", sqlite_url]) == 0
    anchor = capsys.readouterr().out.strip()
    assert anchor.startswith("2:")
    assert main(["verify", sqlite_url, "--anchor", anchor]) == 0
    with EventStore(sqlite_url) as store:
        alter(store, update(events).where(events.c.version == 1).values(data=b'{"amount":3}'))
    assert main(["verify", sqlite_url, "--anchor", anchor]) == 1
    assert main(["verify", sqlite_url, "--anchor", "nonsense"]) == 2


def test_the_command_goes_on_sealing_and_prints_each_new_anchor_once(
    sqlite_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    with EventStore(sqlite_url) as store:
        store.append("book/a", Booked(amount=1))

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 2:  # there was nothing new before
                store.append("book/a", Booked(amount=2))
            if len(pauses) == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(commands.time, "sleep", sleep)
        assert main(["seal", "--url", sqlite_url, "--every", "60"]) == 130
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["1", "2"]
    assert pauses == [60, 60, 60]
