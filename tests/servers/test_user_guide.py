"""Every Python block of docs/user-guide.rst, executed in order in one namespace, on servers that the tests start.

`BLOCKS` lists the blocks one for one, what takes the place of the addresses, paths and UIDs in each, and what must be
there afterwards; a block that is not in the table, or the other way round, fails. Once connecting has been shown (each
block against a server that demands just that), the rest runs on three archives: a folder, as the guide is written (the
client it made last is one of a folder), the test server, and Orthanc.
"""

from __future__ import annotations

import ast
import io
import json
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pydicom
import pytest
import requests
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from dicomweb_io.api import DICOMClient, DICOMfileClient, DICOMwebClient
from dicomweb_io.elements import Instance
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.testing.samples import clone, sample_file
from dicomweb_io.testing.server.server import TLS
from tests.answering import Reply, Request

GUIDE = Path(__file__).parents[2] / "docs" / "user-guide.rst"


def blocks_of(text: str, language: str) -> list[str]:
    """The code blocks of a reStructuredText document in a language, in order."""
    pattern = rf"^\.\. code-block:: {language}\n\n((?:(?:    .*)?\n)+)"
    return [textwrap.dedent(found).strip() for found in re.findall(pattern, text + "\n", re.MULTILINE)]


PYTHON = blocks_of(GUIDE.read_text(encoding="utf-8"), "python")

# How often each function is called in the guide this one stems from. Its two calls of retrieve_instance without
# sop_instance_uid, which no client can answer, are errors here: see test_slips_of_the_original_are_type_errors.
ORIGINAL = Counter(
    {
        **{"DICOMwebClient": 7, "search_for_series": 7, "search_for_studies": 5, "retrieve_instance_frames": 5},
        **{"search_for_instances": 3, "retrieve_instance": 3, "retrieve_study_metadata": 2, "HTTPBasicAuth": 1},
        **{"create_session_from_auth": 1, "create_session_from_user_pass": 1, "create_session": 1},
        **{"add_certs_to_session": 1, "create_session_from_gcp_credentials": 1, "DICOMfileClient": 1, "dcmread": 1},
        **{"store_instances": 1, "retrieve_study": 1, "retrieve_series": 1, "retrieve_series_metadata": 1},
        **{"retrieve_instance_metadata": 1, "retrieve_bulkdata": 1, "retrieve_instance_rendered": 1},
        **{"retrieve_instance_frames_rendered": 1, "load_json_dataset": 1, "open": 1, "array": 1, "BytesIO": 1},
        **{"format": 1, "len": 2, "extend": 1},
    }
)
ORIGINAL_BLOCKS = 44
SLIPS = [
    {"media_types": (("application/dicom", "1.2.840.10008.1.2.4.90"),)},
    {"media_types": (("image/jp2", "1.2.840.10008.1.2.4.90"),)},
]

STUDY = "1.2.826.0.1.3680043.8.1055.1.20111103111148288.98361414.79379639"
SERIES = "1.2.826.0.1.3680043.8.1055.1.20111103111208937.49685336.24517034"
INSTANCE = "1.2.826.0.1.3680043.8.1055.1.20111103111208937.40440871.13152534"

Names = dict[str, Any]


@dataclass(frozen=True)
class Block:
    """One block of the guide.

    Attributes:
        contains: Text by which it is known.
        check: What must hold afterwards; gets the names that the guide has defined, and the archive.
        server: For blocks that connect: which server takes the place of the address.
        subject: The instance whose UIDs are put in: a JPEG loop, or a JPEG 2000 image where that encoding is wanted.
    """

    contains: str
    check: Callable[[Names, Any], bool]
    server: str | None = None
    subject: str = "loop"


def uid(row: Any, tag: str) -> str:
    return str(row[tag]["Value"][0])


def studies(rows: list[Any]) -> set[str]:
    return {uid(row, "0020000D") for row in rows}


Check = Callable[[Names, Any], bool]


def finds_all(name: str) -> Check:
    """Rows of all studies of the archive."""
    return lambda names, archive: studies(names[name]) == archive.studies


def finds(name: str, subject: str) -> Check:
    """Rows of one study only."""
    return lambda names, archive: studies(names[name]) == {getattr(archive, subject).uids[0]}


def finds_loop(name: str) -> Check:
    """One row of the loop."""
    return lambda names, archive: [uid(row, "00080018") for row in names[name]] == [archive.loop.uids[2]]


def gives(name: str, place: str) -> Check:
    """What the archive has at a place."""
    return lambda names, archive: names[name] == attrgetter(place)(archive)


