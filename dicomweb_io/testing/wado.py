"""Retrieval of objects and metadata (PS3.18 section 10.4, WADO-RS) with the manners and faults of the server."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from dicomweb_io.elements import Instance, Resource
from dicomweb_io.testing.accept import MediaRange, parse_accept, parse_as_one
from dicomweb_io.testing.encoding import JSONRow, faulty_json, json_array, json_bytes, wrong_vrs, xml_document
from dicomweb_io.testing.exchange import Answer, Exchange, Refusal, Site
from dicomweb_io.testing.manners_model import Manners
from dicomweb_io.testing.parts import PartOut, multipart_answer, single_answer
from dicomweb_io.testing.samples import clone
from dicomweb_io.testing.transcode import EXPLICIT_LITTLE, CannotTranscode, to_explicit_little

_DICOM = "application/dicom"
_JSON = "application/dicom+json"
_XML = "application/dicom+xml"
_BULK_TAG = re.compile(r"[0-9A-Fa-f]{8}\Z")


@dataclass(frozen=True)
class _Form:
    """How objects are sent: in parts or as one body, and in which transfer syntax (``"*"``: the stored one)."""

    multipart: bool
    syntax: str


def retrieve(site: Site, exchange: Exchange, resource: Resource) -> Answer:
    """Answers the retrieval of a study, series or instance."""
    manners = site.manners
    ranges = _ranges(manners, exchange)
    if not manners.metadata and any(one.media_type == _JSON for one in ranges):
        return metadata(site, exchange, resource, at_object=True)
    if resource.level not in manners.retrieves:
        raise Refusal(404, f"A {resource.level} cannot be retrieved as a whole.")
    form = _form(manners, ranges, resource)
    parts = _parts(site, exchange, resource, form)
    first = next(parts, None)
    if first is None:
        raise Refusal(404, f"There is no such {resource.level}.")
    only_one = resource.level == "instance"
    if not form.multipart:
        part = _with_fault(exchange, first)
        answer = single_answer(part)
        if manners.known_length == "never":
            del answer.headers["Content-Length"]
        return answer
    return multipart_answer(
        exchange, manners, itertools.chain([first], parts), _DICOM, only_one=only_one, foreign=_foreign
    )


def _with_fault(exchange: Exchange, part: PartOut) -> PartOut:
    found = exchange.fault("foreign_part")
    return _foreign(part) if found is not None and int(found.options["part"]) == 1 else part


def _foreign(part: PartOut) -> PartOut:
    return PartOut(part.content_type, part.location, clone(part.read(), "foreign"))


def _ranges(manners: Manners, exchange: Exchange) -> list[MediaRange]:
    header = exchange.headers.get("accept")
    if manners.accepts_alternatives:
        return parse_accept(header, exchange.parameter("accept"))
    ranges = parse_as_one(header)
    if ranges is None:
        raise Refusal(manners.unacceptable, "A list of media types is not understood.")
    return ranges


def _form(manners: Manners, ranges: list[MediaRange], resource: Resource) -> _Form:
    single_possible = manners.single_part and resource.level == "instance"
    for one in ranges:
        if not one.covers(_DICOM):
            continue
        if one.multipart is False and not single_possible:
            continue
        anything = one.media_type == "*/*"
        multipart = one.multipart
        if multipart is None:
            multipart = not (manners.any_is_single and single_possible)
        if one.transfer_syntax == "*" and manners.star_syntax:
            return _Form(multipart, "*")
        if one.transfer_syntax in (None, "*"):
            stored = manners.default_syntax == "stored" or (anything and manners.any_is_stored)
            return _Form(multipart, "*" if stored else EXPLICIT_LITTLE)
        return _Form(multipart, str(one.transfer_syntax))
    raise Refusal(manners.unacceptable, "None of the acceptable media types is available.")


def _parts(site: Site, exchange: Exchange, resource: Resource, form: _Form) -> Iterator[PartOut]:
    instances = site.archive.iter_instances(
        resource,
        media_types=((_DICOM, "*"),),
        max_element_bytes=site.spool_above,
        spool_directory=site.directory,
    )
    for instance in instances:
        spooled = instance.path is not None and os.path.dirname(os.path.abspath(instance.path)) == site.directory
        part = PartOut(
            f"{_DICOM}; transfer-syntax={instance.transfer_syntax_uid}",
            _url(site, exchange, instance.reference),
            instance.content,
            instance.path,
            spooled,
        )
        yield _encoded(site.manners, instance, part, form)


def _encoded(manners: Manners, instance: Instance, part: PartOut, form: _Form) -> PartOut:
    """The part in the transfer syntax that was asked for."""
    if form.syntax in ("*", instance.transfer_syntax_uid):
        return part
    possible = manners.transcoding if manners.transcoding is not None else frozenset({EXPLICIT_LITTLE})
    too_large = manners.transcoding_limit is not None and part.size > manners.transcoding_limit
    if form.syntax not in possible or form.syntax != EXPLICIT_LITTLE or too_large:
        part.discard()
        raise Refusal(manners.unsupported_syntax, f"The transfer syntax {form.syntax} cannot be made.")
    try:
        content = to_explicit_little(part.read(), instance.transfer_syntax_uid)
    except CannotTranscode:
        raise Refusal(
            manners.undecodable, f"The stored transfer syntax {instance.transfer_syntax_uid} cannot be decoded."
        ) from None
    finally:
        part.discard()
    return replace(
        part, content_type=f"{_DICOM}; transfer-syntax={EXPLICIT_LITTLE}", content=content, path=None, remove=False
    )


def _url(site: Site, exchange: Exchange, resource: Resource) -> str:
    path = "/".join(quote(segment, safe=",") for segment in resource.uri.split("/"))
    return "/".join(filter(None, (exchange.base_url, site.manners.wado_prefix, path)))


# Metadata -------------------------------------------------------------------------------------------------------------


def metadata(site: Site, exchange: Exchange, resource: Resource, *, at_object: bool = False) -> Answer:
    """Answers the retrieval of metadata, row by row."""
    manners = site.manners
    if not manners.metadata and not at_object:
        raise Refusal(404, "There is no such resource.")
    media_type = _metadata_type(manners, _ranges(manners, exchange))
    rows = (_metadata_row(site, exchange, row) for row in site.archive.iter_metadata(resource))
    first = next(rows, None)
    if first is None:
        raise Refusal(404, f"There is no such {resource.level}.")
    rows = itertools.chain([first], rows)  # type: ignore[assignment] # an iterator as good as a generator
    if media_type == _XML:
        documents = (PartOut(_XML, None, xml_document(row)) for row in rows)
        return multipart_answer(exchange, manners, documents, _XML)
    headers = {"Content-Type": media_type}
    if exchange.fault("wrong_vrs"):
        return Answer(200, headers, json_bytes(list(wrong_vrs(rows))))
    if any(exchange.fault(name) for name in ("bad_json", "truncated_json", "deep_json", "nan_json")):
        return Answer(200, headers, faulty_json(exchange, json_bytes(list(rows))))
    if manners.etags:
        body = b"".join(json_array(rows))
        headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        if exchange.headers.get("if-none-match") == headers["ETag"]:
            return Answer(304, {"ETag": headers["ETag"]})
        return Answer(200, headers, body)
    return Answer(200, headers, json_array(rows))


def _metadata_type(manners: Manners, ranges: list[MediaRange]) -> str:
    for one in ranges:
        for offered in (*manners.metadata_types, "application/json"):
            if not one.covers(offered):
                continue
            if offered != _XML and not one.multipart:
                return offered if manners.plain_json else _JSON
            if offered == _XML and one.multipart is not False:
                return offered
    raise Refusal(manners.unacceptable, f"Metadata is available as {' or '.join(manners.metadata_types)}.")


def _metadata_row(site: Site, exchange: Exchange, row: JSONRow) -> JSONRow:
    """A row whose binary values are given by address, or left out, as this server does."""
    reference = Resource.of(row)
    row = _with_bulkdata(site, row, _url(site, exchange, reference) + "/bulkdata", "")
    if not site.manners.metadata_syntax:
        row.pop("00083002", None)
    return row


def _with_bulkdata(site: Site, row: JSONRow, url: str, path: str) -> JSONRow:
    result: dict[str, Any] = {}
    for tag, element in row.items():
        where = f"{path}/{tag}"
        if "BulkDataURI" in element:
            if site.manners.metadata_bulkdata == "uri":
                # The archive knows how it counts; where its address has another form, count as the standard does.
                known = str(element["BulkDataURI"]).partition("/bulkdata/")[2]
                result[tag] = {"vr": element.get("vr", "UN"), "BulkDataURI": f"{url}/{known}" if known else url + where}
        elif "InlineBinary" in element and site.manners.metadata_bulkdata == "omitted":
            continue
        elif element.get("vr") == "SQ" and element.get("Value"):
            items = [
                _with_bulkdata(site, item or {}, url, f"{where}/{number}")
                for number, item in enumerate(element["Value"], start=1)
            ]
            result[tag] = {"vr": "SQ", "Value": items}
        else:
            result[tag] = element
    return result
