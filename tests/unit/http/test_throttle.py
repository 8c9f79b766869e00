"""Slots, rate and shared back-off, without a server."""

from __future__ import annotations

import threading

import pytest

from dicomweb_io.errors import DeadlineExceededError
from dicomweb_io.http.retry import Deadline, Stats, Throttle


def test_a_slot_is_given_back_once_and_from_any_thread() -> None:
    throttle = Throttle(1)
    slot = throttle.acquire(Deadline(None))
    thread = threading.Thread(target=slot.release)
    thread.start()
    thread.join()
    slot.release()
    assert throttle.in_flight == 0
    with throttle.acquire(Deadline(None)):
        assert throttle.in_flight == 1
    assert throttle.in_flight == 0


def test_a_waiting_thread_gets_the_slot_that_becomes_free() -> None:
    throttle = Throttle(1)
    slot = throttle.acquire(Deadline(None))
    got = threading.Event()

    def wait() -> None:
        with throttle.acquire(Deadline(10)):
            got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not got.is_set()
    slot.release()
    assert got.wait(5)
    thread.join()


def test_a_wait_beyond_the_deadline_fails_at_once() -> None:
    throttle = Throttle(1)
    assert throttle.pace(Deadline(None)) == 0
    assert throttle.back_off(1000)
    assert not throttle.back_off(10)
    with pytest.raises(DeadlineExceededError, match="rate limit or Retry-After"):
        throttle.pace(Deadline(5))
    slow = Throttle(1, 0.001)
    assert slow.pace(Deadline(5)) == 0
    with pytest.raises(DeadlineExceededError):
        slow.pace(Deadline(5))


def test_the_rate_holds_on_average() -> None:
    throttle = Throttle(1, 100)
    waited = sum(throttle.pace(Deadline(None)) for _ in range(120))
    assert waited >= 0.1


@pytest.mark.parametrize("arguments", [(0,), (1.5,), (1, 0), (1, -1)])
def test_impossible_limits(arguments) -> None:
    with pytest.raises(ValueError, match="must be"):
        Throttle(*arguments)


def test_counting_within_counting_does_not_block():
    """The garbage collector may close an abandoned answer, which counts, on the thread that is counting."""
    stats = Stats()
    done = threading.Event()

    class Amount(int):
        def __radd__(self, other):
            stats.add(retries=1)
            return int(other) + int(self)

    def count():
        stats.add(requests=Amount(1))
        done.set()

    threading.Thread(target=count, daemon=True).start()
    assert done.wait(10)
    assert (stats.requests, stats.retries) == (1, 1)
