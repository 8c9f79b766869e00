"""What all transforms share: panes, what failures say of elements, and users' functions."""

from __future__ import annotations

import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam
import pytest
from apache_beam.metrics.execution import MetricsContainer
from apache_beam.runners.worker import statesampler
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, IntervalWindow, SlidingWindows, TimestampedValue
from apache_beam.utils.counters import CounterFactory
from apache_beam.utils.windowed_value import PANE_INFO_UNKNOWN, PaneInfo, PaneInfoTiming, WindowedValue

from dicomweb_io import pool
from dicomweb_io.dicom.columns import Column
from dicomweb_io.elements import Frame, Instance, Resource, SearchQuery
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import UserFunctionError
from dicomweb_io.failures import describe_element
from dicomweb_io.http import retry
from dicomweb_io.transforms import (
    DeleteResources,
    RetrieveBulkdata,
    RetrieveFrames,
    RetrieveInstances,
    RetrieveMetadata,
    RetrieveRendered,
    SearchForInstances,
    SearchForSeries,
    SearchForStudies,
    metrics,
)
from dicomweb_io.transforms._core import call_user, grouped_places
from dicomweb_io.transforms.retrieve import _FetchMetadata
from tests.answering import Reply

UID = "1.2.826.0.1.3680043.8.498.1"
SECOND = PaneInfo(False, True, PaneInfoTiming.LATE, 1, 1)


def test_places_with_one_timestamp_are_one_group_unless_they_have_a_pane():
    one, two = IntervalWindow(0, 10), IntervalWindow(5, 15)
    none = PANE_INFO_UNKNOWN
    places = [(1, one, none), (1, two, none), (2, two, none), (1, one, SECOND), (1, two, SECOND), (1, one, none)]
    assert grouped_places(places) == [
        (1, (one, two), none),
        (2, (two,), none),
        (1, (one,), SECOND),
        (1, (two,), SECOND),
        (1, (one,), none),
    ]
    assert grouped_places(places[3:4]) == [(1, (one,), SECOND)]


class LatePane(beam.DoFn):
    """Gives each element the pane of a second, late firing."""

    def process(self, element, timestamp=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam):
        yield WindowedValue(element, timestamp, (window,), SECOND)


SEEN = set()


def look(element, label, time=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam, pane=beam.DoFn.PaneInfoParam):
    SEEN.add((label, pane == SECOND, int(time), int(window.start)))


def png(archive, **options):
    return RetrieveRendered(archive, media_types=["image/png"], **options)


def split(archive, **options):
    return SearchForStudies(archive, split_by="StudyDate", **options)


@pytest.mark.parametrize("windows", [FixedWindows(60), SlidingWindows(30, 10)], ids=["fixed", "sliding"])
@pytest.mark.parametrize(
    "make",
    [
        RetrieveInstances,
        RetrieveMetadata,
        RetrieveFrames,
        RetrieveBulkdata,
        png,
        SearchForStudies,
        SearchForSeries,
        SearchForInstances,
        split,
    ],
)
def test_results_and_failures_are_in_the_pane_and_windows_of_their_element(make, windows, archive):
    study = Instance.from_path(next(archive.rglob("*.dcm"))).reference.study_instance_uid
    SEEN.clear()
    with beam.Pipeline(runner="FnApiRunner") as p:
        given = (
            p
            | beam.Create([f"studies/{study}", "studies/1.2.3.9.9", "no reference"])
            | beam.Map(lambda item: TimestampedValue(item, 65))
            | beam.WindowInto(windows)
            | beam.ParDo(LatePane())
        )
        rows, failures = given | make(archive, failures="collect")
        _ = rows | "Look at rows" >> beam.Map(look, "rows")
        _ = failures | "Look at failures" >> beam.Map(look, "failures")
    starts = [60] if isinstance(windows, FixedWindows) else [40, 50, 60]
    expected = {(label, True, 65, start) for label in ("rows", "failures") for start in starts}
    assert expected == SEEN


