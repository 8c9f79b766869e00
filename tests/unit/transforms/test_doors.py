"""The front doors, and what holds for every transform: lineage, warnings of secrets, throttling, bounded memory."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.metrics.metric import Lineage
from apache_beam.testing.util import assert_that, equal_to, is_empty
from apache_beam.transforms.display import DisplayData
from apache_beam.transforms.window import SlidingWindows, TimestampedValue

from dicomweb_io import pool as pools
from dicomweb_io.elements import Instance, Resource, SearchQuery
from dicomweb_io.endpoint import Endpoint, literal_secrets
from dicomweb_io.http.auth import BasicCredentials, BearerToken
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.http.settings import Limits
from dicomweb_io.testing.faults import fault
from dicomweb_io.transforms import (
    CopyInstances,
    DownloadInstances,
    ReadAllFromDICOMweb,
    ReadFromDICOMweb,
    RetrieveInstances,
    SearchForInstances,
    WriteToDICOMweb,
)
from dicomweb_io.transforms._core import name_of


def pipeline():
    return beam.Pipeline(runner="FnApiRunner")


@pytest.fixture(scope="module")
def contents(archive):
    return {Instance.from_path(path).reference: path.read_bytes() for path in sorted(archive.rglob("*.dcm"))}


def files_of(directory):
    return sorted(path.read_bytes() for path in Path(directory).rglob("*.dcm"))


def counters_of(result):
    counters = Counter()
    for item in result.metrics().query()["counters"]:
        counters[item.key.metric.name] += item.committed
    return counters


# Reading ------------------------------------------------------------------------------------------------------------


def test_read_all_takes_references_queries_rows_and_uris(serve, archive, contents):
    server = serve(archive)
    one = next(iter(contents))
    row = {"0020000D": {"vr": "UI", "Value": [one.study_instance_uid]}}
    row |= {"0020000E": {"vr": "UI", "Value": [one.series_instance_uid]}}
    elements = [one.series, row, one.series.uri, {"SOPInstanceUID": one.sop_instance_uid}]
    elements.append(SearchQuery("instance", one.study_instance_uid, one.series_instance_uid))
    with pipeline() as p:
        instances = p | beam.Create(elements) | ReadAllFromDICOMweb(server.url, {"Modality": "CT"})
        assert instances.element_type is Instance
        times = Counter({item: 4 for item in contents if item.series == one.series})
        times[one] += 1
        assert_that(instances | beam.Map(lambda item: item.reference), equal_to(list(times.elements())), label="all")
        lost = p | "lost" >> beam.Create(["nonsense", one])
        lost = lost | "Lost" >> ReadAllFromDICOMweb(server.url, failures="collect")
        assert_that(lost.instances | "R" >> beam.Map(lambda item: item.reference), equal_to([one]), label="rest")
        assert_that(
            lost.failures | "F" >> beam.Map(lambda x: x.transform), equal_to(["ReadAllFromDICOMweb"]), label="f"
        )


@pytest.mark.parametrize(("filters", "lost"), [(None, 2), ({"Modality": "CT"}, 0)])
def test_read_all_accounts_for_what_elements_name(serve, archive, filters, lost):
    """As retrieves do. With filters of its own, what an element names may be there and not match."""
    with pipeline() as p:
        named = p | beam.Create(["studies/1.2", {"AccessionNumber": "00123"}])
        read = named | ReadAllFromDICOMweb(serve(archive).url, filters, failures="collect")
        assert_that(read.instances, equal_to([]), label="instances")
        assert_that(read.failures | beam.combiners.Count.Globally(), equal_to([lost]), label="failures")


def test_read_all_fetches_an_element_in_three_windows_once(serve, archive, contents):
    server = serve(archive)
    one = next(iter(contents))
    with pipeline() as p:
        elements = p | beam.Create([one]) | beam.Map(lambda item: TimestampedValue(item, 65))
        instances = elements | beam.WindowInto(SlidingWindows(30, 10)) | ReadAllFromDICOMweb(server.url)
        seen = instances | beam.Map(
            lambda item, time=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam: (int(time), int(window.start))
        )
        assert_that(seen, equal_to([(65, start) for start in (40, 50, 60)]))
    assert len(server.records.of("GET", "/instances/")) == 1
    queries = Counter(record.query for record in server.records if record.path.endswith("/instances"))
    assert set(queries.values()) == {1}, "a page was asked for once for each window"


def test_the_order_within_a_study_is_kept(serve, archive, contents, tmp_path):
    server = serve(archive)
    log = tmp_path / "order"
    study = Resource(next(iter(contents)).study_instance_uid)

    def note(instance):
        with open(log, "a") as file:
            file.write(f"{instance.reference.sop_instance_uid}\n")

    client = Endpoint(server.url).connect()
    listed = [item.reference.sop_instance_uid for item in client.iter_instances(study)]
    client.close()
    with pipeline() as p:
        _ = p | beam.Create([study]) | RetrieveInstances(server.url, keep_order=True) | beam.Map(note)
    assert log.read_text().split() == listed


def test_a_slow_consumer_keeps_the_bytes_in_the_pool_bounded(serve, archive, contents):
    """While each instance is looked at, the pool holds no more than its budget, and what waits is not fetched."""
    server = serve(archive)
    size = max(map(len, contents.values()))
    budget = 4 * size
    with pipeline() as p:
        every = p | beam.Create([(0, list(contents))]) | beam.FlatMap(lambda pair: pair[1])
        instances = every | RetrieveInstances(Endpoint(server.url, limits=Limits(4)), max_bytes=budget)
        used = instances | beam.Map(lambda _: max(entry[0].bytes_in_use for entry in pools._POOLS._entries.values()))
        assert_that(used | beam.Filter(lambda number: not 0 < number <= budget), is_empty(), label="bounded")
        assert_that(used | beam.combiners.Count.Globally(), equal_to([len(contents)]), label="all")


# Writing ------------------------------------------------------------------------------------------------------------


def test_each_element_goes_to_the_archive_that_a_function_names(serve, archive, contents, tmp_path):
    studies = sorted({item.study_instance_uid for item in contents})
    server = serve(tmp_path / studies[0])
    targets = {studies[0]: Endpoint(server.url), studies[1]: str(tmp_path / "b"), studies[2]: tmp_path / "c"}
    paths = sorted(map(str, archive.rglob("*.dcm")))

    def choose(path):
        return targets[Instance.from_path(path).reference.study_instance_uid]

    with pipeline() as p:
        # Fewer clients than archives, and elements in any order: archives come and go within a bundle.
        elements = p | beam.Create([(0, paths[::7] + [x for x in paths if x not in paths[::7]])])
        result = elements | beam.FlatMap(lambda pair: pair[1]) | WriteToDICOMweb(choose, max_destinations=2)
        outcomes = result.stored | beam.Map(lambda item: (item.reference, item.outcome))
        assert_that(outcomes, equal_to([(item, "stored") for item in contents]), label="stored")
        assert_that(result.failures, is_empty(), label="failures")
    for study, target in zip(studies, (tmp_path / studies[0], tmp_path / "b", tmp_path / "c"), strict=True):
        assert files_of(target) == sorted(c for item, c in contents.items() if item.study_instance_uid == study)
    assert not pools._CLIENTS._entries
    assert not pools._POOLS._entries


def test_a_function_that_names_no_archive_is_a_failure(archive, folder):
    paths = sorted(map(str, archive.rglob("*.dcm")))[:3]

    def choose(path):
        if path == paths[1]:
            raise ValueError("no archive for this")
        return str(folder)

    with pipeline() as p:
        result = p | beam.Create(paths) | WriteToDICOMweb(choose, failures="collect")
        assert_that(result.stored | beam.combiners.Count.Globally(), equal_to([2]), label="stored")
        told = result.failures | beam.Map(lambda item: (item.source, item.message.partition(" (")[0]))
        assert_that(told, equal_to([(paths[1], "choose raised ValueError")]), label="failures")
    with pytest.raises(Exception, match="choose raised ValueError"):
        with pipeline() as p:
            _ = p | beam.Create(paths) | WriteToDICOMweb(choose)
    assert not pools._CLIENTS._entries
    shown = {item.key: item.value for item in DisplayData.create_from(WriteToDICOMweb(choose)).items}
    assert shown["endpoint"] == "chosen for each element"
    with pytest.raises(ValueError, match="max_destinations"):
        WriteToDICOMweb(choose, max_destinations=0)


def test_in_three_windows_each_element_is_written_once(serve, archive, folder):
    server = serve(folder)
    content = next(archive.rglob("*.dcm")).read_bytes()
    url = server.url
    with pipeline() as p:
        elements = p | beam.Create([content]) | beam.Map(lambda item: TimestampedValue(item, 65))
        result = elements | beam.WindowInto(SlidingWindows(30, 10)) | WriteToDICOMweb(lambda _: url)
        windows = result.stored | beam.Map(lambda item, window=beam.DoFn.WindowParam: (item.outcome, int(window.start)))
        assert_that(windows, equal_to([("stored", start) for start in (40, 50, 60)]))
    assert len(server.records.of("POST")) == 1


# What holds for all -------------------------------------------------------------------------------------------------


def test_lineage_names_sources_and_sinks(serve, archive, tmp_path):
    server = serve(archive)
    p = pipeline()
    found = p | SearchForInstances(server.url, limit=2)
    _ = found | CopyInstances(server.url, str(tmp_path / "copy"))
    _ = found | DownloadInstances(server.url, tmp_path / "files")
    _ = p | beam.Create([str(next(archive.rglob("*.dcm")))]) | WriteToDICOMweb(str(tmp_path / "written"))
    result = p.run()
    result.wait_until_finish()
    host = server.url.split("/")[2]
    assert Lineage.query(result.metrics(), Lineage.SOURCE) == {f"dicomweb:`{host}`.dicom-web"}
    names = {f"filesystem:{Lineage.wrap_segment(str(tmp_path / x))}" for x in ("copy", "files", "written")}
    assert Lineage.query(result.metrics(), Lineage.SINK) == names


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://user:secret@pacs.example:8042/dicom-web/", ("dicomweb", ("pacs.example:8042", "dicom-web"))),
        ("https://pacs.example", ("dicomweb", ("pacs.example",))),
        ("gs://bucket/a/b", ("gcs", ("bucket", "a/b"))),
        ("s3://bucket", ("s3", ("bucket",))),
        ("/data/x", ("filesystem", ("/data/x",))),
        ("memory://x/y", ("filesystem", ("memory://x/y",))),
    ],
)
def test_names_of_archives_for_lineage(url, name):
    assert name_of(Endpoint(url)) == name


SECRETS = {
    "BasicCredentials.password": {"credentials": BasicCredentials("me", "hidden-value")},
    "BearerToken.token": {"credentials": BearerToken("hidden-value")},
    "the header Authorization": {"headers": {"Authorization": "Bearer hidden-value"}},
    "a password in the proxy URL for https": {"proxies": {"https": "http://me:hidden-value@proxy.example"}},
}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("make", [SearchForInstances, RetrieveInstances, WriteToDICOMweb, ReadFromDICOMweb])
def test_a_literal_secret_is_warned_of_once_by_kind(make, kind, caplog):
    transform = make(Endpoint("https://pacs.example/rs", **SECRETS[kind]))
    p = pipeline()
    start = p if make in (SearchForInstances, ReadFromDICOMweb) else p | beam.Create(["studies/1.2"])
    with caplog.at_level(logging.WARNING, "dicomweb_io"):
        _ = start | transform
    (record,) = [item for item in caplog.records if item.name == "dicomweb_io"]
    assert make.__name__ in record.getMessage()
    assert kind in record.getMessage()
    assert "hidden-value" not in caplog.text


def test_references_to_secrets_are_not_warned_of():
    endpoint = Endpoint(
        "https://pacs.example",
        credentials=BearerToken(env="TOKEN"),
        headers={"X-Tenant": "a"},
        proxies={"https": "http://p"},
    )
    assert literal_secrets(endpoint) == ()
    assert literal_secrets(Endpoint("https://me:hidden@pacs.example")) == ("a password in the URL",)
    assert literal_secrets(Endpoint("s3://x", storage_options={"secret": "x", "anon": False})) == (
        "the storage option secret",
    )


def test_throttling_is_counted_under_the_names_that_runners_know(serve, archive):
    server = serve(archive, faults=[fault("status", status=503, times=2, retry_after=1)])
    quick = RetryPolicy(initial_delay=0.01, max_delay=0.02)
    p = pipeline()
    _ = p | SearchForInstances(Endpoint(server.url, retry=quick, limits=Limits(requests_per_second=20)), page_size=5)
    result = p.run()
    result.wait_until_finish()
    counters = counters_of(result)
    assert counters["retries"] >= 1
    assert counters["throttled_msecs"] == counters["throttling-msecs"] > 0
    taken = [x for x in result.metrics().query()["distributions"] if x.key.metric.name == "request_msecs"]
    # Pages that were read ahead in vain may still be on their way.
    assert 12 <= sum(item.committed.count for item in taken) <= counters["requests"]
