"""`Primitives`: the few operations from which the named methods of every client follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from dicomweb_io.clients.protocol import DEFAULT_MAX_ELEMENT_BYTES, MediaTypes, OnExisting, Storable, Verify
from dicomweb_io.dicom.attributes import lookup_keyword, lookup_tag
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


class Primitives:
    """What a client implements. See `dicomweb_io.clients.protocol.DICOMClient` for what each method does."""

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
