"""What the transforms share.

- `FailingTransform` and `DICOMwebTransform`: the endpoint, and what becomes of failures;
- `piped_by_member`: for the named tuples that transforms give;
- `PooledDoFn`: works through the bounded pool that all bundles of a process share, and keeps windows, times and panes;
- `BetweenArchives`: for what has the client of a second archive too;
- `AsReferences`: from whatever names something to references;
- `PartSpool`: large instances, frames and values go through files, so that none is in memory unless it may be;
- `report_lineage`: which archives a pipeline read from and wrote to.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar, Union, cast
from urllib.parse import urlsplit

import apache_beam as beam
from apache_beam.metrics.metric import Lineage
from apache_beam.options.pipeline_options import TypeOptions
from apache_beam.pvalue import PBegin, TaggedOutput
from apache_beam.transforms.display import DisplayDataItem
from apache_beam.transforms.window import FixedWindows, GlobalWindows, Sessions
from apache_beam.typehints import TypeCheckError
from apache_beam.typehints.native_type_compatibility import convert_to_beam_type
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.typehints.typehints import is_consistent_with
from apache_beam.utils.windowed_value import PANE_INFO_UNKNOWN, WindowedValue
from typing_extensions import Self

from dicomweb_io.client import DICOMClient
from dicomweb_io.dicom.json_decode import encodable
from dicomweb_io.elements import (
    LEVELS,
    UID_KEYWORDS,
    Bulkdata,
    Difference,
    Failure,
    Frame,
    Instance,
    RenderedImage,
    Resource,
    SearchLevel,
    SearchQuery,
    StoredInstance,
    shown_keys,
)
from dicomweb_io.endpoint import Endpoint, EndpointLike, literal_secrets
from dicomweb_io.errors import UserFunctionError, safe_url
from dicomweb_io.failures import RECOVERABLE, describe_element, failure_of, not_tried
from dicomweb_io.listing import InstanceGroup
from dicomweb_io.pool import DEFAULT_MAX_BYTES, BoundedPool, Lane, Lease, Room, shared_client
from dicomweb_io.spool import PrivateDirectory
from dicomweb_io.transforms.metrics import Traffic, count

logger = logging.getLogger("dicomweb_io")

FAILURES = "failures"
"""The tag of the output that carries `Failure` elements."""

FailureMode = Literal["raise", "collect"]

Role = Literal["source", "sink"]

# The systems under which Beam's own file systems report what they read; everything behind them is a path.
_SYSTEMS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}

ReferenceInput = (
    Resource | str | dict[str, Any] | tuple[str, ...] | Instance | StoredInstance | Frame | RenderedImage | Difference
)
"""What names an object (see `Resource.of`). Typed rows, which have no common class, are let in by their columns."""

T = TypeVar("T", Instance, Frame, Bulkdata)
D = TypeVar("D", bound="PooledDoFn")
R = TypeVar("R", bound=tuple[Any, ...])


class TransformFailed(RuntimeError):
    """Fails the pipeline, because something could not be done and the transform does not collect failures.

    Attributes:
        failure: What, why, and whether trying again could help.
    """

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        subject = failure.reference.uri if failure.reference is not None else failure.source or failure.element
        super().__init__(
            f"{failure.transform} failed"
            + (f" for {subject}" if subject else "")
            + f": {failure.message} (use .with_error_handler(…) or failures='collect' to continue without it)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.failure,)


@dataclass(frozen=True)
class Problem:
    """A failure on its way from a pool thread to the bundle's thread, with the exception if there was one."""

    failure: Failure
    error: BaseException | None = None

    def raise_it(self) -> None:
        """Fails the bundle."""
        raise TransformFailed(self.failure) from self.error


def problem_of(error: BaseException, transform: str, **details: Any) -> Problem:
    """Makes a `Problem` of an exception; see `failure_of`."""
    return Problem(failure_of(error, transform, **details), error)


def piped_by_member(result: type[R]) -> type[R]:
    """Makes ``result | transform`` an error that names the members, unless the transform takes several collections.

    For the named tuples of collections that transforms give, which Beam knows as outputs, unlike other objects.
    """
    result.__or__ = _pipe_result  # type: ignore[assignment, unused-ignore]
    return result


