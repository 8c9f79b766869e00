"""Says what one archive has and another has not. ``python -m pipelines.reconcile --help``.

Source and destination are DICOMweb servers or folders of DICOM files, in any combination. Nothing is changed. The
differences are JSON lines, in no order, which ``pipelines.transfer --input`` and ``dicomweb-io copy --input`` take:
they copy what is missing.

At the end there is a summary, whose numbers are counted from the job's output collections. The exit code is 0 if both
archives hold the same, 1 if they differ or something could not be compared, 2 if the command line is wrong, 130 after
Ctrl-C.

    python -m pipelines.reconcile --source /data/ct --destination https://pacs.example/dicom-web --output missing.jsonl

On this machine alone, ``dicomweb-io compare`` does the same without Beam.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from dicomweb_io.account import conflicts_of, print_summary, write_summary
from dicomweb_io.elements import Failure
from dicomweb_io.options import add_comparison_options, read_json
from dicomweb_io.reconcile import (
    ComparisonJob,
    comparison_exit_code,
    comparison_from,
    comparison_lines,
    counts_of_difference,
    counts_of_failure,
    counts_of_result,
    difference_line,
    make_comparison_summary,
    write_comparison_reports,
)
from dicomweb_io.transforms.copy import ListExclusions, WriteCounts, WriteReport
from dicomweb_io.transforms.metrics import traffic_of
from dicomweb_io.transforms.reconcile import CompareSelected, SearchBoth, SelectLines
from pipelines._common import (
    Arguments,
    add_endpoint_arguments,
    check_run,
    endpoints_from,
    lines_of,
    new_pipeline,
    parse,
    run_job,
    run_to_end,
    scratch_folder,
    wanted_by,
)

COUNTS: dict[str, Callable[[Any], Iterable[tuple[str, int]]]] = {
    "results": counts_of_result,
    "differences": counts_of_difference,
    "failures": counts_of_failure,
    "unwritten": counts_of_failure,
    "unlisted": counts_of_failure,
}
"""What an element of each collection adds to the counts."""


class ReconcileOptions(PipelineOptions):
    """The options of the job, also usable as Beam pipeline options."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        arguments = Arguments(parser)
        add_endpoint_arguments(arguments)
        add_comparison_options(arguments)


def build(pipeline: beam.Pipeline, job: ComparisonJob, account: str) -> None:
    """Adds the steps of a comparison to a pipeline, the last of which write its reports and its account."""
    if job.wanted is None:
        selected, failures = pipeline | "Search" >> SearchBoth(job)
    else:
        selected, failures = lines_of(pipeline, job.sides[0]) | "Select" >> SelectLines(job)
    compared = selected | "Compare" >> CompareSelected(job, failures="collect")
    failed = [failures, compared.failures]
    for name, side in zip(("Source", "Destination"), job.sides, strict=True):
        if not side.source.is_web:
            excluded, unreadable = pipeline | f"Files{name}" >> ListExclusions(side)
            conflicts = excluded | f"Conflicts{name}" >> beam.FlatMap(conflicts_of).with_output_types(Failure)
            failed += [unreadable, conflicts]
    counted = {
        "results": compared.results,
        "differences": compared.differences,
        "failures": failed | "Failures" >> beam.Flatten(),
    }
    if job.output is not None:
        write = WriteReport(job.output, "--output", difference_line)
        counted["unwritten"] = compared.differences | "WriteDifferences" >> write
    if job.failures is not None:
        counted["unlisted"] = counted["failures"] | "WriteFailures" >> WriteReport(job.failures)
    _ = counted | "Account" >> WriteCounts(account, COUNTS)


def run(job: ComparisonJob, options: PipelineOptions) -> dict[str, Any]:
    """Runs a comparison to its end.

    Args:
        job: What to do.
        options: Beam's options.

    Returns:
        The summary; see `dicomweb_io.reconcile.make_comparison_summary`.
    """
    started = time.monotonic()
    lines = job.sides[0].count_lines()
    with scratch_folder(options, "reconcile") as scratch:
        account = f"{scratch}/account.json"
        pipeline = new_pipeline(options)
        build(pipeline, job, account)
        result = run_to_end(pipeline)
        counts = read_json(account)
    summary = make_comparison_summary(job, {**counts, **lines}, time.monotonic() - started)
    write_comparison_reports(job, summary, requests=[traffic_of(result)])
    write_summary(job.summary, summary)
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job of a command line and returns the exit code."""

    def work() -> int:
        args, options = parse(ReconcileOptions, "python -m pipelines.reconcile", __doc__ or "", argv)
        job = comparison_from(args, *endpoints_from(args), workers_elsewhere=args.workers_elsewhere)
        check_run(args, options)
        summary = run(replace(job, wanted=wanted_by(args, options, job.wanted)), options)
        print_summary(comparison_lines(summary), summary)
        return comparison_exit_code(summary)

    return run_job("reconcile", work, argv)


if __name__ == "__main__":
    # Workers import the steps by the module's name; those of __main__ would have to be sent to them.
    from pipelines.reconcile import main as run_as_module

    sys.exit(run_as_module())
