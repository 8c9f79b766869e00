"""The jobs on every engine: the same exit codes, summaries and files as the commands of the same names."""

from __future__ import annotations

import importlib
import json
import shutil

import pydicom
import pytest

from dicomweb_io.cli import main as command
from dicomweb_io.elements import Instance
from dicomweb_io.table_files import read_table
from dicomweb_io.testing.samples import make_study

TWO, NEW = ["--destination", "two"], ["--destination", "{}/new"]
JOBS = {
    "reconcile": (["compare"], TWO, ["--content", "--output", "{}/found.jsonl"]),
    "reconcile a list": (["compare"], TWO, ["--input", "wanted.csv", "--output", "{}/found.jsonl"]),
    "transfer": (["copy"], NEW, ["--input", "wanted.csv", "--layout", "{{Modality}}/{{SOPInstanceUID}}.dcm"]),
    "transfer nothing": (["copy"], TWO, ["--dry-run"]),
    "export_metadata": (["export", "table"], [], ["--full", "--level", "instance", "--out", "{}/table.parquet"]),
    "watch": (["watch"], NEW, ["--once", "--start", "all", "--cursor", "{}/at", "--table", "{}/table.parquet"]),
}
"""The name of a job (and what it does), its command, its destination, and its options; ``{}`` is a folder to write to.

All paths are relative.
"""
REPORT = ["--report", "{}/report.json"]
SLOW = {"reconcile a list", "transfer nothing", "watch"}
"""What has the same steps as another: with two processes each pipeline takes seconds to start."""

OF_THE_RUN = {"seconds", "requests", "size", "bytes", "bytes_per_second"}
"""Numbers that differ from run to run."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two folders and a list. The second folder lacks a series and an instance, and has one with other contents."""
    monkeypatch.chdir(tmp_path)
    make_study(tmp_path / "one", studies=2, series=2, instances=3, size=200)
    shutil.copytree("one", "two")
    files = sorted((tmp_path / "two").rglob("*.dcm"))
    (tmp_path / "one" / "cut.dcm").write_bytes(files[0].read_bytes()[:200])
    study = Instance.from_path(files[0]).reference.study_instance_uid
    (tmp_path / "wanted.csv").write_text(f"StudyInstanceUID\n{study}\n1.2.3.4\n")
    shutil.rmtree(files[0].parent)
    files[4].unlink()
    dataset = pydicom.dcmread(files[8])
    dataset.PatientComments = "other"
    dataset.save_as(files[8])
    return tmp_path


def without_numbers_of_the_run(value):
    if isinstance(value, dict):
        return {name: without_numbers_of_the_run(item) for name, item in value.items() if name not in OF_THE_RUN}
    return value


def contents(path):
    """What a file says, in an order of its own."""
    if path.suffix == ".parquet":
        return sorted(map(str, read_table(str(path), "parquet")))
    if path.suffix == ".jsonl":
        return sorted(path.read_text().splitlines())
    if path.suffix == ".json":
        report = json.loads(path.read_text())
        return [without_numbers_of_the_run(report[name]) for name in ("kind", "complete", "summary")]
    return path.read_bytes() if path.suffix == ".dcm" else None


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in JOBS])
def test_a_job_gives_what_the_command_gives(engine, place, name, capfd):
    words, to, options = JOBS[name]
    main = importlib.import_module(f"pipelines.{name.split()[0]}").main
    options = [*options, *REPORT * (name.split()[0] in ("reconcile", "transfer")), "--failures", "{}/failed.jsonl"]
    outcomes = []
    for run, begin in ((command, [*words, "one", *to[1:]]), (main, ["--source", "one", *to, *engine])):
        (place / "out").mkdir()
        code = run([text.format("out") if "{" in text else text for text in (*begin, *options)])
        # Nothing but the summary is on standard output.
        summary = without_numbers_of_the_run(json.loads(capfd.readouterr().out))
        files = {str(path.relative_to(place)): contents(path) for path in (place / "out").rglob("*") if path.is_file()}
        outcomes.append((code, summary, files))
        shutil.rmtree(place / "out")
    assert outcomes[0] == outcomes[1]
