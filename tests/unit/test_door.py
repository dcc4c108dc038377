"""The public door: what it shows, and what importing it costs."""

from __future__ import annotations

from types import ModuleType

from programs import imported_by

import eventstore


def test_all_is_exactly_what_is_exported() -> None:
    public = {
        name
        for name, value in vars(eventstore).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert sorted(public) == sorted(eventstore.__all__)
    assert len(set(eventstore.__all__)) == len(eventstore.__all__)


def test_every_public_name_is_documented() -> None:
    for name in eventstore.__all__:
        value = getattr(eventstore, name)
        if isinstance(value, type) or callable(value):
            assert value.__doc__, name


def test_every_error_derives_from_the_root() -> None:
    errors = [name for name in eventstore.__all__ if name.endswith("Error")]
    assert len(errors) > 20
    for name in errors:
        assert issubclass(getattr(eventstore, name), eventstore.EventStoreError)


def test_importing_is_cheap() -> None:
    """Neither migrations nor drivers nor test tools nor web frameworks are imported."""
    modules = imported_by("eventstore")
    loaded = {name.partition(".")[0] for name in modules}
    unwanted = {"alembic", "psycopg", "pytest", "hypothesis", "starlette", "mako"}
    assert loaded & unwanted == set()
    assert "eventstore" in loaded
