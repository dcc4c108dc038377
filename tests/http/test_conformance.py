"""The official conformance suite of Durable Streams, all of it, against `eventstore serve`."""

from __future__ import annotations

from pathlib import Path

import pytest
from nodejs import Node
from serving import eventstore_serve, serving

#: How many tests the suite of this version has, subscriptions included.
TESTS = 338
LONG_POLL_SECONDS = 1.0
#: The suite's tests about time mostly sleep, and of the others many wait for a long poll, so parts
#: of it run at the same time: patterns of titles, and how often such a test is tried again. Half a
#: second of the machine's is the margin of some about time, and a busy one does not have it.
PARTS = {
    "TTL|Expiry": 2,
    "^((?!TTL|Expiry).)*(Property-Based|Offset Validation)((?!TTL|Expiry).)*$": 0,
    "^((?!TTL|Expiry|Property-Based|Offset Validation).)*$": 0,
}


@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
def test_the_whole_suite_passes(node: Node, database_url: str, tmp_path: Path) -> None:
    options = ["--long-poll-timeout", str(LONG_POLL_SECONDS)]
    with serving(eventstore_serve(database_url, *options)) as server:
        env = {"SERVER": server, "LONG_POLL_TIMEOUT_MS": str(int(LONG_POLL_SECONDS * 1000))}
        told = node.vitest("conformance", PARTS, env=env, folder=tmp_path)
    passed = [title for title, outcome in told.items() if outcome.status == "passed"]
    others = [f"{title}: {outcome}" for title, outcome in told.items() if title not in passed]
    assert not others, f"{len(passed)} passed, and {len(others)} did not:\n\n" + "\n".join(others)
    assert len(passed) == TESTS
