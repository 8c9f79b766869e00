"""Tables of what an archive holds: a row for each study, series or instance, in Parquet, CSV or JSON lines.

`TableJob` says which rows and columns are wanted; `run_table` writes them, and `iter_table` gives them to a program.
The rows come from searches or, with `TableJob.full`, from the metadata. A table that is refreshed continues from a
cursor: the studies that arrived or grew since then replace their old rows. What a row holds is decided by
`dicomweb_io.dicom.columns` here as in pipelines.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import date, datetime, timezone
from functools import partial
from itertools import chain
from typing import Any, Literal

from dicomweb_io.account import (
    REASON,
    REPORT,
    ROW,
    SEARCHES,
    failure_line,
    format_bytes,
    most_frequent,
    reason_of,
    write_summary,
)
from dicomweb_io.changes import ChangeMethod, Cursor, Place, PlaceFile, Start, change_source, digest_of
from dicomweb_io.client import DICOMClient
from dicomweb_io.dicom.columns import (
    COLUMNS,
    Column,
    RowMaker,
    attributes_in,
    column_of,
    columns_of,
    fields_of,
    has_value,
)
from dicomweb_io.dicom.json_decode import dumps, first_text, loads
from dicomweb_io.elements import (
    COLLECTIONS,
    LEVELS,
    UID_KEYWORDS,
    UID_TAGS,
    Failure,
    JSONDataset,
    Resource,
    SearchLevel,
    SearchQuery,
    open_path,
)
from dicomweb_io.endpoint import Endpoint, EndpointLike
from dicomweb_io.errors import DICOMError, log_text, safe_url
from dicomweb_io.failures import RECOVERABLE, failure_of, not_tried
from dicomweb_io.listing import (
    ASK_FROM,
    InstanceGroup,
    ListFile,
    SeriesListing,
    group_by_series,
    instance_of_row,
    is_worth_whole,
    resource_of_row,
)
from dicomweb_io.options import Report, UsageError, check_distinct, check_writable, filters_from, wanted_from
from dicomweb_io.pool import BoundedPool, Lane, Room
from dicomweb_io.queries import apportion, check_limits, level_of, make_query
from dicomweb_io.spool import PrivateDirectory
from dicomweb_io.table_files import (
    FORMATS,
    TableFormat,
    TableWriter as TableWriter,
    columns_in,
    columns_in_parquet,
    files_of,
    format_of,
    incomplete_name,
    parts_in,
    read_table,
)
from dicomweb_io.transfer import TransferJob, match_line

logger = logging.getLogger("dicomweb_io")

ALL = ("all",)
"""The columns of a table that has whatever the rows carry."""

METADATA = "RetrieveMetadata"
_FAILED = ("failed", "not_tried")
_MAX_BYTES = 64 * 1024 * 1024
_ROW_BYTES = 8 * 1024
_METADATA_BYTES = 64 * 1024
_STUDY = "StudyInstanceUID"
_EXPORTED = Column("exported_at", (), datetime, False)
"""When a row was written: in a folder that is refreshed, the latest rows of a study are its rows."""


@dataclass(frozen=True)
class TableJob:
    """One table, ready to be written. The attributes are those of the command lines.

    Attributes:
        source: The archive.
        level: What a row is: a ``"study"``, ``"series"`` or ``"instance"``.
        out: The file or folder, a local path or an fsspec URL; its suffix says the format.
        columns: Keywords, tags, paths; see `dicomweb_io.dicom.columns.column_of`. Empty for those of the level;
            ``("all",)`` for whatever the rows carry.
        filters: Attribute to value: only what matches is in the table.
        wanted: What a list names, its lines, or the list itself; None for everything that the archive holds.
        limit: The maximum number of studies, series or instances.
        full: Whether values come from the metadata, instead of from searches alone. A study or series has those of one
            of its instances.
        explode: A sequence of which each item becomes a row.
        typed_dates: Whether dates and times have types of their own instead of being text.
        partition_by: The column by whose values the table is divided into folders (``StudyDate=2024-02-29``).
        rows_per_file: The maximum number of rows of a file; the table is a folder then.
        bom: Whether a CSV file begins with a byte order mark, which Excel needs to read UTF-8.
        since: None, or where a refresh begins: ``"last"`` where the last one ended, or a day.
        cursor: The file that records where a refresh ended; by default it lies beside the table.
        method, lookback: How to find out what is new; see `dicomweb_io.changes.change_source`.
        failures: Where failures are written, one JSON object a line.
        summary: Where the summary is written, as JSON.
        allow_several_patients: Whether a line of a list may name what belongs to several patients.

    Raises:
        TypeError, ValueError: If one is not valid, or does not fit the others.
    """

    source: Endpoint
    level: SearchLevel
    out: str
    columns: tuple[str, ...] = ()
    filters: Mapping[str, str] = field(default_factory=dict)
    wanted: tuple[Any, ...] | ListFile | None = None
    limit: int | None = None
    full: bool = False
    explode: str | None = None
    typed_dates: bool = False
    partition_by: str | None = None
    rows_per_file: int | None = None
    bom: bool = False
    since: date | Literal["last"] | None = None
    cursor: str | None = None
    method: ChangeMethod = "auto"
    lookback: float | None = None
    failures: str | None = None
    summary: str | None = None
    allow_several_patients: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", self.out.rstrip("/"))
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}, not {self.level!r}")
        check_limits(self.limit, None, self.rows_per_file)
        if self.table is None and self.format is None:
            raise ValueError(
                f"--out {safe_url(self.out)}: the name of a table ends in {', '.join(FORMATS)}, or is "
                "bq:PROJECT.DATASET.TABLE"
            )
        columns = () if self.takes_all else self.table_columns
        self.query()
        if self.explode is not None:
            columns_of([_STUDY], exploded=self.explode)
            inside = [column for column in columns if len(column.steps) > 1 and column.steps[0].item == 0]
            if not self.takes_all and not inside:
                raise ValueError(f"--explode {self.explode}: no column is in it; name one, as {self.explode}.CodeValue")
        if self.table is not None and (self.is_folder or self.refreshes or self.takes_all):
            raise ValueError("a table of BigQuery takes named columns, and neither partitions, files nor a cursor")
        if self.partition_by is not None:
            by = column_of(self.partition_by)
            divided = [column for column in columns or [by] if column.name == by.name]
            if not divided or divided[0].many:
                raise ValueError(f"--partition-by {self.partition_by}: this is no column of the table with one value")
        if self.wanted is not None and self.limit is not None:
            raise ValueError("a list says what is wanted: leave --limit out")
        if self.refreshes:
            if self.takes_all or not any(column.name == _STUDY for column in columns):
                raise ValueError(f"a table that is refreshed has named columns, and {_STUDY} is one of them")
            if self.wanted is not None or self.limit is not None:
                raise ValueError("a table that is refreshed holds all that matches: leave --input and --limit out")
            self.change_source()

    @property
    def takes_all(self) -> bool:
        """Whether the table has whatever the rows carry."""
        return self.columns == ALL

    @property
    def table_columns(self) -> tuple[Column, ...]:
        """The columns, if they are named."""
        return columns_of(
            self.columns or COLUMNS[self.level],
            typed_dates=self.typed_dates,
            typed_times=self.typed_dates,
            exploded=self.explode,
        )

    @property
    def table(self) -> str | None:
        """The table of BigQuery, as ``PROJECT:DATASET.TABLE``; None if the table is a file or folder."""
        parts = self.out[3:].replace(":", ".").split(".") if self.out.startswith("bq:") else []
        return f"{'.'.join(parts[:-2])}:{'.'.join(parts[-2:])}" if len(parts) > 2 and all(parts) else None

    @property
    def format(self) -> TableFormat | None:
        """The format of the files."""
        return format_of(self.out)

    @property
    def is_folder(self) -> bool:
        """Whether the table is a folder of files."""
        return self.partition_by is not None or self.rows_per_file is not None

    @property
    def refreshes(self) -> bool:
        """Whether the table continues from where it ended."""
        return self.since is not None or self.cursor is not None

    def query(self, within: Resource | None = None) -> SearchQuery:
        """The search for the rows, of all or of a study, series or instance."""
        filters: dict[str, str] = dict(self.filters)
        uids = dict(within.uids) if within is not None else {}
        if self.level in uids:
            filters[UID_KEYWORDS[self.level]] = uids.pop(self.level)
        fields = ["all"] if self.takes_all else fields_of(self.table_columns)
        where = uids.get("study"), uids.get("series")
        return make_query(self.level, *where, fields=fields, search_filters=filters, permissive_uid=True)

    @property
    def takes_series(self) -> bool:
        """Whether rows of instances are those of whole series."""
        filters = self.query().search_filters
        return self.wanted is None and self.limit is None and all(level_of(key) != "instance" for key, _ in filters)

    def list_job(self) -> TransferJob:
        """What matches the lines of the list; see `dicomweb_io.transfer.match_line`."""
        several = self.allow_several_patients
        return TransferJob(
            self.source, self.source, self.filters, self.wanted, on_existing="server", allow_several_patients=several
        )

    def change_source(self) -> Any:
        """What reports the studies that are new or have grown."""
        named = dict(apportion(self.query())["study"])
        return change_source(
            self.source,
            "study_change",
            search_filters=named,
            method=self.method,
            lookback=self.lookback,
            thorough=True,
        )

    @property
    def cursor_file(self) -> str:
        """Where the position of a refresh is kept."""
        return self.cursor or f"{self.out}.cursor"


# Datasets -------------------------------------------------------------------------------------------------------------


def iter_datasets(
    client: DICOMClient, job: TableJob, *, studies: Iterable[Resource] | None = None, max_in_flight: int = 8
) -> Generator[JSONDataset | Failure, None, None]:
    """The datasets that rows are made of, in the DICOM JSON model, and what failed.

    Args:
        client: The archive.
        job: The table.
        studies: Only these studies; None for what the job names.
        max_in_flight: Requests at once.
    """
    pool = BoundedPool(max_in_flight, _MAX_BYTES)
    lane: Lane[None, JSONDataset | Failure] = pool.lane()
    try:
        for task in _tasks(client, job, studies):
            if callable(task):
                for _, item in lane.submit(None, task):
                    yield item
            else:
                yield task
        for _, item in lane.drain():
            yield item
    finally:
        lane.close()
        pool.close()


Task = Callable[[Room], Iterator[JSONDataset | Failure]]


def _tasks(
    client: DICOMClient, job: TableJob, studies: Iterable[Resource] | None
) -> Iterator[Task | JSONDataset | Failure]:
    """What threads do, or what is known already."""
    if studies is not None:
        for study in studies:
            yield partial(_searched, client, job, study, ())
    elif job.wanted is not None:
        yield from _listed(client, job)
    else:
        rows = _rows(client, job.query(), job.limit)
        yield from _completed(client, job, rows) if job.full else rows


def _listed(client: DICOMClient, job: TableJob) -> Iterator[Task | Failure]:
    """The rows of what a list names."""
    listed = job.list_job()
    failures: list[Failure] = []
    seen: set[Resource] = set()

    def named() -> Iterator[Resource]:
        for line in listed.lines:
            for item in match_line(client, listed, line):
                if isinstance(item, Failure):
                    failures.append(item)
                elif (found := up_to(item, job.level)) not in seen:
                    seen.add(found)
                    yield found

    # What a line names was compared with the filters already.
    plain = replace(job, filters={})
    if job.level == "instance":
        for group in group_by_series(named()):
            yield partial(_searched, client, plain, group.series, group.sop_instance_uids)
    else:
        for resource in named():
            yield partial(_searched, client, plain, resource, (list(resource.uids.values())[-1],))
    yield from failures


def up_to(resource: Resource, level: SearchLevel) -> Resource:
    """A reference without what is below a level."""
    if level == "study":
        return Resource(resource.study_instance_uid)
    return resource.series if level == "series" else resource


def _searched(
    client: DICOMClient, job: TableJob, within: Resource, only: Sequence[str], room: Room
) -> Iterator[JSONDataset | Failure]:
    """The rows of a study, series or instance; with `only`, those of these UIDs, and a failure for what has none."""
    missing = dict.fromkeys(only)
    tag = UID_TAGS[job.level]

    def wanted() -> Iterator[JSONDataset | Failure]:
        for row in _rows(client, job.query(within)):
            uid = first_text(row, tag) if not isinstance(row, Failure) else ""
            if not uid or not only or uid in missing:
                missing.pop(uid, None)
                yield row

    if client.unavailable is not None:
        yield not_tried(client.unavailable, SEARCHES[job.level], reference=within)
        return
    failed = False
    for item in _completed(client, job, wanted()) if job.full else wanted():
        failed = failed or isinstance(item, Failure)
        if callable(item):
            yield from item(room)
        else:
            room.reserve(_ROW_BYTES)
            yield item
    for uid in missing if not failed else ():
        gone = (
            Resource(within.study_instance_uid, within.series_instance_uid, uid)
            if within.level != job.level
            else within
        )
        message = f"{client.base_url} lists nothing of {gone.uri}"
        yield Failure(SEARCHES[job.level], message, reference=gone)


def _completed(
    client: DICOMClient, job: TableJob, rows: Iterator[JSONDataset | Failure]
) -> Iterator[Task | JSONDataset | Failure]:
    """Rows with what the metadata have."""
    failures: list[Failure] = []

    def instances() -> Iterator[Resource]:
        for row in rows:
            if isinstance(row, Failure):
                failures.append(row)
            else:
                yield instance_of_row(row)

    if job.level == "instance":
        for group in group_by_series(instances()):
            yield partial(_metadata_of, client, group, job.takes_series)
        yield from failures
        return
    for row in rows:
        yield row if isinstance(row, Failure) else partial(detailed, client, job.level, row)


def detailed(client: DICOMClient, level: SearchLevel, row: JSONDataset, room: Room) -> Iterator[JSONDataset | Failure]:
    """The row of a study or series with the metadata of one of its instances; what these lack is the row's."""
    found = resource_of_row(row, level)
    if client.unavailable is not None:
        yield not_tried(client.unavailable, METADATA, reference=found)
        return
    room.reserve(_METADATA_BYTES)
    query = make_query("instance", found.study_instance_uid, found.series_instance_uid, permissive_uid=True)
    try:
        for one in client.iter_search(query, limit=1):
            for metadata in client.iter_metadata(instance_of_row(one, found)):
                yield {**row, **{tag: element for tag, element in metadata.items() if element.keys() - {"vr"}}}
                return
        yield Failure(METADATA, f"{client.base_url} lists no instances of {found.uri}", reference=found)
    except RECOVERABLE as error:
        yield failure_of(error, METADATA, reference=found)


