"""Change sources: what is new in an archive since it was last asked. Plain Python, for pipelines and loops alike.

A source is asked again and again with the `Cursor` that it gave last; what came between two cursors is told once::

    source = change_source(endpoint, "instance")
    cursor = None
    while True:
        changes = source.poll(client, cursor, start="now")
        ...                                   # changes.references
        cursor = changes.cursor

Archives with a feed of changes (Orthanc, Azure) are asked for it. All others are searched: what lies in a window of
dates is listed, and what was not listed before is new. Which way is taken is a fact of the server's profile.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from typing import Any, Literal, Protocol, cast, get_args
from urllib.parse import quote

from dicomweb_io.client import DICOMClient
from dicomweb_io.dicom import json_decode
from dicomweb_io.dicom.attributes import resolve
from dicomweb_io.elements import Failure, JSONDataset, Resource, SearchQuery
from dicomweb_io.endpoint import Endpoint, EndpointLike
from dicomweb_io.errors import DICOMwebError, MalformedResponseError
from dicomweb_io.failures import failure_of
from dicomweb_io.http.transport import Answer, Transport
from dicomweb_io.profiles import resolve_profile
from dicomweb_io.queries import make_query

# ----------------------------------------------------------------------------------------------------------------------
# What all change sources share: the place reached (`Cursor`), an answer (`Changes`), and where to begin (`Start`).


WatchLevel = Literal["study", "instance"]
"""What is watched for."""

Start = Literal["now", "all"] | date | datetime
"""Where to begin: with what arrives from now on, with everything that is there, or with a day or a moment."""

DEFAULT_MAX_CHANGES = 10_000
"""The most references of one answer, by default."""

_VERSION = 1


@dataclass(frozen=True, eq=False)
class Cursor:
    """The place that a change source has reached. It pickles, and it has a JSON form to be kept in a file.

    Attributes:
        method: The kind of source that made it; no other can go on from it.
        position: How far it was read: a sequence number, or a time.
        start: The time before which nothing is wanted, if any.
        seen: What was told already and may be met again, by day or time: digests of references, or sequence numbers.
    """

    method: str
    position: str = ""
    start: str = ""
    seen: Mapping[str, frozenset[str]] = field(default_factory=dict, repr=False)

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
            ValueError: If the value is no cursor, or one of another version.
        """
        if not isinstance(value, Mapping) or value.get("version") != _VERSION:
            raise ValueError("this is no cursor of a change source, or one of another version")
        method, position, start, seen = (value.get(name) for name in ("method", "position", "start", "seen"))
        if not (isinstance(method, str) and isinstance(position, str) and isinstance(start, str)):
            raise ValueError("this is no cursor of a change source: method, position and start must be texts")
        if not isinstance(seen, Mapping) or not all(isinstance(members, list) for members in seen.values()):
            raise ValueError("this is no cursor of a change source: seen must hold lists")
        return cls(method, position, start, {str(key): frozenset(map(str, members)) for key, members in seen.items()})


@dataclass(frozen=True, eq=False)
class Changes:
    """The answer of a change source.

    Attributes:
        references: What is new, in the archive's order, each once.
        cursor: Where to go on.
        more: Whether there is more already, so that there is no reason to wait.
        failures: What the archive told that names no object.
    """

    references: tuple[Resource, ...]
    cursor: Cursor
    more: bool = False
    failures: tuple[Failure, ...] = ()


class ChangeSource(Protocol):
    """Tells what is new in an archive."""

    @property
    def method(self) -> str:
        """The name of the way in which it finds out."""
        ...

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
            start: Where to begin; used without a cursor only. With ``"now"`` the first answer is empty.
            max_changes: End the answer when it holds so many references, and say that there is more.

        Raises:
            requests.HTTPError, OSError: If the archive cannot be asked. Nothing is lost: ask again with the same
                cursor.
            ValueError: If it answers nonsense, or the cursor belongs to another archive.
        """
        ...


def check_start(start: object) -> Start:
    """Returns `start` if it is one.

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
    """A time in ISO 8601 as a moment in UTC; without a zone it is UTC, and digits below microseconds are dropped.

    Raises:
        ValueError: If it is no time.
    """
    head, dot, tail = text.strip().partition(".")
    digits = len(tail) - len(tail.lstrip("0123456789"))
    fraction, zone = (tail[:digits], tail[digits:]) if dot else ("", "")
    if not dot and head.endswith(("Z", "z")):
        head, zone = head[:-1], "Z"
    joined = f"{head}{'.' + fraction[:6].ljust(6, '0') if fraction else ''}{'+00:00' if zone in ('Z', 'z') else zone}"
    return moment_of(datetime.fromisoformat(joined))


