"""Attributes as columns of a table: from values of the DICOM JSON model to numbers, text, dates and lists of them."""

from __future__ import annotations

import binascii
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, time
from typing import Any

from dicomweb_io.dicom.attributes import BINARY_VRS, DECIMAL_VRS, INTEGER_VRS, entry_of, lookup_keyword, resolve, vr_of
from dicomweb_io.dicom.errors import InvalidIdentifierError
from dicomweb_io.dicom.json_decode import dumps
from dicomweb_io.dicom.values import iso_date, iso_date_time, iso_time, name_text

_INT64 = 1 << 63  # tables have integers of 64 bits
_MOMENTS = {"DA": iso_date, "TM": iso_time, "DT": iso_date_time}
_PART = re.compile(
    r"""(?:\((?P<group>[0-9A-Fa-f]{4}),\s*["']?(?P<creator>[^"']*?)["']?,\s*(?:xx)?(?P<element>[0-9A-Fa-f]{2})\)
    |(?P<name>[^.\[\]()]*))(?:\[(?P<item>\d{1,6})\])?(?:\.|\Z)""",
    re.VERBOSE,
)
_TAG = re.compile("[0-9A-Fa-f]{8}")
_UNREADABLE = object()
_TEXTS_AS_BYTES = frozenset(("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "SH", "ST", "TM", "UC", "UI", "UT"))

COLUMNS: dict[str, tuple[str, ...]] = {
    level: tuple(keywords.split())
    for level, keywords in {
        "study": "StudyInstanceUID PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyDate "
        "StudyTime StudyDescription ModalitiesInStudy NumberOfStudyRelatedSeries NumberOfStudyRelatedInstances",
        "series": "StudyInstanceUID SeriesInstanceUID PatientID PatientName AccessionNumber StudyDate "
        "StudyDescription Modality SeriesNumber SeriesDescription NumberOfSeriesRelatedInstances",
        "instance": "StudyInstanceUID SeriesInstanceUID SOPInstanceUID PatientID PatientName StudyDate Modality "
        "SeriesNumber SeriesDescription SOPClassUID InstanceNumber Rows Columns NumberOfFrames",
    }.items()
}
"""The columns of a table of each level, unless others are named."""


@dataclass(frozen=True)
class Step:
    """A part of a path into a dataset.

    Attributes:
        tag: 8 hexadecimal digits; with a private creator, those of the first block that may be its (``00091010``).
        creator: The private creator, whose block differs from dataset to dataset.
        item: The item of the sequence, counted from 0; None for all of them.
    """

    tag: str
    creator: str = ""
    item: int | None = None

    def find(self, row: Mapping[str, Any]) -> Any:
        """The element in a dataset; None if it has none."""
        if not self.creator:
            return row.get(self.tag)
        for tag, element in row.items():
            # A block is reserved by the element (gggg,00bb), and then has the elements (gggg,bb00) to (gggg,bbFF).
            if tag[:6] == f"{self.tag[:4]}00" and isinstance(element, Mapping):
                content = element.get("Value")
                if isinstance(content, list) and content and str(content[0]).strip() == self.creator:
                    # A creator may have several blocks.
                    found = row.get(self.tag[:4] + tag[6:].upper() + self.tag[6:])
                    if found is not None:
                        return found
        return None


@dataclass(frozen=True)
class Column:
    """One attribute as a column.

    Attributes:
        name: The column's name: the keyword, or ``tag_`` and 8 digits where there is none; the parts of a path into
            sequences are joined by ``_``.
        steps: Where the attribute is, outermost first.
        kind: The type of a value: `int`, `float`, `str`, or for typed dates `datetime.date` and `datetime.time`.
        many: Whether a cell is a list: attributes of which PS3.6 allows several values, and those in sequences.
        vr: The value representation. Dates, times and date-times (VRs DA, TM, DT) have the form of ISO 8601 as text, as
            precise as the archive gives them. A sequence (SQ) is the JSON of its items.
    """

    name: str
    steps: tuple[Step, ...]
    kind: type
    many: bool
    vr: str = ""

    @property
    def field(self) -> str:
        """What to ask an archive for, so that rows have it: the outermost tag; ``"all"`` for a private creator's."""
        return "all" if self.steps[0].creator else self.steps[0].tag

    @property
    def path(self) -> tuple[str, ...]:
        """The tags, outermost first."""
        return tuple(step.tag for step in self.steps)

    def cell(self, row: Mapping[str, Any]) -> tuple[Any, bool]:
        """The column's value in a dataset of the DICOM JSON model.

        Returns:
            The value (None, or an empty list, where the attribute has none), and whether the cell is
            complete: values that are not of the column's type are left out.
        """
        clean, gaps = True, False
        values = []
        if self.vr == "SQ":
            items = list(_values(row, self.steps, self.vr))
            return (dumps(items).decode() if items else None), True
        for value in _values(row, self.steps, self.vr):
            absent = value in (None, "") or (isinstance(value, Mapping) and not any(value.values()))
            converted = None if absent or value is _UNREADABLE else _convert(value, self.kind, self.vr)
            clean = clean and (absent or converted is not None)
            if converted is not None:
                values.append(converted)
            elif self.many and self.kind is str:
                # A list of texts has a place for each value, because other lists may correspond to it.
                values.append("")
            else:
                gaps = True
        if self.many:
            # A list of numbers has no empty places: the others move up.
            return values, clean and not (gaps and values)
        if len(values) < 2:
            return (values[0] if values else None), clean
        return ("\\".join(values), clean) if self.kind is str and self.vr not in _MOMENTS else (values[0], False)


def column_of(attribute: str, *, typed_dates: bool = False, typed_times: bool = False) -> Column:
    """The column of an attribute.

    Args:
        attribute: A keyword, 8 hexadecimal digits, a private attribute as ``(0009,"CREATOR",10)``, or a dotted path
            into sequences, of which ``[0]`` takes one item. Attributes that PS3.6 does not know are text.
        typed_dates: Whether dates are `datetime.date` instead of text.
        typed_times: Whether times are `datetime.time` instead of text.

    Raises:
        InvalidIdentifierError: If it is unknown, binary, or in something that is no sequence.
    """
    steps = _steps(attribute)
    vr = _vr_of(steps[-1])
    for step in steps[:-1]:
        if _vr_of(step) not in ("SQ", "UN"):
            raise InvalidIdentifierError(f"{attribute}: {_name(step.tag)} is no sequence, so nothing is in it")
    if steps[-1].item is not None and vr not in ("SQ", "UN"):
        raise InvalidIdentifierError(f"{attribute}: [{steps[-1].item}] takes an item of a sequence, and this is none")
    if vr in BINARY_VRS and vr != "UN":
        raise InvalidIdentifierError(f"{attribute} is binary (VR {vr}) and cannot be a column")
    kind: type = str
    if vr == "DA" and typed_dates:
        kind = date
    elif vr == "TM" and typed_times:
        kind = time
    elif vr in INTEGER_VRS:
        kind = int
    elif vr in DECIMAL_VRS:
        kind = float
    return Column("_".join(map(_step_name, steps)), steps, kind, _is_many(steps, vr), vr)


def columns_of(
    attributes: Iterable[str], *, typed_dates: bool = False, typed_times: bool = False, exploded: str | None = None
) -> tuple[Column, ...]:
    """The columns of attributes, in order; see `column_of`.

    Args:
        attributes: What `column_of` takes.
        typed_dates: See `column_of`.
        typed_times: See `column_of`.
        exploded: The keyword or tag of a sequence of which each item becomes a row (see `RowMaker`), so that what is
            in it has one value.

    Raises:
        TypeError: If `attributes` is one text.
        InvalidIdentifierError: If there are none, one occurs twice, or one cannot be a column.
    """
    if isinstance(attributes, str):
        raise TypeError("columns must be a sequence of keywords or tags, not one str")
    columns = []
    within = resolve(exploded) if exploded is not None else ("",)
    if exploded is not None and (len(within) > 1 or vr_of(within[0]) not in ("SQ", "UN")):
        raise InvalidIdentifierError(f"{exploded} is no sequence of a dataset: only the items of one become rows")
    for attribute in attributes:
        column = column_of(attribute, typed_dates=typed_dates, typed_times=typed_times)
        if column.steps[0] == Step(within[0]) and len(column.steps) > 1:
            steps = (Step(within[0], item=0), *column.steps[1:])
            column = replace(column, steps=steps, many=_is_many(steps, column.vr))
        columns.append(column)
    if not columns:
        raise InvalidIdentifierError("columns is empty: name at least one attribute")
    names = [column.name for column in columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidIdentifierError(f"columns names an attribute more than once: {', '.join(twice)}")
    return tuple(columns)


def fields_of(columns: Iterable[Column]) -> list[str]:
    """What to ask an archive for, so that rows have the columns."""
    fields = list(dict.fromkeys(column.field for column in columns))
    return ["all"] if "all" in fields else fields


def attributes_in(text: str) -> list[str]:
    """Splits a list of attributes at its commas; those of private attributes are no separators."""
    return [part.strip() for part in re.findall(r"(?:\([^)]*\)|[^,])+", text) if part.strip()]


def has_value(tag: str, element: Any) -> bool:
    """Whether an element of a row can be a column: it has a tag and values, and no bulk data."""
    if not _TAG.fullmatch(tag) or not isinstance(element, Mapping) or "Value" not in element:
        return False
    return vr_of(tag) not in BINARY_VRS - {"UN"}


class RowMaker:
    """Makes the rows of a table from datasets of the DICOM JSON model, and counts what it met.

    Args:
        columns: What a row has.
        exploded: The sequence of which each item becomes a row; a dataset without it is one row.
        counts: Takes what is counted; by default a new one.

    Attributes:
        counts: ``rows``; ``unreadable:NAME``, values that are not of their column's type and were left out; and
            ``carried:NAME``, datasets that have the attribute, also if it is empty.
    """

    def __init__(
        self, columns: Sequence[Column], exploded: str | None = None, counts: Counter[str] | None = None
    ) -> None:
        self._columns = tuple(columns)
        self._exploded = resolve(exploded)[0] if exploded is not None else None
        self.counts: Counter[str] = Counter() if counts is None else counts

    @property
    def unreadable(self) -> int:
        """How many cells have values that could not be read."""
        return sum(number for name, number in self.counts.items() if name.startswith("unreadable:"))

    def rows(self, dataset: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The rows of a dataset."""
        tag = self._exploded
        element = dataset.get(tag) if tag is not None else None
        items = element.get("Value") if isinstance(element, Mapping) else None
        if tag is None or not isinstance(items, list) or len(items) < 2:
            yield self._row(dataset)
            return
        for item in items:
            yield self._row({**dataset, tag: {"vr": "SQ", "Value": [item]}})

    def _row(self, dataset: Mapping[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {}
        self.counts["rows"] += 1
        for column in self._columns:
            row[column.name], clean = column.cell(dataset)
            if not clean:
                self.counts[f"unreadable:{column.name}"] += 1
            if column.steps[0].find(dataset) is not None:
                self.counts[f"carried:{column.name}"] += 1
        return row


def _steps(attribute: str) -> tuple[Step, ...]:
    if not isinstance(attribute, str) or not re.search(r"[(\[]", attribute):
        return tuple(Step(tag) for tag in resolve(attribute))
    steps, place = [], 0
    while place < len(attribute):
        match = _PART.match(attribute, place)
        if match is None or match.end() == place or match["creator"] == "":
            raise InvalidIdentifierError(
                f'{attribute!r} is no attribute: expected a keyword, 8 hexadecimal digits, (0009,"CREATOR",10) for a '
                "private one, or several of them joined by dots, with [0] behind a sequence for one of its items"
            )
        item = int(match["item"]) if match["item"] is not None else None
        if match["creator"] is not None:
            group, element = match["group"].upper(), match["element"].upper()
            if int(group, 16) % 2 == 0:
                raise InvalidIdentifierError(f"{attribute!r}: private groups are odd, and {group} is not")
            steps.append(Step(f"{group}10{element}", match["creator"].strip(), item))
        else:
            steps.append(Step(resolve(match["name"])[0], "", item))
        place = match.end()
    return tuple(steps)


def _is_many(steps: tuple[Step, ...], vr: str) -> bool:
    if vr == "SQ":
        return False
    return any(step.item is None for step in steps[:-1]) or (
        not steps[-1].creator and _multiplicity(steps[-1].tag) != "1"
    )


def _values(row: Mapping[str, Any], steps: tuple[Step, ...], vr: str) -> Iterator[Any]:
    """The values at the end of a path, in all items; None where a place is empty."""
    step = steps[0]
    element = step.find(row)
    content = element.get("Value") if isinstance(element, Mapping) else None
    if content is None and isinstance(element, Mapping) and element.get("InlineBinary"):
        # A private value whose VR the archive does not know.
        content = _texts(element["InlineBinary"], vr) if len(steps) == 1 else None
    if not isinstance(content, (list, tuple)):
        return
    if step.item is not None:
        content = content[step.item : step.item + 1]
    if len(steps) == 1:
        yield from content
        return
    for item in content:
        if isinstance(item, Mapping):
            yield from _values(item, steps[1:], vr)


def _texts(encoded: Any, vr: str) -> list[Any]:
    """The values of bytes in base64, where they are text; else one that cannot be read."""
    try:
        content = binascii.a2b_base64(encoded)
        if vr in _TEXTS_AS_BYTES:
            return [text.strip(" \0") for text in content.decode("utf-8").split("\\")]
    except (TypeError, ValueError):
        pass
    return [_UNREADABLE]


def _vr_of(step: Step) -> str:
    if not step.creator:
        return vr_of(step.tag)
    from pydicom import datadict

    try:
        return str(datadict.private_dictionary_VR(int(step.tag, 16), step.creator)).split(" or ")[0]
    except KeyError:
        return "UN"


def _step_name(step: Step) -> str:
    name = _name(step.tag)
    if step.creator:
        creator = re.sub(r"\W+", "_", step.creator).strip("_")
        name = f"tag_{step.tag[:4]}_{creator}_{step.tag[6:]}"
    return name if step.item is None else f"{name}_{step.item}"


def _name(tag: str) -> str:
    try:
        return lookup_keyword(tag)
    except KeyError:
        return f"tag_{tag}"


def _multiplicity(tag: str) -> str:
    try:
        return entry_of(int(tag, 16))[1]
    except KeyError:
        return "1"


def _convert(value: Any, kind: type, vr: str) -> Any:
    """The value as `kind`; None if it has no such form. Archives send numbers as texts and texts as numbers."""
    moment = _MOMENTS.get(vr)
    if moment is not None:
        text = moment(value) if isinstance(value, str) else None
        if kind is str or text is None:
            return text
        try:
            return date.fromisoformat(text) if kind is date else time.fromisoformat(text)
        except ValueError:
            return None  # a leap second
    if kind is str:
        return value if isinstance(value, str) else name_text(value)
    if isinstance(value, bool):
        return None
    try:
        if kind is float:
            # Not every sink takes NaN and infinity.
            return float(value) if math.isfinite(float(value)) else None
        number = int(value) if isinstance(value, (int, str)) else int(value) if value == int(value) else None
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and -_INT64 <= number < _INT64 else None
