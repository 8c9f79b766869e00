"""The ASGI application: from a request to the room of the server that answers it, and back in pieces.

A `Connection` carries one request and its answer between uvicorn and the thread that handles it; `App` finds out who
answers.
"""

from __future__ import annotations

import http
import ipaddress
import re
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import anyio
import anyio.from_thread
import anyio.to_thread
import h11
import requests
from starlette.types import Message, Receive, Scope, Send

from dicomweb_io.dicom.uids import is_uid
from dicomweb_io.elements import Resource, SearchLevel
from dicomweb_io.errors import DICOMwebError
from dicomweb_io.testing.faults import AnswerFault, CodingFault, ExpireToken, FaultPlan
from dicomweb_io.testing.server import qido, stow, wado
from dicomweb_io.testing.server.auth import Authentication
from dicomweb_io.testing.server.behaviour import Behaviour
from dicomweb_io.testing.server.exchange import (
    Answer,
    Exchange,
    Record,
    Records,
    Refusal,
    error_answer,
    parse_query,
    path_segments,
    status_of,
    warning_header,
)
from dicomweb_io.testing.server.feeds import change_feed, own_interface
from dicomweb_io.testing.server.qido import Target
from dicomweb_io.testing.server.site import Site

_MIN_PIECE = 1 << 16
_MAX_REASON = 512
_UNPRINTABLE = re.compile(r"[^ -~\xa0-\xff]")
_THREADS = 256
_SEARCHES: dict[tuple[str, ...], tuple[str, SearchLevel]] = {
    ("studies",): ("studies", "study"),
    ("series",): ("series", "series"),
    ("instances",): ("instances", "instance"),
    ("studies", "*", "series"): ("studies/series", "series"),
    ("studies", "*", "instances"): ("studies/instances", "instance"),
    ("studies", "*", "series", "*", "instances"): ("studies/series/instances", "instance"),
}


class ClientGone(ConnectionError):
    """The client closed the connection while its request was handled."""


class Connection:
    """The two ways of one request, as a thread sees them."""

    tasks: Any = None

    def __init__(self, scope: Scope, receive: Receive, send: Send, records: Records) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._body_read = False
        self._gone = threading.Event()
        self.raw_path = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("latin-1").partition("?")[0]
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        self.record = Record(scope["method"], scope["path"], scope["query_string"].decode("latin-1"), headers)
        records.add(self.record)

    def exchange(self, behaviour: Behaviour, faults: tuple[Any, ...]) -> Exchange:
        """The request as the parts of the server see it."""
        headers = self.record.headers
        server = self._scope.get("server") or ("localhost", None)
        host = headers.get("host") or f"{server[0]}:{server[1]}"
        return Exchange(
            self.record.method,
            self.raw_path,
            parse_query(self.record.query),
            headers,
            f"{self._scope['scheme']}://{host}{behaviour.root}",
            self._body(),
            faults,
            behaviour.decodes_query,
            f"{self._scope['scheme']}://{host}",
        )

    async def _received(self) -> Message:
        return await self._receive()

    async def _sent(self, message: Message) -> None:
        await self._send(message)

    def _body(self) -> Iterator[bytes]:
        while not self._body_read:
            message: Message = anyio.from_thread.run(self._received)
            if message["type"] == "http.disconnect":
                raise ClientGone("the client left before the end of its request")
            chunk = message.get("body", b"")
            self._body_read = not message.get("more_body", False)
            self.record.bytes_in += len(chunk)
            if chunk:
                yield chunk

    def send_answer(self, answer: Answer) -> None:
        """Sends the answer, piece by piece if it is made so."""
        record = self.record
        try:
            self._start(answer)
            if record.method != "HEAD" and answer.status not in (204, 304):
                for piece in _joined(answer.pieces()):
                    if self._gone.is_set():
                        raise ClientGone("the client left before the end of the answer")
                    record.bytes_out += len(piece)
                    self._push({"type": "http.response.body", "body": bytes(piece), "more_body": True})
            # To the watcher the end of the answer looks as if the client had left, and a client that has counted to the
            # announced length may really have.
            whole = not self._gone.is_set() or record.answer_headers.get("content-length") == str(record.bytes_out)
            self._push({"type": "http.response.body", "body": b"", "more_body": False})
            record.complete = whole
        finally:
            close = getattr(answer.body, "close", None)
            if callable(close):
                close()
            if answer.on_end is not None:
                answer.on_end()

    def _start(self, answer: Answer) -> None:
        headers = {name.lower(): value for name, value in answer.headers.items()}
        if isinstance(answer.body, bytes) and answer.status not in (204, 304):
            headers.setdefault("content-length", str(len(answer.body)))
        elif self.record.method == "HEAD" and "content-length" not in headers:
            headers["transfer-encoding"] = "chunked"
        if answer.close_delimited:
            headers["connection"] = "close"
            headers.pop("content-length", None)
            # h11 writes an answer without length as HTTP/1.0 knew it, ended by the end of the connection.
            protocol = self._protocol()
            if protocol is not None:
                protocol.their_http_version = b"1.0"
        if answer.reason is not None:
            self._put_reason(answer.reason)
        self.record.status = answer.status
        self.record.answer_headers = headers
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self._push({"type": "http.response.start", "status": answer.status, "headers": raw})
        anyio.from_thread.run_sync(self.tasks.start_soon, self._watch)

    def _protocol(self) -> Any:
        """The state machine of the connection below uvicorn, for what ASGI has no words for."""
        return getattr(getattr(self._send, "__self__", None), "conn", None)

    def _put_reason(self, text: str) -> None:
        """Puts a text into the status line of the answer that is about to be sent."""
        protocol = self._protocol()
        if protocol is None:
            return
        send = protocol.send
        reason = _UNPRINTABLE.sub(" ", text).encode("latin-1", "replace")[:_MAX_REASON]

        def send_with_reason(event: Any) -> Any:
            if isinstance(event, h11.Response):
                protocol.send = send
                event = h11.Response(status_code=event.status_code, headers=event.headers, reason=reason)
            return send(event)

        protocol.send = send_with_reason

    async def _watch(self) -> None:
        """Notes that the client has left, while the answer is sent."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._gone.set()
                return
            self.record.bytes_in += len(message.get("body", b""))

    def _push(self, message: Message) -> None:
        anyio.from_thread.run(self._sent, message)


def _joined(pieces: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Joins small pieces, as each piece costs a change of threads."""
    waiting: list[bytes | memoryview] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _MIN_PIECE:
            yield b"".join(waiting) if len(waiting) > 1 else piece
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


