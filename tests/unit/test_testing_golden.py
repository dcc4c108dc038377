"""Golden files: written once, compared ever after, and never rewritten in silence."""

from __future__ import annotations

import json
import types
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import pytest
from msgspec import Meta

from eventstore import Event, InvalidArgumentError, upcast
from eventstore.event import _by_name
from eventstore.testing import golden_events


@dataclass
class Address:
    street: str
    lines: list[str]


def event_class(
    fields: dict[str, Any],
    name: str = "golden-paid",
    body: dict[str, Any] | None = None,
    **options: Any,
) -> type[Event]:
    """A class as it is at some moment of a program's life: each one takes the place of the last."""
    namespace = {
        "__module__": __name__,
        "__qualname__": "Paid",
        "__annotations__": {key: value[0] for key, value in fields.items()},
        **{key: value[1] for key, value in fields.items() if len(value) > 1},
        **(body or {}),
    }
    return types.new_class(
        "Paid", (Event,), {"name": name, **options}, lambda b: b.update(namespace)
    )


def first() -> type[Event]:
    return event_class({"amount": (int,), "note": (str, "")})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("EVENTSTORE_UPDATE_GOLDEN", raising=False)
    return tmp_path / "golden"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def problem(folder: Path, *classes: type[Event], **options: Any) -> str:
    before = contents(folder)
    with pytest.raises(AssertionError) as caught:
        golden_events(folder, *classes, **options)
    assert contents(folder) == before  # a check that fails has written nothing
    return str(caught.value)


# --- the first run, and those after ----------------------------------------------------------


def test_the_first_run_writes_a_file_for_each_class(folder: Path) -> None:
    class Other(Event, name="golden/other", version=3):
        at: datetime
        price: Decimal | None
        home: Address

        @upcast(from_version=1)
        def _one(payload):  # type: ignore[no-untyped-def]
            return payload

        @upcast(from_version=2)
        def _two(payload):  # type: ignore[no-untyped-def]
            return payload

    written = golden_events(folder, first(), Other)
    assert names(folder) == ["golden%2Fother.v3.json", "golden-paid.v1.json", "index.json"]
    assert sorted(path.name for path in written) == names(folder)
    golden = json.loads((folder / "golden%2Fother.v3.json").read_text())
    assert golden["type"] == "golden/other"
    assert golden["version"] == 3
    assert golden["schema"] == {
        "at": "datetime",
        "price": "decimal | none",
        "home": "{street: str, lines: list of str}",
    }
    least, full = golden["samples"]
    assert least["payload"]["price"] is None
    assert full["payload"]["price"] == "12.50"
    assert full["payload"]["home"]["lines"] == ["Grüße, 日本 🐚"]
    assert full["events"] == {"3": full["payload"]}


def test_a_later_run_compares_and_writes_nothing(folder: Path) -> None:
    golden_events(folder, first())
    before = contents(folder)
    assert golden_events(folder, first()) == []
    assert contents(folder) == before


