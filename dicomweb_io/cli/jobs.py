"""The commands that do here what a job does on any runner: ``copy``, ``compare``, ``export table`` and ``watch``."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import Any

from dicomweb_io import watch as watching
from dicomweb_io.account import (
    Account,
    Causes,
    exit_code,
    print_summary,
    shown_progress,
    summary_lines,
    tell_unreadable,
)
from dicomweb_io.cli.output import progress
from dicomweb_io.comparer import Compared, SeriesComparison
from dicomweb_io.elements import COLLECTIONS, Difference
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import plain_text
from dicomweb_io.http.settings import Limits
from dicomweb_io.options import UsageError, check_remote_results, connect, endpoint_from
from dicomweb_io.reconcile import (
    comparison_exit_code,
    comparison_from,
    comparison_lines,
    difference_line,
    run_comparison,
)
from dicomweb_io.tables import run_table, table_exit_code, table_job_from, table_lines
from dicomweb_io.transfer import (
    StoppedError,
    TransferInterrupted,
    TransferJob,
    check_archives,
    check_places,
    job_from,
    run_transfer,
)

_MAX_SHOWN = 20


def copy(args: argparse.Namespace) -> int:
    """Copies what matches; prints a summary whose numbers add up."""
    job = job_from(args, _source(args), _destination(args))
    check_places(job)
    check_remote_results(args)
    account, causes = Account(), Causes("dicomweb-io")
    with connect(args, job.source) as source, connect(args, job.destination) as destination:
        clients = source, destination
        try:
            check_archives(job, clients)
            try:
                with shown_progress(lambda: account.counts):
                    summary = run_transfer(
                        job, max_in_flight=args.jobs, account=account, on_failure=causes.add, clients=clients
                    )
            finally:
                causes.finish(job.failures)
        except TransferInterrupted as error:
            print_summary(summary_lines(error.summary, job), error.summary)
            raise
        except StoppedError as error:
            print(f"dicomweb-io: {plain_text(str(error))}", file=sys.stderr)
            return 1
    print_summary(summary_lines(summary, job), summary)
    return exit_code(summary)


def compare(args: argparse.Namespace) -> int:
    """Compares two archives: prints the differences as JSON lines, or for a person the first of them and the summary.

    What is not on standard output is on standard error; with ``--output`` the summary is on standard output.
    """
    job = comparison_from(args, _source(args), _destination(args))
    check_remote_results(args)
    shown, causes = _Shown(job.output is None), Causes("dicomweb-io")
    with connect(args, job.source) as source, connect(args, job.destination) as destination:
        try:
            with progress("series") as bar:

                def advance(result: Compared) -> None:
                    if isinstance(result, SeriesComparison):
                        bar.advance()

                summary = run_comparison(
                    job,
                    max_in_flight=args.jobs,
                    on_difference=shown.difference,
                    on_failure=causes.add,
                    on_result=advance,
                    clients=(source, destination),
                )
        finally:
            causes.finish(job.failures)
    shown.end()
    print_summary(comparison_lines(summary), summary, as_json=job.output is not None)
    return comparison_exit_code(summary)


class _Shown:
    """What is shown while it is found: all differences in a pipe, the first ones on a terminal.

    Args:
        prints: Whether differences are shown at all.
    """

    def __init__(self, prints: bool) -> None:
        self._prints = prints
        self._limit = _MAX_SHOWN if sys.stdout.isatty() else None
        self._differences = 0

    def difference(self, found: Difference) -> None:
        """Shows a difference."""
        self._differences += 1
        if not self._prints or (self._limit is not None and self._differences > self._limit):
            return
        if self._limit is None:
            sys.stdout.write(difference_line(found) + "\n")
            return
        number = f" ({found.instances:,} instances)" if found.reference.level == "series" else ""
        reason = f": {found.reason}" if found.reason else ""
        elsewhere = f", which is in {', '.join(found.elsewhere)}" if found.elsewhere else ""
        print(plain_text(f"{found.kind:9} {found.reference.uri}{number}{reason}{elsewhere}"))

    def end(self) -> None:
        """Says how much was not shown."""
        if self._prints and self._limit is not None and self._differences > self._limit:
            print(f"… and {self._differences - self._limit:,} more; --output PATH writes all of them")


def export_table(args: argparse.Namespace) -> int:
    """Writes a table; prints its summary."""
    if args.archive and args.url:
        raise UsageError("give the archive once: as an argument or with --url")
    _check_jobs(args)
    job = table_job_from(args, endpoint_from(args, args.archive))
    check_remote_results(args)
    if job.table is not None:
        raise UsageError(
            f"--out {job.out}: the command writes files; python -m pipelines.export_metadata writes to BigQuery"
        )
    causes = Causes("dicomweb-io")
    with connect(args, job.source) as client:
        try:
            with progress(COLLECTIONS[job.level]) as shown:
                summary = run_table(
                    job, client=client, max_in_flight=args.jobs, on_failure=causes.add, on_object=shown.advance
                )
        finally:
            causes.finish(job.failures)
        unreadable = tell_unreadable(client)
    print_summary(table_lines(summary, job), summary)
    return 1 if unreadable else table_exit_code(summary)


def watch(args: argparse.Namespace) -> int:
    """Copies what is new, and keeps a table; prints a summary at the end."""
    source = _source(args)
    job = watching.job_from(args, source, _destination(args) if args.destination else None)
    check_remote_results(args)
    with ExitStack() as stack:
        client = stack.enter_context(connect(args, source))

        def copy(once: TransferJob) -> dict[str, Any]:
            # It sees what others have stored since the last round.
            with connect(args, once.destination) as target:
                return run_transfer(once, max_in_flight=args.jobs, clients=(client, target))

        stopping = stack.enter_context(watching.ended_by_sigterm())
        totals = watching.run_watch(job, client, copy, stopping)
    print_summary(watching.last_lines(totals, job), totals)
    return watching.exit_code(totals)


def _source(args: argparse.Namespace) -> Endpoint:
    if args.url:
        raise UsageError(f"{args.command} takes its archives as arguments, SOURCE and DESTINATION, and no --url")
    _check_jobs(args)
    return endpoint_from(args, args.source).replace(limits=Limits(args.jobs))


def _destination(args: argparse.Namespace) -> Endpoint:
    return endpoint_from(args, role="destination").replace(limits=Limits(args.jobs))


def _check_jobs(args: argparse.Namespace) -> None:
    if args.jobs < 1:
        raise UsageError(f"--jobs must be 1 or more, not {args.jobs}")
