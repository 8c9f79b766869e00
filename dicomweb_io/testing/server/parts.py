"""What answers consist of: parts (multipart/related, PS3.18 section 8.6), JSON, XML, and files in other encodings.

Rows are written as DICOM JSON (PS3.18 Annex F) and as the Native DICOM Model in XML (PS3.19 Annex A). Files that a
server gives or keeps in another encoding than the stored one are made here.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import secrets
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import orjson

from dicomweb_io.dicom.attributes import lookup_keyword
from dicomweb_io.dicom.errors import TranscodingError
from dicomweb_io.dicom.pixels import ENCODINGS, NATIVE, TARGETS, missing_library, transcode
from dicomweb_io.elements import Instance, Resource
from dicomweb_io.testing.faults import PartFault
from dicomweb_io.testing.server.behaviour import Behaviour
from dicomweb_io.testing.server.exchange import Answer, Exchange, JSONRow
from dicomweb_io.testing.server.site import Site

EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
IMPLICIT_LITTLE = "1.2.840.10008.1.2"

_CHUNK = 1 << 18
_ITEM = b"\xfe\xff\x00\xe0"
_XML_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class PartOut:
    """One part to send.

    Attributes:
        content_type: Its media type with parameters.
        location: Its address, for Content-Location.
        content: The bytes, or
        path: the file that holds them.
        remove: Whether the file is removed after it was sent.
        sent: How many bytes of the content are sent; None for all.
    """

    content_type: str
    location: str | None = None
    content: bytes | None = field(default=None, repr=False)
    path: str | None = None
    remove: bool = False
    sent: int | None = None

    @classmethod
    def of(cls, instance: Instance, directory: str, content_type: str = "application/dicom") -> PartOut:
        """A part with an instance; a file in the directory for spooled ones is removed once it was sent."""
        spooled = instance.path is not None and os.path.dirname(os.path.abspath(instance.path)) == directory
        return cls(content_type, None, instance.content, instance.path, spooled)

    @property
    def size(self) -> int:
        """Its bytes, without headers."""
        return len(self.content) if self.content is not None else os.stat(self.path or "").st_size

    def pieces(self) -> Iterator[bytes | memoryview]:
        """What is sent of its content, in pieces of a good size."""
        left = self.size if self.sent is None else self.sent
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


@dataclass
class Multipart:
    """A multipart answer that is about to be sent, as its faults may change it.

    Attributes:
        parts: At least one, made as they are needed.
        boundary: What stands between the parts.
        announced: The boundary that the header announces.
        closed: Whether the closing boundary is sent.
    """

    parts: Iterator[PartOut]
    boundary: str
    announced: str
    closed: bool = True


def multipart_answer(
    exchange: Exchange,
    behaviour: Behaviour,
    parts: Iterator[PartOut],
    root_type: str,
    *,
    status: int = 200,
    only_one: bool = False,
    frames: bool = False,
) -> Answer:
    """The parts as multipart/related.

    Args:
        exchange: The request.
        behaviour: The server's behaviour.
        parts: At least one, made as they are needed.
        root_type: The ``type`` parameter.
        status: The status.
        only_one: Whether it is known that there is one part only.
        frames: Whether the parts are frames.
    """
    if frames:
        behaviour = _behaviour_of_frames(behaviour)
    boundary = secrets.token_hex(behaviour.boundary_length)[: behaviour.boundary_length]
    message = Multipart(parts, boundary, boundary)
    faults = exchange.struck(PartFault)
    for one in faults:
        one.apply(message)
    quoted = f'"{message.announced}"' if behaviour.quoted_boundary else message.announced
    headers = {"Content-Type": f'multipart/related; type="{root_type}"; boundary={quoted}'}
    started = list(itertools.islice(message.parts, 1 if only_one and not faults else 2))
    if len(started) == 1 and behaviour.known_length == "single" and message.closed and started[0].sent is None:
        # The head, the content, a line end, and the closing delimiter with its line end.
        heads = len(_head(started[0], behaviour, boundary, first=True))
        headers["Content-Length"] = str(heads + started[0].size + len(boundary) + 8)

    def body() -> Iterator[bytes | memoryview]:
        first = True
        try:
            for part in itertools.chain(started, message.parts):
                yield _head(part, behaviour, boundary, first=first)
                first = False
                yield from part.pieces()
                part.discard()
            if message.closed:
                yield f"{'' if first else chr(13) + chr(10)}--{boundary}--\r\n".encode()
        finally:
            _close(message.parts)
            _close(parts)
            given_up()

    def given_up() -> None:
        for part in started:
            part.discard()

    close = behaviour.close_delimited and len(started) > 1
    return Answer(status, headers, body(), close_delimited=close, on_end=given_up)


def _behaviour_of_frames(behaviour: Behaviour) -> Behaviour:
    headers = behaviour.part_headers if behaviour.frame_headers is None else behaviour.frame_headers
    syntax = behaviour.part_syntax if behaviour.frame_syntax is None else behaviour.frame_syntax
    return replace(behaviour, part_headers=headers, part_syntax=syntax)


def _head(part: PartOut, behaviour: Behaviour, boundary: str, *, first: bool) -> bytes:
    content_type = part.content_type if behaviour.part_syntax else part.content_type.partition(";")[0]
    lines = [f"Content-Type: {content_type}"]
    if "length" in behaviour.part_headers:
        lines.append(f"Content-Length: {part.size}")
    if "mime" in behaviour.part_headers:
        lines.append("MIME-Version: 1.0")
    if "location" in behaviour.part_headers and part.location is not None:
        lines.append(f"Content-Location: {part.location}")
    start = "" if first else "\r\n"
    return (f"{start}--{boundary}\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()


def _close(parts: Iterable[PartOut]) -> None:
    close = getattr(parts, "close", None)
    if callable(close):
        close()


def json_bytes(value: Any) -> bytes:
    """JSON as servers send it: UTF-8, keys sorted."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        # orjson refuses lone surrogates, which damaged text may hold.
        return json.dumps(value, sort_keys=True).encode()


