"""The `Idempotency-Key` header of a request."""

from __future__ import annotations

from typing import Final

from starlette.requests import HTTPConnection

from eventstore.errors import InvalidArgumentError

#: The most characters that a client's key may have: there has to be room to put something of the
#: application's own before it.
MAX_KEY: Final = 255


def idempotency_key(connection: HTTPConnection) -> str | None:
    """The request's `Idempotency-Key`, or None: a dependency, or called with a request.

        key: Annotated[str | None, Depends(idempotency_key)]

    A quoted key, as the IETF's draft has it, is the same as one without quotes. Keys are the whole
    log's: put before it what it belongs to (`f"{user} {order} {key}"`) if clients choose keys that
    another client, or another order, might have. Raises InvalidArgumentError for a key that is
    empty, has more than 255 characters or other ones than ASCII's printable, or is given twice.
    """
    given = connection.headers.getlist("idempotency-key")
    if not given:
        return None
    if len(given) > 1:
        raise _refused(", ".join(given), "give one key")
    key = given[0]
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not key:
        raise _refused(given[0], "it is empty")
    if len(key) > MAX_KEY:
        raise _refused(given[0], f"it has {len(key)} characters and the limit is {MAX_KEY}")
    if not (key.isascii() and key.isprintable()):
        raise _refused(given[0], "use printable ASCII characters")
    return key


def _refused(value: str, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError("Idempotency-Key", value, reason)
