"""TLS certificates are verified unless that is switched off by name.

``tests/unit/http/test_credentials.py`` tries the transport with a CA of its own, a bundle that does not fit, and the
way from https to http; here are all kinds of wrong certificates, every door, and all that might switch it off.
"""

from __future__ import annotations

import datetime
import json
import ssl
import warnings

import apache_beam as beam
import pytest
import requests
import trustme

from dicomweb_io.cli import main as command_line
from dicomweb_io.elements import SearchQuery
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import ConnectionFailedError, CredentialsError, DICOMwebError
from dicomweb_io.http.auth import OAuth2ClientCredentials
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.http.settings import TLS
from dicomweb_io.http.transport import Transport
from dicomweb_io.transforms import SearchForStudies
from dicomweb_io.web.client import DICOMwebClient
from tests.answering import Reply
from tests.security.hostile import row, rows

NONE = RetryPolicy.none()
ALL = SearchQuery("study")


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def bundle(authority, tmp_path_factory):
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def _long_ago():
    return datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)


CERTIFICATES = {
    "good": lambda authority: authority.issue_cert("127.0.0.1"),
    "another host": lambda authority: authority.issue_cert("pacs.example.org", "127.0.0.2"),
    "expired": lambda authority: authority.issue_cert("127.0.0.1", not_after=_long_ago()),
    "another authority": lambda authority: trustme.CA().issue_cert("127.0.0.1"),
    "of an authority unknown, one known above": lambda authority: (
        trustme.CA().create_child_ca().issue_cert("127.0.0.1")
    ),
    "name in the subject only": lambda authority: authority.issue_cert("x.example", common_name="127.0.0.1"),
}
WRONG = [name for name in CERTIFICATES if name != "good"]


@pytest.fixture
def secure(origin, authority):
    """Starts https servers; gives them and their URLs."""

    def start(answer, certificate="good"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        CERTIFICATES[certificate](authority).configure_cert(context)
        server = origin(answer, tls=context)
        return server, server.url

    return start


def one_study(request):
    return rows() if "offset=" in request.target else rows(row())


def doors(url, **options):
    """Every way to an archive, as functions that give the number of studies."""

    def client():
        with DICOMwebClient(url, retry=NONE, **options) as found:
            return len(list(found.iter_search(ALL)))

    def endpoint():
        with Endpoint(url, retry=NONE, tls=TLS(**options)).connect() as found:
            return len(list(found.iter_search(ALL)))

    def transport():
        with Transport(url, retry=NONE, tls=TLS(**options)) as found:
            return len(json.loads(found.request("GET", "/studies").content))

    def session():
        with DICOMwebClient(url, retry=NONE, session=requests.Session(), **options) as found:
            return len(list(found.iter_search(ALL)))

    return {"client": client, "endpoint": endpoint, "transport": transport, "session": session}


@pytest.mark.parametrize("door", ["client", "endpoint", "transport", "session"])
def test_a_good_certificate_is_accepted_and_no_other(secure, bundle, door):
    server, url = secure(one_study)
    assert doors(url, verify=bundle)[door]() == 1
    with pytest.raises(ConnectionFailedError, match="not trusted"):
        doors(url)[door]()
    for certificate in WRONG:
        server, url = secure(one_study, certificate)
        with pytest.raises(ConnectionFailedError, match="TLS certificate is not trusted") as caught:
            doors(url, verify=bundle)[door]()
        assert not caught.value.retryable
        assert server.requests == []


@pytest.mark.parametrize("certificate", WRONG)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PYTHONHTTPSVERIFY", "0"),
        ("REQUESTS_CA_BUNDLE", ""),
        ("CURL_CA_BUNDLE", ""),
        ("SSL_CERT_FILE", ""),
        ("GIT_SSL_NO_VERIFY", "1"),
        ("NODE_TLS_REJECT_UNAUTHORIZED", "0"),
        ("NO_PROXY", "*"),
    ],
)
def test_no_variable_switches_it_off(secure, bundle, monkeypatch, certificate, name, value):
    server, url = secure(one_study, certificate)
    monkeypatch.setenv(name, value)
    for options in ({}, {"verify": bundle}, {"verify": True}):
        with pytest.raises(ConnectionFailedError, match="not trusted"):
            doors(url, **options)["client"]()
    assert server.requests == []


