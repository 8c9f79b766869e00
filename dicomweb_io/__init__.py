"""DICOMweb archives as Apache Beam sources, transforms and sinks, with a complete client under them.

The public names are loaded when first used: importing this package imports neither Apache Beam nor pydicom.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dicomweb_io._version import __version__ as __version__

if TYPE_CHECKING:
    from dicomweb_io.client import DICOMClient as DICOMClient
    from dicomweb_io.dicom.uris import URI as URI
    from dicomweb_io.dicom.uris import URISuffix as URISuffix
    from dicomweb_io.dicom.uris import URIType as URIType
    from dicomweb_io.elements import Bulkdata as Bulkdata
    from dicomweb_io.elements import Exclusion as Exclusion
    from dicomweb_io.elements import Failure as Failure
    from dicomweb_io.elements import Frame as Frame
    from dicomweb_io.elements import Instance as Instance
    from dicomweb_io.elements import RenderedImage as RenderedImage
    from dicomweb_io.elements import Resource as Resource
    from dicomweb_io.elements import StoredInstance as StoredInstance
    from dicomweb_io.endpoint import Endpoint as Endpoint
    from dicomweb_io.files.client import DICOMfileClient as DICOMfileClient
    from dicomweb_io.web.client import DICOMwebClient as DICOMwebClient

_HOMES = {
    "DICOMClient": "dicomweb_io.client",
    "DICOMfileClient": "dicomweb_io.files.client",
    "DICOMwebClient": "dicomweb_io.web.client",
    "Endpoint": "dicomweb_io.endpoint",
    "URI": "dicomweb_io.dicom.uris",
    "URISuffix": "dicomweb_io.dicom.uris",
    "URIType": "dicomweb_io.dicom.uris",
    "Bulkdata": "dicomweb_io.elements",
    "Exclusion": "dicomweb_io.elements",
    "Failure": "dicomweb_io.elements",
    "Frame": "dicomweb_io.elements",
    "Instance": "dicomweb_io.elements",
    "RenderedImage": "dicomweb_io.elements",
    "Resource": "dicomweb_io.elements",
    "StoredInstance": "dicomweb_io.elements",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
