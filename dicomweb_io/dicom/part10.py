"""DICOM files (PS3.10): what a file holds, whether it is complete, and how a dataset becomes one."""

from __future__ import annotations

import copy
import io
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from dicomweb_io.dicom.errors import DatasetError, DICOMDIRError, IncompleteDICOMError, MissingUIDError, Part10Error
from dicomweb_io.dicom.header_scan import (
    UNDEFINED_LENGTH,
    HeaderScan,
    InflatedSource,
    Source,
    as_source,
    scan_header,
    scan_trailing,
)
from dicomweb_io.dicom.uids import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    is_image_class,
    is_uid,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"

_UIDS = {
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "SOPInstanceUID": 0x00080018,
}


_IMAGE = frozenset((0x00280010, 0x00280011, 0x00280100))  # Rows, Columns, Bits Allocated
_PIXEL_DATA_PROVIDER_URL = 0x00287FE0
_DOCUMENT = 0x00420011
_LAST_PIXEL_TAG = 0x7FE00010
_FRAGMENT_PER_FRAME = frozenset(("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.8.1"))  # RLE, PS3.5 A.4.2; Deflated, A.4.13
_VIDEO = "1.2.840.10008.1.2.4.10"  # MPEG-2, MPEG-4 and HEVC: a stream, whose fragments are no frames
_MAX_FRAGMENTS = 1 << 20
_END_OF_CODESTREAM = b"\xff\xd9"  # JPEG, JPEG-LS and JPEG 2000


@dataclass(frozen=True, slots=True)
class Header:
    """What identifies a DICOM object.

    Attributes:
        study_instance_uid: From the dataset.
        series_instance_uid: From the dataset.
        sop_instance_uid: From the dataset, not from the file meta information.
        sop_class_uid: From the dataset, else from the file meta information; None if neither has it.
        transfer_syntax_uid: From the file meta information, else guessed from how the dataset is encoded.
        transfer_syntax_guessed: Whether it is a guess.
        dataset_offset: The byte at which the dataset starts, after preamble and file meta information.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str | None
    transfer_syntax_uid: str
    transfer_syntax_guessed: bool = False
    dataset_offset: int = 0


def header_of(file: BinaryIO, *, size: int | None = None) -> Header:
    """Reads the UIDs of a DICOM file, and no more of it than that takes.

    Files without preamble or file meta information are read too (PS3.10 section 7.1 wants both).

    Args:
        file: A seekable binary file; it is read from offset 0 on, and left anywhere.
        size: Its size in bytes, where it is known already.

    Raises:
        NotDICOMError: If it is not DICOM.
        DICOMDIRError: If it is a media directory.
        IncompleteDICOMError: If it is cut off or broken before the UIDs.
        MissingUIDError: If it lacks a study, series or SOP Instance UID.
    """
    scan = scan_header(file, size=size, stop_after=_UIDS["SeriesInstanceUID"])
    if scan.problem is None and any(tag not in scan.elements for tag in _UIDS.values()):
        # Some writers do not sort their elements.
        scan = scan_header(file, size=size)
    return header_from_scan(scan)


def header_from_scan(scan: HeaderScan) -> Header:
    """Takes the UIDs from a scan. See `header_of` for the errors."""
    text = scan.text
    media_class = text(0x00020002)
    if media_class == MEDIA_STORAGE_DIRECTORY or 0x00041220 in scan.elements:
        raise DICOMDIRError("it is a media directory (DICOMDIR), not an instance")
    uids = {}
    missing = []
    for keyword, tag in _UIDS.items():
        value = text(tag)
        if is_uid(value, permissive=True):
            uids[keyword] = str(value)
        else:
            missing.append(keyword)
    if missing:
        if scan.problem is not None:
            raise IncompleteDICOMError(f"it has no {', '.join(missing)}: {scan.problem}")
        raise MissingUIDError(f"it has no usable {', '.join(missing)}", tuple(missing), uids)
    return Header(
        uids["StudyInstanceUID"],
        uids["SeriesInstanceUID"],
        uids["SOPInstanceUID"],
        text(0x00080016) or media_class,
        scan.transfer_syntax_uid,
        scan.transfer_syntax_guessed,
        scan.dataset_offset,
    )


WITHOUT_PIXEL_DATA = "without pixel data"
WITHOUT_DELIMITER = "without the delimiter that ends a value"
BYTES_BEHIND = "bytes that are no elements behind the pixel data"
ODD_VR = "an element with an unknown value representation"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the bytes of a file are whole, and what is odd about them.

    Attributes:
        problem: Why the file is cut off or broken, whatever surrounds it.
        open_end: Why it may be cut off: it ends where a delimiter should be. A length from elsewhere that agrees
            proves that it is whole.
        proves_end: Whether the bytes themselves prove that they are all there (the end mark of a deflated stream).
        warnings: What is odd, in the words of the constants above. Such a file moves unchanged.
        missing: The delimiters that are missing at the end.
    """

    problem: str | None = None
    open_end: str | None = None
    proves_end: bool = False
    warnings: tuple[str, ...] = ()
    missing: bytes = b""


