"""The main job: copies what matches from one archive to another. ``python -m pipelines.transfer --help``.

Source and destination are DICOMweb servers or folders of DICOM files, in any combination. The bytes of an instance are
not changed. What the destination has already is not moved again: to finish a transfer that was cut short, run the same
command again.

At the end there is a summary whose numbers add up: found = transferred + already there + duplicate + ignored + failed.
They are counted from the job's output collections. For a folder, found are files; for a server, the rows of the search.
The exit code is 0 only if nothing failed, 1 if something did, 2 if the command line is wrong.

    python -m pipelines.transfer --source /data/incoming --destination https://pacs.example/dicom-web
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.pvalue import AsDict, AsIter, TaggedOutput
from apache_beam.transforms import combiners

from dicomweb_io.client import OnExisting, Verify
from dicomweb_io.elements import Exclusion, Failure, Resource, SearchQuery, StoredInstance
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.failures import RECOVERABLE, failure_of
from dicomweb_io.listing import instance_of_row
from dicomweb_io.pool import shared_client
from dicomweb_io.queries import make_query
from dicomweb_io.transfer import check_policies
from dicomweb_io.transforms import CopyInstances, DistinctReferences, SearchForInstances
from pipelines._common import (
    Arguments,
    UsageError,
    add_endpoint_arguments,
    check_writable,
    endpoint_from,
    filters_from,
    format_bytes,
    is_local,
    parse,
    progress,
    publish,
    read_json,
)
from pipelines._references import Wanted, read_references

TRANSFORM = "Transfer"
_MAX_LISTED = 1000
_MAX_REASONS = 50
_PARTS = ("transferred", "already_there", "duplicate", "ignored", "failed")


class TransferOptions(PipelineOptions):
    """The options of the job, also usable as Beam pipeline options."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        parser = Arguments(parser)
        add_endpoint_arguments(parser, "source", "where to copy from")
        add_endpoint_arguments(parser, "destination", "where to copy to")
        parser.add_argument(
            "--filter",
            dest="filters",
            metavar="KEY=VALUE",
            action="append",
            help="copy only what matches: an attribute's keyword or tag, and its value (repeatable)",
        )
        parser.add_argument(
            "--input",
            metavar="PATH",
            help="copy only what this list names: UIDs, accession numbers or references, as CSV or JSON lines, or the "
            "--failures file of an earlier run",
        )
        parser.add_argument("--failures", metavar="PATH", help="write what failed here, one JSON object a line")
        parser.add_argument("--summary", metavar="PATH", help="write the summary here too, as JSON")
        parser.add_argument(
            "--on-existing",
            choices=("skip", "server", "replace", "error"),
            default="skip",
            help="what to do with instances whose UID the destination has (default: skip)",
        )
        parser.add_argument(
            "--verify",
            choices=("response", "uid", "content"),
            default="response",
            help="the proof wanted for each instance: the destination's answer, a search for its UID, or its content",
        )
        parser.add_argument(
            "--allow-transcoding",
            action="store_true",
            default=False,
            help="take what the source re-encodes if it cannot give the original",
        )
        parser.add_argument(
            "--spool-directory", metavar="PATH", help="where larger instances wait on their way, on each worker"
        )


@dataclass(frozen=True)
class TransferJob:
    """One transfer, ready to run. The attributes are those of the command line."""

    source: Endpoint
    destination: Endpoint
    filters: dict[str, str] = field(default_factory=dict)
    wanted: tuple[Wanted, ...] | None = None
    failures: str | None = None
    summary: str | None = None
    on_existing: OnExisting = "skip"
    verify: Verify = "response"
    allow_transcoding: bool = False
    spool_directory: str | None = None

    def __post_init__(self) -> None:
        check_policies(self.on_existing, self.verify)
        self.query()

    def query(self) -> SearchQuery:
        """The search at the source."""
        return make_query("instance", search_filters=self.filters, permissive_uid=True)


class TransferOutputs(NamedTuple):
    """The collections of a transfer.

    Attributes:
        references: The instances that were found, each once.
        stored: What arrived or was there already.
        failures: What did not, and parts of the search that failed.
        exclusions: Files that are no instance of their own.
    """

    references: Any
    stored: Any
    failures: Any
    exclusions: Any


