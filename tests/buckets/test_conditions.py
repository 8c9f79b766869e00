"""Writes that must not replace or make anything: servers that say it otherwise, ignore it, or whose answer is lost."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from dicomweb_io.cli import main
from dicomweb_io.files import remote
from dicomweb_io.files.local import folder_of
from dicomweb_io.files.places import FileStat, Problem
from dicomweb_io.files.remote import RemoteFolder
from dicomweb_io.testing.samples import make_study
from tests.buckets.conftest import Bucket
from tests.buckets.servers import KINDS, Answer


def _error(status: int, code: str, words: str = "No.") -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{words}</Message></Error>".encode()
    return Answer(status, body, {"Content-Type": "application/xml", "x-ms-error-code": code})


@pytest.mark.parametrize("parts", [False, True])
def test_a_server_does_not_say_which_condition_failed(
    parts: bool, buckets: Callable[..., Bucket], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Amazon names it, others do not."""
    bucket = buckets("s3")
    bucket.write("a.dcm", b"before")
    (path := tmp_path / "a").write_bytes(b"after")
    bucket.proxy.refuse = lambda method, target: (
        _error(412, "PreconditionFailed") if method in ("PUT", "POST") else None
    )
    if parts:
        monkeypatch.setattr(remote, "_SINGLE_PUT_BYTES", 1)
    assert not folder_of(bucket.url).publish("a.dcm", str(path), replace=False)


@pytest.mark.parametrize("parts", [False, True])
def test_a_server_ignores_conditions(
    parts: bool, buckets: Callable[..., Bucket], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there stays nevertheless: it is looked for before."""
    make_study(folder, instances=3)
    bucket = buckets("s3")
    bucket.proxy.dropped = {"if-none-match"}
    if parts:
        monkeypatch.setattr(remote, "_SINGLE_PUT_BYTES", 1)
    target = folder_of(bucket.url)
    for name in ("a.dcm", "b.dcm"):
        bucket.write(name, b"before")
        assert not target.publish(name, b"after", replace=False)
        assert target.publish(f"new-{name}", b"new", replace=False)
        assert not target.publish(f"new-{name}", b"after", replace=False)
        assert bucket.read(name) == b"before"
        assert bucket.read(f"new-{name}") == b"new"
    assert main(["copy", str(folder), f"{bucket.url}/x"]) == 0
    bucket.proxy.requests.clear()
    assert main(["copy", str(folder), f"{bucket.url}/x"]) == 0
    assert not any(request.method == "PUT" for request in bucket.requests)


@pytest.mark.parametrize("replace", [False, True])
def test_what_a_server_refuses_is_not_taken_for_there(replace: bool, buckets: Callable[..., Bucket]) -> None:
    """Azure has one status for all conflicts: a blob that is there, one that may not change, a lease."""
    bucket = buckets("az")
    target = folder_of(bucket.url)
    bucket.proxy.refuse = lambda method, target: _error(409, "BlobImmutableDueToPolicy") if method == "PUT" else None
    with pytest.raises(OSError, match="BlobImmutableDueToPolicy"):
        target.publish("a.dcm", b"after", replace=replace)


def test_an_answer_is_lost(bucket: Bucket, folder: Path) -> None:
    """The write is sent again, and the server has the object already: all are there, once and whole."""
    paths = make_study(folder, instances=6)
    numbers = itertools.count()
    bucket.proxy.lose = lambda method, target: method in ("PUT", "POST") and next(numbers) in (0, 3)
    assert main(["copy", str(folder), f"{bucket.url}/x"]) == 0
    assert sorted(map(bucket.read, bucket.names())) == sorted(path.read_bytes() for path in paths)


def test_no_bucket_is_made_behind_a_cache(bucket: Bucket, buckets: Callable[..., Bucket], folder: Path) -> None:
    make_study(folder, instances=1)
    missing = buckets(next(name for name, kind in KINDS.items() if kind is bucket.kind), exists=False)
    assert main(["copy", str(folder), f"simplecache::{missing.url}/x"]) != 0
    assert not missing.files.exists(missing.url)


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_server_ignores_ranges(kind: str, buckets: Callable[..., Bucket]) -> None:
    """The beginning of the object is not taken for its middle. (Azure's client signs the range.)"""
    bucket = buckets(kind)
    bucket.write("a.dcm", b"0123456789")
    bucket.proxy.dropped = {"range"}
    with pytest.raises(OSError, match="answers 3 bytes of a range with 10"):
        cast(RemoteFolder, folder_of(bucket.url)).read_part("a.dcm", (2, 5))


def test_a_name_that_means_a_version_is_told(buckets: Callable[..., Bucket], folder: Path, tmp_path: Path) -> None:
    """A removal would take the other object."""
    bucket = buckets("s3")
    (path,) = make_study(folder, instances=1)
    bucket.mark("x/a?versionId=1")
    bucket.write("x/a", path.read_bytes())
    assert [type(entry) for entry in folder_of(f"{bucket.url}/x").walk()] == [FileStat, Problem]
    assert main(["copy", f"{bucket.url}/x", str(tmp_path / "back")]) == 1
    assert len(list((tmp_path / "back").rglob("*.dcm"))) == 1


def test_what_a_server_says_is_not_printed(bucket: Bucket, folder: Path) -> None:
    """Its words could name a patient."""
    make_study(folder, instances=1)
    body = b'{"error": {"code": 400, "message": "DOE^JANE"}}'
    refusal = Answer(400, body, {"Content-Type": "application/json"}) if bucket.kind.scheme == "gs" else None
    bucket.proxy.refuse = lambda method, target: (
        refusal or _error(400, "InvalidArgument", "DOE^JANE") if method in ("PUT", "POST") else None
    )
    program = "import sys; from dicomweb_io.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "copy", str(folder), f"{bucket.url}/x"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1
    assert "the server refuses the request (400" in ended.stderr
    assert "DOE" not in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
