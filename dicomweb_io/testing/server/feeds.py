"""Interfaces beside DICOMweb that report changes: Azure's change feed, Orthanc's own REST interface.

Azure (documented): ``/changefeed`` and ``/changefeed/latest``.

Orthanc (measured on 1.10.1): its change log names objects by its own identifiers, which are hashes of the UIDs, and so
do the other resources that clients use beside it: ``/changes``, ``/tools/lookup``, ``/tools/bulk-content``,
``/system``, ``/patients/{id}``, ``/studies/{id}``, ``/series/{id}``, ``/instances/{id}`` (GET and DELETE) with
``/patient``, ``/study`` and ``/series`` above them, and of instances ``/file``, ``/simplified-tags`` and
``/attachments/dicom/md5``.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

from dicomweb_io.dicom.attributes import lookup_keyword
from dicomweb_io.elements import Resource
from dicomweb_io.testing.server.exchange import Answer, Exchange, Refusal, json_answer
from dicomweb_io.testing.server.parts import PartOut
from dicomweb_io.testing.server.site import Event, Site

_DEFAULT_LIMIT = 100
_LARGEST_LIMIT = 200
_LEVELS = {"patients": "Patient", "studies": "Study", "series": "Series", "instances": "Instance"}
_FOLDERS = {kind: folder for folder, kind in _LEVELS.items()}
_TAGS = {
    "Study": ("0020000D", "00200010", "00080020", "00080030", "00080050", "00081030"),
    "Series": ("0020000E", "00080060", "0008103E", "00200011"),
    "Instance": ("00080018", "00200013"),
}
_DEFAULT_CHANGES = 100
_LONGEST_BODY = 1 << 20


# Azure's change feed --------------------------------------------------------------------------------------------------


def change_feed(site: Site, exchange: Exchange, path: list[str]) -> Answer | None:
    """Answers a request to the feed; None for any other path.

    Args:
        site: The server.
        exchange: The request.
        path: The path below the root of the service.
    """
    if path not in (["changefeed"], ["changefeed", "latest"]):
        return None
    events = site.log.events
    newest = {event.reference: event for event in events}
    with_metadata = (exchange.parameter("includemetadata") or "true").lower() == "true"
    if path[1:]:
        rows = [_row(site, event, newest, with_metadata) for event in events[-1:]]
        return json_answer(rows[0]) if rows else Answer(204)
    start, end = _moment(exchange, "startTime"), _moment(exchange, "endTime")
    offset = _number(exchange, "offset")
    limit = _number(exchange, "limit", _DEFAULT_LIMIT, 1, _LARGEST_LIMIT)
    wanted = [
        event for event in events if (start is None or event.moment >= start) and (end is None or event.moment < end)
    ]
    return json_answer([_row(site, event, newest, with_metadata) for event in wanted[offset : offset + limit]])


def _row(site: Site, event: Event, newest: dict[Resource, Event], with_metadata: bool) -> dict[str, Any]:
    last = newest[event.reference]
    state = "current" if last is event else "deleted" if last.action == "delete" else "replaced"
    if event.action == "delete":
        state = "deleted" if last is event else "replaced"
    reference = event.reference
    row: dict[str, Any] = {
        "Sequence": event.sequence,
        "StudyInstanceUid": reference.study_instance_uid,
        "SeriesInstanceUid": reference.series_instance_uid,
        "SopInstanceUid": reference.sop_instance_uid,
        "Action": event.action,
        "Timestamp": f"{event.moment:%Y-%m-%dT%H:%M:%S.%f}Z",
        "State": state,
    }
    if with_metadata and state == "current":
        row["Metadata"] = next(iter(site.archive.iter_metadata(reference)), None)
    return row


def _moment(exchange: Exchange, name: str) -> datetime | None:
    text = exchange.parameter(name)
    if not text:
        return None
    try:
        # A plus sign that was not escaped arrives as a space.
        moment = datetime.fromisoformat(text.strip().replace(" ", "+").replace("Z", "+00:00"))
    except ValueError:
        raise Refusal(400, f"{name} is not a time.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


# Orthanc's own interface ----------------------------------------------------------------------------------------------


def identifier(patient_id: str, *uids: str) -> str:
    """Orthanc's name for a patient, study, series or instance: the SHA-1 of the Patient ID and the UIDs down to it."""
    digest = hashlib.sha1("|".join((patient_id, *uids)).encode(), usedforsecurity=False).hexdigest()
    return "-".join(digest[start : start + 8] for start in range(0, 40, 8))


