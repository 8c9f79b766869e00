"""What transfers and watches on a Flink cluster survive: workers, TaskManagers, servers and jobs that are killed.

The workers are processes of two TaskManagers. What is killed is killed at a moment that a seed chooses: when the
destination holds so many instances. Afterwards each instance is at the destination once, byte for byte, and nothing
temporary is left. Either the summary says so, or the exit code and a line say what happened, and a second run brings
what is missing.

One kill belongs to `tox -e flink`, the others to `tox -e long`. Each prints its seed; ``DICOMWEB_IO_SEED`` chooses it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from dicomweb_io.testing.orthanc import Orthanc
from dicomweb_io.testing.samples import make_study
from dicomweb_io.testing.server.server import TestServer, serve as serve_folder
from dicomweb_io.transforms import CopyInstances, WatchForInstances
from tests.runners.flink import FlinkCluster

SEED = int(os.environ.get("DICOMWEB_IO_SEED") or random.SystemRandom().randrange(10**6))
SERIES, IN_SERIES = 100, 20
INSTANCES = SERIES * IN_SERIES
PATIENCE = 420.0
"""Seconds that anything may take on a busy machine."""

CONFIGURATION = {
    "restart-strategy.type": "fixed-delay",
    "restart-strategy.fixed-delay.attempts": 20,
    "restart-strategy.fixed-delay.delay": "6 s",
}
KEPT = "--environment_cache_millis=3000"
"""Workers go on to the next stage. A killed one is forgotten before the job is restarted, which would need it again."""


def wait_for(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Waits until a condition holds, and gives what it gave."""
    end = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < end, f"after {patience:.0f} s there is still no {what}"
        time.sleep(0.02)
    return found


def running_jobs(cluster: FlinkCluster) -> list[str]:
    """The jobs that have not ended."""
    return [job["jid"] for job in cluster.jobs() if job["state"] not in ("FINISHED", "FAILED", "CANCELED")]