@dataclass(frozen=True)
class Visit:
    study: str
    name: str


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        ("Doe^Jane", "str of 8 characters"),
        (UID, f"str of {len(UID)} characters: {UID}"),
        (f"https://me:secret@pacs/x?study={UID}&key=s3cret", f"str of {42 + len(UID)} characters: {UID}"),
        (b"\0" * 5, "bytes of 5 bytes"),
        (None, "NoneType"),
        (7, "int"),
        ((1, "Doe^Jane"), "tuple of 2"),
        ({}, "dict of 0"),
        ({"StudyInstanceUID": UID, "PatientName": "Doe^Jane"}, f"dict with StudyInstanceUID, PatientName: {UID}"),
        ({"0020000D": {"vr": "UI", "Value": [UID]}, "Doe^Jane": 1}, f"dict with 0020000D, …: {UID}"),
        (Visit(UID, "Doe^Jane"), f"Visit with study, name: {UID}"),
        (beam.Row(uid=UID, name="Doe^Jane"), f"Row with uid, name: {UID}"),
        (Resource("1.2"), "studies/1.2"),
        (
            Frame(Resource("1.2", "1.3", "1.4", (1,)), None, "image/png", b"x"),
            "Frame with reference, transfer_syntax_uid, media_type, content, path: "
            "studies/1.2/series/1.3/instances/1.4/frames/1",
        ),
        (SearchQuery("study", search_filters=(("PatientName", "Doe^Jane"),)), "search for studies by PatientName"),
    ],
)
def test_an_element_is_described_without_its_values(element, expected):
    assert describe_element(element) == expected


def test_a_description_is_short_and_keeps_the_uids():
    text = describe_element({f"a_rather_long_name_of_a_column_{number}": 1 for number in range(50)} | {"uid": UID})
    assert len(text) == 200
    assert text.endswith(f"…: {UID}")
    assert len(describe_element({str(number): f"{UID}.{number}" for number in range(50)})) == 200


def no_number(row):
    return [{}[row["00080018"]["Value"][0]]]


class Chooser:
    def __call__(self, row):
        return no_number(row)

    def choose(self, row):
        yield no_number(row)


FUNCTIONS = [
    (no_number, "no_number"),
    (lambda row: no_number(row), "<lambda>"),
    (partial(no_number), "no_number"),
    (Chooser(), "Chooser"),
    (Chooser().choose, "Chooser.choose"),
]


@pytest.mark.parametrize(("function", "name"), FUNCTIONS, ids=[name for _, name in FUNCTIONS])
def test_what_a_users_function_raises_is_his_failure_with_the_name_of_the_function(function, name, archive):
    row = {"00080018": {"Value": ["1.2.3"]}}
    with pytest.raises(UserFunctionError) as caught:
        call_user(function, row, then=list)
    assert str(caught.value).startswith(f"{name} raised KeyError (test_core.py, line ")
    # In all that a runner prints.
    assert "1.2.3" not in "".join(traceback.format_exception(caught.value))
    with beam.Pipeline(runner="FnApiRunner") as p:
        result = p | SearchForSeries(archive) | RetrieveFrames(archive, function, failures="collect")
        told = result.failures | beam.Map(lambda one: (one.message.split(" (")[0], one.reference.level))
        assert_that(told | beam.Distinct(), equal_to([(f"{name} raised KeyError", "instance")]))
        assert_that(result.frames, equal_to([]), label="frames")


def test_the_failure_of_what_is_no_reference_says_what_the_element_is(archive):
    row = {"PatientName": "Doe^Jane", "SeriesInstanceUID": UID}
    with beam.Pipeline(runner="FnApiRunner") as p:
        result = p | beam.Create([row]) | RetrieveInstances(archive, failures="collect")
        told = result.failures | beam.Map(lambda one: (one.element, "Doe" in one.message))
        assert_that(told, equal_to([(f"dict with PatientName, SeriesInstanceUID: {UID}", False)]))
    p = beam.Pipeline(runner="FnApiRunner")
    _ = p | beam.Create([row]) | RetrieveInstances(archive)
    with pytest.raises(Exception, match="RetrieveInstances failed for dict with PatientName"):
        p.run()
    with pytest.raises(Exception, match="RetrieveInstances failed for dict with PatientName"):
        p.run()


# Metrics --------------------------------------------------------------------------------------------------------------


@contextmanager
def counting():
    """Beam's counters of what this thread does meanwhile, as a runner reads them for its reports of progress."""
    container, sampler = MetricsContainer("step"), statesampler.StateSampler("", CounterFactory())
    statesampler.set_current_tracker(sampler)
    sampler.start()
    try:
        with sampler.scoped_state("step", "process", metrics_container=container):
            yield lambda name: sum(
                number for key, number in container.get_cumulative().counters.items() if key.metric.name == name
            )
    finally:
        sampler.stop()
        statesampler.set_current_tracker(None)


