"""Bytes of unknown size, small ones in memory and large ones in private temporary files.

`Spool` and `collect` take them chunk by chunk; `SpoolPolicy` says from what size on a file is made, and
`PrivateDirectory` holds files that have no other owner yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeVar

from dicomweb_io.dicom.uids import file_name, is_safe_name
from dicomweb_io.elements import Bulkdata, Frame, Instance
from dicomweb_io.http.retry import start_anew_after_fork

fcntl: Any
try:
    import fcntl
except ImportError:
    fcntl = None  # Windows

logger = logging.getLogger(__name__)

Chunk = bytes | bytearray | memoryview

T = TypeVar("T", Frame, Bulkdata)

MEMORY_THRESHOLD = 1024 * 1024
"""Instances up to this size wait in memory for their batch, larger ones in a file."""


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
        self._first: Chunk = b""
        # It gives its buffer away without a copy, and lets go of each chunk at once.
        self._memory = io.BytesIO()
        self._file: BinaryIO | None = None
        self._path: str | None = None
        self._process = os.getpid()
        self.size = 0

    def write(self, chunk: Chunk) -> None:
        """Takes the next bytes.

        Raises:
            OSError: If the file cannot be written, for example on a full disk.
        """
        self.size += len(chunk)
        if self._file is None and self.size <= self._max_bytes:
            if self.size == len(chunk):
                self._first = chunk
                return
            self._memory.write(self._first)
            self._memory.write(chunk)
            self._first = b""
            return
        if self._file is None:
            # mkstemp creates the file for its owner only (mode 0600): it holds patients' images.
            descriptor, self._path = tempfile.mkstemp(self._suffix, "dicomweb_io-", self._directory)
            self._file = os.fdopen(descriptor, "wb", buffering=0)
            self._write_all(self._first)
            with self._memory.getbuffer() as kept:
                self._write_all(kept)
            self._forget()
        self._write_all(chunk)

    def _write_all(self, chunk: Chunk) -> None:
        assert self._file is not None  # noqa: S101 - for the type checker
        rest = memoryview(chunk)
        while rest:
            rest = rest[self._file.write(rest) :]

    def _forget(self) -> None:
        self._first, self._memory = b"", io.BytesIO()

    def finish(self) -> Collected:
        """The collected bytes; a file belongs to the caller from now on."""
        if self._file is None:
            content = bytes(self._first) or self._memory.getvalue()
            self._forget()
            return Collected(content, None)
        self._file.close()
        path, self._file, self._path = self._path, None, None
        return Collected(None, path)

    def discard(self) -> None:
        """Forgets the bytes and removes the file, if there is one."""
        self._forget()
        file, path = self._file, self._path
        self._file = self._path = None
        if file is not None:
            file.close()
        # A forked child that drops its copy leaves the parent its file.
        if path is not None and os.getpid() == self._process:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

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


class _Arriving(Protocol):
    """A body or a part of one."""

    def read(self) -> bytes: ...


@dataclass(frozen=True)
class SpoolPolicy:
    """What is too large for memory, and where it goes.

    Args:
        max_element_bytes: What may be in memory; None for everything.
        directory: Where files are made; by default the system's temporary directory.

    Raises:
        ValueError: If the size is negative, or the path is not a directory.
    """

    max_element_bytes: int | None = None
    directory: str | None = None

    def __post_init__(self) -> None:
        maximum = self.max_element_bytes
        if maximum is not None and (not isinstance(maximum, int) or isinstance(maximum, bool) or maximum < 0):
            raise ValueError(f"max_element_bytes must be an integer of 0 or more, or None, not {maximum!r}")
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


def remove_file(item: Frame | Bulkdata) -> None:
    """Removes the file of a frame or value that is not delivered."""
    if item.path is not None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(item.path)


class PrivateDirectory:
    """A directory for spool files, made when first needed (for its owner only) and removed with all its files.

    A process that is killed leaves its directory behind. Its owner holds a lock while it lives, so the first directory
    that a later process makes in the same place removes those whose lock is free on this host; those of other hosts,
    whose locks cannot be relied on, when nothing in them has changed for a day.

    As a context manager it gives its path. A forked child makes one of its own.

    Args:
        parent: Where it is made; by default the system's temporary directory.
        prefix: What its name begins with.
    """

    def __init__(self, parent: str | None = None, prefix: str = "dicomweb_io-") -> None:
        self._parent = parent
        self._prefix = prefix
        self._owned = -1
        self.start_anew()
        start_anew_after_fork(self)

    def start_anew(self) -> None:
        """Begins without a directory."""
        if self._owned >= 0:
            # The lock stays with the parent.
            os.close(self._owned)
        self._lock = threading.Lock()
        self._path: str | None = None
        self._owned = -1

    @property
    def path(self) -> str:
        """The directory."""
        with self._lock:
            if self._path is None:
                parent = os.path.abspath(self._parent or tempfile.gettempdir())
                _sweep_once(parent, self._prefix)
                self._path, self._owned = _make_owned(parent, self._prefix)
            return self._path

    def __enter__(self) -> str:
        return self.path

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def discard(self, part: Instance | Frame | Bulkdata) -> None:
        """Deletes the file of a part if it is in this directory; a file with another owner stays."""
        path = part.path
        if path is not None and self._path is not None and os.path.dirname(os.path.abspath(path)) == self._path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def release(self, part: Instance | Frame | Bulkdata) -> str:
        """Moves the file of a part out of this directory, to its parent, for another owner.

        Returns:
            The new path; the old one if the file was not in this directory.
        """
        path = str(part.path)
        directory, name = os.path.split(os.path.abspath(path))
        if directory != self._path:
            return path
        if isinstance(part, Instance):
            # The UID is for people who look for the file; not every identifier can be part of a file's name.
            uid = str(part.reference.sop_instance_uid)
            name = f"{file_name(uid)}-{name}" if is_safe_name(uid) else name
        target = os.path.join(os.path.dirname(directory), name)
        os.replace(path, target)
        return target

    def remove(self) -> None:
        """Deletes the directory and everything in it. It is made again if it is needed again."""
        with self._lock:
            path, self._path = self._path, None
            owned, self._owned = self._owned, -1
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)
        if owned >= 0:
            os.close(owned)


_ABANDONED_SECONDS = 24 * 3600
_swept: set[tuple[int, str, str]] = set()


def _host() -> str:
    """What tells the hosts of a shared disk apart: locks of processes under one kernel can be relied on."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            name = file.read()
    except OSError:
        name = socket.gethostname().encode()
    return hashlib.sha256(name).hexdigest()[:16]


