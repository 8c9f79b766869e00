"""``dicomweb-io export table`` of many instances: wall time and the most memory that the process had.

    python benchmarks/export_table.py [--rows 100000] [--cap 1000]

A server in a process of its own gives at most so many rows an answer (see `search.py`). Each table is written by a new
process, whose start counts; a tenth of the rows is written too, to show what grows with them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from search import ROOT

TABLES = {
    "Parquet": ("x.parquet",),
    "CSV": ("x.csv",),
    "JSON lines": ("x.jsonl",),
    "Parquet, all columns": ("all.parquet", "--columns", "all"),
    "Parquet, files of 10,000 rows": ("parts.parquet", "--rows-per-file", "10000"),
}


def measure(origin: str, rows: int, folder: str, out: str, *more: str) -> tuple[float, float, int]:
    """Seconds, the most megabytes in memory, and the bytes of the table."""
    arguments = ["export", "table", origin + ROOT, "--level", "instance", "--limit", str(rows), *more]
    command = [sys.executable, "-m", "dicomweb_io", *arguments, "--out", f"{folder}/{out}"]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    place = Path(folder, out)
    size = sum(path.stat().st_size for path in (place.rglob("*.parquet") if place.is_dir() else [place]))
    return time.perf_counter() - began, usage.ru_maxrss / 1024, size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--cap", type=int, default=1000, help="most rows of an answer")
    options = parser.parse_args()
    script = Path(__file__).with_name("search.py")
    arguments = ["--serve", "--rows", str(options.rows), "--cap", str(options.cap), "--milliseconds", "1"]
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        subprocess.Popen([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            origin = f"http://127.0.0.1:{int(server.stdout.readline())}"
            print("| ours | rows | wall | memory | table |\n|---|---|---|---|---|")
            for name, table in TABLES.items():
                for rows in (options.rows // 10, options.rows):
                    seconds, memory, size = measure(origin, rows, folder, *table)
                    print(
                        f"| {name} | {rows:,} | {seconds:.1f} s | {memory:.0f} MiB | {size / 1e6:.1f} MB |", flush=True
                    )
        finally:
            server.kill()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
