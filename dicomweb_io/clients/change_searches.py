"""Change sources by searching: what a search lists and did not list before is new."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta, timezone
from typing import Any, Literal, cast

from dicomweb_io.clients.change_cursor import (
    DEFAULT_MOST,
    Changes,
    Cursor,
    Start,
    WatchLevel,
    check_method,
    digest_of,
    moment_of,
    parse_moment,
)
from dicomweb_io.clients.failures import failure_of
from dicomweb_io.clients.protocol import DICOMClient
from dicomweb_io.clients.queries import make_query
from dicomweb_io.dicom import json_model
from dicomweb_io.elements import Failure, JSONDataset, Resource, SearchQuery

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
        self, client: DICOMClient, cursor: Cursor | None, *, start: Start = "now", most: int = DEFAULT_MOST
    ) -> Changes:
        """Lists the window. See `dicomweb_io.clients.change_cursor.ChangeSource`."""
        silent = cursor is None and start == "now"
        if cursor is None:
            begin = "" if isinstance(start, str) else moment_of(start).isoformat()
            cursor = Cursor(self.method, start=begin)
        check_method(cursor, self.method)
        # A folder is seen as it was when it was opened.
        refresh = getattr(client, "refresh", None)
        if refresh is not None:
            refresh()
        now = datetime.now(timezone.utc)
        since = self._since(cursor, now, silent)
        seen = {key: set(members) for key, members in cursor.seen.items()}
        known = set().union(*cursor.seen.values()) if cursor.seen else set()
        references: list[Resource] = []
        failures: list[Failure] = []
        more = False
        for row in client.iter_search(self.query(since)):
            if len(references) >= most:
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
        day = json_model.first_text(row, "StudyDate")
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
