"""`Transport`: all HTTP of the clients goes through it, with timeouts, a deadline, retries, credentials and a throttle.

What it adds to requests: a deadline over everything that an operation does, which holds against bodies and headers that
drip; retries that see truncated bodies; query strings that are sent unchanged; redirects that never carry credentials
to another origin; bounded headers, bodies and decompression; a shared limit of requests in flight.

    with Transport("https://pacs.example.org/dicom-web", credentials=BearerToken(env="TOKEN")) as transport:
        rows = transport.request("GET", transport.base_url + "/studies?limit=10").content
        for attempt in transport.attempts():
            with attempt, transport.stream("GET", url, headers=headers, attempt=attempt) as answer:
                for part in answer.multipart():
                    ...
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

import requests
import urllib3
from requests.auth import AuthBase
from requests.utils import requote_uri

from dicomweb_io.errors import (
    ConnectionFailedError,
    CredentialsError,
    DICOMwebError,
    InvalidIdentifierError,
    MalformedResponseError,
    RedirectError,
    ResponseIncompleteError,
    safe_url,
)
from dicomweb_io.http.auth import Authenticator, BasicCredentials, Credentials, TokenAccess
from dicomweb_io.http.connections import Exchange, SessionSender, mask_queries_in_debug_log
from dicomweb_io.http.multipart import MultipartBody, MultipartError
from dicomweb_io.http.redaction import server_message
from dicomweb_io.http.response import Answer, StreamedAnswer, causes, connection_failure
from dicomweb_io.http.retry import (
    BAD_NEWS_LASTS,
    Attempt,
    Budget,
    Deadline,
    RetryPolicy,
    Stats,
    Throttle,
    attempts,
    logger,
    parse_retry_after,
    shared_throttle,
)
from dicomweb_io.http.settings import TLS, Limits, Timeouts

Body = bytes | bytearray | memoryview | MultipartBody | Iterable[bytes] | None

_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_AWAY = frozenset({502, 503, 504})
"""Statuses of a proxy whose archive is gone. One that is overloaded uses them too, but answers in between."""
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_RETRY_AFTER = 3600.0
# What may go to another host: nothing that identifies the user or the archive.
_NEUTRAL_HEADERS = frozenset({"accept", "accept-encoding", "accept-language", "content-type", "range"})
_ADVICE = {
    401: "the server does not accept these credentials",
    403: "the credentials do not allow this",
    407: "the proxy requires credentials",
    413: "the request is too large for the server",
    414: "the URL is too long for the server",
}


@dataclass
class _Call:
    """What is to be sent, whatever the number of tries.

    `era` is the throttle's at the first of them. `failed_with` is the status after which there is a second attempt,
    with no other request of this process in flight.
    """

    method: str
    url: str
    headers: dict[str, str]
    body: Any
    repeatable: bool
    replayable: bool
    accept: Collection[int]
    era: int
    failed_with: int | None = None


class Transport:
    """Sends requests to one archive. Safe to use from many threads; cannot be pickled (pickle the endpoint instead).

    Args:
        base_url: The service's root. User information in it becomes basic credentials. Credentials and `headers` go
            to its origin (scheme, host and port) only.
        session: A session of requests to use, with its adapters, hooks, cookies, proxies and authentication; it is not
            changed. By default one is made. Its authentication is used for the origin of `base_url` only, and where it
            is a plain one, connections come from a pool of this transport.
        credentials: How to authenticate; replaces the session's `auth`.
        headers: Sent with every request to the origin.
        tls: Certificates.
        proxies: Proxy URL by scheme; by default those of the environment. A .netrc file is never used.
        timeouts: How long to wait.
        limits: How much at once. They hold for all transports of this process together that have the same `base_url`
            and limits. An answer counts while it is read, not while its reader waits.
        retry: When and how often to try again.
        callback: Called with each response of requests when its headers have arrived; may return another one in its
            place (a response hook of requests).

    Attributes:
        base_url: The service's root without user information and trailing slash.
        retry: When and how often to try again.
        timeouts: How long to wait.
        outage: Seconds to wait for an archive that has answered before and cannot be connected to any more; None if
            such a request is only repeated as `retry` says.
        stats: What was done so far.

    Raises:
        ValueError: If the URL or a header is not usable.
        FileNotFoundError: If a certificate file does not exist.
    """

    def __init__(
        self,
        base_url: str,
        *,
        session: requests.Session | None = None,
        credentials: Credentials | AuthBase | None = None,
        headers: Mapping[str, str] | None = None,
        tls: TLS = TLS(),
        proxies: Mapping[str, str] | None = None,
        timeouts: Timeouts = Timeouts(),
        limits: Limits = Limits(),
        retry: RetryPolicy = RetryPolicy(),
        callback: Callable[..., Any] | None = None,
    ) -> None:
        clean, user, password = without_user_info(base_url)
        self.origin = Origin.of(clean)
        self.base_url = clean.rstrip("/")
        if user is not None and credentials is None:
            credentials = BasicCredentials(unquote(user), unquote(password or ""))
        self.timeouts = timeouts
        self.retry = retry
        self.outage: float | None = None
        self.stats = Stats()
        self._refusal: tuple[float, str] | None = None
        self._headers = _checked_headers(headers or {})
        self._throttle, self._leave_throttle = shared_throttle(
            self, self.base_url, limits.max_in_flight, limits.requests_per_second
        )
        self._sender = SessionSender(
            session,
            tls=tls,
            proxies=proxies,
            # Answers that wait for their reader have a connection too.
            pool_size=4 * limits.max_in_flight,
            callback=callback,
            auth=credentials,
        )
        self._auth: AuthBase | None
        if isinstance(credentials, Credentials):
            # What fails at a token endpoint is repeated along with the request that needs the token. A client
            # certificate is for the archive alone.
            beside = partial(Transport, tls=TLS(tls.verify), proxies=proxies, retry=RetryPolicy.none())
            self._auth = credentials.auth(TokenAccess(beside, tls.verify, proxies, timeouts))
        else:
            self._auth = credentials
        mask_queries_in_debug_log()

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        idempotent: bool | None = None,
        accept_statuses: Collection[int] = (),
        max_bytes: int | None = None,
        deadline: Deadline | float | None = None,
        attempt: Attempt | None = None,
    ) -> Answer:
        """Sends a request and reads the whole answer, with all retries.

        Args:
            method: The HTTP method.
            url: An absolute URL, or a path below `base_url`. The query is sent unchanged (percent escapes get
                upper-case digits), so it must be escaped already.
            headers: Further headers.
            body: Bytes or a `MultipartBody`, which can be sent again; any other iterable is sent once and never
                retried.
            idempotent: Whether the request may be sent again after it may have reached the server. By default GET,
                HEAD, OPTIONS, PUT, DELETE and whatever has a replayable body.
            accept_statuses: Statuses from 400 on that are answers rather than errors.
            max_bytes: The maximum size of the answer; None for 1 GiB.
            deadline: Seconds for the operation, or a running deadline; None for the transport's own.
            attempt: An attempt of `attempts` whose budget and deadline this request shares.

        Raises:
            DICOMwebError: If the last try failed (see its subclasses).
            ValueError: If the URL or a header cannot be sent.
        """
        call = self._call(method, url, headers, body, idempotent, accept_statuses, "gzip, deflate")
        budget = self._budget(deadline, attempt)
        while True:
            try:
                with self._turn(call, budget), closing(self._exchange(call, budget)) as answer:
                    complete = answer.complete(max_bytes)
            except DICOMwebError as error:
                wait = self._decide(error, call, budget)
                if wait is None:
                    raise
            else:
                self._succeeded(call)
                return complete
            budget.sleep(wait)

    @contextmanager
    def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        idempotent: bool | None = None,
        accept_statuses: Collection[int] = (),
        deadline: Deadline | float | None = None,
        attempt: Attempt | None = None,
    ) -> Iterator[StreamedAnswer]:
        """Sends a request and gives the answer to read as it arrives.

        Retries until the headers of a success are there. What happens in the body is the caller's to repeat, with
        `attempts`. Compression is not asked for unless `headers` do. Leaving the block closes the answer.

        Args:
            method: See `request`, as for all others.
            url: See `request`.
            headers: See `request`.
            body: See `request`.
            idempotent: See `request`.
            accept_statuses: See `request`.
            deadline: See `request`; it holds for reading the body too.
            attempt: See `request`.
        """
        call = self._call(method, url, headers, body, idempotent, accept_statuses, "identity")
        budget = self._budget(deadline, attempt)
        while True:
            try:
                with self._turn(call, budget):
                    answer = self._exchange(call, budget)
                break
            except DICOMwebError as error:
                wait = self._decide(error, call, budget)
                if wait is None:
                    raise
            budget.sleep(wait)
        self._succeeded(call)
        try:
            yield answer
        except MultipartError as error:
            kind = ResponseIncompleteError if error.truncated else MalformedResponseError
            raise answer.error(str(error), kind, retryable=error.truncated) from error
        else:
            answer.close(drain=True)
        finally:
            answer.close()

    def attempts(self, deadline: Deadline | float | None = None) -> Iterator[Attempt]:
        """For a caller who repeats a whole operation because an answer may end early.

            for attempt in transport.attempts():
                with attempt, transport.stream("GET", url, attempt=attempt) as answer:
                    …

        The loop ends after the first attempt that raised nothing. A retryable `DICOMwebError` is swallowed, waited for
        and followed by the next attempt; any other error and the last one pass through. All attempts together have one
        deadline and one count of failures; `Attempt.progress` sets the count back.

        Args:
            deadline: Seconds for all attempts, or a running deadline; None for the transport's own.
        """
        return attempts(self._new_budget(deadline))

    @property
    def throttle(self) -> Throttle:
        """What bounds the requests of this process to the archive."""
        return self._throttle

    @property
    def unavailable(self) -> str | None:
        """Why further requests would fail like the last ones; None if there is no such reason.

        The archive could not be connected to, or refused the login, a short while ago.
        """
        refusal = self._refusal
        if refusal is not None and time.monotonic() - refusal[0] < BAD_NEWS_LASTS:
            return refusal[1]
        return self._throttle.lost

    def same_origin(self, url: str) -> bool:
        """Whether an absolute URL has the scheme, host and port of `base_url`, so that credentials go there."""
        return Origin.of(without_user_info(url)[0]) == self.origin

    def close(self) -> None:
        """Closes idle connections (not those of a session that was passed)."""
        self._leave_throttle()
        self._sender.close()

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Transport to {safe_url(self.base_url)}>"

    def __reduce__(self) -> Any:
        raise TypeError("a Transport holds connections and cannot be pickled; pickle the Endpoint instead")

    def _call(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        body: Any,
        idempotent: bool | None,
        accept: Collection[int],
        accept_encoding: str,
    ) -> _Call:
        merged = {"Accept-Encoding": accept_encoding}
        for name, value in _checked_headers(headers or {}).items():
            for known in [item for item in merged if item.lower() == name.lower()]:
                del merged[known]
            merged[name] = value
        if isinstance(body, (str, Mapping)):
            raise TypeError(f"a body is bytes or a MultipartBody, not {type(body).__name__}")
        if isinstance(body, (bytearray, memoryview)):
            body = bytes(body)
        elif isinstance(body, (list, tuple)):
            body = b"".join(body)
        replayable = body is None or isinstance(body, bytes) or (hasattr(body, "__len__") and iter(body) is not body)
        method = method.upper()
        if idempotent is None:
            idempotent = method in _IDEMPOTENT or replayable
        return _Call(
            method,
            absolute_url(url, self.base_url),
            merged,
            body,
            repeatable=idempotent and replayable,
            replayable=replayable,
            accept=accept,
            era=self._throttle.era,
        )

    def _new_budget(self, deadline: Deadline | float | None) -> Budget:
        running = Deadline.of(self.timeouts.deadline if deadline is None else deadline)
        # Others wait while this thread has the archive for itself.
        policy = RetryPolicy.none() if self._throttle.is_alone else self.retry
        return Budget(
            policy,
            running,
            on_retry=lambda: self.stats.add(retries=1),
            on_throttled=lambda seconds: self.stats.add(throttled_seconds=seconds),
        )

    def _budget(self, deadline: Deadline | float | None, attempt: Attempt | None) -> Budget:
        return attempt.budget if attempt is not None else self._new_budget(deadline)

    def _turn(self, call: _Call, budget: Budget) -> AbstractContextManager[None]:
        """What a try needs: a second attempt, that no other request of this process is in flight."""
        return nullcontext() if call.failed_with is None else self._throttle.alone(budget.deadline)

    def _succeeded(self, call: _Call) -> None:
        if call.failed_with is None:
            self._throttle.went_well(call.method)
        else:
            self._throttle.tried_alone(call.method, call.failed_with, healed=True, era=call.era)
            logger.info("%s: what failed (HTTP %d) succeeded alone", safe_url(self.base_url), call.failed_with)

    def _decide(self, error: DICOMwebError, call: _Call, budget: Budget) -> float | None:
        """Seconds to wait before the next try, which may be a second attempt alone; None if there is none."""
        error.attempts = budget.tries
        throttle = self._throttle
        if call.failed_with is not None:
            throttle.tried_alone(call.method, call.failed_with, healed=False, era=call.era)
            budget.stop(error)
            return None
        unreachable = isinstance(error, ConnectionFailedError) and not error.sent
        silent = isinstance(error, ConnectionFailedError) or error.status in _AWAY
        if silent and self.outage is not None:
            throttle.heard_nothing(error.log_text, self.outage)
            if throttle.lost:
                budget.stop(error)
                return None
        wait = self._repeated(error, call, budget)
        if wait is None and unreachable and error.retryable:
            throttle.give_up(error.log_text)
        if wait is None and call.method == "GET" and throttle.is_crowded and not throttle.is_alone:
            status = error.status or 0
            if (status == 404 or (status >= 500 and error.retryable)) and throttle.may_heal(call.method, status):
                call.failed_with = status
                return 0.0
        return wait

    def _repeated(self, error: DICOMwebError, call: _Call, budget: Budget) -> float | None:
        not_processed = (
            error.status == 429
            or isinstance(error, CredentialsError)
            or (isinstance(error, ConnectionFailedError) and not error.sent)
        )
        return budget.decide(error, repeatable=call.repeatable or (call.replayable and not_processed))

    def _exchange(self, call: _Call, budget: Budget) -> StreamedAnswer:
        """One try: follows redirects and refreshes credentials once."""
        method, url, hops, refreshed = call.method, call.url, 0, False
        own = self.same_origin(url)
        budget.tries += 1
        try:
            while True:
                try:
                    answer, prepared = self._send(method, url, call, budget, own)
                except ConnectionFailedError as error:
                    if self._may_return(error, call, budget, own):
                        continue
                    raise
                status = answer.status
                try:
                    if status in _REDIRECTS and "Location" in answer.headers:
                        hops += 1
                        method, url = self._redirect(answer, call, method, url, hops)
                        # Once another host has chosen the address, no credentials follow, not even back to the archive.
                        own = own and self.same_origin(url)
                        answer.close(drain=True)
                        continue
                    if status == 401 and own and not refreshed and call.replayable and self._refresh(prepared, answer):
                        refreshed = True
                        answer.close(drain=True)
                        continue
                    if status < 300 or status == 304 or status in call.accept:
                        return answer
                    raise self._status_error(answer, url, budget, own)
                except BaseException:
                    answer.close()
                    raise
        finally:
            self._throttle.stop_probing()

    def _may_return(self, error: ConnectionFailedError, call: _Call, budget: Budget, own: bool) -> bool:
        """Waits, where outages are waited out, for an archive that is gone; False if there is no hope."""
        if self.outage is None or not own or error.sent or not error.retryable or not call.replayable:
            return False
        return self._throttle.await_return(error.log_text, self.outage, budget.deadline)

    def _refresh(self, prepared: requests.PreparedRequest, answer: StreamedAnswer) -> bool:
        try:
            return isinstance(self._auth, Authenticator) and self._auth.refresh(prepared)
        except CredentialsError as error:
            error.method, error.url = error.method or answer.method, error.url or answer.url
            raise

    def _redirect(self, answer: StreamedAnswer, call: _Call, method: str, url: str, hops: int) -> tuple[str, str]:
        if hops > _MAX_REDIRECTS:
            raise answer.error(f"more than {_MAX_REDIRECTS} redirects", RedirectError)
        target = redirect_target(url, answer.headers["Location"])
        if target is None:
            raise answer.error("the redirect's Location is no HTTP URL", RedirectError)
        where = safe_url(target)
        if url.lower().startswith("https:") and not target.lower().startswith("https:"):
            raise answer.error(f"a redirect from https to plain http is not followed ({where})", RedirectError)
        if method in ("GET", "HEAD"):
            return method, target
        if answer.status == 303:
            return "GET", target
        # A store or deletion must not quietly become a GET (301, 302), nor go to a host that the user did not name.
        if answer.status in (301, 302) or not call.replayable or Origin.of(target) != Origin.of(url):
            raise answer.error(
                f"a redirect of {method} to {where} is not followed; if that is the archive, use it as its URL",
                RedirectError,
            )
        return method, target

    def _status_error(self, answer: StreamedAnswer, url: str, budget: Budget, own: bool) -> DICOMwebError:
        status = answer.status
        body = answer.read_beginning()
        retry_after = parse_retry_after(answer.headers.get("Retry-After"))
        if retry_after is not None and budget.deadline.at is None:
            retry_after = min(retry_after, _MAX_RETRY_AFTER)
        if status in (429, 503) and retry_after and self._throttle.back_off(min(retry_after, _MAX_RETRY_AFTER)):
            logger.warning("%s asks to wait %.1f s (HTTP %d)", safe_url(self.base_url), retry_after, status)
        message = server_message(body, url, answer.request_headers)
        words = [message, _ADVICE.get(status, "") or self._advice_on_root(status, message, url)]
        if status == 401 and own and "authorization" not in map(str.lower, answer.request_headers):
            words[1] = "the server asks for a login, and no credentials were given"
        if status in (401, 403) and not own:
            words.append("credentials were not sent there, because it is not the archive's own origin")
        error = answer.error(
            "; ".join(filter(None, words)) or (answer.public_response(b"").reason or ""),
            DICOMwebError,
            retryable=status in self.retry.statuses,
        )
        error.server_message = message
        if status == 401 and own:
            self._refusal = (time.monotonic(), f"{safe_url(self.base_url)} refuses the login (HTTP 401)")
        error.retry_after = retry_after
        error.attempts = budget.tries
        error.response = answer.public_response(body)
        return error

    def _advice_on_root(self, status: int, message: str, url: str) -> str:
        """What to say if the whole service seems to be somewhere else."""
        root = self.base_url
        # Orthanc's own interface has studies too, and wants another parameter.
        wrong = status == 404 or 'Missing "since" argument' in message
        if wrong and url.partition("?")[0] in {f"{root}/{level}" for level in ("studies", "series", "instances")}:
            return f"is {safe_url(root)} the root of a DICOMweb service? Many end in /dicom-web or /dicomweb"
        return ""

    def _send(
        self, method: str, url: str, call: _Call, budget: Budget, own: bool
    ) -> tuple[StreamedAnswer, requests.PreparedRequest]:
        deadline = budget.deadline
        try:
            deadline.check("waiting to send", method=method, url=url, attempts=budget.tries)
            slot = self._throttle.acquire(deadline, self.stats)
        except DICOMwebError as error:
            error.method, error.url = method, safe_url(url)
            raise
        started = time.monotonic()
        connect = deadline.bound(self.timeouts.connect)
        # A little more than the remaining time, so that the deadline has surely passed when the read gives up.
        remaining = deadline.remaining()
        read = self.timeouts.read if remaining is None else min(self.timeouts.read, remaining + 0.05)
        exchange = Exchange(deadline.at, read, own=own)

        def finished(status: int | None, bytes_in: int) -> None:
            self._throttle.answered(slot, status)
            slot.release()
            self.stats.add(bytes_in=bytes_in, bytes_out=exchange.bytes_out)
            self.stats.took(time.monotonic() - started)

        try:
            self.stats.add(requests=1)
            headers = self._headers_of(call, own)
            body = call.body
            if method != call.method:
                # After a redirect that turns it into a GET.
                body = None
                headers = {name: value for name, value in headers.items() if name.lower() != "content-type"}
            exchange.begin()
            with exchange:
                send, finish = self._sender.prepare(
                    method, url, headers, body, auth=self._auth, timeout=(connect, read), exchange=exchange
                )
                response = finish(send())
        except BaseException as error:
            exchange.finish()
            finished(None, 0)
            if isinstance(error, DICOMwebError):
                error.method, error.url = error.method or method, error.url or safe_url(url)
                if isinstance(error, CredentialsError) and not error.retryable:
                    self._refusal = (time.monotonic(), error.log_text)
                raise
            if not isinstance(error, Exception):
                raise
            failure = self._failure(error, exchange, deadline, method, url, (connect, read), budget)
            if failure is None:
                raise
        else:
            if response.status_code not in _AWAY:
                self._throttle.reached()
            if own and response.status_code != 401:
                self._refusal = None
            answer = StreamedAnswer(
                response,
                exchange,
                deadline,
                slot,
                attempts=budget.tries,
                on_close=lambda done: finished(done.status, done.bytes_in),
            )
            return answer, response.request
        try:
            raise failure
        finally:
            # An error whose traceback leads to a frame that names it would live on until the next garbage collection.
            del failure

    def _headers_of(self, call: _Call, own: bool) -> dict[str, str]:
        headers = {**self._headers} if own else {}
        for name, value in call.headers.items():
            if own or name.lower() in _NEUTRAL_HEADERS:
                headers = {known: item for known, item in headers.items() if known.lower() != name.lower()}
                headers[name] = value
        return headers

    def _failure(
        self,
        error: Exception,
        exchange: Exchange,
        deadline: Deadline,
        method: str,
        url: str,
        timeout: tuple[float | None, float | None],
        budget: Budget,
    ) -> DICOMwebError | None:
        """What an exception while sending means; None if it is none of the network's."""
        network = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
        if exchange.expired or (deadline.expired and isinstance(error, network)):
            return deadline.error("waiting for an answer", method=method, url=url, attempts=budget.tries)
        if isinstance(error, network) and not isinstance(error, ValueError):
            failure = connection_failure(error, exchange, method=method, url=url, timeout=timeout)
            if isinstance(failure, ConnectionFailedError):
                failure.stale = exchange.reused and not any(isinstance(item, TimeoutError) for item in causes(error))
            return failure
        if isinstance(error, urllib3.exceptions.LocationValueError):
            # Servers name hosts too, in redirects and in the addresses of bulk data.
            return DICOMwebError("the URL has no valid host", method=method, url=url, attempts=budget.tries)
        if isinstance(error, requests.exceptions.ContentDecodingError):
            return MalformedResponseError("the answer cannot be decompressed", method=method, url=url)
        if type(error).__module__.startswith("google.auth"):
            retryable = bool(getattr(error, "retryable", False))
            return CredentialsError(
                f"Google credentials: {type(error).__name__}", method=method, url=url, retryable=retryable
            )
        return None


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"headers must be texts, but {name!r} is not")
        if not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", name) or re.search(r"[\r\n\0]", value):
            raise ValueError(f"the header {name!r} cannot be sent: a line break or a character that is not allowed")
        if value != value.strip() or not all(ord(item) < 256 for item in value):
            raise ValueError(f"the header {name!r} cannot be sent: blanks around it or characters outside Latin-1")
    return dict(headers)


