"""What the index of a folder stores of one file: its UIDs and its header's bytes, or why it is not an instance.

`read_record` reads only as much of a file as it needs. `pack_scan` turns the scan of its header into bytes for the
database, `unpack_scan` turns them back. Long values stay in the file; only their places are stored.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

import orjson

from dicomweb_io.dicom.errors import DICOMDIRError, IncompleteDICOMError, MissingUIDError, NotDICOMError
from dicomweb_io.dicom.header_scan import HeaderScan, scan_header
from dicomweb_io.dicom.json_decode import dumps
from dicomweb_io.dicom.json_encode import encode
from dicomweb_io.dicom.part10 import header_from_scan, judge
from dicomweb_io.files.places import FileStat, Folder
from dicomweb_io.queries import INSTANCE_DEFAULTS

INSTANCE, TRUNCATED, IGNORED, UNREADABLE = 0, 1, 2, 3
"""What a file is: an instance; one that is cut off; not DICOM or a DICOMDIR; DICOM that cannot be served."""

_LONG_VALUE = 8 * 1024

_WHOLE_FILE_BYTES = 128 * 1024
_FIRST_READ = 16 * 1024
_PLAIN, _TABLED = 0, 1
_PIXELS = struct.Struct("<I2sqq")
_STATE = (
    "pixel_data_tag",
    "pixel_data",
    "transfer_syntax_uid",
    "transfer_syntax_guessed",
    "explicit_vr",
    "little_endian",
    "deflated",
    "has_preamble",
    "dataset_offset",
    "end",
    "problem",
)

INSTANCE_NUMBER_TAG = 0x00200013
SERIES_NUMBER_TAG = 0x00200011
NO_NUMBER = 1 << 40
"""Sorts objects without a number after those with one."""


@dataclass(slots=True)
class FileRecord:
    """What is known of one file. See the columns of the same names in `dicomweb_io.files.database`.

    The reason of an instance is what is odd about it.
    """

    stat: FileStat
    kind: int
    reason: str | None = None
    study: str | None = None
    series: str | None = None
    sop: str | None = None
    sop_class: str | None = None
    syntax: str | None = None
    scan: HeaderScan | None = None


def read_record(folder: Folder, stat: FileStat) -> FileRecord:
    """Reads the header of a file. It never raises for the content: what is wrong becomes the record's reason."""
    try:
        if folder.is_local and stat.size <= _WHOLE_FILE_BYTES:
            content = folder.read(stat.path)
            if len(content) != stat.size:
                return FileRecord(stat._replace(version="!"), UNREADABLE, "it changed while it was read")
            return _record(stat, content)
        with folder.open(stat.path, stat.size, stat.version if stat.tagged else None) as file:
            return _record(stat, file)
    except OSError as error:
        # Permissions can be repaired without a change to the file: this version makes the next refresh read it again.
        reason = f"it cannot be read: {error.strerror or type(error).__name__}"
        return FileRecord(stat._replace(version="!"), UNREADABLE, reason)


def _record(stat: FileStat, source: BinaryIO | bytes) -> FileRecord:
    try:
        scan = scan_header(source, size=stat.size, large_value=_LONG_VALUE, first_read=_FIRST_READ)
        header = header_from_scan(scan)
        verdict = judge(source, size=stat.size, scan=scan)
    except (NotDICOMError, DICOMDIRError) as error:
        return FileRecord(stat, IGNORED, _packed(source) or error.reason)
    except (IncompleteDICOMError, MissingUIDError) as error:
        uids = getattr(error, "uids", {})
        return FileRecord(
            stat,
            UNREADABLE,
            error.reason,
            study=uids.get("StudyInstanceUID"),
            series=uids.get("SeriesInstanceUID"),
            sop=uids.get("SOPInstanceUID"),
        )
    except (ValueError, ArithmeticError, LookupError, RecursionError, MemoryError) as error:
        return FileRecord(stat, UNREADABLE, f"its header cannot be parsed ({type(error).__name__})")
    problem = verdict.problem or verdict.open_end
    return FileRecord(
        stat,
        INSTANCE if problem is None else TRUNCATED,
        "; ".join(verdict.warnings) or None if problem is None else f"truncated or damaged: {problem}",
        header.study_instance_uid,
        header.series_instance_uid,
        header.sop_instance_uid,
        header.sop_class_uid,
        header.transfer_syntax_uid,
        scan,
    )


