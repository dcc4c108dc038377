"""PostgreSQL: a server that dies, and a proxy before it that cuts."""

from __future__ import annotations

import contextlib
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any, Final

import psycopg
from campaign import Campaign
from databases import buried
from operations import History
from processes import PATIENCE, Process, started
from proxy import Proxy, faults_of, name_of_socket
from server import Server
from sqlalchemy.exc import DBAPIError

from eventstore import schema
from eventstore.errors import LogError

#: Bytes of a segment of the server's write-ahead log. With less room it cannot live.
_SEGMENT: Final = 1_048_576

# Every other second, three seconds back.
_STEPPING: Final = """
    CREATE FUNCTION faults.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$
        SELECT pg_catalog.clock_timestamp() - make_interval(
            secs => 3 * (extract(epoch FROM pg_catalog.clock_timestamp())::bigint % 2))
    $$"""


class PostgresCampaign(Campaign):
    """A database of its own, on a server that it may kill."""

    def __init__(self, server: Server, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._server = server
        self._sockets = Path(tempfile.mkdtemp(prefix="proxy", dir=server.folder))
        self._database = f"faults_{self._sockets.name}".lower()
        self._proxy: Process | None = None
        self._backup: Popen[bytes] | None = None
        self._full = False
        #: Whether it is about to die.
        self._doomed = False
        with server.connect() as connection:
            connection.execute(f'CREATE DATABASE "{self._database}"')
        schema.migrate(self.url())
        if self.chance.random() < 0.5:
            self._step_clock()

    def url(self, *, proxied: bool = False) -> str:
        return self._server.url(self._database, self._sockets if proxied else None)

    def _step_clock(self) -> None:
        with self._server.connect(self._database) as connection:
            connection.execute("CREATE SCHEMA faults")
            connection.execute(_STEPPING)
            path = "public, faults, pg_catalog"
            connection.execute(f'ALTER DATABASE "{self._database}" SET search_path = {path}')
        self.note("clock that steps back (the server's)")

    def prepare(self) -> None:
        with self._server.connect(self._database) as connection:
            connection.execute("CHECKPOINT")  # what was there before the round is not lost in it
        done = self.folder / "proxied"
        done.unlink(missing_ok=True)
        proxy = Proxy(self._sockets, self._server.socket, done, str(self.chance.random()))
        self._proxy = started(lambda _stop: proxy.run(), self.folder / "proxy.errors")
        while not name_of_socket(self._sockets).exists():
            time.sleep(0.001)

    # --- faults ----------------------------------------------------------------------------------

    def strike(self) -> None:
        if self._full:
            self._make_room()
            return
        faults: list[Callable[[], None]] = [self._end_sessions]
        if not self._doomed and self.crashed is None:
            faults += [self._shut_down, self._kill_server, self._kill_session, self._fill]
        self.chance.choice(faults)()

    def _end_sessions(self) -> None:
        with contextlib.suppress(psycopg.OperationalError), self._server.connect() as connection:
            ended = connection.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE datname = %s ORDER BY random() LIMIT 2""",
                (self._database,),
            ).fetchall()
            self.note("session ended by the server", len(ended))

    def _shut_down(self) -> None:
        self._server.kill(signal.SIGQUIT)
        self.note("immediate shutdown of the server")
        self._revive()

    def _kill_server(self) -> None:
        self._server.kill(signal.SIGKILL)
        self.note("kill of the server")
        self._revive()

    def _kill_session(self) -> None:
        sessions = self._server.sessions()
        if sessions:
            self._doomed = True
            self._server.kill_session(self.chance.choice(sessions))
            self.note("kill of a session's process")

    def _fill(self) -> None:
        for_log = self.chance.random() < 0.5
        if self._server.fill(_SEGMENT // 4 if for_log else _SEGMENT):
            self._full = True
            self.note(f"full disk (of the {'write-ahead log' if for_log else 'tables'})")

    def _make_room(self) -> None:
        self._full = False
        if not self._server.is_dead:
            self._server.fill(resource.RLIM_INFINITY)

    def look(self) -> None:
        if self._server.is_dead:
            self._server.bury()
            self._revive()

    def _revive(self) -> None:
        """All is dead: begin again."""
        self._doomed = self._full = False
        if self.durability == "relaxed":
            self.crashed = time.monotonic_ns()
        self._server.start()

    # --- afterwards ------------------------------------------------------------------------------

    def settle(self) -> None:
        self._make_room()
        if self._proxy is not None:
            self._proxy.kill()
            self._proxy = None
            for fault, count in faults_of(self.folder / "proxied").items():
                self.note(fault, count)
        if self._backup is not None and self._backup.wait(PATIENCE):
            self.backed_up = None  # it was disturbed
        self._backup = None
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.look()
                with self.store() as store:
                    buried(store)
            except (LogError, DBAPIError):
                assert time.monotonic() < deadline  # it is about to die, then
                time.sleep(0.01)
            else:
                if not self._doomed:
                    return

    def back_up(self) -> None:
        if not self._doomed:
            self.backed_up = time.monotonic_ns()
            self._backup = self._server.begin_backup()

    def afterwards(self, history: History) -> None:
        if self.backed_up is not None and self.crashed is None:
            self._server.restore()
            self.compare_restored(history)

    def close(self) -> None:
        super().close()
        if self._proxy is not None:
            self._proxy.kill()
        if self._backup is not None:
            self._backup.kill()
            self._backup.wait()
        self.look()
        with self._server.connect() as connection:
            connection.execute(f'DROP DATABASE "{self._database}" WITH (FORCE)')
        shutil.rmtree(self._sockets, ignore_errors=True)
