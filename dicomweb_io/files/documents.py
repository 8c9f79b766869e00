"""Readable pages of objects that are no images, as self-contained HTML without scripts.

- Structured reports and key object selections (PS3.3 section C.17): the content tree as sections, lists and tables of
  measurements. References say what they refer to, where the folder knows it.
- Presentation states (PS3.3 section A.33): the images they refer to, annotations, and how images are shown.
- Encapsulated documents (PS3.3 section A.45): a PDF embedded, a CDA document as text, models in numbers.

Everything that comes from an object is escaped by the template.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element, ParseError, indent, tostring

from dicomweb_io.dicom.errors import RenderingError
from dicomweb_io.dicom.uids import name_of_uid
from dicomweb_io.dicom.values import iso_date, iso_date_time, iso_time, readable_name

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Describe = Callable[[str, str], str | None]
"""What an instance is, in words, by its SOP Instance UID and the UID of the study that refers to it, if it is known."""

_MAX_DEPTH = 32
_MAX_ITEMS = 50_000
_MAX_EMBEDDED = 32 * 1024 * 1024
_MAX_TEXT = 1024 * 1024
_MAX_PARSED = 16 * 1024 * 1024
_MAX_COORDINATES = 8
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_UNITS = {"mm2": "mm²", "mm3": "mm³", "cm2": "cm²", "cm3": "cm³", "m2": "m²", "Cel": "°C"}
_UNIT = re.compile(r"[A-Za-z%][A-Za-z0-9%/.]*\Z")

# The others (containment, context of the observation, modifiers) are clear from the label and the place.
_RELATIONS = {
    "HAS ACQ CONTEXT": "acquired with",
    "HAS PROPERTIES": "has properties",
    "INFERRED FROM": "inferred from",
    "SELECTED FROM": "selected from",
}
_REFERENCES = ("IMAGE", "COMPOSITE", "WAVEFORM")


@dataclass
class Item:
    """A content item of a report, or a line of another page.

    Attributes:
        label: What it is.
        text: Its value; a measurement's number.
        unit: The unit of a measurement.
        note: What more there is to know of the value, such as its code.
        relation: How it relates to what it stands below, in words.
        kind: How it is shown: ``"section"``, ``"measurement"``, ``"reference"``, ``"context"`` (in small type), ``""``.
        running: Whether its children are read as one text.
        below: What stands below it, groups of items of one kind.
        anchor: Its place in the tree, such as ``"1.2.3"``, if other items refer to it.
        target: The place of the item that it refers to.
    """

    label: str
    text: str = ""
    unit: str = ""
    note: str = ""
    relation: str = ""
    kind: str = ""
    running: bool = False
    below: list[tuple[str, list[Item]]] = field(default_factory=list)
    anchor: str = ""
    target: str = ""


@dataclass
class Page:
    """What the template shows.

    Attributes:
        title: The heading.
        flags: States of the document, such as ``"verified"``.
        facts: Groups of names and values.
        below: The content, groups of items of one kind.
        document: A data URI of a document to show within the page.
        download: A data URI of a document, and the name of a file for it.
        source: The text of a document.
    """

    title: str
    flags: list[str] = field(default_factory=list)
    facts: list[list[tuple[str, str]]] = field(default_factory=list)
    below: list[tuple[str, list[Item]]] = field(default_factory=list)
    document: str = ""
    download: tuple[str, str] | None = None
    source: str = ""


def is_report(dataset: Dataset) -> bool:
    """Whether a dataset is an SR document: it has a content tree."""
    return dataset.get("ValueType") == "CONTAINER" and "ConceptNameCodeSequence" in dataset


def is_presentation_state(dataset: Dataset) -> bool:
    """Whether a dataset says how images are shown."""
    return "Presentation State" in name_of_uid(_text(dataset, "SOPClassUID"))


def readable_page(dataset: Dataset, describe: Describe = lambda instance, study: None) -> str:
    """An object that is no image as a self-contained HTML page; everything in it is escaped.

    Args:
        dataset: A report, a key object selection, a presentation state or an encapsulated document.
        describe: Says what the instances are that it refers to.

    Raises:
        RenderingError: If it is none of these.
    """
    refer = _References(describe, _text(dataset, "StudyInstanceUID"))
    if is_report(dataset):
        page = _report(dataset, refer)
    elif "EncapsulatedDocument" in dataset:
        page = _encapsulated(dataset, refer)
    elif is_presentation_state(dataset):
        page = _presentation_state(dataset, refer)
    else:
        raise RenderingError("the instance is no report, presentation state or document")
    page.facts = [[(name, text) for name, text in group if text] for group in (*_who_and_when(dataset), *page.facts)]
    return str(_template().render(page=page))


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).parents[1] / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("document.html")


# Values ---------------------------------------------------------------------------------------------------------------


def _values(dataset: Dataset, keyword: str) -> list[str]:
    """The values of an attribute as text, as they are in the file; none if it is absent or cannot be read."""
    try:
        value = dataset.get(keyword)
        values = value if isinstance(value, MutableSequence) else [value]
        return [_as_written(one).strip(" \0") for one in values if one is not None]
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError):
        return []


def _as_written(value: Any) -> str:
    """A value as text; a number as the file writes it, a binary one with the digits that it has."""
    original = getattr(value, "original_string", None)
    if isinstance(original, str):
        return original
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _text(dataset: Dataset, keyword: str) -> str:
    """The text of an attribute, several values with commas between; empty if it is absent or cannot be read."""
    return ", ".join(_values(dataset, keyword))


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; none if it is absent or no sequence."""
    from pydicom.dataset import Dataset

    try:
        value = dataset.get(keyword)
        return [item for item in value or () if isinstance(item, Dataset)]
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError):
        return []


