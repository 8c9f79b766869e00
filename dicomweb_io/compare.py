"""Comparing two copies of an instance at the level that an archive keeps: file, dataset or pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import BinaryIO

from dicomweb_io.dicom.part10 import header_of
from dicomweb_io.dicom.pixels import decoded_pixels
from dicomweb_io.elements import Instance
from dicomweb_io.errors import TranscodingError
from dicomweb_io.profiles import ComparisonLevel

_CHUNK = 1 << 20


def difference(one: Instance, other: Instance, level: ComparisonLevel) -> str | None:
    """Tells how two copies differ at a level.

    Args:
        one: A copy.
        other: Another.
        level: ``"file"``: every byte; ``"dataset"``: the transfer syntax and every byte after the file meta
            information; ``"pixels"``: the decoded pixel values, so that a lossless re-encoding is equal (needs
            pydicom's decoders for the transfer syntaxes concerned).

    Returns:
        What differs, in words without any value; None if nothing does.

    Raises:
        ValueError: If the level is ``"none"``, or pixels cannot be decoded.
        OSError: If a file cannot be read.
    """
    if one.reference.instance != other.reference.instance:
        return "the UIDs differ"
    if level == "file":
        if one.size != other.size:
            return f"the files have {one.size} and {other.size} bytes"
        return fingerprint(one, level).difference(fingerprint(other, level))
    if level == "dataset":
        return _dataset_difference(one, other)
    if level == "pixels":
        # Equal datasets have equal pixels, and need no decoder.
        return None if _dataset_difference(one, other) is None else _pixel_difference(one, other)
    raise ValueError(f"instances cannot be compared at level {level!r}")


@dataclass(frozen=True)
class Fingerprint:
    """What of a copy is compared at a level, without its bytes; see `fingerprint`.

    Attributes:
        size: The bytes of the file, where they count.
        transfer_syntax_uid: The transfer syntax, where it counts.
        digest: A digest of the bytes that count.
    """

    size: int | None
    transfer_syntax_uid: str | None
    digest: bytes

    def difference(self, other: Fingerprint) -> str | None:
        """What differs, as the function `difference` says it; None if nothing does."""
        if self.size != other.size:
            return f"the files have {self.size} and {other.size} bytes"
        if self.transfer_syntax_uid != other.transfer_syntax_uid:
            return f"the transfer syntaxes are {self.transfer_syntax_uid} and {other.transfer_syntax_uid}"
        if self.digest == other.digest:
            return None
        return "the datasets have other bytes" if self.size is None else "the files have the same size, but other bytes"


def fingerprint(instance: Instance, level: ComparisonLevel) -> Fingerprint:
    """What of a copy is compared at a level, so that two copies need not be at hand at once.

    At level ``"pixels"`` it is that of the dataset: equal datasets have equal pixels, others are for `difference`.

    Raises:
        ValueError: If it is no DICOM object.
        OSError: If a file cannot be read.
    """
    if level == "file":
        return Fingerprint(instance.size, None, _digest(instance, 0))
    return Fingerprint(None, instance.transfer_syntax_uid, _digest(instance, _dataset_offset(instance)))


def _dataset_difference(one: Instance, other: Instance) -> str | None:
    return fingerprint(one, "dataset").difference(fingerprint(other, "dataset"))


def _pixel_difference(one: Instance, other: Instance) -> str | None:
    first, second = one.dataset(), other.dataset()
    names = [
        name for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if name in first or name in second
    ]
    if not names:
        # Nothing that this level promises to keep.
        return None
    if any((name in first) != (name in second) for name in names):
        return "only one copy has pixel data"
    try:
        (pixels, _), (others, _) = decoded_pixels(first), decoded_pixels(second)
    except Exception as error:
        raise TranscodingError(
            f"the pixels of {one.reference.uri} cannot be compared: {one.transfer_syntax_uid} and "
            f"{other.transfer_syntax_uid} cannot both be decoded ({type(error).__name__})"
        ) from None
    if pixels.shape != others.shape:
        return f"the pixels have the shapes {pixels.shape} and {others.shape}"
    return None if bool((pixels == others).all()) else "the pixels have other values"


def _dataset_offset(instance: Instance) -> int:
    with instance.open() as file:
        return header_of(file).dataset_offset


def _digest(instance: Instance, offset: int) -> bytes:
    with instance.open() as file:
        return _file_digest(file, offset)


def _file_digest(file: BinaryIO, offset: int) -> bytes:
    digest = hashlib.sha256()
    file.seek(offset)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.digest()