# What the transport has to know of URLs -------------------------------------------------------------------------------

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Scheme, host and port (RFC 6454): what credentials are bound to."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """The origin of an absolute HTTP URL.

        Raises:
            InvalidIdentifierError: If it has no host, another scheme, or an impossible port.
        """
        shown = safe_url(url)
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise InvalidIdentifierError(f"URL with an invalid host or port: {shown!r}") from None
        scheme = parts.scheme.lower()
        if scheme not in _DEFAULT_PORTS:
            raise InvalidIdentifierError(f"URL with an unsupported scheme (only http and https): {shown!r}")
        if not host:
            raise InvalidIdentifierError(f"URL without a host: {shown!r} (expected https://host[:port]/path)")
        return cls(scheme, host.rstrip("."), port if port is not None else _DEFAULT_PORTS[scheme])


def without_user_info(url: str) -> tuple[str, str | None, str | None]:
    """Takes ``user:password@`` out of an absolute URL.

    Returns:
        The URL without it, the user and the password, both still percent-escaped, None if absent.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url, None, None
    end = re.search(r"[/?#\\]|\Z", rest)
    authority = rest[: end.start()] if end else rest
    info, at, host = authority.rpartition("@")
    if not at:
        return url, None, None
    user, colon, password = info.partition(":")
    return f"{scheme}://{host}{rest[len(authority) :]}", user, password if colon else None


