"""docs/pipelines.md: each pipeline is at most five lines over its imports, runs, and does what its heading says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import apache_beam as beam
import pyarrow.parquet
import pytest
from apache_beam.io.gcp import bigquery_tools
from PIL import Image

from dicomweb_io import DICOMfileClient
from dicomweb_io.testing.samples import make_study

TEXT = (Path(__file__).parents[3] / "docs/pipelines.md").read_text(encoding="utf-8")
PIPELINES = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE))
INSTANCES = 6


class WriteToBigQuery(beam.PTransform):
    """Takes what Beam's takes, and writes the lines of its load job to a file."""

    def __init__(self, table, schema):
        super().__init__()
        self.path, self.schema = table, bigquery_tools.get_dict_table_schema(schema)

    def expand(self, rows):
        def line(row):
            assert set(row) == {field["name"] for field in self.schema["fields"]}
            return json.dumps(row, default=bigquery_tools.default_encoder)

        return rows | "Line" >> beam.Map(line) | beam.io.WriteToText(self.path)


@pytest.fixture
def places(serve, tmp_path, monkeypatch):
    """The addresses of the page, and what is there in the test."""
    monkeypatch.setattr(beam.io, "WriteToBigQuery", WriteToBigQuery)
    make_study(tmp_path / "archive", studies=2, instances=3, size=200)
    make_study(tmp_path / "data/dicom", studies=2, instances=3, size=200, seed="new")
    for name in ("research", "data/png"):
        (tmp_path / name).mkdir()
    first = DICOMfileClient(tmp_path / "archive").search_for_studies()[0]
    (tmp_path / "data/accessions.csv").write_text(f"AccessionNumber\n{first['00080050']['Value'][0]}\n")
    return {
        "https://pacs.example/dicom-web": serve(tmp_path / "archive").url,
        "https://research.example/dicom-web": serve(tmp_path / "research").url,
        '"/data/': f'"{tmp_path}/data/',
        "gs://bucket/": f"{tmp_path}/bucket/",
        "project:dataset.": f"{tmp_path}/data/",
        "interval=60, max_polls=10": 'interval=0.05, max_polls=2, start="all"',
    }


def files(directory):
    return [path for path in sorted(directory.rglob("*")) if path.is_file() and ".dicomweb_io" not in path.parts]


def in_parquet(tmp_path, printed):
    rows = [
        row for path in tmp_path.glob("data/studies*.parquet") for row in pyarrow.parquet.read_table(path).to_pylist()
    ]
    assert [(row["StudyDate"], row["ModalitiesInStudy"]) for row in rows] == [("2026-01-02", ["CT"])] * 2


def in_bigquery(tmp_path, printed):
    rows = [json.loads(line) for path in tmp_path.glob("data/series*") for line in path.read_text().splitlines()]
    assert [row["Modality"] for row in rows] == ["CT"] * 2


def three_printed(tmp_path, printed):
    assert len(printed) == INSTANCES / 2


def stored(tmp_path, printed):
    assert [line.split()[1] for line in printed] == ["stored"] * INSTANCES


def in_bucket(tmp_path, printed):
    listed = [line for path in tmp_path.glob("bucket/written*") for line in path.read_text().split()]
    assert sorted(listed) == [str(path) for path in files(tmp_path / "bucket/studies")]
    assert len(files(tmp_path / "bucket/studies")) == INSTANCES


def processed(tmp_path, printed):
    assert len(printed) == INSTANCES
    assert all(line.endswith(" CT") for line in printed)


def copied(tmp_path, printed):
    assert len(files(tmp_path / "research")) == INSTANCES


def compared(tmp_path, printed):
    assert [(line.split()[0], line.split()[2]) for line in printed] == [("missing", str(INSTANCES // 2))] * 2


def rendered(tmp_path, printed):
    images = list(tmp_path.glob("data/png/*-1.png"))
    assert [Image.open(path).format for path in images] == ["PNG"] * INSTANCES


CHECKS = {
    "A search to Parquet": in_parquet,
    "A search to BigQuery": in_bigquery,
    "A list of accession numbers to instances": three_printed,
    "A folder to a server": stored,
    "A server to a bucket": in_bucket,
    "What arrives, processed": processed,
    "A filtered copy": copied,
    "Is the copy complete?": compared,
    "Frames to PNG": rendered,
}


def run(name, places, arguments):
    """Runs a pipeline of the page in these places, with these arguments of Beam."""
    code = PIPELINES[name]
    for told, here in places.items():
        code = code.replace(told, here)
    code = code.replace("beam.Pipeline()", f"beam.Pipeline(argv={arguments})")
    # The functions of an example belong to a module that workers need not import.
    exec(compile(code, name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("name", CHECKS)
def test_the_pipelines_run(name, places, tmp_path, capfd):
    run(name, places, ["--runner=FnApiRunner"])
    CHECKS[name](tmp_path, capfd.readouterr().out.splitlines())


def test_each_has_at_most_five_lines_over_its_imports():
    assert list(PIPELINES) == list(CHECKS)
    for name, code in PIPELINES.items():
        lines = [line for line in code.splitlines() if line and not line.startswith(("import ", "from "))]
        assert len(lines) <= 5, name
        assert max(map(len, lines)) <= 120, name
