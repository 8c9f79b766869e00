"""Storing into and deleting from folders."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests
from hypothesis import given, strategies as st

from dicomweb_io.dicom.uids import is_safe_name, is_uid
from dicomweb_io.elements import Failure, Instance, Resource, StoredInstance
from dicomweb_io.errors import StoreError
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.files.local import LocalFolder
from dicomweb_io.files.places import FileStat, temporary_name
from dicomweb_io.files.store import is_layout_path, layout_path

Put = Callable[..., Path]
MakeBytes = Callable[..., bytes]
PATH = "1.2.1/1.2.1.1/1.2.1.1.1.dcm"


@pytest.fixture(params=["local", "memory"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> DICOMfileClient:
    if request.param == "local":
        return DICOMfileClient(tmp_path / "destination" / "not there yet")
    return DICOMfileClient(f"memory://store/{request.node.name.translate(str.maketrans('[]', '__'))}")


def stored_files(client: DICOMfileClient) -> list[str]:
    return sorted(found.path for found in client._folder.walk())


def one(client: DICOMfileClient, storable: Any, **options: Any) -> StoredInstance | Failure:
    (outcome,) = client.iter_store_instances([storable], **options)
    return outcome


def test_every_kind_of_storable(client: DICOMfileClient, make_bytes: MakeBytes, tmp_path: Path) -> None:
    contents = [make_bytes("1.2.1", "1.2.1.1", f"1.2.1.1.{number}") for number in range(6)]
    path = tmp_path / "source.dcm"
    path.write_bytes(contents[1])
    storables = [
        contents[0],
        path,
        str(tmp_path / "source2.dcm"),
        Instance.from_bytes(contents[3]),
        io.BytesIO(contents[4]),
        pydicom.dcmread(io.BytesIO(contents[5])),
    ]
    (tmp_path / "source2.dcm").write_bytes(contents[2])
    outcomes = list(client.iter_store_instances(storables))
    assert [outcome.outcome for outcome in outcomes if isinstance(outcome, StoredInstance)] == ["stored"] * 6
    assert stored_files(client) == [f"1.2.1/1.2.1.1/1.2.1.1.{number}.dcm" for number in range(6)]
    for number, content in enumerate(contents[:5]):
        assert client._folder.read(f"1.2.1/1.2.1.1/1.2.1.1.{number}.dcm") == content
    first = outcomes[0]
    assert isinstance(first, StoredInstance)
    assert first.size == len(contents[0])
    assert first.verified == "response"
    assert first.retrieve_url == f"{client.base_url}/{first.reference.uri}"
    assert path.exists()
    with pytest.raises(TypeError, match="int"):
        one(client, 7)


@pytest.mark.parametrize(
    ("on_existing", "same", "other"),
    [
        ("server", "exists", Failure),
        ("skip", "exists", "exists"),
        ("replace", "exists", "replaced"),
        ("error", Failure, Failure),
    ],
)
def test_existing_instances(
    client: DICOMfileClient, make_bytes: MakeBytes, on_existing: str, same: object, other: object
) -> None:
    original, changed = make_bytes(PatientID="one"), make_bytes(PatientID="two")
    assert one(client, original, on_existing=on_existing).outcome == "stored"  # type: ignore[union-attr]
    for content, expected in ((original, same), (changed, other)):
        outcome = one(client, content, on_existing=on_existing)
        if expected is Failure:
            assert isinstance(outcome, Failure)
            assert outcome.reason_code == 272
            assert outcome.reference == Resource("1.2.1", "1.2.1.1", "1.2.1.1.1")
        else:
            assert isinstance(outcome, StoredInstance)
            assert outcome.outcome == expected
            assert outcome.size == (len(changed) if expected == "replaced" else 0)
    assert client._folder.read(PATH) == (changed if on_existing == "replace" else original)
    assert stored_files(client) == [PATH]


@pytest.mark.parametrize(("verify", "evidence"), [("response", "response"), ("uid", "uid"), ("content", "file")])
def test_verification(client: DICOMfileClient, make_bytes: MakeBytes, verify: str, evidence: str) -> None:
    content = make_bytes()
    assert one(client, content, verify=verify).verified == evidence  # type: ignore[union-attr]
    again = one(client, content, verify=verify, on_existing="skip")
    assert isinstance(again, StoredInstance)
    assert (again.outcome, again.verified) == ("exists", "file" if verify == "content" else "uid")
    different = one(client, make_bytes(PatientID="x"), verify=verify, on_existing="skip")
    assert isinstance(different, Failure) == (verify == "content")


def test_what_cannot_be_found_again_is_refused(client: DICOMfileClient, make_bytes: MakeBytes, tmp_path: Path) -> None:
    whole = make_bytes(EncapsulatedDocument=b"x" * 500)
    wrong = Instance(Resource("1.2.1", "1.2.1.1", "9.9"), "1.2.840.10008.1.2.1", whole)
    missing = tmp_path / "missing.dcm"
    bad = [whole[:-100], b"no DICOM", b"", missing, wrong, make_bytes("..", "1.2", "1.2.3"), make_bytes("1.2/3")]
    outcomes = list(client.iter_store_instances([*bad, whole]))
    assert [type(outcome) for outcome in outcomes] == [Failure] * len(bad) + [StoredInstance]
    assert all(isinstance(outcome, Failure) and outcome.reason_code for outcome in outcomes[:-1])
    assert "truncated" in outcomes[0].message  # type: ignore[union-attr]
    assert stored_files(client) == [PATH]


def test_an_instance_of_another_study_is_refused(client: DICOMfileClient, make_bytes: MakeBytes) -> None:
    outcome = one(client, make_bytes(), study_instance_uid="9.9")
    assert isinstance(outcome, Failure)
    assert "9.9" in outcome.message


def test_the_rest_of_a_broken_copy_is_replaced(folder: Path, make_bytes: MakeBytes) -> None:
    client = DICOMfileClient(folder)
    content = make_bytes(PatientComments="x" * 300)
    (folder / PATH).parent.mkdir(parents=True)
    (folder / PATH).write_bytes(content[:200])
    assert one(client, content, on_existing="skip").outcome == "stored"  # type: ignore[union-attr]
    assert (folder / PATH).read_bytes() == content


@pytest.mark.parametrize(("policy", "outcome"), [("skip", "exists"), ("error", "Failure"), ("server", "Failure")])
def test_a_writer_that_was_quicker_is_never_overwritten(
    policy: str, outcome: str, folder: Path, make_bytes: MakeBytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_bytes(PatientComments="of another writer")
    stat, calls = LocalFolder.stat, []

    def stat_later(self: LocalFolder, path: str) -> FileStat | None:
        calls.append(path)
        if calls.count(PATH) == 2:
            # After the look-up that found nothing, before the file is published.
            (folder / PATH).parent.mkdir(parents=True)
            (folder / PATH).write_bytes(other)
        return stat(self, path)

    monkeypatch.setattr(LocalFolder, "stat", stat_later)
    found = one(DICOMfileClient(folder), make_bytes(), on_existing=policy)
    assert len(calls) >= 2
    assert getattr(found, "outcome", type(found).__name__) == outcome
    assert (folder / PATH).read_bytes() == other


def test_another_instance_at_the_same_path_is_never_overwritten(folder: Path, make_bytes: MakeBytes) -> None:
    misplaced = make_bytes(sop="7.7")
    (folder / PATH).parent.mkdir(parents=True)
    (folder / PATH).write_bytes(misplaced)
    outcome = one(DICOMfileClient(folder), make_bytes(), on_existing="replace")
    assert isinstance(outcome, Failure)
    assert "7.7" in outcome.message
    assert (folder / PATH).read_bytes() == misplaced


def test_a_folder_with_another_layout_is_asked_too(folder: Path, put: Put, make_bytes: MakeBytes) -> None:
    first = put("scans/a.dcm", PatientID="one").read_bytes()
    (folder / "scans" / "copy.dcm").write_bytes(first)
    client = DICOMfileClient(folder)
    assert one(client, first).outcome == "exists"  # type: ignore[union-attr]
    assert stored_files(client) == ["scans/a.dcm", "scans/copy.dcm"]
    assert isinstance(one(client, make_bytes(PatientID="two")), Failure)
    assert one(client, make_bytes(PatientID="two"), on_existing="replace").outcome == "replaced"  # type: ignore[union-attr]
    assert stored_files(client) == [PATH]
    assert client.search_for_studies()[0]["00100020"]["Value"] == ["two"]
    assert list(client.iter_exclusions()) == []


@pytest.mark.parametrize("on_existing", ["server", "skip", "replace", "error"])
def test_the_uid_in_another_series_is_another_instance(
    on_existing: Any, folder: Path, put: Put, make_bytes: MakeBytes
) -> None:
    other = put("any/name.dcm", "1.2.1", "1.2.1.9", "1.2.1.1.1").read_bytes()
    client = DICOMfileClient(folder)
    outcome = one(client, make_bytes(), on_existing=on_existing)
    assert (outcome.outcome, (folder / "any/name.dcm").read_bytes()) == ("stored", other)
    assert len(client.search_for_instances()) == 2


def test_own_writes_are_searched_at_once_and_those_of_others_after_refresh(folder: Path, make_bytes: MakeBytes) -> None:
    client, other = DICOMfileClient(folder), DICOMfileClient(folder)
    assert client.search_for_instances() == other.search_for_instances() == []
    assert one(client, make_bytes()).outcome == "stored"  # type: ignore[union-attr]
    assert len(client.search_for_instances()) == 1
    assert other.search_for_instances() == []
    # What is asked for by its UIDs is found even so.
    assert len(list(other.iter_instances(Resource("1.2.1", "1.2.1.1", "1.2.1.1.1")))) == 1
    assert one(client, make_bytes(sop="1.2.1.1.2")).outcome == "stored"  # type: ignore[union-attr]
    other.refresh()
    assert len(other.search_for_instances()) == 2


def test_very_many_own_writes_lead_to_one_refresh(
    folder: Path, make_bytes: MakeBytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicomweb_io.files.client._MAX_PENDING", 3)
    client = DICOMfileClient(folder)
    assert client.search_for_instances() == []
    list(client.iter_store_instances(make_bytes(sop=f"1.2.{number}") for number in range(10)))
    assert len(client.search_for_instances()) == 10


def test_store_instances_gives_the_response_module(client: DICOMfileClient, make_bytes: MakeBytes) -> None:
    response = client.store_instances([make_bytes(), make_bytes(sop="1.2.1.1.2")], "1.2.1")
    assert [item.ReferencedSOPInstanceUID for item in response.ReferencedSOPSequence] == ["1.2.1.1.1", "1.2.1.1.2"]
    assert response.RetrieveURL == f"{client.base_url}/studies/1.2.1"
    with pytest.raises(StoreError) as caught:
        client.store_instances([make_bytes(PatientID="other"), b"rubbish", make_bytes(sop="1.2.1.1.3")])
    error = caught.value
    assert isinstance(error, requests.HTTPError)
    assert error.response is not None
    assert error.response.status_code == 409
    assert [type(outcome) for outcome in error.outcomes] == [Failure, Failure, StoredInstance]
    assert error.dataset is not None
    assert [item.FailureReason for item in error.dataset.FailedSOPSequence] == [272]
    assert [item.FailureReason for item in error.dataset.OtherFailuresSequence] == [0xC000]
    assert len(error.dataset.ReferencedSOPSequence) == 1


def test_a_read_only_client_refuses(folder: Path, put: Put, make_bytes: MakeBytes) -> None:
    put("a.dcm")
    client = DICOMfileClient(folder, readonly=True)
    for refused in (
        lambda: client.store_instances([make_bytes()]),
        lambda: client.delete_study("1.2.1"),
        lambda: client.iter_store_instances([make_bytes()]),
    ):
        with pytest.raises(requests.HTTPError) as caught:
            refused()
        assert caught.value.response.status_code == 403  # type: ignore[union-attr]
    assert len(client.search_for_instances()) == 1


def test_wrong_arguments_are_refused_before_anything_is_stored(client: DICOMfileClient, make_bytes: MakeBytes) -> None:
    with pytest.raises(ValueError, match="on_existing"):
        client.iter_store_instances([make_bytes()], on_existing="overwrite")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="verify"):
        client.iter_store_instances([make_bytes()], verify="hash")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="study_instance_uid"):
        client.store_instances([make_bytes()], "1.2/..")


# Names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "a/b", "a\\b", "a\0b", "/etc", "CON", "nul.1", "com1", "x" * 65, ".hidden", "1.2.", " 1", "1:2"],
)
def test_unsafe_names(name: str) -> None:
    assert not is_safe_name(name)


@given(st.text(max_size=70))
def test_a_safe_name_stays_inside_the_folder(name: str) -> None:
    if is_safe_name(name):
        assert os.path.normpath(os.path.join("/root", name)) == f"/root/{name}"
        assert len(name) <= 64
        path = layout_path(Resource(name, name, name))
        assert is_layout_path(path)


@given(st.from_regex(r"\A[0-9]{1,5}(\.[0-9]{1,9}){0,6}\Z"))
def test_every_uid_is_a_safe_name(uid: str) -> None:
    assert is_uid(uid) <= is_safe_name(uid)


# Deleting -----------------------------------------------------------------------------------------------------------


def test_deleting_removes_all_files_and_directories(client: DICOMfileClient, make_bytes: MakeBytes) -> None:
    for study, series, sop in (
        ("1", "1.1", "1.1.1"),
        ("1", "1.1", "1.1.2"),
        ("1", "1.2", "1.2.1"),
        ("2", "2.1", "2.1.1"),
    ):
        assert isinstance(one(client, make_bytes(study, series, sop)), StoredInstance)
    client.delete_instance("1", "1.1", "1.1.1")
    assert len(client.search_for_instances()) == 3
    client.delete_series("1", "1.1")
    assert len(client.search_for_series()) == 2
    client.delete_study("1")
    assert [row["0020000D"]["Value"] for row in client.search_for_studies()] == [["2"]]
    assert stored_files(client) == ["2/2.1/2.1.1.dcm"]
    for gone in (
        lambda: client.delete_study("1"),
        lambda: client.delete_series("2", "9"),
        lambda: client.delete_instance("2", "2.1", "9"),
    ):
        with pytest.raises(requests.HTTPError) as caught:
            gone()
        assert caught.value.response.status_code == 404  # type: ignore[union-attr]
        assert caught.value.response.request.method == "DELETE"  # type: ignore[union-attr]


def test_deleting_removes_duplicates_too(folder: Path, put: Put) -> None:
    put("b.dcm", PatientID="b")
    content = put("a.dcm", EncapsulatedDocument=b"a" * 50).read_bytes()
    (folder / "copy.dcm").write_bytes(content)
    (folder / "cut.dcm").write_bytes(content[:-4])
    put("other.dcm", sop="1.2.1.1.2")
    client = DICOMfileClient(folder)
    client.delete_instance("1.2.1", "1.2.1.1", "1.2.1.1.1")
    assert os.listdir(folder) == ["other.dcm"]
    client.refresh()
    assert len(client.search_for_instances()) == 1


def test_deleting_finds_what_others_have_stored_since(folder: Path, make_bytes: MakeBytes) -> None:
    client, other = DICOMfileClient(folder), DICOMfileClient(folder)
    assert client.search_for_studies() == []
    one(other, make_bytes())
    client.delete_study("1.2.1")
    assert os.listdir(folder) == []


# Many writers -------------------------------------------------------------------------------------------------------

WRITER = """
import json, sys
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.testing.samples import clone
folder, source, turn, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
content = open(source, "rb").read()
def items():
    for number in range(count):
        uid = f"1.2.3.{(turn * count // 2 + number) % (count * 2)}"
        yield clone(content, 0, series_instance_uid="1.2.3", sop_instance_uid=uid)
