"""The behaviour ``"orthanc"`` of the test server, held against the real one: the same requests, the same outcome."""

from __future__ import annotations

import gzip
import http.client
import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from dicomweb_io.elements import Instance
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.proxy import FaultyProxy
from dicomweb_io.testing.samples import clone, make_study, sample_file
from tests.servers.exactly import Answer, ask, same_content
from tests.unit.testing.asking import body_of

FILES = ["CT_small.dcm", "MR_small_implicit.dcm", "examples_ybr_color.dcm", "chrGreek.dcm", "test-SR.dcm", "rtdose.dcm"]
CT = Instance.from_path(sample_file("CT_small.dcm")).reference.uri
IMPLICIT = Instance.from_path(sample_file("MR_small_implicit.dcm")).reference.uri
LOOP = Instance.from_path(sample_file("examples_ybr_color.dcm")).reference.uri
REPORT = Instance.from_path(sample_file("test-SR.dcm")).reference.uri
STUDY = "/".join(CT.split("/")[:2])
DICOM = 'multipart/related; type="application/dicom"'
MULTIPART = f"{DICOM}; boundary=a-boundary"


def read(name: str) -> bytes:
    return sample_file(name).read_bytes()


@pytest.fixture(scope="module")
def pair(orthanc_server, tmp_path_factory) -> Iterator[tuple[str, str]]:
    """The real server and the one with its behaviour, with the same content."""
    with same_content(orthanc_server, FILES, tmp_path_factory.mktemp("archive")) as origins:
        yield origins[0] + "/dicom-web", origins[1] + "/dicom-web"


def both(pair, path: str, **options) -> tuple[Answer, Answer]:
    real, fake = (ask(url, path, **options) for url in pair)
    return real, fake


def store_both(pair, *contents: bytes, path: str = "studies", **headers: str) -> tuple[Answer, Answer]:
    return both(pair, path, method="POST", body=body_of(*contents), **{"Content_Type": MULTIPART, **headers})


SEARCHES = [
    "studies",
    "series",
    "instances",
    f"{STUDY}/series",
    f"{STUDY}/instances",
    "studies/1.2.3/series",
    "studies?limit=2",
    "studies?limit=2&offset=4",
    "studies?offset=100",
    "studies?limit=0",
    "studies?limit=-1",
    "studies?limit=abc",
    "studies?limit=%31",
    "studies?PatientID=nobody",
    "studies?PatientID=1CT1",
    "studies?PatientID=1ct1",
    "studies?PatientID=1CT%31",
    "studies?PatientID=1*",
    "studies?PatientID=%2A",
    "studies?PatientID=?CT1",
    "studies?00100020=1CT1",
    "studies?PatientName=compressedsamples^ct1",
    "studies?PatientName=CompressedSamples%5ECT1",
    "studies?StudyDate=20040101-20041231",
    "studies?StudyDate=-20040601",
    "studies?StudyDate=20040601-",
    "studies?StudyTime=0700-0800",
    "studies?PatientBirthDate=-20040601",
    "studies?StudyInstanceUID=1.3.6.1.4.1.5962.1.2.1.20040119072730.12322,1.2.999.999.99.9.9999.8888",
    "studies?StudyInstanceUID=1.3.6.1.4.1.5962.1.2.1.20040119072730.12322%5C1.2.999.999.99.9.9999.8888",
    "studies?PatientName=*",
    "studies?PatientName=c*t1",
    "studies?StudyDescription=e+1",
    "studies?StudyDescription=*",
    "studies?PatientSex=",
    "studies?fuzzymatching=true&PatientName=comp*",
    "instances?NumberOfFrames=30",
    "studies?NoSuchKeyword=1",
    "studies?Modality=CT",
    "studies?Modality=",
    "studies?ModalitiesInStudy=CT,MR",
    "studies?RequestAttributesSequence.ScheduledProcedureStepID=1",
    "series?Modality=CT",
    "series?Modality=CT,MR",
    "instances?SOPClassUID=1.2.840.10008.5.1.4.1.1.2",
    "instances?PatientID=1CT1&includefield=Rows",
    "studies/count",
]


