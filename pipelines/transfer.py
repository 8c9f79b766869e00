"""The main job: copies what matches from one archive to another. ``python -m pipelines.transfer --help``.

Source and destination are DICOMweb servers or folders of DICOM files, in any combination. The bytes of an instance are
not changed. What the destination has already is not moved again: to finish a transfer that was cut short, run the same
command again.

At the end there is a summary whose numbers add up: found = transferred + already there + duplicate + ignored + failed +
not tried. They are counted from the job's output collections. For a folder, found are files; for a server, the
instances that it lists. Not tried is what was left when a server could not be reached for --source-outage or
--destination-outage seconds, or refused the login. The exit code is 0 only if everything was done, 1 if not, 2 if the
command line is wrong, 130 after Ctrl-C.

    python -m pipelines.transfer --source /data/incoming --destination https://pacs.example/dicom-web

On this machine alone, ``dicomweb-io copy`` does the same without Beam.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from dicomweb_io.account import (
    ROW,
    Causes,
    conflicts_of,
    exit_code,
    make_summary,
    print_summary,
    shown_progress,
    summary_lines,
    write_summary,
)
from dicomweb_io.elements import Failure, Resource
from dicomweb_io.errors import plain_text
from dicomweb_io.options import add_transfer_options, read_json
from dicomweb_io.report import write_transfer_reports
from dicomweb_io.transfer import (
    StoppedError,
    TransferInterrupted,
    TransferJob,
    check_archives,
    check_places,
    job_from,
    named_by,
    places_of,
)
from dicomweb_io.transforms import CopyInstances, SearchForInstances, SearchForSeries
from dicomweb_io.transforms._core import piped_by_member
from dicomweb_io.transforms.copy import (
    ListExclusions,
    MatchLines,
    WriteAccount,
    WriteReport,
    tallied,
)
from dicomweb_io.transforms.grouping import GroupBySeries
from dicomweb_io.transforms.metrics import traffic_of
from dicomweb_io.transforms.read_write import ReferencesOfRows
from pipelines._common import (
    Arguments,
    add_endpoint_arguments,
    check_run,
    endpoints_from,
    is_in_process,
    lines_of,
    new_pipeline,
    parse,
    run_job,
    run_to_end,
    scratch_folder,
    wanted_by,
)


class TransferOptions(PipelineOptions):
    """The options of the job, also usable as Beam pipeline options."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        arguments = Arguments(parser)
        add_endpoint_arguments(arguments)
        add_transfer_options(arguments)


@piped_by_member
class TransferOutputs(NamedTuple):
    """The collections of a transfer.

    Attributes:
        groups: The instances that were found, each once, by series.
        stored: What arrived or was there already.
        failures: What did not, and failed search requests.
        exclusions: Files that do not represent an instance; None if the source is a server.
    """

    groups: Any
    stored: Any
    failures: Any
    exclusions: Any


def build(pipeline: beam.Pipeline, job: TransferJob) -> TransferOutputs:
    """Adds the steps of a transfer to a pipeline."""
    references, failures = _references(pipeline, job)
    listed = job.destination if job.on_existing == "skip" else None
    grouped = references | "Group" >> GroupBySeries(job.source, listed, distinct=True, failures="collect")
    options = {item.name: getattr(job.options, item.name) for item in fields(job.options)}
    copied = grouped.groups | "Copy" >> CopyInstances(job.source, job.destination, failures="collect", **options)
    failures += [grouped.failures, copied.failures]
    exclusions = None
    if not job.source.is_web:
        exclusions, unreadable = pipeline | "Exclusions" >> ListExclusions(job)
        failures.append(unreadable)
    joined = failures | "Failures" >> beam.Flatten()
    if job.wanted is not None:
        places = references | "Places" >> beam.FlatMap(places_of).with_output_types(tuple[Resource, str])
        together = {
            "places": places | "PlaceSeries" >> beam.WithKeys(lambda place: _series_of(place[0])),
            "failures": joined | "FailureSeries" >> beam.WithKeys(lambda failure: _series_of(failure.reference)),
        } | "BySeries" >> beam.CoGroupByKey()
        joined = together | "NameLines" >> beam.FlatMap(_named).with_output_types(Failure)
    return TransferOutputs(grouped.groups, copied.stored, joined, exclusions)


def _series_of(reference: Resource | None) -> str:
    """What a place of a list and the failures that it may name have in common."""
    return "" if reference is None or reference.series_instance_uid is None else reference.series.uri


