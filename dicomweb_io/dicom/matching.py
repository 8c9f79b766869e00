"""Matching of search filters against datasets (PS3.4 section C.2.2.2, PS3.18 section 8.3.4.1).

The standard leaves some choices to an implementation. They are made like this:

- Person names are compared without regard to case; accents count, unless fuzzy matching is asked for. A name without
  ``=`` is compared with each group of a name. Fuzzy matching: each word of the filter begins a word of the name,
  without regard to case, accents and order.
- All other text is compared with regard to case; spaces that are padding do not count.
- A date or time filter matches a value whose earliest instant lies in what the filter stands for: the time ``1030`` is
  10:30:00 to 10:30:59.999999, and ``20240101`` for a DT is that whole day.
- Date and time attributes are matched independently: StudyDate and StudyTime together do not make one interval.
- In a DT ``20240101120000-0500`` is an offset from UTC, not a range (see `dicomweb_io.dicom.values`).
- Values of several numbers or texts match if any of them does. A filter value with backslashes is a list, and matches
  if any of its values does; UIDs may be separated by commas too.
- Attributes of one sequence must match within one item.
- A filter without a value matches everything, an attribute that is absent or empty matches no other filter.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Any

from dicomweb_io.dicom.attributes import DECIMAL_VRS, INTEGER_VRS, WILDCARD_VRS, resolve, vr_of
from dicomweb_io.dicom.errors import FilterError
from dicomweb_io.dicom.json_decode import first_value, is_empty
from dicomweb_io.dicom.uids import is_uid
from dicomweb_io.dicom.values import (
    Range,
    contains,
    fuzzy_name_predicate,
    name_predicate,
    parse_date,
    parse_date_range,
    parse_date_time,
    parse_date_time_range,
    parse_decimal,
    parse_offset,
    parse_time,
    parse_time_range,
    wildcard_test,
)

Predicate = Callable[[Any], bool]
"""A test of one value of an element."""
ElementTest = Callable[["Mapping[str, Any] | None", "int | None"], bool]
"""A test of an element of the DICOM JSON model, or of its absence, with the dataset's offset from UTC in minutes."""

_SINGLE_TEXT = frozenset(("LT", "ST", "UR", "UT"))  # a backslash is a character of these
_TRAILING_ONLY = frozenset(("LT", "ST", "UC", "UR", "UT"))  # leading spaces of these count (PS3.5 section 6.2)
_AGE = re.compile(r"[0-9]{3}[DWMY]\Z")
_TAG = re.compile(r"\(?([0-9A-Fa-f]{4}),?([0-9A-Fa-f]{4})\)?\Z")
_EMPTY = '""'  # PS3.18 section 8.3.4.1: this matches empty values where emptyvaluematching is on
_TIMEZONE = "00080201"
_CHARACTER_SET = "00080005"


@dataclass(frozen=True)
class Matcher:
    """The filters of a search, ready to be applied to datasets in the DICOM JSON model. Calling it applies them.

    Attributes:
        tags: The top-level attributes a dataset must have been encoded with, ascending.
        uids: For each UI attribute at the top level the UIDs that are wanted, for an index to start from.
        universal: Whether every dataset matches.
    """

    tags: tuple[str, ...]
    uids: Mapping[str, frozenset[str]]
    universal: bool
    _tests: tuple[tuple[str, ElementTest], ...] = field(repr=False)

    def __call__(self, dataset: Mapping[str, Any]) -> bool:
        """Tells whether a dataset matches all filters."""
        offset = _timezone(dataset) if _TIMEZONE in self.tags else None
        return all(test(dataset.get(tag), offset) for tag, test in self._tests)


@dataclass
class _Node:
    """Filters below one attribute: values for itself, or nodes below its items."""

    values: list[tuple[str, str]] = field(default_factory=list)
    below: dict[str, _Node] = field(default_factory=dict)


