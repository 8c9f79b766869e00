"""What transforms count: Beam metrics in one namespace, and a tally of the process that can be read while it runs.

Both are to be called on a bundle's own thread: Beam's counters ignore what other threads count. Metrics count attempts
of bundles; results are to be counted from output collections. Traffic is counted while a bundle runs, and so are waits:
autoscalers are to hear of a server that wants less before a bundle ends.

Every transform uses the same names, in the namespace ``dicomweb_io``:

- traffic: ``requests``, ``retries``, ``bytes_in``, ``bytes_out``, ``throttled_msecs``; the distribution
  ``request_msecs``;
- searches: ``rows``, ``search_pages``, ``repeated_rows``, ``total_mismatches``, ``unreadable_values``, ``listed``
  (instances of the series that are copied); the distribution ``page_rows``;
- retrieves: ``instances``, ``instance_bytes``, ``metadata``, ``frames``, ``frame_bytes``, ``rendered_images``,
  ``rendered_bytes``, ``bulkdata``, ``bulkdata_bytes``, ``downloaded``, ``downloaded_bytes``; the distributions
  ``instance_size`` and ``frame_size``;
- stores: ``stored``, ``replaced``, ``exists``, ``planned`` (a dry run), ``stored_bytes``, ``deleted``;
- watches: ``polls``, ``changes``, ``completed``, ``completed_again``, ``completed_early``, ``studies_left_open``,
  ``notifications_ignored``;
- ``failures``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from apache_beam.metrics.metric import Metrics, MetricsFilter

from dicomweb_io.http.retry import ProcessLock
from dicomweb_io.pool import TICK, Lease

NAMESPACE = "dicomweb_io"
"""The namespace of all metrics of this package."""

_CARRY = [0]
_CARRY_LOCK = ProcessLock()


class Tally:
    """Counts of this process, by name. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = ProcessLock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str, number: int = 1) -> None:
        """Adds to a count."""
        with self._lock:
            self._counts[name] += number

    def snapshot(self) -> dict[str, int]:
        """All counts at this moment."""
        with self._lock:
            return dict(self._counts)


TALLY = Tally()
"""The tally of this process. Progress displays read it from a thread: a runner's metrics are not final, or not there
at all, until the job is done."""


def count(name: str, number: int = 1) -> None:
    """Adds to the metric ``dicomweb_io/name`` and to the tally."""
    if number:
        Metrics.counter(NAMESPACE, name).inc(number)
        TALLY.add(name, number)


def count_traffic(lease: Lease) -> None:
    """Counts what a shared client did on the network since it was last counted.

    Waits for a server that wants less come also under the two names that autoscalers know: seconds for Beam's Python
    SDK, milliseconds for its Java SDK (Beam 2.77).
    """
    traffic = lease.take_traffic()
    waited = traffic.pop("throttled_msecs", 0)
    for name, number in traffic.items():
        count(name, number)
    for seconds in lease.take_durations():
        observe("request_msecs", int(1000 * seconds))
    if waited:
        Metrics.counter("beam-throttling-metrics", "throttling-msecs").inc(waited)
        count("throttled_msecs", waited)
        # Whole seconds only, so the rest of each is carried on.
        with _CARRY_LOCK:
            _CARRY[0] += waited
            seconds, _CARRY[0] = divmod(_CARRY[0], 1000)
        count("cumulativeThrottlingSeconds", seconds)


def traffic_of(result: Any) -> dict[str, Any] | None:
    """What the transforms of a finished pipeline did on the network, for a report; None if there is nothing to tell.

    Args:
        result: The runner's result.
    """
    try:
        found = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))
    except NotImplementedError:
        return None
    counts: Counter[str] = Counter()
    for item in found["counters"]:
        counts[item.key.metric.name] += item.result
    if not counts["requests"]:
        return None
    told: dict[str, Any] = {name: counts[name] for name in ("requests", "retries", "bytes_in", "bytes_out")}
    told |= {"archive": "both", "throttled_seconds": counts["throttled_msecs"] / 1000}
    longest = [item.result.max for item in found["distributions"] if item.key.metric.name == "request_msecs"]
    return {**told, "max_seconds": max(longest) / 1000} if longest else told


class Traffic:
    """Counts what shared clients do while a bundle runs: at most once a second, however often it is called.

    Args:
        leases: Gives the leases of the clients.
    """

    def __init__(self, leases: Callable[[], Iterable[Lease]]) -> None:
        self._leases = leases
        self._due = 0.0

    def __call__(self) -> None:
        """Counts, if it is time."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + TICK
            self.count()

    def count(self) -> None:
        """Counts now."""
        for lease in self._leases():
            count_traffic(lease)


def observe(name: str, value: int) -> None:
    """Adds a value to the distribution ``dicomweb_io/name``."""
    Metrics.distribution(NAMESPACE, name).update(value)
