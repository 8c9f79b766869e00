"""The Native DICOM Model, datasets in XML (PS3.19 section A.1), read into the DICOM JSON model (PS3.18 Annex F)."""

from __future__ import annotations

import math
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml.ElementTree import fromstring

from dicomweb_io.dicom.attributes import DECIMAL_VRS, INTEGER_VRS
from dicomweb_io.dicom.errors import DatasetError

_COMPONENTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
_MAX_DEPTH = 64


def parse_native_model(content: bytes) -> dict[str, Any]:
    """Reads one dataset.

    Document type definitions, entities, external references and nesting beyond 64 sequences are errors.

    Args:
        content: The XML document, of which ``NativeDicomModel`` is the root, in any namespace or none.

    Returns:
        A DICOM JSON dataset with ascending tags.

    Raises:
        DatasetError: If it is not such a document.
    """
    try:
        root = fromstring(content, forbid_dtd=True)
    except (ParseError, ValueError, LookupError) as error:
        # The texts of these errors name positions, entities and encodings, never values.
        raise DatasetError(f"not well-formed XML without entities: {error}") from None
    if _name(root) != "NativeDicomModel":
        raise DatasetError(f"the root of the XML is {_name(root)!r:.60}, not NativeDicomModel")
    return _dataset(root, 0)


def _name(element: Element) -> str:
    return element.tag.rpartition("}")[2]


def _dataset(parent: Element, depth: int) -> dict[str, Any]:
    if depth > _MAX_DEPTH:
        raise DatasetError("the XML nests sequences too deeply")
    elements: dict[str, Any] = {}
    for child in parent:
        if _name(child) != "DicomAttribute":
            continue
        tag = (child.get("tag") or "").upper()
        if len(tag) != 8 or any(character not in "0123456789ABCDEF" for character in tag):
            raise DatasetError(f"not a tag in the XML: {tag!r:.30}")
        elements[tag] = _attribute(child, depth)
    return dict(sorted(elements.items()))


def _attribute(attribute: Element, depth: int) -> dict[str, Any]:
    vr = attribute.get("vr") or "UN"
    result: dict[str, Any] = {"vr": vr}
    values: dict[int, Any] = {}
    for position, child in enumerate(attribute, 1):
        name = _name(child)
        number = child.get("number") or ""
        index = int(number) if number.isascii() and number.isdigit() and len(number) < 10 else position
        if name == "Value":
            values[index] = _value(vr, child.text or "")
        elif name == "Item":
            values[index] = _dataset(child, depth + 1)
        elif name == "PersonName":
            values[index] = _person_name(child)
        elif name == "InlineBinary":
            result["InlineBinary"] = "".join((child.text or "").split())
        elif name == "BulkData":
            uri = child.get("uri") or child.get("uuid")
            if uri:
                result["BulkDataURI"] = uri
    if values:
        # Numbers left out stand for empty values. A huge number must not make a huge list.
        dense = max(values) <= 2 * len(values) + 1000
        result["Value"] = [values.get(index) for index in range(1, max(values) + 1)] if dense else list(values.values())
    return result


def _value(vr: str, text: str) -> Any:
    if text == "":
        return None
    try:
        if vr in INTEGER_VRS:
            return int(text)
        if vr in DECIMAL_VRS:
            number = float(text)
            return number if math.isfinite(number) else text.strip()  # JSON has no other numbers
    except ValueError:
        return text
    return text


def _person_name(element: Element) -> dict[str, str]:
    groups = {}
    for group in element:
        parts = {_name(part): part.text or "" for part in group}
        text = "^".join(parts.get(component, "") for component in _COMPONENTS).rstrip("^")
        if text:
            groups[_name(group)] = text
    return groups
