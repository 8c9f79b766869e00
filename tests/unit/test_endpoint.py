"""Endpoints: descriptions that travel, show no secret, and become clients."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from requests.auth import HTTPBasicAuth

from dicomweb_io.client import DICOMClient
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.auth import (
    AWSSigV4,
    AzureCredentials,
    BasicCredentials,
    BearerToken,
    GoogleCredentials,
    OAuth2ClientCredentials,
)
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.http.settings import TLS, Limits, Prefixes, Timeouts
from dicomweb_io.profiles import PROFILES
from dicomweb_io.web.client import DICOMwebClient


def test_of_anything_that_names_an_archive(tmp_path):
    endpoint = Endpoint("https://pacs.example/rs")
    assert Endpoint.of(endpoint) is endpoint
    assert Endpoint.of("https://pacs.example").is_web
    assert not Endpoint.of(tmp_path).is_web
    assert Endpoint.of(Path("/a/b")).url == "/a/b"
    with pytest.raises(TypeError):
        Endpoint.of(5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"url": ""}, "empty"),
        ({"url": "https://"}, "no host"),
        ({"url": "https://h:99999"}, "port"),
        ({"url": "https://h/x?token=secret"}, "query"),
        *(
            ({"url": url}, "https:// before a server")
            for url in (
                "localhost:8042/dicom-web",
                "127.0.0.1:80",
                "pacs.example/dicom-web",
                "pacs.example/a/DICOMweb/",
            )
        ),
        ({"url": "/folder", "prefixes": Prefixes("q")}, "prefixes: only for servers"),
        ({"url": "htp://me:secret@pacs.example/rs"}, "htp://pacs.example/rs: there is no filesystem htp://"),
        ({"url": "simplecache::htp://pacs.example/rs"}, "there is no filesystem htp://"),
        ({"url": "https://pacs.example/rs", "profile": "orthank"}, "there is no profile 'orthank'"),
        ({"url": "/folder", "credentials": HTTPBasicAuth("a", "b")}, "only for servers"),
    ],
)
def test_what_is_no_endpoint(arguments, words):
    with pytest.raises(ValueError, match=words) as caught:
        Endpoint(**arguments)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        Path("pacs.example/dicom-web"),
        "./pacs.example/dicom-web",
        "/a/pacs.example/dicom-web",
        "dicom-web",
        "studies/dicom-web",
        "data.2026/studies",
        "C:/dicom-web",
        "memory://a.b/dicom-web",
        "a.b/dicom-web/studies",
    ],
)
def test_what_names_a_folder(path):
    assert not Endpoint(path).is_web


def test_it_travels_and_shows_no_secret():
    endpoint = Endpoint(
        "https://me:secret1@pacs.example/rs",
        credentials=BasicCredentials("me", password="secret2"),
        headers={"X-Key": "secret3"},
        proxies={"https": "http://u:secret4@proxy"},
        retry=RetryPolicy.none(),
        profile=PROFILES["azure"],
        limits=Limits(3),
    )
    text = repr(endpoint)
    assert not any(f"secret{number}" in text for number in range(1, 5))
    assert "https://pacs.example/rs" in text
    assert "azure" in text
    assert endpoint.safe_url == "https://pacs.example/rs"
    again = pickle.loads(pickle.dumps(endpoint))
    assert (again.url, again.profile, again.limits.max_in_flight) == (endpoint.url, PROFILES["azure"], 3)
    assert "secret" not in repr(Endpoint("https://h", credentials=HTTPBasicAuth("a", "secret")))


def test_connecting_causes_no_traffic_and_hands_everything_on(tmp_path):
    endpoint = Endpoint(
        "https://me:pw@pacs.example:8443/root/",
        prefixes=Prefixes("q", "w", "s", "d"),
        profile="google",
        retry=RetryPolicy(max_attempts=2),
        timeouts=Timeouts(3.0, 4.0, 12.0),
    )
    client = endpoint.connect()
    assert isinstance(client, DICOMwebClient)
    assert isinstance(client, DICOMClient)
    assert client.base_url == "https://pacs.example:8443/root"
    assert (client.qido_url_prefix, client.wado_url_prefix) == ("q", "w")
    assert (client.stow_url_prefix, client.delete_url_prefix) == ("s", "d")
    assert client.profile.name == "google"
    assert client.transport.retry.max_attempts == 2
    assert client.transport.timeouts == Timeouts(3.0, 4.0, 12.0)
    assert "pw" not in repr(client)
    assert isinstance(Endpoint(str(tmp_path)).connect(), DICOMClient)


@pytest.mark.parametrize(
    "credentials",
    [
        BasicCredentials("me", password="pw"),
        BearerToken(command=["a", "b"]),
        OAuth2ClientCredentials("https://login.example/token", "me", client_secret_env="SECRET"),
        GoogleCredentials(),
        AzureCredentials(),
        AWSSigV4(region="us-east-1"),
        HTTPBasicAuth("a", "b"),
    ],
    ids=lambda item: type(item).__name__,
)
def test_it_travels_with_all_kinds_of_credentials(credentials):
    endpoint = Endpoint("https://pacs.example", credentials=credentials, tls=TLS("/ca.pem", ("/cert.pem", "/key.pem")))
    again = pickle.loads(pickle.dumps(endpoint))
    assert (again.credentials, again.tls) == (credentials, endpoint.tls)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Limits(0), ValueError, "max_in_flight must be a positive integer, not 0"),
        (lambda: Limits(True), ValueError, "max_in_flight"),
        (lambda: Limits(requests_per_second=0), ValueError, "requests_per_second must be a positive number"),
        (lambda: Timeouts(deadline=-1), ValueError, "deadline must be a positive number of seconds, or None, not -1"),
        (lambda: Timeouts(0), ValueError, "connect timeout must be"),
        (lambda: Timeouts(read="5"), ValueError, "read timeout must be"),
        (lambda: Timeouts.of((1, 2, 3)), ValueError, "a pair"),
        (lambda: Timeouts.of(float("nan")), ValueError, "positive"),
        (lambda: TLS(None), TypeError, "verify must be True, False or the path of a CA bundle, not NoneType"),
        (lambda: TLS(""), ValueError, "verify is an empty path"),
        (lambda: TLS(cert=("a", "b", "c")), ValueError, "pair"),
        (lambda: TLS(cert=("a", None)), TypeError, "cert"),
        (lambda: Prefixes("../x"), ValueError, "qido_url_prefix must be one or more path segments"),
        (lambda: Prefixes(delete=5), TypeError, "delete_url_prefix must be a str, not int"),
        (lambda: Endpoint("https://h", tls=False), TypeError, r"tls must be TLS\(…\), not bool"),
        (lambda: Endpoint("https://h", timeouts=5), TypeError, r"timeouts must be Timeouts\(…\), not int"),
        (lambda: Endpoint("https://h", limits=None), TypeError, "limits"),
        (lambda: Endpoint("https://h", retry=3), TypeError, "retry"),
    ],
)
def test_groups_of_arguments_are_checked_when_they_are_made(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_groups_take_paths_and_single_numbers():
    assert TLS(Path("/ca.pem"), [Path("/cert.pem"), "/key.pem"]) == TLS("/ca.pem", ("/cert.pem", "/key.pem"))
    assert Timeouts.of(3) == Timeouts(3.0, 3.0)
    assert Timeouts.of((3, 4), None) == Timeouts(3.0, 4.0, None)
    assert Prefixes("/qido-rs/").qido == "qido-rs"


def test_everything_is_had_from_the_root():
    import dicomweb_io

    for name, home in (("Limits", Limits), ("TLS", TLS), ("Timeouts", Timeouts), ("Prefixes", Prefixes)):
        assert getattr(dicomweb_io, name) is home
    for kind in (BasicCredentials, BearerToken, OAuth2ClientCredentials, GoogleCredentials, AzureCredentials, AWSSigV4):
        assert getattr(dicomweb_io, kind.__name__) is kind
        assert kind.__name__ in dicomweb_io.__all__


def test_replacing():
    endpoint = Endpoint("https://pacs.example").replace(profile="azure")
    assert (endpoint.url, endpoint.profile) == ("https://pacs.example", "azure")


def test_a_folder_needs_no_probe(tmp_path):
    endpoint = Endpoint(str(tmp_path))
    assert endpoint.probe() is endpoint


@pytest.mark.parametrize("url", ["http://user:s3cret\u2100@host/x", "http://user:s3cret@[::1/x"])
def test_errors_about_urls_hold_no_user_information(url):
    with pytest.raises(ValueError, match="url") as caught:
        Endpoint(url)
    assert "s3cret" not in str(caught.value)


def test_what_becomes_of_a_filter_mismatch_is_part_of_an_endpoint() -> None:
    endpoint = Endpoint("https://pacs.example/dicom-web", filter_mismatch="warn")
    assert "filter_mismatch='warn'" in repr(endpoint)
    assert pickle.loads(pickle.dumps(endpoint)).filter_mismatch == "warn"
    with pytest.raises(ValueError, match="filter_mismatch"):
        Endpoint("/data", filter_mismatch="ignore")  # type: ignore[arg-type]
