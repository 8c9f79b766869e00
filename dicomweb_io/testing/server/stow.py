"""Storing and deleting (PS3.18 sections 10.5 and 10.7, STOW-RS) with the behaviour and faults of the server."""

from __future__ import annotations

import io
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import requests

from dicomweb_io.dicom.errors import MissingUIDError, Part10Error
from dicomweb_io.dicom.json_encode import encode
from dicomweb_io.dicom.media_types import parse_content_type
from dicomweb_io.dicom.part10 import Header, check_complete, header_of
from dicomweb_io.dicom.uids import is_uid
from dicomweb_io.elements import UID_KEYWORDS, Failure, Instance, Resource, SearchQuery
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.http.multipart import MultipartError, MultipartReader
from dicomweb_io.spool import Collected, collect
from dicomweb_io.testing.faults import StoreFault
from dicomweb_io.testing.server.exchange import Answer, Exchange, Refusal, parse_accept, status_of, warning_header
from dicomweb_io.testing.server.parts import (
    IMPLICIT_LITTLE,
    CannotTranscode,
    coerced,
    json_bytes,
    xml_document,
)
from dicomweb_io.testing.server.site import Site

_XML = "application/dicom+xml"

_CLASS, _INSTANCE = "00081150", "00081155"
_FAILED, _REASON = "00081198", "00081197"
_WARNING = "00081196"
_OTHER, _URL = "0008119A", "00081190"
_FAILED_ATTRIBUTES, _COMMENT = "00741048", "00000902"

_DETAILS: dict[str, dict[str, Any]] = {
    "none": {},
    "private": {
        "00090010": {"vr": "LO", "Value": ["GOOGLE"]},
        "00090097": {"vr": "UT", "Value": ["The instance was not stored."]},
    },
    "attributes": {
        _FAILED_ATTRIBUTES: {"vr": "SQ", "Value": [{_COMMENT: {"vr": "LO", "Value": ["The instance was not stored."]}}]}
    },
}
_DICOM = "application/dicom"
_TIMED = {
    "00080020": "StudyDate",
    "00080030": "StudyTime",
    "00100030": "PatientBirthDate",
    "00400244": "PerformedProcedureStepStartDate",
}
_ANYTHING = re.compile("")
_WELL_FORMED = {
    "DA": re.compile(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])\Z"),
    "TM": re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?\Z"),
}


@dataclass
class Outcome:
    """The outcome of one part: stored if there is no reason against it."""

    sop_class_uid: str | None = None
    sop_instance_uid: str | None = None
    url: str | None = None
    study_url: str | None = None
    reason: int | None = None
    warning: int | None = None
    comment: str = ""
    garbage: bool = False
    no_uids: bool = False
    wrong_study: bool = False
    hidden: bool = False


@dataclass
class Store:
    """One request in progress, which its faults may change.

    Attributes:
        site: The server.
        exchange: The request.
        study: The study of the URL; instances of others are refused.
        replace: Whether instances that exist are replaced.
        outcomes: The outcomes of the parts so far.
        refusal: Gives the reason to refuse the instance of a number in the request, or None.
        refusal_status: The status of a store in which such an instance was refused; None for the usual one.
        swallowed: Whether the request is read and forgotten, and answered as if it had held nothing.
        pretended: Whether nothing is stored, although it is named as stored.
        keeps_old: Whether instances that exist stay as they are, although they are named as stored.
        unnamed: The numbers of instances that the answer leaves out.
    """

    site: Site
    exchange: Exchange
    study: str | None
    replace: bool
    outcomes: list[Outcome] = field(default_factory=list)
    refusal: Callable[[int], int | None] = lambda number: None
    refusal_status: int | None = None
    swallowed: bool = False
    pretended: bool = False
    keeps_old: bool = False
    unnamed: set[int] = field(default_factory=set)


