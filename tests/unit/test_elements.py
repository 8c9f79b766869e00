import pickle
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pydicom
import pytest
from hypothesis import given, strategies as st
from pydicom.data import get_testdata_file

from dicomweb_io.elements import (
    COLLECTIONS,
    UID_KEYWORDS,
    UID_TAGS,
    Exclusion,
    Failure,
    Instance,
    Resource,
    SearchQuery,
    StoredInstance,
)

CT = Path(str(get_testdata_file("CT_small.dcm")))
UIDS = st.lists(st.integers(0, 10**9), min_size=2, max_size=5).map(lambda parts: ".".join(map(str, parts)))


def test_a_reference_names_its_uids_from_the_study_down() -> None:
    assert Resource("1.2").uids == {"study": "1.2"}
    assert Resource("1.2", "1.3", "1.4", (2,)).uids == {"study": "1.2", "series": "1.3", "instance": "1.4"}
    assert list(UID_TAGS) == list(UID_KEYWORDS) == list(COLLECTIONS) == ["study", "series", "instance"]


@pytest.mark.parametrize(
    ("resource", "level", "uri"),
    [
        (Resource("1.2"), "study", "studies/1.2"),
        (Resource("1.2", "1.3"), "series", "studies/1.2/series/1.3"),
        (Resource("1.2", "1.3", "1.4"), "instance", "studies/1.2/series/1.3/instances/1.4"),
        (Resource("1.2", "1.3", "1.4", (3, 1)), "frame", "studies/1.2/series/1.3/instances/1.4/frames/3,1"),
    ],
)
def test_level_and_uri(resource: Resource, level: str, uri: str) -> None:
    assert resource.level == level
    assert resource.uri == uri
    assert Resource.of(uri) == resource
    assert Resource.of("https://pacs.example/dicom-web/" + uri) == resource
    assert Resource.of(resource.to_dict()) == resource
    assert pickle.loads(pickle.dumps(resource)) == resource


@pytest.mark.parametrize(
    "arguments",
    [
        (None,),
        ("",),
        ("1.2/../../admin",),
        ("..",),
        ("1.2", "1.3/x"),
        ("1.2", None, "1.4"),
        ("1.2", "1.3", None, (1,)),
        ("1.2", "1.3", "1.4", (0,)),
        ("1.2", "1.3", "1.4", (True,)),
        ("1" * 65,),
    ],
)
def test_what_is_no_reference_is_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each has its own text
        Resource(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        {"0020000D": ["1.2"], "00080018": ["1.4"]},
        {"0020000D": ["1.2"], "0020000E": [], "00080018": ["1.4"]},
        {"0020000D": ["1.2"], "0020000E": ["1.3"], "00080018": []},
        {"0020000D": ["1.2"], "0020000E": []},
        {"0020000d": ["1.2"], "0020000e": []},
        {"0020000E": ["1.3"]},
        {"study_instance_uid": "1.2", "series_instance_uid": ""},
        {"study_instance_uid": "1.2", "series_instance_uid": "1.3", "sop_instance_uid": ""},
        {"study_instance_uid": "1.2", "sop_instance_uid": "1.4"},
        {"series_instance_uid": "1.3"},
        {},
    ],
)
def test_a_row_that_lacks_a_uid_is_not_the_whole_it_is_a_part_of(value: dict[str, Any]) -> None:
    row = {key: {"vr": "UI", "Value": uid} if isinstance(uid, list) else uid for key, uid in value.items()}
    with pytest.raises(ValueError, match=r"UID|uid"):
        Resource.of(row)


