"""Which instances there are: the listing of a series, the instances of a reference, and those that a user's list names.

An `InstanceGroup` holds the instances of one series that are moved together. It says whether it is the whole series,
because a whole series can be retrieved in one request.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import datetime
import errno
import gzip
import io
import json
import logging
import math
import os
import re
import threading
import time
import zlib
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain
from typing import IO, Any

from dicomweb_io.client import DICOMClient
from dicomweb_io.dicom.attributes import resolve
from dicomweb_io.dicom.header_scan import scan_header
from dicomweb_io.dicom.json_decode import first_text, first_value
from dicomweb_io.dicom.uids import is_uid
from dicomweb_io.elements import (
    LEVELS,
    UID_KEYWORDS,
    UID_TAGS,
    Failure,
    Instance,
    Resource,
    SearchLevel,
    SearchQuery,
    StoredInstance,
    open_path,
)
from dicomweb_io.errors import DICOMwebError, InvalidIdentifierError, PagingError, SearchIncompleteError, log_text
from dicomweb_io.failures import RECOVERABLE, failure_of
from dicomweb_io.http.retry import BAD_NEWS_LASTS, ProcessLock, start_anew_after_fork
from dicomweb_io.queries import make_query

logger = logging.getLogger("dicomweb_io")

_MAX_CACHED_UIDS = 200_000
_MAX_HELD = 20_000
_MAX_FAILED = 10_000

LISTING_LASTS = 600.0
"""Seconds that the listing of a series is believed."""

# An archive that is being written to shifts its rows from page to page; a listing that noticed is made again.
_LISTING_ATTEMPTS = 3

_PATIENT_ID, _PATIENT_NAME, _ISSUER_OF_PATIENT_ID = "00100020", "00100010", "00100021"
_ISSUER_OF_ACCESSION = "00080051"
_ISSUER_NAMES = ("00400031", "00400032")  # LocalNamespaceEntityID, UniversalEntityID


@dataclass(frozen=True)
class InstanceGroup:
    """Instances of one series that are handled together.

    Attributes:
        series: The series.
        sop_instance_uids: The instances of it.
        listed: How many instances the archive lists in the series; None if it was not asked.
        held: What the destination has of the series, as far as it matters here; None if it was not asked.
        named: Whether each instance was named, so that no other of the series is wanted.
        line: The line of a list that names them, before groups are merged.
    """

    series: Resource
    sop_instance_uids: tuple[str, ...]
    listed: int | None = None
    held: tuple[str, ...] | None = None
    named: bool = False
    line: str | None = None

    @property
    def references(self) -> list[Resource]:
        """The instances, in order."""
        series = self.series
        return [Resource(series.study_instance_uid, series.series_instance_uid, uid) for uid in self.sop_instance_uids]


ASK_FROM = 4
"""To know whether fewer instances are all of their series costs a request, as much as one of them."""


def is_worth_whole(wanted: int, listed: int) -> bool:
    """Whether one request for a series moves less than a request for each instance that is wanted of it."""
    return wanted > 1 and 2 * wanted >= listed


MAX_WHOLE = 10_000
"""Instances that are retrieved with one request at most: more of a series spread over threads and workers.

