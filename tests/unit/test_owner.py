"""A lease's owner: when another process may be said to have died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from eventstore.followers import owner
from eventstore.followers.owner import has_died, new_owner

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/stat"), reason="without /proc nobody is said to have died"
)

OTHER = """
import sys
from eventstore.followers.owner import new_owner
print(new_owner(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process, and its name as an owner."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def test_each_owner_has_a_name_of_its_own() -> None:
    assert len({new_owner() for _ in range(100)}) == 100


def test_a_process_that_lives_has_not_died(other: tuple[subprocess.Popen[str], str]) -> None:
    assert not has_died(new_owner())
    assert not has_died(other[1])


def test_a_stopped_process_has_not_died(other: tuple[subprocess.Popen[str], str]) -> None:
    process, name = other
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert not has_died(name)


def test_a_killed_process_has_died_though_nobody_has_asked_for_its_status(
    other: tuple[subprocess.Popen[str], str],
) -> None:
    process, name = other
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie
    assert has_died(name)
    process.wait()
    assert has_died(name)


def test_a_later_process_with_the_same_number_is_another_one() -> None:
    host, pid, rest = new_owner().split(":", 2)
    start, place = rest.split("@")
    assert not has_died(f"{host}:{pid}:{start}@{place}")
    assert has_died(f"{host}:{pid}:{int(start) + 1}@{place}")


def test_of_other_machines_and_containers_nothing_is_known(
    other: tuple[subprocess.Popen[str], str],
) -> None:
    process, name = other
    process.kill()
    process.wait()
    program, place = name.split("@")
    assert not has_died(f"{program}@another-{place}")
    assert not has_died(f"another-{name}")


def test_where_the_place_is_unknown_nobody_has_died(
    other: tuple[subprocess.Popen[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, name = other
    process.kill()
    process.wait()
    monkeypatch.setattr(owner, "_place", lambda: "")
    program, _, token = name.partition("@")[0], *name.rpartition(":")[1:]
    assert not has_died(f"{program}@:{token}")


def test_a_process_that_is_hidden_from_us_has_not_died(monkeypatch: pytest.MonkeyPatch) -> None:
    name = new_owner()
    monkeypatch.setattr(owner, "_process", lambda pid: ("", False))  # as with hidepid=2
    assert not has_died(name)


@pytest.mark.parametrize("name", ["", "worker", "a:b:c@d:e", "host:1:2", "host:x:1@place:0"])
def test_names_that_somebody_else_has_made_say_nothing(name: str) -> None:
    assert not has_died(name)
