"""The search methods of the user guide (QIDO-RS, PS3.18 section 10.6), over `Primitives`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dicomweb_io.clients.primitives import Primitives
from dicomweb_io.clients.queries import check_limits, make_query
from dicomweb_io.elements import Instance, JSONDataset, Resource, SearchLevel, SearchQuery


class NamedSearches(Primitives):
    """Searches for studies, series and instances by name."""

    def search_for_studies(
        self,
        fuzzymatching: bool | None = None,
        limit: int | None = None,
        offset: int | None = None,
        fields: Sequence[str] | None = None,
        search_filters: Mapping[str, Any] | None = None,
        get_remaining: bool = False,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[JSONDataset]:
        """Searches for studies (PS3.18 section 10.6, QIDO-RS).

        Args:
            fuzzymatching: Ask for fuzzy matching of names.
            limit: The most rows wanted.
            offset: Rows to skip.
            fields: Further attributes to return, by keyword or tag, or ``["all"]``.
            search_filters: Attribute (keyword, tag or dotted path) to value.
            get_remaining: Ask page by page until `limit` rows, or all, are there. Otherwise one request is made, and
                the server's own maximum may cut the answer short.
            additional_params: Further query parameters.

        Returns:
            DICOM JSON datasets in the archive's order.
        """
        return self._search(
            "study", None, None, fuzzymatching, limit, offset, fields, search_filters, get_remaining, additional_params
        )

    def search_for_series(
        self,
        study_instance_uid: str | None = None,
        fuzzymatching: bool | None = None,
        limit: int | None = None,
        offset: int | None = None,
        fields: Sequence[str] | None = None,
        search_filters: Mapping[str, Any] | None = None,
        get_remaining: bool = False,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[JSONDataset]:
        """Searches for series, of one study or of all. Arguments as in `search_for_studies`."""
        return self._search(
            "series",
            study_instance_uid,
            None,
            fuzzymatching,
            limit,
            offset,
            fields,
            search_filters,
            get_remaining,
            additional_params,
        )

    def search_for_instances(
        self,
        study_instance_uid: str | None = None,
        series_instance_uid: str | None = None,
        fuzzymatching: bool | None = None,
        limit: int | None = None,
        offset: int | None = None,
        fields: Sequence[str] | None = None,
        search_filters: Mapping[str, Any] | None = None,
        get_remaining: bool = False,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[JSONDataset]:
        """Searches for instances, of one series, one study or all. Arguments as in `search_for_studies`."""
        return self._search(
            "instance",
            study_instance_uid,
            series_instance_uid,
            fuzzymatching,
            limit,
            offset,
            fields,
            search_filters,
            get_remaining,
            additional_params,
        )

    def _search(
        self,
        level: SearchLevel,
        study_instance_uid: str | None,
        series_instance_uid: str | None,
        fuzzymatching: bool | None,
        limit: int | None,
        offset: int | None,
        fields: Sequence[str] | None,
        search_filters: Mapping[str, Any] | None,
        get_remaining: bool,
        additional_params: Mapping[str, Any] | None,
    ) -> list[JSONDataset]:
        check_limits(limit, offset)
        query = make_query(
            level,
            study_instance_uid,
            series_instance_uid,
            fuzzymatching=fuzzymatching,
            fields=fields,
            search_filters=search_filters,
            additional_params=additional_params,
            permissive_uid=self._permissive_uid,
        )
        if get_remaining:
            return list(self.iter_search(query, offset=offset or 0, limit=limit))
        if limit == 0:
            return []
        # Some archives ignore limits.
        return self.search_page(query, offset=offset or 0, limit=limit).rows[:limit]

    def iter_search_for_studies(
        self, *, limit: int | None = None, offset: int = 0, page_size: int | None = None, **arguments: Any
    ) -> Iterator[JSONDataset]:
        """Yields studies lazily, page by page, `limit` at most. Further arguments as in `search_for_studies`."""
        check_limits(limit, offset)
        query = make_query("study", permissive_uid=self._permissive_uid, **arguments)
        return self.iter_search(query, offset=offset, limit=limit, page_size=page_size)

    def iter_search_for_series(
        self,
        study_instance_uid: str | None = None,
        *,
        limit: int | None = None,
        offset: int = 0,
        page_size: int | None = None,
        **arguments: Any,
    ) -> Iterator[JSONDataset]:
        """Yields series lazily, page by page, `limit` at most. Further arguments as in `search_for_series`."""
        check_limits(limit, offset)
        query = make_query("series", study_instance_uid, permissive_uid=self._permissive_uid, **arguments)
        return self.iter_search(query, offset=offset, limit=limit, page_size=page_size)

    def iter_search_for_instances(
        self,
        study_instance_uid: str | None = None,
        series_instance_uid: str | None = None,
        *,
        limit: int | None = None,
        offset: int = 0,
        page_size: int | None = None,
        **arguments: Any,
    ) -> Iterator[JSONDataset]:
        """Yields instances lazily, page by page, `limit` at most. Further arguments as in `search_for_instances`."""
        check_limits(limit, offset)
        query = make_query(
            "instance", study_instance_uid, series_instance_uid, permissive_uid=self._permissive_uid, **arguments
        )
        return self.iter_search(query, offset=offset, limit=limit, page_size=page_size)

    # Completeness -----------------------------------------------------------------------------------------------------

    def expected_instances(self, resource: Resource) -> Iterator[Resource]:
        """Yields references to the instances that a search lists for a study or series, each once."""
        query = SearchQuery("instance", resource.study_instance_uid, resource.series_instance_uid)
        seen: set[Resource] = set()
        for row in self.iter_search(query):
            reference = Resource.of(row)
            if reference.level == "instance" and reference not in seen and resource.contains(reference):
                seen.add(reference)
                yield reference

    def missing_instances(self, resource: Resource, received: Iterable[str | Resource | Instance]) -> list[Resource]:
        """Compares what a retrieval gave with what a search lists.

        Args:
            resource: The study or series that was retrieved.
            received: What came: SOP Instance UIDs, references or instances.

        Returns:
            References to what the archive lists and did not give; empty if all is there.
        """
        uids = {
            item.reference.sop_instance_uid
            if isinstance(item, Instance)
            else (item.sop_instance_uid if isinstance(item, Resource) else item)
            for item in received
        }
        return [reference for reference in self.expected_instances(resource) if reference.sop_instance_uid not in uids]
