"""Deletes (PS3.18 section 10.7): `DeleteResources` removes studies, series and instances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import apache_beam as beam

from dicomweb_io.client import DICOMClient
from dicomweb_io.dicom.attributes import is_attribute
from dicomweb_io.elements import STUDY_INSTANCE_UID, UID_KEYWORDS, Resource, SearchQuery
from dicomweb_io.endpoint import EndpointLike
from dicomweb_io.failures import attributes_of
from dicomweb_io.pool import Room
from dicomweb_io.transforms._core import (
    FAILURES,
    AsReferences,
    DICOMwebTransform,
    FailingTransform,
    FailureMode,
    PooledDoFn,
    ReferenceInput,
    piped_by_member,
)
from dicomweb_io.transforms.metrics import count


@piped_by_member
class DeleteResult(NamedTuple):
    """The output of `DeleteResources` with ``failures="collect"``."""

    deleted: Any
    failures: Any


@beam.typehints.with_input_types(ReferenceInput)
class DeleteResources(DICOMwebTransform):
    """Deletes what references name, as far as the archive allows it, and emits the references.

    A reference to a study or series deletes it as a whole. What is not there any more counts as deleted, because a
    bundle may be repeated; what the archive does not know and a search still finds is a failure. To protect from
    deleting too much, a reference to frames is a failure, and so is a row that names a series or an instance but lacks
    the UIDs above it.

    What a search found is deleted only if the search is exact: ``SearchForStudies(…, exact=True) | DeleteResources``.
    Servers that do not understand a filter ignore it and return everything. In a batch pipeline nothing is deleted
    before the search has ended, because deletions shift its pages. References (`Resource`, mappings of UIDs, URIs) are
    taken as they are; rows that come from elsewhere are failures: those in the DICOM JSON model, and mappings or typed
    rows with attributes that are no UIDs, because whatever they were chosen by need not hold in the archive.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        allow_unproven_rows: Delete what searches found that are not exact, and rows from elsewhere.
        failures: ``"raise"`` or ``"collect"``; with the latter the output is a `DeleteResult`. See also
            `with_error_handler`.
    """

    _element_type = Resource

    def __init__(
        self, endpoint: EndpointLike, *, allow_unproven_rows: bool = False, failures: FailureMode = "raise"
    ) -> None:
        super().__init__(endpoint, failures=failures)
        self.allow_unproven_rows = allow_unproven_rows

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps.

        Raises:
            ValueError: If a search that is not exact lies before.
        """
        searches = searches_before(pcollection)
        loose = sorted(type(search).__name__ for search in searches if not search.rows_are_proven)
        if loose and not self.allow_unproven_rows:
            raise ValueError(
                f"DeleteResources would delete what {loose[0]} finds, whose rows need not prove that they match its "
                f"filters: search with exact=True, or set allow_unproven_rows=True if you know that the server honours "
                f"them"
            )
        named = _ExactReferences(
            type(self).__name__, collect=self.collects, rows=bool(searches) or self.allow_unproven_rows
        )
        references = pcollection | "AsReferences" >> self._step(named, Resource)
        delete = self._step(self._pooled(_Delete, pcollection), Resource)
        pause = _AfterAll() if searches and pcollection.is_bounded else beam.Reshuffle()
        deleted = references["main"] | "Reshuffle" >> pause | "Delete" >> delete
        failures = self._report([references[FAILURES], deleted[FAILURES]])
        return DeleteResult(deleted["main"], failures) if self._failure_mode == "collect" else deleted["main"]


def searches_before(pcollection: Any) -> list[FailingTransform]:
    """The searches that a collection comes from, whatever steps lie between."""
    waiting, known, found = [pcollection.producer], set(), []
    while waiting:
        applied = waiting.pop()
        if applied is None or applied in known:
            continue
        known.add(applied)
        if isinstance(applied.transform, FailingTransform) and applied.transform.rows_are_proven is not None:
            found.append(applied.transform)
        asides = (side.pvalue for side in applied.side_inputs)
        waiting += [applied.parent, *(value.producer for value in (*applied.inputs, *asides))]
    return found


_WILDCARDS = frozenset("*?")


class _AfterAll(beam.PTransform[Any, Any]):
    """Gives references on when all of their window have come."""

    def expand(self, pcollection: Any) -> Any:
        return (
            pcollection
            | "KeyByStudy"
            >> beam.Map(lambda one: (one.study_instance_uid, one)).with_output_types(tuple[str, Resource])
            | "Group" >> beam.GroupByKey()
            | "Values" >> beam.FlatMap(lambda pair: pair[1]).with_output_types(Resource)
        )


class _ExactReferences(AsReferences):
    """References that surely mean no more than the element says."""

    _whole = False

    def __init__(self, transform: str, *, collect: bool, rows: bool) -> None:
        super().__init__(transform, collect=collect)
        self._rows = rows

    def reference_of(self, element: Any) -> Resource:
        reference: Resource = super().reference_of(element)
        if reference.frames:
            raise ValueError(f"frames cannot be deleted: {reference.uri} (name the instance to delete it as a whole)")
        if any(_WILDCARDS & set(uid) for uid in reference.uids.values()):
            raise ValueError(f"wildcards name nothing that can be deleted: {reference.uri}")
        if not self._rows and _is_row(element):
            raise ValueError(
                f"the row of {reference.uri} comes from no exact search, so nothing proves that it matches: use "
                f"SearchFor…(…, exact=True), give a reference (Resource.of(row)), or set allow_unproven_rows=True"
            )
        return reference


def _is_row(element: Any) -> bool:
    """Whether an element says more of what it names than its UIDs."""
    # Datasets of pydicom list their keywords so.
    names = element.dir() if hasattr(element, "to_json_dict") else attributes_of(element)
    if isinstance(element, Mapping) and STUDY_INSTANCE_UID in {str(name).upper() for name in names}:
        return True
    return any(is_attribute(name) and name not in UID_KEYWORDS.values() for name in names)


class _Delete(PooledDoFn):
    _role = "sink"

    def count_result(self, result: Resource) -> None:
        count("deleted")

    def produce(self, subject: Resource, client: DICOMClient, room: Room) -> Iterator[Any]:
        study, series = subject.study_instance_uid, str(subject.series_instance_uid)
        try:
            if subject.level == "study":
                client.delete_study(study)
            elif subject.level == "series":
                client.delete_series(study, series)
            else:
                client.delete_instance(study, series, str(subject.sop_instance_uid))
        except OSError as error:
            if getattr(error, "status", None) != 404 and not isinstance(error, FileNotFoundError):
                raise
            # A wrong address is answered with 404 too: what a search still finds was not deleted.
            if _is_listed(client, subject):
                raise
        yield subject


def _is_listed(client: DICOMClient, subject: Resource) -> bool:
    """Whether a search still finds what could not be deleted."""
    above = dict(subject.uids)
    level, uid = above.popitem()
    query = SearchQuery(level, above.get("study"), above.get("series"), search_filters=((UID_KEYWORDS[level], uid),))
    try:
        return any(Resource.of(row) == subject for row in client.iter_search(query, limit=1))
    except OSError as error:
        # What belongs to a study that is gone is answered with 404 as well.
        if getattr(error, "status", None) == 404 or isinstance(error, FileNotFoundError):
            return False
        raise
