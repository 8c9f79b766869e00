"""The errors of the HTTP layer: `requests.HTTPError`s that say what was tried and what came back, and hold no secret.

Messages name the method, the URL without user information and query, the status, the number of attempts and what the
server said. The `response` that an error carries has its own copy of the request, without credentials and query, so
that an error can be logged and pickled.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus, urlsplit, urlunsplit

import requests

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from dicomweb_io.elements import Failure, StoredInstance


# ----------------------------------------------------------------------------------------------------------------------


_SHOWN_HEADERS = frozenset({"accept", "accept-encoding", "content-type", "content-length", "range", "user-agent"})
_MESSAGE_KEYS = ("Message", "Details", "message", "errorMessage", "error_description", "detail", "title", "error")
_MAX_MESSAGE = 300
# What the HTTP library sends by itself; anything else in a request may be somebody's key.
_KNOWN_HEADERS = _SHOWN_HEADERS | {"host", "connection", "transfer-encoding", "x-amz-date", "x-amz-content-sha256"}
_SHORTEST_SECRET = 4


def safe_url(url: str) -> str:
    """The URL without user information, query and fragment, for messages and logs.

    Never raises: of a text that is no URL everything from the first ``?`` or ``#`` on and up to the last ``@`` of the
    authority is dropped.
    """
    text = re.split(r"[?#]", str(url), maxsplit=1)[0]
    try:
        parts = urlsplit(text)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        return text.rpartition("@")[2]


class DICOMwebError(requests.HTTPError):
    """A request failed: the server answered with an error, or something of its own kind (see the subclasses).

    Attributes:
        status: The HTTP status; None if no answer arrived.
        url: The URL without user information and query.
        method: The HTTP method.
        attempts: How often it was tried.
        retryable: Whether trying again later may help.
        detail: What happened or what the server said, without the method and URL.
        said: What of that is the server's own words. They are not in logs, because a server may name a patient.
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
        self.said = ""
        self.status = status if status is not None else (response.status_code if response is not None else None)
        self.url = safe_url(url)
        self.method = method
        self.attempts = attempts
        self.retryable = retryable
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self._told(self.detail)

    @property
    def discreet(self) -> str:
        """The same without the server's own words, for logs."""
        return self._told(self.detail.replace(self.said, "").strip("; ") if self.said else self.detail)

    def _told(self, detail: str) -> str:
        words = [" ".join(filter(None, (self.method, self.url)))]
        if self.status is not None:
            words.append(f"HTTP {self.status}")
        if detail:
            words.append(detail)
        text = ": ".join(filter(None, words)) or "request failed"
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


def discreet(error: BaseException) -> str:
    """What an error says, for a log: without a server's own words, which may name a patient."""
    return error.discreet if isinstance(error, DICOMwebError) else str(error)


class ConnectionFailedError(DICOMwebError, requests.ConnectionError):
    """No answer arrived: refused, name not found, TLS failure, or a connection that broke before the answer.

    Attributes:
        sent: Whether anything of the request may have reached the server.
        stale: Whether it was sent over a connection that had been idle, which the server had closed meanwhile.
    """

    sent: bool = True
    stale: bool = False


class TimedOutError(ConnectionFailedError, requests.Timeout):
    """The server did not accept a connection, or sent nothing, for as long as `timeout` allows."""


class DeadlineExceededError(DICOMwebError, requests.Timeout):
    """The operation was not complete when its deadline came, retries included. Never retried."""


class ResponseIncompleteError(DICOMwebError):
    """The body of an answer broke off, or lacks what would prove that it is whole.

    For example fewer bytes than Content-Length, an unfinished chunk, a missing closing boundary, or the wrong number
    of parts.
    """


class MalformedResponseError(DICOMwebError):
    """The answer is not what was asked for: a login page, bad JSON, an unexpected content type, bad gzip, too large."""


class RedirectError(DICOMwebError):
    """The server redirects where the client does not follow: in circles, to plain HTTP, or with a body elsewhere."""


class CredentialsError(DICOMwebError):
    """No valid credentials could be had: a missing variable or file, a failing command, a refusing token endpoint."""


def public_response(response: requests.Response, content: bytes) -> requests.Response:
    """A copy of a response that may be kept, logged and pickled.

    Args:
        response: The response; it is not changed.
        content: As much of its body as was read.

    Returns:
        A response with status, headers, elapsed time and this content, and with a request that has neither
        credentials nor a query. Cookies are left out.
    """
    copy = requests.Response()
    copy.status_code = response.status_code
    copy.reason = response.reason
    copy.headers.update(response.headers)
    copy.headers.pop("Set-Cookie", None)
    copy.encoding = response.encoding
    copy.elapsed = response.elapsed
    copy.url = safe_url(response.url or "")
    copy._content = content
    copy._content_consumed = True  # type: ignore[attr-defined]
    request = requests.PreparedRequest()
    original = response.request
    request.method = getattr(original, "method", None)
    request.url = copy.url
    request.headers = requests.structures.CaseInsensitiveDict(
        {
            key: value
            for key, value in (getattr(original, "headers", None) or {}).items()
            if key.lower() in _SHOWN_HEADERS
        }
    )
    request.hooks = {"response": []}
    copy.request = request
    return copy


