"""Which instances there are: the listing of a series, the instances of a reference, and those that a user's list names.

An `InstanceGroup` holds the instances of one series that are moved together. It says whether it is the whole series,
because a whole series can be retrieved in one request.
"""

from __future__ import annotations

import contextlib
import csv
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import IO, Any, Generic, TypeVar, cast

from dicomweb_io.client import DICOMClient
from dicomweb_io.dicom.uids import is_uid
from dicomweb_io.elements import UID_TAGS, Resource, SearchLevel, SearchQuery
from dicomweb_io.errors import InvalidIdentifierError, PagingError
from dicomweb_io.failures import RECOVERABLE
from dicomweb_io.http.retry import BAD_NEWS_LASTS
from dicomweb_io.queries import make_query

_MAX_CACHED_UIDS = 200_000
_MAX_GROUP = 1000
_MAX_HELD = 20_000
_MAX_FAILED = 10_000

# An archive that is being written to shifts its rows from page to page; a listing that noticed is made again.
_LISTING_ATTEMPTS = 3

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class InstanceGroup:
    """Instances of one series that are handled together.

    Attributes:
        series: The series.
        sop_instance_uids: The instances of it.
        listed: How many instances the archive lists in the series; None if it was not asked.
    """

    series: Resource
    sop_instance_uids: tuple[str, ...]
    listed: int | None = None

    @property
    def references(self) -> list[Resource]:
        """The instances, in order."""
        series = self.series
        return [Resource(series.study_instance_uid, series.series_instance_uid, uid) for uid in self.sop_instance_uids]


class SeriesGrouping(Generic[K]):
    """Collects instances by their series, some at a time: what is held is bounded."""

    def __init__(self) -> None:
        self._held: dict[tuple[Resource, K], list[str]] = {}
        self._count = 0

    def add(self, instance: Resource, key: K) -> Iterator[tuple[K, InstanceGroup]]:
        """Takes an instance and yields the groups that it completes.

        Args:
            instance: The instance.
            key: Only instances with equal keys share a group.
        """
        place = (instance.series, key)
        uids = self._held.setdefault(place, [])
        uids.append(str(instance.sop_instance_uid))
        self._count += 1
        if len(uids) >= _MAX_GROUP:
            yield self._give(place)
        elif self._count > _MAX_HELD:
            yield self._give(max(self._held, key=lambda held: len(self._held[held])))

    def flush(self) -> Iterator[tuple[K, InstanceGroup]]:
        """Yields the remaining groups."""
        while self._held:
            yield self._give(next(iter(self._held)))

    def _give(self, place: tuple[Resource, K]) -> tuple[K, InstanceGroup]:
        uids = self._held.pop(place)
        self._count -= len(uids)
        series, key = place
        return key, InstanceGroup(series, tuple(uids))


def group_by_series(instances: Iterable[Resource]) -> Iterator[InstanceGroup]:
    """Groups of the instances that come, those of a series together as far as memory allows."""
    grouping: SeriesGrouping[None] = SeriesGrouping()
    for instance in instances:
        for _, group in grouping.add(instance, None):
            yield group
    for _, group in grouping.flush():
        yield group


def list_groups(client: DICOMClient, reference: Resource) -> Iterator[InstanceGroup]:
    """Yields the series of a study or series with all their instances, as the archive lists them."""
    series: dict[Resource, list[str]] = {}
    for instance in expand_reference(client, reference):
        series.setdefault(instance.series, []).append(str(instance.sop_instance_uid))
    for one, uids in series.items():
        yield InstanceGroup(one, tuple(uids), len(uids))


class SeriesListing:
    """Which instances an archive holds, asked once for each series. Safe to use from several threads.

    A series that could not be listed is not asked for again for a minute: the answer would be the same for each of its
    instances.

    Args:
        client: The archive.
        max_uids: When more UIDs than this are remembered, the series that were used longest ago are forgotten.
    """

    def __init__(self, client: DICOMClient, max_uids: int = _MAX_CACHED_UIDS) -> None:
        self._client = client
        self._maximum = max_uids
        self._lock = threading.Lock()
        self._series: OrderedDict[Resource, set[str]] = OrderedDict()
        self._busy: dict[Resource, threading.Lock] = {}
        self._failed: dict[Resource, tuple[float, BaseException]] = {}
        self._count = 0

    def holds(self, instance: Resource) -> bool:
        """Tells whether the archive lists an instance in its series.

        Raises:
            requests.RequestException, OSError: If the archive cannot be asked.
        """
        return instance.sop_instance_uid in self._known(instance.series)

    def size(self, series: Resource) -> int:
        """The number of instances that the archive lists in a series.

        Raises:
            requests.RequestException, OSError: If the archive cannot be asked.
        """
        return len(self._known(series))

    def _known(self, series: Resource) -> set[str]:
        with self._lock:
            known = self._series.get(series)
            if known is not None:
                self._series.move_to_end(series)
                return known
            busy = self._busy.setdefault(series, threading.Lock())
        # The second caller waits for the answer of the first.
        with busy:
            with self._lock:
                known = self._series.get(series)
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

    def _remember(self, series: Resource, uids: set[str]) -> None:
        with self._lock:
            self._series[series] = uids
            self._busy.pop(series, None)
            self._count += len(uids)
            while self._count > self._maximum and len(self._series) > 1:
                _, forgotten = self._series.popitem(last=False)
                self._count -= len(forgotten)

    def _ask(self, series: Resource) -> set[str]:
        for _ in range(_LISTING_ATTEMPTS - 1):
            with contextlib.suppress(PagingError):
                return self._listed(series)
        return self._listed(series)

    def _listed(self, series: Resource) -> set[str]:
        query = make_query("instance", series.study_instance_uid, series.series_instance_uid, permissive_uid=True)
        return listed_uids(self._client, query)


