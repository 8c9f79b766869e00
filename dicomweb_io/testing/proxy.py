"""A TCP proxy that plays the faults below HTTP: resets, cut and stalled answers, dripping bytes, a dying server.

It stands in front of any plain HTTP server (the test server, a real Orthanc) and understands just enough HTTP to tell
one request from the next: where a message ends (RFC 9112 section 6), and nothing of what it says.

    with FaultyProxy(("127.0.0.1", orthanc.port), [fault("reset", at="body", position=5000)]).start() as proxy:
        client = DICOMwebClient(f"http://127.0.0.1:{proxy.port}/dicom-web")
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NoReturn

from dicomweb_io.dicom.media_types import parse_content_type
from dicomweb_io.testing.faults import Fault, FaultPlan, Place, WireFault

_CHUNK = 1 << 16
_MAX_HEAD = 1 << 18
_END = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True)
class Head:
    """The start of a message, up to the empty line.

    Attributes:
        raw: Its bytes.
        first: The request line or status line.
        headers: By lower-case name; of repeated headers the last value.
    """

    raw: bytes = field(repr=False)
    first: str
    headers: dict[str, str] = field(repr=False)

    @classmethod
    def parse(cls, data: bytes) -> Head | None:
        """The head at the beginning of some bytes; None if it is not complete yet."""
        match = _END.search(data)
        if match is None:
            return None
        raw = data[: match.end()]
        lines = raw.decode("latin-1").splitlines()
        headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if colon:
                headers[name.strip().lower()] = value.strip()
        return cls(raw, lines[0] if lines else "", headers)

    @property
    def method(self) -> str:
        """The method of a request."""
        return self.first.partition(" ")[0]

    @property
    def target(self) -> str:
        """The target of a request: path and query."""
        return self.first.partition(" ")[2].partition(" ")[0]

    @property
    def status(self) -> int:
        """The status of an answer.

        Raises:
            ValueError: If it is not an answer.
        """
        return int(self.first.split(" ")[1])

    @property
    def chunked(self) -> bool:
        """Whether the body comes in chunks."""
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def length(self) -> int | None:
        """The announced length of the body."""
        text = self.headers.get("content-length")
        return int(text) if text is not None else None

    @property
    def closes(self) -> bool:
        """Whether the sender closes the connection afterwards."""
        return "close" in self.headers.get("connection", "").lower() or "HTTP/1.0" in self.first

    def boundary(self) -> bytes | None:
        """The boundary of a multipart message."""
        value = parse_content_type(self.headers.get("content-type")).parameters.get("boundary")
        return value.encode("latin-1") if value else None

    def without_length(self) -> bytes:
        """The head as of a server that ends its answer by closing the connection."""
        lines = self.raw.split(b"\r\n")
        kept = [
            line
            for line in lines[:-2]
            if line.partition(b":")[0].strip().lower()
            not in (b"content-length", b"transfer-encoding", b"connection", b"keep-alive")
        ]
        return b"\r\n".join([*kept, b"Connection: close", b"", b""])


class Body:
    """A body whose end is looked for while it passes.

    Args:
        length: Its length; None if it ends with the connection.
        chunked: Whether it comes in chunks.
        decode: Whether `take` is wanted.

    Attributes:
        done: Whether the end was reached.
    """

    def __init__(self, length: int | None, *, chunked: bool = False, decode: bool = False) -> None:
        self._left = length
        self._chunked = chunked
        self._decode = decode
        self._content: list[bytes] = []
        self._line = b""
        self._state = "size"
        self.done = not chunked and length == 0

    def feed(self, data: bytes) -> int:
        """Takes bytes; returns how many of them belong to this body."""
        if not self._chunked:
            used = len(data) if self._left is None else min(self._left, len(data))
            self._keep(data[:used])
            if self._left is not None:
                self._left -= used
                self.done = self._left == 0
            return used
        position = 0
        while position < len(data) and not self.done:
            position = self._chunk(data, position)
        return position

    def end(self) -> None:
        """The connection has ended."""
        self.done = True

    def take(self) -> bytes:
        """The content of what was fed since the last call, without the framing of chunks."""
        content, self._content = b"".join(self._content), []
        return content

    def _keep(self, data: bytes) -> None:
        if self._decode and data:
            self._content.append(data)

    def _chunk(self, data: bytes, position: int) -> int:
        if self._state == "data":
            assert self._left is not None  # noqa: S101 - for the type checker
            used = min(self._left, len(data) - position)
            self._keep(data[position : position + used])
            self._left -= used
            if self._left == 0:
                self._state = "after"
            return position + used
        end = data.find(b"\n", position)
        if end < 0:
            self._line += data[position:]
            return len(data)
        line = (self._line + data[position:end]).strip()
        self._line = b""
        if self._state == "size":
            self._left = int(line.partition(b";")[0], 16)
            self._state = "data" if self._left else "trailer"
        elif self._state == "after":
            self._state = "size"
        elif not line:
            self.done = True
        return end + 1


def body_of_request(head: Head) -> Body:
    """The body that follows the head of a request."""
    return Body(head.length or 0, chunked=head.chunked)


def body_of_answer(head: Head, method: str, *, decode: bool = False) -> Body:
    """The body that follows the head of an answer."""
    if method == "HEAD" or head.status in (204, 304):
        return Body(0)
    if head.chunked:
        return Body(None, chunked=True, decode=decode)
    return Body(head.length, decode=decode)


class _Cut(Exception):
    """The connection is over."""


class FaultyProxy:
    """A proxy in front of one server.

    Args:
        target: Host and port of the server.
        faults: What goes wrong; only faults of the layer ``"wire"``.
        host: The address to listen on.

    Attributes:
        faults: The plan, to which faults can be added while it runs.
        connections: How many connections were accepted so far.

    Raises:
        ValueError: If a fault is not one of this layer.
    """

    def __init__(self, target: tuple[str, int], faults: Iterable[Fault] = (), *, host: str = "127.0.0.1") -> None:
        chosen = list(faults)
        for one in chosen:
            if not isinstance(one, WireFault):
                raise ValueError(f"the proxy cannot play {one.action!r}: that is for the server itself")
        self.faults = FaultPlan(chosen)
        self.connections = 0
        self.port = 0
        self._target = target
        self._host = host
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._reserved: socket.socket | None = None
        self._links: set[Link] = set()
        self._threads: set[threading.Thread] = set()
        self._stopped = threading.Event()
        self._stopped.set()
        self._downs = 0

    def start(self, port: int = 0) -> FaultyProxy:
        """Begins to listen.

        Args:
            port: The port; 0 for any free one, or the one before.

        Returns:
            The proxy itself.
        """
        if self._stopped.is_set():
            self._stopped = threading.Event()
            self._listen(port or self.port)
        return self

    @property
    def open_connections(self) -> int:
        """How many connections of clients are open."""
        with self._lock:
            return len(self._links)

    def stop(self) -> None:
        """Resets all connections and listens no more; `start` listens on the same port again."""
        self._stopped.set()
        self._go_deaf()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def down(self, seconds: float) -> None:
        """Resets all connections and refuses new ones for a time, as if the server had died and come back."""
        self._go_deaf()
        # A socket that is bound and does not listen refuses connections, and keeps the port from everybody else.
        with self._lock:
            self._reserved = self._bound(self.port)
            self._downs += 1
            number = self._downs
        self._spawn(self._come_back, seconds, number)

    def up(self) -> None:
        """Ends `down` before its time."""
        with self._lock:
            if self._listener is not None or self._stopped.is_set():
                return
            self._downs += 1
        self._listen(self.port)

    def __enter__(self) -> FaultyProxy:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Listening --------------------------------------------------------------------------------------------------------

    def _bound(self, port: int) -> socket.socket:
        found = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((self._host, port))
        except OSError:
            found.close()
            raise
        return found

    def _listen(self, port: int) -> None:
        with self._lock:
            reserved, self._reserved = self._reserved, None
        listener = reserved if reserved is not None else self._bound(port)
        listener.listen(256)
        with self._lock:
            self._listener = listener
        self.port = listener.getsockname()[1]
        self._spawn(self._accept, listener, self._stopped)

    def _go_deaf(self) -> None:
        with self._lock:
            listener, self._listener = self._listener, None
            reserved, self._reserved = self._reserved, None
            links = list(self._links)
        if reserved is not None:
            reserved.close()
        if listener is not None:
            with contextlib.suppress(OSError):  # not connected: that is what wakes the accepting thread
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for link in links:
            link.reset()

    def _come_back(self, seconds: float, number: int) -> None:
        if self._stopped.wait(seconds):
            return
        with self._lock:
            # Another end of it may have come before, or another beginning.
            if number != self._downs:
                return
            self._downs += 1
        self._listen(self.port)

    def _accept(self, listener: socket.socket, stopped: threading.Event) -> None:
        while not stopped.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            link = Link(self, client, self._target, stopped)
            with self._lock:
                self._links.add(link)
                deaf = self._listener is not listener
            if deaf:
                link.reset()
            self._spawn(self._run, link)

    def _run(self, link: Link) -> None:
        try:
            link.run()
        finally:
            with self._lock:
                self._links.discard(link)

    def _spawn(self, target: Any, *arguments: Any) -> None:
        def run() -> None:
            try:
                target(*arguments)
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name="faulty proxy", daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()


class Link:
    """One connection of a client, and the one to the server that belongs to it, as the faults see it.

    Attributes:
        proxy: The proxy that accepted it.
        rate: Bytes a second in the present exchange, both ways; None for as fast as possible.
    """

    def __init__(
        self, proxy: FaultyProxy, client: socket.socket, target: tuple[str, int], stopped: threading.Event
    ) -> None:
        self.proxy = proxy
        self.rate: float | None = None
        self._drip: tuple[int, float] | None = None
        self._client = client
        self._target = target
        self._stopped = stopped
        self._server: socket.socket | None = None
        self._unread = b""
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self) -> None:
        """Relays request after request until one side is done or a fault ends it."""
        try:
            while True:
                self._exchange()
        except (_Cut, OSError, ValueError):
            # An OSError is a side that has gone; a ValueError a message that is not HTTP.
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Ends the connection in order."""
        for end in (self._client, self._server):
            if end is not None:
                with contextlib.suppress(OSError):  # closed already
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    # What faults do ---------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Ends the connection with a TCP reset, from any thread."""
        with contextlib.suppress(OSError):  # closed already
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # A thread that waits for this socket would keep it open; ending its reading sends nothing yet.
            self._client.shutdown(socket.SHUT_RD)
        self._client.close()
        if self._server is not None:
            with contextlib.suppress(OSError):  # closed already
                self._server.shutdown(socket.SHUT_RDWR)

    def cut(self) -> NoReturn:
        """Ends the exchange here, and the connection in order."""
        raise _Cut

    def stall(self) -> NoReturn:
        """Sends nothing until the client has gone or the proxy stops."""
        while not self._stopped.is_set():
            if _readable([self._client], 0.1) and not self._client.recv(_CHUNK):
                break
        raise _Cut

    def drip(self, count: int, interval: float) -> None:
        """Sends the rest of this exchange in pieces of `count` bytes, one every `interval` seconds."""
        self._drip = count, interval

    def wait(self, seconds: float) -> None:
        """Waits, but no longer than the proxy runs."""
        if self._stopped.wait(seconds):
            raise _Cut

    def send(self, data: bytes) -> None:
        """Sends bytes to the client, as fast as the faults of this exchange allow."""
        if self._drip is None:
            self._keep_rate(len(data))
            self._client.sendall(data)
            return
        count, interval = self._drip
        for start in range(0, len(data), count):
            self._client.sendall(data[start : start + count])
            self.wait(interval)

    # One request ------------------------------------------------------------------------------------------------------

    def _keep_rate(self, size: int) -> None:
        """Waits as long as so many bytes take."""
        if self.rate is not None:
            self.wait(size / self.rate)

    def _exchange(self) -> None:
        self.rate = self._drip = None
        head = self._request_head()
        struck = self.proxy.faults.strike(head.method, head.target.partition("?")[0])
        faults = [one for one in struck if isinstance(one, WireFault)]
        self._strike(faults, "request")
        server = self._connected()
        server.sendall(head.raw)
        body = body_of_request(head)
        upload: threading.Thread | None = None
        if not body.done:
            upload = threading.Thread(target=self._upload, args=(server, body), daemon=True)
            upload.start()
        keep = self._answer(head, faults)
        if upload is not None:
            # A server that answers before the end of the request does not want the rest.
            upload.join(0.0 if not body.done else None)
            keep = keep and body.done
        self._strike(faults, "end")
        if not keep or head.closes:
            raise _Cut

    def _strike(self, faults: Iterable[WireFault], place: Place) -> None:
        for one in faults:
            if one.place[0] == place:
                one.apply(self)

    def _request_head(self) -> Head:
        while True:
            head = Head.parse(self._unread)
            if head is not None:
                self._unread = self._unread[len(head.raw) :]
                return head
            waiting = [self._client] if self._server is None else [self._client, self._server]
            # A socket that `reset` closes between its shutdown and our waking is forgotten without an event: look again
            # from time to time, and a closed one is refused with a ValueError.
            ready = _readable(waiting, 0.5)
            if not ready:
                continue
            if self._server in ready:
                # The server closed the idle connection: so does the proxy.
                raise _Cut
            data = self._client.recv(_CHUNK)
            if not data or len(self._unread) > _MAX_HEAD:
                raise _Cut
            self._unread += data

    def _connected(self) -> socket.socket:
        if self._server is None:
            self._server = socket.create_connection(self._target)
            self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._server

    def _upload(self, server: socket.socket, body: Body) -> None:
        data, self._unread = self._unread, b""
        try:
            while True:
                if data:
                    used = body.feed(data)
                    self._keep_rate(used)
                    server.sendall(data[:used])
                    self._unread = data[used:]
                if body.done:
                    return
                data = self._client.recv(_CHUNK)
                if not data:
                    server.shutdown(socket.SHUT_WR)
                    return
        except (OSError, _Cut):
            # One side has gone; the thread that relays the answer notices.
            return

    def _answer(self, request: Head, faults: list[WireFault]) -> bool:
        """Relays the answer; returns whether the connection can be used again."""
        server = self._connected()
        received = b""
        while True:
            head = Head.parse(received)
            if head is not None and 100 <= head.status < 200:
                self._client.sendall(head.raw)
                received = received[len(head.raw) :]
                continue
            if head is not None:
                break
            data = server.recv(_CHUNK)
            if not data:
                raise _Cut
            received += data
        self._strike(faults, "answer")
        rest = received[len(head.raw) :]
        plain = any(one.hides_length for one in faults)
        self._header(head.without_length() if plain else head.raw, faults)
        body = body_of_answer(head, request.method, decode=plain)
        output = _Output(self, faults, head.boundary())
        while not body.done:
            if rest:
                used = body.feed(rest)
                output.send(body.take() if plain else rest[:used])
                rest = rest[used:]
                continue
            rest = server.recv(_CHUNK)
            if not rest:
                body.end()
                output.finish()
                return False
        output.finish()
        return not plain and not head.closes

    def _header(self, raw: bytes, faults: list[WireFault]) -> None:
        for one in faults:
            place, position = one.place
            if place == "header":
                position = min(position, len(raw) - 1)
                self.send(raw[:position])
                one.apply(self)
                raw = raw[position:]
                break
        self.send(raw)