def store(site: Site, exchange: Exchange, study: str | None, *, replace: bool = False) -> Answer:
    """Stores the parts of a request one by one as they arrive.

    Args:
        site: The server.
        exchange: The request.
        study: The study of the URL; instances of others are refused.
        replace: Whether instances that exist are replaced (``PUT``).
    """
    behaviour = site.behaviour
    media_type = _response_type(site, exchange)
    content_type = exchange.headers.get("content-type", "")
    kind = _kind_of_body(site, content_type)
    coding = exchange.headers.get("content-encoding", "identity").strip().lower()
    body: Iterator[bytes] = _limited(exchange.body, behaviour.max_body)
    length = exchange.headers.get("content-length", "")
    if behaviour.max_body is not None and length.isdigit() and int(length) > behaviour.max_body:
        raise Refusal(413, f"The body is larger than {behaviour.max_body} bytes.", {"Connection": "close"})
    running = Store(site, exchange, study, replace)
    # A client that stores again what it just deleted meets no remains of it.
    site.let_go(all_at_once=True)
    running.swallowed = coding not in ("", "identity")
    if running.swallowed and behaviour.store_gzip != "swallowed":
        raise Refusal(int(behaviour.store_gzip), "The body must not be compressed.", {"Connection": "close"})
    for one in exchange.struck(StoreFault):
        one.apply(running)
    if running.swallowed:
        for _ in body:
            pass
        return _store_answer(running, media_type, 200)
    for collected in _parts(site, body, content_type, kind):
        try:
            running.outcomes.append(_store_one(running, collected))
        finally:
            if collected.path is not None and os.path.exists(collected.path):
                os.unlink(collected.path)
    if not running.outcomes:
        if behaviour.store_empty >= 400:
            raise Refusal(behaviour.store_empty, "The request holds no instance.")
        return (
            Answer(204) if behaviour.store_empty == 204 else _store_answer(running, media_type, behaviour.store_empty)
        )
    return _store_answer(running, media_type, _status(running))


def delete(site: Site, exchange: Exchange, resource: Resource) -> Answer:
    """Deletes a study, series or instance."""
    if resource.level not in site.behaviour.deletes:
        raise Refusal(405, "Deleting is not supported here.", {"Allow": "GET"})
    with site.store_lock:
        if site.is_leaving(resource) or not _exists(site, resource):
            raise Refusal(404, f"There is no such {resource.level}.")
        site.delete(resource)
    return Answer(204)


# The request ----------------------------------------------------------------------------------------------------------


def _kind_of_body(site: Site, content_type: str) -> str:
    parsed = parse_content_type(content_type)
    kind, media_type = "single", parsed.media_type
    if media_type == "multipart/related":
        kind, media_type = "multipart", parsed.parameters.get("type", "").strip().lower()
    if kind not in site.behaviour.store_types or media_type != _DICOM:
        raise Refusal(415, f"The media type {content_type[:100]!r} is not supported.")
    return kind


def _response_type(site: Site, exchange: Exchange) -> str:
    behaviour = site.behaviour
    for one in parse_accept(exchange.headers.get("accept"), exchange.parameter("accept")):
        if one.media_type == "*/*":
            return behaviour.store_response
        for offered in (*behaviour.store_response_types, "application/json"):
            if one.covers(offered) and not one.multipart:
                return offered
    raise Refusal(406, f"Answers are {' or '.join(behaviour.store_response_types)}.")


def _limited(body: Iterable[bytes], limit: int | None) -> Iterator[bytes]:
    size = 0
    for chunk in body:
        size += len(chunk)
        if limit is not None and size > limit:
            raise Refusal(413, f"The body is larger than {limit} bytes.", {"Connection": "close"})
        yield chunk


def _parts(site: Site, body: Iterator[bytes], content_type: str, kind: str) -> Iterator[Collected]:
    if kind == "single":
        yield collect(body, max_bytes=site.spool_above, directory=site.directory)
        return
    try:
        for part in MultipartReader(body, content_type):
            yield collect(part.iter_bytes(), max_bytes=site.spool_above, directory=site.directory)
    except MultipartError as error:
        raise Refusal(400, f"The body is malformed: {error}") from None


# One instance ---------------------------------------------------------------------------------------------------------


