"""Passwords in URLs: in no text of an error, whatever caused it, no log record and no repr."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import URL, make_url

from eventstore import Event, EventStore, EventStoreError, InvalidArgumentError, schema
from eventstore.aio import AsyncEventStore
from eventstore.cli import main
from eventstore.cli.workers import Workers
from eventstore.urls import parse
from eventstore.verification import verify

SECRET = "hunter2"
ROT = "ter2"  # what is left of it where it is cut in the middle

#: Nobody listens there, or it is no database of ours at all.
UNREACHABLE = (
    f"postgresql://ann:{SECRET}@127.0.0.1:1/db",
    f"postgres://ann:{SECRET}@127.0.0.1:1/db",
    f"postgresql+psycopg://ann:{SECRET}@127.0.0.1:1/db",
    f"postgresql://ann@127.0.0.1:1/db?password={SECRET}",
    f"postgresql://127.0.0.1:1/db?user=ann&password={SECRET}&sslpassword={SECRET}",
    f"postgresql://ann:{SECRET}@/db?host=/nowhere/at/all&port=1",
    f"postgresql://ann:{SECRET}@127.0.0.1:1,127.0.0.1:2/db",
    f"postgresql://ann:{SECRET}@127.0.0.1:1/db?no_such_option=1",
    f"postgresql://ann:{SECRET}@127.0.0.1:1/db?sslmode=nonsense",
    f"postgresql://ann:{SECRET}@127.0.0.1:1/db?connect_timeout=x",
    f"postgresql://ann:hun@{ROT}@127.0.0.1:1/db",
    f"postgresql://ann:hun@t/{ROT}@127.0.0.1:1/db",
    f"postgresql://ann:hun/{ROT}?#@127.0.0.1:1/db",
    f"postgresql://ann:{SECRET}:x@127.0.0.1:port/db",
    f"postgresql://ann:{SECRET}@127.0.0.1:99999999/db",
    f"mysql://ann:{SECRET}@host/db",
    f"oracle://host/db?password={SECRET}",
    f"postgresql:/ann:{SECRET}@host/db",
    f"ann:{SECRET}@host/db",
    f"::{SECRET}::",
)


class Told(Event, name="secrets-told"):
    pass


def is_kept(text: str) -> bool:
    return SECRET not in text and ROT not in text


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """Everything that is logged in the block, by anybody, at any level."""
    told: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(logging.Formatter("%(name)s %(message)s").format(record))
            told.append(repr(record.__dict__))

    root, handler = logging.getLogger(), Keep()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield told
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


async def _awaited(url: str) -> None:
    async with AsyncEventStore(url) as store:
        await store.head()


DOORS: dict[str, Callable[[str], object]] = {
    "open": lambda url: EventStore(url).close(),
    "open and migrate": lambda url: EventStore(url, migrate=True).close(),
    "asyncio": lambda url: asyncio.run(_awaited(url)),
    "migrate": schema.migrate,
}


@pytest.mark.parametrize("url", UNREACHABLE)
def test_no_error_shows_a_password_nor_does_what_caused_it(url: str) -> None:
    for name, door in DOORS.items():
        with listening() as told:
            with pytest.raises(EventStoreError) as caught:
                door(url)
            shown = "".join(traceback.format_exception(caught.value))
            arguments = [repr(error.args) for error in _chain(caught.value)]
            arguments.append(repr(vars(caught.value)))
        # A traceback shows lines of code, so what this file itself says does not count.
        shown = shown.replace(repr(url), "")
        for text in (str(caught.value), shown, *arguments, *told):
            assert is_kept(text), (name, text)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("url", UNREACHABLE[:3] + UNREACHABLE[10:12] + UNREACHABLE[-4:-1])
def test_no_command_shows_a_password(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = [
        ["migrate", url],
        ["migrate", "--check", url],
        ["status", "--url", url],
        ["parked", "x", "--url", url],
        ["verify", url],
        ["verify", "--url", url],
        ["seal", "--url", url],
        ["serve", url],
    ]
    for command in commands:
        assert main(command) in (1, 2), command
    monkeypatch.setenv("EVENTSTORE_URL", url)
    assert main(["status", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("eventstore: ") == len(commands) + 1
    assert is_kept(captured.out + captured.err)


def test_a_part_of_a_password_is_not_taken_for_a_host() -> None:
    for url in (f"postgresql://ann:hun@{ROT}@h/db", f"postgresql://ann:hun@t/{ROT}@h/db"):
        with pytest.raises(InvalidArgumentError, match="%40"):
            parse(url)
    right = parse("postgresql://ann:hun%40ter2@h/db")
    assert (right.password, right.host) == ("hun@ter2", "h")
    assert parse("sqlite:///a@b.db").database == "a@b.db"
    named = URL.create("postgresql", "ann", host="h", database="d@b")
    assert parse(named).database == "d@b"


def test_what_is_made_of_a_url_does_not_show_it(postgres_url: str) -> None:
    """The server of the tests asks for no password, so any will do."""
    plain = make_url(postgres_url)
    for url in (
        plain.set(password=SECRET).render_as_string(hide_password=False),
        plain.update_query_dict({"password": SECRET}).render_as_string(hide_password=False),
    ):
        with listening() as told, EventStore(url) as store:
            store.append("secret/1", Told())
            subscription = store.subscribe()
            with subscription:
                next(subscription)
            list(verify(store))
            with store.connect() as connection:
                shown = [store, store.log, store.engine, store.engine.url, connection, subscription]
                shown += [store.engine.pool, connection.connection.dbapi_connection, store.status()]
                shown += [*store.read_all(), Workers(1, [], url, 1.0)]
                texts = [f"{each!r} {each}" for each in shown]
            with store.connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT")
                with pytest.raises(EventStoreError) as caught:
                    store.append("secret/1", Told(), connection=connection)
            texts += ["".join(traceback.format_exception(caught.value)), repr(vars(caught.value))]
        assert all(map(is_kept, [*texts, *told]))


def test_the_processes_of_run_keep_it_out_of_their_arguments() -> None:
    """What `ps` shows to every user of the machine."""
    program = (
        "import subprocess, sys, time\n"
        "from eventstore.cli.workers import Workers\n"
        "class Spied(Workers):\n"
        "    def _until_next(self):\n"
        "        ran = subprocess.run(['ps', '-eo', 'args'], capture_output=True, text=True)\n"
        "        mine = [line for line in ran.stdout.splitlines() if 'spawn' in line]\n"
        "        print(len(mine) > 0, any('hunter2' in line for line in mine), flush=True)\n"
        "        self._stop()\n"
        "if __name__ == '__main__':\n"
        "    Spied(1, ['x:y'], sys.stdin.read(), 1.0).run()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        input=UNREACHABLE[0],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stdout.splitlines()[:1] == ["True False"], ran.stderr
    assert is_kept(ran.stderr)