def _readable(sockets: Iterable[socket.socket], timeout: float | None = None) -> list[Any]:
    """Those of the sockets from which something can be read, even if it is their end."""
    with selectors.DefaultSelector() as selector:
        for one in sockets:
            selector.register(one, selectors.EVENT_READ)
        return [key.fileobj for key, _ in selector.select(timeout)]


class _Output:
    """The body of an answer on its way to the client, watched for the place of a fault."""

    def __init__(self, link: Link, faults: Iterable[WireFault], boundary: bytes | None) -> None:
        self._link = link
        self._sent = 0
        self._fault = next((one for one in faults if one.place[0] in ("body", "part")), None)
        self._delimiter = b"--" + boundary if boundary else None
        self._seen = 0
        self._tail = b""

    def send(self, data: bytes) -> None:
        """Sends what came from the server, up to the place of the fault."""
        place = self._place(data)
        if place is not None:
            self._link.send(data[:place])
            data = data[place:]
            self._strike()
        self._link.send(data)
        self._sent += len(data)

    def finish(self) -> None:
        """The server has sent everything: a cut at the very end still happens."""
        if self._fault is not None and self._fault.place[0] == "body" and self._fault.place[1] < 0:
            self._strike()

    def _strike(self) -> None:
        fault, self._fault = self._fault, None
        if fault is not None:
            fault.apply(self._link)

    def _place(self, data: bytes) -> int | None:
        """Where in these bytes the fault strikes."""
        if self._fault is None:
            return None
        place, position = self._fault.place
        if place == "body":
            return position - self._sent if 0 <= position - self._sent <= len(data) else None
        if self._delimiter is None:
            return None
        joined = self._tail + data
        for match in re.finditer(re.escape(self._delimiter), joined):
            if match.end() <= len(self._tail):
                continue
            self._seen += 1
            if self._seen == max(1, position):
                return match.end() - len(self._tail)
        self._tail = joined[-(len(self._delimiter) - 1) :]
        return None
