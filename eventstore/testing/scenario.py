"""Given, when, then: what a command of an aggregate records, tested without a store."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from eventstore.aggregate import Aggregate, blank, recorded_in_handler
from eventstore.errors import InvalidArgumentError
from eventstore.event import Event, seal
from eventstore.state import state_fields
from eventstore.testing.showing import (
    alike,
    call_shown,
    differing_events,
    differing_values,
    error_shown,
    events_shown,
)

S = TypeVar("S", bound=Aggregate)
R = TypeVar("R")
P = ParamSpec("P")

_SIGNS = "(- expected, + {found})"


def given(cls: type[S], /, *events: Event, id: str = "test") -> Given[S]:
    """An aggregate to which these events have happened, and no other.

        given(Account, AccountOpened(owner="Ann"), MoneyDeposited(amount=5)) \\
            .when(Account.withdraw, 3) \\
            .then(MoneyWithdrawn(amount=3)) \\
            .state(balance=2)

    They are applied as a load applies them. Raises InvalidEventError for a value that the
    event's annotations do not allow, and what a handler raises.
    """
    aggregate = blank(cls, id)
    apply_all(aggregate, events)
    return Given(aggregate)


def when(factory: Callable[P, S], /, *args: P.args, **kwargs: P.kwargs) -> Outcome[S, S]:
    """What a function that makes a new aggregate has recorded.

    when(Account.open, "ann", owner="Ann").then(AccountOpened(owner="Ann"))
    """
    __tracebackhide__ = True
    shown = call_shown(factory, args, kwargs)
    try:
        made = factory(*args, **kwargs)
    except Exception as error:
        return Outcome(shown, None, None, error)
    if not _is_aggregate(made):
        raise InvalidArgumentError(
            "factory", factory, f"it returned {made!r}, and not an aggregate: use given(...).when"
        )
    return Outcome(shown, made, made, None)


def _is_aggregate(made: object) -> bool:
    return isinstance(made, Aggregate)


def apply_all(aggregate: Aggregate, events: tuple[Event, ...] | list[Event]) -> None:
    """Apply events as a load does: nothing is pending, and the version counts them."""
    for event in events:
        sealed, _ = seal(event)
        handler = aggregate.__handlers__.find(type(sealed))
        if handler is not None:
            handler(aggregate, sealed)
        if aggregate._pending:
            raise recorded_in_handler(aggregate, type(sealed))
        aggregate.version += 1


class Given(Generic[S]):
    """An aggregate with a past, which waits for a command: see `given`."""

    __slots__ = ("aggregate",)

    def __init__(self, aggregate: S) -> None:
        #: The aggregate as its events have left it.
        self.aggregate = aggregate

    def when(
        self, command: Callable[Concatenate[S, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Outcome[S, R]:
        """Give it a command: a method of its class, or any function that takes the aggregate.

        What it raises is kept for `raises`. What was given stays as it is, for another `when`.
        """
        __tracebackhide__ = True
        if isinstance(getattr(command, "__self__", None), type):
            raise InvalidArgumentError(
                "command",
                command,
                "it makes a new aggregate, so nothing was given: use when(factory, ...) alone",
            )
        shown = call_shown(command, args, kwargs)
        aggregate = copy.deepcopy(self.aggregate)
        try:
            result = command(aggregate, *args, **kwargs)
        except Exception as error:
            return Outcome(shown, aggregate, None, error)
        return Outcome(shown, aggregate, result, None)

    def __repr__(self) -> str:
        return f"<Given {self.aggregate!r}>"


class Outcome(Generic[S, R]):
    """What a command did. Each check returns the outcome, so that another can follow.

    `events`, `aggregate` and `result` are for plain asserts. An error of the command comes out
    of whatever is asked first, unless that is `raises`; after it, the rest says what the command
    had done before it failed.
    """

    __slots__ = ("_aggregate", "_command", "_error", "_result", "_seen")

    def __init__(
        self, command: str, aggregate: S | None, result: R | None, error: Exception | None
    ) -> None:
        self._command = command
        self._aggregate = aggregate
        self._result = result
        self._error = error
        self._seen = error is None

    # --- checks --------------------------------------------------------------------------------

    def then(self, *events: Event) -> Outcome[S, R]:
        """Exactly these events were recorded, in this order."""
        __tracebackhide__ = True
        self._check_no_error(f"it should have recorded {events_shown(events)}")
        recorded = self.events
        if not alike(events, recorded):
            found = "recorded other events than expected" if events else "recorded events"
            signs = _SIGNS.format(found="recorded")
            raise AssertionError(
                f"{self._command} {found} {signs}:\n\n{differing_events(events, recorded)}\n"
            )
        return self

    def nothing(self) -> Outcome[S, R]:
        """Nothing was recorded; after `raises`, not before the error either."""
        __tracebackhide__ = True
        return self.then()

    def raises(
        self, error: type[Exception] | tuple[type[Exception], ...], *, match: str | None = None
    ) -> Outcome[S, R]:
        """The command raised such an error, with a text in which the pattern `match` is found."""
        __tracebackhide__ = True
        wanted = " or ".join(e.__name__ for e in (error if isinstance(error, tuple) else (error,)))
        self._seen = True
        if self._error is None:
            recorded = events_shown(self._aggregate.pending if self._aggregate else ())
            raise AssertionError(
                f"{self._command} should have raised {wanted}, and recorded {recorded}"
            )
        if not isinstance(self._error, error):
            raise AssertionError(
                f"{self._command} should have raised {wanted}, and raised "
                f"{error_shown(self._error)}"
            ) from self._error
        if match is not None and not re.search(match, str(self._error)):
            raise AssertionError(
                f"{self._command} raised {type(self._error).__name__} with another text "
                f"{_SIGNS.format(found='raised')}:\n\n-   {match}\n+   {self._error}\n"
            ) from self._error
        return self

    def state(self, **values: Any) -> Outcome[S, R]:
        """The aggregate's attributes of these names have these values; others may have any."""
        __tracebackhide__ = True
        self._check_no_error(f"its state should be {values!r}")
        aggregate = self.aggregate
        unknown = [name for name in values if not hasattr(aggregate, name)]
        if unknown:
            known = ", ".join(state_fields(type(aggregate)))
            raise InvalidArgumentError(
                unknown[0],
                values[unknown[0]],
                f"{type(aggregate).__name__} has no such attribute; its state is: {known}",
            )
        found = {name: getattr(aggregate, name) for name in values}
        if not alike(values, found):
            raise AssertionError(
                f"{self._command} led to another state than expected "
                f"{_SIGNS.format(found='found')}:\n\n{differing_values(values, found)}\n"
            )
        return self

    # --- for plain asserts ---------------------------------------------------------------------

    @property
    def events(self) -> tuple[Event, ...]:
        """What was recorded."""
        self._raise_error()
        return () if self._aggregate is None else self._aggregate.pending

    @property
    def aggregate(self) -> S:
        """The aggregate as the command has left it."""
        self._raise_error()
        if self._aggregate is None:
            raise AssertionError(f"{self._command} made no aggregate")
        return self._aggregate

    @property
    def result(self) -> R:
        """What the command returned."""
        self._raise_error()
        return self._result  # type: ignore[return-value]

    # --- errors --------------------------------------------------------------------------------

    def _raise_error(self) -> None:
        if not self._seen and self._error is not None:
            self._seen = True
            raise self._error

    def _check_no_error(self, instead: str) -> None:
        __tracebackhide__ = True
        if not self._seen:
            self._seen = True
            assert self._error is not None
            raise AssertionError(
                f"{self._command} raised {error_shown(self._error)}; {instead}"
            ) from self._error

    def __del__(self) -> None:
        # A test that never looks would pass, whatever the command had raised.
        if not getattr(self, "_seen", True):
            warnings.warn(
                f"{self._command} raised {error_shown(self._error)}, and nothing was asked of its "  # type: ignore[arg-type]
                "outcome: end with .then(...), .nothing() or .raises(...)",
                RuntimeWarning,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        did = (
            f"raised {error_shown(self._error)}"
            if self._error is not None
            else f"recorded {events_shown(self.events)}"
        )
        return f"<Outcome {self._command} {did}>"
