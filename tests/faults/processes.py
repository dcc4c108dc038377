"""Processes that may be killed: functions of this program, or other programs."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from clients import WORK, Place, Stop

from eventstore import EventStore

#: Seconds after which a process that was asked to end says where it hangs.
PATIENCE: Final = 60.0


class Victim(NamedTuple):
    """Who may be killed.

    `start` makes a function of this program for a place, or the command line of another program.
    Whatever either writes to its journal (see `operations.Recorder`) is compared with the log;
    `check` looks at what else it has left, after each round, with the places it had.
    """

    name: str
    start: Callable[[Place], Callable[[Stop], None] | Sequence[str]]
    check: Callable[[EventStore, Sequence[Place]], None] | None = None
    #: Whether a proxy may stand between it and the database.
    proxied: bool = False


def _client(name: str) -> Callable[[Place], Callable[[Stop], None]]:
    return lambda place: lambda stop: WORK[name](place, stop)


#: Who works in a round.
VICTIMS: Final = (
    Victim("writer", _client("writer"), proxied=True),
    Victim("writer", _client("writer")),
    Victim("follower", _client("follower"), proxied=True),
    Victim("runner", _client("runner"), proxied=True),
    Victim("runner", _client("runner")),
    Victim("rebuild", _client("rebuild")),
)


class Process:
    """One that works, and how it ends."""

    def __init__(self, pid: int, errors: Path) -> None:
        self._pid = pid
        self._errors = errors
        self._code: int | None = None

    @property
    def errors(self) -> str:
        """What it has complained of."""
        return self._errors.read_text()[-5000:] if self._errors.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        if not self.has_ended:
            os.kill(self._pid, number)  # not yet waited for, so it is still that one

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def limit(self, size: int) -> None:
        """Let it write no further than this into any file."""
        if not self.has_ended:
            resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    @property
    def has_ended(self) -> bool:
        if self._code is None:
            ended, status = os.waitpid(self._pid, os.WNOHANG)
            if ended:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code is not None

    def wait(self) -> int:
        deadline = time.monotonic() + PATIENCE
        while not self.has_ended:
            if time.monotonic() > deadline:
                self.signal(signal.SIGABRT)  # it says where it is
                deadline += PATIENCE
            time.sleep(0.002)
        assert self._code is not None
        return self._code


def started(what: Callable[[Stop], None] | Sequence[str], errors: Path) -> Process:
    return Process(_forked(what, errors) if callable(what) else _spawned(what, errors), errors)


def _forked(work: Callable[[Stop], None], errors: Path) -> int:
    """A fork has everything imported already. This process has no threads, and nothing open."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
        faulthandler.enable(file=2)
        work(Stop())
        code = 0
    except BaseException:
        traceback.print_exc(file=open(2, "w", closefd=False))  # noqa: SIM115
        sys.stderr.flush()
    finally:
        os._exit(code)


def _spawned(command: Sequence[str], errors: Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    actions = [(os.POSIX_SPAWN_OPEN, 1, str(errors), flags, 0o600), (os.POSIX_SPAWN_DUP2, 1, 2)]
    return os.posix_spawnp(command[0], list(command), os.environ, file_actions=actions)
