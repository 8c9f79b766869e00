"""What becomes of rows: every sink and converter of Beam that takes rows with a schema takes ours."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from datetime import date

import apache_beam as beam
import fastavro
import pyarrow.parquet
import pytest
from apache_beam.io.gcp import bigquery_schema_tools, bigquery_tools
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.typehints.schemas import typing_to_runner_api
from apache_beam.yaml.yaml_transform import YamlTransform

from dicomweb_io.elements import Failure, Resource, StoredInstance
from dicomweb_io.testing.faults import JSONFault
from dicomweb_io.testing.server.behaviour import Limits
from dicomweb_io.testing.server.behaviours import behaviour_of
from dicomweb_io.transforms import (
    AsRows,
    RetrieveMetadata,
    SearchForInstances,
    SearchForSeries,
    SearchForStudies,
    bigquery_schema,
)
from dicomweb_io.transforms._core import Problem, reported
from dicomweb_io.transforms.rows import ROW_ELEMENTS, bigquery_schema_of

COLUMNS = [
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "PatientName",
    "ModalitiesInStudy",
    "PatientSize",
    "PatientAge",
]
WANTED = {
    "StudyInstanceUID": "1.2",
    "StudyDate": "2024-02-29",
    "StudyTime": "10:11:12",
    "PatientName": "Doe^J",
    "ModalitiesInStudy": ["CT", "SR"],
    "PatientSize": 1.8,
    "PatientAge": None,
}
DATASET = {
    "0020000D": {"vr": "UI", "Value": ["1.2"]},
    "00080020": {"vr": "DA", "Value": ["20240229"]},
    "00080030": {"vr": "TM", "Value": ["101112"]},
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^J"}]},
    "00080061": {"vr": "CS", "Value": ["CT", "SR"]},
    "00101020": {"vr": "DS", "Value": [1.8]},
}
NOTHING = {name: [] if name == "ModalitiesInStudy" else None for name in WANTED}


def pipeline():
    return beam.Pipeline(runner="FnApiRunner")


def datasets(p):
    return p | "Datasets" >> beam.Create([DATASET, {}]) | AsRows(COLUMNS)


def written(directory, read):
    return sorted(
        (row for path in directory.glob("rows*") for row in read(path)), key=lambda row: str(row["StudyDate"])
    )


def json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def parquet_rows(path):
    return pyarrow.parquet.read_table(path).to_pylist()


def avro_rows(path):
    with path.open("rb") as file:
        return list(fastavro.reader(file))


SINKS = {
    "Json": (beam.io.WriteToJson, json_lines),
    "Parquet": (beam.io.WriteToParquet, parquet_rows),
    "Avro": (beam.io.WriteToAvro, avro_rows),
}


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("in_yaml", [False, True])
def test_files_have_the_rows(tmp_path, sink, in_yaml):
    write, read = SINKS[sink]
    path = str(tmp_path / "rows")
    with pipeline() as p:
        step = f"{{type: WriteTo{sink}, config: {{path: '{path}'}}}}"
        _ = datasets(p) | (YamlTransform(step) if in_yaml else write(path))
    assert written(tmp_path, read) == [WANTED, NOTHING]


def test_parquet_takes_dicts_with_a_schema_of_arrow_too(tmp_path):
    schema = pyarrow.schema([("StudyInstanceUID", pyarrow.string()), ("StudyDate", pyarrow.string())])
    with pipeline() as p:
        rows = p | beam.Create([DATASET]) | AsRows(["StudyInstanceUID", "StudyDate"])
        _ = rows | beam.Map(lambda row: row._asdict()) | beam.io.WriteToParquet(str(tmp_path / "rows"), schema)
    assert written(tmp_path, parquet_rows) == [{"StudyInstanceUID": "1.2", "StudyDate": "2024-02-29"}]


def test_dates_as_beam_has_them():
    rows = datasets(beam.Pipeline()).element_type
    typed = (beam.Pipeline() | beam.Create([DATASET]) | AsRows(COLUMNS, typed_dates=True)).element_type
    dates = [typing_to_runner_api(kind).row_type.schema.fields[1].type.logical_type.urn for kind in (rows, typed)]
    assert dates == ["", "beam:logical_type:date:v1"]


@pytest.mark.parametrize("typed_dates", [False, True])
def test_bigquery_takes_the_rows(typed_dates):
    """Beam's own writers of load files take them, and Beam reads the schema back as the types of the rows."""
    columns = AsRows(COLUMNS, typed_dates=typed_dates)
    schema = bigquery_schema(beam.Pipeline() | beam.Create([DATASET]) | columns)
    assert bigquery_schema_of(columns.columns) == schema
    assert {field["name"]: (field["type"], field["mode"]) for field in schema["fields"]} == {
        "StudyInstanceUID": ("STRING", "NULLABLE"),
        "StudyDate": ("DATE" if typed_dates else "STRING", "NULLABLE"),
        "StudyTime": ("STRING", "NULLABLE"),
        "PatientName": ("STRING", "NULLABLE"),
        "ModalitiesInStudy": ("STRING", "REPEATED"),
        "PatientSize": ("FLOAT", "NULLABLE"),
        "PatientAge": ("STRING", "NULLABLE"),
    }
    day = date(2024, 2, 29) if typed_dates else "2024-02-29"
    row = WANTED | {"StudyDate": day}
    lines, avro = io.BytesIO(), io.BytesIO()
    json_writer = bigquery_tools.JsonRowWriter(lines)
    json_writer.write(row)
    json_writer.flush()
    assert json.loads(lines.getvalue()) == WANTED
    writer = bigquery_tools.AvroRowWriter(avro, schema)
    writer.write(row)
    writer.flush()
    assert list(fastavro.reader(io.BytesIO(avro.getvalue()))) == [row]
    overrides = {"DATE": date, "INTEGER": int, "FLOAT": float}
    read = bigquery_schema_tools.generate_user_type_from_bq_schema(schema, type_overrides=overrides)
    ours = typing_to_runner_api(columns_type(columns))
    assert [(f.name, f.type) for f in typing_to_runner_api(read).row_type.schema.fields] == [
        (f.name, f.type) for f in ours.row_type.schema.fields
    ]


