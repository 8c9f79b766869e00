"""Copies new instances of one archive to another, in rounds, for as long as it runs. ``python -m pipelines.watch
--help``.

Each round asks the source what is new and copies it in a bounded pipeline, as ``pipelines.transfer`` does. After each
round the position is written atomically to the file ``--cursor``: stop it at any time, and run the same command again
to continue. What was copied in an interrupted round is found again, and is skipped.

What could not be copied is tried again in the next rounds. What fails five times is given up: it is written to
``--failures``, from where ``pipelines.transfer --input`` can take it later.

The exit code is 0 if nothing was given up and nothing waits to be tried again, 1 if something was or does (or the last
poll failed), 2 if the command line is wrong. An interrupt or SIGTERM ends it after the round that is running.

    python -m pipelines.watch --source https://pacs.example/dicom-web --destination /data/new --cursor watch.json
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any, cast, get_args

from apache_beam.options.pipeline_options import PipelineOptions

from dicomweb_io.account import EXCLUSIONS, adds_up, failure_line, format_bytes, write_summary
from dicomweb_io.changes import ChangeMethod, Changes, ChangeSource, Place, PlaceFile, Start, change_source
from dicomweb_io.elements import Failure, Resource
from dicomweb_io.failures import RECOVERABLE, failure_of
from dicomweb_io.options import (
    UsageError,
    add_filter_option,
    add_policy_options,
    append_lines,
    check_writable,
    filters_from,
)
from dicomweb_io.spool import PrivateDirectory
from dicomweb_io.transfer import TransferJob
from pipelines import transfer
from pipelines._common import Arguments, add_endpoint_arguments, endpoints_from, is_local, parse

ATTEMPTS = 5
"""Rounds in which an instance is tried before it is given up."""

ROUND = 10_000
"""The maximum number of new instances of a round."""

_SUMS = ("found", "transferred", "already_there", "failed", "not_tried", "bytes")


class WatchOptions(PipelineOptions):
    """The options of the job, also usable as Beam pipeline options."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        parser = Arguments(parser)
        add_endpoint_arguments(parser)
        parser.add_argument("--cursor", metavar="PATH", help="the file that records the position (required)")
        parser.add_argument(
            "--interval", metavar="SECONDS", type=float, default=60.0, help="seconds between polls (default: 60)"
        )
        parser.add_argument(
            "--start",
            metavar="now|all|DATE",
            default="now",
            help="where to begin, when there is no cursor yet: with what arrives from now on (default), with all that "
            "is there, or with a day (YYYY-MM-DD)",
        )
        parser.add_argument(
            "--max-polls", metavar="N", type=int, help="stop after this many polls (default: run until stopped)"
        )
        parser.add_argument(
            "--method",
            choices=get_args(ChangeMethod),
            default="auto",
            help="how to find out what is new (default: by the source's profile)",
        )
        parser.add_argument(
            "--lookback", metavar="SECONDS", type=float, help="how late an instance may arrive after its time"
        )
        add_filter_option(parser)
        parser.add_argument("--failures", metavar="PATH", help="add what was given up here, one JSON object a line")
        parser.add_argument("--summary", metavar="PATH", help="write the summary here too, as JSON, after each round")
        add_policy_options(parser, on_existing="skip")


@dataclass(frozen=True)
class WatchJob:
    """One watch, ready to run. The attributes are those of the command line."""

    transfer: TransferJob
    source: ChangeSource
    cursor: str
    start: Start = "now"
    interval: float = 60.0
    max_polls: int | None = None
    failures: str | None = None
    summary: str | None = None

    @property
    def place_file(self) -> PlaceFile:
        """Where the position is kept."""
        return PlaceFile(self.cursor, {"source": self.transfer.source.safe_url, "filters": self.transfer.filters})


# Rounds ---------------------------------------------------------------------------------------------------------------


