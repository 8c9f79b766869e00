"""Which secrets the description of an archive holds literally, so that they travel wherever it is pickled."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from urllib.parse import urlsplit

from dicomweb_io.clients.endpoint import Endpoint
from dicomweb_io.wire.credentials import Credentials

_SECRET_NAME = re.compile(r"auth|cookie|key|pass|secret|token|credential", re.IGNORECASE)


def literal_secrets(endpoint: Endpoint) -> tuple[str, ...]:
    """The kinds of secrets in an endpoint that are no references, in words and without their values.

    Headers and storage options count if their name sounds like a secret. An authentication object of requests counts
    always: nobody knows what it holds.
    """
    kinds: list[str] = []
    credentials = endpoint.credentials
    if isinstance(credentials, Credentials):
        if is_dataclass(credentials):
            kinds += [
                f"{type(credentials).__name__}.{item.name}"
                for item in fields(credentials)
                if item.metadata.get("secret") and getattr(credentials, item.name) is not None
            ]
    elif credentials is not None:
        kinds.append(f"an authentication object ({type(credentials).__name__})")
    if endpoint.is_web and urlsplit(endpoint.url).password is not None:
        kinds.append("a password in the URL")
    kinds += [f"the header {name}" for name in endpoint.headers or () if _SECRET_NAME.search(name)]
    kinds += [f"the storage option {name}" for name in endpoint.storage_options or () if _SECRET_NAME.search(name)]
    kinds += [
        f"a password in the proxy URL for {scheme}"
        for scheme, url in (endpoint.proxies or {}).items()
        if urlsplit(url).password is not None
    ]
    return tuple(kinds)
