"""When a request is sent, and when it is sent again: deadlines, retries, and the throttle that all clients share.

`RetryPolicy` and `Deadline` are what a user sets; `Budget` applies them to one operation, and `attempts` to one that
its caller repeats as a whole. `shared_throttle` bounds what a process asks of an endpoint, and `Stats` counts it.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar, cast

from dicomweb_io.errors import ConnectionFailedError, DeadlineExceededError, DICOMwebError

logger = logging.getLogger("dicomweb_io")

R = TypeVar("R")

_MAX_DURATIONS = 4096
_MAX_INSTANT = 16
_REPORTED_AFTER = 1.0
"""Seconds after which a wait is counted, although it goes on."""
_LENT_AFTER = 0.05
"""Seconds after which the slot of a reader who does not read is lent to a request that waits for one."""
_MAX_EQUAL_CAUSES = 20
"""Second attempts that fail in a row for the same cause; then there are none until something succeeds."""
_CROWDED_FOR = 10.0
_MAX_PATIENCE = 64
_FIRST_PROBE, _MAX_PROBE = 0.1, 5.0
_MIN_SILENCE = 20
"""Failures in a row that show that an archive is away, if they go on for long enough."""
BAD_NEWS_LASTS = 60.0
"""Seconds for which an archive that was lost, or refused the login, is not worth another request of a job."""


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
    """A point in time after which an operation must not continue; it starts to run when it is made.

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
        """The smaller of a time span and the remaining time; None if neither is limited."""
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


