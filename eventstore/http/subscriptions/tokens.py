"""Tokens of wakes: whoever has one may acknowledge that wake, and nothing else.

`<claims>.<signature>`, both in base64url; the signature is HMAC-SHA256 with a key that only the
servers of the database have.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final

import msgspec

from eventstore.http.subscriptions.refusals import Refused
from eventstore.http.subscriptions.state import Fence

#: Microseconds that a token is good for, if the wake lives that long: heartbeats bring no new one.
_LIFE: Final = 24 * 3600 * 1_000_000


class _Claims(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    subscription: str
    generation: int
    wake_id: str
    expires_at: int


_decode: Final = msgspec.json.Decoder(_Claims).decode


def token(secret: bytes, subscription: str, fence: Fence, now: int) -> str:
    """The token of a wake."""
    claims = msgspec.json.encode(_Claims(subscription, *fence, now + _LIFE))
    return f"{encoded(claims)}.{encoded(_signature(secret, claims))}"


def checked(secret: bytes, subscription: str, text: str, now: int) -> Fence:
    """The wake that a token is of. Raises Refused (401)."""
    try:
        claims, given = map(_decoded, text.split("."))
        # By time that does not tell how much of it was right, and before anything is believed.
        if hmac.compare_digest(_signature(secret, claims), given):
            found = _decode(claims)
            if found.subscription == subscription:
                if found.expires_at <= now:
                    raise Refused(401, "TOKEN_EXPIRED", "the token is too old")
                return Fence(found.generation, found.wake_id)
    except (ValueError, msgspec.MsgspecError):
        pass
    raise Refused(401, "TOKEN_INVALID", "the token is none of this subscription's")


def encoded(data: bytes) -> str:
    """In base64url, without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    padded = text.encode("ascii") + b"=" * (-len(text) % 4)
    data = base64.b64decode(padded, altchars=b"-_", validate=True)
    if encoded(data) != text:  # the last character may have bits that mean nothing
        raise binascii.Error("not the shortest form")
    return data


def _signature(secret: bytes, claims: bytes) -> bytes:
    return hmac.digest(secret, b"wake\n" + claims, hashlib.sha256)
