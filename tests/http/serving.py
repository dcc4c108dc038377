"""Servers as processes of their own, on a port that the system chooses."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

#: Seconds that a server may take to start, and to end.
PATIENCE = 60.0
_ADDRESS = re.compile(r"https?://[\w.]+:[1-9]\d*")


def eventstore_serve(url: str, *options: str) -> list[str]:
    """The command that serves the streams of the database at `url`, on any free port."""
    command = [sys.executable, "-m", "eventstore", "serve", url, "--port", "0"]
    return [*command, "--no-access-log", *options]


@contextmanager
def serving(command: Sequence[str]) -> Iterator[str]:
    """Run a server that says its address when it is ready; give the address.

    Raises RuntimeError, with what the server said, if it does not start, or does not end as it
    should when it is asked to.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as output:
            server = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            yield _address(server, log)
        finally:
            server.terminate()
            try:
                ended = server.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
                ended = -signal.SIGKILL
            sys.stdout.write(log.read_text())  # pytest shows it if the test fails
        # uvicorn ends by the signal that it was sent, once it is done.
        if ended not in (0, -signal.SIGTERM):
            raise RuntimeError(f"the server ended with {ended}:\n{log.read_text()}")


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < deadline:
        said = _ADDRESS.search(log.read_text())
        if said:
            return said[0]
        time.sleep(0.02)
    server.kill()
    raise RuntimeError(f"the server did not start:\n{log.read_text()}")
