"""Where the data elements of a DICOM file are, found by bounded reads and without interpreting their values.

`scan_header` walks the top-level elements of a file (PS3.10 and PS3.5 section 7) up to its pixel data. It notes tag,
value representation, place and length of each element and skips large values, so that an index can be built, a value
found, or a metadata answer encoded (`dicomweb_io.dicom.json_encode`) without parsing the file into objects.
`scan_trailing` does the same for what follows the pixel data.

Every encoding is read: implicit and explicit VR, little and big endian, deflated; with and without preamble and file
meta information. The room holds, in this order: what bytes are read from (`Source`), the heads of elements and the ends
of values of undefined length, and the scan itself.

The loops here decide how fast a folder is indexed. They keep their state in local variables; rare cases are
calls.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple, Protocol

from dicomweb_io.dicom.errors import IncompleteDICOMError, NotDICOMError
from dicomweb_io.dicom.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)

DEFLATED_SYNTAXES = frozenset(
    (DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205")
)  # PS3.5 sections A.5, A.7 (JPIP Referenced Deflate) and its HTJ2K form: the whole dataset is deflated

LARGE_VALUE = 64 * 1024
"""Values longer than this many bytes are left in the file, unless the read of their neighbours covers them."""
FIRST_READ = 64 * 1024
"""Bytes of the first read: more than the header of an ordinary image."""
_FRAGMENT_READ = 4096
_MAX_HEADER = 1 << 30
_MAX_INFLATED_HEADER = 64 << 20  # without large values

PIXEL_DATA_TAGS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
UNDEFINED_LENGTH = -1
UNDEFINED = 0xFFFFFFFF
"""The length field of a value that a delimiter ends."""

_SHORT = "AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US"
_LONG = "OB OD OF OL OV OW SQ SV UC UN UR UT UV"
SHORT_VRS = {vr.encode(): vr for vr in _SHORT.split()}
"""Value representations with a length of 16 bits in explicit VR (PS3.5 section 7.1.2), by their code."""
LONG_VRS = {vr.encode(): vr for vr in _LONG.split()}
"""Those with a length of 32 bits."""

Place = tuple[str | None, int, int]
"""VR, offset and length of a value; see `Element`."""


class ElementError(Exception):
    """The bytes end within an element, or are not an element. It stays inside `dicomweb_io.dicom`."""


class MissingDelimiterError(ElementError):
    """The bytes end between two elements or items, where a delimiter should be.

    Attributes:
        missing: The delimiters that would close what is open.
    """

    def __init__(self, message: str, missing: bytes) -> None:
        super().__init__(message)
        self.missing = missing


class Source(Protocol):
    """Bytes that can be read at any offset."""

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end."""

    def reaches(self, end: int) -> bool:
        """Whether there are at least `end` bytes."""


class FileSource:
    """A file as a `Source`."""

    def __init__(self, file: BinaryIO, size: int | None = None) -> None:
        self._file = file
        self._size = size

    @property
    def size(self) -> int:
        """The number of bytes of the file."""
        if self._size is None:
            self._size = self._file.seek(0, 2)
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """See `Source`."""
        self._file.seek(offset)
        data = self._file.read(length)
        if len(data) == length:
            return data
        pieces = [data]
        missing = length - len(data)
        while data and missing:
            data = self._file.read(missing)
            pieces.append(data)
            missing -= len(data)
        if self._size is None:
            self._size = offset + length - missing if missing < length else None
        return b"".join(pieces)

    def reaches(self, end: int) -> bool:
        """See `Source`."""
        return end <= self.size


