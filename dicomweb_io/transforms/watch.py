"""What is new in an archive, as references: sources that poll it, and a transform that parses its notifications.

`WatchForStudies` and `WatchForInstances` are unbounded sources. A splittable DoFn polls a change source
(`dicomweb_io.changes`) again and again. Its restriction is the position. What a poll finds and the position after it
are claimed together, so a repeated bundle continues from the same position, and nothing is reported twice or left out.
Between polls the DoFn defers to the runner. If the runner comes back too early (FnApiRunner does not wait at all,
measured with Beam 2.77), the DoFn waits itself: no archive is polled more often than the interval by wall clock.

`ParseNotifications` makes references of the messages that archives send: Google Pub/Sub, Azure's change feed, Orthanc.
"""

from __future__ import annotations

import math
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

import apache_beam as beam
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.pvalue import PBegin, TaggedOutput
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.display import DisplayDataItem
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Duration, Timestamp

from dicomweb_io.changes import (
    DEFAULT_MAX_CHANGES,
    ChangeMethod,
    ChangeSource,
    Cursor,
    Start,
    WatchLevel,
    change_source,
    check_start,
    is_new_in_azure,
    moment_of,
    reference_of_azure,
    uids_of_orthanc,
)
from dicomweb_io.client import DICOMClient
from dicomweb_io.dicom import json_decode
from dicomweb_io.elements import Failure, Resource
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
    piped_by_member,
    problem_of,
    several_windows,
)
from dicomweb_io.transforms.metrics import count, count_traffic

MAX_WAIT = 5.0
"""Seconds that the DoFn waits by itself at most before it defers to the runner."""

_ORTHANC = "orthanc"
_GOOGLE_PATH = re.compile(
    r"(?:.*/)?projects/[^/]+/locations/[^/]+/datasets/[^/]+/dicomStores/[^/]+/dicomWeb/(studies/.+)\Z", re.DOTALL
)
_ORTHANC_LEVELS: dict[str, WatchLevel] = {"NewInstance": "instance", "NewStudy": "study", "StableStudy": "study"}
_SHOWN = 100


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
    """

    cursor: Cursor | None = None
    polls: int = 0
    due: float = 0.0
    unfinished: bool = False
    done: bool = False


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
    """Gives a watch its restriction. A drain ends it, as is the default for unbounded sources."""

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


class _Pace:
    """When each watch of this process last polled, by the monotonic clock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}

    def remaining(self, watch: str, interval: float, due: float) -> float:
        """Seconds until the next poll is due, by this process's memory or by the wall clock."""
        with self._lock:
            last = self._last.get(watch)
        # A wall clock that was set back must not stop the watch.
        by_wall_clock = min(due - time.time(), interval)
        by_memory = -math.inf if last is None else last + interval - time.monotonic()
        return max(by_wall_clock, by_memory)

    def begin(self, watch: str) -> None:
        """Notes that a poll begins."""
        with self._lock:
            self._last[watch] = time.monotonic()


_PACE = _Pace()


@dataclass(frozen=True)
class _Schedule:
    """When a watch begins, polls and ends; see the arguments of `WatchForInstances`."""

    start: Start
    stop: datetime | None
    interval: float
    max_polls: int | None
    max_changes: int

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
        """Makes one poll when it is due, and defers the further ones."""
        state: WatchState = tracker.current_restriction()
        wait = self._remaining(state)
        if wait > 0:
            self._leaving.wait(min(wait, MAX_WAIT))
            wait = self._remaining(state)
        if wait > 0:
            tracker.defer_remainder(Duration.of(wait))
            return
        if self._schedule.ends(state, time.time()):
            tracker.try_claim(replace(state, done=True))
            return
        if not state.unfinished:
            _PACE.begin(self._watch)
        began = time.time()
        next_state = replace(state, polls=state.polls + 1, due=began + self._schedule.interval, unfinished=False)
        references: tuple[Resource, ...] = ()
        failures: tuple[Failure, ...] = ()
        try:
            changes = self._source.poll(
                cast(Lease, self._lease).client,
                state.cursor,
                start=self._schedule.start,
                max_changes=self._schedule.max_changes,
            )
        except RECOVERABLE as error:
            # The place stays, so the next poll finds what this one did not.
            problem = problem_of(error, self._transform)
            if not self._collect:
                count("failures")
                problem.raise_it()
            failures = (problem.failure,)
        else:
            references = changes.references
            failures = tuple(replace(failure, transform=self._transform) for failure in changes.failures)
            next_state = replace(next_state, cursor=changes.cursor)
            if changes.more:
                # However many answers a poll takes, each in its own bundle, it counts as one.
                next_state = replace(next_state, polls=state.polls, due=state.due, unfinished=True)
        ended = not next_state.unfinished and self._schedule.ends(next_state, next_state.due)
        if not tracker.try_claim(next_state):
            return
        if not next_state.unfinished:
            count("polls")
        count("changes", len(references))
        yield from self._outputs(references, failures, began)
        estimator.set_watermark(Timestamp.of(began))
        count_traffic(cast(Lease, self._lease))
        if ended:
            tracker.try_claim(replace(next_state, done=True))
        else:
            tracker.defer_remainder(Duration.of(max(self._remaining(next_state), 0.0)))

    def _outputs(self, references: tuple[Resource, ...], failures: tuple[Failure, ...], moment: float) -> Iterator[Any]:
        for failure in failures:
            count("failures")
            if not self._collect:
                raise TransformFailed(failure)
            yield TaggedOutput(FAILURES, TimestampedValue(failure, moment))
        for reference in references:
            yield TimestampedValue(reference, moment)

    def _remaining(self, state: WatchState) -> float:
        # The rest of an unfinished poll does not count as a poll.
        return 0.0 if state.unfinished else _PACE.remaining(self._watch, self._schedule.interval, state.due)


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


class _WatchTransform(DICOMwebTransform):
    """The two watches; see `WatchForInstances`."""

    _element_type = Resource
    _is_source = True
    _level: WatchLevel

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
        self.interval = interval.total_seconds() if isinstance(interval, timedelta) else float(interval)
        if not 0 < self.interval < math.inf:
            raise ValueError(f"interval must be a positive number of seconds, not {interval!r}")
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
        if not isinstance(pbegin, PBegin):
            raise TypeError(f"{type(self).__name__} is a source: apply it to a pipeline, not to a collection")
        kind = _UnboundedWatch if self.stop is None and self.max_polls is None else _BoundedWatch
        schedule = _Schedule(self.start, self.stop, self.interval, self.max_polls, self.max_changes)
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
            "max_polls": DisplayDataItem(self.max_polls, label="Maximum number of polls").drop_if_none(),
            "filters": DisplayDataItem(self._filters, label="Filtered by").drop_if_default(""),
        }


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
    return ("its keys are " + ", ".join(sorted(entry))[:_SHOWN]) if entry else "it is empty"


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
