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
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Any, cast

from dicomweb_io.dicom.attributes import DECIMAL_VRS, INTEGER_VRS, WILDCARD_VRS, lookup_keyword, resolve, vr_of
from dicomweb_io.dicom.errors import FilterError
from dicomweb_io.dicom.json_decode import first_value, is_empty
from dicomweb_io.dicom.uids import is_uid
from dicomweb_io.dicom.values import (
    Range,
    contains,
    day_of,
    fold_accents,
    fuzzy_name_predicate,
    name_group_test,
    name_predicate,
    name_text,
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


# What the rows of an answer say about the filters ---------------------------------------------------------------------

# Values of these cannot hold a comma.
_COMMA_SEPARATED = frozenset({"AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "SL", "SS", "TM", "UI", "UL", "US"})
_TEMPORAL = frozenset({"DA", "DT", "TM"})
_NUMBERS = DECIMAL_VRS | INTEGER_VRS
_JUDGED_TEXT = frozenset({"AE", "AS", "CS", "LO", "LT", "SH", "ST", "UC", "UR", "UT"})

# What is no condition on objects: how text is encoded, which zone times are in, which level is meant.
_NO_CONDITIONS = frozenset({_CHARACTER_SET, _TIMEZONE, "00080052"})

_PATIENT_ID, _MODALITY, _MODALITIES_IN_STUDY, _SOP_CLASSES_IN_STUDY = "00100020", "00080060", "00080061", "00080062"

# Attributes whose values satisfy a filter on another one too. They never contradict it.
_ALSO = {
    _PATIENT_ID: ("00101000",),  # OtherPatientIDs
    "00100010": ("00101001", "00101005"),  # OtherPatientNames, PatientBirthName
    _MODALITIES_IN_STUDY: (_MODALITY,),
    _SOP_CLASSES_IN_STUDY: ("00080016",),
    "00080016": (_SOP_CLASSES_IN_STUDY,),
}
_WORD_ENDS = re.compile(r"[\s^,]+")

Filters = Iterable[tuple[str, str]]
Judgement = Callable[[str], "bool | None"]
"""Whether the text of a value matches; None if that cannot be told."""


def filter_values(key: str, value: str) -> list[str]:
    """The single values of a filter, one of which has to match.

    Args:
        key: The attribute.
        value: Its text in a query: values of a list are joined by backslashes; in types whose values cannot hold a
            comma (UIDs, codes, dates, numbers) a comma separates too.
    """
    values = value.split("\\")
    if vr_of(resolve(key)[-1]) in _COMMA_SEPARATED:
        values = [part for item in values for part in item.split(",")]
    return values


def selects(value: str) -> bool:
    """Whether the value of a filter chooses anything: an empty one, or wildcards alone in one of several, do not."""
    return all(part.strip(' *?%^="') for part in re.split(r"[\\,]", value))


def check_filter(attribute: str, value: str) -> None:
    """Checks that dates and times of a filter are spelled as servers expect them (PS3.5 section 6.2, PS3.4 C.2.2.2.5).

    Servers that cannot read a value find nothing, or ignore it and return everything.

    Args:
        attribute: A keyword, 8 hexadecimal digits, or a path of them.
        value: The text of the filter, perhaps a list; see `filter_values`.

    Raises:
        FilterError: If one is not; the message shows the right spelling.
    """
    tag = resolve(attribute)[-1]
    vr = vr_of(tag)
    if vr not in _TEMPORAL or value.strip() == _EMPTY:
        return
    for part in map(str.strip, filter_values(attribute, value)):
        if part.strip("*") and not _is_temporal(vr, part):
            # Group 0010 identifies the patient: its values stay out of messages.
            shown = "" if tag.startswith("0010") else f"={part[:64]}"
            raise FilterError(f"the filter {attribute}{shown} is no {_TEMPORAL_NAMES[vr]}: {_spelled(vr, part, shown)}")


_TEMPORAL_NAMES = {"DA": "date or range of dates", "TM": "time or range of times", "DT": "date-time or range of them"}


def _is_temporal(vr: str, text: str) -> bool:
    if vr == "DT":
        return parse_date_time_range(text) is not None
    low, dash, high = text.partition("-")
    if not (low or high):
        return False
    ends = [end for end in (low, high) if end]
    if vr == "DA":
        ordered = not (dash and low and high) or low <= high
        return ordered and all(end.isdigit() and parse_date(end) is not None for end in ends)
    return all(":" not in end and parse_time(end) is not None for end in ends)


def _spelled(vr: str, text: str, shown: str) -> str:
    """The right spelling of what is probably meant, or an example."""
    digits = re.sub(r"[^0-9]", "", text)
    if vr == "DA" and shown and text[:4].isdigit():
        if (date := parse_date(digits)) is not None:
            return f"write {date}"
        span = parse_date_time(digits) if len(digits) in (4, 6) else None
        if span is not None:
            first, last = (day_of(instant) for instant in span[:2])
            return f"write {first}-{last}"
    if vr == "DA":
        return "write YYYYMMDD, such as 20040131, or a range, such as 20040101-20041231, 20040101- or -20041231"
    if vr == "TM":
        return "write HHMMSS, such as 143000, or a part from the left, or a range, such as 0700-1200"
    return "write YYYYMMDDHHMMSS, such as 20040131143000, or a part from the left, or a range of them"


def carries(row: Mapping[str, Any], tag: str) -> bool:
    """Whether a row, which may have any form, has a value of an attribute."""
    element = row.get(tag)
    values = element.get("Value") if isinstance(element, Mapping) else None
    return isinstance(values, list) and any(value is not None and value != "" for value in values)


def contradicted(filters: Filters, row: Mapping[str, Any], *, level: str, names: bool = True) -> str | None:
    """The keyword (or tag) of a filter that a row of its answer contradicts; None if there is none.

    Rows are judged leniently: case, padding and accents do not count, any of several values is enough, and so is the
    attribute in a sequence of the row, or another that servers match in its place. What servers may read in several
    ways is not judged: attributes of sequences, times whose date decides, and values under a zone adjustment.

    Args:
        filters: Pairs of attribute and value.
        row: A row in the DICOM JSON model.
        level: What was searched for: a study has the modalities of its series.
        names: Whether names are judged: not where they are matched loosely.
    """
    filters = tuple(filters)
    zoned = any(_texts(row.get(_TIMEZONE), "SH")) or any(resolve(key) == (_TIMEZONE,) for key, _ in filters)
    for key, text in filters:
        tag, *below = resolve(key)
        vr = _vr_in(row, tag)
        if below or tag in _NO_CONDITIONS or (vr == "PN" and not names) or (vr in _TEMPORAL and zoned):
            continue
        if vr == "TM" and _date_decides(tag, filters):
            continue
        tests = _lenient_tests(tag, vr, key, text)
        present = [value for one in same_attributes(tag, level) for value in _texts(row.get(one), vr)]
        if not tests or not present or any(test(value) is not False for value in present for test in tests):
            continue
        others = [value for one in _ALSO.get(tag, ()) for value in _texts(row.get(one), vr)]
        others += [value for element in _nested(row, tag) for value in _texts(element, vr)]
        if not any(test(value) for value in others for test in tests):
            return _name_of(tag)
    return None


def unproven(filters: Filters, row: Mapping[str, Any], *, level: str, several: bool = False) -> str | None:
    """Why a row does not prove that it matches all filters, in words; None if it does.

    The row must carry each attribute, with a value that matches to the letter: case and accents count, wildcards are
    those of the filter. This is what deleting and replacing rely on.

    Args:
        filters: Pairs of attribute and value.
        row: A row in the DICOM JSON model.
        level: What was searched for.
        several: Whether one of several modalities (or SOP classes) of a study is enough.

    Raises:
        FilterError: If a value is not possible for its value representation.
    """
    for key, text in filters:
        path = resolve(key)
        if path[0] in _NO_CONDITIONS:
            return f"{key} changes what values mean, so no value is proven"
        if "\\" not in text and not text.strip("* "):
            continue
        vr = _vr_in(row, path[0]) if len(path) == 1 else vr_of(path[-1])
        tests = [_exact_test(vr, part) for part in filter_values(key, text)]
        carriers = same_attributes(path[0], level) if len(path) == 1 else ()
        present = [value for tag in carriers for value in _texts(row.get(tag), vr)]
        if len(path) > 1:
            present = [value for element in _elements_at(row, path) for value in _texts(element, vr)]
        if not present:
            return f"it has no {key}"
        matching = [value for value in present if any(test(value) for test in tests)]
        if not matching:
            return f"its {key} is another one, to the letter"
        of_study = {_MODALITIES_IN_STUDY, _SOP_CLASSES_IN_STUDY}.intersection(carriers)
        if of_study and len(matching) < len(present) and not several:
            return f"its study matches {key} by one of several values"
    return None


def same_attributes(tag: str, level: str) -> tuple[str, ...]:
    """The attributes of a row that a filter on one is compared with: a study has the modalities of its series."""
    return (tag, _MODALITIES_IN_STUDY) if tag == _MODALITY and level == "study" else (tag,)


def _vr_in(row: Mapping[str, Any], tag: str) -> str:
    vr, element = vr_of(tag), row.get(tag)
    return str(element.get("vr")) if vr == "UN" and isinstance(element, Mapping) else vr


def _texts(element: object, vr: str) -> Iterator[str]:
    """The values of an element as texts without padding. Some servers join several by backslashes in one string."""
    values = element.get("Value") if isinstance(element, Mapping) else None
    for value in values if isinstance(values, list) else ():
        if isinstance(value, Mapping) and vr == "PN":
            value = name_text(value)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and vr in _NUMBERS
        if not (number or isinstance(value, str)):
            continue
        for part in [str(value)] if vr in _SINGLE_TEXT else str(value).split("\\"):
            if text := part.strip(" \0"):
                yield text


def _items(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for element in row.values():
        values = element.get("Value") if isinstance(element, Mapping) else None
        yield from (item for item in (values if isinstance(values, list) else ()) if isinstance(item, Mapping))


def _nested(row: Mapping[str, Any], tag: str) -> Iterator[object]:
    """The elements of a tag in the sequences of a row, such as the PatientID of OtherPatientIDsSequence."""
    for item in _items(row):
        if tag in item:
            yield item[tag]
        yield from _nested(item, tag)


def _elements_at(row: Mapping[str, Any], path: Sequence[str]) -> Iterator[object]:
    if len(path) == 1:
        yield row.get(path[0])
        return
    for item in _items({path[0]: row.get(path[0])}):
        yield from _elements_at(item, path[1:])


def _name_of(tag: str) -> str:
    try:
        return lookup_keyword(tag)
    except KeyError:
        return tag


def _date_decides(tag: str, filters: Filters) -> bool:
    """Whether a filter on a time may be matched together with one on its date, as one range."""
    date_keyword = _name_of(tag).removesuffix("Time") + "Date"
    return any(
        _name_of(resolve(key)[0]) == date_keyword and text.strip(" *") and parse_date(text) is None
        for key, text in filters
    )


def _lenient_tests(tag: str, vr: str, key: str, text: str) -> list[Judgement]:
    """The tests of a filter's values, one of which has to pass; none if the filter cannot be judged."""
    wanted = filter_values(key, text)
    if vr in _JUDGED_TEXT and "," in text:
        # Some servers split lists before they decode, some afterwards.
        wanted += [part for value in wanted for part in value.split(",")]
    if tag == _PATIENT_ID:
        # With its issuer, as some servers take it.
        wanted += [value.partition("^^^")[0] for value in wanted if "^^^" in value]
    tests = [_lenient_test(vr, value.strip(" \0")) for value in wanted] if all(map(selects, wanted)) else [None]
    return [] if None in tests else cast("list[Judgement]", tests)


@lru_cache(maxsize=1024)
def _lenient_test(vr: str, pattern: str) -> Judgement | None:
    """The lenient test of one value; None if it cannot be judged."""
    if vr == "UI":
        return wildcard_test(pattern)
    if vr == "PN":
        return _lenient_name(pattern)
    if vr in _JUDGED_TEXT:
        return _lenient_text(pattern)
    if vr == "DA":
        return _lenient_date(pattern)
    if vr in _TEMPORAL:
        return _lenient_time(pattern, date_time=vr == "DT")
    if vr in DECIMAL_VRS or vr in INTEGER_VRS:
        wanted = _decimal(pattern)

        def equals(value: str) -> bool | None:
            number = _decimal(value)
            return None if number is None else float(number) == float(cast(Decimal, wanted))

        return None if wanted is None else equals
    return None


def _spellings(text: str) -> tuple[str, str]:
    """A text without differences of case and space: with its accents, and without."""
    text = " ".join(text.split())
    return unicodedata.normalize("NFC", text).lower(), fold_accents(text)


def _lenient_text(pattern: str) -> Judgement:
    tests = [wildcard_test(spelling) for spelling in _spellings(pattern)]
    ascii_only = pattern.isascii()

    def matches(value: str) -> bool | None:
        if any(test(spelling) for test, spelling in zip(tests, _spellings(value), strict=True)):
            return True
        # Letters that the server could not write.
        return None if "\ufffd" in value or ("?" in value and not ascii_only) else False

    return matches


def _lenient_name(pattern: str) -> Judgement | None:
    """Names match if any of their groups does. Without wildcards it is enough that all words of a group occur."""
    groups = [group for group in pattern.split("=") if group.strip(" ^*?")]
    tests: list[Judgement] = []
    for group in groups:
        if "*" in group or "?" in group:
            tests += [_group_in(spelling) for spelling in (*_spellings(group), _joined(group))]
        else:
            words = [word for word in _WORD_ENDS.split(fold_accents(group)) if word]
            tests.append(lambda value, words=words: all(word in fold_accents(value) for word in words))  # type: ignore[misc]
    unsure = _lenient_text(pattern)

    def matches(value: str) -> bool | None:
        return True if any(test(value) for test in tests) else unsure(value)

    return matches if tests else None


def _joined(group: str) -> str:
    return _WORD_ENDS.sub("^", fold_accents(group)).strip("^")


def _group_in(pattern: str) -> Judgement:
    test = name_group_test(pattern.strip("^ "))
    return lambda value: any(
        test(spelling.strip("^ "))
        for group in value.split("=")
        if group.strip("^ ")
        for spelling in (*_spellings(group), _joined(group))
    )


def _lenient_date(pattern: str) -> Judgement | None:
    wanted = parse_date_range(pattern)
    if wanted is None:
        return None
    low, high = wanted

    def matches(value: str) -> bool | None:
        date = parse_date(value) or parse_date(value.replace("-", ""))
        return None if date is None else low <= date <= high

    return matches


def _lenient_time(pattern: str, *, date_time: bool) -> Judgement | None:
    parse = parse_date_time if date_time else parse_time
    wanted = parse_date_time_range(pattern) if date_time else parse_time_range(pattern)
    # A range of times across midnight, or an offset from UTC: servers differ.
    if wanted is None or any(end is not None and end.offset is not None for end in wanted):
        return None
    low, high = wanted

    def matches(value: str) -> bool | None:
        found = parse(value)
        if found is None or found.offset is not None:
            return None
        return (low is None or low.first <= found.last) and (high is None or found.first <= high.last)

    return matches


@lru_cache(maxsize=1024)
def _exact_test(vr: str, pattern: str) -> Callable[[str], bool]:
    """The test of one value to the letter.

    Raises:
        FilterError: If the filter cannot be matched to the letter.
    """
    if vr == "PN":
        wanted = [group.rstrip("^ ").lstrip(" ") for group in pattern.split("=")]
        tests = [name_group_test(group) if group else None for group in wanted]
        if not any(wanted):
            raise FilterError("it holds no name")

        def matches(value: str) -> bool:
            groups = [group.rstrip("^ ").lstrip(" ") for group in value.split("=")]
            if len(tests) == 1:
                return any(tests[0](group) for group in groups if group)  # type: ignore[misc]
            groups += [""] * (len(tests) - len(groups))
            return all(test is None or test(group) for test, group in zip(tests, groups, strict=False))

        return matches
    predicate = value_predicate("UT" if vr == "UN" else vr, pattern) if pattern.strip() else None
    if predicate is None:
        raise FilterError("one of its values matches everything")
    return predicate
