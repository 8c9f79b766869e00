"""JPEG images with 12 bits per sample (JPEG Extended), which neither Pillow nor GDCM decodes.

imagecodecs does (its decoder is libjpeg-turbo; both under free licences); the extra ``htj2k`` brings it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicomweb_io.dicom.media_types import EXPLICIT_VR_LITTLE_ENDIAN

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"


class JPEGDecodingError(ValueError):
    """An image of 12 bits cannot be decoded."""


def expand_12_bits(dataset: Dataset) -> bool:
    """Decodes the pixel data of a gray JPEG image of 12 bits in place, into Explicit VR Little Endian.

    Args:
        dataset: An image with its pixel data and file meta information. Others stay as they are.

    Returns:
        Whether it was such an image.

    Raises:
        JPEGDecodingError: If imagecodecs is not installed, or the data are not what the header says.
    """
    if dataset.file_meta.TransferSyntaxUID != _JPEG_EXTENDED or int(dataset.get("BitsStored") or 0) <= 8:
        return False
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if int(dataset.get("SamplesPerPixel", 1)) != 1 or int(dataset.get("PixelRepresentation", 0)) != 0:
        raise JPEGDecodingError("JPEG images of 12 bits can be decoded if they are gray and unsigned only")
    try:
        import imagecodecs
        from pydicom.encaps import generate_frames
        from pydicom.uid import UID
    except ImportError:
        raise JPEGDecodingError(
            "no decoder for JPEG images of 12 bits is installed: pip install dicomweb_io[htj2k]"
        ) from None
    count = int(dataset.get("NumberOfFrames") or 1)
    pieces = []
    for frame in generate_frames(dataset.PixelData, number_of_frames=count):
        pixels = imagecodecs.jpeg8_decode(frame)
        if pixels.shape != (rows, columns):
            raise JPEGDecodingError(f"the JPEG image has the shape {pixels.shape}, the header says {(rows, columns)}")
        pieces.append(pixels.astype("<u2").tobytes())
    if len(pieces) != count:
        raise JPEGDecodingError(f"there are {len(pieces)} JPEG images for {count} frames")
    dataset.PixelData = b"".join(pieces)
    dataset["PixelData"].VR = "OW"
    dataset["PixelData"].is_undefined_length = False
    dataset.BitsAllocated = 16
    dataset.file_meta.TransferSyntaxUID = UID(EXPLICIT_VR_LITTLE_ENDIAN)
    for table in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if table in dataset:
            del dataset[table]
    return True
