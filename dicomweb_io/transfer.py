"""The transfer engine: instances from one archive to another, bytes unchanged, and an account of each.

`run_transfer` copies everything that a `TransferJob` names, in threads of this process; the transforms do it in Beam.
Both move instances by `dicomweb_io.copier` and keep their account by `dicomweb_io.account`, so that their numbers,
words and files agree.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from dicomweb_io.account import (
    EXCLUSIONS,
    READ,
    REPORT,
    ROW,
    SEARCHES,
    SEVERAL_PATIENTS,
    UNMATCHED_LINE,
    UNREADABLE_LINE,
    Account,
    Entry,
    Facts,
    conflicts_of,
    failure_line,
    make_summary,
    write_summary,
)
from dicomweb_io.client import DICOMClient, OnExisting, Verify
from dicomweb_io.copier import CopyOptions, InstanceCopier
from dicomweb_io.elements import (
    UID_KEYWORDS,
    Exclusion,
    Failure,
    JSONDataset,
    Resource,
    SearchLevel,
    SearchQuery,
)
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import ConnectionFailedError, CredentialsError, DICOMwebError, log_text
from dicomweb_io.failures import RECOVERABLE, failure_of, not_tried
from dicomweb_io.files.local import folder_of
from dicomweb_io.http.auth import Credentials
from dicomweb_io.listing import (
    DIFFERENT_LINE,
    InstanceGroup,
    ListFile,
    ListLine,
    SeriesListing,
    Wanted,
    group_by_series,
    keys_of,
    list_groups,
    resource_of_row,
    several_patients,
    spread,
)
from dicomweb_io.options import (
    Report,
    UsageError,
    filters_from,
    report_lines,
    wanted_from,
)
from dicomweb_io.pool import BoundedPool, Lane, Room
from dicomweb_io.queries import level_of, make_query
from dicomweb_io.report import check_results, requests_of, write_transfer_reports
from dicomweb_io.store_items import check_options

logger = logging.getLogger("dicomweb_io")

_PATIENCE = 1.0
"""Seconds that threads have to end when a transfer is interrupted."""


@dataclass(frozen=True)
class TransferJob:
    """One transfer, ready to run. The attributes are those of the command lines.

    Attributes:
        source: Where to copy from.
        destination: Where to copy to.
        filters: Attribute to value: only what matches is copied.
        wanted: What a list names, its lines, or the list itself; None for everything that the source holds.
        failures: Where failures are written, one JSON object a line.
        summary: Where the summary is written, as JSON.
        report: Where reports are written; see `dicomweb_io.report`.
        on_existing, verify, allow_transcoding, spool_directory, allow_other_patient, dry_run: See `CopyOptions`.
        allow_several_patients: Whether a line of a list may name what belongs to several patients.
        layout: The layout of the destination, a folder; it becomes part of `destination`. See `Endpoint`.

    Raises:
        TypeError, ValueError: If a filter or policy is not valid.
    """

    source: Endpoint
    destination: Endpoint
    filters: Mapping[str, str] = field(default_factory=dict)
    wanted: tuple[Wanted | ListLine, ...] | ListFile | None = None
    failures: str | None = None
    summary: str | None = None
    report: tuple[str, ...] = ()
    on_existing: OnExisting = "skip"
    verify: Verify = "response"
    allow_transcoding: bool = False
    spool_directory: str | None = None
    allow_several_patients: bool = False
    allow_other_patient: bool = False
    layout: str | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        check_options(self.on_existing, self.verify)
        if self.layout is not None:
            object.__setattr__(self, "destination", self.destination.replace(layout=self.layout))
        self.query()

    @property
    def copies_series(self) -> bool:
        """Whether whole series are requested: no single instances are named.

        The files of a series in a folder may disagree about their series, so there each is compared with filters.
        """
        if self.wanted is not None:
            return False
        return not self.filters or (self.source.is_web and all(level_of(name) != "instance" for name in self.filters))

    @property
    def level(self) -> SearchLevel:
        """What is searched for at the source."""
        return "series" if self.copies_series else "instance"

    @property
    def counts_files(self) -> bool:
        """Whether what is found are files, of which some may not represent an instance: all of a folder."""
        return not self.source.is_web and self.wanted is None

    @property
    def lines(self) -> Iterator[ListLine]:
        """The lines of the list; none without a list."""
        if isinstance(self.wanted, ListFile):
            yield from self.wanted.lines()
            return
        for number, item in enumerate(self.wanted or (), 1):
            yield item if isinstance(item, ListLine) else ListLine(f"element {number}", item)

    def count_lines(self) -> dict[str, int]:
        """The number of lines of the list, of those that repeat an earlier one, and of those that ask for nothing."""
        lines, readable, extra, seen = 0, 0, 0, set[int]()
        for line in self.lines:
            lines += 1
            if line.difference == "extra":
                extra += 1
            elif line.wanted is not None:
                readable += 1
                seen.add(hash(line.wanted))
        return {"lines": lines, "lines_repeated": readable - len(seen), "lines_extra": extra}

    def query(self, level: SearchLevel = "instance", within: Wanted | None = None) -> SearchQuery:
        """The search at the source for what matches, of all or of what a line of a list names."""
        if isinstance(within, SearchQuery):
            return replace(within, search_filters=(*within.search_filters, *self.query(level).search_filters))
        study, series = (within.study_instance_uid, within.series_instance_uid) if within is not None else (None, None)
        return make_query(level, study, series, search_filters=self.filters, permissive_uid=True)

    @property
    def options(self) -> CopyOptions:
        """How instances are copied."""
        names = ("on_existing", "verify", "allow_transcoding", "spool_directory", "allow_other_patient", "dry_run")
        return CopyOptions(**{name: getattr(self, name) for name in names})


def job_from(args: Any, source: Endpoint, destination: Endpoint, *, workers_elsewhere: bool = False) -> TransferJob:
    """Makes the job of parsed arguments; see `dicomweb_io.options.add_transfer_options`.

    Args:
        args: The parsed arguments.
        source: Where to copy from.
        destination: Where to copy to.
        workers_elsewhere: Whether workers on other machines write the failures.

    Raises:
        UsageError: If they are not valid.
    """
    check_results(args, "failures", elsewhere=workers_elsewhere)
    try:
        wanted = wanted_from(args.input, allow_patterns=args.allow_patterns) if args.input else None
        given = {item.name: getattr(args, item.name) for item in fields(TransferJob)[4:]}
        given["report"] = tuple(args.report or ())
        return TransferJob(source, destination, filters_from(args.filters), wanted, **given)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def check_places(job: TransferJob) -> None:
    """Looks at the folders and secrets of a transfer on this computer, before any request.

    Raises:
        UsageError: If the source is no folder, the destination cannot be one, one of them lies inside the other, or a
            secret is missing.
    """
    for role, end in (("source", job.source), ("destination", job.destination)):
        if isinstance(end.credentials, Credentials):
            try:
                end.credentials.check()
            except CredentialsError as error:
                raise UsageError(f"the login for the {role} {end.safe_url}: {error.detail}") from error
    source, destination = whereabouts(job.source), whereabouts(job.destination)
    if source == destination:
        raise UsageError(f"the source and the destination are the same: {job.source.safe_url}")
    if not job.source.is_web and not job.destination.is_web:
        for inner, outer, what in (
            (destination, source, "the destination {1} lies inside the source {0}, and would be copied with it"),
            (source, destination, "the source {0} lies inside the destination {1}, which so has everything already"),
        ):
            if inner.startswith(outer.rstrip("/") + "/"):
                raise UsageError(what.format(job.source.safe_url, job.destination.safe_url))
    if os.path.isabs(source):
        if os.path.isfile(source):
            raise UsageError(f"{job.source.safe_url} is a file: name its folder, or store it with dicomweb-io store")
        if not os.path.isdir(source):
            raise UsageError(f"there is no folder {job.source.safe_url} to copy from")
    if os.path.isabs(destination):
        _check_folder(destination)


def whereabouts(endpoint: Endpoint) -> str:
    """What two endpoints have in common that are the same archive; an absolute path for a folder of this computer."""
    if endpoint.is_web:
        return endpoint.safe_url.rstrip("/").lower()
    folder = folder_of(endpoint.url, endpoint.storage_options)
    return os.path.realpath(folder.url) if folder.is_local else endpoint.safe_url.rstrip("/")


def _check_folder(path: str) -> None:
    """Whether a folder can be written to, or made.

    Raises:
        UsageError: If not.
    """
    above = path
    while not os.path.lexists(above) and os.path.dirname(above) != above:
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        raise UsageError(f"the destination {path} cannot be a folder: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        verb = "be written to" if above == path else f"be made: {above} cannot be written to"
        raise UsageError(f"the destination {path} cannot {verb}")


def check_archives(job: TransferJob, clients: tuple[DICOMClient, DICOMClient]) -> None:
    """Asks each server once, so that one which refuses the login or is not there ends a transfer before it begins.

    A folder in a bucket is asked for too: a bucket that does not exist is never made, as its name may be mistyped.

    A server that does not answer a search in another way may still do what the transfer needs.

    Raises:
        StoppedError: If a server refuses the login or cannot be reached. Reports and summary say so too.
    """
    for role, client in zip(("source", "destination"), clients, strict=True):
        try:
            if client.transport is None:
                client.check_place()
            else:
                client.search_page(make_query("study"), limit=1, walk=False)
        except RECOVERABLE as error:
            if client.transport is None:
                _report_stop(job, failure_of(error, SEARCHES["study"]))
                reason = getattr(error, "detail", error)
                raise StoppedError(f"the {role} cannot be used, so nothing was copied: {reason}") from error
            needed = role == "source" or job.on_existing == "skip"
            refused = getattr(error, "status", None) in ((401, 403) if needed else (401,))
            if not isinstance(error, DICOMwebError) or not (
                refused or isinstance(error, (ConnectionFailedError, CredentialsError))
            ):
                logger.info("the first request to %s: %s", client.base_url, log_text(error))
                continue
            what = "refuses the login" if refused else "cannot be asked"
            _report_stop(job, failure_of(error, SEARCHES["study"]))
            raise StoppedError(f"the {role} {client.base_url} {what}, so nothing was copied: {error}") from error


def _report_stop(job: TransferJob, failure: Failure) -> None:
    """Writes the files of a transfer that cannot begin: those of an earlier run would look like its own."""
    account = Account()
    account.add(failure)
    if job.failures is not None:
        report_lines(job.failures, "--failures", [failure_line(failure)])
    summary = make_summary(account.document(), 0.0, dry_run=job.dry_run)
    write_transfer_reports(job, summary, {})
    write_summary(job.summary, summary)


class StoppedError(OSError):
    """A transfer that cannot begin, in one sentence."""


class TransferInterrupted(KeyboardInterrupt):
    """A transfer that Ctrl-C has ended.

    Attributes:
        summary: Of what was done before; see `make_summary`.
    """

    def __init__(self, summary: dict[str, Any]) -> None:
        super().__init__("interrupted; the same command goes on with what is missing")
        self.summary = summary


def run_transfer(
    job: TransferJob,
    *,
    max_in_flight: int = 8,
    account: Account | None = None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
    clients: tuple[DICOMClient, DICOMClient] | None = None,
) -> dict[str, Any]:
    """Runs a transfer to its end in threads of this process.

    Args:
        job: What to do.
        max_in_flight: Series at once.
        account: Takes every result as it is known; another thread may read its numbers meanwhile.
        on_failure: Called with each failure, on this thread.
        clients: The source and the destination, which stay open; by default they are connected and closed.

    Returns:
        The summary; see `make_summary`.

    Raises:
        TransferInterrupted: On Ctrl-C. What was known by then is reported.
    """
    started = time.monotonic()
    interrupted = False
    account = account if account is not None else Account()
    if job.report and account.facts is None:
        account.facts = Facts()
    with ExitStack() as stack:
        if clients is None:
            clients = job.source.connect(), job.destination.connect()
            for client in clients:
                stack.callback(client.close)
        for client, endpoint in zip(clients, (job.source, job.destination), strict=True):
            client.survive_outages(endpoint.timeouts.outage)
        failures = stack.enter_context(Report(job.failures, "--failures"))
        copier = stack.enter_context(InstanceCopier(*clients, job.options))
        entries = _all_entries(clients[0], job, copier, max_in_flight)
        try:
            for entry in entries:
                account.add(entry)
                for failure in _failures_in(entry):
                    on_failure(failure)
                    failures.write(failure_line(failure))
        except KeyboardInterrupt:
            interrupted = True
        finally:
            entries.close()
        requests = [requests_of(role, client) for role, client in zip(("source", "destination"), clients, strict=True)]
    if failures.problem is not None:
        account.add(Failure(REPORT, failures.problem))
    account.counts.update(job.count_lines())
    document, seconds = account.document(), time.monotonic() - started
    summary = make_summary(document, seconds, dry_run=job.dry_run, interrupted=interrupted)
    write_transfer_reports(job, summary, document.get("facts", {}), requests)
    write_summary(job.summary, summary)
    if interrupted:
        raise TransferInterrupted(summary)
    return summary


def _failures_in(entry: Entry) -> Iterable[Failure]:
    if isinstance(entry, Failure):
        return [entry]
    return conflicts_of(entry) if isinstance(entry, Exclusion) else ()


def _all_entries(
    source: DICOMClient, job: TransferJob, copier: InstanceCopier, max_in_flight: int
) -> Generator[Entry, None, None]:
    pool = BoundedPool(max_in_flight)
    lane: Lane[None, Entry] = pool.lane()
    places: dict[Resource, str] = {}
    try:
        for task in _tasks(source, job, places):
            if isinstance(task, Failure):
                yield task
                continue
            for _, entry in lane.submit(None, partial(_entries, source, copier, task)):
                yield named_by(entry, places) if isinstance(entry, Failure) else entry
        for _, entry in lane.drain():
            yield named_by(entry, places) if isinstance(entry, Failure) else entry
        yield from excluded_files(source, job)
    except (GeneratorExit, KeyboardInterrupt):
        # The process may end next: what its threads are writing is to be whole.
        lane.close()
        pool.settle(_PATIENCE)
        raise
    finally:
        lane.close()
        pool.close()


def _tasks(
    source: DICOMClient, job: TransferJob, places: dict[Resource, str]
) -> Iterator[Resource | InstanceGroup | Failure]:
    """Series that are wanted whole, or groups of instances; and searches that failed. It notes who names what."""
    failures: list[Failure] = []
    if job.copies_series:
        yield from dict.fromkeys(_found(source, job.query("series"), failures))
    else:
        listing = SeriesListing(source)
        for group in group_by_series(_distinct(_wanted(source, job, failures, places))):
            yield from spread(group, listing)
    yield from failures


def _wanted(
    source: DICOMClient, job: TransferJob, failures: list[Failure], places: dict[Resource, str]
) -> Iterator[Resource]:
    if job.wanted is None:
        yield from _found(source, job.query("instance"), failures)
    for line in job.lines:
        by_study = isinstance(line.wanted, SearchQuery) and line.wanted.level == "study"
        if isinstance(line.wanted, Resource):
            places.setdefault(line.wanted, line.place)
        for item in match_line(source, job, line):
            if isinstance(item, Failure):
                failures.append(item)
                continue
            if isinstance(line.wanted, SearchQuery):
                places.setdefault(Resource(item.study_instance_uid) if by_study else item, line.place)
            yield item


def match_line(source: DICOMClient, job: TransferJob, line: ListLine) -> Iterator[Resource | Failure]:
    """The instances that a line of a list names; or the failure that says why it names none."""
    wanted, failures = line.wanted, list[Failure]()
    if wanted is None:
        yield Failure(UNREADABLE_LINE, f"the line cannot be read: {line.problem}", source=line.place, line=line.place)
        return
    if line.difference == "extra":
        return
    place = line.place
    reference = wanted if isinstance(wanted, Resource) else None
    skips = job.on_existing == "skip" and job.verify != "content"
    if line.difference == "different" and skips and reference is not None and reference.level != "series":
        message = "the destination has it, with other contents, and was not changed: --on-existing replace replaces it"
        yield Failure(DIFFERENT_LINE, message, reference=reference, source=place, line=place)
        return
    asked = json.dumps(keys_of(wanted)) if isinstance(wanted, SearchQuery) else None
    if isinstance(wanted, Resource) and wanted.level == "instance" and not job.filters:
        yield wanted
        return
    if isinstance(wanted, SearchQuery) and wanted.level == "study":
        rows = _studies(source, wanted, failures)
        problem = None if job.allow_several_patients else several_patients(rows)
        if problem is not None:
            yield Failure(SEVERAL_PATIENTS, problem, source=place, line=place, wanted=asked)
            return
        queries = [job.query("instance", study) for study in dict.fromkeys(_resources(rows, "study", failures))]
    elif isinstance(wanted, Resource) and wanted.level == "instance":
        series = job.query("instance", wanted.series)
        only = (UID_KEYWORDS["instance"], str(wanted.sop_instance_uid))
        queries = [replace(series, search_filters=(only, *series.search_filters))]
    else:
        queries = [job.query("instance", wanted)]
    matched = False
    for query in queries:
        for instance in _found(source, query, failures):
            matched = True
            yield instance
    for failure in failures:
        yield replace(failure, source=place, line=place, wanted=None if failure.reference else asked)
    if not matched and not failures:
        message = f"nothing at the source matches: {_words(wanted)}"
        yield Failure(UNMATCHED_LINE, message, reference=reference, source=place, line=place, wanted=asked)


def named_by(failure: Failure, places: Mapping[Resource, str]) -> Failure:
    """A failure with the line of the list that names what it concerns, if one does."""
    reference = failure.reference
    if failure.line is None and reference is not None and places:
        for one in (reference.instance, reference.series, Resource(reference.study_instance_uid)):
            if one in places:
                return replace(failure, line=places[one])
    return failure


def places_of(group: InstanceGroup) -> Iterator[tuple[Resource, str]]:
    """What a line of a list has named, a series or a single instance, and the line."""
    if group.line is not None:
        yield (group.references[0] if len(group.sop_instance_uids) == 1 else group.series), group.line


def _studies(source: DICOMClient, query: SearchQuery, failures: list[Failure]) -> list[JSONDataset]:
    """The studies that a line of a list names, with their issuers if there are several."""
    try:
        rows = list(source.iter_search(query))
        issuers = ("IssuerOfPatientID", "IssuerOfAccessionNumberSequence")
        if len(rows) > 1 and not query.fields:
            try:
                return list(source.iter_search(replace(query, fields=issuers)))
            except RECOVERABLE as error:
                logger.info("the issuers of %d studies are unknown: %s", len(rows), log_text(error))
        return rows
    except RECOVERABLE as error:
        failures.append(failure_of(error, SEARCHES["study"]))
        return []


def _words(wanted: Wanted) -> str:
    """What a line asks for, in words; a patient's identifier is not repeated."""
    if isinstance(wanted, Resource):
        return wanted.uri
    words = ", ".join(key if "Patient" in key else f"{key} {value}" for key, value in wanted.search_filters)
    if any(key in ("AccessionNumber", "PatientID") and value.isdigit() for key, value in wanted.search_filters):
        return f"{words} (a spreadsheet may have removed leading zeros)"
    if any(value.endswith(".0") and value[:-2].isdigit() for _, value in wanted.search_filters):
        return f"{words} (a spreadsheet may have added .0)"
    return words


