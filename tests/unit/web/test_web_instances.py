"""Retrieving instances: complete or an error, unparsed, each once, whatever breaks off."""

from __future__ import annotations

import io
import os
import warnings

import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from dicomweb_io.dicom.header_scan import scan_header
from dicomweb_io.dicom.part10 import encode_dataset, header_of
from dicomweb_io.elements import Resource
from dicomweb_io.errors import DICOMwebError, MalformedResponseError, ResponseIncompleteError
from dicomweb_io.profiles import ServerProfile
from dicomweb_io.testing.samples import sample_file
from tests.answering import Reply, in_turn

ORIGINAL = 'multipart/related; type="application/dicom"; transfer-syntax=*'


@pytest.fixture
def files(web):
    return {f"1.2.3.1.{number}": web.dicom(f"1.2.3.1.{number}", filler=500 * number) for number in range(1, 6)}


STUDY = Resource("1.2.3")
SERIES = Resource("1.2.3", "1.2.3.1")
ONE = Resource("1.2.3", "1.2.3.1", "1.2.3.1.1")


def contents(instances):
    return {instance.reference.sop_instance_uid: instance.content for instance in instances}


def archive(web, files, **paths):
    """A server that lists the files, gives each of them, and answers at other addresses as `paths` says, or 405."""

    def answer(request):
        path = request.path.removeprefix("/dicomweb/")
        if path in paths:
            return paths[path]
        if path.endswith("/instances"):
            return web.page(request, [web.row("1.2.3", "1.2.3.1", uid) for uid in files])
        content = files.get(path.rpartition("/")[2])
        return web.Reply(405) if content is None else web.multipart([content])

    return answer


NO_LISTING = {"studies/1.2.3/instances": Reply(404), "studies/1.2.3/series/1.2.3.1/instances": Reply(404)}


@pytest.mark.parametrize("length", [True, False])
def test_a_study_arrives_unchanged_and_in_order(web, files, length):
    server, client = web.connect(lambda request: web.multipart(files.values(), length=length))
    found = list(client.iter_instances(STUDY))
    assert [instance.reference.sop_instance_uid for instance in found] == list(files)
    assert contents(found) == files
    assert {instance.transfer_syntax_uid for instance in found} == {"1.2.840.10008.1.2.1"}
    assert found[0].sop_class_uid == "1.2.840.10008.5.1.4.1.1.7"
    assert server.requests[0].headers["accept"] == ORIGINAL
    assert server.requests[0].headers["accept-encoding"] == "identity"


def test_it_is_lazy(web, files):
    server, client = web.connect(lambda request: web.multipart(files.values()))
    instances = client.iter_instances(STUDY)
    assert server.requests == []
    next(instances)
    instances.close()
    assert len(list(client.iter_instances(STUDY))) == 5


@pytest.mark.parametrize("media_type", ["application/dicom", "application/octet-stream", None])
def test_a_single_part_is_read_too_and_causes_no_warning(web, files, media_type):
    content = files["1.2.3.1.1"]
    _, client = web.connect(lambda request: web.Reply(200, content, media_type))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert contents(client.iter_instances(ONE)) == {"1.2.3.1.1": content}


def test_other_spellings_of_the_same_media_type(web, files):
    """Servers that refuse one spelling of "as stored" are asked in another, and from then on in that one only."""
    spelling = "application/dicom; transfer-syntax=*"

    def answer(request):
        if request.headers["accept"] != spelling:
            return web.Reply(406)
        return web.Reply(200, files["1.2.3.1.1"], "application/dicom; transfer-syntax=1.2.840.10008.1.2.1")

    server, client = web.connect(answer)
    list(client.iter_instances(ONE))
    list(client.iter_instances(ONE))
    accepts = [request.headers["accept"] for request in server.requests]
    quoted = 'multipart/related; type="application/dicom"; transfer-syntax="*"'
    assert accepts == [ORIGINAL, quoted, spelling, spelling]


