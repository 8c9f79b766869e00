"""What a pipeline costs over the plain client: instances, stores, copies, frames, rows; in wall time, CPU and memory.

    python benchmarks/overheads.py [--series 20] [--instances 50] [--size 65536] [--runs 5] [--task NAME ...]

The test server runs in a process of its own, a destination is empty each time. Every measurement runs in a fresh
process; imports are not counted, building the pipeline is. Candidates take turns, and the median of the runs counts.
*Client* is `DICOMwebClient` in one thread, one request after the other; *start* is a pipeline that does nothing. The
table is Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dicomweb_io import DICOMwebClient
from dicomweb_io.elements import Resource
from dicomweb_io.testing.samples import make_study

PROGRAM = """
import sys
from dicomweb_io.testing.server.server import serve
with serve(sys.argv[1]) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""
COLUMNS = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality", "StudyDate"]

Candidate = Callable[[str, str, str], int]
"""Takes the folder of files, the server that has them, and the empty one; gives the number of results."""


# The client -----------------------------------------------------------------------------------------------------------


def series_of(client: DICOMwebClient) -> list[Resource]:
    return [Resource.of(row) for row in client.iter_search_for_series()]


def number_of(results: Iterable[Any]) -> int:
    return sum(1 for _ in results)


def client_instances(folder: str, source: str, destination: str) -> int:
    client = DICOMwebClient(source)
    return sum(number_of(client.iter_instances(series)) for series in series_of(client))


def client_stores(folder: str, source: str, destination: str) -> int:
    return number_of(DICOMwebClient(destination).iter_store_instances(paths_of(folder)))


def client_copies(folder: str, source: str, destination: str) -> int:
    client, other = DICOMwebClient(source), DICOMwebClient(destination)
    return sum(number_of(other.iter_store_instances(client.iter_instances(series))) for series in series_of(client))


def client_frames(folder: str, source: str, destination: str) -> int:
    client = DICOMwebClient(source)
    found = [Resource.of(row) for row in client.iter_search_for_instances()]
    return sum(number_of(client.iter_frames(replace(instance, frames=(1,)))) for instance in found)


def client_rows(folder: str, source: str, destination: str) -> int:
    return number_of(DICOMwebClient(source).iter_search_for_instances())


def paths_of(folder: str) -> list[str]:
    return [str(path) for path in sorted(Path(folder).rglob("*.dcm"))]


# The pipelines --------------------------------------------------------------------------------------------------------


def in_pipeline(steps: Callable[[Any, Any, str, str, str], Any]) -> Candidate:
    """A whole pipeline, its construction included; its results are counted."""

    def run(folder: str, source: str, destination: str) -> int:
        import apache_beam as beam

        from dicomweb_io import transforms

        with tempfile.NamedTemporaryFile("r", prefix="benchmark-") as file:
            with beam.Pipeline(runner="FnApiRunner") as p:
                results = steps(p, transforms, folder, source, destination)
                _ = results | "Count" >> beam.combiners.Count.Globally() | "Write" >> beam.Map(write, file.name)
            return int(file.read())

    return run


def write(number: int, path: str) -> None:
    Path(path).write_text(str(number), encoding="utf-8")


def nothing(p: Any, t: Any, folder: str, source: str, destination: str) -> Any:
    import apache_beam as beam

    return p | beam.Create([1]) | beam.Reshuffle()


def created(p: Any, elements: list[str]) -> Any:
    import apache_beam as beam

    return p | beam.Create(elements)


