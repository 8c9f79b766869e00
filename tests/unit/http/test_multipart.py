"""The multipart reader and writer: every way to cut a message into chunks gives the same parts."""

from __future__ import annotations

import io
import pickle
import random
import re
import tracemalloc

import pytest
from hypothesis import given, settings, strategies as st

from dicomweb_io.http.multipart import (
    BodyPart,
    BodySourceError,
    MultipartBody,
    MultipartError,
    MultipartReader,
    encode_multipart,
    parse_content_type,
)

TYPE = "multipart/related; boundary=b0"


def chunks_of(message: bytes, size: int) -> list[bytes]:
    return [message[start : start + size] for start in range(0, len(message), size)]


def parts_of(message: bytes, content_type: str = TYPE, size: int | None = None) -> list[tuple[dict[str, str], bytes]]:
    chunks = chunks_of(message, size or max(1, len(message)))
    return [(dict(part.headers), part.read()) for part in MultipartReader(chunks, content_type)]


def model(message: bytes, boundary: bytes) -> list[bytes] | None:
    """The contents by the plain reading of RFC 2046, on the whole message; None if it is not closed."""
    pieces = re.split(rb"(?:^|\r\n)--" + re.escape(boundary) + rb"(?=(?:--)?[ \t]*(?:\r?\n|\Z))", message)
    contents = []
    for piece in pieces[1:]:
        if piece.startswith(b"--"):
            return contents
        # What follows a delimiter: blanks and a line end, headers, an empty line, the content.
        rest = re.sub(rb"\A[ \t]*\r\n", b"", piece, count=1)
        if rest.startswith(b"\r\n"):
            contents.append(rest[2:])
        else:
            contents.append(rest.partition(b"\r\n\r\n")[2])
    return None


PLAIN = (
    b"--b0\r\nContent-Type: application/dicom\r\nContent-Location: a,b\r\n\r\nfirst\r\n--b0 is not it\r\n"
    b"\r\n--b0  \r\n\r\nno headers\r\n--b0\r\nX-Folded: one\r\n  two\r\n\tthree\r\n\r\n\r\n"
    b"--b0\r\n\r\n\r\r\n\r\n--b0--\t\r\n"
)
EXPECTED = [
    ({"Content-Type": "application/dicom", "Content-Location": "a,b"}, b"first\r\n--b0 is not it\r\n"),
    ({}, b"no headers"),
    ({"X-Folded": "one two three"}, b""),
    ({}, b"\r\r\n"),
]


NO_BOUNDARIES = b"x--b0--\r\n\n--b0--\r\n\r\n--b0x\r\n\r\n--b\r\n--"
MESSAGES: dict[str, tuple[bytes, list[tuple[dict[str, str], bytes]]]] = {
    "plain": (PLAIN, EXPECTED),
    "preamble and epilogue": (
        b"A message --b0 in\r\nmany--b0\r\n parts.\r\n--b0\r\n\r\nx\r\n--b0--\r\nepilogue\r\n--b0\r\n\r\nno part",
        [({}, b"x")],
    ),
    "lines that end with LF": (
        b"x\n--b0\nA: b\n c\n\none\r\n--b0\n\n\n--b0--\n",
        [({"A": "b c"}, b"one\r"), ({}, b"")],
    ),
    "no CRLF before the boundary": (b"--b0\r\n\r\n" + NO_BOUNDARIES + b"\r\n--b0--", [({}, NO_BOUNDARIES)]),
    "ends with its headers": (b"--b0\r\nA: b\r\n\r\n--b0\r\n\r\n--b0--", [({"A": "b"}, b""), ({}, b"")]),
}


@pytest.mark.parametrize(("message", "expected"), MESSAGES.values(), ids=MESSAGES)
def test_every_chunk_size_gives_the_same_parts(message: bytes, expected: list[tuple[dict[str, str], bytes]]) -> None:
    for size in range(1, len(message) + 1):
        assert parts_of(message, size=size) == expected


def test_every_cut_in_two_gives_the_same_parts() -> None:
    for cut in range(len(PLAIN) + 1):
        reader = MultipartReader([PLAIN[:cut], b"", PLAIN[cut:]], TYPE)
        assert [(dict(part.headers), part.read()) for part in reader] == EXPECTED
        assert reader.closed
        assert reader.complete_parts == 4


