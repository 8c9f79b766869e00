"""`CopyInstances`: from one archive to another without the bytes ever being an element."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import apache_beam as beam
from apache_beam.transforms.display import DisplayDataItem

from dicomweb_io.clients.copying import MAX_BATCH_INSTANCES, InstanceCopier, check_policies
from dicomweb_io.clients.endpoint import Endpoint, EndpointLike
from dicomweb_io.clients.pool import Lease, Room, shared_client
from dicomweb_io.clients.protocol import MediaTypes, OnExisting, Verify
from dicomweb_io.elements import Failure, Resource, StoredInstance
from dicomweb_io.transforms.base import (
    FAILURES,
    AsReferences,
    DICOMwebTransform,
    ExpandReferences,
    FailureMode,
    PooledDoFn,
    Problem,
    Work,
    several_windows,
    warn_of_secrets,
)
from dicomweb_io.transforms.lineage import report_lineage
from dicomweb_io.transforms.metrics import count
from dicomweb_io.transforms.retrieve import ReferenceInput


class StoreResult(NamedTuple):
    """The output of `CopyInstances`, `StoreInstances` and `WriteToDICOMweb`.

    Attributes:
        stored: A collection of `StoredInstance`.
        failures: A collection of `Failure`; empty unless failures are collected.
    """

    stored: Any
    failures: Any


@beam.typehints.with_input_types(ReferenceInput)
class CopyInstances(DICOMwebTransform):
    """Copies instances from one archive to another, bytes unchanged; the core of the job `pipelines.transfer`.

    The input is any reference; studies and series are expanded by a search. Each instance has one result: a
    `StoredInstance`, or a `Failure`. What the destination has already is not moved again, so that a copy that was cut
    short can simply be started again.

    Args:
        source: The archive to copy from: an `Endpoint`, a URL or a path.
        destination: The archive to copy to.
        on_existing: ``"skip"`` leaves an instance whose UID the destination has; ``"server"`` sends it and leaves the
            decision to the destination; ``"replace"`` puts it in the other's place; ``"error"`` makes a failure of it.
        verify: The proof wanted: ``"response"``, ``"uid"`` or ``"content"``; see
            `dicomweb_io.clients.copying.InstanceStorer`.
        media_types: Wanted encodings; by default the stored one.
        allow_transcoding: Take what the source re-encodes if it cannot give the original.
        spool_directory: Where larger instances wait on their way, on each worker.
        failures: ``"raise"`` or ``"collect"``. See also `with_error_handler`.

    Returns:
        A `StoreResult`.
    """

    def __init__(
        self,
        source: EndpointLike,
        destination: EndpointLike,
        *,
        on_existing: OnExisting = "skip",
        verify: Verify = "response",
        media_types: MediaTypes | None = None,
        allow_transcoding: bool = False,
        spool_directory: str | None = None,
        failures: FailureMode = "raise",
    ) -> None:
        super().__init__(source, failures=failures)
        check_policies(on_existing, verify)
        self.destination = Endpoint.of(destination)
        self.options: dict[str, Any] = {
            "on_existing": on_existing,
            "verify": verify,
            "media_types": tuple(media_types) if media_types is not None else None,
            "allow_transcoding": allow_transcoding,
            "spool_directory": spool_directory,
        }

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        name, collects = type(self).__name__, self.collects
        hold = several_windows(pcollection)
        references = pcollection | "AsReferences" >> self._step(AsReferences(name, collect=collects), Resource)
        expanded = references["main"] | "Expand" >> self._step(
            ExpandReferences(self.endpoint, "search", name, collect=collects, hold=hold), Resource
        )
        copied = (
            expanded["main"]
            | "Reshuffle" >> beam.Reshuffle()
            | "Copy"
            >> self._step(
                _Copy(self.endpoint, self.destination, name, self.options, collect=collects, hold=hold), StoredInstance
            )
        )
        warn_of_secrets(self, self.destination)
        failures = self._report([references[FAILURES], expanded[FAILURES], copied[FAILURES]])
        return StoreResult(copied["main"], failures)

    def display_data(self) -> dict[str, Any]:
        """Both endpoints and the policies."""
        return {
            **super().display_data(),
            "destination": DisplayDataItem(self.destination.safe_url, label="Destination"),
            "on_existing": DisplayDataItem(self.options["on_existing"], label="If it exists"),
            "verify": DisplayDataItem(self.options["verify"], label="Verification"),
        }


class _Copy(PooledDoFn):
    """Copies references in groups: one task for each group, one result for each reference."""

    def __init__(
        self, source: Endpoint, destination: Endpoint, transform: str, options: dict[str, Any], **how: Any
    ) -> None:
        super().__init__(source, "copy", transform, **how)
        self._destination = destination
        self._options = options
        self._receiver: Lease | None = None

    def setup(self) -> None:
        super().setup()
        self._receiver = shared_client(self._destination, "store")
        self._copier = InstanceCopier(
            cast(Lease, self._lease).client, self._receiver.client, transform=self._transform, **self._options
        )

    def start_bundle(self) -> None:
        super().start_bundle()
        self._group: dict[Resource, Work] = {}

    def teardown(self) -> None:
        super().teardown()
        if self._receiver is not None:
            self._copier.close()
            self._receiver.close()
            self._receiver = None

    def _start(self, work: Work) -> Iterator[Any]:
        same = self._group.get(work.subject)
        if same is not None:
            same.places.extend(work.places)
            return
        self._group[work.subject] = work
        if len(self._group) >= MAX_BATCH_INSTANCES:
            yield from self._submit()

    def _report_lineage(self) -> None:
        super()._report_lineage()
        report_lineage(self._destination, "sink")

    def _leases(self) -> list[Lease]:
        return [*super()._leases(), cast(Lease, self._receiver)]

    def _finish(self) -> Iterator[Any]:
        if self._group:
            yield from self._submit()

    def _submit(self) -> Iterator[Any]:
        group, self._group = self._group, {}
        lane = self._open_lane()
        for works, results in lane.submit(list(group.values()), lambda room: self._copy(list(group), room)):
            yield from self._emit(works, results)

    def _copy(self, references: list[Resource], room: Room) -> Iterator[Any]:
        yield self._copier.copy(references, cancelled=lambda: room.cancelled)

    def _emit(self, work: Any, result: Any) -> Iterator[Any]:
        for one, outcome in zip(work, result, strict=True):
            yield from super()._emit(one, Problem(outcome) if isinstance(outcome, Failure) else outcome)

    def taken(self, result: StoredInstance) -> None:
        count_stored(result)


def count_stored(result: StoredInstance) -> None:
    """Counts what became of an instance."""
    count(result.outcome)
    count("stored_bytes", result.size)
