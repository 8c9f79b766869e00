"""`DICOMClient`, under an import path of the original library."""

from dicomweb_io.clients.protocol import DICOMClient

__all__ = ["DICOMClient"]
