"""`ReadFromDICOMweb` and `WriteToDICOMweb`: the names that Beam users look for first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PBegin

from dicomweb_io.clients.endpoint import EndpointLike
from dicomweb_io.elements import Instance, Resource
from dicomweb_io.transforms.base import DICOMwebTransform, FailureMode
from dicomweb_io.transforms.retrieve import RetrievedInstances, RetrieveInstances
from dicomweb_io.transforms.search import SearchForInstances
from dicomweb_io.transforms.store import StoreInstances


class ReadFromDICOMweb(DICOMwebTransform):
    """Reads the instances that match a search: `SearchForInstances` and `RetrieveInstances` in one.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        search_filters: See `SearchForInstances`.
        limit: The most instances.
        failures: ``"raise"`` or ``"collect"``; with the latter the output is a `RetrievedInstances`. See also
            `with_error_handler`.
        **options: Further arguments of `RetrieveInstances`.
    """

    _element_type = Instance

    def __init__(
        self,
        endpoint: EndpointLike,
        search_filters: Mapping[str, Any] | None = None,
        *,
        limit: int | None = None,
        failures: FailureMode = "raise",
        **options: Any,
    ) -> None:
        super().__init__(endpoint, failures=failures)
        inner: FailureMode = "collect"
        self._search = SearchForInstances(self.endpoint, search_filters, limit=limit, failures=inner)
        self._retrieve = RetrieveInstances(self.endpoint, failures=inner, **options)

    def expand(self, pbegin: PBegin) -> Any:
        """Builds the steps."""
        for inner in (self._search, self._retrieve):
            inner._failure_mode = "collect" if self.collects else "raise"
        found = pbegin | "Search" >> self._search
        rows = found.rows if self.collects else found
        references = rows | "References" >> beam.Map(Resource.of).with_output_types(Resource)
        fetched = references | "DistinctReferences" >> DistinctReferences() | "Retrieve" >> self._retrieve
        if not self.collects:
            return fetched
        failures = self._report([found.failures, fetched.failures])
        if self._failure_mode != "collect":
            return fetched.instances
        return RetrievedInstances(fetched.instances, failures)


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
