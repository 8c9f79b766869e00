"""Credentials as picklable descriptions, resolved where they are used.

A description names where a secret comes from (an environment variable, a file, a command, a cloud identity) and so
travels in a pickle without it. A literal secret does travel; it is masked in ``repr``. What a description becomes on a
worker is an `Authenticator`, which holds tokens, renews them before they expire and after the server refused one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import shlex
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timezone
from functools import partial
from importlib import import_module
from typing import Any, Protocol
from urllib.parse import quote, quote_plus, unquote, urlencode

import requests
from requests.auth import AuthBase

from dicomweb_io.errors import CredentialsError, DICOMwebError, safe_url
from dicomweb_io.http.connections import Exchange, NoAuth, WatchedAdapter
from dicomweb_io.http.response import Answer
from dicomweb_io.http.retry import start_anew_after_fork
from dicomweb_io.http.settings import Timeouts

_EXPIRY_MARGIN = 30.0
_COMMAND_SECONDS = 60.0
_DEADLINE = 120.0
"""Seconds that getting one token may take."""

_MAX_ANSWER = 1 << 20
_AUTHORIZATION = "Authorization"
_SIGNED = ("content-type", "x-amz-content-sha256")


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


class TokenTransport(Protocol):
    """What a token endpoint is asked through; a `Transport` is one."""

    def request(self, method: str, url: str, *, headers: Mapping[str, str], body: bytes, max_bytes: int) -> Answer:
        """Sends a request and reads the answer."""


class _Connect(Protocol):
    def __call__(self, base_url: str, *, timeouts: Timeouts) -> TokenTransport: ...


@dataclass(frozen=True)
class TokenAccess:
    """How token endpoints are reached: as the archive is, but each with separate limits.

    Attributes:
        connect: Makes a transport to a token endpoint.
        verify: How its certificate is verified (see `TLS`).
        proxies: Proxy URL by scheme.
        timeouts: How long to wait for it.
    """

    connect: _Connect
    verify: bool | str
    proxies: Mapping[str, str] | None
    timeouts: Timeouts


class Credentials(ABC):
    """How to authenticate: a frozen, picklable description."""

    @abstractmethod
    def auth(self, access: TokenAccess) -> Authenticator:
        """Makes the authenticator. No traffic yet.

        Args:
            access: How a token endpoint is reached.

        Raises:
            ValueError: If the description contradicts itself.
            ImportError: If a package is missing that this kind of credentials needs.
        """

    def check(self) -> None:
        """Looks whether the variables and files that hold the secrets are there, without any request.

        Raises:
            CredentialsError: If one is missing. It names the variable or file.
        """
        for item in fields(self):  # type: ignore[arg-type]
            value, kind = getattr(self, item.name), item.name.rpartition("_")[2]
            if value is not None and not item.metadata.get("secret") and kind in _SOURCES:
                _SOURCES[kind](value)

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


def variable_text(name: str) -> str:
    """What to call a variable of the environment: a secret itself, given by mistake, is not shown."""
    return f"variable {name}" if re.fullmatch("[A-Z_][A-Z0-9_]{0,60}", name) else "variable"


def _from_environment(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise CredentialsError(f"the environment {variable_text(name)} is not set")
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


_SOURCES: dict[str, Callable[[str], str]] = {"env": _from_environment, "file": _from_file}


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

    def auth(self, access: TokenAccess) -> Authenticator:
        """Makes what sends user and password."""
        return _HeaderAuthenticator(self._header)

    def _header(self) -> str:
        password = _secret_value(self.password, self.password_env, self.password_file)
        return "Basic " + base64.b64encode(f"{self.username}:{password}".encode()).decode("ascii")


class _HeaderAuthenticator(Authenticator):
    """Sets a header that is made again for each request, from sources that are cheap to ask."""

    def __init__(self, header: Callable[[], str]) -> None:
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

    def __init__(self, fetch: Callable[[], Token]) -> None:
        self._fetch = fetch
        self._token: Token | None = None
        self.start_anew()
        start_anew_after_fork(self)

    def start_anew(self) -> None:
        """Makes a new lock; a token is as good in a forked child."""
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

    def auth(self, access: TokenAccess) -> Authenticator:
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

    def auth(self, access: TokenAccess) -> Authenticator:
        """Makes the authenticator, which gets and sends tokens."""
        return TokenAuthenticator(ClientCredentialsGrant(self, access))

    def secret(self) -> str:
        """The client's secret, read from its source."""
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

    def auth(self, access: TokenAccess) -> Authenticator:
        """Makes the authenticator, which gets and sends tokens."""
        return QuotaProjectAuthenticator(GoogleTokens(self, access), self.quota_project)


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

    def auth(self, access: TokenAccess) -> Authenticator:
        """Makes what gets and sends tokens; `ImportError` without azure-identity."""
        return TokenAuthenticator(AzureTokens(self))


