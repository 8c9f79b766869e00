"""One request and its answer between the server's threads and uvicorn."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import anyio
import anyio.from_thread
import h11
from starlette.types import Message, Receive, Scope, Send

from dicomweb_io.testing.exchange import Answer, Exchange, parse_query, pieces_of
from dicomweb_io.testing.manners_model import Manners
from dicomweb_io.testing.records import Record, Records

_GATHER = 1 << 16
_LONGEST_REASON = 512
_UNPRINTABLE = re.compile(r"[^ -~\xa0-\xff]")


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

    def exchange(self, manners: Manners, faults: tuple[Any, ...]) -> Exchange:
        """The request as the parts of the server see it."""
        headers = self.record.headers
        server = self._scope.get("server") or ("localhost", None)
        host = headers.get("host") or f"{server[0]}:{server[1]}"
        return Exchange(
            self.record.method,
            self.raw_path,
            parse_query(self.record.query),
            headers,
            f"{self._scope['scheme']}://{host}{manners.root}",
            self._body(),
            faults,
            manners.decodes_query,
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
                for piece in _gathered(pieces_of(answer.body)):
                    if self._gone.is_set():
                        raise ClientGone("the client left before the end of the answer")
                    record.bytes_out += len(piece)
                    self._push({"type": "http.response.body", "body": bytes(piece), "more_body": True})
            # The end of the answer looks to the watcher as if the client had left, and who has counted to the announced
            # length may really have.
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
        reason = _UNPRINTABLE.sub(" ", text).encode("latin-1", "replace")[:_LONGEST_REASON]

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


def _gathered(pieces: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Joins small pieces, as each piece costs a change of threads."""
    waiting: list[bytes | memoryview] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _GATHER:
            yield b"".join(waiting) if len(waiting) > 1 else piece
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
