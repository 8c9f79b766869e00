"""Fewer requests at once for a server that is overloaded, and more again when it recovers."""

from __future__ import annotations

import threading

import pytest

from dicomweb_io.http.retry import Deadline, RetryPolicy, Throttle
from dicomweb_io.http.settings import Limits
from dicomweb_io.http.transport import Transport
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.server.server import serve as start_server

NEVER = Deadline(None)


def answer(throttle, status):
    with throttle.acquire(NEVER) as slot:
        throttle.answered(slot, status)


@pytest.mark.parametrize("status", [429, 503])
def test_the_limit_is_halved_once_for_requests_under_way_together(status):
    throttle = Throttle(8)
    slots = [throttle.acquire(NEVER) for _ in range(8)]
    for slot in slots:
        throttle.answered(slot, status)
        slot.release()
    assert throttle.limit == 4
    for _ in range(5):
        answer(throttle, status)
    assert throttle.limit == 1


def test_the_limit_grows_by_one_for_as_many_good_answers_as_are_in_flight():
    throttle = Throttle(4)
    answer(throttle, 503)
    answer(throttle, 503)
    assert throttle.limit == 1
    limits = []
    for _ in range(12):
        answer(throttle, 200)
        limits.append(throttle.limit)
    assert limits[0] == 2
    assert limits[-1] == 4
    assert limits == sorted(limits)


@pytest.mark.parametrize("status", [None, 500, 404, 200])
def test_other_answers_do_not_lower_it(status):
    throttle = Throttle(4)
    answer(throttle, status)
    assert throttle.limit == 4


def test_a_request_over_the_lowered_limit_waits_and_counts_it():
    throttle = Throttle(2)
    answer(throttle, 503)
    first = throttle.acquire(NEVER)
    got = []
    thread = threading.Thread(target=lambda: got.append(throttle.acquire(Deadline(30))))
    thread.start()
    while not throttle._newcomers._waiters:
        pass
    assert not got
    first.release()
    thread.join(30)
    assert got[0].waited > 0
    assert first.waited == 0


def test_a_transport_learns_from_answers(folder):
    quick = RetryPolicy(initial_delay=0.001, max_delay=0.002)
    with start_server(folder, faults=[fault("status", status=503, times=3)]) as server:
        with Transport(server.url, limits=Limits(8), retry=quick) as transport:
            transport.request("GET", "/studies")
            # Three refusals, 8 → 4 → 2 → 1, then one good answer.
            assert transport._throttle.limit == 2
            assert len(transport.stats.take_durations()) == 4
            assert transport.stats.take_durations() == []
