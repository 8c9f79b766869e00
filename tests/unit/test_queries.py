"""From arguments to queries: what is sent has been understood, and belongs to a level."""

from __future__ import annotations

import pytest

from dicomweb_io.elements import SearchQuery
from dicomweb_io.queries import apportion, check_limits, level_of, make_query


def test_a_query_keeps_the_order_it_was_given():
    query = make_query(
        "instance",
        "1.2",
        "1.3",
        fuzzymatching=False,
        fields=["PatientID", "00081030", "all"],
        search_filters={"Modality": ["CT", "MR"], "00100020": 5, "StudyDate": None, "InstanceNumber": 1.5},
        additional_params={"b": True, "a": ("x", "y")},
    )
    assert query == SearchQuery(
        "instance",
        "1.2",
        "1.3",
        (("Modality", "CT\\MR"), ("00100020", "5"), ("StudyDate", ""), ("InstanceNumber", "1.5")),
        ("PatientID", "00081030", "all"),
        False,
        (("b", "true"), ("a", "x"), ("a", "y")),
    )


def test_pairs_allow_a_key_twice():
    query = make_query("study", search_filters=[("PatientID", "1"), ("PatientID", "2")])
    assert query.search_filters == (("PatientID", "1"), ("PatientID", "2"))


def test_sets_become_sorted_lists():
    assert make_query("study", search_filters={"PatientID": {"b", "a"}}).search_filters == (("PatientID", "a\\b"),)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"level": "frame"}, ValueError, "level"),
        ({"study_instance_uid": "1.2"}, ValueError, "within a study"),
        ({"level": "series", "series_instance_uid": "1.3"}, ValueError, "study_instance_uid"),
        ({"level": "instance", "study_instance_uid": "x/y"}, ValueError, "study_instance_uid"),
        ({"search_filters": {"PatientIDD": "1"}}, ValueError, "did you mean 'PatientID'"),
        ({"search_filters": {"": "1"}}, ValueError, "empty"),
        ({"search_filters": {"PatientID": []}}, ValueError, "match everything"),
        ({"search_filters": {"PatientID": {"a": 1}}}, TypeError, "PatientID"),
        ({"search_filters": {"PatientID": [["a"]]}}, TypeError, "PatientID"),
        ({"fields": ["Nonsense"]}, ValueError, "Nonsense"),
        ({"additional_params": {"offset": 1}}, ValueError, "offset"),
        ({"additional_params": {"Limit": 1}}, ValueError, "Limit"),
        ({"additional_params": {5: 1}}, TypeError, "additional_params"),
        ({"additional_params": {"a": {}}}, TypeError, "a must be"),
    ],
)
def test_what_is_no_query(arguments, error, words):
    with pytest.raises(error, match=words):
        make_query(**{"level": "study", **arguments})


def test_limits():
    check_limits(None, None)
    check_limits(0, 10)
    for limit, offset, error in [
        ("1", None, TypeError),
        (True, None, TypeError),
        (-1, None, ValueError),
        (None, -1, ValueError),
    ]:
        with pytest.raises(error):
            check_limits(limit, offset)


@pytest.mark.parametrize(
    ("attribute", "level"),
    [
        ("PatientName", "study"),
        ("StudyInstanceUID", "study"),
        ("ModalitiesInStudy", "study"),
        ("00100021", "study"),
        ("Modality", "series"),
        ("SeriesInstanceUID", "series"),
        ("RequestAttributesSequence.ScheduledProcedureStepID", "series"),
        ("SOPInstanceUID", "instance"),
        ("SOPClassUID", "instance"),
        ("Rows", "instance"),
        ("00091001", "instance"),
    ],
)
def test_where_attributes_belong(attribute, level):
    assert level_of(attribute) == level


def test_filters_are_apportioned_in_order():
    query = make_query(
        "instance",
        search_filters={"Modality": "CT", "PatientID": "1", "Rows": "5", "StudyDate": "", "SOPClassUID": "1.2"},
    )
    assert apportion(query) == {
        "study": (("PatientID", "1"), ("StudyDate", "")),
        "series": (("Modality", "CT"),),
        "instance": (("Rows", "5"), ("SOPClassUID", "1.2")),
    }
