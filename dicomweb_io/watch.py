"""Watches: what is new in an archive is copied, in rounds, with a place in a file between them.

A round polls a change source (`dicomweb_io.changes`), copies what is new and what is to be tried again as any transfer
does, and writes the place last. A round that is cut short is repeated; what it copied is found at the destination. A
table that a watch keeps has a place of its own, which is written when the table is.

`run_watch` is the engine of ``dicomweb-io watch`` and of ``pipelines.watch``: they differ in how a round is copied.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime, timezone
from types import SimpleNamespace
from typing import Any, cast

from dicomweb_io.account import (
    EXCLUSIONS,
    MAX_REASONS,
    PARTS,
    adds_up,
    failure_line,
    format_bytes,
    make_summary,
    write_summary,
)
from dicomweb_io.changes import (
    Changes,
    ChangeSource,
    Place,
    PlaceFile,
    Start,
    change_source,
    take_rested,
)
from dicomweb_io.client import DICOMClient
from dicomweb_io.elements import Failure, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import CredentialsError, plain_text
from dicomweb_io.failures import RECOVERABLE, failure_of
from dicomweb_io.listing import ListLine
from dicomweb_io.options import (
    LIST_OPTIONS,
    UsageError,
    append_lines,
    check_distinct,
    check_writable,
    filters_from,
    read_json,
)
from dicomweb_io.report import RoundsFacts, check_report, describe, describe_archive, write_reports
from dicomweb_io.spool import PrivateDirectory
from dicomweb_io.tables import TableJob, place_file, run_table, table_job_from
from dicomweb_io.transfer import TransferJob, check_places, job_from as transfer_from

ATTEMPTS = 5
"""Rounds in which an instance is tried before it is given up."""

ROUND = 10_000
"""The maximum number of new objects of a round."""

Copy = Callable[[TransferJob], Mapping[str, Any]]
"""Runs a transfer to its end, and returns its summary."""

_SUMS = ("found", *PARTS, "bytes")
_REFUSED = (401, 403)
_FULL = 507
_MAX_ROUNDS = 100
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class WatchJob:
    """One watch, ready to run. The attributes are those of the command lines.

    Attributes:
        source: What is watched.
        place: Where the position is kept.
        changes: How to find out what is new.
        transfer: How what is new is copied; None if only a table is kept.
        start: Where to begin when there is no position yet.
        interval: Seconds between the beginnings of polls.
        max_polls: How many polls are made at most.
        duration: Seconds after which it ends.
        quiet: Seconds without a change after which a study is copied as a whole; None to copy what is new at once.
        failures: Where what is given up is added, one JSON object a line.
        summary: Where the summary is written after each poll, as JSON.
        table: The table that is kept, if there is one.
        report: Where reports are written after each round; see `dicomweb_io.report`.
    """

    source: Endpoint
    place: PlaceFile
    changes: ChangeSource
    transfer: TransferJob | None = None
    start: Start = "now"
    interval: float = 60.0
    max_polls: int | None = None
    duration: float | None = None
    quiet: float | None = None
    failures: str | None = None
    summary: str | None = None
    table: TableJob | None = None
    report: tuple[str, ...] = ()


def job_from(args: Any, source: Endpoint, destination: Endpoint | None) -> WatchJob:
    """Makes the job of parsed arguments; see `dicomweb_io.options.add_watch_options`.

    Raises:
        UsageError: If they are not valid.
    """
    if destination is None and not args.table:
        raise UsageError("a destination is required, to copy what is new to; or a --table to keep; or both")
    if destination is None and args.complete_after:
        raise UsageError("--complete-after concerns copies, and there is no destination")
    if destination is not None and not args.cursor:
        raise UsageError("--cursor is required: the file that records the position, for the next run")
    for option in ("cursor", "failures", "summary"):
        path = getattr(args, option)
        if path and "://" in path:
            raise UsageError(f"--{option} {path}: give a path on this machine")
        if path:
            check_writable(path, f"--{option}")
    check_distinct(args, "table", "cursor", "failures", "summary")
    if not 0 < args.interval < float("inf"):
        raise UsageError(f"--interval must be a positive number of seconds, not {args.interval}")
    if args.once and args.max_polls is not None:
        raise UsageError("give --once or --max-polls, not both")
    if args.max_polls is not None and args.max_polls < 1:
        raise UsageError(f"--max-polls must be 1 or more, not {args.max_polls}")
    duration, quiet = (_seconds(args, option) for option in ("for", "complete-after"))
    transfer = None
    if destination is not None:
        transfer = transfer_from(SimpleNamespace(**{**LIST_OPTIONS, **vars(args)}), source, destination)
        transfer = replace(transfer, failures=None, summary=None, report=())
        check_places(transfer)
    for path in args.report or ():
        check_report(path)
    filters = filters_from(args.filters)
    try:
        changes = change_source(
            source,
            "instance" if quiet is None else "study_change",
            search_filters=filters,
            method=args.method,
            lookback=args.lookback,
            thorough=args.once,
        )
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    start = _start_from(args.start or ("all" if args.once else "now"))
    table = _table_from(args, source, destination, start) if args.table else None
    watched: dict[str, Any] = {"source": source.safe_url, "filters": filters}
    if destination is not None:
        watched["destination"] = destination.safe_url
    if quiet is not None:
        watched["complete studies"] = True
    return WatchJob(
        source,
        PlaceFile(args.cursor if table is None or destination is not None else f"{table.out}.watch", watched),
        changes,
        transfer,
        start,
        args.interval,
        1 if args.once else args.max_polls,
        duration,
        quiet,
        args.failures,
        args.summary,
        table,
        tuple(args.report or ()),
    )


def _table_from(args: Any, source: Endpoint, destination: Endpoint | None, start: Start) -> TableJob:
    """The table that a watch keeps. What was there before the watch began is in it, unless a day is given."""
    day = start.date() if isinstance(start, datetime) else start
    own = {"out": args.table, "since": "last" if isinstance(day, str) else day.isoformat(), "summary": None}
    # With a destination the cursor is that of the copies.
    own |= {"cursor": args.cursor if destination is None else None, "failures": None}
    try:
        return table_job_from(SimpleNamespace(**{**LIST_OPTIONS, **vars(args), **own}), source)
    except UsageError as error:
        raise UsageError(str(error).replace("--out ", "--table ")) from error


def _start_from(text: str) -> Start:
    if text in ("now", "all"):
        return cast(Start, text)
    try:
        return datetime.fromisoformat(text) if len(text) > len("2026-01-01") else date.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"--start {text!r}: expected now, all, or a day as YYYY-MM-DD") from error


def _seconds(args: Any, option: str) -> float | None:
    """A time such as ``90``, ``90s``, ``15m``, ``8h`` or ``2d`` in seconds."""
    text = getattr(args, option.replace("-", "_"))
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"--{option} {text!r}: expected a time, such as 90s, 15m, 8h or 2d")
    return float(match[1]) * _UNITS[match[2] or "s"]


def run_watch(
    job: WatchJob,
    client: DICOMClient,
    copy: Copy,
    stopping: threading.Event | None = None,
) -> dict[str, Any]:
    """Watches until it is stopped, its time is over, or it has made as many polls as it may.

    Args:
        job: What to do.
        client: The source, which stays open.
        copy: Copies what a round has found.
        stopping: Ends it after the round that is running, once set.

    Returns:
        The summary: ``polls``, ``failed_polls``, ``rounds`` (with something to copy), ``found`` (with each try of
        what was tried again), and of that ``transferred``, ``already_there``, ``duplicate``, ``ignored``, ``failed``
        and ``not_tried``, ``bytes``, ``given_up``, ``unwritten`` (reports that could not be written), ``pending`` (to
        be tried again), ``open`` (studies that are not at rest), ``rows`` (that were written to the table), ``reasons``
        (of failures, most frequent first), and ``last_error`` (of the last poll, or None).

    Raises:
        UsageError: If the place cannot be used: it belongs to something else, or to a watch that is running.
    """
    stopping = stopping or threading.Event()
    places = {job.place.path: f"--cursor {job.place.path}"}
    if job.table is not None:
        places[f"{job.table.out}.watch"] = f"--table {job.table.out}"
    with ExitStack() as stack:
        for path, option in places.items():
            try:
                if "://" not in path:
                    stack.enter_context(PlaceFile(path, {}).locked())
            except BlockingIOError as error:
                raise UsageError(f"{option}: another watch that is running uses this file") from error
        return _Watch(job, client, copy, stopping).run()


def exit_code(totals: Mapping[str, Any]) -> int:
    """0 if nothing was given up or waits to be tried again and the last poll succeeded, else 1."""
    incomplete = totals["given_up"] or totals["pending"] or totals["unwritten"] or totals["last_error"] is not None
    return 1 if incomplete else 0


def progress_line(totals: Mapping[str, Any], job: WatchJob) -> str:
    """How far a watch is, in one line."""
    parts = []
    if job.transfer is not None:
        parts += [f"{totals['transferred']:,} transferred", f"{totals['already_there']:,} already there"]
        parts += [f"{totals['pending']:,} to be tried again", f"{totals['given_up']:,} given up"]
        if totals["open"]:
            parts.append(f"{totals['open']:,} studies not complete yet")
        parts.append(format_bytes(totals["bytes"]))
    if job.table is not None:
        parts.append(f"{totals['rows']:,} rows written to the table")
    return f"poll {totals['polls']:,}: {', '.join(parts)}"


def last_lines(totals: Mapping[str, Any], job: WatchJob) -> list[str]:
    """The summary for people; a single poll has told it already."""
    return [] if job.max_polls == 1 else [f"Ended after {progress_line(totals, job)}"]


class _Watch:
    """One run of a watch."""

    def __init__(self, job: WatchJob, client: DICOMClient, copy: Copy, stopping: threading.Event) -> None:
        self._job = job
        self._client = client
        self._copy = copy
        # What arrived between two runs.
        self._table_is_due = True
        self._stopping = stopping
        # A clock that is set while it runs changes no quiet period.
        self._epoch = time.time() - time.monotonic()
        self._started = time.monotonic()
        self._reasons: Counter[str] = Counter()
        self._rounds: deque[list[Any]] = deque(maxlen=_MAX_ROUNDS)
        self._facts = RoundsFacts()
        try:
            self._place = job.place.read()
        except ValueError as error:
            raise UsageError(f"--cursor {job.place.path}: {error}") from error
        self.totals: dict[str, Any] = dict.fromkeys(
            ("polls", "failed_polls", "rounds", *_SUMS, "given_up", "unwritten", "pending", "open", "rows"), 0
        )
        self.totals |= {"reasons": {}, "last_error": None}

    def run(self) -> dict[str, Any]:
        """Polls, again and again."""
        job, totals, stopping = self._job, self.totals, self._stopping
        ends = self._started + job.duration if job.duration is not None else float("inf")
        if job.max_polls != 1:
            _say(f"watching {job.source.safe_url} every {job.interval:g} s (method: {job.changes.method})")
        told = progress_line(totals, job).partition(": ")[2]
        while not stopping.is_set():
            began = time.monotonic()
            totals["polls"] += 1
            rounds = totals["rounds"], totals["rows"]
            self._poll()
            self._count()
            line = progress_line(totals, job)
            before, told = told, line.partition(": ")[2]
            if told != before or (job.max_polls == 1 and self._error is None):
                _say(line)
            if rounds != (totals["rounds"], totals["rows"]) or totals["polls"] == 1:
                self._write_reports()
            write_summary(job.summary, totals)
            if self._is_hopeless() or (job.max_polls is not None and totals["polls"] >= job.max_polls):
                break
            stopping.wait(max(0.0, min(began + job.interval, ends) - time.monotonic()))
            if time.monotonic() >= ends:
                break
        self._write_reports()
        return totals

    def _write_reports(self) -> None:
        """Writes what was done so far, in the words of a transfer."""
        job, totals = self._job, self.totals
        summary = {**make_summary({"counts": {}, "left_out": []}, time.monotonic() - self._started), **totals}
        facts: dict[str, Any] = (
            {"source": describe_archive(job.source)} if job.transfer is None else describe(job.transfer)
        )
        rounds = {
            "title": "The latest rounds",
            "columns": ["ended", "found", "transferred", "already there", "failed", "bytes"],
            "rows": list(self._rounds),
        }
        facts |= {**self._facts.document(), "kind": "watch", "complete": exit_code(totals) == 0, "tables": [rounds]}
        write_reports(job.report, summary, facts)
        totals["unwritten"] = summary["unwritten"]

    def _count(self) -> None:
        self.totals["pending"], self.totals["open"] = len(self._place.pending), len(self._place.open)
        self.totals["reasons"] = dict(self._reasons.most_common(MAX_REASONS))

    def _is_hopeless(self) -> bool:
        """Whether the source was never there: a wrong address or login is no reason to wait."""
        return (
            self._error is not None and self.totals["failed_polls"] == self.totals["polls"] and is_refused(self._error)
        )

    _error: BaseException | None = None
    _incomplete: Failure | None = None

    def _poll(self) -> None:
        """One poll, with as many rounds as it takes to copy what it reports, and the table."""
        totals = self.totals
        try:
            more = True
            while more and not self._stopping.is_set():
                more = self._job.transfer is not None and self._poll_once()
            if self._job.table is not None and (self._table_is_due or self._job.transfer is None):
                self._write_table(self._job.table)
        except (*RECOVERABLE, RuntimeError) as error:
            # The position has not moved: the next poll finds the same again.
            totals["failed_polls"] += 1
            totals["last_error"] = failure_of(error, "Watch").message
            if _kind_of(error) != _kind_of(self._error):
                _say(totals["last_error"])
            self._error = error
            return
        if self._error is not None:
            _say(f"{self._job.source.safe_url} is followed again; {totals['failed_polls']:,} polls failed so far")
        self._error = None
        totals["last_error"] = self._incomplete.message if self._incomplete is not None else None

    def _poll_once(self) -> bool:
        """Copies what one answer of the change source reports. Returns whether there is more."""
        job, totals = self._job, self.totals
        place, began, found = self._place, self._now(), totals["found"]
        try:
            changes = job.changes.poll(self._client, place.cursor, start=job.start, max_changes=ROUND)
        except RECOVERABLE:
            raise
        except ValueError as error:
            raise UsageError(f"--cursor {job.place.path}: {error}") from error
        self._incomplete = changes.incomplete
        place, given_up = self._round(place, changes, began)
        busy = totals["found"] > found
        totals["rounds"] += busy
        self._give_up(given_up)
        if self._place.cursor is None and job.start == "now":
            _say(f"what is there now is noted in {job.place.path}; what arrives from now on is copied")
        job.place.write(place)
        self._place = place
        self._table_is_due = self._table_is_due or bool(changes.references)
        self._count()
        if changes.more:
            _say(progress_line(totals, job))
        return changes.more

    def _write_table(self, table: TableJob) -> None:
        """Writes the rows of what came or grew.

        Raises:
            RuntimeError: If rows are missing.
        """
        self._table_is_due = True
        if place_file(table).exists:
            # It goes on where it ended, also if it began with a day.
            table = replace(table, since="last")
        summary = run_table(table, client=self._client, max_in_flight=self._job.source.limits.max_in_flight)
        lost = summary["failed"] + summary["not_tried"]
        if lost:
            reason = next(iter(summary["reasons"]), "no reason was given")
            raise RuntimeError(f"the table is as it was, because {lost:,} of its rows failed: {reason}")
        self._table_is_due = False
        self.totals["rows"] += summary["rows"]

    def _round(self, place: Place, changes: Changes, began: float) -> tuple[Place, list[Failure]]:
        """Copies what is new and what is to be tried again.

        Returns:
            The place after it, and what is given up.

        Raises:
            RuntimeError: If a failure does not name an object, so that it cannot be repeated.
        """
        new, studies = changes.references, dict(place.open)
        if self._job.quiet is not None:
            now = self._now()
            # The clock may have been ahead when the place was written.
            studies = {uid: min(moment, began) for uid, moment in studies.items()}
            rested, early = take_rested(studies, changes, quiet=self._job.quiet, began=began, now=now)
            new = tuple(map(Resource, (*rested, *early)))
        given_up, pending = list(changes.failures), dict[Resource, int]()
        wanted = {reference.uri: reference for reference in (*place.pending, *new)}
        if wanted:
            summary, failures = self._copied(wanted)
            away = _is_away(summary, failures)
            for item in failures:
                if item["transform"] == EXCLUSIONS:
                    # A file of a folder that another one stands for: no further round changes that.
                    given_up.append(_failure_from(item, Resource.of(item["reference"])))
                    continue
                # A search that fails tells for what it was made.
                found = Resource.of(item["reference"]) if "reference" in item else wanted.get(item.get("source", ""))
                if found is None:
                    raise RuntimeError(
                        f"a failure of the round names no object, so the round is repeated: {item['message']}"
                    )
                # What was not tried, because an archive could not be reached, is not on its way to be given up.
                attempts = place.pending.get(found, 0) + (0 if away else min(1, item["attempts"]))
                if attempts < ATTEMPTS:
                    pending[found] = attempts
                else:
                    given_up.append(_failure_from(item, found))
        return Place(changes.cursor, pending, studies), given_up

    def _copied(self, wanted: Mapping[str, Resource]) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
        """Copies objects, given by their URIs; the summary, and the failures as JSON objects."""
        with PrivateDirectory(prefix="dicomweb_io-watch-") as scratch:
            path = os.path.join(scratch, "failures.jsonl")
            # What is new was found with the filters.
            lines = tuple(ListLine(uri, reference) for uri, reference in wanted.items())
            once = replace(cast(TransferJob, self._job.transfer), wanted=lines, filters={}, failures=path)
            if self._job.report:
                once = replace(once, report=(os.path.join(scratch, "report.json"),))
            summary = self._copy(once)
            for report in once.report:
                self._facts.add(read_json(report))
            with open(path, encoding="utf-8") as file:
                failures = [json.loads(line) for line in file]
        if not adds_up(summary):
            raise RuntimeError("the numbers of the round do not add up, so it is repeated")
        for name in _SUMS:
            self.totals[name] += summary[name]
        self._reasons.update(summary["reasons"])
        moment = datetime.fromtimestamp(self._now(), timezone.utc).isoformat(timespec="seconds")
        numbers = (summary[name] for name in ("found", "transferred", "already_there", "failed", "bytes"))
        self._rounds.append([moment.replace("+00:00", "Z"), *numbers])
        for reason, number in list(summary["reasons"].items())[:3]:
            _say(f"{number:,} x {reason}")
        return summary, failures

    def _give_up(self, failures: list[Failure]) -> None:
        """Reports, before the position moves, so that a failure may be written twice but is never lost."""
        self.totals["given_up"] += len(failures)
        if not failures or self._job.failures is None:
            return
        try:
            append_lines(self._job.failures, map(failure_line, failures))
        except OSError as error:
            self.totals["unwritten"] += 1
            _say(f"--failures {self._job.failures} cannot be written: {error.strerror}")
            print(*map(failure_line, failures), sep="\n", file=sys.stderr)

    def _now(self) -> float:
        return self._epoch + time.monotonic()


def is_refused(error: BaseException) -> bool:
    """Whether an archive refuses the login or is not there at all, so that asking again is pointless."""
    return isinstance(error, (CredentialsError, FileNotFoundError)) or getattr(error, "status", None) in _REFUSED


def _kind_of(error: BaseException | None) -> tuple[Any, ...]:
    """What is said once while polls fail: the cause without the numbers in its message."""
    return type(error), getattr(error, "status", None)


def _is_away(summary: Mapping[str, Any], failures: list[dict[str, Any]]) -> bool:
    """Whether a round failed as a whole, because an archive is away, full or refuses the login."""
    if summary["transferred"] or summary["already_there"]:
        return False
    return all(item.get("retryable") or item.get("status") in (*_REFUSED, _FULL) for item in failures)


def _failure_from(item: Mapping[str, Any], reference: Resource) -> Failure:
    known = {key: value for key, value in item.items() if key in Failure.__dataclass_fields__ and key != "rows"}
    return Failure(**{**known, "reference": reference})


def _say(text: str) -> None:
    print(f"watch: {plain_text(text)}", file=sys.stderr, flush=True)


@contextmanager
def ended_by_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, with which services are ended: the round that is running is finished."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGTERM, before)
