"""Where the frames of an image are inside its pixel data, so that one frame can be read by range (PS3.5 annex A.4).

Everything here is arithmetic over a function that reads a range of the file; nothing is decoded and no whole value is
loaded. Native pixel data are located from the image's dimensions; encapsulated ones by the extended offset table, the
basic offset table, or one walk over the fragments, whose result is small and worth storing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dicomweb_io.dicom.errors import FrameError
from dicomweb_io.dicom.header_scan import UNDEFINED
from dicomweb_io.dicom.uids import RLE_LOSSLESS

ReadRange = Callable[[int, int], bytes]
"""Reads the bytes from one offset up to another; a short answer means the end of the file."""

_ITEM = b"\xfe\xff\x00\xe0"
_SEQUENCE_END = b"\xfe\xff\xdd\xe0"

# The starts of a JPEG or JPEG-LS image (SOI and the next marker), of a JPEG 2000 codestream (SOC, SIZ), of a JP2 box
# and of a JPEG XL codestream: where a multi-fragment frame begins if there is no offset table.
_FRAME_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ", b"\xff\x0a")

_WALK_WINDOW = 1 << 16


@dataclass(frozen=True)
class PixelDescription:
    """What the header says about the pixel data (PS3.3 C.7.6.3).

    Attributes:
        rows: Rows of a frame.
        columns: Columns of a frame.
        samples_per_pixel: Samples per pixel, 1 or 3.
        bits_allocated: 1, 8, 16, 32 or 64.
        number_of_frames: Frames, 1 where the attribute is absent or unusable.
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
    """An offset table element in the file, of which single entries can be read.

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

    def entry(self, read: ReadRange, index: int) -> int:
        """One entry."""
        return self._number(read, self.offset, index)

    def length(self, read: ReadRange, index: int) -> int | None:
        """The length of a frame, None for a basic table."""
        return None if self.lengths_offset is None else self._number(read, self.lengths_offset, index)

    def _number(self, read: ReadRange, base: int, index: int) -> int:
        start = base + index * self.width
        content = read(start, start + self.width)
        if len(content) != self.width:
            raise FrameError("the offset table is cut off by the end of the file")
        return int.from_bytes(content, "little")


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
    basic = OffsetTable(value_offset + 8, length // 4, 4) if length >= 4 else None
    return EncapsulatedLayout(items, end, basic)


def frame_by_table(
    read: ReadRange, layout: EncapsulatedLayout, table: OffsetTable, number_of_frames: int, number: int
) -> bytes | None:
    """Reads one encapsulated frame that an offset table locates; its fragments are joined.

    Args:
        read: Reads a range of the file.
        layout: From `encapsulated_layout`.
        table: The extended table, or `layout.basic`.
        number_of_frames: Frames of the image.
        number: The frame, counted from 1.

    Returns:
        The frame, or None if the table is evidently wrong (too few entries, an entry that points at no item): then
        `walk_fragments` has to find it.
    """
    check_frame_number(number_of_frames, number)
    if table.entries < number_of_frames:
        return None
    start = layout.items_offset + table.entry(read, number - 1)
    head = read(start, start + 8)
    if len(head) < 8 or head[:4] != _ITEM or start >= layout.end:
        return None
    first = int.from_bytes(head[4:], "little")
    wanted = table.length(read, number - 1)
    if wanted is not None:
        # PS3.3 C.7.6.3.1.8: a frame of the extended table is one fragment; the length leaves out its padding.
        return _exactly(read, start + 8, start + 8 + wanted) if wanted <= first else None
    if number < number_of_frames:
        stop = layout.items_offset + table.entry(read, number)
        if stop <= start or stop > layout.end:
            return None
    else:
        stop = layout.end
    fragments = []
    position = start
    while position < stop:
        head = read(position, position + 8)
        if len(head) < 8 or head[:4] == _SEQUENCE_END:
            break
        if head[:4] != _ITEM:
            return None
        length = int.from_bytes(head[4:], "little")
        if position + 8 + length > stop:
            return None
        fragments.append(_exactly(read, position + 8, position + 8 + length))
        position += 8 + length
    return b"".join(fragments)


def _exactly(read: ReadRange, start: int, end: int) -> bytes:
    content = read(start, end)
    if len(content) != end - start:
        raise FrameError(f"the file ends inside a fragment: {len(content)} of {end - start} bytes at offset {start}")
    return content


def walk_fragments(read: ReadRange, layout: EncapsulatedLayout) -> list[tuple[int, int]]:
    """Finds all fragments by walking over their headers.

    Returns:
        Offset and length in the file of each fragment's content, in order.

    Raises:
        FrameError: If something else than an item follows, or the file ends inside a fragment.
    """
    fragments: list[tuple[int, int]] = []
    position = layout.items_offset
    window, window_start = b"", 0
    while position + 8 <= layout.end:
        inside = position - window_start
        if inside < 0 or inside + 8 > len(window):
            # Small fragments are walked within one read; large ones are stepped over, one short read each.
            size = _WALK_WINDOW if fragments and fragments[-1][1] < _WALK_WINDOW // 4 else 8
            window, window_start, inside = read(position, min(position + size, layout.end)), position, 0
        head = window[inside : inside + 8]
        if head[:4] == _SEQUENCE_END:
            return fragments
        if len(head) < 8 or head[:4] != _ITEM:
            raise FrameError(f"at offset {position} there is no fragment of the encapsulated pixel data")
        length = int.from_bytes(head[4:], "little")
        if length == UNDEFINED or position + 8 + length > layout.end:
            raise FrameError(f"the fragment at offset {position} is cut off by the end of the file")
        fragments.append((position + 8, length))
        position += 8 + length
    return fragments


def group_fragments(
    read: ReadRange, fragments: Sequence[tuple[int, int]], number_of_frames: int, transfer_syntax_uid: str
) -> list[list[tuple[int, int]]]:
    """Says which fragments make which frame where no offset table does.

    One frame: all fragments. As many fragments as frames: one each (always so for RLE, PS3.5 A.4.2). More: a frame
    begins at a fragment that starts an image of the compressed format.

    Raises:
        FrameError: If the fragments do not add up to the declared frames.
    """
    if number_of_frames == 1 and fragments:
        return [list(fragments)]
    if len(fragments) == number_of_frames:
        return [[fragment] for fragment in fragments]
    if len(fragments) > number_of_frames and transfer_syntax_uid != RLE_LOSSLESS:
        frames: list[list[tuple[int, int]]] = []
        for offset, length in fragments:
            if not frames or read(offset, offset + min(length, 8)).startswith(_FRAME_STARTS):
                frames.append([])
            frames[-1].append((offset, length))
        if len(frames) == number_of_frames:
            return frames
    raise FrameError(
        f"{len(fragments)} fragments cannot be divided into {number_of_frames} frames: there is no offset table, "
        "and the fragments' first bytes do not mark the frames"
    )


def pack_groups(groups: Sequence[Sequence[tuple[int, int]]]) -> bytes:
    """The result of `group_fragments` as bytes, to be stored: frame number, offset and length of each fragment."""
    rows = [(index, *fragment) for index, frame in enumerate(groups) for fragment in frame]
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
