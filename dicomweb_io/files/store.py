"""Storing into a folder: one file for each instance, published in one step, safe for many writers.

Instances go to ``STUDY/SERIES/SOP.dcm``, so one look-up shows whether an instance is there, and writers need not know
of each other. Only a folder that holds files with other names is searched by its index as well, as is one with a layout
(`dicomweb_io.files.layout`): there the exclusive creation of a file decides which instance has the name, and where the
filesystem has none, the name has the hash of the UIDs.

`InstanceDownloader` does so with what another archive has.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from dicomweb_io.client import DICOMClient, MediaTypes, OnExisting, Storable, Verify
from dicomweb_io.dicom.errors import DICOMError, IncompleteDICOMError
from dicomweb_io.dicom.header_scan import scan_header
from dicomweb_io.dicom.part10 import WITHOUT_DELIMITER, check_complete, header_from_scan, judge
from dicomweb_io.dicom.uids import file_name, is_uid
from dicomweb_io.elements import (
    Failure,
    Instance,
    Resource,
    StoredInstance,
)
from dicomweb_io.endpoint import Endpoint, EndpointLike
from dicomweb_io.failures import RECOVERABLE, failure_of, not_tried
from dicomweb_io.files.layout import Layout, NamesInUse
from dicomweb_io.files.local import folder_of
from dicomweb_io.files.places import (
    Folder,
    MissingBucketError,
    Problem,
    SourceChangedError,
    SourceFile,
    read_exactly,
)
from dicomweb_io.spool import MEMORY_THRESHOLD, PrivateDirectory, collect
from dicomweb_io.store_items import StoreItem, check_options, prepare
from dicomweb_io.store_response import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, PROCESSING_FAILURE

if TYPE_CHECKING:
    from dicomweb_io.files.client import DICOMfileClient

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
    """Whether a path can only be one of `layout_path`: the names of patients, and numbers, could be odd UIDs too."""
    match = _LAYOUT.match(path)
    return match is not None and all("." in name and is_uid(name) for name in match.groups())


def has_other_layout(folder: Folder) -> bool:
    """Whether a folder may hold files that were not stored under `layout_path`; one that does not exist holds none.

    For writers: the temporary files of writers that died are removed at the same time.
    """
    abandoned: list[str] = []
    try:
        return any(
            not isinstance(entry, Problem) and not is_layout_path(entry.path) for entry in folder.walk(abandoned)
        )
    except MissingBucketError:
        raise
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
        on_change: Called with every path that was written, and its instance, or removed, and None.
        layout: The layout of the folder, if it is not that of UIDs.
        names_in_use: With a layout: gives the names that are taken.
    """

    def __init__(
        self,
        folder: Folder,
        known_paths: Callable[[Resource], list[str]],
        on_change: Callable[[str, Resource | None], None],
        layout: Layout | None = None,
        names_in_use: Callable[[], NamesInUse] | None = None,
    ) -> None:
        self._folder = folder
        self._known_paths = known_paths
        self._on_change = on_change
        self._layout = layout
        self._names_in_use = names_in_use

    def store(
        self, instances: Iterable[Storable], study_instance_uid: str | None, on_existing: OnExisting, verify: Verify
    ) -> Iterator[StoredInstance | Failure]:
        """Stores instances one by one; see `DICOMfileClient.iter_store_instances`. Arguments are checked at once."""
        check_options(on_existing, verify)
        items = (prepare(storable, study_instance_uid) for storable in instances)
        return (self._outcome(item, on_existing, verify)[0] for item in items)

    def put(self, instance: Instance, on_existing: OnExisting) -> tuple[StoredInstance | Failure, str | None]:
        """Stores an instance; returns its outcome, and the path of its file in the folder if there is one now."""
        return self._outcome(prepare(instance, None), on_existing, "response")

    def _outcome(
        self, item: StoreItem, on_existing: OnExisting, verify: Verify
    ) -> tuple[StoredInstance | Failure, str | None]:
        path = None
        try:
            if item.outcome is None:
                path = self._store(item, on_existing, verify)
        except SourceChangedError as error:
            item.fail_by(error, reason_code=PROCESSING_FAILURE)
        except RECOVERABLE as error:
            broken = isinstance(error, ValueError) or not isinstance(error, OSError)
            item.fail_by(self._nameless(error), reason_code=CANNOT_UNDERSTAND if broken else OUT_OF_RESOURCES)
        finally:
            item.discard()
        outcome = item.outcome
        if outcome is None:
            raise AssertionError("storing an item ends with its outcome")
        if isinstance(outcome, Failure) and outcome.reason_code is None:
            code = CANNOT_UNDERSTAND if item.instance is None else PROCESSING_FAILURE
            return replace(outcome, reason_code=code), path
        return outcome, path

    def _nameless(self, error: BaseException) -> BaseException:
        """An error of the filesystem without the path, which may hold a patient's attributes."""
        if self._layout is None or not isinstance(error, OSError):
            return error
        passing = isinstance(error, (ConnectionError, TimeoutError))
        code = error.errno or (errno.ETIMEDOUT if passing else errno.EIO)
        # Without a file name, the path may be in the text.
        reason = error.strerror if error.filename is not None else f"{type(error).__name__}: {os.strerror(code)}"
        return OSError(code, f"a file in {self._folder.base_url} cannot be written: {reason}")

    def _store(self, item: StoreItem, on_existing: OnExisting, verify: Verify) -> str:
        """Stores an item, notes its outcome, and returns where the instance is."""
        source = _source_file(item.given, item.size)
        names = [layout_path(item.reference)] if self._layout is None else []
        names += _check(item.given, item.size, self._layout)
        known = self._known_paths(item.reference)
        # Where writing shows whether there is a file of the name, looking before only costs requests.
        first = self._layout is None and on_existing != "replace" and self._folder.writes_first(item.size)
        looked = [path for path in dict.fromkeys((*names, *known)) if not first or path not in names]
        existing = [path for path in looked if self._holds(path, item.reference)]
        if not existing:
            target, published = self._publish_new(names, item, source)
            if published:
                self._prove(item, target, "stored", verify)
                return target
            # Another writer was first, a moment ago.
            existing = [target]
        if self._settle(item, existing, on_existing, verify):
            return existing[0]
        target = next((path for path in names if path in existing), "")
        if target:
            self._publish(target, item, source, replace=True)
        else:
            target, published = self._publish_new(names, item, source)
            if not published:
                self._publish(target, item, source, replace=True)
        for path in existing:
            # The index may know one file by several paths, which a link to a directory makes.
            if not self._folder.is_same(path, target) and self._folder.remove(path):
                self._on_change(path, None)
        self._prove(item, target, "replaced", verify)
        return target

    def _publish_new(self, names: Sequence[str], item: StoreItem, source: SourceFile | None) -> tuple[str, bool]:
        """Writes an item under the first of its names that no other instance has.

        Returns:
            The name, and whether the item was written; otherwise the instance is there already.

        Raises:
            DICOMError: If something else has all names.
        """
        problem = ""
        # Where writers do not exclude each other, only the name that no other instance can have is safe.
        for name in names if self._folder.is_exclusive(item.size) else names[-1:]:
            # Where publishing asks the server for it, nothing need be known of the name.
            stat = None if self._folder.writes_first(item.size) else self._folder.stat(name)
            if stat is None and (name == names[-1] or self._is_free(name, item.reference)):
                try:
                    published = self._publish(name, item, source, replace=False)
                except OSError as error:
                    # Where there are no hard links, another writer may have claimed the name, and may have died since.
                    if error.errno != errno.EBUSY or isinstance(error, SourceChangedError) or name == names[-1]:
                        raise
                    continue
                if published:
                    return self._kept(name, names, item)
                stat = self._folder.stat(name)
            other, complete = _found_at(self._folder, name)
            if other == item.reference and complete:
                return name, False
            if stat is not None and (other == item.reference or (self._layout is None and not complete)):
                # A file without a usable instance at this very place is left over from a broken copy.
                self._publish(name, item, source, replace=True)
                return name, True
            what = in_the_way(self._shown(name, names))
            if other is not None and complete:
                what = f"{self._shown(name, names)} holds another instance, {other.uri}, and was not changed"
            problem = problem or what
        raise DICOMError(problem)

    def _kept(self, name: str, names: Sequence[str], item: StoreItem) -> tuple[str, bool]:
        """The name that stays if another writer, who saw other instances, gave this one its other name; as above."""
        plain, hashed = names[0], names[-1]
        other = hashed if name == plain else plain
        if other == name or not self._is_same(item, other):
            return name, True
        if self._folder.remove(hashed):
            self._on_change(hashed, None)
        return plain, name == plain

    def _is_free(self, name: str, reference: Resource) -> bool:
        """Whether no other instance has a name that differs by case or Unicode form only."""
        return self._names_in_use is None or self._names_in_use().claim(name, reference)

    def _shown(self, path: str, names: Sequence[str] = ()) -> str:
        """The location of a file for messages, without what a layout may have taken of the patient."""
        if self._layout is not None and not is_layout_path(path):
            path = self._layout.masked(path) if path in names else "***"
        return self._folder.shown(path)

    def _holds(self, path: str, reference: Resource) -> bool:
        """Whether a complete file of this instance is at a path now."""
        return _instance_at(self._folder, path) == reference

    def _settle(self, item: StoreItem, existing: list[str], on_existing: OnExisting, verify: Verify) -> bool:
        """Notes the outcome for an instance that the folder has already; False if it has to be replaced."""
        location = self._shown(existing[0])
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
        except BaseException:
            if self._names_in_use is not None and not replace:
                self._names_in_use().settle(target, taken=False)
            raise
        finally:
            if temporary is not None:
                os.unlink(temporary)
        if self._names_in_use is not None:
            self._names_in_use().settle(target, taken=True)
        if published:
            self._on_change(target, item.reference)
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
            f"{self._shown(target)} was written, but reading it back does not give {item.reference.uri}",
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
    reference, complete = _found_at(folder, path)
    return reference if complete else None


