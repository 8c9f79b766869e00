"""References packed by series: fewer requests, and the same results in the same places."""

from __future__ import annotations

import gzip
import json
import re
import tracemalloc
from collections import Counter
from functools import partial

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, Repeatedly
from apache_beam.transforms.window import FixedWindows, GlobalWindows, Sessions, SlidingWindows, TimestampedValue
from apache_beam.typehints import TypeCheckError
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import PaneInfo, PaneInfoTiming, WindowedValue

from dicomweb_io import listing
from dicomweb_io.copier import InstanceCopier
from dicomweb_io.elements import Failure, Resource, SearchQuery
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.listing import InstanceGroup, ListFile, parts_of
from dicomweb_io.queries import make_query
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transfer import TransferJob, run_transfer
from dicomweb_io.transforms import (
    CopyInstances,
    DistinctReferences,
    DownloadInstances,
    ReadAllFromDICOMweb,
    ReadFromDICOMweb,
    ReadReferences,
    RetrieveInstances,
    RetrieveMetadata,
    grouping,
    read_write,
)
from dicomweb_io.transforms.grouping import GroupBySeries, PackBySeries, bucket_of
from dicomweb_io.transforms.read_write import series_query
from pipelines.transfer import build, main

FOUR_PROCESSES = ["--direct_running_mode=multi_processing", "--direct_num_workers=4"]


def pipeline(*arguments):
    return beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner", *arguments]))


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """A folder with 2 studies of 4 series of 6 small instances. Not to be written to."""
    directory = tmp_path_factory.mktemp("eight")
    make_study(directory, studies=2, series=4, instances=6, size=300)
    return directory


@pytest.fixture(scope="module")
def references(eight):
    """Its instances."""
    with Endpoint(str(eight)).connect() as client:
        return [Resource.of(row) for row in client.iter_search(make_query("instance"))]


def requests(server, ending):
    """How often each path with an ending was asked for, the further pages of a search aside."""
    records = server.records.settled().of("GET")
    asked = [one.path for one in records if re.search(ending, one.path) and "offset=" not in one.query]
    return Counter(asked)


SERIES, LISTING, SINGLE = r"/series/[^/]+$", r"/series/[^/]+/instances$", r"/instances/[^/]+$"


# Requests -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["study", "series", "instance"])
def test_four_processes_list_each_series_once(serve, eight, references, tmp_path, level):
    source, destination = serve(eight), serve(tmp_path / "copy")
    named = {"instance": references, "series": [one.series for one in references]}
    named["study"] = [Resource(one.study_instance_uid) for one in references]
    with pipeline(*FOUR_PROCESSES) as p:
        elements = p | beam.Create(list(dict.fromkeys(named[level])))
        stored = elements | CopyInstances(source.url, destination.url)
        assert_that(stored.stored | beam.combiners.Count.Globally(), equal_to([48]))
    assert len(requests(source, SERIES)) == 8
    assert not requests(source, SINGLE)
    for server in (source, destination):
        asked = requests(server, LISTING)
        assert set(asked.values()) <= {1}
        # Studies are listed as such at the source.
        assert len(asked) == (0 if server is source and level == "study" else 8)


@pytest.mark.parametrize(
    ("make", "ending"),
    [
        (RetrieveInstances, ""),
        (RetrieveMetadata, "/metadata"),
        (lambda url: DownloadInstances(url, "memory://packed"), ""),
    ],
    ids=["instances", "metadata", "download"],
)
def test_a_list_of_all_instances_makes_a_request_for_each_series(serve, eight, references, make, ending):
    server = serve(eight)
    with pipeline() as p:
        found = p | beam.Create(references) | make(server.url)
        assert_that(found | beam.combiners.Count.Globally(), equal_to([48]))
    assert sorted(requests(server, rf"/series/[^/]+{ending}$").values()) == [1] * 8
    assert not requests(server, rf"/instances/[^/]+{ending}$")


def test_a_few_instances_of_a_series_are_requested_one_by_one(serve, eight, references):
    server = serve(eight)
    some = [one for index, one in enumerate(references) if index % 6 < 2]
    with pipeline() as p:
        found = p | beam.Create(some) | RetrieveInstances(server.url) | beam.Map(lambda one: one.reference)
        assert_that(found, equal_to(some))
    assert len(requests(server, SINGLE)) == len(some)
    assert not requests(server, LISTING) + requests(server, SERIES)


