"""Files in another encoding than the stored one, and pieces of them, for servers that give and keep them so."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any

from dicomweb_io.dicom.frame_encoding import ENCODINGS, missing_library
from dicomweb_io.dicom.pixels import NATIVE, TARGETS, TranscodingError, transcode
from dicomweb_io.elements import Resource
from dicomweb_io.testing.exchange import Site

EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
IMPLICIT_LITTLE = "1.2.840.10008.1.2"

_ITEM = b"\xfe\xff\x00\xe0"


class CannotTranscode(ValueError):
    """The stored encoding cannot be decoded here, or the wanted one not be made of it."""


def writable(transfer_syntax_uid: str) -> bool:
    """Whether files can be written in a transfer syntax here, with the libraries that are installed."""
    if transfer_syntax_uid == IMPLICIT_LITTLE:
        return True
    if transfer_syntax_uid in ENCODINGS:
        return missing_library(transfer_syntax_uid) is None
    return transfer_syntax_uid in TARGETS


def transcoded(content: bytes, stored: str, wanted: str) -> bytes:
    """Re-encodes a file without loss, decompressing pixel data if need be.

    Args:
        content: The file.
        stored: Its transfer syntax.
        wanted: One for which `writable` is true.

    Raises:
        CannotTranscode: If there is no decoder, or the file is damaged, or its pixels do not fit.
    """
    try:
        if wanted != IMPLICIT_LITTLE:
            return transcode(io.BytesIO(content), stored, wanted)
        return _implicit(transcode(io.BytesIO(content), stored, EXPLICIT_LITTLE))
    except TranscodingError as error:
        raise CannotTranscode(str(error)) from None


def _implicit(content: bytes) -> bytes:
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(content))
    for element in dataset.iterall():
        if element.VR == "OB" and element.keyword == "PixelData":
            element.VR = "OW"
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, implicit_vr=True, little_endian=True, enforce_file_format=True)
    return buffer.getvalue()


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


# Pieces of stored files -----------------------------------------------------------------------------------------------


def open_dataset(site: Site, resource: Resource) -> Any:
    """A stored instance as a pydicom dataset.

    Raises:
        requests.HTTPError: If it is not there.
    """
    import pydicom

    found = site.archive.iter_instances(
        resource, media_types=(("application/dicom", "*"),), max_element_bytes=1 << 40, spool_directory=site.directory
    )
    return pydicom.dcmread(io.BytesIO(next(iter(found)).read()), force=True)


def pixel_items(dataset: Any) -> Iterator[bytes] | None:
    """The Basic Offset Table and the fragments of compressed pixel data; None if they are native or absent."""
    if dataset.file_meta.get("TransferSyntaxUID") in NATIVE or "PixelData" not in dataset:
        return None
    return _items(dataset.PixelData)


def _items(content: bytes) -> Iterator[bytes]:
    position = 0
    while content[position : position + 4] == _ITEM:
        (length,) = struct.unpack_from("<I", content, position + 4)
        yield content[position + 8 : position + 8 + length]
        position += 8 + length


def raw_value(dataset: Any, path: list[str]) -> bytes | None:
    """The stored bytes of any element but a sequence, by tags and numbers of items; None if there is none."""
    for tag, number in zip(path[:-1:2], path[1::2], strict=False):
        element = dataset.get(int(tag, 16))
        if element is None or element.VR != "SQ" or not number.isdigit() or not 0 < int(number) <= len(element.value):
            return None
        dataset = element.value[int(number) - 1]
    element = dataset.get_item(int(path[-1], 16)) if len(path[-1]) == 8 else None
    value = getattr(element, "value", None)
    return value if isinstance(value, bytes) else None
