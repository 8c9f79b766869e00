"""The feeds of changes that the test server has in the behaviour of Orthanc, Azure and dcm4chee."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta, timezone

import pytest
import requests

from dicomweb_io.changes import change_source
from dicomweb_io.elements import Instance, Resource
from dicomweb_io.testing.samples import make_study, sample_file
from dicomweb_io.testing.server.feeds import identifier
from tests.unit.testing.asking import store

METHODS = {"orthanc": "orthanc", "azure": "azure", "dcm4chee": "receive_time"}
STUDY_TAG = "0020000D"


def references(paths) -> list[Resource]:
    return [Instance.from_path(path).reference for path in paths]


def get(url: str, **options):
    answer = requests.get(url, timeout=30, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


class Watch:
    """A client that follows a server by its feed."""

    def __init__(self, server, level: str, start: str = "now") -> None:
        endpoint = server.endpoint(profile=server.behaviour.name)
        self.source = change_source(endpoint, level)
        self.client = endpoint.connect()
        self.cursor = None
        self.start = start
        self.found = self.poll()

    def poll(self) -> set[Resource]:
        changes = self.source.poll(self.client, self.cursor, start=self.start)
        assert changes.failures == ()
        self.cursor = changes.cursor
        assert len(set(changes.references)) == len(changes.references)
        return set(changes.references)

    def store(self, paths) -> None:
        for result in self.client.iter_store_instances(paths):
            assert result.outcome == "stored"


@pytest.mark.parametrize("behaviour", METHODS)
@pytest.mark.parametrize("level", ["study", "instance"])
def test_what_comes_is_told_once(serve, tmp_path, behaviour, level):
    def named(paths):
        found = references(paths)
        return {Resource(one.study_instance_uid) if level == "study" else one for one in found}

    there = make_study(tmp_path / "archive", instances=3, size=10)
    server = serve(tmp_path / "archive", behaviour=behaviour)
    new, everything = Watch(server, level), Watch(server, level, "all")
    assert new.source.method == METHODS[behaviour]
    assert (new.found, everything.found) == (set(), named(there))
    coming = make_study(tmp_path / "new", instances=2, series=2, size=10, seed="new")
    new.store(coming)
    for watch in (new, everything):
        assert watch.poll() == named(coming)
        assert watch.poll() == set()
        watch.client.close()


def test_files_that_others_add_are_told_after_a_refresh(serve, tmp_path):
    make_study(tmp_path, instances=1, size=10)
    server = serve(tmp_path, behaviour="azure")
    watch = Watch(server, "instance")
    added = make_study(tmp_path / "more", instances=2, size=10, seed="more")
    assert watch.poll() == set()
    server.refresh()
    assert watch.poll() == set(references(added))
    added[0].unlink()
    server.refresh()
    rows = get(f"{server.url}/changefeed")
    assert [row["Action"] for row in rows] == ["create", "create", "create", "delete"]
    watch.client.close()


# Azure ----------------------------------------------------------------------------------------------------------------


def test_the_feed_of_azure(serve, tmp_path):
    there = make_study(tmp_path, instances=5, size=10)
    server = serve(tmp_path, behaviour="azure")
    url = f"{server.url}/changefeed"
    rows = get(url, params={"includemetadata": "false"})
    assert [row["Sequence"] for row in rows] == [1, 2, 3, 4, 5]
    found = [Resource(row["StudyInstanceUid"], row["SeriesInstanceUid"], row["SopInstanceUid"]) for row in rows]
    assert set(found) == set(references(there))
    assert {(row["Action"], row["State"]) for row in rows} == {("create", "current")}
    assert get(url, params={"offset": 1, "limit": 2, "includemetadata": "false"}) == rows[1:3]
    window = {"startTime": rows[1]["Timestamp"], "endTime": rows[3]["Timestamp"], "includemetadata": "false"}
    assert get(url, params=window) == rows[1:3]
    assert get(f"{url}/latest", params={"includemetadata": "false"}) == rows[-1]
    assert get(url, params={"limit": 1})[0]["Metadata"]["00080018"]["Value"] == [rows[0]["SopInstanceUid"]]
    for wrong in ("limit=0", "limit=201", "limit=x", "offset=-1", "startTime=yesterday"):
        assert requests.get(f"{url}?{wrong}", timeout=30).status_code == 400
    assert requests.delete(f"{server.url}/{found[0].uri}", timeout=30).status_code == 204
    rows = get(url, params={"includemetadata": "false"})
    ends = [(row["Sequence"], row["Action"], row["State"]) for row in (rows[0], rows[-1])]
    assert ends == [(1, "create", "deleted"), (6, "delete", "deleted")]


def test_an_empty_feed_and_replaced_instances(serve, tmp_path):
    (path,) = make_study(tmp_path / "new", instances=1, size=10)
    server = serve(tmp_path / "archive", behaviour="azure")
    url = f"{server.url}/changefeed"
    assert get(url) == []
    assert requests.get(f"{url}/latest", timeout=30).status_code == 204
    for method in ("POST", "PUT"):
        assert store(server, path.read_bytes(), method=method).status_code == 200
    rows = [(row["Action"], row["State"], "Metadata" in row) for row in get(url)]
    assert rows == [("create", "replaced", False), ("create", "current", True)]


# Orthanc --------------------------------------------------------------------------------------------------------------


def test_the_interface_of_orthanc(serve, tmp_path):
    content = sample_file("CT_small.dcm").read_bytes()
    (tmp_path / "ct.dcm").write_bytes(content)
    server = serve(tmp_path, behaviour="orthanc")
    reference = Instance.from_bytes(content).reference
    study, series, instance = reference.uids.values()
    names = [identifier("1CT1", *uids) for uids in ((study, series, instance), (study, series), (study,), ())]
    # As the real one names them.
    assert names[0] == "f689ddd2-662f8fe1-8b18180d-ec2a2cee-937917af"
    assert names[3] == "fa558bce-587a86d3-ad0da9b3-9d043d9d-4f5c5718"
    log = get(f"{server.origin}/changes")
    kinds = ("NewInstance", "NewSeries", "NewStudy", "NewPatient")
    told = [(one["ChangeType"], one["ID"], one["Seq"]) for one in log["Changes"]]
    assert told == list(zip(kinds, names, (1, 2, 3, 4), strict=True))
    assert (log["Done"], log["Last"]) == (True, 4)
    page = get(f"{server.origin}/changes?since=1&limit=2")
    assert ([one["Seq"] for one in page["Changes"]], page["Done"], page["Last"]) == ([2, 3], False, 3)
    assert get(f"{server.origin}/changes?last")["Last"] == 4
    assert get(f"{server.origin}/changes?since=4") == {"Changes": [], "Done": True, "Last": 4}
    found = requests.post(f"{server.origin}/tools/lookup", data=study, timeout=30).json()
    assert found == [{"ID": names[2], "Path": f"/studies/{names[2]}", "Type": "Study"}]
    assert requests.post(f"{server.origin}/tools/lookup", data="1.2.3", timeout=30).json() == []
    wanted = {"Resources": [*names, "nobody"], "Metadata": False}
    bulk = requests.post(f"{server.origin}/tools/bulk-content", json=wanted, timeout=30).json()
    assert [one["Type"] for one in bulk] == ["Instance", "Series", "Study", "Patient"]
    assert bulk[0]["ParentSeries"] == names[1]
    assert bulk[2]["MainDicomTags"]["StudyInstanceUID"] == study
    assert bulk[2]["Series"] == [names[1]]
    assert requests.post(f"{server.origin}/tools/bulk-content", data="nonsense", timeout=30).status_code == 400
    one = f"{server.origin}/instances/{names[0]}"
    assert requests.get(f"{one}/attachments/dicom/md5", timeout=30).text == hashlib.md5(content).hexdigest()
    assert requests.get(f"{one}/file", timeout=30).content == content
    assert get(f"{one}/simplified-tags")["PatientID"] == "1CT1"
    assert get(f"{one}/study")["ID"] == names[2]
    assert get(f"{one}/patient")["MainDicomTags"] == {"PatientID": "1CT1"}
    assert get(f"{server.origin}/studies") == [names[2]]
    assert get(f"{server.origin}/system")["Version"] == "1.10.1"
    assert requests.get(f"{server.origin}/studies/{names[0]}", timeout=30).status_code == 404
    assert requests.get(f"{server.origin}/studies/..%2F..%2Fetc", timeout=30).status_code == 404
    assert requests.delete(f"{server.origin}/series/{names[1]}", timeout=30).status_code == 200
    assert get(f"{server.url}/studies") == []
    assert get(f"{server.origin}/changes") == {"Changes": [], "Done": True, "Last": 4}
    assert list(tmp_path.rglob("*.dcm")) == []


def test_an_instance_that_comes_back_is_new_again(serve, tmp_path):
    paths = make_study(tmp_path / "archive", instances=2, size=10)
    contents = [path.read_bytes() for path in paths]
    server = serve(tmp_path / "archive", behaviour="orthanc")
    watch = Watch(server, "instance")
    gone = references(paths)[0]
    watch.client.delete_instance(*gone.uids.values())
    assert watch.poll() == set()
    watch.store([contents[0]])
    assert watch.poll() == {gone}
    # The series was there all the time.
    assert get(f"{server.origin}/changes?since=5")["Changes"][0]["ChangeType"] == "NewInstance"
    watch.client.close()


def test_other_servers_have_no_such_interface(serve, tmp_path):
    for behaviour in ("generic", "strict"):
        server = serve(tmp_path, behaviour=behaviour)
        for path in ("/changes", "/system", "/dicom-web/changefeed"):
            assert requests.get(server.origin + path, timeout=30).status_code == 404
        assert requests.post(f"{server.origin}/tools/lookup", data="1.2.3", timeout=30).status_code == 404


def test_the_interface_asks_for_the_password_too(serve, tmp_path):
    server = serve(tmp_path, behaviour="orthanc", auth=("demo", "secret"))
    assert requests.get(f"{server.origin}/changes", timeout=30).status_code == 401
    assert requests.get(f"{server.origin}/changes", auth=("demo", "secret"), timeout=30).status_code == 200


# dcm4chee -------------------------------------------------------------------------------------------------------------


def test_times_of_arrival_can_be_searched(serve, tmp_path):
    (there,) = references(make_study(tmp_path / "archive", instances=1, size=10))
    server = serve(tmp_path / "archive", behaviour="dcm4chee")
    now = datetime.now(timezone.utc)

    def studies(query: str, path: str = "studies") -> list[str]:
        answer = requests.get(f"{server.url}/{path}?{query}", timeout=30)
        return [row[STUDY_TAG]["Value"][0] for row in answer.json()] if answer.status_code == 200 else []

    def text(moment: datetime) -> str:
        return f"{moment:%Y%m%d%H%M%S}"

    hour = timedelta(hours=1)
    uid = there.study_instance_uid
    for name in ("StudyReceiveDateTime", "SeriesReceiveDateTime", "StudyAccessDateTime"):
        assert studies(f"{name}={text(now - hour)}-", "instances") == [uid]
        assert studies(f"{name}={text(now + hour)}-", "instances") == []
    assert studies(f"StudyReceiveDateTime={text(now - hour)}-{text(now + hour)}") == [uid]
    assert studies(f"StudyReceiveDateTime=-{text(now - hour)}") == []
    assert studies(f"StudyReceiveDateTime={now:%Y}") == [uid]
    assert requests.get(f"{server.url}/studies?StudyReceiveDateTime=soon", timeout=30).status_code == 400
    assert requests.get(f"{server.url}/studies/count?StudyReceiveDateTime={now:%Y}-", timeout=30).json() == {"count": 1}