def _store_one(running: Store, collected: Collected) -> Outcome:
    behaviour, exchange = running.site.behaviour, running.exchange
    number = len(running.outcomes) + 1
    try:
        with _opened(collected) as file:
            header = header_of(file)
            incomplete = check_complete(file)
    except MissingUIDError as error:
        uid = error.uids.get("SOPInstanceUID")
        return Outcome(None, uid, reason=behaviour.missing_uids_reason, garbage=True, no_uids=True)
    except (Part10Error, ValueError):
        return Outcome(reason=behaviour.garbage_reason, garbage=True)
    if incomplete is not None:
        return Outcome(header.sop_class_uid, header.sop_instance_uid, reason=behaviour.garbage_reason, garbage=True)
    reference = Resource(header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid)
    url = running.site.url_of(exchange, reference)
    outcome = Outcome(header.sop_class_uid, header.sop_instance_uid, url, url.partition("/series/")[0])
    outcome.reason = running.refusal(number)
    if outcome.reason is not None:
        return outcome
    if running.study is not None and header.study_instance_uid != running.study:
        outcome.reason, outcome.wrong_study = behaviour.wrong_study_reason, True
        return outcome
    if behaviour.explicit_only and header.transfer_syntax_uid == IMPLICIT_LITTLE:
        outcome.reason = behaviour.missing_uids_reason
        return outcome
    outcome.hidden = number in running.unnamed
    if not running.pretended:
        outcome.reason = _keep(running, header, collected)
    if outcome.reason is None and behaviour.invalid_value_warning is not None:
        malformed = _malformed(collected)
        if malformed:
            running.site.erroneous.update(malformed)
            outcome.warning, outcome.comment = (
                behaviour.invalid_value_warning,
                f"Invalid values: {', '.join(malformed)}",
            )
    return outcome


def _malformed(collected: Collected) -> list[str]:
    """The keywords of dates and times on the top level with malformed values."""
    with _opened(collected) as file:
        row = encode(file, tags=tuple(_TIMED))
    return [_TIMED[tag] for tag, element in row.items() if not all(map(_pattern(element).match, _texts(element)))]


def _pattern(element: Mapping[str, Any]) -> re.Pattern[str]:
    return _WELL_FORMED.get(str(element.get("vr")), _ANYTHING)


def _texts(element: Mapping[str, Any]) -> list[str]:
    return [str(value) for value in element.get("Value") or () if value is not None]


def _keep(running: Store, header: Header, collected: Collected) -> int | None:
    """Puts the instance into the archive; returns the reason if it is refused."""
    site, behaviour = running.site, running.site.behaviour
    instance = _instance(header, collected)
    if behaviour.kept != "file":
        try:
            instance = Instance.from_bytes(coerced(instance.read(), behaviour.kept))
        except (CannotTranscode, ValueError):
            return behaviour.garbage_reason
    with site.store_lock:
        if not running.replace:
            same = _compare(site, instance)
            if same is not None:
                if running.keeps_old or (same and behaviour.same_again == "stored"):
                    return None
                if same or behaviour.other_again == "refused":
                    return behaviour.duplicate_reason
                if behaviour.other_again == "hidden":
                    return _hide(site, instance)
                if behaviour.other_again == "keep_old":
                    return None
        if behaviour.feed != "none":
            site.log.begin()
        results = list(site.archive.iter_store_instances([instance], on_existing="replace"))
        if len(results) != 1 or isinstance(results[0], Failure):
            reason = results[0].reason_code if results and isinstance(results[0], Failure) else None
            return reason or 0x0110
        reference = instance.reference
        site.arrivals.add(
            reference.study_instance_uid, str(reference.series_instance_uid), str(reference.sop_instance_uid)
        )
        if behaviour.feed != "none":
            site.log.stored(reference)
    return None


def _hide(site: Site, instance: Instance) -> int | None:
    """Puts the instance into an image set of its own, which searches do not show; returns the reason if refused."""
    number = uuid.uuid4().hex
    archive = DICOMfileClient(os.path.join(site.directory, f"image-set-{number}"), in_memory=True)
    results = list(archive.iter_store_instances([instance]))
    if isinstance(results[0], Failure):
        return results[0].reason_code or 0x0110
    site.image_sets[number] = archive
    return None


def _compare(site: Site, instance: Instance) -> bool | None:
    """Whether the archive has the instance with equal bytes; None if it does not have it."""
    try:
        for other in site.instances(instance.reference):
            try:
                return _equal(instance, other)
            finally:
                if other.path is not None and os.path.dirname(os.path.abspath(other.path)) == site.directory:
                    os.unlink(other.path)
    except requests.HTTPError as error:
        if status_of(error) not in (404, 410):
            raise
    return None


def _equal(one: Instance, other: Instance) -> bool:
    if one.size != other.size:
        return False
    with closing(one.open()) as first, closing(other.open()) as second:
        while chunk := first.read(1 << 20):
            if chunk != second.read(len(chunk)):
                return False
    return True


def _exists(site: Site, resource: Resource) -> bool:
    filters = tuple((UID_KEYWORDS[level], uid) for level, uid in resource.uids.items())
    query = SearchQuery([*resource.uids][-1], search_filters=filters)
    try:
        return bool(site.archive.search_page(query, limit=1).rows)
    except FileNotFoundError:
        return False


