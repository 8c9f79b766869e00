"""Retrieving parts of instances (WADO-RS, PS3.18 sections 8.3.5 and 10.4.1.1).

- `FrameRetriever`: frames, in the order and number asked for, or an error;
- `BulkdataRetriever`: bulk data by URI, whole values or a range of their bytes;
- `RenderedRetriever`: rendered images and thumbnails.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any

from dicomweb_io.client import MediaTypes
from dicomweb_io.dicom.frames import image_mark
from dicomweb_io.dicom.media_types import (
    CURRENT_NAMES,
    DEFAULT_TRANSFER_SYNTAXES,
    DICOM,
    DICOM_JSON,
    DICOM_XML,
    OCTET_STREAM,
    ContentType,
    MediaType,
    accept_header,
    accept_spellings,
    accepted_for,
    parse_content_type,
)
from dicomweb_io.dicom.pixels import NATIVE
from dicomweb_io.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN
from dicomweb_io.elements import Bulkdata, Frame, RenderedImage, Resource
from dicomweb_io.errors import (
    DICOMwebError,
    InvalidIdentifierError,
    MalformedResponseError,
    ResponseIncompleteError,
    safe_url,
)
from dicomweb_io.http.transport import Attempt, StreamedAnswer
from dicomweb_io.spool import Collected, SpoolPolicy, remove_file
from dicomweb_io.web.retrieve import MetadataRetriever
from dicomweb_io.web.search import Searcher
from dicomweb_io.web.service import REFUSALS, OfService
from dicomweb_io.web.urls import parameters, with_query

_STORED = (MediaType(OCTET_STREAM, "*"), MediaType("*/*", "*"))
_LOCATION = re.compile(r"/frames/(\d+)/?(?:[?#]|\Z)")
# Types that one transfer syntax only is written in, so that it is known even when `*` was asked for.
_UNAMBIGUOUS = frozenset({OCTET_STREAM, "image/dicom-rle"})
# Orthanc 1.10.1 knows the parts and */*, others single bodies only; none of these makes a server re-encode more than
# the first does.
_BULKDATA_ACCEPTS = (
    f'multipart/related; type="{OCTET_STREAM}"; transfer-syntax=*',
    f'multipart/related; type="{OCTET_STREAM}"',
    'multipart/related; type="*/*"',
    f"{OCTET_STREAM}; transfer-syntax=*",
    OCTET_STREAM,
    "*/*",
)
_SHAPES = ("linear", "linear-exact", "sigmoid")
_IN_MEMORY = SpoolPolicy()
_BEGIN = 256
# An address may be too long (414), or fill the header (431).
_LIST_REFUSALS = (*REFUSALS, 413, 414, 431)


@dataclass(frozen=True)
class _AcceptedForm:
    """How frames are asked for, and where they go."""

    media_types: Sequence[MediaType]
    query: str
    spool_policy: SpoolPolicy


class FrameRetriever(OfService):
    """Retrieves frames of one service."""

    def iter_frames(
        self,
        resource: Resource,
        *,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
        spool_policy: SpoolPolicy = _IN_MEMORY,
    ) -> Iterator[Frame]:
        """See `DICOMClient.iter_frames`."""
        if resource.level != "frame":
            raise InvalidIdentifierError(f"a reference to frames is needed, not to a {resource.level}")
        accepted_types = accepted_for("frames", media_types) or _STORED
        return self._iterate(resource, _AcceptedForm(accepted_types, parameters(additional_params), spool_policy))

    def _iterate(self, resource: Resource, accepted_type: _AcceptedForm) -> Iterator[Frame]:
        instance = resource.instance
        with closing(self._all(resource, accepted_type)) as frames:
            try:
                if len(resource.frames) > 1 and self._service.frame_sizes(instance) is None:
                    yield from _agreeing(frames)
                yield from frames
            except MalformedResponseError:
                known = self._service.frame_sizes(instance)
                if known is not None and not known[0]:
                    # Two frames differ. Now it is worth a request to know which of them is wrong.
                    with suppress(DICOMwebError):
                        list(MetadataRetriever(self._service, Searcher(self._service)).iter_metadata(instance))
                raise

    def _all(self, resource: Resource, accepted_type: _AcceptedForm) -> Generator[Frame, None, None]:
        for batch in self._batches(resource):
            yield from self._batch(batch, accepted_type)

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
            most = min(profile.frames_per_request, self._service.frames_at_once)
            if numbers and (len(numbers) >= most or length + digits > room or number in numbers):
                yield replace(resource, frames=tuple(numbers))
                numbers, length = [], 0
            numbers.append(number)
            length += digits
        if numbers:
            yield replace(resource, frames=tuple(numbers))

    def _batch(self, batch: Resource, accepted_type: _AcceptedForm) -> Iterator[Frame]:
        """Frames of one request; after one that ends early only the missing frames are requested.

        A list that is refused may be too long for the server, or for its addresses: it is asked for in halves.
        """
        got = 0
        refusal: DICOMwebError | None = None
        for attempt in self._service.transport.attempts():
            with attempt:
                try:
                    for frame in self._one_answer(batch.frames[got:], batch, accepted_type, attempt):
                        got += 1
                        attempt.progress()
                        yield frame
                except DICOMwebError as error:
                    if got or len(batch.frames) == 1 or error.status not in _LIST_REFUSALS:
                        raise
                    refusal = error
        if refusal is None:
            return
        size = -(-len(batch.frames) // 2)
        while got < len(batch.frames):
            # What is found out in the first half holds for the second.
            size = min(size, self._service.frames_at_once)
            try:
                for frame in self._batch(replace(batch, frames=batch.frames[got : got + size]), accepted_type):
                    got += 1
                    yield frame
            except DICOMwebError as error:
                if got or error.status not in _LIST_REFUSALS:
                    raise
                raise refusal from error
        self._service.frames_at_once = min(size, self._service.frames_at_once)

    def _one_answer(
        self, numbers: Sequence[int], batch: Resource, accepted_type: _AcceptedForm, attempt: Attempt
    ) -> Iterator[Frame]:
        accepted_types = accepted_type.media_types
        url = with_query(self._service.urls.retrieve(replace(batch, frames=tuple(numbers))), accepted_type.query)
        accepts = accept_spellings(accepted_types, single=len(numbers) == 1)
        # Where one of several formats will do, a server that fails to make one may have another (Orthanc 1.10.1 fails
        # with 500 for JPEG of a JPEG 2000 image, and takes the last of a list of media types only).
        several = accepted_types != _STORED and (
            len(accepted_types) > 1 or any("*" in accepted_type.name for accepted_type in accepted_types)
        )
        failures = (500, 501) if several else ()
        with self._service.get(url, accepts, attempt=attempt, also_refusals=failures) as answer:
            # Parts that name their frame are put into order; the others are in the order asked for (PS3.18 8.7.1).
            waiting: dict[int, Frame] = {}
            position = received = 0
            try:
                for frame, located, problem in self._parts(answer, numbers, batch, accepted_type):
                    received += 1
                    if located is None and waiting:
                        remove_file(frame)
                        raise answer.error(
                            "some parts name their frames, which are in another order, and others name none",
                            MalformedResponseError,
                        )
                    if located is not None and located != numbers[position]:
                        if located not in numbers or located in waiting or located in numbers[:position]:
                            remove_file(frame)
                            raise answer.error(
                                f"the answer holds frame {located}, not asked for", MalformedResponseError
                            )
                        waiting[located] = self._checked(answer, frame, problem)
                        continue
                    yield self._checked(answer, frame, problem)
                    position += 1
                    while position < len(numbers) and numbers[position] in waiting:
                        yield waiting.pop(numbers[position])
                        position += 1
            finally:
                for frame in waiting.values():
                    remove_file(frame)
            if position < len(numbers):
                raise answer.error(
                    f"asked for {len(numbers)} frames, got {received}; frame {numbers[position]} is missing",
                    ResponseIncompleteError,
                    retryable=answer.status != 206,
                )

    def _parts(
        self, answer: StreamedAnswer, numbers: Sequence[int], batch: Resource, accepted_type: _AcceptedForm
    ) -> Iterator[tuple[Frame, int | None, str | None]]:
        """The parts; which frame each says that it is; and what its type is, if it should be another."""
        if answer.status == 204:
            return
        content_type = self._service.content_type(answer)
        if not content_type.is_multipart:
            if len(numbers) > 1:
                raise answer.error(
                    f"asked for {len(numbers)} frames, got one body of {content_type.media_type or 'unknown type'}",
                    MalformedResponseError,
                )
            problem = _type_problem(content_type, accepted_type.media_types)
            if problem and problem != OCTET_STREAM:
                raise answer.error(f"expected a frame, got {problem}", MalformedResponseError)
            kept = accepted_type.spool_policy.keep(answer, answer.iter_chunks)
            yield self._frame(kept, content_type, numbers[0], batch, accepted_type), None, problem
            return
        root = content_type.root
        for index, part in enumerate(self._service.parts(answer)):
            if index >= len(numbers):
                raise answer.error(f"asked for {len(numbers)} frames, got more", MalformedResponseError)
            match = _LOCATION.search(part.headers.get("Content-Location") or "")
            located = int(match[1]) if match else None
            own = parse_content_type(part.content_type) if part.content_type else root
            if own.media_type == DICOM and not part.content_type:
                # What the header says of parts that say nothing is not held against them.
                own = ContentType("")
            if own.transfer_syntax_uid is None and own.media_type == root.media_type:
                own = ContentType(own.media_type, {**root.parameters, **own.parameters})
            number = located if located is not None else numbers[index]
            kept = accepted_type.spool_policy.keep(part, part.iter_bytes)
            problem = _type_problem(own, accepted_type.media_types) if part.content_type else None
            yield self._frame(kept, own, number, batch, accepted_type), located, problem

    def _checked(self, answer: StreamedAnswer, frame: Frame, problem: str | None) -> Frame:
        """Checks that what came is a frame, of an accepted type, and if it is native, as long as it must be.

        Returns:
            The frame; without a transfer syntax if it is not in the one that its type stands for.
        """
        try:
            begin, size = _begin(frame)
            mark = image_mark(begin)
            if problem == OCTET_STREAM and mark:
                problem = None  # The right thing with too plain a label.
            problem = problem or _other_thing(begin, frame.media_type)
            if problem:
                raise answer.error(f"expected a frame, got {problem}", MalformedResponseError)
            if not size:
                number = frame.reference.frames[0]
                raise answer.error(f"frame {number} is empty", ResponseIncompleteError, retryable=True)
            native = (frame.transfer_syntax_uid or EXPLICIT_VR_LITTLE_ENDIAN) in NATIVE
            if frame.media_type != OCTET_STREAM or not native:
                return frame
            if not mark:
                self._check_size(answer, frame, size)
                return frame
            # Some servers write compressed frames under this type without saying so. Pixels may begin so by chance.
            known = self._service.frame_sizes(frame.reference.instance)
            return frame if known is not None and size in known[0] else replace(frame, transfer_syntax_uid=None)
        except BaseException:
            remove_file(frame)
            raise

    def _check_size(self, answer: StreamedAnswer, frame: Frame, size: int) -> None:
        instance = frame.reference.instance
        known = self._service.frame_sizes(instance)
        number = frame.reference.frames[0]
        if known is None:
            # A pad byte makes a difference of one, as does the place of the first of several single bits.
            self._service.learn_frame_sizes(instance, range(size - 1, size + 2), f"frame {number} has {size}")
        elif size not in known[0]:
            if isinstance(known[0], range):
                self._service.learn_frame_sizes(instance, (), f"{known[1]}, and another one {size}")
            raise answer.error(f"frame {number} has {size} bytes, but {known[1]}", MalformedResponseError)

    def _frame(
        self, kept: Collected, content_type: ContentType, number: int, batch: Resource, accepted_type: _AcceptedForm
    ) -> Frame:
        media_type = content_type.media_type or OCTET_STREAM
        return Frame(
            replace(batch, frames=(number,)),
            content_type.transfer_syntax_uid or _implied_syntax(media_type, accepted_type.media_types),
            media_type,
            content=kept.content,
            path=kept.path,
        )


def _agreeing(frames: Iterator[Frame]) -> Iterator[Frame]:
    """The first frame, once the second was found to be as long, if they are native; and the second."""
    for frame in frames:
        try:
            second = next(frames, None) if frame.media_type == OCTET_STREAM else None
        except BaseException:
            remove_file(frame)
            raise
        yield frame
        if second is not None:
            yield second
        return


def _begin(item: Frame | Bulkdata) -> tuple[bytes, int]:
    """The first bytes, and the number of all."""
    if item.path is None:
        content = item.content or b""
        return content[:_BEGIN], len(content)
    with open(item.path, "rb") as file:
        return file.read(_BEGIN), os.fstat(file.fileno()).st_size


def _other_thing(begin: bytes, media_type: str) -> str | None:
    """What certainly is no pixels, whatever its label says."""
    if begin[128:134] == b"DICM\x02\x00" or begin.startswith(b"DICM\x02\x00"):
        return "a DICOM file"
    if media_type.startswith("image/") and begin.startswith((b"<?xml", b'{"')) and media_type != "image/svg+xml":
        return "a message"
    if begin[4:8] == b"ftyp" and not media_type.startswith("video/"):
        return "a video, one stream without single frames"
    if begin[:64].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    return None


def _type_problem(content_type: ContentType, accepted_types: Sequence[MediaType]) -> str | None:
    """What the type of a frame is, if it was not asked for. None at all is no fault."""
    name = CURRENT_NAMES.get(content_type.media_type, content_type.media_type)
    named = {accepted.name for accepted in accepted_types}
    if not name or name in named:
        return None
    if name == DICOM or content_type.is_json or content_type.is_xml or name.startswith("text/"):
        return name + (" (a login page?)" if name == "text/html" else "")
    if name.startswith("video/") and "video/*" not in named:
        return f"{name}, one stream without single frames: retrieve the instance or its bulk data"
    # Octets in any transfer syntax are any encoding.
    any_encoding = MediaType(OCTET_STREAM, "*") in accepted_types
    return None if any_encoding or any(accepted.includes(name) for accepted in accepted_types) else name


def _implied_syntax(media_type: str, accepted_types: Sequence[MediaType]) -> str | None:
    """The transfer syntax of a part that names none, if what was asked for leaves one possibility only."""
    matching = [
        accepted_type
        for accepted_type in accepted_types
        if accepted_type.name in (media_type, "*/*", media_type.partition("/")[0] + "/*")
    ]
    asked = {accepted_type.transfer_syntax_uid for accepted_type in matching}
    if len(asked) == 1:
        only = next(iter(asked))
        if only is not None and only != "*":
            return only
    as_stored = any(accepted_type.transfer_syntax_uid == "*" for accepted_type in accepted_types)
    if media_type in _UNAMBIGUOUS or (not as_stored and asked <= {None}):
        return DEFAULT_TRANSFER_SYNTAXES.get(media_type)
    return None


class BulkdataRetriever(OfService):
    """Retrieves bulk data, of one service and of other hosts that its metadata refers to."""

    def iter_bulkdata(
        self,
        url: str,
        *,
        media_types: MediaTypes | None = None,
        byte_range: tuple[int, int | None] | None = None,
        additional_params: Mapping[str, Any] | None = None,
        spool_policy: SpoolPolicy = _IN_MEMORY,
    ) -> Iterator[Bulkdata]:
        """See `DICOMClient.iter_bulkdata_parts`.

        Args:
            url: A bulk data URI: absolute, rooted, or relative to the service's retrieve root.
            media_types: Accepted types in order of preference.
            byte_range: First and last byte (inclusive, counted from 0); the last may be None for the end. A server that
                ignores the range sends everything, of which the range is returned.
            additional_params: Further query parameters.
            spool_policy: Where the values go.
        """
        absolute = self._service.urls.bulkdata(url)
        headers = {} if byte_range is None else {"Range": range_header(byte_range), "Accept-Encoding": "identity"}
        accepted_types = accepted_for("bulkdata", media_types)
        accepts = accept_spellings(accepted_types) if accepted_types else _BULKDATA_ACCEPTS
        return self._iterate(
            with_query(absolute, parameters(additional_params)), accepts, headers, byte_range, spool_policy
        )

    def of_instance(
        self, resource: Resource, media_types: MediaTypes, additional_params: Mapping[str, Any] | None
    ) -> list[bytes]:
        """The bulk data of an instance, asked for at the instance's own resource."""
        url = with_query(self._service.urls.retrieve(resource), parameters(additional_params))
        accepts = accept_spellings(accepted_for("bulkdata", media_types))
        return [item.content or b"" for item in self._iterate(url, accepts, {}, None, _IN_MEMORY)]

    def _iterate(
        self,
        url: str,
        accepts: Sequence[str],
        headers: Mapping[str, str],
        byte_range: tuple[int, int | None] | None,
        spool_policy: SpoolPolicy,
    ) -> Iterator[Bulkdata]:
        done = 0
        for attempt in self._service.transport.attempts():
            with attempt:
                for index, item in enumerate(
                    self._one_answer(url, accepts, headers, byte_range, spool_policy, attempt)
                ):
                    if index < done:
                        remove_file(item)
                        continue
                    done += 1
                    attempt.progress()
                    yield item

    def _one_answer(
        self,
        url: str,
        accepts: Sequence[str],
        headers: Mapping[str, str],
        byte_range: tuple[int, int | None] | None,
        spool_policy: SpoolPolicy,
        attempt: Attempt,
    ) -> Iterator[Bulkdata]:
        with self._service.get(url, accepts, attempt=attempt, headers=headers) as answer:
            if answer.status == 204:
                return
            content_type = self._service.content_type(answer)
            if answer.status == 206 and byte_range is None:
                raise answer.error("the answer is partial (206), but the whole was asked for", ResponseIncompleteError)
            if byte_range is None or answer.status == 206:
                yield from self._parts(answer, content_type, url, spool_policy, byte_range)
                return
            # The server ignored Range (as it may, RFC 9110 section 14.2).
            items = self._parts(answer, content_type, url, _IN_MEMORY)
            only = next(items, None)
            if only is None or next(items, None) is not None:
                raise answer.error(
                    "the server ignores byte ranges and the bulk data have several parts; retrieve them as a whole",
                    MalformedResponseError,
                )
            first, last = byte_range
            content = only.content or b""
            if first and first >= len(content):
                raise answer.error(f"the range begins after the last of {len(content)} bytes", MalformedResponseError)
            wanted = content[first : None if last is None else last + 1]
            yield spool_policy.moved(Bulkdata(only.uri, only.media_type, wanted))

    def _parts(
        self,
        answer: StreamedAnswer,
        content_type: ContentType,
        url: str,
        spool_policy: SpoolPolicy,
        byte_range: tuple[int, int | None] | None = None,
    ) -> Iterator[Bulkdata]:
        whole_range = answer.headers.get("Content-Range")
        if not content_type.is_multipart:
            self._check(answer, content_type)
            size = None if byte_range is None else _check_range(answer, whole_range, byte_range)
            kept = spool_policy.keep(answer, answer.iter_chunks)
            yield _of_size(
                answer,
                Bulkdata(safe_url(url), content_type.media_type or OCTET_STREAM, kept.content, kept.path),
                size,
            )
            return
        empty = True
        for part in self._service.parts(answer):
            empty = False
            own = parse_content_type(part.content_type)
            self._check(answer, own)
            media_type = own.media_type or content_type.root.media_type
            told = part.headers.get("Content-Range") or whole_range
            size = None if byte_range is None else _check_range(answer, told, byte_range)
            kept = spool_policy.keep(part, part.iter_bytes)
            yield _of_size(answer, Bulkdata(safe_url(url), media_type or OCTET_STREAM, kept.content, kept.path), size)
        if empty:
            raise answer.error("the answer holds no part", ResponseIncompleteError, retryable=True)

    @staticmethod
    def _check(answer: StreamedAnswer, content_type: ContentType) -> None:
        """Checks that a value is no answer of another kind. Documents may have any other type."""
        name = content_type.media_type
        if name in (DICOM, DICOM_JSON, DICOM_XML, "text/html"):
            hint = " (a login page?)" if name == "text/html" else ""
            raise answer.error(f"expected bulk data, got {name}{hint}", MalformedResponseError)


