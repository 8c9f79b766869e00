"""A folder of this computer, and the choice between local and remote folders (`folder_of`)."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import stat as stat_modes
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from dicomweb_io.files.places import (
    ABANDONED_SECONDS,
    FileStat,
    Folder,
    Problem,
    SourceFile,
    is_temporary,
    temporary_name,
)
from dicomweb_io.files.remote import RemoteFolder

logger = logging.getLogger(__name__)

_LINK_UNSUPPORTED = {
    errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK, errno.EACCES,
}  # fmt: skip


def folder_of(location: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Folder:
    """Makes a folder of a path or URL.

    Args:
        location: A local path (``~`` is expanded), ``file:///a%20b``, or an fsspec URL such as ``memory://x`` or
            ``gs://bucket/prefix``.
        storage_options: Arguments for the fsspec filesystem; local paths ignore them.

    Raises:
        TypeError: If it is neither text nor a path.
        ValueError: If it is empty, an ``http`` URL, a ``file`` URL of another host, or an archive without its file.
    """
    if not isinstance(location, (str, os.PathLike)):
        raise TypeError(f"a folder is given as a path or URL, but this is {type(location).__name__}")
    text = os.fspath(location)
    if not text:
        raise ValueError("the folder is empty (expected a path, or a URL such as file:///data or gs://bucket/data)")
    options = dict(storage_options) if storage_options else None
    if re.match(r"https?:", text, re.IGNORECASE):
        raise ValueError("http and https URLs are DICOMweb servers: use DICOMwebClient for them")
    if re.match(r"file:", text, re.IGNORECASE):
        return LocalFolder(_path_of_file_url(text), options)
    if re.match(r"local://", text, re.IGNORECASE):
        return LocalFolder(os.path.abspath(text[len("local://") :]), options)
    # A path may hold two colons too; only a name before them begins a chain of filesystems.
    if isinstance(location, str) and ("://" in text or re.match(r"[A-Za-z][\w+.-]*::", text)):
        if re.match(r"(?:zip|tar)://", text, re.IGNORECASE) and "::" not in text and not (options or {}).get("fo"):
            raise ValueError(f"the file of the archive is missing (expected {text[:3]}://::file:///data/a.{text[:3]})")
        return RemoteFolder(text, options)
    return LocalFolder(os.path.abspath(os.path.expanduser(text)), options)


def local_path(place: str) -> str | None:
    """The absolute path that a path or a URL of this computer names; None for what is on another filesystem.

    Raises:
        ValueError: See `folder_of`.
    """
    if re.match(r"https?:", place, re.IGNORECASE):
        return None
    folder = folder_of(place)
    return folder.url if folder.is_local else None


def is_on_this_machine(place: str) -> bool:
    """Whether a path or URL leads to this computer, so that others reach it only if they share its disks."""
    last = place.rpartition("::")[2] if "://" in place else place
    return last.startswith("memory:") or local_path(last) is not None


def _path_of_file_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost", "127.0.0.1"):
        raise ValueError(
            "a file URL names a file of this computer, but this one names the host "
            f"{parts.netloc.rpartition('@')[2]!r} (three slashes: file:///path)"
        )
    # A question mark or hash in a file URL is meant as a character of the name when it is not quoted.
    path = parts.path + (f"?{parts.query}" if parts.query else "") + (f"#{parts.fragment}" if parts.fragment else "")
    path = unquote(path, errors="surrogateescape")
    if os.name == "nt":
        path = re.sub(r"\A/([A-Za-z]:)", r"\1", path)
    if not path:
        raise ValueError("the file URL has no path (expected file:///path)")
    return os.path.abspath(path)


class LocalFolder(Folder):
    """A directory of this computer."""

    is_local = True

    @property
    def base_url(self) -> str:
        """The directory as a ``file:`` URL."""
        return Path(self.url).as_uri().rstrip("/")

    def _path(self, path: str) -> str:
        return os.path.join(self.url, *path.split("/"))

    def location_of(self, path: str) -> str:
        """The absolute path."""
        return self._path(path) if path else self.url

    def exists(self) -> bool:
        """Whether the directory exists."""
        return os.path.isdir(self.url)

    def walk(self, abandoned: list[str] | None = None) -> Iterator[FileStat | Problem]:
        """Yields every file; symbolic links are followed, loops are not."""
        if os.path.isfile(self.url):
            raise NotADirectoryError(errno.ENOTDIR, "a folder is needed, but this is a file", self.url)
        pending: list[tuple[str, str]] = [(self.url, "")]
        while pending:
            directory, prefix = pending.pop()
            try:
                entries = os.scandir(directory)
            except OSError as error:
                if not prefix:
                    raise
                yield Problem(prefix.rstrip("/"), f"the directory cannot be read: {error.strerror or error}")
                continue
            with entries:
                for entry in entries:
                    name = entry.name
                    try:
                        if entry.is_dir():
                            if not name.startswith(".") and not (entry.is_symlink() and _is_loop(entry.path)):
                                pending.append((entry.path, f"{prefix}{name}/"))
                            continue
                        stat = entry.stat()
                    except OSError as error:
                        yield Problem(prefix + name, f"cannot be read: {error.strerror or error}")
                        continue
                    if name.startswith(".") and is_temporary(name):
                        if abandoned is not None and time.time() - stat.st_mtime > ABANDONED_SECONDS:
                            abandoned.append(prefix + name)
                        continue
                    if stat_modes.S_ISREG(stat.st_mode):
                        yield _file_stat(prefix + name, stat)
                    else:
                        yield Problem(prefix + name, "not a regular file")

    def stat(self, path: str) -> FileStat | None:
        """One file as it is now."""
        try:
            stat = os.stat(self._path(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _file_stat(path, stat) if stat_modes.S_ISREG(stat.st_mode) else None

    def open(self, path: str, size: int | None = None, version: str | None = None) -> BinaryIO:
        """Opens a file for reading."""
        return open(self._path(path), "rb")

    def read(self, path: str, version: str | None = None) -> bytes:
        """All bytes of a file."""
        with open(self._path(path), "rb", buffering=0) as file:
            return file.read()

    def publish(self, path: str, source: bytes | str | SourceFile, *, replace: bool) -> bool:
        """Writes without a name, or under a temporary one in the same directory; then links or replaces."""
        target = self._path(path)
        directory, name = os.path.split(target)
        if not replace and os.path.lexists(target):
            return False
        temporary = os.path.join(directory, temporary_name(name))
        if isinstance(source, str):
            source = SourceFile.of(source)
        try:
            if (nameless := create_nameless(directory, 0o666, make=True)) is not None:
                with open(nameless, "r+b", buffering=0) as file:
                    _fill(file, source)
                    try:
                        give_name(nameless, temporary if replace else target)
                    except FileExistsError:
                        return False
                    except OSError as error:
                        logger.debug("a file below %s gets its name in another way: %s", self.url, error.strerror)
                    else:
                        if replace:
                            os.replace(temporary, target)
                        return True
            with open(_create(temporary), "r+b", buffering=0) as file:
                _fill(file, source)
            if replace:
                os.replace(temporary, target)
                return True
            return _publish_new(temporary, target)
        finally:
            try:
                os.unlink(temporary)
            except FileNotFoundError:
                pass  # It was moved to its final name, or never made.

    def is_same(self, path: str, other: str) -> bool:
        """Also through links to directories, and where case or Unicode form make no difference."""
        try:
            return os.path.samefile(self._path(path), self._path(other))
        except FileNotFoundError:
            return False

    def sweep(self, abandoned: list[str]) -> None:
        """Removes what killed writers left behind, and directories that become empty."""
        if abandoned:
            logger.info("%d unfinished files of killed writers are removed below %s", len(abandoned), self.url)
        for path in abandoned:
            try:
                self.remove(path)
            except OSError as error:
                # The names of its folders may be a patient's.
                logger.info("an abandoned temporary file below %s cannot be removed: %s", self.url, error.strerror)

    def remove(self, path: str) -> bool:
        """Removes a file and what becomes empty."""
        try:
            os.unlink(self._path(path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        parent = os.path.dirname(path)
        while parent:
            try:
                os.rmdir(self._path(parent))
            except OSError:
                break  # It is not empty, or belongs to another user: it stays.
            parent = os.path.dirname(parent)
        return True


def _file_stat(path: str, stat: os.stat_result) -> FileStat:
    return FileStat(path, stat.st_size, str(stat.st_mtime_ns), stat.st_mtime)


def _is_loop(path: str) -> bool:
    """Whether a link to a directory leads to a directory that contains the link."""
    real = os.path.realpath(path)
    inside = os.path.realpath(os.path.dirname(path))
    return inside == real or inside.startswith(real.rstrip(os.sep) + os.sep)


def create_nameless(directory: str, mode: int, *, make: bool = False) -> int | None:
    """A new file in a directory that has no name yet, so that nothing is left of it if its writer is killed.

    Args:
        directory: Where it is to get its name.
        mode: Its permissions, less those that the process withholds.
        make: Make the directory if there is none.

    Returns:
        Its descriptor; None where there are no such files: on network filesystems, and on systems other than Linux.
    """
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        if make and not os.path.isdir(directory):
            os.makedirs(directory, exist_ok=True)
        return os.open(directory, os.O_TMPFILE | os.O_RDWR, mode)
    except OSError:
        return None


def give_name(descriptor: int, path: str) -> None:
    """Gives a file of `create_nameless` its name.

    Raises:
        FileExistsError: If something has it.
        OSError: If the filesystem cannot do that.
    """
    # Only with a descriptor of a directory, which an absolute path does not use, is the link in /proc followed.
    os.link(f"/proc/self/fd/{descriptor}", os.path.abspath(path), src_dir_fd=descriptor, follow_symlinks=True)


def _fill(file: BinaryIO, source: bytes | SourceFile) -> None:
    if isinstance(source, bytes):
        view = memoryview(source)
        while view:
            view = view[file.write(view) :]
    else:
        source.copy_to(file)
    os.fsync(file.fileno())


def _create(temporary: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    # A directory may be removed by a delete between its making and the making of the file in it.
    for _ in range(10):
        try:
            return os.open(temporary, flags, 0o666)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(temporary), exist_ok=True)
    return os.open(temporary, flags, 0o666)


def _publish_new(temporary: str, target: str) -> bool:
    """Gives a finished file its name unless the name is taken; atomic either way."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _LINK_UNSUPPORTED:
            raise
    else:
        return True
    # A filesystem without hard links (FAT, some network mounts). A claim, created exclusively and left out of listings,
    # excludes other writers; then the rename is atomic.
    directory, name = os.path.split(target)
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    claim = os.path.join(directory, f".{name[:40]}.{digest}.{'0' * 16}.part")
    try:
        os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        raise OSError(
            errno.EBUSY,
            "another writer is storing this instance, or was killed while it did: if none runs, remove this file",
            claim,
        ) from None
    try:
        if os.path.lexists(target):
            return False
        os.rename(temporary, target)
        return True
    finally:
        os.unlink(claim)
