"""Frames and rendered images (PS3.18 section 10.4.1.1), as far as the archive gives them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from urllib.parse import unquote_plus

import requests

from dicomweb_io.elements import Resource
from dicomweb_io.testing.accept import MediaRange, media_ranges
from dicomweb_io.testing.exchange import Answer, Exchange, Refusal, Site
from dicomweb_io.testing.manners_model import Manners
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
    available, stored = _description(site, resource)
    missing = [number for number in numbers if number < 1 or number > available]
    status = 200
    if missing:
        if manners.frames_missing != "drop" or len(missing) == len(numbers):
            code = 404 if manners.frames_missing == "drop" else manners.frames_missing
            raise Refusal(code, f"The instance has {available} frames.")
        numbers = [number for number in numbers if number not in missing]
        status = 206
        exchange.warnings.append("Some frames do not exist")
    ranges = media_ranges(manners, exchange)
    wanted = Resource(
        resource.study_instance_uid, resource.series_instance_uid, resource.sop_instance_uid, tuple(numbers)
    )
    single, media_types = _wishes(site, ranges, len(numbers))
    if stored in manners.undecodable_syntaxes and not any(syntax in ("*", stored) for _, syntax in media_types):
        raise Refusal(manners.undecodable, f"The stored transfer syntax {stored} cannot be decoded.")
    found = site.archive.iter_frames(
        wanted, media_types=media_types, max_element_bytes=site.spool_above, spool_directory=site.directory
    )
    base = site.url_of(exchange, resource)
    parts = (
        PartOut(
            frame.media_type
            if frame.transfer_syntax_uid is None
            else f"{frame.media_type}; transfer-syntax={frame.transfer_syntax_uid}",
            f"{base}/frames/{number}",
            frame.content,
            frame.path,
            remove=frame.path is not None,
        )
        for number, frame in zip(numbers, found, strict=False)
    )
    try:
        return _answer(site, exchange, parts, single, status)
    except requests.HTTPError as error:
        if _status_of(error) != 406:
            raise
        raise Refusal(manners.unacceptable, "The frames cannot be had in this form.") from None


def rendered(site: Site, exchange: Exchange, resource: Resource, *, thumbnail: bool) -> Answer:
    """Answers the retrieval of a picture."""
    manners = site.manners
    if resource.level not in manners.rendered or (thumbnail and not manners.thumbnails):
        raise Refusal(404, "There is no such resource.")
    ranges = media_ranges(manners, exchange)
    if not manners.accepts_alternatives:
        # Such a server knows no ranges either.
        ranges = [one for one in ranges if one.media_type == "*/*" or one.media_type in manners.rendered_types]
    offers = (*manners.rendered_types, "text/html") if manners.rendered_parameters is None else manners.rendered_types
    media_types = tuple(offered for one in ranges for offered in offers if one.covers(offered))
    if not media_types:
        raise Refusal(manners.unacceptable, f"Pictures are {' or '.join(manners.rendered_types)}.")
    params = {unquote_plus(name): unquote_plus(value) for name, value in exchange.query}
    params = {name: value for name, value in params.items() if name not in ("accept", "imageSetId")}
    if manners.rendered_parameters is not None:
        params = {name: value for name, value in params.items() if name in manners.rendered_parameters}
    if manners.rendered_window_of_three and params.get("window", ",,").count(",") != 2:
        raise Refusal(400, "window needs three values.")
    if manners.undecodable_syntaxes and _syntax(site, resource) in manners.undecodable_syntaxes:
        raise Refusal(manners.unrenderable, "The pixel data cannot be decoded.")
    try:
        picture = site.archive.retrieve_rendered(
            resource, media_types=media_types, params=params or None, thumbnail=thumbnail
        )
    except requests.HTTPError as error:
        status = _status_of(error)
        if status == 406:
            raise Refusal(manners.unrenderable, "It cannot be rendered so.") from None
        if status == 404 and resource.frames and isinstance(manners.frames_missing, int):
            raise Refusal(manners.frames_missing, "There is no such frame.") from None
        raise
    return Answer(
        200, {"Content-Type": picture.media_type, "Content-Length": str(len(picture.content))}, picture.content
    )


def _syntax(site: Site, resource: Resource) -> str:
    row = next(iter(site.archive.iter_metadata(resource.instance)), None) or {}
    return str((row.get("00083002", {}).get("Value") or [""])[0])


def _status_of(error: requests.HTTPError) -> int | None:
    status = getattr(error, "status", None)
    return error.response.status_code if status is None and error.response is not None else status


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


def _description(site: Site, resource: Resource) -> tuple[int, str]:
    """The number of frames of an instance, and its transfer syntax."""
    row = next(iter(site.archive.iter_metadata(resource)), None)
    if row is None:
        raise Refusal(404, "There is no such instance.")
    if "00280010" not in row:
        raise Refusal(site.manners.frames_without_pixels, "The instance has no pixel data.")
    syntax = str((row.get("00083002", {}).get("Value") or [""])[0])
    values = row.get("00280008", {}).get("Value") or [1]
    try:
        return max(1, int(values[0])), syntax
    except (TypeError, ValueError):
        return 1, syntax


def _wishes(site: Site, ranges: list[MediaRange], count: int) -> tuple[bool, tuple[tuple[str, str], ...]]:
    """Whether one body was asked for, and what the archive is asked for."""
    manners = site.manners
    wishes: list[tuple[str, str]] = []
    single: bool | None = None
    for one in ranges:
        if not _offered(manners, one):
            continue
        if one.multipart is False and (count > 1 or not manners.single_part):
            continue
        alone = one.multipart is False or (one.multipart is None and manners.any_is_single and count == 1)
        if single is None:
            single = alone
        if alone == single:
            wishes.append(_wish(manners, one))
    if single is None:
        raise Refusal(manners.unacceptable, "None of the acceptable media types is available.")
    return single, tuple(wishes)


def _offered(manners: Manners, one: MediaRange) -> bool:
    if not manners.accepts_alternatives and one.media_type.endswith("/*") and one.media_type != "*/*":
        return False
    return manners.frame_types is None or any(map(one.covers, manners.frame_types))


def _wish(manners: Manners, one: MediaRange) -> tuple[str, str]:
    if one.media_type == "*/*":
        return (_OCTETS, _EXPLICIT) if not one.explicit else ("*/*", one.transfer_syntax or "*")
    if manners.frame_types is not None and one.media_type.endswith("/*"):
        return next(filter(one.covers, manners.frame_types)), "*"
    return one.media_type, one.transfer_syntax or (_EXPLICIT if one.media_type == _OCTETS else "*")


def _answer(site: Site, exchange: Exchange, parts: Iterator[PartOut], single: bool, status: int) -> Answer:
    first = next(parts, None)
    if first is None:
        raise Refusal(404, "There is nothing to send.")
    if single:
        return single_answer(first)
    root = first.content_type if site.manners.root_syntax else first.content_type.partition(";")[0]
    return multipart_answer(exchange, site.manners, itertools.chain([first], parts), root, status=status, frames=True)
