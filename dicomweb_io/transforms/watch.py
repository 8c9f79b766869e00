"""What is new in an archive, as references: sources that poll it, and a transform that parses its notifications.

`WatchForStudies`, `WatchForInstances` and `WatchForCompleteStudies` are unbounded sources. A splittable DoFn polls a
change source (`dicomweb_io.changes`) again and again. Its restriction is the position, with the studies that have not
come to rest. What a poll finds and the position after it are claimed together, so a repeated bundle continues from the
same position, and nothing is reported twice or left out. Between polls the DoFn defers to the runner. If the runner
comes back too early (FnApiRunner does not wait at all, measured with Beam 2.77), the DoFn waits itself: no archive is
polled more often than the interval.

Clocks may be set while a watch runs, and differ between workers. Watermark and timestamps never go back, and what a
process measures itself it measures by its monotonic clock.

`ParseNotifications` makes references of the messages that archives send: Google Pub/Sub, Azure's change feed, Orthanc.
"""

from __future__ import annotations

import base64
import logging
import math
import re
import threading
import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

import apache_beam as beam
from apache_beam.coders import Coder, FastPrimitivesCoder
from apache_beam.coders.typecoders import registry
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.pvalue import PBegin, TaggedOutput
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.display import DisplayDataItem
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Duration, Timestamp

from dicomweb_io.changes import (
    DEFAULT_MAX_CHANGES,
    MAX_OPEN,
    ChangeMethod,
    Changes,
    ChangeSource,
    Cursor,
    Start,
    WatchLevel,
    change_source,
    check_start,
    digest_of,
    is_new_in_azure,
    moment_of,
    reference_of_azure,
    take_rested,
    uids_of_orthanc,
)
from dicomweb_io.client import DICOMClient
from dicomweb_io.dicom import json_decode
from dicomweb_io.elements import Failure, Resource, shown_keys
from dicomweb_io.endpoint import Endpoint, EndpointLike
from dicomweb_io.failures import RECOVERABLE
from dicomweb_io.pool import Lease, Room
from dicomweb_io.transforms._core import (
    FAILURES,
    Converting,
    DICOMwebTransform,
    FailureMode,
    LeasingDoFn,
    PooledDoFn,
    Problem,
    TransformFailed,
    encodable_failure,
    piped_by_member,
    problem_of,
    several_windows,
)
from dicomweb_io.transforms.coders import register
from dicomweb_io.transforms.metrics import count, count_traffic

logger = logging.getLogger("dicomweb_io")

_IDLE_SOURCES = "shutdown_sources_after_idle_ms"

MAX_WAIT = 5.0
"""Seconds that the DoFn waits by itself at most before it defers to the runner."""

MAX_COMPLETED = 4_096
"""Reported studies that are remembered, to count those that are reported again."""

_DRIFT = 1.0
"""Seconds by which two clocks may differ without one of them having been set."""

_ORTHANC = "orthanc"
_GOOGLE_PATH = re.compile(
    r"(?:.*/)?projects/[^/]+/locations/[^/]+/datasets/[^/]+/dicomStores/[^/]+/dicomWeb/(studies/.+)\Z", re.DOTALL
)
_ORTHANC_LEVELS: dict[str, WatchLevel] = {"NewInstance": "instance", "NewStudy": "study", "StableStudy": "study"}


@piped_by_member
class Watched(NamedTuple):
    """The output of a watch with ``failures="collect"``."""

    references: Any
    failures: Any


@dataclass(frozen=True, eq=False)
class WatchState:
    """The place that a watch has reached: its restriction.

    Attributes:
        cursor: Where the last poll ended; None before the first.
        polls: How many polls were made.
        due: The wall-clock time in seconds before which the archive must not be polled.
        unfinished: Whether the last poll has more to report, so that the next one follows at once.
        done: Whether nothing is left to do.
        open: The studies that have not come to rest, with the wall-clock time of their last change.
        completed: Digests of the studies that were reported at rest last.
    """

    cursor: Cursor | None = None
    polls: int = 0
    due: float = 0.0
    unfinished: bool = False
    done: bool = False
    open: Mapping[str, float] = field(default_factory=dict)
    completed: tuple[str, ...] = ()


