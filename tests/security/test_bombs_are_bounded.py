"""Answers and files that are small on the wire and huge inside end with one clear error, in bounded memory.

The parts are tried one by one in ``tests/unit`` (``test_decoding``, ``test_xml_model``, ``test_multipart``, and the
headers in ``test_transport``); here the bombs go through the operations of the client, and files through the folder.
Every operation has a deadline, which ends those that would take for ever.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import tracemalloc
import zlib
from contextlib import contextmanager

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that

from dicomweb_io.cli import main as command_line
from dicomweb_io.dicom.header_scan import scan_header
from dicomweb_io.dicom.json_decode import dumps, load_json_dataset, loads
from dicomweb_io.dicom.part10 import check_complete, header_of
from dicomweb_io.elements import Failure, Resource, SearchQuery, StoredInstance
from dicomweb_io.errors import DICOMwebError, MalformedResponseError
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.http.settings import Timeouts
from dicomweb_io.http.transport import Transport
from dicomweb_io.transforms import SearchForInstances
from dicomweb_io.web.client import DICOMwebClient
from tests.answering import Reply
from tests.security.hostile import DEFLATED, INSTANCE, JSON, SERIES, STUDY, element, multipart, part10, row, rows

MIB = 1 << 20
REFERENCE = Resource(STUDY, SERIES, INSTANCE)


@contextmanager
def memory_below(maximum):
    """Fails if Python objects take more than so many bytes at any moment in the block."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < maximum, f"{peak >> 20} MiB were needed"


def client_of(url, **options):
    return DICOMwebClient(url, **{"retry": RetryPolicy.none(), "deadline": 20.0, **options})


OPERATIONS = {
    "search": lambda client: list(client.iter_search(SearchQuery("instance"))),
    "metadata": lambda client: list(client.iter_metadata(REFERENCE)),
    "instance": lambda client: list(client.iter_instances(REFERENCE)),
    "frames": lambda client: list(client.iter_frames(Resource(STUDY, SERIES, INSTANCE, (1,)))),
    "rendered": lambda client: client.retrieve_rendered(REFERENCE),
    "bulk data": lambda client: list(client.iter_bulkdata_parts(f"{client.base_url}/bulk/1")),
    "store": lambda client: list(client.iter_store_instances([part10()])),
    "delete": lambda client: client.delete_instance(STUDY, SERIES, INSTANCE),
}


def ends_badly(client, operation):
    """Runs an operation; gives its error, or the failures that it reports."""
    try:
        result = OPERATIONS[operation](client)
    except (DICOMwebError, ValueError) as error:
        return str(error)
    assert isinstance(result, list), result
    assert result, "an empty answer"
    assert all(isinstance(item, Failure) for item in result), result
    return result[0].message


# Decompression --------------------------------------------------------------------------------------------------------