def until(reached):
    """Whether something comes true; nothing depends on how long that takes."""
    ends = time.monotonic() + 30
    while not reached() and time.monotonic() < ends:
        time.sleep(0.01)
    return bool(reached())


def _metadata(row):
    return Reply.json([{tag: {"vr": "UI", "Value": [uid]} for tag, uid in row.items()}])


def test_traffic_reaches_the_counters_while_a_bundle_waits_and_while_it_works(answering, monkeypatch):
    """The second answer comes only when the first request was counted, on the thread that waits for the answers."""
    monkeypatch.setattr(pool, "TICK", 0.01)
    monkeypatch.setattr(metrics, "TICK", 0.0)
    seen = []

    def handler(request):
        uids = request.path.split("/")
        if uids[-2] == "1.4.2":
            seen.append(until(lambda: counters("requests") and metrics.TALLY.snapshot().get("requests", 0) > before))
        return _metadata(dict(zip(("0020000D", "0020000E", "00080018"), uids[2:-1:2], strict=True)))

    before = metrics.TALLY.snapshot().get("requests", 0)
    dofn = _FetchMetadata(Endpoint(answering(handler).url), "RetrieveMetadata", None, collect=False)
    dofn.setup()
    with counting() as counters:
        dofn.start_bundle()
        for number in (1, 2):
            list(dofn.process(Resource("1.2", "1.3", f"1.4.{number}"), 0, None, PANE_INFO_UNKNOWN))
        assert len(list(dofn.finish_bundle())) >= 1
        assert seen == [True]
        assert counters("requests") == 2
    dofn.teardown()


def test_throttled_time_reaches_the_counters_while_a_bundle_waits(answering, monkeypatch):
    monkeypatch.setattr(pool, "TICK", 0.01)
    monkeypatch.setattr(metrics, "TICK", 0.0)
    monkeypatch.setattr(retry, "_REPORTED_AFTER", 0.01)
    asked = []

    def handler(request):
        asked.append(request.path)
        return Reply(503, headers={"Retry-After": "2"})

    dofn = _FetchMetadata(Endpoint(answering(handler).url), "RetrieveMetadata", None, collect=True)
    dofn.setup()
    with counting() as counters:
        dofn.start_bundle()
        list(dofn.process(Resource("1.2", "1.3", "1.4"), 0, None, PANE_INFO_UNKNOWN))
        lane, count = dofn._lane, dofn._traffic.count

        def counted():
            count()
            if counters("throttling-msecs") > 0 and counters("throttled_msecs") > 0:
                raise Enough

        monkeypatch.setattr(dofn._traffic, "count", counted)
        with pytest.raises(Enough):
            list(dofn.finish_bundle())
        assert len(asked) == 1, "the wait was over"
        assert lane.closed
    dofn.teardown()


class Enough(Exception):
    pass


def test_the_rows_of_a_search_are_counted_while_they_come(archive, monkeypatch):
    """A range of an archive without pages to read ahead, and one with them."""
    monkeypatch.setattr(metrics, "TICK", 0.0)
    calls = []
    monkeypatch.setattr(metrics.Traffic, "count", lambda self: calls.append(1))
    with beam.Pipeline(runner="FnApiRunner") as p:
        _ = p | SearchForInstances(archive, page_size=5)
    assert len(calls) >= 60


# References from anything ---------------------------------------------------------------------------------------------


class Line(NamedTuple):
    StudyInstanceUID: str
    PatientID: str


def studies_of(archive):
    return sorted({Instance.from_path(path).reference.study_instance_uid for path in archive.rglob("*.dcm")})


def row_of(uid):
    return {"0020000D": {"vr": "UI", "Value": [uid]}}


