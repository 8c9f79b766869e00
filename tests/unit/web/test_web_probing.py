"""Probing: the server's own answers decide, and only reads are made."""

from __future__ import annotations

import pytest

from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import DICOMwebError
from tests.answering import in_turn


def modest(web, **paths):
    """A server with two studies, no flat searches, no metadata resource, and whatever `paths` add."""

    def answer(request):
        if request.path in paths:
            return paths[request.path]
        match request.path.split("/")[1:]:
            case ["dicomweb", "studies"]:
                rows = [] if "StudyInstanceUID" in request.parameters else [web.row("1.2"), web.row("1.3")]
            case ["dicomweb", "studies", study, "series"]:
                rows = [web.row(study, "1.2.1")]
            case ["dicomweb", "studies", study, "series", series, "instances"]:
                rows = [web.row(study, series, "1.2.1.1")]
            case ["dicomweb", "studies", _, "series", _, "instances", _]:
                return web.multipart([web.dicom("1.2.1.1", study="1.2", series="1.2.1")])
            case _:
                return web.Reply(404)
        request.target = request.target.replace("limit=%31", "limit=1")
        return web.page(request, rows)

    return answer


def features(report):
    return {finding.feature: finding.supported for finding in report.findings}


def test_a_server_that_is_not_recognized_gets_a_profile_of_measured_facts(web):
    server, client = web.connect(modest(web))
    report = client.probe()
    profile = report.profile
    assert (profile.name, report.recognized) == ("generic", False)
    assert (profile.flat_series, profile.flat_instances, profile.study_instances) == (False, False, False)
    assert (profile.offset_works, profile.decodes_queries) == (True, True)
    assert (profile.metadata_resource, profile.count_resources) == (False, False)
    expected = {
        "search of studies": True,
        "search of all instances": False,
        "metadata": False,
        'retrieval as multipart/related; type="application/dicom"; transfer-syntax=*': True,
    }
    assert expected.items() <= features(report).items()
    assert {request.method for request in server.requests} == {"GET"}


def test_a_count_resource_is_a_fact_and_no_fingerprint(web):
    _, client = web.connect(modest(web, **{"/dicomweb/studies/count": web.json({"count": 2})}))
    profile = client.probe().profile
    assert (profile.name, profile.count_resources) == ("generic", True)


def test_an_endpoint_pins_what_was_found(web):
    server = web.serve(modest(web))
    endpoint = Endpoint(server.url).probe()
    assert endpoint.profile.flat_series is False
    assert endpoint.url == server.url


@pytest.mark.parametrize(
    ("path", "document", "name"),
    [
        ("/system", {"ApiVersion": 18, "Name": "x"}, "orthanc"),
        ("/dicomweb/changefeed/latest", {"Sequence": 5}, "azure"),
    ],
)
def test_servers_are_recognized_by_their_answers(web, path, document, name):
    _, client = web.connect(modest(web, **{path: web.json(document, content_type="application/json")}))
    report = client.probe()
    assert (report.profile.name, report.recognized) == (name, True)
    # What one archive shows does not overrule what is known of all of its kind.
    assert report.profile.flat_series is True


def test_a_server_that_ignores_offset(web):
    studies = web.json([web.row("1.2"), web.row("1.3")])
    _, client = web.connect(lambda request: studies if request.path.endswith("/studies") else web.Reply(404))
    report = client.probe()
    assert report.profile.offset_works is False
    assert features(report)["limit"] is False


def test_an_empty_archive_leaves_questions_open(web):
    _, client = web.connect(lambda request: web.Reply(204))
    report = client.probe()
    assert report.profile.offset_works is None
    assert features(report)["retrieval"] is None


def test_a_server_that_refuses_everything_cannot_be_probed(web):
    _, client = web.connect(lambda request: web.Reply(401))
    with pytest.raises(DICOMwebError):
        client.probe()


def test_a_search_whose_answer_breaks_off_is_made_again(web):
    broken = web.Reply(200, b'[{"0020000D":{"vr":"UI"', "application/dicom+json")
    _, client = web.connect(in_turn(broken, modest(web)))
    assert client.probe().findings[0].detail == "2 of at most 2 rows"


@pytest.mark.parametrize(
    ("system", "name"),
    [
        ((404, b""), "generic"),
        ((200, b"<html>"), "generic"),
        ((200, b'{"ApiVersion": 18}'), "orthanc"),
        ((401, b""), "orthanc"),
        ((403, b""), "orthanc"),
    ],
)
def test_a_profile_that_the_address_suggests_has_to_be_confirmed(web, system, name):
    def answer(request):
        if request.path == "/system":
            return web.Reply(*system, "application/json")
        request.target = request.target.replace("/dicom-web", "/dicomweb")
        return modest(web)(request)

    server = web.serve(answer)
    url = server.url.replace("/dicomweb", "/dicom-web")
    assert Endpoint(url).connect().profile.name == "orthanc"
    profile = Endpoint(url).probe().profile
    assert profile.name == name
    if name == "generic":
        assert (profile.flat_series, profile.metadata_resource, profile.delete) == (False, False, "resource")
    # What somebody chose is not doubted.
    assert Endpoint(url, profile="orthanc").probe().profile.name == "orthanc"


@pytest.mark.parametrize(("rows", "supported"), [(None, None), (4, False)])
def test_only_images_tell_whether_there_is_rendering(web, rows, supported):
    values = {} if rows is None else {"t00280010": rows}
    metadata = {"/dicomweb/studies/1.2/series/1.2.1/instances/1.2.1.1/metadata": web.json([web.row("1.2", **values)])}
    _, client = web.connect(modest(web, **metadata))
    found = features(client.probe())
    assert (found["rendering"], found["thumbnails"]) == (supported, supported)
