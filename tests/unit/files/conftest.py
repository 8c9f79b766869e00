"""Fixtures for tests of folders: small real DICOM files with chosen attributes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage


def dicom_bytes(study: str = "1.2.1", series: str = "1.2.1.1", sop: str = "1.2.1.1.1", **attributes: Any) -> bytes:
    """A complete small object, without pixels unless they are given."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = sop
    dataset.StudyInstanceUID = study
    dataset.SeriesInstanceUID = series
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture
def put(folder: Path) -> Callable[..., Path]:
    """Writes such an object to a path of the folder."""

    def write(name: str, *uids: str, **attributes: Any) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dicom_bytes(*uids, **attributes))
        return path

    return write


@pytest.fixture
def make_bytes() -> Callable[..., bytes]:
    """`dicom_bytes`."""
    return dicom_bytes
