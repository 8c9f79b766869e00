"""Rendered resources of a folder (PS3.18 sections 8.3.5 and 10.4.1.1.3): images, and pages of what is no image.

Reports, presentation states and encapsulated documents become HTML (PS3.18 section 8.7.4): see `documents`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dicomweb_io.client import MediaTypes
from dicomweb_io.dicom.errors import RenderingError, RenderingUnavailableError
from dicomweb_io.dicom.json_decode import first_text, loads
from dicomweb_io.dicom.media_types import MediaType, accepted_for
from dicomweb_io.dicom.pixels import with_one_frame
from dicomweb_io.dicom.rendering import IMAGE_TYPES, RenderingOptions, render_images
from dicomweb_io.elements import RenderedImage, Resource
from dicomweb_io.errors import FileClientError
from dicomweb_io.files.documents import describe_kind, document_of, readable_date, readable_page
from dicomweb_io.files.index import Index, IndexedFile
from dicomweb_io.files.records import NO_NUMBER
from dicomweb_io.files.retrieve import FolderReader, PixelAccess, reference_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


_MAX_FRAMES = 2000


class FolderRenderer:
    """Renders files of a folder.

    Args:
        reader: Opens the files.
        index: Knows what the files refer to.
    """

    def __init__(self, reader: FolderReader, index: Index) -> None:
        self._reader = reader
        self._pixels = PixelAccess(reader, index)
        self._index = index

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
            media_types: In order of preference; by default JPEG for images, PDF for PDF documents, else HTML.
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
        offered: tuple[str, ...] = ("text/html",)
        if "EncapsulatedDocument" in header:
            media_type, content = document_of(header)
            # What calls itself HTML may hold scripts, so that only its page is shown.
            if media_type != "text/html":
                offered = (media_type, *offered) if media_type == "application/pdf" else (*offered, media_type)
        chosen = _choose(accepted_types, offered)
        if chosen is None:
            raise self._error(406, resource, f"it can be rendered as {' or '.join(offered)}")
        if chosen != "text/html":
            return RenderedImage(resource, chosen, content)
        try:
            return RenderedImage(resource, chosen, readable_page(header, self._described).encode("utf-8", "replace"))
        except RenderingError:
            raise self._error(406, reference_of(file), "it is not an image, a report or a document") from None

    def _described(self, instance: str, study: str) -> str | None:
        """What an instance is, such as ``CT image, series 3 (Lung), instance 12``, if the folder has it."""
        found = self._index.select(
            "SELECT f.sop_class, i.study, i.number, s.row, t.row FROM instance i JOIN file f ON f.id = i.file "
            "JOIN series s ON s.study = i.study AND s.series = i.series JOIN study t ON t.study = i.study "
            "WHERE i.sop = ? ORDER BY i.study <> ? LIMIT 1",
            (instance, study),
        )
        if not found:
            return None
        sop_class, its_study, number, series, its_row = found[0]
        series = loads(series)
        name, label = first_text(series, "SeriesNumber"), first_text(series, "SeriesDescription")
        parts = [
            describe_kind(sop_class or ""),
            f"series {name or '?'}" + (f" ({label})" if label else ""),
            f"instance {number}" if number < NO_NUMBER else "",
        ]
        if its_study != study:
            date = first_text(loads(its_row), "StudyDate")
            parts.append(f"of the study of {readable_date(date)}" if date else f"of study {its_study}")
        return ", ".join(part for part in parts if part)

    def _error(self, status: int, reference: Resource, what: str) -> FileClientError:
        return self._reader.error(status, reference, what, "/rendered")


def _choose(accepted_types: Sequence[MediaType], offered: Sequence[str]) -> str | None:
    """The first offered media type that the first possible accepted type covers."""
    if not accepted_types:
        return offered[0]
    covered = (name for accepted in accepted_types for name in offered if accepted.includes(name))
    return next(covered, None)
