"""For tests of HTTP the server is one on raw sockets: they say what it answers and see what it got, byte for byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.answering import AnsweringServer


@pytest.fixture
def serve(answering: Callable[..., AnsweringServer]) -> Callable[..., AnsweringServer]:
    """Starts such servers."""
    return answering


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's proxies must not come between the tests and their servers."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
