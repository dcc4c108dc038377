"""Names of streams: what may be one, and the pattern that ties an aggregate's id to its stream."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

from eventstore.errors import DefinitionError, InvalidNameError

#: The most characters that a stream's name may have. In UTF-8 that is at most 2,048 bytes, which
#: a unique index of PostgreSQL still takes.
MAX_STREAM_NAME: Final = 512

# Control characters, surrogates (no UTF-8 for them), and Unicode's line and paragraph separators.
_FORBIDDEN: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
_CAMEL_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def check_stream_name(name: str) -> str:
    """Return `name` if a stream may have it. Raises InvalidNameError."""
    return _checked("a stream's name", name)


def check_idempotency_key(key: str) -> str:
    """Return `key` if it can be an idempotency key. Raises InvalidNameError."""
    return _checked("an idempotency key", key)


def check_category(category: str) -> str:
    """Return `category` if a stream may be of it. Raises InvalidNameError."""
    return _checked("a category", category) if category else category  # that of a stream "/a"


def check_type_name(name: str) -> str:
    """Return `name` if an event may be stored under it. Raises InvalidNameError."""
    return _checked("an event's stored name", name)


def check_follower_name(name: str) -> str:
    """Return `name` if a follower may have it. Raises InvalidNameError."""
    return _checked("a follower's name", name)


def _checked(kind: str, name: object) -> str:
    if not isinstance(name, str):
        raise InvalidNameError(kind, name, f"it is {type(name).__name__}, not a string")
    if not name:
        raise InvalidNameError(kind, name, "it is empty")
    if len(name) > MAX_STREAM_NAME:
        raise InvalidNameError(
            kind, name, f"it has {len(name)} characters and the limit is {MAX_STREAM_NAME}"
        )
    if not (name.isascii() and name.isprintable()):
        for place, character in enumerate(name):
            if unicodedata.category(character) in _FORBIDDEN:
                raise InvalidNameError(
                    kind,
                    name,
                    f"character {place} is U+{ord(character):04X}; control characters, lone "
                    "surrogates and line separators are not allowed",
                )
    return name


def category_of(stream: str) -> str:
    """The first segment of a stream's name: of "account/alice", "account"."""
    return stream.partition("/")[0]


class StreamPattern:
    """How an aggregate's id and its stream's name make each other: `account/{id}`.

    A pattern starts with its category, spelled out, and holds `{id}` once. An id may contain
    slashes: a path of a file is an id.
    """

    __slots__ = ("category", "prefix", "suffix", "text")

    def __init__(self, owner: str, text: str) -> None:
        self.text = text
        self.prefix, found, self.suffix = text.partition("{id}")
        self.category, slash, _ = self.prefix.partition("/")
        if not found or "{" in self.prefix + self.suffix or "}" in self.prefix + self.suffix:
            raise DefinitionError(
                owner, f"stream={text!r} must hold {{id}} once, and no other {{}}"
            )
        if not self.category or not slash:
            raise DefinitionError(
                owner, f'stream={text!r} must start with a category: stream="orders/{{id}}"'
            )
        try:
            check_stream_name(self.prefix + "x" + self.suffix)
        except InvalidNameError as error:
            raise DefinitionError(owner, f"stream={text!r}: {error.reason}") from None

    @classmethod
    def default(cls, owner: str, class_name: str) -> StreamPattern:
        """`bank_account/{id}` for a class BankAccount."""
        return cls(owner, _CAMEL_HUMP.sub("_", class_name.strip("_")).lower() + "/{id}")

    def stream(self, id: str) -> str:
        """The name of the stream of `id`. Raises InvalidNameError."""
        name = f"{self.prefix}{id}{self.suffix}"
        plain = id.__class__ is str and id and id.isascii() and id.isprintable()
        if plain and len(name) <= MAX_STREAM_NAME:  # nearly always: nothing is left to check
            return name
        _checked("an aggregate's id", id)
        return check_stream_name(name)

    def id(self, stream: str) -> str | None:
        """The id in a stream's name, or None if the name does not follow this pattern."""
        end = len(stream) - len(self.suffix)
        if (
            end > len(self.prefix)
            and stream.startswith(self.prefix)
            and stream.endswith(self.suffix)
        ):
            return stream[len(self.prefix) : end]
        return None

    def __repr__(self) -> str:
        return f"StreamPattern({self.text!r})"


_patterns: Final[dict[str, dict[str, StreamPattern]]] = {}
_reserved: Final[set[str]] = set()


def register(pattern: StreamPattern) -> None:
    """Let `aggregate_id` know a pattern. The order of registration does not matter."""
    _patterns.setdefault(pattern.category, {})[pattern.text] = pattern
    aggregate_id.cache_clear()


def reserve(stream: str) -> None:
    """Let `is_claimed` know a stream that no aggregate has: it is written by the library."""
    _reserved.add(stream)


def is_claimed(stream: str) -> bool:
    """Whether a class writes to streams of that name: of an aggregate, or of a projection."""
    if stream in _reserved:
        return True
    patterns = _patterns.get(category_of(stream), {}).values()
    return any(pattern.id(stream) is not None for pattern in patterns)


@lru_cache(maxsize=10_000)  # a projection asks for it at each event
def aggregate_id(stream: str) -> str:
    """The id of the aggregate whose stream this is: by the most specific pattern that fits.

    For a stream that no aggregate class claims, what follows its category.
    """
    category, _, rest = stream.partition("/")
    found: tuple[int, str] = (-1, rest)
    for pattern in _patterns.get(category, {}).values():
        id = pattern.id(stream)
        if id is not None:
            found = max(found, (len(pattern.prefix) + len(pattern.suffix), id))
    return found[1]
