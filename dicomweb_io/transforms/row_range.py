"""Row offsets of a search as a restriction that Beam can split: `RowRange`, `RowTracker`, `RowRangeProvider`.

Beam's own offset tracker needs to know the end: given an open range it splits it in the middle of 2^63 rows. Here the
end may be unknown. A range whose end is unknown is split only where it is about to go on (a checkpoint), or, if the
archive announced a total, below that total; the last part stays open, so that rows beyond a wrong total are found too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.transforms.core import RestrictionProvider

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
    """

    start: int
    stop: int | None = None
    total: int | None = None
    whole: bool = False

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
        """The number of rows as far as it is known; at least 1 if there may be any."""
        stop = self.likely_stop
        return 1 if stop is None else stop - self.start

    def pieces(self, least: int = LEAST_ROWS) -> Iterator[RowRange]:
        """Yields ranges of at least `least` rows that together are this one."""
        stop = self.likely_stop
        number = 1 if stop is None or self.whole else max(1, (stop - self.start) // least)
        if stop is None or number == 1:
            yield self
            return
        bounds = [self.start + (stop - self.start) * index // number for index in range(number)]
        for start, end in pairwise(bounds):
            yield RowRange(start, end)
        yield RowRange(bounds[-1], self.stop, self.total)


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
        """Gives away the later part of what is left; None if that is not possible."""
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
        self._rows = RowRange(rows.start, point)
        return self._rows, RowRange(point, rows.stop, rows.total, rows.whole)

    def current_progress(self) -> RestrictionProgress:
        """How much is done."""
        rows = self._rows
        done = 0 if self._last is None else min(self._last, END) - rows.start + 1
        if self._last is not None and self._last >= END:
            return RestrictionProgress(fraction=1.0)
        stop = rows.likely_stop
        if stop is None:
            # Nothing is known about the end: as much again as was read so far.
            return RestrictionProgress(completed=done, remaining=max(done, 1))
        done = min(done, stop - rows.start)
        return RestrictionProgress(completed=done, remaining=max(stop - rows.start - done, 0 if rows.stop else 1))

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
        """The number of rows."""
        return restriction.size

    def split(self, element: Any, restriction: RowRange) -> Iterator[RowRange]:
        """Ranges of at least `LEAST_ROWS` rows."""
        return restriction.pieces()
