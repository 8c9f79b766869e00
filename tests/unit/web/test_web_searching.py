"""Searches against servers with the behaviour of the field: no row lost, no endless loop, nothing ignored."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext

import pytest

from dicomweb_io.elements import Resource, SearchQuery
from dicomweb_io.errors import (
    DICOMwebError,
    FilterError,
    FilterIgnoredError,
    MalformedResponseError,
    PagingError,
    ResponseIncompleteError,
    SearchIncompleteError,
    TooManyResultsError,
)
from dicomweb_io.listing import SeriesListing, expand_reference, resource_of_row
from dicomweb_io.profiles import PROFILES, ServerProfile
from dicomweb_io.queries import make_query
from tests.answering import in_turn

STUDIES = make_query("study")


def archive(web, count, *, maximum=None, default=None, ignores_offset=False, empty=204, total=False, refuse_above=None):
    """A server of `count` studies with a maximum, a default limit and habits of its own."""
    rows = studies(web, range(1, count + 1))

    def answer(request):
        parameters = request.parameters
        limit = int(parameters["limit"]) if "limit" in parameters else default
        if refuse_above is not None and limit is not None and limit > refuse_above:
            return web.Reply(400, b"limit too large", "text/plain")
        offset = 0 if ignores_offset else int(parameters.get("offset", 0))
        page = rows[offset:]
        page = page[: min(value for value in (limit, maximum, len(page)) if value is not None)]
        if not page and empty == 204:
            return web.Reply(204)
        return web.json(page, headers={"X-Total-Count": str(count)} if total else {})

    return answer


def studies(web, numbers):
    return [web.row(f"1.{number}") for number in numbers]


def found(client, **options):
    """The numbers of the studies that a search of all finds."""
    return [int(uid.removeprefix("1.")) for uid in uids(client.iter_search(STUDIES, **options))]


def asked_for(server, name, default=None):
    """The values of a parameter in all requests."""
    return [request.parameters.get(name, default) for request in server.requests]


def uids(rows):
    return [Resource.of(row).study_instance_uid for row in rows]


@pytest.mark.parametrize("count", [0, 1, 11, 12, 13, 30, 401])
@pytest.mark.parametrize("maximum", [None, 12, 100, 200])
@pytest.mark.parametrize("empty", [200, 204])
def test_all_rows_whatever_the_servers_maximum(web, count, maximum, empty):
    _, client = web.connect(archive(web, count, maximum=maximum, empty=empty))
    assert uids(client.iter_search_for_studies()) == [f"1.{n}" for n in range(1, count + 1)]
    assert len(client.search_for_studies(get_remaining=True)) == count


def test_an_explicit_limit_is_always_sent_and_the_offset_advances_by_rows_received(web):
    server, client = web.connect(archive(web, 30, maximum=12))
    assert len(found(client, page_size=20)) == 30
    assert (asked_for(server, "limit"), asked_for(server, "offset")) == (["20"] * 4, [None, "12", "24", "30"])


@pytest.mark.parametrize(("profile", "requests"), [("azure", 1), ("generic", 2)])
def test_a_short_page_is_the_end_only_where_the_maximum_is_known(web, profile, requests):
    server, client = web.connect(archive(web, 30), profile=PROFILES[profile])
    assert len(found(client)) == 30
    assert len(server.requests) == requests


def test_an_announced_total_ends_the_search_and_a_short_page_does_not(web):
    server, client = web.connect(archive(web, 30, maximum=7, total=True), profile=PROFILES["dicomcloud"])
    assert len(found(client)) == 30
    assert asked_for(server, "offset", "0") == ["0", "7", "14", "21", "28"]


def test_limits_stay_within_the_profiles_maximum(web):
    server, client = web.connect(archive(web, 450, refuse_above=200), profile="azure")
    assert len(found(client, page_size=5000)) == 450
    assert len(client.search_for_studies(limit=450)) == 200
    assert set(asked_for(server, "limit")) == {"200"}


def test_a_true_limit_and_an_offset(web):
    server, client = web.connect(archive(web, 50))
    assert found(client, limit=7, offset=10, page_size=3) == list(range(11, 18))
    assert asked_for(server, "limit") == ["3", "3", "1"]
    assert client.search_for_studies(limit=0) == found(client, limit=0) == []
    assert len(server.requests) == 3


def test_without_a_limit_one_request_leaves_it_to_the_server(web):
    server, client = web.connect(archive(web, 50, default=20))
    assert len(client.search_for_studies()) == 20
    assert server.requests[0].query == ""


@pytest.mark.parametrize("page_size", [0, -1, 2.5, True])
def test_a_bad_page_size_is_refused_before_anything_is_sent(web, page_size):
    server, client = web.connect(archive(web, 1))
    with pytest.raises(ValueError, match="page_size"):
        client.iter_search(STUDIES, page_size=page_size)
    assert server.requests == []


def test_an_ignored_offset_fails_instead_of_looping(web):
    server, client = web.connect(archive(web, 10, ignores_offset=True))
    seen = []
    with pytest.raises(PagingError, match="ignores offset"):
        seen.extend(client.iter_search(STUDIES, page_size=4))
    # The first page is asked for once more, in case the archive has moved.
    assert asked_for(server, "limit") == ["4", "4", "1"]
    assert uids(seen) == ["1.1", "1.2", "1.3", "1.4"]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("number", [1, 2, 10])
def test_a_server_that_ignores_offset_and_limit_gives_everything_at_once(web, number, ordered):
    def answer(request):
        rows = studies(web, range(number))
        return web.json(rows if ordered or request.number % 2 else rows[::-1])

    _, client = web.connect(answer)
    assert found(client, page_size=100) == list(range(number))


def test_rows_that_come_in_front_are_no_error(web):
    """Many servers list what is newest first: what arrives between two pages moves all rows."""
    numbers = list(range(10))

    def answer(request):
        page = web.page(request, studies(web, numbers))
        if "offset" not in request.parameters and request.parameters["limit"] != "1":
            numbers[:0] = [101, 102, 103]
        return page

    _, client = web.connect(answer)
    assert found(client, page_size=3) == list(range(10))


def test_pages_that_repeat_fail_instead_of_looping(web):
    pages = {"0": [1, 2], "2": [2, 1]}
    _, client = web.connect(lambda request: web.json(studies(web, pages[request.parameters.get("offset", "0")])))
    with pytest.raises(PagingError, match="repeats"):
        found(client, page_size=2)


def test_rows_repeated_across_pages_are_dropped(web):
    _, client = web.connect(lambda request: web.page(request, studies(web, [1, 2, 2, 3, 3, 4])))
    assert found(client, page_size=2) == [1, 2, 3, 4]


def test_short_and_empty_pages_of_servers_that_count_hidden_rows(web):
    """Older dcm4chee builds hide rejected studies after LIMIT: offsets count rows that are not returned."""
    hidden = {2, 3, 4, 5, 12}

    def answer(request):
        offset, limit = int(request.parameters.get("offset", 0)), int(request.parameters["limit"])
        rows = studies(web, [n for n in range(offset, min(offset + limit, 20)) if n not in hidden])
        return web.json(rows) if rows else web.Reply(204)

    _, client = web.connect(answer, profile=PROFILES["dcm4chee"])
    assert found(client, page_size=3) == [n for n in range(20) if n not in hidden]


def test_an_error_on_a_later_page_is_an_error(web):
    inner = archive(web, 10)

    def answer(request):
        return web.Reply(403, b"no", "text/plain") if "offset" in request.parameters else inner(request)

    _, client = web.connect(answer)
    rows = client.iter_search(STUDIES, page_size=5)
    assert len([next(rows) for _ in range(5)]) == 5
    with pytest.raises(DICOMwebError) as caught:
        next(rows)
    assert caught.value.status == 403
    assert caught.value.response.status_code == 403


def test_too_many_results(web):
    _, client = web.connect(lambda request: web.Reply(413, b"more than 1000 matches", "text/plain"))
    with pytest.raises(TooManyResultsError, match="narrow") as caught:
        client.search_for_studies()
    assert caught.value.status == 413


def test_caps_of_the_server_are_errors_not_ends(web):
    capped = ServerProfile("capped", page_sizes=(10,) * 3, max_limits=(10,) * 3, max_rows=25)
    server, client = web.connect(archive(web, 40), profile=capped)
    with pytest.raises(TooManyResultsError, match="25 rows"):
        found(client)
    assert asked_for(server, "limit") == ["10", "10", "5"]
    _, client = web.connect(archive(web, 22), profile=capped)
    assert len(found(client)) == 22
    offsets = ServerProfile("offsets", page_sizes=(10,) * 3, max_offset=15)
    _, client = web.connect(archive(web, 40), profile=offsets)
    with pytest.raises(TooManyResultsError, match="no offset above 15"):
        found(client)


def test_warnings_and_partial_answers_reach_log_page_and_callback(web, caplog):
    seen = []
    headers = {"Warning": '299 pacs "There are 5 additional results that can be requested"'}
    _, client = web.connect(
        lambda request: web.json([web.row("1.1")], status=206, headers=headers),
        callback=lambda response, *_, **__: seen.append(response.headers.get("Warning")),
    )
    page = client.search_page(STUDIES, limit=10)
    assert page.warnings == ("There are 5 additional results that can be requested",)
    assert page.more is True
    assert "additional results" in caplog.text
    assert "partial" in caplog.text
    assert "additional results" in seen[0]


def test_a_warning_about_fuzzy_matching_announces_no_rows(web):
    text = '299 pacs "The fuzzymatching parameter is not supported. Only literal matching has been performed."'
    _, client = web.connect(lambda request: web.json([web.row("1.1")], headers={"Warning": text}), profile="azure")
    assert client.search_page(STUDIES, limit=10).more is False


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Total-Count": "50"},
        {"Warning": '299 pacs "There are 30 additional results that can be requested"'},
        {"Warning": '299 pacs: "The number of results exceeded the maximum supported by the server."'},
        {"Link": '<https://pacs.example/studies?offset=40>; rel="next"'},
        {"Link": "<https://pacs.example/studies?offset=40>; Rel=next"},
    ],
)
@pytest.mark.parametrize("on_all", [True, False])
def test_an_empty_page_is_no_end_against_what_the_server_announces(web, headers, on_all):
    rows = [web.row(f"1.{number}") for number in range(50)]

    def answer(request):
        offset, limit = int(request.parameters.get("offset", 0)), int(request.parameters["limit"])
        page = [] if offset == 20 else rows[offset : offset + min(limit, 10)]
        return web.json(page, headers=headers if page or on_all else {})

    server, client = web.connect(answer)
    seen = []
    with pytest.raises(SearchIncompleteError, match="20 rows came") as caught:
        seen.extend(client.iter_search(STUDIES, page_size=10))
    assert seen == rows[:20]
    assert caught.value.url == client.base_url + "/studies"
    assert [request.parameters.get("offset", "0") for request in server.requests[2:4]] == ["20", "20"]
    with pytest.raises(SearchIncompleteError) as caught:
        client.search_for_studies(get_remaining=True, limit=40)
    assert caught.value.rows == rows[:20]
    assert len(list(client.iter_search(STUDIES, page_size=10, limit=20))) == 20


def test_a_single_page_is_judged_by_what_the_server_announces(web, caplog):
    """The loop of the user guide ends with an empty page."""
    rows = [web.row(f"1.{number}") for number in range(50)]

    def answer(request):
        offset = int(request.parameters.get("offset", 0))
        page = [] if offset == 20 else rows[offset : offset + 10]
        return web.json(page, headers={"X-Total-Count": "50"})

    _, client = web.connect(answer)
    assert len(client.search_for_studies(limit=10)) == 10
    assert not caplog.text
    assert len(client.search_for_studies()) == 10
    assert "more rows follow the 10 of this page" in caplog.text
    with pytest.raises(SearchIncompleteError, match="50 rows in all"):
        client.search_for_studies(offset=20)
    assert client.search_for_studies(offset=50) == []


def test_a_total_that_agrees_at_the_end_means_a_change(web):
    def answer(request):
        offset = int(request.parameters.get("offset", 0))
        headers = {"X-Total-Count": "9" if len(server.requests) < 3 else "2"}
        return web.json([web.row("1.1"), web.row("1.2")] if not offset else [], headers=headers)

    server, client = web.connect(answer)
    assert len(list(client.iter_search(STUDIES))) == 2
    for profile, complete in (("generic", False), ("dcm4chee", True)):
        _, client = web.connect(
            lambda request: web.json(
                [web.row("1.1")] if "offset" not in request.parameters else [], headers={"X-Total-Count": "9"}
            ),
            profile=profile,
        )
        with nullcontext() if complete else pytest.raises(SearchIncompleteError, match="9 rows in all"):
            assert len(list(client.iter_search(STUDIES))) == 1


def test_a_total_that_is_too_low_hides_no_row(web, caplog):
    inner = archive(web, 30, maximum=10)

    def answer(request):
        reply = inner(request)
        return reply if reply.status == 204 else web.Reply(200, reply.body, reply.content_type, {"X-Total-Count": "10"})

    _, client = web.connect(answer)
    with caplog.at_level(logging.WARNING, logger="dicomweb_io"):
        assert len(list(client.iter_search(STUDIES))) == 30
    assert "10 rows were announced and 30 arrived" in caplog.text


@pytest.mark.parametrize("other", [None, 5, "text, {", ["[", 1], True, {"error": "no"}])
def test_a_row_that_is_none_is_an_unreadable_row_and_no_lost_page(web, other):
    rows = [web.row("1.1"), other, web.row("1.2")]
    _, client = web.connect(lambda request: web.json(rows if "offset" not in request.parameters else []))
    seen = []
    with pytest.raises(SearchIncompleteError, match="1 of the rows cannot be read"):
        seen.extend(client.iter_search(STUDIES))
    assert uids(seen) == ["1.1", "1.2"]
    for get_remaining in (True, False):
        with pytest.raises(SearchIncompleteError) as caught:
            client.search_for_studies(get_remaining=get_remaining)
        assert uids(caught.value.rows) == ["1.1", "1.2"]
    page = client.search_page(STUDIES)
    assert (len(page.rows), page.unreadable) == (2, 1)


@pytest.mark.parametrize("uid", ["1.1\0", " 1.1 ", "1.1 \0"])
@pytest.mark.parametrize("listed", [True, False])
def test_tags_in_lower_case_and_padded_uids_are_read(web, uid, listed):
    below = [{"0040a043": {"vr": "SQ", "Value": [{"0008010d": {"vr": "UI", "Value": ["1.5"]}}]}}]
    row = {"0020000d": {"vr": "UI", "Value": [uid] if listed else uid}, "0040a730": {"vr": "SQ", "Value": below}}
    _, client = web.connect(lambda request: web.json([row] if "offset" not in request.parameters else []))
    (found,) = client.iter_search(STUDIES)
    assert found["0020000D"] == {"vr": "UI", "Value": ["1.1"]}
    assert "0008010D" in found["0040A730"]["Value"][0]["0040A043"]["Value"][0]
    assert Resource.of(row) == Resource("1.1")


def test_rows_that_name_no_instance_are_not_nothing(web):
    named = [
        {"0020000d": {"vr": "UI", "Value": ["1.2"]}, "0020000e": {"Value": ["1.3"]}, "00080018": {"Value": ["1.4"]}}
    ]
    nameless = [{"00080018": {"vr": "UI", "Value": ["1.5"]}}]
    for rows, words in ((named, None), (nameless, "do not name"), ([*named, None], "cannot be read")):
        _, client = web.connect(lambda request, rows=rows: web.json(rows if "offset" not in request.parameters else []))
        with nullcontext() if words is None else pytest.raises(SearchIncompleteError, match=words):
            assert client.missing_instances(Resource("1.2"), []) == [Resource("1.2", "1.3", "1.4")]


@pytest.mark.parametrize("in_memory", [1 << 20, 64])
@pytest.mark.parametrize(
    ("make", "outcome"),
    [
        (json.dumps, None),
        (lambda rows: json.dumps([*rows, None]), SearchIncompleteError),
        (lambda rows: json.dumps(rows)[:-3], ResponseIncompleteError),
        (lambda rows: json.dumps(rows)[:-3] + "?}}]", MalformedResponseError),
    ],
)
def test_a_large_answer_is_read_row_by_row(web, monkeypatch, in_memory, make, outcome):
    monkeypatch.setattr("dicomweb_io.web.search._MAX_WHOLE", 100)
    monkeypatch.setattr("dicomweb_io.web.search._MAX_ROWS_IN_MEMORY", in_memory)
    rows = [web.row(f"1.{number}") for number in range(50)]
    _, client = web.connect(lambda request: web.Reply(200, make(rows).encode(), "application/dicom+json"))
    with nullcontext() if outcome is None else pytest.raises(outcome):
        assert list(client.iter_search(STUDIES)) == rows
    # What is behind the limit is not looked at.
    assert client.search_for_studies(limit=3) == rows[:3]


def test_the_query_goes_out_in_order_with_raw_commas_between_values_only(web):
    server, client = web.connect(lambda request: web.json([]))
    client.search_for_studies(
        search_filters={
            "StudyInstanceUID": ["1.2", "1.3"],
            "PatientName": ["Doe, John^A&B", "X=Y*"],
            "00080061": "CT,MR",
            "StudyDescription": "a,b",
        },
        fields=["NumberOfStudyRelatedInstances", "00081030"],
        fuzzymatching=True,
        additional_params={"orderby": "-StudyDate,PatientName", "x": "1 2"},
        limit=5,
        offset=2,
    )
    assert server.requests[0].target == (
        "/dicomweb/studies?StudyInstanceUID=1.2,1.3&PatientName=Doe%2C%20John%5EA%26B,X%3DY*&00080061=CT,MR"
        "&StudyDescription=a%2Cb&includefield=NumberOfStudyRelatedInstances&includefield=00081030&fuzzymatching=true"
        "&orderby=-StudyDate,PatientName&x=1%202&limit=5&offset=2"
    )


def test_accept_is_asked_again_in_another_spelling(web):
    def answer(request):
        if request.headers["accept"] == "application/dicom+json":
            return web.Reply(406)
        return web.json([web.row("1.1")], content_type="application/json; charset=utf-8")

    server, client = web.connect(answer)
    assert uids(client.search_for_studies()) == uids(client.search_for_studies()) == ["1.1"]
    accepts = [request.headers["accept"] for request in server.requests]
    assert accepts == ["application/dicom+json", "application/json", "application/json"]


def test_xml_answers_are_read(web):
    def native(uid):
        return (
            '<?xml version="1.0"?><NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">'
            f'<DicomAttribute tag="0020000D" vr="UI"><Value number="1">{uid}</Value></DicomAttribute>'
            "</NativeDicomModel>"
        ).encode()

    _, client = web.connect(lambda request: web.multipart([native("1.1"), native("1.2")], kind="application/dicom+xml"))
    assert uids(client.search_for_studies()) == ["1.1", "1.2"]


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b"<!DOCTYPE html><html>login</html>", "text/html", "HTML page"),
        (b"[1, 2]", "application/dicom+json", "DICOM JSON"),
        (b'{"HttpStatus": 200}', "application/json", "DICOM JSON"),
        (b"[{1", "application/json", "expected JSON"),
        (b"", "application/json", "empty"),
        (b'<!DOCTYPE a [<!ENTITY x "y">]><NativeDicomModel>&x;</NativeDicomModel>', "application/dicom+xml", "XML"),
    ],
)
def test_an_answer_that_is_no_result_is_an_error(web, body, content_type, words):
    _, client = web.connect(lambda request: web.Reply(200, body, content_type, length=bool(body)))
    with pytest.raises(MalformedResponseError, match=words):
        client.search_for_studies()


def test_an_answer_that_breaks_off_is_asked_for_again(web):
    bodies = [b"[{", b'[{"0020000D":{"vr":"UI","Value":["1.']
    broken = [web.Reply(200, body, "application/dicom+json") for body in bodies]
    _, client = web.connect(in_turn(*broken, web.json([web.row("1.1")])))
    assert uids(client.search_for_studies()) == ["1.1"]
    _, client = web.connect(lambda request: broken[0])
    with pytest.raises(ResponseIncompleteError, match="ends after") as caught:
        client.search_for_studies()
    assert (caught.value.retryable, caught.value.attempts) == (True, 3)


def test_one_dataset_instead_of_a_list_is_one_row(web):
    _, client = web.connect(lambda request: web.json(web.row("1.1")))
    assert uids(client.search_for_studies()) == ["1.1"]


NAMES = [{"Alphabetic": "Müller^Jürgen", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}]
OTHER_IDS = {"00100020": {"vr": "LO", "Value": ["PAT2"]}}


@pytest.mark.parametrize(
    ("filters", "values"),
    [
        ({"Modality": "CT"}, {"t00080060": "MR"}),
        ({"StudyInstanceUID": ["1.5", "1.6"]}, {}),
        ({"StudyDate": "20200101-20201231"}, {"t00080020": "20210101"}),
        ({"00080020": "20200101"}, {"t00080020": "2020.01.02"}),
        ({"StudyDate": "20200101-"}, {"t00080020": "20191231"}),
        ({"ModalitiesInStudy": "CT"}, {"t00080061": ["MR", "PT"]}),
        ({"ModalitiesInStudy": "CT"}, {"t00080061": "MR\\PT"}),
        ({"Modality": "CT"}, {"t00080061": ["MR", "PT"]}),
        ({"PatientID": "PAT2"}, {"t00100020": "PAT1"}),
        ({"PatientID": ["PAT2", "PAT3"]}, {"t00100020": "PAT1"}),
        ({"PatientID": "PAT?"}, {"t00100020": "PAT22"}),
        ({"PatientID": "PAT2"}, {"t00100020": "PAT1", "t00101000": "PAT3"}),
        ({"AccessionNumber": "A*"}, {"t00080050": "B1"}),
        ({"StudyDescription": "*head*"}, {"t00081030": "CHEST"}),
        ({"PatientName": "Doe^John"}, {"t00100010": NAMES}),
        ({"PatientName": "Mueller*"}, {"t00100010": NAMES}),
        ({"PatientName": "?oe"}, {"t00100010": "Doe^John"}),
        ({"PatientName": "Doe^John"}, {"t00100010": "Doe^Jane"}),
        ({"NumberOfStudyRelatedInstances": 3}, {"t00201208": [4]}),
        ({"NumberOfStudyRelatedInstances": 3}, {"t00201208": "4"}),
        ({"PatientWeight": "70.5"}, {"t00101030": [71]}),
        ({"StudyTime": "1000-1100"}, {"t00080030": "110100"}),
        ({"StudyTime": "10"}, {"t00080030": "110100"}),
        ({"StudyDate": "20200101", "StudyTime": "10"}, {"t00080020": "20200101", "t00080030": "110100"}),
        ({"AcquisitionDateTime": "2003"}, {"t0008002A": "20041231235959"}),
        ({"PatientAge": "030Y"}, {"t00101010": "040Y"}),
        ({"StationAETitle": "A"}, {"t00080055": "B"}),
        ({"InstitutionAddress": "Here"}, {"t00080081": "There"}),
    ],
)
def test_an_ignored_filter_is_an_error(web, filters, values):
    _, client = web.connect(lambda request: web.json([web.row("1.1", **values)]))
    with pytest.raises(FilterIgnoredError, match="ignored the filter"):
        client.search_for_studies(search_filters=filters)
    with pytest.raises(FilterIgnoredError):
        list(client.iter_search_for_studies(search_filters=filters))
    with pytest.raises(FilterIgnoredError):
        client.search_for_studies(additional_params=filters)


@pytest.mark.parametrize(
    ("filters", "values"),
    [
        ({"Modality": "ct"}, {"t00080060": "CT"}),
        ({"Modality": "C*"}, {"t00080060": "CT "}),
        ({"Modality": ["CT", "MR"]}, {"t00080060": "MR"}),
        ({"Modality": ""}, {"t00080060": "MR"}),
        ({"Modality": "CT"}, {"t00080060": "MR", "t00080061": ["MR", "CT"]}),
        ({"StudyDate": "20200101-"}, {"t00080020": "20210101"}),
        ({"StudyDate": "20200101-"}, {"t00080020": "2021-01-01"}),
        ({"StudyDate": "-20200101"}, {"t00080020": "20191231"}),
        ({"StudyDate": "20200101"}, {"t00080020": "unknown"}),
        ({"StudyDate": "20200101"}, {"t00080020": "20200102", "t00080201": "+0900"}),
        ({"StudyDate": "20200101", "TimezoneOffsetFromUTC": "+0900"}, {"t00080020": "20200102"}),
        ({"StudyDate": "20200101-20200102", "StudyTime": "10-11"}, {"t00080020": "20200101", "t00080030": "2300"}),
        ({"StudyTime": "2300-0100"}, {"t00080030": "003000"}),
        ({"StudyTime": "1000-1100"}, {"t00080030": "10"}),
        ({"StudyTime": "1030"}, {"t00080030": "10:30:15.5"}),
        ({"AcquisitionDateTime": "2004"}, {"t0008002A": "20041231235959+0100"}),
        ({"ModalitiesInStudy": "CT"}, {"t00080061": ["MR", "CT"]}),
        ({"ModalitiesInStudy": "CT"}, {"t00080061": "MR\\CT"}),
        ({"ModalitiesInStudy": "CT"}, {"t00080060": "MR"}),
        ({"SpecificCharacterSet": "ISO_IR 192"}, {"t00080005": "ISO_IR 100"}),
        ({"PatientID": "pat2"}, {"t00100020": " PAT2\0"}),
        ({"PatientID": "PAT2"}, {"t00100020": ["PAT1", "PAT2"]}),
        ({"PatientID": "PAT2"}, {"t00100020": "PAT1", "t00101000": ["PAT3", "PAT2"]}),
        ({"PatientID": "PAT2"}, {"t00100020": "PAT1", "t00101002": [OTHER_IDS]}),
        ({"PatientID": "PAT2^^^Hospital"}, {"t00100020": "PAT2"}),
        ({"PatientID": "PAT2"}, {"t00100020": ""}),
        ({"PatientID": ["PAT2", ""]}, {"t00100020": "PAT1"}),
        ({"PatientName": "MULLER^JURGEN"}, {"t00100010": NAMES}),
        ({"PatientName": "Müller^J*"}, {"t00100010": NAMES}),
        ({"PatientName": "M?ller^*"}, {"t00100010": NAMES}),
        ({"PatientName": "山田*"}, {"t00100010": NAMES}),
        ({"PatientName": "Mueller=山田^太郎"}, {"t00100010": NAMES}),
        ({"PatientName": "やまだ^たろう^^"}, {"t00100010": NAMES}),
        ({"PatientName": "Doe"}, {"t00100010": "Doe^John"}),
        ({"PatientName": "Doe John"}, {"t00100010": "DOE^JOHN"}),
        ({"PatientName": "*^John"}, {"t00100010": "Doe^John^^"}),
        ({"PatientName": "Müller"}, {"t00100010": "M\ufffdller"}),
        ({"PatientName": "*"}, {"t00100010": "Doe"}),
        ({"StudyDescription": "Größe"}, {"t00081030": "GROSSE"}),
        ({"StudyDescription": "a,b"}, {"t00081030": "a"}),
        ({"NumberOfStudyRelatedInstances": "3"}, {"t00201208": "3.0 "}),
        ({"PatientWeight": "70.50"}, {"t00101030": [70.5]}),
        ({"BodyPartExamined": "HEAD"}, {}),
    ],
)
def test_a_filter_that_was_or_may_have_been_honoured_is_no_error(web, filters, values):
    _, client = web.connect(lambda request: web.json([web.row("1.1", **values)]))
    assert len(client.search_for_studies(search_filters=filters)) == 1
    assert len(client.search_for_studies(additional_params=filters)) == 1


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, {"fuzzymatching": True}),
        ({}, {"additional_params": {"fuzzymatching": "true"}}),
        ({"profile": "dicomcloud"}, {}),
        ({"filter_mismatch": "warn"}, {}),
    ],
)
def test_names_that_are_matched_loosely_and_rows_that_are_accepted_are_no_error(web, caplog, options, arguments):
    row = web.row("1.1", t00100010="Smyth")
    _, client = web.connect(lambda request: web.json([row], headers={"X-Total-Count": "1"}), **options)
    for _ in range(2):
        assert client.search_for_studies(search_filters={"PatientName": "Smith"}, **arguments) == [row]
    assert caplog.text.count("contradicts the filter on PatientName") == ("filter_mismatch" in options)
    with pytest.raises(ValueError, match="filter_mismatch"):
        web.connect(lambda request: None, filter_mismatch="ignore")


def test_a_row_names_no_part_of_what_was_searched_for(web):
    row = web.row("1.1", t0020000E=["1.1.1", "1.1.2"], t00080018="1.1.1.1")
    _, client = web.connect(lambda request: web.json([row]))
    for arguments in ({}, {"fields": ["all"]}):
        assert [Resource.of(found) for found in client.search_for_studies(**arguments)] == [Resource("1.1")]
    (found,) = client.search_for_studies(fields=["SeriesInstanceUID"])
    assert found["0020000E"]["Value"] == ["1.1.1", "1.1.2"]
    assert resource_of_row(found, "study") == Resource("1.1")


@pytest.mark.parametrize("number", [0, 1])
def test_rows_of_another_study_or_series_fail_the_search(web, number):
    uids = [["1.1", "1.1.1", "1"], ["1.1", "1.1.1", "2"]]
    uids[1][number] = "9.9"
    _, client = web.connect(lambda request: web.json([web.row(*one) for one in uids]), filter_mismatch="warn")
    with pytest.raises(FilterIgnoredError, match=rf"9\.9 instead of {uids[0][number]}"):
        client.search_for_instances("1.1", "1.1.1")
    with pytest.raises(FilterIgnoredError):
        list(expand_reference(client, Resource("1.1", "1.1.1")))
    with pytest.raises(FilterIgnoredError):
        SeriesListing(client).holds(Resource("1.1", "1.1.1", "2"))


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("StudyDate", "2004-01-01", "20040101"),
        ("StudyDate", "2004.01.01", "20040101"),
        ("StudyDate", "2003", "20030101-20031231"),
        ("StudyDate", "200402", "20040201-20040229"),
        ("StudyDate", "20041301", "YYYYMMDD"),
        ("StudyDate", "20040230", "YYYYMMDD"),
        ("StudyDate", "today", "YYYYMMDD"),
        ("StudyDate", "2004*", "20040101-20041231"),
        ("StudyDate", "20040201-20040101", "20040101-20041231"),
        ("StudyDate", "-", "YYYYMMDD"),
        ("StudyDate", ["20040101", "2004-01-02"], "20040102"),
        ("StudyTime", "10:30", "HHMMSS"),
        ("StudyTime", "2500", "HHMMSS"),
        ("AcquisitionDateTime", "2004-01-01T10:00", "YYYYMMDDHHMMSS"),
        ("PatientBirthDate", "1950-01-01", "YYYYMMDD"),
        ("RequestAttributesSequence.ScheduledProcedureStepStartDate", "1.1.2004", "YYYYMMDD"),
    ],
)
def test_a_malformed_date_or_time_is_an_error_with_the_right_spelling(web, key, value, right):
    server, client = web.connect(lambda request: web.json([]))
    with pytest.raises(FilterError, match=right) as caught:
        client.search_for_studies(search_filters={key: value})
    assert "1950" not in str(caught.value)
    assert not server.requests


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("StudyDate", ""),
        ("StudyDate", "*"),
        ("StudyDate", "20040101,20040102"),
        ("StudyDate", "20040101-"),
        ("StudyTime", "2300-0100"),
        ("StudyTime", "07"),
        ("AcquisitionDateTime", "2003"),
        ("AcquisitionDateTime", "2003-2004"),
        ("AcquisitionDateTime", "20040101120000.000000-0500"),
    ],
)
def test_a_lawful_date_or_time_is_sent(web, key, value):
    server, client = web.connect(lambda request: web.json([]))
    client.search_for_studies(search_filters={key: value})
    assert server.requests[0].query == f"{key}={value}"


def test_a_modality_is_asked_for_as_servers_know_it_in_studies(web, caplog):
    server, client = web.connect(lambda request: web.json([web.row("1.1", t00080061=["CT"])]), profile="orthanc")
    filters = {"Modality": "CT", "Manufacturer": "Acme"}
    for _ in range(2):
        client.search_for_studies(search_filters=filters)
    assert "no row of the answer has Modality" not in caplog.text
    client.search_for_series("1.1", search_filters={"Modality": "CT"})
    assert [request.query for request in server.requests] == [
        *["ModalitiesInStudy=CT&Manufacturer=Acme"] * 2,
        "Modality=CT",
    ]
    assert caplog.text.count("the filter on Manufacturer finds nothing") == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("RequestAttributesSequence.ScheduledProcedureStepID", "1"), ("00091001", "1"), ("BodyPartExamined", "HEAD")],
)
def test_a_filter_that_may_have_been_ignored_is_told_once(web, caplog, key, value):
    _, client = web.connect(lambda request: web.json([web.row("1.1"), web.row("1.2")]))
    for _ in range(2):
        assert len(client.search_for_studies(search_filters={key: value})) == 2
    (record,) = [record for record in caplog.records if "may have ignored" in record.getMessage()]
    assert key in record.getMessage()
    assert record.levelname == "WARNING"


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        ({"BodyPartExamined": "HEAD"}, []),
        ({"BodyPartExamined": "HEAD"}, [{}, {"t00180015": "HEAD"}]),
        ({"BodyPartExamined": ""}, [{}]),
        ({"BodyPartExamined": "*"}, [{}]),
        ({"StudyInstanceUID": "1.1"}, [{}]),
        ({"RequestAttributesSequence.ScheduledProcedureStepID": "1"}, [{"t00400275": "x"}]),
    ],
)
def test_a_filter_that_was_honoured_is_not_mentioned(web, caplog, filters, rows):
    _, client = web.connect(lambda request: web.json([web.row("1.1", **values) for values in rows]))
    client.search_for_studies(search_filters=filters)
    assert "may have ignored" not in caplog.text


def test_counting(web):
    def answer(request):
        assert request.target == "/dicomweb/studies/count?Modality=CT"
        return web.json({"count": 17}, content_type="application/json")

    _, client = web.connect(answer, profile="dcm4chee")
    assert client.count(make_query("study", search_filters={"Modality": "CT"})) == 17
    _, client = web.connect(answer)
    assert client.count(STUDIES) is None
    _, client = web.connect(lambda request: web.json({"total": 17}), profile="dcm4chee")
    with pytest.raises(MalformedResponseError, match="number"):
        client.count(STUDIES)


def test_order_by_is_sent_where_rows_have_no_order_of_their_own(web):
    server, client = web.connect(lambda request: web.json([]), profile="dcm4chee")
    list(client.iter_search_for_series("1.2"))
    assert server.requests[0].query == "orderby=SeriesInstanceUID&limit=1000"
    client.search_for_series("1.2", additional_params={"orderby": "SeriesNumber"})
    assert server.requests[-1].query == "orderby=SeriesNumber"


def test_lists_of_uids_are_taken_apart_where_servers_do_not_know_them(web):
    def answer(request):
        uid = request.parameters["StudyInstanceUID"]
        return web.page(request, [] if "," in uid else [web.row(uid)])

    _, client = web.connect(answer, profile=ServerProfile("no lists", uid_lists=False))
    rows = client.iter_search_for_studies(search_filters={"StudyInstanceUID": ["1.2", "1.3", "1.2"]})
    assert uids(rows) == ["1.2", "1.3"]


def test_a_server_that_does_not_decode_queries_is_asked_once_and_spared_escapes(web):
    server, client = web.connect(
        lambda request: web.Reply(400) if "%" in request.query else web.json([]), profile="orthanc"
    )
    for _ in range(2):
        client.search_for_studies(search_filters={"PatientName": "Doe^John", "PatientID": "a?*"})
    query = "PatientName=Doe?John&PatientID=a?*"
    assert [request.query for request in server.requests] == ["limit=%31", query, query]
    with pytest.raises(ValueError, match="does not decode"):
        client.search_for_studies(search_filters={"PatientName": "Müller"})
    assert len(server.requests) == 3


def test_rows_of_a_nested_search_have_the_uids_of_their_resource(web):
    _, client = web.connect(lambda request: web.json([{"00080018": {"vr": "UI", "Value": ["1.4"]}}]))
    rows = client.search_for_instances("1.2", "1.3")
    assert Resource.of(rows[0]) == Resource("1.2", "1.3", "1.4")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"limit": "5"}, TypeError),
        ({"limit": -1}, ValueError),
        ({"offset": -1}, ValueError),
        ({"offset": 1.5}, TypeError),
        ({"fuzzymatching": "yes"}, TypeError),
        ({"fields": [1]}, TypeError),
        ({"fields": "PatientID"}, TypeError),
        ({"search_filters": {1: "x"}}, TypeError),
        ({"search_filters": {"PatientIdd": "x"}}, ValueError),
        ({"search_filters": {"PatientID": []}}, ValueError),
        ({"additional_params": {"limit": 5}}, ValueError),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_sent(web, arguments, error):
    server, client = web.connect(lambda request: web.json([]))
    with pytest.raises(error):
        client.search_for_studies(**arguments)
    assert server.requests == []


@pytest.mark.parametrize("uid", ["1.2/../../admin", "", "1..2", "1.2?x", "a"])
def test_what_is_no_uid_is_refused_before_anything_is_sent(web, uid):
    server, client = web.connect(lambda request: web.json([]))
    with pytest.raises(ValueError, match="study_instance_uid"):
        client.search_for_series(uid)
    assert server.requests == []


def test_an_ignored_offset_is_noticed_even_if_rows_have_no_uid(web):
    rows = [web.row(t00080060="CT"), web.row(t00080060="MR")]
    _, client = web.connect(lambda request: web.json(rows[: int(request.parameters["limit"])]))
    with pytest.raises(PagingError, match="ignores offset"):
        list(client.iter_search(SearchQuery("series", "1.2.3")))


def test_one_uid_in_several_series_is_several_rows(web):
    """Orthanc keeps instances of one UID in several series, each of which can be retrieved."""
    rows = [web.row("1.1", "1.1.1", "9.9"), web.row("1.1", "1.1.2", "9.9"), web.row("2.2", "2.2.1", "9.9")]
    _, client = web.connect(lambda request: web.page(request, rows))
    assert list(client.iter_search(SearchQuery("instance"))) == rows