def test_reference_of_a_search_row() -> None:
    study, series = ({"vr": "UI", "Value": [uid]} for uid in ("1.2", "1.3"))
    row = {"0020000D": study, "0020000E": series}
    assert Resource.of(row) == Resource("1.2", "1.3")
    with pytest.raises(ValueError, match="StudyInstanceUID"):
        Resource.of({"00080018": {"vr": "UI", "Value": ["1.4"]}})
    with pytest.raises(TypeError, match="int"):
        Resource.of(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no URI of a study"):
        Resource.of("https://pacs.example/dicom-web")


class Named(NamedTuple):
    StudyInstanceUID: str
    SeriesInstanceUID: Any = None
    PatientName: str = "Doe^Jane"


@dataclass(frozen=True)
class Found:
    study_instance_uid: str
    series_instance_uid: Any = None
    sop_instance_uid: Any = None
    frames: Any = ()


def dataset_of(**uids: str) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    for name, uid in uids.items():
        setattr(dataset, name, uid)
    return dataset


STUDY, SERIES, INSTANCE = Resource("1.2"), Resource("1.2", "1.3"), Resource("1.2", "1.3", "1.4")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"StudyInstanceUID": "1.2"}, STUDY),
        ({"StudyInstanceUID": " 1.2\0", "PatientName": "Doe^Jane"}, STUDY),
        ({"StudyInstanceUID": ["1.2"], "SeriesInstanceUID": ("1.3",)}, SERIES),
        ({"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3", "SOPInstanceUID": "1.4"}, INSTANCE),
        ({"study_instance_uid": "1.2", "series_instance_uid": None, "sop_instance_uid": None, "frames": []}, STUDY),
        (Named("1.2", "1.3"), SERIES),
        (Found("1.2"), STUDY),
        (Found("1.2", "1.3", "1.4", [1, 2]), Resource("1.2", "1.3", "1.4", (1, 2))),
        (SimpleNamespace(StudyInstanceUID="1.2"), STUDY),
        (dataset_of(StudyInstanceUID="1.2", SeriesInstanceUID="1.3", SOPInstanceUID="1.4"), INSTANCE),
        (("study", "1.2"), STUDY),
        (["series", "1.2", "1.3"], SERIES),
        (("instance", "1.2", "1.3", "1.4"), INSTANCE),
        (Instance(INSTANCE, "1.2.840.10008.1.2.1", b"x"), INSTANCE),
        (StoredInstance(INSTANCE), INSTANCE),
        (Failure("Retrieve", "message", SERIES), SERIES),
    ],
)
def test_whatever_names_an_object_is_a_reference(value: Any, expected: Resource) -> None:
    found = Resource.of(value)
    assert found == expected
    assert {type(uid) for uid in found.uids.values()} == {str}
    assert Resource.of(value, level=expected.level) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1.2.3", r'the UID 1.2.3 alone .* \("study", UID\), .*StudyInstanceUID'),
        (("study",), "a tuple names an object by its level"),
        (("series", "1.3"), "a tuple names an object by its level"),
        (("patient", "1.3"), "a tuple names an object by its level"),
        ((), "a tuple names an object by its level"),
        ((1, "1.2"), "a tuple names an object by its level"),
        (("study", None), "a tuple names an object by its level"),
        (Named(""), r"needs a StudyInstanceUID \(0020000D\) as text; the Named has StudyInstanceUID"),
        (Named("1.2", ""), "the Named of study 1.2 lacks its SeriesInstanceUID"),
        (
            {"StudyInstanceUID": "1.2", "SeriesInstanceUID": None},
            "the mapping of study 1.2 lacks its SeriesInstanceUID",
        ),
        ({"StudyInstanceUID": "1.2", "SOPInstanceUID": "1.4"}, "lacks its SeriesInstanceUID"),
        ({"StudyInstanceUID": "1.2", "SeriesInstanceUID": float("nan")}, "lacks its SeriesInstanceUID"),
        ({"StudyInstanceUID": ["1.2", "1.3"]}, "needs a StudyInstanceUID"),
        ({"SeriesInstanceUID": "1.3", "Doe^Jane": 1}, "the mapping has SeriesInstanceUID, …"),
        (Found("1.2", "1.3", ""), "sop_instance_uid"),
        (
            {"study_instance_uid": "1.2", "SeriesInstanceUID": "1.3"},
            r"in several forms \(study_instance_uid and Series",
        ),
        ({"StudyInstanceUID": "1.2", "0020000e": {"vr": "UI", "Value": ["1.3"]}}, "in several forms"),
        (dataset_of(PatientID="1"), "this is Dataset"),
        (Failure("Retrieve", "message"), "this is Failure"),
        (b"1.2", "this is bytes"),
    ],
)
def test_what_lacks_a_uid_is_refused_with_a_word_what_to_do(value: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Resource.of(value)


def test_a_reference_of_a_level() -> None:
    assert Resource.of("1.2.3", level="study") == Resource("1.2.3")
    with pytest.raises(ValueError, match=r"the UID 1\.2\.3 alone"):
        Resource.of("1.2.3", level="series")
    with pytest.raises(ValueError, match=r"studies/1.2/series/1.3 is a series, not a study"):
        Resource.of(SERIES, level="study")


@given(UIDS, UIDS, UIDS, st.integers(1, 3))
def test_every_spelling_of_a_reference_is_the_same(study: str, series: str, instance: str, number: int) -> None:
    uids = (study, series, instance)[:number]
    expected = Resource(*uids)
    row = {tag: {"vr": "UI", "Value": [uid]} for tag, uid in zip(UID_TAGS.values(), uids, strict=False)}
    keywords = dict(zip(UID_KEYWORDS.values(), uids, strict=False))
    for spelled in (expected.uri, row, keywords, SimpleNamespace(**keywords), (expected.level, *uids), Found(*uids)):
        assert Resource.of(spelled) == expected


@given(UIDS, UIDS, UIDS, UIDS)
def test_contains_follows_the_hierarchy(study: str, series: str, instance: str, other: str) -> None:
    whole = Resource(study, series, instance)
    assert Resource(study).contains(whole)
    assert Resource(study, series).contains(whole)
    assert whole.contains(whole)
    assert Resource(other).contains(whole) == (other == study)
    assert not whole.contains(Resource(study, series))


def test_instance_from_bytes_path_and_dataset() -> None:
    content = CT.read_bytes()
    dataset = pydicom.dcmread(CT)
    from_bytes, from_path = Instance.from_bytes(content), Instance.from_path(CT)
    for instance in (from_bytes, from_path, Instance.from_dataset(dataset)):
        uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
        assert instance.reference == Resource(*uids)
        assert instance.transfer_syntax_uid == dataset.file_meta.TransferSyntaxUID
        assert instance.sop_class_uid == dataset.SOPClassUID
        assert instance.dataset().PatientID == dataset.PatientID
    assert from_bytes.read() == from_path.read() == content
    assert from_bytes.size == from_path.size == len(content)
    assert "content" not in repr(from_bytes)


def test_an_instance_has_content_or_path_and_a_whole_reference() -> None:
    reference = Resource("1.2", "1.3", "1.4")
    with pytest.raises(ValueError, match="content or path"):
        Instance(reference, "1.2.840.10008.1.2.1")
    with pytest.raises(ValueError, match="content or path"):
        Instance(reference, "1.2.840.10008.1.2.1", content=b"", path="x")
    with pytest.raises(ValueError, match="series"):
        Instance(Resource("1.2", "1.3"), "1.2.840.10008.1.2.1", content=b"")


@pytest.mark.parametrize("content", [b"", b"no DICOM at all", b"\0" * 128 + b"DICM"])
def test_instance_of_what_is_no_dicom(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Instance.from_bytes(content)


def test_queries_check_their_level() -> None:
    with pytest.raises(ValueError, match="level"):
        SearchQuery("patient")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="study_instance_uid"):
        SearchQuery("instance", None, "1.3")
    with pytest.raises(ValueError, match="StudyInstanceUID"):
        SearchQuery("study", "1.2")


def test_failures_become_json_without_absent_values() -> None:
    failure = Failure("RetrieveInstances", "refused", Resource("1.2"), rows=(0, 10), status=503, retryable=True)
    assert failure.to_dict() == {
        "transform": "RetrieveInstances",
        "message": "refused",
        "reference": {"study_instance_uid": "1.2"},
        "rows": [0, 10],
        "status": 503,
        "attempts": 1,
        "retryable": True,
    }


def test_elements_can_be_keys() -> None:
    reference = Resource("1.2", "1.3", "1.4", [1, 2])  # type: ignore[arg-type]
    assert {reference: 1}[Resource("1.2", "1.3", "1.4", (1, 2))] == 1
    assert len({StoredInstance(reference.instance), StoredInstance(reference.instance)}) == 1
    assert hash(Exclusion("ignored", "a", "no DICOM")) == hash(Exclusion("ignored", "a", "no DICOM"))
