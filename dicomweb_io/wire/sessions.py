"""How one HTTP request goes through a session of requests: our own, or one that the user passes."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from http.cookiejar import DefaultCookiePolicy
from typing import Any, cast
from urllib.parse import urlencode

import requests
from requests import cookies, hooks
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.utils import get_environ_proxies

from dicomweb_io._version import __version__
from dicomweb_io.wire.connections import Exchange, WatchedAdapter
from dicomweb_io.wire.urls import with_raw_target

# requests has no types for these.
_dispatch_hook: Any = hooks.dispatch_hook
_keep_cookies: Any = cookies.extract_cookies_to_jar
_MAY_BREAK = re.compile(r"[\r\n\0]")


class _NoAuth(AuthBase):
    """Keeps requests from looking for credentials in a .netrc file."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class SessionSender:
    """Sends single requests: raw URLs, no redirects, no retries, answers unread.

    Args:
        session: The user's session, or None for one of our own.
        verify: See `Transport`; True leaves it to the session.
        cert: See `Transport`; None leaves it to the session.
        proxies: See `Transport`.
        pool_size: Idle connections kept per host.
        callback: A response hook.
    """

    def __init__(
        self,
        session: requests.Session | None,
        *,
        verify: bool | str,
        cert: str | tuple[str, str] | None,
        proxies: Mapping[str, str] | None,
        pool_size: int,
        callback: Callable[..., Any] | None,
    ) -> None:
        check_verify(verify)
        for name, path in _files(verify, cert):
            if not os.path.exists(path):
                raise FileNotFoundError(f"{name}: there is no file {path!r}")
        self._adapter = WatchedAdapter(pool_size)
        self._session = session if session is not None else requests.Session()
        if session is None:
            self._session.headers["User-Agent"] = f"dicomweb_io/{__version__}"
            self._session.headers.pop("Accept", None)
        # For other origins: no authentication, no client certificate, no cookies, no headers of the user's.
        self._foreign = requests.Session()
        self._foreign.headers["User-Agent"] = f"dicomweb_io/{__version__}"
        self._foreign.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._foreign.trust_env = self._session.trust_env
        self._foreign.proxies = dict(self._session.proxies)
        self._verify = verify
        self._cert = cert
        self._proxies = dict(proxies or {})
        self._found_proxies: dict[str, dict[str, str]] = {}
        self._callback = callback
        # requests iterates over the cookies of a session while other threads may add some.
        self._cookies = threading.Lock()
        kind = type(self._session)
        # A session class with ways of its own (google.auth's, oauthlib's, caches) is used through its front door.
        self._plain = kind.send is requests.Session.send and kind.request is requests.Session.request

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Any,
        *,
        auth: AuthBase | None,
        own: bool,
        timeout: tuple[float | None, float | None],
        exchange: Exchange,
    ) -> requests.Response:
        """Sends one request.

        Args:
            method: The HTTP method.
            url: The absolute URL, sent as it is.
            headers: The headers.
            body: None, bytes, or an iterable of bytes (with a length, or it is sent in chunks).
            auth: Authentication; None for the session's own. Ignored for other origins.
            own: Whether the URL is of the archive's own origin.
            timeout: Seconds to connect and to read.
            exchange: The record of this request.

        Returns:
            The response with its body unread.
        """
        session = self._session if own else self._foreign
        verify = self._verify if self._verify is not True else self._session.verify
        cert = (self._cert or session.cert) if own else None
        if own and not self._plain:
            exchange.sent = True
            more: dict[str, Any] = {} if auth is None else {"auth": auth}
            return session.request(
                method, url, data=body, headers=dict(headers), timeout=timeout, allow_redirects=False, stream=True,
                verify=None if verify is True else verify, cert=cert, proxies=self._proxies or None,
                hooks=self._hooks(session), **more,
            )  # fmt: skip
        if own and session.params:
            # The URL is not requests' to write, so what the session adds to each query is added here.
            url += ("&" if "?" in url else "?") + urlencode(cast(Any, session.params), doseq=True)
        # Authentication comes after the URL was put in place: signatures cover it.
        request = requests.Request(
            method, url, headers=dict(headers), data=body, auth=_NoAuth(), hooks=self._hooks(session)
        )
        with self._cookies:
            prepared = session.prepare_request(request)
        prepared.url = with_raw_target(prepared.url or url, url)
        if own:
            chosen = auth if auth is not None else session.auth
            if chosen is not None:
                prepared.prepare_auth(chosen, prepared.url)
        exchange.url = prepared.url or ""
        check_headers(prepared)
        proxies = {**self._environment_proxies(session, prepared.url), **session.proxies, **self._proxies}
        if verify is True and session.trust_env and (prepared.url or "").lower().startswith("https:"):
            # The environment's CA bundle counts only where the user named none (requests has it the other way round).
            verify = _bundle_of_environment() or True
        adapter: Any = session.get_adapter(prepared.url)
        if type(adapter) is HTTPAdapter:
            adapter = self._adapter
        else:
            exchange.sent = True
        arguments = {
            "stream": True, "verify": verify, "cert": cert, "proxies": proxies, "timeout": timeout,
        }  # fmt: skip
        start = time.perf_counter()
        response: requests.Response = adapter.send(prepared, **arguments)
        try:
            response.elapsed = timedelta(seconds=time.perf_counter() - start)
            response = _dispatch_hook("response", prepared.hooks, response, **arguments)
            with self._cookies:
                for earlier in response.history:
                    _keep_cookies(session.cookies, earlier.request, earlier.raw)
                _keep_cookies(session.cookies, prepared, response.raw)
        except BaseException:
            response.close()
            raise
        return response

    def _environment_proxies(self, session: requests.Session, url: str) -> dict[str, str]:
        if not session.trust_env:
            return {}
        # Looking through the environment takes longer than all else that is done for a request, so once must do.
        key = url.partition("://")[2].partition("/")[0] + url[:5]
        if key not in self._found_proxies:
            self._found_proxies[key] = dict(get_environ_proxies(url, no_proxy=None))
        return self._found_proxies[key]

    def _hooks(self, session: requests.Session) -> dict[str, Any] | None:
        if self._callback is None:
            return None
        # Hooks of a request take the place of the session's, but the user wants both.
        own: Any = session.hooks.get("response") or []
        return {"response": [*([own] if callable(own) else own), self._callback]}

    def close(self) -> None:
        """Closes idle connections of our own."""
        self._adapter.close()


