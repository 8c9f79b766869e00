"""Writes chosen attributes of studies, series or instances as a table. ``python -m pipelines.export_metadata --help``.

Workers search the archive (with --full they read the metadata too) and make typed rows; the process that starts the job
puts them together to the table, which appears complete or not at all. What is missing is counted, and named in the
--failures file; the rows that came are then beside the table, under a name with "incomplete". With --since last the
table is refreshed: the studies that are new or have grown are written anew. A table of BigQuery
(bq:PROJECT.DATASET.TABLE) is replaced when all rows are there.

The exit code is 0 only if every row is in the table, 1 if not, 2 if the command line is wrong, 130 after Ctrl-C.

    python -m pipelines.export_metadata --source https://pacs.example/dicom-web --level series --out series.parquet

On this machine alone, ``dicomweb-io export table`` does the same without Beam.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from itertools import chain
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from dicomweb_io.account import ROW, print_summary, shown_progress, tell_unreadable
from dicomweb_io.dicom.columns import Column, RowMaker
from dicomweb_io.dicom.json_decode import loads
from dicomweb_io.elements import Resource, open_path
from dicomweb_io.listing import InstanceGroup
from dicomweb_io.options import UsageError, add_table_options, read_json
from dicomweb_io.table_files import arrow_schema, read_table
from dicomweb_io.tables import (
    Refresh,
    TableAccount,
    TableJob,
    columns_of_all,
    conclude,
    counts_of_lost,
    one_at_a_time,
    plan_refresh,
    publish,
    table_exit_code,
    table_job_from,
    table_lines,
    table_summary,
    tags_of,
    up_to,
)
from dicomweb_io.transforms import RetrieveMetadata, SearchForInstances, SearchForSeries, SearchForStudies
from dicomweb_io.transforms.copy import MatchLines, WriteCounts, WriteReport
from dicomweb_io.transforms.metrics import TALLY
from dicomweb_io.transforms.read_write import DistinctReferences, ReferencesOfRows
from dicomweb_io.transforms.rows import AddMetadata, MakeTableRows, bigquery_schema_of
from pipelines._common import (
    Arguments,
    add_endpoint_arguments,
    archive_from,
    check_run,
    lines_of,
    new_pipeline,
    parse,
    run_job,
    run_to_end,
    scratch_folder,
    wanted_by,
)

_SEARCHES = {"study": SearchForStudies, "series": SearchForSeries, "instance": SearchForInstances}


class ExportOptions(PipelineOptions):
    """The options of the job, also usable as Beam pipeline options."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        arguments = Arguments(parser)
        add_endpoint_arguments(arguments, "source")
        add_table_options(arguments)


def build(pipeline: beam.Pipeline, job: TableJob, studies: Iterable[Resource] | None) -> tuple[Any, Any, Any]:
    """Adds the steps that make the rows; gives the rows, what was counted, and the failures.

    Args:
        pipeline: The pipeline.
        job: The table.
        studies: Only these studies; None for what the job names.
    """
    failures: list[Any] = []
    begin, references = pipeline, None
    search: dict[str, Any] = {"fields": job.query().fields, "failures": "collect"}
    if studies is not None:
        begin = pipeline | "Studies" >> beam.Create(list(studies)).with_output_types(Resource)
    elif job.wanted is not None:
        begin = references = _listed(pipeline, job, failures)
        search["require_match"] = True
    else:
        search["limit"] = job.limit
    # What a line of a list names was compared with the filters already.
    filters = job.filters if job.wanted is None else {}
    reads_lists = references is not None and job.full and job.level == "instance"
    if not reads_lists:
        found = begin | "Search" >> _SEARCHES[job.level](job.source, filters, **search)
        datasets = found.rows
        failures.append(found.failures)
    if job.full and job.level != "instance":
        datasets, lost = datasets | "AddMetadata" >> AddMetadata(job)
        failures.append(lost)
    elif job.full:
        if not reads_lists:
            references, lost = datasets | "References" >> ReferencesOfRows("instance", ROW, failures="collect")
            failures.append(lost)
        read = references | "Metadata" >> RetrieveMetadata(job.source, failures="collect")
        datasets = read.metadata
        failures.append(read.failures)
    rows, counts, nameless = datasets | "Rows" >> MakeTableRows(job)
    return rows, counts, [*failures, nameless] | "Failures" >> beam.Flatten()


def _listed(pipeline: beam.Pipeline, job: TableJob, failures: list[Any]) -> Any:
    """What a list names, each study, series or instance once."""
    listed = job.list_job()
    groups, unmatched = lines_of(pipeline, listed) | "MatchLines" >> MatchLines(listed)
    failures.append(unmatched)
    level = job.level

    def named(group: InstanceGroup) -> Iterator[Resource]:
        if level == "instance" and group.listed != len(group.sop_instance_uids):
            yield from group.references
        else:
            yield up_to(group.series, level)

    return groups | "Named" >> beam.FlatMap(named).with_output_types(Resource) | "Distinct" >> DistinctReferences()


