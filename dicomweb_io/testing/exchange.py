"""One request as the server's parts see it, the answers they give, and what the whole server shares."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, unquote_plus

from dicomweb_io.clients.protocol import DICOMClient
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
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Iterable[bytes | memoryview] = b""
    close_delimited: bool = False
    on_end: Callable[[], None] | None = None


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
    """The order in which instances came to the server, for those of them that order their rows by it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._next = 0

    def add(self, *uids: str) -> None:
        """Notes that something about these objects arrived now."""
        with self._lock:
            self._next += 1
            for uid in uids:
                self._numbers[uid] = self._next

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
    """

    def __init__(self, archive: DICOMClient, manners: Manners, directory: str | os.PathLike[str]) -> None:
        self.archive = archive
        self.manners = manners
        self.directory = os.fspath(directory)
        self.spool_above = _SPOOL_ABOVE
        self.arrivals = Arrivals()
        self.store_lock = threading.Lock()


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
        return Answer(refusal.status, headers, json.dumps(content, indent=1).encode())
    if manners.error_style == "json":
        body = json.dumps({"error": {"code": refusal.status, "message": refusal.message}}).encode()
        return Answer(refusal.status, {"Content-Type": "application/json; charset=utf-8", **headers}, body)
    body = refusal.message.encode()
    return Answer(refusal.status, {"Content-Type": "text/plain; charset=utf-8", **headers}, body)


def pieces_of(body: bytes | Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The body piece by piece, whichever form it has."""
    if isinstance(body, (bytes, memoryview)):
        if body:
            yield body
    else:
        yield from body
