"""The same tests on every engine: in memory, in two processes, on the embedded portable runner, and on Prism."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.error_handling import ErrorHandler
from apache_beam.transforms.window import FixedWindows, SlidingWindows, TimestampedValue

from dicomweb_io.elements import Instance, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.testing.samples import make_study
from dicomweb_io.testing.server.behaviour import Limits
from dicomweb_io.testing.server.behaviours import behaviour_of
from dicomweb_io.transforms import (
    CompareArchives,
    CopyInstances,
    DistinctReferences,
    ReadFromDICOMweb,
    RetrieveInstances,
    RetrieveMetadata,
    SearchForInstances,
    SearchForSeries,
    SearchForStudies,
    StoreInstances,
    WatchForInstances,
    WriteToDICOMweb,
)
from pipelines.transfer import main as transfer


def pipeline(engine):
    return beam.Pipeline(options=PipelineOptions(engine))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A folder with 2 studies of 2 series of 6 instances. Not to be written to."""
    directory = tmp_path_factory.mktemp("archive")
    make_study(directory, studies=2, series=2, instances=6, size=300)
    return directory


@pytest.fixture(scope="module")
def references(archive):
    return sorted(
        (Instance.from_path(path).reference for path in archive.rglob("*.dcm")), key=lambda reference: reference.uri
    )


def bytes_of(directory):
    return sorted(path.read_bytes() for path in Path(directory).rglob("*.dcm"))


def test_the_whole_connector(engine, serve, archive, references, folder, tmp_path):
    """Everything in one pipeline: on engines with processes each pipeline takes seconds to start."""
    # Searches take several pages.
    caps = Limits(5, 5, 5)
    source = serve(archive, behaviour=replace(behaviour_of("generic"), max_limit=caps, default_limit=caps))
    destination, copy, empty = serve(folder), tmp_path / "copy", tmp_path / "empty"
    empty.mkdir()
    uris = [reference.uri for reference in references]
    with pipeline(engine) as p:
        studies = p | SearchForStudies(source.url)
        stored = (studies | RetrieveInstances(source.url) | StoreInstances(destination.url)).stored
        seen = stored | "S" >> beam.Map(lambda item: (item.reference.uri, item.outcome))
        assert_that(seen, equal_to([(uri, "stored") for uri in uris]), label="stored")

        metadata = studies | SearchForSeries(source.url) | RetrieveMetadata(source.url)
        assert_that(metadata | "M" >> beam.Map(lambda row: Resource.of(row).uri), equal_to(uris), label="metadata")

        copied = p | SearchForInstances(source.url) | CopyInstances(source.url, str(copy))
        assert_that(copied.stored | "C" >> beam.Map(lambda item: item.reference.uri), equal_to(uris), label="copied")

        written = p | ReadFromDICOMweb(source.url, {"Modality": "CT"}) | WriteToDICOMweb(str(tmp_path / "written"))
        seen = written.stored | "W" >> beam.Map(lambda item: item.reference.uri)
        assert_that(seen, equal_to(uris), label="written")

        watched = p | WatchForInstances(
            source.url, start="all", max_polls=2, max_changes=2, interval=0.02, method="list"
        )
        compared = p | CompareArchives(source.url, str(empty))
        seen = compared | "D" >> beam.Map(lambda item: (item.kind, item.reference.uri, item.instances))
        series = {reference.series.uri for reference in references}
        assert_that(seen, equal_to([("missing", uri, 6) for uri in series]), label="compared")

        assert_that(watched | "N" >> beam.Map(lambda item: item.uri), equal_to(uris), label="watched")
    assert bytes_of(folder) == bytes_of(copy) == bytes_of(tmp_path / "written") == bytes_of(archive)


