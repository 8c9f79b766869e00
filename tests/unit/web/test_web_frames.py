"""Frames: the order asked for, the number asked for, each with its encoding."""

from __future__ import annotations

import os

import pytest

from dicomweb_io.elements import Resource
from dicomweb_io.errors import DatasetError, DICOMwebError, MalformedResponseError, ResponseIncompleteError
from dicomweb_io.profiles import GENERIC

UIDS = ("1.2", "1.3", "1.4")


def reference(*numbers):
    return Resource(*UIDS, numbers)


def asked(request):
    return [int(number) for number in request.path.rpartition("/")[2].split(",")]


def frame_server(web, *, content_type="application/octet-stream", location=False, reverse=False):
    def answer(request):
        parts = []
        for number in asked(request):
            headers = {"Content-Type": content_type}
            if location:
                headers["Content-Location"] = f"/dicomweb/{Resource(*UIDS, (number,)).uri}"
            parts.append((headers, b"frame %d" % number))
        return web.multipart(reversed(parts) if reverse else parts, kind="application/octet-stream")

    return answer


def test_frames_come_in_the_order_asked_for_with_their_encoding(web):
    kind = "image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50"
    server, client = web.connect(frame_server(web, content_type=kind))
    found = list(client.iter_frames(reference(3, 1, 2)))
    contents = [(frame.reference.frames, frame.content) for frame in found]
    assert contents == [((3,), b"frame 3"), ((1,), b"frame 1"), ((2,), b"frame 2")]
    encodings = {(frame.media_type, frame.transfer_syntax_uid) for frame in found}
    assert encodings == {("image/jpeg", "1.2.840.10008.1.2.4.50")}
    assert server.requests[0].headers["accept"] == (
        'multipart/related; type="application/octet-stream"; transfer-syntax=*, '
        'multipart/related; type="*/*"; transfer-syntax=*'
    )


def test_parts_that_name_their_frame_are_put_into_order(web):
    _, client = web.connect(frame_server(web, location=True, reverse=True))
    assert client.retrieve_instance_frames(*UIDS, [3, 1, 2]) == [b"frame 3", b"frame 1", b"frame 2"]


def test_the_default_of_the_guide_is_uncompressed(web):
    server, client = web.connect(frame_server(web))
    assert client.retrieve_instance_frames(*UIDS, [1, 2]) == [b"frame 1", b"frame 2"]
    assert list(client.iter_instance_frames(*UIDS, [2])) == [b"frame 2"]
    assert server.requests[0].headers["accept"] == 'multipart/related; type="application/octet-stream"'


@pytest.mark.parametrize(
    ("media_types", "part", "syntax"),
    [
        (("image/jpeg",), "image/jpeg", "1.2.840.10008.1.2.4.70"),
        (("application/octet-stream",), "application/octet-stream", "1.2.840.10008.1.2.1"),
        ((("image/jpeg", "1.2.840.10008.1.2.4.57"),), "image/jpeg", "1.2.840.10008.1.2.4.57"),
        ((("image/jpeg", "*"),), "image/jpeg", None),
        ((("application/octet-stream", "*"),), "image/jpeg", None),
        ((("application/octet-stream", "*"),), "image/dicom-rle", "1.2.840.10008.1.2.5"),
        (("image/jphc",), "image/jphc", "1.2.840.10008.1.2.4.201"),
        (("image/new",), "image/new", None),
        (("image/*",), "image/jls; transfer-syntax=1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.81"),
    ],
)
def test_the_encoding_of_a_part_that_does_not_name_it(web, media_types, part, syntax):
    _, client = web.connect(frame_server(web, content_type=part))
    (frame,) = client.iter_frames(reference(1), media_types=media_types)
    assert frame.transfer_syntax_uid == syntax


def test_a_transfer_syntax_inside_the_quoted_type(web):
    """Orthanc writes it there, in the header of the whole answer."""
    body = b"--B\r\nContent-Type: image/jpeg\r\n\r\nx\r\n--B--\r\n"
    kind = 'multipart/related; type="image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50"; boundary=B'
    _, client = web.connect(lambda request: web.Reply(200, body, kind))
    (frame,) = client.iter_frames(reference(1))
    assert frame.transfer_syntax_uid == "1.2.840.10008.1.2.4.50"


