"""Work in flight, bounded for a whole process: `BoundedPool`, and the clients and pools that bundles share.

A worker process may run several bundles at once, and one pipeline may search, retrieve and store in one archive. All of
them share one client and one pool for each endpoint, so that neither the requests in flight nor the bytes in memory
grow with the number of bundles or of steps.

Steps of one stage run on one thread: while a retrieve's result is handed on, the store behind it may wait for room that
the retrieve's next results take. Two rules keep that from lasting forever:

- A task that waits for room is not in flight: another may start, and the slots of its open requests are lent.
- A lane, which is one step of one bundle, may always run one task and hold one item beyond the shared limits. So the
  last step of a chain goes on, and with it all steps before.

Memory is therefore bounded by the budget and one part for each lane.
"""

from __future__ import annotations

import pickle
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar, cast

from dicomweb_io.client import DICOMClient
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import CredentialsError
from dicomweb_io.http.retry import Registry, lend_slots, start_anew_after_fork
from dicomweb_io.profiles import resolve_profile

DEFAULT_MAX_BYTES = 256 * 1024 * 1024

TICK = 1.0
"""Seconds between two reports of a thread that waits."""

# A result that says nothing about its size counts as much: thousands of small ones are memory too.
_LEAST_BYTES = 4096

# Lanes bound the threads, each to `max_in_flight`.
_MAX_THREADS = 100_000

K = TypeVar("K")
R = TypeVar("R")


class WorkCancelled(Exception):
    """Raised inside a task whose lane was closed."""


