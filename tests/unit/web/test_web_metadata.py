"""Metadata: one dataset at a time, in JSON or XML, wherever servers keep it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from dicomweb_io.dicom.errors import IncompleteJSONError
from dicomweb_io.dicom.json_decode import iter_json_objects
from dicomweb_io.elements import Resource
from dicomweb_io.errors import DICOMwebError, MalformedResponseError, ResponseIncompleteError
from dicomweb_io.profiles import ServerProfile
from tests.answering import in_turn

UIDS = ("1.2", "1.3", "1.4")
ONE = Resource(*UIDS)


def rows(web, count=3):
    return [web.row("1.2", "1.3", f"1.4.{number}") for number in range(count)]


def test_metadata_of_a_study(web):
    server, client = web.connect(lambda request: web.json(rows(web)))
    assert client.retrieve_study_metadata("1.2") == rows(web)
    assert client.retrieve_series_metadata("1.2", "1.3") == rows(web)
    assert list(client.iter_study_metadata("1.2")) == list(client.iter_series_metadata("1.2", "1.3")) == rows(web)
    assert server.asked()[:2] == ["/dicomweb/studies/1.2/metadata", "/dicomweb/studies/1.2/series/1.3/metadata"]


def test_metadata_of_one_instance_is_one_dataset(web):
    for document in ([web.row(*UIDS)], web.row(*UIDS)):
        _, client = web.connect(in_turn(web.json(document)))
        assert client.retrieve_instance_metadata(*UIDS) == web.row(*UIDS)
    for reply in (web.json([]), web.Reply(204)):
        _, client = web.connect(in_turn(reply))
        with pytest.raises(DICOMwebError, match="one instance, got 0"):
            client.retrieve_instance_metadata(*UIDS)


def test_frames_have_the_metadata_of_their_instance(web):
    server, client = web.connect(lambda request: web.json([web.row(*UIDS)]))
    assert list(client.iter_metadata(Resource(*UIDS, (1, 2)))) == [web.row(*UIDS)]
    assert server.asked() == [f"/dicomweb/{ONE.uri}/metadata"]


def test_a_body_that_breaks_off_is_asked_for_again_and_nothing_comes_twice(web):
    whole = web.json(rows(web, 50)).body
    cuts = [len(whole) // 2, None]
    server, client = web.connect(lambda request: web.json(rows(web, 50), length=False, cut=cuts.pop(0)))
    assert list(client.iter_metadata(Resource("1.2"))) == rows(web, 50)
    assert len(server.requests) == 2
    _, client = web.connect(lambda request: web.json(rows(web, 50), length=False, cut=len(whole) - 1))
    with pytest.raises(ResponseIncompleteError, match="array is closed"):
        list(client.iter_metadata(Resource("1.2")))


def test_servers_without_metadata_resource_are_asked_for_the_object_as_json(web):
    def answer(request):
        if request.path.endswith("/metadata"):
            return web.Reply(404)
        return web.json(rows(web)) if request.headers["accept"] == "application/dicom+json" else web.Reply(406)

    server, client = web.connect(answer)
    for _ in range(2):
        assert client.retrieve_study_metadata("1.2") == rows(web)
    assert [path.endswith("/metadata") for path in server.asked()] == [True, False, False]
    server, client = web.connect(answer, profile=ServerProfile("none", metadata_resource=False))
    assert client.retrieve_study_metadata("1.2") == rows(web)
    assert len(server.requests) == 1


def test_an_unknown_object_is_404(web):
    _, client = web.connect(lambda request: web.Reply(404))
    with pytest.raises(DICOMwebError) as caught:
        client.retrieve_study_metadata("1.2")
    assert caught.value.status == 404
    assert caught.value.url.endswith("/metadata")


def test_studies_whose_metadata_is_only_had_by_series(web):
    def answer(request):
        if request.path == "/dicomweb/studies/1.2/series":
            return web.page(request, [web.row("1.2", "1.3"), web.row("1.2", "1.5")])
        series = request.path.split("/")[5]
        return web.json([web.row("1.2", series, f"{series}.1")])

    _, client = web.connect(answer, profile=ServerProfile("by series", study_metadata=False))
    found = [Resource.of(row).sop_instance_uid for row in client.iter_metadata(Resource("1.2"))]
    assert found == ["1.3.1", "1.5.1"]


def test_relative_bulk_data_uris_become_absolute(web):
    item = {"54001010": {"vr": "OW", "BulkDataURI": "bulk/deep"}}
    row = {
        **web.row(*UIDS),
        "7FE00010": {"vr": "OW", "BulkDataURI": "../bulkdata/x"},
        "00420011": {"vr": "OB", "BulkDataURI": "https://other.example/y"},
        "00420012": {"vr": "OB", "BulkDataURI": "/rooted"},
        "54000100": {"vr": "SQ", "Value": [item]},
    }
    server, client = web.connect(lambda request: web.json([row]))
    found = client.retrieve_instance_metadata(*UIDS)
    base = f"http://127.0.0.1:{server.port}"
    assert found["7FE00010"]["BulkDataURI"] == f"{base}/dicomweb/studies/1.2/series/1.3/instances/bulkdata/x"
    assert found["00420011"]["BulkDataURI"] == "https://other.example/y"
    assert found["00420012"]["BulkDataURI"] == f"{base}/rooted"
    deep = found["54000100"]["Value"][0]["54001010"]["BulkDataURI"]
    assert deep == f"{base}/dicomweb/studies/1.2/series/1.3/instances/1.4/bulk/deep"


@pytest.mark.parametrize("multipart", [True, False])
def test_xml(web, multipart):
    document = (
        b'<NativeDicomModel><DicomAttribute tag="00080018" vr="UI"><Value number="1">1.4</Value></DicomAttribute>'
        b'<DicomAttribute tag="00100010" vr="PN"><PersonName number="1"><Alphabetic><FamilyName>A</FamilyName>'
        b"<GivenName>B</GivenName></Alphabetic></PersonName></DicomAttribute></NativeDicomModel>"
    )
    kind = "application/dicom+xml"
    reply = web.multipart([document], kind=kind) if multipart else web.Reply(200, document, kind)
    _, client = web.connect(lambda request: reply)
    found = client.retrieve_instance_metadata(*UIDS)
    assert found["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "A^B"}]}


@pytest.mark.parametrize(
    "body", [b"<html>login</html>", b"no", b"[1]", b'{"a": }', b"[{}] x", b'{"error": "no"}', b'[{"a": 1}]']
)
def test_what_is_no_metadata_is_an_error(web, body):
    _, client = web.connect(lambda request: web.Reply(200, body, "application/dicom+json"))
    with pytest.raises(MalformedResponseError):
        client.retrieve_study_metadata("1.2")


def test_metadata_of_another_object_is_an_error(web):
    _, client = web.connect(lambda request: web.json([web.row("1.2", "1.3", "9.9")]))
    with pytest.raises(MalformedResponseError, match="another object"):
        client.retrieve_instance_metadata(*UIDS)


def cut(text: bytes, sizes: list[int]) -> list[bytes]:
    chunks, start = [], 0
    for size in sizes:
        chunks.append(text[start : start + size])
        start += size
    return [*chunks, text[start:]]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text('ab"\\{}[],: é\n', max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"\\}{', max_size=4), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=4), max_size=5)
SIZES = st.lists(st.integers(0, 7), max_size=60)


@given(OBJECTS, SIZES, st.sampled_from([None, 1]), st.booleans(), st.sampled_from(["", "\ufeff", " \n"]))
def test_an_array_is_split_into_its_objects_wherever_it_is_cut(objects, sizes, indent, ascii_only, before):
    text = (before + json.dumps(objects, indent=indent, ensure_ascii=ascii_only)).encode()
    assert [json.loads(item) for item in iter_json_objects(cut(text, sizes))] == objects


@given(OBJECTS, SIZES, st.data())
def test_an_array_that_breaks_off_is_never_taken_for_a_whole_one(objects, sizes, data):
    text = json.dumps(objects).encode()
    end = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(IncompleteJSONError):
        list(iter_json_objects(cut(text[:end], sizes)))
