"""From an exception to a `Failure`: the one place that decides what a dead letter says about an error."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from dicomweb_io.dicom.uids import is_uid
from dicomweb_io.elements import COLLECTIONS, Failure, Resource, SearchQuery, shown_keys
from dicomweb_io.errors import DeadlineExceededError, DICOMError

RECOVERABLE = (OSError, DICOMError, EOFError)
"""What an archive, a network, a disk or bad data can raise. (`requests.RequestException` is an `OSError`.)

Anything else, such as a `TypeError` or a plain `ValueError`, is a mistake in a program and never becomes a `Failure`.
"""

_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR, errno.ESTALE}


def failure_of(
    error: BaseException,
    transform: str,
    *,
    reference: Resource | None = None,
    rows: tuple[int, int] | None = None,
    source: str | None = None,
) -> Failure:
    """Makes the record of something that could not be done.

    Args:
        error: What was raised. What a `DICOMwebError` knows (status, URL without query, attempts) is taken over.
        transform: The operation, such as ``"RetrieveInstances"``.
        reference: What it was done to.
        rows: The half-open row range of a search that is lost.
        source: The file concerned.
    """
    message = str(error) or type(error).__name__
    retryable = getattr(error, "retryable", None)
    if isinstance(error, DeadlineExceededError):
        # The deadline is over, so it is not retried now; a later attempt has a new deadline.
        retryable = True
    if not isinstance(retryable, bool):
        retryable = isinstance(error, (ConnectionError, TimeoutError)) or (
            isinstance(error, OSError) and error.errno in _PASSING
        )
    status = getattr(error, "status", None)
    url = getattr(error, "url", None)
    attempts = getattr(error, "attempts", None)
    return Failure(
        transform,
        message,
        reference=reference,
        rows=rows,
        source=source if source is not None else _file_of(error),
        url=url if isinstance(url, str) and url else None,
        status=status if isinstance(status, int) else None,
        attempts=attempts if isinstance(attempts, int) else 1,
        retryable=retryable,
        server_message=getattr(error, "server_message", None) or None,
    )


def not_tried(reason: str, transform: str, *, reference: Resource | None = None, source: str | None = None) -> Failure:
    """The record of something that was left, because its archive cannot be asked any more.

    It counts no attempt. A later run can do it: the record is a line of a list as any other.
    """
    return Failure(transform, f"not tried: {reason}", reference=reference, source=source, attempts=0, retryable=True)


_MAX_DESCRIPTION = 200

_LONG_UID = re.compile(r"(?<![0-9.])[0-2](?:\.[0-9]+){5,}(?![0-9.])")


def describe_element(element: Any) -> str:
    """Says what an element is without its values: type, size or keys, and UIDs, in at most 200 characters.

    Names, identifiers of patients, paths, payload and secrets are no part of it.
    """
    if isinstance(element, Resource):
        return element.uri[:_MAX_DESCRIPTION]
    if isinstance(element, SearchQuery):
        by = ", ".join(key for key, _ in element.search_filters)
        return f"search for {COLLECTIONS[element.level]}{by and ' by ' + by}"[:_MAX_DESCRIPTION]
    text = type(element).__name__
    if text.startswith("BeamSchema_"):
        text = "Row"  # as Beam decodes it, under a name that is random in each process
    uids: Iterable[str]
    if isinstance(element, str):
        text += f" of {len(element)} characters"
        uids = [element] if "." in element and is_uid(element) else _LONG_UID.findall(element)
    elif isinstance(element, (bytes, bytearray, memoryview)):
        text, uids = f"{text} of {len(element)} bytes", ()
    else:
        attributes = attributes_of(element)
        if attributes:
            text += f" with {shown_keys(attributes)}"
        elif isinstance(element, (tuple, list, set, frozenset, dict)):
            text += f" of {len(element)}"
        uids = _uids_in(attributes.values())
    found = " ".join(dict.fromkeys(uids))
    if found:
        # The UIDs say most, so they are kept when the keys are cut.
        found = f": {found}"[:_MAX_DESCRIPTION]
        room = _MAX_DESCRIPTION - len(found)
        text = text if len(text) <= room else text[: max(room - 1, 0)] + "…"
    return (text + found)[:_MAX_DESCRIPTION]


def attributes_of(element: Any) -> dict[Any, Any]:
    """What an element holds by name: a mapping, a row, a named tuple or a dataclass."""
    if isinstance(element, Mapping):
        return dict(element)
    names = getattr(element, "_fields", None)
    if names is None and is_dataclass(element):
        names = [item.name for item in fields(element)]
    if names is None:
        # A `beam.Row` and an ordinary object.
        return dict(getattr(element, "__dict__", None) or {})
    return {name: getattr(element, name, None) for name in names}


def _uids_in(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        if isinstance(value, Resource):
            yield value.uri
            continue
        element = value.get("Value") if isinstance(value, Mapping) else value
        for one in element if isinstance(element, (list, tuple)) else (element,):
            if isinstance(one, str) and _LONG_UID.fullmatch(one) and is_uid(one):
                yield one


def _file_of(error: BaseException) -> str | None:
    name = getattr(error, "filename", None)
    return name if isinstance(name, str) else None
