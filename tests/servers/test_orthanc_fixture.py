"""The real server that other tests rely on: it starts empty, stores, survives restarts, and dies on demand."""

from __future__ import annotations

import http.client
import json
import os
from pathlib import Path

import pytest
import requests

from dicomweb_io.testing.orthanc import Orthanc, OrthancUnavailable, find_installation, free_port
from dicomweb_io.testing.samples import sample_file
from tests.unit.testing.asking import PLAIN, body_of


def store(server: Orthanc, *contents: bytes, **options: object) -> requests.Response:
    headers = {"Content-Type": f"{PLAIN}; boundary=a-boundary"}
    return requests.post(f"{server.url}/studies", data=body_of(*contents), headers=headers, timeout=30, **options)


def studies(server: Orthanc) -> list:
    return requests.get(f"{server.url}/studies", timeout=30).json()


def test_it_starts_empty_stores_and_searches(orthanc):
    assert studies(orthanc) == []
    assert store(orthanc, sample_file("CT_small.dcm").read_bytes()).status_code == 200
    (row,) = studies(orthanc)
    assert row["00100020"]["Value"] == ["1CT1"]
    assert orthanc.count_instances() == 1
    orthanc.wipe()
    assert studies(orthanc) == []


def test_names_in_other_scripts_come_back(orthanc):
    store(orthanc, sample_file("chrGreek.dcm").read_bytes())
    (row,) = studies(orthanc)
    assert row["00100010"]["Value"] == [{"Alphabetic": "Διονυσιος"}]


@pytest.mark.parametrize(("query", "rows"), [("1*", 1), ("1CT%31", 0), ("1%2A", 0), ("%31CT1", 0)])
def test_this_server_does_not_decode_queries(orthanc, query, rows):
    store(orthanc, sample_file("CT_small.dcm").read_bytes())
    # In the address, not as params: requests would escape the asterisk, and unescape what need not be escaped.
    connection = http.client.HTTPConnection("127.0.0.1", orthanc.port, timeout=30)
    connection.request("GET", f"/dicom-web/studies?PatientID={query}")
    assert len(json.loads(connection.getresponse().read())) == rows
    connection.close()


def test_storage_and_port_outlive_stop_and_kill(orthanc):
    store(orthanc, sample_file("CT_small.dcm").read_bytes())
    port = orthanc.port
    for end in (orthanc.kill, orthanc.stop):
        end()
        assert not orthanc.running
        with pytest.raises(requests.ConnectionError):
            studies(orthanc)
        orthanc.start()
        assert orthanc.port == port
        assert len(studies(orthanc)) == 1


def test_two_servers_at_once_with_basic_authentication(orthanc, new_orthanc):
    other = new_orthanc(users={"demo": "secret"})
    assert other.port != orthanc.port
    refused = requests.get(f"{other.url}/studies", timeout=30)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].startswith("Basic realm=")
    content = sample_file("MR_small.dcm").read_bytes()
    assert store(other, content, auth=("demo", "secret")).status_code == 200
    assert other.count_instances() == 1
    assert orthanc.count_instances() == 0


def test_a_server_that_cannot_start_says_why(orthanc_server, tmp_path):
    broken = Orthanc(tmp_path / "broken", settings={"HttpPort": "not a number"})
    with pytest.raises(OrthancUnavailable, match="end of its log"):
        with broken:
            pass
    assert not broken.running


def test_absent_tools_are_named(tmp_path, monkeypatch):
    if find_installation().libraries is None:
        pytest.skip("Orthanc is installed on this system, so nothing is ever unpacked")
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(OrthancUnavailable, match="apt-get"):
        find_installation(tmp_path / "cache")


def test_close_removes_the_temporary_directory(orthanc_server):
    server = Orthanc()
    directory: Path = server.directory
    with server:
        assert (directory / "orthanc.json").exists()
    assert not directory.exists()
    assert not server.running


def test_free_ports_are_free():
    assert 1024 < free_port() < 65536
