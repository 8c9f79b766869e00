"""Attributes as columns of a table: from values of the DICOM JSON model to numbers, text, dates and lists of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from dicomweb_io.dicom.attributes import BINARY_VRS, DECIMAL_VRS, INTEGER_VRS, entry_of, lookup_keyword, resolve, vr_of
from dicomweb_io.dicom.errors import InvalidIdentifierError
from dicomweb_io.dicom.json_decode import iter_values
from dicomweb_io.dicom.values import iso_date, iso_date_time, iso_time, name_text

_INT64 = 1 << 63  # tables have integers of 64 bits
_MOMENTS = {"DA": iso_date, "TM": iso_time, "DT": iso_date_time}


@dataclass(frozen=True)
class Column:
    """One attribute as a column.

    Attributes:
        name: The column's name: the keyword, or ``tag_`` and 8 digits where there is none; the parts of a path into
            sequences are joined by ``_``.
        path: The tags, outermost first.
        kind: The type of a value: `int`, `float`, `str`, or `datetime.date` for typed dates.
        many: Whether a cell is a list: attributes of which PS3.6 allows several values, and those in sequences.
        vr: The value representation. Dates, times and date-times (VRs DA, TM, DT) have the form of ISO 8601 as text, as
            precise as the archive gives them.
    """

    name: str
    path: tuple[str, ...]
    kind: type
    many: bool
    vr: str = ""

    @property
    def field(self) -> str:
        """What to ask an archive for, so that rows have it: the outermost tag."""
        return self.path[0]

    def cell(self, row: Mapping[str, Any]) -> tuple[Any, bool]:
        """The column's value in a dataset of the DICOM JSON model.

        Returns:
            The value (None, or an empty list, where the attribute has none), and whether the cell is
            complete: values that are not of the column's type are left out.
        """
        clean, gaps = True, False
        values = []
        for value in iter_values(row, self.path):
            absent = value in (None, "") or (isinstance(value, Mapping) and not any(value.values()))
            converted = None if absent else _convert(value, self.kind, self.vr)
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


def column_of(attribute: str, *, typed_dates: bool = False) -> Column:
    """The column of an attribute.

    Args:
        attribute: A keyword, 8 hexadecimal digits, or a dotted path into sequences. Attributes that PS3.6 does not
            know are text.
        typed_dates: Whether dates are `datetime.date` instead of text.

    Raises:
        InvalidIdentifierError: If it is unknown, a sequence, binary, or in something that is no sequence.
    """
    path = resolve(attribute)
    vr = vr_of(path[-1])
    for tag in path[:-1]:
        if vr_of(tag) not in ("SQ", "UN"):
            raise InvalidIdentifierError(f"{attribute}: {_name(tag)} is no sequence, so nothing is in it")
    if vr == "SQ":
        raise InvalidIdentifierError(
            f"{attribute} is a sequence: name an attribute in it, such as {attribute}.CodeValue"
        )
    if vr in BINARY_VRS and vr != "UN":
        raise InvalidIdentifierError(f"{attribute} is binary (VR {vr}) and cannot be a column")
    kind: type = str
    if vr == "DA" and typed_dates:
        kind = date
    elif vr in INTEGER_VRS:
        kind = int
    elif vr in DECIMAL_VRS:
        kind = float
    return Column("_".join(map(_name, path)), path, kind, len(path) > 1 or _multiplicity(path[-1]) != "1", vr)


def columns_of(attributes: Iterable[str], *, typed_dates: bool = False) -> tuple[Column, ...]:
    """The columns of attributes, in order; see `column_of`.

    Raises:
        TypeError: If `attributes` is one text.
        InvalidIdentifierError: If there are none, one occurs twice, or one cannot be a column.
    """
    if isinstance(attributes, str):
        raise TypeError("columns must be a sequence of keywords or tags, not one str")
    columns = tuple(column_of(attribute, typed_dates=typed_dates) for attribute in attributes)
    if not columns:
        raise InvalidIdentifierError("columns is empty: name at least one attribute")
    names = [column.name for column in columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidIdentifierError(f"columns names an attribute more than once: {', '.join(twice)}")
    return columns


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
        return text if kind is str or text is None else date.fromisoformat(text)
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
