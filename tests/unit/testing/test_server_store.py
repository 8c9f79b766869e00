"""Storing into and deleting from the test server: what is answered, what is kept; behaviour; faults."""

from __future__ import annotations

import gzip
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
import pytest
import requests
from defusedxml import ElementTree

from dicomweb_io.elements import Instance
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import clone, sample_file, synthetic_instance
from tests.faults.failure_cases import FAILURE_REASONS
from tests.unit.testing.asking import ANY, body_of, get, parts, pixels, store

CT = sample_file("CT_small.dcm").read_bytes()
MR = sample_file("MR_small.dcm").read_bytes()
IMPLICIT = clone(sample_file("MR_small_implicit.dcm").read_bytes(), "implicit")
OTHER_CT = CT[:-2] + b"\1\1"
GARBAGE = b"this is not DICOM at all, whatever its part says"
STORED, FAILED, OTHER = "00081199", "00081198", "0008119A"


def sequence(answer: requests.Response, tag: str) -> list[dict]:
    return answer.json().get(tag, {}).get("Value", [])


def instances(answer: requests.Response, tag: str) -> list[str]:
    return [item["00081155"]["Value"][0] for item in sequence(answer, tag)]


def reasons(answer: requests.Response, tag: str = FAILED) -> list[int]:
    return [item["00081197"]["Value"][0] for item in sequence(answer, tag)]


def uid(content: bytes) -> str:
    return str(Instance.from_bytes(content).reference.sop_instance_uid)


def kept(server, content: bytes) -> bytes | None:
    """The bytes that the server gives for the instance; None if it does not have it."""
    prefix = f"/{server.behaviour.wado_prefix}" if server.behaviour.wado_prefix else ""
    answer = get(f"{server.url}{prefix}/{Instance.from_bytes(content).reference.uri}", ANY)
    return None if answer.status_code == 404 else parts(answer)[0]


def test_what_is_stored_comes_back_byte_for_byte(serve, folder):
    server = serve(folder)
    answer = store(server, CT, MR)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/dicom+json"
    assert instances(answer, STORED) == [uid(CT), uid(MR)]
    assert FAILED not in answer.json()
    assert sequence(answer, STORED)[0]["00081190"]["Value"] == [f"{server.url}/{Instance.from_bytes(CT).reference.uri}"]
    assert kept(server, CT) == CT
    assert kept(server, MR) == MR
    assert len(requests.get(f"{server.url}/instances", timeout=30).json()) == 2
    assert len(list(folder.rglob("*.dcm"))) == 2
    assert server.errors == []


def test_the_answer_as_xml(serve, folder):
    answer = store(serve(folder), CT, GARBAGE, headers={"Accept": "application/dicom+xml"})
    assert answer.headers["Content-Type"] == "application/dicom+xml"
    root = ElementTree.fromstring(answer.content)
    assert root.find(f"DicomAttribute[@tag='{STORED}']/Item/DicomAttribute[@tag='00081155']/Value").text == uid(CT)
    assert root.find(f"DicomAttribute[@tag='{OTHER}']/Item/DicomAttribute[@tag='00081197']/Value").text == "49152"


def test_a_single_instance_without_parts(serve, folder):
    server = serve(folder)
    answer = store(server, data=CT, headers={"Content-Type": "application/dicom"})
    assert answer.status_code == 200
    assert kept(server, CT) == CT


def test_partial_success_says_which(serve, folder):
    server = serve(folder)
    answer = store(server, CT, GARBAGE, MR)
    assert answer.status_code == 202
    assert instances(answer, STORED) == [uid(CT), uid(MR)]
    assert reasons(answer, OTHER) == [0xC000]
    alone = store(server, GARBAGE)
    assert alone.status_code == 409
    assert STORED not in alone.json()


def test_truncated_files_are_refused_by_name(serve, folder):
    server = serve(folder)
    answer = store(server, CT[:-1000])
    assert answer.status_code == 409
    assert instances(answer, FAILED) == [uid(CT)]
    assert kept(server, CT) is None


def test_the_study_of_the_address_counts(serve, folder):
    server = serve(folder)
    study = Instance.from_bytes(CT).reference.study_instance_uid
    answer = store(server, CT, MR, path=f"/studies/{study}")
    assert answer.status_code == 202
    assert instances(answer, FAILED) == [uid(MR)]
    assert reasons(answer) == [0x0110]
    assert store(server, MR, path=f"/studies/{study}").status_code == 409


def test_the_same_again_is_fine_and_another_object_is_a_conflict(serve, folder):
    server = serve(folder)
    for _ in range(2):
        assert store(server, CT).status_code == 200
    answer = store(server, OTHER_CT)
    assert (answer.status_code, reasons(answer)) == (409, [0x0110])
    assert kept(server, CT) == CT


