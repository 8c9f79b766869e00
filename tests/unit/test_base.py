"""What every client gets from few primitives: the named methods, checked arguments, nothing else."""

from __future__ import annotations

import inspect

import pytest

from dicomweb_io.client import ClientBase, DICOMClient
from dicomweb_io.elements import Bulkdata, Frame, RenderedImage, Resource, SearchPage
from dicomweb_io.web.client import DICOMwebClient


class Small(ClientBase):
    """A client in memory: one study, one series, two instances."""

    base_url = "memory://small"

    def __init__(self):
        self.calls = []
        self.closed = False

    def _rows(self):
        for sop in ("1.4", "1.5"):
            uids = {"0020000D": "1.2", "0020000E": "1.3", "00080018": sop}
            yield {tag: {"vr": "UI", "Value": [uid]} for tag, uid in uids.items()}

    def close(self):
        self.closed = True

    def search_page(self, query, *, offset=0, limit=None):
        self.calls.append(("page", query, offset, limit))
        return SearchPage(list(self._rows())[:limit], offset, limit)

    def iter_search(self, query, *, offset=0, limit=None, page_size=None):
        self.calls.append(("iter", query, offset, limit, page_size))
        return self._rows()

    def iter_metadata(self, resource, *, additional_params=None):
        return (row for row in self._rows() if resource.contains(Resource.of(row)))

    def iter_frames(self, resource, *, media_types=None, additional_params=None):
        self.calls.append(("frames", resource, media_types))
        for number in resource.frames:
            yield Frame(resource, None, "image/jpeg", content=b"%d" % number)

    def retrieve_rendered(self, resource, *, media_types=None, params=None, thumbnail=False):
        return RenderedImage(resource, "image/png", resource.uri.encode())

    def iter_bulkdata_parts(self, url, *, media_types=None, byte_range=None, additional_params=None):
        yield Bulkdata(url, "application/octet-stream", b"bulk")

    def _delete(self, resource, additional_params=None):
        self.calls.append(("delete", resource.uri))


@pytest.fixture
def client():
    return Small()


def test_searches(client):
    assert len(client.search_for_instances("1.2", "1.3", limit=1, offset=4, search_filters={"Modality": "CT"})) == 1
    kind, query, offset, limit = client.calls[-1]
    assert (kind, query.level, query.study_instance_uid, offset, limit) == ("page", "instance", "1.2", 4, 1)
    assert len(client.search_for_series("1.2", get_remaining=True, limit=9)) == 2
    assert client.calls[-1][0] == "iter"
    assert client.search_for_studies(limit=0) == []
    assert len(list(client.iter_search_for_instances(page_size=7, limit=3, fields=["PatientID"]))) == 2
    assert client.calls[-1][2:] == (0, 3, 7)
    assert list(client.iter_search_for_series("1.2"))
    assert list(client.iter_search_for_studies(search_filters={"PatientID": "1"}))


def test_metadata_frames_rendered_and_bulk_data(client):
    assert len(client.retrieve_study_metadata("1.2")) == 2
    assert client.retrieve_instance_metadata("1.2", "1.3", "1.5")["00080018"]["Value"] == ["1.5"]
    assert client.retrieve_instance_frames("1.2", "1.3", "1.4", [2, 1]) == [b"2", b"1"]
    assert client.calls[-1][2] == ("application/octet-stream",)
    assert client.retrieve_instance("1.2", "1.3", "1.4", media_types=("image/jpeg",)) == [b"1"]
    assert client.retrieve_series_rendered("1.2", "1.3") == b"studies/1.2/series/1.3"
    assert client.retrieve_study_rendered("1.2") == b"studies/1.2"
    assert client.retrieve_instance_frames_rendered("1.2", "1.3", "1.4", [3]).endswith(b"frames/3")
    assert client.retrieve_bulkdata("memory://x") == [b"bulk"]


def test_deletions_and_context(client):
    with client as same:
        same.delete_study("1.2")
        same.delete_series("1.2", "1.3")
        same.delete_instance("1.2", "1.3", "1.4")
    assert [call[1] for call in client.calls] == [
        "studies/1.2",
        "studies/1.2/series/1.3",
        "studies/1.2/series/1.3/instances/1.4",
    ]
    assert client.closed


def test_completeness(client):
    series = Resource("1.2", "1.3")
    assert [item.sop_instance_uid for item in client.expected_instances(series)] == ["1.4", "1.5"]
    assert client.missing_instances(series, ["1.4"]) == [Resource("1.2", "1.3", "1.5")]


@pytest.mark.parametrize("uid", ["1.2/../x", "", None, "a", "1." * 40 + "1"])
@pytest.mark.parametrize(
    "method", ["retrieve_study", "retrieve_study_metadata", "retrieve_study_rendered", "delete_study", "iter_study"]
)
def test_no_argument_reaches_another_path(client, method, uid):
    with pytest.raises(ValueError, match="study_instance_uid"):
        getattr(client, method)(uid)
    assert client.calls == []


