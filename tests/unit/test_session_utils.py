"""Session helpers, as users know them."""

from __future__ import annotations

import pytest
import requests
from requests.auth import HTTPBasicAuth, HTTPDigestAuth

from dicomweb_io import session_utils


def test_sessions_with_authentication():
    assert isinstance(session_utils.create_session(), requests.Session)
    auth = HTTPDigestAuth("me", "pw")
    assert session_utils.create_session_from_auth(auth).auth is auth
    assert session_utils.create_session_from_user_pass(username="me", password="pw").auth == HTTPBasicAuth("me", "pw")
    with pytest.raises(TypeError):
        session_utils.create_session_from_auth("me:pw")
    with pytest.raises(TypeError, match="password"):
        session_utils.create_session_from_user_pass("me", None)


def test_certificates(tmp_path):
    paths = [tmp_path / name for name in ("ca.crt", "cert.pem", "key.pem")]
    for path in paths:
        path.write_text("x")
    ca, cert, key = map(str, paths)
    session = session_utils.create_session()
    assert session_utils.add_certs_to_session(session=session, ca_bundle=ca, cert=cert) is session
    assert (session.verify, session.cert) == (ca, cert)
    assert session_utils.add_certs_to_session(session, cert=(cert, key)).cert == (cert, key)
    untouched = session_utils.add_certs_to_session(session_utils.create_session())
    assert (untouched.verify, untouched.cert) == (True, None)
    for arguments in ({"ca_bundle": "/no/such"}, {"cert": "/no/such"}, {"cert": (cert, "/no/such")}):
        with pytest.raises(OSError, match="/no/such"):
            session_utils.add_certs_to_session(session_utils.create_session(), **arguments)


def test_google_credentials():
    import google.oauth2.credentials
    from google.auth.transport.requests import AuthorizedSession

    credentials = google.oauth2.credentials.Credentials("token")
    session = session_utils.create_session_from_gcp_credentials(google_credentials=credentials)
    assert isinstance(session, AuthorizedSession)
    assert session.credentials is credentials


def test_application_default_credentials(tmp_path, monkeypatch):
    import json

    path = tmp_path / "adc.json"
    path.write_text(
        json.dumps({"type": "authorized_user", "client_id": "a", "client_secret": "b", "refresh_token": "c"})
    )
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    session = session_utils.create_session_from_gcp_credentials()
    assert session.credentials.refresh_token == "c"
