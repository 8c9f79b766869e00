"""The same reading tests on every archive: a real Orthanc, the test server in each of its behaviour, folders.

What differs is in the table of `conftest.py`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import requests

from dicomweb_io.api import load_json_dataset
from dicomweb_io.client import DICOMClient
from dicomweb_io.elements import Resource
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.profiles import PROFILES
from dicomweb_io.queries import make_query
from dicomweb_io.testing.server.behaviours import BEHAVIOURS

EXPLICIT = "1.2.840.10008.1.2.1"
UID_TAGS = {"study": "0020000D", "series": "0020000E", "instance": "00080018"}
NAMES = {"study": "studies", "series": "series", "instance": "instances"}
LEVELS = list(UID_TAGS)
UNKNOWN = ("1.2.3.4.5", "1.2.3.4.6", "1.2.3.4.7")


def search(client: Any, level: str, *arguments: Any, **options: Any) -> list[dict[str, Any]]:
    return getattr(client, f"search_for_{NAMES[level]}")(*arguments, **options)


def iter_search(client: Any, level: str, **options: Any) -> Any:
    return getattr(client, f"iter_search_for_{NAMES[level]}")(**options)


def uids_of(rows: Any, level: str) -> list[str]:
    return [row[UID_TAGS[level]]["Value"][0] for row in rows]


def test_the_table_is_complete(suite):
    specs, features = suite
    assert {spec.behaviour for spec in specs if spec.kind == "server"} == set(BEHAVIOURS)
    profiles = {spec.profile if isinstance(spec.profile, str) else "generic" for spec in specs if spec.profile}
    assert profiles - {"auto", "probe"} == set(PROFILES)
    assert {spec.kind for spec in specs} == {"server", "orthanc", "folder", "memory"}
    for spec in specs:
        assert set(spec.lacks) <= set(features), spec.name
        assert all(lack.reason for lack in spec.lacks.values())


def test_it_is_a_dicom_client(backend, client, secret):
    assert isinstance(client, DICOMClient)
    assert client.base_url == backend.endpoint.safe_url.rstrip("/") or not backend.is_web
    assert secret not in repr(client) + repr(backend.endpoint) + client.base_url


# Search ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_all_rows_come_once(backend, client, content, level):
    rows = search(client, level, get_remaining=True)
    assert sorted(uids_of(rows, level)) == sorted(content.uids(level))


@pytest.mark.parametrize("page_size", [1, 5, 13])
def test_the_size_of_pages_does_not_matter(backend, client, content, page_size):
    with backend.having("paging"):
        rows = list(client.iter_search_for_studies(page_size=page_size))
        assert sorted(uids_of(rows, "study")) == sorted(content.uids("study"))


def test_searches_within_a_study_and_a_series(backend, client, content):
    study = content.study(1)
    other = content.small[0]
    assert len(study) == 2
    rows = client.search_for_series(study[0].uids[0])
    assert set(uids_of(rows, "series")) == {held.uids[1] for held in study}
    rows = client.search_for_instances(study[0].uids[0])
    assert set(uids_of(rows, "instance")) == {held.uids[2] for held in study}
    rows = client.search_for_instances(*study[0].uids[:2])
    assert uids_of(rows, "instance") == [study[0].uids[2]]
    assert [Resource.of(row) for row in rows] == [study[0].reference]
    rows = client.search_for_instances(other.uids[0], search_filters={"SOPInstanceUID": other.uids[2]})
    assert uids_of(rows, "instance") == [other.uids[2]]


def by(**wanted: Any) -> Callable[[Any], bool]:
    return lambda dataset: all(str(dataset.get(keyword, "")) in values for keyword, values in wanted.items())


def test_a_series_is_searched_without_its_study_too(client, content):
    _, series, instance = content.ct.uids
    rows = client.search_for_instances(series_instance_uid=series)
    assert [row["00080018"]["Value"] for row in rows] == [[instance]]
    assert list(client.iter_search_for_instances(None, "1.2.3.4")) == []


Filters = Callable[[Any], dict[str, Any]]


def nobody(dataset: Any) -> bool:
    return False


def dated(first: str, last: str) -> Callable[[Any], bool]:
    return lambda dataset: first <= dataset.get("StudyDate", "") <= last


def begins(keyword: str, text: str) -> Callable[[Any], bool]:
    return lambda dataset: str(dataset.get(keyword, "")).startswith(text)


JANUARY = "20200101-20200131"
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
FILTERS: dict[str, tuple[str, dict[str, Any] | Filters, Callable[[Any], bool]]] = {
    "keyword": ("study", {"PatientID": "SUITE03"}, by(PatientID=["SUITE03"])),
    "tag": ("study", {"00100020": "SUITE03"}, by(PatientID=["SUITE03"])),
    "person name": ("study", {"PatientName": "Suite^Patient04"}, by(PatientID=["SUITE04"])),
    "study UIDs": (
        "study",
        lambda content: {"StudyInstanceUID": [content.ct.uids[0], content.study(2)[0].uids[0]]},
        by(PatientID=["1CT1", "SUITE02"]),
    ),
    "instance UIDs": (
        "instance",
        lambda content: {"SOPInstanceUID": [content.ct.uids[2], content.small[3].uids[2], "1.2.3.4"]},
        lambda dataset: dataset.PatientID == "1CT1" or (dataset.PatientID == "SUITE00" and dataset.InstanceNumber == 4),
    ),
    "asterisk": ("study", {"StudyDescription": "Head 0*"}, begins("StudyDescription", "Head 0")),
    "asterisk in a name": ("study", {"PatientName": "Suite^*"}, begins("PatientName", "Suite^")),
    "question mark": ("study", {"AccessionNumber": "12345?"}, by(AccessionNumber=[f"12345{n}" for n in range(10)])),
    "date range": ("study", {"StudyDate": "20200103-20200106"}, dated("20200103", "20200106")),
    "date from": ("study", {"StudyDate": "20200110-"}, dated("20200110", "9")),
    "date until": ("study", {"StudyDate": "-20200102"}, dated("0", "20200102")),
    "code": ("series", {"Modality": "CT"}, by(Modality=["CT"])),
    "text": ("series", {"SeriesDescription": "LOCALIZER"}, by(SeriesDescription=["LOCALIZER"])),
    "SOP class": ("instance", {"SOPClassUID": MR_IMAGE}, by(SOPClassUID=[MR_IMAGE])),
    "two attributes": ("study", {"PatientID": "SUITE05", "StudyDate": JANUARY}, by(PatientID=["SUITE05"])),
    "contradicting attributes": ("study", {"PatientID": "SUITE05", "StudyDate": "20190101"}, nobody),
    "study attribute of series": ("series", {"PatientID": "SUITE01"}, by(PatientID=["SUITE01"])),
    "study attribute of instances": ("instance", {"AccessionNumber": "123451"}, by(AccessionNumber=["123451"])),
    "nobody": ("study", {"PatientID": "NOBODY"}, nobody),
    "empty value": ("study", {"PatientID": ""}, lambda dataset: True),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters(backend, client, content, name):
    level, wanted, matches = FILTERS[name]
    expected = content.uids(level, matches)
    filters = wanted(content) if callable(wanted) else wanted
    lack = backend.lack(f"filter: {name}")
    if lack is None or lack.rows is None:
        with backend.having(f"filter: {name}"):
            rows = search(client, level, search_filters=filters, get_remaining=True)
            assert sorted(uids_of(rows, level)) == sorted(expected)
        return
    instead = {
        "all": content.uids(level),
        "none": set(),
        "undated too": expected | content.uids(level, lambda dataset: not dataset.get("StudyDate")),
    }[lack.rows]
    assert instead != expected
    assert set(uids_of(search(client, level, search_filters=filters, get_remaining=True), level)) == instead


def test_further_attributes_are_returned(backend, client, content):
    held = content.small[0]
    wanted = {"SOPInstanceUID": held.uids[2]}
    for feature, fields in (("fields", ["KVP", "00180050"]), ("all fields", ["all"])):
        with backend.having(feature):
            (row,) = client.search_for_instances(*held.uids[:2], fields=fields, search_filters=wanted)
            assert row["00180060"]["Value"] == [120]
            assert "Value" in row["00180050"]


def test_limit_and_offset(backend, client, content):
    shortfall = backend.spec.shortfall
    assert client.search_for_studies(limit=0) == []
    assert len(client.search_for_studies(limit=3)) == 3 - shortfall
    with backend.having("paging"):
        rest = list(client.iter_search_for_studies(offset=12, page_size=3))
        assert len(rest) == len(content.uids("study")) - 12
    # One request cannot show that an archive ignores the offset.
    if backend.lack("paging") is None:
        pages = client.search_for_studies(limit=4), client.search_for_studies(limit=4, offset=4)
        assert [len(set(uids_of([*pages[0], *page], "study"))) for page in pages] == [4 - shortfall, 8 - 2 * shortfall]
        assert client.search_for_studies(offset=1000) == []


def test_one_request_gives_what_the_archive_gives_at_once(backend, client, content):
    everything = len(content.uids("instance"))
    rows = client.search_for_instances()
    assert len(rows) == min(backend.spec.page_cap or everything, everything)


def test_a_limit_is_a_limit_over_all_pages(backend, client, content):
    with backend.having("paging"):
        rows = client.search_for_studies(limit=13, get_remaining=True)
        assert len(set(uids_of(rows, "study"))) == len(rows) == 13
        rows = list(client.iter_search_for_instances(limit=29, page_size=4))
        assert len(set(uids_of(rows, "instance"))) == len(rows) == 29
        rows = list(client.iter_search_for_studies(limit=5, offset=10, page_size=2))
        assert len(set(uids_of(rows, "study"))) == 5


def test_iterating_is_lazy(backend, client):
    before = backend.requests_made(client)
    found = list(islice(client.iter_search_for_studies(page_size=2), 2))
    assert len(found) == 2
    # One page, and perhaps a token for it.
    assert backend.requests_made(client) - before <= (2 if backend.is_web else 0)


@pytest.mark.parametrize("level", LEVELS)
def test_counting(backend, client, content, level):
    expected = len(content.uids(level)) if backend.spec.counts else None
    assert client.count(make_query(level)) == expected
    query = make_query("study", search_filters={"PatientID": "SUITE07"})
    assert client.count(query) == (1 if backend.spec.counts else None)


def test_fuzzy_matching_and_further_parameters_are_sent_along(backend, client):
    rows = client.search_for_studies(fuzzymatching=True, search_filters={"PatientName": "Suite^Patient06"})
    patients = [row["00100020"]["Value"] for row in rows]
    if backend.lack("fuzzy matching by spelling") is None:
        assert patients == [["SUITE06"]]
    else:
        assert ["SUITE06"] in patients
        assert len(patients) > 1
    (row,) = client.search_for_studies(additional_params={"PatientID": "SUITE06"}, get_remaining=True)
    assert row["00100020"]["Value"] == ["SUITE06"]


def test_rows_become_datasets(client, content):
    held = content.study(4)[0]
    (row,) = client.search_for_studies(search_filters={"StudyInstanceUID": held.uids[0]})
    dataset = load_json_dataset(row)
    assert dataset.StudyInstanceUID == held.uids[0]
    assert str(dataset.PatientName) == "Suite^Patient04"
    assert (client.lookup_keyword("00100020"), client.lookup_tag("PatientID")) == ("PatientID", "00100020")


# Retrieve -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_instances_come_as_they_are_stored(client, content, level):
    study = content.study(1)
    reference = {"study": Resource(study[0].uids[0]), "series": study[0].reference.series}.get(
        level, study[0].reference
    )
    expected = {held.reference: held.content for held in study if reference.contains(held.reference)}
    instances = list(client.iter_instances(reference))
    assert {instance.reference: instance.content for instance in instances} == expected
    assert len(instances) == len(expected)
    assert {instance.transfer_syntax_uid for instance in instances} == {EXPLICIT}
    assert {instance.sop_class_uid for instance in instances} == {
        held.dataset.SOPClassUID for held in study if reference.contains(held.reference)
    }
    assert client.missing_instances(reference, instances) == []


@pytest.mark.parametrize("name", ["ct", "loop", "dose", "implicit", "jpeg_2000", "report"])
def test_every_encoding_comes_as_it_is_stored(client, content, name):
    held = getattr(content, name)
    (instance,) = client.iter_instances(held.reference)
    assert instance.content == held.content
    assert instance.transfer_syntax_uid == held.dataset.file_meta.TransferSyntaxUID


def test_instances_come_as_datasets(client, content):
    study = content.study(1)
    uids = {held.uids[2] for held in study}
    assert {str(dataset.SOPInstanceUID) for dataset in client.retrieve_study(study[0].uids[0])} == uids
    assert {str(dataset.SOPInstanceUID) for dataset in client.iter_study(study[0].uids[0])} == uids
    for datasets in (client.retrieve_series(*study[0].uids[:2]), client.iter_series(*study[0].uids[:2])):
        (dataset,) = datasets
        assert dataset == study[0].dataset
    assert client.retrieve_instance(*study[1].uids) == study[1].dataset


def test_a_long_series(client, content):
    held = content.study(0)
    assert len(held) == 14
    instances = {one.reference.sop_instance_uid: one.content for one in client.iter_instances(held[0].reference.series)}
    assert instances == {one.uids[2]: one.content for one in held}


def test_large_instances_become_files(client, content, tmp_path):
    (instance,) = client.iter_instances(content.ct.reference, max_element_bytes=1000, spool_directory=str(tmp_path))
    assert (instance.content, instance.size) == (None, len(content.ct.content))
    assert instance.read() == content.ct.content
    with pytest.raises(ValueError, match="spool_directory"):
        list(client.iter_instances(content.ct.reference, max_element_bytes=1000))


def test_a_transfer_syntax_can_be_asked_for(backend, client, content):
    kept = client.retrieve_instance(
        *content.jpeg_2000.uids, media_types=(("application/dicom", "1.2.840.10008.1.2.4.90"),)
    )
    assert kept == content.jpeg_2000.dataset
    wanted = (("application/dicom", EXPLICIT),)
    assert client.retrieve_instance(*content.ct.uids, media_types=wanted) == content.ct.dataset
    with backend.having("decoding of instances"):
        decoded = client.retrieve_instance(*content.loop.uids, media_types=wanted)
        assert decoded.file_meta.TransferSyntaxUID == EXPLICIT
        assert decoded.SOPInstanceUID == content.loop.uids[2]
        assert len(decoded.PixelData) == 30 * 240 * 320 * 3


def test_an_impossible_transfer_syntax_is_refused_not_replaced(client, content):
    with pytest.raises(requests.HTTPError) as caught:
        client.retrieve_instance(*content.ct.uids, media_types=(("application/dicom", "1.2.840.10008.1.2.4.110"),))
    assert caught.value.status in (400, 406)


def test_giving_up_half_way_leaves_the_client_usable(client, content):
    for _ in range(5):
        found = client.iter_instances(content.small[0].reference.series)
        assert next(found).reference.study_instance_uid == content.small[0].uids[0]
        found.close()
    assert len(list(client.iter_instances(content.ct.reference))) == 1


# Metadata -------------------------------------------------------------------------------------------------------------


def test_metadata(backend, client, content):
    study = content.study(1)
    one, two = sorted(study, key=lambda held: held.uids[2])
    rows = sorted(client.retrieve_study_metadata(one.uids[0]), key=lambda row: row["00080018"]["Value"][0])
    assert [Resource.of(row) for row in rows] == [one.reference, two.reference]
    assert client.retrieve_series_metadata(*one.uids[:2]) == [rows[0]]
    assert client.retrieve_instance_metadata(*one.uids) == rows[0]
    assert list(client.iter_metadata(one.reference.series)) == list(client.iter_metadata(one.reference)) == [rows[0]]
    assert len(list(client.iter_study_metadata(one.uids[0]))) == len(list(client.iter_metadata(Resource(one.uids[0]))))
    assert list(client.iter_series_metadata(*one.uids[:2])) == [rows[0]]
    dataset = load_json_dataset(rows[0])
    for keyword in ("PatientName", "StudyDate", "PixelSpacing", "Rows", "SOPClassUID", "ImageType", "KVP"):
        assert dataset[keyword] == one.dataset[keyword]


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # as the file has it
@pytest.mark.parametrize("name", ["ct", "loop", "dose", "implicit", "report"])
def test_metadata_of_real_files(client, content, name):
    held = getattr(content, name)
    row = client.retrieve_instance_metadata(*held.uids)
    assert Resource.of(row) == held.reference
    assert [str(number) for number in row["00080016"]["Value"]] == [str(held.dataset.SOPClassUID)]
    assert load_json_dataset(row).SOPInstanceUID == held.uids[2]


def test_metadata_of_a_long_series(client, content):
    held = content.study(0)
    rows = client.retrieve_series_metadata(*held[0].uids[:2])
    assert sorted(uids_of(rows, "instance")) == sorted(one.uids[2] for one in held)


# Frames ---------------------------------------------------------------------------------------------------------------


def test_frames_come_in_the_order_asked_for_as_they_are_stored(backend, client, content):
    stored = content.loop.frames()
    with backend.having("frames"):
        frames = list(client.iter_frames(Resource(*content.loop.uids, (30, 1, 30, 2))))
        assert [frame.reference.frames for frame in frames] == [(30,), (1,), (30,), (2,)]
        assert [frame.content for frame in frames] == [stored[29], stored[0], stored[29], stored[1]]
        assert {frame.transfer_syntax_uid for frame in frames} == {"1.2.840.10008.1.2.4.50"}
        assert {frame.media_type for frame in frames} == {"image/jpeg"}


def test_all_frames(backend, client, content):
    with backend.having("frames"):
        assert client.retrieve_instance_frames(*content.dose.uids, list(range(1, 16))) == content.dose.frames()
        numbers = list(range(15, 0, -1))
        assert list(client.iter_instance_frames(*content.dose.uids, numbers)) == content.dose.frames()[::-1]
        assert client.retrieve_instance_frames(*content.ct.uids, [1]) == content.ct.frames()


def test_frames_in_the_form_asked_for(backend, client, content):
    stored = content.jpeg_2000.frames()
    with backend.having("frames"):
        for media_types in (("image/jp2",), ("image/x-jpls", "image/jp2"), (("image/jp2", "1.2.840.10008.1.2.4.90"),)):
            assert client.retrieve_instance_frames(*content.jpeg_2000.uids, [2, 1], media_types) == stored[::-1]
        decoded = client.retrieve_instance_frames(*content.loop.uids, [1, 2])
        assert [len(frame) for frame in decoded] == [240 * 320 * 3] * 2
    with backend.having("any image format"):
        assert client.retrieve_instance_frames(*content.jpeg_2000.uids, [2, 1], ("image/*",)) == stored[::-1]


def test_a_frame_that_is_not_there(backend, client, content):
    status = backend.spec.missing_frame
    for numbers in ([31], [1, 31]):
        with pytest.raises(requests.HTTPError) as caught:
            client.retrieve_instance_frames(*content.loop.uids, numbers)
        assert caught.value.status in status
    with pytest.raises(requests.HTTPError):
        client.retrieve_instance_frames(*content.report.uids, [1])


# Bulk data ------------------------------------------------------------------------------------------------------------


def test_bulk_data_by_its_address(backend, client, content):
    pixels = content.ct.dataset.PixelData
    with backend.having("bulk data"):
        url = client.retrieve_instance_metadata(*content.ct.uids)["7FE00010"]["BulkDataURI"]
        assert url.startswith(client.base_url)
        assert client.retrieve_bulkdata(url) == [pixels]
        assert list(client.iter_bulkdata(url)) == [pixels]
        relative = url[url.index("studies/") :]
        assert client.retrieve_bulkdata(relative) == [pixels]
        for byte_range in ((10, 19), (0, 0), (32_000, None), (32_760, 32_767)):
            first, last = byte_range
            expected = pixels[first : None if last is None else last + 1]
            assert client.retrieve_bulkdata(url, byte_range=byte_range) == [expected]


def test_bulk_data_of_compressed_images(backend, client, content):
    with backend.having("bulk data of compressed images"):
        url = client.retrieve_instance_metadata(*content.loop.uids)["7FE00010"]["BulkDataURI"]
        parts = client.retrieve_bulkdata(url)
        # Some servers put the basic offset table before the fragments.
        assert parts[-30:] == content.loop.frames()


# Rendered -------------------------------------------------------------------------------------------------------------

KINDS = {b"\xff\xd8\xff": "image/jpeg", b"\x89PN": "image/png", b"GIF": "image/gif"}


@pytest.mark.parametrize("level", ["study", "series", "instance", "frame"])
def test_rendered_images(backend, client, content, level):
    study, series, instance = content.loop.uids
    reference = {
        "study": Resource(study),
        "series": Resource(study, series),
        "instance": content.loop.reference,
        "frame": Resource(study, series, instance, (3,)),
    }[level]
    with backend.having(f"rendered {level}"):
        image = client.retrieve_rendered(reference, media_types=("image/jpeg",), params={"quality": 90})
        assert KINDS[image.content[:3]] == image.media_type == "image/jpeg"
        image = client.retrieve_rendered(reference, media_types=("image/png",), params={"viewport": (32, 32)})
        assert KINDS[image.content[:3]] == image.media_type == "image/png"
        image = client.retrieve_rendered(reference)
        assert KINDS[image.content[:3]] == image.media_type


def test_rendered_images_by_name(backend, client, content):
    uids = content.ct.uids
    for level, image in (
        ("study", lambda: client.retrieve_study_rendered(uids[0])),
        ("series", lambda: client.retrieve_series_rendered(*uids[:2], params={"window": "40,400"})),
        ("instance", lambda: client.retrieve_instance_rendered(*uids, media_types=("image/png",))),
        ("frame", lambda: client.retrieve_instance_frames_rendered(*uids, [1], media_types=("image/jpeg",))),
    ):
        with backend.having(f"rendered {level}"):
            assert image()[:3] in KINDS


@pytest.mark.parametrize("level", ["study", "series", "instance"])
def test_thumbnails(backend, client, content, level):
    study, series, _ = content.ct.uids
    references = {"study": Resource(study), "series": Resource(study, series), "instance": content.ct.reference}
    with backend.having("thumbnails"):
        image = client.retrieve_rendered(references[level], thumbnail=True)
        assert KINDS[image.content[:3]] == image.media_type


# What is not there, and what cannot be --------------------------------------------------------------------------------

MISSING: dict[str, Callable[[Any], Any]] = {
    "study": lambda client: client.retrieve_study(UNKNOWN[0]),
    "series": lambda client: client.retrieve_series(*UNKNOWN[:2]),
    "instance": lambda client: client.retrieve_instance(*UNKNOWN),
    "study metadata": lambda client: client.retrieve_study_metadata(UNKNOWN[0]),
    "series metadata": lambda client: client.retrieve_series_metadata(*UNKNOWN[:2]),
    "instance metadata": lambda client: client.retrieve_instance_metadata(*UNKNOWN),
    "frames": lambda client: client.retrieve_instance_frames(*UNKNOWN, [1]),
    "rendered": lambda client: client.retrieve_instance_rendered(*UNKNOWN),
    "iterated": lambda client: list(client.iter_instances(Resource(*UNKNOWN))),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_not_there_is_404(client, name):
    with pytest.raises(requests.HTTPError) as caught:
        MISSING[name](client)
    assert caught.value.status == 404
    assert caught.value.response is None or caught.value.response.status_code == 404
    assert UNKNOWN[0] in str(caught.value)


def test_an_instance_in_another_study_is_not_there(client, content):
    study, series, instance = content.ct.uids
    for uids in ((study, series, UNKNOWN[2]), (content.dose.uids[0], series, instance)):
        with pytest.raises(requests.HTTPError) as caught:
            client.retrieve_instance(*uids)
        assert caught.value.status == 404


def test_searches_below_what_is_not_there_find_nothing(client):
    assert client.search_for_series(UNKNOWN[0]) == []
    assert client.search_for_instances(UNKNOWN[0]) == []
    assert client.search_for_instances(*UNKNOWN[:2]) == []
    assert client.search_for_studies(search_filters={"StudyInstanceUID": UNKNOWN[0]}, get_remaining=True) == []


BAD: list[Callable[[Any], Any]] = [
    lambda client: client.search_for_studies(limit=-1),
    lambda client: client.search_for_studies(limit="3"),
    lambda client: client.search_for_studies(limit=True),
    lambda client: client.search_for_studies(offset=-1),
    lambda client: client.search_for_studies(offset=1.0),
    lambda client: client.search_for_studies(fuzzymatching="yes"),
    lambda client: client.search_for_studies(fields="PatientID"),
    lambda client: client.search_for_studies(fields=[1]),
    lambda client: client.search_for_studies(fields=["PatientIdentity"]),
    lambda client: client.search_for_studies(search_filters={"PatientIdentity": "1"}),
    lambda client: client.search_for_studies(search_filters={1: "1"}),
    lambda client: client.search_for_studies(search_filters={"PatientID": object()}),
    lambda client: client.search_for_studies(search_filters={"StudyInstanceUID": []}),
    lambda client: client.search_for_studies(additional_params={"limit": 3}),
    lambda client: client.iter_search_for_studies(limit=-1),
    lambda client: client.search_for_series("1.2/../../admin"),
    lambda client: client.search_for_instances("1.2.3", "..%2f"),
    lambda client: client.search_for_instances(series_instance_uid="1.2/3"),
    lambda client: client.retrieve_study("1.2/../../admin"),
    lambda client: client.retrieve_study(None),
    lambda client: client.retrieve_study(""),
    lambda client: client.retrieve_study(123),
    lambda client: client.retrieve_series("1.2.3", "?x"),
    lambda client: client.retrieve_instance("1.2.3", "1.2.4", "1.2.5#"),
    lambda client: client.retrieve_instance("1.2.3", "1.2.4"),
    lambda client: client.retrieve_instance("1.2.3", "1.2.4", "1.2.5", media_types="application/dicom"),
    lambda client: client.retrieve_instance("1.2.3", "1.2.4", "1.2.5", media_types=("dicom",)),
    lambda client: client.retrieve_instance("1.2.3", "1.2.4", "1.2.5", media_types=(("application/dicom", "x\r\ny"),)),
    lambda client: client.retrieve_instance("1.2.3", "1.2.4", "1.2.5", media_types=("application/dicom", "image/jp2")),
    lambda client: client.retrieve_study("1.2.3", media_types=("image/jpeg",)),
    lambda client: client.retrieve_study_metadata("1.2 3"),
    lambda client: client.retrieve_series_metadata("1.2.3", "é"),
    lambda client: client.retrieve_instance_metadata("1.2.3", "1.2.4", "1" * 65),
    lambda client: client.retrieve_instance_frames("1.2.3", "1.2.4", "1.2.5", []),
    lambda client: client.retrieve_instance_frames("1.2.3", "1.2.4", "1.2.5", [0]),
    lambda client: client.retrieve_instance_frames("1.2.3", "1.2.4", "1.2.5", ["1"]),
    lambda client: client.retrieve_instance_frames("1.2.3", "1.2.4", "1.2.5", 1),
    lambda client: client.retrieve_instance_frames("1.2.3", "1.2.4", "1.2.5", [1], media_types=("application/dicom",)),
    lambda client: client.retrieve_instance_frames_rendered("1.2.3", "1.2.4", "1.2.5", []),
    lambda client: client.retrieve_instance_rendered("1.2.3", "1.2.4", "../5"),
    lambda client: client.retrieve_bulkdata(""),
    lambda client: client.retrieve_bulkdata("ftp://127.0.0.1/studies/1"),
    lambda client: client.delete_study("1.2/series"),
    lambda client: client.delete_series("1.2.3", ""),
    lambda client: client.delete_instance("1.2.3", "1.2.4", None),
    lambda client: client.store_instances([], study_instance_uid="1.2/.."),
    lambda client: client.iter_store_instances([], on_existing="always"),
    lambda client: client.iter_store_instances([], verify="hope"),
    lambda client: Resource("1.2.3", None, "1.2.4"),
    lambda client: client.iter_instances(Resource("1.2.3", "1.2.4", "1.2.5", (1,))),
    lambda client: client.iter_frames(Resource("1.2.3", "1.2.4", "1.2.5")),
    lambda client: client.set_chunk_size(0),
]


def test_bad_arguments_are_refused_before_anything_is_sent(backend, client):
    before = backend.requests_made(client), len(backend.server.records) if backend.server else 0
    for number, call in enumerate(BAD):
        with pytest.raises((ValueError, TypeError)) as caught:
            call(client)
        assert not isinstance(caught.value, requests.RequestException), number
    after = backend.requests_made(client), len(backend.server.records) if backend.server else 0
    assert after == before


# Elsewhere ------------------------------------------------------------------------------------------------------------


def test_endpoints_travel_and_connect_again(backend, content):
    endpoint = pickle.loads(pickle.dumps(backend.endpoint))
    with endpoint.connect() as client:
        (instance,) = client.iter_instances(content.ct.reference)
        assert instance.content == content.ct.content


def test_eight_threads_share_a_client(backend, client, content):
    held = content.small[:8] * 2

    def work(one: Any) -> tuple[bytes, list[str], str]:
        (instance,) = client.iter_instances(one.reference)
        rows = client.search_for_instances(*one.uids[:2], search_filters={"SOPInstanceUID": one.uids[2]})
        metadata = client.retrieve_instance_metadata(*one.uids)
        return instance.content, uids_of(rows, "instance"), metadata["00080018"]["Value"][0]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, held))
    assert found == [(one.content, [one.uids[2]], one.uids[2]) for one in held]


def test_a_limit_of_requests_per_second_is_borne(serve, filled_folder, content):
    # AWS HealthImaging's own are 50 and 100.
    server = serve(filled_folder, behaviour=replace(BEHAVIOURS["healthimaging"], rate_limit=(2.0, 1)))
    patient = RetryPolicy(max_attempts=20, initial_delay=0.05, max_delay=0.1)
    with server.endpoint(profile="healthimaging", retry=patient).connect() as client:
        # Without a flat search, study and series are walked: more requests than are allowed at once.
        rows = client.search_for_instances(search_filters={"PatientID": "SUITE01"}, get_remaining=True)
    assert sorted(uids_of(rows, "instance")) == sorted(held.uids[2] for held in content.study(1))
    assert 429 in [record.status for record in server.records]
