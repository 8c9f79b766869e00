"""Instances to files, and deleting, against the test server and folders."""

from __future__ import annotations

import io
import os
from pathlib import Path

import apache_beam as beam
import fsspec
import pydicom
import pytest
from apache_beam.testing.util import assert_that, equal_to, is_empty
from apache_beam.transforms.window import SlidingWindows, TimestampedValue

from dicomweb_io.elements import Instance, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.queries import make_query
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transforms import DeleteResources, DownloadInstances, StoreInstances

ONCE = RetryPolicy.none()


def pipeline():
    return beam.Pipeline(runner="FnApiRunner")


@pytest.fixture
def small(tmp_path):
    """2 studies of 1 series of 4 instances: references, and a folder of their own."""
    directory = tmp_path / "small"
    paths = make_study(directory, studies=2, instances=4, size=300)
    return directory, {Instance.from_path(path).reference: path.read_bytes() for path in paths}


def path_of(directory, reference):
    uids = reference.uri.split("/")[1::2]
    return str(Path(directory, uids[0], uids[1], uids[2] + ".dcm"))


def test_a_download_writes_each_instance_once_and_can_be_started_again(serve, small, tmp_path):
    archive, contents = small
    lost = next(iter(contents))
    faults = [
        fault("status", path=r"/series/[^/]+$", times=None, status=404),
        fault("status", path=f"/{lost.sop_instance_uid}$", status=410, times=1),
    ]
    server = serve(archive, faults=faults)
    endpoint = Endpoint(server.url, retry=ONCE)
    target = tmp_path / "target"
    studies = sorted({Resource(item.study_instance_uid) for item in contents}, key=lambda item: item.uri)
    with pipeline() as p:
        result = p | beam.Create(studies) | DownloadInstances(endpoint, target, failures="collect")
        paths = [path_of(target, item) for item in contents if item != lost]
        assert_that(result.paths, equal_to(paths), label="paths")
        told = result.failures | beam.Map(lambda item: (item.reference, item.status, item.transform))
        assert_that(told, equal_to([(lost, 410, "DownloadInstances")]), label="lost")
    requests = len(server.records.of("GET", "/instances/"))
    with pipeline() as p:
        again = p | beam.Create([*contents, *list(contents)[:4]]) | DownloadInstances(endpoint, str(target))
        assert again.element_type is str
        twice = [path_of(target, item) for item in list(contents)[:4]]
        assert_that(again, equal_to([path_of(target, item) for item in contents] + twice))
    assert len(server.records.of("GET", "/instances/")) == requests + 1
    assert {Path(path).read_bytes() for path in target.rglob("*.dcm")} == set(contents.values())
    assert all(name.endswith(".dcm") for _, _, names in os.walk(target) for name in names)


def test_a_download_to_a_remote_filesystem_in_three_windows(small):
    archive, contents = small
    one = next(iter(contents))
    with pipeline() as p:
        elements = p | beam.Create([one]) | beam.Map(lambda item: TimestampedValue(item, 65))
        paths = elements | beam.WindowInto(SlidingWindows(30, 10)) | DownloadInstances(str(archive), "memory://copy/x")
        seen = paths | beam.Map(lambda path, window=beam.DoFn.WindowParam: (path, int(window.start)))
        assert_that(
            seen, equal_to([(path_of("memory://copy/x", one).replace("y:/c", "y://c"), s) for s in (40, 50, 60)])
        )
    filesystem = fsspec.filesystem("memory")
    (found,) = filesystem.find("/copy/x")
    assert filesystem.cat_file(found) == contents[one]
    filesystem.rm("/copy", recursive=True)


@pytest.mark.parametrize(("where", "overwrite"), [("local", False), ("memory", True)])
def test_a_layout_names_what_transforms_write(where, overwrite, small, tmp_path):
    """Of one folder what is stored and what is downloaded has the same name, and each knows the other's files."""
    archive, contents = small
    folder = str(tmp_path / "named") if where == "local" else "memory://named/x"
    named = Endpoint(folder, layout="{PatientID}/{SeriesNumber}_{Modality}/{SOPInstanceUID}")
    expected = [
        f"{folder}/{data.PatientID}/{data.SeriesNumber}_{data.Modality}/{data.SOPInstanceUID}.dcm"
        for data in (pydicom.dcmread(io.BytesIO(content)) for content in contents.values())
    ]
    references = list(contents)
    with pipeline() as p:
        paths = p | beam.Create(references[:4]) | DownloadInstances(str(archive), named)
        assert_that(paths, equal_to(expected[:4]))
    with pipeline() as p:
        stored = p | beam.Create(list(contents.values())) | StoreInstances(named, on_existing="skip")
        outcomes = stored.stored | beam.Map(lambda item: item.outcome)
        assert_that(outcomes, equal_to(["exists"] * 4 + ["stored"] * 4))
    with pipeline() as p:
        paths = p | beam.Create(references) | DownloadInstances(str(archive), named, overwrite=overwrite)
        assert_that(paths, equal_to(expected))
    with named.connect() as client:
        assert {item.read() for one in references for item in client.iter_instances(one)} == set(contents.values())
        assert client.count(make_query("instance")) == 8


