"""A folder on any filesystem of fsspec: object stores, ``memory://``, archives, and so on."""

from __future__ import annotations

import errno
import inspect
import io
import os
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from dicomweb_io.errors import safe_url
from dicomweb_io.files.places import FileStat, Folder, Problem, SourceFile, is_temporary
from dicomweb_io.spool import PrivateDirectory

# Up to this size a file is uploaded by one PUT, which can be exclusive; above it in parts.
_EXCLUSIVE_PUT_BYTES = 64 * 1024 * 1024

_VERSION_KEYS = ("ETag", "etag", "md5Hash", "content_md5", "crc32c", "generation")
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


class RemoteFolder(Folder):
    """A prefix of an fsspec filesystem: object stores, ``memory://``, archives, and so on."""

    @property
    def base_url(self) -> str:
        """The URL without user information and query."""
        parts = urlsplit(self.url)
        if "::" in self.url or not parts.scheme:
            return self.url.rstrip("/")
        return safe_url(self.url).rstrip("/")

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem. fsspec itself keeps one per process and set of options."""
        return self._resolve()[0]

    def _resolve(self) -> tuple[Any, str]:
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(self.url, **(self.storage_options or {}))
        return filesystem, str(root).rstrip("/")

    def _path(self, path: str) -> str:
        root = self._resolve()[1]
        return f"{root}/{path}" if root else path

    def location_of(self, path: str) -> str:
        """The URL of a file."""
        if not path:
            return self.url
        return f"{self.url.rstrip('/')}/{path}"

    def exists(self) -> bool:
        """Whether there is anything at the prefix."""
        filesystem, root = self._resolve()
        filesystem.invalidate_cache()
        return not root or bool(filesystem.isdir(root))

    def walk(self, abandoned: list[str] | None = None) -> Iterator[FileStat | Problem]:
        """Yields every object below the prefix, from one listing. Writers leave no temporary objects behind."""
        filesystem, root = self._resolve()
        filesystem.invalidate_cache()
        entries = filesystem.find(root, detail=True)
        if not entries and root and not filesystem.isdir(root):
            raise FileNotFoundError(errno.ENOENT, "the folder does not exist, or has no files", self.base_url)
        skip = len(root) + 1 if root else 0
        for name, info in entries.items():
            path = str(name)[skip:] if str(name).startswith(root) else str(name)
            path = path.lstrip("/")
            folders = path.split("/")
            if not path or any(part.startswith(".") for part in folders[:-1]) or is_temporary(folders[-1]):
                continue
            if info.get("type", "file") != "file":
                continue
            yield _remote_stat(path, info)

    def stat(self, path: str) -> FileStat | None:
        """One object as it is now."""
        filesystem, _ = self._resolve()
        try:
            filesystem.invalidate_cache()
            info = filesystem.info(self._path(path))
        except FileNotFoundError:
            return None
        return _remote_stat(path, info) if info.get("type", "file") == "file" else None

    def open(self, path: str, size: int | None = None) -> BinaryIO:
        """Opens an object; each read fetches a range."""
        filesystem, _ = self._resolve()
        name = self._path(path)
        if size is None:
            size = int(filesystem.size(name))
        return cast(BinaryIO, io.BufferedReader(RangeFile(filesystem, name, size), buffer_size=1 << 14))

    def read(self, path: str) -> bytes:
        """All bytes of an object."""
        return bytes(self.filesystem.cat_file(self._path(path)))

    def publish(self, path: str, source: bytes | str | SourceFile, *, replace: bool) -> bool:
        """One completed PUT, exclusive where the filesystem can do that."""
        filesystem, _ = self._resolve()
        name = self._path(path)
        if not replace and self.stat(path) is not None:
            return False
        parent = name.rpartition("/")[0]
        if parent:
            filesystem.makedirs(parent, exist_ok=True)
        if isinstance(source, bytes):
            return self._put_bytes(filesystem, name, source, replace)
        file_source = SourceFile.of(source) if isinstance(source, str) else source
        if file_source.size <= _EXCLUSIVE_PUT_BYTES:
            return self._put_bytes(filesystem, name, file_source.read(), replace)
        # An upload in parts shows the object when its last part arrives: too late to notice that the file changed. So a
        # private copy is uploaded.
        with PrivateDirectory() as directory:
            copy = os.path.join(directory, "copy.dcm")
            with open(copy, "w+b") as file:
                file_source.copy_to(file)
            filesystem.put_file(copy, name)
        return True

    def is_exclusive(self, size: int) -> bool:
        """What fsspec does itself for ``mode="create"`` is a look-up before, which excludes nobody."""
        from fsspec.asyn import AsyncFileSystem
        from fsspec.spec import AbstractFileSystem

        kind = type(self.filesystem)
        write = kind._pipe_file if issubclass(kind, AsyncFileSystem) else kind.pipe_file
        general = write in (AsyncFileSystem._pipe_file, AbstractFileSystem.pipe_file)
        return not general and size <= _EXCLUSIVE_PUT_BYTES and "mode" in inspect.signature(write).parameters

    @staticmethod
    def _put_bytes(filesystem: Any, name: str, content: bytes, replace: bool) -> bool:
        if not replace:
            try:
                filesystem.pipe_file(name, content, mode="create")
                return True
            except FileExistsError:
                return False
            except (TypeError, ValueError, NotImplementedError):
                pass  # This filesystem has no exclusive creation: the look-up above has to suffice.
        filesystem.pipe_file(name, content)
        return True

    def remove(self, path: str) -> bool:
        """Removes an object."""
        filesystem, _ = self._resolve()
        try:
            filesystem.rm_file(self._path(path))
        except FileNotFoundError:
            return False
        filesystem.invalidate_cache()
        return True


def _remote_stat(path: str, info: Mapping[str, Any]) -> FileStat:
    time = next((info[key] for key in _TIME_KEYS if info.get(key)), None)
    modified = 0.0 if time is None else _seconds(time)
    # A tag of the content is best: listings and look-ups of some filesystems spell times differently.
    version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), None)
    if version is None:
        version = repr(modified) if modified else str(time or "")
    return FileStat(path, int(info.get("size") or 0), version, modified)


def _seconds(value: object) -> float:
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, str):
        from datetime import datetime

        try:
            return datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
        except ValueError:
            return 0.0
    timestamp = getattr(value, "timestamp", None)
    return float(timestamp()) if callable(timestamp) else 0.0


class RangeFile(io.RawIOBase):
    """A file of an fsspec filesystem as a raw stream: every read is one ranged request, nothing is read ahead."""

    def __init__(self, filesystem: Any, name: str, size: int) -> None:
        self._filesystem = filesystem
        self._name = name
        self._size = size
        self._position = 0

    @property
    def name(self) -> str:
        """The name in its filesystem."""
        return self._name

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves without a request."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fetches up to the buffer's length."""
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        content = self._filesystem.cat_file(self._name, start=self._position, end=end)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
