"""What type checkers make of the library: tests/typing, read by mypy and by pyright.

Both must find there exactly the mistakes that are marked. A mark that one of them does not need is
an error too, so a hole in the inference cannot hide behind it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

ROOT = Path(__file__).parents[2]
READ = "tests/typing"

Checker: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]

#: What either checker must report: here, where no mark says that it is expected.
WRONG = """\
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from eventstore import Aggregate, Event, EventStore, on

class Sold(Event):
    amount: int

class Shop(Aggregate):
    def sell(self, amount: int) -> None: ...

    @on(Sold)
    def _sold(self, event: Sold) -> None: ...

def sell(store: EventStore) -> None:
    store.transact(Shop, "x", Shop.sell, {argument}){mark}
"""


def mypy(*options: str) -> subprocess.CompletedProcess[str]:
    return run("mypy", "--strict", "--warn-unused-ignores", *options)


def pyright(*options: str) -> subprocess.CompletedProcess[str]:
    # Which Python: else it takes the first one in PATH, where the library may not be.
    return run("pyright", "--pythonpath", sys.executable, *options)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        # It looks for a newer version of itself, which takes a while where there is no network.
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_checker_finds_the_marked_mistakes_and_no_others(checker: Checker) -> None:
    read = checker(READ)
    assert read.returncode == 0, read.stdout + read.stderr


def test_pyright_is_told_to_look_for_marks_without_need() -> None:
    for file in (ROOT / READ).glob("*.py"):
        assert "reportUnnecessaryTypeIgnoreComment=true" in file.read_text(), file


@pytest.mark.parametrize("checker", [mypy, pyright])
@pytest.mark.parametrize(
    ("argument", "mark", "passes"),
    [
        ("3", "", True),
        ('"3"', "", False),
        ('"3"', "  # type: ignore[arg-type]", True),
        ("3", "  # type: ignore[arg-type]", False),
    ],
    ids=["right", "wrong", "marked", "marked-in-vain"],
)
def test_a_checker_reports_what_is_not_marked(
    checker: Checker, argument: str, mark: str, passes: bool, tmp_path: Path
) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(WRONG.format(argument=argument, mark=mark))
    read = checker(str(file))
    assert (read.returncode == 0) is passes, read.stdout + read.stderr
