"""Sample data: what pydicom carries, clones that differ in UIDs only, synthetic instances."""

from __future__ import annotations

import io

import pydicom
import pytest
from hypothesis import given, settings, strategies as st

from dicomweb_io.testing import samples

UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def read(content: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(content), force=True)


def test_pydicom_carries_the_files_that_tests_count_on():
    assert len(samples.sample_files()) == 176
    assert len(samples.charset_files()) == 17
    assert samples.sample_file("chrGreek.dcm").parent.name == "charset_files"
    with pytest.raises(FileNotFoundError, match="nothing"):
        samples.sample_file("nothing.dcm")


def test_copies_keep_names_and_bytes(tmp_path):
    copies = samples.copy_samples(tmp_path / "new" / "folder")
    root = samples.sample_directory()
    assert len(copies) == 176
    for copy in copies:
        assert copy.read_bytes() == (root / copy.relative_to(tmp_path / "new" / "folder")).read_bytes()


CLONEABLE = [
    "CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "examples_ybr_color.dcm",
    "image_dfl.dcm", "rtstruct.dcm", "ExplVR_LitEndNoMeta.dcm", "ExplVR_BigEndNoMeta.dcm", "waveform_ecg.dcm",
    "chrGreek.dcm",
]  # fmt: skip


@pytest.mark.parametrize("name", CLONEABLE)
def test_a_clone_differs_in_its_uids_only(name):
    content = samples.sample_file(name).read_bytes()
    cloned = samples.clone(content, "seed")
    old, new = read(content), read(cloned)
    for keyword in UIDS:
        assert old[keyword].value != new[keyword].value
    if "MediaStorageSOPInstanceUID" in old.file_meta:
        assert new.file_meta.MediaStorageSOPInstanceUID == new.SOPInstanceUID
    names = ("study_instance_uid", "series_instance_uid", "sop_instance_uid")
    back = samples.clone(cloned, **{name: old[keyword].value for name, keyword in zip(names, UIDS, strict=True)})
    if name == "image_dfl.dcm":
        assert read(back) == old, "the dataset is deflated anew, which need not give the same bytes"
    else:
        assert back == content


def test_clones_with_one_seed_stay_together():
    first, second = (
        samples.sample_file(f"dicomdirtests/TINY_ALPHA/PT000000/ST000000/SE000000/IM00000{n}") for n in "01"
    )
    one, other = (read(samples.clone(path.read_bytes(), 7)) for path in (first, second))
    assert one.StudyInstanceUID == other.StudyInstanceUID
    assert one.SeriesInstanceUID == other.SeriesInstanceUID
    assert one.SOPInstanceUID != other.SOPInstanceUID
    assert read(samples.clone(first.read_bytes(), 8)).StudyInstanceUID != one.StudyInstanceUID
    assert samples.clone(first.read_bytes(), 7) == samples.clone(first.read_bytes(), 7)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 10**18), min_size=3, max_size=3), st.integers(0, 8))
def test_clones_take_uids_of_any_length(numbers, extra):
    uids = ["1." + ".".join(["2"] * extra) + ("." if extra else "") + str(number) for number in numbers]
    content = samples.sample_file("MR_small.dcm").read_bytes()
    made = read(samples.Template(content).make(*uids))
    assert [made[keyword].value for keyword in UIDS] == uids
    assert made.pixel_array.shape == (64, 64)


@pytest.mark.parametrize("name", ["README.txt", "UN_sequence.dcm", "dicomdirtests/DICOMDIR"])
def test_what_cannot_be_cloned_is_refused(name):
    with pytest.raises(ValueError, match="cannot be cloned"):
        samples.clone(samples.sample_file(name).read_bytes())


@pytest.mark.parametrize("size", [2, 3, 1000, 5000, 512 * 1024, 512 * 1024 + 1, 3_000_000])
def test_synthetic_instances_are_valid_images(tmp_path, size):
    path = samples.synthetic_instance(size, tmp_path / "one.dcm", seed=1)
    image = pydicom.dcmread(path)
    assert len(image.PixelData) >= size
    assert image.pixel_array.size * 2 == len(image.PixelData)
    assert image.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    again = samples.synthetic_instance(size, tmp_path / "two.dcm", seed=1)
    assert again.read_bytes() == path.read_bytes()
    if size > 2:
        other = samples.synthetic_instance(size, tmp_path / "three.dcm", seed=2)
        assert pydicom.dcmread(other).PixelData != image.PixelData


@pytest.mark.parametrize("size", [0, 1, -5, 1 << 32])
def test_impossible_sizes_are_refused(tmp_path, size):
    with pytest.raises(ValueError, match="size must be"):
        samples.synthetic_instance(size, tmp_path / "one.dcm")


def test_frames_of_a_synthetic_instance_differ(tmp_path):
    image = pydicom.dcmread(samples.synthetic_instance(2_000_000, tmp_path / "one.dcm"))
    frames = image.pixel_array
    assert len(frames) == 4
    assert len({frame.tobytes() for frame in frames}) == 4


def test_make_study_builds_the_tree(tmp_path):
    paths = samples.make_study(tmp_path / "a", studies=2, series=3, instances=4, size=100, seed=5)
    assert len(paths) == 24
    found = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    assert len({image.StudyInstanceUID for image in found}) == 2
    assert len({image.SeriesInstanceUID for image in found}) == 6
    assert len({image.SOPInstanceUID for image in found}) == 24
    assert [int(image.InstanceNumber) for image in found[:4]] == [1, 2, 3, 4]
    template = samples.sample_file("dicomdirtests/TINY_ALPHA/PT000000/ST000000/SE000000/IM000000").read_bytes()
    cloned = samples.make_study(tmp_path / "b", studies=1, series=2, instances=5, template=template)
    assert len({read(path.read_bytes()).SOPInstanceUID for path in cloned}) == 10
