"""Frames, rendered images and bulk data against the test server and folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to, is_empty
from apache_beam.transforms.window import SlidingWindows, TimestampedValue

from dicomweb_io.elements import Frame, Instance, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import synthetic_instance
from dicomweb_io.transforms import (
    RetrieveBulkdata,
    RetrieveFrames,
    RetrieveMetadata,
    RetrieveRendered,
    SearchForInstances,
)
from dicomweb_io.transforms.frames import bulkdata_uris

ONCE = RetryPolicy.none()
FRAMES = 5
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"


def pipeline():
    return beam.Pipeline(runner="FnApiRunner")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with an image of 5 frames and one of a single frame, in one series. Not to be written to."""
    directory = tmp_path_factory.mktemp("images")
    synthetic_instance(FRAMES * 512 * 512 * 2, directory / "many.dcm", number=1)
    synthetic_instance(2048, directory / "one.dcm", number=2)
    return directory


@pytest.fixture(scope="module")
def many(images):
    return Instance.from_path(images / "many.dcm")


@pytest.fixture(scope="module")
def one(images):
    return Instance.from_path(images / "one.dcm")


@pytest.fixture(scope="module")
def pixels(many, one):
    """The bytes of each frame, by instance and number."""
    found = {}
    for instance in (many, one):
        data = instance.dataset().PixelData
        number = 1 if instance is one else FRAMES
        size = len(data) // number
        for frame in range(number):
            found[replace(instance.reference, frames=(frame + 1,))] = data[frame * size : (frame + 1) * size]
    return found


def seen(frame):
    return frame.reference, frame.transfer_syntax_uid, hash(frame.content)


def expected(pixels, *references):
    return [(reference, EXPLICIT_LITTLE, hash(pixels[reference])) for reference in references]


@pytest.mark.parametrize("where", ["server", "folder"])
def test_frames_by_every_choice(serve, images, many, one, pixels, where):
    endpoint = serve(images).url if where == "server" else str(images)
    numbered = {number: replace(many.reference, frames=(number,)) for number in range(1, FRAMES + 1)}
    only = replace(one.reference, frames=(1,))
    study = Resource(many.reference.study_instance_uid)
    with pipeline() as p:
        every = p | "study" >> beam.Create([study]) | "all" >> RetrieveFrames(endpoint)
        assert_that(every | "1" >> beam.Map(seen), equal_to(expected(pixels, *pixels)), label="all of a study")
        assert every.element_type is Frame
        instance = p | "instance" >> beam.Create([many.reference])
        listed = instance | "listed" >> RetrieveFrames(endpoint, [4, 2, 4])
        assert_that(
            listed | "2" >> beam.Map(seen), equal_to(expected(pixels, *(numbered[n] for n in (4, 2, 4)))), label="list"
        )
        named = (
            p | "frames" >> beam.Create([replace(many.reference, frames=(3,))]) | "named" >> RetrieveFrames(endpoint)
        )
        assert_that(named | "3" >> beam.Map(seen), equal_to(expected(pixels, numbered[3])), label="named")
        study_frames = p | "again" >> beam.Create([study.uri])
        last = study_frames | "last" >> RetrieveFrames(
            endpoint, lambda row: [row["00280008"]["Value"][0] if "00280008" in row else 1]
        )
        assert_that(
            last | "4" >> beam.Map(seen), equal_to(expected(pixels, numbered[FRAMES], only)), label="by a function"
        )
        rows = p | SearchForInstances(endpoint, fields=["NumberOfFrames"]) | "rows" >> RetrieveFrames(endpoint)
        assert_that(rows | "5" >> beam.Map(seen), equal_to(expected(pixels, *pixels)), label="search rows")


