"""One suite for the web client on every kind of server: the test server as each kind of server, and a real Orthanc."""

from __future__ import annotations

import hashlib
import io
from contextlib import ExitStack
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from dicomweb_io.compare import difference
from dicomweb_io.elements import Instance, Resource, StoredInstance
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import DICOMwebError
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.http.settings import Limits, Timeouts
from dicomweb_io.profiles import PROFILES
from dicomweb_io.queries import make_query
from dicomweb_io.testing.orthanc import Orthanc
from dicomweb_io.testing.server.behaviours import BEHAVIOURS
from dicomweb_io.testing.server.server import serve

# The suite in tests/servers covers the same ground faster; this one looks from the web client's side.
pytestmark = pytest.mark.slow

NAMES = ("CT_small.dcm", "MR_small.dcm", "examples_ybr_color.dcm", "SC_rgb_small_odd.dcm", "test-SR.dcm")
LOOP = "examples_ybr_color.dcm"

# The behaviour of servers of one kind that differ in a setting or a version.
KINDS = {"dicomcloud-api": "dicomcloud", "dicomcloud-short-pages": "dicomcloud"}
# Behaviour whose whole point is that searches cannot be paged have tests of their own.
UNPAGEABLE = {"offset-ignored"}
SERVERS = [name for name in BEHAVIOURS if name not in UNPAGEABLE]


def sample(name):
    return Path(get_testdata_file(name)).read_bytes()


def clones(count):
    """Copies of a small CT with UIDs of their own, in two studies of two series each, more than a page of 12."""
    for number in range(count):
        dataset = pydicom.dcmread(io.BytesIO(sample("MR_small_RLE.dcm")))
        dataset.StudyInstanceUID = f"1.2.826.0.1.9.{number % 2}"
        dataset.SeriesInstanceUID = f"1.2.826.0.1.9.{number % 2}.{number % 4}"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.9.9.{number}"
        dataset.StudyDate, dataset.InstanceNumber = f"2024010{number % 2 + 1}", str(number)
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        yield buffer.getvalue()


@pytest.fixture(scope="module")
def given():
    """What is stored, by SOP Instance UID."""
    contents = [*map(sample, NAMES), *clones(30)]
    return {Instance.from_bytes(content).reference.sop_instance_uid: content for content in contents}


@pytest.fixture(scope="module", params=[*SERVERS, "real-orthanc"])
def archive(request, given, tmp_path_factory):
    """A client of a server that holds what is given."""
    options = {"retry": RetryPolicy(max_attempts=4, initial_delay=0.01), "timeouts": Timeouts(deadline=60.0)}
    with ExitStack() as stack:
        if request.param == "real-orthanc":
            endpoint = Endpoint(stack.enter_context(Orthanc()).url, **options)
        else:
            kind = KINDS.get(request.param, request.param)
            rate = BEHAVIOURS[request.param].rate_limit
            if rate is not None:
                # Its refusals name no time to wait; whoever keeps to its rate gets none.
                options["limits"] = Limits(requests_per_second=rate[0] / 2)
            server = stack.enter_context(serve(tmp_path_factory.mktemp("archive"), behaviour=request.param))
            endpoint = server.endpoint(profile=kind if kind in PROFILES else "generic", **options)
        client = stack.enter_context(endpoint.connect())
        results = list(client.iter_store_instances(given.values()))
        assert all(isinstance(result, StoredInstance) for result in results), results
        yield client


def references(rows):
    return {Resource.of(row) for row in rows}


def expected(given, level):
    found = {Instance.from_bytes(content).reference for content in given.values()}
    if level == "instance":
        return found
    if level == "series":
        return {reference.series for reference in found}
    return {Resource(reference.study_instance_uid) for reference in found}


@pytest.mark.parametrize("level", ["study", "series", "instance"])
@pytest.mark.parametrize("page_size", [None, 5])
def test_searches_return_every_row_once(archive, given, level, page_size):
    rows = list(archive.iter_search(make_query(level), page_size=page_size))
    wanted = expected(given, level)
    assert len(rows) == len(wanted)
    assert references(rows) == wanted


def test_limits_and_offsets(archive, given):
    every = [Resource.of(row) for row in archive.iter_search(make_query("instance"))]
    some = [Resource.of(row) for row in archive.iter_search(make_query("instance"), offset=7, limit=16)]
    assert some == every[7:23]
    assert len(archive.search_for_studies(limit=2, get_remaining=True)) == 2


