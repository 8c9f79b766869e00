"""Searches as sources and as steps, against the test server and folders, on the in-memory runner."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to, is_empty
from apache_beam.transforms.display import DisplayData
from apache_beam.transforms.error_handling import ErrorHandler
from apache_beam.transforms.window import FixedWindows, SlidingWindows, TimestampedValue

from dicomweb_io.elements import Resource, SearchQuery
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.http.settings import Limits as EndpointLimits
from dicomweb_io.queries import make_query
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.server.behaviour import Limits
from dicomweb_io.testing.server.behaviours import behaviour_of
from dicomweb_io.transforms import ReadReferences, SearchForInstances, SearchForSeries, SearchForStudies, row_range
from dicomweb_io.transforms._core import TransformFailed
from dicomweb_io.transforms.metrics import NAMESPACE
from dicomweb_io.transforms.search import _DistinctRows, _ReadRows, query_for

ONCE = RetryPolicy.none()


def pipeline():
    return beam.Pipeline(runner="FnApiRunner")


def sop(row):
    return row["00080018"]["Value"][0]


@pytest.fixture
def references(archive):
    client = Endpoint(str(archive)).connect()
    found = [Resource.of(row) for row in client.iter_search(make_query("instance"))]
    client.close()
    assert len(set(found)) == 60
    return found


def capped(rows, **more):
    """Manners of a server whose answers have at most so many rows."""
    caps = Limits(rows, rows, rows)
    return replace(behaviour_of("generic"), max_limit=caps, default_limit=caps, **more)


@pytest.mark.parametrize("total_header", [False, True])
@pytest.mark.parametrize("cap", [7, 30, 1000])
def test_every_row_comes_once_whatever_the_page_size(serve, archive, references, cap, total_header):
    server = serve(archive, behaviour=capped(cap, total_header=total_header))
    with pipeline() as p:
        rows = p | SearchForInstances(server.url)
        assert_that(rows | beam.Map(Resource.of), equal_to(references))
    assert not server.errors


def test_parts_of_a_large_search_are_elements_of_their_own(serve, archive, references, monkeypatch):
    """A runner such as Flink spreads elements over its workers, and never what it has split itself."""
    monkeypatch.setattr(row_range, "LEAST_ROWS", 10)
    read, original = [], _ReadRows._rows

    def rows(dofn, element, tracker):
        read.extend([] if element.page else [(element.rows.start, element.rows.stop)])
        return original(dofn, element, tracker)

    monkeypatch.setattr(_ReadRows, "_rows", rows)
    server = serve(archive, behaviour=capped(5, total_header=True))
    with pipeline() as p:
        rows = p | SearchForInstances(server.url)
        assert_that(rows | beam.Map(Resource.of), equal_to(references))
    assert sorted(set(read), key=lambda part: part[0]) == [(5, 16), (16, 27), (27, 38), (38, 49), (49, None)]
    assert not server.errors


def test_a_folder_is_searched_alike(archive, references):
    with pipeline() as p:
        rows = p | SearchForInstances(str(archive), page_size=7)
        assert_that(rows | beam.Map(Resource.of), equal_to(references))


def test_searches_run_inside_each_element(serve, archive, references):
    server = serve(archive, behaviour=capped(4))
    with pipeline() as p:
        studies = p | SearchForStudies(server.url)
        series = studies | SearchForSeries(server.url)
        instances = series | SearchForInstances(server.url)
        below_studies = studies | "BelowStudies" >> SearchForInstances(server.url)
        assert_that(studies | "S" >> beam.combiners.Count.Globally(), equal_to([3]), label="studies")
        assert_that(
            series | "E" >> beam.Map(Resource.of), equal_to(list({item.series for item in references})), label="series"
        )
        assert_that(instances | "I" >> beam.Map(Resource.of), equal_to(references), label="instances")
        assert_that(below_studies | "B" >> beam.Map(Resource.of), equal_to(references), label="below")


def test_every_kind_of_element_narrows_the_search(archive, references):
    one = references[0]
    base = make_query("instance", search_filters={"Modality": "CT"})
    expected = replace(base, study_instance_uid=one.study_instance_uid, series_instance_uid=one.series_instance_uid)
    row = {"0020000D": {"vr": "UI", "Value": [one.study_instance_uid]}}
    row |= {"0020000E": {"vr": "UI", "Value": [one.series_instance_uid]}}
    for element in (one.series, row, one.series.to_dict(), one.series.uri, f"https://pacs.example/{one.series.uri}"):
        assert query_for(element, base) == expected
    with pytest.raises(ValueError, match="holds Modality: name the UIDs by keyword too"):
        query_for({**one.to_dict(), "Modality": "CT"}, base)
    with_filter = query_for({"PatientID": "X"}, base)
    assert with_filter.search_filters == (("Modality", "CT"), ("PatientID", "X"))
    assert query_for(SearchQuery("instance", one.study_instance_uid), base).study_instance_uid == one.study_instance_uid
    assert query_for(one, base).search_filters[-1] == ("SOPInstanceUID", one.sop_instance_uid)
    assert query_for(one, make_query("study")).search_filters == (("StudyInstanceUID", one.study_instance_uid),)
    assert query_for(one, make_query("series")).search_filters == (("SeriesInstanceUID", one.series_instance_uid),)
    with pytest.raises(ValueError, match="received a study query"):
        query_for(SearchQuery("study"), base)


def test_filters_fields_and_limit_reach_the_archive(serve, archive):
    server = serve(archive, behaviour=capped(4))
    with pipeline() as p:
        rows = p | SearchForInstances(
            server.url, {"Modality": "CT"}, ["Rows"], limit=10, fuzzymatching=False, additional_params={"x": "y"}
        )
        assert_that(rows | beam.combiners.Count.Globally(), equal_to([10]), label="ten")
        assert_that(rows | beam.Filter(lambda row: "00280010" not in row), is_empty(), label="fields")
    queries = [record.query for record in server.records]
    assert all("Modality=CT" in query and "includefield=" in query and "x=y" in query for query in queries)
    assert all("fuzzymatching=false" in query for query in queries)
    # Not a row more is asked for than is wanted.
    assert max(int(dict(p.split("=") for p in q.split("&")).get("offset", 0)) for q in queries) < 10


@pytest.mark.parametrize("limit", [0, 3, 4, 5, 60, 100])
def test_limit_counts_rows(serve, archive, limit):
    server = serve(archive, behaviour=capped(4))
    with pipeline() as p:
        rows = p | SearchForInstances(server.url, limit=limit)
        assert_that(
            rows | beam.Map(sop) | beam.Distinct() | beam.combiners.Count.Globally(), equal_to([min(limit, 60)])
        )


def test_what_is_behind_the_limit_is_not_read(serve, archive, monkeypatch):
    monkeypatch.setattr("dicomweb_io.web.search._MAX_WHOLE", 0)
    monkeypatch.setattr("dicomweb_io.web.search._MAX_ROWS", 20)
    server = serve(archive, faults=[fault("ignore_limit", times=None)])
    with pipeline() as p:
        rows = p | SearchForInstances(server.url, limit=10)
        assert_that(rows | beam.combiners.Count.Globally(), equal_to([10]))


def what_failed():
    return beam.Map(lambda item: (item.message, item.reference, item.source, item.element))


@pytest.mark.parametrize("from_folder", [False, True])
def test_what_finds_nothing_is_a_failure_where_a_match_is_required(serve, archive, references, tmp_path, from_folder):
    place = str(archive) if from_folder else serve(archive).url
    listed = tmp_path / "list.csv"
    listed.write_text("AccessionNumber\n00123\n")
    known, unknown = Resource(references[0].study_instance_uid), Resource("1.2.3")
    how = {"require_match": True, "failures": "collect"}
    with pipeline() as p:
        below = p | "Below" >> beam.Create([known, unknown]) | SearchForSeries(place, **how)
        assert_that(below.rows | beam.combiners.Count.Globally(), equal_to([2]), label="found")
        nothing = ("the search found no series", unknown, None, None)
        assert_that(below.failures | "Below failed" >> what_failed(), equal_to([nothing]), label="below")
        lines = p | ReadReferences(str(listed)) | "Listed" >> SearchForStudies(place, **how)
        lost = ("the search by AccessionNumber 00123 found no study", None, f"{listed}, line 2", None)
        assert_that(lines.failures | "Lines" >> what_failed(), equal_to([lost]), label="line")
        one = p | "One" >> SearchForInstances(place, {"PatientID": "NOBODY"}, **how)
        asked = ("the search by PatientID found no instance", None, None, "search for instances by PatientID")
        assert_that(one.failures | "Ones" >> what_failed(), equal_to([asked]), label="one")


def test_distinct_removes_what_several_searches_found(archive, references):
    with pipeline() as p:
        elements = p | beam.Create([references[0].series, references[0].series, references[0]])
        rows = elements | SearchForInstances(str(archive), distinct=True)
        found = [item for item in references if item.series == references[0].series]
        assert_that(rows | beam.Map(Resource.of), equal_to(found))


def test_distinct_leaves_rows_without_uids_alone():
    rows = [{"00080060": {"vr": "CS", "Value": [modality]}} for modality in ("CT", "MR")]
    with pipeline() as p:
        kept = p | beam.Create([*rows, {"0020000D": {"vr": "UI", "Value": ["1.2"]}}] * 2) | _DistinctRows("study")
        assert_that(kept | beam.combiners.Count.Globally(), equal_to([3]))


def test_an_archive_that_ignores_offsets_fails_loudly(serve, archive):
    server = serve(archive, behaviour=capped(7), faults=[fault("ignore_offset", times=None)])
    with pipeline() as p:
        found = p | SearchForInstances(server.url, failures="collect")
        failures = found.failures | beam.Map(lambda failure: (failure.transform, "ignore" in failure.message))
        assert_that(failures, equal_to([("SearchForInstances", True)]))


def test_repeated_rows_come_once(serve, archive, references):
    server = serve(archive, behaviour=capped(7), faults=[fault("duplicate_rows", times=None, first=2)])
    with pipeline() as p:
        rows = p | SearchForInstances(server.url)
        assert_that(
            rows | beam.Map(Resource.of) | beam.combiners.Count.PerElement(), equal_to([(r, 1) for r in references])
        )


def test_a_page_that_fails_names_the_rows_it_lost_and_keeps_those_before(serve, archive):
    server = serve(archive, behaviour=capped(7), faults=[fault("status", first=4, times=None, status=500)])
    endpoint = Endpoint(server.url, retry=ONCE, limits=EndpointLimits(1))
    with pipeline() as p:
        found = p | SearchForInstances(endpoint, failures="collect")
        assert_that(found.rows | beam.Map(sop) | beam.combiners.Count.Globally(), equal_to([21]), label="rows")
        lost = found.failures | beam.Map(
            lambda failure: (failure.rows[0], failure.status, "rows 21 to" in failure.message)
        )
        assert_that(lost, equal_to([(21, 500, True)]), label="failures")


def test_passing_faults_are_not_noticed(serve, archive, references):
    faults = [fault("status", first=number, status=503) for number in (1, 3, 4, 6)]
    server = serve(archive, behaviour=capped(7), faults=faults)
    quick = RetryPolicy(initial_delay=0.01, max_delay=0.02)
    with pipeline() as p:
        rows = p | SearchForInstances(Endpoint(server.url, retry=quick))
        assert_that(rows | beam.Map(Resource.of), equal_to(references))


def test_without_a_handler_a_failure_fails_the_pipeline(serve, archive):
    server = serve(archive, faults=[fault("status", times=None, status=403)])
    with pytest.raises(Exception, match=r"SearchForStudies failed: .*403") as caught:
        with pipeline() as p:
            _ = p | SearchForStudies(Endpoint(server.url, retry=ONCE))
    assert isinstance(caught.value, TransformFailed) or "TransformFailed" in repr(caught.value)


def test_an_error_handler_receives_failures_and_the_rest_goes_on(serve, archive, references):
    server = serve(archive)
    seen = []
    with pipeline() as p:
        with ErrorHandler(beam.Map(lambda failure: (failure.transform, failure.message[:20]))) as handler:
            elements = p | beam.Create(["no reference", references[0].series])
            rows = elements | SearchForInstances(server.url).with_error_handler(handler)
        assert_that(rows | beam.combiners.Count.Globally(), equal_to([10]), label="rows")
        assert_that(handler.output() | beam.Map(lambda item: item[0]), equal_to(["SearchForInstances"]), label="lost")
    assert seen == []


def test_windows_and_timestamps_pass_through(archive, references):
    study = references[0].study_instance_uid
    with pipeline() as p:
        elements = (
            p
            | beam.Create([Resource(study)])
            | beam.Map(lambda item: TimestampedValue(item, 65))
            | beam.WindowInto(FixedWindows(60))
        )
        rows = elements | SearchForSeries(str(archive))
        seen = rows | beam.Map(
            lambda row, time=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam: (int(time), int(window.start))
        )
        assert_that(seen, equal_to([(65, 60)] * 2))


def test_an_element_in_three_windows_is_searched_once(serve, archive, references):
    server = serve(archive, behaviour=capped(3))
    with pipeline() as p:
        elements = (
            p
            | beam.Create([references[0].series])
            | beam.Map(lambda item: TimestampedValue(item, 65))
            | beam.WindowInto(SlidingWindows(30, 10))
        )
        rows = elements | SearchForInstances(server.url)
        seen = rows | beam.Map(lambda row, window=beam.DoFn.WindowParam: (sop(row), int(window.start)))
        expected = [
            (item.sop_instance_uid, start)
            for item in references
            if item.series == references[0].series
            for start in (40, 50, 60)
        ]
        assert_that(seen, equal_to(expected))
    offsets = Counter(record.query for record in server.records)
    assert set(offsets.values()) == {1}, "a page was asked for once for each window"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"search_filters": {"PatientNam": "X"}}, "PatientNam"),
        ({"fields": ["Nonsense"]}, "Nonsense"),
        ({"limit": -1}, "limit must be 0 or more"),
        ({"page_size": 0}, "page_size must be a positive integer"),
        ({"failures": "ignore"}, "failures must be"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(arguments, message):
    with pytest.raises(ValueError, match=message):
        SearchForStudies("https://pacs.example", **arguments)


def test_wrong_inputs_are_refused_when_the_pipeline_is_built():
    from apache_beam.typehints.decorators import TypeCheckError

    numbers = pipeline() | beam.Create([1.5])
    with pytest.raises(TypeCheckError):
        _ = numbers | SearchForSeries("https://pacs.example")


def test_display_data_shows_no_secret_and_no_patient():
    endpoint = Endpoint("https://user:secret@pacs.example/rs", headers={"X-Key": "hidden"})
    data = DisplayData.create_from(SearchForStudies(endpoint, {"PatientName": "DOE^JOHN"}))
    shown = {item.key: item.value for item in data.items}
    assert shown["endpoint"] == "https://pacs.example/rs"
    assert shown["filters"] == "PatientName"
    assert not any(word in str(shown) for word in ("secret", "hidden", "DOE"))


def test_metrics_are_counted(serve, archive):
    server = serve(archive, behaviour=capped(7))
    p = pipeline()
    _ = p | SearchForInstances(server.url)
    result = p.run()
    result.wait_until_finish()
    counters = {item.key.metric.name: item.committed for item in result.metrics().query()["counters"]}
    assert counters["rows"] == 60
    # Pages that were read ahead beyond the end are not counted: nobody took them.
    assert counters["search_pages"] == 9
    assert 9 <= counters["requests"] <= len(server.records)
    assert counters["bytes_in"] > 60 * 100
    assert NAMESPACE == "dicomweb_io"


@pytest.mark.parametrize(
    "element",
    [
        {},
        {"PatientID": ""},
        {"PatientID": None},
        {"PatientID": "*"},
        {"PatientID": "**"},
        {"PatientID": "%"},
        {"PatientID": ["X", ""]},
        {"PatientName": "^*", "StudyDate": ""},
        SearchQuery("study"),
        SearchQuery("study", search_filters=(("PatientID", " "),)),
    ],
)
def test_an_element_is_never_everything_unless_that_is_allowed(element):
    base = make_query("study", search_filters={"ModalitiesInStudy": "CT"})
    with pytest.raises(ValueError, match="allow_all"):
        query_for(element, base)
    assert query_for(element, base, allow_all=True).search_filters[-1:]


def test_empty_values_beside_others_are_return_keys_and_other_elements_name_nothing(archive, references):
    query = query_for({"PatientID": "", "StudyDate": "20240101"}, make_query("study"))
    assert query.search_filters == (("PatientID", ""), ("StudyDate", "20240101"))
    one = references[0]
    row = {"0020000D": {"vr": "UI", "Value": [one.study_instance_uid]}}
    lacking = [{**row, "00080018": {"vr": "UI", "Value": [one.sop_instance_uid]}}, {**row, "0020000E": {"vr": "UI"}}]
    lacking += [
        {"0020000E": {"vr": "UI", "Value": ["1.3"]}},
        {"series_instance_uid": "1.3"},
        None,
        "",
        {"StudyDate": "2004"},
    ]
    with pipeline() as p:
        elements = p | beam.Create([*lacking, {}]) | beam.Map(lambda element: element).with_output_types(Any)
        result = elements | SearchForInstances(str(archive), failures="collect")
        assert_that(result.rows, is_empty(), label="nothing")
        assert_that(result.failures | beam.combiners.Count.Globally(), equal_to([len(lacking) + 1]))
    with pipeline() as p:
        rows = p | beam.Create([{}]) | SearchForInstances(str(archive), allow_all=True)
        assert_that(rows | beam.Map(Resource.of), equal_to(references))
