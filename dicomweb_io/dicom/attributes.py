"""Attributes by keyword and tag, and where they belong (PS3.6 and PS3.18 section 8.3.4)."""

from __future__ import annotations

import difflib
import re
from functools import cache, lru_cache

from pydicom.datadict import dictionary_keyword, dictionary_VR, keyword_dict, tag_for_keyword

from dicomweb_io.dicom.errors import InvalidIdentifierError

BINARY_VRS = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))
INTEGER_VRS = frozenset(("IS", "SL", "SS", "SV", "UL", "US", "UV"))
DECIMAL_VRS = frozenset(("DS", "FD", "FL"))
WILDCARD_VRS = frozenset(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"))

_TAG = re.compile(r"[0-9A-Fa-f]{8}\Z")


def lookup_keyword(tag: int | str) -> str:
    """The keyword of a standard attribute.

    Args:
        tag: Its tag as a number or as 8 hexadecimal digits.

    Raises:
        KeyError: If the data dictionary of PS3.6 has no such tag.
    """
    number = int(tag, 16) if isinstance(tag, str) else int(tag)
    keyword = dictionary_keyword(number)
    if not keyword:
        raise KeyError(f"{number:08X} has no keyword")
    return keyword


def lookup_tag(keyword: str) -> str:
    """The tag of a standard attribute as 8 upper-case hexadecimal digits.

    Raises:
        KeyError: If the data dictionary of PS3.6 has no such keyword.
    """
    number = tag_for_keyword(keyword) if keyword else None
    if number is None:
        raise KeyError(f"{keyword!r} is not a keyword of PS3.6")
    return f"{number:08X}"


@lru_cache(maxsize=4096)
def resolve(attribute: str) -> tuple[str, ...]:
    """The tags of an attribute or of a path into sequences.

    Args:
        attribute: A keyword (``"PatientID"``), 8 hexadecimal digits (``"00100020"``, private tags too), or several of
            them joined by dots (``"RequestAttributesSequence.ScheduledProcedureStepID"``).

    Returns:
        The tags as 8 upper-case hexadecimal digits, outermost first.

    Raises:
        InvalidIdentifierError: If a keyword is unknown; the message names the nearest one. Servers ignore filters
            that they do not know and return everything, so a misspelt keyword must never be sent.
    """
    if not attribute:
        raise InvalidIdentifierError("an attribute is empty (expected a keyword or 8 hexadecimal digits)")
    tags = []
    for name in attribute.split("."):
        if _TAG.match(name):
            tags.append(name.upper())
            continue
        number = tag_for_keyword(name) if name else None
        if number is None:
            near = difflib.get_close_matches(name, keyword_dict, n=1, cutoff=0.75)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidIdentifierError(f"{name!r} is neither a DICOM keyword nor 8 hexadecimal digits{hint}")
        tags.append(f"{number:08X}")
    return tuple(tags)


@lru_cache(maxsize=4096)
def vr_of(tag: str) -> str:
    """The value representation of a tag by PS3.6, the first where several are allowed; ``"UN"`` if unknown.

    Args:
        tag: 8 hexadecimal digits.
    """
    try:
        return str(dictionary_VR(int(tag, 16))).split(" or ")[0]
    except KeyError:
        return "UN"


@cache
def tags_of_vr(vr: str) -> tuple[int, ...]:
    """All standard attributes of a value representation, ascending."""
    return tuple(sorted(tag for tag in keyword_dict.values() if dictionary_VR(tag) == vr))
