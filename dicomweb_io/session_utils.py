"""Sessions of requests for `DICOMwebClient(session=…)`, with authentication and certificates.

They serve programs that run in one process. What travels to workers is `Endpoint(credentials=…, tls=TLS(…))`.
"""

from __future__ import annotations

import os
from typing import Any

import requests
from requests.auth import AuthBase, HTTPBasicAuth

__all__ = [
    "add_certs_to_session",
    "create_session",
    "create_session_from_auth",
    "create_session_from_gcp_credentials",
    "create_session_from_user_pass",
]


def create_session() -> requests.Session:
    """Makes a session without authentication."""
    return requests.Session()


def create_session_from_auth(auth: AuthBase) -> requests.Session:
    """Makes a session that authenticates its requests.

    Args:
        auth: Any authentication of requests, such as `requests.auth.HTTPBasicAuth`.

    Raises:
        TypeError: If it is not valid.
    """
    if not callable(auth):
        raise TypeError(f"auth must be a requests.auth.AuthBase, not {type(auth).__name__}")
    session = create_session()
    session.auth = auth
    return session


def create_session_from_user_pass(username: str, password: str) -> requests.Session:
    """Makes a session with basic authentication (RFC 7617).

    Args:
        username: The user's name.
        password: The password.
    """
    for name, value in (("username", username), ("password", password)):
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    return create_session_from_auth(HTTPBasicAuth(username, password))


def add_certs_to_session(
    session: requests.Session,
    ca_bundle: str | os.PathLike[str] | None = None,
    cert: str | os.PathLike[str] | tuple[str, str] | None = None,
) -> requests.Session:
    """Adds certificates to a session, which is changed and returned.

    Args:
        session: The session.
        ca_bundle: The path of the certificates to trust, in PEM.
        cert: The path of a client certificate with its key, in PEM, or a pair of the paths of both.

    Raises:
        OSError: If a file does not exist.
    """
    if ca_bundle is not None:
        session.verify = _existing(ca_bundle, "ca_bundle")
    if isinstance(cert, (tuple, list)):
        certificate, key = cert
        session.cert = (_existing(certificate, "cert"), _existing(key, "cert"))
    elif cert is not None:
        session.cert = _existing(cert, "cert")
    return session


def _existing(path: str | os.PathLike[str], name: str) -> str:
    text = os.fspath(path)
    if not os.path.exists(text):
        raise FileNotFoundError(f"{name}: there is no file {text!r}")
    return text


def create_session_from_gcp_credentials(google_credentials: Any | None = None) -> requests.Session:
    """Makes a session with Google credentials.

    Args:
        google_credentials: Credentials of google.auth; by default the application-default credentials. Without scopes
            they get the one for Google Cloud.

    Raises:
        google.auth.exceptions.DefaultCredentialsError: If there are no application-default credentials.
    """
    import google.auth
    from google.auth import credentials as google_auth_credentials
    from google.auth.transport import requests as google_auth_requests

    with_scopes_if_required: Any = google_auth_credentials.with_scopes_if_required
    session_class: Any = google_auth_requests.AuthorizedSession
    scopes = ["https://www.googleapis.com/auth/cloud-platform"]
    if google_credentials is None:
        google_credentials, _ = google.auth.default(scopes=scopes)
    else:
        google_credentials = with_scopes_if_required(google_credentials, scopes)
    session: requests.Session = session_class(google_credentials)
    return session
