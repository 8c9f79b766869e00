"""Change sources: what is new in an archive since it was last asked. Plain Python, for pipelines and loops alike.

A source is polled again and again with the `Cursor` that it gave last, and reports each object once::

    source = change_source(endpoint, "instance")
    cursor = None
    while True:
        changes = source.poll(client, cursor, start="now")
        ...                                   # changes.references
        cursor = changes.cursor

The change feed of an archive is used if it has one: Orthanc (``/changes``) and Azure's DICOM service (``/changefeed``).
All others are searched: what lies in a window of dates is listed, and what was not listed before is new. The server's
profile says which way is used.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import uuid
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast, get_args
from urllib.parse import quote

from dicomweb_io.client import DICOMClient
from dicomweb_io.dicom import json_decode
from dicomweb_io.dicom.attributes import resolve
from dicomweb_io.elements import Failure, JSONDataset, Resource, SearchLevel, SearchQuery
from dicomweb_io.endpoint import Endpoint, EndpointLike
from dicomweb_io.errors import (
    DICOMError,
    DICOMwebError,
    InvalidIdentifierError,
    MalformedResponseError,
    SearchIncompleteError,
)
from dicomweb_io.failures import failure_of
from dicomweb_io.files.database import lock_file
from dicomweb_io.http.retry import ProcessLock, start_anew_after_fork
from dicomweb_io.http.transport import Answer, Transport
from dicomweb_io.options import read_json, write_lines
from dicomweb_io.profiles import resolve_profile
from dicomweb_io.queries import level_of, make_query

logger = logging.getLogger("dicomweb_io")

WatchLevel = Literal["study", "instance", "study_change"]
"""What is watched for. ``"study_change"`` reports a study again whenever the number of its instances has changed."""

Start = Literal["now", "all"] | date | datetime
"""Where to begin: with what arrives from now on, with everything that is there, or with a day or a moment."""

ChangeMethod = Literal["auto", "orthanc", "azure", "receive_time", "study_date", "list"]
"""How to find out what is new: by the archive's own feed, by the time it received studies, by recent study dates, or by
listing everything each time."""

Window = Literal["StudyDate", "StudyReceiveDateTime"]

DEFAULT_MAX_CHANGES = 10_000
"""References of one answer at most, by default."""

MAX_OPEN = 10_000
"""Studies that may be on their way to rest at once. Beyond that, those longest without a change are reported."""

NO_FEED = (400, 404, 405, 501)
"""Statuses that mean that there is no such feed."""

_VERSION = 1
_MARGIN = timedelta(days=1)
"""Dates and times of archives have no zone, and clocks differ."""
_LOOKBACKS = {
    "azure": timedelta(minutes=1),
    "receive_time": timedelta(days=1),
    "study_date": timedelta(days=7),
}
_WINDOWS: dict[str, Window] = {"receive_time": "StudyReceiveDateTime", "study_date": "StudyDate"}

_NUMBER = "NumberOfStudyRelatedInstances"
_MAX_LISTINGS = 4

_ORTHANC_PAGE = 1000
_ORTHANC_RESOURCES = 500
_UIDS = {"Instance": "SOPInstanceUID", "Series": "SeriesInstanceUID", "Study": "StudyInstanceUID"}
_PARENTS = {"Instance": "ParentSeries", "Series": "ParentStudy"}

_AZURE = "change feed of Azure's DICOM service"
_AZURE_PAGE = 200
_STUDIES = "studies"


@dataclass(frozen=True, eq=False)
class Cursor:
    """The position of a change source. It pickles, and it has a JSON form for a file.

    Attributes:
        method: The kind of source that made it. No other kind can continue from it.
        position: How far the source has read: a sequence number, or a time.
        start: The time before which nothing is wanted, if there is one.
        seen: What was reported and may be found again, by day or time: digests of references, or sequence numbers.
        listing: The name of an unfinished listing that the process which made the cursor can go on with. Any other
            process lists again, so it is not part of the JSON form.
    """

    method: str
    position: str = ""
    start: str = ""
    seen: Mapping[str, frozenset[str]] = field(default_factory=dict, repr=False)
    listing: str = ""

    def to_json(self) -> dict[str, Any]:
        """The cursor as a JSON object."""
        return {
            "version": _VERSION,
            "method": self.method,
            "position": self.position,
            "start": self.start,
            "seen": {key: sorted(members) for key, members in sorted(self.seen.items())},
        }

    @classmethod
    def from_json(cls, value: Any) -> Cursor:
        """Restores a cursor.

        Raises:
            ValueError: If the value is not a cursor of this version.
        """
        if not isinstance(value, Mapping) or value.get("version") != _VERSION:
            raise ValueError("this is not a cursor of a change source, or one of another version")
        method, position, start, seen = (value.get(name) for name in ("method", "position", "start", "seen"))
        if not (isinstance(method, str) and isinstance(position, str) and isinstance(start, str)):
            raise ValueError("this is not a cursor of a change source: method, position and start must be texts")
        if not isinstance(seen, Mapping) or not all(isinstance(members, list) for members in seen.values()):
            raise ValueError("this is not a cursor of a change source: seen must hold lists")
        return cls(method, position, start, {str(key): frozenset(map(str, members)) for key, members in seen.items()})


@dataclass(frozen=True, eq=False)
class Changes:
    """The answer of a change source.

    Attributes:
        references: What is new, in the archive's order, each once.
        cursor: Where to continue.
        more: Whether there is more already, so that waiting is pointless.
        failures: What the archive reported without naming an object.
        incomplete: Why the answer lacks something, also if that was reported before.
    """

    references: tuple[Resource, ...]
    cursor: Cursor
    more: bool = False
    failures: tuple[Failure, ...] = ()
    incomplete: Failure | None = None


class ChangeSource(ABC):
    """Reports what is new in an archive."""

    method: str
    """The name of the way in which it finds out."""

    @abstractmethod
    def poll(
        self,
        client: DICOMClient,
        cursor: Cursor | None,
        *,
        start: Start = "now",
        max_changes: int = DEFAULT_MAX_CHANGES,
    ) -> Changes:
        """Asks what is new.

        Args:
            client: The archive.
            cursor: Where the last answer ended; None at the beginning.
            start: Where to begin; used only without a cursor. With ``"now"`` the first answer is empty.
            max_changes: End the answer when it holds this many references, and say that there is more.

        Raises:
            requests.HTTPError, OSError: If the archive cannot be asked. Nothing is lost: ask again with the same
                cursor.
            ValueError: If its answer makes no sense, or the cursor belongs to another archive.
        """


class _Source(ChangeSource):
    """A source with a separate kind of cursor.

    Args:
        level: What to watch for.
        search_filters: What it must match. A feed cannot be filtered, so each study of its answers costs a search.
    """

    def __init__(self, level: WatchLevel, search_filters: Mapping[str, Any] | None = None) -> None:
        self._level = level
        self._searched: SearchLevel = "instance" if level == "instance" else "study"
        self._filters = dict(search_filters or {})
        make_query(self._searched, search_filters=self._filters, permissive_uid=True)

    def poll(
        self,
        client: DICOMClient,
        cursor: Cursor | None,
        *,
        start: Start = "now",
        max_changes: int = DEFAULT_MAX_CHANGES,
    ) -> Changes:
        """See `ChangeSource.poll`."""
        silent = cursor is None and start == "now"
        if cursor is None:
            cursor = self._first_cursor(client, start)
        if cursor.method != self.method:
            raise ValueError(
                f"the cursor was made by the method {cursor.method!r}, so {self.method!r} cannot continue from it"
            )
        return self._poll(client, cursor, max_changes, silent)

    def _first_cursor(self, client: DICOMClient, start: Start) -> Cursor:
        return Cursor(self.method, start="" if isinstance(start, str) else moment_of(start).isoformat())

    @abstractmethod
    def _poll(self, client: DICOMClient, cursor: Cursor, max_changes: int, silent: bool) -> Changes:
        """What came after a cursor; with `silent` it is only noted in the new cursor."""

    def _matching(self, client: DICOMClient, references: Iterable[Resource]) -> tuple[Resource, ...]:
        """Those of the references from a feed that match the search filters: one search for each study."""
        candidates = tuple(references)
        if not self._filters:
            return candidates
        matches: set[Resource] = set()
        for study in dict.fromkeys(reference.study_instance_uid for reference in candidates):
            if self._searched == "study":
                filters = {**self._filters, "StudyInstanceUID": study}
                query = make_query("study", search_filters=filters, permissive_uid=True)
            else:
                query = make_query("instance", study, search_filters=self._filters, permissive_uid=True)
            for row in client.iter_search(query):
                reference = Resource.of(row)
                matches.add(reference if self._level == "instance" else Resource(reference.study_instance_uid))
        return tuple(reference for reference in candidates if reference in matches)


def change_source(
    endpoint: EndpointLike,
    level: WatchLevel = "instance",
    *,
    search_filters: Mapping[str, Any] | None = None,
    method: ChangeMethod = "auto",
    lookback: timedelta | float | None = None,
    thorough: bool = False,
) -> ChangeSource:
    """Chooses the change source for an archive.

    Args:
        endpoint: The archive.
        level: ``"instance"``, ``"study"`` or ``"study_change"``. A study is reported once, when it is first seen; more
            of it may still arrive. With ``"study_change"`` it is reported by every answer before which some of it
            arrived; searches recognize that by its number of instances.
        search_filters: What must match; see `dicomweb_io.queries.make_query`.
        method: ``"auto"`` uses what the server's profile says, otherwise ``"study_date"`` for servers and ``"list"``
            for folders (and where the filters name StudyDate). Where only the address suggests Orthanc, its log of
            changes is tried first.
        lookback: Seconds, or a timedelta: how late an instance may arrive after its time. By default 7 days for
            ``"study_date"``, a day for ``"receive_time"``, a minute for ``"azure"``; the others need none.
        thorough: Whether ``"auto"`` lists a server that has no feed, unless a lookback is given: what arrives with an
            old study date is found too. It lists studies, and reports those that are new or have grown, also for
            ``"instance"``, if the filters concern studies only.

    Raises:
        ValueError: If an argument is not valid, or does not fit the others.
    """
    where = Endpoint.of(endpoint)
    if level not in get_args(WatchLevel):
        raise ValueError(f"level must be one of {', '.join(get_args(WatchLevel))}, not {level!r}")
    if method not in get_args(ChangeMethod):
        raise ValueError(f"method must be one of {', '.join(get_args(ChangeMethod))}, not {method!r}")
    filters = dict(search_filters or {})
    listed: WatchLevel = level
    by_date = any(resolve(key)[0] == "00080020" for key in filters)
    if method == "auto":
        thorough = thorough and where.is_web and lookback is None
        searched: ChangeMethod = "study_date" if where.is_web and not by_date and not thorough else "list"
        if thorough and level == "instance" and all(level_of(key) == "study" for key in filters):
            listed = "study_change"
        facts = resolve_profile(where.profile, where.url).changes if where.is_web else None
        if facts == "orthanc" and where.profile == "auto":
            # Other servers have addresses like Orthanc's, and Orthanc may be shown without its own interface.
            feed = change_source(where, level, search_filters=filters, method=facts)
            return FeedOrSearch(
                feed, change_source(where, listed, search_filters=filters, method=searched, lookback=lookback)
            )
        method = facts or searched
        level = listed if method == "list" else level
    if method == "study_date" and by_date:
        raise ValueError("search_filters must not name StudyDate with method='study_date'; use method='list'")
    if method in ("orthanc", "azure") and not where.is_web:
        raise ValueError(f"method={method!r} is for servers, but {where.safe_url} is a folder")
    back = _LOOKBACKS.get(method, timedelta(0))
    if lookback is not None:
        back = lookback if isinstance(lookback, timedelta) else timedelta(seconds=lookback)
    if back < timedelta(0):
        raise ValueError(f"lookback must be 0 or more seconds, not {lookback!r}")
    if method == "orthanc":
        return OrthancFeed(level, filters)
    if method == "azure":
        return AzureFeed(level, filters, lookback=back)
    return SearchChanges(method, level, filters, window=_WINDOWS.get(method), lookback=back)


def check_start(start: object) -> Start:
    """Returns `start` if it is valid.

    Raises:
        TypeError, ValueError: If it is not.
    """
    if isinstance(start, (date, datetime)):
        return start
    if start == "now":
        return "now"
    if start == "all":
        return "all"
    kind = ValueError if isinstance(start, str) else TypeError
    raise kind(f"start must be 'now', 'all', a date or a datetime, not {start!r}")


def moment_of(start: date) -> datetime:
    """A day or moment as a moment in UTC; a datetime without a zone is UTC."""
    if not isinstance(start, datetime):
        start = datetime.combine(start, time.min)
    return start.replace(tzinfo=timezone.utc) if start.tzinfo is None else start.astimezone(timezone.utc)


def parse_moment(text: str) -> datetime:
    """A time in ISO 8601 as a moment in UTC; without a zone it is UTC. Digits below microseconds are ignored.

    Raises:
        ValueError: If it is not a time.
    """
    head, dot, tail = text.strip().partition(".")
    digits = len(tail) - len(tail.lstrip("0123456789"))
    fraction, zone = (tail[:digits], tail[digits:]) if dot else ("", "")
    if not dot and head.endswith(("Z", "z")):
        head, zone = head[:-1], "Z"
    joined = f"{head}{'.' + fraction[:6].ljust(6, '0') if fraction else ''}{'+00:00' if zone in ('Z', 'z') else zone}"
    return moment_of(datetime.fromisoformat(joined))


def digest_of(text: str) -> str:
    """A short text that represents a longer one: 128 bits of BLAKE2b."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return base64.urlsafe_b64encode(digest).decode("ascii").rstrip("=")


