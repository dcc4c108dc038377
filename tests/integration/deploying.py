"""Deployments: source text that is run as a module, in the place of its last version."""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import dedent
from typing import Any

from eventstore import EventStore, StoredEventError
from eventstore.event import _by_name

HEADER = """
from __future__ import annotations
from decimal import Decimal
from eventstore import Aggregate, Event, on, upcast
"""


_numbers = itertools.count()


class Deployment(types.ModuleType):
    """A module made of source text."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


@contextmanager
def deployments() -> Iterator[Callable[..., Deployment]]:
    """A function that runs source text as a module, which takes the place of its last version."""
    package = f"deployed{next(_numbers)}"
    names = dict(_by_name)
    made = []

    def run(source: str, module: str = "domain") -> Deployment:
        for name in [n for n, c in _by_name.items() if c.__module__ == f"{package}.{module}"]:
            del _by_name[name]  # a new process has not heard of them
        deployed = Deployment(f"{package}.{module}")
        sys.modules[deployed.__name__] = deployed
        made.append(deployed.__name__)
        exec(compile(dedent(HEADER) + dedent(source), deployed.__name__, "exec"), vars(deployed))
        return deployed

    yield run
    for name in made:
        sys.modules.pop(name, None)
    _by_name.clear()
    _by_name.update(names)


def reopened(store: EventStore) -> EventStore:
    """Another process: nothing that was learnt of the log or the classes is known."""
    return EventStore(store.engine)


def located(
    error: StoredEventError, stream: str, version: int, position: int | None = None
) -> None:
    assert (error.stream, error.version) == (stream, version)
    assert error.position is not None
    assert position is None or error.position == position
    for part in (stream, f"version {version}", f"position {error.position}"):
        assert part in str(error)