class BytesSource:
    """Bytes in memory as a `Source`."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self._content)

    def read(self, offset: int, length: int) -> bytes:
        """See `Source`."""
        if offset == 0 and length >= len(self._content):
            return self._content
        return self._content[offset : offset + length]

    def reaches(self, end: int) -> bool:
        """See `Source`."""
        return end <= len(self._content)


class InflatedSource:
    """A deflated dataset as a `Source`: the file up to `start` as it is, then the inflated rest (PS3.5 section A.5).

    Memory stays bounded, however much the stream inflates to. Going back by up to 256 KiB is free; going back farther
    inflates from the start again.

    Attributes:
        problem: Why the stream ended early, once its end was met; None if it is complete so far.
    """

    _CHUNK = 64 * 1024
    _WINDOW = 256 * 1024

    def __init__(self, source: Source, start: int) -> None:
        self._source = source
        self._start = start
        self.problem: str | None = None
        self._restart()

    def _restart(self) -> None:
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._fed = self._start
        self._ended = False
        # The last inflated pieces, which end at the offset `_end`.
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._end = self._start

    def _more(self) -> bool:
        """Inflates the next piece; False at the end."""
        while not self._ended:
            data = self._inflate.unconsumed_tail
            if not data:
                data = self._source.read(self._fed, self._CHUNK)
                self._fed += len(data)
                if not data:
                    self._ended = True
                    self.problem = "the deflated dataset is cut off"
                    break
            try:
                inflated = self._inflate.decompress(data, self._CHUNK)
            except zlib.error:
                self._ended = True
                self.problem = "the deflated dataset is damaged"
                break
            if self._inflate.eof:
                self._ended = True
            if inflated:
                self._pieces.append(inflated)
                self._size += len(inflated)
                self._end += len(inflated)
                while self._size - len(self._pieces[0]) >= self._WINDOW:
                    self._size -= len(self._pieces.popleft())
                return True
        return False

    def read(self, offset: int, length: int) -> bytes:
        """See `Source`."""
        if offset < self._start:
            head = self._source.read(offset, min(length, self._start - offset))
            rest = length - len(head)
            return head if rest <= 0 else head + self.read(self._start, rest)
        if offset < self._end - self._size:
            self._restart()
        end = offset + length
        found = []
        position = self._end - self._size
        for piece in self._pieces:
            if position < end and offset < position + len(piece):
                found.append(piece[max(0, offset - position) : end - position])
            position += len(piece)
        while self._end < end and self._more():
            piece = self._pieces[-1]
            position = self._end - len(piece)
            if offset < self._end:
                found.append(piece[max(0, offset - position) : end - position])
        return b"".join(found)

    def reaches(self, end: int) -> bool:
        """See `Source`."""
        while self._end < end and self._more():
            continue
        return end <= self._end


def as_source(source: BinaryIO | bytes | Source, size: int | None = None) -> Source:
    """Whatever holds a file's bytes, as a `Source`."""
    if isinstance(source, (bytes, bytearray)):
        return BytesSource(bytes(source))
    if isinstance(source, (FileSource, BytesSource, InflatedSource)):
        return source
    return FileSource(source, size)  # type: ignore[arg-type]


def other_head(reader: Source, data: bytes, base: int, index: int, order: str) -> tuple[str | None, int, int]:
    """Name, value start and length of an explicit VR element that is not of a usual VR with a 16-bit length."""
    have, vr = len(data), data[index + 4 : index + 6]
    name = LONG_VRS.get(vr)
    if name is None:
        return _odd_head(reader, data, base, index, order)
    if index + 12 > have:
        return name, have + 1, 0
    return name, index + 12, struct.unpack_from(order + "I", data, index + 8)[0]


def _odd_head(reader: Source, data: bytes, base: int, index: int, order: str) -> tuple[str | None, int, int]:
    """`other_head` of an element whose VR the standard does not know, such as ``--``, or that has none.

    Such a VR does not say how its length is written. The length after which another element follows is the right one.
    """
    vr = data[index + 4 : index + 6]
    head = struct.Struct(order + "HH")
    tag = head.unpack_from(data, index)
    short = (index + 8, int(struct.unpack_from(order + "H", data, index + 6)[0]))
    # Some writers fall back to implicit VR in the middle of a dataset.
    implicit = (None, index + 8, int(struct.unpack_from(order + "I", data, index + 4)[0]))
    is_name = vr.isalpha() and vr.isupper()
    name = vr.decode("ascii") if is_name and vr.isascii() else "UN"
    forms: list[tuple[str | None, int, int]] = [(name, *short)]
    if data[index + 6 : index + 8] == b"\0\0" and len(data) >= index + 12:
        forms.append((name, index + 12, int(struct.unpack_from(order + "I", data, index + 8)[0])))
    if not is_name:
        forms.insert(len(forms) if all(0x20 <= byte < 0x7F for byte in vr) else 0, implicit)
    for form in forms:
        # A value of undefined length begins with an item.
        end = base + form[1] + (form[2] if form[2] != UNDEFINED else 0)
        if end - base + 8 <= len(data):
            following = data[end - base : end - base + 8]
        elif isinstance(reader, InflatedSource):
            continue  # hostile lengths would have it inflate everything again and again
        else:
            following = reader.read(end, 8)
        if form[2] == UNDEFINED:
            if len(following) == 8 and head.unpack_from(following) == (0xFFFE, 0xE000):
                return form
        elif not following.strip(b"\0"):
            if reader.reaches(end):
                return form
        elif len(following) == 8:
            group, number = head.unpack_from(following)
            known = following[4:6] in SHORT_VRS or following[4:6] in LONG_VRS
            # Not all writers sort the elements of a group.
            follows = group >= tag[0] if known else group == tag[0] and number > tag[1]
            if follows or (group == 0xFFFE and number in (0xE000, 0xE00D, 0xE0DD)):
                return form
    return forms[0] if is_name else implicit


