"""Frames, bulk data and rendered images (PS3.18 section 10.4.1.1), as far as the archive gives them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from urllib.parse import quote, unquote_plus

from dicomweb_io.elements import Resource
from dicomweb_io.testing.accept import MediaRange, parse_accept
from dicomweb_io.testing.exchange import Answer, Exchange, Refusal, Site
from dicomweb_io.testing.parts import PartOut, multipart_answer, single_answer

_OCTETS = "application/octet-stream"
_EXPLICIT = "1.2.840.10008.1.2.1"


def frames(site: Site, exchange: Exchange, resource: Resource, text: str) -> Answer:
    """Answers the retrieval of frames.

    Args:
        site: The server.
        exchange: The request.
        resource: The instance.
        text: The list of frame numbers as it stands in the path.
    """
    manners = site.manners
    if not manners.frames:
        raise Refusal(404, "There is no such resource.")
    numbers = _numbers(site, text)
    available = _frame_count(site, resource)
    missing = [number for number in numbers if number < 1 or number > available]
    status = 200
    if missing:
        if manners.frames_missing != "drop" or len(missing) == len(numbers):
            code = 404 if manners.frames_missing == "drop" else manners.frames_missing
            raise Refusal(code, f"The instance has {available} frames.")
        numbers = [number for number in numbers if number not in missing]
        status = 206
        exchange.warnings.append("Some frames do not exist")
    ranges = parse_accept(exchange.headers.get("accept"), exchange.parameter("accept"))
    wanted = Resource(
        resource.study_instance_uid, resource.series_instance_uid, resource.sop_instance_uid, tuple(numbers)
    )
    single, media_types = _wishes(site, ranges, len(numbers))
    found = site.archive.iter_frames(wanted, media_types=media_types)
    base = _url(site, exchange, resource)
    parts = (
        PartOut(
            frame.media_type
            if frame.transfer_syntax_uid is None
            else f"{frame.media_type}; transfer-syntax={frame.transfer_syntax_uid}",
            f"{base}/frames/{number}",
            frame.content,
            frame.path,
        )
        for number, frame in zip(numbers, found, strict=False)
    )
    return _answer(site, exchange, parts, single, status)


def bulkdata(site: Site, exchange: Exchange, resource: Resource, path: list[str]) -> Answer:
    """Answers the retrieval of one binary value.

    Args:
        site: The server.
        exchange: The request.
        resource: The instance.
        path: Tags, with the numbers of items between them, as in the BulkDataURI that metadata gave.
    """
    if not site.manners.bulkdata:
        raise Refusal(404, "There is no such resource.")
    if not path or not all(re.fullmatch(r"[0-9A-Fa-f]{8}|\d{1,6}", segment) for segment in path):
        raise Refusal(404, "There is no such bulk data.")
    ranges = parse_accept(exchange.headers.get("accept"), exchange.parameter("accept"))
    chosen = next((one for one in ranges if one.covers(_OCTETS)), None)
    if chosen is None or (chosen.multipart is False and not site.manners.single_part):
        raise Refusal(site.manners.unacceptable, "Bulk data is application/octet-stream.")
    url = f"{resource.uri}/bulkdata/" + "/".join(path)
    found = site.archive.iter_bulkdata_parts(url)
    location = _url(site, exchange, resource) + "/bulkdata/" + "/".join(path)
    parts = (PartOut(one.media_type or _OCTETS, location, one.content, one.path) for one in found)
    single = chosen.multipart is False or (chosen.multipart is None and site.manners.any_is_single)
    return _answer(site, exchange, parts, single, 200)


def rendered(site: Site, exchange: Exchange, resource: Resource, *, thumbnail: bool) -> Answer:
    """Answers the retrieval of a picture."""
    manners = site.manners
    if resource.level not in manners.rendered or (thumbnail and not manners.thumbnails):
        raise Refusal(404, "There is no such resource.")
    ranges = parse_accept(exchange.headers.get("accept"), exchange.parameter("accept"))
    media_type = next((offered for one in ranges for offered in manners.rendered_types if one.covers(offered)), None)
    if media_type is None:
        raise Refusal(manners.unacceptable, f"Pictures are {' or '.join(manners.rendered_types)}.")
    params = {unquote_plus(name): unquote_plus(value) for name, value in exchange.query if name != "accept"}
    picture = site.archive.retrieve_rendered(
        resource, media_types=(media_type,), params=params or None, thumbnail=thumbnail
    )
    return Answer(
        200, {"Content-Type": picture.media_type, "Content-Length": str(len(picture.content))}, picture.content
    )


def frame_numbers(site: Site, text: str) -> tuple[int, ...]:
    """The numbers of a frame list in a path, for rendering."""
    return tuple(_numbers(site, text))


def _numbers(site: Site, text: str) -> list[int]:
    manners = site.manners
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        raise Refusal(400, "The list of frames is malformed.")
    numbers = [int(number) for number in text.split(",")]
    if manners.frames_limit is not None and len(numbers) > manners.frames_limit:
        raise Refusal(400, f"At most {manners.frames_limit} frames can be requested at once.")
    if manners.frames_unique and len(set(numbers)) < len(numbers):
        raise Refusal(400, "A frame is listed twice.")
    return numbers


def _frame_count(site: Site, resource: Resource) -> int:
    row = next(iter(site.archive.iter_metadata(resource)), None)
    if row is None:
        raise Refusal(404, "There is no such instance.")
    if "00280010" not in row:
        raise Refusal(404, "The instance has no pixel data.")
    values = row.get("00280008", {}).get("Value") or [1]
    try:
        return max(1, int(values[0]))
    except (TypeError, ValueError):
        return 1


def _wishes(site: Site, ranges: list[MediaRange], count: int) -> tuple[bool, tuple[tuple[str, str], ...]]:
    """Whether one body was asked for, and what the archive is asked for."""
    manners = site.manners
    wishes: list[tuple[str, str]] = []
    single: bool | None = None
    for one in ranges:
        if one.multipart is False and (count > 1 or not manners.single_part):
            continue
        alone = one.multipart is False or (one.multipart is None and manners.any_is_single and count == 1)
        if single is None:
            single = alone
        if alone == single:
            wishes.append(_wish(one))
    if single is None:
        raise Refusal(manners.unacceptable, "None of the acceptable media types is available.")
    return single, tuple(wishes)


def _wish(one: MediaRange) -> tuple[str, str]:
    if one.media_type == "*/*":
        return (_OCTETS, _EXPLICIT) if not one.explicit else ("*/*", one.transfer_syntax or "*")
    return one.media_type, one.transfer_syntax or (_EXPLICIT if one.media_type == _OCTETS else "*")


def _answer(site: Site, exchange: Exchange, parts: Iterator[PartOut], single: bool, status: int) -> Answer:
    first = next(parts, None)
    if first is None:
        raise Refusal(404, "There is nothing to send.")
    if single:
        return single_answer(first)
    root = first.content_type if site.manners.root_syntax else first.content_type.partition(";")[0]
    return multipart_answer(exchange, site.manners, itertools.chain([first], parts), root, status=status)


def _url(site: Site, exchange: Exchange, resource: Resource) -> str:
    path = "/".join(quote(segment, safe=",") for segment in resource.uri.split("/"))
    return "/".join(filter(None, (exchange.base_url, site.manners.wado_prefix, path)))