def judge(file: BinaryIO | bytes, *, size: int | None = None, scan: HeaderScan | None = None) -> Verdict:
    """Tells whether a file ends where its elements say, without reading its pixel data.

    Every top-level element must lie within the file; encapsulated pixel data must end with their delimiter (PS3.5
    section A.4) or hold all frames, a deflated dataset must inflate to its end. Zeros after the last element are
    padding. Whether native pixel data have as many bytes as rows, columns and frames ask for is not considered.

    Args:
        file: A seekable binary file, or the bytes of one.
        size: Its size in bytes, where it is known already.
        scan: Its scan up to the pixel data, if there is one already.

    Raises:
        NotDICOMError, IncompleteDICOMError: As `dicomweb_io.dicom.header_scan.scan_header`.
    """
    source = as_source(file, size)
    if scan is None:
        scan = scan_header(source)
    warnings = [ODD_VR] if scan.odd_vr else []
    end = scan
    if scan.problem is None and scan.pixel_data is not None:
        end = scan_trailing(source, scan)
    elif scan.elements.keys() >= _IMAGE and _PIXEL_DATA_PROVIDER_URL not in scan.elements:
        warnings.append(WITHOUT_PIXEL_DATA)
    if end.bytes_behind:
        warnings.append(BYTES_BEHIND)
    # Elements that stand behind those of pixel data prove as well that none was cut off.
    proves_end = scan.deflated or max(scan.elements, default=0) > _LAST_PIXEL_TAG
    if end.problem is None:
        return Verdict(proves_end=proves_end, warnings=tuple(warnings))
    if not end.missing:
        return Verdict(end.problem)
    whole = scan.deflated
    if scan.pixel_data is not None:
        fragments, frames = _fragments(source, scan), _number_of_frames(scan)
        if len(fragments) - 1 < frames and not scan.transfer_syntax_uid.startswith(_VIDEO):
            return Verdict(f"{end.problem}; {max(len(fragments) - 1, 0)} fragments cannot hold {frames} frames")
        whole = _has_all_frames(source, scan, fragments, frames)
    return Verdict(None, None if whole else end.problem, scan.deflated, (*warnings, WITHOUT_DELIMITER), end.missing)


def has_pixel_data(scan: HeaderScan) -> bool:
    """Whether a scan found pixel data, or where they are."""
    return scan.pixel_data is not None or _PIXEL_DATA_PROVIDER_URL in scan.elements


def lacks_pixel_data(scan: HeaderScan) -> bool:
    """Whether a scan found no pixel data though header or SOP Class say that it is an image; it may have been cut."""
    if has_pixel_data(scan):
        return False
    if scan.elements.keys() >= _IMAGE:
        return True
    return _DOCUMENT not in scan.elements and is_image_class(scan.text(0x00080016) or scan.text(0x00020002))


def check_complete(file: BinaryIO | bytes, *, size: int | None = None, scan: HeaderScan | None = None) -> str | None:
    """Tells why a file is incomplete; None if it is whole, be it odd. See `judge`.

    A file has no second length: one that ends where a delimiter should be may be cut off.
    """
    verdict = judge(file, size=size, scan=scan)
    return verdict.problem or verdict.open_end


