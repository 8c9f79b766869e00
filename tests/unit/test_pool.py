"""The bounded pool: limits hold, a slow consumer holds the producers back, and nothing waits forever."""

from __future__ import annotations

import gc
import math
import os
import random
import threading
from collections import deque

import pytest

from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.retry import Deadline, Registry, Throttle, shared_throttle
from dicomweb_io.http.settings import Limits
from dicomweb_io.pool import DEFAULT_MAX_BYTES, BoundedPool, WorkCancelled, shared_client

WAIT = 20
NEVER = Deadline(None)


@pytest.fixture
def pool():
    pool = BoundedPool(max_in_flight=3, max_bytes=100_000)
    yield pool
    pool.close()


def one(value):
    def produce(room):
        yield value

    return produce


def run_all(lane, tasks):
    results = []
    for key, produce in tasks:
        results.extend(lane.submit(key, produce))
    results.extend(lane.drain())
    return results


def test_every_result_comes_back_with_its_key(pool):
    results = run_all(pool.lane(), [(number, one(number * 2)) for number in range(50)])
    assert sorted(results) == [(number, number * 2) for number in range(50)]
    assert pool.in_flight == 0
    assert pool.bytes_in_use == 0


def test_an_ordered_lane_keeps_the_order_even_if_later_tasks_end_first(pool):
    gates = [threading.Event() for _ in range(3)]

    def gated(number):
        def produce(room):
            assert gates[number].wait(WAIT)
            yield number, "a"
            yield number, "b"
            if number:
                gates[number - 1].set()

        return produce

    lane = pool.lane(ordered=True)
    gates[2].set()
    found = run_all(lane, [(number, gated(number)) for number in range(3)])
    assert found == [(number, (number, part)) for number in range(3) for part in "ab"]


