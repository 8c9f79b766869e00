"""Credentials as picklable descriptions, resolved where they are used.

A description names where a secret comes from (an environment variable, a file, a command, a cloud identity) and so
travels in a pickle without it. A literal secret does travel; it is masked in ``repr``. What a description becomes on a
worker is an `Authenticator`, which holds tokens, renews them before they expire and after the server refused one.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import shlex
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import requests
from requests.auth import AuthBase

from dicomweb_io.wire.errors import CredentialsError

_EXPIRY_MARGIN = 30.0
_COMMAND_SECONDS = 60.0
_AUTHORIZATION = "Authorization"


class Authenticator(AuthBase):
    """Puts credentials into requests; safe to use from many threads."""

    def refresh(self, rejected: requests.PreparedRequest) -> bool:
        """Called when the server answered 401.

        Args:
            rejected: The request that was refused, with the credentials it carried.

        Returns:
            Whether there are other credentials now, so that trying again makes sense.
        """
        return False


class Credentials(ABC):
    """How to authenticate: a frozen, picklable description."""

    @abstractmethod
    def auth(
        self,
        *,
        verify: bool | str = True,
        proxies: Mapping[str, str] | None = None,
        timeout: tuple[float, float] = (10.0, 60.0),
    ) -> Authenticator:
        """Makes what puts them into requests. No traffic yet.

        Args:
            verify: How a token endpoint's TLS certificate is verified (see `Transport`).
            proxies: Proxies for a token endpoint.
            timeout: Seconds to connect to a token endpoint and to read from it.

        Raises:
            ValueError: If the description contradicts itself.
            ImportError: If a package is missing that this kind of credentials needs.
        """

    def __repr__(self) -> str:
        shown = []
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if value is None or (value == item.default and not item.metadata.get("secret")):
                continue
            shown.append(f"{item.name}={'***' if item.metadata.get('secret') else repr(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _secret(**options: Any) -> Any:
    return field(default=None, repr=False, metadata={"secret": True}, **options)


def _exactly_one(owner: str, **sources: Any) -> str:
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"{owner} needs exactly one of {', '.join(sources)}" + (f"; given: {', '.join(given)}" if given else "")
        )
    return given[0]


def _from_environment(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise CredentialsError(f"the environment variable {name} is not set")
    return value.strip()


def _from_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            value = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise CredentialsError(f"the credentials file {path} cannot be read: {reason}") from None
    if not value:
        raise CredentialsError(f"the credentials file {path} is empty")
    return value


def _secret_value(literal: str | None, env: str | None, file: str | None) -> str:
    if literal is not None:
        return literal
    return _from_environment(env) if env is not None else _from_file(file or "")


@dataclass(frozen=True, repr=False)
class BasicCredentials(Credentials):
    """User name and password (RFC 7617, in UTF-8).

    Attributes:
        username: The user; no colon.
        password: The password itself, which then travels in pickles.
        password_env: The environment variable that holds it, read for each request.
        password_file: The file that holds it, read for each request.
    """

    username: str
    password: str | None = _secret()
    password_env: str | None = None
    password_file: str | None = None

    def __post_init__(self) -> None:
        if ":" in self.username:
            raise ValueError("a user name for basic authentication must not contain a colon")
        _exactly_one(
            "BasicCredentials",
            password=self.password,
            password_env=self.password_env,
            password_file=self.password_file,
        )

    def auth(
        self,
        *,
        verify: bool | str = True,
        proxies: Mapping[str, str] | None = None,
        timeout: tuple[float, float] = (10.0, 60.0),
    ) -> Authenticator:
        """Makes what sends user and password."""
        return _HeaderAuthenticator(self._header)

    def _header(self) -> str:
        password = _secret_value(self.password, self.password_env, self.password_file)
        return "Basic " + base64.b64encode(f"{self.username}:{password}".encode()).decode("ascii")


class _HeaderAuthenticator(Authenticator):
    """Sets a header that is made anew for each request, from sources that are cheap to ask."""

    def __init__(self, header: Any) -> None:
        self._header = header

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers[_AUTHORIZATION] = self._header()
        return request

    def refresh(self, rejected: requests.PreparedRequest) -> bool:
        return bool(self._header() != rejected.headers.get(_AUTHORIZATION))


@dataclass(frozen=True)
class Token:
    """An access token.

    Attributes:
        value: The token.
        expires_at: When it ends, by `time.time`; None if unknown.
    """

    value: str = field(repr=False)
    expires_at: float | None = None


class TokenAuthenticator(Authenticator):
    """Sends a bearer token (RFC 6750), and gets a new one shortly before it expires and when the server refuses it.

    When several threads are refused at once, one of them gets the new token and all use it.

    Args:
        fetch: Gets a new token; raises `CredentialsError`.
    """

    def __init__(self, fetch: Any) -> None:
        self._fetch = fetch
        self._token: Token | None = None
        self._lock = threading.Lock()

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Puts the token in, after getting a new one if that is due."""
        request.headers[_AUTHORIZATION] = f"Bearer {self._current()}"
        return request

    def _current(self) -> str:
        with self._lock:
            token = self._token
            if token is None or (token.expires_at is not None and time.time() >= token.expires_at - _EXPIRY_MARGIN):
                token = self._token = self._fetch()
            return token.value

    def refresh(self, rejected: requests.PreparedRequest) -> bool:
        """Gets a new token, unless another thread has got one since the request was sent."""
        refused = rejected.headers.get(_AUTHORIZATION)
        with self._lock:
            if self._token is None or refused == f"Bearer {self._token.value}":
                self._token = self._fetch()
            return bool(refused != f"Bearer {self._token.value}")