def _number_of_frames(scan: HeaderScan) -> int:
    number = scan.text(0x00280008) or "1"
    return int(number) if len(number) <= 12 and number.isascii() and number.isdigit() else 0


def _has_all_frames(source: Source, scan: HeaderScan, fragments: list[tuple[int, int]], frames: int) -> bool:
    """Whether encapsulated pixel data without their delimiter hold all frames to their ends."""
    if len(fragments) < 2:
        return False
    table, *fragments = fragments
    first = fragments[0][0] - 8
    lengths = {offset - 8 - first: length for offset, length in fragments}

    def table_of(place: tuple[int, int], code: str) -> tuple[int, ...]:
        size = struct.calcsize(code)
        count = place[1] // size
        return struct.unpack(f"<{count}{code}", source.read(place[0], count * size)) if count == frames else ()

    extended = [scan.elements[tag][1:] for tag in (0x7FE00001, 0x7FE00002) if tag in scan.elements]
    if len(extended) == 2:
        ends = dict(zip(table_of(extended[0], "Q"), table_of(extended[1], "Q"), strict=False))
        return len(ends) == frames > 0 and all(lengths.get(offset, -1) >= length for offset, length in ends.items())
    if scan.transfer_syntax_uid in _FRAGMENT_PER_FRAME:
        return len(fragments) == frames
    offset, length = fragments[-1]
    if not source.read(offset + max(length - 2, 0), 2).endswith(_END_OF_CODESTREAM) and not source.read(
        offset + max(length - 3, 0), 3
    ).startswith(_END_OF_CODESTREAM):
        return False
    offsets = table_of(table, "I")
    return len(fragments) == frames or (0 < frames == len(set(offsets)) and lengths.keys() >= set(offsets))


def _fragments(source: Source, scan: HeaderScan) -> list[tuple[int, int]]:
    """Offset and length of each complete item of encapsulated pixel data, the offset table first."""
    _, position, length = scan.pixel_data or (None, 0, 0)
    found: list[tuple[int, int]] = []
    while length == UNDEFINED_LENGTH and len(found) <= _MAX_FRAGMENTS:
        head = source.read(position, 8)
        if not head.startswith(b"\xfe\xff\x00\xe0") or len(head) < 8:
            break
        size = int(struct.unpack_from("<I", head, 4)[0])
        found.append((position + 8, size))
        position += 8 + size
    return found


def read_dataset(file: BinaryIO, **options: Any) -> Dataset:
    """Parses a file with pydicom, from its start, also where that alone does not read it.

    pydicom takes a prefix without a preamble for an element. If a delimiter is missing, it gives an empty dataset or
    raises an error.

    Args:
        file: A seekable binary file.
        **options: Arguments of `pydicom.dcmread`; ``force=True`` is the default.
    """
    import pydicom

    options.setdefault("force", True)
    file.seek(0)
    if file.read(4) == b"DICM":
        file = io.BytesIO(bytes(128) + b"DICM" + file.read())
    file.seek(0)
    try:
        dataset: Dataset = pydicom.dcmread(file, **options)
        if dataset:
            return dataset
    except Exception:
        missing = _missing_delimiters(file)
        if not missing:
            raise
    else:
        missing = _missing_delimiters(file)
        if not missing:
            return dataset
    file.seek(0)
    dataset = pydicom.dcmread(io.BytesIO(file.read() + missing), **options)
    return dataset


def _missing_delimiters(file: BinaryIO) -> bytes:
    # What is no DICOM at all, or broken, is left to pydicom.
    with suppress(Part10Error):
        return judge(file).missing
    return b""


def read_range(file: BinaryIO | bytes, scan: HeaderScan, offset: int, length: int) -> bytes:
    """Reads bytes at an offset of a scan, which counts in the inflated dataset where the file is deflated.

    Returns:
        The bytes; fewer than `length` if the file ends before.
    """
    source = as_source(file)
    if scan.deflated:
        source = InflatedSource(source, scan.dataset_offset)
    return source.read(offset, length)


