"""Retrieving from a folder: instances with their bytes untouched, metadata, frames and bulk data.

`FolderReader` reads files that an index names, if they are still the indexed ones. `PixelAccess` reads frames and bulk
data by range, so that reading a frame costs only that frame, whatever the size of the file.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import secrets
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

from dicomweb_io.dicom import frames as locate
from dicomweb_io.dicom.errors import DatasetError, FrameError, TranscodingError
from dicomweb_io.dicom.header_scan import HeaderScan, scan_header
from dicomweb_io.dicom.json_encode import BulkDataPlace, encode
from dicomweb_io.dicom.media_types import OCTET_STREAM, MediaType
from dicomweb_io.dicom.part10 import read_dataset, read_range
from dicomweb_io.dicom.pixels import (
    ENCODINGS,
    TARGETS,
    decode_frame,
    is_video,
    media_type_of,
    missing_library,
    recode_frame,
    transcode,
    with_one_frame,
)
from dicomweb_io.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN
from dicomweb_io.dicom.values import swap_words
from dicomweb_io.elements import Bulkdata, Frame, Instance, JSONDataset, Resource
from dicomweb_io.errors import ElementTooLargeError, FileClientError, http_error
from dicomweb_io.files.index import Index, IndexedFile
from dicomweb_io.files.places import FileStat, Folder, ObjectStoreError, VersionChangedError
from dicomweb_io.queries import AVAILABLE_TRANSFER_SYNTAX_UID

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

# Between filesystems, from special ones, or on old kernels. Then bytes are read and written.
_NOT_COPYABLE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)
_EXTENDED_OFFSETS, _EXTENDED_LENGTHS = 0x7FE00001, 0x7FE00002
_DESCRIPTION = ("00280002", "00280004", "00280008", "00280010", "00280011", "00280100")
# Walking over so few is cheaper than storing where they are.
_FEW_FRAGMENTS = 16
# Up to so many frames, the fragments of a local file are walked through even if a table names them.
_WALKED_FRAMES = 1024
_PATH = re.compile(r"[0-9A-F]{8}(?:/[1-9][0-9]*/[0-9A-F]{8})*\Z")


# Each is a request, and in memory while it is written.
_REMOTE_CHUNK = 1 << 23


def _version(file: IndexedFile) -> str | None:
    """The version of a file; one that was not settled when it was indexed has none, and its size has to suffice."""
    return None if file.version == "!" else file.version


def reference_of(file: IndexedFile) -> Resource:
    """The instance that a file represents."""
    return Resource(file.study, file.series, file.sop)


class FolderReader:
    """Reads the files of a folder that an index names, and only if they are still the indexed ones.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    @contextmanager
    def open(self, file: IndexedFile) -> Iterator[BinaryIO]:
        """Opens a file after checking that it is the one that was indexed.

        Raises:
            requests.HTTPError: If it is gone (404) or changed (409), also while it is read.
        """
        with self._errors(file):
            try:
                opened = self._folder.open(file.path, file.size, _version(file))
            except FileNotFoundError:
                raise self._gone(file) from None
            except OSError as error:
                raise self._unreadable(file, error) from None
            with opened:
                self.check(file, opened)
                yield opened

    @contextmanager
    def _errors(self, file: IndexedFile) -> Iterator[None]:
        """Errors of a remote folder as what a server would answer."""
        try:
            yield
        except VersionChangedError:
            raise self._changed(file) from None
        except FileNotFoundError:
            if self._folder.is_local:
                raise
            raise self._gone(file) from None
        except ObjectStoreError as error:
            raise self._unreadable(file, error) from None

    def read(self, file: IndexedFile) -> bytes:
        """All bytes of a file. See `open` for the errors."""
        if self._folder.is_local:
            with self.open(file) as opened:
                try:
                    content = opened.read(file.size + 1)
                except OSError as error:
                    raise self._unreadable(file, error) from None
                self.check(file, opened)
        else:
            with self._errors(file):
                self.check(file)
                content = self._folder.read(file.path, _version(file))
        if len(content) != file.size:
            raise self._changed(file)
        return content

    def check(self, file: IndexedFile, opened: BinaryIO | None = None) -> None:
        """Checks that a file is still the indexed one: before it is read, and when that is done.

        Object stores check it in each read.

        Raises:
            requests.HTTPError: If it is gone (404) or changed (409).
        """
        if self._folder.checks_versions:
            return
        if opened is not None and self._folder.is_local:
            # The open file is asked, not its name, which may soon belong to another file.
            found = os.fstat(opened.fileno())
            stat: FileStat | None = FileStat(file.path, found.st_size, str(found.st_mtime_ns), 0.0)
        else:
            stat = self._folder.stat(file.path)
        if stat is None:
            raise self._gone(file)
        if stat.size != file.size or _version(file) not in (None, stat.version):
            raise self._changed(file)

    def check_local(self, file: IndexedFile, opened: BinaryIO) -> None:
        """`check` where it costs no request. One request never reads a mixture of an object store's objects."""
        if self._folder.is_local:
            self.check(file, opened)

    def header(self, file: IndexedFile) -> Dataset:
        """The dataset of a file without its pixel data. See `open` for the errors."""
        with self.open(file) as opened:
            return read_dataset(opened, stop_before_pixels=True)

    def uri_of(self, reference: Resource) -> str:
        """The URI of a resource of the folder."""
        return f"{self._folder.base_url}/{reference.uri}"

    def error(self, status: int, reference: Resource, what: str, suffix: str = "") -> FileClientError:
        """What a server would answer about a resource, with a suffix such as ``"/rendered"`` in its URI."""
        return http_error(status, f"{reference.uri}: {what}", url=self.uri_of(reference) + suffix)

    def _error(self, status: int, file: IndexedFile, what: str) -> FileClientError:
        reference = reference_of(file)
        message = f"the file {self._folder.shown(file.path)} of {reference.uri} {what}"
        return http_error(status, message, url=self.uri_of(reference))

    def _gone(self, file: IndexedFile) -> FileClientError:
        return self._error(404, file, "is not there (refresh() brings the index up to date)")

    def _changed(self, file: IndexedFile) -> FileClientError:
        return self._error(409, file, "changed after it was indexed (refresh() brings the index up to date)")

    def _unreadable(self, file: IndexedFile, error: OSError) -> FileClientError:
        answer = self._error(500, file, f"cannot be read: {error.strerror or type(error).__name__}")
        answer.retryable = bool(getattr(error, "retryable", False))
        return answer

    def instance(
        self,
        file: IndexedFile,
        accepted_types: Sequence[MediaType],
        max_element_bytes: int,
        spool_directory: str | None,
        borrow: bool,
    ) -> Instance:
        """One instance; see `DICOMfileClient.iter_instances`."""
        reference = reference_of(file)
        wanted = self._syntax(file, accepted_types)
        if wanted is not None:
            content = self._transcoded(file, wanted)
            if len(content) <= max_element_bytes:
                return Instance(reference, wanted, content, sop_class_uid=file.sop_class)
            path = _spool_path(reference, len(content), max_element_bytes, spool_directory)
            with _created(path) as target:
                target.write(content)
            return Instance(reference, wanted, path=path, sop_class_uid=file.sop_class)
        facts: dict[str, Any] = {"sop_class_uid": file.sop_class}
        if file.warnings:
            facts["warnings"] = tuple(file.warnings.split("; "))
            logger.warning("%s moves unchanged: %s", reference.uri, file.warnings)
        if file.size <= max_element_bytes:
            return Instance(reference, file.syntax, self.read(file), **facts)
        if borrow:
            with self.open(file):
                pass
            path = self._folder.location_of(file.path)
        else:
            path = _spool_path(reference, file.size, max_element_bytes, spool_directory)
            self._copy(file, path)
        return Instance(reference, file.syntax, path=path, **facts)

    def _copy(self, file: IndexedFile, path: str) -> None:
        """Copies a file into the spool. A link would not do: the owner of the copy may write to it."""
        try:
            with self.open(file) as source, _created(path) as target:
                if self._folder.is_local:
                    _copy_in_kernel(source.fileno(), target.fileno(), file.size)
                    source.seek(target.seek(0, os.SEEK_END))
                shutil.copyfileobj(source, target, 1 << 20 if self._folder.is_local else _REMOTE_CHUNK)
                size = target.tell()
                self.check(file, source)
            if size != file.size:
                raise self._changed(file)
        except BaseException:
            if os.path.exists(path):
                os.unlink(path)
            raise

    def _syntax(self, file: IndexedFile, accepted_types: Sequence[MediaType]) -> str | None:
        """The transfer syntax to re-encode in, by the first possible accepted type; None for the stored form."""
        if not accepted_types:
            return None
        possible: str | None = None
        for accepted_type in accepted_types:
            wanted = accepted_type.with_default.transfer_syntax_uid
            if wanted in (None, "*", file.syntax):
                return None
            if wanted in TARGETS:
                possible = possible or wanted
                # A later type may be possible where a library for this one is missing.
                if wanted not in ENCODINGS or missing_library(wanted) is None:
                    return wanted
        if possible is not None:
            return possible
        asked = ", ".join(dict.fromkeys(str(accepted_type.transfer_syntax_uid) for accepted_type in accepted_types))
        raise self._error(
            406,
            file,
            f"is stored in {file.syntax}, and is not available in {asked}: a folder offers the stored encoding ('*') "
            "and "
            f"{', '.join(TARGETS)}",
        )

    def _transcoded(self, file: IndexedFile, wanted: str) -> bytes:
        try:
            return transcode(io.BytesIO(self.read(file)), file.syntax, wanted)
        except TranscodingError as error:
            raise self._error(406, file, f"is stored in {file.syntax}: {error}") from None

    def metadata(self, file: IndexedFile) -> JSONDataset:
        """The metadata of one instance, binary values above 1 KiB and pixel data as BulkDataURI.

        An element that cannot be decoded is left out, and a warning in the log names it, as it names one whose text has
        bytes outside of the character sets.
        """
        reference = reference_of(file)
        base = f"{self.uri_of(reference)}/bulkdata"

        def uri(place: BulkDataPlace) -> str:
            return "/".join([base, *map(str, place.path)])

        def report(path: tuple[str | int, ...], reason: str) -> None:
            place = "/".join(map(str, path))
            logger.warning("the metadata of %s are incomplete at the element %s: %s", reference.uri, place, reason)

        with self.open(file) as opened:
            dataset: JSONDataset = encode(opened, bulk_data=uri, on_problem=report)
            self.check_local(file, opened)
        if AVAILABLE_TRANSFER_SYNTAX_UID not in dataset:
            dataset[AVAILABLE_TRANSFER_SYNTAX_UID] = {"vr": "UI", "Value": [file.syntax]}
            dataset = dict(sorted(dataset.items()))
        return dataset