def _metadata_of(
    client: DICOMClient, group: InstanceGroup, takes_all: bool, room: Room
) -> Iterator[JSONDataset | Failure]:
    """The metadata of instances of a series."""
    rest = dict.fromkeys(group.references)
    if client.unavailable is not None:
        yield from (not_tried(client.unavailable, METADATA, reference=reference) for reference in rest)
        return
    try:
        if takes_all or (len(rest) >= ASK_FROM and is_worth_whole(len(rest), SeriesListing(client).size(group.series))):
            room.reserve(_METADATA_BYTES)
            for row in client.iter_metadata(group.series):
                reference = instance_of_row(row, group.series)
                if reference in rest:
                    del rest[reference]
                    yield row
                    room.reserve(_METADATA_BYTES)
    except RECOVERABLE as error:
        logger.info("the metadata of %s ended early: %s", group.series.uri, log_text(error))
    for reference in rest:
        room.reserve(_METADATA_BYTES)
        try:
            rows = list(client.iter_metadata(reference))
            if rows:
                yield rows[0]
                continue
            message = f"{client.base_url} answered without the metadata of {reference.uri}"
            yield Failure(METADATA, message, reference=reference, retryable=True)
        except RECOVERABLE as error:
            yield failure_of(error, METADATA, reference=reference)