def _check_range(answer: StreamedAnswer, told: str | None, byte_range: tuple[int, int | None]) -> int:
    """Checks that a partial answer is the range that was asked for, by its Content-Range; returns the bytes in it."""
    match = re.match(r"bytes (\d+)-(\d+)/(\d+|\*)", told or "")
    if match is None:
        raise answer.error("the answer is partial (206) and does not say which bytes it holds", MalformedResponseError)
    first, last = byte_range
    begin, end = int(match[1]), int(match[2])
    if begin != first:
        raise answer.error(f"asked for bytes from {first} on, got them from {begin} on", MalformedResponseError)
    ends = [] if last is None else [last]
    if match[3] != "*":
        ends.append(int(match[3]) - 1)
    if ends and end < min(ends):
        raise answer.error(f"asked for bytes up to {min(ends)}, got them up to {end}", ResponseIncompleteError)
    if last is not None and end > last:
        raise answer.error(f"asked for bytes up to {last}, got them up to {end}", MalformedResponseError)
    return end - begin + 1


def _of_size(answer: StreamedAnswer, item: Bulkdata, size: int | None) -> Bulkdata:
    """The value, if it has as many bytes as its range says."""
    _, found = _begin(item)
    if size is not None and found != size:
        remove_file(item)
        raise answer.error(f"the range has {size} bytes, but {found} came", MalformedResponseError)
    return item


