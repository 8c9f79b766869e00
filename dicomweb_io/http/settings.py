"""Settings of HTTP connections: path prefixes, timeouts, limits and TLS, as small picklable values."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from urllib.parse import SplitResult, quote, urlsplit

from dicomweb_io.errors import safe_url


@dataclass(frozen=True)
class Prefixes:
    """Path segments between a service's root and its resources, where a server wants some (DICOMcloud: ``"qidors"``).

    Attributes:
        qido: Before search resources.
        wado: Before retrieve resources.
        stow: Before store resources.
        delete: Before delete resources.

    Raises:
        TypeError, ValueError: If one is not made of path segments.
    """

    qido: str | None = None
    wado: str | None = None
    stow: str | None = None
    delete: str | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, _path_segments(getattr(self, item.name), f"{item.name}_url_prefix"))


@dataclass(frozen=True)
class Timeouts:
    """How long to wait.

    Attributes:
        connect: Seconds for a connection.
        read: Seconds for each read or write.
        deadline: Seconds that one operation may take in all, retries included; None for no limit.
        outage: Seconds that a job or transform waits for a server that has answered before and cannot be connected to
            any more, or of which only a proxy still answers. What is left after that is not tried. A client's single
            calls only follow the retry policy.

    Raises:
        ValueError: If one is not a positive number.
    """

    connect: float = 10.0
    read: float = 60.0
    deadline: float | None = 3600.0
    outage: float = 120.0

    def __post_init__(self) -> None:
        for name in ("connect", "read"):
            seconds = _positive(getattr(self, name), f"the {name} timeout", "a positive number of seconds")
            object.__setattr__(self, name, seconds)
        if not isinstance(self.outage, (int, float)) or isinstance(self.outage, bool) or not self.outage >= 0:
            raise ValueError(f"outage must be a number of seconds, not {self.outage!r}")
        if self.deadline is not None:
            _positive(self.deadline, "deadline", "a positive number of seconds, or None")

    @classmethod
    def of(cls, timeout: float | tuple[float, float], deadline: float | None = 3600.0) -> Timeouts:
        """From one number, or a pair for connecting and reading, as requests takes them.

        Raises:
            ValueError: If it is neither.
        """
        pair = tuple(timeout) if isinstance(timeout, (tuple, list)) else (timeout, timeout)
        if len(pair) != 2:
            raise ValueError(f"timeout must be a number of seconds or a pair (connect, read), not {timeout!r}")
        return cls(*pair, deadline)


@dataclass(frozen=True)
class Limits:
    """Limits for one process.

    Attributes:
        max_in_flight: Requests at once.
        requests_per_second: Requests that begin in a second; None for no limit.

    Raises:
        ValueError: If one is not a positive number.
    """

    max_in_flight: int = 8
    requests_per_second: float | None = None

    def __post_init__(self) -> None:
        number = self.max_in_flight
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"max_in_flight must be a positive integer, not {number!r}")
        if self.requests_per_second is not None:
            _positive(self.requests_per_second, "requests_per_second", "a positive number, or None")


@dataclass(frozen=True)
class TLS:
    """Certificates.

    Attributes:
        verify: Verify the server's certificate: True, False, or the path of a CA bundle.
        cert: A client certificate: the path of a PEM file, or a pair of certificate and key paths.

    Raises:
        TypeError, ValueError: If one is not valid. To requests, None, 0 and empty texts all mean that nothing is
            verified.
    """

    verify: bool | str = True
    cert: str | tuple[str, str] | None = None

    def __post_init__(self) -> None:
        verify, cert = self.verify, self.cert
        if not isinstance(verify, bool):
            wanted = "True, False or the path of a CA bundle"
            object.__setattr__(self, "verify", _path(verify, "verify", wanted))
        if isinstance(cert, (tuple, list)):
            if len(cert) != 2:
                raise ValueError(f"cert must be a path or a pair of paths (certificate, key), not {len(cert)} items")
            object.__setattr__(self, "cert", tuple(_path(path, "cert", "a pair of paths") for path in cert))
        elif cert is not None:
            object.__setattr__(self, "cert", _path(cert, "cert", "a path or a pair of paths (certificate, key)"))

    def check_files(self) -> None:
        """Checks that the files are there, on the computer that is going to use them.

        Raises:
            FileNotFoundError: If one does not exist.
        """
        paths = [] if isinstance(self.verify, bool) else [("verify", self.verify)]
        if self.cert is not None:
            paths += [("cert", path) for path in ((self.cert,) if isinstance(self.cert, str) else self.cert)]
        for name, path in paths:
            if not os.path.exists(path):
                raise FileNotFoundError(f"{name}: there is no file {path!r}")


def split_service_url(url: object) -> SplitResult:
    """The parts of the URL of a service's root, which may hold user information.

    Raises:
        TypeError: If it is not a str.
        ValueError: If it is not an http or https URL of a host, or has a query.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, not {type(url).__name__}")
    if any(character.isspace() or ord(character) < 32 for character in url):
        raise ValueError("url contains white space or a control character")
    try:
        parts = urlsplit(url)
    except ValueError:
        # Its text may hold the user information.
        raise ValueError(f"url is not valid: {safe_url(url)!r}") from None
    if parts.scheme.lower() not in ("http", "https"):
        raise ValueError(f"url must begin with http:// or https://, not {parts.scheme or safe_url(url)[:30]!r}")
    if not parts.hostname:
        raise ValueError("url has no host (expected https://host[:port][/path])")
    if parts.query or parts.fragment:
        raise ValueError("url has a query or fragment: give the service's root only, and parameters separately")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError(f"url has an invalid port: {parts.netloc.rpartition('@')[2]!r}") from None
    return parts


def _path_segments(prefix: object, name: str) -> str | None:
    if prefix is None:
        return None
    if not isinstance(prefix, str):
        raise TypeError(f"{name} must be a str, not {type(prefix).__name__}")
    segments = prefix.strip("/").split("/")
    if any(not segment or segment in (".", "..") or quote(segment, safe="%-._~:") != segment for segment in segments):
        raise ValueError(f"{name} must be one or more path segments, not {prefix!r:.60}")
    return "/".join(segments)


def _positive(value: object, name: str, wanted: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        raise ValueError(f"{name} must be {wanted}, not {value!r}")
    return float(value)


def _path(value: object, name: str, wanted: str) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be {wanted}, not {type(value).__name__}")
    path = os.fspath(value)
    if not isinstance(path, str) or not path:
        raise ValueError(f"{name} is an empty path (expected {wanted})")
    return path