def _distinct(references: Iterable[Resource]) -> Iterator[Resource]:
    seen: set[Resource] = set()
    for reference in references:
        if reference not in seen:
            seen.add(reference)
            yield reference


def _found(source: DICOMClient, query: SearchQuery, failures: list[Failure]) -> Iterator[Resource]:
    """What a search names; rows that name nothing, and a search that ends early, are failures."""
    try:
        yield from _resources(source.iter_search(query), query.level, failures)
    except RECOVERABLE as error:
        failures.append(failure_of(error, SEARCHES[query.level]))


def _resources(rows: Iterable[JSONDataset], level: SearchLevel, failures: list[Failure]) -> Iterator[Resource]:
    for row in rows:
        try:
            found = resource_of_row(row, level)
        except (TypeError, ValueError) as error:
            failures.append(failure_of(error, ROW))
            continue
        yield found


def _entries(
    source: DICOMClient, copier: InstanceCopier, task: Resource | InstanceGroup, room: Room
) -> Iterator[Entry]:
    """Copies a series or a group; yields what it consists of, and then the result for each instance."""
    reason = source.unavailable
    if reason is not None and not isinstance(task, InstanceGroup):
        yield not_tried(reason, copier.transform, reference=task)
        return
    groups: Iterable[InstanceGroup] = [task] if isinstance(task, InstanceGroup) else list_groups(source, task)
    series = task.series if isinstance(task, InstanceGroup) else task
    found = False
    try:
        for group in groups:
            found = True
            yield group
            for _, result in copier.iter_group(group, room):
                yield result
    except RECOVERABLE as error:
        yield failure_of(error, copier.transform, reference=series)
        return
    if not found:
        yield nothing_listed(source, series, copier.transform)


