"""A Flink cluster and Beam's job server on this machine, for tests and to try things out.

``python -m tests.runners.flink start`` starts them, with ``--processes --task-managers 2`` as on a real cluster:
each TaskManager starts Python workers of its own. ``options`` prints the arguments that run a pipeline there,
``status`` what is running, ``stop`` ends it all. ``jar`` builds the jar only, and prints its path.

One jar from Maven Central holds Flink and the job server. Everything listens on free ports, Flink itself on 127.0.0.1
only; all files are in one folder, which goes when the cluster is stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.go_programs import ProgramUnavailable, cache_directory
from tests.runners.jars import Program, java

ROOT = Path(__file__).parents[2]
PROGRAM = Program(
    name="flink",
    main="org.apache.beam.runners.flink.FlinkJobServerDriver",
    artifacts=(
        "org.apache.beam:beam-runners-flink-1.19:2.70.0",
        "org.apache.beam:beam-sdks-java-core:2.70.0",
        "org.slf4j:slf4j-jdk14:2.0.16",
    ),
    # The one of 2.70.0 is not to be had everywhere.
    pinned=("org.apache.beam:beam-runners-java-job-service:2.65.0",),
)
MARK = "DICOMWEB_IO_CLUSTER"
"""The variable that tells a cluster's processes, also the workers that they start, from all others: its folder."""

STARTING_SECONDS = 180
"""Takes about 10 s on a quiet machine with two cores."""

_STOPPING_SECONDS = 60
_TRIES = 3
_OPENED = "lang net io nio lang.reflect text time util util.concurrent util.concurrent.atomic util.concurrent.locks"
_JAVA_OPTIONS = (
    "--add-exports=java.base/sun.net.util=ALL-UNNAMED",
    "--add-exports=java.rmi/sun.rmi.registry=ALL-UNNAMED",
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    *(f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in _OPENED.split()),
    # No files in /tmp, and few threads.
    "-XX:-UsePerfData",
    "-XX:+UseSerialGC",
    "-XX:MaxMetaspaceSize=256m",
    "-XX:MaxDirectMemorySize=512m",
    "-Djava.util.logging.SimpleFormatter.format=%1$tT.%1$tL %4$s %3$s: %5$s%6$s%n",
)
_CONFIGURATION: dict[str, object] = {
    "jobmanager.rpc.address": "127.0.0.1",
    "jobmanager.bind-host": "127.0.0.1",
    "rest.address": "127.0.0.1",
    "rest.bind-address": "127.0.0.1",
    "taskmanager.host": "127.0.0.1",
    "taskmanager.bind-host": "127.0.0.1",
    # Flink's scripts compute sizes; without them all are needed.
    "jobmanager.memory.heap.size": "512m",
    "jobmanager.memory.off-heap.size": "128m",
    "jobmanager.memory.jvm-metaspace.size": "256m",
    "jobmanager.memory.jvm-overhead.min": "64m",
    "jobmanager.memory.jvm-overhead.max": "64m",
    "taskmanager.cpu.cores": "1.0",
    "taskmanager.memory.framework.heap.size": "128m",
    "taskmanager.memory.framework.off-heap.size": "128m",
    "taskmanager.memory.task.heap.size": "512m",
    "taskmanager.memory.task.off-heap.size": "64m",
    "taskmanager.memory.network.min": "256m",
    "taskmanager.memory.network.max": "256m",
    # Each shuffle of a batch takes 512 buffers by default: large graphs end with "Insufficient number of ... buffers".
    "taskmanager.network.sort-shuffle.min-buffers": "64",
    "taskmanager.memory.managed.size": "256m",
    "taskmanager.memory.jvm-metaspace.size": "256m",
    "taskmanager.memory.jvm-overhead.min": "64m",
    "taskmanager.memory.jvm-overhead.max": "64m",
    # The cluster has Beam's classes itself: those of a job's jar would be others.
    "classloader.resolve-order": "parent-first",
    "classloader.check-leaked-classloader": "false",
    # One that is gone is noticed at once, because it cannot be reached. One that is slow has time.
    "heartbeat.interval": "1000",
    "heartbeat.timeout": "120000",
    # With checkpoints Flink would start a failing job again and again.
    "restart-strategy.type": "none",
    "blob.service.cleanup.interval": "60",
}
FlinkUnavailable = ProgramUnavailable
"""There is no Java, no Maven, or no way to the jar; the text says why."""


