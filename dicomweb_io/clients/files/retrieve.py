"""Retrieving from a folder: instances with their bytes untouched, and metadata."""

from __future__ import annotations

import errno
import io
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from dicomweb_io.clients.files.errors import FileClientError, http_error
from dicomweb_io.clients.files.index import IndexedFile
from dicomweb_io.clients.files.location import FileStat, Folder
from dicomweb_io.dicom.frame_encoding import ENCODINGS, missing_library
from dicomweb_io.dicom.json_model import BulkDataPlace, encode
from dicomweb_io.dicom.media_types import DICOM, MediaType, parse_media_types
from dicomweb_io.dicom.pixels import TARGETS, TranscodingError, transcode
from dicomweb_io.elements import Instance, JSONDataset, Resource

logger = logging.getLogger(__name__)

_AVAILABLE_TRANSFER_SYNTAX_UID = "00083002"
# Between filesystems, from special ones, or on old kernels: then bytes are read and written.
_NOT_COPYABLE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


def reference_of(file: IndexedFile) -> Resource:
    """The instance that a file stands for."""
    return Resource(file.study, file.series, file.sop)


class FolderReader:
    """Reads the files of a folder that an index names, and only if they still are what was indexed.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def open(self, file: IndexedFile) -> BinaryIO:
        """Opens a file after checking that it is the one that was indexed.

        Raises:
            requests.HTTPError: If it is gone (404) or changed (409).
        """
        try:
            opened = self._folder.open(file.path, file.size)
        except FileNotFoundError:
            raise self._gone(file) from None
        except OSError as error:
            raise self._unreadable(file, error) from None
        try:
            self.check(file, opened)
        except BaseException:
            opened.close()
            raise
        return opened

    def read(self, file: IndexedFile) -> bytes:
        """All bytes of a file. See `open` for the errors."""
        with self.open(file) as opened:
            try:
                content = self._folder.read(file.path) if not self._folder.is_local else opened.read(file.size + 1)
            except OSError as error:
                raise self._unreadable(file, error) from None
            self.check_local(file, opened)
        if len(content) != file.size:
            raise self._changed(file)
        return content

    def check(self, file: IndexedFile, opened: BinaryIO) -> None:
        """Makes sure that an open file still is what was indexed: before it is read, and when that is done.

        Raises:
            requests.HTTPError: If it is gone (404) or changed (409).
        """
        if self._folder.is_local:
            # What is open is asked, not the name: that may stand for another file a moment later.
            found = os.fstat(opened.fileno())
            stat: FileStat | None = FileStat(file.path, found.st_size, str(found.st_mtime_ns), 0.0)
        else:
            stat = self._folder.stat(file.path)
        if stat is None:
            raise self._gone(file)
        # A version of "!" was not settled when it was indexed; then the size has to do.
        if stat.size != file.size or file.version not in ("!", stat.version):
            raise self._changed(file)

    def check_local(self, file: IndexedFile, opened: BinaryIO) -> None:
        """`check` where it costs no request: of an object store's object nobody ever reads a mixture in one request."""
        if self._folder.is_local:
            self.check(file, opened)

    def _error(self, status: int, file: IndexedFile, what: str) -> FileClientError:
        return http_error(
            status,
            f"the file {self._folder.location_of(file.path)} of {reference_of(file).uri} {what}",
            url=f"{self._folder.base_url}/{reference_of(file).uri}",
        )

    def _gone(self, file: IndexedFile) -> FileClientError:
        return self._error(404, file, "is not there any more (refresh() brings the index up to date)")

    def _changed(self, file: IndexedFile) -> FileClientError:
        return self._error(409, file, "changed after it was indexed (refresh() brings the index up to date)")

    def _unreadable(self, file: IndexedFile, error: OSError) -> FileClientError:
        return self._error(500, file, f"cannot be read: {error.strerror or type(error).__name__}")

    # Instances ------------------------------------------------------------------------------------------------------

    def instance(
        self,
        file: IndexedFile,
        wishes: Sequence[MediaType],
        max_element_bytes: int,
        spool_directory: str | None,
        borrow: bool,
    ) -> Instance:
        """One instance; see `DICOMfileClient.iter_instances`."""
        reference = reference_of(file)
        wanted = self._syntax(file, wishes)
        if wanted is not None:
            content = self._transcoded(file, wanted)
            if len(content) <= max_element_bytes:
                return Instance(reference, wanted, content, sop_class_uid=file.sop_class)
            path = _spool_path(reference, len(content), max_element_bytes, spool_directory)
            with _created(path) as target:
                target.write(content)
            return Instance(reference, wanted, path=path, sop_class_uid=file.sop_class)
        if file.size <= max_element_bytes:
            return Instance(reference, file.syntax, self.read(file), sop_class_uid=file.sop_class)
        if borrow:
            self.open(file).close()
            path = self._folder.location_of(file.path)
        else:
            path = _spool_path(reference, file.size, max_element_bytes, spool_directory)
            self._copy(file, path)
        return Instance(reference, file.syntax, path=path, sop_class_uid=file.sop_class)

    def _copy(self, file: IndexedFile, path: str) -> None:
        """Copies a file into the spool. Never a further name of it: whoever owns the copy may write to it."""
        try:
            with self.open(file) as source, _created(path) as target:
                if self._folder.is_local:
                    _copy_in_kernel(source.fileno(), target.fileno(), file.size)
                    source.seek(target.seek(0, os.SEEK_END))
                shutil.copyfileobj(source, target, 1 << 20)
                size = target.tell()
                self.check(file, source)
            if size != file.size:
                raise self._changed(file)
        except BaseException:
            if os.path.exists(path):
                os.unlink(path)
            raise

    def _syntax(self, file: IndexedFile, wishes: Sequence[MediaType]) -> str | None:
        """The transfer syntax to re-encode in, by the first wish that can be met; None for the stored form."""
        if not wishes:
            return None
        possible: str | None = None
        for wish in wishes:
            wanted = wish.with_default.transfer_syntax_uid
            # A wish for anything at all, or for what is there.
            if wanted in (None, "*", file.syntax):
                return None
            if wanted in TARGETS:
                possible = possible or wanted
                # A later wish may be met where a library for this one is missing.
                if wanted not in ENCODINGS or missing_library(wanted) is None:
                    return wanted
        if possible is not None:
            return possible
        asked = ", ".join(dict.fromkeys(str(wish.transfer_syntax_uid) for wish in wishes))
        raise self._error(
            406,
            file,
            f"is stored in {file.syntax}, and cannot be had in {asked}: a folder gives the stored form ('*') and "
            f"{', '.join(TARGETS)}",
        )

    def _transcoded(self, file: IndexedFile, wanted: str) -> bytes:
        try:
            return transcode(io.BytesIO(self.read(file)), file.syntax, wanted)
        except TranscodingError as error:
            raise self._error(406, file, f"is stored in {file.syntax}: {error}") from None

    # Metadata -------------------------------------------------------------------------------------------------------

    def metadata(self, file: IndexedFile) -> JSONDataset:
        """The metadata of one instance, binary values above 1 KiB and pixel data as BulkDataURI.

        An element that cannot be decoded is left out, and a warning in the log names it.
        """
        reference = reference_of(file)
        base = f"{self._folder.base_url}/{reference.uri}/bulkdata"

        def report(path: tuple[str | int, ...], reason: str) -> None:
            place = "/".join(map(str, path))
            logger.warning("the metadata of %s lack the element %s: %s", reference.uri, place, reason)

        with self.open(file) as opened:
            dataset: JSONDataset = encode(opened, bulk_data=uri_maker(base), on_problem=report)
            self.check_local(file, opened)
        if _AVAILABLE_TRANSFER_SYNTAX_UID not in dataset:
            dataset[_AVAILABLE_TRANSFER_SYNTAX_UID] = {"vr": "UI", "Value": [file.syntax]}
            dataset = dict(sorted(dataset.items()))
        return dataset