_PRIMITIVES = FastPrimitivesCoder().get_impl()
_DIGEST_LENGTH = len(digest_of(""))
_DIGEST = re.compile(rf"[\w-]{{{_DIGEST_LENGTH}}}\Z", re.ASCII)
_NOTHING: tuple[Any, ...] = (None, 0, 0.0, False, False, (), (b"", ()))


class WatchStateCoder(Coder):  # type: ignore[misc, unused-ignore]
    """How a watch's restriction is stored: compact, and readable by later releases.

    A tuple of fields; those at the end that have their defaults are left out, and filled in when decoding. A digest
    takes 16.5 bytes, so the place of a search-based watch with 100,000 instances in its window takes 1.65 MB.
    """

    def encode(self, value: WatchState) -> bytes:
        """Encodes a state."""
        cursor = value.cursor
        items: list[Any] = [
            (cursor.method, cursor.position, cursor.start, _packed_seen(cursor.seen), cursor.listing)
            if cursor is not None
            else None,
            value.polls,
            value.due,
            value.unfinished,
            value.done,
            tuple(value.open.items()),
            _packed(value.completed),
        ]
        while items and items[-1] == _NOTHING[len(items) - 1]:
            items.pop()
        return cast(bytes, _PRIMITIVES.encode(tuple(items)))

    def decode(self, encoded: bytes) -> WatchState:
        """Restores a state.

        Raises:
            ValueError: If a newer release wrote it, with fields that this one does not know.
        """
        items: tuple[Any, ...] = _PRIMITIVES.decode(encoded)
        if len(items) > len(_NOTHING):
            raise ValueError("a newer release of dicomweb_io wrote this place of a watch: go on with that one")
        place, polls, due, unfinished, done, studies, completed = items + _NOTHING[len(items) :]
        cursor = None
        if place is not None:
            method, position, start, seen, listing = place
            members = {key: frozenset(_unpacked(*packed)) for key, packed in seen}
            cursor = Cursor(method, position, start, members, listing)
        return WatchState(cursor, polls, due, unfinished, done, dict(studies), _unpacked(*completed))

    def is_deterministic(self) -> bool:
        """True: equal states have equal encodings."""
        return True

    def to_type_hint(self) -> type[WatchState]:
        """The class."""
        return WatchState


def _packed_seen(seen: Mapping[str, frozenset[str]]) -> tuple[Any, ...]:
    return tuple((key, _packed(sorted(members))) for key, members in sorted(seen.items()))


def _packed(texts: Iterable[str]) -> tuple[bytes, tuple[str, ...]]:
    """Digests decoded as one text of base 64, and whatever else there is as it is."""
    digests: list[str] = []
    others: list[str] = []
    for text in texts:
        (digests if _DIGEST.match(text) else others).append(text)
    joined = "".join(digests)
    return base64.urlsafe_b64decode(joined + "A" * (-len(joined) % 4)), tuple(others)


def _unpacked(digests: bytes, others: tuple[str, ...]) -> tuple[str, ...]:
    joined = base64.urlsafe_b64encode(digests).decode("ascii")
    ends = range(_DIGEST_LENGTH, len(joined) + 1, _DIGEST_LENGTH)
    return (*(joined[end - _DIGEST_LENGTH : end] for end in ends), *others)


registry.register_coder(WatchState, WatchStateCoder)


class WatchTracker(RestrictionTracker):  # type: ignore[misc, unused-ignore]
    """Tracks a watch. The state after a poll is claimed; a split hands over all further polls."""

    def __init__(self, state: WatchState, bounded: bool = False) -> None:
        self._state = state
        self._bounded = bounded
        self._ended = state.done

    def current_restriction(self) -> WatchState:
        """The state."""
        return self._state

    def try_claim(self, position: WatchState) -> bool:
        """Moves on to the state after a poll; False if the further polls were handed over."""
        if self._ended:
            return False
        self._state = position
        self._ended = position.done
        return True

    def check_done(self) -> None:
        """Checks that the further polls were handed over, or that there are none.

        Raises:
            ValueError: If neither is the case.
        """
        if not self._ended:
            raise ValueError(f"the watch was left after {self._state.polls} polls without handing back the rest")

    def try_split(self, fraction_of_remainder: float) -> tuple[WatchState, WatchState] | None:
        """Gives away all that is left, whatever the fraction: only one worker may poll the archive."""
        if self._ended:
            return None
        residual = self._state
        self._state, self._ended = replace(residual, done=True), True
        return self._state, residual

    def current_progress(self) -> RestrictionProgress:
        """How much is done. What is still to come is unknown."""
        if self._ended:
            return RestrictionProgress(fraction=1.0)
        return RestrictionProgress(completed=self._state.polls, remaining=1)

    def is_bounded(self) -> bool:
        """Whether the watch has an end."""
        return self._bounded