def compile_filters(
    filters: Iterable[tuple[str, str]] | Mapping[str, str],
    *,
    fuzzymatching: bool = False,
    empty_value_matching: bool = False,
) -> Matcher:
    """Prepares the filters of a search.

    Args:
        filters: Pairs of attribute and value. An attribute is a keyword, 8 hexadecimal digits, or a path of them joined
            by dots (see `dicomweb_io.dicom.attributes.resolve`); a value is text as in a query string, after decoding.
        fuzzymatching: Match person names fuzzily (PS3.4 section C.2.2.2.1.1).
        empty_value_matching: Let the value ``""`` (two quotation marks) match what is absent or empty (PS3.18 section
            8.3.4.1).

    Returns:
        A test of datasets.

    Raises:
        TypeError: If an attribute or a value is not a str.
        InvalidIdentifierError: If an attribute is unknown.
        FilterError: If a value is not possible for its value representation: no filter is ever ignored.
    """
    root = _Node()
    pairs: Iterable[tuple[str, str]] = filters.items() if isinstance(filters, Mapping) else filters
    for attribute, value in pairs:
        if not isinstance(attribute, str) or not isinstance(value, str):
            raise TypeError(f"filter values must be text, but {attribute!r} has a value of type {type(value).__name__}")
        node = root
        path = resolve(attribute)
        for tag in path[:-1]:
            if vr_of(tag) not in ("SQ", "UN"):
                raise FilterError(f"the filter {attribute} goes into {tag}, which is not a sequence")
        for tag in path:
            node = node.below.setdefault(tag, _Node())
        node.values.append((attribute, value))
    options = _Options(fuzzymatching, empty_value_matching)
    tests = _tests(root, options)
    tags = {tag for tag, _ in tests}
    if options.needs_timezone:
        tags.add(_TIMEZONE)
    uids = {}
    for tag, node in root.below.items():
        if vr_of(tag) == "UI":
            lists = [_uids(value) for _, value in node.values if value.strip() and not options.is_empty(value)]
            if lists:
                uids[tag] = frozenset.intersection(*lists)
    return Matcher(tuple(sorted(tags)), uids, not tests, tests)


@dataclass
class _Options:
    fuzzy: bool
    empty: bool
    needs_timezone: bool = False

    def is_empty(self, value: str) -> bool:
        return self.empty and value.strip() == _EMPTY


def _tests(node: _Node, options: _Options) -> tuple[tuple[str, ElementTest], ...]:
    """The tests of the attributes below a node that not every dataset passes."""
    return tuple((tag, test) for tag, below in node.below.items() if (test := _element_test(tag, below, options)))


def _element_test(tag: str, node: _Node, options: _Options) -> ElementTest | None:
    """The test of the element of a tag; None if all its filters are universal."""
    tests: list[ElementTest] = []
    for attribute, value in node.values:
        test = _value_test(attribute, tag, value, options)
        if test is not None:
            tests.append(test)
    below = _tests(node, options)
    if below:
        tests.append(_items_test(below))
    if not tests:
        return None
    if len(tests) == 1:
        return tests[0]
    return lambda element, offset: all(test(element, offset) for test in tests)


def _items_test(below: Sequence[tuple[str, ElementTest]]) -> ElementTest:
    def matches(element: Mapping[str, Any] | None, offset: int | None) -> bool:
        return any(
            isinstance(item, Mapping) and all(test(item.get(tag), offset) for tag, test in below)
            for item in (element or {}).get("Value") or ()
        )

    return matches


def _value_test(attribute: str, tag: str, value: str, options: _Options) -> ElementTest | None:
    if not value.strip():
        return None
    if options.is_empty(value):
        return lambda element, offset: is_empty(element)
    if tag == _CHARACTER_SET:
        raise FilterError("SpecificCharacterSet (0008,0005) says how text is encoded and cannot be matched")
    vr = vr_of(tag)
    if vr == "UN":
        return _unknown_test(value, options)
    try:
        predicate = value_predicate(vr, value, fuzzy=options.fuzzy)
    except FilterError as error:
        # Group 0010 identifies the patient: its values stay out of messages.
        shown = "" if tag.startswith("0010") or vr == "PN" else f"={value[:64]}"
        raise FilterError(f"the filter {attribute}{shown} cannot be matched: {error}") from None
    if predicate is None:
        return None
    if isinstance(predicate, _DateTimePredicate):
        options.needs_timezone = True
        return predicate.element_test
    return _any_value(predicate)


