"""Searching (QIDO-RS, PS3.18 section 10.6): one page, and all rows of a query, whatever the server's behaviour.

Pages follow each other as `dicomweb_io.paging` says. Searches that a server lacks are made of those it has: studies,
then their series, then their instances. The standard lets servers ignore unknown filters and return everything; an
answer that evidently does so is an error.
"""

from __future__ import annotations

import logging
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from tempfile import SpooledTemporaryFile
from typing import Any, overload

from dicomweb_io.dicom import json_decode
from dicomweb_io.dicom.attributes import resolve, vr_of
from dicomweb_io.dicom.errors import IncompleteJSONError
from dicomweb_io.dicom.json_decode import first_text, is_dataset, without_padding
from dicomweb_io.dicom.matching import carries, contradicted, filter_values, same_attributes, selects
from dicomweb_io.dicom.media_types import DICOM_JSON
from dicomweb_io.dicom.uids import is_uid
from dicomweb_io.dicom.xml_model import parse_native_model
from dicomweb_io.elements import (
    LEVELS,
    UID_KEYWORDS,
    UID_TAGS,
    JSONDataset,
    SearchLevel,
    SearchPage,
    SearchQuery,
)
from dicomweb_io.errors import (
    DICOMwebError,
    FilterIgnoredError,
    MalformedResponseError,
    ResponseIncompleteError,
    SearchIncompleteError,
    TooManyResultsError,
)
from dicomweb_io.http.multipart import MultipartReader
from dicomweb_io.http.response import MAX_ANSWER_BYTES, Answer, StreamedAnswer
from dicomweb_io.paging import Paging, Remembered, read_in_turn, resource_name, row_key, rows_follow
from dicomweb_io.queries import MODALITIES_IN_STUDY, MODALITY, apportion, conditions, level_of
from dicomweb_io.web.service import OfService, logger, warnings_of
from dicomweb_io.web.urls import needs_escapes, query_string, with_query

_ACCEPTS = (DICOM_JSON, "application/json", 'multipart/related; type="application/dicom+xml"')
_ABSENT = (404, 405, 501)

# What announces rows that follow: a link, or the warning of PS3.18 section 8.3.4.4 in the words of many servers.
_NEXT = re.compile(r'rel\s*=\s*"?[^",;]*\bnext\b', re.IGNORECASE)
_MORE = re.compile(
    r"additional|remaining|exceed|maximum|truncat|more (?:results|rows|matches|studies|series|inst)", re.IGNORECASE
)


