"""``--setup_file``: Beam's own boot program builds the package where there is nothing but Beam and setuptools."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import apache_beam
import pytest

from dicomweb_io.testing.samples import make_study
from tests.go_programs import ProgramUnavailable, go_program
from tests.runners.flink import FlinkCluster

ROOT = Path(__file__).parents[2]
SOURCES = ("setup.py", "pyproject.toml", "README.md", "dicomweb_io", "pipelines")
BOOT = "github.com/apache/beam/sdks/v2/python/container"
INSTANCES = 200


@pytest.mark.long
def test_workers_build_the_package_themselves(tmp_path):
    try:
        boot = go_program(BOOT, f"v{apache_beam.__version__}")
        with FlinkCluster(slots=1, processes=True) as cluster:
            _transfer(cluster, boot, tmp_path)
    except ProgramUnavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def _transfer(cluster: FlinkCluster, boot: Path, folder: Path) -> None:
    """Transfers from folder to folder with such workers, and compares."""
    venv.create(folder / "empty", with_pip=True)
    python = folder / "empty" / "bin" / "python"
    # The boot program builds with the setuptools that are there, as in images of Beam. -I: no paths of this process.
    packages = [f"apache-beam=={apache_beam.__version__}", "setuptools>=70.1"]
    subprocess.run([python, "-Im", "pip", "install", "-q", *packages], check=True)
    assert subprocess.run([python, "-Ic", "import dicomweb_io"], cwd=folder, capture_output=True).returncode == 1
    worker = folder / "worker"
    # Without the variable it makes an environment over the system's packages: in an image, those that it has.
    log, path = folder / "worker.log", f"{python.parent}:{os.environ['PATH']}"
    worker.write_text(
        f"#!/bin/sh\ncd {shlex.quote(str(folder))}\nunset PYTHONPATH\n"
        f"export RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1 PATH={shlex.quote(path)}\n"
        f'exec {shlex.quote(str(boot))} "$@" --semi_persist_dir={folder / "semi"} >>{log} 2>&1\n'
    )
    worker.chmod(0o700)
    # What is built leaves files beside its sources.
    sources = folder / "sources"
    sources.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, sources / name)
    study, copied = folder / "study", folder / "copied"
    make_study(study, instances=INSTANCES)
    options = [option for option in cluster.options() if not option.startswith("--environment_")]
    options += ["--environment_type=PROCESS", f"--environment_config={json.dumps({'command': str(worker)})}"]
    options += [f"--source={study}", f"--destination={copied}", f"--summary={folder / 'summary.json'}"]
    command = [sys.executable, "-m", "pipelines.transfer", "--shared-filesystem", *options]
    done = subprocess.run(
        [*command, "--setup_file=./setup.py"], cwd=sources, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, f"{done.stderr[-3000:]}\n{log.read_text()[-3000:] if log.exists() else ''}"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["found"], summary["transferred"]) == (INSTANCES, INSTANCES)
    assert "dicomweb_io" in log.read_text()
    files = [sorted(file.read_bytes() for file in place.rglob("*.dcm")) for place in (study, copied)]
    assert len(files[0]) == INSTANCES
    assert files[0] == files[1]
