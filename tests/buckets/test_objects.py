"""What lies in buckets beside images: odd names, markers of directories, what is empty or no DICOM, what changes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dicomweb_io import DICOMfileClient
from dicomweb_io.cli import main
from dicomweb_io.testing.samples import make_study, sample_file
from tests.buckets.conftest import Bucket

NAMES = [
    "a b.dcm",
    "100%.dcm",
    "%41.dcm",
    "a#b.dcm",
    "a?b=c.dcm",
    "Bücher/日本.dcm",
    "a+b.dcm",
    "a&b;c,d.dcm",
    "[x]*.dcm",
    "a'b\"c.dcm",
    "no-extension",
]


def test_objects_with_odd_names(bucket: Bucket, tmp_path: Path) -> None:
    """They are found, read, copied and deleted as any other."""
    for name, path in zip(NAMES, make_study(tmp_path / "images", instances=len(NAMES)), strict=True):
        bucket.write(f"x/{name}", path.read_bytes())
    assert [name for name in bucket.names() if name not in {f"x/{one}" for one in NAMES}] == []
    client = DICOMfileClient(f"{bucket.url}/x")
    found = client.search_for_instances()
    assert len(found) == len(NAMES)
    uids = [tuple(row[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018")) for row in found]
    assert {client.retrieve_instance(*one).SOPInstanceUID for one in uids} == {one[2] for one in uids}
    assert main(["copy", f"{bucket.url}/x", str(tmp_path / "back")]) == 0
    assert main(["compare", "--content", f"{bucket.url}/x", str(tmp_path / "images")]) == 0
    for one in uids:
        client.delete_instance(*one)
    assert bucket.names() == []


def test_folders_with_odd_names(bucket: Bucket, folder: Path, tmp_path: Path) -> None:
    """What is no part of a URL's path elsewhere tells one folder from another here."""
    make_study(folder, instances=2)
    last = str(folder)
    for name in ("x#1", "x#2", "x?1", "x?2"):
        source, last = last, f"{bucket.url}/{name}"
        assert main(["copy", source, last]) == 0
        assert len([one for one in bucket.names() if one.startswith(f"{name}/")]) == 2
    assert main(["compare", "--content", last, str(folder)]) == 0


def test_containers_of_one_account(buckets: Callable[..., Bucket], folder: Path) -> None:
    """Azure's own form of a URL names the container before the account."""
    make_study(folder, instances=2)
    last = str(folder)
    for one in (buckets("az"), buckets("az")):
        container = one.url.partition("://")[2]
        source, last = last, f"abfs://{container}@devstoreaccount1.dfs.core.windows.net/x"
        assert main(["copy", source, last]) == 0
        assert len(one.names()) == 2
    assert main(["compare", "--content", last, str(folder)]) == 0


def test_what_is_no_image_is_left_alone(bucket: Bucket, folder: Path, tmp_path: Path) -> None:
    """Markers of directories, empty objects, text."""
    make_study(folder, instances=2)
    bucket.fill(folder)
    for name in ("x/", "study-0000/", "study-0000/empty/"):
        bucket.mark(name)
    bucket.write("empty.dcm", b"")
    bucket.write("notes.txt", b"not DICOM\n" * 100)
    before = bucket.names()
    client = DICOMfileClient(bucket.url)
    assert len(client.search_for_instances()) == 2
    reasons = {exclusion.path.rpartition("/")[2]: exclusion.kind for exclusion in client.iter_exclusions()}
    assert reasons == {"empty.dcm": "ignored", "notes.txt": "ignored"}
    assert main(["copy", bucket.url, str(tmp_path / "back")]) == 0
    assert len(list((tmp_path / "back").rglob("*.dcm"))) == 2
    # A store into what is marked as a directory.
    assert main(["copy", str(folder), f"{bucket.url}/x"]) == 0
    assert len(DICOMfileClient(f"{bucket.url}/x").search_for_instances()) == 2
    assert set(before) <= set(bucket.names())


def test_a_bucket_without_objects(bucket: Bucket, tmp_path: Path) -> None:
    """It holds nothing, which is no error; a prefix that is not there is one."""
    assert DICOMfileClient(bucket.url).search_for_studies() == []
    assert main(["copy", bucket.url, str(tmp_path / "back")]) == 0
    assert main(["copy", f"{bucket.url}/not-there", str(tmp_path / "back")]) != 0
    with pytest.raises(FileNotFoundError):
        DICOMfileClient(f"{bucket.url}/not-there").search_for_studies()


def test_an_object_that_changes_while_it_is_read(bucket: Bucket, tmp_path: Path) -> None:
    """The read fails, and never is a mixture of both."""
    first, second = make_study(tmp_path / "one", instances=1, size=300_000), sample_file("CT_small.dcm")
    bucket.write("a.dcm", first[0].read_bytes())
    client = DICOMfileClient(bucket.url)
    row = client.search_for_instances()[0]
    uids = [row[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018")]
    bucket.write("a.dcm", second.read_bytes())
    with pytest.raises(OSError, match="changed"):
        client.retrieve_instance(*uids)
    client.refresh()
    assert len(client.search_for_instances(search_filters={"Modality": "CT"})) == 1


def _count(url: str, results: Any) -> None:
    results.put(len(DICOMfileClient(url, in_memory=True).search_for_instances()))


def test_a_forked_process_has_clients_of_its_own(bucket: Bucket, folder: Path) -> None:
    """Those of the parent do not work in it: their thread has stayed behind."""
    make_study(folder, instances=3)
    bucket.fill(folder)
    client = DICOMfileClient(bucket.url)
    assert len(client.search_for_instances()) == 3
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_count, args=(bucket.url, results))
    child.start()
    try:
        assert results.get(timeout=60) == 3
    finally:
        child.kill()
        child.join()
    assert len(client.search_for_instances()) == 3
