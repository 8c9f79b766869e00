import pickle
from pathlib import Path
from typing import Any

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
    with pytest.raises(ValueError, match="service"):
        Resource.of("https://pacs.example/dicom-web")


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
