"""The manners of known servers by name, and what is known of each in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from dicomweb_io.testing.manners_archives import (
    DCM4CHEE,
    DCM4CHEE_OLDER,
    DICOMCLOUD,
    DICOMCLOUD_API,
    DICOMCLOUD_OLDER,
    DICOMCLOUD_SHORT,
    OFFSET_IGNORED,
    ORTHANC,
    ORTHANC_NEWER,
    STRICT,
)
from dicomweb_io.testing.manners_clouds import AZURE, GOOGLE, GOOGLE_LAGGING, HEALTHIMAGING
from dicomweb_io.testing.manners_model import Evidence, Manners

GENERIC = Manners("generic", "What PS3.18 says, and nothing else")

MANNERS: Mapping[str, Manners] = MappingProxyType(
    {
        one.name: one
        for one in (
            GENERIC,
            ORTHANC,
            DCM4CHEE,
            DICOMCLOUD,
            DICOMCLOUD_API,
            DICOMCLOUD_SHORT,
            GOOGLE,
            AZURE,
            HEALTHIMAGING,
            STRICT,
            OFFSET_IGNORED,
        )
    }
)
"""The manners of today's servers by name."""

VARIANTS: Mapping[str, Manners] = MappingProxyType(
    {one.name: one for one in (ORTHANC_NEWER, DCM4CHEE_OLDER, DICOMCLOUD_OLDER, GOOGLE_LAGGING)}
)
"""Other releases of the same servers: those whose faults were corrected since, or that were only read in source."""


def manners_of(value: str | Manners) -> Manners:
    """The manners of a name, or the manners themselves.

    Raises:
        ValueError: If no manners have this name.
    """
    if isinstance(value, Manners):
        return value
    found = MANNERS.get(value) or VARIANTS.get(value)
    if found is None:
        raise ValueError(f"there are no manners {value!r}; there are: {', '.join([*MANNERS, *VARIANTS])}")
    return found


def evidence_table() -> list[tuple[str, str, object, Evidence, str]]:
    """Every fact as a row of server, field, value, evidence and source, for documentation."""
    return [
        (one.name, name, fact.value, fact.evidence, fact.source)
        for one in MANNERS.values()
        for name, fact in one.facts.items()
    ]


def meanings() -> dict[str, str]:
    """What each field of `Manners` means, as its documentation says."""
    entries = re.findall(
        r"^ {8}(\w[\w, ]*): (.*?)(?=\n {8}\w|\n\n|\Z)", Manners.__doc__ or "", re.DOTALL | re.MULTILINE
    )
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def shown(value: object) -> str:
    """A value of a field in one line, always the same for equal values."""
    if isinstance(value, (frozenset, set)):
        return ", ".join(sorted(map(str, value))) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {one}" for key, one in sorted(value.items())) or "none"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return ", ".join(f"{name} {one}" for name, one in zip(value._fields, value, strict=True))
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if value not in (None, "") else "none"


def describe(value: str | Manners) -> str:
    """What is known of a server, as text: each fact with its evidence, what is assumed, and what is not shown.

    Raises:
        ValueError: If no manners have this name.
    """
    manners, explained = manners_of(value), meanings()
    standard = {item.name: getattr(GENERIC, item.name) for item in fields(Manners)}
    lines = [f"{manners.name}: {manners.title}", ""]
    groups: dict[str, list[str]] = {}
    for name, fact in manners.facts.items():
        usual = "as the standard" if fact.value == standard[name] else f"the standard: {shown(standard[name])}"
        groups.setdefault(fact.evidence, []).extend(
            (f"  {name} = {shown(fact.value)} ({usual})", f"      {explained[name]}", f"      source: {fact.source}")
        )
    for evidence in ("measured", "read in source", "documented", "seen", "unverified"):
        if evidence in groups:
            lines += [f"{evidence.capitalize()}:", *groups[evidence], ""]
    assumed = [name for name in standard if name not in ("name", "title", "facts", "gaps", *manners.facts)]
    if manners.facts:
        lines += ["Not known, so as the standard says:", "  " + ", ".join(assumed), ""]
    if manners.gaps:
        lines += ["Not shown here:", *(f"  - {gap}" for gap in manners.gaps), ""]
    return "\n".join(lines)


def as_data(value: str | Manners) -> dict[str, Any]:
    """The same as data for JSON: name, title, facts (value, evidence, source) and gaps."""
    manners = manners_of(value)
    return {
        "name": manners.name,
        "title": manners.title,
        "facts": {
            name: {"value": shown(fact.value), "evidence": fact.evidence, "source": fact.source}
            for name, fact in manners.facts.items()
        },
        "gaps": list(manners.gaps),
    }
