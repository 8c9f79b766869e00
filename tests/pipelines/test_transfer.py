"""The main job, end to end, on real images: folders, the test server, and Orthanc."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from dicomweb_io.account import adds_up, make_summary, summary_lines
from dicomweb_io.cli import main as command_line
from dicomweb_io.elements import Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.http.settings import Limits, Timeouts
from dicomweb_io.options import write_lines
from dicomweb_io.queries import make_query
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transfer import TransferJob
from dicomweb_io.transforms.metrics import TALLY
from pipelines.transfer import TransferOptions, main, run
from tests.answering import Reply
from tests.unit.files.making import make_bytes

PARTS = ("transferred", "already_there", "duplicate", "ignored", "failed", "not_tried")


@pytest.fixture
def job(tmp_path, capsys):
    """Runs the job's command line; gives the exit code, the summary and what was printed."""

    def start(source, destination, *arguments):
        summary = tmp_path / "summary.json"
        summary.unlink(missing_ok=True)
        command = ["--source", str(source), "--destination", str(destination), "--summary", str(summary)]
        code = main([*command, *arguments])
        printed = capsys.readouterr()
        numbers = json.loads(summary.read_text()) if summary.exists() else {}
        if numbers:
            assert numbers["found"] == sum(numbers[part] for part in PARTS)
        return code, numbers, printed.out + printed.err

    return start


def bytes_of(directory):
    return sorted(path.read_bytes() for path in Path(directory).rglob("*.dcm"))