def json_array(rows: Iterable[JSONRow]) -> Iterator[bytes]:
    """A JSON array, row by row."""
    opening = b"["
    for row in rows:
        yield opening + json_bytes(row)
        opening = b",\n"
    yield b"]" if opening == b",\n" else b"[]"


def xml_document(row: JSONRow) -> bytes:
    """One dataset as a Native DICOM Model document."""
    body = "".join(_xml_attribute(tag, row[tag]) for tag in sorted(row))
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<NativeDicomModel>{body}</NativeDicomModel>'.encode()


def _xml_attribute(tag: str, element: dict[str, Any]) -> str:
    try:
        keyword = f" keyword={quoteattr(lookup_keyword(tag))}"
    except (KeyError, ValueError):
        keyword = ""
    content = ""
    if "BulkDataURI" in element:
        content = f"<BulkData uri={quoteattr(element['BulkDataURI'])}/>"
    elif "InlineBinary" in element:
        content = f"<InlineBinary>{element['InlineBinary']}</InlineBinary>"
    for number, value in enumerate(element.get("Value") or (), start=1):
        content += _xml_value(number, value, str(element.get("vr", "UN")))
    return f'<DicomAttribute tag="{tag}" vr="{element.get("vr", "UN")}"{keyword}>{content}</DicomAttribute>'


def _xml_value(number: int, value: Any, vr: str) -> str:
    if vr == "SQ":
        inner = "".join(_xml_attribute(tag, (value or {})[tag]) for tag in sorted(value or {}))
        return f'<Item number="{number}">{inner}</Item>'
    if isinstance(value, dict):
        groups = "".join(
            f"<{group}>{_xml_name(str(value[group]))}</{group}>"
            for group in ("Alphabetic", "Ideographic", "Phonetic")
            if value.get(group)
        )
        return f'<PersonName number="{number}">{groups}</PersonName>'
    if value is None:
        return f'<Value number="{number}"/>'
    return f'<Value number="{number}">{_xml_text(str(value))}</Value>'


def _xml_name(text: str) -> str:
    parts = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
    return "".join(
        f"<{part}>{_xml_text(value)}</{part}>" for part, value in zip(parts, text.split("^"), strict=False) if value
    )


