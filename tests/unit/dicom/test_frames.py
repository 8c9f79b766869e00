"""Locating frames inside pixel data."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, strategies as st
from pydicom.encaps import encapsulate

from dicomweb_io.dicom.errors import DatasetError, FrameError
from dicomweb_io.dicom.frames import (
    OffsetTable,
    PixelDescription,
    align_bits,
    encapsulated_layout,
    frame_by_table,
    group_fragments,
    image_mark,
    native_frame,
    native_to_little_endian,
    number_of_frames,
    pack_groups,
    packed_frame,
    split_frames,
    walk_fragments,
)

ITEM = b"\xfe\xff\x00\xe0"
END = b"\xfe\xff\xdd\xe0\0\0\0\0"


def reader(content: bytes):
    return lambda start, end: content[start:end]


@given(
    rows=st.integers(1, 20), columns=st.integers(1, 20), samples=st.sampled_from([1, 3]),
    bits=st.sampled_from([8, 16, 32, 64]), frames=st.integers(1, 5), offset=st.integers(0, 1000),
)  # fmt: skip
def test_native_frames_follow_one_another(
    rows: int, columns: int, samples: int, bits: int, frames: int, offset: int
) -> None:
    description = PixelDescription(rows, columns, samples, bits, frames)
    length = rows * columns * samples * bits // 8
    for number in range(1, frames + 1):
        place = native_frame(description, offset, length * frames + 1, number)
        assert (place.start, place.end) == (offset + (number - 1) * length, offset + number * length)
        assert place.shift == 0


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), frames=st.integers(1, 6), seed=st.integers(0, 99))
def test_single_bits(rows: int, columns: int, frames: int, seed: int) -> None:
    planes = np.random.default_rng(seed).integers(0, 2, (frames, rows * columns), dtype=np.uint8)
    content = np.packbits(planes.reshape(-1), bitorder="little").tobytes()
    description = PixelDescription(rows, columns, 1, 1, frames)
    for number in range(1, frames + 1):
        place = native_frame(description, 0, len(content), number)
        found = align_bits(content[place.start : place.end], place.shift, place.bits)
        assert found == np.packbits(planes[number - 1], bitorder="little").tobytes()


@pytest.mark.parametrize(
    ("photometric", "expected"),
    [("RGB", 4 * 6 * 3), ("YBR_FULL", 4 * 6 * 3), ("YBR_FULL_422", 4 * 6 * 2), ("YBR_PARTIAL_420", 4 * 6 * 3 // 2)],
)
def test_subsampled_colours_are_shorter(photometric: str, expected: int) -> None:
    assert PixelDescription(4, 6, 3, 8, 1, photometric).frame_bits == expected * 8


def test_errors_say_what_is_wrong() -> None:
    description = PixelDescription(4, 4, 1, 8, 3)
    for number in (0, 4):
        with pytest.raises(FrameError, match="3 frames"):
            native_frame(description, 0, 48, number)
    with pytest.raises(FrameError, match="end before frame 3"):
        native_frame(description, 0, 40, 3)
    with pytest.raises(FrameError, match="Rows"):
        native_frame(PixelDescription(0, 4), 0, 100, 1)


@given(st.integers(1, 30), st.sampled_from([8, 16, 32, 64]))
def test_byte_order(count: int, bits: int) -> None:
    values = np.random.default_rng(count).integers(0, 200, count * 8 // (bits // 8) * 2).astype(f">u{bits // 8}")
    if bits == 8:
        words = values.view(">u2")
        assert native_to_little_endian(words.tobytes(), vr="OW", bits_allocated=8) == words.astype("<u2").tobytes()
        assert native_to_little_endian(values.tobytes(), vr="OB", bits_allocated=8) == values.tobytes()
    else:
        swapped = native_to_little_endian(values.tobytes(), vr="OW", bits_allocated=bits)
        assert swapped == values.astype(f"<u{bits // 8}").tobytes()
    with pytest.raises(FrameError):
        native_to_little_endian(b"123", vr="OW", bits_allocated=16)


# None begins as an image does: if the first did, the others would have to.
FRAME = st.binary(min_size=2, max_size=60).filter(lambda frame: len(frame) % 2 == 0 and not image_mark(frame))
FRAMES = st.lists(FRAME, min_size=1, max_size=12)


@given(FRAMES, st.integers(1, 3), st.integers(0, 50))
def test_a_basic_table_finds_every_frame(frames: list[bytes], fragments: int, offset: int) -> None:
    content = b"x" * offset + encapsulate(frames, fragments_per_frame=1, has_bot=True) + END + b"after the pixel data"
    read = reader(content)
    layout = encapsulated_layout(read, offset, len(content))
    assert layout.basic is not None
    assert layout.basic.entries == len(frames)
    for number, frame in enumerate(frames, 1):
        assert frame_by_table(read, layout, layout.basic, len(frames), number) == frame


@given(FRAMES, st.integers(0, 50))
def test_without_a_table_a_walk_finds_every_frame(frames: list[bytes], offset: int) -> None:
    content = b"x" * offset + encapsulate(frames, has_bot=False) + END
    read = reader(content)
    layout = encapsulated_layout(read, offset, len(content))
    assert layout.basic is None
    fragments = walk_fragments(read, layout)
    assert [content[start : start + length] for start, length, _ in fragments] == frames
    packed = pack_groups(group_fragments(fragments, len(frames)))
    for number, frame in enumerate(frames, 1):
        assert [content[start : start + length] for start, length in packed_frame(packed, number)] == [frame]
    assert packed_frame(packed, len(frames) + 1) == []


def test_several_fragments_of_a_frame_are_told_apart_by_their_beginning() -> None:
    frames = [b"\xff\xd8\xff\xe0" + bytes([number]) * 200 for number in range(5)]
    content = encapsulate(frames, fragments_per_frame=3, has_bot=False) + END
    read = reader(content)
    layout = encapsulated_layout(read, 0, len(content))
    fragments = walk_fragments(read, layout)
    assert len(fragments) == 15
    groups = group_fragments(fragments, 5)
    assert [b"".join(content[start : start + length] for start, length, _ in group)[:204] for group in groups] == frames
    assert group_fragments(fragments, 1) == [fragments]
    # Not even 15: they are as many, but five of them begin an image, and the others do not.
    for count in (4, 15, 16):
        with pytest.raises(FrameError, match="15 fragments"):
            group_fragments(fragments, count)


def test_a_wrong_table_is_not_believed() -> None:
    frames = [b"ab", b"cd", b"ef"]
    content = encapsulate(frames, has_bot=True) + END
    read = reader(content)
    layout = encapsulated_layout(read, 0, len(content))
    assert layout.basic is not None
    assert frame_by_table(read, layout, layout.basic, 4, 1) is None
    broken = content[:12] + b"\x03\0\0\0" + content[16:]
    assert frame_by_table(reader(broken), layout, layout.basic, 3, 2) is None
    backwards = content[:16] + b"\x00\0\0\0" + content[20:]
    assert frame_by_table(reader(backwards), layout, layout.basic, 3, 2) is None


def test_an_extended_table_gives_exact_lengths() -> None:
    frames = [b"abc", b"defgh"]
    content = encapsulate(frames, has_bot=False) + END
    start = 8
    entries = [start, start + 8 + 4]
    table = b"".join((entry - start).to_bytes(8, "little") for entry in entries)
    lengths = b"".join(len(frame).to_bytes(8, "little") for frame in frames)
    whole = content + table + lengths
    layout = encapsulated_layout(reader(whole), 0, len(content))
    extended = OffsetTable(len(content), 2, 8, len(content) + 16)
    assert [frame_by_table(reader(whole), layout, extended, 2, number) for number in (1, 2)] == frames


@pytest.mark.parametrize("cut", [4, 9, 20, 30])
def test_what_is_cut_off_is_an_error(cut: int) -> None:
    content = (encapsulate([b"x" * 30, b"y" * 30], has_bot=False) + END)[:cut]
    read = reader(content)

    def locate() -> object:
        return group_fragments(walk_fragments(read, encapsulated_layout(read, 0, len(content))), 2)

    with pytest.raises(FrameError):
        locate()


def test_walking_over_large_fragments_does_not_read_them() -> None:
    frames = [os.urandom(200_000) for _ in range(5)]
    content = encapsulate(frames, has_bot=False) + END
    read: list[int] = []

    def counting(start: int, end: int) -> bytes:
        read.append(end - start)
        return content[start:end]

    layout = encapsulated_layout(counting, 0, len(content))
    assert len(walk_fragments(counting, layout)) == 5
    assert sum(read) < 1000


def fragmented(pieces: Sequence[Sequence[bytes]], table: Sequence[int] | None, end: bytes = END) -> bytes:
    """Encapsulated frames of some fragments each, with a basic table; as it should be, if it says None."""
    offsets, position = [], 0
    for frame in pieces:
        offsets.append(position)
        position += sum(8 + len(piece) for piece in frame)
    entries = (
        struct.pack(f"<{len(table)}I", *table) if table is not None else struct.pack(f"<{len(offsets)}I", *offsets)
    )
    items = b"".join(ITEM + struct.pack("<I", len(piece)) + piece for frame in pieces for piece in frame)
    return ITEM + struct.pack("<I", len(entries)) + entries + items + end


MARKS = {
    "JPEG": b"\xff\xd8\xff\xe0",
    "JPEG-LS": b"\xff\xd8\xff\xf7",
    "JPEG 2000": b"\xff\x4f\xff\x51\x00\x2f",
    "JP2": b"\x00\x00\x00\x0cjP  \r\n\x87\n",
    "RLE": struct.pack("<16I", 1, 64, *[0] * 14),
}
# Of three frames of 20 bytes: where each begins is 0, 28, 56; 84 is behind the last.
WRONG_TABLES = {
    "nothing but zeros": [0, 0, 0],
    "one frame on": [28, 56, 84],
    "one frame on from the second": [0, 56, 84],
    "without the items": [0, 20, 40],
    "from the start of the file": [500, 528, 556],
    "falling": [0, 56, 28],
    "the last outside": [0, 28, 4000],
    "the second inside of a fragment": [0, 30, 56],
    "too short": [0, 28],
    "too long": [0, 28, 56, 84],
    "of one byte": None,
}


@pytest.mark.parametrize("table", WRONG_TABLES.values(), ids=WRONG_TABLES)
def test_a_table_that_contradicts_the_fragments_is_not_believed(table: list[int] | None) -> None:
    frames = [bytes([number]) * 20 for number in range(3)]
    content = fragmented([[frame] for frame in frames], table)
    if table is None:
        content = ITEM + struct.pack("<I", 1) + b"\0" + content[20:]
    assert split_frames(content, 3) == frames
    with pytest.raises(FrameError, match="6 fragments cannot be divided into 3 frames"):
        split_frames(fragmented([[frame[:10], frame[10:]] for frame in frames], table or [0, 0, 0]), 3)


@pytest.mark.parametrize("mark", MARKS.values(), ids=MARKS)
@pytest.mark.parametrize("table", [[], [0, 0, 0], None])
def test_without_a_true_table_marks_tell_the_frames_of_several_fragments(mark: bytes, table: list[int] | None) -> None:
    frames = [mark + bytes([number]) * 70 for number in (1, 2, 3)]
    pieces = [[frame[:66], frame[66:68], frame[68:]] for frame in frames]
    assert split_frames(fragmented(pieces, table), 3) == frames
    assert split_frames(fragmented(pieces, table)[:-8], 3) == frames
    assert split_frames(fragmented([[frame] for frame in frames], [0] * 3), 3) == frames
    # As many fragments as frames, one of which is the second half of the first.
    halves = [[frames[0][:70], frames[0][70:]], [frames[1]]]
    with pytest.raises(FrameError, match="3 fragments cannot be divided into 3 frames"):
        split_frames(fragmented(halves, []), 3)
    # A table that agrees with items, but not with the marks.
    second = 8 + len(pieces[0][0])
    assert split_frames(fragmented(pieces, [0, second, 2 * second]), 3) == frames


def test_one_frame_takes_all_fragments_and_an_empty_one_is_none() -> None:
    assert split_frames(fragmented([[b"ab", b"cd"]], [9]), 1) == [b"abcd"]
    for table in ([], None):
        with pytest.raises(FrameError, match="frame 2 is empty"):
            split_frames(fragmented([[b"ab"], [b""], [b"cd"]], table), 3)
    with pytest.raises(FrameError):
        split_frames(fragmented([], []), 1)


@pytest.mark.parametrize(
    ("offsets", "lengths", "expected"),
    [
        ([0, 12, 24], [3, 4, 3], [b"abc", b"defg", b"hij"]),
        ([0, 12, 24], [4, 4, 4], [b"abc\0", b"defg", b"hij\0"]),
        ([0, 0, 0], [3, 4, 3], [b"abc\0", b"defg", b"hij\0"]),
        ([12, 24, 36], [3, 4, 3], [b"abc\0", b"defg", b"hij\0"]),
        ([0, 12, 24], [3, 4, 1], [b"abc\0", b"defg", b"hij\0"]),
        ([0, 12, 24], [3, 400, 3], [b"abc\0", b"defg", b"hij\0"]),
        ([0, 12, 1 << 40], [3, 4, 3], [b"abc\0", b"defg", b"hij\0"]),
        ([0, 12], [3, 4], [b"abc\0", b"defg", b"hij\0"]),
        ([0, 12, 24], [3, 4], [b"abc\0", b"defg", b"hij\0"]),
    ],
)
def test_extended_tables(offsets: list[int], lengths: list[int], expected: list[bytes]) -> None:
    content = fragmented([[b"abc\0"], [b"defg"], [b"hij\0"]], [])
    packed = [struct.pack(f"<{len(numbers)}Q", *numbers) for numbers in (offsets, lengths)]
    assert split_frames(content, 3, *packed) == expected


@pytest.mark.parametrize("table", [table for table in WRONG_TABLES.values() if table], ids=list(WRONG_TABLES)[:-1])
def test_a_wrong_table_is_also_found_out_without_a_walk(table: list[int]) -> None:
    frames = [bytes([number]) * 20 for number in range(3)]
    content = fragmented([[frame] for frame in frames], table)
    read = reader(content)
    layout = encapsulated_layout(read, 0, len(content))
    assert layout.basic is not None
    found = [frame_by_table(read, layout, layout.basic, 3, number) for number in (1, 2, 3)]
    assert all(content in (None, frame) for content, frame in zip(found, frames, strict=True))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("3", 3), (" 3 ", 3), (3, 3), (3.0, 3), ("", 1), (0, 1), ("0", 1), (None, 1), (10**9, 10**9), ("+2", 2)],
)
def test_numbers_of_frames(value: object, expected: int) -> None:
    row = {"00280008": {"vr": "IS", "Value": [value]}, "00280010": {"vr": "US", "Value": [4]}}
    assert number_of_frames(row) == expected
    assert number_of_frames({**row, "00280008": {"vr": "IS", "Value": value}}) == expected


@pytest.mark.parametrize(
    "value",
    ["many", [], {}, -3, "-3", 1e30, "9" * 400, 2.5, "2.5", float("nan"), float("inf"), True, 1 << 31, "1_0", "0x5"],
)
def test_what_is_no_number_of_frames(value: object) -> None:
    row = {"00280008": {"vr": "IS", "Value": [value]}, "00280010": {"vr": "US", "Value": [4]}}
    with pytest.raises(DatasetError, match="0028,0008"):
        number_of_frames(row)


def test_a_number_of_frames_in_bytes_is_none() -> None:
    with pytest.raises(DatasetError, match="0028,0008"):
        number_of_frames({"00280008": {"vr": "UN", "InlineBinary": "MyA="}, "00280010": {"vr": "US", "Value": [4]}})


@pytest.mark.parametrize("row", [{}, {"00280008": {}}, {"00280008": {"Value": []}}, {"00280008": None}])
def test_without_a_number_there_is_one_frame_or_no_image(row: dict[str, object]) -> None:
    assert number_of_frames(row) == 0
    assert number_of_frames({**row, "00280010": {"vr": "US", "Value": [4]}}) == 1