@dataclass(frozen=True, repr=False)
class BearerToken(Credentials):
    """A bearer token from one of four sources (RFC 6750).

    Attributes:
        token: The token itself, which then travels in pickles and cannot be renewed.
        env: The environment variable that holds it, read for each request.
        file: The file that holds it, read for each request, so that a rotated token is taken up.
        command: A command that prints it, such as ``gcloud auth print-access-token``: a text (split like a shell does,
            run without one) or a tuple. It runs once, and again when the server refuses the token, or shortly before
            it expires if the token is a JWT that says when.
    """

    token: str | None = _secret()
    env: str | None = None
    file: str | None = None
    command: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.command is not None and not isinstance(self.command, str):
            object.__setattr__(self, "command", tuple(self.command))
        _exactly_one("BearerToken", token=self.token, env=self.env, file=self.file, command=self.command)

    def auth(
        self,
        *,
        verify: bool | str = True,
        proxies: Mapping[str, str] | None = None,
        timeout: tuple[float, float] = (10.0, 60.0),
    ) -> Authenticator:
        """Makes what sends the token."""
        if self.command is not None:
            return TokenAuthenticator(self._run)
        return _HeaderAuthenticator(lambda: "Bearer " + _secret_value(self.token, self.env, self.file))

    def _run(self) -> Token:
        words = shlex.split(self.command) if isinstance(self.command, str) else list(self.command or ())
        name = os.path.basename(words[0]) if words else ""
        try:
            done = subprocess.run(  # noqa: S603 - running the user's command is the purpose
                words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_SECONDS, check=False
            )
        except (OSError, IndexError) as error:
            reason = getattr(error, "strerror", None) or "it is empty"
            raise CredentialsError(f"the token command {name!r} cannot be run: {reason}") from None
        except subprocess.TimeoutExpired:
            raise CredentialsError(
                f"the token command {name!r} did not end within {_COMMAND_SECONDS:g} s", retryable=True
            ) from None
        value = done.stdout.decode("utf-8", "replace").strip()
        # Its output is not shown: it may hold what it should have printed.
        if done.returncode != 0:
            raise CredentialsError(f"the token command {name!r} failed with exit code {done.returncode}")
        if not value or len(value.split()) != 1:
            raise CredentialsError(
                f"the token command {name!r} printed {'nothing' if not value else 'more than a token'}"
            )
        return Token(value, _jwt_expiry(value))


def _jwt_expiry(token: str) -> float | None:
    """The ``exp`` claim of a JSON Web Token (RFC 7519 section 4.1.4), unverified; None if it is no JWT."""
    pieces = token.split(".")
    if len(pieces) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(pieces[1] + "=" * (-len(pieces[1]) % 4)))
    except (ValueError, binascii.Error):
        return None
    expires = claims.get("exp") if isinstance(claims, dict) else None
    return float(expires) if isinstance(expires, (int, float)) else None