@pytest.mark.parametrize("refused", [True, False])
@pytest.mark.parametrize(
    ("make", "ending"),
    [
        (RetrieveInstances, ""),
        (RetrieveMetadata, "/metadata"),
        (lambda url: DownloadInstances(url, f"memory://at-once/{url[7:]}"), ""),
        (lambda url: CopyInstances(url, f"memory://copied/{url[7:]}"), ""),
    ],
    ids=["instances", "metadata", "download", "copy"],
)
def test_instances_of_one_series_are_requested_several_at_once(serve, eight, references, make, ending, refused):
    """A few of a series, or all of one that the server does not give whole; the fault strikes two at once only."""
    faults = [fault("status", path=rf"/instances/[^/]+{ending}$", overlapping=1, status=503, retry_after=0)]
    if refused:
        faults.append(fault("status", path=rf"/series/[^/]+{ending}$", status=404, times=None))
    server = serve(eight, faults=faults)
    with pipeline() as p:
        some = references[:6] if refused else references[:3]
        found = p | beam.Create(some) | make(server.url)
        found = getattr(found, "stored", found)
        assert_that(found | beam.combiners.Count.Globally(), equal_to([len(some)]))
    assert [one.status for one in server.records.settled() if one.faults and "/instances/" in one.path] == [503]


def test_a_series_of_which_much_is_there_is_not_retrieved_whole(serve, eight, references, tmp_path):
    source, destination = serve(eight), serve(tmp_path / "copy")
    there = [one for index, one in enumerate(references) if index % 6]
    for wanted in (there, references):
        source.records.clear()
        with pipeline() as p:
            copied = p | beam.Create(wanted) | CopyInstances(source.url, destination.url)
            states = copied.stored | beam.Map(lambda one: one.outcome) | beam.combiners.Count.PerElement()
            numbers = [("stored", len(wanted))] if wanted is there else [("exists", 40), ("stored", 8)]
            assert_that(states, equal_to(numbers))
    assert len(requests(source, SINGLE)) == 8
    assert not requests(source, SERIES)


def test_what_a_series_leaves_out_fails_by_itself(serve, eight, references):
    lost = references[0]
    faults = [
        fault("drop_part", path=SERIES, times=None, part=1),
        fault("status", path=f"/{lost.sop_instance_uid}$", times=None, status=410),
    ]
    server = serve(eight, faults=faults)
    with pipeline() as p:
        found = p | beam.Create([*references, lost]) | RetrieveInstances(server.url, failures="collect")
        came = found.instances | beam.Map(lambda one: one.reference)
        assert_that(came, equal_to([one for one in references if one != lost]), label="came")
        told = found.failures | beam.Map(lambda one: (one.reference, one.status))
        assert_that(told, equal_to([(lost, 410)] * 2), label="told")


@pytest.mark.parametrize("named", [True, False])
def test_an_instance_that_nobody_named_is_no_failure(eight, references, tmp_path, named):
    """The listing lacks one that comes with its series. Who wants the whole series is told, who named others is not."""
    uids = tuple(str(one.sop_instance_uid) for one in references[1:6])
    group = InstanceGroup(references[0].series, uids, len(uids), named=named)
    with Endpoint(str(eight)).connect() as source, Endpoint(str(tmp_path / "copy")).connect() as destination:
        with InstanceCopier(source, destination) as copier:
            results = dict(copier.iter_group(group))
    assert [one for one, result in results.items() if isinstance(result, Failure)] == references[: 0 if named else 1]
    assert len(results) == 5 + (not named)


# Groups ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [5, 6])
def test_what_is_not_requested_whole_is_cut_into_parts(eight, references, monkeypatch, largest):
    monkeypatch.setattr(grouping, "parts_of", partial(parts_of, size=2))
    monkeypatch.setattr(grouping, "MAX_WHOLE", largest)
    with pipeline() as p:
        elements = p | beam.Create([*references[:30], *references[36:40], references[0]])
        groups = (elements | GroupBySeries(str(eight))).groups
        sizes = groups | beam.Map(lambda group: len(set(group.sop_instance_uids)))
        # Four of six instances are most of a series.
        assert_that(sizes, equal_to([6] * 5 + [4] if largest == 6 else [2] * 15 + [4]))
        named = groups | "Named" >> beam.FlatMap(lambda group: group.references)
        assert_that(named, equal_to([*references[:30], *references[36:40], references[0]]), label="named")


