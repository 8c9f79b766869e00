"""Deleting, by DICOMweb and by Orthanc's own interface: exactly what was meant."""

from __future__ import annotations

import pytest

from dicomweb_io.errors import DICOMwebError
from tests.answering import Reply, in_turn


def test_by_dicomweb(web):
    server, client = web.connect(lambda request: web.Reply(204))
    client.delete_study("1.2", additional_params={"x": 1})
    client.delete_series("1.2", "1.3")
    client.delete_instance("1.2", "1.3", "1.4")
    assert server.asked("DELETE") == [
        "/dicomweb/studies/1.2?x=1",
        "/dicomweb/studies/1.2/series/1.3",
        "/dicomweb/studies/1.2/series/1.3/instances/1.4",
    ]


def test_what_is_not_there(web):
    _, client = web.connect(lambda request: web.Reply(404))
    with pytest.raises(DICOMwebError, match=r"does not have studies/1\.2") as caught:
        client.delete_study("1.2")
    assert caught.value.status == 404


def test_a_404_after_a_lost_answer_is_the_first_tries_success(web):
    server, client = web.connect(in_turn(web.Reply(503), web.Reply(404)))
    client.delete_study("1.2")
    assert len(server.requests) == 2


def test_a_refusal(web):
    _, client = web.connect(lambda request: web.Reply(405, b"no deletion", "text/plain"))
    with pytest.raises(DICOMwebError, match="no deletion"):
        client.delete_study("1.2")


def test_servers_that_delete_nothing_are_not_asked(web):
    server, client = web.connect(lambda request: web.Reply(204), profile="healthimaging")
    with pytest.raises(ValueError, match="healthimaging"):
        client.delete_study("1.2")
    assert server.requests == []


class Orthanc:
    """The native interface beside /dicomweb: two instances share a SOP Instance UID in different series."""

    FOUND = {
        b"1.4": [
            {"ID": "a", "Path": "/instances/a", "Type": "Instance"},
            {"ID": "b", "Path": "/instances/b", "Type": "Instance"},
        ],
        b"1.3": [{"ID": "c", "Path": "/series/c", "Type": "Series"}],
        b"1.2": [
            {"ID": "d", "Path": "/studies/d", "Type": "Study"},
            {"ID": "x", "Path": "/patients/x", "Type": "Patient"},
        ],
        b"1.1": [{"ID": name, "Path": f"/studies/{name}", "Type": "Study"} for name in "ef"],
    }
    PARENTS = {"/instances/a": ("1.2", "1.3"), "/instances/b": ("9.9", "9.8"), "/series/c": ("1.2",)}

    def __init__(self):
        self.deleted = []

    def __call__(self, request):
        if request.path == "/tools/lookup":
            assert request.method == "POST"
            return Reply.json(self.FOUND.get(request.body, []))
        if request.method == "DELETE":
            self.deleted.append(request.path)
            return Reply.json({})
        path, _, level = request.path.rpartition("/")
        uids = self.PARENTS[path]
        tags = {"StudyInstanceUID": uids[0]} if level == "study" else {"SeriesInstanceUID": uids[1]}
        return Reply.json({"MainDicomTags": tags})


def test_by_orthancs_own_interface(web):
    orthanc = Orthanc()
    _, client = web.connect(orthanc, profile="orthanc")
    client.delete_instance("1.2", "1.3", "1.4")
    assert orthanc.deleted == ["/instances/a"]
    client.delete_series("1.2", "1.3")
    client.delete_study("1.2")
    assert orthanc.deleted == ["/instances/a", "/series/c", "/studies/d"]
    for uids in (("9.9", "1.3", "1.4"), ("1.2", "9.8", "1.4"), ("1.2", "1.3", "7.7")):
        with pytest.raises(DICOMwebError) as caught:
            client.delete_instance(*uids)
        assert caught.value.status == 404
    with pytest.raises(DICOMwebError, match=r"studies/1\.1 2 times, under several patients"):
        client.delete_study("1.1")
    assert len(orthanc.deleted) == 3
