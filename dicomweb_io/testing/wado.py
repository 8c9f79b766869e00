"""Retrieval of objects and metadata (PS3.18 section 10.4, WADO-RS) with the manners and faults of the server."""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from email.utils import format_datetime
from typing import Any

from dicomweb_io.dicom.attributes import resolve
from dicomweb_io.dicom.pixels import NATIVE
from dicomweb_io.elements import Instance, Resource
from dicomweb_io.testing.accept import MediaRange, media_ranges
from dicomweb_io.testing.encoding import JSONRow, faulty_json, json_array, json_bytes, wrong_vrs, xml_document
from dicomweb_io.testing.exchange import Answer, Exchange, Refusal, Site
from dicomweb_io.testing.manners_model import Manners
from dicomweb_io.testing.parts import PartOut, multipart_answer, single_answer
from dicomweb_io.testing.samples import clone
from dicomweb_io.testing.transcode import EXPLICIT_LITTLE, CannotTranscode, transcoded, writable

_DICOM = "application/dicom"
_JSON = "application/dicom+json"
_XML = "application/dicom+xml"
_ZIP = "application/zip"
_UIDS = frozenset({"0020000D", "0020000E", "00080018", "00080016"})


@dataclass(frozen=True)
class _Form:
    """How objects are sent: in parts or as one body, and in which transfer syntaxes, best first (``"*"``: stored)."""

    multipart: bool
    syntaxes: tuple[str, ...]


def retrieve(site: Site, exchange: Exchange, resource: Resource) -> Answer:
    """Answers the retrieval of a study, series or instance."""
    manners = site.manners
    ranges = media_ranges(manners, exchange)
    if not manners.metadata and any(one.media_type == _JSON for one in ranges):
        return metadata(site, exchange, resource, at_object=True)
    if resource.level not in manners.retrieves:
        raise Refusal(404, f"A {resource.level} cannot be retrieved as a whole.")
    zipped = manners.zip and next((one for one in ranges if one.covers(_DICOM) or one.media_type == _ZIP), None)
    if zipped and zipped.media_type == _ZIP:
        syntax = zipped.transfer_syntax or EXPLICIT_LITTLE
        return _zip_answer(site, resource, _parts(site, exchange, resource, _Form(False, (syntax,))))
    form = _form(manners, ranges, resource)
    parts = _parts(site, exchange, resource, form)
    status = 200
    if manners.partial and resource.level != "instance" and "*" not in form.syntaxes:
        parts, missing = _what_can_be_had(site, parts)
        if missing:
            status = 206
            exchange.warnings.append(f"{missing} instances cannot be had in the wanted transfer syntax")
    first = _next(parts)
    if first is None:
        raise Refusal(404, f"There is no such {resource.level}.")
    if not form.multipart:
        part = _with_fault(exchange, first)
        answer = single_answer(part)
        if manners.known_length == "never":
            del answer.headers["Content-Length"]
        return answer
    return multipart_answer(
        exchange,
        manners,
        itertools.chain([first], map(_made, parts)),
        _DICOM,
        only_one=resource.level == "instance",
        foreign=_foreign,
        status=status,
    )


def _made(part: PartOut | Refusal) -> PartOut:
    if isinstance(part, Refusal):
        # The status is out already; all that is left is to break off.
        raise part
    return part


def _next(parts: Iterator[PartOut | Refusal]) -> PartOut | None:
    first = next(parts, None)
    return first if first is None else _made(first)


def _what_can_be_had(site: Site, parts: Iterator[PartOut | Refusal]) -> tuple[Iterator[PartOut | Refusal], int]:
    """The instances that can be had, made in advance, and the number of the others; if there are these only, they."""
    made: list[PartOut | Refusal] = []
    missing: list[PartOut | Refusal] = []
    for part in parts:
        (missing if isinstance(part, Refusal) else made).append(
            part if isinstance(part, Refusal) else part.spooled(site.directory, site.spool_above)
        )
    return iter(made or missing), len(missing) if made else 0


def _zip_answer(site: Site, resource: Resource, parts: Iterator[PartOut | Refusal]) -> Answer:
    """The instances as a ZIP file, which is complete before the first byte of it is sent."""
    first = _next(parts)
    if first is None:
        raise Refusal(404, f"There is no such {resource.level}.")
    handle, path = tempfile.mkstemp(suffix=".zip", dir=site.directory)
    whole = PartOut(_ZIP, None, None, path, remove=True)
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            for number, part in enumerate(itertools.chain([first], map(_made, parts)), start=1):
                with archive.open(f"DICOM/{number:08}.dcm", "w", force_zip64=True) as member:
                    for piece in part.pieces():
                        member.write(piece)
                part.discard()
    except BaseException:
        whole.discard()
        raise
    answer = single_answer(whole)
    answer.headers["Content-Disposition"] = 'attachment; filename="dicom.zip"'
    return answer


def _with_fault(exchange: Exchange, part: PartOut) -> PartOut:
    found = exchange.fault("foreign_part")
    return _foreign(part) if found is not None and int(found.options["part"]) == 1 else part


def _foreign(part: PartOut) -> PartOut:
    return PartOut(part.content_type, part.location, clone(part.read(), "foreign"))


