"""The index of a folder: incremental, disposable, shared, and right about duplicates."""

from __future__ import annotations

import os
import random
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian

from dicomweb_io.dicom.header_scan import scan_header
from dicomweb_io.dicom.part10 import encode_dataset
from dicomweb_io.elements import Resource
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.files.database import index_path, is_local_disk
from dicomweb_io.files.index import ConflictingDuplicatesError, Index
from dicomweb_io.files.local import folder_of
from dicomweb_io.files.records import pack_scan, read_record, unpack_scan
from dicomweb_io.testing.samples import sample_file
from tests.unit.files.making import Put, make_bytes

PutMany = Callable[[int], None]


def opened(folder: Path, place: Path | None = None, **options: object) -> Index:
    index = Index(folder_of(folder), place=place, **options)  # type: ignore[arg-type]
    index.open()
    return index


def sops(index: Index) -> list[str]:
    return [row[0] for row in index.select("SELECT sop FROM instance ORDER BY sop, file")]


def old(path: Path, seconds: int = 100) -> Path:
    """Gives a file a time of modification in the past, as almost all files have."""
    now = path.stat().st_mtime_ns
    os.utime(path, ns=(now - seconds * 10**9, now - seconds * 10**9))
    return path


@pytest.fixture
def put_many(put: Put) -> PutMany:
    """Writes that many old files of one series."""

    def write(count: int) -> None:
        for number in range(count):
            old(put(f"{number}.dcm", "1.2", "1.2.3", f"1.2.3.{number}", Modality="CT"))

    return write


def in_process(script: str, folder: Path, place: Path) -> subprocess.Popen[str]:
    """Runs a script that has an index of a folder, and the module of indexes."""
    begin = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from dicomweb_io.files import index as module\n"
        "from dicomweb_io.files.local import folder_of\n"
        "index = module.Index(folder_of(sys.argv[1]), place=Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", begin + script, str(folder), str(place)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "index" / "x.sqlite"


def test_only_new_and_changed_files_are_read(folder: Path, place: Path, put: Put, put_many: PutMany) -> None:
    put_many(5)
    index = opened(folder, place)
    assert index.refresh() == (5, 0, 0)
    put("new.dcm", "1.2", "1.2.3", "1.2.3.9")
    put("0.dcm", "1.2", "1.2.3", "1.2.3.8")
    (folder / "4.dcm").unlink()
    assert index.refresh()[:2] == (5, 2)
    assert sops(index) == ["1.2.3.1", "1.2.3.2", "1.2.3.3", "1.2.3.8", "1.2.3.9"]
    index.close()
    again = Index(folder_of(folder), place=place)
    # What was written a moment ago might change again within the same tick of the clock, so it may be read once more.
    assert again.refresh().read <= 2


def test_series_and_study_rows_follow_their_instances(folder: Path, place: Path, put: Put) -> None:
    old(put("a.dcm", "1.2", "1.2.3", "1.2.3.1", Modality="CT", SeriesNumber=1))
    old(put("b.dcm", "1.2", "1.2.4", "1.2.4.1", Modality="MR", SeriesNumber=2))
    index = opened(folder, place)
    rows = index.select("SELECT series, modality, instances FROM series ORDER BY series")
    assert rows == [("1.2.3", "CT", 1), ("1.2.4", "MR", 1)]
    put("c.dcm", "1.2", "1.2.4", "1.2.4.2", Modality="MR")
    (folder / "a.dcm").unlink()
    index.refresh()
    assert index.select("SELECT series, modality, instances FROM series") == [("1.2.4", "MR", 2)]
    assert index.select("SELECT study, instances FROM study") == [("1.2", 2)]
    for path in folder.iterdir():
        path.unlink()
    index.refresh()
    assert index.select("SELECT COUNT(*) FROM study") == [(0,)]
    assert index.select("SELECT COUNT(*) FROM header") == [(0,)]