class SearchChanges(_Source):
    """Finds what is new by searching a window of time again and again.

    The window is open-ended and begins `lookback` before the last complete search. What arrives later than that is not
    found. Without a window everything is listed each time, and nothing is missed.

    Args:
        method: The name for cursors.
        level: What to watch for.
        search_filters: What it must match.
        window: ``"StudyDate"``: studies of recent days (without a date they are found at the start only);
            ``"StudyReceiveDateTime"``: studies that the archive received lately (dcm4chee's own parameter); None: no
            window.
        lookback: How far the window reaches back; a day is added for time zones.
    """

    def __init__(
        self,
        method: str,
        level: WatchLevel,
        search_filters: Mapping[str, Any],
        *,
        window: Window | None,
        lookback: timedelta,
    ) -> None:
        super().__init__(level, search_filters)
        self.method = method
        self._window = window
        self._lookback = lookback

    def query(self, since: datetime | None) -> SearchQuery:
        """The search for what lies in the window that begins at `since`; without that, for everything."""
        filters, params = dict(self._filters), {}
        if since is not None and self._window == "StudyDate":
            filters["StudyDate"] = f"{since:%Y%m%d}-"
        elif since is not None:
            params["StudyReceiveDateTime"] = f"{since:%Y%m%d%H%M%S}-"
        fields = ["StudyDate"] if self._window == "StudyDate" else []
        if self._level == "study_change":
            fields.append(_NUMBER)
        return make_query(
            self._searched, fields=fields, search_filters=filters, additional_params=params, permissive_uid=True
        )

    def _poll(self, client: DICOMClient, cursor: Cursor, max_changes: int, silent: bool) -> Changes:
        listing = _LISTINGS.take(cursor.listing, client)
        if listing is None:
            # A folder's client sees it as it was when it was opened.
            client.refresh()
            now = datetime.now(timezone.utc)
            since = self._since(cursor, now, silent)
            listing = _Listing(client, self.query(since), now, since)
        seen = {key: set(members) for key, members in cursor.seen.items()}
        known: dict[str, str] = {}
        for members in seen.values():
            known.update((digest, number) for digest, _, number in (member.partition(".") for member in members))
        references: list[Resource] = []
        failures: list[Failure] = []
        # What a first listing finds that is older than the start is only noted.
        earliest = "" if self._window or cursor.position or not cursor.start else _day_before(cursor.start)
        for row in listing.rows:
            number = ""
            try:
                reference: Resource | None = self._reference(row)
                digest = digest_of(cast(Resource, reference).uri)
                if self._level == "study_change":
                    number = _number_of(client, row, cast(Resource, reference))
            except (TypeError, ValueError) as error:
                reference, digest = None, digest_of(repr(sorted(row.items())))
                failure = failure_of(error, "Watch")
            before = known.get(digest)
            if before == number:
                continue
            if before is not None:
                for members in seen.values():
                    members.discard(_member(digest, before))
            known[digest] = number
            seen.setdefault(self._bucket(row, listing.began), set()).add(_member(digest, number))
            # Rows of instances need not have the date of their study.
            if silent or (_day_of(row) or ("" if self._searched == "study" else earliest)) < earliest:
                continue
            if reference is None:
                failures.append(failure)
            else:
                references.append(reference)
            if len(references) >= max_changes:
                break
        more = listing.goes_on()
        incomplete = None
        for problem in listing.incomplete:
            if silent:
                raise problem
            incomplete = failure_of(problem, "Watch")
            # What came is told, and what is wrong is told once.
            digest = digest_of(str(problem))
            if digest not in known:
                seen.setdefault("", set()).add(digest)
                failures.append(incomplete)
        # While rows are missing the window stays, so that a later search finds them.
        missing = more or bool(listing.incomplete)
        if not missing:
            seen = self._without_old(seen, listing.since)
        frozen = {
            key: old if (old := cursor.seen.get(key, frozenset())) == members else frozenset(members)
            for key, members in seen.items()
            if members
        }
        position = cursor.position if missing else listing.began.isoformat()
        place = _LISTINGS.keep(listing) if more else ""
        reached = Cursor(self.method, position, cursor.start, frozen, place)
        return Changes(tuple(references), reached, more=more, failures=tuple(failures), incomplete=incomplete)

    def _since(self, cursor: Cursor, now: datetime, silent: bool) -> datetime | None:
        if self._window is None:
            return None
        if cursor.position:
            # A clock that was ahead when the position was noted must not hide what arrives until then.
            return min(parse_moment(cursor.position), now) - self._lookback - _MARGIN
        if cursor.start:
            return parse_moment(cursor.start) - _MARGIN
        return now - self._lookback - _MARGIN if silent else None

    def _reference(self, row: JSONDataset) -> Resource:
        reference = Resource.of(row)
        if self._searched == "study":
            return Resource(reference.study_instance_uid)
        if reference.level != "instance":
            raise InvalidIdentifierError(f"a row of an instance search has only the {reference.level}: {reference.uri}")
        return reference

    def _bucket(self, row: JSONDataset, now: datetime) -> str:
        """The day under which a reference is remembered; empty if it is never forgotten."""
        if self._window is None:
            return ""
        if self._window == "StudyReceiveDateTime":
            return f"{now:%Y%m%d}"
        return _day_of(row)

    def _without_old(self, seen: dict[str, set[str]], since: datetime | None) -> dict[str, set[str]]:
        """Forgets what the next search cannot list, because its window begins later."""
        if since is None or self._window is None:
            return seen
        last: date = since.date()
        if self._window == "StudyReceiveDateTime":
            # By the archive's clock it was received before it was found.
            last -= _MARGIN
        oldest = f"{last:%Y%m%d}"
        return {day: members for day, members in seen.items() if not day or day >= oldest}


