"""Images in consumer formats (PS3.18 sections 8.3.5 and 8.7.4): from stored pixels to PNG, JPEG, GIF or JPEG 2000.

The grayscale pipeline is that of PS3.4 annex N: modality LUT or rescale, then the VOI LUT or window (the one asked for,
or the dataset's own, or the range of the values that occur), then the presentation's polarity. Palettes are looked up,
YBR becomes RGB. The result has 8 bits per sample.

Needs NumPy and Pillow (extra ``images``).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dicomweb_io.dicom.errors import RenderingError, RenderingUnavailableError
from dicomweb_io.dicom.pixels import decoding_plugin, error_summary, expand_12_bits

if TYPE_CHECKING:
    import numpy
    from PIL import Image
    from pydicom.dataset import Dataset

IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/jp2")
"""The media types that can be written, best first; a GIF may have several frames."""

_FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG", "image/gif": "GIF", "image/jp2": "JPEG2000"}
_THUMBNAIL_SIZE = 128.0
_DEFAULT_FRAME_MILLISECONDS = 100.0
_PIXELS_PER_IMAGE = 1 << 28


@dataclass(frozen=True)
class Window:
    """A VOI window (PS3.3 C.11.2.1.2).

    Attributes:
        center: Window Center.
        width: Window Width.
        shape: ``"linear"``, ``"linear-exact"`` or ``"sigmoid"``.
    """

    center: float
    width: float
    shape: str = "linear"


@dataclass(frozen=True)
class RenderingOptions:
    """How to render (PS3.18 table 8.3.5-1).

    Attributes:
        window: Instead of the dataset's own.
        size: The largest width and height of the result; a missing one follows from the other.
        region: Left, top, width and height of the part of the image to show; a negative width or height mirrors it.
        quality: Of lossy formats, 1 to 100.
        annotation: ``"patient"`` and ``"technique"`` are written into the image.
        icc_profile: ``"no"``, ``"yes"`` (put the dataset's into the file) or ``"srgb"`` (convert).
    """

    window: Window | None = None
    size: tuple[float | None, float | None] | None = None
    region: tuple[float | None, float | None, float | None, float | None] | None = None
    quality: int | None = None
    annotation: tuple[str, ...] = ()
    icc_profile: str = "no"

    @classmethod
    def of(cls, params: Mapping[str, Any], *, thumbnail: bool = False) -> RenderingOptions:
        """Takes the options from the parameters of a request.

        Args:
            params: ``window``, ``viewport``, ``quality``, ``annotation``, ``iccprofile``: text with commas, or lists.
            thumbnail: For a thumbnail, which has a size in any case.

        Raises:
            ValueError: If one is not valid or not known.
        """
        unknown = set(params) - {"window", "viewport", "quality", "annotation", "iccprofile", "accept", "charset"}
        if unknown:
            raise ValueError(f"unknown rendering parameters: {', '.join(sorted(map(str, unknown)))}")
        viewport = [_number("viewport", value) for value in _listed(params.get("viewport"))]
        window = _listed(params.get("window"))
        if viewport and len(viewport) not in ((2,) if thumbnail else (2, 6)):
            raise ValueError("viewport is width,height or width,height,x,y,width,height")
        if any(value is not None and value <= 0 for value in viewport[:2]):
            raise ValueError("the width and height of the viewport must be positive")
        if window and len(window) not in (2, 3):
            raise ValueError("window is center,width,shape")
        icc = str(params.get("iccprofile") or "no").lower()
        if icc not in ("no", "yes", "srgb"):
            raise ValueError(f"iccprofile can be no, yes or srgb here, not {icc!r}")
        annotation = tuple(str(item).lower() for item in _listed(params.get("annotation")))
        if set(annotation) - {"patient", "technique"}:
            raise ValueError("annotation can be patient and technique")
        size = (viewport[0], viewport[1]) if viewport else None
        return cls(
            window=_window(window) if window else None,
            size=size or ((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE) if thumbnail else None),
            region=(viewport[2], viewport[3], viewport[4], viewport[5]) if len(viewport) == 6 else None,
            quality=_quality(params.get("quality")),
            annotation=annotation,
            icc_profile=icc,
        )


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)


def _number(name: str, value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} holds {value!r}, which is not a number") from None


def _window(values: Sequence[Any]) -> Window:
    center, width = _number("window", values[0]), _number("window", values[1])
    shape = str(values[2]).lower() if len(values) == 3 else "linear"
    if center is None or width is None or shape not in ("linear", "linear-exact", "sigmoid"):
        raise ValueError("window is center,width,shape, and shape one of linear, linear-exact and sigmoid")
    if width <= 0 or (shape == "linear" and width < 1):
        raise ValueError("the width of a window must be positive, and 1 at least if it is linear")
    return Window(center, width, shape)


def _quality(value: Any) -> int | None:
    if value is None:
        return None
    quality = int(str(value))
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be from 1 to 100, not {quality}")
    return quality


def render_images(
    frames: Sequence[tuple[Dataset, int]], media_type: str, options: RenderingOptions | None = None
) -> bytes:
    """Renders frames of one instance into one file.

    Args:
        frames: Each frame as a dataset that holds its pixels only (see `dicomweb_io.dicom.pixels.with_one_frame`), and
            its number in the instance, counted from 1. Several need ``image/gif``.
        media_type: One of `IMAGE_TYPES`.
        options: How.

    Raises:
        RenderingError: If the pixels cannot be decoded, or the format cannot hold them.
        RenderingUnavailableError: If NumPy or Pillow is missing.
    """
    options = options or RenderingOptions()
    try:
        import numpy  # noqa: F401 - asked for here, so that its absence has one message
        from PIL import Image
    except ImportError as error:
        raise RenderingUnavailableError(f"rendering needs NumPy and Pillow: {error}") from None
    if media_type not in _FORMATS:
        raise RenderingError(f"{media_type} cannot be written, only {', '.join(IMAGE_TYPES)}")
    if len(frames) > 1 and media_type != "image/gif":
        raise RenderingError(f"{len(frames)} frames do not fit into one file of {media_type}: ask for image/gif")
    try:
        images = [_frame_image(dataset, number, options) for dataset, number in frames]
        arguments: dict[str, Any] = {}
        if media_type == "image/jpeg":
            arguments["quality"] = options.quality or 90
        elif media_type == "image/jp2" and options.quality is not None:
            arguments.update(quality_mode="dB", quality_layers=[20 + options.quality * 0.4])
        elif media_type == "image/gif" and len(images) > 1:
            duration = _frame_milliseconds(frames[0][0])
            arguments.update(save_all=True, append_images=images[1:], duration=duration, loop=0)
        profile = _icc_profile(frames[0][0]) if options.icc_profile == "yes" else None
        if profile is not None and media_type in ("image/jpeg", "image/png"):
            arguments["icc_profile"] = profile
        buffer = io.BytesIO()
        images[0].save(buffer, _FORMATS[media_type], **arguments)
    except RenderingError:
        raise
    except Image.DecompressionBombError as error:
        raise RenderingError(str(error)) from None
    except Exception as error:
        # Decoder plugins and image writers can raise anything.
        raise RenderingError(error_summary(error)) from None
    return buffer.getvalue()


def _frame_image(dataset: Dataset, number: int, options: RenderingOptions) -> Image.Image:
    from PIL import Image
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    if int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0) > _PIXELS_PER_IMAGE:
        raise RenderingError("the image is larger than 268 million pixels; ask for its frames")
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if "PixelData" in dataset:
        expand_12_bits(dataset)
        values = pixel_array(dataset, index=0, decoding_plugin=decoding_plugin(dataset.file_meta.TransferSyntaxUID))
    else:
        values = _float_pixels(dataset)
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(values, dataset)
        image = Image.fromarray(_to_bytes(colours, 16 if colours.dtype.itemsize == 2 else 8), "RGB")
    elif int(dataset.get("SamplesPerPixel", 1)) == 3:
        image = Image.fromarray(_to_bytes(values, int(dataset.get("BitsStored", 8))), "RGB")
        if options.icc_profile == "srgb":
            image = _to_srgb(image, dataset)
    else:
        image = Image.fromarray(_gray(values, dataset, number, options.window), "L")
    image = _fitted(image, options)
    return _annotated(image, dataset, options.annotation) if options.annotation else image


def _float_pixels(dataset: Dataset) -> numpy.ndarray[Any, Any]:
    import numpy

    for keyword, kind in (("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")):
        if keyword in dataset:
            return numpy.frombuffer(dataset[keyword].value, kind).reshape(dataset.Rows, dataset.Columns)
    raise RenderingError("the instance has no pixel data")


def _to_bytes(values: numpy.ndarray[Any, Any], bits: int) -> numpy.ndarray[Any, Any]:
    import numpy

    if bits > 8:
        values = values >> (bits - 8)
    elif bits < 8:
        values = values * (255 // ((1 << bits) - 1))
    return numpy.ascontiguousarray(values.astype(numpy.uint8))


def _gray(
    values: numpy.ndarray[Any, Any], dataset: Dataset, number: int, window: Window | None
) -> numpy.ndarray[Any, Any]:
    import numpy
    from pydicom.pixels.processing import apply_modality_lut

    source = _with_functional_groups(dataset, number)
    modality: numpy.ndarray[Any, Any] = numpy.asarray(apply_modality_lut(values, source))
    if window is None and source.get("VOILUTSequence"):
        from pydicom.pixels.processing import apply_voi

        looked_up = apply_voi(modality, source)
        bits = int(source.VOILUTSequence[0].LUTDescriptor[2])
        scaled = looked_up.astype(numpy.float64) / ((1 << bits) - 1)
    else:
        window = window or _own_window(source)
        scaled = _windowed(modality.astype(numpy.float64), window) if window else _full_range(modality, source)
    inverted = (source.get("PresentationLUTShape") or "") == "INVERSE"
    if str(source.get("PhotometricInterpretation")) == "MONOCHROME1":
        inverted = not inverted
    if inverted:
        scaled = 1.0 - scaled
    return numpy.ascontiguousarray((numpy.clip(scaled, 0.0, 1.0) * 255.0 + 0.5).astype(numpy.uint8))


def _with_functional_groups(dataset: Dataset, number: int) -> Dataset:
    """The dataset with what the functional groups say of a frame at its top level (PS3.3 C.7.6.16)."""
    groups = []
    shared = dataset.get("SharedFunctionalGroupsSequence")
    if shared:
        groups.append(shared[0])
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if frames and number <= len(frames):
        groups.append(frames[number - 1])
    if not groups:
        return dataset
    from pydicom.dataset import Dataset as NewDataset

    result = NewDataset()
    result.update({element.tag: element for element in dataset if element.VR != "SQ" or "LUT" in element.keyword})
    for group in groups:
        for keyword in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            items = group.get(keyword)
            if items:
                result.update({element.tag: element for element in items[0]})
    return result


def _own_window(dataset: Dataset) -> Window | None:
    values = []
    for keyword in ("WindowCenter", "WindowWidth"):
        value = dataset.get(keyword)
        if value is None or value == "":
            return None
        values.append(float(value[0] if isinstance(value, (list, tuple)) or hasattr(value, "append") else value))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").lower().replace("_", "-")
    shape = function if function in ("linear", "linear-exact", "sigmoid") else "linear"
    return Window(values[0], values[1], shape) if values[1] >= (1 if shape == "linear" else 1e-9) else None


def _windowed(values: numpy.ndarray[Any, Any], window: Window) -> numpy.ndarray[Any, Any]:
    """The formulas of PS3.3 C.11.2.1.2 and C.11.2.1.3, with an output range from 0 to 1."""
    import numpy

    if window.shape == "sigmoid":
        exponent = numpy.clip(-4.0 * (values - window.center) / window.width, -700, 700)
        result: numpy.ndarray[Any, Any] = 1.0 / (1.0 + numpy.exp(exponent))
        return result
    if window.shape == "linear-exact":
        return numpy.clip((values - window.center) / window.width + 0.5, 0.0, 1.0)
    if window.width == 1:
        return (values > window.center - 0.5).astype(numpy.float64)
    return numpy.clip((values - (window.center - 0.5)) / (window.width - 1) + 0.5, 0.0, 1.0)


def _full_range(values: numpy.ndarray[Any, Any], dataset: Dataset) -> numpy.ndarray[Any, Any]:
    import numpy

    bits = int(dataset.get("BitsStored") or 0)
    finite = values[numpy.isfinite(values)] if values.dtype.kind == "f" else values
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if 0 < bits <= 8 and low >= 0 and high < (1 << bits):
        # Ready for display as it is: stretching would change what was meant.
        low, high = 0.0, float((1 << bits) - 1)
    if high <= low:
        return numpy.zeros(values.shape)
    scaled: numpy.ndarray[Any, Any] = (numpy.nan_to_num(values.astype(numpy.float64), nan=low) - low) / (high - low)
    return scaled


def _fitted(image: Image.Image, options: RenderingOptions) -> Image.Image:
    from PIL import Image, ImageOps

    if options.region is not None:
        left, top = options.region[0] or 0.0, options.region[1] or 0.0
        width = image.width - left if options.region[2] is None else options.region[2]
        height = image.height - top if options.region[3] is None else options.region[3]
        box = (round(left), round(top), round(left + abs(width)), round(top + abs(height)))
        if box[0] >= image.width or box[1] >= image.height or box[2] <= box[0] or box[3] <= box[1] or min(box) < 0:
            raise RenderingError(
                f"the region of the viewport lies outside of the image of {image.width}x{image.height}"
            )
        image = image.crop((box[0], box[1], min(box[2], image.width), min(box[3], image.height)))
        if width < 0:
            image = ImageOps.mirror(image)
        if height < 0:
            image = ImageOps.flip(image)
    if options.size is not None:
        factors = [
            wanted / actual for wanted, actual in zip(options.size, image.size, strict=True) if wanted is not None
        ]
        if factors:
            factor = min(factors)
            size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
            if size[0] * size[1] > _PIXELS_PER_IMAGE:
                raise RenderingError("the viewport is larger than 268 million pixels")
            image = image.resize(size, Image.Resampling.LANCZOS)
    return image


def _icc_profile(dataset: Dataset) -> bytes | None:
    profile = dataset.get("ICCProfile")
    if not profile:
        for path in dataset.get("OpticalPathSequence") or ():
            profile = profile or path.get("ICCProfile")
    return bytes(profile) if profile else None


def _to_srgb(image: Image.Image, dataset: Dataset) -> Image.Image:
    profile = _icc_profile(dataset)
    if profile is None:
        return image
    from PIL import ImageCms

    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return converted if converted is not None else image


def _annotated(image: Image.Image, dataset: Dataset, annotation: Sequence[str]) -> Image.Image:
    from PIL import ImageDraw

    lines = []
    if "patient" in annotation:
        lines += [
            str(dataset.get(keyword, "")) for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
        ]
    if "technique" in annotation:
        lines += [str(dataset.get(keyword, "")) for keyword in ("Modality", "StudyDate", "SeriesDescription", "KVP")]
    image = image.convert("RGB") if image.mode != "RGB" else image
    draw = ImageDraw.Draw(image)
    text = "\n".join(line for line in lines if line)
    draw.multiline_text((5, 5), text, fill="white", stroke_width=1, stroke_fill="black")
    return image


def _frame_milliseconds(dataset: Dataset) -> float:
    try:
        milliseconds = float(dataset.get("FrameTime") or 0) or 1000.0 / float(dataset.get("CineRate") or 0)
    except (ZeroDivisionError, ValueError, TypeError):
        milliseconds = _DEFAULT_FRAME_MILLISECONDS
    # Viewers take shorter times than 20 ms for no time at all, or for a tenth of a second.
    return max(20.0, milliseconds)
