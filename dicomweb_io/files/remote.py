"""A folder on any filesystem of fsspec: object stores, ``memory://``, archives, and so on.

Through fsspec alone, a read of an object takes two or three requests and a write up to eight, because paths on object
stores could be folders. So S3, Google Cloud Storage and Azure are asked directly (`ObjectStore`), over the connections,
logins and retries of their filesystems: one request for each read, each write and each thousand names of a listing. A
read names the version that the listing has shown, and a write of a new object the condition that there is none. Some
servers of S3 know no conditions and replace what is there, so each has to prove it once to each process; one that does
not is asked before each write whether there is an object.
"""

from __future__ import annotations

import errno
import inspect
import io
import logging
import os
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, BinaryIO, ClassVar, cast
from urllib.parse import urlsplit

from dicomweb_io.errors import safe_url
from dicomweb_io.files.places import (
    FileStat,
    Folder,
    MissingBucketError,
    ObjectStoreError,
    Problem,
    SourceFile,
    VersionChangedError,
    is_temporary,
)
from dicomweb_io.spool import PrivateDirectory

# Up to this size a file is uploaded by one PUT from memory; above it in parts, from a copy.
_SINGLE_PUT_BYTES = 64 * 1024 * 1024
# A conditional PUT that finds an object has sent its bytes for nothing, a look-up before costs a round trip: about as
# much time at 100 MB/s and 40 ms.
_WRITE_FIRST_BYTES = 4 * 1024 * 1024
_PAGE = 1000
# What one read of a header fetches at least.
_READ_BYTES = 1 << 14

_VERSION_KEYS = ("ETag", "etag", "md5Hash", "content_md5", "crc32c", "generation")
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
_THERE = {"PreconditionFailed", "ConditionNotMet", "BlobAlreadyExists"}
# Whether the server of a bucket keeps the condition of a write, by filesystem and bucket.
_KEPT_CONDITIONS: dict[tuple[int, str], bool] = {}
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class ObjectStore:
    """What a folder asks of a kind of object store; each method sends one request.

    Args:
        filesystem: The filesystem of fsspec.

    Attributes:
        conditional: Whether all servers of the kind keep the condition of a write.
    """

    conditional: ClassVar[bool] = True

    def __init__(self, filesystem: Any) -> None:
        self._files = filesystem

    def split(self, name: str) -> tuple[str, str]:
        """The bucket and the key of a path."""
        bucket, key, _ = self._files.split_path(name)
        return bucket, key

    def run(self, work: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
        """Runs a method of this class in the event loop of the filesystem."""
        from fsspec.asyn import sync

        return sync(self._files.loop, work, *arguments)

    async def page(self, bucket: str, prefix: str, token: str | None, limit: int) -> tuple[list[FileStat], str | None]:
        """A page of a listing, and what leads to the next one."""
        raise NotImplementedError

    async def stat(self, bucket: str, key: str) -> FileStat:
        """One object."""
        raise NotImplementedError

    async def read(self, bucket: str, key: str, part: tuple[int, int] | None, version: str | None) -> bytes:
        """An object or the bytes from one position to another.

        Raises:
            VersionChangedError, FileNotFoundError: If it does not have the version.
        """
        raise NotImplementedError

    async def create(self, bucket: str, key: str, content: bytes) -> None:
        """Makes an object.

        Raises:
            FileExistsError: If there is one.
        """
        await self._files._pipe_file(f"{bucket}/{key}", content, mode="create")


class _S3(ObjectStore):
    conditional = False

    async def page(self, bucket: str, prefix: str, token: str | None, limit: int) -> tuple[list[FileStat], str | None]:
        more = {"ContinuationToken": token} if token else {}
        answer = await self._files._call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=limit, **more)
        return [
            _tagged(item["Key"], item["Size"], item["ETag"], item["LastModified"])
            for item in answer.get("Contents") or ()
        ], answer.get("NextContinuationToken")

    async def stat(self, bucket: str, key: str) -> FileStat:
        answer = await self._files._call_s3("head_object", Bucket=bucket, Key=key)
        return _tagged(key, answer["ContentLength"], answer["ETag"], answer["LastModified"])

    async def read(self, bucket: str, key: str, part: tuple[int, int] | None, version: str | None) -> bytes:
        import asyncio

        from s3fs.core import S3_RETRYABLE_ERRORS

        more = {"Range": f"bytes={part[0]}-{part[1] - 1}"} if part else {}
        if version is not None:
            more["IfMatch"] = f'"{version}"'
        for attempt in range(self._files.retries):
            answer = await self._files._call_s3("get_object", Bucket=bucket, Key=key, **more)
            try:
                # The connection may break in the middle, which the retries of the call do not see.
                async with answer["Body"] as body:
                    return cast(bytes, await body.read())
            except S3_RETRYABLE_ERRORS:
                if attempt + 1 == self._files.retries:
                    raise
                await asyncio.sleep(0.1 * 2**attempt)
        raise AssertionError("there is at least one attempt")

    async def create(self, bucket: str, key: str, content: bytes) -> None:
        for _ in range(self._files.retries):
            try:
                return await super().create(bucket, key, content)
            except OSError as error:
                # Another conditional write was under way; this one has to be sent again.
                if _code_of(error) != "ConditionalRequestConflict":
                    raise
        return await super().create(bucket, key, content)


