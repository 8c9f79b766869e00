"""`DICOMClient`, under an import path of the original library."""

from dicomweb_io.client import DICOMClient

__all__ = ["DICOMClient"]
