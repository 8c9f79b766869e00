"""What a client can notice of the known servers when it searches and stores, beyond the standard."""

from __future__ import annotations

import http.client
import io
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import get_args
from urllib.parse import urlsplit

import pydicom
import pytest
import requests

from dicomweb_io.elements import Instance
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.testing.samples import clone, make_study, sample_file
from dicomweb_io.testing.server.behaviour import Behaviour, Evidence, Limits, meanings
from dicomweb_io.testing.server.behaviours import BEHAVIOURS, GENERIC, VARIANTS, behaviour_of
from dicomweb_io.testing.server.command import as_data, describe
from dicomweb_io.testing.server.qido import soundex
from tests.unit.testing.asking import INSTANCE, PLAIN, STUDY, body_of, put_files, store, uids

CT = sample_file("CT_small.dcm").read_bytes()
FILES = ("CT_small.dcm", "MR_small.dcm", "test-SR.dcm", "examples_ybr_color.dcm")


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Iterator[DICOMfileClient]:
    with DICOMfileClient(put_files(tmp_path_factory.mktemp("archive"), FILES), in_memory=True) as client:
        yield client


def search(server, query: str = "", path: str = "studies", **headers: str) -> requests.Response:
    prefix = f"/{server.behaviour.qido_prefix}" if server.behaviour.qido_prefix else ""
    return requests.get(f"{server.url}{prefix}/{path}?{query}", headers=headers, timeout=30)


def changed(seed: str, **attributes: str) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(clone(CT, seed)))
    with pydicom.config.disable_value_validation():
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


# The table ------------------------------------------------------------------------------------------------------------


def test_every_field_is_explained():
    assert set(meanings()) == {item.name for item in fields(Behaviour)} - {"name", "title", "facts", "gaps"}
    assert all(text.endswith(".") or text.endswith(")") for text in meanings().values())


@pytest.mark.parametrize("name", [*BEHAVIOURS, *VARIANTS])
def test_facts_are_what_the_server_does(name):
    behaviour = behaviour_of(name)
    for field, fact in behaviour.facts.items():
        assert getattr(behaviour, field) == fact.value
        assert fact.evidence in get_args(Evidence)
        assert fact.source
    assumed = [item.name for item in fields(Behaviour) if item.name not in behaviour.facts]
    for field in set(assumed) - {"name", "title", "facts", "gaps"}:
        assert getattr(behaviour, field) == getattr(GENERIC, field)
    assert as_data(name)["facts"].keys() == behaviour.facts.keys()
    assert describe(behaviour) == describe(name)


def test_variants_can_be_served(serve, archive):
    for name in VARIANTS:
        assert search(serve(archive, behaviour=name)).status_code == 200


# Searches -------------------------------------------------------------------------------------------------------------


def test_dcm4chee_finds_names_by_their_sound(serve, tmp_path):
    server = serve(tmp_path, behaviour="dcm4chee")
    content = changed("sound", PatientName="Smith^John")
    assert store(server, content).status_code == 200
    for name, found in (("Smyth", 1), ("Smith^Jon", 1), ("Schmidt", 1), ("Jones", 0), ("*", 1)):
        assert len(uids(search(server, f"PatientName={name}&fuzzymatching=true"))) == found, name
    assert uids(search(server, "PatientName=Smyth")) == []


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("Robert", "r163"), ("Rupert", "r163"), ("Ashcraft", "a261"), ("Tymczak", "t522"), ("Pfister", "p236"),
        ("Lee", "l000"),
    ],
)  # fmt: skip
def test_soundex(word, code):
    assert soundex(word) == code


def test_dcm4chee_in_its_own_words(serve, archive):
    server = serve(archive, behaviour="dcm4chee")
    assert search(server, "limit=99999").status_code == 200
    assert search(server, "limit=100000").status_code == 400
    (row,) = search(server, "includedefaults=false&PatientID=1CT1&includefield=StudyDate").json()
    assert set(row) == {STUDY, "00100020", "00080020"}
    assert search(server, path="studies/size").status_code == 404
    assert search(server, Accept="text/csv").status_code == 406


def test_older_dcm4chee_has_no_order_and_short_pages(serve, tmp_path):
    make_study(tmp_path, instances=12, size=10)
    server = serve(tmp_path, behaviour="dcm4chee-older")
    everything = set(uids(search(server, path="instances"), INSTANCE))
    assert len(everything) == 12

    def pages(order: str) -> list[str]:
        found: list[str] = []
        while page := uids(search(server, f"limit=5&offset={len(found)}{order}", path="instances"), INSTANCE):
            assert len(page) <= 3
            found += page
        return found

    assert pages("&orderby=SOPInstanceUID") == sorted(everything)
    assert set(pages("")) < everything
    assert uids(search(server, "limit=5", path="instances")) == uids(search(server, "limit=5", path="instances"))