def digest_of(text: str) -> str:
    """A short text that stands for a longer one: 128 bits of BLAKE2b."""
    return base64.urlsafe_b64encode(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())[
        :22
    ].decode("ascii")


def check_method(cursor: Cursor, method: str) -> None:
    """Checks that a cursor was made by the same kind of source.

    Raises:
        ValueError: If it was not.
    """
    if cursor.method != method:
        raise ValueError(f"the cursor was made by the method {cursor.method!r}, so {method!r} cannot go on from it")


def matching(
    client: DICOMClient, level: WatchLevel, search_filters: Mapping[str, Any], references: Iterable[Resource]
) -> list[Resource]:
    """Those of the references that match search filters: one search for each study.

    Feeds of changes cannot be filtered, so that the archive is asked about what they told.
    """
    wanted = list(references)
    if not search_filters:
        return wanted
    found: set[Resource] = set()
    for study in dict.fromkeys(reference.study_instance_uid for reference in wanted):
        if level == "study":
            query = make_query(
                "study", search_filters={**search_filters, "StudyInstanceUID": study}, permissive_uid=True
            )
        else:
            query = make_query("instance", study, search_filters=search_filters, permissive_uid=True)
        for row in client.iter_search(query):
            reference = Resource.of(row)
            found.add(reference if level == "instance" else Resource(reference.study_instance_uid))
    return [reference for reference in wanted if reference in found]


# ----------------------------------------------------------------------------------------------------------------------
# Change sources by searching: what a search lists and did not list before is new.


Window = Literal["StudyDate", "StudyReceiveDateTime"]

_MARGIN = timedelta(days=1)
"""Dates and times of archives have no zone, and clocks differ."""


