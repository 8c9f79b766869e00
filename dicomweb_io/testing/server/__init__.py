"""The DICOMweb server for tests. Its public face is `dicomweb_io.testing`."""
