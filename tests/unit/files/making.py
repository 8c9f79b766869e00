"""Small real DICOM files with chosen attributes, images of several frames, and what tests of folders ask about them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from dicomweb_io.elements import Resource

Put = Callable[..., Path]
REFERENCE = Resource("1.2.1", "1.2.1.1", "1.2.1.1.1")


def saved(dataset: Dataset) -> bytes:
    """A dataset as a file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def make_dataset(study: str = "1.2.1", series: str = "1.2.1.1", sop: str = "1.2.1.1.1", **attributes: Any) -> Dataset:
    """A complete small object, without pixels unless they are given."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = study, series, sop
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def make_bytes(*uids: str, **attributes: Any) -> bytes:
    """Such an object as a file."""
    return saved(make_dataset(*uids, **attributes))


def image(pixels: np.ndarray, **attributes: Any) -> dict[str, Any]:
    """The attributes of an image, of several frames if `pixels` has three dimensions."""
    frames = pixels.shape[0] if pixels.ndim == 3 and "SamplesPerPixel" not in attributes else 1
    rows, columns = pixels.shape[1:3] if frames > 1 else pixels.shape[:2]
    bits = pixels.dtype.itemsize * 8
    result = {
        "Rows": rows, "Columns": columns, "SamplesPerPixel": 1, "BitsAllocated": bits, "BitsStored": bits,
        "HighBit": bits - 1, "PixelRepresentation": 0, "PhotometricInterpretation": "MONOCHROME2",
        "PixelData": pixels.tobytes() + b"\0" * (pixels.nbytes % 2),
    }  # fmt: skip
    if frames > 1:
        result["NumberOfFrames"] = frames
    return {**result, **attributes}


def set_compressed(dataset: Dataset, syntax: str, encapsulated: bytes) -> None:
    """Gives an object encapsulated pixels."""
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulated
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


def frames_of(reference: Resource, *numbers: int) -> Resource:
    return Resource(reference.study_instance_uid, reference.series_instance_uid, reference.sop_instance_uid, numbers)


@contextmanager
def answered(status: int, message: str | None = None) -> Iterator[pytest.ExceptionInfo[requests.HTTPError]]:
    """What is done within raises an error with that status and, if one is given, that message."""
    with pytest.raises(requests.HTTPError, match=message) as caught:
        yield caught
    assert caught.value.response is not None
    assert caught.value.response.status_code == status
