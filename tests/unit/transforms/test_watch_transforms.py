"""Watching for what is new: each instance once, never more often than the interval, whatever the runner does."""

from __future__ import annotations

import pickle
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import pairwise

import apache_beam as beam
import pytest
from apache_beam.internal import pickler
from apache_beam.testing.util import assert_that, equal_to, is_empty
from apache_beam.transforms.display import DisplayData
from apache_beam.transforms.error_handling import ErrorHandler

from dicomweb_io.changes import Cursor, change_source
from dicomweb_io.elements import Instance, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transforms import RetrieveInstances
from dicomweb_io.transforms.watch import (
    MAX_WAIT,
    WatchForInstances,
    WatchForStudies,
    WatchState,
    WatchTracker,
    _Pace,
)

ONCE = RetryPolicy.none()
QUICK = 0.02


def pipeline():
    return beam.Pipeline(runner="FnApiRunner")


@pytest.fixture
def held(archive):
    return {Instance.from_path(path).reference for path in archive.rglob("*.dcm")}


@pytest.fixture
def arrivals(tmp_path):
    """Paths of instances that are to arrive one after the other."""
    return make_study(tmp_path / "arrivals", instances=5, size=100, seed="arrivals")


class Growing:
    """A change source in whose archive one instance arrives before each poll: nothing depends on time."""

    method = "list"
    waiting: list = []

    def __init__(self, url):
        self.url = url
        self.source = change_source(url, method="list")

    def poll(self, client, cursor, *, start, max_changes):
        if Growing.waiting:
            sink = Endpoint(self.url).connect()
            sink.store_instances([str(Growing.waiting.pop(0))])
            sink.close()
        return self.source.poll(client, cursor, start=start, max_changes=max_changes)


def test_what_is_there_comes_first_with_the_time_of_the_poll(archive, held):
    before = time.time()
    with pipeline() as p:
        found = p | WatchForInstances(str(archive), start="all", max_polls=1, interval=QUICK)
        assert_that(found, equal_to(held), label="references")
        times = found | beam.Map(lambda item, moment=beam.DoFn.TimestampParam: float(moment))
        assert_that(times | beam.Filter(lambda moment: not before <= moment <= time.time()), is_empty(), label="times")


def test_studies_come_once(archive, held):
    with pipeline() as p:
        found = p | WatchForStudies(str(archive), start="all", max_polls=3, interval=QUICK)
        assert_that(found, equal_to({Resource(item.study_instance_uid) for item in held}))


def test_from_now_on_nothing_that_is_there_comes(archive):
    with pipeline() as p:
        assert_that(p | WatchForInstances(str(archive), max_polls=3, interval=QUICK), is_empty())


def test_arrivals_between_polls_come_once_each_and_can_be_retrieved(serve, folder, arrivals):
    server = serve(folder)
    Growing.waiting = list(arrivals)
    watch = WatchForInstances(server.url, start="all", max_polls=7, interval=QUICK)
    watch.source = Growing(server.url)
    expected = [Instance.from_path(path).reference for path in arrivals]
    with pipeline() as p:
        found = p | watch
        assert_that(found, equal_to(expected), label="references")
        fetched = found | RetrieveInstances(server.url)
        assert_that(fetched | beam.Map(lambda item: item.reference), equal_to(expected), label="instances")
    assert Growing.waiting == []


def test_no_poll_comes_earlier_than_the_interval(serve, archive):
    """FnApiRunner ignores the wish to be called later; the archive must not notice."""
    server = serve(archive)
    interval = 0.15
    with pipeline() as p:
        _ = p | WatchForInstances(server.url, max_polls=4, interval=interval, method="list")
    searches = [record for record in server.records if record.path.endswith("instances")]
    moments = [record.started for record in searches if "offset=0" in record.query or "offset" not in record.query]
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    assert len(gaps) == 3
    assert min(gaps) >= interval * 0.95


def test_a_long_poll_goes_on_in_small_bundles(archive, held):
    with pipeline() as p:
        found = p | WatchForInstances(str(archive), start="all", max_polls=1, max_changes=7, interval=3600)
        assert_that(found, equal_to(held))


def test_an_unbounded_watch_ends_only_by_its_runner(archive):
    p = pipeline()
    unbounded = p | "Unbounded" >> WatchForInstances(str(archive))
    bounded = p | "Bounded" >> WatchForInstances(str(archive), max_polls=1)
    until = p | "Until" >> WatchForInstances(str(archive), stop=datetime(2200, 1, 1))
    assert (unbounded.is_bounded, bounded.is_bounded, until.is_bounded) == (False, True, True)


def test_a_stop_ends_it(archive, held):
    # The second poll would come after the end.
    later = datetime.now(timezone.utc) + timedelta(hours=1)
    with pipeline() as p:
        found = p | WatchForInstances(str(archive), start="all", stop=later, interval=7200)
        assert_that(found, equal_to(held))
    with pipeline() as p:
        past = datetime(2020, 1, 1)
        assert_that(p | WatchForInstances(str(archive), start="all", stop=past), is_empty())


