"""Damaged payloads are located, and hurt no other stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from deploying import Deployment, deployments, located, reopened
from sqlalchemy import insert, select, update

from eventstore import CorruptEventError, Event, EventStore, upcast
from eventstore.log.tables import events
from eventstore.log.tables import types as event_types


@pytest.fixture
def deploy() -> Iterator[Callable[..., Deployment]]:
    with deployments() as run:
        yield run


class Weighed(Event, name="evo-weighed", version=2):
    grams: int
    by: str = ""

    @upcast(from_version=1)
    @staticmethod
    def _from_kilos(payload: dict[str, Any]) -> dict[str, Any]:
        return {"grams": payload["kilos"] * 1000}


SCALES = """
from {module} import Weighed

class Scales(Aggregate, stream="evo-scales/{{id}}"):
    grams: int = 0

    @on(Weighed)
    def _weighed(self, event: Weighed) -> None:
        self.grams += event.grams
"""


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b'{"grams":',
        b'{"grams":12,"by":"an',
        b"\x00\xff\xfe",
        b'{"grams":1,"by":"\xff\xfe"}',
        b'{"grams":"heavy"}',
        b'{"kilos":1}',
        b"[1]",
        b"null",
    ],
    ids=str,
)
@pytest.mark.parametrize("schema_version", [2, 1])
def test_a_damaged_payload_is_located_and_hurts_no_other_stream(
    store: EventStore, deploy: Callable[..., Deployment], payload: bytes, schema_version: int
) -> None:
    if schema_version == 1 and payload == b'{"kilos":1}':
        payload = b'{"grams":1}'  # what is damage in the one version is right in the other
    module = deploy(SCALES.format(module=__name__))
    store.append("evo-scales/good", [Weighed(1), Weighed(2)])
    receipt = store.append("evo-scales/a", [Weighed(1), Weighed(2), Weighed(3)])
    position = receipt.position - 1
    with store.engine.begin() as connection:
        type_id = connection.scalar(
            select(event_types.c.id).where(
                event_types.c.name == "evo-weighed", event_types.c.version == schema_version
            )
        ) or connection.scalar(
            insert(event_types)
            .values(name="evo-weighed", version=schema_version)
            .returning(event_types.c.id)
        )
        connection.execute(
            update(events)
            .where(events.c.position == position)
            .values(data=payload, type_id=type_id)
        )
    with reopened(store) as later:
        with pytest.raises(CorruptEventError) as caught:
            later.load(module.Scales, "a")
        located(caught.value, "evo-scales/a", 2, position)
        assert caught.value.event_type == "evo-weighed"
        assert isinstance(caught.value.__cause__, (ValueError, LookupError, TypeError))
        with pytest.raises(CorruptEventError) as caught:
            list(later.history(module.Scales, "a"))
        located(caught.value, "evo-scales/a", 2, position)
        assert later.load(module.Scales, "a", version=1).grams == 1
        assert later.load(module.Scales, "good").grams == 3
        first, second, third = later.read("evo-scales/a")
        assert (first.event, third.event) == (Weighed(1), Weighed(3))
        assert second.data == payload
        with pytest.raises(CorruptEventError) as caught:
            second.event  # noqa: B018
        located(caught.value, "evo-scales/a", 2, position)
        assert len(list(later.read_all())) == 5
