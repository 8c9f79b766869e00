"""What is fuzzed: for each parser a check that takes any bytes, and the seeds to begin with.

A check returns if the parser did what it promises, and raises otherwise. What a parser promises: it ends, it raises
nothing but its own errors, and the same bytes mean the same however they are cut into pieces.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from dicomweb_io.dicom.errors import IncompleteJSONError, Part10Error
from dicomweb_io.dicom.header_scan import scan_header
from dicomweb_io.dicom.json_decode import dumps, iter_json_objects, load_json_dataset, loads
from dicomweb_io.dicom.json_encode import encode
from dicomweb_io.dicom.media_types import parse_content_type
from dicomweb_io.dicom.part10 import check_complete, header_of
from dicomweb_io.dicom.uris import URI, GoogleCloudHealthcareURL, URIType, parse_resource_path
from dicomweb_io.http.multipart import MultipartError, MultipartReader, parse_content_type as parse_header


class Finding(AssertionError):
    """A parser broke a promise."""


class Target(NamedTuple):
    """One thing to fuzz.

    Attributes:
        check: Takes any bytes; raises if a promise is broken.
        seeds: Gives inputs to begin with.
    """

    check: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


def expect(condition: bool, what: str, *details: Any) -> None:
    if not condition:
        raise Finding(f"{what}: {' | '.join(repr(item)[:400] for item in details)}")


def cuts(data: bytes, choice: int) -> Iterator[list[bytes]]:
    """Some ways to cut bytes into chunks; the last ones follow from the choice alone."""
    yield [data[position : position + 1] for position in range(len(data))]
    draw = random.Random(choice)
    size = draw.randrange(2, 12)
    yield [data[position : position + size] for position in range(0, len(data), size)]
    places = sorted(draw.randrange(len(data) + 1) for _ in range(draw.randrange(1, 6)))
    yield [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


# Multipart ------------------------------------------------------------------------------------------------------------

BOUNDARIES = (b"b", b"edge", b"--", b"a b", b"=_1'()+_,-./:=?", b"\r", b"--b")


def parts_of(chunks: list[bytes], content_type: str) -> tuple[list[Any], Any]:
    """The parts of a message and how it ended."""
    found: list[Any] = []
    reader = MultipartReader(iter(chunks), content_type, max_header_bytes=512)
    try:
        for part in reader:
            pieces: list[bytes] = []
            found.append((sorted(part.headers.items()), pieces))
            for piece in part.iter_bytes():
                expect(len(piece) > 0, "an empty piece", chunks)
                pieces.append(bytes(piece))
    except MultipartError as error:
        end: Any = (error.truncated, error.complete_parts)
    else:
        expect(reader.closed, "the end without the closing delimiter", chunks)
        end = (None, reader.complete_parts)
    return [(headers, b"".join(pieces)) for headers, pieces in found], end


def check_multipart(data: bytes) -> None:
    """The first byte chooses the boundary, the second the cuts; the rest is the message."""
    if len(data) < 2:
        return
    boundary = BOUNDARIES[data[0] % len(BOUNDARIES)].decode("latin-1")
    message = data[2:]
    content_type = f'multipart/related; type="application/dicom"; boundary="{boundary}"'
    expected = parts_of([message], content_type)
    for chunks in cuts(message, data[1]):
        expect(parts_of(chunks, content_type) == expected, "other chunks, other parts", message, chunks, expected)
    skipping = MultipartReader(iter([message]), content_type, max_header_bytes=512)
    try:
        skipped = [sorted(part.headers.items()) for part in skipping]
        expect(skipped == [headers for headers, _ in expected[0]], "skipped parts differ", message)
    except MultipartError as error:
        expect(expected[1][0] is error.truncated, "skipping ends otherwise", message, error)


def multipart_seeds() -> list[bytes]:
    head = b"\x01\x05"
    part = b"--edge\r\nContent-Type: application/dicom\r\nX: y\r\n folded\r\n\r\ncontent\r\n"
    return [
        head + part + part + b"--edge--\r\n",
        head + b"preamble\r\n" + part + b"--edge \t\r\n\r\n\r\n--edge--epilogue",
        head + part.replace(b"\r\n", b"\n") + b"--edge--\n",
        head + b"--edge\r\n\r\n--edg\r\n--edgex\r\n--edge\r--edge\r\n--edge--",
        head + b"--edge--",
        b"\x02\x01------\r\n\r\n\r\n------\r\n",
        b"\x00\x03--b\r\nA:b\r\n\r\n\r\n--b\r\n\r\nx\n--b--",
        b"\x05\x03--\r\r\n\r\n\r\n--\r--",
    ]


# URIs -----------------------------------------------------------------------------------------------------------------


def is_segment(uid: str, text: str) -> bool:
    """Whether a UID is one segment of a path; what begins a query or a fragment must have been escaped in the text."""
    return not set("/\\\0") & set(uid) and not set("?#") & set(text)


def check_uri(data: bytes) -> None:
    """Any text; what is taken for a URI must come back as the same one from its own text."""
    text = data.decode("utf-8", "surrogateescape")
    for permissive in (False, True):
        try:
            uri = URI.from_string(text, permissive=permissive)
        except ValueError as error:
            expect(bool(str(error)), "an error without words", text)
        else:
            again = URI.from_string(str(uri), permissive=permissive)
            expect(again == uri, "another URI from its own text", text, uri, again)
            expect(hash(again) == hash(uri), "another hash", text)
            for uid in (uri.study_instance_uid, uri.series_instance_uid, uri.sop_instance_uid):
                expect(uid is None or is_segment(uid, text), "a UID that is no segment", text, uid)
            _ = uri.base_uri(), repr(uri)
            if uri.type is not URIType.SERVICE:
                expect(str(uri).startswith(str(uri.parent)), "a parent that is elsewhere", text, uri, uri.parent)
        try:
            path = parse_resource_path(text, permissive=permissive)
        except ValueError:
            continue
        for uid in path[:3]:
            expect(uid is None or is_segment(uid, text), "a UID that is no segment", text, uid)
    try:
        url = GoogleCloudHealthcareURL.from_string(text)
    except ValueError:
        return
    expect(GoogleCloudHealthcareURL.from_string(str(url)) == url, "another URL from its own text", text, url)


def uri_seeds() -> list[bytes]:
    instance = "https://host:8042/dicom-web/studies/1.2/series/1.3/instances/1.4"
    texts = [
        "https://h",
        "http://user:p%40ss@[::1]:80/a/../studies/1.2/",
        instance,
        f"{instance}/frames/1,2%2C3/rendered",
        f"{instance}/metadata",
        "https://h/studies/x/studies/a-b_c/thumbnail",
        "studies/1.2/series/1.3",
        "https://h/studies/1.2?x=y#z",
        "https://healthcare.googleapis.com/v1/projects/p/locations/l/datasets/d/dicomStores/s/dicomWeb",
    ]
    return [text.encode() for text in texts]


# Content-Type ---------------------------------------------------------------------------------------------------------


def check_content_type(data: bytes) -> None:
    """Both parsers take any header, and never make something of nothing."""
    text = data.decode("latin-1")
    parsed = parse_content_type(text)
    media_type, parameters = parse_header(text)
    expect(parsed.media_type == media_type, "the parsers differ", text, parsed.media_type, media_type)
    for values in (parsed.parameters, parameters):
        expect(all(name == name.lower() for name in values), "a name that is not in lower case", text, values)
    _ = parsed.is_multipart, parsed.is_json, parsed.is_xml, parsed.transfer_syntax_uid, parsed.root.media_type


def content_type_seeds() -> list[bytes]:
    return [
        b'multipart/related; type="application/dicom"; boundary="a;b=\\"c"; transfer-syntax=1.2',
        b"Application/DICOM+json;charset=utf-8",
        b'multipart/related;type="application/octet-stream; transfer-syntax=*";boundary=x',
        b";;=;a=;a",
    ]


# Part 10 --------------------------------------------------------------------------------------------------------------


class Slow(io.BytesIO):
    """A file that gives a few bytes at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size if size is None or size < 0 else min(size, 7))


