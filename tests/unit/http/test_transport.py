"""The transport against servers on raw sockets: what is sent, what comes back, what is repeated, what is refused."""

from __future__ import annotations

import gc
import gzip
import io
import logging
import os
import pickle
import random
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from requests.auth import HTTPDigestAuth

from dicomweb_io.errors import (
    ConnectionFailedError,
    DeadlineExceededError,
    DICOMwebError,
    MalformedResponseError,
    RedirectError,
    ResponseIncompleteError,
    TimedOutError,
)
from dicomweb_io.http.auth import BasicCredentials, BearerToken
from dicomweb_io.http.multipart import BodyPart, BodySourceError, MultipartBody
from dicomweb_io.http.response import describe
from dicomweb_io.http.retry import Deadline, RetryPolicy
from dicomweb_io.http.settings import TLS, Limits, Timeouts
from dicomweb_io.http.transport import StreamedAnswer, Transport
from tests.answering import Reply, Request, in_turn

CUT_OFF = Reply(body=b"0123456789", cut=3)
"""An answer that ends too early."""


def test_a_plain_request(serve, connect) -> None:
    server = serve(lambda got: got.answer(200, b'[{"a": 1}]', Content_Type="Application/DICOM+JSON; charset=utf-8"))
    transport = connect(server.url + "/dicom-web/", headers={"X-Api-Key": "k"})
    answer = transport.request("get", "/studies?limit=1", headers={"Accept": "application/dicom+json"})
    assert (answer.status, answer.content, answer.attempts) == (200, b'[{"a": 1}]', 1)
    assert (answer.content_type, answer.response.json()) == ("application/dicom+json", [{"a": 1}])
    [got] = server.requests
    assert got.line == "GET /dicom-web/studies?limit=1 HTTP/1.1"
    sent = {"x-api-key": "k", "accept": "application/dicom+json", "host": f"127.0.0.1:{server.port}"}
    assert sent.items() <= got.headers.items()
    assert "authorization" not in got.headers
    assert (transport.stats.requests, transport.stats.retries, transport.stats.bytes_in) == (1, 0, 10)
    assert transport.stats.bytes_out > 50


@pytest.mark.parametrize(
    "target",
    [
        "/studies?ModalitiesInStudy=CT,MR&PatientName=A%2CB%5E*&StudyDate=20200101-&x=~'()!$;:@/?",
        "/studies?a=%7E%41&b=100%25&c=a+b&&=&d",
        "/studies?PatientName=A^B|c%2c%5e*[1]",
        "/studies/1.2/series//x?includefield=all",
        "/?q",
    ],
)
def test_the_query_is_sent_as_written(serve, connect, target) -> None:
    server = serve(lambda got: got.answer())
    connect(server.url).request("GET", server.url + target)
    connect("http://pacs.invalid", proxies={"http": server.url}).request("GET", "http://pacs.invalid" + target)
    assert [got.target for got in server.requests] == [target, "http://pacs.invalid" + target]


@pytest.mark.parametrize(
    "url", ["/a b", "/ä", "/a\r\nX: y", "ftp://x/", "http:///x", "http://h:99999/", "http://[::1/"]
)
def test_what_is_no_url_is_refused_before(serve, connect, url) -> None:
    server = serve(lambda got: got.answer())
    with pytest.raises(ValueError, match="URL"):
        connect(server.url).request("GET", url)
    assert server.requests == []


@pytest.mark.parametrize("headers", [{"A": "b\r\nC: d"}, {"A B": "c"}, {"A": " b"}, {"A": "\u2603"}, {"A": 1}])
def test_what_is_no_header_is_refused_before(serve, connect, headers) -> None:
    server = serve(lambda got: got.answer())
    with pytest.raises(TypeError if headers == {"A": 1} else ValueError, match="header"):
        connect(server.url).request("GET", "/", headers=headers)
    assert server.requests == []


def test_what_cannot_be_a_transport() -> None:
    with pytest.raises(ValueError, match="scheme"):
        Transport("file:///x")
    with pytest.raises(FileNotFoundError, match="verify"):
        Transport("http://127.0.0.1", tls=TLS("/does/not/exist.pem"))


def test_ipv6(serve, connect) -> None:
    server = serve(lambda got: got.answer(), host="::1")
    connect(server.url + "/rs").request("GET", "/studies")
    assert server.requests[0].headers["host"] == f"[::1]:{server.port}"


def test_user_information_becomes_credentials_and_is_never_shown(serve, connect) -> None:
    server = serve(lambda got: got.answer(404))
    url = f"http://us%40er:p%3Ass@127.0.0.1:{server.port}/rs"
    transport = connect(url)
    assert "p%3Ass" not in repr(transport)
    with pytest.raises(DICOMwebError) as caught:
        transport.request("GET", url + "/studies?PatientName=Doe")
    assert server.requests[0].headers["authorization"] == BasicCredentials("us@er", "p:ss")._header()
    shown = f"{caught.value} {caught.value!r} {caught.value.response.request.headers} {caught.value.response.url}"
    for secret in ("us@er", "us%40er", "p%3Ass", "p:ss", "Doe", "Authorization"):
        assert secret not in shown
    assert caught.value.url == f"http://127.0.0.1:{server.port}/rs/studies"


@pytest.mark.parametrize(
    ("status", "body", "target", "advised"),
    [
        (404, b"Unknown resource", "/studies?limit=1", True),
        (405, b"", "/studies", False),
        (
            400,
            b'{"Message": "Bad request", "Details": "Missing \\"since\\" argument for GET request"}',
            "/series",
            True,
        ),
        (400, b"", "/studies", False),
        (404, b"", "/studies/1.2", False),
    ],
)
def test_an_address_that_is_no_dicomweb_service(serve, connect, status, body, target, advised) -> None:
    server = serve(lambda got: got.answer(status, body))
    with pytest.raises(DICOMwebError) as caught:
        connect(server.url).request("GET", target)
    assert (f"is {server.url} the root of a DICOMweb service?" in str(caught.value)) == advised