class Budget:
    """How much more may be tried within one operation.

    Args:
        policy: When and how often.
        deadline: Until when.
        on_retry: Called before each wait.
        on_throttled: Called with seconds of waits, while they pass, that an overloaded server asked for.

    Attributes:
        tries: Requests sent so far.
        deadline: Until when.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        deadline: Deadline,
        on_retry: Callable[[], None] = lambda: None,
        on_throttled: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.policy = policy
        self.deadline = deadline
        self.tries = 0
        self._failures = 0
        self._instant = 0
        # A weak reference: the error's traceback leads back to this object.
        self._final: Callable[[], DICOMwebError | None] = lambda: None
        self._on_retry = on_retry
        self._on_throttled = on_throttled
        self._throttled = False

    def progress(self) -> None:
        """Resets the count of failures, because new data arrived completely."""
        self._failures = self._instant = 0

    def stop(self, error: DICOMwebError) -> None:
        """Lets an error stand, whatever may be left to try."""
        self._final = weakref.ref(error)

    def decide(self, error: DICOMwebError, *, repeatable: bool = True) -> float | None:
        """Counts a failure and decides about it.

        Args:
            error: What failed.
            repeatable: Whether the request may be sent again at all.

        Returns:
            Seconds to wait before the next try; None if there is none and the error stands.
        """
        self._throttled = error.status in (429, 503)
        if error is self._final():
            return None
        if not error.retryable or not repeatable:
            return None
        self.stop(error)
        if isinstance(error, ConnectionFailedError) and error.stale and self._instant < _MAX_INSTANT:
            # The server closed an idle connection just when it was used again: not a sign of a problem, and no reason
            # to wait.
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

    def sleep(self, seconds: float) -> None:
        """Waits before the next try, as `decide` says."""
        while seconds > 0:
            part = min(seconds, _REPORTED_AFTER)
            time.sleep(part)
            seconds -= part
            if self._throttled:
                self._on_throttled(part)

    def _log(self, error: DICOMwebError, wait: float) -> None:
        self._on_retry()
        logger.info("%s; trying again in %.1f s (attempt %d)", error.log_text, wait, self.tries + 1)


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
        """Notes that new data arrived completely, so that the failures before it no longer count."""
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
        self.budget.sleep(wait)
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


class _ProcessBound(Protocol):
    def start_anew(self) -> None: ...


_PROCESS_BOUND: weakref.WeakSet[_ProcessBound] = weakref.WeakSet()


def start_anew_after_fork(thing: _ProcessBound) -> None:
    """Has the ``start_anew`` of an object called in every forked child, which has its locks but none of its threads."""
    _PROCESS_BOUND.add(thing)


def _start_anew() -> None:
    for thing in tuple(_PROCESS_BOUND):
        thing.start_anew()


os.register_at_fork(after_in_child=_start_anew)


class ProcessLock:
    """A reentrant lock that is free in a forked child, whatever threads of the parent held it."""

    def __init__(self) -> None:
        self.start_anew()
        start_anew_after_fork(self)

    def start_anew(self) -> None:
        """Makes a new lock."""
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@dataclass(eq=False)
class Stats:
    """What a transport did so far; read it at any time, from any thread.

    Attributes:
        requests: HTTP requests sent, retries and redirects included.
        retries: How often something was tried again.
        bytes_in: Bytes of bodies received, before decompression.
        bytes_out: Bytes sent, headers included.
        throttled_seconds: Seconds that threads waited for the rate limit, a Retry-After, or because the server had been
            overloaded. They are counted while they pass.
    """

    requests: int = 0
    retries: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    throttled_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._durations: deque[float] = deque(maxlen=_MAX_DURATIONS)
        self._taken: dict[str, int] = {}
        self.start_anew()
        start_anew_after_fork(self)

    def start_anew(self) -> None:
        """Makes a new lock; the numbers stay."""
        # Reentrant: the garbage collector may close an abandoned answer, which counts, on the thread that is counting.
        self._lock = threading.RLock()

    def take(self) -> dict[str, int]:
        """What was counted since the last call, for all callers; ``throttled_msecs`` in place of seconds."""
        with self._lock:
            now = {name: getattr(self, name) for name in ("requests", "retries", "bytes_in", "bytes_out")}
            now["throttled_msecs"] = int(1000 * self.throttled_seconds)
            before, self._taken = self._taken, now
        return {name: number - before.get(name, 0) for name, number in now.items()}

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


class Slot:
    """The right of one request to be in flight.

    A request counts only while it is sent or its answer is read. The slot rests between two reads, and a resting slot
    is lent to others: at once where the thread is known to wait (see `lend_slots`), otherwise after a moment, when
    another request needs it. To read on the slot is taken again, before any new request begins.

    Attributes:
        waited: Seconds that it came later because of the rate limit, of a Retry-After, or because the server had been
            overloaded.
    """

    __slots__ = ("_era", "_released", "_rests_since", "_thread", "_throttle", "waited")

    def __init__(self, throttle: Throttle, era: int, waited: float) -> None:
        self._throttle = throttle
        self._thread = threading.get_ident()
        self._era = era
        self._rests_since: float | None = None
        self._released = False
        self.waited = waited
        _slots_of_thread().add(self)

    def rest(self) -> None:
        """Notes that nothing is read for now."""
        self._rests_since = time.monotonic()

    def resume(self, deadline: Deadline) -> None:
        """Waits, if the slot was lent, until the answer may be read on, or until the deadline has passed."""
        self._throttle._resume(self, deadline)

    def release(self) -> None:
        """Releases it, from any thread; a second call does nothing."""
        self._released = True
        _slots_of_thread().discard(self)
        self._throttle._give_back(self)

    def __enter__(self) -> Slot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


_local = threading.local()


def _slots_of_thread() -> set[Slot]:
    """The slots that this thread has used last; some may be given back, or used by another thread since."""
    try:
        return cast("set[Slot]", _local.slots)
    except AttributeError:
        slots: set[Slot] = set()
        _local.slots = slots
        return slots


def lend_slots() -> None:
    """Lends the slots of this thread's requests to others; to be called before the thread waits for something else."""
    slots = _slots_of_thread()
    if not slots:
        return
    me = threading.get_ident()
    for slot in tuple(slots):
        slots.discard(slot)
        if slot._thread == me:
            slot._throttle._give_back(slot)