def run_round(
    job: WatchJob, options: PipelineOptions, place: Place, changes: Changes, totals: dict[str, Any]
) -> list[Failure]:
    """Copies what is new and what is to be tried again, and moves the position.

    Returns:
        What was given up.

    Raises:
        RuntimeError: If a failure does not name an object, so that it cannot be repeated. The position stays.
    """
    wanted = dict.fromkeys([*place.pending, *changes.references])
    if not wanted:
        place.cursor = changes.cursor
        return list(changes.failures)
    with PrivateDirectory(prefix="dicomweb_io-watch-") as scratch:
        path = os.path.join(scratch, "failures.jsonl")
        # What is new was found with the filters.
        once = replace(job.transfer, wanted=tuple(wanted), filters={}, failures=path)
        summary = transfer.run(once, options, show_progress=False)
        with open(path, encoding="utf-8") as file:
            failures = [json.loads(line) for line in file]
    if not adds_up(summary) or summary["search_failures"]:
        reasons = "; ".join(summary["reasons"])
        raise RuntimeError(
            f"the round is not accounted for in full and is repeated: {reasons or 'no reason was given'}"
        )
    for name in _SUMS:
        totals[name] += summary[name]
    pending: dict[Resource, int] = {}
    given_up = list(changes.failures)
    for item in failures:
        if item["transform"] == EXCLUSIONS:
            # A file of a folder that another one stands for: no further round changes that.
            given_up.append(_failure_from(item, Resource.of(item["reference"])))
            continue
        if "reference" not in item:
            raise RuntimeError(f"a failure of the round names no object, so the round is repeated: {item['message']}")
        reference = Resource.of(item["reference"])
        # What was not tried, because an archive could not be reached, is not on its way to be given up.
        attempts = place.pending.get(reference, 0) + min(1, item["attempts"])
        if attempts < ATTEMPTS:
            pending[reference] = attempts
        else:
            given_up.append(_failure_from(item, reference))
    place.cursor, place.pending = changes.cursor, pending
    return given_up


def _failure_from(item: Mapping[str, Any], reference: Resource) -> Failure:
    known = {key: value for key, value in item.items() if key in Failure.__dataclass_fields__ and key != "rows"}
    return Failure(**{**known, "reference": reference})


def run(job: WatchJob, options: PipelineOptions, stopping: threading.Event | None = None) -> dict[str, Any]:
    """Watches until it is stopped, or has made as many polls as it may.

    Args:
        job: What to do.
        options: Beam's options, for each round.
        stopping: Ends it after the round that is running, once set.

    Returns:
        The summary: ``polls``, ``failed_polls``, ``rounds`` (with something to copy), ``found`` (with each try of
        what was tried again), ``transferred``, ``already_there``, ``failed``, ``not_tried``, ``bytes``, ``given_up``,
        ``unwritten`` (reports that could not be written), ``pending``, and ``last_error`` (of the last poll, or None).
    """
    stopping = stopping or threading.Event()
    try:
        place = job.place_file.read()
    except ValueError as error:
        raise UsageError(f"--cursor {job.cursor}: {error}") from error
    totals: dict[str, Any] = dict.fromkeys(("polls", "failed_polls", "rounds", *_SUMS, "given_up", "unwritten"), 0)
    totals["last_error"] = None
    client = job.transfer.source.connect()
    try:
        while not stopping.is_set():
            began = time.monotonic()
            totals["polls"] += 1
            more = _poll_and_copy(job, options, client, place, totals, stopping)
            totals["pending"] = len(place.pending)
            write_summary(job.summary, totals)
            if stopping.is_set() or (job.max_polls is not None and totals["polls"] >= job.max_polls and not more):
                break
            stopping.wait(max(0.0, began + job.interval - time.monotonic()))
    finally:
        client.close()
    totals["pending"] = len(place.pending)
    return totals


