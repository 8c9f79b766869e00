"""`DICOMClient`: what every client of an archive can do, whether a DICOMweb server or a folder of files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, Union, runtime_checkable

from dicomweb_io.elements import (
    Bulkdata,
    Exclusion,
    Failure,
    Frame,
    Instance,
    JSONDataset,
    RenderedImage,
    Resource,
    SearchPage,
    SearchQuery,
    StoredInstance,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

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
