"""Golden files: payloads as they were once written, which every later version has to read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from eventstore.codec import corrupt, decode_as, stored_names
from eventstore.errors import InvalidArgumentError, NewerEventError, StoredEventError
from eventstore.event import Event, event_class, event_classes, seal
from eventstore.log.base import EventType
from eventstore.testing.samples import samples_of, schema_of
from eventstore.testing.showing import differing_values

#: Set to anything but "" or "0": golden files are brought up to date.
UPDATE: Final = "EVENTSTORE_UPDATE_GOLDEN"
_INDEX: Final = "index.json"

#: What is in a golden file: "type", "version", "schema", and "samples", each with its "payload"
#: and, by version of the class, the "events" that this is read as.
_Golden = dict[str, Any]


def golden_events(
    folder: str | Path, *events: type[Event] | Event, update: bool | None = None
) -> list[Path]:
    """Check that every payload in a folder of golden files is still read as the same event.

        def test_old_events_are_still_read():
            golden_events(Path(__file__).parent / "golden")

    The first run, where there are no files yet, writes one for each event class: its stored name,
    the version and schema of its payloads, and samples. They belong into version control. From
    then on AssertionError tells of each

    - payload that is no longer read, through upcasters and aliases, or as another event;
    - class whose schema has changed while its version has not;
    - class, or new version of one, that has no file yet;
    - file that has disappeared, and file that no class is there for.

    With `update=True`, or EVENTSTORE_UPDATE_GOLDEN=1 in the environment, what is new is added and
    changed events are accepted; a payload is never changed or left out, and what is no longer read
    at all stays an error. Returns the files that were written: none by a mere check.

    `events` are the classes, or sample events of one where no sample can be made up; by default
    all that the program has imported.
    """
    if update is None:
        update = os.environ.get(UPDATE, "") not in ("", "0")
    given = _by_class(events)
    files = _Files(Path(folder))
    problems = [*files.problems(), *_old_problems(files, given, update)]
    if not update and not files.are_new:
        problems += _new_problems(files, given)
    if problems:
        count = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
        raise AssertionError(f"{count} in {files.folder.name}:\n\n" + "\n\n".join(problems))
    if not update and not files.are_new:
        return []
    for cls, samples in given.items():
        _add(files, cls, samples)
    return files.write()


def _by_class(events: Iterable[type[Event] | Event]) -> dict[type[Event], list[Event]]:
    """Each class with the samples that were given for it."""
    found: dict[type[Event], list[Event]] = {}
    each: Any  # whatever a caller without a type checker has given
    for each in events:
        if isinstance(each, Event):
            found.setdefault(type(each), []).append(each)
        elif isinstance(each, type) and issubclass(each, Event):
            found.setdefault(each, [])
        else:
            raise InvalidArgumentError("events", each, "give event classes, or events")
    if not events:
        found = {cls: [] for cls in event_classes() if not cls.__event_name__.startswith("$")}
        found.pop(Event, None)
    return dict(sorted(found.items(), key=lambda item: item[0].__event_name__))


# --- checks --------------------------------------------------------------------------------------


def _old_problems(files: _Files, given: Iterable[type[Event]], update: bool) -> Iterator[str]:
    """What is wrong with the files that are there. With `update`, changed events are accepted."""
    classes = {name: cls for cls in given for name in stored_names(cls)}
    for name, golden in files.found.items():
        stored = EventType(golden["type"], golden["version"])
        cls = classes.get(stored.name) or event_class(stored.name)
        if cls is None:
            yield (
                f"{name}: no event class is stored as {stored.name!r}: if it was renamed, give the "
                f"new class aliases=[{stored.name!r}]; if it was not imported, import it first"
            )
            continue
        unread = False
        for number, sample in enumerate(golden["samples"]):
            try:
                event = _builtins(_read(cls, stored, sample["payload"]))
            except StoredEventError as error:
                unread = True
                yield f"{name}: sample {number} is no longer read: {error}"
                continue
            version = str(cls.__event_version__)
            if update:
                sample["events"][version] = event
            elif version not in sample["events"]:
                yield (
                    f"{name}: nobody has looked yet at what {cls.__name__} makes of it at version "
                    f"{version}: {_how_to_update()}, and look at the change of the file"
                )
            elif sample["events"][version] != event and _schema_is_kept(golden, cls):
                shown = differing_values(_named(sample["events"][version]), _named(event))
                yield (
                    f"{name}: sample {number} is read as another event than it was (- golden, "
                    f"+ now):\n\n{shown}\n\nIf that is right, {_how_to_update()}"
                )
        if not _schema_is_kept(golden, cls) and (unread or not update):
            yield _schema_problem(name, golden, cls, unread)


def _schema_is_kept(golden: _Golden, cls: type[Event]) -> bool:
    """Whether the schema is the class's, or that of an older version, which may differ."""
    current: bool = golden["version"] == cls.__event_version__
    return not current or golden["schema"] == schema_of(cls)


