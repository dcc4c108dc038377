"""The tour, which is the contract of the public API, runs as a program on every database."""

import subprocess
import sys
from pathlib import Path

TOUR = Path(__file__).parents[2] / "examples" / "tour.py"


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(TOUR), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_tour_runs_embedded() -> None:
    assert run().endswith("tour complete\n")


def test_the_tour_runs_on_postgresql(postgres_url: str) -> None:
    assert run(postgres_url).endswith("tour complete\n")
