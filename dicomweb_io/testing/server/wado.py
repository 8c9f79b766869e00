"""Retrieval (PS3.18 section 10.4, WADO-RS) with the behaviour and faults of the server.

Objects, metadata, frames and rendered images, and bulk data, in this order, as far as the archive gives them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote_plus

import requests

from dicomweb_io.dicom.attributes import resolve
from dicomweb_io.dicom.errors import DatasetError
from dicomweb_io.dicom.frames import number_of_frames
from dicomweb_io.dicom.json_decode import first_text
from dicomweb_io.dicom.pixels import NATIVE, is_video
from dicomweb_io.elements import Instance, Resource
from dicomweb_io.testing.faults import ForeignPart, JSONFault
from dicomweb_io.testing.server.behaviour import Behaviour
from dicomweb_io.testing.server.exchange import (
    Answer,
    Exchange,
    JSONRow,
    MediaRange,
    Refusal,
    media_ranges,
    status_of,
)
from dicomweb_io.testing.server.parts import (
    EXPLICIT_LITTLE,
    CannotTranscode,
    PartOut,
    json_array,
    json_bytes,
    multipart_answer,
    open_dataset,
    pixel_items,
    raw_value,
    single_answer,
    transcoded,
    writable,
    xml_document,
)
from dicomweb_io.testing.server.site import Site

_DICOM = "application/dicom"
_JSON = "application/dicom+json"
_XML = "application/dicom+xml"
_OCTETS = "application/octet-stream"
_STORED_SYNTAX = "00083002"
_UIDS = frozenset({"0020000D", "0020000E", "00080018", "00080016"})
_PIXELS = frozenset({"7FE00010", "7FE00008", "7FE00009"})
_SEGMENT = re.compile(r"[0-9A-Fa-f]{8}|\d{1,6}")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)\Z")


@dataclass(frozen=True)
class _Form:
    """How objects are sent: in parts or as one body, and in which transfer syntaxes, best first (``"*"``: stored)."""

    multipart: bool
    syntaxes: tuple[str, ...]


def retrieve(site: Site, exchange: Exchange, resource: Resource) -> Answer:
    """Answers the retrieval of a study, series or instance."""
    behaviour = site.behaviour
    ranges = media_ranges(behaviour, exchange)
    if not behaviour.metadata and any(one.media_type == _JSON for one in ranges):
        return metadata(site, exchange, resource, at_object=True)
    if resource.level not in behaviour.retrieves:
        raise Refusal(404, f"A {resource.level} cannot be retrieved as a whole.")
    form = _form(behaviour, ranges, resource)
    parts = _parts(site, exchange, resource, form)
    status = 200
    if behaviour.partial and resource.level != "instance" and "*" not in form.syntaxes:
        parts, missing = _available(site, parts)
        if missing:
            status = 206
            exchange.warnings.append(f"{missing} instances are not available in the requested transfer syntax")
    first = _next(parts)
    if first is None:
        raise Refusal(404, f"There is no such {resource.level}.")
    if not form.multipart:
        # Of the faults that concern parts, a body without parts can only show this one.
        for one in exchange.struck(ForeignPart):
            if one.part == 1:
                (first,) = one.instead(first)
        answer = single_answer(first)
        if behaviour.known_length == "never":
            del answer.headers["Content-Length"]
        return answer
    return multipart_answer(
        exchange,
        behaviour,
        itertools.chain([first], map(_made, parts)),
        _DICOM,
        only_one=resource.level == "instance",
        status=status,
    )


def _made(part: PartOut | Refusal) -> PartOut:
    if isinstance(part, Refusal):
        # The status is out already; the answer can only end early.
        raise part
    return part


def _next(parts: Iterator[PartOut | Refusal]) -> PartOut | None:
    first = next(parts, None)
    return first if first is None else _made(first)


def _available(site: Site, parts: Iterator[PartOut | Refusal]) -> tuple[Iterator[PartOut | Refusal], int]:
    """The available instances, made in advance, and the number of the others; if none is available, the refusals."""
    made: list[PartOut | Refusal] = []
    missing: list[PartOut | Refusal] = []
    for part in parts:
        if isinstance(part, Refusal):
            missing.append(part)
        else:
            made.append(part.spooled(site.directory, site.spool_above))
    return iter(made or missing), len(missing) if made else 0


def _form(behaviour: Behaviour, ranges: list[MediaRange], resource: Resource) -> _Form:
    single_possible = behaviour.single_part and resource.level == "instance"
    chosen: bool | None = None
    syntaxes: list[str] = []
    for one in ranges:
        if not one.covers(_DICOM):
            continue
        if one.multipart is False and not single_possible:
            continue
        multipart = one.multipart
        if multipart is None:
            multipart = not (behaviour.any_is_single and single_possible)
        if chosen is None:
            chosen = multipart
        if multipart == chosen:
            syntaxes.append(_wanted_syntax(behaviour, one))
    if chosen is None:
        raise Refusal(behaviour.unacceptable, "None of the acceptable media types is available.")
    return _Form(chosen, tuple(dict.fromkeys(syntaxes)))


def _wanted_syntax(behaviour: Behaviour, one: MediaRange) -> str:
    if one.transfer_syntax == "*" and behaviour.star_syntax:
        return "*"
    if one.transfer_syntax in (None, "*"):
        stored = behaviour.default_syntax == "stored" or (one.media_type == "*/*" and behaviour.any_is_stored)
        return "*" if stored else EXPLICIT_LITTLE
    return str(one.transfer_syntax)


def _parts(site: Site, exchange: Exchange, resource: Resource, form: _Form) -> Iterator[PartOut | Refusal]:
    """Each instance, or why it is not available."""
    for instance in site.instances(resource):
        part = PartOut.of(instance, site.directory, f"{_DICOM}; transfer-syntax={instance.transfer_syntax_uid}")
        part = replace(part, location=site.url_of(exchange, instance.reference))
        if "*" in form.syntaxes[:1] or instance.transfer_syntax_uid in form.syntaxes:
            yield part
            continue
        yield _encoded(site.behaviour, instance, part, form)


def _encoded(behaviour: Behaviour, instance: Instance, part: PartOut, form: _Form) -> PartOut | Refusal:
    """The part in the first of the requested transfer syntaxes that can be made from it."""
    stored = instance.transfer_syntax_uid
    refusal: Refusal | None = None
    for wanted in form.syntaxes:
        if wanted == "*":
            return part
        possible = behaviour.transcoding is None or wanted in behaviour.transcoding
        too_large = behaviour.transcoding_limit is not None and part.size > behaviour.transcoding_limit
        if not possible or too_large or not writable(wanted):
            status = behaviour.refused_syntaxes.get(wanted, behaviour.unsupported_syntax)
            refusal = refusal or Refusal(status, f"The transfer syntax {wanted} cannot be made.")
            continue
        try:
            if stored in behaviour.undecodable_syntaxes:
                raise CannotTranscode("there is no decoder")
            content = transcoded(part.read(), stored, wanted)
        except CannotTranscode:
            refusal = refusal or Refusal(
                behaviour.undecodable, f"{wanted} cannot be made from the stored transfer syntax {stored}."
            )
            continue
        part.discard()
        return replace(
            part, content_type=f"{_DICOM}; transfer-syntax={wanted}", content=content, path=None, remove=False
        )
    part.discard()
    return refusal or Refusal(behaviour.unsupported_syntax, "The transfer syntax cannot be made.")


# Metadata ------------------------------------------------------------------------------------------------------------


def metadata(site: Site, exchange: Exchange, resource: Resource, *, at_object: bool = False) -> Answer:
    """Answers the retrieval of metadata, row by row."""
    behaviour = site.behaviour
    if not behaviour.metadata and not at_object:
        raise Refusal(404, "There is no such resource.")
    media_type = _metadata_type(behaviour, media_ranges(behaviour, exchange))
    rows = (_metadata_row(site, exchange, row) for row in site.archive.iter_metadata(resource))
    first = next(rows, None)
    if first is None:
        raise Refusal(404, f"There is no such {resource.level}.")
    rows = itertools.chain([first], rows)  # type: ignore[assignment] # an iterator as good as a generator
    if media_type == _XML:
        return multipart_answer(exchange, behaviour, (PartOut(_XML, None, xml_document(row)) for row in rows), _XML)
    headers = {"Content-Type": media_type}
    if exchange.struck(JSONFault):
        return Answer(200, headers, exchange.json(json_bytes(list(rows))))
    return Answer(200, headers, json_array(exchange.rows(rows)))


def _metadata_type(behaviour: Behaviour, ranges: list[MediaRange]) -> str:
    for one in ranges:
        for offered in (*behaviour.metadata_types, "application/json"):
            if not one.covers(offered):
                continue
            if offered != _XML and not one.multipart:
                return offered if behaviour.plain_json else _JSON
            if offered == _XML and one.multipart is not False:
                return offered
    raise Refusal(behaviour.unacceptable, f"Metadata is available as {' or '.join(behaviour.metadata_types)}.")


def _metadata_row(site: Site, exchange: Exchange, row: JSONRow) -> JSONRow:
    """A row as this server gives it: what is left out, and which values are given by address."""
    behaviour = site.behaviour
    reference = Resource.of(row)
    if behaviour.metadata_parameters:
        row = _chosen(exchange, row)
    syntax = first_text(row, _STORED_SYNTAX) or EXPLICIT_LITTLE
    row = _with_bulkdata(behaviour, row, f"{site.url_of(exchange, reference)}/{behaviour.bulkdata_segment}", "")
    if not behaviour.metadata_syntax:
        row.pop(_STORED_SYNTAX, None)
    if not behaviour.metadata_compressed and syntax not in NATIVE:
        row.pop("7FE00010", None)
    return row


def _chosen(exchange: Exchange, row: JSONRow) -> JSONRow:
    """What ``includefield`` and ``excludeprivate`` leave of a row."""
    names = [
        name
        for key, value in exchange.query
        if exchange.text(key) == "includefield"
        for name in exchange.text(value).split(",")
    ]
    if names and "all" not in names:
        try:
            wanted = {resolve(name)[0] for name in names} | _UIDS
        except ValueError as error:
            raise Refusal(400, str(error)) from None
        row = {tag: element for tag, element in row.items() if tag in wanted}
    if exchange.parameter("excludeprivate") == "true":
        row = {tag: element for tag, element in row.items() if int(tag[3], 16) % 2 == 0}
    return row


def _with_bulkdata(behaviour: Behaviour, row: JSONRow, url: str, path: str) -> JSONRow:
    result: dict[str, Any] = {}
    for tag, element in row.items():
        where = f"{path}/{tag}"
        inline = "InlineBinary" in element
        if "BulkDataURI" in element or (inline and behaviour.bulkdata_of_all):
            if behaviour.metadata_bulkdata == "uri":
                # The archive knows how it counts; where its address has another form, count as the standard does.
                known = str(element.get("BulkDataURI", "")).partition("/bulkdata/")[2]
                place = f"/{known}" if known else where
                place = place.lower() if behaviour.bulkdata_of_all else place
                result[tag] = {"vr": element.get("vr", "UN"), "BulkDataURI": url + place}
        elif inline and behaviour.metadata_bulkdata == "omitted":
            continue
        elif element.get("vr") == "SQ" and element.get("Value"):
            items = [
                _with_bulkdata(behaviour, item or {}, url, f"{where}/{number}")
                for number, item in enumerate(element["Value"], start=1)
            ]
            result[tag] = {"vr": "SQ", "Value": items}
        else:
            result[tag] = element
    return result


# Frames ---------------------------------------------------------------------------------------------------------------


def frames(site: Site, exchange: Exchange, resource: Resource, text: str) -> Answer:
    """Answers the retrieval of frames.

    Args:
        site: The server.
        exchange: The request.
        resource: The instance.
        text: The list of frame numbers as it stands in the path.
    """
    behaviour = site.behaviour
    if not behaviour.frames:
        raise Refusal(404, "There is no such resource.")
    numbers = frame_numbers(site, text)
    available, stored = _description(site, resource)
    if is_video(stored):
        raise Refusal(behaviour.unacceptable, "A video is one stream without single frames.")
    missing = [number for number in numbers if number < 1 or number > available]
    status = 200
    if missing:
        if behaviour.frames_missing != "drop" or len(missing) == len(numbers):
            code = 404 if behaviour.frames_missing == "drop" else behaviour.frames_missing
            raise Refusal(code, f"The instance has {available} frames.")
        numbers = tuple(number for number in numbers if number not in missing)
        status = 206
        exchange.warnings.append("Some frames do not exist")
    ranges = media_ranges(behaviour, exchange)
    wanted = replace(resource, frames=numbers)
    single, media_types = _accepted_forms(site, ranges, len(numbers))
    if stored in behaviour.undecodable_syntaxes and not any(syntax in ("*", stored) for _, syntax in media_types):
        raise Refusal(behaviour.undecodable, f"The stored transfer syntax {stored} cannot be decoded.")
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
        if status_of(error) != 406:
            raise
        raise Refusal(behaviour.unacceptable, "The frames are not available in this form.") from None


def frame_numbers(site: Site, text: str) -> tuple[int, ...]:
    """The numbers of a frame list in a path."""
    behaviour = site.behaviour
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        raise Refusal(400, "The list of frames is malformed.")
    numbers = tuple(map(int, text.split(",")))
    if behaviour.frames_unique and len(set(numbers)) < len(numbers):
        raise Refusal(400, "A frame is listed twice.")
    return numbers


def _description(site: Site, resource: Resource) -> tuple[int, str]:
    """The number of frames of an instance, and its transfer syntax."""
    row = next(iter(site.archive.iter_metadata(resource)), None)
    if row is None:
        raise Refusal(404, "There is no such instance.")
    if "00280010" not in row:
        raise Refusal(site.behaviour.frames_without_pixels, "The instance has no pixel data.")
    syntax = first_text(row, _STORED_SYNTAX)
    try:
        return max(1, number_of_frames(row)), syntax
    except DatasetError:
        # What is damaged comes to light when it is read.
        return 1, syntax


def _accepted_forms(site: Site, ranges: list[MediaRange], count: int) -> tuple[bool, tuple[tuple[str, str], ...]]:
    """Whether one body was asked for, and what the archive is asked for."""
    behaviour = site.behaviour
    accepted_types: list[tuple[str, str]] = []
    single: bool | None = None
    for one in ranges:
        if not _offered(behaviour, one):
            continue
        if one.multipart is False and (count > 1 or not behaviour.single_part):
            continue
        alone = one.multipart is False or (one.multipart is None and behaviour.any_is_single and count == 1)
        if single is None:
            single = alone
        if alone == single:
            accepted_types.append(_accepted_form(behaviour, one))
    if single is None:
        raise Refusal(behaviour.unacceptable, "None of the acceptable media types is available.")
    return single, tuple(accepted_types)


def _offered(behaviour: Behaviour, one: MediaRange) -> bool:
    if not behaviour.accepts_alternatives and one.media_type.endswith("/*") and one.media_type != "*/*":
        return False
    return behaviour.frame_types is None or any(map(one.covers, behaviour.frame_types))


def _accepted_form(behaviour: Behaviour, one: MediaRange) -> tuple[str, str]:
    if one.media_type == "*/*":
        return (_OCTETS, EXPLICIT_LITTLE) if not one.explicit else ("*/*", one.transfer_syntax or "*")
    if behaviour.frame_types is not None and one.media_type.endswith("/*"):
        return next(filter(one.covers, behaviour.frame_types)), "*"
    return one.media_type, one.transfer_syntax or (EXPLICIT_LITTLE if one.media_type == _OCTETS else "*")


def _answer(site: Site, exchange: Exchange, parts: Iterator[PartOut], single: bool, status: int) -> Answer:
    first = next(parts, None)
    if first is None:
        raise Refusal(404, "There is nothing to send.")
    if single:
        return single_answer(first)
    root = first.content_type if site.behaviour.root_syntax else first.content_type.partition(";")[0]
    return multipart_answer(exchange, site.behaviour, itertools.chain([first], parts), root, status=status, frames=True)


# Rendered images ------------------------------------------------------------------------------------------------------


def rendered(site: Site, exchange: Exchange, resource: Resource, *, thumbnail: bool) -> Answer:
    """Answers the retrieval of a picture."""
    behaviour = site.behaviour
    if resource.level not in behaviour.rendered or (thumbnail and not behaviour.thumbnails):
        raise Refusal(404, "There is no such resource.")
    ranges = media_ranges(behaviour, exchange)
    if not behaviour.accepts_alternatives:
        # Such a server knows no ranges either.
        ranges = [one for one in ranges if one.media_type == "*/*" or one.media_type in behaviour.rendered_types]
    documents = ("text/html", "application/pdf") if behaviour.rendered_parameters is None else ()
    offers = (*behaviour.rendered_types, *documents)
    media_types = tuple(offered for one in ranges for offered in offers if one.covers(offered))
    if not media_types:
        raise Refusal(behaviour.unacceptable, f"Pictures are {' or '.join(behaviour.rendered_types)}.")
    params = {unquote_plus(name): unquote_plus(value) for name, value in exchange.query}
    params = {name: value for name, value in params.items() if name not in ("accept", "imageSetId")}
    if behaviour.rendered_parameters is not None:
        params = {name: value for name, value in params.items() if name in behaviour.rendered_parameters}
    if behaviour.rendered_window_of_three and params.get("window", ",,").count(",") != 2:
        raise Refusal(400, "window needs three values.")
    if behaviour.undecodable_syntaxes:
        row = next(iter(site.archive.iter_metadata(resource.instance)), None)
        if first_text(row or {}, _STORED_SYNTAX) in behaviour.undecodable_syntaxes:
            raise Refusal(behaviour.unrenderable, "The pixel data cannot be decoded.")
    try:
        picture = site.archive.retrieve_rendered(
            resource, media_types=media_types, params=params or None, thumbnail=thumbnail
        )
    except requests.HTTPError as error:
        status = status_of(error)
        if status == 406:
            raise Refusal(behaviour.unrenderable, "It cannot be rendered so.") from None
        if status == 404 and resource.frames and isinstance(behaviour.frames_missing, int):
            raise Refusal(behaviour.frames_missing, "There is no such frame.") from None
        raise
    return Answer(
        200, {"Content-Type": picture.media_type, "Content-Length": str(len(picture.content))}, picture.content
    )


# Bulk data: one value, a range of its bytes, or all values of an object -----------------------------------------------


def bulkdata(site: Site, exchange: Exchange, resource: Resource, path: list[str]) -> Answer:
    """Answers the retrieval of one binary value.

    Args:
        site: The server.
        exchange: The request.
        resource: The instance.
        path: Tags, with the numbers of items between them, as in the BulkDataURI that metadata gave.
    """
    behaviour = site.behaviour
    if not behaviour.bulkdata:
        raise Refusal(404, "There is no such resource.")
    if not path or not all(_SEGMENT.fullmatch(segment) for segment in path):
        raise Refusal(404, "There is no such bulk data.")
    chosen = _acceptable(site, exchange)
    location = f"{site.url_of(exchange, resource)}/{behaviour.bulkdata_segment}/" + "/".join(path)
    where = [segment.upper() for segment in path]
    wanted = _byte_range(exchange) if behaviour.byte_ranges and chosen.multipart is not True else None
    values = _values(site, resource, where, wanted)
    try:
        first = next(values, None)
    except requests.HTTPError as error:
        if not (behaviour.bulkdata_of_all and status_of(error) == 404):
            raise
        first = None
    if first is None and behaviour.bulkdata_of_all:
        values = _any_value(site, resource, where)
        first = next(values, None)
    if first is None:
        raise Refusal(404, "There is no such bulk data.")
    if wanted is not None:
        return _range_answer(replace(first, location=location), *wanted)
    parts = (replace(value, location=location) for value in itertools.chain([first], values))
    if chosen.multipart is False or (chosen.multipart is None and behaviour.any_is_single):
        return single_answer(next(parts))
    return multipart_answer(exchange, behaviour, parts, _OCTETS)


def all_bulkdata(site: Site, exchange: Exchange, resource: Resource, *, only_pixels: bool) -> Answer:
    """Answers the retrieval of all binary values, or all pixel data, of a study, series or instance."""
    behaviour = site.behaviour
    if not (behaviour.bulkdata and behaviour.bulkdata_levels):
        raise Refusal(404, "There is no such resource.")
    if _acceptable(site, exchange).multipart is False:
        raise Refusal(behaviour.unacceptable, "All bulk data come in parts.")
    parts = _all_parts(site, exchange, resource, only_pixels)
    first = next(parts, None)
    if first is None:
        raise Refusal(404, f"The {resource.level} has no bulk data.")
    return multipart_answer(exchange, behaviour, itertools.chain([first], parts), _OCTETS)


def _acceptable(site: Site, exchange: Exchange) -> MediaRange:
    ranges = media_ranges(site.behaviour, exchange)
    chosen = next((one for one in ranges if one.covers(_OCTETS)), None)
    if chosen is None or (chosen.multipart is False and not site.behaviour.single_part):
        raise Refusal(site.behaviour.unacceptable, "Bulk data is application/octet-stream.")
    return chosen


def _values(
    site: Site, resource: Resource, path: list[str], wanted: tuple[int, int | None] | None
) -> Iterator[PartOut]:
    if site.behaviour.bulkdata_fragments and path == ["7FE00010"]:
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
        base = f"{site.url_of(exchange, reference)}/{site.behaviour.bulkdata_segment}/"
        for path in _paths(row, ""):
            if only_pixels and path not in _PIXELS:
                continue
            for value in _values(site, reference, path.split("/"), None):
                yield replace(value, location=base + path)


def _paths(row: dict[str, Any], above: str) -> Iterator[str]:
    for tag, element in row.items():
        if "BulkDataURI" in element:
            yield str(element["BulkDataURI"]).partition("/bulkdata/")[2] or above + tag
        elif element.get("vr") == "SQ":
            for number, item in enumerate(element.get("Value") or (), start=1):
                yield from _paths(item or {}, f"{above}{tag}/{number}/")


# Ranges --------------------------------------------------------------------------------------------------------------


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
