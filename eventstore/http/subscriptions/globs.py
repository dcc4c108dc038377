"""Patterns of streams: `*` is one segment of a path, `**` any number of them, none included."""

from __future__ import annotations

from typing import Final

_ANY: Final = "**"
_ONE: Final = "*"


class Glob:
    """A pattern over the paths of streams, such as `orders/*/events`.

    A star within a segment is itself: `a*` is the one segment of that name.
    """

    __slots__ = ("_segments", "prefix", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._segments = text.split("/")
        literal = []
        for segment in self._segments:
            if segment in (_ONE, _ANY):
                break
            literal.append(segment)
        #: What every path that matches starts with.
        self.prefix = "/".join(literal)

    def matches(self, path: str) -> bool:
        """Whether a path is one of the pattern's.

        It takes at most the product of both lengths, whatever the pattern: after another `**`, the
        ones before it need not be tried again.
        """
        segments, parts = self._segments, path.split("/")
        at = place = 0
        retry: tuple[int, int] | None = None  # the segment after the last **, and where it started
        while place < len(parts):
            wanted = segments[at] if at < len(segments) else None
            if wanted == _ANY:
                at += 1
                retry = (at, place)
            elif wanted == _ONE or wanted == parts[place]:
                at += 1
                place += 1
            elif retry is not None:
                at, place = retry[0], retry[1] + 1
                retry = (at, place)
            else:
                return False
        return all(segment == _ANY for segment in segments[at:])
