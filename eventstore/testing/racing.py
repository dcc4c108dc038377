"""The part of the contract about many writers at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from eventstore.errors import StreamDeletedError, WrongExpectedVersionError
from eventstore.log.base import Log, Receipt, Write
from eventstore.testing.drafts import add, all_rows, drafts, rows

WRITERS = 20
EACH = 10


def race(work: Callable[[int], list[Receipt]]) -> list[Receipt]:
    """Run it in twenty threads; what they all were acknowledged."""
    with ThreadPoolExecutor(WRITERS) as threads:
        return [receipt for receipts in threads.map(work, range(WRITERS)) for receipt in receipts]


class RacingContract:
    """No acknowledged append is lost, and none is seen twice."""

    def test_each_version_has_one_winner(self, log: Log) -> None:
        def work(writer: int) -> list[Receipt]:
            won: list[Receipt] = []
            while len(won) < EACH:
                head = log.stream("hot/1")
                version = head.version if head else 0
                event = drafts(data=b"%d %d" % (writer, version + 1))
                with contextlib.suppress(WrongExpectedVersionError):
                    won += log.append([Write("hot/1", event, version)])
            return won

        receipts = race(work)
        stored = rows(log, "hot/1")
        assert sorted(receipt.version for receipt in receipts) == list(range(1, WRITERS * EACH + 1))
        assert {(receipt.version, receipt.position) for receipt in receipts} == {
            (row.version, row.position) for row in stored
        }
        assert all(row.data.endswith(b" %d" % row.version) for row in stored)

    def test_one_new_stream_has_one_creator(self, log: Log) -> None:
        def work(number: int) -> list[Receipt]:
            try:
                return list(log.append([Write("new/1", drafts(number % 2 + 1), 0)]))
            except WrongExpectedVersionError:
                return []

        (receipt,) = race(work)
        assert len(rows(log, "new/1")) == receipt.version

    def test_writers_that_expect_nothing_all_get_in(self, log: Log) -> None:
        receipts = race(lambda _: [add(log, "hot/1", 1 + n % 3) for n in range(EACH)])
        stored = rows(log, "hot/1")
        assert [row.version for row in stored] == list(range(1, len(stored) + 1))
        assert len(stored) == sum(1 + n % 3 for n in range(EACH)) * WRITERS
        assert len(receipts) == WRITERS * EACH
        positions, times = zip(*((row.position, row.recorded_at) for row in stored), strict=True)
        assert list(positions) == sorted(set(positions))
        assert list(times) == sorted(times)
        assert {(r.version, r.position, r.recorded_at) for r in receipts} <= {
            (row.version, row.position, row.recorded_at) for row in stored
        }

    def test_writers_of_several_streams_in_any_order_all_get_in(self, log: Log) -> None:
        names = [f"hot/{number}" for number in range(4)]

        def work(writer: int) -> list[Receipt]:
            order = names if writer % 2 else names[::-1]
            writes = [Write(name, drafts()) for name in order[writer % 3 :]]
            return [receipt for _ in range(EACH) for receipt in log.append(writes)]

        receipts = race(work)
        assert len(all_rows(log)) == len(receipts)
        for name in names:
            stored = rows(log, name)
            assert [row.version for row in stored] == list(range(1, len(stored) + 1))

    def test_new_event_types_are_made_once(self, log: Log) -> None:
        race(lambda writer: [add(log, f"a/{writer}", type=f"t{n}") for n in range(EACH)])
        keys = {(row.type, log.event_type(row.type).name) for row in all_rows(log)}
        assert len(keys) == EACH

    def test_a_deletion_among_appends_closes_the_stream(self, log: Log) -> None:
        add(log, "hot/1")

        def work(writer: int) -> list[Receipt]:
            try:
                if writer == WRITERS // 2:
                    return [log.delete("hot/1")]
                return [add(log, "hot/1") for _ in range(EACH)]
            except StreamDeletedError:
                return []

        race(work)
        (tombstone,) = rows(log, "hot/1")
        head = log.stream("hot/1")
        assert head is not None
        assert (head.deleted, head.version) == (True, tombstone.version)
