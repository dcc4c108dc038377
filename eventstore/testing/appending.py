"""The part of the contract about what an append does, and what keeps it out."""

from __future__ import annotations

import time

import pytest

from eventstore.errors import (
    InvalidArgumentError,
    StoreClosedError,
    StreamDeletedError,
    StreamNotFoundError,
    WrongExpectedVersionError,
)
from eventstore.log.base import (
    ANY,
    DELETED,
    NO_STREAM,
    STREAM_EXISTS,
    Bounds,
    EventType,
    Expected,
    Log,
    NewEvent,
    Wanted,
    Write,
)
from eventstore.log.grouping import Request
from eventstore.testing.drafts import EVERYTHING, add, all_rows, drafts, folded, rows

UNUSUAL_NAMES = (
    "no-category",
    "a/b/c.txt",
    "a//b/",
    "percent/%s %(name)s %%",
    "quote/'; DROP TABLE eventstore_events; --",
    'double/"quoted" `ticks` [brackets]',
    "colon/:name ?1 $1 @x {brace}",
    "back/\\slash\\n",
    "like/100%_",
    "unicode/Ünïcödé-日本語-\U0001f600",
    "combining/e\u0301",
    "precomposed/\u00e9",
    "case/A",
    "case/a",
    "trailing/space ",
    "n" * 512,
)


