"""One frame of a multi-frame file of a gigabyte: what is read for it, and what the index keeps.

The files are sparse: their frames begin like JPEG images and are holes otherwise, so they cost no disk.
"""

from __future__ import annotations

import io
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit

from dicomweb_io.elements import Resource
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.files.local import LocalFolder
from tests.unit.files.making import REFERENCE, frames_of, image, make_dataset, saved, set_compressed

Count = Callable[[], int]

FRAMES = 2000
FRAME_BYTES = 512 * 1024
START = b"\xff\xd8\xff\xe0"


class CountingFile(io.FileIO):
    """Counts the bytes that are read from the disk."""

    count = 0

    def readinto(self, buffer: Any) -> int | None:
        found = super().readinto(buffer)
        CountingFile.count += found or 0
        return found

    def read(self, size: int | None = -1) -> bytes | None:  # type: ignore[override]
        found = super().read(-1 if size is None else size)
        CountingFile.count += len(found or b"")
        return found

    def readall(self) -> bytes | None:  # type: ignore[override]
        return self.read()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Count:
    """Tells how many bytes were read from files of folders since it was last asked."""

    def open_counting(self: LocalFolder, path: str, *known: object) -> BinaryIO:
        return io.BufferedReader(CountingFile(self.location_of(path)))

    monkeypatch.setattr(LocalFolder, "open", open_counting)
    CountingFile.count = 0

    def take() -> int:
        found, CountingFile.count = CountingFile.count, 0
        return found

    return take


def large_image(count: int = FRAMES, **attributes: Any) -> Dataset:
    """An image of many frames of half a megabyte, without its pixels."""
    options = image(np.zeros((512, 1024), np.uint8))
    del options["PixelData"]
    return make_dataset(**options, NumberOfFrames=count, **attributes)


def many_fragments(count: int, size: int, **attributes: Any) -> Dataset:
    """An image of compressed frames that no table locates."""
    dataset = large_image(count, **attributes)
    frames = [START + bytes([number] * size) for number in range(count)]
    set_compressed(dataset, JPEGBaseline8Bit, encapsulate(frames, has_bot=False))
    return dataset


def large_file(path: Path, how: str) -> None:
    """Writes a file of a gigabyte whose frames can be told apart by the number after their first four bytes."""
    dataset = large_image()
    if how == "native":
        content = saved(dataset) + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, FRAMES * FRAME_BYTES)
        with open(path, "wb") as file:
            file.write(content)
            for number in range(FRAMES):
                file.seek(len(content) + number * FRAME_BYTES)
                file.write(START + struct.pack("<I", number + 1))
            file.truncate(len(content) + FRAMES * FRAME_BYTES)
        return
    offsets = [number * (FRAME_BYTES + 8) for number in range(FRAMES)]
    if how == "extended":
        dataset.ExtendedOffsetTable = struct.pack(f"<{FRAMES}Q", *offsets)
        dataset.ExtendedOffsetTableLengths = struct.pack(f"<{FRAMES}Q", *[FRAME_BYTES] * FRAMES)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    basic = struct.pack(f"<{FRAMES}I", *offsets) if how == "basic" else b""
    with open(path, "wb") as file:
        file.write(saved(dataset) + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF))
        file.write(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(basic)) + basic)
        for number in range(FRAMES):
            file.write(b"\xfe\xff\x00\xe0" + struct.pack("<I", FRAME_BYTES) + START + struct.pack("<I", number + 1))
            file.seek(FRAME_BYTES - 8, io.SEEK_CUR)
        file.write(b"\xfe\xff\xdd\xe0" + bytes(4))


def frame_of(number: int) -> bytes:
    return START + struct.pack("<I", number) + bytes(FRAME_BYTES - 8)


@pytest.mark.parametrize("how", ["native", "basic", "extended", "none"])
def test_a_frame_of_a_gigabyte_costs_a_frame(how: str, folder: Path, tmp_path: Path, counted: Count) -> None:
    path = folder / "large.dcm"
    large_file(path, how)
    os.utime(path, (1_600_000_000, 1_600_000_000))
    assert path.stat().st_size > 1_000_000_000
    client = DICOMfileClient(folder, index=tmp_path / "index")
    assert len(client.search_for_instances()) == 1
    assert counted() < 256 * 1024
    first = True
    for number in (FRAMES, 1, 1234):
        (frame,) = client.iter_frames(frames_of(REFERENCE, number))
        assert frame.content == frame_of(number)
        scan = FRAMES * 9000 if first and how == "none" else 0
        assert counted() <= FRAME_BYTES + 256 * 1024 + scan
        first = False
    client.close()
    again = DICOMfileClient(folder, index=tmp_path / "index")
    (frame,) = again.iter_frames(frames_of(REFERENCE, 77))
    assert frame.content == frame_of(77)
    # The result of the scan outlives the client.
    assert counted() <= FRAME_BYTES + 256 * 1024


