"""Folders: URLs and paths, listings, and publishing in one step."""

from __future__ import annotations

import gzip
import os
import pickle
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import fsspec
import pytest

from dicomweb_io.endpoint import Endpoint
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.files.local import LocalFolder, folder_of
from dicomweb_io.files.places import FileStat, Folder, Problem, is_temporary, temporary_name
from dicomweb_io.files.remote import RemoteFolder


def names(folder: Folder) -> list[str]:
    return sorted(found.path for found in folder.walk())


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Folder:
    url = f"memory://{request.node.name.translate(str.maketrans('[]', '__'))}"
    return folder_of(url)


def test_local_paths_and_file_urls_name_the_same_folder(tmp_path: Path) -> None:
    directory = tmp_path / "a b%20c#d"
    directory.mkdir()
    forms = [directory, str(directory), f"file://{quote(str(directory))}", f"file://localhost{quote(str(directory))}"]
    folders = [folder_of(form) for form in forms]
    assert {folder.url for folder in folders} == {str(directory)}
    assert folders[0].base_url == directory.as_uri()
    assert all(isinstance(folder, LocalFolder) for folder in folders)


def test_relative_and_home_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder_of("x/../y").url == str(tmp_path / "y")
    assert folder_of("~/z").url == str(tmp_path / "z")


