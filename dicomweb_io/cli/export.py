"""The command ``export table``: attributes of studies, series or instances as a table."""

from __future__ import annotations

import argparse
import sys

from dicomweb_io.cli.output import print_line, progress
from dicomweb_io.elements import COLLECTIONS, Failure
from dicomweb_io.options import UsageError, connect, endpoint_from
from dicomweb_io.tables import run_table, table_exit_code, table_job_from, table_lines


def export_table(args: argparse.Namespace) -> int:
    """Writes a table; prints its summary, as JSON unless a person reads it."""
    if args.archive and args.url:
        raise UsageError("give the archive once: as an argument or with --url")
    if args.jobs < 1:
        raise UsageError(f"--jobs must be 1 or more, not {args.jobs}")
    job = table_job_from(args, endpoint_from(args, args.archive))
    if job.table is not None:
        raise UsageError(
            f"--out {job.out}: the command writes files; python -m pipelines.export_metadata writes to BigQuery"
        )
    client = connect(args, job.source)
    try:
        with progress(COLLECTIONS[job.level]) as shown:
            summary = run_table(job, client=client, max_in_flight=args.jobs, on_failure=_show, on_object=shown.advance)
    finally:
        client.close()
    if sys.stdout.isatty():
        print(*table_lines(summary, job), sep="\n")
    else:
        print_line(summary)
        # What a reader of the JSON may overlook.
        print(*table_lines(summary, job), sep="\n", file=sys.stderr)
    return table_exit_code(summary)


def _show(failure: Failure) -> None:
    where = failure.source or (failure.reference.uri if failure.reference is not None else None)
    print(f"dicomweb-io: {where}: {failure.message}" if where else f"dicomweb-io: {failure.message}", file=sys.stderr)
