"""The page on observability: its examples run, and it lists all that is told."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from observed import Alarm, Filled, Levels, Tank, Telemetry, Total, rival, told

import eventstore
from eventstore import EventStore

ROOT = Path(eventstore.__file__).parent
PAGE = (ROOT.parent / "docs" / "observability.md").read_text(encoding="utf-8")


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    found = Telemetry()
    yield found
    found.tracers.shutdown()
    found.meters.shutdown()


@pytest.fixture
def store(database_url: str, telemetry: Telemetry) -> Iterator[EventStore]:
    with EventStore(database_url) as store:
        yield telemetry.observe(store)


def test_the_pages_examples_run() -> None:
    program: dict[str, Any] = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "observability.md", "exec"), program)
    record = logging.makeLogRecord({"msg": "stopped", "eventstore.owner": "me"})
    assert program["Fields"]().format(record) == "stopped {'eventstore.owner': 'me'}"
    program["store"].close()


def logged() -> Iterator[tuple[str, str, str, str]]:
    """Each call of a logger in the library: the logger, levels, message and fields."""
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="logger"), attr=level), args=arguments
                ):
                    if level == "log":
                        level, arguments = "info, warning", arguments[1:]
                    fields = [
                        ast.literal_eval(key)
                        for option in node.keywords
                        if option.arg == "extra" and isinstance(option.value, ast.Dict)
                        for key in option.value.keys
                        if key is not None
                    ]
                    shown = ", ".join(f"`{field}`" for field in fields)
                    message = ast.literal_eval(arguments[0])
                    yield name.removesuffix(".__init__"), level.upper(), message, shown


def rows(heading: str) -> list[list[str]]:
    """The rows of the table on the page whose first heading is this."""
    _, _, rest = PAGE.partition(f"\n| {heading} |")
    lines = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]


def test_the_page_lists_each_log_record_with_its_fields() -> None:
    listed = [(*(cell.strip("`") for cell in row[:3]), row[3]) for row in rows("Logger")]
    assert sorted(listed) == sorted(logged())


def test_the_page_explains_each_field_of_log_records() -> None:
    explained = {name for row in rows("Field") for name in re.findall(r"`([^`]+)`", row[0])}
    used = {name for *_, shown in logged() for name in re.findall(r"`([^`]+)`", shown)}
    assert used == explained
    assert not used & vars(logging.makeLogRecord({})).keys()


def test_the_page_lists_each_span_event_and_metric() -> None:
    names = {
        node.value
        for path in (ROOT / "otel").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"eventstore\.[a-z_.]+[a-z]", node.value)
    }
    listed = {
        heading: {row[0].strip("`") for row in rows(heading)}
        for heading in ("Span", "Event", "Metric")
    }
    attributes = {
        name for name in re.findall(r"`(eventstore\.[a-z_.]+)`", PAGE) if name.count(".") == 1
    }
    assert names <= set.union(*listed.values()) | attributes
    assert set.union(*listed.values()) <= names


def test_the_page_lists_each_attribute_that_spans_have(
    store: EventStore, telemetry: Telemetry
) -> None:
    store.append("otel-tank/a", [Filled(liters=1), Filled(liters=-1)])
    store.transact(Tank, "a", rival(store, 1), 5)
    store.catch_up(Alarm)
    store.catch_up(Levels)
    store.project(Total)
    store.delete(Tank, "a")
    listed = {row[0].strip("`"): row[3] for row in rows("Span")}
    listed["eventstore.save"] += listed["eventstore.append"]
    for span in telemetry.spans():
        common = {"db.system", "db.namespace", "error.type"}
        for name in told(span).keys() - common:
            assert f"`{name}`" in listed[span.name], (span.name, name)
    metrics = {row[0].strip("`") for row in rows("Metric")}
    assert telemetry.points().keys() <= metrics
