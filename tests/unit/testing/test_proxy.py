"""The TCP proxy: it relays faithfully, and each fault below HTTP is what a socket then sees."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import requests
from urllib3.util import Retry

from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.proxy import FaultyProxy
from tests.answering import Reply, Request

PARTS = [bytes([65 + number]) * 1000 for number in range(3)]
BODY = (
    b"".join(b"--limit\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n" for part in PARTS)
    + b"--limit--\r\n"
)


KIND = 'multipart/related; type="application/dicom"; boundary="limit"'


def pieces() -> Iterator[bytes]:
    """The body in chunks."""
    for start in range(0, len(BODY), 700):
        piece = BODY[start : start + 700]
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def answer(got: Request) -> None:
    """Answers /length with a length, /chunks in chunks, /until-close without either; POST gives the body back."""
    if got.method == "HEAD":
        got.send(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n")
    elif got.method == "POST":
        got.answer(200, got.body)
    elif got.path == "/chunks":
        got.answer(200, b"".join(pieces()), Content_Type=KIND, Transfer_Encoding="chunked")
    else:
        got.reply(Reply(200, BODY, KIND, length=got.path != "/until-close"))
    if got.headers.get("connection") == "close":
        got.hangup()


@pytest.fixture
def upstream(answering):
    return answering(answer)


@pytest.fixture
def proxied(upstream):
    with ExitStack() as stack:
        yield lambda *faults: stack.enter_context(FaultyProxy(("127.0.0.1", upstream.port), faults))


def exchange(proxy: FaultyProxy, path: str = "/length", connection: str = "close") -> tuple[bytes, bool]:
    """Everything that a raw socket receives, and whether the connection was reset."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        data = b""
        try:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n\r\n".encode())
            while chunk := client.recv(65536):
                data += chunk
        except ConnectionResetError:
            return data, True
        return data, False


def url(proxy: FaultyProxy, path: str) -> str:
    return f"http://127.0.0.1:{proxy.port}{path}"


@pytest.mark.parametrize("path", ["/length", "/chunks", "/until-close"])
def test_without_faults_everything_passes_unchanged(proxied, path):
    proxy = proxied()
    with requests.Session() as session:
        for _ in range(3):
            assert session.get(url(proxy, path), timeout=10).content == BODY
            assert session.head(url(proxy, path), timeout=10).headers["Content-Length"] == "12345"
            assert session.post(url(proxy, path), data=b"x" * 300_000, timeout=10).content == b"x" * 300_000
            chunked = session.post(url(proxy, path), data=iter([b"ab" * 5000, b"c"]), timeout=10)
            assert chunked.content == b"ab" * 5000 + b"c"
    if path != "/until-close":
        assert proxy.connections == 1, "the connection is kept alive"


def test_reset_before_the_server_hears_of_it(proxied, upstream):
    proxy = proxied(fault("reset", at="request"))
    assert exchange(proxy) == (b"", True)
    assert upstream.requests == []
    assert exchange(proxy)[0].endswith(b"--limit--\r\n")


def test_reset_after_the_work_was_done(proxied, upstream):
    proxy = proxied(fault("reset", at="answer", method="POST"))
    with pytest.raises(requests.ConnectionError):
        requests.post(url(proxy, "/store"), data=b"x", timeout=10)
    assert upstream.asked() == ["/store"]


@pytest.mark.parametrize("action", ["reset", "truncate"])
@pytest.mark.parametrize("position", [0, 5, 40])
def test_cut_inside_the_header(proxied, action, position):
    data, reset = exchange(proxied(fault(action, at="header", position=position)))
    assert len(data) == position
    assert reset is (action == "reset")


@pytest.mark.parametrize("path", ["/length", "/chunks", "/until-close"])
@pytest.mark.parametrize("action", ["reset", "truncate"])
@pytest.mark.parametrize("position", [0, 1500, 2999])
def test_cut_inside_the_body(proxied, path, action, position):
    data, reset = exchange(proxied(fault(action, at="body", position=position)), path)
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"200" in head
    assert reset is (action == "reset")
    if not reset:
        assert len(body) == position


@pytest.mark.parametrize("number", [1, 2, 3])
def test_cut_between_parts(proxied, number):
    data, _ = exchange(proxied(fault("truncate", at="part", position=number)))
    body = data.partition(b"\r\n\r\n")[2]
    assert body.count(b"--limit") == number
    assert body.endswith(b"--limit")


@pytest.mark.parametrize("path", ["/length", "/chunks"])
def test_cut_where_no_length_is_announced(proxied, path):
    answer = requests.get(url(proxied(fault("truncate", position=1500, framing="close")), path), timeout=10)
    assert "Content-Length" not in answer.headers
    assert "Transfer-Encoding" not in answer.headers
    assert answer.content == BODY[:1500], "nothing but the missing closing boundary tells that it was cut"


