"""Searches (QIDO-RS, PS3.18 section 10.6) as sources and as steps.

A `Plan` step asks for the first page of each query, in the process's bounded pool, and learns the total if the archive
reports it. The remaining rows become ranges of row offsets for a splittable DoFn, which reads pages ahead and claims
each row just before it emits it. With ``split_by="StudyDate"`` one large search is made as several smaller ones,
without losing studies that have no date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, timedelta
from threading import Lock
from typing import Any, NamedTuple, cast

import apache_beam as beam
from apache_beam.pvalue import PBegin, TaggedOutput
from apache_beam.transforms.display import DisplayDataItem
from apache_beam.utils.windowed_value import WindowedValue

from dicomweb_io.client import DICOMClient
from dicomweb_io.dicom.attributes import is_attribute, resolve
from dicomweb_io.dicom.columns import fields_of
from dicomweb_io.dicom.json_decode import encodable, first_text, first_value
from dicomweb_io.dicom.matching import check_filter, unproven
from dicomweb_io.dicom.uids import is_uid
from dicomweb_io.dicom.values import parse_date
from dicomweb_io.elements import (
    COLLECTIONS,
    LEVELS,
    UID_KEYWORDS,
    UID_TAGS,
    Failure,
    JSONDataset,
    Resource,
    SearchLevel,
    SearchPage,
    SearchQuery,
    shown_keys,
)
from dicomweb_io.endpoint import Endpoint, EndpointLike
from dicomweb_io.errors import FilterIgnoredError, MalformedResponseError
from dicomweb_io.failures import RECOVERABLE
from dicomweb_io.paging import Beginning, PageRequest, Paging, confirm_end, next_rows, pages_by_offset, row_key
from dicomweb_io.pool import Lease, Room
from dicomweb_io.queries import (
    DEFAULTS,
    MODALITY,
    check_limits,
    conditions,
    is_restricted,
    level_of,
    make_query,
    other_conditions,
)
from dicomweb_io.transforms._core import (
    FAILURES,
    Converting,
    DICOMwebTransform,
    FailureMode,
    LeasingDoFn,
    PooledDoFn,
    Problem,
    ReferenceInput,
    Work,
    grouped_places,
    naming,
    piped_by_member,
    problem_of,
    reported,
    several_windows,
)
from dicomweb_io.transforms.coders import register, size_of
from dicomweb_io.transforms.metrics import count, observe
from dicomweb_io.transforms.row_range import END, LEAST_ROWS, ReadAhead, RowRange, RowRangeProvider
from dicomweb_io.transforms.rows import TakeColumns, chosen_columns, row_type

QueryInput = ReferenceInput | SearchQuery
"""What a search step takes: whatever names an object, a query, or a mapping of filters."""

_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_TOLD = frozenset((*UID_KEYWORDS.values(), "AccessionNumber"))
_SEVERAL = re.compile(r"[*?\\\\,]")

# Rows that travel together between two steps. A page of a server that ignores limits may hold many more.
_MAX_PLANNED = 1000


@piped_by_member
class SearchResult(NamedTuple):
    """The output of a search with ``failures="collect"``."""

    rows: Any
    failures: Any


class _Search(DICOMwebTransform):
    """The three searches; see `SearchForStudies`."""

    _element_type = dict[str, Any]
    _is_source = True

    def __init__(
        self,
        endpoint: EndpointLike,
        search_filters: Mapping[str, Any] | None = None,
        fields: Sequence[str] = (),
        *,
        limit: int | None = None,
        fuzzymatching: bool | None = None,
        additional_params: Mapping[str, Any] | None = None,
        page_size: int | None = None,
        columns: Sequence[str] | None = None,
        typed_dates: bool = False,
        distinct: bool = False,
        split_by: str | None = None,
        exact: bool = False,
        allow_several_modalities: bool = False,
        allow_all: bool = False,
        require_match: bool = False,
        failures: FailureMode = "raise",
    ) -> None:
        super().__init__(endpoint, failures=failures)
        check_limits(limit, None)
        if allow_several_modalities and not exact:
            raise ValueError("allow_several_modalities is for exact=True: other searches accept any of several values")
        if split_by not in (None, "StudyDate"):
            raise ValueError(f"split_by must be 'StudyDate' or None, not {split_by!r}")
        if split_by is not None and limit is not None:
            raise ValueError("a search with a limit is not split: give either limit or split_by")
        if require_match and (split_by is not None or limit == 0):
            raise ValueError("require_match is for searches whose rows are counted: leave split_by and limit=0 out")
        self.columns = chosen_columns(columns, typed_dates=typed_dates)
        if self.columns is not None and failures == "raise":
            self.with_output_types(row_type(self.columns))
        if page_size is not None and (not isinstance(page_size, int) or isinstance(page_size, bool) or page_size < 1):
            raise ValueError(f"page_size must be a positive integer, not {page_size!r}")
        self.query = make_query(
            self.level,
            fuzzymatching=fuzzymatching,
            fields=self._all_fields(fields, split_by),
            search_filters=search_filters,
            additional_params=additional_params,
            permissive_uid=True,
        )
        if exact:
            self.query = provable(self.query)
        self.exact = exact
        self.allow_several_modalities = allow_several_modalities
        self.allow_all = allow_all
        self.require_match = require_match
        self.limit = limit
        self.page_size = page_size
        self.distinct = distinct
        self.split_by = split_by

    @property
    def rows_are_proven(self) -> bool:  # type: ignore[override]
        """Whether the search is exact."""
        return self.exact

    def _all_fields(self, fields: Sequence[str], split_by: str | None) -> Sequence[str]:
        """What was asked for, and what columns and the split need."""
        if isinstance(fields, str) or "all" in fields:
            return fields
        more = fields_of(self.columns or ()) + (["00080020"] if split_by else [])
        if "all" in more:
            return ["all"]
        known = {resolve(name)[0] for name in fields if isinstance(name, str)}
        return [*fields, *dict.fromkeys(tag for tag in more if tag not in known)]

    def expand(self, pvalue: Any) -> Any:
        """Builds the steps."""
        collects = self.collects
        failures = []
        if isinstance(pvalue, PBegin):
            query, hold = self.query, False
            start = pvalue | "Start" >> beam.Impulse()
            queries = start | "Query" >> beam.Map(lambda _: query).with_output_types(SearchQuery)
        else:
            hold = several_windows(pvalue)
            made = pvalue | "MakeQueries" >> self._step(_MakeQueries(self, collect=collects), SearchQuery)
            # The archive is asked for each query: what lies before, perhaps a retrieve, is not to wait for the answers.
            queries = made["main"] | "ReshuffleQueries" >> beam.Reshuffle()
            failures.append(made[FAILURES])
        if self.split_by is None:
            rows = self._rows(queries, "", hold, failures, spread=isinstance(pvalue, PBegin))
        else:
            rows = self._split_rows(queries, hold, failures)
        if self.distinct:
            rows = rows | "Distinct" >> _DistinctRows(self.level)
        if self.columns is not None:
            rows = rows | "TakeColumns" >> beam.ParDo(TakeColumns(self.columns)).with_output_types(
                row_type(self.columns)
            )
        lost = self._report(failures)
        return SearchResult(rows, lost) if self._failure_mode == "collect" else rows

    def _rows(self, queries: Any, which: str, hold: bool, failures: list[Any], *, spread: bool) -> Any:
        """The rows of queries, and their failures added to a list.

        Many queries spread over the workers by themselves, and their first pages are not to be shuffled. So `spread`
        is for a single query.
        """
        name, collects = type(self).__name__, self.collects
        how = {"require_match": self.require_match, "collect": collects}
        plan = _Plan(self.endpoint, name, limit=self.limit, page_size=self.page_size, spread=spread, hold=hold, **how)
        planned = queries | f"Plan{which}" >> self._step(plan, PlannedSearch)
        ranges = planned["main"]
        if spread:
            # A runner that does not move the parts of a source, as Flink, would leave all of them to one worker.
            ranges = ranges | f"ReshuffleParts{which}" >> beam.Reshuffle()
        found = ranges | f"Search{which}" >> self._step(
            _ReadRows(self.endpoint, name, proof=self._proof, **how), dict[str, Any]
        )
        failures += [planned[FAILURES], found[FAILURES]]
        return found["main"]

    @property
    def _proof(self) -> _Proof | None:
        return _Proof(self.allow_several_modalities) if self.exact else None

    def _split_rows(self, queries: Any, hold: bool, failures: list[Any]) -> Any:
        """The rows of the ranges, and those that are in no range."""
        name = type(self).__name__
        how: dict[str, Any] = {"collect": self.collects, "hold": hold}
        split = queries | "SplitByStudyDate" >> self._step(
            SplitByStudyDate(self.endpoint, name, **how), SearchQuery, **{REST: SearchQuery}
        )
        dated = self._rows(split["main"] | "Reshuffle" >> beam.Reshuffle(), "", hold, failures, spread=False)
        rest = self._rows(split[REST] | "ReshuffleRest" >> beam.Reshuffle(), "Rest", hold, failures, spread=True)
        maybe = rest | "DropDated" >> beam.Filter(lambda row: not is_dated(row)).with_output_types(dict[str, Any])
        # Rows without a date are few; the archive is asked for the study of each.
        spread = maybe | "ReshuffleUndated" >> beam.Reshuffle()
        undated = spread | "KeepUndated" >> self._step(KeepUndated(self.endpoint, name, **how), dict[str, Any])
        failures += [split[FAILURES], undated[FAILURES]]
        return (dated, undated["main"]) | "JoinRows" >> beam.Flatten()

    def display_data(self) -> dict[str, Any]:
        """The endpoint and the names of the filters. Their values may be patients' names, so they are not shown."""
        return {
            **super().display_data(),
            "level": DisplayDataItem(self.level, label="Level"),
            "filters": DisplayDataItem(
                ", ".join(key for key, _ in self.query.search_filters), label="Filtered by"
            ).drop_if_default(""),
            "limit": DisplayDataItem(self.limit, label="Limit").drop_if_none(),
            "columns": DisplayDataItem(
                ", ".join(column.name for column in self.columns or ()), label="Columns"
            ).drop_if_default(""),
            "split_by": DisplayDataItem(self.split_by, label="Split by").drop_if_none(),
        }