def _rows(client: DICOMClient, query: SearchQuery, limit: int | None = None) -> Iterator[JSONDataset | Failure]:
    """The rows of a search that name what was searched for."""
    try:
        for row in client.iter_search(query, limit=limit):
            try:
                resource_of_row(row, query.level)
            except (TypeError, ValueError) as error:
                yield failure_of(error, ROW)
                continue
            yield row
    except RECOVERABLE as error:
        yield failure_of(error, SEARCHES[query.level])


# What is new ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refresh:
    """What a run writes, and how the table takes it.

    Attributes:
        studies: The studies whose rows are written anew; None for the whole table.
        cursor: Where the next refresh begins; None without one.
        run: A name for the files of this run; a run that is repeated has the same.
        failures: What the archive reported without naming an object.
        moment: When the rows are written, in seconds since 1970: later than those before, whatever the clock says.
    """

    studies: tuple[Resource, ...] | None = None
    cursor: Cursor | None = None
    run: str = ""
    failures: tuple[Failure, ...] = ()
    moment: float = 0.0


def plan_refresh(client: DICOMClient, job: TableJob) -> Refresh:
    """Asks the archive what is new since the last refresh; the whole table, if there was none.

    Raises:
        UsageError: If the cursor does not belong to this table.
        requests.HTTPError, OSError: If the archive cannot be asked.
    """
    if not job.refreshes:
        return Refresh()
    try:
        place = place_file(job).read()
    except ValueError as error:
        raise UsageError(f"--cursor {job.cursor_file}: {error}") from error
    start: Start = job.since if isinstance(job.since, date) else "now"
    before = place.cursor if start == "now" else None
    source = job.change_source()
    whole = before is None and start == "now"
    if not whole:
        _check_old_table(job, continues=before is not None)
    cursor, more = before, True
    studies: dict[Resource, None] = {}
    failures: list[Failure] = []
    while more:
        changes = source.poll(client, cursor, start=start)
        studies.update(dict.fromkeys(up_to(reference, "study") for reference in changes.references))
        failures += filter(None, changes.failures or (changes.incomplete,))
        cursor, more = changes.cursor, changes.more
    run = digest_of(json.dumps(before.to_json() if before is not None else str(start), sort_keys=True))[:12]
    # What arrives while the whole table is written is in the table, and is found again by the next refresh.
    moment = max(time.time(), place.written + 0.001)
    return Refresh(None if whole else tuple(studies), cursor, run.replace("-", "_"), tuple(failures), moment)


