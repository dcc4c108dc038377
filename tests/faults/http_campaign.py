"""`eventstore serve` dies, stalls and comes back; connections to it are cut; clients go on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import httpx
import proxy
import psycopg
import uvicorn  # noqa: F401  so that each of the forked has it already
from campaign import Broken, Counts
from clients import Stop
from http_checking import Found, check, payload
from http_clients import Spot, Way, read, write
from http_wire import KINDS, media_of, messages_in, reported
from processes import PATIENCE, Process, started
from server import Server

import eventstore.http.serving  # noqa: F401
from eventstore import EventStore, schema
from eventstore.cli import main

#: Where servers listen: below the ports that the system gives to those who ask for any.
_PORTS: Final = range(20_000, 32_000)
SERVERS, STREAMS = 2, 6
#: How likely a proxy is to delay and to cut a piece of traffic: more than before a database.
_DELAY, _CUT = 0.02, 0.01
#: Below this, in bytes, lies what a server writes beside the database's log.
_LEAST: Final = 100_000


class Database(ABC):
    """What the servers serve, and what may befall it."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where it is."""

    @abstractmethod
    def faults(self) -> dict[str, Callable[[], None]]:
        """What may be done to it while all work."""

    def room(self) -> int | None:
        """How large a file may be, in bytes, so that servers soon have no room; None: any size."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Take it away."""


class SqliteFile(Database):
    """A file, which several servers share."""

    def __init__(self, folder: Path) -> None:
        self._url = f"sqlite:///{folder / 'events.db'}"
        self._log = folder / "events.db-wal"

    @property
    def url(self) -> str:
        return self._url

    def faults(self) -> dict[str, Callable[[], None]]:
        return {}

    def room(self) -> int:
        size = self._log.stat().st_size if self._log.exists() else 0
        return max(size, _LEAST)

    def close(self) -> None:
        """It goes with its folder."""


class PostgresDatabase(Database):
    """A database on a server that may be killed."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._name = f"http_{os.urandom(6).hex()}"
        with server.connect() as connection:
            connection.execute(f'CREATE DATABASE "{self._name}"')

    @property
    def url(self) -> str:
        return self._server.url(self._name)

    def faults(self) -> dict[str, Callable[[], None]]:
        return {
            "session ended by the database": self._end_sessions,
            "kill of the database": self._kill,
        }

    def _end_sessions(self) -> None:
        with self._server.connect() as connection:
            connection.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE datname = %s ORDER BY random() LIMIT 2""",
                (self._name,),
            )

    def _kill(self) -> None:
        self._server.kill(signal.SIGKILL)
        self._server.start()

    def close(self) -> None:
        if self._server.is_dead:
            self._server.start()
        with contextlib.suppress(psycopg.Error), self._server.connect() as connection:
            connection.execute(f'DROP DATABASE "{self._name}" WITH (FORCE)')


class _Place(NamedTuple):
    """Where a server is found, by a port and by the socket of a proxy."""

    port: int
    folder: Path


