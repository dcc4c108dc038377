"""Clients at work at the same time are told one story: see `checking`.

`EVENTSTORE_HISTORY` says how many things each of them does. Longer histories, with clients and
servers that are killed, are those of `make faults`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from checking import check
from operations import Recorder, entry, recorded
from proxy import faults_of, name_of_socket
from sqlalchemy import make_url
from writing import Writer

from eventstore import EventStore
from eventstore.errors import LogUnavailableError

THINGS = int(os.environ.get("EVENTSTORE_HISTORY", "120"))
STREAMS = ["story/1", "story/2", "story/3"]


@pytest.mark.parametrize("group_commit", [False, True], ids=["alone", "in groups"])
def test_clients_at_the_same_time_are_told_one_story(
    database_url: str, tmp_path: Path, group_commit: bool
) -> None:
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(EventStore(database_url, group_commit=group_commit))]
        if database_url != "sqlite://":  # which is a database of its own for each
            stores.append(stack.enter_context(EventStore(database_url, cache=3)))
        _compared(stores, stores[0], tmp_path)


def test_and_so_are_those_whose_connections_are_cut(
    proxied_url: str, postgres_url: str, tmp_path: Path
) -> None:
    with _opened(proxied_url) as one, EventStore(postgres_url) as other:
        _compared([one, one, other], other, tmp_path)
    assert faults_of(tmp_path / "faults").total()


def _opened(url: str) -> EventStore:
    while True:
        with contextlib.suppress(LogUnavailableError):
            return EventStore(url)


def _compared(stores: list[EventStore], reader: EventStore, folder: Path) -> None:
    recorder = Recorder(folder / "history")
    names = [f"client {n}" for n in range(4)]

    def work(number: int) -> None:
        store = stores[number % len(stores)]
        left = iter(range(THINGS))
        writer = Writer(store, STREAMS, recorder, names[number], "history")
        writer.work(lambda: next(left, None) is not None)

    with ThreadPoolExecutor(len(names)) as threads:
        list(threads.map(work, range(len(names))))
    recorder.close()
    history = recorded([folder / "history"])
    assert check(history, list(map(entry, reader.read_all()))) == ([], [])
    assert history.total > THINGS * len(names) // 2
    assert sum(append.outcome == "acknowledged" for append in history.appends) > THINGS // 2


@pytest.fixture
def proxied_url(postgres_url: str, tmp_path: Path) -> Iterator[str]:
    """The same database, through a proxy that delays and cuts."""
    url = make_url(postgres_url)
    host = str(url.host or url.query.get("host") or "localhost")
    server = [host] if host.startswith("/") else [host, str(url.port or 5432)]
    with tempfile.TemporaryDirectory(prefix="proxy-") as folder:
        program = [sys.executable, str(Path(__file__).parent / "proxy.py")]
        with subprocess.Popen([*program, folder, str(tmp_path / "faults"), *server]) as process:
            while not name_of_socket(Path(folder)).exists():
                assert process.poll() is None
                time.sleep(0.01)
            through = url.set(host=None, port=None).update_query_dict({"host": folder})
            yield through.render_as_string(hide_password=False)
            process.kill()
