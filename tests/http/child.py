"""`eventstore serve` as a process that tests can look into, and speak to in raw bytes."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

#: Seconds after which something hangs.
PATIENCE = 60.0


class Child:
    """A running server."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._out, self._log = folder / "out", folder / "err"
        with self._out.open("w") as out, self._log.open("w") as log:
            command = [sys.executable, "-m", "eventstore", "serve", *arguments, "--port", "0"]
            self.process = subprocess.Popen(command, stdout=out, stderr=log)
        self.url = self._wait_for_url()
        self.port = int(self.url.rpartition(":")[2])

    def _wait_for_url(self) -> str:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            found = re.search(r"serving at (\S+)\n", self._out.read_text())
            if found:
                return found[1]
            time.sleep(0.02)
        self.process.kill()
        self.process.wait()
        raise RuntimeError(f"the server did not start: {self.log}")

    @property
    def log(self) -> str:
        """What it has said on stderr."""
        return self._log.read_text()

    @property
    def rss(self) -> int:
        """Bytes of memory that it holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def stop(self, signal: int = signal.SIGTERM) -> int:
        """Ask it to stop; its exit status."""
        self.process.send_signal(signal)
        return self.process.wait(PATIENCE)

    def connect(self) -> socket.socket:
        """A connection to it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)


@contextlib.contextmanager
def child(folder: Path, *arguments: str) -> Iterator[Child]:
    """Run a server with these arguments; the end of the block ends it."""
    server = Child(folder, *arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            try:
                server.stop()
            finally:
                server.process.kill()
                server.process.wait()
        sys.stdout.write(server.log[-4000:])  # pytest shows it if the test fails
