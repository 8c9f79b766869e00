"""Tells when a server plainly ignored a filter: by rule servers ignore what they do not know and return everything.

Only what cannot be a matter of interpretation is judged: identifiers (UI), dates (DA) and codes (CS) that a row carries
itself. Letter case, wildcards and several values are read in favour of the server.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate
from functools import lru_cache

from dicomweb_io.clients.web.urls import filter_values
from dicomweb_io.dicom.attributes import lookup_keyword, resolve, vr_of
from dicomweb_io.elements import JSONDataset, SearchQuery

_JUDGED = frozenset({"UI", "DA", "CS"})


def contradiction(query: SearchQuery, row: JSONDataset) -> str | None:
    """The keyword (or tag) of a filter that a row contradicts; None if there is none.

    Args:
        query: The search.
        row: A row of its answer.
    """
    for key, text in query.search_filters:
        tags = resolve(key)
        # The character set is never matched (PS3.4 section C.2.2.2); sequences are the server's own reading.
        if len(tags) != 1 or tags[0] == "00080005" or vr_of(tags[0]) not in _JUDGED:
            continue
        wanted = [value.strip() for value in filter_values(key, text)]
        if any(value in ("", "*", '""') for value in wanted):
            continue
        element = row.get(tags[0])
        values = element.get("Value") if isinstance(element, dict) else None
        present = [value.strip() for value in values or () if isinstance(value, str) and value.strip()]
        if present and not any(_matches(vr_of(tags[0]), value, pattern) for value in present for pattern in wanted):
            return _name(tags[0])
    return None


def unanswered(query: SearchQuery, rows: Sequence[JSONDataset]) -> list[str]:
    """The filters that the rows of an answer say nothing about, as they were given.

    A server returns the attributes that it matches (PS3.18 section 10.6.3.3). Where no row has one, it may have ignored
    the filter, as Orthanc 1.10.1 does with attributes of sequences and private ones (measured).

    Args:
        query: The search.
        rows: The rows of one answer; from none nothing follows.
    """
    found = []
    for key, text in query.search_filters:
        tag = resolve(key)[0]
        universal = not text.strip("*") and "\\" not in text
        if rows and not universal and tag != "00080005" and not any(tag in row for row in rows):
            found.append(key)
    return found


def _name(tag: str) -> str:
    try:
        return lookup_keyword(tag)
    except KeyError:
        return tag


def _matches(vr: str, value: str, pattern: str) -> bool:
    if vr == "UI":
        return value == pattern
    if vr == "DA":
        date = value.replace(".", "").replace("-", "")
        low, dash, high = pattern.replace(".", "").partition("-")
        if not dash:
            return date == low or not low.isdigit()
        return (not low or low <= date) and (not high or date <= high)
    return _wildcard(pattern).match(value) is not None


@lru_cache(maxsize=256)
def _wildcard(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern.replace("[", "[[]")), re.IGNORECASE)