@beam.typehints.with_input_types(QueryInput)
class SearchForStudies(_Search):
    """Searches for studies; each row is a dict in the DICOM JSON model.

    Applied to a pipeline it makes one search. Applied to a collection it makes one for each element, which may be a
    reference or a row (its UIDs narrow the search), a mapping of attribute to value (more filters), a `SearchQuery`
    or a URI.

    Every row of an archive that does not change meanwhile is returned once. A part of a search that fails after all
    retries fails the pipeline, or becomes a `Failure` that names the rows it lost.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        search_filters: Attribute (keyword, 8-digit tag or dotted path) to value. They are checked at once: an unknown
            keyword is an error, because servers ignore it and return everything.
        fields: Further attributes to return, or ``["all"]``.
        limit: The maximum number of rows of each search.
        fuzzymatching: Ask for fuzzy matching of names.
        additional_params: Further query parameters.
        page_size: Rows to ask for at once; by default what the server's profile says.
        columns: Give typed rows with a schema instead of dicts: these attributes (keywords, tags, or dotted paths into
            sequences), which are asked for too. Dates and times are text (ISO 8601). See `AsRows`.
        typed_dates: With `columns`: make dates `datetime.date`.
        distinct: Remove repeated rows also across the parts and elements of the search, by UID (a GroupByKey).
        split_by: ``"StudyDate"`` makes several searches of one whose rows are more than 10,000, or more than the
            archive returns at once: by ranges of dates with about as many rows each, which workers read at the same
            time. That works best on archives that report totals. Studies without a date are in no range: if the totals
            do not prove that there are none, the whole search is made once more, and of its rows those are kept that no
            range matches. Searches inside a study and those with a limit are not split.
        exact: Take only rows that carry each attribute that is filtered by, with a value that matches to the letter
            (wildcards as given); any other row fails the search. Attributes of a part of what is searched for prove
            nothing: they are an error. `DeleteResources` demands an exact search.
        allow_several_modalities: With `exact`, take a study that matches ModalitiesInStudy by one of several
            modalities.
        allow_all: Let an element ask for everything: an empty mapping, or one whose values are empty or wildcards
            alone. Otherwise it is a failure. (A search that is applied to a pipeline may always ask for everything.)
        require_match: Make each element (or the one search of a pipeline) that finds nothing a failure.
        failures: ``"raise"`` or ``"collect"``; with the latter the output is a `SearchResult`. See also
            `with_error_handler`.

    Raises:
        ValueError: If a filter, a field or a number is invalid.
    """

    level: SearchLevel = "study"