def outcome(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Part10Error as error:
        return type(error).__name__, error.reason


def scanned(file: Any, **options: Any) -> Any:
    def read() -> Any:
        scan = scan_header(file, **options)
        return dict(scan.elements), dict(scan.meta), scan.pixel_data, scan.transfer_syntax_uid, scan.problem is None

    return outcome(read)


def check_part10(data: bytes) -> None:
    """A file read as a whole, in small pieces, and from memory says the same."""
    expected = outcome(lambda: header_of(io.BytesIO(data)))
    expect(outcome(lambda: header_of(Slow(data))) == expected, "slow reads, another header", data, expected)
    whole = scanned(data)
    for file, options in ((io.BytesIO(data), {}), (Slow(data), {}), (io.BytesIO(data), {"first_read": 1024})):
        expect(scanned(file, **options) == whole, "other reads, other elements", data, options)
    complete = outcome(lambda: check_complete(data))
    expect(outcome(lambda: check_complete(Slow(data))) == complete, "slow reads, another completeness", data, complete)
    for bulk in (None, lambda place: "bulk"):
        encoded = outcome(lambda bulk=bulk: encode(data, bulk_data=bulk))
        if isinstance(encoded, dict):
            expect(loads(dumps(encoded)) is not None, "metadata that cannot be written", data)


def part10_seeds() -> list[bytes]:
    from tests.security.hostile import DEFLATED, element, part10

    implicit = part10(syntax="1.2.840.10008.1.2")
    sequence = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    sequence += element(0x00081155, "UI", "1.2") + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    pixels = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    return [
        part10(),
        part10()[128 + 4 :],
        implicit,
        part10(syntax=DEFLATED),
        part10(more=sequence.replace(b"\x08\x00\x40\x11", b"\x40\x00\x75\x02") + pixels),
        part10(more=element(0x00280010, "US", b"\x10\0") + element(0x7FE00010, "OW", b"pixels")),
        part10(more=element(0x00420011, "OB", b"x" * 70)) + b"\0" * 20,
        part10()[:-7],
    ]


# DICOM JSON -----------------------------------------------------------------------------------------------------------


def objects_of(chunks: list[bytes]) -> Any:
    found: list[bytes] = []
    try:
        found.extend(iter_json_objects(iter(chunks)))
    except IncompleteJSONError:
        return found, "incomplete"
    except ValueError:
        return found, "malformed"
    return found, None


def check_json(data: bytes) -> None:
    """Any text; what is read can be written, and written again means the same."""
    choice = sum(data) & 0xFF
    # iter_json_objects yields nothing to keep what was complete before an error: both are compared by what they say.
    expected = objects_of([data])
    for chunks in cuts(data, choice):
        expect(objects_of(chunks) == expected, "other chunks, other objects", data, chunks, expected)
    try:
        value = loads(data)
    except ValueError as error:
        expect(bool(str(error)), "an error without words", data)
        return
    text = dumps(value)
    expect(dumps(loads(text)) == text, "written again it differs", data, text)
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):
            try:
                load_json_dataset(item)
            except ValueError:
                continue