def test_by_default_it_is_about_every_class(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paid = first()
    monkeypatch.setattr("eventstore.testing.golden.event_classes", lambda: [Event, paid])
    golden_events(folder)
    assert names(folder) == ["golden-paid.v1.json", "index.json"]


def test_samples_can_be_given(folder: Path) -> None:
    class Coded(Event, name="golden-coded"):
        code: Annotated[str, Meta(pattern=r"^[A-Z]{3}-\d{4}$")]

    with pytest.raises(InvalidArgumentError, match="give an instance"):
        golden_events(folder, Coded)
    assert not folder.exists()
    golden_events(folder, Coded("ABC-1234"), Coded("XYZ-0000"))
    golden = json.loads((folder / "golden-coded.v1.json").read_text())
    assert [s["payload"]["code"] for s in golden["samples"]] == ["ABC-1234", "XYZ-0000"]
    assert golden_events(folder, Coded("ABC-1234")) == []
    with pytest.raises(InvalidArgumentError, match="event classes"):
        golden_events(folder, 5)  # type: ignore[arg-type]


# --- what is noticed -------------------------------------------------------------------------


def test_a_schema_that_changed_without_a_version_is_noticed(folder: Path) -> None:
    golden_events(folder, first())
    changed = event_class({"amount": (str,), "note": (str, "")})
    text = problem(folder, changed)
    assert "golden-paid.v1.json: sample 0 is no longer read" in text
    assert (
        "golden-paid.v1.json: the schema of Paid has changed and its version is still 1 "
        "(- golden, + now):\n\n-   amount='int'\n+   amount='str'\n    note=\"str = ''\"\n\n"
        "Events of the old schema may be in logs. Raise the version and say how an old payload "
        "becomes a new one: class Paid(Event, version=2) with @upcast(from_version=1)"
    ) in text
    assert "EVENTSTORE_UPDATE_GOLDEN" not in text  # it cannot be accepted
    assert "is no longer read" in problem(folder, changed, update=True)


def test_a_change_that_old_payloads_survive_can_be_accepted(folder: Path) -> None:
    golden_events(folder, first())
    old = json.loads((folder / "golden-paid.v1.json").read_text())
    wider = event_class({"amount": (int,), "note": (str, ""), "currency": (str, "EUR")})
    text = problem(folder, wider)
    assert "+   currency=\"str = 'EUR'\"" in text
    assert "accept the change: run once with EVENTSTORE_UPDATE_GOLDEN=1" in text
    written = golden_events(folder, wider, update=True)
    assert [path.name for path in written] == ["golden-paid.v1.json"]
    new = json.loads((folder / "golden-paid.v1.json").read_text())
    payloads = [sample["payload"] for sample in new["samples"]]
    assert payloads[:2] == [sample["payload"] for sample in old["samples"]]
    assert new["samples"][0]["events"]["1"]["currency"] == "EUR"
    assert payloads[2]["currency"]
    assert golden_events(folder, wider) == []


def test_the_environment_can_say_that_files_are_to_be_updated(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden_events(folder, first())
    wider = event_class({"amount": (int,), "note": (str, ""), "currency": (str, "EUR")})
    monkeypatch.setenv("EVENTSTORE_UPDATE_GOLDEN", "0")
    problem(folder, wider)
    monkeypatch.setenv("EVENTSTORE_UPDATE_GOLDEN", "1")
    problem(folder, wider, update=False)
    assert golden_events(folder, wider)


def upcaster(**more: Any) -> dict[str, Any]:
    @upcast(from_version=1)
    def step(payload: dict[str, Any]) -> dict[str, Any]:
        return payload | more

    return {"step": step}


def second(**more: Any) -> type[Event]:
    fields = {"amount": (int,), "currency": (str,), "note": (str, "")}
    return event_class(fields, body=upcaster(**more), version=2)


def test_a_new_version_is_looked_at_once_and_compared_from_then_on(folder: Path) -> None:
    golden_events(folder, first())
    text = problem(folder, second(currency="EUR"))
    assert "3 problems in golden:" in text
    assert "nobody has looked yet at what Paid makes of it at version 2" in text
    assert "Paid at version 2 has no golden file yet" in text
    golden_events(folder, second(currency="EUR"), update=True)
    assert names(folder) == ["golden-paid.v1.json", "golden-paid.v2.json", "index.json"]
    assert golden_events(folder, second(currency="EUR")) == []
    old = json.loads((folder / "golden-paid.v1.json").read_text())["samples"][0]
    assert old["events"]["1"] == {"amount": 1, "note": ""}
    assert old["events"]["2"] == {"amount": 1, "note": "", "currency": "EUR"}


def test_an_upcaster_that_makes_another_event_is_noticed(folder: Path) -> None:
    golden_events(folder, first())
    golden_events(folder, second(currency="EUR"), update=True)
    text = problem(folder, second(currency="USD"))
    assert "golden-paid.v1.json: sample 0 is read as another event than it was" in text
    assert "-   currency='EUR'\n+   currency='USD'\n" in text
    golden_events(folder, second(currency="USD"), update=True)
    assert golden_events(folder, second(currency="USD")) == []


def test_an_upcaster_that_fails_is_noticed(folder: Path) -> None:
    golden_events(folder, first())
    golden_events(folder, second(currency="EUR"), update=True)
    assert "golden-paid.v1.json: sample 0 is no longer read" in problem(folder, second())


def test_an_earlier_version_of_a_class_is_noticed(folder: Path) -> None:
    golden_events(folder, second(currency="EUR"))
    assert "was written at schema version 2" in problem(folder, first())


def test_a_renamed_class_needs_its_alias(folder: Path) -> None:
    golden_events(folder, first())
    fields = {"amount": (int,), "note": (str, "")}
    del _by_name["golden-paid"]
    renamed = event_class(fields, name="golden-money-paid")
    assert "give the new class aliases=['golden-paid']" in problem(folder, renamed)
    assert "give the new class" in problem(folder, renamed, update=True)
    aliased = event_class(fields, name="golden-money-paid", aliases=["golden-paid"])
    assert "has no golden file yet" in problem(folder, aliased)
    golden_events(folder, aliased, update=True)
    assert names(folder) == ["golden-money-paid.v1.json", "golden-paid.v1.json", "index.json"]
    assert golden_events(folder, aliased) == []


def test_a_new_class_is_noticed(folder: Path) -> None:
    class Later(Event, name="golden-later"):
        pass

    golden_events(folder, first())
    assert problem(folder, first(), Later) == (
        "a problem in golden:\n\nLater at version 1 has no golden file yet: run once with "
        "EVENTSTORE_UPDATE_GOLDEN=1 (or update=True)"
    )
    assert len(golden_events(folder, first(), Later, update=True)) == 2


def test_a_file_that_has_disappeared_is_noticed(folder: Path) -> None:
    golden_events(folder, first())
    golden_events(folder, second(currency="EUR"), update=True)
    (folder / "golden-paid.v1.json").unlink()
    for update in (False, True):
        text = problem(folder, second(currency="EUR"), update=update)
        assert "golden-paid.v1.json has disappeared: restore it" in text


def test_an_index_that_has_disappeared_is_noticed(folder: Path) -> None:
    golden_events(folder, first())
    (folder / "index.json").unlink()
    for update in (False, True):
        assert "index.json has disappeared" in problem(folder, first(), update=update)


def test_a_file_that_the_index_does_not_know_is_noticed(folder: Path) -> None:
    golden_events(folder, first())
    (folder / "copy.json").write_text((folder / "golden-paid.v1.json").read_text())
    assert "copy.json is not in index.json" in problem(folder, first())


def test_a_new_docstring_or_class_name_inside_is_no_change(folder: Path) -> None:
    @dataclass
    class Anschrift:
        """Another name, other words, the same payload."""

        street: str
        lines: list[str]

    golden_events(folder, event_class({"home": (Address,)}))
    assert golden_events(folder, event_class({"home": (Anschrift,)})) == []


def test_a_very_long_name_still_has_a_file(folder: Path) -> None:
    golden_events(folder, event_class({"amount": (int,)}, name="ü" * 255))
    assert max(map(len, names(folder))) < 200
