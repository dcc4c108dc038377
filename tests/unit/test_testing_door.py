"""The door of the testing kit: what it shows, and what importing it costs."""

from __future__ import annotations

import pytest
from programs import run_python

import eventstore.testing

SCRIPT = """
import sys
sys.modules["hypothesis"] = sys.modules["pytest"] = None  # as if they were not installed
import eventstore.testing as kit
kit.FrozenClock, kit.given, kit.memory_store().close()
"""


def run(more: str) -> str:
    return run_python("-c", SCRIPT + more)


def test_every_name_is_there_and_documented() -> None:
    for name in eventstore.testing.__all__:
        value = getattr(eventstore.testing, name)
        assert name == "Happened" or value.__doc__, name
    assert dir(eventstore.testing) == sorted(eventstore.testing.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        eventstore.testing.nothing  # noqa: B018


def test_scenarios_need_neither_pytest_nor_hypothesis() -> None:
    run("")


@pytest.mark.parametrize(
    ("name", "needed"),
    [("events", "hypothesis"), ("aggregate_machine", "hypothesis"), ("LogContract", "pytest")],
)
def test_what_needs_more_says_what_to_install(name: str, needed: str) -> None:
    printed = run(f"""
try:
    from eventstore.testing import {name}
except ImportError as error:
    print(error)
""")
    assert printed == f"eventstore.testing.{name} needs {needed}: pip install {needed}\n"
