"""Datasets as the DICOM JSON model (PS3.18 Annex F), straight from the bytes of their headers.

`encode` gives what pydicom's `Dataset.to_json_dict` gives, several times faster, except where Annex F asks for
something else: group lengths are left out, empty values are ``null`` in a list and no ``Value`` at all where there is
nothing else, absent groups of a name are left out, binary values are little endian, and numbers that JSON does not have
are texts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pydicom.datadict import dictionary_VR, private_dictionary_VR

from dicomweb_io.dicom.byte_sources import BytesSource, InflatedSource, as_source
from dicomweb_io.dicom.character_sets import CharacterSet, character_set, character_set_of
from dicomweb_io.dicom.element_heads import LONG_VRS, SHORT_VRS, UNDEFINED, Cut, looks_explicit, measure_undefined
from dicomweb_io.dicom.header_scan import LARGE_VALUE, HeaderScan, scan_header, scan_trailing
from dicomweb_io.dicom.json_from_pydicom import encode_pydicom
from dicomweb_io.dicom.json_values import (
    BINARY_VRS,
    NUMBER_CODES,
    PLAIN,
    TEXT,
    BulkDataCallback,
    BulkDataPlace,
    Path,
    ProblemCallback,
    attribute_tags,
    hex_tag,
    inline_binary,
    numbers,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

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
            except Cut as cut:
                self._report((*path, key), str(cut))
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
            raise Cut(f"sequences are nested more than {_DEEPEST} deep")
        items: list[dict[str, Any]] = []
        while index + 8 <= end:
            group, number, length = self._head(data, index)
            index += 8
            if group != 0xFFFE:
                raise Cut("there is no item where one must be")
            if number == 0xE0DD:
                break
            if number != 0xE000:
                continue
            delimited = length == UNDEFINED
            stop = end if delimited else index + length
            if stop > end:
                raise Cut("an item reaches beyond the end of its sequence")
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
                raise Cut("there is an unexpected delimiter in an item")
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
                raise Cut("an element reaches beyond the end of its item")
            places[group << 16 | number] = (vr, base + start, length)
        if delimited:
            raise Cut("an item does not end")
        return places, stop

    def _fetch(self, offset: int, length: int) -> bytes:
        value = self._scan.read(offset, length)
        if value is not None:
            return value
        if self._file is None:
            raise Cut("its value was not read")
        reader = as_source(self._file)
        if self._scan.deflated:
            if length > _MAX_INFLATED:
                raise Cut(f"its value inflates to more than {_MAX_INFLATED >> 20} MiB")
            reader = InflatedSource(reader, self._scan.dataset_offset)
        value = reader.read(offset, length)
        if len(value) < length:
            raise Cut("its value reaches beyond the end of the file")
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
