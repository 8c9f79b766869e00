"""Authentication as servers ask for it: basic, bearer tokens with expiry, OAuth2 client credentials, AWS SigV4."""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from dicomweb_io.testing.server.exchange import Answer, Exchange, json_answer


class Authentication:
    """Decides whether a request may pass. The base class lets everything pass."""

    def refusal(self, exchange: Exchange) -> Answer | None:
        """The answer that refuses the request; None if it may pass."""
        return None

    def other(self, exchange: Exchange) -> Answer | None:
        """Answers requests to its own resources, such as a token endpoint; None for all others."""
        return None

    def expire(self) -> None:
        """Makes everything that was issued so far invalid."""


class BasicAuthentication(Authentication):
    """Name and password (RFC 7617).

    Args:
        users: Passwords by name.
        realm: As told to the client.
    """

    def __init__(self, users: Mapping[str, str], realm: str = "dicomweb_io test") -> None:
        self._users = dict(users)
        self._realm = realm

    def refusal(self, exchange: Exchange) -> Answer | None:
        """None if name and password are right."""
        scheme, _, value = exchange.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                name, _, password = base64.b64decode(value, validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                name = password = ""
            known = self._users.get(name)
            if known is not None and hmac.compare_digest(known.encode(), password.encode()):
                return None
        return _unauthorized(f'Basic realm="{self._realm}"')


class BearerAuthentication(Authentication):
    """Bearer tokens that expire (RFC 6750).

    Args:
        tokens: Valid tokens.
        lifetime: Seconds that tokens made by `issue` live; None for ever.
    """

    def __init__(self, tokens: Iterable[str] = (), lifetime: float | None = None) -> None:
        self._lock = threading.Lock()
        self._lifetime = lifetime
        self._valid_until: dict[str, float] = dict.fromkeys(tokens, float("inf"))

    def issue(self, lifetime: float | None = None) -> str:
        """Makes a new token.

        Args:
            lifetime: Seconds, instead of the usual ones.
        """
        seconds = self._lifetime if lifetime is None else lifetime
        token = secrets.token_urlsafe(24)
        with self._lock:
            self._valid_until[token] = float("inf") if seconds is None else time.monotonic() + seconds
        return token

    def accept(self, token: str, lifetime: float | None = None) -> None:
        """Lets a token pass.

        Args:
            token: The token.
            lifetime: Seconds from now; None for ever.
        """
        with self._lock:
            self._valid_until[token] = float("inf") if lifetime is None else time.monotonic() + lifetime

    def expire(self) -> None:
        """All tokens become invalid now."""
        with self._lock:
            self._valid_until = dict.fromkeys(self._valid_until, 0.0)

    def refusal(self, exchange: Exchange) -> Answer | None:
        """None if the token is known and has not expired."""
        scheme, _, token = exchange.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return _unauthorized("Bearer")
        with self._lock:
            until = self._valid_until.get(token.strip(), 0.0)
        if until > time.monotonic():
            return None
        return _unauthorized('Bearer error="invalid_token", error_description="The access token expired"')


class OAuth2Authentication(BearerAuthentication):
    """Bearer tokens from a token endpoint of the same server, by client credentials (RFC 6749 section 4.4).

    Args:
        client_id: The client's name.
        client_secret: Its secret.
        lifetime: Seconds that a token lives.
        path: The path of the token endpoint.

    Attributes:
        issued: How many tokens were issued.
    """

    def __init__(
        self, client_id: str, client_secret: str, lifetime: float = 3600.0, path: str = "/oauth2/token"
    ) -> None:
        super().__init__(lifetime=lifetime)
        self._client = (client_id, client_secret)
        self.path = path
        self.issued = 0

    def other(self, exchange: Exchange) -> Answer | None:
        """Gives out tokens."""
        if exchange.path != self.path:
            return None
        if exchange.method != "POST":
            return Answer(405, {"Allow": "POST"})
        form = {name: values[0] for name, values in parse_qs(b"".join(exchange.body).decode()).items()}
        client = (form.get("client_id", ""), form.get("client_secret", ""))
        scheme, _, value = exchange.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            name, _, password = base64.b64decode(value).decode().partition(":")
            client = (name, password)
        if form.get("grant_type") != "client_credentials":
            return json_answer({"error": "unsupported_grant_type"}, 400)
        if not hmac.compare_digest("\0".join(client).encode(), "\0".join(self._client).encode()):
            return json_answer({"error": "invalid_client"}, 401)
        self.issued += 1
        return json_answer(
            {"access_token": self.issue(), "token_type": "Bearer", "expires_in": int(self._lifetime or 3600)}
        )


class SigV4Authentication(Authentication):
    """AWS Signature Version 4, checked with botocore (extra `aws`).

    Args:
        access_key: The access key id.
        secret_key: Its secret.
        region: The region that must be signed for.
        service: The service that must be signed for.
    """

    def __init__(
        self, access_key: str, secret_key: str, region: str = "us-east-1", service: str = "medical-imaging"
    ) -> None:
        self._keys = (access_key, secret_key)
        self._region = region
        self._service = service

    def refusal(self, exchange: Exchange) -> Answer | None:
        """None if the signature is right. The signed hash of the body is believed, not recomputed."""
        given = exchange.headers.get("authorization", "")
        prefix = "AWS4-HMAC-SHA256 "
        if not given.startswith(prefix):
            return json_answer({"message": "Missing Authentication Token"}, 403)
        fields = dict(piece.strip().partition("=")[::2] for piece in given[len(prefix) :].split(","))
        if not hmac.compare_digest(self._signature(exchange, fields).encode(), fields.get("Signature", "").encode()):
            return json_answer({"message": "The request signature we calculated does not match"}, 403)
        return None

    def _signature(self, exchange: Exchange, fields: Mapping[str, str]) -> str:
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        names = fields.get("SignedHeaders", "").split(";")
        # As AWS does it: every name and value decoded and encoded again, whichever characters the client left raw.
        query = "&".join(f"{_canonical(name)}={_canonical(value)}" for name, value in exchange.query)
        url = exchange.base_url.partition("://")[0] + "://" + exchange.headers.get("host", "") + exchange.path
        request = AWSRequest(
            exchange.method,
            url + ("?" + query if query else ""),
            headers={name: exchange.headers[name] for name in names if name in exchange.headers},
        )
        timestamp = exchange.headers.get("x-amz-date", "")
        request.context["timestamp"] = timestamp
        signer = SigV4Auth(Credentials(*self._keys), self._service, self._region)
        if fields.get("Credential") != f"{self._keys[0]}/{timestamp[:8]}/{self._region}/{self._service}/aws4_request":
            return ""
        return str(signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request))


def _canonical(text: str) -> str:
    return quote(unquote(text), safe="-_.~")


def authentication_of(value: Any) -> Authentication:
    """What the argument ``auth`` of `dicomweb_io.testing.serve` means.

    Args:
        value: None, an `Authentication`, a pair of name and password, or a bearer token.

    Raises:
        TypeError: If it is none of these.
    """
    if value is None:
        return Authentication()
    if isinstance(value, Authentication):
        return value
    if isinstance(value, tuple) and len(value) == 2:
        return BasicAuthentication({str(value[0]): str(value[1])})
    if isinstance(value, str):
        return BearerAuthentication([value])
    raise TypeError(f"auth is an Authentication, a pair or a token, not {type(value).__name__}")


def _unauthorized(challenge: str) -> Answer:
    return Answer(401, {"WWW-Authenticate": challenge, "Content-Type": "text/plain"}, b"Who are you?")
