"""`InstanceCopier`: instances from one archive to another through a bounded spool, without Beam.

The transform `CopyInstances` and the command line's ``copy`` both use it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dicomweb_io.clients.failures import RECOVERABLE, failure_of
from dicomweb_io.clients.files.client import DICOMfileClient
from dicomweb_io.clients.files.store import is_safe_name
from dicomweb_io.clients.pool import WorkCancelled
from dicomweb_io.clients.protocol import DICOMClient, MediaTypes, OnExisting, Verify
from dicomweb_io.clients.queries import make_query
from dicomweb_io.elements import Failure, Instance, Resource, StoredInstance

CopyResult = StoredInstance | Failure

MAX_BATCH_INSTANCES = 8
"""Instances in one store request: enough to spare round trips, few enough for a refusal to be cheap to take apart."""

MAX_BATCH_MEMORY = 4 * 1024 * 1024
MAX_BATCH_BYTES = 32 * 1024 * 1024
"""Below the smallest limit on request bodies that is known of (64 MiB); a larger instance goes alone."""

MEMORY_THRESHOLD = 1024 * 1024
"""Instances up to this size wait in memory for their batch, larger ones in a file."""

_MOST_CACHED_UIDS = 200_000


class PrivateDirectory:
    """A directory for spool files, made when first needed (for its owner only) and removed with all its files.

    Args:
        parent: Where it is made; by default the system's temporary directory.
    """

    def __init__(self, parent: str | None = None) -> None:
        self._parent = parent
        self._lock = threading.Lock()
        self._path: str | None = None

    @property
    def path(self) -> str:
        """The directory."""
        with self._lock:
            if self._path is None:
                self._path = os.path.abspath(tempfile.mkdtemp(prefix="dicomweb_io-", dir=self._parent))
            return self._path

    def discard(self, instance: Instance) -> None:
        """Deletes the file of an instance if it is in this directory; a file that somebody else owns stays."""
        path = instance.path
        if path is not None and self._path is not None and os.path.dirname(os.path.abspath(path)) == self._path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def release(self, instance: Instance) -> str:
        """Moves the file of an instance out of this directory, to its parent, for somebody else to own.

        Returns:
            The new path; the old one if the file was not in this directory.
        """
        path = str(instance.path)
        directory, name = os.path.split(os.path.abspath(path))
        if directory != self._path:
            return path
        uid = str(instance.reference.sop_instance_uid)
        # The UID is for people who look for the file; not every identifier can be part of a file's name.
        target = os.path.join(os.path.dirname(directory), f"{uid}-{name}" if is_safe_name(uid) else name)
        os.replace(path, target)
        return target

    def remove(self) -> None:
        """Deletes the directory and everything in it. It is made again if it is needed again."""
        with self._lock:
            path, self._path = self._path, None
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)


class SeriesListing:
    """Which instances an archive holds, asked once for each series. Safe to use from several threads.

    Args:
        client: The archive.
        most_uids: When more UIDs than this are remembered, the series that were used longest ago are forgotten.
    """

    def __init__(self, client: DICOMClient, most_uids: int = _MOST_CACHED_UIDS) -> None:
        self._client = client
        self._most = most_uids
        self._lock = threading.Lock()
        self._series: OrderedDict[Resource, set[str]] = OrderedDict()
        self._busy: dict[Resource, threading.Lock] = {}
        self._count = 0

    def holds(self, instance: Resource) -> bool:
        """Tells whether the archive lists an instance in its series.

        Raises:
            requests.RequestException, OSError: If the archive cannot be asked.
        """
        series = instance.series
        with self._lock:
            known = self._series.get(series)
            if known is not None:
                self._series.move_to_end(series)
                return instance.sop_instance_uid in known
            busy = self._busy.setdefault(series, threading.Lock())
        # Whoever comes second waits for the first one's answer instead of asking too.
        with busy:
            with self._lock:
                known = self._series.get(series)
            if known is None:
                known = self._ask(series)
                self._remember(series, known)
            return instance.sop_instance_uid in known

    def add(self, instance: Resource) -> None:
        """Remembers that an instance has arrived."""
        with self._lock:
            known = self._series.get(instance.series)
            if known is not None and instance.sop_instance_uid not in known:
                known.add(str(instance.sop_instance_uid))
                self._count += 1

    def _remember(self, series: Resource, uids: set[str]) -> None:
        with self._lock:
            self._series[series] = uids
            self._busy.pop(series, None)
            self._count += len(uids)
            while self._count > self._most and len(self._series) > 1:
                _, forgotten = self._series.popitem(last=False)
                self._count -= len(forgotten)

    def _ask(self, series: Resource) -> set[str]:
        query = make_query("instance", series.study_instance_uid, series.series_instance_uid, permissive_uid=True)
        found = set()
        try:
            for row in self._client.iter_search(query):
                uid = Resource.of(row).sop_instance_uid
                if uid is not None:
                    found.add(uid)
        except FileNotFoundError:
            # A folder that nothing was stored in yet.
            return set()
        except OSError as error:
            # PS3.18 8.3.4 wants an empty answer for a series that is not there; some servers say 404.
            if getattr(error, "status", None) != 404:
                raise
        return found


class InstanceStorer:
    """Stores batches of instances and says of each what became of it. Safe to use from several threads.

    Args:
        destination: The archive.
        on_existing: What to do with an instance whose UID the archive has: ``"skip"`` leaves it (the archive is listed
            once for each series); ``"server"``, ``"replace"`` and ``"error"`` as in
            `DICOMClient.iter_store_instances`.
        verify: ``"response"`` takes the answer to the store request as proof (the UID among those stored); ``"uid"``
            looks for the instance afterwards; ``"content"`` compares the bytes at the tier that the archive keeps, also
            of instances that were there already.
        transform: The name that failures carry.
    """

    def __init__(
        self,
        destination: DICOMClient,
        *,
        on_existing: OnExisting = "skip",
        verify: Verify = "response",
        transform: str = "StoreInstances",
    ) -> None:
        check_policies(on_existing, verify)
        self._destination = destination
        self._on_existing = on_existing
        self._verify: Verify = verify
        self._transform = transform
        self._listing = SeriesListing(destination)

    def already_there(self, reference: Resource) -> CopyResult | None:
        """The result for an instance that need not be sent, or None if it has to be."""
        # To compare contents both sides must be read, and the store does that.
        if self._on_existing != "skip" or self._verify == "content":
            return None
        try:
            if self._listing.holds(reference):
                return StoredInstance(reference, "exists", verified="uid")
        except RECOVERABLE as error:
            return failure_of(error, self._transform, reference=reference)
        return None

    def store(self, instances: Sequence[Instance]) -> list[CopyResult]:
        """Sends instances, which `already_there` did not answer for, in one request where the archive allows it.

        Returns:
            The result of each, in order.
        """
        if not instances:
            return []
        # The listing was asked already; what slips in between is the archive's own business ("server").
        policy: OnExisting = self._on_existing
        if policy == "skip" and self._verify != "content":
            policy = "server"
        results: list[CopyResult] = []
        try:
            outcomes = self._destination.iter_store_instances(instances, on_existing=policy, verify=self._verify)
            for instance, outcome in zip(instances, outcomes, strict=True):
                if isinstance(outcome, Failure):
                    outcome = replace(outcome, transform=self._transform, reference=instance.reference)
                else:
                    self._listing.add(instance.reference)
                results.append(outcome)
        except RECOVERABLE as error:
            left = instances[len(results) :]
            results.extend(failure_of(error, self._transform, reference=instance.reference) for instance in left)
        return results


class InstanceCopier:
    """Copies instances from one archive to another, bytes unchanged, and says of each what became of it.

    What the destination has already is not asked of the source. Small instances wait in memory for the store request
    that takes them, larger ones in files of a private directory, so that memory stays bounded whatever is copied.
    One copier may be used from several threads at once.

    Args:
        source: Where the instances are.
        destination: Where they are to be.
        on_existing: See `InstanceStorer`.
        verify: See `InstanceStorer`.
        media_types: Wanted encodings; by default the stored one.
        allow_transcoding: Take what the source re-encodes if it cannot give the original.
        spool_directory: Where the private directory is made; by default the system's temporary directory.
        memory_threshold: Instances up to so many bytes wait in memory.
        transform: The name that failures carry.
    """

    def __init__(
        self,
        source: DICOMClient,
        destination: DICOMClient,
        *,
        on_existing: OnExisting = "skip",
        verify: Verify = "response",
        media_types: MediaTypes | None = None,
        allow_transcoding: bool = False,
        spool_directory: str | None = None,
        memory_threshold: int = MEMORY_THRESHOLD,
        transform: str = "CopyInstances",
    ) -> None:
        self._source = source
        self._storer = InstanceStorer(destination, on_existing=on_existing, verify=verify, transform=transform)
        self._media_types = media_types
        self._allow_transcoding = allow_transcoding
        self._threshold = memory_threshold
        self._transform = transform
        self._spool = PrivateDirectory(spool_directory)

    def copy(
        self, references: Sequence[Resource], *, cancelled: Callable[[], bool] = lambda: False
    ) -> list[CopyResult]:
        """Copies instances.

        Args:
            references: Instances; see `expand_reference` for studies and series.
            cancelled: Asked before each instance; if it answers True, `WorkCancelled` is raised.

        Returns:
            For each reference, in the same order, a `StoredInstance` or a `Failure`.

        Raises:
            ValueError: If a reference is not one to an instance.
        """
        for reference in references:
            if reference.level != "instance":
                raise ValueError(f"an InstanceCopier copies instances, but {reference.uri} is a {reference.level}")
        results: dict[Resource, CopyResult] = {}
        batch = _Batch(self._spool)
        try:
            for reference in dict.fromkeys(references):
                if cancelled():
                    raise WorkCancelled
                known = self._storer.already_there(reference)
                item = known if known is not None else self._retrieve(reference)
                if not isinstance(item, Instance):
                    results[reference] = item
                    continue
                if not batch.has_room_for(item):
                    results.update(self._store(batch))
                batch.add(item)
            results.update(self._store(batch))
        finally:
            batch.clear()
        return [self._with_file(results[reference]) for reference in references]

    def _with_file(self, result: CopyResult) -> CopyResult:
        """A failure with the file that it is about, if the source is a folder: whoever repairs it looks for that."""
        if not isinstance(result, Failure) or result.source is not None or result.reference is None:
            return result
        if not isinstance(self._source, DICOMfileClient):
            return result
        try:
            found = self._source.locations_of(result.reference)
        except RECOVERABLE:
            # The folder is in trouble itself, which is not what this failure tells.
            return result
        return replace(result, source=found[0]) if found else result

    def close(self) -> None:
        """Removes the private directory. The clients are not closed."""
        self._spool.remove()

    def __enter__(self) -> InstanceCopier:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _retrieve(self, reference: Resource) -> Instance | Failure:
        kept: Instance | None = None
        surplus = 0
        try:
            for instance in self._instances(reference):
                if kept is None and instance.reference == reference:
                    kept = instance
                else:
                    surplus += 1
                    self._spool.discard(instance)
        except RECOVERABLE as error:
            if kept is not None:
                self._spool.discard(kept)
            return failure_of(error, self._transform, reference=reference)
        if kept is None:
            reason = "answered with another instance instead" if surplus else "answered without the instance"
            return Failure(
                self._transform,
                f"{self._source.base_url} {reason} when asked for {reference.uri}; nothing was copied",
                reference=reference,
                retryable=not surplus,
            )
        return kept

    def _instances(self, reference: Resource) -> Iterator[Instance]:
        source = self._source
        if isinstance(source, DICOMfileClient) and source.is_local:
            # The store only reads: a large file of a local folder need not be copied for it. What is borrowed lies
            # outside of the private directory, so it is never deleted.
            return source.iter_instances(
                reference,
                media_types=self._media_types,
                max_element_bytes=self._threshold,
                spool_directory=self._spool.path,
                allow_transcoding=self._allow_transcoding,
                borrow=True,
            )
        return source.iter_instances(
            reference,
            media_types=self._media_types,
            max_element_bytes=self._threshold,
            spool_directory=self._spool.path,
            allow_transcoding=self._allow_transcoding,
        )

    def _store(self, batch: _Batch) -> dict[Resource, CopyResult]:
        results = self._storer.store(batch.instances)
        found = {instance.reference: result for instance, result in zip(batch.instances, results, strict=True)}
        batch.clear()
        return found


class _Batch:
    """Instances that wait for one store request. `clear` deletes their spool files."""

    def __init__(self, spool: PrivateDirectory) -> None:
        self._spool = spool
        self.instances: list[Instance] = []
        self._memory = 0
        self._bytes = 0

    def has_room_for(self, instance: Instance) -> bool:
        if not self.instances:
            return True
        memory = 0 if instance.content is None else len(instance.content)
        return (
            len(self.instances) < MAX_BATCH_INSTANCES
            and self._memory + memory <= MAX_BATCH_MEMORY
            and self._bytes + instance.size <= MAX_BATCH_BYTES
        )

    def add(self, instance: Instance) -> None:
        self.instances.append(instance)
        self._memory += 0 if instance.content is None else len(instance.content)
        self._bytes += instance.size

    def clear(self) -> None:
        for instance in self.instances:
            self._spool.discard(instance)
        self.instances.clear()
        self._memory = self._bytes = 0


def expand_reference(client: DICOMClient, reference: Resource) -> Iterator[Resource]:
    """Yields references to all instances of a study or series, as the archive lists them, each once.

    For an instance it is the reference itself, for frames their instance.
    """
    if reference.level in ("instance", "frame"):
        yield reference.instance
        return
    query = make_query("instance", reference.study_instance_uid, reference.series_instance_uid, permissive_uid=True)
    # Not by SOP Instance UID alone: some archives hold one in several series (Orthanc does).
    seen: set[Resource] = set()
    for row in client.iter_search(query):
        found = instance_of_row(row, reference)
        if found not in seen:
            seen.add(found)
            yield found


def instance_of_row(row: Mapping[str, Any], within: Resource | None = None) -> Resource:
    """The instance that a row of an instance search names; UIDs that the row lacks are those of the search.

    Raises:
        ValueError: If the row has no SOP Instance UID or no series.
    """
    completed = dict(row)
    if within is not None:
        completed.setdefault("0020000D", {"vr": "UI", "Value": [within.study_instance_uid]})
        if within.series_instance_uid is not None:
            completed.setdefault("0020000E", {"vr": "UI", "Value": [within.series_instance_uid]})
    found = Resource.of(completed)
    if found.level != "instance":
        raise ValueError(f"a row of a search for instances names only the {found.level} {found.uri}")
    return found


def check_policies(on_existing: str, verify: str) -> None:
    """Checks two options that many operations share.

    Raises:
        ValueError: If one has a value that does not exist.
    """
    if on_existing not in ("server", "skip", "replace", "error"):
        raise ValueError(f"on_existing must be 'server', 'skip', 'replace' or 'error', not {on_existing!r}")
    if verify not in ("response", "uid", "content"):
        raise ValueError(f"verify must be 'response', 'uid' or 'content', not {verify!r}")
