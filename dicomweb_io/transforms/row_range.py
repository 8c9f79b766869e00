"""Ranges of the rows of a search: how Beam splits them, and how one is read with pages ahead.

Beam's own offset tracker needs to know the end: given an open range it splits it in the middle of 2^63 rows. Here the
end may be unknown. A range whose end is unknown is split only where it is about to go on (a checkpoint), or, if the
archive announced a total, below that total; the last part stays open, so that rows beyond a wrong total are found too.

`dicomweb_io.paging` says what is requested and what an answer proves.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.transforms.core import RestrictionProvider

from dicomweb_io.client import DICOMClient
from dicomweb_io.elements import JSONDataset, SearchPage, SearchQuery
from dicomweb_io.failures import RECOVERABLE
from dicomweb_io.paging import Evidence, PageRequest, Paging, confirm_end, pages_of, row_key
from dicomweb_io.pool import BoundedPool, Room
from dicomweb_io.transforms.coders import ElementCoder, register
from dicomweb_io.transforms.metrics import count

END = 1 << 62
"""A position after every row. Claiming it says that the search has ended."""

LEAST_ROWS = 10_000
"""Ranges are not made smaller than this at the start: below it a split costs more than it gains."""


@dataclass(frozen=True)
class RowRange:
    """A half-open range of row offsets.

    Attributes:
        start: The first row.
        stop: The row after the last, or None if the end is where the archive's answers end.
        total: The number of rows that the archive announced for the whole search; a hint, never a limit.
        whole: Do not split, except where the range is about to go on.
        row_bytes: The mean size of a row, as far as it is known.
    """

    start: int
    stop: int | None = None
    total: int | None = None
    whole: bool = False
    row_bytes: int = 1024

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ValueError(f"start must be 0 or more, not {self.start}")
        if self.stop is not None and self.stop < self.start:
            raise ValueError(f"stop must not be before start, but {self.stop} < {self.start}")

    @property
    def likely_stop(self) -> int | None:
        """The end as far as it is known."""
        if self.stop is not None:
            return self.stop
        if self.total is not None and self.total > self.start:
            return self.total
        return None

    @property
    def size(self) -> int:
        """The bytes of the rows as far as their number is known; those of 1 row at least if there may be any."""
        stop = self.likely_stop
        return self.row_bytes * (1 if stop is None else stop - self.start)

    def pieces(self) -> Iterator[RowRange]:
        """Yields ranges of at least `LEAST_ROWS` rows that together are this one."""
        stop = self.likely_stop
        number = 1 if stop is None or self.whole else max(1, (stop - self.start) // LEAST_ROWS)
        if stop is None or number == 1:
            yield self
            return
        bounds = [self.start + (stop - self.start) * index // number for index in range(number)]
        for start, end in pairwise(bounds):
            yield RowRange(start, end, row_bytes=self.row_bytes)
        yield RowRange(bounds[-1], self.stop, self.total, row_bytes=self.row_bytes)


register(RowRange)


class RowTracker(RestrictionTracker):  # type: ignore[misc, unused-ignore]
    """Tracks the claims of rows in a `RowRange`. Claimed positions strictly increase."""

    def __init__(self, rows: RowRange) -> None:
        self._rows = rows
        self._last: int | None = None
        self._checkpointed = False

    def current_restriction(self) -> RowRange:
        """The range that this tracker is responsible for now."""
        return self._rows

    def start_position(self) -> int:
        """The first row."""
        return self._rows.start

    def try_claim(self, position: int) -> bool:
        """Claims a row; False if it is no longer in the range, or if it is `END`.

        Raises:
            ValueError: If claims do not increase, or lie before the range.
        """
        if self._last is not None and position <= self._last:
            raise ValueError(f"claims must increase, but {position} comes after {self._last}")
        if position < self._rows.start:
            raise ValueError(f"row {position} is before the range, which starts at {self._rows.start}")
        self._last = position
        return position < (END if self._rows.stop is None else self._rows.stop)

    def check_done(self) -> None:
        """Checks that nothing of the range was left out.

        Raises:
            ValueError: If rows are unclaimed.
        """
        rows = self._rows
        if rows.start == rows.stop:
            return
        last = rows.start - 1 if self._last is None else self._last
        if last < (END if rows.stop is None else rows.stop - 1):
            raise ValueError(f"rows from {last + 1} to {'the end' if rows.stop is None else rows.stop} are unclaimed")

    def try_split(self, fraction_of_remainder: float) -> tuple[RowRange, RowRange] | None:
        """Splits off the second part of the remaining range; None if that is not possible."""
        rows = self._rows
        if self._checkpointed:
            return None
        current = rows.start - 1 if self._last is None else self._last
        if current >= END:
            return None
        if fraction_of_remainder == 0:
            point = current + 1
        else:
            end = rows.likely_stop
            if rows.whole or end is None or end <= current:
                return None
            point = current + max(1, int((end - current) * fraction_of_remainder))
            if point >= end:
                return None
        if rows.stop is not None and point >= rows.stop:
            return None
        self._checkpointed = fraction_of_remainder == 0
        self._rows = RowRange(rows.start, point, row_bytes=rows.row_bytes)
        return self._rows, replace(rows, start=point)

    def current_progress(self) -> RestrictionProgress:
        """How much is done, in bytes, as the sizes of restrictions are."""
        rows = self._rows
        size = rows.row_bytes
        done = 0 if self._last is None else min(self._last, END) - rows.start + 1
        if self._last is not None and self._last >= END:
            return RestrictionProgress(fraction=1.0)
        stop = rows.likely_stop
        if stop is None:
            # Nothing is known about the end: as much again as was read so far.
            return RestrictionProgress(completed=size * done, remaining=size * max(done, 1))
        done = min(done, stop - rows.start)
        left = max(stop - rows.start - done, 0 if rows.stop else 1)
        return RestrictionProgress(completed=size * done, remaining=size * left)

    def is_bounded(self) -> bool:
        """True: every search ends."""
        return True


class RowRangeProvider(RestrictionProvider):  # type: ignore[misc, unused-ignore]
    """Gives each planned search its range. It does no input or output: it runs outside every failure output."""

    def initial_restriction(self, element: Any) -> RowRange:
        """The planned range."""
        rows: RowRange = element.rows
        return rows

    def create_tracker(self, restriction: RowRange) -> RowTracker:
        """A tracker."""
        return RowTracker(restriction)

    def restriction_size(self, element: Any, restriction: RowRange) -> int:
        """The bytes of the rows, as far as they are known."""
        return restriction.size

    def restriction_coder(self) -> ElementCoder[RowRange]:
        """A coder whose bytes a later release reads too."""
        return ElementCoder(RowRange)

    def split(self, element: Any, restriction: RowRange) -> Iterator[RowRange]:
        """Ranges of at least `LEAST_ROWS` rows."""
        return restriction.pieces()


# Reading --------------------------------------------------------------------------------------------------------------

# Rows of common archives take 1 to 2 KB as text, and several times that as objects.
_BYTES_PER_ROW = 8192

# Waiting rows are packed so many at a time. Each row is dozens of dicts and lists: unpacked, a few thousand of them
# make Python's garbage collector walk through the whole heap again and again, for a third of a search's time.
_ROWS_PACKED = 10


@dataclass
class PackedPage:
    """An answer that waits until its rows are wanted.

    Attributes:
        request: What was asked for.
        evidence: What the engine wants to know of it.
        parcels: The rows.
        requests: The requests it took.
        error: What happened after these rows.
    """

    request: PageRequest
    evidence: Evidence
    parcels: list[bytes] = field(repr=False)
    requests: int = 1
    error: BaseException | None = None

    @classmethod
    def read(cls, client: DICOMClient, query: SearchQuery, request: PageRequest) -> PackedPage:
        """Asks for rows, in as many requests as the archive's own page size makes necessary."""
        keys: list[bytes] = []
        parcels: list[bytes] = []
        total, more, requests, unreadable, error = None, None, 0, 0, None

        def ask(part: PageRequest) -> SearchPage:
            nonlocal requests
            requests += 1
            return client.search_page(query, offset=part.offset, limit=part.limit)

        try:
            for page in pages_of(request, ask):
                total, more, unreadable = page.total, page.more, unreadable + page.unreadable
                for first in range(0, len(page.rows), _ROWS_PACKED):
                    rows = page.rows[first : first + _ROWS_PACKED]
                    keys += [row_key(row, query.level) for row in rows]
                    parcels.append(pickle.dumps(rows, 5))
        except RECOVERABLE as caught:
            error = caught
        return cls(request, Evidence(keys, total, more, unreadable), parcels, requests, error)

    def rows(self) -> Iterator[JSONDataset]:
        """The rows, a few at a time in memory."""
        for parcel in self.parcels:
            yield from pickle.loads(parcel)  # noqa: S301 - our own bytes


