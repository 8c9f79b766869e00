"""Frames and bulk data above `max_element_bytes` go to files as they arrive: memory stays bounded."""

from __future__ import annotations

import os
import tracemalloc
from itertools import chain, repeat

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from dicomweb_io.elements import Bulkdata, Frame, Instance, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transforms import RetrieveBulkdata, RetrieveFrames
from tests.answering import Reply

BLOCK = b"\x5a" * 65536
SIZE = 24 * 1024 * 1024
FRAME = Resource("1.2", "1.2.3", "1.2.3.4", frames=(1,))
VALUE = f"{FRAME.instance.uri}/bulk/1"


def large(request):
    """One large part in every answer, sent block by block; ``/cut/`` in the address breaks it off."""
    head = b"--x\r\nContent-Type: application/octet-stream\r\n\r\n"
    tail = b"\r\n--x--\r\n"
    return Reply(
        200,
        chain([head], repeat(BLOCK, SIZE // len(BLOCK)), [tail]),
        'multipart/related; type="application/octet-stream"; boundary=x',
        headers={"Content-Length": str(len(head) + SIZE + len(tail))},
        cut=SIZE // 2 if request.path.startswith("/cut/") else None,
    )


@pytest.fixture
def origin(answering):
    return answering(large).url


def transform_of(kind, endpoint, **options):
    return (RetrieveFrames if kind == "frame" else RetrieveBulkdata)(endpoint, **options)


def element_of(kind):
    return FRAME if kind == "frame" else VALUE


@pytest.mark.parametrize("kind", ["frame", "value"])
def test_a_large_part_goes_to_a_file_without_being_in_memory(origin, tmp_path, kind):
    seen = tmp_path / "seen"

    def look(element):
        assert element.content is None
        assert os.path.dirname(element.path) == str(tmp_path / "spool")
        assert os.stat(element.path).st_mode & 0o777 == 0o600
        with open(element.path, "rb") as file:
            assert all(block == BLOCK for block in iter(lambda: file.read(len(BLOCK)), b""))
        seen.write_text(f"{type(element).__name__} {os.path.getsize(element.path)}")

    (tmp_path / "spool").mkdir()
    p = beam.Pipeline(runner="FnApiRunner")
    made = transform_of(kind, origin, max_element_bytes=1024 * 1024, spool_directory=str(tmp_path / "spool"))
    _ = p | beam.Create([element_of(kind)]) | made | beam.Map(look)
    tracemalloc.start()
    try:
        p.run()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen.read_text() == f"{(Frame if kind == 'frame' else Bulkdata).__name__} {SIZE}"
    assert peak < SIZE / 2, f"{peak / 1e6:.0f} MB"
    # Only what was given away is left.
    assert len(list((tmp_path / "spool").rglob("*"))) == 1


@pytest.mark.parametrize("kind", ["frame", "value"])
@pytest.mark.parametrize("path", ["", "/cut"])
def test_nothing_is_left_of_what_is_no_element(origin, tmp_path, monkeypatch, kind, path):
    """Too large without a directory to go to, or broken off: a failure, and no file."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    endpoint = Endpoint(origin + path, retry=RetryPolicy.none())
    with beam.Pipeline(runner="FnApiRunner") as p:
        made = transform_of(kind, endpoint, max_element_bytes=1024 * 1024, failures="collect")
        result = p | beam.Create([element_of(kind)]) | made
        lost = result.failures | beam.Map(lambda failure: "max_element_bytes (1048576)" in failure.message)
        assert_that(lost, equal_to([path == ""]))
    assert [item for item in tmp_path.rglob("*") if item.is_file()] == []


@pytest.mark.parametrize("kind", ["frame", "value"])
def test_a_part_larger_than_its_share_of_the_budget_still_becomes_an_element(origin, kind):
    """It arrives in a file, and is read when there is room for it."""
    with beam.Pipeline(runner="FnApiRunner") as p:
        given = p | beam.Create([element_of(kind)]) | transform_of(kind, origin, max_bytes=8 * 1024 * 1024)
        assert_that(given | beam.Map(lambda item: (len(item.content), item.path)), equal_to([(SIZE, None)]))


@pytest.mark.parametrize("make", [RetrieveFrames, RetrieveBulkdata])
def test_a_large_part_of_a_folder_becomes_a_file_too(tmp_path, make):
    (path,) = make_study(tmp_path / "archive", instances=1, size=5120)
    reference = Instance.from_path(path).reference
    (tmp_path / "spool").mkdir()
    made = make(str(tmp_path / "archive"), max_element_bytes=1000, spool_directory=str(tmp_path / "spool"))
    with beam.Pipeline(runner="FnApiRunner") as p:
        given = p | beam.Create([reference]) | made
        assert_that(given | beam.Map(lambda item: (item.content, os.path.getsize(item.path))), equal_to([(None, 5120)]))
    assert len([item for item in (tmp_path / "spool").rglob("*") if item.is_file()]) == 1