def _instance(header: Header, collected: Collected) -> Instance:
    reference = Resource(header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid)
    return Instance(reference, header.transfer_syntax_uid, collected.content, collected.path, header.sop_class_uid)


def _opened(collected: Collected) -> Any:
    return io.BytesIO(collected.content) if collected.content is not None else open(str(collected.path), "rb")


# The answer: the Store Instances Response Module (PS3.18 table I.1-1) and its status ----------------------------------


def _status(running: Store) -> int:
    """The status of a store, by the outcomes of its instances."""
    behaviour = running.site.behaviour
    bad = [outcome for outcome in running.outcomes if outcome.reason is not None]
    if not bad:
        return behaviour.store_some if any(outcome.warning is not None for outcome in running.outcomes) else 200
    if running.refusal_status is not None:
        return running.refusal_status
    if behaviour.garbage_status is not None and any(outcome.garbage for outcome in bad):
        return behaviour.garbage_status
    if len(bad) == len(running.outcomes) or (behaviour.store_some >= 400 and any(one.wrong_study for one in bad)):
        return 409 if any(one.wrong_study for one in bad) else behaviour.store_none
    return behaviour.store_some


def _store_answer(running: Store, media_type: str, status: int) -> Answer:
    """The answer to a store."""
    body = _response(running)
    headers = {"Content-Type": media_type}
    if status >= 400 and running.site.behaviour.error_style == "orthanc":
        # Orthanc answers a failed store without Content-Type (measured, 1.10.1).
        headers = {}
    if status != 200 and running.site.behaviour.store_warning:
        headers["Warning"] = warning_header(["Some instances were not stored."])
    content = xml_document(body) if media_type == _XML else running.exchange.json(json_bytes(body))
    reason = None
    if running.site.behaviour.reason_phrase and status != 200:
        reason = f"{sum(one.reason is not None for one in running.outcomes)} instances were not stored."
    return Answer(status, headers, content, reason=reason)


def _response(running: Store) -> dict[str, Any]:
    """The Store Instances Response Module (PS3.18 table I.1-1)."""
    behaviour = running.site.behaviour
    stored, failed, other = [], [], []
    for outcome in running.outcomes:
        if outcome.hidden:
            continue
        if outcome.reason is None:
            item = _item(outcome)
            item[_URL] = {"vr": "UR", "Value": [outcome.url]}
            if outcome.warning is not None:
                item[_WARNING] = {"vr": "US", "Value": [outcome.warning]}
                item[_FAILED_ATTRIBUTES] = {"vr": "SQ", "Value": [{_COMMENT: {"vr": "LO", "Value": [outcome.comment]}}]}
            stored.append(item)
            continue
        item = {**_item(outcome), _REASON: {"vr": "US", "Value": [outcome.reason]}}
        item.update(_DETAILS[behaviour.failure_detail])
        if not outcome.garbage or behaviour.garbage == "failed":
            failed.append(item)
        elif behaviour.garbage == "nowhere":
            if outcome.no_uids:
                failed.append(item)
        elif outcome.sop_instance_uid is not None:
            failed.append(item)
        else:
            other.append({_REASON: item[_REASON]})
    if behaviour.one_failure:
        failed = failed[:1]
    body: dict[str, Any] = {}
    study = next((one.study_url for one in running.outcomes if one.reason is None and one.study_url), None)
    if study is not None:
        body[_URL] = {"vr": "UR", "Value": [study]}
    if failed or behaviour.empty_failed_sequence:
        body[_FAILED] = {"vr": "SQ", "Value": failed} if failed else {"vr": "SQ"}
    if stored or behaviour.empty_failed_sequence:
        body[behaviour.stored_sequence] = {"vr": "SQ", "Value": stored} if stored else {"vr": "SQ"}
    if other:
        body[_OTHER] = {"vr": "SQ", "Value": other}
    return body


def _item(outcome: Outcome) -> dict[str, Any]:
    item: dict[str, Any] = {}
    if outcome.sop_class_uid is not None and is_uid(outcome.sop_class_uid):
        item[_CLASS] = {"vr": "UI", "Value": [outcome.sop_class_uid]}
    if outcome.sop_instance_uid is not None:
        item[_INSTANCE] = {"vr": "UI", "Value": [outcome.sop_instance_uid]}
    return item