def _day_of(row: JSONDataset) -> str:
    """The StudyDate of a row; empty if it has none."""
    day = json_decode.first_text(row, "StudyDate")
    return day if len(day) == 8 and day.isdigit() and day.isascii() else ""


def _day_before(moment: str) -> str:
    return f"{parse_moment(moment) - _MARGIN:%Y%m%d}"


def _member(digest: str, number: str) -> str:
    """What is remembered of a row: its digest, with the number of its instances if that is watched."""
    return f"{digest}.{number}" if number else digest


def _number_of(client: DICOMClient, row: JSONDataset, study: Resource) -> str:
    """How many instances a study has: by its row or, where the archive does not say it there, by listing them."""
    number = json_decode.first_text(row, _NUMBER).strip()
    if number.isdigit():
        return number
    count = 0
    try:
        for _ in client.expected_instances(study):
            count += 1
    except SearchIncompleteError as error:
        logger.debug("%s is counted by what came: %s", study.uri, error)
    return str(count)


class _Listing:
    """A search under way: its rows, and what was wrong in the end with an incomplete one.

    Args:
        client: The archive.
        query: The search.
        began: When it began.
        since: Where its window begins, if it has one.
    """

    def __init__(self, client: DICOMClient, query: SearchQuery, began: datetime, since: datetime | None) -> None:
        self.client = client
        self.began = began
        self.since = since
        self.incomplete: list[SearchIncompleteError] = []
        self.rows: Iterator[JSONDataset] = self._read(query)

    def _read(self, query: SearchQuery) -> Iterator[JSONDataset]:
        try:
            yield from self.client.iter_search(query)
        except SearchIncompleteError as error:
            self.incomplete.append(error)

    def goes_on(self) -> bool:
        """Whether there is another row."""
        for row in self.rows:
            self.rows = chain([row], self.rows)
            return True
        return False


