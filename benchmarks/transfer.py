"""`CopyInstances` from a folder to a server and back against the same bytes moved with plain requests.

    python benchmarks/transfer.py [--count 200] [--size 524288] [--runs 3]

The test server runs in a process of its own. The floor sends each file by itself, as one STOW request, and retrieves
each instance by itself, both over one connection and without looking at the answers. Candidates take turns.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from dicomweb_io.elements import Instance
from dicomweb_io.testing.samples import make_study

PROGRAM = """
import sys
from dicomweb_io.testing.server.server import serve
with serve(sys.argv[1]) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


def copy(source: str, destination: str) -> int:
    """A whole pipeline, its construction included; gives the number of instances that were moved."""
    import apache_beam as beam

    from dicomweb_io.transforms import CopyInstances, SearchForStudies

    with tempfile.NamedTemporaryFile("r", prefix="benchmark-") as file:
        with beam.Pipeline(runner="FnApiRunner") as p:
            result = p | SearchForStudies(source) | CopyInstances(source, destination)
            moved = result.stored | beam.Filter(lambda item: item.outcome == "stored")
            _ = moved | beam.combiners.Count.Globally() | beam.Map(write, file.name)
        return int(file.read())


def write(number: int, path: str) -> None:
    with open(path, "w") as file:
        file.write(str(number))


def floor_store(paths: list[Path], url: str) -> int:
    boundary = "benchmark-boundary-0123456789"
    content_type = f'multipart/related; type="application/dicom"; boundary={boundary}'
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    with requests.Session() as session:
        for path in paths:
            body = head + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
            session.post(f"{url}/studies", data=body, headers={"Content-Type": content_type}, timeout=60)
    return len(paths)


def floor_retrieve(uris: list[str], url: str, directory: Path) -> int:
    directory.mkdir(parents=True)
    accept = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
    with requests.Session() as session:
        for number, uri in enumerate(uris):
            answer = session.get(f"{url}/{uri}", headers=accept, timeout=60)
            (directory / f"{number}.part").write_bytes(answer.content)
    return len(uris)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="instances")
    parser.add_argument("--size", type=int, default=512 * 1024, help="bytes of pixels of each")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()

    import dicomweb_io.transforms  # noqa: F401 - the import is not what is measured

    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        directory = Path(name)
        paths = make_study(directory / "source", instances=options.count, size=options.size)
        uris = [Instance.from_path(path).reference.uri for path in paths]
        total = sum(path.stat().st_size for path in paths)
        for _ in range(options.runs):
            for who in ("floor", "ours"):
                archive, target = directory / "archive", directory / "copy"
                command = [sys.executable, "-c", PROGRAM, str(archive)]
                with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
                    try:
                        assert server.stdout is not None
                        url = server.stdout.readline().strip()
                        steps: dict[str, Callable[[], Any]] = {
                            "folder to server": lambda url=url: copy(str(directory / "source"), url),
                            "server to folder": lambda url=url, target=target: copy(url, str(target)),
                        }
                        if who == "floor":
                            steps = {
                                "folder to server": lambda url=url: floor_store(paths, url),
                                "server to folder": lambda url=url, target=target: floor_retrieve(uris, url, target),
                            }
                        for step, run in steps.items():
                            began = time.perf_counter()
                            moved = run()
                            seconds.setdefault(f"{step}, {who}", []).append(time.perf_counter() - began)
                            if moved != options.count:
                                raise SystemExit(f"{step}, {who}: {moved} of {options.count} instances were moved")
                    finally:
                        server.kill()
                shutil.rmtree(archive)
                shutil.rmtree(target)

    print(f"{options.count} instances, {total / 1e6:.0f} MB; median of {options.runs} runs\n")
    for name, times in sorted(seconds.items()):
        took = statistics.median(times)
        floor = statistics.median(seconds[name.rpartition(",")[0] + ", floor"])
        print(
            f"{name:28} {took:7.2f} s {options.count / took:8.1f} instances/s {total / took / 1e6:8.1f} MB/s "
            f"{floor / took:6.2f} x the floor's speed"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
