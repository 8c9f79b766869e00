"""Sinks against the test server and folders, on the in-memory runner."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import pydicom
import pytest
from apache_beam.io import fileio
from apache_beam.testing.util import assert_that, equal_to, is_empty
from apache_beam.transforms.display import DisplayData
from apache_beam.transforms.error_handling import ErrorHandler
from apache_beam.transforms.window import FixedWindows, SlidingWindows, TimestampedValue

from dicomweb_io.elements import Instance, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.queries import make_query
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import synthetic_instance
from dicomweb_io.transforms import CopyInstances, SearchForInstances, StoreInstances, WriteToDICOMweb

ONCE = RetryPolicy.none()


def pipeline():
    return beam.Pipeline(runner="FnApiRunner")


def files_of(directory):
    return sorted(Path(directory).rglob("*.dcm"))


def bytes_of(directory):
    return sorted(path.read_bytes() for path in files_of(directory))


def references_of(directory):
    client = Endpoint(str(directory)).connect()
    found = [Resource.of(row) for row in client.iter_search(make_query("instance"))]
    client.close()
    return found


@pytest.mark.parametrize("where", ["server", "folder"])
@pytest.mark.parametrize("kind", ["instances", "bytes", "paths", "readable files"])
def test_every_kind_of_element_arrives_unchanged(serve, archive, folder, kind, where):
    endpoint = serve(folder).url if where == "server" else str(folder)
    paths = files_of(archive)[:25]
    with pipeline() as p:
        if kind == "readable files":
            names = p | beam.Create([str(path) for path in paths])
            elements = names | fileio.MatchAll() | fileio.ReadMatches()
        else:
            make = {"instances": Instance.from_path, "bytes": Path.read_bytes, "paths": str}[kind]
            elements = p | beam.Create([make(path) for path in paths])
        result = elements | StoreInstances(endpoint)
        expected = [Instance.from_path(path).reference for path in paths]
        assert_that(result.stored | beam.Map(lambda item: item.reference), equal_to(expected), label="stored")
        assert_that(result.stored | "O" >> beam.Map(lambda x: x.outcome) | beam.Distinct(), equal_to(["stored"]))
        assert_that(result.failures, is_empty(), label="failures")
    assert bytes_of(folder) == sorted(path.read_bytes() for path in paths)


def test_a_dataset_is_encoded(archive, folder):
    dataset = pydicom.dcmread(files_of(archive)[0])
    with pipeline() as p:
        result = p | beam.Create([dataset]) | WriteToDICOMweb(str(folder))
        assert_that(result.stored | beam.combiners.Count.Globally(), equal_to([1]))
    assert pydicom.dcmread(files_of(folder)[0]) == dataset


def test_every_element_has_one_result_and_failures_name_their_reason(serve, archive, folder, tmp_path):
    server = serve(folder, faults=[fault("refuse_instances", method="POST", numbers=(2,), reason=0xA900)])
    paths = files_of(archive)[:5]
    junk = tmp_path / "readme.txt"
    junk.write_text("no DICOM")
    elements = [*map(str, paths), str(junk), b"neither", str(tmp_path / "missing.dcm")]
    with pipeline() as p:
        result = p | beam.Create(elements, reshuffle=False) | StoreInstances(server.url, failures="collect")
        assert_that(result.stored | beam.combiners.Count.Globally(), equal_to([4]), label="stored")
        seen = result.failures | beam.Map(
            lambda item: (item.source and Path(item.source).name, item.reason_code, item.reference is not None)
        )
        expected = [
            ("readme.txt", None, False),
            (None, None, False),
            ("missing.dcm", None, False),
            (paths[1].name, 0xA900, True),
        ]
        assert_that(seen, equal_to(expected), label="failures")


def test_without_a_handler_a_refusal_fails_the_pipeline(serve, archive, folder):
    server = serve(folder, faults=[fault("refuse_instances", times=None)])
    with pytest.raises(Exception, match="StoreInstances failed for studies/"):
        with pipeline() as p:
            _ = p | beam.Create([str(files_of(archive)[0])]) | StoreInstances(server.url)


def test_a_server_that_lies_is_found_out_by_verification(serve, archive, folder):
    server = serve(folder, faults=[fault("claim_stored", method="POST", times=None)])
    paths = [str(path) for path in files_of(archive)[:3]]
    with pipeline() as p:
        result = (
            p | beam.Create(paths) | StoreInstances(Endpoint(server.url, retry=ONCE), verify="uid", failures="collect")
        )
        assert_that(result.stored, is_empty(), label="stored")
        assert_that(result.failures | beam.combiners.Count.Globally(), equal_to([3]), label="failures")


@pytest.mark.parametrize(
    ("policy", "outcomes"), [("skip", ["exists"]), ("error", []), ("replace", ["replaced"]), ("server", [])]
)
def test_policies_for_what_exists(archive, folder, policy, outcomes):
    """A folder that holds another object with the UID."""
    original = files_of(archive)[0].read_bytes()
    other = original[:-1] + bytes([original[-1] ^ 0xFF])
    with pipeline() as p:
        _ = p | beam.Create([original]) | StoreInstances(str(folder))
    with pipeline() as p:
        result = p | beam.Create([other]) | StoreInstances(str(folder), on_existing=policy, failures="collect")
        assert_that(result.stored | beam.Map(lambda item: item.outcome), equal_to(outcomes), label="stored")
        assert_that(result.failures | beam.combiners.Count.Globally(), equal_to([1 - len(outcomes)]), label="failures")
    assert bytes_of(folder) == [other if policy == "replace" else original]


def test_skip_asks_the_destination_once_for_a_series_and_sends_nothing(serve, archive, folder):
    paths = [str(path) for path in files_of(archive)[:20]]
    with pipeline() as p:
        _ = p | beam.Create(paths) | StoreInstances(str(folder))
    server = serve(folder)
    with pipeline() as p:
        result = p | beam.Create(paths) | StoreInstances(server.url, on_existing="skip")
        assert_that(result.stored | beam.Map(lambda item: (item.outcome, item.size)), equal_to([("exists", 0)] * 20))
    assert server.records.of("POST") == []
    assert len({record.path for record in server.records.of("GET")}) == 2


def test_one_uid_with_two_contents_is_not_sent_in_one_request(archive, folder):
    original = files_of(archive)[0].read_bytes()
    other = original[:-1] + bytes([original[-1] ^ 0xFF])
    with pipeline() as p:
        elements = p | beam.Create([(0, [original, other, original])]) | beam.FlatMap(lambda pair: pair[1])
        result = elements | StoreInstances(str(folder), failures="collect")
        assert_that(result.stored | beam.Map(lambda x: x.outcome), equal_to(["stored", "exists"]), label="stored")
        assert_that(result.failures | beam.combiners.Count.Globally(), equal_to([1]), label="failures")


def test_results_stay_in_their_window(archive, folder):
    path = str(files_of(archive)[0])
    with pipeline() as p:
        elements = (
            p
            | beam.Create([path])
            | beam.Map(lambda item: TimestampedValue(item, 65))
            | beam.WindowInto(FixedWindows(60))
        )
        result = elements | StoreInstances(str(folder))
        seen = result.stored | beam.Map(
            lambda item, time=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam: (int(time), int(window.start))
        )
        assert_that(seen, equal_to([(65, 60)]))


def test_an_element_in_three_windows_is_stored_once(serve, archive, folder):
    server = serve(folder)
    contents = [path.read_bytes() for path in files_of(archive)[:3]]
    with pipeline() as p:
        elements = p | beam.Create(contents) | beam.Map(lambda item: TimestampedValue(item, 65))
        result = elements | beam.WindowInto(SlidingWindows(30, 10)) | StoreInstances(server.url)
        windows = result.stored | beam.Map(lambda item, window=beam.DoFn.WindowParam: (item.outcome, int(window.start)))
        assert_that(windows, equal_to([("stored", start) for start in (40, 50, 60)] * 3))
    assert sum(record.bytes_in for record in server.records.of("POST")) < 2 * sum(map(len, contents))


def test_an_error_handler_receives_failures(archive, folder):
    with pipeline() as p:
        with ErrorHandler(beam.Map(lambda failure: failure.transform)) as handler:
            result = (
                p
                | beam.Create([b"x", files_of(archive)[0].read_bytes()])
                | StoreInstances(str(folder)).with_error_handler(handler)
            )
        assert_that(result.stored | beam.combiners.Count.Globally(), equal_to([1]), label="stored")
        assert_that(handler.output(), equal_to(["StoreInstances"]), label="failures")


# Copying --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["study", "instance"])
def test_copies_references_of_any_level(serve, archive, folder, level):
    source = serve(archive)
    references = references_of(archive)
    given = references if level == "instance" else list({Resource(item.study_instance_uid) for item in references})
    with pipeline() as p:
        result = p | beam.Create(given) | CopyInstances(source.url, str(folder))
        seen = result.stored | beam.Map(lambda item: (item.reference, item.outcome))
        assert_that(seen, equal_to([(item, "stored") for item in references]), label="stored")
        assert_that(result.failures, is_empty(), label="failures")
    assert bytes_of(folder) == bytes_of(archive)


def test_a_copy_continues_where_another_ended(serve, archive, folder):
    destination = serve(folder)
    with pipeline() as p:
        rows = p | SearchForInstances(str(archive), limit=25)
        _ = rows | CopyInstances(str(archive), destination.url)
    destination.records.clear()
    with pipeline() as p:
        result = p | SearchForInstances(str(archive)) | CopyInstances(str(archive), destination.url)
        outcomes = result.stored | beam.Map(lambda item: item.outcome) | beam.combiners.Count.PerElement()
        assert_that(outcomes, equal_to([("exists", 25), ("stored", 35)]))
    # The destination is asked once for each of the six series, beside the look for the patients of studies.
    asked = [(record.path, record.query) for record in destination.records.of("GET")]
    listings = [(path, query) for path, query in asked if "/series/" in path]
    assert len({path for path, _ in listings}) == 6
    assert len(listings) == len(set(listings))
    assert bytes_of(folder) == bytes_of(archive)


def test_a_reference_that_cannot_be_copied_is_a_failure(archive, folder):
    unknown = [Resource("1.2.3", "1.2.4", "1.2.5"), "junk", Resource("1.2.3"), Resource("1.2.3", "1.2.4")]
    known = references_of(archive)[:3]
    with pipeline() as p:
        result = p | beam.Create([*unknown, *known]) | CopyInstances(str(archive), str(folder), failures="collect")
        assert_that(result.stored | beam.Map(lambda item: item.reference), equal_to(known), label="stored")
        seen = result.failures | beam.Map(lambda item: item.reference and item.reference.uri)
        assert_that(
            seen, equal_to([item.uri if isinstance(item, Resource) else None for item in unknown]), label="failures"
        )


def test_a_copied_element_in_three_windows_is_moved_once(serve, archive, folder):
    source = serve(archive)
    references = references_of(archive)[:10]
    with pipeline() as p:
        elements = (
            p
            | beam.Create(references)
            | beam.Map(lambda item: TimestampedValue(item, 65))
            | beam.WindowInto(SlidingWindows(30, 10))
        )
        result = elements | CopyInstances(source.url, str(folder))
        seen = result.stored | beam.Map(lambda item, window=beam.DoFn.WindowParam: (item.reference, int(window.start)))
        assert_that(seen, equal_to([(item, start) for item in references for start in (40, 50, 60)]))
    moved = [record.path for record in source.records.of("GET") if not record.path.endswith("/instances")]
    assert moved == [path for path in moved if path.endswith(f"/series/{references[0].series_instance_uid}")]
    assert len(moved) == 1, "the series was retrieved more than once"


def test_display_data_names_both_ends_without_secrets():
    source = Endpoint("https://a.example", headers={"Authorization": "Bearer hidden"})
    data = DisplayData.create_from(CopyInstances(source, "https://me:secret@b.example/rs", verify="uid"))
    shown = {item.key: item.value for item in data.items}
    assert shown["endpoint"] == "https://a.example"
    assert shown["destination"] == "https://b.example/rs"
    assert (shown["on_existing"], shown["verify"]) == ("skip", "uid")
    assert "secret" not in str(shown)
    assert "hidden" not in str(shown)


def test_large_instances_are_copied_through_files(serve, folder, tmp_path):
    destination = serve(folder)
    (tmp_path / "large").mkdir()
    synthetic_instance(5_000_000, tmp_path / "large" / "one.dcm")
    with pipeline() as p:
        rows = p | SearchForInstances(str(tmp_path / "large"))
        result = rows | CopyInstances(str(tmp_path / "large"), destination.url, verify="content")
        assert_that(
            result.stored | beam.Map(lambda item: (item.outcome, item.verified)), equal_to([("stored", "file")])
        )
    assert bytes_of(folder) == bytes_of(tmp_path / "large")


@pytest.mark.parametrize("options", [{"on_existing": "x"}, {"verify": "x"}, {"failures": "x"}])
def test_wrong_options_are_refused(options):
    for make in (lambda: StoreInstances("/a", **options), lambda: CopyInstances("/a", "/b", **options)):
        with pytest.raises(ValueError, match="must be"):
            make()


def test_the_failure_of_a_copy_from_a_folder_names_the_file(serve, archive, folder):
    server = serve(folder, faults=[fault("refuse_instances", method="POST", numbers=(1,), reason=0xA900)])
    path = files_of(archive)[0]
    reference = Instance.from_path(path).reference
    with pipeline() as p:
        result = p | beam.Create([reference]) | CopyInstances(str(archive), server.url, failures="collect")
        seen = result.failures | beam.Map(lambda item: (item.source, item.reference, item.reason_code))
        assert_that(seen, equal_to([(str(path), reference, 0xA900)]))


def test_a_refusal_in_the_second_half_of_a_split_batch_is_not_told_of_the_first(serve, archive, folder):
    server = serve(
        folder,
        faults=[
            fault("status", method="POST", status=413, first=1),
            fault("status", method="POST", status=403, first=3, times=None),
        ],
    )
    paths = files_of(archive)[:4]
    with pipeline() as p:
        result = p | beam.Create([list(map(str, paths))]) | beam.FlatMap(list)
        result = result | StoreInstances(server.url, failures="collect")
        assert_that(result.stored | beam.combiners.Count.Globally(), equal_to([2]), label="stored")
        seen = result.failures | beam.Map(lambda item: (item.source, item.status))
        assert_that(seen, equal_to([(str(path), 403) for path in paths[2:]]), label="failures")
    assert bytes_of(folder) == sorted(path.read_bytes() for path in paths[:2])
