"""Collecting bytes in memory or in a private file."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, strategies as st

from dicomweb_io import spool
from dicomweb_io.spool import PrivateDirectory, Spool, collect


@given(st.lists(st.binary(max_size=50), max_size=8), st.integers(0, 200))
def test_everything_comes_back(chunks, limit) -> None:
    whole = b"".join(chunks)
    content, path = collect([memoryview(chunk) for chunk in chunks], max_bytes=limit)
    assert (content is None) == (len(whole) > limit)
    if path is not None:
        with open(path, "rb") as file:
            content = file.read()
        os.unlink(path)
    assert content == whole
    assert isinstance(content, bytes)


def test_the_file_is_private_and_the_callers(tmp_path) -> None:
    collected = collect([b"a" * 10, b"b" * 10], max_bytes=15, directory=tmp_path, suffix=".part")
    assert collected.content is None
    assert collected.path is not None
    assert collected.path.endswith(".part")
    assert os.path.dirname(collected.path) == str(tmp_path)
    assert stat.S_IMODE(os.stat(collected.path).st_mode) == 0o600


def test_an_error_leaves_no_file(tmp_path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"x" * 100
        assert len(os.listdir(tmp_path)) == 1
        raise KeyError("the source's own")

    with pytest.raises(KeyError):
        collect(chunks(), max_bytes=10, directory=tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_spool_that_is_not_finished_leaves_no_file(tmp_path) -> None:
    with Spool(max_bytes=0, directory=tmp_path) as spool:
        spool.write(b"x")
        assert spool.size == 1
        assert len(os.listdir(tmp_path)) == 1
    assert os.listdir(tmp_path) == []
    with Spool(max_bytes=0, directory=tmp_path) as spool:
        spool.write(b"x")
        path = spool.finish().path
    assert [str(tmp_path / name) for name in os.listdir(tmp_path)] == [path]


def test_a_file_that_cannot_be_made(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        collect([b"x"], max_bytes=0, directory=tmp_path / "none")
    with pytest.raises(ValueError, match="negative"):
        Spool(max_bytes=-1)


def test_one_small_chunk_is_not_copied() -> None:
    chunk = b"x" * 1000
    assert collect([chunk], max_bytes=1000).content is chunk


KILLED = (
    "import os, signal; from dicomweb_io.spool import PrivateDirectory;"
    "path = PrivateDirectory({parent!r}).path; open(path + '/spooled.dcm', 'wb').write(b'patients');"
    "print(path, flush=True); {end}"
)


def test_the_directory_of_a_killed_process_is_removed_by_a_later_one(tmp_path):
    parent = str(tmp_path)
    theirs = tmp_path / "dicomweb_io-archives"
    theirs.mkdir()
    (theirs / "file.dcm").write_bytes(b"a user's own")
    command = [sys.executable, "-c"]
    killed = subprocess.run([*command, KILLED.format(parent=parent, end="os.kill(os.getpid(), 9)")], check=False)
    assert killed.returncode == -signal.SIGKILL
    waiting = KILLED.format(parent=parent, end="input()")
    with subprocess.Popen([*command, waiting], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as alive:
        path = str(alive.stdout.readline()).strip()
        # It has removed the first, and the next one leaves what is in use, and what is none of ours.
        end = "print(len(os.listdir(os.path.dirname(path))))"
        found = subprocess.run([*command, KILLED.format(parent=parent, end=end)], capture_output=True, check=True)
        assert found.stdout.splitlines()[1] == b"3"
        assert os.path.exists(f"{path}/spooled.dcm")
        alive.communicate("\n")
    assert (theirs / "file.dcm").exists()


def test_the_directory_of_another_host_is_removed_a_day_later(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "_host", lambda: "0" * 16)
    left = PrivateDirectory(str(tmp_path))
    path = left.path
    os.close(left._owned)
    monkeypatch.undo()
    for days, there in ((0, True), (2, False)):
        spool._swept.clear()
        if days:
            os.utime(path, (time.time() - days * 86400,) * 2)
        with PrivateDirectory(str(tmp_path)) as own:
            assert os.path.isdir(own)
            assert os.path.exists(path) is there
    assert os.listdir(tmp_path) == []
