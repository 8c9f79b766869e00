"""The web client against `dicomweb-client` and against plain requests: time, CPU and memory growth.

    python benchmarks/client.py [--runs 5]

A server in a process of its own gives prepared answers, so that it costs all candidates the same. Every measurement
runs in a fresh process. Candidates take turns, and the median of the runs counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, version
from typing import Any

STUDY, SERIES = "1.2.3.4", "1.2.3.4.5"
BOUNDARY = "benchmark-boundary-0123456789"
COUNT, SIZE, BIG, ROWS = 200, 512 * 1024, 200_000_000, 1000


# The server -----------------------------------------------------------------------------------------------------------


def instance_bytes(number: int, size: int) -> bytes:
    import numpy as np
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    dataset = pydicom.Dataset()
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = f"{SERIES}.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, SERIES
    dataset.PatientID = "BENCH"
    side = 512
    dataset.Rows, dataset.Columns = size // (2 * side), side
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 15, 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    rng = np.random.default_rng(number)
    dataset.PixelData = rng.integers(0, 2**16, dataset.Rows * side, dtype=np.uint16).tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def multipart(parts: list[bytes], media_type: str) -> bytes:
    head = f"Content-Type: {media_type}; transfer-syntax=1.2.840.10008.1.2.1\r\n\r\n".encode()
    delimiter = f"--{BOUNDARY}\r\n".encode()
    return b"".join(delimiter + head + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--\r\n".encode()


def serve() -> None:
    series = multipart([instance_bytes(number, SIZE) for number in range(1, COUNT + 1)], "application/dicom")
    frame = multipart([os.urandom(1_000_000) * (BIG // 1_000_000)], "application/octet-stream")
    row = {
        "00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.2"]},
        "00080056": {"vr": "CS", "Value": ["ONLINE"]},
        "0020000D": {"vr": "UI", "Value": [STUDY]},
        "0020000E": {"vr": "UI", "Value": [SERIES]},
        "00280010": {"vr": "US", "Value": [512]},
        "00280011": {"vr": "US", "Value": [512]},
        "00081190": {"vr": "UR", "Value": [f"http://127.0.0.1/dicom-web/studies/{STUDY}/series/{SERIES}"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Bench^Mark"}]},
    }
    rows = [{**row, "00080018": {"vr": "UI", "Value": [f"{SERIES}.{number}"]}} for number in range(ROWS)]
    search = json.dumps(rows).encode()
    stored = json.dumps(
        {
            "00081199": {
                "vr": "SQ",
                "Value": [
                    {
                        "00081150": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.7"]},
                        "00081155": {"vr": "UI", "Value": [f"{SERIES}.{number}"]},
                    }
                    for number in range(1, COUNT + 1)
                ],
            }
        }
    ).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self, content_type: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            related = f'multipart/related; type="%s"; boundary={BOUNDARY}'
            path = self.path.partition("?")[0]
            if path.endswith("/frames/1"):
                self.answer(related % "application/octet-stream", frame)
            elif path.endswith(f"/series/{SERIES}"):
                self.answer(related % "application/dicom", series)
            elif path.endswith("/instances"):
                self.answer("application/dicom+json", search)
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                while size := int(self.rfile.readline(), 16):
                    self.rfile.read(size + 2)
                self.rfile.readline()
            else:
                left = int(self.headers["Content-Length"])
                while left:
                    left -= len(self.rfile.read(min(left, 1 << 20)))
            self.answer("application/dicom+json", stored)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


# The candidates -------------------------------------------------------------------------------------------------------


def ours(url: str) -> Any:
    from dicomweb_io.api import DICOMwebClient

    return DICOMwebClient(url)


def peer(url: str) -> Any:
    from dicomweb_client.api import DICOMwebClient

    return DICOMwebClient(url)


def drain(iterator: Any) -> None:
    for _ in iterator:
        pass


def floor_stream(path: str) -> Callable[[str], Callable[[], None]]:
    def prepare(url: str) -> Callable[[], None]:
        import requests

        return lambda: drain(requests.get(url + path, stream=True, timeout=60).iter_content(1_000_000))

    return prepare


def floor_search(url: str) -> Callable[[], None]:
    import requests

    return lambda: drain(requests.get(f"{url}/instances", timeout=60).json())


def datasets() -> list[Any]:
    import pydicom

    return [pydicom.dcmread(io.BytesIO(instance_bytes(number, SIZE))) for number in range(1, COUNT + 1)]


def floor_store(url: str) -> Callable[[], None]:
    import requests

    body = multipart([instance_bytes(number, SIZE) for number in range(1, COUNT + 1)], "application/dicom")
    return lambda: drain([requests.post(f"{url}/studies", data=body, timeout=60)])


def store_files(url: str) -> Callable[[], None]:
    import tempfile

    directory = tempfile.mkdtemp(prefix="benchmark-")
    paths = []
    for number in range(1, COUNT + 1):
        paths.append(os.path.join(directory, f"{number}.dcm"))
        with open(paths[-1], "wb") as file:
            file.write(instance_bytes(number, SIZE))
    client = ours(url)

    def run() -> None:
        assert all(type(result).__name__ == "StoredInstance" for result in client.iter_store_instances(paths))

    return run


def with_items(make: Callable[[str], Any], method: str) -> Callable[[str], Callable[[], None]]:
    def prepare(url: str) -> Callable[[], None]:
        items, client = datasets(), make(url)
        return lambda: drain(getattr(client, method)(items))

    return prepare


def call(make: Callable[[str], Any], method: str, *arguments: Any, **named: Any) -> Callable[[str], Callable[[], None]]:
    def prepare(url: str) -> Callable[[], None]:
        client = make(url)
        return lambda: drain(getattr(client, method)(*arguments, **named))

    return prepare


def resource_instances(url: str) -> Callable[[], None]:
    from dicomweb_io import Resource

    client = ours(url)
    return lambda: drain(client.iter_instances(Resource(STUDY, SERIES)))


_FRAME = (STUDY, SERIES, f"{SERIES}.1", [1])
_SERIES_PATH = f"/studies/{STUDY}/series/{SERIES}"
CASES: dict[str, dict[str, Callable[[str], Callable[[], None]]]] = {
    f"series of {COUNT} x 512 KiB": {
        "floor: streamed and dropped": floor_stream(_SERIES_PATH),
        "ours: iter_instances (bytes)": resource_instances,
        "ours: iter_series (datasets)": call(ours, "iter_series", STUDY, SERIES),
        "peer: iter_series": call(peer, "iter_series", STUDY, SERIES),
        "ours: retrieve_series": call(ours, "retrieve_series", STUDY, SERIES),
        "peer: retrieve_series": call(peer, "retrieve_series", STUDY, SERIES),
    },
    "one frame of 200 MB": {
        "floor: streamed and dropped": floor_stream(f"{_SERIES_PATH}/instances/{SERIES}.1/frames/1"),
        "ours: retrieve_instance_frames": call(ours, "retrieve_instance_frames", *_FRAME),
        "peer: retrieve_instance_frames": call(peer, "retrieve_instance_frames", *_FRAME),
    },
    f"search with {ROWS} rows": {
        "floor: get and json": floor_search,
        "ours: search_for_instances": call(ours, "search_for_instances"),
        "peer: search_for_instances": call(peer, "search_for_instances"),
    },
    f"store of {COUNT} x 512 KiB": {
        "floor: one post of bytes": floor_store,
        "ours: iter_store_instances (paths)": store_files,
        "ours: store_instances (datasets)": with_items(ours, "store_instances"),
        "peer: store_instances (datasets)": with_items(peer, "store_instances"),
    },
}


def measure(case: str, candidate: str, url: str) -> None:
    run = CASES[case][candidate](url)
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"ms": seconds * 1000, "cpu": cpu * 1000, "mib": (after.ru_maxrss - before.ru_maxrss) / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return
    if args.measure:
        measure(*args.measure)
        return
    have_peer = importlib.util.find_spec("dicomweb_client") is not None
    me = [sys.executable, os.path.abspath(__file__)]
    server = subprocess.Popen([*me, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/dicom-web"
        _print_versions()
        for case, candidates in CASES.items():
            names = [name for name in candidates if have_peer or not name.startswith("peer")]
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
            for _ in range(args.runs):
                for name in names:
                    command = [*me, "--measure", case, name, url]
                    out = subprocess.run(command, capture_output=True, text=True, check=True)
                    runs[name].append(json.loads(out.stdout))
            _print_case(case, runs)
    finally:
        server.terminate()
        server.wait()


def _print_versions() -> None:
    def of(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"{name} absent"

    names = ("dicomweb_io", "dicomweb-client", "requests", "urllib3", "pydicom")
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, " + ", ".join(map(of, names)))


def _print_case(case: str, runs: dict[str, list[dict[str, float]]]) -> None:
    print(f"\n{case}\n{'':42}{'wall ms':>9}{'CPU ms':>9}{'MiB grown':>11}{'x floor':>9}")
    floor = None
    for name, results in runs.items():
        ms, cpu, mib = (statistics.median(result[key] for result in results) for key in ("ms", "cpu", "mib"))
        floor = floor or ms
        print(f"  {name:40}{ms:9.1f}{cpu:9.1f}{mib:11.1f}{ms / floor:9.2f}")


if __name__ == "__main__":
    main()
