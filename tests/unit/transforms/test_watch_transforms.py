"""Watching for what is new: each instance once, never more often than the interval, whatever the runner does."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import pairwise

import apache_beam as beam
import pytest
from apache_beam.coders import FastPrimitivesCoder
from apache_beam.internal import pickler
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.sdf_utils import RestrictionTrackerView, ThreadsafeRestrictionTracker
from apache_beam.testing.util import assert_that, equal_to, is_empty
from apache_beam.transforms.display import DisplayData
from apache_beam.transforms.error_handling import ErrorHandler

from dicomweb_io.changes import Changes, Cursor, change_source
from dicomweb_io.elements import Failure, Instance, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transforms import RetrieveInstances, watch as watches
from dicomweb_io.transforms.metrics import TALLY
from dicomweb_io.transforms.watch import (
    MAX_WAIT,
    WatchForCompleteStudies,
    WatchForInstances,
    WatchForStudies,
    WatchProvider,
    WatchState,
    WatchStateCoder,
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
    interval = 0.3
    with pipeline() as p:
        _ = p | WatchForInstances(server.url, max_polls=4, interval=interval, method="list")
    searches = [record for record in server.records if record.path.endswith("instances")]
    moments = [record.started for record in searches if "offset=0" in record.query or "offset" not in record.query]
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    assert len(gaps) == 3
    # The first request of a process takes a moment longer to leave it than the others.
    assert min(gaps) >= interval * 0.9


def test_a_long_poll_goes_on_in_small_bundles(archive, held):
    with pipeline() as p:
        found = p | WatchForInstances(str(archive), start="all", max_polls=1, max_changes=7, interval=3600)
        assert_that(found, equal_to(held))


@pytest.mark.parametrize("max_changes", [7, 10_000])
def test_several_workers_lose_no_poll(archive, held, max_changes):
    options = PipelineOptions(["--direct_running_mode=multi_threading", "--direct_num_workers=2"])
    with beam.Pipeline(runner="FnApiRunner", options=options) as p:
        found = p | WatchForInstances(str(archive), start="all", max_polls=2, max_changes=max_changes, interval=QUICK)
        assert_that(found, equal_to(held), label="references")
        rested = p | WatchForCompleteStudies(str(archive), start="all", max_polls=2, interval=QUICK, quiet=1e-6)
        assert_that(rested, equal_to({Resource(item.study_instance_uid) for item in held}), label="studies")


def test_an_unbounded_watch_ends_only_by_its_runner(archive):
    p = pipeline()
    unbounded = p | "Unbounded" >> WatchForInstances(str(archive))
    bounded = p | "Bounded" >> WatchForInstances(str(archive), max_polls=1)
    until = p | "Until" >> WatchForInstances(str(archive), stop=datetime(2200, 1, 1))
    assert (unbounded.is_bounded, bounded.is_bounded, until.is_bounded) == (False, True, True)


def test_an_option_that_ends_a_watch_by_chance_is_refused(archive, caplog):
    p = beam.Pipeline(options=PipelineOptions(["--shutdown_sources_after_idle_ms=1000"]))
    with pytest.raises(ValueError, match="between two of its polls"):
        _ = p | WatchForInstances(str(archive))
    assert not caplog.messages
    _ = p | "Bounded" >> WatchForInstances(str(archive), max_polls=1)
    assert "between two of its polls" in caplog.text


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


@pytest.mark.parametrize("bounded", [True, False])
def test_a_drain_waits_for_nothing(bounded):
    state = WatchState(Cursor("list", "1"), polls=1, due=5.0)
    assert WatchProvider(bounded).truncate(state, state) is None


DIGESTS = ("AAECAwQFBgcICQoLDA0ODw", "_-_-_-_-_-_-_-_-_-_-_w")


def same(one, other):
    def parts(state):
        cursor = state.cursor
        place = cursor and (cursor.method, cursor.position, cursor.start, dict(cursor.seen), cursor.listing)
        return place, state.polls, state.due, state.unfinished, state.done, list(state.open.items()), state.completed

    return parts(one) == parts(other)


# What this release writes and every later one must read.
GOLDEN = [
    ("0600", WatchState()),
    (
        "0603060504076f727468616e6304023137040f323032363031303154303030303030060004000103024016000000000000",
        WatchState(Cursor("orthanc", "17", "20260101T000000"), 3, 5.5),
    ),
    (
        "0605060504046c6973740400040006020602040006020321000102030405060708090a0b0c0d0e0f0ffeffeffeffeffeffeffeffeffeff"
        "eff0060006020408323032363031303106020312c71c71c71c71c71c71c71c71c71c71c710000601040334353104036162630100020000"
        "00000000000009000901",
        WatchState(
            Cursor("list", "", "", {"": frozenset(DIGESTS), "20260101": frozenset({"451", "x" * 22})}, "abc"), done=True
        ),
    ),
    (
        "0607060504046c697374040004000600040001070241cdcd650000000009010900060206020403312e3202401400000000000006020403312"
        "e3102401900000000000006020321ffeffeffeffeffeffeffeffeffeffeff0000102030405060708090a0b0c0d0e0f00600",
        WatchState(Cursor("list"), 7, 1e9, True, False, {"1.2": 5.0, "1.1": 6.25}, (DIGESTS[1], DIGESTS[0])),
    ),
]


@pytest.mark.parametrize(("encoded", "state"), GOLDEN)
def test_states_travel_exactly_and_are_read_by_later_releases(encoded, state):
    coder = WatchProvider(True).restriction_coder()
    assert coder.encode(state).hex() == encoded
    assert same(coder.decode(bytes.fromhex(encoded)), state)
    assert pickler.loads(pickler.dumps(coder)) == coder


def test_a_state_of_a_newer_release_is_refused():
    with pytest.raises(ValueError, match="a newer release"):
        WatchStateCoder().decode(FastPrimitivesCoder().encode((None,) * 8))


def test_states_are_small():
    members = frozenset(watches.digest_of(str(number)) for number in range(1000))
    size = len(WatchStateCoder().encode(WatchState(Cursor("list", seen={"": members}))))
    assert size < 16.5 * 1000 + 50


# Clocks ---------------------------------------------------------------------------------------------------------------


class Clock:
    """A wall clock and a monotonic clock that only the test moves."""

    def __init__(self):
        self.wall, self.steady = 1_800_000_000.25, 1000.0

    def time(self):
        return self.wall

    def monotonic(self):
        return self.steady

    def pass_by(self, seconds, step=0.0):
        """Lets time pass, and sets the wall clock by a step."""
        self.steady += seconds
        self.wall += seconds + step


class Scripted:
    """A change source with answers that the test writes."""

    method = "list"

    def __init__(self):
        self.answers = []

    def poll(self, client, cursor, *, start, max_changes):
        answer = self.answers.pop(0) if self.answers else ()
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Changes) else Changes(tuple(map(Resource, answer)), Cursor("list"))


class Driver:
    """Calls a watch's DoFn as a runner does: each poll with a restriction that was encoded, and a new estimator."""

    def __init__(self, monkeypatch, directory, **options):
        self.clock = Clock()
        monkeypatch.setattr(watches, "time", self.clock)
        kind = options.pop("kind", WatchForCompleteStudies)
        self.transform = kind(str(directory), interval=10, **options)
        self.source = self.transform.source = Scripted()
        self.state, self.watermark, self.ended = WatchState(), None, False
        self.dofn = self.process()

    def process(self):
        """The DoFn in a process that has not polled yet."""
        watches._PACE = _Pace()
        schedule = watches._Schedule(
            "all", self.transform.stop, 10.0, self.transform.max_polls, 10_000, self.transform.quiet
        )
        dofn = watches._BoundedWatch(self.transform.endpoint, self.source, "Watch", schedule, collect=True)
        dofn.setup()
        return dofn

    def poll(self, *answer, passing=10.0, step=0.0):
        """Lets time pass, polls once, and gives the outputs with their times."""
        self.clock.pass_by(passing, step)
        if answer:
            self.source.answers.append(*answer)
        return self.call()

    def call(self):
        tracker = ThreadsafeRestrictionTracker(WatchTracker(self.state, True))
        estimator = ManualWatermarkEstimator(self.watermark)
        outputs = list(self.dofn.watch(RestrictionTrackerView(tracker), estimator))
        assert not self.source.answers, "the archive was not asked"
        tracker.check_done()
        deferred = tracker.deferred_status()
        self.ended = deferred is None
        self.wait = None if self.ended else float(deferred[1].micros) / 1e6
        coder = WatchStateCoder()
        self.state = tracker.current_restriction() if self.ended else coder.decode(coder.encode(deferred[0]))
        before, self.watermark = self.watermark, estimator.current_watermark()
        for output in outputs:
            value = getattr(output, "value", output)
            value = value if hasattr(value, "timestamp") else output
            assert before is None or value.timestamp >= before, "an element was late"
        return [
            output.value.study_instance_uid
            for output in outputs
            if isinstance(getattr(output, "value", None), Resource)
        ]