def own_interface(site: Site, exchange: Exchange, path: list[str]) -> Answer | None:
    """Answers a request to Orthanc's own interface; None for any other path.

    Args:
        site: The server.
        exchange: The request.
        path: The path from the root of the server.
    """
    method = exchange.method
    if path == ["system"] and method == "GET":
        return json_answer(
            {"ApiVersion": 16, "DicomAet": "ORTHANC", "Name": "dicomweb_io-testing", "Version": "1.10.1"}
        )
    if path == ["changes"] and method == "GET":
        return _changes(site, exchange)
    if path == ["tools", "lookup"] and method == "POST":
        found = _Objects(site).find(_body(exchange).decode("utf-8", "replace").strip())
        return json_answer([{"ID": name, "Path": f"/{_FOLDERS[kind]}/{name}", "Type": kind} for kind, name in found])
    if path == ["tools", "bulk-content"] and method == "POST":
        return _bulk_content(site, exchange)
    if path and path[0] in _LEVELS:
        return _resource(site, exchange, path)
    return None


class _Objects:
    """The objects of the archive under Orthanc's names."""

    def __init__(self, site: Site) -> None:
        self.by_name: dict[str, tuple[str, Resource, str]] = {}
        for reference, patient_id in site.log.present.items():
            for kind, name, resource in _names(reference, patient_id):
                self.by_name.setdefault(name, (kind, resource, patient_id))

    def find(self, uid: str) -> Iterator[tuple[str, str]]:
        """Kind and name of everything that a UID or Patient ID identifies."""
        for name, (kind, resource, patient_id) in self.by_name.items():
            own = {
                "Patient": patient_id,
                "Study": resource.study_instance_uid,
                "Series": resource.series_instance_uid,
                "Instance": resource.sop_instance_uid,
            }[kind]
            if own == uid and uid:
                yield kind, name


def _names(reference: Resource, patient_id: str) -> list[tuple[str, str, Resource]]:
    """Kind, name and resource of an instance and of all that it belongs to, in the order in which Orthanc tells."""
    study, series = reference.study_instance_uid, str(reference.series_instance_uid)
    return [
        ("Instance", identifier(patient_id, study, series, str(reference.sop_instance_uid)), reference),
        ("Series", identifier(patient_id, study, series), Resource(study, series)),
        ("Study", identifier(patient_id, study), Resource(study)),
        ("Patient", identifier(patient_id), Resource(study)),
    ]


# The log of changes ---------------------------------------------------------------------------------------------------


def _changes(site: Site, exchange: Exchange) -> Answer:
    entries, last = _entries(site.log.events)
    if exchange.parameter("last") is not None:
        page, done = entries[-1:], True
        # Orthanc tells the number of the last change even if its object is gone.
        return json_answer({"Changes": page, "Done": done, "Last": last})
    since, limit = (_number(exchange, name) for name in ("since", "limit"))
    following = [entry for entry in entries if entry["Seq"] > since]
    page = following[: limit or _DEFAULT_CHANGES]
    done = len(page) == len(following)
    return json_answer({"Changes": page, "Done": done, "Last": page[-1]["Seq"] if page else last})


def _entries(events: list[Event]) -> tuple[list[dict[str, Any]], int]:
    """The log as Orthanc has it: objects on all levels as they become known, without what is gone since."""
    entries: dict[int, dict[str, Any]] = {}
    known: dict[str, int] = {}
    counts: dict[str, int] = {}
    sequence = 0
    for event in events:
        names = _names(event.reference, event.patient_id)
        if event.action == "create":
            if names[0][1] in known:
                # Here it replaced another one: Orthanc deletes and stores then.
                entries.pop(known.pop(names[0][1]), None)
                for _, name, _ in names:
                    counts[name] -= 1
            for kind, name, _ in names:
                counts[name] = counts.get(name, 0) + 1
                if name not in known:
                    sequence += 1
                    known[name] = sequence
                    entries[sequence] = {
                        "ChangeType": f"New{kind}",
                        "Date": f"{event.moment:%Y%m%dT%H%M%S}",
                        "ID": name,
                        "Path": f"/{_FOLDERS[kind]}/{name}",
                        "ResourceType": kind,
                        "Seq": sequence,
                    }
            continue
        for _, name, _ in names:
            counts[name] = counts.get(name, 1) - 1
            if counts[name] <= 0 and name in known:
                entries.pop(known.pop(name), None)
    return list(entries.values()), sequence


# Objects --------------------------------------------------------------------------------------------------------------


def _bulk_content(site: Site, exchange: Exchange) -> Answer:
    try:
        names = [str(name) for name in json.loads(_body(exchange))["Resources"]]
    except (ValueError, KeyError, TypeError):
        raise Refusal(400, "Bad file format") from None
    objects = _Objects(site).by_name
    return json_answer([_description(site, *objects[name], name) for name in names if name in objects])