@pytest.mark.parametrize(
    "spelled",
    [
        lambda uid: {"StudyInstanceUID": uid},
        lambda uid: {"study_instance_uid": uid, "series_instance_uid": None},
        lambda uid: ("study", uid),
        lambda uid: Line(uid, "1"),
        lambda uid: beam.Row(StudyInstanceUID=uid, PatientID="1"),
        lambda uid: beam.Row(study_instance_uid=uid, frames=[]),
        lambda uid: Resource(uid),
        row_of,
    ],
)
@pytest.mark.parametrize(("make", "number"), [(SearchForSeries, 2), (RetrieveMetadata, 20), (SearchForStudies, 1)])
def test_whatever_names_a_study_is_taken_and_asks_the_same(spelled, make, number, serve, archive):
    server, uid = serve(archive), studies_of(archive)[0]
    with beam.Pipeline(runner="FnApiRunner") as p:
        found = p | beam.Create([spelled(uid)]) | make(server.url) | beam.combiners.Count.Globally()
        assert_that(found, equal_to([number]))
    path = f"/studies/{uid}/" if make is not SearchForStudies else "/studies"
    assert all(path in record.path for record in server.records)


def test_uids_among_filters_place_the_search_in_their_study(serve, archive):
    server, uid = serve(archive), studies_of(archive)[0]
    with beam.Pipeline(runner="FnApiRunner") as p:
        filters = [{"StudyInstanceUID": uid, "Modality": "CT"}, {"StudyInstanceUID": f"{uid}.*", "Modality": "CT"}]
        result = p | beam.Create(filters) | SearchForSeries(server.url, failures="collect")
        assert_that(result.rows | beam.combiners.Count.Globally(), equal_to([2]))
    asked = {(record.path.rpartition("/dicom-web")[2], "StudyInstanceUID" in record.query) for record in server.records}
    assert (f"/studies/{uid}/series", False) in asked


def test_columns_of_a_search_name_what_the_next_step_takes(archive):
    with beam.Pipeline(runner="FnApiRunner") as p:
        studies = p | SearchForStudies(archive, columns=["StudyInstanceUID", "PatientID", "StudyDate"])
        series = studies | SearchForSeries(archive, columns=["StudyInstanceUID", "SeriesInstanceUID", "Modality"])
        frames = series | RetrieveFrames(archive) | beam.combiners.Count.Globally()
        assert_that(frames, equal_to([60]))


@pytest.mark.parametrize(
    ("search", "columns", "missing"),
    [
        (SearchForStudies, ["PatientID"], "StudyInstanceUID"),
        (SearchForSeries, ["StudyInstanceUID", "Modality"], "SeriesInstanceUID"),
        (SearchForInstances, ["Modality"], "StudyInstanceUID, SeriesInstanceUID, SOPInstanceUID"),
    ],
)
@pytest.mark.parametrize("make", [SearchForInstances, RetrieveInstances, DeleteResources, RetrieveBulkdata])
def test_columns_that_do_not_name_the_rows_are_an_error_at_construction(search, columns, missing, make, archive):
    rows = beam.Pipeline() | search(archive, columns=columns, exact=True)
    with pytest.raises(ValueError, match=f"{make.__name__} takes references, and the rows lack the column {missing}:"):
        _ = rows | "Next" >> make(archive)


def test_a_collection_of_something_else_is_still_refused(archive):
    for wrong in ([1], [b"x"], [Column("a", ("00100010",), str, False)]):
        with pytest.raises(Exception, match=r"hint violation|takes references"):
            _ = beam.Pipeline() | beam.Create(wrong) | RetrieveInstances(archive)


def test_a_row_that_lacks_its_own_uid_is_a_failure_and_never_its_parent(serve, archive):
    server, uid = serve(archive), studies_of(archive)[0]
    rows = [
        {"StudyInstanceUID": uid, "SeriesInstanceUID": None},
        {"StudyInstanceUID": uid, "SeriesInstanceUID": ""},
        beam.Row(StudyInstanceUID=uid, SeriesInstanceUID=None),
        row_of(uid) | {"0020000E": {"vr": "UI"}},
    ]
    with beam.Pipeline(runner="FnApiRunner") as p:
        given = p | beam.Create(rows).with_output_types(Any)
        for make in (RetrieveInstances, SearchForInstances, DeleteResources):
            options = {"allow_unproven_rows": True} if make is DeleteResources else {}
            _, failures = given | make(server.url, failures="collect", **options)
            lost = failures | f"Lost {make.__name__}" >> beam.Map(
                lambda one: "lacks its SeriesInstanceUID" in one.message
            )
            assert_that(lost, equal_to([True] * 4), label=make.__name__)
    assert len(server.records) == 0
