"""Hostile input in Python: whatever a caller hands in is kept to the letter, or refused."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, String, Table, func, inspect, select

from eventstore import (
    Aggregate,
    Cut,
    Event,
    EventHandler,
    EventStore,
    EventTooLargeError,
    IdempotencyKeyReusedError,
    InvalidArgumentError,
    InvalidEventError,
    InvalidNameError,
    RecordedEvent,
    TableProjection,
    Write,
    context,
    on,
)
from eventstore.log.tables import metadata as own_tables
from eventstore.names import MAX_STREAM_NAME
from eventstore.verification import verify

#: What has broken others: quotes, comments, placeholders of every style, wildcards, markup, paths.
NASTY = (
    "'; DROP TABLE eventstore_events; --",
    '" OR ""="',
    "' OR 1=1 /*",
    "\\'; SELECT pg_sleep(9); --",
    "%(stream)s",
    "%s%s%n",
    ":name",
    "?",
    "$1",
    "{id}",
    "%",
    "_",
    "a%",
    "../../etc/passwd",
    "[bold]x[/bold]",
    "\u202eright to left",
    "e\u0301",
    "\u00e9",
    "\U0001f41a" * 400,
    "eventstore_events",
    "$deleted",
    "null",
    "E'\\000'",
)
#: What no stream may be called.
IMPOSSIBLE = (
    "",
    "\x00",
    "a\x00b",
    "a\nb",
    "\x1b[2J",
    "\ud800",
    "x" * (MAX_STREAM_NAME + 1),
    "\u2028",
)


class Said(Event, name="hostile-said"):
    text: str


class Held(Event, name="hostile-'; DROP TABLE eventstore_types; --%s:x\""):
    value: dict[str, Any]


class Listener(EventHandler, name="hostile-'listener\"%s"):
    @on(Said)
    def _said(self, event: Said) -> None:
        raise ValueError(event.text)


class Talk(Aggregate, stream="hostile-talk/{id}"):
    said: list[str] = []  # noqa: RUF012 (each instance has its own copy)

    @on(Said)
    def _said(self, event: Said) -> None:
        self.said.append(event.text)


#: Of a table of the application, whose names and values are as bad.
EVIL = 'hostile "rows" %s; --'


class Rows(TableProjection, name="hostile-rows"):
    rows = Table(
        EVIL,
        TableProjection.metadata,
        Column("st'ream %(x)s", String, key="stream", primary_key=True),
        Column('co"unt', Integer, key="count", nullable=False),
    )

    @on(Said)
    def _said(self, event: Said, record: RecordedEvent) -> None:
        found = self.get(self.rows, record.stream)
        self.put(self.rows, stream=record.stream, count=1 + (found["count"] if found else 0))


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest) -> Iterator[EventStore]:
    url = request.getfixturevalue(f"{request.param}_url")
    with EventStore(url, max_event_bytes=50_000) as store:
        before = tables(store)
        yield store
        assert tables(store) >= before
        assert [finding for finding in verify(store) if finding.is_error] == []


def tables(store: EventStore) -> set[str]:
    with store.connect() as connection:
        return set(inspect(connection).get_table_names())


def relaxed(examples: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


names = st.one_of(
    st.sampled_from(NASTY + IMPOSSIBLE),
    st.text(max_size=20),
    st.text(st.characters(), max_size=5).map(lambda text: f"hostile/{text}"),
    st.sampled_from(NASTY).map(lambda text: f"{text}/{text}"),
)
#: As JSON has them.
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.text(max_size=8))
    | st.sampled_from(NASTY)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@relaxed(80)
@given(name=names, text=st.text(max_size=30) | st.sampled_from(NASTY), key=names)
def test_a_name_a_text_and_a_key_are_kept_to_the_letter_or_refused(
    store: EventStore, name: str, text: str, key: str
) -> None:
    count = store.version("hostile/other")
    try:
        event = Said(text=text)
        before = store.version(name)
        receipt = store.append(name, event, expected=before, idempotency_key=key)
    except (InvalidNameError, InvalidEventError):
        assert any(map(refused, (name, key))) or not encodable(text)
        return
    except IdempotencyKeyReusedError:  # another stream has had it
        return
    if receipt.version <= before:  # it has had it itself
        return
    (record,) = store.read(name, after=before)
    assert (record.stream, record.event, record.version) == (name, event, before + 1)
    category = name.partition("/")[0]
    assert [info.name for info in store.streams(category) if info.name == name] == [name]
    everything = [
        r.stream for r in store.read_all(after=receipt.position - 1, categories=[category])
    ]
    assert everything == [name]
    assert store.append(name, event, idempotency_key=key) == receipt
    assert store.version("hostile/other") == count


def refused(name: str) -> bool:
    return (
        not 0 < len(name) <= MAX_STREAM_NAME
        or not encodable(name)
        or any(not c.isprintable() for c in name)
    )


def encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@relaxed(30)
@given(value=st.dictionaries(st.text(max_size=8), values, max_size=4))
def test_payloads_and_metadata_come_back_as_they_were(
    store: EventStore, value: dict[str, Any]
) -> None:
    with context(**{"a b'\"%s": value, **{f"x{k}": v for k, v in value.items()}}) as carried:
        try:
            receipt = store.append("hostile/held", Held(value=value))
        except InvalidEventError:
            assert not encodable(str(value)) or too_large(value)
            return
    (record,) = store.read("hostile/held", after=receipt.version - 1)
    assert record.event == Held(value=value)
    assert dict(record.metadata) == dict(carried)
    assert json.loads(record.data) == {"value": value}
    (same,) = store.read_all(after=receipt.position - 1, types=[Held.__event_name__])
    assert same.event == record.event


def too_large(value: object) -> bool:
    """Whether there is an integer that is not one of 64 bits."""
    if isinstance(value, dict):
        return any(map(too_large, value.values()))
    if isinstance(value, list):
        return any(map(too_large, value))
    return isinstance(value, int) and not -(2**63) <= value < 2**64


def test_metadata_that_no_text_can_hold_is_refused() -> None:
    with pytest.raises(InvalidEventError), context(name="\ud800"):
        pass
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    with pytest.raises(InvalidEventError), context(cyclic=cyclic):
        pass


@pytest.mark.parametrize("size", [49_989, 49_990])
def test_the_limit_of_an_events_size_is_exact(store: EventStore, size: int) -> None:
    event = Said(text="x" * size)  # and {"text":""} around it
    if size + 11 <= 50_000:
        assert store.append("hostile/large", event).version == 1
    else:
        with pytest.raises(EventTooLargeError) as caught:
            store.append("hostile/large", event)
        assert (caught.value.size, caught.value.limit) == (size + 11, 50_000)
    with pytest.raises(EventTooLargeError), context(note="x" * 50_000):
        store.append("hostile/large", Said(text=""))


def test_a_million_brackets_are_no_event(store: EventStore) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidEventError):
        store.append("hostile/deep", Held(value={"deep": deep}))
    while deep:  # taken apart by hand, since Python does so by recursion too
        deep = deep[0]


# --- names and numbers in all other places -------------------------------------------------------


def test_text_in_filters_and_requests_is_only_compared(store: EventStore) -> None:
    store.append("hostile/1", [Said(text=text) for text in NASTY])
    for text in NASTY:
        assert list(store.read("hostile/1", types=[text])) == []
        assert list(store.read_all(types=[text])) == []
        assert list(store.read_all(categories=[text])) == []
        assert list(store.streams(text)) == []
        assert store.parked(text) == []
        assert store.parked(Listener, text) == []
        assert store.retry(text) == 0
        assert store.discard(text, 1) is False
        assert not store.exists(Talk, text)
    for text in IMPOSSIBLE:
        for call in (
            lambda text: list(store.read_all(types=[text])),
            lambda text: store.parked(text),
            lambda text: store.retry(Listener, text),
            lambda text: store.exists(Talk, text),
            lambda text: store.delete_stream(text),
            lambda text: store.append("hostile/1", Said(text=""), idempotency_key=text),
        ):
            with pytest.raises(InvalidNameError):
                call(text)


NUMBERS = (2**63, -(2**63), 2**64, 10**30, -(10**30), True, 1.0, "1", None, float("nan"))


def test_numbers_that_are_none_are_refused_as_arguments(store: EventStore) -> None:
    store.append("hostile-talk/1", [Said(text="a"), Said(text="b")])
    calls: dict[str, Callable[[Any], object]] = {
        "after": lambda n: list(store.read("hostile-talk/1", after=n)),
        "all after": lambda n: list(store.read_all(after=n)),
        "subscribe": lambda n: store.subscribe(after=f"{n}x" if isinstance(n, str) else n),
        "expected": lambda n: store.append("hostile-talk/1", Said(text="c"), expected=n),
        "discard": lambda n: store.discard(Listener, n),
        "cut": lambda n: list(store.read_all(at=Cut(n, None))),
    }
    optional: dict[str, Callable[[Any], object]] = {
        "until": lambda n: list(store.read("hostile-talk/1", until=n)),
        "all until": lambda n: list(store.read_all(until=n)),
        "limit": lambda n: list(store.read("hostile-talk/1", limit=n)),
        "version": lambda n: store.load(Talk, "1", version=n),
        "history": lambda n: list(store.history(Talk, "1", until=n)),
        "wait_for": lambda n: store.wait_for(Listener, n, timeout=0),
    }
    for name, call in (calls | optional).items():
        for number in NUMBERS:
            if number is None and name in optional:
                continue
            with pytest.raises(InvalidArgumentError):
                call(number)
    assert store.version("hostile-talk/1") == 2
    assert len(list(store.read("hostile-talk/1", after=-5, until=2**63 - 1, limit=2**63 - 1))) == 2


def test_what_a_handler_says_of_hostile_text_is_kept_in_one_line(store: EventStore) -> None:
    store.append("hostile/1", Said(text="'; DROP\nTABLE x; --\x00\ud7ff\x1b[2J"))
    store.catch_up(Listener)
    (row,) = store.parked(Listener)
    assert row.error is not None
    assert "\n" not in row.error
    assert "\x00" not in row.error


def test_tables_of_hostile_names_are_kept_and_rebuilt(store: EventStore) -> None:
    for text in NASTY:
        if not refused(text):
            store.append(text, Said(text=text))
    store.append_all([Write(f"{text}/2", Said(text="")) for text in NASTY[:6]])
    store.catch_up(Rows)
    store.rebuild(Rows, verify=True)
    assert list(verify(store, projections=[Rows])) == []
    with store.connect() as connection:
        rows = connection.scalar(select(func.count()).select_from(Rows.rows))
    assert rows == len(list(store.streams()))
    assert EVIL in tables(store)


# --- what is not there at all --------------------------------------------------------------------

PACKAGE = Path(__file__).parents[2] / "eventstore"
SOURCES = sorted(PACKAGE.rglob("*.py"))
#: What would run what it reads.
BANNED = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "yaml", "jsonpickle"}


def test_nothing_in_the_library_runs_what_it_reads() -> None:
    assert len(SOURCES) > 100
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported = {(node.module or "").partition(".")[0]}
            else:
                called = (
                    node.func.id
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
                    else ""
                )
                assert called not in ("eval", "exec", "compile", "__import__"), (
                    source,
                    node.lineno,
                )
                continue
            assert not imported & BANNED, (source, node.lineno)


def test_the_databases_columns_are_bytes_text_and_numbers() -> None:
    """No type that SQLAlchemy would unpickle."""
    kinds = {
        type(column.type).__name__
        for table in own_tables.tables.values()
        for column in table.columns
    }
    assert kinds <= {"BigInteger", "Integer", "Text", "LargeBinary", "Boolean", "Double"}
    assert isinstance(own_tables, MetaData)


def test_what_is_stored_needs_no_class_to_be_read(sqlite_url: str) -> None:
    """Another program, without the classes, reads the log and runs nothing of it."""
    with EventStore(sqlite_url) as store:
        store.append("hostile/1", Said(text="x"))
    program = (
        "import sys; from eventstore import EventStore\n"
        "with EventStore(sys.argv[1]) as store:\n"
        "    print([(r.type, r.data) for r in store.read_all()])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, sqlite_url], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[('hostile-said', b'{\"text\":\"x\"}')]"