def json_seeds() -> list[bytes]:
    row = b'{"00080018":{"vr":"UI","Value":["1.2"]},"00100010":{"vr":"PN","Value":[{"Alphabetic":"A^B"},null]}'
    more = b',"7FE00010":{"vr":"OW","BulkDataURI":"b"},"00280010":{"vr":"US","Value":[16]}'
    more += b',"00081140":{"vr":"SQ","Value":[{"00081155":{"vr":"UI","Value":["1.3"]}},{}]}'
    return [
        b"[" + row + b"}," + row + more + b"}]",
        b"\xef\xbb\xbf [ " + row + b'},{"00280030":{"vr":"DS","Value":[NaN,-Infinity,1e999]}} ]\r\n',
        row + more + b',"00420011":{"vr":"OB","InlineBinary":"AAA="},"00000901":{"vr":"AT","Value":["00080018"]}}',
        b'[{"a":"\\"}{\\\\"},{"b":"\\ud800"}]',
        b"[[[[]]]]",
        b"[]",
    ]


TARGETS = {
    "multipart": Target(check_multipart, multipart_seeds),
    "uri": Target(check_uri, uri_seeds),
    "content-type": Target(check_content_type, content_type_seeds),
    "part10": Target(check_part10, part10_seeds),
    "json": Target(check_json, json_seeds),
}
"""All targets by name."""
