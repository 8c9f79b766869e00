"""Storing into and deleting from a folder: one file for each instance, published in one step, safe for many writers.

Instances go to ``STUDY/SERIES/SOP.dcm``, so whether one is there is one look-up and no writer has to know of others.
Only where a folder holds files with other names too its index is asked as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import BinaryIO, get_args

from dicomweb_io.client import OnExisting, Storable, Verify
from dicomweb_io.dicom.header_scan import scan_header
from dicomweb_io.dicom.part10 import check_complete, header_from_scan
from dicomweb_io.dicom.uids import is_safe_name
from dicomweb_io.elements import Failure, Instance, Resource, StoredInstance
from dicomweb_io.errors import IncompleteDICOMError, InvalidIdentifierError, Part10Error
from dicomweb_io.failures import RECOVERABLE, failure_of
from dicomweb_io.files.places import Folder, Problem, SourceChangedError, SourceFile
from dicomweb_io.spool import collect
from dicomweb_io.store_items import StoreItem, prepare

_TRANSFORM = "StoreInstances"
_CHUNK = 1 << 20
_MEMORY_BYTES = 4 * 1024 * 1024

# Failure reasons of PS3.18 table I.2-2.
PROCESSING_FAILURE = 0x0110
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000

_LAYOUT = re.compile(r"([^/]+)/([^/]+)/([^/]+)\.dcm\Z")


def layout_path(reference: Resource) -> str:
    """The path of an instance in a folder.

    Raises:
        ValueError: If a UID cannot be a name in a path.
    """
    uids = (reference.study_instance_uid, str(reference.series_instance_uid), str(reference.sop_instance_uid))
    for uid in uids:
        if not is_safe_name(uid):
            raise InvalidIdentifierError(
                f"{uid!r} cannot be part of a file's path, so the instance cannot be stored in a folder"
            )
    return f"{uids[0]}/{uids[1]}/{uids[2]}.dcm"


def is_layout_path(path: str) -> bool:
    """Whether a path is one that `layout_path` could have given."""
    match = _LAYOUT.match(path)
    return match is not None and all(map(is_safe_name, match.groups()))


def has_other_layout(folder: Folder) -> bool:
    """Whether a folder holds files that were not stored under `layout_path`; one that does not exist holds none.

    For writers: what dead ones left behind is removed on the way.
    """
    abandoned: list[str] = []
    try:
        return any(
            not isinstance(found, Problem) and not is_layout_path(found.path) for found in folder.walk(abandoned)
        )
    except FileNotFoundError:
        return False
    finally:
        folder.sweep(abandoned)


def in_the_way(location: str) -> str:
    """The message for a name that is taken by something that holds no instance."""
    return (
        f"{location} is no file with the instance, but a directory, a link that leads nowhere, or the like; "
        "nothing was written"
    )


class FolderStore:
    """Puts instances into a folder.

    Args:
        folder: The folder.
        known_paths: Gives the paths of files with a SOP Instance UID that lie elsewhere than the layout says.
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
        for name, value, allowed in (("on_existing", on_existing, OnExisting), ("verify", verify, Verify)):
            if value not in get_args(allowed):
                raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, not {value!r}")
        return self._results(instances, study_instance_uid, on_existing, verify)

    def _results(
        self, instances: Iterable[Storable], study_instance_uid: str | None, on_existing: OnExisting, verify: Verify
    ) -> Iterator[StoredInstance | Failure]:
        for storable in instances:
            item = prepare(storable, study_instance_uid)
            try:
                if item.outcome is None:
                    item.outcome = self._store(item.given, item.size, on_existing, verify)
            except RECOVERABLE as error:
                item.outcome = _failure(error, item)
            finally:
                item.discard()
            outcome = item.outcome
            if isinstance(outcome, Failure) and outcome.reason_code is None:
                outcome = replace(
                    outcome, reason_code=CANNOT_UNDERSTAND if item.instance is None else PROCESSING_FAILURE
                )
            yield outcome

    def _store(
        self, instance: Instance, size: int, on_existing: OnExisting, verify: Verify
    ) -> StoredInstance | Failure:
        target = layout_path(instance.reference)
        held = _held(instance, size)
        _check(instance, size)
        existing = self._existing(instance.reference, target)
        if existing:
            return self._resolve(instance, size, held, target, existing, on_existing, verify)
        # A file without a usable instance at this very place is the rest of somebody's broken copy.
        leftover = self._folder.stat(target) is not None
        other = self._uid_at(target) if leftover else None
        if other == instance.reference.sop_instance_uid:
            # Another writer was first, a moment ago.
            return self._resolve(instance, size, held, target, [target], on_existing, verify)
        if other is not None:
            raise FileExistsError(
                f"{self._folder.location_of(target)} holds another instance, {other}, and was left as it is"
            )
        if not self._publish(target, instance, size, held, replace=leftover):
            if not self._holds(target, instance.reference):
                raise FileExistsError(in_the_way(self._folder.location_of(target)))
            # Another writer was first.
            return self._resolve(instance, size, held, target, [target], on_existing, verify)
        return self._proven(instance, size, target, "stored", verify)

    def _existing(self, reference: Resource, target: str) -> list[str]:
        found = [target] if self._holds(target, reference) else []
        found += [path for path in self._known_paths(reference) if path != target and self._holds(path, reference)]
        return found

    def _holds(self, path: str, reference: Resource) -> bool:
        """Whether a complete file with this SOP Instance UID is at a path now."""
        return self._uid_at(path) == reference.sop_instance_uid

    def _uid_at(self, path: str) -> str | None:
        """The SOP Instance UID of the complete file at a path, None if there is none."""
        stat = self._folder.stat(path)
        if stat is None:
            return None
        try:
            with self._folder.open(path, stat.size) as file:
                return _complete_uid(file, stat.size)
        except FileNotFoundError:
            return None

    def _resolve(
        self,
        instance: Instance,
        size: int,
        held: SourceFile | None,
        target: str,
        existing: list[str],
        on_existing: OnExisting,
        verify: Verify,
    ) -> StoredInstance | Failure:
        reference = instance.reference
        there = self._folder.location_of(existing[0])
        if on_existing == "error":
            return Failure(
                _TRANSFORM,
                f"{reference.uri} is in the folder already, as {there}",
                reference=reference,
                source=_source(instance),
                reason_code=PROCESSING_FAILURE,
            )
        if on_existing == "skip" and verify != "content":
            return StoredInstance(
                reference, "exists", 0, instance.sop_class_uid, self._retrieve_url(reference), verified="uid"
            )
        identical = [path for path in existing if self._is_same(instance, size, path)]
        if identical and (on_existing != "replace" or len(identical) == len(existing)):
            return StoredInstance(
                reference, "exists", 0, instance.sop_class_uid, self._retrieve_url(reference), verified="file"
            )
        if on_existing != "replace":
            return Failure(
                _TRANSFORM,
                f"the folder holds another file for {reference.uri}, {there}, which was left as it is "
                "(on_existing='replace' would replace it)",
                reference=reference,
                source=_source(instance),
                reason_code=PROCESSING_FAILURE,
            )
        self._publish(target, instance, size, held, replace=True)
        for path in existing:
            if path != target and self._folder.remove(path):
                self._on_change(path)
        return self._proven(instance, size, target, "replaced", verify)

    def _publish(self, target: str, instance: Instance, size: int, held: SourceFile | None, *, replace: bool) -> bool:
        temporary = None
        try:
            source: bytes | SourceFile
            if held is not None:
                source = held
            elif instance.content is not None:
                source = instance.content
            else:
                with instance.open() as file:
                    content, temporary = collect(iter(lambda: file.read(_CHUNK), b""), max_bytes=_MEMORY_BYTES)
                # It came in pieces, and was checked before: what is here now is what counts.
                copy = Instance(instance.reference, instance.transfer_syntax_uid, content, temporary)
                if copy.size != size:
                    raise SourceChangedError(str(instance.path))
                _check(copy, size)
                source = SourceFile.of(temporary) if temporary is not None else content or b""
            done = self._folder.publish(target, source, replace=replace)
        finally:
            if temporary is not None:
                os.unlink(temporary)
        if done:
            self._on_change(target)
        return done

    def _proven(
        self, instance: Instance, size: int, target: str, outcome: str, verify: Verify
    ) -> StoredInstance | Failure:
        verified = "response"
        if verify == "uid":
            verified = "uid" if self._holds(target, instance.reference) else ""
        elif verify == "content":
            verified = "file" if self._is_same(instance, size, target) else ""
        if not verified:
            return Failure(
                _TRANSFORM,
                f"{self._folder.location_of(target)} was written, but does not hold {instance.reference.uri} "
                "when it is read back",
                reference=instance.reference,
                source=_source(instance),
                reason_code=PROCESSING_FAILURE,
                retryable=True,
            )
        return StoredInstance(
            instance.reference,
            outcome,  # type: ignore[arg-type]
            size,
            instance.sop_class_uid,
            self._retrieve_url(instance.reference),
            verified=verified,
        )

    def _is_same(self, instance: Instance, size: int, path: str) -> bool:
        stat = self._folder.stat(path)
        if stat is None or stat.size != size:
            return False
        with instance.open() as one, self._folder.open(path, stat.size) as other:
            while True:
                part = one.read(_CHUNK)
                if part != _read(other, len(part) or 1):
                    return False
                if not part:
                    return True

    def _retrieve_url(self, reference: Resource) -> str:
        return f"{self._folder.base_url}/{reference.uri}"