def test_nothing_that_transcodes_is_asked_for_unless_it_is_allowed(web, files):
    def answer(request):
        if "transfer-syntax" in request.headers["accept"]:
            return web.Reply(406, b"cannot", "text/plain")
        return web.multipart([files["1.2.3.1.1"]])

    server, client = web.connect(answer)
    with pytest.raises(DICOMwebError, match="refused for each of 3 spellings") as caught:
        list(client.iter_instances(ONE))
    assert caught.value.status == 406
    assert all("transfer-syntax=" in request.headers["accept"] for request in server.requests)
    assert len(list(client.iter_instances(ONE, allow_transcoding=True))) == 1


def test_media_types_are_open_ended(web, files):
    server, client = web.connect(lambda request: web.multipart([files["1.2.3.1.1"]]))
    for syntax in ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2", "1.2.3.4.5"):
        with pytest.raises(MalformedResponseError, match=f"in {syntax}, got 1.2.840.10008.1.2.1"):
            list(client.iter_instances(ONE, media_types=(("application/dicom", syntax),)))
        assert server.requests[-1].headers["accept"].endswith(f'type="application/dicom"; transfer-syntax={syntax}')
    with pytest.raises(ValueError, match="image/jp2"):
        client.iter_instances(ONE, media_types=("image/jp2",))
    with pytest.raises(ValueError, match="not a media type"):
        client.iter_instances(ONE, media_types=("application/dicom\r\nX: y",))


def test_what_is_not_in_the_transfer_syntax_asked_for_is_an_error(web, files):
    _, client = web.connect(lambda request: web.multipart(files.values()))
    explicit, implicit, jpeg = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.4.50"
    for syntaxes in (explicit, "*", None, (jpeg, explicit), (implicit, "*")):
        assert list(client.iter_instances(STUDY, media_types=(("application/dicom", syntaxes),)))
    # Of a study, some instances have no compressed form; every one has a native form.
    assert list(client.iter_instances(STUDY, media_types=(("application/dicom", jpeg),)))
    with pytest.raises(MalformedResponseError, match=explicit):
        list(client.iter_instances(STUDY, media_types=(("application/dicom", implicit),)))
    assert list(client.iter_instances(STUDY, media_types=(("application/dicom", implicit),), allow_transcoding=True))


def test_only_what_is_missing_is_asked_for_after_a_body_that_breaks_off(web, files):
    whole = web.multipart(files.values())
    whole.cut = len(whole.body) * 2 // 3
    server, client = web.connect(archive(web, files, **{"studies/1.2.3": whole}))
    found = list(client.iter_instances(STUDY))
    assert contents(found) == files
    assert len(found) == 5
    assert server.asked().count("/dicomweb/studies/1.2.3") == 1
    single = [path for path in server.asked() if "/series/" in path]
    assert 0 < len(single) < 5


