"""From what a caller wants to store to parts of a request that can be sent any number of times, bytes unchanged."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from dicomweb_io.clients.failures import RECOVERABLE, failure_of
from dicomweb_io.clients.protocol import DEFAULT_MAX_ELEMENT_BYTES, Storable
from dicomweb_io.clients.web.discretion import without_names
from dicomweb_io.dicom.media_types import DICOM
from dicomweb_io.elements import Failure, Instance, JSONDataset, Resource, StoredInstance
from dicomweb_io.wire.errors import DICOMwebError
from dicomweb_io.wire.multipart import BodyPart
from dicomweb_io.wire.spool import Spool

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

TRANSFORM = "StoreInstances"


@dataclass
class StoreItem:
    """One instance on its way.

    Attributes:
        instance: The instance; None if there is none in what was given.
        size: Bytes of its file.
        outcome: What became of it; None as long as that is open.
        said: What the server said of it, for the response module.
        temporary: A file to remove when the outcome is out.
        existed: Whether the destination had its UID before, as far as that was looked up.
        wants_place: Whether it is no success if the destination has another object in its place.
        study_url: The Retrieve URL of the study that the answer gave.
    """

    instance: Instance | None = None
    size: int = 0
    outcome: StoredInstance | Failure | None = None
    said: JSONDataset | None = None
    temporary: str | None = None
    existed: bool | None = None
    wants_place: bool = False
    study_url: str | None = None

    @property
    def given(self) -> Instance:
        """The instance, of an item that has one."""
        if self.instance is None:
            raise ValueError("there is no instance to send")
        return self.instance

    @property
    def reference(self) -> Resource:
        """The instance's reference, of an item that has one."""
        return self.given.reference

    @property
    def uid(self) -> str:
        """Its SOP Instance UID."""
        return str(self.reference.sop_instance_uid)

    def part(self) -> BodyPart:
        """The part of a request body that carries it."""
        instance = self.given
        headers = {"Content-Type": DICOM}
        if instance.content is not None:
            return BodyPart(headers, instance.content, len(instance.content))
        path = cast(str, instance.path)
        if "://" in path:
            return BodyPart(headers, instance.open, self.size)
        return BodyPart(headers, path, self.size)

    def discreet(self, said: str) -> str:
        """A server's words without what they repeat of the instance's names."""
        return without_names(said, self.instance) if self.instance is not None else said

    def fail(self, message: str, **facts: Any) -> None:
        """Notes a failure."""
        source = self.instance.path if self.instance is not None and self.temporary is None else None
        reference = self.instance.reference if self.instance is not None else None
        self.outcome = Failure(TRANSFORM, message, reference=reference, source=source, **facts)

    def fail_by(self, error: BaseException) -> None:
        """Notes a failure by an exception."""
        reference = self.instance.reference if self.instance is not None else None
        failure = failure_of(error, TRANSFORM, reference=reference)
        said = error.said if isinstance(error, DICOMwebError) else ""
        if said:
            failure = replace(failure, message=failure.message.replace(said, self.discreet(said)))
        if failure.source is None and self.instance is not None and self.temporary is None:
            failure = replace(failure, source=self.instance.path)
        self.outcome = failure

    def discard(self) -> None:
        """Removes the temporary file, if there is one."""
        if self.temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(self.temporary)
            self.temporary = None


def prepare(storable: Storable, study_instance_uid: str | None) -> StoreItem:
    """Makes an item of something to store; reads only the header of bytes and files.

    Args:
        storable: See `dicomweb_io.clients.protocol.Storable`. An open file is read to its end and stays open.
        study_instance_uid: The study of the request's URL, which the instance has to belong to.

    Returns:
        An item whose outcome is a `Failure` if there is nothing that could be sent.

    Raises:
        TypeError: If it is nothing that can be stored: a mistake in the program, not in the data.
    """
    item = StoreItem()
    try:
        if isinstance(storable, Instance):
            item.instance = storable
        elif isinstance(storable, (bytes, bytearray, memoryview)):
            item.instance = Instance.from_bytes(bytes(storable))
        elif isinstance(storable, (str, os.PathLike)):
            item.instance = Instance.from_path(storable)
        elif hasattr(storable, "read"):
            _read_into(item, cast(BinaryIO, storable))
        elif hasattr(storable, "file_meta") or hasattr(storable, "to_json_dict"):
            item.instance = Instance.from_dataset(cast("Dataset", storable))
        else:
            raise TypeError(
                "what is stored must be an Instance, bytes, a path, a pydicom Dataset or a binary file, not "
                f"{type(storable).__name__}"
            )
        item.size = item.given.size
    except RECOVERABLE as error:
        item.discard()
        source = os.fspath(storable) if isinstance(storable, (str, os.PathLike)) else None
        reason = (
            str(error) if isinstance(error, ValueError) else f"it cannot be read: {error.__class__.__name__}: {error}"
        )
        reference = storable.reference if isinstance(storable, Instance) else None
        item.outcome = Failure(TRANSFORM, f"not sent: {reason}", reference=reference, source=source)
        item.instance = None
        return item
    if study_instance_uid is not None and item.reference.study_instance_uid != study_instance_uid:
        item.fail(f"not sent: it belongs to study {item.reference.study_instance_uid}, not to {study_instance_uid}")
    return item


def _read_into(item: StoreItem, file: BinaryIO) -> None:
    with Spool(max_bytes=DEFAULT_MAX_ELEMENT_BYTES, directory=tempfile.gettempdir()) as spool:
        while chunk := file.read(1 << 20):
            if not isinstance(chunk, bytes):
                raise TypeError("a file to store must be opened for reading bytes (mode 'rb')")
            spool.write(chunk)
        content, item.temporary = spool.finish()
    item.instance = Instance.from_path(item.temporary) if item.temporary else Instance.from_bytes(content or b"")


@dataclass
class Batch:
    """Items that go into one request, in order.

    Args:
        max_bytes: The most bytes, unless a single instance is larger.
        max_count: The most items.
    """

    max_bytes: int
    max_count: int
    items: list[StoreItem] = field(default_factory=list)
    _size: int = 0
    _uids: set[str] = field(default_factory=set)

    def has_room_for(self, item: StoreItem) -> bool:
        """Whether an item may join.

        An answer names instances by UID, so two with the same one never share a request.
        """
        if not self.items:
            return True
        if len(self.items) >= self.max_count:
            return False
        if item.outcome is not None:
            return True
        return self._size + item.size <= self.max_bytes and item.uid not in self._uids

    def add(self, item: StoreItem) -> None:
        """Adds an item."""
        self.items.append(item)
        if item.outcome is None:
            self._size += item.size
            self._uids.add(item.uid)

    def clear(self) -> None:
        """Forgets the items and removes their temporary files."""
        for item in self.items:
            item.discard()
        self.items = []
        self._size = 0
        self._uids = set()
