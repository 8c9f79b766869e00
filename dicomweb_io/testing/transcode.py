"""Changing the encoding of a Part 10 file, for servers that answer in another transfer syntax than the stored one."""

from __future__ import annotations

import io

from dicomweb_io.dicom.pixels import TranscodingError, to_explicit_little_endian

EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
IMPLICIT_LITTLE = "1.2.840.10008.1.2"


class CannotTranscode(ValueError):
    """The stored encoding cannot be decoded here."""


def to_explicit_little(content: bytes, transfer_syntax_uid: str) -> bytes:
    """Re-encodes a file in Explicit VR Little Endian, decompressing pixel data if need be.

    Raises:
        CannotTranscode: If there is no decoder, or the file is damaged.
    """
    try:
        return to_explicit_little_endian(io.BytesIO(content), transfer_syntax_uid)
    except TranscodingError as error:
        raise CannotTranscode(str(error)) from None


def coerced(content: bytes, kept: str) -> bytes:
    """A file as a server keeps it that does not keep every byte.

    Args:
        content: The file.
        kept: ``"dataset"``: the preamble is zeroed; ``"pixels"``: an attribute of the server is added and the file is
            encoded anew; ``"anonymized"``: names and numbers of the patient are emptied.

    Raises:
        CannotTranscode: If the file is damaged.
    """
    if kept == "dataset":
        return b"\0" * 128 + content[128:] if content[128:132] == b"DICM" else content
    import pydicom

    try:
        dataset = pydicom.dcmread(io.BytesIO(content), force=True)
        if kept == "pixels":
            dataset.RetrieveAETitle = "DICOMWEBIO"
        else:
            for keyword in ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber"):
                if keyword in dataset:
                    setattr(dataset, keyword, "")
            dataset.PatientIdentityRemoved = "YES"
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()
    except Exception as error:  # pydicom raises almost anything
        raise CannotTranscode(f"{type(error).__name__}") from error