def searches(names: Names, archive: Any) -> bool:
    return studies(names["client"].search_for_studies()) == archive.studies


CONNECTING = [
    Block("client = DICOMwebClient(url=", searches, "plain"),
    Block('qido_url_prefix="qidors"', searches, "prefixes"),
    Block("HTTPBasicAuth('myusername'", searches, "basic"),
    Block("create_session_from_user_pass", searches, "basic"),
    Block('"Bearer {}".format(access_token)', searches, "bearer"),
    # The guide prepares a session and does not pass it on: with it the server, which demands both, can be used.
    Block(
        "add_certs_to_session",
        lambda names, archive: (
            studies(DICOMwebClient(archive.url, session=names["session"]).search_for_studies()) == archive.studies
        ),
        "certificates",
    ),
    Block("create_session_from_gcp_credentials", searches, "google"),
]
FOLDER = Block("DICOMfileClient(", lambda names, archive: isinstance(names["client"], DICOMfileClient))
USING = [
    Block("client.store_instances", lambda names, archive: archive.has(names["dataset"])),
    Block("client.search_for_studies()", finds_all("studies")),
    Block("{'PatientID': 'ABC123'}", finds("studies", "new")),
    Block("{'00100020': 'ABC123'}", finds("studies", "new")),
    Block("limit=100", finds_all("studies_subset")),
    Block("offset += len(subset)", finds_all("studies")),
    Block("client.search_for_series()", finds_all("series")),
    Block("client.search_for_series('1.2.826", finds("series", "loop")),
    Block("'AccessionNumber': '123456'", finds("series", "new")),
    Block("'AccessionNumber': '12345?'", finds("series", "new")),
    Block("'SeriesDescription': 'T2 AXIAL'", finds("series", "new")),
    Block("'SeriesDescription': 'T2 AX*'", finds("series", "new")),
    Block("{'Modality': 'CT'}", finds("series", "new")),
    Block("client.search_for_instances()", finds_all("instances")),
    Block("client.search_for_instances(\n", finds_loop("instances")),
    Block("'SOPClassUID'", finds("instances", "new")),
    Block("client.retrieve_study('", lambda names, archive: names["instances"] == [archive.loop.dataset]),
    Block("client.retrieve_series(", lambda names, archive: names["instances"] == [archive.loop.dataset]),
    Block("client.retrieve_instance(", gives("instance", "loop.dataset")),
    Block("'application/dicom', '1.2.840.10008.1.2.4.90'", gives("instance", "jpeg_2000.dataset"), subject="jpeg_2000"),
    Block("(('image/jp2', '1.2.840.10008.1.2.4.90'", gives("instance", "jpeg_2000_frames"), subject="jpeg_2000"),
    Block("client.retrieve_study_metadata('", finds_loop("metadata")),
    Block("client.retrieve_series_metadata(", finds_loop("metadata")),
    Block(
        "client.retrieve_instance_metadata(",
        lambda names, archive: uid(names["metadata"], "00080018") == archive.loop.uids[2],
    ),
    Block(
        "load_json_dataset",
        lambda names, archive: [one.SOPInstanceUID for one in names["metadata_datasets"]] == [archive.loop.uids[2]],
    ),
    Block("frame_numbers=[1, 2]\n", lambda names, _: [len(frame) for frame in names["frames"]] == [240 * 320 * 3] * 2),
    Block("media_types=('image/*', )", lambda names, archive: archive.are_jpeg(names["frames"])),
    Block("media_types=('image/jp2', 'image/x-jpls', )", gives("frames", "jpeg_2000_frames"), subject="jpeg_2000"),
    Block("('image/x-jpls', '1.2.840.10008.1.2.4.80', )", gives("frames", "jpeg_2000_frames"), subject="jpeg_2000"),
    Block("media_types=('image/jpeg', )", lambda names, archive: archive.are_jpeg(names["frames"])),
    Block("np.array(image)", lambda names, archive: names["array"].shape == (240, 320, 3)),
    Block("client.retrieve_bulkdata(", lambda names, archive: names["data"] == [archive.new.dataset.PixelData]),
    Block("media_types=('image/png', )", lambda names, archive: names["frames"].startswith(b"\x89PNG")),
    Block("client.retrieve_instance_frames_rendered(", lambda names, _: names["frames"].startswith(b"\xff\xd8\xff")),
]
BLOCKS = [*CONNECTING, FOLDER, *USING]

