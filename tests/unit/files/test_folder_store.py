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
from hypothesis import given, strategies as st

from dicomweb_io.dicom.uids import is_safe_name, is_uid
from dicomweb_io.elements import Failure, Instance, Resource, StoredInstance
from dicomweb_io.errors import StoreError
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.files.local import LocalFolder, create_nameless
from dicomweb_io.files.places import FileStat, temporary_name
from dicomweb_io.files.store import is_layout_path, layout_path
from dicomweb_io.testing.samples import sample_file
from tests.unit.files.making import REFERENCE, Put, answered, make_bytes

PATH = "1.2.1/1.2.1.1/1.2.1.1.1.dcm"


@pytest.fixture(params=["local", "memory"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> DICOMfileClient:
    if request.param == "local":
        return DICOMfileClient(tmp_path / "destination" / "not there yet")
    return DICOMfileClient(f"memory://store/{request.node.name.translate(str.maketrans('[]', '__'))}")


def stored_files(client: DICOMfileClient) -> list[str]:
    return sorted(found.path for found in client._folder.walk())


def one(client: DICOMfileClient, storable: Any, **options: Any) -> Any:
    """The outcome of storing one instance."""
    (outcome,) = client.iter_store_instances([storable], **options)
    return outcome


def fails(client: DICOMfileClient, storable: Any, **options: Any) -> str:
    """Stores one instance, which fails, and gives the message."""
    outcome = one(client, storable, **options)
    assert isinstance(outcome, Failure)
    return outcome.message


@pytest.fixture
def occupied(folder: Path) -> Callable[[bytes], Path]:
    """Writes a file where the instance that `make_bytes` makes belongs."""

    def write(content: bytes) -> Path:
        (folder / PATH).parent.mkdir(parents=True)
        (folder / PATH).write_bytes(content)
        return folder / PATH

    return write


def test_every_kind_of_storable(client: DICOMfileClient, tmp_path: Path) -> None:
    contents = [make_bytes("1.2.1", "1.2.1.1", f"1.2.1.1.{number}") for number in range(6)]
    paths = [tmp_path / "source.dcm", tmp_path / "source2.dcm"]
    for path, content in zip(paths, contents[1:3], strict=True):
        path.write_bytes(content)
    storables = [
        contents[0],
        paths[0],
        str(paths[1]),
        Instance.from_bytes(contents[3]),
        io.BytesIO(contents[4]),
        pydicom.dcmread(io.BytesIO(contents[5])),
    ]
    outcomes = list(client.iter_store_instances(storables))
    assert [outcome.outcome for outcome in outcomes if isinstance(outcome, StoredInstance)] == ["stored"] * 6
    assert stored_files(client) == [f"1.2.1/1.2.1.1/1.2.1.1.{number}.dcm" for number in range(6)]
    for number, content in enumerate(contents[:5]):
        assert client._folder.read(f"1.2.1/1.2.1.1/1.2.1.1.{number}.dcm") == content
    first = outcomes[0]
    assert isinstance(first, StoredInstance)
    assert (first.size, first.verified) == (len(contents[0]), "response")
    assert first.retrieve_url == f"{client.base_url}/{first.reference.uri}"
    assert paths[0].exists()
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
def test_existing_instances(client: DICOMfileClient, on_existing: str, same: object, other: object) -> None:
    original, changed = make_bytes(PatientID="one"), make_bytes(PatientID="two")
    assert one(client, original, on_existing=on_existing).outcome == "stored"
    for content, expected in ((original, same), (changed, other)):
        outcome = one(client, content, on_existing=on_existing)
        if expected is Failure:
            assert (outcome.reason_code, outcome.reference) == (272, REFERENCE)
        else:
            assert (outcome.outcome, outcome.size) == (expected, len(changed) if expected == "replaced" else 0)
    assert client._folder.read(PATH) == (changed if on_existing == "replace" else original)
    assert stored_files(client) == [PATH]


@pytest.mark.parametrize(("verify", "evidence"), [("response", "response"), ("uid", "uid"), ("content", "file")])
def test_verification(client: DICOMfileClient, verify: str, evidence: str) -> None:
    content = make_bytes()
    assert one(client, content, verify=verify).verified == evidence
    again = one(client, content, verify=verify, on_existing="skip")
    assert (again.outcome, again.verified) == ("exists", "file" if verify == "content" else "uid")
    different = one(client, make_bytes(PatientID="x"), verify=verify, on_existing="skip")
    assert isinstance(different, Failure) == (verify == "content")


def test_what_cannot_be_found_again_is_refused(client: DICOMfileClient, tmp_path: Path) -> None:
    whole = make_bytes(EncapsulatedDocument=b"x" * 500)
    wrong = Instance(Resource("1.2.1", "1.2.1.1", "9.9"), "1.2.840.10008.1.2.1", whole)
    missing = tmp_path / "missing.dcm"
    bad = [whole[:-100], b"no DICOM", b"", missing, wrong, make_bytes("..", "1.2", "1.2.3"), make_bytes("1.2/3")]
    outcomes = list(client.iter_store_instances([*bad, whole]))
    assert [type(outcome) for outcome in outcomes] == [Failure] * len(bad) + [StoredInstance]
    assert all(isinstance(outcome, Failure) and outcome.reason_code for outcome in outcomes[:-1])
    assert "truncated" in outcomes[0].message  # type: ignore[union-attr]
    assert stored_files(client) == [PATH]


def test_an_instance_of_another_study_is_refused(client: DICOMfileClient) -> None:
    assert "9.9" in fails(client, make_bytes(), study_instance_uid="9.9")


def test_the_rest_of_a_broken_copy_is_replaced(folder: Path, occupied: Callable[[bytes], Path]) -> None:
    content = make_bytes(PatientComments="x" * 300)
    path = occupied(content[:200])
    assert one(DICOMfileClient(folder), content, on_existing="skip").outcome == "stored"
    assert path.read_bytes() == content


@pytest.mark.parametrize(("policy", "outcome"), [("skip", "exists"), ("error", "Failure"), ("server", "Failure")])
def test_a_writer_that_was_quicker_is_never_overwritten(
    policy: str, outcome: str, folder: Path, occupied: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_bytes(PatientComments="of another writer")
    stat, calls = LocalFolder.stat, []

    def stat_later(self: LocalFolder, path: str) -> FileStat | None:
        calls.append(path)
        if calls.count(PATH) == 2:
            # After the look-up that found nothing, before the file is published.
            occupied(other)
        return stat(self, path)

    monkeypatch.setattr(LocalFolder, "stat", stat_later)
    found = one(DICOMfileClient(folder), make_bytes(), on_existing=policy)
    assert len(calls) >= 2
    assert getattr(found, "outcome", type(found).__name__) == outcome
    assert (folder / PATH).read_bytes() == other


def test_another_instance_at_the_same_path_is_never_overwritten(
    folder: Path, occupied: Callable[[bytes], Path]
) -> None:
    misplaced = make_bytes(sop="7.7")
    path = occupied(misplaced)
    assert "7.7" in fails(DICOMfileClient(folder), make_bytes(), on_existing="replace")
    assert path.read_bytes() == misplaced


def test_a_folder_with_another_layout_is_asked_too(folder: Path, put: Put) -> None:
    first = put("scans/a.dcm", PatientID="one").read_bytes()
    (folder / "scans" / "copy.dcm").write_bytes(first)
    client = DICOMfileClient(folder)
    assert one(client, first).outcome == "exists"
    assert stored_files(client) == ["scans/a.dcm", "scans/copy.dcm"]
    fails(client, make_bytes(PatientID="two"))
    assert one(client, make_bytes(PatientID="two"), on_existing="replace").outcome == "replaced"
    assert stored_files(client) == [PATH]
    assert client.search_for_studies()[0]["00100020"]["Value"] == ["two"]
    assert list(client.iter_exclusions()) == []


@pytest.mark.parametrize("on_existing", ["server", "skip", "replace", "error"])
def test_the_uid_in_another_series_is_another_instance(on_existing: Any, folder: Path, put: Put) -> None:
    other = put("any/name.dcm", "1.2.1", "1.2.1.9", "1.2.1.1.1").read_bytes()
    client = DICOMfileClient(folder)
    outcome = one(client, make_bytes(), on_existing=on_existing)
    assert (outcome.outcome, (folder / "any/name.dcm").read_bytes()) == ("stored", other)
    assert len(client.search_for_instances()) == 2


def test_own_writes_are_searched_at_once_and_those_of_others_after_refresh(folder: Path) -> None:
    client, other = DICOMfileClient(folder), DICOMfileClient(folder)
    assert client.search_for_instances() == other.search_for_instances() == []
    assert one(client, make_bytes()).outcome == "stored"
    assert len(client.search_for_instances()) == 1
    assert other.search_for_instances() == []
    # What is asked for by its UIDs is found even so.
    assert len(list(other.iter_instances(REFERENCE))) == 1
    assert one(client, make_bytes(sop="1.2.1.1.2")).outcome == "stored"
    other.refresh()
    assert len(other.search_for_instances()) == 2


def test_very_many_own_writes_lead_to_one_refresh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomweb_io.files.client._MAX_PENDING", 3)
    client = DICOMfileClient(folder)
    assert client.search_for_instances() == []
    list(client.iter_store_instances(make_bytes(sop=f"1.2.{number}") for number in range(10)))
    assert len(client.search_for_instances()) == 10


def test_store_instances_gives_the_response_module(client: DICOMfileClient) -> None:
    response = client.store_instances([make_bytes(), make_bytes(sop="1.2.1.1.2")], "1.2.1")
    assert [item.ReferencedSOPInstanceUID for item in response.ReferencedSOPSequence] == ["1.2.1.1.1", "1.2.1.1.2"]
    assert response.RetrieveURL == f"{client.base_url}/studies/1.2.1"
    with answered(409) as caught:
        client.store_instances([make_bytes(PatientID="other"), b"rubbish", make_bytes(sop="1.2.1.1.3")])
    error: Any = caught.value
    assert isinstance(error, StoreError)
    assert [type(outcome) for outcome in error.outcomes] == [Failure, Failure, StoredInstance]
    assert [item.FailureReason for item in error.dataset.FailedSOPSequence] == [272]
    assert [item.FailureReason for item in error.dataset.OtherFailuresSequence] == [0xC000]
    assert len(error.dataset.ReferencedSOPSequence) == 1


def test_a_read_only_client_refuses(folder: Path, put: Put) -> None:
    put("a.dcm")
    client = DICOMfileClient(folder, readonly=True)
    for refused in (
        lambda: client.store_instances([make_bytes()]),
        lambda: client.delete_study("1.2.1"),
        lambda: client.iter_store_instances([make_bytes()]),
    ):
        with answered(403):
            refused()
    assert len(client.search_for_instances()) == 1


def test_wrong_arguments_are_refused_before_anything_is_stored(client: DICOMfileClient) -> None:
    wrong: dict[str, str] = {"on_existing": "overwrite", "verify": "hash", "study_instance_uid": "1.2/.."}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            client.iter_store_instances([make_bytes()], **{name: value})  # type: ignore[arg-type]
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
        assert layout_path(Resource(name, name, name)).count("/") == 2


@pytest.mark.parametrize(
    "names", [("Doe", "CT", "0001"), ("12345", "3", "1"), ("1.2.3", "4", "5"), ("1.2", "1.3", "a.b")]
)
def test_a_folder_of_names_is_not_taken_for_one_of_uids(names: tuple[str, str, str], folder: Path, put: Put) -> None:
    """An instance that lies under such names is not stored once more."""
    assert is_layout_path("1.2.1/1.2.1.1/1.2.1.1.1.dcm")
    content = put("/".join(names) + ".dcm").read_bytes()
    assert one(DICOMfileClient(folder), content).outcome == "exists"


@given(st.from_regex(r"\A[0-9]{1,5}(\.[0-9]{1,9}){0,6}\Z"))
def test_every_uid_is_a_safe_name(uid: str) -> None:
    assert is_uid(uid) <= is_safe_name(uid)


# Deleting -----------------------------------------------------------------------------------------------------------


def test_deleting_removes_all_files_and_directories(client: DICOMfileClient) -> None:
    for uids in (("1", "1.1", "1.1.1"), ("1", "1.1", "1.1.2"), ("1", "1.2", "1.2.1"), ("2", "2.1", "2.1.1")):
        assert isinstance(one(client, make_bytes(*uids)), StoredInstance)
    client.delete_instance("1", "1.1", "1.1.1")
    assert len(client.search_for_instances()) == 3
    client.delete_series("1", "1.1")
    assert len(client.search_for_series()) == 2
    client.delete_study("1")
    assert [row["0020000D"]["Value"] for row in client.search_for_studies()] == [["2"]]
    assert stored_files(client) == ["2/2.1/2.1.1.dcm"]
    for delete, *uids in (
        (client.delete_study, "1"),
        (client.delete_series, "2", "9"),
        (client.delete_instance, "2", "2.1", "9"),
    ):
        with answered(404) as caught:
            delete(*uids)
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


def test_deleting_finds_what_others_have_stored_since(folder: Path) -> None:
    client, other = DICOMfileClient(folder), DICOMfileClient(folder)
    assert client.search_for_studies() == []
    one(other, make_bytes())
    client.delete_study("1.2.1")
    assert os.listdir(folder) == []


# Many writers -------------------------------------------------------------------------------------------------------

WRITER = """
import json, sys
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.testing.samples import clone, sample_file
folder, turn, count, total = sys.argv[1], *map(int, sys.argv[2:])
content = sample_file("CT_small.dcm").read_bytes()
def items():
    for number in range(count):
        uid = f"1.2.3.{(turn * count // 2 + number) % total}"
        yield clone(content, 0, series_instance_uid="1.2.3", sop_instance_uid=uid)
client = DICOMfileClient(folder)
outcomes = [getattr(outcome, "outcome", None) or outcome.message for outcome in client.iter_store_instances(items())]
print(json.dumps(outcomes))
"""


def start_writer(folder: Path, turn: int, count: int, total: int) -> subprocess.Popen[str]:
    """A process that stores `count` of `total` instances, each turn overlapping its neighbours by a half."""
    command = [sys.executable, "-c", WRITER, str(folder), str(turn), str(count), str(total)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def outcomes_of(writer: subprocess.Popen[str]) -> list[str]:
    outcomes: list[str] = json.loads(writer.communicate(timeout=300)[0])
    return outcomes


def check_whole(client: DICOMfileClient) -> list[dict[str, Any]]:
    """Gives the rows of all instances, which are whole and nothing else is there."""
    rows = client.search_for_instances()
    assert list(client.iter_exclusions()) == []
    size = sample_file("CT_small.dcm").stat().st_size
    for instance in client.iter_instances(Resource.of(rows[0]).series):
        assert instance.content is not None
        assert abs(len(instance.content) - size) < 200
    return rows


def test_processes_store_into_one_folder_with_overlaps(tmp_path: Path) -> None:
    folder = tmp_path / "not there yet"
    writers = [start_writer(folder, turn, 60, 120) for turn in range(4)]
    outcomes = Counter(outcome for writer in writers for outcome in outcomes_of(writer))
    # Four writers of 60 cover 120 instances, each twice.
    assert outcomes == {"stored": 120, "exists": 120}
    assert len(check_whole(DICOMfileClient(folder))) == 120
    assert all(not name.startswith(".") for _, _, names in os.walk(folder) for name in names)


@pytest.mark.parametrize("nameless", [True, False])
def test_a_writer_killed_half_way_leaves_nothing_that_a_search_can_see(tmp_path: Path, nameless: bool) -> None:
    if nameless and create_nameless(str(tmp_path), 0o600) is None:
        pytest.skip("this filesystem has no files without a name")
    folder = tmp_path / "not there yet"
    script = (
        "import os, signal, sys\n"
        f"{'' if nameless else 'del os.O_TMPFILE'}\n"
        "from dicomweb_io.files.client import DICOMfileClient\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "list(DICOMfileClient(sys.argv[1]).iter_store_instances([sys.argv[2]]))\n"
    )
    source = tmp_path / "source.dcm"
    source.write_bytes(make_bytes())
    done = subprocess.run([sys.executable, "-c", script, str(folder), str(source)], check=False)
    assert done.returncode == -9
    assert sum(len(names) for _, _, names in os.walk(folder)) == (0 if nameless else 1)
    client = DICOMfileClient(folder)
    assert client.search_for_instances() == []
    assert list(client.iter_exclusions()) == []
    assert one(client, source).outcome == "stored"


def test_a_killed_writer_leaves_whole_instances_only(tmp_path: Path) -> None:
    folder = tmp_path / "not there yet"
    writer = start_writer(folder, 0, 4000, 8000)
    while sum(len(names) for _, _, names in os.walk(folder)) < 25:
        assert writer.poll() is None, "the writer ended by itself"
    writer.kill()
    writer.communicate()
    client = DICOMfileClient(folder)
    assert 20 <= len(check_whole(client)) < 4000
    # The next writer takes up where the killed one stopped.
    assert set(outcomes_of(start_writer(folder, 0, 60, 120))) <= {"stored", "exists"}
    assert client.refresh().files >= 60


def test_what_dead_writers_left_is_removed_a_day_later(folder: Path, put: Put) -> None:
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
def test_eight_processes_store_four_thousand_instances_with_overlaps(tmp_path: Path) -> None:
    folder = tmp_path / "not there yet"
    # Eight writers of 1,000, each overlapping its neighbours by a half, cover 4,000 instances twice.
    writers = [start_writer(folder, turn, 1000, 4000) for turn in range(8)]
    client = DICOMfileClient(folder)
    outcomes: Counter[str] = Counter()
    for writer in writers:
        outcomes.update(outcomes_of(writer))
        # Whatever a reader sees in between is whole.
        client.refresh()
        assert list(client.iter_exclusions()) == []
    assert outcomes == {"stored": 4000, "exists": 4000}
    client.refresh()
    rows = client.search_for_instances()
    assert len({row["00080018"]["Value"][0] for row in rows}) == len(rows) == 4000
    assert list(client.iter_exclusions()) == []