def measure_undefined(
    reader: Source,
    data: bytes,
    base: int,
    start: int,
    vr: str | None,
    explicit: bool,
    order: str,
    *,
    step: int = FIRST_READ,
) -> tuple[str | None, int]:
    """Finds the end of a value of undefined length.

    Args:
        reader: The file, for what `data` does not hold; it is read piece by piece.
        data: Bytes from file offset `base` on.
        base: See `data`.
        start: Where the value starts in `data`.
        vr: Its VR, None for implicit.
        explicit: Whether the dataset around it is explicit VR.
        order: ``"<"`` or ``">"``.
        step: Bytes to read at a time.

    Returns:
        The VR (``"SQ"`` if it consists of items and is not OB or the like) and the length with the delimiter; for
        others than ``"SQ"`` without it.

    Raises:
        MissingDelimiterError: If the bytes end where a delimiter should be.
        ElementError: If they end or are broken elsewhere.
    """
    head = struct.Struct(order + "HHI")
    have = len(data)
    index = start
    first = base + start
    # What the walk is in: 0 between items, 1 in an explicit item of undefined length, 2 in an implicit one. How many
    # of them are implicit is counted, because hostile files nest too deeply to look through them each time.
    contexts = [0]
    implicit_items = 0
    while contexts:
        if index + 12 > have:
            more = reader.read(base + index, step)
            if len(more) < 8:
                message = f"the file ends at byte {base + index + len(more)} within it"
                if more.strip(b"\0"):
                    raise ElementError(message)
                closing = (head.pack(0xFFFE, 0xE00D if context else 0xE0DD, 0) for context in reversed(contexts))
                raise MissingDelimiterError(message, b"".join(closing))
            base, index, data, have = base + index, 0, more, len(more)
        group, number, length = head.unpack_from(data, index)
        context = contexts[-1]
        if group == 0xFFFE:
            index += 8
            if number == 0xE000 and context == 0:
                if length != UNDEFINED:
                    index += length
                else:
                    if index + 8 > have:
                        data = reader.read(base + index, step)
                        base, index, have = base + index, 0, len(data)
                    implicit = not explicit or implicit_items > 0 or not looks_explicit(data, index)
                    implicit_items += implicit
                    contexts.append(2 if implicit else 1)
            elif number == (0xE0DD if context == 0 else 0xE00D):
                implicit_items -= contexts.pop() == 2
            elif number != 0xE00D:
                raise ElementError(f"there is an unexpected delimiter at byte {base + index - 8}")
        elif context == 0:
            message = f"there is no item at byte {base + index}"
            if group or number or length or len(contexts) > 1 or not _only_zeros(reader, base + index):
                raise ElementError(message)
            raise MissingDelimiterError(message, head.pack(0xFFFE, 0xE0DD, 0))
        else:
            if context == 2:
                index += 8
            elif data[index + 4 : index + 6] in SHORT_VRS:
                length = struct.unpack_from(order + "H", data, index + 6)[0]
                index += 8
            else:
                if index + 12 > have:
                    raise ElementError(f"the file ends at byte {base + have} within it")
                _, index, length = other_head(reader, data, base, index, order)
            if length == UNDEFINED:
                contexts.append(0)
            else:
                index += length
        if index > have:
            if not reader.reaches(base + index):
                raise ElementError(f"({group:04X},{number:04X}) in it reaches beyond the end of the file")
            base, index, data, have = base + index, 0, b"", 0
    total = base + index - first
    if vr is None or vr in ("UN", "SQ"):
        return "SQ", total
    return vr, total - 8