class _Listings:
    """The unfinished listings of this process: the next answer goes on where one ended, without listing again.

    A listing has another name after each answer. So a bundle that is repeated, with the cursor from before, lists
    again, and what was read for the attempt that failed is not lost. The latest few are kept.
    """

    def __init__(self) -> None:
        self._lock = ProcessLock()
        self.start_anew()
        start_anew_after_fork(self)

    def start_anew(self) -> None:
        """Forgets them all."""
        self._kept: OrderedDict[str, _Listing] = OrderedDict()

    def keep(self, listing: _Listing) -> str:
        """Keeps a listing and returns its name."""
        name = uuid.uuid4().hex
        with self._lock:
            self._kept[name] = listing
            while len(self._kept) > _MAX_LISTINGS:
                self._kept.popitem(last=False)
        return name

    def take(self, name: str, client: DICOMClient) -> _Listing | None:
        """Gives a listing of a client away; None if this process does not have it."""
        with self._lock:
            listing = self._kept.pop(name, None)
        return listing if listing is not None and listing.client is client else None


_LISTINGS = _Listings()


class OrthancFeed(_Source):
    """Orthanc's log of changes (``GET /changes``): each new study or instance once, in order.

    An instance that was deleted and stored again is new again.
    """

    method = "orthanc"

    def _first_cursor(self, client: DICOMClient, start: Start) -> Cursor:
        if start == "now":
            return Cursor(self.method, str(self._page(client, "last")[0]))
        return Cursor(self.method, "0", "" if isinstance(start, str) else f"{moment_of(start):%Y%m%dT%H%M%S}")

    def _poll(self, client: DICOMClient, cursor: Cursor, max_changes: int, silent: bool) -> Changes:
        if silent:
            return Changes((), cursor)
        position, done = int(cursor.position), False
        names: list[str] = []
        wanted = "NewStudy" if self._level == "study" else "NewInstance"
        while not done and len(names) < max_changes:
            last, done, changes = self._page(client, f"since={position}&limit={min(_ORTHANC_PAGE, max_changes)}")
            if last < position:
                raise DICOMError(
                    f"Orthanc's change log ends at {last}, before the cursor ({position}): the database is a different "
                    f"one now; start without a cursor"
                )
            position = last
            # Orthanc writes the times of changes in UTC.
            names += [
                str(change.get("ID"))
                for change in changes
                if change.get("ChangeType") == wanted and str(change.get("Date")) >= cursor.start
            ]
        known = uids_of_orthanc(client, names, "study" if self._level == "study" else "instance")
        found = (known[name] for name in names if name in known)
        if self._searched == "study":
            found = (Resource(reference.study_instance_uid) for reference in found)
        references = self._matching(client, dict.fromkeys(found))
        return Changes(references, Cursor(self.method, str(position), cursor.start), more=not done)

    @staticmethod
    def _page(client: DICOMClient, query: str) -> tuple[int, bool, list[Mapping[str, Any]]]:
        url = f"{orthanc_root(client)}/changes?{query}"
        page, answer = _ask(_transport(client), "GET", url, None, "log of changes of Orthanc")
        changes = page.get("Changes") if isinstance(page, Mapping) else None
        last = page.get("Last") if isinstance(page, Mapping) else None
        if not isinstance(changes, list) or not isinstance(last, int):
            raise answer.error("expected Changes and Last of Orthanc's log of changes", MalformedResponseError)
        return last, bool(page.get("Done")) or not changes, changes


