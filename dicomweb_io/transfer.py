"""`InstanceCopier`: instances from one archive to another through a bounded spool, without Beam.

The transform `CopyInstances` and the command line's ``copy`` both use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from dicomweb_io.client import DICOMClient, MediaTypes, OnExisting, Verify
from dicomweb_io.dicom.part10 import header_of
from dicomweb_io.elements import Failure, Instance, Resource, StoredInstance
from dicomweb_io.failures import RECOVERABLE, failure_of
from dicomweb_io.files.local import folder_of
from dicomweb_io.files.store import in_the_way, layout_path
from dicomweb_io.listing import SeriesListing
from dicomweb_io.pool import WorkCancelled
from dicomweb_io.spool import PrivateDirectory

# ----------------------------------------------------------------------------------------------------------------------


CopyResult = StoredInstance | Failure

MAX_BATCH_INSTANCES = 8
"""Instances in one store request: enough to spare round trips, few enough for a refusal to be cheap to take apart."""

MAX_BATCH_MEMORY = 4 * 1024 * 1024
MAX_BATCH_BYTES = 32 * 1024 * 1024
"""Below the smallest limit on request bodies that is known of (64 MiB); a larger instance goes alone."""

MEMORY_THRESHOLD = 1024 * 1024
"""Instances up to this size wait in memory for their batch, larger ones in a file."""


class InstanceStorer:
    """Stores batches of instances and says of each what became of it. Safe to use from several threads.

    Args:
        destination: The archive.
        on_existing: What to do with an instance whose UID the archive has: ``"skip"`` leaves it (the archive is listed
            once for each series); ``"server"``, ``"replace"`` and ``"error"`` as in
            `DICOMClient.iter_store_instances`.
        verify: ``"response"`` takes the answer to the store request as proof (the UID among those stored); ``"uid"``
            looks for the instance afterwards; ``"content"`` compares the bytes at the level that the archive keeps,
            also of instances that were there already.
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
        # The store only reads: a large file of a local folder need not be copied for it. What is borrowed lies outside
        # of the private directory, so it is never deleted.
        return self._source.iter_instances(
            reference,
            media_types=self._media_types,
            max_element_bytes=self._threshold,
            spool_directory=self._spool.path,
            allow_transcoding=self._allow_transcoding,
            borrow=True,
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


def check_policies(on_existing: str, verify: str) -> None:
    """Checks two options that many operations share.

    Raises:
        ValueError: If one has a value that does not exist.
    """
    if on_existing not in ("server", "skip", "replace", "error"):
        raise ValueError(f"on_existing must be 'server', 'skip', 'replace' or 'error', not {on_existing!r}")
    if verify not in ("response", "uid", "content"):
        raise ValueError(f"verify must be 'response', 'uid' or 'content', not {verify!r}")


# ----------------------------------------------------------------------------------------------------------------------
# `InstanceDownloader`: instances from an archive to files of a directory, without Beam.


class Downloaded(NamedTuple):
    """A file that holds an instance.

    Attributes:
        path: Where it is: a local path or URL.
        size: Bytes that were written; 0 if the file was there before.
        existed: Whether it was there before.
    """

    path: str
    size: int
    existed: bool


class InstanceDownloader:
    """Writes instances to ``DIRECTORY/STUDY/SERIES/INSTANCE.dcm``, bytes unchanged. May be used by several threads.

    A file appears under its name when it is complete, never before, so what is there needs not be retrieved again: a
    download that was cut short is simply started again. Large instances pass through a private spool file.

    Args:
        source: The archive.
        directory: A local path, or any fsspec URL.
        storage_options: Arguments for the fsspec filesystem.
        overwrite: Retrieve and replace files that are there.
        media_types: Wanted encodings; by default the stored one.
        allow_transcoding: Take what the archive re-encodes if it cannot give the original.
        spool_directory: Where the private directory is made; by default the system's temporary directory.
        transform: The name that failures carry.

    Raises:
        ValueError: If the directory is none that can be written to.
    """

    def __init__(
        self,
        source: DICOMClient,
        directory: str,
        *,
        storage_options: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        media_types: MediaTypes | None = None,
        allow_transcoding: bool = False,
        spool_directory: str | None = None,
        transform: str = "DownloadInstances",
    ) -> None:
        self._source = source
        self._folder = folder_of(directory, storage_options)
        self._overwrite = overwrite
        self._media_types = media_types
        self._allow_transcoding = allow_transcoding
        self._transform = transform
        self._spool = PrivateDirectory(spool_directory)

    def download(self, reference: Resource) -> Downloaded | Failure:
        """Downloads an instance.

        Args:
            reference: The instance.

        Returns:
            Its file, or why there is none. UIDs that cannot be names of files are a failure too.
        """
        try:
            target = layout_path(reference)
            if not self._overwrite and self._is_there(target, reference):
                return Downloaded(self._folder.location_of(target), 0, True)
            return self._retrieve(target, reference)
        except RECOVERABLE as error:
            return failure_of(error, self._transform, reference=reference)

    def close(self) -> None:
        """Removes the private directory. The client is not closed."""
        self._spool.remove()

    def _is_there(self, target: str, reference: Resource) -> bool:
        stat = self._folder.stat(target)
        if stat is None:
            return False
        with self._folder.open(target, stat.size) as file:
            found = header_of(file).sop_instance_uid
        if found != reference.sop_instance_uid:
            raise ValueError(
                f"{self._folder.location_of(target)} holds another instance ({found}); nothing was written"
            )
        return True

    def _retrieve(self, target: str, reference: Resource) -> Downloaded | Failure:
        result: Downloaded | None = None
        instances = self._source.iter_instances(
            reference,
            media_types=self._media_types,
            max_element_bytes=MEMORY_THRESHOLD,
            spool_directory=self._spool.path,
            allow_transcoding=self._allow_transcoding,
        )
        for instance in instances:
            try:
                if result is None and instance.reference == reference:
                    result = self._publish(target, instance)
            finally:
                self._spool.discard(instance)
        if result is None:
            message = f"{self._source.base_url} answered without the instance {reference.uri}; nothing was written"
            return Failure(self._transform, message, reference=reference, retryable=True)
        return result

    def _publish(self, target: str, instance: Instance) -> Downloaded:
        path = self._folder.location_of(target)
        source = instance.content
        if source is None:
            # An archive that is a folder gives the paths of its own files, perhaps of another filesystem.
            local = instance.path if "://" not in str(instance.path) else None
            source = instance.read() if local is None else None
        written = self._folder.publish(
            target, source if source is not None else str(instance.path), replace=self._overwrite
        )
        if not written and not self._is_there(target, instance.reference):
            raise ValueError(in_the_way(path))
        # Whoever came first wrote the same.
        return Downloaded(path, instance.size if written else 0, not written)
