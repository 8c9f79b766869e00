"""Searches that a server lacks, made of those it has: studies, then their series, then their instances."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from dicomweb_io.clients.queries import apportion, level_of
from dicomweb_io.elements import JSONDataset, Resource, SearchQuery

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
