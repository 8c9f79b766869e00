"""A local file that is to be stored, held to the state in which it was checked.

It belongs to somebody else, who may write to it at any time. What is stored of it must be one whole state of it, so it
is looked at before and after it is copied; nothing is ever linked to it.
"""

from __future__ import annotations

import errno
import io
import os
import time
from dataclasses import dataclass
from typing import Any, BinaryIO

_CHUNK = 1 << 20
# Two changes this close to one another may leave one time of modification: that of a tick of the kernel's clock, or
# whole seconds on filesystems that keep no fractions.
_SETTLED_SECONDS = 0.02
_COARSE_CLOCK_SECONDS = 2.0


class SourceChangedError(OSError):
    """A file changed while it was being stored."""

    retryable = True

    def __init__(self, path: str) -> None:
        super().__init__(errno.EBUSY, "it changed while it was stored, so nothing was stored of it", path)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.filename,)


def is_settled(modified: float) -> bool:
    """Whether a time of modification (seconds since 1970) lies far enough in the past to tell a later change apart."""
    limit = _COARSE_CLOCK_SECONDS if modified == int(modified) else _SETTLED_SECONDS
    return time.time() - modified > limit


@dataclass(frozen=True)
class SourceFile:
    """A local file as it was when it was looked at.

    Attributes:
        path: Where it is.
        size: Its bytes.
        identity: Device, file number, size and time of modification in nanoseconds.
        settled: Whether any later change shows in its time of modification.
    """

    path: str
    size: int
    identity: tuple[int, int, int, int]
    settled: bool

    @classmethod
    def of(cls, path: str) -> SourceFile:
        """Looks at a file.

        Raises:
            OSError: If it is not there.
        """
        found = os.stat(path)
        return cls(path, found.st_size, _identity(found), is_settled(found.st_mtime))

    def opened(self) -> BinaryIO:
        """Opens it for reading."""
        return open(self.path, "rb", buffering=0)

    def copy_to(self, target: BinaryIO) -> None:
        """Copies all bytes of it to the end of an open, readable file.

        Raises:
            SourceChangedError: If it is not what it was, or does not stay so.
            OSError: If it cannot be read, or the target not be written.
        """
        start = target.tell()
        with self.opened() as source:
            self._check(source)
            while chunk := source.read(_CHUNK):
                view = memoryview(chunk)
                while view:
                    view = view[target.write(view) :]
            if target.tell() - start != self.size:
                raise SourceChangedError(self.path)
            if not self.settled:
                # A change since then may not show in the time: what was copied must still be there.
                source.seek(0)
                target.seek(start)
                while chunk := source.read(_CHUNK):
                    if _read(target, len(chunk)) != chunk:
                        raise SourceChangedError(self.path)
            self._check(source)

    def read(self) -> bytes:
        """All bytes of it. Errors as in `copy_to`."""
        buffer = io.BytesIO()
        self.copy_to(buffer)
        return buffer.getvalue()

    def _check(self, source: BinaryIO) -> None:
        if _identity(os.fstat(source.fileno())) != self.identity:
            raise SourceChangedError(self.path)


def _identity(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read(file: BinaryIO, size: int) -> bytes:
    pieces = []
    while size and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
