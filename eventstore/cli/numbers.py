"""Numbers on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def whole(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("use a whole number from 1")
    return number


def above_zero(what: str = "a number") -> Callable[[str], float]:
    """Numbers above 0; `what` says of what."""

    def number(text: str) -> float:
        given = float(text)
        if not 0 < given < float("inf"):
            raise argparse.ArgumentTypeError(f"use {what} above 0")
        return given

    return number