def orthanc_root(client: DICOMClient) -> str:
    """The root of Orthanc's own REST interface, which lies beside its DICOMweb root."""
    return client.base_url.rpartition("/")[0]


def uids_of_orthanc(client: DICOMClient, identifiers: Iterable[str], level: WatchLevel) -> dict[str, Resource]:
    """References for Orthanc's own identifiers of studies or instances; deleted resources have none.

    It takes three requests for 500 instances (``/tools/bulk-content``, Orthanc 1.9.4 and later).

    Raises:
        requests.HTTPError: If Orthanc cannot be asked.
    """
    top = "Study" if level == "study" else "Instance"
    known = {top: _orthanc_resources(client, list(dict.fromkeys(identifiers)), top)}
    if level == "study":
        return {name: Resource(uid) for name, (uid, _) in known[top].items()}
    for child, parent in (("Instance", "Series"), ("Series", "Study")):
        above = dict.fromkeys(cast(str, up) for _, up in known[child].values())
        known[parent] = _orthanc_resources(client, list(above), parent)
    references = {}
    for name, (instance, series_name) in known["Instance"].items():
        series = known["Series"].get(str(series_name))
        study = known["Study"].get(str(series[1])) if series is not None else None
        # It may have been deleted while it was looked up.
        if series is not None and study is not None:
            references[name] = Resource(study[0], series[0], instance)
    return references


