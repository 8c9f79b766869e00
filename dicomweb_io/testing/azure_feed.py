"""The change feed of Azure's DICOM service (documented): ``/changefeed`` and ``/changefeed/latest``."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from dicomweb_io.elements import Resource
from dicomweb_io.testing.change_log import Event
from dicomweb_io.testing.encoding import json_bytes
from dicomweb_io.testing.exchange import Answer, Exchange, Refusal, Site

_DEFAULT_LIMIT = 100
_LARGEST_LIMIT = 200


def change_feed(site: Site, exchange: Exchange, path: list[str]) -> Answer | None:
    """Answers a request to the feed; None if the path is none of its resources.

    Args:
        site: The server.
        exchange: The request.
        path: The path below the root of the service.
    """
    if path not in (["changefeed"], ["changefeed", "latest"]):
        return None
    events = site.log.events
    newest = {event.reference: event for event in events}
    with_metadata = (exchange.parameter("includemetadata") or "true").lower() == "true"
    if path[1:]:
        rows = [_row(site, event, newest, with_metadata) for event in events[-1:]]
        return _json(rows[0]) if rows else Answer(204)
    start, end = _moment(exchange, "startTime"), _moment(exchange, "endTime")
    offset = _number(exchange, "offset", 0, 0, None)
    limit = _number(exchange, "limit", _DEFAULT_LIMIT, 1, _LARGEST_LIMIT)
    wanted = [
        event for event in events if (start is None or event.moment >= start) and (end is None or event.moment < end)
    ]
    return _json([_row(site, event, newest, with_metadata) for event in wanted[offset : offset + limit]])


def _row(site: Site, event: Event, newest: dict[Resource, Event], with_metadata: bool) -> dict[str, Any]:
    last = newest[event.reference]
    state = "current" if last is event else "deleted" if last.action == "delete" else "replaced"
    if event.action == "delete":
        state = "deleted" if last is event else "replaced"
    reference = event.reference
    row: dict[str, Any] = {
        "Sequence": event.sequence,
        "StudyInstanceUid": reference.study_instance_uid,
        "SeriesInstanceUid": reference.series_instance_uid,
        "SopInstanceUid": reference.sop_instance_uid,
        "Action": event.action,
        "Timestamp": f"{event.moment:%Y-%m-%dT%H:%M:%S.%f}Z",
        "State": state,
    }
    if with_metadata and state == "current":
        row["Metadata"] = next(iter(site.archive.iter_metadata(reference)), None)
    return row


def _moment(exchange: Exchange, name: str) -> datetime | None:
    text = exchange.parameter(name)
    if not text:
        return None
    try:
        # A plus sign that was not escaped arrives as a space.
        moment = datetime.fromisoformat(text.strip().replace(" ", "+").replace("Z", "+00:00"))
    except ValueError:
        raise Refusal(400, f"{name} is not a time.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _number(exchange: Exchange, name: str, default: int, least: int, most: int | None) -> int:
    text = exchange.parameter(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or int(text) < least or (most is not None and int(text) > most):
        raise Refusal(400, f"{name} must be a number from {least} to {most if most is not None else 'any'}.")
    return int(text)


def _json(value: Any) -> Answer:
    return Answer(200, {"Content-Type": "application/json; charset=utf-8"}, json_bytes(value))
