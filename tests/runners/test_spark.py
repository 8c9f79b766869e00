"""A smoke test of Spark's job server: a search, and a transfer to a server and back."""

from __future__ import annotations

import json
import os

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to

from dicomweb_io.elements import Resource
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transforms import SearchForInstances
from pipelines.transfer import main as transfer
from tests.go_programs import ProgramUnavailable
from tests.runners.spark import SparkServer

COUNT = 50


@pytest.fixture(scope="module")
def spark():
    """The arguments that run a pipeline on Spark. Without ``DICOMWEB_IO_SPARK=1`` its tests are skipped."""
    if not os.environ.get("DICOMWEB_IO_SPARK"):
        pytest.skip("Spark is tested with DICOMWEB_IO_SPARK=1: Maven downloads 320 MB at first")
    try:
        with SparkServer() as server:
            yield server.options()
    except ProgramUnavailable as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI needs Spark: {error}")
        pytest.skip(f"no Spark: {error}")


def contents(folder):
    return sorted(path.read_bytes() for path in folder.rglob("*.dcm"))


@pytest.mark.long
def test_a_search_and_a_transfer_both_ways_on_spark(spark, serve, folder, tmp_path):
    make_study(tmp_path / "archive", series=5, instances=COUNT // 5, size=300)
    server, back, summary = serve(folder), tmp_path / "back", tmp_path / "summary.json"
    for source, destination in ((str(tmp_path / "archive"), server.url), (server.url, str(back))):
        command = ["--source", source, "--destination", destination, "--summary", str(summary), *spark]
        assert transfer(command) == 0
        numbers = json.loads(summary.read_text())
        assert (numbers["found"], numbers["transferred"], numbers["failed"]) == (COUNT, COUNT, 0)
    assert contents(back) == contents(folder) == contents(tmp_path / "archive")
    with beam.Pipeline(options=PipelineOptions(spark)) as p:
        found = p | SearchForInstances(server.url) | beam.Map(lambda row: Resource.of(row).level)
        assert_that(found, equal_to(["instance"] * COUNT))
