"""Folders in buckets: what comes out, and what is asked of the server for it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dicomweb_io import DICOMfileClient, Endpoint, Resource
from dicomweb_io.cli import main
from dicomweb_io.errors import FileClientError
from dicomweb_io.files import remote
from dicomweb_io.files.local import folder_of
from dicomweb_io.files.places import MissingBucketError
from dicomweb_io.testing.samples import make_study
from tests.buckets.conftest import Bucket
from tests.buckets.servers import KINDS


def contents(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in folder.rglob("*.dcm"))


def of_objects(bucket: Bucket) -> list[str]:
    """The methods of the requests that name an object of an instance; a write may be a POST."""
    return [request.method for request in bucket.requests if ".dcm" in request.path or request.method == "POST"]


def others(bucket: Bucket) -> int:
    return len(bucket.requests) - len(of_objects(bucket))


def test_there_and_back_and_again(bucket: Bucket, folder: Path, tmp_path: Path) -> None:
    make_study(folder, studies=2, series=2, instances=3)
    place = f"{bucket.url}/studies"
    summary = tmp_path / "summary.json"
    for transferred in (12, 0):
        assert main(["copy", str(folder), place, "--summary", str(summary)]) == 0
        assert json.loads(summary.read_text())["transferred"] == transferred
    back = tmp_path / "back"
    assert main(["copy", place, str(back)]) == 0
    assert contents(back) == contents(folder)
    assert len(bucket.names()) == 12


def test_each_object_costs_one_request(bucket: Bucket, folder: Path, tmp_path: Path) -> None:
    make_study(folder, studies=3, series=2, instances=4)
    place = f"{bucket.url}/studies"
    # The server has proven to this process that it keeps conditions.
    assert (first := folder_of(place)).publish("a", b"", replace=False)
    assert first.remove("a")
    bucket.proxy.reset()
    assert main(["copy", str(folder), place]) == 0
    written = of_objects(bucket)
    assert len(written) == 24
    assert set(written) <= {"PUT", "POST"}
    # Once for the whole, and once or twice for each series.
    assert others(bucket) < 24
    # The index reads each header, and then each object is read.
    for what, requests in (("index", 24), ("objects", 24), ("objects again", 24)):
        bucket.proxy.reset()
        if what == "index":
            assert len(DICOMfileClient(place).search_for_instances()) == 24
        else:
            assert main(["copy", place, str(tmp_path / what)]) == 0
        assert Counter(of_objects(bucket)) == {"GET": requests}, what
        assert others(bucket) <= 2


def test_one_frame_costs_one_frame(bucket: Bucket, folder: Path) -> None:
    (path,) = make_study(folder, instances=1, size=2 << 20)
    bucket.write("large.dcm", path.read_bytes())
    client = DICOMfileClient(bucket.url)
    (row,) = client.search_for_instances()
    reference = Resource.of(row)
    bucket.proxy.reset()
    (frame,) = client.iter_frames(Resource(*reference.uids.values(), frames=(1,)))
    (request,) = bucket.requests
    assert frame.content is not None
    assert request.range
    assert len(frame.content) <= request.received <= len(frame.content) + (1 << 15)


def test_an_object_that_changed_is_not_mistaken(bucket: Bucket, folder: Path, tmp_path: Path) -> None:
    one, two = make_study(folder, instances=2)
    assert len(one.read_bytes()) == len(two.read_bytes())
    bucket.write("a.dcm", one.read_bytes())
    client = DICOMfileClient(bucket.url)
    (row,) = client.search_for_instances()
    bucket.write("a.dcm", two.read_bytes())
    reference = Resource.of(row)
    for read in (
        lambda: list(client.iter_instances(reference)),
        lambda: list(client.iter_instances(reference, max_element_bytes=9, spool_directory=str(tmp_path))),
        lambda: list(client.iter_frames(Resource(*reference.uids.values(), frames=(1,)))),
    ):
        with pytest.raises(FileClientError, match="changed after it was indexed"):
            read()
    bucket.files.rm_file(f"{bucket.url}/a.dcm")
    with pytest.raises(FileClientError, match="is not there"):
        list(client.iter_instances(reference))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_bucket_that_is_not_there_is_not_made(
    kind: str,
    buckets: Callable[..., Bucket],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (path,) = make_study(folder, instances=1)
    bucket = buckets(kind, exists=False)
    for arguments in (
        ["copy", str(folder), bucket.url],
        ["copy", str(folder), f"{bucket.url}/studies"],
        ["copy", str(folder), bucket.url, "--layout", "{PatientID}/{InstanceNumber}.dcm"],
        ["copy", bucket.url, str(tmp_path / "back")],
        ["--url", f"{bucket.url}/studies", "store", "instances", str(path)],
        ["--url", f"{bucket.url}/studies", "search", "studies"],
    ):
        capsys.readouterr()
        assert main(arguments) in (1, 2), arguments
        said = capsys.readouterr().err
        assert "there is no such bucket" in said, said
        assert bucket.url in said
        assert "Traceback" not in said
    with pytest.raises(MissingBucketError):
        DICOMfileClient(f"{bucket.url}/x").search_for_studies()
    assert not any(request.method in ("PUT", "POST") for request in bucket.requests)
    assert not bucket.files.exists(bucket.url)


def test_a_refused_login_is_an_error_that_names_the_bucket(
    bucket: Bucket, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study(folder, instances=1)
    bucket.proxy.refuse = lambda method, target: bucket.kind.forbidden
    assert main(["copy", str(folder), f"{bucket.url}/studies"]) == 1
    said = capsys.readouterr().err
    assert "access is denied" in said
    assert bucket.url in said
    assert "secret" not in said


@pytest.mark.parametrize("methods", ["GET", "PUT POST"])
def test_throttled_requests_are_sent_again(methods: str, bucket: Bucket, folder: Path, tmp_path: Path) -> None:
    make_study(folder, series=2, instances=4)
    bucket.proxy.refuse_some(bucket.kind.throttled, 3, methods)
    assert main(["copy", str(folder), f"{bucket.url}/studies"]) == 0
    bucket.proxy.refuse_some(bucket.kind.throttled, 3, methods)
    assert main(["copy", f"{bucket.url}/studies", str(tmp_path / "back")]) == 0
    assert contents(tmp_path / "back") == contents(folder)


_COPY = "import sys; from dicomweb_io.cli import main; sys.exit(main(sys.argv[1:]))"


def test_two_writers_write_each_instance_once(bucket: Bucket, folder: Path, tmp_path: Path) -> None:
    make_study(folder, series=3, instances=20)
    place = f"{bucket.url}/studies"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _COPY, "copy", str(folder), place, "--summary", str(tmp_path / f"{number}.json")],
            env={**os.environ, "DICOMWEB_IO_CACHE": str(tmp_path / f"cache-{number}")},
        )
        for number in range(2)
    ]
    assert [writer.wait(300) for writer in writers] == [0, 0]
    summaries = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2)]
    assert sum(summary["transferred"] for summary in summaries) == 60
    assert sum(summary["already_there"] for summary in summaries) == 60
    assert len(bucket.names()) == 60
    assert sorted(bucket.read(name) for name in bucket.names()) == contents(folder)


def test_a_killed_writer_leaves_no_half_object(bucket: Bucket, folder: Path, tmp_path: Path) -> None:
    make_study(folder, series=4, instances=25, size=1 << 17)
    place = f"{bucket.url}/studies"

    def slowly(method: str, target: str) -> None:
        if method in ("PUT", "POST"):
            time.sleep(0.1)

    bucket.proxy.refuse = slowly
    writer = subprocess.Popen([sys.executable, "-c", _COPY, "copy", str(folder), place], start_new_session=True)
    deadline = time.monotonic() + 120
    while of_objects(bucket).count("PUT") + of_objects(bucket).count("POST") < 10:
        assert time.monotonic() < deadline
        assert writer.poll() is None
        time.sleep(0.01)
    os.killpg(writer.pid, signal.SIGKILL)
    writer.wait()
    bucket.proxy.reset()
    whole = contents(folder)
    there = bucket.names()
    assert 0 < len(there) < 100
    assert all(bucket.read(name) in whole for name in there)
    summary = tmp_path / "summary.json"
    assert main(["copy", str(folder), place, "--summary", str(summary)]) == 0
    counts = json.loads(summary.read_text())
    assert counts["already_there"] >= len(there)
    assert counts["already_there"] + counts["transferred"] == 100
    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(bucket.read, bucket.names())) == whole


def test_the_examples_of_the_document_run(buckets: Callable[..., Bucket], folder: Path, tmp_path: Path) -> None:
    make_study(folder, series=2, instances=2)
    bucket = buckets("s3")
    text = (Path(__file__).parents[2] / "docs/file-endpoint.md").read_text(encoding="utf-8")
    section = text.partition("## Buckets\n")[2].partition("\n## ")[0]
    for meant, written in ((bucket.url, "s3://hospital"), (str(folder), "/data/studies"), (str(tmp_path), "/data/")):
        section = section.replace(written, f"{meant}/" if written.endswith("/") else meant)
    blocks = dict(re.findall(r"^```(bash|py)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE))
    for line in blocks["bash"].splitlines():
        assert main(shlex.split(line)[1:]) == 0, line
    assert contents(tmp_path / "back") == contents(folder)
    names: dict[str, object] = {}
    exec(blocks["py"], names)
    assert isinstance(names["endpoint"], Endpoint)


def test_what_goes_up_in_parts_is_exclusive_too(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_SINGLE_PUT_BYTES", 1000)
    target = folder_of(bucket.url)
    (one := tmp_path / "one").write_bytes(b"1" * 5000)
    (two := tmp_path / "two").write_bytes(b"2" * 5000)
    assert target.publish("a.dcm", str(one), replace=False)
    assert not target.publish("a.dcm", str(two), replace=False)
    assert bucket.read("a.dcm") == one.read_bytes()
    assert target.publish("a.dcm", str(two), replace=True)
    assert target.read("a.dcm") == two.read_bytes()
    assert target.remove("a.dcm")
    assert not target.remove("a.dcm")
