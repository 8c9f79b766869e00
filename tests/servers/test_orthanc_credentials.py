"""Basic authentication on a server that is not ours."""

import pytest
import requests
from requests.auth import HTTPBasicAuth

from dicomweb_io import DICOMwebClient, Endpoint
from dicomweb_io.http.auth import BasicCredentials
from dicomweb_io.session_utils import create_session_from_auth, create_session_from_user_pass
from dicomweb_io.testing.samples import sample_file


def test_orthanc_that_demands_a_password(new_orthanc, monkeypatch: pytest.MonkeyPatch) -> None:
    orthanc = new_orthanc(users={"demo": "a secret"})
    with pytest.raises(requests.HTTPError) as refused:
        DICOMwebClient(orthanc.url).search_for_studies()
    assert refused.value.response.status_code == 401
    monkeypatch.setenv("ORTHANC_PASSWORD", "a secret")
    by_endpoint = Endpoint(orthanc.url, credentials=BasicCredentials("demo", password_env="ORTHANC_PASSWORD")).connect()
    by_endpoint.store_instances([sample_file("CT_small.dcm")])
    for client in (
        by_endpoint,
        DICOMwebClient(orthanc.url, session=create_session_from_user_pass("demo", "a secret")),
        DICOMwebClient(orthanc.url, session=create_session_from_auth(HTTPBasicAuth("demo", "a secret"))),
        DICOMwebClient(orthanc.url.replace("://", "://demo:a%20secret@")),
    ):
        assert len(client.search_for_instances()) == 1
        assert "secret" not in repr(client)
        assert "secret" not in client.base_url
