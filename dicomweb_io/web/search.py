"""Searching (QIDO-RS, PS3.18 section 10.6): one page, and pages that lose no row whatever the server's behaviour.

The rules, each earned from a server: a limit is always sent, within the server's maximum; the offset advances by the
rows received; a short page is the last one only where the maximum is known and nothing announces more; rows repeated
across pages are dropped; a page without anything new, or one that begins like the first, ends the search with an error
rather than in a circle; an error on a later page is an error.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import translate
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar

from dicomweb_io.dicom import json_decode
from dicomweb_io.dicom.attributes import lookup_keyword, resolve, vr_of
from dicomweb_io.dicom.media_types import DICOM_JSON
from dicomweb_io.dicom.xml_model import parse_native_model
from dicomweb_io.elements import JSONDataset, Resource, SearchLevel, SearchPage, SearchQuery
from dicomweb_io.errors import (
    DICOMwebError,
    FilterIgnoredError,
    MalformedResponseError,
    PagingError,
    ResponseIncompleteError,
    TooManyResultsError,
)
from dicomweb_io.http.multipart import MultipartReader
from dicomweb_io.http.transport import Answer
from dicomweb_io.queries import apportion, level_of
from dicomweb_io.web.service import Service, logger, warnings_of
from dicomweb_io.web.urls import filter_values, needs_escapes, query_string, with_query

# ----------------------------------------------------------------------------------------------------------------------
# Splits a JSON array of objects while it arrives, so that a study's metadata never is in memory as a whole.


# A whole string, a brace, or the beginning of a string whose end has not arrived.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}]|"', re.DOTALL)
_SPACE = re.compile(rb"[ \t\r\n]*")
_SPACE_AND_COMMAS = re.compile(rb"[ \t\r\n,]*")
_BOM = b"\xef\xbb\xbf"


class IncompleteJSONError(ValueError):
    """The JSON text ends before its array does."""


def iter_json_objects(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the text of each object of a JSON array, or the one object that the text consists of.

    Only the outer structure is looked at; whoever parses the objects finds what is wrong inside them.

    Args:
        chunks: The text in UTF-8, cut anywhere.

    Raises:
        IncompleteJSONError: If the array or an object is not closed.
        ValueError: If the text is neither an array of objects nor an object.
    """
    text = _Text(chunks)
    text.skip_bom()
    first = text.peek(_SPACE)
    if first == b"{":
        yield text.take_object()
    elif first == b"[":
        text.position += 1
        while (character := text.peek(_SPACE_AND_COMMAS)) == b"{":
            yield text.take_object()
        if not character:
            raise IncompleteJSONError("the JSON text ends before its array is closed")
        if character != b"]":
            raise ValueError("the JSON array holds something else than objects")
        text.position += 1
    elif first:
        raise ValueError("the text is no JSON array of objects")
    else:
        raise IncompleteJSONError("the text is empty")
    if text.peek(_SPACE):
        raise ValueError("the JSON text goes on after its end")