def nothing_listed(client: DICOMClient, reference: Resource, transform: str) -> Failure:
    """The failure of a study or series that has no instances: a reference must not vanish."""
    return Failure(transform, f"{client.base_url} lists no instances of {reference.uri}", reference=reference)


def excluded_files(source: DICOMClient, job: TransferJob) -> Iterator[Exclusion | Failure]:
    """The files of a folder that a job leaves out; unreadable ones as failures.

    With a list, only those of what it names whose content is not copied.
    """
    if job.source.is_web:
        return
    named: set[Resource] = set()
    try:
        for exclusion in source.iter_exclusions(job.query()):
            file, unreadable = exclusion.reference, exclusion.kind == "unreadable"
            if job.wanted is not None:
                if file is None or not (exclusion.conflicts or unreadable):
                    continue
                named = named or set(_named(source, job))
                if named.isdisjoint((file, file.series, Resource(file.study_instance_uid))):
                    continue
            if unreadable:
                yield Failure(READ, exclusion.reason, reference=file, source=exclusion.path)
            else:
                yield exclusion
    except RECOVERABLE as error:
        yield failure_of(error, EXCLUSIONS)


def _named(source: DICOMClient, job: TransferJob) -> Iterator[Resource]:
    """The studies, series and instances that the lines of a list name."""
    for line in job.lines:
        if isinstance(line.wanted, SearchQuery):
            yield from _resources(source.iter_search(line.wanted), line.wanted.level, [])
        elif line.wanted is not None and line.difference != "extra":
            yield line.wanted
