"""Tables of folders and servers: columns and types, files and partitions, failures, refreshes."""

from __future__ import annotations

import csv
import json
import re
import stat
import subprocess
import sys
import threading
import time as time_module
from datetime import date, time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pyarrow.dataset
import pyarrow.parquet
import pytest
from pydicom.dataset import Dataset

from dicomweb_io import Endpoint, tables
from dicomweb_io.cli import main
from dicomweb_io.dicom.columns import COLUMNS, column_of, columns_of
from dicomweb_io.errors import DICOMError
from dicomweb_io.table_files import NO_PARTITION, TableWriter, partition_text, read_table
from dicomweb_io.tables import TableJob, iter_table, publish, run_table
from dicomweb_io.testing.faults import fault
from tests.answering import Reply
from tests.unit.files.making import make_dataset, saved

KINDS = ("parquet", "csv", "jsonl")
STEP = "RequestAttributesSequence.ScheduledProcedureStepID"


def put(folder: Path, study: int, series: int = 1, instance: int = 1, **attributes: Any) -> Path:
    """A small instance with some of what people ask for."""
    uids = f"1.2.{study}", f"1.2.{study}.{series}", f"1.2.{study}.{series}.{instance}"
    given = {
        "PatientID": f"P{study}",
        "PatientName": "Müller^Jürg",
        "StudyDate": f"2024010{study}" if study < 4 else "",
        "StudyTime": "101112.5",
        "AccessionNumber": f"A{study}",
        "StudyDescription": 'with, "marks"',
        "Modality": "CT" if series == 1 else "MR",
        "SeriesNumber": series,
        "InstanceNumber": instance,
        "Rows": 4,
        "PatientSize": 1.8,
        **attributes,
    }
    dataset = make_dataset(*uids, **given)
    if series == 1:
        dataset.RequestAttributesSequence = [Dataset(), Dataset()]
        for name, item in zip("AB", dataset.RequestAttributesSequence, strict=True):
            item.ScheduledProcedureStepID = f"{name}{study}"
        block = dataset.private_block(0x0009, "GEMS_IDEN_01", create=True)
        block.add_new(0x30, "SH", f"secret {study}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uids[-1]}.dcm"
    path.write_bytes(saved(dataset))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Studies 1 to 4: two series each, two instances in the first one; the fourth has no date."""
    for study in range(1, 5):
        for series, instance in ((1, 1), (1, 2), (2, 1)):
            put(tmp_path / "archive", study, series, instance)
    return tmp_path / "archive"


@pytest.fixture(params=["folder", "server"])
def source(request: pytest.FixtureRequest, archive: Path, serve: Any) -> str:
    return str(archive) if request.param == "folder" else str(serve(archive).url)


def export(source: object, out: Path, *arguments: object) -> int:
    return main(["export", "table", str(source), "--out", str(out), *map(str, arguments)])


def summary_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return list(pyarrow.parquet.ParquetFile(path).read().to_pylist())
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_for_each_series(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    out = tmp_path / f"series.{kind}"
    assert export(source, out) == 0
    rows = rows_of(out)
    assert list(rows[0]) == list(COLUMNS["series"])
    number = "2" if kind == "csv" else 2
    assert sorted(row["SeriesInstanceUID"] for row in rows if row["NumberOfSeriesRelatedInstances"] == number) == [
        f"1.2.{study}.1" for study in range(1, 5)
    ]
    first = min(rows, key=lambda row: row["SeriesInstanceUID"])
    assert (first["PatientName"], first["StudyDescription"]) == ("Müller^Jürg", 'with, "marks"')
    assert (first["StudyDate"], first["Modality"]) == ("2024-01-01", "CT")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    numbers = summary_of(capsys)
    assert (numbers["found"], numbers["rows"], numbers["files"]) == (8, 8, 1)
    assert numbers["absent_columns"] == ["SeriesDescription"]


def test_values_have_the_types_of_their_columns(source: str, tmp_path: Path) -> None:
    out = tmp_path / "x.parquet"
    columns = "StudyInstanceUID,StudyDate,StudyTime,Rows,PatientSize,ImageType,PixelSpacing"
    code = export(
        source, out, "--level", "instance", "--columns", columns, "--typed-dates", "--full", "--filter", "PatientID=P1"
    )
    assert code == 0
    types = [str(kind) for kind in pyarrow.parquet.read_schema(out).types]
    assert types == [
        "string",
        "date32[day]",
        "time64[us]",
        "int64",
        "double",
        "list<element: string>",
        "list<element: double>",
    ]
    assert [tuple(row.values()) for row in rows_of(out)] == [
        ("1.2.1", date(2024, 1, 1), time(10, 11, 12, 500000), 4, 1.8, [], [])
    ] * 3


@pytest.mark.parametrize("level", ["study", "series", "instance"])
def test_the_metadata_have_what_searches_do_not_return(source: str, tmp_path: Path, level: str) -> None:
    """Nested and private attributes; the counts of a search stay."""
    out = tmp_path / "x.jsonl"
    counted = {"study": "NumberOfStudyRelatedInstances", "series": "NumberOfSeriesRelatedInstances"}.get(level, "Rows")
    wanted = f'SeriesInstanceUID,{STEP},{STEP.replace(".", "[1].")},(0009,"GEMS_IDEN_01",30),00091030,{counted}'
    assert export(source, out, "--level", level, "--columns", wanted, "--full", "--filter", "PatientID=P3") == 0
    rows = [row for row in rows_of(out) if row["SeriesInstanceUID"] == "1.2.3.1"]
    number = {"study": 3, "series": 2, "instance": 4}[level]
    expected = ["1.2.3.1", ["A3", "B3"], "B3", "secret 3", "secret 3", number]
    assert [list(row.values()) for row in rows] == [expected] * (2 if level == "instance" else 1)


def test_each_item_of_a_sequence_becomes_a_row(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    columns = f"SeriesInstanceUID,{STEP},RequestAttributesSequence"
    arguments = ("--columns", columns, "--explode", "RequestAttributesSequence", "--filter", "PatientID=P2")
    assert export(archive, out, *arguments) == 0
    assert sorted(tuple(row.values())[:2] for row in rows_of(out)) == [
        ("1.2.2.1", "A2"),
        ("1.2.2.1", "B2"),
        ("1.2.2.2", ""),
    ]
    item = next(row for row in rows_of(out) if row["RequestAttributesSequence_ScheduledProcedureStepID"] == "A2")
    assert json.loads(item["RequestAttributesSequence"]) == [{"00400009": {"vr": "SH", "Value": ["A2"]}}]


def test_all_is_whatever_the_rows_carry(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.parquet"
    put(archive, 1, 1, 2, Manufacturer="ACME", Columns=3)
    assert export(archive, out, "--level", "instance", "--columns", "all", "--full") == 0
    rows = rows_of(out)
    assert len(rows) == 12
    assert list(rows[0])[:3] == ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
    assert {"Manufacturer", "Columns", "tag_00091030", "RequestAttributesSequence"} < set(rows[0])
    assert [row["Columns"] for row in rows if row["Manufacturer"] == "ACME"] == [3]


def test_bad_values_are_counted_and_no_row_is_lost(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = archive / "1.2.1.1.1.dcm"
    path.write_bytes(path.read_bytes().replace(b"20240101", b"2024ab01"))
    assert export(archive, tmp_path / "x.parquet", "--level", "instance", "--columns", "SOPInstanceUID,StudyDate") == 0
    numbers = summary_of(capsys)
    assert (numbers["rows"], numbers["unreadable_values"]) == (12, {"StudyDate": 3})


# Files and folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_partitions_are_folders(archive: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"x.{kind}"
    for _ in range(2):
        arguments = ("--level", "study", "--partition-by", "StudyDate", "--columns", "StudyInstanceUID,StudyDate")
        assert export(archive, out, *arguments) == 0
        names = sorted(path.name for path in out.iterdir())
        assert names == sorted([*(f"StudyDate=2024-01-0{day}" for day in (1, 2, 3)), f"StudyDate={NO_PARTITION}"])
        files = sorted(path for path in out.rglob("*") if path.is_file())
        assert [list(rows_of(path)[0]) for path in files] == [["StudyInstanceUID"]] * 4
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert list(tmp_path.glob(".*part")) == []
    read = f"read_{kind.replace('jsonl', 'json')}('{out}/**/*.{kind}', hive_partitioning=true)"
    assert duckdb.sql(f"SELECT count(*), count(StudyDate) FROM {read}").fetchall() == [(4, 3)]


def test_a_table_of_several_files(archive: Path, tmp_path: Path) -> None:
    assert export(archive, tmp_path / "x.parquet", "--rows-per-file", 3) == 0
    assert [path.name for path in sorted((tmp_path / "x.parquet").iterdir())] == [
        f"part-0000{n}.parquet" for n in range(3)
    ]
    assert pyarrow.dataset.dataset(tmp_path / "x.parquet").count_rows() == 8


def test_each_partition_is_one_file_in_whatever_order_rows_come(tmp_path: Path) -> None:
    columns = columns_of(["PatientID", "Rows"])
    with TableWriter(str(tmp_path / "x.csv"), columns, partition_by="PatientID") as table:
        for number in range(200):
            table.write({"PatientID": f"a/../{number % 50}", "Rows": number})
    assert sum(len(rows_of(path)) for path in (tmp_path / "x.csv").rglob("*.csv")) == 200
    assert len(list((tmp_path / "x.csv").rglob("*.csv"))) == len(list((tmp_path / "x.csv").iterdir())) == 50


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, NO_PARTITION),
        ("", NO_PARTITION),
        ("../x", "..%2Fx"),
        ("a=b", "a%3Db"),
        (date(2024, 2, 29), "2024-02-29"),
        (3, "3"),
        ("山田" * 32, "山田" * 32),
        ("lone \ud800\n", "lone %3F%0A"),
    ],
)
def test_names_of_partitions_are_safe(value: Any, text: str) -> None:
    assert partition_text(value) == text


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_every_kind_fit_into_files(tmp_path: Path, kind: str) -> None:
    column = column_of("PatientName")
    texts = ["", "a\r\nb", 'x"y,z', "山田", "lone \ud800", "=1+1"]
    with TableWriter(str(tmp_path / f"x.{kind}"), [column]) as table:
        for text in texts:
            table.write({"PatientName": text})
    written = [row["PatientName"] for row in rows_of(tmp_path / f"x.{kind}")]
    assert [*written[:4], written[5]] == [*texts[:4], texts[5]]
    assert written[4].startswith("lone ")


def test_csv_has_no_nul(tmp_path: Path) -> None:
    with TableWriter(str(tmp_path / "x.csv"), columns_of(["ImageType"])) as table:
        table.write({"ImageType": ["A\0", "B"]})
    assert (tmp_path / "x.csv").read_bytes() == b"ImageType\r\nA\\B\r\n"


def test_excel_reads_csv_with_a_byte_order_mark(archive: Path, tmp_path: Path) -> None:
    assert export(archive, tmp_path / "x.csv", "--bom") == 0
    assert (tmp_path / "x.csv").read_bytes().startswith(b"\xef\xbb\xbfStudyInstanceUID,")


def test_an_empty_table_is_a_table(archive: Path, tmp_path: Path) -> None:
    for kind in KINDS:
        assert export(archive, tmp_path / f"x.{kind}", "--filter", "PatientID=nobody") == 0
        assert rows_of(tmp_path / f"x.{kind}") == []
    assert pyarrow.parquet.read_schema(tmp_path / "x.parquet").names == list(COLUMNS["series"])


def test_an_empty_table_with_partitions_can_grow(tmp_path: Path, folder: Path) -> None:
    out, arguments = tmp_path / "x.parquet", ("--partition-by", "StudyDate", "--since", "last")
    assert export(folder, out, *arguments) == 0
    put(folder, 1)
    assert export(folder, out, *arguments) == 0
    rows = duckdb.sql(f"SELECT StudyDate FROM read_parquet('{out}/**/*.parquet', hive_partitioning = true)").fetchall()
    assert [str(day) for (day,) in rows] == ["2024-01-01"]


def test_a_value_that_is_no_name_of_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    with (
        pytest.raises(ValueError, match="PatientComments cannot divide the table"),
        TableWriter(str(out), columns_of(["PatientComments", "Rows"]), partition_by="PatientComments") as table,
    ):
        table.write({"PatientComments": "x" * 300, "Rows": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_refresh_in_an_object_store_continues(archive: Path, capsys: Any) -> None:
    arguments = ["export", "table", str(archive), "--out", "memory://refreshed/x.csv", "--since", "last"]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(arguments) == 0
    assert "Nothing is new" in capsys.readouterr().err
    put(archive, 5)
    assert main(arguments) == 0
    assert summary_of(capsys)["rows"] == 1
    import fsspec

    assert fsspec.filesystem("memory").cat("/refreshed/x.csv").count(b"\r\n") == 10


def test_a_folder_in_an_object_store_stays_if_it_cannot_be_replaced(archive: Path, monkeypatch: Any) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def put_file(self: Any, path: str, place: str, **how: Any) -> None:
        if "Modality=MR" in place:
            raise OSError("the store is full")
        put_before(self, path, place, **how)

    put_before, files = MemoryFileSystem.put_file, MemoryFileSystem()
    arguments = ["export", "table", str(archive), "--out", "memory://full/x.csv", "--partition-by", "Modality"]
    assert main(arguments) == 0
    before = {path: files.cat(path) for path in files.find("/full")}
    put(archive, 5)
    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "put_file", put_file)
        assert main(arguments) == 1
    assert {path: files.cat(path) for path in files.find("/full")} == before
    assert main(arguments) == 0
    assert len(files.find("/full")) == 2


def test_tables_go_to_object_stores(archive: Path) -> None:
    import fsspec

    for _ in range(2):
        assert main(["export", "table", str(archive), "--out", "memory://tables/x.csv"]) == 0
        assert (
            main(["export", "table", str(archive), "--out", "memory://tables/y.csv", "--partition-by", "Modality"]) == 0
        )
    files = fsspec.filesystem("memory").find("/tables")
    assert [path.rpartition("/")[0] for path in files] == [
        "/tables",
        "/tables/y.csv/Modality=CT",
        "/tables/y.csv/Modality=MR",
    ]


# What goes wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [False, True])
def test_a_table_with_gaps_does_not_look_whole(
    archive: Path, tmp_path: Path, serve: Any, capsys: pytest.CaptureFixture[str], folder: bool
) -> None:
    out, more = tmp_path / "x.csv", ["--partition-by", "Modality"] if folder else []
    lies = [fault("lying_total", times=None, difference=3)]
    assert export(archive, out, *more) == 0
    capsys.readouterr()
    before = sorted(path.stat().st_mtime_ns for path in [out, *out.rglob("*")])
    assert export(serve(archive, faults=lies).url, out, "--failures", tmp_path / "f", *more) == 1
    printed = capsys.readouterr()
    numbers = json.loads(printed.out)
    assert (numbers["rows"], numbers["failed"], numbers["table"]) == (8, 1, str(tmp_path / "x.incomplete.csv"))
    assert "THE TABLE IS NOT COMPLETE" in printed.err
    assert sorted(path.stat().st_mtime_ns for path in [out, *out.rglob("*")]) == before
    assert json.loads((tmp_path / "f").read_text())["transform"] == "SearchForSeries"
    # What is left of it goes when the table is whole.
    assert export(archive, out, *more) == 0
    assert not (tmp_path / "x.incomplete.csv").exists()


@pytest.mark.parametrize("level", ["series", "instance"])
def test_metadata_that_fail_are_named(archive: Path, tmp_path: Path, serve: Any, capsys: Any, level: str) -> None:
    url = serve(archive, faults=[fault("status", path="1.2.1.1/.*metadata$", status=404, times=None)]).url
    assert export(url, tmp_path / "x.csv", "--level", level, "--full", "--failures", tmp_path / "f") == 1
    lost = [json.loads(line)["reference"] for line in (tmp_path / "f").read_text().splitlines()]
    assert {item["series_instance_uid"] for item in lost} == {"1.2.1.1"}
    assert json.loads(capsys.readouterr().out)["failed"] == len(lost) == (2 if level == "instance" else 1)


def test_nothing_is_written_when_the_login_is_refused(tmp_path: Path, answering: Any, capsys: Any) -> None:
    server = answering(lambda request: Reply(401))
    assert export(server.url, tmp_path / "x.csv") == 1
    assert "Nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with TableWriter(str(tmp_path / "x.csv"), columns_of(["Rows"])) as table:
            table.write({"Rows": 1})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("level", ["study", "series", "instance"])
def test_a_list_with_wrong_lines(archive: Path, tmp_path: Path, capsys: Any, level: str) -> None:
    wanted = tmp_path / "cohort.csv"
    wanted.write_text("PatientID,StudyInstanceUID\nP1,\n,1.2.1\n,1.2.2\nnobody,\n,abc\n")
    assert export(archive, tmp_path / "x.jsonl", "--level", level, "--input", wanted) == 1
    rows = rows_of(tmp_path / "x.incomplete.jsonl")
    number = {"study": 1, "series": 2, "instance": 3}[level]
    assert sorted(row["StudyInstanceUID"] for row in rows) == ["1.2.1"] * number + ["1.2.2"] * number
    assert f"{wanted}, line 5" in capsys.readouterr().err


@pytest.mark.parametrize("full", [False, True])
def test_a_list_of_instances(source: str, tmp_path: Path, capsys: Any, full: bool) -> None:
    wanted = tmp_path / "list.jsonl"
    uids = {"study_instance_uid": "1.2.1", "series_instance_uid": "1.2.1.1"}
    lines = [uids | {"sop_instance_uid": f"1.2.1.1.{number}"} for number in (1, 2, 9)]
    wanted.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["--level", "instance", "--input", wanted, *(["--full"] if full else [])]
    assert export(source, tmp_path / "x.jsonl", *arguments) == 1
    rows = rows_of(tmp_path / "x.incomplete.jsonl")
    assert sorted(row["SOPInstanceUID"] for row in rows) == ["1.2.1.1.1", "1.2.1.1.2"]
    assert "1.2.1.1.9" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["export", "table", "--out"], ["watch", "--once", "--table"]])
def test_no_file_overwrites_another(archive: Path, tmp_path: Path, capsys: Any, command: list[str]) -> None:
    out = tmp_path / "x.csv"
    for option in ("--cursor", "--failures", "--summary"):
        assert main([*command, str(out), option, f"{tmp_path}/./x.csv", str(archive)]) == 2
        assert "name the same file" in capsys.readouterr().err
        assert not out.exists()


def test_a_list_has_no_limit(archive: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "cohort.csv").write_text("PatientID\nP1\n")
    assert export(archive, tmp_path / "x.csv", "--limit", 3, "--input", tmp_path / "cohort.csv") == 2
    assert "leave --limit out" in capsys.readouterr().err


def test_absent_columns_are_told_in_a_line(archive: Path, tmp_path: Path, capsys: Any) -> None:
    columns = ",".join(f"000910{number:02X}" for number in range(16))
    assert export(archive, tmp_path / "x.csv", "--columns", columns) == 0
    assert "tag_00091009 and 6 others;" in capsys.readouterr().err


def test_a_table_needs_an_archive(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("DICOMWEB_URL", raising=False)
    assert main(["export", "table", "--out", str(tmp_path / "x.csv")]) == 2
    assert "ARCHIVE or --url is required" in capsys.readouterr().err


def test_a_private_creator_may_have_several_blocks() -> None:
    row = {
        **{f"000900{block}": {"vr": "LO", "Value": ["ONE"]} for block in ("10", "11")},
        "00091020": {"vr": "LO", "Value": ["a"]},
        "00091130": {"vr": "LO", "Value": ["b"]},
    }
    assert [column_of(f'(0009,"ONE",{element})').cell(row)[0] for element in ("20", "30", "40")] == ["a", "b", None]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_attribute_is_no_column(tmp_path: Path, answering: Any, kind: str) -> None:
    row = {"0020000D": {"vr": "UI", "Value": ["1.2"]}, "0020000E": {"vr": "UI", "Value": ["1.3"]}}
    server = answering(lambda request: Reply.json([{**row, "extra": {"vr": "LO", "Value": ["x"]}, "more": 5}]))
    assert export(server.url, tmp_path / f"x.{kind}", "--columns", "all") == 0
    assert [list(row.values()) for row in rows_of(tmp_path / f"x.{kind}")] == [["1.2", "1.3"]]


def test_a_limit(source: str, tmp_path: Path) -> None:
    for more in ([], ["--full"]):
        assert export(source, tmp_path / "x.csv", "--limit", 3, *more) == 0
        assert len(rows_of(tmp_path / "x.csv")) == 3


@pytest.mark.parametrize(
    ("out", "arguments", "text"),
    [
        ("x.xlsx", [], "ends in .parquet, .csv"),
        ("bq:a.b.c", [], "pipelines.export_metadata writes to BigQuery"),
        ("missing/x.csv", [], "there is no folder"),
        ("x.csv", ["--columns", "PatientI"], "did you mean 'PatientID'"),
        ("x.csv", ["--columns", "PixelData"], "binary"),
        ("x.csv", ["--explode", "RequestAttributesSequence"], "no column is in it"),
        ("x.csv", ["--explode", "PatientID"], "is no sequence"),
        ("x.csv", ["--partition-by", "Rows"], "no column of the table"),
        ("x.csv", ["--since", "yesterday"], "expected last, or a day"),
        ("x.csv", ["--since", "last", "--columns", "PatientID"], "StudyInstanceUID is one of them"),
        ("x.csv", ["--since", "last", "--limit", "3"], "leave --input and --limit out"),
        ("x.csv", ["--limit", "-1"], "limit must be 0 or more"),
        ("x.csv", ["--columns", "all", "--partition-by", "NoSuch"], "NoSuch"),
        ("x.csv", ["--rows-per-file", "0"], "must be a positive integer"),
        ("x.csv", ["--filter", "PatientID="], "would match everything"),
        ("archive.csv", ["--rows-per-file", "5"], "holds other files"),
    ],
)
def test_wrong_use(archive: Path, tmp_path: Path, capsys: Any, out: str, arguments: list[str], text: str) -> None:
    put(tmp_path / "archive.csv", 1)
    place = out if out.startswith("bq:") else str(tmp_path / out)
    assert main(["export", "table", str(archive), "--out", place, *arguments]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()


# Refreshes ------------------------------------------------------------------------------------------------------------


def store(source: str, *paths: Path) -> None:
    for path in paths:
        assert main(["--url", source, "store", "instances", str(path)]) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", ["study", "series", "instance"])
def test_a_refresh_neither_misses_nor_doubles(source: str, tmp_path: Path, kind: str, level: str) -> None:
    """A late instance changes the row of its study, a new study has rows, the others stay."""
    out = tmp_path / f"x.{kind}"
    arguments = ("--level", level, "--since", "last", "--method", "list")
    sums = []
    for new in ([], [(2, 2, 2), (5, 1, 1)], []):
        store(source, *(put(tmp_path / "new", *numbers) for numbers in new))
        assert export(source, out, *arguments) == 0
        rows = rows_of(out)
        counted = f"NumberOf{level.title()}RelatedInstances"
        uids = {tuple(row[name] for name in row if name.endswith("InstanceUID")) for row in rows}
        assert len(uids) == len(rows)
        sums.append(
            [
                sum(1 if level == "instance" else int(row[counted]) for row in rows if row["StudyInstanceUID"] == study)
                for study in ("1.2.1", "1.2.2", "1.2.5")
            ]
        )
    assert sums == [[3, 3, 0], [3, 4, 1], [3, 4, 1]]


def test_a_refresh_by_the_log_of_changes(orthanc: Any, tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    numbers = []
    for new in ([(1, 1, 1), (2, 1, 1)], [(2, 2, 2), (5, 1, 1)], []):
        store(orthanc.url, *(put(tmp_path / "new", *uids) for uids in new))
        assert export(orthanc.url, out, "--since", "last", "--full") == 0
        numbers.append(sorted(row["SeriesInstanceUID"] for row in rows_of(out)))
    assert numbers == [["1.2.1.1", "1.2.2.1"], *[["1.2.1.1", "1.2.2.1", "1.2.2.2", "1.2.5.1"]] * 2]


def test_a_refresh_that_was_interrupted_is_repeated(archive: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "x.csv"
    arguments = ("--level", "study", "--since", "last", "--cursor", tmp_path / "cursor")
    assert export(archive, out, *arguments) == 0
    put(archive, 5)
    with monkeypatch.context() as patched:
        patched.setattr("dicomweb_io.changes.PlaceFile.write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert export(archive, out, *arguments) == 130
    assert export(archive, out, *arguments) == 0
    assert len(rows_of(out)) == 5


def test_a_failed_refresh_is_repeated(archive: Path, tmp_path: Path, serve: Any, capsys: Any) -> None:
    out, server = tmp_path / "x.csv", serve(archive)
    arguments = ("--full", "--since", "last", "--method", "list")
    assert export(server.url, out, *arguments) == 0
    before = out.read_bytes()
    store(server.url, put(tmp_path / "new", 5))
    server.faults.add(fault("status", path="metadata$", status=404, times=1))
    assert export(server.url, out, *arguments) == 1
    assert out.read_bytes() == before
    assert export(server.url, out, *arguments) == 0
    assert len(rows_of(out)) == 9


def test_a_folder_gets_parts_and_says_which_are_the_latest(archive: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "x.parquet"
    arguments = ("--level", "study", "--since", "last", "--partition-by", "StudyDate")
    assert export(archive, out, *arguments) == 0
    put(archive, 2, 2, 2)
    put(archive, 5)
    with monkeypatch.context() as patched:
        patched.setattr("dicomweb_io.changes.PlaceFile.write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert export(archive, out, *arguments) == 130
    assert export(archive, out, *arguments) == 0
    assert sum(1 for path in out.rglob("*.parquet")) == 6
    latest = f"""
        SELECT StudyInstanceUID, NumberOfStudyRelatedInstances
        FROM read_parquet('{out}/**/*.parquet', hive_partitioning = true)
        QUALIFY exported_at = max(exported_at) OVER (PARTITION BY StudyInstanceUID) ORDER BY 1
    """
    assert duckdb.sql(latest).fetchall() == [("1.2.1", 3), ("1.2.2", 4), ("1.2.3", 3), ("1.2.4", 3), ("1.2.5", 1)]


def test_a_refresh_since_a_day(archive: Path, tmp_path: Path, serve: Any) -> None:
    out, url = tmp_path / "x.csv", serve(archive).url
    assert export(url, out, "--level", "study", "--since", "2024-01-03") == 0
    # A day is added for time zones.
    assert sorted(row["StudyInstanceUID"] for row in rows_of(out)) == ["1.2.2", "1.2.3"]


def test_a_listing_that_stays_incomplete_is_told_each_time(archive: Path, tmp_path: Path, serve: Any) -> None:
    server, method = serve(archive), ("--method", "list")
    assert export(server.url, tmp_path / "x.csv", "--since", "last", *method) == 0
    server.faults.add(fault("lying_total", path="studies$", times=None, difference=3))
    assert [export(server.url, tmp_path / "x.csv", "--since", "last", *method) for _ in range(2)] == [1, 1]
    server.faults.add(fault("lying_total", path="instances$", times=None, difference=3))
    watch = ["watch", server.url, str(tmp_path / "mirror"), "--cursor", str(tmp_path / "cursor"), "--once", *method]
    assert [main(watch) for _ in range(2)] == [1, 1]


def test_a_refresh_needs_its_table(archive: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "x.csv"
    assert export(archive, out, "--since", "last") == 0
    put(archive, 5)
    assert export(archive, out, "--since", "last", "--columns", "StudyInstanceUID,Modality") == 2
    assert "has other columns" in capsys.readouterr().err
    assert export(archive, out, "--since", "last", "--filter", "Modality=CT") == 2
    assert "use another file" in capsys.readouterr().err
    assert export(archive, out, "--since", "2024-01-01", "--filter", "Modality=CT") == 2
    assert "use another file" in capsys.readouterr().err
    assert export(archive, tmp_path / "other.csv", "--since", "last", "--cursor", f"{out}.cursor") == 2
    assert "other table" in capsys.readouterr().err
    out.unlink()
    assert export(archive, out, "--since", "last") == 2
    assert "remove that file" in capsys.readouterr().err


def test_a_refresh_keeps_the_types(archive: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "x.parquet"
    assert export(archive, out, "--since", "last") == 0
    put(archive, 5)
    assert export(archive, out, "--since", "last", "--typed-dates") == 2
    assert "StudyDate string" in capsys.readouterr().err


def test_a_refresh_keeps_what_a_row_is(archive: Path, tmp_path: Path, capsys: Any) -> None:
    out, columns = tmp_path / "x.csv", ("--columns", f"StudyInstanceUID,{STEP}", "--since", "last")
    assert export(archive, out, *columns) == 0
    assert export(archive, out, *columns, "--explode", STEP.partition(".")[0]) == 2
    assert "other explode" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_table_is_not_refreshed(archive: Path, tmp_path: Path, capsys: Any, kind: str) -> None:
    out = tmp_path / f"x.{kind}"
    assert export(archive, out, "--since", "last") == 0
    content = out.read_bytes()
    put(archive, 5)
    for damaged in (content[: len(content) * 2 // 3], b"\0\xff garbage", content + b'"1.2"'):
        out.write_bytes(damaged)
        assert export(archive, out, "--since", "last") == 2
        assert "damaged" in capsys.readouterr().err
        assert out.read_bytes() == damaged
    out.write_bytes(content)
    assert export(archive, out, "--since", "last") == 0
    assert len(rows_of(out)) == 9


def test_long_cells_are_read_again(tmp_path: Path) -> None:
    with TableWriter(str(tmp_path / "x.csv"), [column_of("PatientComments")]) as table:
        table.write({"PatientComments": "y" * 200_000})
    assert [len(row["PatientComments"]) for row in read_table(str(tmp_path / "x.csv"), "csv")] == [200_000]


def test_what_a_killed_run_leaves_is_removed_by_the_next_one(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    script = f"""
import os
from dicomweb_io import cli, table_files
table_files.TableWriter._publish = lambda self: os.kill(os.getpid(), 9)
cli.main(["export", "table", {str(archive)!r}, "--out", {str(out)!r}])
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 2
    assert export(archive, out) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "x.csv"]