class _Text:
    """The text that has arrived and is not yet consumed, from `position` on."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._source = iter(chunks)
        self._buffer = bytearray()
        self.position = 0

    def _more(self) -> bool:
        chunk = next(self._source, None)
        if chunk is None:
            return False
        self._buffer += chunk
        return True

    def skip_bom(self) -> None:
        while len(self._buffer) < len(_BOM) and _BOM.startswith(self._buffer) and self._more():
            continue
        if self._buffer.startswith(_BOM):
            self.position = len(_BOM)

    def peek(self, skipped: re.Pattern[bytes]) -> bytes:
        """The next character that is not to be skipped; empty at the end."""
        while True:
            match = skipped.match(self._buffer, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self._buffer):
                return bytes(self._buffer[self.position : self.position + 1])
            self._buffer.clear()
            self.position = 0
            if not self._more():
                return b""

    def take_object(self) -> bytes:
        """The text of the object that begins here."""
        depth, scan = 0, self.position
        while True:
            unfinished = None
            for token in _TOKEN.finditer(self._buffer, scan):
                kind = token[0]
                if kind == b"{":
                    depth += 1
                elif kind == b"}":
                    depth -= 1
                    if not depth:
                        item = bytes(self._buffer[self.position : token.end()])
                        self.position = token.end()
                        return item
                elif kind == b'"':
                    unfinished = token.start()
                    break
                scan = token.end()
            if unfinished is not None:
                scan = unfinished
            del self._buffer[: self.position]
            scan -= self.position
            self.position = 0
            # A long string arrives in many chunks: looking for its end anew each time would take quadratic time.
            wanted = scan + 2 * (len(self._buffer) - scan) if unfinished is not None else 0
            if not self._more():
                raise IncompleteJSONError("the JSON text ends inside an object")
            while len(self._buffer) < wanted and self._more():
                continue


# ----------------------------------------------------------------------------------------------------------------------
# Tells when a server plainly ignored a filter: by rule servers ignore what they do not know and return everything.
#
# Only what cannot be a matter of interpretation is judged: identifiers (UI), dates (DA) and codes (CS) that a row
# carries
# itself. Letter case, wildcards and several values are read in favour of the server.


_JUDGED = frozenset({"UI", "DA", "CS"})


def contradiction(query: SearchQuery, row: JSONDataset) -> str | None:
    """The keyword (or tag) of a filter that a row contradicts; None if there is none.

    Args:
        query: The search.
        row: A row of its answer.
    """
    for key, text in query.search_filters:
        tags = resolve(key)
        # The character set is never matched (PS3.4 section C.2.2.2); sequences are the server's own reading.
        if len(tags) != 1 or tags[0] == "00080005" or vr_of(tags[0]) not in _JUDGED:
            continue
        wanted = [value.strip() for value in filter_values(key, text)]
        if any(value in ("", "*", '""') for value in wanted):
            continue
        element = row.get(tags[0])
        values = element.get("Value") if isinstance(element, dict) else None
        present = [value.strip() for value in values or () if isinstance(value, str) and value.strip()]
        if present and not any(_matches(vr_of(tags[0]), value, pattern) for value in present for pattern in wanted):
            return _name(tags[0])
    return None


def unanswered(query: SearchQuery, rows: Sequence[JSONDataset]) -> list[str]:
    """The filters that the rows of an answer say nothing about, as they were given.

    A server returns the attributes that it matches (PS3.18 section 10.6.3.3). Where no row has one, it may have ignored
    the filter, as Orthanc 1.10.1 does with attributes of sequences and private ones (measured).

    Args:
        query: The search.
        rows: The rows of one answer; from none nothing follows.
    """
    found = []
    for key, text in query.search_filters:
        tag = resolve(key)[0]
        universal = not text.strip("*") and "\\" not in text
        if rows and not universal and tag != "00080005" and not any(tag in row for row in rows):
            found.append(key)
    return found


def _name(tag: str) -> str:
    try:
        return lookup_keyword(tag)
    except KeyError:
        return tag


def _matches(vr: str, value: str, pattern: str) -> bool:
    if vr == "UI":
        return value == pattern
    if vr == "DA":
        date = value.replace(".", "").replace("-", "")
        low, dash, high = pattern.replace(".", "").partition("-")
        if not dash:
            return date == low or not low.isdigit()
        return (not low or low <= date) and (not high or date <= high)
    return _wildcard(pattern).match(value) is not None


@lru_cache(maxsize=256)
def _wildcard(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern.replace("[", "[[]")), re.IGNORECASE)


# ----------------------------------------------------------------------------------------------------------------------
# Searches that a server lacks, made of those it has: studies, then their series, then their instances.


Search = Callable[[SearchQuery], Iterator[JSONDataset]]

# What a row says of itself only, not of its children.
_OWN = frozenset({"00080005", "00080054", "00080056", "00081190", "00080201"})


def resource_name(query: SearchQuery) -> str | None:
    """The profile's name of the search resource that a query needs beyond those every server has, or None.

    Every server has ``/studies``, ``/studies/UID/series`` and ``/studies/UID/series/UID/instances``.
    """
    if query.level == "series" and query.study_instance_uid is None:
        return "flat_series"
    if query.level == "instance" and query.study_instance_uid is None:
        return "flat_instances"
    if query.level == "instance" and query.series_instance_uid is None:
        return "study_instances"
    return None


def parent_query(query: SearchQuery) -> SearchQuery:
    """The search for the objects that hold what a query looks for: studies, or the series of its study."""
    shares = apportion(query)
    if query.study_instance_uid is None:
        return replace(query, level="study", search_filters=shares["study"], fields=_fields(query, "study"))
    return replace(query, level="series", search_filters=shares["series"], fields=_fields(query, "series"))


def walk(query: SearchQuery, search: Search) -> Iterator[JSONDataset]:
    """The rows of a query, level by level.

    Each filter is asked at the level its attribute belongs to. Attributes of the study and series that the rows of a
    flat search would carry are copied into the rows (PS3.18 section 10.6.3.3).

    Args:
        query: The query; its level is ``"series"`` or ``"instance"``.
        search: Makes a search that the server has.
    """
    shares = apportion(query)
    if query.study_instance_uid is None:
        for study in search(parent_query(query)):
            reference = Resource.of(study)
            below = replace(
                query,
                study_instance_uid=reference.study_instance_uid,
                search_filters=(*shares["series"], *shares["instance"]),
                fields=tuple(name for name in query.fields if name == "all" or level_of(name) != "study"),
            )
            rows = search(below) if query.level == "series" else walk_instances(below, search)
            for row in rows:
                yield _with_parent(row, study)
        return
    if shares["study"]:
        # A nested search need not look at the study's attributes: whether the study matches is asked first.
        studies = replace(
            query,
            level="study",
            study_instance_uid=None,
            series_instance_uid=None,
            search_filters=(("StudyInstanceUID", query.study_instance_uid), *shares["study"]),
            fields=(),
        )
        if not any(Resource.of(row).study_instance_uid == query.study_instance_uid for row in search(studies)):
            return
    yield from walk_instances(replace(query, search_filters=(*shares["series"], *shares["instance"])), search)


def walk_instances(query: SearchQuery, search: Search) -> Iterator[JSONDataset]:
    """The instances of one study, series by series."""
    shares = apportion(query)
    for series in search(parent_query(query)):
        reference = Resource.of(series)
        below = replace(
            query,
            series_instance_uid=reference.series_instance_uid,
            search_filters=shares["instance"],
            fields=tuple(name for name in query.fields if name == "all" or level_of(name) == "instance"),
        )
        for row in search(below):
            yield _with_parent(row, series)


def _fields(query: SearchQuery, level: str) -> tuple[str, ...]:
    return tuple(name for name in query.fields if name == "all" or level_of(name) == level)


def _with_parent(row: JSONDataset, parent: JSONDataset) -> JSONDataset:
    missing = {tag: element for tag, element in parent.items() if tag not in row and tag not in _OWN}
    return dict(sorted({**row, **missing}.items())) if missing else row


# ----------------------------------------------------------------------------------------------------------------------


T = TypeVar("T")

_BEGINNING = re.compile(rb'(?:\xef\xbb\xbf)?\s*(?:\[\s*)?(?:\{\s*(?:"|\Z)|\Z)')

_ACCEPTS = (DICOM_JSON, "application/json", 'multipart/related; type="application/dicom+xml"')
_ABSENT = (404, 405, 501)
_UIDS: dict[SearchLevel, tuple[str, str]] = {
    "study": ("0020000D", "StudyInstanceUID"),
    "series": ("0020000E", "SeriesInstanceUID"),
    "instance": ("00080018", "SOPInstanceUID"),
}


class Searcher:
    """Searches one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def search_page(self, query: SearchQuery, *, offset: int = 0, limit: int | None = None) -> SearchPage:
        """One page; see `DICOMClient.search_page`.

        Without a limit none is sent, and the server decides. A limit above the server's maximum is lowered to it.
        """
        if limit == 0:
            return SearchPage([], offset, 0)
        if self._walks(query):
            return self._walked_page(query, offset, limit)
        try:
            return self._request_page(query, offset, self._allowed(query.level, limit))
        except DICOMwebError as error:
            if not self._lacks_resource(query, error):
                raise
        return self._walked_page(query, offset, limit)

    def iter_search(
        self, query: SearchQuery, *, offset: int = 0, limit: int | None = None, page_size: int | None = None
    ) -> Iterator[JSONDataset]:
        """Every row of a query once; see `DICOMClient.iter_search`."""
        if page_size is not None and (not isinstance(page_size, int) or isinstance(page_size, bool) or page_size < 1):
            raise ValueError(f"page_size must be a positive integer or None, not {page_size!r}")
        return self._iterate(query, offset, limit, page_size)

    def count(self, query: SearchQuery) -> int | None:
        """The number of rows by the server's count resource, if it has one."""
        if not self._service.profile.count_resources or self._walks(query):
            return None
        text = query_string(query, escapes=self._decodes(query))
        url = with_query(self._service.urls.search(query, count=True), text)
        answer, document = self._read(url, ("application/json",), _json)
        number = document.get("count") if isinstance(document, dict) else None
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise answer.error("the count resource does not answer with a number", MalformedResponseError)
        return number

    # Walking --------------------------------------------------------------------------------------------------------

    def _walks(self, query: SearchQuery) -> bool:
        name = resource_name(query)
        return name is not None and (
            getattr(self._service.profile, name) is False or name in self._service.missing_resources
        )

    def _lacks_resource(self, query: SearchQuery, error: DICOMwebError) -> bool:
        """Whether a refusal means that the resource does not exist while its parents can be searched."""
        name = resource_name(query)
        # That a profile says the server has the resource is no proof: it may have been chosen by the address alone.
        if name is None or error.status not in _ABSENT:
            return False
        try:
            self._request_page(parent_query(query), 0, 1)
        except DICOMwebError as parent_error:
            raise error from parent_error
        self._service.missing_resources.add(name)
        logger.info("the server has no %s search; its parents are walked", name)
        return True

    def _walked_page(self, query: SearchQuery, offset: int, limit: int | None) -> SearchPage:
        rows = list(self._iterate(query, offset, None if limit is None else limit + 1, None))
        more = limit is not None and len(rows) > limit
        return SearchPage(rows[:limit], offset, limit, more=more)

    # Paging ---------------------------------------------------------------------------------------------------------

    def _iterate(
        self, query: SearchQuery, offset: int, limit: int | None, page_size: int | None
    ) -> Iterator[JSONDataset]:
        if limit == 0:
            return
        parts = [query] if self._service.profile.uid_lists else list(_split_uid_lists(query))
        if len(parts) > 1 or self._walks(query):
            stop = None if limit is None else offset + limit
            yield from islice(self._flattened(parts, page_size), offset, stop)
            return
        yielded = False
        try:
            for row in self._paged(query, offset, limit, page_size):
                yield row
                yielded = True
            return
        except DICOMwebError as error:
            if yielded or not self._lacks_resource(query, error):
                raise
        yield from self._iterate(query, offset, limit, page_size)

    def _flattened(self, parts: list[SearchQuery], page_size: int | None) -> Iterator[JSONDataset]:
        seen: set[bytes] = set()
        for part in parts:
            if self._walks(part):
                rows = walk(part, lambda below: self._iterate(below, 0, None, page_size))
            else:
                rows = self._iterate(part, 0, None, page_size)
            for row in rows:
                key = _key(part.level, row)
                if key is None or key not in seen:
                    if key is not None:
                        seen.add(key)
                    yield row

    def _paged(
        self, query: SearchQuery, offset: int, limit: int | None, page_size: int | None
    ) -> Iterator[JSONDataset]:
        profile = self._service.profile
        size = self._allowed(query.level, page_size or profile.page_size(query.level)) or 1
        seen: set[bytes] = set()
        first: bytes | None = None
        total: int | None = None
        position, yielded, stalled = offset, 0, 0
        while True:
            asked = size if limit is None else min(size, limit - yielded)
            self._check_caps(query, position)
            if profile.max_rows is not None:
                asked = min(asked, profile.max_rows - position)
            # That rows follow is no news here: they are asked for next.
            page = self._request_page(query, position, asked, level=logging.INFO)
            total = page.total if page.total is not None else total
            keys = [_key(query.level, row) for row in page.rows]
            begins = (keys[0] or _fingerprint(page.rows[0])) if keys else None
            if begins is not None and begins == first:
                raise self._paging_error(
                    query, position, "the server ignores offset: a later page begins like the first"
                )
            first = begins if first is None else first
            fresh = 0
            for row, key in zip(page.rows, keys, strict=True):
                if key is not None:
                    if key in seen:
                        continue
                    seen.add(key)
                fresh += 1
                yield row
                yielded += 1
                if yielded == limit:
                    return
            if fresh:
                stalled = 0
                # Of more rows than asked for only the new ones count: the page may begin with rows of the one before.
                position += len(page.rows) if len(page.rows) <= asked else fresh
            else:
                stalled += 1
                if page.rows and (not profile.short_pages or stalled > 1):
                    raise self._paging_error(query, position, "a page repeats only rows that were there before")
                if not page.rows and (not profile.short_pages or stalled > 1):
                    break
                # Such servers count rows for the offset that they do not return.
                position += max(asked, 1)
                if page.more is False:
                    break
                continue
            # A total is believed only where as many different rows have come: rows may move between pages.
            if page.more is False and (page.total is None or offset + yielded >= page.total):
                break
        if total is not None and limit is None and offset + yielded != total:
            logger.warning(
                "%s: %d rows were announced and %d came; did the archive change during the search?",
                self._service.urls.search(query),
                total - offset,
                yielded,
            )

    def _check_caps(self, query: SearchQuery, position: int) -> None:
        profile = self._service.profile
        cap = profile.max_rows
        if cap is not None and position >= cap:
            raise TooManyResultsError(
                f"the server returns the first {cap} rows of a search only, and there may be more; narrow the search, "
                f"for example by ranges of StudyDate",
                method="GET",
                url=self._service.urls.search(query),
            )
        if profile.max_offset is not None and position > profile.max_offset:
            raise TooManyResultsError(
                f"the server accepts no offset above {profile.max_offset}, and there may be more rows; narrow the "
                f"search, for example by ranges of StudyDate",
                method="GET",
                url=self._service.urls.search(query),
            )

    def _paging_error(self, query: SearchQuery, position: int, what: str) -> PagingError:
        return PagingError(
            f"{what} (asked for rows from {position} on). The rows so far are not known to be all. Ask for one page "
            f"with a limit that covers everything, or use a profile whose max_limits tell the server's true maximum",
            method="GET",
            url=self._service.urls.search(query),
        )

    # One request ----------------------------------------------------------------------------------------------------

    def _allowed(self, level: SearchLevel, limit: int | None) -> int | None:
        maximum = self._service.profile.max_limit(level)
        return limit if limit is None or maximum is None else min(limit, maximum)

    def _request_page(
        self, query: SearchQuery, offset: int, limit: int | None, *, level: int = logging.WARNING
    ) -> SearchPage:
        profile = self._service.profile
        if profile.order_by is not None:
            name, value = profile.order_by
            if all(given != name for given, _ in query.additional_params):
                extra = (name, value.format(uid=_UIDS[query.level][1]))
                query = replace(query, additional_params=(*query.additional_params, extra))
        escapes = self._decodes(query)
        text = query_string(query, offset=offset, limit=limit, escapes=escapes)
        url = with_query(self._service.urls.search(query), text)
        try:
            answer, found = self._read(url, _ACCEPTS, rows_of, level=level)
        except DICOMwebError as error:
            if error.status != 413:
                raise
            raise TooManyResultsError(
                f"the search finds more than the server returns; narrow it, for example by ranges of StudyDate. "
                f"{error.detail}".strip(),
                status=413,
                url=error.url,
                method=error.method,
                attempts=error.attempts,
                response=error.response,
            ) from error
        rows = [_within(query, row) for row in found]
        for row in rows:
            ignored = contradiction(query, row)
            if ignored is not None:
                raise answer.error(
                    f"the server ignored the filter on {ignored}: a row of the answer contradicts it. Its other rows "
                    f"cannot be trusted to match; search without this filter, or by an attribute that the server "
                    f"supports",
                    FilterIgnoredError,
                )
        self._report_unanswered(query, rows)
        warnings = warnings_of(answer)
        total = _total(answer)
        return SearchPage(
            rows, offset, limit, total, self._more(query.level, answer, rows, offset, limit, total, warnings), warnings
        )

    def _report_unanswered(self, query: SearchQuery, rows: Sequence[JSONDataset]) -> None:
        """Logs, once for each filter, that the server may have ignored it."""
        for key in unanswered(query, rows):
            if key not in self._service.unanswered_filters:
                self._service.unanswered_filters.add(key)
                logger.warning(
                    "%s: no row of the answer has %s: the server may have ignored the filter on it and returned "
                    "everything; check the rows",
                    self._service.urls.search(query),
                    key,
                )

    def _read(
        self, url: str, accepts: Sequence[str], reader: Callable[[Answer], T], *, level: int = logging.WARNING
    ) -> tuple[Answer, T]:
        """An answer and what a reader makes of it; asked for again if the reader finds that it breaks off."""
        for attempt in self._service.transport.attempts():
            with attempt:
                answer = self._service.get_all(url, accepts, level=level, attempt=attempt)
                return answer, reader(answer)
        raise AssertionError("attempts() ends with a result or an error")

    def _decodes(self, query: SearchQuery) -> bool:
        """Whether the server decodes percent escapes, asked only for a query that has some."""
        known = self._service.profile.decodes_queries
        if known is not None:
            return known
        if not needs_escapes(query):
            return True
        if self._service.decodes_queries is None:
            url = with_query(self._service.urls.search(SearchQuery("study")), "limit=%31")
            answer = self._service.transport.request("GET", url, headers={"Accept": DICOM_JSON}, accept_statuses=(400,))
            self._service.decodes_queries = answer.status != 400
        return self._service.decodes_queries

    def _more(
        self,
        level: SearchLevel,
        answer: Answer,
        rows: list[JSONDataset],
        offset: int,
        limit: int | None,
        total: int | None,
        warnings: tuple[str, ...],
    ) -> bool | None:
        profile = self._service.profile
        if total is not None and total > 0:
            if offset + len(rows) < total:
                return True
            # Totals can be wrong: behind a full page the next one is looked at all the same.
            return None if limit is not None and len(rows) >= limit else False
        if 'rel="next"' in answer.headers.get("Link", "") or any("fuzzy" not in text.lower() for text in warnings):
            return True
        if profile.short_pages:
            return None
        if not rows:
            return False
        maximum = profile.max_limit(level)
        if limit is not None and maximum is not None and limit <= maximum and len(rows) < limit:
            return False
        return None


