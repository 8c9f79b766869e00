"""Searches over the index of a folder (PS3.18 section 10.6, matching by PS3.4 section C.2.2.2).

A filter on an attribute of the study is compared once, with the instance that represents the study (its first); one on
an attribute of the series with the first instance of the series; every other filter with the objects of the search. So
a search first narrows down the studies, then the series, and then reads instances, and of their headers only what
default rows do not hold. Rows come in a fixed order: studies by UID; series by the UID of their study, number and UID;
instances by the UIDs of their study and series, number and UID.
"""

from __future__ import annotations

import gc
from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import orjson

from dicomweb_io.dicom.attributes import resolve
from dicomweb_io.dicom.errors import FilterError, InvalidIdentifierError
from dicomweb_io.dicom.json_encode import encode
from dicomweb_io.dicom.matching import Matcher, compile_filters
from dicomweb_io.elements import (
    LEVELS,
    SERIES_INSTANCE_UID,
    SOP_INSTANCE_UID,
    STUDY_INSTANCE_UID,
    JSONDataset,
    Resource,
    SearchLevel,
    SearchPage,
    SearchQuery,
)
from dicomweb_io.files.index import Index, batches
from dicomweb_io.queries import (
    AVAILABLE_TRANSFER_SYNTAX_UID,
    COMPUTED,
    INSTANCE_AVAILABILITY,
    INSTANCE_DEFAULTS,
    INSTANCE_NUMBER,
    MODALITIES_IN_STUDY,
    REQUIRED,
    RETRIEVE_URL,
    SERIES_DEFAULTS,
    SERIES_RELATED_INSTANCES,
    STUDY_DEFAULTS,
    STUDY_RELATED_INSTANCES,
    STUDY_RELATED_SERIES,
    conditions,
    fields_of_all,
    is_returnable,
    matching_level,
)

_CHUNK = 500
_CACHED_QUERIES = 8
_DEFAULTS: dict[SearchLevel, frozenset[str]] = {
    "study": frozenset(STUDY_DEFAULTS) | COMPUTED["study"],
    "series": frozenset(SERIES_DEFAULTS) | COMPUTED["series"],
    "instance": frozenset(INSTANCE_DEFAULTS) | COMPUTED["instance"],
}
# Attributes with one value that is the same in many instances.
_ALIKE = tuple(tag for tag in INSTANCE_DEFAULTS if tag not in (SOP_INSTANCE_UID, INSTANCE_NUMBER))
_UID_COLUMNS = {STUDY_INSTANCE_UID: "study", SERIES_INSTANCE_UID: "series", SOP_INSTANCE_UID: "sop"}


@dataclass(frozen=True)
class _Plan:
    """A query, split by level.

    Attributes:
        query: The query.
        matchers: What to compare at each level, where there is something.
        returned: By level, top-level tags to return beyond the defaults, with the nested paths wanted of them; an
            empty tuple of paths stands for the whole attribute.
        everything: Whether ``includefield=all`` was asked for.
        uids: The UIDs that are allowed, by column.
    """

    query: SearchQuery
    matchers: dict[SearchLevel, Matcher]
    returned: dict[SearchLevel, dict[str, tuple[tuple[str, ...], ...]]]
    everything: bool
    uids: dict[str, frozenset[str]] = field(default_factory=dict)

    def needed(self, level: SearchLevel) -> frozenset[str]:
        """Tags that comparing at a level takes, beyond the default row."""
        return frozenset(self.matchers[level].tags) - _DEFAULTS[level]


