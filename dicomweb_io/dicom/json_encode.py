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
from array import array
from collections.abc import Callable, Iterable
from decimal import Decimal, InvalidOperation
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from pydicom.datadict import dictionary_VR, private_dictionary_VR

from dicomweb_io.dicom.header_scan import (
    LARGE_VALUE,
    LONG_VRS,
    SHORT_VRS,
    UNDEFINED,
    BytesSource,
    ElementError,
    HeaderScan,
    InflatedSource,
    as_source,
    looks_explicit,
    measure_undefined,
    scan_header,
    scan_trailing,
)
from dicomweb_io.dicom.values import CharacterSet, character_set, character_set_of, name_object

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


# ----------------------------------------------------------------------------------------------------------------------
# Encoded values of data elements as values of the DICOM JSON model (PS3.18 section F.2.3), by value representation.


BINARY_VRS = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))
_WORD_CODES = {"OW": "H", "OL": "I", "OF": "I", "OD": "Q", "OV": "Q"}

Values = list[Any] | None
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


@lru_cache(maxsize=16384)
def hex_tag(tag: int) -> str:
    """A tag as 8 upper-case hexadecimal digits."""
    return f"{tag:08X}"


def inline_binary(value: bytes, vr: str, little_endian: bool) -> str:
    """The text of ``InlineBinary``: base64 of the value in little endian order (PS3.18 section F.2.7)."""
    if not little_endian:
        value = swap_words(value, vr)
    return binascii.b2a_base64(value, newline=False).decode("ascii")


def swap_words(value: bytes, vr: str) -> bytes:
    """The value with the bytes of each of its words reversed; as it is for VRs without words and odd lengths."""
    code = _WORD_CODES.get(vr)
    if code is None:
        return value
    words = array(code)
    if len(value) % words.itemsize:
        return value
    words.frombytes(value)
    words.byteswap()
    return words.tobytes()


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
        raise ValueError("an underscore is not a digit")
    except ValueError:
        number = _decimal(text)
        return int(number) if number == number.to_integral_value() else float(number)


