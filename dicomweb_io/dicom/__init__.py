"""What the DICOM standard says, as plain functions: no input or output, no HTTP, no Beam."""
