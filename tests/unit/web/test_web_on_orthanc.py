"""The web client against a real Orthanc with real DICOM files."""

from __future__ import annotations

import io
from pathlib import Path

import pydicom
import pytest

from dicomweb_io.elements import Failure, Resource, StoredInstance
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import DICOMwebError, StoreError
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.queries import make_query
from dicomweb_io.testing.orthanc import Orthanc
from dicomweb_io.web.client import DICOMwebClient

# The client suite of tests/servers asks the same archive much of this, in every run.
pytestmark = pytest.mark.slow

ROOT = Path(pydicom.__file__).parent / "data"


@pytest.fixture(scope="module")
def orthanc():
    with Orthanc() as server:
        yield server


@pytest.fixture(scope="module")
def loaded(orthanc):
    """A client of an archive that holds pydicom's files, the outcomes of storing them, and the stored bytes by UID."""
    client = DICOMwebClient(orthanc.url, retry=RetryPolicy(max_attempts=2, initial_delay=0.0))
    paths = [path for path in sorted(ROOT.rglob("*")) if path.is_file() and path.suffix in ("", ".dcm")]
    outcomes = list(client.iter_store_instances(paths))
    first: dict[str, bytes] = {}
    for path, outcome in zip(paths, outcomes, strict=False):
        if isinstance(outcome, StoredInstance):
            # Orthanc keeps the first of several files with one UID.
            first.setdefault(outcome.reference.sop_instance_uid, path.read_bytes())
    return client, outcomes, first


def reference_of(name):
    dataset = pydicom.dcmread(ROOT / "test_files" / name, stop_before_pixels=True)
    return Resource(dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)


@pytest.fixture(scope="module")
def loop():
    """A JPEG loop of 30 frames."""
    return reference_of("examples_ybr_color.dcm")


@pytest.fixture(scope="module")
def ct():
    return reference_of("CT_small.dcm")


def uids(resource):
    return resource.study_instance_uid, resource.series_instance_uid, resource.sop_instance_uid


def test_everything_that_is_storable_is_stored_and_the_rest_has_a_reason(loaded):
    client, outcomes, first = loaded
    stored = [outcome for outcome in outcomes if isinstance(outcome, StoredInstance)]
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    assert (len(stored), len(first)) == (158, 131)
    assert all(failure.message and failure.source for failure in failed)
    assert len(list(client.iter_search_for_instances())) == 131


def test_everything_comes_back_byte_for_byte(loaded):
    client, _, first = loaded
    found = {}
    for study in client.iter_search_for_studies():
        instances = list(client.iter_instances(Resource.of(study)))
        assert client.missing_instances(Resource.of(study), instances) == []
        found.update({item.reference.sop_instance_uid: item.content for item in instances})
    assert found == first


@pytest.mark.parametrize("profile", ["generic", "auto"])
@pytest.mark.parametrize("page_size", [7, 44, None])
def test_pages(orthanc, loaded, profile, page_size):
    with DICOMwebClient(orthanc.url, profile=profile) as client:
        for level, count in (("study", 44), ("instance", 131)):
            rows = list(client.iter_search(make_query(level), page_size=page_size))
            assert len(rows) == count
        assert len(client.search_for_studies(limit=5)) == 5
        assert len(client.search_for_studies(get_remaining=True, limit=9)) == 9


def test_filters(loaded, ct, loop):
    client, _, _ = loaded
    wanted = [ct.sop_instance_uid, loop.sop_instance_uid]
    rows = client.search_for_instances(search_filters={"SOPInstanceUID": wanted})
    assert {Resource.of(row).sop_instance_uid for row in rows} == set(wanted)
    assert len(client.search_for_studies(search_filters={"PatientName": "CompressedSamples^CT1"})) == 1
    assert len(client.search_for_series(search_filters={"Modality": ["CT", "SR"]})) > len(
        client.search_for_series(search_filters={"Modality": "SR"})
    )
    with pytest.raises(ValueError, match="does not decode"):
        client.search_for_studies(search_filters={"PatientName": "Δ*"})


def test_metadata(loaded, loop):
    client, _, first = loaded
    row = client.retrieve_instance_metadata(*uids(loop))
    assert Resource.of(row) == loop
    rows = sum(1 for study in client.iter_search_for_studies() for _ in client.iter_metadata(Resource.of(study)))
    assert rows == len(first)


def test_frames(loaded, loop):
    client, _, first = loaded
    dataset = pydicom.dcmread(io.BytesIO(first[loop.sop_instance_uid]))
    stored = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=30))
    frames = list(client.iter_frames(Resource(*uids(loop), (30, 1, 30, 2))))
    assert [frame.reference.frames for frame in frames] == [(30,), (1,), (30,), (2,)]
    assert [frame.content for frame in frames] == [stored[29], stored[0], stored[29], stored[1]]
    assert {frame.transfer_syntax_uid for frame in frames} == {"1.2.840.10008.1.2.4.50"}
    assert [len(frame) for frame in client.retrieve_instance_frames(*uids(loop), [1, 2])] == [230400, 230400]
    for media_types in (("image/jpeg",), ("image/*",), ("image/jp2", "image/x-jpls")):
        assert len(client.retrieve_instance_frames(*uids(loop), [1, 2], media_types=media_types)) == 2
    with pytest.raises(DICOMwebError) as caught:
        client.retrieve_instance_frames(*uids(loop), [31])
    assert caught.value.status == 400