# What Orthanc cannot do, by the text of the block. Everything else runs on it too.
ORTHANC_LACKS = ("{'SeriesDescription': 'T2 AXIAL'}", "{'SeriesDescription': 'T2 AX*'}")


def calls_of(block: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Call):
            yield node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)


def test_the_table_has_each_block_once_and_in_order():
    assert len(PYTHON) == len(BLOCKS)
    for block, entry in zip(PYTHON, BLOCKS, strict=True):
        assert entry.contains in block


def test_nothing_of_the_original_guide_is_missing():
    assert len(PYTHON) == ORIGINAL_BLOCKS - len(SLIPS)
    assert Counter(name for block in PYTHON for name in calls_of(block)) == ORIGINAL
    assert not any("dicomweb_client" in block for block in PYTHON)


# Connecting -----------------------------------------------------------------------------------------------------------


@dataclass
class Site:
    """A server that takes the place of the guide's, and what is put in for the guide's values."""

    url: str
    studies: set[str]
    substitutions: dict[str, str] = field(default_factory=dict)


def _token(request: Request) -> Reply:
    """Google's token endpoint: gives a token for a signed assertion of a service account."""
    known = b"jwt-bearer" in request.body and b"assertion=" in request.body
    answer = {"access_token": "google-token", "expires_in": 3600} if known else {}
    return Reply.json(answer, 200 if known else 400, content_type="application/json")


@pytest.fixture
def google_key(answering, tmp_path, monkeypatch) -> None:
    """Application-default credentials: a service account whose token endpoint is here."""
    private = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key = {
        "type": "service_account",
        "project_id": "project",
        "private_key_id": "1",
        "private_key": private.decode(),
        "client_email": "robot@example.org",
        "token_uri": f"{answering(_token).url}/token",
    }
    (tmp_path / "google.json").write_text(json.dumps(key))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "google.json"))


@pytest.fixture
def sites(request, serve, filled_folder, content, tmp_path) -> Callable[[str], Site]:
    """Starts the server that a connecting block needs."""
    expected = content.uids("study")

    def start(kind: str) -> Site:
        if kind == "prefixes":
            url = serve(filled_folder, behaviour="dicomcloud").url
            # This server gives twelve rows at once.
            rows = requests.get(f"{url}/qidors/studies", timeout=30).json()
            return Site(url, studies(rows), {"https://dicomcloud.azurewebsites.net": url})
        options: dict[str, Any] = {}
        substitutions: dict[str, str] = {}
        if kind == "basic":
            options["auth"] = ("myusername", "mypassword")
        elif kind == "bearer":
            options["auth"] = "mytoken"
        elif kind == "google":
            options["auth"] = "google-token"
            request.getfixturevalue("google_key")
        elif kind == "certificates":
            authority = trustme.CA()
            for name, certificate in (("server", "127.0.0.1"), ("client", "client@example.org")):
                authority.issue_cert(certificate).private_key_and_cert_chain_pem.write_to_path(
                    str(tmp_path / f"{name}.pem")
                )
            authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
            options["tls"] = TLS(str(tmp_path / "server.pem"), client_ca=str(tmp_path / "ca.crt"))
            substitutions["/path/to/ca.crt"] = str(tmp_path / "ca.crt")
            substitutions["/path/to/cert.pem"] = str(tmp_path / "client.pem")
        url = serve(filled_folder, **options).url
        return Site(url, expected, {"https://mydicomwebserver.com": url, **substitutions})

    return start


def substituted(block: str, substitutions: dict[str, str]) -> str:
    for old, new in substitutions.items():
        block = block.replace(old, new)
    return block


def execute(block: str, names: Names, number: int) -> None:
    exec(compile(block, f"user-guide.rst, block {number}", "exec"), names)


@pytest.mark.parametrize("number", range(len(CONNECTING)), ids=[str(block.server) for block in CONNECTING])
def test_connecting(sites, number):
    entry = CONNECTING[number]
    site = sites(str(entry.server))
    names: Names = {}
    execute(substituted(PYTHON[number], site.substitutions), names, number)
    assert isinstance(names["client"], DICOMClient)
    assert entry.check(names, site)
    if entry.server not in ("plain", "prefixes", "certificates"):
        with pytest.raises(requests.HTTPError) as caught:
            DICOMwebClient(site.url).search_for_studies()
        assert caught.value.status == 401


