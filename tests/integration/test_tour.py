"""The tour, which is the contract of the public API, runs on every database; on asyncio too."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(tour: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / tour), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("tour", ["tour.py", "async_tour.py"])
def test_the_tour_runs_embedded(tour: str) -> None:
    assert run(tour).endswith("tour complete\n")


@pytest.mark.parametrize("tour", ["tour.py", "async_tour.py"])
def test_the_tour_runs_on_postgresql(tour: str, postgres_url: str) -> None:
    assert run(tour, postgres_url).endswith("tour complete\n")
