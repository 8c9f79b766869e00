"""Clients of DICOM archives behind one protocol, `DICOMClient`: DICOMweb servers and folders of files."""
