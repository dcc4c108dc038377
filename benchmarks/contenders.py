"""Opens the contenders on databases of one kind: by hand, ours, and the peers where they are."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import raw
from peers import emmett_

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


def sqlite_read_models(folder: Path, opened: ExitStack) -> Any:
    """Two read models of `eventsourcing`, each on a file of its own."""
    if not _installed("eventsourcing", "psycopg_pool"):
        return None
    from peers import eventsourcing_
    from peers.eventsourcing_projection import ReadModel, SqliteView

    peers = (eventsourcing_.sqlite(str(folder / f"peer-{n}.db"), "full") for n in range(2))
    return _read_models(peers, partial(ReadModel, view=SqliteView), opened)


def postgres_read_models(new_database: Callable[[], str], opened: ExitStack) -> Any:
    """Two read models of `eventsourcing`, each on a database of its own."""
    if not _installed("eventsourcing", "psycopg_pool"):
        return None
    from peers import eventsourcing_
    from peers.eventsourcing_projection import PostgresView, ReadModel

    peers = (eventsourcing_.postgres(new_database()) for _ in range(2))
    return _read_models(peers, partial(ReadModel, view=PostgresView), opened)


def _read_models(peers: Iterable[Any], make: Callable[[Any], Any], opened: ExitStack) -> Any:
    models = []
    for peer in peers:
        opened.enter_context(closing(peer))
        models.append(opened.enter_context(closing(make(peer))))
    return models


def umadb(folder: Path, opened: ExitStack) -> Any:
    """UmaDB, with a server of its own, where it is installed."""
    if not _installed("umadb"):
        print("Without UmaDB: it is not installed")
        return None
    from peers.umadb_ import Served

    return opened.enter_context(closing(Served(folder)))


def emmett(kind: emmett_.Kind, target: str, opened: ExitStack) -> Any:
    """Emmett on a file or a database, where Node and its packages are."""
    if not emmett_.is_installed(kind):
        print(f"Without Emmett on {kind}: Node or its packages are not there")
        return None
    return opened.enter_context(closing(emmett_.Emmett(kind, target)))


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) for module in modules)