def _resource(site: Site, exchange: Exchange, path: list[str]) -> Answer | None:
    kind = _LEVELS[path[0]]
    objects = _Objects(site).by_name
    if len(path) == 1:
        return json_answer([name for name, (found, _, _) in objects.items() if found == kind])
    if path[1] not in objects or objects[path[1]][0] != kind:
        return Answer(404)
    _, resource, patient_id = objects[path[1]]
    if path[2:] == [] and exchange.method == "DELETE":
        whole = {one.study_instance_uid for one, owner in site.log.present.items() if owner == patient_id}
        for study in sorted(whole) if kind == "Patient" else ():
            site.delete(Resource(study))
        if kind != "Patient":
            site.delete(resource)
        return json_answer({"RemainingAncestor": None})
    if exchange.method != "GET":
        return None
    if path[2:] == []:
        return json_answer(_description(site, kind, resource, patient_id, path[1]))
    parents = {folder: one for one, folder in (("Patient", "patient"), ("Study", "study"), ("Series", "series"))}
    if len(path) == 3 and path[2] in parents:
        return _parent(site, resource, patient_id, parents[path[2]])
    if kind != "Instance":
        return None
    part = _file(site, resource)
    if path[2:] == ["file"]:
        return Answer(200, {"Content-Type": "application/dicom"}, part.pieces(), on_end=part.discard)
    try:
        if path[2:] == ["attachments", "dicom", "md5"]:
            digest = hashlib.md5(usedforsecurity=False)
            for piece in part.pieces():
                digest.update(piece)
            return Answer(200, {"Content-Type": "text/plain"}, digest.hexdigest().encode())
        return json_answer(_simplified(part)) if path[2:] == ["simplified-tags"] else None
    finally:
        part.discard()


def _parent(site: Site, resource: Resource, patient_id: str, kind: str) -> Answer | None:
    study, series = resource.study_instance_uid, resource.series_instance_uid
    if kind == "Patient":
        return json_answer(_description(site, kind, resource, patient_id, identifier(patient_id)))
    if kind == "Study" and series is not None:
        return json_answer(_description(site, kind, Resource(study), patient_id, identifier(patient_id, study)))
    if kind == "Series" and series is not None and resource.sop_instance_uid is not None:
        name = identifier(patient_id, study, series)
        return json_answer(_description(site, kind, Resource(study, series), patient_id, name))
    return None


def _file(site: Site, resource: Resource) -> PartOut:
    return PartOut.of(next(site.instances(resource)), site.directory)


def _simplified(part: PartOut) -> dict[str, Any]:
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(part.read()), stop_before_pixels=True, force=True)
    return {
        element.keyword: "\\".join(map(str, element.value)) if element.VM > 1 else str(element.value or "")
        for element in dataset
        if element.keyword and element.VR != "SQ" and not isinstance(element.value, bytes)
    }


def _description(site: Site, kind: str, resource: Resource, patient_id: str, name: str) -> dict[str, Any]:
    study, series, instance = resource.study_instance_uid, resource.series_instance_uid, resource.sop_instance_uid
    content: dict[str, Any] = {"ID": name, "Type": kind, "MainDicomTags": {}}
    if kind == "Patient":
        content["MainDicomTags"]["PatientID"] = patient_id
        return content
    row = next(iter(site.archive.iter_metadata(resource)))
    for tag in _TAGS[kind]:
        if tag in row:
            content["MainDicomTags"][lookup_keyword(tag)] = str((row[tag].get("Value") or [""])[0])
    if kind == "Study":
        content["ParentPatient"] = identifier(patient_id)
        content["Series"] = sorted(
            {
                identifier(patient_id, study, str(one.series_instance_uid))
                for one in site.log.present
                if one.study_instance_uid == study
            }
        )
    elif kind == "Series":
        content["ParentStudy"] = identifier(patient_id, study)
        content["Instances"] = [
            identifier(patient_id, study, str(series), str(one.sop_instance_uid))
            for one in site.log.present
            if (one.study_instance_uid, one.series_instance_uid) == (study, series)
        ]
    else:
        content["ParentSeries"] = identifier(patient_id, study, str(series))
        content["MainDicomTags"]["SOPInstanceUID"] = instance
    return content


def _number(exchange: Exchange, name: str, default: int = 0, least: int = 0, maximum: int | None = None) -> int:
    text = exchange.parameter(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or int(text) < least or (maximum is not None and int(text) > maximum):
        bounds = f"of at least {least}" if maximum is None else f"from {least} to {maximum}"
        raise Refusal(400, f"{name} must be a number {bounds}.")
    return int(text)


def _body(exchange: Exchange) -> bytes:
    content = b""
    for piece in exchange.body:
        content += piece
        if len(content) > _LONGEST_BODY:
            raise Refusal(413, "The body is too large.", {"Connection": "close"})
    return content
