"""Searches split by StudyDate: every row once, dated or not."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from itertools import pairwise

import apache_beam as beam
import pydicom
import pytest
from apache_beam.testing.util import assert_that, equal_to, is_empty
from apache_beam.transforms.window import SlidingWindows, TimestampedValue
from hypothesis import given, strategies as st

from dicomweb_io.elements import Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import FilterIgnoredError
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.profiles import PROFILES
from dicomweb_io.queries import make_query
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import make_study
from dicomweb_io.testing.server.behaviours import behaviour_of
from dicomweb_io.transforms import SearchForInstances, SearchForStudies
from dicomweb_io.transforms.search import ALL_DATES, Span, is_dated, span_of, split_by_count

DATES = [
    "20200101",
    "20200101",
    "20200102",
    "20200630",
    "20211231",
    "19850101",
    "17991231",
    "20501231",
    "",
    None,
    "bad",
]
UNDATED = ("17991231", "", None, "bad")

days = st.dates(date(1800, 1, 1), date(9999, 12, 31))


def pipeline():
    return beam.Pipeline(runner="FnApiRunner")


@pytest.fixture(scope="module")
def dated(tmp_path_factory):
    """A folder with a study of 2 instances for each of `DATES`. Not to be written to."""
    directory = tmp_path_factory.mktemp("dated")
    paths = make_study(directory, studies=len(DATES), instances=2, size=100)
    for number, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        text = DATES[number // 2]
        if text is None:
            if "StudyDate" in dataset:
                del dataset.StudyDate
        else:
            with pydicom.config.disable_value_validation():
                dataset.StudyDate = text
        dataset.save_as(path)
    return directory


@pytest.fixture(scope="module")
def references(dated):
    client = Endpoint(str(dated)).connect()
    found = [Resource.of(row) for row in client.iter_search(make_query("instance"))]
    client.close()
    assert len(found) == 2 * len(DATES)
    return found


@pytest.fixture(scope="module")
def date_of(dated):
    """The text in `DATES` of each study."""
    paths = sorted(dated.rglob("*.dcm"))
    studies = [Resource(pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID) for path in paths[::2]]
    return dict(zip(studies, DATES, strict=True))


@pytest.fixture
def few_rows(monkeypatch):
    """What is worth a split: 3 rows instead of 10,000."""
    monkeypatch.setattr("dicomweb_io.transforms.search.LEAST_ROWS", 3)


def queries_of(server):
    return [record.query for record in server.records if "StudyDate=" in record.query]


@pytest.mark.parametrize("totals", [True, False])
def test_every_row_comes_once_dated_or_not(serve, dated, references, few_rows, totals):
    server = serve(dated, behaviour=replace(behaviour_of("generic"), total_header=totals))
    studies = sorted({Resource(item.study_instance_uid) for item in references}, key=lambda item: item.uri)
    with pipeline() as p:
        rows = p | SearchForStudies(server.url, split_by="StudyDate")
        assert_that(rows | beam.Map(Resource.of), equal_to(studies), label="studies")
        instances = p | SearchForInstances(server.url, split_by="StudyDate", columns=["SOPInstanceUID"])
        uids = instances | "I" >> beam.Map(lambda row: row.SOPInstanceUID)
        assert_that(uids, equal_to([item.sop_instance_uid for item in references]), label="instances")
    assert len(set(queries_of(server))) > 6


def test_a_folder_is_split_alike(dated, references, few_rows):
    with pipeline() as p:
        elements = p | beam.Create([{}]) | beam.Map(lambda item: TimestampedValue({"Modality": "CT"}, 65))
        rows = elements | beam.WindowInto(SlidingWindows(30, 10)) | SearchForInstances(str(dated), split_by="StudyDate")
        seen = rows | beam.Map(lambda row, window=beam.DoFn.WindowParam: (Resource.of(row), int(window.start)))
        assert_that(seen, equal_to([(item, start) for item in references for start in (40, 50, 60)]))


def test_a_filter_by_date_is_kept_and_needs_no_search_for_the_undated(serve, dated, date_of, few_rows):
    server = serve(dated, behaviour=replace(behaviour_of("generic"), total_header=True))
    wanted = [study for study, text in date_of.items() if (text or "").startswith("2020")]
    assert len(wanted) == 4
    with pipeline() as p:
        rows = p | SearchForStudies(server.url, {"StudyDate": "20200101-20201231"}, split_by="StudyDate")
        assert_that(rows | beam.Map(Resource.of), equal_to(wanted))
    assert all("StudyDate=" in record.query for record in server.records)


def test_numbers_that_prove_everything_spare_the_search_for_the_undated(serve, tmp_path, few_rows):
    paths = make_study(tmp_path / "all", studies=6, size=100)
    for number, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        dataset.StudyDate = f"2020010{1 + number // 10}"
        dataset.save_as(path)
    server = serve(tmp_path / "all", behaviour=replace(behaviour_of("generic"), total_header=True))
    with pipeline() as p:
        rows = p | SearchForStudies(server.url, split_by="StudyDate")
        assert_that(rows | beam.combiners.Count.Globally(), equal_to([6]))
    assert sum("StudyDate=" not in record.query for record in server.records) == 1


def test_small_and_narrow_searches_are_not_split(serve, dated, references):
    server = serve(dated, behaviour=replace(behaviour_of("generic"), total_header=True))
    with pipeline() as p:
        rows = p | SearchForStudies(server.url, split_by="StudyDate")
        assert_that(rows | beam.combiners.Count.Globally(), equal_to([len(DATES)]), label="small")
        inside = p | beam.Create([references[0].series]) | SearchForInstances(server.url, split_by="StudyDate")
        assert_that(inside | "I" >> beam.combiners.Count.Globally(), equal_to([2]), label="inside")
        day = p | "day" >> SearchForStudies(server.url, {"StudyDate": "20200101"}, split_by="StudyDate")
        assert_that(day | "D" >> beam.combiners.Count.Globally(), equal_to([2]), label="day")
    assert set(queries_of(server)) <= {query for query in queries_of(server) if "StudyDate=20200101" in query}


def test_an_archive_with_a_cap_on_rows_is_read_in_parts(serve, dated, date_of):
    """The profile says that no search gives more than 6 rows: split, all studies with a date are found."""
    server = serve(dated, behaviour=replace(behaviour_of("generic"), total_header=True, max_rows=6))
    endpoint = Endpoint(server.url, profile=replace(PROFILES["generic"], max_rows=6))
    wanted = [study for study, text in date_of.items() if text not in UNDATED]
    assert len(wanted) == 7
    with pipeline() as p:
        found = p | SearchForStudies(endpoint, {"StudyDate": "18000101-"}, split_by="StudyDate", failures="collect")
        assert_that(found.rows | beam.Map(Resource.of), equal_to(wanted), label="rows")
        assert_that(found.failures, is_empty(), label="failures")


def test_an_archive_that_ignores_dates_is_noticed(serve, dated, few_rows):
    behaviour = replace(behaviour_of("generic"), total_header=True)
    server = serve(dated, behaviour=behaviour, faults=[fault("ignore_filters", times=None)])
    with pipeline() as p:
        endpoint = Endpoint(server.url, retry=RetryPolicy.none())
        found = p | SearchForStudies(endpoint, split_by="StudyDate", failures="collect")
        assert_that(found.rows, is_empty(), label="rows")
        told = found.failures | beam.Map(lambda item: (item.transform, "StudyDate" in item.message))
        assert_that(told, equal_to([("SearchForStudies", True)]), label="failures")


def test_impossible_splits_are_refused():
    with pytest.raises(ValueError, match="split_by must be"):
        SearchForStudies("/x", split_by="PatientID")
    with pytest.raises(ValueError, match="either limit or split_by"):
        SearchForStudies("/x", split_by="StudyDate", limit=3)


@given(st.lists(days, max_size=60), st.integers(1, 10), days)
def test_spans_hold_every_day_once_and_are_as_small_as_wanted(dates, maximum, today):
    def count(span):
        return sum(span.first <= day <= span.last for day in dates)

    if len(dates) < 2:
        dates = [date(1900, 1, 1), date(2000, 1, 1), *dates]
    try:
        spans = list(split_by_count(ALL_DATES, len(dates), count, maximum, min(today, date(9998, 1, 1))))
    except FilterIgnoredError:
        pytest.fail("an archive that counts right was accused")
    assert sum(number for _, number in spans) == len(dates)
    for (one, _), (two, _) in pairwise(spans):
        assert one.last < two.first
    for span, number in spans:
        assert number == count(span)
        assert number <= maximum or span.first == span.last


@given(days, days, st.lists(days, max_size=5))
def test_parts_are_the_whole(one, other, cuts):
    span = Span(min(one, other), max(one, other))
    parts = list(span.parts(*sorted(cuts)))
    assert parts[0].first == span.first
    assert parts[-1].last == span.last
    for before, after in pairwise(parts):
        assert before.last + timedelta(days=1) == after.first
    assert span_of(f"{span.first:%Y%m%d}-{span.last:%Y%m%d}") == span


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("20200101", None),
        ("-", None),
        ("x-y", None),
        ("20200102-20200101", None),
        ("20200101-", Span(date(2020, 1, 1), None)),
        ("-20200101", Span(None, date(2020, 1, 1))),
    ],
)
def test_filters_that_are_ranges(text, span):
    assert span_of(text) == span
    if span is not None:
        assert span.text == text


@pytest.mark.parametrize(
    ("text", "result"), [("20200101", True), ("2020.01.01", True), ("17991231", False), ("", False)]
)
def test_rows_with_a_date(text, result):
    assert is_dated({"00080020": {"vr": "DA", "Value": [text]}}) is result
    assert not is_dated({})
