"""What every follower of the log declares about itself: a name, a version, what it reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from eventstore.aggregate import Aggregate
from eventstore.errors import DefinitionError

_holders: Final[dict[tuple[str, str], type]] = {}


def owner_of(cls: type) -> str:
    """A class as error texts call it."""
    return f"{cls.__module__}.{cls.__qualname__}"


def claim(kind: str, name: str, cls: type) -> str:
    """Let a class have a name (of a follower, of a table), which no other class has.

    The same class made again (a notebook's cell, a reload) takes its own place. Raises
    DefinitionError.
    """
    checked_name(kind, name, cls)
    holder = _holders.setdefault((kind, name), cls)
    if (holder.__module__, holder.__qualname__) != (cls.__module__, cls.__qualname__):
        raise DefinitionError(
            owner_of(cls), f"the {kind} {name!r} belongs to {owner_of(holder)}: use another name"
        )
    _holders[kind, name] = cls
    return name


def checked_name(kind: str, name: object, cls: type) -> str:
    """A name that a class may have. Raises DefinitionError."""
    if not isinstance(name, str) or not name or len(name) > 255 or not name.isprintable():
        raise DefinitionError(
            owner_of(cls), f"{name!r} cannot be the name of a {kind}: use 1 to 255 characters"
        )
    return name


def checked_version(cls: type, version: Any) -> int:
    """A class's version. Raises DefinitionError."""
    if type(version) is not int or version < 1:
        raise DefinitionError(owner_of(cls), f"version = {version!r} must be a whole number from 1")
    return version


def checked_categories(
    cls: type, categories: Iterable[type[Aggregate] | str] | None
) -> tuple[str, ...] | None:
    """The categories that a class reads, by name; None for all of them. Raises DefinitionError."""
    if categories is None:
        return None
    if isinstance(categories, str):
        raise DefinitionError(
            owner_of(cls), f"categories={categories!r} must be a list: [{categories!r}]"
        )
    return tuple(
        category if isinstance(category, str) else category.__stream__.category
        for category in categories
    )
