"""Attributes by keyword and tag, and where they belong (PS3.6 and PS3.18 section 8.3.4)."""

from __future__ import annotations

import difflib
import re
import sys
from functools import cache, lru_cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from dicomweb_io.dicom.errors import InvalidIdentifierError

BINARY_VRS = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))
INTEGER_VRS = frozenset(("IS", "SL", "SS", "SV", "UL", "US", "UV"))
DECIMAL_VRS = frozenset(("DS", "FD", "FL"))
WILDCARD_VRS = frozenset(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"))

_TAG = re.compile(r"[0-9A-Fa-f]{8}\Z")


Entry = tuple[str, str, str, str, str]
"""VR, VM, name, whether it is retired, and keyword."""


@cache
def _dictionary() -> dict[int, Entry]:
    """The data dictionary of PS3.6 that comes with pydicom.

    To import pydicom takes longer than the rest of a command; its file with the dictionary alone takes little.
    """
    package = find_spec("pydicom")
    path = Path(str(package and package.origin)).with_name("_dicom_dict.py")
    spec = spec_from_file_location("_dicom_dict", path)
    module: Any = None
    if "pydicom" not in sys.modules and path.is_file() and spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    if not hasattr(module, "DicomDictionary"):
        from pydicom import datadict as module
    entries: dict[int, Entry] = module.DicomDictionary
    return entries


@cache
def _keywords() -> dict[str, int]:
    return {entry[4]: tag for tag, entry in _dictionary().items()}


def entry_of(tag: int) -> Entry:
    """The entry of a standard attribute in the data dictionary of PS3.6.

    Raises:
        KeyError: If it has no such tag.
    """
    entry = _dictionary().get(tag)
    if entry is None:
        if tag >> 16 & 1:
            raise KeyError(f"{tag:08X} is a private tag")
        # Of groups that repeat, such as overlays, the dictionary has patterns.
        from pydicom import datadict

        entry = datadict.get_entry(tag)
    return entry


def lookup_keyword(tag: int | str) -> str:
    """The keyword of a standard attribute.

    Args:
        tag: Its tag as a number or as 8 hexadecimal digits.

    Raises:
        KeyError: If the data dictionary of PS3.6 has no such tag.
    """
    number = int(tag, 16) if isinstance(tag, str) else int(tag)
    keyword = entry_of(number)[4]
    if not keyword:
        raise KeyError(f"{number:08X} has no keyword")
    return keyword


def lookup_tag(keyword: str) -> str:
    """The tag of a standard attribute as 8 upper-case hexadecimal digits.

    Raises:
        KeyError: If the data dictionary of PS3.6 has no such keyword.
    """
    number = _keywords().get(keyword) if keyword else None
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
    if not isinstance(attribute, str):
        raise TypeError(f"an attribute is the text of a keyword or of 8 hexadecimal digits, not {attribute!r}")
    if not attribute:
        raise InvalidIdentifierError("an attribute is empty (expected a keyword or 8 hexadecimal digits)")
    tags = []
    for name in attribute.split("."):
        if _TAG.match(name):
            tags.append(name.upper())
            continue
        number = _keywords().get(name) if name else None
        if number is None:
            near = difflib.get_close_matches(name, _keywords(), n=1, cutoff=0.75)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidIdentifierError(f"{name!r} is neither a DICOM keyword nor 8 hexadecimal digits{hint}")
        tags.append(f"{number:08X}")
    return tuple(tags)


def is_attribute(name: object) -> bool:
    """Whether something is the keyword, the tag or the dotted path of an attribute."""
    try:
        return isinstance(name, str) and bool(resolve(name))
    except ValueError:
        return False


@lru_cache(maxsize=4096)
def vr_of(tag: str) -> str:
    """The value representation of a tag by PS3.6, the first where several are allowed; ``"UN"`` if unknown.

    Args:
        tag: 8 hexadecimal digits.
    """
    try:
        return entry_of(int(tag, 16))[0].split(" or ")[0]
    except KeyError:
        return "UN"


@cache
def tags_of_vr(vr: str) -> tuple[int, ...]:
    """All standard attributes of a value representation, ascending."""
    return tuple(sorted(tag for tag in _keywords().values() if entry_of(tag)[0] == vr))