def test_https_to_a_server_that_speaks_http() -> None:
    error = ssl.SSLError(1, "wrong version number")
    error.reason = "WRONG_VERSION_NUMBER"
    assert describe([error]) == "TLS: WRONG_VERSION_NUMBER; the server may speak http://, not https://, at this port"


def test_errors_say_what_happened_and_pickle(serve, connect) -> None:
    body = b'{"Message": "Unknown tag near DOE^JOHN", "Details": "x\\n y", "HttpStatus": 400}'
    server = serve(lambda got: got.answer(400, body))
    with pytest.raises(requests.HTTPError) as caught:
        connect(server.url).request("GET", "/studies?PatientName=Doe%5EJohn")
    error = caught.value
    assert isinstance(error, DICOMwebError)
    assert str(error) == f"GET {server.url}/studies: HTTP 400: Unknown tag near ***; x y"
    assert error.response.json()["HttpStatus"] == 400
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.status, again.response.content) == (str(error), 400, body)
    assert not again.retryable
    assert error.response.request.method == "GET"


def test_netrc_is_not_used_but_proxies_are(serve, connect, monkeypatch, tmp_path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login thief password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    server = serve(lambda got: got.answer())
    connect(server.url).request("GET", "/")
    connect(server.url, session=requests.Session()).request("GET", "/")
    assert all("authorization" not in got.headers for got in server.requests)
    proxy = serve(lambda got: got.answer(200, b"by proxy"))
    monkeypatch.setenv("http_proxy", proxy.url)
    url = "http://pacs.invalid/studies?a=b,c%2Cd"
    assert connect("http://pacs.invalid").request("GET", url).content == b"by proxy"
    assert proxy.requests[0].line == f"GET {url} HTTP/1.1"
    assert connect("http://pacs.invalid", proxies={"http": proxy.url}).request("GET", url).content == b"by proxy"


# -- retries


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_statuses_that_are_worth_another_try(serve, connect, status) -> None:
    server = serve(lambda got: got.answer(status if got.number < 3 else 200, b"ok"))
    transport = connect(server.url)
    answer = transport.request("GET", "/")
    assert (answer.content, answer.attempts, transport.stats.retries) == (b"ok", 3, 2)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 406, 409, 413, 501])
def test_statuses_that_are_not(serve, connect, status) -> None:
    server = serve(lambda got: got.answer(status))
    with pytest.raises(DICOMwebError) as caught:
        connect(server.url).request("GET", "/")
    assert (caught.value.status, caught.value.retryable, len(server.requests)) == (status, False, 1)
    assert connect(server.url).request("GET", "/", accept_statuses=(status,)).status == status


def test_the_last_error_comes_out(serve, connect) -> None:
    server = serve(lambda got: got.answer(503, b"busy", Content_Type="text/plain"))
    with pytest.raises(DICOMwebError, match=r"HTTP 503: busy \(after 5 attempts\)") as caught:
        connect(server.url).request("GET", "/")
    assert (caught.value.attempts, caught.value.retryable, len(server.requests)) == (5, True, 5)
    with pytest.raises(DICOMwebError):
        connect(server.url, retry=RetryPolicy.none()).request("GET", "/")
    assert len(server.requests) == 6


def test_retry_after_is_waited_for_and_holds_others_back(serve, connect) -> None:
    server = serve(in_turn(Reply(503, headers={"Retry-After": "0.3"}), Reply()))
    transport = connect(server.url)
    begun = time.monotonic()
    transport.request("GET", "/")
    assert time.monotonic() - begun >= 0.3
    refused = serve(lambda got: got.answer(429, Retry_After="0.3"))
    transport = connect(refused.url, retry=RetryPolicy.none())
    with pytest.raises(DICOMwebError) as caught:
        transport.request("GET", "/")
    assert caught.value.retry_after == 0.3
    with pytest.raises(DICOMwebError):
        transport.request("GET", "/")
    assert transport.stats.throttled_seconds > 0.1


def test_a_retry_after_beyond_the_deadline_ends_at_once(serve, connect) -> None:
    server = serve(lambda got: got.answer(503, Retry_After="3600"))
    transport = connect(server.url, timeouts=Timeouts(deadline=5))
    with pytest.raises(DICOMwebError) as caught:
        transport.request("GET", "/")
    assert (caught.value.status, caught.value.retry_after, len(server.requests)) == (503, 3600, 1)
    with pytest.raises(DeadlineExceededError, match="Retry-After"):
        transport.request("GET", "/")
    assert len(server.requests) == 1


def test_dropped_connections_are_retried(serve, connect) -> None:
    server = serve(in_turn(Request.reset, Request.hangup, Reply(body=b"ok")))
    assert connect(server.url).request("GET", "/").content == b"ok"
    assert len(server.requests) == 3


def test_a_dropped_reused_connection_is_retried_at_once_even_without_retries(serve, connect) -> None:
    # The server closes an idle connection just as the second and the fifth request come.
    server = serve(lambda got: got.hangup() if got.number in (2, 5) else got.answer(200, b"ok"))
    transport = connect(server.url, retry=RetryPolicy(max_attempts=1, initial_delay=1000))
    asked = [("GET", None), ("GET", None), ("POST", b"x"), ("POST", b"x"), ("GET", None)]
    assert [transport.request(method, "/", body=body).attempts for method, body in asked] == [1, 2, 1, 2, 1]
    # On a fresh connection it is a failure like any other.
    dead = serve(Request.reset)
    with pytest.raises(ConnectionFailedError, match="the connection broke before the answer"):
        connect(dead.url, retry=RetryPolicy.none()).request("GET", "/")
    assert len(dead.requests) == 1