class AppendingContract:
    """Appends, expectations, deletion."""

    def test_a_new_stream_starts_at_version_one(self, log: Log) -> None:
        before = time.time() - 300
        receipt = add(log, "account/a")
        assert receipt.stream == "account/a"
        assert receipt.version == 1
        assert receipt.position > 0
        assert before < receipt.recorded_at / 1_000_000 < before + 600

    def test_what_was_appended_is_read_back(self, log: Log) -> None:
        data = bytes(range(256)) + b"\x00end"
        event = NewEvent(EventType("opened", 3), data, bytes(range(16)), b"\x00meta\xff")
        (receipt,) = log.append([Write("account/a", [event])])
        (row,) = rows(log, "account/a")
        assert row[:3] == (receipt.position, "account/a", 1)
        assert log.event_type(row.type) == EventType("opened", 3)
        assert row[4:] == (data, b"\x00meta\xff", bytes(range(16)), receipt.recorded_at)

    @pytest.mark.parametrize("metadata", [None, b"", b"{}"])
    @pytest.mark.parametrize("count", [1, 3])
    def test_empty_data_and_metadata_stay_as_they_are(
        self, log: Log, metadata: bytes | None, count: int
    ) -> None:
        events = [event._replace(data=b"", metadata=metadata) for event in drafts(count)]
        log.append([Write("a/1", events)])
        assert [(row.data, row.metadata) for row in rows(log, "a/1")] == [(b"", metadata)] * count

    def test_versions_count_up_and_positions_increase(self, log: Log) -> None:
        receipts = [add(log, "a/1", count) for count in (1, 3, 2)]
        assert [receipt.version for receipt in receipts] == [1, 4, 6]
        read = rows(log, "a/1")
        assert [row.version for row in read] == [1, 2, 3, 4, 5, 6]
        positions = [row.position for row in read]
        assert positions == sorted(set(positions))
        assert [receipt.position for receipt in receipts] == [positions[i] for i in (0, 3, 5)]

    def test_one_name_at_two_schema_versions_is_two_types(self, log: Log) -> None:
        types = [EventType("moved", 1), EventType("moved", 2), EventType("Moved", 1)]
        log.append([Write("a/1", [drafts()[0]._replace(type=type) for type in types])])
        assert [log.event_type(row.type) for row in rows(log, "a/1")] == types

    def test_unusual_names_are_names_like_any_other(self, log: Log) -> None:
        for name in UNUSUAL_NAMES:
            log.append([Write(name, drafts(1, type=name, data=name.encode()), NO_STREAM)])
        for name in UNUSUAL_NAMES:
            (row,) = log.read(name, 0, EVERYTHING, limit=9, types=[name])
            assert (row.stream, row.data) == (name, name.encode())
            assert log.event_type(row.type) == EventType(name, 1)
            category = name.split("/")[0]
            assert row in log.read_all(
                0, EVERYTHING, limit=99, wanted=Wanted(categories=[category])
            )
        assert {info.name for info in log.streams(None, "", 99)} == set(UNUSUAL_NAMES)

    # --- expectations --------------------------------------------------------------------------

    @pytest.mark.parametrize("expected", [0, NO_STREAM, ANY])
    def test_a_stream_that_is_not_there_takes(self, log: Log, expected: Expected) -> None:
        assert add(log, "a/1", 2, expected=expected).version == 2

    @pytest.mark.parametrize("expected", [1, 5, STREAM_EXISTS])
    @pytest.mark.parametrize("count", [1, 2])
    def test_a_refused_append_brings_no_stream_to_life(
        self, log: Log, expected: Expected, count: int
    ) -> None:
        with pytest.raises(WrongExpectedVersionError) as caught:
            add(log, "a/1", count, expected=expected)
        error = caught.value
        assert (error.stream, error.expected, error.actual) == ("a/1", expected, 0)
        assert log.stream("a/1") is None
        assert not all_rows(log)
        assert log.settled(1) == 0

    @pytest.mark.parametrize("expected", [2, ANY, STREAM_EXISTS])
    def test_a_stream_at_version_two_takes(self, log: Log, expected: Expected) -> None:
        add(log, "a/1", 2)
        assert add(log, "a/1", expected=expected).version == 3

    @pytest.mark.parametrize("expected", [0, 1, 3, NO_STREAM])
    @pytest.mark.parametrize("count", [1, 2])
    def test_a_refused_append_changes_nothing(
        self, log: Log, expected: Expected, count: int
    ) -> None:
        add(log, "a/1", 2)
        head, before = log.stream("a/1"), all_rows(log)
        with pytest.raises(WrongExpectedVersionError) as caught:
            add(log, "a/1", count, expected=expected)
        error = caught.value
        assert (error.stream, error.expected, error.actual) == ("a/1", expected, 2)
        assert (log.stream("a/1"), all_rows(log)) == (head, before)

    @pytest.mark.parametrize("expected", [-1, True, "any", None, 1.0])
    def test_an_expectation_that_makes_no_sense_is_refused(
        self, log: Log, expected: Expected
    ) -> None:
        with pytest.raises(InvalidArgumentError) as caught:
            add(log, "a/1", expected=expected)
        assert caught.value.argument == "expected"
        with pytest.raises(InvalidArgumentError):
            log.delete("a/1", expected)
        assert log.stream("a/1") is None

    # --- several streams -----------------------------------------------------------------------

    def test_several_streams_are_appended_to_as_one(self, log: Log) -> None:
        add(log, "b/1", 4)
        receipts = log.append(
            [Write("c/1", drafts(2), 0), Write("a/1", drafts(1)), Write("b/1", drafts(3), 4)]
        )
        assert [(r.stream, r.version) for r in receipts] == [("c/1", 2), ("a/1", 1), ("b/1", 7)]
        assert len({receipt.recorded_at for receipt in receipts}) == 1
        for receipt in receipts:
            last = rows(log, receipt.stream)[-1]
            assert (last.version, last.position) == (receipt.version, receipt.position)
            assert last.recorded_at == receipt.recorded_at

    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_one_refused_stream_refuses_them_all(self, log: Log, place: int) -> None:
        add(log, "b/1")
        before = all_rows(log)
        writes = [Write("a/1", drafts(2)), Write("c/1", drafts(1), 0)]
        writes.insert(place, Write("b/1", drafts(2), 7))
        with pytest.raises(WrongExpectedVersionError) as caught:
            log.append(writes)
        assert (caught.value.stream, caught.value.actual) == ("b/1", 1)
        assert all_rows(log) == before
        assert [info.name for info in log.streams(None, "", 9)] == ["b/1"]

    def test_a_write_without_events_checks_only(self, log: Log) -> None:
        add(log, "limit/1", 3)
        writes = [Write("a/1", drafts()), Write("limit/1", [], 3), Write("none/1", [], NO_STREAM)]
        receipts = log.append(writes)
        assert [(r.stream, r.version) for r in receipts] == [
            ("a/1", 1),
            ("limit/1", 3),
            ("none/1", 0),
        ]
        assert len(rows(log, "limit/1")) == 3
        assert log.stream("none/1") is None
        for refused in (Write("limit/1", [], 2), Write("none/1", [], STREAM_EXISTS)):
            for writes in ([refused], [Write("a/1", drafts()), refused]):
                with pytest.raises(WrongExpectedVersionError):
                    log.append(writes)
        assert len(all_rows(log)) == 4

    def test_an_append_of_nothing_is_nothing(self, log: Log) -> None:
        assert log.append([]) == ()
        assert [receipt.version for receipt in log.append([Write("a/1", [])])] == [0]
        assert log.stream("a/1") is None

    def test_a_stream_that_occurs_twice_is_refused(self, log: Log) -> None:
        with pytest.raises(InvalidArgumentError) as caught:
            log.append([Write("a/1", drafts()), Write("b/1", drafts()), Write("a/1", drafts())])
        assert caught.value.argument == "writes"
        assert not all_rows(log)

    # --- several callers -----------------------------------------------------------------------

    def test_callers_that_append_together_have_outcomes_of_their_own(self, log: Log) -> None:
        add(log, "a/1", 2)
        add(log, "b/1")
        log.delete("b/1")
        writes = {
            "a/1": Write("a/1", drafts(3), 2),
            "b/1": Write("b/1", drafts(), 2),
            "c/1": Write("c/1", drafts(), 0),
            "d/1": Write("d/1", drafts(), 5),
            "e/1": Write("e/1", drafts(type="never seen"), ANY),
        }
        requests = {stream: Request([write], None, None) for stream, write in writes.items()}
        log.append_together(list(requests.values()))
        errors = {stream: type(r.error) for stream, r in requests.items() if r.error is not None}
        assert errors == {"b/1": StreamDeletedError, "d/1": WrongExpectedVersionError}
        for stream, version in (("a/1", 5), ("c/1", 1), ("e/1", 1)):
            (receipt,) = requests[stream].outcome()
            assert (receipt.stream, receipt.version) == (stream, version)
            assert rows(log, stream)[-1].position == receipt.position
        assert log.stream("d/1") is None

    def test_several_writes_and_keys_are_appended_together_too(self, log: Log) -> None:
        several = Request([Write("a/1", drafts(), 0), Write("a/2", drafts(2), 0)], None, None)
        keyed = Request([Write("b/1", drafts(), 0)], "key", None)
        refused = Request([Write("c/1", drafts(), 0), Write("d/1", drafts(), 7)], None, None)
        log.append_together([several, keyed, refused])
        assert [receipt.version for receipt in several.outcome()] == [1, 2]
        assert log.receipts("key") == keyed.outcome()
        assert isinstance(refused.error, WrongExpectedVersionError)
        assert log.stream("c/1") is None

    # --- time ----------------------------------------------------------------------------------

    def test_one_append_has_one_time_and_a_stream_never_goes_back(self, log: Log) -> None:
        for _ in range(20):
            add(log, "a/1", 3)
        times = [row.recorded_at for row in rows(log, "a/1")]
        assert times == sorted(times)
        assert all(len(set(times[first : first + 3])) == 1 for first in range(0, 60, 3))
        head = log.stream("a/1")
        assert head is not None
        assert head.recorded_at == times[-1]

    def test_a_given_time_is_kept_or_raised_to_that_of_the_stream(self, log: Log) -> None:
        given = (1_000, 3_000, 2_000, 3_001, -5)
        receipts = [add(log, "a/1", recorded_at=at) for at in given]
        assert [receipt.recorded_at for receipt in receipts] == [1_000, 3_000, 3_000, 3_001, 3_001]
        assert [row.recorded_at for row in rows(log, "a/1")] == [
            receipt.recorded_at for receipt in receipts
        ]
        assert add(log, "b/1", recorded_at=-5).recorded_at == -5

    def test_one_append_to_several_streams_has_the_time_of_the_latest(self, log: Log) -> None:
        add(log, "a/1", recorded_at=5_000)
        add(log, "b/1", recorded_at=1_000)
        writes = [Write("b/1", drafts()), Write("a/1", drafts()), Write("c/1", drafts())]
        assert {r.recorded_at for r in log.append(writes, recorded_at=2_000)} == {5_000}
        assert {row.recorded_at for row in all_rows(log)[2:]} == {5_000}

    # --- deletion ------------------------------------------------------------------------------

    def test_a_deleted_stream_leaves_its_tombstone_and_a_closed_name(self, log: Log) -> None:
        add(log, "b/1", 2)
        kept = rows(log, "b/1")
        last = add(log, "a/1", 3)
        receipt = log.delete("a/1", 3)
        assert receipt.version == 4
        assert receipt.position > last.position
        (tombstone,) = rows(log, "a/1")
        assert (tombstone.position, tombstone.version) == (receipt.position, 4)
        assert log.event_type(tombstone.type).name == DELETED
        assert folded(log, "a/1") == (None, [tombstone.data])
        head = log.stream("a/1")
        assert head is not None
        assert (head.version, head.deleted) == (4, True)
        assert all_rows(log) == [*kept, tombstone]

    @pytest.mark.parametrize("expected", [0, 3, 4, ANY, NO_STREAM, STREAM_EXISTS])
    def test_nothing_is_appended_to_a_deleted_stream(self, log: Log, expected: Expected) -> None:
        add(log, "a/1", 3)
        log.delete("a/1")
        for count in (1, 2, 0):
            with pytest.raises(StreamDeletedError) as caught:
                add(log, "a/1", count, expected=expected)
            assert caught.value.stream == "a/1"
        with pytest.raises(StreamDeletedError):
            log.append([Write("b/1", drafts()), Write("a/1", drafts(), expected)])
        with pytest.raises(StreamDeletedError):
            log.delete("a/1")
        assert len(all_rows(log)) == 1

    def test_a_refused_deletion_deletes_nothing(self, log: Log) -> None:
        add(log, "a/1", 3)
        with pytest.raises(WrongExpectedVersionError) as caught:
            log.delete("a/1", 2)
        assert (caught.value.expected, caught.value.actual) == (2, 3)
        assert len(rows(log, "a/1")) == 3
        with pytest.raises(InvalidArgumentError):
            log.delete("a/1", NO_STREAM)
        with pytest.raises(StreamNotFoundError):
            log.delete("a/2")
        with pytest.raises(WrongExpectedVersionError):
            log.delete("a/2", STREAM_EXISTS)
        assert log.stream("a/2") is None

    def test_positions_are_never_given_twice(self, log: Log) -> None:
        seen = set()
        for name in "abc":
            seen.add(add(log, f"{name}/1", 3).position)
            seen.add(log.delete(f"{name}/1").position)
        assert len(seen) == 6
        assert add(log, "d/1").position > max(seen)

    def test_a_time_bound_applies_to_a_tombstone_too(self, log: Log) -> None:
        add(log, "a/1", recorded_at=1_000)
        receipt = log.delete("a/1")
        assert rows(log, "a/1", Bounds(recorded_at=receipt.recorded_at - 1)) == []
        assert len(rows(log, "a/1", Bounds(recorded_at=receipt.recorded_at))) == 1

    # --- the end -------------------------------------------------------------------------------

    def test_a_closed_log_says_so(self, log: Log) -> None:
        add(log, "a/1")
        log.close()
        for call in (
            lambda: add(log, "a/1"),
            lambda: log.delete("a/1"),
            lambda: log.receipts("key"),
            lambda: log.fold("a/1"),
            lambda: rows(log, "a/1"),
            lambda: all_rows(log),
            lambda: log.settled(1),
            lambda: log.frontier(),
            lambda: log.stream("a/1"),
            lambda: log.streams(None, "", 1),
            lambda: log.delete_snapshots(),
        ):
            with pytest.raises(StoreClosedError):
                call()
        log.close()
