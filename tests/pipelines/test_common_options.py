"""What all jobs share on their command lines: the runner, Beam's options, the help text."""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
from typing import get_args

import pytest
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions

from dicomweb_io.changes import ChangeMethod
from dicomweb_io.cli.arguments import all_parsers, build_parser
from dicomweb_io.options import UsageError
from pipelines import export_metadata, reconcile, transfer, watch
from pipelines._common import is_local, parse

BOTH = ["--source", "/a", "--destination", "/b"]


def test_an_option_with_one_value_is_given_once():
    for twice in (["--destination", "/c"], ["--input", "a", "--input=b"]):
        with pytest.raises(UsageError, match=f"{twice[0]} is given 2 times, and only the last would count"):
            parsed(*twice)
    parsed("--filter", "PatientID=1", "--filter", "StudyDate=20260101")


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("job", [transfer, reconcile, export_metadata])
def test_ctrl_c_ends_without_a_traceback(monkeypatch, capsys, tmp_path, job, wrapped):
    """Beam makes a RuntimeError of it in a worker."""

    def run(what, options):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if wrapped:
                raise RuntimeError("KeyboardInterrupt [while running 'Copy']") from None
            raise

    monkeypatch.setattr(job, "run", run)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    to = ["--out", f"{tmp_path}/x.csv"] if job is export_metadata else ["--destination", f"{tmp_path}/b"]
    assert job.main(["--source", f"{tmp_path}/a", *to]) == 130
    assert capsys.readouterr().err.startswith(f"{job.__name__.rpartition('.')[2]}: interrupted")


def parsed(*arguments):
    return parse(transfer.TransferOptions, "transfer", "", [*BOTH, *arguments])


@pytest.mark.parametrize(
    ("arguments", "runner", "local"),
    [
        ([], "FnApiRunner", True),
        (["--runner=fnapirunner"], "FnApiRunner", True),
        (["--runner", "direct"], "DirectRunner", True),
        (["--runner=TestDirectRunner"], "TestDirectRunner", True),
        (["--runner=portable"], "PortableRunner", True),
        (["--runner=portablerunner", "--job_endpoint=host:1"], "PortableRunner", False),
        (["--runner=dataflow"], "DataflowRunner", False),
        (["--runner=Foo", "--runner=prism"], "PrismRunner", True),
        *[
            (["--runner", name], name, local)
            for name, local in (
                ("apache_beam.runners.portability.fn_api_runner.FnApiRunner", True),
                ("apache_beam.runners.portability.flink_runner.FlinkRunner", True),
            )
        ],
        (["--runner=PortableRunner", "--job_endpoint=embed"], "PortableRunner", True),
        (["--runner=PortableRunner", "--job_endpoint=h:1", "--environment_type=LOOPBACK"], "PortableRunner", True),
        (
            ["--runner=PortableRunner", "--job_endpoint=localhost:1", "--environment_type=PROCESS"],
            "PortableRunner",
            False,
        ),
        (["--runner=PortableRunner", "--job_endpoint=h:1", "--environment_type=EXTERNAL"], "PortableRunner", False),
        (["--runner=FlinkRunner", "--flink_master=[local]"], "FlinkRunner", True),
        (["--runner=FlinkRunner", "--flink_master=[auto]", "--environment_type=PROCESS"], "FlinkRunner", False),
        (["--runner=FlinkRunner", "--flink_master=host:8081"], "FlinkRunner", False),
        (["--runner=FlinkRunner", "--flink_master=host:8081", "--environment_type=LOOPBACK"], "FlinkRunner", True),
        (["--runner=SparkRunner"], "SparkRunner", True),
        (["--runner=SparkRunner", "--spark_master_url=local[2]"], "SparkRunner", True),
        (["--runner=SparkRunner", "--spark_master_url=spark://host:7077"], "SparkRunner", False),
        (["--direct_running_mode=multi_processing"], "FnApiRunner", True),
        (["--runner=prism", "--environment_type=DOCKER"], "PrismRunner", False),
        (["--runner=DataflowRunner", "--environment_type=LOOPBACK"], "DataflowRunner", False),
    ],
)
def test_a_runner_is_named_as_beam_allows(arguments, runner, local):
    _, options = parsed(*arguments)
    assert options.view_as(StandardOptions).runner == runner
    assert is_local(options) == local


