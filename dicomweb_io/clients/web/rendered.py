"""Retrieving rendered resources and thumbnails (WADO-RS, PS3.18 sections 8.3.5 and 10.4.1.1.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dicomweb_io.clients.protocol import MediaTypes
from dicomweb_io.clients.web.service import Service
from dicomweb_io.clients.web.urls import parameters, with_query
from dicomweb_io.dicom.media_types import accept_header, parse_content_type, parse_media_types
from dicomweb_io.elements import RenderedImage, Resource
from dicomweb_io.wire.errors import MalformedResponseError, ResponseIncompleteError

_SHAPES = ("linear", "linear-exact", "sigmoid")


class RenderedRetriever:
    """Retrieves rendered resources of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def retrieve(
        self,
        resource: Resource,
        *,
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
        thumbnail: bool = False,
    ) -> RenderedImage:
        """See `DICOMClient.retrieve_rendered`. Without media types the server chooses.

        Args:
            resource: What to render.
            media_types: Wanted types in order of preference. They carry no transfer syntax.
            params: ``quality`` (1 to 100), ``window`` (centre, width[, shape]), ``viewport`` (2 or 6 numbers),
                ``annotation``, ``iccprofile``, and what else the server knows. Lists are joined by commas.
            thumbnail: Ask for the thumbnail.

        Raises:
            ValueError: If an argument is not valid.
            requests.HTTPError: If the server refuses, or answers with something that is no rendered form.
        """
        wishes = parse_media_types(media_types)
        for wish in wishes:
            if wish.transfer_syntax_uid is not None:
                raise ValueError(f"rendered resources have no transfer syntax, but one was asked for with {wish.name}")
        checked = check_rendering_params(params, thumbnail=thumbnail)
        accepts = ["*/*"]
        if wishes:
            accepts = list(dict.fromkeys([accept_header(wishes, multipart=False), *(wish.name for wish in wishes)]))
        url = with_query(
            self._service.urls.retrieve(resource, "/thumbnail" if thumbnail else "/rendered"), parameters(checked)
        )
        for attempt in self._service.transport.attempts():
            with attempt, self._service.get(url, accepts, attempt=attempt) as answer:
                content_type = self._service.content_type(answer)
                media_type = content_type.media_type
                if content_type.is_multipart:
                    parts = []
                    for part in self._service.parts(answer):
                        media_type = parse_content_type(part.content_type).media_type or content_type.root.media_type
                        parts.append(part.read())
                    if len(parts) != 1:
                        raise answer.error(
                            f"expected one rendered image, got {len(parts)}; ask for one frame at a time",
                            MalformedResponseError,
                        )
                    content = parts[0]
                else:
                    content = answer.read() if answer.status != 204 else b""
                if not content:
                    raise answer.error("the answer holds no rendered image", MalformedResponseError)
                if content_type.is_json or (wishes and not any(_similar(wish.name, media_type) for wish in wishes)):
                    raise answer.error(f"expected a rendered image, got {media_type}", MalformedResponseError)
                framed = "Content-Length" in answer.headers or "Transfer-Encoding" in answer.headers
                if not framed and _breaks_off(content, media_type):
                    raise answer.error("the image breaks off", ResponseIncompleteError, retryable=True)
                return RenderedImage(resource, media_type or "application/octet-stream", content)
        raise AssertionError("attempts() ends with a result or an error")


def _similar(wish: str, media_type: str) -> bool:
    """Whether a type is of the kind that was asked for: another image type will do, a page instead of an image not."""
    return wish == "*/*" or wish.partition("/")[0] == media_type.partition("/")[0]


def _breaks_off(content: bytes, media_type: str) -> bool:
    """Whether an image lacks its end, for the types that have a mark there."""
    mark = {"image/png": b"IEND\xaeB`\x82", "image/jpeg": b"\xff\xd9", "image/gif": b";"}.get(media_type)
    return mark is not None and mark not in content[-64:]


def check_rendering_params(params: Mapping[str, Any] | None, *, thumbnail: bool = False) -> dict[str, Any]:
    """Checks the rendering parameters that PS3.18 table 8.3.5-1 defines; others pass.

    Raises:
        ValueError: If one has a value that no server could understand.
    """
    checked = dict(params or {})
    quality = checked.get("quality")
    if quality is not None and not (str(quality).isascii() and str(quality).isdigit() and 1 <= int(quality) <= 100):
        raise ValueError(f"quality must be an integer from 1 to 100, not {quality!r}")
    window = _listed(checked.get("window"))
    if window is not None:
        if len(window) not in (2, 3) or not all(map(_is_number, window[:2])):
            raise ValueError(f"window must be centre, width and shape, not {checked['window']!r}")
        shape = str(window[2]).lower() if len(window) == 3 else "linear"
        if shape not in _SHAPES:
            raise ValueError(f"the shape of window must be one of {', '.join(_SHAPES)}, not {shape!r}")
        # PS3.18 8.3.5.1.4 wants three values, and servers insist on them (Orthanc 1.10.1).
        checked["window"] = [window[0], window[1], shape]
    viewport = _listed(checked.get("viewport"))
    if viewport is not None:
        given = [value for value in viewport if str(value) != ""]
        allowed = (2,) if thumbnail else (2, 6)
        if len(viewport) not in allowed or not all(map(_is_number, given)):
            raise ValueError(
                f"viewport must be {' or '.join(map(str, allowed))} numbers (width, height[, x, y, width, height]), "
                f"not {checked['viewport']!r}"
            )
        checked["viewport"] = viewport
    return checked


def _listed(value: Any) -> list[Any] | None:
    if value is None:
        return None
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