class Searcher(OfService):
    """Searches one service."""

    def search_page(
        self,
        query: SearchQuery,
        *,
        offset: int = 0,
        limit: int | None = None,
        most: int | None = None,
        alone: bool = True,
    ) -> SearchPage:
        """One page; see `DICOMClient.search_page`.

        Without a limit none is sent, and the server decides. A limit above the server's maximum is lowered to it.

        Args:
            query: The search.
            offset: The offset of the first row.
            limit: The maximum number of rows.
            most: Further rows, of a server that ignores the limit, are left out and not read.
            alone: Whether the page is all that is asked for: then levels are walked where the server lacks the search,
                and warnings that more rows follow are logged.
        """
        if alone and limit == 0:
            return SearchPage([], offset, 0)
        if alone and self._walks(query):
            return self._walked_page(query, offset, limit)
        maximum = self._service.profile.max_limit(query.level)
        sent = limit if limit is None or maximum is None else min(limit, maximum)
        level = logging.WARNING if alone else logging.INFO
        try:
            url = self._address(query, offset, sent)
            for attempt in self._service.transport.attempts():
                # An answer that ends early is requested again.
                with (
                    attempt,
                    self._service.get(
                        url, _ACCEPTS, attempt=attempt, headers={"Accept-Encoding": "gzip, deflate"}, level=level
                    ) as answer,
                ):
                    rows, unreadable = self._read(query, answer, most)
        except DICOMwebError as error:
            if alone and self._lacks_resource(query, error):
                return self._walked_page(query, offset, limit)
            if error.status != 413:
                raise
            refusal = TooManyResultsError(
                f"the search finds more than the server returns; narrow it, for example by ranges of StudyDate. "
                f"{error.detail}".strip(),
                status=413,
                url=error.url,
                method=error.method,
                attempts=error.attempts,
                response=error.response,
            )
            refusal.server_message = error.server_message
            raise refusal from error
        warnings = warnings_of(answer)
        page = SearchPage(rows, offset, sent, _total(answer), warnings=warnings, unreadable=unreadable)
        announced = bool(_NEXT.search(answer.headers.get("Link", "")) or any(map(_MORE.search, warnings)))
        return replace(page, more=rows_follow(self._service.profile, query.level, page, announced))

    def iter_search(
        self, query: SearchQuery, *, offset: int = 0, limit: int | None = None, page_size: int | None = None
    ) -> Iterator[JSONDataset]:
        """Every row of a query once; see `DICOMClient.iter_search`."""
        return self._iterate(query, offset, limit, page_size)

    def count(self, query: SearchQuery) -> int | None:
        """The number of rows by the server's count resource, if it has one."""
        if not self._service.profile.count_resources or self._walks(query):
            return None
        query = self._understood(query)
        text = query_string(query, escapes=self._decodes(query))
        url = with_query(self._service.urls.search(query, count=True), text)
        for attempt in self._service.transport.attempts():
            with attempt:
                answer = self._service.get_all(url, ("application/json",), attempt=attempt)
                document = _json(answer)
        number = document.get("count") if isinstance(document, dict) else None
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise answer.error("the count resource does not answer with a number", MalformedResponseError)
        return number

    # All rows ---------------------------------------------------------------------------------------------------------

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
        seen = Remembered()
        incomplete: list[SearchIncompleteError] = []
        nameless: list[JSONDataset] = []

        def search(part: SearchQuery) -> Iterator[JSONDataset]:
            # What one of the searches lacks does not keep the rows of the others back.
            try:
                yield from self._iterate(part, 0, None, page_size)
            except SearchIncompleteError as error:
                incomplete.append(error)

        for part in parts:
            for row in walk(part, search, nameless) if self._walks(part) else search(part):
                if not seen.repeats(row_key(row, part.level)):
                    yield row
        if nameless:
            what = f"{len(nameless)} rows of the levels above name no study or series; what is in them is missing"
            raise SearchIncompleteError(what, method="GET", url=self._service.urls.search(parts[0]))
        if incomplete:
            raise incomplete[0]

    def _paged(
        self, query: SearchQuery, offset: int, limit: int | None, page_size: int | None
    ) -> Iterator[JSONDataset]:
        url = self._service.urls.search(query)
        paging = Paging(self._service.profile, query, url=url, start=offset, limit=limit, page_size=page_size)
        yield from read_in_turn(
            paging,
            lambda request: self.search_page(
                query, offset=request.offset, limit=request.limit, most=limit, alone=False
            ),
        )
        if paging.total_is_wrong:
            logger.warning(
                "%s: %d rows were announced and %d arrived; did the archive change during the search?",
                url,
                (paging.total or 0) - offset,
                paging.received - offset,
            )
        if paging.unpaged:
            logger.info("%s: the server ignores offset and limit: its first answer is the whole result", url)

    def _walks(self, query: SearchQuery) -> bool:
        name = resource_name(query)
        return name is not None and (
            getattr(self._service.profile, name) is False or name in self._service.missing_resources
        )

    def _lacks_resource(self, query: SearchQuery, error: DICOMwebError) -> bool:
        """Whether a refusal means that the resource does not exist while its parents can be searched."""
        name = resource_name(query)
        # That a profile says the server has the resource is not a proof: it may have been chosen by the address alone.
        if name is None or error.status not in _ABSENT:
            return False
        try:
            self.search_page(parent_query(query), limit=1, alone=False)
        except DICOMwebError as parent_error:
            raise error from parent_error
        self._service.missing_resources.add(name)
        logger.info("the server has no %s search; the levels above are searched one by one", name)
        return True

    def _walked_page(self, query: SearchQuery, offset: int, limit: int | None) -> SearchPage:
        rows: list[JSONDataset] = []
        try:
            for row in self._iterate(query, offset, None if limit is None else limit + 1, None):
                rows.append(row)  # noqa: PERF402 - those before an error are kept
        except SearchIncompleteError as error:
            error.rows = rows
            raise
        more = limit is not None and len(rows) > limit
        return SearchPage(rows[:limit], offset, limit, more=more)

    # One request ------------------------------------------------------------------------------------------------------

    def _understood(self, query: SearchQuery) -> SearchQuery:
        """A query as the server understands it: where studies have no Modality, ModalitiesInStudy is asked for."""
        if query.level != "study" or self._service.profile.matches_series_of_studies is not False:
            return query
        given = {resolve(key)[0] for key, _ in query.search_filters}
        filters = []
        for key, text in query.search_filters:
            tag = resolve(key)[0]
            mapped = tag == MODALITY and MODALITIES_IN_STUDY not in given
            filters.append(("ModalitiesInStudy" if mapped else key, text))
            if level_of(tag) != "study" and not mapped:
                self._service.warn_once(
                    query,
                    key,
                    "this server matches no attributes of series or instances in a search for studies, so the filter "
                    "on %s finds nothing; search for series, whose rows name their studies",
                )
        return replace(query, search_filters=tuple(filters))

    def _address(self, query: SearchQuery, offset: int, limit: int | None) -> str:
        query = self._understood(query)
        order_by = self._service.profile.order_by
        if order_by is not None and all(given != order_by[0] for given, _ in query.additional_params):
            extra = (order_by[0], order_by[1].format(uid=UID_KEYWORDS[query.level]))
            query = replace(query, additional_params=(*query.additional_params, extra))
        text = query_string(query, offset=offset, limit=limit, escapes=self._decodes(query))
        return with_query(self._service.urls.search(query), text)

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

    def _read(self, query: SearchQuery, answer: StreamedAnswer, most: int | None) -> tuple[Sequence[JSONDataset], int]:
        """The rows of an answer, `most` of them at most, and how many further ones are not datasets."""
        head, chunks = bytearray(), answer.iter_chunks()
        while len(head) <= _MAX_WHOLE and (chunk := next(chunks, None)) is not None:
            head += chunk
        tokens = sum(map(head.count, (b"{", b"[", b",")))
        if head.lstrip(_BEFORE_JSON)[:1] == b"[" and (len(head) > _MAX_WHOLE or tokens > _MAX_TOKENS):
            return self._read_in_turn(query, answer, chain([bytes(head)], chunks), most)
        for chunk in chunks:
            head += chunk
            if len(head) > MAX_ANSWER_BYTES:
                raise answer.error(f"the answer is larger than {MAX_ANSWER_BYTES} bytes", MalformedResponseError)
        datasets, unreadable = rows_of(answer.with_content(bytes(head)), most)
        complete = _completion(query)
        rows = [complete(without_padding(row)) for row in datasets]
        self._check_filters(query, answer, rows)
        return rows, unreadable

    def _read_in_turn(
        self, query: SearchQuery, answer: StreamedAnswer, chunks: Iterable[bytes], most: int | None
    ) -> tuple[Sequence[JSONDataset], int]:
        """The same of a large answer, which is never in memory as a whole."""
        complete = _completion(query)
        rows = LargeRows(lambda row: complete(without_padding(row)))
        unreadable, judged = 0, 0
        try:
            for text in json_decode.iter_json_objects(chunks, max_bytes=_MAX_ROW, keep_others=True):
                if len(rows) + unreadable == most:
                    break
                if text == b"null":
                    unreadable += 1
                else:
                    rows.append(text)
                if len(rows) + unreadable > _MAX_ROWS:
                    raise answer.error(
                        f"the answer has more than {_MAX_ROWS:,} rows; narrow the search", TooManyResultsError
                    )
                if len(rows) - judged == _JUDGED_AT_ONCE:
                    self._check_filters(query, answer, rows[judged:])
                    judged = len(rows)
            self._check_filters(query, answer, rows[judged:])
        except IncompleteJSONError as error:
            raise answer.error(f"expected JSON, but {error}", ResponseIncompleteError, retryable=True) from error
        except ValueError as error:
            raise answer.error(f"expected JSON, but {error}", MalformedResponseError) from error
        return rows, unreadable

    def _check_filters(self, query: SearchQuery, answer: Answer | StreamedAnswer, rows: Sequence[JSONDataset]) -> None:
        """Fails if a row contradicts the path or a filter; logs, once for each, filters that no row can confirm."""
        path = {UID_TAGS[level]: uid for level, uid in path_uids(query).items()}
        judged = bool(conditions(query))
        for row in rows:
            within = all(_own_uid(row, tag) == uid for tag, uid in path.items())
            outside = None if within else outside_path(query, row)
            if outside is not None:
                raise answer.error(
                    f"the server ignored the path of the search: a row of the answer has {outside}, so the other rows "
                    f"may not belong there either. Its searches inside a study or series cannot be relied on",
                    FilterIgnoredError,
                )
            if not judged:
                continue
            ignored = contradiction(query, row, loose_names=self._service.profile.loose_names)
            if ignored is not None and self._service.filter_mismatch == "error":
                raise answer.error(
                    f"the server ignored the filter on {ignored}: a row of the answer contradicts it, so the other "
                    f"rows may not match either. Search without this filter, or by an attribute that the server "
                    f"supports; filter_mismatch='warn' accepts the rows",
                    FilterIgnoredError,
                )
            if ignored is not None:
                self._service.warn_once(
                    query,
                    ignored,
                    "a row of the answer contradicts the filter on %s: the server may have ignored it; check the rows",
                )
        for key in unanswered(query, rows):
            self._service.warn_once(
                query,
                key,
                "no row of the answer has %s: the server may have ignored the filter on it and returned everything; "
                "check the rows",
            )


