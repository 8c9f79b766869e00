"""When and how often to try again (`RetryPolicy`), and how long an operation may take in all (`Deadline`)."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from dicomweb_io.wire.errors import DeadlineExceededError


@dataclass(frozen=True)
class RetryPolicy:
    """How often a failed request is repeated and how long to wait in between.

    The wait before attempt n+1 is random between 0 and ``initial_delay * multiplier ** (n - 1)`` seconds ("full
    jitter"), at most `max_delay`; a server's Retry-After is a minimum for it. A wait that would pass the deadline is
    not begun.

    Attributes:
        max_attempts: Attempts in all, the first included; 1 never repeats.
        initial_delay: Upper bound of the first wait, in seconds.
        multiplier: Growth of that bound with each attempt, at least 1.
        max_delay: Upper bound of any wait that no Retry-After asks for, in seconds.
        statuses: HTTP statuses that are worth another attempt.
    """

    max_attempts: int = 5
    initial_delay: float = 0.5
    multiplier: float = 2.0
    max_delay: float = 30.0
    statuses: tuple[int, ...] = (408, 425, 429, 500, 502, 503, 504)

    def __post_init__(self) -> None:
        if not isinstance(self.max_attempts, int) or self.max_attempts < 1:
            raise ValueError(f"max_attempts must be a positive integer, not {self.max_attempts!r}")
        if not self.initial_delay >= 0 or not self.max_delay >= 0:
            raise ValueError("initial_delay and max_delay must not be negative")
        if not self.multiplier >= 1:
            raise ValueError(f"multiplier must be at least 1, not {self.multiplier!r}")
        object.__setattr__(self, "statuses", tuple(self.statuses))

    @classmethod
    def none(cls) -> RetryPolicy:
        """A policy that never repeats."""
        return cls(max_attempts=1)

    def delay(self, attempt: int, retry_after: float | None = None) -> float:
        """Seconds to wait after a failed attempt.

        Args:
            attempt: The number of the attempt that failed, counted from 1.
            retry_after: Seconds that the server asked to wait, if it did.

        Returns:
            A random number of seconds, at least `retry_after`.
        """
        # The exponent is bounded because a float overflows long before a patient user's attempts end.
        bound = min(self.max_delay, self.initial_delay * self.multiplier ** min(attempt - 1, 64))
        jitter = random.uniform(0, bound)  # noqa: S311 - spreads load, protects nothing
        return max(0.0, retry_after or 0.0) + jitter


def parse_retry_after(value: str | None, *, now: float | None = None) -> float | None:
    """The Retry-After header in seconds (RFC 9110 section 10.2.3).

    Args:
        value: The header: a number of seconds or an HTTP date; None if absent.
        now: The current time as seconds since the epoch, for tests.

    Returns:
        Seconds from now, never negative; None if the header is absent or says nothing readable.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.replace(".", "", 1).isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    current = datetime.now(timezone.utc).timestamp() if now is None else now
    return max(0.0, date.timestamp() - current)


class Deadline:
    """A point in time after which an operation must not go on; it starts to run when it is made.

    Attributes:
        seconds: How long the operation may take; None for ever.
        at: The point in time by `time.monotonic`; None for never.
    """

    __slots__ = ("at", "seconds")

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not seconds > 0:
            raise ValueError(f"deadline must be a positive number of seconds, not {seconds!r}")
        self.seconds = seconds
        self.at = None if seconds is None else time.monotonic() + seconds

    @classmethod
    def of(cls, value: Deadline | float | None) -> Deadline:
        """The deadline itself, or a new one that starts now."""
        return value if isinstance(value, Deadline) else cls(value)

    def remaining(self) -> float | None:
        """Seconds left, 0 when it has passed; None without a limit."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    @property
    def expired(self) -> bool:
        """Whether it has passed."""
        return self.at is not None and time.monotonic() >= self.at

    def bound(self, seconds: float | None) -> float | None:
        """The smaller of a time span and what is left; None if neither is limited."""
        remaining = self.remaining()
        if seconds is None or remaining is None:
            return remaining if seconds is None else seconds
        return min(seconds, remaining)

    def check(self, doing: str = "", *, method: str = "", url: str = "", attempts: int = 1) -> None:
        """Raises if it has passed.

        Args:
            doing: What is going on, for the message.
            method: The HTTP method, for the error.
            url: The URL, for the error.
            attempts: Attempts so far, for the error.

        Raises:
            DeadlineExceededError: If it has passed.
        """
        if self.expired:
            raise self.error(doing, method=method, url=url, attempts=attempts)

    def error(self, doing: str = "", *, method: str = "", url: str = "", attempts: int = 1) -> DeadlineExceededError:
        """The error that says that it has passed."""
        detail = f"not complete within the deadline of {self.seconds:g} s" if self.seconds else "deadline passed"
        return DeadlineExceededError(
            f"{detail} while {doing}" if doing else detail, method=method, url=url, attempts=attempts
        )

    def __repr__(self) -> str:
        return f"Deadline({self.seconds!r})"
