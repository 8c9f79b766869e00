"""Repeating: the budget of one operation, and the attempts a caller makes who repeats a whole streamed operation."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType

from dicomweb_io.wire.errors import ConnectionFailedError, DICOMwebError
from dicomweb_io.wire.retry import Deadline, RetryPolicy

logger = logging.getLogger("dicomweb_io")

_MAX_INSTANT = 16


class Budget:
    """How much more may be tried within one operation.

    Args:
        policy: When and how often.
        deadline: Until when.
        on_retry: Called before each wait.

    Attributes:
        tries: Requests sent so far.
        deadline: Until when.
    """

    def __init__(self, policy: RetryPolicy, deadline: Deadline, on_retry: Callable[[], None] = lambda: None) -> None:
        self.policy = policy
        self.deadline = deadline
        self.tries = 0
        self._failures = 0
        self._instant = 0
        # A weak reference: the error's traceback leads back to this object.
        self._final: Callable[[], DICOMwebError | None] = lambda: None
        self._on_retry = on_retry

    def progress(self) -> None:
        """Forgets the failures so far, because something new was got for good."""
        self._failures = self._instant = 0

    def decide(self, error: DICOMwebError, *, repeatable: bool = True) -> float | None:
        """Counts a failure and decides about it.

        Args:
            error: What failed.
            repeatable: Whether the request may be sent again at all.

        Returns:
            Seconds to wait before the next try; None if there is none and the error stands.
        """
        if error is self._final():
            return None
        self._final = weakref.ref(error)
        if not error.retryable or not repeatable:
            return None
        if isinstance(error, ConnectionFailedError) and error.stale and self._instant < _MAX_INSTANT:
            # The server closed an idle connection just when it was used again: no sign of trouble, no reason to wait.
            self._instant += 1
            self._log(error, 0.0)
            return 0.0
        self._failures += 1
        if self._failures >= self.policy.max_attempts:
            return None
        wait = self.policy.delay(self._failures, error.retry_after)
        remaining = self.deadline.remaining()
        if remaining is not None and wait >= remaining:
            # The jitter alone must not cost the last attempt; what the server asks for is not shortened.
            wait = error.retry_after or 0.0
            if wait >= remaining:
                return None
        self._log(error, wait)
        return wait

    def _log(self, error: DICOMwebError, wait: float) -> None:
        self._on_retry()
        logger.info("%s; trying again in %.1f s (attempt %d)", error.discreet, wait, self.tries + 1)


class Attempt:
    """One try of an operation that its caller repeats as a whole; a context manager that swallows a retryable error.

    Attributes:
        number: Counted from 1.
        deadline: Until when all attempts together must be done.
    """

    def __init__(self, budget: Budget, number: int) -> None:
        self.number = number
        self.deadline = budget.deadline
        self.budget = budget
        self.failed = False

    def progress(self) -> None:
        """Tells that something new was got for good, so that the failures before it no longer count."""
        self.budget.progress()

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, DICOMwebError):
            return False
        wait = self.budget.decide(error)
        if wait is None:
            return False
        self.failed = True
        time.sleep(wait)
        return True


def attempts(budget: Budget) -> Iterator[Attempt]:
    """Attempts until one ends without error; the last error passes through."""
    number = 0
    while True:
        number += 1
        attempt = Attempt(budget, number)
        yield attempt
        if not attempt.failed:
            return
