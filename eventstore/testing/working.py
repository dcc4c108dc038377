"""The contract of `Log.work`: appends and other rows in one transaction of the log's own."""

import pytest
from sqlalchemy import bindparam, select

from eventstore.log.base import NO_STREAM, EventType, Log, NewEvent, Write
from eventstore.log.queries import Statement
from eventstore.log.tables import producers


class WorkContract:
    """To be inherited with a fixture `log`."""

    def test_what_is_done_in_a_work_is_seen_at_its_end_as_a_whole(self, log: Log) -> None:
        seen = log.signal.count
        with log.work() as work:
            (first,) = log.append([_write("a")], connection=work)
            (second,) = log.append([_write("b")], connection=work)
            head = log.stream("b", connection=work)
            assert head is not None
            assert head.version == second.version
            assert log.signal.count == seen
        assert log.signal.count != seen
        assert first.position < second.position
        assert [head.name for head in log.streams(None, "", 10)] == ["a", "b"]

    def test_an_error_in_a_work_undoes_all_of_it(self, log: Log) -> None:
        def fail() -> None:
            with log.work() as work:
                log.append([_write("a", "only-there")], connection=work)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert log.stream("a") is None
        log.append([_write("a", "only-there")])  # and the type's key is found anew
        (head,) = log.streams(None, "", 10)
        assert head.version == 1

    def test_a_work_counts_the_rows_that_it_has_changed(self, log: Log) -> None:
        dialect = log.engine.dialect
        add = Statement(log.insert(producers).on_conflict_do_nothing(), dialect)
        find = Statement(
            select(producers).where(
                producers.c.path == bindparam("path"), log.one_of(producers.c.producer, "names")
            ),
            dialect,
        )
        rows = [{"path": "a", "producer": name, "epoch": 1, "seq": 2} for name in "xyz"]
        with log.work() as work:
            assert log.change(add, rows[:1], work) == 1
            assert log.change(add, rows, work) == 2
            values = {"path": "a", "names": log.list_value(["x", "z"])}
            assert sorted(row[1] for row in log.query(find, values, work)) == ["x", "z"]
        assert len(log.query(find, values)) == 2


def _write(stream: str, type: str = "happened") -> Write:
    return Write(stream, [NewEvent(EventType(type, 1), b"{}", bytes(16))], NO_STREAM)