def test_a_refused_connection(connect, serve) -> None:
    server = serve(lambda got: got.answer())
    server.stop()
    with pytest.raises(ConnectionFailedError, match="refused") as caught:
        connect(server.url).request("GET", "/studies?PatientName=Doe")
    assert (caught.value.attempts, caught.value.sent, caught.value.status) == (5, False, None)
    assert "Doe" not in str(caught.value)
    assert isinstance(caught.value, requests.ConnectionError)


def test_what_is_sent_again(serve, connect, tmp_path) -> None:
    server = serve(lambda got: got.answer(503 if got.number % 2 else 200))
    transport = connect(server.url)
    file = tmp_path / "a.dcm"
    file.write_bytes(b"f" * 200_000)
    body = MultipartBody([BodyPart({}, file), BodyPart({}, b"second")])
    transport.request("POST", "/studies", body=body, headers={"Content-Type": body.content_type})
    assert int(server.requests[0].headers["content-length"]) == len(body)
    transport.request("POST", "/", body=b"bytes")
    # What can be read once only is never sent twice; what must not be repeated, only when it was surely not done.
    with pytest.raises(DICOMwebError, match="503"):
        transport.request("POST", "/", body=iter([b"a", b"b"]))
    transport.request("GET", "/")
    with pytest.raises(DICOMwebError, match="503"):
        transport.request("POST", "/", body=b"x", idempotent=False)
    whole = b"".join(body)
    assert [got.body for got in server.requests] == [whole, whole, b"bytes", b"bytes", b"ab", b"", b"x"]


def test_a_body_that_cannot_be_read_is_no_network_error(serve, connect, tmp_path) -> None:
    server = serve(lambda got: got.answer())
    file = tmp_path / "a.dcm"
    file.write_bytes(b"12345")
    body = MultipartBody([BodyPart({}, file)])
    file.unlink()
    with pytest.raises(BodySourceError, match="cannot be read"):
        connect(server.url).request("POST", "/", body=body)
    assert server.wait_until_closed()


def test_an_early_answer_to_a_large_body_is_seen(serve, connect) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(1000)
            sock.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 20):
                pass

    thread = threading.Thread(target=refuse, daemon=True)
    thread.start()
    with pytest.raises(DICOMwebError, match="HTTP 413"):
        connect(f"http://127.0.0.1:{listener.getsockname()[1]}").request("POST", "/", body=bytes(5_000_000))
    thread.join(5)
    listener.close()


# -- bodies of answers


CUT = [
    (b"Content-Length: 100\r\n\r\n", b"x" * 40),
    (b"Transfer-Encoding: chunked\r\n\r\n", b"64\r\n" + b"x" * 40),
    (b"Transfer-Encoding: chunked\r\n\r\n", b"28\r\n" + b"x" * 40 + b"\r\n"),
]


@pytest.mark.parametrize(("head", "body"), CUT)
@pytest.mark.parametrize("hard", [False, True])
def test_truncated_bodies(serve, connect, head, body, hard) -> None:
    def broken(got) -> None:
        got.send(b"HTTP/1.1 200 OK\r\n" + head + body)
        if hard:
            got.reset()
        got.hangup()

    assert connect(serve(in_turn(broken, broken, Reply(body=b"whole"))).url).request("GET", "/").content == b"whole"
    server = serve(broken)
    with pytest.raises((ResponseIncompleteError, ConnectionFailedError)) as caught:
        connect(server.url).request("GET", "/")
    assert caught.value.attempts == 5
    received = b""
    with pytest.raises(DICOMwebError) as caught:  # noqa: PT012
        with connect(server.url).stream("GET", "/") as answer:
            for chunk in answer.iter_chunks():
                received += chunk
    assert caught.value.retryable
    if not hard:
        assert isinstance(caught.value, ResponseIncompleteError)
        assert received == b"x" * 40
        assert caught.value.status == 200


@pytest.mark.parametrize("cut", [10, 17, 30, 45, 60])
def test_an_answer_that_ends_within_its_headers_is_no_answer(serve, connect, cut) -> None:
    def broken(got) -> None:
        got.send(b"HTTP/1.1 200 OK\r\nServer: some-server\r\nContent-Type: text/plain\r\n\r\n"[:cut])
        got.hangup()

    server = serve(in_turn(broken, broken, Reply(body=b"ok")))
    if cut == 10:
        with pytest.raises(MalformedResponseError):
            connect(server.url).request("GET", "/")
    else:
        assert connect(server.url).request("GET", "/").content == b"ok"
        assert len(server.requests) == 3


def test_chunks_come_as_they_arrive(serve, connect) -> None:
    step = threading.Semaphore(0)

    def handle(got) -> None:
        got.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for letter in b"abc":
            assert step.acquire(timeout=5)
            got.send(bytes([letter]))
        got.hangup()

    server = serve(handle)
    with connect(server.url).stream("GET", "/") as answer:
        step.release()
        chunks = answer.iter_chunks()
        for letter in (b"a", b"b", b"c"):
            assert next(chunks) == letter
            step.release()
        assert list(chunks) == []
    assert server.requests[0].headers["accept-encoding"] == "identity"


