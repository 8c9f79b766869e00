"""Pixel data between transfer syntaxes, always without loss: decoding frames, encoding frames, transcoding instances.

Decoding is pydicom's, with whatever decoder plugins are installed (the extra ``images`` brings them for JPEG, JPEG-LS,
JPEG 2000, HTJ2K and RLE), and imagecodecs' for JPEG with 12 bits per sample, which neither Pillow nor GDCM decodes.
RLE, JPEG-LS and JPEG 2000 are encoded by pydicom and its plugins (RLE needs only NumPy), HTJ2K by imagecodecs, whose
encoder is OpenJPH. The extra ``htj2k`` brings imagecodecs; all of these have free licences. No lossy encoder is
offered: a copy of an image must not become a worse image.

Instances stay the same objects: their UIDs, and everything else in their headers, do not change.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from dicomweb_io.dicom.errors import FrameError, TranscodingError
from dicomweb_io.dicom.frames import native_to_little_endian, split_frames
from dicomweb_io.dicom.media_types import OCTET_STREAM
from dicomweb_io.dicom.part10 import read_dataset
from dicomweb_io.dicom.uids import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    HTJ2K_LOSSLESS,
    IMPLICIT_VR_LITTLE_ENDIAN,
    JPEG_2000_LOSSLESS,
    JPEG_EXTENDED,
    JPEG_LS_LOSSLESS,
    RLE_LOSSLESS,
)
from dicomweb_io.dicom.values import swap_words

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

ENCODINGS = (RLE_LOSSLESS, JPEG_LS_LOSSLESS, JPEG_2000_LOSSLESS, HTJ2K_LOSSLESS)
"""The compressed transfer syntaxes that can be written, if their library is installed."""
TARGETS = (EXPLICIT_VR_LITTLE_ENDIAN, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, *ENCODINGS)
"""All transfer syntaxes that can be written."""
NATIVE = frozenset(
    (
        IMPLICIT_VR_LITTLE_ENDIAN,
        EXPLICIT_VR_LITTLE_ENDIAN,
        EXPLICIT_VR_BIG_ENDIAN,
        DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    )
)
"""The transfer syntaxes whose pixel data are not compressed."""

_EXTRAS = {RLE_LOSSLESS: "images", JPEG_LS_LOSSLESS: "images", JPEG_2000_LOSSLESS: "images", HTJ2K_LOSSLESS: "htj2k"}

# pylibjpeg-openjpeg (2.6) halves the image five times, whatever its size.
_MIN_JPEG_2000 = 32

_MEDIA_TYPES = {
    "image/jpeg": ("50", "51", "57", "70"),
    "image/jls": ("80", "81"),
    "image/jp2": ("90", "91"),
    "image/jpx": ("92", "93"),
    "image/jphc": ("201", "202", "203"),
    "image/jxl": ("110", "111", "112"),
    "video/mpeg": ("100", "100.1", "101", "101.1"),
    "video/mp4": ("102", "102.1", "103", "103.1", "104", "104.1", "105", "105.1", "106", "106.1", "107", "108"),
}
_BY_SYNTAX = {f"1.2.840.10008.1.2.4.{end}": name for name, ends in _MEDIA_TYPES.items() for end in ends}
_BY_SYNTAX[RLE_LOSSLESS] = "image/dicom-rle"


def media_type_of(transfer_syntax_uid: str) -> str:
    """The media type of frames in a transfer syntax (PS3.18 tables 8.7.3-4 to 8.7.3-6); octet-stream for native ones.

    Args:
        transfer_syntax_uid: A transfer syntax; octet-stream for unknown ones too.
    """
    return _BY_SYNTAX.get(transfer_syntax_uid, OCTET_STREAM)


def is_video(transfer_syntax_uid: str) -> bool:
    """Whether pixel data in a transfer syntax are one stream, which has no single frames.

    Args:
        transfer_syntax_uid: A transfer syntax.
    """
    return media_type_of(transfer_syntax_uid).startswith("video/")


def missing_library(transfer_syntax_uid: str) -> str | None:
    """What has to be installed before frames can be encoded in a transfer syntax; None if nothing is missing.

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


