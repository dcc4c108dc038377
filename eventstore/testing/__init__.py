"""For tests, yours and this library's. Not imported by `eventstore` itself.

pytest and Hypothesis are imported only with what needs them: `LogContract`, `events`,
`aggregate_machine`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from eventstore.testing.clock import FrozenClock
from eventstore.testing.golden import golden_events
from eventstore.testing.memory import memory_store
from eventstore.testing.projecting import Happened, ReadModel, project
from eventstore.testing.scenario import Given, Outcome, given, when

if TYPE_CHECKING:
    from eventstore.testing.log_contract import LogContract
    from eventstore.testing.machine import aggregate_machine
    from eventstore.testing.strategies import events

__all__ = [
    "FrozenClock",
    "Given",
    "Happened",
    "LogContract",
    "Outcome",
    "ReadModel",
    "aggregate_machine",
    "events",
    "given",
    "golden_events",
    "memory_store",
    "project",
    "when",
]

#: Where the names are that need more than the library does.
_LATER = {"LogContract": "log_contract", "aggregate_machine": "machine", "events": "strategies"}


def __getattr__(name: str) -> Any:
    module = _LATER.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("hypothesis", "pytest"):
            raise
        raise ImportError(
            f"{__name__}.{name} needs {error.name}: pip install {error.name}", name=error.name
        ) from error


def __dir__() -> list[str]:
    return __all__
