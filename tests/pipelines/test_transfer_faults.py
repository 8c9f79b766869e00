"""A large transfer through an unreliable server conserves every element."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dicomweb_io.cli import main as command
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import make_study
from pipelines.transfer import main

COUNT = 2000
PARTS = ("transferred", "already_there", "duplicate", "ignored", "failed", "not_tried")


def faults():
    """One request in twenty goes wrong, in one of five ways; a refusal is never repeated by itself."""
    share = 0.05 / 5
    return [
        fault("status", status=503, times=None, probability=share, seed=1),
        fault("missing_closing_boundary", method="GET", times=None, probability=share, seed=2),
        fault("cut_part", method="GET", times=None, probability=share, seed=3),
        fault("refuse_instances", method="POST", times=None, probability=share, seed=4),
        fault("status", status=500, times=None, probability=share, seed=5),
    ]


def transfer(source, destination, tmp_path):
    summary, failures = tmp_path / "summary.json", tmp_path / "failures.jsonl"
    failures.unlink(missing_ok=True)
    command = ["--source", str(source), "--destination", str(destination), "--summary", str(summary)]
    code = main([*command, "--failures", str(failures)])
    numbers = json.loads(summary.read_text())
    told = failures.read_text().splitlines() if failures.exists() else []
    assert numbers["found"] == COUNT == sum(numbers[part] for part in PARTS)
    assert numbers["search_failures"] == 0
    assert len(told) == numbers["failed"]
    assert (code == 0) == (numbers["failed"] == 0)
    return numbers


def bytes_of(directory):
    return sorted(path.read_bytes() for path in Path(directory).rglob("*.dcm"))


@pytest.mark.slow
def test_two_thousand_instances_with_faults_in_one_request_of_twenty(serve, tmp_path):
    make_study(tmp_path / "source", studies=2, series=50, instances=COUNT // 100, size=300)
    originals = bytes_of(tmp_path / "source")
    server = serve(tmp_path / "archive", faults=faults())

    there = transfer(tmp_path / "source", server.url, tmp_path)
    assert len(bytes_of(tmp_path / "archive")) == there["transferred"]
    # What failed is tried again until nothing is missing: a run does only what the runs before left.
    for _ in range(5):
        if not there["failed"]:
            break
        before = there["transferred"] + there["already_there"]
        there = transfer(tmp_path / "source", server.url, tmp_path)
        assert there["already_there"] == before
    assert bytes_of(tmp_path / "archive") == originals

    back = transfer(server.url, tmp_path / "copy", tmp_path)
    assert back["transferred"] + back["failed"] == COUNT
    copies = bytes_of(tmp_path / "copy")
    assert len(copies) == back["transferred"]
    assert set(copies) <= set(originals)
    assert len(server.records) > COUNT / 8


@pytest.mark.parametrize("run", [main, lambda options: command(["copy", *ends(options)])], ids=["job", "command"])
def test_an_instance_that_comes_with_its_series_without_being_listed_is_named(run, serve, tmp_path):
    make_study(tmp_path / "archive", instances=12)
    server = serve(tmp_path / "archive", faults=[fault("shrink_pages", path="/instances$", times=None)])
    failures, copies = tmp_path / "failures.jsonl", tmp_path / "copies"
    options = ["--source", server.url, "--destination", str(copies), "--failures", str(failures)]
    assert run(options) == 1
    (lost,) = [json.loads(line) for line in failures.read_text().splitlines()]
    assert len(list(copies.rglob("*.dcm"))) == 11
    assert run([*options[:4], "--input", str(failures)]) == 0
    assert len(list(copies.rglob("*.dcm"))) == 12
    assert lost["reference"]["sop_instance_uid"] in {path.stem for path in copies.rglob("*.dcm")}


def ends(options):
    """The arguments of the job as those of the command."""
    return [options[1], options[3], *options[4:]]
