"""Promises are kept whatever dies: the short form of `make faults`.

`EVENTSTORE_FAULTS_SEED` has one run's choices again (the moments are the machine's).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from campaign import Counts
from processes import Victim
from sqlite_campaign import SqliteCampaign


@pytest.mark.parametrize(
    "kinds", [["sqlite full", "sqlite normal"], ["postgres on", "postgres off"]]
)
def test_a_round_on_each_kind_of_database_breaks_no_promise(kinds: list[str]) -> None:
    # In a process of its own, since it forks.
    program = Path(__file__).parent / "run.py"
    options = ["--most", "2", "--rounds", "1", "--seconds", "0.7", "--kinds", *kinds]
    if seed := os.environ.get("EVENTSTORE_FAULTS_SEED"):
        options += ["--seed", seed]
    done = subprocess.run([sys.executable, program, *options], capture_output=True, text=True)
    print(done.stdout)  # noqa: T201
    assert done.returncode == 0, done.stderr


def test_another_program_may_be_a_victim(tmp_path: Path) -> None:
    checked = []
    victim = Victim(
        "sleeper",
        lambda place: ["sh", "-c", f"exec sleep 60 {place.after}"],
        check=lambda store, places: checked.append((store.head(), len(places))),
    )
    counts = Counts(Counter(), Counter(), Counter(), Counter())
    campaign = SqliteCampaign("full", tmp_path, "sleep", counts, [victim])
    campaign.begin()
    campaign.round(0.4)
    campaign.close()
    assert checked[0][0] == 0
    assert counts.rounds == {"rounds": 1}
