"""Where frames and bulk data go as they arrive: into memory, or above a size into files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from dicomweb_io.elements import Bulkdata, Frame
from dicomweb_io.wire.spool import Chunk, Collected, collect

T = TypeVar("T", Frame, Bulkdata)


class _Arriving(Protocol):
    """A body or a part of one."""

    def read(self) -> bytes: ...


@dataclass(frozen=True)
class Keeper:
    """What is too large for memory, and where it goes instead.

    Args:
        max_element_bytes: What may be in memory; None for everything.
        directory: Where files are made; by default the system's temporary directory.

    Raises:
        ValueError: If the size is negative, or the directory is none.
    """

    max_element_bytes: int | None = None
    directory: str | None = None

    def __post_init__(self) -> None:
        most = self.max_element_bytes
        if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 0):
            raise ValueError(f"max_element_bytes must be an integer of 0 or more, or None, not {most!r}")
        if self.directory is not None and not os.path.isdir(self.directory):
            raise ValueError(f"spool_directory is not a directory: {self.directory!r}")

    def keep(self, arriving: _Arriving, pieces: Callable[[], Iterable[Chunk]]) -> Collected:
        """Reads a body or part: at once if all is to be in memory, otherwise piece by piece."""
        if self.max_element_bytes is None:
            return Collected(arriving.read(), None)
        return collect(pieces(), max_bytes=self.max_element_bytes, directory=self.directory, suffix="")

    def moved(self, item: T) -> T:
        """A frame or value that is in memory; in a file if it is too large."""
        if self.max_element_bytes is None or item.content is None or len(item.content) <= self.max_element_bytes:
            return item
        kept = collect([item.content], max_bytes=self.max_element_bytes, directory=self.directory, suffix="")
        return replace(item, content=None, path=kept.path)


def dropped(item: Frame | Bulkdata) -> None:
    """Removes the file of a frame or value that nobody will get."""
    if item.path is not None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(item.path)
