"""``dicomweb-io copy``."""

from __future__ import annotations

import argparse
import sys

from dicomweb_io.account import Account, Causes, exit_code, print_summary, shown_progress, summary_lines
from dicomweb_io.http.settings import Limits
from dicomweb_io.options import UsageError, connect, endpoint_from
from dicomweb_io.transfer import StoppedError, TransferInterrupted, check_archives, check_places, job_from, run_transfer


def copy(args: argparse.Namespace) -> int:
    """Copies what matches; prints a summary whose numbers add up, as JSON unless a person reads it."""
    if args.url:
        raise UsageError("copy takes two archives, SOURCE and DESTINATION, and no --url")
    if args.jobs < 1:
        raise UsageError(f"--jobs must be 1 or more, not {args.jobs}")
    limits = Limits(args.jobs)
    source = endpoint_from(args, args.source).replace(limits=limits)
    job = job_from(args, source, endpoint_from(args, role="destination").replace(limits=limits))
    check_places(job)
    clients = connect(args, job.source), connect(args, job.destination)
    account, causes = Account(), Causes("dicomweb-io")
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
        print(f"dicomweb-io: {error}", file=sys.stderr)
        return 1
    finally:
        for client in clients:
            client.close()
    print_summary(summary_lines(summary, job), summary)
    return exit_code(summary)
