"""A real server for tests: finds Debian's Orthanc or unpacks it without installing anything, starts and stops it.

Needs Linux with Debian's or Ubuntu's package tools, or an installed ``Orthanc`` with its DICOMweb plugin. The unpacked
packages (about 44 MB) are kept in the user's cache directory and used by all later runs.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

_PACKAGES = ("orthanc", "orthanc-dicomweb")
_START_SECONDS = 30.0
_STOP_SECONDS = 30.0
_PREPARE_SECONDS = 600.0


class OrthancUnavailable(RuntimeError):
    """Orthanc is not installed and could not be downloaded; the message says why and what would help."""


@dataclass(frozen=True)
class Installation:
    """Where Orthanc is.

    Attributes:
        executable: The program.
        plugin: The DICOMweb plugin.
        libraries: A folder of shared libraries that the system's loader does not know, or None.
        dictionaries: DCMTK's data dictionaries where Orthanc would not find them itself.
    """

    executable: Path
    plugin: Path
    libraries: Path | None = None
    dictionaries: tuple[Path, ...] = ()

    def environment(self) -> dict[str, str]:
        """The environment to start the program in."""
        variables = dict(os.environ)
        if self.libraries is not None:
            known = variables.get("LD_LIBRARY_PATH")
            variables["LD_LIBRARY_PATH"] = os.pathsep.join([str(self.libraries), *([known] if known else [])])
        if self.dictionaries:
            variables["DCMDICTPATH"] = os.pathsep.join(map(str, self.dictionaries))
        return variables


def find_installation(cache: str | os.PathLike[str] | None = None) -> Installation:
    """Finds Orthanc on the system or in the cache, else unpacks Debian's packages into the cache.

    Several processes may call this at once: a file lock lets one of them unpack.

    Args:
        cache: The directory for the unpacked packages; by default ``dicomweb_io/orthanc`` in ``$XDG_CACHE_HOME`` or
            ``~/.cache``.

    Raises:
        OrthancUnavailable: If it is not there and cannot be downloaded.
    """
    installed = _look_in(Path("/"))
    if installed is not None:
        return installed
    base = Path(cache) if cache is not None else _cache_directory()
    base.mkdir(parents=True, exist_ok=True)
    with open(base / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        unpacked = _look_in(base / "root") or _unpack(base)
    return unpacked


def _cache_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dicomweb_io" / "orthanc"


def _look_in(root: Path) -> Installation | None:
    program = shutil.which("Orthanc") if root == Path("/") else None
    executable = Path(program) if program else root / "usr/sbin/Orthanc"
    folders = ("usr/share/orthanc/plugins", "usr/lib/orthanc", "usr/local/share/orthanc/plugins")
    plugins = [path for folder in folders for path in sorted((root / folder).glob("libOrthancDicomWeb.so*"))]
    if not executable.is_file() or not plugins:
        return None
    if root == Path("/"):
        return Installation(executable, plugins[0])
    libraries = sorted((root / "usr/lib").glob("*-linux-gnu*"))
    dictionaries = [path for name in ("dicom.dic", "private.dic") for path in (root / "usr/share").glob(f"*/{name}")]
    # Debian's own link to the plugin is absolute; inside the cache it points out of the unpacked tree.
    plugin = next((path for path in reversed(plugins) if path.exists()), None)
    if plugin is None:
        return None
    return Installation(executable, plugin, libraries[0] if libraries else None, tuple(dictionaries))


def _unpack(base: Path) -> Installation:
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise OrthancUnavailable(
                f"Orthanc is not installed and {tool} is not there to fetch Debian's packages; "
                "install Orthanc with its DICOMweb plugin"
            )
    wanted = _missing_packages()
    with tempfile.TemporaryDirectory(dir=base) as work:
        downloads, root = Path(work) / "packages", Path(work) / "root"
        downloads.mkdir()
        # apt lowers its rights when run as root, and complains if its own user cannot write here.
        os.chmod(work, 0o755)  # noqa: S103
        _run(["apt-get", "download", *wanted], downloads, "download Orthanc's packages")
        for package in sorted(downloads.glob("*.deb")):
            _run(["dpkg", "-x", str(package), str(root)], downloads, f"unpack {package.name}")
        if _look_in(root) is None:
            raise OrthancUnavailable(f"the packages {', '.join(wanted)} hold no Orthanc with a DICOMweb plugin")
        final = base / "root"
        shutil.rmtree(final, ignore_errors=True)
        root.rename(final)
    return cast(Installation, _look_in(base / "root"))


def _missing_packages() -> list[str]:
    """The packages that installing Orthanc would add to this system, by apt's own reckoning."""
    command = ["apt-get", "-s", "install", "--no-install-recommends", *_PACKAGES]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=_PREPARE_SECONDS, check=False)  # noqa: S603
    if answer.returncode != 0 and os.geteuid() == 0:
        subprocess.run(["apt-get", "update"], capture_output=True, timeout=_PREPARE_SECONDS, check=False)  # noqa: S607
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_PREPARE_SECONDS, check=False)  # noqa: S603
    if answer.returncode != 0:
        raise OrthancUnavailable(
            "Orthanc is not installed and apt does not know its packages (its package lists may be absent: run "
            f"'apt-get update' as root, or install {' and '.join(_PACKAGES)}); apt said: {_last_line(answer.stderr)}"
        )
    return re.findall(r"^Inst (\S+)", answer.stdout, re.MULTILINE)


