"""Content-Encoding, piece by piece and bounded."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given, strategies as st

from dicomweb_io.http.response import Decoder, DecodingError


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


@given(
    st.sampled_from(["gzip", "x-gzip", "deflate", "raw"]),
    st.lists(st.binary(max_size=2000).map(lambda item: item * 5), min_size=1, max_size=3),
    st.integers(1, 300),
    st.integers(1, 300),
)
def test_what_was_encoded_comes_back_in_bounded_pieces(encoding, contents, step, size) -> None:
    whole = b"".join(contents)
    if "gzip" in encoding:
        data = b"".join(map(gzip.compress, contents))
    else:
        data = zlib.compress(whole) if encoding == "deflate" else raw_deflate(whole)
    decoder = Decoder("deflate" if encoding == "raw" else encoding)
    pieces = [
        piece for start in range(0, len(data), step) for piece in decoder.decode(data[start : start + step], size)
    ]
    assert all(0 < len(piece) <= size for piece in pieces)
    assert b"".join(pieces) + b"".join(decoder.finish()) == whole


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_garbage_only_raises_its_own_error(data, encoding) -> None:
    decoder = Decoder(encoding)
    try:
        list(decoder.decode(data, 100))
        list(decoder.finish())
    except DecodingError:
        return
    # What passes was either nothing or something that ended properly.
    assert not data or decoder._inflater.eof


@pytest.mark.parametrize("cut", [1, 2, 10, 15, -1, -9])
def test_truncation(cut) -> None:
    decoder = Decoder("gzip")
    list(decoder.decode(gzip.compress(b"some content")[:cut], 1000))
    with pytest.raises(DecodingError, match="ends early") as caught:
        list(decoder.finish())
    assert caught.value.truncated


def test_padding_after_the_end_is_ignored() -> None:
    decoder = Decoder("gzip")
    assert b"".join(decoder.decode(gzip.compress(b"x") + bytes(100), 1000)) == b"x"
    assert b"".join(decoder.decode(bytes(100), 1000)) == b""
    assert list(decoder.finish()) == []


def test_a_bomb_is_refused_while_it_grows() -> None:
    decoder = Decoder("gzip")
    data = gzip.compress(bytes(200 << 20))
    given_out = 0
    with pytest.raises(DecodingError, match="250-fold") as caught:  # noqa: PT012 - how far it comes is what counts
        for piece in decoder.decode(data, 1 << 20):
            given_out += len(piece)
    assert caught.value.bomb
    assert given_out <= 65 << 20


def test_an_unknown_encoding() -> None:
    with pytest.raises(DecodingError, match="not asked for: 'br'"):
        Decoder("br")
