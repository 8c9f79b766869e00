"""The command ``watch``: what is new in an archive is copied, and a table of it is kept, again and again."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from dicomweb_io.cli.output import print_line
from dicomweb_io.http.settings import Limits
from dicomweb_io.options import UsageError, connect, endpoint_from
from dicomweb_io.transfer import TransferJob, run_transfer
from dicomweb_io.watch import ended_by_sigterm, exit_code, job_from, progress_line, run_watch


def watch(args: argparse.Namespace) -> int:
    """Copies what is new, and keeps a table; prints a summary at the end, as JSON unless a person reads it."""
    if args.url:
        raise UsageError("watch takes its archives as arguments, SOURCE and DESTINATION, and no --url")
    if args.jobs < 1:
        raise UsageError(f"--jobs must be 1 or more, not {args.jobs}")
    limits = Limits(args.jobs)
    source = endpoint_from(args, args.source).replace(limits=limits)
    destination = endpoint_from(args, role="destination").replace(limits=limits) if args.destination else None
    job = job_from(args, source, destination)
    client = connect(args, source)

    def copy(once: TransferJob) -> dict[str, Any]:
        # It sees what others have stored since the last round.
        target = connect(args, once.destination)
        try:
            return run_transfer(once, max_in_flight=args.jobs, clients=(client, target))
        finally:
            target.close()

    try:
        with ended_by_sigterm() as stopping:
            totals = run_watch(job, client, copy, stopping)
    finally:
        client.close()
    if sys.stdout.isatty():
        print(f"Ended after {progress_line(totals, job)}")
    else:
        print_line(totals)
    return exit_code(totals)
