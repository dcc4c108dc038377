"""The part of the contract about snapshots."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from eventstore.log.base import Bounds, Log, Snapshot
from eventstore.testing.drafts import EVERYTHING, add, folded

ONE, OTHER = b"1" * 16, b"2" * 16


class SnapshotContract:
    """A fold starts from the latest snapshot that its bounds and its fingerprint allow."""

    @pytest.fixture
    def snapshots(self, log: Log) -> list[Snapshot]:
        """Those at versions 2, 4, 6 and 8 of ten events, whose times are their versions."""
        receipts = [add(log, "a/1", recorded_at=version) for version in range(1, 11)]
        kept = [
            Snapshot(
                receipt.version, receipt.position, receipt.recorded_at, b"%d" % receipt.version
            )
            for receipt in receipts[1:8:2]
        ]
        for snapshot in reversed(kept):
            log.save_snapshot("a/1", ONE, snapshot)
        return kept

    @pytest.mark.parametrize(
        ("bounds", "version", "following"),
        [
            (EVERYTHING, 8, 2),
            (Bounds(version=8), 8, 0),
            (Bounds(version=7), 6, 1),
            (Bounds(version=1), None, 1),
            (Bounds(recorded_at=5), 4, 1),
            (Bounds(recorded_at=4), 4, 0),
            (Bounds(version=9, recorded_at=3), 2, 1),
            (Bounds(recorded_at=0), None, 0),
        ],
    )
    def test_a_fold_uses_the_latest_within_its_bounds(
        self,
        log: Log,
        snapshots: list[Snapshot],
        bounds: Bounds,
        version: int | None,
        following: int,
    ) -> None:
        expected = next((each for each in snapshots if each.version == version), None)
        snapshot, events = folded(log, "a/1", 0, bounds, ONE)
        assert (snapshot, len(events)) == (expected, following)

    def test_a_position_bounds_snapshots_too(self, log: Log, snapshots: list[Snapshot]) -> None:
        until = Bounds(position=snapshots[2].position)
        assert folded(log, "a/1", 0, until, ONE) == (snapshots[2], [])
        until = Bounds(position=snapshots[2].position - 1)
        assert folded(log, "a/1", 0, until, ONE)[0] == snapshots[1]

    def test_only_one_of_the_right_fingerprint_is_used(
        self, log: Log, snapshots: list[Snapshot]
    ) -> None:
        log.save_snapshot("a/1", OTHER, snapshots[0])
        assert folded(log, "a/1", 0, EVERYTHING, OTHER)[0] == snapshots[0]
        assert folded(log, "a/1", 0, EVERYTHING, b"3" * 16) == folded(log, "a/1")
        assert len(folded(log, "a/1")[1]) == 10

    def test_one_that_says_nothing_new_is_passed_over(
        self, log: Log, snapshots: list[Snapshot]
    ) -> None:
        snapshot, events = folded(log, "a/1", 8, EVERYTHING, ONE)
        assert (snapshot, len(events)) == (None, 2)
        snapshot, events = folded(log, "a/1", 7, EVERYTHING, ONE)
        assert (snapshot, len(events)) == (snapshots[-1], 2)

    def test_the_tail_after_one_may_be_long(self, log: Log, snapshots: list[Snapshot]) -> None:
        add(log, "a/1", 2_500)
        snapshot, events = folded(log, "a/1", 0, EVERYTHING, ONE)
        assert (snapshot, len(events)) == (snapshots[-1], 2_502)

    def test_saving_one_again_changes_nothing(self, log: Log, snapshots: list[Snapshot]) -> None:
        def save(_: int) -> None:
            log.save_snapshot("a/1", ONE, snapshots[0])
            log.save_snapshot("a/1", OTHER, snapshots[1])

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(save, range(40)))
        assert log.delete_snapshots("a/1") == 5

    def test_deleting_them_deletes_nothing_else(self, log: Log, snapshots: list[Snapshot]) -> None:
        add(log, "b/1")
        log.save_snapshot("b/1", ONE, snapshots[0])
        assert log.delete_snapshots("b/1") == 1
        assert folded(log, "a/1", 0, EVERYTHING, ONE)[0] == snapshots[-1]
        assert log.delete_snapshots() == 4
        snapshot, events = folded(log, "a/1", 0, EVERYTHING, ONE)
        assert (snapshot, len(events)) == (None, 10)
        assert log.delete_snapshots() == 0

    def test_a_deleted_stream_keeps_none_and_gets_none(
        self, log: Log, snapshots: list[Snapshot]
    ) -> None:
        log.delete("a/1")
        log.save_snapshot("a/1", ONE, snapshots[0])
        log.save_snapshot("never/1", ONE, snapshots[0])
        assert log.delete_snapshots() == 0
        snapshot, events = folded(log, "a/1", 0, EVERYTHING, ONE)
        assert (snapshot, len(events)) == (None, 1)