@pytest.mark.parametrize("length", [True, False])
def test_without_a_listing_the_whole_is_asked_for_again_and_nothing_is_yielded_twice(web, files, length):
    size = len(web.multipart(files.values()).body)
    cuts = [size // 3, size * 2 // 3, None]

    def answer(request):
        if request.path != "/dicomweb/studies/1.2.3":
            return web.Reply(404)
        return web.multipart(files.values(), length=length, cut=cuts.pop(0))

    _, client = web.connect(answer)
    found = [instance.reference.sop_instance_uid for instance in client.iter_instances(STUDY)]
    assert found == list(files)
    assert cuts == []


def test_a_missing_closing_boundary_is_an_error_after_the_complete_parts(web, files):
    unclosed = web.multipart(files.values(), closed=False, length=False)
    _, client = web.connect(archive(web, {}, **{"studies/1.2.3": unclosed}, **NO_LISTING))
    found = []
    with pytest.raises(ResponseIncompleteError) as caught:
        found.extend(client.iter_instances(STUDY))
    # The last part's end is not proven by what arrived.
    assert "4 instances of studies/1.2.3 were complete before" in str(caught.value)
    assert caught.value.attempts >= 3


def test_the_error_names_what_is_missing(web, files):
    whole = web.multipart(files.values())
    whole.cut = len(whole.body) // 2
    forbidden = {f"{SERIES.uri}/instances/{uid}": web.Reply(403) for uid in files}
    _, client = web.connect(archive(web, files, **{"studies/1.2.3": whole}, **forbidden))
    with pytest.raises(DICOMwebError, match=r"missing: 1\.2\.3\.1\.\d"):
        list(client.iter_instances(STUDY))


def test_a_truncated_single_part_without_length_is_noticed(web, files):
    content = files["1.2.3.1.5"]
    reference = Resource("1.2.3", "1.2.3.1", "1.2.3.1.5")
    _, client = web.connect(lambda request: web.Reply(200, content, "application/dicom", length=False, cut=900))
    with pytest.raises(ResponseIncompleteError, match="ends early"):
        list(client.iter_instances(reference))
    _, client = web.connect(lambda request: web.Reply(200, content, "application/dicom", length=False))
    assert contents(client.iter_instances(reference)) == {"1.2.3.1.5": content}


def test_each_uid_comes_once(web, files):
    twice = [*files.values(), *files.values()]
    _, client = web.connect(lambda request: web.multipart(twice))
    assert len(list(client.iter_instances(STUDY))) == 5


def test_what_does_not_belong_is_an_error(web, files):
    other = web.dicom("9.9", study="9")
    _, client = web.connect(lambda request: web.multipart([files["1.2.3.1.1"], other]))
    with pytest.raises(MalformedResponseError, match=r"does not belong to studies/1\.2\.3"):
        list(client.iter_instances(STUDY))
    _, client = web.connect(lambda request: web.multipart([files["1.2.3.1.2"]]))
    with pytest.raises(MalformedResponseError, match="does not belong"):
        list(client.iter_instances(ONE))


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ({"body": b"<html>", "content_type": "text/html"}, "login page"),
        ({"body": b"PK", "content_type": "application/zip"}, "application/zip"),
        ({"body": b"{}", "content_type": "application/json"}, "application/json"),
        ({"body": b"nothing of the kind", "content_type": "application/dicom"}, "not a DICOM instance"),
    ],
)
def test_an_answer_that_is_no_instance_is_an_error(web, reply, words):
    _, client = web.connect(lambda request: web.Reply(200, **reply))
    with pytest.raises(MalformedResponseError, match=words):
        list(client.iter_instances(ONE))


def test_an_empty_answer(web):
    _, client = web.connect(lambda request: web.Reply(204))
    assert list(client.iter_instances(STUDY)) == []
    with pytest.raises(ResponseIncompleteError, match="no instance"):
        list(client.iter_instances(ONE))
    _, client = web.connect(lambda request: web.Reply(200, b"--BOUND--\r\n", "multipart/related; boundary=BOUND"))
    assert list(client.iter_instances(STUDY)) == []


def test_large_instances_go_to_files(web, files, tmp_path):
    _, client = web.connect(lambda request: web.multipart(files.values()))
    with pytest.raises(ValueError, match="spool_directory"):
        list(client.iter_instances(STUDY, max_element_bytes=1500))
    found = list(client.iter_instances(STUDY, max_element_bytes=1500, spool_directory=str(tmp_path)))
    in_files = [instance for instance in found if instance.path is not None]
    assert {instance.reference.sop_instance_uid: instance.read() for instance in found} == files
    assert 0 < len(in_files) < 5
    assert all(os.stat(instance.path).st_mode & 0o777 == 0o600 for instance in in_files)
    assert len(list(tmp_path.iterdir())) == len(in_files)


