"""The Store Instances Response Module (PS3.18 Annex I): what an archive says about the instances it was sent.

`parse_store_response` reads it, in whatever form a server sends it. `response_module` writes it from outcomes, for
callers of ``store_instances``. The reasons for failures and warnings (PS3.18 tables I.2-1 and I.2-2) stand here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from dicomweb_io.dicom.json_decode import first_text, first_value, load_json_dataset, loads
from dicomweb_io.dicom.xml_model import parse_native_model
from dicomweb_io.elements import Failure, JSONDataset, StoredInstance

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

REFERENCED_SOP_SEQUENCE = "00081199"
FAILED_SOP_SEQUENCE = "00081198"
OTHER_FAILURES_SEQUENCE = "0008119A"
# Older DICOMcloud builds put what they stored here (DICOMcloud issue 43).
_REFERENCED_INSTANCE_SEQUENCE = "0008114A"
REFERENCED_SOP_CLASS_UID = "00081150"
REFERENCED_SOP_INSTANCE_UID = "00081155"
RETRIEVE_URL = "00081190"
WARNING_REASON = "00081196"
FAILURE_REASON = "00081197"
_ERROR_COMMENT = "00000902"

PROCESSING_FAILURE = 0x0110
OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000
_BEING_STORED = 45071  # Azure's

_REASONS = {
    PROCESSING_FAILURE: "processing failure; some servers say this of an instance that they have, or of another study",
    0x0117: "invalid object instance",
    0x0122: "SOP class not supported",
    0x0124: "not authorized",
    0xB000: "coerced data elements",
    0xB006: "elements discarded",
    0xB007: "the data set does not match the SOP class",
    0xC122: "the server does not support the transfer syntax",
    45070: "the server has an instance with this UID already",
    _BEING_STORED: "an instance with this UID is being stored already",
}


@dataclass
class StoreResponse:
    """The sequences of one answer.

    Attributes:
        stored: Items of ReferencedSOPSequence by SOP Instance UID.
        failed: Items of FailedSOPSequence by SOP Instance UID.
        nameless: Items that report a failure without naming an instance.
        retrieve_url: The Retrieve URL of the study.
    """

    stored: dict[str, JSONDataset] = field(default_factory=dict)
    failed: dict[str, JSONDataset] = field(default_factory=dict)
    nameless: list[JSONDataset] = field(default_factory=list)
    retrieve_url: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing about any instance."""
        return not (self.stored or self.failed or self.nameless)


def parse_store_response(content: bytes) -> StoreResponse:
    """Reads the body of an answer to a store request, JSON or XML; any other body gives an empty response.

    The body alone decides: servers send the module under odd content types and with error statuses, and error pages
    under the module's content type.
    """
    response = StoreResponse()
    for dataset in _datasets(content):
        url = first_text(dataset, RETRIEVE_URL)
        response.retrieve_url = response.retrieve_url or url or None
        for tag in (REFERENCED_SOP_SEQUENCE, _REFERENCED_INSTANCE_SEQUENCE):
            for item in _items(dataset, tag):
                uid = _uid(item)
                if uid:
                    response.stored.setdefault(uid, item)
        for tag in (FAILED_SOP_SEQUENCE, OTHER_FAILURES_SEQUENCE):
            for item in _items(dataset, tag):
                uid = _uid(item)
                if uid:
                    response.failed.setdefault(uid, item)
                else:
                    response.nameless.append(item)
    return response


def _uid(item: JSONDataset) -> str:
    """The instance that an item names; some servers send the padding of the encoded value too (PS3.5 section 9.1)."""
    return first_text(item, REFERENCED_SOP_INSTANCE_UID).strip(" \0")


def _datasets(content: bytes) -> list[JSONDataset]:
    text = content.lstrip(b"\xef\xbb\xbf \t\r\n")
    try:
        if text[:1] == b"<":
            return [parse_native_model(text)]
        document = loads(text) if text[:1] in (b"{", b"[") else None
    except ValueError:
        return []
    datasets = document if isinstance(document, list) else [document]
    return [dataset for dataset in datasets if isinstance(dataset, dict)]


