"""Answers made of parts (multipart/related, PS3.18 section 8.6), streamed, with the faults that concern parts."""

from __future__ import annotations

import itertools
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from dicomweb_io.elements import Instance
from dicomweb_io.testing.exchange import Answer, Exchange
from dicomweb_io.testing.manners_model import Manners

_CHUNK = 1 << 18


@dataclass(frozen=True)
class PartOut:
    """One part to send.

    Attributes:
        content_type: Its media type with parameters.
        location: Its address, for Content-Location.
        content: The bytes, or
        path: the file that holds them.
        remove: Whether the file is removed after it was sent.
    """

    content_type: str
    location: str | None = None
    content: bytes | None = field(default=None, repr=False)
    path: str | None = None
    remove: bool = False

    @classmethod
    def of(cls, instance: Instance, directory: str, content_type: str = "application/dicom") -> PartOut:
        """A part with an instance; if it is a file in the directory for spooled ones, that is removed afterwards."""
        spooled = instance.path is not None and os.path.dirname(os.path.abspath(instance.path)) == directory
        return cls(content_type, None, instance.content, instance.path, spooled)

    @property
    def size(self) -> int:
        """Its bytes, without headers."""
        return len(self.content) if self.content is not None else os.stat(self.path or "").st_size

    def pieces(self, length: int | None = None) -> Iterator[bytes | memoryview]:
        """Its content, or the beginning of it, in pieces that are worth sending."""
        left = self.size if length is None else length
        if self.content is not None:
            view = memoryview(self.content)
            for start in range(0, left, _CHUNK):
                yield view[start : min(start + _CHUNK, left)]
            return
        with open(self.path or "", "rb") as file:
            while left > 0:
                piece = file.read(min(_CHUNK, left))
                if not piece:
                    raise OSError("the spooled file is shorter than it was")
                left -= len(piece)
                yield piece

    def spooled(self, directory: str, above: int) -> PartOut:
        """The part with its content in a file, if it is larger than some bytes."""
        if self.content is None or len(self.content) <= above:
            return self
        handle, path = tempfile.mkstemp(dir=directory)
        with os.fdopen(handle, "wb") as file:
            file.write(self.content)
        return replace(self, content=None, path=path, remove=True)

    def discard(self) -> None:
        """Removes its file, if it is a spooled one."""
        if self.remove and self.path is not None and os.path.exists(self.path):
            os.unlink(self.path)

    def read(self) -> bytes:
        """All its bytes."""
        if self.content is not None:
            return self.content
        with open(self.path or "", "rb") as file:
            return file.read()


def single_answer(part: PartOut) -> Answer:
    """The part as the whole body."""
    headers = {"Content-Type": part.content_type, "Content-Length": str(part.size)}
    if part.location is not None:
        headers["Content-Location"] = part.location
    return Answer(200, headers, part.pieces(), on_end=part.discard)


def multipart_answer(
    exchange: Exchange,
    manners: Manners,
    parts: Iterator[PartOut],
    root_type: str,
    *,
    status: int = 200,
    only_one: bool = False,
    foreign: Callable[[PartOut], PartOut] | None = None,
    frames: bool = False,
) -> Answer:
    """The parts as multipart/related.

    Args:
        exchange: The request.
        manners: The server's manners.
        parts: At least one, made as they are needed.
        root_type: The ``type`` parameter.
        status: The status.
        only_one: Whether it is known that there is one part only.
        foreign: Makes another object of a part, for the fault ``foreign_part``.
        frames: Whether the parts are frames.
    """
    if frames:
        manners = _manners_of_frames(manners)
    boundary = secrets.token_hex(manners.boundary_length)[: manners.boundary_length]
    faulty = _faulty_parts(exchange, parts, foreign)
    shown = secrets.token_hex(len(boundary))[: len(boundary)] if exchange.fault("wrong_boundary") else boundary
    quoted = f'"{shown}"' if manners.quoted_boundary else shown
    headers = {"Content-Type": f'multipart/related; type="{root_type}"; boundary={quoted}'}
    started = list(itertools.islice(faulty, 1 if only_one else 2))
    complete = not exchange.fault("missing_closing_boundary")
    cut = exchange.fault("cut_part")
    cut_number = int(cut.options["part"]) if cut else None
    close = manners.close_delimited and len(started) > 1
    doubled = exchange.fault("duplicate_part") is not None
    if len(started) == 1 and manners.known_length == "single" and complete and cut is None and not doubled:
        heads = len(_head(started[0], manners, boundary, first=True))
        headers["Content-Length"] = str(heads + started[0].size + len(boundary) + 8)
    # Content-Length stands above for: head, content, CRLF, and the closing delimiter with its line end.
    waiting = list(started)

    def body() -> Iterator[bytes | memoryview]:
        first = True
        number = 0
        try:
            for part in itertools.chain(started, faulty):
                number += 1
                yield _head(part, manners, boundary, first=first)
                first = False
                yield from part.pieces(part.size // 2 if number == cut_number else None)
                part.discard()
            if complete:
                yield f"{'' if first else chr(13) + chr(10)}--{boundary}--\r\n".encode()
        finally:
            _close(faulty)
            _close(parts)
            for part in waiting:
                part.discard()

    def given_up() -> None:
        for part in waiting:
            part.discard()

    return Answer(status, headers, body(), close_delimited=close, on_end=given_up)


def _manners_of_frames(manners: Manners) -> Manners:
    headers = manners.part_headers if manners.frame_headers is None else manners.frame_headers
    syntax = manners.part_syntax if manners.frame_syntax is None else manners.frame_syntax
    return replace(manners, part_headers=headers, part_syntax=syntax)


def _head(part: PartOut, manners: Manners, boundary: str, *, first: bool) -> bytes:
    content_type = part.content_type if manners.part_syntax else part.content_type.partition(";")[0]
    lines = [f"Content-Type: {content_type}"]
    if "length" in manners.part_headers:
        lines.append(f"Content-Length: {part.size}")
    if "mime" in manners.part_headers:
        lines.append("MIME-Version: 1.0")
    if "location" in manners.part_headers and part.location is not None:
        lines.append(f"Content-Location: {part.location}")
    start = "" if first else "\r\n"
    return (f"{start}--{boundary}\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()


def _faulty_parts(
    exchange: Exchange, parts: Iterator[PartOut], foreign: Callable[[PartOut], PartOut] | None
) -> Iterator[PartOut]:
    numbers: Mapping[str, int] = {
        name: int(found.options["part"])
        for name in ("drop_part", "duplicate_part", "foreign_part")
        if (found := exchange.fault(name)) is not None
    }
    if not numbers:
        yield from parts
        return
    for number, part in enumerate(parts, start=1):
        if number == numbers.get("drop_part"):
            part.discard()
            continue
        if number == numbers.get("foreign_part") and foreign is not None:
            yield foreign(part)
            part.discard()
            continue
        if number == numbers.get("duplicate_part"):
            yield replace(part, remove=False)
        yield part


def _close(parts: Iterable[PartOut]) -> None:
    close = getattr(parts, "close", None)
    if callable(close):
        close()