def place_file(job: TableJob) -> PlaceFile:
    """Where the position of a table is kept."""
    watched = {"source": job.source.safe_url, "filters": dict(job.filters), "level": job.level}
    return PlaceFile(job.cursor_file, {**watched, "table": os.path.basename(job.out), "explode": job.explode})


@contextmanager
def one_at_a_time(job: TableJob) -> Iterator[None]:
    """Lets a refresh wait until another one of the same table has written the table and its cursor."""
    if not job.refreshes or "://" in job.out:
        yield
        return
    with PlaceFile(job.out, {}).locked(wait=True):
        yield


def _check_old_table(job: TableJob, *, continues: bool) -> None:
    """Checks that rows can be added to the table that is there."""
    out = job.out
    try:
        there = files_of(out, folder=job.is_folder)
    except FileNotFoundError:
        there = []
    if not there and continues:
        raise UsageError(
            f"--out {safe_url(out)}: this is not there, and a refresh continues it from {safe_url(job.cursor_file)}; "
            "remove that file to write the whole table again"
        )
    kind = job.format
    if there and kind is not None:
        by = column_of(job.partition_by).name if job.partition_by is not None else None
        expected = [column for column in written_columns(job, job.table_columns) if column.name != by]
        found = columns_in(there[0], kind)
        if found and found != (columns_in_parquet(expected) if kind == "parquet" else [item.name for item in expected]):
            raise UsageError(
                f"--out {safe_url(out)}: this table has other columns ({', '.join(found)}); a refresh keeps them"
            )