@beam.typehints.with_input_types(QueryInput)
class SearchForSeries(_Search):
    """Searches for series; applied to studies, for the series of each. Arguments as in `SearchForStudies`."""

    level: SearchLevel = "series"


@beam.typehints.with_input_types(QueryInput)
class SearchForInstances(_Search):
    """Searches for instances; applied to studies or series, for the instances of each.

    Arguments as in `SearchForStudies`.
    """

    level: SearchLevel = "instance"


def query_for(element: Any, base: SearchQuery, *, allow_all: bool = False) -> SearchQuery:
    """Narrows a search to what an element names.

    Args:
        element: A reference, a URI, a row in the DICOM JSON model, a mapping of filters, or a `SearchQuery` (whose
            filters are added).
        base: The search.
        allow_all: Whether an element may ask for everything.

    Raises:
        TypeError, ValueError: If the element names nothing, or contradicts the search's level.
    """
    if isinstance(element, SearchQuery):
        if element.level != base.level:
            raise ValueError(f"a {base.level} search received a {element.level} query")
        for key, text in element.search_filters:
            check_filter(key, text)
        _check_restricted(element, allow_all)
        return replace(
            element,
            search_filters=(*element.search_filters, *base.search_filters),
            fields=tuple(dict.fromkeys((*element.fields, *base.fields))),
            fuzzymatching=element.fuzzymatching if element.fuzzymatching is not None else base.fuzzymatching,
            additional_params=(*element.additional_params, *base.additional_params),
        )
    if isinstance(element, Mapping) and not _names_object(element):
        more = make_query(base.level, search_filters=element, permissive_uid=True)
        _check_restricted(more, allow_all)
        return _placed(replace(base, search_filters=(*base.search_filters, *more.search_filters)))
    reference = Resource.of(element)
    others = [] if not isinstance(element, Mapping) or _is_row(element) else [*filter(is_attribute, element)]
    if any(name not in UID_KEYWORDS.values() for name in others):
        raise ValueError(
            f"a reference by attribute names is no filter, and this one holds {shown_keys(others)}: name the UIDs by "
            "keyword too (StudyInstanceUID …)"
        )
    study, series, instance = (
        reference.study_instance_uid,
        reference.series_instance_uid,
        reference.sop_instance_uid,
    )
    filters = list(base.search_filters)
    if base.level == "study":
        filters.append(("StudyInstanceUID", study))
        return replace(base, search_filters=tuple(filters))
    if base.level == "series":
        if series is not None:
            filters.append(("SeriesInstanceUID", series))
        return replace(base, study_instance_uid=study, search_filters=tuple(filters))
    if instance is not None:
        filters.append(("SOPInstanceUID", instance))
    return replace(base, study_instance_uid=study, series_instance_uid=series, search_filters=tuple(filters))


