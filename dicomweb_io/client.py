"""`DICOMClient`: what every client of an archive can do, whether a DICOMweb server or a folder of files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, SupportsIndex, Union, runtime_checkable
from urllib.parse import urlsplit

import fsspec

from dicomweb_io.dicom.attributes import lookup_keyword, lookup_tag
from dicomweb_io.dicom.json_decode import first_value
from dicomweb_io.dicom.media_types import DICOM, OCTET_STREAM, parse_media_types
from dicomweb_io.dicom.uids import check_uid
from dicomweb_io.elements import (
    Bulkdata,
    Exclusion,
    Failure,
    Frame,
    Instance,
    JSONDataset,
    RenderedImage,
    Resource,
    SearchLevel,
    SearchPage,
    SearchQuery,
    StoredInstance,
)
from dicomweb_io.errors import MalformedResponseError
from dicomweb_io.queries import check_limits, make_query

if TYPE_CHECKING:
    from types import TracebackType

    from pydicom.dataset import Dataset
    from typing_extensions import Self


# ----------------------------------------------------------------------------------------------------------------------


MediaTypes = Sequence[str | tuple[str, str | Sequence[str]]]
"""Wanted media types in order of preference: a media type, or a pair of it and its transfer syntax (or ``"*"``)."""

Storable = Union[Instance, bytes, str, "os.PathLike[str]", "Dataset", BinaryIO]
"""What can be stored: an `Instance`, Part 10 bytes, a path, a pydicom dataset, or a file opened for reading."""

OnExisting = Literal["server", "skip", "replace", "error"]
Verify = Literal["response", "uid", "content"]

DEFAULT_MAX_ELEMENT_BYTES = 64 * 1024 * 1024


@runtime_checkable
class DICOMClient(Protocol):
    """The operations of an archive, named and shaped after PS3.18 (Studies Service, sections 10.4 to 10.7).

    Methods named ``iter_…`` are lazy: they return an iterator, ask as they go, and hold at most one part at a time.
    Closing the iterator (or dropping it) ends the request. Clients may be used from several threads at once.
    """

    @property
    def base_url(self) -> str:
        """The address of the archive, without user information."""
        ...

    @property
    def scheme(self) -> str:
        """The scheme of the address: ``"https"``, ``"http"``, ``"file"``, …"""
        ...

    @property
    def protocol(self) -> str | None:
        """The network protocol, ``"https"`` or ``"http"``; None for folders."""
        ...

    @property
    def url_prefix(self) -> str:
        """The path of the address, without trailing slash."""
        ...

    @property
    def qido_url_prefix(self) -> str | None:
        """Path segment before search resources; None if there is none."""
        ...

    @property
    def wado_url_prefix(self) -> str | None:
        """Path segment before retrieve resources; None if there is none."""
        ...

    @property
    def stow_url_prefix(self) -> str | None:
        """Path segment before store resources; None if there is none."""
        ...

    @property
    def delete_url_prefix(self) -> str | None:
        """Path segment before delete resources; None if there is none."""
        ...

    def missing_instances(self, resource: Resource, received: Iterable[str | Resource | Instance]) -> list[Resource]:
        """References to what the archive lists of a study or series, and a retrieval did not give."""
        ...

    def close(self) -> None:
        """Gives back connections, files and locks. A closed client is not to be used any more."""
        ...

    # Search, PS3.18 section 10.6 (QIDO-RS) -------------------------------------------------------------------------

    def search_page(self, query: SearchQuery, *, offset: int = 0, limit: int | None = None) -> SearchPage:
        """Makes one search request and returns its rows with what the archive said about the rest."""
        ...

    def iter_search(
        self, query: SearchQuery, *, offset: int = 0, limit: int | None = None, page_size: int | None = None
    ) -> Iterator[JSONDataset]:
        """Yields every row of a query once, page by page, `limit` rows at most; errors are raised, never the end."""
        ...

    def count(self, query: SearchQuery) -> int | None:
        """The number of rows of a query, if the archive can tell it without returning them, else None."""
        ...

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
        """Searches for studies: one request, or all pages with `get_remaining`."""
        ...

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
        """Searches for series, of one study or of all."""
        ...

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
        """Searches for instances, of one series, one study or all."""
        ...

    def iter_exclusions(self, query: SearchQuery | None = None) -> Iterator[Exclusion]:
        """Yields the files of the archive that searches do not return, and why; nothing for servers.

        With a query, duplicates are limited to instances that match it. Ignored and unreadable files are always
        yielded: nobody can tell whether they would match.
        """
        ...

    # Retrieve, PS3.18 section 10.4 (WADO-RS) -----------------------------------------------------------------------

    def iter_instances(
        self,
        resource: Resource,
        *,
        media_types: MediaTypes | None = None,
        max_element_bytes: int = DEFAULT_MAX_ELEMENT_BYTES,
        spool_directory: str | None = None,
        allow_transcoding: bool = False,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[Instance]:
        """Yields the instances of a study, series or instance as unparsed Part 10 bytes.

        Args:
            resource: A reference to a study, series or instance.
            media_types: Wanted encodings; by default the stored one (``transfer-syntax=*``).
            max_element_bytes: Larger instances are yielded as the path of a file that the caller then owns.
            spool_directory: A local directory for such files. Without one, a larger instance raises `ValueError`.
            allow_transcoding: Accept that the server re-encodes if it cannot give the original.
            additional_params: Further query parameters.

        Yields:
            `Instance`, each once, in the archive's order.

        Raises:
            requests.HTTPError: After all retries. What was yielded before is complete and correct; the exception
                names what is missing.
        """
        ...

    def iter_study(
        self,
        study_instance_uid: str,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[Dataset]:
        """Yields the instances of a study as pydicom datasets, one at a time."""
        ...

    def retrieve_study(
        self,
        study_instance_uid: str,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[Dataset]:
        """Retrieves all instances of a study as pydicom datasets."""
        ...

    def iter_series(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[Dataset]:
        """Yields the instances of a series as pydicom datasets, one at a time."""
        ...

    def retrieve_series(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[Dataset]:
        """Retrieves all instances of a series as pydicom datasets."""
        ...

    def retrieve_instance(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Any:
        """Retrieves an instance as a pydicom dataset, or its bulk data as `list[bytes]` for such media types."""
        ...

    def iter_metadata(
        self, resource: Resource, *, additional_params: Mapping[str, Any] | None = None
    ) -> Iterator[JSONDataset]:
        """Yields the metadata of the instances of a study, series or instance, one DICOM JSON dataset each."""
        ...

    def retrieve_study_metadata(
        self, study_instance_uid: str, additional_params: Mapping[str, Any] | None = None
    ) -> list[JSONDataset]:
        """Retrieves the metadata of all instances of a study."""
        ...

    def retrieve_series_metadata(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[JSONDataset]:
        """Retrieves the metadata of all instances of a series."""
        ...

    def retrieve_instance_metadata(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        additional_params: Mapping[str, Any] | None = None,
    ) -> JSONDataset:
        """Retrieves the metadata of an instance."""
        ...

    def iter_frames(
        self,
        resource: Resource,
        *,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
        max_element_bytes: int | None = None,
        spool_directory: str | None = None,
    ) -> Iterator[Frame]:
        """Yields the frames of a frame reference in the order asked for, as many as asked for.

        Args:
            resource: A reference with frame numbers; repeats are allowed.
            media_types: Wanted encodings; by default the stored one. ``application/octet-stream`` without a transfer
                syntax is uncompressed.
            additional_params: Further query parameters.
            max_element_bytes: A larger frame goes into a file as it arrives, which the caller owns: it has a path
                instead of content. None keeps all in memory.
            spool_directory: Where the files are made; by default the system's temporary directory.

        Raises:
            requests.HTTPError: If a frame does not exist or does not come.
        """
        ...

    def iter_instance_frames(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        frame_numbers: Sequence[int],
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[bytes]:
        """Yields frames of an instance, uncompressed by default, in the order asked for."""
        ...

    def retrieve_instance_frames(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        frame_numbers: Sequence[int],
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[bytes]:
        """Retrieves frames of an instance, uncompressed by default, in the order asked for."""
        ...

    def retrieve_rendered(
        self,
        resource: Resource,
        *,
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
        thumbnail: bool = False,
    ) -> RenderedImage:
        """Retrieves a study, series, instance or frame in a consumer format (PS3.18 section 10.4.1.1.3)."""
        ...

    def retrieve_study_rendered(
        self,
        study_instance_uid: str,
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Retrieves a rendered study."""
        ...

    def retrieve_series_rendered(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Retrieves a rendered series."""
        ...

    def retrieve_instance_rendered(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Retrieves a rendered instance."""
        ...

    def retrieve_instance_frames_rendered(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        frame_numbers: Sequence[int],
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Retrieves rendered frames of an instance."""
        ...

    def iter_bulkdata(
        self,
        url: str,
        media_types: MediaTypes | None = None,
        byte_range: tuple[int, int | None] | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[bytes]:
        """Yields the parts of the bulk data at a URL, as bytes."""
        ...

    def retrieve_bulkdata(
        self,
        url: str,
        media_types: MediaTypes | None = None,
        byte_range: tuple[int, int | None] | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[bytes]:
        """Retrieves the parts of the bulk data at a URL, as bytes."""
        ...

    def iter_bulkdata_parts(
        self,
        url: str,
        *,
        media_types: MediaTypes | None = None,
        byte_range: tuple[int, int | None] | None = None,
        additional_params: Mapping[str, Any] | None = None,
        max_element_bytes: int | None = None,
        spool_directory: str | None = None,
    ) -> Iterator[Bulkdata]:
        """Yields the parts of the bulk data at a URL, absolute or relative to the archive.

        Larger ones than `max_element_bytes` go into files of the caller's, as in `iter_frames`.
        """
        ...

    # Store and delete, PS3.18 sections 10.5 (STOW-RS) and 10.7 -----------------------------------------------------

    def iter_store_instances(
        self,
        instances: Iterable[Storable],
        *,
        study_instance_uid: str | None = None,
        on_existing: OnExisting = "server",
        verify: Verify = "response",
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[StoredInstance | Failure]:
        """Stores instances and yields the result of each, one for one and in order; a refusal is a `Failure`.

        Raises:
            requests.RequestException: Never for a single instance; only if the archive cannot be used at all.
        """
        ...

    def store_instances(
        self,
        datasets: Sequence[Storable],
        study_instance_uid: str | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """Stores instances and returns the Store Instances Response Module (PS3.18 Annex I) as a dataset.

        Raises:
            requests.HTTPError: If one was not stored; a subclass that carries the response and every outcome.
        """
        ...

    def delete_study(self, study_instance_uid: str, additional_params: Mapping[str, Any] | None = None) -> None:
        """Deletes a study."""
        ...

    def delete_series(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        additional_params: Mapping[str, Any] | None = None,
    ) -> None:
        """Deletes a series."""
        ...

    def delete_instance(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        additional_params: Mapping[str, Any] | None = None,
    ) -> None:
        """Deletes an instance."""
        ...


# ----------------------------------------------------------------------------------------------------------------------
# `Primitives`: the few operations from which the named methods of every client follow.


class Primitives:
    """What a client implements. See `dicomweb_io.client.DICOMClient` for what each method does."""

    _permissive_uid: bool = False

    lookup_keyword = staticmethod(lookup_keyword)
    lookup_tag = staticmethod(lookup_tag)

    @property
    def base_url(self) -> str:
        """The address of the archive, without user information."""
        raise NotImplementedError

    @property
    def scheme(self) -> str:
        """The scheme of the address."""
        return urlsplit(self.base_url).scheme

    @property
    def protocol(self) -> str | None:
        """The network protocol; None where there is none."""
        return None

    @property
    def url_prefix(self) -> str:
        """The path of the address, without trailing slash."""
        return urlsplit(self.base_url).path.rstrip("/")

    @property
    def qido_url_prefix(self) -> str | None:
        """Path segment before search resources; None if there is none."""
        return None

    @property
    def wado_url_prefix(self) -> str | None:
        """Path segment before retrieve resources; None if there is none."""
        return None

    @property
    def stow_url_prefix(self) -> str | None:
        """Path segment before store resources; None if there is none."""
        return None

    @property
    def delete_url_prefix(self) -> str | None:
        """Path segment before delete resources; None if there is none."""
        return None

    def close(self) -> None:
        """Gives back connections, files and locks."""

    def search_page(self, query: SearchQuery, *, offset: int = 0, limit: int | None = None) -> SearchPage:
        """Makes one search request."""
        raise NotImplementedError

    def iter_search(
        self, query: SearchQuery, *, offset: int = 0, limit: int | None = None, page_size: int | None = None
    ) -> Iterator[JSONDataset]:
        """Yields every row of a query once."""
        raise NotImplementedError

    def iter_instances(
        self,
        resource: Resource,
        *,
        media_types: MediaTypes | None = None,
        max_element_bytes: int = DEFAULT_MAX_ELEMENT_BYTES,
        spool_directory: str | None = None,
        allow_transcoding: bool = False,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[Instance]:
        """Yields unparsed instances."""
        raise NotImplementedError

    def iter_metadata(
        self, resource: Resource, *, additional_params: Mapping[str, Any] | None = None
    ) -> Iterator[JSONDataset]:
        """Yields the metadata of instances."""
        raise NotImplementedError

    def iter_frames(
        self,
        resource: Resource,
        *,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
        max_element_bytes: int | None = None,
        spool_directory: str | None = None,
    ) -> Iterator[Frame]:
        """Yields frames."""
        raise NotImplementedError

    def retrieve_rendered(
        self,
        resource: Resource,
        *,
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
        thumbnail: bool = False,
    ) -> RenderedImage:
        """Retrieves a rendered resource."""
        raise NotImplementedError

    def iter_bulkdata_parts(
        self,
        url: str,
        *,
        media_types: MediaTypes | None = None,
        byte_range: tuple[int, int | None] | None = None,
        additional_params: Mapping[str, Any] | None = None,
        max_element_bytes: int | None = None,
        spool_directory: str | None = None,
    ) -> Iterator[Bulkdata]:
        """Yields the parts of bulk data."""
        raise NotImplementedError

    def iter_store_instances(
        self,
        instances: Iterable[Storable],
        *,
        study_instance_uid: str | None = None,
        on_existing: OnExisting = "server",
        verify: Verify = "response",
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[StoredInstance | Failure]:
        """Stores instances and yields each result."""
        raise NotImplementedError

    def _delete(self, resource: Resource, additional_params: Mapping[str, Any] | None = None) -> None:
        """Deletes a study, series or instance."""
        raise NotImplementedError

    def iter_exclusions(self, query: SearchQuery | None = None) -> Iterator[Exclusion]:
        """Yields what searches leave out."""
        return iter(())

    def count(self, query: SearchQuery) -> int | None:
        """The number of rows, if it can be told without returning them."""
        return None


# ----------------------------------------------------------------------------------------------------------------------
# The search methods of the user guide (QIDO-RS, PS3.18 section 10.6), over `Primitives`.


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


# ----------------------------------------------------------------------------------------------------------------------
# The retrieve methods of the user guide (WADO-RS, PS3.18 section 10.4), over `Primitives`.


class NamedRetrieves(Primitives):
    """Retrieves studies, series, instances, metadata, frames, rendered forms and bulk data by name."""

    def _resource(
        self, study: object, series: object = None, instance: object = None, *, level: str, frames: Sequence[int] = ()
    ) -> Resource:
        names = {"study": 1, "series": 2, "instance": 3}[level]
        pairs = (("study_instance_uid", study), ("series_instance_uid", series), ("sop_instance_uid", instance))
        uids = {name: check_uid(value, name, permissive=self._permissive_uid) for name, value in pairs[:names]}
        return Resource(**uids, frames=tuple(frames))

    def iter_study(
        self,
        study_instance_uid: str,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[Dataset]:
        """Yields the instances of a study as pydicom datasets, one at a time."""
        return self._datasets(self._resource(study_instance_uid, level="study"), media_types, additional_params)

    def retrieve_study(
        self,
        study_instance_uid: str,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[Dataset]:
        """Retrieves all instances of a study as pydicom datasets (PS3.18 section 10.4)."""
        return list(self.iter_study(study_instance_uid, media_types, additional_params))

    def iter_series(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[Dataset]:
        """Yields the instances of a series as pydicom datasets, one at a time."""
        resource = self._resource(study_instance_uid, series_instance_uid, level="series")
        return self._datasets(resource, media_types, additional_params)

    def retrieve_series(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[Dataset]:
        """Retrieves all instances of a series as pydicom datasets (PS3.18 section 10.4)."""
        return list(self.iter_series(study_instance_uid, series_instance_uid, media_types, additional_params))

    def retrieve_study_metadata(
        self, study_instance_uid: str, additional_params: Mapping[str, Any] | None = None
    ) -> list[JSONDataset]:
        """Retrieves the metadata of all instances of a study (PS3.18 section 10.4.1.1.2)."""
        resource = self._resource(study_instance_uid, level="study")
        return list(self.iter_metadata(resource, additional_params=additional_params))

    def retrieve_series_metadata(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[JSONDataset]:
        """Retrieves the metadata of all instances of a series (PS3.18 section 10.4.1.1.2)."""
        resource = self._resource(study_instance_uid, series_instance_uid, level="series")
        return list(self.iter_metadata(resource, additional_params=additional_params))

    def retrieve_instance_metadata(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        additional_params: Mapping[str, Any] | None = None,
    ) -> JSONDataset:
        """Retrieves the metadata of an instance (PS3.18 section 10.4.1.1.2).

        Raises:
            requests.HTTPError: If the archive does not have the instance, or does not answer with one dataset.
        """
        resource = self._resource(study_instance_uid, series_instance_uid, sop_instance_uid, level="instance")
        rows = list(self.iter_metadata(resource, additional_params=additional_params))
        if len(rows) != 1:
            raise MalformedResponseError(
                f"expected the metadata of one instance, got {len(rows)} datasets",
                url=f"{self.base_url}/{resource.uri}",
            )
        return rows[0]

    def iter_study_metadata(
        self, study_instance_uid: str, additional_params: Mapping[str, Any] | None = None
    ) -> Iterator[JSONDataset]:
        """Yields the metadata of the instances of a study as they arrive."""
        return self.iter_metadata(
            self._resource(study_instance_uid, level="study"), additional_params=additional_params
        )

    def iter_series_metadata(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[JSONDataset]:
        """Yields the metadata of the instances of a series as they arrive."""
        resource = self._resource(study_instance_uid, series_instance_uid, level="series")
        return self.iter_metadata(resource, additional_params=additional_params)

    def retrieve_instance(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Any:
        """Retrieves an instance (PS3.18 section 10.4).

        Args:
            study_instance_uid: The study.
            series_instance_uid: The series.
            sop_instance_uid: The instance.
            media_types: Wanted encodings of ``application/dicom``; by default the stored one. Other media types, such
                as ``("image/jp2", "1.2.840.10008.1.2.4.90")``, ask for the instance's bulk data: its frames, for
                images.
            additional_params: Further query parameters.

        Returns:
            A pydicom `Dataset`; for bulk data `list[bytes]`.

        Raises:
            ValueError: If an instance and bulk data are asked for in one call.
            requests.HTTPError: If the archive does not have it, or cannot give it in this form.
        """
        resource = self._resource(study_instance_uid, series_instance_uid, sop_instance_uid, level="instance")
        accepted_types = parse_media_types(media_types)
        kinds = {accepted_type.name == DICOM or accepted_type.name == "*/*" for accepted_type in accepted_types}
        if kinds == {False}:
            return self._instance_bulkdata(resource, media_types or (), additional_params)
        if len(kinds) > 1:
            raise ValueError(f"media_types mixes {DICOM}, which is an instance, with types of bulk data: ask for one")
        datasets = list(self._datasets(resource, media_types, additional_params))
        if len(datasets) != 1:
            raise MalformedResponseError(
                f"expected one instance, got {len(datasets)}", url=f"{self.base_url}/{resource.uri}"
            )
        return datasets[0]

    def _instance_bulkdata(
        self, resource: Resource, media_types: MediaTypes, additional_params: Mapping[str, Any] | None
    ) -> list[bytes]:
        """The bulk data of an instance: all its frames."""
        metadata = list(self.iter_metadata(resource, additional_params=additional_params))
        count = first_value(metadata[0], "NumberOfFrames", 1) if metadata else 1
        frames = tuple(range(1, max(int(count), 1) + 1))
        numbered = replace(resource, frames=frames)
        found = self.iter_frames(numbered, media_types=media_types, additional_params=additional_params)
        return [_content_of(frame) for frame in found]

    def iter_instance_frames(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        frame_numbers: Sequence[int],
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[bytes]:
        """Yields frames one at a time. Arguments as in `retrieve_instance_frames`; see also `iter_frames`."""
        resource = self._frame_reference(study_instance_uid, series_instance_uid, sop_instance_uid, frame_numbers)
        frames = self.iter_frames(
            resource, media_types=media_types or (OCTET_STREAM,), additional_params=additional_params
        )
        return map(_content_of, frames)

    def retrieve_instance_frames(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        frame_numbers: Sequence[int],
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[bytes]:
        """Retrieves frames of an instance (PS3.18 section 10.4.1.1.6).

        Args:
            study_instance_uid: The study.
            series_instance_uid: The series.
            sop_instance_uid: The instance.
            frame_numbers: Frame numbers, counted from 1, in the order wanted; repeats are allowed.
            media_types: Wanted encodings in order of preference: media types or pairs of one and a transfer syntax UID
                (``"*"`` for the stored one). By default ``application/octet-stream``: uncompressed little-endian.
            additional_params: Further query parameters.

        Returns:
            As many frames as asked for, in the order asked for. `iter_frames` tells their transfer syntaxes too.
        """
        return list(
            self.iter_instance_frames(
                study_instance_uid,
                series_instance_uid,
                sop_instance_uid,
                frame_numbers,
                media_types,
                additional_params,
            )
        )

    def _frame_reference(
        self, study: object, series: object, instance: object, frame_numbers: Sequence[int]
    ) -> Resource:
        if isinstance(frame_numbers, (int, str, bytes)):
            raise TypeError(f"frame_numbers must be a sequence of int, not {type(frame_numbers).__name__}")
        numbers = tuple(map(_frame_number, frame_numbers))
        if not numbers:
            raise ValueError("frame_numbers is empty (expected one frame number at least, counted from 1)")
        return self._resource(study, series, instance, level="instance", frames=numbers)

    # Rendered ---------------------------------------------------------------------------------------------------------

    def retrieve_study_rendered(
        self,
        study_instance_uid: str,
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Retrieves a rendered study. Arguments as in `retrieve_instance_rendered`."""
        resource = self._resource(study_instance_uid, level="study")
        return self.retrieve_rendered(resource, media_types=media_types, params=params).content

    def retrieve_series_rendered(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Retrieves a rendered series. Arguments as in `retrieve_instance_rendered`."""
        resource = self._resource(study_instance_uid, series_instance_uid, level="series")
        return self.retrieve_rendered(resource, media_types=media_types, params=params).content

    def retrieve_instance_rendered(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Retrieves a rendered instance (PS3.18 section 10.4.1.1.3).

        Args:
            study_instance_uid: The study.
            series_instance_uid: The series.
            sop_instance_uid: The instance.
            media_types: Wanted types, such as ``image/png``, in order of preference; by default the archive's choice.
            params: ``quality``, ``window``, ``viewport``, ``annotation``, ``iccprofile`` (PS3.18 table 8.3.5-1).

        Returns:
            The bytes of the image, video or text.
        """
        resource = self._resource(study_instance_uid, series_instance_uid, sop_instance_uid, level="instance")
        return self.retrieve_rendered(resource, media_types=media_types, params=params).content

    def retrieve_instance_frames_rendered(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        frame_numbers: Sequence[int],
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Retrieves rendered frames. Further arguments as in `retrieve_instance_rendered`."""
        resource = self._frame_reference(study_instance_uid, series_instance_uid, sop_instance_uid, frame_numbers)
        return self.retrieve_rendered(resource, media_types=media_types, params=params).content

    # Bulk data --------------------------------------------------------------------------------------------------------

    def iter_bulkdata(
        self,
        url: str,
        media_types: MediaTypes | None = None,
        byte_range: tuple[int, int | None] | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[bytes]:
        """Yields the parts of bulk data. Arguments as in `retrieve_bulkdata`."""
        parts = self.iter_bulkdata_parts(
            url, media_types=media_types, byte_range=byte_range, additional_params=additional_params
        )
        return map(_content_of, parts)

    def retrieve_bulkdata(
        self,
        url: str,
        media_types: MediaTypes | None = None,
        byte_range: tuple[int, int | None] | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[bytes]:
        """Retrieves bulk data (PS3.18 section 10.4.1.1.5).

        Args:
            url: A BulkDataURI, as metadata give it.
            media_types: Wanted types in order of preference.
            byte_range: First and last byte (inclusive, counted from 0); the last may be None for the end.
            additional_params: Further query parameters.

        Returns:
            The parts: one, or those that the archive keeps the value in (encapsulated pixel data: fragments).
        """
        return list(self.iter_bulkdata(url, media_types, byte_range, additional_params))

    def _datasets(
        self, resource: Resource, media_types: MediaTypes | None, additional_params: Mapping[str, Any] | None
    ) -> Iterator[Dataset]:
        # A dataset is in memory whatever its size, so nothing is gained by a spool file here.
        for instance in self.iter_instances(
            resource, media_types=media_types, max_element_bytes=sys.maxsize, additional_params=additional_params
        ):
            yield instance.dataset()


def _frame_number(value: object) -> int:
    if not isinstance(value, SupportsIndex) or isinstance(value, bool):
        raise TypeError(f"frame_numbers must be int, but one is {type(value).__name__}")
    # NumPy's integers are good too.
    return value.__index__()


def _content_of(item: Frame | Bulkdata) -> bytes:
    if item.content is not None:
        return item.content
    if item.path is None:
        raise ValueError("a frame or bulk data value has neither content nor path")
    with fsspec.open(item.path, "rb") as file:
        return bytes(file.read())


# ----------------------------------------------------------------------------------------------------------------------
# `ClientBase`: the named methods of the user guide, written once over the few primitives of a client.
#
# A client implements what `dicomweb_io.client.Primitives` lists; everything else follows.


class ClientBase(NamedSearches, NamedRetrieves):
    """The methods that all clients share. See `dicomweb_io.client.DICOMClient` for what each does."""

    # Delete -----------------------------------------------------------------------------------------------------------

    def delete_study(self, study_instance_uid: str, additional_params: Mapping[str, Any] | None = None) -> None:
        """Deletes a study.

        Raises:
            requests.HTTPError: If the archive refuses, or does not have it (404).
        """
        self._delete(self._resource(study_instance_uid, level="study"), additional_params)

    def delete_series(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        additional_params: Mapping[str, Any] | None = None,
    ) -> None:
        """Deletes a series. Errors as in `delete_study`."""
        self._delete(self._resource(study_instance_uid, series_instance_uid, level="series"), additional_params)

    def delete_instance(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        additional_params: Mapping[str, Any] | None = None,
    ) -> None:
        """Deletes an instance. Errors as in `delete_study`."""
        resource = self._resource(study_instance_uid, series_instance_uid, sop_instance_uid, level="instance")
        self._delete(resource, additional_params)

    # Settings ---------------------------------------------------------------------------------------------------------

    def set_chunk_size(self, chunk_size: int) -> None:
        """Sets the most bytes to read at once, where the client reads from a network.

        Raises:
            TypeError, ValueError: If it is not a positive integer.
        """
        check_chunk_size(chunk_size)

    def set_http_retry_params(
        self,
        retry: bool = True,
        max_attempts: int = 5,
        wait_exponential_multiplier: int = 1000,
        retriable_error_codes: tuple[int, ...] = (429, 408, 503, 504),
    ) -> None:
        """Sets when and how often to try again, where the client talks HTTP."""

    # Context ----------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_chunk_size(chunk_size: object) -> int:
    """Returns `chunk_size` if it is a positive integer.

    Raises:
        TypeError, ValueError: If it is not.
    """
    if not isinstance(chunk_size, int) or isinstance(chunk_size, bool):
        raise TypeError(f"chunk_size must be an int, not {type(chunk_size).__name__}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, not {chunk_size}")
    return chunk_size
