"""Copies what is new in an archive, or keeps a table of it, in rounds. ``python -m pipelines.watch --help``.

Each round asks the source what is new and copies it in a bounded pipeline, as ``pipelines.transfer`` does. After each
round the position is written atomically to the file ``--cursor``: stop it at any time, and run the same command again
to continue. What was copied in an interrupted round is found again, and is skipped. ``--once`` makes one poll and ends,
for a job that runs every night.

With ``--table`` a table of the source is kept up to date too (or only, without ``--destination``): the rows of studies
that came or grew are written anew, as ``dicomweb-io export table --since last`` does. The table has a position of its
own.

What could not be copied is tried again in the next rounds. What fails five times is given up: it is written to
``--failures``, from where ``pipelines.transfer --input`` can take it later. A round in which nothing succeeds because
an archive is away, full or refuses the login does not count.

The exit code is 0 if nothing was given up and nothing waits to be tried again, 1 if something was or does (or the last
poll failed), 2 if the command line is wrong, 130 after Ctrl-C. SIGTERM ends it after the round that is running.

    python -m pipelines.watch --source https://pacs.example/dicom-web --destination /data/new --cursor watch.json

On this machine alone, ``dicomweb-io watch`` does the same without Beam.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from dicomweb_io.account import print_summary
from dicomweb_io.options import UsageError, add_watch_options, endpoint_from
from dicomweb_io.transfer import TransferJob
from dicomweb_io.watch import ended_by_sigterm, exit_code, job_from, last_lines, run_watch
from pipelines import transfer
from pipelines._common import (
    Arguments,
    add_endpoint_arguments,
    check_run,
    interruptible,
    is_local,
    parse,
    run_job,
)


class WatchOptions(PipelineOptions):
    """The options of the job, also usable as Beam pipeline options."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        arguments = Arguments(parser)
        add_endpoint_arguments(arguments)
        add_watch_options(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job of a command line and returns the exit code."""

    def work() -> int:
        args, options = parse(WatchOptions, "python -m pipelines.watch", __doc__ or "", argv)
        if not is_local(options):
            raise UsageError(
                "it copies in rounds on this machine; for a streaming runner use the transforms WatchForInstances and "
                "CopyInstances in your own pipeline"
            )
        source = endpoint_from(args, role="source", workers_elsewhere=True)
        destination = None
        if args.destination:
            destination = endpoint_from(args, role="destination", workers_elsewhere=True)
        job = job_from(args, source, destination)
        check_run(args, options)

        def copy(once: TransferJob) -> dict[str, Any]:
            with interruptible():
                return transfer.run(once, options, show_progress=False, tell_causes=False)

        with source.connect() as client, ended_by_sigterm() as stopping:
            totals = run_watch(job, client, copy, stopping)
        print_summary(last_lines(totals, job), totals)
        return exit_code(totals)

    return run_job("watch", work, argv, then="the same command goes on where it was")


if __name__ == "__main__":
    # Workers import the steps by the module's name; those of __main__ would have to be sent to them.
    from pipelines.watch import main as run_as_module

    sys.exit(run_as_module())