@pytest.mark.parametrize(("wanted", "whole"), [(slice(None), 8), (slice(0, 30), 5), (slice(None, None, 3), 0)])
def test_the_command_copies_a_long_list_of_instances_by_series_or_in_parts(
    serve, eight, references, tmp_path, monkeypatch, wanted, whole
):
    monkeypatch.setattr(listing, "ASK_FIRST", 2)
    monkeypatch.setattr(listing, "parts_of", partial(parts_of, size=1))
    source, some = serve(eight), references[wanted]
    job = TransferJob(Endpoint(source.url), Endpoint(str(tmp_path / "copy")), wanted=tuple(some))
    summary = run_transfer(job)
    assert (summary["found"], summary["transferred"]) == (len(some), len(some))
    assert sorted(requests(source, SERIES).values()) == [1] * whole
    assert len(requests(source, SINGLE)) == (0 if whole else len(some))
    assert set(requests(source, LISTING).values()) == {1}


def test_what_is_named_in_several_ways_is_named_once(eight, references):
    series = references[0].series
    whole = InstanceGroup(series, tuple(str(one.sop_instance_uid) for one in references[:6]), 6)
    with pipeline() as p:
        elements = p | beam.Create([whole, *references, *references[:3], Resource("1.2.3"), Resource("1.2.3")])
        packed = elements | PackBySeries(distinct=True)
        groups = packed | beam.Filter(lambda one: isinstance(one, InstanceGroup))
        named = groups | beam.FlatMap(lambda group: group.references)
        assert_that(named, equal_to(references), label="named")
        assert_that(groups | beam.Map(lambda one: one.listed), equal_to([6] + [None] * 7), label="listed")
        rest = packed | beam.Filter(lambda one: isinstance(one, Resource))
        assert_that(rest, equal_to([Resource("1.2.3")]), label="rest")


def test_buckets_are_the_same_in_every_process():
    series = Resource("1.2.3", "1.2.3.4")
    assert bucket_of(series) == bucket_of(InstanceGroup(series, ("1",))) == 134
    assert 0 <= bucket_of(Resource("1.2.3")) < grouping.BUCKETS


def note(element, path, time=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam, pane=beam.DoFn.PaneInfoParam):
    """Writes down the reference of an element and its place."""
    with open(path, "a") as file:
        print(getattr(element, "reference", element).uri, int(time), window, pane, file=file)


WINDOWS = {
    "global": lambda: beam.WindowInto(GlobalWindows()),
    "fixed": lambda: beam.WindowInto(FixedWindows(10)),
    "sliding": lambda: beam.WindowInto(SlidingWindows(30, 10)),
    "sessions": lambda: beam.WindowInto(Sessions(15)),
    "accumulating": lambda: beam.WindowInto(
        FixedWindows(10), trigger=Repeatedly(AfterCount(1)), accumulation_mode=AccumulationMode.ACCUMULATING
    ),
}


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("streaming", [False, True])
def test_places_survive(eight, references, tmp_path, windows, streaming):
    """Instances come in the windows, with the times and the panes of their references, as often as these."""
    before, after = tmp_path / "before", tmp_path / "after"
    some = [TimestampedValue(one, index % 5 * 7) for index, one in enumerate([*references, *references[:2]])]
    with pipeline(*(["--streaming"] if streaming else [])) as p:
        keyed = p | beam.Create(some) | WINDOWS[windows]() | beam.Map(lambda one: (one.series.uri, one))
        # The panes are those of a GroupByKey.
        elements = keyed | beam.GroupByKey() | beam.FlatMap(lambda pair: pair[1]).with_output_types(Resource)
        _ = elements | "Before" >> beam.Map(note, str(before))
        _ = elements | RetrieveInstances(str(eight)) | "After" >> beam.Map(note, str(after))
    assert sorted(after.read_text().splitlines()) == sorted(before.read_text().splitlines())
    assert len(after.read_text().splitlines()) >= 50


class InEachWindow(beam.DoFn):
    """Gives an element the same time and pane in each of its windows."""

    def process(self, element, window=beam.DoFn.WindowParam):
        yield WindowedValue(element, Timestamp(65), (window,), PaneInfo(True, False, PaneInfoTiming.EARLY, 0, -1))


@pytest.mark.parametrize("streaming", [False, True])
def test_panes_survive_in_several_windows(eight, references, tmp_path, streaming):
    """Beam forgets the pane of what lies in several windows at once."""
    before, after = tmp_path / "before", tmp_path / "after"
    with pipeline(*(["--streaming"] if streaming else [])) as p:
        timed = p | beam.Create([TimestampedValue(one, 65) for one in references])
        put = timed | WINDOWS["sliding"]() | beam.ParDo(InEachWindow()).with_output_types(Resource)
        _ = put | "Before" >> beam.Map(note, str(before))
        _ = put | RetrieveInstances(str(eight)) | "After" >> beam.Map(note, str(after))
    assert sorted(after.read_text().splitlines()) == sorted(before.read_text().splitlines())
    assert after.read_text().count("EARLY") == 3 * 48


