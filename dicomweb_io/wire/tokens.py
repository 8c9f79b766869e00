"""Where tokens come from: an OAuth 2.0 token endpoint, google-auth, azure-identity."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Mapping
from datetime import timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus, urlencode

import requests

from dicomweb_io.wire.connections import Exchange, WatchedAdapter
from dicomweb_io.wire.credentials import Token, TokenAuthenticator
from dicomweb_io.wire.errors import CredentialsError, DICOMwebError, safe_url
from dicomweb_io.wire.retry import RetryPolicy

if TYPE_CHECKING:
    from dicomweb_io.wire.credentials import AzureCredentials, GoogleCredentials, OAuth2ClientCredentials

_MAX_ANSWER = 1 << 20
_DEADLINE = 120.0


class _Silent(requests.auth.AuthBase):
    """No authentication of requests' own, from a .netrc file for example."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


def _session(verify: bool | str, proxies: Mapping[str, str] | None) -> requests.Session:
    session = requests.Session()
    session.auth = _Silent()
    session.verify = verify
    session.proxies.update(proxies or {})
    for scheme in ("https://", "http://"):
        session.mount(scheme, WatchedAdapter(1))
    return session


class ClientCredentialsGrant:
    """Gets tokens by the client credentials grant (RFC 6749 section 4.4).

    Args:
        credentials: What to ask with.
        verify: How the endpoint's certificate is verified.
        proxies: Proxies.
        timeout: Seconds to connect and to read.
    """

    def __init__(
        self,
        credentials: OAuth2ClientCredentials,
        verify: bool | str,
        proxies: Mapping[str, str] | None,
        timeout: tuple[float, float],
    ) -> None:
        # It talks to another server than the archive's, with other limits.
        from dicomweb_io.wire.transport import Transport

        self._credentials = credentials
        self._transport = Transport(
            credentials.token_url,
            verify=verify,
            proxies=proxies,
            timeout=timeout,
            deadline=_DEADLINE,
            # The archive's transport repeats what fails here along with the request that needed the token.
            retry=RetryPolicy.none(),
        )

    def __call__(self) -> Token:
        """Asks the token endpoint once.

        Raises:
            CredentialsError: If it refuses or cannot be reached.
        """
        description = self._credentials
        form = {"grant_type": "client_credentials"}
        if description.scope is not None:
            form["scope"] = description.scope
        if description.audience is not None:
            form["audience"] = description.audience
        headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
        secret = description.secret()
        if description.post_secret:
            form.update(client_id=description.client_id, client_secret=secret)
        else:
            # RFC 6749 section 2.3.1: both are form-encoded before they are joined.
            pair = f"{quote_plus(description.client_id)}:{quote_plus(secret)}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode("ascii")
        try:
            answer = self._transport.request(
                "POST", description.token_url, headers=headers, body=urlencode(form).encode(), max_bytes=_MAX_ANSWER
            )
        except DICOMwebError as error:
            code = _json(error.response.content).get("error") if error.response is not None else None
            if error.status is None or not isinstance(code, str):
                detail = f"the token endpoint gave no token: {error.detail}"
            else:
                detail = f"the token endpoint refused ({code[:60]})"
            raise CredentialsError(
                detail,
                status=error.status,
                url=error.url,
                method="POST",
                retryable=error.retryable,
            ) from None
        token = _json(answer.content)
        value, kind = token.get("access_token"), token.get("token_type")
        if not isinstance(value, str) or not value:
            raise answer.error("the token endpoint's answer has no access_token", CredentialsError)
        if isinstance(kind, str) and kind.lower() != "bearer":
            raise answer.error(f"the token endpoint gave a token of type {kind[:20]!r}", CredentialsError)
        return Token(value, _expiry(token.get("expires_in")))

    def __repr__(self) -> str:
        return f"<tokens from {safe_url(self._credentials.token_url)}>"