def _items(dataset: JSONDataset, tag: str) -> Iterator[JSONDataset]:
    element = dataset.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    for item in values if isinstance(values, list) else ():
        if isinstance(item, dict):
            yield item


def number_of(item: Mapping[str, Any], tag: str) -> int | None:
    """A code of an item, which may be a number or its text."""
    value = first_value(item, tag)
    try:
        return int(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else None
    except ValueError:
        return None


def describe_reason(code: int | None, item: Mapping[str, Any] | None = None, redact: Callable[[str], str] = str) -> str:
    """A failure or warning reason in words, with the server's comment if it has one (PS3.18 tables I.2-1 and I.2-2).

    Args:
        code: The reason.
        item: What the server said of the instance.
        redact: Takes names out of the server's comment.
    """
    if code is None:
        text = "the server gives no reason"
    elif code in _REASONS:
        text = _REASONS[code]
    elif code & 0xFF00 == OUT_OF_RESOURCES:
        text = "the server is out of resources"
    elif code & 0xFF00 == 0xA900:
        # Azure's 43264 and 43265 are in the same range.
        text = "the data set does not match the SOP class, failed the server's validation, or is of another study"
    elif code & 0xF000 == CANNOT_UNDERSTAND:
        text = "the server cannot understand the data set"
    else:
        text = "failure"
    if code is not None:
        text += f" (reason {code:04X}H)"
    comment = first_text(item, _ERROR_COMMENT) if item is not None else ""
    comment = redact(comment[:200]) if comment else ""
    return f"{text}: {comment}" if comment else text


def is_passing(code: int | None) -> bool:
    """Whether a later attempt may succeed: the server is out of resources (A7xxH), or is storing the instance now."""
    return code is not None and (code & 0xFF00 == OUT_OF_RESOURCES or code == _BEING_STORED)


def response_module(
    outcomes: Iterable[StoredInstance | Failure],
    retrieve_url: str | None = None,
    answers: Sequence[JSONDataset | None] = (),
) -> Dataset:
    """Makes the module from the outcomes of a store.

    Args:
        outcomes: The outcome of each instance. One without a reference is among the other failures (PS3.18 table
            I.1-1).
        retrieve_url: The Retrieve URL of the study, if all were stored into one.
        answers: What is known of each instance beyond that: the item that a server sent, in the same order.
    """
    sequences: dict[str, list[JSONDataset]] = {}
    for outcome, answer in zip_longest(outcomes, answers):
        item: JSONDataset = dict(answer or {})
        if outcome.reference is not None:
            item.setdefault(REFERENCED_SOP_INSTANCE_UID, _element("UI", outcome.reference.sop_instance_uid))
        if isinstance(outcome, StoredInstance):
            tag = REFERENCED_SOP_SEQUENCE
            item.pop(FAILURE_REASON, None)
            if outcome.sop_class_uid:
                item.setdefault(REFERENCED_SOP_CLASS_UID, _element("UI", outcome.sop_class_uid))
            if outcome.retrieve_url:
                item.setdefault(RETRIEVE_URL, _element("UR", outcome.retrieve_url))
        else:
            tag = OTHER_FAILURES_SEQUENCE if outcome.reference is None else FAILED_SOP_SEQUENCE
            item.setdefault(FAILURE_REASON, _element("US", outcome.reason_code or PROCESSING_FAILURE))
        sequences.setdefault(tag, []).append(dict(sorted(item.items())))
    document: JSONDataset = {tag: {"vr": "SQ", "Value": items} for tag, items in sequences.items()}
    if retrieve_url is not None:
        document[RETRIEVE_URL] = _element("UR", retrieve_url)
    return load_json_dataset(dict(sorted(document.items())))


def _element(vr: str, value: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]}
