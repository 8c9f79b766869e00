"""Comparing archives: the engine and the command, on folders and servers, and the way back into a copy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest

from dicomweb_io.cli import main
from dicomweb_io.comparer import Selected, selected_of_row
from dicomweb_io.testing import fault, make_study

PATIENT, STUDY, SERIES, INSTANCE = "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"


def change(path: Path, **values: str) -> pydicom.Dataset:
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    if INSTANCE in values:
        dataset.file_meta.MediaStorageSOPInstanceUID = values[INSTANCE]
    dataset.save_as(path)
    return dataset


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[dict[str, Any]], str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """Two studies of two series of three instances; the paths are those that a copy writes."""
    for path in make_study(tmp_path / "made", studies=2, series=2, instances=3):
        dataset = pydicom.dcmread(path)
        folder = tmp_path / "one" / dataset.StudyInstanceUID / dataset.SeriesInstanceUID
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / f"{dataset.SOPInstanceUID}.dcm")
    return tmp_path / "one"


@pytest.fixture
def two(one: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(one, tmp_path / "two"))


@pytest.fixture(params=["folder", "server"])
def place(request: pytest.FixtureRequest, serve: Callable[..., Any]) -> Callable[[Path], str]:
    """An address of the archive that a folder is: its path, or the URL of a server."""
    return str if request.param == "folder" else lambda path: str(serve(path).url)


@pytest.mark.parametrize("how", [(), ("--counts",), ("--content",), ("--filter", "Modality=*")])
def test_equal_archives(
    place: Callable[[Path], str], one: Path, two: Path, how: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines, said = run(capsys, "compare", place(one), place(two), *how)
    assert (code, lines) == (0, []), said
    assert "Both archives hold the same." in said


def test_what_is_found_and_copied(
    place: Callable[[Path], str], one: Path, two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(one.rglob("*.dcm"))
    datasets = [pydicom.dcmread(path) for path in files]
    shutil.rmtree(two / files[0].relative_to(one).parent)
    (two / files[3].relative_to(one)).unlink()
    changed = change(two / files[6].relative_to(one), PatientComments="other")
    (one / files[11].relative_to(one)).unlink()
    source, destination, diff = place(one), place(two), tmp_path / "diff.jsonl"
    told = tmp_path / "told.json"
    code, lines, said = run(capsys, "compare", source, destination, "--content", "--output", diff, "--report", told)
    (summary,) = lines
    assert json.loads(told.read_text())["verdict"] == "The archives differ."
    assert code == 1, said
    assert summary["compared"] == "file"
    assert summary["studies"] == {"source": 2, "destination": 2}
    assert summary["series"] == {"source": 4, "destination": 3}
    assert summary["instances"] == {"source": 11, "destination": 8}
    assert [summary[name] for name in ("equal", "missing", "extra", "different")] == [6, 4, 1, 1]
    found = [json.loads(line) for line in diff.read_text().splitlines()]
    assert diff.stat().st_mode & 0o777 == 0o600
    by_kind = {(line["difference"], line.get(INSTANCE)): line for line in found}
    assert set(by_kind) == {
        ("missing", None),
        ("missing", datasets[3].SOPInstanceUID),
        ("different", changed.SOPInstanceUID),
        ("extra", datasets[11].SOPInstanceUID),
    }
    assert by_kind["missing", None][SERIES] == datasets[0].SeriesInstanceUID
    assert by_kind["missing", None]["instances"] == 3
    assert "bytes" in by_kind["different", changed.SOPInstanceUID]["reason"]
    # What differs stays, unless it may be replaced, and a copy that leaves it is not complete.
    code, lines, said = run(capsys, "copy", source, destination, "--input", diff, "--dry-run")
    assert (code, lines[0]["to_transfer"], lines[0]["lines_different"]) == (1, 4, 1), said
    assert "--on-existing replace replaces it" in said
    code, lines, said = run(capsys, "copy", source, destination, "--input", diff, "--on-existing", "replace")
    assert code == 0, said
    assert [lines[0][name] for name in ("found", "transferred", "lines", "lines_extra")] == [5, 5, 4, 1]
    code, lines, said = run(capsys, "compare", source, destination, "--content")
    assert [line["difference"] for line in lines] == ["extra"], said
    # The list of what differs can be compared again, also what only the destination has.
    code, lines, said = run(capsys, "compare", source, destination, "--content", "--input", diff)
    assert (code, [line["difference"] for line in lines]) == (1, ["extra"]), said
    # What only the destination has is copied the other way.
    diff.write_text("".join(json.dumps({**line, "difference": "missing"}) + "\n" for line in lines))
    assert run(capsys, "copy", destination, source, "--input", diff)[0] == 0
    code, lines, said = run(capsys, "compare", source, destination, "--content")
    assert (code, lines) == (0, []), said


def test_an_instance_in_another_series_is_missing_and_found(
    place: Callable[[Path], str], one: Path, two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(two.rglob("*.dcm"))
    into = pydicom.dcmread(files[6])
    moved = change(files[0], StudyInstanceUID=into.StudyInstanceUID, SeriesInstanceUID=into.SeriesInstanceUID)
    code, lines, said = run(capsys, "compare", place(one), place(two))
    assert code == 1
    assert {line["difference"]: line[INSTANCE] for line in lines} == dict.fromkeys(
        ("missing", "extra"), moved.SOPInstanceUID
    )
    assert {line["difference"]: line["elsewhere"] for line in lines} == {
        "missing": [f"studies/{into.StudyInstanceUID}/series/{into.SeriesInstanceUID}"],
        "extra": [f"studies/{line[STUDY]}/series/{line[SERIES]}" for line in lines if line["difference"] == "missing"],
    }
    assert "2 of these lines name series of the other archive" in said


def test_another_patient_and_conflicting_files(
    one: Path, two: Path, serve: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(two.rglob("*.dcm"))
    for path in files[:6]:
        study = change(path, PatientID="Somebody-Else").StudyInstanceUID
    shutil.copy(files[7], two / "again.dcm")
    change(two / "again.dcm", PatientComments="other")
    code, lines, said = run(capsys, "compare", serve(one).url, two)
    assert code == 1
    assert [(line["difference"], line[STUDY], line["instances"]) for line in lines] == [("different", study, 0)]
    assert "Somebody-Else" not in said + json.dumps(lines)
    assert "1 studies belong to another patient" in said
    assert "1 files have the UIDs of another file" in said


def test_counts(place: Callable[[Path], str], one: Path, two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(two.rglob("*.dcm"))
    files[0].unlink()
    shutil.rmtree(files[3].parent)
    code, lines, said = run(capsys, "compare", place(one), place(two), "--counts")
    assert code == 1
    assert {line["difference"]: line["instances"] for line in lines} == {"different": 3, "missing": 3}
    assert all(INSTANCE not in line for line in lines)
    assert "weaker" in said


def test_lists(
    place: Callable[[Path], str], one: Path, two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(two.rglob("*.dcm"))
    removed = pydicom.dcmread(files[0])
    files[0].unlink()
    wanted = tmp_path / "wanted.csv"
    wanted.write_text(
        f"{STUDY},{SERIES},{INSTANCE}\n"
        + f"{removed.StudyInstanceUID},{removed.SeriesInstanceUID},{removed.SOPInstanceUID}\n"
        + f"{removed.StudyInstanceUID},{removed.SeriesInstanceUID},{pydicom.dcmread(files[1]).SOPInstanceUID}\n"
        + "1.2.3.4.5,,\n,,not a UID\n"
    )
    code, lines, said = run(capsys, "compare", place(one), place(two), "--input", wanted)
    assert code == 1
    assert [line[INSTANCE] for line in lines] == [removed.SOPInstanceUID]
    assert f"{wanted}, line 4: nothing in either archive matches: studies/1.2.3.4.5" in said
    assert "Of 4 lines of the list, 1 match nothing, 1 cannot be read." in said
    assert f"{'instances':14} {2:>14,} {1:>14,}" in said


def test_filters_select_in_either_archive(one: Path, two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(two.rglob("*.dcm"))
    patient = pydicom.dcmread(files[0]).PatientID
    extra = change(files[6], SOPInstanceUID="1.2.3").SOPInstanceUID
    assert run(capsys, "compare", one, two, "--filter", f"PatientID={patient}")[0] in (0, 1)
    code, lines, _ = run(capsys, "compare", one, two, "--filter", f"SOPInstanceUID={extra}")
    assert (code, [line["difference"] for line in lines]) == (1, ["extra"])


def test_a_real_archive(orthanc: Any, one: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = run(capsys, "compare", one, orthanc.url)
    assert (code, [line["instances"] for line in lines]) == (1, [3] * 4)
    assert run(capsys, "copy", one, orthanc.url)[0] == 0
    for how in ("--counts", "--content"):
        code, lines, said = run(capsys, "compare", one, orthanc.url, how)
        assert (code, lines) == (0, []), said


@pytest.mark.parametrize("how", [(), ("--counts",), ("--content",)])
@pytest.mark.parametrize(
    "broken",
    [fault("status", status=503, times=None), fault("status", status=401, times=None)],
    ids=["unavailable", "refused"],
)
def test_a_search_that_fails_proves_nothing(
    how: tuple[str, ...],
    broken: Any,
    one: Path,
    two: Path,
    serve: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = serve(two, faults=[broken])
    code, lines, said = run(capsys, "compare", one, server.url, *how, "--destination-deadline", "1")
    assert (code, lines) == (1, [])
    assert "hold the same" not in said
    assert "searches failed or were incomplete" in said


def test_a_folder_that_is_not_there_is_a_search_that_failed(one: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, said = run(capsys, "compare", "memory://not-there", one)
    assert (code, lines) == (1, [])
    assert "searches failed or were incomplete" in said
    assert "other contents" not in said


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--counts", "--content"], "contradict"),
        (["--counts", "--input", "LIST"], "needs a comparison by UID"),
        (["--counts", "--filter", "InstanceNumber=1"], "needs a comparison by UID"),
        (["--output", "/nowhere/x"], "there is no folder /nowhere"),
        (["--jobs", "0"], "--jobs"),
        (["--spool-directory", "/nowhere"], "--spool-directory /nowhere: there is no such folder"),
        (["--content", "--destination-profile", "dicomcloud"], "keeps nothing of a stored file"),
    ],
)
def test_wrong_use(
    arguments: list[str], text: str, one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list").write_text("1.2.3.4\n")
    given = [str(tmp_path / "list") if item == "LIST" else item for item in arguments]
    code, lines, said = run(capsys, "compare", one, "https://h.invalid/dicomweb", *given)
    assert (code, lines) == (2, [])
    assert text in said
    assert "there is no folder /nowhere to compare" in run(capsys, "compare", "/nowhere", one)[2]
    code, lines, said = run(capsys, "compare", one, one.as_uri())
    assert (code, lines) == (2, [])
    assert "the source and the destination are the same" in said


@pytest.mark.parametrize(
    ("value", "number"),
    [(3, 3), ("3", 3), (3.0, 3), (None, None), ("many", None), (-1, None), (1e400, None), (float("nan"), None)],
)
def test_what_is_no_number_is_not_compared(value: Any, number: int | None) -> None:
    uids = {tag: {"vr": "UI", "Value": ["1.2"]} for tag in ("0020000D", "0020000E")}
    row = {**uids, "00201209": {"vr": "IS", "Value": [value]}}
    found = selected_of_row(row, "series", 0)
    assert isinstance(found, Selected)
    assert found.number == number