TASKS: dict[str, dict[str, Candidate]] = {
    "start": {"pipeline: nothing": in_pipeline(nothing)},
    "instances": {
        "client: iter_instances, by series": client_instances,
        "pipeline: SearchForSeries, RetrieveInstances": in_pipeline(
            lambda p, t, folder, source, destination: p | t.SearchForSeries(source) | t.RetrieveInstances(source)
        ),
        "pipeline: ReadFromDICOMweb": in_pipeline(
            lambda p, t, folder, source, destination: p | t.ReadFromDICOMweb(source)
        ),
    },
    "stores": {
        "client: iter_store_instances": client_stores,
        "pipeline: StoreInstances": in_pipeline(
            lambda p, t, folder, source, destination: (
                (created(p, paths_of(folder)) | t.StoreInstances(destination)).stored
            )
        ),
    },
    "copies": {
        "client: iter_instances, iter_store_instances": client_copies,
        "pipeline: SearchForSeries, CopyInstances": in_pipeline(
            lambda p, t, folder, source, destination: (
                (p | t.SearchForSeries(source) | t.CopyInstances(source, destination)).stored
            )
        ),
    },
    "frames": {
        "client: iter_frames, one by one": client_frames,
        "pipeline: SearchForInstances, RetrieveFrames": in_pipeline(
            lambda p, t, folder, source, destination: p | t.SearchForInstances(source) | t.RetrieveFrames(source, [1])
        ),
    },
    "rows": {
        "client: iter_search_for_instances": client_rows,
        "pipeline: SearchForInstances": in_pipeline(
            lambda p, t, folder, source, destination: p | t.SearchForInstances(source)
        ),
        "pipeline: SearchForInstances with columns": in_pipeline(
            lambda p, t, folder, source, destination: p | t.SearchForInstances(source, columns=COLUMNS)
        ),
    },
}


# Measuring ------------------------------------------------------------------------------------------------------------


def measure(task: str, name: str, *places: str) -> None:
    """Prints what one candidate took in this process."""
    import dicomweb_io.transforms  # noqa: F401 - the import is not what is measured

    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    number = TASKS[task][name](*places)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    grown = (after.ru_maxrss - before.ru_maxrss) / 1024
    print(json.dumps({"number": number, "wall": seconds, "cpu": cpu, "grown": grown}))


def served(stack: ExitStack, directory: str) -> str:
    """Starts a test server in a process of its own, until the stack is left."""
    command = [sys.executable, "-c", PROGRAM, directory]
    server = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    stack.callback(server.kill)
    assert server.stdout is not None
    return server.stdout.readline().strip()


def measured(task: str, name: str, folder: str, source: str) -> dict[str, float]:
    """Runs one candidate in a fresh process."""
    with ExitStack() as stack:
        empty = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-"))
        destination = served(stack, empty) if task in ("stores", "copies") else ""
        command = [sys.executable, os.path.abspath(__file__), "--measure", task, name, folder, source, destination]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=20)
    parser.add_argument("--instances", type=int, default=50, help="of each series")
    parser.add_argument("--size", type=int, default=64 * 1024, help="bytes of pixels of each instance")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--task", action="append", choices=list(TASKS), help="measure only this (repeatable)")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(*args.measure)
        return 0
    count = args.series * args.instances
    print(_conditions(f"{count} instances of {args.size // 1024} KiB in {args.series} series, median of {args.runs}"))
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-"))
        make_study(folder, series=args.series, instances=args.instances, size=args.size)
        source = served(stack, folder)
        print("\n| | | wall | CPU | memory grown | wall, x client |\n|---|---|---|---|---|---|")
        for task in args.task or TASKS:
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in TASKS[task]}
            for _ in range(args.runs):
                for name, results in runs.items():
                    results.append(measured(task, name, folder, source))
                    if results[-1]["number"] != (1 if task == "start" else count):
                        raise SystemExit(f"{task}, {name}: {results[-1]['number']} results instead of {count}")
            _print_rows(task, runs)
    return 0


def _print_rows(task: str, runs: dict[str, list[dict[str, float]]]) -> None:
    client = None
    for name, results in runs.items():
        wall, cpu, grown = (statistics.median(figures[key] for figures in results) for key in ("wall", "cpu", "grown"))
        client = wall if name.startswith("client") else client
        ratio = f"{wall / client:.1f}" if client else ""
        print(f"| {task} | {name} | {wall:.2f} s | {cpu:.2f} s | {grown:.0f} MiB | {ratio} |", flush=True)


def _conditions(what: str) -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"
    names = ("apache-beam", "requests", "urllib3", "pydicom")
    return f"{date.today()}: {what}; {machine}, " + ", ".join(f"{name} {version(name)}" for name in names)


if __name__ == "__main__":
    raise SystemExit(main())