def _spool_path(reference: Resource, size: int, limit: int, directory: str | None) -> str:
    if directory is None:
        raise ElementTooLargeError(
            f"{reference.uri} has {size} bytes, more than max_element_bytes ({limit}): give a spool_directory, "
            "or raise the limit"
        )
    return os.path.join(directory, f"dicomweb_io-{secrets.token_hex(8)}.dcm")


def _created(path: str) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600), "wb")


def _copy_in_kernel(source: int, target: int, size: int) -> None:
    """Copies what the system can copy by itself, as shared blocks where the filesystem has them; perhaps nothing."""
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


class PixelAccess:
    """Reads frames and bulk data.

    Args:
        reader: Opens the files.
        index: Stores tables of fragments where a file has no offset table.
    """

    def __init__(self, reader: FolderReader, index: Index) -> None:
        self._reader = reader
        self._index = index

    def frames(
        self, file: IndexedFile, numbers: Sequence[int], accepted_types: Sequence[MediaType]
    ) -> Generator[Frame, None, None]:
        """Frames in the order asked for, each as often as asked for.

        Raises:
            requests.HTTPError: 404 if a frame is not there, 406 if it has no accepted form.
        """
        instance = reference_of(file)
        with self._reader.open(file) as opened:
            image = self._image(file, opened, self._scan(file, opened))
            if is_video(file.syntax):
                raise self._reader.error(
                    406,
                    instance,
                    f"it is a video ({file.syntax}), one stream without single frames; its bulk data are the stream",
                )
            form = _form(accepted_types, image)
            if form is None:
                raise self._reader.error(
                    406,
                    instance,
                    f"its frames are stored as {image.stored_type} ({file.syntax}), and are also available as "
                    f"{OCTET_STREAM}, {', '.join(map(media_type_of, ENCODINGS))}",
                )
            syntax, media_type = form
            header = self._reader.header(file) if syntax != image.stored_syntax else None
            for number in numbers:
                reference = Resource(
                    instance.study_instance_uid, instance.series_instance_uid, instance.sop_instance_uid, (number,)
                )
                try:
                    locate.check_frame_number(image.description.number_of_frames, number)
                    content = image.frame(number)
                    if header is not None and syntax in ENCODINGS:
                        content = recode_frame(header, content, image.stored_syntax, syntax)
                    elif header is not None:
                        content = decode_frame(with_one_frame(header, content, file.syntax), 1)
                except FrameError as error:
                    raise self._reader.error(404, reference, str(error)) from None
                except TranscodingError as error:
                    raise self._reader.error(406, reference, str(error)) from None
                self._reader.check_local(file, opened)
                yield Frame(reference, syntax, media_type, content)

    def _scan(self, file: IndexedFile, opened: BinaryIO) -> HeaderScan:
        scan = self._index.scan_of(file.id)
        return scan if scan is not None else scan_header(opened, size=file.size)

    def bulkdata(
        self, file: IndexedFile, path: str, byte_range: tuple[int, int | None] | None
    ) -> Generator[Bulkdata, None, None]:
        """The value at a path of tags and item numbers; encapsulated pixel data as a part for each frame, video as one.

        Raises:
            requests.HTTPError: 404 if there is no such value, 416 if the range lies outside of it.
        """
        instance = reference_of(file)
        uri = f"{self._reader.uri_of(instance)}/bulkdata/{path}"
        if not _PATH.match(path):
            raise self._reader.error(404, instance, f"{path!r} is not a path of tags and item numbers")
        with self._reader.open(file) as opened:
            scan = self._scan(file, opened)
            place = _place(scan, opened, path)
            if place is None:
                raise self._reader.error(404, instance, f"there is no bulk data at {path}")
            image = self._image(file, opened, scan) if place.length < 0 else None
            if image is not None and not is_video(file.syntax):
                if byte_range is not None:
                    what = "byte ranges are not available for encapsulated pixel data, which are returned in parts"
                    raise self._reader.error(416, instance, what)
                yield from self._parts(file, opened, image, uri)
                return
            try:
                length = place.length if image is None else image.stream_length
                start, end = _range(byte_range, length)
                if start >= end and length:
                    raise self._reader.error(
                        416, instance, f"bytes {byte_range} lie outside of the {length} bytes at {path}"
                    )
                content = _value(opened, scan, place, start, end) if image is None else image.stream(start, end)
            except FrameError as error:
                raise self._reader.error(404, instance, str(error)) from None
            self._reader.check_local(file, opened)
            yield Bulkdata(uri, OCTET_STREAM if image is None else image.stored_type, content)

    def _image(self, file: IndexedFile, opened: BinaryIO, scan: HeaderScan) -> _Image:
        try:
            return _Image(file, opened, scan, self._index)
        except (DatasetError, FrameError) as error:
            raise self._reader.error(404, reference_of(file), str(error)) from None

    def _parts(self, file: IndexedFile, opened: BinaryIO, image: _Image, uri: str) -> Generator[Bulkdata, None, None]:
        for number in range(1, image.description.number_of_frames + 1):
            try:
                content = image.frame(number)
            except FrameError as error:
                raise self._reader.error(404, reference_of(file), str(error)) from None
            self._reader.check_local(file, opened)
            yield Bulkdata(uri, image.stored_type, content)