def test_rendered(loaded, ct):
    client, _, _ = loaded
    assert client.retrieve_instance_rendered(*uids(ct))[:2] == b"\xff\xd8"
    assert client.retrieve_instance_rendered(*uids(ct), media_types=("image/png",))[:4] == b"\x89PNG"
    params = {"quality": 95, "iccprofile": "yes", "window": "40,400", "viewport": (64, 64)}
    assert client.retrieve_series_rendered(*uids(ct)[:2], params=params)[:2] == b"\xff\xd8"
    assert client.retrieve_study_rendered(ct.study_instance_uid)
    assert client.retrieve_instance_frames_rendered(*uids(ct), [1], media_types=("image/jpeg",))[:2] == b"\xff\xd8"


def test_instances_in_other_encodings(loaded, loop):
    client, _, _ = loaded
    assert client.retrieve_instance(*uids(loop)).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.50"
    explicit = client.retrieve_instance(*uids(loop), media_types=(("application/dicom", "1.2.840.10008.1.2.1"),))
    assert explicit.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert len(client.retrieve_instance(*uids(loop), media_types=("image/jpeg",))) == 30


def test_one_of_several_encodings(loaded, ct):
    """Orthanc 1.10.1 fails with 500 for a list of media types; each by itself it takes."""
    client, _, _ = loaded
    accepted_types = [("application/dicom", ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.90"))]
    (instance,) = client.iter_instances(ct.series, media_types=accepted_types)
    assert instance.transfer_syntax_uid in accepted_types[0][1]


def test_bulk_data(loaded, ct, loop):
    client, _, first = loaded
    pixels = pydicom.dcmread(io.BytesIO(first[ct.sop_instance_uid])).PixelData
    url = client.retrieve_instance_metadata(*uids(ct))["7FE00010"]["BulkDataURI"]
    assert client.retrieve_bulkdata(url) == [pixels]
    assert client.retrieve_bulkdata(url, byte_range=(10, 19)) == [pixels[10:20]]
    assert client.retrieve_bulkdata(f"{loop.uri}/bulk/7fe00010")[1:]


def test_policies_for_what_exists(orthanc, loaded, ct):
    client, _, first = loaded
    content = first[ct.sop_instance_uid]
    other = content.replace(b"CompressedSamples^CT1", b"CompressedSamples^CT9")
    outcome = {
        policy: next(client.iter_store_instances([other], on_existing=policy)) for policy in ("skip", "error", "server")
    }
    assert outcome["skip"].outcome == "exists"
    assert isinstance(outcome["error"], Failure)
    # Orthanc answers "stored" and keeps the old bytes: only a comparison tells.
    assert outcome["server"].outcome == "stored"
    compared = next(client.iter_store_instances([other], verify="content"))
    assert isinstance(compared, Failure)
    replaced = next(client.iter_store_instances([other], on_existing="replace", verify="content"))
    assert (replaced.outcome, replaced.verified) == ("replaced", "file")
    assert next(client.iter_instances(ct)).content == other
    assert next(client.iter_store_instances([content], on_existing="replace")).outcome == "replaced"
    assert next(client.iter_instances(ct)).content == content


def test_the_response_module(loaded, ct):
    client, _, _ = loaded
    dataset = pydicom.dcmread(ROOT / "test_files/CT_small.dcm")
    response = client.store_instances(datasets=[dataset])
    assert response.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == ct.sop_instance_uid
    with pytest.raises(StoreError) as caught:
        client.store_instances([ROOT / "test_files/MR_truncated.dcm", dataset])
    kinds = [type(outcome) for outcome in caught.value.outcomes]
    assert kinds == [Failure, StoredInstance]


def test_wrong_studies_are_refused_here_and_there(loaded, ct):
    client, _, _ = loaded
    (here,) = client.iter_store_instances([ROOT / "test_files/CT_small.dcm"], study_instance_uid="1.2.3")
    assert isinstance(here, Failure)
    assert "belongs to study" in here.message


def test_deleting(orthanc):
    with DICOMwebClient(orthanc.url) as client:
        path = ROOT / "test_files/waveform_ecg.dcm"
        (stored,) = client.iter_store_instances([path])
        client.delete_instance(*uids(stored.reference))
        assert client.search_for_studies(search_filters={"StudyInstanceUID": stored.reference.study_instance_uid}) == []
        with pytest.raises(DICOMwebError) as caught:
            client.delete_study(stored.reference.study_instance_uid)
        assert caught.value.status == 404
        client.store_instances([path])


def test_probing(orthanc, loaded):
    endpoint = Endpoint(orthanc.url, profile="generic").probe()
    assert endpoint.profile.name == "orthanc"
    assert endpoint.profile.decodes_queries is False
    assert endpoint.profile.flat_instances is True


def test_what_is_not_there(loaded):
    client, _, _ = loaded
    for call in (client.retrieve_study, client.retrieve_study_metadata):
        with pytest.raises(DICOMwebError) as caught:
            call("1.2.3.4")
        assert caught.value.status == 404
    assert client.search_for_series("1.2.3.4") == []
