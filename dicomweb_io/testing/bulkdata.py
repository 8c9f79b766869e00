"""Bulk data (PS3.18 section 10.4.1.1.5): one value, a range of its bytes, or all values of an object."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import requests

from dicomweb_io.elements import Resource
from dicomweb_io.testing.accept import MediaRange, media_ranges
from dicomweb_io.testing.exchange import Answer, Exchange, Refusal, Site
from dicomweb_io.testing.parts import PartOut, multipart_answer, single_answer
from dicomweb_io.testing.transcode import open_dataset, pixel_items, raw_value

_OCTETS = "application/octet-stream"
_PIXELS = frozenset({"7FE00010", "7FE00008", "7FE00009"})
_SEGMENT = re.compile(r"[0-9A-Fa-f]{8}|\d{1,6}")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)\Z")


def bulkdata(site: Site, exchange: Exchange, resource: Resource, path: list[str]) -> Answer:
    """Answers the retrieval of one binary value.

    Args:
        site: The server.
        exchange: The request.
        resource: The instance.
        path: Tags, with the numbers of items between them, as in the BulkDataURI that metadata gave.
    """
    manners = site.manners
    if not manners.bulkdata:
        raise Refusal(404, "There is no such resource.")
    if not path or not all(_SEGMENT.fullmatch(segment) for segment in path):
        raise Refusal(404, "There is no such bulk data.")
    chosen = _acceptable(site, exchange)
    location = f"{site.url_of(exchange, resource)}/{manners.bulkdata_segment}/" + "/".join(path)
    where = [segment.upper() for segment in path]
    wanted = _byte_range(exchange) if manners.byte_ranges and chosen.multipart is not True else None
    values = _values(site, resource, where, wanted)
    try:
        first = next(values, None)
    except requests.HTTPError as error:
        if not (manners.bulkdata_of_all and getattr(error, "status", None) == 404):
            raise
        first = None
    if first is None and manners.bulkdata_of_all:
        values = _any_value(site, resource, where)
        first = next(values, None)
    if first is None:
        raise Refusal(404, "There is no such bulk data.")
    if wanted is not None:
        return _range_answer(replace(first, location=location), *wanted)
    parts = (replace(value, location=location) for value in itertools.chain([first], values))
    if chosen.multipart is False or (chosen.multipart is None and manners.any_is_single):
        return single_answer(next(parts))
    return multipart_answer(exchange, manners, parts, _OCTETS)


def all_bulkdata(site: Site, exchange: Exchange, resource: Resource, *, only_pixels: bool) -> Answer:
    """Answers the retrieval of all binary values, or all pixel data, of a study, series or instance."""
    manners = site.manners
    if not (manners.bulkdata and manners.bulkdata_levels):
        raise Refusal(404, "There is no such resource.")
    if _acceptable(site, exchange).multipart is False:
        raise Refusal(manners.unacceptable, "All bulk data come in parts.")
    parts = _all_parts(site, exchange, resource, only_pixels)
    first = next(parts, None)
    if first is None:
        raise Refusal(404, f"The {resource.level} has no bulk data.")
    return multipart_answer(exchange, manners, itertools.chain([first], parts), _OCTETS)


def _acceptable(site: Site, exchange: Exchange) -> MediaRange:
    ranges = media_ranges(site.manners, exchange)
    chosen = next((one for one in ranges if one.covers(_OCTETS)), None)
    if chosen is None or (chosen.multipart is False and not site.manners.single_part):
        raise Refusal(site.manners.unacceptable, "Bulk data is application/octet-stream.")
    return chosen


def _values(
    site: Site, resource: Resource, path: list[str], wanted: tuple[int, int | None] | None
) -> Iterator[PartOut]:
    if site.manners.bulkdata_fragments and path == ["7FE00010"]:
        fragments = pixel_items(open_dataset(site, resource))
        if fragments is not None:
            yield from (PartOut(_OCTETS, None, item) for item in fragments)
            return
    url = f"{resource.uri}/bulkdata/" + "/".join(path)
    found = site.archive.iter_bulkdata_parts(
        url, byte_range=wanted, max_element_bytes=site.spool_above, spool_directory=site.directory
    )
    for one in found:
        content = (one.content or b"") if one.path is None else None
        yield PartOut(one.media_type or _OCTETS, None, content, one.path, remove=one.path is not None)


def _any_value(site: Site, resource: Resource, path: list[str]) -> Iterator[PartOut]:
    content = raw_value(open_dataset(site, resource), path)
    if content is not None:
        yield PartOut(_OCTETS, None, content)


def _all_parts(site: Site, exchange: Exchange, resource: Resource, only_pixels: bool) -> Iterator[PartOut]:
    for row in site.archive.iter_metadata(resource):
        reference = Resource.of(row)
        base = f"{site.url_of(exchange, reference)}/{site.manners.bulkdata_segment}/"
        for path in _paths(row, ""):
            if only_pixels and path not in _PIXELS:
                continue
            for value in _values(site, reference, path.split("/"), None):
                yield replace(value, location=base + path)


def _paths(row: dict[str, Any], above: str) -> Iterator[str]:
    for tag, element in row.items():
        if "BulkDataURI" in element:
            known = str(element["BulkDataURI"]).partition("/bulkdata/")[2]
            yield known or above + tag
        elif element.get("vr") == "SQ":
            for number, item in enumerate(element.get("Value") or (), start=1):
                yield from _paths(item or {}, f"{above}{tag}/{number}/")


# Ranges ---------------------------------------------------------------------------------------------------------------


def _byte_range(exchange: Exchange) -> tuple[int, int | None] | None:
    """First and last byte that were asked for; None for everything, also if the header asks for several ranges."""
    match = _RANGE.match(exchange.headers.get("range", "").replace(" ", ""))
    if match is None:
        return None
    first, last = int(match[1]), int(match[2]) if match[2] else None
    return None if last is not None and last < first else (first, last)


def _range_answer(value: PartOut, first: int, last: int | None) -> Answer:
    size = value.size
    complete = last is not None and size == last - first + 1
    answer = single_answer(value)
    answer.status = 206
    answer.headers["Content-Range"] = f"bytes {first}-{first + size - 1}/{'*' if complete else first + size}"
    answer.headers["Accept-Ranges"] = "bytes"
    return answer
