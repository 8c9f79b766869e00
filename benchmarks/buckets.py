"""Copies into a bucket and out of it, and its index: requests and bytes for each object, time, memory.

    python benchmarks/buckets.py [--instances 10000] [--size 2048] [--kind s3 --kind gs --kind az]

Each kind is a real server of its protocol on this machine (moto, fake-gcs-server, Azurite) behind a proxy that counts,
both written for tests: the requests are those of the clouds, the seconds are not. Every step runs in a fresh process,
with a new index; its memory is the highest that the process had. Needs the extras `s3`, `gcs`, `abfs`, and
`moto[server]`. The table is Markdown.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import fsspec

from dicomweb_io.testing.samples import make_study
from tests.buckets.servers import KINDS, Proxy, running

STEP = """
import resource, sys, time
from dicomweb_io.cli import main
started = time.monotonic()
code = main(sys.argv[1:])
print(code, time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def measure(proxy: Proxy, cache: Path, arguments: list[str]) -> tuple[float, float]:
    """The seconds and the MiB of a command in a process of its own."""
    proxy.reset()
    done = subprocess.run(
        [sys.executable, "-c", STEP, *arguments],
        env={**os.environ, "DICOMWEB_IO_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    code, seconds, memory = done.stdout.splitlines()[-1].split()
    if code != "0":
        sys.exit(f"{' '.join(arguments)} failed: {done.stderr[-2000:]}")
    return float(seconds), float(memory)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=2048, help="bytes of pixel data of each")
    parser.add_argument("--kind", action="append", choices=list(KINDS))
    args = parser.parse_args()
    series = max(1, args.instances // 250)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        source = work / "source"
        count = len(make_study(source, studies=series, instances=args.instances // series, size=args.size))
        packages = ", ".join(f"{name} {version(name)}" for name in ("fsspec", "s3fs", "gcsfs", "adlfs"))
        print(f"{date.today()}, Python {platform.python_version()}, {os.cpu_count()} cores, {packages}")
        print(f"ours, {count:,} objects\n")
        print("| bucket | step | requests for each object | other requests | seconds | MiB |")
        print("|---|---|---|---|---|---|")
        for name in args.kind or KINDS:
            kind = KINDS[name]
            (server := work / name).mkdir()
            with running(kind, server) as proxy:
                os.environ.update(kind.environment(proxy.port))
                bucket = f"{kind.scheme}://benchmark"
                fsspec.filesystem(kind.scheme).mkdir("benchmark")
                steps = {
                    "copy a folder into it": ["copy", str(source), f"{bucket}/a"],
                    "copy again: all there": ["copy", str(source), f"{bucket}/a"],
                    "index and search": ["--url", f"{bucket}/a", "search", "studies"],
                    "copy out of it, index known": ["copy", f"{bucket}/a", str(work / f"back-{name}")],
                }
                for number, (step, arguments) in enumerate(steps.items()):
                    cache = work / f"cache-{name}-{min(number, 2)}"
                    seconds, memory = measure(proxy, cache, arguments)
                    objects = sum(".dcm" in request.path or request.method == "POST" for request in proxy.requests)
                    rest = len(proxy.requests) - objects
                    figures = f"{objects / count:.2f} | {rest} | {seconds:.1f} | {memory:.0f}"
                    print(f"| `{kind.scheme}://` | {step} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
