"""`DICOMwebClient`: a client of a DICOMweb server, over streams (PS3.18 sections 10.4 to 10.7)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dicomweb_io.client import (
    DEFAULT_MAX_ELEMENT_BYTES,
    DICOMClient,
    FilterMismatch,
    MediaTypes,
    OnExisting,
    Storable,
    Verify,
    check_chunk_size,
    check_filter_mismatch,
)
from dicomweb_io.elements import (
    Bulkdata,
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
from dicomweb_io.errors import DICOMwebError
from dicomweb_io.http.auth import BasicCredentials
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.http.settings import TLS, Limits, Prefixes, Timeouts
from dicomweb_io.http.transport import Transport
from dicomweb_io.profiles import ProbeReport, ServerProfile, resolve_profile
from dicomweb_io.queries import check_limits
from dicomweb_io.spool import SpoolPolicy
from dicomweb_io.web.frames import BulkdataRetriever, FrameRetriever, RenderedRetriever
from dicomweb_io.web.probe import probe
from dicomweb_io.web.replace import Deleter, ExistingInstances, Replacer
from dicomweb_io.web.retrieve import InstanceRetriever, MetadataRetriever
from dicomweb_io.web.search import Searcher
from dicomweb_io.web.service import Service
from dicomweb_io.web.store import Storer
from dicomweb_io.web.urls import ServiceURLs

if TYPE_CHECKING:
    import requests
    from pydicom.dataset import Dataset
    from requests.auth import AuthBase
    from typing_extensions import Self

    from dicomweb_io.endpoint import Endpoint
    from dicomweb_io.http.auth import Credentials


class DICOMwebClient(DICOMClient):
    """A client of a DICOMweb server.

    It may be used from several threads at once. Nothing is sent before the first method that needs it.

    Args:
        url: The service's root, ``https://host[:port][/path]``. User information in it is used as basic credentials and
            never shown again.
        session: A `requests.Session` to send with, for its authentication, certificates, proxies and adapters. It is
            used, never changed.
        qido_url_prefix: Path segment before search resources (DICOMcloud: ``"qidors"``).
        wado_url_prefix: Path segment before retrieve resources.
        stow_url_prefix: Path segment before store resources.
        delete_url_prefix: Path segment before delete resources.
        proxies: Proxy URL by scheme.
        headers: Sent with every request to the service's own origin.
        callback: Called with each `requests.Response`, as a hook of requests: it sees 206 and Warning headers.
        chunk_size: The maximum number of bytes to read from the network at once.
        permissive_uid: Accept UIDs that are not valid by PS3.5 (see `dicomweb_io.dicom.uids.is_uid`).
        timeout: Seconds to wait for a connection and for each read: one number or a pair.
        credentials: How to authenticate: credentials of this package, or any `requests.auth.AuthBase`.
        profile: The server's behaviour: ``"auto"`` (by URL), a name, or a `ServerProfile`.
        verify: Verify TLS certificates: True, False, or the path of a CA bundle.
        cert: A client certificate: the path of a PEM file, or a pair of certificate and key paths.
        deadline: Seconds that one operation may take in all, retries included; None for no limit.
        retry: When and how often to try again.
        max_in_flight: Requests at once.
        requests_per_second: A limit, or None.
        internal_url: The service's root as the server writes it in addresses of bulk data, where it stands behind a
            proxy and does not know its own address (``http://orthanc:8042/dicom-web``). Without a path it stands for
            the host alone. What lies below is asked for at `url`, with its credentials.
        filter_mismatch: What becomes of a search whose rows contradict its filters: ``"error"`` fails it, ``"warn"``
            logs it and returns the rows. Rows of another study or series than the one searched always fail it.

    Raises:
        TypeError, ValueError: If an argument is not valid.
    """

    def __init__(
        self,
        url: str,
        session: requests.Session | None = None,
        qido_url_prefix: str | None = None,
        wado_url_prefix: str | None = None,
        stow_url_prefix: str | None = None,
        delete_url_prefix: str | None = None,
        proxies: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        callback: Callable[..., Any] | None = None,
        chunk_size: int = 10**6,
        permissive_uid: bool = False,
        timeout: float | tuple[float, float] = (10.0, 60.0),
        *,
        credentials: Credentials | AuthBase | None = None,
        profile: str | ServerProfile = "auto",
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
        deadline: float | None = 3600.0,
        retry: RetryPolicy | None = None,
        max_in_flight: int = 8,
        requests_per_second: float | None = None,
        internal_url: str | None = None,
        filter_mismatch: FilterMismatch = "error",
    ) -> None:
        prefixes = Prefixes(qido_url_prefix, wado_url_prefix, stow_url_prefix, delete_url_prefix)
        self._urls = ServiceURLs(url, prefixes, internal_url)
        if session is not None and not callable(getattr(session, "send", None)):
            raise TypeError(f"session must be a requests.Session, not {type(session).__name__}")
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be callable, not {type(callback).__name__}")
        if credentials is None and self._urls.username is not None:
            credentials = BasicCredentials(self._urls.username, self._urls.password or "")
        self.permissive_uid = bool(permissive_uid)
        self._transport = Transport(
            self._urls.base_url,
            session=session,
            credentials=credentials,
            headers=headers,
            tls=TLS(verify, cert),
            proxies=proxies,
            timeouts=Timeouts.of(timeout, deadline),
            limits=Limits(max_in_flight, requests_per_second),
            retry=retry if retry is not None else RetryPolicy(),
            callback=callback,
        )
        self._service = Service(
            self._urls,
            self._transport,
            resolve_profile(profile, self._urls.base_url),
            permissive_uid=self.permissive_uid,
            profile_is_guess=profile == "auto",
            filter_mismatch=check_filter_mismatch(filter_mismatch),
        )
        self.set_chunk_size(chunk_size)

    @classmethod
    def from_endpoint(cls, endpoint: Endpoint) -> Self:
        """Makes a client of an endpoint's description."""
        return cls(
            endpoint.url,
            qido_url_prefix=endpoint.prefixes.qido,
            wado_url_prefix=endpoint.prefixes.wado,
            stow_url_prefix=endpoint.prefixes.stow,
            delete_url_prefix=endpoint.prefixes.delete,
            proxies=endpoint.proxies,
            headers=endpoint.headers,
            timeout=(endpoint.timeouts.connect, endpoint.timeouts.read),
            credentials=endpoint.credentials,
            profile=endpoint.profile,
            verify=endpoint.tls.verify,
            cert=endpoint.tls.cert,
            deadline=endpoint.timeouts.deadline,
            retry=endpoint.retry,
            max_in_flight=endpoint.limits.max_in_flight,
            requests_per_second=endpoint.limits.requests_per_second,
            internal_url=endpoint.internal_url,
            filter_mismatch=endpoint.filter_mismatch,
        )

    # Description ------------------------------------------------------------------------------------------------------

    @property
    def base_url(self) -> str:
        """The service's root, without user information and trailing slash."""
        return self._urls.base_url

    @property
    def protocol(self) -> str:
        """``"http"`` or ``"https"``."""
        return self._urls.scheme

    @property
    def host(self) -> str:
        """The name or address of the host; IPv6 addresses without brackets."""
        return self._urls.host

    @property
    def port(self) -> int:
        """The port, 80 or 443 if the URL names none."""
        return self._urls.port

    @property
    def prefixes(self) -> Prefixes:
        """Path segments between the service's root and its resources."""
        return self._urls.prefixes

    def _set_prefix(self, name: str, prefix: str | None) -> None:
        self._urls.prefixes = replace(self._urls.prefixes, **{name: prefix})

    @property
    def profile(self) -> ServerProfile:
        """The server's behaviour, as this client takes it."""
        return self._service.profile

    @property
    def transport(self) -> Transport:
        """The connection, for its counts and for requests beside DICOMweb."""
        return self._transport

    def __repr__(self) -> str:
        return f"DICOMwebClient({self.base_url!r}, profile={self.profile.name!r})"

    def close(self) -> None:
        """Closes idle connections."""
        self._transport.close()

    def probe(self) -> ProbeReport:
        """Asks the server what it is and what it can do; only reads."""
        return probe(self._service)

    # Settings ---------------------------------------------------------------------------------------------------------

    def set_chunk_size(self, chunk_size: int) -> None:
        """Sets how many bytes are read from the network at once, at most."""
        self._service.chunk_size = check_chunk_size(chunk_size)

    def set_http_retry_params(
        self,
        retry: bool = True,
        max_attempts: int = 5,
        wait_exponential_multiplier: int = 1000,
        retriable_error_codes: tuple[int, ...] = (429, 408, 503, 504),
    ) -> None:
        """Sets when and how often to try again, for requests that begin later."""
        policy = RetryPolicy.none()
        if retry:
            policy = RetryPolicy(
                max_attempts=max_attempts,
                initial_delay=wait_exponential_multiplier / 1000,
                statuses=tuple(retriable_error_codes),
            )
        self._transport.retry = policy

    # Search -----------------------------------------------------------------------------------------------------------

    def search_page(
        self,
        query: SearchQuery,
        *,
        offset: int = 0,
        limit: int | None = None,
        surplus: bool = True,
        walk: bool = True,
    ) -> SearchPage:
        """Makes one search request. Without a limit none is sent."""
        check_limits(limit, offset)
        most = None if surplus else limit
        return Searcher(self._service).search_page(query, offset=offset, limit=limit, most=most, alone=walk)

    def iter_search(
        self, query: SearchQuery, *, offset: int = 0, limit: int | None = None, page_size: int | None = None
    ) -> Iterator[JSONDataset]:
        """Yields every row of a query once, page by page."""
        check_limits(limit, offset, page_size)
        return Searcher(self._service).iter_search(query, offset=offset, limit=limit, page_size=page_size)

    def count(self, query: SearchQuery) -> int | None:
        """The number of rows, where the server has a count resource."""
        return Searcher(self._service).count(query)

    # Retrieve ---------------------------------------------------------------------------------------------------------

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
        """Yields the instances of a study, series or instance as they arrive. A server has nothing to borrow."""
        return InstanceRetriever(self._service, Searcher(self._service)).iter_instances(
            resource,
            media_types=media_types,
            max_element_bytes=max_element_bytes,
            spool_directory=spool_directory,
            allow_transcoding=allow_transcoding,
            additional_params=additional_params,
        )

    def iter_metadata(
        self, resource: Resource, *, additional_params: Mapping[str, Any] | None = None
    ) -> Iterator[JSONDataset]:
        """Yields the metadata of the instances of a study, series or instance as they arrive."""
        return MetadataRetriever(self._service, Searcher(self._service)).iter_metadata(
            resource, additional_params=additional_params
        )

    def iter_frames(
        self,
        resource: Resource,
        *,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
        max_element_bytes: int | None = None,
        spool_directory: str | None = None,
    ) -> Iterator[Frame]:
        """Yields frames in the order asked for, as many as asked for; by default in the stored encoding."""
        return FrameRetriever(self._service).iter_frames(
            resource,
            media_types=media_types,
            additional_params=additional_params,
            spool_policy=SpoolPolicy(max_element_bytes, spool_directory),
        )

    def retrieve_rendered(
        self,
        resource: Resource,
        *,
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
        thumbnail: bool = False,
    ) -> RenderedImage:
        """Retrieves a study, series, instance or frame in a consumer format."""
        return RenderedRetriever(self._service).retrieve(
            resource, media_types=media_types, params=params, thumbnail=thumbnail
        )

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
        """Yields the parts of the bulk data at a URL. Credentials go to the service's own origin only."""
        return BulkdataRetriever(self._service).iter_bulkdata(
            url,
            media_types=media_types,
            byte_range=byte_range,
            additional_params=additional_params,
            spool_policy=SpoolPolicy(max_element_bytes, spool_directory),
        )

    def _instance_bulkdata(
        self, resource: Resource, media_types: MediaTypes, additional_params: Mapping[str, Any] | None
    ) -> list[bytes]:
        try:
            return BulkdataRetriever(self._service).of_instance(resource, media_types, additional_params)
        except DICOMwebError as error:
            # Servers that give an instance as DICOM only (Orthanc 1.10.1: 400) may still give its frames.
            if error.status not in (400, 404, 406, 415, 500, 501):
                raise
        return super()._instance_bulkdata(resource, media_types, additional_params)

    # Store and delete -------------------------------------------------------------------------------------------------

    def iter_store_instances(
        self,
        instances: Iterable[Storable],
        *,
        study_instance_uid: str | None = None,
        on_existing: OnExisting = "server",
        verify: Verify = "response",
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[StoredInstance | Failure]:
        """Stores instances and yields the result of each, in as few requests as the server accepts."""
        return self._storer().iter_store(
            instances,
            study_instance_uid=study_instance_uid,
            on_existing=on_existing,
            verify=verify,
            additional_params=additional_params,
        )

    def store_instances(
        self,
        datasets: Iterable[Storable],
        study_instance_uid: str | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """Stores instances; the response module holds what the server said of each."""
        return self._storer().store(datasets, study_instance_uid, additional_params)

    def _storer(self) -> Storer:
        # What the archive was found to have holds for one call only.
        existing = ExistingInstances(self._service, self)
        return Storer(self._service, existing, Replacer(existing, Deleter(self._service)))

    def delete_resource(self, resource: Resource, *, additional_params: Mapping[str, Any] | None = None) -> None:
        """Deletes a study, series or instance in the way that the server's profile names."""
        Deleter(self._service).delete(resource, additional_params)
