"""Searches and exports of metadata on Flink, with one and with two TaskManagers: rates, CPU, memory, who did how much.

    python benchmarks/runners.py [--rows 10000 100000 1000000] [--instances 20000 200000] [--task-managers 1 2]
                                 [--milliseconds 20] [--write docs/runners]

A server in a process of its own answers after a fixed time. Each job is a process of its own; the Python workers are
processes of the TaskManagers, one for each. Their CPU time and memory are read from /proc while a job runs. With
``--task-managers 0`` the jobs run on FnApiRunner, without Flink. ``--write`` writes figures (``load.json``) and a plot
(``load.png``, with matplotlib) into a folder.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

REPOSITORY = Path(__file__).parents[1]
SERIES_OF_STUDY, INSTANCES_OF_SERIES = 10, 200
CAP = 1000
SECONDS_PER_TICK = 1 / os.sysconf("SC_CLK_TCK")
EVERY = 0.25
"""Seconds between two looks at the processes."""

Engine = tuple[list[str], dict[str, int], Any]
"""The arguments of a job, the processes to look at by name, and the cluster (None without Flink)."""


# The server -----------------------------------------------------------------------------------------------------------


def row(number: int) -> str:
    """An instance as JSON: a row of a search, or its metadata."""
    series = number // INSTANCES_OF_SERIES
    study = f"1.2.3.{series // SERIES_OF_STUDY}"
    return (
        '{"00080016":{"vr":"UI","Value":["1.2.840.10008.5.1.4.1.1.2"]},"00080056":{"vr":"CS","Value":["ONLINE"]},'
        '"00080060":{"vr":"CS","Value":["CT"]},"00100010":{"vr":"PN","Value":[{"Alphabetic":"Bench^Mark"}]},'
        '"00280010":{"vr":"US","Value":[512]},"00280011":{"vr":"US","Value":[512]},'
        f'"00080018":{{"vr":"UI","Value":["1.2.5.{number}"]}},"0020000D":{{"vr":"UI","Value":["{study}"]}},'
        f'"0020000E":{{"vr":"UI","Value":["{study}.4.{series}"]}},"00200013":{{"vr":"IS","Value":[{number}]}}}}'
    )


def answer(target: str, rows: int) -> bytes:
    """The whole answer to a request: rows of an honest offset and limit with the total, or the metadata of a series."""
    parts = urlsplit(target)
    first, last = 0, rows
    series = re.search(r"/series/[\d.]+\.4\.(\d+)/", parts.path)
    if series is not None:
        first = int(series[1]) * INSTANCES_OF_SERIES
        last = min(first + INSTANCES_OF_SERIES, rows)
    elif parts.path != "/instances":
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    total, total_header = last - first, ""
    if parts.path.endswith("/instances"):
        query = parse_qs(parts.query)
        first += int(query.get("offset", ["0"])[0])
        last = min(last, first + min(CAP, int(query.get("limit", [str(CAP)])[0])))
        total_header = f"X-Total-Count: {total}\r\n"
    body = f"[{','.join(map(row, range(first, last)))}]".encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\n{total_header}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def serve(rows: int, milliseconds: float) -> None:
    """Answers for an archive of so many instances, each answer after a time."""

    class Connection(asyncio.Protocol):
        """Answers one request after the other, as the clients here send them."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)
            self.received = b""

        def data_received(self, data: bytes) -> None:
            self.received += data
            while b"\r\n\r\n" in self.received:
                request, _, self.received = self.received.partition(b"\r\n\r\n")
                target = request.split(b" ", 2)[1].decode()
                asyncio.get_running_loop().call_later(milliseconds / 1000, self.reply, target)

        def reply(self, target: str) -> None:
            self.transport.write(answer(target, rows))

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=128)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def serving(rows: int, milliseconds: float) -> Iterator[str]:
    """The address of a server of so many instances."""
    command = [sys.executable, __file__, "--serve", str(rows), "--milliseconds", str(milliseconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


# The jobs -------------------------------------------------------------------------------------------------------------


def search(origin: str, out: str, arguments: list[str]) -> None:
    """Searches for instances, and writes how many rows each worker had and the sum of their numbers."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    from dicomweb_io.endpoint import Endpoint
    from dicomweb_io.transforms import SearchForInstances

    def numbered(row: dict[str, Any]) -> tuple[str, tuple[int, int]]:
        return str(os.getpid()), (1, row["00200013"]["Value"][0])

    def added(pairs: Any) -> tuple[int, int]:
        count = total = 0
        for one, number in pairs:
            count, total = count + one, total + number
        return count, total

    with beam.Pipeline(options=PipelineOptions(arguments)) as p:
        rows = p | SearchForInstances(Endpoint(origin, profile="generic"), fields=["InstanceNumber"])
        counted = rows | "Number" >> beam.Map(numbered) | "Add" >> beam.CombinePerKey(added)
        _ = counted | "JSON" >> beam.Map(json.dumps) | beam.io.WriteToText(out)


def rows_of_workers(out: str, rows: int) -> list[int]:
    """How many rows each worker had; every row must be there once."""
    found = [json.loads(line) for path in Path(out).parent.glob("rows*") for line in path.read_text().splitlines()]
    counts, sums = [count for _, (count, _) in found], [total for _, (_, total) in found]
    assert (sum(counts), sum(sums)) == (rows, rows * (rows - 1) // 2), f"{sum(counts)} of {rows} rows"
    return sorted(counts, reverse=True)


# Looking at processes -------------------------------------------------------------------------------------------------


def processes() -> dict[int, tuple[int, float, float]]:
    """The parent, the CPU seconds and the MiB in memory of each process of this machine."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            found[int(place.name)] = (
                int(fields[1]),
                (int(fields[11]) + int(fields[12])) * SECONDS_PER_TICK,
                int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20,
            )
        except OSError:
            continue
    return found


class Watched:
    """CPU time and memory of some processes and of their descendants while a job runs.

    Args:
        roots: The processes, by name. A descendant is named after the nearest of them.
    """

    def __init__(self, roots: dict[str, int]) -> None:
        self._roots = {pid: name for name, pid in roots.items()}
        self._began = time.monotonic()
        self._first = {pid: cpu for pid, (_, cpu, _) in processes().items()}
        self._cpu: dict[str, float] = {}
        self.memory: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(EVERY):
            now, seen = time.monotonic() - self._began, processes()
            for pid, (_, cpu, memory) in seen.items():
                name = self._name(pid, seen)
                if name is not None:
                    self._cpu[name] = cpu - self._first.get(pid, 0.0)
                    self.memory[name].append((now, memory))

    def _name(self, pid: int, seen: dict[int, tuple[int, float, float]]) -> str | None:
        ancestor = pid
        while ancestor in seen:
            if ancestor in self._roots:
                name = self._roots[ancestor]
                return name if ancestor == pid else f"{name}, worker {pid}"
            ancestor = seen[ancestor][0]
        return None

    def figures(self) -> dict[str, dict[str, float]]:
        """By process: CPU seconds, and MiB in memory in the middle and at the end of its life, and at most."""
        figures = {}
        for name, cpu in self._cpu.items():
            memory = [size for _, size in self.memory[name]]
            if cpu < 0.5 and "worker" in name:
                continue  # What a worker starts for a moment.
            later = memory[3 * len(memory) // 4 :]
            figures[name] = {
                "cpu_seconds": round(cpu, 2),
                "mib_middle": round(memory[len(memory) // 2]),
                "mib_late": round(sum(later) / len(later)),
                "mib_most": round(max(memory)),
            }
        return figures


def spread(rest_url: str) -> dict[str, dict[str, list[int]]]:
    """The records that each stage of the newest job wrote, by TaskManager."""

    def get(path: str) -> Any:
        with urllib.request.urlopen(rest_url + path, timeout=10) as answered:
            return json.load(answered)

    newest = max(get("/jobs/overview")["jobs"], key=lambda job: job["start-time"])["jid"]
    stages: dict[str, dict[str, list[int]]] = {}
    for vertex in get(f"/jobs/{newest}")["vertices"]:
        managers = get(f"/jobs/{newest}/vertices/{vertex['id']}/taskmanagers")["taskmanagers"]
        stages[vertex["name"][:160]] = {
            manager["taskmanager-id"]: [manager["metrics"]["read-records"], manager["metrics"]["write-records"]]
            for manager in managers
        }
    return stages


# Measuring ------------------------------------------------------------------------------------------------------------


@contextmanager
def engine(task_managers: int) -> Iterator[Engine]:
    """FnApiRunner, or a Flink cluster with so many TaskManagers."""
    if task_managers == 0:
        yield ["--runner=FnApiRunner"], {}, None
        return
    sys.path.insert(0, str(REPOSITORY))
    from tests.runners.flink import FlinkCluster

    with FlinkCluster(task_managers, slots=2, processes=True) as cluster:
        yield cluster.options("--environment_cache_millis=60000"), cluster.task_managers(), cluster


def measure(kind: str, count: int, milliseconds: float, on: Engine) -> dict[str, Any]:
    """Runs a job and says what it took."""
    arguments, roots, cluster = on
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-"))
        origin = stack.enter_context(serving(count, milliseconds))
        out = f"{folder}/rows"
        if kind == "search":
            command = [sys.executable, __file__, "--search", origin, "--out", out, *arguments]
        else:
            command = [sys.executable, "-m", "pipelines.export_metadata", "--source", origin, "--level", "instance"]
            command += ["--full", "--out", f"{folder}/table.parquet", *arguments]
            command += [] if cluster is None else ["--shared-filesystem"]
        began = time.monotonic()
        with open(f"{folder}/log", "w+") as log, subprocess.Popen(command, stdout=log, stderr=log) as job:
            with Watched({**roots, "the job's process": job.pid}) as watched:
                code = job.wait()
            seconds = time.monotonic() - began
            log.seek(0)
            assert code == 0, f"{' '.join(command)} ended with {code}:\n{log.read()[-3000:]}"
        workers = watched.figures()
        result = {
            "kind": kind,
            "count": count,
            "seconds": round(seconds, 2),
            "rows_of_workers": rows_of_workers(out, count) if kind == "search" else table_rows(folder, count),
            "processes": workers,
            "memory": {name: watched.memory[name][:: 1 + len(watched.memory[name]) // 100] for name in workers},
        }
        if cluster is not None:
            result["stages"] = spread(cluster.rest_url)
    return result


def table_rows(folder: str, count: int) -> None:
    """Checks that every instance is in the table."""
    import pyarrow.parquet

    found = pyarrow.parquet.read_table(f"{folder}/table.parquet", columns=["SOPInstanceUID"])
    assert len(set(found.column(0).to_pylist())) == count == found.num_rows


def told(task_managers: int, result: dict[str, Any]) -> str:
    """A line of the table."""
    workers = {name: one for name, one in result["processes"].items() if "worker" in name or task_managers == 0}
    cpu = [one["cpu_seconds"] for one in workers.values()]
    where = f"Flink, {task_managers} TaskManager{'s' * (task_managers > 1)}" if task_managers else "FnApiRunner"
    memory = " / ".join(f"{one['mib_middle']}, {one['mib_late']}" for one in workers.values())
    return (
        f"| {result['kind']} | {where} | {result['count']:,} | {result['seconds']:.1f} s "
        f"| {result['count'] / result['seconds']:,.0f} | {1000 * sum(cpu) / result['count']:.2f} s "
        f"| {' / '.join(f'{one:.1f} s' for one in cpu)} | {memory} MiB |"
    )


HEAD = """\
| ours | on | rows | wall | rows/s | CPU of workers, 1,000 rows | CPU of each | memory of each, half-way and late |
|---|---|---|---|---|---|---|---|"""


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """CPU time for each row by number of rows, and the memory of the workers over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    for kind, managers in dict.fromkeys((one["kind"], one["task_managers"]) for one in results):
        those = [one for one in results if (one["kind"], one["task_managers"]) == (kind, managers)]
        costs = [
            1000 * sum(of["cpu_seconds"] for name, of in one["processes"].items() if "worker" in name) / one["count"]
            for one in those
        ]
        label = f"{kind}, {managers} TaskManager{'s' * (managers != 1)}"
        left.plot([one["count"] for one in those], costs, marker="o", label=label)
        for name, points in those[-1]["memory"].items():
            if "worker" in name:
                right.plot(*zip(*points, strict=True), label=f"{label}: {name.partition(',')[0]}")
    left.set(xscale="log", xlabel="rows", ylabel="CPU seconds of workers, 1,000 rows", ylim=(0, None))
    right.set(xlabel="seconds", ylabel="memory of a Python worker, MiB (largest job)", ylim=(0, None))
    for axes in (left, right):
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--instances", type=int, nargs="*", default=[20_000, 200_000])
    parser.add_argument("--task-managers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--milliseconds", type=float, default=20, help="time that each answer takes")
    parser.add_argument("--write", type=Path, help="the folder for the figures and the plot")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--search", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options, others = parser.parse_known_args()
    if options.serve is not None:
        serve(options.serve, options.milliseconds)
        return 0
    if options.search is not None:
        search(options.search, options.out, others)
        return 0
    if others:
        parser.error(f"unknown arguments: {' '.join(others)}")

    results = []
    print(HEAD, flush=True)
    for managers in options.task_managers:
        with engine(managers) as on:
            for kind, counts in (("search", options.rows), ("metadata", options.instances)):
                for count in counts:
                    result = {"task_managers": managers, **measure(kind, count, options.milliseconds, on)}
                    print(told(managers, result), flush=True)
                    results.append(result)
    if options.write is not None:
        machine = {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "python": platform.python_version()}
        about = {**machine, "apache-beam": version("apache-beam"), "milliseconds": options.milliseconds}
        (options.write / "load.json").write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
        plot(results, options.write / "load.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
