"""Everything that works with folders works with buckets: copies in all directions, comparisons, tables, watches."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from dicomweb_io import DICOMfileClient
from dicomweb_io.cli import main
from dicomweb_io.testing.samples import make_study, sample_file
from tests.buckets.conftest import Bucket

TWO_PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")


def bytes_of(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in folder.rglob("*.dcm"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with two series of three instances."""
    make_study(tmp_path / "images", series=2, instances=3)
    return tmp_path / "images"


@pytest.fixture
def numbers(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a command of the command line or a job that writes a summary; gives the summary."""

    def run(run: Callable[[list[str]], int], *arguments: object, code: int = 0) -> dict[str, Any]:
        summary = tmp_path / "summary.json"
        summary.unlink(missing_ok=True)
        assert run([*map(str, arguments), "--summary", str(summary)]) == code
        found: dict[str, Any] = json.loads(summary.read_text())
        return found

    return run


def test_a_server_a_bucket_and_a_bucket_of_another_kind(
    bucket: Bucket, buckets: Callable[..., Bucket], serve: Any, images: Path, folder: Path, numbers: Any
) -> None:
    """Each copy moves all, and again nothing; the bytes at the end are those at the beginning."""
    other = buckets("gs" if bucket.kind.scheme == "s3" else "s3")
    chain = [images, serve(folder).url, f"{bucket.url}/a b", f"{other.url}/b", folder / "last"]
    for source, destination in itertools.pairwise(chain):
        assert numbers(main, "copy", source, destination)["transferred"] == 6
        again = numbers(main, "copy", source, destination)
        assert (again["transferred"], again["already_there"]) == (0, 6)
    assert bytes_of(folder / "last") == bytes_of(images)
    assert main(["compare", "--content", f"{bucket.url}/a b", f"{other.url}/b"]) == 0


def test_the_job_of_beam_in_two_processes(buckets: Callable[..., Bucket], images: Path, numbers: Any) -> None:
    from pipelines.transfer import main as job

    one, two, three = buckets("gs"), buckets("s3"), buckets("az")
    # The clients of this process are there before the workers are.
    one.fill(images)
    for source, destination in ((one, two), (two, three)):
        options = ["--source", f"{source.url}/", "--destination", f"{destination.url}/", *TWO_PROCESSES]
        assert numbers(job, *options)["transferred"] == 6
    assert sorted(map(three.read, three.names())) == bytes_of(images)


def test_differences_between_a_bucket_and_a_folder(bucket: Bucket, images: Path, tmp_path: Path) -> None:
    assert main(["copy", str(images), f"{bucket.url}/x"]) == 0
    assert main(["compare", "--content", str(images), f"{bucket.url}/x"]) == 0
    name = bucket.names()[0]
    bucket.files.rm_file(f"{bucket.url}/{name}")
    differences = f"{bucket.url}/results/differences.jsonl"
    assert main(["compare", str(images), f"{bucket.url}/x", "--output", differences]) == 1
    assert len(bucket.read("results/differences.jsonl").splitlines()) == 1
    assert main(["copy", str(images), f"{bucket.url}/x", "--input", differences]) == 0
    assert main(["compare", "--content", str(images), f"{bucket.url}/x"]) == 0


def test_results_go_to_a_bucket(bucket: Bucket, images: Path) -> None:
    """Summary, failures, reports and tables of a copy into the bucket."""
    (images / "broken.dcm").write_bytes(sample_file("CT_small.dcm").read_bytes()[:3000])
    place = f"{bucket.url}/results"
    results = ["summary.json", "failures.jsonl", "report.html", "report.json"]
    options = [f"--{name.split('.')[0]}={place}/{name}" for name in results]
    assert main(["copy", str(images), f"{bucket.url}/copy", *options]) == 1
    assert [bool(bucket.read(f"results/{name}")) for name in results] == [True] * 4
    assert json.loads(bucket.read("results/summary.json"))["transferred"] == 6
    assert b"<html" in bucket.read("results/report.html")


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_a_table_goes_to_a_bucket(bucket: Bucket, images: Path, form: str) -> None:
    table = f"{bucket.url}/tables/series.{form}"
    for _ in range(2):
        assert main(["export", "table", str(images), "--out", table]) == 0
    assert bucket.names() == [f"tables/series.{form}"]
    content = bucket.read(f"tables/series.{form}")
    if form == "parquet":
        assert pyarrow.parquet.read_table(pyarrow.BufferReader(content)).num_rows == 2
    else:
        assert len(content.splitlines()) == (3 if form == "csv" else 2)


def test_a_table_in_parts_is_refreshed_in_a_bucket(bucket: Bucket, images: Path, numbers: Any) -> None:
    """The cursor lies beside the table; what came since is added."""
    bucket.fill(images)
    make_study(images / "later", seed="later", instances=2)
    command = ["export", "table", f"{bucket.url}/", "--level", "instance", "--since", "last"]
    command += [
        "--out",
        f"{bucket.url}/table.parquet",
        "--partition-by",
        "Modality",
        "--cursor",
        f"{bucket.url}/cursor",
    ]
    assert main(command) == 0
    bucket.fill(images)
    assert main(command) == 0
    names = [name for name in bucket.names() if name.startswith("table.parquet/")]
    tables = [pyarrow.parquet.read_table(pyarrow.BufferReader(bucket.read(name))) for name in names]
    assert sum(table.num_rows for table in tables) == 8


def test_searches_and_frames_of_a_bucket(bucket: Bucket) -> None:
    """Searches need no request; a frame reads its range."""
    whole = sample_file("rtdose.dcm").read_bytes()
    bucket.write("a/b.dcm", whole)
    bucket.write("a/c", sample_file("CT_small.dcm").read_bytes())
    client = DICOMfileClient(bucket.url)
    found = client.search_for_instances(search_filters={"Modality": "RTDOSE"})
    assert len(found) == 1
    bucket.proxy.reset()
    assert len(client.search_for_series()) == 2
    assert bucket.requests == []
    uids = [found[0][tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018")]
    frame = client.retrieve_instance_frames(*uids, [3])[0]
    assert frame in whole
    assert sum(request.received for request in bucket.requests) < len(frame) + 20_000
    assert client.retrieve_instance(*uids)["00280008"].value == 15


def test_a_watch_from_a_bucket_to_a_bucket(bucket: Bucket, images: Path, tmp_path: Path, numbers: Any) -> None:
    bucket.fill(images)
    command = ["watch", f"{bucket.url}/study-0000", f"{bucket.url}/to", "--once", "--cursor", str(tmp_path / "cursor")]
    assert main(command) == 0
    assert len([name for name in bucket.names() if name.startswith("to/")]) == 6
    make_study(tmp_path / "more", seed="more", instances=2)
    for path in (tmp_path / "more").rglob("*.dcm"):
        bucket.write(f"study-0000/more/{path.name}", path.read_bytes())
    assert numbers(main, *command)["transferred"] == 2
    assert len([name for name in bucket.names() if name.startswith("to/")]) == 8


def test_readable_names_in_a_bucket(bucket: Bucket, images: Path, numbers: Any) -> None:
    layout = "{PatientID}/{Modality}/{InstanceNumber:04}.dcm"
    command = ["copy", images, f"{bucket.url}/x", "--layout", layout]
    assert numbers(main, *command)["transferred"] == 6
    names = bucket.names()
    assert len(names) == 6
    assert numbers(main, *command)["already_there"] == 6
    assert bucket.names() == names