class Throttle:
    """Bounds what all clients of one endpoint do together in this process.

    A server that answers 429 or 503 is overloaded: from then on half as many requests are in flight at once, at least
    one, and with each as many answers as are in flight one more again (additive increase, multiplicative decrease). So
    a server that names no time to wait can recover. What fails, and succeeds when it is tried `alone`, shows an
    overload too; the limit then rises the more slowly the more often that happens.

    While an archive that has answered before cannot be connected to, one thread probes it and the others wait
    (`await_return`).

    It restarts in a forked child: the requests of the parent process do not count.

    Args:
        max_in_flight: Requests at once, each while it is sent or its answer is read.
        requests_per_second: Requests begun per second, on average; bursts of up to one second's worth (at least one
            request) pass. None for no limit.
    """

    def __init__(self, max_in_flight: int, requests_per_second: float | None = None) -> None:
        if not isinstance(max_in_flight, int) or max_in_flight < 1:
            raise ValueError(f"max_in_flight must be a positive integer, not {max_in_flight!r}")
        if requests_per_second is not None and not requests_per_second > 0:
            raise ValueError(f"requests_per_second must be positive, not {requests_per_second!r}")
        self._max_in_flight = max_in_flight
        self._rate = requests_per_second
        self._burst = max(1.0, requests_per_second or 1.0)
        self.start_anew()
        start_anew_after_fork(self)

    def start_anew(self) -> None:
        """Forgets everything, as if no request had been made."""
        self._limit = float(self._max_in_flight)
        self._era = 0
        self._tokens = self._burst
        self._refilled = time.monotonic()
        self._not_before = 0.0
        self._held: set[Slot] = set()
        self._readers_waiting = 0
        self._patience = 1
        self._slowed_in = -1
        self._owner: int | None = None
        self._turns_wanted = 0
        self._crowded_at = float("-inf")
        self._in_a_row: dict[str, tuple[Hashable, int]] = {}
        self._reached = False
        self._down_since: float | None = None
        self._silence: tuple[float, int] | None = None
        self._prober: int | None = None
        self._probe_wait = _FIRST_PROBE
        self._lost: tuple[float, str] | None = None
        # Reentrant: the garbage collector may close an abandoned answer on the thread that is just here.
        lock = threading.RLock()
        self._newcomers = threading.Condition(lock)
        self._readers = threading.Condition(lock)

    @property
    def in_flight(self) -> int:
        """How many slots are taken."""
        return len(self._held)

    @property
    def limit(self) -> int:
        """How many requests may be in flight now."""
        return int(self._limit)

    def acquire(self, deadline: Deadline, stats: Stats | None = None) -> Slot:
        """Waits until another request may begin. The slots of this thread's other requests are lent meanwhile.

        Args:
            deadline: When it gives up.
            stats: Where throttled seconds are counted while they pass.

        Raises:
            DeadlineExceededError: If none becomes free in time; at once if the rate limit or the server's last
                Retry-After forbid it until after the deadline.
        """
        lend_slots()
        waited = 0.0
        me = threading.get_ident()
        with self._newcomers:
            while True:
                remaining = deadline.remaining()
                if self._must_wait(me) or not self._has_room():
                    wait = _LENT_AFTER
                    # Only what the server's state costs counts as throttled, not the user's own limit.
                    throttled = self.in_flight < self._max_in_flight
                    if deadline.expired:
                        # A slot that became free in this very moment was announced to this thread alone.
                        self._newcomers.notify()
                        raise deadline.error(f"waiting for one of {self.limit} requests in flight to end")
                else:
                    wait = self._next_wait()
                    throttled = True
                    if wait <= 0:
                        break
                    if remaining is not None and wait > remaining:
                        self._newcomers.notify()
                        raise DeadlineExceededError(
                            f"the next request may begin in {wait:.1f} s (rate limit or Retry-After), "
                            f"which is after the deadline of {deadline.seconds:g} s"
                        )
                began = time.monotonic()
                wait = min(wait, _REPORTED_AFTER)
                self._newcomers.wait(wait if remaining is None else min(wait, remaining))
                if throttled:
                    seconds = time.monotonic() - began
                    waited += seconds
                    if stats is not None:
                        stats.add(throttled_seconds=seconds)
            if self._held:
                self._crowded_at = time.monotonic()
            slot = Slot(self, self._era, waited)
            self._held.add(slot)
            return slot

    def _must_wait(self, me: int) -> bool:
        """Whether a thread's new request comes after others, however much room there is."""
        if self._owner == me:
            return False
        if self._owner is not None or self._turns_wanted or self._readers_waiting:
            return True
        return self._prober not in (None, me)

    def answered(self, slot: Slot, status: int | None) -> None:
        """Adapts the limit to an answer; to be called before the slot is released.

        Args:
            slot: The request's.
            status: The HTTP status; None, if there was no answer, tells nothing.
        """
        with self._newcomers:
            if status in (429, 503):
                # Requests that were under way already when the limit was lowered say nothing new.
                if slot._era == self._era:
                    self._halve()
            elif status is not None and status < 500 and self._limit < self._max_in_flight:
                before = self.limit
                self._limit = min(float(self._max_in_flight), self._limit + 1 / (self._limit * self._patience))
                if self.limit > before:
                    self._announce()

    def _halve(self) -> None:
        self._limit = max(1.0, self._limit / 2)
        self._era += 1

    @property
    def era(self) -> int:
        """The number of times that the limit was lowered: failures of an earlier era show nothing new."""
        return self._era

    @property
    def is_crowded(self) -> bool:
        """Whether several requests were in flight at once a short while ago."""
        return time.monotonic() - self._crowded_at < _CROWDED_FOR

    @property
    def is_alone(self) -> bool:
        """Whether this thread has the endpoint for itself."""
        return self._owner == threading.get_ident()

    @contextmanager
    def alone(self, deadline: Deadline) -> Iterator[None]:
        """A turn of this thread in which no other request of the process is in flight.

        It begins when the requests in flight have ended; new ones wait meanwhile, and until it ends. The block must
        wait for nothing but its own requests.

        Raises:
            DeadlineExceededError: If they do not end in time.
        """
        if self.is_alone:
            yield
            return
        lend_slots()
        with self._newcomers:
            self._turns_wanted += 1
            try:
                while self._owner is not None or self._readers_waiting or not self._has_room(1):
                    if deadline.expired:
                        raise deadline.error("waiting for the requests in flight to end")
                    self._newcomers.wait(deadline.bound(_LENT_AFTER))
                self._owner = threading.get_ident()
            finally:
                self._turns_wanted -= 1
        try:
            yield
        finally:
            with self._newcomers:
                self._owner = None
                self._newcomers.notify_all()
                self._readers.notify_all()

    def may_heal(self, kind: str, cause: Hashable) -> bool:
        """Whether a second attempt is worth it: not after many in a row that failed for the same cause."""
        last, number = self._in_a_row.get(kind, (None, 0))
        return cause != last or number < _MAX_EQUAL_CAUSES

    def tried_alone(self, kind: str, cause: Hashable, *, healed: bool, era: int) -> None:
        """Learns from a second attempt.

        Args:
            kind: What was attempted, such as ``"store"``.
            cause: Why the first attempt failed.
            healed: Whether the second one succeeded, so that the first failed because too much was asked at once.
            era: The `era` of the first attempt.
        """
        with self._newcomers:
            if healed:
                self._in_a_row.pop(kind, None)
                if era == self._era:
                    self._halve()
                if era > self._slowed_in:
                    self._slowed_in = era
                    self._patience = min(_MAX_PATIENCE, 2 * self._patience)
            else:
                last, number = self._in_a_row.get(kind, (None, 0))
                self._in_a_row[kind] = (cause, number + 1 if cause == last else 1)

    def went_well(self, kind: str) -> None:
        """Notes a success at the first attempt."""
        self._in_a_row.pop(kind, None)

    @property
    def lost(self) -> str | None:
        """Why the endpoint counted as lost a short while ago; None if it does not."""
        lost = self._lost
        return lost[1] if lost is not None and time.monotonic() - lost[0] < BAD_NEWS_LASTS else None

    def reached(self) -> None:
        """Notes an answer of the archive, whatever it says."""
        if self._reached and self._down_since is None and self._lost is None and self._silence is None:
            return
        with self._newcomers:
            self._reached = True
            self._down_since = self._lost = self._silence = None
            self._probe_wait = _FIRST_PROBE
            self._newcomers.notify_all()

    def give_up(self, why: str) -> None:
        """Notes that the endpoint cannot be connected to."""
        with self._newcomers:
            self._lost = (time.monotonic(), why)
            self._newcomers.notify_all()

    def heard_nothing(self, why: str, outage: float) -> None:
        """Notes a request that the archive did not answer, though something in front of it may have.

        If for `outage` seconds there was nothing else, it counts as lost.
        """
        with self._newcomers:
            now = time.monotonic()
            since, number = self._silence or (now, 0)
            self._silence = since, number + 1
            if number >= _MIN_SILENCE and now - since >= outage:
                self.give_up(f"{why}; nothing else has been answered for {outage:g} s")

    def await_return(self, why: str, outage: float, deadline: Deadline) -> bool:
        """To be called by a thread that could not connect; returns when it may try again.

        One thread probes, with growing waits in between; the others wait for what it finds.

        Args:
            why: What went wrong.
            outage: Seconds after which the endpoint counts as lost.
            deadline: Until when the thread can wait.

        Returns:
            False if there is no hope: the endpoint never answered, or not for so long.
        """
        me = threading.get_ident()
        with self._newcomers:
            if not self._reached or self._lost is not None or deadline.expired:
                return False
            now = time.monotonic()
            if self._down_since is None:
                self._down_since = now
                logger.warning("%s; waiting up to %g s for it to return", why, outage)
            left = self._down_since + outage - now
            if left <= 0:
                self.give_up(f"{why}; it has not returned within {outage:g} s")
                return False
            if self._prober not in (None, me):
                self._newcomers.wait(deadline.bound(min(_MAX_PROBE, left)))
                return True
            self._prober = me
            wait = min(self._probe_wait, left)
            self._probe_wait = min(_MAX_PROBE, 2 * self._probe_wait)
        time.sleep(deadline.bound(wait) or 0.0)
        return True

    def stop_probing(self) -> None:
        """Leaves probing to others, if it is this thread that does it."""
        if self._prober == threading.get_ident():
            with self._newcomers:
                self._prober = None
                self._newcomers.notify_all()

    def back_off(self, seconds: float) -> bool:
        """Holds all new requests back for some seconds, because the server asked one of them to come again later.

        Returns:
            Whether this is longer than was already agreed.
        """
        until = time.monotonic() + seconds
        with self._newcomers:
            longer = until > self._not_before + 0.01
            self._not_before = max(self._not_before, until)
        return longer

    def _resume(self, slot: Slot, deadline: Deadline) -> None:
        with self._readers:
            slot._rests_since = None
            if slot in self._held:
                me = threading.get_ident()
                if slot._thread != me:
                    slot._thread = me
                    _slots_of_thread().add(slot)
                return
        if slot._released:
            return
        # This thread may be reading several answers in turn.
        lend_slots()
        slot._thread = threading.get_ident()
        _slots_of_thread().add(slot)
        with self._readers:
            self._readers_waiting += 1
            try:
                while self._owner not in (None, slot._thread) or not self._has_room():
                    if deadline.expired:
                        return
                    self._readers.wait(deadline.bound(_LENT_AFTER))
                if not slot._released:
                    self._held.add(slot)
            finally:
                self._readers_waiting -= 1
                self._announce()

    def _give_back(self, slot: Slot) -> None:
        with self._newcomers:
            if slot in self._held:
                self._held.discard(slot)
                self._announce()

    def _announce(self) -> None:
        # Readers first: an answer that is read on is the sooner out of the way.
        (self._readers if self._readers_waiting else self._newcomers).notify()

    def _has_room(self, limit: int | None = None) -> bool:
        """Whether a slot is free, or can be taken from a reader who has been busy with something else for a while."""
        limit = self.limit if limit is None else limit
        if self.in_flight < limit:
            return True
        before = time.monotonic() - _LENT_AFTER
        for slot in tuple(self._held):
            if slot._rests_since is not None and slot._rests_since <= before:
                self._held.discard(slot)
                if self.in_flight < limit:
                    return True
        return False

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


