"""Rendered resources of a folder (PS3.18 sections 8.3.5 and 10.4.1.1.3): images, reports and encapsulated documents.

Structured reports (PS3.3 section C.17) become HTML (PS3.18 section 8.7.4); everything in it is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from dicomweb_io.client import MediaTypes
from dicomweb_io.dicom.errors import RenderingError, RenderingUnavailableError
from dicomweb_io.dicom.media_types import MediaType, accepted_for
from dicomweb_io.dicom.pixels import with_one_frame
from dicomweb_io.dicom.rendering import IMAGE_TYPES, RenderingOptions, render_images
from dicomweb_io.elements import RenderedImage, Resource
from dicomweb_io.errors import FileClientError
from dicomweb_io.files.index import IndexedFile
from dicomweb_io.files.retrieve import FolderReader, PixelAccess, reference_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


_MAX_FRAMES = 2000
_MAX_DEPTH = 32
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
        RenderingError: If it is not one.
    """
    if not is_report(dataset):
        raise RenderingError("the instance is not a structured report")
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
        if depth > _MAX_DEPTH:
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


class FolderRenderer:
    """Renders files of a folder.

    Args:
        reader: Opens the files.
        pixels: Reads their frames.
    """

    def __init__(self, reader: FolderReader, pixels: PixelAccess) -> None:
        self._reader = reader
        self._pixels = pixels

    def render(
        self,
        files: Sequence[IndexedFile],
        resource: Resource,
        media_types: MediaTypes | None,
        params: Mapping[str, Any] | None,
        thumbnail: bool,
    ) -> RenderedImage:
        """Renders a resource.

        Args:
            files: The files of the resource. The first of several that has an image represents them.
            resource: What is rendered.
            media_types: In order of preference; by default JPEG for images, HTML for reports.
            params: See `dicomweb_io.dicom.rendering.RenderingOptions.of`.
            thumbnail: Whether a small image is wanted.

        Raises:
            TypeError, ValueError: If an argument is not valid.
            requests.HTTPError: 404 if a frame is not there, 406 if it is not available in that form, 501 if a library
                is missing.
        """
        options = RenderingOptions.of(params or {}, thumbnail=thumbnail)
        accepted_types = accepted_for("rendered", media_types)
        accept = (params or {}).get("accept")
        if isinstance(accept, str):
            accepted_types += accepted_for("rendered", [accept])
        chosen = files[0]
        header = self._reader.header(chosen)
        if resource.sop_instance_uid is None:
            for file in files:
                candidate = self._reader.header(file)
                if "Rows" in candidate:
                    chosen, header = file, candidate
                    break
        if "Rows" not in header:
            return self._document(chosen, header, resource, accepted_types)
        media_type = _choose(accepted_types, IMAGE_TYPES)
        if media_type is None:
            raise self._error(406, resource, f"images can be rendered as {', '.join(IMAGE_TYPES)}")
        numbers = self._numbers(header, resource, media_type)
        frames = [
            (with_one_frame(header, frame.content or b"", str(frame.transfer_syntax_uid)), number)
            for frame, number in zip(self._pixels.frames(chosen, numbers, ()), numbers, strict=True)
        ]
        try:
            return RenderedImage(resource, media_type, render_images(frames, media_type, options))
        except RenderingUnavailableError as error:
            raise self._error(501, resource, str(error)) from None
        except RenderingError as error:
            raise self._error(406, resource, f"it cannot be rendered: {error}") from None

    def _numbers(self, header: Dataset, resource: Resource, media_type: str) -> Sequence[int]:
        if resource.frames:
            return resource.frames
        try:
            count = max(1, int(header.get("NumberOfFrames") or 1))
        except (TypeError, ValueError, OverflowError):
            # Its frames cannot be read then, and the error says so.
            count = 1
        if media_type == "image/gif" and count > 1 and resource.sop_instance_uid is not None:
            if count > _MAX_FRAMES:
                raise self._error(406, resource, f"it has {count} frames; ask for at most {_MAX_FRAMES} by number")
            return range(1, count + 1)
        representative = int(header.get("RepresentativeFrameNumber") or 1)
        return (representative if representative <= count else 1,)

    def _document(
        self, file: IndexedFile, header: Dataset, resource: Resource, accepted_types: Sequence[MediaType]
    ) -> RenderedImage:
        if is_report(header):
            if _choose(accepted_types, ("text/html",)) is None:
                raise self._error(406, resource, "reports can be rendered as text/html")
            return RenderedImage(resource, "text/html", render_report(header).encode())
        if "EncapsulatedDocument" in header:
            media_type = str(header.get("MIMETypeOfEncapsulatedDocument") or "application/octet-stream").lower()
            if _choose(accepted_types, (media_type,)) is None:
                raise self._error(406, resource, f"the document is {media_type}")
            content = bytes(header.EncapsulatedDocument)
            length = header.get("EncapsulatedDocumentLength")
            return RenderedImage(resource, media_type, content[:length] if length else content)
        raise self._error(406, reference_of(file), "it is not an image, a report or a document")

    def _error(self, status: int, reference: Resource, what: str) -> FileClientError:
        return self._reader.error(status, reference, what, "/rendered")


def _choose(accepted_types: Sequence[MediaType], offered: Sequence[str]) -> str | None:
    """The first offered media type that the first possible accepted type covers."""
    if not accepted_types:
        return offered[0]
    covered = (name for accepted in accepted_types for name in offered if accepted.includes(name))
    return next(covered, None)
