"""Retrieval from the test server: objects, metadata, frames, bulk data, pictures; behaviour; faults of parts."""

from __future__ import annotations

import http.client
import io
from pathlib import Path

import pydicom
import pytest
import requests

from dicomweb_io.client import DICOMClient
from dicomweb_io.dicom.header_scan import scan_header
from dicomweb_io.dicom.part10 import WITHOUT_DELIMITER, judge
from dicomweb_io.elements import Instance, RenderedImage
from dicomweb_io.http.multipart import MultipartError, MultipartReader
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import make_study, sample_file, synthetic_instance
from tests.unit.testing.asking import ANY, PLAIN, address, get, parts, put_files

FILES = [
    "CT_small.dcm", "MR_small_implicit.dcm", "SC_rgb_rle.dcm", "examples_ybr_color.dcm", "JPEG2000.dcm",
    "image_dfl.dcm", "ExplVR_BigEnd.dcm", "waveform_ecg.dcm", "test-SR.dcm",
]  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    folder = put_files(tmp_path_factory.mktemp("archive"), FILES)
    make_study(folder / "study", studies=1, series=2, instances=2, size=3_000_000)
    return folder


@pytest.fixture
def study(archive) -> str:
    return Instance.from_path(next((archive / "study").rglob("*.dcm"))).reference.study_instance_uid


@pytest.mark.parametrize("name", FILES)
def test_stored_bytes_come_back(serve, archive, name):
    server = serve(archive)
    answer = get(address(server, name), ANY)
    assert parts(answer) == [sample_file(name).read_bytes()]
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    single = get(address(server, name), "application/dicom; transfer-syntax=*")
    assert single.content == sample_file(name).read_bytes()
    syntax = Instance.from_path(sample_file(name)).transfer_syntax_uid
    assert single.headers["Content-Type"] == f"application/dicom; transfer-syntax={syntax}"


def test_parts_say_what_they_are(serve, archive):
    server = serve(archive)
    answer = get(address(server, "CT_small.dcm"), ANY)
    (part,) = [dict(part.headers) for part in MultipartReader([answer.content], answer.headers["Content-Type"])]
    assert part == {
        "Content-Type": "application/dicom; transfer-syntax=1.2.840.10008.1.2.1",
        "Content-Location": address(server, "CT_small.dcm"),
    }


def test_whole_studies_and_series_are_streamed(serve, archive):
    server = serve(archive)
    paths = sorted((archive / "study").rglob("*.dcm"))
    study = Instance.from_path(paths[0]).reference
    answer = get(f"{server.url}/studies/{study.study_instance_uid}", ANY)
    assert sorted(parts(answer)) == sorted(path.read_bytes() for path in paths)
    assert answer.headers["Transfer-Encoding"] == "chunked"
    series = get(f"{server.url}/{study.series.uri}", ANY)
    assert sorted(parts(series)) == sorted(path.read_bytes() for path in paths[:2])
    server.records.settled()
    spool = Path(server._app.site.directory)
    assert list(spool.iterdir()) == [], "spooled files are removed"


@pytest.mark.parametrize("name", ["MR_small_implicit.dcm", "image_dfl.dcm", "SC_rgb_rle.dcm", "ExplVR_BigEnd.dcm"])
def test_without_transfer_syntax_the_default_is_made(serve, archive, name):
    (content,) = parts(get(address(serve(archive), name), PLAIN))
    made = pydicom.dcmread(io.BytesIO(content))
    assert made.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert (made.pixel_array == pydicom.dcmread(sample_file(name)).pixel_array).all()


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ('multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.50', 406),
        ("image/jpeg", 406),
        ("text/html", 406),
        ('multipart/related; type="image/jpeg", multipart/related; type="application/dicom"; q=0.5', 200),
        ("*/*", 200),
        ("multipart/related", 200),
        ("application/dicom", 200),
    ],
)
def test_what_is_acceptable(serve, archive, accept, status):
    assert get(address(serve(archive), "CT_small.dcm"), accept).status_code == status


