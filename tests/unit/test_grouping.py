"""Group commit: who shares a transaction, and what each caller is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from eventstore.errors import LogUnavailableError, WrongExpectedVersionError
from eventstore.log.base import Receipt, Write
from eventstore.log.grouping import GroupCommit, Request
from eventstore.testing.drafts import drafts


class Commits:
    """A log that notes who was committed with whom, and can be held up."""

    def __init__(self, places: int = 1) -> None:
        self.alone: list[str] = []
        self.groups: list[list[str]] = []
        self.held = threading.Event()
        self.go = threading.Event()
        self.settle: Callable[[Request], None] = self.written
        self.group = GroupCommit(places, self._alone, self._together)

    def _alone(
        self, writes: Sequence[Write], key: str | None, recorded_at: int | None
    ) -> tuple[Receipt, ...]:
        name = writes[0].stream
        if name == "slow":
            self.held.set()
            assert self.go.wait(30)
        self.alone.append(name)
        return (Receipt(name, 1, 1, 1),)

    def _together(self, requests: Sequence[Request]) -> None:
        self.groups.append([request.writes[0].stream for request in requests])
        for request in requests:
            self.settle(request)

    def written(self, request: Request) -> None:
        request.receipts = (Receipt(request.writes[0].stream, 2, 2, 2),)

    def append(self, name: str) -> Receipt:
        return self.group.append([Write(name, drafts())], None, None)[0]

    def meanwhile(self, names: Sequence[str]) -> list[Future[Receipt]]:
        """Appends that arrive while a slow one has the place."""
        with ThreadPoolExecutor(len(names) + 1) as threads:
            slow = threads.submit(self.append, "slow")
            assert self.held.wait(30)
            waiting = [threads.submit(self.append, name) for name in names]
            while len(self.group._waiting) < len(names):
                pass
            self.go.set()
            assert slow.result(30) == Receipt("slow", 1, 1, 1)
        return waiting


def test_a_lone_append_is_on_its_own() -> None:
    commits = Commits()
    assert [commits.append(name).version for name in "aab"] == [1, 1, 1]
    assert (commits.alone, commits.groups) == (["a", "a", "b"], [])


def test_what_arrives_meanwhile_is_committed_together() -> None:
    commits = Commits()
    receipts = [each.result() for each in commits.meanwhile("abcde")]
    assert sorted(commits.groups[0]) == list("abcde")
    assert receipts == [Receipt(name, 2, 2, 2) for name in "abcde"]
    assert commits.append("after").version == 1  # the place is free again


def test_a_conflict_of_one_is_not_the_failure_of_another() -> None:
    commits = Commits()

    def settle(request: Request) -> None:
        if request.writes[0].stream == "b":
            request.error = WrongExpectedVersionError("b", 1, 2)
        else:
            commits.written(request)

    commits.settle = settle
    a, b, c = commits.meanwhile("abc")
    assert (a.result().stream, c.result().stream) == ("a", "c")
    with pytest.raises(WrongExpectedVersionError):
        b.result()


def test_what_a_group_leaves_open_is_done_alone() -> None:
    commits = Commits()
    commits.settle = lambda request: None
    receipts = [each.result() for each in commits.meanwhile("abc")]
    assert [receipt.version for receipt in receipts] == [1, 1, 1]
    assert sorted(commits.alone) == ["a", "b", "c", "slow"]


def test_a_group_whose_end_nobody_knows_fails_as_one() -> None:
    commits = Commits()

    def settle(request: Request) -> None:
        commits.written(request)
        raise LogUnavailableError("gone", "unknown")

    commits.settle = settle
    failed = [each.exception() for each in commits.meanwhile("abc")]
    assert [type(error) for error in failed] == [LogUnavailableError] * 3
    assert len({id(error) for error in failed}) == 3
    assert commits.alone == ["slow"]
    assert commits.append("after").version == 1
