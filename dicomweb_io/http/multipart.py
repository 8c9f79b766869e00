"""Multipart messages (RFC 2046, multipart/related of RFC 2387), read as they arrive and written piece by piece.

`MultipartReader` holds one chunk of the network at a time and hands out slices of it, whatever the size of a part. It
reads what servers send: quoted and unquoted boundaries, preambles and epilogues, folded headers, blanks after a
delimiter, and lines that end with LF alone if the first delimiter's line does. It insists on the closing delimiter,
which alone proves that the last part is whole (some servers send neither Content-Length nor chunks).

`MultipartBody` is a request body that can be sent again; `encode_multipart` is what servers answer with.
"""

from __future__ import annotations

import io
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from requests.structures import CaseInsensitiveDict

from dicomweb_io.errors import DICOMError

Bytes = bytes | memoryview
Source = bytes | bytearray | memoryview | str | os.PathLike[str] | Callable[[], BinaryIO]

HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
"""What the name of a header is made of (RFC 9110 section 5.6.2)."""

_FILE_CHUNK = 1 << 20
_COALESCE = 1 << 16
_BEGINNING = 2048
_FIRST_LINE = re.compile(rb"(?:\r?\n)*(--[^\r\n]{1,1024}?)[ \t]*\r?\n(?:[!-9;-~]+:|\r?\n)")
_MAX_PREAMBLE = 1 << 20
_MAX_PADDING = 256
_HEADERS_END = re.compile(rb"\n\r?\n")
_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;]*))', re.DOTALL)


class MultipartError(ValueError):
    """A multipart message is malformed or incomplete.

    Attributes:
        truncated: Whether the message ended early, so that a repeated request may help.
        complete_parts: How many parts were complete before.
    """

    def __init__(self, message: str, *, truncated: bool = False, complete_parts: int = 0) -> None:
        super().__init__(message)
        self.truncated = truncated
        self.complete_parts = complete_parts

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, self.__dict__


def parse_content_type(value: str) -> tuple[str, dict[str, str]]:
    """Takes a Content-Type apart.

    Args:
        value: The header; parameters may be tokens or quoted strings (which may hold ``;`` and ``=``).

    Returns:
        The media type in lower case and the parameters with lower-case names; of repeated ones the first.
    """
    media_type, _, _ = value.partition(";")
    parameters: dict[str, str] = {}
    for match in _PARAMETER.finditer(value, len(media_type)):
        name, quoted, plain = match.groups()
        text = re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL) if quoted is not None else plain.strip()
        parameters.setdefault(name.lower(), text)
    return media_type.strip().lower(), parameters


def joined(pieces: Iterable[Bytes]) -> bytes:
    """All pieces as one value; each is let go once it is copied, and the value is copied no second time."""
    arriving = iter(pieces)
    first = next(arriving, b"")
    second = next(arriving, None)
    if second is None:
        return bytes(first)
    whole = io.BytesIO()
    whole.write(first)
    whole.write(second)
    del first, second
    for piece in arriving:
        whole.write(piece)
    return whole.getvalue()


class Part:
    """One part of a message. Its content is read from the network as it is iterated, once.

    Attributes:
        headers: The part's headers (case-insensitive); of a repeated header the values joined with commas.
        index: Its number within the message, counted from 0.
    """

    __slots__ = ("_reader", "_started", "headers", "index")

    def __init__(self, reader: MultipartReader, headers: CaseInsensitiveDict[str], index: int) -> None:
        self._reader = reader
        self._started = False
        self.headers = headers
        self.index = index

    @property
    def content_type(self) -> str:
        """The part's Content-Type header, unchanged; empty if there is none."""
        return self.headers.get("Content-Type") or ""

    def iter_bytes(self) -> Iterator[Bytes]:
        """The content in pieces, none empty, as they arrive. A piece may be a view of a larger buffer.

        Raises:
            MultipartError: If the message ends before the part does, or if it is too late: the content was already
                iterated, or the reader has gone on to the next part.
        """
        if self._started or self._reader._current is not self:
            raise MultipartError(
                f"the content of part {self.index + 1} was already read or skipped",
                complete_parts=self._reader.complete_parts,
            )
        self._started = True
        return self._reader._content()

    def read(self) -> bytes:
        """The whole content."""
        return joined(self.iter_bytes())

    def __repr__(self) -> str:
        return f"<Part {self.index + 1}: {self.content_type or 'no Content-Type'}>"