class Hosts:
    """The host names that a request may have in its Host header.

    A web page can make its own host name point to this computer (DNS rebinding) and ask the server from a browser. Its
    requests carry that name. An address cannot be made to point elsewhere.

    Args:
        own: The address that the server listens on.
        allowed: Further names.
    """

    def __init__(self, own: str, allowed: Sequence[str] = ()) -> None:
        self._names = {"localhost", own.lower(), *(name.lower().rstrip(".") for name in allowed)}
        address = _address(own)
        self._local = own == "localhost" or (address is not None and address.is_loopback)

    def include(self, header: str) -> bool:
        """Whether a Host header has one of them, with or without a port."""
        match = re.fullmatch(r"\[([^\]]*)\](?::\d*)?|([^:]*)(?::\d*)?", header.strip().lower())
        name = "" if match is None else (match[1] or match[2] or "").rstrip(".")
        address = _address(name)
        return name in self._names or (address is not None and (address.is_loopback or not self._local))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


class App:
    """The test server as an ASGI application.

    Args:
        site: What the parts of the server share.
        faults: What goes wrong when.
        records: Where requests are noted.
        authentication: Who may ask.
        hosts: The names by which it may be asked for.

    Attributes:
        errors: Tracebacks of defects of the server; the client got a 500.
    """

    def __init__(
        self, site: Site, faults: FaultPlan, records: Records, authentication: Authentication, hosts: Hosts
    ) -> None:
        self._hosts = hosts
        self.site = site
        self.faults = faults
        self.records = records
        self.authentication = authentication
        self.errors: list[str] = []
        self._bucket = _Bucket(site.behaviour.rate_limit)
        self._limiter: anyio.CapacityLimiter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"only http is served, not {scope['type']}")
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(_THREADS)
        connection = Connection(scope, receive, send, self.records)
        async with anyio.create_task_group() as tasks:
            connection.tasks = tasks
            # One thread makes and sends the whole answer: an archive's iterators stay in one thread.
            await anyio.to_thread.run_sync(self._handle, connection, limiter=self._limiter)
            tasks.cancel_scope.cancel()

    def _handle(self, connection: Connection) -> None:
        record = connection.record
        struck = self.faults.strike(record.method, connection.raw_path)
        record.faults = tuple(fault.action for fault in struck)
        exchange = connection.exchange(self.site.behaviour, struck)
        try:
            try:
                self.faults.dwell(record.method, connection.raw_path)
                answer = self._answer(exchange)
            finally:
                # Before the client has the answer and can send its next request.
                self.faults.end(record.method, connection.raw_path)
            if self.site.behaviour.keep_alive_header and not answer.close_delimited:
                answer.headers.setdefault("Keep-Alive", f"timeout={self.site.behaviour.keep_alive}")
            answer = self._compressed(exchange, answer)
            for one in exchange.struck(CodingFault):
                one.apply(answer)
            connection.send_answer(answer)
        except ClientGone:
            return
        except Refusal:
            # In the middle of an answer: the rest is not available, and the connection is closed.
            raise
        except Exception:
            self.errors.append(traceback.format_exc())
            raise
        finally:
            self.records.finish(record)

    def _answer(self, exchange: Exchange) -> Answer:
        try:
            if not self._hosts.include(exchange.headers.get("host", "localhost")):
                raise Refusal(421, "This server is not asked for by that name (allow_hosts, --allow-host).")
            own = self.authentication.other(exchange)
            if own is not None:
                return own
            if not self._bucket.take():
                raise Refusal(429, "Too many requests.")
            for one in exchange.struck(ExpireToken):
                one.apply(self.authentication)
            answer = _replaced(exchange) or self.authentication.refusal(exchange) or self._route(exchange)
            if exchange.warnings and "Warning" not in answer.headers:
                answer.headers["Warning"] = warning_header(exchange.warnings)
            return answer
        except ClientGone:
            raise
        except Exception as error:
            return error_answer(self.site.behaviour, self._refusal(error), exchange.method, exchange.path)

    def _refusal(self, error: Exception) -> Refusal:
        """What the client is told of an error."""
        if isinstance(error, Refusal):
            return error
        if isinstance(error, requests.HTTPError):
            status = status_of(error) or 500
            # Clients are not told where the archive is.
            detail = error.detail if isinstance(error, DICOMwebError) else ""
            detail = detail.replace(self.site.archive.base_url, "the archive")
            return Refusal(status, detail or http.HTTPStatus(status).phrase)
        if isinstance(error, ValueError):
            return Refusal(400, str(error))
        self.errors.append("".join(traceback.format_exception(error)))
        return Refusal(500, "The server has a defect.")

    def _compressed(self, exchange: Exchange, answer: Answer) -> Answer:
        accepted = exchange.headers.get("accept-encoding", "")
        coding = next((name for name in ("gzip", "deflate") if name in accepted), None)
        if not self.site.behaviour.gzip or coding is None or answer.status != 200 or exchange.method == "HEAD":
            return answer
        headers = {name: value for name, value in answer.headers.items() if name.lower() != "content-length"}
        body = _squeezed(answer.pieces(), coding)
        return Answer(200, {**headers, "Content-Encoding": coding}, body, answer.close_delimited, answer.on_end)

    # Routing ----------------------------------------------------------------------------------------------------------

    def _route(self, exchange: Exchange) -> Answer:
        behaviour = self.site.behaviour
        self.site.let_go()
        segments = path_segments(exchange.path)
        if behaviour.feed == "orthanc":
            own = own_interface(self.site, exchange, segments)
            if own is not None:
                return own
        rest = _below(segments, behaviour.root)
        if rest is None:
            raise Refusal(404, "There is nothing here.")
        method = exchange.method
        if method == "HEAD" and not behaviour.head:
            raise Refusal(404, "HEAD is not supported here.")
        if method in ("GET", "HEAD"):
            answer = self._get(exchange, rest)
        elif method == "POST" or (method == "PUT" and behaviour.upsert):
            answer = self._post(exchange, rest)
        elif method == "DELETE":
            answer = self._delete(exchange, _below(rest, behaviour.delete_prefix))
        else:
            status = behaviour.options if method == "OPTIONS" else 405
            raise Refusal(status, f"{method} is not supported here.", {"Allow": "GET, HEAD, POST, DELETE"})
        if answer is None:
            raise Refusal(404, "There is no such resource.")
        return answer

    def _get(self, exchange: Exchange, rest: list[str]) -> Answer | None:
        if self.site.behaviour.feed == "azure":
            feed = change_feed(self.site, exchange, rest)
            if feed is not None:
                return feed
        search = _below(rest, self.site.behaviour.qido_prefix)
        if search is not None:
            found = _target(search)
            if found is not None:
                return qido.search(self.site, exchange, found)
            found = _target(search[:-1]) if search[-1:] == ["count"] else None
            if found is not None:
                return qido.count(self.site, exchange, found)
        path = _below(rest, self.site.behaviour.wado_prefix)
        if path is None:
            return None
        resource, tail = _resource(path)
        if resource is None:
            return None
        if self.site.is_leaving(resource):
            raise Refusal(404, f"There is no such {resource.level}.")
        image_set = exchange.parameter("imageSetId") if self.site.behaviour.other_again == "hidden" else None
        return self._object(self.site.of_image_set(image_set), exchange, resource, tail)

    def _object(self, site: Site, exchange: Exchange, resource: Resource, tail: list[str]) -> Answer | None:
        simple: dict[tuple[str, ...], Callable[[], Answer]] = {
            (): lambda: wado.retrieve(site, exchange, resource),
            ("metadata",): lambda: wado.metadata(site, exchange, resource),
            ("rendered",): lambda: wado.rendered(site, exchange, resource, thumbnail=False),
            ("thumbnail",): lambda: wado.rendered(site, exchange, resource, thumbnail=True),
        }
        if tuple(tail) in simple:
            return simple[tuple(tail)]()
        if tail in (["bulkdata"], ["pixeldata"]):
            return wado.all_bulkdata(site, exchange, resource, only_pixels=tail == ["pixeldata"])
        if resource.level != "instance":
            return None
        if tail[0] == site.behaviour.bulkdata_segment:
            return wado.bulkdata(site, exchange, resource, tail[1:])
        if tail[0] != "frames" or len(tail) not in (2, 3):
            return None
        if len(tail) == 2:
            return wado.frames(site, exchange, resource, tail[1])
        if tail[2] not in ("rendered", "thumbnail"):
            return None
        framed = replace(resource, frames=wado.frame_numbers(site, tail[1]))
        return wado.rendered(site, exchange, framed, thumbnail=tail[2] == "thumbnail")

    def _post(self, exchange: Exchange, rest: list[str]) -> Answer | None:
        path = _below(rest, self.site.behaviour.stow_prefix)
        if path is None or len(path) not in (1, 2) or path[0] != "studies":
            return None
        study = _checked(path[1]) if len(path) == 2 else None
        return stow.store(self.site, exchange, study, replace=exchange.method == "PUT")

    def _delete(self, exchange: Exchange, path: list[str] | None) -> Answer | None:
        resource, tail = _resource(path or [])
        if resource is None or tail:
            return None
        return stow.delete(self.site, exchange, resource)


