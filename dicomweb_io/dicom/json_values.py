"""Encoded values of data elements as values of the DICOM JSON model (PS3.18 section F.2.3), by value representation."""

from __future__ import annotations

import binascii
import math
import struct
from array import array
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from functools import cache, lru_cache
from typing import Any, NamedTuple

from dicomweb_io.dicom.character_sets import CharacterSet
from dicomweb_io.dicom.person_names import name_object

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
