"""Each script in `benchmarks/` runs to its end with little to do; what it measures is not judged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
LITTLE = {
    "archives": ("--series", "2", "--instances", "2", "--size", "1000", "--runs", "1"),
    "buckets": ("--instances", "20", "--kind", "s3"),
    "client": ("--runs", "1"),
    "compare": ("--instances", "60", "--series", "6", "--servers", "--content"),
    "export_table": ("--rows", "200"),
    "file_index": ("--instances", "40", "--repeat", "1", "--small-files", "--no-peer", "--writers", "2"),
    "overheads": ("--series", "2", "--instances", "2", "--size", "200", "--runs", "1"),
    "runners": ("--rows", "300", "--instances", "300", "--task-managers", "0", "--milliseconds", "1"),
    "sizing": ("--instances", "20", "--runs", "1"),
    "search": ("--rows", "200", "--milliseconds", "1", "--runs", "1"),
    "transfer": ("--count", "4", "--size", "1000", "--runs", "1"),
}


def test_every_script_is_known():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(LITTLE)


@pytest.mark.slow
@pytest.mark.parametrize("name", LITTLE)
def test_it_runs(name, request):
    if name == "archives":
        request.getfixturevalue("orthanc_server")
    if name == "buckets":
        pytest.importorskip("adlfs", reason="'tox -e buckets' has the filesystems")
    done = subprocess.run([sys.executable, FOLDER / f"{name}.py", *LITTLE[name]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ours" in done.stdout or "pipeline" in done.stdout