def _code(dataset: Dataset, keyword: str) -> str:
    """The meaning of a code."""
    return next((_meaning(item) for item in _items(dataset, keyword)), "")


def _meaning(code: Dataset) -> str:
    values = (_text(code, keyword) for keyword in ("CodeMeaning", "CodeValue", "LongCodeValue", "URNCodeValue"))
    return next((value for value in values if value), "")


def _code_note(dataset: Dataset, keyword: str) -> str:
    for code in _items(dataset, keyword):
        return f"{_text(code, 'CodeValue')} {_text(code, 'CodingSchemeDesignator')}".strip()
    return ""


def readable_date(text: str) -> str:
    """A date as it is written in a letter: ``29 February 2024``; what is no date is returned as it is."""
    return _letter_date(iso_date(text) or "") or text


def readable_time(text: str) -> str:
    """A time as ``13:45:10``; what is no time is returned as it is."""
    iso = iso_time(text)
    return text if iso is None else iso.rstrip("0") if "." in iso else iso


def readable_moment(text: str) -> str:
    """A date-time as ``29 February 2024, 13:45:10 (UTC+01:00)``, as precise as it is."""
    iso = iso_date_time(text)
    if iso is None:
        return text
    date, _, clock = iso.partition("T")
    match = re.match(r"([0-9:.]*)([+-].*)?", clock)
    time, offset = (match[1], match[2]) if match else ("", None)
    time = time.rstrip("0") if "." in time else time
    return ", ".join(part for part in (_letter_date(date), time) if part) + (f" (UTC{offset})" if offset else "")


def _letter_date(iso: str) -> str:
    if not iso:
        return ""
    year, month, day = (iso.split("-") + ["", ""])[:3]
    return " ".join(part for part in (day.lstrip("0"), _MONTHS[int(month) - 1] if month else "", year) if part)


def _date_and_time(dataset: Dataset, prefix: str) -> str:
    date, time = _text(dataset, f"{prefix}Date"), _text(dataset, f"{prefix}Time")
    return ", ".join(part for part in (readable_date(date), readable_time(time)) if part)


def _names(dataset: Dataset, keyword: str) -> str:
    return " and ".join(readable_name(name) for name in _values(dataset, keyword))


def _who_and_when(dataset: Dataset) -> list[list[tuple[str, str]]]:
    """The patient and the study that an object belongs to."""
    sex = {"M": "male", "F": "female", "O": "other"}
    return [
        [
            ("Patient", _names(dataset, "PatientName")),
            ("Patient ID", _text(dataset, "PatientID")),
            ("Born", readable_date(_text(dataset, "PatientBirthDate"))),
            ("Sex", sex.get(_text(dataset, "PatientSex"), _text(dataset, "PatientSex"))),
        ],
        [
            ("Study", _text(dataset, "StudyDescription")),
            ("Date of the study", _date_and_time(dataset, "Study")),
            ("Accession number", _text(dataset, "AccessionNumber")),
            ("Referring physician", _names(dataset, "ReferringPhysicianName")),
            ("Institution", _text(dataset, "InstitutionName")),
        ],
    ]


