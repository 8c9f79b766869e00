"""Comparing copies at the level that an archive keeps."""

from __future__ import annotations

import io
import struct

import pydicom
import pytest
from pydicom.data import get_testdata_file

from dicomweb_io.compare import difference
from dicomweb_io.elements import Instance


def sample(name):
    with open(get_testdata_file(name), "rb") as file:
        return file.read()


def changed(content, **values):
    dataset = pydicom.dcmread(io.BytesIO(content))
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def ct():
    return sample("CT_small.dcm")


@pytest.mark.parametrize("level", ["file", "dataset", "pixels"])
def test_equal_copies(ct, level, tmp_path):
    (tmp_path / "x.dcm").write_bytes(ct)
    assert difference(Instance.from_bytes(ct), Instance.from_path(tmp_path / "x.dcm"), level) is None


def test_a_zeroed_preamble_is_another_file_with_an_equal_dataset(ct):
    one, other = Instance.from_bytes(ct), Instance.from_bytes(b"\x01" * 128 + ct[128:])
    assert "other bytes" in difference(one, other, "file")
    assert difference(one, other, "dataset") is None


def test_another_attribute_is_another_dataset_with_equal_pixels(ct):
    one, other = Instance.from_bytes(ct), Instance.from_bytes(changed(ct, PatientID="someone else"))
    assert "bytes" in difference(one, other, "file")
    assert "other bytes" in difference(one, other, "dataset")
    assert difference(one, other, "pixels") is None


def test_other_pixels(ct):
    pixels = bytearray(pydicom.dcmread(io.BytesIO(ct)).PixelData)
    pixels[100] ^= 0xFF
    other = Instance.from_bytes(changed(ct, PixelData=bytes(pixels)))
    assert "other values" in difference(Instance.from_bytes(ct), other, "pixels")
    smaller = changed(ct, Rows=64, PixelData=bytes(pixels[: len(pixels) // 2]))
    assert "shapes" in difference(Instance.from_bytes(ct), Instance.from_bytes(smaller), "pixels")


def test_lossless_encodings_have_equal_pixels():
    one, other = Instance.from_bytes(sample("MR_small.dcm")), Instance.from_bytes(sample("MR_small_RLE.dcm"))
    assert "transfer syntaxes" in difference(one, other, "dataset")
    assert difference(one, other, "pixels") is None


@pytest.mark.parametrize("table", [(0, 0, 0), (0, 8, 16), (1 << 20, 2 << 20, 3 << 20)])
def test_a_wrong_offset_table_makes_no_other_pixels(table):
    plain = pydicom.dcmread(io.BytesIO(sample("MR_small.dcm")))
    frame = plain.PixelData
    frames = [frame, bytes(len(frame)), frame[::-1]]
    plain.NumberOfFrames, plain.PixelData = 3, b"".join(frames)
    native = io.BytesIO()
    plain.save_as(native)
    plain.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
    content = bytearray(plain.PixelData)
    struct.pack_into("<3I", content, 8, *table)
    plain.PixelData = bytes(content)
    compressed = io.BytesIO()
    plain.save_as(compressed)
    one, other = Instance.from_bytes(native.getvalue()), Instance.from_bytes(compressed.getvalue())
    assert difference(one, other, "pixels") is None
    assert difference(other, one, "pixels") is None


def test_objects_without_pixels_have_none_that_differ():
    content = sample("reportsi.dcm")
    other = Instance.from_bytes(changed(content, PatientID="x"))
    assert difference(Instance.from_bytes(content), other, "pixels") is None


def test_pixels_that_cannot_be_decoded_are_an_error_not_an_answer(ct):
    broken = bytearray(sample("MR_small_RLE.dcm"))
    broken[-200:-20] = b"\xff" * 180
    one, other = Instance.from_bytes(sample("MR_small.dcm")), Instance.from_bytes(bytes(broken))
    try:
        answer = difference(one, other, "pixels")
    except ValueError as error:
        answer = str(error)
    assert answer is not None


def test_other_uids_and_no_level(ct):
    other = Instance.from_bytes(changed(ct, SOPInstanceUID="1.2.3"))
    assert difference(Instance.from_bytes(ct), other, "pixels") == "the UIDs differ"
    with pytest.raises(ValueError, match="'none'"):
        difference(Instance.from_bytes(ct), Instance.from_bytes(ct), "none")
