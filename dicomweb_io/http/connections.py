"""From a request to a socket: sessions of requests over connections that a deadline can end.

urllib3's timeouts bound each read, not their sum. Here every request in progress is known to one watching thread, which
shuts the request's socket down at its deadline; the read, the write or the TLS handshake that waits on it then ends at
once. The size of an answer's headers is bounded too, and an answer that ends inside its headers is an error
(http.client takes it for a complete one without body).

`SessionSender` sends through the user's session or one of our own: URLs as they are written, without redirects and
retries, and without the user's credentials to other origins.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from typing import Any, cast
from urllib.parse import unquote, urlencode, urlsplit, urlunsplit

import requests
from requests import cookies, hooks
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.utils import get_environ_proxies
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from dicomweb_io._version import __version__
from dicomweb_io.errors import CredentialsError
from dicomweb_io.http.retry import start_anew_after_fork
from dicomweb_io.http.settings import TLS

MAX_HEADER_BYTES = 256 * 1024
"""The maximum size of the status line and headers of one answer."""

_IDLE_SECONDS = 5.0
_LOCKS: dict[type, Callable[[], Any]] = {type(make()): make for make in (threading.Lock, threading.RLock)}
_MAY_BREAK = re.compile(r"[\r\n\0]")
# requests has no types for these.
_dispatch_hook: Any = hooks.dispatch_hook
_keep_cookies: Any = cookies.extract_cookies_to_jar

_local = threading.local()
_lock = threading.Condition()


class Exchange:
    """One request on the wire, as the watching thread and the error messages need to know it.

    Attributes:
        url: The absolute URL, to be sent as it is written here; empty leaves it to urllib3.
        own: Whether it goes to the archive's own origin, so that the user's credentials may go with it.
        deadline_at: When it must end, by `time.monotonic`; None for never.
        read_timeout: Seconds that one read or write may wait.
        connected: Whether a connection was made for it.
        reused: Whether it was sent over a connection that had served another request before.
        sent: Whether anything of it was sent.
        expired: Whether the deadline passed while it was on the wire.
        bytes_out: What was sent, headers included.
    """

    def __init__(self, deadline_at: float | None, read_timeout: float | None, *, own: bool = True) -> None:
        self.url = ""
        self.own = own
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
        """The request is over."""
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
        self.start_anew()
        start_anew_after_fork(self)

    def start_anew(self) -> None:
        """Begins without requests; those of the parent are not the child's to end."""
        global _lock
        _lock = threading.Condition()
        _local.exchange = None
        self._watched: set[Exchange] = set()
        self._thread: threading.Thread | None = None
        self._wake_at = 0.0

    def add(self, exchange: Exchange) -> None:
        with _lock:
            self._watched.add(exchange)
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

    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        exchange: Exchange | None = getattr(_local, "exchange", None)
        if exchange is not None:
            connection: Any = self
            if connection.sock is None:
                connection.connect()
            exchange.reused = self._used
            exchange._watch(connection)
            # urllib3 would bound each write by the connect timeout, which a busy archive does not keep.
            connection.timeout = exchange.read_timeout
            connection.sock.settimeout(exchange.read_timeout)
            url = _as_written(url, exchange.url)
        self._used = True
        super().putrequest(method, url, *args, **kwargs)  # type: ignore[misc]

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
    """The transport adapter of requests with watched connections and without retries.

    Args:
        pool_size: Idle connections kept per host.
    """

    def __init__(self, pool_size: int) -> None:
        self._sizes = (4, pool_size)
        super().__init__(*self._sizes, max_retries=0)
        start_anew_after_fork(self)

    def start_anew(self) -> None:
        """Leaves the connections to the parent."""
        _leave_connections(self)

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


def _leave_connections(adapter: Any) -> None:
    """In a forked child: makes an adapter of requests forget its connections, which are the parent's.

    They are not closed for the server. Locks are made anew, as other threads may have held them at the fork.
    """
    for manager in (getattr(adapter, "poolmanager", None), *getattr(adapter, "proxy_manager", {}).values()):
        if manager is None:
            continue
        for pool in tuple(manager.pools._container.values()):
            queue = pool.pool
            for connection in queue.queue if queue is not None else ():
                if connection is not None and connection.sock is not None:
                    connection.sock.close()
            if queue is not None:
                # urllib3 empties it again, under its lock, when the pool is collected.
                queue.__init__(queue.maxsize)
        manager.pools = type(manager.pools)(manager.pools._maxsize)


