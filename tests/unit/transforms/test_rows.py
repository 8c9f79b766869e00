"""Typed rows of searches and of elements."""

from __future__ import annotations

import json
from datetime import date, datetime, time, timedelta, timezone
from typing import Optional, Sequence  # noqa: UP035 - the forms that Beam's schemas give back

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, strategies as st

from dicomweb_io.dicom.columns import Column, RowMaker, Step, column_of, columns_of
from dicomweb_io.dicom.values import iso_date, iso_date_time, iso_time
from dicomweb_io.elements import Failure, Instance, Resource, StoredInstance
from dicomweb_io.transforms import AsRows, SearchForInstances, bigquery_schema
from dicomweb_io.transforms.rows import ROW_ELEMENTS, cells_of, row_type

ROW = {
    "00080020": {"vr": "DA", "Value": ["20240229"]},
    "00080030": {"vr": "TM", "Value": ["101112.25"]},
    "0008002A": {"vr": "DT", "Value": ["202402291011+0130"]},
    "00080008": {"vr": "CS", "Value": ["ORIGINAL", None, "AXIAL"]},
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^J", "Ideographic": "X"}]},
    "00200013": {"vr": "IS", "Value": ["7"]},
    "00280010": {"vr": "US", "Value": [512]},
    "00280030": {"vr": "DS", "Value": [0.5, "0.25"]},
    "00400275": {
        "vr": "SQ",
        "Value": [{"00400009": {"vr": "SH", "Value": ["A"]}}, {}, {"00400009": {"vr": "SH", "Value": ["B"]}}],
    },
    "00091001": {"vr": "LO", "Value": ["private"]},
}
COLUMNS = {
    "StudyDate": "2024-02-29",
    "StudyTime": "10:11:12.250000",
    "AcquisitionDateTime": "2024-02-29T10:11+01:30",
    "ImageType": ["ORIGINAL", "", "AXIAL"],
    "PatientName": "Doe^J=X",
    "InstanceNumber": 7,
    "Rows": 512,
    "PixelSpacing": [0.5, 0.25],
    "RequestAttributesSequence.ScheduledProcedureStepID": ["A", "B"],
    "00091001": "private",
}
NAMES = [
    *list(COLUMNS)[:-2],
    "RequestAttributesSequence_ScheduledProcedureStepID",
    "tag_00091001",
]


@pytest.mark.parametrize("attribute", COLUMNS)
def test_values_have_the_type_of_their_attribute(attribute):
    assert column_of(attribute).cell(ROW) == (COLUMNS[attribute], True)
    empty = [] if column_of(attribute).many else None
    for row in ({}, {column_of(attribute).path[0]: {"vr": "LO"}}, {column_of(attribute).path[0]: {"Value": [None]}}):
        if attribute != "ImageType":
            assert column_of(attribute).cell(row) == (empty, True)


@pytest.mark.parametrize(
    ("attribute", "values", "cell"),
    [
        ("StudyDate", ["2024.02.29"], ("2024-02-29", True)),
        ("StudyDate", ["20240230"], (None, False)),
        ("StudyDate", [20240229], (None, False)),
        ("StudyDate", ["20240229", "20240301"], ("2024-02-29", False)),
        ("StudyTime", ["10:11:12"], ("10:11:12", True)),
        ("StudyTime", ["1011"], ("10:11", True)),
        ("StudyTime", ["101112.000000"], ("10:11:12", True)),
        ("StudyTime", ["2460"], (None, False)),
        ("AcquisitionDateTime", ["2024"], ("2024", True)),
        ("AcquisitionDateTime", ["20240229101112.5"], ("2024-02-29T10:11:12.500000", True)),
        ("AcquisitionDateTime", ["20241301"], (None, False)),
        ("DateOfLastCalibration", ["20240229", "x", None], (["2024-02-29", "", ""], False)),
        ("InstanceNumber", ["seven"], (None, False)),
        ("InstanceNumber", [1.5], (None, False)),
        ("InstanceNumber", [3.0], (3, True)),
        ("InstanceNumber", [1, 2], (1, False)),
        ("InstanceNumber", [2**63], (None, False)),
        ("PatientID", ["A", "B"], ("A\\B", True)),
        ("PatientID", [17], ("17", True)),
        ("PixelSpacing", [1, "x", None], ([1.0], False)),
        ("PixelSpacing", [True], ([], False)),
        ("Rows", [""], (None, True)),
        ("PixelSpacing", [None, 0.5], ([0.5], False)),
        ("PixelSpacing", [None, None], ([], True)),
        ("PixelSpacing", ["NaN", float("inf")], ([], False)),
        ("PatientWeight", ["1e400"], (None, False)),
        ("PatientName", [{}], (None, True)),
        ("PatientName", [{"Alphabetic": ""}], (None, True)),
    ],
)
def test_values_of_another_type(attribute, values, cell):
    column = column_of(attribute)
    assert column.cell({column.path[0]: {"vr": "XX", "Value": values}}) == cell