def _packed(source: BinaryIO | bytes) -> str | None:
    """The reason given for a file that may hold DICOM files and has to be unpacked first."""
    if not isinstance(source, bytes):
        source.seek(0)
        source = source.read(4)
    if source[:4] == b"PK\3\4":
        return "a ZIP archive, which is not looked into: unpack it, or copy from zip://::file:///PATH"
    return "compressed with gzip: unpack it" if source[:2] == b"\x1f\x8b" else None


def number_of(scan: HeaderScan, tag: int) -> int:
    """An InstanceNumber or SeriesNumber for sorting; `NO_NUMBER` if it is missing or not a number."""
    try:
        return max(-NO_NUMBER, min(int(scan.text(tag) or ""), NO_NUMBER))
    except ValueError:
        return NO_NUMBER


def pack_scan(scan: HeaderScan) -> tuple[int, bytes]:
    """A scan as the index stores it: a form number and bytes, for `unpack_scan`."""
    segments = scan.segments
    if len(segments) == 1 and segments[0][0] == 0 and not scan.deflated:
        content = segments[0][1]
        if max((place[2] for place in scan.elements.values()), default=0) <= _LONG_VALUE:
            # Scanning these bytes again is cheaper than storing the table of elements. The pixel data are not in them.
            tag, (vr, offset, length) = scan.pixel_data_tag or 0, scan.pixel_data or (None, 0, 0)
            return _PLAIN, _PIXELS.pack(tag, (vr or "").encode(), offset, length) + content[: scan.end]
    short = _without_long_values(scan)
    table = orjson.dumps(
        {
            "segments": [(offset, len(content)) for offset, content in short],
            "elements": list(scan.elements.items()),
            "meta": list(scan.meta.items()),
            **{name: getattr(scan, name) for name in _STATE},
        }
    )
    return _TABLED, b"".join([len(table).to_bytes(4, "little"), table, *(content for _, content in short)])


def _without_long_values(scan: HeaderScan) -> list[tuple[int, bytes]]:
    """The segments of a scan, cut where a long value stands."""
    long = sorted((place[1], place[2]) for place in scan.elements.values() if place[2] > _LONG_VALUE)
    pieces = []
    for start, content in scan.segments:
        position = start
        end = start + len(content)
        for offset, length in long:
            if offset >= end or offset + length <= position:
                continue
            if offset > position:
                pieces.append((position, content[position - start : offset - start]))
            position = max(position, offset + length)
        if position < end:
            pieces.append((position, content[position - start :]))
    return pieces


def unpack_scan(form: int, content: bytes, *, stop_after: int | None = None) -> HeaderScan:
    """The scan that `pack_scan` stored; its segments lack the long values.

    Args:
        form: As `pack_scan` gave it.
        content: As `pack_scan` gave it.
        stop_after: A tag after which nothing is wanted, which is quicker.
    """
    if form == _PLAIN:
        tag, vr, offset, length = _PIXELS.unpack_from(content)
        scan = scan_header(content[_PIXELS.size :], large_value=None, stop_after=stop_after)
        if tag:
            scan.pixel_data_tag, scan.pixel_data = tag, (vr.rstrip(b"\0").decode() or None, offset, length)
        return scan
    position = 4 + int.from_bytes(content[:4], "little")
    table = orjson.loads(content[4:position])
    segments = []
    for offset, length in table["segments"]:
        segments.append((offset, content[position : position + length]))
        position += length
    scan = HeaderScan(
        segments,
        elements={tag: tuple(place) for tag, place in table["elements"]},
        meta={tag: tuple(place) for tag, place in table["meta"]},
    )
    for name in _STATE:
        value = table[name]
        setattr(scan, name, tuple(value) if isinstance(value, list) else value)
    return scan


def instance_row(scan: HeaderScan) -> tuple[int, str]:
    """The number by which an instance is sorted, and its default attributes as JSON text."""
    row = encode(scan, tags=INSTANCE_DEFAULTS)
    try:
        text = orjson.dumps(row).decode()
    except TypeError:
        text = dumps(row).decode()
    return number_of(scan, INSTANCE_NUMBER_TAG), text


def path_key(path: str) -> bytes:
    """A path as the index stores it: bytes, which sort like the text."""
    return path.encode("utf-8", "surrogateescape")


def path_text(key: bytes) -> str:
    """The opposite of `path_key`."""
    return key.decode("utf-8", "surrogateescape")
