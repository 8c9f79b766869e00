"""Requests that are sent exactly as they are written, and what is compared of their answers."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dicomweb_io.http.multipart import MultipartReader
from dicomweb_io.testing.orthanc import Orthanc
from dicomweb_io.testing.samples import sample_file
from dicomweb_io.testing.server.server import serve


class Answer:
    """An answer."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def media_type(self) -> str | None:
        value = self.headers.get("content-type")
        return value.partition(";")[0] if value else None

    @property
    def root(self) -> str:
        """The ``type`` of a multipart answer, as it is written."""
        return re.search('type="([^"]*)"', self.headers["content-type"])[1]  # type: ignore[index]

    @property
    def boundary(self) -> str:
        return self.headers["content-type"].rpartition("boundary=")[2]

    @property
    def parts(self) -> list[tuple[dict[str, str], bytes]]:
        reader = MultipartReader([self.body], self.headers["content-type"])
        return [({name.lower(): value for name, value in part.headers.items()}, part.read()) for part in reader]

    @property
    def contents(self) -> list[bytes]:
        return [content for _, content in self.parts]

    @property
    def tells_its_length(self) -> bool:
        return "content-length" in self.headers or "transfer-encoding" in self.headers


def ask(url: str, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
    """Sends a request; `path` follows that of the URL."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=30)
    try:
        connection.putrequest(method, f"{where.path}/{path.removeprefix('/')}", skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        return Answer(connection.getresponse())
    finally:
        connection.close()


@contextmanager
def same_content(orthanc: Orthanc, names: Iterable[str], folder: Path) -> Iterator[tuple[str, str]]:
    """Gives the origins of the real Orthanc and of the test server with its behaviour, both with pydicom's files."""
    orthanc.start()
    orthanc.wipe()
    for name in names:
        content = sample_file(name).read_bytes()
        orthanc.call("POST", "/instances", content)
        (folder / name).write_bytes(content)
    with serve(folder, behaviour="orthanc") as server:
        where = urlsplit(orthanc.url)
        yield f"http://{where.hostname}:{where.port}", server.origin
        assert server.errors == []
