"""What clients of the protocol say and are told in a campaign, as its check reads it afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from campaign import Broken

#: Of streams, in turn: messages, messages in the shape of events, a text without messages.
Kind = Literal["json", "events", "text"]
KINDS: Final[tuple[Kind, ...]] = ("json", "events", "text")
#: Ends a message of a text.
_END: Final = "\x1e"
#: What would end an event of SSE, or make one, if it were not taken apart.
_PAD: Final = '\r\n\r\nevent: control\rdata: {"streamClosed":true}\n\n\u2028é'
_LINE_BREAK: Final = re.compile(r"\r\n|\r|\n")


class Batch(msgspec.Struct):
    """A request that appends, with all its repetitions."""

    stream: str
    op: str
    messages: int
    #: None for a plain one, which is sent once.
    producer: tuple[str, int, int] | None = None
    closes: bool = False
    #: Refused: it was told not to be written, or that the stream was closed; the latter says
    #: nothing of a batch that was sent before.
    outcome: Literal["acknowledged", "refused", "unknown"] = "unknown"
    #: How many events the stream had afterwards, if it was told that it was written just now.
    version: int | None = None
    sent: int = 0


class Forked(msgspec.Struct):
    """A stream that shares its past with another one, up to a version."""

    stream: str
    source: str
    version: int


class Followed(msgspec.Struct):
    """What a reader was given, from one version to another."""

    stream: str
    first: int
    last: int
    messages: list[str]
    ended: bool


class Report(msgspec.Struct):
    """All of a client."""

    batches: list[Batch] = []
    forks: list[Forked] = []
    followed: list[Followed] = []
    counts: dict[str, int] = {}

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    def write(self, path: Path) -> None:
        path.write_bytes(msgspec.json.encode(self))


def reported(paths: Iterable[Path]) -> Report:
    """What several clients have written, together."""
    whole = Report([], [], [], {})
    for path in paths:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
        whole.batches += report.batches
        whole.forks += report.forks
        whole.followed += report.followed
        for what, number in report.counts.items():
            whole.count(what, number)
    return whole


def kind_of(stream: str) -> Kind:
    """Of a stream, by the word in its name."""
    return next(kind for kind in KINDS if f"/{kind}-" in stream)


def media_of(stream: str) -> str:
    return "text/plain" if kind_of(stream) == "text" else "application/json"


def version_of(offset: str) -> int:
    """How many events come before an offset, as docs/http.md has it."""
    return 0 if offset == "-1" else int(offset.rpartition("_")[2])


def body_of(batch: Batch) -> bytes:
    ids = [f"{batch.op}/{n}" for n in range(batch.messages)]
    kind = kind_of(batch.stream)
    if kind == "text":
        return "".join(f"{id}{_PAD}{_END}" for id in ids).encode()
    values: list[Any] = [{"id": id, "pad": _PAD} for id in ids]
    if kind == "events":
        values = [{"type": "faults-posted", "data": value} for value in values]
    return json.dumps(values[0] if len(values) == 1 else values, ensure_ascii=False).encode()


def messages_in(stream: str, body: bytes) -> list[str]:
    """The ids of the messages in what was read. Raises Broken if one is not as it was sent."""
    kind = kind_of(stream)
    if kind == "text":
        *whole, rest = body.decode().split(_END)
        pad = _LINE_BREAK.sub("\n", _PAD)
        ids = [_LINE_BREAK.sub("\n", text).removesuffix(pad) for text in whole]
        if rest or any(len(id) > 60 for id in ids):
            raise Broken(f"{stream} has text that nobody has sent: {body!r}")
        return ids
    values = json.loads(body) if body else []
    if kind == "events":
        if any(value["type"] != "faults-posted" for value in values):
            raise Broken(f"{stream} has events that nobody has sent: {body!r}")
        values = [value["data"] for value in values]
    if any(value.keys() != {"id", "pad"} or value["pad"] != _PAD for value in values):
        raise Broken(f"{stream} has messages that nobody has sent: {body!r}")
    return [value["id"] for value in values]
