"""What a store is answered: the Store Instances Response Module (PS3.18 table I.1-1) and its status."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dicomweb_io.dicom.uids import is_uid
from dicomweb_io.testing.encoding import faulty_json, json_bytes, xml_document
from dicomweb_io.testing.exchange import Answer, Exchange, Site, warning_header

XML = "application/dicom+xml"

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


@dataclass
class Outcome:
    """What became of one part: stored if there is no reason against it."""

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
    """One request in progress."""

    site: Site
    exchange: Exchange
    study: str | None
    replace: bool
    outcomes: list[Outcome] = field(default_factory=list)


def status_of(running: Store) -> int:
    """The status of a store, by what became of its instances."""
    manners = running.site.manners
    refused = running.exchange.fault("refuse_instances")
    bad = [outcome for outcome in running.outcomes if outcome.reason is not None]
    if not bad:
        return manners.store_some if any(outcome.warning is not None for outcome in running.outcomes) else 200
    if refused and refused.options["status"] is not None:
        return int(refused.options["status"])
    if manners.garbage_status is not None and any(outcome.garbage for outcome in bad):
        return manners.garbage_status
    if len(bad) == len(running.outcomes) or (manners.store_some >= 400 and any(one.wrong_study for one in bad)):
        return manners.wrong_study_status if any(one.wrong_study for one in bad) else manners.store_none
    return manners.store_some


def store_answer(running: Store, media_type: str, status: int) -> Answer:
    """The answer to a store."""
    body = _response(running)
    headers = {"Content-Type": media_type}
    if status >= 400 and running.site.manners.error_style == "orthanc":
        # Orthanc answers a failed store without Content-Type (measured, 1.10.1).
        headers = {}
    if status != 200 and running.site.manners.store_warning:
        headers["Warning"] = warning_header(["Some instances were not stored."])
    content = xml_document(body) if media_type == XML else faulty_json(running.exchange, json_bytes(body))
    reason = None
    if running.site.manners.reason_phrase and status != 200:
        reason = f"{sum(one.reason is not None for one in running.outcomes)} instances were not stored."
    return Answer(status, headers, content, reason=reason)


def _response(running: Store) -> dict[str, Any]:
    """The Store Instances Response Module (PS3.18 table I.1-1)."""
    manners = running.site.manners
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
        item.update(_DETAILS[manners.failure_detail])
        if not outcome.garbage or manners.garbage == "failed":
            failed.append(item)
        elif manners.garbage == "nowhere":
            if outcome.no_uids:
                failed.append(item)
        elif outcome.sop_instance_uid is not None:
            failed.append(item)
        else:
            other.append({_REASON: item[_REASON]})
    if manners.one_failure:
        failed = failed[:1]
    body: dict[str, Any] = {}
    study = next((one.study_url for one in running.outcomes if one.reason is None and one.study_url), None)
    if study is not None:
        body[_URL] = {"vr": "UR", "Value": [study]}
    if failed or manners.empty_failed_sequence:
        body[_FAILED] = {"vr": "SQ", "Value": failed} if failed else {"vr": "SQ"}
    if stored or manners.empty_failed_sequence:
        body[manners.stored_sequence] = {"vr": "SQ", "Value": stored} if stored else {"vr": "SQ"}
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
