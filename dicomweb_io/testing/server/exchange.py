"""One request as the server's parts see it, the answers they give, and what the whole server shares."""

from __future__ import annotations

import copy
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, overload
from urllib.parse import quote, unquote, unquote_plus

from dicomweb_io.client import DICOMClient
from dicomweb_io.dicom.media_types import ContentType, parse_content_type
from dicomweb_io.elements import Resource
from dicomweb_io.testing.faults import Fault
from dicomweb_io.testing.server.behaviour import Behaviour
from dicomweb_io.testing.server.change_log import ChangeLog

# ----------------------------------------------------------------------------------------------------------------------
# What a test server remembers of each request.


@dataclass
class Record:
    """One request and what became of it.

    Attributes:
        method: The method.
        path: The path, percent-decoded.
        query: The query string as it was sent.
        headers: The request's headers by lower-case name; not in the representation, as they may hold credentials.
        status: The status that was sent; None as long as none was.
        bytes_in: Bytes of the request's body that were read.
        bytes_out: Bytes of the answer's body that were sent.
        answer_headers: The answer's headers by lower-case name.
        started: Seconds of the monotonic clock at its beginning.
        ended: The same at its end; None as long as it runs.
        complete: Whether the answer was sent to its end.
        faults: The names of the faults that struck it.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str] = field(repr=False, default_factory=dict)
    status: int | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    answer_headers: Mapping[str, str] = field(repr=False, default_factory=dict)
    started: float = field(default_factory=time.monotonic, repr=False)
    ended: float | None = field(default=None, repr=False)
    complete: bool = False
    faults: tuple[str, ...] = ()


class Records(Sequence[Record]):
    """The records of a server in order of arrival. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._records: list[Record] = []

    def add(self, record: Record) -> None:
        """Adds a record."""
        with self._lock:
            self._records.append(record)

    def finish(self, record: Record) -> None:
        """Notes that a request is over."""
        with self._lock:
            record.ended = time.monotonic()
            self._lock.notify_all()

    def settled(self, timeout: float = 10.0) -> Records:
        """Waits until no request runs any more: a client has its answer a moment before its record is complete.

        Args:
            timeout: The most seconds to wait.

        Returns:
            The records themselves.

        Raises:
            TimeoutError: If a request still runs.
        """
        with self._lock:
            if not self._lock.wait_for(lambda: all(one.ended is not None for one in self._records), timeout):
                raise TimeoutError(f"a request still runs after {timeout:g} s")
        return self

    def clear(self) -> None:
        """Forgets all."""
        with self._lock:
            self._records.clear()

    def of(self, method: str | None = None, path: str | None = None) -> list[Record]:
        """The records of a method and with a path that contains a text."""
        return [
            record
            for record in self
            if (method is None or record.method == method) and (path is None or path in record.path)
        ]

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        with self._lock:
            return self._records[index]

    def __len__(self) -> int:
        with self._lock:
            return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        with self._lock:
            return iter(list(self._records))


# ----------------------------------------------------------------------------------------------------------------------
# Accept headers as a server reads them (RFC 9110 section 12.5.1, PS3.18 section 8.7.5).


@dataclass(frozen=True)
class MediaRange:
    """One acceptable media range.

    Attributes:
        media_type: What the content may be: for ``multipart/related`` its ``type`` parameter; ``*/*`` for anything.
        transfer_syntax: The wanted transfer syntax, ``"*"``, or None.
        multipart: True if parts were asked for, False for a single body, None if either will do.
        quality: The weight, 0 to 1.
        explicit: Whether it was asked for in so many words, not by a header that is absent.
    """

    media_type: str
    transfer_syntax: str | None = None
    multipart: bool | None = None
    quality: float = 1.0
    explicit: bool = True

    def covers(self, media_type: str) -> bool:
        """Whether a media type lies in the range."""
        if self.media_type in ("*/*", media_type):
            return True
        return self.media_type.endswith("/*") and media_type.startswith(self.media_type[:-1])


def media_ranges(behaviour: Behaviour, exchange: Exchange) -> list[MediaRange]:
    """What a request accepts, as this server reads it.

    Raises:
        Refusal: If the server cannot make sense of it.
    """
    header = exchange.headers.get("accept")
    if behaviour.accepts_alternatives:
        return parse_accept(header, exchange.parameter("accept"))
    ranges = parse_as_one(header)
    if ranges is None:
        raise Refusal(behaviour.unacceptable, "A list of media types is not understood.")
    return ranges


