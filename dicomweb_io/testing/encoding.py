"""Rows as DICOM JSON (PS3.18 Annex F) and as Native DICOM Model XML (PS3.19 Annex A), right or wrong on purpose."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import orjson

from dicomweb_io.dicom.attributes import lookup_keyword
from dicomweb_io.testing.exchange import Exchange

JSONRow = dict[str, Any]

_XML_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def json_bytes(value: Any) -> bytes:
    """JSON as servers send it: UTF-8, keys sorted."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        # orjson refuses lone surrogates, which damaged text may hold.
        return json.dumps(value, sort_keys=True).encode()


def json_array(rows: Iterable[JSONRow]) -> Iterator[bytes]:
    """A JSON array, row by row."""
    opening = b"["
    for row in rows:
        yield opening + json_bytes(row)
        opening = b",\n"
    yield b"]" if opening == b",\n" else b"[]"


def faulty_json(exchange: Exchange, content: bytes) -> bytes:
    """The JSON of an answer with the faults of the request worked into it."""
    if exchange.fault("bad_json"):
        return b'{"00080018": {"vr": "UI", "Value": [' + b"\xff\xfe not JSON"
    if exchange.fault("truncated_json"):
        return content[: max(1, len(content) // 2)]
    deep = exchange.fault("deep_json")
    if deep:
        depth = int(deep.options["depth"])
        return b"[" * depth + b"]" * depth
    if exchange.fault("nan_json"):
        extra = b'"00189073": {"vr": "FD", "Value": [NaN, Infinity, -Infinity]}'
        return re.sub(rb'\{(?="[0-9A-F]{8}")', b"{" + extra + b", ", content)
    return content


def wrong_vrs(rows: Iterable[JSONRow]) -> Iterator[JSONRow]:
    """Rows whose values have wrong or no VRs, and values of wrong types; the UIDs stay readable."""
    spoilt = {
        "00080020": {"vr": "DA", "Value": [20260102]},
        "00080061": {"vr": "CS", "Value": "CT"},
        "00100010": {"vr": "PN", "Value": ["Not^An^Object"]},
        "00100020": {"Value": [17]},
        "00200011": {"vr": "IS", "Value": ["not a number"]},
        "00201208": {"vr": "XX", "Value": [None]},
        "00280010": {"vr": "US", "Value": ["512"]},
        "7FE00010": {"vr": "OW", "InlineBinary": "@@@"},
    }
    for row in rows:
        yield {**row, **{tag: value for tag, value in spoilt.items() if tag in row or tag == "00100020"}}


def xml_document(row: JSONRow) -> bytes:
    """One dataset as a Native DICOM Model document."""
    body = "".join(_xml_attribute(tag, row[tag]) for tag in sorted(row))
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<NativeDicomModel>{body}</NativeDicomModel>'.encode()


def _xml_attribute(tag: str, element: dict[str, Any]) -> str:
    try:
        keyword = f" keyword={quoteattr(lookup_keyword(tag))}"
    except (KeyError, ValueError):
        keyword = ""
    content = ""
    if "BulkDataURI" in element:
        content = f"<BulkData uri={quoteattr(element['BulkDataURI'])}/>"
    elif "InlineBinary" in element:
        content = f"<InlineBinary>{element['InlineBinary']}</InlineBinary>"
    for number, value in enumerate(element.get("Value") or (), start=1):
        content += _xml_value(number, value, str(element.get("vr", "UN")))
    return f'<DicomAttribute tag="{tag}" vr="{element.get("vr", "UN")}"{keyword}>{content}</DicomAttribute>'


def _xml_value(number: int, value: Any, vr: str) -> str:
    if vr == "SQ":
        inner = "".join(_xml_attribute(tag, (value or {})[tag]) for tag in sorted(value or {}))
        return f'<Item number="{number}">{inner}</Item>'
    if isinstance(value, dict):
        groups = "".join(
            f"<{group}>{_xml_name(str(value[group]))}</{group}>"
            for group in ("Alphabetic", "Ideographic", "Phonetic")
            if value.get(group)
        )
        return f'<PersonName number="{number}">{groups}</PersonName>'
    if value is None:
        return f'<Value number="{number}"/>'
    return f'<Value number="{number}">{_xml_text(str(value))}</Value>'


def _xml_name(text: str) -> str:
    parts = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
    return "".join(
        f"<{part}>{_xml_text(value)}</{part}>" for part, value in zip(parts, text.split("^"), strict=False) if value
    )


def _xml_text(text: str) -> str:
    return escape(_XML_FORBIDDEN.sub("\ufffd", text))
