"""Deletes (PS3.18 section 10.7): `DeleteResources` removes studies, series and instances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import apache_beam as beam

from dicomweb_io.client import DICOMClient
from dicomweb_io.elements import UID_KEYWORDS, Resource, SearchQuery
from dicomweb_io.pool import Room
from dicomweb_io.transforms._core import (
    FAILURES,
    AsReferences,
    DICOMwebTransform,
    PooledDoFn,
)
from dicomweb_io.transforms.metrics import count
from dicomweb_io.transforms.retrieve import ReferenceInput


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

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        failures: ``"raise"`` or ``"collect"``; with the latter the output is a `DeleteResult`. See also
            `with_error_handler`.
    """

    _element_type = Resource

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        named = _ExactReferences(type(self).__name__, collect=self.collects)
        references = pcollection | "AsReferences" >> self._step(named, Resource)
        delete = self._step(self._pooled(_Delete, pcollection), Resource)
        deleted = references["main"] | "Reshuffle" >> beam.Reshuffle() | "Delete" >> delete
        failures = self._report([references[FAILURES], deleted[FAILURES]])
        return DeleteResult(deleted["main"], failures) if self._failure_mode == "collect" else deleted["main"]


class _ExactReferences(AsReferences):
    """References that surely mean no more than the element says."""

    _whole = False

    def reference_of(self, element: Any) -> Resource:
        reference: Resource = super().reference_of(element)
        if reference.frames:
            raise ValueError(f"frames cannot be deleted: {reference.uri} (name the instance to delete it as a whole)")
        if isinstance(element, Mapping) and "study_instance_uid" not in element:
            named = {"series": "0020000E" in element, "instance": "00080018" in element}
            meant = "instance" if named["instance"] else "series" if named["series"] else "study"
            if meant != reference.level:
                raise ValueError(f"the row names a {meant}, but lacks a UID to find it by; nothing was deleted")
        return reference


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
