"""Which method handles which event, checked when the class is made."""

from __future__ import annotations

from typing import Any

import pytest

from eventstore import Aggregate, DefinitionError, Event, RecordedEvent, on
from eventstore.handlers import Handlers
from eventstore.state import StateType


class Moved(Event, name="unit-moved"):
    by: int = 1


class MovedFar(Moved, name="unit-moved-far"):
    pass


class MovedFurther(MovedFar, name="unit-moved-further"):
    pass


class Stopped(Event, name="unit-stopped"):
    pass


def refused(body: dict[str, Any]) -> DefinitionError:
    namespace = {"__module__": "m", "__qualname__": "Broken", **body}
    with pytest.raises(DefinitionError) as caught:
        StateType("Broken", (Aggregate,), namespace)
    assert caught.value.owner == "m.Broken"
    assert "m.Broken" in str(caught.value)
    return caught.value


@pytest.mark.parametrize("target", [int, "Moved", None, 5, Moved(), Aggregate])
def test_a_handler_for_what_is_no_event_is_refused(target: Any) -> None:
    error = refused({"_moved": on(target)(lambda self, event: None)})
    assert error.member == "_moved"


def test_two_handlers_for_one_event_are_refused() -> None:
    error = refused(
        {
            "_first": on(Moved)(lambda self, event: None),
            "_second": on(Moved)(lambda self, event: None),
        }
    )
    assert error.member == "_second"
    assert "_first" in str(error)


@pytest.mark.parametrize(
    "handler",
    [
        lambda: None,
        lambda self: None,
        lambda self, event, record: None,
        lambda self, event, *, key: None,
    ],
)
def test_a_handler_with_other_arguments_is_refused(handler: Any) -> None:
    error = refused({"_moved": on(Moved)(handler)})
    assert error.member == "_moved"
    assert "(self, event)" in str(error)


def test_an_async_handler_is_refused() -> None:
    async def moved(self: Any, event: Moved) -> None: ...

    error = refused({"_moved": on(Moved)(moved)})  # type: ignore[arg-type]
    assert "async" in str(error)


def test_what_is_no_method_is_refused() -> None:
    error = refused({"_moved": on(Moved)(type("Odd", (), {}))})
    assert error.member == "_moved"


def test_one_method_may_handle_several_events() -> None:
    class Both(Aggregate):
        count: int = 0

        @on(Moved)
        @on(Stopped)
        def _any(self, event: Moved | Stopped) -> None:
            self.count += 1

    both = Both("a")
    both.record(Moved())
    both.record(Stopped())
    assert both.count == 2


def test_the_handler_of_the_nearest_base_class_takes_an_event() -> None:
    class Path(Aggregate):
        seen: tuple[str, ...] = ()

        @on(Moved)
        def _moved(self, event: Moved) -> None:
            self.seen += ("moved",)

        @on(MovedFar)
        def _far(self, event: MovedFar) -> None:
            self.seen += ("far",)

    path = Path("a")
    for event in (Moved(), MovedFar(), MovedFurther(), Stopped()):
        path.record(event)
    assert path.seen == ("moved", "far", "far")
    assert Path.__handlers__.find(Stopped) is None
    assert set(Path.__handlers__.declared) == {Moved, MovedFar}


def test_a_projections_handler_may_take_the_record() -> None:
    class View:
        @on(Moved)
        def _moved(self, event: Moved, record: RecordedEvent) -> None: ...

        @on(Stopped)
        def _stopped(self, event: Stopped) -> None: ...

    handlers = Handlers(View, may_take_record=True)
    assert handlers.takes_record == {View._moved}
    with pytest.raises(DefinitionError):
        Handlers(View, may_take_record=False)