def test_a_bundle_of_the_environment_that_is_not_there_is_an_error(secure, monkeypatch, tmp_path):
    server, url = secure(one_study)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "gone.pem"))
    with pytest.raises(ValueError, match=r"REQUESTS_CA_BUNDLE .*gone\.pem"):
        doors(url)["client"]()
    assert server.requests == []


@pytest.mark.parametrize("value", [None, 0, "", [], b"", 1, "no/such/file", "False"])
@pytest.mark.parametrize("door", ["client", "endpoint", "transport"])
def test_only_false_switches_it_off(secure, door, value):
    """Whatever else is false in Python is a mistake, such as a variable that was not set: it is refused."""
    server, url = secure(one_study, "another authority")
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match="verify"):
        doors(url, verify=value)[door]()
    assert server.requests == []


@pytest.mark.parametrize("certificate", WRONG)
def test_false_switches_it_off_and_says_so(secure, certificate):
    server, url = secure(one_study, certificate)
    for door in doors(url, verify=False).values():
        with pytest.warns(Warning, match="Unverified"):
            assert door() == 1
    assert server.requests


def test_the_command_has_one_option_for_it(secure, bundle, capsys):
    server, url = secure(one_study, "another host")
    search = ["search", "studies"]
    assert command_line(["--url", url, *search]) == 1
    assert command_line(["--url", url, "--ca", bundle, *search]) == 1
    assert "certificate is not trusted" in capsys.readouterr().err
    assert server.requests == []
    with pytest.warns(Warning, match="Unverified"):
        assert command_line(["--url", url, "--insecure-no-verify", *search]) == 0
    assert server.requests


def test_a_pipeline_verifies_too(secure, bundle):
    server, url = secure(one_study, "expired")
    with pytest.raises(Exception, match="certificate is not trusted"):
        with beam.Pipeline("FnApiRunner") as pipeline:
            _ = pipeline | SearchForStudies(Endpoint(url, tls=TLS(bundle), retry=NONE))
    assert server.requests == []


@pytest.mark.parametrize("certificate", WRONG)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_leads_to_no_unverified_host(secure, bundle, certificate, status):
    other, elsewhere = secure(one_study, certificate)
    server, url = secure(lambda _: Reply(status, b"", headers={"Location": f"{elsewhere}/studies"}))
    with pytest.raises(DICOMwebError, match="not trusted"):
        doors(url, verify=bundle)["client"]()
    assert len(server.requests) == 1
    assert other.requests == []


def test_bulk_data_elsewhere_come_from_a_verified_host_only(secure, bundle):
    other, elsewhere = secure(
        lambda _: Reply(200, b"x", headers={"Content-Type": "application/octet-stream"}), "another host"
    )
    _, url = secure(one_study)
    with DICOMwebClient(url, verify=bundle, retry=NONE) as client:
        with pytest.raises(ConnectionFailedError, match="not trusted"):
            client.retrieve_bulkdata(f"{elsewhere}/bulk")
    assert other.requests == []


@pytest.mark.parametrize("certificate", WRONG)
def test_secrets_go_to_no_unverified_token_endpoint(secure, bundle, certificate):
    tokens, endpoint = secure(lambda _: Reply(200, b"{}", headers={"Content-Type": "application/json"}), certificate)
    server, url = secure(one_study)
    credentials = OAuth2ClientCredentials(f"{endpoint}/token", "client", "the-5ecret")
    with DICOMwebClient(url, verify=bundle, retry=NONE, credentials=credentials) as client:
        with pytest.raises((CredentialsError, ConnectionFailedError), match="trusted"):
            list(client.iter_search(ALL))
    assert tokens.requests == []
    assert server.requests == []


def test_no_warning_comes_without_a_switch(secure, bundle):
    """So that the warning means something."""
    _, url = secure(one_study)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert doors(url, verify=bundle)["client"]() == 1
