"""The job that writes tables: what the command writes, on a folder, a server and with faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.gcp import bigquery_tools

from dicomweb_io.cli import main as command_line
from dicomweb_io.dicom.columns import columns_of
from dicomweb_io.errors import DICOMError
from dicomweb_io.testing.faults import fault
from dicomweb_io.transforms.rows import bigquery_schema_of
from pipelines.export_metadata import main
from tests.unit.test_tables import STEP, archive, put, rows_of, source, store

__all__ = ["archive", "source"]


def export(source: object, out: object, *arguments: object) -> int:
    return main(["--source", str(source), "--out", str(out), *map(str, arguments)])


def sorted_rows(path: Path) -> list[str]:
    files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
    return sorted(f"{item.parent.relative_to(path.parent)} {row}" for item in files for row in rows_of(item))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("x.parquet", ["--typed-dates", "--filter", "PatientID=P2"]),
        ("x.jsonl", ["--level", "instance", "--full", "--columns", f"SOPInstanceUID,{STEP},00091030"]),
        ("x.csv", ["--full", "--columns", f"SeriesInstanceUID,NumberOfSeriesRelatedInstances,Rows,{STEP}"]),
        ("x.csv", ["--explode", "RequestAttributesSequence", "--columns", f"SeriesInstanceUID,{STEP}"]),
        ("x.parquet", ["--level", "instance", "--columns", "all", "--full"]),
        ("x.parquet", ["--level", "study", "--partition-by", "StudyDate"]),
    ],
)
def test_the_job_writes_what_the_command_writes(
    archive: Path, serve: Any, tmp_path: Path, name: str, arguments: list[str]
) -> None:
    source = str(archive) if "all" in arguments else serve(archive).url
    (tmp_path / "command").mkdir()
    (tmp_path / "job").mkdir()
    assert command_line(["export", "table", source, "--out", str(tmp_path / "command" / name), *arguments]) == 0
    summary = tmp_path / "summary"
    assert export(source, tmp_path / "job" / name, "--summary", summary, *arguments) == 0
    assert sorted_rows(tmp_path / "job" / name) == sorted_rows(tmp_path / "command" / name)
    numbers = json.loads(summary.read_text())
    assert numbers["rows"] == len(sorted_rows(tmp_path / "job" / name))
    assert (numbers["failed"], numbers["unreadable_values"]) == (0, {})


@pytest.mark.parametrize(
    ("level", "full"), [("study", False), ("series", True), ("instance", False), ("instance", True)]
)
def test_a_list_with_a_wrong_line(archive: Path, tmp_path: Path, capsys: Any, level: str, full: bool) -> None:
    wanted = tmp_path / "cohort.csv"
    wanted.write_text("PatientID,StudyInstanceUID\nP1,\n,1.2.1\n,1.2.2\nnobody,\n")
    more = ["--full"] if full else []
    failures = tmp_path / "failures"
    code = export(archive, tmp_path / "x.csv", "--level", level, "--input", wanted, "--failures", failures, *more)
    assert code == 1
    assert len(rows_of(tmp_path / "x.incomplete.csv")) == 2 * {"study": 1, "series": 2, "instance": 3}[level]
    (failed,) = map(json.loads, failures.read_text().splitlines())
    assert failed["source"] == f"{wanted}, line 5"
    assert "THE TABLE IS NOT COMPLETE: 1 failed" in capsys.readouterr().err


def test_a_table_with_gaps_does_not_look_whole(archive: Path, tmp_path: Path, serve: Any) -> None:
    url = serve(archive, faults=[fault("status", path="1.2.1.1/.*metadata$", status=404, times=None)]).url
    assert export(url, tmp_path / "x.csv", "--full") == 1
    assert not (tmp_path / "x.csv").exists()
    assert len(rows_of(tmp_path / "x.incomplete.csv")) == 7


def test_a_refresh(source: str, tmp_path: Path) -> None:
    out = tmp_path / "x.parquet"
    numbers = []
    for new in ([], [(2, 2, 2), (5, 1, 1)], []):
        store(source, *(put(tmp_path / "new", *uids) for uids in new))
        assert export(source, out, "--level", "study", "--since", "last", "--method", "list") == 0
        numbers.append(sorted(row["NumberOfStudyRelatedInstances"] for row in rows_of(out)))
    assert numbers == [[3, 3, 3, 3], [1, 3, 3, 3, 4], [1, 3, 3, 3, 4]]


def test_an_archive_that_cannot_tell_what_is_new(archive: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    def fail(*_: Any) -> None:
        raise DICOMError("its database is a different one now")

    monkeypatch.setattr("pipelines.export_metadata.plan_refresh", fail)
    assert export(archive, tmp_path / "x.csv", "--since", "last") == 1
    assert "the table is as it was before: its database" in capsys.readouterr().err


def test_wrong_use(archive: Path, tmp_path: Path, capsys: Any) -> None:
    for arguments, text in (
        (["--out", f"{tmp_path}/x.csv"], "--source is required"),
        (["--source", str(archive)], "--out is required"),
        (["--source", str(archive), "--out", "bq:a.b.c"], "apache-beam[gcp]"),
        (["--source", str(archive), "--out", "bq:a.b"], "bq:PROJECT.DATASET.TABLE"),
        (["--source", str(archive), "--out", "bq:a.b.c", "--since", "last"], "nor a cursor"),
    ):
        assert main(arguments) == 2
        assert text in capsys.readouterr().err


COLUMNS = ["StudyInstanceUID", "StudyDate", "StudyTime", "Rows", "PatientSize", "ImageType"]


class WriteToBigQuery(beam.PTransform):
    """Takes what Beam's takes, and writes the lines of its load job to a file."""

    def __init__(self, table, schema, write_disposition):
        super().__init__()
        assert (table, write_disposition) == ("project:dataset.table", "WRITE_TRUNCATE")
        assert bigquery_tools.get_dict_table_schema(schema) == schema

    def expand(self, rows):
        return rows | beam.Map(json.dumps, default=bigquery_tools.default_encoder) | beam.io.WriteToText("lines")