def test_a_change_within_one_tick_of_the_clock_is_noticed(folder: Path, place: Path, put: Put) -> None:
    path = put("a.dcm", "1.2", "1.2.3", "1.2.3.1")
    # However slow this machine is, the file is read before its time has passed.
    before = time.time_ns() + 60 * 10**9
    os.utime(path, ns=(before, before))
    index = opened(folder, place)
    put("a.dcm", "1.2", "1.2.3", "1.2.3.2")
    os.utime(path, ns=(before, before))
    index.refresh()
    assert sops(index) == ["1.2.3.2"]


def test_the_index_is_for_its_owner_only(folder: Path, place: Path, put: Put) -> None:
    put("a.dcm")
    opened(folder, place)
    for name in os.listdir(place.parent):
        assert stat.S_IMODE((place.parent / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", ["garbage", "truncated", "old version", "foreign"])
def test_a_damaged_index_is_made_anew(damage: str, folder: Path, place: Path, put: Put) -> None:
    old(put("a.dcm"))
    index = opened(folder, place)
    index.close()
    if damage == "garbage":
        place.write_bytes(b"not a database" * 1000)
    elif damage == "truncated":
        place.write_bytes(place.read_bytes()[:5000])
    else:
        connection = sqlite3.connect(place)
        connection.execute("PRAGMA user_version = 99" if damage == "old version" else "PRAGMA application_id = 7")
        connection.close()
    assert sops(opened(folder, place)) == ["1.2.1.1.1"]


@pytest.mark.parametrize("duplicates", ["first", "newest", "all"])
@pytest.mark.parametrize("before", [0x00280010, 0x00280100, 0x7FE00010])
@pytest.mark.parametrize("deflated", [False, True])
def test_a_file_without_its_pixel_data_gives_way_to_one_with_them(
    duplicates: Any, before: int, deflated: bool, folder: Path, place: Path
) -> None:
    content = sample_file("CT_small.dcm").read_bytes()
    scan = scan_header(content)
    uid = str(scan.text(0x0020000D))
    cut = content[: scan.end if before == 0x7FE00010 else scan.elements[before][1] - 8]
    whole = content
    if deflated:
        dataset = dcmread(BytesIO(content))
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        whole, cut = (encode_dataset(part) for part in (dataset, dataset[:before]))
    for name, kept, when in (("a.dcm", cut, 1_700_000_000), ("b.dcm", whole, 1_600_000_000)):
        (folder / name).write_bytes(kept)
        os.utime(folder / name, (when, when))
    client = DICOMfileClient(folder, index=place, duplicates=duplicates)
    (instance,) = client.iter_instances(Resource(uid))
    assert instance.content == whole
    assert [row["00280010"]["Value"] for row in client.search_for_instances(fields=["Rows"])] == [[128]]
    (excluded,) = client.iter_exclusions()
    assert (excluded.kind, os.path.basename(excluded.path)) == ("duplicate", "a.dcm")
    assert excluded.reason.startswith("conflicting")
    (folder / "b.dcm").unlink()
    client.refresh()
    (instance,) = client.iter_instances(Resource(uid))
    assert instance.content == cut


def test_an_index_of_an_older_form_chooses_anew(folder: Path, place: Path) -> None:
    content = sample_file("CT_small.dcm").read_bytes()
    (folder / "a.dcm").write_bytes(content[: scan_header(content).elements[0x00280010][1] - 8])
    (folder / "b.dcm").write_bytes(content)
    for name in ("a.dcm", "b.dcm"):
        old(folder / name)
    opened(folder, place).close()
    cut = "(SELECT id FROM file WHERE path = CAST('a.dcm' AS BLOB))"
    with closing(sqlite3.connect(place)) as database:
        database.executescript(f"UPDATE instance SET file = {cut}; PRAGMA user_version = 2")
    (path,) = [file.path for file in opened(folder, place).files("1", [])]
    assert path == "b.dcm"


def test_damage_in_the_middle_is_noticed_and_repaired(folder: Path, place: Path, put_many: PutMany) -> None:
    put_many(50)
    opened(folder, place).close()
    content = bytearray(place.read_bytes())
    content[4096 * 2 :] = os.urandom(len(content) - 4096 * 2)
    place.write_bytes(content)
    for suffix in ("-wal", "-shm"):
        Path(f"{place}{suffix}").unlink(missing_ok=True)
    index = Index(folder_of(folder), place=place)
    index.refresh()
    assert len(sops(index)) == 50


def test_an_interrupted_build_is_finished_by_the_next(folder: Path, place: Path, put_many: PutMany) -> None:
    put_many(3)
    index = Index(folder_of(folder), place=place)
    stats = list(index.folder.walk())
    index._begin()
    index._write([read_record(index.folder, stats[0])], set())  # type: ignore[arg-type]
    index._database.writer.execute("COMMIT")
    index.close()
    again = opened(folder, place)
    assert len(sops(again)) == 3
    assert again.select("SELECT instances, modality FROM series") == [(3, "CT")]


def test_a_killed_process_leaves_the_index_usable(folder: Path, place: Path, put_many: PutMany) -> None:
    put_many(20)
    script = (
        "original = module.Views.choose\n"
        "def die(*arguments):\n"
        "    original(*arguments)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "module.Views.choose = die\n"
        "index.refresh()\n"
    )
    process = in_process(script, folder, place)
    process.communicate()
    assert process.returncode == -9
    assert len(sops(opened(folder, place))) == 20


BUSY = """
module._BATCH = 20
print("begun", flush=True)
turn = 0
while True:
    turn += 1
    for path in Path(sys.argv[1]).iterdir():
        os.utime(path, (1_600_000_000 + turn, os.getpid()))
    index.refresh()
"""


@pytest.mark.slow
def test_processes_that_are_killed_at_any_moment_leave_the_index_usable(folder: Path, place: Path, put: Put) -> None:
    for number in range(200):
        put(f"{number}.dcm", "1.2", f"1.2.{number % 7}", f"1.2.{number % 7}.{number}", Modality="CT")
    for turn in range(10):
        # One of them works, the others wait for it.
        running = [in_process(BUSY, folder, place) for _ in range(3)]
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
        time.sleep(random.Random(turn).uniform(0.0, 0.3))
        for process in running:
            process.kill()
            process.communicate()
        index = opened(folder, place)
        assert len(sops(index)) == 200
        assert index.select("SELECT SUM(instances) FROM series") == [(200,)]
        assert index.select("PRAGMA integrity_check") == [("ok",)]
        assert index._database.shared
        index.close()


def test_processes_share_an_index(folder: Path, place: Path, put_many: PutMany) -> None:
    put_many(60)
    script = (
        "read = index.refresh().read\n"
        "print(read, index.select('SELECT COUNT(*) FROM instance')[0][0], index._database.shared)\n"
    )
    running = [in_process(script, folder, place) for _ in range(8)]
    answers = [process.communicate(timeout=60)[0].split() for process in running]
    assert [answer[1:] for answer in answers] == [["60", "True"]] * 8
    assert sorted(int(answer[0]) for answer in answers) == [0] * 7 + [60]


def test_a_snapshot_does_not_change_when_others_refresh(folder: Path, place: Path, put: Put) -> None:
    old(put("a.dcm", "1.2", "1.2.3", "1.2.3.1"))
    one, other = opened(folder, place), opened(folder, place)
    put("b.dcm", "1.2", "1.2.3", "1.2.3.2")
    other.refresh()
    assert len(sops(other)) == 2
    assert len(sops(one)) == 1
    one.refresh()
    assert len(sops(one)) == 2


def test_without_a_writable_place_the_index_is_private(folder: Path, tmp_path: Path, put: Put) -> None:
    put("a.dcm")
    blocked = tmp_path / "blocked"
    blocked.write_bytes(b"a file where a directory should be")
    index = opened(folder, blocked / "x.sqlite")
    assert not index._database.shared
    assert sops(index) == ["1.2.1.1.1"]


def test_the_word_of_sqlite_for_memory_is_no_directory(
    folder: Path, tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("a.dcm", "1.2.1.1.1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with DICOMfileClient(folder, index=":memory:") as client:
        assert len(client.search_for_instances()) == 1
    assert not list((tmp_path / "here").iterdir())


def test_an_index_in_memory_leaves_no_file(folder: Path, tmp_path: Path, put: Put) -> None:
    put("a.dcm")
    before = sorted(tmp_path.iterdir())
    assert sops(opened(folder, in_memory=True)) == ["1.2.1.1.1"]
    assert sorted(tmp_path.iterdir()) == before


def test_the_place_depends_on_folder_and_options_but_not_on_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DICOMWEB_IO_CACHE", str(tmp_path))
    one = index_path("s3://a", {"endpoint_url": "x", "secret": "s"}, "v", None)
    assert one is not None
    assert one.parent == tmp_path / "index"
    assert one == index_path("s3://a", {"endpoint_url": "x", "secret": "t"}, "v", None)
    assert one != index_path("s3://a", {"endpoint_url": "y", "secret": "s"}, "v", None)
    assert one != index_path("s3://b", {"endpoint_url": "x", "secret": "s"}, "v", None)
    assert one != index_path("s3://a", {"endpoint_url": "x", "secret": "s"}, "w", None)
    assert index_path("s3://a", None, "v", str(tmp_path / "given")).parent == tmp_path / "given"  # type: ignore[union-attr]


def test_the_place_follows_the_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DICOMWEB_IO_CACHE", raising=False)
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert index_path("file:///x", None, "", None).parent == tmp_path / "dicomweb_io" / "index"  # type: ignore[union-attr]


def test_this_disk_is_local(tmp_path: Path) -> None:
    assert is_local_disk(tmp_path)


def test_a_fork_uses_connections_of_its_own(folder: Path, place: Path, put: Put) -> None:
    old(put("a.dcm"))
    index = opened(folder, place)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"failed"
        try:
            answer = repr((sops(index), index.refresh().files)).encode()
        finally:
            os.write(writing, answer)
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        assert file.read() == b"(['1.2.1.1.1'], 1)"
    assert sops(index) == ["1.2.1.1.1"]


def test_threads_may_search_and_refresh_at_once(folder: Path, place: Path, put_many: PutMany) -> None:
    put_many(30)
    index = opened(folder, place)

    def work(turn: int) -> None:
        for _ in range(10):
            if turn % 2:
                index.refresh()
            assert len(sops(index)) == 30

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


# Duplicates ---------------------------------------------------------------------------------------------------------


def shown(index: Index) -> list[str]:
    rows = index.select("SELECT f.path FROM instance i JOIN file f ON f.id = i.file ORDER BY f.path")
    return [row[0].decode() for row in rows]


@pytest.fixture
def twins(folder: Path, put: Put) -> Path:
    """``b`` and ``d`` are identical, ``c`` differs, ``a`` is cut off, ``c`` is the newest."""
    content = put("b.dcm", PatientID="one", SOPClassUID=CTImageStorage, PatientComments="x" * 100).read_bytes()
    (folder / "d.dcm").write_bytes(content)
    (folder / "a.dcm").write_bytes(content[:-50])
    put("c.dcm", PatientID="two", SOPClassUID=CTImageStorage, PatientComments="x" * 100)
    for name, age in (("a", 50), ("b", 300), ("c", 100), ("d", 200)):
        old(folder / f"{name}.dcm", age)
    return folder


@pytest.mark.parametrize(("rule", "paths"), [("first", ["b.dcm"]), ("newest", ["c.dcm"]), ("all", ["b.dcm", "c.dcm"])])
def test_the_rule_decides_which_twin_stands_for_the_instance(rule: str, paths: list[str], twins: Path) -> None:
    assert shown(opened(twins, duplicates=rule)) == paths


def test_conflicts_can_be_refused(twins: Path) -> None:
    with pytest.raises(ConflictingDuplicatesError, match=r"b\.dcm and c\.dcm"):
        opened(twins, duplicates="error")
    (twins / "c.dcm").unlink()
    assert shown(opened(twins, duplicates="error")) == ["b.dcm"]


def test_when_the_chosen_twin_goes_the_next_one_takes_its_place(twins: Path, place: Path) -> None:
    index = opened(twins, place)
    (twins / "b.dcm").unlink()
    index.refresh()
    assert shown(index) == ["c.dcm"]
    (twins / "c.dcm").unlink()
    (twins / "d.dcm").unlink()
    index.refresh()
    assert shown(index) == []


def test_a_complete_twin_displaces_what_came_first_in_time(folder: Path, place: Path, put: Put) -> None:
    put("m.dcm", PatientID="m")
    index = opened(folder, place)
    put("a.dcm", PatientID="a")
    index.refresh()
    assert shown(index) == ["a.dcm"]


# Records ------------------------------------------------------------------------------------------------------------


def test_what_is_kept_of_a_header_gives_the_same_scan(samples: list[Path]) -> None:
    compared = 0
    for path in samples:
        folder = folder_of(path.parent)
        stat_of_file = folder.stat(path.name)
        assert stat_of_file is not None
        record = read_record(folder, stat_of_file)
        if record.scan is None:
            continue
        compared += 1
        kept = unpack_scan(*pack_scan(record.scan))
        for name in ("elements", "meta", "pixel_data", "pixel_data_tag", "transfer_syntax_uid", "end", "explicit_vr"):
            assert getattr(kept, name) == getattr(record.scan, name), (path.name, name)
        for place in record.scan.elements.values():
            if place[2] <= 8192:
                assert kept.read(place[1], place[2]) == record.scan.read(place[1], place[2])
    assert compared > 140


def test_long_values_stay_in_the_file() -> None:
    content = make_bytes(PatientComments="y" * 9000, EncapsulatedDocument=b"z" * 300_000, PatientID="p")
    scan = scan_header(content)
    form, packed = pack_scan(scan)
    assert len(packed) < 3000
    kept = unpack_scan(form, packed)
    assert kept.elements == scan.elements
    assert kept.text(0x00100020) == "p"
    assert kept.value(0x00104000) is None


@pytest.mark.parametrize("rule", ["first", "newest", "all", "error"])
def test_one_sop_instance_uid_in_two_series_is_two_instances(rule: Any, folder: Path, place: Path, put: Put) -> None:
    names = {("1.2.1", "1.2.1.1", "9"), ("1.2.1", "1.2.1.2", "9"), ("1.2.2", "1.2.2.1", "9")}
    for number, uids in enumerate(sorted(names)):
        put(f"{number}.dcm", *uids, InstanceNumber=number)
    client = DICOMfileClient(folder, index=place, duplicates=rule)

    def found() -> set[tuple[str, ...]]:
        return {tuple(Resource.of(row).uids.values()) for row in client.search_for_instances()}

    assert found() == names
    assert list(client.iter_exclusions()) == []
    for uids in names:
        (instance,) = client.iter_instances(Resource(*uids))
        assert instance.reference == Resource(*uids)
    # A file that is cut off belongs to the instance of all its three UIDs.
    cut = put("cut.dcm", "1.2.1", "1.2.1.3", "9", EncapsulatedDocument=b"x" * 50)
    cut.write_bytes(cut.read_bytes()[:-20])
    client.refresh()
    assert [item.kind for item in client.iter_exclusions()] == ["unreadable"]
    (folder / "1.dcm").unlink()
    client.refresh()
    assert found() == names - {("1.2.1", "1.2.1.2", "9")}
    client.close()
