"""Collecting bytes of unknown size: small ones in memory, large ones in a private temporary file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from types import TracebackType
from typing import BinaryIO, NamedTuple

Chunk = bytes | bytearray | memoryview


class Collected(NamedTuple):
    """The bytes, in one of two places.

    Attributes:
        content: The bytes, if they are in memory.
        path: The file that holds them, otherwise. Who receives it removes it.
    """

    content: bytes | None
    path: str | None


class Spool:
    """Takes chunks one by one; keeps up to `max_bytes` in memory and moves to a file when they grow beyond.

    As a context manager it removes the file unless `finish` was called.

    Args:
        max_bytes: What may stay in memory; 0 writes everything (except nothing at all) to a file.
        directory: Where a file is made; by default the system's temporary directory.
        suffix: Ending of the file's name.
    """

    def __init__(
        self, *, max_bytes: int, directory: str | os.PathLike[str] | None = None, suffix: str = ".dcm"
    ) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative: {max_bytes!r}")
        self._max_bytes = max_bytes
        self._directory = None if directory is None else os.fspath(directory)
        self._suffix = suffix
        self._chunks: list[Chunk] = []
        self._file: BinaryIO | None = None
        self._path: str | None = None
        self.size = 0

    def write(self, chunk: Chunk) -> None:
        """Takes the next bytes.

        Raises:
            OSError: If the file cannot be written, for example on a full disk.
        """
        self.size += len(chunk)
        if self._file is None and self.size <= self._max_bytes:
            self._chunks.append(chunk)
            return
        if self._file is None:
            # mkstemp creates the file for its owner only (mode 0600): it holds patients' images.
            descriptor, self._path = tempfile.mkstemp(self._suffix, "dicomweb_io-", self._directory)
            self._file = os.fdopen(descriptor, "wb", buffering=0)
            for kept in self._chunks:
                self._write_all(kept)
            self._chunks.clear()
        self._write_all(chunk)

    def _write_all(self, chunk: Chunk) -> None:
        assert self._file is not None  # noqa: S101 - for the type checker
        rest = memoryview(chunk)
        while rest:
            rest = rest[self._file.write(rest) :]

    def finish(self) -> Collected:
        """The collected bytes; a file belongs to the caller from now on."""
        if self._file is None:
            only = self._chunks[0] if len(self._chunks) == 1 else None
            content = only if isinstance(only, bytes) else b"".join(self._chunks)
            self._chunks.clear()
            return Collected(content, None)
        self._file.close()
        path, self._file, self._path = self._path, None, None
        return Collected(None, path)

    def discard(self) -> None:
        """Forgets the bytes and removes the file, if there is one."""
        self._chunks.clear()
        file, path = self._file, self._path
        self._file = self._path = None
        if file is not None:
            file.close()
        if path is not None:
            try:
                os.unlink(path)
            except FileNotFoundError:
                return

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.discard()


def collect(
    chunks: Iterable[Chunk], *, max_bytes: int, directory: str | os.PathLike[str] | None = None, suffix: str = ".dcm"
) -> Collected:
    """Collects all chunks, in memory up to `max_bytes`, otherwise in a file of mode 0600.

    Args:
        chunks: The bytes; an error that they raise is passed on after the file was removed.
        max_bytes: What may stay in memory.
        directory: Where a file is made; by default the system's temporary directory.
        suffix: Ending of the file's name.

    Returns:
        The pair of content and path, one of which is None. A file belongs to the caller.
    """
    with Spool(max_bytes=max_bytes, directory=directory, suffix=suffix) as spool:
        for chunk in chunks:
            spool.write(chunk)
        return spool.finish()