def _form(manners: Manners, ranges: list[MediaRange], resource: Resource) -> _Form:
    single_possible = manners.single_part and resource.level == "instance"
    chosen: bool | None = None
    syntaxes: list[str] = []
    for one in ranges:
        if not one.covers(_DICOM):
            continue
        if one.multipart is False and not single_possible:
            continue
        multipart = one.multipart
        if multipart is None:
            multipart = not (manners.any_is_single and single_possible)
        if chosen is None:
            chosen = multipart
        if multipart == chosen:
            syntaxes.append(_wanted_syntax(manners, one))
    if chosen is None:
        raise Refusal(manners.unacceptable, "None of the acceptable media types is available.")
    return _Form(chosen, tuple(dict.fromkeys(syntaxes)))


def _wanted_syntax(manners: Manners, one: MediaRange) -> str:
    if one.transfer_syntax == "*" and manners.star_syntax:
        return "*"
    if one.transfer_syntax in (None, "*"):
        stored = manners.default_syntax == "stored" or (one.media_type == "*/*" and manners.any_is_stored)
        return "*" if stored else EXPLICIT_LITTLE
    return str(one.transfer_syntax)


def _parts(site: Site, exchange: Exchange, resource: Resource, form: _Form) -> Iterator[PartOut | Refusal]:
    """Each instance, or why it cannot be had."""
    instances = site.archive.iter_instances(
        resource,
        media_types=((_DICOM, "*"),),
        max_element_bytes=site.spool_above,
        spool_directory=site.directory,
    )
    for instance in instances:
        part = PartOut.of(instance, site.directory, f"{_DICOM}; transfer-syntax={instance.transfer_syntax_uid}")
        part = replace(part, location=site.url_of(exchange, instance.reference))
        if "*" in form.syntaxes[:1] or instance.transfer_syntax_uid in form.syntaxes:
            yield part
            continue
        yield _encoded(site.manners, instance, part, form)


def _encoded(manners: Manners, instance: Instance, part: PartOut, form: _Form) -> PartOut | Refusal:
    """The part in the first of the wanted transfer syntaxes that can be made of it."""
    stored = instance.transfer_syntax_uid
    refusal: Refusal | None = None
    for wanted in form.syntaxes:
        if wanted == "*":
            return part
        possible = manners.transcoding is None or wanted in manners.transcoding
        too_large = manners.transcoding_limit is not None and part.size > manners.transcoding_limit
        if not possible or too_large or not writable(wanted):
            status = manners.refused_syntaxes.get(wanted, manners.unsupported_syntax)
            refusal = refusal or Refusal(status, f"The transfer syntax {wanted} cannot be made.")
            continue
        try:
            if stored in manners.undecodable_syntaxes:
                raise CannotTranscode("there is no decoder")
            content = transcoded(part.read(), stored, wanted)
        except CannotTranscode:
            refusal = refusal or Refusal(
                manners.undecodable, f"{wanted} cannot be made of the stored transfer syntax {stored}."
            )
            continue
        part.discard()
        return replace(
            part, content_type=f"{_DICOM}; transfer-syntax={wanted}", content=content, path=None, remove=False
        )
    part.discard()
    return refusal or Refusal(manners.unsupported_syntax, "The transfer syntax cannot be made.")


# Metadata -------------------------------------------------------------------------------------------------------------


def metadata(site: Site, exchange: Exchange, resource: Resource, *, at_object: bool = False) -> Answer:
    """Answers the retrieval of metadata, row by row."""
    manners = site.manners
    if not manners.metadata and not at_object:
        raise Refusal(404, "There is no such resource.")
    media_type = _metadata_type(manners, media_ranges(manners, exchange))
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
        headers["Last-Modified"] = format_datetime(site.arrivals.times(resource.study_instance_uid)[1], usegmt=True)
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
    """A row as this server gives it: what is left out, and which values are given by address."""
    manners = site.manners
    reference = Resource.of(row)
    if manners.metadata_parameters:
        row = _chosen(exchange, row)
    syntax = (row.get("00083002", {}).get("Value") or [EXPLICIT_LITTLE])[0]
    row = _with_bulkdata(manners, row, f"{site.url_of(exchange, reference)}/{manners.bulkdata_segment}", "")
    if not manners.metadata_syntax:
        row.pop("00083002", None)
    if not manners.metadata_compressed and syntax not in NATIVE:
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


def _with_bulkdata(manners: Manners, row: JSONRow, url: str, path: str) -> JSONRow:
    result: dict[str, Any] = {}
    for tag, element in row.items():
        where = f"{path}/{tag}"
        inline = "InlineBinary" in element
        if "BulkDataURI" in element or (inline and manners.bulkdata_of_all):
            if manners.metadata_bulkdata == "uri":
                # The archive knows how it counts; where its address has another form, count as the standard does.
                known = str(element.get("BulkDataURI", "")).partition("/bulkdata/")[2]
                place = f"/{known}" if known else where
                place = place.lower() if manners.bulkdata_of_all else place
                result[tag] = {"vr": element.get("vr", "UN"), "BulkDataURI": url + place}
        elif inline and manners.metadata_bulkdata == "omitted":
            continue
        elif element.get("vr") == "SQ" and element.get("Value"):
            items = [
                _with_bulkdata(manners, item or {}, url, f"{where}/{number}")
                for number, item in enumerate(element["Value"], start=1)
            ]
            result[tag] = {"vr": "SQ", "Value": items}
        else:
            result[tag] = element
    return result
