"""Which instances an archive holds: the listing of a series, asked once, and the instances of a reference."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from dicomweb_io.client import DICOMClient
from dicomweb_io.elements import Resource
from dicomweb_io.errors import InvalidIdentifierError
from dicomweb_io.queries import make_query

_MAX_CACHED_UIDS = 200_000


class SeriesListing:
    """Which instances an archive holds, asked once for each series. Safe to use from several threads.

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
        self._count = 0

    def holds(self, instance: Resource) -> bool:
        """Tells whether the archive lists an instance in its series.

        Raises:
            requests.RequestException, OSError: If the archive cannot be asked.
        """
        series = instance.series
        with self._lock:
            known = self._series.get(series)
            if known is not None:
                self._series.move_to_end(series)
                return instance.sop_instance_uid in known
            busy = self._busy.setdefault(series, threading.Lock())
        # Whoever comes second waits for the first one's answer instead of asking too.
        with busy:
            with self._lock:
                known = self._series.get(series)
            if known is None:
                known = self._ask(series)
                self._remember(series, known)
            return instance.sop_instance_uid in known

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
        query = make_query("instance", series.study_instance_uid, series.series_instance_uid, permissive_uid=True)
        found = set()
        try:
            for row in self._client.iter_search(query):
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
        ValueError: If the row has no SOP Instance UID or no series.
    """
    completed = dict(row)
    if within is not None:
        completed.setdefault("0020000D", {"vr": "UI", "Value": [within.study_instance_uid]})
        if within.series_instance_uid is not None:
            completed.setdefault("0020000E", {"vr": "UI", "Value": [within.series_instance_uid]})
    found = Resource.of(completed)
    if found.level != "instance":
        raise InvalidIdentifierError(f"a row of a search for instances names only the {found.level} {found.uri}")
    return found
