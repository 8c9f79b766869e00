"""Addresses of Google's DICOM stores, under an import path of the original library."""

from dicomweb_io.dicom.uris import GoogleCloudHealthcareURL

__all__ = ["GoogleCloudHealthcareURL"]
