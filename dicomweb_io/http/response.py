"""The two forms of an answer, complete (`Answer`) and streamed (`StreamedAnswer`), and what goes wrong with one.

An answer is decompressed within bounds (`Decoder`), and `connection_failure` makes the error if none arrives.
"""

from __future__ import annotations

import http.client
import logging
import os
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar, cast

import requests
import urllib3
from requests.structures import CaseInsensitiveDict

from dicomweb_io.errors import (
    ConnectionFailedError,
    DICOMwebError,
    MalformedResponseError,
    ResponseIncompleteError,
    TimedOutError,
    safe_url,
)
from dicomweb_io.http.connections import Exchange, HeadersTooLargeError
from dicomweb_io.http.multipart import MultipartReader, joined, parse_content_type
from dicomweb_io.http.redaction import public_response, server_message, without_secrets
from dicomweb_io.http.retry import Deadline, Slot

logger = logging.getLogger("dicomweb_io")

MAX_ANSWER_BYTES = 1 << 30
"""The maximum size of a complete answer in memory where no other limit is given."""

_ERROR_BODY = 1 << 20
_DRAIN = 1 << 16
_DRAIN_SECONDS = 0.2
_ERROR_BODY_SECONDS = 10.0
_BUFFERED_READ = 1 << 18
_FREE_BYTES = 64 << 20
_MAX_RATIO = 250
_SLICE = 1 << 15

E = TypeVar("E", bound=DICOMwebError)

# The C library returns idle memory to the system above twice the largest block that was ever freed. Instances of some
# hundred kilobytes, each copied once or twice, reach that again and again, and to be given the same pages once more
# takes several times as long as to parse what is in them. A larger block that was freed once raises this to 8 MiB.
bytes(4 << 20)


@dataclass(frozen=True)
class Answer:
    """A complete answer.

    Attributes:
        status: The HTTP status.
        headers: The headers (case-insensitive); of a repeated header the values joined with commas.
        content: The body, decompressed.
        attempts: How often the request was sent.
        received: The response as it came, with the secrets of its request; `response` is the one to show.
        server_message: What the body says in words, if the status is an error; no secret of the request.
    """

    status: int
    headers: CaseInsensitiveDict[str]
    content: bytes
    attempts: int
    received: requests.Response = field(repr=False)
    server_message: str = ""

    @cached_property
    def response(self) -> requests.Response:
        """The same as in requests; its request holds neither credentials nor query."""
        return public_response(self.received, self.content)

    @property
    def url(self) -> str:
        """Where it came from in the end, without user information and query."""
        return safe_url(self.received.url or "")

    @property
    def content_type(self) -> str:
        """The media type in lower case without parameters; empty if absent."""
        return parse_content_type(self.headers.get("Content-Type") or "")[0]

    def error(self, detail: str, kind: type[E], *, retryable: bool = False) -> E:
        """An error about this answer, for the caller to raise.

        Args:
            detail: What is wrong with it.
            kind: The class of the error.
            retryable: Whether asking again may help.
        """
        return kind(
            detail,
            status=self.status,
            url=self.url,
            method=self.response.request.method or "",
            attempts=self.attempts,
            retryable=retryable,
            response=self.response,
        )

    def __repr__(self) -> str:
        return f"<Answer {self.status} {self.content_type or 'without Content-Type'}, {len(self.content)} bytes>"


