"""Credentials go to the archive's own origin, and into nothing that is shown, written or sent anywhere else.

Redirects, retries and the classes of credentials are tried in ``tests/unit/http``; here are the ways that lead through
what an archive answers, and through pipelines.
"""

from __future__ import annotations

import base64
import bz2
import json
import logging
import pickle
import zlib
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.internal import pickler
from apache_beam.transforms.display import DisplayData

from dicomweb_io.elements import Resource, SearchQuery
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import SearchIncompleteError
from dicomweb_io.http.auth import (
    AWSSigV4,
    AzureCredentials,
    BasicCredentials,
    BearerToken,
    GoogleCredentials,
    OAuth2ClientCredentials,
)
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.transforms import (
    RetrieveBulkdata,
    SearchForStudies,
)
from dicomweb_io.transforms._core import TransformFailed
from dicomweb_io.web.client import DICOMwebClient
from pipelines.transfer import main as transfer
from tests.answering import Reply
from tests.every_transform import CASES, WITH_ARCHIVE, World

SECRET = "the-5ecret-itself"
UIDS = ("1.2.3", "1.2.3.4", "1.2.3.4.5")


def row(elsewhere, **more):
    """A row that names another host wherever a row can."""
    study, series, instance = UIDS
    return {
        "0020000D": {"vr": "UI", "Value": [study]},
        "0020000E": {"vr": "UI", "Value": [series]},
        "00080018": {"vr": "UI", "Value": [instance]},
        "00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]},
        "00081190": {"vr": "UR", "Value": [f"{elsewhere.url}/studies/{study}"]},
        "7FE00010": {"vr": "OW", "BulkDataURI": f"{elsewhere.url}/bulk/1"},
        **more,
    }


@pytest.fixture
def elsewhere(origin):
    return origin(lambda _: Reply(200, b"bulk", headers={"Content-Type": "application/octet-stream"}))


@pytest.fixture
def archive(origin, elsewhere):
    """An archive whose every answer points to the other host."""

    def answer(request):
        link = f'<{elsewhere.url}/studies?offset=1>; rel="next"'
        if "offset=" in request.target:
            return Reply.json([])
        if request.path.endswith(("studies", "series", "/instances", "metadata")):
            return Reply.json([row(elsewhere)], headers={"Link": link, "Content-Location": elsewhere.url})
        return Reply(404, headers={"Link": link})

    return origin(answer)


def client_of(url, **options):
    return DICOMwebClient(
        url,
        **{
            "credentials": BearerToken(token=SECRET),
            "headers": {"X-Api-Key": SECRET},
            "retry": RetryPolicy(max_attempts=2, initial_delay=0.001),
            "deadline": 30.0,
            **options,
        },
    )


def test_links_and_retrieve_urls_of_answers_are_not_followed(archive, elsewhere):
    """Whatever the answers name: pages are asked for by offset, and objects at the archive's own address."""
    with client_of(archive.url) as client:
        for level in ("study", "series", "instance"):
            # Each answer announces more rows, and none comes.
            with pytest.raises(SearchIncompleteError, match=r"1 rows? came"):
                list(client.iter_search(SearchQuery(level)))
        assert len(client.retrieve_study_metadata("1.2.3")) == 1
        with pytest.raises(OSError, match="404"):
            client.retrieve_study("1.2.3")
        outcomes = list(client.iter_store_instances([b"no instance"]))
        assert len(outcomes) == 1
    assert not elsewhere.requests
    assert all(SECRET in request.headers["authorization"] for request in archive.requests)


def test_bulk_data_elsewhere_get_no_credentials(archive, elsewhere):
    with client_of(archive.url) as client:
        dataset = client.retrieve_study_metadata("1.2.3")[0]
        uri = dataset["7FE00010"]["BulkDataURI"]
        assert [part.content for part in client.iter_bulkdata_parts(uri)] == [b"bulk"]
        assert client.retrieve_bulkdata(uri) == [b"bulk"]
    assert len(elsewhere.requests) == 2
    for request in elsewhere.requests:
        assert SECRET not in repr(request)
        assert set(request.headers) <= {"host", "accept", "accept-encoding", "user-agent", "connection"}


def test_a_pipeline_that_meets_bulk_data_elsewhere_gives_no_credentials(archive, elsewhere):
    endpoint = Endpoint(archive.url, credentials=BearerToken(token=SECRET), headers={"X-Api-Key": SECRET})
    with beam.Pipeline("FnApiRunner") as pipeline:
        _ = pipeline | beam.Create([Resource("1.2.3")]) | RetrieveBulkdata(endpoint, failures="collect")
    assert elsewhere.requests
    assert SECRET not in repr(elsewhere.requests)


CREDENTIALS = {
    "basic": BasicCredentials("user", SECRET),
    "bearer": BearerToken(token=SECRET),
    "oauth2": OAuth2ClientCredentials("http://127.0.0.1:1/token", "client", SECRET),
}

BY_REFERENCE = {
    "basic, variable": BasicCredentials("user", password_env="THE_PASSWORD"),
    "basic, file": BasicCredentials("user", password_file="/run/secrets/password"),
    "bearer, variable": BearerToken(env="THE_TOKEN"),
    "bearer, file": BearerToken(file="/run/secrets/token"),
    "oauth2, variable": OAuth2ClientCredentials("http://127.0.0.1:1/t", "client", client_secret_env="THE_PASSWORD"),
    "google": GoogleCredentials(),
    "azure": AzureCredentials(),
    "aws": AWSSigV4("us-east-1"),
}


def made(name, endpoint):
    """A transform that works on the endpoint."""
    options = {"search_filters": {"PatientName": "Zzyzx^Quentin"}} if name in WITH_NAMES else {}
    return CASES[name].make(World(endpoint, endpoint, [], Path("/nowhere")), **options)


