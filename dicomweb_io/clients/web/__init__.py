"""The client of DICOMweb servers."""