def test_filters_select(archive):
    rows = archive.search_for_series(search_filters={"Modality": "CT"}, get_remaining=True)
    assert len(rows) == 1
    wanted = "1.2.826.0.1.9.1"
    rows = archive.search_for_studies(search_filters={"StudyInstanceUID": wanted})
    assert references(rows) == {Resource(wanted)}
    assert len(list(archive.iter_search_for_instances(wanted, limit=100))) == 15
    assert archive.search_for_studies(search_filters={"StudyInstanceUID": "1.2.3.4.5.6"}) == []


def test_everything_comes_back_as_the_archive_keeps_it(archive, given):
    comparison_level = archive.profile.comparison_level
    found = {}
    for study in expected(given, "study"):
        instances = list(archive.iter_instances(study))
        assert archive.missing_instances(study, instances) == []
        found.update({instance.reference.sop_instance_uid: instance for instance in instances})
    assert set(found) == set(given)
    if comparison_level == "none":
        return
    for uid, content in given.items():
        assert difference(Instance.from_bytes(content), found[uid], comparison_level) is None, uid


def test_series_and_single_instances(archive, given):
    series = next(iter(sorted(expected(given, "series"), key=str)))
    uids = {instance.reference.sop_instance_uid for instance in archive.iter_instances(series)}
    assert uids == {reference.sop_instance_uid for reference in archive.expected_instances(series)}
    reference = next(iter(sorted(expected(given, "instance"), key=str)))
    (instance,) = archive.iter_instances(reference)
    assert instance.reference == reference


def test_metadata(archive, given):
    for study in expected(given, "study"):
        wanted = {reference for reference in expected(given, "instance") if study.contains(reference)}
        assert references(archive.iter_metadata(study)) == wanted
    reference = next(iter(expected(given, "instance")))
    uids = (reference.study_instance_uid, reference.series_instance_uid, reference.sop_instance_uid)
    assert Resource.of(archive.retrieve_instance_metadata(*uids)) == reference


@pytest.fixture
def has_frames(request):
    """Whether the server of a test has frames resources at all."""
    name = request.node.callspec.params["archive"]
    return name not in BEHAVIOURS or BEHAVIOURS[name].frames


def test_frames_and_rendering(archive, has_frames):
    dataset = pydicom.dcmread(io.BytesIO(sample(LOOP)))
    uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
    numbers = (3, 1, 3)
    if not has_frames:
        # A server without frames says so; that is not taken for an empty answer.
        for call in (archive.retrieve_instance_frames, archive.retrieve_instance_frames_rendered):
            with pytest.raises(DICOMwebError) as caught:
                call(*uids, [1])
            assert caught.value.status == 404
        return
    frames = [frame.content for frame in archive.iter_frames(Resource(*uids, numbers))]
    stored = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=30))
    assert [hashlib.sha256(frame).hexdigest() for frame in frames] == [
        hashlib.sha256(stored[number - 1]).hexdigest() for number in numbers
    ]
    assert archive.retrieve_instance_rendered(*uids)[:2] == b"\xff\xd8"


def test_what_exists_is_skipped(archive, given):
    results = list(archive.iter_store_instances(given.values(), on_existing="skip"))
    assert [result.outcome for result in results] == ["exists"] * len(given)
    results = list(archive.iter_store_instances(list(given.values())[:3], on_existing="skip", verify="uid"))
    assert {result.verified for result in results} == {"uid"}


def test_content_is_verified_at_the_archives_level(archive, given):
    some = list(given.values())[:4]
    comparison_level = archive.profile.comparison_level
    if comparison_level == "none":
        with pytest.raises(ValueError, match="do not preserve the content"):
            archive.iter_store_instances(some, verify="content")
        return
    results = list(archive.iter_store_instances(some, on_existing="skip", verify="content"))
    assert [(result.outcome, result.verified) for result in results] == [("exists", comparison_level)] * 4


def test_what_is_not_there_is_an_error(archive):
    with pytest.raises(DICOMwebError) as caught:
        list(archive.iter_instances(Resource("1.2.3.4", "1.2.3.5", "1.2.3.6")))
    assert caught.value.status == 404
