"""`DICOMwebClient`, under an import path of the original library."""

from dicomweb_io.clients.web.client import DICOMwebClient

__all__ = ["DICOMwebClient"]
