"""What callers of the original library pass and read, on any client."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from dicomweb_io.api import DICOMClient, DICOMfileClient, DICOMwebClient
from dicomweb_io.queries import make_query

METHODS = [
    *(f"search_for_{level}" for level in ("studies", "series", "instances")),
    *("retrieve_study", "iter_study", "retrieve_series", "iter_series", "retrieve_instance"),
    *("retrieve_study_metadata", "retrieve_series_metadata", "retrieve_instance_metadata"),
    *("retrieve_instance_frames", "iter_instance_frames", "retrieve_bulkdata", "iter_bulkdata"),
    *("retrieve_series_rendered", "retrieve_instance_rendered", "retrieve_instance_frames_rendered"),
    *("store_instances", "delete_study", "delete_series", "delete_instance"),
]


@pytest.mark.parametrize("name", METHODS)
def test_the_protocol_has_every_method(name):
    wanted = inspect.signature(getattr(DICOMwebClient, name)).parameters.values()
    found = inspect.signature(getattr(DICOMClient, name)).parameters.values()
    assert [(one.name, one.default) for one in found] == [(one.name, one.default) for one in wanted]


def test_all_clients_have_the_attributes_of_the_protocol(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a b").mkdir()
    with (
        DICOMwebClient("https://h:8443/root/", qido_url_prefix="q") as web,
        DICOMfileClient(tmp_path / "a b") as folder,
    ):
        assert isinstance(web, DICOMClient)
        assert isinstance(folder, DICOMClient)
        assert (web.scheme, web.protocol, web.url_prefix, web.qido_url_prefix) == ("https", "https", "/root", "q")
        assert (folder.scheme, folder.protocol) == ("file", None)
        assert folder.url_prefix.endswith("/a%20b")
        for client in (web, folder):
            prefixes = (client.wado_url_prefix, client.stow_url_prefix, client.delete_url_prefix)
            assert prefixes == (None, None, None)


@pytest.mark.parametrize("numbers", [np.array([2, 1]), [np.int64(2), np.uint8(1)], range(2, 0, -1), (2, 1)])
def test_frame_numbers_may_be_any_integers(numbers):
    with DICOMwebClient("https://h") as client:
        reference = client._frame_reference("1.2", "1.3", "1.4", numbers)
    assert reference.frames == (2, 1)
    assert {type(number) for number in reference.frames} == {int}


@pytest.mark.parametrize("numbers", [[True], [1.0], ["1"], np.array([1.0]), [None], 1, "1"])
def test_other_frame_numbers_are_refused(numbers):
    with DICOMwebClient("https://h") as client, pytest.raises(TypeError, match="frame_numbers"):
        client.retrieve_instance_frames("1.2", "1.3", "1.4", numbers)


def test_a_series_without_its_study_is_a_filter():
    query = make_query("instance", None, "1.3", search_filters={"Rows": 4})
    assert (query.study_instance_uid, query.series_instance_uid) == (None, None)
    assert query.search_filters == (("SeriesInstanceUID", "1.3"), ("Rows", "4"))
    with pytest.raises(ValueError, match="series_instance_uid"):
        make_query("instance", None, "1/3")


@pytest.mark.parametrize(
    ("name", "value"), [("session", "https://h"), ("session", {}), ("callback", 3), ("callback", [print])]
)
def test_objects_of_another_kind_are_refused_at_once(name, value):
    with pytest.raises(TypeError, match=name):
        DICOMwebClient("https://h", **{name: value})
