"""Retrieving from folders: bytes, metadata, frames by range, and bulk data."""

from __future__ import annotations

import copy
import errno
import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pydicom
import pytest
import requests
from apache_beam.testing.util import assert_that, equal_to
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import JPEGBaseline8Bit, RLELossless

from dicomweb_io.dicom.json_decode import first_text, first_value, load_json_dataset
from dicomweb_io.elements import Instance, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.files.local import folder_of
from dicomweb_io.files.remote import RangeFile
from dicomweb_io.testing.samples import clone, sample_file
from dicomweb_io.transforms import RetrieveFrames
from tests.unit.files.making import (
    REFERENCE,
    Put,
    answered,
    frames_of,
    image,
    make_bytes,
    make_dataset,
    saved,
    set_compressed,
)

DECODED = ("application/dicom", "1.2.840.10008.1.2.1")


@pytest.fixture(scope="module")
def wheel(samples: list[Path]) -> DICOMfileClient:
    return DICOMfileClient(samples[0].parent, in_memory=True)


@pytest.fixture(scope="module")
def clones(samples: list[Path], tmp_path_factory: pytest.TempPathFactory) -> DICOMfileClient:
    """All samples that have UIDs, each with UIDs of its own: none hides behind another."""
    folder = tmp_path_factory.mktemp("clones")
    for path in samples:
        try:
            (folder / path.name).write_bytes(clone(path.read_bytes(), path.name))
        except ValueError:
            continue
    return DICOMfileClient(folder)


# Instances ----------------------------------------------------------------------------------------------------------


def test_instances_come_back_byte_for_byte(wheel: DICOMfileClient, samples: list[Path]) -> None:
    contents = {path.read_bytes() for path in samples}
    count = 0
    for row in wheel.search_for_studies():
        reference = Resource.of(row)
        for instance in wheel.iter_instances(reference):
            count += 1
            assert instance.content in contents
            assert reference.contains(instance.reference)
            dataset = instance.dataset(stop_before_pixels=True)
            assert dataset.SOPInstanceUID == instance.reference.sop_instance_uid
            syntax = instance.transfer_syntax_uid
            assert dataset.file_meta.get("TransferSyntaxUID", syntax) == syntax
    assert count == len(wheel.search_for_instances()) > 110


def test_what_is_not_there_is_a_404(wheel: DICOMfileClient) -> None:
    for reference in (Resource("9.9"), Resource("9.9", "9"), Resource("9.9", "9", "9")):
        with answered(404):
            list(wheel.iter_instances(reference))
        with pytest.raises(requests.HTTPError):
            list(wheel.iter_metadata(reference))


@pytest.fixture
def one(folder: Path, put: Put) -> DICOMfileClient:
    put("a.dcm", PatientComments="x" * 5000)
    os.utime(folder / "a.dcm", (1e9, 1e9))
    return DICOMfileClient(folder)


@pytest.fixture
def spooled(tmp_path: Path) -> dict[str, Any]:
    """Options that make a file of an instance."""
    (tmp_path / "spool").mkdir()
    return {"max_element_bytes": 100, "spool_directory": str(tmp_path / "spool")}


def test_large_instances_become_files_that_the_caller_owns(
    one: DICOMfileClient, folder: Path, spooled: dict[str, Any]
) -> None:
    instance = next(one.iter_instances(REFERENCE, **spooled))
    assert instance.content is None
    assert instance.path is not None
    assert os.path.dirname(instance.path) == spooled["spool_directory"]
    assert instance.read() == (folder / "a.dcm").read_bytes()
    os.unlink(instance.path)
    assert (folder / "a.dcm").exists()
    with pytest.raises(ValueError, match="max_element_bytes"):
        next(one.iter_instances(REFERENCE, max_element_bytes=100))


