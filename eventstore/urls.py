"""URLs of databases: which are supported, and which driver a plain one means."""

from __future__ import annotations

from typing import Final

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from eventstore.errors import InvalidArgumentError

#: What a URL may begin with, and the SQLAlchemy dialect and driver that it means.
_DRIVERS: Final = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_SUPPORTED: Final = (
    "use sqlite:///relative/path.db, sqlite:////absolute/path.db, sqlite:// (in memory) or "
    "postgresql://user:password@host/database"
)


def parse(target: str | URL) -> URL:
    """The URL with the driver that the log uses. A password never gets into an error's text.

    Raises InvalidArgumentError for another database or driver, and for text that is no URL.
    """
    try:
        url = make_url(target)
    except (ArgumentError, ValueError):
        # Not shown and not chained: text that cannot be parsed may hold a password anywhere.
        raise InvalidArgumentError("url", "...", f"it is not a URL; {_SUPPORTED}") from None
    if isinstance(target, str) and url.host and "@" in f"{url.host} {url.database}":
        # A part of the password was taken for what comes after it, which errors would show.
        raise InvalidArgumentError("url", "...", "write @ as %40 in a user's name or password")
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        shown = url.render_as_string(hide_password=True).partition("?")[0]
        raise InvalidArgumentError("url", shown, f"{url.drivername} is not supported; {_SUPPORTED}")
    return url.set(drivername=driver)
