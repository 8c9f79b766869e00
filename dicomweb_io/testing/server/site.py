"""What all requests of a server share: its archive, and the changes to it since the server started."""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Literal

import requests

from dicomweb_io.client import DICOMClient
from dicomweb_io.dicom.json_decode import first_text
from dicomweb_io.elements import Instance, JSONDataset, Resource, SearchQuery
from dicomweb_io.testing.server.behaviour import Behaviour
from dicomweb_io.testing.server.exchange import Exchange, Refusal, status_of

_SPOOL_ABOVE = 1 << 20

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

    What was there before the server is reported as if it had arrived when the log was first read; what others put into
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
        """Records that an instance arrived, or replaced another one."""
        with self._lock:
            found = [row for row in self._rows(reference) if Resource.of(row) == reference]
            self._add("create", reference, first_text(found[0], "00100020") if found else "")

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
        now = {Resource.of(row): first_text(row, "00100020") for row in self._rows(None)}
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
            if status_of(error) == 404:
                return []
            raise


class Arrivals:
    """When objects came to the server, for those servers that order rows or search by it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._times: dict[str, tuple[datetime, datetime]] = {}
        self._next = 0
        self._begin = datetime.now(timezone.utc)

    def add(self, *uids: str) -> None:
        """Notes that something about these objects arrived now."""
        now = datetime.now(timezone.utc)
        with self._lock:
            self._next += 1
            for uid in uids:
                self._numbers[uid] = self._next
                self._times[uid] = (self._times.get(uid, (now, now))[0], now)

    def remove(self, uid: str) -> None:
        """Notes that an object is gone: if it comes again, it is new."""
        with self._lock:
            self._times.pop(uid, None)

    def times(self, uid: str) -> tuple[datetime, datetime]:
        """When an object arrived and when last something of it did; the server's start for what was there before."""
        with self._lock:
            return self._times.get(uid, (self._begin, self._begin))

    def number(self, uid: str) -> int:
        """The greater, the later; 0 for what was there before."""
        with self._lock:
            return self._numbers.get(uid, 0)


class Site:
    """What all requests of a server share.

    Attributes:
        archive: The archive behind the server.
        behaviour: How it behaves.
        directory: For spooled parts.
        spool_above: Bytes of a part above which it goes to a file there.
        arrivals: The order of arrival.
        store_lock: Held while an instance is compared and stored.
        log: What came and went; kept for servers with a feed of changes only.
        erroneous: Keywords of attributes whose values are malformed in a stored instance.
        image_sets: Archives of instances that are hidden from searches, by their number (AWS HealthImaging).
    """

    def __init__(self, archive: DICOMClient, behaviour: Behaviour, directory: str | os.PathLike[str]) -> None:
        self.archive = archive
        self.behaviour = behaviour
        self.directory = os.fspath(directory)
        self.spool_above = _SPOOL_ABOVE
        self.arrivals = Arrivals()
        self.store_lock = threading.RLock()
        self.log = ChangeLog(archive)
        self.erroneous: set[str] = set()
        self.image_sets: dict[str, DICOMClient] = {}
        self._leaving: list[tuple[Resource, float]] = []

    def of_image_set(self, number: str | None) -> Site:
        """The same server with the archive of an image set that searches do not show; itself without a number.

        Raises:
            Refusal: 404 if there is no such image set.
        """
        if number is None:
            return self
        if number not in self.image_sets:
            raise Refusal(404, "There is no such image set.")
        other = copy.copy(self)
        other.archive = self.image_sets[number]
        return other

    def instances(self, resource: Resource) -> Iterator[Instance]:
        """The stored instances of a resource as they are; large ones are spooled."""
        return self.archive.iter_instances(
            resource,
            media_types=(("application/dicom", "*"),),
            max_element_bytes=self.spool_above,
            spool_directory=self.directory,
        )

    def url_of(self, exchange: Exchange, resource: Resource) -> str:
        """Where a client of this server retrieves an object."""
        return "/".join(filter(None, (exchange.base_url, self.behaviour.wado_prefix, resource.uri)))

    def is_leaving(self, resource: Resource) -> bool:
        """Whether an object was deleted, although searches may show it still."""
        return any(one.contains(resource) for one, _ in self._leaving)

    def let_go(self, *, all_at_once: bool = False) -> None:
        """Lets what was deleted disappear from searches, once the time has come."""
        if not self._leaving:
            return
        with self.store_lock:
            now = time.monotonic()
            due = [one for one, moment in self._leaving if all_at_once or moment <= now]
            self._leaving = [(one, moment) for one, moment in self._leaving if one not in due]
            for one in due:
                self.delete(one, now=True)

    def delete(self, resource: Resource, *, now: bool = False) -> None:
        """Deletes a study, series or instance.

        Args:
            resource: What to delete.
            now: Delete at once, even if this server's searches lag behind.

        Raises:
            requests.HTTPError: If the archive does not have it.
        """
        study, series, instance = resource.study_instance_uid, resource.series_instance_uid, resource.sop_instance_uid
        with self.store_lock:
            if self.behaviour.delete_lag and not now:
                self._leaving.append((resource, time.monotonic() + self.behaviour.delete_lag))
                return
            if self.behaviour.feed != "none":
                self.log.begin()
            if series is None:
                self.archive.delete_study(study)
            elif instance is None:
                self.archive.delete_series(study, series)
            else:
                self.archive.delete_instance(study, series, instance)
            self.arrivals.remove(instance or series or study)
            if self.behaviour.feed != "none":
                self.log.deleted(resource)
