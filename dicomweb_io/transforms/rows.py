"""`AsRows` and ``columns=``: typed rows with a schema, for SQL, YAML, other languages, and tables.

The elements of this package keep their classes, which schemas would lose (see `dicomweb_io.transforms.coders`). Where a
schema is wanted, this makes rows of them. Sinks that take rows need nothing more; for those that want a schema of
BigQuery's there is `bigquery_schema`.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from datetime import date, time
from typing import Any, Optional

import apache_beam as beam
from apache_beam.pvalue import Row, TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from dicomweb_io import elements
from dicomweb_io.account import ROW
from dicomweb_io.client import DICOMClient
from dicomweb_io.dicom.columns import Column, RowMaker, columns_of
from dicomweb_io.dicom.json_decode import dumps, encodable
from dicomweb_io.elements import JSONDataset, Resource, SearchLevel
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.failures import failure_of
from dicomweb_io.listing import resource_of_row
from dicomweb_io.pool import Room
from dicomweb_io.tables import TableJob, detailed
from dicomweb_io.transforms._core import FAILURES, DICOMwebTransform, FailingTransform, PooledDoFn
from dicomweb_io.transforms.metrics import count

ROW_ELEMENTS: tuple[type, ...] = (
    elements.Resource,
    elements.Instance,
    elements.Frame,
    elements.RenderedImage,
    elements.Bulkdata,
    elements.StoredInstance,
    elements.Difference,
    elements.Failure,
    elements.Exclusion,
)
"""The classes that `AsRows` can make rows of without `columns`."""


_BIGQUERY_TYPES = {
    str: "STRING",
    int: "INTEGER",
    float: "FLOAT",
    bool: "BOOLEAN",
    bytes: "BYTES",
    date: "DATE",
    time: "TIME",
}


class AsRows(beam.PTransform[Any, Any]):
    """Makes rows with a schema from elements, or from rows of searches and metadata.

    Every field of an element becomes a column; the fields of a reference follow the others (``study_instance_uid``,
    ``series_instance_uid``, ``sop_instance_uid``, ``frames``). A `Failure`'s ``rows`` become ``first_row`` and
    ``end_row``.

    For datasets in the DICOM JSON model, `columns` names the columns: numbers as numbers, person names as text
    (``Alphabetic=Ideographic=Phonetic``), dates and times as text in the form of ISO 8601 (``2024-02-29``,
    ``13:45:10.250000``, ``2024-02-29T13:45:10+01:00``, as precise as the archive gives them), attributes that may have
    several values as lists, sequences as JSON. What is absent is None or an empty list. Values that are not of their
    column's type are left out (a list of text keeps their place empty) and counted (metric ``unreadable_values``).

    Args:
        columns: For datasets: keywords, tags, private attributes such as ``(0009,"CREATOR",10)``, or dotted paths into
            sequences, of which ``[0]`` takes one item.
        typed_dates: Make dates `datetime.date`, a logical type of Beam. SQL and other languages know it; Parquet, Avro
            and Beam YAML do not. Times stay text, because Beam has no type for them in all languages.
        element_type: For elements: their class, where the collection has no type hint.

    Raises:
        TypeError, ValueError: If a column does not exist or cannot be one, both arguments are given, or the collection
            has neither datasets nor elements.
    """

    def __init__(
        self, columns: Sequence[str] | None = None, *, typed_dates: bool = False, element_type: type | None = None
    ) -> None:
        super().__init__()
        if columns is not None and element_type is not None:
            raise ValueError("columns are for datasets, element_type is for elements: give one of them")
        if element_type is not None and element_type not in ROW_ELEMENTS:
            raise ValueError(f"element_type must be one of {_names()}, not {element_type!r}")
        self.columns = chosen_columns(columns, typed_dates=typed_dates)
        self.element_type = element_type

    def expand(self, pcollection: Any) -> Any:
        """Builds the step."""
        if self.columns is not None:
            if pcollection.element_type in ROW_ELEMENTS or isinstance(pcollection.element_type, RowTypeConstraint):
                raise TypeError(
                    f"columns are for datasets in the DICOM JSON model, not for {pcollection.element_type}: take them "
                    f"from RetrieveMetadata or a search, or leave columns out"
                )
            return pcollection | "TakeColumns" >> beam.ParDo(TakeColumns(self.columns)).with_output_types(
                row_type(self.columns)
            )
        element_type = self.element_type or pcollection.element_type
        if element_type not in ROW_ELEMENTS:
            raise TypeError(
                f"AsRows cannot tell what to make of a collection of {element_type}: give columns for datasets, or the "
                f"element_type ({_names()})"
            )
        cells = cells_of(element_type)
        names = [name for name, _, _ in cells]
        takes = [take for _, _, take in cells]
        schema = RowTypeConstraint.from_fields([(name, kind) for name, kind, _ in cells])
        return pcollection | "TakeFields" >> beam.Map(
            lambda element: Row(**encodable({name: take(element) for name, take in zip(names, takes, strict=True)}))
        ).with_output_types(schema)


class TakeColumns(beam.DoFn):
    """Makes a row of a dataset.

    Args:
        columns: What the row has.
    """

    def __init__(self, columns: tuple[Column, ...]) -> None:
        self._columns = columns

    def process(self, element: JSONDataset) -> Iterator[Row]:
        """Yields the row."""
        maker = RowMaker(self._columns)
        for values in maker.rows(element):
            yield Row(**encodable(values))
        count("unreadable_values", maker.unreadable)


def chosen_columns(columns: Sequence[str] | None, *, typed_dates: bool) -> tuple[Column, ...] | None:
    """The columns that a transform was asked for, if any.

    Raises:
        TypeError, ValueError: If a column does not exist or cannot be one, or dates are to be typed without columns.
    """
    if columns is not None:
        return columns_of(columns, typed_dates=typed_dates)
    if typed_dates:
        raise ValueError("typed_dates is for columns: name them")
    return None


def row_type(columns: Sequence[Column]) -> Any:
    """The type hint of rows with these columns."""
    return RowTypeConstraint.from_fields(
        [(column.name, _sequence(column.kind) if column.many else _optional(column.kind)) for column in columns]
    )


def bigquery_schema(rows: Any) -> dict[str, list[dict[str, str]]]:
    """The schema of a table for rows, as `apache_beam.io.WriteToBigQuery` takes it, which wants the rows as dicts.

    Example: ``rows | beam.Map(lambda row: row._asdict()) | WriteToBigQuery(table, schema=bigquery_schema(rows))``

    Args:
        rows: The collection of rows, as `AsRows` and searches with ``columns=`` make them.

    Raises:
        TypeError: If it is no collection of such rows.
    """
    kind = getattr(rows, "element_type", None)
    if not isinstance(kind, RowTypeConstraint):
        raise TypeError(f"bigquery_schema needs a collection of rows with a schema, not of {kind}")
    return {"fields": [_bigquery_field(name, hint) for name, hint in kind._fields]}


def _bigquery_field(name: str, hint: Any) -> dict[str, str]:
    arguments = typing.get_args(hint)
    mode = "NULLABLE" if type(None) in arguments else "REPEATED" if arguments else "REQUIRED"
    return {"name": name, "type": _BIGQUERY_TYPES[arguments[0] if arguments else hint], "mode": mode}


def bigquery_schema_of(columns: Sequence[Column]) -> dict[str, list[dict[str, str]]]:
    """The schema of a table of BigQuery with these columns; see `bigquery_schema`."""
    return {
        "fields": [
            {
                "name": column.name,
                "type": _BIGQUERY_TYPES[column.kind],
                "mode": "REPEATED" if column.many else "NULLABLE",
            }
            for column in columns
        ]
    }


def _optional(kind: Any) -> Any:
    return Optional[kind]  # noqa: UP045 - made of a variable


def _sequence(kind: Any) -> Any:
    return typing.Sequence[kind]


Cell = tuple[str, Any, Callable[[Any], Any]]


def cells_of(element_type: type) -> list[Cell]:
    """The columns of an element class: name, type, and how to take the value."""
    hints = typing.get_type_hints(element_type)
    cells: list[Cell] = []
    for item in fields(element_type):  # type: ignore[arg-type, unused-ignore]
        hint = hints[item.name]
        absent = type(None) in typing.get_args(hint)
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)] if absent else [hint]
        kind = kinds[0]
        if kind is Resource:
            cells += [
                ("study_instance_uid", _optional(str) if absent else str, _Take(item.name, "study_instance_uid")),
                ("series_instance_uid", _optional(str), _Take(item.name, "series_instance_uid")),
                ("sop_instance_uid", _optional(str), _Take(item.name, "sop_instance_uid")),
                ("frames", _sequence(int), _Take(item.name, "frames", many=True)),
            ]
        elif item.name == "rows":
            cells.append(("first_row", _optional(int), _Take(item.name, index=0)))
            cells.append(("end_row", _optional(int), _Take(item.name, index=1)))
        elif typing.get_origin(kind) is tuple:
            cells.append((item.name, _sequence(typing.get_args(kind)[0]), _Take(item.name, many=True)))
        else:
            plain = str if typing.get_origin(kind) is typing.Literal else kind
            cells.append((item.name, _optional(plain) if absent else plain, _Take(item.name)))
    return cells


class _Take:
    """Takes a field, or a field of a field; a tuple as a list, or one item of it."""

    def __init__(self, *names: str, many: bool = False, index: int | None = None) -> None:
        self._names = names
        self._many = many
        self._index = index

    def __call__(self, element: Any) -> Any:
        value = element
        for name in self._names:
            value = None if value is None else getattr(value, name)
        if self._many:
            return list(value or ())
        return value if self._index is None or value is None else value[self._index]


def _names() -> str:
    return ", ".join(kind.__name__ for kind in ROW_ELEMENTS)


# Tables ---------------------------------------------------------------------------------------------------------------


@beam.typehints.with_input_types(dict[str, Any])
class AddMetadata(DICOMwebTransform):
    """Gives rows of searches what the metadata of one of their instances have; see `dicomweb_io.tables.detailed`.

    Args:
        job: The table.
    """

    def __init__(self, job: TableJob) -> None:
        super().__init__(job.source, failures="collect")
        self._level = job.level

    def expand(self, rows: Any) -> tuple[Any, Any]:
        """Builds the steps."""
        dofn = self._pooled(_AddMetadata, rows, self._level)
        added = rows | "Reshuffle" >> beam.Reshuffle() | "Add" >> self._step(dofn, dict[str, Any])
        return added["main"], added[FAILURES]


class _AddMetadata(PooledDoFn):
    def __init__(self, endpoint: Endpoint, transform: str, level: SearchLevel, **how: Any) -> None:
        super().__init__(endpoint, transform, **how)
        self._level: SearchLevel = level

    def produce(self, subject: JSONDataset, client: DICOMClient, room: Room) -> Iterator[Any]:
        return detailed(client, self._level, subject, room)


class MakeTableRows(FailingTransform):
    """Makes the rows of a table from datasets, as dicts; of a table with all columns, the datasets as JSON text.

    Args:
        job: The table.

    Returns:
        The rows, what was counted of each bundle by name, and the failures of rows that name nothing.
    """

    def __init__(self, job: TableJob) -> None:
        super().__init__(failures="collect")
        self._job = job

    def expand(self, datasets: Any) -> tuple[Any, Any, Any]:
        """Builds the step."""
        made = datasets | "Make" >> self._step(_MakeTableRows(self._job), Any, **{_COUNTS: tuple[str, int]})
        return made["main"], made[_COUNTS], made[FAILURES]


_COUNTS = "counts"


class _MakeTableRows(beam.DoFn):
    def __init__(self, job: TableJob) -> None:
        self._job = job

    def start_bundle(self) -> None:
        job = self._job
        self._maker = RowMaker([] if job.takes_all else job.table_columns, job.explode)

    def process(self, element: JSONDataset) -> Iterator[Any]:
        try:
            resource_of_row(element, self._job.level)
        except (TypeError, ValueError) as error:
            yield TaggedOutput(FAILURES, failure_of(error, ROW))
            return
        self._maker.counts["objects"] += 1
        if self._job.takes_all:
            yield dumps(element).decode()
        else:
            yield from self._maker.rows(element)

    def finish_bundle(self) -> Iterator[Any]:
        for counted in self._maker.counts.items():
            yield TaggedOutput(_COUNTS, WindowedValue(counted, MIN_TIMESTAMP, (GlobalWindow(),)))
