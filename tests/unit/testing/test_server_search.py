"""Searches of the test server, asked with plain requests: what the standard says, and what known servers do."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest
import requests
from defusedxml import ElementTree

from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import clone, copy_samples, make_study, sample_file, synthetic_instance
from tests.unit.testing import asking
from tests.unit.testing.asking import INSTANCE, SERIES, STUDY, store, uids


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Two studies of two series of three instances, and a CT of a patient with a name."""
    folder = tmp_path_factory.mktemp("archive")
    make_study(folder, studies=2, series=2, instances=3, size=50)
    (folder / "ct.dcm").write_bytes(sample_file("CT_small.dcm").read_bytes())
    return folder


def get(server, path: str, **options) -> requests.Response:
    return asking.get(f"{server.url}{path}", **options)


def test_all_levels_flat_and_nested(serve, archive):
    server = serve(archive)
    studies = uids(get(server, "/studies"), STUDY)
    assert len(set(studies)) == 3
    assert len(uids(get(server, "/series"), SERIES)) == 5
    assert len(set(uids(get(server, "/instances"), INSTANCE))) == 13
    large = next(uid for uid in studies if uid.startswith("2.25"))
    series = uids(get(server, f"/studies/{large}/series"), SERIES)
    assert len(series) == 2
    assert len(uids(get(server, f"/studies/{large}/instances"), INSTANCE)) == 6
    nested = get(server, f"/studies/{large}/series/{series[0]}/instances")
    assert len(uids(nested, INSTANCE)) == 3
    assert nested.headers["Content-Type"] == "application/dicom+json"
    for path, number in (("/studies", 3), ("/series", 5), ("/instances", 13), (f"/studies/{large}/series", 2)):
        assert get(server, f"{path}/count").json() == {"count": number}


def test_rows_name_where_they_can_be_retrieved(serve, archive):
    server = serve(archive)
    for path, level in (("/studies", "studies"), ("/series", "series"), ("/instances", "instances")):
        row = get(server, f"{path}?limit=1").json()[0]
        address = row["00081190"]["Value"][0]
        assert address.startswith(f"{server.url}/studies/")
        assert address.rstrip("/").split("/")[-2] == level
        assert requests.get(address + "/metadata", timeout=30).status_code == 200


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("PatientID=1CT1", 1),
        ("00100020=1CT1", 1),
        ("PatientID=1CT*", 1),
        ("PatientID=1ct1", 0),
        ("PatientID=?CT1", 1),
        ("PatientID=", 3),
        ("PatientName=compressedsamples^ct1", 1),
        ("PatientName=Synthetic*", 2),
        ("StudyDate=20260101-20260103", 2),
        ("StudyDate=-20100101", 1),
        ("StudyDate=20260102", 2),
        ("ModalitiesInStudy=CT", 3),
        ("NoSuchKeyword=1", 3),
        ("PatientID=nobody", 0),
        ("StudyDescription=e%2B1", 1),
    ],
)
def test_matching(serve, archive, query, rows):
    answer = get(serve(archive), f"/studies?{query}")
    if rows == 0:
        assert answer.status_code == 204
        assert answer.content == b""
    else:
        assert len(answer.json()) == rows


@pytest.mark.parametrize("comma", [",", "%2C"])
def test_lists_of_uids(serve, archive, comma):
    server = serve(archive)
    wanted = uids(get(server, "/studies"), STUDY)[:2]
    assert sorted(uids(get(server, f"/studies?StudyInstanceUID={comma.join(wanted)}"), STUDY)) == sorted(wanted)


def test_includefield(serve, archive):
    server = serve(archive)
    query = "/instances?PatientID=1CT1"
    plain = get(server, query).json()[0]
    assert "00180050" not in plain
    for value in ("SliceThickness", "00180050", "SliceThickness,KVP", "all"):
        assert "00180050" in get(server, f"{query}&includefield={value}").json()[0]
    assert get(server, f"{query}&includefield=Nonsense").status_code == 200


def test_paging_until_nothing_is_left(serve, archive):
    server = serve(archive)
    everything = uids(get(server, "/instances"), INSTANCE)
    seen: list[str] = []
    while (page := get(server, f"/instances?limit=4&offset={len(seen)}")).status_code == 200:
        rows = uids(page, INSTANCE)
        seen += rows
        more = len(seen) < len(everything)
        assert ("Warning" in page.headers) is more
        if more:
            assert re.match(r'299 \S+: "There are additional results', page.headers["Warning"])
    assert page.status_code == 204
    assert seen == everything
    assert "X-Total-Count" not in page.headers


