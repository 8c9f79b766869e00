"""Stores (STOW-RS, PS3.18 section 10.5): `StoreInstances`."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import threading
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, BinaryIO, NamedTuple, cast

import apache_beam as beam
import zstandard
from apache_beam.coders import PickleCoder, VarIntCoder
from apache_beam.io.fileio import ReadableFile
from apache_beam.io.filesystem import CompressedFile, CompressionTypes
from apache_beam.options.pipeline_options import PortableOptions
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.display import DisplayDataItem
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.windowed_value import WindowedValue

from dicomweb_io.client import OnExisting, Verify
from dicomweb_io.copier import MAX_BATCH_INSTANCES, MAX_BATCH_MEMORY, BatchSize, CopyResult, InstanceStorer, memory_of
from dicomweb_io.elements import Failure, Instance, Resource, StoredInstance
from dicomweb_io.endpoint import Endpoint, EndpointLike
from dicomweb_io.errors import DICOMError
from dicomweb_io.failures import RECOVERABLE, failure_of
from dicomweb_io.pool import TICK, Lane, Lease, Room, WorkCancelled, identity_of, shared_client, shared_pool
from dicomweb_io.spool import MEMORY_THRESHOLD, PrivateDirectory
from dicomweb_io.store_items import StoreItem, check_options, inspect, source_of
from dicomweb_io.transforms._core import (
    FAILURES,
    FailingTransform,
    FailureMode,
    PooledDoFn,
    Problem,
    Work,
    call_user,
    naming,
    piped_by_member,
    problem_of,
    report_lineage,
    several_windows,
    warn_of_secrets,
)
from dicomweb_io.transforms.metrics import Traffic, count, count_traffic

Destination = EndpointLike | Callable[[Any], EndpointLike]
"""Where instances go: one archive, or a function that returns the archive of an element."""

MAX_DESTINATIONS = 8

MAX_IN_FLIGHT = 32
"""Tasks at once that store to archives which a function names, in a process."""

MAX_WAITING_MEMORY = 8 * MAX_BATCH_MEMORY
"""Bytes that wait in memory for requests, to however many archives."""

_DECOMPRESSING: dict[str, Callable[[Any], Any]] = {
    CompressionTypes.GZIP: gzip.open,
    CompressionTypes.BZIP2: bz2.open,
    CompressionTypes.LZMA: lzma.open,
    CompressionTypes.ZSTD: lambda raw: zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True),
}
_COMPRESSED_CHUNK = 4096

_WAITING = "waiting"
_SHARDS = 4
"""Keys by which the paths for one archive wait: each may make a request of its own."""

# Their timers fire at once (Beam 2.77); DirectRunner is one of the others.
_WITHOUT_WAITING = (
    *("FnApiRunner", "BundleBasedDirectRunner", "DirectRunner", "SwitchingDirectRunner"),
    *("InteractiveRunner", "TestDirectRunner"),
)


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
            different elements go to different archives. It is asked on the thread of the bundle, so it must be cheap.
        on_existing: ``"server"`` leaves duplicates to the archive; ``"skip"`` leaves an instance whose UID it has;
            ``"replace"`` replaces the existing instance; ``"error"`` makes it a failure.
        verify: The evidence required: ``"response"``, ``"uid"`` or ``"content"``; see
            `dicomweb_io.copier.InstanceStorer`.
        max_destinations: With a function: the maximum number of archives that a worker thread stays connected to
            without having anything to send.
        max_batch_delay: In a streaming pipeline, whose bundles may hold a few elements each: paths and ``ReadableFile``
            elements wait so many seconds for others, at most to the end of their window, to share a request. Elements
            with content never wait. Windows must not overlap, and the runner must have timers that wait.
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
        max_batch_delay: float | None = None,
        failures: FailureMode = "raise",
    ) -> None:
        super().__init__(failures=failures)
        check_options(on_existing, verify)
        if max_batch_delay is not None and not max_batch_delay > 0:
            raise ValueError(f"max_batch_delay must be more than 0 seconds, or None, not {max_batch_delay}")
        if max_destinations < 1:
            raise ValueError(f"max_destinations must be 1 or more, not {max_destinations}")
        by_element = callable(endpoint) and not isinstance(endpoint, Endpoint)
        self.choose: Callable[[Any], EndpointLike] | None = cast(Any, endpoint) if by_element else None
        self.endpoint: Endpoint | None = None if by_element else Endpoint.of(cast(EndpointLike, endpoint))
        self.options: dict[str, Any] = {"on_existing": on_existing, "verify": verify}
        self.max_destinations = max_destinations
        self.max_batch_delay = max_batch_delay

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        if self.endpoint is not None:
            warn_of_secrets(self, self.endpoint)
        if self.max_batch_delay is None:
            stored = self._stored(pcollection, "Store")
            return StoreResult(stored["main"], self._report([stored[FAILURES]]))
        _check_that_timers_wait(pcollection)
        # Content must not cross the shuffle, and collections of it must not be flattened.
        parted = pcollection | "Part" >> beam.ParDo(_Part(self.choose)).with_outputs(_WAITING, main="main")
        waiting = parted[_WAITING] | "Type" >> beam.Map(lambda keyed: keyed).with_output_types(tuple[str, Any])
        packed = waiting | "Wait" >> beam.ParDo(_Wait(self.max_batch_delay)).with_output_types(Any)
        results = [self._stored(packed, "StoreTogether"), self._stored(parted["main"], "Store")]
        stored = tuple(result["main"] for result in results) | "Join" >> beam.Flatten()
        return StoreResult(stored, self._report([result[FAILURES] for result in results]))

    def _stored(self, pcollection: Any, label: str) -> Any:
        name = type(self).__name__
        how: dict[str, Any] = {"collect": self.collects, "hold": several_windows(pcollection)}
        dofn: beam.DoFn
        if self.choose is not None:
            dofn = _StoreEach(self.choose, name, self.options, self.max_destinations, **how)
        else:
            dofn = _Store(cast(Endpoint, self.endpoint), name, self.options, **how)
        return pcollection | label >> self._step(dofn, StoredInstance)

    def display_data(self) -> dict[str, Any]:
        """The endpoint and the policies."""
        shown = self.endpoint.safe_url if self.endpoint is not None else "chosen for each element"
        return {
            "endpoint": DisplayDataItem(shown, label="Endpoint"),
            **super().display_data(),
            "on_existing": DisplayDataItem(self.options["on_existing"], label="If it exists"),
            "verify": DisplayDataItem(self.options["verify"], label="Verification"),
            "max_batch_delay": DisplayDataItem(self.max_batch_delay, label="Longest wait, seconds").drop_if_none(),
        }


def read_element(element: Any, **how: Any) -> StoreItem:
    """Makes an item of an element; for `how` see `dicomweb_io.store_items.inspect`.

    Raises:
        OSError, DICOMError: If it cannot be read, is not DICOM, or lacks a UID.
        TypeError: If it is nothing that can be stored.
    """
    if not _is_readable_file(element):
        return inspect(element, **how)
    # From any of Beam's file systems, and decompressed if its name says that it is compressed.
    try:
        with _opened(element) as file:
            item = inspect(file, **how)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise OSError(f"it cannot be decompressed: {error}") from error
    item.source = source_of_element(element)
    return item


@contextmanager
def _opened(file: ReadableFile) -> Iterator[BinaryIO]:
    """Opens a file for a bounded reading, which notices that compressed content is cut off.

    What Beam (2.77) opens decompresses 16 MiB at once, whatever becomes of them, and takes any end for the end.
    """
    kind = getattr(file, "_compression", None) or CompressionTypes.AUTO
    if kind == CompressionTypes.AUTO:
        kind = CompressionTypes.detect_compression_type(file.metadata.path)
    with closing(file.open("application/octet-stream", CompressionTypes.UNCOMPRESSED)) as raw:
        decompressing = _DECOMPRESSING.get(kind, lambda file: CompressedFile(file, kind, _COMPRESSED_CHUNK))
        yield raw if kind == CompressionTypes.UNCOMPRESSED else decompressing(raw)


def source_of_element(element: Any) -> str | None:
    """The path of an element that is a file."""
    if _is_readable_file(element):
        return str(element.metadata.path)
    return source_of(element)


def _is_readable_file(element: Any) -> bool:
    return isinstance(element, ReadableFile)


def _is_read_elsewhere(element: Any) -> bool:
    """Whether an element is not in memory yet."""
    return _is_readable_file(element) or isinstance(element, (str, os.PathLike, io.IOBase))


def _check_that_timers_wait(pcollection: Any) -> None:
    options = pcollection.pipeline.options
    runner = type(pcollection.pipeline.runner).__name__
    embedded = runner == "PortableRunner" and options.view_as(PortableOptions).job_endpoint in (None, "embed")
    if embedded or runner in _WITHOUT_WAITING:
        raise ValueError(
            f"max_batch_delay needs a streaming runner, such as PrismRunner, FlinkRunner or DataflowRunner: on "
            f"{runner} timers fire at once, so that nothing would wait; leave it out"
        )
    if several_windows(pcollection):
        raise ValueError("max_batch_delay needs windows that do not overlap: an element would be stored for each")


class _Part(beam.DoFn):
    """Gives paths a key by which they wait together, and lets content pass."""

    def __init__(self, choose: Callable[[Any], EndpointLike] | None) -> None:
        self._choose = choose

    def process(self, element: Any) -> Iterator[Any]:
        """Yields the element, or the keyed path."""
        if not isinstance(element, (str, os.PathLike, ReadableFile)):
            yield element
            return
        shard = zlib.crc32(str(source_of_element(element)).encode()) % _SHARDS
        try:
            chosen = None if self._choose is None else Endpoint.of(call_user(self._choose, element)).url
        except (DICOMError, TypeError, ValueError):
            # The store reports it.
            chosen = None
        yield TaggedOutput(_WAITING, (f"{shard} {zlib.crc32((chosen or '').encode())}", element))


_END = TimerSpec("end", TimeDomain.WATERMARK)
_DELAY = TimerSpec("delay", TimeDomain.REAL_TIME)
_Elements = beam.DoFn.StateParam(BagStateSpec("elements", PickleCoder()))
_Count = beam.DoFn.StateParam(ReadModifyWriteStateSpec("count", VarIntCoder()))
_End, _Delay = beam.DoFn.TimerParam(_END), beam.DoFn.TimerParam(_DELAY)


class _Wait(beam.DoFn):
    """Gives the paths of a key together: when they fill a request, or the first has waited for long."""

    def __init__(self, delay: float) -> None:
        self._delay = delay

    def process(
        self,
        keyed: tuple[str, Any],
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
        elements: Any = _Elements,
        count: Any = _Count,
        end: Any = _End,
        delay: Any = _Delay,
    ) -> Iterator[Any]:
        """Keeps a path, and yields all if they are enough."""
        elements.add((keyed[1], timestamp, pane))
        number = (count.read() or 0) + 1
        count.write(number)
        if number >= MAX_BATCH_INSTANCES:
            yield from _taken(elements, count, window)
            delay.clear()
        elif number == 1:
            # Behind the window's end its results would be too late for what follows.
            end.set(window.max_timestamp())
            delay.set(time.time() + self._delay)

    @on_timer(_END)
    def at_the_end(
        self,
        window: Any = beam.DoFn.WindowParam,
        elements: Any = _Elements,
        count: Any = _Count,
        delay: Any = _Delay,
    ) -> Iterator[Any]:
        """Yields what waits when the window ends."""
        delay.clear()
        yield from _taken(elements, count, window)

    @on_timer(_DELAY)
    def after_the_delay(
        self,
        window: Any = beam.DoFn.WindowParam,
        elements: Any = _Elements,
        count: Any = _Count,
    ) -> Iterator[Any]:
        """Yields what has waited for long."""
        yield from _taken(elements, count, window)


def _taken(elements: Any, count: Any, window: Any) -> Iterator[Any]:
    kept = list(elements.read())
    elements.clear()
    count.clear()
    for element, timestamp, pane in kept:
        yield WindowedValue(element, timestamp, (window,), pane)


@dataclass(eq=False)
class _Archive:
    """An archive, and what waits for the next request to it.

    Attributes:
        endpoint: The archive.
        lease: Its client, while there is something to do.
        storer: What stores with that client.
        waiting: What waits.
        in_flight: Batches that were handed to the pool and are not done.
        sending: The instances in them, each with the last of its batches.
    """

    endpoint: Endpoint
    lease: Lease | None = None
    storer: InstanceStorer | None = None
    waiting: _Batch = field(init=False)
    in_flight: int = 0
    sending: dict[Resource, _Batch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting = _Batch(self)

    @property
    def is_idle(self) -> bool:
        return not self.in_flight and not self.waiting.items


@dataclass(eq=False)
class _Batch:
    """What goes into one request to an archive, if that takes it.

    One that holds an instance which is being sent already waits for that, or it would be chance which of the two stays,
    and a replacement could delete what the other one has just stored.
    """

    archive: _Archive
    items: list[StoreItem] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    filled: BatchSize = field(default_factory=BatchSize)
    earlier: list[_Batch] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def has_room_for(self, item: StoreItem) -> bool:
        return self.filled.has_room_for(item.given, item.size)

    def add(self, item: StoreItem, work: Work) -> None:
        self.items.append(item)
        self.works.append(work)
        self.filled.add(item.given, item.size)


class _Store(PooledDoFn):
    """Sends what a bundle collects in batches: one task for each batch, one result for each element.

    What is not in memory is read by tasks of its own. A file that is too large for memory waits in a private directory.
    """

    _role = "sink"

    def __init__(self, endpoint: Endpoint | None, transform: str, options: dict[str, Any], **how: Any) -> None:
        super().__init__(cast(Endpoint, endpoint), transform, **how)
        self._options = options
        self._reader: Lane[tuple[_Archive, Work], StoreItem | Problem] | None = None

    def setup(self) -> None:
        self._spool = PrivateDirectory()
        super().setup()
        self._archives = {None: _Archive(self._endpoint, self._lease)}

    def start_bundle(self) -> None:
        super().start_bundle()
        self._begin()

    def _begin(self) -> None:
        # Files are read ahead in their order: of two that hold one instance, it is the first that is stored.
        self._reader = self._open_lane().pool.lane(ordered=True, tick=self._traffic)
        self._memory = 0
        self._full: deque[_Batch] = deque()
        for archive in self._archives.values():
            archive.waiting, archive.in_flight, archive.sending = _Batch(archive), 0, {}

    def _archive_of(self, element: Any) -> _Archive:
        """The archive that an element goes to. What it raises becomes the element's failure."""
        return self._archives[None]

    def _start(self, work: Work) -> Iterator[Any]:
        subject = work.subject
        try:
            archive = self._archive_of(subject)
        except (*RECOVERABLE, TypeError) as error:
            yield from super()._emit(work, problem_of(error, self._transform, source=source_of_element(subject)))
            return
        # The element itself is not needed any more; a batch keeps it alive otherwise.
        work.subject = None
        if _is_read_elsewhere(subject):
            reader = cast(Any, self._reader)
            for (whose, one), item in reader.submit((archive, work), lambda room: self._read(subject, room)):
                yield from self._add(whose, one, item)
        else:
            yield from self._add(archive, work, self._inspected(subject))
        yield from self._send_full()
        for batch, results in self._open_lane().ready():
            yield from self._emit(batch, results)

    def _read(self, element: Any, room: Room) -> Iterator[StoreItem | Problem]:
        """Reads an element. Runs in a pool thread."""
        threshold = min(room.fair_share, MEMORY_THRESHOLD)
        room.reserve(threshold)
        result = self._inspected(element, max_bytes=threshold, directory=self._spool.path)
        room.reserve(0 if isinstance(result, Problem) else memory_of(result.given))
        yield result

    def _inspected(self, element: Any, **how: Any) -> StoreItem | Problem:
        try:
            return read_element(element, **how)
        except (*RECOVERABLE, TypeError) as error:
            return naming(problem_of(error, self._transform, source=source_of_element(element)), element)

    def _add(self, archive: _Archive, work: Work, item: StoreItem | Problem) -> Iterator[Any]:
        if isinstance(item, Problem):
            yield from super()._emit(work, item)
            return
        if not archive.waiting.has_room_for(item):
            self._close_batch(archive)
        archive.waiting.add(item, work)
        self._memory += memory_of(item.given)
        if self._memory > MAX_WAITING_MEMORY:
            self._close_batch(max(self._archives.values(), key=lambda other: other.waiting.filled.memory))

    def _close_batch(self, archive: _Archive) -> None:
        batch, archive.waiting = archive.waiting, _Batch(archive)
        self._memory -= batch.filled.memory
        archive.in_flight += 1
        references = [item.reference for item in batch.items]
        batch.earlier = list({archive.sending[one]: None for one in references if one in archive.sending})
        archive.sending.update(dict.fromkeys(references, batch))
        self._full.append(batch)

    def _send_full(self) -> Iterator[Any]:
        """Hands the batches that take no more to the pool."""
        while self._full:
            batch = self._full.popleft()
            try:
                storer = self._storer_of(batch.archive)
            except RECOVERABLE as error:
                yield from self._emit(batch, [self._unsent(item, error) for item in batch.items])
                continue
            task = partial(self._store, storer, batch)
            for key, result in self._open_lane().submit(cast(Any, batch), task, holding=batch.filled.memory):
                yield from self._emit(key, result)

    def _unsent(self, item: StoreItem, error: BaseException) -> Failure:
        item.discard()
        return failure_of(error, self._transform, reference=item.reference, source=item.source)

    def _storer_of(self, archive: _Archive) -> InstanceStorer:
        """What stores in an archive. It may raise what `RECOVERABLE` names."""
        if archive.storer is None:
            client = cast(Lease, archive.lease).client
            archive.storer = InstanceStorer(client, transform=self._transform, **self._options)
        return archive.storer

    def _finish(self) -> Iterator[Any]:
        for (archive, work), item in cast(Any, self._reader).drain():
            yield from self._add(archive, work, item)
            yield from self._send_full()
        for archive in self._archives.values():
            if archive.waiting.items:
                self._close_batch(archive)
        yield from self._send_full()

    def _store(self, storer: InstanceStorer, batch: _Batch, room: Room) -> Iterator[list[CopyResult]]:
        """Sends a batch. Runs in a pool thread."""
        try:
            for other in batch.earlier:
                while not other.done.wait(TICK):
                    if room.cancelled:
                        raise WorkCancelled
            results = self._results(storer, batch.items)
        finally:
            batch.earlier.clear()
            batch.done.set()
            for item in batch.items:
                item.discard()
        yield results

    def _results(self, storer: InstanceStorer, items: list[StoreItem]) -> list[CopyResult]:
        results: dict[Resource, CopyResult] = {}
        wanted: dict[Resource, Instance] = {}
        repeated: list[StoreItem] = []
        for item in items:
            known = storer.already_there(item.reference)
            if known is not None:
                results[item.reference] = known
            elif item.reference in wanted:
                repeated.append(item)
            else:
                wanted[item.reference] = item.given
        results.update(zip(wanted, storer.store(list(wanted.values())), strict=True))
        # Objects with one UID do not belong into one request: which would be kept?
        later = {id(item): _again(storer, item.given) for item in repeated}
        outcomes = [(item, later.get(id(item)) or results[item.reference]) for item in items]
        return [
            replace(outcome, source=item.source) if isinstance(outcome, Failure) else outcome
            for item, outcome in outcomes
        ]

    def _emit(self, work: Any, result: Any) -> Iterator[Any]:
        if isinstance(work, _Batch):
            archive = work.archive
            archive.in_flight -= 1
            work.done.set()
            for item in work.items:
                if archive.sending.get(item.reference) is work:
                    del archive.sending[item.reference]
            for one, outcome in zip(work.works, result, strict=True):
                yield from super()._emit(one, outcome)
        else:
            yield from super()._emit(work, result)

    def _key(self, subject: Any) -> Any:
        # Equal elements are two elements here: a store is not a question.
        return None

    def count_result(self, result: StoredInstance) -> None:
        count_stored(result)

    def abandon(self) -> None:
        """Cancels what the bundle still does, and drops its results and files. May be repeated."""
        super().abandon()
        if self._reader is not None:
            self._reader.close()
        self._spool.remove()


