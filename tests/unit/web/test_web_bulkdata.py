"""Bulk data: the right URL, the right bytes, and no credentials for strangers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import DICOMwebError, MalformedResponseError, ResponseIncompleteError
from dicomweb_io.http.auth import BasicCredentials
from tests.answering import Reply

VALUE = bytes(range(256))


def value(request):
    return Reply(200, VALUE, "application/octet-stream")


@pytest.mark.parametrize("kind", ["application/octet-stream", None, "video/mpeg"])
def test_a_single_body(web, kind):
    server, client = web.connect(lambda request: web.Reply(200, VALUE, kind))
    assert client.retrieve_bulkdata(f"{server.url}/studies/1.2/bulkdata/x") == [VALUE]


def test_parts(web):
    kind = "application/octet-stream"
    server, client = web.connect(lambda request: web.multipart([VALUE, b"b"], kind=kind, length=False))
    assert client.retrieve_bulkdata(f"{server.url}/bulk") == [VALUE, b"b"]
    assert list(client.iter_bulkdata(f"{server.url}/bulk")) == [VALUE, b"b"]
    part = next(client.iter_bulkdata_parts(f"{server.url}/bulk?secret=1"))
    assert (part.uri, part.media_type) == (f"{server.url}/bulk", kind)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("studies/1.2/bulkdata/x", "/dicomweb/wado/studies/1.2/bulkdata/x"),
        ("../other/x?a=1,2", "/dicomweb/other/x?a=1,2"),
        ("/rooted/x", "/rooted/x"),
        ("{base}/any%2Cthing,raw", "/dicomweb/any%2Cthing,raw"),
        ("http://user:secret@127.0.0.1:{port}/x#part", "/x"),
    ],
)
def test_addresses(web, url, target):
    server, client = web.connect(value, wado_url_prefix="wado")
    client.retrieve_bulkdata(url.format(base=server.url, port=server.port))
    assert server.asked() == [target]
    assert server.requests[0].headers["host"] == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize("url", ["", "ftp://host/x", "file:///etc/passwd", "http://", "a b", "urn:oid:1.2"])
def test_bad_addresses_are_refused_before_anything_is_sent(web, url):
    server, client = web.connect(lambda request: web.Reply(200))
    with pytest.raises(ValueError, match="URL of bulk data"):
        client.retrieve_bulkdata(url)
    assert server.requests == []


def test_another_host_gets_its_own_host_header_and_no_credentials(web):
    stranger = web.serve(value)
    credentials = BasicCredentials("me", password="secret")
    server, client = web.connect(value, credentials=credentials, headers={"X-Secret": "yes"})
    client.retrieve_bulkdata(f"{stranger.url}/bulk")
    client.retrieve_bulkdata(f"{server.url}/bulk")
    assert stranger.requests[0].headers["host"] == f"127.0.0.1:{stranger.port}"
    assert not {"authorization", "x-secret"} & set(stranger.requests[0].headers)
    assert {"authorization", "x-secret"} <= set(server.requests[0].headers)


@pytest.mark.parametrize(
    ("byte_range", "header", "expected"),
    [
        ((0, None), "bytes=0-", VALUE),
        ((10, 19), "bytes=10-19", VALUE[10:20]),
        ((250, 999), "bytes=250-999", VALUE[250:]),
    ],
)
def test_byte_ranges(web, byte_range, header, expected):
    def answer(request):
        headers = {"Content-Range": f"bytes {byte_range[0]}-{byte_range[0] + len(expected) - 1}/256"}
        return web.Reply(206, expected, "application/octet-stream", headers=headers)

    server, client = web.connect(answer)
    assert client.retrieve_bulkdata(f"{server.url}/bulk", byte_range=byte_range) == [expected]
    assert server.requests[0].headers["range"] == header
    # A server may ignore Range and send everything (Orthanc does).
    server, client = web.connect(lambda request: web.multipart([VALUE], kind="application/octet-stream"))
    assert client.retrieve_bulkdata(f"{server.url}/bulk", byte_range=byte_range) == [expected]


@pytest.mark.parametrize(
    ("reply", "byte_range", "words"),
    [
        (Reply.multipart([VALUE, VALUE], kind="application/octet-stream"), (1, 2), "several parts"),
        (Reply(200, VALUE), (256, None), "after the last"),
        (Reply(206, VALUE, headers={"Content-Range": "bytes 0-255/256"}), (5, None), "asked for bytes from 5"),
        (Reply(206, VALUE), (5, None), "does not say which bytes"),
        (Reply(206, VALUE[:10]), (0, 9), "does not say which bytes"),
        (Reply(206, VALUE, headers={"Content-Range": "bytes */256"}), (0, None), "does not say which bytes"),
        (Reply(206, VALUE, headers={"Content-Range": "bytes 0-255/256"}), (0, 9), "up to 9, got them up to 255"),
        (Reply(206, VALUE[:5], headers={"Content-Range": "bytes 0-9/256"}), (0, 9), "has 10 bytes, but 5 came"),
        (
            replace(Reply.multipart([VALUE[:10]], kind="application/octet-stream"), status=206),
            (0, 9),
            "does not say which bytes",
        ),
    ],
)
def test_ranges_that_cannot_be_had(web, reply, byte_range, words):
    server, client = web.connect(lambda request: reply)
    with pytest.raises((MalformedResponseError, ResponseIncompleteError), match=words):
        client.retrieve_bulkdata(f"{server.url}/bulk", byte_range=byte_range)


def test_a_refused_range(web):
    server, client = web.connect(lambda request: web.Reply(416))
    with pytest.raises(DICOMwebError) as caught:
        client.retrieve_bulkdata(f"{server.url}/bulk", byte_range=(5, None))
    assert caught.value.status == 416


@pytest.mark.parametrize(
    ("byte_range", "error"),
    [
        ((-1, 5), ValueError),
        ((5, 4), ValueError),
        (("0", 1), TypeError),
        ((None, 4), TypeError),
        ((1,), TypeError),
        (5, TypeError),
    ],
)
def test_bad_ranges(web, byte_range, error):
    server, client = web.connect(lambda request: web.Reply(200))
    with pytest.raises(error, match="byte_range"):
        client.retrieve_bulkdata(f"{server.url}/bulk", byte_range=byte_range)
    assert server.requests == []


def test_a_body_that_breaks_off_is_asked_for_again(web):
    whole = web.multipart([VALUE, b"b" * 500], kind="application/octet-stream")
    cuts = [300, len(whole.body) - 20, None]
    server, client = web.connect(
        lambda request: web.Reply(200, whole.body, whole.content_type, length=False, cut=cuts.pop(0))
    )
    assert client.retrieve_bulkdata(f"{server.url}/bulk") == [VALUE, b"b" * 500]
    assert len(server.requests) == 3


@pytest.mark.parametrize(("accept", "media_types"), [("video/mp4", ("video/mp4",)), ("*/*", None)])
def test_media_types_and_other_spellings(web, accept, media_types):
    server, client = web.connect(
        lambda request: web.Reply(200, VALUE, "video/mp4") if request.headers["accept"] == accept else web.Reply(400)
    )
    assert client.retrieve_bulkdata(f"{server.url}/bulk", media_types=media_types) == [VALUE]
    if media_types:
        assert server.requests[0].headers["accept"] == 'multipart/related; type="video/mp4"'


def test_nothing_and_login_pages(web):
    server, client = web.connect(lambda request: web.Reply(204))
    assert client.retrieve_bulkdata(f"{server.url}/bulk") == []
    server, client = web.connect(lambda request: web.Reply(200, b"<html>", "text/html"))
    with pytest.raises(MalformedResponseError, match="login page"):
        client.retrieve_bulkdata(f"{server.url}/bulk")


def test_less_than_was_asked_for_is_an_error(web):
    half = web.Reply(206, VALUE[:50], "application/octet-stream", headers={"Content-Range": "bytes 0-49/256"})
    server, client = web.connect(lambda request: half)
    for byte_range in [(0, 99), (0, None)]:
        with pytest.raises(ResponseIncompleteError, match="up to 49"):
            client.retrieve_bulkdata(f"{server.url}/bulk", byte_range=byte_range)
    with pytest.raises(ResponseIncompleteError, match="partial"):
        client.retrieve_bulkdata(f"{server.url}/bulk")


@pytest.mark.parametrize("kind", ["application/dicom", "application/dicom+json", "application/dicom+xml", "text/html"])
def test_an_answer_of_another_kind_is_no_bulk_data(web, kind):
    for reply in (web.Reply(200, VALUE, kind), web.multipart([({"Content-Type": kind}, VALUE)])):
        server, client = web.connect(lambda request, reply=reply: reply)
        with pytest.raises(MalformedResponseError, match="expected bulk data"):
            client.retrieve_bulkdata(f"{server.url}/bulk")


@pytest.mark.parametrize(
    ("internal", "given", "path"),
    [
        ("http://inner:8042/pacs", "http://inner:8042/pacs/studies/1.2/bulk/x?y=1", "/dicomweb/studies/1.2/bulk/x?y=1"),
        ("http://inner:8042/pacs/", "HTTP://Inner:8042/pacs/a", "/dicomweb/a"),
        ("http://inner:8042", "http://inner:8042/other/a", "/other/a"),
        ("https://inner", "https://me:secret@inner/a", "/a"),
    ],
)
def test_addresses_of_an_inner_host_are_asked_for_at_the_own_one(web, internal, given, path):
    credentials = BasicCredentials("me", password="secret")
    server, client = web.connect(value, internal_url=internal, credentials=credentials)
    assert client.retrieve_bulkdata(given) == [VALUE]
    assert server.requests[0].target == path
    assert "authorization" in server.requests[0].headers
    with Endpoint(server.url, internal_url=internal).connect() as other:
        assert other.retrieve_bulkdata(given) == [VALUE]


def test_other_hosts_than_the_inner_one_stay_strangers(web):
    stranger = web.serve(value)
    server, client = web.connect(value, internal_url=f"{stranger.url}/inner", headers={"X-Secret": "yes"})
    client.retrieve_bulkdata(f"{stranger.url}/innermost/x")
    assert not server.requests
    assert "x-secret" not in stranger.requests[0].headers
    for bad in ("inner", "ftp://inner", "http://inner?x"):
        with pytest.raises(ValueError, match="url"):
            Endpoint(server.url, internal_url=bad)
    with pytest.raises(ValueError, match=r"internal_url.*only for servers"):
        Endpoint("/folder", internal_url="http://inner")


def test_a_range_may_come_as_one_of_several_ranges(web):
    headers = {"Content-Type": "application/octet-stream", "Content-Range": "bytes 5-9/256"}
    reply = web.multipart([(headers, VALUE[5:10])])
    reply.status, reply.content_type = 206, "multipart/byteranges; boundary=BOUND"
    server, client = web.connect(lambda request: reply)
    assert client.retrieve_bulkdata(f"{server.url}/bulk", byte_range=(5, 9)) == [VALUE[5:10]]
