"""What two archives hold in common, and what only one of them has: everything that a `ComparisonJob` names.

`run_comparison` compares it by `dicomweb_io.comparer`, in threads of this process; a transform does so in Beam. Both
count the results with the functions at the end, so that their numbers, lines and words agree.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import groupby
from typing import Any, Literal, cast

from dicomweb_io.account import (
    EXCLUSIONS,
    LINES,
    MAX_REASONS,
    READ,
    REASON,
    REPORT,
    SEARCHES,
    UNMATCHED_LINE,
    conflicts_of,
    failure_line,
    line_words,
    most_frequent,
    reason_of,
    write_summary,
)
from dicomweb_io.client import DICOMClient
from dicomweb_io.comparer import (
    ArchiveComparer,
    Compared,
    Selected,
    SeriesComparison,
    StudyComparison,
    selected_of_row,
)
from dicomweb_io.elements import Difference, Exclusion, Failure, Resource, SearchLevel, SearchQuery
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.failures import RECOVERABLE, failure_of
from dicomweb_io.listing import ListFile, ListLine, Wanted
from dicomweb_io.options import (
    Report,
    UsageError,
    filters_from,
    wanted_from,
)
from dicomweb_io.pool import BoundedPool, Lane
from dicomweb_io.profiles import ComparisonLevel, resolve_profile
from dicomweb_io.queries import level_of
from dicomweb_io.report import check_results, describe, requests_of, write_reports
from dicomweb_io.spool import PrivateDirectory
from dicomweb_io.transfer import TransferJob, excluded_files, match_line, whereabouts

Comparison = Literal["count", "uid", "content"]
"""What is compared: announced numbers, UIDs, or UIDs and contents."""

MAX_SHOWN = 1000
"""The differences that a report names."""

_LEVELS: tuple[ComparisonLevel, ...] = ("file", "dataset", "pixels", "none")
MAX_ELSEWHERE = 10
"""The series that a line names at most as places where else the instances are."""


# The job --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ComparisonJob:
    """One comparison, ready to run. The attributes are those of the command lines.

    Attributes:
        source: The archive that is to be there again.
        destination: The archive that is held against it.
        filters: Attribute to value: only what matches in one of them is compared.
        wanted: What a list names, as in `dicomweb_io.transfer.TransferJob`.
        compare: What is compared.
        output: Where the differences are written, one JSON object a line.
        failures: Where failures are written, likewise.
        summary: Where the summary is written, as JSON.
        report: Where reports are written; see `dicomweb_io.report`.
        spool_directory: Where large instances wait while their contents are compared.
        allow_several_patients: Whether a line of a list may name what belongs to several patients.

    Raises:
        TypeError, ValueError: If a filter is not valid, or the archives cannot be compared in this way.
    """

    source: Endpoint
    destination: Endpoint
    filters: Mapping[str, str] = field(default_factory=dict)
    wanted: tuple[Wanted | ListLine, ...] | ListFile | None = None
    compare: Comparison = "uid"
    output: str | None = None
    failures: str | None = None
    summary: str | None = None
    report: tuple[str, ...] = ()
    spool_directory: str | None = None
    allow_several_patients: bool = False

    def __post_init__(self) -> None:
        levels = [level_of(name) for name in self.sides[0].filters]
        if self.compare == "count" and (self.wanted is not None or "instance" in levels):
            raise UsageError(
                "announced numbers are those of whole series: a list, or a filter on attributes of instances, needs a "
                "comparison by UID"
            )
        self.level  # noqa: B018 - it raises

    @property
    def sides(self) -> tuple[TransferJob, TransferJob]:
        """What is selected in either archive, as transfers from it to the other one."""
        one = TransferJob(
            self.source,
            self.destination,
            self.filters,
            self.wanted,
            on_existing="server",
            allow_several_patients=self.allow_several_patients,
        )
        return one, replace(one, source=self.destination, destination=self.source)

    @property
    def level(self) -> str:
        """How closely instances are compared: ``"count"``, ``"uid"``, or the level that both archives keep."""
        if self.compare != "content":
            return self.compare
        return content_level(self.source, self.destination)

    @property
    def search_level(self) -> SearchLevel:
        """What is searched for in both archives. Below it, everything is compared."""
        if self.compare == "count":
            return "series"
        if all(level_of(name) == "study" and side.copies_series for side in self.sides for name in self.filters):
            return "study"
        return "series" if all(side.copies_series for side in self.sides) else "instance"

    def query(self) -> SearchQuery:
        """The search in both archives."""
        return self.sides[0].query(self.search_level)


def content_level(*endpoints: Endpoint) -> ComparisonLevel:
    """The closest level that all of some archives keep of a stored file.

    Raises:
        UsageError: If one of them keeps none.
    """
    # Folders keep files as they are.
    profiles = [(one, resolve_profile(one.profile, one.url)) for one in endpoints if one.is_web]
    for endpoint, profile in profiles:
        if profile.comparison_level == "none":
            raise UsageError(
                f"contents cannot be compared: {endpoint.safe_url} ({profile.name}) keeps nothing of a stored file "
                "reliably; compare UIDs"
            )
    return max((profile.comparison_level for _, profile in profiles), key=_LEVELS.index, default="file")


def comparison_from(
    args: Any, source: Endpoint, destination: Endpoint, *, workers_elsewhere: bool = False
) -> ComparisonJob:
    """Makes the job of parsed arguments; see `dicomweb_io.options.add_comparison_options`.

    Args:
        args: The parsed arguments.
        source: The archive that is to be there again.
        destination: The archive that is held against it.
        workers_elsewhere: Whether workers on other machines write the differences and failures.

    Raises:
        UsageError: If they are not valid.
    """
    if len(set(args.compare or ())) > 1:
        raise UsageError("--counts and --content contradict each other: give one of them")
    for endpoint in (source, destination):
        if not (endpoint.is_web or "://" in endpoint.url or workers_elsewhere or os.path.isdir(endpoint.url)):
            raise UsageError(f"there is no folder {endpoint.url} to compare")
    # A header or a prefix may choose one of several archives of a server.
    here, there = ((whereabouts(one), one.prefixes, one.headers) for one in (source, destination))
    if here == there:
        raise UsageError(f"the source and the destination are the same: {source.safe_url}")
    check_results(args, "output", "failures", elsewhere=workers_elsewhere)
    try:
        wanted = wanted_from(args.input, allow_patterns=args.allow_patterns) if args.input else None
        given = {item.name: getattr(args, item.name) for item in fields(ComparisonJob)[5:]}
        given["report"] = tuple(args.report or ())
        compare = cast(Comparison, args.compare[0] if args.compare else "uid")
        return ComparisonJob(source, destination, filters_from(args.filters), wanted, compare, **given)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def search_side(client: DICOMClient, job: ComparisonJob, side: int) -> Iterator[Selected | Failure]:
    """What the search of a job selects in one of the archives, and what fails of it."""
    query = job.query()
    try:
        for row in client.iter_search(query):
            yield selected_of_row(row, query.level, side)
    except RECOVERABLE as error:
        yield failure_of(error, SEARCHES[query.level])


def search_line(
    clients: Sequence[DICOMClient], sides: Sequence[TransferJob], line: ListLine
) -> Iterator[Selected | Failure]:
    """What a line of a list selects in both archives; failures if it names nothing in either, or cannot be read."""
    wanted, line = line.wanted, replace(line, difference="")
    if isinstance(wanted, Resource) and not sides[0].filters:
        yield Selected(wanted, place=line.place)
        return
    whole = isinstance(wanted, SearchQuery) and wanted.level == "study" and not sides[0].filters
    unmatched: list[Failure] = []
    failed: set[Failure] = set()
    matched: set[Resource] = set()
    for client, side in zip(clients, sides, strict=True):
        for item in match_line(client, side, line):
            if not isinstance(item, Failure):
                reference = Resource(item.study_instance_uid) if whole else item
                if reference not in matched:
                    matched.add(reference)
                    yield Selected(reference, place=line.place)
            elif item.transform == UNMATCHED_LINE:
                unmatched.append(item)
            elif item not in failed:
                failed.add(item)
                yield item
    if unmatched and not matched and not failed:
        what = unmatched[0].message.partition(":")[2]
        yield replace(unmatched[0], message=f"nothing in either archive matches:{what}")


# The run --------------------------------------------------------------------------------------------------------------


class Ledger:
    """What is selected and what came of it, in a database of its own on disk, so that memory does not grow with it.

    Args:
        path: Where the database is made.
    """

    _TABLES = """
        PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA temp_store = FILE;
        CREATE TABLE selected (study, series, instance, side, patient, number, place);
        CREATE TABLE series (id INTEGER PRIMARY KEY, study, series);
        CREATE TABLE instances (instance, series, side);
        CREATE TABLE differences (study, series, instance, kind, number, reason);
    """

    def __init__(self, path: str) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        os.chmod(path, 0o600)
        self._database.executescript(self._TABLES)
        self._database.execute("BEGIN")

    def close(self) -> None:
        """Closes the database; its file is the caller's."""
        self._database.close()

    def select(self, one: Selected) -> None:
        """Adds what is to be compared."""
        reference = one.reference
        row = (reference.study_instance_uid, reference.series_instance_uid, reference.sop_instance_uid)
        self._database.execute(
            "INSERT INTO selected VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, one.side, one.patient, one.number, one.place)
        )

    def studies(self) -> Iterator[tuple[str, list[Selected]]]:
        """What is to be compared, study by study."""
        rows = self._database.cursor().execute("SELECT * FROM selected ORDER BY study, series, instance")
        for study, group in groupby(rows, key=lambda row: str(row[0])):
            yield study, [Selected(Resource(*row[:3]), *row[3:]) for row in group]

    def add(self, result: Compared) -> None:
        """Adds a result."""
        if isinstance(result, SeriesComparison):
            uids = result.series.study_instance_uid, result.series.series_instance_uid
            number = self._database.execute("INSERT INTO series (study, series) VALUES (?, ?)", uids).lastrowid
            both = (*result.equal, *result.failed, *(uid for uid, _ in result.different))
            for side, names in enumerate((result.missing, result.extra, both)):
                rows = ((name, number, side) for name in names)
                self._database.executemany("INSERT INTO instances VALUES (?, ?, ?)", rows)
        for one in result.differences():
            uids = one.reference.study_instance_uid, one.reference.series_instance_uid or ""
            row = (*uids, one.reference.sop_instance_uid or "", one.kind, one.instances, one.reason)
            self._database.execute("INSERT INTO differences VALUES (?, ?, ?, ?, ?, ?)", row)

    def differences(self) -> Iterator[Difference]:
        """All differences in the order of their UIDs, with where else the other archive has the instances."""
        self._database.execute("CREATE INDEX by_instance ON instances (instance)")
        self._database.execute("CREATE INDEX in_series ON instances (series)")
        self._database.execute("CREATE INDEX by_series ON series (study, series)")
        for row in self._database.cursor().execute("SELECT * FROM differences ORDER BY study, series, instance, kind"):
            study, series, instance, kind, number, reason = row
            found = Difference(kind, Resource(study, series or None, instance or None), number, reason)
            yield replace(found, elsewhere=self._elsewhere(found)) if kind != "different" else found

    def _elsewhere(self, one: Difference) -> tuple[str, ...]:
        """The series of the other archive that have the SOP Instance UIDs of what is missing or extra."""
        own, other = (0, 1) if one.kind == "missing" else (1, 0)
        reference = one.reference
        study, series, instance = (
            reference.study_instance_uid,
            reference.series_instance_uid,
            reference.sop_instance_uid,
        )
        # Two statements, because each has an index of its own.
        if instance is not None:
            query = "SELECT DISTINCT study, series.series FROM instances JOIN series ON id = instances.series "
            query += "WHERE instance = ? AND side IN (?, 2) LIMIT ?"
            rows = self._database.execute(query, (instance, other, MAX_ELSEWHERE))
        else:
            query = "SELECT DISTINCT theirs.study, theirs.series FROM series ours "
            query += "CROSS JOIN instances mine ON mine.series = ours.id AND mine.side = ? "
            query += "CROSS JOIN instances its ON its.instance = mine.instance AND its.side IN (?, 2) "
            query += "CROSS JOIN series theirs ON theirs.id = its.series "
            query += "WHERE ours.study = ? AND ours.series = ? LIMIT ?"
            rows = self._database.execute(query, (own, other, study, series, MAX_ELSEWHERE))
        return tuple(sorted(Resource(*row).uri for row in rows))


