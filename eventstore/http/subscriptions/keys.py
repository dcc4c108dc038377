"""The keys of the servers of one database: made once, by whoever needs the first."""

from __future__ import annotations

import secrets
from typing import Final

from eventstore.http.subscriptions.signing import SigningKey, new_seed
from eventstore.log.wakes import Wakes

_SIGNING: Final = "ed25519"
_TOKENS: Final = "hmac-sha256"


class Keys:
    """Reads them, and remembers. Its methods wait for the database."""

    def __init__(self, wakes: Wakes) -> None:
        self._wakes = wakes
        self._tokens: bytes | None = None
        self._signing: list[SigningKey] = []

    def tokens(self) -> bytes:
        """The key that signs tokens."""
        if self._tokens is None:
            self._tokens = self._wakes.make_key(_TOKENS, _token_key)[0]
        return self._tokens

    def known_tokens(self) -> bytes | None:
        """The same; None if no token was ever made."""
        if self._tokens is None:
            known = self._wakes.keys(_TOKENS)
            self._tokens = known[0] if known else None
        return self._tokens

    def signing(self) -> SigningKey:
        """The key that signs webhooks. Raises Problem (501)."""
        if not self._signing:
            seeds = self._wakes.make_key(_SIGNING, _signing_key)
            self._signing = [SigningKey(seed) for seed in seeds]
        return self._signing[0]

    def published(self) -> list[SigningKey]:
        """All of them, with which receivers may check; none if nothing was ever signed."""
        return [SigningKey(seed) for seed in self._wakes.keys(_SIGNING)]


def _token_key() -> tuple[str, bytes]:
    return f"tokens_{secrets.token_hex(8)}", secrets.token_bytes(32)


def _signing_key() -> tuple[str, bytes]:
    seed = new_seed()
    return SigningKey(seed).id, seed
