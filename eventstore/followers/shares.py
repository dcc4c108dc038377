"""Shares: how many shards of a follower each of its workers takes, without asking the others."""

from __future__ import annotations

import hashlib
from collections.abc import Collection


def share(name: str, shards: int, workers: Collection[str], worker: str) -> int:
    """How many of a follower's shards are for a worker; no two differ by more than one.

    Who gets one more depends on the follower's name, so that of many followers with one shard
    each every worker gets some.
    """
    least, more = divmod(shards, len(workers))
    order = sorted(workers, key=lambda other: hashlib.sha256(f"{name}\0{other}".encode()).digest())
    return least + (order.index(worker) < more)
