"""The exceptions of this package, as one tree.

::

    requests.HTTPError
    └── DICOMwebError                   a request to an archive failed
        ├── ConnectionFailedError           no answer arrived (also a requests.ConnectionError)
        │   └── TimedOutError                   nothing arrived within the timeout (also a requests.Timeout)
        ├── DeadlineExceededError           the operation took longer than its deadline (also a requests.Timeout)
        ├── RedirectError                   the server redirects where the client does not follow
        ├── CredentialsError                there are no valid credentials
        ├── ResponseIncompleteError         the answer ended early, or nothing proves that it is complete
        ├── MalformedResponseError          the answer is not what was asked for
        │   ├── FilterIgnoredError              the rows of a search contradict its filters
        │   ├── PagingError                     a search cannot be paged to its end
        │   └── SearchIncompleteError           a search ends before all announced rows, or with rows that are none
        ├── TooManyResultsError             a search finds more than the server returns
        ├── StoreError                      some instances were not stored
        └── FileClientError                 a request to a folder failed, as a server would have answered it
    ValueError
    └── DICOMError                      data, or a name of data, are at fault
        ├── InvalidIdentifierError, FilterError, Part10Error, DatasetError, FrameError, TranscodingError,
        │   RenderingError …                see `dicomweb_io.dicom.errors`
        ├── ElementTooLargeError            something is too large for memory, and there is no spool directory
        ├── UnsupportedError                the archive has no such operation
        └── UserFunctionError               a function that the user gave raised something

Exceptions of one room are defined in that room: `BodySourceError` of `dicomweb_io.http.multipart` and
`ConflictingDuplicatesError` of `dicomweb_io.files.index` are `DICOMError` too, `SourceChangedError` of
`dicomweb_io.files.places` is an `OSError`. `MultipartError` and `DecodingError` do not leave `dicomweb_io.http`: they
become a `ResponseIncompleteError` or a `MalformedResponseError`. `UsageError` of `dicomweb_io.options` is a wrong use
of a command or job, `TransformFailed` of the transforms ends a pipeline, and `WorkCancelled` of `dicomweb_io.pool` ends
a task.

What `dicomweb_io.failures.RECOVERABLE` names becomes a `Failure` where a transform or a job collects failures: both
branches, and what operating systems raise (`OSError`). Any other exception, such as a `TypeError` or a plain
`ValueError`, is a mistake in a program or an invalid argument, and is always raised.

Messages name the method, the URL without user information and query, the status, the number of attempts and what the
server said. The `response` that an error carries has its own copy of the request, without credentials and query, so
that an error can be logged and pickled.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import requests

from dicomweb_io.dicom.errors import (
    DatasetError,
    DICOMDIRError,
    DICOMError,
    FilterError,
    FrameError,
    IncompleteDICOMError,
    InvalidIdentifierError,
    MissingUIDError,
    NotDICOMError,
    Part10Error,
    RenderingError,
    RenderingUnavailableError,
    TranscodingError,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from dicomweb_io.elements import Failure, StoredInstance

__all__ = [
    "ConnectionFailedError",
    "CredentialsError",
    "DICOMDIRError",
    "DICOMError",
    "DICOMwebError",
    "DatasetError",
    "DeadlineExceededError",
    "ElementTooLargeError",
    "FileClientError",
    "FilterError",
    "FilterIgnoredError",
    "FrameError",
    "IncompleteDICOMError",
    "InvalidIdentifierError",
    "MalformedResponseError",
    "MissingUIDError",
    "NotDICOMError",
    "PagingError",
    "Part10Error",
    "RedirectError",
    "RenderingError",
    "RenderingUnavailableError",
    "ResponseIncompleteError",
    "SearchIncompleteError",
    "StoreError",
    "TimedOutError",
    "TooManyResultsError",
    "TranscodingError",
    "UnsupportedError",
    "UserFunctionError",
    "http_error",
    "log_text",
    "plain_text",
    "safe_url",
]


class DICOMwebError(requests.HTTPError):
    """A request failed. The subclasses say how.

    Attributes:
        status: The HTTP status; None if no answer arrived.
        url: The URL without user information and query.
        method: The HTTP method.
        attempts: How often it was tried.
        retryable: Whether trying again later may help.
        detail: What happened or what the server said, without the method and URL.
        server_message: The part of `detail` that the server wrote. It is left out of logs, because it may name a
            patient.
        retry_after: Seconds that the server asked to wait, if it did.
        response: The answer, as in requests; None if none arrived. Its body is cut after 1 MiB, its request holds
            neither credentials nor query.
    """

    def __init__(
        self,
        detail: str = "",
        *,
        status: int | None = None,
        url: str = "",
        method: str = "",
        attempts: int = 1,
        retryable: bool = False,
        retry_after: float | None = None,
        response: requests.Response | None = None,
    ) -> None:
        super().__init__(detail, response=response)
        self.detail = detail
        self.server_message = ""
        self.status = status if status is not None else (response.status_code if response is not None else None)
        self.url = safe_url(url)
        self.method = method
        self.attempts = attempts
        self.retryable = retryable
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self._message(self.detail)

    @property
    def log_text(self) -> str:
        """The message without the server's own text, for logs."""
        return self._message(self.detail.replace(self.server_message, "").strip("; "))

    def _message(self, detail: str) -> str:
        words = [" ".join(filter(None, (self.method, self.url)))]
        if self.status is not None:
            words.append(f"HTTP {self.status}")
        if detail:
            words.append(detail)
        text = plain_text(": ".join(filter(None, words))) or "request failed"
        return f"{text} (after {self.attempts} attempts)" if self.attempts > 1 else text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.detail, dict(self.__dict__))


