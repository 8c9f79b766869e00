"""An HTTP server on raw sockets whose answers a test writes itself.

What a DICOMweb server does is tested with the test server of the package (the fixture `serve`). This one is for the
rest: answers that no DICOMweb server should give, other services (token endpoints, change feeds), and bytes below HTTP.
A handler returns a `Reply`, or writes its answer to the connection and returns nothing.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn


class Hangup(Exception):
    """Raised by a handler to close the connection."""


@dataclass
class Reply:
    """An answer.

    Attributes:
        status: The HTTP status.
        body: The body, or its pieces in order.
        content_type: The media type.
        headers: Further headers.
        length: Whether Content-Length is declared; else the end of the connection is the end of the body. The length
            of pieces is not known: `headers` may declare it.
        cut: Only that many bytes of the body are sent, then the connection is closed.
    """

    status: int = 200
    body: bytes | Iterable[bytes] = b""
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    length: bool = True
    cut: int | None = None

    @classmethod
    def json(cls, document: Any, status: int = 200, **options: Any) -> Reply:
        """An answer in DICOM JSON."""
        options.setdefault("content_type", "application/dicom+json")
        return cls(status, json.dumps(document).encode(), **options)

    @classmethod
    def multipart(
        cls,
        parts: Iterable[bytes | tuple[Mapping[str, str], bytes]],
        *,
        kind: str = "application/dicom",
        closed: bool = True,
        **options: Any,
    ) -> Reply:
        """An answer of several parts, each with headers of its own or with the media type `kind`."""
        body = b""
        for part in parts:
            headers, content = part if isinstance(part, tuple) else ({"Content-Type": kind}, part)
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            body += b"--BOUND\r\n" + head.encode() + b"\r\n" + content + b"\r\n"
        body += b"--BOUND--\r\n" if closed else b""
        return cls(200, body, f'multipart/related; type="{kind}"; boundary=BOUND', **options)


@dataclass
class Request:
    """One request as it arrived."""

    line: str
    headers: dict[str, str]
    body: bytes
    number: int
    connection: int
    sock: socket.socket = field(repr=False)
    server: AnsweringServer = field(repr=False)
    method: str = field(init=False)
    target: str = field(init=False)

    def __post_init__(self) -> None:
        self.method, self.target, *_ = self.line.split(" ")

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    @property
    def parameters(self) -> dict[str, str]:
        return dict(pair.partition("=")[::2] for pair in self.query.split("&") if pair)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        """Answers with a declared length, unless the headers say otherwise."""
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        self.reply(Reply(status, body, headers=named, length="Transfer-Encoding" not in named), keep=True)

    def reply(self, reply: Reply, *, keep: bool = False) -> None:
        """Sends a reply; `keep`: the connection stays open although no length is declared."""
        headers = dict(reply.headers)
        if reply.content_type is not None:
            headers["Content-Type"] = reply.content_type
        whole = isinstance(reply.body, bytes)
        pieces = iter([reply.body] if isinstance(reply.body, bytes) else reply.body)
        if reply.length and whole and reply.status != 204 and "Content-Length" not in headers:
            headers["Content-Length"] = str(len(reply.body))  # type: ignore[arg-type]
        closes = reply.cut is not None or not (reply.length or keep)
        if closes:
            headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {reply.status} Status", *(f"{name}: {value}" for name, value in headers.items())]
        head, sent = "\r\n".join([*lines, "", ""]).encode("latin-1"), 0
        for piece in pieces if reply.status != 204 else ():
            part = piece if reply.cut is None else piece[: reply.cut - sent]
            self.send(head + part)
            head, sent = b"", sent + len(part)
        if head:
            self.send(head)
        if closes:
            self.hangup()

    def hangup(self) -> NoReturn:
        """Closes the connection."""
        raise Hangup

    def reset(self) -> NoReturn:
        """Closes the connection with RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        raise Hangup


Handler = Callable[[Request], Reply | None]


def in_turn(*answers: Reply | Handler) -> Handler:
    """Gives one answer after the other, and then the last one again and again."""

    def handle(request: Request) -> Reply | None:
        answer = answers[min(request.number, len(answers)) - 1]
        return answer if isinstance(answer, Reply) else answer(request)

    return handle


class AnsweringServer:
    """A running server.

    Attributes:
        requests: What arrived.
        connections: How many connections were made.
        open_connections: How many are open.
        stopping: Set when the server ends; handlers that wait, wait for it.
        errors: What handlers raised that is no end of a connection.
    """

    def __init__(
        self, handler: Handler, *, path: str = "", host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> None:
        self.handler = handler
        self.requests: list[Request] = []
        self.connections = 0
        self.open_connections = 0
        self.stopping = threading.Event()
        self.closed = threading.Condition()
        self.errors: list[Exception] = []
        self._tls = tls
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port: int = self._listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{'https' if tls else 'http'}://{shown}:{self.port}{path}"
        self._socks: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def asked(self, method: str | None = None) -> list[str]:
        """The targets of all requests, or of those with this method."""
        return [request.target for request in self.requests if method in (None, request.method)]

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
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            file = sock.makefile("rb")
            while (received := self._read(file, sock, connection)) is not None:
                with self._lock:
                    received.number = len(self.requests) + 1
                    self.requests.append(received)
                reply = self.handler(received)
                if reply is not None:
                    received.reply(reply)
        except (Hangup, OSError):
            return
        except Exception as error:
            self.errors.append(error)
        finally:
            with contextlib.suppress(OSError, UnboundLocalError):
                file.close()
            sock.close()
            with self.closed:
                self.open_connections -= 1
                self.closed.notify_all()

    def _read(self, file: Any, sock: socket.socket, connection: int) -> Request | None:
        line = file.readline().decode("latin-1").rstrip("\r\n")
        if not line:
            return None
        headers: dict[str, str] = {}
        while (text := file.readline().decode("latin-1").rstrip("\r\n")) != "":
            name, _, value = text.partition(":")
            headers[name.strip().lower()] = value.strip()
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while head := file.readline():
                size = int(head, 16)
                body += file.read(size)
                file.readline()
                if size == 0:
                    break
            else:
                # The client has broken off.
                return None
        else:
            body = file.read(int(headers.get("content-length", 0)))
        return Request(line, headers, body, 0, connection, sock, self)

    def wait_until_closed(self, seconds: float = 5.0) -> bool:
        """Waits until no connection is open."""
        with self.closed:
            return self.closed.wait_for(lambda: self.open_connections == 0, seconds)

    def stop(self) -> None:
        """Ends the server and all its connections."""
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
