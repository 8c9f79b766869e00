"""Searches of folders: filters at their level, default and computed attributes, order, paging, totals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicomweb_io.dicom.json_decode import first_text, first_value, values
from dicomweb_io.elements import Resource
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.queries import make_query
from tests.unit.files.making import Put


def uids(rows: list[dict[str, Any]], keyword: str = "SOPInstanceUID") -> list[str]:
    return [first_text(row, keyword) for row in rows]


@pytest.fixture
def archive(folder: Path, put: Put) -> DICOMfileClient:
    """Two studies: one with a CT and an MR series, one with a CT series."""
    one = {
        "PatientID": "A1", "PatientName": "Müller^Änne", "StudyDate": "20240105", "StudyTime": "101500",
        "AccessionNumber": "ACC1", "StudyDescription": "HEAD", "StudyID": "S1",
    }  # fmt: skip
    two = {"PatientID": "B2", "PatientName": "Yamada^Tarou=山田^太郎", "StudyDate": "20240301"}
    request = Dataset()
    request.ScheduledProcedureStepID = "STEP1"
    request.RequestedProcedureID = "PROC1"
    for number in range(1, 4):
        put(
            f"x/{number}", "1.1", "1.1.1", f"1.1.1.{number}", **one,
            Modality="CT", SeriesNumber=2, InstanceNumber=4 - number, Rows=10, Columns=20 + number,
            SeriesDescription="AXIAL", RequestAttributesSequence=[request], Manufacturer="ACME",
            ImageType=["ORIGINAL", "PRIMARY"],
        )  # fmt: skip
    put("x/mr", "1.1", "1.1.2", "1.1.2.1", **one, Modality="MR", SeriesNumber=1, InstanceNumber=1)
    put(
        "y", "1.2", "1.2.1", "1.2.1.1", **two, StudyDescription="FOOT",
        Modality="CT", SeriesNumber=1, InstanceNumber=1, SliceThickness="2.5",
    )  # fmt: skip
    return DICOMfileClient(folder)


def test_default_and_computed_attributes_of_studies(archive: DICOMfileClient) -> None:
    one, two = archive.search_for_studies()
    assert uids([one, two], "StudyInstanceUID") == ["1.1", "1.2"]
    assert values(one, "ModalitiesInStudy") == ["CT", "MR"]
    assert first_value(one, "NumberOfStudyRelatedSeries") == 2
    assert first_value(one, "NumberOfStudyRelatedInstances") == 4
    assert first_text(one, "InstanceAvailability") == "ONLINE"
    assert first_text(one, "RetrieveURL") == archive.base_url + "/studies/1.1"
    assert first_value(one, "PatientName") == {"Alphabetic": "Müller^Änne"}
    assert first_value(two, "PatientName") == {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}
    assert first_text(one, "AccessionNumber") == "ACC1"
    assert "00081030" not in one
    assert list(one) == sorted(one)


def test_default_and_computed_attributes_of_series(archive: DICOMfileClient) -> None:
    rows = archive.search_for_series()
    # By number within their study.
    assert uids(rows, "SeriesInstanceUID") == ["1.1.2", "1.1.1", "1.2.1"]
    ct = rows[1]
    assert first_text(ct, "Modality") == "CT"
    assert first_value(ct, "NumberOfSeriesRelatedInstances") == 3
    assert first_text(ct, "SeriesDescription") == "AXIAL"
    assert first_text(ct, "RequestAttributesSequence.ScheduledProcedureStepID") == "STEP1"
    assert first_text(ct, "RetrieveURL") == archive.base_url + "/studies/1.1/series/1.1.1"
    # A search over all studies carries the study's attributes, one within a study does not.
    assert first_text(ct, "PatientID") == "A1"
    within = archive.search_for_series("1.1")
    assert uids(within, "SeriesInstanceUID") == ["1.1.2", "1.1.1"]
    assert "00100020" not in within[0]
    assert first_text(within[0], "StudyInstanceUID") == "1.1"


def test_default_and_computed_attributes_of_instances(archive: DICOMfileClient) -> None:
    rows = archive.search_for_instances()
    assert uids(rows) == ["1.1.1.3", "1.1.1.2", "1.1.1.1", "1.1.2.1", "1.2.1.1"]
    row = rows[0]
    assert (first_value(row, "InstanceNumber"), first_value(row, "Rows"), first_value(row, "Columns")) == (1, 10, 23)
    assert first_text(row, "AvailableTransferSyntaxUID") == "1.2.840.10008.1.2.1"
    assert first_text(row, "Modality") == "CT"
    assert first_text(row, "PatientID") == "A1"
    assert Resource.of(row) == Resource("1.1", "1.1.1", "1.1.1.3")
    assert first_text(row, "RetrieveURL") == f"{archive.base_url}/{Resource.of(row).uri}"
    inside = archive.search_for_instances("1.1", "1.1.1")
    assert uids(inside) == uids(rows[:3])
    assert "00080060" not in inside[0]
    assert all(list(row) == sorted(row) for row in rows + inside)


def test_rows_may_be_changed_without_changing_the_archive(archive: DICOMfileClient) -> None:
    first = archive.search_for_instances()[0]
    first["00100020"]["Value"][0] = "changed"
    first.clear()
    assert first_text(archive.search_for_instances()[0], "PatientID") == "A1"


@pytest.mark.parametrize(
    ("level", "filters", "expected"),
    [
        ("study", {"PatientID": "A1"}, ["1.1"]),
        ("study", {"PatientID": "?1"}, ["1.1"]),
        ("study", {"PatientName": "müller*"}, ["1.1"]),
        ("study", {"PatientName": "山田*"}, ["1.2"]),
        ("study", {"StudyDate": "20240101-20240131"}, ["1.1"]),
        ("study", {"StudyDate": "20240201-"}, ["1.2"]),
        ("study", {"StudyDescription": "FO*"}, ["1.2"]),
        ("study", {"ModalitiesInStudy": "MR"}, ["1.1"]),
        ("study", {"ModalitiesInStudy": "MR\\US"}, ["1.1"]),
        ("study", {"ModalitiesInStudy": "CT"}, ["1.1", "1.2"]),
        ("study", {"StudyInstanceUID": "1.2,1.9"}, ["1.2"]),
        ("study", {"StudyInstanceUID": "1.1\\1.2"}, ["1.1", "1.2"]),
        ("study", {"SeriesInstanceUID": "1.1.1"}, ["1.1"]),
        ("study", {"SOPInstanceUID": "1.1.1.2"}, ["1.1"]),
        ("study", {"NumberOfStudyRelatedSeries": "2"}, ["1.1"]),
        ("study", {"PatientID": ""}, ["1.1", "1.2"]),
        ("study", {"AccessionNumber": "ACC1", "PatientID": "B2"}, []),
        ("series", {"Modality": "CT"}, ["1.1.1", "1.2.1"]),
        ("series", {"Modality": "CT", "PatientID": "B2"}, ["1.2.1"]),
        ("series", {"ModalitiesInStudy": "MR"}, ["1.1.2", "1.1.1"]),
        ("series", {"RequestAttributesSequence.ScheduledProcedureStepID": "STEP?"}, ["1.1.1"]),
        ("series", {"00400275.00400009": "STEP1", "00400275.00401001": "OTHER"}, []),
        ("series", {"Manufacturer": "ACME"}, ["1.1.1"]),
        ("series", {"SOPInstanceUID": "1.2.1.1"}, ["1.2.1"]),
        ("instance", {"InstanceNumber": "1"}, ["1.1.1.3", "1.1.2.1", "1.2.1.1"]),
        ("instance", {"InstanceNumber": "1", "Modality": "CT"}, ["1.1.1.3", "1.2.1.1"]),
        ("instance", {"SliceThickness": "2.50"}, ["1.2.1.1"]),
        ("instance", {"ImageType": "PRIMARY", "Columns": "22"}, ["1.1.1.2"]),
        ("instance", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "StudyDate": "-20240201"},
         ["1.1.1.3", "1.1.1.2", "1.1.1.1", "1.1.2.1"]),
        ("instance", {"SOPClassUID": "1.2.3"}, []),
        ("instance", {"SOPInstanceUID": "1.1.1.1,1.2.1.1,9.9"}, ["1.1.1.1", "1.2.1.1"]),
        ("instance", {"SOPInstanceUID": "1.1.1.1", "StudyInstanceUID": "1.2"}, []),
        ("instance", {"AvailableTransferSyntaxUID": "1.2.840.10008.1.2.1", "Rows": "10", "InstanceNumber": "2"},
         ["1.1.1.2"]),
    ],
)  # fmt: skip
def test_filters(archive: DICOMfileClient, level: str, filters: dict[str, str], expected: list[str]) -> None:
    keyword = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID", "instance": "SOPInstanceUID"}[level]
    query = make_query(level, search_filters=filters)  # type: ignore[arg-type]
    page = archive.search_page(query)
    assert uids(page.rows, keyword) == expected
    assert page.total == len(expected) == archive.count(query)


def test_fuzzy_matching_and_empty_value_matching(archive: DICOMfileClient) -> None:
    assert uids(archive.search_for_studies(True, search_filters={"PatientName": "anne"}), "StudyInstanceUID") == ["1.1"]
    assert archive.search_for_studies(search_filters={"PatientName": "anne"}) == []
    empty = {"emptyvaluematching": "true"}
    found = archive.search_for_studies(search_filters={"StudyTime": '""'}, additional_params=empty)
    assert uids(found, "StudyInstanceUID") == ["1.2"]


def test_a_filter_is_never_ignored(archive: DICOMfileClient) -> None:
    with pytest.raises(ValueError, match="PatientsID"):
        archive.search_for_studies(search_filters={"PatientsID": "A1"})
    with pytest.raises(ValueError, match="no meaning"):
        archive.search_for_studies(additional_params={"orderby": "StudyDate"})
    with pytest.raises(ValueError, match="StudyDate"):
        archive.search_for_studies(search_filters={"StudyDate": "yesterday"})
    found = archive.search_for_studies(additional_params={"PatientID": "B2", "includefield": "StudyDescription"})
    assert uids(found, "StudyInstanceUID") == ["1.2"]
    assert first_text(found[0], "StudyDescription") == "FOOT"


def test_includefield(archive: DICOMfileClient) -> None:
    row = archive.search_for_studies(fields=["StudyDescription", "SOPInstanceUID", "Manufacturer"])[0]
    assert first_text(row, "StudyDescription") == "HEAD"
    # Attributes of lower levels are not returned.
    assert "00080018" not in row
    assert "00080070" not in row
    row = archive.search_for_instances("1.1", "1.1.1", fields=["00080070", "RequestAttributesSequence.00400009"])[0]
    assert first_text(row, "Manufacturer") == "ACME"
    assert row["00400275"]["Value"] == [{"00400009": {"vr": "SH", "Value": ["STEP1"]}}]
    everything = archive.search_for_instances("1.1", "1.1.1", fields=["all"])[0]
    assert values(everything, "ImageType") == ["ORIGINAL", "PRIMARY"]
    assert "00080070" in everything
    assert set(archive.search_for_studies(fields=["all"])[0]) >= {"00081030", "00100020"}
    assert "00080070" not in archive.search_for_studies(fields=["all"])[0]
    assert "00080070" in archive.search_for_series(fields=["all"])[1]


def test_filters_are_returned(archive: DICOMfileClient) -> None:
    row = archive.search_for_instances(search_filters={"StudyDescription": "HEAD", "Manufacturer": "ACME"})[0]
    assert (first_text(row, "StudyDescription"), first_text(row, "Manufacturer")) == ("HEAD", "ACME")


def test_computed_attributes_can_be_asked_for_within_a_study(archive: DICOMfileClient) -> None:
    fields = ["ModalitiesInStudy", "NumberOfStudyRelatedInstances", "NumberOfSeriesRelatedInstances"]
    (row, _) = archive.search_for_series("1.1", fields=fields)
    assert (values(row, "ModalitiesInStudy"), first_value(row, "NumberOfStudyRelatedInstances")) == (["CT", "MR"], 4)
    rows = archive.search_for_instances("1.1", "1.1.1", fields=fields)
    assert [first_value(row, "NumberOfSeriesRelatedInstances") for row in rows] == [3, 3, 3]
    (row,) = archive.search_for_instances("1.1", "1.1.2", search_filters={"ModalitiesInStudy": "MR"})
    assert values(row, "ModalitiesInStudy") == ["CT", "MR"]
    assert "00201208" not in row


def test_pages(archive: DICOMfileClient) -> None:
    query = make_query("instance")
    everything = uids(archive.search_page(query).rows)
    for offset in (0, 2, 4, 6):
        assert uids(archive.search_page(query, offset=offset, limit=2).rows) == everything[offset : offset + 2]
    page = archive.search_page(query, offset=2, limit=2)
    assert (page.total, page.more, page.offset, page.limit) == (5, True, 2, 2)
    assert archive.search_page(query, offset=4, limit=2).more is False
    assert archive.search_page(query, offset=9).rows == []
    assert uids(list(archive.iter_search(query, offset=1, limit=3, page_size=1))) == everything[1:4]
    with pytest.raises(ValueError, match="limit"):
        archive.search_page(query, limit=-1)


def test_rows_that_vanish_between_pages_are_left_out_and_none_comes_twice(
    folder: Path, archive: DICOMfileClient
) -> None:
    rows = archive.iter_search(make_query("instance"), page_size=2)
    seen = [first_text(next(rows), "SOPInstanceUID")]
    (folder / "x" / "mr").unlink()
    archive.refresh()
    seen += uids(list(rows))
    assert seen == ["1.1.1.3", "1.1.1.2", "1.1.1.1", "1.2.1.1"]


def test_names_in_all_character_sets(charsets: list[Path], folder: Path) -> None:
    expected: dict[str, str] = {}
    for number, path in enumerate(charsets):
        dataset = pydicom.dcmread(path, force=True)
        # Elements that nobody looks at are written as they were read.
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.2.{number}", f"1.2.{number}.1"
        dataset.SOPInstanceUID = f"1.2.{number}.1.1"
        dataset.save_as(folder / path.name)
        expected[dataset.StudyInstanceUID] = str(pydicom.dcmread(path, force=True).get("PatientName", ""))
    client = DICOMfileClient(folder)
    assert len(expected) >= 15
    found = {first_text(row, "StudyInstanceUID"): row for row in client.search_for_studies()}
    assert found.keys() == expected.keys()
    for uid, name in expected.items():
        groups = first_value(found[uid], "PatientName") or {}
        texts = [groups.get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")]
        assert texts == (name.split("=") + ["", "", ""])[:3]
        for text in filter(None, texts):
            for wanted in (text, text[:3] + "*", text.upper()):
                rows = client.search_for_studies(search_filters={"PatientName": wanted})
                assert uid in uids(rows, "StudyInstanceUID"), (text, wanted)
            exact = uids(client.search_for_studies(search_filters={"PatientName": text}), "StudyInstanceUID")
            folded = {other for other in expected if text.casefold() in expected[other].casefold().split("=")}
            assert set(exact) == folded


def test_searching_is_lazy_enough_to_stop(archive: DICOMfileClient) -> None:
    assert first_text(next(archive.iter_search_for_instances()), "SOPInstanceUID") == "1.1.1.3"