class _References:
    """Says what an object refers to.

    Args:
        describe: See `Describe`.
        study: The object's study.
    """

    def __init__(self, describe: Describe, study: str) -> None:
        self._describe = describe
        self._study = study

    def item(self, reference: Dataset, **more: Any) -> Item:
        """A reference to an instance, its frames, segments or channels."""
        uid = _text(reference, "ReferencedSOPInstanceUID")
        known = self._describe(uid, self._study) if uid else None
        text = known or f"{describe_kind(_text(reference, 'ReferencedSOPClassUID'))} {uid}".strip()
        channels = _values(reference, "ReferencedWaveformChannels")
        for name, numbers in (
            ("frame", _values(reference, "ReferencedFrameNumber")),
            ("segment", _values(reference, "ReferencedSegmentNumber")),
            ("channel", ["/".join(pair) for pair in zip(channels[::2], channels[1::2], strict=False)]),
        ):
            if numbers:
                text += f", {name}{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
        for state in _items(reference, "ReferencedSOPSequence"):
            text += f", shown with {self.item(state).text}"
        return Item(more.pop("label", ""), text, note=uid if known else "", kind="reference", **more)

    def group(self, datasets: Iterable[Dataset]) -> list[tuple[str, list[Item]]]:
        """References as a list."""
        found = [self.item(dataset) for dataset in datasets]
        return [("reference", found)] if found else []


def describe_kind(sop_class: str) -> str:
    """What objects of a SOP Class are, in words."""
    return name_of_uid(sop_class).replace(" Image", " image") if sop_class else "object"


# Reports --------------------------------------------------------------------------------------------------------------


def _report(dataset: Dataset, refer: _References) -> Page:
    flags = []
    for keyword in ("CompletionFlag", "VerificationFlag", "PreliminaryFlag"):
        if flag := _text(dataset, keyword).lower():
            more = _text(dataset, "CompletionFlagDescription") if keyword == "CompletionFlag" else ""
            flags.append(f"{flag}: {more}" if more else flag)
    authors = _items(dataset, "AuthorObserverSequence")
    facts = [
        ("Written", _date_and_time(dataset, "Content")),
        *(("Author", _names(author, "PersonName") or _text(author, "StationName")) for author in authors),
    ]
    for observer in _items(dataset, "VerifyingObserverSequence"):
        parts = (
            _names(observer, "VerifyingObserverName"),
            _text(observer, "VerifyingOrganization"),
            readable_moment(_text(observer, "VerificationDateTime")),
        )
        facts.append(("Verified by", ", ".join(part for part in parts if part)))
    tree = _Tree(refer)
    title = _code(dataset, "ConceptNameCodeSequence") or "Report"
    root = Item(title, anchor="1")
    tree.places["1"] = root
    root.below = tree.below(dataset, "1", 1)
    tree.resolve()
    page = Page(title, flags, [facts], root.below)
    for keyword, label in (
        ("PredecessorDocumentsSequence", "Predecessors"),
        ("IdenticalDocumentsSequence", "The same document elsewhere"),
    ):
        references = [
            reference
            for study in _items(dataset, keyword)
            for series in _items(study, "ReferencedSeriesSequence")
            for reference in _items(series, "ReferencedSOPSequence")
        ]
        if references:
            page.below = [*page.below, ("section", [Item(label, kind="section", below=refer.group(references))])]
    return page