class WatchProvider(RestrictionProvider):  # type: ignore[misc, unused-ignore]
    """Gives a watch its restriction. A drain ends it, whether it is bounded or not."""

    def __init__(self, bounded: bool) -> None:
        self._bounded = bounded

    def initial_restriction(self, element: Any) -> WatchState:
        """Where the watch begins: the element."""
        return cast(WatchState, element)

    def create_tracker(self, restriction: WatchState) -> WatchTracker:
        """A tracker."""
        return WatchTracker(restriction, self._bounded)

    def restriction_size(self, element: Any, restriction: WatchState) -> int:
        """One unit of work, or none."""
        return 0 if restriction.done else 1

    def restriction_coder(self) -> WatchStateCoder:
        """A coder whose encodings a later release reads."""
        return WatchStateCoder()

    def truncate(self, element: Any, restriction: WatchState) -> None:
        """Nothing: what has not been polled yet is not waited for when a pipeline is drained."""


class _Pace:
    """When each watch of this process last polled, and when it is due, by the monotonic clock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}
        self._due: dict[str, tuple[float, float]] = {}

    def remaining(self, watch: str, interval: float, due: float) -> float:
        """Seconds until the next poll is due.

        Args:
            watch: The watch.
            interval: Seconds between its polls.
            due: When the next one is due, by the wall clock of the process that made the last one.
        """
        now = time.monotonic()
        with self._lock:
            known, moment = self._due.get(watch, (None, now))
            if known != due:
                # Another process polled last. The wall clock is looked at once: setting it back must not stop a watch.
                moment = now + min(due - time.time(), interval)
                self._due[watch] = due, moment
            last = self._last.get(watch, -math.inf)
        return max(moment, last + interval) - now

    def begin(self, watch: str, interval: float, due: float) -> None:
        """Notes that a poll begins, and when the next one is due by the wall clock."""
        now = time.monotonic()
        with self._lock:
            self._last[watch] = now
            self._due[watch] = due, now + interval

    def step(self, watch: str, interval: float, due: float) -> float:
        """Seconds by which the wall clock was set since the last poll; 0.0 if another process made that."""
        with self._lock:
            known, moment = self._due.get(watch, (None, 0.0))
            last = self._last.get(watch)
        if known != due or last is None or moment != last + interval:
            return 0.0
        step = (time.time() - (due - interval)) - (time.monotonic() - last)
        return step if abs(step) > _DRIFT else 0.0


_PACE = _Pace()


@dataclass(frozen=True)
class _Schedule:
    """When a watch begins, polls and ends; see the arguments of `WatchForInstances`.

    Attributes:
        quiet: Seconds without a change after which a study is reported; None if every change is.
        stays: Whether one bundle makes all polls, on a runner that would forget what is deferred.
    """

    start: Start
    stop: datetime | None
    interval: float
    max_polls: int | None
    max_changes: int
    quiet: float | None = None
    stays: bool = False

    def ends(self, state: WatchState, next_poll: float) -> bool:
        """Whether there is no further poll at a time in seconds since 1970."""
        if self.max_polls is not None and state.polls >= self.max_polls:
            return True
        return self.stop is not None and next_poll >= self.stop.timestamp()


class _Watch(LeasingDoFn):
    """Polls. It catches its own errors: Beam's exception handling breaks splittable DoFns."""

    def __init__(
        self, endpoint: Endpoint, source: ChangeSource, transform: str, schedule: _Schedule, *, collect: bool
    ) -> None:
        super().__init__(endpoint, transform, collect=collect)
        self._source = source
        self._schedule = schedule
        self._watch = uuid.uuid4().hex

    def setup(self) -> None:
        """Leases the process's client."""
        super().setup()
        self._leaving = threading.Event()

    def teardown(self) -> None:
        """Releases it."""
        self._leaving.set()
        super().teardown()

    def watch(self, tracker: Any, estimator: Any) -> Iterator[Any]:
        """Makes one poll when it is due, and defers the further ones, or makes them too where that loses them."""
        wait = yield from self._poll_if_due(tracker, estimator)
        while wait is not None and self._schedule.stays:
            wait = yield from self._poll_if_due(tracker, estimator)
        if wait is not None:
            tracker.defer_remainder(Duration.of(wait))

    def _poll_if_due(self, tracker: Any, estimator: Any) -> Generator[Any, None, float | None]:
        """Polls, and returns the seconds until the next poll is due; None if there is none for this bundle."""
        state: WatchState = tracker.current_restriction()
        wait = self._remaining(state)
        if wait > 0:
            self._leaving.wait(min(wait, MAX_WAIT))
            wait = self._remaining(state)
        if wait > 0:
            return wait
        began = time.time()
        if not state.unfinished and self._schedule.ends(state, began):
            if tracker.try_claim(replace(state, done=True)):
                self._leave(state)
            return None
        moment = _not_before(estimator.current_watermark(), began)
        interval = self._schedule.interval
        step = _PACE.step(self._watch, interval, state.due)
        _PACE.begin(self._watch, interval, began + interval)
        next_state = replace(state, polls=state.polls + 1, due=began + interval, unfinished=False)
        changes: Changes | None = None
        failures: tuple[Failure, ...] = ()
        try:
            changes = self._poll(state)
        except RECOVERABLE as error:
            # The place stays, so the next poll finds what this one did not.
            problem = problem_of(error, self._transform)
            if not self._collect:
                count("failures")
                problem.raise_it()
            failures = (problem.failure,)
        else:
            failures = tuple(replace(failure, transform=self._transform) for failure in changes.failures)
            next_state = replace(next_state, cursor=changes.cursor)
            if changes.more:
                # However many answers a poll takes, each in its own bundle, it counts as one.
                next_state = replace(next_state, polls=state.polls, due=state.due, unfinished=True)
        references = changes.references if changes is not None else ()
        count("changes", len(references))
        if self._schedule.quiet is not None:
            references, next_state = _at_rest(next_state, changes, self._schedule.quiet, began, step)
        ended = not next_state.unfinished and self._schedule.ends(next_state, next_state.due)
        if not tracker.try_claim(next_state):
            return None
        if not next_state.unfinished:
            count("polls")
        yield from self._outputs(references, failures, moment)
        estimator.set_watermark(moment)
        if ended:
            tracker.try_claim(replace(next_state, done=True))
            self._leave(next_state)
            return None
        return max(self._remaining(next_state), 0.0)

    def _poll(self, state: WatchState) -> Changes:
        lease = cast(Lease, self._lease)
        try:
            return self._source.poll(
                lease.client, state.cursor, start=self._schedule.start, max_changes=self._schedule.max_changes
            )
        finally:
            count_traffic(lease)

    def _outputs(
        self, references: tuple[Resource, ...], failures: tuple[Failure, ...], moment: Timestamp
    ) -> Iterator[Any]:
        for failure in failures:
            count("failures")
            if not self._collect:
                raise TransformFailed(failure)
            yield TaggedOutput(FAILURES, TimestampedValue(encodable_failure(failure), moment))
        for reference in references:
            yield TimestampedValue(reference, moment)

    def _leave(self, state: WatchState) -> None:
        """Says which studies the end of the watch leaves open."""
        if state.open:
            count("studies_left_open", len(state.open))
            logger.warning(
                "%s ends while %d studies are not at rest: %s …",
                self._transform,
                len(state.open),
                next(iter(state.open)),
            )

    def _remaining(self, state: WatchState) -> float:
        # The rest of an unfinished poll does not count as a poll.
        return 0.0 if state.unfinished else _PACE.remaining(self._watch, self._schedule.interval, state.due)


