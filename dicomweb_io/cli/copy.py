"""``dicomweb-io copy``: a transfer in threads of this process."""

from __future__ import annotations

import argparse
import sys

from dicomweb_io.account import Account, exit_code, shown_progress, summary_lines
from dicomweb_io.cli.output import print_line
from dicomweb_io.elements import Failure
from dicomweb_io.http.settings import Limits
from dicomweb_io.options import UsageError, connect, endpoint_from
from dicomweb_io.transfer import job_from, run_transfer

_LISTS = ("duplicates", "ignored_files")


def copy(args: argparse.Namespace) -> int:
    """Copies what matches; prints a summary whose numbers add up, as JSON unless a person reads it."""
    if args.url:
        raise UsageError("copy takes two archives, SOURCE and DESTINATION, and no --url")
    if args.jobs < 1:
        raise UsageError(f"--jobs must be 1 or more, not {args.jobs}")
    limits = Limits(args.jobs)
    source = endpoint_from(args, args.source).replace(limits=limits)
    destination = endpoint_from(args, role="destination").replace(limits=limits)
    job = job_from(args, source, destination)
    clients = connect(args, job.source), connect(args, job.destination)
    account = Account()
    try:
        with shown_progress(lambda: account.counts):
            summary = run_transfer(job, max_in_flight=args.jobs, account=account, on_failure=_show, clients=clients)
    finally:
        for client in clients:
            client.close()
    if sys.stdout.isatty():
        for line in summary_lines(summary, job):
            print(line)
    else:
        print_line({name: value for name, value in summary.items() if name not in _LISTS})
    return exit_code(summary)


def _show(failure: Failure) -> None:
    where = failure.reference.uri if failure.reference is not None else failure.source
    print(f"dicomweb-io: {where}: {failure.message}" if where else f"dicomweb-io: {failure.message}", file=sys.stderr)