def brief(numbers):
    return {part: numbers[part] for part in ("found", *PARTS)}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with 2 series of 20 small instances. Not to be written to."""
    directory = tmp_path_factory.mktemp("small")
    make_study(directory, series=2, instances=20, size=500)
    return directory


# On the sample data -------------------------------------------------------------------------------------------------


def test_real_files_go_from_a_folder_to_a_server_and_to_a_folder(serve, job, sample_folder, tmp_path):
    """Damaged files fail with a reason, what is not DICOM is ignored, twins are duplicates, the rest is identical."""
    server = serve(tmp_path / "archive")
    failures = tmp_path / "failures.jsonl"
    code, there, printed = job(sample_folder, server.url, "--failures", str(failures))
    assert code == 1
    assert there["found"] == 176
    assert there["transferred"] >= 110
    assert there["already_there"] == 0
    assert there["search_failures"] == 0
    assert f"{there['found']} files" in printed
    assert failures.stat().st_mode & 0o777 == 0o600
    records = [json.loads(line) for line in failures.read_text().splitlines()]
    assert there["failed"] == sum(there["reasons"].values()) == len(records) - there["conflicting"]
    assert all(record["message"] and (record.get("source") or record.get("reference")) for record in records)
    assert len(there["duplicates"]) == there["duplicate"]
    for duplicate in there["duplicates"]:
        assert Path(duplicate["chosen"].removeprefix("file://")).exists()
        assert duplicate["reason"].startswith(("identical", "conflicting"))
    assert len(there["ignored_files"]) == there["ignored"]
    assert any("DICOMDIR" in item["path"] for item in there["ignored_files"])

    code, again, printed = job(sample_folder, server.url)
    assert brief(again) == brief(there) | {"transferred": 0, "already_there": there["transferred"]}
    assert again["bytes"] == 0

    code, back, printed = job(server.url, tmp_path / "copy")
    assert code == 0
    assert brief(back) == dict.fromkeys(("found", *PARTS), 0) | {
        "found": there["transferred"],
        "transferred": there["transferred"],
    }
    assert back["bytes"] == there["bytes"]
    assert "Everything is at the destination." in printed
    originals = {path.read_bytes() for path in sample_folder.rglob("*") if path.is_file()}
    copies = bytes_of(tmp_path / "copy")
    assert len(copies) == there["transferred"]
    assert set(copies) <= originals

    code, nothing, printed = job(server.url, tmp_path / "copy")
    assert code == 0
    assert nothing["transferred"] == 0
    assert "Nothing was transferred: everything is already at the destination." in printed


def test_the_command_and_the_job_agree(sample_folder, serve, job, capsys, tmp_path):
    """The same numbers, reasons, exit code and failures, from files that fail in many ways; and as input again."""
    destinations = [serve(tmp_path / name).url for name in ("one", "two")]
    told = [tmp_path / f"{name}.jsonl" for name in ("one", "two")]
    code, by_job, _ = job(sample_folder, destinations[0], "--failures", str(told[0]))
    summary = tmp_path / "command.json"
    arguments = ["copy", str(sample_folder), destinations[1], "--failures", str(told[1]), "--summary", str(summary)]
    assert command_line(arguments) == code == 1
    printed = json.loads(capsys.readouterr().out)
    by_command = json.loads(summary.read_text())
    assert brief(printed) == brief(by_command)
    for numbers in (by_job, by_command):
        for name in ("seconds", "bytes_per_second"):
            del numbers[name]
    assert by_command == by_job
    lines = [sorted(path.read_text().splitlines()) for path in told]
    assert lines[0] == lines[1]
    assert {path.stat().st_mode & 0o777 for path in told} == {0o600}
    for path in told:
        named = [line for line in path.read_text().splitlines() if "reference" in json.loads(line)]
        path.write_text("\n".join(named))
    code, by_job, _ = job(sample_folder, destinations[0], "--input", str(told[0]))
    assert command_line(["copy", str(sample_folder), destinations[1], "--input", str(told[1])]) == code
    assert brief(json.loads(capsys.readouterr().out)) == brief(by_job)


def test_everything_that_orthanc_accepts_comes_back_byte_for_byte(orthanc, job, sample_folder, tmp_path):
    code, there, _ = job(sample_folder, orthanc.url)
    assert code == 1
    assert there["found"] == 176
    assert 110 <= there["transferred"] <= 125
    code, back, _ = job(orthanc.url, tmp_path / "copy")
    assert code == 0
    assert back["found"] == back["transferred"] == there["transferred"]
    originals = {path.read_bytes() for path in sample_folder.rglob("*") if path.is_file()}
    copies = bytes_of(tmp_path / "copy")
    assert len(copies) == there["transferred"]
    assert set(copies) <= originals
    code, again, _ = job(sample_folder, orthanc.url)
    assert brief(again) == brief(there) | {"transferred": 0, "already_there": there["transferred"]}


def test_two_processes_give_the_same_result(job, sample_folder, tmp_path):
    _, one, _ = job(sample_folder, tmp_path / "one")
    _, two, _ = job(sample_folder, tmp_path / "two", "--direct_running_mode=multi_processing", "--direct_num_workers=2")
    assert brief(one) == brief(two)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    names = [
        sorted(str(path.relative_to(tmp_path / n)) for path in (tmp_path / n).rglob("*.dcm")) for n in ("one", "two")
    ]
    assert names[0] == names[1]


# Every pair of endpoints --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source_kind", ["folder", "server"])
@pytest.mark.parametrize("destination_kind", ["folder", "server"])
def test_every_pair_of_endpoints(serve, job, small, folder, source_kind, destination_kind):
    source = serve(small).url if source_kind == "server" else small
    destination = serve(folder).url if destination_kind == "server" else folder
    code, numbers, printed = job(source, destination, "--verify", "content")
    assert code == 0, printed
    assert brief(numbers) == dict.fromkeys(("found", *PARTS), 0) | {"found": 40, "transferred": 40}
    assert bytes_of(folder) == bytes_of(small)
    code, numbers, printed = job(source, destination)
    assert code == 0, printed
    assert (numbers["transferred"], numbers["already_there"]) == (0, 40)
    assert "Nothing was transferred" in printed


def test_the_portable_runner_gives_the_same(job, small, folder):
    portable = ("--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK")
    code, numbers, _ = job(small, folder, *portable)
    assert code == 0
    assert numbers["transferred"] == 40
    assert bytes_of(folder) == bytes_of(small)


def test_the_command_runs_as_a_module(small, folder):
    command = [sys.executable, "-m", "pipelines.transfer", "--source", str(small), "--destination", str(folder)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["transferred"] == 40
    assert "transferred            40" in answer.stderr


# What is copied -----------------------------------------------------------------------------------------------------


def all_references(directory):
    client = Endpoint(str(directory)).connect()
    found = [Resource.of(row) for row in client.iter_search(make_query("instance"))]
    client.close()
    return found


def test_filters_choose(serve, job, small, folder):
    series = all_references(small)[0].series_instance_uid
    code, numbers, _ = job(
        serve(small).url, folder, "--filter", f"SeriesInstanceUID={series}", "--filter", "Modality=CT"
    )
    assert code == 0
    assert numbers["found"] == numbers["transferred"] == 20


@pytest.mark.parametrize("form", ["uids", "csv", "json lines", "uris"])
def test_a_list_chooses(serve, job, small, folder, tmp_path, form):
    references = all_references(small)
    series = references[0].series
    single = next(item for item in references if item.series != series)
    lines = {
        "uids": [series.study_instance_uid],
        "csv": [
            "StudyInstanceUID,SeriesInstanceUID,SOPInstanceUID",
            f"{series.study_instance_uid},{series.series_instance_uid},",
            ",".join(single.uri.split("/")[1::2]),
        ],
        "json lines": [json.dumps(series.to_dict()), json.dumps(single.to_dict())],
        "uris": [series.uri, f"https://pacs.example/rs/{single.uri}", single.uri],
    }[form]
    wanted = tmp_path / "wanted"
    wanted.write_text("\n".join(lines) + "\n")
    code, numbers, _ = job(serve(small).url, folder, "--input", str(wanted))
    assert code == 0
    assert numbers["found"] == numbers["transferred"] == (40 if form == "uids" else 21)


def test_the_failures_of_one_run_are_the_input_of_the_next(serve, job, small, folder, tmp_path):
    """Each series comes without one instance, which is refused once when it is asked for by itself."""
    faults = [
        fault("drop_part", path="/series/[0-9.]+$", times=2),
        fault("status", path="/instances/[0-9.]+$", status=410, times=2),
    ]
    source = serve(small, faults=faults)
    failures = tmp_path / "failures.jsonl"
    code, numbers, printed = job(source.url, folder, "--failures", str(failures))
    assert code == 1
    assert (numbers["transferred"], numbers["failed"]) == (38, 2)
    assert "2 x " in printed
    code, numbers, printed = job(source.url, folder, "--input", str(failures), "--failures", str(failures))
    assert code == 0, printed
    assert brief(numbers) == dict.fromkeys(("found", *PARTS), 0) | {"found": 2, "transferred": 2}
    assert failures.read_text() == ""
    assert bytes_of(folder) == bytes_of(small)


def test_what_the_destination_refuses_is_listed_and_the_rest_arrives(serve, job, small, folder, tmp_path):
    destination = serve(folder, faults=[fault("refuse_instances", method="POST", numbers=(1,), reason=0xA900)])
    failures = tmp_path / "failures.jsonl"
    code, numbers, _ = job(small, destination.url, "--failures", str(failures))
    assert code == 1
    assert (numbers["transferred"], numbers["failed"]) == (39, 1)
    record = json.loads(failures.read_text())
    assert record["reason_code"] == 0xA900
    assert record["transform"] == "CopyInstances"
    code, numbers, _ = job(small, destination.url, "--failures", str(failures))
    assert code == 0
    assert (numbers["transferred"], numbers["already_there"]) == (1, 39)


def test_a_search_that_fails_is_said_and_never_success(serve, job, small, folder):
    source = serve(small, faults=[fault("status", path="/(series|instances)$", times=None, status=403)])
    code, numbers, printed = job(source.url, folder)
    assert code == 1
    assert numbers["search_failures"] == 1
    assert "some instances may not have been found" in printed


def test_a_series_that_cannot_be_listed_is_said_and_the_others_arrive(serve, job, small, folder, tmp_path):
    source = serve(small, faults=[fault("status", path="/instances$", times=1, status=403)])
    failures = tmp_path / "failures.jsonl"
    code, numbers, printed = job(source.url, folder, "--failures", str(failures))
    assert code == 1
    assert (numbers["found"], numbers["transferred"], numbers["search_failures"]) == (20, 20, 1)
    assert "some instances may not have been found" in printed
    code, numbers, printed = job(source.url, folder, "--input", str(failures))
    assert code == 0, printed
    assert (numbers["found"], numbers["transferred"]) == (20, 20)
    assert bytes_of(folder) == bytes_of(small)


@pytest.mark.parametrize("driver", ["job", "command"])
def test_what_is_wanted_whole_is_one_retrieve_and_few_stores(serve, job, small, folder, capsys, driver):
    source, destination = serve(small), serve(folder)
    if driver == "job":
        code, numbers, _ = job(source.url, destination.url)
    else:
        code = command_line(["copy", source.url, destination.url])
        numbers = json.loads(capsys.readouterr().out)
    assert (code, numbers["found"], numbers["transferred"]) == (0, 40, 40)
    retrieves = [record for record in source.records.of("GET") if re.search(r"/series/[0-9.]+$", record.path)]
    assert len(retrieves) == 2
    assert not [record for record in source.records.of("GET") if re.search(r"/instances/[0-9.]+$", record.path)]
    assert len(destination.records.of("POST")) == 2
    looks = [record.path.rpartition("/")[2] for record in destination.records.of("GET")]
    assert sorted(looks) == ["instances", "instances", "studies", "studies"], (
        "one look at the archive, one for the study, and one for each series"
    )
    assert bytes_of(folder) == bytes_of(small)


# Interrupted --------------------------------------------------------------------------------------------------------


def test_killing_orthanc_in_the_middle_loses_nothing_and_doubles_nothing(orthanc, tmp_path):
    """The server dies during the transfer; when it is back, the same job finishes."""
    make_study(tmp_path / "source", studies=2, series=2, instances=50, size=20_000)
    # Few and short retries, or the job would wait for minutes for a server that stays dead.
    quick = RetryPolicy(max_attempts=2, initial_delay=0.01)
    endpoint = Endpoint(orthanc.url, retry=quick, limits=Limits(2), timeouts=Timeouts(outage=0.5))
    whole = TransferJob(Endpoint(str(tmp_path / "source")), endpoint)
    before = TALLY.snapshot().get("stored", 0)
    done = threading.Event()

    def kill_in_the_middle():
        while not done.is_set() and TALLY.snapshot().get("stored", 0) < before + 20:
            done.wait(0.002)
        orthanc.kill()

    killer = threading.Thread(target=kill_in_the_middle)
    killer.start()
    first = run(whole, PipelineOptions(["--runner=FnApiRunner"]))
    done.set()
    killer.join()
    assert adds_up(first)
    left = first["failed"] + first["not_tried"]
    assert 0 < left < 200
    assert first["transferred"] == 200 - left
    orthanc.start()
    second = run(whole, PipelineOptions(["--runner=FnApiRunner"]))
    assert second["failed"] == 0
    assert second["transferred"] + second["already_there"] == 200
    assert second["already_there"] >= first["transferred"], "something that was confirmed is gone"
    back = run(
        TransferJob(Endpoint(orthanc.url), Endpoint(str(tmp_path / "copy"))), PipelineOptions(["--runner=FnApiRunner"])
    )
    assert back["found"] == back["transferred"] == 200
    assert bytes_of(tmp_path / "copy") == bytes_of(tmp_path / "source")


def test_a_server_that_restarts_while_the_job_runs_is_not_noticed(serve, small, folder):
    destination = serve(folder, faults=[fault("down", method="POST", first=3, seconds=0.2)])
    patient = RetryPolicy(max_attempts=8, initial_delay=0.05, max_delay=0.4)
    whole = TransferJob(Endpoint(str(small)), Endpoint(destination.url, retry=patient))
    summary = run(whole, PipelineOptions(["--runner=FnApiRunner"]))
    assert (summary["transferred"], summary["failed"]) == (40, 0)
    assert bytes_of(folder) == bytes_of(small)


def test_five_percent_faults_conserve_every_element(serve, tmp_path, folder):
    make_study(tmp_path / "source", studies=2, series=2, instances=40, size=200)
    faults = [fault("status", times=None, probability=0.05, seed=1, status=503)]
    faults += [fault("drop_part", times=None, probability=0.02, seed=2)]
    source, destination = serve(tmp_path / "source", faults=faults), serve(folder, faults=faults[:1])
    quick = RetryPolicy(max_attempts=6, initial_delay=0.01, max_delay=0.05)
    whole = TransferJob(Endpoint(source.url, retry=quick), Endpoint(destination.url, retry=quick))
    summary = run(whole, PipelineOptions(["--runner=FnApiRunner"]))
    assert summary["found"] == 160
    assert adds_up(summary)
    arrived = bytes_of(folder)
    assert len(arrived) == summary["transferred"]
    assert set(arrived) <= set(bytes_of(tmp_path / "source"))


# The command line ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--source is required"),
        (["--source", "/a"], "--destination is required"),
        (["--source", "/a", "--destination", "/b", "--filter", "Modality"], "expected KEY=VALUE"),
        (["--source", "/a", "--destination", "/b", "--filter", "Modalitty=CT"], "Modalitty"),
        (["--source", "/a", "--destination", "/b", "--on-exsiting", "skip"], "unknown arguments: --on-exsiting"),
        (["--source", "/a", "--destination", "/b", "--source-user", "me"], "--source-password-env"),
        (["--source", "http://a", "--destination", "/b", "--source-token-env", "T", "--source-google"], "one way"),
        (["--source", "/a", "--destination", "/b", "--source-token-env", "T"], "only for servers"),
        (["--source", "/a", "--destination", "/b", "--failures", "/no/such/folder/f"], "there is no folder"),
        (["--source", "/a", "--destination", "/b", "--input", "/no/such/file"], "--input /no/such/file"),
        (["--source", "/a", "--destination", "/b", "--layout", "{PatientNam}"], "did you mean 'PatientName'"),
        (["--source", "/a", "--destination", "/b", "--layout", "../{PatientID}"], "begins with a dot"),
        (["--source", "/a", "--destination", "http://b", "--layout", "{PatientID}"], "layout: only for folders"),
        (
            ["--source", "/a", "--destination", "/b", "--runner=DataflowRunner"],
            "--source /a: the workers of this runner are on other machines",
        ),
    ],
)
def test_a_wrong_command_line_is_explained_and_does_nothing(capsys, arguments, message):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_credentials_are_names_of_variables(monkeypatch, serve, job, small, folder):
    server = serve(small, auth=("me", "secret-word"))
    code, numbers, printed = job(server.url, folder)
    assert (code, numbers["transferred"], numbers["search_failures"]) == (1, 0, 1)
    assert "refuses the login, so nothing was copied" in printed
    monkeypatch.setenv("PACS_PASSWORD", "secret-word")
    code, numbers, printed = job(server.url, folder, "--source-user", "me", "--source-password-env", "PACS_PASSWORD")
    assert code == 0
    assert numbers["transferred"] == 40
    assert "secret-word" not in printed


def test_options_are_beam_options_too(monkeypatch):
    options = PipelineOptions(["--source", "/a", "--filter", "Modality=CT", "--destination", "/b"])
    mine = options.view_as(TransferOptions)
    assert (mine.source, mine.destination, mine.filters) == ("/a", "/b", ["Modality=CT"])


def test_a_bad_header_of_a_list_is_a_wrong_command_line(tmp_path, capsys):
    wanted = tmp_path / "wanted"
    wanted.write_text("Age,Name\n1,2\n")
    assert main(["--source", "/a", "--destination", "/b", "--input", str(wanted)]) == 2
    assert "the header has no column that names an object (known: StudyInstanceUID" in capsys.readouterr().err


def test_numbers_that_do_not_add_up_are_said():
    job = TransferJob(Endpoint("/a"), Endpoint("/b"))
    document = {"counts": {"found": 3, "transferred": 1, "failed": 1}, "left_out": []}
    summary = make_summary(document, 1.0)
    assert not adds_up(summary)
    assert any("DO NOT ADD UP" in line for line in summary_lines(summary, job))


def test_a_failures_file_is_complete_or_absent(tmp_path):
    path = tmp_path / "report"
    path.write_text("old")

    def lines():
        yield "new"
        raise KeyError("in the middle")

    with pytest.raises(KeyError):
        write_lines(str(path), lines())
    assert path.read_text() == "old"
    write_lines(str(path), ["new"])
    assert path.read_text() == "new\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["report"]


# Reports ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "option"),
    # The account that the job itself has to write is as large as its summary.
    [("dicomweb_io", "--failures"), ("dicomweb_io", "--summary"), ("pipelines.transfer", "--failures")],
)
def test_what_a_full_disk_cannot_take_is_printed(driver, option, serve, small, folder, tmp_path):
    """A limit on the size of files stands for the disk; the archives are servers, so that only reports are written."""
    source = serve(small, faults=[fault("status", path="/(series|instances)/[0-9.]+$", status=404, times=100)]).url
    names = ("copy", source) if driver == "dicomweb_io" else ("--source", source, "--destination")
    report = tmp_path / "report"
    size = 4000 if option == "--failures" else 200
    program = (
        f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}));"
        f"sys.argv = {['', *names, serve(folder).url, option, str(report)]!r};"
        f"runpy.run_module({driver!r}, run_name='__main__')"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 1, answer.stderr
    assert f"{option} {report} cannot be written: File too large; its lines follow" in answer.stderr
    if option == "--failures":
        lines = [json.loads(line) for line in answer.stderr.splitlines() if line.startswith('{"transform"')]
        assert len({json.dumps(line["reference"]) for line in lines}) == len(lines) == 40
    else:
        assert '"duplicates": []' in answer.stderr
    assert "40" in answer.stdout
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("driver", ["job", "command"])
def test_a_folder_of_reports_that_goes_away_takes_nothing_with_it(driver, answering, folder, tmp_path, capsys):
    reports = tmp_path / "reports"
    reports.mkdir()

    def refuse(request):
        shutil.rmtree(reports, ignore_errors=True)
        return Reply(404)

    options = ("--failures", str(reports / "failures"), "--summary", str(reports / "summary"))
    source = answering(refuse).url
    if driver == "job":
        code = main(["--source", source, "--destination", str(folder), *options])
    else:
        code = command_line(["copy", source, str(folder), *options])
    printed = capsys.readouterr()
    assert code == 1
    assert '{"transform": "SearchForSeries"' in printed.err
    assert '"search_failures": 1' in printed.err
    assert "found" in printed.out


@pytest.mark.parametrize(("driver", "processes"), [("job", 1), ("job", 2), ("command", 1)])
def test_a_layout_names_the_files_of_a_folder(driver, processes, job, capsys, small, tmp_path):
    """All instances of each series have one number: each has a file, and the second run knows it."""
    workers = ["--direct_num_workers", "2", "--direct_running_mode", "multi_processing"] if processes > 1 else []
    layout = ["--layout", "{Modality}/{PatientID}_{SeriesNumber:02}"]
    found = []
    for _ in range(2):
        code, numbers, _ = run_by(driver, job, capsys, small, tmp_path / "copy", *layout, *workers)
        found.append((code, numbers["transferred"], numbers["already_there"]))
    assert found == [(0, 40, 0), (0, 0, 40)]
    assert bytes_of(tmp_path / "copy") == bytes_of(small)
    assert {len(path.relative_to(tmp_path / "copy").parts) for path in (tmp_path / "copy").rglob("*.dcm")} == {2}


# Conflicts ----------------------------------------------------------------------------------------------------------


def run_by(driver, job, capsys, source, destination, *arguments):
    """The same by the job or the command: exit code, summary, and what was said."""
    if driver == "job":
        return job(source, destination, *arguments)
    code = command_line(["copy", str(source), str(destination), *arguments])
    printed = capsys.readouterr()
    return code, json.loads(printed.out), printed.err


@pytest.mark.parametrize("driver", ["job", "command"])
def test_a_conflicting_file_is_named_and_never_success(driver, job, capsys, folder, tmp_path):
    archive = tmp_path / "archive"
    archive.mkdir()
    chosen = make_bytes(PatientID="P", EncapsulatedDocument=b"x" * 50)
    (archive / "a.dcm").write_bytes(chosen)
    (archive / "b.dcm").write_bytes(chosen)
    (archive / "c.dcm").write_bytes(chosen[:-20])
    # Nothing is lost of identical files, nor of one that is cut off.
    code, numbers, _ = run_by(driver, job, capsys, archive, folder)
    assert (code, numbers["duplicate"], numbers["conflicting"]) == (0, 2, 0)
    # One SOP Instance UID in two series is no conflict.
    (archive / "d.dcm").write_bytes(make_bytes(series="1.2.1.2"))
    code, numbers, _ = run_by(driver, job, capsys, archive, folder)
    assert (code, numbers["transferred"], numbers["conflicting"]) == (0, 1, 0)
    other = archive / "e.dcm"
    other.write_bytes(make_bytes(PatientID="Q", EncapsulatedDocument=b"x" * 50))
    failures = tmp_path / "failures"
    for _ in range(2):
        code, numbers, said = run_by(driver, job, capsys, archive, folder, "--failures", str(failures))
        assert (code, numbers["duplicate"], numbers["conflicting"], numbers["failed"]) == (1, 3, 1, 0)
        assert str(other) in said
        (line,) = failures.read_text().splitlines()
        assert json.loads(line)["source"] == str(other)
        assert "Everything is at the destination" not in said
    # The same with a list, such as the failures of the run before.
    (archive / "f.dcm").write_bytes(make_bytes(series="1.2.1.2", sop="9", EncapsulatedDocument=b"x" * 50)[:-20])
    (tmp_path / "study").write_text("StudyInstanceUID\n1.2.1\n")
    for wanted, failed in ((failures, 0), (tmp_path / "study", 1)):
        code, numbers, said = run_by(driver, job, capsys, archive, folder, "--input", str(wanted))
        assert (code, numbers["duplicate"], numbers["conflicting"], numbers["failed"]) == (1, 1, 1, failed)
        assert numbers["found"] == sum(numbers[part] for part in PARTS)
        assert "Everything is at the destination" not in said
    (tmp_path / "series").write_text("StudyInstanceUID,SeriesInstanceUID\n1.2.1,1.2.1.3\n")
    (archive / "g.dcm").write_bytes(make_bytes(series="1.2.1.3"))
    code, numbers, _ = run_by(driver, job, capsys, archive, folder, "--input", str(tmp_path / "series"))
    assert (code, numbers["transferred"], numbers["conflicting"]) == (0, 1, 0)


# Lists --------------------------------------------------------------------------------------------------------------


STUDIES = {
    # StudyInstanceUID: AccessionNumber, PatientID, IssuerOfPatientID
    "1.2.1": ("A1", "P1", "X"),
    "1.2.2": ("A2", "P1", "X"),
    "1.2.3": ("A3", "P1", "X"),
    "1.2.4": ("A3", "P2", "X"),
    "1.2.5": ("A5", "P5", "X"),
    "1.2.6": ("A5", "P5", "Y"),
    "1.2.7": ("00123", "P7", "X"),
    "1.2.8": ("123", "P8", "X"),
}


@pytest.fixture
def listed(tmp_path):
    """A folder with one instance in each of these studies."""
    (tmp_path / "listed").mkdir()
    for uid, (accession, patient, issuer) in STUDIES.items():
        content = make_bytes(
            uid, f"{uid}.1", f"{uid}.1.1", AccessionNumber=accession, PatientID=patient, IssuerOfPatientID=issuer
        )
        (tmp_path / "listed" / f"{uid}.dcm").write_bytes(content)
    return tmp_path / "listed"


NOTHING = {"lines_unmatched": 1}


@pytest.mark.parametrize(
    ("lines", "options", "studies", "account"),
    [
        ("A1\n00123", (), ["1.2.1", "1.2.7"], {}),
        ("A1\nA1\n1.2.1\nstudies/1.2.1/series/1.2.1.1", (), ["1.2.1"], {"lines_repeated": 1}),
        ("PatientID,IssuerOfPatientID\nP1,X\nP5,Y", (), ["1.2.1", "1.2.2", "1.2.3", "1.2.6"], {}),
        ("A1\nunknown", (), ["1.2.1"], NOTHING),
        ("PatientID\nP1\nP99", (), ["1.2.1", "1.2.2", "1.2.3"], NOTHING),
        ("1.2.1\n1.2.99", (), ["1.2.1"], NOTHING),
        ("studies/1.2.1/series/1.9\n1.2.2", (), ["1.2.2"], NOTHING),
        ("SOPInstanceUID\n1.2.1.1.1\n1.9", (), ["1.2.1"], NOTHING),
        ("AccessionNumber\n*\nA1", (), ["1.2.1"], {"lines_unreadable": 1}),
        ("AccessionNumber\nA?", ("--allow-patterns",), [], {"lines_withheld": 1}),
        ("A?", ("--allow-patterns", "--allow-several-patients"), [uid for uid, _ in list(STUDIES.items())[:6]], {}),
        ("A3\nA1", (), ["1.2.1"], {"lines_withheld": 1}),
        ("A3", ("--allow-several-patients",), ["1.2.3", "1.2.4"], {}),
        ("A5", (), [], {"lines_withheld": 1}),
        ("AccessionNumber;IssuerOfPatientID\nA5;Y", (), ["1.2.6"], {}),
        ("A1\nA2", ("--filter", "AccessionNumber=A2"), ["1.2.2"], NOTHING),
        ("studies/1.2.1/series/1.2.1.1/instances/1.2.1.1.1", ("--filter", "PatientID=P2"), [], NOTHING),
    ],
)
@pytest.mark.parametrize("source", ["folder", "server"])
@pytest.mark.parametrize("driver", ["job", "command"])
def test_each_line_of_a_list_is_accounted_for(
    driver, source, lines, options, studies, account, listed, serve, job, capsys, folder, tmp_path
):
    wanted, failures = tmp_path / "wanted", tmp_path / "failures"
    wanted.write_text(lines + "\n")
    source = listed if source == "folder" else serve(listed).url
    given = (*options, "--input", str(wanted), "--failures", str(failures))
    code, numbers, said = run_by(driver, job, capsys, source, folder, *given)
    parts = {name: number for name, number in numbers.items() if name.startswith("lines_") and number}
    assert parts == account
    account = {name: number for name, number in account.items() if name != "lines_repeated"}
    assert code == (1 if account else 0)
    assert not (account and "everything is" in said.lower())
    assert {item.study_instance_uid for item in all_references(folder)} == set(studies)
    assert numbers["lines"] == len(lines.splitlines()) - lines.startswith(("PatientID", "Accession", "SOPInstance"))
    named = [json.loads(line) for line in failures.read_text().splitlines()]
    assert len(named) == sum(account.values())
    assert all(str(wanted) in entry["source"] for entry in named)
    assert driver == "job" or all(f"{entry['source']}: " in said for entry in named)
