"""``dicomweb-io search``, ``index`` and ``tree``: what is in an archive, as tables for people and as JSON or CSV."""

from __future__ import annotations

import argparse
import csv
import heapq
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple

from dicomweb_io.account import format_bytes, tell_unreadable
from dicomweb_io.cli.output import Progress, json_text, print_datasets, print_line, progress
from dicomweb_io.client import DICOMClient
from dicomweb_io.dicom.columns import COLUMNS, Column, column_of, columns_of
from dicomweb_io.dicom.json_decode import first_text, first_value, iter_values
from dicomweb_io.dicom.uids import name_of_uid
from dicomweb_io.dicom.values import fold_case, iso_date, iso_time, readable_name
from dicomweb_io.elements import COLLECTIONS, JSONDataset, Resource, SearchLevel, SearchQuery
from dicomweb_io.errors import DICOMwebError, plain_text
from dicomweb_io.failures import RECOVERABLE
from dicomweb_io.options import UsageError, connect, endpoint_from, parse_filters
from dicomweb_io.queries import check_limits, make_query

LEVELS: dict[str, SearchLevel] = {name: level for level, name in COLLECTIONS.items()}

_CHUNK = 100
_MIN_WIDTH = 12
_SHOWN_STUDIES = 100
_SCREEN_STUDIES, _SCREEN_LINES = 10, 40

_FIELDS: dict[SearchLevel, tuple[str, ...]] = {
    "study": (
        "StudyDescription", "ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances",
    ),
    "series": ("SeriesDescription", "NumberOfSeriesRelatedInstances"),
    "instance": ("Rows", "Columns", "NumberOfFrames"),
}  # fmt: skip
"""What tables show and archives may leave out unless they are asked for it."""


# Search ---------------------------------------------------------------------------------------------------------------


def search(args: argparse.Namespace) -> int:
    """Prints what a search finds, all pages of it."""
    endpoint = endpoint_from(args)
    level = LEVELS[args.information_entity]
    form = _form(args, people="jsonl" if "all" in args.fields else "table")
    if form in ("table", "csv") and "all" in args.fields:
        raise UsageError(f"--field all has no columns for {form}: name the attributes, or choose --format jsonl")
    columns: tuple[Column, ...] = ()
    try:
        check_limits(args.limit, args.offset)
        fields = list(dict.fromkeys((*_fields(args, level, form), *args.fields)))
        if form == "csv" or (form == "table" and args.fields):
            columns = columns_of(fields if form == "csv" else dict.fromkeys(args.fields))
        query = make_query(
            level,
            getattr(args, "study_instance_uid", None),
            getattr(args, "series_instance_uid", None),
            fuzzymatching=args.fuzzy,
            fields=fields,
            search_filters=parse_filters(args.filters),
        )
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    with connect(args, endpoint) as client:
        rows = client.iter_search(query, offset=args.offset, limit=args.limit)
        if form == "table":
            _print_rows(rows, query, columns)
        else:
            args.json_lines = form == "jsonl"
            count = _print_csv(rows, columns) if form == "csv" else print_datasets(rows, args)
            print(f"{count:,} {_noun(count, level)}", file=sys.stderr)
        tell_unreadable(client)
    return 0


def _fields(args: argparse.Namespace, level: SearchLevel, form: str) -> tuple[str, ...]:
    """What to ask an archive for, beside what was named, so that it can be shown."""
    if form == "csv":
        return COLUMNS[level]
    whose = ("PatientName", "PatientID", "StudyDate", "StudyTime")
    within = level != "series" or getattr(args, "study_instance_uid", None)
    return () if form != "table" else _FIELDS[level] if within else (*_FIELDS[level], *whose)


def _form(args: argparse.Namespace, people: str = "table") -> str:
    """The format that was asked for, else a table for a person at a terminal and JSON lines for a pipe."""
    if args.json_lines or args.prettify or args.dicomize:
        return "jsonl" if args.json_lines else "json"
    return args.format or (people if sys.stdout.isatty() else "jsonl")


class _Column(NamedTuple):
    """A column of a table.

    Attributes:
        title: Its title.
        text: The text of its cell in a row.
        right: Whether it is aligned on the right.
        flexible: Whether long texts may be cut to fit the terminal.
    """

    title: str
    text: Callable[[JSONDataset], str] = str
    right: bool = False
    flexible: bool = False