def build(pipeline: beam.Pipeline, job: TransferJob) -> TransferOutputs:
    """Adds the steps of a transfer to a pipeline."""
    failures = []
    if job.wanted is None:
        found = pipeline | "Search" >> SearchForInstances(job.source, job.filters, failures="collect")
        failures.append(found.failures)
        listed = found.rows | "References" >> _references_step()
        failures.append(listed["failures"])
        all_references = listed["main"]
    else:
        exact, expanded, lost = _wanted_references(pipeline, job)
        failures += lost
        all_references = (exact, expanded) | "Wanted" >> beam.Flatten()
    references = all_references | "Distinct" >> DistinctReferences()
    copied = references | "Copy" >> CopyInstances(
        job.source,
        job.destination,
        on_existing=job.on_existing,
        verify=job.verify,
        allow_transcoding=job.allow_transcoding,
        spool_directory=job.spool_directory,
        failures="collect",
    )
    failures.append(copied.failures)
    left_out = (
        pipeline
        | "Source" >> beam.Create([job.query()] if _has_exclusions(job) else []).with_output_types(SearchQuery)
        | "Exclusions"
        >> beam.ParDo(_ListExclusions(job.source))
        .with_output_types(Exclusion, failures=Failure)
        .with_outputs("failures", main="main")
    )
    failures.append(left_out["failures"])
    unreadable = (
        left_out["main"]
        | "Unreadable" >> beam.Filter(lambda item: item.kind == "unreadable").with_output_types(Exclusion)
        | "UnreadableFailures" >> beam.Map(failure_of_exclusion).with_output_types(Failure)
    )
    failures.append(unreadable)
    joined = tuple(failures) | "Failures" >> beam.Flatten()
    return TransferOutputs(references, copied.stored, joined, left_out["main"])


def _has_exclusions(job: TransferJob) -> bool:
    return not job.source.is_web and job.wanted is None


def _references_step() -> Any:
    return (
        beam.ParDo(_InstanceReferences())
        .with_output_types(Resource, failures=Failure)
        .with_outputs("failures", main="main")
    )


def _wanted_references(pipeline: beam.Pipeline, job: TransferJob) -> tuple[Any, Any, list[Any]]:
    """References that were named one by one, those that searches find, and failures."""
    wanted = job.wanted or ()
    instances = [item for item in wanted if isinstance(item, Resource) and item.level == "instance"]
    searches = [item for item in wanted if item not in set(instances)]
    exact = pipeline | "Instances" >> beam.Create(instances).with_output_types(Resource)
    groups = [item for item in searches if isinstance(item, Resource)]
    queries = [item for item in searches if isinstance(item, SearchQuery)]
    rows, failures = [], []
    for name, items, kind in (("Groups", groups, Resource), ("Queries", queries, SearchQuery)):
        found = (
            pipeline
            | name >> beam.Create(items).with_output_types(kind)
            | f"Search{name}" >> SearchForInstances(job.source, job.filters, failures="collect")
        )
        rows.append(found.rows)
        failures.append(found.failures)
    listed = tuple(rows) | "Rows" >> beam.Flatten() | "References" >> _references_step()
    return exact, listed["main"], [*failures, listed["failures"]]


class _InstanceReferences(beam.DoFn):
    """References of the rows of an instance search."""

    def process(self, element: Any) -> Iterator[Any]:
        try:
            yield instance_of_row(element)
        except (TypeError, ValueError) as error:
            yield TaggedOutput("failures", failure_of(error, TRANSFORM))


class _ListExclusions(beam.DoFn):
    """What searches in a folder leave out."""

    def __init__(self, source: Endpoint) -> None:
        self._source = source

    def process(self, element: SearchQuery) -> Iterator[Any]:
        lease = shared_client(self._source)
        try:
            yield from lease.client.iter_exclusions(element)
        except RECOVERABLE as error:
            yield TaggedOutput("failures", failure_of(error, "ListExclusions"))
        finally:
            lease.close()


def failure_of_exclusion(exclusion: Exclusion) -> Failure:
    """The failure that an unreadable file is."""
    return Failure("ReadFile", exclusion.reason, reference=exclusion.reference, source=exclusion.path)


# Counting -------------------------------------------------------------------------------------------------------------

# What fails before anything is found: it is reported beside the numbers, because nobody can tell how much it hides.
_SEARCH_STEPS = ("SearchForInstances", "ListExclusions", TRANSFORM)


def is_search_failure(failure: Failure) -> bool:
    """Whether a failure concerns what might have been found, rather than something that was."""
    return failure.transform in _SEARCH_STEPS


def counts_of_stored(stored: StoredInstance) -> Iterator[tuple[str, int]]:
    """What one stored instance adds to the counts."""
    yield ("already_there" if stored.outcome == "exists" else "transferred"), 1
    yield "bytes", stored.size


def counts_of_failure(failure: Failure) -> Iterator[tuple[str, int]]:
    """What one failure adds to the counts."""
    if is_search_failure(failure):
        yield "search_failed", 1
    else:
        yield "failed", 1
        if failure.transform == "ReadFile":
            yield "found", 1
    yield f"reason: {reason_of(failure)}", 1


