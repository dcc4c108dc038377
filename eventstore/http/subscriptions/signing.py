"""Signatures of webhooks, and the keys by which receivers check them. Sections 6.5 and 7.1.

`cryptography` is imported with the first key, so that a server without webhooks needs none.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Final

import msgspec

from eventstore.http.problems import Problem
from eventstore.http.subscriptions.tokens import encoded

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

#: How receivers are told what signs.
ALGORITHM: Final = "ed25519"


def new_seed() -> bytes:
    """The secret half of a new key, 32 bytes. Raises Problem (501)."""
    seed = secrets.token_bytes(32)
    _private(seed)  # whether there is what it takes
    return seed


class SigningKey:
    """An Ed25519 key. `id` comes from the public half: its thumbprint (RFC 7638)."""

    def __init__(self, seed: bytes) -> None:
        """Raises Problem (501) where the extra `http` is not installed."""
        self._key = _private(seed)
        public = encoded(self._key.public_key().public_bytes_raw())
        members = b'{"crv":"Ed25519","kty":"OKP","x":"%b"}' % public.encode()
        self.id: str = f"ds_{encoded(hashlib.sha256(members).digest())}"
        #: The public half, as a JSON Web Key (RFC 8037).
        self.jwk: dict[str, str] = {
            "kty": "OKP",
            "crv": "Ed25519",
            "kid": self.id,
            "use": "sig",
            "alg": "EdDSA",
            "x": public,
        }

    def signature(self, body: bytes, at: int) -> str:
        """The value of Webhook-Signature. `at` is in seconds since the epoch."""
        signature = encoded(self._key.sign(b"%d.%b" % (at, body)))
        return f"t={at},kid={self.id},ed25519={signature}"


def jwks(keys: list[SigningKey]) -> bytes:
    """The set of the public keys."""
    return msgspec.json.encode({"keys": [key.jwk for key in keys]})


def _private(seed: bytes) -> Ed25519PrivateKey:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError:
        raise Problem(501, "this server has no webhooks: install eventstore[http] there") from None
    return Ed25519PrivateKey.from_private_bytes(seed)