@pytest.mark.parametrize(
    "query", ["limit=abc", "limit=-1", "offset=-1", "offset=x", "StudyDate=notadate", "limit=4&offset=%31%2B"]
)
def test_malformed_parameters_are_refused(serve, archive, query):
    answer = get(serve(archive), f"/studies?{query}")
    assert answer.status_code == 400
    assert answer.text


def test_xml_and_what_is_not_acceptable(serve, archive):
    server = serve(archive)
    kind = 'multipart/related; type="application/dicom+xml"'
    answer = get(server, "/studies?PatientID=1CT1", headers={"Accept": kind})
    assert answer.headers["Content-Type"].startswith(kind)
    root = ElementTree.fromstring(answer.content.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0])
    assert root.findtext("DicomAttribute[@tag='00100020']/Value") == "1CT1"
    name = root.findtext("DicomAttribute[@tag='00100010']/PersonName/Alphabetic/FamilyName")
    assert name == "CompressedSamples"
    assert get(server, "/studies", headers={"Accept": "image/png"}).status_code == 406
    assert get(server, "/studies?accept=application/json").headers["Content-Type"] == "application/json"


def test_fuzzy_matching_is_declined_by_a_warning(serve, archive):
    answer = get(serve(archive), "/studies?PatientName=Synt*&fuzzymatching=true")
    assert len(answer.json()) == 2
    assert "fuzzymatching parameter is not supported" in answer.headers["Warning"]


def test_an_empty_or_absent_folder_has_no_rows(serve, tmp_path):
    server = serve(tmp_path / "absent")
    assert get(server, "/studies").status_code == 204
    assert get(server, "/instances/count").json() == {"count": 0}
    assert server.errors == []


def test_head_tells_what_get_would(serve, archive):
    server = serve(archive)
    head = requests.head(f"{server.url}/studies", timeout=30)
    assert head.status_code == 200
    assert head.headers["Content-Length"] == str(len(get(server, "/studies").content))


# Behaviour ------------------------------------------------------------------------------------------------------------


def test_orthanc_never_says_204_and_takes_queries_literally(serve, archive):
    server = serve(archive, behaviour="orthanc")
    for query in ("/studies?PatientID=nobody", "/studies?offset=100", "/studies/1.2.3/series"):
        answer = get(server, query)
        assert (answer.status_code, answer.json()) == (200, [])
    assert len(get(server, "/studies?limit=0").json()) == 3
    assert get(server, "/studies?limit=-1").status_code == 500
    assert get(server, "/studies?limit=abc").status_code == 400
    assert len(get(server, "/studies?PatientID=1ct1").json()) == 1
    assert len(get(server, "/studies?PatientName=COMPRESSEDSAMPLES*").json()) == 1
    assert get(server, "/studies?Modality=CT").json() == []
    assert len(get(server, "/studies?RequestAttributesSequence.ScheduledProcedureStepID=1").json()) == 3
    assert len(get(server, "/instances?limit=1").json()) == 1
    assert "Warning" not in get(server, "/instances?limit=1").headers
    assert len(get(server, "/studies", headers={"Accept": "image/png"}).json()) == 3
    assert get(server, "/studies?StudyDescription=e%2B1").json() == []
    assert get(server, "/studies/count").status_code != 200
    assert requests.head(f"{server.url}/studies", timeout=30).status_code == 404
    error = get(server, "/studies/1.2.3")
    assert error.json()["HttpStatus"] == error.status_code == 404
    assert "Content-Type" not in error.headers


def test_dcm4chee_caps_and_splits_at_raw_commas_only(serve, archive):
    server = serve(archive, behaviour="dcm4chee")
    assert "/dcm4chee-arc/aets/DCM4CHEE/rs" in server.url
    studies = uids(get(server, "/studies"), STUDY)
    assert len(get(server, f"/studies?StudyInstanceUID={','.join(studies[:2])}").json()) == 2
    assert get(server, f"/studies?StudyInstanceUID={'%2C'.join(studies[:2])}").json() == []
    assert get(server, "/studies?limit=0").status_code == 400
    assert get(server, "/studies?limit=5&offset=100000").status_code == 400
    assert get(server, "/studies?NoSuchKeyword=1").status_code == 400
    assert get(server, "/studies?PatientID=nobody").status_code == 204
    assert get(server, "/studies?PatientID=a%5Cb").json() == []
    assert "Warning" not in get(server, "/instances?limit=3").headers
    assert get(server, "/instances/count").json() == {"count": 13}
    for order, reverse in (("InstanceNumber", False), ("-InstanceNumber", True)):
        numbers = [row["00200013"]["Value"][0] for row in get(server, f"/instances?orderby={order}").json()]
        assert numbers == sorted(numbers, reverse=reverse)
    assert get(server, "/instances?orderby=Nonsense").status_code == 400