class SearchChanges:
    """Finds what is new by searching a window of time again and again.

    The window reaches from `lookback` before the last complete search to the end of time. What arrives later than that
    is not found; without a window everything is listed each time, and nothing is missed.

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
        self.method = method
        self._level = level
        self._filters = dict(search_filters)
        self._window = window
        self._lookback = lookback
        self.query(None)

    def query(self, since: datetime | None) -> SearchQuery:
        """The search for what belongs to a window."""
        filters, params = dict(self._filters), {}
        if since is not None and self._window == "StudyDate":
            filters["StudyDate"] = f"{since:%Y%m%d}-"
        elif since is not None:
            params["StudyReceiveDateTime"] = f"{since:%Y%m%d%H%M%S}-"
        fields = ["StudyDate"] if self._window == "StudyDate" else []
        return make_query(
            self._level, fields=fields, search_filters=filters, additional_params=params, permissive_uid=True
        )

    def poll(
        self,
        client: DICOMClient,
        cursor: Cursor | None,
        *,
        start: Start = "now",
        max_changes: int = DEFAULT_MAX_CHANGES,
    ) -> Changes:
        """Lists the window. See `dicomweb_io.changes.ChangeSource`."""
        silent = cursor is None and start == "now"
        if cursor is None:
            begin = "" if isinstance(start, str) else moment_of(start).isoformat()
            cursor = Cursor(self.method, start=begin)
        check_method(cursor, self.method)
        # A folder is seen as it was when it was opened.
        client.refresh()
        now = datetime.now(timezone.utc)
        since = self._since(cursor, now, silent)
        seen = {key: set(members) for key, members in cursor.seen.items()}
        known = set().union(*cursor.seen.values()) if cursor.seen else set()
        references: list[Resource] = []
        failures: list[Failure] = []
        more = False
        for row in client.iter_search(self.query(since)):
            if len(references) >= max_changes:
                more = True
                break
            try:
                reference: Resource | None = self._reference(row)
                digest = digest_of(cast(Resource, reference).uri)
            except (TypeError, ValueError) as error:
                reference, digest = None, digest_of(repr(sorted(row.items())))
                failure = failure_of(error, "Watch")
            if digest in known:
                continue
            known.add(digest)
            seen.setdefault(self._bucket(row, now), set()).add(digest)
            if silent:
                continue
            if reference is None:
                failures.append(failure)
            else:
                references.append(reference)
        if not more:
            seen = self._without_old(seen, since)
        frozen = {
            key: old if len(old := cursor.seen.get(key, frozenset())) == len(members) else frozenset(members)
            for key, members in seen.items()
        }
        position = cursor.position if more else now.isoformat()
        return Changes(
            tuple(references), Cursor(self.method, position, cursor.start, frozen), more=more, failures=tuple(failures)
        )

    def _since(self, cursor: Cursor, now: datetime, silent: bool) -> datetime | None:
        if self._window is None:
            return None
        if cursor.position:
            return parse_moment(cursor.position) - self._lookback - _MARGIN
        if cursor.start:
            return parse_moment(cursor.start) - _MARGIN
        return now - self._lookback - _MARGIN if silent else None

    def _reference(self, row: JSONDataset) -> Resource:
        reference = Resource.of(row)
        if self._level == "study":
            return Resource(reference.study_instance_uid)
        if reference.level != "instance":
            raise ValueError(f"a row of a search for instances names a {reference.level} only: {reference.uri}")
        return reference

    def _bucket(self, row: JSONDataset, now: datetime) -> str:
        """The day by which a reference may be forgotten."""
        if self._window is None:
            return ""
        if self._window == "StudyReceiveDateTime":
            return f"{now:%Y%m%d}"
        day = json_decode.first_text(row, "StudyDate")
        return day if len(day) == 8 and day.isdigit() and day.isascii() else ""

    def _without_old(self, seen: dict[str, set[str]], since: datetime | None) -> dict[str, set[str]]:
        """Forgets what the next search cannot list, because its window begins later."""
        if since is None or self._window is None:
            return seen
        last: date = since.date()
        if self._window == "StudyReceiveDateTime":
            # It was received before it was found, by the archive's clock.
            last -= _MARGIN
        oldest = f"{last:%Y%m%d}"
        return {day: members for day, members in seen.items() if not day or day >= oldest}


# ----------------------------------------------------------------------------------------------------------------------
# Change sources by an archive's own feed: Orthanc's ``/changes`` and the change feed of Azure's DICOM service.


NO_FEED = (400, 404, 405, 501)
"""Statuses that mean that there is no such feed."""

_ORTHANC_PAGE = 1000
_ORTHANC_RESOURCES = 500
_AZURE_PAGE = 200
_UIDS = {"Instance": "SOPInstanceUID", "Series": "SeriesInstanceUID", "Study": "StudyInstanceUID"}
_PARENTS = {"Instance": "ParentSeries", "Series": "ParentStudy"}


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
            error.detail = f"{error.detail} (no {what} here? Then choose another method to watch by)".strip()
        raise
    if not answer.content:
        return None, answer
    try:
        return json_decode.loads(answer.content), answer
    except ValueError as error:
        raise answer.error(f"expected the JSON of {what}", MalformedResponseError) from error


# Orthanc --------------------------------------------------------------------------------------------------------------


def orthanc_root(client: DICOMClient) -> str:
    """The root of Orthanc's own REST interface, which lies beside its DICOMweb root."""
    return client.base_url.rpartition("/")[0]


