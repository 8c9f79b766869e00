"""Wildcard matching of text (PS3.4 section C.2.2.2.4)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache


@lru_cache(maxsize=1024)
def wildcard_test(pattern: str) -> Callable[[str], bool]:
    """Makes a test of whole texts against a pattern.

    It takes time in proportion to the text, whatever the pattern.

    Args:
        pattern: ``*`` stands for any run of characters, also none, ``?`` for any one character.
    """
    pieces = [_Piece(piece) for piece in re.split(r"\*+", pattern)]
    if len(pieces) == 1:
        return pieces[0].is_whole
    head, *middle, tail = pieces
    shortest = sum(piece.length for piece in pieces)

    def matches(text: str) -> bool:
        if len(text) < shortest or not head.is_at(text, 0):
            return False
        end = len(text) - tail.length
        if not tail.is_at(text, end):
            return False
        # The leftmost place leaves the most room for what follows, so no other one needs to be tried.
        position = head.length
        for piece in middle:
            found = piece.find(text, position, end)
            if found < 0:
                return False
            position = found + piece.length
        return True

    return matches


class _Piece:
    """The text between two ``*``."""

    __slots__ = ("_expression", "_text", "length")

    def __init__(self, text: str) -> None:
        self._text = text
        self.length = len(text)
        self._expression: re.Pattern[str] | None = None
        if "?" in text:
            self._expression = re.compile(
                "".join("." if letter == "?" else re.escape(letter) for letter in text), re.DOTALL
            )

    def is_whole(self, text: str) -> bool:
        return len(text) == self.length and self.is_at(text, 0)

    def is_at(self, text: str, position: int) -> bool:
        if self._expression is None:
            return text.startswith(self._text, position)
        return self._expression.match(text, position) is not None

    def find(self, text: str, start: int, end: int) -> int:
        if self._expression is None:
            return text.find(self._text, start, end)
        found = self._expression.search(text, start, end)
        return -1 if found is None else found.start()
