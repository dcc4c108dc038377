"""Many tasks at once: they share queries and commits, and each has an outcome of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import pytest

from eventstore import (
    Aggregate,
    Event,
    InvalidNameError,
    StoreClosedError,
    StreamDeletedError,
    StreamNotFoundError,
    Write,
    WrongExpectedVersionError,
    context,
    on,
)
from eventstore.aio import AsyncEventStore, company

TASKS = 100


class Paid(Event, name="together-paid"):
    amount: int


class Purse(Aggregate, stream="together-purse/{id}"):
    total: int = 0

    def pay(self, amount: int) -> int:
        if amount < 0:
            raise ValueError("pay something")
        self.record(Paid(amount))
        return self.total

    def look(self) -> int:
        return self.total

    @on(Paid)
    def _paid(self, event: Paid) -> None:
        self.total += event.amount


class Counted(Purse, stream="together-counted/{id}", snapshot_every=3):
    """With snapshots: not done together."""


def running(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A coroutine as a test, which may take a minute and no longer."""

    def run(database_url: str) -> None:
        async def opened() -> None:
            async with AsyncEventStore(database_url) as store:
                await store.append("together-other/a", Paid(0))  # now it knows what is in step
                await asyncio.wait_for(test(store), 60)

        asyncio.run(opened())

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


async def filled(store: AsyncEventStore, ids: Iterable[object], pattern: str = "purse") -> None:
    await store.append_all(Write(f"together-{pattern}/{id}", Paid(1)) for id in ids)


@running
async def test_each_gets_what_its_own_command_returned(store: AsyncEventStore) -> None:
    await filled(store, range(TASKS))
    paid = [store.transact(Purse, str(n), Purse.pay, n) for n in range(TASKS)]
    assert await asyncio.gather(*paid) == [1 + n for n in range(TASKS)]
    seen = [store.load(Purse, str(n)) for n in range(TASKS)]
    assert [purse.total for purse in await asyncio.gather(*seen)] == [1 + n for n in range(TASKS)]


@running
async def test_what_was_loaded_together_is_saved_together(store: AsyncEventStore) -> None:
    await filled(store, range(TASKS))
    purses = await asyncio.gather(*(store.load(Purse, str(n)) for n in range(TASKS)))
    purses += [Purse(f"new-{n}") for n in range(TASKS)]
    for purse in purses:
        purse.pay(2)
    await asyncio.gather(*(store.save(purse) for purse in purses))
    assert [(p.version, p.pending) for p in purses] == [(2, ())] * TASKS + [(1, ())] * TASKS
    for purse in purses:
        assert await store.version(f"together-purse/{purse.id}") == purse.version


@running
async def test_no_payment_to_a_few_purses_is_lost_or_made_twice(store: AsyncEventStore) -> None:
    await filled(store, range(3))
    async with AsyncEventStore(store.engine.url) as other:
        both = [store, other]
        paid = [both[n % 2].transact(Purse, str(n % 3), Purse.pay, 1) for n in range(TASKS)]
        totals = await asyncio.gather(*paid)
    for number in range(3):
        count = len(range(number, TASKS, 3))
        assert sorted(totals[number::3]) == [2 + n for n in range(count)]
        assert (await store.load(Purse, str(number))).total == 1 + count


