"""Retry policy, deadline and Retry-After."""

from __future__ import annotations

import pickle
import time

import pytest
from hypothesis import given, strategies as st

from dicomweb_io.errors import ConnectionFailedError, DeadlineExceededError, DICOMwebError
from dicomweb_io.http.retry import Budget, Deadline, RetryPolicy, parse_retry_after


@given(st.integers(1, 10_000), st.one_of(st.none(), st.floats(0, 1000)))
def test_delays_stay_within_their_bounds(attempt, retry_after) -> None:
    policy = RetryPolicy(initial_delay=0.5, multiplier=2.0, max_delay=30.0)
    delay = policy.delay(attempt, retry_after)
    minimum = retry_after or 0.0
    assert minimum <= delay <= minimum + min(30.0, 0.5 * 2.0 ** min(attempt - 1, 64))


def test_delays_are_spread() -> None:
    policy = RetryPolicy()
    assert len({policy.delay(3) for _ in range(20)}) > 10
    assert max(policy.delay(1) for _ in range(200)) <= 0.5


def test_policies() -> None:
    assert RetryPolicy.none().max_attempts == 1
    assert pickle.loads(pickle.dumps(RetryPolicy(3))) == RetryPolicy(3)
    assert RetryPolicy(statuses=[500]).statuses == (500,)  # type: ignore[arg-type]
    for options in ({"max_attempts": 0}, {"max_attempts": 1.5}, {"initial_delay": -1}, {"multiplier": 0.5}):
        with pytest.raises(ValueError, match="must"):
            RetryPolicy(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 120 ", 120.0),
        ("1.5", 1.5),
        ("-1", None),
        ("soon", None),
        ("", None),
        ("²", None),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
        ("Thursday, 01-Jan-70 00:02:00 GMT", 20.0),
        ("Thu, 99 Jan 1970 00:02:00 GMT", None),
    ],
)
def test_retry_after(value, seconds) -> None:
    assert parse_retry_after(value, now=100.0) == seconds


@given(st.text(max_size=40))
def test_retry_after_never_fails(text) -> None:
    seconds = parse_retry_after(text)
    assert seconds is None or seconds >= 0


def test_deadlines() -> None:
    never = Deadline(None)
    assert (never.remaining(), never.expired, never.bound(5), never.bound(None)) == (None, False, 5, None)
    never.check()
    soon = Deadline(1e-9)
    while not soon.expired:
        time.sleep(0)
    assert (soon.remaining(), soon.bound(5)) == (0.0, 0.0)
    message = "GET http://h/x: not complete within the deadline of 1e-09 s while testing"
    with pytest.raises(DeadlineExceededError, match=message):
        soon.check("testing", method="GET", url="http://h/x?y")
    later = Deadline(1000)
    assert Deadline.of(later) is later
    assert Deadline.of(5).seconds == 5
    remaining = later.remaining()
    assert remaining is not None
    assert 990 < remaining <= 1000
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="positive"):
            Deadline(wrong)


def fail(**options) -> DICOMwebError:
    options.setdefault("retryable", True)
    return DICOMwebError("x", **options)


def test_a_budget_counts_failures_once() -> None:
    retries: list[int] = []
    budget = Budget(RetryPolicy(3, initial_delay=0), Deadline(None), on_retry=lambda: retries.append(1))
    assert budget.decide(fail()) == 0
    assert budget.decide(fail()) == 0
    last = fail()
    assert budget.decide(last) is None
    assert budget.decide(last) is None
    assert len(retries) == 2
    budget.progress()
    assert budget.decide(fail()) == 0


def test_what_is_not_repeated() -> None:
    budget = Budget(RetryPolicy(3, initial_delay=0), Deadline(None))
    assert budget.decide(fail(retryable=False)) is None
    assert budget.decide(fail(), repeatable=False) is None
    stale = ConnectionFailedError("x", retryable=True)
    stale.stale = True
    assert Budget(RetryPolicy.none(), Deadline(None)).decide(stale) == 0.0
    assert Budget(RetryPolicy.none(), Deadline(None)).decide(stale, repeatable=False) is None


def test_waits_that_would_pass_the_deadline() -> None:
    budget = Budget(RetryPolicy(9, initial_delay=1000, max_delay=1000), Deadline(5))
    # Only the jitter would pass it: there is time for another try.
    waits = [Budget(budget.policy, Deadline(0.5)).decide(fail()) for _ in range(20)]
    assert 0.0 in waits
    assert all(wait is not None and wait < 0.5 for wait in waits)
    # The server's own wish is not cut short.
    assert budget.decide(fail(retry_after=10)) is None
    wait = Budget(RetryPolicy(9, initial_delay=0), Deadline(50)).decide(fail(retry_after=10))
    assert wait == 10
