"""`ParseNotifications`: from the messages in which archives tell of new instances to references."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from dicomweb_io.clients.change_cursor import WatchLevel
from dicomweb_io.clients.change_feeds import is_new_in_azure, reference_of_azure, uids_of_orthanc
from dicomweb_io.clients.endpoint import Endpoint, EndpointLike
from dicomweb_io.clients.pool import Room
from dicomweb_io.clients.protocol import DICOMClient
from dicomweb_io.dicom import json_model
from dicomweb_io.elements import Failure, Resource
from dicomweb_io.transforms.base import (
    FAILURES,
    DICOMwebTransform,
    FailureMode,
    PooledDoFn,
    Problem,
    problem_of,
    several_windows,
)
from dicomweb_io.transforms.metrics import count

_ORTHANC = "orthanc"
_GOOGLE_PATH = re.compile(
    r"(?:.*/)?projects/[^/]+/locations/[^/]+/datasets/[^/]+/dicomStores/[^/]+/dicomWeb/(studies/.+)\Z", re.DOTALL
)
_ORTHANC_LEVELS: dict[str, WatchLevel] = {"NewInstance": "instance", "NewStudy": "study", "StableStudy": "study"}
_SHOWN = 100


class ParsedNotifications(NamedTuple):
    """The output of `ParseNotifications` with ``failures="collect"``."""

    references: Any
    failures: Any


@dataclass(frozen=True)
class OrthancChange:
    """A change that Orthanc told of by its own identifier."""

    identifier: str
    level: WatchLevel


def parse_notification(message: Any) -> Resource | OrthancChange | None:
    """Makes a reference of one message.

    Args:
        message: One of

            - a message of Google Pub/Sub (`apache_beam.io.gcp.pubsub.PubsubMessage`, or anything with ``data`` and
              ``attributes``), or its data: the path
              ``projects/P/locations/L/datasets/D/dicomStores/S/dicomWeb/studies/…``, as Beam's ``FormatToQido`` takes;
            - a row of the change feed of Azure's DICOM service, as a dict or as JSON;
            - a change of Orthanc's log (``GET /changes``), as a dict or as JSON;
            - a DICOMweb URI, from ``studies/`` on or absolute.

    Returns:
        The reference; an `OrthancChange`, of which Orthanc has to be asked; or None for a message that tells of
        nothing new, such as a deletion.

    Raises:
        TypeError, ValueError: If the message is none of these.
    """
    attributes = getattr(message, "attributes", None)
    if isinstance(attributes, Mapping) and "delete" in str(attributes.get("action", "")).lower():
        return None
    data = getattr(message, "data", message)
    if isinstance(data, (bytes, bytearray, memoryview)):
        data = bytes(data).decode("utf-8")
    if isinstance(data, str):
        text = data.strip()
        if not text.startswith("{"):
            return _of_path(text)
        data = json_model.loads(text)
    if not isinstance(data, Mapping):
        raise TypeError(
            f"a notification is a Pub/Sub message, bytes, text or a mapping, but this is {type(message).__name__}"
        )
    return _of_mapping(data)


def _of_path(text: str) -> Resource:
    google = _GOOGLE_PATH.match(text)
    return Resource.of(google[1].rstrip("/") if google is not None else text)


def _of_mapping(data: Mapping[Any, Any]) -> Resource | OrthancChange | None:
    entry = {str(key).lower(): value for key, value in data.items()}
    if "changetype" in entry:
        level = _ORTHANC_LEVELS.get(str(entry["changetype"]))
        if level is None:
            return None
        identifier = entry.get("id")
        if not isinstance(identifier, str) or not identifier:
            raise ValueError("the change has no ID")
        return OrthancChange(identifier, level)
    if "sopinstanceuid" in entry and "action" in entry:
        return reference_of_azure(entry) if is_new_in_azure(entry) else None
    raise ValueError("the message is neither a row of a change feed nor a change of Orthanc: " + _keys(entry))


def _keys(entry: Mapping[str, Any]) -> str:
    return ("its keys are " + ", ".join(sorted(entry))[:_SHOWN]) if entry else "it is empty"


class _Parse(beam.DoFn):
    def __init__(self, transform: str, *, collect: bool, resolves: bool) -> None:
        self._transform = transform
        self._collect = collect
        self._resolves = resolves

    def process(self, element: Any) -> Iterator[Any]:
        try:
            parsed = parse_notification(element)
            if isinstance(parsed, OrthancChange) and not self._resolves:
                raise ValueError(
                    "a change of Orthanc names no UIDs: give ParseNotifications the endpoint, so that it can ask"
                )
        except (TypeError, ValueError) as error:
            problem = problem_of(error, self._transform)
            count("failures")
            if not self._collect:
                problem.raise_it()
            yield TaggedOutput(FAILURES, problem.failure)
            return
        if parsed is None:
            count("notifications_ignored")
        elif isinstance(parsed, OrthancChange):
            yield TaggedOutput(_ORTHANC, parsed)
        else:
            yield parsed


class _AskOrthanc(PooledDoFn):
    """Asks Orthanc what its identifiers are."""

    def produce(self, subject: OrthancChange, client: DICOMClient, room: Room) -> Iterator[Any]:
        found = uids_of_orthanc(client, [subject.identifier], subject.level)
        if subject.identifier in found:
            yield found[subject.identifier]
        else:
            yield Problem(
                Failure(self._transform, f"Orthanc has no {subject.level} {subject.identifier} (any more)", status=404)
            )

    def _key(self, subject: OrthancChange) -> Any:
        return subject


class ParseNotifications(DICOMwebTransform):
    """Makes references of the messages in which archives tell of new objects.

    It takes messages of Google Pub/Sub for Healthcare API stores, rows of Azure's change feed, changes of Orthanc's
    log, and DICOMweb URIs; see `parse_notification`. What tells of a deletion is dropped and counted
    (``notifications_ignored``); a message that is none of these is a failure.

    Pub/Sub and most brokers may deliver a message more than once: then the reference comes more than once too.

    Args:
        endpoint: The archive. Only needed for changes of Orthanc, which name no UIDs, so that Orthanc has to be asked.
        failures: ``"raise"`` or ``"collect"``; with the latter the output is a `ParsedNotifications`. See also
            `with_error_handler`.
    """

    _element_type = Resource

    def __init__(self, endpoint: EndpointLike | None = None, *, failures: FailureMode = "raise") -> None:
        # Without an archive nothing is ever asked: any address serves for the base class.
        super().__init__(endpoint if endpoint is not None else ".", failures=failures)
        self._archive = Endpoint.of(endpoint) if endpoint is not None else None

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        name, collects = type(self).__name__, self.collects
        parsed = pcollection | "Parse" >> (
            self._step(
                _Parse(name, collect=collects, resolves=self._archive is not None),
                Resource,
                **{_ORTHANC: OrthancChange},
            )
        )
        references, failures = parsed["main"], [parsed[FAILURES]]
        if self._archive is not None:
            dofn = _AskOrthanc(self._archive, "watch", name, collect=collects, hold=several_windows(pcollection))
            asked = parsed[_ORTHANC] | "AskOrthanc" >> self._step(dofn, Resource)
            references = (references, asked["main"]) | "Join" >> beam.Flatten()
            failures.append(asked[FAILURES])
        lost = self._report(failures)
        return ParsedNotifications(references, lost) if self._failure_mode == "collect" else references

    def display_data(self) -> dict[str, Any]:
        """The endpoint, if there is one."""
        shown = super().display_data()
        if self._archive is None:
            shown.pop("endpoint")
        return shown
