"""The engines that every test with the fixture `engine` runs on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.go_programs import ProgramUnavailable
from tests.runners import flink
from tests.runners.prism import prism_binary

ENGINES = {
    "in memory": ("--runner=FnApiRunner",),
    "two processes": ("--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"),
    "portable": ("--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"),
    "prism": ("--runner=PrismRunner",),
    "flink": (),
    "flink streaming": (
        "--streaming",
        "--checkpointing_interval=1000",
        # Without it bounded sources stay alive for checkpoints, and a GroupByKey in the global window never fires.
        "--shutdown_sources_after_idle_ms=1000",
    ),
}

_EMPTY = "what is grouped behind a store was empty, and the job ended (Flink 1.19, Beam's Java runner 2.70)"
_BATCH = "jobs with an end refuse to run as streams"
CANNOT: dict[tuple[str, str], str] = {
    ("flink streaming", "test_the_whole_connector"): _EMPTY,
    ("flink streaming", "test_paths_that_dribble_in_share_requests"): _EMPTY,
    ("flink streaming", "test_what_has_waited_is_sent_before_the_window_ends"): "nothing was sent within a minute",
    ("flink streaming", "test_the_panes_of_an_accumulating_trigger"): "TestStream cannot decode elements of Python",
    ("flink streaming", "test_the_transfer_job"): _BATCH,
    ("flink streaming", "test_a_job_gives_what_the_command_gives"): _BATCH,
}
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


@pytest.fixture(scope="session")
def flink_jar() -> Path:
    """Flink. Without ``DICOMWEB_IO_FLINK=1`` tests on it are skipped: it has to be built first, and takes 2 GB."""
    if not _is_set("DICOMWEB_IO_FLINK"):
        pytest.skip("Flink is tested by 'tox -e flink' (or with DICOMWEB_IO_FLINK=1): it has to be built first")
    try:
        return flink.flink_jar()
    except flink.FlinkUnavailable as error:
        if _is_set("CI"):
            pytest.fail(f"CI needs Flink: {error}")
        pytest.skip(f"no Flink: {error}")


@pytest.fixture(scope="session")
def flink_cluster(flink_jar: Path) -> Iterator[flink.FlinkCluster]:
    """A cluster for all tests of this process."""
    with flink.FlinkCluster() as cluster:
        yield cluster


def _name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    reason = CANNOT.get((name, request.node.originalname))
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return name


def _arguments(request: pytest.FixtureRequest) -> list[str]:
    name = _name(request)
    arguments = list(ENGINES[name])
    if name == "prism":
        arguments.append(f"--prism_location={request.getfixturevalue('prism')}")
    if name.startswith("flink"):
        arguments += request.getfixturevalue("flink_cluster").options()
    return arguments


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> list[str]:
    """The arguments that choose an engine."""
    return _arguments(request)


@pytest.fixture(params=["prism", "flink streaming"])
def streaming_engine(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The arguments that choose an engine on which a stream flows while its source goes on."""
    if _name(request) == "prism":
        yield [*_arguments(request), "--streaming"]
        return
    request.getfixturevalue("flink_jar")
    # On a cluster that has run another job a stream with checkpoints gets nothing, also one of Beam's own steps alone.
    with flink.FlinkCluster() as cluster:
        yield cluster.options("--streaming", "--checkpointing_interval=1000")
