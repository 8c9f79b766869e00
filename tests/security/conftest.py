"""A server that answers what a test says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.answering import AnsweringServer


@pytest.fixture
def origin(answering: Callable[..., AnsweringServer]) -> Callable[..., AnsweringServer]:
    """Starts servers that answer as a function says."""
    return partial(answering, path="/dicomweb")
