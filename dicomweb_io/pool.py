"""Work in flight, bounded for a whole process: `BoundedPool`, and the clients and pools that bundles share.

A worker process may run several bundles at once. They share one client and one pool for each endpoint and kind of work
(search, retrieve, store), so that neither the requests in flight nor the bytes in memory grow with the number of
bundles. The kinds have connections of their own: a store that waits for a retrieve's bytes to be taken, while that
retrieve keeps the last connection, would wait forever.
"""

from __future__ import annotations

import pickle
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from dicomweb_io.client import DICOMClient
from dicomweb_io.endpoint import Endpoint

DEFAULT_MAX_BYTES = 256 * 1024 * 1024

# A result that says nothing about its size counts as much: thousands of small ones are memory too.
_LEAST_BYTES = 4096

K = TypeVar("K")
R = TypeVar("R")


class WorkCancelled(Exception):
    """Raised inside a task whose lane was closed."""


class BoundedPool:
    """Threads with a limit on tasks in flight and on bytes in memory.

    Tasks are submitted through a `Lane`, one for each bundle, which also gives the results back on the bundle's own
    thread. A producer reserves room for what it is about to read; the room is free again when the consumer has
    taken the result and asks for the next. So a slow consumer holds the producers back.

    Args:
        max_in_flight: Tasks at once.
        max_bytes: Bytes that are being read or wait to be taken. A single item larger than this passes alone.
    """

    def __init__(self, max_in_flight: int = 8, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight must be 1 or more, not {max_in_flight}")
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be 1 or more, not {max_bytes}")
        self.max_in_flight = max_in_flight
        self.max_bytes = max_bytes
        self._condition = threading.Condition()
        self._executor = ThreadPoolExecutor(max_in_flight, thread_name_prefix="dicomweb_io")
        self._in_flight = 0
        self._bytes = 0
        self._waiting: deque[object] = deque()

    @property
    def in_flight(self) -> int:
        """Tasks that run or wait for a thread."""
        return self._in_flight

    @property
    def bytes_in_use(self) -> int:
        """Bytes reserved at this moment."""
        return self._bytes

    @property
    def fair_share(self) -> int:
        """The bytes that every task in flight may hold at once without one of them waiting."""
        return max(1, self.max_bytes // self.max_in_flight)

    def lane(self, *, ordered: bool = False) -> Lane[Any, Any]:
        """Opens a lane: the tasks and results of one bundle.

        Args:
            ordered: Give results back in the order of submission instead of the order in which they are ready.
        """
        return Lane(self, ordered)

    def close(self) -> None:
        """Lets running tasks end and gives back the threads. Lanes are to be closed before."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _reserve(self, size: int, urgent: Callable[[], bool], cancelled: Callable[[], bool]) -> None:
        # First come, first served, or else a large item would never find the pool empty enough.
        ticket = object()
        with self._condition:
            self._waiting.append(ticket)
            try:
                while True:
                    if cancelled():
                        raise WorkCancelled
                    fits = self._bytes == 0 or self._bytes + size <= self.max_bytes
                    if urgent() or (fits and self._waiting[0] is ticket):
                        break
                    self._condition.wait()
                self._bytes += size
            finally:
                self._waiting.remove(ticket)
                self._condition.notify_all()

    def _release(self, size: int) -> None:
        if size:
            with self._condition:
                self._bytes -= size
                self._condition.notify_all()


class Room:
    """What a running task may ask of its pool; given to the producer."""

    def __init__(self, lane: Lane[Any, Any], task: _Task) -> None:
        self._lane = lane
        self._task = task

    @property
    def fair_share(self) -> int:
        """See `BoundedPool.fair_share`."""
        return self._lane.pool.fair_share

    def reserve(self, size: int) -> None:
        """Waits until the task may hold `size` bytes for its next item, instead of what it holds for it now.

        Raises:
            WorkCancelled: If the lane was closed.
        """
        size = max(size, _LEAST_BYTES)
        pool, lane, task = self._lane.pool, self._lane, self._task
        if size <= task.held:
            pool._release(task.held - size)
            task.held = size
            return
        # Growing in place could leave two half-read items waiting for each other: give back first.
        pool._release(task.held)
        task.held = 0
        pool._reserve(size, lambda: lane.ordered and lane._head() is task, lambda: lane.closed)
        task.held = size

    @property
    def cancelled(self) -> bool:
        """True if nobody wants the results any more."""
        return self._lane.closed


@dataclass(eq=False)
class _Task:
    key: Any
    produce: Callable[[Room], Iterator[Any]]
    items: deque[tuple[Any, int]] = field(default_factory=deque)
    held: int = 0
    done: bool = False
    error: BaseException | None = None


class Lane(Generic[K, R]):
    """The tasks of one bundle. All methods are to be called from the bundle's thread.

    Every result that is yielded counts as taken when the next one is asked for.
    """

    def __init__(self, pool: BoundedPool, ordered: bool = False) -> None:
        self.pool = pool
        self.ordered = ordered
        self.closed = False
        self._tasks: deque[_Task] = deque()

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
        task = _Task(key, produce, held=holding)
        pool = self.pool
        started = False
        while True:
            with self.pool._condition:
                if self.closed:
                    raise RuntimeError("the lane is closed")
                fits = pool._bytes == 0 or pool._bytes + holding <= pool.max_bytes
                if not started and pool._in_flight < pool.max_in_flight and fits:
                    pool._in_flight += 1
                    pool._bytes += holding
                    self._tasks.append(task)
                    started = True
                    self.pool._executor.submit(self._run, task)
                found = self._take()
                if found is None:
                    if started:
                        return
                    self.pool._condition.wait()
                    continue
            yield from self._give(*found)

    def ready(self) -> Iterator[tuple[K, R]]:
        """Yields the results that are ready, without waiting."""
        while True:
            with self.pool._condition:
                found = self._take()
            if found is None:
                return
            yield from self._give(*found)

    def drain(self) -> Iterator[tuple[K, R]]:
        """Yields all results that are still to come, and ends when every task has ended."""
        while True:
            with self.pool._condition:
                while (found := self._take()) is None:
                    if not self._tasks:
                        return
                    self.pool._condition.wait()
            yield from self._give(*found)

    def close(self) -> None:
        """Cancels what was not started or still runs, drops its results and gives their room back. May be repeated."""
        with self.pool._condition:
            self.closed = True
            for task in self._tasks:
                self._drop_items(task)
            self._tasks.clear()
            self.pool._condition.notify_all()

    # The rest runs with the pool's condition held, except `_run` and `_give`. -----------------------------------------

    def _head(self) -> _Task | None:
        return self._tasks[0] if self._tasks else None

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

    def _give(self, key: Any, item: Any, size: int) -> Iterator[tuple[Any, Any]]:
        try:
            yield key, item
        finally:
            self.pool._release(size)

    def _drop_items(self, task: _Task) -> None:
        for _, size in task.items:
            self.pool._bytes -= size
        task.items.clear()

    def _run(self, task: _Task) -> None:
        condition = self.pool._condition
        items: Iterator[Any] | None = None
        try:
            if not self.closed:
                room = Room(self, task)
                items = iter(task.produce(room))
                for item in items:
                    if not task.held:
                        room.reserve(_LEAST_BYTES)
                    with condition:
                        if self.closed:
                            raise WorkCancelled
                        task.items.append((item, task.held))
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
                self.pool._bytes -= task.held
                task.held = 0
                task.done = True
                self.pool._in_flight -= 1
                condition.notify_all()


# Shared by the bundles of a process -----------------------------------------------------------------------------------


class _Registry(Generic[R]):
    """Objects by key, made when first wanted and closed when the last user has gone."""

    def __init__(self) -> None:
        # Reentrant: the garbage collector may drop a lease, and so release it, on the thread that is just acquiring.
        self._lock = threading.RLock()
        self._entries: dict[Any, list[Any]] = {}

    def acquire(self, key: Any, make: Callable[[], R]) -> R:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = [make(), 0]
            entry[1] += 1
            value: R = entry[0]
            return value

    def release(self, key: Any) -> None:
        with self._lock:
            entry = self._entries[key]
            entry[1] -= 1
            if entry[1]:
                return
            del self._entries[key]
        entry[0].close()


_TRAFFIC_LOCK = threading.Lock()
_TRAFFIC: weakref.WeakKeyDictionary[DICOMClient, dict[str, int]] = weakref.WeakKeyDictionary()

_CLIENTS: _Registry[DICOMClient] = _Registry()
_POOLS: _Registry[BoundedPool] = _Registry()


class Lease:
    """The use of a shared client and pool, until `close` (or until the lease is dropped).

    Attributes:
        endpoint: What they belong to.
        client: The client. It is not to be closed.
        pool: The pool. It is not to be closed.
    """

    def __init__(self, endpoint: Endpoint, purpose: str, max_bytes: int) -> None:
        self.endpoint = endpoint
        identity = identity_of(endpoint)
        # A folder needs no connections: all work on it shares one client, and so one index.
        client_key = (identity, purpose if endpoint.is_web else "")
        pool_key = (identity, purpose, max_bytes)
        self.client = _CLIENTS.acquire(client_key, endpoint.connect)
        self.pool = _POOLS.acquire(pool_key, lambda: BoundedPool(endpoint.max_in_flight, max_bytes))
        self._finalizer = weakref.finalize(self, _release, client_key, pool_key)

    def take_traffic(self) -> dict[str, int]:
        """What the client did on the network since this was last asked, by whichever user of it.

        Returns:
            ``requests``, ``retries``, ``bytes_in``, ``bytes_out`` and ``throttled_msecs``; nothing for a folder.
        """
        stats = self.client.stats
        if stats is None:
            return {}
        now = {name: getattr(stats, name) for name in ("requests", "retries", "bytes_in", "bytes_out")}
        now["throttled_msecs"] = int(1000 * stats.throttled_seconds)
        with _TRAFFIC_LOCK:
            before = _TRAFFIC.get(self.client, {})
            _TRAFFIC[self.client] = now
        return {name: number - before.get(name, 0) for name, number in now.items()}

    def take_durations(self) -> list[float]:
        """Seconds that each request took since this was last asked, by whichever user of the client."""
        stats = self.client.stats
        return [] if stats is None else stats.take_durations()

    def close(self) -> None:
        """Gives both back. May be repeated."""
        self._finalizer()


def _release(client_key: Any, pool_key: Any) -> None:
    _POOLS.release(pool_key)
    _CLIENTS.release(client_key)


def shared_client(endpoint: Endpoint, purpose: str = "", *, max_bytes: int = DEFAULT_MAX_BYTES) -> Lease:
    """Leases this process's client and pool for an endpoint, and makes them if nobody uses them yet.

    Args:
        endpoint: The archive. Equal descriptions share, whichever object they are.
        purpose: The kind of work, such as ``"search"``. Each kind has its own connections and pool.
        max_bytes: The pool's budget of bytes in memory.
    """
    return Lease(endpoint, purpose, max_bytes)


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
