"""DICOMweb archives as Apache Beam sources, transforms and sinks, with a complete client under them.

The public names are loaded when first used: importing this package imports neither Apache Beam nor pydicom.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dicomweb_io._version import __version__ as __version__

if TYPE_CHECKING:
    from dicomweb_io.client import DICOMClient as DICOMClient
    from dicomweb_io.dicom.uris import URI as URI, URISuffix as URISuffix, URIType as URIType
    from dicomweb_io.elements import (
        Bulkdata as Bulkdata,
        Exclusion as Exclusion,
        Failure as Failure,
        Frame as Frame,
        Instance as Instance,
        RenderedImage as RenderedImage,
        Resource as Resource,
        StoredInstance as StoredInstance,
    )
    from dicomweb_io.endpoint import Endpoint as Endpoint
    from dicomweb_io.files.client import DICOMfileClient as DICOMfileClient
    from dicomweb_io.http.auth import (
        AWSSigV4 as AWSSigV4,
        AzureCredentials as AzureCredentials,
        BasicCredentials as BasicCredentials,
        BearerToken as BearerToken,
        GoogleCredentials as GoogleCredentials,
        OAuth2ClientCredentials as OAuth2ClientCredentials,
    )
    from dicomweb_io.http.retry import RetryPolicy as RetryPolicy
    from dicomweb_io.http.settings import TLS as TLS, Limits as Limits, Prefixes as Prefixes, Timeouts as Timeouts
    from dicomweb_io.tables import (
        TableJob as TableJob,
        TableWriter as TableWriter,
        iter_table as iter_table,
        run_table as run_table,
    )
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
    "tables": ("TableJob", "TableWriter", "iter_table", "run_table"),
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
