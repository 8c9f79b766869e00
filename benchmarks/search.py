"""A large search as a pipeline against Beam's own `DicomApiHttpClient.qido_search` and against plain requests.

    python benchmarks/search.py [--rows 20000] [--cap 100] [--milliseconds 20] [--runs 3]

A server in a process of its own gives at most so many rows an answer, and takes so long for each. The peer comes with
``apache-beam[gcp]`` (of which it needs google-auth); it is left out if it cannot be imported. It is pointed at the same
server, once with the page size of the server, and once as it is used by default. Candidates take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import requests

ROOT = "/projects/p/locations/l/datasets/d/dicomStores/s/dicomWeb"
"""The peer knows only addresses of this form."""

STUDY, SERIES = "1.2.3.4", "1.2.3.4.5"

Result = tuple[list[str], str]
"""The UIDs that were found, and what the candidate says of its success."""

Measured = dict[str, tuple[list[float], list[str], str]]
"""By candidate: the seconds of each run, and the last result."""

OURS = "ours: SearchForInstances, 16 in flight"
START_UP = "the start-up of that pipeline alone"
PEER = "peer: qido_search, as many as allowed"


# The server -----------------------------------------------------------------------------------------------------------


def serve(rows: int, cap: int, milliseconds: float) -> None:
    """Answers searches for instances: `rows` rows, at most `cap` at once, each answer after `milliseconds`."""
    encoded = [
        json.dumps(
            {
                "00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]},
                "00080018": {"vr": "UI", "Value": [f"{SERIES}.{number}"]},
                "00080056": {"vr": "CS", "Value": ["ONLINE"]},
                "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Bench^Mark"}]},
                "0020000D": {"vr": "UI", "Value": [STUDY]},
                "0020000E": {"vr": "UI", "Value": [SERIES]},
                "00200013": {"vr": "IS", "Value": [number]},
                "00280010": {"vr": "US", "Value": [512]},
                "00280011": {"vr": "US", "Value": [512]},
            }
        )
        for number in range(rows)
    ]

    pages: dict[tuple[int, int], bytes] = {}

    def page(target: str) -> bytes:
        """The whole answer to a request."""
        parts = urlsplit(target)
        if parts.path != f"{ROOT}/instances":
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        query = parse_qs(parts.query)
        offset, size = int(query.get("offset", ["0"])[0]), min(cap, int(query.get("limit", [str(cap)])[0]))
        if (offset, size) not in pages:
            body = f"[{','.join(encoded[offset : offset + size])}]".encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\nContent-Length: {len(body)}\r\n\r\n"
            pages[offset, size] = head.encode() + body
        return pages[offset, size]

    for offset in range(0, rows, cap):
        page(f"{ROOT}/instances?limit={cap}&offset={offset}")

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
                asyncio.get_running_loop().call_later(milliseconds / 1000, self.transport.write, page(target))

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=128)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(run())


# The candidates -------------------------------------------------------------------------------------------------------


def uid_of(row: dict[str, Any]) -> str:
    return str(row["00080018"]["Value"][0])


def floor(origin: str, cap: int) -> Result:
    """One page after the other with plain requests, which know the server's page size."""
    found: list[str] = []
    with requests.Session() as session:
        while True:
            url = f"{origin}{ROOT}/instances"
            rows = session.get(url, params={"limit": cap, "offset": len(found)}, timeout=60).json()
            found += map(uid_of, rows)
            if len(rows) < cap:
                return found, "success"


def peer(origin: str, limit: int | None) -> Result:
    """Beam's own client, as its `DicomSearch` uses it."""
    from apache_beam.io.gcp.healthcare.dicomclient import DicomApiHttpClient

    client = DicomApiHttpClient()
    client.healthcare_base_url = origin
    with requests.Session() as session:
        client.session = session
        params = {} if limit is None else {"limit": limit}
        rows, status = client.qido_search("p", "l", "d", "s", "instances", params)
    return [uid_of(row) for row in rows], "success" if status == 200 else f"status {status}"