def _orthanc_resources(client: DICOMClient, names: Sequence[str], kind: str) -> dict[str, tuple[str, str | None]]:
    """The DICOM UID and the parent of each resource that exists."""
    transport, url = _transport(client), f"{orthanc_root(client)}/tools/bulk-content"
    resources: dict[str, tuple[str, str | None]] = {}
    for index in range(0, len(names), _ORTHANC_RESOURCES):
        body = json_decode.dumps({"Resources": list(names[index : index + _ORTHANC_RESOURCES]), "Metadata": False})
        items, answer = _ask(transport, "POST", url, body, "Orthanc's /tools/bulk-content")
        for item in items if isinstance(items, list) else ():
            tags = item.get("MainDicomTags") if isinstance(item, Mapping) else None
            uid = tags.get(_UIDS[kind]) if isinstance(tags, Mapping) else None
            if not isinstance(uid, str) or not isinstance(item.get("ID"), str):
                raise answer.error(f"Orthanc gave no {_UIDS[kind]} for a resource", MalformedResponseError)
            if item.get("Type", kind) == kind:
                resources[item["ID"]] = (uid, item.get(_PARENTS.get(kind, "")))
    return resources


class AzureFeed(_Source):
    """The change feed of Azure's DICOM service (``GET /v2/changefeed``): each new study or instance once, in order.

    The last `lookback` of the feed is read again each time, because rows may appear late; sequence numbers identify the
    rows. An instance that was replaced is new again, at instance level.

    Args:
        level: What to watch for. A study is reported with the first of its instances.
        search_filters: What it must match.
        lookback: How much of the feed is read again.
    """

    method = "azure"

    def __init__(
        self,
        level: WatchLevel,
        search_filters: Mapping[str, Any] | None = None,
        *,
        lookback: timedelta = timedelta(minutes=1),
    ) -> None:
        super().__init__(level, search_filters)
        self._lookback = lookback

    def _first_cursor(self, client: DICOMClient, start: Start) -> Cursor:
        begin = super()._first_cursor(client, start).start
        return Cursor(self.method, self._latest(client) if start == "now" else begin, begin)

    def _poll(self, client: DICOMClient, cursor: Cursor, max_changes: int, silent: bool) -> Changes:
        newest = parse_moment(cursor.position) if cursor.position else None
        first = parse_moment(cursor.start) if cursor.start else None
        seen = {key: set(members) for key, members in cursor.seen.items() if key != _STUDIES}
        known = set().union(*seen.values())
        studies = set(cursor.seen.get(_STUDIES, ()))
        references: dict[Resource, None] = {}
        failures: list[Failure] = []
        more = False
        for rows in self._pages(client, newest - self._lookback if newest is not None else None):
            for row in rows:
                entry = {str(key).lower(): value for key, value in row.items()}
                sequence, moment = str(entry.get("sequence")), parse_moment(str(entry.get("timestamp")))
                if sequence in known or (first is not None and moment < first):
                    continue
                known.add(sequence)
                seen.setdefault(f"{moment:%Y-%m-%dT%H:%M:%S}", set()).add(sequence)
                newest = moment if newest is None or moment > newest else newest
                if silent or not is_new_in_azure(entry):
                    continue
                try:
                    reference = reference_of_azure(entry)
                except (TypeError, ValueError) as error:
                    failures.append(failure_of(error, "Watch"))
                    continue
                if self._searched == "study":
                    reference = Resource(reference.study_instance_uid)
                if self._level == "study":
                    digest = digest_of(reference.uri)
                    if digest in studies:
                        continue
                    studies.add(digest)
                references[reference] = None
            more = len(references) >= max_changes
            if more:
                break
        oldest = f"{newest - self._lookback - timedelta(seconds=1):%Y-%m-%dT%H:%M:%S}" if newest is not None else ""
        still_seen = {key: frozenset(members) for key, members in seen.items() if key >= oldest}
        if studies:
            still_seen[_STUDIES] = frozenset(studies)
        position = newest.isoformat() if newest is not None else ""
        reached = Cursor(self.method, position, cursor.start, still_seen)
        return Changes(self._matching(client, references), reached, more=more, failures=tuple(failures))

    def _pages(self, client: DICOMClient, since: datetime | None) -> Iterator[list[Mapping[str, Any]]]:
        offset = 0
        while rows := self._page(client, since, offset):
            yield rows
            offset += len(rows)

    @staticmethod
    def _latest(client: DICOMClient) -> str:
        latest, _ = _ask(_transport(client), "GET", f"{client.base_url}/changefeed/latest", None, _AZURE)
        entry = {str(key).lower(): value for key, value in latest.items()} if isinstance(latest, Mapping) else {}
        text = entry.get("timestamp")
        return parse_moment(text).isoformat() if isinstance(text, str) else ""

    @staticmethod
    def _page(client: DICOMClient, since: Any, offset: int) -> list[Mapping[str, Any]]:
        query = f"offset={offset}&limit={_AZURE_PAGE}&includemetadata=false"
        if since is not None:
            query = f"startTime={quote(f'{since:%Y-%m-%dT%H:%M:%S.%f}Z', safe='')}&{query}"
        rows, answer = _ask(_transport(client), "GET", f"{client.base_url}/changefeed?{query}", None, _AZURE)
        if rows is None:
            return []
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            raise answer.error("expected a list of the rows of a change feed", MalformedResponseError)
        return rows


