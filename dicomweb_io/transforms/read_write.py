"""`ReadFromDICOMweb`, `ReadAllFromDICOMweb`, `ReadReferences`, `WriteToDICOMweb`: what Beam users look for first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.display import DisplayDataItem

from dicomweb_io.dicom.attributes import resolve
from dicomweb_io.elements import (
    LEVELS,
    UID_KEYWORDS,
    UID_TAGS,
    Failure,
    Instance,
    Resource,
    SearchLevel,
    SearchQuery,
)
from dicomweb_io.endpoint import Endpoint, EndpointLike
from dicomweb_io.listing import ListFile, ListLine, resource_of_row
from dicomweb_io.queries import level_of
from dicomweb_io.transforms._core import (
    FAILURES,
    AsReferences,
    Converting,
    DICOMwebTransform,
    FailingTransform,
    FailureMode,
    Problem,
    piped_by_member,
    reported,
    warn_of_secrets,
)
from dicomweb_io.transforms.retrieve import RetrievedInstances, RetrieveInstances
from dicomweb_io.transforms.search import QueryInput, SearchForInstances, SearchForSeries, query_for
from dicomweb_io.transforms.store import StoreInstances


class _Read(DICOMwebTransform):
    """A search and `RetrieveInstances` in one.

    Where all filters are about patients, studies or series, the search is one for series: a series is retrieved with
    one request. Other filters, and a limit, are about single instances.
    """

    _element_type = Instance

    def __init__(
        self,
        endpoint: EndpointLike,
        search_filters: Mapping[str, Any] | None = None,
        *,
        limit: int | None = None,
        fuzzymatching: bool | None = None,
        page_size: int | None = None,
        split_by: str | None = None,
        allow_all: bool = False,
        require_match: bool | None = None,
        failures: FailureMode = "raise",
        **options: Any,
    ) -> None:
        super().__init__(endpoint, failures=failures)
        if require_match is None:
            require_match = not self._is_source and not search_filters and split_by is None and limit != 0
        self._how: dict[str, Any] = {
            "limit": limit,
            "page_size": page_size,
            "split_by": split_by,
            "require_match": require_match,
            "failures": "collect",
        }
        self._search = SearchForInstances(
            self.endpoint, search_filters, fuzzymatching=fuzzymatching, allow_all=allow_all, **self._how
        )
        self._retrieve = RetrieveInstances(self.endpoint, failures="collect", **options)

    def _searched(self, search: SearchForInstances | SearchForSeries, pvalue: Any) -> tuple[Any, list[Any]]:
        """The references that a search finds, and the failures."""
        mode: FailureMode = "collect" if self.collects else "raise"
        found = pvalue | f"{type(search).__name__}" >> search.inside(self)
        rows = found.rows if self.collects else found
        name = f"References_{search.query.level}"
        named = rows | name >> ReferencesOfRows(search.query.level, type(self).__name__, failures=mode)
        return named.references, [found.failures, named.failures] if self.collects else []

    def _retrieved(self, references: Any, failures: list[Any]) -> Any:
        fetched = references | "Retrieve" >> self._retrieve.inside(self)
        if not self.collects:
            warn_of_secrets(self, self.endpoint)
            return fetched
        lost = self._report([*failures, fetched.failures])
        return RetrievedInstances(fetched.instances, lost) if self._failure_mode == "collect" else fetched.instances

    def display_data(self) -> dict[str, Any]:
        """What the search and the retrieve show."""
        return {**self._search.display_data(), **self._retrieve.display_data(), **super().display_data()}


class ReadFromDICOMweb(_Read):
    """Reads the instances that match a search: a search and `RetrieveInstances` in one.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        search_filters: See `SearchForInstances`, as for the next four. If none of them is about single instances,
            whole series are found and retrieved.
        limit: The maximum number of instances.
        fuzzymatching: Ask for fuzzy matching of names.
        page_size: Rows of the search to ask for at once.
        split_by: ``"StudyDate"`` makes several searches of a large one.
        require_match: Make a search that finds nothing a failure; by default it is none.
        failures: ``"raise"`` or ``"collect"``; with the latter the output is a `RetrievedInstances`. See also
            `with_error_handler`.
        **options: Further arguments of `RetrieveInstances`.
    """

    _is_source = True

    def expand(self, pvalue: Any) -> Any:
        """Builds the steps."""
        self._check_begins(pvalue)
        search: SearchForInstances | SearchForSeries = self._search
        query = series_query(search.query, self.endpoint) if search.limit is None else None
        if query is not None:
            search = SearchForSeries(self.endpoint, **self._how)
            search.query = query
        references, failures = self._searched(search, pvalue)
        return self._retrieved(references | "DistinctReferences" >> DistinctReferences(), failures)


@beam.typehints.with_input_types(QueryInput)
class ReadAllFromDICOMweb(_Read):
    """Reads, for each element, the instances that it names: references, queries, rows, URIs.

    An element is what `SearchForInstances` takes: a reference or a row (all instances of that study or series), a
    mapping of attribute to value (all instances that match), a `SearchQuery` (all instances of the studies or series
    that it finds), or a URI. Results keep the windows and the timestamp of their element. What two elements name comes
    twice.

    Arguments as in `ReadFromDICOMweb`; filters and the limit hold for each element. An element that asks for everything
    is a failure unless `allow_all` is True, and so is one that finds nothing, unless there are `search_filters`
    (`require_match` says otherwise).
    """

    def expand(self, pvalue: Any) -> Any:
        """Builds the steps."""
        dofn = _PlanReads(self._search, type(self).__name__, collect=self.collects)
        planned = pvalue | "Plan" >> self._step(dofn, SearchQuery, **{_SERIES: SearchQuery})
        # The queries hold the filters already, and what they may ask for was checked.
        searches = (
            (planned["main"], SearchForInstances(self.endpoint, allow_all=True, **self._how)),
            (planned[_SERIES], SearchForSeries(self.endpoint, allow_all=True, **self._how)),
        )
        found = [self._searched(search, queries) for queries, search in searches]
        failures = [planned[FAILURES], *(failure for _, some in found for failure in some)]
        return self._retrieved([references for references, _ in found] | "Join" >> beam.Flatten(), failures)


_SERIES = "series"


class _PlanReads(Converting):
    """Makes searches of elements: for instances, and with the tag `_SERIES` for series.

    Args:
        search: The search for instances whose filters hold for each element.
        transform: The name for failures.
        collect: See `Converting`.
    """

    def __init__(self, search: SearchForInstances, transform: str, *, collect: bool) -> None:
        super().__init__(transform, collect=collect)
        self._endpoint, self._base = search.endpoint, search.query
        self._by_series, self._allow_all = search.limit is None, search.allow_all

    def convert(self, element: Any) -> Any:
        if isinstance(element, SearchQuery) and element.level != "instance":
            element = replace(element, level="instance", fields=())
        query = query_for(element, self._base, allow_all=self._allow_all)
        series = series_query(query, self._endpoint) if self._by_series else None
        return query if series is None else TaggedOutput(_SERIES, series)


def series_query(query: SearchQuery, endpoint: Endpoint) -> SearchQuery | None:
    """The search for the series whose instances a search for instances finds.

    It is None if something in the query is about single instances. The files of a series in a folder may disagree
    about it, so there only UIDs are about the whole series.
    """
    names = [name for name, _ in query.search_filters]
    uids = {UID_TAGS["study"], UID_TAGS["series"]}
    if query.additional_params or any(level_of(name) == "instance" for name in names):
        return None
    if not endpoint.is_web and any(resolve(name)[0] not in uids for name in names):
        return None
    series = query.series_instance_uid
    filters = query.search_filters if series is None else (*query.search_filters, (UID_KEYWORDS["series"], series))
    return replace(query, level="series", series_instance_uid=None, search_filters=filters, fields=())


@piped_by_member
class NamedReferences(NamedTuple):
    """The output of `ReferencesOfRows`."""

    references: Any
    failures: Any


class ReferencesOfRows(FailingTransform):
    """References of the rows of a search; a row that lacks a UID is a failure, and never names its whole parent.

    Args:
        level: What was searched for.
        transform: The name that failures carry.
        failures: ``"raise"`` or ``"collect"``. See also `with_error_handler`.

    Returns:
        A `NamedReferences`.
    """

    def __init__(self, level: SearchLevel, transform: str, *, failures: FailureMode = "raise") -> None:
        super().__init__(failures=failures)
        self._level: SearchLevel = level
        self._transform = transform

    def expand(self, rows: Any) -> NamedReferences:
        """Builds the step."""
        dofn = _RowReferences(self._transform, self._level, collect=self.collects)
        made = rows | "AsReferences" >> self._step(dofn, Resource)
        return NamedReferences(made["main"], self._report([made[FAILURES]]))


class _RowReferences(AsReferences):
    def __init__(self, transform: str, level: SearchLevel, *, collect: bool) -> None:
        super().__init__(transform, collect=collect)
        self._level: SearchLevel = level

    def reference_of(self, element: Any) -> Resource:
        return resource_of_row(element, self._level)


@beam.typehints.with_input_types(Resource)
@beam.typehints.with_output_types(Resource)
class DistinctReferences(beam.PTransform[Any, Any]):
    """Keeps one of equal references. The GroupByKey in it spreads them over the workers."""

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        key = beam.Map(lambda reference: (reference.uri, reference))
        return (
            pcollection
            | "Key" >> key.with_output_types(tuple[str, Resource])
            | "Group" >> beam.GroupByKey()
            | "TakeOne" >> beam.Map(lambda group: next(iter(group[1]))).with_output_types(Resource)
        )


class ReadReferences(FailingTransform):
    """Reads a list of what is wanted: CSV, JSON lines, or one identifier a line. It is a source.

    The list is read by a worker, so that it may be long. Lines that are blank or begin with ``#`` are left out. Each
    other one becomes a `Resource` or, if it names studies by their accession number or patient, or an object whose
    study it does not say, a `SearchQuery`; `SearchForStudies` and `ReadAllFromDICOMweb` take both. A line that names
    nothing is a failure, whose `source` is the path and the number of the line. `dicomweb_io.listing.read_references`
    says what a line may be.

    Args:
        path: A local path or an fsspec URL that the workers can read.
        level: What each line has to name: ``"study"``, ``"series"`` or ``"instance"``. Any other line is a failure, and
            all elements are references.
        allow_patterns: Whether an accession number or patient's identifier may hold wildcards or several values.
        failures: ``"raise"`` or ``"collect"``; with the latter the output is a `NamedReferences`. See also
            `with_error_handler`.
    """

    _is_source = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        level: SearchLevel | None = None,
        allow_patterns: bool = False,
        failures: FailureMode = "raise",
    ) -> None:
        super().__init__(failures=failures)
        if level is not None and level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}, not {level!r}")
        self._list = ListFile(os.fspath(path), allow_patterns)
        self._level: SearchLevel | None = level

    def expand(self, pipeline: Any) -> Any:
        """Builds the steps."""
        self._check_begins(pipeline)
        dofn = _NameLines(type(self).__name__, self._level, collect=self.collects)
        output_type = Resource if self._level is not None else Resource | SearchQuery
        lines = pipeline | "Lines" >> ReadLines(self._list)
        named = lines | "Name" >> self._step(dofn, output_type)
        failures = self._report([named[FAILURES]])
        return NamedReferences(named["main"], failures) if self._failure_mode == "collect" else named["main"]

    def display_data(self) -> dict[str, Any]:
        """The path."""
        return {**super().display_data(), "path": DisplayDataItem(self._list.path, label="List")}


class ReadLines(beam.PTransform[Any, Any]):
    """The lines of a list, read by a worker; a list that cannot be read is a line that cannot be read.

    Args:
        wanted: The list.
    """

    def __init__(self, wanted: ListFile) -> None:
        super().__init__()
        self._list = wanted

    def expand(self, pipeline: Any) -> Any:
        """Builds the steps."""
        once = pipeline | "List" >> beam.Create([self._list])
        lines = once | "Read" >> beam.FlatMap(_lines_of).with_output_types(ListLine)
        return lines | "Reshuffle" >> beam.Reshuffle()


def _lines_of(wanted: ListFile) -> Iterator[ListLine]:
    try:
        yield from wanted.lines()
    except (OSError, ValueError) as error:
        yield ListLine(wanted.path, None, str(error))


class _NameLines(beam.DoFn):
    def __init__(self, transform: str, level: SearchLevel | None, *, collect: bool) -> None:
        self._transform = transform
        self._level = level
        self._collect = collect

    def process(self, line: ListLine) -> Iterator[Any]:
        wanted, problem = line.wanted, line.problem
        if line.difference == "extra":
            # What a comparison found in the destination only.
            return
        if wanted is not None and self._level is not None:
            named = wanted.level if isinstance(wanted, Resource) else None
            if named != self._level:
                wanted, problem = None, f"the line names {named or 'no object by its UIDs'}, not a {self._level}"
        if wanted is not None:
            yield replace(wanted, source=line.place) if isinstance(wanted, SearchQuery) else wanted
            return
        failure = Failure(self._transform, f"nothing was read: {problem}", source=line.place)
        yield reported(Problem(failure), self._collect)


class WriteToDICOMweb(StoreInstances):
    """Writes instances to an archive. The same as `StoreInstances`, by the name that Beam's connectors have."""
