"""Searches that a server lacks, walked level by level with each filter at its level."""

from __future__ import annotations

import json

import pytest

from dicomweb_io.elements import Resource
from dicomweb_io.errors import DICOMwebError, SearchIncompleteError
from dicomweb_io.profiles import ServerProfile
from dicomweb_io.queries import make_query

TREE = {
    "1.1": {"1.1.1": ["1.1.1.1", "1.1.1.2"], "1.1.2": ["1.1.2.1"]},
    "1.2": {"1.2.1": ["1.2.1.1"]},
    "1.3": {},
}
MODALITY = {"1.1.1": "CT", "1.1.2": "MR", "1.2.1": "CT"}
PATIENT = {"1.1": "A", "1.2": "B", "1.3": "C"}


@pytest.fixture
def nested(web):
    """A server with /studies, /studies/S/series and /studies/S/series/E/instances only."""

    def answer(request):
        parameters = request.parameters
        match request.path.split("/")[2:]:
            case ["studies"]:
                rows = [
                    web.row(study, t00100020=PATIENT[study])
                    for study in TREE
                    if parameters.get("PatientID", PATIENT[study]) == PATIENT[study]
                    and study in parameters.get("StudyInstanceUID", study).split(",")
                ]
            case ["studies", study, "series"] if study in TREE:
                rows = [
                    web.row(study, series, t00080060=MODALITY[series])
                    for series in TREE[study]
                    if parameters.get("Modality", MODALITY[series]) == MODALITY[series]
                ]
            case ["studies", study, "series", series, "instances"]:
                wanted = parameters.get("SOPInstanceUID")
                rows = [web.row(study, series, sop) for sop in TREE[study][series] if wanted in (None, sop)]
            case _:
                return web.Reply(404, b"no such resource", "text/plain")
        return web.page(request, rows)

    return answer


def sops(rows):
    return [Resource.of(row).sop_instance_uid for row in rows]


ALL = ["1.1.1.1", "1.1.1.2", "1.1.2.1", "1.2.1.1"]
KNOWN = ServerProfile("nested", flat_series=False, flat_instances=False, study_instances=False)


@pytest.mark.parametrize("profile", ["generic", KNOWN])
def test_flat_searches_are_walked(web, nested, profile):
    _, client = web.connect(nested, profile=profile)
    assert sops(client.iter_search_for_instances()) == ALL
    assert sops(client.search_for_instances()) == ALL
    assert [Resource.of(row).series_instance_uid for row in client.iter_search_for_series()] == list(MODALITY)
    assert sops(client.iter_search_for_instances("1.1")) == ALL[:3]
    assert sops(client.iter_search_for_instances("1.1", "1.1.2")) == ["1.1.2.1"]


def test_a_known_lack_causes_no_request_that_fails(web, nested):
    server, client = web.connect(nested, profile=KNOWN)
    list(client.iter_search_for_instances())
    assert "/dicomweb/instances" not in {request.path for request in server.requests}


def test_a_lack_is_found_out_once(web, nested):
    server, client = web.connect(nested)
    for _ in range(3):
        assert sops(client.iter_search_for_instances()) == ALL
    assert [request.path for request in server.requests].count("/dicomweb/instances") == 1


def test_filters_are_asked_at_their_level(web, nested):
    server, client = web.connect(nested, profile=KNOWN)
    filters = {"PatientID": "A", "Modality": "CT", "SOPInstanceUID": "1.1.1.2"}
    assert sops(client.iter_search_for_instances(search_filters=filters)) == ["1.1.1.2"]
    by_path = {request.path: request.parameters for request in server.requests}
    assert by_path["/dicomweb/studies"]["PatientID"] == "A"
    assert "Modality" not in by_path["/dicomweb/studies"]
    assert by_path["/dicomweb/studies/1.1/series"]["Modality"] == "CT"
    assert by_path["/dicomweb/studies/1.1/series/1.1.1/instances"]["SOPInstanceUID"] == "1.1.1.2"
    assert "/dicomweb/studies/1.1/series/1.1.2/instances" not in by_path


def test_study_filters_hold_within_a_study_too(web, nested):
    _, client = web.connect(nested, profile=KNOWN)
    assert sops(client.iter_search_for_instances("1.1", search_filters={"PatientID": "B"})) == []
    assert sops(client.iter_search_for_instances("1.1", search_filters={"PatientID": "A"})) == ALL[:3]


def test_rows_carry_the_attributes_of_their_parents(web, nested):
    _, client = web.connect(nested, profile=KNOWN)
    row = next(client.iter_search_for_instances())
    assert row["00100020"]["Value"] == ["A"]
    assert row["00080060"]["Value"] == ["CT"]
    assert list(row) == sorted(row)


@pytest.mark.parametrize(("limit", "offset"), [(2, 0), (2, 1), (3, 3), (10, 0), (1, 9)])
def test_limit_and_offset_count_walked_rows(web, nested, limit, offset):
    _, client = web.connect(nested, profile=KNOWN)
    expected = ALL[offset : offset + limit]
    assert sops(client.iter_search_for_instances(limit=limit, offset=offset)) == expected
    assert sops(client.search_for_instances(limit=limit, offset=offset)) == expected


def test_a_walked_page_knows_whether_more_follows(web, nested):
    _, client = web.connect(nested, profile=KNOWN)
    query = make_query("instance")
    assert client.search_page(query, limit=3).more is True
    assert client.search_page(query, limit=4).more is False
    assert client.search_page(query, offset=2, limit=2).more is False


@pytest.mark.parametrize("tag", ["0020000D", "0020000E"])
def test_a_row_above_that_names_nothing_costs_nothing_else(web, nested, tag):
    def answer(request):
        reply = nested(request)
        if reply.status != 200 or request.path.endswith("/instances"):
            return reply
        # The first row of studies, or of the series of each study.
        first, *others = json.loads(reply.body) or [None]
        others = [{**first, tag: {"vr": "UI"}}, *others] if first and tag in first else [first, *others]
        return web.json([row for row in others if row])

    _, client = web.connect(answer, profile=KNOWN)
    for search in (client.search_for_instances, lambda: client.search_for_instances(get_remaining=True)):
        with pytest.raises(SearchIncompleteError, match="name no study or series") as caught:
            search()
        assert sops(caught.value.rows) == (["1.2.1.1"] if tag == "0020000D" else ["1.1.2.1"])


def test_a_missing_study_is_not_a_missing_resource(web):
    _, client = web.connect(lambda request: web.Reply(404, b"unknown study", "text/plain"))
    with pytest.raises(DICOMwebError) as caught:
        client.search_for_instances("9.9")
    assert caught.value.status == 404


def test_an_error_on_the_walk_is_an_error(web, nested):
    def answer(request):
        return web.Reply(403) if request.path.endswith("/studies/1.2/series") else nested(request)

    _, client = web.connect(answer, profile=KNOWN)
    rows = client.iter_search_for_instances()
    assert sops(next(rows) for _ in range(3)) == ALL[:3]
    with pytest.raises(DICOMwebError):
        next(rows)


def test_what_a_profile_says_of_an_address_does_not_stop_a_walk(web, nested):
    _, client = web.connect(nested, profile="orthanc")
    assert sops(client.iter_search_for_instances()) == ALL
    assert sops(client.search_for_instances("1.1")) == ALL[:3]