def rows_of(answer: Answer) -> list[JSONDataset]:
    """The datasets of an answer in JSON or XML, by what its body is (PS3.18 sections 8.7.3.2 and F).

    Raises:
        MalformedResponseError: If it is neither.
    """
    if answer.status == 204:
        return []
    content = answer.content.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not content:
        if answer.headers.get("Content-Length") == "0":
            return []
        raise answer.error("the answer is empty", MalformedResponseError)
    content_type = answer.headers.get("Content-Type") or ""
    if content_type.lower().startswith("multipart/"):
        try:
            parts = [part.read() for part in MultipartReader([answer.content], content_type)]
            return [parse_native_model(part) for part in parts]
        except ValueError as error:
            raise answer.error(f"the answer is not multipart XML: {error}", MalformedResponseError) from error
    if content[:1] == b"<":
        try:
            return [parse_native_model(content)]
        except ValueError as error:
            raise answer.error(f"expected DICOM JSON, got {_kind(content)}", MalformedResponseError) from error
    document = _json(answer)
    if isinstance(document, dict) and document and all(_is_tag(key) for key in document):
        document = [document]
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise answer.error(
            f"expected a list of DICOM JSON datasets, got {type(document).__name__}", MalformedResponseError
        )
    return document


def _json(answer: Answer) -> Any:
    try:
        return json_decode.loads(answer.content)
    except ValueError as error:
        if _breaks_off(answer.content):
            raise answer.error(
                f"expected JSON, got a text that breaks off after {len(answer.content)} bytes",
                ResponseIncompleteError,
                retryable=True,
            ) from error
        raise answer.error(
            f"expected JSON, got {_kind(answer.content.lstrip())} ({answer.headers.get('Content-Type') or 'no type'})",
            MalformedResponseError,
        ) from error


