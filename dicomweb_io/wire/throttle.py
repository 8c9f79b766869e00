"""How much one process asks of a server at once: requests in flight, requests per second, and a shared back-off."""

from __future__ import annotations

import threading
import time
from collections import Counter
from types import TracebackType

from dicomweb_io.wire.errors import DeadlineExceededError
from dicomweb_io.wire.retry import Deadline


class Slot:
    """The right to have one request in flight; released once, from any thread.

    Attributes:
        waited: Seconds that it came later because the server had been overloaded.
    """

    def __init__(self, throttle: Throttle, thread: int, era: int, waited: float) -> None:
        self._throttle = throttle
        self._thread = thread
        self._era = era
        self._held = True
        self.waited = waited

    def release(self) -> None:
        """Gives it back; a second call does nothing."""
        self._throttle._release(self)

    def __enter__(self) -> Slot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class Throttle:
    """Bounds what all threads of one transport do together.

    A server that answers 429 or 503 is overloaded: from then on half as many requests are in flight at once, at least
    one, and with each as many answers as are in flight one more again (additive increase, multiplicative decrease). So
    a server that names no time to wait gets the rest it needs.

    Args:
        max_in_flight: Requests at once, from sending until the body was read.
        requests_per_second: Requests begun per second, on average; bursts of up to one second's worth (at least one
            request) pass. None for no limit.
    """

    def __init__(self, max_in_flight: int, requests_per_second: float | None = None) -> None:
        if not isinstance(max_in_flight, int) or max_in_flight < 1:
            raise ValueError(f"max_in_flight must be a positive integer, not {max_in_flight!r}")
        if requests_per_second is not None and not requests_per_second > 0:
            raise ValueError(f"requests_per_second must be positive, not {requests_per_second!r}")
        self._max_in_flight = max_in_flight
        self._limit = float(max_in_flight)
        self._era = 0
        self._rate = requests_per_second
        self._burst = max(1.0, requests_per_second or 1.0)
        self._tokens = self._burst
        self._refilled = time.monotonic()
        self._not_before = 0.0
        self._in_flight = 0
        self._holders: Counter[int] = Counter()
        self._condition = threading.Condition()

    @property
    def in_flight(self) -> int:
        """How many slots are taken."""
        return self._in_flight

    @property
    def limit(self) -> int:
        """How many requests may be in flight now."""
        return int(self._limit)

    def acquire(self, deadline: Deadline) -> Slot:
        """Waits for a slot.

        A thread that already holds one gets another at once: it may be reading one answer while it asks for something
        else, and would wait for itself.

        Raises:
            DeadlineExceededError: If none becomes free in time.
        """
        me = threading.get_ident()
        waited = 0.0
        with self._condition:
            while self._in_flight >= self.limit and not self._holders[me]:
                # Only what the server's state costs counts as throttled, not the user's own limit.
                overloaded, began = self._in_flight < self._max_in_flight, time.monotonic()
                if not self._condition.wait(deadline.remaining()) and deadline.expired:
                    # A slot that became free in this very moment was announced to this thread, which does not take it.
                    self._condition.notify()
                    raise deadline.error(f"waiting for one of {self.limit} requests in flight to end")
                waited += time.monotonic() - began if overloaded else 0.0
            self._in_flight += 1
            self._holders[me] += 1
            return Slot(self, me, self._era, waited)

    def answered(self, slot: Slot, status: int | None) -> None:
        """Learns from an answer how much the server can take; to be called before the slot is released.

        Args:
            slot: The request's.
            status: The HTTP status; None, if there was no answer, tells nothing.
        """
        with self._condition:
            if status in (429, 503):
                # Requests that were under way already when the limit was lowered say nothing new.
                if slot._era == self._era:
                    self._limit = max(1.0, self._limit / 2)
                    self._era += 1
            elif status is not None and status < 500 and self._limit < self._max_in_flight:
                before = self.limit
                self._limit = min(float(self._max_in_flight), self._limit + 1 / self._limit)
                if self.limit > before:
                    self._condition.notify()

    def _release(self, slot: Slot) -> None:
        with self._condition:
            if not slot._held:
                return
            slot._held = False
            self._in_flight -= 1
            self._holders[slot._thread] -= 1
            if not self._holders[slot._thread]:
                del self._holders[slot._thread]
            self._condition.notify()

    def pace(self, deadline: Deadline) -> float:
        """Waits until the rate limit and the server's last Retry-After allow another request.

        Returns:
            Seconds waited.

        Raises:
            DeadlineExceededError: At once if that would be after the deadline.
        """
        waited = 0.0
        while True:
            with self._condition:
                wait = self._next_wait()
            if wait <= 0:
                return waited
            remaining = deadline.remaining()
            if remaining is not None and wait > remaining:
                raise DeadlineExceededError(
                    f"the next request may begin in {wait:.1f} s (rate limit or Retry-After), "
                    f"which is after the deadline of {deadline.seconds:g} s"
                )
            time.sleep(wait)
            waited += wait

    def _next_wait(self) -> float:
        """Seconds until a request may begin; takes a token if that is now."""
        now = time.monotonic()
        if now < self._not_before:
            return self._not_before - now
        if self._rate is None:
            return 0.0
        self._tokens = min(self._burst, self._tokens + (now - self._refilled) * self._rate)
        self._refilled = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate

    def back_off(self, seconds: float) -> bool:
        """Holds all requests back for some seconds, because the server asked one of them to come again later.

        Returns:
            Whether this is longer than was already agreed.
        """
        until = time.monotonic() + seconds
        with self._condition:
            longer = until > self._not_before + 0.01
            self._not_before = max(self._not_before, until)
        return longer
