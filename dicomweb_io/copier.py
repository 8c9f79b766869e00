"""Moving instances, bytes unchanged, with a result for each.

`SeriesReader` retrieves the instances of a series: what is wanted whole is one request, and what that leaves out is
asked for by itself. `InstanceStorer` stores instances that are at hand, in requests of many. `InstanceCopier` does
both, and does not move what the destination has already.

What is left when an archive has been lost, or refuses the login, is not tried: each instance gets a `Failure` that says
so, without a request.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from dicomweb_io.account import (
    SEARCHES,
)
from dicomweb_io.client import DICOMClient, MediaTypes, OnExisting, Verify
from dicomweb_io.elements import (
    Failure,
    Instance,
    Resource,
    StoredInstance,
)
from dicomweb_io.errors import ConnectionFailedError, log_text
from dicomweb_io.failures import RECOVERABLE, failure_of, not_tried
from dicomweb_io.http.retry import BAD_NEWS_LASTS, lend_slots
from dicomweb_io.listing import (
    ASK_FROM,
    InstanceGroup,
    Neighbours,
    SeriesListing,
    group_by_series,
    is_worth_whole,
)
from dicomweb_io.pool import Room, WorkCancelled
from dicomweb_io.spool import MEMORY_THRESHOLD, PrivateDirectory
from dicomweb_io.store_items import check_options

logger = logging.getLogger("dicomweb_io")

CopyResult = StoredInstance | Failure
"""The result for one instance."""

MAX_BATCH_INSTANCES = 50
"""Instances in one store request: what clients send at once (`ServerProfile.store_batch_count`)."""

MAX_BATCH_MEMORY = 7_000_000
"""Bytes of a store request that wait in memory; larger instances are in files. A second one is collected meanwhile."""

MAX_BATCH_BYTES = 20_000_000
"""Bytes in one store request (`ServerProfile.store_batch_bytes`); a larger instance goes alone."""


@dataclass
class BatchSize:
    """How much waits for one store request, and whether more may."""

    instances: int = 0
    memory: int = 0
    size: int = 0

    def has_room_for(self, instance: Instance, size: int) -> bool:
        """Whether an instance of so many bytes fits; the first one does in any case."""
        return not self.instances or (
            self.instances < MAX_BATCH_INSTANCES
            and self.memory + memory_of(instance) <= MAX_BATCH_MEMORY
            and self.size + size <= MAX_BATCH_BYTES
        )

    def add(self, instance: Instance, size: int) -> None:
        """Counts an instance of so many bytes."""
        self.instances += 1
        self.memory += memory_of(instance)
        self.size += size


def memory_of(instance: Instance) -> int:
    """The bytes of an instance that are in memory."""
    return 0 if instance.content is None else len(instance.content)


_FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS))

# Series in a row of which nothing comes before series are not asked for as a whole for a while.
_MAX_IN_VAIN = 3


# Stores ---------------------------------------------------------------------------------------------------------------


class InstanceStorer:
    """Stores batches of instances and reports the result of each. Safe to use from several threads.

    Args:
        destination: The archive.
        on_existing: What to do with an instance whose UID the archive has: ``"skip"`` leaves it (the archive is listed
            once for each series, before anything is stored in it); ``"server"``, ``"replace"`` and ``"error"`` as in
            `DICOMClient.iter_store_instances`.
        verify: ``"response"`` takes the answer to the store request as proof (the UID among those stored); ``"uid"``
            looks for the instance afterwards; ``"content"`` compares the bytes at the level that the archive keeps,
            also of instances that were there already.
        transform: The name that failures carry.
        allow_other_patient: Store into studies that the archive has under another PatientID too. Some archives attach
            what they receive to the patient they know, so it is otherwise a failure, unless `on_existing` leaves
            everything to the archive (``"server"``).
    """

    def __init__(
        self,
        destination: DICOMClient,
        *,
        on_existing: OnExisting = "skip",
        verify: Verify = "response",
        transform: str = "StoreInstances",
        allow_other_patient: bool = False,
    ) -> None:
        check_options(on_existing, verify)
        self._neighbours = None if on_existing == "server" else Neighbours(destination, transform, allow_other_patient)
        self._destination = destination
        self._on_existing = on_existing
        self._verify: Verify = verify
        self._transform = transform
        self._listing = SeriesListing(destination)
        self._full: str | None = None

    def learn(self, series: Resource, uids: Iterable[str]) -> None:
        """Takes what a listing has found in the archive, which then is not asked for it."""
        self._listing.learn(series, uids)

    def already_there(self, reference: Resource) -> CopyResult | None:
        """The result for an instance that need not or cannot be sent, or None if it has to be."""
        lost = self._lost(reference)
        if lost is not None:
            return lost
        # To compare contents both sides must be read, and the store does that.
        if self._on_existing != "skip" or self._verify == "content":
            return None
        try:
            if self._listing.holds(reference):
                return StoredInstance(reference, "exists", verified="uid")
        except RECOVERABLE as error:
            return self._failure_of(error, reference)
        return None

    def plan(self, reference: Resource, size: int) -> CopyResult:
        """What would become of an instance of so many bytes; the archive is only listed."""
        lost = self._lost(reference)
        if lost is not None:
            return lost
        try:
            there = self._listing.holds(reference)
        except RECOVERABLE as error:
            return self._failure_of(error, reference)
        if there and self._on_existing == "skip":
            return StoredInstance(reference, "exists", verified="uid")
        if there and self._on_existing == "error":
            what = f"{self._destination.base_url} has {reference.uri} already"
            return Failure(self._transform, what, reference=reference)
        return StoredInstance(reference, "planned", size)

    def _failure_of(self, error: BaseException, reference: Resource) -> Failure:
        unsent = isinstance(error, ConnectionFailedError) and not error.sent
        return (self._lost(reference) if unsent else None) or failure_of(error, self._transform, reference=reference)

    def _lost(self, reference: Resource) -> Failure | None:
        reason = self._full or self._destination.unavailable
        return not_tried(reason, self._transform, reference=reference) if reason is not None else None

    def store(self, instances: Sequence[Instance]) -> list[CopyResult]:
        """Sends instances, which `already_there` did not answer for, in one request where the archive allows it.

        Returns:
            The result of each, in order.
        """
        if self._neighbours is None:
            return self._store(instances)
        try:
            return self._neighbours.store(instances, self._store)
        except RECOVERABLE as error:
            return [self._failure_of(error, instance.reference) for instance in instances]

    def _store(self, instances: Sequence[Instance]) -> list[CopyResult]:
        results: dict[int, CopyResult] = {}
        for policy, places in self._by_policy(instances, results).items():
            self._send([instances[place] for place in places], places, policy, results)
        return [results[place] for place in range(len(instances))]

    def _note_full(self, failure: Failure) -> None:
        """Notes that a folder takes nothing any more, so that the rest is not retrieved in vain."""
        for text in () if self._destination.transport is not None else _FULL:
            if text in failure.message:
                self._full = f"{self._destination.base_url} takes no more files: {text}"

    def _by_policy(self, instances: Sequence[Instance], results: dict[int, CopyResult]) -> dict[OnExisting, list[int]]:
        """The places of the instances by how they are sent; failures of the listing are results."""
        reason = self._full or self._destination.unavailable
        if reason is not None:
            for place, instance in enumerate(instances):
                results[place] = not_tried(reason, self._transform, reference=instance.reference)
            return {}
        if self._on_existing != "skip":
            return {self._on_existing: list(range(len(instances)))} if instances else {}
        policies: dict[OnExisting, list[int]] = {}
        for place, instance in enumerate(instances):
            # What our listing reports as new is sent without another look: that would list the series for each request,
            # while other requests add to it. If an instance arrives in between, the archive decides ("server").
            policy: OnExisting = "server"
            if self._verify == "content":
                try:
                    policy = "skip" if self._listing.holds(instance.reference) else "server"
                except RECOVERABLE as error:
                    results[place] = failure_of(error, self._transform, reference=instance.reference)
                    continue
            policies.setdefault(policy, []).append(place)
        return policies

    def _send(
        self, instances: list[Instance], places: list[int], policy: OnExisting, results: dict[int, CopyResult]
    ) -> None:
        try:
            outcomes = self._destination.iter_store_instances(instances, on_existing=policy, verify=self._verify)
            for place, instance, outcome in zip(places, instances, outcomes, strict=True):
                if isinstance(outcome, Failure):
                    outcome = replace(outcome, transform=self._transform, reference=instance.reference)
                    self._note_full(outcome)
                else:
                    self._listing.add(instance.reference)
                results[place] = outcome
        except RECOVERABLE as error:
            for place, instance in zip(places, instances, strict=True):
                if place not in results:
                    results[place] = self._failure_of(error, instance.reference)


# Retrieves ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeriesLimits:
    """When the answer for a whole series is ended, and what is missing is requested instance by instance.

    Some archives end their answers after a time (Google after 30 minutes), and what is cut off in the middle of an
    instance has to come again.

    Attributes:
        max_bytes: Bytes of instances in one answer.
        max_seconds: Seconds since the request.
    """

    max_bytes: int = 4 * 1024**3
    max_seconds: float = 20 * 60


class SeriesReader:
    """Retrieves instances of a series, most of them in one request. Safe to use from several threads.

    Args:
        source: The archive.
        retrieve: Gives the instances of a series, or the one that is named, as they arrive. It is called with the room
            of its task, which is None if `iter` was given none.
        discard: Is called with each instance that arrives and is not passed on.
        transform: The name that failures carry.
        limits: When the answer for a whole series is ended.
    """

    def __init__(
        self,
        source: DICOMClient,
        retrieve: Callable[[Resource, Any], Iterator[Instance]],
        discard: Callable[[Instance], None],
        *,
        transform: str = "RetrieveInstances",
        limits: SeriesLimits = SeriesLimits(),
    ) -> None:
        self._source = source
        self._retrieve = retrieve
        self._discard = discard
        self._transform = transform
        self._limits = limits
        self._listing = SeriesListing(source)
        # Series in a row of which nothing came, and when the last of them did not.
        self._in_vain, self._at = 0, 0.0

    def iter(
        self,
        group: InstanceGroup,
        wanted: Iterable[Resource] | None = None,
        room: Room | None = None,
    ) -> Iterator[tuple[Resource, Instance | Failure]]:
        """Retrieves instances of a series and yields each of them, or why it could not be had.

        If they are (nearly) all of their series, one request asks for the series; what its answer leaves out, or has
        not given when it ends early or reaches a limit, is requested instance by instance, several at once where there
        is room. So every request makes progress, and nothing that came is requested again. When several series in a row
        gave nothing, no others are asked for as a whole for a minute.

        Args:
            group: The instances.
            wanted: Those of them that are wanted; by default all.
            room: The room of the task that this is; without one, instances are requested one after the other.

        Yields:
            Each instance that is wanted, once. If all that the archive lists is wanted, what comes without being
            listed is a failure of the listing.
        """
        rest = dict.fromkeys(group.references if wanted is None else wanted)
        if self._is_cheaper_whole(group, len(rest)):
            yield from self._whole_series(group, rest, room)
        if room is not None:
            yield from room.each(rest, self._alone)
        else:
            yield from ((reference, self._one(reference, None)) for reference in rest)

    def _alone(self, reference: Resource, room: Room) -> Iterator[Instance | Failure]:
        item = self._one(reference, room)
        if isinstance(item, Instance):
            room.reserve(len(item.content or b""))
        yield item

    def _is_cheaper_whole(self, group: InstanceGroup, wanted: int) -> bool:
        """Whether one request for the series moves less than a request for each instance."""
        if wanted < 2 or self._source.unavailable is not None:
            return False
        # Each is tried repeatedly, which takes long where a gateway ends every answer that is not quick.
        if self._in_vain >= _MAX_IN_VAIN and time.monotonic() - self._at < BAD_NEWS_LASTS:
            return False
        listed = group.listed
        if listed is None:
            if wanted < ASK_FROM or 2 * wanted < len(set(group.sop_instance_uids)):
                return False
            try:
                listed = self._listing.size(group.series)
            except RECOVERABLE as error:
                logger.info("%s could not be listed: %s", group.series.uri, log_text(error))
                return False
        return is_worth_whole(wanted, listed)

    def _whole_series(
        self, group: InstanceGroup, rest: dict[Resource, None], room: Room | None
    ) -> Iterator[tuple[Resource, Instance | Failure]]:
        """What comes with the series of what is wanted; takes it out of `rest`."""
        series, known = group.series, set(group.references)
        is_all = not group.named and group.listed is not None and group.listed <= len(known)
        left, ends = self._limits.max_bytes, time.monotonic() + self._limits.max_seconds
        instances: Iterator[Instance] | None = None
        try:
            instances = self._retrieve(series, room)
            for instance in instances:
                self._in_vain = 0
                _check(room)
                reference = instance.reference
                left -= _size_of(instance)
                if reference in rest:
                    del rest[reference]
                    yield reference, instance
                else:
                    self._discard(instance)
                    if is_all and reference not in known:
                        known.add(reference)
                        yield reference, self._unlisted(reference)
                # Nothing here may keep the instance alive while the next is read.
                del instance
                if left <= 0 or time.monotonic() > ends:
                    logger.info("the answer for %s is long, and is ended here", series.uri)
                    break
        except RECOVERABLE as error:
            logger.info("the retrieve of %s ended early: %s", series.uri, log_text(error))
            if left == self._limits.max_bytes:
                self._in_vain, self._at = self._in_vain + 1, time.monotonic()
        finally:
            close = getattr(instances, "close", None)
            if close is not None:
                close()
        if rest:
            logger.info("%d instances of %s are requested one by one", len(rest), series.uri)

    def _unlisted(self, reference: Resource) -> Failure:
        return Failure(
            SEARCHES["instance"],
            f"{self._source.base_url} returned an instance with its series that its listing lacks, so it was not "
            f"copied: {reference.uri}. The list of failures or another run copies it",
            reference=reference,
            retryable=True,
        )

    def _one(self, reference: Resource, room: Room | None) -> Instance | Failure:
        """What a request for an instance gives."""
        reason = self._source.unavailable
        if reason is not None:
            return not_tried(reason, self._transform, reference=reference)
        kept: Instance | None = None
        surplus = 0
        try:
            for instance in self._retrieve(reference, room):
                if kept is None and instance.reference == reference:
                    kept = instance
                else:
                    surplus += 1
                    self._discard(instance)
        except RECOVERABLE as error:
            if kept is not None:
                self._discard(kept)
            return failure_of(error, self._transform, reference=reference)
        if kept is None:
            reason = "answered with another instance" if surplus else "answered without the instance"
            return Failure(
                self._transform,
                f"{self._source.base_url} {reason} when asked for {reference.uri}; nothing was copied",
                reference=reference,
                retryable=not surplus,
            )
        return kept


def _size_of(instance: Instance) -> int:
    try:
        return instance.size
    except OSError:
        # A file of a folder may have gone since it was found, which the store reports.
        return 0


# Copies ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CopyOptions:
    """How instances are copied.

    Attributes:
        on_existing, verify, allow_other_patient: See `InstanceStorer`.
        media_types: Accepted encodings; by default the stored one.
        allow_transcoding: Take what the source re-encodes if it cannot give the original.
        spool_directory: Where the private directory is made; by default the system's temporary directory.
        dry_run: Say what would be copied, and retrieve and store nothing.
    """

    on_existing: OnExisting = "skip"
    verify: Verify = "response"
    media_types: MediaTypes | None = None
    allow_transcoding: bool = False
    spool_directory: str | None = None
    allow_other_patient: bool = False
    dry_run: bool = False


class InstanceCopier:
    """Copies instances from one archive to another, bytes unchanged, and reports the result of each.

    What the destination has already is not asked of the source. Small instances wait in memory for the store request
    that takes them, larger ones in files of a private directory, so that memory stays bounded whatever is copied.
    One copier may be used from several threads at once.

    Args:
        source: Where the instances are.
        destination: Where they are to be.
        options: How they are copied.
        memory_threshold: Instances up to so many bytes wait in memory.
        transform: The name that failures carry.
        limits: When the answer for a whole series is ended.
    """

    def __init__(
        self,
        source: DICOMClient,
        destination: DICOMClient,
        options: CopyOptions = CopyOptions(),
        *,
        memory_threshold: int = MEMORY_THRESHOLD,
        transform: str = "CopyInstances",
        limits: SeriesLimits = SeriesLimits(),
    ) -> None:
        self._source = source
        self._storer = InstanceStorer(
            destination,
            on_existing=options.on_existing,
            verify=options.verify,
            transform=transform,
            allow_other_patient=options.allow_other_patient,
        )
        self._options = options
        self._threshold = memory_threshold
        self.transform = transform
        self._spool = PrivateDirectory(options.spool_directory)
        self._reader = SeriesReader(source, self._instances, self._spool.discard, transform=transform, limits=limits)

    def copy(self, references: Sequence[Resource], *, room: Room | None = None) -> list[CopyResult]:
        """Copies instances.

        Args:
            references: Instances; see `expand_reference` for studies and series.
            room: See `SeriesReader.iter`.

        Returns:
            For each reference, in the same order, a `StoredInstance` or a `Failure`.

        Raises:
            ValueError: If a reference is not one to an instance.
        """
        for reference in references:
            if reference.level != "instance":
                raise ValueError(f"an InstanceCopier copies instances, but {reference.uri} is a {reference.level}")
        results: dict[Resource, CopyResult] = {}
        for group in group_by_series(dict.fromkeys(references)):
            results.update(self.iter_group(group, room))
        return [results[reference] for reference in references]

    def iter_group(self, group: InstanceGroup, room: Room | None = None) -> Iterator[tuple[Resource, CopyResult]]:
        """Copies instances of a series, and yields the result for each of them, once and as soon as it is known.

        Args:
            group: The instances; see `SeriesReader`.
            room: See `SeriesReader.iter`.
        """
        began = time.monotonic()
        for reference, result in self._results(group, room):
            if isinstance(result, StoredInstance):
                seconds = round(time.monotonic() - began, 3)
                yield reference, replace(result, at=round(time.time(), 3), seconds=seconds)
            else:
                yield reference, self._with_file(result)

    def _results(self, group: InstanceGroup, room: Room | None) -> Iterator[tuple[Resource, CopyResult]]:
        missing: dict[Resource, None] = {}
        if group.held is not None:
            self._storer.learn(group.series, group.held)
        if self._options.dry_run:
            sizes = self._source.sizes_of(group.series)
            for reference in dict.fromkeys(group.references):
                _check(room)
                yield reference, self._storer.plan(reference, sizes.get(reference, 0))
            return
        for reference in dict.fromkeys(group.references):
            _check(room)
            known = self._storer.already_there(reference)
            if known is None:
                missing[reference] = None
            else:
                yield reference, known
        yield from self._stored(self._retrieved(group, missing, room))

    def _retrieved(
        self, group: InstanceGroup, missing: Mapping[Resource, None], room: Room | None
    ) -> Iterator[tuple[Resource, Instance | Failure]]:
        """What the source gives for each of the instances, and what it gives beyond them that was not there."""
        for reference, item in self._reader.iter(group, missing, room):
            if reference in missing or not isinstance(self._storer.already_there(reference), StoredInstance):
                yield reference, item
            del item

    def _stored(
        self, retrieved: Iterator[tuple[Resource, Instance | Failure]]
    ) -> Iterator[tuple[Resource, CopyResult]]:
        """Stores in batches what comes: one is sent, by a separate thread, while the next is read."""
        sent: Future[list[tuple[Resource, CopyResult]]] | None = None
        batch = _Batch(self._spool)
        executor = ThreadPoolExecutor(1, thread_name_prefix="dicomweb_io-store")
        try:
            for reference, item in retrieved:
                if not isinstance(item, Instance):
                    yield reference, item
                    continue
                try:
                    fits = batch.has_room_for(item)
                except OSError as error:
                    # A file of a folder may have gone since it was found.
                    self._spool.discard(item)
                    yield reference, failure_of(error, self.transform, reference=reference)
                    continue
                if not fits:
                    yield from _awaited(sent)
                    sent, batch = executor.submit(self._store, batch), _Batch(self._spool)
                batch.add(item)
                # Nothing here may keep the instance alive while the next is read.
                del item
            yield from _awaited(sent)
            yield from self._store(batch)
        finally:
            executor.shutdown()
            batch.clear()

    def close(self) -> None:
        """Removes the private directory. The clients are not closed."""
        self._spool.remove()

    def __enter__(self) -> InstanceCopier:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _with_file(self, result: Failure) -> Failure:
        """A failure with its file, if the source is a folder: the file is what a user has to repair."""
        if result.source is not None or result.reference is None:
            return result
        try:
            found = self._source.locations_of(result.reference)
        except RECOVERABLE:
            # The folder itself cannot be read; that is another failure.
            return result
        return replace(result, source=found[0]) if found else result

    def _instances(self, reference: Resource, room: Room | None) -> Iterator[Instance]:
        # The store only reads: a large file of a local folder need not be copied for it. What is borrowed lies outside
        # of the private directory, so it is never deleted.
        return self._source.iter_instances(
            reference,
            media_types=self._options.media_types,
            max_element_bytes=self._threshold,
            spool_directory=self._spool.path,
            allow_transcoding=self._options.allow_transcoding,
            borrow=True,
        )

    def _store(self, batch: _Batch) -> list[tuple[Resource, CopyResult]]:
        references = [instance.reference for instance in batch.instances]
        try:
            return list(zip(references, self._storer.store(batch.instances), strict=True))
        finally:
            batch.clear()


def _awaited(sent: Future[list[tuple[Resource, CopyResult]]] | None) -> list[tuple[Resource, CopyResult]]:
    """The results of a batch that another thread stores."""
    if sent is None:
        return []
    # The store may need the place of the request whose answer this thread is reading.
    lend_slots()
    return sent.result()


def _check(room: Room | None) -> None:
    if room is not None and room.cancelled:
        raise WorkCancelled


class _Batch:
    """Instances that wait for one store request. `clear` deletes their spool files."""

    def __init__(self, spool: PrivateDirectory) -> None:
        self._spool = spool
        self.instances: list[Instance] = []
        self._filled = BatchSize()

    def has_room_for(self, instance: Instance) -> bool:
        return self._filled.has_room_for(instance, instance.size)

    def add(self, instance: Instance) -> None:
        self.instances.append(instance)
        self._filled.add(instance, instance.size)

    def clear(self) -> None:
        for instance in self.instances:
            self._spool.discard(instance)
        self.instances.clear()
        self._filled = BatchSize()