def _shown_columns(query: SearchQuery) -> list[_Column]:
    """The columns of a table of studies, series or instances."""
    study = [
        _Column("date", lambda row: _moment(first_text(row, "StudyDate"), first_text(row, "StudyTime"))),
        _Column("patient", _of("PatientName"), flexible=True),
        _Column("patient ID", _of("PatientID")),
    ]
    if query.level == "study":
        return [
            *study,
            _Column("modality", _of("ModalitiesInStudy")),
            _Column("description", _of("StudyDescription"), flexible=True),
            _Column("series", _of("NumberOfStudyRelatedSeries"), right=True),
            _Column("instances", _of("NumberOfStudyRelatedInstances"), right=True),
        ]
    series = [_Column("number", _of("SeriesNumber"), right=True), _Column("modality", _of("Modality"))]
    if query.level == "series":
        return [
            *([] if query.study_instance_uid else study),
            *series,
            _Column("description", _of("SeriesDescription"), flexible=True),
            _Column("instances", _of("NumberOfSeriesRelatedInstances"), right=True),
        ]
    return [
        *([] if query.series_instance_uid else [series[0]._replace(title="series"), series[1]]),
        _Column("number", _of("InstanceNumber"), right=True),
        _Column("kind", lambda row: name_of_uid(first_text(row, "SOPClassUID")), flexible=True),
        _Column("pixels", _extent, right=True),
        _Column("frames", _of("NumberOfFrames"), right=True),
    ]


def _of(attribute: str) -> Callable[[JSONDataset], str]:
    return partial(_cell, column_of(attribute))


def _cell(column: Column, row: JSONDataset) -> str:
    """The values of an attribute as people read them."""
    value = column.cell(row)[0]
    values = value if isinstance(value, list) else [] if value is None else [value]
    if column.vr == "PN":
        values = [readable_name(name) for name in values]
    elif column.name.startswith("NumberOf"):
        values = [f"{number:,}" for number in values]
    return ", ".join(map(str, values))


def _moment(date: str, time: str) -> str:
    """A date and time, to the minute."""
    return f"{iso_date(date) or date} {(iso_time(time) or '')[:5]}".strip()


def _extent(row: JSONDataset) -> str:
    """Rows and columns."""
    rows = first_text(row, "Rows")
    return f"{rows}x{first_text(row, 'Columns')}" if rows else ""


def _print_rows(rows: Iterable[JSONDataset], query: SearchQuery, asked: Sequence[Column]) -> None:
    """Prints a table as the rows come; the first ones decide how wide its columns are."""
    columns = [*_shown_columns(query), *(_Column(column.name, partial(_cell, column)) for column in asked)]
    tag = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID", "instance": "SOPInstanceUID"}[query.level]
    columns.append(_Column(tag, lambda row: first_text(row, tag)))
    table: _Lines | None = None
    count, width = 0, shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for chunk in _chunks([plain_text(column.text(row)) for column in columns] for row in rows):
        if table is None:
            # UIDs are shown if there is room for all else too, and whole: a part of one cannot be used.
            table = _Lines(chunk, columns, width)
            if not table.fits:
                table = _Lines([row[:-1] for row in chunk], columns[:-1], width)
            _print_title(table.line([column.title for column in table.columns]))
        for row in chunk:
            sys.stdout.write(table.line(row) + "\n")
        sys.stdout.flush()
        count += len(chunk)
    hint = "" if table is None or tag in (column.title for column in table.columns) else f" (--field {tag}: their UIDs)"
    print(f"{count:,} {_noun(count, query.level)}{hint}", file=sys.stderr)


