"""Paths as ids of aggregates: any bytes in git, plain text in the event store."""

from __future__ import annotations

import re
from typing import Final

# Control characters, line separators, bytes that are not UTF-8 (as surrogates), and a % that
# would read like an escape.
_ESCAPED: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff]|%(?=[0-9A-F]{2})")


def file_id(path: bytes) -> str:
    """A path as an aggregate's id. What an id may not hold is percent-encoded, and only that."""
    return _ESCAPED.sub(_escape, path.decode("utf-8", "surrogateescape"))


def file_path(id: str) -> bytes:
    """The path behind an id: the reverse of `file_id`."""
    return re.sub(b"%([0-9A-F]{2})", lambda escape: bytes.fromhex(escape[1].decode()), id.encode())


def _escape(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogateescape"))