def test_tables_of_fragments_are_kept_where_they_pay(folder: Path, tmp_path: Path) -> None:
    for count in (10, 100):
        (folder / f"{count}.dcm").write_bytes(saved(many_fragments(count, 4, sop=f"1.2.1.1.{count}")))
        os.utime(folder / f"{count}.dcm", (1_600_000_000, 1_600_000_000))

    def frame_of_each(client: DICOMfileClient) -> list[bytes | None]:
        return [
            next(client.iter_frames(Resource("1.2.1", "1.2.1.1", f"1.2.1.1.{count}", (count,)))).content
            for count in (10, 100)
        ]

    expected = [START + bytes([count - 1] * 4) for count in (10, 100)]
    place = tmp_path / "index"
    busy = DICOMfileClient(folder, index=place)
    busy.search_for_instances()
    found: list[list[bytes | None]] = []
    with busy._current()._database.exclusive():
        # Another process that builds an index for an hour does not keep frames from being read.
        client = DICOMfileClient(folder, index=place, update_db=False)
        client._index = busy._index
        thread = threading.Thread(target=lambda: found.append(frame_of_each(client)), daemon=True)
        thread.start()
        thread.join(60)
    assert found == [expected]
    again = DICOMfileClient(folder, index=place)
    assert again._current().select("SELECT file FROM fragments") == []
    assert frame_of_each(again) == expected
    again.refresh()
    kept = again._current().select("SELECT path FROM fragments JOIN file ON file = id")
    assert kept == [(b"100.dcm",)]


@pytest.mark.parametrize("split", [False, True])
def test_a_table_that_is_wrong_in_the_middle_gives_no_other_frame(split: bool, folder: Path) -> None:
    dataset = large_image(40)
    frames = [START + bytes([number] * 60) for number in range(40)]
    set_compressed(dataset, JPEGBaseline8Bit, encapsulate(frames, has_bot=True))
    offsets = [number * 72 for number in range(40)]
    if split:
        # Frame 5 has two fragments, and the table names the second.
        offsets = [offset + 8 * (offset > 4 * 72) for offset in offsets]
        offsets[4] += 40
        content = bytearray(dataset.PixelData)
        place = 8 + 40 * 4 + 4 * 72
        fragment = content[place + 8 : place + 72]
        item = b"\xfe\xff\x00\xe0\x20\x00\x00\x00"
        content[place : place + 72] = item + fragment[:32] + item + fragment[32:]
        dataset.PixelData = bytes(content)
    else:
        # One entry too many, and later one too few: each in between is one frame back.
        offsets = [*offsets[:10], offsets[9] + 2, *offsets[10:29], *offsets[30:]]
    dataset.PixelData = dataset.PixelData[:8] + struct.pack("<40I", *offsets) + dataset.PixelData[168:]
    (folder / "wrong.dcm").write_bytes(saved(dataset))
    client = DICOMfileClient(folder)
    for number in (20, 5, 40, 1, 11):
        (frame,) = client.iter_frames(frames_of(REFERENCE, number))
        assert frame.content == frames[number - 1]


def test_few_fragments_are_walked_through_once(folder: Path, counted: Count) -> None:
    path = folder / "few.dcm"
    path.write_bytes(saved(many_fragments(16, 20_000)))
    client = DICOMfileClient(folder)
    counted()
    client.search_for_instances()
    searching = counted()
    assert len(list(client.iter_frames(frames_of(REFERENCE, *range(1, 17))))) == 16
    assert counted() < path.stat().st_size * 2.5 + searching


def test_frames_of_deflated_files(folder: Path) -> None:
    planes = np.stack([np.full((64, 64), number, np.uint8) for number in range(1, 31)])
    dataset = make_dataset(**image(planes))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    stored = saved(dataset)
    (folder / "deflated.dcm").write_bytes(stored)
    assert len(stored) < 10_000
    client = DICOMfileClient(folder)
    found = list(client.iter_frames(frames_of(REFERENCE, 30, 1, 17)))
    assert [frame.content for frame in found] == [planes[number].tobytes() for number in (29, 0, 16)]
    assert next(client.iter_instances(REFERENCE)).content == stored
