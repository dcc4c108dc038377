"""The examples of docs/testing.md run, in order, in one program; and so do the tests in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import eventstore.testing

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
TEXT = PAGE.read_text(encoding="utf-8")

RUN = """
{0}.settings = hypothesis.settings(max_examples=5, deadline=None)
{0}("runTest").debug()
print("{0}")
"""


def test_the_examples_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) > 10
    for number, block in enumerate(blocks):
        cases = re.findall(r"^(Test\w+) =", block, re.MULTILINE)
        blocks[number] += "".join(map(RUN.format, cases))
    # A program of its own: its classes have names that others have too.
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks), encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["TestAccount", "TestSmallSums"]


def test_every_name_of_the_kit_is_on_the_page() -> None:
    types_of_results = {"Given", "Happened", "Outcome", "ReadModel"}
    for name in set(eventstore.testing.__all__) - types_of_results:
        assert re.search(rf"\b{name}\b", TEXT), name