def _not_before(watermark: Timestamp | None, moment: float) -> Timestamp:
    """A time in seconds as a timestamp that no watermark has passed yet, whatever the clock says."""
    # In whole milliseconds, as coders write timestamps: a part of one that is cut off would make an element late.
    timestamp = Timestamp(micros=int(moment * 1000) * 1000)
    return timestamp if watermark is None else max(timestamp, watermark)


def _at_rest(
    state: WatchState, changes: Changes | None, quiet: float, began: float, step: float
) -> tuple[tuple[Resource, ...], WatchState]:
    """The studies of which nothing has arrived for a while, and the state without them.

    Args:
        state: The state after a poll.
        changes: The studies that the poll found changed; None if it failed. Then nothing is known to be at rest.
        quiet: Seconds without a change.
        began: When the poll began. What arrived during it counts as having arrived at its end.
        step: Seconds by which the clock was set since the poll before.
    """
    now = time.time()
    # The clock of another worker may have been ahead.
    studies = {uid: min(moment + step, now) for uid, moment in state.open.items()}
    if changes is None:
        return (), replace(state, open=studies)
    rested, early = take_rested(studies, changes, quiet=quiet, began=began, now=now, most=MAX_OPEN)
    if early:
        count("completed_early", len(early))
        logger.warning(
            "more than %d studies are not at rest: %d are reported before their quiet period is over",
            MAX_OPEN,
            len(early),
        )
    reported = {digest_of(uid): uid for uid in (*rested, *early)}
    count("completed", len(reported))
    count("completed_again", sum(digest in reported for digest in state.completed))
    completed = (*(digest for digest in state.completed if digest not in reported), *reported)[-MAX_COMPLETED:]
    return tuple(map(Resource, reported.values())), replace(state, open=studies, completed=completed)


