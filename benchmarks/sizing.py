"""What a transfer costs a worker process, for docs/runners/sizing.md: CPU time for instances and bytes, and memory.

    python benchmarks/sizing.py [--instances 300] [--runs 3]

Each measurement is a fresh process that runs the job, between a folder and a test server in another process; of CPU
time the least of the runs counts, because other programs only add to it. What the start costs is subtracted: a run
with few instances beside one with many. Two sizes of instances tell the cost of an instance from that of its bytes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from dicomweb_io.testing.samples import make_study

SIZES = (1 << 16, 1 << 20)
FEW = 10
SERVER = """
import sys
from dicomweb_io.testing.server.server import serve
with serve(sys.argv[1]) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""
JOB = """
import resource, sys
from pipelines.transfer import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print("USED", used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
sys.exit(code)
"""


def measured(source: object, destination: object) -> tuple[float, float]:
    """Seconds of CPU and MiB of memory of a transfer."""
    command = [sys.executable, "-c", JOB, f"--source={source}", f"--destination={destination}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    seconds, memory = done.stdout.rpartition("USED ")[2].split()
    return float(seconds), float(memory)


def both_ways(folder: Path, source: Path) -> dict[str, tuple[float, float]]:
    """A folder to a server, and the server to a folder."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-c", SERVER, f"{scratch}/archive"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                url = server.stdout.readline().strip()
                there = measured(source, url)
                return {"folder to server": there, "server to folder": measured(url, f"{scratch}/copy")}
            finally:
                server.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=300)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    if options.instances <= FEW:
        parser.error(f"--instances must be above {FEW}, which are the few")
    cpu: dict[tuple[str, int, int], float] = {}
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        for size in SIZES:
            for count in (FEW, options.instances):
                make_study(folder / f"{size}-{count}", instances=count, size=size)
        for _ in range(options.runs):
            for size in SIZES:
                for count in (FEW, options.instances):
                    for way, (seconds, peak) in both_ways(folder, folder / f"{size}-{count}").items():
                        key = (way, size, count)
                        cpu[key] = min(seconds, cpu.get(key, seconds))
                        memory[way] = max(peak, memory.get(way, 0))
    small, large = SIZES
    print(f"pipelines.transfer, {options.instances} instances of {small >> 10} KiB and of {large >> 10} KiB\n")
    for way, peak in memory.items():
        of_one = {
            size: (cpu[way, size, options.instances] - cpu[way, size, FEW]) / (options.instances - FEW)
            for size in SIZES
        }
        of_mb = (of_one[large] - of_one[small]) / ((large - small) / 1e6)
        of_instance = of_one[small] - of_mb * small / 1e6
        print(
            f"{way}: {cpu[way, small, FEW]:.1f} s of CPU to start, {of_instance * 1e3:.2f} s for 1,000 instances, "
            f"{of_mb * 1e3:.2f} s for each GB, {peak:.0f} MiB of memory at most"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
