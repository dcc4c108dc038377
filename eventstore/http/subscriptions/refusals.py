"""Why a request of the subscription API is refused, as its client is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from eventstore.http.problems import Problem

NO_PENDING_WORK: Final = "NO_PENDING_WORK"


class Refused(Problem):
    """The request is answered `{"error": {"code", "message", ...}}`, with `more` beside them."""

    def __init__(
        self, status: int, code: str, detail: str, more: Mapping[str, str | int] | None = None
    ) -> None:
        headers = {"Content-Type": "application/json"}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, detail, headers)
        self.code = code
        self.more = dict(more or {})

    @property
    def body(self) -> bytes:
        """The response's body."""
        error = {"code": self.code, "message": self.detail, **self.more}
        return msgspec.json.encode({"error": error})


def invalid(detail: str) -> Refused:
    """The request is malformed."""
    return Refused(400, "INVALID_REQUEST", detail)


def unknown(id: str) -> Refused:
    """There is no such subscription, or none that this client may see."""
    return Refused(404, "SUBSCRIPTION_NOT_FOUND", f"there is no subscription {id!r}")


def fenced() -> Refused:
    """The wake is over: another has taken its place, or its lease has run out."""
    return Refused(409, "FENCED", "this wake is over: nothing was acknowledged")


def nothing_pending() -> Refused:
    """There is nothing to claim."""
    return Refused(409, NO_PENDING_WORK, "every stream is acknowledged up to its end")