def flink_jar() -> Path:
    """The path of the jar that holds Flink and Beam's job server, which is built if it is not there yet.

    Raises:
        FlinkUnavailable: If there is no Java or Maven, or Maven cannot get the artifacts.
    """
    java()
    return PROGRAM.jar()


class FlinkCluster:
    """A JobManager, TaskManagers and a job server.

    As a context manager it starts them, and stops them at the end. They end too when this process does, however it
    ends: a process of their own waits for that.

    Attributes:
        folder: Holds all their files; logs are in ``logs``.
    """

    def __init__(
        self,
        task_managers: int = 1,
        slots: int = 2,
        *,
        processes: bool = False,
        configuration: Mapping[str, object] | None = None,
    ) -> None:
        """Describes a cluster.

        Args:
            task_managers: How many TaskManagers there are.
            slots: How many subtasks each of them runs at once.
            processes: Whether TaskManagers start processes for Python, rather than use the one that runs the pipeline.
            configuration: Settings of Flink, on top of those that such a cluster needs.
        """
        if task_managers > 1 and not processes:
            # Each of them numbers its workers from 1, and Python keeps them by that number.
            raise ValueError("several TaskManagers need processes (--processes): in one their workers get mixed up")
        if min(task_managers, slots) < 1:
            raise ValueError("a cluster has at least one TaskManager, and that at least one slot")
        self.folder = Path()
        self._state: dict[str, Any] = {
            "started": task_managers,
            "slots": slots,
            "processes": processes,
            "configuration": dict(configuration or {}),
        }
        self._keeper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> FlinkCluster:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @classmethod
    def of(cls, folder: Path) -> FlinkCluster | None:
        """The cluster that has been started with a folder, if it runs."""
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        cluster = cls()
        cluster.folder, cluster._state = folder, state
        processes = _processes(folder)
        return cluster if {state["job_manager"], state["job_server"]} <= set(processes) else None

    def start(self, folder: Path | None = None) -> None:
        """Starts everything, and waits until it is ready.

        Args:
            folder: Where its files go. With one the cluster outlives this process.

        Raises:
            FlinkUnavailable: If there is no Java, or no jar.
            RuntimeError: If the cluster does not come up; with the end of the logs.
        """
        if not os.path.exists("/proc/self/environ"):
            raise FlinkUnavailable("processes are found in /proc, which this system does not have")
        jar = flink_jar()
        for left in reversed(range(_TRIES)):
            if folder is None:
                self.folder = Path(tempfile.mkdtemp(prefix="dicomweb_io-flink-"))
                command = [sys.executable, "-m", "tests.runners.flink", "keep", str(self.folder)]
                self._keeper = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT, start_new_session=True)
            else:
                self.folder = folder
                folder.mkdir(parents=True)
            try:
                self._start(jar)
                self._wait()
                return
            except BaseException as error:
                logs = self._logs()
                self.stop()
                if not isinstance(error, RuntimeError) or not ("already in use" in logs and left):
                    raise

    def _start(self, jar: Path) -> None:
        state = self._state
        state |= {"jar": str(jar), "managers": {}, "number": 0}
        state |= dict(zip(("rpc_port", "rest_port", "job_port"), _free_ports(3), strict=True))
        for name in ("logs", "configuration", "temp", "work", "tmp", "checkpoints", "artifacts"):
            (self.folder / name).mkdir()
        configuration = {
            **_CONFIGURATION,
            "jobmanager.rpc.port": state["rpc_port"],
            "rest.port": state["rest_port"],
            "taskmanager.numberOfTaskSlots": state["slots"],
            "parallelism.default": state["slots"] * state["started"],
            "io.tmp.dirs": self.folder / "tmp",
            "state.checkpoints.dir": (self.folder / "checkpoints").as_uri(),
            **state["configuration"],
        }
        lines = [f"{name}: {value}\n" for name, value in configuration.items()]
        (self.folder / "configuration/flink-conf.yaml").write_text("".join(lines), encoding="utf-8")
        worker = self.folder / "worker"
        command = shlex.join([sys.executable, str(Path(__file__).with_name("flink_worker.py"))])
        log = shlex.quote(str(self.folder / "logs/workers.log"))
        worker.write_text(f'#!/bin/sh\nexec {command} "$@" >>{log} 2>&1\n', encoding="utf-8")
        worker.chmod(0o700)
        runtime = "org.apache.flink.runtime"
        entrypoint = f"{runtime}.entrypoint.StandaloneSessionClusterEntrypoint"
        state["job_manager"] = self._java("job-manager", 512, entrypoint, "--executionMode", "cluster")
        self._start_job_server()
        for _ in range(state["started"]):
            self._start_task_manager()

    def _start_job_server(self) -> None:
        self._state["job_server"] = self._java(
            "job-server",
            512,
            PROGRAM.main,
            f"--flink-master=127.0.0.1:{self._state['rest_port']}",
            f"--flink-conf-dir={self.folder / 'configuration'}",
            "--job-host=127.0.0.1",
            f"--job-port={self._state['job_port']}",
            "--artifact-port=0",
            "--expansion-port=-1",
            f"--artifacts-dir={self.folder / 'artifacts'}",
        )
        self._save()

    def _start_task_manager(self) -> str:
        self._state["number"] += 1
        name = f"task-manager-{self._state['number']}"
        runner = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
        self._state["managers"][name] = self._java(name, 640, runner, "-D", f"taskmanager.resource-id={name}")
        self._save()
        return name

    def _java(self, name: str, megabytes: int, main: str, *arguments: str) -> int:
        """Starts a Java program in the folder, and returns its process ID."""
        command = [java(), f"-Xms{megabytes}m", f"-Xmx{megabytes}m", *_JAVA_OPTIONS]
        log_path = self.folder / "logs" / f"{name}.log"
        command += [
            f"-Djava.io.tmpdir={self.folder / 'tmp'}",
            f"-Dlog.file={log_path}",
            "-cp",
            self._state["jar"],
            main,
            *arguments,
        ]
        if main != PROGRAM.main:
            command += ["--configDir", str(self.folder / "configuration")]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with open(log_path, "ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.folder / "work",
                env={**os.environ, MARK: str(self.folder), "PYTHONPATH": paths},
            )
        _CHILDREN.append(process)
        return process.pid

    def _wait(self) -> None:
        """Waits until TaskManagers have registered and the job server answers."""
        end = time.monotonic() + STARTING_SECONDS
        expected = {self._state["job_manager"], self._state["job_server"], *self._state["managers"].values()}
        while time.monotonic() < end and not _have_ended(expected):
            with contextlib.suppress(OSError, ValueError):
                socket.create_connection(("127.0.0.1", self._state["job_port"]), timeout=5).close()
                if self._state["managers"].keys() <= {one["id"] for one in self._get("taskmanagers")["taskmanagers"]}:
                    return
            time.sleep(0.2)
        what = "is not ready" if time.monotonic() >= end else "lost a process while it started"
        raise RuntimeError(f"the Flink cluster {what}; its logs end with:\n{self._logs()}")

    def _logs(self) -> str:
        paths = sorted((self.folder / "logs").glob("*.log"))
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-2000:]}" for path in paths)

    def _save(self) -> None:
        path = self.folder / "state.json"
        path.with_suffix(".new").write_text(json.dumps(self._state, indent=1), encoding="utf-8")
        path.with_suffix(".new").replace(path)

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.rest_url}/{path}", timeout=10) as answer:
            return json.load(answer)

    @property
    def rest_url(self) -> str:
        """Flink's REST service, and its web page."""
        return f"http://127.0.0.1:{self._state['rest_port']}"

    def options(self, *more: str) -> list[str]:
        """The arguments that run a pipeline on this cluster, and `more`."""
        options = [
            "--runner=PortableRunner",
            f"--job_endpoint=127.0.0.1:{self._state['job_port']}",
            f"--temp_location={self.folder / 'temp'}",
        ]
        if self._state["processes"]:
            worker = json.dumps({"command": str(self.folder / "worker")}, separators=(",", ":"))
            options += ["--environment_type=PROCESS", f"--environment_config={worker}"]
        else:
            # Workers are threads of the process that runs the pipeline, and serve the next stage too.
            options += ["--environment_type=LOOPBACK", "--environment_cache_millis=10000"]
        return [*options, *more]

    def task_managers(self) -> dict[str, int]:
        """The TaskManagers that are alive, with their process IDs."""
        alive = _processes(self.folder)
        return {name: pid for name, pid in self._state["managers"].items() if pid in alive}

    def worker_pids(self) -> list[int]:
        """The process IDs of the Python workers."""
        return [pid for pid, command in _processes(self.folder).items() if "sdk_worker_main" in command]

    def kill(self, name: str) -> None:
        """Ends a TaskManager or the ``job-server`` at once, with SIGKILL."""
        os.kill({**self.task_managers(), "job-server": self._state["job_server"]}[name], signal.SIGKILL)
        self._state["managers"].pop(name, None)

    def start_job_server(self) -> None:
        """Starts the job server again, on the same port, and waits until it answers."""
        self._start_job_server()
        self._wait()

    def start_task_manager(self) -> str:
        """Starts one more TaskManager, waits until it has registered, and returns its name."""
        self._state["managers"] = self.task_managers()
        name = self._start_task_manager()
        self._wait()
        return name

    def complete(self) -> None:
        """Starts TaskManagers for those that have ended, and waits until everything is ready."""
        while len(self.task_managers()) < self._state["started"]:
            self.start_task_manager()
        self._wait()

    def jobs(self) -> list[dict[str, Any]]:
        """The jobs that Flink knows, each with ``jid``, ``name``, ``state`` and more."""
        jobs: list[dict[str, Any]] = self._get("jobs/overview")["jobs"]
        return jobs

    def cancel(self, job_id: str) -> None:
        """Asks Flink to cancel a job."""
        request = urllib.request.Request(f"{self.rest_url}/jobs/{job_id}?mode=cancel", method="PATCH")
        urllib.request.urlopen(request, timeout=30).close()

    def stop(self) -> None:
        """Ends all processes of the cluster, workers too, and removes its folder."""
        if self._keeper is not None:
            self._keeper.communicate(timeout=2 * _STOPPING_SECONDS)
            self._keeper = None
        else:
            _end(self.folder)