def counts_of_exclusion(exclusion: Exclusion) -> Iterator[tuple[str, int]]:
    """What one file that is no instance of its own adds to the counts."""
    if exclusion.kind == "unreadable":
        return
    yield "found", 1
    yield exclusion.kind, 1
    if exclusion.kind == "duplicate" and exclusion.reason.startswith("conflicting"):
        yield "conflicting", 1


_NAMES = re.compile(r"\d+(?:\.\d+){2,}")


def reason_of(failure: Failure) -> str:
    """A failure's reason without what belongs to the single case, so that equal reasons can be counted."""
    text = failure.message
    for name in (failure.source, failure.url):
        if name:
            text = text.replace(name, "…")
    return " ".join(_NAMES.sub("UID", text).split())[:300]


def count_outputs(outputs: TransferOutputs) -> Any:
    """A collection of (name, number) over all outputs."""
    parts = (
        outputs.references | "CountReferences" >> beam.Map(lambda _: ("found", 1)).with_output_types(tuple[str, int]),
        outputs.stored | "CountStored" >> beam.FlatMap(counts_of_stored).with_output_types(tuple[str, int]),
        outputs.failures | "CountFailures" >> beam.FlatMap(counts_of_failure).with_output_types(tuple[str, int]),
        outputs.exclusions | "CountExclusions" >> beam.FlatMap(counts_of_exclusion).with_output_types(tuple[str, int]),
    )
    return parts | "AllCounts" >> beam.Flatten() | "Sum" >> beam.CombinePerKey(sum)


def list_exclusions(outputs: TransferOutputs) -> Any:
    """A collection of one list: the files that were left out as duplicates or ignored, the first thousand by path."""
    return (
        outputs.exclusions
        | "LeftOut" >> beam.Filter(lambda item: item.kind != "unreadable").with_output_types(Exclusion)
        | "First" >> combiners.Top.Smallest(_MAX_LISTED, key=lambda item: item.path)
    )


def _write_counts(_: None, path: str, counts: dict[str, int], left_out: Any) -> None:
    exclusions = [item for items in left_out for item in items]
    document = {
        "counts": counts,
        "left_out": [
            {"kind": item.kind, "path": item.path, "reason": item.reason, "chosen": item.chosen} for item in exclusions
        ],
    }
    publish(path, [json.dumps(document)])


def _write_failures(_: None, path: str, failures: Any) -> None:
    publish(path, (json.dumps(failure.to_dict()) for failure in failures))


def report(pipeline: beam.Pipeline, outputs: TransferOutputs, counts_path: str, failures_path: str | None) -> None:
    """Adds the job's last steps, which write the counts and the failures."""
    _ = (
        pipeline
        | "OnceForCounts" >> beam.Create([None])
        | "WriteCounts"
        >> beam.Map(_write_counts, counts_path, AsDict(count_outputs(outputs)), AsIter(list_exclusions(outputs)))
    )
    if failures_path is not None:
        _ = (
            pipeline
            | "OnceForFailures" >> beam.Create([None])
            | "WriteFailures" >> beam.Map(_write_failures, failures_path, AsIter(outputs.failures))
        )


# Running --------------------------------------------------------------------------------------------------------------


def run(job: TransferJob, options: PipelineOptions, *, show_progress: bool | None = None) -> dict[str, Any]:
    """Runs a transfer to its end.

    Args:
        job: What to do.
        options: Beam's options.
        show_progress: Whether to show progress on stderr; by default if a terminal is watching.

    Returns:
        The summary: ``found``, ``transferred``, ``already_there``, ``duplicate``, ``ignored``, ``failed``,
        ``search_failures``, ``conflicting`` (duplicates that differ from the file that was chosen), ``bytes``,
        ``seconds``, ``bytes_per_second``, ``reasons`` (of failures, most frequent first), ``duplicates`` and
        ``ignored_files`` (the first thousand).
    """
    started = time.monotonic()
    scratch: str | None = None
    if is_local(options):
        scratch = tempfile.mkdtemp(prefix="dicomweb_io-transfer-")
        counts_path = os.path.join(scratch, "counts.json")
    else:
        counts_path = _remote_counts_path(job, options)
    try:
        pipeline = beam.Pipeline(options=options)
        outputs = build(pipeline, job)
        report(pipeline, outputs, counts_path, job.failures)
        with progress(show_progress):
            pipeline.run().wait_until_finish()
        document = read_json(counts_path)
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    summary = make_summary(document, time.monotonic() - started)
    if job.summary is not None:
        publish(job.summary, [json.dumps(summary, indent=2)])
    return summary


