"""The ASGI application: from a request to the part of the server that answers it, and back in pieces."""

from __future__ import annotations

import http
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import anyio
import anyio.to_thread
import requests
from starlette.types import Receive, Scope, Send

from dicomweb_io.dicom.uids import is_uid
from dicomweb_io.elements import Resource, SearchLevel
from dicomweb_io.testing import bulkdata, pixels, qido, stow, wado
from dicomweb_io.testing.auth import Authentication
from dicomweb_io.testing.azure_feed import change_feed
from dicomweb_io.testing.connection import ClientGone, Connection
from dicomweb_io.testing.exchange import (
    Answer,
    Exchange,
    Refusal,
    Site,
    error_answer,
    path_segments,
    pieces_of,
    warning_header,
)
from dicomweb_io.testing.fault_answers import afterwards, instead
from dicomweb_io.testing.faults import FaultPlan
from dicomweb_io.testing.orthanc_interface import own_interface
from dicomweb_io.testing.records import Records
from dicomweb_io.testing.search_request import Target

_THREADS = 256
_SEARCHES: dict[tuple[str, ...], tuple[str, SearchLevel]] = {
    ("studies",): ("studies", "study"),
    ("series",): ("series", "series"),
    ("instances",): ("instances", "instance"),
    ("studies", "*", "series"): ("studies/series", "series"),
    ("studies", "*", "instances"): ("studies/instances", "instance"),
    ("studies", "*", "series", "*", "instances"): ("studies/series/instances", "instance"),
}