def test_a_table_of_bigquery(archive: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(beam.io, "WriteToBigQuery", WriteToBigQuery)
    monkeypatch.setattr("pipelines.export_metadata.find_spec", lambda name: name)
    monkeypatch.chdir(tmp_path)
    arguments = ["--level", "study", "--columns", "StudyInstanceUID,StudyDate,ModalitiesInStudy", "--typed-dates"]
    assert export(archive, "bq:project.dataset.table", *arguments) == 0
    lines = [json.loads(line) for path in tmp_path.glob("lines*") for line in path.read_text().splitlines()]
    first = min(lines, key=lambda line: line["StudyInstanceUID"])
    assert first | {"ModalitiesInStudy": sorted(first["ModalitiesInStudy"])} == {
        "StudyInstanceUID": "1.2.1",
        "StudyDate": "2024-01-01",
        "ModalitiesInStudy": ["CT", "MR"],
    }


def test_the_schema_of_bigquery() -> None:
    columns = columns_of(COLUMNS, typed_dates=True, typed_times=True)
    schema = bigquery_schema_of(columns)
    assert [(field["name"], field["type"], field["mode"]) for field in schema["fields"]] == [
        ("StudyInstanceUID", "STRING", "NULLABLE"),
        ("StudyDate", "DATE", "NULLABLE"),
        ("StudyTime", "TIME", "NULLABLE"),
        ("Rows", "INTEGER", "NULLABLE"),
        ("PatientSize", "FLOAT", "NULLABLE"),
        ("ImageType", "STRING", "REPEATED"),
    ]


def test_a_folder_with_files_that_cannot_be_read_is_not_all_in_the_table(archive: Path, tmp_path: Path) -> None:
    (archive / "broken.dcm").write_bytes(bytes(128) + b"DICM" + b"broken")
    assert export(archive, tmp_path / "job.csv") == 1
    assert command_line(["export", "table", str(archive), "--out", str(tmp_path / "command.csv")]) == 1
    assert sorted_rows(tmp_path / "job.csv")
    assert rows_of(tmp_path / "job.csv") == rows_of(tmp_path / "command.csv")