class Searcher:
    """Answers queries from the snapshot of an index. Safe to use from several threads.

    Args:
        index: The index.
        base_url: What Retrieve URLs begin with.
    """

    def __init__(self, index: Index, base_url: str) -> None:
        self._index = index
        self._base_url = base_url
        self._cached: OrderedDict[tuple[int, SearchQuery], array[int]] = OrderedDict()

    def page(self, query: SearchQuery, offset: int = 0, limit: int | None = None) -> SearchPage:
        """The rows from `offset` on, at most `limit`, with the exact total."""
        plan = _plan(query)
        matches = self._matches(plan)
        part = matches[offset:] if limit is None else matches[offset : offset + limit]
        with _collector_paused():
            rows = list(self._rows(plan, part))
        return SearchPage(rows, offset, limit, total=len(matches), more=offset + len(part) < len(matches))

    def iterate(
        self, query: SearchQuery, offset: int = 0, limit: int | None = None, page_size: int | None = None
    ) -> Iterator[JSONDataset]:
        """The same rows, `page_size` of them in memory at a time."""
        plan = _plan(query)
        matches = self._matches(plan)
        for page in batches(
            matches[offset:] if limit is None else matches[offset : offset + limit], page_size or _CHUNK
        ):
            with _collector_paused():
                rows = list(self._rows(plan, page))
            yield from rows

    def count(self, query: SearchQuery) -> int:
        """How many rows a query has."""
        return len(self._matches(_plan(query)))

    def matching_files(self, query: SearchQuery) -> set[int]:
        """The numbers of the files whose instances, or their series or study, match a query."""
        matches = self._matches(_plan(query))
        if query.level == "instance":
            return set(matches)
        table = "series" if query.level == "series" else "study"
        join = "i.study = t.study" + (" AND i.series = t.series" if table == "series" else "")
        sql = f"SELECT i.file FROM {table} t JOIN instance i ON {join} WHERE t.id IN (%s)"  # noqa: S608 - constants
        return {row[0] for row in self._index.select_in(sql, matches)}

    def _matches(self, plan: _Plan) -> array[int]:
        """Ids of the rows of the query's level that match, in order; cached for the next page."""
        with self._index.lock:
            key = (self._index.generation, plan.query)
            matches = self._cached.get(key)
            if matches is None:
                matches = self._cached[key] = self._find(plan)
            self._cached.move_to_end(key)
            while len(self._cached) > _CACHED_QUERIES:
                self._cached.popitem(last=False)
            return matches

    def _find(self, plan: _Plan) -> array[int]:
        level = plan.query.level
        studies = self._find_studies(plan)
        if level == "study":
            return array("q", (row[0] for row in studies))
        narrowed = "study" in plan.matchers
        allowed = [row[1] for row in studies] if narrowed else None
        if level == "series" or "series" in plan.matchers:
            series = self._find_series(plan, allowed)
            if level == "series":
                return array("q", (row[0] for row in series))
            return self._find_instances(plan, [(row[1], row[2]) for row in series])
        return self._find_instances(plan, None if allowed is None else [(study, None) for study in allowed])

    def _find_studies(self, plan: _Plan) -> list[tuple[Any, ...]]:
        if plan.query.level != "study" and "study" not in plan.matchers:
            return []
        where, values = _where(plan, ("study",))
        sql = f"SELECT id, study, file, instances, row FROM study {where} ORDER BY study"  # noqa: S608 - constants
        rows = self._index.select(sql, values)
        matcher = plan.matchers.get("study")
        if matcher is None:
            return rows
        needed = plan.needed("study")
        return [row for row in rows if matcher(self._with(self._study(row), row[2], needed))]

    def _find_series(self, plan: _Plan, studies: Sequence[str] | None) -> list[tuple[Any, ...]]:
        where, values = _where(plan, ("study", "series"))
        sql = f"SELECT id, study, series, file, instances, row FROM series {where} ORDER BY study, number, series"  # noqa: S608
        rows = self._index.select(sql, values)
        if studies is not None:
            allowed = set(studies)
            rows = [row for row in rows if row[1] in allowed]
        matcher = plan.matchers.get("series")
        if matcher is None:
            return rows
        needed = plan.needed("series")
        return [row for row in rows if matcher(self._with(_series(row), row[3], needed))]

    def _find_instances(self, plan: _Plan, within: Sequence[tuple[str, str | None]] | None) -> array[int]:
        where, values = _where(plan, ("study", "series", "sop"))
        order = "ORDER BY study, series, number, sop, file"
        candidates: array[int] = array("q")
        if within is None:
            candidates = self._index.numbers(f"SELECT file FROM instance {where} {order}", values)  # noqa: S608 - constants
        else:
            glue = "AND" if where else "WHERE"
            for study, series in sorted(within, key=lambda pair: (pair[0], pair[1] or "")):
                condition, more = f"{where} {glue} study = ?", [*values, study]
                if series is not None:
                    condition, more = condition + " AND series = ?", [*more, series]
                candidates.extend(self._index.numbers(f"SELECT file FROM instance {condition} {order}", more))  # noqa: S608
        matcher = plan.matchers.get("instance")
        if matcher is None:
            return candidates
        needed = plan.needed("instance")
        matching: array[int] = array("q")
        sql = "SELECT i.file, i.row, f.syntax FROM instance i JOIN file f ON f.id = i.file WHERE i.file IN (%s)"
        for part in batches(candidates, _CHUNK):
            rows = self._by_number(sql, part)
            for number in part:
                _, text, syntax = rows[number]
                dataset = orjson.loads(text)
                dataset[AVAILABLE_TRANSFER_SYNTAX_UID] = _element("UI", syntax)
                dataset[INSTANCE_AVAILABILITY] = _element("CS", "ONLINE")
                if matcher(self._with(dataset, number, needed)):
                    matching.append(number)
        return matching

    def _by_number(self, sql: str, numbers: Sequence[int]) -> dict[int, tuple[Any, ...]]:
        """Rows of a table by their first column; see `Index.select_in`."""
        return {row[0]: row for row in self._index.select_in(sql, numbers)}

    def _with(self, dataset: JSONDataset, number: int, tags: frozenset[str]) -> JSONDataset:
        """Adds attributes from the header of a file."""
        wanted = tags - dataset.keys()
        if wanted:
            dataset.update(self._index.attributes(number, tuple(sorted(wanted))))
        return dataset

    def _rows(self, plan: _Plan, numbers: Sequence[int]) -> Iterator[JSONDataset]:
        for part in batches(numbers, _CHUNK):
            if plan.query.level == "study":
                yield from self._study_rows(plan, part)
            elif plan.query.level == "series":
                yield from self._series_rows(plan, part)
            else:
                yield from self._instance_rows(plan, part)

    def _study_rows(self, plan: _Plan, numbers: Sequence[int]) -> Iterator[JSONDataset]:
        rows = self._by_number("SELECT id, study, file, instances, row FROM study WHERE id IN (%s)", numbers)
        for number in numbers:
            if number in rows:
                row = self._study(rows[number])
                row[RETRIEVE_URL] = _element("UR", f"{self._base_url}/{Resource(rows[number][1]).uri}")
                yield self._completed(plan, row, {"study": rows[number][2]})

    def _series_rows(self, plan: _Plan, numbers: Sequence[int]) -> Iterator[JSONDataset]:
        rows = self._by_number("SELECT id, study, series, file, instances, row FROM series WHERE id IN (%s)", numbers)
        studies = self._studies_of({row[1] for row in rows.values()})
        for number in numbers:
            series = rows.get(number)
            if series is None or series[1] not in studies:
                continue
            study = studies[series[1]]
            row = self._study(study) if plan.query.study_instance_uid is None else {}
            row[STUDY_INSTANCE_UID] = _element("UI", series[1])
            row.update(_series(series))
            row[RETRIEVE_URL] = _element("UR", f"{self._base_url}/{Resource(series[1], series[2]).uri}")
            yield self._completed(plan, row, {"study": study[2], "series": series[3]})

    def _instance_rows(self, plan: _Plan, numbers: Sequence[int]) -> list[JSONDataset]:
        completed = []
        sql = (
            "SELECT i.file, i.study, i.series, i.sop, i.row, f.syntax FROM instance i JOIN file f ON f.id = i.file "
            "WHERE i.file IN (%s)"
        )
        rows = self._by_number(sql, numbers)
        common, sources = self._common(plan, {(row[1], row[2]) for row in rows.values()})
        present = [
            rows[number] for number in numbers if number in rows and (rows[number][1], rows[number][2]) in common
        ]
        shared: dict[tuple[str, Any], Any] = {}
        # Parsing one text is quicker than parsing many.
        own = orjson.loads(f"[{','.join([row[4] for row in present])}]")
        for (number, study, series, sop, _, syntax), dataset in zip(present, own, strict=True):
            for tag in _ALIKE:
                element = dataset.get(tag)
                if element is not None:
                    values = element.get("Value")
                    dataset[tag] = shared.setdefault((tag, values[0] if values else None), element)
            row = {**common[study, series], **REQUIRED["instance"], **dataset}
            row[RETRIEVE_URL] = _element("UR", f"{self._base_url}/{Resource(study, series, sop).uri}")
            element = shared.get((AVAILABLE_TRANSFER_SYNTAX_UID, syntax))
            if element is None:
                element = shared[AVAILABLE_TRANSFER_SYNTAX_UID, syntax] = _element("UI", syntax)
            row[AVAILABLE_TRANSFER_SYNTAX_UID] = element
            completed.append(self._completed(plan, row, {**sources[study, series], "instance": number}))
        return completed

    def _common(
        self, plan: _Plan, pairs: Iterable[tuple[str, str]]
    ) -> tuple[dict[tuple[str, str], JSONDataset], dict[tuple[str, str], dict[SearchLevel, int]]]:
        """What all instances of a series have in common, and the files that represent series and study.

        Rows of one answer share these elements: a thousand copies of a patient's name would cost more memory and time
        than everything else of the answer.
        """
        pairs = list(pairs)
        studies = self._studies_of({study for study, _ in pairs})
        common: dict[tuple[str, str], JSONDataset] = {}
        sources: dict[tuple[str, str], dict[SearchLevel, int]] = {}
        parts = {study: self._study(row) for study, row in studies.items()} if not plan.query.study_instance_uid else {}
        for study, series in pairs:
            rows = self._series_of(study, series)
            if study not in studies or not rows:
                continue
            row = dict(parts.get(study, {}))
            if plan.query.series_instance_uid is None:
                row.update(_series(rows[0]))
            row[INSTANCE_AVAILABILITY] = _element("CS", "ONLINE")
            row[STUDY_INSTANCE_UID] = _element("UI", study)
            row[SERIES_INSTANCE_UID] = _element("UI", series)
            common[study, series] = row
            sources[study, series] = {"study": studies[study][2], "series": rows[0][3]}
        return common, sources

    def _studies_of(self, uids: Iterable[str]) -> dict[str, tuple[Any, ...]]:
        sql = "SELECT id, study, file, instances, row FROM study WHERE study = ?"
        return {uid: row for uid in uids for row in self._index.select(sql, (uid,))}

    def _study(self, row: Sequence[Any]) -> JSONDataset:
        """The study attributes of a row of the table, with what is computed."""
        dataset: JSONDataset = {**REQUIRED["study"], **orjson.loads(row[4])}
        series = self._index.select("SELECT modality FROM series WHERE study = ?", (row[1],))
        modalities = sorted({modality for (modality,) in series if modality})
        dataset[INSTANCE_AVAILABILITY] = _element("CS", "ONLINE")
        dataset[MODALITIES_IN_STUDY] = {"vr": "CS", "Value": modalities} if modalities else {"vr": "CS"}
        dataset[STUDY_RELATED_SERIES] = _element("IS", len(series))
        dataset[STUDY_RELATED_INSTANCES] = _element("IS", row[3])
        return dataset

    def _computed(self, level: SearchLevel, row: JSONDataset, tags: Collection[str]) -> JSONDataset:
        """What is computed of these attributes for the study or series of a row.

        A row of a search within a study lacks them unless they were asked for.
        """
        computed: JSONDataset = {}
        study = row[STUDY_INSTANCE_UID]["Value"][0]
        if level == "study" and not COMPUTED["study"].isdisjoint(tags):
            for stored in self._studies_of([study]).values():
                computed = self._study(stored)
        elif level == "series" and SERIES_RELATED_INSTANCES in tags:
            for stored in self._series_of(study, row[SERIES_INSTANCE_UID]["Value"][0]):
                computed = _series(stored)
        return {tag: computed[tag] for tag in COMPUTED[level] if tag in computed and tag in tags}

    def _series_of(self, study: str, series: str) -> list[tuple[Any, ...]]:
        return self._index.select(
            "SELECT id, study, series, file, instances, row FROM series WHERE study = ? AND series = ?", (study, series)
        )

    def _completed(self, plan: _Plan, row: JSONDataset, sources: dict[SearchLevel, int]) -> JSONDataset:
        """Adds what was asked for beyond the defaults, and sorts."""
        target = plan.query.level
        if plan.everything:
            scan = self._index.scan_of(sources[target])
            if scan is not None:
                row = {**encode(scan, tags=fields_of_all([f"{tag:08X}" for tag in scan.elements], target)), **row}
        for level, wanted in plan.returned.items():
            missing = {tag: paths for tag, paths in wanted.items() if tag not in row}
            if not missing:
                continue
            added = self._computed(level, row, missing.keys())
            stored = tuple(sorted(missing.keys() - added.keys()))
            if stored:
                added.update(self._index.attributes(sources[level], stored))
            for tag, element in added.items():
                row[tag] = _projected(element, missing[tag])
        return _sorted(row)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pauses Python's collector of reference cycles.

    Rows are many small objects without cycles. The collector would visit them again and again, which takes twice as
    long as making them.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@lru_cache(maxsize=256)
