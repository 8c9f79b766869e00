"""Files that change while they are stored or read: what arrives is whole, or nothing does."""

from __future__ import annotations

import io
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dicomweb_io.elements import Failure, Instance, StoredInstance
from dicomweb_io.files import local, remote
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.files.local import folder_of
from dicomweb_io.files.places import SourceChangedError, SourceFile
from tests.unit.files.making import REFERENCE, frames_of, make_bytes

IMAGE = {
    "SamplesPerPixel": 1, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0,
    "PhotometricInterpretation": "MONOCHROME2",
}  # fmt: skip


def image(letter: bytes, pixels: int = 2048) -> bytes:
    return make_bytes(Rows=pixels, Columns=1024, PixelData=letter * (pixels * 1024), **IMAGE)


def truncate(path: Path, content: bytes) -> None:
    os.truncate(path, len(content) // 2)


def grow(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def another_instance(path: Path, content: bytes) -> None:
    path.write_bytes(content.replace(b"1.2.1.1.1", b"1.2.1.1.9"))


def other_pixels(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"B" * 100)


def another_file(path: Path, content: bytes) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(content.replace(b"1.2.1.1.1", b"1.2.1.1.9"))
    os.replace(other, path)


CHANGES = [truncate, grow, another_instance, other_pixels, another_file]
CONTENT = image(b"A", 8)
Change = Callable[[Path, bytes], None]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An old file with `CONTENT`."""
    path = tmp_path / "source.dcm"
    path.write_bytes(CONTENT)
    os.utime(path, (1_600_000_000, 1_600_000_000))
    return path


def check_changed(client: DICOMfileClient, source: Path) -> None:
    """Stores a file, which fails because it changes, and leaves nothing behind."""
    (outcome,) = client.iter_store_instances([source])
    assert isinstance(outcome, Failure)
    assert "changed while" in outcome.message
    assert outcome.retryable
    assert not client._folder.exists() or list(client._folder.walk()) == []


@pytest.mark.parametrize("url", ["local", "memory", "memory, large"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_after_it_was_checked_is_not_stored(
    change: Change, url: str, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = DICOMfileClient(tmp_path / "store" if url == "local" else f"memory://sources/{change.__name__}{len(url)}")
    if url == "memory, large":
        monkeypatch.setattr(remote, "_SINGLE_PUT_BYTES", 0)
    opened = SourceFile.opened

    def change_first(self: SourceFile) -> object:
        monkeypatch.undo()
        change(source, CONTENT)
        return opened(self)

    monkeypatch.setattr(SourceFile, "opened", change_first)
    check_changed(client, source)


@pytest.mark.parametrize("change", CHANGES)
def test_a_failed_replacement_leaves_what_was_there(
    change: Change, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = DICOMfileClient(tmp_path / "store")
    before = image(b"Z", 8)
    list(client.iter_store_instances([before]))
    fsync = os.fsync

    def change_first(descriptor: int) -> None:
        # The copy is complete, but not yet published.
        change(source, CONTENT)
        fsync(descriptor)

    monkeypatch.setattr(local.os, "fsync", change_first)
    (outcome,) = client.iter_store_instances([source], on_existing="replace")
    monkeypatch.undo()
    (instance,) = client.iter_instances(REFERENCE)
    # Either of the two whole files will do, and the outcome says which it is.
    assert instance.content == (before if isinstance(outcome, Failure) else CONTENT)
    assert len(list(client._folder.walk())) == 1


class RewrittenFile(io.FileIO):
    """A file that somebody rewrites as soon as its first part was read."""

    rewrite: Callable[[], None] | None = None

    def read(self, size: int | None = -1) -> bytes | None:  # type: ignore[override]
        content = super().read(-1 if size is None else size)
        rewrite, self.rewrite = self.rewrite, None
        if rewrite is not None:
            rewrite()
        return content


@pytest.mark.parametrize("same_tick", [False, True])
@pytest.mark.parametrize("url", ["local", "memory"])
def test_a_file_that_is_rewritten_while_it_is_copied_does_not_arrive_mixed(
    url: str, same_tick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [image(letter) for letter in (b"A", b"B")]
    source = tmp_path / "source.dcm"
    source.write_bytes(versions[0])
    client = DICOMfileClient(tmp_path / "store" if url == "local" else f"memory://sources/mixed{same_tick}")
    if same_tick:
        # However slowly the test runs, this is no time that lies in the past.
        os.utime(source, (time.time() + 3600.5, time.time() + 3600.5))
    before = source.stat().st_mtime_ns

    def rewrite() -> None:
        source.write_bytes(versions[1])
        if same_tick:
            # What a coarse clock leaves of two changes in a row.
            os.utime(source, ns=(before, before))

    def opened(self: SourceFile) -> io.FileIO:
        file = RewrittenFile(self.path)
        file.rewrite = rewrite
        return file

    monkeypatch.setattr(SourceFile, "opened", opened)
    check_changed(client, source)
    monkeypatch.undo()
    (outcome,) = client.iter_store_instances([source])
    assert isinstance(outcome, StoredInstance)
    assert next(client.iter_instances(REFERENCE)).content == versions[1]


def test_a_source_is_neither_linked_nor_moved(tmp_path: Path) -> None:
    content = image(b"A", 8)
    archive = tmp_path / "archive"
    archive.mkdir()
    source = archive / "any name"
    source.write_bytes(content)
    borrowed = next(DICOMfileClient(archive).iter_instances(REFERENCE, max_element_bytes=1, borrow=True))
    assert borrowed.path == str(source)
    client = DICOMfileClient(tmp_path / "store")
    for storable in (source, borrowed, Instance.from_path(source)):
        list(client.iter_store_instances([storable], on_existing="replace"))
    stored = tmp_path / "store/1.2.1/1.2.1.1/1.2.1.1.1.dcm"
    assert source.read_bytes() == stored.read_bytes() == content
    assert source.stat().st_nlink == stored.stat().st_nlink == 1
    assert not os.path.samefile(source, stored)
    other_pixels(source, content)
    assert stored.read_bytes() == content


@pytest.mark.parametrize("how", ["instance", "frames", "bulkdata"])
def test_a_file_that_changes_while_it_is_read_is_an_error(
    how: str, folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = source.replace(folder / "a.dcm")
    client = DICOMfileClient(folder)
    client.search_for_instances()
    results = {
        "instance": lambda: client.iter_instances(REFERENCE),
        "frames": lambda: client.iter_frames(frames_of(REFERENCE, 1)),
        "bulkdata": lambda: client.iter_bulkdata_parts(f"{REFERENCE.uri}/bulkdata/7FE00010"),
    }[how]()
    reader = client._reader
    check, calls = reader.check, []

    def change_after_the_first(*arguments: object) -> None:
        check(*arguments)  # type: ignore[arg-type]
        calls.append(arguments)
        if len(calls) == 1:
            other_pixels(path, CONTENT)

    monkeypatch.setattr(reader, "check", change_after_the_first)
    with pytest.raises(Exception, match="changed after it was indexed"):
        list(results)


def test_a_source_that_vanishes_is_a_failure(tmp_path: Path) -> None:
    source = tmp_path / "source.dcm"
    source.write_bytes(make_bytes())
    held = SourceFile.of(str(source))
    source.unlink()
    with pytest.raises(FileNotFoundError):
        folder_of(tmp_path / "store").publish("a", held, replace=False)
    assert not any((tmp_path / "store").rglob("*.part"))


def test_the_error_travels_between_processes() -> None:
    again = pickle.loads(pickle.dumps(SourceChangedError("/data/a.dcm")))
    assert (str(again), again.retryable) == (str(SourceChangedError("/data/a.dcm")), True)
