"""How a transfer begins: what it would do, what ends it before anything is copied; and how Ctrl-C ends it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dicomweb_io.account import Account, Causes
from dicomweb_io.cli import main as command_line
from dicomweb_io.cli.arguments import build_parser
from dicomweb_io.elements import Failure, Instance, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import make_study
from pipelines.transfer import TransferOptions, main
from tests.unit.files.making import make_bytes

PARTS = ("transferred", "to_transfer", "already_there", "duplicate", "ignored", "failed", "not_tried")


@pytest.fixture(params=["command", "job"])
def transfer(request, capsys):
    """Runs a transfer; gives the exit code, the summary that is printed, and standard error."""

    def start(source, destination, *arguments, login=()):
        """`login` are the options of the source without ``--source``."""
        if request.param == "job":
            own = [name.replace("--", "--source-") for name in login]
            code = main(["--source", str(source), "--destination", str(destination), *own, *arguments])
        else:
            code = command_line([*login, "copy", str(source), str(destination), *arguments])
        printed = capsys.readouterr()
        return code, json.loads(printed.out or "{}"), printed.err

    return start


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with 2 series of 6 small instances. Not to be written to."""
    directory = tmp_path_factory.mktemp("small")
    make_study(directory, series=2, instances=6, size=500)
    return directory


def files_below(directory):
    return sorted(str(path) for path in Path(directory).rglob("*"))


# Dry runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source_kind", ["folder", "server"])
@pytest.mark.parametrize("destination_kind", ["folder", "server"])
def test_a_dry_run_says_what_would_move_and_writes_nothing(
    transfer, serve, small, tmp_path, source_kind, destination_kind
):
    there, size = tmp_path / "there", sum(path.stat().st_size for path in small.rglob("*.dcm"))
    if destination_kind == "server":
        there.mkdir()
    server = serve(there) if destination_kind == "server" else None
    source = serve(small).url if source_kind == "server" else small
    destination = server.url if server else there
    code, plan, said = transfer(source, destination, "--dry-run")
    assert (code, plan["found"], plan["to_transfer"]) == (0, 12, 12), said
    assert (plan["series"], plan["studies"]) == (2, 1)
    assert plan["bytes"] == (size if source_kind == "folder" else 0)
    assert "dry run: nothing was written" in said
    assert "12 instances in 2 series of 1 study" in said
    assert files_below(there) == []
    assert server or not there.exists()
    code, _, _ = transfer(source, destination)
    assert code == 0
    with Endpoint(str(destination)).connect() as client:
        client.delete_resource(Instance.from_path(sorted(there.rglob("*.dcm"))[0]).reference)
    before = files_below(there)
    stores = len(server.records.of("POST")) if server else 0
    code, plan, said = transfer(source, destination, "--dry-run")
    assert (code, plan["to_transfer"], plan["already_there"], plan["series"]) == (0, 1, 11, 1), said
    assert plan["found"] == sum(plan[part] for part in PARTS)
    assert files_below(there) == before
    assert not server or len(server.records.of("POST")) == stores
    code, plan, _ = transfer(source, destination, "--dry-run", "--on-existing", "error")
    assert (code, plan["to_transfer"], plan["failed"]) == (1, 1, 11)
    code, plan, _ = transfer(source, destination, "--dry-run", "--on-existing", "replace")
    assert (code, plan["to_transfer"]) == (0, 12)


def test_a_dry_run_judges_lines_and_files_as_a_run_does(transfer, folder, tmp_path):
    for uid in ("1.2.1", "1.2.2"):
        (folder / f"{uid}.dcm").write_bytes(make_bytes(uid, f"{uid}.1", f"{uid}.1.1", AccessionNumber=f"A{uid[-1]}"))
    (folder / "cut.dcm").write_bytes(make_bytes("1.2.3", "1.2.3.1", "1.2.3.1.1")[:300])
    wanted = tmp_path / "cohort.csv"
    wanted.write_text("AccessionNumber\nA1\nA9\n*\n")
    codes = []
    for options in (("--dry-run",), ()):
        code, numbers, said = transfer(folder, tmp_path / "copy", "--input", str(wanted), *options)
        assert said.count("nothing at the source matches:") == 1
        codes.append((code, numbers["lines"], numbers["lines_unmatched"], numbers["lines_unreadable"]))
        assert f"{wanted}, line 3: nothing at the source matches" in said
        assert f"{wanted}, line 4: the line cannot be read" in said
    assert codes == [(1, 3, 1, 1)] * 2
    assert [transfer(folder, tmp_path / "other", *options)[:1] for options in (("--dry-run",), ())] == [(1,), (1,)]