@pytest.mark.parametrize(
    ("headers", "data", "status"),
    [
        ({"Content-Type": "multipart/related; boundary=a-boundary"}, None, 415),
        ({"Content-Type": 'multipart/related; type="application/dicom+xml"; boundary=a-boundary'}, None, 415),
        ({"Content-Type": "text/plain"}, None, 415),
        ({"Content-Type": 'multipart/related; type="application/dicom"'}, None, 400),
        ({"Content-Encoding": "gzip"}, gzip.compress(body_of(CT)), 415),
        ({}, body_of(), 400),
        ({}, b"", 400),
        ({}, body_of(CT)[:-200], 400),
        ({"Accept": "text/html"}, None, 406),
    ],
)
def test_bodies_that_are_refused(serve, folder, headers, data, status):
    server = serve(folder)
    answer = store(server, CT, headers=headers, data=data)
    assert answer.status_code == status
    assert server.errors == []


def test_chunked_bodies_and_expect_100(serve, folder):
    server = serve(folder)
    body = body_of(CT, MR)
    answer = store(server, data=(body[start : start + 1000] for start in range(0, len(body), 1000)))
    assert len(instances(answer, STORED)) == 2
    assert store(server, CT, headers={"Expect": "100-continue"}).status_code == 200


def test_large_instances_pass_through_a_file(serve, folder, tmp_path):
    path = synthetic_instance(20_000_000, tmp_path / "large.dcm")
    server = serve(folder)
    content = path.read_bytes()
    assert store(server, content).status_code == 200
    (stored,) = folder.rglob("*.dcm")
    assert stored.read_bytes() == content
    assert list(Path(server._app.site.directory).iterdir()) == []


def test_many_stores_at_once(serve, folder):
    server = serve(folder)
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda number: store(server, clone(MR, number)).status_code, range(24)))
    assert statuses == [200] * 24
    assert requests.get(f"{server.url}/instances/count", timeout=30).json() == {"count": 24}
    assert server.errors == []


def test_identifiers_cannot_leave_the_folder(serve, folder, tmp_path):
    server = serve(folder)
    for evil in ("../../evil", "/tmp/evil", "..", "a/b"):
        dataset = pydicom.dcmread(io.BytesIO(CT))
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
        with pydicom.config.disable_value_validation():
            dataset.StudyInstanceUID = pydicom.uid.UID(evil)
            buffer = io.BytesIO()
            dataset.save_as(buffer)
        assert store(server, buffer.getvalue()).status_code == 409
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents]
    assert outside == []


def test_deleting(serve, folder):
    server = serve(folder)
    ct, mr = Instance.from_bytes(CT).reference, Instance.from_bytes(MR).reference
    series = {name: getattr(ct, name) for name in ("study_instance_uid", "series_instance_uid")}
    series_mate = clone(CT, sop_instance_uid="1.2.3.4", **series)
    store(server, CT, series_mate, MR)

    def delete(path: str) -> int:
        return requests.delete(f"{server.url}/{path}", timeout=30).status_code

    assert delete(ct.uri) == 204
    assert kept(server, CT) is None
    assert kept(server, series_mate) == series_mate
    assert [delete(ct.uri), delete(ct.series.uri), delete(f"studies/{mr.study_instance_uid}")] == [404, 204, 204]
    assert requests.get(f"{server.url}/instances", timeout=30).status_code == 204
    assert requests.put(f"{server.url}/studies", data=b"", timeout=30).status_code == 405
    assert delete("studies") == 404


# Behaviour ------------------------------------------------------------------------------------------------------------


def test_orthanc_stores_in_its_own_way(serve, folder):
    server = serve(folder, behaviour="orthanc")
    answer = store(server, CT)
    assert answer.status_code == 200
    assert answer.json()[FAILED] == {"vr": "SQ"}
    again = store(server, OTHER_CT)
    assert (again.status_code, instances(again, STORED)) == (200, [uid(CT)])
    assert kept(server, CT) == CT
    mixed = store(server, MR, GARBAGE)
    assert mixed.status_code == 400
    assert instances(mixed, STORED) == [uid(MR)]
    assert sequence(mixed, FAILED) == []
    assert "Content-Type" not in mixed.headers
    nameless = sample_file("SC_rgb_jls_lossy_line.dcm").read_bytes()
    refused = store(server, nameless)
    assert (refused.status_code, reasons(refused)) == (400, [0xC000])
    study = Instance.from_bytes(CT).reference.study_instance_uid
    wrong = store(server, CT, clone(MR, 5), path=f"/studies/{study}")
    assert (wrong.status_code, instances(wrong, STORED), reasons(wrong)) == (409, [uid(CT)], [0x0110])
    swallowed = store(server, data=gzip.compress(body_of(clone(CT, 9))), headers={"Content-Encoding": "gzip"})
    assert (swallowed.status_code, sequence(swallowed, STORED)) == (200, [])
    assert kept(server, clone(CT, 9)) is None
    assert store(server, data=body_of()).status_code == 200
    assert store(server, data=CT, headers={"Content-Type": "application/dicom"}).status_code == 415
    assert requests.delete(f"{server.url}/studies/{study}", timeout=30).status_code == 405


