"""The engines that every test with the fixture `engine` runs on."""

from __future__ import annotations

import logging
import os

import pytest

from tests.go_programs import ProgramUnavailable
from tests.runners.prism import prism_binary

ENGINES = {
    "in memory": ("--runner=FnApiRunner",),
    "two processes": ("--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"),
    "portable": ("--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"),
    "prism": ("--runner=PrismRunner",),
}

CANNOT: dict[tuple[str, str], str] = {}
"""What an engine cannot do: (engine, test without its parameters) to the reason."""


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() not in ("", "0", "false", "no")


@pytest.fixture(scope="session")
def prism() -> str:
    """The path of Prism. Without ``DICOMWEB_IO_PRISM=1`` tests on it are skipped: its first build takes minutes."""
    if not _is_set("DICOMWEB_IO_PRISM"):
        pytest.skip("Prism is tested by 'tox -e prism' (or with DICOMWEB_IO_PRISM=1): it has to be built first")
    # It says at the very end of the process that it ends Prism, when the tests' output is closed already.
    logging.getLogger("apache_beam.utils.subprocess_server").setLevel(logging.ERROR)
    try:
        return str(prism_binary())
    except ProgramUnavailable as error:
        if _is_set("CI"):
            pytest.fail(f"CI needs Prism: {error}")
        pytest.skip(f"no Prism: {error}")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> list[str]:
    """The arguments that choose an engine."""
    name = request.param
    reason = CANNOT.get((name, request.node.originalname))
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    arguments = list(ENGINES[name])
    if name == "prism":
        arguments.append(f"--prism_location={request.getfixturevalue('prism')}")
    return arguments