def test_frames_that_do_not_exist_are_failures_and_the_others_come(serve, images, many, pixels):
    server = serve(images)
    endpoint = Endpoint(server.url, retry=ONCE)
    with pipeline() as p:
        references = p | beam.Create([many.reference])
        wrong = references | "list" >> RetrieveFrames(endpoint, [1, 99, 2], failures="collect")
        assert_that(wrong.frames | "1" >> beam.Map(lambda item: item.reference.frames), equal_to([(1,), (2,)]))
        lost = wrong.failures | "2" >> beam.Map(lambda item: (item.reference.frames, item.status, item.transform))
        assert_that(lost, equal_to([((99,), 404, "RetrieveFrames")]), label="lost")
        chosen = references | "function" >> RetrieveFrames(endpoint, lambda row: [2, 7], failures="collect")
        assert_that(chosen.frames | "3" >> beam.Map(lambda item: item.reference.frames), equal_to([(2,)]), label="two")
        beyond = chosen.failures | "4" >> beam.Map(lambda item: (item.reference.frames, "has 5 frames" in item.message))
        assert_that(beyond, equal_to([((7,), True)]), label="beyond")
        none = p | "x" >> beam.Create([Resource("1.2.3"), "no reference"])
        none = none | "none" >> RetrieveFrames(endpoint, failures="collect")
        assert_that(none.frames, is_empty(), label="nothing")
        assert_that(none.failures | beam.combiners.Count.Globally(), equal_to([2]), label="two failures")


def test_a_failing_server_is_one_failure_for_all_frames_that_are_missing(serve, images, many):
    server = serve(images, faults=[fault("status", path="/frames/", status=503, times=None)])
    with pipeline() as p:
        found = p | beam.Create([many.reference]) | RetrieveFrames(Endpoint(server.url, retry=ONCE), failures="collect")
        assert_that(found.frames, is_empty(), label="none")
        failures = found.failures | beam.Map(lambda item: (item.reference.frames, item.status, item.retryable))
        assert_that(failures, equal_to([((1, 2, 3, 4, 5), 503, True)]))


def test_frames_in_three_windows_are_fetched_once_and_large_ones_become_files(serve, images, one, many, tmp_path):
    server = serve(images)
    with pipeline() as p:
        elements = (
            p
            | beam.Create([one.reference, many.reference])
            | beam.Map(lambda item: TimestampedValue(item, 65))
            | beam.WindowInto(SlidingWindows(30, 10))
        )
        frames = elements | RetrieveFrames(
            server.url, [1], max_element_bytes=3000, spool_directory=str(tmp_path), max_bytes=5000
        )
        places = frames | beam.Map(
            lambda item, time=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam: (
                item.reference.sop_instance_uid,
                int(time),
                int(window.start),
                item.path is None,
            )
        )
        wanted = [
            (item.reference.sop_instance_uid, 65, start, item is one) for item in (one, many) for start in (40, 50, 60)
        ]
        assert_that(places, equal_to(wanted))
    assert len(server.records.of("GET", "/frames/")) == 2
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == many.dataset().PixelData[: 512 * 512 * 2]
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("frames", "message"),
    [("some", "must be 'all'"), ([0], "positive integers"), ([], "is empty"), (3, "must be 'all'")],
)
def test_impossible_choices_of_frames(frames, message):
    with pytest.raises(ValueError, match=message):
        RetrieveFrames("https://pacs.example", frames)


@pytest.mark.parametrize("where", ["server", "folder"])
def test_rendered_images_of_references_at_every_level(serve, images, many, one, where):
    server = serve(images)
    endpoint = server.url if where == "server" else str(images)
    study = Resource(many.reference.study_instance_uid)
    with pipeline() as p:
        of_study = p | "s" >> beam.Create([study]) | "study" >> RetrieveRendered(endpoint, media_types=["image/png"])
        shown = of_study | beam.Map(lambda item: (item.reference, item.media_type, item.content[:4]))
        assert_that(
            shown, equal_to([(x.reference, "image/png", b"\x89PNG") for x in (many, one)]), label="each instance"
        )
        frames = p | "f" >> beam.Create([replace(many.reference, frames=(2, 3))]) | "fr" >> RetrieveRendered(endpoint)
        assert_that(
            frames | "n" >> beam.Map(lambda item: item.reference.frames), equal_to([(2,), (3,)]), label="frames"
        )
        every = p | "a" >> beam.Create([many.reference]) | "all" >> RetrieveRendered(endpoint, "all")
        assert_that(every | beam.combiners.Count.Globally(), equal_to([FRAMES]), label="all")
        lost = p | "l" >> beam.Create([replace(one.reference, frames=(9,))])
        lost = lost | "lost" >> RetrieveRendered(endpoint, failures="collect")
        assert_that(lost.failures | "m" >> beam.Map(lambda x: x.reference.frames), equal_to([(9,)]), label="lost")