def test_every_truncation_raises_and_names_the_complete_parts() -> None:
    closing = PLAIN.rindex(b"--b0--") + len(b"--b0--")
    ends = [match.start() for match in re.finditer(rb"\r\n--b0(?=[ ]{2}\r|\r|--)", PLAIN)]
    for cut in range(closing):
        reader = MultipartReader([PLAIN[:cut]], TYPE)
        with pytest.raises(MultipartError) as caught:  # noqa: PT012
            for part in reader:
                part.read()
        assert caught.value.truncated
        # A part counts as complete when its delimiter's line is there (blanks included).
        assert caught.value.complete_parts <= sum(end < cut for end in ends)
        assert str(caught.value.complete_parts) in str(caught.value)
        with pytest.raises(MultipartError):
            next(reader)
    assert len(parts_of(PLAIN[:closing])) == 4


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_truncated_last_part_raises_while_it_is_read(size: int) -> None:
    message = b"--b0\r\n\r\n" + b"x" * 500
    part = next(MultipartReader(chunks_of(message, size), TYPE))
    got = b""
    with pytest.raises(MultipartError, match="within part 1, without its closing boundary; 0 parts were complete"):  # noqa: PT012
        for piece in part.iter_bytes():
            got += piece
    assert got == b"x" * 500


alphabet = st.sampled_from([b"\r", b"\n", b"-", b"--", b"b0", b"\r\n--b0", b"--b0", b"--b0--", b" ", b"a", b":", b"\0"])
texts = st.lists(alphabet, max_size=12).map(b"".join)


@settings(max_examples=400)
@given(st.lists(texts, max_size=4), texts, texts, st.randoms(use_true_random=False))
def test_against_the_model(contents: list[bytes], preamble: bytes, epilogue: bytes, rng: random.Random) -> None:
    message = preamble
    if message and not message.endswith(b"\r\n"):
        message += b"\r\n"
    message += b"--b0"
    for content in contents:
        message += rng.choice([b"", b" "]) + b"\r\n" + rng.choice([b"", b"A: b\r\n"]) + b"\r\n" + content + b"\r\n--b0"
    message += b"--" + rng.choice([b"", b"\t"]) + b"\r\n" + epilogue
    expected = model(message, b"b0")
    chunks = []
    position = 0
    while position < len(message):
        size = rng.choice([1, 2, 3, 10, 50])
        chunks.append(message[position : position + size])
        position += size
    if re.search(rb"(^|\n)--b0", preamble) or any(b"--b0" in content for content in contents):
        # What the contents then mean is the reader's strictness; it must not depend on the chunks.
        outcomes = []
        for pieces in ([message], chunks):
            try:
                outcomes.append([(dict(part.headers), part.read()) for part in MultipartReader(pieces, TYPE)])
            except MultipartError as error:
                outcomes.append(str(error))  # type: ignore[arg-type]
        assert outcomes[0] == outcomes[1]
    else:
        assert [part.read() for part in MultipartReader(chunks, TYPE)] == expected == contents


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 400))
def test_what_is_written_is_read(contents: list[bytes], size: int) -> None:
    message = b"".join(encode_multipart([({"A": "b"}, content) for content in contents], "x1"))
    assert parts_of(message, 'multipart/related; boundary="x1"', size) == [({"A": "b"}, item) for item in contents]


@settings(max_examples=500)
@given(st.binary(max_size=400), st.integers(1, 50))
def test_garbage_only_raises_its_own_error(data: bytes, size: int) -> None:
    for message in (data, b"--b0\r\n" + data):
        try:
            parts_of(message, size=size)
        except MultipartError:
            continue


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary=abc', b"abc"),
        ('multipart/related; boundary="a;b=c d"; type="application/dicom"', b"a;b=c d"),
        ('multipart/related; type="image/jpeg; boundary=wrong"; boundary=right', b"right"),
        ("Multipart/Related;Boundary=----=_Part_1/2", b"----=_Part_1/2"),
        ('multipart/mixed; boundary = "q\\"uote"', b'q"uote'),
        ("multipart/related; type=application/dicom; transfer-syntax=*; boundary=" + "9" * 73 + " ", b"9" * 73),
    ],
)
def test_boundaries(content_type: str, boundary: bytes) -> None:
    message = b"--" + boundary + b"\r\n\r\ndata\r\n--" + boundary + b"--\r\n"
    for size in (1, 5, None):
        assert parts_of(message, content_type, size) == [({}, b"data")]


@pytest.mark.parametrize("content_type", ["", "text/html", "multipart/related", 'multipart/related; boundary=""'])
def test_what_is_not_multipart_is_refused_at_once(content_type: str) -> None:
    with pytest.raises(MultipartError):
        MultipartReader([], content_type)


def test_no_parts() -> None:
    assert parts_of(b"--b0--") == []
    assert parts_of(b"--b0--\r\n") == []
    with pytest.raises(MultipartError, match="empty"):
        parts_of(b"")


def test_bounds() -> None:
    with pytest.raises(MultipartError, match="headers are longer"):
        parts_of(b"--b0\r\n" + b"A: " + b"x" * 70000 + b"\r\n\r\nx\r\n--b0--", size=1000)
    with pytest.raises(MultipartError, match="hold no delimiter"):
        list(MultipartReader(iter(lambda: b"<html>" * 1000, b""), TYPE))
    with pytest.raises(MultipartError, match="not a header"):
        parts_of(b"--b0\r\nnonsense\r\n\r\nx\r\n--b0--")


