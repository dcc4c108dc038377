"""A fingerprint changes when what a fold does may have changed, and else stays."""

from __future__ import annotations

import itertools
import subprocess
import sys
import types
from collections.abc import Iterator
from textwrap import dedent, indent
from typing import Any

import pytest

from eventstore.event import _by_name
from eventstore.fingerprint import fingerprint

DOMAIN = dedent("""
    from __future__ import annotations
    import functools, re
    from dataclasses import dataclass
    from decimal import Decimal
    from enum import Enum
    from eventstore import Aggregate, Event, on

    RATE = Decimal("0.19")
    PATTERN = re.compile("a+")
    TABLE = {"x": [1, (2, 3)], "y": {4, 5}}

    class Color(Enum):
        RED = 1

    @dataclass(frozen=True)
    class Rules:
        limit: int = 3

        def allows(self, n):
            return n < self.limit

    RULES = Rules()
    CHOSEN = Color.RED

    def outer(n):
        return inner(n) + 1

    def inner(n):
        return n * 2

    class Money(Event, name="fp-money"):
        cents: int
        owner: Person

    @dataclass
    class Person:
        first: str

        def full(self):
            return self.first + "!"

    partial = functools.partial(inner, 7)

    def times(n):
        def multiply(value):
            return value * n
        return multiply

    closure = times(3)

    class Parent(Aggregate, stream="fp/{id}"):
        def helper(self, n):
            return n + 10

    class Account(Parent, stream="fp-account/{id}"):
        total: int = 0
        names: list[str] = []

        @property
        def shown(self):
            return self.total + 4

        @staticmethod
        def fixed(n):
            return n + 20

        def helper(self, n):
            return super().helper(n)

        def command(self):
            return "not part of a fold"

        @on(Money)
        def _money(self, event: Money) -> None:
            self.total += outer(event.cents) + self.helper(1) + self.fixed(2) + self.shown
            self.names.append(event.owner.full())
            if PATTERN.match("a") and RULES.allows(3) and CHOSEN is Color.RED:
                self.total += int(RATE) + TABLE["x"][0] + partial() + closure(1)
            self.names = [name for name in self.names if len(name) > 1000]
""")

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _names() -> Iterator[None]:
    kept = dict(_by_name)
    yield
    _by_name.clear()
    _by_name.update(kept)


def digest(source: str) -> bytes:
    _by_name.pop("fp-money", None)
    module = types.ModuleType("fingerprinted")
    sys.modules["fingerprinted"] = module
    try:
        exec(compile(source, f"file{next(_numbers)}", "exec"), vars(module))
        found: type[Any] = module.Account
        return fingerprint(found)
    finally:
        del sys.modules["fingerprinted"]


def test_the_same_source_has_the_same_fingerprint() -> None:
    assert digest(DOMAIN) == digest(DOMAIN)
    assert len(digest(DOMAIN)) == 16


def test_another_process_agrees() -> None:
    script = "import sys, types\n"
    script += "m = sys.modules['fingerprinted'] = types.ModuleType('fingerprinted')\n"
    script += f"exec({DOMAIN!r}, vars(m))\n"
    script += "from eventstore.fingerprint import fingerprint\n"
    script += "print(fingerprint(m.Account).hex())"
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {digest(DOMAIN).hex()}


SAME = {
    "comments and blank lines": ("def outer(n):", "\n\n# why\ndef outer(n):  # how"),
    "a command": ("not part of a fold", "another command"),
    "what is not named": ("RULES = Rules()", "RULES = Rules()\nUNUSED = 7"),
}


@pytest.mark.parametrize(("old", "new"), SAME.values(), ids=SAME.keys())
def test_what_a_fold_does_not_use_changes_nothing(old: str, new: str) -> None:
    assert old in DOMAIN
    assert digest(DOMAIN.replace(old, new)) == digest(DOMAIN)


OTHER = {
    "a handler": ("self.total += outer", "self.total -= outer"),
    "a number in a handler": ("> 1000", "> 1001"),
    "a function": ("inner(n) + 1", "inner(n) + 2"),
    "a function that it calls": ("n * 2", "n * 3"),
    "a method": ("return super().helper(n)", "return super().helper(n) + 1"),
    "a method behind super()": ("n + 10", "n + 11"),
    "a static method": ("n + 20", "n + 21"),
    "a property": ("self.total + 4", "self.total + 5"),
    "a decimal": ('Decimal("0.19")', 'Decimal("0.25")'),
    "a pattern": ('"a+"', '"b+"'),
    "a value deep in a container": ("(2, 3)", "(2, 4)"),
    "a value in a set": ("{4, 5}", "{4, 6}"),
    "an enum": ("RED = 1", "RED = 2"),
    "a dataclass's default": ("limit: int = 3", "limit: int = 4"),
    "an instance": ("RULES = Rules()", "RULES = Rules(9)"),
    "a method of an instance": ("n < self.limit", "n <= self.limit"),
    "a method of an event's value": ('self.first + "!"', 'self.first + "?"'),
    "what a partial holds": ("partial(inner, 7)", "partial(inner, 8)"),
    "what a closure holds": ("times(3)", "times(4)"),
    "a default": ("total: int = 0", "total: int = 1"),
    "a mutable default": ("names: list[str] = []", 'names: list[str] = ["x"]'),
    "the state's schema": ("total: int = 0", "total: float = 0"),
    "a new attribute": ("total: int = 0", "total: int = 0\n    more: int = 0"),
    "an event's schema": ("owner: Person\n", "owner: Person\n    more: int = 0\n"),
    "an event's name": ('name="fp-money"', 'name="fp-cash"'),
}


@pytest.mark.parametrize(("old", "new"), OTHER.values(), ids=OTHER.keys())
def test_what_a_fold_depends_on_changes_it(old: str, new: str) -> None:
    assert old in DOMAIN
    assert digest(DOMAIN.replace(old, new)) != digest(DOMAIN)


def test_recursion_ends() -> None:
    looped = DOMAIN.replace(
        "    return n * 2", indent("return outer(n - 1) if n > 0 else 0", "    ")
    )
    assert digest(looped) == digest(looped) != digest(DOMAIN)


def test_a_container_that_holds_itself_ends() -> None:
    looped = DOMAIN.replace("class Color(", 'TABLE["self"] = TABLE\n\nclass Color(', 1)
    assert digest(looped) == digest(looped) != digest(DOMAIN)