def _bundle_of_environment() -> str | None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        path = os.environ.get(name)
        if path and not os.path.exists(path):
            raise ValueError(f"the environment variable {name} names a file that is not there: {path!r}")
        if path:
            return path
    return None


def check_verify(verify: object) -> None:
    """Refuses what is no choice about TLS: to requests, None, 0 and empty texts all mean that nothing is verified.

    Raises:
        TypeError: If it is neither True, nor False, nor a path.
        ValueError: If the path is empty.
    """
    if not isinstance(verify, (bool, str, os.PathLike)):
        raise TypeError(f"verify must be True, False or the path of a CA bundle, not {type(verify).__name__}")
    if not isinstance(verify, bool) and not os.fspath(verify):
        raise ValueError("verify is an empty path (expected True, False or the path of a CA bundle)")


def check_headers(prepared: requests.PreparedRequest) -> None:
    """Refuses headers that would break the request, without showing their values, as http.client would."""
    for name, value in prepared.headers.items():
        if isinstance(value, str) and (_MAY_BREAK.search(value) or not all(ord(item) < 256 for item in value)):
            raise ValueError(f"the header {name!r} cannot be sent: a line break or a character outside Latin-1")


def _files(verify: bool | str, cert: str | tuple[str, str] | None) -> list[tuple[str, str]]:
    named = [("verify", verify)] if isinstance(verify, (str, os.PathLike)) else []
    if isinstance(cert, (str, os.PathLike)):
        named.append(("cert", cert))
    elif cert is not None:
        named += [("cert", path) for path in cert]
    return named
