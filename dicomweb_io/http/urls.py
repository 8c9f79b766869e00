"""Origins, redirect targets and user information: what the transport has to know of URLs."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit, urlunsplit

from requests.utils import requote_uri

from dicomweb_io.errors import safe_url

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Scheme, host and port (RFC 6454): what credentials are bound to."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """The origin of an absolute HTTP URL.

        Raises:
            ValueError: If it has no host, another scheme, or an impossible port.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ValueError(f"URL with an invalid host or port: {safe_url(url)!r}") from None
        scheme = parts.scheme.lower()
        if scheme not in _DEFAULT_PORTS:
            raise ValueError(f"URL with an unsupported scheme (only http and https): {safe_url(url)!r}")
        if not host:
            raise ValueError(f"URL without a host: {safe_url(url)!r} (expected https://host[:port]/path)")
        return cls(scheme, host.rstrip("."), port if port is not None else _DEFAULT_PORTS[scheme])


def without_user_info(url: str) -> tuple[str, str | None, str | None]:
    """Takes ``user:password@`` out of an absolute URL.

    Returns:
        The URL without it, the user and the password, both still percent-escaped, None if absent.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url, None, None
    end = re.search(r"[/?#\\]|\Z", rest)
    authority = rest[: end.start()] if end else rest
    info, at, host = authority.rpartition("@")
    if not at:
        return url, None, None
    user, colon, password = info.partition(":")
    return f"{scheme}://{host}{rest[len(authority) :]}", user, password if colon else None


def absolute_url(url: str, base_url: str) -> str:
    """An absolute URL without user information and fragment that can be sent as it is.

    Args:
        url: An absolute URL, or a path (and query) below `base_url`.
        base_url: The service's root without trailing slash.

    Raises:
        ValueError: If it has characters that must be escaped, or no usable origin.
    """
    if not re.match(r"[A-Za-z][A-Za-z0-9+.\-]*:", url):
        url = f"{base_url}/{url.lstrip('/')}" if not url.startswith("?") else base_url + url
    url = without_user_info(url)[0].partition("#")[0]
    # ^ and | are no valid characters of a URL either, but servers take them, and some take nothing else.
    wrong = re.search(r"[^\x21-\x7e]|[\\\"<>`{}]", url)
    if wrong:
        raise ValueError(f"the character {wrong.group()!r} in a URL must be percent-escaped: {safe_url(url)!r}")
    Origin.of(url)
    return url


def redirect_target(url: str, location: str) -> str | None:
    """Where a redirect leads, as an absolute URL without user information and fragment; None if nowhere usable."""
    try:
        # Servers send UTF-8 where only ASCII is allowed; http.client reads it as Latin-1.
        text = location.encode("latin-1").decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        text = location
    try:
        if text.startswith("//"):
            text = f"{urlsplit(url).scheme}:{text}"
        target = absolute_url(requote_uri(urljoin(url, text.strip())), url)
    except ValueError:
        return None
    return target


def with_raw_target(prepared_url: str, url: str) -> str:
    """The scheme and authority of one URL with the path and query of another, exactly as written there."""
    parts = urlsplit(prepared_url)
    end = re.search(r"[/?]|\Z", url.partition("://")[2])
    target = url.partition("://")[2][end.start() :] if end else ""
    if not target.startswith("/"):
        target = "/" + target
    return urlunsplit((parts.scheme, parts.netloc, "", "", "")) + target