def _xml_text(text: str) -> str:
    return escape(_XML_FORBIDDEN.sub("\ufffd", text))


class CannotTranscode(ValueError):
    """The stored encoding cannot be decoded here, or the wanted one not be made of it."""


def writable(transfer_syntax_uid: str) -> bool:
    """Whether files can be written in a transfer syntax here, with the libraries that are installed."""
    if transfer_syntax_uid == IMPLICIT_LITTLE:
        return True
    if transfer_syntax_uid in ENCODINGS:
        return missing_library(transfer_syntax_uid) is None
    return transfer_syntax_uid in TARGETS


def transcoded(content: bytes, stored: str, wanted: str) -> bytes:
    """Re-encodes a file without loss, decompressing pixel data if need be.

    Args:
        content: The file.
        stored: Its transfer syntax.
        wanted: One for which `writable` is true.

    Raises:
        CannotTranscode: If there is no decoder, or the file is damaged, or its pixels do not fit.
    """
    try:
        if wanted != IMPLICIT_LITTLE:
            return transcode(io.BytesIO(content), stored, wanted)
        return _implicit(transcode(io.BytesIO(content), stored, EXPLICIT_LITTLE))
    except TranscodingError as error:
        raise CannotTranscode(str(error)) from None


def _implicit(content: bytes) -> bytes:
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(content))
    for element in dataset.iterall():
        if element.VR == "OB" and element.keyword == "PixelData":
            element.VR = "OW"
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, implicit_vr=True, little_endian=True, enforce_file_format=True)
    return buffer.getvalue()


def coerced(content: bytes, kept: str) -> bytes:
    """A file as a server keeps it that does not keep every byte.

    Args:
        content: The file.
        kept: ``"dataset"``: the preamble is zeroed; ``"pixels"``: an attribute of the server is added and the file is
            encoded anew; ``"anonymized"``: names and numbers of the patient are emptied.

    Raises:
        CannotTranscode: If the file is damaged.
    """
    if kept == "dataset":
        return b"\0" * 128 + content[128:] if content[128:132] == b"DICM" else content
    import pydicom

    try:
        dataset = pydicom.dcmread(io.BytesIO(content), force=True)
        if kept == "pixels":
            dataset.RetrieveAETitle = "DICOMWEBIO"
        else:
            for keyword in ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber"):
                if keyword in dataset:
                    setattr(dataset, keyword, "")
            dataset.PatientIdentityRemoved = "YES"
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()
    except Exception as error:  # pydicom raises almost anything
        raise CannotTranscode(f"{type(error).__name__}") from error


def open_dataset(site: Site, resource: Resource) -> Any:
    """A stored instance as a pydicom dataset.

    Raises:
        requests.HTTPError: If it is not there.
    """
    import pydicom

    part = PartOut.of(next(site.instances(resource)), site.directory)
    try:
        return pydicom.dcmread(io.BytesIO(part.read()), force=True)
    finally:
        part.discard()


def pixel_items(dataset: Any) -> Iterator[bytes] | None:
    """The Basic Offset Table and the fragments of compressed pixel data; None if they are native or absent."""
    if dataset.file_meta.get("TransferSyntaxUID") in NATIVE or "PixelData" not in dataset:
        return None
    return _items(dataset.PixelData)


def _items(content: bytes) -> Iterator[bytes]:
    position = 0
    while content[position : position + 4] == _ITEM:
        (length,) = struct.unpack_from("<I", content, position + 4)
        yield content[position + 8 : position + 8 + length]
        position += 8 + length


def raw_value(dataset: Any, path: list[str]) -> bytes | None:
    """The stored bytes of any element but a sequence, by tags and numbers of items; None if there is none."""
    for tag, number in zip(path[:-1:2], path[1::2], strict=False):
        element = dataset.get(int(tag, 16))
        if element is None or element.VR != "SQ" or not number.isdigit() or not 0 < int(number) <= len(element.value):
            return None
        dataset = element.value[int(number) - 1]
    element = dataset.get_item(int(path[-1], 16)) if len(path[-1]) == 8 else None
    value = getattr(element, "value", None)
    return value if isinstance(value, bytes) else None
