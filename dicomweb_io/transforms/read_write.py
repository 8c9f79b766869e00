"""`ReadFromDICOMweb`, `ReadAllFromDICOMweb` and `WriteToDICOMweb`: the names that Beam users look for first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import apache_beam as beam

from dicomweb_io.elements import Instance, Resource, SearchLevel
from dicomweb_io.endpoint import EndpointLike
from dicomweb_io.listing import resource_of_row
from dicomweb_io.transforms._core import (
    FAILURES,
    AsReferences,
    DICOMwebTransform,
    FailingTransform,
    FailureMode,
    piped_by_member,
    warn_of_secrets,
)
from dicomweb_io.transforms.retrieve import RetrievedInstances, RetrieveInstances
from dicomweb_io.transforms.search import QueryInput, SearchForInstances
from dicomweb_io.transforms.store import StoreInstances


class _Read(DICOMwebTransform):
    """`SearchForInstances` and `RetrieveInstances` in one."""

    _element_type = Instance
    _distinct = True

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
        failures: FailureMode = "raise",
        **options: Any,
    ) -> None:
        super().__init__(endpoint, failures=failures)
        self._search = SearchForInstances(
            self.endpoint,
            search_filters,
            limit=limit,
            fuzzymatching=fuzzymatching,
            page_size=page_size,
            split_by=split_by,
            allow_all=allow_all,
            failures="collect",
        )
        self._retrieve = RetrieveInstances(self.endpoint, failures="collect", **options)

    def expand(self, pvalue: Any) -> Any:
        """Builds the steps."""
        search, retrieve = self._search.inside(self), self._retrieve.inside(self)
        found = pvalue | "Search" >> search
        rows = found.rows if self.collects else found
        mode: FailureMode = "collect" if self.collects else "raise"
        named = rows | "References" >> ReferencesOfRows("instance", type(self).__name__, failures=mode)
        references = named.references
        if self._distinct:
            references = references | "DistinctReferences" >> DistinctReferences()
        fetched = references | "Retrieve" >> retrieve
        if not self.collects:
            warn_of_secrets(self, self.endpoint)
            return fetched
        failures = self._report([found.failures, named.failures, fetched.failures])
        return RetrievedInstances(fetched.instances, failures) if self._failure_mode == "collect" else fetched.instances

    def display_data(self) -> dict[str, Any]:
        """What the search and the retrieve show."""
        return {**self._search.display_data(), **self._retrieve.display_data(), **super().display_data()}


class ReadFromDICOMweb(_Read):
    """Reads the instances that match a search: `SearchForInstances` and `RetrieveInstances` in one.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        search_filters: See `SearchForInstances`, as for the next four.
        limit: The maximum number of instances.
        fuzzymatching: Ask for fuzzy matching of names.
        page_size: Rows of the search to ask for at once.
        split_by: ``"StudyDate"`` makes several searches of a large one.
        failures: ``"raise"`` or ``"collect"``; with the latter the output is a `RetrievedInstances`. See also
            `with_error_handler`.
        **options: Further arguments of `RetrieveInstances`.
    """

    _is_source = True


@beam.typehints.with_input_types(QueryInput)
class ReadAllFromDICOMweb(_Read):
    """Reads, for each element, the instances that it names: references, queries, rows, URIs.

    An element is what `SearchForInstances` takes: a reference or a row (all instances of that study or series), a
    mapping of attribute to value (all instances that match), a `SearchQuery` for instances, or a URI. Results keep the
    windows and the timestamp of their element. What two elements name comes twice.

    Arguments as in `ReadFromDICOMweb`; filters and the limit hold for each element. An element that asks for everything
    is a failure unless `allow_all` is True.
    """

    _distinct = False


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
        return (
            pcollection
            | "Key" >> beam.Map(lambda reference: (reference, None)).with_output_types(tuple[Resource, None])
            | "Group" >> beam.GroupByKey()
            | "Keys" >> beam.Keys().with_output_types(Resource)
        )


class WriteToDICOMweb(StoreInstances):
    """Writes instances to an archive. The same as `StoreInstances`, by the name that Beam's connectors have."""
