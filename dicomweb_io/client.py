"""`DICOMClient`: what every client of an archive can do, whether a DICOMweb server or a folder of files."""

from __future__ import annotations

import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, SupportsIndex, TypeVar, Union
from urllib.parse import urlsplit

import fsspec

from dicomweb_io.dicom.attributes import lookup_keyword, lookup_tag
from dicomweb_io.dicom.frames import number_of_frames
from dicomweb_io.dicom.media_types import DICOM, OCTET_STREAM, parse_media_types
from dicomweb_io.dicom.uids import check_uid
from dicomweb_io.elements import (
    COLLECTIONS,
    UID_TAGS,
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
from dicomweb_io.errors import (
    InvalidIdentifierError,
    MalformedResponseError,
    SearchIncompleteError,
    StoreError,
    http_error,
)
from dicomweb_io.http.settings import Prefixes
from dicomweb_io.profiles import GENERIC, Finding, ProbeReport, ServerProfile
from dicomweb_io.queries import check_limits, make_query
from dicomweb_io.store_response import response_module

if TYPE_CHECKING:
    from types import TracebackType

    from pydicom.dataset import Dataset
    from typing_extensions import Self

    from dicomweb_io.http.retry import Stats
    from dicomweb_io.http.transport import Transport

MediaTypes = Sequence[str | tuple[str, str | Sequence[str]]]
"""Accepted media types in order of preference: a media type, or a pair of it and its transfer syntax (or ``"*"``)."""

Storable = Union[Instance, bytes, str, "os.PathLike[str]", "Dataset", BinaryIO]
"""What can be stored: an `Instance`, Part 10 bytes, a path, a pydicom dataset, or a file opened for reading."""

OnExisting = Literal["server", "skip", "replace", "error"]
Verify = Literal["response", "uid", "content"]
FilterMismatch = Literal["error", "warn"]

S = TypeVar("S")
T = TypeVar("T")

logger = logging.getLogger("dicomweb_io")

DEFAULT_MAX_ELEMENT_BYTES = 64 * 1024 * 1024
_FRAMES_AT_ONCE = 1000


class DICOMClient(ABC):
    """An archive of DICOM objects, with operations named and shaped after PS3.18 (sections 10.4 to 10.7).

    `DICOMwebClient` talks to a server, `DICOMfileClient` to a folder. To reach an archive in another way, make a
    subclass with the abstract methods: everything else is written over them, and may be overridden where the archive
    can do better.

    Methods named ``iter_…`` are lazy: they return an iterator, ask as they go, and hold at most one part at a time.
    Closing the iterator (or dropping it) ends the request. Clients may be used from several threads at once.

    Attributes:
        permissive_uid: Whether UIDs that PS3.5 does not allow are accepted; see `dicomweb_io.dicom.uids.is_uid`.
    """

    permissive_uid: bool = False

    lookup_keyword = staticmethod(lookup_keyword)
    lookup_tag = staticmethod(lookup_tag)

    # What an archive implements -------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def base_url(self) -> str:
        """The address of the archive, without user information and trailing slash."""

    @abstractmethod
    def search_page(
        self,
        query: SearchQuery,
        *,
        offset: int = 0,
        limit: int | None = None,
        surplus: bool = True,
        walk: bool = True,
    ) -> SearchPage:
        """Makes one search request (PS3.18 section 10.6, QIDO-RS).

        Args:
            query: The search; see `dicomweb_io.queries.make_query`.
            offset: Rows to skip.
            limit: The maximum number of rows; one above the archive's maximum is lowered to it. None leaves it to the
                archive, and for 0 it is not asked.
            surplus: Whether further rows, of an archive that ignores the limit, are returned too.
            walk: Whether the levels above are searched, by many requests, where the archive lacks this search.

        Returns:
            Its rows, with what the archive says about the rest.

        Raises:
            requests.HTTPError: If the archive refuses, ignores a filter, or answers with something else.
            FileNotFoundError: If the archive is a folder that does not exist, except in a search within a study.
            ValueError: If a filter cannot be matched.
        """

    @abstractmethod
    def iter_search(
        self, query: SearchQuery, *, offset: int = 0, limit: int | None = None, page_size: int | None = None
    ) -> Iterator[JSONDataset]:
        """Yields every row of a query once, page by page.

        Args:
            query: The search; see `dicomweb_io.queries.make_query`.
            offset: Rows to skip.
            limit: The maximum number of rows; None for all.
            page_size: Rows to ask for at once; by default what suits the archive.

        Yields:
            DICOM JSON datasets in the archive's order.

        Raises:
            SearchIncompleteError: After all rows that came, if the archive announced more, or if some cannot be read.
            requests.HTTPError: If a page fails, or if it cannot be known that all rows were returned. An error never
                looks like the end of the rows.
            FileNotFoundError, ValueError: As in `search_page`.
        """

    @abstractmethod
    def iter_instances(
        self,
        resource: Resource,
        *,
        media_types: MediaTypes | None = None,
        max_element_bytes: int = DEFAULT_MAX_ELEMENT_BYTES,
        spool_directory: str | None = None,
        allow_transcoding: bool = False,
        additional_params: Mapping[str, Any] | None = None,
        borrow: bool = False,
    ) -> Iterator[Instance]:
        """Yields the instances of a study, series or instance as unparsed Part 10 bytes (PS3.18 section 10.4, WADO-RS).

        Args:
            resource: A reference to a study, series or instance.
            media_types: Accepted encodings; by default the stored one (``transfer-syntax=*``).
            max_element_bytes: Larger instances are yielded as the path of a file that the caller then owns.
            spool_directory: A local directory for such files. Without one, a larger instance raises `ValueError`.
            allow_transcoding: Accept that the archive re-encodes if it cannot give the original.
            additional_params: Further query parameters.
            borrow: Where the archive's own file lies on this computer, yield a larger instance by the path of that file
                instead of a copy. The caller must neither change nor delete it; it lies outside of `spool_directory`.

        Yields:
            `Instance`, each once, in the archive's order; those that a server sends without pixel data come last, after
            a second request. `Instance.warnings` says what is odd about one.

        Raises:
            requests.HTTPError: After all retries. What was yielded before is complete and correct; the exception
                names what is missing. The status is 404 if nothing is found, 406 if no accepted encoding is available,
                409 if an instance changed since the archive was searched.
            ValueError: If an argument is not valid, or an instance is too large and there is no spool directory.
        """

    @abstractmethod
    def iter_metadata(
        self, resource: Resource, *, additional_params: Mapping[str, Any] | None = None
    ) -> Iterator[JSONDataset]:
        """Yields the metadata of the instances of a study, series or instance (PS3.18 section 10.4.1.1.2).

        Args:
            resource: A reference to a study, series or instance.
            additional_params: Further query parameters.

        Yields:
            One DICOM JSON dataset for each instance. Large values are absolute BulkDataURIs of this archive.

        Raises:
            requests.HTTPError: As in `iter_instances`.
        """

    @abstractmethod
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
            media_types: Accepted encodings; by default the stored one. ``application/octet-stream`` without a transfer
                syntax is uncompressed.
            additional_params: Further query parameters.
            max_element_bytes: A larger frame goes into a file as it arrives, which the caller owns: it has a path
                instead of content. None keeps all in memory.
            spool_directory: Where the files are made; by default the system's temporary directory.

        Raises:
            requests.HTTPError: 404 if the instance or a frame does not exist, 406 if no accepted encoding is available,
                or if a frame is missing.
            ValueError: If the reference names no frames, or no frame has one of the media types.
        """

    @abstractmethod
    def retrieve_rendered(
        self,
        resource: Resource,
        *,
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
        thumbnail: bool = False,
    ) -> RenderedImage:
        """Retrieves a study, series, instance or frames in a consumer format (PS3.18 section 10.4.1.1.3).

        Args:
            resource: What to render. A study or series may be rendered as one image.
            media_types: Accepted types, such as ``image/png``, in order of preference; by default the archive's choice.
            params: ``quality``, ``window``, ``viewport``, ``annotation``, ``iccprofile`` (PS3.18 table 8.3.5-1).
            thumbnail: Ask for a small image.

        Raises:
            requests.HTTPError: 404 if it does not exist, 406 if it cannot be rendered in an accepted type.
            ValueError: If a parameter is not valid.
        """

    @abstractmethod
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
        """Yields the parts of the bulk data at a URL (PS3.18 section 10.4.1.1.5).

        Args:
            url: A BulkDataURI as metadata give it: absolute, or relative to the archive.
            media_types: Accepted types in order of preference.
            byte_range: First and last byte (inclusive, counted from 0); the last may be None for the end.
            additional_params: Further query parameters.
            max_element_bytes: Larger parts are given as files, which the caller owns, as in `iter_frames`.
            spool_directory: Where the files are made.

        Raises:
            requests.HTTPError: 404 if there is no such value, 416 if the range lies outside of it.
            ValueError: If the URL cannot be one of this archive.
        """

    @abstractmethod
    def iter_store_instances(
        self,
        instances: Iterable[Storable],
        *,
        study_instance_uid: str | None = None,
        on_existing: OnExisting = "server",
        verify: Verify = "response",
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[StoredInstance | Failure]:
        """Stores instances and yields the result of each, one for one and in order (PS3.18 section 10.5, STOW-RS).

        Args:
            instances: What to store. Paths are streamed, never loaded.
            study_instance_uid: Store into this study only; instances of another study fail before anything is sent.
            on_existing: What to do with an instance that the archive has. ``"server"`` leaves it to the archive (a
                folder keeps what is there, and reports a `Failure` if its bytes are different); ``"skip"`` leaves what
                is there; ``"replace"`` puts the new one in its place; ``"error"`` reports a `Failure`.
            verify: ``"response"`` takes the archive's answer as proof; ``"uid"`` looks for the instance afterwards;
                ``"content"`` compares the bytes, also with those of an instance that was there.
            additional_params: Further query parameters.

        Yields:
            `StoredInstance`, or `Failure` for an instance that was refused.

        Raises:
            requests.RequestException: Never for a single instance; only if the archive cannot be used at all.
            ValueError: If an argument is not valid, or the archive cannot do what it asks for.
        """

    @abstractmethod
    def delete_resource(self, resource: Resource, *, additional_params: Mapping[str, Any] | None = None) -> None:
        """Deletes a study, series or instance.

        Args:
            resource: What to delete.
            additional_params: Further query parameters.

        Raises:
            requests.HTTPError: 404 if the archive does not have it, 403 or another status if it refuses.
        """

    # What may be asked of any archive -------------------------------------------------------------------------------

    @property
    def scheme(self) -> str:
        """The scheme of the address: ``"https"``, ``"http"``, ``"file"``, …"""
        return urlsplit(self.base_url).scheme

    @property
    def protocol(self) -> str | None:
        """The network protocol, ``"https"`` or ``"http"``; None where there is none."""
        return None

    @property
    def url_prefix(self) -> str:
        """The path of the address, without trailing slash."""
        return urlsplit(self.base_url).path.rstrip("/")

    @property
    def prefixes(self) -> Prefixes:
        """Path segments between the address and the resources, where the archive has some."""
        return Prefixes()

    @property
    def qido_url_prefix(self) -> str | None:
        """Path segment before search resources; None if there is none."""
        return self.prefixes.qido

    @qido_url_prefix.setter
    def qido_url_prefix(self, prefix: str | None) -> None:
        self._set_prefix("qido", prefix)

    @property
    def wado_url_prefix(self) -> str | None:
        """Path segment before retrieve resources; None if there is none."""
        return self.prefixes.wado

    @wado_url_prefix.setter
    def wado_url_prefix(self, prefix: str | None) -> None:
        self._set_prefix("wado", prefix)

    @property
    def stow_url_prefix(self) -> str | None:
        """Path segment before store resources; None if there is none."""
        return self.prefixes.stow

    @stow_url_prefix.setter
    def stow_url_prefix(self, prefix: str | None) -> None:
        self._set_prefix("stow", prefix)

    @property
    def delete_url_prefix(self) -> str | None:
        """Path segment before delete resources; None if there is none."""
        return self.prefixes.delete

    @delete_url_prefix.setter
    def delete_url_prefix(self, prefix: str | None) -> None:
        self._set_prefix("delete", prefix)

    def _set_prefix(self, name: str, prefix: str | None) -> None:
        """Sets one of the path segments, for requests that begin later."""
        if prefix is not None:
            raise ValueError(f"{self.base_url} has no path segments before its resources, so {prefix!r} cannot be set")

    @property
    def profile(self) -> ServerProfile:
        """How the archive behaves: how it pages, what it can do, what it keeps of a file."""
        return GENERIC

    @property
    def transport(self) -> Transport | None:
        """The HTTP connection, for requests beside DICOMweb; None for an archive that is not reached by HTTP."""
        return None

    def check_place(self) -> None:  # noqa: B027 - most archives have nothing to check
        """Asks the server of a remote folder once whether the folder can be used; see `DICOMfileClient.check_place`.

        Raises:
            requests.HTTPError: If it cannot.
        """

    @property
    def stats(self) -> Stats | None:
        """What the client did on the network so far; None where it uses none."""
        return None if self.transport is None else self.transport.stats

    @property
    def unavailable(self) -> str | None:
        """Why further requests would fail like the last ones: it was lost, or refuses the login. Else None."""
        return None if self.transport is None else self.transport.unavailable

    def survive_outages(self, seconds: float) -> None:
        """Waits from now on for so long for an archive that has answered before and cannot be connected to any more.

        While one request probes it, all others of this process wait.
        """
        if self.transport is not None:
            self.transport.outage = seconds

    def probe(self) -> ProbeReport:
        """Asks the archive what it is and what it can do; only reads.

        Raises:
            requests.HTTPError: If it cannot be reached, or refuses searches.
            FileNotFoundError: If it is a folder that does not exist.
        """
        findings = []
        for level, name in COLLECTIONS.items():
            query = SearchQuery(level)
            number = self.count(query)
            detail = (
                f"{number} found" if number is not None else f"{len(self.search_page(query, limit=1).rows)} of 1 row"
            )
            findings.append(Finding(f"search of {name}", True, detail))
        return ProbeReport(self.profile, True, tuple(findings))

    def refresh(self) -> object:
        """Looks at the archive again, where searches see it as it was at an earlier time."""
        return None

    def locations_of(self, resource: Resource) -> list[str]:
        """The files of a study, series or instance, as paths or fsspec URLs, where the archive is made of files."""
        return []

    def size_of(self, resource: Resource | None = None) -> int | None:
        """The bytes of the files of a study, series or instance, or of all; None for servers, which do not tell."""
        return None

    def sizes_of(self, resource: Resource) -> Mapping[Resource, int]:
        """The bytes of each instance of a study or series, where the archive knows them without reading it."""
        return {}

    def count(self, query: SearchQuery) -> int | None:
        """The number of rows of a query, if the archive reports it without returning them, else None.

        Raises:
            requests.HTTPError, FileNotFoundError, ValueError: As in `search_page`.
        """
        return None

    def iter_exclusions(self, query: SearchQuery | None = None) -> Iterator[Exclusion]:
        """Yields the files of the archive that searches do not return, and why; nothing for servers.

        With a query, duplicates are limited to instances that match it. Ignored and unreadable files are always
        yielded, because it is unknown whether they match.
        """
        return iter(())

    # Settings and context -------------------------------------------------------------------------------------------

    def set_chunk_size(self, chunk_size: int) -> None:
        """Sets how many bytes are read from a network at once, at most.

        Raises:
            TypeError, ValueError: If it is not a positive integer.
        """
        check_chunk_size(chunk_size)

    def set_http_retry_params(  # noqa: B027 - an archive that is not reached by HTTP has nothing to set
        self,
        retry: bool = True,
        max_attempts: int = 5,
        wait_exponential_multiplier: int = 1000,
        retriable_error_codes: tuple[int, ...] = (429, 408, 503, 504),
    ) -> None:
        """Sets when and how often to try again, for HTTP requests that begin later.

        Args:
            retry: Whether to try again at all.
            max_attempts: Attempts in all.
            wait_exponential_multiplier: The first wait, at most, in milliseconds; it doubles with each attempt.
            retriable_error_codes: HTTP statuses that are worth another attempt.
        """

    def close(self) -> None:  # noqa: B027 - a client may hold nothing
        """Releases connections, files and locks."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Search, PS3.18 section 10.6 (QIDO-RS) --------------------------------------------------------------------------

    def _listed(self, query: SearchQuery, offset: int, limit: int | None, get_remaining: bool) -> list[JSONDataset]:
        rows: list[JSONDataset] = []
        try:
            page = None if get_remaining else self.search_page(query, offset=offset, limit=limit, surplus=False)
            # An empty page is no end where the archive announces rows behind it: all of the search shows whether it is.
            if page is None or (page.more and not page.rows and not page.unreadable):
                # Not `list(…)`: the rows before an error are kept.
                for row in self.iter_search(query, offset=offset, limit=limit):
                    rows.append(row)  # noqa: PERF402
                return rows
            rows += page.rows[:limit]
            if page.unreadable:
                what = f"{page.unreadable} of the rows cannot be read, because they are not datasets"
                raise SearchIncompleteError(f"{what}; {len(rows)} rows came", method="GET", url=self.base_url)
            if page.more and not page.warnings and (limit is None or len(rows) < limit):
                logger.warning("%s: more rows follow the %d of this page (see get_remaining)", self.base_url, len(rows))
        except SearchIncompleteError as error:
            error.rows = rows or error.rows
            raise
        return rows

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
            limit: The maximum number of rows.
            offset: Rows to skip.
            fields: Further attributes to return, by keyword or tag, or ``["all"]``.
            search_filters: Attribute (keyword, tag or dotted path) to value.
            get_remaining: Request pages until `limit` rows, or all, have arrived. Otherwise one request is made, and
                the server's own maximum may cut the answer short.
            additional_params: Further query parameters.

        Returns:
            DICOM JSON datasets in the archive's order.

        Raises:
            SearchIncompleteError: If not all rows came, or some cannot be read; the error has those that came.
        """
        check_limits(limit, offset)
        query = make_query(
            "study",
            fuzzymatching=fuzzymatching,
            fields=fields,
            search_filters=search_filters,
            additional_params=additional_params,
        )
        return self._listed(query, offset or 0, limit, get_remaining)

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
        """Searches for series, of one study or of all. Further arguments as in `search_for_studies`."""
        check_limits(limit, offset)
        query = make_query(
            "series",
            study_instance_uid,
            fuzzymatching=fuzzymatching,
            fields=fields,
            search_filters=search_filters,
            additional_params=additional_params,
            permissive_uid=self.permissive_uid,
        )
        return self._listed(query, offset or 0, limit, get_remaining)

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
        """Searches for instances, of one series, one study or all. Further arguments as in `search_for_studies`."""
        check_limits(limit, offset)
        query = make_query(
            "instance",
            study_instance_uid,
            series_instance_uid,
            fuzzymatching=fuzzymatching,
            fields=fields,
            search_filters=search_filters,
            additional_params=additional_params,
            permissive_uid=self.permissive_uid,
        )
        return self._listed(query, offset or 0, limit, get_remaining)

    def iter_search_for_studies(
        self, *, limit: int | None = None, offset: int | None = None, page_size: int | None = None, **arguments: Any
    ) -> Iterator[JSONDataset]:
        """Yields studies lazily, page by page, `limit` at most. Further arguments as in `search_for_studies`."""
        check_limits(limit, offset, page_size)
        query = make_query("study", permissive_uid=self.permissive_uid, **arguments)
        return self.iter_search(query, offset=offset or 0, limit=limit, page_size=page_size)

    def iter_search_for_series(
        self,
        study_instance_uid: str | None = None,
        *,
        limit: int | None = None,
        offset: int | None = None,
        page_size: int | None = None,
        **arguments: Any,
    ) -> Iterator[JSONDataset]:
        """Yields series lazily, page by page, `limit` at most. Further arguments as in `search_for_series`."""
        check_limits(limit, offset, page_size)
        query = make_query("series", study_instance_uid, permissive_uid=self.permissive_uid, **arguments)
        return self.iter_search(query, offset=offset or 0, limit=limit, page_size=page_size)

    def iter_search_for_instances(
        self,
        study_instance_uid: str | None = None,
        series_instance_uid: str | None = None,
        *,
        limit: int | None = None,
        offset: int | None = None,
        page_size: int | None = None,
        **arguments: Any,
    ) -> Iterator[JSONDataset]:
        """Yields instances lazily, page by page, `limit` at most. Further arguments as in `search_for_instances`."""
        check_limits(limit, offset, page_size)
        query = make_query(
            "instance", study_instance_uid, series_instance_uid, permissive_uid=self.permissive_uid, **arguments
        )
        return self.iter_search(query, offset=offset or 0, limit=limit, page_size=page_size)

    # Completeness -----------------------------------------------------------------------------------------------------

    def expected_instances(self, resource: Resource) -> Iterator[Resource]:
        """Yields references to the instances that a search lists for a study or series, each once.

        Raises:
            SearchIncompleteError: After them, if not all rows came, or some do not name an instance.
        """
        query = SearchQuery("instance", resource.study_instance_uid, resource.series_instance_uid)
        seen: set[Resource] = set()
        nameless = 0
        implied = {UID_TAGS[level]: {"vr": "UI", "Value": [uid]} for level, uid in resource.series.uids.items()}
        for row in self.iter_search(query):
            try:
                reference = Resource.of({**implied, **row})
            except InvalidIdentifierError:
                nameless += 1
                continue
            if reference.level != "instance":
                nameless += 1
            elif reference not in seen and resource.contains(reference):
                seen.add(reference)
                yield reference
        if nameless:
            what = f"{nameless} rows of the search for instances of {resource.uri} do not name an instance"
            raise SearchIncompleteError(what, method="GET", url=self.base_url)

    def missing_instances(self, resource: Resource, received: Iterable[str | Resource | Instance]) -> list[Resource]:
        """Compares what a retrieval gave with what a search lists.

        Args:
            resource: The study or series that was retrieved.
            received: What the retrieval returned: SOP Instance UIDs, references or instances.

        Returns:
            References to instances that the archive lists and did not return; empty if none is missing.
        """
        came = {item.reference if isinstance(item, Instance) else item for item in received}
        return [
            reference
            for reference in self.expected_instances(resource)
            if reference not in came and reference.sop_instance_uid not in came
        ]

    # Retrieve, PS3.18 section 10.4 (WADO-RS) --------------------------------------------------------------------------

    def _resource(self, *uids: object, frames: Sequence[int] = ()) -> Resource:
        """A reference of the UIDs from the study down, each of which is checked."""
        pairs = zip(("study_instance_uid", "series_instance_uid", "sop_instance_uid"), uids, strict=False)
        return Resource(
            **{name: check_uid(uid, name, permissive=self.permissive_uid) for name, uid in pairs}, frames=tuple(frames)
        )

    def iter_study(
        self,
        study_instance_uid: str,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[Dataset]:
        """Yields the instances of a study as pydicom datasets, one at a time."""
        return self._datasets(self._resource(study_instance_uid), media_types, additional_params)

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
        return self._datasets(self._resource(study_instance_uid, series_instance_uid), media_types, additional_params)

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
        return list(self.iter_metadata(self._resource(study_instance_uid), additional_params=additional_params))

    def retrieve_series_metadata(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[JSONDataset]:
        """Retrieves the metadata of all instances of a series (PS3.18 section 10.4.1.1.2)."""
        resource = self._resource(study_instance_uid, series_instance_uid)
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
        resource = self._resource(study_instance_uid, series_instance_uid, sop_instance_uid)
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
        return self.iter_metadata(self._resource(study_instance_uid), additional_params=additional_params)

    def iter_series_metadata(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[JSONDataset]:
        """Yields the metadata of the instances of a series as they arrive."""
        resource = self._resource(study_instance_uid, series_instance_uid)
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
            media_types: Accepted encodings of ``application/dicom``; by default the stored one. Other media types, such
                as ``("image/jp2", "1.2.840.10008.1.2.4.90")``, ask for the instance's bulk data: its frames, for
                images.
            additional_params: Further query parameters.

        Returns:
            A pydicom `Dataset`; for bulk data `list[bytes]`.

        Raises:
            ValueError: If an instance and bulk data are asked for in one call.
            requests.HTTPError: If the archive does not have it, or cannot give it in this form.
        """
        resource = self._resource(study_instance_uid, series_instance_uid, sop_instance_uid)
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
        """The bulk data of an instance: all its frames, or the stream of a video."""
        metadata = list(self.iter_metadata(resource, additional_params=additional_params))
        pixels = metadata[0].get("7FE00010", {}) if metadata else {}
        if "BulkDataURI" in pixels and all(kind.name.startswith("video/") for kind in parse_media_types(media_types)):
            return list(self.iter_bulkdata(pixels["BulkDataURI"], media_types))
        last = max(number_of_frames(metadata[0]), 1) if metadata else 1
        found: list[bytes] = []
        # What metadata say is no reason to fill the memory with numbers: the first frame that is missing ends it.
        for start in range(1, last + 1, _FRAMES_AT_ONCE):
            numbered = replace(resource, frames=tuple(range(start, min(start + _FRAMES_AT_ONCE, last + 1))))
            frames = self.iter_frames(numbered, media_types=media_types, additional_params=additional_params)
            found += map(_content_of, frames)
        return found

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
        return _each(_content_of, frames)

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
            media_types: Accepted encodings in order of preference: media types, or pairs of one and a transfer syntax
                UID (``"*"`` for the stored one). By default ``application/octet-stream``: uncompressed little-endian.
            additional_params: Further query parameters.

        Returns:
            As many frames as asked for, in the order asked for. `iter_frames` also returns their transfer syntaxes.
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
        return self._resource(study, series, instance, frames=numbers)

    # Rendered ---------------------------------------------------------------------------------------------------------

    def retrieve_study_rendered(
        self,
        study_instance_uid: str,
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Retrieves a rendered study. Arguments as in `retrieve_instance_rendered`."""
        resource = self._resource(study_instance_uid)
        return self.retrieve_rendered(resource, media_types=media_types, params=params).content

    def retrieve_series_rendered(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Retrieves a rendered series. Arguments as in `retrieve_instance_rendered`."""
        resource = self._resource(study_instance_uid, series_instance_uid)
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
            media_types: Accepted types, such as ``image/png``, in order of preference; by default the archive's choice.
            params: ``quality``, ``window``, ``viewport``, ``annotation``, ``iccprofile`` (PS3.18 table 8.3.5-1).

        Returns:
            The bytes of the image, video or text.
        """
        resource = self._resource(study_instance_uid, series_instance_uid, sop_instance_uid)
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
        return _each(_content_of, parts)

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
            media_types: Accepted types in order of preference.
            byte_range: First and last byte (inclusive, counted from 0); the last may be None for the end.
            additional_params: Further query parameters.

        Returns:
            The parts: one, or those that the archive keeps the value in (encapsulated pixel data: fragments).
        """
        return list(self.iter_bulkdata(url, media_types, byte_range, additional_params))

    def _datasets(
        self, resource: Resource, media_types: MediaTypes | None, additional_params: Mapping[str, Any] | None
    ) -> Iterator[Dataset]:
        # A dataset is held in memory anyway, so a spool file would gain nothing.
        instances = self.iter_instances(
            resource, media_types=media_types, max_element_bytes=sys.maxsize, additional_params=additional_params
        )
        return _each(Instance.dataset, instances)

    # Store and delete, PS3.18 sections 10.5 (STOW-RS) and 10.7 ------------------------------------------------------

    def store_instances(
        self,
        datasets: Iterable[Storable],
        study_instance_uid: str | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """Stores instances (PS3.18 section 10.5); existing ones as with ``on_existing="server"``.

        Args:
            datasets: pydicom datasets, Part 10 bytes, paths, open files or `Instance`s.
            study_instance_uid: Store into this study only; instances of another study fail before anything is sent.
            additional_params: Further query parameters.

        Returns:
            The Store Instances Response Module (PS3.18 Annex I), of all requests together.

        Raises:
            StoreError: If an instance was not stored. It has the response module and the outcome of each instance.
        """
        outcomes = list(
            self.iter_store_instances(
                datasets, study_instance_uid=study_instance_uid, additional_params=additional_params
            )
        )
        url = f"{self.base_url}/studies"
        response = response_module(outcomes, f"{url}/{study_instance_uid}" if study_instance_uid else None)
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        if failures:
            raise StoreError(
                f"{len(failures)} of {len(outcomes)} instances were not stored; the first: {failures[0].message}",
                dataset=response,
                outcomes=outcomes,
                status=409,
                url=url,
                method="POST",
                response=http_error(409, "", url=url, method="POST").response,
            )
        return response

    def delete_study(self, study_instance_uid: str, additional_params: Mapping[str, Any] | None = None) -> None:
        """Deletes a study.

        Raises:
            requests.HTTPError: If the archive refuses, or does not have it (404).
        """
        self.delete_resource(self._resource(study_instance_uid), additional_params=additional_params)

    def delete_series(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        additional_params: Mapping[str, Any] | None = None,
    ) -> None:
        """Deletes a series. Errors as in `delete_study`."""
        self.delete_resource(
            self._resource(study_instance_uid, series_instance_uid), additional_params=additional_params
        )

    def delete_instance(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        additional_params: Mapping[str, Any] | None = None,
    ) -> None:
        """Deletes an instance. Errors as in `delete_study`."""
        resource = self._resource(study_instance_uid, series_instance_uid, sop_instance_uid)
        self.delete_resource(resource, additional_params=additional_params)


def _each(function: Callable[[S], T], items: Iterator[S]) -> Iterator[T]:
    """Like `map`, but a generator, and closing it closes what it takes from."""
    try:
        for item in items:
            yield function(item)
    finally:
        if isinstance(items, Generator):
            items.close()


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


def check_filter_mismatch(choice: object) -> FilterMismatch:
    """Returns `choice` if it says what becomes of a search whose rows contradict its filters.

    Raises:
        ValueError: If it does not.
    """
    if choice == "error":
        return "error"
    if choice == "warn":
        return "warn"
    raise ValueError(f"filter_mismatch must be 'error' or 'warn', not {choice!r}")
