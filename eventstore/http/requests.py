"""Requests: what the protocol says that a path, a parameter or a header must be."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from eventstore.errors import InvalidNameError
from eventstore.http.problems import Problem
from eventstore.http.responses import Scope
from eventstore.names import check_stream_name

_WHOLE: Final = re.compile(rb"0|[1-9][0-9]{0,15}")
#: Headers that may come once, with `Stream-*` and `Producer-*`.
_SINGLE: Final = frozenset(
    {b"authorization", b"content-length", b"content-type", b"host", b"origin"}
)
#: The largest whole number that JavaScript has exactly.
LARGEST: Final = 2**53 - 1
#: Seconds; with it a time in microseconds still fits the database.
_LONGEST_TTL: Final = 10**12
_RFC_3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII
)


class Request:
    """One request for a stream."""

    __slots__ = ("headers", "held", "method", "path", "query", "scope")

    def __init__(self, scope: Scope, path: str) -> None:
        """Raises Problem (400) for parameters and headers that cannot be read."""
        self.scope = scope
        self.method: str = scope["method"]
        #: The stream's path below the root, decoded.
        self.path = path
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        if len(self.headers) != len(scope["headers"]):
            _check_repeated(scope["headers"])
        self.query = _query(scope["query_string"])
        #: Bytes of its body, if they are many: see `limits.Bodies`.
        self.held = 0

    def header(self, name: bytes) -> str | None:
        """A header's value; its name in lower case."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def whole(self, name: bytes) -> int | None:
        """A header that is a whole number, without sign or leading zeros. Raises Problem (400)."""
        value = self.headers.get(name)
        if value is None:
            return None
        if not _WHOLE.fullmatch(value) or int(value) > LARGEST:
            raise Problem(
                400,
                f"{name.decode().title()}: {value.decode('latin-1')!r} is not a whole number from "
                f"0 to {LARGEST}, in decimal digits without leading zeros",
            )
        return int(value)

    @property
    def closes(self) -> bool:
        """Whether it closes the stream. Any value but `true` is as none (section 4.1)."""
        return self.headers.get(b"stream-closed", b"").lower() == b"true"


def base_url(scope: Scope, given: str | None) -> str:
    """What is in front of the root in URLs that clients are told: `given`, or as they have it.

    Without a Host it is only a path.
    """
    if given is not None:
        return given
    host = next((value for name, value in scope["headers"] if name == b"host"), None)
    mounted = quote(scope.get("root_path", ""))
    if host is None:
        return mounted
    return f"{scope.get('scheme', 'http')}://{host.decode('latin-1')}{mounted}"


class Producing(NamedTuple):
    """What an idempotent producer says of a batch (section 5.2.1)."""

    id: str
    epoch: int
    seq: int


def producing(request: Request) -> Producing | None:
    """The producer's headers: all three or none. Raises Problem (400)."""
    id = request.header(b"producer-id")
    epoch = request.whole(b"producer-epoch")
    seq = request.whole(b"producer-seq")
    if id is None and epoch is None and seq is None:
        return None
    if id is None or epoch is None or seq is None:
        raise Problem(400, "give Producer-Id, Producer-Epoch and Producer-Seq together, or none")
    if not id or len(id) > 512:
        raise Problem(400, "Producer-Id must have 1 to 512 characters")
    return Producing(id, epoch, seq)


def expiry(request: Request) -> tuple[int | None, int | None]:
    """The time to live in seconds, and the fixed end in microseconds since the epoch.

    Raises Problem (400), also where both are given.
    """
    ttl = request.whole(b"stream-ttl")
    if ttl is not None and ttl > _LONGEST_TTL:
        raise Problem(400, f"Stream-TTL may be {_LONGEST_TTL} seconds at the most")
    text = request.header(b"stream-expires-at")
    if text is None:
        return ttl, None
    if ttl is not None:
        raise Problem(400, "give Stream-TTL or Stream-Expires-At, not both")
    try:
        if not _RFC_3339.fullmatch(text):
            raise ValueError(text)
        moment = datetime.fromisoformat(text.upper())
        return None, round(moment.astimezone(UTC).timestamp() * 1_000_000)
    except (ValueError, OverflowError):
        raise Problem(
            400, f"Stream-Expires-At: {text!r} is no RFC 3339 time such as 2030-01-31T12:00:00Z"
        ) from None


def _query(text: bytes) -> dict[str, str]:
    if not text:
        return {}
    try:
        pairs = parse_qsl(
            text.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=50
        )
    except ValueError:
        raise Problem(400, "the query string cannot be read: percent-encode UTF-8") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found and name in ("offset", "live", "cursor"):
            raise Problem(400, f"the parameter {name} is given more than once")
        found[name] = value
    return found


@lru_cache(maxsize=4096)
def stream_path(encoded: bytes) -> str:
    """The path of a stream below the root, from its encoded form. Raises Problem (400).

    A slash is a slash, whether it is encoded or not; segments that are empty, or that a client or
    proxy would resolve ("." and ".."), are refused, so that no two URLs are one stream to some.
    """
    try:
        path = check_stream_name(unquote_to_bytes(encoded).decode("utf-8"))
    except UnicodeDecodeError:
        raise Problem(400, "the path is not UTF-8, percent-encoded") from None
    except InvalidNameError as error:
        raise Problem(400, str(error)) from None
    if any(segment in ("", ".", "..") for segment in path.split("/")):
        raise Problem(400, "a path may not have segments that are empty, '.' or '..'")
    if "\\" in path:
        raise Problem(400, "a path may not have a backslash")
    return path


def _check_repeated(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse a request that says one thing twice: who reads it first and who last would differ."""
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in seen and (name in _SINGLE or name.startswith((b"stream-", b"producer-"))):
            raise Problem(400, f"the header {name.decode('latin-1').title()} is given twice")
        seen.add(name)


class Disconnected(Exception):
    """The client has gone before it has sent its request."""
