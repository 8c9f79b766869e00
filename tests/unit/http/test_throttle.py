"""Slots, rate and shared back-off, without a server."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable

import pytest

from dicomweb_io.errors import DeadlineExceededError, DICOMwebError
from dicomweb_io.http import retry
from dicomweb_io.http.retry import Budget, Deadline, RetryPolicy, Slot, Stats, Throttle, lend_slots, shared_throttle

NEVER = Deadline(None)
WAIT = 30


def waited(throttle: Throttle, deadline: Deadline = NEVER) -> float:
    """Seconds that a request had to wait."""
    with throttle.acquire(deadline) as slot:
        return slot.waited


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_slot_is_given_back_once_and_from_any_thread() -> None:
    throttle = Throttle(1)
    slot = throttle.acquire(NEVER)
    in_thread(slot.release).join(WAIT)
    slot.release()
    assert throttle.in_flight == 0
    with throttle.acquire(NEVER):
        assert throttle.in_flight == 1
    assert throttle.in_flight == 0


def test_a_waiting_thread_gets_the_slot_that_becomes_free() -> None:
    throttle = Throttle(1)
    slot = throttle.acquire(NEVER)
    got: list[float] = []
    thread = in_thread(lambda: got.append(waited(throttle, Deadline(10))))
    assert got == []
    slot.release()
    thread.join(WAIT)
    assert len(got) == 1


def test_a_wait_beyond_the_deadline_fails_at_once() -> None:
    throttle = Throttle(1)
    assert waited(throttle) == 0
    assert throttle.back_off(1000)
    assert not throttle.back_off(10)
    with pytest.raises(DeadlineExceededError, match="rate limit or Retry-After"):
        throttle.acquire(Deadline(5))
    slow = Throttle(1, 0.001)
    assert waited(slow, Deadline(5)) == 0
    with pytest.raises(DeadlineExceededError):
        slow.acquire(Deadline(5))
    assert throttle.in_flight == slow.in_flight == 0


def test_throttled_seconds_are_counted_while_they_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait of a new request, which has an hour to go, and that of a request which was told to come again."""
    monkeypatch.setattr(retry, "_REPORTED_AFTER", 0.01)
    throttle, stats, told = Throttle(1), Stats(), Stats()
    throttle.back_off(3600)
    budget = Budget(RetryPolicy(), NEVER, on_throttled=lambda seconds: told.add(throttled_seconds=seconds))
    in_thread(lambda: throttle.acquire(NEVER, stats))
    assert budget.decide(DICOMwebError("busy", status=503, retryable=True, retry_after=3600)) is not None
    in_thread(lambda: budget.sleep(3600))
    ends = time.monotonic() + WAIT
    while not (stats.throttled_seconds and told.throttled_seconds) and time.monotonic() < ends:
        time.sleep(0.01)
    assert 0 < stats.throttled_seconds < 3600
    assert 0 < told.throttled_seconds < 3600


def test_only_the_waits_of_an_overload_count_as_throttled() -> None:
    told: list[float] = []
    budget = Budget(RetryPolicy(initial_delay=0.001, max_delay=0.001), NEVER, on_throttled=told.append)
    for status, number in ((500, 0), (429, 1), (None, 1), (503, 2)):
        wait = budget.decide(DICOMwebError("failed", status=status, retryable=True))
        assert wait is not None
        budget.sleep(wait)
        assert len(told) == number


def test_the_rate_holds_on_average() -> None:
    """A second's worth passes at once. On a slow machine the others need not wait, but they never come early."""
    begun = time.monotonic()
    throttle = Throttle(1, 100)
    for _ in range(120):
        waited(throttle)
    assert time.monotonic() - begun >= 0.199


def test_a_slot_that_rests_is_lent_and_taken_again_before_a_new_request_begins() -> None:
    throttle = Throttle(1)
    reader = throttle.acquire(NEVER)
    reader.rest()
    begun: list[Slot] = []
    threads = [in_thread(lambda: begun.append(throttle.acquire(Deadline(WAIT))))]
    threads[0].join(WAIT)
    assert len(begun) == 1, "the slot was not lent"
    resumed = threading.Event()

    def resume() -> None:
        reader.resume(Deadline(WAIT))
        resumed.set()

    threads += [in_thread(lambda: begun.append(throttle.acquire(Deadline(WAIT)))), in_thread(resume)]
    while not throttle._readers_waiting:
        pass
    begun[0].release()
    assert resumed.wait(WAIT)
    assert len(begun) == 1, "a new request came before the reader"
    assert throttle.in_flight == 1
    reader.release()
    threads[1].join(WAIT)
    assert len(begun) == 2
    begun[1].release()
    assert throttle.in_flight == 0


