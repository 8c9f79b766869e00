"""The file client as a whole: the protocol, exclusions, missing folders, pickling, threads."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import dicomweb_io
from dicomweb_io.client import DICOMClient
from dicomweb_io.elements import Exclusion, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.queries import make_query
from tests.unit.files.making import Put, answered, make_bytes


def test_it_is_a_dicom_client(folder: Path) -> None:
    client = DICOMfileClient(folder)
    assert isinstance(client, DICOMClient)
    assert dicomweb_io.DICOMfileClient is DICOMfileClient
    assert client.base_url == folder.as_uri()
    assert repr(client) == f"DICOMfileClient({folder.as_uri()!r})"
    assert client.lookup_keyword("00100020") == "PatientID"


def test_an_endpoint_makes_one(folder: Path, tmp_path: Path, put: Put) -> None:
    put("a.dcm", sop="not-strictly.a-uid", PatientID="")
    client = Endpoint(str(folder), index=str(tmp_path / "elsewhere")).connect()
    assert isinstance(client, DICOMfileClient)
    assert len(client.search_for_instances()) == 1
    assert len(client.retrieve_series("1.2.1", "1.2.1.1")) == 1
    # References take identifiers that some archives hold; the methods with UIDs as arguments are strict unless told.
    (instance,) = client.iter_instances(Resource("1.2.1", "1.2.1.1", "not-strictly.a-uid"))
    assert instance.dataset().SOPInstanceUID == "not-strictly.a-uid"
    with pytest.raises(ValueError, match="not-strictly"):
        client.retrieve_instance("1.2.1", "1.2.1.1", "not-strictly.a-uid")
    permissive = DICOMfileClient(folder, permissive_uid=True)
    assert permissive.retrieve_instance("1.2.1", "1.2.1.1", "not-strictly.a-uid").PatientID == ""
    assert any(name.suffix == ".sqlite" for name in (tmp_path / "elsewhere").iterdir())


def test_arguments_are_checked(folder: Path) -> None:
    with pytest.raises(ValueError, match="duplicates"):
        DICOMfileClient(folder, duplicates="last")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="db_dir"):
        DICOMfileClient(folder, index="a", db_dir="b")
    with pytest.raises(ValueError, match="DICOMwebClient"):
        DICOMfileClient("https://server/dicom-web")
    client = DICOMfileClient(folder)
    with pytest.raises(ValueError, match="frames"):
        client.iter_instances(Resource("1", "2", "3", (1,)))
    with pytest.raises(ValueError, match="frames"):
        client.iter_frames(Resource("1", "2", "3"))
    with pytest.raises(ValueError, match="UID"):
        client.retrieve_study("../../etc")


def test_a_missing_folder(tmp_path: Path) -> None:
    client = DICOMfileClient(tmp_path / "nothing")
    searches = (client.search_for_studies, client.search_for_series, client.search_for_instances)
    for work in (*searches, lambda: list(client.iter_exclusions()), client.refresh):
        with pytest.raises(FileNotFoundError):
            work()
    # A question about certain objects has an answer: a destination is asked so before anything is stored in it.
    assert client.search_for_instances("1.2.1", "1.2.1.1") == []
    assert list(client.iter_search(make_query("series", "1.2.1"))) == []
    assert client.count(make_query("instance", "1.2.1")) == 0
    with answered(404):
        client.retrieve_study("1.2.1")
    with pytest.raises(FileNotFoundError):
        DICOMfileClient(tmp_path / "nothing", readonly=True).search_for_instances("1.2.1")
    assert not (tmp_path / "nothing").exists()
    client.store_instances([make_bytes()])
    assert len(client.search_for_studies()) == 1


def test_the_samples_add_up(sample_folder: Path) -> None:
    client = DICOMfileClient(sample_folder)
    found = list(client.iter_exclusions())
    kinds = Counter(exclusion.kind for exclusion in found)
    files = sum(len(names) for _, _, names in os.walk(sample_folder))
    assert len(client.search_for_instances()) + sum(kinds.values()) == files
    assert kinds["duplicate"] > 20
    assert kinds["ignored"] >= 8
    assert kinds["unreadable"] >= 5
    by_name = {Path(exclusion.path).name: exclusion for exclusion in found}
    cut = by_name["MR_truncated.dcm"]
    assert cut.kind == "duplicate"
    assert cut.reason.startswith("conflicting: truncated")
    assert cut.chosen is not None
    assert Path(cut.chosen).name == "MR_small.dcm"
    assert by_name["DICOMDIR"].kind == "ignored"
    assert by_name["UN_sequence.dcm"].kind == "unreadable"
    assert "StudyInstanceUID" in by_name["UN_sequence.dcm"].reason


def test_exclusions_of_all_kinds(folder: Path, put: Put) -> None:
    content = put("b/2.dcm", PatientID="x", EncapsulatedDocument=b"d" * 50).read_bytes()
    (folder / "b" / "3.dcm").write_bytes(content)
    (folder / "a.dcm").write_bytes(content[:-5])
    put("c.dcm", PatientID="y longer")
    put("other.dcm", "7", "7.1", "7.1.1")
    (folder / "other2.dcm").write_bytes((folder / "other.dcm").read_bytes())
    (folder / "cut.dcm").write_bytes(put("cut.dcm", sop="8", EncapsulatedDocument=b"z" * 50).read_bytes()[:-20])
    (folder / "README").write_text("no DICOM")
    (folder / "empty").write_bytes(b"")
    (folder / "secret.dcm").write_bytes(content)
    (folder / "secret.dcm").chmod(0)
    client = DICOMfileClient(folder)
    reference = Resource("1.2.1", "1.2.1.1", "1.2.1.1.1")
    found = {os.path.relpath(exclusion.path, folder): exclusion for exclusion in client.iter_exclusions()}
    chosen = str(folder / "b" / "2.dcm")
    if os.geteuid() == 0:
        # Nothing is unreadable for root: it is one more identical copy.
        assert found.pop("secret.dcm").reason == "identical"
    else:
        assert found.pop("secret.dcm").kind == "unreadable"
    assert {name: exclusion.kind for name, exclusion in found.items()} == {
        "a.dcm": "duplicate",
        "b/3.dcm": "duplicate",
        "c.dcm": "duplicate",
        "other2.dcm": "duplicate",
        "cut.dcm": "unreadable",
        "README": "ignored",
        "empty": "ignored",
    }
    assert found["b/3.dcm"] == Exclusion("duplicate", str(folder / "b/3.dcm"), "identical", reference, chosen)
    assert found["a.dcm"].reason.startswith("conflicting: truncated")
    assert found["c.dcm"].reason.startswith("conflicting: ")
    assert found["c.dcm"].chosen == chosen
    assert found["cut.dcm"].reference == Resource("1.2.1", "1.2.1.1", "8")
    assert found["cut.dcm"].reason.startswith("truncated")
    query = make_query("study", search_filters={"StudyInstanceUID": "7"})
    limited = Counter(exclusion.kind for exclusion in client.iter_exclusions(query))
    assert limited["duplicate"] == 1
    assert limited["ignored"] == 2
    assert limited["unreadable"] >= 1


def test_a_pickled_client_is_a_new_client_of_the_same_folder(folder: Path, put: Put) -> None:
    put("a.dcm")
    client = DICOMfileClient(folder, duplicates="newest", in_memory=True)
    assert len(client.search_for_studies()) == 1
    put("b.dcm", sop="1.2.1.1.2")
    copy = pickle.loads(pickle.dumps(client))
    assert len(copy.search_for_instances()) == 2
    assert len(client.search_for_instances()) == 1
    assert b"1.2.1.1.1" not in pickle.dumps(client)


def test_a_client_can_be_closed_and_used_again(folder: Path, put: Put) -> None:
    put("a.dcm")
    with DICOMfileClient(folder) as client:
        assert len(client.search_for_studies()) == 1
    put("b.dcm", sop="1.2.1.1.2")
    assert len(client.search_for_instances()) == 2


def test_update_db_false_takes_the_index_as_it_is(folder: Path, put: Put) -> None:
    put("a.dcm")
    assert len(DICOMfileClient(folder).search_for_instances()) == 1
    put("b.dcm", sop="1.2.1.1.2")
    stale = DICOMfileClient(folder, update_db=False)
    assert len(stale.search_for_instances()) == 1
    stale.refresh()
    assert len(stale.search_for_instances()) == 2
    anew = DICOMfileClient(folder, recreate_db=True)
    assert anew.refresh().read == 2
    assert len(anew.search_for_instances()) == 2


def test_many_threads(folder: Path) -> None:
    client = DICOMfileClient(folder)

    def work(turn: int) -> None:
        for number in range(5):
            sop = f"1.2.{turn}.{number}"
            list(client.iter_store_instances([make_bytes("1.2", f"1.2.{turn}", sop)]))
            assert sop in {row["00080018"]["Value"][0] for row in client.search_for_instances("1.2", f"1.2.{turn}")}
            assert len(list(client.iter_instances(Resource("1.2", f"1.2.{turn}", sop)))) == 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert len(client.search_for_instances()) == 30


def test_the_named_methods(sample_folder: Path) -> None:
    client = DICOMfileClient(sample_folder)
    row = client.search_for_series(search_filters={"Modality": "CT"})[0]
    study, series = row["0020000D"]["Value"][0], row["0020000E"]["Value"][0]
    datasets = client.retrieve_series(study, series)
    assert {dataset.SeriesInstanceUID for dataset in datasets} == {series}
    assert len(datasets) == len(client.retrieve_series_metadata(study, series)) == row["00201209"]["Value"][0]
    assert len(client.retrieve_study(study)) == len(client.retrieve_study_metadata(study))
    sop = datasets[0].SOPInstanceUID
    assert client.retrieve_instance_metadata(study, series, sop)["00080018"]["Value"] == [sop]