_CHILDREN: list[subprocess.Popen[bytes]] = []
"""Held, so that Python does not warn of those that run on."""


def _have_ended(pids: set[int]) -> bool:
    """Whether one of the processes that were started here has ended; while it starts, it shows no mark yet."""
    return any(child.pid in pids and child.poll() is not None for child in _CHILDREN)


def _processes(folder: Path) -> dict[int, str]:
    """The processes of a cluster that are alive, with their command lines."""
    for child in _CHILDREN:
        # One that has ended is not to stay as a zombie.
        child.poll()
    mark = f"\0{MARK}={folder}\0".encode()
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        # Those of other users cannot be read, and some end just now.
        with contextlib.suppress(OSError):
            if mark in b"\0" + (path / "environ").read_bytes():
                found[int(path.name)] = (path / "cmdline").read_bytes().decode(errors="replace")
    return found


def _end(folder: Path) -> None:
    """Ends what is marked with a folder, and removes the folder."""
    end = time.monotonic() + _STOPPING_SECONDS
    # A TaskManager may start a worker just now.
    while processes := _processes(folder):
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            raise RuntimeError(f"processes do not end: {sorted(processes)}")
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


# The command ---------------------------------------------------------------------------------------------------------


def _keep(folder: Path) -> int:
    """Waits until the process that holds the other end of the standard input has ended, and ends its cluster."""
    sys.stdin.buffer.read()
    _end(folder)
    return 0


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[IO[bytes]]:
    """One command after the other."""
    home.mkdir(parents=True, exist_ok=True)
    with open(home / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.runners.flink",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="start a cluster, and say how to use it")
    start.add_argument("--task-managers", type=int, default=1, help="how many (default: 1)")
    start.add_argument("--slots", type=int, default=2, help="subtasks that each runs at once (default: 2)")
    start.add_argument("--processes", action="store_true", help="let TaskManagers start their own Python workers")
    start.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of Flink")
    commands.add_parser("stop", help="end it, and remove its files")
    commands.add_parser("status", help="print what is running, as JSON")
    commands.add_parser("options", help="print the arguments that run a pipeline there")
    commands.add_parser("jar", help="print the path of the jar, which is built if it is not there yet")
    commands.add_parser("keep").add_argument("folder", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.command == "keep":
        return _keep(arguments.folder)
    try:
        return _command(arguments)
    except (FlinkUnavailable, RuntimeError, ValueError) as error:
        print(f"{arguments.command}: {error}", file=sys.stderr)
        return 1


def _command(arguments: argparse.Namespace) -> int:
    if arguments.command == "jar":
        print(flink_jar())
        return 0
    if arguments.command == "options":
        # Without arguments the job would run in its own process, in silence.
        cluster = FlinkCluster.of(cache_directory() / "flink" / "running")
        print(" ".join(cluster.options()) if cluster else "--runner=FlinkIsNotRunning")
        return 0 if cluster else 1
    home = cache_directory() / "flink"
    folder = home / "running"
    with _alone(home):
        cluster = FlinkCluster.of(folder)
        if arguments.command == "start":
            print(_start(cluster, folder, arguments))
            return 0
        if arguments.command == "stop":
            there = folder.exists()
            _end(folder)
            print("The cluster has been stopped." if there else "No cluster is running.")
            return 0
        if cluster is None:
            raise RuntimeError("no cluster is running; 'python -m tests.runners.flink start' starts one")
        print(json.dumps(_status(cluster), indent=2))
    return 0


def _start(cluster: FlinkCluster | None, folder: Path, arguments: argparse.Namespace) -> str:
    """Starts a cluster if none is running, and tells what to do next."""
    said = "is running already" if cluster else "is running"
    settings = dict(one.partition("=")[::2] for one in arguments.set)
    if not all(settings.values()):
        raise ValueError("--set takes NAME=VALUE, a setting of Flink")
    numbers = arguments.task_managers, arguments.slots
    wanted = FlinkCluster(*numbers, processes=arguments.processes, configuration=settings)
    if cluster is None:
        # What is left of one that has lost a process.
        _end(folder)
        wanted.start(folder)
        cluster = wanted
    elif cluster._state | wanted._state != cluster._state:
        raise RuntimeError("a cluster with other settings is running; 'python -m tests.runners.flink stop' ends it")
    else:
        cluster.complete()
    return (
        f"Flink {said}: {cluster.rest_url} (logs: {folder / 'logs'}). Run a job on it:\n"
        "  python -m pipelines.transfer --source … --destination … $(python -m tests.runners.flink options)\n"
        "and in the end: python -m tests.runners.flink stop"
    )


def _status(cluster: FlinkCluster) -> dict[str, object]:
    return {
        "web": cluster.rest_url,
        "folder": str(cluster.folder),
        "options": cluster.options(),
        "task_managers": cluster.task_managers(),
        "workers": cluster.worker_pids(),
        "jobs": {job["jid"]: job["state"] for job in cluster.jobs()},
    }


if __name__ == "__main__":
    sys.exit(main())
