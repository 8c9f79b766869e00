"""What requests and answers really have, as a test server heard and sent them: the proof of what cannot occur."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl

from dicomweb_io.testing.server.exchange import Record

_SEARCH = re.compile(r"/(studies|series|instances)$")
_OBJECT = re.compile(r"/(studies|series|instances)/[0-9.]+$")
_SEVERAL = re.compile(r"/(studies|series)/[^/]+$|/frames/[^/]*,[^/]*$")
_MATCHED = {"PatientID", "PatientName", "StudyDate"}
_LONG = 6000
"""Bytes of an answer that has a second part behind byte 4000."""


def _names(record: Record) -> set[str]:
    return {name for name, _ in parse_qsl(record.query, keep_blank_values=True)}


def _type(record: Record) -> str:
    return record.answer_headers.get("content-type", "")


def _is_search(record: Record) -> bool:
    return record.method == "GET" and _SEARCH.search(record.path) is not None


SHOWS: Mapping[str, Callable[[Record], bool]] = {
    "rows": lambda record: _is_search(record) and record.bytes_out > 0,
    "json": lambda record: "json" in _type(record),
    "vrs": lambda record: _is_search(record) or record.path.endswith("/metadata"),
    "paged": lambda record: "offset" in _names(record),
    "matched": lambda record: _is_search(record) and bool(_names(record) & _MATCHED),
    "limited": lambda record: "limit" in _names(record),
    "total": lambda record: "x-total-count" in record.answer_headers or record.path.endswith("/count"),
    "multipart": lambda record: _type(record).startswith("multipart/"),
    "several": lambda record: record.method == "GET" and _SEVERAL.search(record.path) is not None,
    "object": lambda record: record.method == "GET" and _OBJECT.search(record.path) is not None,
    "store": lambda record: record.method in ("POST", "PUT"),
    "body": lambda record: record.bytes_out > 0,
    "long": lambda record: _type(record).startswith("multipart/") and record.bytes_out >= _LONG,
}
"""How a trait of `tests.faults.failure_cases.TRAITS` shows in a request and its answer."""


def shown(trait: str, method: str, path: str, requests: list[Record]) -> list[Record]:
    """The requests with a trait, of those with a method and a path that matches a pattern."""
    return [
        record
        for record in requests
        if record.method == method and re.search(path, record.path) and SHOWS[trait](record)
    ]
