"""The examples of docs/testing.md run, in order, in one program; and so do the tests in it."""

from __future__ import annotations

import re
from pathlib import Path

from programs import run_examples

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
    printed = run_examples(blocks, tmp_path)
    assert printed.split() == ["TestAccount", "TestSmallSums"]


def test_every_name_of_the_kit_is_on_the_page() -> None:
    types_of_results = {"Given", "Happened", "Outcome", "ReadModel"}
    for name in set(eventstore.testing.__all__) - types_of_results:
        assert re.search(rf"\b{name}\b", TEXT), name
