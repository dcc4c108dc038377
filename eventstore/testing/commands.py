"""The commands of an aggregate, and what they can be called with: found by their type hints.

Needs Hypothesis, as what uses it does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, get_type_hints

from hypothesis import strategies as st

from eventstore.aggregate import Aggregate
from eventstore.errors import InvalidArgumentError
from eventstore.handlers import _HANDLES
from eventstore.testing.strategies import values_of

Strategy = st.SearchStrategy[Any]

#: Which commands, with strategies for arguments that their type hints do not tell enough about.
Commands = Mapping[Callable[..., Any], Mapping[str, Strategy]]


@dataclass(frozen=True)
class Command:
    """A command, with a strategy for each argument but the aggregate's own id."""

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Strategy]
    #: Whether it makes a new aggregate, and whether it wants to be told its id then.
    makes: bool
    takes_id: bool
    positional: tuple[str, ...]

    def call(self, *first: Any, arguments: Mapping[str, Any]) -> Any:
        """Call it; raises what it raises."""
        named = dict(arguments)
        rest = [named.pop(name) for name in self.positional]
        return self.function(*first, *rest, **named)


def commands_of(cls: type[Aggregate], given: Commands | None) -> list[Command]:
    """The commands that are given, or all public ones. Raises InvalidArgumentError."""
    found = {each: {} for each in _public(cls)} if given is None else given
    if not found:
        raise InvalidArgumentError(
            "commands", given, f"{cls.__name__} has no public method that could be a command"
        )
    return [_command(cls, function, arguments) for function, arguments in found.items()]


def _public(cls: type[Aggregate]) -> Iterator[Callable[..., Any]]:
    names: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, Aggregate) and base is not Aggregate:
            names.update(vars(base))
    for name, member in names.items():
        if name.startswith("_") or hasattr(member, _HANDLES):
            continue
        factory = isinstance(member, classmethod) and _makes(cls, member.__func__)
        if factory or inspect.isfunction(member):
            yield getattr(cls, name)


def _hints(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except NameError:  # of a class inside a function, say: strategies may still be given
        return {}


def _makes(cls: type[Aggregate], function: Any) -> bool:
    made = _hints(function).get("return", function.__annotations__.get("return"))
    if isinstance(made, str):
        return made in ("Self", *(base.__name__ for base in cls.__mro__))
    return made is Self or (isinstance(made, type) and issubclass(cls, made))


def _command(
    cls: type[Aggregate], function: Callable[..., Any], given: Mapping[str, Strategy]
) -> Command:
    name = function.__name__
    makes = isinstance(getattr(function, "__self__", None), type)
    if makes:  # of the class that is tested, though another was named
        function = getattr(cls, name)
    hints = _hints(getattr(function, "__func__", function))
    parameters = list(inspect.signature(function).parameters.values())[0 if makes else 1 :]
    takes_id = makes and any(p.name == "id" for p in parameters)
    where = f"{cls.__name__}.{name}"
    arguments: dict[str, Strategy] = {}
    positional = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            positional.append(parameter.name)
        advice = f'say what to call it with: commands={{{where}: {{"{parameter.name}": ...}}}}'
        if parameter.name in given:
            arguments[parameter.name] = given[parameter.name]
        elif takes_id and parameter.name == "id":
            continue
        elif parameter.name in hints:
            path = f"{where}.{parameter.name}"
            arguments[parameter.name] = values_of(hints[parameter.name], path, advice)
        elif parameter.default is parameter.empty:
            raise InvalidArgumentError(
                where, parameter.name, f"it has no type hint that can be read; {advice}"
            )
    unknown = [each for each in given if each not in arguments]
    if unknown:
        raise InvalidArgumentError(where, unknown[0], "it has no such parameter")
    return Command(name, function, arguments, makes, takes_id, tuple(positional))