def is_new_in_azure(entry: Mapping[str, Any]) -> bool:
    """Whether a row of the feed (its keys in lower case) is about an instance that arrived and is still there."""
    return str(entry.get("action")).lower() == "create" and str(entry.get("state")).lower() != "deleted"


def reference_of_azure(entry: Mapping[str, Any]) -> Resource:
    """The instance of a row of the feed (its keys in lower case).

    Raises:
        TypeError, InvalidIdentifierError: If it does not name an instance.
    """
    study, series, instance = (cast(str, entry.get(f"{name}instanceuid")) for name in ("study", "series", "sop"))
    reference = Resource(study, series, instance)
    if reference.level != "instance":
        raise InvalidIdentifierError(f"a row of the change feed identifies only a {reference.level}: {reference.uri}")
    return reference


class FeedOrSearch(ChangeSource):
    """Asks a feed that may be missing, and otherwise searches. The cursor says what was chosen at the beginning."""

    def __init__(self, feed: ChangeSource, search: ChangeSource) -> None:
        self._feed = feed
        self._search = search
        self.method = f"{feed.method} or {search.method}"

    def poll(
        self,
        client: DICOMClient,
        cursor: Cursor | None,
        *,
        start: Start = "now",
        max_changes: int = DEFAULT_MAX_CHANGES,
    ) -> Changes:
        """See `ChangeSource.poll`."""
        if cursor is not None:
            source = self._search if cursor.method == self._search.method else self._feed
            return source.poll(client, cursor, max_changes=max_changes)
        try:
            return self._feed.poll(client, None, start=start, max_changes=max_changes)
        except DICOMwebError as error:
            if error.status not in NO_FEED:
                raise
            logger.info("%s has no change feed; searches are used (%s)", client.base_url, self._search.method)
            return self._search.poll(client, None, start=start, max_changes=max_changes)


