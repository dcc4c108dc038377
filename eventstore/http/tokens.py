"""Bearer tokens in a file: authorisation for who runs a server without code of their own."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Final

from eventstore.errors import EventStoreError
from eventstore.http.access import Operation
from eventstore.http.requests import Request

#: Characters that a token must have, so that it is not guessed.
_SHORTEST: Final = 16
_SCHEME: Final = b"bearer "


class TokenFileError(EventStoreError):
    """A file of tokens cannot be used. `.path` is its path."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        super().__init__(f"{path}: {problem}")


class BearerTokens:
    """Allows what is asked with `Authorization: Bearer <token>`, with one of a file's tokens.

    A line of the file is a token, or a token and the word `read`: that one may only read. Empty
    lines and those that begin with # are none. The time that a comparison takes tells nothing.
    """

    def __init__(self, path: str) -> None:
        """Raises TokenFileError. The file is read once."""
        self._all: list[bytes] = []
        self._reading: list[bytes] = []
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise TokenFileError(path, f"cannot be read: {error}") from error
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words[0]) < _SHORTEST:
                raise TokenFileError(path, f"line {number}: use {_SHORTEST} characters or more")
            if words[1:] not in ([], ["read"]):
                raise TokenFileError(path, f"line {number}: only 'read' may follow a token")
            (self._reading if words[1:] else self._all).append(_digest(words[0].encode()))
        if not self._all and not self._reading:
            raise TokenFileError(path, "there is no token in it")

    def __call__(self, request: Request, path: str, operation: Operation) -> bool:
        """Whether the request has a token that may do that."""
        given = request.headers.get(b"authorization", b"")
        if given[: len(_SCHEME)].lower() != _SCHEME:
            return False
        digest = _digest(given[len(_SCHEME) :].strip())
        may_all = _is_among(digest, self._all)
        may_read = _is_among(digest, self._reading)
        return may_all or (may_read and operation is Operation.READ)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _is_among(digest: bytes, known: list[bytes]) -> bool:
    found = False
    for each in known:  # all of them, so that the time does not tell which
        found |= hmac.compare_digest(each, digest)
    return found