class _Image:
    """The frames of one open file, or the one stream of a video.

    Args:
        file: What the index says of it.
        opened: The file.
        scan: Its header.
        index: Stores where fragments are.

    Raises:
        FrameError: If there are no pixel data.
        DatasetError: If the header names no number of frames.
    """

    def __init__(self, file: IndexedFile, opened: BinaryIO, scan: HeaderScan, index: Index) -> None:
        self._file = file
        self._opened = opened
        self._scan = scan
        self._index = index
        self._packed: bytes | None = None
        if scan.pixel_data is None or scan.pixel_data_tag is None:
            raise FrameError("it has no pixel data, so no frames")
        unreadable: list[str] = []
        header = encode(scan, tags=_DESCRIPTION, on_problem=lambda path, _: unreadable.append(str(path[0])))
        self.description = locate.pixel_description(header, f"{scan.pixel_data_tag:08X}")
        self.encapsulated = scan.pixel_data[2] < 0
        # Native pixel data go out as little-endian octets whatever they were stored as (PS3.18 section 8.7.3.3.2).
        self.stored_syntax = file.syntax if self.encapsulated else EXPLICIT_VR_LITTLE_ENDIAN
        self.stored_type = media_type_of(file.syntax) if self.encapsulated else OCTET_STREAM
        if locate.NUMBER_OF_FRAMES in unreadable and not self._is_one_frame():
            raise DatasetError("NumberOfFrames (0028,0008) is not a number")

    def _is_one_frame(self) -> bool:
        """Whether the pixel data are one frame, whatever the header says."""
        if self.encapsulated:
            return len(self._fragments) == 1
        assert self._scan.pixel_data is not None  # noqa: S101 - for the type checker; the constructor checked
        return 0 <= self._scan.pixel_data[2] - -(-self.description.frame_bits // 8) <= 1

    def frame(self, number: int) -> bytes:
        """One frame as stored."""
        return self._encapsulated(number) if self.encapsulated else self._native(number)

    def _read(self, start: int, end: int) -> bytes:
        return read_range(self._opened, self._scan, start, end - start)

    def _native(self, number: int) -> bytes:
        assert self._scan.pixel_data is not None  # noqa: S101 - for the type checker; the constructor checked
        vr, offset, length = self._scan.pixel_data
        place = locate.native_frame(self.description, offset, length, number)
        if self._scan.little_endian or vr == "OB":
            content = self._read(place.start, place.end)
        else:
            # Big-endian words may reach over the ends of a frame: whole words are read, swapped and cut.
            width = max(2, self.description.bits_allocated // 8)
            start = offset + (place.start - offset) // width * width
            end = min(offset + -(-(place.end - offset) // width) * width, offset + length)
            words = locate.native_to_little_endian(
                self._read(start, end), vr="OW", bits_allocated=self.description.bits_allocated
            )
            content = words[place.start - start : place.end - start]
        if len(content) != place.end - place.start:
            raise FrameError(f"the file ends inside frame {number}")
        if self.description.bits_allocated < 8:
            return locate.align_bits(content, place.shift, place.bits)
        return content

    @cached_property
    def _layout(self) -> locate.EncapsulatedLayout:
        assert self._scan.pixel_data is not None  # noqa: S101 - for the type checker; the constructor checked
        return locate.encapsulated_layout(self._read, self._scan.pixel_data[1], self._file.size)

    @cached_property
    def _fragments(self) -> list[locate.Fragment]:
        return locate.walk_fragments(self._read, self._layout)

    @property
    def stream_length(self) -> int:
        """The bytes of all fragments."""
        return sum(fragment.length for fragment in self._fragments)

    def stream(self, start: int, end: int) -> bytes:
        """A range of the joined fragments."""
        pieces = []
        for fragment in self._fragments:
            if start < fragment.length and end > 0:
                pieces.append(self._read(fragment.offset + max(start, 0), fragment.offset + min(end, fragment.length)))
            start, end = start - fragment.length, end - fragment.length
        return b"".join(pieces)

    def _encapsulated(self, number: int) -> bytes:
        frames = self.description.number_of_frames
        packed = self._packed or self._index.fragments(self._file.id)
        extended = self._extended_table()
        if packed is None and frames > (_WALKED_FRAMES if self._index.folder.is_local else _FEW_FRAGMENTS):
            for table in (extended, self._layout.basic):
                content = table and locate.frame_by_table(self._read, self._layout, table, frames, number)
                if content:
                    return content
        if packed is None:
            groups = locate.group_frames(self._read, self._layout, extended, self._fragments, frames)
            packed = locate.pack_groups(groups)
            if len(self._fragments) > _FEW_FRAGMENTS:
                self._index.store_fragments(self._file.id, packed)
        self._packed = packed
        content = b"".join(
            self._read(offset, offset + length) for offset, length in locate.packed_frame(packed, number)
        )
        locate.check_not_empty(content, number)
        return content

    def _extended_table(self) -> locate.OffsetTable | None:
        offsets = self._scan.elements.get(_EXTENDED_OFFSETS)
        lengths = self._scan.elements.get(_EXTENDED_LENGTHS)
        if offsets is None or lengths is None:
            return None
        return locate.extended_table(offsets[1], offsets[2], lengths[1], lengths[2])


def _form(accepted_types: Sequence[MediaType], image: _Image) -> tuple[str, str] | None:
    """Transfer syntax and media type of the first possible accepted type: as stored, decoded, or re-encoded."""
    stored = image.stored_syntax, image.stored_type
    if not accepted_types:
        return stored
    possible: tuple[str, str] | None = None
    for accepted_type in accepted_types:
        wanted = accepted_type.with_default.transfer_syntax_uid
        if (
            image.encapsulated
            and accepted_type.name in (OCTET_STREAM, "application/*")
            and accepted_type.transfer_syntax_uid in (None, EXPLICIT_VR_LITTLE_ENDIAN)
        ):
            return EXPLICIT_VR_LITTLE_ENDIAN, OCTET_STREAM
        if _offers([accepted_type], image.stored_type, image.stored_syntax):
            return stored
        if wanted in ENCODINGS and accepted_type.includes(media_type_of(wanted)):
            if image.encapsulated and _offers(accepted_types, image.stored_type, image.stored_syntax):
                # A compressed frame is not compressed in another way if its stored form is accepted too.
                return stored
            form = wanted, media_type_of(wanted)
            if missing_library(wanted) is None:
                return form
            # A later type may be possible; if none is, the error for this one says what is missing.
            possible = possible or form
    return possible


def _offers(accepted_types: Sequence[MediaType], media_type: str, syntax: str) -> bool:
    """Whether a stored form is accepted; a type without transfer syntax accepts any of its syntaxes."""
    return any(
        accepted_type.transfer_syntax_uid in (None, "*", syntax)
        and (
            accepted_type.includes(media_type)
            or (accepted_type.name == OCTET_STREAM and accepted_type.transfer_syntax_uid == "*")
        )
        for accepted_type in accepted_types
    )


def _place(scan: HeaderScan, opened: BinaryIO, path: str) -> BulkDataPlace | None:
    """Where the value at a path of tags and item numbers is; the encoder of metadata walks through the items."""
    places: list[BulkDataPlace] = []

    def note(place: BulkDataPlace) -> str:
        if "/".join(map(str, place.path)) == path:
            places.append(place)
        return "noted"

    tags = [path[:8]]
    encode(scan, tags=tags, file=opened, bulk_data=note, bulk_data_threshold=0)
    if not places:
        encode(opened, tags=tags, bulk_data=note, bulk_data_threshold=0)
    return places[0] if places and places[0].offset is not None else None


def _range(byte_range: tuple[int, int | None] | None, length: int) -> tuple[int, int]:
    """A range with an inclusive end, as in HTTP, as start and exclusive end."""
    if byte_range is None:
        return 0, length
    start, last = byte_range
    if start < 0 or (last is not None and last < start):
        raise ValueError(
            f"byte_range must be (first, last) with 0 <= first <= last, or (first, None), not {byte_range!r}"
        )
    return start, length if last is None else min(last + 1, length)


def _value(opened: BinaryIO, scan: HeaderScan, place: BulkDataPlace, start: int, end: int) -> bytes:
    offset = place.offset or 0
    if scan.little_endian:
        return read_range(opened, scan, offset + start, end - start)
    # Bulk data are little endian in HTTP: big-endian words are read whole and swapped.
    first, last = start // 8 * 8, min(-(-end // 8) * 8, place.length)
    return swap_words(read_range(opened, scan, offset + first, last - first), place.vr)[start - first : end - first]