def _only_zeros(reader: Source, offset: int) -> bool:
    """Whether only zeros follow, which are padding."""
    while piece := reader.read(offset, FIRST_READ):
        if piece.strip(b"\0"):
            return False
        offset += len(piece)
    return True


def looks_explicit(data: bytes, index: int) -> bool:
    """Whether the element at `index` has a VR. An item's end says nothing, which counts as explicit."""
    if len(data) < index + 6 or data[index : index + 4] in (b"\xfe\xff\x0d\xe0", b"\xff\xfe\xe0\x0d"):
        return True
    # Some writers give no real VR; as a length, either would be odd.
    if data[index + 4 : index + 6] in (b"--", b"??"):
        return True
    return 0x41 <= data[index + 4] <= 0x5A and 0x41 <= data[index + 5] <= 0x5A


class Element(NamedTuple):
    """The place of one data element's value.

    Attributes:
        vr: The value representation as encoded; None where the encoding has none (implicit VR). A value of undefined
            length that consists of items counts as ``"SQ"``.
        offset: Where the value starts, in bytes from the start of the file (of the inflated file, if deflated).
        length: Bytes of the value. For sequences of undefined length it is the real length with the sequence
            delimiter; for pixel data of undefined length it is -1.
    """

    vr: str | None
    offset: int
    length: int


@dataclass(slots=True)
class HeaderScan:
    """The result of `scan_header`.

    Attributes:
        segments: The bytes that were read, as pairs of an offset and bytes, ascending; usually one pair that starts at
            0. Large values lie between segments.
        elements: Top-level elements by tag, in file order. Pixel data is not among them.
        meta: Elements of the file meta information (group 0002) by tag.
        pixel_data_tag: The tag of the pixel data element; None if there is none, or if the scan ended before it.
        pixel_data: Its place.
        transfer_syntax_uid: From the file meta information; a guess if it is absent there.
        transfer_syntax_guessed: Whether it is a guess.
        explicit_vr: How the dataset is really encoded, which need not be what the transfer syntax says.
        little_endian: The byte order of the dataset.
        deflated: Whether the dataset is deflated; offsets then count in the preamble and file meta information as they
            are, followed by the inflated dataset.
        has_preamble: Whether the 128 bytes of preamble and the prefix are there.
        dataset_offset: Where the dataset starts, after the file meta information.
        end: Where the scan stopped: the start of the pixel data element, or of the first element that was not wanted,
            or the end of the dataset.
        problem: Why the scan could not continue (the file is cut off or broken); None if all is well so far.
        missing: The delimiters that are missing, if it is the only problem that the bytes end where they should be.
        bytes_behind: Whether bytes that are no elements follow the pixel data (of `scan_trailing`).
        odd_vr: Whether an element has a VR that the standard does not know.
    """

    segments: list[tuple[int, bytes]] = field(repr=False)
    elements: dict[int, Place] = field(repr=False, default_factory=dict)
    meta: dict[int, Place] = field(repr=False, default_factory=dict)
    pixel_data_tag: int | None = None
    pixel_data: Place | None = None
    transfer_syntax_uid: str = ""
    transfer_syntax_guessed: bool = False
    explicit_vr: bool = True
    little_endian: bool = True
    deflated: bool = False
    has_preamble: bool = True
    dataset_offset: int = 0
    end: int = 0
    problem: str | None = None
    missing: bytes = b""
    bytes_behind: bool = False
    odd_vr: bool = False

    def value(self, tag: int) -> bytes | None:
        """The bytes of a top-level or file meta value; None if the element is absent or its value was not read."""
        place = self.elements.get(tag) or self.meta.get(tag)
        return None if place is None else self.read(place[1], place[2])

    def read(self, offset: int, length: int) -> bytes | None:
        """The bytes of a place in the file; None if they were not read."""
        for start, content in self.segments:
            if start <= offset and offset + length <= start + len(content):
                return content[offset - start : offset - start + length]
        return None

    def text(self, tag: int) -> str | None:
        """A value of ASCII text without its padding, such as a UID or a code; None if absent, empty or not read."""
        value = self.value(tag)
        if not value:
            return None
        return value.decode("latin-1").strip(" \0") or None


