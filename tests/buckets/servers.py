"""Servers of object stores for tests, one process each, and a proxy in front that counts and refuses requests.

`KINDS` is the table of them: a kind says how its server is started, which environment variables lead its clients there,
and how it says that too much is asked of it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.go_programs import ProgramUnavailable, built, cache_directory, go_program

START_SECONDS = 60
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "proxy-connection", "expect"}


@dataclass(frozen=True)
class Answer:
    """An answer of the proxy's own."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """A kind of object store.

    Attributes:
        scheme: Of its URLs.
        command: The command line of its server for a port and a folder for its data.
        environment: The environment variables that lead clients to a port.
        throttled: Its answer to a client that asks too much.
        forbidden: Its answer to a client that may not.
        package: The module of its fsspec filesystem.
    """

    scheme: str
    command: Callable[[int, Path], list[str]]
    environment: Callable[[int], dict[str, str]]
    throttled: Answer
    forbidden: Answer
    package: str


def _xml(code: str, message: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def _json(code: int, reason: str) -> bytes:
    """An error as Google Cloud Storage writes it."""
    return json.dumps({"error": {"code": code, "message": reason, "errors": [{"reason": reason}]}}).encode()


def _s3_command(port: int, _: Path) -> list[str]:
    return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]


def _s3_environment(port: int) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-tester",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def _gs_command(port: int, _: Path) -> list[str]:
    program = go_program("github.com/fsouza/fake-gcs-server", "v1.56.1")
    place = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    return [str(program), *place, "-backend", "memory", "-log-level", "error"]


def _gs_environment(port: int) -> dict[str, str]:
    # The second asks an emulator nothing over gRPC, which it does not speak. It is read when gcsfs is imported.
    return {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}


def _az_command(port: int, folder: Path) -> list[str]:
    version = "3.35.0"
    home = cache_directory() / "azurite" / version
    install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(home), f"azurite@{version}"]
    program = built(home / "node_modules" / ".bin" / "azurite-blob", install)
    place = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder)]
    return [str(program), *place, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]


def _az_environment(port: int) -> dict[str, str]:
    account = "devstoreaccount1"
    # The key of this account is the same in every Azurite.
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    place = f"DefaultEndpointsProtocol=http;BlobEndpoint=http://127.0.0.1:{port}/{account}"
    return {"AZURE_STORAGE_CONNECTION_STRING": f"{place};AccountName={account};AccountKey={key}"}


KINDS: dict[str, Kind] = {
    "s3": Kind(
        "s3",
        _s3_command,
        _s3_environment,
        Answer(503, _xml("SlowDown", "Please reduce your request rate."), {"Content-Type": "application/xml"}),
        Answer(403, _xml("AccessDenied", "Access Denied"), {"Content-Type": "application/xml"}),
        "s3fs",
    ),
    "gs": Kind(
        "gs",
        _gs_command,
        _gs_environment,
        Answer(429, _json(429, "rateLimitExceeded"), {"Content-Type": "application/json"}),
        Answer(403, _json(403, "forbidden"), {"Content-Type": "application/json"}),
        "gcsfs",
    ),
    "az": Kind(
        "az",
        _az_command,
        _az_environment,
        Answer(503, _xml("ServerBusy", "The server is busy."), {"Content-Type": "application/xml"}),
        Answer(
            403,
            _xml("AuthorizationPermissionMismatch", "This request is not authorized to perform this operation."),
            {"Content-Type": "application/xml", "x-ms-error-code": "AuthorizationPermissionMismatch"},
        ),
        "adlfs",
    ),
}


@dataclass(frozen=True)
class Request:
    """A request that passed the proxy.

    Attributes:
        method: Its method.
        path: The path, decoded.
        query: The query as it was sent.
        range: The header Range, empty if there is none.
        status: Of the answer.
        received: The bytes of the answer's body.
    """

    method: str
    path: str
    query: str
    range: str
    status: int
    received: int


class Proxy:
    """Stands before a server, notes each request, and answers some itself. It listens on 127.0.0.1.

    Attributes:
        requests: What has passed, in the order of the answers.
        refuse: Called with method and target of each request before it is sent on; what it returns is the answer.
        lose: Called with the same after the server's answer; if true, the client gets none.
        dropped: Headers of requests, in lower case, that do not reach the server, which so knows nothing of them.
    """

    def __init__(self, upstream: int) -> None:
        self.requests: list[Request] = []
        self.refuse: Callable[[str, str], Answer | None] = lambda method, target: None
        self.lose: Callable[[str, str], bool] = lambda method, target: False
        self.dropped: set[str] = set()
        proxy = self

        class Handler(_Handler):
            owner = proxy
            port = upstream

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, name="bucket-proxy", daemon=True).start()

    def reset(self) -> None:
        """Forgets what has passed, and refuses nothing."""
        self.requests.clear()
        self.refuse = lambda method, target: None
        self.lose = lambda method, target: False
        self.dropped = set()

    def refuse_some(self, answer: Answer, count: int, methods: str = "GET PUT POST HEAD DELETE") -> None:
        """Gives an answer to the first of the requests with these methods."""
        left = [count]
        lock = threading.Lock()

        def refuse(method: str, target: str) -> Answer | None:
            with lock:
                if method not in methods.split() or not left[0]:
                    return None
                left[0] -= 1
                return answer

        self.refuse = refuse

    def stop(self) -> None:
        """Stops it."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Proxy
    port: int

    def _forward(self) -> None:
        body = self._body()
        answer = self.owner.refuse(self.command, self.path)
        headers: list[tuple[str, str]]
        if answer is not None:
            status, content, headers = answer.status, answer.body, list(answer.headers.items())
            declared = len(content)
        else:
            upstream = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
            try:
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in _HOP_BY_HOP | {"content-length"} | self.owner.dropped:
                        upstream.putheader(name, value)
                if body is not None:
                    upstream.putheader("Content-Length", str(len(body)))
                upstream.endheaders(body)
                response = upstream.getresponse()
                content = response.read()
                status = response.status
                headers = [
                    (name, value)
                    for name, value in response.getheaders()
                    if name.lower() not in _HOP_BY_HOP | {"content-length"}
                ]
                declared = int(response.getheader("Content-Length") or len(content))
            finally:
                upstream.close()
        parts = urlsplit(self.path)
        self.owner.requests.append(
            Request(
                self.command,
                unquote(parts.path),
                parts.query,
                self.headers.get("Range") or self.headers.get("x-ms-range") or "",
                status,
                len(content),
            )
        )
        if self.owner.lose(self.command, self.path):
            self.close_connection = True
            return
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(declared if self.command == "HEAD" else len(content)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content)

    def _body(self) -> bytes | None:
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(pieces)
        length = self.headers.get("Content-Length")
        return None if length is None else self.rfile.read(int(length))

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = _forward

    def log_message(self, format: str, *args: Any) -> None:
        pass


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running(kind: Kind, folder: Path) -> Iterator[Proxy]:
    """The server of a kind and the proxy before it.

    Raises:
        ProgramUnavailable: If the server cannot be had or does not start.
    """
    port = free_port()
    command = kind.command(port, folder)
    with open(folder / "log", "w+b") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise ProgramUnavailable(f"{' '.join(command)} did not start: {log.read()[-2000:]!r}")
                time.sleep(0.1)
            proxy = Proxy(port)
            try:
                yield proxy
            finally:
                proxy.stop()
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def skip_or_fail(reason: str) -> None:
    """Skips the test with the reason; in CI, where nothing may be missing, it fails."""
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(f"CI needs this server: {reason}")
    pytest.skip(reason)