def range_header(byte_range: tuple[int, int | None]) -> str:
    """The Range header of a pair of first and last byte (RFC 9110 section 14.1.2).

    Raises:
        TypeError: If it is not a pair of integers, of which the last may be None.
        ValueError: If it is negative or ends before it begins.
    """
    if not isinstance(byte_range, (tuple, list)) or len(byte_range) != 2:
        raise TypeError("byte_range must be a pair of first and last byte; the last may be None")
    first, last = byte_range
    for value in (first, last):
        if not isinstance(value, int) or isinstance(value, bool):
            if value is None and first is not None:
                continue
            raise TypeError(f"byte_range must be integers, not {type(value).__name__}")
    if first < 0 or (last is not None and last < first):
        raise ValueError(f"byte_range must begin at 0 or later and not end before it begins, not {tuple(byte_range)}")
    return f"bytes={first}-" if last is None else f"bytes={first}-{last}"


class RenderedRetriever(OfService):
    """Retrieves rendered resources of one service."""

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
            media_types: Accepted types in order of preference. They carry no transfer syntax.
            params: ``quality`` (1 to 100), ``window`` (centre, width[, shape]), ``viewport`` (2 or 6 numbers),
                ``annotation``, ``iccprofile``, and what else the server knows.
            thumbnail: Ask for the thumbnail.

        Raises:
            TypeError, ValueError: If an argument is not valid.
            requests.HTTPError: If the server refuses, or answers with something that is not a rendered form.
        """
        accepted_types = accepted_for("rendered", media_types)
        checked = check_rendering_params(params, thumbnail=thumbnail)
        for name in ("window", "viewport"):
            if checked.get(name) is not None:
                checked[name] = ",".join(map(str, checked[name]))
        accepts = ["*/*"]
        if accepted_types:
            together = accept_header(accepted_types, multipart=False)
            accepts = list(dict.fromkeys([together, *(wanted.name for wanted in accepted_types)]))
        url = with_query(
            self._service.urls.retrieve(resource, "/thumbnail" if thumbnail else "/rendered"), parameters(checked)
        )
        for attempt in self._service.transport.attempts():
            with attempt, self._service.get(url, accepts, attempt=attempt) as answer:
                content, media_type = self._image(answer)
                kind = parse_content_type(media_type)
                if (
                    kind.is_json
                    or media_type in (DICOM, DICOM_XML)
                    or (accepted_types and not any(_similar(wanted.name, media_type) for wanted in accepted_types))
                ):
                    raise answer.error(f"expected a rendered image, got {media_type}", MalformedResponseError)
                found = _other_thing(content[:_BEGIN], media_type)
                if found and media_type.partition("/")[0] in ("image", "video"):
                    raise answer.error(f"expected a rendered image, got {found}", MalformedResponseError)
                framed = "Content-Length" in answer.headers or "Transfer-Encoding" in answer.headers
                if not framed and _breaks_off(content, media_type):
                    raise answer.error("the image ends early", ResponseIncompleteError, retryable=True)
                return RenderedImage(resource, media_type or OCTET_STREAM, content)
        raise AssertionError("attempts() ends with a result or an error")

    def _image(self, answer: StreamedAnswer) -> tuple[bytes, str]:
        """The one image of an answer, and its media type."""
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
        return content, media_type


def _similar(accepted_type: str, media_type: str) -> bool:
    """Whether a type is of the kind that was asked for: another type of image will do, a page will not."""
    return accepted_type == "*/*" or accepted_type.partition("/")[0] == media_type.partition("/")[0]


def _breaks_off(content: bytes, media_type: str) -> bool:
    """Whether an image lacks its end, for the types that have a mark there."""
    mark = {"image/png": b"IEND\xaeB`\x82", "image/jpeg": b"\xff\xd9", "image/gif": b";"}.get(media_type)
    return mark is not None and mark not in content[-64:]


def check_rendering_params(params: Mapping[str, Any] | None, *, thumbnail: bool = False) -> dict[str, Any]:
    """Checks the rendering parameters that PS3.18 table 8.3.5-1 defines; others pass.

    Raises:
        ValueError: If one has a value that no server could understand.
    """
    if not isinstance(params or {}, Mapping):
        raise TypeError("params must be a mapping of rendering parameter to value, such as {'quality': 90}")
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
