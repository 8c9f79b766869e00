"""What a transport did: running sums (`Stats`) and one record of each request (`RequestRecord`)."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

_MOST_DURATIONS = 4096


@dataclass
class Stats:
    """What a transport did so far; read it at any time, from any thread.

    Attributes:
        requests: HTTP requests sent, retries and redirects included.
        retries: How often something was tried again.
        bytes_in: Bytes of bodies received, before decompression.
        bytes_out: Bytes sent, headers included.
        throttled_seconds: Seconds that threads waited for the rate limit, a Retry-After of another request, or because
            the server had been overloaded.
    """

    requests: int = 0
    retries: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    throttled_seconds: float = 0.0

    def __post_init__(self) -> None:
        # Reentrant: the garbage collector may close an abandoned answer, which counts, on the thread that is counting.
        self._lock = threading.RLock()
        self._durations: deque[float] = deque(maxlen=_MOST_DURATIONS)

    def took(self, seconds: float) -> None:
        """Notes how long a request took, from sending until the answer was read or given up."""
        self._durations.append(seconds)

    def take_durations(self) -> list[float]:
        """Seconds of each request since this was last asked; of very many only the latest."""
        taken = []
        while self._durations:
            try:
                taken.append(self._durations.popleft())
            except IndexError:
                break  # Another thread was quicker.
        return taken

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
