"""`Endpoint`: the description of an archive that travels in pipelines, and the one way from it to a client."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Union, cast
from urllib.parse import urlsplit

import fsspec

from dicomweb_io.client import DICOMClient, FilterMismatch, check_filter_mismatch
from dicomweb_io.errors import safe_url
from dicomweb_io.http.auth import Credentials
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.http.settings import TLS, Limits, Prefixes, Timeouts, split_service_url

if TYPE_CHECKING:
    from requests.auth import AuthBase

    from dicomweb_io.profiles import ServerProfile

EndpointLike = Union["Endpoint", str, "os.PathLike[str]"]

_CLIENTS = {True: ("dicomweb_io.web.client", "DICOMwebClient"), False: ("dicomweb_io.files.client", "DICOMfileClient")}
_SERVER_WITHOUT_SCHEME = re.compile(
    r"[\w.-]+:\d+(/|$)|[\w-]+\.[\w.-]+/(.*/)?dicom[_-]?web/?$|[^/@:\\]+:[^/@\\]+@[\w.-]+(:\d+)?(/|$)", re.IGNORECASE
)
_GROUPS = {"prefixes": Prefixes, "tls": TLS, "timeouts": Timeouts, "limits": Limits, "retry": RetryPolicy}


@dataclass(frozen=True, eq=False, repr=False)
class Endpoint:
    """An archive: a DICOMweb server (``https://…``) or a folder of DICOM files (a path or any fsspec URL).

    It is immutable and picklable, holds no connection, and is what transforms carry to their workers. ``repr`` shows
    no secret. Use `credentials` that name the secret (an environment variable, a file, a command, a cloud identity); a
    literal secret is part of the pickle.

    Attributes:
        url: The service's root, or the folder.
        credentials: How to authenticate: credentials of this package, or any `requests.auth.AuthBase`.
        profile: The server's behaviour: ``"auto"`` (by URL pattern, without traffic), a name, or a `ServerProfile`.
        prefixes: Path segments between the root and the resources, where the server wants some.
        headers: Sent with every request to the endpoint's own origin.
        tls: The certificates to trust and to show.
        proxies: Proxy URL by scheme.
        timeouts: How long to wait for a connection, a read, and an operation in all.
        limits: Requests at once and in a second, for one process.
        retry: When and how often to try again.
        storage_options: Arguments for the fsspec filesystem of a folder.
        index: A local directory for the index of a folder; by default the user's cache directory.
        internal_url: The root as the server itself writes it in the addresses of bulk data, where it stands behind a
            proxy and does not know its own address. Without a path it stands for the host alone.
        filter_mismatch: What becomes of a search whose rows contradict its filters: ``"error"`` fails it, ``"warn"``
            logs it and returns the rows. A folder matches exactly.
        layout: A template for the paths of what is stored in a folder, such as
            ``{PatientID}/{StudyDate:%Y-%m-%d}/{InstanceNumber:04}.dcm``; see `dicomweb_io.files.layout`. By default the
            UIDs are the path.

    Raises:
        TypeError, ValueError: If an argument is not valid, or belongs to the other kind of archive.
    """

    url: str
    credentials: Credentials | AuthBase | None = None
    profile: str | ServerProfile = "auto"
    prefixes: Prefixes = Prefixes()
    headers: Mapping[str, str] | None = None
    tls: TLS = TLS()
    proxies: Mapping[str, str] | None = None
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    retry: RetryPolicy = RetryPolicy()
    storage_options: Mapping[str, Any] | None = None
    index: str | None = None
    internal_url: str | None = None
    filter_mismatch: FilterMismatch = "error"
    layout: str | None = None

    def __post_init__(self) -> None:
        # Path objects are accepted too. Two colons in one begin no chain of filesystems, as they may in a text.
        text = os.fspath(self.url)
        misread = "::" in text or _SERVER_WITHOUT_SCHEME.match(text)
        object.__setattr__(self, "url", os.path.abspath(text) if misread and not isinstance(self.url, str) else text)
        if not self.url:
            raise ValueError("url is empty (expected https://…, a path, or an fsspec URL)")
        if self.is_web:
            split_service_url(self.url)
            if self.layout is not None:
                raise ValueError(f"layout: only for folders, but {self.safe_url} is a server")
            if self.internal_url is not None:
                split_service_url(self.internal_url)
            if self.profile != "auto":
                from dicomweb_io.profiles import resolve_profile

                resolve_profile(self.profile, self.url)
        else:
            if _SERVER_WITHOUT_SCHEME.match(self.url):
                # As a destination it would quietly become a folder.
                shown = text.rpartition("@")[2]
                raise ValueError(f"{shown!r}: write http:// or https:// before a server's address, ./ before a folder")
            self._check_filesystem()
            kinds = ("prefixes", "credentials", "internal_url")
            given = [name for name in kinds if getattr(self, name) not in (None, Prefixes())]
            if given:
                raise ValueError(f"{', '.join(given)}: only for servers, but {self.safe_url} is a folder")
            if self.layout is not None:
                # By name, as in `connect`: the template is checked here, before anything is sent.
                import_module("dicomweb_io.files.layout").Layout(self.layout)
        check_filter_mismatch(self.filter_mismatch)
        for name, kind in _GROUPS.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} must be {kind.__name__}(…), not {type(getattr(self, name)).__name__}")

    def _check_filesystem(self) -> None:
        for name in re.findall(r"(?:^|::)([^:/]+)://", self.url):
            if name not in fsspec.available_protocols():
                raise ValueError(
                    f"{self.safe_url}: there is no filesystem {name}:// (a server's address begins with http:// or "
                    f"https://)"
                )

    @classmethod
    def of(cls, value: EndpointLike) -> Endpoint:
        """The endpoint itself, or one for a plain URL or path.

        Raises:
            TypeError: If it is none of these.
        """
        if isinstance(value, Endpoint):
            return value
        if isinstance(value, (str, os.PathLike)):
            return cls(cast(str, value))
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
        return safe_url(self.url)

    def replace(self, **changes: Any) -> Endpoint:
        """A copy with other values."""
        return replace(self, **changes)

    def connect(self) -> DICOMClient:
        """Makes a client: `DICOMwebClient` for a server, `DICOMfileClient` for a folder. No traffic yet."""
        # By name, because an endpoint comes before the clients: a worker that unpickles one loads only what it needs.
        module, name = _CLIENTS[self.is_web]
        client: DICOMClient = getattr(import_module(module), name).from_endpoint(self)
        return client

    def probe(self) -> Endpoint:
        """Asks the server how it behaves and returns an endpoint with that profile pinned; a folder returns itself.

        Raises:
            requests.HTTPError: If the server cannot be reached, or refuses searches.
        """
        if not self.is_web:
            return self
        with self.connect() as client:
            return self.replace(profile=client.probe().profile)

    def __repr__(self) -> str:
        shown = [repr(self.safe_url)]
        for item in fields(self)[1:]:
            value = getattr(self, item.name)
            if value == item.default:
                continue
            if item.name in ("headers", "storage_options", "proxies"):
                value = "{" + ", ".join(f"{key!r}: ***" for key in value) + "}"
            elif item.name == "credentials" and not type(value).__module__.startswith("dicomweb_io."):
                value = f"<{type(value).__name__}>"
            else:
                value = repr(value)
            shown.append(f"{item.name}={value}")
        return f"Endpoint({', '.join(shown)})"


_SECRET_NAME = re.compile(r"auth|cookie|key|pass|secret|token|credential", re.IGNORECASE)


def literal_secrets(endpoint: Endpoint) -> tuple[str, ...]:
    """The kinds of secrets that an endpoint holds literally, in words and without their values.

    They travel wherever the endpoint is pickled.

    Headers and storage options count if their name sounds like a secret. An authentication object of requests always
    counts, since what it holds is unknown.
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