One by one takes six to twelve times as long on one machine (4,000 instances), so that only many workers make it up.
"""

MAX_PART = 50
"""Instances that are requested one by one in a row, as many as one store request takes."""


ASK_FIRST = 200
"""Instances of a series whose listing is worth a wait, before they are given to one thread or to several."""


def parts_of(group: InstanceGroup, size: int = MAX_PART) -> Iterator[InstanceGroup]:
    """Cuts a group into groups of some instances. One that is named repeatedly is so in its part."""
    times = Counter(group.sop_instance_uids)
    held = frozenset(group.held or ())
    uids = list(times)
    for start in range(0, len(uids), size):
        some = uids[start : start + size]
        repeated = tuple(uid for uid in some for _ in range(times[uid]))
        there = None if group.held is None else tuple(uid for uid in some if uid in held)
        yield replace(group, sop_instance_uids=repeated, held=there)


def group_by_series(instances: Iterable[Resource]) -> Iterator[InstanceGroup]:
    """Groups of the instances that come, those of a series together as far as memory allows."""
    held: dict[Resource, list[str]] = {}
    count = 0
    for instance in instances:
        series = instance.series
        held.setdefault(series, []).append(str(instance.sop_instance_uid))
        count += 1
        if len(held[series]) < MAX_WHOLE:
            if count <= _MAX_HELD:
                continue
            series = max(held, key=lambda one: len(held[one]))
        uids = held.pop(series)
        count -= len(uids)
        yield InstanceGroup(series, tuple(uids))
    for series, uids in held.items():
        yield InstanceGroup(series, tuple(uids))


def list_groups(client: DICOMClient, reference: Resource) -> Iterator[InstanceGroup]:
    """Yields the series of a study or series with all their instances, as the archive lists them."""
    found, incomplete = listed_instances(client, reference)
    series: dict[Resource, list[str]] = {}
    for instance in found:
        series.setdefault(instance.series, []).append(str(instance.sop_instance_uid))
    for one, uids in series.items():
        yield InstanceGroup(one, tuple(uids), len(uids))
    if incomplete is not None:
        # What came is moved before the failure is reported.
        raise incomplete


class SeriesListing:
    """Which instances an archive holds, asked once for each series. Safe to use from several threads.

    A series that could not be listed is not asked for again for a minute: the answer would be the same for each of its
    instances. What is known of a series is asked for again after ten minutes, because a streaming pipeline runs for
    long, and instances come and go.

    Args:
        client: The archive.
        max_uids: When more UIDs than this are remembered, the series that were used longest ago are forgotten.
    """

    def __init__(self, client: DICOMClient, max_uids: int = _MAX_CACHED_UIDS) -> None:
        self._client = client
        self._maximum = max_uids
        self._lock = ProcessLock()
        self._series: OrderedDict[Resource, set[str]] = OrderedDict()
        self._busy: dict[Resource, ProcessLock] = {}
        self._known_since: dict[Resource, float] = {}
        self._failed: dict[Resource, tuple[float, BaseException]] = {}
        self._count = 0

    def holds(self, instance: Resource) -> bool:
        """Tells whether the archive lists an instance in its series.

        Raises:
            requests.RequestException, OSError: If the archive cannot be asked.
        """
        return instance.sop_instance_uid in self.uids(instance.series)

    def size(self, series: Resource) -> int:
        """The number of instances that the archive lists in a series.

        Raises:
            requests.RequestException, OSError: If the archive cannot be asked.
        """
        return len(self.uids(series))

    def uids(self, series: Resource) -> set[str]:
        """The SOP Instance UIDs that the archive lists in a series; not to be changed.

        Raises:
            requests.RequestException, OSError: If the archive cannot be asked.
        """
        with self._lock:
            known = self._still_known(series)
            if known is not None:
                self._series.move_to_end(series)
                return known
            busy = self._busy.setdefault(series, ProcessLock())
        # The second caller waits for the answer of the first.
        with busy:
            with self._lock:
                known = self._still_known(series)
                at, failure = self._failed.get(series, (0.0, None))
            if failure is not None and time.monotonic() - at < BAD_NEWS_LASTS:
                # A copy, because the traceback of one that is raised repeatedly grows.
                raise copy(failure)
            if known is None:
                try:
                    known = self._ask(series)
                except RECOVERABLE as error:
                    with self._lock:
                        if len(self._failed) >= _MAX_FAILED:
                            self._failed.clear()
                        self._failed[series] = time.monotonic(), copy(error)
                    raise
                self._remember(series, known)
            return known

    def add(self, instance: Resource) -> None:
        """Remembers that an instance has arrived."""
        with self._lock:
            known = self._series.get(instance.series)
            if known is not None and instance.sop_instance_uid not in known:
                known.add(str(instance.sop_instance_uid))
                self._count += 1

    def learn(self, series: Resource, uids: Iterable[str]) -> None:
        """Takes what another listing of a series found, so that the archive is not asked again."""
        with self._lock:
            known = self._still_known(series) or set()
            before = len(known)
            known.update(uids)
            self._keep(series, known, len(known) - before)

    def _remember(self, series: Resource, uids: set[str]) -> None:
        with self._lock:
            self._busy.pop(series, None)
            self._keep(series, uids, len(uids) - len(self._series.get(series, ())))

    def _keep(self, series: Resource, uids: set[str], more: int) -> None:
        self._count += more
        self._series[series] = uids
        self._known_since.setdefault(series, time.monotonic())
        while self._count > self._maximum and len(self._series) > 1:
            self._forget(next(iter(self._series)))

    def _still_known(self, series: Resource) -> set[str] | None:
        if time.monotonic() - self._known_since.get(series, math.inf) > LISTING_LASTS:
            self._forget(series)
        return self._series.get(series)

    def _forget(self, series: Resource) -> None:
        self._count -= len(self._series.pop(series))
        del self._known_since[series]

    def _ask(self, series: Resource) -> set[str]:
        for _ in range(_LISTING_ATTEMPTS - 1):
            with contextlib.suppress(PagingError, SearchIncompleteError):
                return self._listed(series)
        return self._listed(series)

    def _listed(self, series: Resource) -> set[str]:
        query = make_query("instance", series.study_instance_uid, series.series_instance_uid, permissive_uid=True)
        return listed_uids(self._client, query)


def spread(group: InstanceGroup, listing: SeriesListing) -> Iterator[InstanceGroup]:
    """A large group whole or in parts, which several threads move; of a small one the thread that moves it decides."""
    if len(group.sop_instance_uids) < ASK_FIRST:
        yield group
        return
    try:
        listed = listing.size(group.series)
    except RECOVERABLE:
        listed = None
    asked = replace(group, listed=listed, named=True)
    if listed is not None and is_worth_whole(len(group.sop_instance_uids), listed):
        yield asked
    else:
        yield from parts_of(asked)


def listed_uids(client: DICOMClient, query: SearchQuery, *, limit: int | None = None) -> set[str]:
    """The SOP Instance UIDs that a search for instances finds; none where the archive does not know the series.

    Raises:
        SearchIncompleteError: If not all rows came, or some name no instance.
    """
    found = set()
    nameless = 0
    try:
        for row in client.iter_search(query, limit=limit):
            uid = first_text(row, UID_TAGS["instance"])
            if uid:
                found.add(uid)
            else:
                nameless += 1
    except FileNotFoundError:
        # A folder that nothing was stored in yet.
        return set()
    except OSError as error:
        # PS3.18 8.3.4 wants an empty answer for a series that is not there; some servers say 404.
        if getattr(error, "status", None) != 404:
            raise
    if nameless:
        what = f"{nameless} rows of a search for instances do not name an instance"
        raise SearchIncompleteError(what, method="GET", url=client.base_url)
    return found


def expand_reference(client: DICOMClient, reference: Resource) -> Iterator[Resource]:
    """Yields references to all instances of a study or series, as the archive lists them, each once.

    For an instance it is the reference itself, for frames their instance.
    """
    if reference.level in ("instance", "frame"):
        yield reference.instance
        return
    query = make_query("instance", reference.study_instance_uid, reference.series_instance_uid, permissive_uid=True)
    # Not by SOP Instance UID alone: some archives hold one in several series (Orthanc does).
    seen: set[Resource] = set()
    for row in client.iter_search(query):
        found = instance_of_row(row, reference)
        if found not in seen:
            seen.add(found)
            yield found


def listed_instances(client: DICOMClient, reference: Resource) -> tuple[dict[Resource, None], DICOMwebError | None]:
    """The instances of a study or series that the archive lists, and what is wrong if it announced more."""
    found: dict[Resource, None] = {}
    try:
        for instance in expand_reference(client, reference):
            found[instance] = None
    except SearchIncompleteError as error:
        return found, error
    return found, None


def instance_of_row(row: Mapping[str, Any], within: Resource | None = None) -> Resource:
    """The instance that a row of an instance search names; UIDs that the row lacks are those of the search.

    Raises:
        InvalidIdentifierError: If the row has no SOP Instance UID or no series.
    """
    return resource_of_row(row, "instance", within)


def resource_of_row(row: Mapping[str, Any], level: SearchLevel, within: Resource | None = None) -> Resource:
    """What a row of a search names, at the level of the search.

    Args:
        row: A dataset in the DICOM JSON model.
        level: What was searched for.
        within: Where; UIDs that the row lacks are taken from it.

    Raises:
        InvalidIdentifierError: If the row lacks a UID (it never names its whole parent), or lies elsewhere.
    """
    above = {} if within is None else within.series.uids
    implied = {UID_TAGS[parent]: {"vr": "UI", "Value": [uid]} for parent, uid in above.items()}
    below = [UID_TAGS[one] for one in LEVELS[LEVELS.index(level) + 1 :]]
    found = Resource.of({tag: element for tag, element in {**implied, **row}.items() if tag not in below})
    if found.level != level:
        raise InvalidIdentifierError(f"a row of a {level} search has only the {found.level} {found.uri}")
    if within is not None and not within.series.contains(found):
        raise InvalidIdentifierError(f"a row of a search in {within.series.uri} names {found.uri}")
    return found


def several_patients(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Why studies that one line of a list names may belong to several patients; None if they are of one.

    Args:
        rows: Rows of a search for studies. An issuer that is absent from some of them differs from none.
    """
    patients = {(first_text(row, _PATIENT_ID) or first_text(row, _PATIENT_NAME)).strip() for row in rows}
    issuers = [{_issuer(row, tag) for row in rows} - {""} for tag in (_ISSUER_OF_PATIENT_ID, _ISSUER_OF_ACCESSION)]
    what = [f"{len(patients)} patients"] if len(patients) > 1 else []
    what += [f"{len(names)} issuers" for names in issuers if len(names) > 1]
    if not what:
        return None
    uids = [first_text(row, UID_TAGS["study"]) for row in rows]
    return (
        f"nothing was copied, because the line names studies of {' and '.join(what)}: {', '.join(uids[:5])} (name an "
        "issuer in a further column, IssuerOfPatientID or IssuerOfAccessionNumber, list the StudyInstanceUIDs that are "
        "meant, or say --allow-several-patients)"
    )


