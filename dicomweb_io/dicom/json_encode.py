"""Datasets as the DICOM JSON model (PS3.18 Annex F), straight from the bytes of their headers.

`encode` gives what pydicom's `Dataset.to_json_dict` gives, several times faster, except where Annex F asks for
something else: group lengths are left out, empty values are ``null`` in a list and no ``Value`` at all where there is
nothing else, absent groups of a name are left out, binary values are little endian, and numbers that JSON does not have
are texts.
"""

from __future__ import annotations

import binascii
import math
import struct
from collections.abc import Callable, Iterable
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from dicomweb_io.dicom.attributes import BINARY_VRS, entry_of
from dicomweb_io.dicom.header_scan import (
    LARGE_VALUE,
    LONG_VRS,
    PIXEL_DATA_TAGS,
    SHORT_VRS,
    UNDEFINED,
    UNDEFINED_LENGTH,
    BytesSource,
    ElementError,
    HeaderScan,
    InflatedSource,
    Place,
    as_source,
    looks_explicit,
    measure_undefined,
    other_head,
    scan_header,
    scan_trailing,
)
from dicomweb_io.dicom.values import (
    CharacterSet,
    character_set,
    character_set_of,
    name_object,
    parse_decimal,
    swap_words,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_MAX_DEPTH = 64
_MAX_INFLATED = 16 << 20  # of a value that is not binary: a text of a deflated dataset can be a thousand times its file
_LUT_DESCRIPTORS = frozenset((0x00281101, 0x00281102, 0x00281103, 0x00283002))
_PIXEL_REPRESENTATION = 0x00280103
_SPECIFIC_CHARACTER_SET = 0x00080005
_NOTHING = BytesSource(b"")
_TEXT_VRS = frozenset(("CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"))
_MAX_NAME = 16  # characters of a code string
_NUMBER_CODES = {"FD": "d", "FL": "f", "SL": "i", "SS": "h", "SV": "q", "UL": "I", "US": "H", "UV": "Q"}

Values = list[Any] | None
Decoder = Callable[[bytes], Values]
Places = dict[int, Place]
Path = tuple[str | int, ...]
"""Tags of 8 hexadecimal digits and, after those of sequences, numbers of items counted from 1."""


class BulkDataPlace(NamedTuple):
    """A binary value that may be given by reference.

    Attributes:
        path: The tag as 8 hexadecimal digits; for a value in a sequence the sequence's tag, the item's number counted
            from 1, and the tag.
        vr: Its value representation.
        offset: Where the value starts, as in `dicomweb_io.dicom.header_scan.Element`; None if the source is a pydicom
            dataset.
        length: Its bytes; -1 for encapsulated pixel data.
    """

    path: Path
    vr: str
    offset: int | None
    length: int


BulkDataCallback = Callable[[BulkDataPlace], "str | None"]
ProblemCallback = Callable[[Path, str], None]


def encode(
    source: HeaderScan | Dataset | bytes | BinaryIO,
    *,
    tags: Iterable[int | str] | None = None,
    file: BinaryIO | bytes | None = None,
    bulk_data: BulkDataCallback | None = None,
    bulk_data_threshold: int = 1024,
    on_problem: ProblemCallback | None = None,
) -> dict[str, Any]:
    """Encodes a dataset, or some of its attributes, in the DICOM JSON model.

    Pixel data appear only as a BulkDataURI, so only if `bulk_data` is given and returns one for them. An element whose
    value cannot be decoded is reported and left out; the rest is delivered.

    Args:
        source: A scan (see `dicomweb_io.dicom.header_scan.scan_header`), the bytes of a file, a file, or a pydicom
            dataset.
        tags: Only these top-level attributes, as numbers or 8 hexadecimal digits; only they are decoded.
        file: Where values that the scan did not read can be read. Without it they are reported as problems, unless
            `bulk_data` takes them.
        bulk_data: Called for each binary value (OB, OD, OF, OL, OV, OW, UN) of more than `bulk_data_threshold` bytes;
            returns its URI, or None to have it inline.
        bulk_data_threshold: In bytes.
        on_problem: Called with the path of each element that was left out (as in `BulkDataPlace`), or whose text the
            character sets of the dataset do not explain in full, and with the reason, without its value.

    Returns:
        The attributes by tag in ascending order.

    Raises:
        NotDICOMError, IncompleteDICOMError: If bytes or a file hold no dataset.
    """
    wanted = None if tags is None else _wanted(tuple(tags))
    if isinstance(source, HeaderScan):
        scan = source
    elif isinstance(source, (bytes, bytearray)) or hasattr(source, "read"):
        content = cast("BinaryIO | bytes", source)
        scan = _scan_all(content, None if bulk_data is None else LARGE_VALUE)
        file = content if file is None else file
    else:
        return _encode_pydicom(source, wanted, (), bulk_data, bulk_data_threshold, on_problem)
    return _Encoder(scan, file, bulk_data, bulk_data_threshold, on_problem).dataset(wanted)


def _scan_all(file: BinaryIO | bytes, large_value: int | None) -> HeaderScan:
    reader = as_source(file)
    scan = scan_header(reader, large_value=large_value)
    if scan.pixel_data is not None and scan.problem is None:
        trailing = scan_trailing(reader, scan, large_value=large_value)
        scan.elements.update(trailing.elements)
        scan.segments.extend(trailing.segments)
    return scan


@lru_cache(maxsize=1024)
def _wanted(tags: tuple[int | str, ...]) -> tuple[int, ...]:
    return tuple(sorted({int(tag, 16) if isinstance(tag, str) else int(tag) for tag in tags}))


class _Context(NamedTuple):
    """What the elements of a dataset or item need to be decoded.

    Attributes:
        data: Bytes that hold them, large values of the top level aside.
        base: The offset of `data`.
        explicit: Whether it is encoded in explicit VR.
        decoders: See `_decoders`, for its character set and byte order.
        representation: Pixel Representation (0028,0103), on which the VR of other elements depends in implicit VR.
        charset: Its character set.
    """

    data: bytes
    base: int
    explicit: bool
    decoders: dict[str, Decoder]
    representation: int | None
    charset: CharacterSet


class _Encoder:
    """Encodes one dataset; holds what stays the same at all depths."""

    __slots__ = ("_bulk", "_file", "_head", "_order", "_problem", "_scan", "_short", "_threshold")

    def __init__(
        self,
        scan: HeaderScan,
        file: BinaryIO | bytes | None,
        bulk: BulkDataCallback | None,
        threshold: int,
        problem: ProblemCallback | None,
    ) -> None:
        self._scan = scan
        self._file = file
        self._bulk = bulk
        self._threshold = threshold
        self._problem = problem
        self._order = "<" if scan.little_endian else ">"
        self._head = struct.Struct(self._order + "HHI").unpack_from
        self._short = struct.Struct(self._order + "H").unpack_from

    def dataset(self, wanted: tuple[int, ...] | None) -> dict[str, Any]:
        """The whole dataset, or its `wanted` attributes."""
        scan = self._scan
        places = scan.elements
        if wanted is not None:
            places = {tag: places[tag] for tag in wanted if tag in places}
        elif scan.problem is not None:
            self._report((), scan.problem)
        base, data = scan.segments[0] if scan.segments else (0, b"")
        ascii_only = character_set(())
        default = _Context(data, base, scan.explicit_vr, _decoders(ascii_only, self._order), None, ascii_only)
        encoded = self._elements(places, scan.elements, self._inside(default, scan.elements, scan.explicit_vr), ())
        tag = scan.pixel_data_tag
        if tag is not None and scan.pixel_data is not None and (wanted is None or tag in wanted) and self._bulk:
            vr, offset, length = scan.pixel_data
            vr = vr or ("OW" if tag == 0x7FE00010 else standard_vr(tag))
            uri = self._bulk(BulkDataPlace((hex_tag(tag),), vr, offset, length))
            if uri is not None:
                encoded[hex_tag(tag)] = {"vr": vr, "BulkDataURI": uri}
        keys = list(encoded)
        if keys != sorted(keys):
            encoded = dict(sorted(encoded.items()))
        return encoded

    def _inside(self, around: _Context, places: Places, explicit: bool) -> _Context:
        """The context of a dataset or item with these elements; what they do not say holds from `around`."""
        charset = places.get(_SPECIFIC_CHARACTER_SET)
        pixels = places.get(_PIXEL_REPRESENTATION)
        if charset is None and pixels is None and explicit == around.explicit:
            return around
        data, base, _, decoders, representation, characters = around
        if charset is not None:
            value = data[max(charset[1] - base, 0) : max(charset[1] - base + charset[2], 0)]
            characters = character_set_of(value)
            decoders = _decoders(characters, self._order)
        if pixels is not None and pixels[2] >= 2 and base <= pixels[1] <= base + len(data) - 2:
            representation = int(self._short(data, pixels[1] - base)[0])
        return _Context(data, base, explicit, decoders, representation, characters)

    def _elements(self, places: Places, siblings: Places, context: _Context, path: Path) -> dict[str, Any]:
        """Encodes `places`; `siblings` are all elements of their dataset or item."""
        encoded: dict[str, Any] = {}
        data, base = context.data, context.base
        limit = base + len(data)
        decoder = context.decoders.get
        for tag, (vr, offset, length) in places.items():
            if not tag & 0xFFFF:
                continue  # group lengths: PS3.18 section F.2.2
            key = hex_tag(tag)
            try:
                if vr is None or vr == "UN":
                    vr = self._resolve(tag, vr, length, siblings, context)
                if vr in BINARY_VRS and length > self._threshold and self._bulk is not None:
                    uri = self._bulk(BulkDataPlace((*path, key), vr, offset, length))
                    if uri is not None:
                        encoded[key] = {"vr": vr, "BulkDataURI": uri}
                        continue
                inside = offset >= base and offset + length <= limit
                if vr == "SQ":
                    holder = context if inside else context._replace(data=self._fetch(offset, length), base=offset)
                    start = offset - holder.base
                    items = self._sequence(holder, start, start + length, (*path, key))
                    encoded[key] = {"vr": vr, "Value": items} if items else {"vr": vr}
                    continue
                value = data[offset - base : offset - base + length] if inside else self._fetch(offset, length)
                decode = decoder(vr)
                if decode is not None:
                    values = decode(value)
                    if self._problem is not None and vr in _TEXT_VRS:
                        self._check_text(tag, vr, value, context.charset, (*path, key))
                    if vr == "SS" and tag in _LUT_DESCRIPTORS and values and values[0] < 0:
                        values[0] += 65536  # the number of entries is unsigned whatever the VR (PS3.3 C.11.1.1)
                elif vr in BINARY_VRS:
                    binary = {"InlineBinary": inline_binary(value, vr, self._order == "<")} if value else {}
                    encoded[key] = {"vr": vr, **binary}
                    continue
                else:
                    self._report((*path, key), "its value representation is unknown")
                    continue
            except ElementError as error:
                self._report((*path, key), str(error))
            except (ValueError, struct.error, IndexError):
                self._report((*path, key), f"its value cannot be decoded as {vr or 'an element'}")
            else:
                encoded[key] = {"vr": vr} if values is None else {"vr": vr, "Value": values}
        return encoded

    def _check_text(self, tag: int, vr: str, value: bytes, charset: CharacterSet, path: Path) -> None:
        if tag == _SPECIFIC_CHARACTER_SET and charset.unknown:
            names = ", ".join(name[:_MAX_NAME] for name in charset.unknown)
            self._report(path, f"{names!r} is no known character set, and Latin-1 stands in for it")
        elif (b"\x1b" in value or not value.isascii()) and not charset.reads(value, person_name=vr == "PN"):
            self._report(path, "some bytes of its text are not in the character sets that the dataset names")

    def _sequence(self, context: _Context, index: int, end: int, path: Path) -> list[dict[str, Any]]:
        if len(path) > 2 * _MAX_DEPTH:
            raise ElementError(f"sequences are nested more than {_MAX_DEPTH} deep")
        data, base = context.data, context.base
        items: list[dict[str, Any]] = []
        while index + 8 <= end:
            group, number, length = self._head(data, index)
            index += 8
            if group != 0xFFFE:
                raise ElementError("there is no item where one must be")
            if number == 0xE0DD:
                break
            if number != 0xE000:
                continue
            delimited = length == UNDEFINED
            stop = end if delimited else index + length
            if stop > end:
                raise ElementError("an item reaches beyond the end of its sequence")
            # PS3.5 section 6.2.2: a sequence once of VR UN is implicit; some writers mix encodings elsewhere too.
            explicit = context.explicit and (index + 6 > stop or looks_explicit(data, index))
            places, index = self._item(data, base, index, stop, explicit, delimited)
            items.append(
                self._elements(places, places, self._inside(context, places, explicit), (*path, len(items) + 1))
            )
        return items

    def _item(
        self, data: bytes, base: int, index: int, stop: int, explicit: bool, delimited: bool
    ) -> tuple[Places, int]:
        """The elements of an item that starts at `index`, and where the next one starts."""
        places: Places = {}
        while index + 8 <= stop:
            group, number, length = self._head(data, index)
            if group == 0xFFFE:
                if number == 0xE00D:
                    index += 8
                    if delimited:
                        return places, index
                    continue
                raise ElementError("there is an unexpected delimiter in an item")
            start = index + 8
            vr: str | None = None
            if explicit:
                code = data[index + 4 : index + 6]
                vr = SHORT_VRS.get(code)
                if vr is not None:
                    length = self._short(data, index + 6)[0]
                elif code in LONG_VRS:
                    vr = LONG_VRS[code]
                    length = self._head(data, index + 4)[2]
                    start = index + 12
                else:
                    item = data[:stop]
                    vr, start, length = other_head(BytesSource(item), item, 0, index, self._order)
            if length == UNDEFINED:
                vr, length = measure_undefined(_NOTHING, data, 0, start, vr, explicit, self._order)
                index = start + length + (0 if vr == "SQ" else 8)
            else:
                index = start + length
            if index > stop:
                raise ElementError("an element reaches beyond the end of its item")
            places[group << 16 | number] = (vr, base + start, length)
        if delimited:
            raise ElementError("an item does not end")
        return places, stop

    def _fetch(self, offset: int, length: int) -> bytes:
        value = self._scan.read(offset, length)
        if value is not None:
            return value
        if self._file is None:
            raise ElementError("its value was not read")
        reader = as_source(self._file)
        if self._scan.deflated:
            if length > _MAX_INFLATED:
                raise ElementError(f"its value inflates to more than {_MAX_INFLATED >> 20} MiB")
            reader = InflatedSource(reader, self._scan.dataset_offset)
        value = reader.read(offset, length)
        if len(value) < length:
            raise ElementError("its value reaches beyond the end of the file")
        return value

    def _resolve(self, tag: int, vr: str | None, length: int, siblings: Places, context: _Context) -> str:
        """The VR of an element that was encoded without one, or as UN (PS3.5 section 6.2.2)."""
        if tag & 0x10000:
            standard = self._private_vr(tag, siblings, context)
        elif vr is None or length < 0xFFFF:
            standard = standard_vr(tag)
        else:
            return "UN"
        if " " not in standard:
            return standard
        if standard == "US or SS":
            return "SS" if context.representation else "US"
        descriptor = siblings.get(0x00283002)
        if tag == 0x00283006 and descriptor is not None and descriptor[2] >= 2:
            return "US" if self._short(context.data, descriptor[1] - context.base)[0] == 1 else "OW"
        return "OW"

    def _private_vr(self, tag: int, siblings: Places, context: _Context) -> str:
        number = tag & 0xFFFF
        if 0x0010 <= number < 0x0100:
            return "LO"
        creator = siblings.get(tag & 0xFFFF0000 | number >> 8)
        if number < 0x1000 or creator is None:
            return "UN"
        start = creator[1] - context.base
        return _private_standard_vr(tag, context.data[max(start, 0) : max(start + creator[2], 0)])

    def _report(self, path: Path, reason: str) -> None:
        if self._problem is not None:
            self._problem(path, reason)


@lru_cache(maxsize=16384)
def standard_vr(tag: int) -> str:
    """The value representation of a tag in the dictionary; UN if it has none."""
    try:
        return entry_of(tag)[0]
    except KeyError:
        return "UN"


@lru_cache(maxsize=16384)
def _private_standard_vr(tag: int, creator: bytes) -> str:
    from pydicom import datadict

    try:
        return str(datadict.private_dictionary_VR(tag, creator.decode("latin-1").rstrip(" \0")))
    except KeyError:
        return "UN"


def _encode_pydicom(
    dataset: Any,
    wanted: tuple[int, ...] | None,
    path: Path,
    bulk: BulkDataCallback | None,
    threshold: int,
    problem: ProblemCallback | None,
) -> dict[str, Any]:
    """What `encode` gives, from a pydicom dataset and with all options spelled out."""
    encoded: dict[str, Any] = {}
    for tag in sorted(dataset.keys()):
        if (wanted is not None and tag not in wanted) or not tag & 0xFFFF or tag >> 16 == 2:
            continue
        key = hex_tag(int(tag))
        try:
            element = dataset[tag]
            vr = str(element.VR)
            if vr == "SQ":
                items = [
                    _encode_pydicom(item, None, (*path, key, number), bulk, threshold, problem)
                    for number, item in enumerate(element.value or (), 1)
                ]
                encoded[key] = {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
                continue
            if " or " in vr and isinstance(element.value, bytes):
                vr = "OW"
            if vr in BINARY_VRS:
                binary = _encode_binary(dataset, int(tag), vr, element, (*path, key), bulk, threshold)
                if binary is not None:
                    encoded[key] = binary
                continue
            values = _pydicom_values(element, vr)
        except Exception as error:
            # pydicom's converters can raise anything, and its messages can hold values.
            if problem is not None:
                problem((*path, key), f"its value cannot be encoded ({type(error).__name__})")
        else:
            encoded[key] = {"vr": vr, "Value": values} if values else {"vr": vr}
    return encoded


def _encode_binary(
    dataset: Any, tag: int, vr: str, element: Any, path: Path, bulk: BulkDataCallback | None, threshold: int
) -> dict[str, Any] | None:
    value = element.value
    pixels = len(path) == 1 and tag in PIXEL_DATA_TAGS
    if not value and not pixels:
        return {"vr": vr}
    if bulk is not None and (pixels or len(value) > threshold):
        length = UNDEFINED_LENGTH if element.is_undefined_length else len(value or b"")
        uri = bulk(BulkDataPlace(path, vr, None, length))
        if uri is not None:
            return {"vr": vr, "BulkDataURI": uri}
    if pixels:
        return None
    little = dataset.original_encoding[1] is not False
    return {"vr": vr, "InlineBinary": inline_binary(bytes(value), vr, little)}


def _pydicom_values(element: Any, vr: str) -> list[Any] | None:
    value = element.value
    if value is None or element.VM == 0:
        return None
    values = list(value) if element.VM > 1 else [value]
    if element.VM == 1 and not isinstance(value, (str, bytes, int, float)) and hasattr(value, "append"):
        values = list(value)
    if vr == "PN":
        return [name_object(str(item)) if item else None for item in values]
    if vr == "AT":
        return [hex_tag(int(item)) for item in values]
    if vr in ("DS", "FL", "FD"):
        return [None if item in (None, "") else finite(float(item)) for item in values]
    if vr == "IS" or vr in _NUMBER_CODES:
        return [None if item in (None, "") else int(item) if item == int(item) else float(item) for item in values]
    return [str(item) if item not in (None, "") else None for item in values]


@lru_cache(maxsize=16384)
def hex_tag(tag: int) -> str:
    """A tag as 8 upper-case hexadecimal digits."""
    return f"{tag:08X}"


def inline_binary(value: bytes, vr: str, little_endian: bool) -> str:
    """The text of ``InlineBinary``: base64 of the value in little endian order (PS3.18 section F.2.7)."""
    if not little_endian:
        value = swap_words(value, vr)
    return binascii.b2a_base64(value, newline=False).decode("ascii")


def finite(number: float) -> float | str:
    """A number, or the text that stands for what JSON has no number for (as fo-dicom and Azure write it)."""
    if math.isfinite(number):
        return number
    if number != number:
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"


def _code_text(value: bytes) -> Values:
    text = value.decode("latin-1").rstrip(" \0")
    if not text:
        return None
    if "\\" not in text:
        return [text]
    return [item or None for item in text.split("\\")]


def _trimmed_text(value: bytes) -> Values:
    """AE and UI: spaces at both ends are padding."""
    text = value.decode("latin-1").strip(" \0")
    if not text:
        return None
    if "\\" not in text:
        return [text]
    return [item.strip(" \0") or None for item in text.split("\\")]


def _url(value: bytes) -> Values:
    text = value.decode("latin-1").rstrip(" \0")
    return [text] if text else None


def _integer(text: str) -> int | float:
    try:
        if "_" not in text:
            return int(text)
    except ValueError:
        pass  # perhaps it has a decimal point, or an exponent
    number = parse_decimal(text)
    if number is None:
        raise ValueError("not a number")
    return int(number) if number == number.to_integral_value() else float(number)


def _decimal_string(text: str) -> float:
    number = float(text)
    if "_" in text or not math.isfinite(number):
        raise ValueError("not a number")
    return number


def _number_strings(number: Callable[[str], int | float]) -> Callable[[bytes], Values]:
    """What decodes the numbers of a value; those between two backslashes may be missing."""

    def decode(value: bytes) -> Values:
        text = value.decode("latin-1").strip(" \0")
        if not text:
            return None
        if "\\" not in text:
            return [number(text)]
        return [number(item) if item else None for item in (part.strip() for part in text.split("\\"))]

    return decode


def _texts(charset: CharacterSet, value: bytes) -> Values:
    text = charset.decode(value).rstrip(" \0")
    if not text:
        return None
    if "\\" not in text:
        return [text]
    return [item.rstrip(" \0") or None for item in text.split("\\")]


def _long_text(charset: CharacterSet, value: bytes) -> Values:
    text = charset.decode(value).rstrip(" \0")
    return [text] if text else None


def _names(charset: CharacterSet, value: bytes) -> Values:
    text = charset.decode(value.rstrip(b" \0"), person_name=True).rstrip(" \0")
    if not text:
        return None
    if "\\" not in text:
        name = name_object(text)
        return None if name is None else [name]
    return [name_object(item.rstrip(" ")) for item in text.split("\\")]


@cache
def _number_decoder(vr: str, order: str) -> Decoder:
    """Decodes binary numbers. Lengths that are not a multiple of a number's raise ValueError."""
    code = _NUMBER_CODES[vr]
    single = struct.Struct(order + code)

    def decode(value: bytes) -> Values:
        if not value:
            return None
        if len(value) == single.size:
            numbers: list[Any] = list(single.unpack(value))
        elif len(value) % single.size:
            raise ValueError(f"its length is not a multiple of {single.size}")
        else:
            numbers = list(struct.unpack(f"{order}{len(value) // single.size}{code}", value))
        return [finite(number) for number in numbers] if code in "fd" else numbers

    return decode


def _attribute_tags(order: str, value: bytes) -> Values:
    if not value:
        return None
    if len(value) % 4:
        raise ValueError("its length is not a multiple of 4")
    halves = struct.unpack(f"{order}{len(value) // 2}H", value)
    return [f"{halves[index]:04X}{halves[index + 1]:04X}" for index in range(0, len(halves), 2)]


@lru_cache(maxsize=256)
def _decoders(charset: CharacterSet, order: str) -> dict[str, Decoder]:
    """By VR, what makes values of the DICOM JSON model of encoded ones (PS3.18 section F.2.3)."""
    texts = dict.fromkeys(("LO", "SH", "UC"), _texts) | dict.fromkeys(("LT", "ST", "UT"), _long_text) | {"PN": _names}
    return {
        **dict.fromkeys(("AS", "CS", "DA", "DT", "TM"), _code_text),
        **dict.fromkeys(("AE", "UI"), _trimmed_text),
        "DS": _number_strings(_decimal_string),
        "IS": _number_strings(_integer),
        "UR": _url,
        "AT": partial(_attribute_tags, order),
        **{vr: partial(decode, charset) for vr, decode in texts.items()},
        **{vr: _number_decoder(vr, order) for vr in _NUMBER_CODES},
    }
