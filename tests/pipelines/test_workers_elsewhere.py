"""Jobs on runners whose workers are on other machines: what they refuse, how they end, and what they leave."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import apache_beam as beam
import fsspec
import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.pipeline import PipelineVisitor
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState
from fsspec.implementations.memory import MemoryFileSystem

from dicomweb_io.endpoint import Endpoint
from dicomweb_io.reconcile import ComparisonJob
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transfer import TransferJob
from pipelines import export_metadata, reconcile, transfer, watch
from pipelines._common import check_run, endpoints_from, parse

A, B = "https://a.example/dicom-web", "https://b.example/dicom-web"
# Nothing listens there, and nothing is to be asked.
ELSEWHERE = ["--runner=PortableRunner", "--job_endpoint=127.0.0.1:1", "--environment_type=PROCESS"]
TEMP = "--temp_location=gs://bucket/temp"
COPY = {"--source": A, "--destination": B}


class Elsewhere(PipelineRunner):
    """A runner that no job knows; its workers are here."""

    ends: Any = None

    def run_pipeline(self, pipeline: beam.Pipeline, options: PipelineOptions) -> Any:
        if isinstance(self.ends, Exception):
            raise self.ends
        return FnApiRunner().run_pipeline(pipeline, PipelineOptions([])) if self.ends is None else Ended(self.ends)

    def is_fnapi_compatible(self) -> bool:
        return True


class Ended(PipelineResult):
    """A job that ended."""

    def wait_until_finish(self, duration: int | None = None) -> str:
        return str(self._state)


@pytest.fixture
def archives(tmp_path):
    make_study(tmp_path / "a", instances=3, size=500)
    (tmp_path / "temp").mkdir()
    return ["--source", str(tmp_path / "a"), "--destination", str(tmp_path / "b")]


@pytest.fixture
def elsewhere(tmp_path):
    """Options for a runner whose workers see the same disks."""
    name = f"{__name__}.{Elsewhere.__name__}"
    return ["--runner", name, "--shared-filesystem", "--temp_location", str(tmp_path / "temp")]


@pytest.mark.parametrize(
    ("job", "options", "option"),
    [
        (transfer, COPY | {"--source": "a"}, "--source"),
        (transfer, COPY | {"--destination": "/b"}, "--destination"),
        (transfer, COPY | {"--destination": "file:///b"}, "--destination"),
        (transfer, COPY | {"--destination": "local://b"}, "--destination"),
        (transfer, COPY | {"--source": "zip://::file:///a.zip"}, "--source"),
        (transfer, COPY | {"--destination": "memory://b"}, "--destination"),
        (transfer, COPY | {"--failures": "failures.jsonl"}, "--failures"),
        (transfer, COPY | {"--failures": "file:///failures.jsonl"}, "--failures"),
        (transfer, COPY | {"--input": "long.csv"}, "--input"),
        (transfer, COPY | {"--temp_location": "temp"}, "--temp_location"),
        (transfer, COPY | {"--temp_location": "file:///temp"}, "--temp_location"),
        (reconcile, COPY | {"--destination": "b"}, "--destination"),
        (reconcile, COPY | {"--output": "differences.jsonl"}, "--output"),
        (reconcile, COPY | {"--failures": "local:///failures.jsonl"}, "--failures"),
        (export_metadata, {"--source": "a", "--out": "x.csv"}, "--source"),
        (export_metadata, {"--source": A, "--out": "x.csv", "--failures": "f.jsonl"}, "--failures"),
        (export_metadata, {"--source": A, "--out": "x.csv", "--temp_location": "temp"}, "--temp_location"),
    ],
)
def test_what_workers_elsewhere_do_not_reach_is_refused(job, options, option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "temp"):
        (tmp_path / name).mkdir()
    (tmp_path / "long.csv").write_text("StudyInstanceUID\n" + "1.2.3\n" * 200_000)
    given = [word for pair in ({"--temp_location": "gs://bucket/temp"} | options).items() for word in pair]
    assert job.main([*ELSEWHERE, *given]) == 2
    said = capsys.readouterr().err
    assert f"{option} " in said
    assert "give a URL that they reach (gs://…, s3://…), or --shared-filesystem" in said
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "temp", "long.csv"}


@pytest.mark.parametrize(
    ("job", "options"),
    [(transfer, COPY), (reconcile, COPY), (export_metadata, {"--source": A, "--out": "x.csv"})],
)
def test_workers_elsewhere_need_a_place_for_the_account(job, options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert job.main([*ELSEWHERE, *[word for pair in options.items() for word in pair]]) == 2
    assert "give --temp_location, a URL that they and this machine reach" in capsys.readouterr().err


def test_a_watch_copies_on_this_machine(capsys):
    assert watch.main([*ELSEWHERE, TEMP, "--source", A, "--destination", B, "--cursor", "c"]) == 2
    assert "it copies in rounds on this machine" in capsys.readouterr().err


def test_local_paths_are_absolute_at_once(elsewhere, tmp_path, monkeypatch):
    """Workers elsewhere work in folders of their own; here the words of the user stay."""
    monkeypatch.chdir(tmp_path)
    given = {"--source": "in", "--destination": "local://out", "--failures": "f", "--spool-directory": "spool"}
    given |= {"--summary": "/s.json", "--report": "local://r.html", "--input": "gs://b/list", "--temp_location": "temp"}
    words = [word for pair in given.items() for word in pair]
    args, _ = parse(transfer.TransferOptions, "", "", words)
    assert ([end.url for end in endpoints_from(args)], args.failures) == (["in", "local://out"], "f")
    args, options = parse(transfer.TransferOptions, "", "", [*elsewhere[:-2], *words])
    assert [end.url for end in endpoints_from(args)] == [f"{tmp_path}/in", f"{tmp_path}/out"]
    assert (args.failures, args.spool_directory) == (f"{tmp_path}/f", f"{tmp_path}/spool")
    assert (args.summary, args.report, args.input) == ("/s.json", [f"{tmp_path}/r.html"], "gs://b/list")
    assert options.view_as(GoogleCloudOptions).temp_location == f"{tmp_path}/temp"


@pytest.mark.parametrize("option", ["--source", "--destination", "--failures", "--temp_location"])
@pytest.mark.parametrize("processes", [True, False])
def test_processes_of_workers_share_no_memory(option, processes, elsewhere, archives, tmp_path, capsys):
    """What one of them holds ends with it: the images would be called transferred, and be gone."""
    runner = ["--direct_running_mode=multi_processing"] if processes else elsewhere
    given = dict(zip(archives[::2], archives[1::2], strict=True)) | {option: "memory://lost"}
    assert transfer.main([*runner, *[word for pair in given.items() for word in pair]]) == 2
    assert f"{option} memory://lost: each worker process has a memory of its own" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("option", ["--source", "--destination", "--failures", "--temp_location"])
def test_a_file_url_of_another_host_is_a_wrong_use(option, elsewhere, archives, capsys):
    for runner in ([], elsewhere):
        given = dict(zip(archives[::2], archives[1::2], strict=True)) | {option: "file://host/x"}
        assert transfer.main([*runner, *[word for pair in given.items() for word in pair]]) == 2
        assert "this one names the host 'host'" in capsys.readouterr().err


def test_a_job_server_that_is_not_there_is_told(archives, tmp_path, capsys):
    runner = ["--runner=PortableRunner", "--environment_type=LOOPBACK"]
    assert transfer.main([*archives, *runner]) == 2
    assert "--runner PortableRunner needs its job server: --job_endpoint HOST:PORT" in capsys.readouterr().err
    assert transfer.main([*archives, *runner, "--job_endpoint=127.0.0.1:1", "--job_server_timeout=1"]) == 1
    assert "the job server 127.0.0.1:1 does not answer, so nothing was run" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_server_of_this_machine_is_none_of_the_workers(capsys):
    args, _ = parse(
        transfer.TransferOptions, "", "", [*ELSEWHERE, "--source", "http://localhost:1", "--destination", B]
    )
    endpoints_from(args)
    assert capsys.readouterr().err.startswith("--source http://localhost:1: each worker looks for this server on its")


def test_on_a_shared_filesystem_everything_goes_to_folders(archives, elsewhere, tmp_path, capsys):
    results = ["--failures", f"{tmp_path}/failures.jsonl", "--summary", f"{tmp_path}/summary.json"]
    assert transfer.main([*archives, *elsewhere, *results]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["transferred"] == 3
    assert reconcile.main([*archives, *elsewhere, "--output", f"{tmp_path}/differences.jsonl"]) == 0
    assert export_metadata.main([*archives[:2], *elsewhere, "--out", f"{tmp_path}/table.parquet"]) == 0
    assert list((tmp_path / "temp").iterdir()) == []
    assert len(list((tmp_path / "b").rglob("*.dcm"))) == 3


def test_what_a_runner_repeats_counts_as_already_there(archives, elsewhere, capsys):
    for options, told in (([], False), (elsewhere, True), ([*elsewhere, "--dry-run"], False)):
        assert transfer.main([*archives, *options]) == 0
        assert ("What this job copied counts as already there if" in capsys.readouterr().err) == told


def test_on_a_shared_filesystem_folders_are_looked_at_before(archives, elsewhere, capsys):
    assert transfer.main([*archives[:2], "--destination", f"{archives[1]}/inside", *elsewhere]) == 2
    assert "lies inside the source" in capsys.readouterr().err


@pytest.mark.parametrize("job", [transfer, reconcile, export_metadata])
@pytest.mark.parametrize(
    ("ends", "more", "code", "words"),
    [
        (PipelineState.CANCELLED, [], 1, "the job ended on its runner as CANCELLED; there is no summary"),
        (PipelineState.UNKNOWN, [], 1, "the job ended on its runner as UNKNOWN; there is no summary"),
        (
            RuntimeError("out of slots\nat Java.line(1)"),
            [],
            1,
            "failed on its runner: RuntimeError: out of slots; there",
        ),
        (PipelineState.RUNNING, ["--no_wait_until_finish"], 0, "the job was submitted and goes on"),
        (PipelineState.DONE, ["--output_executable_path=/job.jar"], 0, "the graph was written to /job.jar"),
    ],
)
def test_a_job_without_an_account_ends_well(job, ends, more, code, words, archives, elsewhere, monkeypatch, capsys):
    monkeypatch.setattr(Elsewhere, "ends", ends)
    to = ["--out", f"{archives[3]}.csv"] if job is export_metadata else archives[2:]
    if job is reconcile:
        make_study(archives[3])
    if job is export_metadata and more:
        # Nobody would put its table together.
        code, words = 2, "by the process that starts it, which has to wait for the workers"
    assert job.main([*archives[:2], *to, *elsewhere, *more]) == code
    said = capsys.readouterr().err
    assert words in said
    left = list(Path(elsewhere[-1]).iterdir())
    assert len(left) == (1 if code == 0 and more == ["--no_wait_until_finish"] else 0)


@pytest.mark.parametrize("job", [transfer, reconcile, export_metadata])
def test_ctrl_c_ends_the_job_on_its_runner_too(job, archives, elsewhere, monkeypatch, capsys):
    cancelled = []

    def interrupted(self, duration=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(Elsewhere, "ends", PipelineState.RUNNING)
    monkeypatch.setattr(Ended, "wait_until_finish", interrupted)
    monkeypatch.setattr(Ended, "cancel", lambda self: cancelled.append(self), raising=False)
    to = ["--out", f"{archives[3]}.csv"] if job is export_metadata else archives[2:]
    if job is reconcile:
        make_study(archives[3])
    assert job.main([*archives[:2], *to, *elsewhere]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert len(cancelled) == 1
    assert list(Path(elsewhere[-1]).iterdir()) == []


@pytest.mark.parametrize("job", [transfer, reconcile, export_metadata])
def test_a_job_is_no_stream(job, archives, tmp_path, capsys):
    """Its account would miss what comes after the first checkpoint, and look like a complete one."""
    (tmp_path / "b").mkdir()
    to = ["--out", f"{tmp_path}/x.csv"] if job is export_metadata else archives[2:]
    assert job.main([*archives[:2], *to, "--streaming"]) == 2
    assert "its account is complete in batch mode only" in capsys.readouterr().err


def test_the_dry_run_of_beam_is_not_the_one_of_a_transfer(archives, capsys):
    assert transfer.main([*archives, "--dry_run=True"]) == 2
    assert "--dry-run of transfer writes nothing" in capsys.readouterr().err


class Forbidding(MemoryFileSystem):
    """A filesystem that takes nothing."""

    protocol = "forbidding"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        raise RuntimeError("403, url='https://bucket.example/x?sig=5ecret'\nmore")


@pytest.mark.parametrize("option", ["--failures", "--summary", "--report"])
def test_results_on_other_filesystems_are_checked_before_copying(option, archives, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    fsspec.register_implementation("forbidding", Forbidding, clobber=True)
    for url, words in (
        ("gs://bucket/x.json", "folder is not installed: pip install 'dicomweb_io[gcs]'"),
        ("forbidding://bucket/x.json", "cannot be written: RuntimeError: 403, url='https://bucket.example/x'"),
    ):
        assert transfer.main([*archives, option, url]) == 2
        said = capsys.readouterr().err
        assert f"{option} {url}" in said
        assert words in said
        assert "5ecret" not in said
        assert not (tmp_path / "b").exists()


def test_the_check_leaves_nothing(archives):
    files = fsspec.filesystem("memory")
    args, options = parse(transfer.TransferOptions, "", "", [*archives, "--summary", "memory://checked/x.json"])
    check_run(args, options)
    assert not files.exists("/checked") or files.find("/checked") == []


class SideInputs(PipelineVisitor):
    def __init__(self) -> None:
        self.names: list[str] = []

    def visit_transform(self, node: Any) -> None:
        if node.side_inputs:
            self.names.append(node.full_label)


@pytest.mark.parametrize("wanted", [None, ()])
def test_the_graph_has_no_side_inputs(wanted, tmp_path):
    """On Flink a streaming job with one fails when a checkpoint is taken."""
    found = SideInputs()
    job = TransferJob(Endpoint(str(tmp_path)), Endpoint(B), wanted=wanted, failures=str(tmp_path / "f"))
    pipeline = beam.Pipeline()
    transfer.report(transfer.build(pipeline, job), str(tmp_path / "account"), job.failures)
    pipeline.visit(found)
    pipeline = beam.Pipeline()
    compared = ComparisonJob(job.source, job.destination, wanted=wanted, output=job.failures, failures=job.failures)
    reconcile.build(pipeline, compared, str(tmp_path / "account"))
    pipeline.visit(found)
    assert found.names == []


def test_nothing_is_left_of_a_report_whose_writer_is_killed(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from dicomweb_io.options import write_lines\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_lines(sys.argv[1], ['a'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "report")], check=False)
    assert done.returncode == -9
    assert list(tmp_path.iterdir()) == []
