"""Every transform pickles with every kind of credentials, and shows none."""

from __future__ import annotations

import pytest
from apache_beam.internal import pickler
from requests.auth import HTTPBasicAuth

from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.auth import (
    AWSSigV4,
    AzureCredentials,
    BasicCredentials,
    BearerToken,
    GoogleCredentials,
    OAuth2ClientCredentials,
)
from dicomweb_io.transforms import (
    CopyInstances,
    ParseNotifications,
    ReadFromDICOMweb,
    RetrieveInstances,
    RetrieveMetadata,
    SearchForInstances,
    SearchForSeries,
    SearchForStudies,
    StoreInstances,
    WatchForInstances,
    WatchForStudies,
    WriteToDICOMweb,
)

CREDENTIALS = {
    "none": None,
    "basic by variable": BasicCredentials("me", password_env="PACS_PASSWORD"),
    "basic literal": BasicCredentials("me", "literal-secret"),
    "token by file": BearerToken(file="/run/secrets/token"),
    "token literal": BearerToken("literal-secret"),
    "oauth2": OAuth2ClientCredentials("https://login.example/token", "me", client_secret_env="SECRET"),
    "google": GoogleCredentials(),
    "azure": AzureCredentials(),
    "aws": AWSSigV4("eu-central-1"),
    "requests": HTTPBasicAuth("me", "literal-secret"),
}


@pytest.mark.parametrize("name", CREDENTIALS)
def test_every_transform_pickles_with_every_kind_of_credentials(name):
    endpoint = Endpoint("https://pacs.example/rs", credentials=CREDENTIALS[name], headers={"X-Key": "header-secret"})
    made = [
        SearchForStudies(endpoint, {"Modality": "CT"}),
        SearchForSeries(endpoint),
        SearchForInstances(endpoint, distinct=True),
        RetrieveInstances(endpoint, media_types=("application/dicom",)),
        RetrieveMetadata(endpoint),
        StoreInstances(endpoint, on_existing="skip"),
        WriteToDICOMweb(endpoint),
        CopyInstances(endpoint, endpoint),
        ReadFromDICOMweb(endpoint),
        WatchForInstances(endpoint, method="study_date"),
        WatchForStudies(endpoint, max_polls=1),
        ParseNotifications(endpoint),
    ]
    for transform in made:
        copy = pickler.loads(pickler.dumps(transform))
        assert type(copy) is type(transform)
        assert copy.endpoint.url == endpoint.url
        assert repr(copy.endpoint) == repr(endpoint)
        shown = repr(copy.endpoint) + repr(copy.display_data()) + repr(copy)
        assert "literal-secret" not in shown
        assert "header-secret" not in shown