def test_dicomcloud_gives_twelve_and_says_how_many_there_are(serve, archive):
    server = serve(archive, behaviour="dicomcloud")
    answer = get(server, "/qidors/instances?limit=100")
    assert len(answer.json()) == 12
    assert answer.headers["X-Total-Count"] == "13"
    assert "Warning" in answer.headers
    following = requests.utils.parse_header_links(answer.headers["Link"])[0]["url"]
    assert len(requests.get(following, timeout=30).json()) == 1
    assert get(server, "/studies").status_code == 404
    assert get(server, "/qidors/studies?NoSuchKeyword=1").status_code == 500
    assert "00180050" in get(server, "/qidors/instances?PatientID=1CT1").json()[0]
    assert get(serve(archive, behaviour="dicomcloud-api"), "/instances").status_code == 200
    short = get(serve(archive, behaviour="dicomcloud-short-pages"), "/qidors/instances?limit=12")
    assert len(short.json()) == 10


def test_google_cuts_silently(serve, tmp_path):
    template = sample_file("dicomdirtests/TINY_ALPHA/PT000000/ST000000/SE000000/IM000000").read_bytes()
    make_study(tmp_path, studies=101, instances=1, template=template)
    answer = get(serve(tmp_path, behaviour="google"), "/studies")
    assert len(answer.json()) == 100
    assert "Warning" not in answer.headers


def test_azure_refuses_what_it_does_not_know(serve, archive):
    server = serve(archive, behaviour="azure")
    assert get(server, "/studies?limit=201").status_code == 400
    assert get(server, "/studies?limit=200").status_code == 200
    assert get(server, "/studies?offset=50").status_code == 204
    for query in ("PatientName=", "NoSuchKeyword=1", "StudyID=1", "Modality=CT", "00400275.00400009=1"):
        assert get(server, f"/studies?{query}").status_code == 400, query
    assert get(server, "/studies?PatientID=1CT*").status_code == 204
    assert len(get(server, "/studies?PatientID=1ct1").json()) == 1
    assert len(get(server, "/studies?PatientName=compr&fuzzymatching=true").json()) == 1
    assert get(server, "/studies", headers={"Accept": "application/dicom+xml"}).status_code == 406
    assert get(server, "/studies/1.2.3").json()["error"]["code"] == 404
    assert "00201208" not in get(server, "/studies?PatientID=1CT1").json()[0]
    asked = get(server, "/studies?PatientID=1CT1&includefield=NumberOfStudyRelatedInstances").json()[0]
    assert asked["00201208"]["Value"] == [1]


def test_azure_lists_the_newest_first(serve, tmp_path):
    server = serve(tmp_path, behaviour="azure")
    contents = [clone(sample_file("CT_small.dcm").read_bytes(), number) for number in range(3)]
    arrived = []
    for content in contents:
        store(server, content)
        arrived.insert(0, uids(get(server, "/studies?limit=1"), STUDY)[0])
    assert uids(get(server, "/studies"), STUDY) == arrived
    assert len(set(arrived)) == 3


def test_healthimaging_searches_downwards_only(serve, archive):
    server = serve(archive, behaviour="healthimaging")
    study = uids(get(server, "/studies"), STUDY)[0]
    for path in ("/series", "/instances", f"/studies/{study}/instances"):
        assert get(server, path).status_code == 404
    series = uids(get(server, f"/studies/{study}/series"), SERIES)[0]
    assert get(server, f"/studies/{study}/series/{series}/instances").status_code == 200
    assert get(server, "/studies?PatientID=nobody").json() == []


