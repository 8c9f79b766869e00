"""What code that was written for other clients, and for requests, relies on, of servers and folders alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dicomweb_io import DICOMClient, DICOMwebClient, Resource
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.uri import build_query_string
from tests.answering import Reply

ONE = ("1.2", "1.3", "1.4")


@pytest.fixture
def asked(answering) -> Iterator[tuple[Any, DICOMwebClient]]:
    server = answering(lambda request: Reply.json([]), path="/dicomweb")
    with DICOMwebClient(server.url) as client:
        yield server, client


@pytest.fixture(params=["server", "folder"])
def archive(request: pytest.FixtureRequest, sample_folder: Path) -> Iterator[DICOMClient]:
    """An archive that must not be asked anything: no server listens there."""
    made = DICOMwebClient("http://127.0.0.1:9") if request.param == "server" else DICOMfileClient(sample_folder)
    with made as client:
        yield client


@pytest.mark.parametrize(
    ("params", "query"),
    [
        ({"k": ["a", "b"]}, "k=a&k=b"),
        ({"k": ("a,b", 2), "l": None, "m": [None, True]}, "k=a,b&k=2&m=true"),
        ({"k": []}, ""),
        ({"x y": "ü&"}, "x%20y=%C3%BC%26"),
    ],
)
def test_lists_of_parameters_repeat_their_name(asked, params: dict[str, Any], query: str) -> None:
    server, client = asked
    client.search_for_studies(additional_params=params)
    client.retrieve_study_metadata("1.2", additional_params=params)
    client.delete_study("1.2", additional_params=params)
    with pytest.raises(OSError, match="rendered image"):
        client.retrieve_rendered(Resource(*ONE), params={**params, "window": [1, 2]})
    assert [request.query for request in server.requests][:3] == [query] * 3
    assert server.requests[3].query == f"{query}&window=1,2,linear".lstrip("&")
    assert build_query_string(params) == (f"?{query}" if query else "")


def test_a_folder_takes_any_of_repeated_values(sample_folder: Path) -> None:
    with DICOMfileClient(sample_folder) as client:
        several = client.search_for_series(additional_params={"Modality": ["CT", "MR"]})
        assert several == client.search_for_series(search_filters={"Modality": ["CT", "MR"]}) != []


@pytest.mark.parametrize("bad", [{"offset": -1}, {"limit": -1}, {"page_size": 0}, {"offset": 1.5}, {"limit": "1"}])
def test_limits_are_checked_when_a_search_is_called(archive: DICOMClient, bad: dict[str, Any]) -> None:
    from dicomweb_io.elements import SearchQuery

    calls = [
        lambda: archive.iter_search(SearchQuery("study"), **bad),
        lambda: archive.iter_search_for_studies(**bad),
        lambda: archive.iter_search_for_series("1.2", **bad),
        lambda: archive.iter_search_for_instances("1.2", "1.3", **bad),
    ]
    if "page_size" not in bad:
        calls += [lambda: archive.search_page(SearchQuery("study"), **bad), lambda: archive.search_for_studies(**bad)]
    for call in calls:
        with pytest.raises((TypeError, ValueError), match=next(iter(bad))):
            call()


@pytest.mark.parametrize("form", ["instances", "study", "frames", "bulkdata", "rendered", "frame rendered"])
def test_media_types_that_a_form_never_has_are_errors_at_once(archive: DICOMClient, form: str) -> None:
    calls: dict[str, tuple[Any, list[str]]] = {
        "instances": (
            lambda types: archive.iter_instances(Resource(*ONE), media_types=types),
            ["image/jp2", "application/dicom+json", "text/html", "application/octet-stream"],
        ),
        "study": (lambda types: archive.iter_study("1.2", media_types=types), ["image/jpeg", "video/mp4"]),
        "frames": (
            lambda types: archive.iter_instance_frames(*ONE, [1], media_types=types),
            ["application/dicom", "application/dicom+json", "image/png", "image/gif", "text/html", "application/pdf"],
        ),
        "bulkdata": (
            lambda types: archive.iter_bulkdata(
                f"{archive.base_url}/studies/1.2/series/1.3/instances/1.4/bulkdata/7FE00010", media_types=types
            ),
            ["application/dicom", "application/dicom+xml", "multipart/related"],
        ),
        "rendered": (
            lambda types: archive.retrieve_instance_rendered(*ONE, media_types=types),
            ["application/dicom", "application/octet-stream", "image/jls", "image/dicom-rle"],
        ),
        "frame rendered": (
            lambda types: archive.retrieve_instance_frames_rendered(*ONE, [1], media_types=types),
            ["application/dicom+json", "image/jphc"],
        ),
    }
    call, types = calls[form]
    for name in types:
        with pytest.raises(ValueError, match="not available as"):
            call((name,))
        with pytest.raises(ValueError, match="not available as"):
            call(("*/*", name))
    if "rendered" in form:
        with pytest.raises(TypeError, match="no transfer syntax"):
            call((("image/jpeg", "1.2.840.10008.1.2.4.50"),))


def test_lazy_methods_are_generators_that_can_be_closed(archive: DICOMClient) -> None:
    from dicomweb_io.elements import SearchQuery

    url = f"{archive.base_url}/studies/1.2/series/1.3/instances/1.4/bulkdata/7FE00010"
    for lazy in (
        archive.iter_search(SearchQuery("study")),
        archive.iter_search_for_studies(),
        archive.iter_search_for_series("9.9"),
        archive.iter_search_for_instances("9.9", "9.8"),
        archive.iter_study("1.2"),
        archive.iter_series("1.2", "1.3"),
        archive.iter_study_metadata("1.2"),
        archive.iter_series_metadata("1.2", "1.3"),
        archive.iter_instance_frames(*ONE, [1]),
        archive.iter_bulkdata(url),
        archive.iter_instances(Resource(*ONE)),
        archive.iter_metadata(Resource(*ONE)),
        archive.iter_frames(Resource(*ONE, frames=(1,))),
        archive.iter_bulkdata_parts(url),
        archive.iter_store_instances([]),
        archive.expected_instances(Resource("1.2")),
    ):
        lazy.close()  # type: ignore[attr-defined]
        assert next(lazy, None) is None


def test_a_search_of_a_folder_that_is_not_there_can_be_closed(tmp_path: Path) -> None:
    with DICOMfileClient(tmp_path / "later") as client:
        rows = client.iter_search_for_series("1.2")
        rows.close()  # type: ignore[attr-defined]
        assert list(rows) == []


@pytest.mark.parametrize("lazy", ["iter_instance_frames", "iter_study", "iter_bulkdata"])
def test_closing_ends_the_request(web, lazy: str) -> None:
    kind = "application/dicom" if lazy == "iter_study" else "application/octet-stream"
    files = [web.dicom(f"1.4.{number}", study="1.2", series="1.3", filler=40_000) for number in range(40)]
    if lazy == "iter_instance_frames":
        files = [bytes(40_000)] * 40
    _, client = web.connect(lambda request: Reply.multipart(files, kind=kind))
    arguments: dict[str, tuple[Any, ...]] = {
        "iter_instance_frames": (*ONE, list(range(1, 41))),
        "iter_study": ("1.2",),
        "iter_bulkdata": (f"{client.base_url}/x",),
    }
    items = getattr(client, lazy)(*arguments[lazy])
    next(items)
    assert client.transport._throttle.in_flight == 1
    items.close()
    assert client.transport._throttle.in_flight == 0


def test_prefixes_can_be_set(asked, tmp_path: Path) -> None:
    server, client = asked
    client.qido_url_prefix = "qido"
    client.wado_url_prefix = "wado/rs"
    client.delete_url_prefix = "del"
    client.search_for_studies()
    client.retrieve_study_metadata("1.2")
    client.delete_study("1.2")
    client.stow_url_prefix = "stow"
    client.qido_url_prefix = None
    client.search_for_studies()
    assert [request.path for request in server.requests] == [
        "/dicomweb/qido/studies",
        "/dicomweb/wado/rs/studies/1.2/metadata",
        "/dicomweb/del/studies/1.2",
        "/dicomweb/studies",
    ]
    assert (client.qido_url_prefix, client.stow_url_prefix) == (None, "stow")
    for bad in ("", "..", "a b"):
        with pytest.raises(ValueError, match="stow_url_prefix"):
            client.stow_url_prefix = bad
    with DICOMfileClient(tmp_path) as folder:
        folder.qido_url_prefix = None
        with pytest.raises(ValueError, match="no path segments"):
            folder.qido_url_prefix = "qido"


# What a search of a folder returns, and what its own URLs are good for ----------------------------------------------


def test_required_attributes_are_there_and_empty_where_unknown(tmp_path: Path) -> None:
    from tests.unit.files.making import make_bytes

    (tmp_path / "a.dcm").write_bytes(make_bytes())
    with DICOMfileClient(tmp_path) as client:
        (study,), (series,), (instance,) = (
            client.search_for_studies(),
            client.search_for_series(),
            client.search_for_instances(),
        )
        within = client.search_for_instances("1.2.1", "1.2.1.1")[0]
    required = {
        "00080020": "DA", "00080030": "TM", "00080050": "SH", "00080061": "CS", "00080090": "PN", "00100010": "PN",
        "00100020": "LO", "00100030": "DA", "00100040": "CS", "0020000D": "UI", "00200010": "SH", "00201206": "IS",
        "00201208": "IS",
    }  # fmt: skip
    levels = {"00080060": "CS", "0020000E": "UI", "00200011": "IS", "00201209": "IS"}
    own = {"00080016": "UI", "00080018": "UI", "00200013": "IS"}
    for row, wanted in (
        (study, required),
        (series, {**required, **levels}),
        (instance, {**required, **levels, **own}),
        (within, own),
    ):
        assert {tag: row[tag]["vr"] for tag in wanted} == wanted
        assert list(row) == sorted(row)
    assert study["00080090"] == {"vr": "PN"}
    assert series["00200011"] == {"vr": "IS"}


def test_the_retrieve_url_of_a_folder_is_a_reference(sample_folder: Path) -> None:
    with DICOMfileClient(sample_folder) as client:
        for row in client.search_for_instances(limit=5):
            url = row["00081190"]["Value"][0]
            assert url.startswith("file://")
            assert Resource.of(url) == Resource.of(row)
    assert Resource.of("memory://x/studies/y/studies/a%20b") == Resource("a b")
    for wrong in ("file:///a/b", "memory://studies", "file:///x/studies/"):
        with pytest.raises(ValueError, match=r"URI|path"):
            Resource.of(wrong)


# Multipart answers whose Content-Type names no boundary ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["multipart/related", 'multipart/related; type="application/octet-stream"'])
def test_an_answer_without_a_boundary_that_is_one_whole_part(web, kind: str) -> None:
    frame = bytes(range(256)) * 1000
    _, client = web.connect(lambda request: Reply(200, frame, kind))
    assert client.retrieve_instance_frames(*ONE, [1]) == [frame]
    assert client.retrieve_bulkdata(f"{client.base_url}/x") == [frame]
    _, client = web.connect(lambda request: Reply(200, b"", kind))
    with pytest.raises(OSError, match="empty"):
        client.retrieve_bulkdata(f"{client.base_url}/x")


def test_an_instance_without_a_boundary(web) -> None:
    content = web.dicom("1.4", study="1.2", series="1.3")
    _, client = web.connect(lambda request: Reply(200, content, 'multipart/related; type="application/dicom"'))
    assert [item.read() for item in client.iter_instances(Resource(*ONE))] == [content]
    # Nothing proves its end.
    unframed = Reply(200, content, 'multipart/related; type="application/dicom"', length=False)
    _, client = web.connect(lambda request: unframed)
    with pytest.raises(OSError, match="no boundary"):
        list(client.iter_instances(Resource(*ONE)))


def test_a_boundary_that_stands_in_the_body_only(web) -> None:
    parts = Reply.multipart([b"one", b"two"], kind="application/octet-stream")
    _, client = web.connect(lambda request: Reply(200, parts.body, "multipart/related"))
    assert client.retrieve_bulkdata(f"{client.base_url}/x") == [b"one", b"two"]
    _, client = web.connect(lambda request: Reply(200, parts.body[:-10], "multipart/related"))
    with pytest.raises(OSError, match="closing boundary"):
        client.retrieve_bulkdata(f"{client.base_url}/x")