class _Bucket:
    """The requests that may still come now: a token bucket."""

    def __init__(self, limit: tuple[float, int] | None) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._tokens = float(limit[1]) if limit else 0.0
        self._at = time.monotonic()

    def take(self) -> bool:
        if self._limit is None:
            return True
        rate, burst = self._limit
        with self._lock:
            now = time.monotonic()
            self._tokens = min(float(burst), self._tokens + (now - self._at) * rate)
            self._at = now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


def _replaced(exchange: Exchange) -> Answer | None:
    """The answer that a fault puts in place of the right one; None if none does."""
    faults = exchange.struck(AnswerFault)
    if not faults:
        return None
    answer = Answer()
    faults[0].apply(exchange, answer)
    for _ in exchange.body:
        pass
    return answer


def _squeezed(pieces: Iterable[bytes | memoryview], coding: str) -> Iterator[bytes]:
    squeeze = zlib.compressobj(wbits=31 if coding == "gzip" else 15)
    for piece in pieces:
        packed = squeeze.compress(piece)
        if packed:
            yield packed
    yield squeeze.flush()


def _below(segments: list[str] | None, prefix: str) -> list[str] | None:
    """The segments below a prefix; None if they do not start with it."""
    if segments is None:
        return None
    head = [segment for segment in prefix.split("/") if segment]
    return segments[len(head) :] if segments[: len(head)] == head else None


def _target(path: list[str]) -> Target | None:
    found = _SEARCHES.get(tuple("*" if number % 2 else segment for number, segment in enumerate(path)))
    if found is None:
        return None
    study = _checked(path[1]) if len(path) > 1 else None
    series = _checked(path[3]) if len(path) > 3 else None
    return Target(found[0], found[1], study, series)


def _resource(path: list[str]) -> tuple[Resource | None, list[str]]:
    """The object that a path names, and what follows it."""
    uids: list[str] = []
    rest = list(path)
    for name in ("studies", "series", "instances"):
        if len(rest) < 2 or rest[0] != name:
            break
        uids.append(_checked(rest[1]))
        rest = rest[2:]
    if not uids:
        return None, rest
    series, instance = [*uids[1:], None, None][:2]
    return Resource(uids[0], series, instance), rest


def _checked(uid: str) -> str:
    if not is_uid(uid, permissive=True):
        raise Refusal(400, "An identifier in the address cannot be a UID.")
    return uid