def _sessions_within(thing: object, depth: int = 2) -> Iterator[requests.Session]:
    """A session, and those with which it or its credentials get tokens (google.auth, for example, has one)."""
    if isinstance(thing, requests.Session):
        yield thing
    for value in tuple(getattr(thing, "__dict__", {}).values()) if depth else ():
        yield from _sessions_within(value, depth - 1)


class NoAuth(AuthBase):
    """Keeps requests from looking for credentials in a .netrc file."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Gives the request back as it is."""
        return request


class SessionSender:
    """Sends single requests: raw URLs, no redirects, no retries, answers unread.

    Args:
        session: The user's session, or None for one of our own.
        tls: See `Transport`; what is True or None in it is left to the session.
        proxies: See `Transport`.
        pool_size: Idle connections kept per host.
        callback: A response hook.
        auth: Authentication of the user's own, which may hold sessions too.
    """

    def __init__(
        self,
        session: requests.Session | None,
        *,
        tls: TLS,
        proxies: Mapping[str, str] | None,
        pool_size: int,
        callback: Callable[..., Any] | None,
        auth: object = None,
    ) -> None:
        tls.check_files()
        self._adapter = WatchedAdapter(pool_size)
        self._session = session if session is not None else requests.Session()
        if session is None:
            self._session.headers["User-Agent"] = f"dicomweb_io/{__version__}"
            self._session.headers.pop("Accept", None)
        # For other origins: no authentication, no client certificate, no cookies, no headers of the user's.
        self._foreign = requests.Session()
        self._foreign.headers["User-Agent"] = f"dicomweb_io/{__version__}"
        self._foreign.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._foreign.trust_env = self._session.trust_env
        self._foreign.proxies = dict(self._session.proxies)
        self._tls = tls
        self._proxies = dict(proxies or {})
        self._found_proxies: dict[str, dict[str, str]] = {}
        self._callback = callback
        self._auth = auth
        # requests iterates over the cookies of a session while other threads may add some.
        self._cookies = threading.Lock()
        start_anew_after_fork(self)
        kind = type(self._session)
        # A session class that sends in its own way (google.auth's, oauthlib's, caches) is asked to do so.
        self._plain = kind.send is requests.Session.send and kind.request is requests.Session.request

    def start_anew(self) -> None:
        """Leaves the connections of all sessions to the parent, those of the user's too, and makes new locks."""
        self._cookies = threading.Lock()
        for session in (self._foreign, *_sessions_within(self._session), *_sessions_within(self._auth)):
            for name, value in tuple(vars(session).items()):
                if type(value) in _LOCKS:
                    setattr(session, name, _LOCKS[type(value)]())
            session.cookies._cookies_lock = threading.RLock()  # type: ignore[attr-defined]
            for adapter in session.adapters.values():
                _leave_connections(adapter)

    def prepare(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Any,
        *,
        auth: AuthBase | None,
        timeout: tuple[float | None, float | None],
        exchange: Exchange,
    ) -> tuple[Callable[[], requests.Response], Callable[[requests.Response], requests.Response]]:
        """Prepares one request.

        Args:
            method: The HTTP method.
            url: The absolute URL, sent unchanged.
            headers: The headers.
            body: None, bytes, or an iterable of bytes (with a length, or it is sent in chunks).
            auth: Authentication; None for the session's own. Ignored for other origins.
            timeout: Seconds to connect and to read.
            exchange: The record of this request.

        Returns:
            What sends it and gives the response, with its body unread; and what that response is to be passed through.
        """
        own = exchange.own
        session = self._session if own else self._foreign
        verify = self._tls.verify if self._tls.verify is not True else self._session.verify
        cert = (self._tls.cert or session.cert) if own else None
        if own and not self._plain:
            exchange.sent = True
            more: dict[str, Any] = {} if auth is None else {"auth": auth}
            request = partial(
                session.request, method, url, data=body, headers=dict(headers), timeout=timeout, allow_redirects=False,
                stream=True, verify=None if verify is True else verify, cert=cert, proxies=self._proxies or None,
                hooks=self._hooks(session), **more,
            )  # fmt: skip
            return request, lambda response: response
        prepared = self._prepared(session, method, url, headers, body, auth, exchange)
        if verify is True and session.trust_env and (prepared.url or "").lower().startswith("https:"):
            # The environment's CA bundle counts only where the user named none (requests has it the other way round).
            verify = _bundle_of_environment() or True
        adapter: Any = session.get_adapter(prepared.url or "")
        if type(adapter) is HTTPAdapter:
            adapter = self._adapter
        else:
            exchange.sent = True
        arguments = {
            "stream": True,
            "verify": verify,
            "cert": cert,
            "proxies": {**self._environment_proxies(session, prepared.url or ""), **session.proxies, **self._proxies},
            "timeout": timeout,
        }
        start = time.perf_counter()

        def finish(response: requests.Response) -> requests.Response:
            response.elapsed = timedelta(seconds=time.perf_counter() - start)
            try:
                response = _dispatch_hook("response", prepared.hooks, response, **arguments)
                with self._cookies:
                    for earlier in response.history:
                        _keep_cookies(session.cookies, earlier.request, earlier.raw)
                    _keep_cookies(session.cookies, prepared, response.raw)
            except BaseException:
                response.close()
                raise
            return response

        return partial(adapter.send, prepared, **arguments), finish

    def _prepared(
        self,
        session: requests.Session,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Any,
        auth: AuthBase | None,
        exchange: Exchange,
    ) -> requests.PreparedRequest:
        if exchange.own and session.params:
            # The URL is not requests' to write, so what the session adds to each query is added here.
            url += ("&" if "?" in url else "?") + urlencode(cast(Any, session.params), doseq=True)
        # Authentication comes after the URL was put in place: signatures cover it.
        request = requests.Request(
            method, url, headers=dict(headers), data=body, auth=NoAuth(), hooks=self._hooks(session)
        )
        with self._cookies:
            prepared = session.prepare_request(request)
        prepared.url = with_raw_target(prepared.url or url, url)
        if exchange.own:
            chosen = auth if auth is not None else session.auth
            if chosen is not None:
                prepared.prepare_auth(chosen, prepared.url)
        exchange.url = prepared.url or ""
        check_headers(prepared)
        return prepared

    def _environment_proxies(self, session: requests.Session, url: str) -> dict[str, str]:
        if not session.trust_env:
            return {}
        # Looking through the environment takes longer than all else that is done for a request, so once must do.
        key = url.partition("://")[2].partition("/")[0] + url[:5]
        if key not in self._found_proxies:
            self._found_proxies[key] = dict(get_environ_proxies(url, no_proxy=None))
        return self._found_proxies[key]

    def _hooks(self, session: requests.Session) -> dict[str, Any] | None:
        if self._callback is None:
            return None
        # Hooks of a request replace the session's, but the user wants both.
        own: Any = session.hooks.get("response") or []
        return {"response": [*([own] if callable(own) else own), self._callback]}

    def close(self) -> None:
        """Closes idle connections of our own."""
        self._adapter.close()


def _bundle_of_environment() -> str | None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        path = os.environ.get(name)
        if path and not os.path.exists(path):
            raise ValueError(f"the environment variable {name} names a file that does not exist: {path!r}")
        if path:
            return path
    return None


def check_headers(prepared: requests.PreparedRequest) -> None:
    """Rejects headers that would break the request, without showing their values as http.client would."""
    for name, value in prepared.headers.items():
        if isinstance(value, str) and (_MAY_BREAK.search(value) or not all(ord(item) < 256 for item in value)):
            # What a user gives is checked before; this comes from a file, a command or another kind of credentials.
            raise CredentialsError(
                f"the header {name!r} cannot be sent: a line break or a character outside Latin-1",
                url=prepared.url or "",
            )


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


def with_raw_target(prepared_url: str, url: str) -> str:
    """The scheme and authority of one URL with the path and query of another, exactly as written there."""
    parts = urlsplit(prepared_url)
    end = re.search(r"[/?]|\Z", url.partition("://")[2])
    target = url.partition("://")[2][end.start() :] if end else ""
    if not target.startswith("/"):
        target = "/" + target
    return urlunsplit((parts.scheme, parts.netloc, "", "", "")) + target
