"""The ends of HTTP messages are found wherever the bytes happen to be divided."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from dicomweb_io.testing.proxy import Body, Head, body_of_answer, body_of_request


def chunked(pieces: list[bytes], trailer: bytes = b"") -> bytes:
    return (
        b"".join(b"%x;a=b\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n" + trailer + b"\r\n"
    )


@given(st.lists(st.binary(max_size=50)), st.lists(st.integers(1, 20)), st.binary(max_size=20))
def test_chunked_bodies_end_where_they_end(pieces, cuts, after):
    message = chunked(pieces, b"X-Trailer: yes\r\n")
    body = Body(None, chunked=True, decode=True)
    data, used = message + after, 0
    for size in [*cuts, len(data)]:
        if not body.done:
            used += body.feed(data[used : used + size])
    assert body.done
    assert used == len(message)
    assert body.take() == b"".join(pieces)


@given(st.binary(max_size=100), st.binary(max_size=20), st.integers(1, 30))
def test_bodies_with_a_length_end_after_it(content, after, step):
    body = Body(len(content))
    data, used = content + after, 0
    while not body.done:
        used += body.feed(data[used : used + step])
    assert used == len(content)


def test_heads_are_taken_apart():
    raw = b'HTTP/1.1 200 OK\r\nContent-Type: multipart/related; boundary="a;b"\r\nConnection: Close\r\n\r\nrest'
    head = Head.parse(raw)
    assert head is not None
    assert (head.status, head.boundary(), head.closes, head.length, head.chunked) == (200, b"a;b", True, None, False)
    assert head.raw.endswith(b"\r\n\r\n")
    assert Head.parse(b"GET / HTTP/1.1\r\nHost: x\r\n") is None
    request = Head.parse(b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n")
    assert request is not None
    assert (request.method, request.target) == ("GET", "/a?b=c")
    assert body_of_request(request).done


@pytest.mark.parametrize(("method", "status", "done"), [("HEAD", 200, True), ("GET", 204, True), ("GET", 200, False)])
def test_some_answers_have_no_body(method, status, done):
    head = Head.parse(f"HTTP/1.1 {status} X\r\nContent-Length: 5\r\n\r\n".encode())
    assert head is not None
    assert body_of_answer(head, method).done is done
