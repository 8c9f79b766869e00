"""Windows, timestamps and panes on every engine: results and failures are where their elements are."""

from __future__ import annotations

from collections import Counter

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.testing.util import assert_that
from apache_beam.transforms.window import GlobalWindows, TimestampedValue
from apache_beam.utils.windowed_value import PaneInfoTiming

from dicomweb_io.elements import Instance, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transforms import CopyInstances, RetrieveInstances, RetrieveMetadata
from tests.every_transform import INSTANCES
from tests.windows import WINDOWINGS, check_windows, early_and_late, make_worlds


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with one series. Not to be written to."""
    directory = tmp_path_factory.mktemp("windows")
    make_study(directory, instances=INSTANCES, size=300)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sessions", "accumulating"])
def test_results_and_failures_are_where_their_elements_are(engine, how, serve, files, tmp_path):
    worlds = make_worlds(Endpoint(serve(files).url), sorted(files.rglob("*.dcm")), tmp_path)
    with beam.Pipeline(options=PipelineOptions(engine)) as p:
        check_windows(p, worlds, WINDOWINGS[how])


def test_the_panes_of_an_accumulating_trigger(streaming_engine, files, tmp_path):
    """A stream that fires early, on time and late: what is in a pane comes in that pane, also what came before.

    FnApiRunner, and the embedded portable runner that is made of it, have no TestStream: there
    `WINDOWINGS["accumulating"]` stands for such a trigger. BundleBasedDirectRunner has one, but its Reshuffle drops
    late panes (Beam 2.77).
    """
    first, second, third = (Instance.from_path(path).reference for path in sorted(files.rglob("*.dcm")))
    stream = (
        test_stream.TestStream()
        .advance_watermark_to(0)
        .add_elements([TimestampedValue(first.uri, 65)])
        .advance_processing_time(1)
        .add_elements([TimestampedValue(second.uri, 66)])
        .advance_watermark_to(130)
        .add_elements([TimestampedValue(third.uri, 67)])
        .advance_watermark_to_infinity()
    )
    transforms = {
        "instances": RetrieveInstances(str(files)),
        "metadata": RetrieveMetadata(str(files)),
        "copies": CopyInstances(str(files), str(tmp_path / "copy")),
    }
    with beam.Pipeline(options=PipelineOptions(streaming_engine)) as p:
        fired = p | stream | early_and_late() | beam.WithKeys("all")
        fired = fired | beam.GroupByKey() | beam.FlatMapTuple(lambda key, uris: list(uris)).with_output_types(str)
        looked = [fired | "Before" >> beam.Map(_placed, "given")]
        for name, transform in transforms.items():
            result = fired | name >> transform
            looked.append((result.stored if name == "copies" else result) | f"Look {name}" >> beam.Map(_placed, name))
        gathered = [one | f"Global {number}" >> beam.WindowInto(GlobalWindows()) for number, one in enumerate(looked)]
        assert_that(tuple(gathered) | beam.Flatten(), _all_alike(list(transforms)))


def _placed(
    element,
    name,
    time=beam.DoFn.TimestampParam,
    window=beam.DoFn.WindowParam,
    pane=beam.DoFn.PaneInfoParam,
):
    reference = getattr(element, "reference", None) or Resource.of(element)
    return name, (reference.sop_instance_uid, float(time), float(window.start), pane.timing, pane.index)


def _all_alike(names):
    def check(seen):
        places = {name: Counter(place for other, place in seen if other == name) for name in ("given", *names)}
        timings = {timing for *_, timing, _ in places["given"]}
        assert timings == {PaneInfoTiming.EARLY, PaneInfoTiming.ON_TIME, PaneInfoTiming.LATE}
        for name in names:
            assert places[name] == places["given"], name

    return check
