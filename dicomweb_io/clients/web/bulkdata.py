"""Retrieving bulk data (WADO-RS, PS3.18 section 10.4.1.1.5) by URI: whole values, or a range of their bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dicomweb_io.clients.keeping import Keeper, dropped
from dicomweb_io.clients.protocol import MediaTypes
from dicomweb_io.clients.web.service import Service
from dicomweb_io.clients.web.urls import parameters, with_query
from dicomweb_io.dicom.media_types import (
    DICOM,
    OCTET_STREAM,
    ContentType,
    accept_spellings,
    parse_content_type,
    parse_media_types,
)
from dicomweb_io.elements import Bulkdata, Resource
from dicomweb_io.wire.errors import MalformedResponseError, ResponseIncompleteError, safe_url
from dicomweb_io.wire.transport import Attempt, StreamedAnswer

# Orthanc 1.10.1 knows the parts and */*, others single bodies only; none of these makes a server re-encode more than
# the first does.
_ACCEPTS = (
    f'multipart/related; type="{OCTET_STREAM}"; transfer-syntax=*',
    f'multipart/related; type="{OCTET_STREAM}"',
    'multipart/related; type="*/*"',
    f"{OCTET_STREAM}; transfer-syntax=*",
    OCTET_STREAM,
    "*/*",
)


_IN_MEMORY = Keeper()


class BulkdataRetriever:
    """Retrieves bulk data, of one service and of other hosts that its metadata refers to."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def iter_bulkdata(
        self,
        url: str,
        *,
        media_types: MediaTypes | None = None,
        byte_range: tuple[int, int | None] | None = None,
        additional_params: Mapping[str, Any] | None = None,
        keeper: Keeper = _IN_MEMORY,
    ) -> Iterator[Bulkdata]:
        """See `DICOMClient.iter_bulkdata_parts`.

        Args:
            url: A bulk data URI: absolute, rooted, or relative to the service's retrieve root.
            media_types: Wanted types in order of preference.
            byte_range: First and last byte (inclusive, counted from 0); the last may be None for the end. A server that
                ignores the range sends everything, of which the range is returned.
            additional_params: Further query parameters.
            keeper: Where the values go.
        """
        absolute = self._service.urls.bulkdata(url)
        headers = {} if byte_range is None else {"Range": range_header(byte_range), "Accept-Encoding": "identity"}
        wishes = parse_media_types(media_types)
        for wish in wishes:
            if wish.name == DICOM:
                raise ValueError(f"bulk data have no form {DICOM}; retrieve the instance")
        accepts = accept_spellings(wishes) if wishes else _ACCEPTS
        return self._iterate(with_query(absolute, parameters(additional_params)), accepts, headers, byte_range, keeper)

    def of_instance(
        self, resource: Resource, media_types: MediaTypes, additional_params: Mapping[str, Any] | None
    ) -> list[bytes]:
        """The bulk data of an instance, asked for at the instance's own resource."""
        url = with_query(self._service.urls.retrieve(resource), parameters(additional_params))
        accepts = accept_spellings(parse_media_types(media_types))
        return [item.content or b"" for item in self._iterate(url, accepts, {}, None, _IN_MEMORY)]

    def _iterate(
        self,
        url: str,
        accepts: Sequence[str],
        headers: Mapping[str, str],
        byte_range: tuple[int, int | None] | None,
        keeper: Keeper,
    ) -> Iterator[Bulkdata]:
        done = 0
        for attempt in self._service.transport.attempts():
            with attempt:
                for index, item in enumerate(self._one_answer(url, accepts, headers, byte_range, keeper, attempt)):
                    if index < done:
                        dropped(item)
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
        keeper: Keeper,
        attempt: Attempt,
    ) -> Iterator[Bulkdata]:
        with self._service.get(url, accepts, attempt=attempt, headers=headers) as answer:
            if answer.status == 204:
                return
            content_type = self._service.content_type(answer)
            if answer.status == 206 and byte_range is None:
                raise answer.error("the answer is partial (206), but the whole was asked for", ResponseIncompleteError)
            if byte_range is None or answer.status == 206:
                _check_range(answer, byte_range)
                yield from self._parts(answer, content_type, url, keeper)
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
            yield keeper.moved(Bulkdata(only.uri, only.media_type, wanted))

    def _parts(self, answer: StreamedAnswer, content_type: ContentType, url: str, keeper: Keeper) -> Iterator[Bulkdata]:
        if not content_type.is_multipart:
            if content_type.media_type == "text/html":
                raise answer.error("expected bulk data, got an HTML page (a login page?)", MalformedResponseError)
            kept = keeper.keep(answer, answer.iter_chunks)
            yield Bulkdata(safe_url(url), content_type.media_type or OCTET_STREAM, kept.content, kept.path)
            return
        empty = True
        for part in self._service.parts(answer):
            empty = False
            media_type = parse_content_type(part.content_type).media_type or content_type.root.media_type
            kept = keeper.keep(part, part.iter_bytes)
            yield Bulkdata(safe_url(url), media_type or OCTET_STREAM, kept.content, kept.path)
        if empty:
            raise answer.error("the answer holds no part", ResponseIncompleteError, retryable=True)


def _check_range(answer: StreamedAnswer, byte_range: tuple[int, int | None] | None) -> None:
    match = re.match(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range") or "")
    if byte_range is None or match is None:
        return
    first, last = byte_range
    if int(match[1]) != first:
        raise answer.error(f"asked for bytes from {first} on, got them from {match[1]} on", MalformedResponseError)
    ends = [] if last is None else [last]
    if match[3] != "*":
        ends.append(int(match[3]) - 1)
    if ends and int(match[2]) < min(ends):
        raise answer.error(f"asked for bytes up to {min(ends)}, got them up to {match[2]}", ResponseIncompleteError)


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