def test_chunked_answers_come_as_they_arrive(serve, connect) -> None:
    step = threading.Semaphore(0)

    def handle(got) -> None:
        got.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nab")
        assert step.acquire(timeout=5)
        got.send(b"cdef\r\n0\r\n\r\n")

    server = serve(handle)
    transport = connect(server.url)
    for _ in range(2):
        with transport.stream("GET", "/") as answer:
            chunks = answer.iter_chunks()
            assert next(chunks) == b"ab"
            step.release()
            assert b"".join(chunks) == b"cdef"
    assert server.connections == 1


def test_multipart_errors_name_the_request(serve, connect) -> None:
    begun = Reply(200, b"--b\r\n\r\none\r\n--b\r\n\r\ntw", "multipart/related; boundary=b", length=False)
    server = serve(lambda got: begun)
    with pytest.raises(ResponseIncompleteError, match="1 part was complete") as caught:  # noqa: PT012
        with connect(server.url).stream("GET", "/studies/1") as answer:
            for part in answer.multipart():
                part.read()
    assert (caught.value.status, caught.value.retryable) == (200, True)
    assert "/studies/1" in str(caught.value)
    plain = serve(lambda got: Reply(200, b"<html>", "text/html"))
    with pytest.raises(MalformedResponseError, match="expected a multipart message"):
        with connect(plain.url).stream("GET", "/") as answer:
            answer.multipart()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "raw"])
def test_compressed_answers(serve, connect, encoding) -> None:
    plain = b'{"a": "b"}' * 10_000
    raw = zlib.compressobj(wbits=-15)
    data = {
        "gzip": gzip.compress(plain[:50]) + gzip.compress(plain[50:]),
        "deflate": zlib.compress(plain),
        "raw": raw.compress(plain) + raw.flush(),
    }[encoding]
    server = serve(lambda got: got.answer(200, data, Content_Encoding="gzip" if encoding == "gzip" else "deflate"))
    transport = connect(server.url)
    assert transport.request("GET", "/").content == plain
    assert "gzip" in server.requests[0].headers["accept-encoding"]
    with transport.stream("GET", "/") as answer:
        pieces = list(answer.iter_chunks(1000))
    assert b"".join(pieces) == plain
    assert max(map(len, pieces)) <= 1000


GZIPPED = gzip.compress(b"x" * 1000)


@pytest.mark.parametrize(
    ("data", "encoding", "kind"),
    [
        (GZIPPED[:-9], "gzip", ResponseIncompleteError),
        (GZIPPED[:1], "gzip", ResponseIncompleteError),
        (GZIPPED[:-8] + b"\xff" * 8, "gzip", MalformedResponseError),
        (b"plain", "gzip", MalformedResponseError),
        (b"x", "br", MalformedResponseError),
    ],
    ids=["cut", "one byte", "wrong sum", "plain", "not asked for"],
)
def test_broken_compression(serve, connect, data, encoding, kind) -> None:
    server = serve(lambda got: got.answer(200, data, Content_Encoding=encoding))
    with pytest.raises(DICOMwebError) as caught:
        connect(server.url).request("GET", "/")
    assert type(caught.value) is kind


def test_bombs(serve, connect) -> None:
    bomb = gzip.compress(bytes(100 << 20))
    server = serve(lambda got: got.answer(200, bomb, Content_Encoding="gzip"))
    transport = connect(server.url)
    with pytest.raises(MalformedResponseError, match="larger than 1000 bytes") as caught:
        transport.request("GET", "/", max_bytes=1000)
    assert not caught.value.retryable
    with pytest.raises(MalformedResponseError, match="250-fold"):
        transport.request("GET", "/")
    assert len(server.requests) == 2

    def endless(got) -> None:
        got.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            got.send(bytes(100_000))

    with pytest.raises(MalformedResponseError, match="larger than"):
        connect(serve(endless).url).request("GET", "/", max_bytes=1_000_000)


@pytest.mark.parametrize("kind", ["one", "many", "continue"])
def test_endless_headers(serve, connect, kind) -> None:
    def handle(got) -> None:
        if kind == "continue":
            while True:
                got.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
        got.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            got.send(b"X" * 10_000 if kind == "one" else b"A: b\r\n" * 1000)

    with pytest.raises(MalformedResponseError):
        connect(serve(handle).url, timeouts=Timeouts(deadline=10)).request("GET", "/")


def test_no_http_at_all(serve, connect) -> None:
    with pytest.raises(MalformedResponseError, match="not valid HTTP"):
        connect(serve(lambda got: got.send(b"SSH-2.0-OpenSSH\r\n")).url).request("GET", "/")


# -- time


def drip(got, data: bytes) -> None:
    for byte in data:
        got.send(bytes([byte]))
        if got.server.stopping.wait(0.02):
            return


def test_the_deadline_ends_dripping_headers(serve, connect) -> None:
    server = serve(lambda got: drip(got, b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100_000))
    with pytest.raises(DeadlineExceededError, match=r"deadline of 0\.4 s") as caught:
        connect(server.url, timeouts=Timeouts(deadline=0.4)).request("GET", "/")
    assert isinstance(caught.value, requests.Timeout)
    assert server.wait_until_closed()


@pytest.mark.parametrize("head", [b"Connection: close", b"Content-Length: 100000", b"Transfer-Encoding: chunked"])
def test_the_deadline_ends_dripping_bodies(serve, connect, head) -> None:
    def handle(got) -> None:
        got.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + (b"ffff\r\n" if b"chunked" in head else b""))
        drip(got, b"x" * 100_000)

    server = serve(handle)
    with pytest.raises(DeadlineExceededError, match="reading the answer"):
        connect(server.url, timeouts=Timeouts(deadline=0.4)).request("GET", "/")
    with connect(server.url, timeouts=Timeouts(deadline=0.4)).stream("GET", "/") as answer:
        with pytest.raises(DeadlineExceededError):
            for _ in answer.iter_chunks():
                pass
    assert server.wait_until_closed()