class BoundedPool:
    """Threads with a limit on tasks in flight and on bytes in memory.

    Tasks are submitted through a `Lane`, one for each step of a bundle, which also gives the results back on the
    bundle's own thread. A producer reserves room for what it is about to read; the room is free again when the consumer
    has taken the result and asks for the next. So a slow consumer holds the producers back.

    In a forked child it restarts, and lanes that were open are closed.

    Args:
        max_in_flight: Tasks at once. A lane that has none in flight may start one more.
        max_bytes: Bytes that are being read or wait to be taken. A lane that holds none may hold one item more.
    """

    def __init__(self, max_in_flight: int = 8, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight must be 1 or more, not {max_in_flight}")
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be 1 or more, not {max_bytes}")
        self.max_in_flight = max_in_flight
        self.max_bytes = max_bytes
        self._budgets: list[int] = []
        self._lanes: weakref.WeakSet[Lane[Any, Any]] = weakref.WeakSet()
        self.start_anew()
        start_anew_after_fork(self)

    def start_anew(self) -> None:
        """Begins without tasks, bytes and threads; closes the lanes, whose tasks have no threads any more."""
        self._condition = threading.Condition()
        self._executor = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="dicomweb_io")
        self._started = 0
        self._active = 0
        self._bytes = 0
        self._waiting: deque[_Task] = deque()
        # Tasks that wait to be started although they hold bytes.
        self._starting = 0
        for lane in tuple(self._lanes):
            lane._forget()
        self._lanes.clear()

    @property
    def in_flight(self) -> int:
        """Tasks that were started and have not ended, those that wait for room among them."""
        return self._started

    @property
    def bytes_in_use(self) -> int:
        """Bytes reserved at this moment."""
        return self._bytes

    @property
    def fair_share(self) -> int:
        """The bytes that every task in flight may hold at once without one of them waiting."""
        return max(1, self.max_bytes // self.max_in_flight)

    def join(self, max_bytes: int) -> None:
        """Counts a user, whose budget holds for all if it is the smallest."""
        with self._condition:
            self._budgets.append(max_bytes)
            self.max_bytes = min(self._budgets)

    def leave(self, max_bytes: int) -> None:
        """Takes back what `join` did."""
        with self._condition:
            self._budgets.remove(max_bytes)
            self.max_bytes = min(self._budgets, default=self.max_bytes)
            self._condition.notify_all()

    def lane(self, *, ordered: bool = False, tick: Callable[[], None] | None = None) -> Lane[Any, Any]:
        """Opens a lane: the tasks and results of one step of a bundle.

        Args:
            ordered: Give results back in the order of submission instead of the order in which they are ready.
            tick: Called on the bundle's thread with each result, and each second while the thread waits for one.
        """
        lane: Lane[Any, Any] = Lane(self, ordered, tick)
        self._lanes.add(lane)
        return lane

    def settle(self, seconds: float) -> None:
        """Waits until no task is in flight, but not longer than this."""
        with self._condition:
            self._condition.wait_for(lambda: not self._started, seconds)

    def close(self) -> None:
        """Lets running tasks end and releases the threads. Lanes are to be closed before."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _start(self, task: _Task, holding: int) -> bool:
        """Starts a task if there is a place and room for what it holds already. This and what follows need the lock."""
        lane = task.lane
        if lane._started >= self.max_in_flight or not self._has_place(lane) or not self._has_room(lane, holding):
            return False
        task.hold(holding)
        lane._started += 1
        self._started += 1
        self._count_active(lane, 1)
        lane._tasks.append(task)
        self._executor.submit(lane._run, task)
        return True

    def _ended(self, task: _Task) -> None:
        task.hold(0)
        task.done = True
        task.lane._started -= 1
        self._started -= 1
        self._count_active(task.lane, -1)
        self._condition.notify_all()

    def _count_active(self, lane: Lane[Any, Any], number: int) -> None:
        lane._active += number
        self._active += number

    def _has_place(self, lane: Lane[Any, Any]) -> bool:
        return self._active < self.max_in_flight or not lane._active

    def _has_room(self, lane: Lane[Any, Any], size: int) -> bool:
        return self._bytes + size <= self.max_bytes or not lane._bytes

    def _may_hold(self, task: _Task, size: int) -> bool:
        """Whether a task may hold so many bytes for its next item."""
        lane = task.lane
        if not lane._bytes or (lane.ordered and lane._tasks and lane._tasks[0] is task):
            return True
        # First come, first served, or else a large item would never find the pool empty enough. What waits to be
        # started comes before: its bytes are in memory already.
        first = not self._waiting or self._waiting[0] is task
        return first and not self._starting and self._has_room(lane, size)


class Room:
    """What a running task may ask of its pool; given to the producer."""

    def __init__(self, task: _Task) -> None:
        self._task = task

    @property
    def fair_share(self) -> int:
        """See `BoundedPool.fair_share`."""
        return self._task.lane.pool.fair_share

    @property
    def cancelled(self) -> bool:
        """True if the lane was closed."""
        return self._task.lane.closed

    def each(self, keys: Iterable[K], produce: Callable[[K, Room], Iterator[R]]) -> Iterator[tuple[K, R]]:
        """Divides the task: yields what is produced for each of several keys, with its key, as it is ready.

        The parts have a lane of their own, so one of them always goes on, and others where the pool has places. What
        the task holds for its next item is given back.

        Raises:
            WorkCancelled: If the lane was closed.
        """
        pool = self._task.lane.pool
        with pool._condition:
            self._task.hold(0)
        lane: Lane[K, R] = pool.lane()

        def results() -> Iterator[tuple[K, R]]:
            for key in keys:
                yield from lane.submit(key, partial(produce, key))
            yield from lane.drain()

        try:
            for key, result in results():
                if self.cancelled:
                    raise WorkCancelled
                yield key, result
                # Nothing here may keep the result alive while the next is awaited.
                del result
        finally:
            lane.close()

    def reserve(self, size: int) -> None:
        """Waits until the task may hold `size` bytes for its next item, instead of what it holds for it now.

        Raises:
            WorkCancelled: If the lane was closed.
        """
        size = max(size, _LEAST_BYTES)
        task, lane = self._task, self._task.lane
        pool = lane.pool
        with pool._condition:
            if size > task.held:
                # Growing in place could leave two half-read items waiting for each other: release first.
                task.hold(0)
                if lane.closed:
                    raise WorkCancelled
            if size <= task.held or pool._may_hold(task, size):
                task.hold(size)
                return
            pool._waiting.append(task)
            pool._count_active(lane, -1)
            pool._condition.notify_all()
        lend_slots()
        with pool._condition:
            try:
                while not lane.closed and not (pool._has_place(lane) and pool._may_hold(task, size)):
                    pool._condition.wait()
                if lane.closed:
                    raise WorkCancelled
                task.hold(size)
            finally:
                pool._waiting.remove(task)
                pool._count_active(lane, 1)
                pool._condition.notify_all()


@dataclass(eq=False)
class _Task:
    lane: Lane[Any, Any]
    key: Any
    produce: Callable[[Room], Iterator[Any]]
    items: deque[tuple[Any, int]] = field(default_factory=deque)
    held: int = 0
    done: bool = False
    error: BaseException | None = None

    def hold(self, size: int) -> None:
        """Holds so many bytes for the next item."""
        self.lane._add_bytes(size - self.held)
        self.held = size


class Lane(Generic[K, R]):
    """The tasks of one step of a bundle. All methods are to be called from the bundle's thread.

    Every result that is yielded counts as taken when the next one is asked for.
    """

    def __init__(self, pool: BoundedPool, ordered: bool = False, tick: Callable[[], None] | None = None) -> None:
        self.pool = pool
        self.ordered = ordered
        self._tick = tick
        self.closed = False
        self._tasks: deque[_Task] = deque()
        self._started = 0
        self._active = 0
        self._bytes = 0
        self._forgotten = False

    def submit(self, key: K, produce: Callable[[Room], Iterator[R]], *, holding: int = 0) -> Iterator[tuple[K, R]]:
        """Starts a task as soon as the pool has a place, and yields results while it waits and what is ready after.

        The iterator must be exhausted, or the task may not have been started.

        Args:
            key: Comes back with each result of the task.
            produce: Called in a pool thread with a `Room`; what it yields are the results. An exception it raises is
                raised on the bundle's thread.
            holding: The bytes that the task has in memory already. It starts when the pool has room for them, and
                their room is free again when the first result is taken.
        """
        task = _Task(self, key, produce)
        started = False

        def start() -> bool:
            nonlocal started
            if self.closed:
                raise RuntimeError("the lane is closed")
            started = started or self.pool._start(task, holding)
            return started

        return self._results(start, holding)

    def ready(self) -> Iterator[tuple[K, R]]:
        """Yields the results that are ready, without waiting."""
        return self._results(lambda: True)

    def drain(self) -> Iterator[tuple[K, R]]:
        """Yields all results that are still to come, and ends when every task has ended."""
        return self._results(lambda: not self._tasks)

    def close(self) -> None:
        """Cancels what was not started or still runs, drops its results and gives their room back. May be repeated."""
        with self.pool._condition:
            self.closed = True
            for task in self._tasks:
                for _, size in task.items:
                    self._add_bytes(-size)
                task.items.clear()
            self._tasks.clear()
            self.pool._condition.notify_all()

    def _results(self, enough: Callable[[], bool], holding: int = 0) -> Iterator[tuple[Any, Any]]:
        """Yields what is ready, and waits for more as long as it is not enough."""
        pool = self.pool
        lent = False
        while True:
            waited = False
            with pool._condition:
                done = enough()
                found = self._take()
                # Taking forgets tasks that have ended, which may be what was waited for.
                done = done or enough()
                if found is None and not done and lent:
                    waits_for_room = holding > 0 and not pool._has_room(self, holding)
                    pool._starting += waits_for_room
                    try:
                        pool._condition.wait(None if self._tick is None else TICK)
                    finally:
                        pool._starting -= waits_for_room
                    waited = True
            if self._tick is not None:
                self._tick()
            if waited:
                continue
            if found is not None:
                key, item, size = found
                # Nothing here may keep the item alive when the consumer has done with it.
                found = None
                try:
                    yield key, item
                finally:
                    del item
                    with pool._condition:
                        self._add_bytes(-size)
                lent = False
            elif done:
                return
            else:
                lend_slots()
                lent = True

    def _add_bytes(self, number: int) -> None:
        if number and not self._forgotten:
            self._bytes += number
            self.pool._bytes += number
            if number < 0:
                self.pool._condition.notify_all()

    def _forget(self) -> None:
        """Closes the lane in a forked child, whose pool has never heard of it."""
        self.closed = self._forgotten = True
        self._tasks.clear()

    def _take(self) -> tuple[Any, Any, int] | None:
        """The next result to give, with its size; forgets tasks that have ended. Raises the error of a task."""
        for task in list(self._tasks):
            if task.items:
                item, size = task.items.popleft()
                return task.key, item, size
            if task.done:
                self._tasks.remove(task)
                self.pool._condition.notify_all()
                if task.error is not None:
                    raise task.error
                continue
            if self.ordered:
                return None
        return None

    def _run(self, task: _Task) -> None:
        condition = self.pool._condition
        items: Iterator[Any] | None = None
        try:
            if not self.closed:
                room = Room(task)
                items = iter(task.produce(room))
                for item in items:
                    if not task.held:
                        room.reserve(_LEAST_BYTES)
                    with condition:
                        if self.closed:
                            raise WorkCancelled
                        task.items.append((item, task.held))
                        # The room goes with the item.
                        task.held = 0
                        condition.notify_all()
                    # Nothing here may keep the item alive while the next is read.
                    del item
        except WorkCancelled:
            pass
        except BaseException as error:
            task.error = error
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                try:
                    close()
                except Exception as error:
                    task.error = task.error or error
            with condition:
                self.pool._ended(task)


_CLIENTS: Registry[DICOMClient] = Registry(lambda client: client.close())
_POOLS: Registry[BoundedPool] = Registry(lambda pool: pool.close())


class Lease:
    """The use of a shared client and pool, until `close` (or until the lease is dropped).

    Attributes:
        endpoint: What they belong to.
        client: The client. It is not to be closed.
        pool: The pool. It is not to be closed.
    """

    def __init__(self, endpoint: Endpoint, max_bytes: int) -> None:
        self.endpoint = endpoint
        key = identity_of(endpoint)
        connected = True
        try:
            self.client = _CLIENTS.acquire(key, endpoint.connect)
        except (ImportError, OSError) as error:
            # Of a worker that lacks a package or a certificate it is said for each element what it cannot do.
            connected, self.client = False, cast(DICOMClient, _Unconnected(endpoint, error))
        else:
            self.client.survive_outages(endpoint.timeouts.outage)
        self.pool = _POOLS.acquire(key, lambda: BoundedPool(endpoint.limits.max_in_flight, max_bytes))
        self.pool.join(max_bytes)
        self._finalizer = weakref.finalize(self, _release, key, self.pool, max_bytes, connected)

    def take_traffic(self) -> dict[str, int]:
        """What the client did on the network since this was last asked, by whichever user of it.

        Returns:
            ``requests``, ``retries``, ``bytes_in``, ``bytes_out`` and ``throttled_msecs``; nothing for a folder.
        """
        stats = self.client.stats
        return {} if stats is None else stats.take()

    def take_durations(self) -> list[float]:
        """Seconds that each request took since this was last asked, by whichever user of the client."""
        stats = self.client.stats
        return [] if stats is None else stats.take_durations()

    def close(self) -> None:
        """Gives both back. May be repeated."""
        self._finalizer()


class _Unconnected:
    """In place of a client that this process cannot make: whatever it is asked for raises the reason."""

    unavailable = stats = None

    def __init__(self, endpoint: Endpoint, error: ImportError | OSError) -> None:
        self.base_url = endpoint.safe_url
        self.profile = resolve_profile(endpoint.profile, endpoint.url)
        self._reason = str(error)

    def __getattr__(self, name: str) -> Any:
        raise CredentialsError(self._reason)


def _release(key: Any, pool: BoundedPool, max_bytes: int, connected: bool) -> None:
    pool.leave(max_bytes)
    _POOLS.release(key)
    if connected:
        _CLIENTS.release(key)


def shared_client(endpoint: Endpoint, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Lease:
    """Leases this process's client and pool for an endpoint, and makes them if they are not in use yet.

    Args:
        endpoint: The archive. Equal descriptions share, whichever object they are, and for whatever purpose.
        max_bytes: The maximum number of bytes in memory. The smallest number that any user of the endpoint names holds
            for all.
    """
    return Lease(endpoint, max_bytes)


def shared_pool(user: object, key: str, max_in_flight: int) -> tuple[BoundedPool, Callable[[], object]]:
    """This process's pool for a purpose that is not bound to one archive.

    Args:
        user: Who uses it, as long as this object lives or until it gives the pool back.
        key: The purpose.
        max_in_flight: See `BoundedPool`.

    Returns:
        The pool, which is not to be closed, and what gives it back.
    """
    pool = _POOLS.acquire(key, lambda: BoundedPool(max_in_flight))
    return pool, weakref.finalize(user, _POOLS.release, key)


def identity_of(endpoint: Endpoint) -> Any:
    """A key that equal descriptions have in common, whichever object they are."""
    # Endpoints hold mappings and arbitrary authentication objects, so they cannot be compared; their pickles can. The
    # second round makes the copy of a worker and the original pickle alike.
    try:
        return pickle.dumps(pickle.loads(pickle.dumps(endpoint)))  # noqa: S301 - our own bytes
    except Exception:
        # A class of __main__ in a worker, for instance. Then only users of this very object share.
        return _ByObject(endpoint)


class _ByObject:
    """A key that equals another only for the same object, which it keeps alive so that the id stays its own."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByObject) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)
