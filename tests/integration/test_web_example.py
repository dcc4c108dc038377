"""The example application, and others, under concurrent load too."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from applications import EXAMPLE, REQUESTS, in_process, notes_app, run, served

from eventstore import EventStore


@pytest.fixture(scope="module")
def shop() -> Any:
    """The example application's module."""
    spec = importlib.util.spec_from_file_location("shop_api", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["shop_api"] = module  # where pydantic looks for the names in annotations
    spec.loader.exec_module(module)
    return module


# --- under load ----------------------------------------------------------------------------------


def ids_of(name: str) -> dict[str, str]:
    return {"X-Correlation-ID": f"request-{name}", "X-User": f"user-{name}"}


def check_log(url: str, stream: str, answers: dict[str, int], success: int, member: str) -> None:
    """Each success is in the log once with its own metadata, each conflict is not, that is all."""
    assert set(answers.values()) <= {success, 409}
    with EventStore(url) as store:
        records = [r for r in store.read(stream) if r.type != "OrderOpened"]
        assert [r.version for r in store.read(stream)] == [*range(1, store.version(stream) + 1)]
    names = [getattr(record.event, member) for record in records]
    assert sorted(names) == sorted(name for name, status in answers.items() if status == success)
    assert names
    for record, name in zip(records, names, strict=True):
        assert record.metadata.correlation_id == f"request-{name}"
        assert record.metadata["user"] == f"user-{name}"


async def add_lines(client: httpx.AsyncClient) -> dict[str, int]:
    assert (await client.post("/orders", json={"id": "7"})).status_code == 201
    answers: dict[str, int] = {}

    async def add(name: str) -> None:
        line = {"sku": name, "quantity": 1}
        answer = await client.post("/orders/7/lines", json=line, headers=ids_of(name))
        answers[name] = answer.status_code
        assert answer.headers["x-correlation-id"] == f"request-{name}"

    await asyncio.gather(*(add(f"{number}") for number in range(REQUESTS)))
    assert len(answers) == REQUESTS
    assert (await client.get("/orders/7")).json()["lines"] == {
        name: 1 for name, status in answers.items() if status == 204
    }
    return answers


def test_transact_under_load_loses_nothing(shop: Any, url: str) -> None:
    async def main() -> None:
        async with in_process(shop.make_app(url)) as client:
            answers = await add_lines(client)
        check_log(url, "order/7", answers, 204, "sku")

    run(main())


def test_transact_under_load_loses_nothing_on_a_real_server(shop: Any, url: str) -> None:
    async def main() -> None:
        async with served(shop.make_app(url)) as client:
            answers = await add_lines(client)
        check_log(url, "order/7", answers, 204, "sku")

    run(main())


def test_expected_versions_under_load_lose_nothing(url: str) -> None:
    async def main() -> None:
        answers: dict[str, int] = {}
        async with in_process(notes_app(url)) as client:

            async def note(name: str) -> None:
                headers = ids_of(name)
                expected = (await client.get("/version", headers=headers)).json()
                body = {"text": name, "expected": expected}
                answer = await client.post("/notes", json=body, headers=headers)
                answers[name] = answer.status_code
                if answer.status_code == 409:
                    conflict = answer.json()
                    assert conflict["expected"] == expected
                    assert conflict["actual"] > expected

            for start in range(0, REQUESTS, 25):  # so that several versions are fought for
                await asyncio.gather(*(note(f"{n}") for n in range(start, start + 25)))
        assert len(answers) == REQUESTS
        assert 409 in answers.values()
        check_log(url, "web-notes/1", answers, 201, "text")

    run(main())


def test_of_conflicting_requests_with_one_version_one_is_written(url: str) -> None:
    async def main() -> None:
        answers: dict[str, int] = {}
        async with in_process(notes_app(url)) as client:

            async def note(name: str) -> None:
                body = {"text": name, "expected": 0}
                answer = await client.post("/notes", json=body, headers=ids_of(name))
                answers[name] = answer.status_code

            await asyncio.gather(*(note(f"{n}") for n in range(REQUESTS)))
        assert sorted(answers.values()) == [201] + [409] * (REQUESTS - 1)
        check_log(url, "web-notes/1", answers, 201, "text")

    run(main())


def test_requests_repeated_with_one_key_have_one_effect(shop: Any, url: str) -> None:
    async def main() -> None:
        async with in_process(shop.make_app(url)) as client:
            for id in ("7", "8"):
                await client.post("/orders", json={"id": id})
            line = {"sku": "tea", "quantity": 2}
            for id in ("7", "8"):
                adding = [
                    client.post(f"/orders/{id}/lines", json=line, headers={"Idempotency-Key": "k"})
                    for _ in range(20)
                ]
                for answer in await asyncio.gather(*adding):
                    assert answer.status_code in (204, 409)
                assert (await client.get(f"/orders/{id}")).json()["lines"] == {"tea": 2}

    run(main())


# --- the example ---------------------------------------------------------------------------------


def test_the_example_answers_of_the_past_and_of_conflicts(shop: Any, url: str) -> None:
    async def main() -> None:
        async with in_process(shop.make_app(url)) as client:
            assert (await client.post("/orders", json={"id": "7"})).status_code == 201
            assert (await client.post("/orders", json={"id": "7"})).status_code == 409
            with EventStore(url) as store:
                opened = next(store.read("order/7")).recorded_at
            await client.post("/orders/7/lines", json={"sku": "tea", "quantity": 2})
            now = {"id": "7", "version": 2, "lines": {"tea": 2}, "placed": False}
            assert (await client.get("/orders/7")).json() == now
            then = {"id": "7", "version": 1, "lines": {}, "placed": False}
            at = {"at": opened.isoformat()}
            assert (await client.get("/orders/7", params=at)).json() == then
            assert (await client.get("/orders/7", params={"at": "2026-01-02"})).status_code == 422
            assert (await client.get("/orders/9")).status_code == 404
            assert (await client.post("/orders/7/place")).status_code == 428
            for version, status in (("1", 422), ("2", 200), ("2", 409), ("3", 422)):
                headers = {"If-Match": f'"{version}"'}
                answer = await client.post("/orders/7/place", headers=headers)
                assert answer.status_code == status, version

    run(main())


def readers() -> set[threading.Thread]:
    """The threads that follow a log for live readers."""
    return {thread for thread in threading.enumerate() if thread.name == "eventstore-live"}


def test_a_live_answer_ends_when_the_client_leaves(shop: Any, url: str) -> None:
    before = readers()

    async def main() -> None:
        async with served(shop.make_app(url)) as client:
            await client.post("/orders", json={"id": "7"})
            await client.post("/orders", json={"id": "8"})
            ids: list[str] = []
            async with client.stream("GET", "/orders/7/events") as answer:
                lines = answer.aiter_lines()
                assert await event_of(lines, ids) == "OrderOpened"
                for id in ("8", "7"):  # the other order's events are not given
                    line = {"sku": f"for-{id}", "quantity": 1}
                    await client.post(f"/orders/{id}/lines", json=line)
                assert await event_of(lines, ids) == "LineAdded"
                assert readers() - before
            while readers() - before:
                await asyncio.sleep(0.01)
            resumed = {"Last-Event-ID": ids[0]}
            async with client.stream("GET", "/orders/7/events", headers=resumed) as answer:
                assert await event_of(answer.aiter_lines(), ids) == "LineAdded"
            assert ids[1] == ids[2]
            assert (await client.get("/orders/9/events")).status_code == 404

    run(main())


async def event_of(lines: AsyncIterator[str], ids: list[str]) -> str:
    """The type of the next event, whose id is noted."""
    fields: dict[str, str] = {}
    async for line in lines:
        if line.startswith(":"):
            continue
        if not line and fields:
            ids.append(fields["id"])
            return fields["event"]
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
    raise AssertionError("the answer ended")


def test_a_live_answer_with_nothing_to_tell_says_so(shop: Any, sqlite_url: str) -> None:
    async def main() -> None:
        async with served(shop.make_app(sqlite_url, breath=0.01)) as client:
            await client.post("/orders", json={"id": "7"})
            async with client.stream("GET", "/orders/7/events") as answer:
                async for line in answer.aiter_lines():
                    if line == ": nothing yet":
                        break

    run(main())
