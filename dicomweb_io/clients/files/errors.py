"""Errors of the file client in the shape of a server's, so that code written for servers works unchanged."""

from __future__ import annotations

import json
from http import HTTPStatus

import requests

from dicomweb_io.wire.errors import DICOMwebError


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
