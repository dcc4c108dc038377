"""The bodies of requests, checked: what a subscription is to be, and what a worker says."""

from __future__ import annotations

import hashlib
from typing import Final, Literal, TypeVar
from urllib.parse import quote

import msgspec

from eventstore.http.messages import JSON, media_type
from eventstore.http.offsets import parsed
from eventstore.http.problems import Problem
from eventstore.http.requests import LARGEST, Request, stream_path
from eventstore.http.subscriptions.refusals import invalid

T = TypeVar("T")

#: Streams that one request may name.
MOST_STREAMS: Final = 1000
#: The first segment of control APIs, which are no streams.
RESERVED: Final = "__ds"
_LONGEST_TEXT: Final = 1024
_LONGEST_NAME: Final = 255


class Webhook(msgspec.Struct, forbid_unknown_fields=True):
    """Where notifications go."""

    url: str


class Wanted(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a subscription is to be (section 6.2).

    Defaults are left out of the digest, so that a field which is new some day changes none.
    """

    type: Literal["webhook", "pull-wake"]
    pattern: str | None = None
    streams: list[str] = []
    webhook: Webhook | None = None
    wake_stream: str | None = None
    lease_ttl_ms: int = 30_000
    description: str | None = None

    def check(self) -> None:
        """Bring it to its normal form. Raises Problem (400)."""
        if self.type == "webhook" and (self.webhook is None or self.wake_stream is not None):
            raise invalid("a webhook subscription has a webhook.url, and no wake_stream")
        if self.type == "pull-wake" and (self.wake_stream is None or self.webhook is not None):
            raise invalid("a pull-wake subscription has a wake_stream, and no webhook")
        if self.pattern is None and not self.streams:
            raise invalid("a pattern or streams must be given")
        if not 1_000 <= self.lease_ttl_ms <= 600_000:
            raise invalid("lease_ttl_ms must be from 1000 to 600000")
        if self.description is not None and len(self.description) > _LONGEST_TEXT:
            raise invalid(f"the description has more than {_LONGEST_TEXT} characters")
        if self.pattern is not None:
            checked_path(self.pattern)
        self.streams = checked_paths(self.streams)
        if self.wake_stream is not None and checked_path(self.wake_stream) in self.streams:
            raise invalid("a subscription cannot wake by a stream that it follows")

    @property
    def digest(self) -> bytes:
        """Tells configurations apart."""
        return hashlib.sha256(msgspec.json.encode(self)).digest()


class Streams(msgspec.Struct, forbid_unknown_fields=True):
    """Explicit streams to be added (section 6.4)."""

    streams: list[str]


class Ack(msgspec.Struct, forbid_unknown_fields=True):
    """Up to where a stream has been processed, inclusively."""

    stream: str
    offset: str


class Claim(msgspec.Struct):
    """Who wants to work."""

    worker: str

    def check(self) -> None:
        """Raises Problem (400)."""
        if not 0 < len(self.worker) <= _LONGEST_NAME or not self.worker.isprintable():
            raise invalid(f"worker must be a name of 1 to {_LONGEST_NAME} printable characters")


class Report(msgspec.Struct):
    """What a worker says of the wake that it has: of callback, ack and release."""

    wake_id: str
    generation: int
    acks: list[Ack] = []
    done: bool = False

    def check(self) -> None:
        """Raises Problem (400)."""
        if not 0 <= self.generation <= LARGEST:
            raise invalid("generation is none of ours")

    @property
    def places(self) -> dict[str, tuple[int, int]]:
        """How far each stream is: incarnation and version. Raises Problem (400)."""
        found: dict[str, tuple[int, int]] = {}
        for ack in self.acks:
            try:
                place = parsed(ack.offset)
            except Problem as problem:
                raise invalid(problem.detail) from None
            path = checked_path(ack.stream)
            found[path] = max(place, found.get(path, place))
        return found


def decoded(request: Request, body: bytes, shape: type[T]) -> T:
    """The body of a request, of that shape. Raises Problem (400)."""
    if media_type(request.header(b"content-type") or "") != JSON:
        raise invalid(f"the body must be {JSON}")
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise invalid(f"the body is not as it must be: {error}") from None


def checked_path(text: str) -> str:
    """A stream's path below the root, or a pattern of such. Raises Problem (400)."""
    try:
        path = stream_path(quote(text, errors="strict").encode())
    except Problem as problem:
        raise invalid(f"{text!r}: {problem.detail}") from None
    except UnicodeEncodeError:
        raise invalid("a path has a lone surrogate") from None
    if is_reserved(path):
        raise invalid(f"{text!r} is no stream: {RESERVED} is for control APIs")
    return path


def checked_paths(texts: list[str]) -> list[str]:
    """The paths of streams, each once, in order. Raises Problem (400)."""
    if len(texts) > MOST_STREAMS:
        raise invalid(f"a request may name at most {MOST_STREAMS} streams")
    return sorted(set(map(checked_path, texts)))


def is_reserved(path: str) -> bool:
    """Whether a path is of the control APIs."""
    return path.partition("/")[0] == RESERVED