def _remote_counts_path(job: TransferJob, options: PipelineOptions) -> str:
    folder = options.view_as(GoogleCloudOptions).temp_location
    if not folder:
        raise UsageError("this runner's workers cannot write to this machine: give --temp_location (an fsspec URL)")
    return f"{folder.rstrip('/')}/transfer-{os.urandom(8).hex()}-counts.json"


def make_summary(document: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Makes the summary of what the job's last step wrote."""
    counts: dict[str, int] = document["counts"]
    reasons = {name[len("reason: ") :]: number for name, number in counts.items() if name.startswith("reason: ")}
    summary: dict[str, Any] = {name: counts.get(name, 0) for name in ("found", *_PARTS)}
    summary["search_failures"] = counts.get("search_failed", 0)
    summary["conflicting"] = counts.get("conflicting", 0)
    summary["bytes"] = counts.get("bytes", 0)
    summary["seconds"] = round(seconds, 3)
    summary["bytes_per_second"] = round(summary["bytes"] / seconds) if seconds > 0 else 0
    ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    summary["reasons"] = dict(ranked[:_MAX_REASONS])
    summary["duplicates"] = [item for item in document["left_out"] if item["kind"] == "duplicate"]
    summary["ignored_files"] = [item for item in document["left_out"] if item["kind"] == "ignored"]
    return summary


def adds_up(summary: dict[str, Any]) -> bool:
    """Whether everything that was found has exactly one fate."""
    return bool(summary["found"] == sum(summary[name] for name in _PARTS))


def summary_lines(summary: dict[str, Any], job: TransferJob) -> Iterator[str]:
    """The summary for people."""
    what = "files" if _has_exclusions(job) else "instances"
    yield f"From {job.source.safe_url} to {job.destination.safe_url}"
    yield f"  found          {summary['found']:>10,} {what}"
    yield f"  transferred    {summary['transferred']:>10,}"
    yield f"  already there  {summary['already_there']:>10,}"
    conflicting = (
        f"  ({summary['conflicting']:,} differ from the file that was chosen)" if summary["conflicting"] else ""
    )
    yield f"  duplicate      {summary['duplicate']:>10,}{conflicting}"
    yield f"  ignored        {summary['ignored']:>10,}"
    yield f"  failed         {summary['failed']:>10,}"
    for reason, number in list(summary["reasons"].items())[:10]:
        yield f"    {number:,} x {reason}"
    rate = f"{format_bytes(summary['bytes_per_second'])}/s"
    yield f"  {format_bytes(summary['bytes'])} in {summary['seconds']:.1f} s, {rate}"
    if summary["search_failures"]:
        yield f"  {summary['search_failures']:,} parts of the search failed: there may be more than was found."
    if not adds_up(summary):
        yield "  THE NUMBERS DO NOT ADD UP. Please report this; run the job again to be sure that nothing is missing."
        return
    whole = not summary["failed"] and not summary["search_failures"]
    if not summary["found"]:
        yield "  Nothing was found."
    elif not summary["transferred"] and summary["already_there"]:
        rest = "everything" if whole else "all but what failed"
        yield f"  Nothing was transferred: {rest} is at the destination already."
    elif whole:
        yield "  Everything is at the destination."


def job_from(args: Any, options: PipelineOptions) -> TransferJob:
    """Makes the job of parsed arguments.

    Raises:
        UsageError: If they are not valid.
    """
    local = is_local(options)
    for option in ("failures", "summary"):
        if getattr(args, option):
            check_writable(getattr(args, option), local or option == "summary", f"--{option}")
    wanted = tuple(read_references(args.input)) if args.input else None
    try:
        return TransferJob(
            source=endpoint_from(args, "source"),
            destination=endpoint_from(args, "destination"),
            filters=filters_from(args.filters),
            wanted=wanted,
            failures=args.failures,
            summary=args.summary,
            on_existing=cast(OnExisting, args.on_existing),
            verify=cast(Verify, args.verify),
            allow_transcoding=args.allow_transcoding,
            spool_directory=args.spool_directory,
        )
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job of a command line and returns the exit code."""
    try:
        args, options = parse(TransferOptions, "python -m pipelines.transfer", __doc__ or "", argv)
        job = job_from(args, options)
        summary = run(job, options)
    except UsageError as error:
        print(f"transfer: {error}", file=sys.stderr)
        return 2
    for line in summary_lines(summary, job):
        print(line)
    return 0 if adds_up(summary) and not summary["failed"] and not summary["search_failures"] else 1


if __name__ == "__main__":
    # Workers import the steps by the module's name; those of __main__ would have to be sent to them.
    from pipelines.transfer import main as run_as_module

    sys.exit(run_as_module())
