"""Stores (STOW-RS, PS3.18 section 10.5): `StoreInstances`."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.display import DisplayDataItem

from dicomweb_io.client import DICOMClient, MediaTypes, OnExisting, Verify
from dicomweb_io.elements import Failure, Instance, Resource, SearchLevel, SearchQuery, StoredInstance
from dicomweb_io.endpoint import Endpoint, EndpointLike
from dicomweb_io.errors import InvalidIdentifierError
from dicomweb_io.failures import RECOVERABLE
from dicomweb_io.pool import DEFAULT_MAX_BYTES, Lease, Room, identity_of, shared_client
from dicomweb_io.transfer import (
    MAX_BATCH_INSTANCES,
    MAX_BATCH_MEMORY,
    MEMORY_THRESHOLD,
    CopyResult,
    Downloaded,
    InstanceCopier,
    InstanceDownloader,
    InstanceStorer,
    check_policies,
)
from dicomweb_io.transforms._core import (
    FAILURES,
    AsReferences,
    DICOMwebTransform,
    ExpandReferences,
    FailingTransform,
    FailureMode,
    PooledDoFn,
    Problem,
    Work,
    problem_of,
    report_lineage,
    several_windows,
    warn_of_secrets,
)
from dicomweb_io.transforms.metrics import count
from dicomweb_io.transforms.retrieve import ReferenceInput

# ----------------------------------------------------------------------------------------------------------------------


Destination = EndpointLike | Callable[[Any], EndpointLike]
"""Where instances go: one archive, or a function that tells the archive of each element."""

MAX_DESTINATIONS = 8


class StoreInstances(FailingTransform):
    """Stores instances: `Instance` elements, Part 10 bytes, paths, pydicom datasets, or Beam's ``ReadableFile``.

    Bytes and files are stored unchanged; a dataset is encoded by pydicom. Each element has one result: a
    `StoredInstance`, or a `Failure`. Success is what the archive's answer says of the instance, never a status code.

    Instances are collected inside a bundle and sent several at a time. Where the outcome does not depend on when a
    bundle is repeated (every policy but ``"error"``), a repeated bundle does no harm.

    Args:
        endpoint: An `Endpoint`, a URL or a path; or a function that is given an element and returns one, so that
            different elements go to different archives. The function must be cheap: elements in several windows ask it
            for each.
        on_existing: ``"server"`` leaves duplicates to the archive; ``"skip"`` leaves an instance whose UID it has;
            ``"replace"`` puts the instance in the other's place; ``"error"`` makes a failure of it.
        verify: The proof wanted: ``"response"``, ``"uid"`` or ``"content"``; see
            `dicomweb_io.transfer.InstanceStorer`.
        max_destinations: With a function: the most archives that a worker thread is connected to at once. What waits
            for the one used longest ago is sent before another takes its place.
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
        self, element: Any, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Any]:
        """Stores an element."""
        try:
            endpoint = Endpoint.of(self._choose(element))
        except (*RECOVERABLE, TypeError) as error:
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
            yield from store.process(element, timestamp, window)
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


# ----------------------------------------------------------------------------------------------------------------------
# `CopyInstances`: from one archive to another without the bytes ever being an element.


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
            `dicomweb_io.transfer.InstanceStorer`.
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
            ExpandReferences(self.endpoint, name, collect=collects, hold=hold), Resource
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
        super().__init__(source, transform, **how)
        self._destination = destination
        self._options = options
        self._receiver: Lease | None = None

    def setup(self) -> None:
        super().setup()
        self._receiver = shared_client(self._destination)
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


# ----------------------------------------------------------------------------------------------------------------------
# `DeleteInstances`: removes studies, series and instances (PS3.18 section 10.7).


class DeleteResult(NamedTuple):
    """The output of `DeleteInstances` with ``failures="collect"``."""

    deleted: Any
    failures: Any


