"""The file client against a plain loop of pydicom, and against dicomweb-client where that is installed.

    python benchmarks/file_index.py [--instances 2000] [--small-files] [--large-frames] [--writers 8]

It makes copies of pydicom's ``CT_small.dcm`` (studies of 4 series of 50), each with UIDs of its own, and measures in
one run, in fresh processes of this interpreter, best of `--repeat`:

- a loop of ``dcmread(path, stop_before_pixels=True)`` over all files: what it costs to look at each header once;
- building the index, opening it again with nothing changed, and searches;
- the DICOM JSON of ``CT_small.dcm``, and pydicom's ``to_json_dict`` of a dataset that was just read;
- the same operations of dicomweb-client's ``DICOMfileClient``;
- one frame of a multi-frame file of 1 GB, with the bytes that were read for it;
- eight processes that store overlapping thirds of 4,000 instances into one folder.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SERIES, INSTANCES = 4, 50


def best(
    work: Callable[[], Any],
    repeat: int,
    before: Callable[[], Any] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    times = []
    for _ in range(repeat):
        before()
        start = clock()
        work()
        times.append(clock() - start)
    return min(times)


def make_archive(folder: Path, instances: int, small: bool) -> None:
    import pydicom

    from dicomweb_io.testing.samples import make_study, sample_file

    template = sample_file("CT_small.dcm").read_bytes()
    if small:
        # The same header with 16 by 16 pixels: what counts is the number of files.
        dataset = pydicom.dcmread(io.BytesIO(template))
        dataset.Rows = dataset.Columns = 16
        dataset.PixelData = bytes(512)
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        template = buffer.getvalue()
    make_study(folder, max(1, instances // (SERIES * INSTANCES)), SERIES, INSTANCES, template=template)
    # Files are older than the index in real life; just written ones are read twice.
    for directory, _, names in os.walk(folder):
        for name in names:
            os.utime(os.path.join(directory, name), (1_600_000_000, 1_600_000_000))


def measure_loop(folder: Path, repeat: int) -> dict[str, float]:
    """The loop, building and opening again by turns, so that other load meets them alike; in CPU seconds too."""
    import pydicom

    from dicomweb_io import DICOMfileClient

    paths = sorted(folder.rglob("*.dcm"))
    figures: dict[str, float] = {}

    def take(name: str, work: Callable[[], Any]) -> None:
        start, cpu = time.perf_counter(), time.process_time()
        work()
        for label, value in ((name, time.perf_counter() - start), (f"{name}, CPU", time.process_time() - cpu)):
            figures[label] = min(value, figures.get(label, value))

    def loop() -> None:
        for path in paths:
            pydicom.dcmread(path, stop_before_pixels=True)

    with tempfile.TemporaryDirectory() as place:

        def index() -> None:
            with DICOMfileClient(folder, index=place) as client:
                client.refresh()

        loop()
        for _ in range(repeat):
            shutil.rmtree(place)
            take("dcmread loop", loop)
            take("build", index)
            take("open again", index)
        figures["index MB"] = sum(path.stat().st_size for path in Path(place).iterdir()) / 1e6
    return {"files": len(paths), **figures}


def measure_ours(folder: Path, repeat: int) -> dict[str, float]:
    from dicomweb_io import DICOMfileClient

    with tempfile.TemporaryDirectory() as place:
        figures: dict[str, float] = {}
        with DICOMfileClient(folder, index=place) as client:
            client.refresh()
            study = client.search_for_studies()[0]["0020000D"]["Value"][0]
            searches: dict[str, Callable[[], Any]] = {
                "all studies": client.search_for_studies,
                "all series": client.search_for_series,
                "all instances": client.search_for_instances,
                "instances of a study": lambda: client.search_for_instances(study),
                "10 instances": lambda: client.search_for_instances(limit=10),
                "instances by PatientID": lambda: client.search_for_instances(search_filters={"PatientID": "1CT*"}),
                "instances by SliceThickness": lambda: client.search_for_instances(
                    search_filters={"SliceThickness": "5"}
                ),
            }

            def forget() -> None:
                # What a search found is remembered for its next page; a benchmark asks for the first answer.
                if client._searcher is not None:
                    client._searcher._cached.clear()

            for name, search in searches.items():
                figures[name] = best(search, repeat, forget)
            figures["all instances, CPU"] = best(
                client.search_for_instances,
                repeat,
                forget,
                time.process_time,
            )
            series = client.search_for_series(study, limit=1)[0]["0020000E"]["Value"][0]
            figures["retrieve a series"] = best(lambda: client.retrieve_series(study, series), repeat)
            figures["metadata of a series"] = best(lambda: client.retrieve_series_metadata(study, series), repeat)
    return figures


def measure_json(folder: Path, repeat: int) -> dict[str, float]:
    import pydicom

    from dicomweb_io.dicom.json_encode import encode

    content = next(folder.rglob("*.dcm")).read_bytes()
    times: dict[str, list[float]] = {"ours": [], "pydicom": []}
    for _ in range(repeat * 20):
        start = time.process_time()
        encode(content, bulk_data=lambda place: "uri")
        times["ours"].append(time.process_time() - start)
        # Elements are decoded when they are first used: each turn needs a dataset of its own, not counted.
        dataset = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
        start = time.process_time()
        dataset.to_json_dict()
        times["pydicom"].append(time.process_time() - start)
    return {name: sorted(values)[len(values) // 2] for name, values in times.items()}


def measure_peer(folder: Path, repeat: int) -> dict[str, float]:
    try:
        from dicomweb_client.api import DICOMfileClient
    except ImportError:
        return {}
    with tempfile.TemporaryDirectory() as place:

        def clear() -> None:
            shutil.rmtree(place)
            os.mkdir(place)

        def build() -> None:
            DICOMfileClient(folder.as_uri(), update_db=True, db_dir=place)

        figures = {"build": best(build, repeat, clear), "open again": best(build, repeat)}
        client = DICOMfileClient(folder.as_uri(), db_dir=place)
        study = client.search_for_studies()[0]["0020000D"]["Value"][0]
        figures["all studies"] = best(client.search_for_studies, repeat)
        figures["all series"] = best(client.search_for_series, repeat)
        figures["all instances"] = best(client.search_for_instances, repeat)
        figures["instances of a study"] = best(lambda: client.search_for_instances(study), repeat)
        figures["10 instances"] = best(lambda: client.search_for_instances(limit=10), repeat)
        series = client.search_for_series(study)[0]["0020000E"]["Value"][0]
        figures["retrieve a series"] = best(lambda: client.retrieve_series(study, series), repeat)
        figures["metadata of a series"] = best(lambda: client.retrieve_series_metadata(study, series), repeat)
    return figures


def measure_large(folder: Path, repeat: int) -> dict[str, float]:
    from dicomweb_io import DICOMfileClient, Resource
    from dicomweb_io.testing.samples import synthetic_instance

    path = synthetic_instance(1_000_000_000, folder / "large.dcm")
    with DICOMfileClient(folder, in_memory=True) as client:
        row = client.search_for_instances()[0]
        reference = Resource.of(row)
        frames = row["00280008"]["Value"][0]
        wanted = Resource(
            reference.study_instance_uid, reference.series_instance_uid, reference.sop_instance_uid, (frames,)
        )
        before = read_bytes()
        (frame,) = client.iter_frames(wanted)
        figures = {"frame bytes": len(frame.content or b""), "read bytes": read_bytes() - before}
        figures["one frame of 1 GB"] = best(lambda: list(client.iter_frames(wanted)), repeat)
    path.unlink()
    return figures


def read_bytes() -> int:
    """Bytes this process has read by system calls so far (Linux)."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise RuntimeError("no rchar in /proc/self/io")


