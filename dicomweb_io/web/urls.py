"""The URLs and query strings of a DICOMweb service, written exactly as they go over the wire."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit

from dicomweb_io.dicom.attributes import WILDCARD_VRS, resolve, vr_of
from dicomweb_io.dicom.matching import filter_values
from dicomweb_io.dicom.uids import path_segment
from dicomweb_io.elements import COLLECTIONS, Resource, SearchQuery
from dicomweb_io.errors import InvalidIdentifierError, UnsupportedError, safe_url
from dicomweb_io.http.settings import Prefixes, split_service_url

# Characters to which no server gives a meaning. The comma is not among them: it separates values.
_SAFE_IN_VALUE = "*?-._~:/"
_SAFE_IN_PARAMETER = "*-._~:,()/^"
_NOT_SENDABLE_RAW = re.compile(r"[^\x21-\x7e]|[\"#%&+,<>\\^`{|}]")


class ServiceURLs:
    """Builds the URLs of one service.

    Args:
        base_url: The service's root; user information and slashes at its end are left out.
        prefixes: Path segments between the root and the resources.
        internal_url: The root as the server itself writes it in the addresses of bulk data.

    Attributes:
        username: The user name of the URL's user information, or None.
        password: Its password, or None.

    Raises:
        TypeError: If the URL is not a str.
        ValueError: If it is not an http or https URL of a host, or has a query.
    """

    def __init__(self, base_url: str, prefixes: Prefixes = Prefixes(), internal_url: str | None = None) -> None:
        parts = split_service_url(base_url)
        self.scheme = parts.scheme.lower()
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if self.scheme == "https" else 80)
        self.path = parts.path.rstrip("/")
        self.username = unquote(parts.username) if parts.username is not None else None
        self.password = unquote(parts.password) if parts.password is not None else None
        self.origin = urlunsplit((self.scheme, parts.netloc.rpartition("@")[2], "", "", ""))
        self.base_url = self.origin + self.path
        self.prefixes = prefixes
        self._internal = "" if internal_url is None else _origin_and_path(split_service_url(internal_url)).rstrip("/")

    def _below(self, prefix: str | None, path: str) -> str:
        return f"{self.base_url}/{prefix}/{path}" if prefix else f"{self.base_url}/{path}"

    def search(self, query: SearchQuery, *, count: bool = False) -> str:
        """The search resource of a query, without its query string (PS3.18 table 10.6.1-1)."""
        path = ""
        if query.study_instance_uid is not None:
            path += f"studies/{path_segment(query.study_instance_uid)}/"
        if query.series_instance_uid is not None:
            path += f"series/{path_segment(query.series_instance_uid)}/"
        path += COLLECTIONS[query.level]
        return self._below(self.prefixes.qido, path + "/count" if count else path)

    def retrieve(self, resource: Resource, suffix: str = "") -> str:
        """A retrieve resource, with a suffix such as ``"/metadata"`` (PS3.18 section 10.4.1.1)."""
        return self._below(self.prefixes.wado, resource.uri + suffix)

    def store(self, study_instance_uid: str | None = None) -> str:
        """The store resource (PS3.18 table 10.5.1-1)."""
        path = "studies" if study_instance_uid is None else f"studies/{path_segment(study_instance_uid)}"
        return self._below(self.prefixes.stow, path)

    def delete(self, resource: Resource) -> str:
        """The resource to delete (PS3.18 section 10.7)."""
        return self._below(self.prefixes.delete, resource.uri)

    def bulkdata(self, url: str) -> str:
        """The absolute address of bulk data.

        Args:
            url: Absolute (any host); rooted (``/dicom-web/…``), below the service's host; or relative to the service's
                retrieve root (``studies/…``, ``../…``).

        Raises:
            InvalidIdentifierError: If it is not an http or https URL.
        """
        if not isinstance(url, str):
            raise TypeError(f"the URL of bulk data must be a str, not {type(url).__name__}")
        if not url or any(character.isspace() or ord(character) < 32 for character in url):
            raise InvalidIdentifierError("the URL of bulk data is empty or contains white space or a control character")
        try:
            given, parts = urlsplit(url), urlsplit(urljoin(self._below(self.prefixes.wado, ""), url))
        except ValueError:
            raise InvalidIdentifierError(f"the URL of bulk data has no valid host: {safe_url(url)!r:.200}") from None
        if parts.scheme.lower() not in ("http", "https") or (given.scheme and not given.hostname):
            raise InvalidIdentifierError(
                f"the URL of bulk data must be http or https with a host, not {safe_url(url)!r:.200}"
            )
        address = _origin_and_path(parts)
        if self._internal and (address + "/").startswith(self._internal + "/"):
            # Without a path it stands for the host alone.
            own = self.base_url if self._internal.count("/") > 2 else self.origin
            address = own + address[len(self._internal) :]
        return f"{address}?{parts.query}" if parts.query else address


def _origin_and_path(parts: SplitResult) -> str:
    return urlunsplit((parts.scheme.lower(), parts.netloc.rpartition("@")[2].lower(), parts.path, "", ""))


def needs_escapes(query: SearchQuery) -> bool:
    """Whether a filter has a value that cannot be sent without percent escapes."""
    return any(
        quote(part, safe=_SAFE_IN_VALUE) != part
        for key, value in query.search_filters
        for part in filter_values(key, value)
    )


def query_string(
    query: SearchQuery, *, offset: int | None = None, limit: int | None = None, escapes: bool = True
) -> str:
    """The query string of a search, in the order the query was given (PS3.18 section 8.3.4).

    The values of a list are joined by raw commas, and a comma inside a value is escaped: servers split before they
    decode.

    Args:
        query: The search.
        offset: The offset to send; none is sent for 0.
        limit: The limit to send, or None.
        escapes: Whether the server decodes percent escapes. If not, a value is sent raw, if it can be.

    Raises:
        ValueError: If a value cannot be sent to a server that does not decode.
    """
    written = _escaped if escapes else _raw
    pairs = [
        f"{quote(key, safe='.')}={','.join(written(key, part) for part in filter_values(key, value))}"
        for key, value in query.search_filters
    ]
    pairs += [f"includefield={quote(name, safe='.')}" for name in query.fields]
    if query.fuzzymatching is not None:
        pairs.append(f"fuzzymatching={'true' if query.fuzzymatching else 'false'}")
    pairs += [parameters(query.additional_params)] if query.additional_params else []
    if limit is not None:
        pairs.append(f"limit={limit}")
    if offset:
        pairs.append(f"offset={offset}")
    return "&".join(pairs)


def _escaped(key: str, part: str) -> str:
    return quote(part, safe=_SAFE_IN_VALUE)


def _raw(key: str, part: str) -> str:
    # A URL must not hold a caret, and a name needs its carets: where there are wildcards, the one for a single
    # character replaces each (PS3.4 section C.2.2.2.4).
    if vr_of(resolve(key)[-1]) in WILDCARD_VRS:
        part = part.replace("^", "?")
    wrong = _NOT_SENDABLE_RAW.search(part)
    if wrong is not None:
        raise UnsupportedError(
            f"this server does not decode percent escapes, so {wrong.group()!r} in the filter on {key} cannot be sent; "
            f"use a wildcard (? or *) in its place and check the rows"
        )
    return part


def parameters(params: Mapping[str, Any] | Iterable[tuple[str, Any]] | None) -> str:
    """The query string of further parameters. A list or tuple repeats its name, None is left out, as in requests."""
    pairs = [
        f"{quote(str(name), safe='.')}={quote(_text(str(name), item), safe=_SAFE_IN_PARAMETER)}"
        for name, value in (params.items() if isinstance(params, Mapping) else (params or ()))
        for item in (value if isinstance(value, (list, tuple)) else (value,))
        if item is not None
    ]
    return "&".join(pairs)


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    raise TypeError(f"the parameter {name} must be text, a number or a list of them, not {type(value).__name__}")


def with_query(url: str, *queries: str) -> str:
    """Adds query strings to a URL that may have one already; empty ones add nothing."""
    for query in queries:
        if query:
            url += ("&" if "?" in url else "?") + query
    return url
