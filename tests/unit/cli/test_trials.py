"""What people come for, from the first command to the last, on a folder, the test server and Orthanc."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from dicomweb_io.cli import main
from dicomweb_io.testing.samples import new_uid

CT = Path(str(get_testdata_file("CT_small.dcm")))
PATIENTS = (("P1", "Müller^Jörg"), ("P2", "Yamada^Tarou=山田^太郎"), ("007", "Lee^Anna"), ("P/4", ""))
LAYOUT = "{PatientID}/{StudyDate}_{StudyDescription}/{SeriesNumber}/{InstanceNumber:04}.dcm"


def make_archive(place: Path, studies: range) -> None:
    """Studies of four patients, one each week, every third without a date; two series with one number, CT or MR."""
    place.mkdir(exist_ok=True)
    for study in studies:
        dataset = pydicom.dcmread(CT)
        del dataset.DataSetTrailingPadding
        dataset.Rows = dataset.Columns = 16
        dataset.PixelData = dataset.PixelData[:512]
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.PatientID, dataset.PatientName = PATIENTS[study % 4]
        dataset.StudyDate = "" if study % 3 == 2 else f"2026{9 + study // 4:02}{1 + study % 4 * 7:02}"
        # The last two studies share one: they are of two patients.
        dataset.AccessionNumber = f"{min(study, 6):07}"
        dataset.StudyDescription = ("Schädel/Hals", "胸部", "")[study % 3]
        dataset.Modality = ("CT", "MR")[study % 2]
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = (
            "1.2.840.10008.5.1.4.1.1.2" if dataset.Modality == "CT" else "1.2.840.10008.5.1.4.1.1.4"
        )
        dataset.StudyInstanceUID, dataset.SeriesNumber = new_uid("trial", study), 1
        for series, number in ((0, 1), (0, 2), (1, 1)):
            dataset.SeriesInstanceUID, dataset.InstanceNumber = new_uid("trial", study, series), number
            dataset.SOPInstanceUID = new_uid("trial", study, series, number)
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.save_as(place / f"{study}-{series}-{number}.dcm", enforce_file_format=True)


@pytest.fixture(params=["folder", "server", "orthanc"])
def archive(
    request: pytest.FixtureRequest, tmp_path: Path, serve: Callable, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Callable[[range], None]]:
    """An archive with eight studies, and what puts more into it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DICOMWEB_IO_SERVERS", str(tmp_path / "servers.toml"))
    make_archive(tmp_path / "files", range(8))
    if request.param == "orthanc":
        url = request.getfixturevalue("orthanc").url

        def add(studies: range) -> None:
            make_archive(tmp_path / f"new-{studies.start}", studies)
            assert main(["store", "instances", f"new-{studies.start}", "--url", url]) == 0

        assert main(["store", "instances", "files", "--url", url]) == 0
        return url, add
    server = serve(tmp_path / "files") if request.param == "server" else None

    def put(studies: range) -> None:
        make_archive(tmp_path / "files", studies)
        if server is not None:
            server.refresh()

    return (server.url if server is not None else "files"), put