_BOUNDED, _UNBOUNDED = WatchProvider(bounded=True), WatchProvider(bounded=False)


class _BoundedWatch(_Watch):
    def process(
        self,
        element: WatchState,
        tracker: Any = beam.DoFn.RestrictionParam(_BOUNDED),  # noqa: B008 - Beam's way to ask for it
        estimator: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),  # noqa: B008
    ) -> Iterator[Any]:
        yield from self.watch(tracker, estimator)


class _UnboundedWatch(_Watch):
    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: WatchState,
        tracker: Any = beam.DoFn.RestrictionParam(_UNBOUNDED),  # noqa: B008 - Beam's way to ask for it
        estimator: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),  # noqa: B008
    ) -> Iterator[Any]:
        yield from self.watch(tracker, estimator)


def _seconds(name: str, value: timedelta | float) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not 0 < seconds < math.inf:
        raise ValueError(f"{name} must be a positive number of seconds, not {value!r}")
    return seconds


class _WatchTransform(DICOMwebTransform):
    """The watches; see `WatchForInstances`."""

    _element_type = Resource
    _is_source = True
    _level: WatchLevel
    quiet: float | None = None

    def __init__(
        self,
        endpoint: EndpointLike,
        search_filters: Mapping[str, Any] | None = None,
        *,
        interval: timedelta | float = 60.0,
        start: Start = "now",
        stop: datetime | None = None,
        max_polls: int | None = None,
        method: ChangeMethod = "auto",
        lookback: timedelta | float | None = None,
        cursor: Cursor | None = None,
        max_changes: int = DEFAULT_MAX_CHANGES,
        failures: FailureMode = "raise",
    ) -> None:
        super().__init__(endpoint, failures=failures)
        self.interval = _seconds("interval", interval)
        if max_polls is not None and (not isinstance(max_polls, int) or isinstance(max_polls, bool) or max_polls < 1):
            raise ValueError(f"max_polls must be a positive integer or None, not {max_polls!r}")
        if not isinstance(max_changes, int) or isinstance(max_changes, bool) or max_changes < 1:
            raise ValueError(f"max_changes must be a positive integer, not {max_changes!r}")
        if stop is not None and not isinstance(stop, datetime):
            raise TypeError(f"stop must be a datetime or None, not {type(stop).__name__}")
        self.source = change_source(
            self.endpoint, self._level, search_filters=search_filters, method=method, lookback=lookback
        )
        self.start = check_start(start)
        self.stop = moment_of(stop) if stop is not None else None
        self.max_polls = max_polls
        self.cursor = cursor
        self.max_changes = max_changes
        self._filters = ", ".join(search_filters or ())
        if search_filters:
            self.rows_are_proven = False

    def expand(self, pbegin: PBegin) -> Any:
        """Builds the steps."""
        self._check_begins(pbegin)
        bounded = self.stop is not None or self.max_polls is not None
        _check_idle_sources(pbegin.pipeline.options, bounded)
        kind = _BoundedWatch if bounded else _UnboundedWatch
        # With several workers FnApiRunner (Beam 2.77) forgets what they defer, and the pipeline would end as if all was
        # well after one poll.
        workers = pbegin.pipeline.options.view_as(DirectOptions).direct_num_workers
        schedule = _Schedule(
            self.start, self.stop, self.interval, self.max_polls, self.max_changes, self.quiet, stays=workers != 1
        )
        dofn = kind(self.endpoint, self.source, type(self).__name__, schedule, collect=self.collects)
        begin = pbegin | "Begin" >> beam.Create([WatchState(self.cursor)], reshuffle=False)
        polled = begin | "Poll" >> self._step(dofn, Resource)
        failures = self._report([polled[FAILURES]])
        return Watched(polled["main"], failures) if self._failure_mode == "collect" else polled["main"]

    def display_data(self) -> dict[str, Any]:
        """The endpoint, the interval, and the names of the filters."""
        return {
            **super().display_data(),
            "level": DisplayDataItem(self._level, label="Level"),
            "method": DisplayDataItem(self.source.method, label="Method"),
            "interval": DisplayDataItem(self.interval, label="Seconds between polls"),
            "quiet": DisplayDataItem(self.quiet, label="Quiet seconds").drop_if_none(),
            "max_polls": DisplayDataItem(self.max_polls, label="Maximum number of polls").drop_if_none(),
            "filters": DisplayDataItem(self._filters, label="Filtered by").drop_if_default(""),
        }