def digests(folder: Path) -> Counter[str]:
    """How often each content is in a folder, in files of any name, hidden ones too."""
    return Counter(sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def cluster(flink_jar: Path) -> Iterator[FlinkCluster]:
    """Two TaskManagers with worker processes, and restarts of jobs that fail."""
    with FlinkCluster(task_managers=2, slots=1, processes=True, configuration=CONFIGURATION) as started:
        yield started


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 2,000 small instances in 100 series."""
    folder = tmp_path_factory.mktemp("source")
    make_study(folder, studies=SERIES // 5, series=5, instances=IN_SERIES, size=64)
    return folder


class Transfer:
    """A job that copies a folder by way of a server, whose source or destination it is, and what came of it."""

    def __init__(self, cluster: FlinkCluster, source: Path, place: Path, module: str, to_server: bool) -> None:
        self.cluster, self.source, self.module, self.to_server = cluster, source, module, to_server
        self.destination = place / "destination"
        self.destination.mkdir()
        self.server: TestServer | Orthanc
        self.process: subprocess.Popen[str]
        self.arguments: list[str] = []
        self.said = ""

    def arrived(self) -> int:
        """How many instances are at the destination."""
        if isinstance(self.server, Orthanc):
            return self.server.count_instances()
        return sum(not path.name.startswith(".") for path in self.destination.rglob("*.dcm"))

    def contents(self) -> Counter[str]:
        """How often each content is at the destination."""
        if not isinstance(self.server, Orthanc):
            return digests(self.destination)
        call = self.server.call
        return Counter(sha256(call("GET", f"/instances/{one}/file")).hexdigest() for one in call("GET", "/instances"))

    def begin(self) -> None:
        ends = [str(self.source), self.server.url] if self.to_server else [self.server.url, str(self.destination)]
        command = [sys.executable, "-m", self.module, "--source", ends[0], "--destination", ends[1], *self.arguments]
        self.process = subprocess.Popen(
            [*command, "--shared-filesystem", *self.cluster.options(KEPT)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> tuple[int, dict[str, Any], str]:
        """The exit code, the summary if there is one, and what was said."""
        try:
            out, said = self.process.communicate(timeout=PATIENCE)
        finally:
            self.process.kill()
        self.said += said
        print(f"exit code {self.process.returncode}, {self.arrived()} have arrived: {out}{said[-800:]}")
        return self.process.returncode, json.loads(out) if out.strip() else {}, said

    def holds(self, number: int, result: Any) -> None:
        """Waits until so many have arrived by a pipeline that runs."""

        def ended() -> bool:
            return PipelineState.is_terminal(result.state)

        wait_for(lambda: self.arrived() >= number or ended(), f"{number} instances")
        assert not ended(), f"the job is {result.state}"

    def reaches(self, number: int) -> bool:
        """Waits until so many have arrived; False if the job has ended."""
        wait_for(lambda: self.arrived() >= number or self.process.poll() is not None, f"{number} instances")
        return self.process.poll() is None


def kill_a_worker(transfer: Transfer, chance: random.Random) -> None:
    os.kill(chance.choice(wait_for(transfer.cluster.worker_pids, "worker")), signal.SIGKILL)


def kill_a_task_manager(transfer: Transfer, chance: random.Random) -> None:
    transfer.cluster.kill(chance.choice(sorted(transfer.cluster.task_managers())))
    transfer.cluster.start_task_manager()


def restart_the_server(transfer: Transfer, chance: random.Random) -> None:
    server = transfer.server
    server.kill() if isinstance(server, Orthanc) else server.stop()
    time.sleep(chance.uniform(0, 2))
    transfer.server.start()


def cancel_the_job(transfer: Transfer, chance: random.Random) -> None:
    transfer.cluster.cancel(wait_for(lambda: running_jobs(transfer.cluster), "job")[0])


def kill_the_job_server(transfer: Transfer, chance: random.Random) -> None:
    transfer.cluster.kill("job-server")
    transfer.cluster.start_job_server()


KILLS = {
    "a worker": kill_a_worker,
    "a TaskManager": kill_a_task_manager,
    "the server": restart_the_server,
    "the job": cancel_the_job,
    "the job server": kill_the_job_server,
}


def check_complete(transfer: Transfer, found: int = INSTANCES) -> None:
    """Exit code 0 means that all is there. Any other comes with a reason, and a second run completes the transfer."""
    code, summary, said = transfer.end()
    if code != 0:
        assert code == 1
        assert "Traceback" not in said
        assert "there is no summary" in said or summary["found"] < found or summary["failed"] + summary["not_tried"]
        transfer.begin()
        code, summary, said = transfer.end()
    assert code == 0
    assert summary["found"] == summary["transferred"] + summary["already_there"] == found
    assert transfer.contents() == digests(transfer.source)


def check_nothing_is_left(transfer: Transfer) -> None:
    """No jobs, no files in the temporary location that were not named, no workers but those of living TaskManagers.

    These are idle, and Beam's: a job that fails does not end all of its workers, but they end with their TaskManager.
    """

    def strays() -> list[int]:
        alive = set(transfer.cluster.task_managers().values())
        return [pid for pid in transfer.cluster.worker_pids() if _parent(pid) not in alive]

    wait_for(lambda: not running_jobs(transfer.cluster), "end of the jobs")
    wait_for(lambda: not strays(), "end of the workers without a TaskManager", 60)
    print(f"{len(transfer.cluster.worker_pids())} workers are idle")
    for left in (transfer.cluster.folder / "temp").iterdir():
        assert str(left) in transfer.said
        shutil.rmtree(left)


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return None


def run_with_a_kill(transfer: Transfer, what: str, seed: object) -> None:
    """Transfers 2,000 instances, and kills something at a moment that the seed chooses."""
    chance = random.Random(f"{seed} {what} {transfer.to_server}")
    number = chance.randrange(INSTANCES * 9 // 10)
    transfer.begin()
    assert transfer.reaches(number)
    print(f"seed {seed}: {what} is killed when {transfer.arrived()} (planned: {number}) have arrived")
    KILLS[what](transfer, chance)
    check_complete(transfer)
    if isinstance(transfer.server, TestServer) and transfer.to_server:
        print(f"{len(transfer.server.records.of('POST'))} store requests for {SERIES} series")
    check_nothing_is_left(transfer)


@pytest.fixture
def begun(source: Path, tmp_path: Path) -> Iterator[Callable[..., Transfer]]:
    """Makes a transfer, with its server; of the 2,000 instances unless another folder is named."""
    with ExitStack() as stack:

        def make(cluster: FlinkCluster, to_server: bool, *, job: str = "transfer", folder: Path = source) -> Transfer:
            made = Transfer(cluster, folder, tmp_path, f"pipelines.{job}", to_server)
            made.server = stack.enter_context(serve_folder(str(made.destination if to_server else folder)))
            return made

        yield make


def test_a_task_manager_is_killed_while_a_server_is_copied_to_a_folder(begun, cluster):
    run_with_a_kill(begun(cluster, to_server=False), "a TaskManager", SEED)


@pytest.mark.long
@pytest.mark.parametrize("to_server", [False, True], ids=["to a folder", "to a server"])
@pytest.mark.parametrize("what", KILLS)
def test_nothing_is_lost_or_doubled(begun, cluster, what, to_server):
    run_with_a_kill(begun(cluster, to_server), what, SEED)


@pytest.mark.long
def test_an_orthanc_that_is_killed_holds_each_instance_once(begun, cluster, orthanc):
    transfer = begun(cluster, to_server=True)
    transfer.server = orthanc
    run_with_a_kill(transfer, "the server", SEED)


@pytest.mark.long
@pytest.mark.parametrize("what", ["a worker", "a TaskManager"])
def test_a_watch_goes_on_where_its_last_checkpoint_was(begun, cluster, tmp_path, what):
    """Instances arrive one series after the other; each when the one before is at the destination."""
    made = tmp_path / "made"
    make_study(made, series=6, instances=25, size=64)
    arriving = tmp_path / "arriving"
    arriving.mkdir()
    transfer = begun(cluster, to_server=False, folder=arriving)
    chance = random.Random(f"{SEED} watch {what}")
    killed = chance.randrange(1, 5)
    streaming = ("--streaming", "--checkpointing_interval=2000", "--shutdown_sources_after_idle_ms=1000")
    pipeline = beam.Pipeline(options=PipelineOptions(cluster.options(KEPT, *streaming)))
    watch = WatchForInstances(transfer.server.url, start="all", interval=1, max_polls=60, method="list")
    _ = pipeline | "Watch" >> watch | "Copy" >> CopyInstances(transfer.server.url, str(transfer.destination))
    result = pipeline.run()
    try:
        for number, series in enumerate(sorted(made.glob("*/*"))):
            series.rename(arriving / series.name)
            transfer.server.refresh()
            there = 25 * (number + 1)
            if number == killed:
                wanted = there - chance.randrange(1, 25)
                transfer.holds(wanted, result)
                print(f"seed {SEED}: {what} is killed when {wanted} of {there} have arrived")
                KILLS[what](transfer, chance)
            transfer.holds(there, result)
        wait_for(lambda: result.state == "DONE", "end of the watch")
    except BaseException:
        result.cancel()
        raise
    assert digests(transfer.destination) == digests(arriving)
    answers = [record for record in transfer.server.records if "/series/" in record.path and not record.query]
    print(f"{len(answers)} retrieves for 6 series, {sum(record.bytes_out for record in answers):,} bytes")


@pytest.mark.long
def test_a_watch_in_rounds_survives_a_task_manager(begun, flink_jar, tmp_path):
    """The process that runs the rounds is their worker too."""
    chance = random.Random(f"{SEED} rounds")
    number = chance.randrange(INSTANCES * 9 // 10)
    with FlinkCluster(configuration=CONFIGURATION) as cluster:
        transfer = begun(cluster, to_server=False, job="watch")
        transfer.arguments = ["--start", "all", "--once", "--cursor", str(tmp_path / "cursor.json")]
        transfer.begin()
        assert transfer.reaches(number)
        print(f"seed {SEED}: a TaskManager is killed when {number} have arrived")
        kill_a_task_manager(transfer, chance)
        code, _, _ = transfer.end()
        if code != 0:
            transfer.begin()
            assert transfer.end()[0] == 0
    assert digests(transfer.destination) == digests(transfer.source)
