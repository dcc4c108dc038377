"""Offsets: places in a stream as clients know them. PROTOCOL.md, section 8.

An offset is `<incarnation>_<version>`, sixteen digits each: how often the stream's URL was made
anew, and how many messages come before. So they sort as text, none of a deleted stream is taken for
one of its successor, and a version is an offset in Python's words.
"""

from __future__ import annotations

import re
from typing import Final

from eventstore.http.problems import Problem

_OFFSET: Final = re.compile(r"([0-9]{16})_([0-9]{16})")


def offset(incarnation: int, version: int) -> str:
    """The offset after `version` messages."""
    return f"{incarnation:016d}_{version:016d}"


def parsed(text: str) -> tuple[int, int]:
    """The incarnation and the version in an offset. Raises Problem (400)."""
    found = _OFFSET.fullmatch(text)
    if found is None:
        raise Problem(400, f"{text!r} is no offset: use one that this server gave, -1 or now")
    return int(found[1]), int(found[2])