def test_every_uid_is_checked(client):
    for method, extra in [
        ("retrieve_instance", ()),
        ("retrieve_instance_metadata", ()),
        ("retrieve_instance_frames", ([1],)),
        ("iter_instance_frames", ([1],)),
        ("retrieve_instance_rendered", ()),
        ("retrieve_instance_frames_rendered", ([1],)),
        ("delete_instance", ()),
    ]:
        for position, name in enumerate(("study_instance_uid", "series_instance_uid", "sop_instance_uid")):
            uids = ["1.2", "1.3", "1.4"]
            uids[position] = "../admin"
            with pytest.raises(ValueError, match=name):
                getattr(client, method)(*uids, *extra)
    with pytest.raises(TypeError, match="study_instance_uid"):
        client.retrieve_study(5)


def test_lookups():
    assert ClientBase.lookup_tag("StudyInstanceUID") == "0020000D"
    assert ClientBase.lookup_keyword("0020000D") == ClientBase.lookup_keyword(0x0020000D) == "StudyInstanceUID"
    for lookup, value in ((ClientBase.lookup_tag, "Nonsense"), (ClientBase.lookup_keyword, "00090001")):
        with pytest.raises(KeyError):
            lookup(value)


# The inventory of the library whose users are to find nothing missing: names and arguments in order.
SEARCH = "fuzzymatching limit offset fields search_filters get_remaining additional_params"
UIDS = "study_instance_uid series_instance_uid sop_instance_uid"
INVENTORY = {
    "set_chunk_size": "chunk_size",
    "set_http_retry_params": "retry max_attempts wait_exponential_multiplier retriable_error_codes",
    "search_for_studies": SEARCH,
    "search_for_series": f"study_instance_uid {SEARCH}",
    "search_for_instances": f"study_instance_uid series_instance_uid {SEARCH}",
    "retrieve_study": "study_instance_uid media_types additional_params",
    "iter_study": "study_instance_uid media_types additional_params",
    "retrieve_series": "study_instance_uid series_instance_uid media_types additional_params",
    "iter_series": "study_instance_uid series_instance_uid media_types additional_params",
    "retrieve_instance": f"{UIDS} media_types additional_params",
    "retrieve_study_metadata": "study_instance_uid additional_params",
    "retrieve_series_metadata": "study_instance_uid series_instance_uid additional_params",
    "retrieve_instance_metadata": f"{UIDS} additional_params",
    "retrieve_series_rendered": "study_instance_uid series_instance_uid media_types params",
    "retrieve_instance_rendered": f"{UIDS} media_types params",
    "retrieve_instance_frames": f"{UIDS} frame_numbers media_types additional_params",
    "iter_instance_frames": f"{UIDS} frame_numbers media_types additional_params",
    "retrieve_instance_frames_rendered": f"{UIDS} frame_numbers media_types params",
    "retrieve_bulkdata": "url media_types byte_range additional_params",
    "iter_bulkdata": "url media_types byte_range additional_params",
    "store_instances": "datasets study_instance_uid additional_params",
    "delete_study": "study_instance_uid additional_params",
    "delete_series": "study_instance_uid series_instance_uid additional_params",
    "delete_instance": f"{UIDS} additional_params",
    "lookup_keyword": "tag",
    "lookup_tag": "keyword",
}


@pytest.mark.parametrize("name", INVENTORY)
def test_every_method_has_the_arguments_users_know(name):
    parameters = [item for item in inspect.signature(getattr(DICOMwebClient, name)).parameters if item != "self"]
    assert parameters == INVENTORY[name].split()


def test_the_constructor_has_the_arguments_users_know():
    parameters = list(inspect.signature(DICOMwebClient.__init__).parameters.values())[1:]
    positional = [item.name for item in parameters if item.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert positional == [
        "url",
        "session",
        "qido_url_prefix",
        "wado_url_prefix",
        "stow_url_prefix",
        "delete_url_prefix",
        "proxies",
        "headers",
        "callback",
        "chunk_size",
        "permissive_uid",
        "timeout",
    ]
    defaults = inspect.signature(DICOMwebClient.set_http_retry_params).parameters
    assert [defaults[name].default for name in list(defaults)[1:]] == [True, 5, 1000, (429, 408, 503, 504)]


def test_the_protocol_is_satisfied_with_equal_arguments():
    assert isinstance(DICOMwebClient("http://127.0.0.1:9"), DICOMClient)
    for name, member in inspect.getmembers(DICOMClient, inspect.isfunction):
        if name.startswith("_"):
            continue
        wanted = list(inspect.signature(member).parameters)
        assert list(inspect.signature(getattr(DICOMwebClient, name)).parameters) == wanted, name
