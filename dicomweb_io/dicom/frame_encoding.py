"""Encoding frames without loss: RLE, JPEG-LS, JPEG 2000 and High-Throughput JPEG 2000.

RLE, JPEG-LS and JPEG 2000 are encoded by pydicom and its plugins (extra ``images``; RLE needs NumPy only), HTJ2K by
imagecodecs, whose encoder is OpenJPH (extra ``htj2k``; both under BSD licences). No encoder that loses anything is
offered: a copy of an image must not become a worse image on its way.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

RLE_LOSSLESS = "1.2.840.10008.1.2.5"
JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
HTJ2K_LOSSLESS = "1.2.840.10008.1.2.4.201"

ENCODINGS = (RLE_LOSSLESS, JPEG_LS_LOSSLESS, JPEG_2000_LOSSLESS, HTJ2K_LOSSLESS)
"""The compressed transfer syntaxes that can be written, if their library is installed."""

# pylibjpeg-openjpeg (2.6) halves the image five times, whatever its size.
_LEAST_JPEG_2000 = 32

_EXTRAS = {RLE_LOSSLESS: "images", JPEG_LS_LOSSLESS: "images", JPEG_2000_LOSSLESS: "images", HTJ2K_LOSSLESS: "htj2k"}


class FrameEncodingError(ValueError):
    """A frame cannot be encoded: there is no encoder, or the encoding cannot hold such pixels."""


def missing_library(transfer_syntax_uid: str) -> str | None:
    """What has to be installed before frames can be encoded so, None if nothing is missing.

    Args:
        transfer_syntax_uid: One of `ENCODINGS`.
    """
    extra = _EXTRAS[transfer_syntax_uid]
    if transfer_syntax_uid == HTJ2K_LOSSLESS:
        available = importlib.util.find_spec("imagecodecs") is not None
    else:
        from pydicom.pixels.encoders.base import get_encoder

        available = get_encoder(transfer_syntax_uid).is_available
    return None if available else f"no encoder for {transfer_syntax_uid} is installed: pip install dicomweb_io[{extra}]"


def encode_frame(dataset: Dataset, number: int, transfer_syntax_uid: str) -> bytes:
    """Encodes one frame of an image whose pixel data are native and little endian; the colour space stays as it is.

    Args:
        dataset: The image, colour by pixel (see `to_colour_by_pixel`), with file meta information.
        number: The frame, counted from 1.
        transfer_syntax_uid: One of `ENCODINGS`.

    Raises:
        FrameEncodingError: If there is no encoder, or the encoding cannot hold such pixels.
    """
    missing = missing_library(transfer_syntax_uid)
    if missing is not None:
        raise FrameEncodingError(missing)
    if "PixelData" not in dataset:
        raise FrameEncodingError("only integer pixels can be compressed, and there are none")
    if transfer_syntax_uid == HTJ2K_LOSSLESS:
        return _htj2k(dataset, number)
    from pydicom.pixels.encoders.base import get_encoder

    if transfer_syntax_uid == JPEG_2000_LOSSLESS and min(int(dataset.Rows), int(dataset.Columns)) < _LEAST_JPEG_2000:
        raise FrameEncodingError(f"the JPEG 2000 encoder needs {_LEAST_JPEG_2000} rows and columns at least")
    encoder = get_encoder(transfer_syntax_uid)
    plugin = safest_plugin(encoder.available_plugins)
    return bytes(encoder.encode(dataset, index=number - 1, encoding_plugin=plugin))


def safest_plugin(available: Sequence[str]) -> str:
    """Which of several codec plugins of pydicom to use; an empty text if there is none.

    GDCM is the last choice: on pixels that it cannot handle it ends the whole process (an uncaught C++ exception) where
    the others raise an error. For JPEG Lossless there is only GDCM under a free licence.
    """
    order = ("pylibjpeg", "pyjpegls", "pydicom", "pillow")
    preferred = [name for name in order if name in available]
    others = sorted(name for name in available if name not in order and name != "gdcm")
    return next(iter([*preferred, *others, *(name for name in available if name == "gdcm")]), "")


def to_colour_by_pixel(dataset: Dataset) -> None:
    """Brings native pixel data that keep colours in planes into colour by pixel, in place; others stay as they are.

    Compressed images are colour by pixel (PS3.3 C.7.6.3.1.3), and not all encoders look at the planar configuration.
    """
    samples = int(dataset.get("SamplesPerPixel", 1))
    if samples < 2 or "PixelData" not in dataset or int(dataset.get("PlanarConfiguration") or 0) != 1:
        return
    width = int(dataset.BitsAllocated) // 8
    plane = int(dataset.Rows) * int(dataset.Columns) * width
    content, size = dataset.PixelData, plane * samples
    count = int(dataset.get("NumberOfFrames") or 1)
    if len(content) < count * size:
        raise FrameEncodingError(f"the pixel data have {len(content)} bytes, {count} frames need {count * size}")
    frames = [interleaved(content[index * size : (index + 1) * size], samples, width) for index in range(count)]
    result = b"".join(frames)
    dataset.PixelData = result + b"\0" * (len(result) % 2)
    dataset.PlanarConfiguration = 0


def interleaved(planes: bytes, samples: int, width: int) -> bytes:
    """Colour by pixel from colour by plane.

    Args:
        planes: One frame.
        samples: Samples per pixel.
        width: Bytes of a sample.
    """
    length = len(planes) // samples
    result = bytearray(len(planes))
    for sample in range(samples):
        for byte in range(width):
            result[sample * width + byte :: samples * width] = planes[
                sample * length + byte : (sample + 1) * length : width
            ]
    return bytes(result)


def encode_all_frames(dataset: Dataset, transfer_syntax_uid: str) -> None:
    """Compresses the pixel data of an image in place and sets its transfer syntax; UIDs stay as they are.

    Args:
        dataset: The image, with native little-endian pixel data and file meta information.
        transfer_syntax_uid: One of `ENCODINGS`.

    Raises:
        FrameEncodingError: See `encode_frame`.
    """
    from pydicom.encaps import encapsulate, encapsulate_extended
    from pydicom.uid import UID

    to_colour_by_pixel(dataset)
    count = int(dataset.get("NumberOfFrames") or 1)
    frames = [encode_frame(dataset, number, transfer_syntax_uid) for number in range(1, count + 1)]
    if sum(len(frame) + 9 for frame in frames) > 0xFFFFFFFF:
        # The basic offset table has 32 bits for an offset (PS3.5 A.4), the extended one 64.
        dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = encapsulate_extended(
            frames
        )
    else:
        dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax_uid)


def _htj2k(dataset: Dataset, number: int) -> bytes:
    import imagecodecs
    import numpy

    bits, samples = int(dataset.BitsAllocated), int(dataset.get("SamplesPerPixel", 1))
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if bits not in (8, 16) or samples not in (1, 3):
        raise FrameEncodingError(f"HTJ2K cannot hold {samples} samples of {bits} bits")
    if photometric in ("YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420"):
        raise FrameEncodingError(f"HTJ2K cannot hold subsampled colours ({photometric})")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    kind: Any = numpy.dtype(f"<{'i' if int(dataset.get('PixelRepresentation', 0)) else 'u'}{bits // 8}")
    values = rows * columns * samples
    pixels = numpy.frombuffer(dataset.PixelData, kind, count=values, offset=(number - 1) * values * kind.itemsize)
    if samples == 1:
        return bytes(imagecodecs.htj2k_encode(pixels.reshape(rows, columns), reversible=True))
    # No colour transform, so that the photometric interpretation stays true.
    return bytes(imagecodecs.htj2k_encode(pixels.reshape(rows, columns, samples), rgb=False, reversible=True))
