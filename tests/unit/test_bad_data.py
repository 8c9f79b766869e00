"""Bad data of an archive is a failure of what it concerns, and never stops a whole bundle or job."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from dicomweb_io.dicom.errors import DatasetError
from dicomweb_io.dicom.json_decode import load_json_dataset, loads
from dicomweb_io.dicom.xml_model import parse_native_model
from dicomweb_io.elements import Failure, Resource, SearchQuery
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import DICOMError, DICOMwebError, InvalidIdentifierError
from dicomweb_io.failures import RECOVERABLE
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.http.settings import Timeouts
from dicomweb_io.listing import instance_of_row
from dicomweb_io.paging import row_key
from dicomweb_io.transfer import TransferJob, run_transfer
from dicomweb_io.transforms import (
    CopyInstances,
    RetrieveBulkdata,
    RetrieveFrames,
    RetrieveInstances,
    RetrieveRendered,
    StoreInstances,
)
from dicomweb_io.transforms.frames import bulkdata_uris, number_of_frames
from dicomweb_io.web.search import contradiction
from tests.answering import Reply

STUDY, SERIES, INSTANCE = "1.2.3", "1.2.3.1", "1.2.3.1.1"
ONCE = RetryPolicy.none()


def row(*uids, **more):
    tags = ("0020000D", "0020000E", "00080018")
    named = {tag: {"vr": "UI", "Value": [uid]} for tag, uid in zip(tags, uids, strict=False)}
    return {**named, **more}


@pytest.fixture
def archive(answering):
    """An archive of one instance with given metadata, whose instance search answers with given rows."""

    def start(rows, metadata=None):
        def answer(request):
            if request.path.endswith("/metadata"):
                return Reply.json([metadata])
            if request.path.endswith("/instances") and "limit" in request.parameters:
                found = rows if request.parameters.get("offset", "0") == "0" else []
                return Reply.json(found)
            if request.path.endswith("/series") or request.path.endswith("/studies"):
                found = [row(STUDY, SERIES)] if request.parameters.get("offset", "0") == "0" else []
                return Reply.json(found)
            return Reply(404)

        url = answering(answer, path="/dicomweb").url
        return Endpoint(url, retry=ONCE, timeouts=Timeouts(deadline=20))

    return start


UNNAMED = [
    row(STUDY, SERIES),
    row(STUDY, SERIES, **{"00080018": {"vr": "UI", "Value": 5}}),
    row(STUDY, SERIES, **{"00080018": {"vr": "UI", "Value": {"a": 1}}}),
]


@pytest.mark.parametrize("wrong", UNNAMED)
def test_a_listing_with_a_row_that_names_no_instance_is_a_failure(archive, folder, wrong):
    endpoint = archive([wrong])
    summary = run_transfer(TransferJob(endpoint, Endpoint(str(folder))))
    assert (summary["found"], summary["search_failures"]) == (0, 1)
    series = Resource(STUDY, SERIES)
    with beam.Pipeline(runner="FnApiRunner") as p:
        wanted = p | beam.Create([series])
        copied = wanted | CopyInstances(endpoint, str(folder), failures="collect")
        assert_that(copied.failures | "1" >> beam.Map(lambda x: x.reference), equal_to([series]), label="copied")
        got = wanted | RetrieveInstances(endpoint, failures="collect")
        assert_that(got.failures | "2" >> beam.Map(lambda x: x.reference), equal_to([series]), label="retrieved")


@pytest.mark.parametrize("number", ["many", [], {"a": 1}, float("inf"), 1e30, -3, 2.5, "9" * 400, True])
def test_a_number_of_frames_that_is_none_is_a_failure_of_its_instance(archive, number):
    metadata = row(STUDY, SERIES, INSTANCE, **{"00280008": {"vr": "IS", "Value": [number]}})
    endpoint = archive([row(STUDY, SERIES, INSTANCE)], metadata)
    with pytest.raises(DatasetError):
        number_of_frames(metadata)
    with beam.Pipeline(runner="FnApiRunner") as p:
        got = p | beam.Create([Resource(STUDY)]) | RetrieveFrames(endpoint, failures="collect")
        told = got.failures | beam.Map(lambda x: x.reference)
        assert_that(told, equal_to([Resource(STUDY, SERIES, INSTANCE)]))


@pytest.mark.parametrize("number", [10**9, 1001, "2147483647"])
@pytest.mark.parametrize("transform", [RetrieveFrames, RetrieveRendered])
def test_a_number_of_frames_beyond_all_bounds_is_a_failure_of_its_instance(archive, number, transform):
    metadata = row(STUDY, SERIES, INSTANCE, **{"00280008": {"vr": "IS", "Value": [number]}})
    endpoint = archive([metadata], metadata)
    with beam.Pipeline(runner="FnApiRunner") as p:
        for name, element in (("row", metadata), ("study", Resource(STUDY))):
            got = (
                p | name >> beam.Create([element]) | f"{name} frames" >> transform(endpoint, "all", failures="collect")
            )
            told = got.failures | f"{name} told" >> beam.Map(
                lambda x: (x.reference, f"no frame {int(number)}" in x.message)
            )
            assert_that(told, equal_to([(Resource(STUDY, SERIES, INSTANCE), True)]), label=name)


@pytest.mark.parametrize("tag", ["00083002", "00020010"])
@pytest.mark.parametrize("choice", ["all", lambda row: [1]])
def test_frames_of_a_video_are_a_failure_of_its_instance(archive, tag, choice):
    syntax = {"vr": "UI", "Value": ["1.2.840.10008.1.2.4.102.1"]}
    metadata = row(STUDY, SERIES, INSTANCE, **{tag: syntax, "00280008": {"vr": "IS", "Value": [250]}})
    with beam.Pipeline(runner="FnApiRunner") as p:
        got = p | beam.Create([metadata]) | RetrieveFrames(archive([metadata], metadata), choice, failures="collect")
        told = got.failures | beam.Map(lambda x: (x.reference, "is a video" in x.message))
        assert_that(told, equal_to([(Resource(STUDY, SERIES, INSTANCE), True)]))


def test_what_a_choice_of_frames_raises_is_a_failure_of_its_instance(archive):
    def choose(metadata):
        raise ValueError("no")

    endpoint = archive([row(STUDY, SERIES, INSTANCE)], row(STUDY, SERIES, INSTANCE))
    with beam.Pipeline(runner="FnApiRunner") as p:
        got = p | beam.Create([Resource(STUDY)]) | RetrieveFrames(endpoint, choose, failures="collect")
        told = got.failures | beam.Map(lambda x: x.reference)
        assert_that(told, equal_to([Resource(STUDY, SERIES, INSTANCE)]))


NO_ADDRESSES = [
    "http://[::1/x",
    "//[x",
    "http://host:99999/x",
    'http://host/a"b',
    "http://host/a\\b",
    "studies/\u00e4/x",
    "http://a..b/x",
    "http://\u2100/x",
    f"http://{'a' * 300}.example/x",
]


def test_a_bulk_data_uri_that_cannot_be_asked_for_is_a_failure(archive):
    values = {f"0071{number:04X}": {"vr": "OB", "BulkDataURI": uri} for number, uri in enumerate(NO_ADDRESSES, 0x1001)}
    metadata = row(STUDY, SERIES, INSTANCE, **values)
    endpoint = archive([row(STUDY, SERIES, INSTANCE)], metadata)
    client = endpoint.connect()
    for uri in NO_ADDRESSES:
        with pytest.raises((InvalidIdentifierError, DICOMwebError)):
            client.retrieve_bulkdata(uri)
    client.close()
    with beam.Pipeline(runner="FnApiRunner") as p:
        got = p | beam.Create([Resource(STUDY, SERIES, INSTANCE)]) | RetrieveBulkdata(endpoint, failures="collect")
        told = got.failures | beam.Map(lambda x: x.transform)
        assert_that(told, equal_to(["RetrieveBulkdata"] * len(NO_ADDRESSES)))


def test_a_redirect_to_a_host_that_cannot_be_is_an_error_of_the_request(answering):
    server = answering(lambda request: Reply(302, headers={"Location": "http://a..b/x"}), path="/dicomweb")
    client = Endpoint(server.url, retry=ONCE, timeouts=Timeouts(deadline=20)).connect()
    with pytest.raises(RECOVERABLE):
        client.search_page(SearchQuery("study"), limit=1)
    client.close()


def test_an_impossible_total_is_none(answering):
    def answer(request):
        return Reply.json([row(STUDY)], headers={"X-Total-Count": "9" * 5000})

    client = Endpoint(answering(answer, path="/dicomweb").url, retry=ONCE).connect()
    assert client.search_page(SearchQuery("study"), limit=1).total is None
    client.close()


@pytest.mark.parametrize("value", [5, True, {"a": 1}, "text", [[]], [{}], [5], [None]])
def test_values_that_are_no_lists_name_nothing(value):
    wrong = {"vr": "UI", "Value": value}
    with pytest.raises(DICOMError):
        Resource.of({"0020000D": wrong})
    with pytest.raises(DICOMError):
        instance_of_row(row(STUDY, SERIES, **{"00080018": wrong}))
    assert len(row_key(row(STUDY, SERIES, **{"00080018": wrong}), "instance")) == 17
    assert list(bulkdata_uris({"00080008": {"vr": "SQ", "Value": value}})) == []
    query = SearchQuery("study", search_filters=(("StudyInstanceUID", STUDY),))
    assert contradiction(query, {"0020000D": wrong}) is None


GOOD = {"00080018": {"vr": "UI", "Value": ["1.2.3"]}, "00280010": {"vr": "US", "Value": [512]}}


@pytest.mark.filterwarnings("ignore:.*alue")
@pytest.mark.parametrize(
    ("bad", "kept"),
    [
        ({"keyword": {"vr": "LO", "Value": ["Doe"]}}, None),
        ({"00280008": {"vr": "IS", "Value": ["Doe"]}}, "Doe"),
        ({"00280008": {"vr": "IS", "Value": ["1.5"]}}, "1.5"),
        ({"00280008": {"vr": "IS", "Value": ["1.5x"]}}, "1.5x"),
        ({"00180088": {"vr": "DS", "Value": ["abc", "1.0"]}}, ["abc", "1.0"]),
        ({"00180088": {"vr": "DS", "Value": "abc"}}, "abc"),
        ({"00100020": {"Value": ["1"]}}, "1"),
        ({"00280008": {"vr": "FD", "Value": [{"a": "Doe"}], "InlineBinary": "Doe"}}, None),
        ({"00100010": {"vr": "PN", "Value": [5]}}, "5"),
        ({"00100010": 5}, None),
        ({"00100010": None}, None),
        ({"00280009": {"vr": "AT", "Value": ["Doe"]}}, None),
        ({"00420011": {"vr": "OB", "InlineBinary": "@"}}, None),
        ({"00420011": {"vr": "OB", "BulkDataURI": 5}}, None),
        ({"00081140": {"vr": "SQ", "Value": ["Doe"]}}, None),
    ],
)
def test_a_bad_value_costs_only_itself(bad, kept, caplog):
    dataset = load_json_dataset({**GOOD, **bad})
    assert (dataset.SOPInstanceUID, dataset.Rows) == ("1.2.3", 512)
    others = [element for element in dataset if element.tag not in (0x00080018, 0x00280010)]
    if kept is None:
        assert others == []
    else:
        (other,) = others
        assert (other.value if other.VM == 1 else list(other.value)) == kept
    assert "0028,0010" in str(dataset)
    if bad != {"00100020": {"Value": ["1"]}}:
        (message,) = [record.getMessage() for record in caplog.records if record.name == "dicomweb_io"]
        assert message.startswith(f"1.2.3: the element {next(iter(bad))} does not follow the DICOM JSON model")
        assert "Doe" not in message
        assert "abc" not in message


def test_a_bad_value_in_an_item_costs_only_itself(caplog):
    item = {"00280008": {"vr": "IS", "Value": ["x"]}, "00420011": {"vr": "OB", "InlineBinary": "@"}}
    items = [item | GOOD, None, {"00081140": {"vr": "SQ", "Value": [item]}}]
    dataset = load_json_dataset({"00081140": {"vr": "SQ", "Value": items}})
    first, empty, last = dataset.ReferencedImageSequence
    assert (first.Rows, first.NumberOfFrames, len(empty)) == (512, "x", 0)
    assert last.ReferencedImageSequence[0].NumberOfFrames == "x"
    assert "a dataset: the element 00081140/3/00081140/1/00420011 does not" in caplog.text


@pytest.mark.parametrize("kind", [ValueError, KeyError, OSError, ZeroDivisionError])
def test_what_a_handler_of_bulk_data_raises_is_raised(kind):
    def handler(tag, vr, uri):
        raise kind("of the handler")

    item = {"7FE00010": {"vr": "OW", "BulkDataURI": "http://localhost/bulk"}}
    for dataset in (item, {"00081140": {"vr": "SQ", "Value": [item]}}):
        with pytest.raises(kind, match="of the handler"):
            load_json_dataset(dataset, handler)
    assert load_json_dataset(item, lambda uri: uri.encode()).PixelData == b"http://localhost/bulk"


def test_texts_that_cannot_be_read_are_errors_of_data():
    with pytest.raises(DatasetError):
        loads(b"[1" + b"0" * 5000 + b"]")
    with pytest.raises(DatasetError):
        parse_native_model(b"<?xml version='1.0' encoding='none'?><NativeDicomModel/>")
    number = "9" * 5000
    text = f"<NativeDicomModel><DicomAttribute tag='00100020' vr='LO'><Value number='{number}'>a</Value>"
    document = parse_native_model(f"{text}</DicomAttribute></NativeDicomModel>".encode())
    assert document["00100020"]["Value"] == ["a"]


@pytest.mark.parametrize("path", ["a\0b.dcm", "nothing://user:secret@host/x.dcm"])
def test_a_path_that_cannot_be_one_is_a_failure_of_it(folder, path):
    with beam.Pipeline(runner="FnApiRunner") as p:
        stored = p | beam.Create([path]) | StoreInstances(str(folder), failures="collect")
        told = stored.failures | beam.Map(lambda x: (x.transform, "secret" in x.message))
        assert_that(told, equal_to([("StoreInstances", False)]))
    client = Endpoint(str(folder)).connect()
    outcome = next(iter(client.iter_store_instances([path])))
    assert isinstance(outcome, Failure)
    assert "secret" not in outcome.message
    client.close()