@pytest.mark.parametrize("url", ["", "https://host/dicom-web", "file://elsewhere/data", "file://"])
def test_what_is_no_folder_is_refused(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - every message differs
        folder_of(url)
    with pytest.raises(TypeError):
        folder_of(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["zip:///data/a.zip", "tar://a.tar"])
def test_an_archive_without_its_file_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected (zip|tar)://::file:///"):
        folder_of(url)


def test_two_colons_in_a_path_are_no_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "a::b"
    directory.mkdir()
    for place in (directory, str(directory), Path("a::b")):
        endpoint = Endpoint.of(place)
        assert (Path(endpoint.url), type(folder_of(endpoint.url))) == (directory, LocalFolder)
        assert type(folder_of(place)) is LocalFolder
    assert type(folder_of("zip::memory://a.zip")) is RemoteFolder


def test_files_that_have_to_be_unpacked_are_named(folder: Path) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("a.dcm", "DICM")
    (folder / "b.dcm.gz").write_bytes(gzip.compress(b"DICM" * 100_000 + os.urandom(200_000)))
    reasons = [item.reason for item in DICOMfileClient(folder, in_memory=True).iter_exclusions()]
    assert [reason.partition(":")[0] for reason in reasons] == [
        "a ZIP archive, which is not looked into",
        "compressed with gzip",
    ]


def test_base_url_hides_user_information() -> None:
    folder = folder_of("s3://key:secret@bucket/prefix/", {"secret": "hidden"})
    assert isinstance(folder, RemoteFolder)
    assert folder.base_url == "s3://bucket/prefix"
    assert folder.shown("a#1.dcm") == "s3://bucket/prefix/a#1.dcm"
    assert "hidden" not in repr(folder)


def test_a_folder_pickles_as_its_url_and_options() -> None:
    folder = folder_of("memory://x", {"a": 1})
    assert pickle.loads(pickle.dumps(folder)) == folder


def test_walk_leaves_out_hidden_directories_and_temporary_files(folder: Path) -> None:
    for name in ("a.dcm", "b/c.dcm", ".dicomweb_io/segments/s", "b/.git/x", ".hidden-file"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "b" / temporary_name("c.dcm")).write_bytes(b"half")
    assert names(folder_of(folder)) == [".hidden-file", "a.dcm", "b/c.dcm"]


def test_walk_follows_links_but_not_loops(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "f").write_bytes(b"1")
    (folder / "link").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    (outside / "deep" / "up").symlink_to(outside)
    (folder / "gone").symlink_to(tmp_path / "nothing")
    found = {item.path: item for item in folder_of(folder).walk()}
    assert set(found) == {"link/deep/f", "gone"}
    assert isinstance(found["gone"], Problem)
    assert isinstance(found["link/deep/f"], FileStat)


def test_walk_names_what_is_no_regular_file(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert list(folder_of(folder).walk()) == [Problem("pipe", "not a regular file")]


def test_names_that_are_not_utf8_survive(folder: Path) -> None:
    name = os.fsdecode(b"\xff\xfe.dcm")
    (folder / name).write_bytes(b"x")
    local = folder_of(folder)
    assert names(local) == [name]
    assert local.read(name) == b"x"


def test_a_missing_folder_is_an_error_for_listing(tmp_path: Path, memory: Folder) -> None:
    for missing in (folder_of(tmp_path / "nothing"), memory):
        assert not missing.exists()
        with pytest.raises(FileNotFoundError):
            list(missing.walk())


def test_a_file_is_no_folder(folder: Path) -> None:
    (folder / "f").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        list(folder_of(folder / "f").walk())


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_publish(kind: str, folder: Path, memory: Folder, tmp_path: Path) -> None:
    target = folder_of(folder) if kind == "local" else memory
    source = tmp_path / "source"
    source.write_bytes(b"from a path")
    assert target.publish("a/b/c.dcm", b"one", replace=False)
    assert not target.publish("a/b/c.dcm", b"two", replace=False)
    assert target.read("a/b/c.dcm") == b"one"
    assert target.publish("a/b/c.dcm", str(source), replace=True)
    assert target.read("a/b/c.dcm") == b"from a path"
    assert target.publish("d", str(source), replace=False)
    assert names(target) == ["a/b/c.dcm", "d"]
    stat = target.stat("a/b/c.dcm")
    assert stat is not None
    assert stat in list(target.walk())
    assert target.stat("nothing") is None
    with target.open("d") as file:
        file.seek(5)
        assert file.read(3) == b"a p"
    assert target.remove("a/b/c.dcm")
    assert not target.remove("a/b/c.dcm")
    assert names(target) == ["d"]


def test_removing_takes_empty_directories_along(folder: Path) -> None:
    target = folder_of(folder)
    for name in ("s/e/1.dcm", "s/e/2.dcm", "s/f/1.dcm"):
        target.publish(name, b"x", replace=False)
    target.remove("s/e/1.dcm")
    assert (folder / "s" / "e").is_dir()
    target.remove("s/e/2.dcm")
    assert not (folder / "s" / "e").exists()
    target.remove("s/f/1.dcm")
    assert folder.is_dir()
    assert not list(folder.iterdir())


def test_a_failed_write_leaves_nothing(folder: Path) -> None:
    target = folder_of(folder)
    with pytest.raises(FileNotFoundError):
        target.publish("a.dcm", str(folder / "no such source"), replace=False)
    assert names(target) == []
    assert not list(folder.iterdir())


def test_of_many_writers_of_one_file_one_wins_and_it_is_whole(folder: Path) -> None:
    target = folder_of(folder)
    start = threading.Barrier(8)

    def write(number: int) -> bool:
        start.wait()
        return target.publish("s/e/x.dcm", bytes([number]) * 100_000, replace=False)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert won.count(True) == 1
    assert target.read("s/e/x.dcm") == bytes([won.index(True)]) * 100_000
    assert os.listdir(folder / "s" / "e") == ["x.dcm"]


def test_publishing_without_hard_links(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    target = folder_of(folder)
    assert target.publish("a.dcm", b"one", replace=False)
    assert not target.publish("a.dcm", b"two", replace=False)
    assert os.listdir(folder) == ["a.dcm"]
    assert target.read("a.dcm") == b"one"


def test_remote_reads_are_ranges(memory: Folder) -> None:
    memory.publish("big", bytes(range(256)) * 4096, replace=False)
    filesystem = fsspec.filesystem("memory")
    asked: list[int] = []
    original = filesystem.cat_file

    def counting(path: str, start: int | None = None, end: int | None = None) -> bytes:
        asked.append((end or 0) - (start or 0))
        return bytes(original(path, start=start, end=end))

    filesystem.cat_file = counting
    try:
        with memory.open("big") as file:
            file.seek(500_000)
            assert file.read(3) == bytes([500_000 % 256, 500_001 % 256, 500_002 % 256])
    finally:
        del filesystem.cat_file
    assert sum(asked) <= 16384


def test_temporary_names_are_recognised() -> None:
    assert is_temporary(temporary_name("1.2.3.dcm"))
    assert is_temporary(temporary_name("x" * 300))
    assert not is_temporary("1.2.3.dcm")
    assert not is_temporary(".DS_Store")
