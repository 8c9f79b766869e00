"""Plain requests to a test server, and what their answers hold."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pydicom
import requests
import trustme

from dicomweb_io.elements import Instance
from dicomweb_io.http.multipart import MultipartReader
from dicomweb_io.testing.samples import sample_file

PLAIN = 'multipart/related; type="application/dicom"'
ANY = f"{PLAIN}; transfer-syntax=*"
STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"


def address(server: Any, name: str) -> str:
    """Where a server gives one of pydicom's files."""
    reference = Instance.from_path(sample_file(name)).reference
    return "/".join(filter(None, (server.url, server.behaviour.wado_prefix, reference.uri)))


def put_files(folder: Path, names: Iterable[str]) -> Path:
    """Copies pydicom's files into a folder."""
    for name in names:
        (folder / name).write_bytes(sample_file(name).read_bytes())
    return folder


def pixels(content: bytes) -> Any:
    return pydicom.dcmread(io.BytesIO(content)).pixel_array


def get(url: str, accept: str = "*/*", headers: dict[str, str] | None = None, **options: Any) -> requests.Response:
    return requests.get(url, headers={"Accept": accept, **(headers or {})}, timeout=30, **options)


def parts(answer: requests.Response) -> list[bytes]:
    assert answer.status_code in (200, 206), answer.text
    return [part.read() for part in MultipartReader([answer.content], answer.headers["Content-Type"])]


def uids(answer: requests.Response, tag: str = STUDY) -> list[str]:
    return [row[tag]["Value"][0] for row in answer.json()] if answer.status_code == 200 else []


def body_of(*contents: bytes) -> bytes:
    head = b"--a-boundary\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + content + b"\r\n" for content in contents) + b"--a-boundary--\r\n"


def store(
    server: Any, *contents: bytes, path: str = "/studies", headers: Any = None, data: Any = None, method: str = "POST"
) -> requests.Response:
    prefix = f"/{server.behaviour.stow_prefix}" if server.behaviour.stow_prefix else ""
    return requests.request(
        method,
        f"{server.url}{prefix}{path}",
        data=body_of(*contents) if data is None else data,
        headers={"Content-Type": f"{PLAIN}; boundary=a-boundary", **(headers or {})},
        timeout=30,
    )


def make_certificates(directory: Path) -> dict[str, str]:
    """The paths of a server's and a client's certificates, each with the authority that signed it."""
    authority, clients = trustme.CA(), trustme.CA()
    paths = {}
    for name, blob in (
        ("server", authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem),
        ("client", clients.issue_cert("someone@example.org").private_key_and_cert_chain_pem),
        ("authority", authority.cert_pem),
        ("clients", clients.cert_pem),
    ):
        paths[name] = str(directory / f"{name}.pem")
        blob.write_to_path(paths[name])
    return paths