def scan_header(
    source: BinaryIO | bytes | Source,
    *,
    size: int | None = None,
    stop_after: int | None = None,
    large_value: int | None = LARGE_VALUE,
    first_read: int = FIRST_READ,
) -> HeaderScan:
    """Finds the top-level elements of a DICOM file up to its pixel data.

    Args:
        source: A seekable binary file, read from offset 0 on; or the bytes of a file.
        size: The file's size in bytes, where it is known already.
        stop_after: A tag after which nothing is wanted; the default continues to the pixel data or the end.
        large_value: Values longer than this many bytes are not read if they reach beyond what was read so far; None
            keeps every value before the pixel data.
        first_read: Bytes to read at first.

    Returns:
        What was found. A file that is cut off or broken gives its elements up to there, and `HeaderScan.problem`.

    Raises:
        NotDICOMError: If the bytes are not DICOM.
        IncompleteDICOMError: If they are, but hold no dataset that could be read.
    """
    reader = as_source(source, size)
    data = reader.read(0, first_read)
    start, has_preamble = _start_of_elements(data)
    scan = HeaderScan([], has_preamble=has_preamble)
    try:
        data, position = _scan_meta(reader, data, start, scan)
    except ElementError as error:
        if not has_preamble:
            raise NotDICOMError("it has no DICOM prefix and does not consist of data elements") from None
        raise IncompleteDICOMError(f"the file meta information is broken: {error}") from None
    scan.dataset_offset = position
    _, start, length = scan.meta.get(0x00020010, (None, 0, 0))
    uid = data[start : start + length].decode("latin-1").strip(" \0")
    if uid in DEFLATED_SYNTAXES:
        scan.deflated = True
        reader = InflatedSource(reader, position)
        data = data[:position] + reader.read(position, first_read)
    elif len(data) < position + 12:
        data += reader.read(len(data), first_read)
    _find_encoding(scan, data, position, uid)
    _scan_dataset(reader, data, 0, position, scan, stop_after, large_value)
    if isinstance(reader, InflatedSource) and reader.problem:
        scan.problem, scan.missing = reader.problem, b""
    if scan.problem is None and not scan.elements and scan.pixel_data is None and stop_after is None:
        scan.problem = "it has no data elements after the file meta information"
    if not has_preamble and not any(
        (scan.text(tag) or "").startswith(("1.", "2.", "0."))
        for tag in (0x00080016, 0x00080018, 0x0020000D, 0x00020002)
    ):
        raise NotDICOMError("it has no DICOM prefix and no UID where one is expected")
    return scan


def scan_trailing(
    source: BinaryIO | bytes | Source, scan: HeaderScan, *, large_value: int | None = LARGE_VALUE
) -> HeaderScan:
    """Finds what follows the pixel data: digital signatures, padding (PS3.5 sections 7.1 and 8.1.1).

    Encapsulated pixel data are walked fragment by fragment, unless the file ends with their delimiter.

    Args:
        source: What was scanned.
        scan: Its scan, which ended at the pixel data.
        large_value: See `scan_header`.

    Returns:
        A scan of the elements after the pixel data, with `HeaderScan.problem` if those, or the pixel data, are cut
        off. Bytes there that are no elements are no problem (`HeaderScan.bytes_behind`).
    """
    reader = as_source(source)
    if scan.deflated:
        reader = InflatedSource(reader, scan.dataset_offset)
    result = HeaderScan(
        [],
        transfer_syntax_uid=scan.transfer_syntax_uid,
        explicit_vr=scan.explicit_vr,
        little_endian=scan.little_endian,
        deflated=scan.deflated,
    )
    if scan.pixel_data is None:
        result.end = scan.end
        return result
    vr, offset, length = scan.pixel_data
    order = "<" if scan.little_endian else ">"
    if length == UNDEFINED_LENGTH:
        delimiter = struct.pack(order + "HHI", 0xFFFE, 0xE0DD, 0)
        if isinstance(reader, (FileSource, BytesSource)) and reader.read(max(reader.size - 8, offset), 8) == delimiter:
            result.end = reader.size
            return result
        try:
            name, length = measure_undefined(
                reader, b"", offset, 0, vr or "OB", scan.explicit_vr, order, step=_FRAGMENT_READ
            )
        except ElementError as error:
            result.problem = f"the encapsulated pixel data do not end: {error}"
            result.missing = error.missing if isinstance(error, MissingDelimiterError) else b""
            return result
        length += 0 if name == "SQ" else 8
    end = offset + length
    if not reader.reaches(end):
        result.problem = f"the pixel data need {length} bytes from byte {offset} on, but the file ends before"
        if isinstance(reader, InflatedSource) and reader.problem:
            result.problem = reader.problem
        return result
    _scan_dataset(reader, reader.read(end, 1024), end, 0, result, None, large_value)
    if result.problem is not None and not (scan.deflated or _may_begin_element(reader.read(result.end, 8), scan)):
        result.problem, result.missing, result.bytes_behind = None, b"", True
    if isinstance(reader, InflatedSource):
        reader.reaches(1 << 62)
        if reader.problem:
            result.problem, result.missing = reader.problem, b""
    return result