client = DICOMfileClient(folder)
outcomes = [getattr(outcome, "outcome", None) or outcome.message for outcome in client.iter_store_instances(items())]
print(json.dumps(outcomes))
"""


def test_processes_store_into_one_folder_with_overlaps(tmp_path: Path, samples: list[Path]) -> None:
    source = next(path for path in samples if path.name == "CT_small.dcm")
    folder = tmp_path / "shared"
    count, writers = 60, 4
    commands = [
        [sys.executable, "-c", WRITER, str(folder), str(source), str(turn), str(count)] for turn in range(writers)
    ]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    outcomes: Counter[str] = Counter()
    for process in running:
        outcomes.update(json.loads(process.communicate(timeout=120)[0]))
    # Four writers of 60 cover 120 instances, each twice.
    assert outcomes == {"stored": 2 * count, "exists": 2 * count}
    client = DICOMfileClient(folder)
    rows = client.search_for_instances()
    assert len(rows) == 2 * count
    assert list(client.iter_exclusions()) == []
    assert all(not name.startswith(".") for _, _, names in os.walk(folder) for name in names)
    size = source.stat().st_size
    for instance in client.iter_instances(Resource.of(rows[0]).series):
        assert instance.content is not None
        assert abs(len(instance.content) - size) < 200


def test_a_writer_killed_half_way_leaves_nothing_that_a_search_can_see(tmp_path: Path, make_bytes: MakeBytes) -> None:
    folder = tmp_path / "crash"
    script = (
        "import os, signal, sys\n"
        "from dicomweb_io.files.client import DICOMfileClient\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "list(DICOMfileClient(sys.argv[1]).iter_store_instances([sys.argv[2]]))\n"
    )
    source = tmp_path / "source.dcm"
    source.write_bytes(make_bytes())
    done = subprocess.run([sys.executable, "-c", script, str(folder), str(source)], check=False)
    assert done.returncode == -9
    leftovers = [name for _, _, names in os.walk(folder) for name in names]
    assert len(leftovers) == 1
    client = DICOMfileClient(folder)
    assert client.search_for_instances() == []
    assert list(client.iter_exclusions()) == []
    assert one(client, source).outcome == "stored"  # type: ignore[union-attr]


def test_a_killed_writer_leaves_whole_instances_only(tmp_path: Path, samples: list[Path]) -> None:
    source = next(path for path in samples if path.name == "CT_small.dcm")
    folder = tmp_path / "killed"
    count = 4000
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(source), "0", str(count)], stdout=subprocess.PIPE
    )
    while sum(len(names) for _, _, names in os.walk(folder)) < 25:
        assert writer.poll() is None, "the writer ended by itself"
    writer.kill()
    writer.communicate()
    client = DICOMfileClient(folder)
    rows = client.search_for_instances()
    assert 20 <= len(rows) < count
    assert list(client.iter_exclusions()) == []
    size = source.stat().st_size
    for instance in client.iter_instances(Resource.of(rows[0]).series):
        assert instance.content is not None
        assert abs(len(instance.content) - size) < 200
    # The next writer takes up where the killed one stopped.
    small = 60
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(folder), str(source), "0", str(small)], stdout=subprocess.PIPE, check=True
    )
    assert set(json.loads(done.stdout)) <= {"stored", "exists"}
    assert client.refresh().files >= small


def test_what_dead_writers_left_is_removed_a_day_later(folder: Path, put: Put, make_bytes: MakeBytes) -> None:
    put("1.2.1/1.2.1.1/1.2.1.1.1.dcm")

    def leave(name: str, hours: float) -> Path:
        path = folder / "1.2.9" / temporary_name(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
        written = time.time() - hours * 3600
        os.utime(path, (written, written))
        return path

    busy, dead = leave("busy.dcm", 23), leave("dead.dcm", 25)
    DICOMfileClient(folder, readonly=True).refresh()
    assert (busy.exists(), dead.exists()) == (True, True)
    client = DICOMfileClient(folder)
    assert client.refresh().files == 1
    assert (busy.exists(), dead.exists()) == (True, False)
    other = leave("other.dcm", 25)
    one(DICOMfileClient(folder), make_bytes("1.2.1", "1.2.1.1", "1.2.1.1.2"))
    assert (busy.exists(), other.exists()) == (True, False)
    busy.unlink()
    last = leave("last.dcm", 25)
    client.refresh()
    assert not last.parent.exists()


@pytest.mark.slow
def test_eight_processes_store_four_thousand_instances_with_overlaps(tmp_path: Path, samples: list[Path]) -> None:
    source = next(path for path in samples if path.name == "CT_small.dcm")
    folder = tmp_path / "shared"
    # Eight writers of 1,000, each overlapping its neighbours by a half, cover 4,000 instances twice.
    code = WRITER.replace("% (count * 2)", "% (count * 4)")
    commands = [[sys.executable, "-c", code, str(folder), str(source), str(turn), "1000"] for turn in range(8)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    client = DICOMfileClient(folder)
    outcomes: Counter[str] = Counter()
    for process in running:
        outcomes.update(json.loads(process.communicate(timeout=300)[0]))
        # Whatever a reader sees in between is whole.
        client.refresh()
        assert list(client.iter_exclusions()) == []
    assert outcomes == {"stored": 4000, "exists": 4000}
    client.refresh()
    rows = client.search_for_instances()
    assert len({row["00080018"]["Value"][0] for row in rows}) == len(rows) == 4000
    assert list(client.iter_exclusions()) == []
