"""Storing into a folder: one file for each instance, published in one step, safe for many writers.

Instances go to ``STUDY/SERIES/SOP.dcm``, so one look-up shows whether an instance is there, and writers need not know
of each other. Only a folder that holds files with other names is searched by its index as well.

`InstanceDownloader` does so with what another archive has.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, BinaryIO, Literal, NamedTuple

from dicomweb_io.client import DICOMClient, MediaTypes, OnExisting, Storable, Verify
from dicomweb_io.dicom.errors import DICOMError, IncompleteDICOMError
from dicomweb_io.dicom.header_scan import scan_header
from dicomweb_io.dicom.part10 import WITHOUT_DELIMITER, check_complete, header_from_scan, judge
from dicomweb_io.dicom.uids import file_name, is_file_name
from dicomweb_io.elements import (
    Failure,
    Instance,
    Resource,
    StoredInstance,
)
from dicomweb_io.failures import RECOVERABLE, failure_of, not_tried
from dicomweb_io.files.local import folder_of
from dicomweb_io.files.places import Folder, Problem, SourceChangedError, SourceFile, read_exactly
from dicomweb_io.spool import MEMORY_THRESHOLD, PrivateDirectory, collect
from dicomweb_io.store_items import StoreItem, check_options, prepare
from dicomweb_io.store_response import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, PROCESSING_FAILURE

_CHUNK = 1 << 20
_MEMORY_BYTES = 4 * 1024 * 1024

_LAYOUT = re.compile(r"([^/]+)/([^/]+)/([^/]+)\.dcm\Z")


def layout_path(reference: Resource) -> str:
    """The path of an instance in a folder.

    Raises:
        InvalidIdentifierError: If a UID cannot be a name in a path.
    """
    return "/".join(map(file_name, reference.instance.uids.values())) + ".dcm"


def is_layout_path(path: str) -> bool:
    """Whether a path is one that `layout_path` could have given."""
    match = _LAYOUT.match(path)
    return match is not None and all(map(is_file_name, match.groups()))


def has_other_layout(folder: Folder) -> bool:
    """Whether a folder holds files that were not stored under `layout_path`; one that does not exist holds none.

    For writers: the temporary files of writers that died are removed at the same time.
    """
    abandoned: list[str] = []
    try:
        return any(
            not isinstance(entry, Problem) and not is_layout_path(entry.path) for entry in folder.walk(abandoned)
        )
    except FileNotFoundError:
        return False
    finally:
        folder.sweep(abandoned)


def in_the_way(location: str) -> str:
    """The message for a path at which something other than a file with the instance stands."""
    return f"{location} is not a file with the instance, but a directory or a broken link; nothing was written"


class FolderStore:
    """Puts instances into a folder.

    Args:
        folder: The folder.
        known_paths: Gives the paths of files of an instance that lie elsewhere than the layout says.
        on_change: Called with every path that was written or removed.
    """

    def __init__(
        self, folder: Folder, known_paths: Callable[[Resource], list[str]], on_change: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._known_paths = known_paths
        self._on_change = on_change

    def store(
        self, instances: Iterable[Storable], study_instance_uid: str | None, on_existing: OnExisting, verify: Verify
    ) -> Iterator[StoredInstance | Failure]:
        """Stores instances one by one; see `DICOMfileClient.iter_store_instances`. Arguments are checked at once."""
        check_options(on_existing, verify)
        items = (prepare(storable, study_instance_uid) for storable in instances)
        return (self._outcome(item, on_existing, verify) for item in items)

    def _outcome(self, item: StoreItem, on_existing: OnExisting, verify: Verify) -> StoredInstance | Failure:
        try:
            if item.outcome is None:
                self._store(item, on_existing, verify)
        except SourceChangedError as error:
            item.fail_by(error, reason_code=PROCESSING_FAILURE)
        except RECOVERABLE as error:
            broken = isinstance(error, ValueError) or not isinstance(error, OSError)
            item.fail_by(error, reason_code=CANNOT_UNDERSTAND if broken else OUT_OF_RESOURCES)
        finally:
            item.discard()
        outcome = item.outcome
        if outcome is None:
            raise AssertionError("storing an item ends with its outcome")
        if isinstance(outcome, Failure) and outcome.reason_code is None:
            return replace(outcome, reason_code=CANNOT_UNDERSTAND if item.instance is None else PROCESSING_FAILURE)
        return outcome

    def _store(self, item: StoreItem, on_existing: OnExisting, verify: Verify) -> None:
        target = layout_path(item.reference)
        source = _source_file(item.given, item.size)
        _check(item.given, item.size)
        existing = self._existing(item.reference, target)
        if not existing:
            # A file without a usable instance at this very place is left over from a broken copy.
            leftover = self._folder.stat(target) is not None
            other = _instance_at(self._folder, target) if leftover else None
            if other not in (None, item.reference):
                raise DICOMError(
                    f"{self._folder.location_of(target)} holds another instance, {other.uri}, and was not changed"
                )
            if other is None and self._publish(target, item, source, replace=leftover):
                self._prove(item, target, "stored", verify)
                return
            # Another writer was first, a moment ago.
            if other is None and not self._holds(target, item.reference):
                raise DICOMError(in_the_way(self._folder.location_of(target)))
            existing = [target]
        if self._settle(item, existing, on_existing, verify):
            return
        self._publish(target, item, source, replace=True)
        for path in existing:
            if path != target and self._folder.remove(path):
                self._on_change(path)
        self._prove(item, target, "replaced", verify)

    def _existing(self, reference: Resource, target: str) -> list[str]:
        paths = [target, *(path for path in self._known_paths(reference) if path != target)]
        return [path for path in paths if self._holds(path, reference)]

    def _holds(self, path: str, reference: Resource) -> bool:
        """Whether a complete file of this instance is at a path now."""
        return _instance_at(self._folder, path) == reference

    def _settle(self, item: StoreItem, existing: list[str], on_existing: OnExisting, verify: Verify) -> bool:
        """Notes the outcome for an instance that the folder has already; False if it has to be replaced."""
        location = self._folder.location_of(existing[0])
        if on_existing == "error":
            item.fail(f"{item.reference.uri} is already in the folder, as {location}", reason_code=PROCESSING_FAILURE)
            return True
        url = self._retrieve_url(item.reference)
        if on_existing == "skip" and verify != "content":
            item.succeed("exists", "uid", retrieve_url=url)
            return True
        identical = [path for path in existing if self._is_same(item, path)]
        if identical and (on_existing != "replace" or len(identical) == len(existing)):
            item.succeed("exists", "file", retrieve_url=url)
            return True
        if on_existing == "replace":
            return False
        item.fail(
            f"the folder holds another file for {item.reference.uri}, {location}, which was not changed "
            "(on_existing='replace' would replace it)",
            reason_code=PROCESSING_FAILURE,
        )
        return True

    def _publish(self, target: str, item: StoreItem, source: SourceFile | None, *, replace: bool) -> bool:
        instance = item.given
        temporary = None
        content: bytes | SourceFile | None = source or instance.content
        try:
            if content is None:
                with instance.open() as file:
                    read, temporary = collect(iter(lambda: file.read(_CHUNK), b""), max_bytes=_MEMORY_BYTES)
                # It came in pieces, and it was another read that was checked before: these bytes count.
                copy = dataclasses.replace(instance, content=read, path=temporary)
                if copy.size != item.size:
                    raise SourceChangedError(str(instance.path))
                _check(copy, item.size)
                content = SourceFile.of(temporary) if temporary is not None else read or b""
            published = self._folder.publish(target, content, replace=replace)
        finally:
            if temporary is not None:
                os.unlink(temporary)
        if published:
            self._on_change(target)
        return published

    def _prove(self, item: StoreItem, target: str, outcome: Literal["stored", "replaced"], verify: Verify) -> None:
        proofs = {"response": "response", "uid": "uid", "content": "file"}
        proven = verify == "response" or (
            self._holds(target, item.reference) if verify == "uid" else self._is_same(item, target)
        )
        if proven:
            item.succeed(outcome, proofs[verify], size=item.size, retrieve_url=self._retrieve_url(item.reference))
            return
        item.fail(
            f"{self._folder.location_of(target)} was written, but reading it back does not give {item.reference.uri}",
            reason_code=PROCESSING_FAILURE,
            retryable=True,
        )

    def _is_same(self, item: StoreItem, path: str) -> bool:
        stat = self._folder.stat(path)
        if stat is None or stat.size != item.size:
            return False
        with item.given.open() as one, self._folder.open(path, stat.size) as other:
            while True:
                part = one.read(_CHUNK)
                if part != read_exactly(other, len(part) or 1):
                    return False
                if not part:
                    return True

    def _retrieve_url(self, reference: Resource) -> str:
        return f"{self._folder.base_url}/{reference.uri}"


def _instance_at(folder: Folder, path: str) -> Resource | None:
    """The instance that the complete file at a path holds, None if there is none."""
    stat = folder.stat(path)
    if stat is None:
        return None
    try:
        with folder.open(path, stat.size) as file:
            return _complete_instance(file, stat.size)
    except FileNotFoundError:
        return None


def _complete_instance(file: BinaryIO, size: int) -> Resource | None:
    """The instance that a complete file holds; None if the file is not one."""
    try:
        scan = scan_header(file, size=size, large_value=1024, first_read=16384)
        instance = Resource.of_header(header_from_scan(scan))
        return instance if check_complete(file, size=size, scan=scan) is None else None
    except (ValueError, LookupError, ArithmeticError, RecursionError):
        return None


def _source_file(instance: Instance, size: int) -> SourceFile | None:
    """The local file of an instance as it is before it is checked; None if its bytes are elsewhere.

    Raises:
        SourceChangedError: If its size is not the one that was found before.
    """
    if instance.content is not None or instance.path is None or "://" in instance.path:
        return None
    source = SourceFile.of(instance.path)
    if source.size != size:
        raise SourceChangedError(source.path)
    return source


def _check(instance: Instance, size: int) -> None:
    """Checks that a search will find the instance again.

    Raises:
        DICOMError: If the bytes hold another instance, or are cut off.
    """
    with instance.open() as file:
        scan = scan_header(file, size=size, large_value=1024, first_read=16384)
        reference = Resource.of_header(header_from_scan(scan))
        if reference != instance.reference:
            raise DICOMError(f"the bytes hold {reference.uri}, not {instance.reference.uri}")
        verdict = judge(file, size=size, scan=scan)
    # The archive that it comes from has proven that it is whole.
    problem = verdict.problem or (None if WITHOUT_DELIMITER in instance.warnings else verdict.open_end)
    if problem is not None:
        raise IncompleteDICOMError(f"{instance.reference.uri} is truncated or damaged and was not stored: {problem}")


# Downloads ------------------------------------------------------------------------------------------------------------


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
    download that was cut short is simply started again. What is no complete instance, left there by another program, is
    replaced. Large instances pass through a private spool file.

    Args:
        source: The archive.
        directory: A local path, or any fsspec URL.
        storage_options: Arguments for the fsspec filesystem.
        overwrite: Retrieve and replace files that are there.
        media_types: Accepted encodings; by default the stored one.
        allow_transcoding: Accept re-encoded instances if the archive cannot return the original.
        spool_directory: Where the private directory is made; by default the system's temporary directory.
        transform: The name that failures carry.

    Raises:
        ValueError: If the directory cannot be written to.
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
        known = self.already_there(reference)
        if known is not None:
            return known
        result: Downloaded | Failure | None = None
        try:
            for instance in self.retrieve(reference):
                if result is None and instance.reference == reference:
                    result = self.write(instance)
                else:
                    self.discard(instance)
        except RECOVERABLE as error:
            return failure_of(error, self._transform, reference=reference)
        if result is None:
            message = f"{self._source.base_url} answered without the instance {reference.uri}; nothing was written"
            return Failure(self._transform, message, reference=reference, retryable=True)
        return result

    def already_there(self, reference: Resource) -> Downloaded | Failure | None:
        """The result for an instance that need not or cannot be retrieved, or None if it has to be."""
        reason = self._source.unavailable
        if reason is not None:
            return not_tried(reason, self._transform, reference=reference)
        try:
            target = layout_path(reference)
            if not self._overwrite and self._is_there(target, reference):
                return Downloaded(self._folder.location_of(target), 0, True)
        except RECOVERABLE as error:
            return failure_of(error, self._transform, reference=reference)
        return None

    def retrieve(self, reference: Resource) -> Iterator[Instance]:
        """The instances of a reference as they arrive; each is for `write` or `discard`."""
        return self._source.iter_instances(
            reference,
            media_types=self._media_types,
            max_element_bytes=MEMORY_THRESHOLD,
            spool_directory=self._spool.path,
            allow_transcoding=self._allow_transcoding,
        )

    def write(self, instance: Instance) -> Downloaded | Failure:
        """Makes a file of an instance, and discards it."""
        try:
            return self._publish(layout_path(instance.reference), instance)
        except RECOVERABLE as error:
            return failure_of(error, self._transform, reference=instance.reference)
        finally:
            self.discard(instance)

    def discard(self, instance: Instance) -> None:
        """Removes the spool file of an instance."""
        self._spool.discard(instance)

    def close(self) -> None:
        """Removes the private directory. The client is not closed."""
        self._spool.remove()

    def _is_there(self, target: str, reference: Resource) -> bool:
        found = _instance_at(self._folder, target)
        if found not in (None, reference):
            raise FileExistsError(
                f"{self._folder.location_of(target)} holds another instance ({found.uri}); nothing was written"
            )
        return found is not None

    def _publish(self, target: str, instance: Instance) -> Downloaded:
        path = self._folder.location_of(target)
        source = instance.content
        if source is None:
            # An archive that is a folder gives the paths of its own files, perhaps of another filesystem.
            local = instance.path if "://" not in str(instance.path) else None
            source = instance.read() if local is None else None
        content = source if source is not None else str(instance.path)
        # A file without a usable instance at this very place is left over from a broken copy.
        written = self._folder.publish(target, content, replace=self._overwrite)
        if not written and not self._is_there(target, instance.reference):
            if self._folder.stat(target) is None or not self._folder.publish(target, content, replace=True):
                raise FileExistsError(in_the_way(path))
            written = True
        # Else another writer was first; its bytes are the same.
        return Downloaded(path, instance.size if written else 0, not written)