@beam.typehints.with_input_types(ReferenceInput)
class DeleteInstances(DICOMwebTransform):
    """Deletes what references name, as far as the archive allows it, and gives back the references.

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

    def __init__(self, endpoint: EndpointLike, *, failures: FailureMode = "raise") -> None:
        super().__init__(endpoint, failures=failures)

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        name, collects = type(self).__name__, self.collects
        references = pcollection | "AsReferences" >> self._step(_ExactReferences(name, collect=collects), Resource)
        deleted = (
            references["main"]
            | "Reshuffle" >> beam.Reshuffle()
            | "Delete"
            >> self._step(_Delete(self.endpoint, name, collect=collects, hold=several_windows(pcollection)), Resource)
        )
        failures = self._report([references[FAILURES], deleted[FAILURES]])
        return DeleteResult(deleted["main"], failures) if self._failure_mode == "collect" else deleted["main"]


class _ExactReferences(AsReferences):
    """References that surely mean no more than the element says."""

    def __init__(self, transform: str, *, collect: bool) -> None:
        super().__init__(transform, collect=collect, whole=False)

    def reference_of(self, element: Any) -> Resource:
        reference = super().reference_of(element)
        if reference.frames:
            raise InvalidIdentifierError(
                f"frames cannot be deleted: {reference.uri} (name the instance to delete it as a whole)"
            )
        if isinstance(element, Mapping) and "study_instance_uid" not in element:
            named = {"series": "0020000E" in element, "instance": "00080018" in element}
            meant = "instance" if named["instance"] else "series" if named["series"] else "study"
            if meant != reference.level:
                raise InvalidIdentifierError(
                    f"the row names a {meant}, but lacks a UID to find it by; nothing was deleted"
                )
        return reference


class _Delete(PooledDoFn):
    _role = "sink"

    def __init__(self, endpoint: Endpoint, transform: str, **options: Any) -> None:
        super().__init__(endpoint, transform, **options)

    def taken(self, result: Resource) -> None:
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
    level: SearchLevel = "study"
    tag, uid = "StudyInstanceUID", subject.study_instance_uid
    above: tuple[str | None, str | None] = (None, None)
    if subject.sop_instance_uid is not None:
        level, tag, uid = "instance", "SOPInstanceUID", subject.sop_instance_uid
        above = subject.study_instance_uid, subject.series_instance_uid
    elif subject.series_instance_uid is not None:
        level, tag, uid = "series", "SeriesInstanceUID", subject.series_instance_uid
        above = subject.study_instance_uid, None
    query = SearchQuery(level, *above, search_filters=((tag, uid),))
    try:
        return any(Resource.of(row) == subject for row in client.iter_search(query, limit=1))
    except OSError as error:
        # What belongs to a study that is gone is answered with 404 as well.
        if getattr(error, "status", None) == 404 or isinstance(error, FileNotFoundError):
            return False
        raise


# ----------------------------------------------------------------------------------------------------------------------
# `DownloadInstances`: from an archive to files, without the bytes ever being an element.


class DownloadResult(NamedTuple):
    """The output of `DownloadInstances` with ``failures="collect"``."""

    paths: Any
    failures: Any


@beam.typehints.with_input_types(ReferenceInput)
class DownloadInstances(DICOMwebTransform):
    """Writes instances to ``DIRECTORY/STUDY/SERIES/INSTANCE.dcm``, bytes unchanged, and gives the paths.

    The input is any reference; studies and series are expanded by a search. A file appears under its name when it is
    complete. One that is there already is not retrieved again, so that a download that was cut short can simply be
    started again; its path comes too.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        directory: Where the files go: a path, or any fsspec URL. All workers must reach it.
        storage_options: Arguments for the fsspec filesystem of the directory.
        overwrite: Retrieve and replace files that are there.
        media_types: Wanted encodings; by default the stored one.
        allow_transcoding: Take what the archive re-encodes if it cannot give the original.
        spool_directory: Where larger instances wait on their way, on each worker.
        failures: ``"raise"`` or ``"collect"``; with the latter the output is a `DownloadResult`. See also
            `with_error_handler`.

    Raises:
        ValueError: If the directory is a server, or an argument is not valid.
    """

    _element_type = str

    def __init__(
        self,
        endpoint: EndpointLike,
        directory: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        media_types: MediaTypes | None = None,
        allow_transcoding: bool = False,
        spool_directory: str | None = None,
        failures: FailureMode = "raise",
    ) -> None:
        super().__init__(endpoint, failures=failures)
        self.directory = Endpoint(os.fspath(directory), storage_options=storage_options)
        if self.directory.is_web:
            raise ValueError("directory must be a path or an fsspec URL; use CopyInstances to copy to a server")
        self.options: dict[str, Any] = {
            "overwrite": overwrite,
            "media_types": tuple(media_types) if media_types is not None else None,
            "allow_transcoding": allow_transcoding,
            "spool_directory": spool_directory,
        }

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        name = type(self).__name__
        how: dict[str, Any] = {"collect": self.collects, "hold": several_windows(pcollection)}
        references = pcollection | "AsReferences" >> self._step(AsReferences(name, collect=self.collects), Resource)
        expanded = references["main"] | "Expand" >> self._step(ExpandReferences(self.endpoint, name, **how), Resource)
        written = (
            expanded["main"]
            | "Reshuffle" >> beam.Reshuffle()
            | "Download" >> self._step(_Download(self.endpoint, self.directory, name, self.options, **how), str)
        )
        warn_of_secrets(self, self.directory)
        failures = self._report([references[FAILURES], expanded[FAILURES], written[FAILURES]])
        return DownloadResult(written["main"], failures) if self._failure_mode == "collect" else written["main"]

    def display_data(self) -> dict[str, Any]:
        """The endpoint and the directory."""
        return {
            **super().display_data(),
            "directory": DisplayDataItem(self.directory.safe_url, label="Directory"),
            "overwrite": DisplayDataItem(self.options["overwrite"], label="Overwrite"),
        }


class _Download(PooledDoFn):
    def __init__(
        self, endpoint: Endpoint, directory: Endpoint, transform: str, options: dict[str, Any], **how: Any
    ) -> None:
        super().__init__(endpoint, transform, **how)
        self._directory = directory
        self._options = options
        self._downloader: InstanceDownloader | None = None

    def setup(self) -> None:
        super().setup()
        self._downloader = InstanceDownloader(
            cast(Lease, self._lease).client,
            self._directory.url,
            storage_options=self._directory.storage_options,
            transform=self._transform,
            **self._options,
        )

    def teardown(self) -> None:
        super().teardown()
        if self._downloader is not None:
            self._downloader.close()
            self._downloader = None

    def _report_lineage(self) -> None:
        super()._report_lineage()
        report_lineage(self._directory, "sink")

    def produce(self, subject: Resource, client: DICOMClient, room: Room) -> Iterator[Any]:
        room.reserve(MEMORY_THRESHOLD)
        outcome = cast(InstanceDownloader, self._downloader).download(subject)
        yield Problem(outcome) if isinstance(outcome, Failure) else outcome

    def taken(self, result: Downloaded) -> None:
        count("exists" if result.existed else "downloaded")
        count("downloaded_bytes", result.size)

    def _emit(self, work: Work, result: Any) -> Iterator[Any]:
        for output in super()._emit(work, result):
            # Consumers get the path; the rest was counted.
            value = getattr(output, "value", None)
            yield output.with_value(value.path) if isinstance(value, Downloaded) else output