def _restore(cls: type[DICOMwebError], detail: str, state: Mapping[str, Any]) -> DICOMwebError:
    error = cls.__new__(cls, detail)
    error.args = (detail,)
    error.__dict__.update(state)
    return error


class ConnectionFailedError(DICOMwebError, requests.ConnectionError):
    """No answer arrived: refused, name not found, TLS failure, or a connection that broke before the answer.

    Attributes:
        sent: Whether anything of the request may have reached the server.
        stale: Whether the request used an idle connection that the server had already closed.
    """

    sent: bool = True
    stale: bool = False


class TimedOutError(ConnectionFailedError, requests.Timeout):
    """The server did not accept a connection, or sent nothing, for as long as `timeout` allows."""


class DeadlineExceededError(DICOMwebError, requests.Timeout):
    """The operation was not complete at its deadline, retries included. Never retried."""


class RedirectError(DICOMwebError):
    """A redirect that is not followed: a loop, one to plain HTTP, or one of a request with a body to another host."""


class CredentialsError(DICOMwebError):
    """There are no valid credentials: a missing variable or file, a failing command, a token endpoint that refuses."""


class ResponseIncompleteError(DICOMwebError):
    """The body of an answer ended early, or lacks the proof that it is complete.

    For example fewer bytes than Content-Length, an unfinished chunk, a missing closing boundary, or the wrong number
    of parts.
    """


class MalformedResponseError(DICOMwebError):
    """The answer is not what was asked for: a login page, bad JSON, an unexpected content type, bad gzip, too large."""


class FilterIgnoredError(MalformedResponseError):
    """A search returned rows that contradict its filters: the server ignored a filter and would return everything."""


class PagingError(MalformedResponseError):
    """A search cannot be paged to its end: ``offset`` is ignored, pages repeat, or a cap of the server is reached."""


class SearchIncompleteError(MalformedResponseError):
    """A search ended, and not all of its rows came: fewer than were announced, or some that cannot be read.

    It is raised after all rows that came.

    Attributes:
        rows: The rows that came, where a list of them was to be returned.
    """

    rows: Sequence[Mapping[str, Any]] = ()


class TooManyResultsError(DICOMwebError):
    """A search finds more rows than the server returns; narrow it."""