def test_the_query_parameter_accept_overrides_the_header(serve, archive):
    answer = get(address(serve(archive), "CT_small.dcm") + "?accept=application/dicom", "text/html")
    assert answer.headers["Content-Type"].startswith("application/dicom;")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/studies/1.2.3", 404),
        ("/studies/1.2.3/series/1.2.4", 404),
        ("/studies/1.2.3/series/1.2.4/instances/1.2.5", 404),
        ("/studies/1.2.3/metadata", 404),
        ("/studies/1.2.3/series/1.2.4/instances/1.2.5/frames/1", 404),
        ("/studies/1.2.3/nonsense", 404),
        ("/studies/1.2.3/../../../etc/passwd", 404),
        ("/studies/..%2f..%2f..%2fetc/metadata", 400),
        ("/studies/%2e%2e/metadata", 400),
        ("/studies/1.2.3/series/1.2.4/instances/1.2.5/bulkdata/..%2F..%2Fx", 404),
        ("/patients", 404),
        ("/../../etc/passwd", 404),
    ],
)
def test_what_is_not_there(serve, archive, path, status):
    server = serve(archive)
    # As it stands: requests would resolve the dots.
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", "/dicom-web" + path)
    assert connection.getresponse().status == status
    connection.close()
    assert server.errors == []


# Metadata, frames, bulk data, pictures --------------------------------------------------------------------------------


def test_metadata_refers_to_bulk_data_that_can_be_had(serve, archive):
    server = serve(archive)
    (row,) = get(address(server, "CT_small.dcm") + "/metadata", "application/dicom+json").json()
    assert row["00100020"]["Value"] == ["1CT1"]
    assert row["00083002"]["Value"] == ["1.2.840.10008.1.2.1"]
    link = row["7FE00010"]["BulkDataURI"]
    assert link.startswith(server.url)
    pixels = pydicom.dcmread(sample_file("CT_small.dcm")).PixelData
    assert parts(get(link, 'multipart/related; type="application/octet-stream"')) == [pixels]
    assert get(link, "application/octet-stream").content == pixels


def test_bulk_data_inside_sequences_can_be_had(serve, archive):
    server = serve(archive)
    (row,) = get(address(server, "waveform_ecg.dcm") + "/metadata").json()
    link = row["54000100"]["Value"][0]["54001010"]["BulkDataURI"]
    wave = pydicom.dcmread(sample_file("waveform_ecg.dcm")).WaveformSequence[0].WaveformData
    assert get(link, "application/octet-stream").content == wave


def test_metadata_of_a_study_and_as_xml(serve, archive, study):
    server = serve(archive)
    assert len(get(f"{server.url}/studies/{study}/metadata").json()) == 4
    xml = get(f"{server.url}/studies/{study}/metadata", 'multipart/related; type="application/dicom+xml"')
    documents = parts(xml)
    assert len(documents) == 4
    assert all(b"<NativeDicomModel>" in document for document in documents)


def test_frames_come_in_the_order_asked_for(serve, archive):
    server = serve(archive)
    ct, loop = address(server, "CT_small.dcm"), address(server, "examples_ybr_color.dcm")
    octets = 'multipart/related; type="application/octet-stream"'
    assert parts(get(ct + "/frames/1", octets)) == [pydicom.dcmread(sample_file("CT_small.dcm")).PixelData]
    pixels = pydicom.dcmread(sample_file("examples_ybr_color.dcm")).PixelData
    stored = list(pydicom.encaps.generate_frames(pixels, number_of_frames=30))
    answer = get(loop + "/frames/3,1", 'multipart/related; type="*/*"')
    assert parts(answer) == [stored[2], stored[0]]
    assert "image/jpeg" in answer.headers["Content-Type"]
    assert get(loop + "/frames/2", "image/jpeg").content == stored[1]
    for numbers, status in (("31", 404), ("0", 404), ("x", 400)):
        assert get(loop + f"/frames/{numbers}").status_code == status
    assert get(address(server, "test-SR.dcm") + "/frames/1").status_code == 404


def nothing(self, *arguments, **options):
    raise NotImplementedError


class Painter(DICOMClient):
    """An archive that has nothing but pictures, and remembers what it was asked for."""

    base_url = "painter"
    search_page = iter_search = iter_instances = iter_metadata = iter_frames = nothing
    iter_bulkdata_parts = iter_store_instances = delete_resource = nothing

    def __init__(self) -> None:
        self.asked: list = []

    def retrieve_rendered(self, resource, *, media_types=None, params=None, thumbnail=False):
        self.asked.append((resource.level, media_types, params, thumbnail))
        return RenderedImage(resource, media_types[0], b"a picture")


