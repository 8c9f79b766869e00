"""Folders of DICOM files as archives, over any fsspec filesystem: a client in parts by verb."""