class StoreError(DICOMwebError):
    """Some instances were not stored.

    Attributes:
        dataset: The Store Instances Response Module of all answers together, as a pydicom dataset (PS3.18 Annex I).
        outcomes: A `StoredInstance` or `Failure` for each instance, in the order they were given.
    """

    def __init__(
        self,
        detail: str = "",
        *,
        dataset: Dataset | None = None,
        outcomes: Sequence[StoredInstance | Failure] = (),
        **context: Any,
    ) -> None:
        super().__init__(detail, **context)
        self.dataset = dataset
        self.outcomes = tuple(outcomes)


class FileClientError(DICOMwebError):
    """A request to a folder failed: a `requests.HTTPError` whose response a server could have sent."""


def http_error(status: int, detail: str, *, url: str, method: str = "GET", retryable: bool = False) -> FileClientError:
    """Makes an error with the response that a server would have given.

    Args:
        status: The HTTP status that says best what happened.
        detail: What happened, and what can be done.
        url: What was asked for.
        method: The HTTP method that a server would have been asked with.
        retryable: Whether trying again later may help.
    """
    response = requests.Response()
    response.status_code = status
    response.reason = HTTPStatus(status).phrase
    response.url = url
    response.encoding = "utf-8"
    response.headers["Content-Type"] = "application/json"
    response._content = json.dumps({"HttpStatus": status, "Message": detail}).encode()
    response._content_consumed = True  # type: ignore[attr-defined]
    request = requests.PreparedRequest()
    request.method = method
    request.url = url
    request.headers = requests.structures.CaseInsensitiveDict()
    request.hooks = {"response": []}
    response.request = request
    return FileClientError(detail, status=status, url=url, method=method, retryable=retryable, response=response)


class ElementTooLargeError(DICOMError):
    """An instance, frame or value is larger than may be held in memory, and no spool directory was given for it."""


class UnsupportedError(DICOMError):
    """The archive has no such operation, or cannot take it in this form. Nothing was sent."""


class UserFunctionError(DICOMError):
    """A function that the user gave raised something. The message names both, and no value of the element."""


# Where the next filesystem of a chain begins.
_CHAIN = re.compile(r"::(?=[A-Za-z][\w+.-]*://)")
_OBJECT_STORES = re.compile(r"(?:(?P<azure>abfss?|az|adl)|s3a?|gs|gcs)://", re.IGNORECASE)


def safe_url(url: str) -> str:
    """The URL without user information, query and fragment, for messages and logs.

    In an object store ``?`` and ``#`` are parts of a name, and what stands before the ``@`` is a container of Azure:
    both are kept, unless there is an ``=`` or a ``:``, also encoded, which could come before a secret. Each filesystem
    of a chain has its own.

    Never raises. If the text is not a URL, everything up to the last ``@`` of the authority and from the first ``?`` or
    ``#`` on is removed.
    """
    if len(chain := _CHAIN.split(str(url))) > 1:
        return "::".join(safe_url(part) if re.search("[@?#]", part) else part for part in chain)
    text = re.split(r"[?#]", str(url), maxsplit=1)[0]
    store, rest = _OBJECT_STORES.match(text), str(url)[len(text) :]
    if not store or re.search("=|%(25)*3d", rest, re.IGNORECASE):
        rest = ""
    try:
        parts = urlsplit(text)
        user, _, place = parts.netloc.rpartition("@")
        if store and store["azure"] and not re.search(":|%(25)*3a", user, re.IGNORECASE):
            place = parts.netloc
        return urlunsplit((parts.scheme, place, parts.path, "", "")) + rest
    except ValueError:
        return text.rpartition("@")[2]


_REORDERS = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])


def plain_text(text: str) -> str:
    """Text of an archive as one line for a terminal: without control characters and marks that reverse the writing."""
    if text.isascii() and text.isprintable():
        return text
    kept = (" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in text)
    return "".join(kept).translate(_REORDERS)


def log_text(error: BaseException) -> str:
    """What an error says, for a log: without a server's own words, which may name a patient."""
    return error.log_text if isinstance(error, DICOMwebError) else str(error)