# Wrong places ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "destination", "why"),
    [
        ("data", "data", "the same"),
        ("data", "data/../link", "the same"),
        ("data", "data/copy", "lies inside the source"),
        ("data/below", "data", "lies inside the destination"),
        ("nowhere", "copy", "there is no folder"),
        ("data/file", "copy", "is a file"),
        ("data", "data/file/copy", "lies inside the source"),
        ("data/below", "data/file/copy", "is a file"),
        ("http://127.0.0.1:9/rs", "http://127.0.0.1:9/rs/", "the same"),
        ("memory://data", "memory://data/copy", "lies inside the source"),
    ],
)
def test_places_that_do_not_go_together_are_a_wrong_use(transfer, tmp_path, source, destination, why):
    (tmp_path / "data" / "below").mkdir(parents=True)
    (tmp_path / "data" / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    before = files_below(tmp_path)
    source, destination = (name if "://" in name else str(tmp_path / name) for name in (source, destination))
    code, summary, said = transfer(source, destination)
    assert (code, summary) == (2, {})
    assert why in said
    assert files_below(tmp_path) == before


def test_a_folder_that_cannot_be_written_to_ends_it_before_anything_is_read(transfer, small, tmp_path, monkeypatch):
    (tmp_path / "shut").mkdir()
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "shut" not in str(path) and may(path, mode))
    for name, why in (("shut", "cannot be written to"), ("shut/new/copy", "cannot be made")):
        code, _, said = transfer(small, tmp_path / name)
        assert code == 2
        assert why in said
    assert files_below(tmp_path) == [str(tmp_path / "shut")]


# Logins ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("role", ["source", "destination"])
@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_refused_login_ends_it_with_one_message(transfer, serve, small, folder, status, role, options):
    server = serve(small if role == "source" else folder, faults=[fault("status", status=status, times=None)])
    ends = (server.url, folder) if role == "source" else (small, server.url)
    code, summary, said = transfer(*ends, *options)
    assert (code, summary) == (1, {})
    assert len(said.splitlines()) == 1
    assert f"the {role} {server.url} refuses the login, so nothing was copied" in said
    assert len(server.records) == 1


def test_a_server_that_is_not_there_ends_it_with_one_message(transfer, small, tmp_path):
    # Files of an earlier run do not pass for those of this one.
    written = [tmp_path / name for name in ("summary.json", "report.json", "failures.jsonl")]
    for path in written:
        path.write_text("of yesterday")
    files = ("--summary", written[0], "--report", written[1], "--failures", written[2])
    code, summary, said = transfer(small, "http://127.0.0.1:9/rs", "--destination-deadline", "3", *map(str, files))
    assert (code, summary) == (1, {})
    assert "the destination http://127.0.0.1:9/rs cannot be asked" in said
    found = [json.loads(path.read_text()) for path in written]
    assert (found[0]["search_failures"], found[0]["transferred"]) == (1, 0)
    assert found[1]["summary"]["search_failures"] == 1
    assert found[2]["transform"] == "SearchForStudies"


@pytest.mark.parametrize(
    ("login", "options"),
    [
        (("--token-env", "NO_SUCH_WORD"), ()),
        (("--user", "me", "--password-env", "NO_SUCH_WORD"), ()),
        (("--token-file", "/NO_SUCH_WORD"), ()),
        ((), ("--destination-token-env", "NO_SUCH_WORD")),
        ((), ("--destination-token-file", "/NO_SUCH_WORD")),
    ],
)
def test_a_missing_secret_ends_it_before_any_request(transfer, serve, folder, tmp_path, login, options):
    servers = serve(folder), serve(tmp_path)
    code, summary, said = transfer(*(server.url for server in servers), *options, login=login)
    assert (code, summary) == (2, {})
    assert len(said.splitlines()) == 1
    assert "NO_SUCH_WORD" in said
    assert not any(server.records for server in servers)