class HttpCampaign:
    """Rounds with two servers of one database, each with streams of its own."""

    def __init__(self, database: Database, folder: Path, seed: str, counts: Counts) -> None:
        self._database = database
        self._folder = folder
        self._seed = seed
        self._chance = random.Random(seed)
        self._counts = counts
        self._number = 0
        # Paths of sockets have to be short.
        self._sockets = Path(tempfile.mkdtemp(prefix="eventstore-http-"))
        self._places: list[_Place] = []
        for number in range(SERVERS):
            place = _Place(self._free_port(), self._sockets / str(number))
            place.folder.mkdir()
            self._places.append(place)
        self._servers: dict[_Place, Process] = {}
        #: Servers that were asked to end, and the times at which those that are dead begin again.
        self._ending: dict[_Place, Process] = {}
        self._due: dict[_Place, float] = {}
        self._others: list[Process] = []

    def begin(self) -> None:
        schema.migrate(self._database.url)

    def round(self, seconds: float) -> None:
        """Some seconds of work and faults. Raises Broken."""
        self._number += 1
        try:
            self._round(seconds)
        except Exception as error:
            error.add_note(f"seed {self._seed}, round {self._number}, in {self._folder}")
            raise
        for file in self._folder.glob(f"{self._number}-*"):
            file.unlink()
        self._counts.rounds["rounds"] += 1

    def finish(self) -> None:
        """Nothing is left to be done."""

    def close(self) -> None:
        for process in (*self._servers.values(), *self._ending.values(), *self._others):
            process.kill()
        self._database.close()
        shutil.rmtree(self._sockets)

    # --- a round ---------------------------------------------------------------------------------

    def _round(self, seconds: float) -> None:
        streams = [
            f"http-{self._number}/{KINDS[number % len(KINDS)]}-{number}"
            for number in range(STREAMS)
        ]
        for place in self._places:
            self._start(place)
        self._settle()
        done = self._folder / f"{self._number}-proxied"
        self._others = [self._proxy(place, done) for place in self._places]
        spots = [self._spot(streams, word) for word in ("writer", "writer", "reader", "reader")]
        writers = [self._client(spot, write) for spot in spots[:2]]
        readers = [self._client(spot, read) for spot in spots[2:]]
        self._others += writers + readers
        self._work(time.monotonic() + seconds)
        self._end(writers)
        self._settle()
        ends = {stream: self._end_of(stream) for stream in streams}
        new = self._folder / f"{self._number}-new"
        new.write_text(json.dumps(ends))
        new.rename(spots[0].ends)
        self._end(readers)
        for proxied in self._others[:SERVERS]:
            proxied.kill()
        self._others = []
        for fault, count in proxy.faults_of(done).items():
            self._note(f"{fault} (HTTP)", count)
        self._compare(streams, [spot.report for spot in spots])
        self._stop_servers()

    def _spot(self, streams: Sequence[str], word: str) -> Spot:
        name = f"{self._number}-{word}-{self._chance.randrange(10**6)}"
        ways = []
        for place in self._places:
            ways += [Way(place.port), Way(place.port, proxy.name_of_socket(place.folder))]
        ends = self._folder / f"{self._number}-ends"
        return Spot(ways, streams, self._folder / f"{name}.report", ends, f"{self._seed} {name}")

    def _client(self, spot: Spot, work: Callable[[Spot, Stop], None]) -> Process:
        return started(lambda stop: work(spot, stop), spot.report.with_suffix(".errors"))

    def _proxy(self, place: _Place, done: Path) -> Process:
        seed = str(self._chance.random())

        def run(_: Stop) -> None:
            proxy.DELAY, proxy.CUT = _DELAY, _CUT
            proxy.Proxy(place.folder, ("127.0.0.1", place.port), done, seed).run()

        return started(run, self._folder / f"{self._number}-proxy.errors")

    def _work(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, self._chance.uniform(0.05, 0.8)))
            self._look()
            self._strike()
        self._settle()
        self._kill(self._chance.choice(self._places))  # once in each round, at the least

    def _strike(self) -> None:
        if self._chance.random() < 0.7:
            self._settle()  # or it is killed before it has begun
        faults = self._database.faults()
        if faults and self._chance.random() < 0.3:
            what = self._chance.choice(list(faults))
            faults[what]()
            self._note(what)
        elif self._servers:
            place = self._chance.choice(list(self._servers))
            acts = [self._kill, self._kill, self._stall, self._ask_to_end]
            if self._database.room() is not None:
                acts.append(self._fill)
            self._chance.choice(acts)(place)

    # --- servers ---------------------------------------------------------------------------------

    def _free_port(self) -> int:
        while True:
            port = self._chance.choice(_PORTS)
            if port not in [place.port for place in self._places]:
                with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
                    return port

    def _start(self, place: _Place) -> None:
        options = ["serve", self._database.url, "--port", str(place.port), "--no-access-log"]

        def run(_: Stop) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until it has a handler of its own
            os.dup2(2, 1)
            if main([*options, "--shutdown-timeout", "3"]):
                raise RuntimeError("the server could not be started")

        self._servers[place] = started(run, self._errors)

    @property
    def _errors(self) -> Path:
        return self._folder / f"{self._number}-server.errors"

    def _kill(self, place: _Place) -> None:
        self._servers.pop(place).kill()
        self._note("kill of a server")
        self._due[place] = time.monotonic() + self._chance.choice((0, self._chance.random() / 2))

    def _ask_to_end(self, place: _Place) -> None:
        process = self._servers.pop(place)
        process.signal(signal.SIGTERM)
        self._note("server asked to end")
        self._ending[place] = process

    def _stall(self, place: _Place) -> None:
        self._servers[place].signal(signal.SIGSTOP)
        time.sleep(self._chance.uniform(0.01, 0.3))
        self._servers[place].signal(signal.SIGCONT)
        self._note("stall of a server")

    def _fill(self, place: _Place) -> None:
        room = self._database.room()
        assert room is not None
        # Some way into the database's log, so that it is a transaction's middle.
        self._servers[place].limit(room + self._chance.randint(0, 20_000))
        time.sleep(self._chance.uniform(0.1, 0.5))
        self._servers[place].limit(resource.RLIM_INFINITY)
        self._note("full disk of a server")

    def _look(self) -> None:
        for place, process in list(self._ending.items()):
            if process.has_ended:
                del self._ending[place]
                self._ended(process)
                self._due[place] = 0
        for place, due in list(self._due.items()):
            if time.monotonic() >= due:
                del self._due[place]
                self._start(place)
        for place, process in list(self._servers.items()):
            if process.has_ended:
                # It does not begin without its database: whoever watches it begins it again.
                if not self._database.faults() or "a retry is safe" not in process.errors:
                    raise Broken(f"a server has ended: {process.errors}")
                self._start(place)
                self._note("server that began while the database was away")

    def _ended(self, process: Process) -> None:
        # One that has just begun may not listen yet, and ends by the signal itself.
        if process.wait() not in (0, -signal.SIGTERM):
            raise Broken(f"a server did not end as it should: {process.errors}")

    def _settle(self) -> None:
        """Let all be there, and answer."""
        deadline = time.monotonic() + PATIENCE
        for place in self._places:
            while True:
                self._look()
                with contextlib.suppress(httpx.TransportError):
                    # One that is about to end may still say that it is well.
                    is_there = place in self._servers
                    if is_there and self._here("GET", place, "/readyz").status_code == 200:
                        break
                if time.monotonic() > deadline:
                    raise Broken("a server does not come back")
                time.sleep(0.02)

    def _stop_servers(self) -> None:
        for process in self._servers.values():
            process.signal(signal.SIGTERM)
        for process in self._servers.values():
            self._ended(process)
        self._servers = {}

    def _end(self, clients: Sequence[Process]) -> None:
        """Have clients end what they have begun, while servers come back."""
        for process in clients:
            process.signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while not all(process.has_ended for process in clients):
            self._look()
            if time.monotonic() > deadline:
                raise Broken("clients do not end")
            time.sleep(0.01)
        for process in clients:
            if process.wait():
                raise Broken(f"a client has failed: {process.errors}")

    def _note(self, fault: str, count: int = 1) -> None:
        self._counts.faults[fault] += count

    # --- comparing -------------------------------------------------------------------------------

    def _end_of(self, stream: str) -> tuple[str, bool]:
        headers = self._ask("HEAD", stream).headers
        return headers["stream-next-offset"], "stream-closed" in headers

    def _ask(self, method: str, target: str) -> httpx.Response:
        answer = self._here(method, self._chance.choice(self._places), f"/v1/stream/{target}")
        if answer.status_code != 200:
            raise Broken(f"{method} {target} was answered {answer.status_code}: {answer.text}")
        return answer

    @staticmethod
    def _here(method: str, place: _Place, target: str) -> httpx.Response:
        url = f"http://127.0.0.1:{place.port}{target}"
        return httpx.request(method, url, timeout=PATIENCE, verify=False)

    def _read(self, stream: str) -> tuple[bytes, bool]:
        """All of a stream, without the brackets of JSON, and whether it is closed."""
        is_text = media_of(stream) == "text/plain"
        pieces, offset = [], "-1"
        while True:
            answer = self._ask("GET", f"{stream}?offset={offset}")
            pieces.append(answer.content if is_text else answer.content[1:-1])
            offset = answer.headers["stream-next-offset"]
            if "stream-up-to-date" in answer.headers:
                break
        body = (b"" if is_text else b",").join(pieces)
        return body, "stream-closed" in answer.headers

    def _compare(self, streams: Sequence[str], reports: Sequence[Path]) -> None:
        report = reported(reports)
        found = {}
        with EventStore(self._database.url, notify=False) as store:
            for stream in [*streams, *(fork.stream for fork in report.forks)]:
                found[stream] = self._found(store, stream)
        wrong = list(check(report, found))
        if wrong:
            raise Broken(f"{len(wrong)} answers were wrong: {wrong[:5]}")
        done = self._counts.operations
        for batch in report.batches:
            kind = "plain" if batch.producer is None else "of a producer"
            done[f"append {kind}: {batch.outcome}"] += 1
            if batch.producer is not None:
                done["append of a producer: repeated"] += batch.sent - 1
        for what, count in report.counts.items():
            done[what] += count
        self._counts.lost["acknowledged over HTTP"] += 0  # or it would have been Broken

    def _found(self, store: EventStore, stream: str) -> Found:
        """The stream as Python and HTTP have it, which is the same."""
        parts = list(payload(store.read(stream)))
        is_text = media_of(stream) == "text/plain"
        in_python = (b"" if is_text else b",").join(data for _, data in parts)
        by_http, closed = self._read(stream)
        if by_http != in_python:
            raise Broken(f"{stream}: Python has {in_python[:500]!r}, HTTP {by_http[:500]!r}")
        if [version for version, _ in parts] != list(range(1, len(parts) + 1)):
            raise Broken(f"{stream} has holes: {[version for version, _ in parts]}")
        messages = []
        for version, data in parts:
            whole = data if is_text else b"[" + data + b"]"
            messages += [(version, id) for id in messages_in(stream, whole)]
        return Found(messages, closed)
