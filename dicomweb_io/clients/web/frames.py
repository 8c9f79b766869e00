"""Retrieving frames (WADO-RS, PS3.18 section 10.4.1.1.6): the order asked for, the number asked for, or an error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dicomweb_io.clients.keeping import Keeper, dropped
from dicomweb_io.clients.protocol import MediaTypes
from dicomweb_io.clients.web.service import REFUSALS, Service
from dicomweb_io.clients.web.urls import parameters, with_query
from dicomweb_io.dicom.media_types import (
    DEFAULT_TRANSFER_SYNTAXES,
    DICOM,
    OCTET_STREAM,
    ContentType,
    MediaType,
    accept_spellings,
    parse_content_type,
    parse_media_types,
)
from dicomweb_io.elements import Frame, Resource
from dicomweb_io.wire.errors import DICOMwebError, MalformedResponseError, ResponseIncompleteError
from dicomweb_io.wire.spool import Collected
from dicomweb_io.wire.transport import Attempt, StreamedAnswer

_STORED = (MediaType(OCTET_STREAM, "*"), MediaType("*/*", "*"))
_LOCATION = re.compile(r"/frames/(\d+)/?(?:[?#]|\Z)")
# Types that one transfer syntax only is written in, so that it is known even when `*` was asked for.
_UNAMBIGUOUS = frozenset({OCTET_STREAM, "image/dicom-rle"})


_IN_MEMORY = Keeper()


@dataclass(frozen=True)
class _Wish:
    """How frames are asked for, and where they go."""

    media_types: Sequence[MediaType]
    query: str
    keeper: Keeper


class FrameRetriever:
    """Retrieves frames of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def iter_frames(
        self,
        resource: Resource,
        *,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
        keeper: Keeper = _IN_MEMORY,
    ) -> Iterator[Frame]:
        """See `DICOMClient.iter_frames`."""
        if resource.level != "frame":
            raise ValueError(f"a reference to frames is needed, not to a {resource.level}")
        wishes = parse_media_types(media_types) or _STORED
        for wish in wishes:
            if wish.name == DICOM:
                raise ValueError(f"frames have no form {DICOM}; retrieve the instance")
        return self._iterate(resource, _Wish(wishes, parameters(additional_params), keeper))

    def _iterate(self, resource: Resource, wish: _Wish) -> Iterator[Frame]:
        for batch in self._batches(resource):
            yield from self._batch(batch, wish)

    def _batches(self, resource: Resource) -> Iterator[Resource]:
        """The frames in order, cut by number, by length of the URL, and before a repeated number.

        Some servers answer a repeated number once, some refuse it (AWS HealthImaging).
        """
        profile = self._service.profile
        room = max(profile.max_url_length - len(self._service.urls.retrieve(resource.instance)) - len("/frames/"), 10)
        numbers: list[int] = []
        length = 0
        for number in resource.frames:
            digits = len(str(number)) + 1
            if numbers and (len(numbers) >= profile.frames_per_request or length + digits > room or number in numbers):
                yield replace(resource, frames=tuple(numbers))
                numbers, length = [], 0
            numbers.append(number)
            length += digits
        if numbers:
            yield replace(resource, frames=tuple(numbers))

    def _batch(self, batch: Resource, wish: _Wish) -> Iterator[Frame]:
        """Frames of one request; after one that breaks off only the rest is asked for."""
        got = 0
        one_at_a_time = False
        for attempt in self._service.transport.attempts():
            with attempt:
                try:
                    for frame in self._one_answer(batch.frames[got:], batch, wish, attempt):
                        got += 1
                        attempt.progress()
                        yield frame
                except DICOMwebError as error:
                    if got or len(batch.frames) == 1 or error.status not in REFUSALS:
                        raise
                    refusal = error
                    one_at_a_time = True
        if not one_at_a_time:
            return
        # Servers that know single parts only (or refuse lists) give frames one at a time, or refuse those too.
        for number in batch.frames:
            try:
                yield from self._batch(replace(batch, frames=(number,)), wish)
            except DICOMwebError as error:
                if got or error.status not in REFUSALS:
                    raise
                raise refusal from error
            got += 1

    def _one_answer(self, numbers: Sequence[int], batch: Resource, wish: _Wish, attempt: Attempt) -> Iterator[Frame]:
        wishes = wish.media_types
        url = with_query(self._service.urls.retrieve(replace(batch, frames=tuple(numbers))), wish.query)
        accepts = accept_spellings(wishes, single=len(numbers) == 1)
        # Where one of several formats will do, a server that fails to make one may have another (Orthanc 1.10.1 fails
        # with 500 for JPEG of a JPEG 2000 image, and takes the last of a list of media types only).
        several = wishes != _STORED and (len(wishes) > 1 or any("*" in wish.name for wish in wishes))
        failures = (500, 501) if several else ()
        with self._service.get(url, accepts, attempt=attempt, also_refusals=failures) as answer:
            # Parts that name their frame are put into order; the others are in the order asked for (PS3.18 8.7.1).
            waiting: dict[int, Frame] = {}
            position = received = 0
            try:
                for frame, located in self._parts(answer, numbers, batch, wish):
                    received += 1
                    if located is not None and located != numbers[position]:
                        if located not in numbers or located in waiting or located in numbers[:position]:
                            dropped(frame)
                            raise answer.error(
                                f"the answer holds frame {located}, not asked for", MalformedResponseError
                            )
                        waiting[located] = frame
                        continue
                    yield frame
                    position += 1
                    while position < len(numbers) and numbers[position] in waiting:
                        yield waiting.pop(numbers[position])
                        position += 1
            finally:
                for frame in waiting.values():
                    dropped(frame)
            if position < len(numbers):
                raise answer.error(
                    f"asked for {len(numbers)} frames, got {received}; frame {numbers[position]} is missing",
                    ResponseIncompleteError,
                    retryable=answer.status != 206,
                )

    def _parts(
        self, answer: StreamedAnswer, numbers: Sequence[int], batch: Resource, wish: _Wish
    ) -> Iterator[tuple[Frame, int | None]]:
        if answer.status == 204:
            return
        content_type = self._service.content_type(answer)
        if not content_type.is_multipart:
            if len(numbers) > 1:
                raise answer.error(
                    f"asked for {len(numbers)} frames, got one body of {content_type.media_type or 'unknown type'}",
                    MalformedResponseError,
                )
            if content_type.is_json or content_type.media_type in ("text/html", "text/plain"):
                raise answer.error(f"expected a frame, got {content_type.media_type}", MalformedResponseError)
            kept = wish.keeper.keep(answer, answer.iter_chunks)
            yield self._frame(kept, content_type, numbers[0], batch, wish), None
            return
        root = content_type.root
        for index, part in enumerate(self._service.parts(answer)):
            if index >= len(numbers):
                raise answer.error(f"asked for {len(numbers)} frames, got more", MalformedResponseError)
            match = _LOCATION.search(part.headers.get("Content-Location") or "")
            located = int(match[1]) if match else None
            own = parse_content_type(part.content_type) if part.content_type else root
            if own.transfer_syntax_uid is None and own.media_type == root.media_type:
                own = ContentType(own.media_type, {**root.parameters, **own.parameters})
            number = located if located is not None else numbers[index]
            yield self._frame(wish.keeper.keep(part, part.iter_bytes), own, number, batch, wish), located

    def _frame(self, kept: Collected, content_type: ContentType, number: int, batch: Resource, wish: _Wish) -> Frame:
        media_type = content_type.media_type or OCTET_STREAM
        return Frame(
            replace(batch, frames=(number,)),
            content_type.transfer_syntax_uid or _implied_syntax(media_type, wish.media_types),
            media_type,
            content=kept.content,
            path=kept.path,
        )


def _implied_syntax(media_type: str, wishes: Sequence[MediaType]) -> str | None:
    """The transfer syntax of a part that names none, if what was asked for leaves one possibility only."""
    matching = [wish for wish in wishes if wish.name in (media_type, "*/*", media_type.partition("/")[0] + "/*")]
    asked = {wish.transfer_syntax_uid for wish in matching}
    if len(asked) == 1:
        only = next(iter(asked))
        if only is not None and only != "*":
            return only
    as_stored = any(wish.transfer_syntax_uid == "*" for wish in wishes)
    if media_type in _UNAMBIGUOUS or (not as_stored and asked <= {None}):
        return DEFAULT_TRANSFER_SYNTAXES.get(media_type)
    return None