class MultipartReader:
    """Iterates over the parts of a multipart message while it arrives.

    Content that was not read is skipped when the next part is asked for. Iteration ends at the closing delimiter; what
    follows it is not read.

    Args:
        chunks: The message, in chunks of any size.
        content_type: The message's Content-Type header, with the boundary.
        max_header_bytes: The maximum size of one part's headers.
        whole: Whether the end of the chunks is surely the end of the message. If its Content-Type names no boundary,
            the first line does, or the message is one part without any.

    Attributes:
        complete_parts: How many parts were seen up to their end.
        closed: Whether the closing delimiter was seen.

    Raises:
        MultipartError: At once if the content type is not multipart or has no boundary; later if the message is
            malformed or ends without closing delimiter (`MultipartError.truncated`).
    """

    def __init__(
        self, chunks: Iterable[bytes], content_type: str, *, max_header_bytes: int = 65536, whole: bool = False
    ) -> None:
        media_type, parameters = parse_content_type(content_type)
        if not media_type.startswith("multipart/"):
            raise MultipartError(f"expected a multipart message, but its Content-Type is {media_type or 'absent'!r}")
        boundary = parameters.get("boundary", "")
        if not boundary and not whole:
            raise MultipartError("the Content-Type of the multipart message names no boundary")
        if len(boundary) > 1024:
            raise MultipartError("the boundary of the multipart message is longer than 1024 characters")
        try:
            self._dash_boundary = b"--" + boundary.encode("latin-1")
        except UnicodeEncodeError:
            raise MultipartError("the boundary of the multipart message is not made of Latin-1 characters") from None
        self.media_type = media_type
        self.complete_parts = 0
        self.closed = False
        self._boundary_known = bool(boundary)
        self._type = parameters.get("type", "")
        self._chunks = iter(chunks)
        self._max_header_bytes = max_header_bytes
        self._delimiter = b"\r\n" + self._dash_boundary
        self._buffer = b""
        self._position = 0
        self._current: Part | None = None
        self._in_content = False
        self._started = False
        self._failure: MultipartError | None = None

    def __iter__(self) -> Iterator[Part]:
        return self

    def __next__(self) -> Part:
        if self._failure is not None:
            raise self._failure
        if not self._boundary_known:
            self._learn_boundary()
        if not self._to_next_part():
            self._current = None
            raise StopIteration
        if self._boundary_known:
            headers = self._read_headers()
        else:
            headers = CaseInsensitiveDict({"Content-Type": self._type} if self._type else {})
        self._current = Part(self, headers, self.complete_parts)
        self._in_content = True
        return self._current

    def _learn_boundary(self) -> None:
        """Takes the boundary from the first line, if that is followed by the headers of a part."""
        if self._started:
            return
        while len(self._buffer) < _BEGINNING and self._more():
            pass
        if not self._buffer:
            raise self._truncated("at once: it is empty")
        match = _FIRST_LINE.match(self._buffer)
        if match is not None:
            self._boundary_known = True
            self._dash_boundary = match[1]
            self._delimiter = b"\r\n" + match[1]

    def _to_next_part(self) -> bool:
        """Goes behind the next delimiter; False if it is the closing one."""
        if not self._started:
            self._started = True
            if self._boundary_known:
                self._find_first_delimiter()
        elif self._in_content:
            for _ in self._content():
                pass
        return not self.closed

    # -- the buffer: one chunk, and a few bytes of the one before it where a delimiter may straddle the border

    def _more(self) -> bool:
        """Appends the next chunk to what is left of the buffer; False at the end of the message."""
        for chunk in self._chunks:
            if chunk:
                rest = self._buffer[self._position :]
                self._buffer = rest + chunk if rest else bytes(chunk)
                self._position = 0
                return True
        return False

    def _truncated(self, where: str) -> MultipartError:
        parts = "1 part was" if self.complete_parts == 1 else f"{self.complete_parts} parts were"
        return self._fail(
            f"the multipart message ends {where}, without its closing boundary; {parts} complete", truncated=True
        )

    def _malformed(self, what: str) -> MultipartError:
        return self._fail(f"{what} (part {self.complete_parts + 1} of the multipart message)")

    def _fail(self, message: str, *, truncated: bool = False) -> MultipartError:
        # Every further call raises the same error, because nothing after it is reliable.
        self._failure = MultipartError(message, truncated=truncated, complete_parts=self.complete_parts)
        return self._failure

    def _line_after_delimiter(self, end: int) -> tuple[str, int]:
        """Looks at what follows a delimiter.

        Args:
            end: Where the boundary ends in the buffer.

        Returns:
            ``("part" | "close", where the line ends)``; ``"data"`` if this is no delimiter after all; ``"more"`` if
            that cannot be told yet.
        """
        buffer = self._buffer
        size = len(buffer)
        kind = "part"
        if buffer.startswith(b"--", end):
            kind = "close"
            end += 2
        elif end >= size or (buffer[end : end + 1] == b"-" and end + 1 >= size):
            return "more", end
        limit = end + _MAX_PADDING
        while end < size and buffer[end] in b" \t":
            end += 1
            if end > limit:
                return "data", end
        if end >= size:
            return "more", end
        if buffer[end] == 0x0A:
            return kind, end + 1
        if buffer[end] == 0x0D:
            if end + 1 >= size:
                return "more", end
            if buffer[end + 1] == 0x0A:
                return kind, end + 2
            # A bare CR after the closing delimiter is taken as the end of its line.
            return (kind, end + 1) if kind == "close" else ("data", end)
        return "data", end

    def _at_end(self, end: int) -> bool:
        """Whether the message's last bytes, from the end of a boundary on, are a closing delimiter without line end."""
        return re.fullmatch(rb"--[ \t]*\r?", self._buffer[end:]) is not None

    def _find_first_delimiter(self) -> None:
        start = 0
        dropped = 0
        line_start = True  # whether the buffer's first byte begins a line
        while True:
            found = self._buffer.find(self._dash_boundary, start)
            if found >= 0:
                after = found + len(self._dash_boundary)
                before = self._buffer[found - 1 : found] if found else b""
                if before == b"\n" or (not before and line_start):
                    kind, end = self._line_after_delimiter(after)
                    if kind == "more":
                        self._position = 0
                        start = found
                        if self._more():
                            continue
                        if self._at_end(after):
                            self.closed = True
                            return
                        raise self._truncated("within its first delimiter")
                    if kind != "data":
                        self._begin_after(end, kind)
                        return
                start = found + 1
                continue
            # Keep a possible beginning of the delimiter, and the line break before it.
            keep = min(len(self._buffer), len(self._dash_boundary) + 1)
            cut = len(self._buffer) - keep
            if cut:
                line_start = self._buffer[cut - 1] == 0x0A
                dropped += cut
            if dropped > _MAX_PREAMBLE:
                raise self._fail(f"the first {_MAX_PREAMBLE} bytes of the multipart message hold no delimiter")
            self._position = cut
            start = 0
            if not self._more():
                raise self._truncated("before any delimiter" if dropped + keep else "at once: it is empty")

    def _begin_after(self, end: int, kind: str) -> None:
        if kind == "close":
            self.closed = True
            return
        if self._buffer[end - 2 : end] != b"\r\n":
            # The writer ends its lines with LF alone, so that is what stands before its delimiters.
            self._delimiter = b"\n" + self._dash_boundary
        self._position = end

    def _read_headers(self) -> CaseInsensitiveDict[str]:
        while True:
            buffer, start = self._buffer, self._position
            if buffer.startswith((b"\r\n", b"\n"), start):
                block, self._position = b"", start + (2 if buffer[start] == 0x0D else 1)
                break
            match = _HEADERS_END.search(buffer, start)
            if match:
                block, self._position = buffer[start : match.start()], match.end()
                break
            if len(buffer) - start > self._max_header_bytes:
                raise self._malformed(f"the headers are longer than {self._max_header_bytes} bytes")
            if not self._more():
                raise self._truncated(f"within the headers of part {self.complete_parts + 1}")
        if len(block) > self._max_header_bytes:
            raise self._malformed(f"the headers are longer than {self._max_header_bytes} bytes")
        headers: CaseInsensitiveDict[str] = CaseInsensitiveDict()
        if not block:
            return headers
        unfolded = re.sub(r"\r?\n[ \t]+", " ", block.decode("latin-1"))
        for line in unfolded.split("\n"):
            name, colon, value = line.rstrip("\r").partition(":")
            name = name.strip()
            if not colon or not HEADER_NAME.match(name):
                raise self._malformed("a line of the part's headers is not a header")
            value = value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return headers

    def _content(self) -> Iterator[Bytes]:
        """The current part's content up to the next delimiter; afterwards the position is behind its line."""
        if not self._boundary_known:
            yield from self._rest()
            return
        delimiter = self._delimiter
        reach = len(delimiter) - 1
        # The line break that ends the headers may be the delimiter's own: a part without any content.
        begin = self._position
        search = max(0, begin - (len(delimiter) - len(self._dash_boundary)))
        part = self._current
        while True:
            buffer = self._buffer
            found = buffer.find(delimiter, search)
            if found >= 0:
                after = found + len(delimiter)
                kind, end = self._line_after_delimiter(after)
                if kind == "data":
                    search = found + 1
                    continue
                if kind == "more":
                    # Whether the part ends at `found` is open; what stands before is certain.
                    self._position = found
                    if found > begin:
                        yield memoryview(buffer)[begin:found]
                        self._check_current(part)
                        begin = found
                    if self._more():
                        begin, search = begin - found, 0
                        continue
                    if not self._at_end(after):
                        raise self._lost()
                    kind, end = "close", len(buffer)
                # Bookkeeping comes before the last piece is handed out: the consumer may never come back for more.
                self._in_content = False
                self.complete_parts += 1
                self._position = end
                self.closed = kind == "close"
                if found > begin:
                    yield memoryview(buffer)[begin:found]
                return
            # No delimiter in sight: all but its possible beginning at the very end is content.
            keep = self._possible_beginning(buffer, max(search, len(buffer) - reach), delimiter)
            if keep > begin:
                self._position = keep
                yield buffer if begin == 0 and keep == len(buffer) else memoryview(buffer)[begin:keep]
                self._check_current(part)
                begin = keep
            self._position = keep
            if not self._more():
                raise self._lost()
            begin, search = begin - keep, 0

    def _rest(self) -> Iterator[Bytes]:
        """All there is, of a message that is one part."""
        part = self._current
        while True:
            piece = self._buffer
            self._buffer = b""
            if piece:
                yield piece
                self._check_current(part)
            if not self._more():
                break
        self._in_content = False
        self.complete_parts += 1
        self.closed = True

    def _lost(self) -> MultipartError:
        return self._truncated(f"within part {self.complete_parts + 1}")

    def _check_current(self, part: Part | None) -> None:
        if self._current is not part or not self._in_content:
            raise MultipartError(
                "the content of a part cannot be read after the next part was requested",
                complete_parts=self.complete_parts,
            )

    @staticmethod
    def _possible_beginning(buffer: bytes, start: int, delimiter: bytes) -> int:
        """Where a beginning of the delimiter stands at the buffer's end; the buffer's length if nowhere."""
        size = len(buffer)
        position = buffer.find(delimiter[:1], start)
        while position >= 0:
            if delimiter.startswith(buffer[position:]):
                return position
            position = buffer.find(delimiter[:1], position + 1)
        return size


class BodySourceError(DICOMError):
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
