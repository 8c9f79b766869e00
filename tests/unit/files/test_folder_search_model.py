"""Searches of a folder against a straightforward model, on random archives, filters, fields and pages.

The model keeps the datasets as pydicom encodes them and goes through all of them for each query. It shares no code with
the package: its wildcards are those of `fnmatch`, its times those of `datetime`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase
from functools import reduce
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset

from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.queries import make_query
from tests.unit.files.making import make_bytes

Row = dict[str, Any]

STUDY_KEYS = ["StudyDate", "StudyTime", "AccessionNumber", "PatientName", "PatientID", "StudyID", "StudyDescription"]
SERIES_KEYS = ["Modality", "SeriesNumber", "SeriesDescription", "Manufacturer", "RequestAttributesSequence"]
STUDY_DEFAULTS = [
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "TimezoneOffsetFromUTC",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyID",
]
SERIES_DEFAULTS = [
    "Modality",
    "TimezoneOffsetFromUTC",
    "SeriesDescription",
    "SeriesInstanceUID",
    "SeriesNumber",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "RequestAttributesSequence",
]
INSTANCE_DEFAULTS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "TimezoneOffsetFromUTC",
    "InstanceNumber",
    "Rows",
    "Columns",
    "BitsAllocated",
    "NumberOfFrames",
]
COMPUTED_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


# Random archives ----------------------------------------------------------------------------------------------------

WORD = st.text("ABa", min_size=0, max_size=2)
ITEM = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("ScheduledProcedureStepID", "RequestedProcedureID", "ScheduledProcedureStepDescription"), WORD
    ),
)  # fmt: skip


def some(**attributes: st.SearchStrategy[Any]) -> st.SearchStrategy[Row]:
    """Any of these attributes, each there or not."""
    return st.fixed_dictionaries({}, optional=attributes)


DATES = ["20231231", "20240101", "20240115", "20240301", ""]
TIMES = ["10", "1015", "101500", "101530.25", "235959", ""]
DATE_TIMES = ["2024", "20240101", "20240101120000", "20240101120000+0100", "20240101113000-0500", ""]
NAMES = ["Adams^John", "ADAMS^Ann", "Müller^Änne", "Yamada^Tarou=山田^太郎=やまだ^たろう", ""]
STUDY = some(
    PatientName=st.sampled_from(NAMES), PatientID=WORD, StudyDate=st.sampled_from(DATES),
    StudyTime=st.sampled_from(TIMES), AccessionNumber=WORD, StudyDescription=WORD, StudyID=WORD,
    TimezoneOffsetFromUTC=st.sampled_from(["+0200", "-0500"]),
)  # fmt: skip
SERIES = some(
    Modality=st.sampled_from(["CT", "MR", "SR"]), SeriesNumber=st.integers(0, 2), SeriesDescription=WORD,
    Manufacturer=WORD, RequestAttributesSequence=st.lists(ITEM, max_size=2),
)  # fmt: skip
INSTANCE = some(
    InstanceNumber=st.integers(0, 3), Rows=st.integers(1, 3), ImageComments=WORD, ContentTime=st.sampled_from(TIMES),
    ImageType=st.lists(st.sampled_from(["ORIGINAL", "DERIVED", "AXIAL"]), min_size=1, max_size=3),
    AcquisitionDateTime=st.sampled_from(DATE_TIMES), SliceThickness=st.sampled_from(["1", "2.50", "-3e0"]),
    SOPClassUID=st.sampled_from(["1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"]),
    NumberOfFrames=st.integers(1, 3),
)  # fmt: skip
PLACES = st.tuples(st.integers(0, 2), st.integers(0, 1))


@st.composite
def archives(draw: st.DrawFn) -> list[Row]:
    places = draw(st.lists(PLACES, min_size=1, max_size=8))
    studies = draw(st.lists(STUDY, min_size=3, max_size=3))
    series = draw(st.lists(SERIES, min_size=6, max_size=6))
    rows = []
    for number, (study, part) in enumerate(places, 1):
        uids = f"1.{study + 1}", f"1.{study + 1}.{part + 1}", f"1.{study + 1}.{part + 1}.{number}"
        rows.append(
            {
                **studies[study],
                **series[2 * study + part],
                **draw(INSTANCE),
                **dict(zip(COMPUTED_UIDS, uids, strict=True)),
            }
        )
    return rows


# Random queries -----------------------------------------------------------------------------------------------------

PATTERN = st.text("ABa*?", min_size=0, max_size=3)
TEXT = st.one_of(PATTERN, st.lists(st.text("ABa*?", min_size=1, max_size=2), min_size=2, max_size=2).map("\\".join))
FILTERS = some(
    PatientName=st.sampled_from(
        ["adams*", "ADAMS^JOHN", "*an?", "müller*", "muller*", "山田*", "=山田^太郎", "==やまだ*", "Nobody", "*", ""]
    ),
    StudyDate=st.sampled_from(["20240101", "20240101-20240120", "20240110-", "-20240115", "20240101\\20240301", ""]),
    StudyTime=st.sampled_from(["10", "1015", "101500", "1000-1100", "101501-", "-1015", ""]),
    ContentTime=st.sampled_from(["10", "101530.25", "1015-1016", "-10", "2359-"]),
    AcquisitionDateTime=st.sampled_from(
        ["2024", "20240101", "20240101120000", "20240101120000+0100", "20240101110000+0000", "20240101163000-0000",
         "20240101-20240102", "20240101110000-20240101120000", "20240101110000+0000-20240101130000+0000", "-2023",
         "20240101120000-0500", "2024-"]
    ),
    ModalitiesInStudy=st.sampled_from(["CT", "MR", "CT\\SR", "US", ""]),
    Modality=st.sampled_from(["CT", "C?", "MR\\SR", "ct", ""]),
    SeriesNumber=st.sampled_from(["0", "1", "02", "1\\2"]),
    InstanceNumber=st.sampled_from(["0", "1", "2\\3"]),
    Rows=st.sampled_from(["1", "2", "2\\3"]),
    SliceThickness=st.sampled_from(["1.0", "2.5", "-3", "7"]),
    ImageType=st.sampled_from(["ORIGINAL", "A*", "DERIVED\\AXIAL"]),
    SOPClassUID=st.sampled_from(["1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2,1.2.3", "1.2.3"]),
    StudyInstanceUID=st.sampled_from(["1.1", "1.1,1.3", "1.2\\1.3", "1.9"]),
    SeriesInstanceUID=st.sampled_from(["1.1.1", "1.1.2,1.2.1", "1.9"]),
    SOPInstanceUID=st.sampled_from(["1.1.1.1", "1.1.1.1\\1.2.1.2\\1.3.2.3", "1.9"]),
    NumberOfStudyRelatedInstances=st.sampled_from(["1", "2", "3\\4"]),
    NumberOfSeriesRelatedInstances=st.sampled_from(["1", "2"]),
    **dict.fromkeys(("PatientID", "StudyDescription", "AccessionNumber"), TEXT),
    **dict.fromkeys(("SeriesDescription", "Manufacturer"), TEXT),
    # A backslash is a character of an LT.
    ImageComments=PATTERN,
    **{f"RequestAttributesSequence.{key}": TEXT for key in ("ScheduledProcedureStepID", "RequestedProcedureID")},
)  # fmt: skip
FIELDS = st.lists(
    st.sampled_from(
        ["StudyDescription", "Manufacturer", "ImageComments", "00080008", "SliceThickness", "SOPClassUID", "Modality",
         "RequestAttributesSequence.ScheduledProcedureStepDescription"]
    ),
    max_size=3,
    unique=True,
)  # fmt: skip
LEVELS = ("study", "series", "instance")


@st.composite
def queries(draw: st.DrawFn) -> Row:
    filters = draw(FILTERS)
    # Few at a time, so that some rows are left.
    keys = draw(st.lists(st.sampled_from(sorted(filters)), max_size=3, unique=True)) if filters else []
    study = draw(st.sampled_from([None, None, "1.1", "1.2"]))
    level = draw(st.sampled_from(LEVELS))
    within = draw(st.booleans()) and study is not None and level == "instance"
    return {
        "level": level,
        "study": study if level != "study" else None,
        "series": f"{study}.1" if within else None,
        "filters": {key: filters[key] for key in keys},
        "fields": draw(FIELDS),
        "offset": draw(st.integers(0, 3)),
        "limit": draw(st.one_of(st.none(), st.integers(0, 3))),
    }


# The model ----------------------------------------------------------------------------------------------------------


def tag_of(name: str) -> str:
    return name if re.fullmatch("[0-9A-F]{8}", name) else f"{tag_for_keyword(name):08X}"


def values_of(dataset: Row, name: str) -> list[Any]:
    return dataset.get(tag_of(name), {}).get("Value") or []


def seconds(text: str) -> tuple[float, float]:
    """The first and the last moment of a time."""
    main, _, fraction = text.partition(".")
    hour, minute, second = int(main[:2]), int(main[2:4] or 0), int(main[4:6] or 0)
    start = hour * 3600 + minute * 60 + second + (float(f"0.{fraction}") if fraction else 0.0)
    length = {2: 3600.0, 4: 60.0, 6: 1.0}[len(main)] if not fraction else 10.0 ** -len(fraction)
    return start, start + length - 1e-6


def moments(text: str, offset: str) -> tuple[datetime, datetime]:
    """The first and the last moment of a date-time; `offset` is that of the dataset."""
    match = re.fullmatch(r"(\d+)([+-]\d{4})?", text)
    assert match is not None
    digits, own = match[1], match[2] or offset
    zone = timezone((-1 if own[0] == "-" else 1) * timedelta(hours=int(own[1:3]), minutes=int(own[3:])))
    first = datetime(int(digits[:4]), int(digits[4:6] or 1), int(digits[6:8] or 1), tzinfo=zone)
    if len(digits) == 4:
        return first, first.replace(year=first.year + 1) - timedelta(microseconds=1)
    if len(digits) == 8:
        return first, first + timedelta(days=1) - timedelta(microseconds=1)
    first = first.replace(hour=int(digits[8:10]), minute=int(digits[10:12]), second=int(digits[12:14]))
    return first, first + timedelta(seconds=1) - timedelta(microseconds=1)


def in_range(pattern: str, value: str, ends: Callable[[str], tuple[Any, Any]]) -> bool:
    """Whether a value begins within a range `a-b`, `a-`, `-b` or a single value."""
    begin = ends(value)[0]
    pair = re.fullmatch(r"(\d*(?:[+]\d{4})?)-(\d*(?:[+]\d{4})?)", pattern)
    if pair is None or (ends.__name__ == "dated" and re.fullmatch(r"\d{14}-\d{4}", pattern)):
        low = high = pattern
    else:
        low, high = pair.groups()
    return (not low or ends(low)[0] <= begin) and (not high or begin <= ends(high)[1])


def one_matches(name: str, pattern: str, value: Any, dataset: Row) -> bool:
    """Whether one value matches one pattern without backslashes."""
    if name == "PatientName":
        groups = [value.get(key, "").casefold() for key in ("Alphabetic", "Ideographic", "Phonetic")]
        parts = pattern.casefold().split("=")
        if len(parts) == 1:
            return any(group and fnmatchcase(group, parts[0]) for group in groups)
        return all(not part or fnmatchcase(group, part) for part, group in zip(parts, groups, strict=False))
    if name.endswith("UID"):
        return value in re.split(r"[,]", pattern)
    if name.endswith("DateTime"):
        offset = (values_of(dataset, "TimezoneOffsetFromUTC") or ["+0000"])[0]

        def dated(text: str) -> tuple[datetime, datetime]:
            return moments(text, offset)

        return in_range(pattern, value, dated)
    if name.endswith("Time"):
        return in_range(pattern, value, seconds)
    if name.endswith("Date"):
        return in_range(pattern, value, lambda text: (text, text))
    if isinstance(value, (int, float)):
        return float(pattern) == float(value)
    return fnmatchcase(value, pattern)


def matches(dataset: Row, filters: dict[str, str]) -> bool:
    wanted = {name: pattern for name, pattern in filters.items() if not universal(pattern)}
    for name, pattern in wanted.items():
        if "." in name:
            continue
        values = [value for value in values_of(dataset, name) if value is not None]
        if not any(one_matches(name, part, value, dataset) for value in values for part in pattern.split("\\")):
            return False
    nested = {name.partition(".")[2]: pattern for name, pattern in wanted.items() if "." in name}
    return not nested or any(matches(item, nested) for item in values_of(dataset, "RequestAttributesSequence"))


def universal(pattern: str) -> bool:
    """Whether a pattern, or one of its list, stands for everything."""
    return not pattern or any(part and not part.strip("*") for part in pattern.split("\\"))


class Model:
    """The archive as a list of datasets in DICOM JSON."""

    def __init__(self, contents: list[bytes], url: str) -> None:
        self.url = url
        self.rows = [self._computed(pydicom.dcmread(io.BytesIO(content)).to_json_dict()) for content in contents]
        self.rows.sort(key=self._order)

    def _computed(self, row: Row) -> Row:
        for element in row.values():
            if element.get("Value") == []:
                # An empty sequence has no Value (PS3.18 F.2.5); pydicom gives it an empty one.
                del element["Value"]
        row[tag_of("InstanceAvailability")] = {"vr": "CS", "Value": ["ONLINE"]}
        row[tag_of("AvailableTransferSyntaxUID")] = {"vr": "UI", "Value": ["1.2.840.10008.1.2.1"]}
        return row

    @staticmethod
    def uid(row: Row, level: str) -> str:
        name = dict(zip(LEVELS, COMPUTED_UIDS, strict=True))[level]
        return str(values_of(row, name)[0])

    def _order(self, row: Row) -> tuple[Any, ...]:
        def number(name: str) -> float:
            return float(reduce(lambda _, value: value, values_of(row, name), 1e9))

        return (
            self.uid(row, "study"), number("SeriesNumber"), self.uid(row, "series"), number("InstanceNumber"),
            self.uid(row, "instance"),
        )  # fmt: skip

    def group(self, row: Row, level: str) -> list[Row]:
        return [other for other in self.rows if self.uid(other, level) == self.uid(row, level)]

    def objects(self, level: str) -> list[Row]:
        """The datasets that stand for the objects of a level: the first instance of each, in the order of answers."""
        if level == "instance":
            # Stable: within a series they are in order.
            return sorted(self.rows, key=lambda row: (self.uid(row, "study"), self.uid(row, "series")))
        return list({self.uid(row, level): row for row in reversed(self.rows)}.values())[::-1]

    def study_of(self, row: Row) -> Row:
        """What a study has beside the attributes of its first instance."""
        rows = self.group(row, "study")
        series = {self.uid(other, "series") for other in rows}
        found = sorted({value for other in rows for value in values_of(other, "Modality") if value})
        return {
            tag_of("ModalitiesInStudy"): {"vr": "CS", "Value": found} if found else {"vr": "CS"},
            tag_of("NumberOfStudyRelatedSeries"): {"vr": "IS", "Value": [len(series)]},
            tag_of("NumberOfStudyRelatedInstances"): {"vr": "IS", "Value": [len(rows)]},
        }

    def series_of(self, row: Row) -> Row:
        return {tag_of("NumberOfSeriesRelatedInstances"): {"vr": "IS", "Value": [len(self.group(row, "series"))]}}

    def search(self, query: Row) -> list[Row]:
        found = []
        for row in self.objects(query["level"]):
            inside = {**row, **self.study_of(row), **self.series_of(row)}
            if query["study"] not in (None, self.uid(row, "study")):
                continue
            if query["series"] not in (None, self.uid(row, "series")):
                continue
            if query["level"] == "study":
                del inside[tag_of("NumberOfSeriesRelatedInstances")]
            filters = dict(query["filters"])
            members = self.group(row, query["level"])
            for name in COMPUTED_UIDS:
                pattern = filters.pop(name, "").replace("\\", ",")
                if pattern:
                    # UIDs of lower levels are looked for inside the object, all in one instance.
                    members = [
                        member for member in members if one_matches(name, pattern, values_of(member, name)[0], {})
                    ]
            if members and matches(inside, filters):
                found.append(self.returned(query, row, inside))
        return found

    def returned(self, query: Row, row: Row, inside: Row) -> Row:
        level, filters = query["level"], query["filters"]
        names = {name.partition(".")[0] for name in filters} - set(COMPUTED_UIDS)
        required: set[str] = set()
        url = f"{self.url}/studies/{self.uid(row, 'study')}"
        if level != "study":
            url += f"/series/{self.uid(row, 'series')}"
            names |= {"StudyInstanceUID", "SeriesInstanceUID"}
        if level == "instance":
            url += f"/instances/{self.uid(row, 'instance')}"
            names |= {*INSTANCE_DEFAULTS, "InstanceAvailability", "AvailableTransferSyntaxUID"}
            required |= {"SOPClassUID", "InstanceNumber"}
        if level == "study" or query["study"] is None:
            names |= {
                *STUDY_DEFAULTS, "ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances",
                "InstanceAvailability",
            }  # fmt: skip
            required |= {*STUDY_DEFAULTS} - {"TimezoneOffsetFromUTC"}
        if level == "series" or (level == "instance" and query["series"] is None):
            names |= {*SERIES_DEFAULTS, "NumberOfSeriesRelatedInstances"}
            required |= {"Modality", "SeriesNumber"}
        projected = []
        for name in query["fields"]:
            keyword = name.partition(".")[0]
            instance_only = keyword not in (*STUDY_KEYS, *SERIES_KEYS)
            if (level == "study" and keyword not in STUDY_KEYS) or (level == "series" and instance_only):
                continue
            if "." in name and keyword not in names:
                projected.append(name)
            else:
                names.add(keyword)
        result = {tag_of(name): {"vr": dictionary_VR(name)} for name in required}
        result.update({tag_of(name): inside[tag_of(name)] for name in names if tag_of(name) in inside})
        for name in projected:
            keyword, _, inner = name.partition(".")
            element = inside.get(tag_of(keyword))
            if element is not None and tag_of(keyword) not in result:
                items = [
                    {tag: item[tag] for tag in [tag_of(inner)] if tag in item} for item in element.get("Value", [])
                ]
                result[tag_of(keyword)] = {**element, "Value": items} if "Value" in element else element
        result[tag_of("RetrieveURL")] = {"vr": "UR", "Value": [url]}
        return dict(sorted(result.items()))


# The comparison -----------------------------------------------------------------------------------------------------


def contents_of(archive: list[Row]) -> list[bytes]:
    contents = []
    for row in archive:
        attributes = {key: value for key, value in row.items() if key not in COMPUTED_UIDS}
        items = attributes.pop("RequestAttributesSequence", None)
        if items is not None:
            sequence = []
            for item in items:
                dataset = Dataset()
                for key, value in item.items():
                    setattr(dataset, key, value)
                sequence.append(dataset)
            attributes["RequestAttributesSequence"] = sequence
        contents.append(make_bytes(*(row[name] for name in COMPUTED_UIDS), **attributes))
    return contents


def compare(folder: Path, archive: list[Row], wanted: list[Row]) -> None:
    contents = contents_of(archive)
    for number, content in enumerate(contents):
        (folder / f"{number}").write_bytes(content)
    with DICOMfileClient(folder, in_memory=True) as client:
        model = Model(contents, client.base_url)
        search = {
            "study": client.search_for_studies,
            "series": client.search_for_series,
            "instance": client.search_for_instances,
        }
        for query in wanted:
            expected = model.search(query)
            level, study, series = query["level"], query["study"], query["series"]
            options = {"search_filters": query["filters"], "fields": query["fields"]}
            place = {} if level == "study" else {"study_instance_uid": study}
            if level == "instance" and series is not None:
                place["series_instance_uid"] = series
            found = search[level](**place, **options)
            assert found == expected, query
            request = make_query(level, study, series, **options)
            offset, limit = query["offset"], query["limit"]
            page = client.search_page(request, offset=offset, limit=limit)
            stop = None if limit is None else offset + limit
            assert page.rows == expected[offset:stop], query
            assert page.total == client.count(request) == len(expected)
            assert page.more == (stop is not None and len(expected) > max(offset, stop))
            assert list(client.iter_search(request, page_size=2)) == expected


SETTINGS: dict[str, Any] = {
    "deadline": None,
    # The message names the one query that went wrong; to look for a smaller archive takes minutes.
    "phases": (Phase.explicit, Phase.reuse, Phase.generate),
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
}


@settings(max_examples=30, **SETTINGS)
@given(archive=archives(), wanted=st.lists(queries(), min_size=4, max_size=12))
def test_searches_agree_with_a_straightforward_model(
    tmp_path_factory: pytest.TempPathFactory, archive: list[Row], wanted: list[Row]
) -> None:
    compare(tmp_path_factory.mktemp("model"), archive, wanted)


@pytest.mark.slow
@settings(max_examples=300, **SETTINGS)
@given(archive=archives(), wanted=st.lists(queries(), min_size=8, max_size=30))
def test_many_searches_agree_with_a_straightforward_model(
    tmp_path_factory: pytest.TempPathFactory, archive: list[Row], wanted: list[Row]
) -> None:
    compare(tmp_path_factory.mktemp("model"), archive, wanted)