def _any_value(predicate: Predicate) -> ElementTest:
    def matches(element: Mapping[str, Any] | None, offset: int | None) -> bool:
        if element is None:
            return False
        return any(value is not None and predicate(value) for value in element.get("Value") or ())

    return matches


def _unknown_test(value: str, options: _Options) -> ElementTest | None:
    """A private attribute: its value representation is known only from the element itself."""

    @lru_cache(maxsize=64)
    def test_for(vr: str) -> ElementTest | None:
        try:
            predicate = value_predicate(vr, value, fuzzy=options.fuzzy)
        except ValueError:
            return lambda element, offset: False
        if isinstance(predicate, _DateTimePredicate):
            return predicate.element_test
        return None if predicate is None else _any_value(predicate)

    def matches(element: Mapping[str, Any] | None, offset: int | None) -> bool:
        if element is None:
            return False
        test = test_for(str(element.get("vr", "UN")))
        return test is None or test(element, offset)

    return None if not value.strip(" *") else matches


def value_predicate(vr: str, value: str, *, fuzzy: bool = False) -> Predicate | None:
    """Makes the test of one value against one filter value.

    Args:
        vr: The value representation of the attribute.
        value: The filter value, not empty.
        fuzzy: Match person names fuzzily.

    Returns:
        The test; None if every value matches.

    Raises:
        FilterError: If the value is not possible for the value representation.
    """
    if vr == "UI":
        wanted = _uids(value)
        return lambda candidate: isinstance(candidate, str) and candidate.strip(" \0") in wanted
    if vr in _SINGLE_TEXT:
        return _text_predicate(vr, value)
    parts = [part for part in value.split("\\") if part.strip()]
    if not parts:
        raise FilterError("it holds no value")
    predicates = [_single_predicate(vr, part, fuzzy) for part in parts]
    known = [predicate for predicate in predicates if predicate is not None]
    if len(known) < len(predicates):
        return None
    if len(known) == 1:
        return known[0]
    if all(isinstance(predicate, _DateTimePredicate) for predicate in known):
        return _DateTimePredicate([wanted for predicate in known for wanted in predicate.ranges])  # type: ignore[attr-defined]
    return lambda candidate: any(predicate(candidate) for predicate in known)


def _single_predicate(vr: str, value: str, fuzzy: bool) -> Predicate | None:
    if vr in WILDCARD_VRS:
        if vr != "PN":
            return _text_predicate(vr, value)
        if value.strip("*^= "):
            return fuzzy_name_predicate(value) if fuzzy else name_predicate(value)
        if "*" not in value:
            raise FilterError("it holds no name")
        return None
    value = value.strip()
    if vr == "DA":
        return _date_predicate(value)
    if vr == "TM":
        return _time_predicate(value)
    if vr == "DT":
        wanted = parse_date_time_range(value)
        if wanted is None:
            raise FilterError(
                "a DT filter is YYYYMMDDHHMMSS.FFFFFF&ZZXX, from left as much as wanted, or a-b, a- or -b"
            )
        return _DateTimePredicate([wanted])
    if vr in DECIMAL_VRS or vr in INTEGER_VRS:
        return _number_predicate(vr, value)
    if vr == "AS":
        if not _AGE.match(value):
            raise FilterError("an AS filter is three digits and D, W, M or Y")
        return lambda candidate: isinstance(candidate, str) and candidate.strip(" \0") == value
    if vr == "AT":
        match = _TAG.match(value)
        if match is None:
            raise FilterError("an AT filter is a tag of 8 hexadecimal digits")
        tag = (match[1] + match[2]).upper()
        return lambda candidate: isinstance(candidate, str) and candidate.upper() == tag
    if vr == "SQ":
        raise FilterError("a sequence is matched by the attributes in it (Sequence.Attribute), not by a value")
    raise FilterError(f"values of VR {vr} cannot be matched")


