"""The interface of a folder of files: a local directory, or a prefix of any fsspec filesystem.

Paths inside a folder are relative, with forward slashes, and compare as text; names that are not valid UTF-8 keep
their bytes as lone surrogates, as `os.fsdecode` gives them.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from dicomweb_io.clients.files.sources import SourceFile

_TEMPORARY = re.compile(r"\.[^/]*\.[0-9a-f]{16}\.part\Z")

ABANDONED_SECONDS = 24 * 3600
"""A temporary file that was not written to for so long belongs to a writer that died, whatever the clocks say."""


class FileStat(NamedTuple):
    """One file of a listing.

    Attributes:
        path: Relative to the folder.
        size: Bytes.
        version: What changes when the content does: the time of modification in nanoseconds, or an object store's tag.
        modified: Seconds since 1970, 0 where the filesystem does not tell.
    """

    path: str
    size: int
    version: str
    modified: float


class Problem(NamedTuple):
    """A directory or a file of a listing that cannot be looked at, and why."""

    path: str
    reason: str


def temporary_name(name: str) -> str:
    """A name for a file that is still being written; listings leave such names out."""
    return f".{name[:80]}.{secrets.token_hex(8)}.part"


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
    def base_url(self) -> str:
        """The folder as a URL without user information, query and trailing slash."""
        raise NotImplementedError

    def walk(self, abandoned: list[str] | None = None) -> Iterator[FileStat | Problem]:
        """Yields every file, and what cannot be looked at; hidden directories and temporary files are left out.

        Args:
            abandoned: Takes the paths of temporary files that no writer has touched for `ABANDONED_SECONDS`.

        Raises:
            FileNotFoundError: If the folder itself does not exist.
        """
        raise NotImplementedError

    def stat(self, path: str) -> FileStat | None:
        """One file as `walk` gives it, asked for afresh; None if it is not there."""
        raise NotImplementedError

    def open(self, path: str, size: int | None = None) -> BinaryIO:
        """Opens a file for reading; reads fetch only what is asked for. `size`, if known, saves a request."""
        raise NotImplementedError

    def read(self, path: str) -> bytes:
        """All bytes of a file."""
        raise NotImplementedError

    def exists(self) -> bool:
        """Whether the folder itself exists."""
        raise NotImplementedError

    def publish(self, path: str, source: bytes | str | SourceFile, *, replace: bool) -> bool:
        """Puts a complete file at `path` in one step: nobody ever sees a part of it.

        Args:
            path: Where; missing directories are made.
            source: The bytes, or a local file to copy: its path, or what it was when it was checked.
            replace: Take the place of an existing file; otherwise leave that one alone.

        Returns:
            True if the file was put there, False if there was one and `replace` is false.

        Raises:
            SourceChangedError: If the local file is not what it was, or does not stay so while it is copied.
            OSError: If it could not be written; nothing is left behind.
        """
        raise NotImplementedError

    def sweep(self, abandoned: list[str]) -> None:
        """Removes temporary files that `walk` found abandoned. One that cannot be removed stays: it does no harm."""

    def remove(self, path: str) -> bool:
        """Removes a file, and directories that become empty with it; False if it was not there."""
        raise NotImplementedError

    def location_of(self, path: str) -> str:
        """The local path or URL of a file, for messages and for `fsspec.open`."""
        raise NotImplementedError