class _Tree:
    """Makes items of a content tree.

    Args:
        refer: Says what references refer to.

    Attributes:
        places: The items by their place in the tree.
    """

    def __init__(self, refer: _References) -> None:
        self._refer = refer
        self.places: dict[str, Item] = {}

    def below(self, dataset: Dataset, place: str, depth: int) -> list[tuple[str, list[Item]]]:
        """The items below one, those of one kind that follow each other together."""
        items: list[Item] = []
        running = _text(dataset, "ContinuityOfContent") == "CONTINUOUS"
        for number, child in enumerate(_items(dataset, "ContentSequence"), start=1):
            if depth > _MAX_DEPTH or len(self.places) >= _MAX_ITEMS:
                items.append(Item("", "… more is not shown here"))
                break
            items.extend(self._item(child, f"{place}.{number}", depth))
        groups = [(kind, list(members)) for kind, members in groupby(items, key=lambda item: item.kind)]
        # One number is no table, and none belongs into running text.
        return [
            ("" if kind == "measurement" and (running or len(members) < 2) else kind, members)
            for kind, members in groups
        ]

    def _item(self, dataset: Dataset, place: str, depth: int) -> Iterator[Item]:
        kind = _text(dataset, "ValueType")
        label = _code(dataset, "ConceptNameCodeSequence")
        relation = _RELATIONS.get(_text(dataset, "RelationshipType"), "")
        references = _items(dataset, "ReferencedSOPSequence") if kind in _REFERENCES else []
        made: list[Item] = []
        if references:
            made = [self._refer.item(reference, label=label, relation=relation) for reference in references]
        else:
            made = [Item(label, *_value(dataset, kind), relation=relation)]
        item = made[0]
        self.places[place] = item
        if kind == "CONTAINER":
            item.kind = "section"
            item.running = _text(dataset, "ContinuityOfContent") == "CONTINUOUS"
        elif kind == "NUM":
            item.kind = "measurement"
        elif _text(dataset, "RelationshipType") == "HAS OBS CONTEXT" and not references:
            item.kind = "context"
        identifier = _values(dataset, "ReferencedContentItemIdentifier")
        if identifier:
            item.target = ".".join(identifier)
        item.below = self.below(dataset, place, depth + 1)
        yield from made

    def resolve(self) -> None:
        """Gives items that refer to others their names, and those an anchor."""
        for item in self.places.values():
            if not item.target:
                continue
            target = self.places.get(item.target)
            if target is None:
                item.text, item.target = f"item {item.target}, which is not there", ""
            else:
                target.anchor = item.target
                item.text = target.label or target.text or f"item {item.target}"


def _value(dataset: Dataset, kind: str) -> tuple[str, str, str]:
    """The value of a content item, its unit, and a note."""
    if kind == "CODE":
        return _code(dataset, "ConceptCodeSequence"), "", _code_note(dataset, "ConceptCodeSequence")
    if kind == "NUM":
        return _measured(dataset)
    if kind == "UIDREF":
        uid = _text(dataset, "UID")
        return (name_of_uid(uid), "", uid) if name_of_uid(uid) != uid else (uid, "", "")
    make = _VALUES.get(kind)
    return ("" if make is None else make(dataset), "", "")


def _measured(dataset: Dataset) -> tuple[str, str, str]:
    texts, unit, note = [], "", ""
    for value in _items(dataset, "MeasuredValueSequence"):
        texts.append(_text(value, "NumericValue"))
        for code in _items(value, "MeasurementUnitsCodeSequence"):
            sign, note = _text(code, "CodeValue"), _meaning(code)
            unit = _UNITS.get(sign, sign) if _UNIT.match(sign) else "" if sign == "1" else note
    qualifier = _code(dataset, "NumericValueQualifierCodeSequence")
    if not texts or not any(texts):
        return qualifier or "no value", "", ""
    return f"{', '.join(texts)} ({qualifier})" if qualifier else ", ".join(texts), unit, note if note != unit else ""


def _points(numbers: list[str], size: int) -> str:
    points = [f"({', '.join(numbers[at : at + size])})" for at in range(0, len(numbers) - size + 1, size)]
    more = f" … {len(points) - _MAX_COORDINATES:,} more" if len(points) > _MAX_COORDINATES else ""
    return " ".join(points[:_MAX_COORDINATES]) + more


def _region(dataset: Dataset, size: int) -> str:
    numbers = _values(dataset, "GraphicData")
    shape = _text(dataset, "GraphicType").lower()
    count = len(numbers) // size
    text = f"{shape} of {count:,} points" if count > 1 and shape in ("polyline", "polygon", "multipoint") else shape
    frame = _text(dataset, "ReferencedFrameOfReferenceUID")
    where = f", in frame of reference {frame}" if frame else ""
    return f"{text} {_points(numbers, size)}{where}".strip()


def _span(dataset: Dataset) -> str:
    shape = _text(dataset, "TemporalRangeType").lower()
    samples, offsets = _values(dataset, "ReferencedSamplePositions"), _values(dataset, "ReferencedTimeOffsets")
    moments = [readable_moment(text) for text in _values(dataset, "ReferencedDateTime")]
    between = " to " if shape == "segment" else ", "
    parts = [
        f"samples {between.join(samples)}" if samples else "",
        f"{between.join(offsets)} s" if offsets else "",
        between.join(moments),
    ]
    return ": ".join([shape, *(part for part in parts if part)])


