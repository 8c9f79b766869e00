"""Deleting what a search found: only what proves that it matches, and only when the search has ended."""

from __future__ import annotations

from typing import Any, NamedTuple

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to, is_empty

from dicomweb_io.elements import Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.transforms import DeleteResources, SearchForSeries, SearchForStudies, WatchForStudies
from tests.answering import AnsweringServer, Reply


def element(vr, *values):
    return {"vr": vr, "Value": list(values)}


def study(number, patient=None, **others):
    row = {"0020000D": element("UI", f"1.2.{number}"), **{tag: element(*values) for tag, values in others.items()}}
    return {**row, "00100020": element("LO", patient)} if patient else row


class Archive:
    """An archive whose searches ignore every filter; it deletes what it is told to."""

    def __init__(self, rows, answering):
        self.rows = rows
        self.server: AnsweringServer = answering(self.answer, path="/dicom")
        self.endpoint = Endpoint(self.server.url, retry=RetryPolicy.none())

    def answer(self, request):
        if request.method == "DELETE":
            self.rows = [row for row in self.rows if row["0020000D"]["Value"][0] not in request.path]
            return Reply(204)
        start, limit = int(request.parameters.get("offset", 0)), int(request.parameters.get("limit", 1000))
        return Reply.json(self.rows[start : start + limit])

    @property
    def left(self):
        return [row["0020000D"]["Value"][0] for row in self.rows]


@pytest.fixture
def archive(answering):
    return lambda rows: Archive(rows, answering)


def delete(archive, filters, *, search=None, **options):
    with beam.Pipeline(runner="FnApiRunner") as p:
        found = p | SearchForStudies(archive.endpoint, filters, failures="collect", exact=True, **(search or {}))
        result = found.rows | DeleteResources(archive.endpoint, failures="collect", **options)
        assert_that(result.failures, is_empty(), label="all was deleted")
        messages = found.failures | beam.Map(lambda failure: failure.message)
        assert_that(messages | beam.combiners.Count.Globally(), equal_to([0 if len(archive.left) == 0 else 1]), "told")


FOUR = [study(number, f"PAT{number}") for number in range(1, 5)]


@pytest.mark.parametrize("further", [False, True], ids=["search_filters", "additional_params"])
def test_an_ignored_filter_deletes_nothing(archive, further):
    one = archive(FOUR)
    filters = {"PatientID": "PAT2"}
    delete(one, None if further else filters, search={"additional_params": filters} if further else None)
    assert len(one.left) == 4


@pytest.mark.parametrize(
    ("filters", "row"),
    [
        ({"PatientID": "PAT2"}, study(1)),
        ({"PatientID": "PAT2"}, study(1, "pat2")),
        ({"PatientID": "PAT2"}, study(1, **{"00101000": ("LO", "PAT2")})),
        ({"PatientName": "Muller"}, study(1, **{"00100010": ("PN", {"Alphabetic": "Müller"})})),
        ({"PatientName": "DOE^J"}, study(1, **{"00100010": ("PN", {"Alphabetic": "Doe^J"})})),
        ({"PatientName": "Doe"}, study(1, **{"00100010": ("PN", {"Alphabetic": "Doe^John"})})),
        ({"StudyDate": "20200101"}, study(1)),
        ({"ProcedureCodeSequence.CodeValue": "1"}, study(1, **{"00081032": ("SQ", {})})),
        ({"ModalitiesInStudy": "CT"}, study(1, **{"00080061": ("CS", "CT", "MR")})),
        ({"Modality": "CT"}, study(1, **{"00080061": ("CS", "CT", "MR")})),
        ({"SOPClassesInStudy": "1.2.3"}, study(1, **{"00080062": ("UI", "1.2.3", "1.2.4")})),
    ],
)
def test_a_row_that_does_not_prove_that_it_matches_is_not_deleted(archive, filters, row):
    one = archive([row])
    delete(one, filters)
    assert len(one.left) == 1


@pytest.mark.parametrize(
    ("filters", "row", "search"),
    [
        ({"PatientID": "PAT?"}, study(1, "PAT1 "), {}),
        ({"PatientID": "PAT1", "StudyDate": ""}, study(1, "PAT1"), {}),
        ({"PatientName": "Doe^J*"}, study(1, **{"00100010": ("PN", {"Alphabetic": "Doe^John^^"})}), {}),
        ({"StudyDate": "20200101-20200131"}, study(1, **{"00080020": ("DA", "20200115")}), {}),
        ({"NumberOfStudyRelatedInstances": "4"}, study(1, **{"00201208": ("IS", 4)}), {}),
        ({"ModalitiesInStudy": ["CT", "MR"]}, study(1, **{"00080061": ("CS", "CT", "MR")}), {}),
        (
            {"ModalitiesInStudy": "CT"},
            study(1, **{"00080061": ("CS", "CT", "MR")}),
            {"allow_several_modalities": True},
        ),
        (
            {"ProcedureCodeSequence.CodeValue": "1"},
            study(1, **{"00081032": ("SQ", {"00080100": element("SH", "1")})}),
            {},
        ),
    ],
)
def test_a_row_that_proves_that_it_matches_is_deleted(archive, filters, row, search):
    one = archive([row])
    with beam.Pipeline(runner="FnApiRunner") as p:
        found = p | SearchForStudies(one.endpoint, filters, exact=True, **search)
        assert_that(found | DeleteResources(one.endpoint), equal_to([Resource("1.2.1")]))
    assert one.left == []
    asked = next(request for request in one.server.requests if request.method == "GET")
    carried = "includefield=00201208" in asked.query
    assert carried == ("NumberOfStudyRelatedInstances" in filters)