def test_no_spool_file_is_left_behind_by_errors_and_repeats(web, files, tmp_path):
    other = web.dicom("9.9", study="9", filler=5000)
    options = {"max_element_bytes": 100, "spool_directory": str(tmp_path)}
    _, client = web.connect(lambda request: web.multipart([other]))
    with pytest.raises(MalformedResponseError):
        list(client.iter_instances(STUDY, **options))
    assert list(tmp_path.iterdir()) == []
    _, client = web.connect(lambda request: web.multipart([files["1.2.3.1.1"]] * 3))
    assert len(list(client.iter_instances(STUDY, **options))) == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("profile", ["generic", ServerProfile("walks", retrieve_study=False, retrieve_series=False)])
@pytest.mark.parametrize("resource", [STUDY, SERIES])
def test_servers_without_study_retrieval_are_walked(web, files, profile, resource):
    server, client = web.connect(archive(web, files), profile=profile)
    for _ in range(2):
        assert contents(client.iter_instances(resource)) == files
    refused = [path for path in server.asked() if path.endswith(resource.uri)]
    assert len(refused) == (1 if profile == "generic" else 0)


def test_an_unknown_study_is_404(web):
    _, client = web.connect(lambda request: web.Reply(404, b"unknown", "text/plain"))
    with pytest.raises(DICOMwebError) as caught:
        list(client.iter_instances(STUDY))
    assert caught.value.status == 404


def test_bad_arguments(web, tmp_path):
    server, client = web.connect(lambda request: web.Reply(500))
    with pytest.raises(ValueError, match="frames"):
        client.iter_instances(Resource("1.2", "1.3", "1.4", (1,)))
    with pytest.raises(ValueError, match="max_element_bytes"):
        client.iter_instances(STUDY, max_element_bytes=-1)
    with pytest.raises(ValueError, match="not a directory"):
        client.iter_instances(STUDY, spool_directory=str(tmp_path / "none"))
    assert server.requests == []


def test_named_methods_give_datasets(web, files):
    _server, client = web.connect(lambda request: web.multipart(files.values()))
    assert [dataset.SOPInstanceUID for dataset in client.retrieve_study("1.2.3")] == list(files)
    assert [dataset.SOPInstanceUID for dataset in client.iter_series("1.2.3", "1.2.3.1")] == list(files)
    _, client = web.connect(lambda request: web.multipart([files["1.2.3.1.1"]]))
    assert client.retrieve_instance("1.2.3", "1.2.3.1", "1.2.3.1.1").SOPInstanceUID == "1.2.3.1.1"
    with pytest.raises(ValueError, match="mixes"):
        client.retrieve_instance("1.2.3", "1.2.3.1", "1.2.3.1.1", media_types=("application/dicom", "image/jp2"))
    client.retrieve_study("1.2.3", additional_params={"imageSetId": "x y"})


def test_missing_instances(web, files):
    _, client = web.connect(archive(web, files))
    assert client.missing_instances(STUDY, list(files)) == []
    assert [item.sop_instance_uid for item in client.missing_instances(STUDY, [ONE, "1.2.3.1.2"])] == list(files)[2:]


def test_a_retry_after_a_failing_status_is_within_the_same_budget(web, files):
    server, client = web.connect(in_turn(web.Reply(503), web.Reply(500), web.multipart([files["1.2.3.1.1"]])))
    assert len(list(client.iter_instances(ONE))) == 1
    assert len(server.requests) == 3
    server, client = web.connect(lambda request: web.Reply(503))
    with pytest.raises(DICOMwebError) as caught:
        list(client.iter_instances(ONE))
    assert (caught.value.status, len(server.requests)) == (503, 3)


