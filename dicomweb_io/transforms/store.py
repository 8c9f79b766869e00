"""Stores (STOW-RS, PS3.18 section 10.5): `StoreInstances`."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.display import DisplayDataItem

from dicomweb_io.client import OnExisting, Verify
from dicomweb_io.elements import Failure, Instance, Resource, StoredInstance
from dicomweb_io.endpoint import Endpoint, EndpointLike
from dicomweb_io.failures import RECOVERABLE
from dicomweb_io.pool import DEFAULT_MAX_BYTES, Lease, Room, identity_of
from dicomweb_io.transfer import (
    MAX_BATCH_INSTANCES,
    MAX_BATCH_MEMORY,
    CopyResult,
    InstanceStorer,
    check_policies,
)
from dicomweb_io.transforms._core import (
    FAILURES,
    FailingTransform,
    FailureMode,
    PooledDoFn,
    Problem,
    Work,
    piped_by_member,
    problem_of,
    several_windows,
    warn_of_secrets,
)
from dicomweb_io.transforms.metrics import count

Destination = EndpointLike | Callable[[Any], EndpointLike]
"""Where instances go: one archive, or a function that returns the archive of an element."""

MAX_DESTINATIONS = 8


@piped_by_member
class StoreResult(NamedTuple):
    """The output of `CopyInstances`, `StoreInstances` and `WriteToDICOMweb`.

    Attributes:
        stored: A collection of `StoredInstance`.
        failures: A collection of `Failure`; empty unless failures are collected.
    """

    stored: Any
    failures: Any


class StoreInstances(FailingTransform):
    """Stores instances: `Instance` elements, Part 10 bytes, paths, pydicom datasets, or Beam's ``ReadableFile``.

    Bytes and files are stored unchanged; a dataset is encoded by pydicom. Each element has one result: a
    `StoredInstance`, or a `Failure`. Success is decided by what the archive's answer says about the instance, never by
    a status code.

    Instances are collected inside a bundle and sent several at a time. Where the outcome does not depend on when a
    bundle is repeated (every policy but ``"error"``), a repeated bundle does no harm.

    Args:
        endpoint: An `Endpoint`, a URL or a path; or a function that is given an element and returns one, so that
            different elements go to different archives. The function must be cheap: elements in several windows ask it
            for each.
        on_existing: ``"server"`` leaves duplicates to the archive; ``"skip"`` leaves an instance whose UID it has;
            ``"replace"`` replaces the existing instance; ``"error"`` makes it a failure.
        verify: The evidence required: ``"response"``, ``"uid"`` or ``"content"``; see
            `dicomweb_io.transfer.InstanceStorer`.
        max_destinations: With a function: the maximum number of archives that a worker thread is connected to at once.
            What waits for the one used longest ago is sent before it is replaced.
        failures: ``"raise"`` or ``"collect"``. See also `with_error_handler`.

    Returns:
        A `StoreResult`.
    """

    def __init__(
        self,
        endpoint: Destination,
        *,
        on_existing: OnExisting = "server",
        verify: Verify = "response",
        max_destinations: int = MAX_DESTINATIONS,
        failures: FailureMode = "raise",
    ) -> None:
        super().__init__(failures=failures)
        check_policies(on_existing, verify)
        if max_destinations < 1:
            raise ValueError(f"max_destinations must be 1 or more, not {max_destinations}")
        by_element = callable(endpoint) and not isinstance(endpoint, Endpoint)
        self.choose: Callable[[Any], EndpointLike] | None = cast(Any, endpoint) if by_element else None
        self.endpoint: Endpoint | None = None if by_element else Endpoint.of(cast(EndpointLike, endpoint))
        self.options: dict[str, Any] = {"on_existing": on_existing, "verify": verify}
        self.max_destinations = max_destinations

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        name = type(self).__name__
        how: dict[str, Any] = {"collect": self.collects, "hold": several_windows(pcollection)}
        dofn: beam.DoFn
        if self.choose is not None:
            dofn = _StoreEach(self.choose, name, self.options, self.max_destinations, how)
        else:
            endpoint = cast(Endpoint, self.endpoint)
            warn_of_secrets(self, endpoint)
            dofn = _Store(endpoint, name, self.options, **how)
        stored = pcollection | "Store" >> self._step(dofn, StoredInstance)
        return StoreResult(stored["main"], self._report([stored[FAILURES]]))

    def display_data(self) -> dict[str, Any]:
        """The endpoint and the policies."""
        shown = self.endpoint.safe_url if self.endpoint is not None else "chosen for each element"
        return {
            "endpoint": DisplayDataItem(shown, label="Endpoint"),
            **super().display_data(),
            "on_existing": DisplayDataItem(self.options["on_existing"], label="If it exists"),
            "verify": DisplayDataItem(self.options["verify"], label="Verification"),
        }


def as_instance(element: Any) -> Instance:
    """Makes an `Instance` of what can be stored; only headers are read.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If it is not a DICOM object or lacks a UID.
        TypeError: If it is nothing that can be stored.
    """
    if isinstance(element, Instance):
        return element
    if isinstance(element, (bytes, bytearray, memoryview)):
        return Instance.from_bytes(bytes(element))
    if isinstance(element, (str, os.PathLike)):
        return Instance.from_path(element)
    if getattr(element, "metadata", None) is not None and hasattr(element, "open"):
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

    _role = "sink"

    def __init__(self, endpoint: Endpoint, transform: str, options: dict[str, Any], **how: Any) -> None:
        super().__init__(endpoint, transform, **how)
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
            yield from super()._emit(work, problem_of(error, self._transform, source=source_of(work.subject)))
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
        for done, results in self._open_lane().submit(works, lambda room: self._store(instances, room), holding=size):
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

    def count_result(self, result: StoredInstance) -> None:
        count_stored(result)


class _StoreEach(beam.DoFn):
    """Hands each element to the `_Store` of its archive, of which it keeps a few."""

    def __init__(
        self,
        choose: Callable[[Any], EndpointLike],
        transform: str,
        options: dict[str, Any],
        maximum: int,
        how: dict[str, Any],
    ) -> None:
        self._choose = choose
        self._transform = transform
        self._options = options
        self._maximum = maximum
        self._how = how
        self._stores: OrderedDict[Any, _Store] = OrderedDict()

    def setup(self) -> None:
        """Starts without archives."""
        self._stores = OrderedDict()

    def start_bundle(self) -> None:
        """Begins the bundle of each archive."""
        for store in self._stores.values():
            store.start_bundle()

    def process(
        self,
        element: Any,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
    ) -> Iterator[Any]:
        """Stores an element."""
        try:
            endpoint = Endpoint.of(self._choose(element))
        except (*RECOVERABLE, TypeError, ValueError) as error:
            # The function is the user's, and so is what it raises.
            problem = problem_of(error, self._transform, source=source_of(element))
            count("failures")
            if not self._how["collect"]:
                self._abandon()
                problem.raise_it()
            yield TaggedOutput(FAILURES, problem.failure)
            return
        try:
            key = identity_of(endpoint)
            store = self._stores.get(key)
            if store is None:
                if len(self._stores) >= self._maximum:
                    _, oldest = self._stores.popitem(last=False)
                    try:
                        yield from oldest.finish_bundle()
                    finally:
                        oldest.teardown()
                # All archives together may use as much memory as one.
                budget = max(1, DEFAULT_MAX_BYTES // self._maximum)
                store = _Store(endpoint, self._transform, self._options, max_bytes=budget, **self._how)
                store.setup()
                store.start_bundle()
                self._stores[key] = store
            self._stores.move_to_end(key)
            yield from store.process(element, timestamp, window, pane)
        except BaseException:
            self._abandon()
            raise

    def finish_bundle(self) -> Iterator[Any]:
        """Sends and waits for the rest."""
        try:
            for store in self._stores.values():
                yield from store.finish_bundle()
        except BaseException:
            self._abandon()
            raise

    def teardown(self) -> None:
        """Gives all clients back."""
        stores, self._stores = self._stores, OrderedDict()
        for store in stores.values():
            store.teardown()

    def _abandon(self) -> None:
        for store in self._stores.values():
            store.abandon()


def count_stored(result: StoredInstance) -> None:
    """Counts the result for an instance."""
    count(result.outcome)
    count("stored_bytes", result.size)