def test_nothing_cut_off_but_no_length_announced(proxied):
    proxy = proxied(fault("truncate", position=-1, framing="close"))
    assert requests.get(url(proxy, "/chunks"), timeout=10).content == BODY


@pytest.mark.parametrize("at", ["request", "answer", "header", "body", "part"])
def test_a_stalled_connection_stays_open_and_silent(proxied, at):
    proxy = proxied(fault("stall", at=at, position=1))
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        client.sendall(b"GET /length HTTP/1.1\r\nHost: x\r\n\r\n")
        data = b""
        # The first bytes may take long on a busy machine; silence is silence after them.
        while select.select([client], [], [], 0.3 if data or at in ("request", "answer") else 10)[0]:
            chunk = client.recv(65536)
            assert chunk, "the connection must stay open"
            data += chunk
    assert (data == b"") is (at in ("request", "answer"))
    assert not data.endswith(b"--limit--\r\n")


@pytest.mark.parametrize(
    ("at", "position", "path", "pieces"),
    [
        ("request", 0, "/length", 10),
        ("answer", 0, "/length", 10),
        ("header", 3, "/chunks", 10),
        ("body", 2000, "/length", 10),
        ("part", 3, "/length", 10),
    ],
)
def test_dripping_bytes_arrive_in_the_end(proxied, at, position, path, pieces):
    proxy = proxied(fault("drip", at=at, position=position, count=40, interval=0.01))
    started = time.monotonic()
    assert requests.get(url(proxy, path), timeout=10).content == BODY
    assert time.monotonic() - started >= pieces * 0.01


def test_endless_headers_end_with_the_client(proxied):
    proxy = proxied(fault("endless_headers"))
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        client.sendall(b"GET /length HTTP/1.1\r\nHost: x\r\n\r\n")
        data = b""
        while len(data) < 1_000_000:
            data += client.recv(65536)
    assert b"\r\n\r\n" not in data


def test_a_kept_connection_is_closed_without_notice(proxied):
    data, _ = exchange(proxied(fault("close_after")), connection="keep-alive")
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"close" not in head.lower()
    assert body == BODY


def test_bandwidth_is_limited_and_nothing_lost(proxied):
    proxy = proxied(fault("bandwidth", rate=100_000, times=None))
    assert requests.get(url(proxy, "/chunks"), timeout=10).content == BODY
    assert requests.post(url(proxy, "/"), data=b"y" * 5000, timeout=10).content == b"y" * 5000


def test_a_dead_server_refuses_connections_and_comes_back(proxied):
    proxy = proxied(fault("down", seconds=0.3))
    data, _ = exchange(proxy)
    assert data == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
    with requests.Session() as session:
        patient = Retry(connect=20, backoff_factor=0.05, backoff_max=0.1)
        session.mount("http://", requests.adapters.HTTPAdapter(max_retries=patient))
        assert session.get(url(proxy, "/length"), timeout=10).content == BODY


def test_the_port_of_a_dead_server_stays_its_own(proxied):
    proxy = proxied()
    proxy.down(3600.0)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", proxy.port))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
    proxy.up()
    assert requests.get(url(proxy, "/length"), timeout=10).content == BODY


def test_a_dead_server_can_be_brought_back_before_its_time(proxied):
    proxy = proxied(fault("down", seconds=3600.0))
    assert exchange(proxy)[0] == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
    proxy.up()
    proxy.up()
    assert requests.get(url(proxy, "/length"), timeout=10).content == BODY


def test_stop_and_start_keep_the_port(proxied):
    proxy = proxied()
    port = proxy.port
    assert requests.get(url(proxy, "/length"), timeout=10).ok
    proxy.stop()
    with pytest.raises(requests.ConnectionError):
        requests.get(url(proxy, "/length"), timeout=10)
    proxy.start()
    assert proxy.port == port
    assert requests.get(url(proxy, "/length"), timeout=10).content == BODY


def test_faults_are_counted_and_can_be_added(proxied):
    proxy = proxied(fault("reset", path="/chunks", first=2))
    assert exchange(proxy, "/chunks")[1] is False
    assert exchange(proxy, "/length")[1] is False
    assert exchange(proxy, "/chunks")[1] is True
    assert proxy.faults.struck == [1]
    proxy.faults.add(fault("reset", path="/length"))
    assert exchange(proxy, "/length")[1] is True


def test_faults_of_the_server_itself_are_refused():
    with pytest.raises(ValueError, match="for the server itself"):
        FaultyProxy(("127.0.0.1", 1), [fault("status")])


def test_a_server_that_is_not_there_is_a_dropped_connection(proxied):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        proxy = FaultyProxy(unused.getsockname()).start()
        data, _ = exchange(proxy)
        proxy.stop()
    assert data == b""