def ours(origin: str, max_in_flight: int, limit: int | None = None) -> Result:
    """A whole pipeline, its construction and start-up included."""
    import apache_beam as beam

    from dicomweb_io.endpoint import Endpoint
    from dicomweb_io.http.settings import Limits
    from dicomweb_io.transforms import SearchForInstances

    class Collect(beam.DoFn):
        # Functions of this script travel to workers as copies, so that the result comes back as a file.
        def __init__(self, path: str) -> None:
            self.path = path

        def start_bundle(self) -> None:
            self.uids: list[str] = []

        def process(self, row: dict[str, Any]) -> None:
            self.uids.append(row["00080018"]["Value"][0])

        def finish_bundle(self) -> None:
            with open(self.path, "a") as file:
                file.writelines(f"{uid}\n" for uid in self.uids)

    endpoint = Endpoint(origin + ROOT, profile="generic", limits=Limits(max_in_flight))
    with tempfile.NamedTemporaryFile("r", prefix="benchmark-") as file:
        with beam.Pipeline(runner="FnApiRunner") as p:
            _ = p | SearchForInstances(endpoint, limit=limit) | beam.ParDo(Collect(file.name))
        return file.read().split(), "success"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--cap", type=int, default=100, help="most rows of an answer")
    parser.add_argument("--milliseconds", type=float, default=20, help="time that each answer takes")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.rows, options.cap, options.milliseconds)
        return 0

    candidates: dict[str, Callable[[str], Result]] = {
        "floor: plain requests, page after page": lambda origin: floor(origin, options.cap),
        "ours: SearchForInstances": lambda origin: ours(origin, 8),
        OURS: lambda origin: ours(origin, 16),
        START_UP: lambda origin: ours(origin, 16, limit=0),
    }
    try:
        import apache_beam.io.gcp.healthcare.dicomclient  # noqa: F401
    except ImportError as error:
        print(f"the peer is left out: {error} (pip install google-auth)")
    else:
        candidates[PEER] = lambda origin: peer(origin, options.cap)
        candidates["peer: qido_search, limit as by default"] = lambda origin: peer(origin, None)

    import dicomweb_io.transforms  # noqa: F401 - the import is not what is measured

    arguments = ["--rows", options.rows, "--cap", options.cap, "--milliseconds", options.milliseconds]
    command = [sys.executable, __file__, "--serve", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            origin = f"http://127.0.0.1:{int(server.stdout.readline())}"
            report(measure(candidates, origin, options.runs), options)
        finally:
            server.kill()
    return 0


def measure(candidates: dict[str, Callable[[str], Result]], origin: str, runs: int) -> Measured:
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    results: dict[str, Result] = {}
    for _ in range(runs):
        for name, run in candidates.items():
            began = time.perf_counter()
            results[name] = run(origin)
            seconds[name].append(time.perf_counter() - began)
    return {name: (seconds[name], *results[name]) for name in candidates}


def report(measured: Measured, options: argparse.Namespace) -> None:
    print(f"{options.rows} rows, at most {options.cap} an answer, {options.milliseconds:g} ms each;")
    print(f"{options.runs} runs, importing apache_beam not counted; ratios are taken within a run\n")
    print(f"{'':40} {'median':>8} {'best':>8}")
    peers = measured[PEER][0] if PEER in measured else []
    for name, (seconds, found, says) in measured.items():
        times = f"{statistics.median(seconds):6.2f} s {min(seconds):6.2f} s"
        if name == START_UP:
            print(f"{name:40} {times}")
            continue
        complete = sorted(found) == sorted(f"{SERIES}.{number}" for number in range(options.rows))
        rows = f"{len(found)} rows" + ("" if complete else f" of {options.rows}") + f", says {says}"
        ratios = [peer / ours for peer, ours in zip(peers, seconds, strict=True)] if peers and complete else []
        ratio = f"{statistics.median(ratios):5.1f} x the peer's speed (best {max(ratios):.1f})" if ratios else ""
        print(f"{name:40} {times}   {rows:34} {ratio}")
    if peers:
        starts = measured[START_UP][0]
        ratios = [peer / (ours - start) for peer, ours, start in zip(peers, measured[OURS][0], starts, strict=True)]
        print(
            "\nwithout a pipeline's start-up, which the peer does not have: "
            f"{statistics.median(ratios):.1f} x the peer's speed (best {max(ratios):.1f})"
        )


if __name__ == "__main__":
    raise SystemExit(main())
