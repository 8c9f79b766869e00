"""Transfers between two real Orthancs, and between one and a folder, against what people use instead.

    python benchmarks/archives.py [--series 20] [--instances 50] [--size 131072] [--runs 3]
        [--ways server-server folder-server server-folder] [--peer-python PYTHON]

Candidates take turns. Each is a fresh process, whose start counts, and the destination is empty each time. *ours, copy*
is `dicomweb-io copy`, *ours, job* is `python -m pipelines.transfer`. *Peer* is a pool of eight threads over
`dicomweb-client`, which moves series by series (left out if PYTHON does not have it). *Floor* relays the bytes of each
series with plain requests, eight at once, and looks at nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from dicomweb_io.testing.orthanc import Orthanc
from dicomweb_io.testing.samples import make_study

ROOT = Path(__file__).parents[1]
SERIES_PER_STUDY = 5

FLOOR = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import requests

source, destination = sys.argv[1:]
KIND = 'multipart/related; type="application/dicom"'

def series_of(source):
    if source.startswith("http"):
        for row in requests.get(f"{source}/series").json():
            study, series = (row[tag]["Value"][0] for tag in ("0020000D", "0020000E"))
            yield f"{source}/studies/{study}/series/{series}"
    else:
        yield from sorted({path.parent for path in Path(source).rglob("*.dcm")})

def read(series):
    if not isinstance(series, Path):
        answer = requests.get(series, headers={"Accept": KIND + "; transfer-syntax=*"})
        return answer.content, answer.headers["Content-Type"]
    head = b"--floor\\r\\nContent-Type: application/dicom\\r\\n\\r\\n"
    parts = [head + path.read_bytes() + b"\\r\\n" for path in sorted(series.iterdir())]
    return b"".join(parts) + b"--floor--\\r\\n", KIND + "; boundary=floor"

def move(numbered):
    number, series = numbered
    body, kind = read(series)
    if destination.startswith("http"):
        requests.post(f"{destination}/studies", data=body, headers={"Content-Type": kind}).raise_for_status()
    else:
        Path(destination).mkdir(exist_ok=True)
        (Path(destination) / str(number)).write_bytes(body)

with ThreadPoolExecutor(8) as threads:
    list(threads.map(move, enumerate(series_of(source))))
"""

PEER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pydicom
from dicomweb_client import DICOMwebClient

source, destination = sys.argv[1:]

def series_of(source):
    if source.startswith("http"):
        for row in DICOMwebClient(source).search_for_series():
            yield tuple(row[tag]["Value"][0] for tag in ("0020000D", "0020000E"))
    else:
        yield from sorted({path.parent for path in Path(source).rglob("*.dcm")})

def read(series):
    if isinstance(series, Path):
        return [pydicom.dcmread(path) for path in sorted(series.iterdir())]
    return DICOMwebClient(source).retrieve_series(*series, media_types=(("application/dicom", "*"),))

def move(series):
    datasets = read(series)
    if destination.startswith("http"):
        return DICOMwebClient(destination).store_instances(datasets)
    for dataset in datasets:
        folder = Path(destination) / dataset.StudyInstanceUID / dataset.SeriesInstanceUID
        folder.mkdir(parents=True, exist_ok=True)
        dataset.save_as(folder / f"{dataset.SOPInstanceUID}.dcm")

with ThreadPoolExecutor(8) as threads:
    list(threads.map(move, series_of(source)))
"""


class Run(NamedTuple):
    """What one run took."""

    wall: float
    cpu: float
    memory: float


def environment() -> dict[str, str]:
    """The variables of every candidate: this package from here, compiled as an installed one is."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    compiled = os.path.join(tempfile.gettempdir(), f"benchmark-compiled-{os.getuid()}")
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": compiled}