def run(job: TableJob, options: PipelineOptions, *, show_progress: bool | None = None) -> dict[str, Any]:
    """Writes a table.

    Args:
        job: The table.
        options: Beam's options.
        show_progress: Whether to show progress on standard error; by default if a terminal is watching.

    Returns:
        The summary; see `dicomweb_io.tables.table_summary`.
    """
    started = time.monotonic()
    refresh = Refresh()
    account, written = TableAccount(), None
    with ExitStack() as stack:
        stack.enter_context(one_at_a_time(job))
        if job.refreshes:
            with job.source.connect() as client:
                refresh = plan_refresh(client, job)
        if refresh.studies != ():
            scratch = stack.enter_context(scratch_folder(options, "export"))
            before = TALLY.snapshot().get("rows", 0)
            with shown_progress(lambda: {"found": TALLY.snapshot().get("rows", 0) - before}, show_progress):
                _make_rows(job, refresh, options, scratch)
            account.counts.update(read_json(f"{scratch}/account.json"))
            files = [item.path for item in FileSystems.match([f"{scratch}/rows*"])[0].metadata_list]
            if job.table is not None:
                if not account.lacks:
                    _load(job, f"{scratch}/rows*", options)
            else:
                columns, rows = _rows_in(job, files, account)
                written = publish(job, refresh, columns, rows, lambda: account.lacks)
        conclude(job, refresh, account)
        for failure in refresh.failures:
            account.fail(failure)
    return table_summary(job, refresh, account.counts, written, time.monotonic() - started)


def _make_rows(job: TableJob, refresh: Refresh, options: PipelineOptions, scratch: str) -> None:
    pipeline = new_pipeline(options)
    rows, counts, failures = build(pipeline, job, refresh.studies)
    if job.takes_all:
        _ = rows | "Write" >> beam.io.WriteToText(f"{scratch}/rows")
    else:
        _ = rows | "Write" >> beam.io.WriteToParquet(f"{scratch}/rows", arrow_schema(job.table_columns))
    if job.failures is not None:
        unwritten = failures | "WriteFailures" >> WriteReport(job.failures)
        failures = (failures, unwritten) | "AllFailures" >> beam.Flatten()
    counted = {"counts": counts, "failures": failures}
    _ = counted | "Account" >> WriteCounts(f"{scratch}/account.json", {"counts": _as_it_is, "failures": counts_of_lost})
    run_to_end(pipeline)


def _as_it_is(counted: tuple[str, int]) -> Iterator[tuple[str, int]]:
    yield counted


def _rows_in(
    job: TableJob, files: Sequence[str], account: TableAccount
) -> tuple[tuple[Column, ...], Iterator[Mapping[str, Any]]]:
    """The columns and the rows of what the workers wrote."""
    if not job.takes_all:
        return job.table_columns, chain.from_iterable(read_table(path, "parquet") for path in files)
    tags: set[str] = set()
    for row in _datasets_in(files):
        tags.update(tags_of(row))
    columns = columns_of_all(job, tags)
    return columns, chain.from_iterable(map(RowMaker(columns, job.explode, account.counts).rows, _datasets_in(files)))


def _datasets_in(files: Sequence[str]) -> Iterator[Any]:
    for path in files:
        with open_path(path) as lines:
            yield from map(loads, lines)


def _load(job: TableJob, pattern: str, options: PipelineOptions) -> None:
    """Replaces a table of BigQuery."""
    columns = job.table_columns
    moments = [column.name for column in columns if column.kind not in (str, int, float) and not column.many]

    def plain(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, **{name: row[name].isoformat() for name in moments if row[name] is not None}}

    with beam.Pipeline(options=options) as pipeline:
        rows = pipeline | beam.io.ReadFromParquet(pattern) | "Plain" >> beam.Map(plain)
        _ = rows | beam.io.WriteToBigQuery(
            job.table, schema=bigquery_schema_of(columns), write_disposition="WRITE_TRUNCATE"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job of a command line and returns the exit code."""

    def work() -> int:
        args, options = parse(ExportOptions, "python -m pipelines.export_metadata", __doc__ or "", argv)
        source = archive_from(args, "source")
        job = table_job_from(args, source, workers_elsewhere=args.workers_elsewhere)
        if job.table is not None and find_spec("apitools") is None:
            raise UsageError(f"--out {job.out}: BigQuery needs pip install 'apache-beam[gcp]'")
        job = replace(job, wanted=wanted_by(args, options, job.wanted))
        check_run(args, options, ends_here=True)
        summary = run(job, options)
        with source.connect() as client:
            unreadable = tell_unreadable(client)
        print_summary(table_lines(summary, job), summary)
        return 1 if unreadable else table_exit_code(summary)

    as_before = "the table is as it was before"
    return run_job("export_metadata", work, argv, then=as_before, left=as_before)


if __name__ == "__main__":
    # Workers import the steps by the module's name; those of __main__ would have to be sent to them.
    from pipelines.export_metadata import main as run_as_module

    sys.exit(run_as_module())
