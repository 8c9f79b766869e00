"""Forms in which the test server gives what it has: transfer syntaxes, ZIP, bulk data, ranges, pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
import requests

from dicomweb_io.elements import Instance
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.http.multipart import MultipartReader
from dicomweb_io.testing.samples import clone, sample_file
from dicomweb_io.testing.server.behaviours import BEHAVIOURS, GENERIC
from dicomweb_io.testing.server.parts import writable
from tests.unit.testing.asking import PLAIN, address, get, parts, pixels, put_files, store

FILES = (
    "CT_small.dcm", "MR_small_implicit.dcm", "SC_rgb_rle.dcm", "examples_ybr_color.dcm", "JPEG2000.dcm",
    "waveform_ecg.dcm", "test-SR.dcm",
)  # fmt: skip
IMPLICIT, EXPLICIT, DEFLATED, RLE = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".1.99", ".5"))
JPEG_LS, JPEG_2000, HTJ2K = (f"1.2.840.10008.1.2.4.{number}" for number in (80, 90, 201))
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Iterator[DICOMfileClient]:
    with DICOMfileClient(put_files(tmp_path_factory.mktemp("archive"), FILES), in_memory=True) as client:
        yield client


@pytest.fixture
def mixed(folder) -> Path:
    """A study of a CT image and one in JPEG 2000."""
    for number, name in enumerate(("CT_small.dcm", "JPEG2000.dcm")):
        dataset = pydicom.dcmread(sample_file(name))
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.4"
        dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def levels_of(instance: str) -> tuple[str, str, str]:
    """The addresses of a study, a series and an instance."""
    return instance.split("/series/")[0], instance.split("/instances/")[0], instance


# Transfer syntaxes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, DEFLATED, RLE, JPEG_LS, JPEG_2000, HTJ2K, JPEG_LOSSLESS])
def test_objects_come_in_the_wanted_syntax_without_loss(serve, archive, syntax):
    server = serve(archive)
    answer = get(address(server, "CT_small.dcm"), f"{PLAIN}; transfer-syntax={syntax}")
    if not writable(syntax):
        assert answer.status_code == 406
        return
    assert answer.status_code == 200
    (content,) = parts(answer)
    dataset = pydicom.dcmread(io.BytesIO(content))
    assert dataset.file_meta.TransferSyntaxUID == syntax
    assert dataset.SOPInstanceUID == pydicom.dcmread(sample_file("CT_small.dcm")).SOPInstanceUID
    if syntax != HTJ2K:
        assert (dataset.pixel_array == pixels(sample_file("CT_small.dcm").read_bytes())).all()


def test_what_can_be_written_depends_on_no_extra_for_native_syntaxes():
    assert all(writable(syntax) for syntax in (IMPLICIT, EXPLICIT, DEFLATED, RLE))
    assert not any(writable(syntax) for syntax in (JPEG_LOSSLESS, "1.2.3"))


def test_the_first_syntax_that_can_be_made_is_taken(serve, archive):
    server = serve(archive)
    wanted = ", ".join(f"{PLAIN}; transfer-syntax={syntax}" for syntax in (JPEG_LOSSLESS, RLE, "*"))
    (content,) = parts(get(address(server, "CT_small.dcm"), wanted))
    assert pydicom.dcmread(io.BytesIO(content)).file_meta.TransferSyntaxUID == RLE
    wanted = f"{PLAIN}; transfer-syntax={JPEG_LOSSLESS}, {PLAIN}; transfer-syntax=*"
    assert parts(get(address(server, "CT_small.dcm"), wanted)) == [sample_file("CT_small.dcm").read_bytes()]


@pytest.mark.parametrize("behaviour", ["azure", "google", "orthanc", "strict", "healthimaging", "dicomcloud"])
def test_only_what_the_server_can_make_is_made(serve, archive, behaviour):
    server = serve(archive, behaviour=replace(BEHAVIOURS[behaviour], rate_limit=None))
    behaviour = server.behaviour
    for syntax in (RLE, JPEG_2000, DEFLATED, JPEG_LOSSLESS):
        answer = get(address(server, "CT_small.dcm"), f"{PLAIN}; transfer-syntax={syntax}")
        possible = writable(syntax) and (behaviour.transcoding is None or syntax in behaviour.transcoding)
        refusal = behaviour.refused_syntaxes.get(syntax, behaviour.unsupported_syntax)
        assert answer.status_code == (200 if possible else refusal)


def test_what_is_too_large_is_not_transcoded(serve, archive):
    server = serve(archive, behaviour=replace(BEHAVIOURS["azure"], transcoding_limit=10_000))
    url = address(server, "CT_small.dcm")
    assert get(url, f"{PLAIN}; transfer-syntax={DEFLATED}").status_code == 406
    assert get(url, f"{PLAIN}; transfer-syntax=*").status_code == 200


def test_a_study_of_which_only_some_can_be_had_is_partial(serve, mixed):
    blind = replace(BEHAVIOURS["dcm4chee"], undecodable_syntaxes=frozenset({"1.2.840.10008.1.2.4.91"}))
    server = serve(mixed, behaviour=blind)
    answer = get(f"{server.url}/studies/1.2.3", PLAIN)
    assert answer.status_code == 206
    assert answer.headers["Warning"].startswith("299 ")
    assert len(parts(answer)) == 1
    assert get(f"{server.url}/studies/1.2.3", f"{PLAIN}; transfer-syntax={JPEG_LOSSLESS}").status_code == 406
    answer = get(f"{server.url}/studies/1.2.3", f"{PLAIN}; transfer-syntax=*")
    assert (answer.status_code, len(parts(answer))) == (200, 2)
    assert get(f"{server.url}/studies/1.2.9", PLAIN).status_code == 404


def test_a_study_that_breaks_off_is_no_complete_answer(serve, mixed):
    # Orthanc has sent the status before it meets the image that it cannot decode.
    server = serve(mixed, behaviour="orthanc")
    with pytest.raises(requests.exceptions.RequestException):
        get(f"{server.url}/studies/1.2.3", PLAIN).raise_for_status()


# Bulk data ------------------------------------------------------------------------------------------------------------


def test_ranges_of_bulk_data(serve, archive):
    server = serve(archive)
    url = f"{address(server, 'CT_small.dcm')}/bulkdata/7FE00010"
    whole = get(url, "application/octet-stream").content
    assert len(whole) == 32_768
    for text, expected, described in (
        ("bytes=10-19", whole[10:20], "bytes 10-19/*"),
        ("bytes=32000-", whole[32_000:], "bytes 32000-32767/32768"),
        ("bytes=32700-99999", whole[32_700:], "bytes 32700-32767/32768"),
    ):
        answer = get(url, "*/*", headers={"Range": text})
        assert (answer.status_code, answer.content) == (206, expected)
        assert answer.headers["Content-Range"] == described
    assert get(url, "*/*", headers={"Range": "bytes=99999-"}).status_code == 416
    for ignored in ("bytes=5-3", "bytes=0-1,4-5", "pages=1-2"):
        assert get(url, "application/octet-stream", headers={"Range": ignored}).content == whole
    ten = {"Range": "bytes=0-9"}
    assert parts(get(url, 'multipart/related; type="application/octet-stream"', headers=ten)) == [whole]
    other = serve(archive, behaviour=replace(GENERIC, byte_ranges=False))
    assert get(f"{address(other, 'CT_small.dcm')}/bulkdata/7FE00010", headers=ten).status_code == 200


@pytest.mark.parametrize("behaviour", ["generic", "dcm4chee"])
def test_all_bulk_data_of_an_object(serve, archive, behaviour):
    server = serve(archive, behaviour=behaviour)
    instance = address(server, "waveform_ecg.dcm")
    dataset = pydicom.dcmread(sample_file("waveform_ecg.dcm"))
    waves = [item.WaveformData for item in dataset.WaveformSequence]
    for url in levels_of(instance):
        answer = get(f"{url}/bulkdata")
        assert answer.status_code == 200
        assert parts(answer) == waves
        found = MultipartReader([answer.content], answer.headers["Content-Type"])
        locations = [part.headers["Content-Location"] for part in found]
        assert [parts(get(location)) for location in locations] == [[wave] for wave in waves]
        assert get(f"{url}/pixeldata").status_code == 404
    assert get(f"{instance}/bulkdata", "application/octet-stream").status_code == 406
    assert get(f"{server.url}/studies/1.2.9/bulkdata").status_code == 404
    assert len(parts(get(f"{address(server, 'examples_ybr_color.dcm')}/pixeldata"))) == 30
    (ct,) = parts(get(f"{address(server, 'CT_small.dcm')}/pixeldata"))
    assert ct == pydicom.dcmread(sample_file("CT_small.dcm")).PixelData


@pytest.mark.parametrize("behaviour", ["azure", "strict", "orthanc", "google", "dicomcloud"])
def test_servers_without_all_bulk_data(serve, archive, behaviour):
    assert get(f"{address(serve(archive, behaviour=behaviour), 'waveform_ecg.dcm')}/bulkdata").status_code == 404


# Frames and pictures --------------------------------------------------------------------------------------------------


def test_frames_of_azure_are_octets_or_jpeg_2000(serve, archive):
    server = serve(archive, behaviour="azure")
    url = f"{address(server, 'JPEG2000.dcm')}/frames/1"
    for accept, status in (
        ('multipart/related; type="application/octet-stream"; transfer-syntax=*', 200),
        ('multipart/related; type="image/jp2"', 200),
        ('multipart/related; type="image/jp2"; transfer-syntax=*', 200),
        ('multipart/related; type="image/jls"', 406),
        ('multipart/related; type="image/png"', 406),
    ):
        assert get(url, accept).status_code == status, accept


def test_there_are_no_frames_of_a_report(serve, archive):
    for behaviour, status in (("generic", 404), ("dcm4chee", 404), ("orthanc", 500), ("strict", 404)):
        assert get(f"{address(serve(archive, behaviour=behaviour), 'test-SR.dcm')}/frames/1").status_code == status


def test_pictures_of_all_levels(serve, archive):
    server = serve(archive)
    instance = address(server, "CT_small.dcm")
    starts = {"image/jpeg": b"\xff\xd8\xff", "image/png": b"\x89PNG", "image/gif": b"GIF8"}
    for url in (*levels_of(instance), f"{instance}/frames/1"):
        for kind in ("rendered", "thumbnail"):
            for accept, start in starts.items():
                answer = get(f"{url}/{kind}", accept)
                assert (answer.status_code, answer.headers["Content-Type"]) == (200, accept)
                assert answer.content.startswith(start)
        assert get(f"{url}/rendered", "video/mp4").status_code == 406
    assert get(f"{instance}/rendered?viewport=10").status_code == 400
    assert get(f"{instance}/frames/2/rendered").status_code == 404
    assert get(f"{address(server, 'test-SR.dcm')}/rendered").headers["Content-Type"].startswith("text/html")
    assert get(f"{address(server, 'test-SR.dcm')}/rendered", "image/png").status_code == 406


@pytest.mark.parametrize("behaviour", ["google", "azure", "healthimaging"])
def test_pictures_of_instances_and_frames_only(serve, archive, behaviour):
    server = serve(archive, behaviour=replace(BEHAVIOURS[behaviour], rate_limit=None))
    instance = address(server, "CT_small.dcm")
    statuses = [get(f"{url}/rendered").status_code for url in (*levels_of(instance), f"{instance}/frames/1")]
    assert statuses == [404, 404, 200, 200]
    assert get(f"{instance}/thumbnail").status_code == 404
    # Where a parameter has no effect, its value does not matter.
    assert get(f"{instance}/rendered?window=nonsense").status_code == (200 if behaviour == "azure" else 400)
    assert get(f"{instance}/rendered?quality=500").status_code == 400


# Metadata -------------------------------------------------------------------------------------------------------------


def test_metadata_as_dcm4chee_is_asked_for_it(serve, archive):
    server = serve(archive, behaviour="dcm4chee")
    url = f"{address(server, 'CT_small.dcm')}/metadata"
    whole = get(url).json()[0]
    assert any(int(tag[3], 16) % 2 for tag in whole)
    (row,) = get(f"{url}?includefield=PatientID,00080020").json()
    assert set(row) == {"0020000D", "0020000E", "00080018", "00080016", "00100020", "00080020"}
    (row,) = get(f"{url}?excludeprivate=true").json()
    assert set(row) == {tag for tag in whole if not int(tag[3], 16) % 2}
    assert get(f"{url}?includefield=NoSuchKeyword").status_code == 400
    assert len(get(f"{address(serve(archive), 'CT_small.dcm')}/metadata?excludeprivate=true").json()[0]) == len(whole)


def test_hidden_instances_are_in_image_sets(serve, tmp_path):
    first = clone(sample_file("CT_small.dcm").read_bytes(), "image sets")
    second = first[:-2] + b"\1\1"
    server = serve(tmp_path, behaviour="healthimaging")
    assert [store(server, content).status_code for content in (first, second)] == [200, 200]
    (image_set,) = server.image_sets
    url = f"{server.url}/{Instance.from_bytes(first).reference.uri}"
    accept = "application/dicom; transfer-syntax=*"
    kept, hidden = (
        pydicom.dcmread(io.BytesIO(get(where, accept).content)) for where in (url, f"{url}?imageSetId={image_set}")
    )
    assert kept != hidden
    assert hidden.SOPInstanceUID == kept.SOPInstanceUID
    assert get(f"{url}/metadata?imageSetId={image_set}").status_code == 200
    assert get(f"{url}/frames/1?imageSetId={image_set}").status_code == 200
    assert get(f"{url}?imageSetId=nobody", accept).status_code == 404
    assert len(get(f"{server.url}/studies").json()) == 1