def measured(command: list[str]) -> Run:
    """Runs a command to its end."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=words, stderr=words)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - began
        if process.returncode:
            words.seek(0)
            raise SystemExit(f"{command[:5]} failed:\n{words.read().decode()[-2000:]}")
    return Run(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def candidates(peer_python: str, wanted: list[str]) -> dict[str, list[str]]:
    """The commands, without source and destination."""
    commands = {
        "floor": [sys.executable, "-c", FLOOR],
        "peer": [peer_python, "-c", PEER],
        "ours, copy": [sys.executable, "-m", "dicomweb_io", "copy"],
        "ours, job": [sys.executable, "-m", "pipelines.transfer", "--source", "--destination"],
    }
    if subprocess.run([peer_python, "-c", "import dicomweb_client"], env=environment(), capture_output=True).returncode:
        del commands["peer"]
    for module in ("dicomweb_io", "pipelines.transfer"):
        subprocess.run([sys.executable, "-m", module, "--help"], env=environment(), capture_output=True, check=True)
    return {name: command for name, command in commands.items() if not wanted or name in wanted}


def command_of(candidate: list[str], source: str, destination: str) -> list[str]:
    """A candidate's command line."""
    if candidate[-1] == "--destination":
        return [*candidate[:-1], source, candidate[-1], destination]
    return [*candidate, source, destination]


@contextmanager
def empty(way: str, work: Path) -> Iterator[tuple[str, Orthanc | None]]:
    """An empty destination."""
    with ExitStack() as stack:
        if way.endswith("server"):
            orthanc = stack.enter_context(Orthanc())
            yield orthanc.url, orthanc
        else:
            yield stack.enter_context(tempfile.TemporaryDirectory(prefix="destination-", dir=work)) + "/copy", None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=20)
    parser.add_argument("--instances", type=int, default=50, help="in each series")
    parser.add_argument("--size", type=int, default=128 * 1024, help="bytes of pixels of each")
    parser.add_argument("--runs", type=int, default=3)
    ways = ["server-server", "folder-server", "server-folder"]
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways)
    parser.add_argument("--candidates", nargs="+", default=[], help="names of some")
    parser.add_argument("--peer-python", default=sys.executable)
    options = parser.parse_args()

    count = options.series * options.instances
    commands = candidates(options.peer_python, options.candidates)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        os.environ["DICOMWEB_IO_CACHE"] = str(work / "cache")
        folder = work / "source"
        studies = -(-options.series // SERIES_PER_STUDY)
        per_study = -(-options.series // studies)
        count = len(make_study(folder, studies, per_study, options.instances, options.size))
        source = stack.enter_context(Orthanc())
        subprocess.run([sys.executable, "-c", FLOOR, str(folder), source.url], check=True)
        if source.count_instances() != count:
            raise SystemExit("the source could not be filled")
        print(f"{count} instances of {options.size} bytes in {studies * per_study} series; medians of {options.runs}\n")
        for way in options.ways:
            runs: dict[str, list[Run]] = {name: [] for name in commands}
            for _ in range(options.runs):
                for name, candidate in commands.items():
                    with empty(way, work) as (destination, orthanc):
                        begin = str(folder) if way.startswith("folder") else source.url
                        runs[name].append(measured(command_of(candidate, begin, destination)))
                        there = orthanc.count_instances() if orthanc else len(list(Path(destination).rglob("*.dcm")))
                        if there != count and name.startswith("ours"):
                            raise SystemExit(f"{way}, {name}: {there} of {count} instances arrived")
                        if there != count and (orthanc or name != "floor"):
                            print(f"{way}, {name}: {there} of {count} instances arrived", flush=True)
            report(way, runs)
    return 0


def report(way: str, runs: dict[str, list[Run]]) -> None:
    """Prints the medians and their ratio to the peer."""
    print(f"{way:24} {'wall':>7} {'CPU':>9} {'memory':>9} {'x the peer':>11}")
    medians = {name: Run(*map(statistics.median, zip(*several, strict=True))) for name, several in runs.items()}
    for name, (wall, cpu, memory) in medians.items():
        ratio = f"{wall / medians['peer'].wall:10.2f}" if "peer" in medians else ""
        print(f"  {name:20} {wall:7.2f} s {cpu:7.2f} s {memory:5.0f} MiB {ratio}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