@dataclass(frozen=True, repr=False)
class AWSSigV4(Credentials):
    """AWS Signature Version 4, as AWS HealthImaging requires it (extra ``aws``).

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

    def auth(self, access: TokenAccess) -> Authenticator:
        """Makes what signs requests; `ImportError` without botocore."""
        return SigV4Authenticator(self)


class ClientCredentialsGrant:
    """Gets tokens by the client credentials grant (RFC 6749 section 4.4).

    Args:
        credentials: What to ask with.
        access: How the endpoint is reached.
    """

    def __init__(self, credentials: OAuth2ClientCredentials, access: TokenAccess) -> None:
        self._credentials = credentials
        self._transport = access.connect(credentials.token_url, timeouts=replace(access.timeouts, deadline=_DEADLINE))

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
        access: How the token endpoint is reached.
    """

    def __init__(self, description: GoogleCredentials, access: TokenAccess) -> None:
        self._description = description
        self._session = requests.Session()
        self._session.auth = NoAuth()
        self._session.verify = access.verify
        self._session.proxies.update(access.proxies or {})
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, WatchedAdapter(1))
        self._verify = access.verify
        self._timeout = (access.timeouts.connect, access.timeouts.read)
        self.start_anew()
        start_anew_after_fork(self)

    def start_anew(self) -> None:
        """Begins without credentials: google-auth's may have locks of their own."""
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
                f"Google credentials: {type(error).__name__}: no token was obtained", retryable=bool(error.retryable)
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

    def __init__(self, fetch: Callable[[], Token], quota_project: str | None) -> None:
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
        self._make: Callable[[], Any] = partial(DefaultAzureCredential, **options)
        self._scope = description.scope
        self._options = {"tenant_id": description.tenant_id} if description.tenant_id else {}
        self.start_anew()
        start_anew_after_fork(self)

    def start_anew(self) -> None:
        """Makes a new credential: azure-identity's has locks and connections of its own."""
        self._credential: Any = self._make()

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
            raise CredentialsError(f"Azure: no identity provides a token ({type(error).__name__})") from None
        return Token(token.token, float(token.expires_on))


class SigV4Authenticator(Authenticator):
    """Signs each request with AWS Signature Version 4, body included; botocore computes it.

    The query is signed in AWS's canonical form (every value decoded and encoded again), so that a raw comma in the
    query is signed as ``%2C``, which is what the service computes.

    Args:
        description: Region, service and where the keys come from.

    Raises:
        ImportError: If botocore is not installed.
    """

    def __init__(self, description: AWSSigV4) -> None:
        try:
            import_module("botocore.auth")
        except ImportError:
            raise ImportError("AWSSigV4 needs the package botocore: pip install dicomweb_io[aws]") from None
        self._description = description
        self.start_anew()
        start_anew_after_fork(self)

    def start_anew(self) -> None:
        """Begins without keys: botocore's have locks and connections of their own."""
        self._lock = threading.Lock()
        self._keys: Any = None

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Signs a request in place."""
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest

        url, _, query = (request.url or "").partition("?")
        request.headers["X-Amz-Content-SHA256"] = body_hash(request.body)
        headers = {name: value for name, value in request.headers.items() if name.lower() in _SIGNED}
        canonical = AWSRequest(request.method, f"{url}?{canonical_query(query)}" if query else url, headers=headers)
        SigV4Auth(self._frozen(), self._description.service, self._description.region).add_auth(canonical)
        for name in ("Authorization", "X-Amz-Date", "X-Amz-Security-Token"):
            if name in request.headers:
                del request.headers[name]
            if name in canonical.headers:
                request.headers[name] = canonical.headers[name]
        return request

    def _frozen(self) -> Any:
        import botocore.credentials
        import botocore.exceptions
        import botocore.session

        with self._lock:
            description = self._description
            if self._keys is None and description.access_key_id is not None:
                self._keys = botocore.credentials.Credentials(
                    description.access_key_id, description.secret_access_key, description.session_token
                )
            elif self._keys is None:
                try:
                    session = botocore.session.Session(profile=description.profile)
                    self._keys = session.get_credentials()
                except botocore.exceptions.BotoCoreError as error:
                    raise CredentialsError(f"AWS: the keys cannot be loaded ({type(error).__name__})") from None
            if self._keys is None:
                raise CredentialsError("AWS: no keys were found (environment, profile, container or instance role)")
            # Temporary keys are renewed here.
            return self._keys.get_frozen_credentials()


def canonical_query(query: str) -> str:
    """A query in AWS's canonical form: every name and value decoded, encoded again, and sorted."""
    pairs = []
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        pairs.append((quote(unquote(name), safe="-_.~"), quote(unquote(value), safe="-_.~")))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def body_hash(body: Any) -> str:
    """The SHA-256 of a request body in hex; a body that can be iterated afresh is read once for it."""
    digest = hashlib.sha256()
    if isinstance(body, str):
        digest.update(body.encode())
    elif isinstance(body, (bytes, bytearray, memoryview)):
        digest.update(body)
    elif body is not None:
        if iter(body) is body:
            raise ValueError("a body that can be read once only cannot be signed; give bytes or a MultipartBody")
        for piece in body:
            digest.update(piece)
    return digest.hexdigest()
