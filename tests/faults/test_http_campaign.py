"""What `eventstore serve` has answered is kept, whatever dies: the short form, and its check."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from http_checking import Found, check
from http_wire import Batch, Followed, Forked, Report


@pytest.mark.parametrize("kind", ["sqlite http", "postgres http"])
def test_a_round_with_servers_that_die_breaks_no_promise(kind: str) -> None:
    program = Path(__file__).parent / "run.py"
    options = ["--most", "1", "--seconds", "0.8", "--kinds", kind]
    if seed := os.environ.get("EVENTSTORE_FAULTS_SEED"):
        options += ["--seed", seed]
    done = subprocess.run([sys.executable, program, *options], capture_output=True, text=True)
    print(done.stdout)  # noqa: T201
    assert done.returncode == 0, done.stderr
    assert "| fault: kill of a server" in done.stdout


S = "http-1/json-0"


def report() -> Report:
    """Three batches of a producer, one that nobody knows of, an end, a fork, and a reader."""
    batches = [
        Batch(S, "a", 2, ("p", 0, 0), outcome="acknowledged", version=1, sent=2),
        Batch(S, "b", 1, outcome="unknown", sent=1),
        Batch(S, "c", 1, ("p", 0, 1), outcome="acknowledged", version=3, sent=1),
        Batch(S, "d", 1, outcome="refused", sent=1),
        Batch(S, "e", 1, ("p", 1, 0), closes=True, outcome="acknowledged", sent=3),
        Batch(f"{S}/fork", "f", 1, ("p", 0, 0), outcome="acknowledged", version=3, sent=1),
    ]
    followed = [Followed(S, 0, 4, ["a/0", "a/1", "b/0", "c/0", "e/0"], True)]
    return Report(batches, [Forked(f"{S}/fork", S, 2)], followed)


WHOLE = [(1, "a/0"), (1, "a/1"), (2, "b/0"), (3, "c/0"), (4, "e/0")]
FORK = [*WHOLE[:3], (3, "f/0")]


def wrong(stream: list[tuple[int, str]], *, closed: bool = True, fork: object = FORK) -> list[str]:
    found = {S: Found(stream, closed), f"{S}/fork": Found(fork, False)}  # type: ignore[arg-type]
    return list(check(report(), found))


def test_a_history_that_is_right_is_found_right() -> None:
    assert wrong(WHOLE) == []


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        ([*WHOLE[:3], (3, "e/0")], "'c', .*is there 0 times"),
        ([*WHOLE[:3], WHOLE[2], *WHOLE[3:]], "'b', .*is there 2 times"),
        ([*WHOLE[:4], (4, "c/0"), (5, "e/0")], "'c', .*is there 2 times"),
        ([*WHOLE[1:]], "in part"),
        ([WHOLE[0], WHOLE[2], WHOLE[1], *WHOLE[3:]], "in part"),
        ([*WHOLE[:4], (4, "d/0"), (5, "e/0")], "'d', .*is there 1 times"),
        ([*WHOLE[:4], (4, "x/0"), (5, "e/0")], "nobody has appended"),
        ([*WHOLE[:3], (3, "e/0"), (4, "c/0")], "comes after .1, 0."),
        ([*WHOLE[:3], (3, "e/0"), (4, "c/0")], "is closed, and its last is"),
        ([*WHOLE[:3], (4, "c/0"), (5, "e/0")], "'c'.* is at .*4"),
        ([*WHOLE[:2], (2, "c/0"), (3, "e/0")], "a reader .* was given .'b/0'. that are not there"),
    ],
)
def test_what_is_lost_doubled_or_turned_around_is_found(
    stream: list[tuple[int, str]], said: str
) -> None:
    with pytest.raises(AssertionError, match=said):
        assert not wrong(stream), "\n".join(wrong(stream))


def test_an_end_that_is_gone_is_found() -> None:
    assert any("was closed, and is open" in text for text in wrong(WHOLE, closed=False))
    assert any("and it is not" in text for text in wrong(WHOLE, closed=False))


def test_a_fork_of_another_past_is_found() -> None:
    assert any("as its source" in text for text in wrong(WHOLE, fork=FORK[1:]))
