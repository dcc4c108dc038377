"""Numbers that callers give: what a database can hold as a position, a version or a count."""

from __future__ import annotations

from typing import Final

from eventstore.errors import InvalidArgumentError

#: The largest that both databases hold.
LARGEST: Final = 2**63 - 1


def check_whole(argument: str, value: int) -> int:
    """Return `value` if it is a whole number of at most 64 bits. Raises InvalidArgumentError."""
    if value.__class__ is not int or not -LARGEST <= value <= LARGEST:  # a bool is no number here
        raise InvalidArgumentError(argument, value, "use a whole number, of at most 64 bits")
    return value
