"""What every client gets from few primitives: the named methods, checked arguments, nothing else."""

from __future__ import annotations

import inspect
from datetime import timedelta

import pydicom
import pytest

from dicomweb_io.changes import SearchChanges
from dicomweb_io.client import DICOMClient
from dicomweb_io.copier import InstanceCopier
from dicomweb_io.elements import Bulkdata, Failure, Frame, Instance, RenderedImage, Resource, SearchPage, StoredInstance
from dicomweb_io.errors import StoreError
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.listing import expand_reference
from dicomweb_io.queries import make_query
from dicomweb_io.web.client import DICOMwebClient


class Small(DICOMClient):
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

    def search_page(self, query, *, offset=0, limit=None, surplus=True, walk=True):
        self.calls.append(("page", query, offset, limit))
        return SearchPage(list(self._rows())[:limit], offset, limit)

    def iter_search(self, query, *, offset=0, limit=None, page_size=None):
        self.calls.append(("iter", query, offset, limit, page_size))
        return self._rows()

    def iter_instances(self, resource, *, max_element_bytes=0, borrow=False, **options):
        self.calls.append(("instances", resource, borrow, options))
        for row in self._rows():
            reference = Resource.of(row)
            if resource.contains(reference):
                yield Instance.from_dataset(dataset_of(reference))

    def iter_store_instances(self, instances, *, study_instance_uid=None, **options):
        for instance in instances:
            refused = study_instance_uid not in (None, instance.reference.study_instance_uid)
            yield (
                Failure("StoreInstances", "another study", reference=instance.reference)
                if refused
                else StoredInstance(instance.reference, "stored")
            )

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

    def delete_resource(self, resource, *, additional_params=None):
        self.calls.append(("delete", resource.uri))


def dataset_of(reference):
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.StudyInstanceUID = reference.study_instance_uid
    dataset.SeriesInstanceUID = reference.series_instance_uid
    dataset.SOPInstanceUID = reference.sop_instance_uid
    return dataset


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
    # The same UID from another series is another instance.
    received = [Resource("1.2", "1.3", "1.4"), Resource("1.2", "1.9", "1.5")]
    assert client.missing_instances(series, received) == [Resource("1.2", "1.3", "1.5")]


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
    assert DICOMClient.lookup_tag("StudyInstanceUID") == "0020000D"
    assert DICOMClient.lookup_keyword("0020000D") == DICOMClient.lookup_keyword(0x0020000D) == "StudyInstanceUID"
    for lookup, value in ((DICOMClient.lookup_tag, "Nonsense"), (DICOMClient.lookup_keyword, "00090001")):
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


@pytest.mark.parametrize("kind", [DICOMwebClient, DICOMfileClient])
def test_every_client_has_the_contract_with_equal_signatures(kind):
    for name, member in inspect.getmembers(DICOMClient, inspect.isfunction):
        if not name.startswith("_"):
            wanted = inspect.signature(member).parameters
            assert inspect.signature(getattr(kind, name)).parameters == wanted, name


def test_the_contract_alone_is_no_client():
    assert DICOMClient.__abstractmethods__ == {
        "base_url",
        "search_page",
        "iter_search",
        "iter_instances",
        "iter_metadata",
        "iter_frames",
        "retrieve_rendered",
        "iter_bulkdata_parts",
        "iter_store_instances",
        "delete_resource",
    }
    with pytest.raises(TypeError, match="abstract"):
        DICOMClient()


# A client that somebody else writes -----------------------------------------------------------------------------------


def test_what_a_caller_may_ask_has_an_answer_without_being_implemented(client):
    assert (client.scheme, client.protocol, client.url_prefix, client.qido_url_prefix) == ("memory", None, "", None)
    assert client.profile.name == "generic"
    assert client.transport is None
    assert client.stats is None
    assert client.count(make_query("study")) is None
    assert list(client.iter_exclusions()) == []
    assert client.locations_of(Resource("1.2")) == []
    assert client.refresh() is None
    report = client.probe()
    assert report.profile is client.profile
    assert [finding.feature for finding in report.findings] == [
        "search of studies",
        "search of series",
        "search of instances",
    ]
    client.set_chunk_size(5)
    client.set_http_retry_params(retry=False)
    with pytest.raises(ValueError, match="positive"):
        client.set_chunk_size(0)


def test_storing_answers_with_the_response_module(client):
    instances = [Instance.from_dataset(dataset_of(Resource("1.2", "1.3", sop))) for sop in ("1.4", "1.5")]
    assert len(client.store_instances(instances).ReferencedSOPSequence) == 2
    with pytest.raises(StoreError, match="2 of 2 instances were not stored; the first: another study") as caught:
        client.store_instances(instances, "1.9")
    assert caught.value.response.status_code == 409
    assert len(caught.value.dataset.FailedSOPSequence) == 2


def test_it_retrieves_and_is_copied_from_and_to(client):
    assert [dataset.SOPInstanceUID for dataset in client.retrieve_series("1.2", "1.3")] == ["1.4", "1.5"]
    assert client.retrieve_instance("1.2", "1.3", "1.5").SOPInstanceUID == "1.5"
    references = list(expand_reference(client, Resource("1.2")))
    other = Small()
    other.iter_search = lambda query, **options: iter(())
    with InstanceCopier(client, other) as copier:
        results = copier.copy(references)
    assert [(result.reference, result.outcome) for result in results] == [(item, "stored") for item in references]


def test_changes_of_it_are_found(client):
    source = SearchChanges("search", "instance", {}, window=None, lookback=timedelta(0))
    changes = source.poll(client, None, start="all")
    assert [item.sop_instance_uid for item in changes.references] == ["1.4", "1.5"]


def test_it_can_be_served_and_searched_over_http(client, serve):
    with DICOMwebClient(serve(client).url) as web:
        assert len(web.search_for_instances()) == 2
        assert web.retrieve_instance("1.2", "1.3", "1.4").SOPInstanceUID == "1.4"
