"""What is stored: one item for each thing that a caller gives, in whatever form it comes, and batches of items.

`prepare` makes an item, which carries its outcome to the end. Both clients work on items, so that failures read alike.
A server's message about an instance may repeat its patient's name: `StoreItem.redact` masks it.
"""

from __future__ import annotations

import io
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast, get_args

from dicomweb_io.client import DEFAULT_MAX_ELEMENT_BYTES, OnExisting, Storable, Verify
from dicomweb_io.dicom.attributes import tags_of_vr
from dicomweb_io.dicom.header_scan import DEFLATED_SYNTAXES, scan_header
from dicomweb_io.dicom.media_types import DICOM
from dicomweb_io.dicom.part10 import encode_dataset, header_from_scan, header_of, judge
from dicomweb_io.elements import Failure, Instance, JSONDataset, Resource, StoredInstance, open_path
from dicomweb_io.errors import DICOMwebError
from dicomweb_io.failures import RECOVERABLE, failure_of
from dicomweb_io.http.multipart import BodyPart
from dicomweb_io.http.redaction import spelled
from dicomweb_io.spool import MEMORY_THRESHOLD, Spool

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

logger = logging.getLogger("dicomweb_io")

TRANSFORM = "StoreInstances"

_WORD_ENDS = re.compile(r"[\s^=,;\\]+")
_MIN_LENGTH = 2
_FIRST_READ = 16384
_CHUNK = 1 << 18
_FIRST_WITHOUT_BLANKS = "\u2e80"  # scripts of East Asia, whose words stand side by side
_PATIENT_IDS: tuple[str, ...] = ("PatientID", "OtherPatientIDs", "OtherPatientIDsSequence")


def check_options(on_existing: OnExisting, verify: Verify) -> None:
    """Checks how instances are to be stored.

    Raises:
        ValueError: If a value is not one of those that the type allows.
    """
    for name, value, allowed in (("on_existing", on_existing, OnExisting), ("verify", verify, Verify)):
        if value not in get_args(allowed):
            raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, not {value!r}")


@dataclass
class StoreItem:
    """One instance that is being stored.

    Attributes:
        instance: The instance; None if the input holds none.
        size: Bytes of its file.
        outcome: Its outcome; None while that is open.
        answer: What the server said of it: an item of its response module.
        temporary: A file to remove when the outcome is out.
        source: The file that the caller gave, if it is one.
        existed: Whether the destination had its UID before; None if unknown.
        must_be_same: Whether another object with its UID in the destination is a failure.
        study_url: The Retrieve URL of the study, from the answer.
    """

    instance: Instance | None = None
    size: int = 0
    outcome: StoredInstance | Failure | None = None
    answer: JSONDataset | None = None
    temporary: str | None = None
    source: str | None = None
    existed: bool | None = None
    must_be_same: bool = False
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

    def redact(self, message: str) -> str:
        """A server's message without the instance's names, should it repeat them."""
        return without_names(message, self.instance) if self.instance is not None else message

    def succeed(self, outcome: Literal["stored", "exists", "replaced"], verified: str, **facts: Any) -> None:
        """Notes a success; `facts` are further members of `StoredInstance`."""
        given = self.given
        if outcome != "exists":
            facts.update(warnings=given.warnings, transfer_syntax_uid=given.transfer_syntax_uid)
        self.outcome = StoredInstance(
            self.reference, outcome, sop_class_uid=given.sop_class_uid, verified=verified, **facts
        )

    def fail(self, message: str, **facts: Any) -> None:
        """Notes a failure; `facts` are further members of `Failure`."""
        reference = self.instance.reference if self.instance is not None else None
        self.outcome = Failure(TRANSFORM, message, reference=reference, source=self.source, **facts)

    def fail_by(self, error: BaseException, *, reason_code: int | None = None) -> None:
        """Notes a failure by an exception."""
        reference = self.instance.reference if self.instance is not None else None
        failure = failure_of(error, TRANSFORM, reference=reference, source=self.source)
        server_words = error.server_message if isinstance(error, DICOMwebError) else ""
        # Without the names of the instance it is no secret: it says why the server does not take it.
        message = failure.message.replace(server_words, self.redact(server_words)) if server_words else failure.message
        self.outcome = replace(failure, message=message, server_message=None, reason_code=reason_code)

    def discard(self) -> None:
        """Removes the temporary file, if there is one."""
        if self.temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(self.temporary)
            self.temporary = None