def written_columns(job: TableJob, columns: Sequence[Column]) -> list[Column]:
    """The columns of the files: those of the rows and, in a folder that is refreshed, when a row was written."""
    return [*columns, _EXPORTED] if job.refreshes and job.is_folder else list(columns)


# Runs -----------------------------------------------------------------------------------------------------------------


def iter_table(
    endpoint: EndpointLike,
    level: SearchLevel,
    columns: Sequence[str] = (),
    *,
    search_filters: Mapping[str, str] | None = None,
    full: bool = False,
    typed_dates: bool = False,
    explode: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields the rows of a table of an archive: values by the names of the columns.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        level: ``"study"``, ``"series"`` or ``"instance"``.
        columns: See `TableJob`, as for the others.
        search_filters: Only what matches.
        full: Whether values come from the metadata, instead of from searches alone.
        typed_dates: Whether dates and times are `datetime.date` and `datetime.time`.
        explode: A sequence of which each item becomes a row.

    Raises:
        DICOMError: If a row fails; no row is left out without a word.
        TypeError, ValueError: If an argument is not valid.
    """
    if tuple(columns) == ALL:
        raise ValueError("the rows of iter_table have named columns: give them, or use run_table")
    job = TableJob(
        Endpoint.of(endpoint),
        level,
        "rows.jsonl",
        tuple(columns),
        dict(search_filters or {}),
        full=full,
        typed_dates=typed_dates,
        explode=explode,
    )
    maker = RowMaker(job.table_columns, explode)
    with job.source.connect() as client, closing(iter_datasets(client, job)) as datasets:
        for dataset in datasets:
            if isinstance(dataset, Failure):
                raise DICOMError(dataset.message)
            yield from maker.rows(dataset)


def counts_of_lost(failure: Failure) -> Iterator[tuple[str, int]]:
    """What a failure adds to the counts of a table."""
    yield ("unwritten" if failure.transform == REPORT else "failed" if failure.attempts else "not_tried"), 1
    yield f"{REASON}{reason_of(failure)}", 1


class TableAccount:
    """What is counted of a table, as it is written by one thread.

    Args:
        counts: What was counted before.

    Attributes:
        counts: ``objects``, the counts of `RowMaker`, and what failed.
    """

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self.counts: Counter[str] = Counter(counts)

    def fail(self, failure: Failure) -> None:
        """Counts a failure."""
        for name, number in counts_of_lost(failure):
            self.counts[name] += number

    @property
    def lacks(self) -> bool:
        """Whether something failed."""
        return any(self.counts[name] for name in _FAILED)


def run_table(
    job: TableJob,
    *,
    client: DICOMClient | None = None,
    max_in_flight: int = 8,
    on_failure: Callable[[Failure], None] = lambda failure: None,
    on_object: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Writes a table in threads of this process.

    Args:
        job: The table.
        client: The archive, which stays open; by default it is connected and closed.
        max_in_flight: Requests at once.
        on_failure: Called with each failure, on this thread.
        on_object: Called for each study, series or instance that came, on this thread.

    Returns:
        The summary; see `table_summary`.

    Raises:
        UsageError: If the table that is there cannot be refreshed.
        requests.HTTPError, OSError: If the archive cannot be asked what is new, or the table cannot be written.
    """
    started = time.monotonic()
    account = TableAccount()
    counts = account.counts
    with ExitStack() as stack:
        if client is None:
            client = stack.enter_context(job.source.connect())
        client.survive_outages(job.source.timeouts.outage)
        failures = stack.enter_context(Report(job.failures, "--failures"))

        def failed(failure: Failure) -> None:
            account.fail(failure)
            on_failure(failure)
            failures.write(failure_line(failure))

        def datasets() -> Generator[JSONDataset, None, None]:
            found = iter_datasets(client, job, studies=refresh.studies, max_in_flight=max_in_flight)
            with closing(found) as items:
                for item in items:
                    if isinstance(item, Failure):
                        failed(item)
                        continue
                    counts["objects"] += 1
                    on_object()
                    yield item
                    if job.limit is not None and counts["objects"] >= job.limit:
                        return

        stack.enter_context(one_at_a_time(job))
        refresh = plan_refresh(client, job)
        rows = stack.enter_context(closing(datasets()))
        written: TableWriter | None = None
        if refresh.studies != ():
            columns, again = (job.table_columns, rows) if not job.takes_all else spilled(job, rows, stack)
            maker = RowMaker(columns, job.explode, counts)
            made = chain.from_iterable(map(maker.rows, again))
            written = publish(job, refresh, columns, made, lambda: account.lacks)
        conclude(job, refresh, account)
        for failure in refresh.failures:
            failed(failure)
    if failures.problem is not None:
        account.fail(Failure(REPORT, failures.problem))
    return table_summary(job, refresh, account.counts, written, time.monotonic() - started)


def publish(
    job: TableJob,
    refresh: Refresh,
    columns: Sequence[Column],
    rows: Iterable[Mapping[str, Any]],
    lacks: Callable[[], bool],
) -> TableWriter:
    """Writes the files of a table.

    Args:
        job: The table.
        refresh: What is written anew.
        columns: The columns of the rows.
        rows: The rows.
        lacks: Asked when all rows are written: whether some are missing, so that the table is not whole.
    """
    stamp = {_EXPORTED.name: datetime.fromtimestamp(refresh.moment, timezone.utc)}
    with writer_of(job, columns, refresh) as written:
        keep_old_rows(job, refresh, written)
        for row in rows:
            written.write({**row, **stamp})
        written.incomplete = lacks()
    return written


def conclude(job: TableJob, refresh: Refresh, account: TableAccount) -> None:
    """Moves the cursor, when the table is whole: a run that fails is repeated by the next one."""
    if refresh.cursor is not None and not account.lacks:
        place_file(job).write(Place(refresh.cursor, written=refresh.moment))


def writer_of(job: TableJob, columns: Sequence[Column], refresh: Refresh) -> TableWriter:
    """The writer of a table."""
    added = refresh.run if refresh.studies is not None and job.is_folder else ""
    by = column_of(job.partition_by).name if job.partition_by is not None else None
    return TableWriter(
        job.out,
        written_columns(job, columns),
        partition_by=by,
        rows_per_file=job.rows_per_file,
        bom=job.bom,
        added=added,
    )


def keep_old_rows(job: TableJob, refresh: Refresh, written: TableWriter) -> None:
    """Writes the rows of the file that is there, without those of the studies that are written anew."""
    if refresh.studies is None or job.is_folder or job.format is None:
        return
    anew = {study.study_instance_uid for study in refresh.studies}
    for path in files_of(job.out, folder=False):
        for row in read_table(path, job.format):
            if row[_STUDY] not in anew:
                written.write(row)


def spilled(
    job: TableJob, rows: Iterator[JSONDataset], stack: ExitStack
) -> tuple[tuple[Column, ...], Iterator[JSONDataset]]:
    """The columns of whatever rows carry, and the rows once more, which wait in a file meanwhile."""
    folder = stack.enter_context(PrivateDirectory(prefix="dicomweb_io-table-"))
    tags: set[str] = set()
    path = os.path.join(folder, "rows.jsonl")
    with open(path, "wb") as file:
        for row in rows:
            tags.update(tags_of(row))
            file.write(dumps(row) + b"\n")
    return columns_of_all(job, tags), map(loads, stack.enter_context(open_path(path)))


def tags_of(row: JSONDataset) -> Iterator[str]:
    """The attributes of a dataset that can be columns."""
    return (tag for tag, element in row.items() if has_value(tag, element))


def columns_of_all(job: TableJob, tags: Iterable[str]) -> tuple[Column, ...]:
    """The columns of all of these attributes: those of the level first, then by tag."""
    first = [column.field for column in columns_of(COLUMNS[job.level])]
    found = {tag.upper() for tag in tags}
    ordered = [tag for tag in first if tag in found] + sorted(found.difference(first))
    return columns_of(ordered or first, typed_dates=job.typed_dates, typed_times=job.typed_dates)


def table_summary(
    job: TableJob, refresh: Refresh, counts: Mapping[str, int], written: TableWriter | None, seconds: float
) -> dict[str, Any]:
    """Makes the summary of a table, and writes it where it is wanted.

    Returns:
        ``table`` (where the rows are), ``level``, ``found`` (studies, series or instances), ``rows``, ``files``,
        ``bytes``, ``changed_studies`` (of a refresh, else None), ``failed``, ``not_tried``, ``unwritten`` (reports),
        ``reasons`` (of failures, most frequent first), ``unreadable_values`` (left out, by column), ``absent_columns``
        (of which no row had the attribute), and ``seconds``.
    """
    names = [column.name for column in job.table_columns] if not job.takes_all and counts.get("objects") else []
    summary = {
        "table": safe_url(
            incomplete_name(job.out) if written is not None and written.incomplete and written.files else job.out
        ),
        "level": job.level,
        "found": counts.get("objects", 0),
        "rows": counts.get("rows", 0),
        "files": written.files if written is not None else 0,
        "bytes": written.size if written is not None else 0,
        "changed_studies": len(refresh.studies) if refresh.studies is not None else None,
        **{name: counts.get(name, 0) for name in (*_FAILED, "unwritten")},
        "reasons": most_frequent(counts, REASON),
        "unreadable_values": most_frequent(counts, "unreadable:"),
        "absent_columns": [name for name in names if not counts.get(f"carried:{name}")],
        "seconds": round(seconds, 3),
    }
    write_summary(job.summary, summary)
    return summary


def table_exit_code(summary: Mapping[str, Any]) -> int:
    """0 if every row that was asked for is in the table, else 1."""
    return 1 if any(summary[name] for name in (*_FAILED, "unwritten")) else 0


def table_lines(summary: Mapping[str, Any], job: TableJob) -> Iterator[str]:
    """The summary for people."""
    found = f"{summary['found']:,} {COLLECTIONS[job.level]}"
    changed = summary["changed_studies"]
    failed = sum(summary[name] for name in _FAILED)
    if changed == 0 and not failed:
        yield f"Nothing is new: {summary['table']} stays as it is."
        return
    what = f"{changed:,} studies are new or have grown; " if changed is not None else ""
    size = f" ({format_bytes(summary['bytes'])})" if summary["bytes"] else ""
    rows = "" if summary["rows"] == summary["found"] else f", {summary['rows']:,} rows"
    where = f" → {summary['table']}{size}" if summary["files"] or not failed else ""
    yield f"{what}{found}{rows}{where} in {summary['seconds']:.1f} s"
    for name, number in summary["unreadable_values"].items():
        yield f"  {number:,} x values of {name} are not of its type and were left out"
    if summary["absent_columns"]:
        absent = summary["absent_columns"]
        names = ", ".join(absent[:10]) + (f" and {len(absent) - 10:,} others" if len(absent) > 10 else "")
        hint = "" if job.full else "; searches may not return it, --full reads it from the metadata"
        yield f"  No row had a value for {names}{hint}"
    if failed:
        yield f"  THE TABLE IS NOT COMPLETE: {failed:,} failed or were not tried"
        for reason, number in list(summary["reasons"].items())[:10]:
            yield f"    {number:,} x {reason}"
        if summary["table"] != safe_url(job.out):
            yield f"  The rows that came are in {summary['table']}; {safe_url(job.out)} was not touched."
        elif not summary["files"]:
            yield f"  Nothing was written to {safe_url(job.out)}."
    if summary["unwritten"]:
        yield f"  {summary['unwritten']} reports could not be written; standard error has what was to be in them."


def table_job_from(args: Any, source: Endpoint, *, workers_elsewhere: bool = False) -> TableJob:
    """Makes the job of parsed arguments; see `dicomweb_io.options.add_table_options`.

    Raises:
        UsageError: If they are not valid.
    """
    if not args.out:
        raise UsageError("--out is required: the .parquet, .csv or .jsonl file to write")
    for option in ("failures", "summary", "cursor"):
        path = getattr(args, option)
        if path:
            check_writable(path, f"--{option}", elsewhere=workers_elsewhere and option == "failures")
    check_distinct(args, "out", "input", "failures", "summary", "cursor")
    since = args.since
    try:
        if since not in (None, "last"):
            since = date.fromisoformat(since)
    except ValueError as error:
        raise UsageError(f"--since {since!r}: expected last, or a day as YYYY-MM-DD") from error
    try:
        given = {item.name: getattr(args, item.name) for item in fields(TableJob)[6:] if item.name != "since"}
        wanted = wanted_from(args.input, allow_patterns=args.allow_patterns) if args.input else None
        columns = tuple(attributes_in(args.columns)) if args.columns else ()
        columns = ALL if [name.lower() for name in columns] == ["all"] else columns
        job = TableJob(source, args.level, args.out, columns, filters_from(args.filters), wanted, since=since, **given)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    if job.table is None:
        _check_place(job)
    return job


def _check_place(job: TableJob) -> None:
    """Checks that the table can be put to its place, and that nothing else is there."""
    out = job.out
    if not job.is_folder:
        check_writable(out, "--out")
        return
    check_writable(f"{out}.", "--out")
    if "://" in out:
        return
    if os.path.isfile(out):
        raise UsageError(f"--out {out}: this is a file, and with partitions or rows per file the table is a folder")
    others = [path for path in parts_in(out) if not re.fullmatch(rf"part-[\w-]+\.{job.format}", os.path.basename(path))]
    if others:
        raise UsageError(
            f"--out {out}: this folder holds other files, such as {os.path.relpath(others[0], out)}, and the table "
            "would replace it; name a folder of its own"
        )