def test_the_strict_server_ignores_tags_and_knows_no_wildcards(serve, archive):
    server = serve(archive, behaviour="strict")
    assert len(get(server, "/studies?00100020=nobody").json()) == 3
    assert len(get(server, "/studies?PatientName=nthet").json()) == 2
    assert get(server, "/studies?PatientName=*").status_code == 204
    assert get(server, "/studies?PatientID=1CT*").status_code == 204
    assert len(get(server, "/studies?limit=0").json()) == 1
    assert len(get(server, "/studies?limit=-1").json()) == 1
    assert get(server, "/instances").status_code == 404
    assert get(server, "/studies", headers={"Accept": "text/html"}).status_code == 406


def test_a_server_that_ignores_the_offset(serve, archive):
    server = serve(archive, behaviour="offset-ignored")
    first = get(server, "/instances?limit=5").json()
    assert get(server, "/instances?limit=5&offset=5").json() == first


# Faults ---------------------------------------------------------------------------------------------------------------


def test_faults_of_paging(serve, archive):
    everything = uids(get(serve(archive), "/instances"), INSTANCE)

    def page(action: str, **options) -> requests.Response:
        return get(serve(archive, faults=[fault(action, **options)]), "/instances?limit=4&offset=4&PatientID=SYN*")

    right = uids(get(serve(archive), "/instances?limit=4&offset=4&PatientID=SYN*"), INSTANCE)
    assert uids(page("ignore_offset"), INSTANCE) != right
    assert len(page("ignore_limit").json()) == 8
    assert uids(page("ignore_filters"), INSTANCE) == everything[4:8]
    assert len(page("duplicate_rows", count=2).json()) == 6
    assert uids(page("duplicate_rows", count=2), INSTANCE)[2:] == right
    assert uids(page("moving_rows", count=1), INSTANCE)[1:] == right[:3]
    assert uids(page("shrink_pages", count=1), INSTANCE) == right[:3]
    assert page("lying_total", difference=5).headers["X-Total-Count"] == "17"
    assert (page("empty_page").content, page("empty_page").headers["X-Total-Count"]) == (b"", "12")
    assert page("empty_page", offset=4).content == b""
    assert uids(page("empty_page", offset=6), INSTANCE) == right[:2]
    assert uids(page("empty_page", offset=3), INSTANCE) == right
    assert [number for number, row in enumerate(page("null_row", row=2).json()) if row is None] == [1]
    assert "0020000d" in page("lower_case_tags").json()[0]
    assert get(serve(archive, faults=[fault("lying_total", difference=-3)]), "/instances/count").json() == {"count": 10}


def test_faults_of_json(serve, archive):
    def answer(action: str, **options) -> bytes:
        return get(serve(archive, faults=[fault(action, **options)]), "/studies").content

    right = get(serve(archive), "/studies").content
    assert b"NaN" in answer("nan_json")
    assert len(answer("truncated_json")) == len(right) // 2
    assert answer("deep_json", depth=1000) == b"[" * 1000 + b"]" * 1000
    assert not answer("bad_json").startswith(b"[")
    assert answer("wrong_vrs") != right
    broken = serve(archive, faults=[fault("bad_gzip"), fault("truncated_gzip", first=2)])
    for _ in range(2):
        with pytest.raises(requests.exceptions.RequestException):
            assert get(broken, "/studies").json()
    assert get(broken, "/studies").content.replace(b"%d" % broken.port, b"") != b""


def test_a_gzip_bomb_is_small_on_the_wire(serve, archive):
    server = serve(archive, faults=[fault("gzip_bomb", size=50_000_000)])
    with get(server, "/studies", stream=True) as answer:
        packed = answer.raw.read(decode_content=False)
    assert len(packed) < 200_000
    assert len(gzip.decompress(packed)) == 50_000_002


def test_series_come_by_number_where_the_server_does_so(serve, tmp_path):
    for number in (3, 1, 2):
        synthetic_instance(10, tmp_path / f"{number}.dcm", seed="x", number=number)
    server = serve(tmp_path, behaviour="healthimaging")
    (study,) = uids(get(server, "/studies"), STUDY)
    (series,) = uids(get(server, f"/studies/{study}/series"), SERIES)
    rows = get(server, f"/studies/{study}/series/{series}/instances").json()
    assert [row["00200013"]["Value"][0] for row in rows] == [1, 2, 3]


def test_the_sample_folder_is_served(serve, tmp_path):
    copy_samples(tmp_path)
    server = serve(tmp_path)
    rows = get(server, "/instances").json()
    assert len(rows) == get(server, "/instances/count").json()["count"] > 110
    assert server.errors == []
