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
    from dicomweb_io.http.auth import AWSSigV4 as AWSSigV4
    from dicomweb_io.http.auth import AzureCredentials as AzureCredentials
    from dicomweb_io.http.auth import BasicCredentials as BasicCredentials
    from dicomweb_io.http.auth import BearerToken as BearerToken
    from dicomweb_io.http.auth import GoogleCredentials as GoogleCredentials
    from dicomweb_io.http.auth import OAuth2ClientCredentials as OAuth2ClientCredentials
    from dicomweb_io.http.retry import RetryPolicy as RetryPolicy
    from dicomweb_io.http.settings import TLS as TLS
    from dicomweb_io.http.settings import Limits as Limits
    from dicomweb_io.http.settings import Prefixes as Prefixes
    from dicomweb_io.http.settings import Timeouts as Timeouts
    from dicomweb_io.web.client import DICOMwebClient as DICOMwebClient

_HOMES = {
    "client": ("DICOMClient",),
    "dicom.uris": ("URI", "URISuffix", "URIType"),
    "elements": (
        "Bulkdata",
        "Exclusion",
        "Failure",
        "Frame",
        "Instance",
        "RenderedImage",
        "Resource",
        "StoredInstance",
    ),
    "endpoint": ("Endpoint",),
    "files.client": ("DICOMfileClient",),
    "http.auth": (
        "AWSSigV4",
        "AzureCredentials",
        "BasicCredentials",
        "BearerToken",
        "GoogleCredentials",
        "OAuth2ClientCredentials",
    ),
    "http.retry": ("RetryPolicy",),
    "http.settings": ("Limits", "Prefixes", "TLS", "Timeouts"),
    "web.client": ("DICOMwebClient",),
}
_HOME_OF = {name: f"dicomweb_io.{home}" for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