def test_azure_refuses_duplicates_and_zeroes_the_preamble(serve, folder):
    server = serve(folder, behaviour="azure")
    with_preamble = b"P" * 128 + CT[128:]
    assert store(server, with_preamble).status_code == 200
    assert kept(server, CT) == b"\0" * 128 + CT[128:]
    again = store(server, with_preamble, MR)
    assert (again.status_code, reasons(again)) == (202, [45070])
    assert sequence(again, FAILED)[0]["00741048"]["Value"][0]["00000902"]["vr"] == "LO"
    assert (store(server, IMPLICIT).status_code, reasons(store(server, IMPLICIT))) == (409, [43264])
    study = Instance.from_bytes(CT).reference.study_instance_uid
    assert reasons(store(server, clone(MR, 3), path=f"/studies/{study}")) == [43265]
    assert store(server, CT, headers={"Accept": "application/dicom+xml"}).status_code == 406
    assert store(server, data=body_of()).status_code == 204
    replaced = store(server, OTHER_CT, method="PUT")
    assert replaced.status_code == 200
    assert kept(server, CT) == b"\0" * 128 + OTHER_CT[128:]


def test_google_answers_in_xml_and_refuses_other_bytes(serve, folder):
    server = serve(folder, behaviour="google")
    answer = store(server, CT)
    assert answer.headers["Content-Type"] == "application/dicom+xml"
    assert store(server, CT).status_code == 200
    conflict = store(server, OTHER_CT, headers={"Accept": "application/dicom+json"})
    assert conflict.status_code == 409
    assert sequence(conflict, FAILED)[0]["00090010"]["Value"] == ["GOOGLE"]
    assert store(server, OTHER_CT, method="PUT").status_code == 200
    assert kept(server, CT) == OTHER_CT


def test_dicomcloud_anonymizes_and_refuses_duplicates(serve, folder):
    server = serve(folder, behaviour="dicomcloud")
    assert store(server, CT).status_code == 200
    stored = kept(server, CT)
    assert str(pydicom.dcmread(io.BytesIO(stored)).PatientName) == ""
    assert (pixels(stored) == pixels(CT)).all()
    again = store(server, CT)
    assert (again.status_code, reasons(again)) == (409, [0x0110])


def test_healthimaging_hides_other_bytes(serve, folder):
    server = serve(folder, behaviour="healthimaging")
    assert store(server, CT).status_code == 200
    first = kept(server, CT)
    assert first != CT
    assert (pixels(first) == pixels(CT)).all()
    hidden = store(server, OTHER_CT)
    assert (hidden.status_code, instances(hidden, STORED)) == (200, [uid(CT)])
    assert kept(server, CT) == first


def test_the_strict_server_refuses_duplicates_and_large_bodies(serve, folder):
    server = serve(folder, behaviour="strict")
    assert store(server, CT).status_code == 200
    again = store(server, CT)
    assert (again.status_code, reasons(again)) == (409, [272])
    mixed = store(server, MR, GARBAGE)
    assert mixed.status_code == 202
    assert sequence(mixed, FAILED) == [{"00081197": {"vr": "US", "Value": [0xC000]}}]
    assert store(server, data=gzip.compress(body_of(CT)), headers={"Content-Encoding": "gzip"}).status_code == 400
    assert store(server, data=CT, headers={"Content-Type": "application/dicom"}).status_code == 415
    large = iter([body_of(CT)[:-20]] + [b"\0" * (1 << 20)] * 65)
    assert store(server, data=large).status_code == 413


# Faults ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", sorted({reason for group in FAILURE_REASONS.values() for reason in group}))
def test_every_reason_can_be_given(serve, folder, reason):
    server = serve(folder, faults=[fault("refuse_instances", reason=reason, numbers=[2])])
    answer = store(server, CT, MR)
    assert answer.status_code == 202
    assert (instances(answer, FAILED), reasons(answer)) == ([uid(MR)], [reason])
    assert kept(server, MR) is None
    assert kept(server, CT) == CT


def test_answers_that_lie(serve, folder):
    def fresh(action: str, **options):
        return serve(folder / action, faults=[fault(action, **options)])

    nothing = fresh("store_nothing")
    answer = store(nothing, CT)
    assert (answer.status_code, answer.json()) == (200, {})
    assert kept(nothing, CT) is None
    claimed = fresh("claim_stored")
    assert instances(store(claimed, CT), STORED) == [uid(CT)]
    assert kept(claimed, CT) is None
    old = serve(folder / "old")
    store(old, CT)
    old.inject(fault("keep_old"))
    assert instances(store(old, OTHER_CT), STORED) == [uid(CT)]
    assert kept(old, CT) == CT
    omitted = fresh("omit_outcome", number=1)
    assert instances(store(omitted, CT, MR), STORED) == [uid(MR)]
    assert kept(omitted, CT) == CT
    whole = fresh("refuse_instances", status=409)
    assert store(whole, CT, MR).status_code == 409


def test_stored_but_the_answer_is_lost(serve, folder):
    server = serve(folder, faults=[fault("reset", at="answer", method="POST")])
    with pytest.raises(requests.ConnectionError):
        store(server, CT)
    assert kept(server, CT) == CT
    assert store(server, CT).status_code == 200