def _poll_and_copy(
    job: WatchJob,
    options: PipelineOptions,
    client: Any,
    place: Place,
    totals: dict[str, Any],
    stopping: threading.Event,
) -> bool:
    """One poll, with as many rounds as it takes to copy what it reports. Returns whether the round is incomplete."""
    while True:
        try:
            changes = job.source.poll(client, place.cursor, start=job.start, max_changes=ROUND)
            busy = bool(place.pending or changes.references)
            given_up = run_round(job, options, place, changes, totals)
        except (*RECOVERABLE, RuntimeError) as error:
            # The position has not moved: the next poll finds the same again.
            totals["failed_polls"] += 1
            totals["last_error"] = failure_of(error, "Watch").message
            print(f"watch: {totals['last_error']}", file=sys.stderr)
            return False
        totals["last_error"] = None
        totals["rounds"] += busy
        if given_up:
            totals["given_up"] += len(given_up)
            if job.failures is not None:
                # Before the position moves, so that a failure may be written twice but is never lost.
                try:
                    append_lines(job.failures, map(failure_line, given_up))
                except OSError as error:
                    totals["unwritten"] += 1
                    print(f"watch: --failures {job.failures} cannot be written: {error.strerror}", file=sys.stderr)
                    print(*map(failure_line, given_up), sep="\n", file=sys.stderr)
        job.place_file.write(place)
        if busy or given_up:
            print(_line(totals, len(place.pending)), flush=True)
        if not changes.more or stopping.is_set():
            return changes.more and not stopping.is_set()


def _line(totals: Mapping[str, Any], pending: int) -> str:
    return (
        f"poll {totals['polls']:,}: {totals['transferred']:,} transferred, {totals['already_there']:,} already there, "
        f"{pending:,} to be tried again, {totals['given_up']:,} given up, {format_bytes(totals['bytes'])}"
    )


# Command line ---------------------------------------------------------------------------------------------------------


def job_from(args: Any, options: PipelineOptions) -> WatchJob:
    """Makes the job of parsed arguments.

    Raises:
        UsageError: If they are not valid.
    """
    if not is_local(options):
        raise UsageError(
            "it copies in rounds on this machine; for a streaming runner use the transforms WatchForInstances and "
            "CopyInstances in your own pipeline"
        )
    if not args.cursor:
        raise UsageError("--cursor is required: the file that records the position")
    for option in ("cursor", "failures", "summary"):
        path = getattr(args, option)
        if path and "://" in path:
            raise UsageError(f"--{option} {path}: give a path on this machine")
        if path:
            check_writable(path, f"--{option}")
    if not 0 < args.interval < float("inf"):
        raise UsageError(f"--interval must be a positive number of seconds, not {args.interval}")
    if args.max_polls is not None and args.max_polls < 1:
        raise UsageError(f"--max-polls must be 1 or more, not {args.max_polls}")
    try:
        source, destination = endpoints_from(args)
        copied = TransferJob(
            source,
            destination,
            filters=filters_from(args.filters),
            on_existing=args.on_existing,
            verify=args.verify,
        )
        changes = change_source(
            copied.source, "instance", search_filters=copied.filters, method=args.method, lookback=args.lookback
        )
        start = _start_from(args.start)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    return WatchJob(copied, changes, args.cursor, start, args.interval, args.max_polls, args.failures, args.summary)


def _start_from(text: str) -> Start:
    if text in ("now", "all"):
        return cast(Start, text)
    try:
        return datetime.fromisoformat(text) if len(text) > len("2026-01-01") else date.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"--start {text!r}: expected now, all, or a day as YYYY-MM-DD") from error


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and an interrupt set; a second interrupt ends the process at once."""
    stopping = threading.Event()

    def stop(number: int, _: Any) -> None:
        if stopping.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopping.set()

    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job of a command line and returns the exit code."""
    try:
        args, options = parse(WatchOptions, "python -m pipelines.watch", __doc__ or "", argv)
        job = job_from(args, options)
        with stopped_by_signals() as stopping:
            totals = run(job, options, stopping)
    except UsageError as error:
        print(f"watch: {error}", file=sys.stderr)
        return 2
    print(f"Ended after {_line(totals, totals['pending'])}")
    incomplete = totals["given_up"] or totals["pending"] or totals["unwritten"] or totals["last_error"] is not None
    return 1 if incomplete else 0


if __name__ == "__main__":
    # Workers import the steps by the module's name; those of __main__ would have to be sent to them.
    from pipelines.watch import main as run_as_module

    sys.exit(run_as_module())