def run_comparison(
    job: ComparisonJob,
    *,
    max_in_flight: int = 8,
    on_difference: Callable[[Difference], None] = lambda difference: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
    on_result: Callable[[Compared], None] = lambda result: None,
    clients: tuple[DICOMClient, DICOMClient] | None = None,
) -> dict[str, Any]:
    """Runs a comparison to its end in threads of this process.

    Args:
        job: What to do.
        max_in_flight: Studies at once.
        on_difference: Called with each difference at the end, in the order of their UIDs.
        on_failure: Called with each failure, on this thread.
        on_result: Called with each result as it is known.
        clients: The source and the destination, which stay open; by default they are connected and closed.

    Returns:
        The summary; see `make_comparison_summary`.
    """
    started = time.monotonic()
    counts: Counter[str] = Counter()
    shown: list[Difference] = []
    with ExitStack() as stack:
        if clients is None:
            clients = job.source.connect(), job.destination.connect()
            for client in clients:
                stack.callback(client.close)
        for client, endpoint in zip(clients, (job.source, job.destination), strict=True):
            client.survive_outages(endpoint.timeouts.outage)
        directory = stack.enter_context(PrivateDirectory(job.spool_directory))
        ledger = Ledger(os.path.join(directory, "comparison.sqlite"))
        stack.callback(ledger.close)
        failures = stack.enter_context(Report(job.failures, "--failures"))
        output = stack.enter_context(Report(job.output, "--output"))

        def fail(failure: Failure) -> None:
            counts.update(dict(counts_of_failure(failure)))
            on_failure(failure)
            failures.write(failure_line(failure))

        if _select(clients, job, ledger, fail):
            for result in _results(clients, job, ledger, max_in_flight):
                if isinstance(result, Failure):
                    fail(result)
                    continue
                counts.update(dict(counts_of_result(result)))
                ledger.add(result)
                on_result(result)
        for client, side in zip(clients, job.sides, strict=True):
            for file in excluded_files(client, side):
                for failure in failures_of_file(file):
                    fail(failure)
        for found in ledger.differences():
            counts.update(dict(counts_of_difference(found)))
            on_difference(found)
            output.write(difference_line(found))
            if job.report and len(shown) < MAX_SHOWN:
                shown.append(found)
        requests = [requests_of(role, client) for role, client in zip(_SIDES, clients, strict=True)]
    for report in (failures, output):
        counts["unwritten"] += report.problem is not None
    counts.update(job.sides[0].count_lines())
    summary = make_comparison_summary(job, counts, time.monotonic() - started)
    write_comparison_reports(job, summary, shown, requests)
    write_summary(job.summary, summary)
    return summary