def _check_idle_sources(options: PipelineOptions, bounded: bool) -> None:
    """Looks for an option of Flink (Beam's runner of 2.70) that ends a watch at a moment between two polls.

    Raises:
        ValueError: If it would end a watch that is to go on.
    """
    if _IDLE_SOURCES not in options.get_all_options(drop_default=True, retain_unknown_options=True):
        return
    what = f"--{_IDLE_SOURCES} may end a watch between two of its polls, and the job as if all was well"
    if not bounded:
        raise ValueError(f"{what}: leave it out where a watch is to go on")
    logger.warning("%s; without it a watch makes all its polls, and nothing is grouped at its end", what)


class WatchForInstances(_WatchTransform):
    """Reports the instances that arrive in an archive: `Resource` elements, each once, when a poll finds them.

    An element's timestamp is the time of the poll that found it, and the watermark follows the polls, so no element is
    late. The server's profile says how new instances are found (see `dicomweb_io.changes`): by Orthanc's log of
    changes, Azure's change feed, or the time of reception at dcm4chee. Other servers are searched for studies of the
    last days; folders are listed as a whole. What a search finds depends on its window: ``"study_date"`` does not find
    an instance of a study whose StudyDate lies further back than `lookback`.

    The source is unbounded and for runners with streaming, such as Prism. With `stop` or `max_polls` it is bounded, and
    ends. On FnApiRunner nothing passes a shuffle before a source ends (Beam 2.77): there, ``python -m pipelines.watch``
    copies what is new in rounds.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        search_filters: What must match. A feed cannot be filtered, so with a feed each study costs a search.
        interval: Seconds between the beginnings of polls, or a timedelta. The archive is never polled more often.
        start: ``"now"``, ``"all"`` (what is there already comes first), a date, or a datetime (UTC without a zone).
        stop: Make no poll after this moment.
        max_polls: Make at most this many polls. With ``start="now"`` the first one only finds out what is there.
        method: How to find out; see `dicomweb_io.changes.ChangeMethod`.
        lookback: How long after its time something may still arrive: seconds, or a timedelta.
        cursor: Go on from here; `start` is ignored then.
        max_changes: At most this many references in one bundle.
        failures: With ``"raise"`` a poll that fails after all retries fails the bundle, which the runner may repeat.
            With ``"collect"`` the output is a `Watched`; each such poll is a `Failure`, and the next one finds
            what it missed. See also `with_error_handler`.

    Raises:
        TypeError, ValueError: If an argument is not valid.
    """

    _level: WatchLevel = "instance"