@pytest.mark.parametrize("path", SEARCHES)
def test_searches(pair, path):
    real, fake = both(pair, path)
    assert fake.status == real.status
    if real.status == 200:
        tag = "0020000D" if path.startswith("studies") and "/" not in path.partition("?")[0] else "0020000E"
        uids = [sorted(row[tag]["Value"][0] for row in answer.json()) for answer in (real, fake)]
        assert len(uids[0]) == len(uids[1])
        if "limit" not in path:
            assert uids[0] == uids[1]
        assert fake.media_type == real.media_type
    for name in ("x-total-count", "warning", "link"):
        assert (name in fake.headers) is (name in real.headers)


@pytest.mark.parametrize("accept", ["text/html", "image/png", "application/dicom+json", "*/*"])
def test_searches_are_json_whatever_was_asked_for(pair, accept):
    real, fake = both(pair, "studies", Accept=accept)
    assert (fake.status, fake.media_type) == (real.status, real.media_type)


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        (CT, f"{DICOM}; transfer-syntax=*"),
        (CT, DICOM),
        (CT, "*/*"),
        (CT, "multipart/related"),
        (CT, "application/dicom"),
        (CT, "image/jpeg"),
        (CT, f"{DICOM}, */*;q=0.1"),
        (CT, f"{DICOM}; transfer-syntax=*, */*;q=0.1"),
        (CT, f"{DICOM}; transfer-syntax=*;q=0.5"),
        (CT, f"image/jpeg, {DICOM}"),
        (CT, f"{DICOM}; transfer-syntax=1.2.840.10008.1.2.4.70, {DICOM}; transfer-syntax=*"),
        (CT, f"{DICOM}; transfer-syntax=1.2.840.10008.1.2.4.201"),
        (IMPLICIT, f"{DICOM}; transfer-syntax=*"),
        (LOOP, f"{DICOM}; transfer-syntax=*"),
        (STUDY, f"{DICOM}; transfer-syntax=*"),
        ("studies/1.2.3", f"{DICOM}; transfer-syntax=*"),
        (f"{CT}.9", f"{DICOM}; transfer-syntax=*"),
    ],
)
def test_objects(pair, path, accept):
    real, fake = both(pair, path, Accept=accept)
    assert fake.status == real.status
    assert fake.media_type == real.media_type
    if real.status == 200:
        assert len(fake.contents) == len(real.contents)
        if accept.endswith("*") and "transfer" in accept:
            assert sorted(fake.contents) == sorted(real.contents)
        for answer in (real, fake):
            assert '"' not in answer.headers["content-type"].rpartition("boundary=")[2]
        assert fake.tells_its_length is real.tells_its_length


def test_several_instances_end_with_the_connection(pair, tmp_path):
    contents = [path.read_bytes() for path in make_study(tmp_path, instances=3, size=100, seed="several")]
    study = Instance.from_bytes(contents[0]).reference.study_instance_uid
    store_both(pair, *contents)
    for answer in both(pair, f"studies/{study}", Accept=f"{DICOM}; transfer-syntax=*"):
        assert sorted(answer.contents) == sorted(contents)
        assert not answer.tells_its_length
        assert answer.headers["connection"].lower() == "close"
    assert [answer.status for answer in both(pair, f"studies/{study}", method="DELETE")] == [405, 405]


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        (f"{CT}/metadata", "application/dicom+json"),
        (f"{CT}/metadata", "*/*"),
        (f"{STUDY}/metadata", "application/json"),
        ("studies/1.2.3/metadata", "application/dicom+json"),
        (f"{CT}/frames/1", 'multipart/related; type="application/octet-stream"'),
        (f"{LOOP}/frames/3,1", 'multipart/related; type="application/octet-stream"; transfer-syntax=*'),
        (f"{CT}/frames/2", 'multipart/related; type="application/octet-stream"'),
        (f"{CT}/frames/x", 'multipart/related; type="application/octet-stream"'),
        (f"{CT}/frames/1", "application/octet-stream"),
        (f"{CT}/thumbnail", "*/*"),
        (f"{CT}/nonsense", "*/*"),
    ],
)
def test_other_resources(pair, path, accept):
    real, fake = both(pair, path, Accept=accept)
    assert fake.status == real.status
    if real.status == 200 and "metadata" in path:
        assert fake.media_type == real.media_type
        for answer in (real, fake):
            row = answer.json()[0]
            assert "00083002" not in row
            assert row["7FE00010"]["BulkDataURI"].startswith("http://")
    elif real.status == 200:
        assert fake.contents == real.contents