def prepare(storable: Storable, study_instance_uid: str | None) -> StoreItem:
    """Makes an item of something to store; reads only the header of bytes and files.

    Args:
        storable: See `inspect`.
        study_instance_uid: The study of the request's URL, which the instance has to belong to.

    Returns:
        An item, whose outcome is a `Failure` if it cannot be sent.

    Raises:
        TypeError: If it cannot be stored: a mistake in the program, not in the data.
    """
    try:
        item = inspect(storable)
    except RECOVERABLE as error:
        reason = (
            str(error) if isinstance(error, ValueError) else f"it cannot be read: {error.__class__.__name__}: {error}"
        )
        reference = storable.reference if isinstance(storable, Instance) else None
        # The file of an instance that is gone is not what the caller gave.
        source = None if isinstance(storable, Instance) else source_of(storable)
        return StoreItem(outcome=Failure(TRANSFORM, f"not sent: {reason}", reference=reference, source=source))
    if study_instance_uid is not None and item.reference.study_instance_uid != study_instance_uid:
        item.fail(f"not sent: it belongs to study {item.reference.study_instance_uid}, not to {study_instance_uid}")
    return item


def inspect(
    storable: Storable, *, max_bytes: int = DEFAULT_MAX_ELEMENT_BYTES, directory: str | None = None
) -> StoreItem:
    """Makes an item of something to store; reads only the header of bytes and local files.

    What takes requests to read is read once if it is small; a larger file stays where it is and is sent from there.

    Args:
        storable: See `dicomweb_io.client.Storable`. An open file is read to its end and stays open.
        max_bytes: What may be in memory of an open file; the rest goes to a temporary file, which the item owns.
        directory: Where that is made; by default the system's temporary directory.

    Raises:
        OSError, DICOMError: If it cannot be read, is not DICOM, or lacks a UID.
        TypeError: If it cannot be stored: a mistake in the program, not in the data.
    """
    item = StoreItem(source=source_of(storable))
    try:
        if isinstance(storable, Instance):
            item.instance = storable
        elif isinstance(storable, (bytes, bytearray, memoryview)):
            item.instance = _inspected(bytes(storable))
        elif item.source is not None and "://" in item.source:
            _read_remote(item, item.source, min(max_bytes, MEMORY_THRESHOLD), directory)
        elif item.source is not None:
            item.instance = _inspected(None, item.source)
        elif hasattr(storable, "read"):
            _read_into(item, cast(BinaryIO, storable), max_bytes, directory)
        elif hasattr(storable, "file_meta") or hasattr(storable, "to_json_dict"):
            item.instance = _inspected(encode_dataset(cast("Dataset", storable)))
        else:
            raise TypeError(
                "only an Instance, bytes, a path, a pydicom Dataset or a binary file can be stored, not "
                f"{type(storable).__name__}"
            )
        item.size = item.size or item.given.size
    except BaseException:
        item.discard()
        raise
    return item


def source_of(storable: Any) -> str | None:
    """The path of what is a file, or is in one."""
    if isinstance(storable, Instance):
        return storable.path
    return os.fspath(storable) if isinstance(storable, (str, os.PathLike)) else None