def take_rested(
    studies: dict[str, float], changes: Changes, *, quiet: float, began: float, now: float, most: int = MAX_OPEN
) -> tuple[list[str], list[str]]:
    """Takes out of `studies` those of which nothing has arrived for a while. All times are seconds of one clock.

    Args:
        studies: Study Instance UID to the time of the last change, of those that are not at rest.
        changes: The studies that a poll found changed; they are added.
        quiet: Seconds without a change.
        began: When the poll began. What arrived during it counts as having arrived at its end.
        now: The end of the poll.
        most: Studies that may be left.

    Returns:
        Those that are at rest, and those that leave because there are too many.
    """
    for reference in changes.references:
        # In the order of the last changes.
        studies.pop(reference.study_instance_uid, None)
        studies[reference.study_instance_uid] = now
    # What the rest of a poll will report is not at rest, and what an incomplete answer lacks need not be.
    waits = changes.more or bool(changes.failures)
    rested = [] if waits else [uid for uid, moment in studies.items() if began - moment >= quiet]
    for uid in rested:
        del studies[uid]
    early = list(studies)[: max(0, len(studies) - most)]
    for uid in early:
        del studies[uid]
    return rested, early


def _transport(client: DICOMClient) -> Transport:
    if client.transport is None:
        raise TypeError(f"a feed of changes needs the client of a server, not {type(client).__name__}")
    return client.transport


def _ask(transport: Transport, method: str, url: str, body: bytes | None, what: str) -> tuple[Any, Answer]:
    headers = {"Accept": "application/json"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    try:
        answer = transport.request(method, url, headers=headers, body=body, idempotent=True)
    except DICOMwebError as error:
        if error.status in NO_FEED:
            error.detail = f"{error.detail} (if this archive has no {what}, choose another method)".strip()
        raise
    if not answer.content:
        return None, answer
    try:
        return json_decode.loads(answer.content), answer
    except ValueError as error:
        raise answer.error(f"expected the JSON of {what}", MalformedResponseError) from error


@dataclass
class Place:
    """The position of a watch.

    Attributes:
        cursor: Where the source was read to; None at the beginning.
        pending: What has to be tried again, with the number of attempts so far.
        open: Studies that are not at rest, with the time of their last change in seconds since 1970.
        written: The time of the latest rows of a table, in seconds since 1970.
    """

    cursor: Cursor | None = None
    pending: dict[Resource, int] = field(default_factory=dict)
    open: dict[str, float] = field(default_factory=dict)
    written: float = 0.0


class PlaceFile:
    """Stores the position of one watch between its runs, in a file that is written atomically.

    Args:
        path: The file.
        watched: What is watched, as a JSON object; only the same watch can continue from it.
    """

    def __init__(self, path: str, watched: Mapping[str, Any]) -> None:
        self.path = path
        self._watched = json.loads(json.dumps(watched))

    @contextmanager
    def locked(self, *, wait: bool = False) -> Iterator[None]:
        """Keeps other processes from the file. The system releases it when this process ends.

        Raises:
            BlockingIOError: If another process has it, and this one does not wait.
        """
        path = Path(self.path)
        with lock_file(path.with_name(f".{path.name}"), wait=wait):
            yield

    @property
    def exists(self) -> bool:
        """Whether a position was written, to a local path or an fsspec URL."""
        if "://" not in self.path:
            return os.path.exists(self.path)
        import fsspec

        files, path = fsspec.core.url_to_fs(self.path)
        return bool(files.exists(path))

    def read(self) -> Place:
        """The position; the beginning if there is no file.

        Raises:
            ValueError: If the file is damaged, or belongs to another watch.
        """
        if not self.exists:
            return Place()
        try:
            document = read_json(self.path)
            if not isinstance(document, Mapping) or document.get("version") != _VERSION:
                raise ValueError("it was not written by this version of this job")
            cursor = Cursor.from_json(document["cursor"]) if document["cursor"] is not None else None
            pending = {Resource.of(item["reference"]): int(item["attempts"]) for item in document["pending"]}
            studies = {str(uid): float(moment) for uid, moment in document.get("open", {}).items()}
            written = float(document.get("written", 0))
            watched = dict(document["watched"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"this is not a cursor file: {error}") from error
        if watched != self._watched:
            # Their values may name patients.
            names = dict.fromkeys(name for name in (*self._watched, *watched) if name != "source")
            other = [name for name in names if self._watched.get(name) != watched.get(name)]
            with_other = f" with other {' and '.join(other)}" if other else ""
            raise ValueError(f"this cursor belongs to a watch of {watched.get('source')}{with_other}; use another file")
        return Place(cursor, pending, studies, written)

    def write(self, place: Place) -> None:
        """Replaces the file."""
        document = {
            "version": _VERSION,
            "watched": self._watched,
            "cursor": place.cursor.to_json() if place.cursor is not None else None,
            "pending": [
                {"reference": reference.to_dict(), "attempts": attempts}
                for reference, attempts in place.pending.items()
            ],
            "open": place.open,
            "written": place.written,
        }
        write_lines(self.path, [json.dumps(document)])