def _names_object(element: Mapping[str, Any]) -> bool:
    """Whether a mapping names an object: a row, a reference, or UIDs by keyword and nothing else."""
    if "study_instance_uid" in element or _is_row(element):
        return True
    uids = set(UID_KEYWORDS.values())
    return "StudyInstanceUID" in element and all(
        key in uids and (value is None or (isinstance(value, str) and not _SEVERAL.search(value)))
        for key, value in element.items()
    )


def _placed(query: SearchQuery) -> SearchQuery:
    """The query, made in the study and series that its filters name: that is what a reference to them means too."""
    given = {resolve(key)[-1]: text for key, text in query.search_filters if len(resolve(key)) == 1}
    place: dict[str, str] = {}
    for level in LEVELS[: LEVELS.index(query.level)]:
        uid = given.get(UID_TAGS[level], "")
        if query.study_instance_uid is not None or not is_uid(uid):
            break
        place[UID_TAGS[level]] = uid
    filters = tuple(item for item in query.search_filters if resolve(item[0])[-1] not in place)
    study, series = (place.get(UID_TAGS[level]) for level in LEVELS[:2])
    return (
        replace(query, study_instance_uid=study, series_instance_uid=series, search_filters=filters) if study else query
    )


def _check_restricted(query: SearchQuery, allow_all: bool) -> None:
    if allow_all or is_restricted(query):
        return
    keys = ", ".join(key for key, _ in query.search_filters) or "no attribute"
    raise ValueError(
        f"an element asks for everything: it has no value to match ({keys}). Give one, leave the element out, or set "
        f"allow_all=True"
    )


def _is_row(element: Mapping[str, Any]) -> bool:
    return bool(element) and all(
        isinstance(key, str) and _TAG.fullmatch(key) and isinstance(value, Mapping) for key, value in element.items()
    )


class _MakeQueries(Converting):
    """Makes a query of each element."""

    def __init__(self, search: _Search, *, collect: bool) -> None:
        super().__init__(type(search).__name__, collect=collect)
        self._base, self._allow_all, self._exact = search.query, search.allow_all, search.exact

    def convert(self, element: Any) -> SearchQuery:
        query = query_for(element, self._base, allow_all=self._allow_all)
        return provable(query) if self._exact else query


