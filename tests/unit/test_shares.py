"""Shares of a follower's shards: all of them are given, and to nobody much more than to others."""

from __future__ import annotations

import pytest

from eventstore.followers.shares import share


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 20])
def test_shares_add_up_and_differ_by_one_at_most(shards: int, count: int) -> None:
    workers = [f"worker {number}" for number in range(count)]
    shares = [share("balances", shards, workers, worker) for worker in workers]
    assert sum(shares) == shards
    assert max(shares) - min(shares) <= 1


def test_the_order_of_the_workers_does_not_matter() -> None:
    workers = ["a", "b", "c"]
    assert all(
        share("balances", 4, workers, worker) == share("balances", 4, workers[::-1], worker)
        for worker in workers
    )


def test_many_followers_of_one_shard_are_spread() -> None:
    workers = ["a", "b", "c"]
    taken = {w: sum(share(f"p{n}", 1, workers, w) for n in range(60)) for w in workers}
    assert sum(taken.values()) == 60
    assert all(taken.values())
