"""Where an HTTP/1.1 message ends (RFC 9112 section 6), for a relay that passes it on unread."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dicomweb_io.dicom.media_types import parse_content_type

_END = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True)
class Head:
    """The start of a message, up to the empty line.

    Attributes:
        raw: Its bytes.
        first: The request line or status line.
        headers: By lower-case name; of repeated headers the last value.
    """

    raw: bytes = field(repr=False)
    first: str
    headers: dict[str, str] = field(repr=False)

    @classmethod
    def parse(cls, data: bytes) -> Head | None:
        """The head at the beginning of some bytes; None if it is not complete yet."""
        match = _END.search(data)
        if match is None:
            return None
        raw = data[: match.end()]
        lines = raw.decode("latin-1").splitlines()
        headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if colon:
                headers[name.strip().lower()] = value.strip()
        return cls(raw, lines[0] if lines else "", headers)

    @property
    def method(self) -> str:
        """The method of a request."""
        return self.first.partition(" ")[0]

    @property
    def target(self) -> str:
        """The target of a request: path and query."""
        return self.first.partition(" ")[2].partition(" ")[0]

    @property
    def status(self) -> int:
        """The status of an answer.

        Raises:
            ValueError: If it is no answer.
        """
        return int(self.first.split(" ")[1])

    @property
    def chunked(self) -> bool:
        """Whether the body comes in chunks."""
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def length(self) -> int | None:
        """The announced length of the body."""
        text = self.headers.get("content-length")
        return int(text) if text is not None else None

    @property
    def closes(self) -> bool:
        """Whether the sender closes the connection afterwards."""
        return "close" in self.headers.get("connection", "").lower() or "HTTP/1.0" in self.first

    def boundary(self) -> bytes | None:
        """The boundary of a multipart message."""
        value = parse_content_type(self.headers.get("content-type")).parameters.get("boundary")
        return value.encode("latin-1") if value else None

    def without_length(self) -> bytes:
        """The head as of a server that ends its answer by closing the connection."""
        lines = self.raw.split(b"\r\n")
        kept = [
            line
            for line in lines[:-2]
            if line.partition(b":")[0].strip().lower()
            not in (b"content-length", b"transfer-encoding", b"connection", b"keep-alive")
        ]
        return b"\r\n".join([*kept, b"Connection: close", b"", b""])


class Body:
    """A body whose end is looked for while it passes.

    Args:
        length: Its length; None if it ends with the connection.
        chunked: Whether it comes in chunks.
        decode: Whether `take` is wanted.

    Attributes:
        done: Whether the end was reached.
    """

    def __init__(self, length: int | None, *, chunked: bool = False, decode: bool = False) -> None:
        self._left = length
        self._chunked = chunked
        self._decode = decode
        self._content: list[bytes] = []
        self._line = b""
        self._state = "size"
        self.done = not chunked and length == 0

    def feed(self, data: bytes) -> int:
        """Takes bytes; returns how many of them belong to this body."""
        if not self._chunked:
            used = len(data) if self._left is None else min(self._left, len(data))
            self._keep(data[:used])
            if self._left is not None:
                self._left -= used
                self.done = self._left == 0
            return used
        position = 0
        while position < len(data) and not self.done:
            position = self._chunk(data, position)
        return position

    def end(self) -> None:
        """The connection has ended."""
        self.done = True

    def take(self) -> bytes:
        """The content of what was fed since the last call, without the framing of chunks."""
        content, self._content = b"".join(self._content), []
        return content

    def _keep(self, data: bytes) -> None:
        if self._decode and data:
            self._content.append(data)

    def _chunk(self, data: bytes, position: int) -> int:
        if self._state == "data":
            assert self._left is not None  # noqa: S101 - for the type checker
            used = min(self._left, len(data) - position)
            self._keep(data[position : position + used])
            self._left -= used
            if self._left == 0:
                self._state = "after"
            return position + used
        end = data.find(b"\n", position)
        if end < 0:
            self._line += data[position:]
            return len(data)
        line = (self._line + data[position:end]).strip()
        self._line = b""
        if self._state == "size":
            self._left = int(line.partition(b";")[0], 16)
            self._state = "data" if self._left else "trailer"
        elif self._state == "after":
            self._state = "size"
        elif not line:
            self.done = True
        return end + 1


def body_of_request(head: Head) -> Body:
    """The body that follows the head of a request."""
    return Body(head.length or 0, chunked=head.chunked)


def body_of_answer(head: Head, method: str, *, decode: bool = False) -> Body:
    """The body that follows the head of an answer."""
    if method == "HEAD" or head.status in (204, 304):
        return Body(0)
    if head.chunked:
        return Body(None, chunked=True, decode=decode)
    return Body(head.length, decode=decode)