ITEMS = [{"00400009": {"vr": "SH", "Value": ["A"]}}, {"00400009": {"vr": "SH", "Value": ["B"]}}]
STEPS = "RequestAttributesSequence.ScheduledProcedureStepID"
NESTED = {
    "00400275": {"vr": "SQ", "Value": ITEMS},
    "0009000F": {"vr": "LO", "Value": ["OTHER 1"]},
    "00090011": {"vr": "LO", "Value": ["GEMS_IDEN_01 "]},
    "00091104": {"vr": "UN", "InlineBinary": "U0lHTkEg"},
    "00091130": {"vr": "SH", "Value": ["x"]},
    "00091001": {"vr": "LO", "Value": ["p", "q"]},
}


@pytest.mark.parametrize(
    ("attribute", "name", "cell"),
    [
        (STEPS, "RequestAttributesSequence_ScheduledProcedureStepID", (["A", "B"], True)),
        (STEPS.replace(".", "[1]."), "RequestAttributesSequence_1_ScheduledProcedureStepID", ("B", True)),
        (STEPS.replace(".", "[7]."), "RequestAttributesSequence_7_ScheduledProcedureStepID", (None, True)),
        (
            "RequestAttributesSequence",
            "RequestAttributesSequence",
            (json.dumps(ITEMS, separators=(",", ":"), sort_keys=True), True),
        ),
        ("00091001", "tag_00091001", ("p\\q", True)),
        ('(0009,"GEMS_IDEN_01",04)', "tag_0009_GEMS_IDEN_01_04", ("SIGNA", True)),
        ("(0009,GEMS_IDEN_01,xx30)", "tag_0009_GEMS_IDEN_01_30", ("x", True)),
        ('(0009,"OTHER 1",10)', "tag_0009_OTHER_1_10", (None, True)),
        ("00091104", "tag_00091104", (None, False)),
    ],
)
def test_paths_items_and_private_attributes(attribute, name, cell):
    column = column_of(attribute)
    assert (column.name, column.cell(NESTED)) == (name, cell)


def test_each_item_becomes_a_row():
    columns = columns_of(["PatientID", STEPS], exploded="RequestAttributesSequence")
    maker = RowMaker(columns, "RequestAttributesSequence")
    patient = {"00100020": {"vr": "LO", "Value": ["p"]}}
    rows = [*maker.rows(NESTED | patient), *maker.rows(patient)]
    assert [tuple(row.values()) for row in rows] == [("p", "A"), ("p", "B"), ("p", None)]
    with pytest.raises(ValueError, match="is no sequence of a dataset"):
        columns_of(["PatientID"], exploded="PatientID")


def test_times_are_times_if_asked_for():
    column = column_of("StudyTime", typed_times=True)
    cells = [column.cell({"00080030": {"Value": [text]}}) for text in ("101112.25", "1011", "235960", "x")]
    assert cells == [(time(10, 11, 12, 250000), True), (time(10, 11), True), (None, False), (None, False)]


