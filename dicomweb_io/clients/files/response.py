"""The Store Instances Response Module (PS3.18 Annex I) from the outcomes of a store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dicomweb_io.clients.files.store import PROCESSING_FAILURE
from dicomweb_io.dicom.json_model import load_json_dataset
from dicomweb_io.elements import Failure, StoredInstance

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def response_module(outcomes: Iterable[StoredInstance | Failure], retrieve_url: str | None) -> Dataset:
    """Says of each instance what became of it.

    Args:
        outcomes: What became of them.
        retrieve_url: The Retrieve URL of the study, if all were stored into one.
    """
    stored: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    other: list[dict[str, Any]] = []
    for outcome in outcomes:
        item: dict[str, Any] = {}
        sop_class = getattr(outcome, "sop_class_uid", None)
        if sop_class:
            item["00081150"] = {"vr": "UI", "Value": [sop_class]}
        if outcome.reference is not None:
            item["00081155"] = {"vr": "UI", "Value": [outcome.reference.sop_instance_uid]}
        if isinstance(outcome, StoredInstance):
            item["00081190"] = {"vr": "UR", "Value": [outcome.retrieve_url]}
            stored.append(item)
        else:
            item["00081197"] = {"vr": "US", "Value": [outcome.reason_code or PROCESSING_FAILURE]}
            (other if outcome.reference is None else failed).append(item)
    document: dict[str, Any] = {}
    if retrieve_url is not None:
        document["00081190"] = {"vr": "UR", "Value": [retrieve_url]}
    for tag, items in (("00081198", failed), ("00081199", stored), ("0008119A", other)):
        if items:
            document[tag] = {"vr": "SQ", "Value": items}
    return load_json_dataset(document)