def _read(file: BinaryIO, size: int) -> bytes:
    pieces = []
    while size and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _complete_uid(file: BinaryIO, size: int) -> str | None:
    """The SOP Instance UID of a complete file, None if it is none."""
    try:
        scan = scan_header(file, size=size, large_value=1024, first_read=16384)
        uid = header_from_scan(scan).sop_instance_uid
        return uid if check_complete(file, size=size, scan=scan) is None else None
    except (ValueError, LookupError, ArithmeticError, RecursionError):
        return None


def _held(instance: Instance, size: int) -> SourceFile | None:
    """The local file of an instance as it is before it is checked; None if its bytes are elsewhere.

    Raises:
        SourceChangedError: If its size is not the one that was found before.
    """
    if instance.content is not None or instance.path is None or "://" in instance.path:
        return None
    held = SourceFile.of(instance.path)
    if held.size != size:
        raise SourceChangedError(held.path)
    return held


def _check(instance: Instance, size: int) -> None:
    """Refuses what a search could not find again afterwards.

    Raises:
        ValueError: If the bytes are not the instance that they are said to be, or are cut off.
    """
    with instance.open() as file:
        scan = scan_header(file, size=size, large_value=1024, first_read=16384)
        header = header_from_scan(scan)
        found = Resource(header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid)
        if found != instance.reference:
            raise Part10Error(f"the bytes hold {found.uri}, not {instance.reference.uri}")
        problem = check_complete(file, size=size, scan=scan)
    if problem is not None:
        raise IncompleteDICOMError(f"{instance.reference.uri} is truncated or damaged and was not stored: {problem}")


def _source(instance: Instance | None) -> str | None:
    return None if instance is None else instance.path


def _failure(error: BaseException, item: StoreItem) -> Failure:
    instance = item.instance
    failure = failure_of(
        error,
        _TRANSFORM,
        reference=None if instance is None else instance.reference,
        source=_source(instance) if item.temporary is None else None,
    )
    if isinstance(error, SourceChangedError):
        return replace(failure, reason_code=PROCESSING_FAILURE)
    if isinstance(error, OSError) and not isinstance(error, ValueError):
        return replace(failure, reason_code=OUT_OF_RESOURCES)
    return replace(failure, reason_code=CANNOT_UNDERSTAND)