def _inspected(content: bytes | None, path: str | None = None) -> Instance:
    """An instance of the bytes of a local file, with what is odd about it, by one look at its header.

    Whether it is whole is not considered.
    """
    with io.BytesIO(content) if content is not None else open_path(str(path)) as file:
        size = file.seek(0, os.SEEK_END)
        scan = scan_header(file, size=size, first_read=_FIRST_READ)
        header = header_from_scan(scan)
        warnings = judge(file, size=size, scan=scan).warnings
    reference = Resource.of_header(header)
    if warnings:
        logger.warning("%s is sent unchanged: %s", reference.uri, "; ".join(warnings))
    return Instance(reference, header.transfer_syntax_uid, content, path, header.sop_class_uid, warnings)


def _read_remote(item: StoreItem, path: str, max_bytes: int, directory: str | None) -> None:
    with open_path(path) as file:
        head = b""
        while len(head) <= max_bytes and (chunk := file.read(max_bytes + 1 - len(head))):
            head += chunk
        if len(head) <= max_bytes:
            item.instance = _inspected(head)
            return
        try:
            item.size = file.seek(0, os.SEEK_END)
        except ValueError:
            # The server of the file knows neither its length nor ranges, so it cannot be sent from there.
            _read_into(item, file, max_bytes, directory, head)
            return
        header = header_of(file, size=item.size)
    item.instance = Instance(
        Resource.of_header(header), header.transfer_syntax_uid, path=path, sop_class_uid=header.sop_class_uid
    )


def _read_into(item: StoreItem, file: BinaryIO, max_bytes: int, directory: str | None, head: bytes = b"") -> None:
    with Spool(max_bytes=max_bytes, directory=directory or tempfile.gettempdir()) as spool:
        if head:
            spool.write(head)
        while chunk := file.read(_CHUNK):
            if not isinstance(chunk, bytes):
                raise TypeError("a file to store must be opened for reading bytes (mode 'rb')")
            spool.write(chunk)
        content, item.temporary = spool.finish()
    item.instance = _inspected(None, item.temporary) if item.temporary else _inspected(content or b"")


@dataclass
class Batch:
    """Items that go into one request, in order.

    Args:
        max_bytes: The maximum number of bytes, unless a single instance is larger.
        max_count: The maximum number of items.
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


def without_names(message: str, instance: Instance) -> str:
    """A server's message about an instance without its names and patient identifiers, in whole or in part.

    Args:
        message: What the server said.
        instance: The instance, whose header is read.

    Returns:
        The message with ``***`` for every name, every word of a name, and the patient's identifiers; empty if the
        header cannot be read, because its names are unknown then.
    """
    values = _values(instance) if message else set()
    if values is None:
        return ""
    for value in sorted(values, key=len, reverse=True):
        message = re.sub(_pattern(value), "***", message, flags=re.IGNORECASE)
    return message


def _pattern(value: str) -> str:
    if value[0] >= _FIRST_WITHOUT_BLANKS:
        return spelled(value)
    # Not within a longer word or number, nor within a UID.
    before, after = (r"(?<![^\W_])(?<!\d\.)", r"(?![^\W_]|\.\d)")
    return before + spelled(value) + after


def _values(instance: Instance) -> set[str] | None:
    if instance.transfer_syntax_uid in DEFLATED_SYNTAXES:
        # It would have to be inflated as a whole, however large that is.
        return None
    try:
        # Elements are read one by one by their tags, so that nothing else of a large header is parsed.
        tags: list[Any] = [*tags_of_vr("PN"), *_PATIENT_IDS]
        texts = list(_texts(instance.dataset(stop_before_pixels=True, specific_tags=tags)))
    except Exception:
        # A broken header makes pydicom raise anything, and must not hide the message about the instance.
        return None
    pieces = {piece.strip() for text in texts for piece in (text, *text.split("="), *_WORD_ENDS.split(text))}
    return {piece for piece in pieces if len(piece) >= _MIN_LENGTH}


def _texts(dataset: Dataset) -> Iterator[str]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield str(item.get("PatientID") or "")
        elif element.value is not None:
            several = isinstance(element.value, (list, tuple)) or type(element.value).__name__ == "MultiValue"
            yield from map(str, element.value if several else [element.value])
