"""Stores whose paths wait for others, on a runner with timers that wait."""

from __future__ import annotations

import time

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.window import FixedWindows
from apache_beam.utils.timestamp import Timestamp

from dicomweb_io.testing.samples import make_study
from dicomweb_io.transforms import StoreInstances, store

COUNT = 20
DELAY = 10
"""Seconds that paths wait, much longer than they take to come."""


@pytest.fixture
def paths(tmp_path):
    return [str(path) for path in make_study(tmp_path / "source", instances=COUNT, size=200)]


def pipeline(engine):
    return beam.Pipeline(options=PipelineOptions(engine))


def dribble(paths, begin, seconds=COUNT * 0.1):
    """The paths one by one, at times that follow from `begin`."""
    first, count = float(begin), len(paths)
    times = PeriodicImpulse(begin, begin + seconds, fire_interval=0.1)
    return times | "Paths" >> beam.Map(lambda moment: paths[round((float(moment) - first) / 0.1) % count])


@pytest.mark.parametrize("window", [None, 1000])
def test_paths_that_dribble_in_share_requests(streaming_engine, serve, folder, paths, window):
    server = serve(folder)
    # All in one window.
    begin = Timestamp(1000 * (int(time.time()) // 1000))
    seen = folder.parent / "seen"

    def note(item, moment=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam):
        with open(seen, "a") as file:
            file.write(f"{round(float(moment - begin) / 0.1)} {type(window).__name__}\n")

    with pipeline(streaming_engine) as p:
        given = p | dribble(paths, begin)
        if window is not None:
            given = given | beam.WindowInto(FixedWindows(window))
        result = given | StoreInstances(server.url, max_batch_delay=DELAY, failures="collect")
        _ = result.stored | beam.Map(note)
    kind = "GlobalWindow" if window is None else "IntervalWindow"
    assert sorted(seen.read_text().splitlines()) == sorted(f"{number} {kind}" for number in range(COUNT))
    assert len(server.records.of("POST")) <= store._SHARDS


def test_what_has_waited_is_sent_before_the_window_ends(streaming_engine, serve, folder, paths):
    server = serve(folder)
    p = pipeline(streaming_engine)
    _ = p | dribble(paths[:1], Timestamp.now(), seconds=3600) | StoreInstances(server.url, max_batch_delay=0.5)
    result = p.run()
    try:
        end = time.monotonic() + 60
        while not server.records.of("POST") and time.monotonic() < end:
            time.sleep(0.1)
        assert server.records.of("POST"), "nothing was sent"
    finally:
        result.cancel()
