"""Change sources by an archive's own feed: Orthanc's ``/changes`` and the change feed of Azure's DICOM service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, cast
from urllib.parse import quote

from dicomweb_io.clients.change_cursor import (
    DEFAULT_MOST,
    Changes,
    Cursor,
    Start,
    WatchLevel,
    check_method,
    digest_of,
    matching,
    moment_of,
    parse_moment,
)
from dicomweb_io.clients.failures import failure_of
from dicomweb_io.clients.protocol import DICOMClient
from dicomweb_io.clients.queries import make_query
from dicomweb_io.dicom import json_model
from dicomweb_io.elements import Failure, Resource
from dicomweb_io.wire.errors import DICOMwebError, MalformedResponseError
from dicomweb_io.wire.transport import Answer, Transport

NO_FEED = (400, 404, 405, 501)
"""Statuses that mean that there is no such feed."""

_ORTHANC_PAGE = 1000
_ORTHANC_RESOURCES = 500
_AZURE_PAGE = 200
_UIDS = {"Instance": "SOPInstanceUID", "Series": "SeriesInstanceUID", "Study": "StudyInstanceUID"}
_PARENTS = {"Instance": "ParentSeries", "Series": "ParentStudy"}


def _transport(client: DICOMClient) -> Transport:
    transport = getattr(client, "transport", None)
    if not isinstance(transport, Transport):
        raise TypeError(f"a feed of changes needs the client of a server, not {type(client).__name__}")
    return transport


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
        return json_model.loads(answer.content), answer
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
        body = json_model.dumps({"Resources": list(names[index : index + _ORTHANC_RESOURCES]), "Metadata": False})
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
        self, client: DICOMClient, cursor: Cursor | None, *, start: Start = "now", most: int = DEFAULT_MOST
    ) -> Changes:
        """Reads the log from the cursor on. See `dicomweb_io.clients.change_cursor.ChangeSource`."""
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
        while not done and len(names) < most:
            last, done, changes = self._page(client, f"since={position}&limit={min(_ORTHANC_PAGE, most)}")
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
        self, client: DICOMClient, cursor: Cursor | None, *, start: Start = "now", most: int = DEFAULT_MOST
    ) -> Changes:
        """Reads the feed from the cursor on. See `dicomweb_io.clients.change_cursor.ChangeSource`."""
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
            more = len(references) >= most
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
