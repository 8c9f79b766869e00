"""Rendered resources of folders: images, moving images, reports, documents."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from PIL import Image, ImageCms
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicomweb_io.dicom.rendering import RenderingOptions
from dicomweb_io.elements import Instance, RenderedImage, Resource
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.files.local import folder_of
from dicomweb_io.testing.samples import sample_file
from tests.unit.files.making import REFERENCE, Put, answered, frames_of, image

Render = Callable[..., np.ndarray]
RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 64


def shown(rendered: RenderedImage) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(rendered.content)))


@pytest.fixture
def render(folder: Path, put: Put) -> Render:
    """Writes an image and gives what is rendered of it as PNG."""

    def work(pixels: np.ndarray, params: dict[str, Any] | None = None, **attributes: Any) -> np.ndarray:
        put("a.dcm", **image(pixels, **attributes))
        with DICOMfileClient(folder, in_memory=True) as client:
            rendered = client.retrieve_rendered(REFERENCE, media_types=("image/png",), params=params)
        assert rendered.media_type == "image/png"
        return shown(rendered)

    return work


def test_without_a_window_the_whole_range_is_shown(render: Render) -> None:
    expected = np.round(RAMP / RAMP.max() * 255)
    assert np.abs(render(RAMP).astype(int) - expected).max() <= 1
    inverse = render(RAMP, PhotometricInterpretation="MONOCHROME1")
    assert np.abs(inverse.astype(int) - (255 - expected)).max() <= 1
    assert np.array_equal(render(RAMP, PresentationLUTShape="INVERSE"), inverse)


def test_eight_bit_images_are_shown_as_they_are(render: Render) -> None:
    pixels = np.arange(100, 164, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(render(pixels), pixels)


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize(
    ("shape", "function"), [("linear", "LINEAR"), ("linear-exact", "LINEAR_EXACT"), ("sigmoid", "SIGMOID")]
)
def test_windows(asked: bool, shape: str, function: str, render: Render) -> None:
    center, width = 1000.0, 500.0
    rescaled = RAMP.astype(float) * 2 - 1000
    if shape == "linear":
        expected = np.clip((rescaled - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    elif shape == "linear-exact":
        expected = np.clip((rescaled - center) / width + 0.5, 0, 1)
    else:
        expected = 1 / (1 + np.exp(-4 * (rescaled - center) / width))
    attributes: dict[str, Any] = {"RescaleSlope": 2, "RescaleIntercept": -1000, "Modality": "CT"}
    params = None
    if asked:
        params = {"window": [center, width, shape]}
        attributes.update(WindowCenter=1, WindowWidth=2)
    else:
        attributes.update(WindowCenter=[center, 7], WindowWidth=[width, 9], VOILUTFunction=function)
    assert np.abs(render(RAMP, params, **attributes).astype(float) - expected * 255).max() <= 0.51


def test_a_voi_lut_is_applied(render: Render) -> None:
    lut = Dataset()
    lut.LUTDescriptor = [64, 0, 8]
    lut["LUTDescriptor"].VR = "US"
    lut.LUTData = [255 - 4 * index for index in range(64)]
    lut["LUTData"].VR = "US"
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8)
    found = render(pixels, VOILUTSequence=Sequence([lut]))
    assert np.array_equal(found, 255 - 4 * pixels)


def test_colour_images(render: Render) -> None:
    pixels = np.random.default_rng(3).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    options = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
    assert np.array_equal(render(pixels, PlanarConfiguration=0, **options), pixels)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    found = render(pixels, PlanarConfiguration=1, **options, PixelData=planes.tobytes())
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422"])
def test_luminance_and_chrominance_become_red_green_and_blue(photometric: str, render: Render) -> None:
    generator = np.random.default_rng(5)
    y = generator.integers(0, 256, (4, 6), dtype=np.uint8)
    # Chrominance is the same for two neighbours, so that half of it says all.
    cb, cr = (generator.integers(0, 256, (4, 3), dtype=np.uint8).repeat(2, axis=1) for _ in range(2))
    pixels = np.stack([y, cb, cr], axis=-1)
    stored = pixels
    if photometric == "YBR_FULL_422":
        stored = np.stack([y[:, ::2], y[:, 1::2], cb[:, ::2], cr[:, ::2]], axis=-1)
    found = render(
        pixels, SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation=photometric,
        PixelData=stored.tobytes(),
    )  # fmt: skip
    # PS3.3 C.7.6.3.1.2
    y, cb, cr = y.astype(float), cb - 128.0, cr - 128.0
    expected = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    assert np.abs(found - np.clip(expected, 0, 255)).max() <= 1


def test_icc_profiles(render: Render, folder: Path) -> None:
    # A profile of a device whose red is blue: that of sRGB with the names of its primaries exchanged.
    standard = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = standard.replace(b"rXYZ", b"swap", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"swap", b"bXYZ", 1)
    pixels = np.full((4, 4, 3), (250, 40, 10), dtype=np.uint8)
    options: dict[str, Any] = {
        "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0,
        "ICCProfile": profile + b"\0" * (len(profile) % 2),
    }  # fmt: skip
    assert np.array_equal(render(pixels, **options), pixels)
    assert np.array_equal(render(pixels, {"iccprofile": "no"}, **options), pixels)
    converted = render(pixels, {"iccprofile": "srgb"}, **options)
    assert np.abs(converted.astype(int) - (10, 40, 250)).max() <= 3
    client = DICOMfileClient(folder, in_memory=True)
    for media_type in ("image/png", "image/jpeg"):
        for wanted, expected in (("yes", profile), ("no", None)):
            rendered = client.retrieve_rendered(REFERENCE, media_types=(media_type,), params={"iccprofile": wanted})
            kept = Image.open(io.BytesIO(rendered.content)).info.get("icc_profile")
            assert (None if kept is None else kept[: len(profile)]) == expected


def test_a_palette(render: Render) -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    colours = np.random.default_rng(4).integers(0, 256, (3, 16), dtype=np.uint16)
    palette: dict[str, Any] = {}
    for index, name in enumerate(("Red", "Green", "Blue")):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [16, 0, 16]
        palette[f"{name}PaletteColorLookupTableData"] = (colours[index] << 8).astype("<u2").tobytes()
    found = render(pixels, PhotometricInterpretation="PALETTE COLOR", **palette)
    assert np.array_equal(found, colours.T[pixels])


def test_viewports(render: Render) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert render(pixels, {"viewport": "16,32"}).shape == (16, 16)
    assert render(pixels, {"viewport": [4, 2]}).shape == (2, 2)
    assert np.array_equal(render(pixels, {"viewport": "3,2,4,5,3,2"}), pixels[5:7, 4:7])
    assert np.array_equal(render(pixels, {"viewport": "3,2,4,5,-3,-2"}), pixels[5:7, 4:7][::-1, ::-1])
    with answered(406):
        render(pixels, {"viewport": "3,2,40,5,3,2"})


def test_formats_and_quality(folder: Path, put: Put) -> None:
    noise = np.random.default_rng(5).integers(0, 255, (64, 64), dtype=np.uint8)
    put("a.dcm", **image(noise))
    client = DICOMfileClient(folder)
    small = client.retrieve_rendered(REFERENCE, params={"quality": 10})
    large = client.retrieve_rendered(REFERENCE, params={"quality": "95"})
    assert small.media_type == large.media_type == "image/jpeg"
    assert len(small.content) < len(large.content)
    for media_type, format_name in (("image/gif", "GIF"), ("image/png", "PNG"), ("image/jp2", "JPEG2000")):
        rendered = client.retrieve_rendered(REFERENCE, media_types=("video/mp4", media_type))
        assert rendered.media_type == media_type
        assert Image.open(io.BytesIO(rendered.content)).format == format_name
    assert client.retrieve_rendered(REFERENCE, media_types=("image/*",)).media_type == "image/jpeg"
    with answered(406):
        client.retrieve_rendered(REFERENCE, media_types=("video/mp4",))
    thumbnail = Image.open(io.BytesIO(client.retrieve_rendered(REFERENCE, thumbnail=True).content))
    assert thumbnail.size == (128, 128)
    study = client.retrieve_rendered(Resource("1.2.1"), media_types=("image/png",))
    assert np.array_equal(shown(study), noise)


def test_multi_frame_images(folder: Path, put: Put) -> None:
    pixels = np.stack([np.full((6, 6), 20 * number, np.uint8) for number in range(5)])
    put("a.dcm", **image(pixels), FrameTime=50, RepresentativeFrameNumber=3)
    client = DICOMfileClient(folder)
    assert shown(client.retrieve_rendered(REFERENCE, media_types=("image/png",))).max() == 40
    assert shown(client.retrieve_rendered(frames_of(REFERENCE, 5), media_types=("image/png",))).max() == 80
    moving = Image.open(io.BytesIO(client.retrieve_rendered(REFERENCE, media_types=("image/gif",)).content))
    assert moving.n_frames == 5
    assert moving.info["duration"] == 50
    some = Image.open(
        io.BytesIO(client.retrieve_rendered(frames_of(REFERENCE, 2, 4), media_types=("image/gif",)).content)
    )
    assert some.n_frames == 2
    for numbers, status in (((1, 2), 406), ((6,), 404)):
        with answered(status):
            client.retrieve_rendered(frames_of(REFERENCE, *numbers), media_types=("image/png",))


def test_images_of_remote_folders(folder: Path, put: Put) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    content = put("a.dcm", **image(pixels)).read_bytes()
    folder_of("memory://rendering").publish("a.dcm", content, replace=True)
    client = DICOMfileClient("memory://rendering")
    assert np.array_equal(shown(client.retrieve_rendered(REFERENCE, media_types=("image/png",))), pixels)
    assert client.retrieve_instance_frames("1.2.1", "1.2.1.1", "1.2.1.1.1", [1]) == [pixels.tobytes()]


def test_windows_of_functional_groups(folder: Path, put: Put) -> None:
    def group(center: float) -> Dataset:
        window, item = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 100
        item.FrameVOILUTSequence = Sequence([window])
        return item

    pixels = np.stack([np.full((4, 4), 100, np.uint16)] * 2)
    put("a.dcm", **image(pixels), PerFrameFunctionalGroupsSequence=Sequence([group(100), group(1000)]))
    client = DICOMfileClient(folder)
    frames = [frames_of(REFERENCE, number) for number in (1, 2)]
    first, second = (shown(client.retrieve_rendered(frame, media_types=("image/png",))) for frame in frames)
    assert abs(int(first[0, 0]) - 128) <= 2
    assert second[0, 0] == 0


def test_annotations_change_the_image(render: Render) -> None:
    pixels = np.zeros((60, 120), np.uint8)
    plain = render(pixels, PatientName="Someone", Modality="CT")
    assert plain.max() == 0
    written = render(pixels, {"annotation": "patient,technique"}, PatientName="Someone", Modality="CT")
    assert written.max() > 200


def test_all_samples_that_pydicom_decodes_are_rendered(samples: list[Path], folder: Path) -> None:
    rendered = 0
    for path in samples:
        try:
            dataset = pydicom.dcmread(path)
            pixels = dataset.pixel_array
        except Exception:  # whatever pydicom cannot decode is not asked for here
            continue
        if pixels.size == 0 or "StudyInstanceUID" not in dataset or "SOPInstanceUID" not in dataset:
            continue
        single = folder / path.stem
        single.mkdir()
        (single / path.name).write_bytes(path.read_bytes())
        with DICOMfileClient(single, in_memory=True) as client:
            rows = client.search_for_instances()
            if not rows:
                continue
            result = client.retrieve_rendered(Resource.of(rows[0]), media_types=("image/png",))
            assert shown(result).shape[:2] == (dataset.Rows, dataset.Columns), path.name
            rendered += 1
    assert rendered > 60


def test_reports_become_html(folder: Path) -> None:
    path = sample_file("reportsi.dcm")
    (folder / "sr.dcm").write_bytes(path.read_bytes())
    client = DICOMfileClient(folder)
    reference = Instance.from_path(path).reference
    rendered = client.retrieve_rendered(reference)
    assert rendered.media_type == "text/html"
    text = rendered.content.decode()
    assert text.startswith("<!DOCTYPE html>")
    assert pydicom.dcmread(path).ConceptNameCodeSequence[0].CodeMeaning in text
    with pytest.raises(requests.HTTPError):
        client.retrieve_rendered(reference, media_types=("image/png",))


def test_html_is_escaped(folder: Path, put: Put) -> None:
    name, text = Dataset(), Dataset()
    name.CodeMeaning = "<script>alert(1)</script>"
    text.ValueType, text.TextValue, text.ConceptNameCodeSequence = "TEXT", "<img src=x>", Sequence([name])
    put("a.dcm", ValueType="CONTAINER", ConceptNameCodeSequence=Sequence([name]), ContentSequence=Sequence([text]))
    html = DICOMfileClient(folder).retrieve_rendered(REFERENCE).content.decode()
    assert "<script>" not in html
    assert "<img" not in html
    assert "&lt;img src=x&gt;" in html


def test_encapsulated_documents_come_as_they_are(folder: Path, put: Put) -> None:
    document = {"EncapsulatedDocument": b"%PDF-1.4 x\0", "EncapsulatedDocumentLength": 10}
    put("a.dcm", **document, MIMETypeOfEncapsulatedDocument="application/pdf")
    rendered = DICOMfileClient(folder).retrieve_rendered(REFERENCE)
    assert (rendered.media_type, rendered.content) == ("application/pdf", b"%PDF-1.4 x")


@pytest.mark.parametrize(
    "params",
    [
        {"window": "a,b"}, {"window": "1,0"}, {"window": "1,2,cubic"}, {"viewport": "1"}, {"viewport": "0,5"},
        {"quality": 0}, {"quality": 101}, {"annotation": "all"}, {"iccprofile": "adobergb"}, {"contrast": "1"},
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - every message differs
        RenderingOptions.of(params)


@pytest.mark.parametrize("wanted", ["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.1"])
def test_lossless_re_encoding(wanted: str, folder: Path, put: Put) -> None:
    pixels = np.random.default_rng(6).integers(0, 4000, (3, 16, 16), dtype=np.uint16)
    put("a.dcm", **image(pixels), PatientName="Müller^Änne")
    client = DICOMfileClient(folder)
    instance = next(client.iter_instances(REFERENCE, media_types=(("application/dicom", wanted),)))
    assert instance.transfer_syntax_uid == wanted
    dataset = instance.dataset()
    assert dataset.file_meta.TransferSyntaxUID == wanted
    assert dataset.SOPInstanceUID == "1.2.1.1.1"
    assert dataset.PatientName == "Müller^Änne"
    assert np.array_equal(dataset.pixel_array, pixels)
