"""Bytes of a file that can be read at any offset: plain files, bytes in memory, deflated datasets."""

from __future__ import annotations

import zlib
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

    Memory stays bounded whatever the stream inflates to; going back starts anew.

    Attributes:
        problem: Why the stream ended early, once its end was met; None if it is complete so far.
    """

    _CHUNK = 64 * 1024

    def __init__(self, source: Source, start: int) -> None:
        self._source = source
        self._start = start
        self.problem: str | None = None
        self._restart()

    def _restart(self) -> None:
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._fed = self._start
        self._position = self._start
        self._ready = b""
        self._ended = False

    def _more(self) -> bytes:
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
                return inflated
        return b""

    def read(self, offset: int, length: int) -> bytes:
        """See `Source`."""
        if offset < self._start:
            head = self._source.read(offset, min(length, self._start - offset))
            rest = length - len(head)
            return head if rest <= 0 else head + self.read(self._start, rest)
        if offset < self._position:
            self._restart()
        pieces = []
        while length > 0:
            if not self._ready:
                self._ready = self._more()
                if not self._ready:
                    break
            skipped = min(offset - self._position, len(self._ready))
            piece = self._ready[skipped : skipped + length] if offset - self._position == skipped else b""
            taken = skipped + len(piece)
            self._ready = self._ready[taken:]
            self._position += taken
            if piece:
                pieces.append(piece)
                offset += len(piece)
                length -= len(piece)
        return b"".join(pieces)

    def reaches(self, end: int) -> bool:
        """See `Source`."""
        if end <= self._position:
            return True
        return len(self.read(end - 1, 1)) == 1


def as_source(source: BinaryIO | bytes | Source, size: int | None = None) -> Source:
    """Whatever holds a file's bytes, as a `Source`."""
    if isinstance(source, (bytes, bytearray)):
        return BytesSource(bytes(source))
    if isinstance(source, (FileSource, BytesSource, InflatedSource)):
        return source
    return FileSource(source, size)  # type: ignore[arg-type]
