"""Real servers on 127.0.0.1 whose answers a test writes itself, and the clients that talk to them."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite

from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.web.client import DICOMwebClient

STUDY, SERIES = "1.2.3", "1.2.3.1"


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    @property
    def parameters(self) -> dict[str, str]:
        return dict(pair.partition("=")[::2] for pair in self.query.split("&") if pair)


@dataclass
class Reply:
    """An answer. `length`: declare Content-Length; else the end of the connection is the end of the body.

    `cut`: send that many bytes of the body only, then close the connection.
    """

    status: int = 200
    body: bytes = b""
    content_type: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    length: bool = True
    cut: int | None = None


Answer = Callable[[Request], Reply]


class Server:
    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_one(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, self.rfile.read(length))
                owner.requests.append(request)
                reply = owner.answer(request)
                self.send_response(reply.status)
                if reply.content_type is not None:
                    self.send_header("Content-Type", reply.content_type)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.length and reply.status != 204:
                    self.send_header("Content-Length", str(len(reply.body)))
                if not reply.length or reply.cut is not None:
                    self.send_header("Connection", "close")
                    self.close_connection = True
                self.end_headers()
                if reply.status != 204:
                    self.wfile.write(reply.body if reply.cut is None else reply.body[: reply.cut])

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_one

            def log_message(self, *arguments: Any) -> None:
                return

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                # A client that closes early is part of some tests.
                return

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicomweb"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def asked(self, method: str | None = None) -> list[str]:
        return [request.target for request in self.requests if method in (None, request.method)]


class Web:
    """What tests need."""

    STUDY, SERIES = STUDY, SERIES
    Reply = Reply

    def __init__(self) -> None:
        self._open: list[Any] = []

    def serve(self, answer: Answer) -> Server:
        server = Server(answer)
        self._open.append(server)
        return server

    def client(self, server: Server | str, **options: Any) -> DICOMwebClient:
        options.setdefault("retry", RetryPolicy(max_attempts=3, initial_delay=0.0))
        options.setdefault("deadline", 20.0)
        url = server if isinstance(server, str) else server.url
        client = DICOMwebClient(url, **options)
        self._open.append(client)
        return client

    def connect(self, answer: Answer, **options: Any) -> tuple[Server, DICOMwebClient]:
        server = self.serve(answer)
        return server, self.client(server, **options)

    def close(self) -> None:
        for item in reversed(self._open):
            item.close()

    @staticmethod
    def dicom(sop: str, *, study: str = STUDY, series: str = SERIES, filler: int = 64, comment: str = "") -> bytes:
        dataset = Dataset()
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        dataset.SOPInstanceUID = sop
        dataset.StudyInstanceUID = study
        dataset.SeriesInstanceUID = series
        dataset.ImageComments = comment
        dataset.EncapsulatedDocument = b"\x00" * (filler + filler % 2)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        buffer = io.BytesIO()
        dcmwrite(buffer, dataset, enforce_file_format=True)
        return buffer.getvalue()

    @staticmethod
    def multipart(
        parts: Iterable[bytes | tuple[dict[str, str], bytes]],
        *,
        kind: str = "application/dicom",
        closed: bool = True,
        **options: Any,
    ) -> Reply:
        body = b""
        for part in parts:
            headers, content = part if isinstance(part, tuple) else ({"Content-Type": kind}, part)
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            body += b"--BOUND\r\n" + head.encode() + b"\r\n" + content + b"\r\n"
        body += b"--BOUND--\r\n" if closed else b""
        return Reply(200, body, f'multipart/related; type="{kind}"; boundary=BOUND', **options)

    @staticmethod
    def json(document: Any, status: int = 200, **options: Any) -> Reply:
        options.setdefault("content_type", "application/dicom+json")
        return Reply(status, json.dumps(document).encode(), **options)

    @staticmethod
    def row(*uids: str, **values: Any) -> dict[str, Any]:
        """A row with study, series and instance UIDs, as many as given, and values by tag (``t00080060="CT"``)."""
        row = {
            tag: {"vr": "UI", "Value": [uid]}
            for tag, uid in zip(("0020000D", "0020000E", "00080018"), uids, strict=False)
        }
        for name, value in values.items():
            row[name.lstrip("t")] = {"vr": "CS", "Value": value if isinstance(value, list) else [value]}
        return row

    @staticmethod
    def stored_parts(request: Request) -> list[bytes]:
        """The parts of a store request."""
        boundary = request.headers["content-type"].partition("boundary=")[2].strip('"').encode()
        pieces = request.body.split(b"--" + boundary)[1:-1]
        return [piece.partition(b"\r\n\r\n")[2][:-2] for piece in pieces]

    @staticmethod
    def module(stored: Iterable[str] = (), failed: Iterable[tuple[str, int]] = (), **extra: Any) -> dict[str, Any]:
        """A Store Instances Response Module."""
        document: dict[str, Any] = {}
        items = [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in stored]
        bad = [
            {"00081155": {"vr": "UI", "Value": [uid]}, "00081197": {"vr": "US", "Value": [code]}}
            for uid, code in failed
        ]
        if items:
            document["00081199"] = {"vr": "SQ", "Value": items}
        if bad:
            document["00081198"] = {"vr": "SQ", "Value": bad}
        return {**document, **extra}


@pytest.fixture
def web() -> Iterator[Web]:
    tools = Web()
    try:
        yield tools
    finally:
        tools.close()