def _schema_problem(name: str, golden: _Golden, cls: type[Event], unread: bool) -> str:
    version = cls.__event_version__
    advice = (
        "Events of the old schema may be in logs. Raise the version and say how an old payload "
        f"becomes a new one: class {cls.__name__}(Event, version={version + 1}) with "
        f"@upcast(from_version={version})"
    )
    if not unread:
        advice += (
            ". Or, if old payloads mean the same as they are (a new field has a default, say), "
            f"accept the change: {_how_to_update()}"
        )
    shown = differing_values(golden["schema"], schema_of(cls))
    return (
        f"{name}: the schema of {cls.__name__} has changed and its version is still {version} "
        f"(- golden, + now):\n\n{shown}\n\n{advice}"
    )


def _new_problems(files: _Files, given: Iterable[type[Event]]) -> Iterator[str]:
    for cls in given:
        if _file_name(cls) not in files.found:
            yield (
                f"{cls.__name__} at version {cls.__event_version__} has no golden file yet: "
                f"{_how_to_update()}"
            )


def _how_to_update() -> str:
    return f"run once with {UPDATE}=1 (or update=True)"


def _read(cls: type[Event], stored: EventType, payload: Any) -> Event:
    """The event of a payload, as a load would have it. Raises StoredEventError."""
    try:
        return decode_as(cls, stored)(msgspec.json.encode(payload))
    except (NewerEventError, StoredEventError):
        raise
    except (msgspec.MsgspecError, ValueError) as error:
        raise corrupt(stored, error) from error


def _builtins(event: Event) -> Any:
    """An event as JSON has it, sets in an order."""
    return msgspec.json.decode(msgspec.json.encode(event, order="deterministic"))


def _named(event: Any) -> dict[str, Any]:
    return event if isinstance(event, dict) else {f"[{n}]": value for n, value in enumerate(event)}


# --- files ---------------------------------------------------------------------------------------


def _add(files: _Files, cls: type[Event], samples: list[Event]) -> None:
    """Add a class's file, or to it what it lacks. Payloads that are there stay."""
    name, version = cls.__event_name__, cls.__event_version__
    golden = files.found.setdefault(
        _file_name(cls), {"type": name, "version": version, "schema": {}, "samples": []}
    )
    if not samples and golden["schema"] != schema_of(cls):
        samples = list(samples_of(cls))
    golden["schema"] = schema_of(cls)
    known = [sample["payload"] for sample in golden["samples"]]
    for sample in samples:
        event, data = seal(sample)
        payload = msgspec.json.decode(data)
        if payload not in known:
            known.append(payload)
            golden["samples"].append(
                {"payload": payload, "events": {str(version): _builtins(event)}}
            )


def _file_name(cls: type[Event]) -> str:
    name = quote(cls.__event_name__, safe=" ()$,+@")
    if len(name) > 120:  # a file's name has a limit
        name = f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"{name}.v{cls.__event_version__}.json"


class _Files:
    """The golden files of a folder, and the index that tells when one has disappeared."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[str, _Golden] = {}
        self._texts: dict[str, str] = {}
        if folder.is_dir():
            for path in sorted(folder.glob("*.json")):
                self._texts[path.name] = path.read_text(encoding="utf-8")
        index = self._texts.get(_INDEX)
        self._index: list[str] | None = None if index is None else json.loads(index)
        self.found = {
            name: json.loads(text) for name, text in self._texts.items() if name != _INDEX
        }
        #: Whether there is nothing yet.
        self.are_new = not self._texts

    def problems(self) -> Iterator[str]:
        """Files that are not where they were."""
        if self._index is None:
            if self.found:
                yield f"{_INDEX} has disappeared: restore it from version control"
            return
        for name in self._index:
            if name not in self.found:
                yield (
                    f"{name} has disappeared: restore it from version control. Only if no log "
                    f"holds such events any more, take it out of {_INDEX} too"
                )
        for name in self.found:
            if name not in self._index:
                yield f"{name} is not in {_INDEX}: add it there, or remove the file"

    def write(self) -> list[Path]:
        """Write the files that have changed, the index last; which they were."""
        self.folder.mkdir(parents=True, exist_ok=True)
        texts = {name: _text(golden) for name, golden in self.found.items()}
        texts[_INDEX] = _text(sorted(self.found))
        written = []
        for name, text in texts.items():
            if text != self._texts.get(name):
                path = self.folder / name
                path.write_text(text, encoding="utf-8")
                written.append(path)
        return written


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
