"""The same storing and deleting tests on every archive: a real Orthanc, the test server in each behaviour, folders.

Each test stores studies of its own. What differs is in the table of `conftest.py`.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pydicom
import pytest
import requests

from dicomweb_io.compare import difference
from dicomweb_io.elements import Failure, Instance, Resource, StoredInstance
from dicomweb_io.errors import StoreError
from dicomweb_io.testing.samples import clone, sample_file


@pytest.fixture
def images(make_image, empty_backend, request):
    """The bytes of small images of two studies, with UIDs of this test's own."""
    seed = f"{empty_backend.name}/{request.node.name}"
    return [make_image(study, series, number, seed) for study in (1, 2) for series in (0, 1) for number in (1, 2)]


def reference_of(content: bytes) -> Resource:
    return Instance.from_bytes(content).reference


def changed(content: bytes) -> bytes:
    """The same instance with other pixels and attributes."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    dataset.PatientComments = "changed"
    dataset.PixelData = dataset.PixelData[::-1]
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def outcome_of(result: Any) -> str:
    return "failed" if isinstance(result, Failure) else result.outcome


def stored(client: Any, contents: list[bytes]) -> list[Resource]:
    """Stores instances and gives their references."""
    results = list(client.iter_store_instances(contents))
    assert [outcome_of(result) for result in results] == ["stored"] * len(contents)
    return [result.reference for result in results]


def kept(client: Any, backend: Any, content: bytes) -> bool:
    """Whether the archive has an instance, as far as it keeps what is stored."""
    try:
        (found,) = client.iter_instances(reference_of(content))
    except requests.HTTPError as error:
        if error.status != 404:
            raise
        return False
    if backend.spec.comparison_level == "none":
        return True
    return difference(Instance.from_bytes(content), found, backend.spec.comparison_level) is None


def test_everything_that_can_be_stored(writer, empty_backend, images, tmp_path):
    paths = [tmp_path / "one.dcm", tmp_path / "two.dcm", tmp_path / "three.dcm"]
    for path, content in zip(paths, images[1:4], strict=True):
        path.write_bytes(content)
    dataset = pydicom.dcmread(io.BytesIO(images[4]))
    with paths[2].open("rb") as file:
        given = [images[0], str(paths[0]), paths[1], file, dataset, Instance.from_bytes(images[5]), images[6]]
        results = list(writer.iter_store_instances(given))
    assert [outcome_of(result) for result in results] == ["stored"] * 7
    assert [result.reference for result in results] == [reference_of(content) for content in images[:7]]
    assert all(result.size >= len(content) * 0.9 for result, content in zip(results, images, strict=False))
    assert all(kept(writer, empty_backend, content) for content in [*images[:4], *images[5:7]])
    assert writer.retrieve_instance(*reference_of(images[4]).uids.values()).SOPInstanceUID == dataset.SOPInstanceUID
    rows = writer.search_for_instances(results[0].reference.study_instance_uid)
    assert {Resource.of(row) for row in rows} == {reference_of(content) for content in images[:4]}


def test_the_response_module(writer, images):
    response = writer.store_instances(datasets=[pydicom.dcmread(io.BytesIO(images[0])), images[1]])
    stored_uids = [str(item.ReferencedSOPInstanceUID) for item in response.ReferencedSOPSequence]
    assert sorted(stored_uids) == sorted(str(reference_of(content).sop_instance_uid) for content in images[:2])
    assert not response.get("FailedSOPSequence")
    assert len(writer.store_instances([]).get("ReferencedSOPSequence", [])) == 0


def test_each_instance_has_its_outcome(writer, empty_backend, images, tmp_path):
    truncated = tmp_path / "truncated.dcm"
    truncated.write_bytes(images[2][:-100])
    given = [images[0], b"this is no DICOM", truncated, tmp_path / "missing.dcm", images[1]]
    results = list(writer.iter_store_instances(given))
    assert [outcome_of(result) for result in results] == ["stored", "failed", "failed", "failed", "stored"]
    assert all(result.message for result in results[1:4])
    assert [result.source for result in results[2:4]] == [str(truncated), str(tmp_path / "missing.dcm")]
    with pytest.raises(StoreError) as caught:
        writer.store_instances([images[3], b"this is no DICOM"])
    assert [outcome_of(outcome) for outcome in caught.value.outcomes] == ["stored", "failed"]
    assert isinstance(caught.value, requests.HTTPError)
    # What has no UID cannot be among the failed SOP instances (PS3.18 table I.1-1).
    assert len(caught.value.dataset.ReferencedSOPSequence) == len(caught.value.dataset.OtherFailuresSequence) == 1
    assert kept(writer, empty_backend, images[3])
    assert not kept(writer, empty_backend, images[2])


def test_instances_of_another_study_are_refused(writer, empty_backend, images):
    study = reference_of(images[0]).study_instance_uid
    results = list(writer.iter_store_instances([images[0], images[4]], study_instance_uid=study))
    assert [outcome_of(result) for result in results] == ["stored", "failed"]
    assert study in results[1].message
    assert not kept(writer, empty_backend, images[4])
    with pytest.raises(StoreError):
        writer.store_instances([images[4]], study_instance_uid=study)


def test_real_files(writer, empty_backend, request):
    seed = f"{empty_backend.name}/{request.node.name}"
    for name in ("CT_small.dcm", "MR_small_jp2klossless.dcm", "test-SR.dcm"):
        content = clone(sample_file(name).read_bytes(), seed)
        stored(writer, [content])
        assert kept(writer, empty_backend, content)
    content = clone(sample_file("MR_small_implicit.dcm").read_bytes(), f"{seed}/implicit")
    with empty_backend.having("implicit VR"):
        writer.store_instances([content])
        assert kept(writer, empty_backend, content)


def test_evidence(writer, empty_backend, images):
    (result,) = writer.iter_store_instances([images[0]], verify="response")
    assert result.verified == "response"
    (result,) = writer.iter_store_instances([images[1]], verify="uid")
    assert result.verified == "uid"
    check = empty_backend.spec.content_check
    if check == "refused":
        with pytest.raises(ValueError, match="do not preserve the content"):
            writer.iter_store_instances([images[2]], verify="content")
        return
    (result,) = writer.iter_store_instances([images[2]], verify="content")
    assert (result.verified if isinstance(result, StoredInstance) else "failed") == check


def test_existing_instances_are_left_to_the_server(writer, empty_backend, images):
    same, other = empty_backend.spec.again
    stored(writer, [images[0]])
    assert [outcome_of(result) for result in writer.iter_store_instances([images[0]])] == [same]
    (result,) = writer.iter_store_instances([changed(images[0])], on_existing="server")
    assert outcome_of(result) == other
    assert kept(writer, empty_backend, images[0])


def test_existing_instances_are_skipped(writer, empty_backend, images):
    stored(writer, [images[0]])
    results = list(writer.iter_store_instances([changed(images[0]), images[1]], on_existing="skip"))
    assert [outcome_of(result) for result in results] == ["exists", "stored"]
    assert results[0].size == 0
    assert kept(writer, empty_backend, images[0])


def test_existing_instances_are_errors(writer, empty_backend, images):
    stored(writer, [images[0]])
    results = list(writer.iter_store_instances([changed(images[0]), images[1]], on_existing="error"))
    assert [outcome_of(result) for result in results] == ["failed", "stored"]
    assert results[0].reference == reference_of(images[0])
    assert kept(writer, empty_backend, images[0])


def test_existing_instances_are_replaced(writer, empty_backend, images):
    stored(writer, [images[0]])
    new = changed(images[0])
    if not empty_backend.spec.replaces:
        with pytest.raises(ValueError, match="replaced safely"):
            writer.iter_store_instances([new], on_existing="replace")
        assert kept(writer, empty_backend, images[0])
        return
    results = list(writer.iter_store_instances([new, images[1]], on_existing="replace"))
    assert [outcome_of(result) for result in results] == ["replaced", "stored"]
    assert kept(writer, empty_backend, new)
    found = writer.retrieve_instance(*reference_of(new).uids.values())
    assert found.PatientComments == "changed"
    assert len(writer.search_for_instances(reference_of(new).study_instance_uid)) == 2


def test_deleting(writer, empty_backend, images):
    references = stored(writer, images)
    first, second = references[0].study_instance_uid, references[4].study_instance_uid
    with empty_backend.having("delete"):
        writer.delete_instance(*references[0].uids.values())
        assert not kept(writer, empty_backend, images[0])
        assert {Resource.of(row) for row in writer.search_for_instances(first)} == set(references[1:4])
        writer.delete_series(*references[2].series.uids.values())
        assert {Resource.of(row) for row in writer.search_for_instances(first)} == {references[1]}
        writer.delete_study(first)
        assert writer.search_for_studies(search_filters={"StudyInstanceUID": first}) == []
        for again in (
            lambda: writer.delete_study(first),
            lambda: writer.delete_series(*references[2].series.uids.values()),
            lambda: writer.delete_instance(*references[0].uids.values()),
            lambda: writer.retrieve_study(first),
            lambda: writer.retrieve_instance_metadata(*references[0].uids.values()),
        ):
            with pytest.raises(requests.HTTPError) as caught:
                again()
            assert caught.value.status == 404
    assert len(writer.search_for_instances(second)) == 4


def test_what_was_deleted_can_be_stored_again(writer, empty_backend, images):
    (reference,) = stored(writer, [images[0]])
    with empty_backend.having("delete"):
        writer.delete_study(reference.study_instance_uid)
        new = changed(images[0])
        stored(writer, [new])
        assert kept(writer, empty_backend, new)


def test_eight_threads_store_at_once(writer, empty_backend, make_image, request):
    seed = f"{empty_backend.name}/{request.node.name}"
    batches = [[make_image(1, 0, 8 * number + thread + 1, seed) for number in range(2)] for thread in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda batch: list(writer.iter_store_instances(batch)), batches))
    assert [[outcome_of(result) for result in batch] for batch in results] == [["stored"] * 2] * 8
    study = reference_of(batches[0][0]).study_instance_uid
    found = writer.search_for_instances(study, get_remaining=True)
    expected = {reference_of(content) for batch in batches for content in batch}
    assert {Resource.of(row) for row in found} == expected
    assert {instance.reference for instance in writer.iter_instances(Resource(study))} == expected
