"""Takes out of a server's words what it repeats of an instance that was sent to it: names, and the patient's number."""

from __future__ import annotations

import re
from typing import Any

from pydicom._dicom_dict import DicomDictionary
from pydicom.errors import InvalidDicomError

from dicomweb_io.elements import Instance

_SPLIT = re.compile(r"[\s^=,;\\]+")
_SHORTEST = 2

# Read one by one by their tags, so that nothing else of a large header is parsed.
_TAGS: list[Any] = [
    *sorted(tag for tag, entry in DicomDictionary.items() if entry[0] == "PN"),
    *("PatientID", "OtherPatientIDs"),
]


def without_names(message: str, instance: Instance) -> str:
    """A message without the names and patient identifiers of an instance, in whole or in part.

    Args:
        message: A message that may hold what a server said about the instance.
        instance: The instance, whose header is read.

    Returns:
        The message with ``***`` in place of every name, of every word of a name, and of the patient's identifiers. If
        the header cannot be read, and so its names are not known, the message as it is.
    """
    for value in sorted(_values(instance), key=len, reverse=True):
        # Not within a UID or a longer word.
        message = re.sub(rf"(?<![\w.]){re.escape(value)}(?!\w|\.\w)", "***", message, flags=re.IGNORECASE)
    return message


def _values(instance: Instance) -> set[str]:
    try:
        dataset = instance.dataset(stop_before_pixels=True, specific_tags=_TAGS)
        texts = [str(item) for element in dataset for item in _items(element.value)]
    except (InvalidDicomError, ValueError, OSError, EOFError, LookupError, NotImplementedError):
        return set()
    found = {piece for text in texts for piece in (text, *text.split("="), *_SPLIT.split(text))}
    return {piece.strip() for piece in found if len(piece.strip()) >= _SHORTEST}


def _items(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue" else [value]
