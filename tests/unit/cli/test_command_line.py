"""The command line on a folder: grammar, output, exit codes. What needs a server is in tests/servers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file

from dicomweb_io.cli import main
from dicomweb_io.cli.arguments import build_parser
from dicomweb_io.http.auth import BasicCredentials
from dicomweb_io.options import connect, endpoint_from
from dicomweb_io.testing import fault, make_study, serve
from dicomweb_io.web.client import DICOMwebClient
from tests.answering import Reply

CT = Path(str(get_testdata_file("CT_small.dcm")))
DATASET = pydicom.dcmread(CT)
STUDY, SERIES, INSTANCE = map(str, (DATASET.StudyInstanceUID, DATASET.SeriesInstanceUID, DATASET.SOPInstanceUID))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    root.mkdir()
    (root / "ct.dcm").write_bytes(CT.read_bytes())
    return root


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_search_prints_json_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--url", folder, "search", "studies", "--filter", "PatientID=1CT1") == 0
    assert json.loads(capsys.readouterr().out)["0020000D"]["Value"] == [STUDY]


def test_search_forms(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--url", folder, "search", "instances", "--json-lines", "--limit", "1") == 0
    assert json.loads(capsys.readouterr().out)["00080018"]["Value"] == [INSTANCE]
    assert run("--url", folder, "search", "series", "--study", STUDY, "--dicomize") == 0
    assert "(0020,000E) Series Instance UID" in capsys.readouterr().out.replace("(0020,000e)", "(0020,000E)")
    assert run("--url", folder, "search", "studies", "--filter", "PatientID=nobody", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_value_may_hold_an_equals_sign(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--url", folder, "search", "studies", "--filter", "PatientID=a=b=c") == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["search", "studies"], "--url is required"),
        (["--url", "x", "--url=y", "search", "studies"], "--url is given 2 times"),
        (["--url", "x", "search", "studies", "--filter", "PatientID"], "KEY=VALUE"),
        (["--url", "x", "search", "studies", "--filter", "PatientId=1"], "did you mean 'PatientID'"),
        (["--url", "x", "search", "instances", "--limit", "-1"], "limit"),
        (["--url", "https://h/", "--user", "me", "search", "studies"], "password"),
        (["--url", "https://h/", "--token", "t", "--google", "search", "studies"], "one way to authenticate"),
        (["--url", "https://h/", "--ca", "/nowhere.pem", "search", "studies"], "/nowhere.pem"),
        (["--url", "x", "retrieve", "studies", "--study", "1/2", "full"], "valid UID"),
    ],
)
def test_wrong_use_is_explained(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.out == ""


def test_frames_need_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--url", "x", "retrieve", "instances", "--study", "1", "--series", "2", "--instance", "3", "frames")
    assert ended.value.code == 2
    assert "--numbers" in capsys.readouterr().err


def test_full_objects_are_saved_unchanged_under_their_uid(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert run("--url", folder, "retrieve", "studies", "--study", STUDY, "full", "--save", "--output-dir", target) == 0
    assert [path.name for path in target.iterdir()] == [f"{INSTANCE}.dcm"]
    assert (target / f"{INSTANCE}.dcm").read_bytes() == CT.read_bytes()


@pytest.mark.parametrize("form", ["full", "metadata"])
def test_instances_of_two_series_with_one_uid_are_saved_both(form: str, folder: Path, tmp_path: Path) -> None:
    other = pydicom.dcmread(CT)
    other.SeriesInstanceUID = f"{SERIES}.9"
    other.save_as(folder / "other.dcm")
    suffix = {"full": "dcm", "metadata": "json"}[form]
    expected = [f"{INSTANCE}.{suffix}", f"{STUDY}_{SERIES}.9_{INSTANCE}.{suffix}"]
    study = ("--url", folder, "retrieve", "studies", "--study", STUDY, form, "--save", "--output-dir")
    assert run(*study, tmp_path / "out") == 0
    assert run(*study, tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(expected)
    # The same in two runs, whichever comes first.
    for series in (f"{SERIES}.9", SERIES):
        where = ("--url", folder, "retrieve", "series", "--study", STUDY, "--series", series, form)
        assert run(*where, "--save", "--output-dir", tmp_path / "two") == 0
    assert len(list((tmp_path / "two").iterdir())) == 2


@pytest.mark.parametrize("form", [["metadata", "--dicomize"], ["frames", "--numbers", "1"], ["rendered"]])
def test_what_belongs_to_instances_with_one_uid_is_saved_for_both(
    form: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = pydicom.dcmread(CT)
    other.SeriesInstanceUID = f"{SERIES}.9"
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(folder / "other.dcm")
    found = {}
    for series in (SERIES, f"{SERIES}.9") * 2:
        where = ("--url", folder, "retrieve", "instances", "--study", STUDY, "--series", series, "--instance", INSTANCE)
        assert run(*where, *form, "--save", "--output-dir", tmp_path / "one") == 0
        assert run(*where, *form, "--save", "--output-dir", tmp_path / series) == 0
        (alone,) = (tmp_path / series).iterdir()
        found[f"{STUDY}_{series}_" if series != SERIES else ""] = alone
    expected = {prefix + path.name: path.read_bytes() for prefix, path in found.items()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == expected
    assert ("holds something else and stays" in capsys.readouterr().err) == (form[0] != "metadata")


def test_bulk_data_of_two_instances_are_saved_both(folder: Path, tmp_path: Path) -> None:
    other = pydicom.dcmread(CT)
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = f"{INSTANCE}.9"
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(folder / "other.dcm")
    for uid in (INSTANCE, f"{INSTANCE}.9") * 2:
        uri = f"studies/{STUDY}/series/{SERIES}/instances/{uid}/bulkdata/7FE00010"
        where = ("--url", folder, "retrieve", "bulkdata", "--uri", uri)
        assert run(*where, "--save", "--output-dir", tmp_path) == 0
    saved = {path.read_bytes() for path in tmp_path.glob("7FE00010*.dat")}
    assert saved == {DATASET.PixelData, other.PixelData}


def test_bytes_reach_standard_output_only_when_asked(folder: Path) -> None:
    command = [sys.executable, "-m", "dicomweb_io", "--url", str(folder)]
    command += ["retrieve", "studies", "--study", STUDY, "full"]
    described = subprocess.run(command, capture_output=True, check=True)
    assert json.loads(described.stdout)["sop_instance_uid"] == INSTANCE
    assert subprocess.run([*command, "--stdout"], capture_output=True, check=True).stdout == CT.read_bytes()


def test_metadata(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--url", folder, "retrieve", "instances", "--study", STUDY, "--series", SERIES, "--instance", INSTANCE)
    assert run(*where, "metadata") == 0
    assert json.loads(capsys.readouterr().out)[0]["00080060"] == {"vr": "CS", "Value": ["CT"]}
    assert run(*where, "metadata", "--save", "--output-dir", tmp_path) == 0
    assert json.loads((tmp_path / f"{INSTANCE}.json").read_text())["00080018"]["Value"] == [INSTANCE]


def test_frames_are_saved_with_number(folder: Path, tmp_path: Path) -> None:
    where = ("--url", folder, "retrieve", "instances", "--study", STUDY, "--series", SERIES, "--instance", INSTANCE)
    assert run(*where, "frames", "--numbers", "1", "--save", "--output-dir", tmp_path) == 0
    assert (tmp_path / f"{INSTANCE}_1.dat").read_bytes() == DATASET.PixelData


@pytest.mark.parametrize("faults", [[], [fault("status", path="/metadata$", status=404, times=None)]])
def test_a_frame_that_is_cut_is_not_saved(folder: Path, tmp_path: Path, faults) -> None:
    """Its size is known from the metadata, if the server has them."""
    for more, code in (([], 0), ([fault("cut_part", times=None)], 0 if faults else 1)):
        with serve(folder, faults=[*faults, *more]) as server:
            where = ("--url", server.url, "retrieve", "instances", "--study", STUDY, "--series", SERIES)
            where += ("--instance", INSTANCE, "frames", "--numbers", "1", "--save", "--output-dir", tmp_path)
            assert run(*where) == code


def test_an_incomplete_search_prints_what_came_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(folder, faults=[fault("lying_total", times=None, difference=3)]) as server:
        assert run("--url", server.url, "search", "instances", "--json-lines") == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["00080018"]["Value"] == [INSTANCE]
    assert "4 rows in all" in printed.err
    assert "1 rows came" in printed.err


def test_a_search_that_fails_at_once_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "http://127.0.0.1:1/dicomweb", "--deadline", "0.2", "search", "studies"]) == 1
    assert capsys.readouterr().out == ""


def test_what_is_missing_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--url", folder, "retrieve", "studies", "--study", "1.2.3", "metadata") == 1
    assert "1.2.3" in capsys.readouterr().err


def test_store_tells_of_each_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"no DICOM")
    target = tmp_path / "target"
    assert run("--url", target, "store", "instances", CT, broken) == 1
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["outcome"] for result in results] == ["stored", "failed"]
    assert results[1]["source"] == str(broken)
    assert run("--url", target, "store", "instances", "--study", "1.2.3", CT) == 1


def test_copy_twice(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "README").write_text("no DICOM")
    (folder / "twin.dcm").write_bytes(CT.read_bytes())
    (folder / "cut.dcm").write_bytes(CT.read_bytes()[:200])
    failures = tmp_path / "failures.jsonl"
    assert run("copy", folder, tmp_path / "copy", "--failures", failures) == 1
    first = json.loads(capsys.readouterr().out)
    expected = {"found": 4, "transferred": 1, "already_there": 0, "duplicate": 1, "ignored": 1, "failed": 1}
    assert {name: first[name] for name in expected} == expected
    assert first["bytes"] == CT.stat().st_size
    assert json.loads(failures.read_text())["source"].endswith("cut.dcm")
    assert os.stat(failures).st_mode & 0o777 == 0o600
    (folder / "cut.dcm").unlink()
    assert run("copy", folder, tmp_path / "copy") == 0
    second = json.loads(capsys.readouterr().out)
    assert (second["transferred"], second["already_there"], second["failed"]) == (0, 1, 0)


@pytest.mark.parametrize("kind", ["folder", "server"])
def test_copy_into_a_readable_folder(
    kind: str, serve: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder if kind == "folder" else serve(folder).url
    layout = "{PatientID}/{StudyDate:%Y-%m-%d}/{Modality}/{InstanceNumber:04}"
    command = ("copy", source, tmp_path / "copy", "--layout", layout)
    for transferred in (1, 0):
        assert run(*command) == 0
        assert json.loads(capsys.readouterr().out)["transferred"] == transferred
    (path,) = [path for path in (tmp_path / "copy").rglob("*") if path.is_file()]
    assert str(path.relative_to(tmp_path / "copy")) == "1CT1/2004-01-19/CT/0001.dcm"
    assert path.read_bytes() == CT.read_bytes()
    # It is a folder as any other: searched, served, and copied from and to without its layout.
    assert run("--url", serve(tmp_path / "copy").url, "search", "instances") == 0
    assert INSTANCE in capsys.readouterr().out
    assert run("copy", source, tmp_path / "copy") == 0
    assert run("copy", tmp_path / "copy", tmp_path / "uids") == 0
    assert [json.loads(line)["transferred"] for line in capsys.readouterr().out.splitlines()] == [0, 1]


def test_index_and_delete(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("index", folder) == 0
    assert json.loads(capsys.readouterr().out)["instances"] == 1
    assert run("--url", folder, "delete", "study", "--study", STUDY, "--yes") == 0
    assert run("index", folder) == 0
    assert json.loads(capsys.readouterr().out)["instances"] == 0


def test_a_bad_value_does_not_end_what_is_printed_for_people(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with serve(folder, faults=[fault("wrong_vrs", times=None)]) as server:
        where = ("--url", server.url, "retrieve", "instances", "--study", STUDY, "--series", SERIES)
        assert run(*where, "--instance", INSTANCE, "metadata", "--dicomize") == 0
    shown = capsys.readouterr().out
    assert "not a number" in shown
    assert INSTANCE in shown
    assert f"{INSTANCE}: the element 00200011 does not follow" in caplog.text


def test_standard_error_shows_no_values_of_metadata(answering: Any, tmp_path: Path) -> None:
    uids = {"0020000D": "1.2", "0020000E": "1.2.3", "00080018": "1.2.3.4"}
    row: dict[str, Any] = {tag: {"vr": "UI", "Value": [uid]} for tag, uid in uids.items()}
    row |= {"00100030": {"vr": "DA", "Value": ["SECRETS"]}, "00200011": {"vr": "IS", "Value": ["SECRETS"]}}
    server = answering(lambda request: Reply.json([row]))
    command = [sys.executable, "-m", "dicomweb_io", "--url", server.url, "retrieve", "studies", "--study", "1.2"]
    command += ["metadata", "--dicomize"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "SECRETS" in result.stdout
    assert "00200011" in result.stderr
    assert "SECRETS" not in result.stderr


def test_a_closed_pipe_is_no_traceback(folder: Path) -> None:
    code = f"{sys.executable} -m dicomweb_io --url {folder} search instances | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--token", "", "--token is empty"),
        ("--token-env", "", "--token-env is empty"),
        ("--user", "", "--user is empty"),
        ("--timeout", "0", "timeout must be"),
        ("--profile", "nothing", "no profile 'nothing'"),
        ("--chunk-size", "0", "chunk_size must be positive"),
    ],
)
def test_wrong_options_are_wrong_use(option: str, value: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--url", "https://h/", option, value, "search", "studies", "--limit", "0") == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.out == ""


def test_the_chunk_size_reaches_the_client() -> None:
    args = build_parser().parse_args(["--url", "https://h/", "--chunk-size", "4096", "search", "studies"])
    with connect(args, endpoint_from(args)) as client:
        assert isinstance(client, DICOMwebClient)
        assert client._service.chunk_size == 4096


def test_a_missing_package_is_an_error_not_a_crash(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert run("--url", "gs://bucket/folder", "search", "studies") == 1
    assert "pip install 'dicomweb_io[gcs]'" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["--json-lines", "--prettify", "--dicomize"])
def test_names_in_all_alphabets_reach_pipes(form: str, folder: Path) -> None:
    dataset = pydicom.dcmread(CT)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = "Müller^山田"
    dataset.save_as(folder / "ct.dcm")
    command = [sys.executable, "-m", "dicomweb_io", "--url", str(folder), "search", "studies", form]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert (found.returncode, found.stderr) == (0, b"1 study\n")
    assert "Müller^山田" in found.stdout.decode("utf-8")


def test_what_is_saved_for_people_is_text(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    where = ("--url", folder, "retrieve", "studies", "--study", STUDY, "metadata")
    assert run(*where, "--save", "--dicomize", "--output-dir", target) == 0
    assert [path.name for path in target.iterdir()] == [f"{INSTANCE}.txt"]
    assert "Modality" in (target / f"{INSTANCE}.txt").read_text(encoding="utf-8")


def test_a_series_is_searched_without_its_study(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--url", folder, "search", "instances", "--series", SERIES) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert run("--url", folder, "search", "instances", "--series", "1.2.3") == 0
    assert capsys.readouterr().out == ""


def test_a_password_is_asked_for_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return "secret"

    monkeypatch.delenv("DICOMWEB_PASSWORD", raising=False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", answer)
    args = build_parser().parse_args(["--url", "https://h/", "-u", "me", "search", "studies"])
    assert endpoint_from(args).credentials == BasicCredentials("me", "secret")
    assert asked == ["Password of me: "]


def test_copy_takes_no_url(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", str(folder), "copy", str(folder), str(tmp_path / "copy")]) == 2
    assert "no --url" in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("times", [1, None])
def test_what_an_answer_lacks_is_found_by_a_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], times: int | None
) -> None:
    paths = make_study(tmp_path / "archive", instances=3, size=100)
    study = str(pydicom.dcmread(paths[0]).StudyInstanceUID)
    saved = tmp_path / "saved"
    with serve(tmp_path / "archive", faults=[fault("drop_part", times=times)]) as server:
        arguments = ["--url", server.url, "retrieve", "studies", "--study", study, "full", "--save"]
        assert main([*arguments, "--output-dir", str(saved)]) == (0 if times else 1)
    assert len(list(saved.glob("*.dcm"))) == (3 if times else 2)
    assert "was missing from the answer" in capsys.readouterr().err