def uids_of_orthanc(client: DICOMClient, identifiers: Iterable[str], level: WatchLevel) -> dict[str, Resource]:
    """References for Orthanc's own identifiers of studies or instances; of what is gone there is none.

    It takes three requests for 500 instances (``/tools/bulk-content``, Orthanc 1.9.4 and later).

    Raises:
        requests.HTTPError: If Orthanc cannot be asked.
    """
    top = "Study" if level == "study" else "Instance"
    wanted = list(dict.fromkeys(identifiers))
    known = {top: _orthanc_resources(client, wanted, top)}
    if level == "study":
        return {name: Resource(uid) for name, (uid, _) in known[top].items()}
    for child, parent in (("Instance", "Series"), ("Series", "Study")):
        above = dict.fromkeys(cast(str, up) for _, up in known[child].values())
        known[parent] = _orthanc_resources(client, list(above), parent)
    references = {}
    for name, (instance, series_name) in known["Instance"].items():
        series = known["Series"].get(str(series_name))
        study = known["Study"].get(str(series[1])) if series is not None else None
        # What is deleted while it is looked up is not there any more.
        if series is not None and study is not None:
            references[name] = Resource(study[0], series[0], instance)
    return references


def _orthanc_resources(client: DICOMClient, names: Sequence[str], kind: str) -> dict[str, tuple[str, str | None]]:
    """The DICOM UID and the parent of each resource that exists."""
    transport, url = _transport(client), f"{orthanc_root(client)}/tools/bulk-content"
    found: dict[str, tuple[str, str | None]] = {}
    for index in range(0, len(names), _ORTHANC_RESOURCES):
        body = json_decode.dumps({"Resources": list(names[index : index + _ORTHANC_RESOURCES]), "Metadata": False})
        items, answer = _ask(transport, "POST", url, body, "Orthanc's /tools/bulk-content")
        for item in items if isinstance(items, list) else ():
            tags = item.get("MainDicomTags") if isinstance(item, Mapping) else None
            uid = tags.get(_UIDS[kind]) if isinstance(tags, Mapping) else None
            if not isinstance(uid, str) or not isinstance(item.get("ID"), str):
                raise answer.error(f"Orthanc told no {_UIDS[kind]} of a resource", MalformedResponseError)
            if item.get("Type", kind) == kind:
                found[item["ID"]] = (uid, item.get(_PARENTS.get(kind, "")))
    return found


class OrthancFeed:
    """Orthanc's log of changes (``GET /changes``): each new study or instance once, in order.

    An instance that was deleted and stored again is new again.

    Args:
        level: What to watch for.
        search_filters: What it must match; costs one search for each study of an answer.
    """

    method = "orthanc"

    def __init__(self, level: WatchLevel, search_filters: Mapping[str, Any] | None = None) -> None:
        self._level = level
        self._filters = dict(search_filters or {})
        make_query(level, search_filters=self._filters, permissive_uid=True)

    def poll(
        self,
        client: DICOMClient,
        cursor: Cursor | None,
        *,
        start: Start = "now",
        max_changes: int = DEFAULT_MAX_CHANGES,
    ) -> Changes:
        """Reads the log from the cursor on. See `dicomweb_io.changes.ChangeSource`."""
        if cursor is None:
            if start == "now":
                last, _, _ = self._page(client, "last")
                return Changes((), Cursor(self.method, str(last)))
            begin = "" if isinstance(start, str) else f"{moment_of(start):%Y%m%dT%H%M%S}"
            cursor = Cursor(self.method, "0", begin)
        check_method(cursor, self.method)
        position, done = int(cursor.position), False
        names: list[str] = []
        wanted = "NewStudy" if self._level == "study" else "NewInstance"
        while not done and len(names) < max_changes:
            last, done, changes = self._page(client, f"since={position}&limit={min(_ORTHANC_PAGE, max_changes)}")
            if last < position:
                raise ValueError(
                    f"Orthanc's log of changes ends at {last}, before the cursor ({position}): this is another "
                    "database than before; begin without a cursor"
                )
            position = last
            # Orthanc writes the times of changes in UTC.
            names += [
                str(change.get("ID"))
                for change in changes
                if change.get("ChangeType") == wanted and str(change.get("Date")) >= cursor.start
            ]
        found = uids_of_orthanc(client, names, self._level)
        references = dict.fromkeys(found[name] for name in names if name in found)
        kept = matching(client, self._level, self._filters, references)
        return Changes(tuple(kept), Cursor(self.method, str(position), cursor.start), more=not done)

    @staticmethod
    def _page(client: DICOMClient, query: str) -> tuple[int, bool, list[Mapping[str, Any]]]:
        url = f"{orthanc_root(client)}/changes?{query}"
        page, answer = _ask(_transport(client), "GET", url, None, "log of changes of Orthanc")
        changes = page.get("Changes") if isinstance(page, Mapping) else None
        last = page.get("Last") if isinstance(page, Mapping) else None
        if not isinstance(changes, list) or not isinstance(last, int):
            raise answer.error("expected Changes and Last of Orthanc's log of changes", MalformedResponseError)
        return last, bool(page.get("Done")) or not changes, changes