class ReadAhead:
    """Iterates over the rows of a range, with pages read ahead in a pool.

    Unless the archive is known to honour offsets and its last answer was as long as asked for, the first page is read
    alone: it may be the last one, or show that offsets are ignored. Behind a full page further ones are read ahead, as
    far as the pool allows: up to the announced total at once, otherwise twice as many each time.

    Args:
        client: The archive.
        query: The search.
        pool: Where pages are read.
        paging: The engine, at the start of the range.
        stop: Returns the offset after the last requested row; None if it is the end of the search.
        tick: See `BoundedPool.lane`.
    """

    def __init__(
        self,
        client: DICOMClient,
        query: SearchQuery,
        pool: BoundedPool,
        paging: Paging,
        stop: Callable[[], int | None],
        tick: Callable[[], None] | None = None,
    ) -> None:
        self._client = client
        self._query = query
        self._pool = pool
        self._paging = paging
        self._stop = stop
        self._tick = tick

    def __iter__(self) -> Iterator[tuple[int, JSONDataset]]:
        """Yields (offset, row); rows that were met before are left out.

        Raises:
            requests.RequestException: As the client or the engine raises it; the rows before were yielded.
        """
        paging = self._paging
        for page in self._pages():
            count("search_pages", page.requests)
            check = paging.doubts(page.request, page.evidence)
            if check is not None:
                paging.settle(check, Evidence.of(self._ask(check), paging.level))
            rows, repeated = enumerate(page.rows()), paging.repeated
            found = paging.accept(page.request, page.evidence)
            count("repeated_rows", paging.repeated - repeated)
            for offset, number in found:
                yield offset, next(row for index, row in rows if index == number)
            if page.error is not None:
                raise page.error
            if paging.ended:
                break
        confirm_end(paging, self._ask)

    def _ask(self, check: PageRequest) -> SearchPage:
        count("search_pages")
        return self._client.search_page(self._query, offset=check.offset, limit=check.limit)

    def _pages(self) -> Iterator[PackedPage]:
        lane = self._pool.lane(ordered=True, tick=self._tick)
        maximum = self._pool.max_in_flight
        ahead = maximum if self._paging.full and self._paging.offset_works else 1
        # How many were asked for and not given yet: `arrived` are here, the others are on their way.
        pending, full = 0, 0
        arrived: deque[PackedPage] = deque()
        try:
            while True:
                # While rows are ready, they are yielded before waiting for the pool.
                while pending < ahead and not (arrived and self._pool.in_flight >= maximum):
                    self._paging.stop = self._stop()
                    request = self._paging.next_request()
                    if request is None:
                        break
                    pending += 1
                    arrived.extend(page for _, page in lane.submit(request.offset, self._task(request)))
                if not pending:
                    return
                if not arrived:
                    arrived.append(next(lane.drain())[1])
                page = arrived.popleft()
                pending -= 1
                if len(page.evidence.keys) >= page.request.limit:
                    # A full page. Where the end is known there is nothing to be asked for in vain.
                    full += 1
                    ahead = maximum if self._paging.total is not None else min(2 * ahead, maximum)
                    if full >= 2 * maximum:
                        # In a long search one slow answer must not leave the others without work.
                        ahead = 2 * maximum
                yield page
        finally:
            lane.close()

    def _task(self, request: PageRequest) -> Callable[[Room], Iterator[PackedPage]]:
        def produce(room: Room) -> Iterator[PackedPage]:
            room.reserve(request.limit * _BYTES_PER_ROW)
            yield PackedPage.read(self._client, self._query, request)

        return produce