def _tabulated(dataset: Dataset) -> str:
    for table in _items(dataset, "TabulatedValuesSequence"):
        return f"{_text(table, 'NumberOfTableRows')} rows and {_text(table, 'NumberOfTableColumns')} columns"
    return ""


_VALUES: Mapping[str, Callable[[Any], str]] = {
    "TEXT": lambda item: _text(item, "TextValue"),
    "DATE": lambda item: readable_date(_text(item, "Date")),
    "TIME": lambda item: readable_time(_text(item, "Time")),
    "DATETIME": lambda item: readable_moment(_text(item, "DateTime")),
    "PNAME": lambda item: _names(item, "PersonName"),
    "SCOORD": lambda item: _region(item, 2),
    "SCOORD3D": lambda item: _region(item, 3),
    "TCOORD": _span,
    "TABLE": _tabulated,
}


# Presentation states --------------------------------------------------------------------------------------------------


def _presentation_state(dataset: Dataset, refer: _References) -> Page:
    label = _text(dataset, "ContentDescription") or _text(dataset, "ContentLabel")
    facts = [
        ("Kind", name_of_uid(_text(dataset, "SOPClassUID"))),
        ("Label", _text(dataset, "ContentLabel")),
        ("Made", _date_and_time(dataset, "PresentationCreation")),
        ("Made by", _names(dataset, "ContentCreatorName")),
    ]
    images = [
        image
        for series in _items(dataset, "ReferencedSeriesSequence")
        for image in _items(series, "ReferencedImageSequence")
    ]
    sections = (
        ("Images", refer.group(images)),
        ("Annotations", _group(_annotations(dataset))),
        ("How they are shown", _group(_shown(dataset))),
    )
    below = [Item(name, kind="section", below=groups) for name, groups in sections if groups]
    return Page(label or "Presentation state", [], [facts], [("section", below)])


def _group(items: Iterable[Item]) -> list[tuple[str, list[Item]]]:
    found = list(items)
    return [("", found)] if found else []


def _annotations(dataset: Dataset) -> Iterator[Item]:
    for annotation in _items(dataset, "GraphicAnnotationSequence"):
        layer = _text(annotation, "GraphicLayer")
        for text in _items(annotation, "TextObjectSequence"):
            yield Item(f"Text in layer {layer}", _text(text, "UnformattedTextValue"))
        for graphic in (*_items(annotation, "GraphicObjectSequence"), *_items(annotation, "CompoundGraphicSequence")):
            shape = _text(graphic, "GraphicType") or _text(graphic, "CompoundGraphicType")
            yield Item(f"Shape in layer {layer}", f"{shape.lower()} {_points(_values(graphic, 'GraphicData'), 2)}")


def _shown(dataset: Dataset) -> Iterator[Item]:
    for window in _items(dataset, "SoftcopyVOILUTSequence"):
        if center := _text(window, "WindowCenter"):
            name = _text(window, "WindowCenterWidthExplanation")
            yield Item(
                "Window", f"center {center}, width {_text(window, 'WindowWidth')}" + (f" ({name})" if name else "")
            )
    if (turned := _text(dataset, "ImageRotation")) not in ("", "0"):
        yield Item("Turned", f"by {turned} degrees clockwise")
    if _text(dataset, "ImageHorizontalFlip") == "Y":
        yield Item("Mirrored", "left and right are exchanged")
    if _text(dataset, "PresentationLUTShape") == "INVERSE":
        yield Item("Inverted", "bright and dark are exchanged")
    for area in _items(dataset, "DisplayedAreaSelectionSequence"):
        corners = [_text(area, f"DisplayedArea{corner}HandCorner") for corner in ("TopLeft", "BottomRight")]
        zoom = _text(area, "PresentationPixelMagnificationRatio")
        mode = _text(area, "PresentationSizeMode").lower()
        text = f"from ({corners[0]}) to ({corners[1]}), {mode}" + (f", magnified {zoom} times" if zoom else "")
        yield Item("Area", text)
    if shutter := _text(dataset, "ShutterShape"):
        yield Item("Shutter", shutter.lower())


# Encapsulated documents -----------------------------------------------------------------------------------------------

_PLAIN_TYPES = ("model/mtl", "application/json", "application/rtf")


def document_of(dataset: Dataset) -> tuple[str, bytes]:
    """The media type and the bytes of an encapsulated document, without padding."""
    media_type = _text(dataset, "MIMETypeOfEncapsulatedDocument").lower() or "application/octet-stream"
    content = bytes(dataset.EncapsulatedDocument)
    length = dataset.get("EncapsulatedDocumentLength")
    return media_type, content[:length] if length else content


