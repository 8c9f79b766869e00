"""Rendered forms at every level, thumbnails, and parameters that a server could understand."""

from __future__ import annotations

import pytest

from dicomweb_io.elements import Resource
from dicomweb_io.errors import DICOMwebError, MalformedResponseError
from dicomweb_io.web.client import DICOMwebClient
from dicomweb_io.web.frames import check_rendering_params
from tests.answering import in_turn

UIDS = ("1.2", "1.3", "1.4")
PNG = b"\x89PNG..."


def test_every_level(web):
    server, client = web.connect(lambda request: web.Reply(200, PNG, "image/png"))
    assert client.retrieve_study_rendered("1.2") == PNG
    assert client.retrieve_series_rendered("1.2", "1.3") == PNG
    assert client.retrieve_instance_rendered(*UIDS) == PNG
    assert client.retrieve_instance_frames_rendered(*UIDS, [1, 3]) == PNG
    image = client.retrieve_rendered(Resource(*UIDS), thumbnail=True)
    assert (image.media_type, image.content) == ("image/png", PNG)
    assert [target.removeprefix("/dicomweb/studies/1.2") for target in server.asked()] == [
        "/rendered",
        "/series/1.3/rendered",
        "/series/1.3/instances/1.4/rendered",
        "/series/1.3/instances/1.4/frames/1,3/rendered",
        "/series/1.3/instances/1.4/thumbnail",
    ]


def test_media_types_and_parameters(web):
    server, client = web.connect(lambda request: web.Reply(200, PNG, "image/png"))
    client.retrieve_instance_rendered(*UIDS)
    client.retrieve_instance_rendered(
        *UIDS,
        media_types=("image/png", "image/jpeg"),
        params={"quality": 95, "iccprofile": "yes", "window": (40, 400), "viewport": "100,200"},
    )
    assert [request.headers["accept"] for request in server.requests] == ["*/*", "image/png, image/jpeg"]
    assert server.requests[1].query == "quality=95&iccprofile=yes&window=40,400,linear&viewport=100,200"


def test_lists_that_are_refused_are_asked_for_one_by_one(web):
    def answer(request):
        return web.Reply(200, PNG, "image/png") if request.headers["accept"] == "image/png" else web.Reply(400)

    _, client = web.connect(answer)
    assert client.retrieve_instance_rendered(*UIDS, media_types=("image/jp2", "image/png")) == PNG


def test_one_part_of_multipart_is_the_image_and_several_are_an_error(web):
    _, client = web.connect(lambda request: web.multipart([PNG], kind="image/png"))
    image = client.retrieve_rendered(Resource(*UIDS))
    assert (image.media_type, image.content) == ("image/png", PNG)
    _, client = web.connect(lambda request: web.multipart([PNG, PNG], kind="image/png"))
    with pytest.raises(MalformedResponseError, match="got 2"):
        client.retrieve_instance_frames_rendered(*UIDS, [1, 2])


def test_a_body_that_breaks_off_is_asked_for_again(web):
    _, client = web.connect(in_turn(web.Reply(200, PNG, "image/png", cut=3), web.Reply(200, PNG, "image/png")))
    assert client.retrieve_instance_rendered(*UIDS) == PNG


@pytest.mark.parametrize(
    "reply",
    [
        {"status": 204},
        {"body": b"{}", "content_type": "application/json"},
        {"body": b"file", "content_type": "application/dicom"},
        {"body": bytes(128) + b"DICM\x02\x00\x00\x00", "content_type": "image/png"},
        {"body": b"<!doctype html><html>", "content_type": "image/jpeg"},
        {"body": b"", "content_type": "image/png"},
    ],
)
def test_what_is_no_image_is_an_error(web, reply):
    _, client = web.connect(lambda request: web.Reply(**reply))
    with pytest.raises(MalformedResponseError):
        client.retrieve_instance_rendered(*UIDS)


def test_a_refusal(web):
    _, client = web.connect(lambda request: web.Reply(406, b"only jpeg", "text/plain"))
    with pytest.raises(DICOMwebError, match="only jpeg"):
        client.retrieve_instance_rendered(*UIDS, media_types=("image/png",))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("quality", value) for value in (0, 101, "high")),
        *(("window", value) for value in ("40", "a,b,linear", "1,2,cubic")),
        *(("viewport", value) for value in ("100", "1,2,3,4", "a,b")),
    ],
)
def test_parameters_that_no_server_could_understand(web, name, value):
    server, client = web.connect(lambda request: web.Reply(500))
    with pytest.raises(ValueError, match=name):
        client.retrieve_instance_rendered(*UIDS, params={name: value})
    assert server.requests == []


def test_parameters_that_pass():
    assert check_rendering_params({"window": "40,400,SIGMOID"}) == {"window": ["40", "400", "sigmoid"]}
    assert check_rendering_params({"viewport": "100,100,,,50,50"})["viewport"] == ["100", "100", "", "", "50", "50"]
    assert check_rendering_params({"anything": "new"}) == {"anything": "new"}
    with pytest.raises(ValueError, match="viewport"):
        check_rendering_params({"viewport": "1,2,3,4,5,6"}, thumbnail=True)
    client = DICOMwebClient("http://127.0.0.1:9")
    with pytest.raises(TypeError, match="transfer syntax"):
        client.retrieve_instance_rendered(*UIDS, media_types=(("image/jpeg", "1.2"),))
