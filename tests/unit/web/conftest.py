"""Clients that talk to servers whose answers a test writes itself."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite

from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.web.client import DICOMwebClient
from tests.answering import AnsweringServer, Handler, Reply, Request

STUDY, SERIES = "1.2.3", "1.2.3.1"


class Web:
    """What tests need."""

    STUDY, SERIES = STUDY, SERIES
    Reply = Reply
    json = staticmethod(Reply.json)
    multipart = staticmethod(Reply.multipart)

    def __init__(self, answering: Callable[..., AnsweringServer]) -> None:
        self._answering = answering
        self.clients: list[DICOMwebClient] = []

    def serve(self, answer: Handler) -> AnsweringServer:
        return self._answering(answer, path="/dicomweb")

    def client(self, server: AnsweringServer | str, **options: Any) -> DICOMwebClient:
        options.setdefault("retry", RetryPolicy(max_attempts=3, initial_delay=0.0))
        options.setdefault("deadline", 20.0)
        url = server if isinstance(server, str) else server.url
        client = DICOMwebClient(url, **options)
        self.clients.append(client)
        return client

    def connect(self, answer: Handler, **options: Any) -> tuple[AnsweringServer, DICOMwebClient]:
        server = self.serve(answer)
        return server, self.client(server, **options)

    @staticmethod
    def dicom(sop: str, *, study: str = STUDY, series: str = SERIES, filler: int = 64, comment: str = "") -> bytes:
        dataset = Dataset()
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = study, series, sop
        dataset.ImageComments = comment
        dataset.EncapsulatedDocument = b"\x00" * (filler + filler % 2)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        buffer = io.BytesIO()
        dcmwrite(buffer, dataset, enforce_file_format=True)
        return buffer.getvalue()

    @staticmethod
    def row(*uids: str, **values: Any) -> dict[str, Any]:
        """A row with study, series and instance UIDs, as many as given, and values by tag (``t00080060="CT"``)."""
        tags = ("0020000D", "0020000E", "00080018")
        row = {tag: {"vr": "UI", "Value": [uid]} for tag, uid in zip(tags, uids, strict=False)}
        for name, value in values.items():
            row[name.lstrip("t")] = {"vr": "CS", "Value": value if isinstance(value, list) else [value]}
        return row

    @classmethod
    def page(cls, request: Request, rows: Sequence[dict[str, Any]], **options: Any) -> Reply:
        """The rows from the offset on that a request asks for, as many as its limit."""
        offset, limit = int(request.parameters.get("offset", 0)), int(request.parameters.get("limit", len(rows)))
        page = rows[offset : offset + limit]
        return cls.json(page, **options) if page else Reply(204, **options)

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
def web(answering: Callable[..., AnsweringServer]) -> Iterator[Web]:
    tools = Web(answering)
    yield tools
    for client in tools.clients:
        client.close()