def columns_type(transform):
    return (beam.Pipeline() | beam.Create([DATASET]) | transform).element_type


@pytest.mark.parametrize("element_type", ROW_ELEMENTS)
def test_rows_of_elements_have_schemas_for_parquet_and_bigquery(element_type, tmp_path):
    p = pipeline()
    rows = p | beam.Create([]) | AsRows(element_type=element_type)
    assert bigquery_schema(rows)["fields"]
    _ = rows | beam.io.WriteToParquet(str(tmp_path / "rows"))
    p.run()


def test_rows_of_results_are_written(tmp_path):
    stored = StoredInstance(Resource("1.2", "1.3", "1.4"), size=5, warnings=("w",))
    with pipeline() as p:
        rows = p | beam.Create([stored]) | AsRows(element_type=StoredInstance)
        _ = rows | "Parquet" >> beam.io.WriteToParquet(str(tmp_path / "a"))
        failed = p | "F" >> beam.Create([Failure("T", "m", rows=(1, 2))]) | "FR" >> AsRows(element_type=Failure)
        _ = failed | beam.io.WriteToJson(str(tmp_path / "b"))
    (row,) = parquet_rows(next(tmp_path.glob("a*")))
    assert (row["sop_instance_uid"], row["size"], row["warnings"], row["frames"]) == ("1.4", 5, ["w"], [])
    (line,) = json_lines(next(tmp_path.glob("b*")))
    assert (line["transform"], line["first_row"], line["study_instance_uid"]) == ("T", 1, None)


@pytest.mark.parametrize("how", ["raise", "collect", "distinct", "split", "elements"])
def test_every_form_of_a_search_gives_rows_that_are_written(archive, tmp_path, how):
    options = {"collect": {"failures": "collect"}, "distinct": {"distinct": True}, "split": {"split_by": "StudyDate"}}
    columns = ["StudyInstanceUID", "StudyDate", "StudyTime", "PatientName"]
    with pipeline() as p:
        if how == "elements":
            studies = p | SearchForStudies(archive)
            rows = studies | SearchForSeries(archive, columns=columns)
        else:
            rows = p | SearchForStudies(archive, columns=columns, **options.get(how, {}))
        rows = rows.rows if how == "collect" else rows
        _ = rows | beam.io.WriteToParquet(str(tmp_path / "rows"))
    found = [row for path in tmp_path.glob("rows*") for row in parquet_rows(path)]
    assert found
    assert all(date.fromisoformat(row["StudyDate"]) for row in found)


class LoneSurrogates(JSONFault):
    """Half of a character in a text of each row."""

    def apply(self, content):
        """Each row with other comments and a private attribute."""
        extra = rb'"00204000": {"vr": "LT", "Value": ["half \ud800"]}, "00091001": {"vr": "LO", "Value": ["\udc00"]}, '
        return re.sub(rb'\{(?="[0-9A-F]{8}")', lambda match: match[0] + extra, content)


@pytest.mark.parametrize("cap", [7, 1000])
def test_a_lone_surrogate_of_a_server_stops_no_pipeline(serve, archive, tmp_path, caplog, cap):
    caps = Limits(cap, cap, cap)
    behaviour = replace(behaviour_of("generic"), max_limit=caps, default_limit=caps)
    server = serve(archive, behaviour=behaviour, faults=[LoneSurrogates(times=None)])
    path = str(tmp_path / "rows")
    with pipeline() as p:
        rows = p | SearchForInstances(server.url)
        found = rows | beam.Reshuffle() | beam.Map(lambda row: row["00204000"]["Value"] + row["00091001"]["Value"])
        assert_that(found, equal_to([["half \ufffd", "\ufffd"]] * 60), label="rows")
        metadata = p | SearchForStudies(server.url) | RetrieveMetadata(server.url)
        texts = metadata | "Spread" >> beam.Reshuffle() | "Take" >> beam.Map(lambda row: row["00204000"]["Value"])
        assert_that(texts, equal_to([["half \ufffd"]] * 60), label="metadata")
        typed = p | "Typed" >> SearchForInstances(server.url, columns=["SOPInstanceUID", "ImageComments"])
        _ = typed | "ReshuffleTyped" >> beam.Reshuffle() | beam.io.WriteToParquet(path)
    comments = [row["ImageComments"] for file in tmp_path.glob("rows*") for row in parquet_rows(file)]
    assert comments == ["half \ufffd"] * 60
    assert "half" not in caplog.text


def test_texts_of_elements_and_failures_are_encodable():
    failure = Failure("Search", "answered \ud800", source="a\udcff.dcm", server_message="\udfff")
    given = reported(Problem(failure), collect=True).value
    assert given == replace(failure, message="answered \ufffd", server_message="\ufffd")
    plain = Failure("Search", "answered")
    assert reported(Problem(plain), collect=True).value is plain
    with pipeline() as p:
        rows = p | beam.Create([failure]).with_output_types(Failure) | AsRows() | beam.Reshuffle()
        assert_that(
            rows | beam.Map(lambda row: (row.message, row.source, row.server_message)),
            equal_to([("answered \ufffd", "a\ufffd.dcm", "\ufffd")]),
        )
