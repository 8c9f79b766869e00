"""One request as the rooms of the server see it, the answers they give, and the record that is kept of both."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload
from urllib.parse import unquote, unquote_plus

import requests

from dicomweb_io.dicom.media_types import ContentType, parse_content_type
from dicomweb_io.errors import DICOMwebError
from dicomweb_io.testing.faults import Fault, JSONFault, RowFault
from dicomweb_io.testing.server.behaviour import Behaviour

JSONRow = dict[str, Any]
F = TypeVar("F", bound=Fault)


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
        on_end: Called after the body was sent, or the client left.
        reason: The reason phrase of the status line; None for the usual one.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Iterable[bytes | memoryview] = b""
    close_delimited: bool = False
    on_end: Callable[[], None] | None = None
    reason: str | None = None

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The body piece by piece, whichever form it has."""
        if isinstance(self.body, bytes):
            if self.body:
                yield self.body
        else:
            yield from self.body

    def content(self) -> bytes:
        """The whole body."""
        return b"".join(self.pieces())


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

    def struck(self, kind: type[F]) -> list[F]:
        """The faults of a kind that strike this request."""
        return [one for one in self.faults if isinstance(one, kind)]

    def rows(self, rows: Iterable[JSONRow]) -> Iterable[JSONRow]:
        """Rows as the faults of the request leave them."""
        for one in self.struck(RowFault):
            rows = one.apply(rows)
        return rows

    def json(self, content: bytes) -> bytes:
        """The JSON of the answer as the faults of the request leave it."""
        for one in self.struck(JSONFault):
            content = one.apply(content)
        return content


@dataclass
class Record:
    """One request and its answer.

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
            timeout: The maximum time to wait, in seconds.

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


@dataclass(frozen=True)
class MediaRange:
    """One acceptable media range.

    Attributes:
        media_type: What the content may be: for ``multipart/related`` its ``type`` parameter; ``*/*`` for anything.
        transfer_syntax: The wanted transfer syntax, ``"*"``, or None.
        multipart: True if parts were asked for, False for a single body, None if either will do.
        quality: The weight, 0 to 1.
        explicit: Whether the request names it, instead of having no Accept header.
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
    if behaviour.error_style == "orthanc":
        answer = json_answer(
            {
                "Details": refusal.message,
                "HttpError": "Error",
                "HttpStatus": refusal.status,
                "Message": refusal.message,
                "Method": method,
                "OrthancError": refusal.message,
                "OrthancStatus": 0,
                "Uri": path,
            },
            refusal.status,
            indent=1,
        )
        del answer.headers["Content-Type"]
    elif behaviour.error_style == "json":
        answer = json_answer({"error": {"code": refusal.status, "message": refusal.message}}, refusal.status)
    else:
        answer = Answer(refusal.status, {"Content-Type": "text/plain; charset=utf-8"}, refusal.message.encode())
    answer.headers.update(refusal.headers)
    answer.reason = refusal.message if behaviour.reason_phrase else None
    return answer


def json_answer(value: Any, status: int = 200, *, indent: int | None = None) -> Answer:
    """An answer with a JSON value of the server's own, outside of DICOMweb."""
    body = json.dumps(value, indent=indent).encode()
    return Answer(status, {"Content-Type": "application/json; charset=utf-8"}, body)


def status_of(error: requests.HTTPError) -> int | None:
    """The status with which the archive refused a request."""
    if isinstance(error, DICOMwebError):
        return error.status
    return error.response.status_code if error.response is not None else None
