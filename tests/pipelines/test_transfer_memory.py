"""The memory of a transfer is bounded: many instances, and one huge one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dicomweb_io.testing.samples import make_study, synthetic_instance

MB = 1_000_000
LIMIT = 150 * MB

PROGRAM = """
import resource, sys
from pipelines.transfer import main
code = main(sys.argv[1:])
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
sys.exit(code)
"""


def peak_of(source, destination):
    """The most memory that a transfer had, in bytes."""
    command = [sys.executable, "-c", PROGRAM, "--source", str(source), "--destination", str(destination)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return int(answer.stdout.rpartition("PEAK")[2])


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder for gigabytes, which is removed at once afterwards."""
    directory = tmp_path_factory.mktemp("large")
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def least(room):
    """The peak of a transfer of ten small instances: what the program itself needs."""
    make_study(room / "few", instances=10, size=1000)
    return peak_of(room / "few", room / "few-copy")


def check(source, serve, room, least):
    """Folder to server, and server to folder; the server runs in this process, so only the job is measured."""
    server = serve(room / "archive")
    there = peak_of(source, server.url) - least
    back = peak_of(server.url, room / "copy") - least
    originals = sorted(path.stat().st_size for path in Path(source).rglob("*.dcm"))
    assert sorted(path.stat().st_size for path in (room / "copy").rglob("*.dcm")) == originals
    print(f"\npeak growth: {there / MB:.0f} MB to the server, {back / MB:.0f} MB from it")
    assert there < LIMIT
    assert back < LIMIT
    for name in ("archive", "copy"):
        shutil.rmtree(room / name)


@pytest.mark.slow
def test_two_thousand_instances_of_half_a_mebibyte(serve, room, least):
    make_study(room / "many", instances=2000, size=512 * 1024)
    check(room / "many", serve, room, least)
    shutil.rmtree(room / "many")


@pytest.mark.slow
def test_one_instance_of_a_gigabyte(serve, room, least):
    (room / "one").mkdir()
    synthetic_instance(1_000_000_000, room / "one" / "huge.dcm")
    check(room / "one", serve, room, least)
    shutil.rmtree(room / "one")
