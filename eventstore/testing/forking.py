"""The part of the contract about forks, and about which streams have moved."""

from __future__ import annotations

import pytest

from eventstore.errors import (
    StreamDeletedError,
    StreamNotFoundError,
    WrongExpectedVersionError,
)
from eventstore.log.base import NO_STREAM, Log
from eventstore.testing.drafts import add, all_rows, rows


class ForkingContract:
    """Copies of the first events of a stream."""

    def test_a_fork_has_the_first_events_as_they_were_recorded(self, log: Log) -> None:
        add(log, "a/1", 2, recorded_at=1_000)
        add(log, "a/1", 3, type="other", recorded_at=2_000)
        receipt = log.fork("a/1", 4, "b/1")
        originals, copies = rows(log, "a/1")[:4], rows(log, "b/1")
        assert [row._replace(position=0, stream="") for row in copies] == [
            row._replace(position=0, stream="") for row in originals
        ]
        assert (receipt.stream, receipt.version, receipt.recorded_at) == ("b/1", 4, 2_000)
        assert receipt.position == copies[-1].position == all_rows(log)[-1].position
        assert [row.position for row in copies] == sorted(row.position for row in copies)
        assert [head.name for head in log.streams("b", "", 10)] == ["b/1"]

    def test_a_fork_and_its_source_go_on_apart(self, log: Log) -> None:
        add(log, "a/1", 3)
        log.fork("a/1", 2, "a/2")
        assert add(log, "a/2", expected=2).version == 3
        assert add(log, "a/1", expected=3).version == 4
        log.delete("a/1")
        assert len(rows(log, "a/2")) == 3

    def test_a_fork_needs_a_name_that_is_free(self, log: Log) -> None:
        add(log, "a/1", 2)
        add(log, "a/2")
        add(log, "a/3")
        log.delete("a/3")
        with pytest.raises(WrongExpectedVersionError) as caught:
            log.fork("a/1", 2, "a/2")
        assert (caught.value.stream, caught.value.expected) == ("a/2", NO_STREAM)
        assert caught.value.actual == 1
        with pytest.raises(StreamDeletedError):
            log.fork("a/1", 2, "a/3")
        with pytest.raises(WrongExpectedVersionError):
            log.fork("a/1", 2, "a/1")
        assert len(rows(log, "a/2")) == 1

    def test_a_fork_needs_as_many_events_as_are_asked_for(self, log: Log) -> None:
        add(log, "a/1", 2)
        for version in (0, 3, -1):
            with pytest.raises(WrongExpectedVersionError) as caught:
                log.fork("a/1", version, "a/2")
            assert (caught.value.expected, caught.value.actual) == (version, 2)
        with pytest.raises(StreamNotFoundError):
            log.fork("a/9", 1, "a/2")
        log.delete("a/1")
        with pytest.raises(StreamDeletedError):
            log.fork("a/1", 1, "a/2")
        assert log.stream("a/2") is None

    def test_a_fork_in_a_transaction_is_rolled_back_with_it(self, log: Log) -> None:
        add(log, "a/1", 2)
        with log.engine.connect() as connection:
            log.fork("a/1", 2, "a/2", connection=connection)
            connection.rollback()
        assert log.stream("a/2") is None
        with log.engine.connect() as connection:
            log.fork("a/1", 2, "a/2", connection=connection)
            connection.commit()
        assert len(rows(log, "a/2")) == 2

    def test_what_has_moved_is_told_by_stream(self, log: Log) -> None:
        start = add(log, "a/1", 2).position
        add(log, "b/1", 3)
        end = add(log, "a/1", 2).position
        assert sorted(log.moved(start, end)) == [("a/1", 4), ("b/1", 3)]
        assert sorted(log.moved(start, end - 1)) == [("a/1", 3), ("b/1", 3)]
        assert list(log.moved(end, end + 10)) == []