def test_the_deadline_ends_an_upload_that_is_not_read(connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(DeadlineExceededError):
            connect(f"http://127.0.0.1:{listener.getsockname()[1]}", timeouts=Timeouts(deadline=0.4)).request(
                "POST", "/", body=bytes(50_000_000)
            )


def test_a_stalled_server_ends_by_the_read_timeout(serve, connect) -> None:
    def handle(got) -> None:
        if got.target == "/body":
            got.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        got.server.stopping.wait(30)

    server = serve(handle)
    transport = connect(server.url, timeouts=Timeouts(5, 0.2), retry=RetryPolicy.none())
    with pytest.raises(TimedOutError, match=r"no answer within 0\.2 s") as caught:
        transport.request("GET", "/")
    assert isinstance(caught.value, requests.Timeout)
    assert caught.value.retryable
    with pytest.raises(TimedOutError, match=r"nothing arrived for 0\.2 s after 3 bytes"):
        transport.request("GET", "/body")


def test_a_deadline_over_several_requests(serve, connect) -> None:
    transport = connect(serve(lambda got: got.answer()).url)
    deadline = Deadline(2)
    transport.request("GET", "/", deadline=deadline)
    threading.Event().wait(2)
    with pytest.raises(DeadlineExceededError):
        transport.request("GET", "/", deadline=deadline)


# -- redirects


def test_redirects_on_the_same_origin(serve, connect) -> None:
    server = serve(
        lambda got: got.answer(302, b"moved", Location="/new?" + got.query) if got.path == "/old" else Reply(body=b"ok")
    )
    transport = connect(server.url, credentials=BearerToken("secret"), headers={"X-Key": "k"})
    answer = transport.request("GET", "/old?a=b,c%2C")
    assert (answer.content, answer.url) == (b"ok", server.url + "/new")
    assert server.requests[1].target == "/new?a=b,c%2C"
    assert {"authorization": "Bearer secret", "x-key": "k"}.items() <= server.requests[1].headers.items()


def test_redirects_to_another_origin_carry_nothing(serve, connect) -> None:
    other = serve(lambda got: got.answer(200, b"there", Set_Cookie="a=b"))
    server = serve(lambda got: got.answer(307, Location=other.url + "/x"))
    transport = connect(server.url, credentials=BearerToken("secret"), headers={"X-Key": "k", "Cookie": "c=d"})
    headers = {"Accept": "image/png", "X-Private": "p", "Authorization": "Bearer other"}
    assert transport.request("GET", "/", headers=headers).content == b"there"
    assert transport.request("GET", other.url + "/y", headers=headers).content == b"there"
    for got in other.requests:
        assert set(got.headers) <= {"host", "accept", "accept-encoding", "user-agent", "connection"}
        assert got.headers["accept"] == "image/png"
    # Another port of the same host is another origin.
    assert not transport.same_origin(other.url)
    assert transport.same_origin(f"HTTP://127.0.0.1:{server.port}/else")


def test_who_is_sent_away_does_not_come_back_with_credentials(serve, connect) -> None:
    other = serve(lambda got: got.answer(302, Location=home))
    server = serve(lambda got: got.answer(302, Location=other.url) if got.target == "/" else got.answer(200))
    home = server.url + "/back"
    connect(server.url, credentials=BearerToken("secret")).request("GET", "/")
    assert [(got.target, "authorization" in got.headers) for got in server.requests] == [("/", True), ("/back", False)]


def test_bodies_and_what_is_none(serve, connect) -> None:
    server = serve(lambda got: got.answer())
    for body in ("text", {"a": "b"}):
        with pytest.raises(TypeError, match="body"):
            connect(server.url).request("POST", "/", body=body)
    for body in ([b"a", b"b"], io.BytesIO(b"from a file")):
        connect(server.url).request("POST", "/", body=body)
    assert [got.body for got in server.requests] == [b"ab", b"from a file"]


def test_a_session_of_the_user_gives_nothing_to_another_origin(serve, connect) -> None:
    other = serve(lambda got: got.answer(401 if "authorization" not in got.headers else 200))
    server = serve(lambda got: got.answer(302, Location=other.url))
    session = requests.Session()
    session.auth = ("user", "password")
    session.headers["X-Key"] = "k"
    session.cookies.set("a", "b")
    with pytest.raises(DICOMwebError, match="credentials were not sent there"):
        connect(server.url, session=session).request("GET", "/")
    assert server.requests[0].headers["authorization"].startswith("Basic")
    assert {"x-key", "cookie", "authorization"}.isdisjoint(other.requests[0].headers)


@pytest.mark.parametrize(
    ("method", "location", "message", "requests_made"),
    [
        ("GET", "/", "more than 5 redirects", 6),
        ("GET", "file:///etc/passwd", "no HTTP URL", 1),
        ("GET", "http://h:port/", "no HTTP URL", 1),
        ("POST", "/elsewhere", "redirect of POST", 1),
        ("GET", None, "302", 1),
    ],
)
def test_redirects_that_are_not_followed(serve, connect, method, location, message, requests_made) -> None:
    server = serve(lambda got: Reply(302, headers={"Location": location} if location else {}))
    with pytest.raises(RedirectError if location else DICOMwebError, match=message):
        connect(server.url).request(method, "/", body=b"x" if method == "POST" else None)
    assert len(server.requests) == requests_made


def test_a_body_follows_a_redirect_within_the_origin_only(serve, connect) -> None:
    other = serve(lambda got: got.answer())
    server = serve(
        lambda got: got.answer(200) if got.target == "/new" else got.answer(307, Location=to.get(got.target, "/new"))
    )
    to = {"/away": other.url}
    transport = connect(server.url)
    transport.request("POST", "/old", body=b"data")
    assert [(got.method, got.target, got.body) for got in server.requests] == [
        ("POST", "/old", b"data"),
        ("POST", "/new", b"data"),
    ]
    with pytest.raises(RedirectError):
        transport.request("POST", "/away", body=b"data")
    assert other.requests == []
    see_other = serve(lambda got: got.answer(303, Location="/got") if got.method == "POST" else got.answer(200, b"ok"))
    assert connect(see_other.url).request("POST", "/", body=b"data").content == b"ok"
    assert (see_other.requests[1].method, see_other.requests[1].body) == ("GET", b"")


# -- sessions, hooks, logging


def test_the_users_session_is_used_and_not_changed(serve, connect) -> None:
    server = serve(lambda got: got.answer(200, b"", Set_Cookie="sticky=1"))
    session = requests.Session()
    session.headers["X-Mine"] = "1"
    session.auth = ("user", "password")
    seen = []
    session.hooks["response"].append(lambda response, **_: seen.append(response.status_code))

    def state() -> list[Any]:
        return [dict(session.headers), session.auth, dict(session.adapters), session.verify, dict(session.proxies)]

    before = state()
    transport = connect(server.url, session=session, headers={"X-Ours": "2"})
    transport.request("GET", "/")
    transport.request("GET", "/")
    assert state() == before
    got = server.requests[1].headers
    assert (got["x-mine"], got["x-ours"], got["cookie"]) == ("1", "2", "sticky=1")
    assert got["authorization"].startswith("Basic ")
    assert seen == [200, 200]
    transport.close()
    session.get(server.url)


def test_the_sessions_parameters_and_hooks_count_too(serve, connect) -> None:
    server = serve(lambda got: got.answer())
    session = requests.Session()
    session.params = {"key": "a b"}  # type: ignore[assignment]
    seen = []
    session.hooks["response"].append(lambda response, **_: seen.append("session"))
    transport = connect(server.url, session=session, callback=lambda response, **_: seen.append("callback"))
    transport.request("GET", "/a?b=c,d")
    transport.request("GET", "/a")
    assert [got.target for got in server.requests] == ["/a?b=c,d&key=a+b", "/a?key=a+b"]
    assert seen == ["session", "callback"] * 2


def test_a_session_class_of_its_own_goes_through_its_front_door(serve, connect) -> None:
    class Signing(requests.Session):
        def request(self, method, url, *args, headers=None, **kwargs):  # type: ignore[no-untyped-def, override]
            return super().request(method, url, *args, headers={**(headers or {}), "X-Signed": "yes"}, **kwargs)

    server = serve(lambda got: got.answer(503 if got.number == 1 else 200, b"ok"))
    body = MultipartBody([BodyPart({}, b"data")])
    transport = connect(server.url, session=Signing())
    assert transport.request("POST", "/?a=b,c%2C", body=body).content == b"ok"
    assert [got.headers["x-signed"] for got in server.requests] == ["yes", "yes"]
    assert server.requests[1].body == b"".join(body)
    assert server.requests[0].target == "/?a=b,c%2C"
    with transport.stream("GET", "/") as answer:
        assert b"".join(answer.iter_chunks()) == b"ok"


def test_an_adapter_of_the_users_is_used(serve, connect) -> None:
    used = []

    class Adapter(requests.adapters.HTTPAdapter):
        def send(self, *args, **kwargs):  # type: ignore[no-untyped-def, override]
            used.append(1)
            return super().send(*args, **kwargs)

    session = requests.Session()
    session.mount("http://", Adapter())
    server = serve(lambda got: got.answer(200, b"ok"))
    assert connect(server.url, session=session).request("GET", "/").content == b"ok"
    assert used == [1]


def test_digest_authentication(serve, connect) -> None:
    refusal = Reply(401, headers={"WWW-Authenticate": 'Digest realm="r", nonce="n", qop="auth"'})
    known = 'Digest username="u"'
    server = serve(lambda got: Reply(body=b"in") if got.headers.get("authorization", "").startswith(known) else refusal)
    transport = connect(server.url, credentials=HTTPDigestAuth("u", "p"))
    assert transport.request("GET", "/").content == b"in"
    assert transport.request("POST", "/", body=MultipartBody([BodyPart({}, b"x")])).content == b"in"


def test_the_callback_sees_and_may_replace_responses(serve, connect) -> None:
    server = serve(lambda got: got.answer(200, b"original"))
    seen: list[int] = []

    def callback(response: requests.Response, *args: Any, **kwargs: Any) -> requests.Response:
        seen.append(len(response.content))
        response._content = b"replaced"
        return response

    assert connect(server.url, callback=callback).request("GET", "/").content == b"replaced"
    with connect(server.url, callback=callback).stream("GET", "/") as answer:
        assert list(answer.iter_chunks(5)) == [b"repla", b"ced"]
    assert seen == [8, 8]


def test_each_request_is_counted_with_its_bytes_and_its_time(serve, connect) -> None:
    server = serve(lambda got: got.answer(503 if got.number == 1 else 200, b"four"))
    transport = connect(server.url)
    transport.request("GET", "/a?PatientName=Doe")
    stats = transport.stats
    assert (stats.requests, stats.retries, stats.bytes_in) == (2, 1, 8)
    assert len(stats.take_durations()) == 2
    assert stats.take_durations() == []


def test_nothing_secret_is_logged(serve, connect, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    other = serve(lambda got: got.answer(200))
    away = Reply(302, headers={"Location": other.url + "/?Doe"})
    server = serve(in_turn(Reply(503, headers={"Retry-After": "0.01"}), away))
    transport = connect(server.url, credentials=BearerToken("s3cret"), headers={"X-Key": "s3cret"})
    transport.request("GET", "/studies?PatientName=Doe", headers={"Accept": "s3cret/x"})
    assert "Doe" not in caplog.text
    assert "s3cret" not in caplog.text
    assert "trying again" in caplog.text
    assert "asks to wait" in caplog.text
    assert {record.name.partition(".")[0] for record in caplog.records} <= {"dicomweb_io", "urllib3"}


# -- concurrency and cleaning up


class InFlight:
    """Counts requests that are answered at the same time."""

    def __init__(self) -> None:
        self._lock, self._now, self.maximum = threading.Lock(), 0, 0

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self.maximum = max(self.maximum, self._now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._now -= 1


def at_once(count: int, work: Callable[[int], object]) -> None:
    """Does something in that many threads, each with its number."""
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))


def test_no_more_in_flight_than_allowed(serve, connect) -> None:
    in_flight, full = InFlight(), threading.Barrier(3)

    def handle(got) -> None:
        with in_flight:
            full.wait(5)
        got.answer()

    server = serve(handle)
    transport = connect(server.url, limits=Limits(3))
    at_once(9, lambda _: transport.request("GET", "/"))
    assert (in_flight.maximum, server.connections) == (3, 3)


@pytest.mark.parametrize("limit", [1, 2])
def test_transports_of_one_endpoint_share_the_limit(serve, connect, limit) -> None:
    in_flight = InFlight()

    def handle(got) -> None:
        with in_flight:
            got.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1")
            # Others would come in the meantime, if they were allowed to.
            time.sleep(0.01)
        got.send(b"2")

    server = serve(handle)
    transports = [connect(server.url, limits=Limits(limit)) for _ in range(4)]
    at_once(4, lambda number: [transports[number].request("GET", "/") for _ in range(10)])
    assert (len(server.requests), in_flight.maximum) == (40, limit)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_has_connections_limits_and_deadlines_of_its_own(serve, connect) -> None:
    server = serve(lambda got: got.answer(200, got.target.encode()))
    transport = connect(server.url, limits=Limits(1))
    assert transport.request("GET", "/before").content == b"/before"
    with transport.stream("GET", "/open") as answer:
        child = os.fork()
        if child == 0:
            # Whatever fails here must not run the rest of the tests twice.
            try:
                got = [transport.request("GET", f"/child/{number}", deadline=30).content for number in range(3)]
                os._exit(0 if got == [b"/child/0", b"/child/1", b"/child/2"] else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert answer.read() == b"/open"
    assert transport.request("GET", "/after").content == b"/after"
    assert server.connections == 2


def test_a_thread_that_reads_an_answer_can_ask_for_more(serve, connect) -> None:
    server = serve(lambda got: got.answer(200, b"ok"))
    transport = connect(server.url, limits=Limits(1), timeouts=Timeouts(deadline=5))
    with transport.stream("GET", "/") as outer, transport.stream("GET", "/") as inner:
        assert transport.request("GET", "/").content == b"ok"
        assert outer.read() == inner.read() == b"ok"


def test_waiting_for_a_slot_ends_with_the_deadline(serve, connect) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def handle(got) -> None:
        got.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1")
        asked.set()
        go_on.wait(30)
        got.send(b"2")

    transport = connect(serve(handle).url, limits=Limits(1))
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(transport.request, "GET", "/")
        assert asked.wait(30)
        with pytest.raises(DeadlineExceededError, match="in flight") as caught:
            transport.request("GET", "/", deadline=0.2)
        assert caught.value.url == transport.base_url + "/"
        go_on.set()
        assert reading.result().content == b"12"


def test_an_answer_that_nobody_reads_holds_no_slot(serve, connect) -> None:
    server = serve(lambda got: got.answer(200, b"ok"))
    transport = connect(server.url, limits=Limits(1))
    with transport.stream("GET", "/") as answer, ThreadPoolExecutor(1) as pool:
        assert pool.submit(transport.request, "GET", "/", deadline=30).result().content == b"ok"
        assert answer.read() == b"ok"


def test_requests_per_second(serve, connect) -> None:
    """A second's worth passes at once. On a slow machine requests arrive late and need not wait, but never early."""
    arrivals: list[float] = []

    def handle(got) -> None:
        arrivals.append(time.monotonic())
        got.answer()

    server = serve(handle)
    transports = [connect(server.url, limits=Limits(requests_per_second=20)) for _ in range(2)]
    begun = time.monotonic()
    for number in range(26):
        transports[number % 2].request("GET", "/")
    assert all(number <= 20 * (1 + moment - begun) for number, moment in enumerate(arrivals, 1))
    waited = sum(transport.stats.throttled_seconds for transport in transports)
    assert waited <= arrivals[-1] - begun


def test_an_abandoned_stream_closes_its_connection(serve, connect) -> None:
    def handle(got) -> None:
        got.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            got.send(bytes(65536))

    server = serve(handle)
    transport = connect(server.url)

    def consume() -> Iterator[bytes]:
        for attempt in transport.attempts():
            with attempt, transport.stream("GET", "/", attempt=attempt) as answer:
                yield from answer.iter_chunks()

    chunks = consume()
    next(chunks)
    chunks.close()
    assert server.wait_until_closed()
    chunks = consume()
    next(chunks)
    del chunks
    gc.collect()
    assert server.wait_until_closed()
    with pytest.raises(KeyError):
        with transport.stream("GET", "/"):
            raise KeyError("the consumer's own")
    assert server.wait_until_closed()


def test_connections_are_used_again(serve, connect) -> None:
    answers = {
        "/": Reply(200, b"x" * 1000),
        "/no": Reply(404, b"x" * 1000),
        "/parts": Reply(200, b"--b\r\n\r\nx\r\n--b--\r\nepilogue", "multipart/related; boundary=b"),
    }
    server = serve(lambda got: answers[got.target])
    transport = connect(server.url)
    for _ in range(3):
        transport.request("GET", "/")
        with pytest.raises(DICOMwebError):
            transport.request("GET", "/no")
        with transport.stream("GET", "/parts") as answer:
            assert [part.read() for part in answer.multipart()] == [b"x"]
        with transport.stream("GET", "/"):
            pass
    assert server.connections == 1


# -- repeating whole operations


def test_attempts_repeat_what_breaks_off(serve, connect) -> None:
    server = serve(in_turn(Reply(503), CUT_OFF, Reply(503), CUT_OFF, Reply(body=b"0123456789")))
    transport = connect(server.url)
    numbers = []
    for attempt in transport.attempts():
        with attempt, transport.stream("GET", "/", attempt=attempt) as answer:
            numbers.append((attempt.number, answer.attempts))
            content = answer.read()
    assert content == b"0123456789"
    assert numbers == [(1, 2), (2, 4), (3, 5)]


def test_attempts_share_one_budget(serve, connect) -> None:
    server = serve(lambda got: Reply(503) if got.number % 2 else CUT_OFF)
    transport = connect(server.url)
    with pytest.raises(DICOMwebError) as caught:  # noqa: PT012
        for attempt in transport.attempts():
            with attempt, transport.stream("GET", "/", attempt=attempt) as answer:
                answer.read()
    assert len(server.requests) == caught.value.attempts == 5


def test_progress_gives_new_attempts_and_other_errors_pass(serve, connect) -> None:
    server = serve(lambda got: CUT_OFF if got.number < 12 else Reply(body=b"done"))
    transport = connect(server.url)
    for attempt in transport.attempts():
        with attempt, transport.stream("GET", "/", attempt=attempt) as answer:
            for _ in answer.iter_chunks():
                attempt.progress()
    assert len(server.requests) == 12
    tries = 0
    with pytest.raises(KeyError):  # noqa: PT012
        for attempt in transport.attempts():
            with attempt:
                tries += 1
                raise KeyError
    assert tries == 1


def test_many_threads_and_random_faults_lose_and_leak_nothing(serve, connect) -> None:
    rng, lock = random.Random(1), threading.Lock()

    def handle(got) -> None:
        with lock:
            fault = rng.choice(["reset", "hangup", "cut", "503", "chunk", *["none"] * 15])
        if fault == "reset":
            got.reset()
        if fault == "hangup":
            got.hangup()
        if fault == "503":
            got.answer(503)
            return
        body = got.target.encode() * 1000
        if fault == "cut":
            got.reply(Reply(body=body, cut=100))
        if fault == "chunk":
            got.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body)
            got.hangup()
        got.answer(200, body)

    server = serve(handle)
    transport = connect(server.url, retry=RetryPolicy(12, initial_delay=0), timeouts=Timeouts(deadline=60))

    def work(number: int) -> None:
        for index in range(40):
            target = f"/{number}/{index}"
            if index % 2:
                content = transport.request("GET", target).content
            else:
                for attempt in transport.attempts():
                    with attempt, transport.stream("GET", target, attempt=attempt) as answer:
                        content = b"".join(answer.iter_chunks(1000))
            assert content == target.encode() * 1000

    at_once(8, work)
    assert transport.stats.retries > 0
    transport.close()
    assert server.wait_until_closed()


def test_errors_keep_nothing_alive(serve, connect) -> None:
    """Neither errors that were retried nor those that came out wait for the garbage collector with their answers."""

    answers = {"/503": Reply(503), "/cut": CUT_OFF}
    server = serve(lambda got: answers[got.target] if got.target in answers else got.reset())
    transport = connect(server.url)
    gc.collect()
    gc.disable()
    try:
        for path in ("/503", "/cut", "/reset"):
            with pytest.raises(DICOMwebError):
                transport.request("GET", path)
            with pytest.raises(DICOMwebError):  # noqa: PT012
                for attempt in transport.attempts():
                    with attempt, transport.stream("GET", path, attempt=attempt) as answer:
                        answer.read()
        answer = None
        alive = [item for item in gc.get_objects() if isinstance(item, (StreamedAnswer, DICOMwebError))]
    finally:
        gc.enable()
    assert alive == []


def test_a_transport_is_not_pickled(connect) -> None:
    with pytest.raises(TypeError, match="Endpoint"):
        pickle.dumps(connect("http://127.0.0.1:1"))


def test_no_threads_stay_behind_requests(serve, connect) -> None:
    server = serve(lambda got: got.answer())
    transport = connect(server.url)
    for _ in range(20):
        transport.request("GET", "/")
    assert sum(thread.name == "dicomweb_io-deadlines" for thread in threading.enumerate()) <= 1


def test_head_and_no_content(serve, connect) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Encoding: gzip\r\n\r\n"
    server = serve(lambda got: got.send(head) if got.method == "HEAD" else Reply(204))
    transport = connect(server.url)
    assert transport.request("HEAD", "/").content == b""
    assert transport.request("GET", "/").status == 204
    assert transport.request("HEAD", "/").headers["Content-Length"] == "1000"
    assert server.connections == 1


def test_a_body_is_read_once(serve, connect) -> None:
    server = serve(lambda got: got.answer(200, b"x"))
    with connect(server.url).stream("GET", "/") as answer:
        assert answer.read() == b"x"
        with pytest.raises(RuntimeError, match="once"):
            answer.read()