def _encapsulated(dataset: Dataset, refer: _References) -> Page:
    media_type, content = document_of(dataset)
    kind = name_of_uid(_text(dataset, "SOPClassUID"))
    title = _text(dataset, "DocumentTitle") or _code(dataset, "ConceptNameCodeSequence") or kind
    facts = [
        ("Document", f"{media_type}, {len(content):,} bytes"),
        ("Written", _date_and_time(dataset, "Content")),
        ("Made", readable_moment(_text(dataset, "AcquisitionDateTime"))),
    ]
    page = Page(title, facts=[facts])
    if flag := _text(dataset, "VerificationFlag").lower():
        page.flags.append(flag)
    suffix = {"application/pdf": "pdf", "text/xml": "xml", "model/stl": "stl", "model/obj": "obj", "model/mtl": "mtl"}
    if len(content) <= _MAX_EMBEDDED:
        encoded = base64.b64encode(content).decode("ascii")
        if media_type == "application/pdf":
            page.document = f"data:application/pdf;base64,{encoded}"
        data = page.document or f"data:application/octet-stream;base64,{encoded}"
        page.download = data, f"document.{suffix.get(media_type, 'bin')}"
    if media_type in ("text/xml", "application/xml") or media_type.endswith("+xml"):
        page.below, page.source = _clinical_document(content)
    elif media_type == "model/stl":
        facts.append(("Triangles", _triangles(content)))
    elif media_type == "model/obj":
        facts.append(("Vertices and faces", f"{_starting(content, b'v '):,} and {_starting(content, b'f '):,}"))
    elif media_type.startswith("text/") or media_type in _PLAIN_TYPES:
        page.source = content[:_MAX_TEXT].decode("utf-8", "replace")
    sources = _items(dataset, "SourceInstanceSequence")
    if sources:
        page.below.append(("section", [Item("Made from", kind="section", below=refer.group(sources))]))
    return page


def _starting(content: bytes, word: bytes) -> int:
    return sum(line.startswith(word) for line in content.splitlines())


def _triangles(content: bytes) -> str:
    """The number of triangles in a binary STL file; in a text, of its facets."""
    if len(content) >= 84 and (count := struct.unpack_from("<I", content, 80)[0]) * 50 + 84 == len(content):
        return f"{count:,}"
    return f"{content.count(b'endfacet'):,}"


def _clinical_document(content: bytes) -> tuple[list[tuple[str, list[Item]]], str]:
    """The narrative text of a CDA document as sections, and its source."""
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    plain = content[:_MAX_TEXT].decode("utf-8", "replace")
    if len(content) > _MAX_PARSED:
        return [], plain
    try:
        root = fromstring(content)
        sections = [
            Item(_narrative(_child(section, "title")), _narrative(_child(section, "text")), kind="section")
            for section in root.iter()
            if _tag(section) == "section"
        ]
        indent(root)
        source = tostring(root, encoding="unicode")[:_MAX_TEXT]
    except (ParseError, DefusedXmlException, ValueError, LookupError, RecursionError):
        return [], plain
    return ([("section", sections)] if sections else []), source


def _tag(element: Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _child(element: Element, name: str) -> Element | None:
    return next((child for child in element if _tag(child) == name), None)


def _narrative(element: Element | None) -> str:
    """The text of an element, in lines."""
    if element is None:
        return ""
    parts: list[str] = []
    _collect(element, parts, 0)
    lines = (" ".join(line.split()).removesuffix(" |") for line in "".join(parts).split("\n"))
    return "\n".join(line for line in lines if line)


def _collect(element: Element, parts: list[str], depth: int) -> None:
    tag = _tag(element)
    if depth > _MAX_DEPTH:
        return
    starts = {"paragraph": "\n", "tr": "\n", "item": "\n• ", "br": "\n", "caption": "\n", "list": "\n", "table": "\n"}
    parts.append(starts.get(tag, ""))
    # Line breaks of the XML are no line breaks of the text.
    parts.append(" ".join((element.text or "").split("\n")))
    for child in element:
        _collect(child, parts, depth + 1)
        parts.append(" ".join((child.tail or "").split("\n")))
    parts.append({"td": " | ", "th": " | ", "paragraph": "\n", "tr": "\n", "item": "\n"}.get(tag, ""))
