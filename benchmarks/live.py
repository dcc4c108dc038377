"""One writer and one live subscriber, in a thread beside it or in a process of its own."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

#: How many events come first, one right after the other.
WARM_UP: Final = 30
#: Seconds without a word from the subscriber.
PATIENCE: Final = 60.0

#: Gives the events past a position, and goes on with those that come.
Follow = Callable[[int], Iterator[Any]]


@dataclass(frozen=True)
class Contender:
    append: Callable[[], object]
    head: Callable[[], int]
    #: In the writer's process, and in another one, to which this is pickled.
    beside: Follow
    apart: Follow


def latencies(contender: Contender, appends: int, every: float, apart: bool) -> list[float]:
    """Append one event every so many seconds; the ms from each start till it had arrived."""
    here, there = multiprocessing.Pipe()
    follow = contender.apart if apart else contender.beside
    arguments = (follow, contender.head(), appends, there)
    subscriber: Any
    if apart:
        process = multiprocessing.get_context("spawn").Process
        subscriber = process(target=listen, args=arguments, daemon=True)
    else:
        subscriber = threading.Thread(target=listen, args=arguments, daemon=True)
    subscriber.start()
    for _ in range(WARM_UP):
        contender.append()
    _answer(here)
    begun = []
    start = time.perf_counter()
    for number in range(appends):
        time.sleep(max(0.0, start + number * every - time.perf_counter()))
        begun.append(time.perf_counter_ns())
        contender.append()
    arrived = _answer(here)
    subscriber.join()
    here.close()
    return [(end - start) / 1e6 for start, end in zip(begun, arrived, strict=True)]


def listen(follow: Follow, after: int, appends: int, pipe: Connection) -> None:
    """Say when the warm-up is over, and at the end when each event arrived."""
    arrived = []
    with closing(follow(after)) as events:  # type: ignore[type-var]
        for number, _ in enumerate(events, 1):
            arrived.append(time.perf_counter_ns())
            if number == WARM_UP:
                pipe.send(None)
            if number == WARM_UP + appends:
                break
    pipe.send(arrived[WARM_UP:])
    pipe.close()


def _answer(pipe: Connection) -> Any:
    if not pipe.poll(PATIENCE):
        raise TimeoutError("the subscriber does not get its events")
    return pipe.recv()
