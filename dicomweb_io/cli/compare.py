"""The command ``compare``: what one archive has and another has not."""

from __future__ import annotations

import argparse
import sys

from dicomweb_io.account import Causes, print_summary
from dicomweb_io.cli.output import progress
from dicomweb_io.comparer import Compared, SeriesComparison
from dicomweb_io.elements import Difference
from dicomweb_io.errors import plain_text
from dicomweb_io.http.settings import Limits
from dicomweb_io.options import UsageError, connect, endpoint_from
from dicomweb_io.reconcile import (
    comparison_exit_code,
    comparison_from,
    comparison_lines,
    difference_line,
    run_comparison,
)

_MAX_SHOWN = 20


def compare(args: argparse.Namespace) -> int:
    """Compares two archives: prints the differences as JSON lines, or for a person the first of them and the summary.

    What is not on standard output is on standard error; with ``--output`` the summary is on standard output.
    """
    if args.url:
        raise UsageError("compare takes two archives, SOURCE and DESTINATION, and no --url")
    if args.jobs < 1:
        raise UsageError(f"--jobs must be 1 or more, not {args.jobs}")
    limits = Limits(args.jobs)
    source = endpoint_from(args, args.source).replace(limits=limits)
    job = comparison_from(args, source, endpoint_from(args, role="destination").replace(limits=limits))
    clients = connect(args, job.source), connect(args, job.destination)
    shown, causes = _Shown(job.output is None), Causes("dicomweb-io")
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
                clients=clients,
            )
    finally:
        for client in clients:
            client.close()
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