@pytest.fixture
def drive(monkeypatch, tmp_path):
    monkeypatch.setattr(watches, "_PACE", watches._PACE)

    def driver(**options):
        made = Driver(monkeypatch, tmp_path, **options)
        drivers.append(made)
        return made

    drivers = []
    yield driver
    for made in drivers:
        made.dofn.teardown()


@pytest.mark.parametrize("step", [-5.0, -3600.0, 5.0, 3600.0, 86400.0 * 400])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_clock_that_is_set_disturbs_no_watch(drive, step, elsewhere):
    watch = drive(kind=WatchForStudies)
    assert watch.poll({"1.1"}) == ["1.1"]
    watermark = watch.watermark
    if elsewhere:
        watch.dofn.teardown()
        watch.dofn = watch.process()
    # One that is not to be polled yet waits for one interval at most.
    watch.clock.pass_by(0, step)
    assert watch.dofn._remaining(watch.state) <= 10.0
    assert watch.poll({"1.2"}) == ["1.2"]
    assert watch.watermark >= watermark
    assert watch.wait == pytest.approx(10.0, abs=0.1)
    # Setting it right again disturbs it no more.
    assert watch.poll({"1.3"}, step=-step) == ["1.3"]
    assert watch.watermark >= watermark


def test_a_clock_that_steps_back_fails_no_pipeline(monkeypatch, archive, held):
    class Stepping:
        monotonic = staticmethod(time.monotonic)
        steps = [0.0]

        @classmethod
        def time(cls):
            return time.time() + cls.steps[0]

    class Stepped(Growing):
        def poll(self, client, cursor, *, start, max_changes):
            Stepping.steps[0] -= 5.0
            return super().poll(client, cursor, start=start, max_changes=max_changes)

    monkeypatch.setattr(watches, "time", Stepping)
    watch = WatchForInstances(str(archive), start="all", max_polls=3, interval=QUICK, max_changes=5)
    watch.source = Stepped(str(archive))
    with pipeline() as p:
        assert_that(p | watch, equal_to(held))
    assert Stepping.steps[0] < -15.0


