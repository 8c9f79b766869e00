"""What a transport did: running sums (`Stats`) and one record of each request (`RequestRecord`)."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass
class Stats:
    """What a transport did so far; read it at any time, from any thread.

    Attributes:
        requests: HTTP requests sent, retries and redirects included.
        retries: How often something was tried again.
        bytes_in: Bytes of bodies received, before decompression.
        bytes_out: Bytes sent, headers included.
        throttled_seconds: Seconds that threads waited for the rate limit or a Retry-After of another request.
    """

    requests: int = 0
    retries: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    throttled_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(self, **amounts: float) -> None:
        """Adds to some of the numbers."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)


@dataclass(frozen=True)
class RequestRecord:
    """One finished HTTP request, for an observer.

    Attributes:
        method: The HTTP method.
        url: The URL without user information and query.
        status: The status; None if no answer arrived.
        seconds: From sending until the answer was read or given up.
        bytes_in: Bytes of the body received, before decompression.
        bytes_out: Bytes sent, headers included.
    """

    method: str
    url: str
    status: int | None
    seconds: float
    bytes_in: int
    bytes_out: int