def _issuer(row: Mapping[str, Any], tag: str) -> str:
    value = first_value(row, tag)
    if isinstance(value, Mapping):
        return next(filter(None, (first_text(value, part).strip() for part in _ISSUER_NAMES)), "")
    return str(value or "").strip()


# Neighbours -----------------------------------------------------------------------------------------------------------

_UIDS_PER_QUERY = 15
_MAX_NEIGHBOURS = 200

_MAX_STUDIES = 10_000
_LOCKS = 64

Result = StoredInstance | Failure


class Neighbours:
    """What an archive has under the same UIDs elsewhere: a study under another patient, an instance in another series.

    A store response names an instance by its SOP Instance UID alone. Where the archive holds that UID in another series
    too, it may ignore what comes, or lose what it had; so each is looked for before and afterwards, unless the profile
    says that both are kept. Safe to use from several threads: no UID is in two requests at once.

    Args:
        archive: The archive.
        transform: The name that failures carry.
        allow_other_patient: Whether a study may be there under another patient.
    """

    def __init__(
        self,
        archive: DICOMClient,
        transform: str,
        allow_other_patient: bool,
    ) -> None:
        self._archive = archive
        self._transform = transform
        profile = archive.profile
        self._fact = profile.same_uid_elsewhere
        self._looks = self._fact != "keeps_both" and profile.flat_instances is not False
        # Where an archive changes what it keeps, its PatientID proves nothing.
        self._compares = not allow_other_patient and profile.comparison_level != "none"
        self.start_anew()
        start_anew_after_fork(self)

    def start_anew(self) -> None:
        """Forgets what is known, and what is being sent."""
        self._patients: dict[str, frozenset[str] | None] = {}
        self._asking = [threading.Lock() for _ in range(_LOCKS)]
        self._changed = threading.Condition()
        self._sent: set[str] = set()

    def store(self, instances: Sequence[Instance], send: Callable[[Sequence[Instance]], list[Result]]) -> list[Result]:
        """Stores instances, by `send`, and reports the result of each, in order.

        Raises:
            requests.RequestException, OSError: If the archive cannot be asked now; it would be no use to store blindly.
        """
        results: dict[int, Result] = {}
        for place, instance in enumerate(instances):
            withheld = self._other_patient(instance) if self._compares else None
            if withheld is not None:
                results[place] = withheld
        rest = {place: instance for place, instance in enumerate(instances) if place not in results}
        uids = {str(instance.reference.sop_instance_uid) for instance in rest.values()}
        with self._alone(uids if self._looks else set()):
            there = self._found(sorted(uids)) if self._looks else []
            for place, instance in list(rest.items()):
                reference = instance.reference
                same = [item for item in there if item.sop_instance_uid == reference.sop_instance_uid]
                others = [item for item in same if item != reference]
                if others:
                    del rest[place]
                    results[place] = self._beside(others, instance, send)
            results.update(zip(rest, send(list(rest.values())), strict=True))
        return [results[place] for place in range(len(instances))]

    @contextlib.contextmanager
    def _alone(self, uids: set[str]) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._sent.isdisjoint(uids))
            self._sent |= uids
        try:
            yield
        finally:
            with self._changed:
                self._sent -= uids
                self._changed.notify_all()

    def _beside(
        self, others: list[Resource], instance: Instance, send: Callable[[Sequence[Instance]], list[Result]]
    ) -> Result:
        """Stores an instance whose SOP Instance UID the archive has in other series, if that loses nothing."""
        reference = instance.reference
        where = f"{self._archive.base_url} has this SOP Instance UID in another series, {others[0].uri}"
        if self._fact is not None:
            what = "would keep only that one" if self._fact == "ignores" else "would lose that one"
            return Failure(self._transform, f"not sent: {where}, and {what}", reference=reference)
        (result,) = send([instance])
        if isinstance(result, Failure):
            return result
        try:
            there = self._found([str(reference.sop_instance_uid)]) if self._looks else None
        except RECOVERABLE:
            there = None
        lost = lost_beside(reference, others, there if self._looks else None)
        return Failure(self._transform, f"{where}, and {lost}", reference=reference, retryable=True) if lost else result

    def _found(self, uids: Sequence[str]) -> list[Resource]:
        """The instances with these UIDs, wherever they are; none where the archive never answers such a search."""
        size = _UIDS_PER_QUERY if self._archive.profile.uid_lists else 1
        found: dict[Resource, None] = {}
        try:
            for start in range(0, len(uids), size):
                filters = (("SOPInstanceUID", "\\".join(uids[start : start + size])),)
                query = SearchQuery("instance", search_filters=filters)
                # One request, of an archive that answers it at all.
                rows = self._archive.search_page(query, limit=_MAX_NEIGHBOURS, walk=False).rows
                found.update(dict.fromkeys(map(instance_of_row, rows)))
        except RECOVERABLE as error:
            if failure_of(error, self._transform).retryable:
                raise
            logger.info("%s cannot be asked for single UIDs: %s", self._archive.base_url, log_text(error))
            self._looks = False
        return list(found)

    def _other_patient(self, instance: Instance) -> Failure | None:
        study, patient = instance.reference.study_instance_uid, _patient_of(instance)
        with self._asking[hash(study) % _LOCKS]:
            if study not in self._patients:
                # One look for each study, before anything is stored in it; others wait for it.
                if len(self._patients) >= _MAX_STUDIES:
                    self._patients.clear()
                self._patients[study] = self._patients_of(study)
            known = self._patients[study]
            if not patient or known is None or patient in known:
                return None
            if not known:
                # The first one decides, except where equal UIDs are kept apart: patients are kept apart there too.
                if self._fact != "keeps_both":
                    self._patients[study] = frozenset({patient})
                return None
        return Failure(
            self._transform,
            f"not sent: {self._archive.base_url} has (or was just sent) the study {study} under another PatientID, "
            "and might attach this one to that patient (--allow-other-patient, or allow_other_patient=True, stores it)",
            reference=instance.reference,
        )

    def _patients_of(self, study: str) -> frozenset[str] | None:
        """The patients that the archive has a study of, none if it has not; None if it does not say."""
        query = SearchQuery("study", search_filters=((UID_KEYWORDS["study"], study),))
        try:
            rows = [
                row
                for row in self._archive.iter_search(query, limit=_MAX_NEIGHBOURS)
                if Resource.of(row).contains(Resource(study))
            ]
        except FileNotFoundError:
            # A folder that nothing was stored in yet.
            return frozenset()
        except RECOVERABLE as error:
            if failure_of(error, self._transform).retryable:
                raise
            logger.info("the patient of %s is unknown: %s", study, log_text(error))
            return None
        patients = frozenset(first_text(row, _PATIENT_ID).strip(" \0") for row in rows)
        # A row without a PatientID leaves it open.
        return patients if "" not in patients else None