class _GoogleCloudStorage(ObjectStore):
    _FIELDS = "name,size,generation,updated"

    def split(self, name: str) -> tuple[str, str]:
        # gcsfs takes what follows a number sign for a generation, if it is a number.
        bucket, _, key = name.partition("/")
        return bucket, key

    async def page(self, bucket: str, prefix: str, token: str | None, limit: int) -> tuple[list[FileStat], str | None]:
        answer = await self._files._call(
            "GET",
            "b/{}/o",
            bucket,
            json_out=True,
            prefix=prefix or None,
            maxResults=limit,
            pageToken=token,
            fields=f"items({self._FIELDS}),nextPageToken",
        )
        return [self._stat(item) for item in answer.get("items") or ()], answer.get("nextPageToken")

    async def stat(self, bucket: str, key: str) -> FileStat:
        return self._stat(await self._files._call("GET", "b/{}/o/{}", bucket, key, json_out=True, fields=self._FIELDS))

    @staticmethod
    def _stat(item: Mapping[str, Any]) -> FileStat:
        return _tagged(item["name"], item.get("size") or 0, item["generation"], item.get("updated"))

    async def read(self, bucket: str, key: str, part: tuple[int, int] | None, version: str | None) -> bytes:
        start, end = part or (None, None)
        content = await self._files._cat_file(f"{bucket}/{key}", start=start, end=end, generation=version)
        return cast(bytes, content)


class _Azure(ObjectStore):
    async def page(self, bucket: str, prefix: str, token: str | None, limit: int) -> tuple[list[FileStat], str | None]:
        async with self._files.service_client.get_container_client(bucket) as container:
            pages = container.list_blobs(
                name_starts_with=prefix or None, include=["metadata"], results_per_page=limit
            ).by_page(continuation_token=token)
            blobs = [blob async for blob in await anext(pages)]
        return [
            _tagged(blob.name, blob.size, blob.etag, blob.last_modified)
            for blob in blobs
            if (blob.metadata or {}).get("hdi_isfolder") != "true"
        ], pages.continuation_token or None

    async def stat(self, bucket: str, key: str) -> FileStat:
        async with self._files.service_client.get_blob_client(bucket, key) as client:
            blob = await client.get_blob_properties()
        if (blob.metadata or {}).get("hdi_isfolder") == "true":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key)
        return _tagged(key, blob.size, blob.etag, blob.last_modified)

    async def read(self, bucket: str, key: str, part: tuple[int, int] | None, version: str | None) -> bytes:
        more: dict[str, Any] = {"offset": part[0], "length": part[1] - part[0]} if part else {}
        if version is not None:
            from azure.core import MatchConditions

            more.update(etag=f'"{version}"', match_condition=MatchConditions.IfNotModified)
        async with self._files.service_client.get_blob_client(bucket, key) as client:
            stream = await client.download_blob(max_concurrency=self._files.max_concurrency or 1, **more)
            return cast(bytes, await stream.readall())


