"""For tests of HTTP the server is one on raw sockets: they say what it answers and see what it got, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.http.transport import Transport
from tests.answering import AnsweringServer


@pytest.fixture
def serve(answering: Callable[..., AnsweringServer]) -> Callable[..., AnsweringServer]:
    """Starts such servers."""
    return answering


@pytest.fixture
def connect() -> Iterator[Callable[..., Transport]]:
    """Makes transports that try again at once, and closes them after the test."""
    made: list[Transport] = []

    def make(url: str, **options: Any) -> Transport:
        made.append(Transport(url, **{"retry": RetryPolicy(initial_delay=0.0), **options}))
        return made[-1]

    yield make
    for transport in made:
        assert transport._throttle.in_flight == 0, "a request was not released"
        transport.close()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's proxies must not come between the tests and their servers."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