def test_the_pace_outlives_a_clock_that_is_set(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(watches, "time", clock)
    pace = _Pace()
    assert pace.remaining("a", 10.0, 0.0) <= 0
    assert pace.remaining("a", 10.0, clock.wall + 10) == 10.0
    # The clock of the process that polled last is an hour ahead: that is waited for once, and not for an hour.
    due = clock.wall + 3600
    assert pace.remaining("a", 10.0, due) == 10.0
    clock.pass_by(10)
    assert pace.remaining("a", 10.0, due) == 0
    due = clock.wall + 10
    pace.begin("a", 10.0, due)
    # It was set while this process knows better.
    for step in (3600, -7200):
        clock.pass_by(0, step)
        assert pace.remaining("a", 10.0, due) == 10.0
    assert pace.step("a", 10.0, due) == -3600
    assert pace.step("a", 10.0, due + 1) == pace.step("b", 10.0, due) == 0.0
    # A bundle that is repeated, from a place before, does not poll again at once.
    assert pace.remaining("a", 10.0, 0.0) == 10.0
    assert pace.remaining("b", 10.0, 0.0) <= 0
    assert MAX_WAIT > 0


# Complete studies -----------------------------------------------------------------------------------------------------


def test_a_study_comes_when_nothing_of_it_arrives_any_more(drive):
    watch = drive(quiet=25)
    assert watch.poll({"1.1", "1.2"}) == []
    assert watch.poll({"1.1"}) == []
    assert watch.poll() == []
    assert watch.poll() == ["1.2"]
    assert watch.poll() == ["1.1"]
    assert watch.poll() == []
    # What changes again comes again.
    before = TALLY.snapshot().get("completed_again", 0)
    assert [watch.poll({"1.1"}), watch.poll(), watch.poll(), watch.poll()] == [[], [], [], ["1.1"]]
    assert TALLY.snapshot()["completed_again"] - before == 1
    assert watch.state.open == {}


def test_nothing_is_at_rest_while_the_archive_is_not_asked(drive):
    watch = drive(quiet=25)
    watch.poll({"1.1", "1.2"})
    for _ in range(50):
        assert watch.poll(OSError("away")) == []
    # What arrived meanwhile begins a new quiet period; the other study had its own.
    assert watch.poll({"1.1"}) == ["1.2"]
    assert [watch.poll(), watch.poll(), watch.poll()] == [[], [], ["1.1"]]


def test_the_rest_of_a_poll_is_waited_for(drive):
    watch = drive(quiet=15)
    watch.poll({"1.1"})
    watch.poll()
    part = Changes((Resource("1.2"),), Cursor("list"), more=True)
    assert watch.poll(part) == []
    assert watch.poll({"1.1"}, passing=0.0) == []
    assert [watch.poll(), watch.poll()] == [[], ["1.2", "1.1"]]


def test_nothing_is_at_rest_by_a_poll_that_lacks_something(drive):
    watch = drive(quiet=15)
    watch.poll({"1.1"})
    watch.poll()
    incomplete = Changes((), Cursor("list"), failures=(Failure("Watch", "rows are missing"),))
    assert [watch.poll(incomplete), watch.poll()] == [[], ["1.1"]]


def test_a_poll_is_finished_also_when_the_end_comes_meanwhile(drive):
    watch = drive(kind=WatchForStudies)
    watch.transform.stop = datetime.fromtimestamp(watch.clock.wall + 11, timezone.utc)
    watch.dofn = watch.process()
    assert watch.poll(Changes((Resource("1.1"),), Cursor("list"), more=True)) == ["1.1"]
    assert watch.poll({"1.2"}) == ["1.2"]
    assert watch.ended


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_quiet_periods_are_not_measured_by_a_clock_that_is_set(drive, step):
    watch = drive(quiet=25)
    watch.poll({"1.1"})
    assert watch.poll(step=step) == []
    assert watch.poll() == []
    assert watch.poll() == ["1.1"]


def test_quiet_periods_go_on_in_a_worker_whose_clock_is_behind(drive):
    watch = drive(quiet=25)
    watch.poll({"1.1"})
    watch.dofn.teardown()
    watch.dofn = watch.process()
    watch.clock.pass_by(0, -3600.0)
    watch.dofn._remaining(watch.state)
    assert [watch.poll() for _ in range(4)] == [[], [], [], ["1.1"]]


def test_the_studies_on_their_way_to_rest_are_bounded(drive, monkeypatch, caplog):
    monkeypatch.setattr(watches, "MAX_OPEN", 2)
    monkeypatch.setattr(watches, "MAX_COMPLETED", 1)
    watch = drive(quiet=25)
    watch.poll(["1.1", "1.2"])
    assert watch.poll(["1.1", "1.3"]) == ["1.2"]
    assert "before their quiet period is over" in caplog.text
    assert list(watch.state.open) == ["1.1", "1.3"]
    assert watch.poll() == watch.poll() == []
    assert watch.poll() == ["1.1", "1.3"]
    assert len(watch.state.completed) == 1


@pytest.mark.parametrize("end", ["max_polls", "stop"])
def test_an_end_tells_what_is_not_at_rest(drive, caplog, end):
    watch = drive(quiet=15, max_polls=3 if end == "max_polls" else None)
    if end == "stop":
        watch.transform.stop = datetime.fromtimestamp(watch.clock.wall + 31, timezone.utc)
        watch.dofn = watch.process()
    before = TALLY.snapshot().get("studies_left_open", 0)
    watch.poll({"1.1"})
    watch.poll()
    with caplog.at_level(logging.WARNING):
        assert watch.poll({"1.2"}) == ["1.1"]
    assert watch.ended
    assert TALLY.snapshot()["studies_left_open"] - before == 1
    assert "ends while 1 studies are not at rest" in caplog.text


def test_complete_studies_of_a_server(serve, folder, arrivals):
    server = serve(folder)
    Growing.waiting = list(arrivals)
    watch = WatchForCompleteStudies(
        server.url, start="all", max_polls=9, interval=QUICK, quiet=QUICK / 2, method="list"
    )

    class GrowingStudies(Growing):
        def __init__(self, url):
            self.url = url
            self.source = watch.source

    watch.source = GrowingStudies(server.url)
    p = pipeline()
    found = p | watch
    study = Resource(Instance.from_path(arrivals[0]).reference.study_instance_uid)
    assert_that(found, equal_to([study]))
    result = p.run()
    counters = {
        item.key.metric.name: item.committed
        for item in result.metrics().query(MetricsFilter().with_namespace("dicomweb_io"))["counters"]
    }
    assert (counters["completed"], counters["changes"], counters["polls"]) == (1, 5, 9)


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


def test_it_pickles_and_shows_no_secret():
    endpoint = Endpoint("https://user:secret@pacs.example/rs", headers={"X-Key": "hidden"})
    watch = pickler.loads(pickler.dumps(WatchForStudies(endpoint, {"PatientName": "DOE^JOHN"}, interval=timedelta(1))))
    shown = {item.key: item.value for item in DisplayData.create_from(watch).items}
    assert (shown["filters"], shown["interval"], shown["method"]) == ("PatientName", 86400.0, "study_date")
    assert not any(word in str(shown) for word in ("secret", "hidden", "DOE"))
