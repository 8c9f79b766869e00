"""From an exception to a `Failure`: the one place that decides what a dead letter says about an error."""

from __future__ import annotations

import errno

from dicomweb_io.elements import Failure, Resource
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


def _file_of(error: BaseException) -> str | None:
    name = getattr(error, "filename", None)
    return name if isinstance(name, str) else None