def _named(group: tuple[str, Mapping[str, Iterable[Any]]]) -> Iterator[Failure]:
    places = dict(group[1]["places"])
    for failure in group[1]["failures"]:
        yield named_by(failure, places)


def _references(pipeline: beam.Pipeline, job: TransferJob) -> tuple[Any, list[Any]]:
    """What is to be copied, whole series or instances, and what failed on the way."""
    if job.wanted is None:
        search = SearchForSeries if job.copies_series else SearchForInstances
        found = pipeline | "Search" >> search(job.source, job.filters, failures="collect")
        references, lost = found.rows | "References" >> ReferencesOfRows(job.level, ROW, failures="collect")
        return references, [found.failures, lost]
    references, unmatched = lines_of(pipeline, job) | "MatchLines" >> MatchLines(job)
    return references, [unmatched]


def report(outputs: TransferOutputs, account: str, failures: str | None, *, with_facts: bool = False) -> None:
    """Adds the job's last steps, which write the account and the failures."""
    counted = {name: items for name, items in outputs._asdict().items() if items is not None}
    if failures is not None:
        named = outputs.failures
        if outputs.exclusions is not None:
            conflicts = outputs.exclusions | "Conflicts" >> beam.FlatMap(conflicts_of).with_output_types(Failure)
            named = (named, conflicts) | "Named" >> beam.Flatten()
        counted["unwritten"] = named | "WriteFailures" >> WriteReport(failures)
    _ = counted | "Account" >> WriteAccount(account, with_facts=with_facts)


def run(
    job: TransferJob, options: PipelineOptions, *, show_progress: bool | None = None, tell_causes: bool = True
) -> dict[str, Any]:
    """Runs a transfer to its end.

    Args:
        job: What to do.
        options: Beam's options.
        show_progress: Whether to show progress on standard error; by default if a terminal is watching.
        tell_causes: Whether to say why something failed, on standard error.

    Returns:
        The summary; see `dicomweb_io.account.make_summary`.

    Raises:
        TransferInterrupted: On Ctrl-C, with what this process has counted.
    """
    started = time.monotonic()
    lines = job.count_lines()
    with scratch_folder(options, "transfer") as scratch:
        account = f"{scratch}/account.json"
        pipeline = new_pipeline(options)
        report(build(pipeline, job), account, job.failures, with_facts=bool(job.report))
        before = tallied()
        with shown_progress(lambda: {name: number - before[name] for name, number in tallied().items()}, show_progress):
            try:
                result = run_to_end(pipeline)
            except KeyboardInterrupt:
                counts = {**{name: number - before[name] for name, number in tallied().items()}, **lines}
                document, seconds = {"counts": counts, "left_out": []}, time.monotonic() - started
                summary = make_summary(document, seconds, dry_run=job.dry_run, interrupted=True)
                write_transfer_reports(job, summary, {})
                write_summary(job.summary, summary)
                raise TransferInterrupted(summary) from None
        document = read_json(account)
        document["counts"].update(lines)
        if tell_causes:
            causes = Causes("transfer")
            causes.add_known(document)
            causes.finish(job.failures)
        summary = make_summary(document, time.monotonic() - started, dry_run=job.dry_run)
    write_transfer_reports(job, summary, document.get("facts", {}), [traffic_of(result)])
    write_summary(job.summary, summary)
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job of a command line and returns the exit code."""

    def work() -> int:
        args, options = parse(TransferOptions, "python -m pipelines.transfer", __doc__ or "", argv)
        job = job_from(args, *endpoints_from(args), workers_elsewhere=args.workers_elsewhere)
        job = replace(job, wanted=wanted_by(args, options, job.wanted))
        try:
            if not args.workers_elsewhere:
                check_places(job)
            check_run(args, options)
            if not args.workers_elsewhere:
                with job.source.connect() as source, job.destination.connect() as destination:
                    check_archives(job, (source, destination))
            summary = run(job, options)
        except TransferInterrupted as error:
            print_summary(summary_lines(error.summary, job), error.summary)
            raise
        except StoppedError as error:
            print(f"transfer: {plain_text(str(error))}", file=sys.stderr)
            return 1
        lines = [*summary_lines(summary, job)]
        if summary["already_there"] and not (job.dry_run or is_in_process(options)):
            lines.append("  What this job copied counts as already there if its runner repeated the step that did it.")
        print_summary(lines, summary)
        return exit_code(summary)

    return run_job("transfer", work, argv, then="the same command goes on with what is missing")


if __name__ == "__main__":
    # Workers import the steps by the module's name; those of __main__ would have to be sent to them.
    from pipelines.transfer import main as run_as_module

    sys.exit(run_as_module())
