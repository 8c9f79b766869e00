"""Unique identifiers: what may stand in a UID, and therefore in a URL or a file name (PS3.5 section 9)."""

from __future__ import annotations

import re

_STRICT = re.compile(r"[0-9]+(?:\.[0-9]+)*\Z")
_PERMISSIVE = re.compile(r"[^/\\@\x00-\x20?#%]+\Z")
_MAX_LENGTH = 64


def is_uid(value: object, *, permissive: bool = False) -> bool:
    """Tells whether a value is usable as a UID.

    Args:
        value: Anything; only `str` can be a UID.
        permissive: Accept any text of at most 64 characters that can stand as one segment of a URL path
            (no slash, backslash, ``@``, ``%``, ``?``, ``#``, white space or control character; not ``.`` or ``..``).
            Some archives hold such identifiers. The strict form accepts digits separated by single dots.
    """
    if not isinstance(value, str) or not value or len(value) > _MAX_LENGTH:
        return False
    if permissive:
        return bool(_PERMISSIVE.match(value)) and value not in (".", "..")
    return bool(_STRICT.match(value))


def check_uid(value: object, name: str, *, permissive: bool = False) -> str:
    """Returns `value` if it is a UID.

    Leading zeros in a component are accepted although PS3.5 forbids them: archives hold such UIDs.

    Args:
        value: The candidate.
        name: What it is, for the message (``"study_instance_uid"``).
        permissive: See `is_uid`.

    Raises:
        TypeError: If it is not a `str`.
        ValueError: If it is not a UID. The message shows the value, shortened.
    """
    if value is None:
        raise ValueError(f"{name} is required, but is None")
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, but is {type(value).__name__}")
    if not is_uid(value, permissive=permissive):
        shown = value if len(value) <= _MAX_LENGTH else value[:_MAX_LENGTH] + "…"
        rule = (
            "at most 64 characters that can stand in one URL segment"
            if permissive
            else ("digits separated by single dots, at most 64 characters")
        )
        raise ValueError(f"{name} is not a valid UID: {shown!r} (expected {rule})")
    return value


def is_safe_name(uid: str) -> bool:
    """Whether a UID can be the name of a file or directory on any filesystem.

    UIDs of PS3.5 always can. Of the other identifiers that archives hold those can that consist of letters, digits,
    dots, hyphens and underscores, do not begin or end with a dot, and are no device of Windows.
    """
    return is_uid(uid, permissive=True) and _NAME.match(uid) is not None and _DEVICE.match(uid) is None


_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?\Z")


_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|\Z)", re.IGNORECASE)
