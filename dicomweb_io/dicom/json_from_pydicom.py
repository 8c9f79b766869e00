"""pydicom datasets as the DICOM JSON model, with the same result as from the bytes of a header."""

from __future__ import annotations

from typing import Any

from dicomweb_io.dicom.json_values import (
    BINARY_VRS,
    NUMBER_CODES,
    BulkDataCallback,
    BulkDataPlace,
    Path,
    ProblemCallback,
    finite,
    hex_tag,
    inline_binary,
)
from dicomweb_io.dicom.person_names import name_object


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