@dataclass(frozen=True, repr=False)
class OAuth2ClientCredentials(Credentials):
    """The OAuth 2.0 client credentials grant (RFC 6749 section 4.4), for example of Keycloak or Entra ID.

    Attributes:
        token_url: The token endpoint.
        client_id: The client.
        client_secret: Its secret itself, which then travels in pickles.
        client_secret_env: The environment variable that holds it.
        client_secret_file: The file that holds it.
        scope: Scopes, separated by blanks.
        audience: An ``audience`` parameter, which some providers want.
        post_secret: Send client and secret in the body instead of as basic authentication.
    """

    token_url: str
    client_id: str
    client_secret: str | None = _secret()
    client_secret_env: str | None = None
    client_secret_file: str | None = None
    scope: str | None = None
    audience: str | None = None
    post_secret: bool = False

    def __post_init__(self) -> None:
        _exactly_one(
            "OAuth2ClientCredentials",
            client_secret=self.client_secret,
            client_secret_env=self.client_secret_env,
            client_secret_file=self.client_secret_file,
        )

    def auth(
        self,
        *,
        verify: bool | str = True,
        proxies: Mapping[str, str] | None = None,
        timeout: tuple[float, float] = (10.0, 60.0),
    ) -> Authenticator:
        """Makes what gets and sends tokens."""
        from dicomweb_io.wire.tokens import ClientCredentialsGrant

        return TokenAuthenticator(ClientCredentialsGrant(self, verify, proxies, timeout))

    def secret(self) -> str:
        """The client's secret, from wherever it is."""
        return _secret_value(self.client_secret, self.client_secret_env, self.client_secret_file)


@dataclass(frozen=True, repr=False)
class GoogleCredentials(Credentials):
    """Google credentials: application-default ones, or those of a file or dictionary, renewed when they expire.

    Attributes:
        file: A key file (service account, authorized user, external account …); by default what google.auth finds.
        info: The content of such a file, which then travels in pickles.
        scopes: OAuth scopes.
        token_uri: A token endpoint in place of the one in the file.
        quota_project: The project that is billed.
    """

    file: str | None = None
    info: Mapping[str, Any] | None = _secret()
    scopes: tuple[str, ...] = ("https://www.googleapis.com/auth/cloud-platform",)
    token_uri: str | None = None
    quota_project: str | None = None

    def __post_init__(self) -> None:
        if self.file is not None and self.info is not None:
            raise ValueError("GoogleCredentials needs at most one of file, info")

    def auth(
        self,
        *,
        verify: bool | str = True,
        proxies: Mapping[str, str] | None = None,
        timeout: tuple[float, float] = (10.0, 60.0),
    ) -> Authenticator:
        """Makes what gets and sends tokens."""
        from dicomweb_io.wire.tokens import GoogleTokens, QuotaProjectAuthenticator

        return QuotaProjectAuthenticator(GoogleTokens(self, verify, proxies, timeout), self.quota_project)


@dataclass(frozen=True, repr=False)
class AzureCredentials(Credentials):
    """An Azure identity as azure-identity's ``DefaultAzureCredential`` finds it (extra ``azure``).

    Attributes:
        scope: The scope of the token; the default is that of Azure's DICOM service.
        client_id: The client ID of a user-assigned managed identity.
        tenant_id: The tenant, where several are possible.
    """

    scope: str = "https://dicom.healthcareapis.azure.com/.default"
    client_id: str | None = None
    tenant_id: str | None = None

    def auth(
        self,
        *,
        verify: bool | str = True,
        proxies: Mapping[str, str] | None = None,
        timeout: tuple[float, float] = (10.0, 60.0),
    ) -> Authenticator:
        """Makes what gets and sends tokens; `ImportError` without azure-identity."""
        from dicomweb_io.wire.tokens import AzureTokens

        return TokenAuthenticator(AzureTokens(self))


@dataclass(frozen=True, repr=False)
class AWSSigV4(Credentials):
    """AWS Signature Version 4, as AWS HealthImaging wants it (extra ``aws``).

    Without keys, those of botocore's chain are used: environment, profile, container, instance role; temporary ones
    are renewed. The body's hash is signed, so a body is read once more before it is sent.

    Attributes:
        region: The AWS region.
        service: The service's signing name.
        profile: A profile of the AWS configuration files.
        access_key_id: A literal key; travels in pickles, as the two below.
        secret_access_key: Its secret.
        session_token: The token of temporary keys.
    """

    region: str
    service: str = "medical-imaging"
    profile: str | None = None
    access_key_id: str | None = _secret()
    secret_access_key: str | None = _secret()
    session_token: str | None = _secret()

    def __post_init__(self) -> None:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("AWSSigV4 needs access_key_id and secret_access_key together")
        if self.access_key_id is not None and self.profile is not None:
            raise ValueError("AWSSigV4 needs at most one of access_key_id, profile")

    def auth(
        self,
        *,
        verify: bool | str = True,
        proxies: Mapping[str, str] | None = None,
        timeout: tuple[float, float] = (10.0, 60.0),
    ) -> Authenticator:
        """Makes what signs requests; `ImportError` without botocore."""
        from dicomweb_io.wire.sigv4 import SigV4Authenticator

        return SigV4Authenticator(self)
