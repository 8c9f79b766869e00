"""One large search as several smaller ones, by ranges of StudyDate, without losing studies that have no date.

A range matches only rows that have a date, and DICOM has no query for "no date" (an empty value matches everything,
PS3.4 section C.2.2.2.3). So the whole search is made once more where the numbers do not prove that the ranges hold
everything, and of its rows those are kept that no range can have matched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from threading import Lock
from typing import Any

from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.windowed_value import WindowedValue

from dicomweb_io.clients.pool import Room
from dicomweb_io.clients.profiles import ServerProfile
from dicomweb_io.clients.protocol import DICOMClient
from dicomweb_io.dicom.attributes import resolve
from dicomweb_io.dicom.json_model import first_value
from dicomweb_io.dicom.temporal import parse_date
from dicomweb_io.elements import JSONDataset, Resource, SearchQuery
from dicomweb_io.transforms.base import PooledDoFn, Work, gathered
from dicomweb_io.transforms.row_range import LEAST_ROWS

REST = "rest"
"""The tag of queries whose rows without a date are wanted too."""

_STUDY_DATE = ("00080020",)
_FIRST, _LAST = date(1800, 1, 1), date(9999, 12, 31)
_DAY = timedelta(days=1)
_MOST_REMEMBERED = 100_000


@dataclass(frozen=True)
class Span:
    """Days from `first` to `last`, both included; None for an open end, which only a user's own filter can have."""

    first: date | None
    last: date | None

    @property
    def text(self) -> str:
        """The value of a filter (PS3.4 section C.2.2.2.5)."""
        low = f"{self.first:%Y%m%d}".zfill(8) if self.first is not None else ""
        high = f"{self.last:%Y%m%d}".zfill(8) if self.last is not None else ""
        return low if low == high else f"{low}-{high}"

    def parts(self, *cuts: date) -> Iterator[Span]:
        """Yields the spans before, between and from each of some dates on (in order); dates outside do not count."""
        first = self.first
        for cut in cuts:
            if (first is None or cut > first) and (self.last is None or cut <= self.last):
                yield Span(first, cut - _DAY)
                first = cut
        yield Span(first, self.last)

    def halves(self) -> tuple[Span, Span] | None:
        """Two parts of about the same length; None for a single day."""
        low, high = (self.first or _FIRST).toordinal(), (self.last or _LAST).toordinal()
        if low >= high:
            return None
        one, two = self.parts(date.fromordinal((low + high) // 2 + 1))
        return one, two


ALL_DATES = Span(_FIRST, _LAST)


def span_of(text: str) -> Span | None:
    """The days of a filter that is a range; None if it is none."""
    low, dash, high = text.partition("-")
    if not dash or not (low or high):
        return None
    ends: list[date | None] = []
    for end in (low.strip(), high.strip()):
        parsed = parse_date(end) if end else None
        if end and parsed is None:
            return None
        ends.append(date(int(parsed[:4]), int(parsed[4:6]), int(parsed[6:])) if parsed else None)
    if ends[0] is not None and ends[1] is not None and ends[0] > ends[1]:
        return None
    return Span(ends[0], ends[1])


def split_by_count(
    span: Span, total: int, count: Callable[[Span], int], most: int, today: date
) -> Iterator[tuple[Span, int]]:
    """Cuts days into spans with at most so many rows, as far as days allow it.

    Args:
        span: The days.
        total: The rows of the whole search.
        count: Tells the rows of a span.
        most: The most rows of a span.
        today: The current day: most dates lie in the decades before it.

    Yields:
        Spans that have rows, and how many.

    Raises:
        ValueError: If the archive ignores the filter.
    """
    if total and all(count(Span(day, day)) == total for day in (_FIRST, _LAST)):
        raise ValueError("the archive ignores filters by StudyDate, so a search cannot be split by it")
    # Later first on the stack, so that spans come in order.
    waiting = [(part, count(part)) for part in span.parts(date(1990, 1, 1), today + _DAY)][::-1]
    while waiting:
        part, number = waiting.pop()
        halves = part.halves() if number > most else None
        if halves is not None:
            waiting += [(half, count(half)) for half in halves][::-1]
        elif number:
            yield part, number


class SplitByStudyDate(PooledDoFn):
    """Makes queries for ranges of StudyDate, and one with the tag `REST` if they may not hold everything.

    What cannot be split stays as it is: a query inside a study, for a day, or with few rows.
    """

    def produce(self, subject: SearchQuery, client: DICOMClient, room: Room) -> Iterator[Any]:
        """Yields queries."""
        given = [value for key, value in subject.search_filters if resolve(key) == _STUDY_DATE]
        span = ALL_DATES if not given else span_of(given[0])
        if subject.study_instance_uid is not None or len(given) > 1 or span is None:
            yield subject
            return
        total = total_of(client, subject)
        today = date.today()
        if total is None:
            for part in span.parts(*(date(year, 1, 1) for year in range(1990, today.year + 2))):
                yield within(subject, part)
            if not given:
                yield _Rest(subject)
            return
        most = rows_at_once(client)
        if total <= most:
            yield subject
            return
        found = 0

        def count(part: Span) -> int:
            number = total_of(client, within(subject, part))
            if number is None:
                raise ValueError(f"{client.base_url} told a total for one search, and none for a range of StudyDate")
            return number

        for part, number in split_by_count(span, total, count, most, today):
            found += number
            yield within(subject, part)
        if found != total and not given:
            yield _Rest(subject)

    def reference_of(self, subject: SearchQuery) -> Resource | None:
        """None: what is split is not inside a study."""
        return None

    def _key(self, subject: Any) -> Any:
        return subject

    def _emit(self, work: Work, result: Any) -> Iterator[Any]:
        if not isinstance(result, _Rest):
            yield from super()._emit(work, result)
            return
        for timestamp, windows in gathered(work.places):
            yield TaggedOutput(REST, WindowedValue(result.query, timestamp, windows))


@dataclass(frozen=True)
class _Rest:
    query: SearchQuery


def within(query: SearchQuery, span: Span) -> SearchQuery:
    """A query with the days of a span in place of its own."""
    others = tuple(item for item in query.search_filters if resolve(item[0]) != _STUDY_DATE)
    return replace(query, search_filters=(*others, ("StudyDate", span.text)))


def total_of(client: DICOMClient, query: SearchQuery) -> int | None:
    """The number of rows of a search without reading them; None if the archive does not tell it."""
    number = client.count(query)
    if number is not None:
        return number
    page = client.search_page(query, offset=0, limit=1)
    if page.total is not None:
        return page.total
    return len(page.rows) if page.more is False else None


def rows_at_once(client: DICOMClient) -> int:
    """The most rows that one search should have: what is worth a split, or less than the archive gives out at most."""
    profile = getattr(client, "profile", None)
    limits = [LEAST_ROWS]
    if isinstance(profile, ServerProfile):
        # Archives count no further than their limit: as many rows may be all or not.
        limits += [limit - 1 for limit in (profile.max_rows, profile.max_offset) if limit]
    return max(1, min(limits))


def is_dated(row: JSONDataset) -> bool:
    """Whether a row has a date that one of the ranges holds."""
    value = first_value(row, "StudyDate")
    text = parse_date(value) if isinstance(value, str) else None
    return text is not None and f"{_FIRST:%Y%m%d}" <= text <= f"{_LAST:%Y%m%d}"


class KeepUndated(PooledDoFn):
    """Keeps the rows whose study no range of StudyDate matches. The archive is asked, once for each study."""

    def setup(self) -> None:
        """Forgets all studies."""
        super().setup()
        self._lock = Lock()
        self._matched: dict[str, bool] = {}

    def reference_of(self, subject: JSONDataset) -> Resource | None:
        """The row's own."""
        return Resource.of(subject)

    def produce(self, subject: JSONDataset, client: DICOMClient, room: Room) -> Iterator[Any]:
        """Yields the row, or nothing."""
        uid = Resource.of(subject).study_instance_uid
        with self._lock:
            matched = self._matched.get(uid)
        if matched is None:
            query = SearchQuery("study", search_filters=(("StudyInstanceUID", uid), ("StudyDate", ALL_DATES.text)))
            matched = bool(client.search_page(query, limit=1).rows)
            with self._lock:
                if len(self._matched) >= _MOST_REMEMBERED:
                    self._matched.clear()
                self._matched[uid] = matched
        if not matched:
            yield subject