def test_writing_to_a_spooled_instance_does_not_reach_the_archive(
    one: DICOMfileClient, folder: Path, spooled: dict[str, Any]
) -> None:
    stored = (folder / "a.dcm").read_bytes()
    instance = next(one.iter_instances(REFERENCE, **spooled))
    assert instance.path is not None
    stat = os.stat(instance.path)
    assert (stat.st_nlink, stat.st_mode & 0o777) == (1, 0o600)
    with open(instance.path, "r+b") as file:
        file.write(b"overwritten")
    assert (folder / "a.dcm").read_bytes() == stored


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EINVAL, errno.ENOSYS])
@pytest.mark.parametrize("done", [0, 1000])
def test_large_instances_are_copied_where_the_system_cannot(
    error: int, done: int, one: DICOMfileClient, folder: Path, spooled: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []

    def refuse(source: int, target: int, size: int, *, offset_src: int, offset_dst: int) -> int:
        if done and not copied:
            copied.append(os.pwrite(target, os.pread(source, done, offset_src), offset_dst))
            return done
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    assert next(one.iter_instances(REFERENCE, **spooled)).read() == (folder / "a.dcm").read_bytes()


def test_a_full_disk_leaves_no_half_copy(
    one: DICOMfileClient, spooled: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    with pytest.raises(OSError, match="No space"):
        next(one.iter_instances(REFERENCE, **spooled))
    assert os.listdir(spooled["spool_directory"]) == []


def test_a_large_instance_can_be_borrowed(one: DICOMfileClient, folder: Path) -> None:
    instance = next(one.iter_instances(REFERENCE, max_element_bytes=100, borrow=True))
    assert instance.path == str(folder / "a.dcm")


@pytest.mark.parametrize("large", [False, True])
def test_a_file_that_changed_or_vanished_is_an_error_that_names_it(
    large: bool, one: DICOMfileClient, folder: Path, put: Put, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"max_element_bytes": 10, "spool_directory": str(tmp_path)} if large else {}
    assert one.search_for_studies()
    put("a.dcm", PatientComments="y" * 5000)
    with answered(409, r"a\.dcm .* changed"):
        list(one.iter_instances(REFERENCE, **options))
    (folder / "a.dcm").unlink()
    with answered(404, r"a\.dcm .* not there"):
        list(one.iter_instances(REFERENCE, **options))
    put("a.dcm", PatientComments="y" * 5000)
    one.refresh()
    assert len(list(one.iter_instances(REFERENCE, **options))) == 1
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_explicit_vr_little_endian_can_be_asked_for(clones: DICOMfileClient) -> None:
    wanted = (("application/dicom", "1.2.840.10008.1.2.1"),)
    compared = 0
    for row in clones.search_for_instances():
        reference = Resource.of(row)
        if first_text(row, "AvailableTransferSyntaxUID") not in (
            "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5",
        ):  # fmt: skip
            continue
        stored = next(clones.iter_instances(reference)).dataset()
        changed = next(clones.iter_instances(reference, media_types=wanted))
        assert changed.transfer_syntax_uid == "1.2.840.10008.1.2.1"
        dataset = changed.dataset()
        assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert dataset.SOPInstanceUID == stored.SOPInstanceUID
        if "PixelData" in stored:
            compared += 1
            assert np.array_equal(dataset.pixel_array, stored.pixel_array)
    assert compared > 5
    reference = Resource.of(clones.search_for_instances(limit=1)[0])
    with answered(406):
        list(clones.iter_instances(reference, media_types=(("application/dicom", "1.2.840.10008.1.2.4.107"),)))
    with pytest.raises(ValueError, match="image/png"):
        clones.iter_instances(reference, media_types=("image/png",))


# Metadata and bulk data ---------------------------------------------------------------------------------------------


def bulk_uris(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["BulkDataURI"]] if "BulkDataURI" in value else []
        return own + [uri for item in value.values() for uri in bulk_uris(item)]
    return [uri for item in value for uri in bulk_uris(item)] if isinstance(value, list) else []


def at(dataset: pydicom.Dataset, uri: str) -> Any:
    """The element that a bulk data URI points at."""
    steps = uri.partition("/bulkdata/")[2].split("/")
    for tag, item in zip(steps[::2], steps[1::2], strict=False):
        dataset = dataset[int(tag, 16)].value[int(item) - 1]
    return dataset[int(steps[-1], 16)]


def test_metadata_and_every_bulk_data_uri_in_it(clones: DICOMfileClient) -> None:
    pixels = others = 0
    for row in clones.search_for_instances():
        reference = Resource.of(row)
        (metadata,) = clones.iter_metadata(reference)
        assert first_text(metadata, "SOPInstanceUID") == reference.sop_instance_uid
        assert first_text(metadata, "AvailableTransferSyntaxUID")
        assert not any(tag.startswith("0002") for tag in metadata)
        if first_text(row, "AvailableTransferSyntaxUID") == "1.2.840.10008.1.2.2":
            continue
        dataset = next(clones.iter_instances(reference)).dataset()
        for uri in bulk_uris(metadata):
            parts = [part.content for part in clones.iter_bulkdata_parts(uri)]
            element = at(dataset, uri)
            if element.tag == 0x7FE00010 and dataset.file_meta.TransferSyntaxUID.is_encapsulated:
                frames = int(dataset.get("NumberOfFrames", 1) or 1)
                assert parts == list(generate_frames(element.value, number_of_frames=frames))
                pixels += 1
            else:
                assert parts == [element.value]
                others += 1
    assert pixels > 10
    assert others > 30


def test_elements_that_cannot_be_decoded_are_named_and_the_rest_is_delivered(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = make_bytes(PatientWeight="70", PatientName="Secret^Name", PatientComments="x")
    (folder / "a.dcm").write_bytes(content.replace(b"DS\x02\x0070", b"DS\x02\x00x!"))
    (metadata,) = DICOMfileClient(folder).iter_metadata(REFERENCE)
    assert "00101030" not in metadata
    assert first_text(metadata, "PatientComments") == "x"
    (message,) = [record.getMessage() for record in caplog.records if "incomplete" in record.getMessage()]
    assert "00101030" in message
    assert "x!" not in message
    assert "Secret" not in caplog.text


def test_bulk_data_ranges_and_errors(wheel: DICOMfileClient) -> None:
    dataset = pydicom.dcmread(sample_file("CT_small.dcm"))
    base = Resource(dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID).uri
    uri = f"{wheel.base_url}/{base}/bulkdata/7FE00010"
    whole = dataset.PixelData
    for byte_range, expected in (((0, 9), whole[:10]), ((100, None), whole[100:]), ((5, 10**9), whole[5:])):
        (part,) = wheel.iter_bulkdata_parts(uri, byte_range=byte_range)
        assert (part.content, part.uri) == (expected, uri)
    assert wheel.retrieve_bulkdata(uri, byte_range=(1, 2)) == [whole[1:3]]
    missing = [f"{base}/bulkdata/{place}" for place in ("00101010", "7FE00010/1/00101010", "PixelData")]
    for bad in (*missing, base[:-5] + "/bulkdata/7FE00010"):
        with answered(404):
            list(wheel.iter_bulkdata_parts(bad))
    with answered(416):
        list(wheel.iter_bulkdata_parts(uri, byte_range=(len(whole), None)))
    with pytest.raises(ValueError, match="bulk data URI"):
        wheel.iter_bulkdata_parts("https://elsewhere/studies/1/bulkdata/x")


def test_metadata_of_big_endian_files_is_little_endian(clones: DICOMfileClient) -> None:
    rows = clones.search_for_instances(search_filters={"AvailableTransferSyntaxUID": "1.2.840.10008.1.2.2"})
    assert rows
    for row in rows:
        reference = Resource.of(row)
        (metadata,) = clones.iter_metadata(reference)
        stored = next(clones.iter_instances(reference)).dataset()
        dataset = load_json_dataset(metadata, lambda tag, vr, uri: clones.retrieve_bulkdata(uri)[0])
        dataset.file_meta = copy.deepcopy(stored.file_meta)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.set_original_encoding(False, True)
        if "PixelData" in stored and stored.BitsAllocated <= 16:
            assert np.array_equal(dataset.pixel_array, stored.pixel_array), reference


# Frames -------------------------------------------------------------------------------------------------------------


def test_frames_of_all_samples_agree_with_pydicom(clones: DICOMfileClient) -> None:
    native = encapsulated = 0
    for row in clones.search_for_instances():
        if "00280010" not in row or not str(first_value(row, "NumberOfFrames", 1)).isdigit():
            continue
        reference = Resource.of(row)
        dataset = next(clones.iter_instances(reference)).dataset()
        count = int(first_value(row, "NumberOfFrames", 1))
        if (
            not str(dataset.get_item("NumberOfFrames").value if "NumberOfFrames" in dataset else 1)
            .strip("b' ")
            .isdigit()
        ):
            with pytest.raises(requests.HTTPError, match="NumberOfFrames"):
                list(clones.iter_frames(frames_of(reference, 1)))
            continue
        frames = list(clones.iter_frames(frames_of(reference, *range(1, count + 1))))
        assert [frame.reference.frames for frame in frames] == [(number,) for number in range(1, count + 1)]
        contents = [frame.content or b"" for frame in frames]
        syntax = dataset.file_meta.TransferSyntaxUID
        if syntax.is_encapsulated:
            encapsulated += 1
            assert contents == list(generate_frames(dataset.PixelData, number_of_frames=count))
            assert frames[0].transfer_syntax_uid == syntax
            assert frames[0].media_type.startswith("image/")
            continue
        native += 1
        assert frames[0].media_type == "application/octet-stream"
        if syntax != pydicom.uid.ExplicitVRBigEndian and dataset.BitsAllocated > 1:
            halved = dataset.PhotometricInterpretation == "YBR_FULL_422"
            samples_each = 2 if halved else dataset.get("SamplesPerPixel", 1)
            length = count * dataset.Rows * dataset.Columns * samples_each * dataset.BitsAllocated // 8
            # Without the padding that follows the last frame.
            assert b"".join(contents) == dataset.PixelData[:length]
        elif dataset.BitsAllocated == 1:
            packed = np.packbits(dataset.pixel_array.reshape(count, -1), axis=1, bitorder="little")
            assert b"".join(contents) == packed.tobytes()
        elif dataset.get("PlanarConfiguration", 0) == 0:
            little = dataset.pixel_array.astype(dataset.pixel_array.dtype.newbyteorder("<"))
            assert b"".join(contents) == little.tobytes()
    assert native > 20
    assert encapsulated > 20


def test_frames_come_in_the_order_asked_for(wheel: DICOMfileClient) -> None:
    dataset = pydicom.dcmread(sample_file("examples_ybr_color.dcm"))
    uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
    reference = Resource(*uids)
    stored = list(generate_frames(dataset.PixelData, number_of_frames=30))
    found = [frame.content for frame in wheel.iter_frames(frames_of(reference, 30, 2, 2, 1))]
    assert found == [stored[29], stored[1], stored[1], stored[0]]
    assert wheel.retrieve_instance_frames(*uids, [3], media_types=("image/jpeg",)) == [stored[2]]
    with pytest.raises(requests.HTTPError, match="frame 31"):
        list(wheel.iter_frames(frames_of(reference, 1, 31)))
    with answered(406):
        list(wheel.iter_frames(frames_of(reference, 1), media_types=("image/jxl",)))


def test_octets_without_a_star_are_decoded_pixels(folder: Path) -> None:
    content = sample_file("SC_rgb_rle_2frame.dcm").read_bytes()
    (folder / "a.dcm").write_bytes(content)
    dataset = pydicom.dcmread(io.BytesIO(content))
    planes = dataset.pixel_array
    client = DICOMfileClient(folder)
    reference = frames_of(Instance.from_bytes(content).reference, 2, 1)
    frames = list(client.iter_frames(reference, media_types=("application/octet-stream",)))
    assert [frame.transfer_syntax_uid for frame in frames] == ["1.2.840.10008.1.2.1"] * 2
    for frame, plane in zip(frames, [planes[1], planes[0]], strict=True):
        got = np.frombuffer(frame.content or b"", planes.dtype)
        if dataset.get("PlanarConfiguration") == 1:
            got = got.reshape(3, *plane.shape[:2]).transpose(1, 2, 0)
        assert np.array_equal(got.reshape(plane.shape), plane)


def test_an_instance_without_pixels_has_no_frames(one: DICOMfileClient) -> None:
    with answered(404, "no pixel data"):
        list(one.iter_frames(frames_of(REFERENCE, 1)))


def multi_frame(frames: list[bytes], how: str) -> bytes:
    """A file of compressed frames, with a basic, an extended, or no offset table, in one or two fragments a frame."""
    dataset = make_dataset(**image(np.zeros((16, 16), np.uint8)), NumberOfFrames=len(frames))
    if how == "extended":
        content, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    else:
        content = encapsulate(frames, fragments_per_frame=2 if "2" in how else 1, has_bot=how.startswith("basic"))
    set_compressed(dataset, RLELossless if how == "rle" else JPEGBaseline8Bit, content)
    return saved(dataset)


@pytest.mark.parametrize("how", ["basic", "basic2", "extended", "none", "none2", "rle"])
@pytest.mark.parametrize("remote", [False, True])
def test_encapsulated_frames_are_located(how: str, remote: bool, folder: Path) -> None:
    start = b"\xff\xd8\xff\xe0"
    frames = [start + os.urandom(500 + 2 * number).replace(b"\xff", b"\xfe") for number in range(40)]
    url = f"memory://frames-{how}" if remote else str(folder)
    folder_of(url).publish("m.dcm", multi_frame(frames, how), replace=True)
    client = DICOMfileClient(url)
    for number in (40, 1, 17, 18):
        (frame,) = client.iter_frames(frames_of(REFERENCE, number))
        assert frame.content is not None
        assert frame.content.rstrip(b"\0") == frames[number - 1].rstrip(b"\0")
    if how.startswith("none"):
        file = client._files(REFERENCE)[0]
        assert client._current().fragments(file.id) is not None


def test_one_frame_of_a_large_remote_file_costs_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.arange(256 * 256, dtype="<u2").reshape(256, 256)
    content = make_bytes(**image(np.stack([pixels + number for number in range(64)])))
    folder_of("memory://ranges").publish("big.dcm", content, replace=True)
    client = DICOMfileClient("memory://ranges")
    assert client.search_for_studies()
    read: list[int] = []
    original = RangeFile.readinto

    def counting(self: RangeFile, buffer: Any) -> int:
        read.append(original(self, buffer))
        return read[-1]

    monkeypatch.setattr(RangeFile, "readinto", counting)
    (frame,) = client.iter_frames(frames_of(REFERENCE, 33))
    assert frame.content == (pixels + 32).tobytes()
    assert sum(read) <= len(frame.content) + 256 * 1024


def test_bits_that_do_not_start_on_a_byte(folder: Path, put: Put) -> None:
    planes = np.random.default_rng(1).integers(0, 2, (5, 3, 3), dtype=np.uint8)
    packed = np.packbits(planes.reshape(-1), bitorder="little").tobytes()
    bits = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "PixelData": packed + b"\0" * (len(packed) % 2)}
    put("bits.dcm", **image(planes, **bits))
    client = DICOMfileClient(folder)
    for number, frame in enumerate(client.iter_frames(frames_of(REFERENCE, 1, 2, 3, 4, 5))):
        assert frame.content == np.packbits(planes[number].reshape(-1), bitorder="little").tobytes()


def patched(path: Path, old: bytes, new: bytes) -> None:
    """Writes other bytes into a file."""
    content = path.read_bytes()
    assert content.count(old) == 1
    assert len(new) == len(old)
    path.write_bytes(content.replace(old, new))


SHIFTED = {
    "zeros": lambda offsets: [0 for _ in offsets],
    "one frame on": lambda offsets: [*offsets[1:], offsets[-1] + offsets[1]],
    "one frame on from the second": lambda offsets: [0, *offsets[2:], offsets[-1] + offsets[1]],
    "without the items": lambda offsets: [offset // 512 * 504 for offset in offsets],
    "from elsewhere": lambda offsets: [offset + 1 for offset in offsets],
    "backwards": lambda offsets: offsets[::-1],
    "beyond the end": lambda offsets: [*offsets[:-1], 1 << 31],
}


@pytest.mark.parametrize("shift", SHIFTED.values(), ids=SHIFTED)
@pytest.mark.parametrize("how", ["basic", "extended", "basic2"])
@pytest.mark.parametrize("count", [3, 40])
def test_a_wrong_offset_table_gives_the_right_frames_or_none(
    shift: Callable[[list[int]], list[int]], how: str, count: int, folder: Path
) -> None:
    size = 1008 if how == "basic2" else 504
    frames = [bytes([number]) * size for number in range(1, count + 1)]
    path = folder / "m.dcm"
    path.write_bytes(multi_frame(frames, how))
    code = "Q" if how == "extended" else "I"
    offsets = [(1024 if how == "basic2" else 512) * number for number in range(count)]
    table, wrong = (struct.pack(f"<{count}{code}", *numbers) for numbers in (offsets, shift(offsets)))
    patched(path, table, wrong)
    client = DICOMfileClient(folder)
    if how == "basic2":
        with answered(404, f"{2 * count} fragments cannot be divided into {count} frames"):
            list(client.iter_frames(frames_of(REFERENCE, 2)))
    else:
        for number in (1, 2, count - 1, count):
            (frame,) = client.iter_frames(frames_of(REFERENCE, number))
            assert frame.content == frames[number - 1]
    # The file is as good as before.
    (instance,) = client.iter_instances(REFERENCE)
    assert instance.content == path.read_bytes()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("number", "lawful"),
    [
        ("-3", False), ("many", False), ("2.5", False), ("1e30", False), ("nan", False), ("[]", False),
        ("9999999", True), ("1000000", True), ("0", True), ("", True),
    ],
)  # fmt: skip
def test_what_is_no_number_of_frames_is_no_frame(number: str, lawful: bool, compressed: bool, folder: Path) -> None:
    pixels = np.zeros((3, 16, 16), np.uint8)
    dataset = make_dataset(**image(pixels, NumberOfFrames=1234567))
    if compressed:
        set_compressed(dataset, JPEGBaseline8Bit, encapsulate([plane.tobytes() for plane in pixels]))
    (folder / "m.dcm").write_bytes(saved(dataset))
    patched(folder / "m.dcm", b"1234567 ", number.encode().ljust(8))
    client = DICOMfileClient(folder)
    with answered(404) as caught:
        list(client.iter_frames(frames_of(REFERENCE, *([2] if number in ("0", "") else [4, 1]))))
    assert lawful or "NumberOfFrames" in str(caught.value)
    if compressed:
        return
    with beam.Pipeline(runner="FnApiRunner") as p:
        found = p | beam.Create([REFERENCE]) | RetrieveFrames(str(folder), failures="collect")
        lost = found.failures | beam.combiners.Count.Globally()
        assert_that(lost, equal_to([0 if number in ("0", "") else 1]))


VIDEOS = [f"1.2.840.10008.1.2.4.{end}" for end in ("100", "101.1", "102", "103", "104.1", "105", "106", "107", "108")]


@pytest.mark.parametrize("syntax", VIDEOS)
def test_a_video_is_one_stream(syntax: str, folder: Path, serve: Callable[..., Any]) -> None:
    pieces = [os.urandom(1000), os.urandom(2), os.urandom(300)]
    stream = b"".join(pieces)
    dataset = make_dataset(**image(np.zeros((16, 16), np.uint8)), NumberOfFrames=250)
    set_compressed(dataset, syntax, encapsulate(pieces))
    (folder / "m.dcm").write_bytes(saved(dataset))
    kind = "video/mpeg" if syntax.partition(".1.2.4.")[2].startswith(("100", "101")) else "video/mp4"
    for client in (DICOMfileClient(folder), Endpoint(serve(folder).url).connect()):
        with client:
            (row,) = client.iter_metadata(REFERENCE)
            uri = row["7FE00010"]["BulkDataURI"]
            (part,) = client.iter_bulkdata_parts(uri)
            assert part.content == stream
            for first, last in ((0, 0), (990, 1010), (1001, None), (0, 5000)):
                (piece,) = client.iter_bulkdata_parts(uri, byte_range=(first, last))
                assert piece.content == stream[first : None if last is None else last + 1]
            with pytest.raises(requests.HTTPError):
                list(client.iter_bulkdata_parts(uri, byte_range=(1302, None)))
            for media_types in (None, ("application/octet-stream",), ("video/mp4",)):
                with answered(406, "video"):
                    list(client.iter_frames(frames_of(REFERENCE, 1), media_types=media_types))
            if isinstance(client, DICOMfileClient):
                assert part.media_type == kind
            with pytest.raises(requests.HTTPError):
                client.retrieve_rendered(REFERENCE)
            (instance,) = client.iter_instances(REFERENCE)
            assert instance.content == (folder / "m.dcm").read_bytes()
            if isinstance(client, DICOMfileClient):
                assert client.retrieve_instance(*REFERENCE.uids.values(), media_types=(kind,)) == [stream]


def test_a_wrong_offset_table_does_not_decode_another_frame(tmp_path: Path, samples: list[Path]) -> None:
    path = next(path for path in samples if path.name == "SC_rgb_rle_2frame.dcm")
    expected = pydicom.dcmread(path).pixel_array
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate(list(generate_frames(dataset.PixelData, number_of_frames=2)))
    dataset.save_as(tmp_path / "m.dcm")
    second = struct.unpack("<2I", dataset.PixelData[8:16])[1]
    patched(tmp_path / "m.dcm", dataset.PixelData[:16], dataset.PixelData[:8] + struct.pack("<2I", second, second))
    client = DICOMfileClient(tmp_path)
    (instance,) = client.iter_instances(Resource.of(client.search_for_instances()[0]), media_types=[DECODED])
    assert np.array_equal(instance.dataset().pixel_array, expected)
