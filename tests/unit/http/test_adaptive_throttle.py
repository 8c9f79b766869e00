"""Fewer requests at once for a server that is overloaded, and more again when it recovers."""

from __future__ import annotations

import threading

import pytest

from dicomweb_io.errors import DeadlineExceededError
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


# Second attempts ------------------------------------------------------------------------------------------------------


def test_a_turn_begins_when_the_requests_in_flight_have_ended_and_new_ones_wait_for_its_end():
    throttle = Throttle(8)
    first = throttle.acquire(NEVER)
    events = []
    began = threading.Event()

    def turn():
        with throttle.alone(Deadline(30)):
            began.set()
            events.append(("alone", throttle.in_flight))
            # Its own requests pass.
            throttle.acquire(Deadline(30)).release()
            waiting.start()
            while not throttle._newcomers._waiters:
                pass
            events.append(("still", throttle.in_flight))

    def other():
        with throttle.acquire(Deadline(30)):
            events.append(("other", throttle.in_flight))

    waiting, alone = threading.Thread(target=other), threading.Thread(target=turn)
    alone.start()
    assert not began.wait(0.1)
    first.release()
    alone.join(30)
    waiting.join(30)
    assert events == [("alone", 0), ("still", 0), ("other", 1)]


def test_a_reader_that_rests_does_not_hold_a_turn_up_and_reads_on_after_it():
    throttle = Throttle(8)
    reader = throttle.acquire(NEVER)
    reader.rest()
    resumed = threading.Event()

    def read_on():
        reader.resume(Deadline(30))
        resumed.set()

    with throttle.alone(Deadline(30)):
        thread = threading.Thread(target=read_on)
        thread.start()
        assert not resumed.wait(0.15)
    assert resumed.wait(30)
    thread.join(30)


def test_a_turn_that_cannot_begin_in_time_is_an_error_and_blocks_nobody():
    throttle = Throttle(2)
    holder = []
    thread = threading.Thread(target=lambda: holder.append(throttle.acquire(NEVER)))
    thread.start()
    thread.join(30)
    with pytest.raises(DeadlineExceededError), throttle.alone(Deadline(0.1)):
        pass
    throttle.acquire(Deadline(5)).release()


def test_what_succeeds_alone_halves_the_limit_once_for_an_era_and_slows_its_growth():
    throttle = Throttle(8)
    era = throttle.era
    for _ in range(3):
        throttle.tried_alone("store", "0110H", healed=True, era=era)
    assert throttle.limit == 4
    throttle.tried_alone("store", "0110H", healed=True, era=throttle.era)
    throttle.tried_alone("store", "0110H", healed=True, era=throttle.era)
    assert throttle.limit == 1
    answers = 0
    while throttle.limit == 1:
        answer(throttle, 200)
        answers += 1
    assert answers > 5


def test_after_twenty_equal_causes_in_a_row_there_is_no_second_attempt():
    throttle = Throttle(8)
    for _ in range(20):
        assert throttle.may_heal("store", "0110H")
        throttle.tried_alone("store", "0110H", healed=False, era=0)
    assert not throttle.may_heal("store", "0110H")
    assert throttle.may_heal("store", "409")
    assert throttle.may_heal("GET", "0110H")
    throttle.went_well("store")
    assert throttle.may_heal("store", "0110H")


# Outages --------------------------------------------------------------------------------------------------------------


def test_an_endpoint_that_never_answered_is_not_waited_for():
    assert not Throttle(8).await_return("refused", 3600, NEVER)


def test_an_endpoint_is_lost_after_the_outage_and_found_again_with_an_answer():
    throttle = Throttle(8)
    throttle.reached()
    assert throttle.await_return("refused", 0.3, NEVER)
    while throttle.await_return("refused", 0.3, NEVER):
        assert throttle.lost is None
    throttle.stop_probing()
    assert "has not returned within 0.3 s" in throttle.lost
    throttle.reached()
    assert throttle.lost is None


def test_while_one_thread_probes_the_others_wait():
    throttle = Throttle(8)
    throttle.reached()
    assert throttle.await_return("refused", 60, NEVER)
    got = []
    thread = threading.Thread(target=lambda: got.append(throttle.acquire(Deadline(30))))
    thread.start()
    while not throttle._newcomers._waiters:
        pass
    assert not got
    throttle.acquire(Deadline(5)).release()
    throttle.reached()
    throttle.stop_probing()
    thread.join(30)
    assert got