@pytest.mark.parametrize("main", [transfer.main, watch.main])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Foo", "--runner 'Foo': unknown runner (known: DataflowRunner, "),
        ("", "--runner '': unknown runner (known: "),
        ("FnApiRuner", "FnApiRunner, "),
        ("no.such.Runner", "--runner 'no.such.Runner': No module named 'no'"),
        ("apache_beam.runners.runner.Foo", "has no attribute 'Foo'"),
        ("apache_beam.Pipeline", "is no runner"),
        ("apache_beam.", "has no attribute ''"),
        (".Foo", "--runner '.Foo': "),
    ],
)
def test_an_unknown_runner_is_a_wrong_command_line(main, name, message, capsys):
    assert main([*BOTH, *(["--cursor", "c"] if main is watch.main else []), "--runner", name]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--direct_num_worker=2"], r"unknown arguments: --direct_num_worker \(did you mean --direct_num_workers\?\)$"),
        (["--source-token", "5ecret"], r"unknown arguments: --source-token \(did you mean --source-token-env\?\)$"),
        (["--source-token=5ecret"], r"unknown arguments: --source-token \(did you mean --source-token-env\?\)$"),
        (["--direct_num_workers=2", "/c"], "unknown arguments: /c"),
        (["--dry-rum", "--direct_num_workers", "2"], "unknown arguments: --dry-rum"),
    ],
)
def test_a_local_runner_takes_only_known_options(arguments, message):
    with pytest.raises(UsageError, match=message):
        parsed(*arguments)


def test_the_options_of_another_job_are_unknown():
    with pytest.raises(UsageError, match="unknown arguments: --allow-patterns"):
        parse(watch.WatchOptions, "watch", "", [*BOTH, "--cursor", "c", "--allow-patterns"])


OF_ONE = "--(source|destination|a|b)$|--(source|destination|a|b)-|--jobs$"
COMMANDS = [
    ("copy", transfer.TransferOptions),
    ("watch", watch.WatchOptions),
    ("compare", reconcile.ReconcileOptions),
    ("export table", export_metadata.ExportOptions),
]


@pytest.mark.parametrize(("command", "options"), COMMANDS)
def test_a_command_and_its_job_have_the_same_options(command, options):
    """Beside the names of the archives, how to reach them, and Beam's options."""
    job = argparse.ArgumentParser()
    options._add_argparse_args(job)
    commands = build_parser()
    (own,) = (parser for parser in all_parsers(commands) if parser.get_default("command") == command)
    anywhere = set(commands._option_string_actions)
    told = [
        {name for name in set(parser._option_string_actions) - anywhere if not re.match(OF_ONE, name)}
        for parser in (job, own)
    ]
    assert told[0] == told[1] > {"--filter"}
    if command == "watch":
        assert set(job._option_string_actions["--method"].choices or ()) == set(get_args(ChangeMethod))
    for name in told[0]:
        first, second = (vars(parser._option_string_actions[name]) for parser in (job, own))
        assert {**first, "container": None} == {**second, "container": None}


def test_the_options_of_beam_reach_beam_and_those_of_the_job_stay_away_from_it():
    args, options = parsed("--direct_num_workers", "0", "--filter", "PatientID=1", "--streaming")
    assert args.filters == ["PatientID=1"]
    assert options.view_as(DirectOptions).direct_num_workers == 0
    assert options.view_as(StandardOptions).streaming
    assert "PatientID" not in str(options.get_all_options(retain_unknown_options=True))


def test_a_wrong_value_is_said_in_two_lines(capsys):
    with pytest.raises(SystemExit) as caught:
        parsed("--direct_num_workers=many")
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "usage: transfer [options]",
        "transfer: error: argument --direct_num_workers: invalid int value: 'many'",
    ]


@pytest.mark.parametrize("name", ["transfer", "watch"])
def test_the_help_has_the_job_first_then_beam_in_groups_and_no_warning(name):
    done = subprocess.run(
        [sys.executable, "-m", f"pipelines.{name}", "--help"], check=True, capture_output=True, text=True
    )
    assert done.stderr == ""
    places = [
        done.stdout.index(text)
        for text in ("usage:", "exit code", "\n  --source ", "\nBeam: StandardOptions:", "\n  --runner ")
    ]
    assert places == sorted(places)
    for option in ("--direct_num_workers", "--temp_location", "--prism_location", "--setup_file"):
        assert done.stdout.count(f"\n  {option} ") == 1
    assert done.stdout.count("\n  --source ") == 1