def test_failures_windows_and_timestamps(engine, archive, references):
    series, one = references[0].series, references[0]
    with pipeline(engine) as p:
        given = p | beam.Create(["no reference", "studies/1.2.3", one.uri])
        found = given | "Some" >> RetrieveInstances(str(archive), failures="collect")
        assert_that(found.instances | "F" >> beam.Map(lambda x: x.reference.uri), equal_to([one.uri]), label="found")
        lost = found.failures | "L" >> beam.Map(
            lambda item: (type(item).__name__, item.transform, item.reference.uri if item.reference else None)
        )
        expected = [("Failure", "RetrieveInstances", None), ("Failure", "RetrieveInstances", "studies/1.2.3")]
        assert_that(lost, equal_to(expected), label="lost")

        with ErrorHandler(beam.Map(lambda failure: failure.transform)) as handler:
            _ = given | "Handled" >> RetrieveInstances(str(archive)).with_error_handler(handler)
        assert_that(handler.output(), equal_to(["RetrieveInstances"] * 2), label="handled")

        timed = p | "Timed" >> beam.Create([series]) | beam.Map(lambda item: TimestampedValue(item, 65))
        fixed = timed | "Fixed" >> beam.WindowInto(FixedWindows(60)) | "InFixed" >> RetrieveInstances(str(archive))
        seen = fixed | "T" >> beam.Map(
            lambda item, time=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam: (int(time), int(window.start))
        )
        assert_that(seen, equal_to([(65, 60)] * 6), label="times")

        sliding = timed | "Sliding" >> beam.WindowInto(SlidingWindows(30, 10))
        seen = (
            sliding
            | "InSliding" >> RetrieveInstances(str(archive))
            | "Starts" >> beam.Map(lambda item, window=beam.DoFn.WindowParam: int(window.start))
        )
        assert_that(seen, equal_to([40, 50, 60] * 6), label="windows")


def test_elements_keep_their_class_through_shuffles(engine, references):
    framed = Resource(*references[0].uri.split("/")[1::2], frames=(2, 1))
    given = [*references, framed]
    looks = sorted((item.uri, "Resource", item.level) for item in given)
    with pipeline(engine) as p:
        elements = p | beam.Create(given).with_output_types(Resource)
        shuffled = elements | beam.Reshuffle()
        keys = elements | beam.Map(lambda item: (item, 1)) | "AsKeys" >> beam.GroupByKey() | beam.Keys()
        values = (
            elements
            | beam.Map(lambda item: (item.study_instance_uid, item))
            | "AsValues" >> beam.GroupByKey()
            | beam.FlatMapTuple(lambda study, members: members)
        )
        for name, collection in (("Shuffled", shuffled), ("Keys", keys), ("Values", values)):
            seen = collection | f"Look{name}" >> beam.Map(lambda item: (item.uri, type(item).__name__, item.level))
            assert_that(seen, equal_to(looks), label=name)
        twice = (elements, elements) | beam.Flatten() | DistinctReferences()
        assert_that(twice | "URIs" >> beam.Map(lambda item: item.uri), equal_to([x.uri for x in given]), label="Once")


def test_without_a_handler_the_pipeline_fails(engine, archive):
    with pytest.raises(Exception, match=r"RetrieveInstances failed for studies/1\.2\.3"):
        with pipeline(engine) as p:
            _ = p | beam.Create([Resource("1.2.3")]) | RetrieveInstances(str(archive))


def test_the_transfer_job(engine, serve, archive, folder, tmp_path):
    source = serve(archive)
    summary = tmp_path / "summary.json"
    command = ["--source", source.url, "--destination", str(folder), "--summary", str(summary), *engine]
    assert transfer(command) == 0
    numbers = json.loads(summary.read_text())
    assert (numbers["found"], numbers["transferred"], numbers["failed"]) == (24, 24, 0)
    assert bytes_of(folder) == bytes_of(archive)


def test_an_unbounded_watch_streams(streaming_engine, serve, tmp_path, folder):
    """What arrives while the pipeline runs is copied while it runs, in the rhythm that was asked for."""
    source = tmp_path / "source"
    source.mkdir()
    server = serve(source)
    interval = 0.5
    p = pipeline(streaming_engine)
    watched = p | WatchForInstances(server.url, start="all", interval=interval, method="list")
    assert not watched.is_bounded
    _ = watched | CopyInstances(server.url, str(folder))
    client = Endpoint(server.url).connect()
    result = p.run()
    try:
        for number in (1, 2, 3):
            paths = make_study(tmp_path / f"arrival-{number}", instances=2, size=100, seed=("arrival", number))
            client.store_instances([str(path) for path in paths])
            end = time.monotonic() + 300
            while len(list(folder.rglob("*.dcm"))) < 2 * number:
                seen = f"the job is {result.state}, after {len(server.records)} requests"
                assert time.monotonic() < end, f"arrival {number} was not copied: {seen}"
                time.sleep(0.02)
        assert result.state == "RUNNING"
    finally:
        result.cancel()
        client.close()
    polls = [record.started for record in server.records if record.method == "GET" and _is_flat_search(record)]
    # On a busy machine a single one may arrive late, so that the next seems to come early.
    assert polls[-1] - polls[0] >= interval * (len(polls) - 2)


def _is_flat_search(record):
    """Whether a request begins a poll, rather than asking for its next page."""
    first = parse_qs(record.query).get("offset", ["0"]) == ["0"]
    return first and record.path.endswith("/instances") and "/studies/" not in record.path
