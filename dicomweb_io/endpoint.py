"""`Endpoint`: the description of an archive that travels in pipelines, and the one way from it to a client."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Union
from urllib.parse import urlsplit, urlunsplit

from dicomweb_io.client import DICOMClient
from dicomweb_io.http.auth import Credentials
from dicomweb_io.http.connections import check_verify
from dicomweb_io.http.retry import RetryPolicy

if TYPE_CHECKING:
    from requests.auth import AuthBase

    from dicomweb_io.profiles import ServerProfile


# ----------------------------------------------------------------------------------------------------------------------
# Which secrets the description of an archive holds literally, so that they travel wherever it is pickled.


_SECRET_NAME = re.compile(r"auth|cookie|key|pass|secret|token|credential", re.IGNORECASE)


def literal_secrets(endpoint: Endpoint) -> tuple[str, ...]:
    """The kinds of secrets in an endpoint that are no references, in words and without their values.

    Headers and storage options count if their name sounds like a secret. An authentication object of requests counts
    always: nobody knows what it holds.
    """
    kinds: list[str] = []
    credentials = endpoint.credentials
    if isinstance(credentials, Credentials):
        if is_dataclass(credentials):
            kinds += [
                f"{type(credentials).__name__}.{item.name}"
                for item in fields(credentials)
                if item.metadata.get("secret") and getattr(credentials, item.name) is not None
            ]
    elif credentials is not None:
        kinds.append(f"an authentication object ({type(credentials).__name__})")
    if endpoint.is_web and urlsplit(endpoint.url).password is not None:
        kinds.append("a password in the URL")
    kinds += [f"the header {name}" for name in endpoint.headers or () if _SECRET_NAME.search(name)]
    kinds += [f"the storage option {name}" for name in endpoint.storage_options or () if _SECRET_NAME.search(name)]
    kinds += [
        f"a password in the proxy URL for {scheme}"
        for scheme, url in (endpoint.proxies or {}).items()
        if urlsplit(url).password is not None
    ]
    return tuple(kinds)


# ----------------------------------------------------------------------------------------------------------------------


EndpointLike = Union["Endpoint", str, "os.PathLike[str]"]


@dataclass(frozen=True, eq=False, repr=False)
class Endpoint:
    """An archive: a DICOMweb server (``https://…``) or a folder of DICOM files (a path or any fsspec URL).

    It is immutable and picklable, holds no connection, and is what transforms carry to their workers. ``repr`` shows
    no secret. Secrets belong into `credentials` that refer to them (an environment variable, a file, a command, a
    cloud identity); what is passed literally travels in the pickle.

    Attributes:
        url: The service's root, or the folder.
        credentials: How to authenticate: `dicomweb_io.http.auth`, or any `requests.auth.AuthBase`.
        profile: The server's behaviour: ``"auto"`` (by URL pattern, without traffic), a name, or a `ServerProfile`.
        qido_url_prefix: Path segment before search resources.
        wado_url_prefix: Path segment before retrieve resources.
        stow_url_prefix: Path segment before store resources.
        delete_url_prefix: Path segment before delete resources.
        headers: Sent with every request to the endpoint's own origin.
        verify: Verify TLS certificates: True, False, or the path of a CA bundle.
        cert: A client certificate: the path of a PEM file, or a pair of certificate and key paths.
        proxies: Proxy URL by scheme.
        timeout: Seconds to wait for a connection and for each read: one number or a pair.
        deadline: Seconds that one operation may take in all, retries included; None for no limit.
        retry: When and how often to try again.
        max_in_flight: Requests at once from one process.
        requests_per_second: A limit for one process, or None.
        storage_options: Arguments for the fsspec filesystem of a folder.
        index: A local directory for the index of a folder; by default the user's cache directory.
    """

    url: str
    credentials: Credentials | AuthBase | None = None
    profile: str | ServerProfile = "auto"
    qido_url_prefix: str | None = None
    wado_url_prefix: str | None = None
    stow_url_prefix: str | None = None
    delete_url_prefix: str | None = None
    headers: Mapping[str, str] | None = None
    verify: bool | str = True
    cert: str | tuple[str, str] | None = None
    proxies: Mapping[str, str] | None = None
    timeout: float | tuple[float, float] = (10.0, 60.0)
    deadline: float | None = 3600.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    max_in_flight: int = 8
    requests_per_second: float | None = None
    storage_options: Mapping[str, Any] | None = None
    index: str | None = None

    def __post_init__(self) -> None:
        # A path object is as good as its text.
        object.__setattr__(self, "url", os.fspath(self.url))
        if not self.url:
            raise ValueError("url is empty (expected https://…, a path, or an fsspec URL)")
        if self.is_web:
            _check_web_url(self.url)
        else:
            web_only = ("qido_url_prefix", "wado_url_prefix", "stow_url_prefix", "delete_url_prefix", "credentials")
            given = [name for name in web_only if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{', '.join(given)}: only for servers, but {self.safe_url} is a folder")
        check_verify(self.verify)
        if not isinstance(self.max_in_flight, int) or self.max_in_flight < 1:
            raise ValueError(f"max_in_flight must be a positive integer, not {self.max_in_flight!r}")
        if self.requests_per_second is not None and not self.requests_per_second > 0:
            raise ValueError(f"requests_per_second must be positive, not {self.requests_per_second!r}")
        if self.deadline is not None and not self.deadline > 0:
            raise ValueError(f"deadline must be a positive number of seconds, not {self.deadline!r}")

    @classmethod
    def of(cls, value: EndpointLike) -> Endpoint:
        """The endpoint itself, or one for a plain URL or path.

        Raises:
            TypeError: If it is none of these.
        """
        if isinstance(value, Endpoint):
            return value
        if isinstance(value, (str, os.PathLike)):
            return cls(os.fspath(value))
        raise TypeError(f"an endpoint is an Endpoint, a URL or a path, but this is {type(value).__name__}")

    @property
    def is_web(self) -> bool:
        """Whether this is a DICOMweb server rather than a folder."""
        return re.match(r"https?:", self.url, re.IGNORECASE) is not None

    @property
    def safe_url(self) -> str:
        """The URL without user information, query and fragment, for logs and messages."""
        if "://" not in self.url:
            return self.url
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def replace(self, **changes: Any) -> Endpoint:
        """A copy with other values."""
        return replace(self, **changes)

    def connect(self) -> DICOMClient:
        """Makes a client: `DICOMwebClient` for a server, `DICOMfileClient` for a folder. No traffic yet."""
        if self.is_web:
            from dicomweb_io.web.client import DICOMwebClient

            return DICOMwebClient.from_endpoint(self)
        from dicomweb_io.files.client import DICOMfileClient

        return DICOMfileClient.from_endpoint(self)

    def probe(self) -> Endpoint:
        """Asks the server how it behaves and returns an endpoint with that profile pinned; a folder returns itself.

        Raises:
            requests.HTTPError: If the server cannot be reached, or refuses searches.
        """
        if not self.is_web:
            return self
        from dicomweb_io.web.client import DICOMwebClient

        with DICOMwebClient.from_endpoint(self) as client:
            return self.replace(profile=client.probe().profile)

    def __repr__(self) -> str:
        shown = [repr(self.safe_url)]
        for item in fields(self)[1:]:
            value = getattr(self, item.name)
            if value == item.default or value is None or item.name == "retry":
                continue
            if item.name in ("headers", "storage_options", "proxies"):
                value = "{" + ", ".join(f"{key!r}: ***" for key in value) + "}"
            elif item.name == "credentials" and not type(value).__module__.startswith("dicomweb_io."):
                value = f"<{type(value).__name__}>"
            else:
                value = repr(value)
            shown.append(f"{item.name}={value}")
        return f"Endpoint({', '.join(shown)})"


def _check_web_url(url: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError:
        # Its text may hold the user information.
        raise ValueError(f"url is not valid: {url.rpartition('@')[2]!r}") from None
    if not parts.hostname:
        raise ValueError(f"url has no host: {url.rpartition('@')[2]!r} (expected https://host[:port][/path])")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError(f"url has an invalid port: {parts.netloc.rpartition('@')[2]!r}") from None
    if parts.query or parts.fragment:
        raise ValueError("url has a query or fragment: give the service's root only, and parameters separately")
