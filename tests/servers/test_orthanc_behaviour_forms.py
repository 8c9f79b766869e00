"""The behaviour ``"orthanc"`` held against the real server: objects, frames, bulk data, pictures, its own interface."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import pydicom
import pytest

from dicomweb_io.elements import Instance
from dicomweb_io.testing.samples import clone, sample_file
from dicomweb_io.testing.server.parts import writable
from tests.servers.exactly import Answer, ask, same_content
from tests.unit.testing.asking import body_of

FILES = (
    "CT_small.dcm", "MR_small_implicit.dcm", "examples_ybr_color.dcm", "JPEG2000.dcm", "test-SR.dcm",
    "SC_rgb_rle.dcm", "waveform_ecg.dcm",
)  # fmt: skip
URIS = {name: Instance.from_path(sample_file(name)).reference.uri for name in FILES}
CT, JPEG, JPEG_2000, REPORT, WAVES = (
    URIS[name] for name in ("CT_small.dcm", "examples_ybr_color.dcm", "JPEG2000.dcm", "test-SR.dcm", "waveform_ecg.dcm")
)
DICOM = 'multipart/related; type="application/dicom"'
OCTETS = 'multipart/related; type="application/octet-stream"'
SYNTAX = "1.2.840.10008.1.2"


@pytest.fixture(scope="module")
def pair(orthanc_server, tmp_path_factory) -> Iterator[tuple[str, str]]:
    """The origins of the real server and of the one with its behaviour, with the same content."""
    with same_content(orthanc_server, FILES, tmp_path_factory.mktemp("archive")) as origins:
        yield origins


def both(pair, path: str, **options) -> tuple[Answer, Answer]:
    real, fake = (ask(origin, path, **options) for origin in pair)
    return real, fake


@pytest.mark.parametrize(
    ("name", "syntax"),
    [
        ("CT_small.dcm", ""),
        ("CT_small.dcm", ".1.99"),
        ("CT_small.dcm", ".4.80"),
        ("CT_small.dcm", ".4.81"),
        ("CT_small.dcm", ".4.90"),
        ("CT_small.dcm", ".4.91"),
        ("CT_small.dcm", ".4.201"),
        ("CT_small.dcm", ".5"),
        ("JPEG2000.dcm", ".1"),
        ("SC_rgb_rle.dcm", ".1"),
        ("MR_small_implicit.dcm", ".1"),
    ],
)
def test_transfer_syntaxes(pair, name, syntax):
    accept = f"{DICOM}; transfer-syntax={SYNTAX}{syntax}"
    real, fake = both(pair, f"/dicom-web/{URIS[name]}", Accept=accept)
    if not writable(f"{SYNTAX}{syntax}") and real.status == 200:
        # Its encoder is not installed here.
        assert fake.status == 400
        return
    assert (fake.status, fake.media_type) == (real.status, real.media_type)
    if real.status == 200:
        ((_, first),), ((_, second),) = real.parts, fake.parts
        datasets = [pydicom.dcmread(io.BytesIO(content)) for content in (first, second)]
        assert {one.file_meta.TransferSyntaxUID for one in datasets} == {f"{SYNTAX}{syntax}"}
        assert (datasets[0].pixel_array == datasets[1].pixel_array).all()
        assert len(fake.boundary) == len(real.boundary) == 70


@pytest.mark.parametrize(
    ("uri", "frames", "accept"),
    [
        (CT, "1", OCTETS),
        (CT, "1", "*/*"),
        (CT, "1", "multipart/related"),
        (CT, "1", "*/*; transfer-syntax=*"),
        (CT, "1", 'multipart/related; type="image/*"'),
        (CT, "1", "application/octet-stream"),
        (CT, "1,1", OCTETS),
        (CT, "0", OCTETS),
        (CT, "1,2", OCTETS),
        (JPEG, "2", OCTETS),
        (JPEG, "2", f"{OCTETS}; transfer-syntax=*"),
        (JPEG_2000, "1", OCTETS),
        (JPEG_2000, "1", f"{OCTETS}; transfer-syntax=*"),
        (URIS["SC_rgb_rle.dcm"], "1", f"{OCTETS}; transfer-syntax=*"),
        (REPORT, "1", OCTETS),
    ],
)
def test_frames(pair, uri, frames, accept):
    real, fake = both(pair, f"/dicom-web/{uri}/frames/{frames}", Accept=accept)
    assert (fake.status, fake.media_type) == (real.status, real.media_type)
    if real.status == 200:
        assert fake.root == real.root
        # Decoded colours of JPEG images are RGB there.
        same = bytes if (uri, accept) != (JPEG, OCTETS) else len
        assert [same(content) for _, content in fake.parts] == [same(content) for _, content in real.parts]
        for (first, _), (second, _) in zip(real.parts, fake.parts, strict=True):
            assert sorted(second) == sorted(first)
            assert second["content-type"] == first["content-type"]
            assert urlsplit(second["content-location"]).path == urlsplit(first["content-location"]).path


@pytest.mark.parametrize(
    ("uri", "path", "accept"),
    [
        (CT, "bulk/7fe00010", "*/*"),
        (CT, "bulk/7FE00010", OCTETS),
        (CT, "bulk/00100020", "*/*"),
        (CT, "bulk/00400275", "*/*"),
        (CT, "bulk/99990010", "*/*"),
        (CT, "bulkdata/7FE00010", "*/*"),
        (CT, "bulk/7fe00010", "application/octet-stream"),
        (JPEG, "bulk/7fe00010", "*/*"),
        (WAVES, "bulk/54000100/1/54001010", "*/*"),
        (WAVES, "bulk/54000100/9/54001010", "*/*"),
        (CT, "bulkdata", "*/*"),
        (CT, "pixeldata", "*/*"),
    ],
)
def test_bulk_data(pair, uri, path, accept):
    real, fake = both(pair, f"/dicom-web/{uri}/{path}", Accept=accept, Range="bytes=0-9")
    assert (fake.status, fake.media_type) == (real.status, real.media_type)
    if real.status == 200:
        assert fake.contents == real.contents
        assert [sorted(headers) for headers, _ in fake.parts] == [sorted(headers) for headers, _ in real.parts]


@pytest.mark.parametrize("uri", [CT, JPEG, WAVES, REPORT])
def test_metadata_refers_to_bulk_data_alike(pair, uri):
    def addresses(row: dict, path: str = "") -> dict[str, str]:
        found = {}
        for tag, element in row.items():
            if "BulkDataURI" in element:
                found[f"{path}{tag}"] = urlsplit(element["BulkDataURI"]).path
            for number, item in enumerate(element.get("Value") or () if element["vr"] == "SQ" else (), start=1):
                found.update(addresses(item, f"{path}{tag}.{number}."))
        return found

    real, fake = (json.loads(answer.body)[0] for answer in both(pair, f"/dicom-web/{uri}/metadata"))
    assert addresses(fake) == addresses(real)
    assert ("7FE00010" in fake) is ("7FE00010" in real)
    assert "00083002" not in fake
    assert "InlineBinary" not in json.dumps(fake)


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        (f"{CT}/rendered", "*/*"),
        (f"{CT}/rendered", "image/png"),
        (f"{CT}/rendered", "image/*"),
        (f"{CT}/rendered", "image/gif"),
        (f"{CT}/rendered", "image/jpeg, image/png;q=0.5"),
        (f"{CT}/rendered?window=40,400", "*/*"),
        (f"{CT}/rendered?window=40,400,linear", "*/*"),
        (f"{CT}/rendered?quality=0", "*/*"),
        (f"{CT}/rendered?annotation=patient&nonsense=1", "*/*"),
        (f"{CT}/rendered?viewport=10", "*/*"),
        (f"{CT}/rendered?viewport=10,10", "image/png"),
        (f"{CT}/frames/1/rendered", "*/*"),
        (f"{CT}/frames/2/rendered", "*/*"),
        (f"{CT}/thumbnail", "*/*"),
        (f"{CT}/frames/1/thumbnail", "*/*"),
        (f"{JPEG_2000}/rendered", "*/*"),
        (f"{REPORT}/rendered", "*/*"),
        ("/".join(CT.split("/")[:2]) + "/rendered", "*/*"),
        ("/".join(CT.split("/")[:4]) + "/rendered", "*/*"),
    ],
)
def test_pictures(pair, path, accept):
    real, fake = both(pair, f"/dicom-web/{path}", Accept=accept)
    assert (fake.status, fake.media_type) == (real.status, real.media_type)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("OPTIONS", "/dicom-web/studies"),
        ("HEAD", "/dicom-web/studies"),
        ("PUT", "/dicom-web/studies"),
        ("GET", "/dicom-web/capabilities"),
        ("GET", "/dicom-web/studies/count"),
        ("GET", "/dicom-web/studies"),
    ],
)
def test_other_requests(pair, method, path):
    real, fake = both(pair, path, method=method)
    assert (fake.status, fake.media_type) == (real.status, real.media_type)
    assert fake.headers["keep-alive"] == real.headers["keep-alive"] == "timeout=1"


def test_rows_name_their_character_set_and_no_more_for_all(pair):
    for path in ("studies", "studies?includefield=all"):
        answers = both(pair, f"/dicom-web/{path}")
        for row in (row for answer in answers for row in json.loads(answer.body)):
            assert row["00080005"] == {"vr": "CS", "Value": ["ISO_IR 192"]}
            assert "00080070" not in row


@pytest.mark.parametrize("accept", ["gzip", "deflate", "gzip, deflate", "br"])
def test_compression(pair, accept):
    real, fake = both(pair, "/dicom-web/studies", Accept_Encoding=accept)
    assert fake.headers.get("content-encoding") == real.headers.get("content-encoding")


# Its own interface ----------------------------------------------------------------------------------------------------


def test_its_own_interface(pair):
    answers = both(pair, "/changes?limit=100")
    logs = [json.loads(answer.body) for answer in answers]
    names = ("ChangeType", "ID", "Path", "ResourceType")
    real, fake = ({tuple(one[name] for name in names) for one in log["Changes"]} for log in logs)
    assert fake == real
    assert {tuple(sorted(log)) for log in logs} == {("Changes", "Done", "Last")}
    assert {frozenset(one) for log in logs for one in log["Changes"]} == {frozenset({*names, "Date", "Seq"})}
    for uid in (CT.split("/")[1], CT.split("/")[3], CT.split("/")[5], "1CT1", "1.2.3"):
        real, fake = both(pair, "/tools/lookup", method="POST", body=uid.encode())
        assert json.loads(fake.body) == json.loads(real.body)
        for found in json.loads(real.body):
            real, fake = (json.loads(answer.body) for answer in both(pair, found["Path"]))
            for name in ("ID", "Type", "ParentPatient", "ParentStudy", "ParentSeries"):
                assert fake.get(name) == real.get(name)
    for path in ("/studies/nobody", "/instances/nobody/file", "/nonsense"):
        real, fake = both(pair, path)
        assert fake.status == real.status == 404


def test_deleted_and_stored_again_by_either_interface(pair):
    content = clone(sample_file("CT_small.dcm").read_bytes(), "comes and goes")
    study = Instance.from_bytes(content).reference.study_instance_uid
    store = {"method": "POST", "body": body_of(content), "Content_Type": f"{DICOM}; boundary=a-boundary"}
    kinds = []
    for origin in pair:
        last = ask(origin, "changes?last").json()["Last"]
        told = []
        for _ in range(2):
            assert ask(origin, "dicom-web/studies", **store).status == 200
            changes = ask(origin, f"changes?since={last}&limit=100").json()
            told.append([one["ChangeType"] for one in changes["Changes"]])
            (found,) = ask(origin, "tools/lookup", method="POST", body=study.encode()).json()
            assert ask(origin, found["Path"], method="DELETE").status == 200
            assert ask(origin, f"dicom-web/studies?StudyInstanceUID={study}").json() == []
        told.append([one["ChangeType"] for one in ask(origin, f"changes?since={last}").json()["Changes"]])
        kinds.append(told)
    assert kinds[1] == kinds[0]
