"""Opens the contenders on databases of one kind: by hand, ours, and the peer where there is one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import raw

from eventstore import EventStore
from eventstore.log.opening import Durability


def sqlite(
    folder: Path, durability: Durability, opened: ExitStack
) -> tuple[raw.Sqlite, EventStore]:
    """The raw driver and ours, each on a file of its own with the same tables."""
    files = [folder / f"{name}-{durability}.db" for name in ("raw", "ours")]
    EventStore(f"sqlite:///{files[0]}").close()  # makes the tables
    synchronous = "FULL" if durability == "full" else "NORMAL"
    hand = opened.enter_context(closing(raw.Sqlite(str(files[0]), synchronous=synchronous)))
    store = opened.enter_context(EventStore(f"sqlite:///{files[1]}", durability=durability))
    return hand, store


def postgres(new_database: Callable[[], str], opened: ExitStack) -> tuple[raw.Postgres, EventStore]:
    """The raw driver and ours, each on a database of its own with the same tables."""
    urls = new_database(), new_database()
    EventStore(urls[0], migrate=True).close()
    hand = opened.enter_context(closing(raw.Postgres(urls[0])))
    store = opened.enter_context(EventStore(urls[1], migrate=True))
    return hand, store


def sqlite_peer(folder: Path, durability: Durability, opened: ExitStack) -> Any:
    """The library `eventsourcing`, where it is installed."""
    if not _installed("eventsourcing"):
        return None
    from peers import eventsourcing_

    path = folder / f"peer-{durability}.db"
    return opened.enter_context(closing(eventsourcing_.sqlite(str(path), durability)))


def postgres_peer(new_database: Callable[[], str], opened: ExitStack) -> Any:
    """The library `eventsourcing`, where it is installed."""
    if not _installed("eventsourcing", "psycopg_pool"):  # eventsourcing[postgres]
        return None
    from peers import eventsourcing_

    return opened.enter_context(closing(eventsourcing_.postgres(new_database())))


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) for module in modules)