def test_pictures_come_from_the_archive(serve):
    painter = Painter()
    server = serve(painter)
    url = f"{server.url}/studies/1.2/series/1.3/instances/1.4"
    answer = get(f"{url}/rendered?window=40,400,linear&quality=90", "image/png")
    assert (answer.headers["Content-Type"], answer.content) == ("image/png", b"a picture")
    assert get(f"{url}/frames/1,2/rendered").headers["Content-Type"] == "image/jpeg"
    assert get(f"{server.url}/studies/1.2/thumbnail", "image/*").status_code == 200
    assert painter.asked == [
        ("instance", ("image/png",), {"window": "40,400,linear", "quality": "90"}, False),
        ("frame", ("image/jpeg", "image/png", "image/gif", "text/html", "application/pdf"), None, False),
        ("study", ("image/jpeg", "image/png", "image/gif"), None, True),
    ]
    assert get(f"{url}/rendered", "application/dicom").status_code == 406
    assert get(f"{server.url}/studies/1.2").status_code == 500, "it has no instances to give"
    assert "NotImplementedError" in server.errors.pop()


# Behaviour ------------------------------------------------------------------------------------------------------------


def test_orthanc_ends_studies_by_closing_the_connection(serve, archive, study):
    server = serve(archive, behaviour="orthanc")
    ct = address(server, "CT_small.dcm")
    answer = get(f"{server.url}/studies/{study}", ANY)
    assert "Content-Length" not in answer.headers
    assert "Transfer-Encoding" not in answer.headers
    assert answer.headers["Connection"] == "close"
    assert len(parts(answer)) == 4
    one = get(ct, ANY)
    assert one.headers["Content-Type"].rpartition("boundary=")[2][0] != '"'
    (headers,) = [dict(part.headers) for part in MultipartReader([one.content], one.headers["Content-Type"])]
    assert set(headers) == {"Content-Type", "Content-Length", "MIME-Version"}
    assert headers["Content-Type"] == "application/dicom"
    refused = (f"{PLAIN}; transfer-syntax=*, */*;q=0.1", f"{PLAIN}; transfer-syntax=1.2.3")
    for accept in ("application/dicom", "image/jpeg", *refused):
        assert get(ct, accept).status_code == 400
    (row,) = get(ct + "/metadata").json()
    assert "00083002" not in row
    packed = get(ct + "/metadata", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.json()[0]["00100020"] == row["00100020"]


def test_the_strict_server_sends_single_parts_and_stored_bytes(serve, archive):
    server = serve(archive, behaviour="strict")
    answer = get(address(server, "MR_small_implicit.dcm"), "*/*")
    assert answer.headers["Content-Type"].startswith("application/dicom; transfer-syntax=1.2.840.10008.1.2")
    assert "Content-Length" not in answer.headers
    assert answer.content == sample_file("MR_small_implicit.dcm").read_bytes()
    assert parts(get(address(server, "MR_small_implicit.dcm"), PLAIN)) == [answer.content]
    other = f"{PLAIN}; transfer-syntax=1.2.840.10008.1.2.1"
    assert get(address(server, "MR_small_implicit.dcm"), other).status_code == 406
    for tail in ("/metadata", "/frames/1", "/rendered", "/bulkdata/7FE00010"):
        assert get(address(server, "CT_small.dcm") + tail).status_code == 404
    (row,) = get(address(server, "CT_small.dcm"), "application/dicom+json").json()
    assert row["00100020"]["Value"] == ["1CT1"]


def test_healthimaging_has_no_study_objects(serve, archive):
    server = serve(archive, behaviour="healthimaging")
    reference = Instance.from_path(sample_file("CT_small.dcm")).reference
    assert get(f"{server.url}/{reference.uri}", "application/dicom; transfer-syntax=*").status_code == 200
    assert get(f"{server.url}/{reference.series.uri}", ANY).status_code == 404
    assert get(f"{server.url}/studies/{reference.study_instance_uid}", ANY).status_code == 404
    assert get(f"{server.url}/{reference.uri}/frames/1,1").status_code == 400


def test_azure_has_no_bulk_data(serve, archive):
    server = serve(archive, behaviour="azure")
    answer = get(address(server, "CT_small.dcm") + "/metadata")
    assert "7FE00010" not in answer.json()[0]
    assert get(address(server, "CT_small.dcm") + "/bulkdata/7FE00010").status_code == 404
    original = parts(get(address(server, "MR_small_implicit.dcm"), "*/*"))
    assert original == [sample_file("MR_small_implicit.dcm").read_bytes()]
    (made,) = parts(get(address(server, "MR_small_implicit.dcm"), PLAIN))
    assert pydicom.dcmread(io.BytesIO(made)).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"


def test_dcm4chee_drops_frames_beyond_the_end(serve, archive):
    server = serve(archive, behaviour="dcm4chee")
    answer = get(address(server, "CT_small.dcm") + "/frames/1,2", 'multipart/related; type="*/*"')
    assert answer.status_code == 206
    assert len(parts(answer)) == 1
    assert get(address(server, "CT_small.dcm") + "/frames/2").status_code == 404


# Faults of parts ------------------------------------------------------------------------------------------------------


def faulty(serve, archive, study, action: str, **options) -> requests.Response:
    server = serve(archive, faults=[fault(action, **options)])
    return get(f"{server.url}/studies/{study}", ANY)


@pytest.mark.parametrize(
    ("action", "message"), [("missing_closing_boundary", "without its closing boundary"), ("wrong_boundary", None)]
)
def test_boundaries_that_are_missing_or_wrong(serve, archive, study, action, message):
    with pytest.raises(MultipartError, match=message):
        parts(faulty(serve, archive, study, action))


def test_parts_missing_doubled_foreign_and_cut(serve, archive, study):
    right = parts(get(f"{serve(archive).url}/studies/{study}", ANY))
    assert parts(faulty(serve, archive, study, "drop_part", part=2)) == [right[0], *right[2:]]
    assert parts(faulty(serve, archive, study, "duplicate_part", part=2)) == [*right[:2], right[1], *right[2:]]
    cut = parts(faulty(serve, archive, study, "cut_part", part=3))
    assert [len(part) for part in cut] == [len(right[0]), len(right[1]), len(right[2]) // 2, len(right[3])]
    assert parts(faulty(serve, archive, study, "empty_part", part=2)) == [right[0], b"", *right[2:]]
    other = parts(faulty(serve, archive, study, "dicom_part", part=2))
    assert (other[0], other[1][128:132], other[2:]) == (right[0], b"DICM", right[2:])
    foreign = parts(faulty(serve, archive, study, "foreign_part", part=1))
    assert foreign[1:] == right[1:]
    uid = pydicom.dcmread(io.BytesIO(foreign[0])).SOPInstanceUID
    assert uid not in {pydicom.dcmread(io.BytesIO(part)).SOPInstanceUID for part in right}


def test_parts_cut_before_their_pixels_and_without_their_delimiter(serve, archive, study):
    right = parts(get(f"{serve(archive).url}/studies/{study}", ANY))
    cut = parts(faulty(serve, archive, study, "cut_before_pixels"))
    assert cut == [part[: scan_header(part).end] for part in right]
    assert {scan_header(part).pixel_data_tag for part in right} == {0x7FE00010}
    odd = parts(faulty(serve, archive, study, "missing_delimiter"))
    assert len(odd) == len(right)
    assert {judge(part).warnings for part in odd} == {(WITHOUT_DELIMITER,)}


def test_a_large_instance_passes_without_much_memory(serve, tmp_path):
    path = synthetic_instance(60_000_000, tmp_path / "large.dcm")
    url = f"{serve(tmp_path).url}/{Instance.from_path(path).reference.uri}"
    with get(url, "application/dicom; transfer-syntax=*", stream=True) as answer, open(path, "rb") as file:
        for chunk in answer.iter_content(1 << 20):
            assert chunk == file.read(len(chunk))
        assert file.read() == b""


def test_a_client_that_leaves_ends_an_endless_body(serve, archive):
    server = serve(archive, faults=[fault("endless_body")])
    with get(f"{server.url}/studies", "application/dicom+json", stream=True) as answer:
        assert len(answer.raw.read(1_000_000)) == 1_000_000
    (record,) = server.records.settled()
    assert not record.complete
    assert server.errors == []