class Registry(Generic[R]):
    """Objects that several users share: by key, made for the first user and closed after the last one.

    Args:
        close: What is done with an object that is no longer in use.
    """

    def __init__(self, close: Callable[[R], object] = lambda thing: None) -> None:
        self._close = close
        self._entries: dict[Any, list[Any]] = {}
        self.start_anew()
        start_anew_after_fork(self)

    def start_anew(self) -> None:
        """Makes a new lock; the objects restart by themselves."""
        # Reentrant: the garbage collector may drop a user, and so release it, on the thread that is just acquiring.
        self._lock = threading.RLock()

    def acquire(self, key: Any, make: Callable[[], R]) -> R:
        """The object of a key, for one more user."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = [make(), 0]
            entry[1] += 1
            value: R = entry[0]
            return value

    def release(self, key: Any) -> None:
        """Counts one user less."""
        with self._lock:
            entry = self._entries[key]
            entry[1] -= 1
            if entry[1]:
                return
            del self._entries[key]
        self._close(entry[0])


_THROTTLES: Registry[Throttle] = Registry()


def shared_throttle(
    user: object, address: str, max_in_flight: int, requests_per_second: float | None
) -> tuple[Throttle, Callable[[], object]]:
    """The one throttle of this process for an address and its limits, whatever the purpose.

    Args:
        user: Who uses it, as long as this object lives or until it gives the throttle back.
        address: What is asked.
        max_in_flight: See `Throttle`.
        requests_per_second: See `Throttle`.

    Returns:
        The throttle, and what gives it back. Behind the last user it is forgotten, Retry-After and all.
    """
    key = (address, max_in_flight, requests_per_second)
    throttle = _THROTTLES.acquire(key, lambda: Throttle(max_in_flight, requests_per_second))
    return throttle, weakref.finalize(user, _THROTTLES.release, key)
