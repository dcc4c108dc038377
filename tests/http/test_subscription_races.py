"""Many at once on one subscription: each wake has one holder, and nothing stays unacknowledged."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from eventstore import EventStore
from eventstore.http.subscriptions.ledger import Ledger
from eventstore.http.subscriptions.refusals import Refused
from eventstore.http.subscriptions.state import Fence, Phase, Wake
from eventstore.ids import new_ids
from eventstore.log.base import EventType, NewEvent, Write
from eventstore.log.wakes import Subscription

PATIENCE = 60.0
EVENTS = 40
KIND = EventType("$json", 1)


def subscribed(ledger: Ledger, *, lease: int = 30_000_000, kind: str = "pull-wake") -> None:
    """A subscription "s" to `jobs/*`. The lease is in microseconds."""
    where = ("wake", None) if kind == "pull-wake" else (None, "https://hooks.example.com/")
    wake_stream, hook = where
    wanted = Subscription(
        "s",
        kind,
        "jobs/*",
        "[]",
        hook,
        wake_stream,
        lease,
        None,
        b"s",
        "",
        False,
        0,
        False,
        *Wake(),
    )
    _, is_new = ledger.create(wanted, [])
    assert is_new


def append(store: EventStore, stream: str) -> None:
    store.log.append([Write(stream, [NewEvent(KIND, b"1", new_ids(1)[0])])])


def fence_of(found: Subscription) -> Fence:
    return Fence(found.generation, found.wake_id or "")


def test_whatever_workers_do_each_wake_has_one_and_all_is_acknowledged(url: str) -> None:
    stores = [EventStore(url), EventStore(url)]
    ledgers = [Ledger(store.log) for store in stores]
    subscribed(ledgers[0], lease=100_000)
    streams = [f"jobs/{number}" for number in range(5)]
    held: Counter[int] = Counter()
    deadline = time.monotonic() + PATIENCE
    written = threading.Event()
    finished = threading.Event()
    errors: list[BaseException] = []

    def write() -> None:
        """Events, and the news of each at one of two servers."""
        for number in range(EVENTS):
            stream = random.choice(streams)
            append(stores[number % 2], stream)
            ledger = ledgers[(number + 1) % 2]
            ledger.notice([stream], ledger.interests())
        written.set()

    def serve(ledger: Ledger) -> None:
        while not finished.is_set():
            for delivery in ledger.take(8):
                random.choice([ledger.delivered, ledger.failed])(delivery)
            time.sleep(0.005)

    def work(ledger: Ledger, name: str) -> None:
        while not finished.is_set():
            try:
                found, links = ledger.claim("s", name)
            except Refused:
                time.sleep(0.005)
                continue
            held[found.generation] += 1
            done = {link.path: (link.tail_incarnation, link.tail) for link in links}
            try:
                match random.randrange(4):
                    case 0:
                        ledger.release("s", fence_of(found))
                    case 1:
                        some = dict(random.sample(sorted(done.items()), 1))
                        ledger.acknowledge("s", fence_of(found), some, done=False, is_pull=True)
                        time.sleep(0.11)  # it has fallen asleep
                        ledger.acknowledge("s", fence_of(found), done, done=True, is_pull=True)
                    case _:
                        ledger.acknowledge("s", fence_of(found), done, done=True, is_pull=True)
            except Refused as refused:
                if refused.code != "FENCED":
                    raise

    def watched(act: Callable[..., None], *arguments: Any) -> threading.Thread:
        def run() -> None:
            try:
                act(*arguments)
            except BaseException as error:
                errors.append(error)
                written.set()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    threads = [watched(write)]
    threads += [watched(serve, ledger) for ledger in ledgers]
    threads += [watched(work, ledgers[n % 2], f"w{n}") for n in range(3)]
    written.wait(PATIENCE)
    while not errors and ledgers[0].wakes.is_pending("s") and time.monotonic() < deadline:
        time.sleep(0.01)
    finished.set()
    for thread in threads:
        thread.join()
    links = ledgers[0].wakes.links("s", 100)
    for store in stores:
        store.close()
    assert not errors, errors
    assert all((link.incarnation, link.acked) == (0, link.tail) for link in links), links
    assert sum(link.tail for link in links) == EVENTS
    assert len(held) > 1  # on a quick machine a wake tells of much
    assert set(held.values()) == {1}, "a wake was held twice"


def test_a_server_that_dies_at_the_end_of_a_wake_leaves_it_to_the_next(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(store.log)
    subscribed(ledger)
    append(store, "jobs/1")
    ledger.notice(["jobs/1"], ledger.interests())
    found, links = ledger.claim("s", "w")
    assert [(link.path, link.acked, link.tail) for link in links] == [("jobs/1", 0, 1)]
    # News that come while somebody works wake nobody.
    append(store, "jobs/1")
    ledger.notice(["jobs/1"], ledger.interests())
    with monkeypatch.context() as dying:
        dying.setattr(ledger, "settle", lambda _: False)
        ledger.acknowledge("s", fence_of(found), {"jobs/1": (0, 1)}, done=True, is_pull=True)
    assert ledger.find("s").phase == Phase.IDLE
    other = Ledger(store.log)
    assert other.take(8) == []  # it sees that there is something, and wakes
    (delivery,) = other.take(8)
    assert delivery.fence.generation == 2
    assert other.take(8) == []
    assert [link.tail for link in other.contents(delivery)] == [2]


def test_news_that_were_never_heard_are_found(store: EventStore) -> None:
    ledger = Ledger(store.log)
    append(store, "jobs/1")
    subscribed(ledger)
    ledger.settle("s")
    interests = ledger.interests()
    ledger.look(interests)
    assert ledger.take(8) == []
    append(store, "jobs/1")
    append(store, "jobs/2")
    append(store, "else/1")
    ledger.look(interests)
    (delivery,) = ledger.take(8)
    pending = [(link.path, link.acked, link.tail) for link in ledger.contents(delivery)]
    assert pending == [("jobs/1", 1, 2), ("jobs/2", 0, 1)]
    ledger.delivered(delivery)
    claimed, _ = ledger.claim("s", "w")
    ledger.acknowledge("s", fence_of(claimed), {"jobs/1": (0, 2)}, done=False, is_pull=True)
    ledger.acknowledge("s", fence_of(claimed), {"jobs/2": (0, 1)}, done=True, is_pull=True)
    append(store, "jobs/2")
    ledger.recheck(interests)
    (delivery,) = ledger.take(8)
    assert [link.path for link in ledger.contents(delivery)] == ["jobs/2"]


def test_a_wake_whose_stream_is_gone_is_withdrawn(store: EventStore) -> None:
    ledger = Ledger(store.log)
    subscribed(ledger, kind="webhook")
    append(store, "jobs/1")
    ledger.notice(["jobs/1"], ledger.interests())
    (delivery,) = ledger.take(8)
    store.delete_stream("jobs/1")
    assert ledger.contents(delivery) == []
    found = ledger.find("s")
    assert (found.phase, found.due_at, found.generation) == (Phase.IDLE, None, 1)


def test_links_to_streams_that_are_gone_do_not_pile_up(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(store.log)
    append(store, "jobs/1")
    append(store, "jobs/2")
    subscribed(ledger)
    ledger.add_streams("s", ["jobs/2", "jobs/3"])
    store.delete_stream("jobs/1")
    store.delete_stream("jobs/2")
    interests = ledger.interests()
    ledger.recheck(interests)
    assert [link.path for link in ledger.wakes.links("s", 9)] == ["jobs/2", "jobs/3"]
    # One that is made anew in between is not lost.
    append(store, "jobs/4")
    monkeypatch.setattr(ledger.wakes, "gone", lambda _: [("s", "jobs/4")])
    ledger.notice(["jobs/4"], interests)
    ledger.recheck(interests)
    found, links = ledger.claim("s", "w")
    assert [(link.path, link.acked, link.tail) for link in links] == [("jobs/4", 0, 1)]
    # Who has worked on what is gone by now is not to blame.
    acks = {"jobs/4": (0, 1), "jobs/1": (0, 1)}
    assert not ledger.acknowledge("s", fence_of(found), acks, done=True, is_pull=True)


def test_many_streams_are_told_of_bit_by_bit(store: EventStore) -> None:
    ledger = Ledger(store.log)
    subscribed(ledger, kind="webhook")
    names = [f"jobs/{number:04}" for number in range(1100)]
    for start in (0, 550):
        some = names[start : start + 550]
        store.log.append([Write(n, [NewEvent(KIND, b"1", new_ids(1)[0])]) for n in some])
    ledger.notice(names, ledger.interests())
    told: list[str] = []
    for count in (1000, 100):
        (delivery,) = ledger.take(8)
        links = ledger.contents(delivery)
        assert len(links) == count
        told += [link.path for link in links]
        acks = {link.path: (link.tail_incarnation, link.tail) for link in links}
        ledger.delivered(delivery, acks)
    assert told == names
    assert ledger.take(8) == []