def test_dates_are_dates_if_asked_for():
    columns = columns_of(["StudyDate", "StudyTime", "DateOfLastCalibration"], typed_dates=True)
    row = ROW | {"00181200": {"vr": "DA", "Value": ["20240301", "x"]}}
    cells = [column.cell(row) for column in columns]
    assert cells == [(date(2024, 2, 29), True), ("10:11:12.250000", True), ([date(2024, 3, 1)], False)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=2),
    max_leaves=6,
)


@given(st.sampled_from(list(COLUMNS)), st.booleans(), json_values, json_values)
def test_a_cell_has_its_type_whatever_an_archive_sends(attribute, typed_dates, one, other):
    column = column_of(attribute, typed_dates=typed_dates)
    for row in ({column.path[0]: {"Value": [one, other]}}, {column.path[0]: one}):
        value, _ = column.cell(row)
        for item in value if column.many else [value]:
            assert item is None or type(item) is column.kind


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ("PatientID", TypeError, "not one str"),
        ([], ValueError, "columns is empty"),
        (["PatientI"], ValueError, "did you mean 'PatientID'"),
        (["PixelData"], ValueError, "binary"),
        (["PatientID[0]"], ValueError, "takes an item of a sequence"),
        (["RequestAttributesSequence[x].StudyDate"], ValueError, "is no attribute"),
        (['(0009,"",10)'], ValueError, "is no attribute"),
        (['(0010,"ACME",10)'], ValueError, "private groups are odd"),
        (["PatientID", "00100020"], ValueError, "more than once"),
        (["PatientID.StudyDate"], ValueError, "PatientID is no sequence"),
        ([0o100020], TypeError, "text of a keyword"),
    ],
)
def test_impossible_columns(columns, error, message):
    with pytest.raises(error, match=message):
        columns_of(columns)


def test_the_schema_has_the_types():
    names = ["StudyDate", "PixelSpacing", "InstanceNumber", "PatientName"]
    assert dict(row_type(columns_of(names))._fields)["StudyDate"] == Optional[str]  # noqa: UP045
    schema = dict(row_type(columns_of(names, typed_dates=True))._fields)
    assert schema == {
        "StudyDate": Optional[date],  # noqa: UP045
        "PixelSpacing": Sequence[float],
        "InstanceNumber": Optional[int],  # noqa: UP045
        "PatientName": Optional[str],  # noqa: UP045
    }