def _order(tags: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(tags))


def _sorted(row: JSONDataset) -> JSONDataset:
    """The row with its tags in ascending order; rows of one answer mostly have the same tags."""
    return {tag: row[tag] for tag in _order(tuple(row))}


def _plan(query: SearchQuery) -> _Plan:
    fields = list(query.fields)
    options = {"fuzzymatching": bool(query.fuzzymatching), "emptyvaluematching": False}
    for key, value in query.additional_params:
        if key == "includefield":
            fields.extend(value.split(","))
        elif key in (*options, "multiplevaluematching"):
            options[key] = _truth(key, value)  # Lists are matched in any case.
        else:
            _check_attribute(key)
    empty = options["emptyvaluematching"]
    uids: dict[str, frozenset[str]] = {}
    for column, uid in (("study", query.study_instance_uid), ("series", query.series_instance_uid)):
        if uid is not None:
            uids[column] = frozenset((uid,))
    filters: dict[SearchLevel, list[tuple[str, str]]] = {level: [] for level in LEVELS}
    returned: dict[SearchLevel, dict[str, tuple[tuple[str, ...], ...]]] = {level: {} for level in LEVELS}
    for key, value in conditions(query):
        path = resolve(key)
        column = _UID_COLUMNS.get(path[0], "")
        if column and len(path) == 1 and not (empty and value.strip() == '""'):
            # The UIDs of the three levels are looked up, so no dataset has to be compared.
            for wanted in compile_filters([(key, value)]).uids.values():
                uids[column] = wanted & uids.get(column, wanted)
            continue
        level = matching_level(path[0], query.level)
        filters[level].append((key, value))
        returned[level].setdefault(path[0], ())
    for name in fields:
        path = () if name == "all" else resolve(name.strip())
        if path and is_returnable(path[0], query.level):
            tags = returned[matching_level(path[0], query.level)]
            if len(path) == 1:
                tags[path[0]] = ()
            elif tags.get(path[0]) != ():
                tags[path[0]] = (*tags.get(path[0], ()), path[1:])
    matchers = {
        level: compile_filters(items, fuzzymatching=options["fuzzymatching"], empty_value_matching=empty)
        for level, items in filters.items()
    }
    matchers = {level: matcher for level, matcher in matchers.items() if not matcher.universal}
    return _Plan(query, matchers, returned, "all" in fields, uids)