def test_a_cursor_goes_on(archive, held, arrivals):
    source = change_source(str(archive))
    client = Endpoint(str(archive)).connect()
    cursor = source.poll(client, None, start="now").cursor
    client.close()
    with pipeline() as p:
        assert_that(p | WatchForInstances(str(archive), start="all", cursor=cursor, max_polls=1), is_empty())


def test_failed_polls_are_told_and_made_good(serve, archive, held):
    server = serve(archive, faults=[fault("status", first=1, times=2, status=500)])
    endpoint = Endpoint(server.url, retry=ONCE)
    with pipeline() as p:
        watched = p | WatchForInstances(
            endpoint, start="all", max_polls=3, interval=QUICK, method="list", failures="collect"
        )
        assert_that(watched.references, equal_to(held), label="references")
        told = watched.failures | beam.Map(lambda failure: (failure.transform, failure.status))
        assert_that(told, equal_to([("WatchForInstances", 500)] * 2), label="failures")


def test_an_error_handler_receives_failed_polls(serve, archive):
    server = serve(archive, faults=[fault("status", times=None, status=500)])
    with pipeline() as p:
        with ErrorHandler(beam.Map(lambda failure: failure.status)) as handler:
            watch = WatchForInstances(Endpoint(server.url, retry=ONCE), max_polls=2, interval=QUICK, method="list")
            found = p | watch.with_error_handler(handler)
        assert_that(found, is_empty(), label="references")
        assert_that(handler.output(), equal_to([500, 500]), label="failures")


def test_without_a_handler_a_failed_poll_fails_the_pipeline(serve, archive):
    server = serve(archive, faults=[fault("status", times=None, status=403)])
    with pytest.raises(Exception, match=r"WatchForInstances failed: .*403"):
        with pipeline() as p:
            _ = p | WatchForInstances(Endpoint(server.url, retry=ONCE), max_polls=1, method="list")


# The tracker ----------------------------------------------------------------------------------------------------------


def test_every_way_to_split_hands_on_exactly_what_is_left():
    first, second = WatchState(), WatchState(Cursor("list", "1"), polls=1, due=5.0)
    for fraction in (0, 0.5):
        tracker = WatchTracker(first)
        with pytest.raises(ValueError, match="without handing back"):
            tracker.check_done()
        primary, residual = tracker.try_split(fraction)
        assert residual is first
        assert primary.done
        tracker.check_done()
        assert not tracker.try_claim(second), "what was given away was claimed"
        assert tracker.try_split(fraction) is None

        tracker = WatchTracker(first)
        assert tracker.try_claim(second)
        _, residual = tracker.try_split(fraction)
        assert residual is second
        tracker.check_done()

    tracker = WatchTracker(first)
    assert tracker.try_claim(second)
    assert tracker.try_claim(replace(second, done=True))
    tracker.check_done()
    assert tracker.try_split(0) is None
    assert tracker.current_progress().fraction_completed == 1.0
    WatchTracker(replace(first, done=True)).check_done()


def test_states_pickle():
    state = WatchState(Cursor("list", "1", "", {"": frozenset({"a"})}), 3, 5.0)
    copy = pickle.loads(pickle.dumps(state))
    assert (copy.polls, copy.due, copy.cursor.seen) == (3, 5.0, {"": frozenset({"a"})})


def test_the_pace_outlives_a_clock_that_is_set():
    pace = _Pace()
    assert pace.remaining("a", 10.0, 0.0) <= 0
    assert 9 < pace.remaining("a", 10.0, time.time() + 10) <= 10
    # The clock was set back by an hour since the poll before.
    assert pace.remaining("a", 10.0, time.time() + 3600) == 10.0
    pace.begin("a")
    # It was set forward: this process knows better.
    assert 9 < pace.remaining("a", 10.0, time.time() - 3600) <= 10
    assert pace.remaining("b", 10.0, 0.0) <= 0
    assert MAX_WAIT > 0


# Arguments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 0}, "interval must be"),
        ({"interval": float("nan")}, "interval must be"),
        ({"max_polls": 0}, "max_polls must be"),
        ({"max_changes": 0}, "max_changes must be"),
        ({"start": "tomorrow"}, "start must be"),
        ({"stop": "tomorrow"}, "stop must be"),
        ({"method": "x"}, "method must be"),
        ({"search_filters": {"Modalit": "CT"}}, "Modalit"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        WatchForInstances("https://pacs.example/rs", **arguments)


def test_it_is_a_source():
    with pytest.raises(TypeError, match="is a source"):
        _ = pipeline() | beam.Create([1]) | WatchForInstances("/data")


def test_it_pickles_and_shows_no_secret():
    endpoint = Endpoint("https://user:secret@pacs.example/rs", headers={"X-Key": "hidden"})
    watch = pickler.loads(pickler.dumps(WatchForStudies(endpoint, {"PatientName": "DOE^JOHN"}, interval=timedelta(1))))
    shown = {item.key: item.value for item in DisplayData.create_from(watch).items}
    assert (shown["filters"], shown["interval"], shown["method"]) == ("PatientName", 86400.0, "study_date")
    assert not any(word in str(shown) for word in ("secret", "hidden", "DOE"))
