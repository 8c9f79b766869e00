"""Fixtures for all tests: sample data, folders, the test server, servers with answers of a test, a real Orthanc."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from dicomweb_io.testing.orthanc import Orthanc, OrthancUnavailable, find_installation
from dicomweb_io.testing.samples import charset_files, copy_samples, sample_files
from tests.answering import AnsweringServer, Handler

# An example may take long on a busy machine.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_configure() -> None:
    """Lets the processes that tests start be interrupted, also if this one was started in the background by a shell."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Writes what coverage has measured while the worker is still waited for.

    xdist kills a worker that takes more than ten seconds to exit, and with it the measurements of half the tests.
    """
    coverage = sys.modules.get("coverage")
    measuring = coverage and coverage.Coverage.current()
    if measuring:
        measuring.save()


@pytest.fixture(scope="session", autouse=True)
def _private_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Indexes and servers with names are not the user's; Orthanc's unpacked packages stay in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DICOMWEB_IO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("DICOMWEB_IO_SERVERS", str(tmp_path_factory.mktemp("configuration") / "servers.toml"))
        patch.delenv("DICOMWEB_URL", raising=False)
        yield


@pytest.fixture(scope="session")
def samples() -> list[Path]:
    """The 176 files of pydicom's test folder, where they are installed: not to be written to."""
    return sample_files()


@pytest.fixture(scope="session")
def charsets() -> list[Path]:
    """The DICOM files in many character sets, where they are installed: not to be written to."""
    return charset_files()


@pytest.fixture
def sample_folder(tmp_path: Path) -> Path:
    """A fresh copy of pydicom's test folder."""
    folder = tmp_path / "samples"
    copy_samples(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A fresh, empty folder."""
    directory = tmp_path / "folder"
    directory.mkdir()
    return directory


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    """Starts test servers, as `dicomweb_io.testing.serve` does, and stops them after the test.

    A test in which a server had a defect of its own (a traceback in its `errors`) fails.
    """
    from dicomweb_io.testing.server.server import serve as start

    servers: list[Any] = []

    def begin(*arguments: Any, **options: Any) -> Any:
        servers.append(stack.enter_context(start(*arguments, **options)))
        return servers[-1]

    with ExitStack() as stack:
        yield begin
    errors = [error for server in servers for error in server.errors]
    assert not errors, "the test server has a defect:\n" + "\n".join(errors)


@pytest.fixture
def answering() -> Iterator[Callable[..., AnsweringServer]]:
    """Starts servers whose answers a test writes itself, and stops them after the test.

    A test in which such an answer raised an error fails.
    """
    servers: list[AnsweringServer] = []

    def start(handler: Handler, **options: Any) -> AnsweringServer:
        servers.append(AnsweringServer(handler, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
    assert [error for server in servers for error in server.errors] == []


@pytest.fixture
def dicomweb_server(serve: Callable[..., Any], folder: Path) -> Any:
    """A running test server over an empty folder (`.url`, `.records`, `.stop()`)."""
    return serve(folder)


def _orthanc_or_reason() -> str | None:
    try:
        find_installation()
    except OrthancUnavailable as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def orthanc_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """One Orthanc for each test process. Use `orthanc`, which empties it before each test."""
    reason = _orthanc_or_reason()
    if reason is not None:
        if os.environ.get("CI", "").lower() not in ("", "0", "false"):
            pytest.fail(f"CI needs Orthanc: {reason}")
        pytest.skip(f"no Orthanc: {reason}")
    with Orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def orthanc(orthanc_server: Orthanc) -> Orthanc:
    """A running, empty Orthanc (`.url`, `.stop()`, `.kill()`, `.start()`)."""
    orthanc_server.start()
    orthanc_server.wipe()
    return orthanc_server


@pytest.fixture
def new_orthanc(orthanc_server: Orthanc, tmp_path: Path) -> Iterator[Callable[..., Orthanc]]:
    """Starts further Orthancs with options of their own (users, settings), and ends them after the test."""
    with ExitStack() as stack:
        count = 0

        def start(**options: Any) -> Orthanc:
            nonlocal count
            count += 1
            return stack.enter_context(Orthanc(tmp_path / f"orthanc-{count}", **options))

        yield start