def _select(
    clients: tuple[DICOMClient, DICOMClient], job: ComparisonJob, ledger: Ledger, fail: Callable[[Failure], None]
) -> bool:
    """Writes down what is to be compared; False if an archive could not be searched at all."""
    if job.wanted is not None:
        sides = tuple(replace(side, wanted=None) for side in job.sides)
        for line in job.sides[0].lines:
            for item in search_line(clients, sides, line):
                fail(item) if isinstance(item, Failure) else ledger.select(item)
        return True
    searched = True
    for side, client in enumerate(clients):
        found = failed = False
        for item in search_side(client, job, side):
            if isinstance(item, Failure):
                failed = True
                fail(item)
            else:
                found = True
                ledger.select(item)
        # Each study would fail in the same way.
        searched = searched and (found or not failed)
    return searched


def _results(
    clients: tuple[DICOMClient, DICOMClient], job: ComparisonJob, ledger: Ledger, max_in_flight: int
) -> Iterator[Compared | Failure]:
    pool = BoundedPool(max_in_flight)
    lane: Lane[None, Compared | Failure] = pool.lane()
    with ArchiveComparer(*clients, job.level, spool_directory=job.spool_directory) as comparer:
        try:
            for study, selected in ledger.studies():
                for _, result in lane.submit(None, partial(comparer.compare, study, selected)):
                    yield result
            for _, result in lane.drain():
                yield result
        finally:
            lane.close()
            pool.close()