def _pipe_result(result: Any, transform: Any) -> Any:
    label, inner = getattr(transform, "label", transform), getattr(transform, "transform", transform)
    if isinstance(inner, (beam.Flatten, beam.CoGroupByKey)):
        return transform.__ror__(result)
    members = [f"result.{name}" for name in result._fields]
    raise TypeError(
        f"a {type(result).__name__} holds several collections, so {label} needs one of them: take {members[0]} "
        f"(there is also {' and '.join(members[1:])}; result | beam.Flatten() joins them)"
    )


def naming(problem: Problem, element: Any) -> Problem:
    """The problem with a description of its element, if it names nothing that was tried."""
    failure = problem.failure
    if failure.reference is not None or failure.source or failure.url or failure.element:
        return problem
    return Problem(replace(failure, element=describe_element(element)), problem.error)


def call_user(function: Callable[..., Any], element: Any, *, then: Callable[[Any], Any] | None = None) -> Any:
    """Calls a function that the user gave.

    Args:
        function: The function.
        element: Its argument.
        then: What is done with the result at once, such as `list`, which may run the user's code too.

    Raises:
        UserFunctionError: For any `Exception` that it raises. The message names the function, the type and the line,
            and no value of the element.
    """
    try:
        result = function(element)
        return result if then is None else then(result)
    except Exception as error:
        # Not chained: runners print whole chains, and its message may hold values, as that of a KeyError does.
        raise UserFunctionError(f"{_name_of(function)} raised {type(error).__name__}{_line_of(error)}") from None