@pytest.mark.parametrize("status", [200, 206])
def test_a_series_of_which_one_instance_comes_is_completed_by_its_listing(web, files, status):
    """A single body (200), or what the server itself calls partial (206)."""
    one = web.multipart([files["1.2.3.1.1"]]) if status == 206 else web.Reply(200, files["1.2.3.1.1"])
    one.status = status
    _, client = web.connect(archive(web, files, **{SERIES.uri: one}))
    assert contents(client.iter_instances(SERIES)) == files


def test_a_partial_series_is_an_error_if_nothing_tells_what_is_missing(web, files):
    partial = web.multipart([files["1.2.3.1.1"]])
    partial.status = 206
    _, client = web.connect(archive(web, files, **{SERIES.uri: partial}, **NO_LISTING))
    instances = client.iter_instances(SERIES)
    assert next(instances).content == files["1.2.3.1.1"]
    with pytest.raises(ResponseIncompleteError, match=r"partial \(206\)"):
        next(instances)


# Cut, or odd ----------------------------------------------------------------------------------------------------------


def image(web, sop, *, encapsulated=False, delimiter=True, pixels=True):
    """An image, by default of one native frame; without pixels it ends just before them."""
    content = web.dicom(sop)
    dataset = pydicom.dcmread(io.BytesIO(content))
    del dataset.EncapsulatedDocument
    dataset.Rows = dataset.Columns = dataset.BitsAllocated = 8
    dataset.PixelData = bytes(64)
    if encapsulated:
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        dataset.PixelData = encapsulate([b"\xff\xd8" + bytes(60)])
    dataset["PixelData"].VR = "OB"
    whole = encode_dataset(dataset)
    if not pixels:
        return whole[: scan_header(whole).end]
    return whole if delimiter else whole[:-8]


NUMBERS = {f"1.2.3.1.{number}": number for number in range(1, 6)}


@pytest.mark.parametrize("resource", [STUDY, ONE])
def test_what_is_cut_before_its_pixels_once_comes_whole(web, resource):
    whole = {uid: image(web, uid) for uid in (NUMBERS if resource is STUDY else ["1.2.3.1.1"])}
    cut = [image(web, uid, pixels=False) for uid in whole]
    server, client = web.connect(
        lambda request: web.multipart(cut if len(server.requests) == 1 else whole.values(), length=False)
    )
    found = list(client.iter_instances(resource))
    assert contents(found) == whole
    assert {instance.warnings for instance in found} == {()}
    assert len(server.requests) == 2


def test_what_has_no_pixels_twice_moves_with_a_warning(web, caplog):
    files = {uid: image(web, uid, pixels=number > 2) for uid, number in NUMBERS.items()}

    def answer(request):
        uid = request.path.rpartition("/instances/")[2]
        return web.multipart([files[uid]] if uid in files else files.values())

    server, client = web.connect(answer)
    found = list(client.iter_instances(STUDY))
    assert contents(found) == files
    assert {instance.reference.sop_instance_uid for instance in found if instance.warnings} == {
        "1.2.3.1.1",
        "1.2.3.1.2",
    }
    assert found[-1].warnings == ("without pixel data",)
    assert len(server.requests) == 3
    assert "studies/1.2.3/series/1.2.3.1/instances/1.2.3.1.1 moves unchanged: without pixel data" in caplog.text


def test_a_series_without_pixels_is_asked_for_twice_as_a_whole(web):
    files = {uid: image(web, uid, pixels=False) for uid in NUMBERS}
    server, client = web.connect(lambda request: web.multipart(files.values()))
    assert contents(client.iter_instances(SERIES)) == files
    assert len(server.requests) == 2


def test_what_lacks_pixels_and_differs_each_time_is_cut_off(web):
    cut = [image(web, "1.2.3.1.1", pixels=False) for _ in range(9)]
    server, client = web.connect(lambda request: web.multipart([cut[0] + bytes(2 * len(server.requests))]))
    with pytest.raises(ResponseIncompleteError, match="twice, and not with the same bytes") as caught:
        list(client.iter_instances(ONE))
    assert caught.value.retryable
    assert len(server.requests) == 4