def _decimal(text: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise ValueError("not a number") from None
    if "_" in text or not number.is_finite() or abs(number.adjusted()) > 400:
        raise ValueError("not a number")
    return number


def _integer_strings(value: bytes) -> Values:
    text = value.decode("latin-1").strip(" \0")
    if not text:
        return None
    if "\\" not in text:
        return [_integer(text)]
    return [_integer(item) if item else None for item in (part.strip() for part in text.split("\\"))]


def _decimal_string(text: str) -> float:
    number = float(text)
    if "_" in text or not math.isfinite(number):
        raise ValueError("not a number")
    return number


def _decimal_strings(value: bytes) -> Values:
    text = value.decode("latin-1").strip(" \0")
    if not text:
        return None
    if "\\" not in text:
        return [_decimal_string(text)]
    return [_decimal_string(item) if item else None for item in (part.strip() for part in text.split("\\"))]


PLAIN: dict[str, Callable[[bytes], Values]] = {
    "AE": _trimmed_text,
    "AS": _code_text,
    "CS": _code_text,
    "DA": _code_text,
    "DS": _decimal_strings,
    "DT": _code_text,
    "IS": _integer_strings,
    "TM": _code_text,
    "UI": _trimmed_text,
    "UR": _url,
}
"""Values whose encoding depends neither on byte order nor on the character set."""


def _texts(value: bytes, charset: CharacterSet) -> Values:
    text = charset.decode(value).rstrip(" \0")
    if not text:
        return None
    if "\\" not in text:
        return [text]
    return [item.rstrip(" \0") or None for item in text.split("\\")]


def _long_text(value: bytes, charset: CharacterSet) -> Values:
    text = charset.decode(value).rstrip(" \0")
    return [text] if text else None


def _names(value: bytes, charset: CharacterSet) -> Values:
    text = charset.decode(value.rstrip(b" \0"), person_name=True).rstrip(" \0")
    if not text:
        return None
    if "\\" not in text:
        name = name_object(text)
        return None if name is None else [name]
    return [name_object(item.rstrip(" ")) for item in text.split("\\")]


TEXT: dict[str, Callable[[bytes, CharacterSet], Values]] = {
    "LO": _texts,
    "LT": _long_text,
    "PN": _names,
    "SH": _texts,
    "ST": _long_text,
    "UC": _texts,
    "UT": _long_text,
}
"""Values in the dataset's character set."""

NUMBER_CODES = {"FD": "d", "FL": "f", "SL": "i", "SS": "h", "SV": "q", "UL": "I", "US": "H", "UV": "Q"}


@cache
def _number(order: str, code: str) -> struct.Struct:
    return struct.Struct(order + code)


def numbers(value: bytes, vr: str, order: str) -> Values:
    """Binary numbers.

    Raises:
        ValueError: If the length is no multiple of a number's.
    """
    if not value:
        return None
    code = NUMBER_CODES[vr]
    single = _number(order, code)
    if len(value) == single.size:
        found: list[Any] = list(single.unpack(value))
    elif len(value) % single.size:
        raise ValueError(f"its length is not a multiple of {single.size}")
    else:
        found = list(struct.unpack(f"{order}{len(value) // single.size}{code}", value))
    if code in "fd":
        return [finite(number) for number in found]
    return found


def attribute_tags(value: bytes, order: str) -> Values:
    """Attribute tags (AT) as 8 hexadecimal digits."""
    if not value:
        return None
    if len(value) % 4:
        raise ValueError("its length is not a multiple of 4")
    halves = struct.unpack(f"{order}{len(value) // 2}H", value)
    return [f"{halves[index]:04X}{halves[index + 1]:04X}" for index in range(0, len(halves), 2)]


# ----------------------------------------------------------------------------------------------------------------------


_DEEPEST = 64
_MAX_INFLATED = 16 << 20  # of a value that is not binary: a text of a deflated dataset can be a thousand times its file
_LUT_DESCRIPTORS = frozenset((0x00281101, 0x00281102, 0x00281103, 0x00283002))
_PIXEL_REPRESENTATION = 0x00280103
_SPECIFIC_CHARACTER_SET = 0x00080005
_NOTHING = BytesSource(b"")

Places = dict[int, tuple[str | None, int, int]]


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
        file: Where a scan's values that were not kept can be read. Without it they are reported as problems, unless
            `bulk_data` takes them.
        bulk_data: Called for each binary value (OB, OD, OF, OL, OV, OW, UN) of more than `bulk_data_threshold` bytes;
            returns its URI, or None to have it inline.
        bulk_data_threshold: In bytes.
        on_problem: Called with the path of each element that was left out (as in `BulkDataPlace`) and why, without its
            value.

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
        return encode_pydicom(source, wanted, (), bulk_data, bulk_data_threshold, on_problem)
    return _Encoder(scan, file, bulk_data, bulk_data_threshold, on_problem).dataset(scan, wanted)


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

    def dataset(self, scan: HeaderScan, wanted: tuple[int, ...] | None) -> dict[str, Any]:
        """The whole dataset, or its `wanted` attributes."""
        places = scan.elements
        if wanted is not None:
            places = {tag: places[tag] for tag in wanted if tag in places}
        elif scan.problem is not None:
            self._report((), scan.problem)
        base, data = scan.segments[0] if scan.segments else (0, b"")
        charset = _charset(scan.elements, data, base, character_set(()))
        found = self._elements(
            places,
            scan.elements,
            data,
            base,
            scan.explicit_vr,
            charset,
            (),
            self._representation(scan.elements, data, base),
        )
        tag = scan.pixel_data_tag
        if tag is not None and scan.pixel_data is not None and (wanted is None or tag in wanted) and self._bulk:
            vr, offset, length = scan.pixel_data
            vr = vr or ("OW" if tag == 0x7FE00010 else _standard_vr(tag))
            uri = self._bulk(BulkDataPlace((hex_tag(tag),), vr, offset, length))
            if uri is not None:
                found[hex_tag(tag)] = {"vr": vr, "BulkDataURI": uri}
        keys = list(found)
        if keys != sorted(keys):
            found = dict(sorted(found.items()))
        return found

    def _elements(
        self,
        places: Places,
        siblings: Places,
        data: bytes,
        base: int,
        explicit: bool,
        charset: CharacterSet,
        path: Path,
        representation: int | None,
    ) -> dict[str, Any]:
        """Encodes `places`; `siblings` are all elements of their dataset, `data` holds the bytes from offset `base`."""
        found: dict[str, Any] = {}
        order = self._order
        plain = PLAIN.get
        text = TEXT.get
        limit = base + len(data)
        for tag, (vr, offset, length) in places.items():
            if not tag & 0xFFFF:
                continue  # group lengths: PS3.18 section F.2.2
            key = hex_tag(tag)
            try:
                if vr is None or vr == "UN":
                    vr = self._resolve(tag, vr, length, siblings, data, base, representation)
                if vr in BINARY_VRS and length > self._threshold and self._bulk is not None:
                    uri = self._bulk(BulkDataPlace((*path, key), vr, offset, length))
                    if uri is not None:
                        found[key] = {"vr": vr, "BulkDataURI": uri}
                        continue
                start = offset - base
                if start >= 0 and offset + length <= limit:
                    if vr == "SQ":
                        items = self._sequence(
                            data, base, start, start + length, explicit, charset, (*path, key), representation
                        )
                        found[key] = {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
                        continue
                    value = data[start : start + length]
                else:
                    value = self._fetch(offset, length)
                    if vr == "SQ":
                        items = self._sequence(
                            value, offset, 0, length, explicit, charset, (*path, key), representation
                        )
                        found[key] = {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
                        continue
                as_plain = plain(vr)
                if as_plain is not None:
                    values = as_plain(value)
                else:
                    as_text = text(vr)
                    if as_text is not None:
                        values = as_text(value, charset)
                    elif vr in NUMBER_CODES:
                        values = numbers(value, vr, order)
                        if tag in _LUT_DESCRIPTORS and values and values[0] < 0:
                            values[0] += 65536  # the number of entries is unsigned whatever the VR (PS3.3 C.11.1.1)
                    elif vr in BINARY_VRS:
                        found[key] = (
                            {"vr": vr, "InlineBinary": inline_binary(value, vr, order == "<")} if value else {"vr": vr}
                        )
                        continue
                    elif vr == "AT":
                        values = attribute_tags(value, order)
                    else:
                        self._report((*path, key), "its value representation is unknown")
                        continue
            except ElementError as error:
                self._report((*path, key), str(error))
            except (ValueError, struct.error, IndexError):
                self._report((*path, key), f"its value cannot be decoded as {vr or 'an element'}")
            else:
                found[key] = {"vr": vr} if values is None else {"vr": vr, "Value": values}
        return found

    def _sequence(
        self,
        data: bytes,
        base: int,
        index: int,
        end: int,
        explicit: bool,
        charset: CharacterSet,
        path: Path,
        representation: int | None,
    ) -> list[dict[str, Any]]:
        if len(path) > 2 * _DEEPEST:
            raise ElementError(f"sequences are nested more than {_DEEPEST} deep")
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
            item_explicit = explicit and (index + 6 > stop or looks_explicit(data, index))
            places, index = self._item(data, base, index, stop, item_explicit, delimited)
            item_charset = _charset(places, data, base, charset)
            item_representation = self._representation(places, data, base)
            items.append(
                self._elements(
                    places,
                    places,
                    data,
                    base,
                    item_explicit,
                    item_charset,
                    (*path, len(items) + 1),
                    representation if item_representation is None else item_representation,
                )
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
                elif code.isalpha() and code.isupper():
                    vr = code.decode("latin-1")
                    length = self._short(data, index + 6)[0]
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

    def _representation(self, places: Places, data: bytes, base: int) -> int | None:
        """Pixel Representation (0028,0103), on which the VR of other elements depends in implicit VR."""
        place = places.get(_PIXEL_REPRESENTATION)
        if place is None or place[2] < 2 or place[1] < base or place[1] + 2 > base + len(data):
            return None
        return int(self._short(data, place[1] - base)[0])

    def _resolve(
        self,
        tag: int,
        vr: str | None,
        length: int,
        siblings: Places,
        data: bytes,
        base: int,
        representation: int | None,
    ) -> str:
        """The VR of an element that was encoded without one, or as UN (PS3.5 section 6.2.2)."""
        if tag & 0x10000:
            found = self._private_vr(tag, siblings, data, base)
        elif vr is None or length < 0xFFFF:
            found = _standard_vr(tag)
        else:
            return "UN"
        if " " not in found:
            return found
        if found == "US or SS":
            return "SS" if representation else "US"
        if tag == 0x00283006 and (descriptor := siblings.get(0x00283002)) is not None and descriptor[2] >= 2:
            return "US" if self._short(data, descriptor[1] - base)[0] == 1 else "OW"
        return "OW"

    def _private_vr(self, tag: int, siblings: Places, data: bytes, base: int) -> str:
        number = tag & 0xFFFF
        if 0x0010 <= number < 0x0100:
            return "LO"
        creator = siblings.get(tag & 0xFFFF0000 | number >> 8)
        if number < 0x1000 or creator is None:
            return "UN"
        name = data[max(creator[1] - base, 0) : max(creator[1] - base + creator[2], 0)]
        return _private_standard_vr(tag, name)

    def _report(self, path: Path, reason: str) -> None:
        if self._problem is not None:
            self._problem(path, reason)


@lru_cache(maxsize=16384)
def _standard_vr(tag: int) -> str:
    try:
        return str(dictionary_VR(tag))
    except KeyError:
        return "UN"


@lru_cache(maxsize=16384)
def _private_standard_vr(tag: int, creator: bytes) -> str:
    try:
        return str(private_dictionary_VR(tag, creator.decode("latin-1").rstrip(" \0")))
    except KeyError:
        return "UN"


def _charset(places: Places, data: bytes, base: int, default: CharacterSet) -> CharacterSet:
    place = places.get(_SPECIFIC_CHARACTER_SET)
    if place is None:
        return default
    return character_set_of(data[max(place[1] - base, 0) : max(place[1] - base + place[2], 0)])


# ----------------------------------------------------------------------------------------------------------------------
# pydicom datasets as the DICOM JSON model, with the same result as from the bytes of a header.


def encode_pydicom(
    dataset: Any,
    wanted: tuple[int, ...] | None,
    path: Path,
    bulk: BulkDataCallback | None,
    threshold: int,
    problem: ProblemCallback | None,
) -> dict[str, Any]:
    """The same from a pydicom dataset."""
    found: dict[str, Any] = {}
    for tag in sorted(dataset.keys()):
        if (wanted is not None and tag not in wanted) or not tag & 0xFFFF or tag >> 16 == 2:
            continue
        key = hex_tag(int(tag))
        try:
            element = dataset[tag]
            vr = str(element.VR)
            if vr == "SQ":
                items = [
                    encode_pydicom(item, None, (*path, key, number), bulk, threshold, problem)
                    for number, item in enumerate(element.value or (), 1)
                ]
                found[key] = {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
                continue
            if " or " in vr and isinstance(element.value, bytes):
                vr = "OW"
            if vr in BINARY_VRS:
                encoded = _encode_binary(dataset, int(tag), vr, element, (*path, key), bulk, threshold)
                if encoded is not None:
                    found[key] = encoded
                continue
            values = _pydicom_values(element, vr)
        except Exception as error:
            # pydicom raises whatever its converters do; its messages can hold values.
            if problem is not None:
                problem((*path, key), f"its value cannot be encoded ({type(error).__name__})")
        else:
            found[key] = {"vr": vr, "Value": values} if values else {"vr": vr}
    return found


def _encode_binary(
    dataset: Any, tag: int, vr: str, element: Any, path: Path, bulk: BulkDataCallback | None, threshold: int
) -> dict[str, Any] | None:
    value = element.value
    pixels = len(path) == 1 and tag in (0x7FE00008, 0x7FE00009, 0x7FE00010)
    if not value and not pixels:
        return {"vr": vr}
    if bulk is not None and (pixels or len(value) > threshold):
        length = -1 if element.is_undefined_length else len(value or b"")
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
    if vr == "IS" or vr in NUMBER_CODES:
        return [None if item in (None, "") else int(item) if item == int(item) else float(item) for item in values]
    return [str(item) if item not in (None, "") else None for item in values]