def _chunks(rows: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    """Lists of rows. What came before an error is yielded before the error is raised."""
    chunk: list[list[str]] = []
    try:
        for row in rows:
            chunk.append(row)
            if len(chunk) == _CHUNK:
                yield chunk
                chunk = []
    except RECOVERABLE:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def _noun(count: int, level: SearchLevel) -> str:
    return level if count == 1 else COLLECTIONS[level]


class _Lines:
    """Lays texts out as the aligned lines of a table.

    Args:
        rows: Rows that decide the widths: their texts.
        columns: The columns.
        width: The width of the terminal; None for any.
        titled: Whether the titles have to fit, too.

    Attributes:
        fits: Whether no text has to be cut.
    """

    def __init__(
        self, rows: Iterable[Sequence[str]], columns: Sequence[_Column], width: int | None, *, titled: bool = True
    ) -> None:
        from rich.cells import cell_len, set_cell_size

        self._length, self._sized = cell_len, set_cell_size
        self.columns = columns
        widths = [cell_len(column.title) if titled else 0 for column in columns]
        for row in rows:
            widths = [max(one, cell_len(text)) for one, text in zip(widths, row, strict=True)]
        gaps = 2 * (sum(map(bool, widths)) - 1)
        self.fits = width is None or sum(widths) + gaps <= width
        flexible = [number for number, column in enumerate(columns) if column.flexible]
        while width is not None and sum(widths) + gaps > width and flexible:
            widest = max(flexible, key=lambda number: widths[number])
            if widths[widest] <= _MIN_WIDTH:
                break
            widths[widest] -= 1
        self._widths = widths

    def line(self, texts: Sequence[str]) -> str:
        """One row as a line."""
        cells = []
        for text, column, width in zip(texts, self.columns, self._widths, strict=False):
            length = self._length(text)
            if column.flexible and length > width:
                text, length = self._sized(text, max(width - 1, 0)).rstrip() + "…", width
            if width:
                padding = " " * (width - length)
                cells.append(padding + text if column.right else text + padding)
        return "  ".join(cells).rstrip()


def _print_title(line: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(file=sys.stdout, highlight=False).print(Text(line, style="bold"), soft_wrap=True)


def _print_csv(rows: Iterable[JSONDataset], columns: Sequence[Column]) -> int:
    """Prints comma-separated values with keywords as titles; several values of one have backslashes between.

    Returns:
        The number of rows.
    """
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    count = 0
    for row in rows:
        writer.writerow([_csv_cell(column.cell(row)[0]) for column in columns])
        count += 1
    return count


def _csv_cell(value: Any) -> Any:
    """A value for a spreadsheet: text that it would take for a formula gets an apostrophe in front."""
    if isinstance(value, list):
        value = "\\".join(map(str, value))
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


# Index ----------------------------------------------------------------------------------------------------------------

_KINDS = ("duplicate", "ignored", "unreadable")


def index(args: argparse.Namespace) -> int:
    """Reads a folder and prints how much of what is in it."""
    with connect(args, endpoint_from(args, args.path)) as client:
        found: dict[str, Any] = {name: client.count(make_query(level)) for name, level in LEVELS.items()}
        found["bytes"] = client.size_of()
        kinds: Counter[str] = Counter()
        people = sys.stdout.isatty()
        for exclusion in client.iter_exclusions():
            kinds[exclusion.kind] += 1
            kinds["conflicting"] += exclusion.conflicts
            if args.list and people:
                print(f"{exclusion.kind}  {plain_text(exclusion.path)}  ({plain_text(exclusion.reason)})")
            elif args.list:
                print_line({"kind": exclusion.kind, "path": exclusion.path, "reason": exclusion.reason})
    if people:
        numbers = {**{name: found[name] for name in LEVELS}, **{kind: kinds[kind] for kind in _KINDS}}
        for name, number in numbers.items():
            more = ""
            if name == "instances" and found["bytes"] is not None:
                more = f"  ({format_bytes(found['bytes'])})"
            elif name == "duplicate" and kinds["conflicting"]:
                more = f"  ({kinds['conflicting']:,} differ from the file that was chosen)"
            print(f"{name:<10} {number or 0:>12,}{more}")
        if sum(kinds.values()) and not args.list:
            print("--list names the duplicate, ignored and unreadable files", file=sys.stderr)
    else:
        print_line({**found, **{kind: kinds[kind] for kind in _KINDS}})
    return 1 if kinds["unreadable"] else 0


# Tree -----------------------------------------------------------------------------------------------------------------


@dataclass
class _Totals:
    """What has been seen so far: numbers are None once an archive does not tell one."""

    patients: set[int] = field(default_factory=set)
    ids: set[int] = field(default_factory=set)
    studies: int = 0
    series: int | None = 0
    instances: int | None = 0

    def add(self, study: dict[str, Any]) -> None:
        uid, name = _patient(study)
        self.patients.add(hash((uid, name)))
        self.ids.add(hash(uid or (uid, name)))
        self.studies += 1
        self.series = _sum(self.series, study["NumberOfStudyRelatedSeries"])
        self.instances = _sum(self.instances, study["NumberOfStudyRelatedInstances"])


def tree(args: argparse.Namespace) -> int:
    """Prints what is in an archive: patients, their studies, the series of these, and what is wrong with them."""
    if args.archive and args.url:
        raise UsageError("tree takes one archive: give it as the argument or with --url")
    endpoint = endpoint_from(args, args.archive)
    form = args.format or ("table" if sys.stdout.isatty() else "jsonl")
    if args.check and args.depth == "studies":
        raise UsageError("--check counts the instances of each series: leave out --depth studies")
    try:
        check_limits(args.limit, 0)
        query = make_query("study", fields=_FIELDS["study"], search_filters=parse_filters(args.filters))
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    with connect(args, endpoint) as client:
        contents = Contents(client, query, check=args.check)
        if form == "table":
            _print_tree(contents, endpoint.safe_url, args.depth, args.limit)
        else:
            _print_studies(contents, form, args.depth, args.limit)
    wrong = {kind for kind, number in contents.problems.items() if number} - {"duplicate", "ignored"}
    return 1 if contents.failed or (args.check and wrong) else 0


class Contents:
    """The studies and series of an archive, as keywords and values, with sizes and problems.

    Args:
        client: The archive.
        query: Which studies.
        check: List the instances of each series, and compare their number with the one that the archive announces.

    Attributes:
        problems: Numbers of duplicate, conflicting, ignored and unreadable files, and of series whose instances are
            not as many as announced.
        failed: How many studies could not be looked into.
    """

    def __init__(self, client: DICOMClient, query: SearchQuery, *, check: bool = False) -> None:
        self._client = client
        self._query = query
        self.check = check
        self._of_series: dict[Resource, Counter[str]] = {}
        self.problems: Counter[str] = Counter()
        self.failed = 0

    def count(self) -> int | None:
        """How many studies there are; None if the archive does not tell."""
        return self._client.count(self._query)

    @property
    def size(self) -> int | None:
        """The bytes of all instances of the archive; None if it does not tell, or only some are wanted."""
        return None if self._query.search_filters else self._client.size_of()

    def studies(self) -> Iterator[dict[str, Any]]:
        """Yields the studies, in the archive's order."""
        wanted = self._query if self._query.search_filters else None
        for exclusion in self._client.iter_exclusions(wanted):
            kind = "conflicting" if exclusion.conflicts else exclusion.kind
            self.problems[kind] += 1
            if exclusion.reference is not None and exclusion.reference.series_instance_uid is not None:
                self._of_series.setdefault(exclusion.reference.series, Counter())[kind] += 1
        of_studies: dict[str, Counter[str]] = {}
        for series, kinds in self._of_series.items():
            of_studies.setdefault(series.study_instance_uid, Counter()).update(kinds)
        texts = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate")
        for row in self._client.iter_search(self._query):
            study: dict[str, Any] = {name: first_text(row, name) for name in (*texts, "StudyTime", "StudyDescription")}
            study["ModalitiesInStudy"] = [str(value) for value in iter_values(row, _MODALITIES) if value]
            for name in ("NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"):
                study[name] = _number(row, name)
            study["problems"] = dict(of_studies.get(study["StudyInstanceUID"], ()))
            yield study

    def complete(self, study: dict[str, Any], *, series: bool) -> None:
        """Gives a study its size and, if wanted, its series by number; it gets the counts that it lacks from them."""
        uid = study["StudyInstanceUID"]
        study["bytes"] = self._client.size_of(Resource(uid))
        if series:
            self._add_series(study, uid)

    def _add_series(self, study: dict[str, Any], uid: str) -> None:
        try:
            query = make_query("series", uid, fields=_FIELDS["series"])
            series = [self._series(uid, row) for row in self._client.iter_search(query)]
        except DICOMwebError as error:
            if self._client.unavailable:
                raise
            self.failed += 1
            study["error"] = f"its series cannot be listed: {error.log_text}"
            return
        study["series"] = sorted(series, key=lambda one: (one["SeriesNumber"] is None, one["SeriesNumber"] or 0))
        if study["NumberOfStudyRelatedSeries"] is None:
            study["NumberOfStudyRelatedSeries"] = len(series)
        if study["NumberOfStudyRelatedInstances"] is None and series:
            study["NumberOfStudyRelatedInstances"] = _sum(*(one["NumberOfSeriesRelatedInstances"] for one in series))
        study["ModalitiesInStudy"] = study["ModalitiesInStudy"] or sorted({one["Modality"] for one in series} - {""})

    def _series(self, study: str, row: JSONDataset) -> dict[str, Any]:
        series: dict[str, Any] = {
            name: first_text(row, name) for name in ("SeriesInstanceUID", "Modality", "SeriesDescription")
        }
        for name in ("SeriesNumber", "NumberOfSeriesRelatedInstances"):
            series[name] = _number(row, name)
        reference = Resource(study, series["SeriesInstanceUID"])
        series["bytes"] = self._client.size_of(reference)
        series["problems"] = dict(self._of_series.get(reference, ()))
        if self.check:
            query = make_query("instance", study, series["SeriesInstanceUID"])
            listed = sum(1 for _ in self._client.iter_search(query))
            if series["NumberOfSeriesRelatedInstances"] not in (None, listed):
                self.problems["miscounted series"] += 1
                series["problems"]["listed"] = listed
            else:
                series["NumberOfSeriesRelatedInstances"] = listed
        return series


_MODALITIES = ("00080061",)


def _number(row: JSONDataset, attribute: str) -> int | None:
    value = first_value(row, attribute)
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError):
        return None


def _sum(*numbers: int | None) -> int | None:
    """The sum; None if a number is unknown."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def _patient(study: dict[str, Any]) -> tuple[str, str]:
    """The patient: the ID, and the name in the first of its groups that is not empty."""
    groups = [group.strip("^ ") for group in study["PatientName"].split("=")]
    return study["PatientID"].strip(), fold_case(next(filter(None, groups), ""))


def _order(study: dict[str, Any]) -> tuple[Any, ...]:
    """Sorts by patient, those without a name last, then by date."""
    uid, name = _patient(study)
    return not name, name, uid, study["StudyDate"], study["StudyTime"], study["StudyInstanceUID"]


def _print_studies(contents: Contents, form: str, depth: str | None, limit: int | None) -> None:
    """Prints studies as they come, as JSON, and then how many files are wrong."""
    first = True
    # Progress on the terminal that shows the lines would stand between them.
    with nullcontext(Progress("", None)) if sys.stdout.isatty() else progress("studies", contents.count()) as shown:
        for study in islice(contents.studies(), limit):
            contents.complete(study, series=depth != "studies")
            shown.advance(study["bytes"] or 0)
            if form == "jsonl":
                print_line(study)
            else:
                sys.stdout.write(("[\n" if first else ",\n") + json_text(study, indent=True))
                first = False
    if form == "json":
        sys.stdout.write("[]\n" if first else "\n]\n")
    if contents.problems:
        print(_problem_text(contents.problems), file=sys.stderr)


def _print_tree(contents: Contents, name: str, depth: str | None, limit: int | None) -> None:
    """Prints a tree for people: as many studies as are asked for, and how many more there are.

    All studies are counted, and checked if that is asked for; no more than those that are shown are kept.
    """
    totals = _Totals()

    def counted() -> Iterator[dict[str, Any]]:
        for study in contents.studies():
            if contents.check:
                contents.complete(study, series=True)
            totals.add(study)
            shown.advance()
            yield study

    with progress("studies", contents.count()) as shown:
        limit = _SHOWN_STUDIES if limit is None else limit
        studies = heapq.nsmallest(max(limit, 1), counted(), key=_order)[:limit]
    if depth is None:
        lines = len(studies) + sum(study["NumberOfStudyRelatedSeries"] or 1 for study in studies)
        fits = totals.studies <= _SCREEN_STUDIES and lines <= _SCREEN_LINES
        depth = "series" if fits or contents.check else "studies"
    if not contents.check:
        with progress("studies that are shown", len(studies)) as shown:
            for study in studies:
                contents.complete(study, series=depth == "series")
                shown.advance()
    if len(studies) == totals.studies:
        # What the archive did not announce is known from the series now.
        totals = _Totals()
        for study in studies:
            totals.add(study)
    print(f"{plain_text(name)}: {_total_text(totals, contents.size)}")
    for line in _tree_lines(studies, shutil.get_terminal_size().columns if sys.stdout.isatty() else None):
        print(line)
    if totals.studies > len(studies):
        more = totals.studies - len(studies)
        print(f"… and {more:,} more {_noun(more, 'study')}: --limit {totals.studies} shows all, --filter some of them")
    if others := len(totals.patients) - len(totals.ids):
        print(f"! {_counted(others, 'patient')} with the ID of a patient of another name")
    if contents.problems:
        print(_problem_text(contents.problems))
    if contents.problems.keys() - {"miscounted series"}:
        print("  `dicomweb-io index ARCHIVE --list` names the files")


def _total_text(totals: _Totals, size: int | None) -> str:
    parts = [_counted(len(totals.patients), "patient"), _counted(totals.studies, "study")]
    parts += [_counted(totals.series, "series"), _counted(totals.instances, "instance")]
    return ", ".join([part for part in parts if part] + ([] if size is None else [format_bytes(size)]))


_PLURALS = {"study": "studies", "series": "series", "miscounted series": "miscounted series"}


def _counted(number: int | None, what: str) -> str:
    """A number of things; empty if it is unknown."""
    return "" if number is None else f"{number:,} {what if number == 1 else _PLURALS.get(what, f'{what}s')}"


def _problem_text(problems: Mapping[str, int]) -> str:
    """What is wrong, in words."""
    texts = [
        f"lists {_counted(number, 'instance')}"
        if kind == "listed"
        else _counted(number, kind if kind == "miscounted series" else f"{kind} file")
        for kind, number in problems.items()
    ]
    return f"! {', '.join(texts)}"


_STUDY_COLUMNS = [_Column("", flexible=number == 2, right=number in (3, 4, 5)) for number in range(6)]
_SERIES_COLUMNS = [_Column("", flexible=number == 2, right=number in (0, 3, 4)) for number in range(5)]


def _tree_lines(studies: Sequence[dict[str, Any]], width: int | None) -> Iterator[str]:
    """Studies, sorted by patient, as the lines of a tree."""
    texts = [_study_texts(study) for study in studies]
    of_series = [[_series_texts(series) for series in study.get("series", ())] for study in studies]
    if width is not None:
        notes = (_note(item) for study in studies for item in (study, *study.get("series", ())))
        width -= min(max(map(len, notes), default=0), width // 3)
    study_lines = _Lines(texts, _STUDY_COLUMNS, width and width - 4, titled=False)
    series_lines = _Lines(chain.from_iterable(of_series), _SERIES_COLUMNS, width and width - 8, titled=False)
    for number, study in enumerate(studies):
        if not number or _patient(studies[number - 1]) != _patient(study):
            yield _patient_text(study)
        last = number + 1 == len(studies) or _patient(studies[number + 1]) != _patient(study)
        yield f"{'└── ' if last else '├── '}{study_lines.line(texts[number])}{_note(study)}"
        pairs = zip(of_series[number], study.get("series", ()), strict=True)
        below = [f"{series_lines.line(line)}{_note(series)}" for line, series in pairs]
        if "error" in study:
            below.append(f"! {study['error']}")
        for place, line in enumerate(below, start=1):
            yield f"{'    ' if last else '│   '}{'└── ' if place == len(below) else '├── '}{line}"


def _note(item: Mapping[str, Any]) -> str:
    """What is wrong with a study or series, for the end of its line."""
    return f"  {_problem_text(item['problems'])}" if item["problems"] else ""


def _patient_text(study: dict[str, Any]) -> str:
    born = study["PatientBirthDate"]
    facts = (
        readable_name(study["PatientName"]) or "(no name)",
        study["PatientID"] or "(no patient ID)",
        f"born {iso_date(born) or born}" if born else "",
        study["PatientSex"],
    )
    return plain_text("  ".join(fact for fact in facts if fact))


def _study_texts(study: dict[str, Any]) -> list[str]:
    texts = (
        _moment(study["StudyDate"], study["StudyTime"]) or "(no date)",
        ", ".join(study["ModalitiesInStudy"]),
        study["StudyDescription"],
        _counted(study["NumberOfStudyRelatedSeries"], "series"),
        _counted(study["NumberOfStudyRelatedInstances"], "instance"),
        "" if study["bytes"] is None else format_bytes(study["bytes"]),
    )
    return [plain_text(text) for text in texts]


def _series_texts(series: dict[str, Any]) -> list[str]:
    number = series["SeriesNumber"]
    texts = (
        "" if number is None else str(number),
        series["Modality"],
        series["SeriesDescription"],
        _counted(series["NumberOfSeriesRelatedInstances"], "instance"),
        "" if series["bytes"] is None else format_bytes(series["bytes"]),
    )
    return [plain_text(text) for text in texts]