def test_long_lists_are_cut_by_number_and_by_length_of_the_url(web):
    numbers = list(range(1, 1501))

    def answer(request):
        return web.multipart([b"frame %4d" % number for number in asked(request)], kind="application/octet-stream")

    server, client = web.connect(answer)
    assert client.retrieve_instance_frames(*UIDS, numbers) == [b"frame %4d" % number for number in numbers]
    assert len(server.requests) > 1
    assert all(len(asked(request)) <= 400 for request in server.requests)
    assert max(len(server.url.rpartition("/")[0] + request.target) for request in server.requests) <= 2000
    server, client = web.connect(frame_server(web), profile=GENERIC.with_facts(frames_per_request=7))
    client.retrieve_instance_frames(*UIDS, numbers[:20])
    assert [len(asked(request)) for request in server.requests] == [7, 7, 6]


def test_a_repeated_number_gives_the_frame_twice(web):
    server, client = web.connect(frame_server(web))
    assert client.retrieve_instance_frames(*UIDS, [2, 1, 2, 2]) == [b"frame 2", b"frame 1", b"frame 2", b"frame 2"]
    assert all(len(set(asked(request))) == len(asked(request)) for request in server.requests)


def test_fewer_frames_than_asked_for_are_an_error(web):
    """dcm4chee answers 206 and leaves out the frames beyond the end."""

    reply = web.multipart([b"frame 1"], kind="application/octet-stream")
    reply.status = 206
    _, client = web.connect(lambda request: reply)
    with pytest.raises(ResponseIncompleteError, match="asked for 2 frames, got 1; frame 2 is missing"):
        client.retrieve_instance_frames(*UIDS, [1, 2])


def test_more_or_other_frames_than_asked_for_are_an_error(web):
    _, client = web.connect(lambda request: web.multipart([b"a", b"b", b"c"], kind="application/octet-stream"))
    with pytest.raises(MalformedResponseError, match="got more"):
        client.retrieve_instance_frames(*UIDS, [1, 2])
    part = ({"Content-Type": "image/jpeg", "Content-Location": "/x/frames/9"}, b"x")
    _, client = web.connect(lambda request: web.multipart([part, part], kind="image/jpeg"))
    with pytest.raises(MalformedResponseError, match="frame 9, not asked for"):
        client.retrieve_instance_frames(*UIDS, [1, 2])


def test_after_a_body_that_breaks_off_only_the_rest_is_asked_for(web):
    inner = frame_server(web)

    def answer(request):
        reply = inner(request)
        if len(asked(request)) == 3:
            reply.cut = len(reply.body) - 40
        return reply

    server, client = web.connect(answer)
    assert client.retrieve_instance_frames(*UIDS, [1, 2, 3]) == [b"frame 1", b"frame 2", b"frame 3"]
    assert len(server.requests) == 2
    assert asked(server.requests[1])[-1] == 3
    assert len(asked(server.requests[1])) < 3


def test_servers_with_single_parts_only(web):
    def answer(request):
        if "multipart" in request.headers["accept"]:
            return web.Reply(406)
        return web.Reply(200, b"frame %d" % asked(request)[0], "image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50")

    _, client = web.connect(answer)
    found = list(client.iter_frames(reference(2, 1)))
    assert [frame.content for frame in found] == [b"frame 2", b"frame 1"]
    assert found[0].transfer_syntax_uid == "1.2.840.10008.1.2.4.50"


def test_one_body_for_several_frames_is_an_error(web):
    _, client = web.connect(lambda request: web.Reply(200, b"x", "image/jpeg"))
    with pytest.raises(MalformedResponseError, match="asked for 2 frames, got one body"):
        client.retrieve_instance_frames(*UIDS, [1, 2])


def test_a_refusal_is_the_servers_first_word(web):
    _, client = web.connect(lambda request: web.Reply(400, b"no such frame", "text/plain"))
    with pytest.raises(DICOMwebError, match="no such frame") as caught:
        client.retrieve_instance_frames(*UIDS, [1, 99])
    assert caught.value.status == 400
    assert caught.value.url.endswith("/frames/1,99")


def test_former_names_of_media_types(web):
    def answer(request):
        if "image/x-jpls" not in request.headers["accept"]:
            return web.Reply(406)
        return frame_server(web, content_type="image/x-jpls")(request)

    server, client = web.connect(answer)
    assert client.retrieve_instance_frames(*UIDS, [1], media_types=(("image/x-jpls", "1.2.840.10008.1.2.4.80"),))
    assert 'type="image/jls"; transfer-syntax=1.2.840.10008.1.2.4.80' in server.requests[0].headers["accept"]


