"""DICOMweb servers: a client in parts by verb. `DICOMwebClient` is loaded when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dicomweb_io.web.client import DICOMwebClient as DICOMwebClient

__all__ = ["DICOMwebClient"]


def __getattr__(name: str) -> Any:
    if name == "DICOMwebClient":
        from dicomweb_io.web.client import DICOMwebClient

        return DICOMwebClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