def provable(query: SearchQuery) -> SearchQuery:
    """The query that also asks for the attributes it matches, so that its rows can prove that they match.

    Raises:
        ValueError: If rows cannot prove it.
    """
    fuzzy = query.fuzzymatching or any(name.lower() == "fuzzymatching" for name, _ in query.additional_params)
    if fuzzy:
        raise ValueError("fuzzymatching contradicts exact=True: no row proves that it matches")
    for name in other_conditions(query):
        raise ValueError(f"additional_params has {name}, which contradicts exact=True: no row proves that it matches")
    for one in conditions(query):
        level = level_of(one[0])
        if LEVELS.index(level) > LEVELS.index(query.level) and resolve(one[0]) != (MODALITY,):
            raise ValueError(
                f"the filter on {one[0]} contradicts exact=True in a search for {COLLECTIONS[query.level]}: some of "
                f"what is in one may match and the rest not; search for {COLLECTIONS[level]}"
            )
        # A filter that cannot be matched to the letter is an error before anything is sent.
        unproven([one], {}, level=query.level)
    known = {*DEFAULTS[query.level], *UID_TAGS.values(), *(resolve(name)[0] for name in query.fields if name != "all")}
    more = [tag for key, _ in conditions(query) if (tag := resolve(key)[0]) not in known]
    if "all" in query.fields or not more:
        return query
    return replace(query, fields=(*query.fields, *dict.fromkeys(more)))


@dataclass(frozen=True)
class _Proof:
    """Takes only rows that prove that they match the filters of their search."""

    several_modalities: bool

    def check(self, query: SearchQuery, row: JSONDataset, url: str) -> None:
        """Checks a row.

        Raises:
            FilterIgnoredError: If it does not.
        """
        reason = unproven(conditions(query), row, level=query.level, several=self.several_modalities)
        if reason is None:
            return
        uid = first_text(row, UID_TAGS[query.level]) or "without UID"
        hint = " (allow_several_modalities=True accepts it)" if "one of several" in reason else ""
        what = f"the {query.level} {uid} does not prove that it matches the filters, as exact=True demands: {reason}"
        raise FilterIgnoredError(what + hint, method="GET", url=url)


@dataclass(frozen=True)
class PlannedSearch:
    """A part of a search: rows that are here already, or a range of offsets to be read.

    Attributes:
        query: The search.
        rows: The range.
        page: The rows of the range, if they are here.
        page_size: How many rows to ask for at once: what the archive's first answer held.
        beginning: What the pages before the range proved. None: only the client's iterator can page the search.
    """

    query: SearchQuery
    rows: RowRange
    page: tuple[JSONDataset, ...] | None = None
    page_size: int | None = None
    beginning: Beginning | None = None

    def parts(self) -> list[PlannedSearch]:
        """The pieces of the range as searches of their own."""
        parts = [replace(self, rows=piece) for piece in self.rows.pieces()]
        return parts[:1] + [replace(part, beginning=further_on(part.beginning)) for part in parts[1:]]


def further_on(beginning: Beginning | None) -> Beginning | None:
    """What is known at the start of a part further on: the rows just before it are not, but there are some."""
    return beginning and replace(beginning, last=(), full=True)


register(Beginning, PlannedSearch)


class _Plan(PooledDoFn):
    """Asks for the first page of each query, and plans the rest."""

    def __init__(
        self,
        endpoint: Endpoint,
        transform: str,
        *,
        limit: int | None,
        page_size: int | None,
        spread: bool = False,
        require_match: bool = False,
        **how: Any,
    ) -> None:
        super().__init__(endpoint, transform, **how)
        self._spread = spread
        self._require_match = require_match
        self._limit = limit
        self._page_size = page_size

    def _key(self, subject: Any) -> Any:
        return subject

    def reference_of(self, subject: SearchQuery) -> Resource | None:
        return narrowed_to(subject)

    def produce(self, subject: SearchQuery, client: DICOMClient, room: Room) -> Iterator[Any]:
        limit, by_offset = self._limit, pages_by_offset(client.profile, subject)
        if limit == 0:
            return
        if by_offset is False:
            yield PlannedSearch(subject, RowRange(0, limit, whole=True), page_size=self._page_size)
            return
        paging = Paging(client.profile, subject, url=client.base_url, limit=limit, page_size=self._page_size)

        def ask(request: PageRequest) -> SearchPage:
            room.reserve(request.limit * 2048)
            # If all that is wanted fits into one answer, further rows in it are not even read.
            surplus = request.limit != limit
            return client.search_page(subject, offset=request.offset, limit=request.limit, surplus=surplus)

        total, row_bytes, planned = None, RowRange.row_bytes, False
        while (answered := next_rows(paging, ask)) is not None:
            rows, found = answered
            planned = planned or bool(found)
            for first in range(0, len(found), _MAX_PLANNED):
                part = found[first : first + _MAX_PLANNED]
                start = part[0][0]
                page = tuple(rows[index] for _, index in part)
                row_bytes = size_of(page) // len(page)
                yield PlannedSearch(subject, RowRange(start, start + len(page), row_bytes=row_bytes), page=page)
            if paging.ended:
                break
            answer = paging.answer
            total = total or (paging.total if paging.total is not None else client.count(subject))
            # The client walks the levels of servers without this search: then every page would restart the walk.
            by_offset = by_offset or answer.more is not True or answer.total is not None
            # With a limit nothing is split: most of it would be read in vain.
            whole = limit is not None or not by_offset
            rest = RowRange(paging.position, limit, total, whole=whole, row_bytes=row_bytes)
            # Before parts of it are read at once, another page has to show that the archive honours offsets.
            if paging.offset_works or len(list(rest.pieces())) == 1:
                planned = True
                remaining = PlannedSearch(
                    subject,
                    rest,
                    page_size=len(answer.keys) or self._page_size if by_offset else self._page_size,
                    beginning=replace(paging.beginning, total=total) if by_offset else None,
                )
                yield from remaining.parts() if self._spread else (remaining,)
                break
        confirm_end(paging, ask)
        if self._require_match and not planned:
            yield _unmatched(subject, self._transform)

    def count_result(self, result: PlannedSearch) -> None:
        if result.page is not None:
            count("search_pages")
            observe("page_rows", len(result.page))