def decoding_plugin(transfer_syntax_uid: str) -> str:
    """The decoder plugin of pydicom to use for a transfer syntax; empty to let pydicom say what is missing."""
    from pydicom.pixels.decoders.base import get_decoder

    try:
        return safest_plugin(get_decoder(transfer_syntax_uid).available_plugins)
    except NotImplementedError:
        return ""


def safest_plugin(available: Sequence[str]) -> str:
    """Which of several codec plugins of pydicom to use; an empty text if there is none.

    GDCM comes last: pixels that it cannot handle end the whole process (an uncaught C++ exception), where the others
    raise an error. For JPEG Lossless only GDCM has a free licence.
    """
    order = ("pylibjpeg", "pyjpegls", "pydicom", "pillow")
    preferred = [name for name in order if name in available]
    others = sorted(name for name in available if name not in order and name != "gdcm")
    return next(iter([*preferred, *others, *(name for name in available if name == "gdcm")]), "")


def expand_12_bits(dataset: Dataset) -> bool:
    """Decodes the pixel data of a gray JPEG image with 12 bits per sample in place, into Explicit VR Little Endian.

    Args:
        dataset: An image with its pixel data and file meta information. Any other kind of image stays as it is.

    Returns:
        Whether it was such an image.

    Raises:
        TranscodingError: If imagecodecs is not installed, or the data are not what the header says.
    """
    if dataset.file_meta.TransferSyntaxUID != JPEG_EXTENDED or int(dataset.get("BitsStored") or 0) <= 8:
        return False
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if int(dataset.get("SamplesPerPixel", 1)) != 1 or int(dataset.get("PixelRepresentation", 0)) != 0:
        raise TranscodingError("JPEG images of 12 bits can be decoded only if they are gray and unsigned")
    try:
        import imagecodecs
        from pydicom.uid import UID
    except ImportError:
        raise TranscodingError(
            "no decoder for JPEG images of 12 bits is installed: pip install dicomweb_io[htj2k]"
        ) from None
    pieces = []
    for frame in _frames_of(dataset):
        pixels = imagecodecs.jpeg8_decode(frame)
        if pixels.shape != (rows, columns):
            raise TranscodingError(f"the JPEG image has the shape {pixels.shape}, the header says {(rows, columns)}")
        pieces.append(pixels.astype("<u2").tobytes())
    _set_pixel_data(dataset, b"".join(pieces), "OW")
    dataset.BitsAllocated = 16
    dataset.file_meta.TransferSyntaxUID = UID(EXPLICIT_VR_LITTLE_ENDIAN)
    return True


def _frames_of(dataset: Dataset) -> list[bytes]:
    """The encapsulated frames of an image. pydicom believes any offset table.

    Raises:
        TranscodingError: If nothing says which fragments make which frame.
    """
    try:
        return split_frames(
            dataset.PixelData,
            int(dataset.get("NumberOfFrames") or 1),
            dataset.get("ExtendedOffsetTable") or b"",
            dataset.get("ExtendedOffsetTableLengths") or b"",
        )
    except FrameError as error:
        raise TranscodingError(str(error)) from None


