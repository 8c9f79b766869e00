"""The command ``export table``: attributes of studies, series or instances as a table."""

from __future__ import annotations

import argparse

from dicomweb_io.account import Causes, print_summary
from dicomweb_io.cli.output import progress, tell_unreadable
from dicomweb_io.elements import COLLECTIONS
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
    causes = Causes("dicomweb-io")
    with connect(args, job.source) as client, progress(COLLECTIONS[job.level]) as shown:
        try:
            summary = run_table(
                job, client=client, max_in_flight=args.jobs, on_failure=causes.add, on_object=shown.advance
            )
        finally:
            causes.finish(job.failures)
        tell_unreadable(client)
    print_summary(table_lines(summary, job), summary)
    return table_exit_code(summary)
