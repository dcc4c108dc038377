"""The part of the contract about reading."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import pytest

from eventstore.log.base import (
    EVERY_EVENT,
    Bounds,
    Frontier,
    Log,
    Shard,
    StreamInfo,
    Wanted,
    Write,
)
from eventstore.testing.drafts import EVERYTHING, abandon, add, all_rows, drafts, folded, rows

#: In the order of code points, which is neither that of UTF-16 nor that of any language.
IN_ORDER = ("c/A", "c/Z", "c/a", "c/z", "c/\u00e9", "c/\uff21", "c/\U0001d400")


def versions(log: Log, after: int, until: Bounds, limit: int, backwards: bool = False) -> list[int]:
    read = log.read("a/1", after, until, limit=limit, backwards=backwards)
    return [row.version for row in read]


class ReadingContract:
    """Streams, the whole log, folds, heads."""

    @pytest.mark.parametrize(
        ("after", "until", "limit", "backwards", "found"),
        [
            (0, EVERYTHING, 9, False, [1, 2, 3, 4, 5]),
            (0, EVERYTHING, 2, False, [1, 2]),
            (3, EVERYTHING, 9, False, [4, 5]),
            (5, EVERYTHING, 9, False, []),
            (1, Bounds(version=3), 9, False, [2, 3]),
            (0, EVERYTHING, 2, True, [5, 4]),
            (3, EVERYTHING, 9, True, [5, 4]),
            (1, Bounds(version=4), 2, True, [4, 3]),
            (0, Bounds(recorded_at=3_000), 9, False, [1, 2, 3]),
            (0, Bounds(recorded_at=2_999), 9, False, [1, 2]),
            (0, Bounds(recorded_at=999), 9, False, []),
            (0, Bounds(version=2, recorded_at=5_000), 9, True, [2, 1]),
            (0, EVERYTHING, 0, False, []),
        ],
    )
    def test_reading_a_stream(
        self,
        log: Log,
        after: int,
        until: Bounds,
        limit: int,
        backwards: bool,
        found: list[int],
    ) -> None:
        for number in range(1, 6):
            add(log, "a/1", recorded_at=number * 1_000)
            add(log, "a/2")
        assert versions(log, after, until, limit, backwards) == found

    def test_a_position_bounds_a_stream(self, log: Log) -> None:
        positions = [add(log, stream).position for stream in ("a/1", "b/1", "a/1", "a/1")]
        assert versions(log, 0, Bounds(position=positions[0]), 9) == [1]
        assert versions(log, 0, Bounds(position=positions[1]), 9) == [1]
        assert versions(log, 0, Bounds(position=positions[2]), 9) == [1, 2]

    def test_a_stream_that_is_not_there_has_no_rows(self, log: Log) -> None:
        assert list(log.read("a/1", 0, EVERYTHING, limit=9)) == []
        assert folded(log, "a/1") == (None, [])
        assert log.stream("a/1") is None

    def test_types_of_a_stream(self, log: Log) -> None:
        for type in ("up", "down", "up", "left"):
            add(log, "a/1", type=type)
        for types, found in ((["up"], [1, 3]), (["left", "down"], [2, 4]), (["x"], []), ([], [])):
            read = log.read("a/1", 0, EVERYTHING, limit=9, types=types)
            assert [row.version for row in read] == found
        backwards = log.read("a/1", 0, EVERYTHING, limit=1, backwards=True, types=iter(["up"]))
        assert [row.version for row in backwards] == [3]

    def test_sizes_are_known_without_the_payloads(self, log: Log) -> None:
        for data in (b"", b"{}", b"\x00" * 5_000, "é".encode()):
            log.append([Write("a/1", drafts(data=data))])
        add(log, "b/1")
        assert list(log.sizes("a/1", 0, 9, 10)) == [0, 2, 5_000, 2]
        assert list(log.sizes("a/1", 1, 3, 10)) == [2, 5_000]
        assert list(log.sizes("a/1", 0, 9, 1)) == [0]
        assert list(log.sizes("c/1", 0, 9, 10)) == []

    def test_the_whole_log_is_read_in_the_order_of_positions(self, log: Log) -> None:
        for number in range(12):
            add(log, f"{'ab'[number % 2]}/{number % 3}", 2)
        read = all_rows(log)
        assert len(read) == 24
        positions = [row.position for row in read]
        assert positions == sorted(set(positions))
        half = positions[11]
        assert all_rows(log, Bounds(position=half)) == read[:12]
        assert log.read_all(half, EVERYTHING, limit=5) == read[12:17]
        assert log.read_all(half, EVERYTHING, limit=5, backwards=True) == read[:18:-1]
        assert log.read_all(positions[3], Bounds(position=half), limit=99) == read[4:12]
        assert log.read_all(positions[-1], EVERYTHING, limit=99) == []

    def test_categories_and_types_of_the_whole_log(self, log: Log) -> None:
        for stream, type in (("a/1", "up"), ("b/1", "up"), ("a/2", "down"), ("ab/1", "up")):
            add(log, stream, type=type)

        def streams(categories: list[str] | None, types: list[str] | None) -> list[str]:
            wanted = Wanted(types, categories)
            read = log.read_all(0, EVERYTHING, limit=9, wanted=wanted)
            return [row.stream for row in read]

        assert streams(["a"], None) == ["a/1", "a/2"]
        assert streams(["ab", "b"], None) == ["b/1", "ab/1"]
        assert streams(None, ["down"]) == ["a/2"]
        assert streams(["a", "b"], ["up"]) == ["a/1", "b/1"]
        assert streams([], None) == streams(None, []) == streams(["z"], None) == []

    def test_a_scan_is_what_a_fold_needs_of_the_whole_log(self, log: Log) -> None:
        for stream, type in (("a/1", "up"), ("b/1", "up"), ("a/2", "down"), ("ab/1", "up")):
            add(log, stream, type=type)
        read = all_rows(log)
        slim = [(row.position, row.type, row.data) for row in read]
        assert [tuple(row) for row in log.scan(0, EVERYTHING, limit=9)] == slim
        until = Bounds(position=read[2].position)
        assert [tuple(row) for row in log.scan(read[0].position, until, limit=9)] == slim[1:3]
        assert [tuple(row) for row in log.scan(0, EVERYTHING, limit=2)] == slim[:2]
        wanted = Wanted(["up"], ["a", "ab"])
        assert [row[0] for row in log.scan(0, EVERYTHING, limit=9, wanted=wanted)] == [
            read[0].position,
            read[3].position,
        ]

    @pytest.mark.parametrize("size", [1, 3, 4, 50])
    def test_pages_are_all_that_reading_gives(self, log: Log, size: int) -> None:
        for number in range(12):
            add(log, f"{'ab'[number % 2]}/{number % 5}", type="up" if number % 3 else "down")
        read = all_rows(log)
        after, until = read[1].position, Bounds(position=read[10].position)
        for wanted, count in (
            (EVERY_EVENT, 9),
            (Wanted(["up", "down", "more"]), 9),
            (Wanted(["up"]), 6),
            (Wanted(["down"], ["a"]), 1),
            (Wanted(["more"]), 0),
            (Wanted(shard=Shard(0, 1)), 9),
        ):
            expected = log.read_all(after, until, limit=50, wanted=wanted)
            assert len(expected) == count
            pages = list(log.pages(after, until, size=size, wanted=wanted))
            assert all(0 < len(page) <= size for page in pages)
            slim = [tuple(row) for page in pages for row in page]
            assert slim == [(row.position, row.type, row.data) for row in expected]
            pages = list(log.pages(after, until, size=size, wanted=wanted, whole=True))
            assert all(0 < len(page) <= size for page in pages)
            found: list[tuple[Any, ...]] = [tuple(row) for page in pages for row in page]
            if log.reads_aside:
                names = log.stream_names({key for _, key, *_ in found})
                found = [(position, names[key], *rest) for position, key, *rest in found]
            assert found == expected

    def test_pages_may_be_left_before_their_end(self, log: Log) -> None:
        add(log, "a/1", 9)
        for _ in range(20):  # more often than there are connections
            with contextlib.closing(log.pages(0, EVERYTHING, size=2)) as pages:
                assert len(next(pages)) == 2
            assert len(all_rows(log)) == 9

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_the_shards_of_a_log_are_its_streams_dealt_out(self, log: Log, count: int) -> None:
        for number in range(30):
            add(log, f"a/{number % 10}", 1 + number % 2)
        read = all_rows(log)
        shards = [
            log.read_all(0, EVERYTHING, limit=99, wanted=Wanted(shard=Shard(number, count)))
            for number in range(count)
        ]
        assert sorted(row for shard in shards for row in shard) == read
        homes = [{row.stream for row in shard} for shard in shards]
        assert sum(map(len, homes)) == 10
        assert all(homes)
        slim = log.scan(
            0, EVERYTHING, limit=99, wanted=Wanted(["happened"], ["a"], Shard(0, count))
        )
        assert [row[0] for row in slim] == [row.position for row in shards[0]]

    def test_a_transaction_reads_what_it_has_written(self, log: Log) -> None:
        add(log, "a/1")
        with contextlib.suppress(ZeroDivisionError), log.transaction() as connection:
            log.append([Write("a/1", drafts(2))], connection=connection)
            assert len(log.scan(0, EVERYTHING, limit=9, connection=connection)) == 3
            assert len(log.read_all(0, EVERYTHING, limit=9, connection=connection)) == 3
            raise ZeroDivisionError
        assert len(all_rows(log)) == 1
        with log.transaction() as connection:
            log.append([Write("a/1", drafts(2))], connection=connection)
        assert len(all_rows(log)) == 3

    def test_a_time_bounds_the_whole_log(self, log: Log) -> None:
        for at, stream in ((1_000, "a/1"), (3_000, "b/1"), (2_000, "c/1")):
            add(log, stream, recorded_at=at)
        read = all_rows(log, Bounds(recorded_at=2_000))
        assert [row.stream for row in read] == ["a/1", "c/1"]

    def test_settled_covers_what_was_acknowledged(self, log: Log) -> None:
        assert log.settled(1) == 0
        for number in range(5):
            receipt = add(log, f"a/{number % 2}", number + 1)
            assert log.settled(1) == receipt.position
        tombstone = log.delete("a/1")
        assert log.settled(0) == tombstone.position

    def test_the_frontier_reaches_what_was_acknowledged(self, log: Log) -> None:
        assert log.frontier() == Frontier(0, ())
        for number in range(5):
            receipt = add(log, f"a/{number % 2}", number + 1)
            assert log.frontier() == Frontier(receipt.position, ())
        tombstone = log.delete("a/1")
        assert log.frontier() == Frontier(tombstone.position, ())
        assert log.describe(()) == ()

    def test_what_a_transaction_sees_of_itself_is_final_for_nobody_else(self, log: Log) -> None:
        first = add(log, "a/1")
        with contextlib.suppress(ZeroDivisionError), log.transaction() as connection:
            log.append([Write("a/1", drafts(2))], connection=connection)
            log.settled(0, connection=connection)
            raise ZeroDivisionError
        assert log.frontier().position == first.position

    # --- folds ---------------------------------------------------------------------------------

    @pytest.mark.parametrize("count", [1, 999, 1000, 1001, 2000, 3500])
    def test_a_fold_is_the_whole_stream_in_order(self, log: Log, count: int) -> None:
        add(log, "a/1", count)
        assert folded(log, "a/1") == (None, [b"%d" % number for number in range(count)])
        assert len(folded(log, "a/1", 700)[1]) == max(count - 700, 0)

    def test_a_fold_of_a_long_stream_keeps_to_its_bounds(self, log: Log) -> None:
        for at in (1_000, 2_000, 3_000):
            last = add(log, "a/1", 1_000, recorded_at=at)
        for until, count in (
            (Bounds(version=2_500), 2_500),
            (Bounds(recorded_at=2_999), 2_000),
            (Bounds(position=last.position - 1), 2_999),
            (Bounds(version=2_100, recorded_at=1_500), 1_000),
            (Bounds(recorded_at=999), 0),
        ):
            assert len(folded(log, "a/1", 0, until)[1]) == count

    def test_abandoned_folds_do_not_exhaust_the_log(self, log: Log) -> None:
        add(log, "a/1", 3_500)
        kept = []
        for number in range(60):
            _, pages = log.fold("a/1")
            for _ in range(number % 3):
                next(pages)
            abandon(pages)
            kept.append(pages)
        assert add(log, "a/1", expected=3_500).version == 3_501
        assert len(folded(log, "a/1")[1]) == 3_501

    def test_a_forgotten_fold_is_cleaned_up(self, log: Log) -> None:
        add(log, "a/1", 3_500)
        for _ in range(30):
            _, pages = log.fold("a/1")
            next(pages)
            next(pages)
            cycle: list[object] = [pages]
            cycle.append(cycle)  # as the traceback of an error in a handler may be
        del pages, cycle  # pyright: ignore[reportPossiblyUnboundVariable]
        gc.collect()
        assert len(folded(log, "a/1")[1]) == 3_500

    def test_a_log_can_be_written_to_while_it_is_folded(self, log: Log) -> None:
        add(log, "a/1", 2_500)
        _, pages = log.fold("a/1", 0, Bounds(version=2_500))
        count = 0
        for page in pages:
            count += len(page)
            add(log, "a/1")
            add(log, "b/1")
        assert count == 2_500

    def test_several_streams_are_folded_together(self, log: Log) -> None:
        lengths = {"a/1": 3, "b/1": 1, "a/2": 400, "c/1": 2_100}
        for stream, count in lengths.items():
            add(log, stream, count)
        asked = ["c/1", "a/2", "none/1", "b/1", "a/1"]
        for stream, page in zip(asked, log.fold_together(asked), strict=True):
            count = lengths.get(stream, 0)
            # One that is too long for a page may be left to be folded by itself.
            if page is not None or count < 1_000:
                assert page is not None
                assert [data for _, data in page] == [b"%d" % number for number in range(count)]
        assert list(log.fold_together([])) == []

    # --- heads ---------------------------------------------------------------------------------

    def test_the_head_of_a_stream(self, log: Log) -> None:
        receipt = add(log, "a/1", 3)
        assert log.stream("a/1") == StreamInfo("a/1", 3, receipt.recorded_at, False)
        assert log.stream("A/1") is None

    def test_streams_are_paged_in_the_order_of_code_points(self, log: Log) -> None:
        for name in reversed(IN_ORDER):
            add(log, name)
        add(log, "b/1")
        log.delete("c/a")
        found: list[StreamInfo] = []
        while page := log.streams("c", found[-1].name if found else "", 2):
            assert len(page) <= 2
            found += page
        assert [info.name for info in found] == list(IN_ORDER)
        assert [info.name for info in found if info.deleted] == ["c/a"]
        assert [info.name for info in log.streams(None, "", 99)] == ["b/1", *IN_ORDER]
        assert log.streams("d", "", 99) == []

    def test_rows_know_their_stream_after_an_append_to_many(self, log: Log) -> None:
        names = [f"s/{number}" for number in range(40)]
        log.append([Write(name, drafts(2), 0) for name in reversed(names)])
        assert {row.stream for row in all_rows(log)} == set(names)
        assert all(len(rows(log, name)) == 2 for name in names)
