"""Where the frames of an image are inside its pixel data, so that one frame can be read by range (PS3.5 annex A.4).

Everything here is arithmetic over a function that reads a range of the file; nothing is decoded and no whole value is
loaded. Native pixel data are located from the image's dimensions. In encapsulated ones an offset table says which
fragments make a frame, if it agrees with them; else one walk over the fragments does, whose result is small and worth
storing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from dicomweb_io.dicom.errors import DatasetError, FrameError
from dicomweb_io.dicom.header_scan import UNDEFINED

ReadRange = Callable[[int, int], bytes]
"""Reads the bytes from one offset up to another; a short answer means the end of the file."""

_ITEM = b"\xfe\xff\x00\xe0"
_SEQUENCE_END = b"\xfe\xff\xdd\xe0"

# The starts of a JPEG or JPEG-LS image (SOI and the next marker), of a JPEG 2000 or HTJ2K codestream (SOC, SIZ), of a
# JP2 box, of a JPEG XL codestream and of its container.
_IMAGE_MARKS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ", b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")
_RLE_HEADER = 64

_WALK_WINDOW = 1 << 16
_MAX_FRAMES = (1 << 31) - 1
_ROWS = "00280010"
NUMBER_OF_FRAMES = "00280008"


@dataclass(frozen=True)
class PixelDescription:
    """What the header says about the pixel data (PS3.3 C.7.6.3).

    Attributes:
        rows: Rows of a frame.
        columns: Columns of a frame.
        samples_per_pixel: Samples per pixel, 1 or 3.
        bits_allocated: 1, 8, 16, 32 or 64.
        number_of_frames: Frames, 1 where the attribute is absent.
        photometric_interpretation: For native 4:2:2 and 4:2:0 data, which hold fewer samples than pixels.
    """

    rows: int
    columns: int
    samples_per_pixel: int = 1
    bits_allocated: int = 8
    number_of_frames: int = 1
    photometric_interpretation: str = ""

    @property
    def frame_bits(self) -> int:
        """The bits of one native frame, without padding.

        Raises:
            FrameError: If a dimension is missing or not positive.
        """
        for name, value in (
            ("Rows", self.rows),
            ("Columns", self.columns),
            ("SamplesPerPixel", self.samples_per_pixel),
            ("BitsAllocated", self.bits_allocated),
        ):
            if value < 1:
                raise FrameError(f"the image has no usable {name} ({value}), so its frames cannot be located")
        bits = self.rows * self.columns * self.bits_allocated
        if self.samples_per_pixel == 3:
            # PS3.3 C.7.6.3.1.2: chrominance is sampled at half the rate, in both directions for 4:2:0.
            if self.photometric_interpretation in ("YBR_FULL_422", "YBR_PARTIAL_422"):
                return bits * 2
            if self.photometric_interpretation == "YBR_PARTIAL_420":
                return bits * 3 // 2
        return bits * self.samples_per_pixel

    @property
    def frame_sizes(self) -> frozenset[int]:
        """The bytes of one native frame, without padding: as stored, and with a sample for each pixel in whole bytes.

        Raises:
            FrameError: If a dimension is missing or not positive.
        """
        stored = -(-self.frame_bits // 8)
        return frozenset((stored, self.rows * self.columns * self.samples_per_pixel * -(-self.bits_allocated // 8)))


def number_of_frames(dataset: Mapping[str, Any]) -> int:
    """The number of frames of an instance by its metadata (PS3.3 section C.7.6.6); 0 if it has no image.

    An empty number and 0 count as absent: such images have one frame.

    Args:
        dataset: Metadata in the DICOM JSON model.

    Raises:
        DatasetError: If what the metadata say cannot be a number of frames.
    """
    value = first(dataset, NUMBER_OF_FRAMES)
    element = dataset.get(NUMBER_OF_FRAMES)
    if isinstance(element, Mapping) and not {"InlineBinary", "BulkDataURI"}.isdisjoint(element):
        raise DatasetError("NumberOfFrames (0028,0008) is given as bytes, not as a number")
    number: float | None = None
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,12}|", value.strip()):
        number = int(value.strip() or 0)
    elif value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and value % 1 == 0):
        number = value or 0
    if number is None or not 0 <= number <= _MAX_FRAMES:
        raise DatasetError(f"NumberOfFrames (0028,0008) is not a number of frames: {value!r:.40}")
    return int(number) or int(first(dataset, _ROWS) is not None)


def first(dataset: Mapping[str, Any], tag: str) -> Any:
    """The first value of an attribute of a dataset in the DICOM JSON model, None if it has none.

    Some servers send a single value in place of a list.
    """
    element = dataset.get(tag)
    values = element.get("Value") if isinstance(element, Mapping) else None
    if isinstance(values, (list, tuple)):
        return values[0] if values else None
    return values


def pixel_description(dataset: Mapping[str, Any], pixel_tag: str = "") -> PixelDescription:
    """What metadata say about the pixel data.

    Args:
        dataset: Metadata in the DICOM JSON model.
        pixel_tag: The attribute of the pixel data; integers, unless it is the one of floats or doubles.

    Raises:
        DatasetError: If the number of frames is none.
    """

    def number(tag: str, default: int) -> int:
        try:
            return int(first(dataset, tag))
        except (TypeError, ValueError, OverflowError):
            return default

    return PixelDescription(
        rows=number(_ROWS, 0),
        columns=number("00280011", 0),
        samples_per_pixel=number("00280002", 1),
        bits_allocated={"7FE00008": 32, "7FE00009": 64}.get(pixel_tag) or number("00280100", 0),
        number_of_frames=max(1, number_of_frames(dataset)),
        photometric_interpretation=str(first(dataset, "00280004") or ""),
    )


@dataclass(frozen=True)
class NativeFrame:
    """Where one native frame lies.

    Attributes:
        start: Offset in the file of the first byte that holds a bit of it.
        end: Offset after the last such byte.
        shift: Bits of the first byte that belong to the frame before (1-bit images only).
        bits: Bits of the frame.
    """

    start: int
    end: int
    shift: int
    bits: int


def native_frame(description: PixelDescription, value_offset: int, value_length: int, number: int) -> NativeFrame:
    """Locates a native frame. A pad byte at the end of the value is never part of it.

    Args:
        description: The image.
        value_offset: Offset of the pixel data value in the file.
        value_length: Its length in bytes.
        number: The frame, counted from 1.

    Raises:
        FrameError: If there is no such frame, or the value is too short for it.
    """
    check_frame_number(description.number_of_frames, number)
    bits = description.frame_bits
    first = (number - 1) * bits
    last = first + bits
    if last > value_length * 8:
        raise FrameError(
            f"the pixel data end before frame {number} is complete: {value_length} bytes hold "
            f"{value_length * 8 // bits} frames of {bits} bits, {description.number_of_frames} are declared"
        )
    return NativeFrame(value_offset + first // 8, value_offset + (last + 7) // 8, first % 8, bits)


def align_bits(content: bytes, shift: int, bits: int) -> bytes:
    """Moves a frame of single bits to the start of its first byte; unused bits of the last byte become zero.

    Bits are packed from the least significant one (PS3.5 section 8.1.1).

    Args:
        content: The bytes that hold the frame.
        shift: Bits of the first byte that belong to the frame before.
        bits: Bits of the frame.
    """
    if shift == 0 and bits % 8 == 0:
        return content
    number = int.from_bytes(content, "little") >> shift
    number &= (1 << bits) - 1
    return number.to_bytes((bits + 7) // 8, "little")


def native_to_little_endian(content: bytes, *, vr: str, bits_allocated: int) -> bytes:
    """Turns big-endian native pixel data into little-endian ones.

    Args:
        content: The value, or whole units of it: samples (more than 8 bits) or 16-bit words (8 bits or less).
        vr: ``"OB"`` is never swapped, ``"OW"`` in words of 16 bits or in whole samples, whichever is larger.
        bits_allocated: Bits of a sample.

    Raises:
        FrameError: If the content does not consist of whole units.
    """
    width = max(2, bits_allocated // 8)
    if vr == "OB":
        return content
    if len(content) % width:
        raise FrameError(f"{len(content)} bytes are not whole units of {width} bytes")
    swapped = bytearray(len(content))
    for index in range(width):
        swapped[index::width] = content[width - 1 - index :: width]
    return bytes(swapped)


def check_frame_number(number_of_frames: int, number: int) -> None:
    """Checks that a frame exists.

    Raises:
        FrameError: If it does not.
    """
    if not 1 <= number <= number_of_frames:
        frames = "1 frame" if number_of_frames == 1 else f"{number_of_frames} frames"
        raise FrameError(f"there is no frame {number}: the instance has {frames}")


@dataclass(frozen=True)
class OffsetTable:
    """An offset table element in the file.

    Attributes:
        offset: Offset in the file of its first entry.
        entries: How many entries it has.
        width: Bytes of an entry: 4 (basic) or 8 (extended).
        lengths_offset: For the extended table, offset in the file of the table of lengths.
    """

    offset: int
    entries: int
    width: int
    lengths_offset: int | None = None

    def offsets(self, read: ReadRange) -> tuple[int, ...]:
        """Where each frame begins, from the first item on."""
        return self._numbers(read, self.offset)

    def lengths(self, read: ReadRange) -> tuple[int, ...] | None:
        """The length of each frame, None for a basic table."""
        return None if self.lengths_offset is None else self._numbers(read, self.lengths_offset)

    def _numbers(self, read: ReadRange, start: int) -> tuple[int, ...]:
        content = read(start, start + self.entries * self.width)
        if len(content) != self.entries * self.width:
            raise FrameError("the offset table is cut off by the end of the file")
        return struct.unpack(f"<{self.entries}{'I' if self.width == 4 else 'Q'}", content)


@dataclass(frozen=True)
class EncapsulatedLayout:
    """The parts of an encapsulated pixel data value.

    Attributes:
        items_offset: Offset in the file of the first item after the basic offset table; offsets count from here.
        end: Offset after the last byte that can belong to the value: the end of the file, or of what is known.
        basic: The basic offset table, None if it is empty.
    """

    items_offset: int
    end: int
    basic: OffsetTable | None


def encapsulated_layout(read: ReadRange, value_offset: int, end: int) -> EncapsulatedLayout:
    """Reads the head of an encapsulated value: the item of the basic offset table.

    Args:
        read: Reads a range of the file.
        value_offset: Offset of the value, which is the first item's tag.
        end: Offset after the value, or the size of the file where the length is undefined.

    Raises:
        FrameError: If the value does not begin with an item.
    """
    head = read(value_offset, value_offset + 8)
    if len(head) < 8 or head[:4] != _ITEM:
        raise FrameError("the encapsulated pixel data do not begin with an item (PS3.5 A.4)")
    length = int.from_bytes(head[4:], "little")
    items = value_offset + 8 + length
    if items > end:
        raise FrameError("the basic offset table is cut off by the end of the file")
    basic = OffsetTable(value_offset + 8, length // 4, 4) if length else None
    return EncapsulatedLayout(items, end, basic)


class Fragment(NamedTuple):
    """A fragment of encapsulated pixel data.

    Attributes:
        offset: Offset in the file of its content.
        length: Bytes of its content.
        mark: What its first bytes are, if an image of a compressed format begins with them.
    """

    offset: int
    length: int
    mark: bytes = b""


def image_mark(content: bytes) -> bytes:
    """The bytes that an image of a compressed format begins with; empty if there are none.

    Args:
        content: The beginning of a frame or fragment, 64 bytes or more.
    """
    for mark in _IMAGE_MARKS:
        if content.startswith(mark):
            return mark
    # PS3.5 section G.5: the number of segments, and the offset of the first, which is right behind the header.
    segments, offset = struct.unpack_from("<2I", content) if len(content) >= _RLE_HEADER else (0, 0)
    return b"RLE" if 1 <= segments <= 15 and offset == _RLE_HEADER else b""


def walk_fragments(read: ReadRange, layout: EncapsulatedLayout) -> list[Fragment]:
    """Finds all fragments by walking over their headers.

    Returns:
        The fragments, in order.

    Raises:
        FrameError: If something else than an item follows, or the file ends inside a fragment.
    """
    fragments: list[Fragment] = []
    position = layout.items_offset
    window, window_start = b"", 0
    while position + 8 <= layout.end:
        inside = position - window_start
        if inside < 0 or inside + 8 + _RLE_HEADER > len(window):
            # Small fragments are walked within one read; large ones are stepped over, one short read each.
            small = fragments and fragments[-1].length < _WALK_WINDOW // 4
            size = _WALK_WINDOW if small else 8 + _RLE_HEADER
            window, window_start, inside = read(position, min(position + size, layout.end)), position, 0
        head = window[inside : inside + 8]
        if head[:4] == _SEQUENCE_END:
            return fragments
        if len(head) < 8 or head[:4] != _ITEM:
            raise FrameError(f"at offset {position} there is no fragment of the encapsulated pixel data")
        length = int.from_bytes(head[4:], "little")
        if length == UNDEFINED or position + 8 + length > layout.end:
            raise FrameError(f"the fragment at offset {position} is cut off by the end of the file")
        content = window[inside + 8 : inside + 8 + min(length, _RLE_HEADER)]
        fragments.append(Fragment(position + 8, length, image_mark(content)))
        position += 8 + length
    return fragments


def group_by_table(
    read: ReadRange, layout: EncapsulatedLayout, table: OffsetTable, fragments: Sequence[Fragment], frames: int
) -> list[list[Fragment]] | None:
    """Says which fragments make which frame by an offset table, if it agrees with all fragments.

    Args:
        read: Reads a range of the file.
        layout: From `encapsulated_layout`.
        table: The extended table, or `layout.basic`.
        fragments: From `walk_fragments`.
        frames: The number of frames of the image.

    Returns:
        The fragments of each frame (of an extended table without padding), or None if the table is wrong: another
        number of entries than frames, an entry that begins no fragment, entries out of order, a length that is not the
        frame's with or without its pad byte, or a frame that does not begin as the first one does.
    """
    if table.entries != frames or not fragments:
        return None
    places = {fragment.offset - 8 - layout.items_offset: index for index, fragment in enumerate(fragments)}
    starts = [places.get(offset, -1) for offset in table.offsets(read)]
    if starts[0] != 0 or any(before >= after for before, after in pairwise(starts)):
        return None
    groups = [list(fragments[start:stop]) for start, stop in pairwise([*starts, len(fragments)])]
    # Where each fragment is a frame, table and number agree, and a frame that begins otherwise is only damaged.
    if len(fragments) != frames and not _alike(groups):
        return None
    for group, length in zip(groups, table.lengths(read) or (), strict=False):
        spare = sum(fragment.length for fragment in group) - length
        if not 0 <= spare <= min(1, group[-1].length):
            return None
        group[-1] = group[-1]._replace(length=group[-1].length - spare)
    return groups


def _alike(groups: Sequence[Sequence[Fragment]]) -> bool:
    """Whether all frames begin with the mark of the first one, if it has one. (Empty ones are told when read.)"""
    mark = groups[0][0].mark
    return not mark or all(group[0].mark == mark or not group[0].length for group in groups)


def frame_by_table(
    read: ReadRange, layout: EncapsulatedLayout, table: OffsetTable, number_of_frames: int, number: int
) -> bytes | None:
    """Reads one encapsulated frame without a walk over all fragments, which may be very many.

    The whole table is checked, but of the fragments only the first, the last and the frame's. `group_by_table` checks
    all of them: only so a table is found out that has an entry too many, and another one too few.

    Args:
        read: Reads a range of the file.
        layout: From `encapsulated_layout`.
        table: The extended table, or `layout.basic`.
        number_of_frames: Frames of the image.
        number: The frame, counted from 1.

    Returns:
        The frame, or None if the table is wrong, or the frame has several fragments: then `walk_fragments` finds it.
    """
    if table.entries != number_of_frames:
        return None
    offsets = table.offsets(read)
    lengths = table.lengths(read)
    if offsets[0] != 0 or any(before >= after for before, after in pairwise(offsets)):
        return None
    if lengths is not None and not all(
        0 <= after - before - 8 - length <= 1
        for (before, after), length in zip(pairwise(offsets), lengths, strict=False)
    ):
        return None
    found: dict[int, tuple[int, int]] = {}
    marks = set()
    for wanted in {1, number_of_frames, number}:
        start = layout.items_offset + offsets[wanted - 1]
        head = read(start, start + 8 + _RLE_HEADER)
        length = int.from_bytes(head[4:8], "little")
        end = start + 8 + length
        marks.add(image_mark(head[8 : 8 + length]))
        if head[:4] != _ITEM or end > layout.end:
            return None
        if wanted < number_of_frames:
            if end != layout.items_offset + offsets[wanted]:
                return None
        elif end + 8 <= layout.end and read(end, end + 4) != _SEQUENCE_END:
            return None
        found[wanted] = start + 8, end
    if len(marks) > 1:
        return None
    start, end = found[number]
    if lengths is not None:
        spare = end - start - lengths[number - 1]
        if not 0 <= spare <= 1:
            return None
        end -= spare
    content = read(start, end)
    return content if len(content) == end - start else None


def group_fragments(fragments: Sequence[Fragment], number_of_frames: int) -> list[list[Fragment]]:
    """Says which fragments make which frame where no offset table does.

    One frame: all fragments. As many fragments as frames: one each. More: a frame begins at a fragment that begins an
    image of the compressed format.

    Raises:
        FrameError: If the fragments do not add up to the declared frames.
    """
    if number_of_frames == 1 and fragments:
        return [list(fragments)]
    each = [[fragment] for fragment in fragments]
    if len(fragments) == number_of_frames and _alike(each):
        return each
    frames: list[list[Fragment]] = []
    for fragment in fragments:
        if not frames or (fragment.mark and fragment.mark == fragments[0].mark):
            frames.append([])
        frames[-1].append(fragment)
    if len(frames) == number_of_frames:
        return frames
    raise FrameError(
        f"{len(fragments)} fragments cannot be divided into {number_of_frames} frames: no offset table agrees with "
        "them, and their first bytes do not mark the frames"
    )


def split_frames(value: bytes, number_of_frames: int, offsets: bytes = b"", lengths: bytes = b"") -> list[bytes]:
    """The frames of an encapsulated value in memory, each with its fragments joined.

    Args:
        value: The value, from the item of the basic offset table on.
        number_of_frames: The frames of the image.
        offsets: The extended offset table.
        lengths: The lengths that belong to it.

    Raises:
        FrameError: If nothing says which fragments make which frame, or a frame is empty.
    """
    size = len(value)
    tables = offsets + lengths

    def read(start: int, end: int) -> bytes:
        return value[start:end] if start < size else tables[start - size : end - size]

    layout = encapsulated_layout(read, 0, size)
    fragments = walk_fragments(read, layout)
    extended = extended_table(size, len(offsets), size + len(offsets), len(lengths))
    groups = group_frames(read, layout, extended, fragments, number_of_frames)
    frames = [b"".join(value[start : start + length] for start, length, _ in group) for group in groups]
    for number, frame in enumerate(frames, 1):
        check_not_empty(frame, number)
    return frames


def extended_table(offset: int, size: int, lengths_offset: int, lengths_size: int) -> OffsetTable | None:
    """The extended offset table of two elements of the file; None unless both are there and equally long."""
    if size < 8 or size % 8 or lengths_size != size:
        return None
    return OffsetTable(offset, size // 8, 8, lengths_offset)


def group_frames(
    read: ReadRange,
    layout: EncapsulatedLayout,
    extended: OffsetTable | None,
    fragments: Sequence[Fragment],
    number_of_frames: int,
) -> list[list[Fragment]]:
    """Says which fragments make which frame: by the first table that agrees with them, else by themselves.

    Raises:
        FrameError: If the fragments do not add up to the declared frames.
    """
    for table in (extended, layout.basic):
        groups = table and group_by_table(read, layout, table, fragments, number_of_frames)
        if groups:
            return groups
    return group_fragments(fragments, number_of_frames)


def check_not_empty(content: bytes, number: int) -> None:
    """Checks that a frame has content.

    Raises:
        FrameError: If it has none.
    """
    if not content:
        raise FrameError(f"frame {number} is empty")


def pack_groups(groups: Sequence[Sequence[Fragment]]) -> bytes:
    """The result of `group_frames` as bytes, to be stored: frame number, offset and length of each fragment."""
    rows = [(index, fragment.offset, fragment.length) for index, frame in enumerate(groups) for fragment in frame]
    return b"".join(struct.pack("<IQI", *row) for row in rows)


def packed_frame(packed: bytes, number: int) -> list[tuple[int, int]]:
    """The fragments of one frame from `pack_groups`; empty if there is no such frame."""
    size = struct.calcsize("<IQI")
    count = len(packed) // size
    low, high = 0, count
    while low < high:  # The rows are in order of the frame, which comes first.
        middle = (low + high) // 2
        if struct.unpack_from("<I", packed, middle * size)[0] < number - 1:
            low = middle + 1
        else:
            high = middle
    found = []
    while low < count:
        index, offset, length = struct.unpack_from("<IQI", packed, low * size)
        if index != number - 1:
            break
        found.append((offset, length))
        low += 1
    return found