def test_two_refreshes_at_once_take_turns(archive: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out, steps, others = tmp_path / "x.csv", list[str](), list[threading.Thread]()
    assert export(archive, out, "--since", "last") == 0

    def other() -> None:
        assert run_table(TableJob(Endpoint(str(archive)), "series", str(out), since="last"))["failed"] == 0

    def slow_publish(*arguments: Any) -> Any:
        if not others:
            others.append(threading.Thread(target=other))
            others[0].start()
            others[0].join(0.3)
        return publish(*arguments)

    for name in ("plan_refresh", "conclude"):
        step = getattr(tables, name)
        monkeypatch.setattr(tables, name, lambda *given, step=step, name=name: (steps.append(name), step(*given))[1])
    monkeypatch.setattr(tables, "publish", slow_publish)
    put(archive, 5)
    assert export(archive, out, "--since", "last") == 0
    others[0].join()
    assert steps == ["plan_refresh", "conclude"] * 2
    assert len(rows_of(out)) == 9


def test_the_latest_rows_are_the_latest_whatever_the_clock_says(
    archive: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    out, moments = tmp_path / "x.jsonl", []
    for clock in (2e9, 1.5e9, 1.6e9):
        monkeypatch.setattr(
            tables, "time", SimpleNamespace(time=lambda now=clock: now, monotonic=time_module.monotonic)
        )
        put(archive, 5, 1, len(moments) + 1)
        assert export(archive, out, "--level", "study", "--rows-per-file", 100, "--since", "last") == 0
        rows = [row for path in out.iterdir() for row in rows_of(path) if row["StudyInstanceUID"] == "1.2.5"]
        latest = max(rows, key=lambda row: row["exported_at"])
        moments.append(latest["NumberOfStudyRelatedInstances"])
    assert moments == [1, 2, 3]


def test_nothing_new_changes_nothing(archive: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "x.parquet"
    assert export(archive, out, "--since", "last") == 0
    before = out.stat()
    assert export(archive, out, "--since", "last") == 0
    assert out.stat().st_ino == before.st_ino
    assert "Nothing is new" in capsys.readouterr().err


# For programs ---------------------------------------------------------------------------------------------------------


def test_rows_for_programs(source: str) -> None:
    rows = iter_table(source, "study", ["PatientID", "StudyDate"], search_filters={"PatientID": "P2"}, typed_dates=True)
    assert list(rows) == [{"PatientID": "P2", "StudyDate": date(2024, 1, 2)}]


def test_a_row_that_fails_is_an_error(archive: Path, serve: Any) -> None:
    rows = iter_table(serve(archive, faults=[fault("lying_total", times=None, difference=3)]).url, "study")
    with pytest.raises(DICOMError):
        list(rows)


def test_a_job_runs_without_a_command_line(archive: Path, tmp_path: Path) -> None:
    summary = run_table(TableJob(Endpoint(str(archive)), "study", str(tmp_path / "x.parquet")))
    assert (summary["found"], summary["failed"]) == (4, 0)


def test_the_queries_of_the_page_of_the_command_line(archive: Path, tmp_path: Path, monkeypatch: Any) -> None:
    text = (Path(__file__).parents[2] / "docs/command-line.md").read_text(encoding="utf-8")
    months, latest = re.findall(r"^```sql\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    assert export(archive, Path("series.parquet"), "--typed-dates") == 0
    counts = [("2024-01", "CT", 3, 6), ("2024-01", "MR", 3, 3), (None, "CT", 1, 2), (None, "MR", 1, 1)]
    assert duckdb.sql(months).fetchall() == counts
    for instance in (1, 2, 3):
        put(archive, 3, 1, instance)
        arguments = ("--level", "study", "--partition-by", "StudyDate", "--since", "last")
        assert export(archive, Path("parts.parquet"), *arguments) == 0
    wanted = latest.replace("* EXCLUDE exported_at", "StudyInstanceUID, NumberOfStudyRelatedInstances")
    assert sorted(duckdb.sql(wanted).fetchall()) == [("1.2.1", 3), ("1.2.2", 3), ("1.2.3", 4), ("1.2.4", 3)]
    assert "exported_at" not in duckdb.sql(latest).columns
