"""Pull-wake: workers race for wakes, fall silent and give back, and nothing is left out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from asgi import Client
from subscribing import (
    FIRST,
    START,
    SUBSCRIPTIONS,
    ack,
    act,
    claim,
    code,
    events,
    links,
    pool,
    released,
    run,
    started,
    subscribe,
    tails,
    until,
)

from eventstore import EventStore


def test_workers_race_for_a_wake_and_one_has_it(store: EventStore) -> None:
    async def main(client: Client) -> None:
        await pool(client)
        nothing = await act(client, "s", "claim", {"worker": "w"})
        assert code(nothing) == (409, "NO_PENDING_WORK")
        await client.put("jobs/1", "[1]")
        (event,) = await events(client, "wake", 1)
        assert event.pop("ts") > 1_700_000_000_000
        assert event == {
            "type": "wake",
            "subscription_id": "s",
            "stream": "jobs/1",
            "generation": 1,
        }
        workers = [f"w{number}" for number in range(8)]
        answers = await asyncio.gather(
            *(act(client, "s", "claim", {"worker": worker}) for worker in workers)
        )
        won = [worker for worker, a in zip(workers, answers, strict=True) if a.status == 200]
        assert len(won) == 1
        for answer in answers:
            if answer.status != 200:
                assert code(answer) == (409, "ALREADY_CLAIMED")
                assert answer.json["error"]["current_holder"] == won[0]
                assert answer.json["error"]["generation"] == 1
        (given,) = [answer.json for answer in answers if answer.status == 200]
        assert given["lease_ttl_ms"] == 30_000

        # It says how far it is, in steps, never backwards and never too far.
        await client.post("jobs/1", "[2]")
        two = FIRST[:-1] + "2"
        assert (await ack(client, "s", given, {"jobs/1": two}, done=False)).status == 200
        assert (await ack(client, "s", given, {"jobs/1": FIRST}, done=False)).status == 200
        assert await links(client, "s") == {"jobs/1": ("glob", two)}
        for stream, offset in (("jobs/1", FIRST[:-1] + "3"), ("others/2", START)):
            beyond = await ack(client, "s", given, {"jobs/1": two, stream: offset}, done=True)
            assert code(beyond) == (409, "INVALID_OFFSET")
        ended = await ack(client, "s", given, {}, done=True)
        assert ended.json == {"ok": True, "next_wake": False}
        assert code(await ack(client, "s", given, {}, done=True)) == (409, "FENCED")
        assert code(await released(client, "s", given)) == (409, "FENCED")
        assert len(await events(client, "wake", 1)) == 1

    run(store, main)


def test_work_that_is_given_back_or_left_over_is_offered_again(store: EventStore) -> None:
    async def main(client: Client) -> None:
        await pool(client)
        await client.put("jobs/1", "[1]")
        await client.put("jobs/2", "[1]")
        await events(client, "wake", 1)
        first = await claim(client, "s")
        assert (await released(client, "s", first)).status == 204
        assert [event["generation"] for event in await events(client, "wake", 2)] == [1, 2]
        second = await claim(client, "s")
        assert second["generation"] == 2
        assert code(await ack(client, "s", first, tails(first), done=True)) == (409, "FENCED")
        half = await ack(client, "s", second, {"jobs/1": FIRST}, done=True)
        assert half.json == {"ok": True, "next_wake": True}
        last = (await events(client, "wake", 3))[-1]
        assert (last["generation"], last["stream"]) == (3, "jobs/2")
        third = await claim(client, "s")
        assert tails(third) == {"jobs/2": FIRST}
        ended = await ack(client, "s", third, tails(third), done=True)
        assert ended.json == {"ok": True, "next_wake": False}

    run(store, main)


def test_a_worker_that_falls_silent_loses_the_wake(store: EventStore) -> None:
    async def main(client: Client) -> None:
        await pool(client, lease_ttl_ms=1000)
        await client.put("jobs/1", "[1]")
        await events(client, "wake", 1)
        slow = await claim(client, "s", "slow")
        assert len(await events(client, "wake", 2)) == 2  # nobody has asked for it
        assert code(await ack(client, "s", slow, tails(slow), done=True)) == (409, "FENCED")
        assert await links(client, "s") == {"jobs/1": ("glob", START)}

        async def quick() -> bool:
            given = await claim(client, "s", "quick")
            assert given["generation"] > slow["generation"]
            return (await ack(client, "s", given, tails(given), done=True)).status == 200

        await until(quick)

    run(store, main)


def test_a_wake_stream_that_is_missing_gets_the_event_when_it_is_there(
    sqlite_store: EventStore,
) -> None:
    async def main(client: Client) -> None:
        await subscribe(client, "s", pattern="**", wake_stream="wake")
        await client.put("jobs/1", "[1]")

        async def failed() -> bool:
            found: str = (await client.get(SUBSCRIPTIONS + "s")).json["status"]
            return found == "failed"

        await until(failed)
        await client.put("wake", "[]")
        (event,) = await events(client, "wake", 1)
        assert event["generation"] == 1
        # A wake is no work, or the pattern would wake itself for ever.
        given = await claim(client, "s")
        assert tails(given) == {"jobs/1": FIRST}
        assert (await ack(client, "s", given, tails(given), done=True)).json["next_wake"] is False

    run(sqlite_store, main)


def test_a_stream_that_is_made_anew_is_pending_from_its_start(store: EventStore) -> None:
    async def main(client: Client) -> None:
        await pool(client)
        await client.put("jobs/1", "[1, 2]")
        await events(client, "wake", 1)
        given = await claim(client, "s")
        await client.ask("DELETE", "jobs/1")
        # What is gone cannot be worked on, and is nobody's mistake.
        assert (await ack(client, "s", given, tails(given), done=True)).json["next_wake"] is False
        assert await links(client, "s") == {}
        await client.put("jobs/1", "[3]")
        await events(client, "wake", 2)
        given = await claim(client, "s")
        assert tails(given) == {"jobs/1": "0000000000000001_0000000000000001"}
        assert (await ack(client, "s", given, tails(given), done=True)).json["next_wake"] is False

    run(store, main)


def test_a_server_that_is_killed_leaves_schedule_and_fence_to_the_next(
    url: str, tmp_path: Path
) -> None:
    """Also the keys: a token of the first is good for the second."""
    EventStore(url).close()  # the tables
    with started(url, tmp_path / "first") as (streams, _):
        streams.put("wake", json=[]).raise_for_status()
        wanted = {"type": "pull-wake", "pattern": "jobs/*", "wake_stream": "wake"}
        for id, lease in (("s", 600_000), ("t", 1_000)):
            answer = streams.put(SUBSCRIPTIONS + id, json={**wanted, "lease_ttl_ms": lease})
            answer.raise_for_status()
        streams.put("jobs/1", json=[1]).raise_for_status()
        claims = {
            id: streams.post(f"{SUBSCRIPTIONS}{id}/claim", json={"worker": "w"}) for id in "st"
        }
        given = {id: claim.raise_for_status().json() for id, claim in claims.items()}
    with started(url, tmp_path / "second") as (streams, _):
        # One lease is over meanwhile: with nobody to remind it, the server offers the wake again.
        seen: list[Any] = []
        offset = START
        while not any((e["subscription_id"], e["generation"]) == ("t", 2) for e in seen):
            page = streams.get("wake", params={"offset": offset, "live": "long-poll"})
            seen += page.json() if page.raise_for_status().status_code == 200 else []
            offset = page.headers["stream-next-offset"]
        answers = {}
        for id in "st":
            report = {key: given[id][key] for key in ("wake_id", "generation")}
            answers[id] = streams.post(
                f"{SUBSCRIPTIONS}{id}/ack",
                json={**report, "acks": [{"stream": "jobs/1", "offset": FIRST}], "done": True},
                headers={"authorization": f"Bearer {given[id]['token']}"},
            )
    assert answers["s"].json() == {"ok": True, "next_wake": False}
    assert (answers["t"].status_code, answers["t"].json()["error"]["code"]) == (409, "FENCED")
