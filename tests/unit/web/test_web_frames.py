"""Frames: the order asked for, the number asked for, each with its encoding."""

from __future__ import annotations

import pytest

from dicomweb_io.elements import Resource
from dicomweb_io.errors import DICOMwebError, MalformedResponseError, ResponseIncompleteError
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
    server, client = web.connect(frame_server(web))
    numbers = list(range(1, 1501))
    assert client.retrieve_instance_frames(*UIDS, numbers) == [b"frame %d" % number for number in numbers]
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