def without_secrets(content: bytes, headers: Mapping[str, str]) -> bytes:
    """A body without what the request's headers held in confidence, should the server repeat it.

    Args:
        content: The body of an error answer.
        headers: The headers of the request: all but the usual ones are taken for secrets, so that a key in a header
            of the user's own is one too.

    Returns:
        The body, with ``***`` for the values and for what they are made of: the token after the scheme, the name and
        password of basic authentication, the members of a list of parameters.
    """
    for secret in _secrets(headers):
        # JSON has several spellings of some characters.
        spelled = json.dumps(secret.decode("utf-8", "replace"))[1:-1].encode()
        for form in {secret, spelled, spelled.replace(b"/", b"\\/")}:
            content = content.replace(form, b"***")
    return content


def _secrets(headers: Mapping[str, str]) -> list[bytes]:
    """What headers hold in confidence, longest first."""
    secrets: set[bytes] = set()
    for name, value in headers.items():
        if name.lower() in _KNOWN_HEADERS:
            continue
        raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
        scheme, _, rest = raw.partition(b" ")
        secrets |= {raw, rest.strip(), *re.split(rb"[\s,;=]+", raw)} - {scheme if rest else b""}
        if scheme.lower() == b"basic":
            try:
                user, _, password = base64.b64decode(rest, validate=True).partition(b":")
            except ValueError:
                continue
            secrets |= {user + b":" + password, password}
    return sorted((secret for secret in secrets if len(secret) >= _SHORTEST_SECRET), key=len, reverse=True)


def server_message(content: bytes, url: str, headers: Mapping[str, str] | None = None) -> str:
    """What the body of an error answer says, as one short line for a message; empty if it says nothing readable.

    Known members of JSON bodies and short plain texts are taken, HTML and binary bodies are not. Where the text
    repeats a value of the request's query, which may be a patient's name, the value is replaced by ``***``.

    Args:
        content: The body, or its beginning.
        url: The URL that was asked for, with its query.
        headers: The request's headers; what they held in confidence is replaced too, in any spelling of JSON.
    """
    try:
        text = content[:65536].decode("utf-8").strip()
    except UnicodeDecodeError:
        return ""
    if text.startswith("{"):
        try:
            text = "; ".join(_messages(json.loads(text)))
        except (ValueError, RecursionError):
            return ""
    elif text.startswith(("<", "[")) or "\x00" in text:
        return ""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\s]+", " ", text).strip()
    for secret in _secrets(headers or {}):
        text = text.replace(secret.decode("utf-8", "replace"), "***")
    query = url.partition("?")[2]
    values: set[str] = set()
    for pair in query.split("&") if query else ():
        raw = pair.partition("=")[2]
        value = unquote_plus(raw)
        values |= {raw, value, *(piece for piece in re.split(r"[\^*?,=\s]+", value) if len(piece) > 2)}
    # Longer ones first: a part of a name must not leave the rest of it behind.
    for value in sorted(values, key=len, reverse=True):
        if len(value) > 1:
            text = re.sub(re.escape(value), "***", text, flags=re.IGNORECASE)
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 1] + "…"


def _messages(document: Any) -> list[str]:
    found: list[str] = []
    if isinstance(document, dict):
        for key in _MESSAGE_KEYS:
            value = document.get(key)
            if isinstance(value, dict):
                value = "; ".join(_messages({name: item for name, item in value.items() if not isinstance(item, dict)}))
            if isinstance(value, str) and value and value not in found:
                found.append(value)
    return found


# ----------------------------------------------------------------------------------------------------------------------
# The errors of the web client beyond those of the HTTP layer. All are `requests.HTTPError`.


class FilterIgnoredError(MalformedResponseError):
    """A search returned rows that contradict its filters: the server ignored a filter and would return everything."""


class PagingError(MalformedResponseError):
    """A search cannot be paged to its end: ``offset`` is ignored, pages repeat, or a cap of the server is reached."""


class TooManyResultsError(DICOMwebError):
    """A search finds more than the server is willing to return; it has to be narrowed."""


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


# ----------------------------------------------------------------------------------------------------------------------
# Errors of the file client in the shape of a server's, so that code written for servers works unchanged.


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