def _patient_of(instance: Instance) -> str:
    """The PatientID of an instance; empty if it has none, or one that may be spelled in several character sets."""
    tag = int(_PATIENT_ID, 16)
    try:
        with instance.open() as file:
            patient = (scan_header(file, stop_after=tag).text(tag) or "").strip(" \0")
    except (*RECOVERABLE, ArithmeticError, LookupError):
        # The store says what is wrong with it.
        return ""
    return patient if patient.isascii() else ""


def lost_beside(reference: Resource, others: Iterable[Resource], there: Collection[Resource] | None) -> str | None:
    """What is lost of instances with one SOP Instance UID since one of them was stored, in words; None if nothing is.

    Args:
        reference: The one that was stored.
        others: The ones in other series.
        there: The ones that the archive has now; None if it cannot be asked.
    """
    if there is None:
        return "could not be looked at again when this one was stored"
    if reference not in there:
        return "answered that this one is stored, and a search does not find it"
    return None if all(other in there for other in others) else "has lost that one since this one was stored"


# Lists ----------------------------------------------------------------------------------------------------------------

Wanted = Resource | SearchQuery
"""What a line of a list asks for: an object, or every study (or instance, by its UIDs) that a query finds."""

DIFFERENT_LINE = "CheckDifference"
"""The step that withholds what the destination has with other contents."""