@pytest.mark.parametrize(
    ("numbers", "error"),
    [([], ValueError), ([0], ValueError), ([-1], ValueError), (["1"], TypeError), (1, TypeError), ([True], TypeError)],
)
def test_bad_frame_numbers(web, numbers, error):
    server, client = web.connect(lambda request: web.Reply(500))
    with pytest.raises(error):
        client.retrieve_instance_frames(*UIDS, numbers)
    assert server.requests == []


def test_a_reference_without_frames_and_an_impossible_type(web):
    _, client = web.connect(lambda request: web.Reply(500))
    with pytest.raises(ValueError, match="frames is needed"):
        client.iter_frames(Resource(*UIDS))
    with pytest.raises(ValueError, match="application/dicom"):
        client.iter_frames(reference(1), media_types=("application/dicom",))


def test_bulk_data_of_an_instance_are_its_frames_where_the_server_gives_it_as_dicom_only(web):
    def answer(request):
        if request.path.endswith("/metadata"):
            return web.json([{**web.row(*UIDS), "00280008": {"vr": "IS", "Value": ["3"]}}])
        if "/frames/" in request.path:
            return frame_server(web, content_type="image/jp2")(request)
        return web.Reply(400)

    _, client = web.connect(answer)
    accepted_type = (("image/jp2", "1.2.840.10008.1.2.4.90"),)
    assert client.retrieve_instance(*UIDS, media_types=accepted_type) == [b"frame 1", b"frame 2", b"frame 3"]
    server, client = web.connect(lambda request: web.multipart([b"one"], kind="image/jp2"))
    assert client.retrieve_instance(*UIDS, media_types=accepted_type) == [b"one"]
    wanted = 'multipart/related; type="image/jp2"; transfer-syntax=1.2.840.10008.1.2.4.90'
    assert server.requests[0].headers["accept"] == wanted


FILE = bytes(128) + b"DICM\x02\x00\x00\x00UL\x04\x00" + bytes(100)


@pytest.mark.parametrize("several", [True, False], ids=["parts", "one body"])
@pytest.mark.parametrize(
    ("kind", "content", "asked_for", "told"),
    [
        ("application/dicom", FILE, None, "got application/dicom"),
        ("application/octet-stream", FILE, None, "got a DICOM file"),
        ("image/jpeg", FILE, None, "got a DICOM file"),
        ("application/dicom+json", b"[{}]", None, "json"),
        ("application/json", b"{}", ("image/*",), "json"),
        ("application/dicom+xml", b"<NativeDicomModel/>", None, "xml"),
        ("text/html", b"<html></html>", None, "login"),
        ("text/plain; charset=utf-8", b"no pixels today", None, "text/plain"),
        ("application/octet-stream", b"\n<!DOCTYPE html><html>", None, "an HTML page"),
        ("image/png", b"x", ("image/jpeg",), "image/png"),
        ("image/jpeg", b"x", ("application/octet-stream",), "image/jpeg"),
        ("application/octet-stream", b"x", ("image/jp2", "image/jpeg"), "octet-stream"),
        ("video/mp4", b"x", None, "one stream"),
        ("application/octet-stream", b"\0\0\0\x18ftypmp42" + bytes(20), None, "one stream"),
        ("application/octet-stream", FILE[128:], None, "got a DICOM file"),
        ("image/jpeg", b'{"error": "no such frame"}', None, "got a message"),
        ("image/jp2", b"<?xml version='1.0'?><Error/>", None, "got a message"),
    ],
)
def test_what_is_no_frame_is_not_given_out_as_one(web, several, kind, content, asked_for, told):
    def answer(request):
        if not several:
            return web.Reply(200, content, kind)
        parts = [({"Content-Type": kind}, content)] * len(asked(request))
        return web.multipart(parts, kind="application/octet-stream")

    server, client = web.connect(answer)
    with pytest.raises(MalformedResponseError, match=told):
        list(client.iter_frames(reference(1), media_types=asked_for))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("kind", "content", "asked_for"),
    [
        (None, b"pixels", None),
        (None, b"pixels", ("image/jp2",)),
        ("image/x-jls", b"x", (("image/jls", "*"),)),
        ("application/octet-stream", b"\xff\xd8\xff\xe0jpeg", ("image/jpeg",)),
        ("image/new", b"x", (("application/octet-stream", "*"),)),
        ("video/mp4", b"x", ("video/mp4",)),
        ("video/mpeg", b"x", ("video/*",)),
        ("application/octet-stream", b"x" * 128 + b"DICMbut no file", None),
    ],
)
def test_what_is_odd_and_right_is_a_frame(web, kind, content, asked_for):
    headers = {} if kind is None else {"Content-Type": kind}
    for root in ("application/dicom", "application/octet-stream", kind or "image/jp2"):
        _, client = web.connect(lambda request, root=root: web.multipart([(headers, content)], kind=root))
        (frame,) = client.iter_frames(reference(1), media_types=asked_for)
        assert frame.content == content


