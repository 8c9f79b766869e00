"""HTTP connections that can be watched: a deadline ends even a read that the server feeds drop by drop.

urllib3's timeouts bound each read, not their sum. Here every request in progress is known to one watching thread, which
shuts the request's socket down when its deadline comes; the read, the write or the TLS handshake that waits on it then
ends at once. The size of an answer's headers is bounded too, and an answer that breaks off inside its headers is an
error (http.client takes it for a complete one without body).
"""

from __future__ import annotations

import http.client
import logging
import re
import socket
import threading
import time
from typing import Any
from urllib.parse import unquote

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

MAX_HEADER_BYTES = 256 * 1024
"""The most that the status line and headers of one answer may take."""

_IDLE_SECONDS = 5.0
_local = threading.local()
_lock = threading.Condition()


class Exchange:
    """One request on the wire, as the watching thread and the error messages need to know it.

    Attributes:
        url: The absolute URL, to be sent as it is written here; empty leaves it to urllib3.
        deadline_at: When it must end, by `time.monotonic`; None for never.
        read_timeout: Seconds that one read or write may wait.
        connected: Whether a connection was made for it.
        reused: Whether it was sent over a connection that had served another request before.
        sent: Whether anything of it was sent.
        expired: Whether the deadline came while it was on the wire.
        bytes_out: What was sent, headers included.
    """

    def __init__(self, deadline_at: float | None, read_timeout: float | None) -> None:
        self.url = ""
        self.deadline_at = deadline_at
        self.read_timeout = read_timeout
        self.connected = False
        self.reused = False
        self.sent = False
        self.expired = False
        self.bytes_out = 0
        self._socket: socket.socket | None = None
        self._connection: Any = None
        self._handshake: socket.socket | None = None

    def __enter__(self) -> Exchange:
        self._outer = getattr(_local, "exchange", None)
        _local.exchange = self
        return self

    def __exit__(self, *_: object) -> None:
        _local.exchange = self._outer

    @property
    def sock(self) -> socket.socket | None:
        """The socket it goes over, while it does."""
        return self._socket

    def begin(self) -> None:
        """Lets the watching thread know of it."""
        if self.deadline_at is not None:
            _watchdog.add(self)

    def finish(self) -> None:
        """Nothing is to be ended any more."""
        _watchdog.remove(self)
        with _lock:
            self._socket = self._connection = None
        self._end_handshake()

    def _watch_handshake(self, raw: socket.socket) -> None:
        # Wrapping a socket in TLS takes its descriptor away, so the handshake is watched through a duplicate.
        duplicate = raw.dup()
        with _lock:
            self._handshake = duplicate
            late = self.expired
        if late:
            _shut_down(duplicate)

    def _end_handshake(self) -> None:
        with _lock:
            duplicate, self._handshake = self._handshake, None
        if duplicate is not None:
            duplicate.close()

    def _watch(self, connection: Any) -> None:
        with _lock:
            connection.exchange = self
            self._connection, self._socket = connection, connection.sock
            late = self.expired
        if late:
            _shut_down(connection.sock)

    def _expire(self) -> None:
        """Ends it; the lock is held."""
        self.expired = True
        if self._handshake is not None:
            _shut_down(self._handshake)
        # A connection that went back to the pool may already serve another request.
        if self._socket is not None and self._connection.exchange is self:
            _shut_down(self._socket)


def _shut_down(sock: socket.socket) -> None:
    try:
        # The base class's method: that of SSLSocket would let a concurrent read fall back to plain text.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        return  # it is closed already, which is what was wanted


class _Watchdog:
    """One thread for all requests in progress in this process; it ends when there are none for a while."""

    def __init__(self) -> None:
        self._watched: set[Exchange] = set()
        self._thread: threading.Thread | None = None
        self._wake_at = 0.0

    def add(self, exchange: Exchange) -> None:
        with _lock:
            self._watched.add(exchange)
            # After a fork the thread object is there but the thread is not.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="dicomweb_io-deadlines", daemon=True)
                self._thread.start()
            elif exchange.deadline_at is not None and exchange.deadline_at < self._wake_at:
                _lock.notify()

    def remove(self, exchange: Exchange) -> None:
        with _lock:
            self._watched.discard(exchange)

    def _run(self) -> None:
        with _lock:
            while True:
                now = time.monotonic()
                wake_at = now + _IDLE_SECONDS
                for exchange in list(self._watched):
                    if exchange.deadline_at is not None and exchange.deadline_at <= now:
                        self._watched.discard(exchange)
                        exchange._expire()
                    elif exchange.deadline_at is not None:
                        wake_at = min(wake_at, exchange.deadline_at)
                self._wake_at = wake_at
                idle = not self._watched
                _lock.wait(max(0.0, wake_at - time.monotonic()))
                if idle and not self._watched and time.monotonic() >= wake_at:
                    self._thread = None
                    return


_watchdog = _Watchdog()