@dataclass(frozen=True)
class ListLine:
    """A line of a list.

    Attributes:
        place: The list and the number of the line, for messages.
        wanted: What it asks for; None if it cannot be read.
        problem: Why it cannot be read.
        difference: What a comparison has written that it is: ``"missing"``, ``"extra"`` or ``"different"``; else empty.
    """

    place: str
    wanted: Wanted | None
    problem: str = ""
    difference: str = ""


@dataclass(frozen=True)
class ListFile:
    """A list that is read where it is needed; see `read_references`.

    Attributes:
        path: A local path or an fsspec URL.
        allow_patterns: See `read_references`.
    """

    path: str
    allow_patterns: bool = False

    def lines(self) -> Iterator[ListLine]:
        """The lines of the list, read as they are needed."""
        return read_references(self.path, allow_patterns=self.allow_patterns)


_COLUMNS = {
    "StudyInstanceUID": "StudyInstanceUID",
    "SeriesInstanceUID": "SeriesInstanceUID",
    "SOPInstanceUID": "SOPInstanceUID",
    "AccessionNumber": "AccessionNumber",
    "IssuerOfAccessionNumber": "IssuerOfAccessionNumberSequence.LocalNamespaceEntityID",
    "PatientID": "PatientID",
    "IssuerOfPatientID": "IssuerOfPatientID",
    "StudyDate": "StudyDate",
}
_SPELLINGS = {
    "StudyInstanceUID": ("studyuid", "studyiuid"),
    "SeriesInstanceUID": ("seriesuid", "seriesiuid"),
    "SOPInstanceUID": ("sopuid", "sopiuid", "instanceuid"),
    "AccessionNumber": ("accession", "accessionno", "accessionnr", "accessionnum", "accno", "accnr"),
    "PatientID": ("mrn", "patid", "patientmrn", "medicalrecordnumber"),
}
"""Other names that people give to columns, in lower case and without punctuation."""
_BY_NAME = {
    spelling: column for name, column in _COLUMNS.items() for spelling in (name.lower(), *_SPELLINGS.get(name, ()))
}
_STUDY_KEYS = ("AccessionNumber", "PatientID")
_DELIMITERS = "\t;,"
_NOT_LISTED = set(" %?#")
"""Characters of other identifiers, which in a list are more likely a mistake."""
_PATTERN = re.compile(r"[*?\\]")
_EXCEL_TEXT = re.compile(r'="(.*)"\Z')
_EXCEL_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?E\+\d+", re.IGNORECASE)
_DATES = (
    (re.compile(r"(?P<y>\d{4})([-/.]?)(?P<m>\d\d)\2(?P<d>\d\d)"), ()),
    (re.compile(r"(?P<d>\d\d?)\.(?P<m>\d\d?)\.(?P<y>\d{4})"), ()),
    (re.compile(r"(?P<d>\d\d?)([/-])(?P<m>\d\d?)\2(?P<y>\d{4})"), ("d", "m")),
)
"""The forms of a date, and the numbers of it that may be the other way round."""
_RANGE = re.compile(r"(\d{8})?-(\d{8})?")
_MAX_JOINED, _MAX_CELL = 20, 131_072
_BINARY = {b"PK\x03\x04": "a spreadsheet (.xlsx) or a ZIP file", b"\xd0\xcf\x11\xe0": "a spreadsheet (.xls)"}
_told: set[str] = set()