def test_skipping_and_late_reading() -> None:
    for size in (1, 4, 1000):
        reader = MultipartReader(chunks_of(PLAIN, size), TYPE)
        first = next(reader)
        pieces = first.iter_bytes()
        assert next(pieces)
        second = next(reader)
        with pytest.raises(MultipartError, match="already read or skipped"):
            first.read()
        assert second.read() == b"no headers"
        with pytest.raises(MultipartError, match="already read"):
            second.read()
        assert [part.read() for part in reader] == [b"", b"\r\r\n"]


def test_resuming_an_abandoned_part_raises() -> None:
    reader = MultipartReader(chunks_of(PLAIN, 1), TYPE)
    pieces = next(reader).iter_bytes()
    next(pieces)
    next(reader)
    with pytest.raises(MultipartError, match="after the next part"):
        next(pieces)


def test_repeated_headers_are_joined_and_case_does_not_matter() -> None:
    [part] = list(MultipartReader([b"--b0\r\na: 1\r\nA: 2\r\nContent-TYPE: x/y\r\n\r\n\r\n--b0--"], TYPE))
    assert part.headers["A"] == "1, 2"
    assert part.content_type == "x/y"


def test_memory_does_not_grow_with_the_part() -> None:
    block = bytes(range(256)) * 4096

    def chunks():  # type: ignore[no-untyped-def]
        yield b"--b0\r\n\r\n"
        for _ in range(64):
            yield block
        yield b"\r\n--b0--\r\n"

    tracemalloc.start()
    try:
        total = sum(len(piece) for part in MultipartReader(chunks(), TYPE) for piece in part.iter_bytes())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 64 << 20
    assert peak < 4 << 20


def test_errors_pickle() -> None:
    error = pickle.loads(pickle.dumps(MultipartError("broken", truncated=True, complete_parts=3)))
    assert (str(error), error.truncated, error.complete_parts) == ("broken", True, 3)


def test_parse_content_type() -> None:
    assert parse_content_type('Image/JPEG; Transfer-Syntax=1.2; q="a\\"b"; q=2') == (
        "image/jpeg",
        {"transfer-syntax": "1.2", "q": 'a"b'},
    )
    assert parse_content_type("") == ("", {})


def test_body_is_replayable_and_its_length_known(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "file.dcm"
    file.write_bytes(b"f" * 3_000_000)
    opened = []

    def source() -> io.BytesIO:
        opened.append(io.BytesIO(b"s" * 100_000))
        return opened[-1]

    body = MultipartBody(
        [
            BodyPart({}, b"bytes"),
            BodyPart({"Content-Type": "application/dicom; transfer-syntax=1.2.840.10008.1.2"}, file),
            BodyPart({}, source, 100_000),
            BodyPart({}, memoryview(b"view")),
        ]
    )
    first, second = b"".join(body), b"".join(body)
    assert first == second
    assert len(first) == len(body)
    assert all(file.closed for file in opened)
    read = parts_of(first, body.content_type)
    assert [content for _, content in read] == [b"bytes", b"f" * 3_000_000, b"s" * 100_000, b"view"]
    assert read[0][0] == {"Content-Type": "application/dicom"}
    assert read[1][0] == {"Content-Type": "application/dicom; transfer-syntax=1.2.840.10008.1.2"}
    assert 'type="application/dicom"' in body.content_type


def test_small_parts_are_sent_together() -> None:
    body = MultipartBody([BodyPart({}, b"x" * 1000)] * 500)
    assert len(list(body)) < 20
    empty = MultipartBody([])
    assert b"".join(empty) == b"--" + empty.boundary.encode() + b"--\r\n"
    assert len(b"".join(empty)) == len(empty)


def test_a_source_that_changed_is_an_error_of_its_own(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "file.dcm"
    file.write_bytes(b"12345")
    body = MultipartBody([BodyPart({}, file)])
    file.write_bytes(b"1234")
    with pytest.raises(BodySourceError, match="shorter"):
        list(body)
    file.write_bytes(b"123456")
    with pytest.raises(BodySourceError, match="longer"):
        list(body)
    file.unlink()
    with pytest.raises(BodySourceError, match="cannot be read"):
        list(body)
    with pytest.raises(FileNotFoundError):
        MultipartBody([BodyPart({}, file)])
    with pytest.raises(ValueError, match="size"):
        MultipartBody([BodyPart({}, lambda: io.BytesIO(b""))])


def test_headers_cannot_break_out() -> None:
    with pytest.raises(ValueError, match="header"):
        MultipartBody([BodyPart({"A": "b\r\nC: d"}, b"")])
