"""Targets: what the command line names as `module:Name`."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeGuard

from eventstore import EventHandler, EventStoreError, TableProjection

if TYPE_CHECKING:
    from eventstore.following_store import Following


class TargetError(EventStoreError):
    """What the command line names is not to be had. `.target` is as it was written."""

    def __init__(self, target: str, problem: str) -> None:
        self.target = target
        super().__init__(f"{target!r}: {problem}")


def find(target: str) -> Following:
    """The projection or event handler of that name; modules of the current folder are found too.

    A function is called, and has to return one. Raises TargetError.
    """
    found = named(target)
    if callable(found) and not isinstance(found, (type, EventHandler)):
        try:
            found = found()
        except Exception as error:
            name = target.partition(":")[2]
            raise TargetError(target, f"calling {name} failed: {_told(error)}") from error
    if not _follows(found):
        raise TargetError(target, f"{found!r} is neither a TableProjection nor an EventHandler")
    return found


def named(target: str, form: str = "module:Name") -> Any:
    """What a target names, as it is; `form` is how to write it. Raises TargetError."""
    module, _, name = target.partition(":")
    if not module or not name:
        raise TargetError(target, f"write it as {form}")
    found = import_module(target, module)
    try:
        return attrgetter(name)(found)
    except AttributeError as error:
        raise TargetError(target, f"there is no {name} in {found.__file__}") from error


def import_module(target: str, module: str) -> Any:
    """The module of that name; the current folder is looked in first. Raises TargetError."""
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise TargetError(target, f"importing {module} failed: {_told(error)}") from error


def _follows(found: object) -> TypeGuard[Following]:
    if isinstance(found, type):
        return issubclass(found, (TableProjection, EventHandler))
    return isinstance(found, EventHandler)


def _told(error: Exception) -> str:
    """An exception, with the place in the program that raised it."""
    told = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "importlib" not in f.filename and f.filename != __file__]
    return f"{told} ({own[-1].filename}, line {own[-1].lineno})" if own else told