@running
async def test_what_goes_wrong_is_told_to_who_asked_for_it(store: AsyncEventStore) -> None:
    await filled(store, range(TASKS))
    await store.delete_stream("together-purse/9")
    stale = await store.load(Purse, "7")
    stale.pay(1)
    await store.transact(Purse, "7", Purse.pay, 1)
    asked: list[Coroutine[Any, Any, Any]] = []
    for number in range(20, TASKS):
        asked.append(store.transact(Purse, str(number), Purse.pay, 1))
    expected: list[type[BaseException] | None] = [None] * len(asked)
    for wrong, error in (
        (store.transact(Purse, "1", Purse.pay, -1), ValueError),
        (store.transact(Purse, "not-there", Purse.pay, 1), StreamNotFoundError),
        (store.load(Purse, "not-there-either"), StreamNotFoundError),
        (store.transact(Purse, "9", Purse.pay, 1), StreamDeletedError),
        (store.load(Purse, "\n"), InvalidNameError),
        (store.save(stale), WrongExpectedVersionError),
    ):
        asked.insert(len(asked) // 2, wrong)
        expected.insert(len(expected) // 2, error)
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(f) if isinstance(f, Exception) else None for f in found] == expected
    assert stale.pending == (Paid(1),)


@running
async def test_a_command_that_only_looks_appends_nothing(store: AsyncEventStore) -> None:
    await filled(store, range(TASKS))
    head = await store.head()
    looked = [store.transact(Purse, str(n), Purse.look) for n in range(TASKS)]
    assert await asyncio.gather(*looked) == [1] * TASKS
    assert await store.head() == head


@running
async def test_long_histories_are_read_to_their_end(store: AsyncEventStore) -> None:
    for number in range(4):
        await store.append(f"together-purse/{number}", [Paid(1)] * (1_023 + number))
    seen = await asyncio.gather(*(store.load(Purse, str(n)) for n in range(4)))
    assert [(p.version, p.total) for p in seen] == [(1_023 + n,) * 2 for n in range(4)]


@running
async def test_each_event_carries_the_context_of_its_own_task(store: AsyncEventStore) -> None:
    await filled(store, range(TASKS))

    async def pay(number: int) -> None:
        with context(correlation_id=f"request {number}"):
            await store.transact(Purse, str(number), Purse.pay, 1)

    await asyncio.gather(*map(pay, range(TASKS)))
    for number in range(TASKS):
        records = [r async for r in store.read(f"together-purse/{number}", after=1)]
        assert [r.metadata.correlation_id for r in records] == [f"request {number}"]


@running
async def test_aggregates_with_snapshots_have_them(store: AsyncEventStore) -> None:
    await filled(store, range(10), "counted")
    for _ in range(2):
        await asyncio.gather(*(store.transact(Counted, str(n), Counted.pay, 1) for n in range(10)))
    assert await store.delete_snapshots() == 10


@running
async def test_commands_that_wait_for_others_do_not_keep_these_waiting(
    store: AsyncEventStore,
) -> None:
    await filled(store, range(10))
    loop = asyncio.get_running_loop()

    def pay_for(purse: Purse, other: str) -> int:
        paid = asyncio.run_coroutine_threadsafe(store.transact(Purse, other, Purse.pay, 5), loop)
        return purse.pay(paid.result(30))

    # More of them than are done at once.
    assert company.PLACES < 5
    asked = (store.transact(Purse, str(n), pay_for, str(n + 5)) for n in range(5))
    assert await asyncio.gather(*asked) == [7] * 5


@running
async def test_what_is_cancelled_while_it_waits_is_not_done(store: AsyncEventStore) -> None:
    await filled(store, range(TASKS))
    began, release = threading.Event(), threading.Event()

    def slow(purse: Purse) -> None:
        began.set()
        assert release.wait(30)

    blocked = [asyncio.create_task(store.transact(Purse, "0", slow))]
    while not began.is_set():
        await asyncio.sleep(0.001)
    # What comes now waits for those that block.
    blocked += [asyncio.create_task(store.transact(Purse, "1", slow)) for _ in range(30)]
    tasks = [asyncio.create_task(store.transact(Purse, "2", Purse.pay, 1)) for _ in range(5)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    release.set()
    await asyncio.gather(*blocked)
    assert all(task.cancelled() for task in tasks)
    assert (await store.load(Purse, "2")).version == 1


@pytest.mark.parametrize("turn", range(5))
def test_closing_leaves_nobody_waiting(url: str, turn: int) -> None:
    async def close_while_it_is_busy() -> None:
        store = AsyncEventStore(url)
        await filled(store, range(TASKS))
        asked = [
            asyncio.create_task(store.transact(Purse, str(n), Purse.pay, 1)) for n in range(TASKS)
        ]
        for _ in range(turn):
            await asyncio.sleep(0)
        await store.close()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(f) for f in found} <= {int, StoreClosedError}
        async with AsyncEventStore(url) as again:
            for number, outcome in enumerate(found):
                version = await again.version(f"together-purse/{number}")
                assert version == (2 if outcome == 2 else 1)

    asyncio.run(asyncio.wait_for(close_while_it_is_busy(), 60))