def narrowed_to(query: SearchQuery) -> Resource | None:
    """What a search is made in or for, by its UIDs, for failures; None if it names no study."""
    given = dict(query.search_filters)
    uids: list[Any] = []
    for level, placed in zip(LEVELS, (query.study_instance_uid, query.series_instance_uid, None), strict=True):
        uid = placed or given.get(UID_KEYWORDS[level], "")
        if not is_uid(uid, permissive=placed is not None):
            break
        uids.append(uid)
    study, series, instance, *_ = (*uids, None, None, None)
    return None if study is None else Resource(study, series, instance)


def _unmatched(query: SearchQuery, transform: str) -> Problem:
    """The failure of a search that has to find something and does not."""
    # A patient is not named.
    names = ", ".join(f"{name} {text}" if name in _TOLD else name for name, text in query.search_filters)
    message = "the search" + (f" by {names}" if names else "") + f" found no {query.level}"
    failure = Failure(transform, message, reference=narrowed_to(query), source=query.source)
    return naming(Problem(failure), query)


class _ReadRows(LeasingDoFn):
    """Reads ranges of rows. It catches its own errors: Beam's exception handling breaks splittable DoFns."""

    def __init__(
        self, endpoint: Endpoint, transform: str, *, proof: _Proof | None, require_match: bool, collect: bool
    ) -> None:
        super().__init__(endpoint, transform, collect=collect)
        self._proof = proof
        self._require_match = require_match

    def process(
        self,
        element: PlannedSearch,
        tracker: Any = beam.DoFn.RestrictionParam(RowRangeProvider()),  # noqa: B008 - Beam's way to ask for it
    ) -> Iterator[Any]:
        position = tracker.current_restriction().start - 1
        failed: BaseException | None = None
        claimed = 0
        try:
            for offset, row in self._rows(element, tracker):
                if self._proof is not None:
                    self._proof.check(element.query, row, self._endpoint.safe_url)
                position = offset
                if not tracker.try_claim(position):
                    return
                claimed += 1
                self._traffic()
                yield encodable(row)
        except RECOVERABLE as error:
            failed = error
        finally:
            count("rows", claimed)
            self._traffic.count()
        # The range is finished: claim the end, or the runner waits for the remaining rows.
        tracker.try_claim(END)
        rows = tracker.current_restriction()
        if failed is not None:
            end = rows.likely_stop
            lost = (position + 1, end if end is not None and end > position + 1 else END)
            yield reported(self._lost(failed, element.query, lost), self._collect)
        elif self._require_match and not claimed and rows.start == 0:
            yield reported(_unmatched(element.query, self._transform), self._collect)
        elif rows.stop is None and rows.total is not None and rows.total != position + 1:
            count("total_mismatches")

    def _rows(self, element: PlannedSearch, tracker: Any) -> Iterable[tuple[int, JSONDataset]]:
        """The rows of a range and their offsets."""
        start, first = tracker.current_restriction().start, element.rows.start
        if element.page is not None:
            return enumerate(element.page[start - first :], start)
        lease = cast(Lease, self._lease)
        client, query, beginning = lease.client, element.query, element.beginning
        stop = tracker.current_restriction().stop
        if beginning is None:
            limit = None if stop is None else stop - start
            return enumerate(client.iter_search(query, offset=start, limit=limit, page_size=element.page_size), start)
        if start > first:
            beginning = further_on(beginning)
        paging = Paging(
            client.profile, query, url=client.base_url, start=start, page_size=element.page_size, beginning=beginning
        )
        return ReadAhead(client, query, lease.pool, paging, lambda: tracker.current_restriction().stop, self._traffic)

    def _lost(self, error: BaseException, query: SearchQuery, rows: tuple[int, int]) -> Problem:
        problem = problem_of(error, self._transform, reference=narrowed_to(query), rows=rows, source=query.source)
        what = f"rows {rows[0]} to " + (str(rows[1]) if rows[1] < END else "the end")
        message = f"the {query.level} search failed for {what}: {problem.failure.message}"
        return Problem(replace(problem.failure, message=message), problem.error)


