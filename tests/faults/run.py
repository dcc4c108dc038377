"""Campaigns on every kind of database, for some time; what was done and lost, as a table and JSON.

    python tests/faults/run.py --minutes 30

What each kind promises, and is held to:

- `sqlite full`, `postgres on`: what was acknowledged is there, whatever dies.
- `sqlite normal`: the same while the machine lives. When it loses its power, the last acknowledged
  appends may be lost: whole ones, and from the end only.
- `postgres off`: that may happen whenever the server dies.
- `sqlite http`, `postgres http`: servers are the victims, and what they have answered is there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent.parent / "history"))

from campaign import Campaign, Counts, Durability
from http_campaign import HttpCampaign, PostgresDatabase, SqliteFile
from postgres_campaign import PostgresCampaign
from processes import VICTIMS, Victim
from server import Server
from sqlite_campaign import SqliteCampaign

logger = logging.getLogger("faults")

DURABILITY: Final[dict[str, Durability]] = {
    "sqlite full": "full",
    "sqlite normal": "relaxed",
    "postgres on": "full",
    "postgres off": "relaxed",
}
#: Those whose clients speak to `eventstore serve`, which is as durable as the defaults are.
HTTP: Final = ("sqlite http", "postgres http")
KINDS: Final = [*DURABILITY, *HTTP]


def run(
    counts: Mapping[str, Counts],
    seed: str,
    goes_on: Callable[[int], bool],
    *,
    seconds: float = 2.0,
    rounds: int = 10,
    victims: Sequence[Victim] = VICTIMS,
) -> None:
    """Campaigns of so many rounds, of each kind in `counts` in turn.

    They go on while `goes_on`, which is given the number of rounds, says so. Raises what a campaign
    does when a promise was broken; its files are then left behind.
    """
    kinds = list(counts)
    done = number = 0
    with contextlib.ExitStack() as stack:
        server: Server | None = None
        while goes_on(done):
            kind = kinds[number % len(kinds)]
            number += 1
            if server is None and kind.startswith("postgres"):
                server = stack.enter_context(contextlib.closing(Server()))
            with _campaign(kind, f"{seed} {number}", counts[kind], victims, server) as campaign:
                campaign.begin()
                for _ in range(rounds):
                    campaign.round(seconds)
                    done += 1
                    if not goes_on(done):
                        break
                campaign.finish()
            logger.info("%s: %d rounds", kind, counts[kind].rounds["rounds"])


@contextlib.contextmanager
def _campaign(
    kind: str, seed: str, counts: Counts, victims: Sequence[Victim], server: Server | None
) -> Iterator[Campaign | HttpCampaign]:
    folder = Path(tempfile.mkdtemp(prefix="eventstore-campaign-"))
    on_server = None if kind.startswith("sqlite") else server
    campaign: Campaign | HttpCampaign
    if kind in HTTP:
        database = SqliteFile(folder) if on_server is None else PostgresDatabase(on_server)
        campaign = HttpCampaign(database, folder, f"{kind} {seed}", counts)
    else:
        arguments = (DURABILITY[kind], folder, f"{kind} {seed}", counts, victims)
        if on_server is None:
            campaign = SqliteCampaign(*arguments)
        else:
            campaign = PostgresCampaign(on_server, *arguments)
    try:
        yield campaign
    finally:
        campaign.close()
    shutil.rmtree(folder)


def table(counts: Mapping[str, Counts]) -> str:
    """A line a thing that was counted, a column a kind of database."""
    lines = [["", *counts]]
    for name in Counts._fields:
        whats = sorted(set().union(*(getattr(count, name) for count in counts.values())))
        for what in whats:
            label = what if name == "rounds" else f"{_LABELS[name]}: {what}"
            lines.append([label, *(f"{getattr(c, name)[what]:,}" for c in counts.values())])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = []
    for label, *numbers in lines:
        right = (n.rjust(width) for n, width in zip(numbers, widths[1:], strict=True))
        shown.append("| " + " | ".join([label.ljust(widths[0]), *right]) + " |")
    shown.insert(
        1, "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    )
    return "\n".join(shown)


_LABELS: Final = {"faults": "fault", "operations": "done", "lost": "lost, as it may be"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--most", type=int, default=10**9, help="rounds in all")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**9)))
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=10, help="on one database")
    options = parser.parse_args()
    logger.addHandler(logging.StreamHandler())  # not the library's: its warnings are expected
    logger.setLevel(logging.INFO)
    began = time.monotonic()
    print(f"seed {options.seed}", flush=True)  # noqa: T201
    counts = {kind: Counts(Counter(), Counter(), Counter(), Counter()) for kind in options.kinds}
    try:
        run(
            counts,
            options.seed,
            lambda done: done < options.most and time.monotonic() - began < options.minutes * 60,
            seconds=options.seconds,
            rounds=options.rounds,
        )
    finally:
        print(table(counts))  # noqa: T201
        print(json.dumps({kind: count._asdict() for kind, count in counts.items()}))  # noqa: T201


if __name__ == "__main__":
    main()
