"""Errors hold no secrets, say what happened and travel in pickles."""

from __future__ import annotations

import json
import pickle

import pytest
import requests

from dicomweb_io import errors
from dicomweb_io.dicom import errors as data_errors
from dicomweb_io.errors import DICOMwebError, safe_url
from dicomweb_io.failures import RECOVERABLE
from dicomweb_io.http.redaction import public_response, server_message, without_secrets


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://u:p@host:8080/a/b?c=d#e", "https://host:8080/a/b"),
        ("https://u:p@ss@host/", "https://host/"),
        ("http://[::1]:80/x?y", "http://[::1]:80/x"),
        ("http://[bad/x?PatientName=y", "http://[bad/x"),
        ("http://u:p@[bad", "[bad"),
        ("", ""),
        ("no url ?secret", "no url "),
        ("s3://bucket/a?b#c", "s3://bucket/a?b#c"),
        ("s3://key:secret@bucket/a?sig=secret", "s3://bucket/a"),
        ("abfss://images@account.dfs.core.windows.net/a", "abfss://images@account.dfs.core.windows.net/a"),
        ("abfss://key:secret@account/a#b", "abfss://account/a#b"),
        ("abfss://key%3Asecret@account/a", "abfss://account/a"),
        ("az://container/a?sv%3D2020%26sig%3Dsecret", "az://container/a"),
        ("az://container/a?sig%253Dsecret", "az://container/a"),
        ("simplecache::s3://key:secret@bucket/a?b#c", "simplecache::s3://bucket/a?b#c"),
        ("zip://a#1.dcm::ftp://u:secret@host/a.zip?token=secret", "zip://a::ftp://host/a.zip"),
        ("zip://::file:///a.zip", "zip://::file:///a.zip"),
        ("filecache::zip://::s3://bucket/a.zip", "filecache::zip://::s3://bucket/a.zip"),
    ],
)
def test_safe_url(url, safe) -> None:
    assert safe_url(url) == safe


KINDS = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
HTTP_KINDS = [kind for kind in KINDS if issubclass(kind, DICOMwebError)]
DATA_KINDS = [kind for kind in KINDS if issubclass(kind, errors.DICOMError)]


def test_the_tree_has_two_branches_and_names_every_error() -> None:
    assert sorted(HTTP_KINDS + DATA_KINDS, key=str) == sorted(KINDS, key=str)
    drawn = f"{errors.__doc__} {data_errors.__doc__}"
    assert [kind.__name__ for kind in KINDS if kind.__name__ not in drawn] == []


def test_mistakes_in_a_program_never_become_failures() -> None:
    assert all(issubclass(kind, RECOVERABLE) for kind in [*KINDS, OSError, requests.ConnectionError])
    assert not any(issubclass(kind, RECOVERABLE) for kind in (ValueError, TypeError, KeyError, AttributeError))


@pytest.mark.parametrize("kind", DATA_KINDS, ids=lambda kind: kind.__name__)
def test_every_error_of_data_pickles_and_is_a_value_error(kind) -> None:
    again = pickle.loads(pickle.dumps(kind("why")))
    assert type(again) is kind
    assert isinstance(again, ValueError)
    assert str(again) == "why"


@pytest.mark.parametrize("kind", HTTP_KINDS, ids=lambda kind: kind.__name__)
def test_every_error_pickles_and_is_an_http_error(kind) -> None:
    response = requests.Response()
    response.status_code = 503
    response._content = b"body"
    error = kind(
        "why", url="http://u:p@h/x?y", method="GET", attempts=3, retryable=True, retry_after=2.0, response=response
    )
    error.sent = False
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert isinstance(again, requests.HTTPError)
    assert str(again) == str(error) == "GET http://h/x: HTTP 503: why (after 3 attempts)"
    assert (again.status, again.url, again.method, again.attempts) == (503, "http://h/x", "GET", 3)
    assert (again.retryable, again.retry_after, again.sent, again.detail) == (True, 2.0, False, "why")
    assert again.response.content == b"body"
    assert str(kind()) == "request failed"


def test_kinds() -> None:
    assert issubclass(errors.DeadlineExceededError, requests.Timeout)
    assert issubclass(errors.TimedOutError, requests.Timeout)
    assert issubclass(errors.ConnectionFailedError, requests.ConnectionError)
    assert not issubclass(errors.DeadlineExceededError, errors.ConnectionFailedError)


def test_a_public_response_has_no_secrets() -> None:
    request = requests.Request(
        "GET",
        "http://h/x?PatientName=Doe",
        headers={"Authorization": "Bearer s3cret", "X-Api-Key": "s3cret", "Accept": "a/b"},
        cookies={"c": "s3cret"},
    ).prepare()
    response = requests.Response()
    response.request, response.url, response.status_code = request, "http://h/x?PatientName=Doe", 500
    response.headers.update({"Set-Cookie": "s3cret", "Server": "x"})
    public = public_response(response, b"content")
    data = pickle.dumps(public)
    assert b"s3cret" not in data
    assert b"Doe" not in data
    assert public.request.headers == {"Accept": "a/b"}
    assert public.headers == {"Server": "x"}
    assert public.content == b"content"
    assert response.request.headers["Authorization"] == "Bearer s3cret"
    with pytest.raises(requests.HTTPError):
        public.raise_for_status()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ""),
        (b"plain\r\n  text \x07", "plain text"),
        (b"<html><body>login</body></html>", ""),
        (b'[{"00100010": {}}]', ""),
        (b"\xff\xfe", ""),
        (b"{broken", ""),
        (b'{"error": {"code": 404, "message": "no such store"}}', "no such store"),
        (b'{"Message": "Bad file format", "Details": "x", "OrthancError": "Bad file format"}', "Bad file format; x"),
        (b'{"errorMessage": "E"}', "E"),
        (b'{"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]}}', ""),
        (b"[" * 100_000, ""),
        (b'{"a":' * 100_000, ""),
        (b"unknown value Doe or jane in query, 12 34", "unknown value *** or *** in query, *** 34"),
        (b"x" * 1000, "x" * 299 + "…"),
    ],
)
def test_server_messages(content, message) -> None:
    assert server_message(content, "http://h/?PatientName=Doe%5EJane&x=12&y=3") == message