def read_references(path: str, *, allow_patterns: bool = False) -> Iterator[ListLine]:
    """Reads a list of what is wanted. Blank lines and lines that begin with ``#`` are left out.

    Each line is one of: a JSON object with UIDs (``study_instance_uid`` …, or DICOM JSON), an entry of an earlier
    ``--failures`` file, a difference that a comparison has written,
    a DICOMweb URI, a study's UID, an accession number, or a line of a CSV file (commas, semicolons
    or tabs) whose header names some of ``StudyInstanceUID``, ``SeriesInstanceUID``, ``SOPInstanceUID``,
    ``AccessionNumber``, ``IssuerOfAccessionNumber``, ``PatientID``, ``IssuerOfPatientID`` and ``StudyDate`` (also as
    "Accession No." or "MRN"). Other columns are not used, which a warning says. A quoted cell may hold line ends. A row
    without any value is a blank line.

    Args:
        path: A local path or an fsspec URL; the file may be compressed by gzip.
        allow_patterns: Whether an accession number or patient's identifier may hold wildcards, ``*`` and ``?``, or
            several values.

    Yields:
        Every line, those that cannot be read too.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not a text, or its header is unknown.
    """
    with _text(path) as text:
        texts = ((number, line.strip()) for number, line in enumerate(text, 1))
        numbered = ((number, line) for number, line in texts if line and not line.startswith("#"))
        first, delimiter = next(numbered, None), ""
        if first is not None and re.fullmatch(r"sep=[;,\t]?", first[1]):
            # Excel writes this line, and strips the tab with other blanks.
            delimiter = first[1][4:] or "\t"
            first = next(numbered, None)
        if first is None:
            return
        header, delimiter, unused = _header(*first, delimiter)
        if unused and path not in _told:
            _told.add(path)
            logger.warning("%s: not used are the columns %s", path, ", ".join(map(repr, unused)))
        for number, line in (
            chain([first], numbered) if header is None else _whole_rows(numbered, len(header), delimiter)
        ):
            place = f"{path}, line {number}"
            try:
                cells = _cells(line, delimiter) if header is not None else []
                if header is not None and not any(cells):
                    continue
                wanted = _of_line(line) if header is None else _of_cells(header, cells)
                wanted = _without_patterns(wanted, allowed=allow_patterns)
                yield ListLine(place, wanted, difference=_difference_of(line) if header is None else "")
            except (TypeError, ValueError) as error:
                yield ListLine(place, None, str(error))


def _whole_rows(numbered: Iterable[tuple[int, str]], columns: int, delimiter: str) -> Iterator[tuple[int, str]]:
    """Rows of CSV, of which a quoted cell may hold line ends.

    A quote without its end must not swallow the lines that follow: what is joined has to be a row, of which no line but
    the first and last has as many cells as a row.
    """

    def cells(text: str) -> int:
        try:
            return len(_cells(text, delimiter))
        except ValueError:
            return 0

    ahead: deque[tuple[int, str]] = deque()
    lines = iter(numbered)
    while True:
        one = ahead.popleft() if ahead else next(lines, None)
        if one is None:
            return
        number, row = one
        taken = 0
        while row.count('"') % 2 and taken < _MAX_JOINED:
            if taken == len(ahead):
                more = next(lines, None)
                if more is None:
                    break
                ahead.append(more)
            row = f"{row}\n{ahead[taken][1]}"
            taken += 1
        swallowed = [cells(ahead[place][1]) for place in range(taken - 1)]
        if taken and (not cells(row) or (columns > 1 and columns in swallowed)):
            yield one
            continue
        for _ in range(taken):
            ahead.popleft()
        yield number, row