def failures_of_file(item: Exclusion | Failure) -> Iterator[Failure]:
    """How a file of a folder that was not compared is reported; nothing for what is ignored or an identical copy."""
    if isinstance(item, Failure):
        yield item
    else:
        yield from conflicts_of(item)


def difference_line(found: Difference) -> str:
    """A difference as a line of the output."""
    return json.dumps(found.to_dict())


# The account ----------------------------------------------------------------------------------------------------------

_SIDES = ("source", "destination")
_COUNTED = ("studies", "series", "instances")
_KINDS = ("missing", "extra", "different")
_OPEN = ("not_compared", "search_failures", "unreadable", "conflicting")


def counts_of_result(result: Compared) -> Iterator[tuple[str, int]]:
    """What a result adds to the counts."""
    if isinstance(result, StudyComparison):
        yield from ((f"studies_{side}", int(there)) for side, there in zip(_SIDES, result.there, strict=True))
        yield "other_patient", int(bool(result.reason))
        return
    if isinstance(result, SeriesComparison):
        both = result.in_both
        numbers: tuple[int | None, ...] = (both + len(result.missing), both + len(result.extra))
        numbers = tuple(number or None for number in numbers)
        yield "equal", len(result.equal)
        yield "not_compared", len(result.failed)
    else:
        numbers = result.numbers
        yield "equal", (numbers[0] or 0) if numbers[0] == numbers[1] else 0
    for side, number in zip(_SIDES, numbers, strict=True):
        yield f"series_{side}", int(number is not None)
        yield f"instances_{side}", number or 0
    totals: Counter[str] = Counter()
    for one in result.differences():
        totals[one.kind] += one.instances
    yield from totals.items()