def write_share(folder: Path, turn: int, writers: int, instances: int) -> dict[str, float]:
    from collections import Counter

    from dicomweb_io import DICOMfileClient
    from dicomweb_io.testing.samples import clone, sample_file

    content = sample_file("CT_small.dcm").read_bytes()
    share = instances // writers

    def items() -> Any:
        # A third of each share is the neighbour's too.
        for number in range(share + share // 3):
            uid = f"1.2.3.{(turn * share + number) % instances}"
            yield clone(content, 0, series_instance_uid="1.2.3", sop_instance_uid=uid)

    outcomes = Counter(
        getattr(outcome, "outcome", "failed") for outcome in DICOMfileClient(folder).iter_store_instances(items())
    )
    return dict(outcomes)


def measure_writers(folder: Path, writers: int, instances: int) -> dict[str, float]:
    from dicomweb_io import DICOMfileClient

    target = folder / "written"
    start = time.perf_counter()
    running = [
        subprocess.Popen(
            [sys.executable, __file__, "--share", str(target), str(turn), str(writers), str(instances)],
            stdout=subprocess.PIPE,
        )
        for turn in range(writers)
    ]
    answers = [json.loads(process.communicate()[0]) for process in running]
    elapsed = time.perf_counter() - start
    figures: dict[str, float] = {"seconds": elapsed}
    for name in ("stored", "exists", "failed"):
        figures[name] = sum(answer.get(name, 0) for answer in answers)
    with DICOMfileClient(target, in_memory=True) as client:
        figures["found afterwards"] = len(client.search_for_instances())
        figures["excluded afterwards"] = len(list(client.iter_exclusions()))
    shutil.rmtree(target)
    return figures


def in_fresh_process(what: str, folder: Path, repeat: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--measure", what, str(folder), str(repeat)], check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=2000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--small-files", action="store_true", help="make images of 16 by 16 pixels")
    parser.add_argument("--no-peer", action="store_true", help="leave out dicomweb-client, which takes long")
    parser.add_argument("--large-frames", action="store_true", help="make and read a file of 1 GB")
    parser.add_argument("--writers", type=int, default=0, help="processes that store into one folder")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--share", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, folder, repeat = arguments.measure
        print(json.dumps(globals()[f"measure_{what}"](Path(folder), int(repeat))))
        return
    if arguments.share:
        folder, turn, writers, instances = arguments.share
        print(json.dumps(write_share(Path(folder), int(turn), int(writers), int(instances))))
        return
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "archive"
        make_archive(archive, arguments.instances, arguments.small_files)
        loop = in_fresh_process("loop", archive, arguments.repeat)
        ours = in_fresh_process("ours", archive, arguments.repeat)
        peer = {} if arguments.no_peer else in_fresh_process("peer", archive, arguments.repeat)
        print(f"{loop['files']:.0f} files; times in ms, best of {arguments.repeat}")
        ours = {**{name: value for name, value in loop.items() if name != "files"}, **ours}
        print(f"{'':30}{'ours':>10}{'peer':>10}")
        for name, value in ours.items():
            scale = 1 if name.endswith("MB") else 1000
            other = f"{peer[name] * scale:10.1f}" if name in peer else f"{'-':>10}"
            print(f"{name:30}{value * scale:10.1f}{other}")
        for unit in ("", ", CPU"):
            build = ours[f"build{unit}"]
            print(f"build / dcmread loop{unit}: {build / ours[f'dcmread loop{unit}']:.2f} (target 0.50)")
            print(f"open again / build{unit}: {ours[f'open again{unit}'] / build:.3f} (target 0.050)")
        print(
            f"all instances: {ours['all instances'] * 1000:.1f} ms, CPU {ours['all instances, CPU'] * 1000:.1f} ms "
            "(target 60 for 2,000)"
        )
        figures = in_fresh_process("json", archive, arguments.repeat)
        print(
            f"DICOM JSON: {figures['ours'] * 1000:.2f} ms CPU, pydicom {figures['pydicom'] * 1000:.2f} ms: "
            f"{figures['pydicom'] / figures['ours']:.1f} times faster (target 3; medians)"
        )
        if arguments.large_frames:
            large = Path(directory) / "large"
            large.mkdir()
            figures = in_fresh_process("large", large, arguments.repeat)
            print(
                f"one frame of 1 GB: {figures['one frame of 1 GB'] * 1000:.2f} ms; {figures['read bytes']:.0f} bytes "
                f"read for a frame of {figures['frame bytes']:.0f}"
            )
        if arguments.writers:
            figures = measure_writers(Path(directory), arguments.writers, 4000)
            print(f"{arguments.writers} writers:", ", ".join(f"{name} {value:g}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
