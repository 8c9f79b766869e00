"""The main job on embedded data: ``python -m pipelines.demo``.

It copies the DICOM files inside the pydicom package to a folder, serves an empty archive over HTTP on 127.0.0.1, runs
``python -m pipelines.transfer`` from the folder to the server and from the server to a second folder, and compares the
two folders byte for byte. The sample data hold damaged files, duplicates and files that are not DICOM on purpose: the
summaries show how each is accounted for.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dicomweb_io.account import adds_up, exit_code
from dicomweb_io.elements import Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.queries import make_query
from dicomweb_io.testing.samples import copy_samples
from dicomweb_io.testing.server.server import serve

# The transfers write to the same output from other processes.
say = partial(print, flush=True)


class DemoError(Exception):
    """The demonstration did not end as it must."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demonstration and returns the exit code: 0 if all numbers add up and the files are identical."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.demo", description=__doc__)
    parser.add_argument("--keep", metavar="PATH", help="work in this folder and leave it there")
    args = parser.parse_args(argv)
    if args.keep:
        Path(args.keep).mkdir(parents=True, exist_ok=True)
        return _report(Path(args.keep))
    with tempfile.TemporaryDirectory(prefix="dicomweb_io-demo-") as folder:
        return _report(Path(folder))


def _report(folder: Path) -> int:
    try:
        _demonstrate(folder)
    except DemoError as error:
        print(f"\nThe demonstration failed: {error}", file=sys.stderr)
        return 1
    return 0


def _demonstrate(folder: Path) -> None:
    source, archive, copy = (folder / name for name in ("source", "archive", "copy"))
    count = len(copy_samples(source))
    archive.mkdir(exist_ok=True)
    say(f"Sample data: {count} files of the pydicom package, among them damaged and duplicate ones.\n")
    with serve(archive) as server:
        say(f"1. From the folder to an empty DICOMweb server at {server.url}")
        there = _transfer(str(source), server.url, folder / "there.json")
        say("\n2. The same command again: everything is there already")
        again = _transfer(str(source), server.url, folder / "again.json")
        say("\n3. From the server to a second folder")
        back = _transfer(server.url, str(copy), folder / "back.json")
    _expect(again["transferred"] == 0, "the second run transferred something")
    _expect(again["already_there"] == there["transferred"], "the second run did not find everything")
    _expect(back["failed"] == 0, "something failed on the way back")
    _expect(back["transferred"] == there["transferred"], "not everything came back")
    identical = _compare(source, copy)
    _expect(
        identical == there["transferred"], f"{there['transferred']} were transferred, {identical} came back identical"
    )
    say(f"\nIdentical: all {identical} instances in the second folder equal the files in the first, byte for byte.")


def _transfer(source: str, destination: str, summary: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "pipelines.transfer", "--source", source, "--destination", destination]
    finished = subprocess.run(  # noqa: S603 - our own module with our own arguments
        [*command, "--summary", str(summary)],
        check=False,
        # In a file or pipe the summary stands as text too, and the JSON is left out.
        stdout=None if sys.stdout.isatty() else subprocess.DEVNULL,
        stderr=None if sys.stdout.isatty() else 1,
    )
    _expect(finished.returncode in (0, 1), f"the transfer ended with exit code {finished.returncode}")
    numbers: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    _expect(adds_up(numbers), f"the numbers do not add up: {numbers}")
    _expect((finished.returncode == 0) == (exit_code(numbers) == 0), "the exit code does not agree with the failures")
    return numbers


def _compare(source: Path, copy: Path) -> int:
    """Counts the instances of the second folder that equal their file in the first one."""
    first, second = (Endpoint(str(folder)).connect() for folder in (source, copy))
    identical = 0
    for row in second.iter_search(make_query("instance")):
        reference = Resource.of(row)
        ours, theirs = (next(client.iter_instances(reference)) for client in (first, second))
        _expect(ours.read() == theirs.read(), f"{reference.uri} differs")
        identical += 1
    first.close()
    second.close()
    return identical


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise DemoError(otherwise)


if __name__ == "__main__":
    sys.exit(main())