def test_newer_orthanc(serve, archive):
    server = serve(archive, behaviour="orthanc-newer")
    assert len(uids(search(server, "limit=-1"))) == len(FILES)
    assert len(uids(search(server, "Modality=CT"))) == 1
    assert uids(search(serve(archive, behaviour="orthanc"), "Modality=CT")) == []
    answer = requests.get(f"{server.url}/studies/1.2.3", timeout=30)
    assert answer.headers["Content-Type"].startswith("text/plain")


def test_dicomcloud_knows_keywords_only(serve, archive):
    server = serve(archive, behaviour="dicomcloud")
    assert len(uids(search(server, "PatientID=1CT1"))) == 1
    assert search(server, "00100020=1CT1").status_code == 500


def test_google_refuses_a_filter_and_a_field(serve, archive):
    server = serve(archive, behaviour="google")
    assert search(server, "SOPClassUID=1.2.3", path="instances").status_code == 400
    assert search(server, "includefield=AvailableTransferSyntaxUID", path="instances").status_code == 400
    assert search(server, "includefield=PatientWeight", path="instances").status_code == 200


def test_searches_of_google_may_lag_behind_a_delete(serve, tmp_path):
    (path,) = make_study(tmp_path, instances=1, size=10)
    content, reference = path.read_bytes(), Instance.from_path(path).reference
    server = serve(tmp_path, behaviour="google-lagging")
    url = f"{server.url}/{reference.uri}"
    assert requests.delete(url, timeout=30).status_code == 204
    assert uids(search(server)) == [reference.study_instance_uid]
    assert [requests.request(method, url, timeout=30).status_code for method in ("GET", "DELETE")] == [404, 404]
    assert store(server, content[:-2] + b"\1\1").status_code == 200
    assert requests.get(url, timeout=30).status_code == 200
    server = serve(tmp_path / "other", behaviour=replace(behaviour_of("google-lagging"), delete_lag=0.001))
    assert store(server, content).status_code == 200
    assert requests.delete(f"{server.url}/{reference.uri}", timeout=30).status_code == 204
    while uids(search(server)):
        pass


def test_healthimaging_takes_fifty_fields(serve, archive):
    server = serve(archive, behaviour="healthimaging")
    assert search(server, "&".join(["includefield=PatientWeight"] * 50)).status_code == 200
    assert search(server, "&".join(["includefield=PatientWeight"] * 51)).status_code == 400


def test_too_many_results(serve, archive):
    server = serve(archive, behaviour=replace(BEHAVIOURS["dcm4chee"], too_many=2, max_limit=Limits(2, 2, 2)))
    assert search(server).status_code == 413
    assert search(server, "PatientID=1CT1").status_code == 200


# Stores ---------------------------------------------------------------------------------------------------------------


def status_line(server, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, str]:
    where = urlsplit(server.url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=30)
    try:
        connection.request(method, f"{where.path}{path}", body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.reason
    finally:
        connection.close()


def test_dicomcloud_says_why_in_the_status_line(serve, tmp_path):
    server = serve(tmp_path, behaviour="dicomcloud")
    assert status_line(server, "/wadors/studies/1.2.3") == (404, "studies/1.2.3 is not in the archive")
    assert status_line(server, "/qidors/studies") == (200, "OK")
    body = body_of(CT)
    headers = {"Content-Type": f"{PLAIN}; boundary=a-boundary"}
    assert status_line(server, "/stowrs/studies", "POST", body, **headers) == (200, "OK")
    assert status_line(server, "/stowrs/studies", "POST", body, **headers) == (409, "1 instances were not stored.")
    code, text = status_line(server, f"/qidors/studies?{'x' * 900}=1%0d%0aX-Injected:%201")
    assert code == 500
    assert len(text) <= 512
    assert status_line(serve(tmp_path), "/studies/1.2.3") == (404, "Not Found")


def test_older_dicomcloud_names_what_is_stored_elsewhere(serve, tmp_path):
    server = serve(tmp_path, behaviour="dicomcloud-older")
    answer = store(server, clone(CT, "one")).json()
    assert "00081199" not in answer
    assert len(answer["0008114A"]["Value"]) == 1
    answer = store(server, clone(CT, "one"), clone(CT, "two"), clone(CT, "two")).json()
    assert len(answer["00081198"]["Value"]) == 1


def test_azure_stores_malformed_values_with_a_warning(serve, tmp_path):
    server = serve(tmp_path, behaviour="azure")
    answer = store(server, changed("malformed", StudyDate="20261341", StudyTime="99"), clone(CT, "well-formed"))
    assert answer.status_code == 202
    warned, fine = answer.json()["00081199"]["Value"]
    assert warned["00081196"]["Value"] == [1]
    comment = warned["00741048"]["Value"][0]["00000902"]["Value"][0]
    assert "StudyDate" in comment
    assert "StudyTime" in comment
    assert "20261341" not in comment
    assert "00081196" not in fine
    answer = search(server, "StudyDate=20040119")
    assert answer.headers["erroneous-dicom-attributes"] == "StudyDate"
    assert "erroneous-dicom-attributes" not in search(server, "PatientID=1CT1").headers
    assert store(serve(tmp_path / "other"), changed("malformed", StudyDate="20261341")).status_code == 200