# Azure ----------------------------------------------------------------------------------------------------------------


class AzureFeed:
    """The change feed of Azure's DICOM service (``GET /v2/changefeed``): each new study or instance once, in order.

    The last `lookback` of the feed is read again each time, because rows may appear late; rows are told apart by their
    sequence number. An instance that was replaced is new again, at instance level.

    Args:
        level: What to watch for. A study is told when the first of its instances is.
        search_filters: What it must match; costs one search for each study of an answer.
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
        self._level = level
        self._filters = dict(search_filters or {})
        self._lookback = lookback
        make_query(level, search_filters=self._filters, permissive_uid=True)

    def poll(
        self,
        client: DICOMClient,
        cursor: Cursor | None,
        *,
        start: Start = "now",
        max_changes: int = DEFAULT_MAX_CHANGES,
    ) -> Changes:
        """Reads the feed from the cursor on. See `dicomweb_io.changes.ChangeSource`."""
        silent = cursor is None and start == "now"
        if cursor is None:
            begin = "" if isinstance(start, str) else moment_of(start).isoformat()
            cursor = Cursor(self.method, self._latest(client) if silent else begin, begin)
        check_method(cursor, self.method)
        since = parse_moment(cursor.position) - self._lookback if cursor.position else None
        floor = parse_moment(cursor.start) if cursor.start else None
        newest = parse_moment(cursor.position) if cursor.position else None
        rows_seen = {key: set(members) for key, members in cursor.seen.items() if key != _STUDIES}
        known = set().union(*rows_seen.values()) if rows_seen else set()
        studies = set(cursor.seen.get(_STUDIES, ()))
        references: dict[Resource, None] = {}
        failures: list[Failure] = []
        offset, more = 0, False
        while not more:
            rows = self._page(client, since, offset)
            if not rows:
                break
            offset += len(rows)
            for row in rows:
                entry = {str(key).lower(): value for key, value in row.items()}
                sequence, moment = str(entry.get("sequence")), parse_moment(str(entry.get("timestamp")))
                if sequence in known or (floor is not None and moment < floor):
                    continue
                known.add(sequence)
                rows_seen.setdefault(f"{moment:%Y-%m-%dT%H:%M:%S}", set()).add(sequence)
                newest = moment if newest is None or moment > newest else newest
                if silent or not is_new_in_azure(entry):
                    continue
                try:
                    reference = reference_of_azure(entry)
                except (TypeError, ValueError) as error:
                    failures.append(failure_of(error, "Watch"))
                    continue
                if self._level == "study":
                    reference = Resource(reference.study_instance_uid)
                    digest = digest_of(reference.uri)
                    if digest in studies:
                        continue
                    studies.add(digest)
                references[reference] = None
            more = len(references) >= max_changes
        kept = matching(client, self._level, self._filters, references)
        oldest = f"{newest - self._lookback - timedelta(seconds=1):%Y-%m-%dT%H:%M:%S}" if newest is not None else ""
        seen = {key: frozenset(members) for key, members in rows_seen.items() if key >= oldest}
        if studies:
            seen[_STUDIES] = frozenset(studies)
        position = newest.isoformat() if newest is not None else ""
        reached = Cursor(self.method, position, cursor.start, seen)
        return Changes(tuple(kept), reached, more=more, failures=tuple(failures))

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


_AZURE = "change feed of Azure's DICOM service"
_STUDIES = "studies"


def is_new_in_azure(entry: Mapping[str, Any]) -> bool:
    """Whether a row of the feed (its keys in lower case) tells of an instance that came and is still there."""
    return str(entry.get("action")).lower() == "create" and str(entry.get("state")).lower() != "deleted"


def reference_of_azure(entry: Mapping[str, Any]) -> Resource:
    """The instance of a row of the feed (its keys in lower case).

    Raises:
        TypeError, ValueError: If it names none.
    """
    study, series, instance = (cast(str, entry.get(f"{name}instanceuid")) for name in ("study", "series", "sop"))
    reference = Resource(study, series, instance)
    if reference.level != "instance":
        raise ValueError(f"a row of a change feed names a {reference.level} only: {reference.uri}")
    return reference


# ----------------------------------------------------------------------------------------------------------------------


logger = logging.getLogger("dicomweb_io")

__all__ = [
    "DEFAULT_MAX_CHANGES",
    "ChangeMethod",
    "ChangeSource",
    "Changes",
    "Cursor",
    "Start",
    "WatchLevel",
    "change_source",
    "check_start",
    "moment_of",
]

ChangeMethod = Literal["auto", "orthanc", "azure", "receive_time", "study_date", "list"]
"""How to find out what is new: by the archive's own feed, by the time it received studies, by recent study dates, or by
listing everything each time."""

_LOOKBACKS = {
    "azure": timedelta(minutes=1),
    "receive_time": timedelta(days=1),
    "study_date": timedelta(days=7),
}


class FeedOrSearch:
    """Asks a feed that may be missing; if it is, searches. What was chosen at the beginning is in the cursor."""

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
        """Asks what is new. See `dicomweb_io.changes.ChangeSource`."""
        if cursor is not None:
            source = self._search if cursor.method == self._search.method else self._feed
            return source.poll(client, cursor, max_changes=max_changes)
        try:
            return self._feed.poll(client, None, start=start, max_changes=max_changes)
        except DICOMwebError as error:
            if error.status not in NO_FEED:
                raise
            logger.info("%s has no feed of changes: it is searched (%s)", client.base_url, self._search.method)
            return self._search.poll(client, None, start=start, max_changes=max_changes)


def change_source(
    endpoint: EndpointLike,
    level: WatchLevel = "instance",
    *,
    search_filters: Mapping[str, Any] | None = None,
    method: ChangeMethod = "auto",
    lookback: timedelta | float | None = None,
) -> ChangeSource:
    """Chooses the change source for an archive.

    Args:
        endpoint: The archive.
        level: ``"instance"`` or ``"study"``. A study is told once, when it is first seen; more of it may still come.
        search_filters: What must match; see `dicomweb_io.queries.make_query`.
        method: ``"auto"`` takes what the server's profile says, else ``"study_date"`` for servers and ``"list"`` for
            folders (and where the filters name StudyDate). Where only the address suggests Orthanc, its log of changes
            is tried first.
        lookback: Seconds, or a timedelta: how long after its time something may still arrive. By default 7 days for
            ``"study_date"``, a day for ``"receive_time"``, a minute for ``"azure"``; the others need none.

    Raises:
        ValueError: If an argument is not valid, or does not fit the others.
    """
    where = Endpoint.of(endpoint)
    if level not in ("study", "instance"):
        raise ValueError(f"level must be 'study' or 'instance', not {level!r}")
    if method not in get_args(ChangeMethod):
        raise ValueError(f"method must be one of {', '.join(get_args(ChangeMethod))}, not {method!r}")
    filters = dict(search_filters or {})
    by_date = any(resolve(key)[0] == "00080020" for key in filters)
    if method == "auto":
        searched: ChangeMethod = "study_date" if where.is_web and not by_date else "list"
        facts = resolve_profile(where.profile, where.url).changes if where.is_web else None
        if facts == "orthanc" and where.profile == "auto":
            # Other servers have addresses like Orthanc's, and Orthanc may be shown without its own interface.
            feed = change_source(where, level, search_filters=filters, method=facts)
            return FeedOrSearch(
                feed, change_source(where, level, search_filters=filters, method=searched, lookback=lookback)
            )
        method = facts or searched
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
    if method == "receive_time":
        return SearchChanges(method, level, filters, window="StudyReceiveDateTime", lookback=back)
    if method == "study_date":
        return SearchChanges(method, level, filters, window="StudyDate", lookback=back)
    return SearchChanges(method, level, filters, window=None, lookback=back)