# What an answer holds -------------------------------------------------------------------------------------------------

_BEGINNING = re.compile(rb'(?:\xef\xbb\xbf)?\s*(?:\[\s*)?(?:\{\s*(?:"|\Z)|\Z)')


# A larger answer, or one of more values, is read row by row: an object takes 64 bytes, however short its text is.
_MAX_WHOLE = 8 << 20
_MAX_TOKENS = 600_000
_MAX_ROW = 16 << 20
_MAX_ROWS = 1_000_000
_MAX_ROWS_IN_MEMORY = 32 << 20
_JUDGED_AT_ONCE = 100
_BEFORE_JSON = b"\xef\xbb\xbf \t\r\n"


class LargeRows(Sequence[JSONDataset]):
    """The rows of a large answer as text, in a temporary file above 32 MiB; each is parsed when it is asked for.

    The file has no name, so that nothing is left of it whatever happens to the process.

    Args:
        shape: What is done to a row.
    """

    def __init__(self, shape: Callable[[JSONDataset], JSONDataset]) -> None:
        self._shape = shape
        self._ends = array("Q", [0])
        self._file = SpooledTemporaryFile(_MAX_ROWS_IN_MEMORY)  # noqa: SIM115 - it lives as long as its rows

    def __del__(self) -> None:
        self._file.close()

    def append(self, text: bytes) -> None:
        """Adds a row."""
        self._file.seek(self._ends[-1])
        self._file.write(text)
        self._ends.append(self._ends[-1] + len(text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> JSONDataset: ...

    @overload
    def __getitem__(self, index: slice) -> list[JSONDataset]: ...

    def __getitem__(self, index: int | slice) -> JSONDataset | list[JSONDataset]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self._ends[index : index + 2]
        self._file.seek(start)
        return self._shape(json_decode.loads(self._file.read(end - start)))


def rows_of(answer: Answer, most: int | None = None) -> tuple[list[JSONDataset], int]:
    """The datasets of an answer in JSON or XML, by what its body is (PS3.18 sections 8.7.3.2 and F).

    Args:
        answer: The answer.
        most: Further rows are left out.

    Returns:
        The datasets, and how many further rows are none.

    Raises:
        MalformedResponseError: If it is neither.
    """
    if answer.status == 204:
        return [], 0
    content = answer.content.lstrip(_BEFORE_JSON)
    if not content:
        if answer.headers.get("Content-Length") == "0":
            return [], 0
        raise answer.error("the answer is empty", MalformedResponseError)
    content_type = answer.headers.get("Content-Type") or ""
    if content_type.lower().startswith("multipart/"):
        try:
            parts = [part.read() for part in MultipartReader([answer.content], content_type)]
            return [parse_native_model(part) for part in parts][:most], 0
        except ValueError as error:
            raise answer.error(f"the answer is not multipart XML: {error}", MalformedResponseError) from error
    if content[:1] == b"<":
        try:
            return [parse_native_model(content)], 0
        except ValueError as error:
            raise answer.error(f"expected DICOM JSON, got {_kind(content)}", MalformedResponseError) from error
    document = _json(answer)
    if document and is_dataset(document):
        document = [document]
    # One null among rows is a row that cannot be read; a list of other things is no answer to a search.
    if not isinstance(document, list) or not any(row is None or is_dataset(row) for row in document or [None]):
        raise answer.error(
            f"expected a list of DICOM JSON datasets, got {type(document).__name__}", MalformedResponseError
        )
    kept = document[:most]
    rows = [row for row in kept if is_dataset(row)]
    return rows, len(kept) - len(rows)


def _json(answer: Answer) -> Any:
    try:
        return json_decode.loads(answer.content)
    except ValueError as error:
        if _breaks_off(answer.content):
            raise answer.error(
                f"expected JSON, got a text that ends after {len(answer.content)} bytes",
                ResponseIncompleteError,
                retryable=True,
            ) from error
        raise answer.error(
            f"expected JSON, got {_kind(answer.content.lstrip())} ({answer.headers.get('Content-Type') or 'no type'})",
            MalformedResponseError,
        ) from error


def _breaks_off(content: bytes) -> bool:
    """Whether a text that is not valid JSON is the beginning of JSON."""
    if not _BEGINNING.match(content):
        return False
    try:
        for _ in json_decode.iter_json_objects([content]):
            pass
    except IncompleteJSONError:
        return True
    except ValueError:
        return False
    return False


def _kind(content: bytes) -> str:
    if content[:1] == b"<":
        html = content[:200].lower().startswith((b"<!doctype html", b"<html"))
        return "an HTML page (a login page?)" if html else "XML that is not a Native DICOM Model"
    return f"{len(content)} bytes of something else"


def _total(answer: Answer | StreamedAnswer) -> int | None:
    text = (answer.headers.get("X-Total-Count") or "").strip()
    # No archive has more rows; Python refuses to convert thousands of digits.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _completion(query: SearchQuery) -> Callable[[JSONDataset], JSONDataset]:
    """What gives a row the UIDs that the resource searched implies, which servers may leave out.

    Where it lacks its own UID, it shows that: it must not be taken for the study or series it lies in. UIDs of one of
    the objects below it, which nobody asked for, would make it a part of what it is.
    """
    implied = {UID_TAGS[level]: uid for level, uid in path_uids(query).items()}
    own = UID_TAGS[query.level]
    named = {resolve(name) for name in _named(query)}
    below = [UID_TAGS[level] for level in LEVELS[LEVELS.index(query.level) + 1 :]]
    unwanted = [tag for tag in below if (tag,) not in named]

    def complete(row: JSONDataset) -> JSONDataset:
        for tag, uid in implied.items():
            if _own_uid(row, tag) is None and not carries(row, tag):
                row[tag] = {"vr": "UI", "Value": [uid]}
        row.setdefault(own, {"vr": "UI"})
        for tag in unwanted:
            row.pop(tag, None)
        return row

    return complete


def _own_uid(row: JSONDataset, tag: str) -> str | None:
    """A UID of a row in the usual form, fast; None for anything else."""
    try:
        value = row[tag]["Value"][0]
    except (KeyError, IndexError, TypeError):
        return None
    return value if isinstance(value, str) and value else None


def _named(query: SearchQuery) -> Iterator[str]:
    """The attributes that a query names."""
    yield from (name for name, _ in conditions(query))
    yield from (name for name in query.fields if name != "all")


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


# Filters that were ignored ------------------------------------------------------------------------------------------


def outside_path(query: SearchQuery, row: JSONDataset) -> str | None:
    """The UID of a row that lies in another study or series than the one searched, in words; None if there is none.

    Args:
        query: The search.
        row: A row of its answer.
    """
    for level, wanted in path_uids(query).items():
        found = first_text(row, UID_TAGS[level])
        if found and found.strip(" \0") != wanted:
            return f"{UID_KEYWORDS[level]} {found:.64} instead of {wanted}"
    return None


def path_uids(query: SearchQuery) -> dict[SearchLevel, str]:
    """The UIDs of the study and series that a query searches in."""
    uids: dict[SearchLevel, str | None] = {"study": query.study_instance_uid, "series": query.series_instance_uid}
    return {level: uid for level, uid in uids.items() if uid is not None}


def contradiction(query: SearchQuery, row: JSONDataset, *, loose_names: bool = False) -> str | None:
    """The keyword (or tag) of a filter that a row contradicts; None if there is none.

    Args:
        query: The search.
        row: A row of its answer.
        loose_names: Whether the server matches names loosely without being asked to.
    """
    filters = conditions(query)
    if not filters:
        return None
    fuzzy = (
        loose_names or query.fuzzymatching or any(key.lower() == "fuzzymatching" for key, _ in query.additional_params)
    )
    return contradicted(filters, row, level=query.level, names=not fuzzy)


def unanswered(query: SearchQuery, rows: Sequence[JSONDataset]) -> list[str]:
    """The filters that the rows of an answer say nothing about, as they were given.

    A server returns the attributes that it matches (PS3.18 section 10.6.3.3). Where no row has one, it may have ignored
    the filter, as Orthanc 1.10.1 does with attributes of sequences and private ones (measured).

    Args:
        query: The search.
        rows: The rows of one answer; no rows prove nothing.
    """
    found = []
    for key, text in conditions(query):
        tags = same_attributes(resolve(key)[0], query.level)
        shown = any(carries(row, tag) for row in rows for tag in tags)
        if rows and selects(text) and "00080005" not in tags and not shown:
            found.append(key)
    return found


# Walking levels -------------------------------------------------------------------------------------------------------

Search = Callable[[SearchQuery], Iterator[JSONDataset]]

# Attributes of the row itself, not of its children.
_OWN = frozenset({"00080005", "00080054", "00080056", "00081190", "00080201"})


def parent_query(query: SearchQuery) -> SearchQuery:
    """The search for the objects that hold what a query looks for: studies, or the series of its study."""
    shares = apportion(query)
    if query.study_instance_uid is None:
        return replace(query, level="study", search_filters=shares["study"], fields=_fields(query, "study"))
    return replace(query, level="series", search_filters=shares["series"], fields=_fields(query, "series"))


def walk(query: SearchQuery, search: Search, nameless: list[JSONDataset]) -> Iterator[JSONDataset]:
    """The rows of a query, level by level.

    Each filter is asked at the level its attribute belongs to. Attributes of the study and series that the rows of a
    flat search would carry are copied into the rows (PS3.18 section 10.6.3.3).

    Args:
        query: The query; its level is ``"series"`` or ``"instance"``.
        search: Makes a search that the server has.
        nameless: Rows of the levels above that lack their UID are added here.
    """
    shares = apportion(query)
    if query.study_instance_uid is None:
        for study in search(parent_query(query)):
            uid = first_text(study, UID_TAGS["study"])
            if not is_uid(uid, permissive=True):
                nameless.append(study)
                continue
            below = replace(
                query,
                study_instance_uid=uid,
                search_filters=(*shares["series"], *shares["instance"]),
                fields=_fields(query, "series", "instance"),
            )
            for row in search(below) if query.level == "series" else walk(below, search, nameless):
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
        if not any(first_text(row, UID_TAGS["study"]) == query.study_instance_uid for row in search(studies)):
            return
    for series in search(parent_query(query)):
        uid = first_text(series, UID_TAGS["series"])
        if not is_uid(uid, permissive=True):
            nameless.append(series)
            continue
        below = replace(
            query,
            series_instance_uid=uid,
            search_filters=shares["instance"],
            fields=_fields(query, "instance"),
        )
        for row in search(below):
            yield _with_parent(row, series)


def _fields(query: SearchQuery, *levels: SearchLevel) -> tuple[str, ...]:
    return tuple(name for name in query.fields if name == "all" or level_of(name) in levels)


def _with_parent(row: JSONDataset, parent: JSONDataset) -> JSONDataset:
    missing = {tag: element for tag, element in parent.items() if tag not in row and tag not in _OWN}
    return dict(sorted({**row, **missing}.items())) if missing else row