def squeezed(size, wbits):
    squeeze = zlib.compressobj(9, zlib.DEFLATED, wbits)
    block = b" " * MIB
    return b"".join([squeeze.compress(block) for _ in range(size // MIB)]) + squeeze.flush()


BLANKS = 100 * MIB
BOMBS = {
    "gzip": lambda: ("gzip", squeezed(BLANKS, 31)),
    "x-gzip": lambda: ("x-gzip", squeezed(BLANKS, 31)),
    "deflate": lambda: ("deflate", squeezed(BLANKS, 15)),
    "bare deflate": lambda: ("deflate", squeezed(BLANKS, -15)),
    "gzip, many members": lambda: ("gzip", gzip.compress(b" " * MIB, 9) * 100),
    "gzip twice": lambda: ("gzip, gzip", gzip.compress(squeezed(BLANKS, 31))),
    "gzip thrice": lambda: ("gzip, gzip, gzip", gzip.compress(gzip.compress(squeezed(BLANKS, 31)))),
    "not asked for": lambda: ("br", b"\x1b" * 1000),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("operation", ["search", "metadata", "instance", "bulk data", "store"])
def test_decompression_bombs(origin, kind, operation):
    encoding, body = BOMBS[kind]()
    media_type = {"instance": "application/dicom", "bulk data": "application/octet-stream"}.get(operation)
    headers = {"Content-Type": media_type or JSON["Content-Type"], "Content-Encoding": encoding}
    server = origin(lambda _: Reply(200, body, headers=headers))
    with client_of(server.url) as client, memory_below(200 * MIB):
        message = ends_badly(client, operation)
    assert any(word in message for word in ("250-fold", "Content-Encoding", "JSON")), message
    # It is not asked for again; whether a store succeeded nevertheless may be looked up, and once more alone.
    assert [request.method for request in server.requests] in (
        [["POST", *["GET"] * looks] for looks in range(3)] if operation == "store" else [["GET"]]
    )


@pytest.mark.parametrize("item", ["{}", "[]", "null", '{"0020000D":{"vr":"UI","Value":["1.2"]}}'])
@pytest.mark.parametrize("get_remaining", [True, False])
def test_rows_without_number_where_few_were_asked_for(origin, item, get_remaining):
    body = gzip.compress(f"[{','.join(['{}'] * 10 + [item] * 1_000_000)}]".encode())
    headers = {"Content-Encoding": "gzip"}
    server = origin(lambda request: Reply(200, body, "application/dicom+json", headers))
    with client_of(server.url) as client, memory_below(60 * MIB):
        assert len(client.search_for_instances(limit=10, get_remaining=get_remaining)) == 10


def test_empty_members_are_no_way_to_keep_a_client_busy(origin):
    """Two megabytes of nothing, a hundred thousand times, and then an empty answer."""
    body = gzip.compress(b"") * 100_000 + gzip.compress(b"[]")
    server = origin(lambda _: Reply(200, body, headers={**JSON, "Content-Encoding": "gzip"}))
    with client_of(server.url) as client, memory_below(30 * MIB):
        assert OPERATIONS["search"](client) == []


def test_compression_that_is_no_bomb_is_read(origin):
    """Rows that are alike compress well."""
    content = json.dumps([row(instance=f"1.2.{number}") for number in range(2000)]).encode()
    packed = gzip.compress(content, 9)
    assert len(packed) < len(content) / 20

    def answer(request):
        return (
            rows() if "offset=" in request.target else Reply(200, packed, headers={**JSON, "Content-Encoding": "gzip"})
        )

    with client_of(origin(answer).url) as client:
        assert len(OPERATIONS["search"](client)) == 2000


# Headers --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def raw(answering):
    """Starts servers that send what a generator yields, byte for byte, after each request."""

    def start(talk):
        def handle(request):
            for piece in talk():
                request.send(piece)

        return answering(handle, path="/dicomweb").url

    return start


def endless(first, more):
    def talk():
        yield first
        while True:
            yield more * 1000

    return talk


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
HEADER_BOMBS = {
    "many headers": endless(OK, b"A: b\r\n"),
    "a long header": endless(OK + b"X: ", b"x" * 100),
    "a long name": endless(OK, b"x" * 100),
    "a folded header": endless(OK + b"X: y\r\n", b" folded\r\n"),
    "empty names": endless(OK, b":\r\n"),
    "a long status line": endless(b"HTTP/1.1 200 ", b"OK"),
    "no status line": endless(b"", b"\r\n"),
    "100 without end": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "102 without end": endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "103 without end": endless(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "103 with endless headers": endless(b"HTTP/1.1 103 Early Hints\r\n", b"Link: </a>\r\n"),
}
BODY_BOMBS = {
    "a long chunk size": endless(CHUNKED, b"0" * 100),
    "a long chunk extension": endless(CHUNKED + b"5;", b"x=y;"),
    "trailers without end": endless(CHUNKED + b"2\r\n[]\r\n0\r\n", b"A: b\r\n"),
}


@pytest.mark.parametrize("operation", ["search", "store"])
@pytest.mark.parametrize("kind", HEADER_BOMBS)
def test_header_bombs(raw, kind, operation):
    with client_of(raw(HEADER_BOMBS[kind])) as client, memory_below(30 * MIB):
        assert ends_badly(client, operation)


@pytest.mark.parametrize("operation", ["search", "metadata", "store"])
@pytest.mark.parametrize("kind", BODY_BOMBS)
def test_bombs_between_chunks(raw, kind, operation):
    with client_of(raw(BODY_BOMBS[kind]), deadline=2.0) as client, memory_below(30 * MIB):
        assert ends_badly(client, operation)


@pytest.mark.parametrize("status", [b"100 Continue", b"102 Processing", b"103 Early Hints"])
def test_interim_answers_are_skipped_and_each_request_gets_its_own(raw, status):
    """An interim answer taken for the real one would leave the real one to the next request on the connection."""
    numbers = iter(range(10))

    def talk():
        yield (b"HTTP/1.1 " + status + b"\r\nLink: </style.css>\r\n\r\n") * 3
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % next(numbers)

    with Transport(raw(talk), retry=RetryPolicy.none(), timeouts=Timeouts(deadline=20.0)) as transport:
        answers = [transport.request("GET", "/studies") for _ in range(3)]
    assert [(answer.status, answer.content) for answer in answers] == [(200, b"0"), (200, b"1"), (200, b"2")]


# JSON -----------------------------------------------------------------------------------------------------------------


def nested_sequences(depth):
    whole = {**row(), "00081140": "HERE"}
    inside = '{"vr":"SQ","Value":[{"00081140":' * depth + '{"vr":"LO","Value":["x"]}' + "}]}" * depth
    return json.dumps(whole).replace('"HERE"', inside)


def nested_lists(depth):
    whole = {**row(), "00081140": {"vr": "SQ", "Value": "HERE"}}
    return json.dumps(whole).replace('"HERE"', "[" * depth + "]" * depth)


def nested_objects(depth):
    whole = {**row(), "00081140": "HERE"}
    return json.dumps(whole).replace('"HERE"', '{"a":' * depth + "1" + "}" * depth)


def nested_behind_a_text(depth):
    """Brackets in texts are none."""
    return nested_sequences(depth).replace('"x"', '"]}]}[{[{"')


MAKERS = [nested_sequences, nested_lists, nested_objects, nested_behind_a_text]
DEPTHS = [70, 130, 330, 1100, 10_000, pytest.param(100_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("operation", ["search", "metadata", "store"])
def test_deep_json(origin, maker, depth, operation):
    """Either it can be used, copied and printed, or it is refused at once: nothing fails later."""
    text = maker(depth)
    body = text.encode() if operation == "store" else f"[{text}]".encode()
    server = origin(lambda request: rows() if "offset=" in request.target else Reply(200, body, headers=JSON))
    with client_of(server.url) as client, memory_below(100 * MIB):
        try:
            results = OPERATIONS[operation](client)
        except MalformedResponseError as error:
            assert "JSON" in str(error)  # noqa: PT017 - or it works
            assert depth > 65
            return
    for found in results:
        if isinstance(found, (Failure, StoredInstance)):
            continue
        assert loads(dumps(found)) == found
        try:
            load_json_dataset(found)
        except ValueError:
            assert maker is not nested_sequences


def test_sequences_of_usual_depth_are_read():
    found = loads(nested_sequences(60))
    assert loads(dumps(found)) == found
    assert "00081140" in load_json_dataset(found)


@pytest.mark.parametrize("depth", [130, 330, 10_000])
def test_a_pipeline_makes_a_failure_of_deep_json(origin, depth):
    body = f"[{nested_sequences(depth)}]".encode()
    server = origin(lambda request: rows() if "offset=" in request.target else Reply(200, body, headers=JSON))

    def one_failure(found):
        assert len(found) == 1
        assert "JSON" in found[0].message

    with beam.Pipeline("FnApiRunner") as pipeline:
        result = pipeline | SearchForInstances(server.url, failures="collect")
        assert_that(result.failures, one_failure)
        assert_that(result.rows, lambda found: not found or 1 / 0, label="no rows")


@pytest.mark.parametrize("depth", [130, 330, 10_000])
def test_the_command_explains_deep_json(origin, depth, capsys):
    body = f"[{nested_sequences(depth)}]".encode()
    server = origin(lambda request: rows() if "offset=" in request.target else Reply(200, body, headers=JSON))
    for more in ([], ["--dicomize"], ["--prettify"]):
        assert command_line(["--url", server.url, "search", "instances", *more]) == 1
        error = capsys.readouterr().err
        assert "JSON" in error
        assert "Traceback" not in error


@pytest.mark.parametrize("number", ["1" * 100_000, "1e" + "9" * 100_000, "0." + "3" * 1_000_000, "-" * 1_000_000])
def test_monstrous_numbers(origin, number):
    text = json.dumps({**row(), "00200013": "HERE"}).replace('"HERE"', f'{{"vr":"IS","Value":[{number}]}}')
    server = origin(
        lambda request: rows() if "offset=" in request.target else Reply(200, f"[{text}]".encode(), headers=JSON)
    )
    with client_of(server.url) as client, memory_below(100 * MIB):
        for operation in ("search", "metadata"):
            try:
                (found,) = OPERATIONS[operation](client)
            except MalformedResponseError as error:
                assert len(str(error)) < 1000  # noqa: PT017 - or it works
            else:
                assert loads(dumps(found))


# XML ------------------------------------------------------------------------------------------------------------------


def xml_bombs(elsewhere):
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    model = '<NativeDicomModel><DicomAttribute tag="0020000D" vr="UI"><Value number="1">{}</Value></DicomAttribute>'
    model += "</NativeDicomModel>"
    return {
        "billion laughs": f'<!DOCTYPE x [<!ENTITY e0 "ha">{entities}]>' + model.format("&e9;"),
        "quadratic": f'<!DOCTYPE x [<!ENTITY e "{"x" * 50_000}">]>' + model.format("&e;" * 50_000),
        "external file": '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + model.format("&e;"),
        "external host": f'<!DOCTYPE x [<!ENTITY e SYSTEM "{elsewhere}/x">]>' + model.format("&e;"),
        "parameter entity": f'<!DOCTYPE x [<!ENTITY % p SYSTEM "{elsewhere}/x"> %p;]>' + model.format("1.2"),
        "external definition": f'<!DOCTYPE x SYSTEM "{elsewhere}/x.dtd">' + model.format("1.2"),
        "definition only": "<!DOCTYPE x []>" + model.format("1.2"),
        "deep": "<NativeDicomModel>"
        + '<DicomAttribute tag="00081140" vr="SQ"><Item number="1">' * 100_000
        + "</Item></DicomAttribute>" * 100_000
        + "</NativeDicomModel>",
    }


@pytest.mark.parametrize("kind", list(xml_bombs("http://127.0.0.1:1")))
@pytest.mark.parametrize("operation", ["search", "metadata", "store"])
def test_xml_bombs(origin, kind, operation):
    elsewhere = origin(lambda _: Reply(200, b"<!ENTITY e 'x'>", headers={}))
    content = f'<?xml version="1.0"?>{xml_bombs(elsewhere.url)[kind]}'.encode()
    related = multipart([content], media_type="application/dicom+xml")
    for answer in (related, Reply(200, content, "application/dicom+xml")):
        server = origin(lambda _, answer=answer: answer)
        with client_of(server.url) as client, memory_below(250 * MIB):
            message = ends_badly(client, operation)
        assert "root:" not in message
    assert elsewhere.requests == []


# Multipart ------------------------------------------------------------------------------------------------------------


def multipart_bombs():
    start = b"--edge\r\nContent-Type: application/dicom\r\n"
    return {
        "a long header": start + b"X: " + b"x" * (8 * MIB),
        "many headers": start + b"A: b\r\n" * MIB,
        "many of one name": start + b"A: b\r\n" * 20_000 + b"\r\n--edge--",
        "many folded": start + b"A: b\r\n" + b" c\r\n" * MIB,
        "no end of the headers": start + b"A: b\n" * MIB,
        "a preamble without end": b"x\r\n" * (4 * MIB),
        "almost delimiters": b"--edge" + b" " * 255 + b"x\r\n--edg" * MIB,
        "blanks behind a delimiter": b"--edge" + b" " * (4 * MIB),
        "a part in parts": start + b"\r\n" + b"--edge\r\n\r\n" * 1000,
        "empty parts": b"--edge\r\n\r\n\r\n" * 200_000,
    }


@pytest.mark.parametrize("kind", list(multipart_bombs()))
@pytest.mark.parametrize("operation", ["metadata", "instance", "frames", "bulk data"])
def test_multipart_bombs(origin, kind, operation):
    body = multipart_bombs()[kind]
    media_type = {"metadata": "application/dicom+json", "instance": "application/dicom"}.get(
        operation, "application/octet-stream"
    )
    headers = {"Content-Type": f'multipart/related; type="{media_type}"; boundary=edge'}
    server = origin(lambda _: Reply(200, body, headers=headers))
    # Two hundred thousand parts of bulk data are that many results before it shows that no end comes.
    maximum = 200 if (kind, operation) == ("empty parts", "bulk data") else 60
    with client_of(server.url) as client, memory_below(maximum * MIB):
        assert ends_badly(client, operation)


@pytest.mark.parametrize("boundary", ["x" * 10_000, "", '"' + "\\x" * 20_000, "a;" * 20_000, "\u2026"])
def test_monstrous_boundaries(origin, boundary):
    value = f"multipart/related; type=application/dicom; boundary={boundary}".encode().decode("latin-1")
    server = origin(lambda _: Reply(200, b"--x--", headers={"Content-Type": value}))
    with client_of(server.url) as client, memory_below(30 * MIB):
        message = ends_badly(client, "instance")
    assert len(message) < 1000


# Deflated files -------------------------------------------------------------------------------------------------------

INFLATED = 32 * MIB


def deflated(head, filling, size=INFLATED):
    """A deflated Part 10 file whose dataset ends with `head` and then `filling`, repeated up to a size."""
    plain = part10(syntax=DEFLATED)
    start = 128 + 4 + 12 + struct.unpack_from("<I", plain, 128 + 4 + 8)[0]
    dataset = zlib.decompress(plain[start:], -15)
    squeeze = zlib.compressobj(1, zlib.DEFLATED, -15)
    block = filling * (65536 // len(filling))
    pieces = [squeeze.compress(dataset + head)] + [squeeze.compress(block) for _ in range(size // len(block) + 1)]
    return plain[:start] + b"".join(pieces) + squeeze.flush()


def long_head(tag, vr, length):
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, length)


FILES = {
    "document": lambda: deflated(long_head(0x00420011, b"OB", INFLATED), b"\0"),
    "text": lambda: deflated(long_head(0x00420013, b"UT", INFLATED), b"x"),
    "unknown": lambda: deflated(long_head(0x00420015, b"UN", INFLATED), b"\0"),
    "sequence of zeros": lambda: deflated(long_head(0x00420017, b"SQ", INFLATED), b"\0"),
    "items": lambda: deflated(long_head(0x00420017, b"SQ", 0xFFFFFFFF), b"\xfe\xff\x00\xe0\0\0\0\0", MIB // 4),
    "nested": lambda: deflated(
        b"", long_head(0x00420017, b"SQ", 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff", MIB // 4
    ),
    "pixels": lambda: deflated(long_head(0x7FE00010, b"OW", INFLATED), b"\0"),
    "small elements": lambda: deflated(b"", element(0x00420010, "ST", "x" * 48), MIB),
    "padding": lambda: deflated(b"", b"\0"),
    "longer than it is": lambda: deflated(long_head(0x00420011, b"OB", 0xFFFFFFF0), b"\0"),
}


@pytest.fixture(scope="module")
def files():
    return {name: make() for name, make in FILES.items()}


@pytest.mark.parametrize("kind", FILES)
def test_headers_of_deflated_files(files, kind):
    content = files[kind]
    assert len(content) < MIB
    for read in (header_of, check_complete, lambda file: scan_header(file, large_value=1024)):
        with memory_below(20 * MIB):
            try:
                read(io.BytesIO(content))
            except ValueError as error:
                assert str(error)  # noqa: PT017 - or it works


@pytest.mark.parametrize("kind", FILES)
def test_a_folder_with_deflated_files(files, kind, tmp_path):
    """Searched, described and delivered."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "bomb.dcm").write_bytes(files[kind])
    (folder / "good.dcm").write_bytes(part10(instance="1.2.9"))
    with DICOMfileClient(str(folder), in_memory=True) as client, memory_below(110 * MIB):
        found = {Resource.of(one).sop_instance_uid for one in client.iter_search(SearchQuery("instance"))}
        assert "1.2.9" in found
        if INSTANCE in found:
            for metadata in client.iter_metadata(REFERENCE):
                assert len(dumps(metadata)) < MIB
            (instance,) = client.iter_instances(REFERENCE)
            assert instance.size == len(files[kind])
        else:
            (left_out,) = client.iter_exclusions(SearchQuery("instance"))
            assert left_out.reason


@pytest.mark.parametrize("kind", FILES)
def test_deflated_files_from_a_server(origin, files, kind, tmp_path):
    server = origin(lambda _: multipart([files[kind]]))
    with client_of(server.url, deadline=60.0) as client, memory_below(20 * MIB):
        try:
            (instance,) = client.iter_instances(REFERENCE)
        except DICOMwebError as error:
            assert len(str(error)) < 1000  # noqa: PT017 - or it works
        else:
            assert instance.content == files[kind]


def test_a_header_of_small_elements_has_an_end():
    """None is large, but together they would fill the memory if nobody counted."""
    content = deflated(b"", element(0x00420010, "ST", "x" * 60_000), 72 * MIB)
    with memory_below(200 * MIB):
        assert "larger than 64 MiB" in str(scan_header(io.BytesIO(content)).problem)


# The server for tests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["a long header", "many headers", "a preamble without end", "almost delimiters"])
def test_the_test_server_refuses_multipart_bombs_and_lives(serve, folder, kind):
    import requests

    server = serve(folder)
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=edge'}
    answer = requests.post(f"{server.url}/studies", data=multipart_bombs()[kind], headers=headers, timeout=60)
    assert 400 <= answer.status_code < 500
    with client_of(server.url) as client:
        (stored,) = client.iter_store_instances([part10()])
    assert not isinstance(stored, Failure)
