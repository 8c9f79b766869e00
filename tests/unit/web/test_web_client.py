"""The client as a whole: addresses, credentials, settings, sessions, threads; and what older libraries got wrong."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from dicomweb_io.elements import Resource
from dicomweb_io.errors import ConnectionFailedError, DICOMwebError
from dicomweb_io.http.auth import BasicCredentials, BearerToken
from dicomweb_io.web.client import DICOMwebClient
from tests.answering import Reply

BASIC = "Basic bWU6cDp3"


@pytest.mark.parametrize(
    ("url", "base", "parts"),
    [
        ("https://pacs.example", "https://pacs.example", ("https", "pacs.example", 443, "")),
        ("http://pacs.example/", "http://pacs.example", ("http", "pacs.example", 80, "")),
        ("https://pacs.example:8443/a/b//", "https://pacs.example:8443/a/b", ("https", "pacs.example", 8443, "/a/b")),
        ("HTTP://[::1]:8042/dicom-web", "http://[::1]:8042/dicom-web", ("http", "::1", 8042, "/dicom-web")),
        ("https://me:p%40w@pacs.example/x", "https://pacs.example/x", ("https", "pacs.example", 443, "/x")),
    ],
)
def test_addresses(url, base, parts):
    client = DICOMwebClient(url)
    assert client.base_url == base
    assert (client.scheme, client.host, client.port, client.url_prefix) == parts
    assert client.protocol == client.scheme
    assert "p%40w" not in repr(client)
    assert "p@w" not in repr(client)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"url": "pacs.example"}, ValueError),
        ({"url": "ftp://pacs.example"}, ValueError),
        ({"url": "https://"}, ValueError),
        ({"url": "https://h:port"}, ValueError),
        ({"url": "https://h/x?y=1"}, ValueError),
        ({"url": "https://h/x y"}, ValueError),
        ({"url": 5}, TypeError),
        ({"url": "https://h", "qido_url_prefix": ""}, ValueError),
        ({"url": "https://h", "wado_url_prefix": "../x"}, ValueError),
        ({"url": "https://h", "stow_url_prefix": "a?b"}, ValueError),
        ({"url": "https://h", "delete_url_prefix": 5}, TypeError),
        ({"url": "https://h", "chunk_size": 0}, ValueError),
        ({"url": "https://h", "chunk_size": "1"}, TypeError),
        ({"url": "https://h", "profile": "unknown"}, ValueError),
    ],
)
def test_what_is_no_client(arguments, error):
    with pytest.raises(error):
        DICOMwebClient(**arguments)


def test_prefixes(web):
    server, client = web.connect(
        lambda request: web.json([]) if request.method == "GET" else web.json({}, status=200),
        qido_url_prefix="qidors",
        wado_url_prefix="/wadors/",
        stow_url_prefix="stowrs",
        delete_url_prefix="delowrs",
    )
    client.search_for_studies()
    client.retrieve_study_metadata("1.2")
    list(client.iter_store_instances([web.dicom("1.2.3.1.1")]))
    client.delete_study("1.2")
    assert server.asked()[:3] == [
        "/dicomweb/qidors/studies",
        "/dicomweb/wadors/studies/1.2/metadata",
        "/dicomweb/stowrs/studies",
    ]
    assert server.asked()[-1] == "/dicomweb/delowrs/studies/1.2"


def test_host_header_and_slashes_are_right(web):
    server = web.serve(lambda request: web.json([]) if request.method == "GET" else web.json({}))
    client = web.client(server.url + "//")
    client.search_for_studies()
    list(client.iter_store_instances([web.dicom("1.2.3.1.1")]))
    assert {request.headers["host"] for request in server.requests} == {f"127.0.0.1:{server.port}"}
    assert all(target.startswith("/dicomweb/studies") for target in server.asked())


def test_ipv6(answering):
    server = answering(lambda request: Reply.json([]), host="::1", path="/x")
    with DICOMwebClient(server.url) as client:
        assert client.search_for_studies() == []
    assert server.requests[0].line == "GET /x/studies HTTP/1.1"
    assert server.requests[0].headers["host"] == f"[::1]:{server.port}"


def test_user_information_of_the_url_becomes_credentials(web):
    server = web.serve(lambda request: web.json([]))
    client = web.client(server.url.replace("//", "//me:p%3Aw@"))
    client.search_for_studies()
    assert server.requests[0].headers["authorization"] == BASIC


def test_credentials_headers_and_sessions(web):
    server, client = web.connect(lambda request: web.json([]), credentials=BasicCredentials("me", password="p:w"))
    client.search_for_studies()
    assert server.requests[0].headers["authorization"] == BASIC
    server, client = web.connect(lambda request: web.json([]), headers={"Authorization": "Bearer t"})
    client.search_for_studies()
    assert server.requests[0].headers["authorization"] == "Bearer t"
    session = requests.Session()
    session.auth = ("me", "p:w")
    session.headers["X-Mine"] = "yes"

    def state():
        hooks = {key: list(hooks) for key, hooks in session.hooks.items()}
        return dict(session.headers), session.proxies.copy(), hooks

    before, seen = state(), []
    server, client = web.connect(
        lambda request: web.json([]),
        session=session,
        headers={"X-Other": "1"},
        proxies={"ftp": "http://nowhere"},
        callback=lambda response, *_, **__: seen.append(response.status_code),
    )
    client.search_for_studies()
    assert server.requests[0].headers["authorization"] == BASIC
    assert (server.requests[0].headers["x-mine"], server.requests[0].headers["x-other"]) == ("yes", "1")
    assert seen == [200]
    assert state() == before


def test_a_token_that_expires_half_way_through_a_search_is_renewed_and_nothing_is_lost(web, tmp_path):
    file = tmp_path / "token"
    file.write_text("first")
    answered = []

    def answer(request):
        valid = "first" if len(answered) < 2 else "second"
        file.write_text(valid)
        if request.headers.get("authorization") != f"Bearer {valid}":
            return web.Reply(401, headers={"WWW-Authenticate": "Bearer"})
        answered.append(1)
        return web.page(request, [web.row(f"1.{number}") for number in range(10)])

    server, client = web.connect(answer, credentials=BearerToken(file=str(file)))
    rows = [Resource.of(row).study_instance_uid for row in client.iter_search_for_studies(page_size=3)]
    assert rows == [f"1.{number}" for number in range(10)]
    assert len(server.requests) == len(answered) + 1


def test_settings(web):
    _, client = web.connect(lambda request: web.Reply(500))
    client.set_chunk_size(1024)
    retries = {"max_attempts": 2, "wait_exponential_multiplier": 0, "retriable_error_codes": (500,)}
    for params, attempts in ((retries, 2), ({"retry": False}, 1)):
        client.set_http_retry_params(**params)
        with pytest.raises(DICOMwebError) as caught:
            client.search_for_studies()
        assert caught.value.attempts == attempts


def test_permissive_uids(web):
    server, client = web.connect(lambda request: web.json([]), permissive_uid=True)
    client.search_for_series("study-1:x")
    client.retrieve_study_metadata("a_b~c'd")
    client.search_for_series(" a b?c ")
    assert server.asked() == [
        "/dicomweb/studies/study-1:x/series",
        "/dicomweb/studies/a_b~c%27d/metadata",
        "/dicomweb/studies/a%20b%3Fc/series",
    ]
    for uid in ("a/b", "..", "a\\b", "a@b", "a\tb", "a" * 65):
        with pytest.raises(ValueError, match="study_instance_uid"):
            client.search_for_series(uid)


def test_a_client_does_not_travel_but_closes():
    client = DICOMwebClient("http://127.0.0.1:9")
    with pytest.raises(TypeError):
        pickle.dumps(client)
    with client as same:
        assert same is client


def test_only_what_may_pass_is_retried(web):
    server, client = web.connect(lambda request: web.Reply(404, b"unknown", "text/plain"))
    with pytest.raises(DICOMwebError):
        client.retrieve_study("1.2")
    assert server.asked().count("/dicomweb/studies/1.2") == 1

    def broken(response, *_, **__):
        raise KeyError("a mistake in a callback")

    server, client = web.connect(lambda request: web.json([]), callback=broken)
    with pytest.raises(KeyError):
        client.search_for_studies()
    assert len(server.requests) == 1


def test_errors_are_http_errors_with_their_response_and_no_query(web):
    _, client = web.connect(lambda request: web.Reply(503, b"busy with Doe", "text/plain"))
    with pytest.raises(requests.HTTPError) as caught:
        client.search_for_studies(search_filters={"PatientName": "Doe"})
    error = caught.value
    assert error.response.status_code == 503
    assert error.response.text == "busy with Doe"
    assert "PatientName" not in str(error)
    assert "Doe" not in str(error)
    with pytest.raises(DICOMwebError) as caught:
        web.client("http://127.0.0.1:1", retry=None, deadline=0.5).search_for_studies()
    assert isinstance(caught.value, (ConnectionFailedError, requests.Timeout))


def test_one_client_serves_many_threads(web):
    contents = {f"1.2.3.1.{number}": web.dicom(f"1.2.3.1.{number}", filler=number * 100) for number in range(1, 21)}

    def answer(request):
        return web.multipart([contents[request.path.rpartition("/")[2]]])

    _, client = web.connect(answer, max_in_flight=4)

    def retrieve(uid):
        (instance,) = client.iter_instances(Resource("1.2.3", "1.2.3.1", uid))
        return uid, instance.content

    with ThreadPoolExecutor(8) as pool:
        assert dict(pool.map(retrieve, contents)) == contents


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"This is a multipart message.\r\n", b""), (b"", b"  \r\n"), (b"", b""), (b"", b"\r\nThe end.")],
    ids=["preamble", "blanks", "semicolon", "epilogue"],
)
def test_multipart_messages_that_other_readers_stumble_over(web, before, after):
    content = web.dicom("1.2.3.1.1")
    body = before + b"--B;x\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--B;x--" + after
    reply = web.Reply(200, body, 'multipart/related; boundary="B;x"; type="application/dicom"')
    _, client = web.connect(lambda request: reply)
    (instance,) = client.iter_instances(Resource("1.2.3", "1.2.3.1", "1.2.3.1.1"))
    assert instance.content == content


@pytest.mark.parametrize(
    "url",
    ["//user:s3cret@host/x", "http://user:s3cret\u2100@host/x", "http://user:s3cret@[::1/x", "s3://u:s3cret@host"],
)
def test_errors_about_urls_hold_no_user_information(url):
    with pytest.raises(ValueError, match="url") as caught:
        DICOMwebClient(url)
    assert "s3cret" not in str(caught.value)
