"""The clients and `load_json_dataset`, under the import path of the user guide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicomweb_io.client import DICOMClient
from dicomweb_io.dicom.json_decode import load_json_dataset
from dicomweb_io.web.client import DICOMwebClient

if TYPE_CHECKING:
    from dicomweb_io.files.client import DICOMfileClient

__all__ = ["DICOMClient", "DICOMfileClient", "DICOMwebClient", "load_json_dataset"]


def __getattr__(name: str) -> Any:
    # The file client brings a database and fsspec's implementations; programs that only talk HTTP do not load them.
    if name == "DICOMfileClient":
        from dicomweb_io.files.client import DICOMfileClient

        globals()[name] = DICOMfileClient
        return DICOMfileClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