def absolute_url(url: str, base_url: str) -> str:
    """An absolute URL without user information and fragment that can be sent unchanged.

    Args:
        url: An absolute URL, or a path (and query) below `base_url`.
        base_url: The service's root without trailing slash.

    Raises:
        InvalidIdentifierError: If it has characters that must be escaped, or no usable origin.
    """
    if not re.match(r"[A-Za-z][A-Za-z0-9+.\-]*:", url):
        url = f"{base_url}/{url.lstrip('/')}" if not url.startswith("?") else base_url + url
    url = without_user_info(url)[0].partition("#")[0]
    # ^ and | are not valid characters of a URL either, but servers take them, and some take nothing else.
    wrong = re.search(r"[^\x21-\x7e]|[\\\"<>`{}]", url)
    if wrong:
        raise InvalidIdentifierError(
            f"the character {wrong.group()!r} in a URL must be percent-escaped: {safe_url(url)!r}"
        )
    Origin.of(url)
    return url


def redirect_target(url: str, location: str) -> str | None:
    """Where a redirect leads, as an absolute URL without user information and fragment; None if nowhere usable."""
    try:
        # Servers send UTF-8 where only ASCII is allowed; http.client reads it as Latin-1.
        text = location.encode("latin-1").decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        text = location
    try:
        if text.startswith("//"):
            text = f"{urlsplit(url).scheme}:{text}"
        target = absolute_url(requote_uri(urljoin(url, text.strip())), url)
    except ValueError:
        return None
    return target


__all__ = ["Answer", "Attempt", "Body", "Stats", "StreamedAnswer", "Transport"]