def _text_predicate(vr: str, value: str) -> Predicate | None:
    if not value.strip(" *"):
        return None
    trailing = vr in _TRAILING_ONLY
    wanted = value.rstrip(" \0") if trailing else value.strip(" \0")
    test = wildcard_test(wanted) if "*" in wanted or "?" in wanted else wanted.__eq__
    if trailing:
        return lambda candidate: isinstance(candidate, str) and test(candidate.rstrip(" \0"))
    return lambda candidate: isinstance(candidate, str) and test(candidate.strip(" \0"))


def _uids(value: str) -> frozenset[str]:
    found = [part for part in (part.strip(" \0") for part in re.split(r"[,\\]", value)) if part]
    for uid in found:
        if "*" in uid or "?" in uid:
            raise FilterError("there are no wildcards for UIDs (PS3.4 section C.2.2.2.4)")
        if not is_uid(uid, permissive=True):
            raise FilterError("a UI filter is a UID, or several separated by commas")
    if not found:
        raise FilterError("it holds no UID")
    return frozenset(found)


def _date_predicate(value: str) -> Predicate:
    wanted = parse_date_range(value)
    if wanted is None:
        raise FilterError("a DA filter is a date YYYYMMDD or a range a-b, a- or -b of them")
    low, high = wanted

    def matches(candidate: Any) -> bool:
        date = parse_date(candidate) if isinstance(candidate, str) else None
        return date is not None and low <= date <= high

    return matches


def _time_predicate(value: str) -> Predicate:
    wanted = parse_time_range(value)
    if wanted is None:
        raise FilterError(
            "a TM filter is a time HHMMSS.FFFFFF, from left as much as wanted, or a range a-b, a- or -b within one day"
        )

    def matches(candidate: Any) -> bool:
        time = parse_time(candidate) if isinstance(candidate, str) else None
        return time is not None and contains(wanted, time)

    return matches


class _DateTimePredicate:
    """Tests DT values, for which the dataset's offset from UTC matters."""

    def __init__(self, ranges: list[Range]) -> None:
        self.ranges = ranges

    def __call__(self, candidate: Any, offset: int | None = None) -> bool:
        value = parse_date_time(candidate) if isinstance(candidate, str) else None
        return value is not None and any(contains(wanted, value, offset) for wanted in self.ranges)

    def element_test(self, element: Mapping[str, Any] | None, offset: int | None) -> bool:
        return element is not None and any(self(value, offset) for value in element.get("Value") or ())


def _number_predicate(vr: str, value: str) -> Predicate:
    wanted = _decimal(value)
    if wanted is None:
        raise FilterError(f"a filter of VR {vr} is a number (there are no ranges or wildcards for it)")
    if vr not in DECIMAL_VRS and wanted != wanted.to_integral_value():
        raise FilterError(f"a filter of VR {vr} is an integer")
    if vr == "FL":
        single = _single_precision(float(wanted))
        return lambda candidate: _number(candidate, lambda number: _single_precision(float(number)) == single)
    if vr in ("DS", "FD"):
        # JSON readers make doubles of decimals, so two decimals are the same if their doubles are.
        double = float(wanted)
        return lambda candidate: _number(candidate, lambda number: float(number) == double)
    return lambda candidate: _number(candidate, lambda number: number == wanted)


def _number(candidate: Any, test: Callable[[Decimal | int | float], bool]) -> bool:
    """Applies a test to a value that is a number or the text of one (PS3.18 section F.2.3 allows both)."""
    if isinstance(candidate, bool):
        return False
    if isinstance(candidate, str):
        number = _decimal(candidate.strip(" \0"))
        return number is not None and test(number)
    return isinstance(candidate, (int, float)) and test(candidate)


def _decimal(text: str) -> Decimal | None:
    return parse_decimal(text) if len(text) <= 64 else None


def _single_precision(number: float) -> float:
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", number))[0]
    except OverflowError:
        return number
    return rounded


def _timezone(dataset: Mapping[str, Any]) -> int | None:
    value = first_value(dataset, _TIMEZONE)
    return parse_offset(value) if isinstance(value, str) else None