# Reading by filters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "options", "by_series"),
    [
        ({"Modality": "CT"}, {}, True),
        ({"PatientID": "*"}, {"split_by": "StudyDate"}, True),
        (None, {}, True),
        ({"Modality": "CT"}, {"limit": 7}, False),
        ({"InstanceNumber": "1"}, {}, False),
    ],
)
def test_the_front_door_asks_for_series_unless_filters_are_about_instances(
    serve, eight, references, filters, options, by_series
):
    server = serve(eight)
    count = options.get("limit") or (8 if filters and "InstanceNumber" in filters else 48)
    with pipeline() as p:
        found = p | ReadFromDICOMweb(server.url, filters, **options)
        assert_that(
            found | beam.Map(lambda one: one.reference) | beam.Distinct() | beam.combiners.Count.Globally(),
            equal_to([count]),
        )
    assert bool(requests(server, r"/dicom-web/series$")) == by_series
    assert bool(requests(server, r"/dicom-web/instances$")) != by_series


def test_the_front_door_reads_what_each_element_names(serve, eight, references):
    server = serve(eight)
    study, series, one = Resource(references[0].study_instance_uid), references[6].series, references[47]
    elements = {
        study: 24,
        series: 6,
        one: 1,
        SearchQuery("study", search_filters=(("StudyInstanceUID", study.study_instance_uid),)): 24,
        Resource("1.2.3"): 0,
    }
    with pipeline() as p:
        found = p | beam.Create(list(elements)) | ReadAllFromDICOMweb(server.url, failures="collect")
        number = found.instances | beam.combiners.Count.Globally()
        assert_that(number, equal_to([sum(elements.values())]), label="number")
        lost = found.failures | beam.Map(lambda one: one.reference)
        assert_that(lost, equal_to([Resource("1.2.3")]), label="lost")
    assert len(requests(server, SINGLE)) == 1


@pytest.mark.parametrize(
    ("filters", "series", "web", "folder"),
    [
        ({}, None, True, True),
        ({"StudyInstanceUID": "1.2"}, "1.2.3", True, True),
        ({"Modality": "CT"}, None, True, False),
        ({"SOPInstanceUID": "1.2"}, None, False, False),
        ({"00091001": "x"}, None, False, False),
    ],
)
def test_which_searches_may_be_for_series(filters, series, web, folder):
    """The files of a series in a folder may disagree about it, so there each is matched."""
    query = make_query("instance", "1.2" if series else None, series, search_filters=filters)
    for url, expected in (("https://pacs.example", web), ("/data", folder)):
        found = series_query(query, Endpoint(url))
        assert (found is not None) == expected
        assert found is None or ("SeriesInstanceUID", series) in found.search_filters or series is None


# Lists ----------------------------------------------------------------------------------------------------------------


def test_a_list_is_read_in_the_pipeline_and_every_line_is_accounted_for(eight, references, tmp_path):
    path = tmp_path / "list.csv"
    lines = [f"{one.study_instance_uid},{one.series_instance_uid},{one.sop_instance_uid}" for one in references]
    header = "StudyInstanceUID,SeriesInstanceUID,SOPInstanceUID"
    path.write_text("\n".join([header, *lines, "", "# a remark", "no UID,,", f"{references[0].study_instance_uid},,"]))
    with pipeline() as p:
        named = p | ReadReferences(path, level="instance", failures="collect")
        assert named.references.element_type is Resource
        assert_that(named.references, equal_to(references), label="references")
        told = named.failures | beam.Map(lambda one: (one.source, one.transform))
        bad = [(f"{path}, line {number}", "ReadReferences") for number in (52, 53)]
        assert_that(told, equal_to(bad), label="bad")
        came = named.references | RetrieveInstances(str(eight)) | beam.Map(lambda one: one.reference)
        assert_that(came, equal_to(references), label="came")


def test_accession_numbers_of_a_list_name_instances(eight, tmp_path):
    with Endpoint(str(eight)).connect() as client:
        (first, *_) = client.search_for_studies(fields=["AccessionNumber"])
    path = tmp_path / "numbers.csv"
    path.write_text(f"AccessionNumber\n{first['00080050']['Value'][0]}\n")
    with pipeline() as p:
        found = p | ReadReferences(path) | ReadAllFromDICOMweb(str(eight))
        assert_that(found | beam.combiners.Count.Globally(), equal_to([24]))


