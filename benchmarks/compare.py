"""Comparing two archives of many instances: wall time, and how much memory the comparison takes.

    python benchmarks/compare.py [--instances 20000] [--series 200] [--size 16] [--servers] [--content]

The second archive lacks a series and every thousandth instance. Both are folders; with --servers each is served by a
test server in a process of its own. The comparison (ours) runs in a process of its own too, twice: the first time it
also reads the folders. The floor lists the same files by name only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dicomweb_io.elements import Instance
from dicomweb_io.testing.samples import make_study

SERVER = """
import sys
from dicomweb_io.testing.server.server import serve
with serve(sys.argv[1]) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""

OURS = """
import json, resource, sys, time
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.reconcile import ComparisonJob, run_comparison
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.monotonic()
lines = []
job = ComparisonJob(Endpoint(sys.argv[1]), Endpoint(sys.argv[2]), compare=sys.argv[3])
summary = run_comparison(job, on_difference=lambda found: lines.append(found.instances))
print(json.dumps({
    "seconds": time.monotonic() - started,
    "instances": summary["instances"],
    "missing": sum(lines),
    "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "growth": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024,
}))
"""


def make_archives(folder: Path, instances: int, series: int, size: int) -> int:
    """Writes both archives; the files of the second are links to those of the first. Gives how many it lacks."""
    (path,) = make_study(folder / "template", instances=1, size=size)
    content, reference = path.read_bytes(), Instance.from_path(path).reference
    lacking = 0
    for number in range(instances):
        one = number * series // instances
        changed = content
        for level, (uid, value) in enumerate(zip(reference.uids.values(), (one // 4, one, number), strict=True), 1):
            # Of the same length, so that the file stays well-formed.
            changed = changed.replace(uid.encode(), f"2.25.{level}{value:0{len(uid) - 6}}".encode())
        target = folder / "one" / str(one) / f"{number}.dcm"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(changed)
        if one == 1 or number % 1000 == 999:
            lacking += 1
            continue
        other = folder / "two" / str(one) / f"{number}.dcm"
        other.parent.mkdir(parents=True, exist_ok=True)
        os.link(target, other)
    return lacking


def compare(source: str, destination: str, how: str) -> dict[str, Any]:
    """A comparison in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", OURS, source, destination, how], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=20_000)
    parser.add_argument("--series", type=int, default=200, help="four of them are a study")
    parser.add_argument("--size", type=int, default=16, help="bytes of pixels of each instance")
    parser.add_argument("--servers", action="store_true", help="compare servers instead of folders")
    parser.add_argument("--content", action="store_true", help="compare contents too")
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        os.environ["DICOMWEB_IO_CACHE"] = str(folder / "cache")
        lacking = make_archives(folder, args.instances, args.series, args.size)
        started = time.monotonic()
        names = sum(len(files) for place in ("one", "two") for _, _, files in os.walk(folder / place))
        print(f"floor: {names:,} names of files in {time.monotonic() - started:.1f} s")
        places = [str(folder / "one"), str(folder / "two")]
        if args.servers:
            for number, place in enumerate(places):
                server = subprocess.Popen(
                    [sys.executable, "-c", SERVER, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
                stack.callback(server.wait)
                stack.callback(server.terminate)
                assert server.stdout is not None
                places[number] = server.stdout.readline().strip()
        for run in ("first", "again"):
            found = compare(*places, "content" if args.content else "uid")
            assert found["missing"] == lacking, found
            total = sum(found["instances"].values())
            print(
                f"ours, {run}: {total:,} instances in {found['seconds']:.1f} s, "
                f"{found['megabytes']:.0f} MB in all, {found['growth']:.0f} MB above the start"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
