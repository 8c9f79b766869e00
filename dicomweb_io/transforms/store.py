"""Stores (STOW-RS, PS3.18 section 10.5): `StoreInstances`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, cast

from apache_beam.transforms.display import DisplayDataItem

from dicomweb_io.clients.copying import (
    MAX_BATCH_INSTANCES,
    MAX_BATCH_MEMORY,
    CopyResult,
    InstanceStorer,
    check_policies,
)
from dicomweb_io.clients.endpoint import Endpoint, EndpointLike
from dicomweb_io.clients.failures import RECOVERABLE
from dicomweb_io.clients.pool import DEFAULT_MAX_BYTES, Lease, Room
from dicomweb_io.clients.protocol import OnExisting, Verify
from dicomweb_io.elements import Failure, Instance, Resource, StoredInstance
from dicomweb_io.transforms.base import (
    FAILURES,
    DICOMwebTransform,
    FailureMode,
    PooledDoFn,
    Problem,
    Work,
    problem_of,
    several_windows,
)
from dicomweb_io.transforms.copy import StoreResult, count_stored


class StoreInstances(DICOMwebTransform):
    """Stores instances: `Instance` elements, Part 10 bytes, paths, pydicom datasets, or Beam's ``ReadableFile``.

    Bytes and files are stored unchanged; a dataset is encoded by pydicom. Each element has one result: a
    `StoredInstance`, or a `Failure`. Success is what the archive's answer says of the instance, never a status code.

    Instances are collected inside a bundle and sent several at a time. Where the outcome does not depend on when a
    bundle is repeated (every policy but ``"error"``), a repeated bundle does no harm.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        on_existing: ``"server"`` leaves duplicates to the archive; ``"skip"`` leaves an instance whose UID it has;
            ``"replace"`` puts the instance in the other's place; ``"error"`` makes a failure of it.
        verify: The proof wanted: ``"response"``, ``"uid"`` or ``"content"``; see
            `dicomweb_io.clients.copying.InstanceStorer`.
        failures: ``"raise"`` or ``"collect"``. See also `with_error_handler`.

    Returns:
        A `StoreResult`.
    """

    def __init__(
        self,
        endpoint: EndpointLike,
        *,
        on_existing: OnExisting = "server",
        verify: Verify = "response",
        failures: FailureMode = "raise",
    ) -> None:
        super().__init__(endpoint, failures=failures)
        check_policies(on_existing, verify)
        self.options: dict[str, Any] = {"on_existing": on_existing, "verify": verify}

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        dofn = _Store(
            self.endpoint,
            type(self).__name__,
            self.options,
            collect=self.collects,
            hold=several_windows(pcollection),
        )
        stored = pcollection | "Store" >> self._step(dofn, StoredInstance)
        return StoreResult(stored["main"], self._report([stored[FAILURES]]))

    def display_data(self) -> dict[str, Any]:
        """The endpoint and the policies."""
        return {
            **super().display_data(),
            "on_existing": DisplayDataItem(self.options["on_existing"], label="If it exists"),
            "verify": DisplayDataItem(self.options["verify"], label="Verification"),
        }


def as_instance(element: Any) -> Instance:
    """Makes an `Instance` of what can be stored; only headers are read.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If it is no DICOM object or lacks a UID.
        TypeError: If it is nothing that can be stored.
    """
    if isinstance(element, Instance):
        return element
    if isinstance(element, (bytes, bytearray, memoryview)):
        return Instance.from_bytes(bytes(element))
    if isinstance(element, (str, os.PathLike)):
        return Instance.from_path(element)
    metadata = getattr(element, "metadata", None)
    if metadata is not None and hasattr(element, "open"):
        # Beam's ReadableFile: decompressed if its name says that it is compressed, from any of Beam's file systems.
        return Instance.from_bytes(element.read())
    from pydicom.dataset import Dataset

    if isinstance(element, Dataset):
        return Instance.from_dataset(element)
    raise TypeError(
        f"an Instance, Part 10 bytes, a path, a pydicom Dataset or a ReadableFile can be stored, "
        f"but this is {type(element).__name__}"
    )


def source_of(element: Any) -> str | None:
    """The path of an element that is a file."""
    if isinstance(element, (str, os.PathLike)):
        return os.fspath(element)
    if isinstance(element, Instance):
        return element.path
    path = getattr(getattr(element, "metadata", None), "path", None)
    return path if isinstance(path, str) else None


class _Store(PooledDoFn):
    """Sends what a bundle collects in batches: one task for each batch, one result for each element."""

    def __init__(self, endpoint: Endpoint, transform: str, options: dict[str, Any], **how: Any) -> None:
        super().__init__(endpoint, "store", transform, max_bytes=DEFAULT_MAX_BYTES, **how)
        self._options = options

    def setup(self) -> None:
        super().setup()
        self._storer = InstanceStorer(cast(Lease, self._lease).client, transform=self._transform, **self._options)

    def start_bundle(self) -> None:
        super().start_bundle()
        self._batch: list[tuple[Instance, Work]] = []
        self._batch_bytes = 0

    def _start(self, work: Work) -> Iterator[Any]:
        try:
            instance = as_instance(work.subject)
        except (*RECOVERABLE, TypeError) as error:
            problem = problem_of(error, self._transform, source=source_of(work.subject))
            yield from super()._emit(work, problem)
            return
        # The element itself is not needed any more; a batch keeps it alive otherwise.
        work.subject = None
        size = len(instance.content) if instance.content is not None else 0
        full = len(self._batch) >= MAX_BATCH_INSTANCES or self._batch_bytes + size > MAX_BATCH_MEMORY
        if self._batch and full:
            yield from self._submit()
        self._batch.append((instance, work))
        self._batch_bytes += size

    def _finish(self) -> Iterator[Any]:
        if self._batch:
            yield from self._submit()

    def _submit(self) -> Iterator[Any]:
        batch, size = self._batch, self._batch_bytes
        self._batch, self._batch_bytes = [], 0
        instances = [instance for instance, _ in batch]
        works = [work for _, work in batch]
        del batch
        lane = self._open_lane()
        for done, results in lane.submit(works, lambda room: self._store(instances, room), holding=size):
            yield from self._emit(done, results)

    def _store(self, instances: list[Instance], room: Room) -> Iterator[list[CopyResult]]:
        results: dict[Resource, CopyResult] = {}
        wanted: dict[Resource, Instance] = {}
        repeated: list[Instance] = []
        for instance in instances:
            known = self._storer.already_there(instance.reference)
            if known is not None:
                results[instance.reference] = known
            elif instance.reference in wanted:
                repeated.append(instance)
            else:
                wanted[instance.reference] = instance
        results.update(zip(wanted, self._storer.store(list(wanted.values())), strict=True))
        # Objects with one UID do not belong into one request: which would be kept?
        later = {id(instance): self._again(instance) for instance in repeated}
        yield [later.get(id(instance)) or results[instance.reference] for instance in instances]

    def _again(self, instance: Instance) -> CopyResult:
        return self._storer.already_there(instance.reference) or self._storer.store([instance])[0]

    def _emit(self, work: Any, result: Any) -> Iterator[Any]:
        for one, outcome in zip(work, result, strict=True):
            yield from super()._emit(one, Problem(outcome) if isinstance(outcome, Failure) else outcome)

    def _key(self, subject: Any) -> Any:
        # Equal elements are two elements here: a store is not a question.
        return None

    def taken(self, result: StoredInstance) -> None:
        count_stored(result)