UNREADABLE = {
    "missing": (None, "No such file"),
    "unknown columns": (b"Unknown,Columns\n1,2\n", "no column that names an object"),
    "no text": (b"\x89PNG\r\n\x1a\n", "no text"),
    "damaged": (gzip.compress(b"StudyInstanceUID\n" + bytes(str(list(range(999))), "ascii"))[:-30], "damaged"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_list_that_cannot_be_read_is_a_failure(tmp_path, what):
    path, (content, why) = tmp_path / "list.csv", UNREADABLE[what]
    if content is not None:
        path.write_bytes(content)
    with pipeline() as p:
        named = p | ReadReferences(str(path), failures="collect")
        told = named.failures | beam.Map(lambda one: (one.source, why in one.message))
        assert_that(told | beam.Filter(lambda one: one[0] == str(path)), equal_to([(str(path), True)]))
    with pytest.raises(ValueError, match="level must be one of"):
        ReadReferences(str(path), level="frame")


@pytest.mark.parametrize(
    ("url", "why"), [("memory://nowhere/list.csv", "No such file.*memory://nowhere"), ("nowhere://list", "nowhere")]
)
def test_a_remote_list_that_cannot_be_read_is_a_failure(url, why):
    (line,) = read_write._lines_of(ListFile(url))
    assert (line.place, line.wanted) == (url, None)
    assert re.search(why, line.problem)


def test_a_list_may_be_compressed_and_is_read_as_it_is_needed(tmp_path):
    path = tmp_path / "list.csv.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(["StudyInstanceUID\n", *("1.2.3\n" for _ in range(200_000))])
    lines = ListFile(str(path)).lines()
    assert next(lines).wanted == Resource("1.2.3")
    tracemalloc.start()
    try:
        assert sum(1 for _ in lines) == 199_999
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_json_array_is_no_accession_number(tmp_path):
    path = tmp_path / "list.json"
    path.write_text('[{"StudyInstanceUID": "1.2.3"}]')
    (line,) = ListFile(str(path)).lines()
    assert "one object a line" in line.problem


@pytest.mark.parametrize("make", [RetrieveInstances, lambda url: CopyInstances(url, "/copy")])
def test_a_retrieve_of_a_list_that_may_hold_searches_says_what_to_do(make):
    with pytest.raises(TypeCheckError, match="level="):
        _ = pipeline() | ReadReferences("list.csv") | make("https://pacs.example")
    _ = pipeline() | ReadReferences("list.csv", level="study") | make("https://pacs.example")


def test_references_to_frames_stay_distinct():
    frames = [Resource("1.2", "1.3", "1.4", (1,)), Resource("1.2", "1.3", "1.4", (2,)), Resource("1.2", "1.3", "1.4")]
    with pipeline() as p:
        distinct = p | beam.Create([*frames, *frames]) | DistinctReferences()
        assert_that(distinct, equal_to(frames))


# The job --------------------------------------------------------------------------------------------------------------


def test_the_job_reads_its_list_and_lists_each_series_once(serve, eight, references, tmp_path):
    source, destination = serve(eight), serve(tmp_path / "copy")
    path = tmp_path / "list.csv"
    studies = dict.fromkeys(one.study_instance_uid for one in references)
    path.write_text("\n".join(["StudyInstanceUID", *studies]))
    arguments = ["--source", source.url, "--destination", destination.url, "--input", str(path)]
    assert main([*arguments, "--summary", str(tmp_path / "summary.json")]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["found"], summary["transferred"], summary["lines"]) == (48, 48, 2)
    assert not requests(source, LISTING)
    assert sorted(requests(destination, LISTING).values()) == [1] * 8
    assert sorted(requests(source, SERIES).values()) == [1] * 8


def test_the_graph_of_the_job_does_not_grow_with_its_list(tmp_path):
    sizes = []
    for number in (1, 10_000):
        path = tmp_path / "list.txt"
        path.write_text("".join(f"1.2.3.{line}\n" for line in range(number)))
        job = TransferJob(Endpoint("/data"), Endpoint("/copy"), wanted=ListFile(str(path)))
        graph = pipeline()
        build(graph, job)
        sizes.append(len(graph.to_runner_api().SerializeToString()))
    assert sizes[1] < sizes[0] * 1.1
