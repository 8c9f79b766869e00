"""The job `reconcile`: the same lines, numbers and exit codes as the command."""

from __future__ import annotations

import json
import shutil

import pydicom
import pytest

from dicomweb_io.cli import main as command
from dicomweb_io.testing import fault, make_study
from pipelines.reconcile import main


@pytest.fixture
def archives(tmp_path):
    """Two folders: the second lacks a series, holds a file twice with other contents, and one that cannot be read."""
    make_study(tmp_path / "one", studies=2, series=2, instances=2)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    files = sorted((tmp_path / "two").rglob("*.dcm"))
    shutil.rmtree(files[0].parent)
    dataset = pydicom.dcmread(files[5])
    dataset.PatientComments = "other"
    dataset.save_as(tmp_path / "two" / "z-again.dcm")
    (tmp_path / "two" / "cut.dcm").write_bytes(files[6].read_bytes()[:200])
    return tmp_path / "one", tmp_path / "two"


def summary_of(path):
    return {name: value for name, value in json.loads(path.read_text()).items() if name != "seconds"}


@pytest.mark.parametrize("how", [(), ("--content",), ("--counts",)])
def test_the_job_says_what_the_command_says(archives, tmp_path, how, capsys):
    one, two = archives
    outcomes = []
    for name, run, places in (
        ("command", command, ["compare", one, two]),
        ("job", main, ["--source", one, "--destination", two]),
    ):
        files = {option: tmp_path / f"{name}-{option}" for option in ("output", "failures", "summary")}
        options = [text for option, path in files.items() for text in (f"--{option}", path)]
        code = run([str(item) for item in (*places, *how, *options)])
        differences, failures = (sorted(files[option].read_text().splitlines()) for option in ("output", "failures"))
        outcomes.append((code, differences, failures, summary_of(files["summary"])))
    assert outcomes[0] == outcomes[1]
    code, differences, failures, summary = outcomes[0]
    assert (code, len(differences), len(failures)) == (1, 1, 2)
    assert [summary[name] for name in ("missing", "unreadable", "conflicting")] == [2, 1, 1]
    assert "The archives differ, and not everything could be compared." in capsys.readouterr().err


def test_a_list_and_a_way_back(archives, tmp_path, capsys):
    one, two = archives
    for name in ("z-again.dcm", "cut.dcm"):
        (two / name).unlink()
    studies = sorted({str(pydicom.dcmread(path).StudyInstanceUID) for path in one.rglob("*.dcm")})
    wanted = tmp_path / "wanted.csv"
    wanted.write_text("\n".join(["StudyInstanceUID", *studies, "1.2.3.4"]))
    places = ["--source", str(one), "--destination", str(two)]
    assert main([*places, "--input", str(wanted), "--output", str(tmp_path / "diff.jsonl")]) == 1
    said = capsys.readouterr().err
    assert "Of 3 lines of the list, 1 match nothing." in said
    assert command(["copy", str(one), str(two), "--input", str(tmp_path / "diff.jsonl")]) == 0
    assert main(places) == 0
    assert "Both archives hold the same." in capsys.readouterr().err


def test_a_refused_login_proves_nothing(archives, serve, capsys):
    server = serve(archives[1], faults=[fault("status", status=401, times=None)])
    assert main(["--source", str(archives[0]), "--destination", server.url]) == 1
    said = capsys.readouterr().err
    assert "it is unknown whether the archives differ" in said


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(["--source", "/a"], "--destination is required"), (["--counts", "--content"], "contradict")],
)
def test_wrong_use(arguments, text, tmp_path, capsys):
    given = ["--source", str(tmp_path), "--destination", str(tmp_path)] if "--counts" in arguments else []
    assert main([*arguments, *given]) == 2
    assert text in capsys.readouterr().err
