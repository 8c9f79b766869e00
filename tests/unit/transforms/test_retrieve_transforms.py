"""Retrieves against the test server and folders, on the in-memory runner."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import replace

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to, is_empty
from apache_beam.transforms.window import SlidingWindows, TimestampedValue

from dicomweb_io.elements import Instance, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.http.settings import Limits
from dicomweb_io.pool import _CLIENTS, _POOLS
from dicomweb_io.queries import make_query
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import synthetic_instance
from dicomweb_io.transforms import ReadFromDICOMweb, RetrieveInstances, RetrieveMetadata, SearchForSeries

ONCE = RetryPolicy.none()


def pipeline():
    return beam.Pipeline(runner="FnApiRunner")


def digest(instance):
    return instance.reference, hashlib.sha256(instance.read()).hexdigest()


def retrieves(records):
    """The requests that were for instances, of a series or single."""
    return [record for record in records.of("GET") if re.search(r"/(series|instances)/[^/]+$", record.path)]


@pytest.fixture
def contents(archive):
    """The digest of each instance by its reference."""
    client = Endpoint(str(archive)).connect()
    found = [Resource.of(row) for row in client.iter_search(make_query("instance"))]
    result = dict(digest(next(iter(client.iter_instances(reference)))) for reference in found)
    client.close()
    assert len(result) == 60
    return result


def studies_of(contents):
    return sorted({Resource(item.study_instance_uid) for item in contents}, key=lambda item: item.uri)


@pytest.mark.parametrize("level", ["study", "series", "instance"])
@pytest.mark.parametrize("where", ["server", "folder"])
def test_all_instances_of_references_of_every_level_come_unchanged(serve, archive, contents, level, where):
    endpoint = serve(archive).url if where == "server" else str(archive)
    references = {
        "study": studies_of(contents),
        "series": list({item.series for item in contents}),
        "instance": list(contents),
    }[level]
    with pipeline() as p:
        instances = p | beam.Create(references) | RetrieveInstances(endpoint)
        assert_that(instances | beam.Map(digest), equal_to(list(contents.items())))


def test_rows_uris_and_frames_name_instances(archive, contents):
    one = next(iter(contents))
    uids = zip(("0020000D", "0020000E", "00080018"), one.uri.split("/")[1::2], strict=True)
    row = {tag: {"vr": "UI", "Value": [uid]} for tag, uid in uids}
    with pipeline() as p:
        elements = p | beam.Create([row, one.uri, replace(one, frames=(1,)), f"http://pacs.example/rs/{one.uri}"])
        instances = elements | RetrieveInstances(str(archive))
        assert_that(instances | beam.Map(digest), equal_to([(one, contents[one])] * 4))


def test_what_is_missing_from_a_series_is_asked_for_by_itself(serve, archive, contents):
    """One part of the multipart answer is left out: a search shows it, and a second request brings it."""
    server = serve(archive, faults=[fault("drop_part", path=r"/series/[^/]+$", times=None)])
    series = list({item.series for item in contents})
    with pipeline() as p:
        instances = p | beam.Create(series) | RetrieveInstances(server.url)
        assert_that(instances | beam.Map(digest), equal_to(list(contents.items())))


def test_what_cannot_be_had_at_all_is_a_failure_and_the_rest_comes(serve, archive, contents):
    lost = next(iter(contents))
    uid = lost.sop_instance_uid.replace(".", r"\.")
    faults = [
        fault("status", path=rf"/instances/{uid}$", times=None, status=500),
        fault("drop_part", path=r"/series/[^/]+$", times=None, part=1),
    ]
    server = serve(archive, faults=faults)
    with pipeline() as p:
        found = (
            p | beam.Create(list(contents)) | RetrieveInstances(Endpoint(server.url, retry=ONCE), failures="collect")
        )
        rest = [item for item in contents.items() if item[0] != lost]
        assert_that(found.instances | beam.Map(digest), equal_to(rest), label="rest")
        seen = found.failures | beam.Map(lambda failure: (failure.reference, failure.status, failure.transform))
        assert_that(seen, equal_to([(lost, 500, "RetrieveInstances")]), label="lost")


def test_an_unknown_study_is_a_failure(serve, archive):
    server = serve(archive)
    with pipeline() as p:
        found = p | beam.Create([Resource("1.2.3")]) | RetrieveInstances(server.url, failures="collect")
        assert_that(found.instances, is_empty(), label="none")
        assert_that(found.failures | beam.Map(lambda failure: failure.reference.uri), equal_to(["studies/1.2.3"]))


def test_large_instances_become_files_if_there_is_a_place_for_them(tmp_path, folder):
    small, large = folder / "small.dcm", folder / "large.dcm"
    synthetic_instance(1000, small, number=1)
    synthetic_instance(300_000, large, number=2)
    spool = tmp_path / "spool"
    spool.mkdir()
    with pipeline() as p:
        references = p | SearchForSeries(str(folder))
        instances = references | RetrieveInstances(
            str(folder), max_element_bytes=100_000, spool_directory=str(spool), max_bytes=80_000
        )
        kinds = instances | beam.Map(lambda item: (item.path is None, hashlib.sha256(item.read()).hexdigest()))
        expected = [
            (True, hashlib.sha256(small.read_bytes()).hexdigest()),
            (False, hashlib.sha256(large.read_bytes()).hexdigest()),
        ]
        assert_that(kinds, equal_to(expected), label="kinds")
        refused = references | "Refuse" >> RetrieveInstances(str(folder), max_element_bytes=100_000, failures="collect")
        assert_that(refused.instances | beam.Map(lambda item: item.size < 100_000), equal_to([True]), label="kept")
        messages = refused.failures | beam.Map(lambda failure: "more than max_element_bytes" in failure.message)
        assert_that(messages, equal_to([True]), label="refused")
    files = list(spool.iterdir())
    assert [path.read_bytes() for path in files] == [large.read_bytes()]


def test_a_small_budget_is_enough_for_everything(serve, archive, contents):
    """Every instance is larger than the budget: they pass one at a time."""
    server = serve(archive)
    with pipeline() as p:
        instances = p | beam.Create(studies_of(contents)) | RetrieveInstances(server.url, max_bytes=100)
        assert_that(instances | beam.Map(digest), equal_to(list(contents.items())))


def test_order_is_kept_on_request(serve, archive, contents, tmp_path):
    server = serve(archive)
    series = sorted({item.series for item in contents}, key=lambda item: item.uri)
    log = tmp_path / "order"

    def note(instance):
        with open(log, "a") as file:
            file.write(instance.reference.series.uri + "\n")

    with pipeline() as p:
        _ = p | beam.Create([series[0], series[1]]) | RetrieveInstances(server.url, keep_order=True) | beam.Map(note)
    lines = log.read_text().splitlines()
    assert len(lines) == 20
    assert len({*lines[:10]}) == len({*lines[10:]}) == 1


def test_an_element_in_three_windows_is_fetched_once(serve, archive, contents):
    server = serve(archive)
    some = list(contents)[:5]
    with pipeline() as p:
        elements = (
            p
            | beam.Create(some)
            | beam.Map(lambda item: TimestampedValue(item, 65))
            | beam.WindowInto(SlidingWindows(30, 10))
        )
        instances = elements | RetrieveInstances(server.url)
        seen = instances | beam.Map(
            lambda item, time=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam: (
                item.reference,
                int(time),
                int(window.start),
            )
        )
        assert_that(seen, equal_to([(item, 65, start) for item in some for start in (40, 50, 60)]))
    assert len(retrieves(server.records)) == 1


def test_equal_references_are_fetched_once_and_each_has_its_result(serve, archive, contents):
    server = serve(archive)
    one = next(iter(contents))
    with pipeline() as p:
        # One key, so that all of them come in one bundle.
        same = p | beam.Create([(0, [one] * 20)]) | beam.FlatMap(lambda pair: pair[1])
        instances = same | RetrieveInstances(Endpoint(server.url, limits=Limits(1)))
        assert_that(instances | beam.Map(digest), equal_to([(one, contents[one])] * 20))
    assert len(server.records) < 20


def test_a_slow_consumer_holds_the_retrieves_back(serve, archive, contents, tmp_path):
    """When the first instance is taken, hardly more were asked for than may be in flight."""
    server = serve(archive)
    note = tmp_path / "asked"
    records = server.records

    def consume(instance):
        if not note.exists():
            note.write_text(str(len(retrieves(records))))

    with pipeline() as p:
        every = p | beam.Create([(0, list(contents))]) | beam.FlatMap(lambda pair: pair[1])
        instances = every | RetrieveInstances(Endpoint(server.url, limits=Limits(2)))
        instances | LookAt(consume)
    assert int(note.read_text()) <= 4
    assert len(retrieves(records)) == len({item.series for item in contents})


class LookAt(beam.PTransform):
    """Calls a function of this process, which a pickle would not keep, with each element."""

    functions: dict = {}

    def __init__(self, function):
        super().__init__()
        self.key = id(function)
        self.functions[self.key] = function

    def expand(self, pcollection):
        key = self.key
        return pcollection | beam.Map(lambda item: LookAt.functions[key](item))


@pytest.mark.parametrize("level", ["study", "instance"])
def test_metadata_of_all_instances_comes(serve, archive, contents, level):
    server = serve(archive)
    references = studies_of(contents) if level == "study" else list(contents)
    with pipeline() as p:
        rows = p | beam.Create(references) | RetrieveMetadata(server.url)
        assert_that(rows | beam.Map(Resource.of), equal_to(list(contents)), label="references")
        assert_that(rows | beam.Map(lambda row: row["00280010"]["vr"]) | beam.Distinct(), equal_to(["US"]), label="vr")


def test_missing_metadata_is_a_failure(serve, archive, contents):
    one = next(iter(contents))
    server = serve(archive, faults=[fault("status", path="/metadata", times=None, status=500)])
    with pipeline() as p:
        found = p | beam.Create([one]) | RetrieveMetadata(Endpoint(server.url, retry=ONCE), failures="collect")
        assert_that(found.metadata, is_empty(), label="none")
        seen = found.failures | beam.Map(lambda failure: (failure.reference, failure.transform, failure.status))
        assert_that(seen, equal_to([(one, "RetrieveMetadata", 500)]))


def test_read_is_search_and_retrieve(serve, archive, contents):
    server = serve(archive)
    study = next(iter(contents)).study_instance_uid
    with pipeline() as p:
        instances = p | ReadFromDICOMweb(server.url, {"StudyInstanceUID": study})
        expected = [item for item in contents.items() if item[0].study_instance_uid == study]
        assert_that(instances | beam.Map(digest), equal_to(expected), label="study")
        assert instances.element_type is Instance
        collected = p | "Collect" >> ReadFromDICOMweb(server.url, limit=7, failures="collect")
        assert_that(collected.instances | beam.combiners.Count.Globally(), equal_to([7]), label="limit")
        assert_that(collected.failures, is_empty(), label="no failures")


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(serve, archive, contents, fails, tmp_path, monkeypatch):
    """Clients, pools and temporary files are gone after a job, also after one that failed in the middle."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server = serve(archive)

    def consume(instance):
        if fails:
            raise KeyError("the consumer fails")

    p = pipeline()
    _ = p | beam.Create(list(contents)) | RetrieveInstances(server.url) | beam.Map(consume)
    if fails:
        with pytest.raises(Exception, match="the consumer fails"):
            p.run().wait_until_finish()
    else:
        p.run().wait_until_finish()
    assert not _CLIENTS._entries
    assert not _POOLS._entries
    assert [name for name in os.listdir(tmp_path) if name.startswith("dicomweb_io-")] == []


@pytest.mark.parametrize("arguments", [{"max_element_bytes": 0}, {"max_bytes": 0}])
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="must be 1 or more"):
        RetrieveInstances("https://pacs.example", **arguments)


def test_a_row_without_its_own_uid_never_means_its_whole_series():
    from dicomweb_io.transforms.read_write import ReferencesOfRows

    whole = {"0020000D": {"vr": "UI", "Value": ["1.2"]}, "0020000E": {"vr": "UI", "Value": ["1.3"]}}
    rows = [whole, {**whole, "00080018": {"vr": "UI", "Value": ["1.4"]}}]
    with pipeline() as p:
        made = p | beam.Create(rows) | ReferencesOfRows("instance", "Test", failures="collect")
        assert_that(made.references, equal_to([Resource("1.2", "1.3", "1.4")]))
        told = made.failures | beam.Map(lambda failure: (failure.transform, "has only the series" in failure.message))
        assert_that(told, equal_to([("Test", True)]), label="failures")
    with pytest.raises(Exception, match="has only the series"):
        with pipeline() as p:
            _ = p | beam.Create(rows) | ReferencesOfRows("instance", "Test")
