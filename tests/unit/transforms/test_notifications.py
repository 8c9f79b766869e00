"""Messages of Google, Azure and Orthanc become references; everything else becomes a failure."""

from __future__ import annotations

import json

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to, is_empty
from apache_beam.transforms.display import DisplayData
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from hypothesis import given, strategies as st

from dicomweb_io.elements import Instance, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transforms.watch import OrthancChange, ParseNotifications, parse_notification

STORE = "projects/p-1/locations/us-central1/datasets/d/dicomStores/s/dicomWeb"
INSTANCE = Resource("1.2", "1.2.3", "1.2.3.4")
ROW = {
    "Sequence": 7,
    "StudyInstanceUid": "1.2",
    "SeriesInstanceUid": "1.2.3",
    "SopInstanceUid": "1.2.3.4",
    "Action": "create",
    "Timestamp": "2026-01-01T00:00:00.1234567Z",
    "State": "current",
    "Metadata": None,
}


class Message:
    """As Beam's PubsubMessage, which needs an extra."""

    def __init__(self, data, attributes=None):
        self.data = data
        self.attributes = attributes or {}


def pipeline():
    return beam.Pipeline(runner="FnApiRunner")


def test_the_path_has_the_fifteen_parts_that_beam_expects():
    assert len(f"{STORE}/{INSTANCE.uri}".split("/")) == 15


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (f"{STORE}/{INSTANCE.uri}", INSTANCE),
        (f"{STORE}/{INSTANCE.uri}".encode(), INSTANCE),
        (f"//healthcare.googleapis.com/{STORE}/{INSTANCE.uri}\n", INSTANCE),
        (f"https://healthcare.googleapis.com/v1/{STORE}/{INSTANCE.uri}", INSTANCE),
        (Message(f"{STORE}/{INSTANCE.uri}".encode(), {"action": "StoreInstances"}), INSTANCE),
        (Message(f"{STORE}/{INSTANCE.uri}".encode(), {"action": "DeleteInstance"}), None),
        (f"{STORE}/studies/1.2", Resource("1.2")),
        (INSTANCE.uri, INSTANCE),
        (ROW, INSTANCE),
        (json.dumps(ROW), INSTANCE),
        (json.dumps(ROW).encode(), INSTANCE),
        (Message(json.dumps(ROW).encode()), INSTANCE),
        ({key[0].lower() + key[1:]: value for key, value in ROW.items()}, INSTANCE),
        ({**ROW, "Action": "delete"}, None),
        ({**ROW, "State": "deleted"}, None),
        ({"ChangeType": "NewInstance", "ID": "a-b", "Seq": 1}, OrthancChange("a-b", "instance")),
        ({"ChangeType": "StableStudy", "ID": "a-b"}, OrthancChange("a-b", "study")),
        ('{"ChangeType": "NewSeries", "ID": "a-b"}', None),
        ({"ChangeType": "Deleted", "ID": "a-b"}, None),
    ],
)
def test_messages_become_references(message, expected):
    assert parse_notification(message) == expected


BAD = [
    "",
    "hello",
    STORE,
    f"{STORE}/studies",
    f"{STORE}/studies/no@uid",
    f"{STORE}/{INSTANCE.uri}/more",
    b"\xff\xfe",
    "{",
    "{}",
    {},
    {"other": 1},
    {"ChangeType": "NewInstance"},
    {**ROW, "SopInstanceUid": None},
    {**ROW, "StudyInstanceUid": "x@y"},
    5,
    None,
    Message(None),
]


@pytest.mark.parametrize(
    "message", BAD, ids=lambda message: "a message" if isinstance(message, Message) else repr(message)
)
def test_anything_else_is_refused(message):
    with pytest.raises((TypeError, ValueError)):
        parse_notification(message)


@given(st.one_of(st.text(), st.binary(), st.dictionaries(st.text(max_size=16), st.none() | st.text())))
def test_nonsense_is_refused_and_never_anything_else(message):
    try:
        result = parse_notification(message)
    except (TypeError, ValueError):
        return
    assert result is None or isinstance(result, (Resource, OrthancChange))


def test_a_failure_quotes_no_value_of_a_message():
    with pytest.raises(ValueError, match="keys are patient") as caught:
        parse_notification({"patient": "DOE^JOHN"})
    assert "DOE" not in str(caught.value)


def test_failures_are_collected_and_windows_kept():
    good = [f"{STORE}/{INSTANCE.uri}", json.dumps(ROW)]
    with pipeline() as p:
        given_ = (
            p
            | beam.Create(
                [*good, "hello", json.dumps({**ROW, "Action": "delete"}), '{"ChangeType":"NewStudy","ID":"x"}']
            )
            | beam.Map(lambda item: TimestampedValue(item, 65))
            | beam.WindowInto(FixedWindows(60))
        )
        parsed = given_ | ParseNotifications(failures="collect")
        seen = parsed.references | beam.Map(
            lambda item, time=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam: (
                item.uri,
                int(time),
                int(window.start),
            )
        )
        assert_that(seen, equal_to([(INSTANCE.uri, 65, 60)] * 2), label="references")
        told = parsed.failures | beam.Map(
            lambda item: (item.transform, "pass the endpoint to ParseNotifications" in item.message)
        )
        expected = [("ParseNotifications", False), ("ParseNotifications", True)]
        assert_that(told, equal_to(expected), label="failures")


def test_without_a_handler_a_bad_message_fails_the_pipeline():
    with pytest.raises(Exception, match="ParseNotifications failed"):
        with pipeline() as p:
            _ = p | beam.Create(["hello"]) | ParseNotifications()


def test_orthanc_is_asked_what_its_changes_are(orthanc, tmp_path):
    paths = make_study(tmp_path, instances=3, size=100)
    client = Endpoint(orthanc.url).connect()
    client.store_instances([str(path) for path in paths])
    client.close()
    references = [Instance.from_path(path).reference for path in paths]
    changes = orthanc.call("GET", "/changes?since=0&limit=1000")["Changes"]
    gone = {"ChangeType": "NewInstance", "ID": "gone"}
    with pipeline() as p:
        given_ = p | beam.Create([json.dumps(change) for change in [*changes, gone]])
        parsed = given_ | ParseNotifications(orthanc.url, failures="collect")
        study = Resource(references[0].study_instance_uid)
        assert_that(parsed.references, equal_to([*references, study]), label="references")
        assert_that(parsed.failures | beam.Map(lambda item: item.status), equal_to([404]), label="failures")


def test_nothing_comes_of_nothing():
    with pipeline() as p:
        assert_that(p | beam.Create([]) | ParseNotifications(), is_empty())


def test_display_data():
    def shown(transform):
        return {item.key: item.value for item in DisplayData.create_from(transform).items}

    assert "endpoint" not in shown(ParseNotifications())
    assert shown(ParseNotifications("https://me:secret@pacs.example"))["endpoint"] == "https://pacs.example"