def test_deletions_start_when_the_search_has_ended(archive):
    one = archive([study(number, "PAT1") for number in range(10)])
    with beam.Pipeline(runner="FnApiRunner") as p:
        found = p | SearchForStudies(one.endpoint, {"PatientID": "PAT1"}, exact=True, page_size=3)
        deleted = found | beam.Filter(lambda row: True) | DeleteResources(one.endpoint)
        assert_that(deleted | beam.combiners.Count.Globally(), equal_to([10]))
    assert one.left == []
    methods = [request.method for request in one.server.requests]
    assert methods == sorted(methods, reverse=True)


def test_a_search_that_is_not_exact_is_refused_before_anything_is_sent(archive):
    one = archive(FOUR)
    p = beam.Pipeline(runner="FnApiRunner")
    studies = p | SearchForStudies(one.endpoint, {"PatientID": "PAT2"})
    series = studies | SearchForSeries(one.endpoint, exact=True)
    references = studies | "Refer" >> beam.Map(Resource.of)
    watched = p | WatchForStudies(one.endpoint, search_filters={"PatientID": "PAT2"}, max_polls=1)
    beside = p | beam.Create(["x"]) | beam.FlatMap(lambda _, rows: rows, beam.pvalue.AsList(references))
    for number, found in enumerate((studies, series, references, watched, beside)):
        with pytest.raises(ValueError, match="exact=True"):
            found | f"Delete{number}" >> DeleteResources(one.endpoint)
    for arguments in ({"fuzzymatching": True}, {"additional_params": {"fuzzymatching": "true"}}):
        with pytest.raises(ValueError, match="fuzzymatching"):
            SearchForStudies(one.endpoint, exact=True, **arguments)
    for filters in ({"SeriesDescription": "scout"}, {"SeriesInstanceUID": "1.2.1.1"}, {"00091001": "x"}):
        with pytest.raises(ValueError, match="the rest not; search for"):
            SearchForStudies(one.endpoint, filters, exact=True)
    with pytest.raises(ValueError, match="StudyReceiveDateTime, which contradicts"):
        SearchForStudies(one.endpoint, exact=True, additional_params={"StudyReceiveDateTime": "20200101-"})
    with pytest.raises(ValueError, match="allow_several_modalities"):
        SearchForStudies(one.endpoint, allow_several_modalities=True)
    assert not one.server.requests


def test_rows_from_elsewhere_need_consent_and_references_do_not(archive):
    one = archive(FOUR)
    elements = [FOUR[0], Resource("1.2.2"), {"study_instance_uid": "1.2.3"}]
    with beam.Pipeline(runner="FnApiRunner") as p:
        result = p | beam.Create(elements) | DeleteResources(one.endpoint, failures="collect")
        assert_that(result.failures | beam.Map(lambda x: "no exact search" in x.message), equal_to([True]))
    assert one.left == ["1.2.1", "1.2.4"]
    with beam.Pipeline(runner="FnApiRunner") as p:
        deleted = p | beam.Create(FOUR[:1]) | DeleteResources(one.endpoint, allow_unproven_rows=True)
        assert_that(deleted, equal_to([Resource("1.2.1")]))
    assert one.left == ["1.2.4"]


class OfATable(NamedTuple):
    StudyInstanceUID: str
    PatientID: str


@pytest.mark.parametrize(
    "element",
    [
        {"StudyInstanceUID": "1.2.1", "Modality": "CT"},
        {"study_instance_uid": "1.2.1", "PatientID": "PAT1"},
        beam.Row(StudyInstanceUID="1.2.1", Modality="CT"),
        OfATable("1.2.1", "PAT1"),
        {"study_instance_uid": "1.2.1", "SeriesInstanceUID": "1.2.1.1"},
        {"StudyInstanceUID": "1.2.1", "0020000E": element("UI", "1.2.1.1")},
        {"StudyInstanceUID": "1.2.1", "SeriesInstanceUID": float("nan")},
        {"StudyInstanceUID": "*"},
        ("study", "1.2.?"),
        ("series", "1.2.1"),
        "studies/%2A",
    ],
    ids=str,
)
def test_what_may_mean_less_than_the_whole_is_not_deleted(archive, element):
    one = archive(FOUR)
    with beam.Pipeline(runner="FnApiRunner") as p:
        given = p | beam.Create([element]).with_output_types(Any)
        result = given | DeleteResources(one.endpoint, failures="collect")
        assert_that(result.failures | beam.combiners.Count.Globally(), equal_to([1]))
    assert not one.server.requests
