"""Emmett 0.42 on Node: a process that is told by pipe what to do (peers/emmett/peer.mjs).

Its own store, its own appends with an expected version. A read model is a projection of its
consumer: a statement an event, with the checkpoint, in one transaction a batch. That batch is 500
events, with no pause between batches; its defaults are 100 and 50 ms.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Final, Literal
from uuid import uuid4

import msgspec
from workload import VISIT, deposited, opened, turns

from eventstore import Event

FOLDER: Final = Path(__file__).parent / "emmett"
_PACKAGES: Final = {
    "postgres": ("emmett-postgresql",),
    "sqlite": ("emmett-sqlite", "../sqlite3/build"),
}
Kind = Literal["postgres", "sqlite"]


def is_installed(kind: Kind) -> bool:
    """Whether Node is there, and what package.json names, as `make bench` installs it."""
    packages = FOLDER / "node_modules" / "@event-driven-io"
    return bool(shutil.which("node")) and all(
        (packages / name).exists() for name in _PACKAGES[kind]
    )


class Emmett:
    """A process of Node with one store."""

    name = "Emmett"

    def __init__(self, kind: Kind, target: str) -> None:
        self._process = subprocess.Popen(
            ["node", str(FOLDER / "peer.mjs"), kind, target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask("ready")

    def fill_in_turns(self, accounts: int, length: int) -> None:
        both = {"opened": _message(opened()), "deposited": _message(deposited(1))}
        self._ask("fill", turns=list(turns(accounts, length)), each=VISIT, **both)

    def saving(self, commits: int, events: int) -> Callable[[], None]:
        """What makes so many commits of so many events each."""
        stream, versions = f"account-{uuid4()}", count(0, commits * events)
        message = _message(deposited(1))

        def run() -> None:
            self._ask(
                "save",
                stream=stream,
                commits=commits,
                each=events,
                version=next(versions),
                deposited=message,
            )

        return run

    def fill(self, accounts: int, length: int) -> list[str]:
        """So many accounts of so many events; their streams."""
        streams = [f"account-{uuid4()}" for _ in range(accounts)]
        for stream in streams:
            for version in range(0, length, 500):
                each = min(500, length - version)
                message = _message(deposited(1))
                self._ask(
                    "save", stream=stream, commits=1, each=each, version=version, deposited=message
                )
        return streams

    def load(self, streams: list[str], *, command: bool = False) -> None:
        """Load each, and with `command` save one more event."""
        more = {"deposited": _message(deposited(1))} if command else {}
        self._ask("load", streams=streams, **more)

    def rebuild(self) -> None:
        self._ask("rebuild")

    def rows(self) -> tuple[int, int, int]:
        count, balance, entries = self._ask("rows")
        return count, balance, entries

    def follow(self, pulling: dict[str, int]) -> None:
        """Follow the log from its end, from now on."""
        self._ask("follow", pulling=pulling)

    def append(self, count: int, every: float = 0) -> list[float]:
        """Append so many events, one a commit; when each was begun, in ms."""
        begun: list[float] = self._ask(
            "append", count=count, every=every, deposited=_message(deposited(1))
        )
        return begun

    def arrived(self, count: int) -> list[float]:
        """When the follower got each of so many events, in ms."""
        moments: list[float] = self._ask("arrived", count=count)
        return moments

    def stop(self) -> None:
        self._ask("stop")

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _ask(self, do: str, **details: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"do": do, **details}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("="):
                return json.loads(line[1:])
            print(f"Emmett says: {line.rstrip()}")
        raise RuntimeError("the process of Node has ended: its errors are above")


def _message(event: Event) -> dict[str, Any]:
    return {"type": type(event).__name__, "data": msgspec.to_builtins(event)}