def listed_uids(client: DICOMClient, query: SearchQuery, *, limit: int | None = None) -> set[str]:
    """The SOP Instance UIDs that a search for instances finds; none where the archive does not know the series."""
    found = set()
    try:
        for row in client.iter_search(query, limit=limit):
            uid = Resource.of(row).sop_instance_uid
            if uid is not None:
                found.add(uid)
    except FileNotFoundError:
        # A folder that nothing was stored in yet.
        return set()
    except OSError as error:
        # PS3.18 8.3.4 wants an empty answer for a series that is not there; some servers say 404.
        if getattr(error, "status", None) != 404:
            raise
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
        InvalidIdentifierError: If the row lacks a UID: it never names its whole parent.
    """
    above = {} if within is None else within.series.uids
    implied = {UID_TAGS[parent]: {"vr": "UI", "Value": [uid]} for parent, uid in above.items()}
    found = Resource.of({**implied, **row})
    if found.level != level:
        raise InvalidIdentifierError(f"a row of a {level} search has only the {found.level} {found.uri}")
    return found


Wanted = Resource | SearchQuery
"""What a line of a list asks for: an object, or every instance that a query finds."""

_COLUMNS = {
    "studyinstanceuid": "study_instance_uid",
    "seriesinstanceuid": "series_instance_uid",
    "sopinstanceuid": "sop_instance_uid",
    "accessionnumber": "accession_number",
}


def read_references(path: str) -> list[Wanted]:
    """Reads a list of what is wanted.

    Each line is one of: a JSON object with UIDs (``study_instance_uid`` …, or DICOM JSON), an entry of an earlier
    ``--failures`` file, a DICOMweb URI, a study's UID, an accession number, or a line of a CSV file whose header names
    ``StudyInstanceUID``, ``SeriesInstanceUID``, ``SOPInstanceUID`` or ``AccessionNumber``.

    Args:
        path: A local path or an fsspec URL.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not a text, or a line names nothing; the message has the line's number.
    """
    with _open(path) as file:
        lines = [line.strip() for line in file]
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not numbered:
        return []
    header = _header(*numbered[0])
    if header is not None:
        return [_of_columns(number, header, line) for number, line in numbered[1:]]
    return [_of_line(number, line) for number, line in numbered]


def _open(path: str) -> IO[str]:
    if "://" in path:
        import fsspec

        return cast("IO[str]", fsspec.open(path, "r", encoding="utf-8-sig").open())
    return open(path, encoding="utf-8-sig")


def _cells(number: int, line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error as error:
        raise ValueError(f"line {number}: not CSV: {error}") from None


def _header(number: int, line: str) -> list[str] | None:
    names = [name.strip().lower().replace("_", "").replace(" ", "") for name in _cells(number, line)]
    return [_COLUMNS.get(name, "") for name in names] if any(name in _COLUMNS for name in names) else None


def _of_columns(number: int, header: list[str], line: str) -> Wanted:
    values = _cells(number, line)
    row = {name: value.strip() for name, value in zip(header, values, strict=False) if name and value.strip()}
    if "study_instance_uid" in row:
        row.pop("accession_number", None)
        return _checked(number, row)
    if "accession_number" in row:
        return SearchQuery("instance", search_filters=(("AccessionNumber", row["accession_number"]),))
    if "sop_instance_uid" in row:
        return SearchQuery("instance", search_filters=(("SOPInstanceUID", row["sop_instance_uid"]),))
    if "series_instance_uid" in row:
        return SearchQuery("instance", search_filters=(("SeriesInstanceUID", row["series_instance_uid"]),))
    raise ValueError(f"line {number}: it names no study, series, instance or accession number")


def _of_line(number: int, line: str) -> Wanted:
    if line.startswith("{"):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: not JSON: {error}") from error
        if "transform" in value and "message" in value:
            if not value.get("reference"):
                raise ValueError(
                    f"line {number}: this failure does not name an object "
                    f"({value.get('source') or value.get('message')}); repeat the search"
                )
            value = value["reference"]
        return _checked(number, value)
    # An accession number may consist of digits too, but hardly of several components.
    if line.count(".") > 1 and is_uid(line, permissive=True):
        return Resource(line)
    if "studies/" in line:
        return _checked(number, line)
    return SearchQuery("instance", search_filters=(("AccessionNumber", line),))


def _checked(number: int, value: Any) -> Resource:
    try:
        return Resource.of(value).instance
    except (TypeError, ValueError) as error:
        raise ValueError(f"line {number}: {error}") from error