# Using ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(content, make_image, tmp_path) -> Any:
    """What the guide's archive holds: a JPEG loop, a JPEG 2000 image, and what its first block stores."""
    new = tmp_path / "file.dcm"
    dataset = pydicom.dcmread(io.BytesIO(make_image(3, seed="guide")))
    dataset.PatientID, dataset.AccessionNumber = "ABC123", "123456"
    dataset.save_as(new, enforce_file_format=True)
    held = type(content.loop)(new.read_bytes())
    first = [content.loop, content.jpeg_2000]

    def has(given: Any) -> bool:
        return str(given.SOPInstanceUID) == held.uids[2]

    def are_jpeg(frames: list[bytes]) -> bool:
        # A server may give what is stored, or make lossless JPEG of it, which the plain name means (PS3.18 8.7.3).
        return len(frames) == 2 and all(frame.startswith(b"\xff\xd8\xff") for frame in frames)

    return SimpleNamespace(
        are_jpeg=are_jpeg,
        loop=content.loop,
        jpeg_2000=content.jpeg_2000,
        jpeg_2000_frames=content.jpeg_2000.frames(),
        new=held,
        first=[one.content for one in first],
        studies={one.uids[0] for one in (*first, held)},
        path=str(new),
        has=has,
    )


@pytest.fixture(
    params=["folder", "server", pytest.param("orthanc", marks=pytest.mark.xdist_group("suite-orthanc-real"))]
)
def place(request, archive, tmp_path, serve) -> tuple[str, str]:
    """An archive that holds what the guide finds: its name and its address."""
    folder = tmp_path / "archive"
    if request.param == "orthanc":
        server = request.getfixturevalue("orthanc")
        for one in archive.first:
            server.call("POST", "/instances", one)
        return request.param, server.url
    folder.mkdir()
    for number, one in enumerate(archive.first):
        (folder / f"{number}.dcm").write_bytes(one)
    return request.param, str(folder) if request.param == "folder" else serve(folder).url


def test_using(place, archive):
    """All blocks from the folder's on, in one namespace."""
    kind, address = place
    names: Names = {}
    ran = []
    for number, entry in enumerate([FOLDER, *USING], start=len(CONNECTING)):
        subject = getattr(archive, entry.subject)
        substitutions = {"/path/to/file.dcm": archive.path, "/path/to/directory": address}
        substitutions.update(zip((STUDY, SERIES, INSTANCE), subject.uids, strict=True))
        if "retrieve_bulkdata" in entry.contains:
            row = names["client"].retrieve_instance_metadata(*archive.new.uids)
            substitutions["https://mydicomwebserver.com/studies/..."] = row["7FE00010"]["BulkDataURI"]
        if entry is FOLDER and kind != "folder":
            # The block itself ran on a folder; what follows is to run on this server.
            names["client"] = DICOMwebClient(address, retry=RetryPolicy(initial_delay=0.01))
            continue
        block = substituted(PYTHON[number], substitutions)
        if kind == "orthanc" and any(text in block for text in ORTHANC_LACKS):
            # It does not decode escapes in queries.
            with pytest.raises(ValueError, match="does not decode"):
                execute(block, names, number)
        else:
            execute(block, names, number)
            assert entry.check(names, archive), f"block {number}: {entry.contains}"
        ran.append(number)
    assert len(ran) == len(USING) + (kind == "folder")
    assert isinstance(names["array"], np.ndarray)


def test_what_the_guide_says_beside_its_blocks(place, archive):
    _, address = place
    client = DICOMwebClient(address) if "://" in address else DICOMfileClient(address)
    with client:
        client.store_instances([archive.path])
        rows = client.search_for_studies(get_remaining=True)
        assert studies(rows) == studies(list(client.iter_search_for_studies())) == archive.studies
        with pytest.raises(ValueError, match="PatientIdentifier"):
            client.search_for_studies(search_filters={"PatientIdentifier": "ABC123"})
        (instance,) = client.iter_instances(Instance.from_path(archive.path).reference)
        assert instance.content == Path(archive.path).read_bytes()
        for options in SLIPS:
            with pytest.raises(TypeError, match="sop_instance_uid"):
                client.retrieve_instance(
                    study_instance_uid=archive.loop.uids[0], series_instance_uid=archive.loop.uids[1], **options
                )


def test_folders_on_other_filesystems():
    block = PYTHON[len(CONNECTING)]
    names: Names = {}
    content = clone(sample_file("CT_small.dcm").read_bytes(), "guide on memory")
    fsspec.filesystem("memory").pipe_file("/guide/one.dcm", content)
    try:
        execute(substituted(block, {"/path/to/directory": "memory://guide"}), names, len(CONNECTING))
        assert len(names["client"].search_for_studies()) == 1
    finally:
        fsspec.filesystem("memory").rm("/guide", recursive=True)