def test_a_day_at_work(archive, tmp_path, capsys):
    pandas, duckdb = pytest.importorskip("pandas"), pytest.importorskip("duckdb")
    url, add = archive

    def run(*words: str, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        assert main(list(words)) == code, capsys.readouterr().err
        return capsys.readouterr()

    # What is in it? Then all CT of a month by patient, again, and the archive that is named.
    run("servers", "add", "pacs", "--url", str(Path(url).resolve()) if url == "files" else url)
    assert len(run("tree", "pacs")[0].splitlines()) == 8
    ct = ("--filter", "Modality=CT", "--filter", "StudyDate=20260901-20260930")
    run("copy", "pacs", "by-patient", *ct, "--layout", LAYOUT)
    found = sorted(str(path.relative_to("by-patient").parent) for path in Path("by-patient").rglob("*.dcm"))
    assert found == ["P1/20260901_Schädel_Hals/1"] * 3
    assert json.loads(run("copy", "pacs", "by-patient", *ct, "--layout", LAYOUT)[0])["already_there"] == 3

    # A table of all series, with pandas and DuckDB.
    run("export", "table", "pacs", "--out", "series.parquet")
    table = pandas.read_parquet("series.parquet")
    assert (len(table), table.NumberOfSeriesRelatedInstances.sum()) == (16, 24)
    query = "SELECT count(DISTINCT strftime(StudyDate::DATE, '%Y-%m')), sum(NumberOfSeriesRelatedInstances) FROM "
    assert duckdb.sql(f"{query} 'series.parquet'").fetchall() == [(2, 24)]

    # A cohort from a spreadsheet.
    rows = ["Nr.;Accession No.", "1;0000001", "2;OOOOO02", ";", "3;1,2E+05", "4;3", "5;0000006"]
    Path("cohort.csv").write_text("\r\n".join(rows), encoding="utf-8-sig")
    out, err = run("copy", "pacs", "cohort", "--input", "cohort.csv", "--failures", "open.jsonl", code=1)
    numbers = json.loads(out)
    assert [numbers[f"lines{name}"] for name in ("", "_unmatched", "_unreadable", "_withheld")] == [5, 2, 1, 1]
    assert numbers["transferred"] == 3
    for line, words in ((3, "matches"), (5, "rounded"), (6, "leading zeros"), (7, "studies of 2 patients")):
        assert any(f"cohort.csv, line {line}: " in told and words in told for told in err.splitlines())
    Path("empty.csv").write_text("StudyInstanceUID\n")
    assert "The list is empty" in run("copy", "pacs", "cohort", "--input", "empty.csv")[1]
    Path("sheet.xlsx").write_bytes(b"PK\x03\x04\xff\x00\n")
    assert "save the sheet as CSV" in run("copy", "pacs", "cohort", "--input", "sheet.xlsx", code=2)[1]

    # Two nights; then: is the copy complete?
    night = ("watch", "pacs", "mirror", "--once", "--cursor", "mirror.json", "--table", "nightly.csv")
    for studies, transferred in ((range(0), 24), (range(8, 10), 6), (range(0), 0)):
        if studies:
            add(studies)
        out, err = run(*night)
        assert json.loads(out)["transferred"] == transferred
        assert err.count("watch: ") == 1
    assert len(pandas.read_csv("nightly.csv")) == 20
    run("compare", "pacs", "mirror")
    files = sorted(Path("mirror").rglob("*.dcm"))
    for path in (files[0], files[5], files[9]):
        path.unlink()
    assert "copy --input" in run("compare", "pacs", "mirror", "--output", "open.jsonl", code=1)[1]
    assert json.loads(run("copy", "pacs", "mirror", "--input", "open.jsonl")[0])["transferred"] == 3
    files[1].write_bytes(files[1].read_bytes()[:-3] + b"abc")
    run("compare", "pacs", "mirror")
    run("compare", "pacs", "mirror", "--content", "--output", "open.jsonl", code=1)
    run("copy", "pacs", "mirror", "--input", "open.jsonl", code=1)
    run("copy", "pacs", "mirror", "--input", "open.jsonl", "--on-existing", "replace")
    run("compare", "pacs", "mirror", "--content")


def test_without_a_terminal_and_a_home(tmp_path):
    make_archive(tmp_path / "files", range(2))
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
    environment["DICOMWEB_IO_CACHE"] = str(tmp_path / "cache")
    done = subprocess.run(
        [sys.executable, "-m", "dicomweb_io", "copy", "files", "copy", "--report", "report.html"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, json.loads(done.stdout)["transferred"]) == (0, 6), done.stderr
    assert (tmp_path / "report.html").stat().st_mode & 0o777 == 0o600


def test_files_that_cannot_be_read_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_archive(tmp_path / "files", range(1))
    for command, code in (
        (["search", "studies", "--url", "files"], 0),
        (["export", "table", "files", "--out", "t.csv"], 1),
    ):
        (tmp_path / "files" / "broken.dcm").write_bytes(bytes(128) + b"DICM" + b"broken")
        assert main(command) == code
        told = capsys.readouterr().err
        assert "! 1 file cannot be read, so it is left out: dicomweb-io index " in told
        (tmp_path / "files" / "broken.dcm").unlink()
        assert main(command) == 0
        assert "cannot be read" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["search", "studies", "pacs"], "--url names the archive"),
        (["copy", "nowhere", "files"], "there is no folder nowhere to copy from"),
        (["copy", "files", "copy", "--layout", "{Patient ID}"], "did you mean 'PatientID'?"),
        (["copy", "files", "copy", "--filter", "StudyDate=2026-10-01"], "write 20261001"),
    ],
)
def test_what_stops_people_says_what_to_do(tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    make_archive(tmp_path / "files", range(1))
    assert main(words) == 2
    assert told in capsys.readouterr().err