def test_no_more_tasks_run_than_allowed(pool):
    running, maximum, lock = 0, 0, threading.Lock()
    full = threading.Event()

    def produce(room):
        nonlocal running, maximum
        with lock:
            running += 1
            maximum = max(maximum, running)
            if running == 3:
                full.set()
        assert full.wait(WAIT)
        yield None
        with lock:
            running -= 1

    lanes = [pool.lane(), pool.lane()]
    threads = [threading.Thread(target=run_all, args=(lane, [(n, produce) for n in range(20)])) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    # A lane may have one task beyond the limit.
    assert 3 <= maximum <= 3 + len(lanes)


def test_a_slow_consumer_holds_the_producers_back(pool):
    """Each result takes 40 % of the budget: while none is taken, two are made and no more."""
    made = []

    def produce(room):
        for number in range(10):
            room.reserve(40_000)
            made.append(number)
            yield number

    lane = pool.lane()
    results = lane.submit("stream", produce)
    assert list(results) == []
    drained = lane.drain()
    taken = []
    for number in range(10):
        taken.append(next(drained)[1])
        # What was given last is still the consumer's, and there is room for one more beside it.
        assert pool.bytes_in_use <= pool.max_bytes
        assert len(made) <= number + 2
    assert list(drained) == []
    assert taken == list(range(10))
    assert pool.bytes_in_use == 0


def test_an_item_larger_than_the_budget_passes_alone(pool):
    seen = []

    def produce(size):
        def run(room):
            room.reserve(size)
            seen.append(pool.bytes_in_use)
            yield size

        return run

    sizes = [30_000, 500_000, 30_000, 700_000, 30_000] * 3
    results = run_all(pool.lane(), [(index, produce(size)) for index, size in enumerate(sizes)])
    assert sorted(size for _, size in results) == sorted(sizes)
    assert max(seen) == 700_000, "a large item had company"
    assert pool.bytes_in_use == 0


def test_order_and_budget_together_do_not_wait_forever(pool):
    """Later results fill the budget while the first still waits to be read: the head of the line passes."""
    others_done = threading.Semaphore(0)

    def head(room):
        for _ in range(2):
            assert others_done.acquire(timeout=WAIT)
        room.reserve(90_000)
        yield "head"

    def other(room):
        room.reserve(50_000)
        yield "other"
        others_done.release()

    found = run_all(pool.lane(ordered=True), [(0, head), (1, other), (2, other)])
    assert found == [(0, "head"), (1, "other"), (2, "other")]


def test_an_error_of_a_task_is_raised_on_the_bundles_thread(pool):
    def produce(room):
        yield 1
        raise KeyError("mistake")

    lane = pool.lane()
    list(lane.submit("a", produce))
    results = deque()
    with pytest.raises(KeyError, match="mistake"):
        results.extend(lane.drain())
    lane.close()
    assert pool.bytes_in_use == 0


def test_closing_a_lane_cancels_its_tasks_and_frees_its_room(pool):
    entered, ended = threading.Event(), threading.Event()
    errors = []

    def produce(room):
        try:
            room.reserve(90_000)
            yield 1
            entered.set()
            room.reserve(90_000)
            yield 2
        except WorkCancelled as error:
            errors.append(error)
            raise
        finally:
            ended.set()

    lane = pool.lane()
    assert list(lane.submit("a", produce)) == []
    assert entered.wait(WAIT)
    lane.close()
    assert ended.wait(WAIT)
    assert len(errors) == 1
    # Another lane finds the pool as if the first had never been.
    found = run_all(pool.lane(), [(number, one(number)) for number in range(3)])
    assert sorted(found) == [(0, 0), (1, 1), (2, 2)]
    assert pool.bytes_in_use == 0
    with pytest.raises(RuntimeError, match="closed"):
        list(lane.submit("b", one(1)))


def test_work_that_holds_bytes_already_waits_for_room(pool):
    gate = threading.Event()
    seen = []

    def produce(room):
        assert gate.wait(WAIT)
        seen.append(pool.bytes_in_use)
        yield None

    lane = pool.lane()
    assert list(lane.submit(0, produce, holding=60_000)) == []
    timer = threading.Timer(0.05, gate.set)
    timer.start()
    # The second does not fit beside the first, so this waits until the first was taken.
    found = [key for key, _ in lane.submit(1, produce, holding=60_000)]
    found += [key for key, _ in lane.drain()]
    timer.join()
    assert found == [0, 1]
    assert seen == [60_000, 60_000]
    assert pool.bytes_in_use == 0


def test_a_lane_behind_another_goes_on_though_the_other_holds_all(pool):
    """The first lane's tasks fill every place and all room; its consumer works through the second one."""
    first, second = pool.lane(), pool.lane()
    used = []

    def stream(room):
        for number in range(20):
            room.reserve(60_000)
            used.append(pool.bytes_in_use)
            yield number

    def behind(number):
        def produce(room):
            room.reserve(50_000)
            used.append(pool.bytes_in_use)
            yield number

        return produce

    found = []
    for key in range(5):
        for _, number in first.submit(key, stream):
            found += [value for _, value in second.submit(None, behind(number))]
    for _, number in first.drain():
        found += [value for _, value in second.submit(None, behind(number), holding=80_000)]
    found += [value for _, value in second.drain()]
    assert sorted(found) == sorted(list(range(20)) * 5)
    # The budget, and one part of the largest size for each lane.
    assert max(used) <= pool.max_bytes + 60_000 + 80_000
    assert pool.bytes_in_use == pool.in_flight == 0


@pytest.mark.parametrize("seed", range(12))
def test_chains_of_any_kind_end(seed):
    """Bundles with chains of lanes, over pools and throttles that they share, with requests inside of requests."""
    choose = random.Random(seed)
    pools = [BoundedPool(choose.randint(1, 4), choose.choice([1, 5000, 50_000, 200_000])) for _ in range(2)]
    throttles = [Throttle(choose.randint(1, 3)) for _ in pools]
    counts = []

    def bundle(seed):
        choose = random.Random(seed)
        places = [choose.randrange(2) for _ in range(choose.randint(1, 4))]
        lanes = [pools[place].lane(ordered=choose.random() < 0.3) for place in places]
        fans, sizes = [choose.randint(1, 3) for _ in places], [choose.choice([10, 3000, 100_000]) for _ in places]
        ended = 0

        def task(level, others):
            def produce(room):
                with throttles[places[level]].acquire(NEVER) as slot:
                    for number in range(fans[level]):
                        slot.rest()
                        room.reserve(sizes[level])
                        if others:
                            throttles[choose.randrange(2)].acquire(NEVER).release()
                        yield number
                        slot.resume(NEVER)

            return produce

        def feed(level, results):
            nonlocal ended
            for _ in results:
                ended += level == len(lanes)
                if level < len(lanes):
                    holding = choose.choice([0, 20_000])
                    feed(level + 1, lanes[level].submit(None, task(level, choose.random() < 0.4), holding=holding))

        feed(0, range(6))
        for level, lane in enumerate(lanes):
            feed(level + 1, lane.drain())
        counts.append((ended, 6 * math.prod(fans)))

    threads = [threading.Thread(target=bundle, args=(seed * 10 + number,), daemon=True) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(counts) == 3, "it hangs"
    assert all(ended == expected for ended, expected in counts)
    assert all(pool.bytes_in_use == pool.in_flight == 0 for pool in pools)
    assert all(throttle.in_flight == 0 for throttle in throttles)
    for pool in pools:
        pool.close()


def test_a_task_divides_into_parts_that_run_at_once(pool):
    """Two at once, beside the task itself; with all places taken, each task still has one."""
    meet = threading.Barrier(2)

    def part(number, room):
        if number < 2:
            meet.wait(WAIT)
        room.reserve(60_000)
        yield number

    def divided(room):
        room.reserve(90_000)
        for number, result in room.each(range(5), part):
            room.reserve(60_000)
            yield number, result

    assert sorted(run_all(pool.lane(), [("a", divided)])) == [("a", (number, number)) for number in range(5)]

    def crowded(room):
        yield from room.each(range(2, 9), part)

    assert len(run_all(pool.lane(), [(name, crowded) for name in "abcdef"])) == 42
    assert (pool.in_flight, pool.bytes_in_use) == (0, 0)


def test_a_task_that_is_cancelled_cancels_its_parts(pool):
    begun, closed = threading.Event(), threading.Event()

    def part(number, room):
        begun.set()
        assert closed.wait(WAIT)
        yield number

    lane = pool.lane()
    list(lane.submit("a", lambda room: room.each(range(100), part)))
    assert begun.wait(WAIT)
    lane.close()
    closed.set()
    with pool._condition:
        assert pool._condition.wait_for(lambda: pool._started == 0, WAIT)
    assert (pool.in_flight, pool.bytes_in_use) == (0, 0)


def test_a_task_that_waits_for_room_leaves_its_place_to_others(pool):
    """One lane's tasks all wait for room; another may then run as many as there are places."""
    holder, busy, started = pool.lane(), pool.lane(), []
    full = threading.Barrier(3)

    def wait_for_room(room):
        started.append(room)
        room.reserve(100_000)
        yield None

    def work(room):
        full.wait(WAIT)
        yield None

    def hold(room):
        room.reserve(100_000)
        yield "held"

    list(holder.submit(0, hold))
    taken = holder.drain()
    assert next(taken)[1] == "held"
    for number in range(3):
        list(holder.submit(number, wait_for_room))
    while len(pool._waiting) < 3:
        pass
    # All three run at once, or the barrier breaks.
    results = [key for number in range(3) for key, _ in busy.submit(number, work)]
    results += [key for key, _ in busy.drain()]
    assert sorted(results) == [0, 1, 2]
    assert len(list(taken)) == 3


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_starts_anew(pool):
    entered, leave = threading.Event(), threading.Event()

    def wait(room):
        room.reserve(100_000)
        entered.set()
        leave.wait(WAIT)
        yield "parent"

    lane = pool.lane()
    list(lane.submit(0, wait))
    assert entered.wait(WAIT)
    child = os.fork()
    if child == 0:
        # Whatever fails here must not run the rest of the tests twice.
        try:
            good = lane.closed and run_all(pool.lane(), [(1, one("child"))]) == [(1, "child")]
            good = good and pool.bytes_in_use == pool.in_flight == 0
            os._exit(0 if good else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    leave.set()
    assert list(lane.drain()) == [(0, "parent")]


@pytest.mark.parametrize(("name", "value"), [("max_in_flight", 0), ("max_bytes", 0)])
def test_limits_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} must be 1 or more"):
        BoundedPool(**{name: value})


def test_equal_endpoints_share_client_and_pool_and_close_them_when_unused(tmp_path):
    first = shared_client(Endpoint(str(tmp_path), limits=Limits(2)))
    second = shared_client(Endpoint(str(tmp_path), limits=Limits(2)), max_bytes=5000)
    other_endpoint = shared_client(Endpoint(str(tmp_path), limits=Limits(3)))
    try:
        assert first.client is second.client
        assert first.pool is second.pool
        assert first.pool.max_in_flight == 2
        assert first.pool.max_bytes == 5000, "the smallest budget holds for all"
        second.close()
        assert first.pool.max_bytes == DEFAULT_MAX_BYTES
        assert other_endpoint.client is not first.client
    finally:
        client = first.client
        for lease in (first, second, other_endpoint):
            lease.close()
            lease.close()
    third = shared_client(Endpoint(str(tmp_path), limits=Limits(2)))
    assert third.client is not client
    third.close()


def test_a_server_that_nobody_uses_any_more_is_forgotten():
    """Its connections are closed, and with them what its throttle has learned."""
    endpoint = Endpoint("http://127.0.0.1:9/dicom-web")
    first, second = shared_client(endpoint), shared_client(endpoint)
    throttle, leave = shared_throttle(first, endpoint.url, 8, None)
    leave()
    assert first.client._transport._throttle is second.client._transport._throttle is throttle
    first.close()
    again, leave = shared_throttle(first, endpoint.url, 8, None)
    assert again is throttle
    leave()
    second.close()
    again, leave = shared_throttle(first, endpoint.url, 8, None)
    assert again is not throttle
    leave()


def test_a_dropped_lease_gives_back_too(tmp_path):
    client = shared_client(Endpoint(str(tmp_path))).client
    gc.collect()
    lease = shared_client(Endpoint(str(tmp_path)))
    assert lease.client is not client
    lease.close()


def test_a_lease_that_is_dropped_while_another_is_made_does_not_block():
    """The garbage collector may run, and release, on the thread that is just acquiring."""

    registry = Registry()
    registry.acquire("dropped", object)
    done = threading.Event()

    def make():
        registry.release("dropped")
        return object()

    def acquire():
        registry.acquire("new", make)
        done.set()

    threading.Thread(target=acquire, daemon=True).start()
    assert done.wait(10)