@contextlib.contextmanager
def _text(path: str) -> Iterator[IO[str]]:
    """A file as text, which may be compressed by gzip."""
    with contextlib.ExitStack() as stack:
        content: Any = stack.enter_context(_opened(path))
        start = _start_of(content)
        if start in _BINARY:
            raise ValueError(f"it is {_BINARY[start]}, not a text: save the sheet as CSV (UTF-8)")
        if start[:2] == b"\x1f\x8b":
            content = stack.enter_context(gzip.GzipFile(fileobj=content))
        # Excel's "Unicode text" is UTF-16.
        utf16 = _start_of(content)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        # Excel also writes the character set of the country, which matters only in cells that are used.
        how = ("utf-16", "strict") if utf16 else ("utf-8-sig", "surrogateescape")
        try:
            yield stack.enter_context(io.TextIOWrapper(content, *how, newline=None))
        except (EOFError, zlib.error) as error:
            raise ValueError(f"the compressed file is damaged: {error}") from error


def _opened(path: str) -> Any:
    try:
        return open_path(path)
    except ImportError as error:
        raise ValueError(str(error)) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error


def _start_of(file: Any) -> bytes:
    start: bytes = file.read(4)
    file.seek(0)
    return start


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        cells = next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        raise ValueError(f"not CSV: {error}") from None
    if max(map(len, cells), default=0) > _MAX_CELL:
        raise ValueError(f"not CSV: a cell of more than {_MAX_CELL:,} characters")
    return [_EXCEL_TEXT.sub(r"\1", cell.strip()).strip() for cell in cells]


def _is_reference(line: str) -> bool:
    return line.startswith("{") or "studies/" in line


def _header(number: int, line: str, delimiter: str) -> tuple[list[str] | None, str, list[str]]:
    """The attributes of the columns, if the list is CSV, what separates them, and the names of those without any.

    Raises:
        ValueError: If no column names an object, or two are the same.
    """
    if _is_reference(line):
        return None, ",", []
    try:
        delimiter = delimiter or max(_DELIMITERS, key=lambda mark: (len(_cells(line, mark)), mark == ","))
        names = _cells(line, delimiter)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None
    while names and not names[-1]:
        names.pop()
    columns = [_BY_NAME.get(re.sub(r"[_\W]", "", name).lower(), "") for name in names]
    if "\0" in line or not (_is_utf8(line) or any(columns)):
        raise ValueError(f"line {number}: it is no text in UTF-8: save a workbook, or another encoding, as CSV UTF-8")
    # A single column may lack its header. An accession number or a UID has a digit.
    if len(names) == 1 and not columns[0] and re.search(r"[\d*?]", names[0]):
        return None, delimiter, []
    known = [column for column in columns if column]
    twice = [name for name, column in zip(names, columns, strict=True) if column and columns.count(column) > 1]
    if twice or not {*_STUDY_KEYS, *UID_KEYWORDS.values()} & set(known):
        what = (
            f"columns that mean the same, {', '.join(map(repr, twice))}" if twice else "no column that names an object"
        )
        raise ValueError(f"line {number}: the header has {what} (known: {', '.join(_COLUMNS)})")
    return columns, delimiter, [name for name, column in zip(names, columns, strict=True) if name and not column]


def _of_cells(header: list[str], cells: list[str]) -> Wanted:
    if any(cells[len(header) :]):
        raise ValueError(f"it has {len(cells)} cells, the header has {len(header)}")
    return _of_keys({column: cell for column, cell in zip(header, cells, strict=False) if cell and column})