def test_a_thumbnail_is_asked_for_at_the_level_of_the_reference(serve, images, many):
    server = serve(images)
    with pipeline() as p:
        thumbnails = (
            p
            | beam.Create([Resource(many.reference.study_instance_uid)])
            | RetrieveRendered(server.url, thumbnail=True, params={"viewport": (32, 32)})
        )
        assert_that(thumbnails | beam.Map(lambda item: item.reference.level), equal_to(["study"]))
    assert [record.path.rpartition("/")[2] for record in server.records] == ["thumbnail"]


def test_wrong_rendering_parameters_are_refused_at_once():
    with pytest.raises(ValueError, match="quality"):
        RetrieveRendered("https://pacs.example", params={"quality": 0})


def test_bulk_data_of_a_folder(images, many):
    with pipeline() as p:
        found = p | beam.Create([many.reference]) | RetrieveBulkdata(str(images))
        digests = found | beam.Map(lambda item: hash(item.content))
        assert_that(digests, equal_to([hash(many.dataset().PixelData)]))


def test_bulk_data_of_metadata_references_and_uris(serve, images, many, tmp_path):
    endpoint = serve(images).url
    client = Endpoint(endpoint).connect()
    (row,) = client.iter_metadata(many.reference)
    client.close()
    uris = list(bulkdata_uris(row))
    assert len(uris) == 1
    data = many.dataset().PixelData
    with pipeline() as p:
        metadata = p | "m" >> beam.Create([many.reference]) | RetrieveMetadata(endpoint)
        of_metadata = metadata | "of metadata" >> RetrieveBulkdata(endpoint)
        assert_that(of_metadata | "1" >> beam.Map(lambda x: hash(x.content)), equal_to([hash(data)]), label="metadata")
        mixed = p | "x" >> beam.Create([uris[0], many.reference.uri, many.reference])
        of_uris = mixed | "of uris" >> RetrieveBulkdata(endpoint, attributes=["PixelData"])
        assert_that(of_uris | "2" >> beam.Map(lambda x: hash(x.content)), equal_to([hash(data)] * 3), label="uris")
        other = metadata | "other" >> RetrieveBulkdata(endpoint, attributes=["EncapsulatedDocument"])
        assert_that(other, is_empty(), label="other attribute")
        files = metadata | "file" >> RetrieveBulkdata(endpoint, max_element_bytes=10, spool_directory=str(tmp_path))
        assert_that(
            files | "3" >> beam.Map(lambda x: Path(x.path).read_bytes() == data), equal_to([True]), label="file"
        )
        large = metadata | "large" >> RetrieveBulkdata(endpoint, max_element_bytes=10, failures="collect")
        told = large.failures | "4" >> beam.Map(lambda x: ("max_element_bytes" in x.message, "?" in x.url))
        assert_that(told, equal_to([(True, False)]), label="large")
        wrong = p | "w" >> beam.Create([uris[0].replace("7FE00010", "7FE00099"), {"00100020": {"vr": "LO"}}])
        lost = wrong | "wrong" >> RetrieveBulkdata(Endpoint(endpoint, retry=ONCE), failures="collect")
        assert_that(lost.bulkdata, is_empty(), label="nothing")
        assert_that(lost.failures | "5" >> beam.Map(lambda x: x.transform), equal_to(["RetrieveBulkdata"] * 2))


def test_bulk_data_uris_are_found_at_any_depth():
    inner = {"54001010": {"vr": "OW", "BulkDataURI": "b"}}
    dataset = {
        "7FE00010": {"vr": "OW", "BulkDataURI": "a"},
        "54000100": {"vr": "SQ", "Value": [inner, None, {}]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "X"}]},
    }
    assert list(bulkdata_uris(dataset)) == ["a", "b"]
    assert list(bulkdata_uris(dataset, frozenset({"54001010"}))) == ["b"]
