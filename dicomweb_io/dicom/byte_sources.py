"""Bytes of a file that can be read at any offset: plain files, bytes in memory, deflated datasets."""

from __future__ import annotations

import zlib
from collections import deque
from typing import BinaryIO, Protocol


class Source(Protocol):
    """Bytes that can be read at any offset."""

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end."""

    def reaches(self, end: int) -> bool:
        """Whether there are at least `end` bytes."""


class FileSource:
    """A file as a `Source`."""

    def __init__(self, file: BinaryIO, size: int | None = None) -> None:
        self._file = file
        self._size = size

    @property
    def size(self) -> int:
        """The number of bytes of the file."""
        if self._size is None:
            self._size = self._file.seek(0, 2)
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """See `Source`."""
        self._file.seek(offset)
        data = self._file.read(length)
        if len(data) == length:
            return data
        pieces = [data]
        missing = length - len(data)
        while data and missing:
            data = self._file.read(missing)
            pieces.append(data)
            missing -= len(data)
        if self._size is None:
            self._size = offset + length - missing if missing < length else None
        return b"".join(pieces)

    def reaches(self, end: int) -> bool:
        """See `Source`."""
        return end <= self.size


class BytesSource:
    """Bytes in memory as a `Source`."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self._content)

    def read(self, offset: int, length: int) -> bytes:
        """See `Source`."""
        if offset == 0 and length >= len(self._content):
            return self._content
        return self._content[offset : offset + length]

    def reaches(self, end: int) -> bool:
        """See `Source`."""
        return end <= len(self._content)


class InflatedSource:
    """A deflated dataset as a `Source`: the file up to `start` as it is, then the inflated rest (PS3.5 section A.5).

    Memory stays bounded whatever the stream inflates to. Going back by up to 256 KiB is free; going back farther starts
    anew, so readers should not do that often.

    Attributes:
        problem: Why the stream ended early, once its end was met; None if it is complete so far.
    """

    _CHUNK = 64 * 1024
    _KEPT = 256 * 1024

    def __init__(self, source: Source, start: int) -> None:
        self._source = source
        self._start = start
        self.problem: str | None = None
        self._restart()

    def _restart(self) -> None:
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._fed = self._start
        self._ended = False
        # The last inflated pieces, which end at the offset `_end`.
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._end = self._start

    def _more(self) -> bool:
        """Inflates the next piece; False at the end."""
        while not self._ended:
            data = self._inflate.unconsumed_tail
            if not data:
                data = self._source.read(self._fed, self._CHUNK)
                self._fed += len(data)
                if not data:
                    self._ended = True
                    self.problem = "the deflated dataset is cut off"
                    break
            try:
                inflated = self._inflate.decompress(data, self._CHUNK)
            except zlib.error:
                self._ended = True
                self.problem = "the deflated dataset is damaged"
                break
            if self._inflate.eof:
                self._ended = True
            if inflated:
                self._pieces.append(inflated)
                self._size += len(inflated)
                self._end += len(inflated)
                while self._size - len(self._pieces[0]) >= self._KEPT:
                    self._size -= len(self._pieces.popleft())
                return True
        return False

    def read(self, offset: int, length: int) -> bytes:
        """See `Source`."""
        if offset < self._start:
            head = self._source.read(offset, min(length, self._start - offset))
            rest = length - len(head)
            return head if rest <= 0 else head + self.read(self._start, rest)
        if offset < self._end - self._size:
            self._restart()
        end = offset + length
        found = []
        position = self._end - self._size
        for piece in self._pieces:
            if position < end and offset < position + len(piece):
                found.append(piece[max(0, offset - position) : end - position])
            position += len(piece)
        while self._end < end and self._more():
            piece = self._pieces[-1]
            position = self._end - len(piece)
            if offset < self._end:
                found.append(piece[max(0, offset - position) : end - position])
        return b"".join(found)

    def reaches(self, end: int) -> bool:
        """See `Source`."""
        while self._end < end and self._more():
            continue
        return end <= self._end


def as_source(source: BinaryIO | bytes | Source, size: int | None = None) -> Source:
    """Whatever holds a file's bytes, as a `Source`."""
    if isinstance(source, (bytes, bytearray)):
        return BytesSource(bytes(source))
    if isinstance(source, (FileSource, BytesSource, InflatedSource)):
        return source
    return FileSource(source, size)  # type: ignore[arg-type]