def _may_begin_element(head: bytes, scan: HeaderScan) -> bool:
    """Whether an element that follows the pixel data begins so, cut off or broken as it may be."""
    order = "<" if scan.little_endian else ">"
    if len(head) < 2:
        return False
    (group,) = struct.unpack_from(order + "H", head)
    if len(head) < 8:
        return bool(group >= 0x7FE0)
    if scan.explicit_vr:
        return bool(group >= 0x7FE0 and (head[4:6] in SHORT_VRS or head[4:6] in LONG_VRS))
    # Digital signatures, padding, and private elements beside the pixel data (PS3.5 sections 7.1 and 7.8).
    return group in (0x7FE0, 0x7FE1, 0xFFFA, 0xFFFC)


def _start_of_elements(data: bytes) -> tuple[int, bool]:
    if data[128:132] == b"DICM":
        return 132, True
    if data[:4] == b"DICM":
        return 4, False
    if not data:
        raise NotDICOMError("the file is empty")
    # Without the prefix only what begins like a file meta group or an image's first group passes as DICOM.
    if len(data) < 16 or data[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        raise NotDICOMError("it has no DICOM prefix and does not begin with a data element")
    return 0, False


def _scan_meta(reader: Source, data: bytes, position: int, scan: HeaderScan) -> tuple[bytes, int]:
    """Reads group 0002, which is explicit VR little endian; some writers use implicit VR."""
    while True:
        if len(data) < position + 12:
            data += reader.read(len(data), FIRST_READ)
        if data[position : position + 2] != b"\x02\x00" or len(data) < position + 8:
            return data, position
        number, vr, length = struct.unpack_from("<H2sH", data, position + 2)
        start = position + 8
        name = SHORT_VRS.get(vr)
        if name is None:
            name = LONG_VRS.get(vr)
            if name is None:
                length = struct.unpack_from("<I", data, position + 4)[0]
            elif len(data) < start + 4:
                raise ElementError(f"it ends within (0002,{number:04X})")
            else:
                length = struct.unpack_from("<I", data, start)[0]
                start += 4
        position = start + length
        if position > len(data):
            if length > 16 << 20 or not reader.reaches(position):
                raise ElementError(f"(0002,{number:04X}) reaches beyond the end")
            data += reader.read(len(data), max(position - len(data), FIRST_READ))
        scan.meta[0x00020000 | number] = (name, start, length)


def _find_encoding(scan: HeaderScan, data: bytes, position: int, uid: str) -> None:
    """Decides on VR encoding and byte order: the transfer syntax says it, the first element proves it."""
    explicit = uid != IMPLICIT_VR_LITTLE_ENDIAN
    little = uid != EXPLICIT_VR_BIG_ENDIAN
    if len(data) >= position + 6:
        explicit = 0x41 <= data[position + 4] <= 0x5A and 0x41 <= data[position + 5] <= 0x5A
        if not uid:
            # Group 0008 read in the wrong order is 0800; little endian groups that high never come first.
            little = not explicit or data[position + 1] < 4
    scan.explicit_vr = explicit
    scan.little_endian = little
    if not uid:
        scan.transfer_syntax_guessed = True
        uid = IMPLICIT_VR_LITTLE_ENDIAN
        if explicit:
            uid = EXPLICIT_VR_LITTLE_ENDIAN if little else EXPLICIT_VR_BIG_ENDIAN
    scan.transfer_syntax_uid = uid


def _scan_dataset(
    reader: Source,
    data: bytes,
    base: int,
    position: int,
    scan: HeaderScan,
    stop_after: int | None,
    large_value: int | None,
) -> None:
    """The loop over top-level elements, from `position` in `data` on, which holds the bytes from offset `base` on."""
    stop = 0xFFFFFFFF if stop_after is None else stop_after
    order = "<" if scan.little_endian else ">"
    explicit = scan.explicit_vr
    unpack = struct.Struct(order + ("HH2sH" if explicit else "HHI")).unpack_from
    elements = scan.elements
    short_vr = SHORT_VRS.get
    # A file's size bounds its header; what is inflated has no such bound.
    inflated = isinstance(reader, InflatedSource)
    maximum = _MAX_INFLATED_HEADER if large_value is not None and inflated else _MAX_HEADER
    earlier = 0
    have = len(data)
    index = position
    try:
        while True:
            if index + 12 > have:
                data = _read_on(reader, data, base, index + 12, earlier, maximum)
                have = len(data)
                if index + 8 > have:
                    if data[index:].strip(b"\0"):
                        raise ElementError(f"it ends within the head of an element at byte {base + index}")
                    break
            if explicit:
                group, number, vr, length = unpack(data, index)
                name = short_vr(vr)
                start = index + 8
                if name is None:
                    name, start, length = other_head(reader, data, base, index, order)
                    scan.odd_vr |= vr not in LONG_VRS
                    if start > have:
                        raise ElementError(f"it ends within the head of an element at byte {base + index}")
            else:
                group, number, length = unpack(data, index)
                name = None
                start = index + 8
            tag = group << 16 | number
            if tag > stop:
                break
            if name is None or length > 0xFFFF or name in ("OB", "OW", "OF", "OD"):
                if tag in PIXEL_DATA_TAGS:
                    scan.pixel_data_tag = tag
                    scan.pixel_data = (name, base + start, UNDEFINED_LENGTH if length == UNDEFINED else length)
                    break
                if group == 0xFFFE or tag == 0:
                    # A stray delimiter, or zeros as padding: nothing that belongs to the dataset can follow.
                    if tag or data[index:].strip(b"\0"):
                        raise ElementError(f"there is no data element at byte {base + index}")
                    break
                if length == UNDEFINED:
                    try:
                        name, length = measure_undefined(reader, data, base, start, name, explicit, order)
                    except ElementError as error:
                        error.args = (f"({group:04X},{number:04X}) does not end: {error}",)
                        raise
            end = start + length
            if end > have:
                large = large_value is not None and length > large_value
                # A deflated dataset is not inflated twice: reading it shows whether it is whole.
                whole = reader.reaches(base + end) if large or not inflated else True
                if whole and large:
                    elements[tag] = (name, base + start, length)
                    scan.segments.append((base, data[:start]))
                    earlier += start
                    base += end
                    index = 0
                    data = reader.read(base, FIRST_READ)
                    have = len(data)
                    continue
                if whole:
                    data = _read_on(reader, data, base, end, earlier, maximum)
                    have = len(data)
                if end > have:
                    raise ElementError(
                        f"({group:04X},{number:04X}) needs {length} bytes from byte {base + start} on, "
                        "but the file ends before"
                    )
            elements[tag] = (name, base + start, length)
            index = end
    except ElementError as error:
        scan.problem = str(error)
        scan.missing = error.missing if isinstance(error, MissingDelimiterError) else b""
    scan.end = base + index
    scan.segments.append((base, data[:index]))


def _read_on(reader: Source, data: bytes, base: int, end: int, earlier: int, maximum: int) -> bytes:
    """`data`, which holds the bytes from offset `base` on, with more of them: `end` bytes, or all there are.

    Raises:
        ElementError: If that takes more than `maximum` bytes, together with the `earlier` ones.
    """
    while True:
        have = len(data)
        if have + earlier > maximum:
            raise ElementError(f"its header is larger than {maximum >> 20} MiB")
        if have >= end:
            return data
        # The steps grow with what was read, so that copying stays cheap; a length that is a lie costs little memory.
        more = reader.read(base + have, min(max(end - have, min(max(have, FIRST_READ), 16 << 20)), 64 << 20))
        if not more:
            return data
        data += more
