"""``--input``: a list of what a job is to work on, in CSV or JSON lines."""

from __future__ import annotations

import csv
import json
from typing import IO, Any, cast

from dicomweb_io.dicom.uids import is_uid
from dicomweb_io.elements import Resource, SearchQuery
from pipelines._common import UsageError

Wanted = Resource | SearchQuery
"""What one line asks for: an object, or everything that a query finds."""

_COLUMNS = {
    "studyinstanceuid": "study_instance_uid",
    "seriesinstanceuid": "series_instance_uid",
    "sopinstanceuid": "sop_instance_uid",
    "accessionnumber": "accession_number",
}


def read_references(path: str) -> list[Wanted]:
    """Reads a list of what is wanted.

    Each line is one of: a JSON object with UIDs (``study_instance_uid`` …, or DICOM JSON), an entry of an earlier
    ``--failures`` file, a DICOMweb URI, a study's UID, an accession number, or a line of a CSV file whose header names
    ``StudyInstanceUID``, ``SeriesInstanceUID``, ``SOPInstanceUID`` or ``AccessionNumber``.

    Raises:
        UsageError: If the file cannot be read, or a line names nothing; the message has the line's number.
    """
    try:
        with _open(path) as file:
            lines = [line.strip() for line in file]
    except (OSError, ValueError) as error:
        raise UsageError(f"--input {path}: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not numbered:
        return []
    header = _header(numbered[0][1])
    if header is not None:
        return [_of_columns(path, number, header, line) for number, line in numbered[1:]]
    return [_of_line(path, number, line) for number, line in numbered]


def _open(path: str) -> IO[str]:
    if "://" in path:
        import fsspec

        return cast("IO[str]", fsspec.open(path, "r", encoding="utf-8-sig").open())
    return open(path, encoding="utf-8-sig")


def _header(line: str) -> list[str] | None:
    names = [name.strip().lower().replace("_", "").replace(" ", "") for name in next(csv.reader([line]), [])]
    return [_COLUMNS.get(name, "") for name in names] if any(name in _COLUMNS for name in names) else None


def _of_columns(path: str, number: int, header: list[str], line: str) -> Wanted:
    values = next(csv.reader([line]))
    row = {name: value.strip() for name, value in zip(header, values, strict=False) if name and value.strip()}
    if "study_instance_uid" in row:
        row.pop("accession_number", None)
        return _checked(path, number, row)
    if "accession_number" in row:
        return SearchQuery("instance", search_filters=(("AccessionNumber", row["accession_number"]),))
    if "sop_instance_uid" in row:
        return SearchQuery("instance", search_filters=(("SOPInstanceUID", row["sop_instance_uid"]),))
    if "series_instance_uid" in row:
        return SearchQuery("instance", search_filters=(("SeriesInstanceUID", row["series_instance_uid"]),))
    raise UsageError(f"--input {path}, line {number}: it names no study, series, instance or accession number")


def _of_line(path: str, number: int, line: str) -> Wanted:
    if line.startswith("{"):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UsageError(f"--input {path}, line {number}: not JSON: {error}") from error
        if "transform" in value and "message" in value:
            if not value.get("reference"):
                raise UsageError(
                    f"--input {path}, line {number}: this failure names no object "
                    f"({value.get('source') or value.get('message')}); run the search again for it"
                )
            value = value["reference"]
        return _checked(path, number, value)
    # An accession number may consist of digits too, but hardly of several components.
    if line.count(".") > 1 and is_uid(line, permissive=True):
        return Resource(line)
    if "studies/" in line:
        return _checked(path, number, line)
    return SearchQuery("instance", search_filters=(("AccessionNumber", line),))


def _checked(path: str, number: int, value: Any) -> Resource:
    try:
        return Resource.of(value).instance
    except (TypeError, ValueError) as error:
        raise UsageError(f"--input {path}, line {number}: {error}") from error
