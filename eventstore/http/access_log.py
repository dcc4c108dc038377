"""The access log: a line for each request, written by a thread.

It names the path and what the protocol itself has in a query; never a header, and no other part of
a query, where tokens stand.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import MutableMapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, TextIO
from urllib.parse import parse_qsl

import msgspec

from eventstore.http.responses import Scope, Send

_ODD: Final = re.compile(r"[^!#-\[\]-~]")
_SHOWN: Final = frozenset({"offset", "live", "cursor"})
#: Lines that may wait to be written; what comes while there are more is counted, not written.
_MOST: Final = 100_000
#: Seconds that lines may wait, so that they are written together.
_PAUSE: Final = 0.1


class Line(NamedTuple):
    """One request that has been answered. `status` is 0 if its client went away before."""

    scope: Scope
    status: int
    seconds: float
    ended_at: float


class AccessLog:
    """Writes lines to a file. A context manager: the end of the block writes what is left."""

    def __init__(self, file: TextIO, form: Literal["text", "json"]) -> None:
        self._file = file
        self._format = _text if form == "text" else _json
        self._lines: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        self._left_out = 0
        self._thread = threading.Thread(target=self._work, name="eventstore-access", daemon=True)

    def note(self, scope: Scope, status: int, seconds: float) -> None:
        """Have a request written. Does not wait."""
        if self._lines.qsize() < _MOST:
            self._lines.put(Line(scope, status, seconds, time.time()))
        else:
            self._left_out += 1

    def __enter__(self) -> AccessLog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.put(None)
        self._thread.join(5)

    def _work(self) -> None:
        while True:
            lines = [self._lines.get()]
            if lines[0] is not None:
                time.sleep(_PAUSE)
            while not self._lines.empty():
                lines.append(self._lines.get())
            text = "".join(self._format(line) + "\n" for line in lines if line is not None)
            if self._left_out:
                text += f"{self._left_out} requests are not in this log: it was too slow\n"
                self._left_out = 0
            try:
                self._file.write(text)
                self._file.flush()
            except (OSError, ValueError):  # the disk is full, or nobody reads the pipe any more
                return
            if None in lines:
                return


class Noted:
    """A `send` that remembers the response's status."""

    __slots__ = ("_send", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Send it on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


def _text(line: Line) -> str:
    scope = line.scope
    client = scope.get("client")
    return (
        f'{_time(line.ended_at)} {client[0] if client else "-"} "{scope["method"]} {_path(scope)}" '
        f"{line.status} {line.seconds * 1000:.1f} ms"
    )


def _json(line: Line) -> str:
    client = line.scope.get("client")
    parts = {
        "time": _time(line.ended_at),
        "client": client[0] if client else "-",
        "method": line.scope["method"],
        "path": _path(line.scope),
        "status": line.status,
        "ms": round(line.seconds * 1000, 1),
    }
    return msgspec.json.encode(parts).decode()


def _time(moment: float) -> str:
    seconds = int(moment)
    return f"{_second(seconds)}.{int((moment - seconds) * 1000):03d}Z"


@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _path(scope: Scope) -> str:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    path = _plain(raw.decode("latin-1"))
    query: bytes = scope["query_string"]
    if not query:
        return path
    try:
        pairs = parse_qsl(query.decode("latin-1"), max_num_fields=50)
    except ValueError:
        return path + "?…"
    shown = "&".join(f"{name}={_plain(value[:64])}" for name, value in pairs if name in _SHOWN)
    return f"{path}?{shown}" if shown else path


def _plain(text: str) -> str:
    """Nothing that would end the line or the quotes, or that a terminal would obey."""
    return _ODD.sub("?", text)