def with_one_frame(header: Dataset, content: bytes, transfer_syntax_uid: str) -> Dataset:
    """A dataset with one frame of another one, so that it can be decoded without the rest of the pixel data.

    Args:
        header: The dataset without its pixel data; it is not changed.
        content: The frame as stored, native ones in little endian.
        transfer_syntax_uid: The encoding of the frame.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    result = Dataset()
    result.update({element.tag: element for element in header})
    result.file_meta = FileMetaDataset()
    native = transfer_syntax_uid in NATIVE
    result.file_meta.TransferSyntaxUID = UID(EXPLICIT_VR_LITTLE_ENDIAN if native else transfer_syntax_uid)
    result.set_original_encoding(False, True)
    # The functional groups stay: they say how this frame is to be shown.
    result.NumberOfFrames = 1
    if not native:
        _set_pixel_data(result, encapsulate([content]), "OB", encapsulated=True)
        return result
    bits = result.get("BitsAllocated")
    if bits is None or "PixelRepresentation" not in result:
        # Float images lack what says how integers are stored (PS3.3 C.7.6.24).
        keyword = "FloatPixelData" if bits in (None, 32) else "DoubleFloatPixelData"
        result.add_new(keyword, "OF" if keyword == "FloatPixelData" else "OD", content)
    else:
        _set_pixel_data(result, content, "OW" if bits > 8 else "OB")
    return result


def decode_frame(dataset: Dataset, number: int) -> bytes:
    """Decodes one frame into native little-endian bytes, as PS3.18 section 8.7.3.3.2 wants octets.

    Args:
        dataset: The dataset with its pixel data and file meta information.
        number: The frame, counted from 1.

    Raises:
        TranscodingError: If no installed decoder can do it.
    """
    return _decoded(dataset, number)[0]


def _decoded(dataset: Dataset, number: int) -> tuple[bytes, dict[str, Any]]:
    """A frame's native bytes, and how they are laid out, in the words of pydicom's decoders."""
    from pydicom.pixels.decoders.base import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        expand_12_bits(dataset)
        decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
        plugin = safest_plugin(decoder.available_plugins)
        content, properties = decoder.as_buffer(dataset, index=number - 1, raw=True, decoding_plugin=plugin)
        found = dict(properties)
    except Exception as error:
        # Decoder plugins can raise anything.
        raise TranscodingError(f"frame {number} in {syntax} cannot be decoded: {error_summary(error)}") from None
    samples = int(dataset.get("SamplesPerPixel", 1))
    if samples > 1 and found.get("planar_configuration") == 1 and not dataset.get("PlanarConfiguration", 0):
        # RLE stores colours in planes, whatever the dataset says.
        found["planar_configuration"] = 0
        return interleaved(bytes(content), samples, int(found["bits_allocated"]) // 8), found
    return bytes(content), found


def recode_frame(header: Dataset, content: bytes, stored: str, wanted: str) -> bytes:
    """Re-encodes one frame in another transfer syntax, without loss.

    Args:
        header: The dataset without its pixel data; it is not changed.
        content: The frame as stored, native ones in little endian.
        stored: Its transfer syntax.
        wanted: One of `ENCODINGS`.

    Raises:
        TranscodingError: If it cannot be decoded or encoded.
    """
    image = with_one_frame(header, content, stored)
    if stored not in NATIVE:
        plain, found = _decoded(image, 1)
        # What decoders give is colour by pixel, at full resolution, in the colours that the image has.
        image = with_one_frame(header, plain, EXPLICIT_VR_LITTLE_ENDIAN)
        image.BitsAllocated = int(found["bits_allocated"])
        image["PixelData"].VR = "OW" if image.BitsAllocated > 8 else "OB"
        image.PhotometricInterpretation = str(found["photometric_interpretation"])
        if int(image.get("SamplesPerPixel", 1)) > 1:
            image.PlanarConfiguration = int(found["planar_configuration"])
    try:
        to_colour_by_pixel(image)
        return encode_frame(image, 1, wanted)
    except Exception as error:
        # Encoder plugins can raise anything.
        raise TranscodingError(f"it cannot be re-encoded in {wanted}: {error_summary(error)}") from None


def encode_frame(dataset: Dataset, number: int, transfer_syntax_uid: str) -> bytes:
    """Encodes one frame of an image whose pixel data are native and little endian; the colour space stays as it is.

    Args:
        dataset: The image, colour by pixel (see `to_colour_by_pixel`), with file meta information.
        number: The frame, counted from 1.
        transfer_syntax_uid: One of `ENCODINGS`.

    Raises:
        TranscodingError: If there is no encoder, or the encoding cannot hold such pixels.
    """
    missing = missing_library(transfer_syntax_uid)
    if missing is not None:
        raise TranscodingError(missing)
    if "PixelData" not in dataset:
        raise TranscodingError("only integer pixels can be compressed, and this has none")
    if transfer_syntax_uid == HTJ2K_LOSSLESS:
        return _htj2k(dataset, number)
    from pydicom.pixels.encoders.base import get_encoder

    if transfer_syntax_uid == JPEG_2000_LOSSLESS and min(int(dataset.Rows), int(dataset.Columns)) < _MIN_JPEG_2000:
        raise TranscodingError(f"the JPEG 2000 encoder needs {_MIN_JPEG_2000} rows and columns at least")
    encoder = get_encoder(transfer_syntax_uid)
    return bytes(encoder.encode(dataset, index=number - 1, encoding_plugin=safest_plugin(encoder.available_plugins)))


def _htj2k(dataset: Dataset, number: int) -> bytes:
    import imagecodecs
    import numpy

    bits, samples = int(dataset.BitsAllocated), int(dataset.get("SamplesPerPixel", 1))
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if bits not in (8, 16) or samples not in (1, 3):
        raise TranscodingError(f"HTJ2K cannot hold {samples} samples of {bits} bits")
    if photometric in ("YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420"):
        raise TranscodingError(f"HTJ2K cannot hold subsampled colours ({photometric})")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    kind: Any = numpy.dtype(f"<{'i' if int(dataset.get('PixelRepresentation', 0)) else 'u'}{bits // 8}")
    values = rows * columns * samples
    pixels = numpy.frombuffer(dataset.PixelData, kind, count=values, offset=(number - 1) * values * kind.itemsize)
    if samples == 1:
        return bytes(imagecodecs.htj2k_encode(pixels.reshape(rows, columns), reversible=True))
    # No colour transform, so that the photometric interpretation stays true.
    return bytes(imagecodecs.htj2k_encode(pixels.reshape(rows, columns, samples), rgb=False, reversible=True))


def encode_all_frames(dataset: Dataset, transfer_syntax_uid: str) -> None:
    """Compresses the pixel data of an image in place and sets its transfer syntax; UIDs stay as they are.

    Args:
        dataset: The image, with native little-endian pixel data and file meta information.
        transfer_syntax_uid: One of `ENCODINGS`.

    Raises:
        TranscodingError: See `encode_frame`.
    """
    from pydicom.encaps import encapsulate, encapsulate_extended
    from pydicom.uid import UID

    to_colour_by_pixel(dataset)
    count = int(dataset.get("NumberOfFrames") or 1)
    frames = [encode_frame(dataset, number, transfer_syntax_uid) for number in range(1, count + 1)]
    if sum(len(frame) + 9 for frame in frames) > 0xFFFFFFFF:
        # The basic offset table has 32 bits for an offset (PS3.5 A.4), the extended one 64.
        content, offsets, lengths = encapsulate_extended(frames)
        _set_pixel_data(dataset, content, "OB", encapsulated=True)
        dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = offsets, lengths
    else:
        _set_pixel_data(dataset, encapsulate(frames), "OB", encapsulated=True)
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax_uid)


def to_colour_by_pixel(dataset: Dataset) -> None:
    """Rearranges native pixel data from colour by plane to colour by pixel, in place. Others stay as they are.

    Compressed images are colour by pixel (PS3.3 C.7.6.3.1.3), and not all encoders look at the planar configuration.
    """
    samples = int(dataset.get("SamplesPerPixel", 1))
    if samples < 2 or "PixelData" not in dataset or int(dataset.get("PlanarConfiguration") or 0) != 1:
        return
    width = int(dataset.BitsAllocated) // 8
    content, size = dataset.PixelData, int(dataset.Rows) * int(dataset.Columns) * width * samples
    count = int(dataset.get("NumberOfFrames") or 1)
    if len(content) < count * size:
        raise TranscodingError(f"the pixel data have {len(content)} bytes, {count} frames need {count * size}")
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


def transcode(file: BinaryIO, stored: str, wanted: str) -> bytes:
    """Re-encodes an instance without loss: the same pixels, the same UIDs, another transfer syntax.

    Args:
        file: A Part 10 file.
        stored: How it is encoded, as its file meta information may not say so.
        wanted: One of `TARGETS`.

    Raises:
        TranscodingError: If it cannot be parsed, decoded or encoded, or would lose something.
    """
    import pydicom

    if wanted not in TARGETS:
        raise TranscodingError(f"{wanted} cannot be written")
    missing = missing_library(wanted) if wanted in ENCODINGS else None
    if missing is not None:
        raise TranscodingError(missing)
    try:
        dataset = read_dataset(file)
        syntax = pydicom.uid.UID(stored)
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax.is_encapsulated:
            _decompress(dataset)
        # Going through all elements decodes them: undecoded ones would be written as they were.
        for element in dataset.iterall():
            if syntax == EXPLICIT_VR_BIG_ENDIAN and isinstance(element.value, bytes):
                element.value = _little_endian(element, int(dataset.get("BitsAllocated", 8)))
        meta = dataset.file_meta
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = meta.get("MediaStorageSOPClassUID") or dataset.SOPClassUID
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.preamble = dataset.preamble or b"\0" * 128
        buffer = io.BytesIO()
        # Forced, because pydicom leaves a change of the byte order to the caller, who made it above.
        pydicom.dcmwrite(buffer, dataset, implicit_vr=False, little_endian=True, force_encoding=True)
        if wanted == EXPLICIT_VR_LITTLE_ENDIAN:
            return buffer.getvalue()
        buffer.seek(0)
        plain = pydicom.dcmread(buffer)
        if wanted == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
            plain.file_meta.TransferSyntaxUID = pydicom.uid.UID(wanted)
        elif "PixelData" in plain:
            encode_all_frames(plain, wanted)
        else:
            raise TranscodingError(f"it has no pixel data, so it is not available in {wanted}")
        result = io.BytesIO()
        plain.save_as(result, enforce_file_format=True)
    except TranscodingError:
        raise
    except Exception as error:
        # pydicom and its plugins can raise anything.
        raise TranscodingError(f"it cannot be re-encoded in {wanted}: {error_summary(error)}") from None
    return result.getvalue()


def _decompress(dataset: Dataset) -> None:
    """Decodes the pixel data in place; colours become RGB. It stays the same instance in another encoding.

    pydicom's own `decompress` leaves extended offset tables behind, and cannot correct the sign of JPEG 2000 images
    that Pillow decoded.
    """
    if expand_12_bits(dataset):
        return
    pixels, found = decoded_pixels(dataset)
    _set_pixel_data(dataset, pixels.tobytes(), "OB" if pixels.itemsize == 1 else "OW")
    dataset.BitsAllocated = pixels.itemsize * 8
    dataset.PhotometricInterpretation = str(found["photometric_interpretation"])
    if int(dataset.get("SamplesPerPixel", 1)) > 1:
        dataset.PlanarConfiguration = 0


def decoded_pixels(dataset: Dataset) -> tuple[Any, dict[str, Any]]:
    """The pixels of all frames as a NumPy array, colours as RGB, and what they are in the words of pydicom's decoders.

    Args:
        dataset: An image with file meta information. Its pixel data may be replaced by equal ones.

    Raises:
        Exception: If they cannot be decoded: decoder plugins can raise anything.
    """
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    expand_12_bits(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in NATIVE and "PixelData" in dataset:
        _set_pixel_data(dataset, encapsulate(_frames_of(dataset), has_bot=False), "OB", encapsulated=True)
    pixels, found = get_decoder(syntax).as_array(dataset, decoding_plugin=decoding_plugin(syntax))
    return pixels, dict(found)


def _little_endian(element: Any, bits_allocated: int) -> bytes:
    content: bytes = element.value
    if element.keyword == "PixelData":
        return native_to_little_endian(content, vr=element.VR, bits_allocated=bits_allocated)
    return swap_words(content, element.VR)


def _set_pixel_data(dataset: Dataset, content: bytes, vr: str, *, encapsulated: bool = False) -> None:
    """Replaces the pixel data; extended offset tables of the former ones go."""
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = vr
    dataset["PixelData"].is_undefined_length = encapsulated
    for table in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if table in dataset:
            del dataset[table]


def error_summary(error: Exception) -> str:
    """The kind of an error and the beginning of its text: decoders name plugins and syntaxes there, never values."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