class App:
    """The test server as an ASGI application.

    Args:
        site: What the parts of the server share.
        faults: What goes wrong when.
        records: Where requests are noted.
        authentication: Who may ask.

    Attributes:
        errors: Tracebacks of what went wrong against all intention; the client got a 500.
    """

    def __init__(self, site: Site, faults: FaultPlan, records: Records, authentication: Authentication) -> None:
        self.site = site
        self.faults = faults
        self.records = records
        self.authentication = authentication
        self.errors: list[str] = []
        self._bucket = _Bucket(site.manners.rate_limit)
        self._limiter: anyio.CapacityLimiter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request, or the start and end of the server."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"only http is served, not {scope['type']}")
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(_THREADS)
        connection = Connection(scope, receive, send, self.records)
        async with anyio.create_task_group() as tasks:
            connection.tasks = tasks
            # One thread makes and sends the whole answer: archives need not bear iterators that change threads.
            await anyio.to_thread.run_sync(self._handle, connection, limiter=self._limiter)
            tasks.cancel_scope.cancel()

    def _handle(self, connection: Connection) -> None:
        record = connection.record
        struck = tuple(
            fault for fault in self.faults.strike(record.method, connection.raw_path) if fault.layer == "http"
        )
        record.faults = tuple(fault.action for fault in struck)
        exchange = connection.exchange(self.site.manners, struck)
        try:
            answer = self._answer(exchange)
            if self.site.manners.keep_alive_header and not answer.close_delimited:
                answer.headers.setdefault("Keep-Alive", f"timeout={self.site.manners.keep_alive}")
            connection.send_answer(afterwards(exchange, self._compressed(exchange, answer)))
        except ClientGone:
            return
        except Refusal:
            # In the middle of an answer: what follows cannot be had. The connection is closed.
            raise
        except Exception:
            self.errors.append(traceback.format_exc())
            raise
        finally:
            self.records.finish(record)

    def _answer(self, exchange: Exchange) -> Answer:
        try:
            own = self.authentication.other(exchange, exchange.body)
            if own is not None:
                return own
            if not self._bucket.take():
                raise Refusal(429, "Too many requests.")
            answer = instead(exchange, self.authentication) or self.authentication.refusal(exchange)
            if answer is None:
                answer = self._route(exchange)
            if exchange.warnings and "Warning" not in answer.headers:
                answer.headers["Warning"] = warning_header(exchange.warnings)
            return answer
        except Refusal as refusal:
            return error_answer(self.site.manners, refusal, exchange.method, exchange.path)
        except ClientGone:
            raise
        except requests.HTTPError as error:
            status = getattr(error, "status", None) or (
                error.response.status_code if error.response is not None else 500
            )
            # Where the archive is, is nobody's business.
            detail = str(getattr(error, "detail", "")).replace(self.site.archive.base_url, "the archive")
            failure = Refusal(status, detail or http.HTTPStatus(status).phrase)
            return error_answer(self.site.manners, failure, exchange.method, exchange.path)
        except ValueError as error:
            return error_answer(self.site.manners, Refusal(400, str(error)), exchange.method, exchange.path)
        except Exception:
            self.errors.append(traceback.format_exc())
            return error_answer(
                self.site.manners, Refusal(500, "The server has a defect."), exchange.method, exchange.path
            )

    def _compressed(self, exchange: Exchange, answer: Answer) -> Answer:
        accepted = exchange.headers.get("accept-encoding", "")
        coding = next((name for name in ("gzip", "deflate") if name in accepted), None)
        if not self.site.manners.gzip or coding is None or answer.status != 200 or exchange.method == "HEAD":
            return answer
        headers = {name: value for name, value in answer.headers.items() if name.lower() != "content-length"}
        body = _squeezed(answer.body, coding)
        return Answer(200, {**headers, "Content-Encoding": coding}, body, answer.close_delimited, answer.on_end)

    # Routing ----------------------------------------------------------------------------------------------------------

    def _route(self, exchange: Exchange) -> Answer:
        manners = self.site.manners
        self.site.let_go()
        segments = path_segments(exchange.path)
        if manners.feed == "orthanc":
            own = own_interface(self.site, exchange, segments)
            if own is not None:
                return own
        rest = _below(segments, manners.root)
        if rest is None:
            raise Refusal(404, "There is nothing here.")
        method = exchange.method
        if method == "HEAD" and not manners.head:
            raise Refusal(404, "HEAD is not supported here.")
        if method in ("GET", "HEAD"):
            answer = self._get(exchange, rest)
        elif method == "POST" or (method == "PUT" and manners.upsert):
            answer = self._post(exchange, rest)
        elif method == "DELETE":
            answer = self._delete(exchange, _below(rest, manners.delete_prefix))
        else:
            status = manners.options if method == "OPTIONS" else 405
            raise Refusal(status, f"{method} is not supported here.", {"Allow": "GET, HEAD, POST, DELETE"})
        if answer is None:
            raise Refusal(404, "There is no such resource.")
        return answer

    def _get(self, exchange: Exchange, rest: list[str]) -> Answer | None:
        if self.site.manners.feed == "azure":
            feed = change_feed(self.site, exchange, rest)
            if feed is not None:
                return feed
        search = _below(rest, self.site.manners.qido_prefix)
        if search is not None:
            found = _target(search)
            if found is not None:
                return qido.search(self.site, exchange, found)
            found = _target(search[:-1]) if search[-1:] in (["count"], ["size"]) else None
            if found is not None:
                return (qido.count if search[-1] == "count" else qido.size)(self.site, exchange, found)
        path = _below(rest, self.site.manners.wado_prefix)
        if path is None:
            return None
        resource, tail = _resource(path)
        if resource is None:
            return None
        if self.site.is_leaving(resource):
            raise Refusal(404, f"There is no such {resource.level}.")
        image_set = exchange.parameter("imageSetId") if self.site.manners.other_again == "hidden" else None
        return self._object(self.site.of_image_set(image_set), exchange, resource, tail)

    def _object(self, site: Site, exchange: Exchange, resource: Resource, tail: list[str]) -> Answer | None:
        simple: dict[tuple[str, ...], Callable[[], Answer]] = {
            (): lambda: wado.retrieve(site, exchange, resource),
            ("metadata",): lambda: wado.metadata(site, exchange, resource),
            ("rendered",): lambda: pixels.rendered(site, exchange, resource, thumbnail=False),
            ("thumbnail",): lambda: pixels.rendered(site, exchange, resource, thumbnail=True),
        }
        if tuple(tail) in simple:
            return simple[tuple(tail)]()
        if tail in (["bulkdata"], ["pixeldata"]):
            return bulkdata.all_bulkdata(site, exchange, resource, only_pixels=tail == ["pixeldata"])
        if resource.level != "instance":
            return None
        if tail[0] == site.manners.bulkdata_segment:
            return bulkdata.bulkdata(site, exchange, resource, tail[1:])
        if tail[0] != "frames" or len(tail) not in (2, 3):
            return None
        if len(tail) == 2:
            return pixels.frames(site, exchange, resource, tail[1])
        if tail[2] not in ("rendered", "thumbnail"):
            return None
        framed = Resource(
            resource.study_instance_uid,
            resource.series_instance_uid,
            resource.sop_instance_uid,
            pixels.frame_numbers(site, tail[1]),
        )
        return pixels.rendered(site, exchange, framed, thumbnail=tail[2] == "thumbnail")

    def _post(self, exchange: Exchange, rest: list[str]) -> Answer | None:
        if rest[-2:-1] == ["reject"]:
            resource, tail = _resource(rest)
            return stow.reject(self.site, resource, tail[1]) if resource is not None and len(tail) == 2 else None
        path = _below(rest, self.site.manners.stow_prefix)
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


def _squeezed(body: Any, coding: str) -> Iterator[bytes]:
    squeeze = zlib.compressobj(wbits=31 if coding == "gzip" else 15)
    for piece in pieces_of(body):
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
    shape = tuple("*" if number % 2 else segment for number, segment in enumerate(path))
    found = _SEARCHES.get(shape)
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


async def _lifespan(receive: Receive, send: Send) -> None:
    message: MutableMapping[str, Any] = await receive()
    while message["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
        message = await receive()
    await send({"type": "lifespan.shutdown.complete"})
