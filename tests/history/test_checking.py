"""The checker of histories refuses wrong ones, each for its reason, and lets right ones pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from checking import Crash, check, follows, in_one_sequence
from operations import NEVER, Append, Entry, History, Part, Read, Recorder, Scan, recorded

A, B = "a/1", "b/1"
LOG = [
    Entry(1, A, 1, "x", 0),
    Entry(2, A, 2, "x", 1),
    Entry(4, B, 1, "y", 0),  # position 3 was rolled back
    Entry(5, A, 3, "z", 0),
]
X = Append("x", [Part(A, 2)], 10, 20, "acknowledged", [(2, 2)])
Y = Append("y", [Part(B, 1, "no stream")], 30, 40, "acknowledged", [(1, 4)])
Z = Append("z", [Part(A, 1, 2)], 50, 60, "acknowledged", [(3, 5)])
RIGHT: list[Append | Read | Scan] = [
    X,
    Y,
    Z,
    Read(A, 0, 2, 21, 45, LOG[:2]),
    Read(A, 2, 2, 22, 23, []),
    Read(A, 0, 3, 51, 52, [*LOG[:2], LOG[3]]),  # it was written before its writer was told
    Read(B, 0, 0, 1, 31),
    Scan(0, LOG[:2], 25, 35),
    Scan(1, LOG[1:], 55, 65),
    Append("never", [Part(A, 1, 7)], 25, 30, "refused", [], (A, 2)),
    Append("cut", [Part(A, 1)], 25),
]


def history(*operations: Append | Read | Scan) -> History:
    return History(
        [o for o in operations if isinstance(o, Append)],
        [o for o in operations if isinstance(o, Read)],
        [o for o in operations if isinstance(o, Scan)],
    )


def test_a_right_history_is_right() -> None:
    assert check(history(*RIGHT), LOG).wrong == []


def test_an_append_of_unknown_outcome_may_have_happened_at_any_later_time() -> None:
    unknown = Append("z", [Part(A, 1, 2)], 5)
    assert check(history(X, Y, unknown, Scan(0, LOG[:3], 100, 110)), LOG).wrong == []


@pytest.mark.parametrize(
    ("what", "operation"),
    [
        (
            "acknowledged, and is not there",
            Append("w", [Part(A, 1)], 1, 2, "acknowledged", [(4, 6)]),
        ),
        ("there in part", Append("z", [Part(A, 2, 2)], 50, 60, "acknowledged", [(3, 5)])),
        ("told to be not written, and is", Append("z", [Part(A, 1)], 50, 60, "not written")),
        ("and was written at 2", Append("z", [Part(A, 1, 1)], 50, 60, "acknowledged", [(3, 5)])),
        ("has receipts", Append("z", [Part(A, 1)], 50, 60, "acknowledged", [(4, 5)])),
        ("has receipts", Append("z", [Part(A, 1)], 50, 60, "acknowledged", [(3, 6)])),
        ("and stands before it", Append("z", [Part(A, 1)], 1, 2, "acknowledged", [(3, 5)])),
        ("has no reason", Append("w", [Part(A, 1, 2)], 21, 22, "refused", [], (A, 2))),
        ("stands before it", Append("w", [Part(A, 1, 7)], 70, 71, "refused", [], (A, 2))),
        ("and then refused", Append("z", [Part(A, 1, 2)], 61, 70, "refused", [], (A, 3))),
        ("several receipts", Append("z", [Part(A, 1, 2)], 61, 70, "acknowledged", [(4, 6)])),
        ("stands before it", Read(A, 0, 2, 61, 62, LOG[:2])),  # stale
        ("stands before it", Read(A, 0, 3, 41, 42, [*LOG[:2], LOG[3]])),  # of the future
        ("stands before it", Read(B, 0, 0, 41, 42)),
        ("has holes", Read(A, 0, 2, 25, 26, LOG[1:2])),
        ("was seen", Read(A, 0, 1, 11, 12, [Entry(1, A, 1, "w", 0)])),
        ("missed", Scan(0, [*LOG[:2], LOG[3]], 55, 65)),
        ("stands before it", Scan(0, LOG[:2], 45, 65)),
        ("stands before it", Scan(2, [], 45, 65)),
    ],
)
def test_a_wrong_answer_is_refused(what: str, operation: Append | Read | Scan) -> None:
    replaced = isinstance(operation, Append) and operation.op == "z" and operation.start < 61
    others = [o for o in RIGHT if not (replaced and o is Z)]
    wrong = check(history(*others, operation), LOG).wrong
    assert any(what in line for line in wrong), wrong


@pytest.mark.parametrize(
    ("what", "log"),
    [
        ("follows version 2", [*LOG[:2], Entry(5, A, 4, "z", 0)]),
        ("follows version 0", [LOG[1]]),
        ("stands after position 2", [LOG[1], LOG[0]]),
        ("is there twice", [*LOG, Entry(6, A, 4, "z", 0)]),
    ],
)
def test_a_log_with_a_hole_or_a_twin_is_refused(what: str, log: list[Entry]) -> None:
    assert any(what in line for line in in_one_sequence(log))


def test_events_out_of_nothing_are_refused_and_so_is_a_log_that_has_lost_old_ones() -> None:
    assert any("nobody" in line for line in check(history(X, Y), LOG).wrong)
    assert check(history(X, Y), LOG, base=LOG[3:]).wrong == []
    assert any("gone" in line for line in check(history(X, Y), LOG[:3], base=LOG[3:]).wrong)


def test_readers_must_agree_among_themselves() -> None:
    one, other = Scan(0, LOG[:1], 11, 12), Scan(0, [Entry(1, A, 1, "w", 0)], 11, 12)
    crash = Crash(100, may_lose=True)
    assert any("was seen" in line for line in check(history(one, other), [], crash=crash).wrong)


def test_a_crash_may_lose_the_end_only() -> None:
    crash = Crash(100, may_lose=True)
    both = history(X, Y, Scan(0, LOG[:3], 45, 50))
    assert check(both, LOG[:2], crash=crash) == ([], ["y"])
    assert check(both, [], crash=crash) == ([], ["x", "y"])
    assert any("came later" in line for line in check(both, LOG[2:3], crash=crash).wrong)


def test_a_crash_that_may_lose_nothing_is_held_to_it() -> None:
    wrong = check(history(X, Y), LOG[:2], crash=Crash(100, may_lose=False)).wrong
    assert wrong == [f"y was acknowledged, and is not there: {Y}"]


def test_what_began_after_a_crash_is_not_lost_by_it() -> None:
    later = Append("w", [Part(A, 1)], 110, 120, "acknowledged", [(4, 6)])
    wrong = check(history(X, later), LOG[:2], crash=Crash(100, may_lose=True)).wrong
    assert len(wrong) == 1
    assert "w was acknowledged" in wrong[0]


def test_versions_that_were_lost_are_given_again_after_a_crash() -> None:
    again = Append("v", [Part(B, 1, "no stream")], 110, 120, "acknowledged", [(1, 4)])
    seen = Scan(0, LOG[:3], 45, 50), Read(B, 0, 1, 45, 50, LOG[2:3]), Read(B, 0, 1, 121, 130)
    log = [*LOG[:2], Entry(4, B, 1, "v", 0)]
    assert check(history(X, Y, again, *seen), log, crash=Crash(100, True)) == ([], ["y"])


def test_a_follower_that_saw_what_a_crash_has_lost_must_not_go_on() -> None:
    again = Append("w", [Part(B, 1)], 110, 120, "acknowledged", [(1, 4)])
    later = Append("v", [Part(B, 1)], 130, 140, "acknowledged", [(2, 5)])
    log = [*LOG[:2], Entry(4, B, 1, "w", 0), Entry(5, B, 2, "v", 0)]
    seen = Scan(0, [*LOG[:3], log[3]], 15, 150, to_the_end=False)
    both = history(X, Y, again, later, seen)
    assert any("went on" in line for line in check(both, log, crash=Crash(100, True)).wrong)
    # It may be late to write down what it had read before.
    told = [Scan(0, LOG[:3], 15, 105, False), Scan(0, log, 120, 150, False)]
    assert check(history(X, Y, again, later, *told), log, crash=Crash(100, True)) == ([], ["y"])


def test_what_a_crash_has_lost_may_be_done_again_under_its_key() -> None:
    again = Append("y", [Part(B, 1, "no stream")], 110, 120, "acknowledged", [(1, 3)])
    log = [*LOG[:2], Entry(3, B, 1, "y", 0)]
    assert check(history(X, Y, again), log, crash=Crash(100, True)) == ([], [])
    assert any("several" in line for line in check(history(X, Y, again), log).wrong)


def test_a_follower_that_misses_or_repeats_is_refused() -> None:
    assert list(follows(LOG, LOG[:3])) == []
    assert list(follows(LOG, LOG[1:], after=1)) == []
    assert list(follows(LOG, [])) == []
    for seen in (LOG[1:], [LOG[0], *LOG], [LOG[1], LOG[0]], [*LOG[:2], LOG[3]]):
        assert len(list(follows(LOG, seen))) == 1


def test_what_a_killed_client_had_begun_is_remembered(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "client")
    first = recorder.begin("x", [Part(A, 2)])
    recorder.end(first, "acknowledged", [(2, 2)])
    recorder.begin("cut", [Part(A, 1, "any"), Part(B, 1, 3)])
    recorder.seen(Read(A, 0, 2, 21, 45, LOG[:2]))
    recorder.seen(Scan(0, LOG, 21, 45))
    recorder.close()
    found = recorded([tmp_path / "client"])
    known, cut = found.appends
    assert (known.outcome, known.receipts) == ("acknowledged", [(2, 2)])
    assert known.start < known.end < cut.start < cut.end == NEVER
    assert (cut.outcome, cut.parts) == ("unknown", [Part(A, 1), Part(B, 1, 3)])
    assert found.reads == [Read(A, 0, 2, 21, 45, LOG[:2])]
    assert found.scans[0].entries == LOG
    assert found.total == 4