class HeadersTooLargeError(http.client.HTTPException):
    """The headers of an answer do not end."""


class _HeaderReader:
    """Stands in for a response's file while its headers are read: counts bytes and remembers the last line."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.last = b""
        self._left = MAX_HEADER_BYTES

    def readline(self, limit: int = -1) -> bytes:
        line: bytes = self.file.readline(limit)
        self.last = line
        self._left -= len(line)
        if self._left < 0:
            raise HeadersTooLargeError(f"more than {MAX_HEADER_BYTES} bytes of headers")
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


class BoundedResponse(http.client.HTTPResponse):
    """A response whose headers are bounded and complete. Interim answers before it are skipped (RFC 9110 15.2).

    http.client skips 100 only, and takes 102 and 103 for answers without a body: the real answer would then be read as
    that to the next request on the connection.
    """

    def _read_status(self) -> tuple[str, int, str]:
        file: Any = self.fp
        while True:
            found: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
            if not 100 < found[1] < 200 or found[1] == http.HTTPStatus.SWITCHING_PROTOCOLS:
                return found
            http.client.parse_headers(file)

    def begin(self) -> None:
        """Reads the status line and the headers."""
        known: Any = self.headers
        if known is not None:
            return
        file: Any = self.fp
        reader = _HeaderReader(file)
        self.fp = reader  # type: ignore[assignment]
        try:
            super().begin()
        finally:
            if self.fp is not None:
                self.fp = file
        if reader.last not in (b"\r\n", b"\n"):
            self.close()
            raise http.client.RemoteDisconnected("the connection was closed within the headers of the answer")


class _WatchedConnection:
    """What both kinds of connection add; a mixin in front of urllib3's classes."""

    response_class: Any = BoundedResponse
    exchange: Exchange | None = None
    _used = False

    def _new_conn(self) -> socket.socket:
        raw: socket.socket = super()._new_conn()  # type: ignore[misc]
        exchange: Exchange | None = getattr(_local, "exchange", None)
        if exchange is not None:
            exchange.connected = True
            exchange._watch_handshake(raw)
        return raw

    def connect(self) -> None:
        self._used = False
        exchange: Exchange | None = getattr(_local, "exchange", None)
        try:
            super().connect()  # type: ignore[misc]
        finally:
            if exchange is not None:
                exchange._end_handshake()

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        exchange: Exchange | None = getattr(_local, "exchange", None)
        if exchange is not None:
            connection: Any = self
            if connection.sock is None:
                connection.connect()
            exchange.reused = self._used
            exchange._watch(connection)
            # urllib3 would bound each write by the connect timeout, which a busy archive does not keep.
            connection.timeout = exchange.read_timeout
            url = _as_written(url, exchange.url)
        self._used = True
        super().request(method, url, *args, **kwargs)  # type: ignore[misc]

    def send(self, data: Any) -> None:
        exchange: Exchange | None = getattr(_local, "exchange", None)
        if exchange is not None:
            exchange.sent = True
        super().send(data)  # type: ignore[misc]
        if exchange is not None:
            exchange.bytes_out += memoryview(data).nbytes


def _as_written(target: str, url: str) -> str:
    """The request target as the URL has it: urllib3 escapes some characters and changes the case of escapes."""
    written = url if "://" in target else "/" + url.partition("://")[2].partition("/")[2]
    return written if unquote(written) == unquote(target) else target


class WatchedHTTPConnection(_WatchedConnection, HTTPConnection):
    """A plain connection that can be watched."""


class WatchedHTTPSConnection(_WatchedConnection, HTTPSConnection):
    """A TLS connection that can be watched."""


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = WatchedHTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = WatchedHTTPSConnection


_POOLS = {"http": _HTTPPool, "https": _HTTPSPool}


class WatchedAdapter(HTTPAdapter):
    """The transport adapter of requests with watched connections and without retries of its own.

    Args:
        pool_size: Idle connections kept per host.
    """

    def __init__(self, pool_size: int) -> None:
        super().__init__(pool_connections=4, pool_maxsize=pool_size, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Makes the pools."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """Makes the pools for a proxy."""
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = _POOLS
        return manager

    def close(self) -> None:
        """Closes idle connections now; urllib3 would leave that to the garbage collector."""
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118 - this container cannot be iterated
                pool = manager.pools.get(key)
                if pool is not None:
                    pool.close()
        super().close()


class _QueryFilter(logging.Filter):
    """Takes queries, which may hold patients' names, out of urllib3's debug lines about our own requests."""

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(_local, "exchange", None) is not None and isinstance(record.args, tuple):
            record.args = tuple(re.sub(r"\?\S*", "?…", item) if isinstance(item, str) else item for item in record.args)
        return True


_query_filter = _QueryFilter()


def mask_queries_in_debug_log() -> None:
    """Installs the filter once; it leaves requests of other code in the process alone."""
    logging.getLogger("urllib3.connectionpool").addFilter(_query_filter)