def outcome(answer: Answer) -> tuple[int, list[str], list[int]]:
    content = answer.json()
    stored = [item["00081155"]["Value"][0] for item in content.get("00081199", {}).get("Value", [])]
    reasons = [item["00081197"]["Value"][0] for item in content.get("00081198", {}).get("Value", [])]
    return answer.status, stored, reasons


GARBAGE = b"this is not DICOM at all"
NAMELESS = read("SC_rgb_jls_lossy_line.dcm")


@pytest.mark.parametrize(
    "contents",
    [
        [read("CT_small.dcm")],
        [read("CT_small.dcm")[:-2] + b"\1\1"],
        [clone(read("CT_small.dcm"), "mixed"), GARBAGE],
        [GARBAGE],
        [NAMELESS],
        [read("dicomdirtests/DICOMDIR")],
        [read("MR_truncated.dcm")],
        [],
    ],
    ids=["again", "other bytes", "mixed", "garbage", "no study", "DICOMDIR", "truncated", "empty"],
)
def test_stores(pair, contents):
    real, fake = store_both(pair, *contents)
    assert outcome(fake) == outcome(real)


def test_stores_into_a_given_study(pair):
    real, fake = store_both(pair, read("CT_small.dcm"), clone(read("CT_small.dcm"), "elsewhere"), path=STUDY)
    assert outcome(fake) == outcome(real)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Type": "multipart/related; boundary=a-boundary"},
        {"Content_Type": "application/dicom"},
        {"Accept": "application/dicom+xml"},
    ],
)
def test_kinds_of_store_requests(pair, headers):
    real, fake = store_both(pair, read("CT_small.dcm"), **headers)
    assert fake.status == real.status
    if real.status == 200:
        assert fake.media_type == real.media_type


def test_compressed_bodies_vanish(pair):
    body = gzip.compress(body_of(clone(read("CT_small.dcm"), "compressed")))
    headers = {"Content_Type": MULTIPART, "Content_Encoding": "gzip"}
    real, fake = both(pair, "studies", method="POST", body=body, **headers)
    assert outcome(fake) == outcome(real) == (200, [], [])


def test_head_and_compression(pair):
    real, fake = both(pair, "studies", method="HEAD")
    assert fake.status == real.status
    real, fake = both(pair, "instances", Accept_Encoding="gzip")
    assert fake.headers["content-encoding"] == real.headers["content-encoding"] == "gzip"
    assert len(json.loads(gzip.decompress(fake.body))) == len(json.loads(gzip.decompress(real.body)))


def test_errors_have_no_media_type(pair):
    for answer in both(pair, "studies/1.2.3", Accept=DICOM):
        assert answer.json()["HttpStatus"] == answer.status == 404


def test_faults_below_http_in_front_of_the_real_server(pair):
    where = urlsplit(pair[0])
    with FaultyProxy((where.hostname, where.port), [fault("truncate", position=1000)]) as proxy:
        url = f"http://127.0.0.1:{proxy.port}/dicom-web"
        with pytest.raises(http.client.IncompleteRead):
            ask(url, CT, Accept=f"{DICOM}; transfer-syntax=*")
        assert ask(url, CT, Accept=f"{DICOM}; transfer-syntax=*").contents == [read("CT_small.dcm")]
