"""Dates and times of DICOM (VRs DA, TM and DT, PS3.5 section 6.2) and ranges of them (PS3.4 section C.2.2.2.5).

A date or time with missing parts stands for all instants it leaves open: the time ``1030`` for 10:30:00 to
10:30:59.999999, the date-time ``2024`` for that year. Instants are integers: microseconds of the day for TM,
microseconds since the year 1 for DT.
"""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache
from typing import NamedTuple

_DATE = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})\Z|([0-9]{4})\.([0-9]{2})\.([0-9]{2})\Z")
_TIME = re.compile(r"([0-9]{2})(?::?([0-9]{2})(?::?([0-9]{2})(?:\.([0-9]{1,6}))?)?)?\Z")
_DATE_TIME = re.compile(
    r"([0-9]{4})(?:([0-9]{2})(?:([0-9]{2})(?:([0-9]{2})(?:([0-9]{2})(?:([0-9]{2})(?:\.([0-9]{1,6}))?)?)?)?)?)?"
    r"([+-][0-9]{4})?\Z"
)
_SECOND = 1_000_000
_MINUTE = 60 * _SECOND
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR
_OFFSET = re.compile(r"([+-])([0-9]{2})([0-9]{2})\Z")


class Interval(NamedTuple):
    """The instants that a value stands for.

    Attributes:
        first: The earliest.
        last: The latest.
        offset: Minutes east of UTC that a DT names; None if it names none. `first` and `last` do not count it.
    """

    first: int
    last: int
    offset: int | None = None


class Range(NamedTuple):
    """A range of values; None for an open end. A single value is a range from itself to itself."""

    low: Interval | None
    high: Interval | None


@lru_cache(maxsize=65536)
def parse_date(text: str) -> str | None:
    """A date as ``YYYYMMDD``; None if it is no date. The form ``YYYY.MM.DD`` of older data is accepted."""
    match = _DATE.match(text.strip(" \0"))
    if match is None:
        return None
    year, month, day = match.group(1, 2, 3) if match[1] else match.group(4, 5, 6)
    try:
        date(int(year), int(month), int(day))
    except ValueError:
        return None
    return f"{year}{month}{day}"


@lru_cache(maxsize=65536)
def parse_time(text: str) -> Interval | None:
    """The part of a day that a time stands for; None if it is no time. ``HH:MM:SS`` of older data is accepted."""
    match = _TIME.match(text.strip(" \0"))
    if match is None:
        return None
    return _time_of_day(match[1], match[2], match[3], match[4])


def _time_of_day(hour: str, minute: str | None, second: str | None, fraction: str | None) -> Interval | None:
    if int(hour) > 23 or int(minute or 0) > 59 or int(second or 0) > 60:  # 60 is a leap second
        return None
    first = int(hour) * _HOUR
    length = _HOUR
    if minute is not None:
        first += int(minute) * _MINUTE
        length = _MINUTE
        if second is not None:
            first += int(second) * _SECOND
            length = _SECOND
            if fraction is not None:
                length = 10 ** (6 - len(fraction))
                first += int(fraction) * length
    return Interval(first, first + length - 1)


@lru_cache(maxsize=65536)
def parse_date_time(text: str) -> Interval | None:
    """The time that a date-time stands for; None if it is no date-time."""
    match = _DATE_TIME.match(text.strip(" \0"))
    if match is None:
        return None
    year, month, day = int(match[1]), int(match[2] or 1), int(match[3] or 1)
    try:
        first = date(year, month, day).toordinal()
    except ValueError:
        return None
    last = first
    if match[2] is None:
        last = date(year, 12, 31).toordinal()
    elif match[3] is None:
        last = (date(year, month + 1, 1) if month < 12 else date(year, 12, 31)).toordinal() - (month < 12)
    time = Interval(0, _DAY - 1)
    if match[4] is not None:
        parsed = _time_of_day(match[4], match[5], match[6], match[7])
        if parsed is None:
            return None
        time = parsed
    offset = None
    if match[8] is not None:
        offset = parse_offset(match[8])
        if offset is None:
            return None
    return Interval(first * _DAY + time.first, last * _DAY + time.last, offset)


def parse_offset(text: str) -> int | None:
    """The minutes of an offset from UTC such as ``+0130``; None if it is none (it lies between -1200 and +1400)."""
    match = _OFFSET.match(text.strip(" \0"))
    if match is None or int(match[3]) > 59:
        return None
    minutes = int(match[2]) * 60 + int(match[3])
    minutes = -minutes if match[1] == "-" else minutes
    return minutes if -720 <= minutes <= 840 else None


def parse_date_range(text: str) -> tuple[str, str] | None:
    """The first and the last date of a range or single date as ``YYYYMMDD``; None if it is neither.

    An open end is ``"00000000"`` or ``"99999999"``.
    """
    low, separator, high = text.strip(" ").partition("-")
    if not separator:
        single = parse_date(low)
        return None if single is None else (single, single)
    if not low and not high:
        return None
    first = parse_date(low) if low else "00000000"
    last = parse_date(high) if high else "99999999"
    if first is None or last is None or first > last:
        return None
    return first, last


def parse_time_range(text: str) -> Range | None:
    """A range of times or a single time; None if it is neither, or if it crosses midnight."""
    low, separator, high = text.strip(" ").partition("-")
    if not separator:
        single = parse_time(low)
        return None if single is None else Range(single, single)
    return _checked_range(low, high, parse_time(low), parse_time(high))


def parse_date_time_range(text: str) -> Range | None:
    """A range of date-times or a single one; None if it is neither.

    A hyphen is ambiguous here: ``20240101120000-0500`` could be a range up to the year 500. What can be a date-time
    with an offset from UTC is taken as one; otherwise the hyphen that leaves a date-time on both sides divides.
    """
    text = text.strip(" ")
    single = parse_date_time(text)
    if single is not None:
        return Range(single, single)
    for position in range(len(text) - 1, -1, -1):
        if text[position] == "-":
            low, high = text[:position], text[position + 1 :]
            found = _checked_range(low, high, parse_date_time(low), parse_date_time(high))
            if found is not None:
                return found
    return None


def _checked_range(low: str, high: str, first: Interval | None, last: Interval | None) -> Range | None:
    if (not low and not high) or (low and first is None) or (high and last is None):
        return None
    if first is not None and last is not None and _utc(first.first, first.offset) > _utc(last.last, last.offset):
        return None
    return Range(first, last)


def contains(wanted: Range, value: Interval, default_offset: int | None = None) -> bool:
    """Whether the earliest instant of a value lies in a range.

    Where only the value or only an end of the range names an offset from UTC, the other is taken to be at
    `default_offset`.

    Args:
        wanted: The range.
        value: The value.
        default_offset: Minutes east of UTC of values without an offset: the dataset's Timezone Offset From UTC
            (0008,0201); None for UTC.
    """
    low, high = wanted
    if low is not None and not _before(low.first, low.offset, value.first, value.offset, default_offset):
        return False
    return high is None or _before(value.first, value.offset, high.last, high.offset, default_offset)


def _before(first: int, first_offset: int | None, second: int, second_offset: int | None, default: int | None) -> bool:
    if first_offset != second_offset:
        first = _utc(first, default if first_offset is None else first_offset)
        second = _utc(second, default if second_offset is None else second_offset)
    return first <= second


def _utc(instant: int, offset: int | None) -> int:
    return instant - (offset or 0) * _MINUTE
