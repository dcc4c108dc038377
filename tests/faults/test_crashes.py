"""What crashes of a server have found, each by itself."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from operations import Put
from sheet import Echoed

from eventstore import EventStore

if TYPE_CHECKING:
    from server import Server


def _crashed(server: Server) -> None:
    server.kill(signal.SIGQUIT)
    server.start()


def test_types_that_a_program_knows_outlive_a_crash_that_loses_their_first_events(
    mortal_server: Server, mortal_url: str
) -> None:
    with EventStore(mortal_url, durability="relaxed") as store:
        store.append("faults-sheet/1", Put(op="x", n=0))
        store.append("faults-echo/1", Echoed(source="y"))
        _crashed(mortal_server)
        store.append("faults-sheet/2", [Put(op="z", n=0), Put(op="z", n=1)])
        store.append("faults-echo/2", Echoed(source="y"))
        types = [record.type for record in store.read_all()][-3:]
        assert types == ["history-put", "history-put", "echoed"]
