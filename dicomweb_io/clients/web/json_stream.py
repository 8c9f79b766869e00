"""Splits a JSON array of objects while it arrives, so that a study's metadata never is in memory as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# A whole string, a brace, or the beginning of a string whose end has not arrived.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}]|"', re.DOTALL)
_SPACE = re.compile(rb"[ \t\r\n]*")
_SPACE_AND_COMMAS = re.compile(rb"[ \t\r\n,]*")
_BOM = b"\xef\xbb\xbf"


class IncompleteJSONError(ValueError):
    """The JSON text ends before its array does."""


def iter_json_objects(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the text of each object of a JSON array, or the one object that the text consists of.

    Only the outer structure is looked at; whoever parses the objects finds what is wrong inside them.

    Args:
        chunks: The text in UTF-8, cut anywhere.

    Raises:
        IncompleteJSONError: If the array or an object is not closed.
        ValueError: If the text is neither an array of objects nor an object.
    """
    text = _Text(chunks)
    text.skip_bom()
    first = text.peek(_SPACE)
    if first == b"{":
        yield text.take_object()
    elif first == b"[":
        text.position += 1
        while (character := text.peek(_SPACE_AND_COMMAS)) == b"{":
            yield text.take_object()
        if not character:
            raise IncompleteJSONError("the JSON text ends before its array is closed")
        if character != b"]":
            raise ValueError("the JSON array holds something else than objects")
        text.position += 1
    elif first:
        raise ValueError("the text is no JSON array of objects")
    else:
        raise IncompleteJSONError("the text is empty")
    if text.peek(_SPACE):
        raise ValueError("the JSON text goes on after its end")


class _Text:
    """The text that has arrived and is not yet consumed, from `position` on."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._source = iter(chunks)
        self._buffer = bytearray()
        self.position = 0

    def _more(self) -> bool:
        chunk = next(self._source, None)
        if chunk is None:
            return False
        self._buffer += chunk
        return True

    def skip_bom(self) -> None:
        while len(self._buffer) < len(_BOM) and _BOM.startswith(self._buffer) and self._more():
            continue
        if self._buffer.startswith(_BOM):
            self.position = len(_BOM)

    def peek(self, skipped: re.Pattern[bytes]) -> bytes:
        """The next character that is not to be skipped; empty at the end."""
        while True:
            match = skipped.match(self._buffer, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self._buffer):
                return bytes(self._buffer[self.position : self.position + 1])
            self._buffer.clear()
            self.position = 0
            if not self._more():
                return b""

    def take_object(self) -> bytes:
        """The text of the object that begins here."""
        depth, scan = 0, self.position
        while True:
            unfinished = None
            for token in _TOKEN.finditer(self._buffer, scan):
                kind = token[0]
                if kind == b"{":
                    depth += 1
                elif kind == b"}":
                    depth -= 1
                    if not depth:
                        item = bytes(self._buffer[self.position : token.end()])
                        self.position = token.end()
                        return item
                elif kind == b'"':
                    unfinished = token.start()
                    break
                scan = token.end()
            if unfinished is not None:
                scan = unfinished
            del self._buffer[: self.position]
            scan -= self.position
            self.position = 0
            # A long string arrives in many chunks: looking for its end anew each time would take quadratic time.
            wanted = scan + 2 * (len(self._buffer) - scan) if unfinished is not None else 0
            if not self._more():
                raise IncompleteJSONError("the JSON text ends inside an object")
            while len(self._buffer) < wanted and self._more():
                continue