def counts_of_difference(found: Difference) -> Iterator[tuple[str, int]]:
    """What a difference adds to the counts, beside what its result adds."""
    if found.elsewhere:
        yield "elsewhere", 1


def counts_of_failure(failure: Failure) -> Iterator[tuple[str, int]]:
    """What a failure adds to the counts; an instance that could not be compared is counted with its series."""
    reference = failure.reference
    if failure.transform == REPORT:
        yield "unwritten", 1
    elif failure.transform in LINES:
        yield LINES[failure.transform], 1
    elif failure.transform == READ:
        yield "unreadable", 1
    elif failure.transform == EXCLUSIONS and failure.reference is not None:
        yield "conflicting", 1
        # Its reason names two files.
        return
    elif reference is None or reference.level != "instance":
        yield "search_failures", 1
    yield f"{REASON}{reason_of(failure)}", 1


def make_comparison_summary(job: ComparisonJob, counts: Mapping[str, int], seconds: float) -> dict[str, Any]:
    """Makes the summary of a comparison.

    Returns:
        ``compared`` (``"count"``, ``"uid"``, ``"file"``, ``"dataset"`` or ``"pixels"``), ``studies``, ``series`` and
        ``instances`` (of the source and the destination), ``equal``, ``missing``, ``extra`` and ``different``
        instances, ``not_compared`` (their contents could not be read), ``elsewhere`` (differences that name another
        series of the other archive), ``other_patient`` (studies), ``search_failures``, ``unreadable`` and
        ``conflicting`` files of folders, ``lines`` of a list and what is open of them, ``unwritten``, ``reasons`` (of
        failures) and ``seconds``.
    """
    summary: dict[str, Any] = {"source": job.source.safe_url, "destination": job.destination.safe_url}
    summary["compared"] = job.level
    for what in _COUNTED:
        summary[what] = {side: counts.get(f"{what}_{side}", 0) for side in _SIDES}
    names = (
        "equal",
        *_KINDS,
        "elsewhere",
        "other_patient",
        *_OPEN,
        "lines",
        "lines_repeated",
        "lines_extra",
        *LINES.values(),
        "unwritten",
    )
    summary.update({name: counts.get(name, 0) for name in names})
    summary["reasons"] = most_frequent(counts, REASON, MAX_REASONS)
    summary["seconds"] = round(seconds, 3)
    return summary


