"""Structured reports as HTML text (PS3.18 section 8.7.4, for SR documents of PS3.3 C.17)."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_DEEPEST = 32
_TEXTS = {
    "TEXT": "TextValue",
    "DATETIME": "DateTime",
    "DATE": "Date",
    "TIME": "Time",
    "PNAME": "PersonName",
    "UIDREF": "UID",
}


def is_report(dataset: Dataset) -> bool:
    """Whether a dataset is an SR document: it has a content tree."""
    return dataset.get("ValueType") == "CONTAINER" and "ConceptNameCodeSequence" in dataset


def render_report(dataset: Dataset) -> str:
    """The content tree of an SR document as a self-contained HTML page; everything in it is escaped.

    Args:
        dataset: The document.

    Raises:
        ValueError: If it is none.
    """
    if not is_report(dataset):
        raise ValueError("the instance is no structured report")
    title = escape(_concept(dataset) or "Report")
    facts = (
        ("Patient", dataset.get("PatientName", "")),
        ("Patient ID", dataset.get("PatientID", "")),
        ("Study date", dataset.get("StudyDate", "")),
        ("Completion", dataset.get("CompletionFlag", "")),
        ("Verification", dataset.get("VerificationFlag", "")),
    )
    rows = "".join(f"<tr><th>{name}</th><td>{escape(str(value))}</td></tr>" for name, value in facts if value)
    body = "".join(_children(dataset, 2))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n'
        f"<body><h1>{title}</h1>\n<table>{rows}</table>\n{body}</body></html>\n"
    )


def _children(item: Dataset, depth: int) -> Iterator[str]:
    for child in item.get("ContentSequence") or ():
        if depth > _DEEPEST:
            yield "<p>…</p>"
            return
        yield from _item(child, depth)


def _item(item: Dataset, depth: int) -> Iterator[str]:
    name = escape(_concept(item))
    kind = str(item.get("ValueType", ""))
    if kind == "CONTAINER":
        level = min(depth, 6)
        yield f"<section><h{level}>{name}</h{level}>\n" if name else "<section>\n"
        yield from _children(item, depth + 1)
        yield "</section>\n"
        return
    label = f"<b>{name}:</b> " if name else ""
    yield f"<div>{label}{escape(_value(item, kind))}\n"
    yield from _children(item, depth + 1)
    yield "</div>\n"


def _value(item: Dataset, kind: str) -> str:
    if kind in _TEXTS:
        return str(item.get(_TEXTS[kind], ""))
    if kind == "CODE":
        return _meaning(item.get("ConceptCodeSequence"))
    if kind == "NUM":
        measured = item.get("MeasuredValueSequence") or ()
        texts = [
            f"{value.get('NumericValue', '')} {_meaning(value.get('MeasurementUnitsCodeSequence'))}".strip()
            for value in measured
        ]
        return ", ".join(texts)
    if kind in ("IMAGE", "COMPOSITE", "WAVEFORM"):
        return ", ".join(
            str(reference.get("ReferencedSOPInstanceUID", "")) for reference in item.get("ReferencedSOPSequence") or ()
        )
    if kind in ("SCOORD", "SCOORD3D", "TCOORD"):
        shape = item.get("GraphicType") or item.get("TemporalRangeType") or ""
        return f"{shape} {item.get('GraphicData', '')}".strip()
    return "" if "ReferencedContentItemIdentifier" not in item else f"see {item.ReferencedContentItemIdentifier}"


def _concept(item: Dataset) -> str:
    return _meaning(item.get("ConceptNameCodeSequence"))


def _meaning(codes: Any) -> str:
    if not codes:
        return ""
    return str(codes[0].get("CodeMeaning") or codes[0].get("CodeValue") or "")
