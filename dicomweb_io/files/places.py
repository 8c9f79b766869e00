"""Where files are: the interface of a folder, whether a local directory or a prefix of an fsspec filesystem.

Paths inside a folder are relative, with forward slashes, and compare as text. Names that are not valid UTF-8 keep
their bytes as lone surrogates, as `os.fsdecode` gives them.

A local file that is to be stored (`SourceFile`) belongs to another program, which may write to it at any time. The
folder must receive one whole state of it, so it is checked before and after it is copied, and never linked to.
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

_CHUNK = 1 << 20
# Two changes this close together may leave the same time of modification: that of a tick of the kernel's clock, or
# whole seconds on filesystems that store no fractions.
_SETTLED_SECONDS = 0.02
_COARSE_CLOCK_SECONDS = 2.0

_TEMPORARY = re.compile(r"\.[^/]*\.[0-9a-f]{16}\.part\Z")

ABANDONED_SECONDS = 24 * 3600
"""A temporary file that was not written to for this long belongs to a killed writer."""


class FileStat(NamedTuple):
    """One file of a listing.

    Attributes:
        path: Relative to the folder.
        size: Bytes.
        version: What changes when the content does: the time of modification in nanoseconds, or an object store's tag.
        modified: Seconds since 1970, 0 where the filesystem does not say.
        tagged: Whether the version is a tag, which every change of the content changes, however soon after another.
    """

    path: str
    size: int
    version: str
    modified: float
    tagged: bool = False


class Problem(NamedTuple):
    """A directory or a file of a listing that cannot be looked at, and why."""

    path: str
    reason: str


def temporary_name(name: str) -> str:
    """A name for a file that is still being written; listings leave such names out."""
    # A letter may take four bytes, and a name has 255 at most.
    return f".{name[:40]}.{secrets.token_hex(8)}.part"


def is_temporary(name: str) -> bool:
    """Tells whether a file name (without folder) is one of `temporary_name`."""
    return _TEMPORARY.match(name) is not None


@dataclass(frozen=True)
class Folder:
    """Where the files are. It pickles as the URL and its options and holds nothing open.

    Attributes:
        url: A local path, a ``file:`` URL, or any fsspec URL.
        storage_options: Arguments for the fsspec filesystem.
    """

    url: str
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)

    is_local = False

    @property
    def checks_versions(self) -> bool:
        """Whether reads of a version fail where the file has another one by now."""
        return False

    @property
    def base_url(self) -> str:
        """The folder as a URL without user information, query and trailing slash."""
        raise NotImplementedError

    def walk(self, abandoned: list[str] | None = None) -> Iterator[FileStat | Problem]:
        """Yields every file, and what cannot be looked at; hidden directories and temporary files are left out.

        Args:
            abandoned: The paths of temporary files that no writer has touched for `ABANDONED_SECONDS` are added to it.

        Raises:
            FileNotFoundError: If the folder itself does not exist.
        """
        raise NotImplementedError

    def stat(self, path: str) -> FileStat | None:
        """One file as `walk` gives it, as it is now; None if it is not there."""
        raise NotImplementedError

    def open(self, path: str, size: int | None = None, version: str | None = None) -> BinaryIO:
        """Opens a file for reading; reads fetch only what is asked for.

        Args:
            path: Which.
            size: Its bytes; if they are known, that saves a request.
            version: The version that is read and no other, where `checks_versions`.

        Raises:
            VersionChangedError: If the file has another version; also when it is read.
            OSError: If it cannot be read.
        """
        raise NotImplementedError

    def read(self, path: str, version: str | None = None) -> bytes:
        """All bytes of a file; see `open`."""
        raise NotImplementedError

    def exists(self) -> bool:
        """Whether the folder itself exists.

        Raises:
            OSError: If it is in a bucket that is not there or cannot be looked at.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Asks the server of a remote folder once whether it can be used, also if it has no files yet.

        Raises:
            OSError: If its bucket is not there, the access is denied, or a package for it is missing.
        """

    def publish(self, path: str, source: bytes | str | SourceFile, *, replace: bool) -> bool:
        """Puts a complete file at `path` in one step, so that no reader ever sees a part of it.

        Args:
            path: Where; missing directories are made.
            source: The bytes, or a local file to copy: its path, or what it was when it was checked.
            replace: Replace an existing file; otherwise leave it unchanged.

        Returns:
            True if the file was put there, False if there was one and `replace` is false.

        Raises:
            SourceChangedError: If the local file is not what it was, or does not stay so while it is copied.
            OSError: If it could not be written; nothing is left behind.
        """
        raise NotImplementedError

    def is_exclusive(self, size: int) -> bool:
        """Whether `publish` without `replace` leaves what another writer puts there at the same moment."""
        return True

    def writes_first(self, size: int) -> bool:
        """Whether to write a new file costs less than to look whether it is there."""
        return False

    def is_same(self, path: str, other: str) -> bool:
        """Whether two paths lead to one file now."""
        return path == other

    def sweep(self, abandoned: list[str]) -> None:
        """Removes temporary files that `walk` found abandoned. One that cannot be removed stays, and does no harm."""

    def remove(self, path: str) -> bool:
        """Removes a file, and directories that become empty with it; False if it was not there."""
        raise NotImplementedError

    def location_of(self, path: str) -> str:
        """The local path or URL of a file, for messages and for `fsspec.open`."""
        raise NotImplementedError

    def shown(self, path: str) -> str:
        """The same for messages, without user information and query."""
        return self.location_of(path)


class MissingBucketError(FileNotFoundError):
    """There is no such bucket (Azure: container). Buckets are never created: the name may be mistyped."""

    retryable = False

    def __init__(self, place: str) -> None:
        super().__init__(errno.ENOENT, "there is no such bucket; create it first, or correct its name", place)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.filename,)


class ObjectStoreError(OSError):
    """A server of objects refuses a request, or does not answer.

    Args:
        code: The error number.
        what: What came back.
        place: What was asked for.
        retryable: Whether a later attempt could help.
    """

    def __init__(self, code: int, what: str, place: str, retryable: bool) -> None:
        super().__init__(code, what, place)
        self.retryable = retryable

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errno, self.strerror, self.filename, self.retryable)


class VersionChangedError(OSError):
    """A file is not the version that was asked for."""

    retryable = False

    def __init__(self, place: str) -> None:
        super().__init__(errno.ESTALE, "it changed", place)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.filename,)


class SourceChangedError(OSError):
    """A file changed while it was being stored."""

    retryable = True

    def __init__(self, path: str) -> None:
        super().__init__(errno.EBUSY, "it changed while it was read, so it was not stored", path)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.filename,)


def is_settled(modified: float) -> bool:
    """Whether a time of modification (seconds since 1970) is so old that a later change would differ from it."""
    limit = _COARSE_CLOCK_SECONDS if modified == int(modified) else _SETTLED_SECONDS
    return time.time() - modified > limit


@dataclass(frozen=True)
class SourceFile:
    """A local file as it was when `of` looked at it.

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
        stat = os.stat(path)
        return cls(path, stat.st_size, _identity(stat), is_settled(stat.st_mtime))

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
                    if read_exactly(target, len(chunk)) != chunk:
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


def _identity(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def read_exactly(file: BinaryIO, size: int) -> bytes:
    """Up to `size` bytes of a file; fewer only at its end."""
    pieces = []
    while size and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