def test_a_file_of_another_instance_is_not_taken_for_the_one_wanted(small, tmp_path):
    archive, contents = small
    one, other = list(contents)[:2]
    target = Path(path_of(tmp_path / "target", one))
    target.parent.mkdir(parents=True)
    target.write_bytes(contents[other])
    with pipeline() as p:
        result = p | beam.Create([one]) | DownloadInstances(str(archive), tmp_path / "target", failures="collect")
        assert_that(result.paths, is_empty(), label="none")
        assert_that(result.failures | beam.Map(lambda x: "another instance" in x.message), equal_to([True]))
    assert target.read_bytes() == contents[other]
    with pipeline() as p:
        paths = p | beam.Create([one]) | DownloadInstances(str(archive), tmp_path / "target", overwrite=True)
        assert_that(paths, equal_to([str(target)]))
    assert target.read_bytes() == contents[one]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("where", ["folder", "memory"])
def test_what_another_program_left_half_done_is_replaced(small, tmp_path, where, overwrite):
    archive, contents = small
    target = str(tmp_path / "target") if where == "folder" else f"memory://half-done-{overwrite}"
    filesystem = fsspec.filesystem("file" if where == "folder" else "memory")
    for reference, left in zip(contents, (b"", b"garbage" * 99, None, b"\0" * 128 + b"DICM"), strict=False):
        path = path_of(target, reference).replace("memory:/", "")
        filesystem.makedirs(os.path.dirname(path), exist_ok=True)
        filesystem.pipe_file(path, contents[reference][:-50] if left is None else left)
    with pipeline() as p:
        paths = p | beam.Create(list(contents)) | DownloadInstances(str(archive), target, overwrite=overwrite)
        assert_that(paths | beam.combiners.Count.Globally(), equal_to([len(contents)]))
    written = {reference: path_of(target, reference).replace("memory:/", "") for reference in contents}
    assert {reference: filesystem.cat_file(path) for reference, path in written.items()} == contents


def test_a_server_is_no_directory():
    with pytest.raises(ValueError, match="use CopyInstances"):
        DownloadInstances("/data", "https://pacs.example")


@pytest.mark.parametrize("where", ["server", "folder"])
def test_deleting_at_every_level_and_again(serve, small, where):
    archive, contents = small
    endpoint = serve(archive).url if where == "server" else str(archive)
    one, *_, last = contents
    with pipeline() as p:
        deleted = p | beam.Create([one, Resource(last.study_instance_uid), one.uri]) | DeleteResources(endpoint)
        assert deleted.element_type is Resource
        assert_that(deleted, equal_to([one, one, Resource(last.study_instance_uid)]))
    left = {path.read_bytes() for path in archive.rglob("*.dcm")}
    assert left == {
        content
        for reference, content in contents.items()
        if reference != one and reference.study_instance_uid != last.study_instance_uid
    }
    with pipeline() as p:
        # A bundle may be repeated: what has gone is no failure.
        again = p | beam.Create([one, one.series]) | DeleteResources(endpoint)
        assert_that(again, equal_to([one, one.series]))
    assert not list(archive.rglob("*.dcm"))


@pytest.mark.parametrize("level", ["study", "series", "instance"])
def test_what_the_server_does_not_know_and_still_lists_is_not_called_deleted(serve, small, level):
    archive, contents = small
    server = serve(archive, faults=[fault("status", method="DELETE", status=404, times=None)])
    one = next(iter(contents))
    subject = {"study": Resource(one.study_instance_uid), "series": one.series, "instance": one}[level]
    with pipeline() as p:
        result = p | beam.Create([subject]) | DeleteResources(server.url, failures="collect")
        assert_that(result.deleted, is_empty(), label="none")
        told = result.failures | beam.Map(lambda item: (item.reference, item.status))
        assert_that(told, equal_to([(subject, 404)]), label="told")
    assert len(list(archive.rglob("*.dcm"))) == len(contents)


def test_what_might_delete_too_much_is_refused(serve, small):
    archive, contents = small
    server = serve(archive)
    one = next(iter(contents))
    study = {"0020000D": {"vr": "UI", "Value": [one.study_instance_uid]}}
    instance = {"00080018": {"vr": "UI", "Value": [one.sop_instance_uid]}}
    no_series = {**study, **instance, "0020000E": {"vr": "UI"}}
    elements = [f"{one.uri}/frames/1", {**study, **instance}, no_series, "nonsense"]
    with pipeline() as p:
        result = p | beam.Create(elements) | DeleteResources(server.url, failures="collect")
        assert_that(result.deleted, is_empty(), label="none")
        assert_that(result.failures | beam.combiners.Count.Globally(), equal_to([4]))
    assert not server.records