# Ctrl-C ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["source", pytest.param("destination", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "driver", ["dicomweb_io", pytest.param("pipelines.transfer", marks=pytest.mark.slow)], ids=["command", "job"]
)
def test_ctrl_c_ends_it_while_threads_wait_and_the_same_command_goes_on(serve, small, tmp_path, driver, role):
    """One answer never comes; the threads that wait for it do not keep the process."""
    there = tmp_path / "there"
    there.mkdir()
    which = {"path": "/series/[0-9.]+$"} if role == "source" else {"method": "POST"}
    server = serve(
        small if role == "source" else there, faults=[fault("stall", at="header", first=2, times=1, **which)]
    )
    ends = (server.url, str(there)) if role == "source" else (str(small), server.url)
    failures = tmp_path / "failures.jsonl"
    names = ("copy", *ends) if driver == "dicomweb_io" else ("--source", ends[0], "--destination", ends[1])
    command = [sys.executable, "-m", driver, *names, "--failures", str(failures)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while time.monotonic() < until and len(list(there.rglob("*.dcm"))) < 6:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert said.splitlines()[-1].endswith("interrupted; the same command goes on with what is missing")
    assert "Traceback" not in said
    summary = json.loads(out)
    assert summary["interrupted"]
    assert summary["transferred"] + summary["not_tried"] == summary["found"] > 0
    assert [path for path in there.rglob("*") if path.is_file() and path.suffix != ".dcm"] == []
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0, again.stderr
    summary = json.loads(again.stdout)
    assert summary["transferred"] + summary["already_there"] == summary["found"] == 12
    assert summary["already_there"] >= 6
    assert len(list(there.rglob("*.dcm"))) == 12


# Lines of lists -------------------------------------------------------------------------------------------------------


def test_a_failure_names_the_line_and_the_list_of_failures_is_a_list(transfer, serve, folder, tmp_path):
    """What fails later names its line too; what a line asked for is asked for again."""
    source, failures = tmp_path / "source", tmp_path / "failures.jsonl"
    source.mkdir()
    for uid in ("1.2.1", "1.2.2", "1.2.3"):
        content = make_bytes(uid, f"{uid}.1", f"{uid}.1.1", AccessionNumber=f"A{uid[-1]}", PatientID=f"P{uid[-1]}")
        (source / f"{uid}.dcm").write_bytes(content)
    wanted = tmp_path / "cohort.csv"
    wanted.write_text("Study UID;Accession;MRN;Date\n1.2.1;;;x\n;A2;;\n;;P3;\n;A9;;\n;1.2E+05;;\n;;P8;\n")
    to = serve(folder, faults=[fault("refuse_instances", method="POST", numbers=(1,), reason=0xA900, times=3)])
    code, numbers, said = transfer(source, to.url, "--input", str(wanted), "--failures", str(failures))
    assert (code, numbers["lines"], numbers["lines_unmatched"], numbers["lines_unreadable"]) == (1, 6, 2, 1)
    failed = [json.loads(line) for line in failures.read_text().splitlines()]
    assert {line["line"] for line in failed} >= {f"{wanted}, line {number}" for number in (5, 6, 7)}
    assert len(failed) == numbers["failed"] + 3 > 3
    assert all(line.get("line") for line in failed)
    assert all(f"{line['line']}: " in said for line in failed)
    make = {"AccessionNumber": "A9", "PatientID": "P8"}
    for uid, (name, value) in zip(("1.2.8", "1.2.9"), make.items(), strict=True):
        (source / f"{uid}.dcm").write_bytes(make_bytes(uid, f"{uid}.1", f"{uid}.1.1", **{name: value}))
    failures.rename(tmp_path / "again.jsonl")
    code, numbers, said = transfer(source, to.url, "--input", str(tmp_path / "again.jsonl"))
    assert (code, numbers["lines_unmatched"], numbers["lines_unreadable"]) == (1, 0, 1)
    assert f"{wanted}, line 6, where it has to be mended" in said
    assert numbers["transferred"] == len(failed) - 1
    assert len(list(folder.rglob("*.dcm"))) == 5


# What is said ---------------------------------------------------------------------------------------------------------


def test_the_command_and_the_job_have_the_same_options():
    """The command names the archives by place, and has the options of the source without a prefix."""
    copy = next(
        action.choices["copy"]
        for action in build_parser()._actions
        if isinstance(action.choices, dict) and "copy" in action.choices
    )
    command = {name for action in copy._actions for name in action.option_strings}
    parser = argparse.ArgumentParser(add_help=False)
    TransferOptions._add_argparse_args(parser)
    job = {name for action in parser._actions for name in action.option_strings}
    ours = {name for name in command if not name.startswith(("--destination", "-h"))}
    own = {name for name in job if not name.startswith(("--source", "--destination"))}
    general = {"--help", "--jobs", "--url", "--verbosity", "-v", "--chunk-size"}
    general |= {"-u", "-p", "--password", "--token", "--bearer-token"}  # for a person at a terminal
    assert own - ours == set()
    assert {name for name in ours - own - general if f"--source-{name[2:]}" not in job} == set()
    assert {name for name in command if name.startswith("--destination")} | {
        "--destination",
        "--destination-max-in-flight",
    } == {name for name in job if name.startswith("--destination")}


def test_equal_causes_are_told_with_some_of_their_places():
    told = []
    causes, account = Causes("copy", told.append), Account()
    for number in range(64):
        failure = Failure("Copy", f"refused: 1.2.3.{number}", reference=Resource("1.2", "1.3", f"1.2.3.{number}"))
        causes.add(failure)
        account.add(failure)
    causes.add(Failure("MatchLine", "nothing matches", source="list.csv, line 3"))
    causes.finish("failures.jsonl")
    assert told == [
        *(f"copy: studies/1.2/series/1.3/instances/1.2.3.{n}: refused: 1.2.3.{n}" for n in range(3)),
        "copy: list.csv, line 3: nothing matches",
        "copy: 64 x refused: UID (the first 3 are above; failures.jsonl lists all)",
    ]