@pytest.mark.parametrize(("numbers", "single"), [([2], False), ([2], True), ([1, 2], False)])
def test_an_empty_frame_is_asked_for_again_and_is_an_error_then(web, numbers, single):
    empty = [True, True, True]

    def answer(request):
        lacks = bool(empty and empty.pop())
        contents = [b"" if lacks and number == 2 else b"frame" for number in asked(request)]
        if single:
            return web.Reply(200, contents[0], "image/jpeg")
        return web.multipart(contents, kind="application/octet-stream")

    _, client = web.connect(answer)
    with pytest.raises(ResponseIncompleteError, match="frame 2 is empty"):
        list(client.iter_frames(reference(*numbers)))
    empty.append(True)
    assert [frame.content for frame in client.iter_frames(reference(*numbers))] == [b"frame"] * len(numbers)


def image(rows=4, columns=6, samples=1, bits=16, photometric="MONOCHROME2", **more):
    values = {"00280002": samples, "00280010": rows, "00280011": columns, "00280100": bits}
    return {
        **{tag: {"vr": "US", "Value": [value]} for tag, value in values.items() if value is not None},
        "00280004": {"vr": "CS", "Value": [photometric]},
        **more,
    }


@pytest.mark.parametrize(
    ("metadata", "sizes", "wrong"),
    [
        (image(), (48,), (24, 47, 50, 72)),
        (image(bits=8, rows=3, columns=3), (9, 10), (8, 11)),
        (image(bits=1, columns=5), (3, 4, 20), (1, 8)),
        (image(bits=8, samples=3, photometric="YBR_FULL_422"), (48, 72), (24, 96)),
        (image(bits=8, samples=3, photometric="YBR_PARTIAL_420"), (36, 72), (24, 96)),
        (image(bits=12), (36, 48), (24,)),
        (image(bits=None, **{"7FE00008": {"vr": "OF"}}), (96,), (48,)),
        (image(bits=None, **{"7FE00009": {"vr": "OD"}}), (192,), (96,)),
        (image(samples=None), (1, 2, 200), ()),
        (image(rows="many"), (1, 2, 200), ()),
        ({}, (1, 2, 200), ()),
    ],
)
@pytest.mark.parametrize("in_file", [False, True], ids=["memory", "file"])
def test_native_frames_are_as_long_as_known_metadata_say(web, tmp_path, metadata, sizes, wrong, in_file):
    size = 0

    def answer(request):
        if request.path.endswith("/metadata"):
            return web.json([{**web.row(*UIDS), **metadata}])
        return web.multipart([b"x" * size], kind="application/octet-stream")

    how = {"max_element_bytes": 0, "spool_directory": str(tmp_path)} if in_file else {}
    for size in (*sizes, *wrong):
        _, client = web.connect(answer)
        assert len(client.retrieve_instance_metadata(*UIDS)) > 2
        if size in sizes:
            (frame,) = client.iter_frames(reference(1), **how)
            if in_file:
                assert os.path.getsize(frame.path) == size
                os.unlink(frame.path)
        else:
            with pytest.raises(MalformedResponseError, match=f"frame 1 has {size} bytes, but its metadata say"):
                list(client.iter_frames(reference(1), **how))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("batch", [1, 2, 400])
@pytest.mark.parametrize("wrong", [1, 2, 5])
@pytest.mark.parametrize("described", [True, False])
def test_native_frames_of_an_unknown_size_are_as_long_as_each_other(web, tmp_path, batch, wrong, described):
    sizes = {number: 25 if number == wrong else 48 + number % 2 for number in range(1, 7)}
    kind = "application/octet-stream"

    def answer(request):
        if "/frames/" not in request.path:
            return web.json([{**web.row(*UIDS), **image()}]) if described else web.Reply(404)
        return web.multipart([b"x" * sizes[number] for number in asked(request)], kind=kind)

    facts = GENERIC.with_facts(frames_per_request=batch)
    server, client = web.connect(answer, profile=facts)
    how = {"max_element_bytes": 0, "spool_directory": str(tmp_path)}
    received = []
    with pytest.raises(MalformedResponseError, match=r"frame \d has \d\d bytes, but frame 1 has \d\d"):
        received.extend(client.iter_frames(reference(*range(1, 7)), **how))
    # None of them is the wrong one, although it may be the first.
    assert [frame.reference.frames[0] for frame in received] == list(range(1, wrong if wrong > 2 else 1))
    assert len(os.listdir(tmp_path)) == len(received)
    # The metadata were asked for then, and tell; without them nothing does.
    assert len([path for path in server.asked() if path.endswith("/metadata")]) >= 1
    for number in sizes:
        if described and number != wrong:
            assert client.retrieve_instance_frames(*UIDS, [number]) == [b"x" * sizes[number]]
        else:
            with pytest.raises(MalformedResponseError, match=f"frame {number} has {sizes[number]} bytes"):
                client.retrieve_instance_frames(*UIDS, [number])
    # Compressed frames differ, also where the label does not say that they are compressed.
    for kind in ("image/jpeg", "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.4.90"):  # noqa: B007
        _, client = web.connect(answer, profile=facts)
        assert len(list(client.iter_frames(reference(*sizes)))) == 6


