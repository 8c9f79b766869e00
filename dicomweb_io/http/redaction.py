"""Redaction: what an error may show and keep of a request and its answer, without secrets and patients' names."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from functools import cache
from html.entities import html5
from typing import Any
from urllib.parse import unquote_plus

import requests

from dicomweb_io.errors import safe_url

_SHOWN_HEADERS = frozenset({"accept", "accept-encoding", "content-type", "content-length", "range", "user-agent"})
_MESSAGE_KEYS = ("Message", "Details", "message", "errorMessage", "error_description", "detail", "title", "error")
_MAX_MESSAGE = 300
# Headers that the HTTP library sends by itself. Any other header may hold a secret.
_KNOWN_HEADERS = _SHOWN_HEADERS | {"host", "connection", "transfer-encoding", "x-amz-date", "x-amz-content-sha256"}
_SHORTEST_SECRET = 4
_LONG_VALUE = 512


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
    """The body with secrets of the request's headers masked, in case the server repeats them.

    Args:
        content: The body of an error answer.
        headers: The headers of the request: all but the usual ones are taken for secrets, so that a key in a header
            of the user's own is one too.

    Returns:
        The body, with ``***`` for the values and for what they are made of: the token after the scheme, the name and
        password of basic authentication, the members of a list of parameters.
    """
    text = content.decode("utf-8", "surrogateescape")
    for secret in _secrets(headers):
        text = re.sub(spelled(secret.decode("utf-8", "surrogateescape")), "***", text)
    return text.encode("utf-8", "surrogateescape")


def spelled(value: str) -> str:
    """A pattern for a text in any spelling: escaped for URLs, JSON or HTML, once or several times."""
    # In very long values, which are no names, letters and digits are taken to stand as they are.
    long = len(value) > _LONG_VALUE
    return "".join(one if long and one.isalnum() else _spellings(one) for one in value)


@cache
def _spellings(character: str) -> str:
    """A pattern for one character. Repetitions are bounded, so that no text takes long."""
    escaped = [r"\+", r"\s{1,4}"] if character == " " else []
    for one in sorted({character, character.lower(), character.upper()}):
        if len(one) > 1:
            continue
        units = one.encode("utf-16-be", "surrogatepass")
        names = [name.rstrip(";") for name, text in html5.items() if text == one]
        escaped += [
            "".join(f"%(?:25){{0,4}}{byte:02x}" for byte in one.encode("utf-8", "surrogateescape")),
            "".join(rf"\\{{1,4}}u{units[index : index + 2].hex()}" for index in range(0, len(units), 2)),
            rf"\\{{1,4}}x{ord(one):02x}",
            rf"&(?:amp;){{0,4}}(?:{'|'.join((f'#0{{0,4}}{ord(one)}', f'#x0{{0,4}}{ord(one):x}', *names))});?",
        ]
    return rf"(?:\\{{0,4}}{re.escape(character)}|(?i:{'|'.join(escaped)}))"


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
        text = re.sub(spelled(secret.decode("utf-8", "surrogateescape")), "***", text)
    query = url.partition("?")[2]
    values: set[str] = set()
    for pair in query.split("&") if query else ():
        raw = pair.partition("=")[2]
        value = unquote_plus(raw)
        values |= {raw, value, *(piece for piece in re.split(r"[\^*?,=\s]+", value) if len(piece) > 2)}
    # Longer ones first: a part of a name must not leave the rest of it behind.
    for value in sorted(values, key=len, reverse=True):
        if len(value) > 1:
            text = re.sub(spelled(value), "***", text, flags=re.IGNORECASE)
    # Parts of one name that stood apart must not show how it is made up.
    text = _PARTED.sub("***", text)
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 1] + "…"


_PARTED = re.compile(rf"\*\*\*(?:(?:{'|'.join(map(_spellings, '^=, '))}){{1,4}}\*\*\*)+")


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
