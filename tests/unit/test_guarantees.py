"""docs/guarantees.md: each promise names tests, and they are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([\w/.]+\.py)::(\w+)`", TEXT)


def test_every_test_that_is_named_exists() -> None:
    assert len(NAMED) > 50
    for path, name in NAMED:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^ *(async )?def {name}\(", source, re.MULTILINE), (path, name)


def test_every_promise_names_a_test() -> None:
    promises = re.findall(r"^- \*\*(.*?)\n(?=- \*\*|\n)", TEXT, re.MULTILINE | re.DOTALL)
    assert len(promises) > 25
    for promise in promises:
        assert "::test_" in promise, promise


def test_every_promise_of_the_readme_is_among_them() -> None:
    """At least as many as the README's table has rows."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.split("## What is promised")[1].split("\n\n")[1]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert "guarantees.md" in readme
    assert len(rows) <= len(re.findall(r"^- \*\*", TEXT, re.MULTILINE))