class _DistinctRows(beam.PTransform[Any, Any]):
    """Keeps one of the rows with the same UIDs."""

    def __init__(self, level: SearchLevel) -> None:
        super().__init__()
        self._level = level

    def expand(self, pcollection: Any) -> Any:
        level = self._level
        return (
            pcollection
            | "KeyByUID"
            >> beam.Map(lambda row: (row_key(row, level), row)).with_output_types(tuple[bytes, dict[str, Any]])
            | "Group" >> beam.GroupByKey()
            | "TakeOne" >> beam.Map(lambda pair: next(iter(pair[1]))).with_output_types(dict[str, Any])
        )


# Splitting by StudyDate -----------------------------------------------------------------------------------------------

# A range matches only rows that have a date, and DICOM has no query for "no date" (an empty value matches everything,
# PS3.4 section C.2.2.2.3). So the whole search is made once more where the numbers do not prove that the ranges hold
# everything, and of its rows those are kept that no range can have matched.

REST = "rest"
"""The tag of queries whose rows without a date are wanted too."""

_STUDY_DATE = ("00080020",)
_FIRST, _LAST = date(1800, 1, 1), date(9999, 12, 31)
_DAY = timedelta(days=1)
_MAX_REMEMBERED = 100_000


@dataclass(frozen=True)
class Span:
    """Days from `first` to `last`, both included; None for an open end, which only a user's own filter can have."""

    first: date | None
    last: date | None

    @property
    def text(self) -> str:
        """The value of a filter (PS3.4 section C.2.2.2.5)."""
        low = f"{self.first:%Y%m%d}".zfill(8) if self.first is not None else ""
        high = f"{self.last:%Y%m%d}".zfill(8) if self.last is not None else ""
        return low if low == high else f"{low}-{high}"

    def parts(self, *cuts: date) -> Iterator[Span]:
        """Yields the spans before, between and from each of some dates on (in order); dates outside do not count."""
        first = self.first
        for cut in cuts:
            if (first is None or cut > first) and (self.last is None or cut <= self.last):
                yield Span(first, cut - _DAY)
                first = cut
        yield Span(first, self.last)

    def halves(self) -> tuple[Span, Span] | None:
        """Two parts of about the same length; None for a single day."""
        low, high = (self.first or _FIRST).toordinal(), (self.last or _LAST).toordinal()
        if low >= high:
            return None
        one, two = self.parts(date.fromordinal((low + high) // 2 + 1))
        return one, two


ALL_DATES = Span(_FIRST, _LAST)


def span_of(text: str) -> Span | None:
    """The days of a filter that is a range; None if it is not a range."""
    low, dash, high = text.partition("-")
    if not dash or not (low or high):
        return None
    ends: list[date | None] = []
    for end in (low.strip(), high.strip()):
        parsed = parse_date(end) if end else None
        if end and parsed is None:
            return None
        ends.append(date(int(parsed[:4]), int(parsed[4:6]), int(parsed[6:])) if parsed else None)
    if ends[0] is not None and ends[1] is not None and ends[0] > ends[1]:
        return None
    return Span(ends[0], ends[1])


def split_by_count(
    span: Span, total: int, count: Callable[[Span], int], maximum: int, today: date, *, url: str = ""
) -> Iterator[tuple[Span, int]]:
    """Cuts days into spans with at most so many rows, as well as whole days allow.

    Args:
        span: The days.
        total: The rows of the whole search.
        count: Counts the rows of a span.
        maximum: The maximum number of rows of a span.
        today: The current day: most dates lie in the decades before it.
        url: The archive, for errors.

    Yields:
        Spans that have rows, and how many.

    Raises:
        FilterIgnoredError: If the archive ignores the filter.
    """
    if total and all(count(Span(day, day)) == total for day in (_FIRST, _LAST)):
        what = "the archive ignores filters by StudyDate, so a search cannot be split by it"
        raise FilterIgnoredError(what, method="GET", url=url)
    # Later first on the stack, so that spans come in order.
    waiting = [(part, count(part)) for part in span.parts(date(1990, 1, 1), today + _DAY)][::-1]
    while waiting:
        part, number = waiting.pop()
        halves = part.halves() if number > maximum else None
        if halves is not None:
            waiting += [(half, count(half)) for half in halves][::-1]
        elif number:
            yield part, number


class SplitByStudyDate(PooledDoFn):
    """Makes queries for ranges of StudyDate, and one with the tag `REST` if they may not hold everything.

    What cannot be split stays unchanged: a query inside a study, for a day, or with few rows.
    """

    def produce(self, subject: SearchQuery, client: DICOMClient, room: Room) -> Iterator[Any]:
        """Yields queries."""
        given = [value for key, value in subject.search_filters if resolve(key) == _STUDY_DATE]
        span = ALL_DATES if not given else span_of(given[0])
        if subject.study_instance_uid is not None or len(given) > 1 or span is None:
            yield subject
            return
        total = total_of(client, subject)
        today = date.today()
        if total is None:
            for part in span.parts(*(date(year, 1, 1) for year in range(1990, today.year + 2))):
                yield within(subject, part)
            if not given:
                yield _Rest(subject)
            return
        maximum = rows_at_once(client)
        if total <= maximum:
            yield subject
            return
        found = 0

        def count(part: Span) -> int:
            number = total_of(client, within(subject, part))
            if number is None:
                what = "the archive reported a total for one search, but none for a range of StudyDate"
                raise MalformedResponseError(what, method="GET", url=client.base_url)
            return number

        for part, number in split_by_count(span, total, count, maximum, today, url=client.base_url):
            found += number
            yield within(subject, part)
        if found != total and not given:
            yield _Rest(subject)

    def reference_of(self, subject: SearchQuery) -> Resource | None:
        """None: what is split is not inside a study."""
        return None

    def _key(self, subject: Any) -> Any:
        return subject

    def _emit(self, work: Work, result: Any) -> Iterator[Any]:
        if not isinstance(result, _Rest):
            yield from super()._emit(work, result)
            return
        for place in grouped_places(work.places):
            yield TaggedOutput(REST, WindowedValue(result.query, *place))


@dataclass(frozen=True)
class _Rest:
    query: SearchQuery


def within(query: SearchQuery, span: Span) -> SearchQuery:
    """A query with the days of a span instead of its days."""
    others = tuple(item for item in query.search_filters if resolve(item[0]) != _STUDY_DATE)
    return replace(query, search_filters=(*others, ("StudyDate", span.text)))


def total_of(client: DICOMClient, query: SearchQuery) -> int | None:
    """The number of rows of a search without reading them; None if the archive does not report it."""
    number = client.count(query)
    if number is not None:
        return number
    page = client.search_page(query, offset=0, limit=1)
    if page.total is not None:
        return page.total
    return len(page.rows) if page.more is False else None


def rows_at_once(client: DICOMClient) -> int:
    """The rows that one search should have at most: what is worth a split, or less than the archive's maximum."""
    # Archives count no further than their limit: as many rows may be all or not.
    limits = [limit - 1 for limit in (client.profile.max_rows, client.profile.max_offset) if limit]
    return max(1, min([LEAST_ROWS, *limits]))


def is_dated(row: JSONDataset) -> bool:
    """Whether a row has a date that one of the ranges holds."""
    value = first_value(row, "StudyDate")
    text = parse_date(value) if isinstance(value, str) else None
    return text is not None and f"{_FIRST:%Y%m%d}" <= text <= f"{_LAST:%Y%m%d}"


class KeepUndated(PooledDoFn):
    """Keeps the rows whose study no range of StudyDate matches. The archive is asked, once for each study."""

    def setup(self) -> None:
        """Forgets all studies."""
        super().setup()
        self._lock = Lock()
        self._matched: dict[str, bool] = {}

    def reference_of(self, subject: JSONDataset) -> Resource | None:
        """The study of the row."""
        with suppress(ValueError):
            return Resource(first_text(subject, "0020000D"))
        return None

    def _key(self, subject: JSONDataset) -> Any:
        return json.dumps(subject, sort_keys=True)

    def produce(self, subject: JSONDataset, client: DICOMClient, room: Room) -> Iterator[Any]:
        """Yields the row, or nothing."""
        uid = Resource(first_text(subject, "0020000D")).study_instance_uid
        with self._lock:
            matched = self._matched.get(uid)
        if matched is None:
            query = SearchQuery("study", search_filters=(("StudyInstanceUID", uid), ("StudyDate", ALL_DATES.text)))
            matched = bool(client.search_page(query, limit=1).rows)
            with self._lock:
                if len(self._matched) >= _MAX_REMEMBERED:
                    self._matched.clear()
                self._matched[uid] = matched
        if not matched:
            yield subject