def _found_at(folder: Folder, path: str) -> tuple[Resource | None, bool]:
    """The instance that the file at a path holds, None if there is none, and whether all of it is there."""
    stat = folder.stat(path)
    if stat is None:
        return None, False
    reference = None
    try:
        with folder.open(path, stat.size) as file:
            scan = scan_header(file, size=stat.size, large_value=1024, first_read=16384)
            reference = Resource.of_header(header_from_scan(scan))
            return reference, check_complete(file, size=stat.size, scan=scan) is None
    except FileNotFoundError:
        return None, False
    except (ValueError, LookupError, ArithmeticError, RecursionError):
        return reference, False


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


def _check(instance: Instance, size: int, layout: Layout | None = None) -> tuple[str, ...]:
    """Checks that a search will find the instance again, and gives the names that a layout has for it.

    Raises:
        DICOMError: If the bytes hold another instance, or are cut off.
    """
    with instance.open() as file:
        scan = scan_header(file, size=size, large_value=1024, first_read=16384)
        reference = Resource.of_header(header_from_scan(scan))
        if reference != instance.reference:
            raise DICOMError(f"the bytes hold {reference.uri}, not {instance.reference.uri}")
        verdict = judge(file, size=size, scan=scan)
        names = () if layout is None else layout.paths_of(scan, reference, file)
    # The archive that it comes from has proven that it is whole.
    problem = verdict.problem or (None if WITHOUT_DELIMITER in instance.warnings else verdict.open_end)
    if problem is not None:
        raise IncompleteDICOMError(f"{instance.reference.uri} is truncated or damaged and was not stored: {problem}")
    return names


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

    If the directory has a layout, they go where that says, and what is there is known by its content.

    A file appears under its name when it is complete, never before, so what is there needs not be retrieved again: a
    download that was cut short is simply started again. What is no complete instance, left there by another program, is
    replaced. Large instances pass through a private spool file.

    Args:
        source: The archive.
        directory: A folder: an `Endpoint`, a local path, or any fsspec URL.
        storage_options: Arguments for the fsspec filesystem, unless the directory is an `Endpoint`.
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
        directory: EndpointLike,
        *,
        storage_options: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        media_types: MediaTypes | None = None,
        allow_transcoding: bool = False,
        spool_directory: str | None = None,
        transform: str = "DownloadInstances",
    ) -> None:
        self._source = source
        endpoint = directory if isinstance(directory, Endpoint) else None
        if endpoint is not None:
            directory, storage_options = endpoint.url, endpoint.storage_options
        self._folder = folder_of(cast(str, directory), storage_options)
        # Where a layout names the files, only their index tells what is there: the client of the folder has it.
        with_layout = endpoint is not None and endpoint.layout is not None
        self._client = cast("DICOMfileClient", endpoint.connect()) if endpoint is not None and with_layout else None
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
            if self._client is not None:
                found = [] if self._overwrite else self._client.locations_of(reference)
                return Downloaded(found[0], 0, True) if found else None
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
            if self._client is not None:
                return self._put(self._client, instance)
            return self._publish(layout_path(instance.reference), instance)
        except RECOVERABLE as error:
            return failure_of(error, self._transform, reference=instance.reference)
        finally:
            self.discard(instance)

    def discard(self, instance: Instance) -> None:
        """Removes the spool file of an instance."""
        self._spool.discard(instance)

    def close(self) -> None:
        """Removes the private directory. The client of the source is not closed."""
        self._spool.remove()
        if self._client is not None:
            self._client.close()

    def _put(self, client: DICOMfileClient, instance: Instance) -> Downloaded | Failure:
        """Makes a file of an instance where the layout says."""
        outcome, path = client.folder_store().put(instance, "replace" if self._overwrite else "skip")
        if isinstance(outcome, Failure) or path is None:
            return replace(cast(Failure, outcome), transform=self._transform)
        return Downloaded(self._folder.location_of(path), outcome.size, outcome.outcome == "exists")

    def _is_there(self, target: str, reference: Resource) -> bool:
        found = _instance_at(self._folder, target)
        if found not in (None, reference):
            raise FileExistsError(
                f"{self._folder.shown(target)} holds another instance ({found.uri}); nothing was written"
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
                raise FileExistsError(in_the_way(self._folder.shown(target)))
            written = True
        # Else another writer was first; its bytes are the same.
        return Downloaded(path, instance.size if written else 0, not written)
