"""Writing multipart messages: `MultipartBody`, which can be sent again, and `encode_multipart` for servers."""

from __future__ import annotations

import io
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

Bytes = bytes | memoryview
Source = bytes | bytearray | memoryview | str | os.PathLike[str] | Callable[[], BinaryIO]

HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
"""What the name of a header is made of (RFC 9110 section 5.6.2)."""

_FILE_CHUNK = 1 << 20
_COALESCE = 1 << 16


class BodySourceError(ValueError):
    """What a request body is made of cannot be read, or changed its size meanwhile; the server is not to blame."""


@dataclass(frozen=True)
class BodyPart:
    """One part of a request body.

    Attributes:
        headers: Its headers; without Content-Type it gets the body's media type.
        source: Its content: bytes, the path of a local file, or a function that opens a binary file afresh (closed
            here after each use).
        size: The number of bytes; found out for bytes and paths, required for a function.
    """

    headers: Mapping[str, str]
    source: Source = field(repr=False)
    size: int | None = None


class MultipartBody:
    """A multipart/related request body that can be sent any number of times.

    Its length is known in advance and its content is read when it is sent, so that neither retries nor redirects need
    it in memory. It is iterable afresh each time and safe to iterate from several threads.

    Args:
        parts: The parts, in order.
        media_type: The type of the parts, for the ``type`` parameter and for parts without Content-Type.
        boundary: Only for tests; by default 128 random bits, which no content holds.

    Raises:
        ValueError: If a size is missing or a header cannot be sent.
        OSError: If a file does not exist.
    """

    def __init__(
        self, parts: Sequence[BodyPart], *, media_type: str = "application/dicom", boundary: str | None = None
    ) -> None:
        self.media_type = media_type
        self.boundary = boundary or secrets.token_hex(16)
        self.content_type = f'multipart/related; type="{media_type}"; boundary={self.boundary}'
        self._parts: list[tuple[bytes, Source, int]] = []
        self._closing = b"\r\n--%b--\r\n" % self.boundary.encode("ascii")
        self._length = len(self._closing)
        for part in parts:
            headers = dict(part.headers)
            if not any(name.lower() == "content-type" for name in headers):
                headers["Content-Type"] = media_type
            head = _head(headers, self.boundary, first=not self._parts)
            size = _size_of(part)
            self._parts.append((head, part.source, size))
            self._length += len(head) + size
        if not self._parts:
            self._closing = self._closing[2:]
            self._length -= 2

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Bytes]:
        waiting: list[Bytes] = []
        size = 0
        for piece in self._pieces():
            # Many small parts would be as many small packets; large pieces pass uncopied.
            if size + len(piece) < _COALESCE:
                waiting.append(piece)
                size += len(piece)
                continue
            if waiting:
                yield b"".join(waiting)
                waiting, size = [], 0
            if len(piece) < _COALESCE:
                waiting, size = [piece], len(piece)
            else:
                yield piece
        if waiting:
            yield b"".join(waiting)

    def _pieces(self) -> Iterator[Bytes]:
        for head, source, size in self._parts:
            yield head
            if isinstance(source, bytes):
                yield source
            elif isinstance(source, (bytearray, memoryview)):
                yield memoryview(source)
            else:
                yield from _file_pieces(source, size)
        yield self._closing

    def __repr__(self) -> str:
        return f"<MultipartBody: {len(self._parts)} parts, {self._length} bytes>"


def _size_of(part: BodyPart) -> int:
    source = part.source
    if isinstance(source, (bytes, bytearray, memoryview)):
        return memoryview(source).nbytes
    if part.size is not None:
        return part.size
    if isinstance(source, (str, os.PathLike)):
        return os.stat(source).st_size
    raise ValueError("a part whose source is a function needs its size")


def _file_pieces(source: Any, size: int) -> Iterator[bytes]:
    # An OSError of a file must not look like one of the network, which would be retried.
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "the source"
    left = size
    try:
        file = io.open(source, "rb") if isinstance(source, (str, os.PathLike)) else source()  # noqa: UP020, SIM115
        with file:
            while left:
                piece = file.read(min(_FILE_CHUNK, left))
                if not piece:
                    break
                left -= len(piece)
                yield piece
            longer = not left and bool(file.read(1))
    except OSError as error:
        raise BodySourceError(f"{name} cannot be read for sending: {error.strerror or error}") from error
    if left or longer:
        raise BodySourceError(
            f"{name} is {'shorter' if left else 'longer'} than the {size} bytes it had before sending"
        )


def _head(headers: Mapping[str, str], boundary: str, *, first: bool) -> bytes:
    lines = [("" if first else "\r\n") + f"--{boundary}\r\n"]
    for name, value in headers.items():
        if not HEADER_NAME.match(name) or re.search(r"[\r\n\0]", value):
            raise ValueError(f"a part's header cannot be sent: {name!r}")
        lines.append(f"{name}: {value}\r\n")
    lines.append("\r\n")
    try:
        return "".join(lines).encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError("a part's header has characters outside Latin-1") from None


def encode_multipart(
    parts: Iterable[tuple[Mapping[str, str], Bytes | Iterable[Bytes]]], boundary: str
) -> Iterator[Bytes]:
    """Writes a multipart message part by part, as servers do.

    Args:
        parts: Pairs of headers and content; the content is bytes or pieces of them.
        boundary: The boundary; it must not occur in the content.

    Yields:
        The message in pieces, ending with the closing delimiter.
    """
    first = True
    for headers, content in parts:
        yield _head(headers, boundary, first=first)
        first = False
        if isinstance(content, (bytes, bytearray, memoryview)):
            yield content
        else:
            yield from content
    closing = b"--%b--\r\n" % boundary.encode("ascii")
    yield closing if first else b"\r\n" + closing