@pytest.mark.parametrize(
    "options",
    [["--runner=FnApiRunner"], ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"]],
)
def test_rows_keep_their_values_through_shuffles(options):
    stored = StoredInstance(Resource("1.2", "1.3", "1.4"), size=5)
    failures = [Failure("T", "m", rows=(3, 9)), Failure("T", "m", reference=Resource("1.2"), status=404)]
    with beam.Pipeline(options=PipelineOptions(options)) as p:
        rows = p | beam.Create([ROW, {}]) | AsRows(list(COLUMNS))
        shuffled = rows | beam.Reshuffle() | beam.Map(lambda row: [getattr(row, name) for name in NAMES])
        empty = [[] if isinstance(value, list) else None for value in COLUMNS.values()]
        assert_that(shuffled, equal_to([list(COLUMNS.values()), empty]), label="datasets")
        # Beam groups by a field of the schema.
        counts = rows | beam.GroupBy("InstanceNumber").aggregate_field("Rows", beam.combiners.CountCombineFn(), "n")
        assert_that(
            counts | beam.Map(lambda row: (row.InstanceNumber, row.n)), equal_to([(7, 1), (None, 1)]), label="by"
        )
        told = p | "F" >> beam.Create(failures).with_output_types(Failure) | "FR" >> AsRows()
        told = (
            told
            | "FS" >> beam.Reshuffle()
            | "FM" >> beam.Map(lambda row: (row.first_row, row.end_row, row.study_instance_uid, row.status))
        )
        assert_that(told, equal_to([(3, 9, None, None), (None, None, "1.2", 404)]), label="failures")
        kept = p | "S" >> beam.Create([stored]) | "SR" >> AsRows(element_type=StoredInstance)
        kept = kept | "SM" >> beam.Map(lambda row: (row.sop_instance_uid, list(row.frames), row.outcome, row.size))
        assert_that(kept, equal_to([("1.4", [], "stored", 5)]), label="stored")


def test_every_element_class_has_columns_with_values():
    reference = Resource("1.2", "1.3", "1.4")
    cells = {name: take(Instance(reference, "1.2.3", content=b"x")) for name, _, take in cells_of(Instance)}
    assert cells == {
        "study_instance_uid": "1.2",
        "series_instance_uid": "1.3",
        "sop_instance_uid": "1.4",
        "frames": [],
        "transfer_syntax_uid": "1.2.3",
        "content": b"x",
        "path": None,
        "sop_class_uid": None,
        "warnings": [],
    }
    for element_type in ROW_ELEMENTS:
        names = [name for name, _, _ in cells_of(element_type)]
        assert len(set(names)) == len(names)


def test_what_cannot_become_rows_is_told_when_the_pipeline_is_built():
    p = beam.Pipeline(runner="FnApiRunner")
    with pytest.raises(TypeError, match="give columns for datasets"):
        _ = p | beam.Create([{}]) | AsRows()
    instances = p | "I" >> beam.Create([]).with_output_types(Instance)
    for number, wrong in enumerate((instances, instances | "Typed" >> AsRows())):
        with pytest.raises(TypeError, match="columns are for datasets"):
            _ = wrong | str(number) >> AsRows(["Rows"])
    with pytest.raises(ValueError, match="give one of them"):
        AsRows(["PatientID"], element_type=Failure)
    with pytest.raises(ValueError, match="element_type must be one of"):
        AsRows(element_type=int)
    with pytest.raises(ValueError, match="typed_dates is for columns"):
        AsRows(element_type=Failure, typed_dates=True)
    with pytest.raises(TypeError, match="rows with a schema"):
        bigquery_schema(p | "Plain" >> beam.Create([{}]))


def test_a_search_gives_typed_rows(serve, archive):
    server = serve(archive)
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | SearchForInstances(server.url, columns=["SOPInstanceUID", "InstanceNumber", "Rows", "StudyDate"])
        seen = rows | beam.Map(lambda row: (type(row.SOPInstanceUID), row.InstanceNumber, type(row.Rows)))
        assert_that(seen, equal_to([(str, number, int) for number in range(1, 11)] * 6))
        assert [name for name, _ in rows.element_type._fields] == [
            "SOPInstanceUID",
            "InstanceNumber",
            "Rows",
            "StudyDate",
        ]
    assert "includefield=" in server.records[0].query


def test_columns_are_pure_data():
    assert column_of("PatientName") == Column("PatientName", (Step("00100010"),), str, False, "PN")


OFFSET = timezone(timedelta(hours=1, minutes=30))


@given(st.datetimes(min_value=datetime(1000, 1, 1)), st.sampled_from([2, 4, 6, 8, 10, 12, 14]), st.booleans())
def test_times_as_text_are_those_that_python_reads(moment, length, with_minutes):
    """Whatever precision a value has, its text is ISO 8601 and means the same."""
    day, clock = moment.strftime("%Y%m%d").zfill(8), moment.strftime("%H%M%S.%f")
    assert iso_date(day) == iso_date(f"{day[:4]}.{day[4:6]}.{day[6:]}") == moment.date().isoformat()
    assert time.fromisoformat(iso_time(clock)) == moment.time()
    assert datetime.fromisoformat(iso_date_time(f"{day}{clock}+0130")) == moment.replace(tzinfo=OFFSET)
    given_part = (day + clock)[: max(length, 4)]
    text = iso_date_time(given_part)
    assert text.replace("-", "").replace(":", "").replace("T", "") == given_part
    part = clock[: 4 if with_minutes else 2]
    assert iso_time(part).replace(":", "") == part
    assert time.fromisoformat(iso_time(part)) == moment.time().replace(
        second=0, microsecond=0, **({} if with_minutes else {"minute": 0})
    )
