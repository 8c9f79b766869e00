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

import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal, get_args

from dicomweb_io.clients.change_cursor import (
    DEFAULT_MOST,
    Changes,
    ChangeSource,
    Cursor,
    Start,
    WatchLevel,
    check_start,
    moment_of,
)
from dicomweb_io.clients.change_feeds import NO_FEED, AzureFeed, OrthancFeed
from dicomweb_io.clients.change_searches import SearchChanges
from dicomweb_io.clients.endpoint import Endpoint, EndpointLike
from dicomweb_io.clients.profiles import resolve_profile
from dicomweb_io.clients.protocol import DICOMClient
from dicomweb_io.dicom.attributes import resolve
from dicomweb_io.wire.errors import DICOMwebError

logger = logging.getLogger("dicomweb_io")

__all__ = [
    "DEFAULT_MOST",
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
        self, client: DICOMClient, cursor: Cursor | None, *, start: Start = "now", most: int = DEFAULT_MOST
    ) -> Changes:
        """Asks what is new. See `dicomweb_io.clients.change_cursor.ChangeSource`."""
        if cursor is not None:
            source = self._search if cursor.method == self._search.method else self._feed
            return source.poll(client, cursor, most=most)
        try:
            return self._feed.poll(client, None, start=start, most=most)
        except DICOMwebError as error:
            if error.status not in NO_FEED:
                raise
            logger.info("%s has no feed of changes: it is searched (%s)", client.base_url, self._search.method)
            return self._search.poll(client, None, start=start, most=most)


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
        search_filters: What must match; see `dicomweb_io.clients.queries.make_query`.
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
