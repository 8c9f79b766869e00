"""One request as the server's parts see it, the answers they give, and what the whole server shares."""

from __future__ import annotations

import copy
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

from dicomweb_io.clients.protocol import DICOMClient
from dicomweb_io.elements import Resource
from dicomweb_io.testing.change_log import ChangeLog
from dicomweb_io.testing.faults import Fault
from dicomweb_io.testing.manners_model import Manners

Level = str

_SPOOL_ABOVE = 1 << 20


class Refusal(Exception):
    """Ends the handling of a request with a status of 400 or more."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


@dataclass
class Answer:
    """What is sent back.

    Attributes:
        status: The status.
        headers: Headers by name. Without Content-Length the body is sent in chunks.
        body: All bytes, or pieces that are made as they are sent.
        close_delimited: Whether the end of the body is the end of the connection.
        on_end: Called after the body was sent or given up.
        reason: The reason phrase of the status line; None for the usual one.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Iterable[bytes | memoryview] = b""
    close_delimited: bool = False
    on_end: Callable[[], None] | None = None
    reason: str | None = None


@dataclass
class Exchange:
    """One request.

    Attributes:
        method: The method.
        path: The path below the server's root, percent-decoded.
        query: Pairs of name and value of the query, still percent-encoded, in order.
        headers: By lower-case name; of repeated headers the values joined with commas.
        base_url: The root of the service as the client wrote it.
        body: The pieces of the body as they arrive.
        faults: Those that strike this request.
        decodes: Whether percent escapes in the query are decoded.
        origin: Scheme, host and port as the client wrote them.
        warnings: Texts for Warning 299 headers.
    """

    method: str
    path: str
    query: list[tuple[str, str]]
    headers: Mapping[str, str]
    base_url: str
    body: Iterable[bytes]
    faults: tuple[Fault, ...] = ()
    decodes: bool = True
    origin: str = ""
    warnings: list[str] = field(default_factory=list)

    def parameter(self, name: str) -> str | None:
        """The decoded value of a query parameter; of a repeated one the last."""
        found = [value for key, value in self.query if self.text(key) == name]
        return self.text(found[-1]) if found else None

    def text(self, raw: str) -> str:
        """A piece of the query as this server understands it."""
        return unquote_plus(raw) if self.decodes else raw

    def fault(self, action: str) -> Fault | None:
        """The fault of that name, if it strikes this request."""
        return next((one for one in self.faults if one.action == action), None)


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
        manners: How it behaves.
        directory: For spooled parts.
        spool_above: Bytes of a part above which it goes to a file there.
        arrivals: The order of arrival.
        store_lock: Held while an instance is compared and stored.
        log: What came and went; kept for servers with a feed of changes only.
        erroneous: Keywords of attributes whose values are malformed in a stored instance.
        image_sets: Archives of instances that are hidden from searches, by their number (AWS HealthImaging).
    """

    def __init__(self, archive: DICOMClient, manners: Manners, directory: str | os.PathLike[str]) -> None:
        self.archive = archive
        self.manners = manners
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

    def url_of(self, exchange: Exchange, resource: Resource) -> str:
        """Where a client of this server retrieves an object."""
        path = "/".join(quote(segment, safe=",") for segment in resource.uri.split("/"))
        return "/".join(filter(None, (exchange.base_url, self.manners.wado_prefix, path)))

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
            now: Do not wait as the server's manners say.

        Raises:
            requests.HTTPError: If the archive has not got it.
        """
        study, series, instance = resource.study_instance_uid, resource.series_instance_uid, resource.sop_instance_uid
        with self.store_lock:
            if self.manners.delete_lag and not now:
                self._leaving.append((resource, time.monotonic() + self.manners.delete_lag))
                return
            if self.manners.feed != "none":
                self.log.begin()
            if series is None:
                self.archive.delete_study(study)
            elif instance is None:
                self.archive.delete_series(study, series)
            else:
                self.archive.delete_instance(study, series, instance)
            self.arrivals.remove(instance or series or study)
            if self.manners.feed != "none":
                self.log.deleted(resource)


def parse_query(text: str) -> list[tuple[str, str]]:
    """Takes a query string apart and leaves its escapes as they are."""
    pairs = []
    for piece in text.split("&"):
        if piece:
            name, _, value = piece.partition("=")
            pairs.append((name, value))
    return pairs


def path_segments(path: str) -> list[str]:
    """The segments of a raw path, each decoded by itself, so that an escaped slash divides nothing."""
    return [unquote(segment) for segment in path.split("/") if segment]


def warning_header(texts: Iterable[str], host: str = "dicomweb-io-testing") -> str:
    """A Warning header with code 299 for each text (RFC 7234 section 5.5)."""
    return ", ".join(f'299 {host}: "{re.sub(chr(34), chr(39), text)}"' for text in texts)


def error_answer(manners: Manners, refusal: Refusal, method: str, path: str) -> Answer:
    """An error as this kind of server writes it."""
    headers = dict(refusal.headers)
    reason = refusal.message if manners.reason_phrase else None
    if manners.error_style == "orthanc":
        content: dict[str, Any] = {
            "Details": refusal.message,
            "HttpError": "Error",
            "HttpStatus": refusal.status,
            "Message": refusal.message,
            "Method": method,
            "OrthancError": refusal.message,
            "OrthancStatus": 0,
            "Uri": path,
        }
        return Answer(refusal.status, headers, json.dumps(content, indent=1).encode(), reason=reason)
    if manners.error_style == "json":
        body = json.dumps({"error": {"code": refusal.status, "message": refusal.message}}).encode()
        return Answer(
            refusal.status, {"Content-Type": "application/json; charset=utf-8", **headers}, body, reason=reason
        )
    body = refusal.message.encode()
    return Answer(refusal.status, {"Content-Type": "text/plain; charset=utf-8", **headers}, body, reason=reason)


def pieces_of(body: bytes | Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The body piece by piece, whichever form it has."""
    if isinstance(body, (bytes, memoryview)):
        if body:
            yield body
    else:
        yield from body