def _make_owned(parent: str, prefix: str) -> tuple[str, int]:
    """Makes a directory and locks it for as long as this process lives, or until the file descriptor is closed.

    Only a locked directory has a name by which others may take it for an abandoned one.
    """
    path = tempfile.mkdtemp(prefix=prefix, dir=parent)
    if fcntl is None:
        return path, -1
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        named = os.path.join(parent, f"{prefix}{_host()}-{path[-8:]}")
        os.rename(path, named)
    except OSError:
        # The filesystem has no locks for directories.
        os.close(descriptor)
        return path, -1
    return named, descriptor


def _sweep_once(parent: str, prefix: str) -> None:
    key = (os.getpid(), parent, prefix)
    if key in _swept or fcntl is None:
        return
    _swept.add(key)
    owned = re.compile(rf"{re.escape(prefix)}(?:[a-z]+-)?([0-9a-f]{{16}})-[a-z0-9_]{{8}}")
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            match = owned.fullmatch(entry.name)
            if match is not None:
                with contextlib.suppress(OSError):
                    _sweep(entry.path, match[1])


def _sweep(path: str, host: str) -> None:
    """Removes a directory of this user whose owner is gone."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_uid != os.geteuid():
            return
        if host != _host():
            with os.scandir(path) as entries:
                changed = max(os.stat(name).st_mtime for name in (path, *(entry.path for entry in entries)))
            if time.time() - changed < _ABANDONED_SECONDS:
                return
        logger.info("%s belongs to a process that was killed, and is removed", path)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)