# It logs each failure with a traceback and the server's words, which may name a patient, and without a handler of the
# program's own all of it goes to standard error; the errors themselves say what is needed.
logging.getLogger("gcsfs").addHandler(logging.NullHandler())

_STORES: dict[str, type[ObjectStore]] = {
    "S3FileSystem": _S3,
    "GCSFileSystem": _GoogleCloudStorage,
    "AzureBlobFileSystem": _Azure,
}

_EXTRAS = {"s3fs": "s3", "gcsfs": "gcs", "adlfs": "abfs"}


def missing_package(error: ImportError) -> str:
    """What fsspec says of a filesystem whose package is not installed, with the extra that installs it."""
    extra = next((extra for package, extra in _EXTRAS.items() if package in str(error)), None)
    remedy = f"pip install 'dicomweb_io[{extra}]'" if extra else str(error)
    return f"the package for this kind of folder is not installed: {remedy}"


def object_store(filesystem: Any) -> ObjectStore | None:
    """What is known of an fsspec filesystem if it is an object store."""
    for kind in type(filesystem).__mro__:
        store = _STORES.get(kind.__name__)
        if store is not None:
            return store(filesystem)
    return None


def make_parents(filesystem: Any, name: str) -> None:
    """Makes the folders above a path; object stores have none, and would make a bucket instead, also behind a cache."""
    kept = filesystem
    while object_store(kept) is None and hasattr(kept, "fs"):
        kept = kept.fs
    parent = name.rpartition("/")[0]
    if parent and object_store(kept) is None:
        filesystem.makedirs(parent, exist_ok=True)


def _create(filesystem: Any, name: str, content: bytes) -> None:
    try:
        filesystem.pipe_file(name, content, mode="create")
    except (TypeError, ValueError, NotImplementedError):
        # This filesystem has no exclusive creation: the look-up before has to suffice.
        filesystem.pipe_file(name, content)


def _tagged(key: str, size: Any, version: Any, time: Any) -> FileStat:
    return FileStat(key, int(size), str(version).strip('"'), _seconds(time), True)


def _code_of(error: BaseException) -> str:
    """What a server calls its error."""
    for one in (error, error.__cause__ or error.__context__):
        answer = getattr(one, "response", None)
        if isinstance(answer, Mapping):
            return str(answer.get("Error", {}).get("Code") or "")
        code = getattr(one, "error_code", None)
        if code:
            return str(getattr(code, "value", code))
    return ""


def _status_of(error: BaseException) -> int | None:
    for one in (error, error.__cause__ or error.__context__):
        answer = getattr(one, "response", None)
        if isinstance(answer, Mapping):
            return cast("int | None", answer.get("ResponseMetadata", {}).get("HTTPStatusCode"))
        for name in ("status_code", "status", "code"):
            status = getattr(one, name, None)
            if isinstance(status, (int, str)) and str(status).isdigit():
                return int(status)
    # So gcsfs says it.
    return 403 if str(error).startswith("Forbidden") else None


def _is_there(error: Exception) -> bool:
    """Whether an error of a write with a condition says that there is an object; Azure has one status for conflicts."""
    code = _code_of(error)
    return code in _THERE or (isinstance(error, FileExistsError) and not code)


def _translated(error: Exception, bucket: str, place: str) -> OSError:
    """An error of a filesystem of fsspec as an `OSError`, without what could be secret in its text."""
    status, code = _status_of(error), _code_of(error)
    kind = type(error).__name__
    if code in ("NoSuchBucket", "ContainerNotFound"):
        return MissingBucketError(bucket)
    if status == 412 or code in ("PreconditionFailed", "ConditionNotMet"):
        return VersionChangedError(place)
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
    said = " ".join(str(word) for word in (status, code or (None if status else kind)) if word)
    if isinstance(error, PermissionError) or status in (401, 403) or "Credential" in kind or "DefaultCred" in kind:
        what = f"access is denied ({said}): check the login and what it may do"
        return ObjectStoreError(errno.EACCES, what, bucket, False)
    passing = status in _PASSING or (status is None and not isinstance(error, ValueError))
    what = f"the server refuses the request ({said})" if status else f"it cannot be asked ({said})"
    return ObjectStoreError(errno.EBUSY if passing else errno.EIO, what, place, passing)