def test_a_body_without_length_that_ends_before_its_pixels_is_cut_off(web):
    cut = image(web, "1.2.3.1.1", pixels=False)
    server, client = web.connect(lambda request: web.Reply(200, cut, "application/dicom", length=False))
    with pytest.raises(ResponseIncompleteError, match=r"before its pixel data.*the same bytes came before"):
        list(client.iter_instances(ONE))
    assert len(server.requests) == 2
    server, client = web.connect(lambda request: web.Reply(200, cut, "application/dicom"))
    assert contents(client.iter_instances(ONE)) == {"1.2.3.1.1": cut}


@pytest.mark.parametrize("tag", [0x00280002, 0x00280010, 0x00280100])
def test_a_body_without_length_of_an_image_that_ends_before_its_rows_is_cut_off(web, tag):
    content = sample_file("CT_small.dcm").read_bytes()
    cut = content[: scan_header(content).elements[tag][1] - 8]
    reference = Resource.of_header(header_of(io.BytesIO(content)))
    _, client = web.connect(lambda request: web.Reply(200, cut, "application/dicom", length=False))
    with pytest.raises(ResponseIncompleteError, match="before its pixel data"):
        list(client.iter_instances(reference))
    _, client = web.connect(lambda request: web.Reply(200, cut, "application/dicom"))
    assert next(client.iter_instances(reference)).content == cut


@pytest.mark.parametrize("framing", ["part", "part with a length", "length"])
def test_a_missing_delimiter_is_odd_where_the_end_is_proven(web, framing):
    odd = image(web, "1.2.3.1.1", encapsulated=True, delimiter=False)
    headers = {"Content-Type": "application/dicom", "Content-Length": str(len(odd))}
    reply = {
        "part": lambda: web.multipart([odd]),
        "part with a length": lambda: web.multipart([(headers, odd)]),
        "length": lambda: web.Reply(200, odd, "application/dicom"),
    }[framing]
    server, client = web.connect(lambda request: reply())
    (found,) = client.iter_instances(ONE)
    assert (found.content, found.warnings) == (odd, ("without the delimiter that ends a value",))
    assert len(server.requests) == 1


def test_a_missing_delimiter_is_a_cut_where_nothing_proves_the_end(web):
    odd = image(web, "1.2.3.1.1", encapsulated=True, delimiter=False)
    longer = {"Content-Type": "application/dicom", "Content-Length": str(len(odd) + 8)}
    for reply in (web.Reply(200, odd, "application/dicom", length=False), web.multipart([(longer, odd)])):
        server, client = web.connect(lambda request, reply=reply: reply)
        with pytest.raises(ResponseIncompleteError, match="ends early") as caught:
            list(client.iter_instances(ONE))
        assert len(server.requests) == 2
        assert not caught.value.retryable


def test_bytes_behind_complete_pixels_move(web):
    odd = image(web, "1.2.3.1.1") + b"\r\n"
    _, client = web.connect(lambda request: web.multipart([odd]))
    (found,) = client.iter_instances(ONE)
    assert (found.content, len(found.warnings)) == (odd, 1)


def test_what_is_cut_in_the_same_way_twice_is_not_asked_for_again(web, files):
    server, client = web.connect(lambda request: web.multipart([files["1.2.3.1.1"][:-9]]))
    with pytest.raises(ResponseIncompleteError, match="the same bytes came before"):
        list(client.iter_instances(ONE))
    assert len(server.requests) == 2


def test_no_spool_file_is_left_of_what_is_asked_for_twice(web, tmp_path):
    cut = image(web, "1.2.3.1.1", pixels=False)
    _, client = web.connect(lambda request: web.multipart([cut]))
    (found,) = client.iter_instances(ONE, max_element_bytes=10, spool_directory=str(tmp_path))
    assert [str(path) for path in tmp_path.iterdir()] == [found.path]
