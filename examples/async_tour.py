"""The tour on asyncio: the same classes, the same operations, awaited.

python async_tour.py                      # embedded: a SQLite file in a temporary folder
python async_tour.py postgresql+psycopg://user@host/db      # after: eventstore migrate URL
"""

import asyncio
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import select
from tour import Account, Balances, Totals

from eventstore import WrongExpectedVersionError
from eventstore.aio import AsyncEventStore


async def main(url: str) -> None:
    async with AsyncEventStore(url) as store:
        # write: whole aggregates, with optimistic concurrency
        alice = Account.open("alice", owner="Alice")
        alice.deposit(100)
        await store.save(alice)

        stale = await store.load(Account, "alice")
        await store.transact(Account, "alice", Account.deposit, 50)  # load, decide, append, retry
        stale.deposit(1)
        try:
            await store.save(stale)
        except WrongExpectedVersionError as conflict:
            print(f"conflict on {conflict.stream}: {conflict.expected} is not {conflict.actual}")

        # query state at a past timestamp, or at a version
        then = datetime.now(UTC)
        await store.transact(Account, "alice", Account.withdraw, 30)
        assert (await store.load(Account, "alice")).balance == 120
        assert (await store.load(Account, "alice", at=then)).balance == 150
        assert (await store.load(Account, "alice", version=2)).balance == 100
        async for step in store.history(Account, "alice"):
            record, account = step.record, step.state
            print(record.version, record.recorded_at, record.event, account.balance)

        # the log itself: one stream, or every stream in one order
        assert [r.version async for r in store.read("account/alice")] == [1, 2, 3, 4]
        positions = [r.position async for r in store.read_all(categories=["account"])]
        assert positions == sorted(positions)

        # live: what is there, then what comes
        async with store.subscribe() as subscription:
            async for record in subscription:
                if record.position == positions[-1]:
                    break

        # projections: fold now, fold as of then, and keep a read model in step
        assert (await store.project(Totals)).withdrawn == 30
        assert (await store.project(Totals, at=then)).withdrawn == 0
        await store.catch_up(Balances)
        async with store.connect() as db:
            assert await db.scalar(select(Balances.accounts.c.balance)) == 120
        await store.rebuild(Balances)  # beside the live tables, then swapped in one transaction
        async with store.as_of(Balances, at=then) as db:
            assert await db.scalar(select(Balances.accounts.c.balance)) == 150

        # share one transaction with your own tables
        async with store.connect() as db:
            bob = Account.open("bob", owner="Bob")
            bob.deposit(5)
            await db.run(lambda connection: store.sync.save(bob, connection=connection))
            await db.rollback()
        assert not await store.exists(Account, "bob")
    print("tour complete")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(main(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(main(f"sqlite:///{Path(folder) / 'bank.db'}"))