WITH_NAMES = ("SearchForStudies", "ReadFromDICOMweb")


def shown(transform):
    """Everything that monitoring pages and messages show of a transform."""
    data = DisplayData.create_from(transform)
    return repr([item.get_dict() for item in data.items]) + repr(transform) + str(transform) + transform.default_label()


@pytest.mark.parametrize("kind", CREDENTIALS)
@pytest.mark.parametrize("name", WITH_ARCHIVE)
def test_transforms_show_no_secret_and_no_name(name, kind):
    endpoint = Endpoint(
        "http://user:the-5ecret-itself@127.0.0.1:1/dicom-web",
        credentials=CREDENTIALS[kind],
        headers={"X-Api-Key": SECRET},
        proxies={"http": f"http://proxy:{SECRET}@127.0.0.1:1"},
    )
    text = shown(made(name, endpoint)) + repr(endpoint) + endpoint.safe_url
    assert "127.0.0.1:1/dicom-web" in text
    assert SECRET not in text
    assert "Zzyzx" not in text


def _pickled_by_beam(transform):
    """What workers get, without the compression that would hide everything."""
    packed = base64.b64decode(pickler.dumps(transform, enable_best_effort_determinism=False))
    return bz2.decompress(packed) if packed.startswith(b"BZh") else zlib.decompress(packed)


@pytest.mark.parametrize("name", WITH_ARCHIVE)
@pytest.mark.parametrize("kind", BY_REFERENCE)
def test_a_pickle_holds_no_secret_that_was_given_by_reference(monkeypatch, name, kind):
    for variable in ("THE_PASSWORD", "THE_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AZURE_CLIENT_SECRET"):
        monkeypatch.setenv(variable, SECRET)
    transform = made(name, Endpoint("http://127.0.0.1:1/dicom-web", credentials=BY_REFERENCE[kind]))
    dumped = pickle.dumps(transform.endpoint) + _pickled_by_beam(transform)
    assert SECRET.encode() not in dumped
    assert b"Zzyzx" in dumped or name not in WITH_NAMES


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_a_literal_travels_as_its_user_wants(kind):
    """Law of the literals: what was given in clear text is in the pickle, because there is no other place for it."""
    endpoint = Endpoint("http://127.0.0.1:1/dicom-web", credentials=CREDENTIALS[kind])
    assert SECRET.encode() in pickle.dumps(endpoint)
    again = pickle.loads(pickle.dumps(endpoint))
    assert SECRET not in repr(again)


@pytest.mark.parametrize("status", [401, 403, 400, 500, 302])
def test_failures_exceptions_and_logs_of_a_pipeline_hold_no_secret(origin, caplog, status):
    """A server that repeats what it got, credentials and all."""

    def answer(request):
        headers = {"WWW-Authenticate": f"Bearer {SECRET}"}
        if status == 302:
            headers["Location"] = f"/login?token={SECRET}"
        told = {"Message": f"denied: {request.target} {request.headers}"}
        return Reply.json(told, status, content_type="application/json", headers=headers)

    server = origin(answer)
    endpoint = Endpoint(
        server.url.replace("http://", f"http://user:{SECRET}@"),
        credentials=BearerToken(token=SECRET),
        headers={"X-Api-Key": SECRET},
        retry=RetryPolicy(max_attempts=2, initial_delay=0.001),
    )
    caplog.set_level(logging.DEBUG)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - Beam wraps it
        with beam.Pipeline("FnApiRunner") as pipeline:
            _ = pipeline | SearchForStudies(endpoint, {"PatientName": "Zzyzx^Quentin"})
    failure = next(error.failure for error in _chain(caught.value) if isinstance(error, TransformFailed))
    said = json.dumps(failure.to_dict()) + repr(failure)
    for error in _chain(caught.value):
        said += str(error) + repr(error)
    assert server.requests
    assert failure.message
    said += caplog.text
    assert SECRET not in said
    assert "Zzyzx" not in said


def _chain(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def test_a_dead_letter_file_holds_no_pixels_no_names_and_no_secrets(origin, tmp_path, capsys, monkeypatch):
    """What a job writes about its failures: UIDs, paths and reasons."""
    from dicomweb_io.testing.samples import make_study
    from tests.faults.bench import tiny_image

    image = tiny_image()
    marker = b"THESE ARE THE PIXELS"
    image = image[: -len(marker)] + marker
    make_study(tmp_path / "source", 1, 1, 5, seed="letters", template=image)
    monkeypatch.setenv("THE_TOKEN", SECRET)

    def answer(request):
        if request.method == "GET":
            return Reply.json([])
        told = {"Message": f"cannot store Quentin Zzyzx for {request.headers.get('authorization')}"}
        return Reply.json(told, 500, content_type="application/json")

    server = origin(answer)
    failures, summary = tmp_path / "failures.jsonl", tmp_path / "summary.json"
    arguments = ["--source", str(tmp_path / "source"), "--destination", server.url]
    arguments += ["--destination-token-env", "THE_TOKEN", "--failures", str(failures), "--summary", str(summary)]
    monkeypatch.setattr("dicomweb_io.http.retry.RetryPolicy.delay", lambda *_: 0.0)
    assert transfer(arguments) == 1
    lines = failures.read_text().splitlines()
    assert len(lines) == 5
    printed = capsys.readouterr()
    for text in (failures.read_text(), summary.read_text(), printed.out, printed.err):
        assert SECRET not in text
        assert "PIXELS" not in text
        assert "Zzyzx" not in text
    assert failures.stat().st_mode & 0o777 == 0o600
    for line in lines:
        assert set(json.loads(line)) <= {
            *("transform", "message", "reference", "source", "url", "status", "reason_code", "attempts", "retryable"),
        }