def _check_attribute(key: str) -> None:
    try:
        resolve(key)
    except InvalidIdentifierError as error:
        raise InvalidIdentifierError(
            f"the parameter {key!r} has no meaning for a folder: {error} (known are includefield, fuzzymatching, "
            "emptyvaluematching, multiplevaluematching and attributes)"
        ) from None


def _truth(key: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise FilterError(f"{key} must be true or false, not {value!r}")
    return value.lower() == "true"


def _where(plan: _Plan, columns: Sequence[str]) -> tuple[str, list[str]]:
    """The condition on UIDs for a table with these columns; UIDs of lower levels are looked for inside the objects."""
    conditions: list[str] = []
    values: list[str] = []
    for column, uids in plan.uids.items():
        # One parameter of JSON holds any number of UIDs.
        values.append(orjson.dumps(sorted(uids)).decode())
        wanted = f"{column} IN (SELECT value FROM json_each(?))"  # noqa: S608 - constants
        if column in columns:
            conditions.append(wanted)
        else:
            names = ", ".join(columns)
            conditions.append(f"({names}) IN (SELECT {names} FROM instance WHERE {wanted})")  # noqa: S608 - constants
    return ("WHERE " + " AND ".join(conditions) if conditions else ""), values


def _series(row: Sequence[Any]) -> JSONDataset:
    dataset: JSONDataset = {**REQUIRED["series"], **orjson.loads(row[5])}
    dataset[SERIES_RELATED_INSTANCES] = _element("IS", row[4])
    return dataset


def _element(vr: str, value: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]}


def _projected(element: Any, paths: Sequence[tuple[str, ...]]) -> Any:
    """A sequence with only the wanted attributes in its items; without paths the whole element."""
    if not paths or element.get("vr") != "SQ" or "Value" not in element:
        return element
    heads: dict[str, list[tuple[str, ...]]] = {}
    for path in paths:
        heads.setdefault(path[0], []).append(path[1:])
    items = []
    for item in element["Value"]:
        projected = {}
        for tag in sorted(heads.keys() & (item or {}).keys()):
            rest = heads[tag]
            projected[tag] = item[tag] if () in rest else _projected(item[tag], rest)
        items.append(projected)
    return {**element, "Value": items}