class WatchForStudies(_WatchTransform):
    """Reports the studies that arrive in an archive, each once: when it is first seen. More of it may still arrive.

    To get everything that arrives, watch for instances. Arguments as in `WatchForInstances`.
    """

    _level: WatchLevel = "study"


class WatchForCompleteStudies(_WatchTransform):
    """Reports studies when nothing of them has arrived for a while: `Resource` elements with the time of the poll.

    What has changed is found as for `WatchForInstances`: by the archive's feed, or by searches for studies, which
    compare NumberOfStudyRelatedInstances (where rows do not have it, each study costs a search). A study is reported by
    the first complete poll that begins at least `quiet` after the one that last found a change, so a failed poll delays
    it, and nothing is reported while the archive cannot be asked. The quiet periods are part of the watch's place: they
    need no timers, and go on in another worker.

    If more of a reported study arrives, it is reported again when it has come to rest again: process it again. The
    metrics ``completed`` and ``completed_again`` count both. If more than 10,000 studies are not at rest at once, those
    that have been so longest are reported early (``completed_early``, and a warning).

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        search_filters: What must match. A feed cannot be filtered, so with a feed each study costs a search.
        quiet: How long nothing may have arrived: seconds, or a timedelta. It is measured in polls, so make it some
            times the `interval`.
        **options: As in `WatchForInstances`. A watch with an end reports what is at rest by its last poll; the others
            are counted (``studies_left_open``), and a warning is logged.

    Raises:
        TypeError, ValueError: If an argument is not valid.
    """

    _level: WatchLevel = "study_change"

    def __init__(
        self,
        endpoint: EndpointLike,
        search_filters: Mapping[str, Any] | None = None,
        *,
        quiet: timedelta | float = 300.0,
        **options: Any,
    ) -> None:
        super().__init__(endpoint, search_filters, **options)
        self.quiet = _seconds("quiet", quiet)


@piped_by_member
class ParsedNotifications(NamedTuple):
    """The output of `ParseNotifications` with ``failures="collect"``."""

    references: Any
    failures: Any


@dataclass(frozen=True)
class OrthancChange:
    """A change that Orthanc reports with its own identifier."""

    identifier: str
    level: WatchLevel


register(OrthancChange)


def parse_notification(message: Any) -> Resource | OrthancChange | None:
    """Makes a reference of one message.

    Args:
        message: One of

            - a message of Google Pub/Sub (`apache_beam.io.gcp.pubsub.PubsubMessage`, or anything with ``data`` and
              ``attributes``), or its data: the path
              ``projects/P/locations/L/datasets/D/dicomStores/S/dicomWeb/studies/…``, as Beam's ``FormatToQido`` takes;
            - a row of the change feed of Azure's DICOM service, as a dict or as JSON;
            - a change of Orthanc's log (``GET /changes``), as a dict or as JSON;
            - a DICOMweb URI, from ``studies/`` on or absolute.

    Returns:
        The reference; an `OrthancChange`, which Orthanc has to resolve; or None for a message that reports nothing new,
        such as a deletion.

    Raises:
        TypeError, ValueError: If the message is none of these.
    """
    attributes = getattr(message, "attributes", None)
    if isinstance(attributes, Mapping) and "delete" in str(attributes.get("action", "")).lower():
        return None
    data = getattr(message, "data", message)
    if isinstance(data, (bytes, bytearray, memoryview)):
        data = bytes(data).decode("utf-8")
    if isinstance(data, str):
        text = data.strip()
        if not text.startswith("{"):
            return _of_path(text)
        data = json_decode.loads(text)
    if not isinstance(data, Mapping):
        raise TypeError(
            f"a notification is a Pub/Sub message, bytes, text or a mapping, but this is {type(message).__name__}"
        )
    return _of_mapping(data)


def _of_path(text: str) -> Resource:
    google = _GOOGLE_PATH.match(text)
    return Resource.of(google[1].rstrip("/") if google is not None else text)