def _run(command: list[str], directory: Path, purpose: str) -> None:
    try:
        answer = subprocess.run(  # noqa: S603
            command, cwd=directory, capture_output=True, text=True, timeout=_PREPARE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise OrthancUnavailable(f"could not {purpose} within {_PREPARE_SECONDS:.0f} s") from None
    if answer.returncode != 0:
        raise OrthancUnavailable(f"could not {purpose}: {_last_line(answer.stderr)}")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "nothing"


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port of the host that is free at this moment."""
    with socket.socket() as candidate:
        candidate.bind((host, 0))
        return int(candidate.getsockname()[1])


class Orthanc:
    """One Orthanc on a free port of 127.0.0.1 with its own, initially empty storage.

    Use it as a context manager, or call `start` and `close`. After `stop` or `kill`, `start` opens the same storage on
    the same port again.

    Args:
        directory: For configuration, storage and log; by default a temporary one that `close` removes.
        users: Names and passwords for basic authentication; None for no authentication.
        installation: From `find_installation`, which is called if this is None.
        settings: Further entries of Orthanc's configuration file, replacing those of this class.

    Raises:
        OrthancUnavailable: If Orthanc is not available.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        users: Mapping[str, str] | None = None,
        installation: Installation | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._installation = installation or find_installation()
        self._temporary = None if directory is not None else tempfile.TemporaryDirectory(prefix="orthanc-")
        self.directory = Path(directory if directory is not None else cast(Any, self._temporary).name).absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._users = dict(users) if users is not None else None
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        # Its own name tells this server from another that happens to have taken the port.
        self._name = f"test-{secrets.token_hex(8)}"
        self.port = free_port()

    @property
    def root_url(self) -> str:
        """The root of the native REST API, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The root of the DICOMweb service, without a slash at the end."""
        return f"{self.root_url}/dicom-web"

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            RuntimeError: If it is not running.
        """
        if self._process is None:
            raise RuntimeError("Orthanc is not running")
        return self._process.pid

    def start(self) -> Orthanc:
        """Starts the server and waits until it answers.

        Returns:
            The server itself.

        Raises:
            OrthancUnavailable: If it ends or does not answer within 30 s; the message has the end of its log.
        """
        if self.running:
            return self
        for attempt in range(3):
            try:
                self._start()
            except OrthancUnavailable:
                # Another process may have taken the port since it was found free; a restart must keep its port.
                if attempt == 2 or (self.directory / "storage" / "index").exists() or self.running:
                    raise
                self.port = free_port()
            else:
                return self
        raise AssertionError("not reached")

    def _start(self) -> None:
        configuration = self.directory / "orthanc.json"
        configuration.write_text(json.dumps(self._configuration(), indent=1), encoding="utf-8")
        with open(self.directory / "orthanc.log", "ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [str(self._installation.executable), str(configuration)],
                cwd=self.directory,
                env=self._installation.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # An interrupt typed at a terminal must end the tests, which then end Orthanc.
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.kill()
                why = "ended at once" if ended else f"did not answer within {_START_SECONDS:.0f} s"
                raise OrthancUnavailable(f"Orthanc {why}; the end of its log:\n{self._log_end()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends the server in order (about 3 s): afterwards its storage and its port are free."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the server at once, as a crash would."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Kills the server, if it runs, and removes its temporary directory."""
        self.kill()
        if self._temporary is not None:
            self._temporary.cleanup()

    def wipe(self) -> None:
        """Deletes everything that is stored, through the server."""
        for identifier in self.call("GET", "/patients"):
            self.call("DELETE", f"/patients/{identifier}")

    def call(self, method: str, path: str, body: bytes | None = None) -> Any:
        """Makes a request to the native REST API.

        Args:
            method: Such as ``"GET"``.
            path: From the root on, such as ``"/statistics"``.
            body: The bytes to send.

        Returns:
            The answer's JSON, or its bytes if it is not JSON.

        Raises:
            urllib.error.HTTPError: If the server refuses.
        """
        request = urllib.request.Request(self.root_url + path, data=body, method=method)  # noqa: S310
        if self._users:
            name, password = next(iter(self._users.items()))
            request.add_header("Authorization", "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode())
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            content = answer.read()
        try:
            return json.loads(content)
        except ValueError:
            return content

    def count_instances(self) -> int:
        """The number of stored instances."""
        return int(self.call("GET", "/statistics")["CountInstances"])

    def __enter__(self) -> Orthanc:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answers(self) -> bool:
        try:
            system = self.call("GET", "/system")
        except OSError:
            return False
        return isinstance(system, dict) and system.get("Name") == self._name

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _log_end(self) -> str:
        with contextlib.suppress(OSError):
            return (self.directory / "orthanc.log").read_text(errors="replace")[-2000:]
        return "(no log)"

    def _configuration(self) -> dict[str, Any]:
        storage = str(self.directory / "storage")
        configuration: dict[str, Any] = {
            "Name": self._name,
            "StorageDirectory": storage,
            "IndexDirectory": storage,
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": self._users is not None,
            # With Orthanc's own default, Latin 1, names in other scripts come back without a value (measured, 1.10.1).
            "DefaultEncoding": "Utf8",
            # Its own default, en_US.UTF-8, is often not installed.
            "Locale": "C.UTF-8",
            "Plugins": [str(self._installation.plugin)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
        }
        if self._users is not None:
            configuration["RegisteredUsers"] = self._users
        if self._installation.dictionaries:
            configuration["ExternalDictionaries"] = [str(path) for path in self._installation.dictionaries]
        return {**configuration, **self._settings}