def _of_keys(row: Mapping[str, str]) -> Wanted:
    """What is named by attributes and their values, none of them empty. UIDs go before other attributes."""
    for key, value in row.items():
        if not _is_utf8(value):
            raise ValueError(f"its {key} is not UTF-8: save the list as CSV UTF-8")
        if _EXCEL_NUMBER.fullmatch(value):
            raise ValueError(
                f"its {key} is a number that a spreadsheet has rounded (such as 1.2E+05): its digits are lost, so take "
                "them from where they came from, into a column of text"
            )
    uids = {level: row[keyword] for level, keyword in UID_KEYWORDS.items() if keyword in row}
    for level, uid in uids.items():
        if not is_uid(uid, permissive=True) or _PATTERN.search(uid) or set(uid) & _NOT_LISTED:
            raise ValueError(f"{UID_KEYWORDS[level]} {uid!r} is not a UID")
    if "study" in uids and ("series" in uids or "instance" not in uids):
        return Resource(uids["study"], uids.get("series"), uids.get("instance"))
    if uids:
        filters = [(UID_KEYWORDS[level], uid) for level, uid in uids.items() if level != "study"]
        return SearchQuery("instance", uids.get("study"), search_filters=tuple(filters))
    if not any(key in row for key in _STUDY_KEYS):
        raise ValueError("it names no study, series, instance, accession number or patient")
    filters = [(key, _date(value) if key == "StudyDate" else value) for key, value in row.items()]
    return SearchQuery("study", search_filters=tuple(filters))


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _date(text: str) -> str:
    """A date, or a range of them, as DICOM writes it.

    Raises:
        ValueError: If it can be read in no way, or in two.
    """
    if _RANGE.fullmatch(text) and text != "-":
        return text
    day = re.sub(r"[T ]00:00(:00(\.0+)?)?\Z", "", text)
    for form, either in _DATES:
        found = form.fullmatch(day)
        if found is None:
            continue
        parts = {name: int(number) for name, number in found.groupdict().items()}
        ways = [parts]
        if either and parts["d"] != parts["m"]:
            ways.append({**parts, "d": parts["m"], "m": parts["d"]})
        dates = []
        for way in ways:
            with contextlib.suppress(ValueError):
                dates.append(datetime.date(way["y"], way["m"], way["d"]).strftime("%Y%m%d"))
        if len(dates) == 1:
            return dates[0]
    raise ValueError(f"its StudyDate {text[:20]!r} cannot be read in exactly one way: write YYYYMMDD")


def _without_patterns(wanted: Wanted, *, allowed: bool) -> Wanted:
    for key, value in wanted.search_filters if isinstance(wanted, SearchQuery) and not allowed else ():
        if _PATTERN.search(value):
            raise ValueError(f"its {key} is a pattern or a list of values: allow patterns, if it is meant so")
    return wanted


def _of_line(line: str) -> Wanted:
    if line.startswith("{"):
        return _of_json(line)
    if _is_reference(line):
        return Resource.of(line).instance
    if line.startswith("[{"):
        raise ValueError("it is a JSON array; give one object a line")
    cells = _cells(line, ",")
    if len(cells) != 1:
        raise ValueError("it has several cells, and the list has no header")
    # An accession number may consist of digits too, but hardly of several components.
    if cells[0].count(".") > 1 and is_uid(cells[0], permissive=True) and not set(cells[0]) & {*_NOT_LISTED, "*"}:
        return Resource(cells[0])
    return _of_keys({"AccessionNumber": cells[0]} if cells[0] else {})


def _of_json(line: str) -> Wanted:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if "transform" in value and "message" in value:
        if not value.get("reference"):
            return _of_failure(value)
        value = value["reference"]
    if "difference" in value:
        value = {key: item for key, item in value.items() if key in _COLUMNS}
    if any(key in _COLUMNS for key in value):
        keys = {_COLUMNS[key]: item for key, item in value.items() if key in _COLUMNS and item is not None}
        # Columns of tables are passed over; a mistyped key would leave out what it says, and so name more.
        unknown = [key for key in value if key not in _COLUMNS and not _is_attribute(key)]
        if unknown or not all(isinstance(item, str) for item in keys.values()):
            raise ValueError(f"it has unknown keys, or values that are no text (known: {', '.join(_COLUMNS)})")
        return _of_keys({key: item.strip() for key, item in keys.items() if item.strip()})
    found = Resource.of(value).instance
    named = [level for level, tag in UID_TAGS.items() if tag in value]
    if named and named[-1] != found.level:
        raise ValueError(f"it names an {named[-1]}, but lacks the UID of its series")
    if any(map(_PATTERN.search, found.uids.values())):
        raise ValueError("it holds a pattern where a UID should be")
    return found


def _is_attribute(key: str) -> bool:
    """Whether it is the name of a column of a table."""
    with contextlib.suppress(ValueError):
        return key.startswith("tag_") or bool(resolve(key.partition("_")[0]))
    return False


def _difference_of(line: str) -> str:
    """What a comparison has written that a line is, which can be read; empty if none has written it."""
    if not line.startswith("{"):
        return ""
    value = json.loads(line)
    return "different" if value.get("transform") == DIFFERENT_LINE else str(value.get("difference", ""))


def _of_failure(failure: Mapping[str, Any]) -> Wanted:
    """What a failure that has no reference asks for: what its line asked for."""
    if isinstance(failure.get("wanted"), dict):
        return _of_keys(failure["wanted"])
    if failure.get("line"):
        raise ValueError(f"it could not be read in {failure['line']}, where it has to be mended")
    if failure.get("source"):
        raise ValueError(f"it concerns the file {failure['source']}, which names no object")
    raise ValueError("this failure does not name an object: repeat the search, without --input")


def keys_of(query: SearchQuery) -> dict[str, str]:
    """What a line asks for by a query, by the names of columns."""
    names = {attribute: name for name, attribute in _COLUMNS.items()}
    study = {UID_KEYWORDS["study"]: query.study_instance_uid} if query.study_instance_uid else {}
    return {**study, **{names.get(key, key): value for key, value in query.search_filters}}
