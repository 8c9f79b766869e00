"""Real dynamic splits of a running search: every row comes exactly once.

The runner's split manager asks for a split while a consumer holds the search at a certain row, so that nothing depends
on time. It needs real data channels, and one worker: with two, Beam itself repeats elements (measured with Beam 2.77).
"""

from __future__ import annotations

import threading
from dataclasses import replace

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner, split_manager
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.environments import EmbeddedPythonGrpcEnvironment

from dicomweb_io.elements import Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.queries import make_query
from dicomweb_io.testing.samples import make_study
from dicomweb_io.testing.server.behaviour import Limits
from dicomweb_io.testing.server.behaviours import behaviour_of
from dicomweb_io.transforms import SearchForInstances
from dicomweb_io.transforms.row_range import RowTracker

STEP = "SearchForInstances/Search/ParDo(_ReadRows)/ParDo(_ReadRows)"
ROWS = 300
HELD = 50
WAIT = 30


class Stage:
    """What the runner, the tracker and the consumer of one test agree on."""

    def __init__(self) -> None:
        self.splits: list = []
        self.rows = 0
        self.reached = threading.Event()
        self.released = threading.Event()


stage = Stage()


def hold(row):
    """Stops the search at a row until the runner has tried to split it."""
    stage.rows += 1
    if stage.rows == HELD:
        stage.reached.set()
        assert stage.released.wait(WAIT), "nobody tried to split"
    return row


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    directory = tmp_path_factory.mktemp("archive")
    make_study(directory, series=3, instances=ROWS // 3, size=100)
    return directory


@pytest.fixture
def splits(monkeypatch):
    """Notes every split that the tracker grants."""
    global stage
    stage = Stage()
    original = RowTracker.try_split

    def try_split(tracker, fraction):
        parts = original(tracker, fraction)
        if parts is not None:
            stage.splits.append(parts)
        return parts

    monkeypatch.setattr(RowTracker, "try_split", try_split)
    return stage.splits


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("total_known", [True, False])
@pytest.mark.parametrize("limit", [None, 200])
def test_a_search_that_is_split_while_it_runs_gives_every_row_once(
    serve, archive, splits, total_known, limit, fraction
):
    caps = Limits(20, 20, 20)
    behaviour = replace(behaviour_of("generic"), max_limit=caps, default_limit=caps, total_header=total_known)
    server = serve(archive, behaviour=behaviour)
    client = Endpoint(str(archive)).connect()
    expected = [Resource.of(row) for row in client.iter_search(make_query("instance"), limit=limit)]
    client.close()

    def manager(number_of_elements):
        # The data are sent after the first answer.
        yield None
        if stage.released.is_set():
            return
        assert stage.reached.wait(WAIT), "the held row never came"
        yield fraction
        stage.released.set()

    runner = FnApiRunner(default_environment=EmbeddedPythonGrpcEnvironment.default())
    with split_manager(STEP, manager):
        with beam.Pipeline(runner=runner) as p:
            rows = p | SearchForInstances(server.url, limit=limit) | beam.Map(hold)
            seen = rows | beam.Map(Resource.of)
            assert_that(seen, equal_to(expected))
    assert stage.released.is_set(), "the runner did not try to split: is the step's name still right?"
    if fraction == 0 or (total_known and limit is None):
        assert len(splits) == 1
        primary, residual = splits[0]
        assert HELD <= primary.stop == residual.start < ROWS
        assert (residual.stop, residual.total) == (limit, ROWS if total_known else None)
    else:
        assert splits == [], "an end that is not known was split"