def _name_of(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(name).rpartition("<locals>.")[2]


def _line_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""


class FailingTransform(beam.PTransform[Any, Any]):
    """A transform that some elements may fail in.

    Args:
        failures: ``"raise"`` fails the pipeline at the first thing that could not be done, after all retries;
            ``"collect"`` makes a `Failure` element of each.
    """

    _element_type: Any = None

    _is_source = False
    """Whether it can be applied to a pipeline."""

    rows_are_proven: bool | None = None
    """Whether what it found in a search surely matches its filters; None if it does not search."""

    level: SearchLevel = "study"
    """What the rows of a search are."""

    def __init__(self, *, failures: FailureMode = "raise") -> None:
        super().__init__()
        if failures not in ("raise", "collect"):
            raise ValueError(f"failures must be 'raise' or 'collect', not {failures!r}")
        self._failure_mode: FailureMode = failures
        self._error_handler: Any = None
        if self._element_type is not None and failures == "raise":
            # A hint holds for every output, so there is none where failures are an output too.
            self.with_output_types(self._element_type)

    def __ror__(self, left: Any, label: str | None = None) -> Any:
        """Applies it with ``|``."""
        if isinstance(left, (beam.Pipeline, PBegin)) and not self._is_source:
            raise TypeError(
                f"{type(self).__name__} is no source: apply it to a collection, such as that of a search or of "
                "beam.Create, not to a pipeline"
            )
        return super().__ror__(left, label)

    def _check_begins(self, pvalue: Any) -> None:
        """Rejects a collection as the input of what is only a source."""
        if not isinstance(pvalue, PBegin):
            raise TypeError(f"{type(self).__name__} is a source: apply it to a pipeline, not to a collection")

    def with_error_handler(self, error_handler: Any) -> Self:
        """Sends failures to one of Beam's error handlers instead of failing the pipeline.

        Args:
            error_handler: A `apache_beam.transforms.error_handling.ErrorHandler`; it receives `Failure` elements. None
                leaves everything as it was.
        """
        self._error_handler = error_handler
        return self

    @property
    def collects(self) -> bool:
        """Whether failures become elements."""
        return self._failure_mode == "collect" or self._error_handler is not None

    def display_data(self) -> dict[str, Any]:
        """What monitoring pages show."""
        return {"failures": DisplayDataItem("collect" if self.collects else "raise", label="Failures")}

    def _step(self, dofn: beam.DoFn, output_type: Any, **others: Any) -> Any:
        """A step with the output ``main`` and one for failures (and perhaps others), all typed."""
        return _Step(dofn, output_type, {FAILURES: Failure, **others})

    def _report(self, parts: list[Any]) -> Any:
        """Joins the failures of the inner steps into one collection and shows it to the error handler."""
        # Where the first failure fails the pipeline there is nothing to join.
        several = len(parts) > 1 and self.collects
        failures = tuple(parts) | "JoinFailures" >> beam.Flatten() if several else parts[0]
        if self._error_handler is not None:
            self._error_handler.add_error_pcollection(failures)
        return failures


class _Step(beam.PTransform[Any, Any]):
    """A DoFn with several outputs, each of its own type.

    With ``--performance_runtime_type_check`` Beam (2.77) holds every output of a DoFn against the type of the main one,
    and against what the consumers of any of them take. So the DoFn itself is said to give any of the types, and with
    that option a step behind each output takes the demands of its consumers.

    Args:
        dofn: The DoFn.
        output_type: The type of its main output, ``main``.
        others: The types of its further outputs, by tag.
    """

    def __init__(self, dofn: beam.DoFn, output_type: Any, others: dict[str, Any]) -> None:
        super().__init__()
        self._dofn = dofn
        self._types = {"main": output_type, **others}

    def expand(self, pcollection: Any) -> dict[str, Any]:
        """Builds the step; gives the outputs by tag."""
        _, *tags = self._types
        several = beam.ParDo(self._dofn).with_output_types(Union[tuple(self._types.values())])  # noqa: UP007
        given = pcollection | several.with_outputs(*tags, main="main")
        checked = pcollection.pipeline.options.view_as(TypeOptions).performance_runtime_type_check
        outputs: dict[str, Any] = {}
        for tag, kind in self._types.items():
            output = given[tag]
            output.element_type = kind
            if checked:
                output = output | f"Check_{tag}" >> beam.Map(lambda element: element).with_output_types(kind)
            outputs[tag] = output
        return outputs


class DICOMwebTransform(FailingTransform):
    """The base of all transforms that talk to one archive.

    A secret that is given literally travels in the pickled job; a warning says so.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        failures: See `FailingTransform`.
    """

    def __init__(self, endpoint: EndpointLike, *, failures: FailureMode = "raise") -> None:
        super().__init__(failures=failures)
        self.endpoint = Endpoint.of(endpoint)
        self._part_of_another = False

    def display_data(self) -> dict[str, Any]:
        """The endpoint without secrets, and what becomes of failures."""
        return {"endpoint": DisplayDataItem(self.endpoint.safe_url, label="Endpoint"), **super().display_data()}

    def type_check_inputs(self, pvalueish: Any) -> None:
        """Lets typed rows in where references are wanted.

        Raises:
            ValueError: If the rows lack a column that names what they are about.
            TypeCheckError: If something has to be searched for first.
        """
        hints = self.get_type_hints().input_types
        given = getattr(pvalueish, "element_type", None)
        columns = columns_of_type(given)
        wanted = hints[0][0] if hints and hints[0] else Any
        kinds = getattr(convert_to_beam_type(given), "union_types", (given,))
        if SearchQuery in kinds and not is_consistent_with(SearchQuery, wanted):
            raise TypeCheckError(
                f"{type(self).__name__} takes references, and searches are among its elements: "
                "ReadReferences(…, level=…) gives references alone, ReadAllFromDICOMweb and the searches take both"
            )
        takes_references = wanted is not Any and is_consistent_with(Resource, wanted)
        if not columns or not takes_references or is_consistent_with(pvalueish.element_type, wanted):
            super().type_check_inputs(pvalueish)
        else:
            check_uid_columns(type(self).__name__, columns, pvalueish)

    def inside(self, outer: FailingTransform) -> Self:
        """Makes this a step of another transform, which says what becomes of failures and warns of secrets."""
        self._part_of_another = True
        self._failure_mode = "collect" if outer.collects else "raise"
        return self

    def _pooled(self, kind: type[D], pcollection: Any, *arguments: Any, **options: Any) -> D:
        """A DoFn for the archive with the settings that all DoFns of this transform have."""
        hold = several_windows(pcollection)
        return kind(self.endpoint, type(self).__name__, *arguments, collect=self.collects, hold=hold, **options)

    def _report(self, parts: list[Any]) -> Any:
        if not self._part_of_another:
            warn_of_secrets(self, self.endpoint)
        return super()._report(parts)


def columns_of_type(element_type: Any) -> tuple[str, ...]:
    """The columns of a collection of typed rows, named tuples or dataclasses; none for anything else."""
    if isinstance(element_type, RowTypeConstraint):
        return tuple(name for name, _ in element_type._fields)
    if isinstance(element_type, type):
        if is_dataclass(element_type):
            return tuple(item.name for item in fields(element_type))
        return tuple(getattr(element_type, "_fields", ()))
    return ()


def check_uid_columns(transform: str, columns: Sequence[str], pcollection: Any) -> None:
    """Checks that typed rows name what they are about, and not the whole that it is a part of.

    Raises:
        ValueError: If a column is missing.
    """
    if "study_instance_uid" in columns:
        return
    # Of rows that come straight from a search it is known what they are about.
    applied: Any = pcollection.producer
    level: SearchLevel = "study"
    while applied is not None:
        search = applied.transform
        if isinstance(search, FailingTransform) and search.rows_are_proven is not None:
            level = search.level
            break
        applied = applied.parent
    wanted = [UID_KEYWORDS[one] for one in LEVELS[: LEVELS.index(level) + 1]]
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise ValueError(
            f"{transform} takes references, and the rows lack the column {', '.join(missing)}: they have only "
            f"{shown_keys(columns)} (name it in columns= of the search, or in the query that gives the rows)"
        )


def warn_of_secrets(transform: beam.PTransform[Any, Any], *endpoints: Endpoint) -> None:
    """Logs which secrets will travel in the pickled job, by kind, never by value."""
    for endpoint in endpoints:
        kinds = literal_secrets(endpoint)
        if kinds:
            logger.warning(
                "%s: the pickled job will hold %s literally, for %s; refer to secrets by environment variable, file, "
                "command or cloud identity instead",
                type(transform).__name__,
                ", ".join(kinds),
                endpoint.safe_url,
            )


def several_windows(pcollection: Any) -> bool:
    """Whether an element may be in more than one window at once."""
    return not isinstance(pcollection.windowing.windowfn, (GlobalWindows, FixedWindows, Sessions))


Place = tuple[Any, Any, Any]
"""The timestamp, the window and the pane that an element was in."""


@dataclass(eq=False)
class Work:
    """One thing to be done for one or more equal elements.

    Attributes:
        subject: The element.
        places: Where the results are to go.
        begun: True as soon as a result was emitted; then no place can be added.
    """

    subject: Any
    places: list[Place] = field(default_factory=list)
    begun: bool = False


def grouped_places(places: list[Place]) -> list[tuple[Any, tuple[Any, ...], Any]]:
    """As few groups as possible, each a timestamp, windows and a pane, as `WindowedValue` takes them.

    There is one for each timestamp with all its windows, unless a place occurs repeatedly or has a pane: Beam (2.77)
    forgets the pane of what lies in several windows at once.
    """
    if len(places) == 1:
        timestamp, window, pane = places[0]
        return [(timestamp, (window,), pane)]
    groups: list[tuple[Any, list[Any], Any]] = []
    for timestamp, window, pane in places:
        for known, windows, known_pane in groups:
            if known == timestamp and known_pane == pane == PANE_INFO_UNKNOWN and window not in windows:
                windows.append(window)
                break
        else:
            groups.append((timestamp, [window], pane))
    return [(timestamp, tuple(windows), pane) for timestamp, windows, pane in groups]


class LeasingDoFn(beam.DoFn):
    """Has the process's client of an archive as long as it lives.

    Args:
        endpoint: The archive.
        transform: The name for failures.
        collect: Whether failures become elements.
        max_bytes: See `dicomweb_io.pool.shared_client`.
    """

    _role: Role = "source"

    def __init__(
        self, endpoint: Endpoint, transform: str, *, collect: bool, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        self._endpoint = endpoint
        self._transform = transform
        self._collect = collect
        self._max_bytes = max_bytes
        self._lease: Lease | None = None

    def setup(self) -> None:
        """Leases the process's client and pool."""
        self._lease = shared_client(self._endpoint, max_bytes=self._max_bytes)
        self._traffic = Traffic(self._leases)

    def start_bundle(self) -> None:
        """Reports the archive as a source or sink."""
        report_lineage(self._endpoint, self._role)

    def _leases(self) -> list[Lease]:
        """The leases whose traffic is counted."""
        return [cast(Lease, self._lease)]

    def teardown(self) -> None:
        """Gives the client and the pool back."""
        if self._lease is not None:
            self._lease.close()
            self._lease = None


class PooledDoFn(LeasingDoFn):
    """Does the same for each element in the threads of a shared pool, and gives results back on the bundle's thread.

    Results keep the windows, the timestamp and the pane of their element. Equal elements of one bundle are processed
    once. An element that lies in several windows arrives once for each; it is then held back until another one comes,
    so that it is done once too.

    Args:
        endpoint: The archive.
        transform: The name for failures.
        collect: Whether failures become elements (else they fail the bundle).
        hold: Whether elements may lie in several windows.
        ordered: Whether results come in the order of the elements.
        max_bytes: See `dicomweb_io.pool.shared_client`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        transform: str,
        *,
        collect: bool,
        hold: bool = False,
        ordered: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        super().__init__(endpoint, transform, collect=collect, max_bytes=max_bytes)
        self._hold = hold
        self._ordered = ordered
        self._lane: Lane[Work, Any] | None = None

    def produce(self, subject: Any, client: DICOMClient, room: Room) -> Iterator[Any]:
        """Yields the results for an element, or `Problem`s or `Failure`s. Runs in a pool thread.

        Exceptions of the kinds `RECOVERABLE` that it raises become failures too.
        """
        raise NotImplementedError

    def reference_of(self, subject: Any) -> Resource | None:
        """What failures of an element refer to."""
        return subject if isinstance(subject, Resource) else None

    def count_result(self, result: Any) -> None:
        """Counts a result. Runs on the bundle's thread."""

    def start_bundle(self) -> None:
        """Opens the lane of the bundle."""
        self.abandon()
        super().start_bundle()
        self._open(cast(Lease, self._lease).pool)

    def _open(self, pool: BoundedPool) -> None:
        self._lane = pool.lane(ordered=self._ordered, tick=self._traffic)
        self._works: dict[Any, Work] = {}
        self._held: Work | None = None

    def process(
        self,
        element: Any,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
    ) -> Iterator[Any]:
        """Starts the work for an element and returns what is ready."""
        place = (timestamp, window, pane)
        try:
            if self._hold:
                held = self._held
                if held is not None and self._is_same(held.subject, element) and held.places[0][0] == timestamp:
                    held.places.append(place)
                    return
                self._held = Work(element, [place])
                if held is not None:
                    yield from self._start(held)
                return
            yield from self._start(Work(element, [place]))
        except BaseException:
            # The runner does not call finish_bundle after an error (or when it drops the bundle).
            self.abandon()
            raise

    def finish_bundle(self) -> Iterator[Any]:
        """Waits for the remaining results."""
        lane = self._lane
        if lane is None:
            return
        try:
            held, self._held = self._held, None
            if held is not None:
                yield from self._start(held)
            yield from self._finish()
            for work, result in lane.drain():
                yield from self._emit(work, result)
            self._traffic.count()
        finally:
            self.abandon()

    def teardown(self) -> None:
        """Cancels the remaining work and releases the client and the pool."""
        self.abandon()
        super().teardown()

    def _start(self, work: Work) -> Iterator[Any]:
        lane = self._open_lane()
        key = self._key(work.subject)
        same = self._works.get(key) if key is not None else None
        if same is not None and not same.begun:
            same.places.extend(work.places)
            results = lane.ready()
        else:
            if key is not None:
                self._works[key] = work
            results = lane.submit(work, lambda room: self._guarded(work.subject, room))
        for done, result in results:
            yield from self._emit(done, result)

    def _finish(self) -> Iterator[Any]:
        """Starts what still waits to be started at the end of a bundle."""
        return iter(())

    def _open_lane(self) -> Lane[Any, Any]:
        if self._lane is None:
            raise RuntimeError("there is no bundle")
        return self._lane

    def _key(self, subject: Any) -> Any:
        return subject if isinstance(subject, (Resource, InstanceGroup)) else None

    def _is_same(self, one: Any, other: Any) -> bool:
        """Whether two elements in a row are one element in two windows."""
        # One object is given for each window of an element; after a shuffle there are equal ones.
        key = self._key(one)
        return one is other or (key is not None and key == self._key(other))

    def _guarded(self, subject: Any, room: Room) -> Iterator[Any]:
        client, reference = cast(Lease, self._lease).client, self.reference_of(subject)
        reason = client.unavailable
        if reason is not None and reference is not None:
            yield Problem(not_tried(reason, self._transform, reference=reference))
            return
        try:
            yield from self.produce(subject, client, room)
        except RECOVERABLE as error:
            source = subject.source if isinstance(subject, SearchQuery) else None
            yield problem_of(error, self._transform, reference=reference, source=source)

    def _emit(self, work: Work, result: Any) -> Iterator[Any]:
        if not work.begun:
            work.begun = True
            key = self._key(work.subject)
            if key is not None and self._works.get(key) is work:
                del self._works[key]
        if isinstance(result, Failure):
            result = Problem(result)
        if isinstance(result, Problem):
            result = naming(result, work.subject)
            count("failures")
            if not self._collect:
                result.raise_it()
            failure = encodable_failure(result.failure)
            for place in grouped_places(work.places):
                yield TaggedOutput(FAILURES, WindowedValue(failure, *place))
            return
        self.count_result(result)
        if isinstance(result, dict):
            result = encodable(result)
        for place in grouped_places(work.places):
            yield WindowedValue(result, *place)

    def abandon(self) -> None:
        """Cancels what the bundle still does, and drops its results. May be repeated."""
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.close()


class BetweenArchives(PooledDoFn):
    """Has the process's client of a second archive too, as long as it lives.

    Args:
        source: The archive.
        transform: The name for failures.
        destination: The second archive; None if it is not asked.
        **how: See `PooledDoFn`.
    """

    def __init__(self, source: Endpoint, transform: str, destination: Endpoint | None, **how: Any) -> None:
        super().__init__(source, transform, **how)
        self._destination = destination
        self._receiver: Lease | None = None

    def setup(self) -> None:
        """Leases the clients of both archives."""
        super().setup()
        if self._destination is not None:
            self._receiver = shared_client(self._destination)

    def teardown(self) -> None:
        """Gives the clients back."""
        super().teardown()
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None

    def _leases(self) -> list[Lease]:
        return [*super()._leases(), *([self._receiver] if self._receiver is not None else [])]


class Converting(beam.DoFn):
    """Makes something else of each element, without asking an archive.

    Args:
        transform: The name for failures.
        collect: Whether an element that nothing can be made of becomes a `Failure`.
    """

    def __init__(self, transform: str, *, collect: bool) -> None:
        self._transform = transform
        self._collect = collect

    def convert(self, element: Any) -> Any:
        """What is made of an element. A `TypeError` or `ValueError` that it raises becomes a failure."""
        raise NotImplementedError

    def process(self, element: Any) -> Iterator[Any]:
        """Yields what is made of the element, or the failure."""
        try:
            yield self.convert(element)
        except (TypeError, ValueError) as error:
            yield reported(naming(problem_of(error, self._transform), element), self._collect)


def reported(problem: Problem, collect: bool) -> Any:
    """A failure as an element; it fails the bundle if failures are not collected."""
    count("failures")
    if not collect:
        problem.raise_it()
    return TaggedOutput(FAILURES, encodable_failure(problem.failure))


def encodable_failure(failure: Failure) -> Failure:
    """The failure with texts that every coder of Beam takes; the name of a file stays exact."""
    texts = (failure.message, failure.server_message)
    message, server_message = given = encodable(texts)
    return failure if given is texts else replace(failure, message=message, server_message=server_message)


class AsReferences(Converting):
    """Makes `Resource`s of whatever names one: references, rows of searches and metadata, URIs."""

    _whole = True
    """Whether references to frames become references to their instance."""

    def reference_of(self, element: Any) -> Any:
        """The reference that an element is or names."""
        return Resource.of(element)

    def convert(self, element: Any) -> Any:
        """The reference."""
        reference = self.reference_of(element)
        return reference.instance if self._whole else reference


class PartSpool:
    """Where large instances, frames or values wait until their size is known.

    Args:
        transform: The name for failures.
        what: What they are, for failures.
        maximum: The largest that may be an element with its bytes.
        directory: Where larger ones go for the consumer; None if they are failures.
    """

    def __init__(self, transform: str, what: str, maximum: int, directory: str | None) -> None:
        self._transform = transform
        self._what = what
        self._maximum = maximum
        self._directory = directory
        # Inside the consumer's directory, so that giving a file away is a rename.
        self._private = PrivateDirectory(directory)

    @property
    def path(self) -> str:
        """The directory for arriving parts."""
        return self._private.path

    def threshold(self, room: Room) -> int:
        """What may arrive in memory: every task may hold that much without making others wait."""
        return min(room.fair_share, self._maximum)

    def as_element(self, part: T, reference: Resource | None, room: Room) -> T | Problem:
        """The element to emit, with room reserved for it; a problem if it is too large."""
        if part.content is not None:
            room.reserve(len(part.content))
            return part
        path = str(part.path)
        try:
            size = part.size if isinstance(part, Instance) else os.path.getsize(path)
            if size <= self._maximum:
                room.reserve(size)
                if isinstance(part, Instance):
                    return replace(part, content=part.read(), path=None)
                with open(path, "rb") as file:
                    return replace(part, content=file.read(), path=None)
            room.reserve(0)
            if self._directory is not None:
                return replace(part, path=self._private.release(part))
        finally:
            self._private.discard(part)
        message = (
            f"{self._what} has {size} bytes, more than max_element_bytes ({self._maximum}); raise that, or give a "
        )
        url = safe_url(part.uri) if isinstance(part, Bulkdata) else None
        return Problem(Failure(self._transform, message + "spool_directory", reference=reference, url=url))

    def discard(self, part: T) -> None:
        """Removes the file of a part that is not passed on."""
        self._private.discard(part)

    def remove(self) -> None:
        """Removes the remaining files. It can be used again."""
        self._private.remove()


def report_lineage(endpoint: Endpoint, role: Role) -> None:
    """Notes that an archive is a source or a sink. To be called on a bundle's own thread.

    A server is ``dicomweb:HOST.PATH``; a folder in an object store is what Beam calls it there (``gcs:BUCKET.PATH``);
    another folder is ``filesystem:PATH``.
    """
    lineage = Lineage.sources() if role == "source" else Lineage.sinks()
    system, segments = name_of(endpoint)
    lineage.add(system, *map(Lineage.wrap_segment, segments))


def name_of(endpoint: Endpoint) -> tuple[str, tuple[str, ...]]:
    """The system and the segments under which an archive is known; no user information, no query."""
    if "://" not in endpoint.url or "::" in endpoint.url:
        return "filesystem", (endpoint.url.rpartition("::")[2] if "::" in endpoint.url else endpoint.url,)
    parts = urlsplit(endpoint.safe_url)
    path = parts.path.strip("/")
    system = "dicomweb" if endpoint.is_web else _SYSTEMS.get(parts.scheme.lower())
    if system is None:
        return "filesystem", (endpoint.safe_url,)
    return system, (parts.netloc, path) if path else (parts.netloc,)