def _of_mapping(data: Mapping[Any, Any]) -> Resource | OrthancChange | None:
    entry = {str(key).lower(): value for key, value in data.items()}
    if "changetype" in entry:
        level = _ORTHANC_LEVELS.get(str(entry["changetype"]))
        if level is None:
            return None
        identifier = entry.get("id")
        if not isinstance(identifier, str) or not identifier:
            raise ValueError("the change has no ID")
        return OrthancChange(identifier, level)
    if "sopinstanceuid" in entry and "action" in entry:
        return reference_of_azure(entry) if is_new_in_azure(entry) else None
    raise ValueError("the message is neither a row of a change feed nor a change of Orthanc: " + _keys(entry))


def _keys(entry: Mapping[str, Any]) -> str:
    return f"its keys are {shown_keys(sorted(entry))}" if entry else "it is empty"


class _Parse(Converting):
    def __init__(self, transform: str, *, collect: bool, resolves: bool) -> None:
        super().__init__(transform, collect=collect)
        self._resolves = resolves

    def convert(self, element: Any) -> Any:
        parsed = parse_notification(element)
        if not isinstance(parsed, OrthancChange):
            return parsed
        if not self._resolves:
            raise ValueError("a change of Orthanc contains no UIDs: pass the endpoint to ParseNotifications")
        return TaggedOutput(_ORTHANC, parsed)

    def process(self, element: Any) -> Iterator[Any]:
        for parsed in super().process(element):
            if parsed is None:
                count("notifications_ignored")
            else:
                yield parsed


class _AskOrthanc(PooledDoFn):
    """Asks Orthanc what its identifiers are."""

    def produce(self, subject: OrthancChange, client: DICOMClient, room: Room) -> Iterator[Any]:
        references = uids_of_orthanc(client, [subject.identifier], subject.level)
        if subject.identifier in references:
            yield references[subject.identifier]
        else:
            yield Problem(
                Failure(self._transform, f"Orthanc has no {subject.level} {subject.identifier} (any more)", status=404)
            )

    def _key(self, subject: OrthancChange) -> Any:
        return subject


class ParseNotifications(DICOMwebTransform):
    """Makes references of the messages in which archives report new objects.

    It takes messages of Google Pub/Sub for Healthcare API stores, rows of Azure's change feed, changes of Orthanc's
    log, and DICOMweb URIs; see `parse_notification`. A message about a deletion is ignored and counted
    (``notifications_ignored``); a message of any other kind is a failure.

    Pub/Sub and most brokers may deliver a message more than once: then the reference comes more than once too.

    Args:
        endpoint: The archive. Only needed for changes of Orthanc, which name no UIDs, so that Orthanc has to be asked.
        failures: ``"raise"`` or ``"collect"``; with the latter the output is a `ParsedNotifications`. See also
            `with_error_handler`.
    """

    _element_type = Resource

    def __init__(self, endpoint: EndpointLike | None = None, *, failures: FailureMode = "raise") -> None:
        # Without an archive nothing is ever asked, so any address will do for the base class.
        super().__init__(endpoint if endpoint is not None else ".", failures=failures)
        self._archive = Endpoint.of(endpoint) if endpoint is not None else None

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        name, collects = type(self).__name__, self.collects
        parsed = pcollection | "Parse" >> (
            self._step(
                _Parse(name, collect=collects, resolves=self._archive is not None),
                Resource,
                **{_ORTHANC: OrthancChange},
            )
        )
        references, failures = parsed["main"], [parsed[FAILURES]]
        if self._archive is not None:
            dofn = _AskOrthanc(self._archive, name, collect=collects, hold=several_windows(pcollection))
            spread = parsed[_ORTHANC] | "ReshuffleChanges" >> beam.Reshuffle()
            asked = spread | "AskOrthanc" >> self._step(dofn, Resource)
            references = (references, asked["main"]) | "Join" >> beam.Flatten()
            failures.append(asked[FAILURES])
        failed = self._report(failures)
        return ParsedNotifications(references, failed) if self._failure_mode == "collect" else references

    def display_data(self) -> dict[str, Any]:
        """The endpoint, if there is one."""
        shown = super().display_data()
        if self._archive is None:
            shown.pop("endpoint")
        return shown