def test_the_text_of_an_error_without_an_answer() -> None:
    assert str(DICOMwebError("why", method="GET", url="http://h/")) == "GET http://h/: why"
    assert repr(DICOMwebError("why")) == "DICOMwebError('why')"


@pytest.mark.parametrize(
    ("headers", "said", "left"),
    [
        ({"Authorization": "Bearer abc.def"}, b"no abc.def, sorry", b"no ***, sorry"),
        ({"Authorization": "Bearer abc.def"}, b"got 'Bearer abc.def'", b"got '***'"),
        ({"Authorization": "Basic dTpzZWNyZXQ="}, b"u:secret or dTpzZWNyZXQ= or secret", b"*** or *** or ***"),
        ({"Authorization": "Basic !notbase64"}, b"what is !notbase64?", b"what is ***?"),
        ({"x-api-key": "k3y-of-mine"}, b"k3y-of-mine is unknown", b"*** is unknown"),
        ({"Cookie": "session=12345678; a=b"}, b"session 12345678 is over", b"*** *** is over"),
        ({"Accept": "application/dicom+json", "Host": "archive"}, b"archive has application/dicom+json", None),
        ({"X-Tenant": "ct"}, b"structure", None),
    ],
)
def test_what_was_sent_in_confidence_is_not_repeated(headers, said, left) -> None:
    assert without_secrets(said, headers) == (said if left is None else left)


def test_logs_leave_the_words_of_the_server_out() -> None:
    error = DICOMwebError("Jane Doe is unknown; try later", method="GET", url="http://h/", status=500)
    error.server_message = "Jane Doe is unknown"
    assert error.log_text == "GET http://h/: HTTP 500: try later"
    assert "Jane" in str(error)
    assert pickle.loads(pickle.dumps(error)).log_text == error.log_text


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("Bearer abc/def+gh==", rb'{"Message": "no Bearer abc\/def+gh=="}'),
        ("Bearer abc/def+gh==", rb'{"Message": "no Bearer abc/def\u002Bgh=="}'),
        ("Bearer abc/def+gh==", b'{"Message": "no Bearer abc/def+gh=="}'),
    ],
)
def test_secrets_are_found_in_every_spelling_of_json(header, body) -> None:
    assert server_message(body, "http://h/", {"Authorization": header}) == "no ***"


_URL = "http://h/?PatientName=Li%5EW%C3%BC%20X"


@pytest.mark.parametrize(
    "said",
    [
        "Li^Wü X",
        "LI^WÜ X",
        "Li%5EW%C3%BC%20X",
        "Li%5eW%c3%bc+X",
        "Li%255EW%25C3%25BC%2520X",
        r"Li\u005eW\u00fc\u0020X",
        r"Li\\u005EW\\u00FC X",
        r"Li\x5eWü X",
        r"Li\^Wü X",
        "Li&#94;W&#252; X",
        "Li&#x5E;W&#xfc;&#32;X",
        "Li&Hat;W&uuml;&nbsp;X".replace("&nbsp;", " "),
        "Li&amp;#94;W&amp;uuml; X",
        r"Li%5EW\u00fc&#32;X",
        r"\u004c\u0069%5EWü X",
    ],
)
@pytest.mark.parametrize("form", ["text", "JSON", "quoted"])
def test_a_name_is_masked_whole_in_any_spelling(said: str, form: str) -> None:
    text = f"no match for {said}; sorry"
    if form == "JSON":
        text = json.dumps({"message": text})
    elif form == "quoted":
        text = json.dumps({"message": json.dumps({"why": text})})
    message = server_message(text.encode(), _URL)
    assert "no match for ***; sorry" in message
    assert "Li" not in message


def test_parts_of_a_name_do_not_show_how_it_is_made_up() -> None:
    assert server_message(b"no Jane%5EDoe, Jane", "http://h/?PatientName=Doe%5EJane") == "no ***"


@pytest.mark.parametrize("text", ["\\" * 60_000, "&amp;" * 13_000, "%25" * 20_000, "&#0" * 20_000, "***" * 20_000])
def test_no_text_takes_long_to_mask(text: str) -> None:
    assert len(server_message(text.encode(), _URL)) <= 300
    assert without_secrets(text.encode(), {"Authorization": "Bearer a+b/c=="}) == text.encode()


@pytest.mark.parametrize("said", [b"abc%2Fdef%2bgh%3D%3D", rb"abc\u002fdef\u002bgh==", b"abc&#47;def&plus;gh&equals;="])
def test_secrets_are_found_in_every_spelling(said: bytes) -> None:
    assert without_secrets(b"no " + said + b"!", {"Authorization": "Bearer abc/def+gh=="}) == b"no ***!"
    long = {"Authorization": "Bearer " + "x" * 1000 + "/" + "y" * 1000}
    assert without_secrets(b"no " + b"x" * 1000 + b"%2F" + b"y" * 1000, long) == b"no ***"
