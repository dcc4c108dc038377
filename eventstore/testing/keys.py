"""The part of the contract about idempotency keys."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from eventstore.errors import IdempotencyKeyReusedError, WrongExpectedVersionError
from eventstore.log.base import Log, Receipt, Write
from eventstore.testing.drafts import add, all_rows, drafts


class IdempotencyContract:
    """A retry with the same key returns the first receipts and writes nothing."""

    def test_a_repetition_returns_the_first_receipts(self, log: Log) -> None:
        writes = [Write("b/1", drafts(2), 0), Write("a/1", drafts(), 0)]
        first = log.append(writes, key="k")
        assert log.append(writes, key="k") == first
        assert log.receipts("k") == first
        assert len(all_rows(log)) == 3

    def test_a_repetition_is_no_conflict_when_the_stream_has_moved_on(self, log: Log) -> None:
        first = add(log, "a/1", expected=0, key="k")
        add(log, "a/1", 5)
        assert add(log, "a/1", expected=0, key="k") == first
        assert len(all_rows(log)) == 6

    def test_a_repetition_returns_receipts_of_a_stream_that_was_deleted_since(
        self, log: Log
    ) -> None:
        first = add(log, "a/1", key="k")
        log.delete("a/1")
        assert add(log, "a/1", key="k") == first

    def test_a_key_for_other_streams_is_refused(self, log: Log) -> None:
        add(log, "a/1", key="k")
        with pytest.raises(IdempotencyKeyReusedError) as caught:
            log.append([Write("b/1", drafts()), Write("a/1", drafts())], key="k")
        error = caught.value
        assert (error.key, error.streams, error.first) == ("k", ("b/1", "a/1"), ("a/1",))
        assert len(all_rows(log)) == 1

    def test_a_refused_append_leaves_its_key_unused(self, log: Log) -> None:
        with pytest.raises(WrongExpectedVersionError):
            add(log, "a/1", expected=5, key="k")
        assert log.receipts("k") is None
        first = add(log, "a/1", expected=0, key="k")
        assert log.receipts("k") == (first,)

    def test_keys_differ_by_every_character(self, log: Log) -> None:
        keys = ["k", "K", "k ", "", "'", "%s", "日本", "x" * 500]
        for key in keys:
            add(log, "a/1", key=key)
        assert [log.receipts(key) is not None for key in keys] == [True] * len(keys)
        assert log.receipts("never") is None
        assert len(all_rows(log)) == len(keys)

    def test_twenty_threads_with_one_key_write_once(self, log: Log) -> None:
        def append(_: int) -> tuple[Receipt, ...]:
            return log.append([Write("a/1", drafts(2)), Write("b/1", drafts())], key="k")

        with ThreadPoolExecutor(20) as threads:
            results = set(threads.map(append, range(20)))
        assert len(results) == 1
        assert len(all_rows(log)) == 3