def _breaks_off(content: bytes) -> bool:
    """Whether a text that is no JSON is the beginning of some."""
    if not _BEGINNING.match(content):
        return False
    try:
        for _ in iter_json_objects([content]):
            pass
    except IncompleteJSONError:
        return True
    except ValueError:
        return False
    return False


def _kind(content: bytes) -> str:
    if content[:1] == b"<":
        html = content[:200].lower().startswith((b"<!doctype html", b"<html"))
        return "an HTML page (a login page?)" if html else "XML that is no Native DICOM Model"
    return f"{len(content)} bytes of something else"


def _is_tag(key: object) -> bool:
    return isinstance(key, str) and len(key) == 8 and all(character in "0123456789ABCDEFabcdef" for character in key)


def _total(answer: Answer) -> int | None:
    text = (answer.headers.get("X-Total-Count") or "").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _key(level: SearchLevel, row: JSONDataset) -> bytes | None:
    """A row's identity in 16 bytes, so that a million rows can be remembered; None if it has no UID.

    The UIDs of the study and series are part of it: some archives hold one UID in several of them (Orthanc does), and
    each can be retrieved by itself.
    """
    uids: list[str] = []
    for name, (tag, _) in _UIDS.items():
        element = row.get(tag)
        values = element.get("Value") if isinstance(element, dict) else None
        uids.append(values[0] if values and isinstance(values[0], str) else "")
        if name == level:
            break
    if not uids[-1]:
        return None
    return hashlib.blake2b("/".join(uids).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _fingerprint(row: JSONDataset) -> bytes:
    """What tells a row without UID from others: all of it."""
    return hashlib.blake2b(json_decode.dumps(row), digest_size=16).digest()


def _within(query: SearchQuery, row: JSONDataset) -> JSONDataset:
    """The row with the UIDs that the resource searched implies, which servers may leave out."""
    for tag, uid in (("0020000D", query.study_instance_uid), ("0020000E", query.series_instance_uid)):
        if uid is not None and tag not in row:
            row[tag] = {"vr": "UI", "Value": [uid]}
    return row


def _split_uid_lists(query: SearchQuery) -> Iterator[SearchQuery]:
    """The query, once for each value of its lists of UIDs."""
    for position, (key, text) in enumerate(query.search_filters):
        values = filter_values(key, text)
        if len(values) > 1 and vr_of(resolve(key)[-1]) == "UI":
            for value in dict.fromkeys(values):
                filters = (*query.search_filters[:position], (key, value), *query.search_filters[position + 1 :])
                yield from _split_uid_lists(replace(query, search_filters=filters))
            return
    yield query