def _again(storer: InstanceStorer, instance: Instance) -> CopyResult:
    return storer.already_there(instance.reference) or storer.store([instance])[0]


class _StoreEach(_Store):
    """Sends each element to the archive that a function names.

    All archives share one pool, so that threads and memory are bounded whatever their number. Clients of archives for
    which there is nothing to do are kept up to a maximum.
    """

    def __init__(
        self, choose: Callable[[Any], EndpointLike], transform: str, options: dict[str, Any], maximum: int, **how: Any
    ) -> None:
        super().__init__(None, transform, options, **how)
        self._choose = choose
        self._maximum = maximum

    def setup(self) -> None:
        """Starts without archives."""
        self._spool = PrivateDirectory()
        self._pool, self._give_back = shared_pool(self, "stores to several archives", MAX_IN_FLIGHT)
        self._traffic = Traffic(self._leases)
        self._archives: dict[Any, _Archive] = {}
        self._connected: OrderedDict[_Archive, None] = OrderedDict()

    def start_bundle(self) -> None:
        """Opens the lane of the bundle."""
        self.abandon()
        self._open(self._pool)
        self._archives = {key: archive for key, archive in self._archives.items() if archive in self._connected}
        self._begin()
        for archive in self._connected:
            report_lineage(archive.endpoint, self._role)

    def teardown(self) -> None:
        """Gives all clients and the pool back."""
        super().teardown()
        for archive in self._connected:
            cast(Lease, archive.lease).close()
        self._connected.clear()
        self._give_back()

    def _archive_of(self, element: Any) -> _Archive:
        chosen = call_user(self._choose, element)
        try:
            endpoint, key = _known_endpoint(chosen) if isinstance(chosen, str) else _identified(Endpoint.of(chosen))
        except (TypeError, ValueError) as error:
            raise TypeError(f"the function for the destination gave no archive: {error}") from error
        archive = self._archives.get(key)
        if archive is None:
            archive = self._archives[key] = _Archive(endpoint)
        return archive

    def _storer_of(self, archive: _Archive) -> InstanceStorer:
        if archive.lease is None:
            archive.lease = shared_client(archive.endpoint)
            report_lineage(archive.endpoint, self._role)
        self._connected[archive] = None
        self._connected.move_to_end(archive)
        return super()._storer_of(archive)

    def _leases(self) -> list[Lease]:
        return [cast(Lease, archive.lease) for archive in self._connected]

    def _emit(self, work: Any, result: Any) -> Iterator[Any]:
        yield from super()._emit(work, result)
        if isinstance(work, _Batch) and len(self._connected) > self._maximum:
            idle = [archive for archive in self._connected if archive.is_idle]
            for archive in idle[: len(self._connected) - self._maximum]:
                lease = cast(Lease, archive.lease)
                count_traffic(lease)
                lease.close()
                archive.lease = archive.storer = None
                del self._connected[archive]


def _identified(endpoint: Endpoint) -> tuple[Endpoint, Any]:
    return endpoint, identity_of(endpoint)


@lru_cache(1024)
def _known_endpoint(url: str) -> tuple[Endpoint, Any]:
    # A function is asked for every element, and mostly gives the same few addresses.
    return _identified(Endpoint.of(url))


def count_stored(result: StoredInstance) -> None:
    """Counts the result for an instance."""
    count(result.outcome)
    count("stored_bytes", result.size)