def write_comparison_reports(
    job: ComparisonJob,
    summary: dict[str, Any],
    differences: Iterable[Difference] = (),
    requests: Iterable[Mapping[str, Any] | None] = (),
) -> None:
    """Writes the reports of a comparison.

    Args:
        job: What was done.
        summary: See `make_comparison_summary`.
        differences: The first differences.
        requests: See `dicomweb_io.report.requests_of`.
    """
    if not job.report:
        return
    told = describe(job.sides[0])
    told |= {"kind": "comparison", "options": {"compared": job.level, **told["options"]}}
    for name in ("on_existing", "verify"):
        del told["options"][name]
    told |= {"complete": comparison_exit_code(summary) == 0, "verdict": _verdict(summary)}
    rows = [[found.kind, found.reference.uri, found.instances, found.reason] for found in differences]
    if rows:
        columns = ["difference", "what", "instances", "reason"]
        told["tables"] = [{"title": "Differences, the first of them", "columns": columns, "rows": rows}]
    write_reports(job.report, summary, {**told, "requests": [item for item in requests if item is not None]})


def differs(summary: Mapping[str, Any]) -> bool:
    """Whether a difference was found."""
    return any(summary[name] for name in (*_KINDS, "other_patient"))


def is_complete(summary: Mapping[str, Any]) -> bool:
    """Whether everything that was asked for could be compared."""
    return not any(summary[name] for name in (*_OPEN, *LINES.values()))


def comparison_exit_code(summary: Mapping[str, Any]) -> int:
    """0 if everything was compared and is the same in both archives, else 1."""
    return 1 if differs(summary) or not is_complete(summary) or summary["unwritten"] else 0


_LEVEL_WORDS = {
    "count": "announced numbers of instances, which is weaker than by UID",
    "uid": "UID",
    "file": "UID and every byte of the files",
    "dataset": "UID and every byte of the datasets",
    "pixels": "UID and decoded pixels",
}


def comparison_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """The summary for people."""
    yield f"Source {summary['source']}, destination {summary['destination']}"
    yield f"Compared by {_LEVEL_WORDS[summary['compared']]}"
    yield f"  {'':14} {'source':>14} {'destination':>14}"
    for what in _COUNTED:
        numbers = summary[what]
        yield f"  {what:14} {numbers['source']:>14,} {numbers['destination']:>14,}"
    yield f"  equal          {summary['equal']:>14,}"
    yield f"  missing        {summary['missing']:>14,}  in the source only"
    yield f"  extra          {summary['extra']:>14,}  in the destination only"
    yield f"  different      {summary['different']:>14,}"
    yield f"  not compared   {summary['not_compared']:>14,}"
    if summary["elsewhere"]:
        number = summary["elsewhere"]
        yield f"  {number:,} of these lines name series of the other archive that have the same SOP Instance UIDs."
    if summary["other_patient"]:
        yield f"  {summary['other_patient']:,} studies belong to another patient in the destination."
    words = {
        "search_failures": "searches failed or were incomplete, so not everything was compared",
        "unreadable": "files cannot be read",
        "conflicting": "files have the UIDs of another file and other contents, and were not compared",
        "unwritten": "reports could not be written; standard error has what was to be in them",
    }
    for name, text in words.items():
        if summary[name]:
            yield f"  {summary[name]:,} {text}."
    yield from line_words(summary)
    for reason, number in list(summary["reasons"].items())[:10]:
        yield f"    {number:,} x {reason}"
    yield f"  {_verdict(summary)}"
    if summary["missing"]:
        yield "  What is missing is copied by copy --input, which takes the lines of this comparison as its list."


def _verdict(summary: Mapping[str, Any]) -> str:
    """The outcome in a sentence."""
    if differs(summary):
        rest = "" if is_complete(summary) else ", and not everything could be compared"
        return f"The archives differ{rest}."
    if not is_complete(summary):
        return "Not everything could be compared, so it is unknown whether the archives differ."
    return "Both archives hold the same." if any(summary["studies"].values()) else "Nothing was found."
