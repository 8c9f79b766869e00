"""Watches, as the command and as the job: what is new is copied in rounds, and the place survives whatever happens."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from dicomweb_io import watch
from dicomweb_io.changes import PlaceFile
from dicomweb_io.cli import main as command
from dicomweb_io.elements import Instance
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import make_study
from dicomweb_io.watch import ATTEMPTS
from pipelines.watch import main

_counter = itertools.count()


def fresh(directory, instances=4):
    number = next(_counter)
    return make_study(directory / f"batch-{number}", instances=instances, size=200, seed=("watch", number))


def bytes_of(directory):
    return sorted(path.read_bytes() for path in Path(directory).rglob("*.dcm"))


@pytest.fixture
def source(tmp_path):
    directory = tmp_path / "source"
    directory.mkdir()
    return directory


@pytest.fixture(params=["command", "job"])
def job(request, tmp_path, folder, capsys):
    """Runs the command line of either driver; gives the exit code, the summary and what was printed."""

    def start(source, *arguments, destination=folder, polls=1):
        summary = tmp_path / "summary.json"
        usual = {"--cursor": str(tmp_path / "cursor.json"), "--interval": "0.02", "--summary": str(summary)}
        if "--once" not in arguments:
            usual["--max-polls"] = str(polls)
        words = [word for name, value in usual.items() if name not in arguments for word in (name, value)]
        words += map(str, arguments)
        if request.param == "job":
            code = main(
                ["--source", str(source), *(["--destination", str(destination)] if destination else []), *words]
            )
        else:
            code = command(["watch", str(source), *([str(destination)] if destination else []), *words])
        printed = capsys.readouterr()
        numbers = json.loads(summary.read_text()) if summary.exists() else {}
        return code, numbers, printed.out + printed.err

    return start


def test_it_goes_on_where_it_ended(job, source, folder, tmp_path):
    fresh(source)
    code, numbers, _ = job(source)
    assert (code, numbers["found"]) == (0, 0), "what was there before 'now' was copied"
    new = fresh(source)
    code, numbers, printed = job(source)
    assert (code, numbers["found"], numbers["transferred"]) == (0, 4, 4)
    assert bytes_of(folder) == sorted(path.read_bytes() for path in new)
    assert "4 transferred" in printed
    code, numbers, _ = job(source, polls=3)
    assert (code, numbers["polls"], numbers["rounds"]) == (0, 3, 0)
    cursor = tmp_path / "cursor.json"
    assert cursor.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob(".cursor*.part")), "a temporary file was left"


def test_everything_and_filters(job, serve, source, folder):
    fresh(source)
    code, numbers, _ = job(serve(source).url, "--start", "all", "--filter", "Modality=CT", "--method", "list")
    assert (code, numbers["transferred"]) == (0, 4)
    assert bytes_of(folder) == bytes_of(source)


def test_rounds_are_bounded(job, source, folder, monkeypatch):
    monkeypatch.setattr(watch, "ROUND", 3)
    fresh(source, instances=7)
    code, numbers, _ = job(source, "--start", "all")
    assert (code, numbers["polls"], numbers["rounds"], numbers["transferred"]) == (0, 1, 3, 7)
    assert bytes_of(folder) == bytes_of(source)


def test_orthanc_is_followed(job, orthanc, source, folder):
    code, numbers, _ = job(orthanc.url)
    assert (code, numbers["found"]) == (0, 0)
    client = Endpoint(orthanc.url).connect()
    client.store_instances([str(path) for path in fresh(source)])
    client.close()
    code, numbers, _ = job(orthanc.url, polls=2)
    assert (code, numbers["transferred"]) == (0, 4)
    assert bytes_of(folder) == bytes_of(source)


def test_what_fails_is_tried_again_and_arrives(job, serve, source, folder):
    """The destination refuses the first round for good; the next one succeeds."""
    fresh(source)
    destination = serve(folder, faults=[fault("status", path="studies", method="POST", times=2, status=507)])
    code, numbers, printed = job(source, "--start", "all", destination=destination.url, polls=4)
    assert (code, numbers["transferred"], numbers["pending"], numbers["given_up"]) == (0, 4, 0, 0), printed
    assert numbers["failed"] > 0
    assert bytes_of(folder) == bytes_of(source)


def test_what_fails_always_is_given_up_and_told(job, serve, source, folder, tmp_path):
    paths = fresh(source, instances=2)
    broken = serve(folder, faults=[fault("status", path="studies", method="POST", times=None, status=400)])
    failures = tmp_path / "failures.jsonl"
    options = ("--start", "all", "--failures", str(failures))
    code, numbers, _ = job(source, *options, destination=broken.url, polls=ATTEMPTS - 2)
    assert (code, numbers["pending"], numbers["given_up"]) == (1, 2, 0)
    # A later run goes on counting.
    code, numbers, _ = job(source, *options, destination=broken.url, polls=3)
    assert (code, numbers["pending"], numbers["given_up"]) == (1, 0, 2)
    assert failures.stat().st_mode & 0o777 == 0o600
    told = [json.loads(line)["reference"]["sop_instance_uid"] for line in failures.read_text().splitlines()]
    assert sorted(told) == sorted(str(Instance.from_path(path).reference.sop_instance_uid) for path in paths)
    assert job(source, *options, destination=broken.url)[0] == 0


def test_a_conflicting_file_of_a_folder_is_named_once_and_ends_no_round(job, source, folder, tmp_path):
    first = min(fresh(source))
    other = source / "zz.dcm"
    dataset = pydicom.dcmread(first)
    dataset.PatientName = "Another^Name"
    dataset.save_as(other)
    code, summary, _ = job(source, "--start", "all", "--failures", str(tmp_path / "failures"), polls=2)
    assert (code, summary["given_up"], summary["failed_polls"]) == (1, 1, 0)
    (line,) = (tmp_path / "failures").read_text().splitlines()
    assert json.loads(line)["source"] == str(other)


def test_a_source_that_cannot_be_asked_loses_nothing(job, serve, source, folder):
    fresh(source)
    faults = [fault("status", path="instances", first=1, times=1, status=403)]
    server = serve(source, faults=faults)
    options = ("--start", "all", "--method", "list")
    code, numbers, printed = job(server.url, *options)
    assert (code, numbers["failed_polls"]) == (1, 1)
    assert "403" in printed
    code, numbers, _ = job(server.url, *options)
    assert (code, numbers["transferred"]) == (0, 4)
    assert bytes_of(folder) == bytes_of(source)


def test_a_round_that_is_cut_short_is_repeated(job, source, folder, monkeypatch):
    """The process dies after the copies and before the cursor is written."""
    fresh(source)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PlaceFile, "write", die)
        code, _, printed = job(source, "--start", "all")
    assert (code, "interrupted" in printed, "Traceback" in printed) == (130, True, False)
    assert bytes_of(folder) == bytes_of(source)
    code, numbers, _ = job(source, "--start", "all")
    assert (code, numbers["already_there"], numbers["transferred"]) == (0, 4, 0)


@pytest.mark.parametrize(
    ("number", "code", "words"), [(signal.SIGTERM, 0, "4 transferred"), (signal.SIGINT, 130, "interrupted")]
)
@pytest.mark.parametrize("module", ["dicomweb_io", "pipelines.watch"])
def test_a_signal_ends_it_in_order(source, folder, tmp_path, module, number, code, words):
    fresh(source)
    cursor = tmp_path / "cursor.json"
    archives = [str(source), str(folder)] if module == "dicomweb_io" else ["--source", source, "--destination", folder]
    line = [sys.executable, "-m", module, *(["watch"] if module == "dicomweb_io" else []), *map(str, archives)]
    line += ["--cursor", str(cursor), "--interval", "3600", "--start", "all"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stderr is not None
        for told in process.stderr:
            if "4 transferred" in told:
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    assert words in (out + err if code else out).replace('"transferred": 4', "4 transferred")
    assert "Traceback" not in err
    assert bytes_of(folder) == bytes_of(source)
    assert json.loads(cursor.read_text())["watched"]["source"] == str(source)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--interval", "0"], "--interval must be"),
        (["--max-polls", "0"], "--max-polls must be"),
        (["--start", "tomorrow"], "--start 'tomorrow'"),
        (["--filter", "Modality"], "expected KEY=VALUE"),
        (["--filter", "Modalit=CT"], "Modalit"),
        (["--failures", "/no/such/folder/f"], "there is no folder"),
        (["--cursor", "gs://bucket/cursor"], "give a path on this machine"),
        (["--method", "orthanc"], "is a folder"),
        (["--table", "x.xlsx"], "x.xlsx: the name of a table ends in .parquet"),
        (["--for", "tomorrow"], "--for 'tomorrow': expected a time"),
        (["--complete-after", "0"], "--complete-after '0': expected a time"),
    ],
)
def test_wrong_command_lines(job, source, arguments, message):
    code, _, printed = job(source, *arguments)
    assert code == 2
    assert message in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runner", "DataflowRunner"], "in rounds on this machine"),
        (["--nonsense"], "unknown arguments"),
        ([], "--cursor is required"),
    ],
)
def test_wrong_command_lines_of_the_job(source, folder, capsys, arguments, message):
    assert main(["--source", str(source), "--destination", str(folder), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("other", [["--filter", "Modality=CT"], ["--complete-after", "1s"]])
def test_a_cursor_of_something_else_is_refused(job, source, tmp_path, other):
    assert job(source)[0] == 0
    code, _, printed = job(source, *other)
    assert (code, "belongs to" in printed) == (2, True)
    code, _, printed = job(source, destination=tmp_path / "elsewhere")
    assert (code, "with other destination; use another file" in printed) == (2, True)
    (tmp_path / "cursor.json").write_text("{")
    code, _, printed = job(source)
    assert (code, "not a cursor file" in printed) == (2, True)


def test_two_watches_do_not_share_a_cursor(job, source, tmp_path):
    with PlaceFile(str(tmp_path / "cursor.json"), {}).locked():
        code, _, printed = job(source)
    assert (code, "another watch that is running uses this file" in printed) == (2, True)


@pytest.mark.parametrize("filters", [(), ("--filter", "Modality=CT")])
def test_a_nightly_refresh_begins_with_all_and_neither_misses_nor_doubles(job, serve, source, folder, filters):
    """Not even what arrives with an old study date at a server without a feed."""
    paths = fresh(source)
    late = paths[0].rename(source.parent / "late")
    server = serve(source)
    assert job(server.url, "--once", *filters)[1]["transferred"] == 3
    assert job(server.url, "--once", *filters)[1]["found"] == 0
    late.rename(paths[0])
    fresh(source)
    server.refresh()
    code, numbers, _ = job(server.url, "--once", *filters)
    assert (code, numbers["polls"], numbers["transferred"]) == (0, 1, 5)
    assert bytes_of(folder) == bytes_of(source)
    assert job(server.url, "--once", *filters)[1]["found"] == 0


def test_now_says_what_it_does(job, source, tmp_path):
    fresh(source)
    _, _, printed = job(source)
    assert f"what is there now is noted in {tmp_path / 'cursor.json'}" in printed


def test_studies_are_copied_when_nothing_of_them_arrives_any_more(job, source, folder, monkeypatch):
    """A clock that was set back between two runs delays that, and never shortens it."""
    clock = [10_000.0]
    monkeypatch.setattr(watch._Watch, "_now", lambda self: clock[0])
    early = fresh(source)[0]
    late = early.rename(source.parent / "late")
    moments = ((10_000, False, 0), (10_599, True, 0), (500, False, 0), (1_100, False, 4))
    for moment, arrives, copied in moments:
        clock[0] = moment
        if arrives:
            late.rename(early)
        code, numbers, printed = job(source, "--start", "all", "--complete-after", "10m", "--once")
        assert (code, numbers["transferred"], numbers["open"]) == (0, copied, not copied), printed
    assert bytes_of(folder) == bytes_of(source)


def test_a_destination_that_is_away_gives_nothing_up(job, serve, source, folder, monkeypatch):
    """Not even after more rounds than an instance has attempts."""
    fresh(source)
    server = serve(folder)
    url = server.url
    server.stop()
    monkeypatch.setattr(watch, "ATTEMPTS", 1)
    options = ("--start", "all", "--destination-deadline", "0.1")
    code, numbers, printed = job(source, *options, destination=url, polls=2)
    assert (code, numbers["pending"], numbers["given_up"], numbers["transferred"]) == (1, 4, 0, 0), printed


def test_a_source_that_is_away_is_waited_for(job, serve, source):
    fresh(source)
    faults = [fault("status", path="instances", times=9, status=400)]
    code, numbers, printed = job(serve(source, faults=faults).url, "--start", "all", "--method", "list", polls=6)
    assert (code, numbers["failed_polls"], numbers["transferred"]) == (0, 3, 4), printed
    assert printed.count("HTTP 400") == 1, "equal reasons are said once"
    assert "is followed again; 3 polls failed so far" in printed


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_login_ends_it_at_once(job, serve, source, status):
    server = serve(source, faults=[fault("status", path="instances", times=None, status=status)])
    code, numbers, printed = job(server.url, "--method", "list", polls=1000)
    assert (code, numbers["polls"]) == (1, 1)
    assert str(status) in printed


def rows_of(path):
    with open(path, encoding="utf-8") as file:
        return sorted(line["SOPInstanceUID"] for line in map(json.loads, file))


def uids_of(directory):
    return sorted(str(Instance.from_path(path).reference.sop_instance_uid) for path in Path(directory).rglob("*.dcm"))


@pytest.mark.parametrize("copies", [True, False])
def test_a_table_is_kept_and_neither_misses_nor_doubles(job, serve, source, folder, tmp_path, copies):
    """Also what arrives with an old study date, and a late instance of a study that has rows."""
    table = tmp_path / "table.jsonl"
    options = ("--once", "--table", table, "--level", "instance", "--columns", "StudyInstanceUID,SOPInstanceUID")
    destination = folder if copies else None
    paths = fresh(source)
    late = paths[0].rename(source.parent / "late")
    server = serve(source)
    for arrives, rows in ((None, 3), (None, 0), (late, 4 + 4), (None, 0)):
        if arrives:
            arrives.rename(paths[0])
            fresh(source)
            server.refresh()
        code, numbers, printed = job(server.url, *options, destination=destination)
        assert (code, numbers["rows"]) == (0, rows), printed
        # One line for each night, also for one in which nothing came.
        assert printed.count("watch: poll 1: ") == 1
        assert rows_of(table) == uids_of(source)
        assert not copies or bytes_of(folder) == bytes_of(source)
    assert table.stat().st_mode & 0o777 == 0o600


def test_a_table_is_written_before_its_place(job, source, tmp_path, monkeypatch):
    """A process that dies in between writes the same rows again."""
    table = tmp_path / "table.jsonl"
    options = ("--once", "--table", table, "--level", "instance", "--columns", "StudyInstanceUID,SOPInstanceUID")
    fresh(source)
    job(source, *options, destination=None)
    fresh(source)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PlaceFile, "write", die)
        code, _, printed = job(source, *options, destination=None)
    assert code == 130, printed
    assert rows_of(table) == uids_of(source)
    code, numbers, _ = job(source, *options, destination=None)
    assert (code, numbers["rows"]) == (0, 4)
    assert rows_of(table) == uids_of(source)


def test_a_table_that_lacks_rows_is_as_it_was(job, serve, source, tmp_path):
    table = tmp_path / "table.jsonl"
    options = ("--table", table, "--columns", "StudyInstanceUID,SOPInstanceUID", "--level", "instance")
    fresh(source)
    faults = [fault("status", path="instances", times=1, status=409)]
    server = serve(source, faults=faults)
    code, numbers, printed = job(server.url, *options, destination=None, polls=1)
    assert (code, numbers["failed_polls"], table.exists()) == (1, 1, False)
    code, numbers, printed = job(server.url, *options, destination=None, polls=2)
    assert (code, rows_of(table)) == (0, uids_of(source)), printed


def test_a_watch_needs_something_to_do(job, source):
    code, _, printed = job(source, destination=None)
    assert (code, "or a --table to keep" in printed) == (2, True)


def test_a_report_tells_all_rounds(job, source, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "ROUND", 3)
    fresh(source, instances=7)
    page, document = tmp_path / "report.html", tmp_path / "report.json"
    code, _, _ = job(source, "--once", "--report", page, "--report", document)
    told = json.loads(document.read_text())
    assert (code, told["kind"], told["complete"], told["summary"]["transferred"]) == (0, "watch", True, 7)
    assert [row[2] for row in told["tables"][0]["rows"]] == [3, 3, 1]
    assert sum(item["transferred"] for item in told["timeline"]["slices"]) == 7
    assert sum(item["instances"] for item in told["sizes"]) == 7
    assert "Watch report" in page.read_text()
    assert page.stat().st_mode & 0o777 == 0o600
