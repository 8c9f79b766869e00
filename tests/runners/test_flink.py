"""The Flink cluster that tests and newcomers start, and its page: two commands run a job, and nothing is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dicomweb_io.testing.samples import make_study
from tests.runners.flink import PROGRAM, ROOT, FlinkCluster, _processes, main

BLOCKS = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs/runners/flink.md").read_text(), re.DOTALL | re.MULTILINE)
PATIENCE = 100
"""Seconds; less than Flink gives a TaskManager that is slow."""


def wait_until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def block(beginning):
    """The one command of the page that begins so."""
    [found] = [one for one in BLOCKS if one.startswith(beginning)]
    return found


@pytest.fixture
def shell(flink_jar, tmp_path, monkeypatch):
    """Runs lines of the page, with two folders of the test's own, and a cache that holds but the jar."""
    cache = tmp_path / "cache" / "dicomweb_io" / PROGRAM.name
    cache.mkdir(parents=True)
    (cache / flink_jar.parent.name).symlink_to(flink_jar.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)

    def shell(lines, code=0):
        lines = lines.replace("/data/", f"{tmp_path}/")
        done = subprocess.run(["bash", "-euc", lines], cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    shell.folder = cache / "running"
    yield shell
    shell("python -m tests.runners.flink stop")


def test_two_commands_run_a_transfer_and_nothing_is_left(shell, tmp_path):
    make_study(tmp_path / "studies", instances=3, size=300)
    transfer = block("python -m pipelines.transfer --source /data")
    assert "FlinkIsNotRunning" in shell(transfer, code=2)
    assert "no cluster is running" in shell("python -m tests.runners.flink status", code=1)
    assert shell("python -m tests.runners.flink stop") == "No cluster is running.\n"
    start = block("python -m tests.runners.flink start\n")
    assert "Flink is running: http://127.0.0.1:" in shell(start)
    assert "Everything is at the destination." in shell(transfer)
    # The command for a cluster elsewhere, with another job server.
    elsewhere = block("python -m pipelines.transfer --source https")
    cluster = json.loads(shell("python -m tests.runners.flink status"))["web"].removeprefix("http://")
    for written, meant in (
        ("https://pacs.example/dicom-web", "/data/copy"),
        ("gs://bucket", "/data"),
        ("flink.example:8081", cluster),
        ("EXTERNAL --environment_config=localhost:50000 --parallelism=8", "LOOPBACK --parallelism=2"),
    ):
        assert written in elsewhere
        elsewhere = elsewhere.replace(written, meant)
    assert "  already there           3\n" in shell(elsewhere)
    copied, source = (
        sorted(path.read_bytes() for path in tmp_path.glob(f"{it}/**/*.dcm")) for it in ("copy", "studies")
    )
    assert copied == source
    [killed] = json.loads(shell("python -m tests.runners.flink status"))["task_managers"].values()
    os.kill(killed, signal.SIGKILL)
    assert "Flink is running already: http://127.0.0.1:" in shell(start)
    assert list(json.loads(shell("python -m tests.runners.flink status"))["task_managers"]) == ["task-manager-2"]
    assert "with other settings is running" in shell(f"{start.strip()} --slots 3", code=1)
    status, _, said = shell(block("python -m tests.runners.flink status")).rpartition("\n}\n")
    assert said == "The cluster has been stopped.\n"
    assert list(json.loads(status + "}")["jobs"].values()) == ["FINISHED", "FINISHED"]
    assert _processes(shell.folder) == {}
    assert not shell.folder.exists()


def test_a_killed_task_manager_is_noticed_and_a_killed_session_leaves_nothing(flink_jar):
    lines = (
        "from tests.runners.flink import FlinkCluster; cluster = FlinkCluster(2, 1, processes=True); cluster.start()"
    )
    lines += "; print(cluster.folder, flush=True); input()"
    command = [sys.executable, "-c", lines]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as session:
        folder = Path(session.stdout.readline().strip())
        cluster = FlinkCluster.of(folder)
        assert list(cluster.task_managers()) == ["task-manager-1", "task-manager-2"]
        cluster.kill("task-manager-1")
        wait_until(lambda: cluster._get("overview")["taskmanagers"] == 1)
        assert cluster.start_task_manager() == "task-manager-3"
        assert list(cluster.task_managers()) == ["task-manager-2", "task-manager-3"]
        session.kill()
    wait_until(lambda: not folder.exists() and not _processes(folder))


def test_a_cluster_that_does_not_come_up_says_why_and_leaves_nothing(flink_jar):
    cluster = FlinkCluster(configuration={"taskmanager.memory.managed.size": "much"})
    with pytest.raises(RuntimeError, match=r"(?s)lost a process while it started.*task-manager-1.log: .*'much'"):
        cluster.start()
    assert not cluster.folder.exists()
    assert _processes(cluster.folder) == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task-managers", "2"], "several TaskManagers need processes (--processes)"),
        (["--task-managers", "0"], "at least one TaskManager"),
        (["--slots", "0"], "at least one slot"),
        (["--set", "name"], "--set takes NAME=VALUE"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["start", *words]) == 1
    assert said in capsys.readouterr().err
