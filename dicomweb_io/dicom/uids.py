"""Unique identifiers (PS3.5 section 9): what may stand in a UID, and the transfer syntaxes that code has to name."""

from __future__ import annotations

import re
from urllib.parse import quote

from dicomweb_io.dicom.errors import InvalidIdentifierError

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
RLE_LOSSLESS = "1.2.840.10008.1.2.5"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
HTJ2K_LOSSLESS = "1.2.840.10008.1.2.4.201"

_STRICT = re.compile(r"[0-9]+(?:\.[0-9]+)*\Z")
_PERMISSIVE = re.compile(r"[^/\\@\x00-\x1f\x7f\ud800-\udfff]+\Z")
_FILE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._ !#$&'()+,;=\[\]^{}-]*[A-Za-z0-9_!#$&'()+,;=\[\]^{}-])?\Z")
_PADDING = " \0"
_WINDOWS_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|\Z)", re.IGNORECASE)
_MAX_LENGTH = 64


def is_uid(value: object, *, permissive: bool = False) -> bool:
    """Tells whether a value is usable as a UID.

    Args:
        value: Anything; only `str` can be a UID.
        permissive: Accept any text of at most 64 characters without slash, backslash, ``@`` and control characters,
            and without blanks at its ends, except ``.`` and ``..``. Some archives hold such identifiers. The strict
            form accepts digits separated by single dots.
    """
    if not isinstance(value, str) or not value or len(value) > _MAX_LENGTH:
        return False
    if permissive:
        return bool(_PERMISSIVE.match(value)) and value not in (".", "..") and value == value.strip(_PADDING)
    return bool(_STRICT.match(value))


def name_of_uid(uid: str) -> str:
    """The name of a registered UID, such as ``"CT Image"`` (without the word Storage); an unknown one is returned."""
    from pydicom import uid as uids

    return str(uids.UID(uid).name).removesuffix(" Storage")


def is_image_class(uid: str | None) -> bool:
    """Tells whether objects of a SOP Class are images, which have pixel data; False for unknown classes."""
    from pydicom import uid as uids

    name = uids.UID(uid or "").name
    return "Image Storage" in name or name in ("Segmentation Storage", "Parametric Map Storage")


def check_uid(value: object, name: str, *, permissive: bool = False) -> str:
    """Returns `value` if it is a UID; of the permissive form without its padding.

    Leading zeros in a component are accepted although PS3.5 forbids them: archives hold such UIDs.

    Args:
        value: The candidate.
        name: What it is, for the message (``"study_instance_uid"``).
        permissive: See `is_uid`.

    Raises:
        TypeError: If it is not a `str`.
        InvalidIdentifierError: If it is not a UID. The message shows the value, shortened.
    """
    if value is None:
        raise InvalidIdentifierError(f"{name} is required, but is None")
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, but is {type(value).__name__}")
    if permissive:
        value = value.strip(_PADDING)
    if not is_uid(value, permissive=permissive):
        shown = value if len(value) <= _MAX_LENGTH else value[:_MAX_LENGTH] + "…"
        rule = "digits separated by single dots, at most 64 characters"
        if permissive:
            rule = "at most 64 characters, no slash, backslash, @ or control character, not . or .."
        elif is_uid(value.strip(_PADDING), permissive=True):
            rule += "; permissive_uid=True accepts other identifiers"
        raise InvalidIdentifierError(f"{name} is not a valid UID: {shown!r} (expected {rule})")
    return value


def path_segment(uid: str) -> str:
    """A UID as one segment of a URL's path; what is not a letter, a digit or one of ``-._~:`` is escaped."""
    return quote(uid, safe="-._~:")


def is_safe_name(uid: str) -> bool:
    """Whether a UID can be the name of a file or directory on any filesystem, as `file_name` writes it.

    UIDs of PS3.5 always can. Another identifier can if it consists of letters, digits, blanks and harmless punctuation
    of ASCII, begins with a letter or digit, does not end with a dot, and is not the name of a Windows device.
    """
    return is_uid(uid, permissive=True) and _FILE_NAME.match(uid) is not None and _WINDOWS_DEVICE.match(uid) is None


def file_name(uid: str) -> str:
    """The name of a file or directory for a UID: what is not a letter, a digit or one of ``-._`` is escaped.

    Raises:
        InvalidIdentifierError: If it cannot be a name.
    """
    if not is_safe_name(uid):
        raise InvalidIdentifierError(
            f"{uid!r} cannot be part of a file's path, so the instance cannot be stored in a folder"
        )
    return quote(uid, safe="")
