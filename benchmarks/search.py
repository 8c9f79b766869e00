"""A large search as a pipeline against Beam's own `DicomApiHttpClient.qido_search` and against plain requests.

    python benchmarks/search.py [--rows 20000] [--cap 100] [--milliseconds 20] [--runs 3]

A server in a process of its own gives at most so many rows an answer, and takes so long for each. The peer comes with
``apache-beam[gcp]`` (of which it needs google-auth); it is left out if it cannot be imported. It is pointed at the same
server, once with the page size of the server, and once as it is used by default. Candidates take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests

ROOT = "/projects/p/locations/l/datasets/d/dicomStores/s/dicomWeb"
"""The peer knows only addresses of this form."""

STUDY, SERIES = "1.2.3.4", "1.2.3.4.5"

Result = tuple[list[str], str]
"""The UIDs that were found, and what the candidate says of its success."""


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

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            found = parts.path == f"{ROOT}/instances"
            query = parse_qs(parts.query)
            offset = int(query.get("offset", ["0"])[0])
            size = min(cap, int(query.get("limit", [str(cap)])[0]))
            time.sleep(milliseconds / 1000)
            body = f"[{','.join(encoded[offset : offset + size])}]".encode() if found else b""
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


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


def ours(origin: str, max_in_flight: int) -> Result:
    """A whole pipeline, its construction included."""
    import tempfile

    import apache_beam as beam

    from dicomweb_io.clients.endpoint import Endpoint
    from dicomweb_io.transforms import SearchForInstances

    endpoint = Endpoint(origin + ROOT, profile="generic", max_in_flight=max_in_flight)
    with tempfile.NamedTemporaryFile("r", prefix="benchmark-") as file:
        # Functions of this script travel to workers as copies, so that the result comes back as a file.
        with beam.Pipeline(runner="FnApiRunner") as p:
            uids = p | SearchForInstances(endpoint) | beam.Map(lambda row: row["00080018"]["Value"][0])
            _ = uids | beam.combiners.ToList() | beam.Map(write, file.name)
        return file.read().split(), "success"


def write(uids: list[str], path: str) -> None:
    with open(path, "w") as file:
        file.write("\n".join(uids))


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
        "ours: SearchForInstances, 16 in flight": lambda origin: ours(origin, 16),
    }
    try:
        import apache_beam.io.gcp.healthcare.dicomclient  # noqa: F401
    except ImportError as error:
        print(f"the peer is left out: {error} (pip install google-auth)")
    else:
        candidates[f"peer: qido_search, limit={options.cap}"] = lambda origin: peer(origin, options.cap)
        candidates["peer: qido_search, as by default"] = lambda origin: peer(origin, None)

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


def measure(
    candidates: dict[str, Callable[[str], Result]], origin: str, runs: int
) -> dict[str, tuple[float, list[str], str]]:
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    results: dict[str, Result] = {}
    for _ in range(runs):
        for name, run in candidates.items():
            began = time.perf_counter()
            results[name] = run(origin)
            seconds[name].append(time.perf_counter() - began)
    return {name: (statistics.median(seconds[name]), *results[name]) for name in candidates}


def report(measured: dict[str, tuple[float, list[str], str]], options: argparse.Namespace) -> None:
    print(f"{options.rows} rows, at most {options.cap} an answer, {options.milliseconds:g} ms each; median of")
    print(f"{options.runs} runs, importing apache_beam not counted\n")
    peers = [item for name, item in measured.items() if name == f"peer: qido_search, limit={options.cap}"]
    for name, (seconds, found, says) in measured.items():
        complete = sorted(found) == sorted(f"{SERIES}.{number}" for number in range(options.rows))
        rows = f"{len(found)} rows" + ("" if complete else f" of {options.rows}") + f", says {says}"
        ratio = f"{peers[0][0] / seconds:6.1f} x the peer's speed" if peers and complete else ""
        print(f"{name:42} {seconds:8.2f} s   {rows:36} {ratio}")


if __name__ == "__main__":
    raise SystemExit(main())