def test_compressed_frames_with_too_plain_a_label_may_differ(web):
    parts = [b"\xff\xd8\xff" + b"x" * number for number in (1, 9)]
    server, client = web.connect(lambda request: web.multipart(parts, kind="application/octet-stream"))
    assert client.retrieve_instance_frames(*UIDS, [1, 2]) == parts
    assert len(server.requests) == 1


@pytest.mark.parametrize("asked_for", [None, (("application/octet-stream", "1.2.840.10008.1.2.1"),)])
def test_a_compressed_frame_with_too_plain_a_label_is_not_called_native(web, asked_for):
    row = {**web.row(*UIDS), "00280002": {"vr": "US", "Value": [1]}, "00280004": {"vr": "CS", "Value": ["MONOCHROME2"]}}
    for tag, number in (("00280010", 4), ("00280011", 16), ("00280100", 8)):
        row[tag] = {"vr": "US", "Value": [number]}
    jpeg = b"\xff\xd8\xff\xe0" + bytes(60)

    def answer(request):
        return web.json([row]) if request.path.endswith("/metadata") else web.multipart([({}, jpeg)])

    _, client = web.connect(answer)
    (frame,) = client.iter_frames(reference(1), media_types=asked_for)
    assert (frame.content, frame.transfer_syntax_uid) == (jpeg, None)
    # By its size it may be native all the same.
    client.retrieve_instance_metadata(*UIDS)
    (frame,) = client.iter_frames(reference(1), media_types=asked_for)
    assert (frame.content, frame.transfer_syntax_uid) == (jpeg, "1.2.840.10008.1.2.1")


def test_parts_of_which_only_some_say_which_frame_they_are(web):
    kind = "application/octet-stream"
    named = {"Content-Type": kind, "Content-Location": "/frames/2"}
    _, client = web.connect(lambda request: web.multipart([(named, b"two2"), ({"Content-Type": kind}, b"one1")]))
    with pytest.raises(MalformedResponseError, match="others name none"):
        list(client.iter_frames(reference(1, 2)))
    last = web.multipart([({"Content-Type": kind}, b"one1"), (named, b"two2")])
    _, client = web.connect(lambda request: last)
    assert [frame.content for frame in client.iter_frames(reference(1, 2))] == [b"one1", b"two2"]


@pytest.mark.parametrize("number", [10**9, "1000000000", -3, "many", 1e30])
def test_bulk_data_of_an_instance_with_an_impossible_number_of_frames(web, number):
    def answer(request):
        if request.path.endswith("/metadata"):
            return web.json([{**web.row(*UIDS), "00280008": {"vr": "IS", "Value": [number]}}])
        return web.Reply(404)

    _, client = web.connect(answer)
    with pytest.raises((DICOMwebError, DatasetError)):
        client.retrieve_instance(*UIDS, media_types=("image/jp2",))


@pytest.mark.parametrize("status", [400, 413, 414, 431])
@pytest.mark.parametrize("most", [1, 7, 150, 400])
def test_lists_that_are_too_long_for_the_server_are_halved(web, status, most):
    def answer(request):
        if len(asked(request)) > most:
            return web.Reply(status)
        return web.multipart([b"frame %4d" % number for number in asked(request)], kind="application/octet-stream")

    server, client = web.connect(answer)
    numbers = list(range(1, 801))
    assert client.retrieve_instance_frames(*UIDS, numbers) == [b"frame %4d" % number for number in numbers]
    refused = [asked(request) for request in server.requests if len(asked(request)) > most]
    assert len({len(one) for one in refused}) == len({(len(one), one[0]) for one in refused}) <= 9
    assert len(server.requests) - len(refused) < 3 * -(-800 // most)
