"""`DICOMfileClient`, under an import path of the original library."""

from dicomweb_io.files.client import DICOMfileClient

__all__ = ["DICOMfileClient"]
