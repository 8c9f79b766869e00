"""Endpoints: descriptions that travel, show no secret, and become clients."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from requests.auth import HTTPBasicAuth

from dicomweb_io.client import DICOMClient
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.auth import BasicCredentials
from dicomweb_io.http.retry import RetryPolicy
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
        ({"url": "https://h", "max_in_flight": 0}, "max_in_flight"),
        ({"url": "https://h", "requests_per_second": 0}, "requests_per_second"),
        ({"url": "https://h", "deadline": -1}, "deadline"),
        ({"url": "/folder", "qido_url_prefix": "q"}, "only for servers"),
        ({"url": "/folder", "credentials": HTTPBasicAuth("a", "b")}, "only for servers"),
    ],
)
def test_what_is_no_endpoint(arguments, words):
    with pytest.raises(ValueError, match=words) as caught:
        Endpoint(**arguments)
    assert "secret" not in str(caught.value)


def test_it_travels_and_shows_no_secret():
    endpoint = Endpoint(
        "https://me:secret1@pacs.example/rs",
        credentials=BasicCredentials("me", password="secret2"),
        headers={"X-Key": "secret3"},
        proxies={"https": "http://u:secret4@proxy"},
        retry=RetryPolicy.none(),
        profile=PROFILES["azure"],
        max_in_flight=3,
    )
    text = repr(endpoint)
    assert not any(f"secret{number}" in text for number in range(1, 5))
    assert "https://pacs.example/rs" in text
    assert "azure" in text
    assert endpoint.safe_url == "https://pacs.example/rs"
    again = pickle.loads(pickle.dumps(endpoint))
    assert (again.url, again.profile, again.max_in_flight) == (endpoint.url, PROFILES["azure"], 3)
    assert "secret" not in repr(Endpoint("https://h", credentials=HTTPBasicAuth("a", "secret")))


def test_connecting_causes_no_traffic_and_hands_everything_on(tmp_path):
    endpoint = Endpoint(
        "https://me:pw@pacs.example:8443/root/",
        qido_url_prefix="q",
        wado_url_prefix="w",
        stow_url_prefix="s",
        delete_url_prefix="d",
        profile="google",
        retry=RetryPolicy(max_attempts=2),
        deadline=12.0,
        timeout=3.0,
    )
    client = endpoint.connect()
    assert isinstance(client, DICOMwebClient)
    assert isinstance(client, DICOMClient)
    assert client.base_url == "https://pacs.example:8443/root"
    assert (client.qido_url_prefix, client.wado_url_prefix) == ("q", "w")
    assert (client.stow_url_prefix, client.delete_url_prefix) == ("s", "d")
    assert client.profile.name == "google"
    assert client.transport.retry.max_attempts == 2
    assert (client.transport.deadline, client.transport.timeout) == (12.0, (3.0, 3.0))
    assert "pw" not in repr(client)
    assert isinstance(Endpoint(str(tmp_path)).connect(), DICOMClient)


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