def uri_maker(base: str) -> Callable[[BulkDataPlace], str]:
    """Makes bulk data URIs: the base, then tags and item numbers down to the value."""
    return lambda place: "/".join([base, *map(str, place.path)])


def _spool_path(reference: Resource, size: int, limit: int, directory: str | None) -> str:
    if directory is None:
        raise ValueError(
            f"{reference.uri} has {size} bytes, more than max_element_bytes ({limit}): give a spool_directory, "
            "or raise the limit"
        )
    return os.path.join(directory, f"dicomweb_io-{secrets.token_hex(8)}.dcm")


def _created(path: str) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600), "wb")


def _copy_in_kernel(source: int, target: int, size: int) -> None:
    """Copies what the system can copy by itself, as shared blocks where the filesystem has them; maybe nothing."""
    copy = getattr(os, "copy_file_range", None)
    done = 0
    while copy is not None and done < size:
        try:
            count = copy(source, target, size - done, offset_src=done, offset_dst=done)
        except OSError as error:
            if error.errno not in _NOT_COPYABLE:
                raise
            return
        if not count:
            return
        done += count


def instance_wishes(media_types: Any) -> tuple[MediaType, ...]:
    """The wishes for whole instances.

    Raises:
        ValueError: If one is for something else than DICOM files.
    """
    wishes = parse_media_types(media_types)
    for wish in wishes:
        if wish.name not in (DICOM, "*/*", "application/*"):
            raise ValueError(f"instances have no form {wish.name}: ask for {DICOM}, or for frames or rendered images")
    return wishes