class StreamedAnswer:
    """An answer whose body is read as it arrives, once; made by `Transport.stream`, which also closes it.

    Attributes:
        status: The HTTP status.
        headers: The headers (case-insensitive); of a repeated header the values joined with commas.
        attempts: How often the request was sent so far.
        bytes_in: How much of the body was received, before decompression.
    """

    def __init__(
        self,
        response: requests.Response,
        exchange: Exchange,
        deadline: Deadline,
        slot: Slot,
        *,
        attempts: int,
        on_close: Callable[[StreamedAnswer], None],
    ) -> None:
        self.status: int = response.status_code
        self.headers: CaseInsensitiveDict[str] = response.headers
        self.method = response.request.method or ""
        self.attempts = attempts
        self.bytes_in = 0
        self._response = response
        self._exchange = exchange
        self._deadline = deadline
        self._slot = slot
        self._on_close = on_close
        self._process = os.getpid()
        self._begun = False
        self._exhausted = False
        self._closed = False
        slot.rest()

    @property
    def content_type(self) -> str:
        """The media type in lower case without parameters; empty if absent."""
        return parse_content_type(self.headers.get("Content-Type") or "")[0]

    @property
    def url(self) -> str:
        """Where it comes from in the end, without user information and query."""
        return safe_url(self._response.url or "")

    def iter_chunks(self, size: int = 1 << 20) -> Iterator[bytes]:
        """The body as it arrives, decompressed.

        Args:
            size: The maximum size of a chunk in bytes.

        Yields:
            Chunks, none empty; what has arrived is not held back until `size` is reached.

        Raises:
            ResponseIncompleteError: If the body is shorter than Content-Length, chunks or compression say.
            DeadlineExceededError, TimedOutError: If it takes too long.
            MalformedResponseError: If it cannot be decompressed.
        """
        encoding = (self.headers.get("Content-Encoding") or "").strip()
        if not encoding or encoding.lower() == "identity" or self._response._content_consumed:  # type: ignore[attr-defined]
            yield from self._raw_chunks(size)
            return
        try:
            decoder = Decoder(encoding)
            for chunk in self._raw_chunks(size):
                yield from decoder.decode(chunk, size)
            yield from decoder.finish()
        except DecodingError as error:
            kind = ResponseIncompleteError if error.truncated else MalformedResponseError
            raise self.error(str(error), kind, retryable=not error.bomb) from None

    def _raw_chunks(self, size: int) -> Iterator[bytes]:
        if self._begun:
            raise RuntimeError("the body of a streamed answer can be read once only")
        self._begun = True
        if self._response._content_consumed:  # type: ignore[attr-defined]
            # A hook of the user's has read the body already.
            content = self._response.content
            self._exhausted = True
            yield from (content[start : start + size] for start in range(0, len(content), size))
            return
        raw = self._response.raw
        read = getattr(raw, "read1", None) or raw.read
        while True:
            if os.getpid() != self._process:
                # Two readers of one connection would each get pieces of the answer.
                detail = "another process asked for this answer, before it forked"
                raise self.error(detail, ResponseIncompleteError, retryable=True)
            self._slot.resume(self._deadline)
            self._deadline_check()
            try:
                data: bytes = read(size, decode_content=False)
            except (
                urllib3.exceptions.HTTPError,
                http.client.HTTPException,
                OSError,
                ValueError,
                AttributeError,
            ) as error:
                # http.client raises the last two if a socket is shut down while it reads.
                raise self._failure(error) from None
            self._slot.rest()
            if not data:
                break
            self.bytes_in += len(data)
            yield data
        # A socket that was shut down looks like the end of a body that has no length.
        self._deadline_check()
        self._exhausted = True

    def _deadline_check(self) -> None:
        if self._exchange.expired or self._deadline.expired:
            raise self._deadline.error(
                f"reading the answer ({self.bytes_in} bytes so far)",
                method=self.method,
                url=self.url,
                attempts=self.attempts,
            )

    def _failure(self, error: Exception) -> DICOMwebError:
        self._deadline_check()
        chain = causes(error)
        # From Python 3.12 on, a context manager of urllib3 forms a cycle with the traceback, which would keep this
        # answer alive until the garbage collector runs.
        for item in chain:
            item.__traceback__ = None
        if any(isinstance(item, (TimeoutError, urllib3.exceptions.TimeoutError)) for item in chain):
            return self.error(
                f"nothing arrived for {self._exchange.read_timeout:g} s after {self.bytes_in} bytes of the answer",
                TimedOutError,
                retryable=True,
            )
        return self.error(
            f"the answer ended early, after {self.bytes_in} bytes ({describe(chain)})",
            ResponseIncompleteError,
            retryable=True,
        )

    def read(self, max_bytes: int | None = None) -> bytes:
        """The whole body.

        Args:
            max_bytes: The maximum size; None for `MAX_ANSWER_BYTES`.

        Raises:
            MalformedResponseError: If it is larger.
        """
        limit = MAX_ANSWER_BYTES if max_bytes is None else max_bytes
        return joined(self._within(limit))

    def _within(self, limit: int) -> Iterator[bytes]:
        size = 0
        for chunk in self.iter_chunks(_BUFFERED_READ):
            size += len(chunk)
            if size > limit:
                raise self.error(f"the answer is larger than {limit} bytes", MalformedResponseError)
            yield chunk

    def read_beginning(self) -> bytes:
        """As much of an error's body as a message may need, without the request's secrets; never raises."""
        chunks: list[bytes] = []
        size = 0
        until = time.monotonic() + _ERROR_BODY_SECONDS
        try:
            for chunk in self.iter_chunks(_BUFFERED_READ):
                chunks.append(chunk[: _ERROR_BODY - size])
                size += len(chunk)
                if size >= _ERROR_BODY or time.monotonic() >= until:
                    break
        except DICOMwebError as error:
            # The status decides; an incomplete body of an error is not a second error.
            logger.debug("the body of the error ended early: %s", error.log_text)
        return without_secrets(b"".join(chunks), self._response.request.headers)

    def multipart(self, *, max_header_bytes: int = 65536) -> MultipartReader:
        """A reader of the body's parts.

        A `MultipartError` that leaves the ``with transport.stream(…)`` block becomes a `ResponseIncompleteError` or a
        `MalformedResponseError` that names this request.
        """
        return MultipartReader(
            self.iter_chunks(), self.headers.get("Content-Type") or "", max_header_bytes=max_header_bytes
        )

    def error(self, detail: str, kind: type[E], *, retryable: bool = False) -> E:
        """An error about this answer, for the caller to raise.

        Args:
            detail: What is wrong with it.
            kind: The class of the error.
            retryable: Whether asking again may help.
        """
        return kind(
            detail,
            status=self.status,
            url=self.url,
            method=self.method,
            attempts=self.attempts,
            retryable=retryable,
            response=self.public_response(b""),
        )

    @property
    def request_headers(self) -> Mapping[str, str]:
        """The headers of the request, credentials among them: for finding these in what the server repeats."""
        return self._response.request.headers

    def public_response(self, content: bytes) -> requests.Response:
        """The response of requests with this content and without secrets."""
        return public_response(self._response, content)

    def complete(self, max_bytes: int | None) -> Answer:
        """Reads the body and makes a complete answer of it."""
        return self.with_content(self.read(max_bytes))

    def with_content(self, content: bytes) -> Answer:
        """A complete answer with the body that was read."""
        message = ""
        if self.status >= 400:
            request = self._response.request
            message = server_message(content, request.url or "", request.headers)
        return Answer(self.status, self.headers, content, self.attempts, self._response, message)

    def close(self, *, drain: bool = False) -> None:
        """Ends it; what was not read is lost.

        Args:
            drain: Read a short rest, if it is there already, so that the connection can be used again.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if drain and not self._exhausted and os.getpid() == self._process:
                self._drain()
            if not self._exhausted:
                self._response.close()
        finally:
            self._exchange.finish()
            self._on_close(self)

    def _drain(self) -> None:
        raw = self._response.raw
        sock = self._exchange.sock
        if sock is None or not hasattr(raw, "read1") or self._response._content_consumed:  # type: ignore[attr-defined]
            return
        if self.headers.get("Content-Length") is None and self.headers.get("Transfer-Encoding") is None:
            return  # it ends with the connection
        if (getattr(raw, "length_remaining", None) or 0) > _DRAIN:
            return
        left = _DRAIN
        until = time.monotonic() + _DRAIN_SECONDS
        try:
            sock.settimeout(_DRAIN_SECONDS)
            while left > 0 and time.monotonic() < until:
                data = raw.read1(left, decode_content=False)
                if not data:
                    self._exhausted = True
                    return
                left -= len(data)
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError, AttributeError):
            return  # the connection is closed then


def causes(error: BaseException) -> list[BaseException]:
    """The error and those it wraps, from the outermost to the innermost."""
    chain: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting:
        item = waiting.pop(0)
        if not isinstance(item, BaseException) or any(item is known for known in chain):
            continue
        chain.append(item)
        waiting += [*item.args, getattr(item, "reason", None), item.__cause__]
        if not item.__suppress_context__:
            waiting.append(item.__context__)
    return chain


def describe(chain: list[BaseException]) -> str:
    """What went wrong, without the URL that the texts of requests and urllib3 hold."""
    for item in reversed(chain):
        if isinstance(item, ssl.SSLError):
            # What a server answers that speaks no TLS.
            plain = item.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")
            hint = "; the server may speak http://, not https://, at this port" if plain else ""
            return f"TLS: {item.reason or item.strerror or type(item).__name__}{hint}"
    for item in reversed(chain):
        if isinstance(item, http.client.IncompleteRead):
            return "the connection was closed early"
        if isinstance(item, http.client.RemoteDisconnected):
            return "the connection was closed"
        if isinstance(item, http.client.HTTPException):
            return type(item).__name__
        if isinstance(item, OSError) and item.strerror and not isinstance(item, requests.RequestException):
            return item.strerror
    return type(chain[-1]).__name__


def connection_failure(
    error: Exception, exchange: Exchange, *, method: str, url: str, timeout: tuple[float | None, float | None]
) -> DICOMwebError:
    """What it means that sending a request raised something before an answer's headers were complete.

    Args:
        error: What requests, urllib3 or http.client raised.
        exchange: The request on the wire.
        method: The HTTP method.
        url: The URL.
        timeout: Seconds allowed to connect and to read.

    Returns:
        A `ConnectionFailedError`, `TimedOutError` or `MalformedResponseError`.
    """
    chain = causes(error)
    where: dict[str, Any] = {"url": url, "method": method}

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(item, kinds) for item in chain)

    failure: DICOMwebError
    proxy = "the proxy: " if has(urllib3.exceptions.ProxyError, requests.exceptions.ProxyError) else ""
    verification = next((item for item in chain if isinstance(item, ssl.SSLCertVerificationError)), None)
    if verification is not None:
        reason = cast(str, getattr(verification, "verify_message", "")) or "verification failed"
        failure = ConnectionFailedError(
            f"{proxy}the TLS certificate is not trusted ({reason}); if the certificate is valid, pass its CA bundle: "
            f"verify=PATH",
            **where,
        )
    elif has(ssl.SSLError, requests.exceptions.SSLError) and not has(ConnectionError, ssl.SSLEOFError, TimeoutError):
        failure = ConnectionFailedError(f"{proxy}{describe(chain)}", **where)
    elif has(TimeoutError, urllib3.exceptions.TimeoutError, requests.Timeout) and not has(
        urllib3.exceptions.NewConnectionError  # a subclass of the timeouts, though it means any failure to connect
    ):
        if exchange.sent or has(urllib3.exceptions.ReadTimeoutError):
            text = f"no answer within {timeout[1]:g} s" if timeout[1] is not None else "no answer in time"
        else:
            text = f"no connection within {timeout[0]:g} s" if timeout[0] is not None else "no connection in time"
        failure = TimedOutError(proxy + text, retryable=True, **where)
    elif has(socket.gaierror):
        failure = ConnectionFailedError(f"{proxy}the host name cannot be resolved", retryable=True, **where)
    elif has(HeadersTooLargeError) or (
        has(http.client.HTTPException) and not has(http.client.RemoteDisconnected, http.client.IncompleteRead)
    ):
        failure = MalformedResponseError(f"{proxy}the answer is not valid HTTP ({describe(chain)})", **where)
    else:
        text = describe(chain)
        if exchange.sent:
            text = f"the connection broke before the answer ({text})"
        failure = ConnectionFailedError(f"{proxy}{text}", retryable=True, **where)
    if isinstance(failure, ConnectionFailedError):
        never = (urllib3.exceptions.NewConnectionError, requests.ConnectTimeout, urllib3.exceptions.ConnectTimeoutError)
        failure.sent = exchange.sent and not has(*never)
    return failure


class DecodingError(ValueError):
    """Compressed content is broken or suspicious.

    Attributes:
        truncated: Whether it ended early.
        bomb: Whether it grows without measure.
    """

    def __init__(self, message: str, *, truncated: bool = False, bomb: bool = False) -> None:
        super().__init__(message)
        self.truncated = truncated
        self.bomb = bomb


class Decoder:
    """Undoes gzip or deflate (RFC 9110 section 8.4.1), so many bytes at a time, and rejects decompression bombs.

    Content that grows more than 250-fold beyond 64 MiB is rejected: DICOM JSON stays far below, all-zero pixels would
    not, and those are asked for without compression. (urllib3 2.8 bounds what it decompresses at once too, but takes a
    gzip body that ends early for a complete one.)

    Args:
        encoding: The Content-Encoding header.

    Raises:
        DecodingError: If the encoding is none of ``gzip``, ``x-gzip``, ``deflate`` and ``identity``.
    """

    def __init__(self, encoding: str) -> None:
        name = encoding.strip().lower()
        if name not in ("gzip", "x-gzip", "deflate"):
            raise DecodingError(f"the answer has a Content-Encoding that was not asked for: {name[:40]!r}")
        self._gzip = name != "deflate"
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 16 if self._gzip else zlib.MAX_WBITS)
        self._started = False
        self._head = b""
        self._taken = 0
        self._given = 0

    def decode(self, data: bytes, size: int) -> Iterator[bytes]:
        """Takes the next compressed bytes, gives decoded pieces of at most `size` bytes.

        Raises:
            DecodingError: If they are broken, or grow without measure.
        """
        # What zlib leaves over is copied for each piece and each gzip member, so it must be short.
        for start in range(0, len(data), _SLICE):
            yield from self._decode(data[start : start + _SLICE], size)

    def _decode(self, data: bytes, size: int) -> Iterator[bytes]:
        self._taken += len(data)
        if not self._started:
            # Which of the two "deflate" formats it is shows in the first two bytes.
            data = self._head + data
            self._head = b""
            if len(data) < 2:
                self._head = data
                return
        while data:
            if self._inflater.eof:
                # Further gzip members continue the content; anything else behind the end is padding.
                if not self._gzip or not data.startswith(b"\x1f"):
                    return
                self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
            try:
                piece = self._inflater.decompress(data, size)
            except zlib.error as error:
                if self._gzip or self._started:
                    raise DecodingError(f"the compressed answer is broken: {error}") from None
                # "deflate" means the zlib format, but some servers send the bare algorithm.
                self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
                self._started = True
                continue
            self._started = True
            self._given += len(piece)
            if self._given > _FREE_BYTES and self._given > _MAX_RATIO * self._taken:
                raise DecodingError(
                    f"the answer grows more than {_MAX_RATIO}-fold when decompressed ({self._given >> 20} MiB so far)",
                    bomb=True,
                )
            if piece:
                yield piece
            data = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail

    def finish(self) -> Iterator[bytes]:
        """Returns the remaining bytes.

        Raises:
            DecodingError: If the compressed content has no end.
        """
        if self._head:
            raise DecodingError("the compressed answer ends early", truncated=True)
        if not self._started:
            return
        if not self._inflater.eof:
            rest = self._inflater.flush()
            if rest:
                yield rest
            if not self._inflater.eof:
                raise DecodingError("the compressed answer ends early", truncated=True)