class RemoteFolder(Folder):
    """A prefix of an fsspec filesystem: object stores, ``memory://``, archives, and so on."""

    @property
    def base_url(self) -> str:
        """The URL without user information and query."""
        parts = urlsplit(self.url)
        if not parts.scheme:
            return self.url.rstrip("/")
        return safe_url(self.url).rstrip("/")

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem. fsspec itself keeps one per process and set of options."""
        return self._resolve()[0]

    def _resolve(self) -> tuple[Any, str]:
        import fsspec

        try:
            filesystem, root = fsspec.core.url_to_fs(self.url, **(self.storage_options or {}))
        except ImportError as error:
            raise ObjectStoreError(errno.ENOPKG, missing_package(error), safe_url(self.url), False) from None
        except (OSError, TypeError, ValueError, AssertionError):
            raise
        except Exception as error:
            # Some log in at once, or open an archive.
            raise _translated(error, safe_url(self.url), safe_url(self.url)) from None
        return filesystem, str(root).rstrip("/")

    def _path(self, path: str) -> str:
        root = self._resolve()[1]
        return f"{root}/{path}" if root else path

    @property
    def _store(self) -> ObjectStore | None:
        return object_store(self.filesystem)

    @property
    def _bucket(self) -> str:
        scheme, _, rest = self.base_url.partition("://")
        return f"{scheme}://{rest.partition('/')[0]}"

    @contextmanager
    def _asking(self, path: str = "") -> Iterator[None]:
        """What goes wrong inside is an `OSError`."""
        try:
            yield
        except (TypeError, AttributeError, AssertionError):
            raise
        except (MissingBucketError, ObjectStoreError, VersionChangedError):
            raise
        except Exception as error:
            if isinstance(error, (FileNotFoundError, FileExistsError)) and self._store is None:
                raise
            if isinstance(error, OSError) and self._store is None and error.errno is not None:
                raise
            raise _translated(error, self._bucket, self.shown(path)) from None

    def location_of(self, path: str) -> str:
        """The URL of a file."""
        if not path:
            return self.url
        return f"{self.url.rstrip('/')}/{path}"

    def shown(self, path: str) -> str:
        """The URL of a file without what could be secret."""
        return f"{self.base_url}/{path}" if path else self.base_url

    def exists(self) -> bool:
        """Whether there is anything at the prefix, or the whole bucket is meant."""
        filesystem, root = self._resolve()
        store = object_store(filesystem)
        if store is None:
            filesystem.invalidate_cache()
            return not root or bool(filesystem.isdir(root))
        bucket, key = store.split(root)
        return bool(self._page(store, bucket, key, None, 1)[0]) or not key

    def check(self) -> None:
        """One look, by which it is known that the bucket is there and can be listed."""
        if object_store(self._resolve()[0]) is not None:
            self.exists()

    def _page(
        self, store: ObjectStore, bucket: str, key: str, token: str | None, limit: int
    ) -> tuple[list[FileStat], str | None]:
        with self._asking():
            try:
                found, token = store.run(store.page, bucket, f"{key}/" if key else "", token, limit)
            except FileNotFoundError:
                raise MissingBucketError(self._bucket) from None
        return found, token

    def walk(self, abandoned: list[str] | None = None) -> Iterator[FileStat | Problem]:
        """Yields every object below the prefix as it is listed. Writers leave no temporary objects behind."""
        filesystem, root = self._resolve()
        store = object_store(filesystem)
        stats: Iterator[FileStat | Problem]
        stats = self._found(filesystem, root) if store is None else self._listed(store, root)
        for stat in stats:
            folders = stat.path.split("/")
            # A name that ends with a slash is how consoles show an empty folder.
            if not folders[-1] or any(part.startswith(".") for part in folders[:-1]) or is_temporary(folders[-1]):
                continue
            yield stat

    def _found(self, filesystem: Any, root: str) -> Iterator[FileStat]:
        filesystem.invalidate_cache()
        with self._asking():
            entries = filesystem.find(root, detail=True)
            if not entries and root and not filesystem.isdir(root):
                raise FileNotFoundError(errno.ENOENT, "the folder does not exist, or has no files", self.base_url)
        skip = len(root) + 1 if root else 0
        for name, info in entries.items():
            path = str(name)[skip:] if str(name).startswith(root) else str(name)
            if info.get("type", "file") == "file":
                yield _remote_stat(path.lstrip("/"), info)

    def _listed(self, store: ObjectStore, root: str) -> Iterator[FileStat | Problem]:
        bucket, key = store.split(root)
        skip = len(key) + 1 if key else 0
        found, token = self._page(store, bucket, key, None, _PAGE)
        if key and not found and not token:
            raise FileNotFoundError(errno.ENOENT, "the folder does not exist, or has no files", self.base_url)
        while True:
            for stat in found:
                path = stat.path[skip:]
                if "?version" in path.lower() and store.split(f"{bucket}/{stat.path}") != (bucket, stat.path):
                    yield Problem(path, "the name means a version of another object, so it cannot be asked for")
                else:
                    yield stat._replace(path=path)
            if not token:
                return
            found, token = self._page(store, bucket, key, token, _PAGE)

    def stat(self, path: str) -> FileStat | None:
        """One object as it is now."""
        filesystem = self.filesystem
        store = object_store(filesystem)
        try:
            with self._asking(path):
                if store is not None:
                    return cast(FileStat, store.run(store.stat, *store.split(self._path(path))))._replace(path=path)
                filesystem.invalidate_cache()
                info = filesystem.info(self._path(path))
        except MissingBucketError:
            raise
        except FileNotFoundError:
            return None
        return _remote_stat(path, info) if info.get("type", "file") == "file" else None

    @property
    def checks_versions(self) -> bool:
        """Object stores do."""
        return self._store is not None

    def open(self, path: str, size: int | None = None, version: str | None = None) -> BinaryIO:
        """Opens an object; each read fetches a range."""
        if size is None:
            stat = self.stat(path)
            if stat is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.shown(path))
            size = stat.size
        return cast(BinaryIO, RangeFile(self, path, size, version))

    def read(self, path: str, version: str | None = None) -> bytes:
        """All bytes of an object."""
        return self.read_part(path, None, version)

    def read_part(self, path: str, part: tuple[int, int] | None, version: str | None = None) -> bytes:
        """The bytes of an object from one position to another, or all."""
        filesystem = self.filesystem
        store = object_store(filesystem)
        name = self._path(path)
        try:
            with self._asking(path):
                if store is not None:
                    content = cast(bytes, store.run(store.read, *store.split(name), part, version))
                    if part is not None and len(content) > part[1] - part[0]:
                        # It does not know ranges, or unpacks the object: these bytes stand elsewhere in it.
                        what = f"the server answers {part[1] - part[0]} bytes of a range with {len(content)}"
                        raise ObjectStoreError(errno.EIO, what, self.shown(path), False)
                    return content
                start, end = part or (None, None)
                return bytes(filesystem.cat_file(name, start=start, end=end))
        except (FileNotFoundError, VersionChangedError):
            if store is None or version is None:
                raise
            # Each server has its own answer to a version that it does not have.
            if self.stat(path) is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.shown(path)) from None
            raise VersionChangedError(self.shown(path)) from None

    def publish(self, path: str, source: bytes | str | SourceFile, *, replace: bool) -> bool:
        """One completed PUT, exclusive where the filesystem can do that."""
        filesystem, _ = self._resolve()
        store = object_store(filesystem)
        name = self._path(path)
        kept = self._kept_conditions
        if not replace and not kept and self.stat(path) is not None:
            return False
        with self._asking(path):
            make_parents(filesystem, name)
        file_source = SourceFile.of(source) if isinstance(source, str) else source
        if isinstance(file_source, bytes) or file_source.size <= _SINGLE_PUT_BYTES:
            content = file_source if isinstance(file_source, bytes) else file_source.read()

            def create() -> None:
                if replace:
                    filesystem.pipe_file(name, content)
                elif store is not None:
                    store.run(store.create, *store.split(name), content)
                else:
                    _create(filesystem, name, content)

            written = self._is_written(path, create, replace)
            if written and not replace and store is not None and kept is None and len(content) <= _WRITE_FIRST_BYTES:
                with suppress(OSError):
                    _KEPT_CONDITIONS[self._server] = not self._is_written(path, create, False)
            return written
        # An upload in parts shows the object when its last part arrives: too late to notice that the file changed. So a
        # private copy is uploaded.
        with PrivateDirectory() as directory:
            copy = os.path.join(directory, "copy.dcm")
            with open(copy, "w+b") as file:
                file_source.copy_to(file)
            more = {} if replace or store is None else {"mode": "create"}
            return self._is_written(path, lambda: filesystem.put_file(copy, name, **more), replace)

    def _is_written(self, path: str, write: Callable[[], None], replace: bool) -> bool:
        with self._asking(path):
            try:
                write()
            except Exception as error:
                if replace or not _is_there(error):
                    raise
                return False
        return True

    @property
    def _server(self) -> tuple[int, str]:
        return hash(self.filesystem), self._bucket

    @property
    def _kept_conditions(self) -> bool | None:
        """Whether the server keeps the condition of a write; None if it has not proven it yet."""
        store = self._store
        return False if store is None else store.conditional or _KEPT_CONDITIONS.get(self._server)

    def is_exclusive(self, size: int) -> bool:
        """Object stores exclude other writers, and so do other filesystems with an exclusive write of their own."""
        filesystem = self.filesystem
        if object_store(filesystem) is not None:
            return self._kept_conditions is not False
        from fsspec.asyn import AsyncFileSystem
        from fsspec.spec import AbstractFileSystem

        # What fsspec does itself for `mode="create"` is a look-up before, which excludes nobody.
        kind = type(filesystem)
        write = kind._pipe_file if issubclass(kind, AsyncFileSystem) else kind.pipe_file
        general = write in (AsyncFileSystem._pipe_file, AbstractFileSystem.pipe_file)
        return not general and size <= _SINGLE_PUT_BYTES and "mode" in inspect.signature(write).parameters

    def writes_first(self, size: int) -> bool:
        """A conditional PUT of little is one request, a look-up another."""
        return self._kept_conditions is not False and size <= _WRITE_FIRST_BYTES

    def remove(self, path: str) -> bool:
        """Removes an object."""
        filesystem, _ = self._resolve()
        if object_store(filesystem) is not None and self.stat(path) is None:
            return False
        try:
            with self._asking(path):
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
        try:
            return datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
        except ValueError:
            return 0.0
    timestamp = getattr(value, "timestamp", None)
    return float(timestamp()) if callable(timestamp) else 0.0


class RangeFile(io.BufferedIOBase):
    """A file of a folder as a stream: a read fetches what it needs in one request, at least some kilobytes.

    Args:
        folder: The folder.
        path: The file.
        size: Its bytes.
        version: The version to read.
    """

    _smallest: ClassVar[int] = _READ_BYTES

    def __init__(self, folder: RemoteFolder, path: str, size: int, version: str | None = None) -> None:
        self._folder = folder
        self._path = path
        self._size = size
        self._version = version
        self._position = 0
        self._held = 0, b""

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

    def read(self, size: int | None = -1) -> bytes:
        """Up to so many bytes; fewer only at the end of the file."""
        end = self._size if size is None or size < 0 else min(self._position + size, self._size)
        if end <= self._position:
            return b""
        start, held = self._held
        if not start <= self._position or end > start + len(held):
            known = held[self._position - start :] if start <= self._position else b""
            start = self._position
            first = start + len(known)
            more = self._folder.read_part(
                self._path, (first, min(max(end, first + self._smallest), self._size)), self._version
            )
            self._held = start, held = start, known + more
        content = held[self._position - start : end - start]
        self._position += len(content)
        return content

    def read1(self, size: int = -1) -> bytes:
        """The same."""
        return self.read(size)

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)
