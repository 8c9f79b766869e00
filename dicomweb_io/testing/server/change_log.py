"""What came to the archive and what left it, in order, for the servers that tell it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Literal

import requests

from dicomweb_io.client import DICOMClient
from dicomweb_io.elements import JSONDataset, Resource, SearchQuery

Action = Literal["create", "delete"]


@dataclass(frozen=True)
class Event:
    """Something that happened to an instance.

    Attributes:
        sequence: Its number, from 1.
        moment: When, in UTC; never before that of an earlier event.
        action: What happened.
        reference: The instance.
        patient_id: Its Patient ID.
    """

    sequence: int
    moment: datetime
    action: Action
    reference: Resource
    patient_id: str = ""


class ChangeLog:
    """The log of an archive. Thread-safe.

    What was there before the server is told as if it had come when the log was first looked at; what others put into
    the archive, when `look_again` finds it.

    Args:
        archive: The archive.
    """

    def __init__(self, archive: DICOMClient) -> None:
        self._archive = archive
        self._lock = threading.RLock()
        self._events: list[Event] = []
        self._present: dict[Resource, str] = {}
        self._begun = False

    def begin(self) -> None:
        """Notes what is there, if that was not done yet."""
        with self._lock:
            if not self._begun:
                self._begun = True
                self._compare()

    def look_again(self) -> None:
        """Notes what came or went by other ways than this server."""
        with self._lock:
            if self._begun:
                self._compare()

    def stored(self, reference: Resource) -> None:
        """Notes that an instance came, or took the place of another one."""
        with self._lock:
            found = [row for row in self._rows(reference) if Resource.of(row) == reference]
            self._add("create", reference, _patient_id(found[0]) if found else "")

    def deleted(self, resource: Resource) -> None:
        """Notes that a study, series or instance is gone."""
        with self._lock:
            for reference, patient_id in list(self._present.items()):
                if resource.contains(reference):
                    self._add("delete", reference, patient_id)

    @property
    def events(self) -> list[Event]:
        """All events so far."""
        with self._lock:
            self.begin()
            return list(self._events)

    @property
    def present(self) -> dict[Resource, str]:
        """The instances that are there, with their Patient IDs."""
        with self._lock:
            self.begin()
            return dict(self._present)

    def _compare(self) -> None:
        now = {Resource.of(row): _patient_id(row) for row in self._rows(None)}
        for reference in [one for one in self._present if one not in now]:
            self._add("delete", reference, self._present[reference])
        for reference, patient_id in now.items():
            if reference not in self._present:
                self._add("create", reference, patient_id)

    def _add(self, action: Action, reference: Resource, patient_id: str) -> None:
        moment = datetime.now(timezone.utc)
        if self._events and self._events[-1].moment >= moment:
            moment = self._events[-1].moment + timedelta(microseconds=1)
        self._events.append(Event(len(self._events) + 1, moment, action, reference, patient_id))
        if action == "create":
            self._present[reference] = patient_id
        else:
            self._present.pop(reference, None)

    def _rows(self, reference: Resource | None) -> Iterable[JSONDataset]:
        query = SearchQuery("instance", fields=("00100020",))
        if reference is not None:
            uid = str(reference.sop_instance_uid)
            query = SearchQuery(
                "instance",
                reference.study_instance_uid,
                reference.series_instance_uid,
                (("00080018", uid),),
                ("00100020",),
            )
        try:
            return list(self._archive.iter_search(query))
        except FileNotFoundError:
            # A folder that nothing was stored in yet need not exist.
            return []
        except requests.HTTPError as error:
            if getattr(error, "status", None) == 404:
                return []
            raise


def _patient_id(row: JSONDataset) -> str:
    return str((row.get("00100020", {}).get("Value") or [""])[0] or "")