def parse_accept(header: str | None, parameter: str | None = None) -> list[MediaRange]:
    """Reads an Accept header, or the query parameter ``accept`` that overrides it (PS3.18 section 8.3.3.1).

    Args:
        header: The header's value; None or empty accepts anything.
        parameter: The value of the query parameter, if it was given.

    Returns:
        The media ranges, best first; those with weight 0 are left out.
    """
    text = parameter or header or ""
    ranges = [_range(parse_content_type(piece)) for piece in split_list(text)]
    if not ranges:
        return [MediaRange("*/*", explicit=False)]
    return sorted((one for one in ranges if one.quality > 0), key=lambda one: -one.quality)


def parse_as_one(header: str | None) -> list[MediaRange] | None:
    """Reads an Accept header as a server does that knows nothing of lists: all of it is one media range.

    Parameters are what stands between semicolons, of repeated ones the last counts, and a comma ends a ``type`` but is
    part of a transfer syntax.

    Returns:
        One range; None if such a server cannot make sense of it.
    """
    first, *rest = (header or "*/*").split(";")
    name = first.strip().lower()
    parameters = {}
    for piece in rest:
        key, _, value = piece.partition("=")
        parameters[key.strip().lower()] = value.strip()
    inner = parameters.get("type", "*/*").partition(",")[0].strip(' "').lower()
    syntax = parameters["transfer-syntax"].strip('"') if "transfer-syntax" in parameters else None
    if "," in name or (syntax is not None and "," in syntax):
        return None
    if name == "multipart/related":
        return [MediaRange(inner, syntax, True)]
    return [MediaRange(name, syntax, None if name == "*/*" else False)]


def split_list(text: str) -> list[str]:
    """Splits a header's list at commas that are not inside quotes."""
    pieces, start, quoted, position = [], 0, False, 0
    while position < len(text):
        character = text[position]
        if quoted and character == "\\":
            position += 1
        elif character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            pieces.append(text[start:position])
            start = position + 1
        position += 1
    return [piece.strip() for piece in [*pieces, text[start:]] if piece.strip()]


def _range(content_type: ContentType) -> MediaRange:
    try:
        quality = min(1.0, max(0.0, float(content_type.parameters.get("q", "1"))))
    except ValueError:
        quality = 1.0
    name = content_type.media_type
    inner = content_type.root
    syntax = inner.parameters.get("transfer-syntax")
    if name.startswith("multipart/"):
        return MediaRange(inner.media_type or "*/*", syntax, True, quality)
    return MediaRange(name or "*/*", syntax, None if name in ("*/*", "") else False, quality)


# ----------------------------------------------------------------------------------------------------------------------


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
        behaviour: How it behaves.
        directory: For spooled parts.
        spool_above: Bytes of a part above which it goes to a file there.
        arrivals: The order of arrival.
        store_lock: Held while an instance is compared and stored.
        log: What came and went; kept for servers with a feed of changes only.
        erroneous: Keywords of attributes whose values are malformed in a stored instance.
        image_sets: Archives of instances that are hidden from searches, by their number (AWS HealthImaging).
    """

    def __init__(self, archive: DICOMClient, behaviour: Behaviour, directory: str | os.PathLike[str]) -> None:
        self.archive = archive
        self.behaviour = behaviour
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
        return "/".join(filter(None, (exchange.base_url, self.behaviour.wado_prefix, path)))

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
            now: Do not wait as the server's behaviour say.

        Raises:
            requests.HTTPError: If the archive has not got it.
        """
        study, series, instance = resource.study_instance_uid, resource.series_instance_uid, resource.sop_instance_uid
        with self.store_lock:
            if self.behaviour.delete_lag and not now:
                self._leaving.append((resource, time.monotonic() + self.behaviour.delete_lag))
                return
            if self.behaviour.feed != "none":
                self.log.begin()
            if series is None:
                self.archive.delete_study(study)
            elif instance is None:
                self.archive.delete_series(study, series)
            else:
                self.archive.delete_instance(study, series, instance)
            self.arrivals.remove(instance or series or study)
            if self.behaviour.feed != "none":
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


def error_answer(behaviour: Behaviour, refusal: Refusal, method: str, path: str) -> Answer:
    """An error as this kind of server writes it."""
    headers = dict(refusal.headers)
    reason = refusal.message if behaviour.reason_phrase else None
    if behaviour.error_style == "orthanc":
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
    if behaviour.error_style == "json":
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
