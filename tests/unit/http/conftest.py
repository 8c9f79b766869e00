"""A server on raw sockets: tests say byte for byte what it answers and see byte for byte what it got."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

import pytest


@dataclass
class Received:
    """One request as it arrived; `send` answers it."""

    line: str
    headers: dict[str, str]
    body: bytes
    number: int
    connection: int
    sock: socket.socket = field(repr=False)
    server: RawServer = field(repr=False)

    @property
    def method(self) -> str:
        return self.line.split(" ")[0]

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} Status"]
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        if "Transfer-Encoding" not in named and "Content-Length" not in named:
            named["Content-Length"] = str(len(body))
        lines += [f"{key}: {value}" for key, value in named.items()]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def hangup(self) -> NoReturn:
        """Closes the connection."""
        raise Hangup

    def reset(self) -> NoReturn:
        """Closes the connection with RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        raise Hangup


class Hangup(Exception):
    """Raised by a handler to close the connection."""


Handler = Callable[[Received], None]


class RawServer:
    def __init__(self, handler: Handler, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.handler = handler
        self.requests: list[Received] = []
        self.connections = 0
        self.open_connections = 0
        self.stopping = threading.Event()
        self.closed = threading.Condition()
        self._tls = tls
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port: int = self._listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{'https' if tls else 'http'}://{shown}:{self.port}"
        self._socks: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self.open_connections += 1
                number = self.connections
                self._socks.append(sock)
                thread = threading.Thread(target=self._serve, args=(sock, number), daemon=True)
                self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket, connection: int) -> None:
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
                with self._lock:
                    self._socks.append(sock)
            file = sock.makefile("rb")
            while True:
                line = file.readline().decode("latin-1").rstrip("\r\n")
                if not line:
                    return
                headers: dict[str, str] = {}
                while (text := file.readline().decode("latin-1").rstrip("\r\n")) != "":
                    name, _, value = text.partition(":")
                    headers[name.strip().lower()] = value.strip()
                if headers.get("transfer-encoding") == "chunked":
                    body = b""
                    while size := int(file.readline(), 16):
                        body += file.read(size)
                        file.readline()
                    file.readline()
                else:
                    body = file.read(int(headers.get("content-length", 0)))
                with self._lock:
                    received = Received(line, headers, body, len(self.requests) + 1, connection, sock, self)
                    self.requests.append(received)
                self.handler(received)
        except (Hangup, OSError, ValueError):
            return
        finally:
            with contextlib.suppress(OSError, UnboundLocalError):
                file.close()
            sock.close()
            with self.closed:
                self.open_connections -= 1
                self.closed.notify_all()

    def wait_until_closed(self, seconds: float = 5.0) -> bool:
        """Waits until no connection is open."""
        with self.closed:
            return self.closed.wait_for(lambda: self.open_connections == 0, seconds)

    def stop(self) -> None:
        self.stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            socks, threads = list(self._socks), list(self._threads)
        for sock in socks:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        self._accepting.join(5)
        for thread in threads:
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture
def serve() -> Iterator[Callable[..., RawServer]]:
    """Starts servers, stops them after the test."""
    servers: list[RawServer] = []

    def start(handler: Handler, **options: object) -> RawServer:
        servers.append(RawServer(handler, **options))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's proxies must not come between the tests and their servers."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
