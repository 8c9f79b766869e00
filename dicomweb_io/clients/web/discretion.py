"""Takes out of a server's words what it repeats of an instance that was sent to it: names, and the patient's number."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydicom._dicom_dict import DicomDictionary
from pydicom.dataset import Dataset

from dicomweb_io.dicom.header_scan import DEFLATED_SYNTAXES
from dicomweb_io.elements import Instance

_SPLIT = re.compile(r"[\s^=,;\\]+")
_SHORTEST = 2
_FIRST_WITHOUT_BLANKS = "\u2e80"  # scripts of East Asia, whose words stand side by side

# Read one by one by their tags, so that nothing else of a large header is parsed.
_TAGS: list[Any] = [
    *sorted(tag for tag, entry in DicomDictionary.items() if entry[0] == "PN"),
    *("PatientID", "OtherPatientIDs", "OtherPatientIDsSequence"),
]


def without_names(said: str, instance: Instance) -> str:
    """A server's words about an instance without its names and patient identifiers, in whole or in part.

    Args:
        said: What the server said.
        instance: The instance, whose header is read.

    Returns:
        The words with ``***`` in place of every name, of every word of a name, and of the patient's identifiers; empty
        if the header cannot be read, and so its names are not known.
    """
    if not said:
        return said
    values = _values(instance)
    if values is None:
        return ""
    for value in sorted(values, key=len, reverse=True):
        said = re.sub(_pattern(value), "***", said, flags=re.IGNORECASE)
    return said


def _pattern(value: str) -> str:
    if value[0] >= _FIRST_WITHOUT_BLANKS:
        return re.escape(value)
    # Not within a longer word or number, nor within a UID.
    before, after = (r"(?<![^\W_])(?<!\d\.)", r"(?![^\W_]|\.\d)")
    return before + re.escape(value) + after


def _values(instance: Instance) -> set[str] | None:
    if instance.transfer_syntax_uid in DEFLATED_SYNTAXES:
        # It would have to be inflated as a whole, however large that is.
        return None
    try:
        dataset = instance.dataset(stop_before_pixels=True, specific_tags=_TAGS)
        texts = list(_texts(dataset))
    except Exception:
        # Whatever a broken header makes pydicom raise: what is being told of the instance must not be lost by it.
        return None
    found = {piece for text in texts for piece in (text, *text.split("="), *_SPLIT.split(text))}
    return {piece.strip() for piece in found if len(piece.strip()) >= _SHORTEST}


def _texts(dataset: Dataset) -> Iterator[str]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield str(item.get("PatientID") or "")
        elif element.value is not None:
            several = isinstance(element.value, (list, tuple)) or type(element.value).__name__ == "MultiValue"
            yield from map(str, element.value if several else [element.value])
