"""The heads of data elements (PS3.5 section 7.1), and where values of undefined length end (section 7.5)."""

from __future__ import annotations

import struct

from dicomweb_io.dicom.byte_sources import Source

UNDEFINED = 0xFFFFFFFF
"""The length field of a value that a delimiter ends."""
FIRST_READ = 64 * 1024
"""Bytes of the first read: more than the header of an ordinary image."""

_SHORT = "AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US"
_LONG = "OB OD OF OL OV OW SQ SV UC UN UR UT UV"
SHORT_VRS = {vr.encode(): vr for vr in _SHORT.split()}
"""Value representations with a length of 16 bits in explicit VR (PS3.5 section 7.1.2), by their code."""
LONG_VRS = {vr.encode(): vr for vr in _LONG.split()}
"""Those with a length of 32 bits."""


class Cut(Exception):
    """The bytes end, or cannot be elements, at a place; the argument says what was there.

    It only passes between the functions of `dicomweb_io.dicom` and is never seen outside.
    """


def other_head(data: bytes, index: int, have: int, vr: bytes, order: str) -> tuple[str | None, int, int]:
    """Name, value start and length of an explicit VR element that is not of a usual VR with a 16-bit length."""
    name = LONG_VRS.get(vr)
    if name is not None:
        if index + 12 > have:
            return name, have + 1, 0
        return name, index + 12, struct.unpack_from(order + "I", data, index + 8)[0]
    if b"AA" <= vr <= b"ZZ" and 0x41 <= vr[1] <= 0x5A:
        # An unknown VR; those of before 2003 all have 16-bit lengths.
        return vr.decode(), index + 8, struct.unpack_from(order + "H", data, index + 6)[0]
    # Not a VR at all: some writers fall back to implicit VR in the middle of a dataset.
    return None, index + 8, struct.unpack_from(order + "I", data, index + 4)[0]


def measure_undefined(
    reader: Source,
    data: bytes,
    base: int,
    start: int,
    vr: str | None,
    explicit: bool,
    order: str,
    *,
    step: int = FIRST_READ,
) -> tuple[str | None, int]:
    """Finds the end of a value of undefined length.

    Args:
        reader: The file, for what `data` does not hold; it is read in pieces that are not kept.
        data: Bytes from file offset `base` on.
        base: See `data`.
        start: Where the value starts in `data`.
        vr: Its VR, None for implicit.
        explicit: Whether the dataset around it is explicit VR.
        order: ``"<"`` or ``">"``.
        step: Bytes to read at a time.

    Returns:
        The VR (``"SQ"`` if it consists of items and is not OB or the like) and the length with the delimiter; for
        others than ``"SQ"`` without it.

    Raises:
        Cut: If the delimiter is missing.
    """
    head = struct.Struct(order + "HHI").unpack_from
    have = len(data)
    index = start
    contexts: list[int] = [0]  # 0: between items; 1: in an explicit item of undefined length; 2: in an implicit one
    implicit_items = 0  # how many of them are 2: hostile files nest so deeply that nobody should look through them
    first_base = base
    while contexts:
        if index + 12 > have:
            more = reader.read(base + index, step)
            if len(more) < 8:
                raise Cut(f"the file ends at byte {base + index + len(more)} within it")
            base, index, data, have = base + index, 0, more, len(more)
        group, number, length = head(data, index)
        context = contexts[-1]
        if group == 0xFFFE:
            index += 8
            if number == 0xE000 and context == 0:
                if length != UNDEFINED:
                    index += length
                    if index > have and not reader.reaches(base + index):
                        raise Cut("an item reaches beyond the end of the file")
                    if index > have:
                        base, index, data, have = base + index, 0, b"", 0
                    continue
                if index + 8 > have:
                    more = reader.read(base + index, step)
                    base, index, data, have = base + index, 0, more, len(more)
                implicit = not explicit or implicit_items > 0 or not looks_explicit(data, index)
                implicit_items += implicit
                contexts.append(2 if implicit else 1)
            elif number == (0xE0DD if context == 0 else 0xE00D):
                implicit_items -= contexts.pop() == 2
            elif number == 0xE00D:
                continue
            else:
                raise Cut(f"there is an unexpected delimiter at byte {base + index - 8}")
            continue
        if context == 0:
            raise Cut(f"there is no item at byte {base + index}")
        if context == 1:
            code = data[index + 4 : index + 6]
            if code in SHORT_VRS:
                length = struct.unpack_from(order + "H", data, index + 6)[0]
                index += 8 + length
            else:
                if index + 12 > have:
                    raise Cut(f"the file ends at byte {base + have} within it")
                _, index, length = other_head(data, index, have, code, order)
                if length == UNDEFINED:
                    contexts.append(0)
                    continue
                index += length
        else:
            index += 8
            if length == UNDEFINED:
                contexts.append(0)
                continue
            index += length
        if index > have:
            if not reader.reaches(base + index):
                raise Cut(f"({group:04X},{number:04X}) in an item reaches beyond the end of the file")
            base, index, data, have = base + index, 0, b"", 0
    total = base + index - first_base - start
    if vr is None or vr in ("UN", "SQ"):
        return "SQ", total
    return vr, total - 8


def looks_explicit(data: bytes, index: int) -> bool:
    """Whether the element at `index` has a VR. An item's end says nothing, which counts as explicit."""
    if len(data) < index + 6 or data[index : index + 4] in (b"\xfe\xff\x0d\xe0", b"\xff\xfe\xe0\x0d"):
        return True
    return 0x41 <= data[index + 4] <= 0x5A and 0x41 <= data[index + 5] <= 0x5A
