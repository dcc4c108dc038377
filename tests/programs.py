"""Python programs of their own: to each a warning is an error, and it finds what this one finds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def run_python(*arguments: str, folder: Path | None = None) -> str:
    """What it has printed. It must succeed."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def run_examples(blocks: Sequence[str], folder: Path) -> str:
    """Run the examples of a page as one program: its classes have names that others have too."""
    program = folder / "page.py"
    program.write_text("\n".join(blocks), encoding="utf-8")
    return run_python(str(program), folder=folder)


def imported_by(*modules: str) -> set[str]:
    """The names of all modules that are there when these have been imported."""
    return set(run_python("-c", f"import sys, {', '.join(modules)}; print(*sys.modules)").split())