def _json(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _expiry(seconds: Any) -> float | None:
    try:
        lifetime = float(seconds)
    except (TypeError, ValueError):
        return None
    # The margin before the expiry is taken off later; a token that lives shorter than that must be usable still.
    return time.time() + (lifetime if lifetime > 60 else lifetime / 2 + 30)


class GoogleTokens:
    """Gets tokens with google-auth.

    Args:
        description: Which credentials.
        verify: How the token endpoint's certificate is verified.
        proxies: Proxies.
        timeout: Seconds to connect and to read.
    """

    def __init__(
        self,
        description: GoogleCredentials,
        verify: bool | str,
        proxies: Mapping[str, str] | None,
        timeout: tuple[float, float],
    ) -> None:
        self._description = description
        self._session = _session(verify, proxies)
        self._verify = verify
        self._timeout = timeout
        self._credentials: Any = None

    def __call__(self) -> Token:
        """Gets a new token.

        Raises:
            CredentialsError: If there are no credentials or the token endpoint refuses.
        """
        import google.auth.exceptions
        import google.auth.transport.requests

        try:
            if self._credentials is None:
                self._credentials = self._find()
            self._credentials.refresh(self._request(google.auth.transport.requests.Request(session=self._session)))
        except google.auth.exceptions.GoogleAuthError as error:
            raise CredentialsError(
                f"Google credentials: {type(error).__name__}: no token could be had", retryable=bool(error.retryable)
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise CredentialsError(f"Google credentials: the key is not usable ({type(error).__name__})") from None
        expiry = self._credentials.expiry
        expires_at = None if expiry is None else expiry.replace(tzinfo=expiry.tzinfo or timezone.utc).timestamp()
        return Token(self._credentials.token, expires_at)

    def _request(self, request: Any) -> Any:
        def send(url: str, method: str = "GET", body: Any = None, headers: Any = None, **kwargs: Any) -> Any:
            kwargs["timeout"] = self._timeout
            with Exchange(time.monotonic() + _DEADLINE, self._timeout[1]) as exchange:
                exchange.begin()
                try:
                    return request(url, method=method, body=body, headers=headers, verify=self._verify, **kwargs)
                finally:
                    exchange.finish()

        return send

    def _find(self) -> Any:
        import google.auth

        # google-auth is only partly typed.
        load_dictionary: Any = google.auth.load_credentials_from_dict
        description = self._description
        info = description.info
        if info is None and description.file is not None:
            try:
                with open(description.file, encoding="utf-8") as file:
                    info = json.load(file)
            except OSError as error:
                raise CredentialsError(f"the key file {description.file} cannot be read: {error.strerror}") from None
        scopes = list(description.scopes)
        if info is None:
            credentials, _ = google.auth.default(scopes=scopes, request=None)
            path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
            if description.token_uri is None or not path:
                return credentials
            with open(path, encoding="utf-8") as file:
                info = json.load(file)
        assert info is not None  # noqa: S101 - for the type checker
        kind = info.get("type")
        if kind == "service_account":
            from google.oauth2 import service_account

            from_info: Any = service_account.Credentials.from_service_account_info
            merged = {**info, "token_uri": description.token_uri or info.get("token_uri")}
            return from_info(merged, scopes=scopes)
        if kind == "authorized_user":
            from google.oauth2 import credentials as user_credentials

            user: Any = user_credentials.Credentials
            return user(
                None,
                refresh_token=info["refresh_token"],
                client_id=info["client_id"],
                client_secret=info["client_secret"],
                token_uri=description.token_uri or info.get("token_uri") or "https://oauth2.googleapis.com/token",
                scopes=scopes,
            )
        credentials, _ = load_dictionary(dict(info), scopes=scopes)
        return credentials


class QuotaProjectAuthenticator(TokenAuthenticator):
    """Sends a bearer token, and the project that is billed.

    Args:
        fetch: Gets a new token.
        quota_project: The project, or None.
    """

    def __init__(self, fetch: Any, quota_project: str | None) -> None:
        super().__init__(fetch)
        self._quota_project = quota_project

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Puts token and project in."""
        request = super().__call__(request)
        if self._quota_project is not None:
            request.headers["X-Goog-User-Project"] = self._quota_project
        return request


class AzureTokens:
    """Gets tokens with azure-identity.

    Args:
        description: Which identity.

    Raises:
        ImportError: If azure-identity is not installed.
    """

    def __init__(self, description: AzureCredentials) -> None:
        try:
            from azure.identity import DefaultAzureCredential
        except ImportError:
            raise ImportError(
                "AzureCredentials need the package azure-identity: pip install dicomweb_io[azure]"
            ) from None
        options = {"managed_identity_client_id": description.client_id} if description.client_id else {}
        self._credential: Any = DefaultAzureCredential(**options)
        self._scope = description.scope
        self._options = {"tenant_id": description.tenant_id} if description.tenant_id else {}

    def __call__(self) -> Token:
        """Gets a token; azure-identity keeps one until shortly before it expires.

        Raises:
            CredentialsError: If no identity is found, or it gets no token.
        """
        from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError

        try:
            token = self._credential.get_token(self._scope, **self._options)
        except ServiceRequestError:
            raise CredentialsError("Azure: the token endpoint cannot be reached", retryable=True) from None
        except ClientAuthenticationError as error:
            raise CredentialsError(f"Azure: no identity gives a token ({type(error).__name__})") from None
        return Token(token.token, float(token.expires_on))