def encode_dataset(dataset: Dataset) -> bytes:
    """Encodes a pydicom dataset as a DICOM file with preamble and complete file meta information.

    The transfer syntax is that of the dataset's file meta information, else the one it was read with. The dataset is
    not changed.

    Args:
        dataset: The dataset. It needs SOPClassUID and SOPInstanceUID.

    Raises:
        TypeError: If it is not a pydicom dataset.
        DatasetError: If it lacks those UIDs, if the transfer syntax is neither given nor known, or if an element cannot
            be encoded. The message names tags, never values.
    """
    from pydicom.dataset import Dataset as PydicomDataset, FileMetaDataset
    from pydicom.filewriter import dcmwrite
    from pydicom.uid import UID

    if not isinstance(dataset, PydicomDataset):
        raise TypeError(f"a pydicom Dataset is needed, not {type(dataset).__name__}")
    missing = [keyword for keyword in ("SOPClassUID", "SOPInstanceUID") if not dataset.get(keyword)]
    if missing:
        raise DatasetError(f"the dataset lacks {' and '.join(missing)}, which the file meta information needs")
    meta = FileMetaDataset(dict(getattr(dataset, "file_meta", None) or {}))
    meta.TransferSyntaxUID = UID(_transfer_syntax(dataset))
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    copied = _shielded(dataset)
    copied.file_meta = meta
    buffer = io.BytesIO()
    try:
        dcmwrite(buffer, copied, enforce_file_format=True)
    except Exception as error:
        # The texts of pydicom's errors can hold values.
        place = re.search(r"\([0-9A-Fa-f]{4}, ?[0-9A-Fa-f]{4}\)", str(error))
        where = f" at {place.group()}" if place else ""
        raise DatasetError(f"pydicom cannot encode the dataset{where} ({type(error).__name__})") from None
    return buffer.getvalue()


def _transfer_syntax(dataset: Dataset) -> str:
    meta = getattr(dataset, "file_meta", None)
    given = meta.get("TransferSyntaxUID") if meta is not None else None
    if given:
        return str(given)
    implicit, little = dataset.original_encoding
    if implicit is None or little is None:
        implicit, little = getattr(dataset, "_is_implicit_VR", None), getattr(dataset, "_is_little_endian", None)
    pixel_data = dataset.get_item("PixelData") if "PixelData" in dataset else None
    if pixel_data is not None and (
        getattr(pixel_data, "is_undefined_length", False) or getattr(pixel_data, "length", 0) == 0xFFFFFFFF
    ):
        implicit = None
    known: dict[tuple[bool | None, bool | None], str] = {
        (True, True): IMPLICIT_VR_LITTLE_ENDIAN,
        (False, True): EXPLICIT_VR_LITTLE_ENDIAN,
        (False, False): EXPLICIT_VR_BIG_ENDIAN,
    }
    uid = known.get((implicit, little))
    if uid is None:
        raise DatasetError(
            "the dataset's transfer syntax is not known; set dataset.file_meta.TransferSyntaxUID "
            "(1.2.840.10008.1.2.1 for uncompressed data)"
        )
    return uid


def _shielded(dataset: Dataset) -> Dataset:
    """A copy that pydicom's writer may change: it corrects ambiguous VRs and lengths in place. Values are shared."""
    from pydicom.dataelem import DataElement
    from pydicom.sequence import Sequence

    copied = object.__new__(type(dataset))
    copied.__dict__.update(dataset.__dict__)
    elements = {}
    for element in dataset.elements():
        if isinstance(element, DataElement):
            if element.VR == "SQ" and element.value is not None:
                items = Sequence([_shielded(item) for item in element.value])
                items.is_undefined_length = getattr(element.value, "is_undefined_length", False)
                undefined = element.is_undefined_length
                element = DataElement(element.tag, "SQ", items)
                element.is_undefined_length = undefined
            else:
                element = copy.copy(element)
        elements[element.tag] = element
    copied._dict = elements
    copied._private_blocks = {}
    return copied
