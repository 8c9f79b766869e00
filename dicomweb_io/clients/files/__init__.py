"""The client of folders of DICOM files, on any fsspec filesystem."""