def test_a_slot_in_use_is_not_lent() -> None:
    throttle = Throttle(1)
    reader = throttle.acquire(NEVER)
    reader.rest()
    reader.resume(NEVER)

    def other() -> None:
        with pytest.raises(DeadlineExceededError):
            throttle.acquire(Deadline(0.3))

    in_thread(other).join(WAIT)
    assert throttle.in_flight == 1
    reader.release()


def test_a_thread_that_waits_for_something_else_lends_its_slots_at_once() -> None:
    throttle, other = Throttle(1), Throttle(1)
    outer = throttle.acquire(NEVER)
    # It asks for something else itself, from this archive or another one.
    inner = throttle.acquire(NEVER)
    foreign = other.acquire(NEVER)
    assert (throttle.in_flight, other.in_flight) == (0, 1)
    inner.resume(NEVER)
    assert (throttle.in_flight, other.in_flight) == (1, 0)
    outer.resume(NEVER)
    assert throttle.in_flight == 1
    lend_slots()
    assert throttle.in_flight == 0
    for slot in (outer, inner, foreign):
        slot.release()
    outer.resume(NEVER)
    assert throttle.in_flight == 0, "a released slot was taken again"


def test_reading_on_ends_with_the_deadline() -> None:
    throttle = Throttle(1)
    reader = throttle.acquire(NEVER)
    lend_slots()
    holder: list[Slot] = []
    in_thread(lambda: holder.append(throttle.acquire(NEVER))).join(WAIT)
    reader.resume(Deadline(0.05))
    assert throttle.in_flight == 1
    holder[0].release()


class User:
    """Something that uses a throttle."""


def test_one_throttle_for_an_address_and_its_limits() -> None:
    users = [User() for _ in range(4)]
    first, leave = shared_throttle(users[0], "http://a/b", 2, None)
    assert shared_throttle(users[1], "http://a/b", 2, None)[0] is first
    assert shared_throttle(users[2], "http://a/b", 3, None)[0] is not first
    assert shared_throttle(users[3], "http://a/c", 2, None)[0] is not first
    first.back_off(1000)
    leave()
    with pytest.raises(DeadlineExceededError):
        shared_throttle(User(), "http://a/b", 2, None)[0].acquire(Deadline(1))
    users.clear()
    gc.collect()
    assert waited(shared_throttle(User(), "http://a/b", 2, None)[0]) == 0, "it outlived its users"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_starts_anew() -> None:
    throttle, _ = shared_throttle(test_a_forked_child_starts_anew, "http://a/b", 1, None)
    slot = throttle.acquire(NEVER)
    locked, leave = threading.Event(), threading.Event()

    def hold_the_lock() -> None:
        with throttle._newcomers:
            locked.set()
            leave.wait(WAIT)

    thread = in_thread(hold_the_lock)
    assert locked.wait(WAIT)
    child = os.fork()
    if child == 0:
        # Whatever fails here must not run the rest of the tests twice.
        try:
            own = shared_throttle(User(), "http://a/b", 1, None)[0].acquire(Deadline(WAIT))
            own.release()
            os._exit(0 if throttle.in_flight == 0 else 1)
        finally:
            os._exit(2)
    leave.set()
    thread.join(WAIT)
    assert os.waitpid(child, 0)[1] == 0
    assert throttle.in_flight == 1
    slot.release()


@pytest.mark.parametrize("arguments", [(0,), (1.5,), (1, 0), (1, -1)])
def test_impossible_limits(arguments) -> None:
    with pytest.raises(ValueError, match="must be"):
        Throttle(*arguments)


def test_counting_within_counting_does_not_block():
    """The garbage collector may close an abandoned answer, which counts, on the thread that is counting."""
    stats = Stats()

    class Amount(int):
        def __radd__(self, other):
            stats.add(retries=1)
            return int(other) + int(self)

    in_thread(lambda: stats.add(requests=Amount(1))).join(WAIT)
    assert (stats.requests, stats.retries) == (1, 1)
