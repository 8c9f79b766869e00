"""AWS Signature Version 4 for requests, computed by botocore."""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import requests

from dicomweb_io.wire.credentials import Authenticator
from dicomweb_io.wire.errors import CredentialsError

if TYPE_CHECKING:
    from dicomweb_io.wire.credentials import AWSSigV4

_SIGNED = ("content-type", "x-amz-content-sha256")


class SigV4Authenticator(Authenticator):
    """Signs each request, body included.

    The query is signed in AWS's canonical form (every value decoded and encoded again), so that a raw comma in the
    query is signed as ``%2C``, which is what the service computes.

    Args:
        description: Region, service and where the keys come from.

    Raises:
        ImportError: If botocore is not installed.
    """

    def __init__(self, description: AWSSigV4) -> None:
        try:
            import botocore.auth
            import botocore.awsrequest
            import botocore.credentials
        except ImportError:
            raise ImportError("AWSSigV4 needs the package botocore: pip install dicomweb_io[aws]") from None
        self._description = description
        self._lock = threading.Lock()
        self._keys: Any = None
        if description.access_key_id is not None:
            self._keys = botocore.credentials.Credentials(
                description.access_key_id, description.secret_access_key, description.session_token
            )

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
        with self._lock:
            if self._keys is None:
                import botocore.exceptions
                import botocore.session

                try:
                    session = botocore.session.Session(profile=self._description.profile)
                    self._keys = session.get_credentials()
                except botocore.exceptions.BotoCoreError as error:
                    raise CredentialsError(f"AWS: no keys could be had ({type(error).__name__})") from None
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
