"""Metadata and the context that carries it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from eventstore import InvalidEventError, Metadata, bind, context
from eventstore.metadata import current


def test_nothing_is_carried_by_default() -> None:
    assert dict(current()) == {}
    assert current().encoded is None
    assert current().correlation_id is None
    assert current().causation_id is None


def test_blocks_nest_and_end() -> None:
    with context(user="ann", correlation_id="c") as outer:
        assert dict(outer) == {"user": "ann", "correlation_id": "c"}
        with context(user="bob"):
            assert dict(current()) == {"user": "bob", "correlation_id": "c"}
        assert current() is outer
    assert dict(current()) == {}


def test_a_block_ends_after_an_error_too() -> None:
    with pytest.raises(RuntimeError), context(user="ann"):
        raise RuntimeError
    assert dict(current()) == {}


@pytest.mark.parametrize("bad", [object(), {1, object()}, 1j, "\ud800", {"x": [object()]}])
def test_what_json_cannot_hold_is_refused_at_once(bad: Any) -> None:
    with pytest.raises(InvalidEventError) as caught, context(value=bad):
        raise AssertionError
    assert caught.value.event_type == "metadata"
    assert dict(current()) == {}


def test_metadata_is_what_the_log_will_give_back() -> None:
    values = {"n": 1, "list": [1, (2, 3)], "none": None}
    metadata = Metadata(values)
    values["n"] = 2
    assert dict(metadata) == {"n": 1, "list": [1, [2, 3]], "none": None}
    assert Metadata.stored(metadata.encoded) == metadata
    assert Metadata.stored(None) == {}
    assert (len(metadata), list(metadata), metadata["n"]) == (3, ["n", "list", "none"], 1)
    with pytest.raises(TypeError):
        metadata["n"] = 3  # type: ignore[index]


def test_a_bound_function_takes_its_context_along() -> None:
    seen = []

    def look(word: str) -> str:
        """Look."""
        seen.append(dict(current()))
        return word

    with context(user="ann"):
        bound = bind(look)
    assert bound.__doc__ == "Look."
    for target in (bound, look):
        thread = threading.Thread(target=target, args=("x",))
        thread.start()
        thread.join()
    with context(user="bob"):
        assert bound("y") == "y"
        assert dict(current()) == {"user": "bob"}
    assert seen == [{"user": "ann"}, {}, {"user": "ann"}]


def test_tasks_inherit_and_do_not_leak() -> None:
    async def inner(name: str) -> dict[str, Any]:
        with context(task=name):
            await asyncio.sleep(0)
            return dict(current())

    async def main() -> None:
        with context(user="ann"):
            found = await asyncio.gather(inner("a"), inner("b"))
            assert list(found) == [{"user": "ann", "task": "a"}, {"user": "ann", "task": "b"}]
            assert dict(current()) == {"user": "ann"}

    asyncio.run(main())
