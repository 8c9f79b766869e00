"""Instances and frames in other transfer syntaxes than the stored one: without loss, or refused with a reason."""

from __future__ import annotations

import importlib.util
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from PIL import Image
from pydicom.pixels import get_decoder

from dicomweb_io.dicom.pixels import (
    ENCODINGS,
    NATIVE,
    TARGETS,
    decoding_plugin,
    media_type_of,
    missing_library,
    safest_plugin,
    to_colour_by_pixel,
    with_one_frame,
)
from dicomweb_io.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN, JPEG_LS_LOSSLESS
from dicomweb_io.elements import Resource
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.testing.samples import clone, sample_file
from tests.unit.files.making import answered, frames_of

# Of each kind of image one: bits, sign, colours by pixel and by plane, frames, odd sizes, encodings.
SAMPLES = (
    "CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm", "image_dfl.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm",
    "ExplVR_BigEnd.dcm", "SC_rgb_rle_16bit_2frame.dcm", "SC_rgb_rle_2frame.dcm", "SC_rgb_small_odd.dcm",
    "SC_rgb_jpeg_lossy_gdcm.dcm", "SC_rgb_dcmtk_+eb+cr.dcm", "SC_ybr_full_422_uncompressed.dcm",
    "GDCMJ2K_TextGBR.dcm", "examples_ybr_color.dcm", "liver_1frame.dcm", "rtdose_1frame.dcm", "rtplan.dcm",
    "test-SR.dcm",
)  # fmt: skip
REFUSALS = re.compile(
    "is installed|cannot hold|is not valid for|Invalid 'bits_s|needs 32 rows|doesn't match the expected|"
    "it has no pixel data|pyjpegls: Encoding error"
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> DICOMfileClient:
    folder = tmp_path_factory.mktemp("archive")
    for name in SAMPLES:
        content = sample_file(name).read_bytes()
        (folder / name).write_bytes(clone(content, name, sop_instance_uid=f"1.2.{SAMPLES.index(name) + 1}"))
    return DICOMfileClient(folder)


Images = list[tuple[Resource, pydicom.Dataset]]


@pytest.fixture(scope="module")
def images(archive: DICOMfileClient) -> Images:
    """All images that the installed libraries decode, as they are stored."""
    found = []
    for row in archive.search_for_instances():
        reference = Resource.of(row)
        dataset = next(archive.iter_instances(reference)).dataset()
        if "PixelData" not in dataset:
            continue
        try:
            pixels(dataset)
        except RuntimeError:
            # pydicom's word for "no installed decoder can": with the extra images they all are decoded.
            assert dataset.file_meta.TransferSyntaxUID not in NATIVE
            continue
        found.append((reference, dataset))
    assert len(found) >= (12 if missing_library(JPEG_LS_LOSSLESS) else len(SAMPLES) - 2)
    return found


def pixels(dataset: pydicom.Dataset) -> Any:
    dataset.pixel_array_options(decoding_plugin=decoding_plugin(dataset.file_meta.TransferSyntaxUID))
    return dataset.pixel_array


def check_refusals(errors: list[requests.HTTPError]) -> None:
    for error in errors:
        assert error.response is not None
        assert error.response.status_code == 406
        assert REFUSALS.search(str(error)), str(error)


@pytest.mark.parametrize("wanted", TARGETS)
def test_instances_keep_their_pixels_and_uids(wanted: str, archive: DICOMfileClient, images: Images) -> None:
    compared = 0
    refused: list[requests.HTTPError] = []
    for reference, stored in images:
        try:
            (changed,) = archive.iter_instances(reference, media_types=[("application/dicom", wanted)])
        except requests.HTTPError as error:
            refused.append(error)
            continue
        compared += 1
        dataset = changed.dataset()
        assert changed.transfer_syntax_uid == dataset.file_meta.TransferSyntaxUID == wanted
        assert dataset.SOPInstanceUID == stored.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
        assert np.array_equal(pixels(dataset), pixels(stored)), (reference, wanted)
    assert not refused or wanted in ENCODINGS, refused
    check_refusals(refused)
    if wanted in ENCODINGS and missing_library(wanted) is not None:
        assert compared <= 2  # Only what is stored so already.
    else:
        assert compared >= 6


@pytest.mark.parametrize("wanted", ENCODINGS)
def test_frames_are_encoded_anew_one_by_one(wanted: str, archive: DICOMfileClient, images: Images) -> None:
    compared = 0
    refused: list[requests.HTTPError] = []
    for reference, stored in images:
        last = int(stored.get("NumberOfFrames") or 1)
        frame = frames_of(reference, last)
        try:
            (encoded,) = archive.iter_frames(frame, media_types=[(media_type_of(wanted), wanted)])
        except requests.HTTPError as error:
            refused.append(error)
            continue
        assert (encoded.transfer_syntax_uid, encoded.media_type) == (wanted, media_type_of(wanted))
        (plain,) = archive.iter_frames(frame, media_types=["application/octet-stream"])
        if stored.file_meta.TransferSyntaxUID == wanted:
            continue
        compared += 1
        image = with_one_frame(stored, encoded.content or b"", wanted)
        properties: dict[str, Any]
        octets, properties = get_decoder(wanted).as_buffer(
            image, index=0, raw=True, decoding_plugin=decoding_plugin(wanted)
        )
        wide = with_one_frame(stored, bytes(octets), EXPLICIT_VR_LITTLE_ENDIAN)
        wide.PlanarConfiguration = properties.get("planar_configuration", 0)
        wide.SamplesPerPixel = properties["samples_per_pixel"]
        to_colour_by_pixel(wide)
        expected = with_one_frame(stored, plain.content or b"", EXPLICIT_VR_LITTLE_ENDIAN)
        if stored.file_meta.TransferSyntaxUID in NATIVE:
            to_colour_by_pixel(expected)
        assert wide.PixelData == expected.PixelData, (reference, wanted)
    check_refusals(refused)
    assert compared >= 6 or missing_library(wanted) is not None


def test_the_first_accepted_type_that_can_be_given_wins(archive: DICOMfileClient, images: Images) -> None:
    reference = next(reference for reference, stored in images if stored.Modality == "CT")
    explicit = ("application/dicom", EXPLICIT_VR_LITTLE_ENDIAN)
    for first in ENCODINGS:
        (instance,) = archive.iter_instances(reference, media_types=[("application/dicom", first), explicit])
        available = missing_library(first) is None
        assert instance.transfer_syntax_uid == (first if available else EXPLICIT_VR_LITTLE_ENDIAN)
        (frame,) = archive.iter_frames(
            frames_of(reference, 1),
            media_types=[(media_type_of(first), first), "application/octet-stream"],
        )
        assert frame.media_type == (media_type_of(first) if available else "application/octet-stream")


def test_lossy_and_unknown_encodings_are_refused(archive: DICOMfileClient, images: Images) -> None:
    reference = next(reference for reference, stored in images if stored.Modality == "CT")
    for syntax in ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91", "1.2.3.4"):
        with answered(406, "is not available in"):
            list(archive.iter_instances(reference, media_types=[("application/dicom", syntax)]))


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "JPGExtended.dcm"])
def test_jpeg_images_of_12_bits(name: str, folder: Path) -> None:
    (folder / name).write_bytes(clone(sample_file(name).read_bytes(), 0, sop_instance_uid="1.2.3"))
    client = DICOMfileClient(folder)
    reference = Resource.of(client.search_for_instances()[0])
    frame = frames_of(reference, 1)
    explicit = [("application/dicom", EXPLICIT_VR_LITTLE_ENDIAN)]
    if importlib.util.find_spec("imagecodecs") is None:
        for work in (
            lambda: list(client.iter_instances(reference, media_types=explicit)),
            lambda: list(client.iter_frames(frame, media_types=["application/octet-stream"])),
            lambda: client.retrieve_rendered(reference),
        ):
            with pytest.raises(requests.HTTPError, match=re.escape("pip install dicomweb_io[htj2k]")):
                work()
        return
    (instance,) = client.iter_instances(reference, media_types=explicit)
    plain = pixels(instance.dataset())
    # Values that pydicom's own tests have from another decoder.
    assert (plain.dtype, plain.shape, plain[420, 140], plain[230, 120]) == (np.uint16, (1024, 256), 244, 95)
    (octets,) = client.iter_frames(frame, media_types=["application/octet-stream"])
    assert octets.content == plain.tobytes()
    rendered = client.retrieve_rendered(reference, media_types=["image/png"], params={"window": "128,256"})
    shown = np.asarray(Image.open(io.BytesIO(rendered.content)))
    assert np.abs(shown.astype(int) - np.clip(plain, 0, 255)).max() <= 1


def test_gdcm_is_the_last_choice() -> None:
    assert safest_plugin(("gdcm", "pillow", "pylibjpeg")) == "pylibjpeg"
    assert safest_plugin(("gdcm", "pyjpegls")) == "pyjpegls"
    assert safest_plugin(("gdcm", "somebody's")) == "somebody's"
    assert safest_plugin(("gdcm",)) == "gdcm"
    assert safest_plugin(()) == ""
    assert decoding_plugin("1.2.3.4") == ""


def test_planes_become_pixels(tmp_path: Path) -> None:
    dataset = pydicom.Dataset()
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.BitsAllocated = 2, 3, 3, 16
    dataset.PlanarConfiguration, dataset.NumberOfFrames = 1, 2
    values = np.arange(36, dtype="<u2").reshape(2, 3, 2, 3)
    dataset.PixelData = values.tobytes()
    to_colour_by_pixel(dataset)
    assert dataset.PixelData == values.transpose(0, 2, 3, 1).tobytes()
    assert dataset.PlanarConfiguration == 0
