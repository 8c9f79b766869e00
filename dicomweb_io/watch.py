"""Watches: what is new in an archive is copied, in rounds, with a place in a file between them.

A round polls a change source (`dicomweb_io.changes`), copies what is new and what is to be tried again as any transfer
does, and writes the place last. A round that is cut short is repeated; what it copied is found at the destination. A
table that a watch keeps has a place of its own, which is written when the table is.

`run_watch` is the engine of ``dicomweb-io watch`` and of ``pipelines.watch``: they differ in how a round is copied, and
how the table is refreshed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime
from types import SimpleNamespace
from typing import Any, cast

from dicomweb_io.account import EXCLUSIONS, adds_up, failure_line, format_bytes, write_summary
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
from dicomweb_io.errors import CredentialsError
from dicomweb_io.failures import RECOVERABLE, failure_of
from dicomweb_io.listing import ListLine
from dicomweb_io.options import LIST_OPTIONS, UsageError, append_lines, check_writable, filters_from
from dicomweb_io.spool import PrivateDirectory
from dicomweb_io.transfer import TransferJob, check_places, job_from as transfer_from

ATTEMPTS = 5
"""Rounds in which an instance is tried before it is given up."""

ROUND = 10_000
"""The maximum number of new objects of a round."""

Copy = Callable[[TransferJob], Mapping[str, Any]]
"""Runs a transfer to its end, and returns its summary."""

Refresh = Callable[[], Mapping[str, Any]]
"""Brings a table up to date, and returns its summary; see `dicomweb_io.tables.run_table`."""

_SUMS = ("found", "transferred", "already_there", "failed", "not_tried", "bytes")
_REFUSED = (401, 403)
_FULL = 507
_MAX_REASONS = 50
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
    table: str | None = None


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
        transfer = replace(transfer, failures=None, summary=None)
        check_places(transfer)
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
    watched: dict[str, Any] = {"source": source.safe_url, "filters": filters}
    if destination is not None:
        watched["destination"] = destination.safe_url
    if quiet is not None:
        watched["complete studies"] = True
    return WatchJob(
        source,
        PlaceFile(args.cursor if destination is not None else f"{args.table}.watch", watched),
        changes,
        transfer,
        _start_from(args.start or ("all" if args.once else "now")),
        args.interval,
        1 if args.once else args.max_polls,
        duration,
        quiet,
        args.failures,
        args.summary,
        args.table,
    )


def table_options(args: Any, start: Start) -> Any:
    """The arguments of `dicomweb_io.tables.table_job_from` for the table of a watch; None without one.

    What was there before the watch began is in the table, unless a day is given.
    """
    if not args.table:
        return None
    day = start.date() if isinstance(start, datetime) else start
    since = "last" if isinstance(day, str) else day.isoformat()
    own = {"out": args.table, "since": since, "limit": None, "failures": None, "summary": None}
    # With a destination the cursor is that of the copies.
    own["cursor"] = None if getattr(args, "destination", None) else args.cursor
    return SimpleNamespace(**{**LIST_OPTIONS, **vars(args), **own})


def continued(table: Any) -> Any:
    """A table that is refreshed from where it ended; at first it begins with the day that was given, if one was."""
    return replace(table, since="last") if os.path.exists(table.cursor_file) else table


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
    refresh: Refresh | None = None,
    stopping: threading.Event | None = None,
) -> dict[str, Any]:
    """Watches until it is stopped, its time is over, or it has made as many polls as it may.

    Args:
        job: What to do.
        client: The source, which stays open.
        copy: Copies what a round has found.
        refresh: Brings the table up to date, if there is one.
        stopping: Ends it after the round that is running, once set.

    Returns:
        The summary: ``polls``, ``failed_polls``, ``rounds`` (with something to copy), ``found`` (with each try of
        what was tried again), ``transferred``, ``already_there``, ``failed``, ``not_tried``, ``bytes``, ``given_up``,
        ``unwritten`` (reports that could not be written), ``pending`` (to be tried again), ``open`` (studies that are
        not at rest), ``rows`` (that were written to the table), ``reasons`` (of failures, most frequent first), and
        ``last_error`` (of the last poll, or None).

    Raises:
        UsageError: If the place cannot be used: it belongs to something else, or to a watch that is running.
    """
    stopping = stopping or threading.Event()
    places = {job.place.path: f"--cursor {job.place.path}"}
    if job.table is not None:
        places[f"{job.table}.watch"] = f"--table {job.table}"
    with ExitStack() as stack:
        for path, option in places.items():
            try:
                if "://" not in path:
                    stack.enter_context(PlaceFile(path, {}).locked())
            except BlockingIOError as error:
                raise UsageError(f"{option}: another watch that is running uses this file") from error
        return _Watch(job, client, copy, refresh, stopping).run()


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


class _Watch:
    """One run of a watch."""

    def __init__(
        self, job: WatchJob, client: DICOMClient, copy: Copy, refresh: Refresh | None, stopping: threading.Event
    ) -> None:
        self._job = job
        self._client = client
        self._copy = copy
        self._refresh = refresh
        # What arrived between two runs.
        self._refresh_is_due = refresh is not None
        self._stopping = stopping
        # A clock that is set while it runs changes no quiet period.
        self._epoch = time.time() - time.monotonic()
        self._reasons: Counter[str] = Counter()
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
        started = time.monotonic()
        ends = started + job.duration if job.duration is not None else float("inf")
        if job.max_polls != 1:
            _say(f"watching {job.source.safe_url} every {job.interval:g} s (method: {job.changes.method})")
        while not stopping.is_set():
            began = time.monotonic()
            totals["polls"] += 1
            self._poll()
            self._count()
            write_summary(job.summary, totals)
            if self._is_hopeless() or (job.max_polls is not None and totals["polls"] >= job.max_polls):
                break
            stopping.wait(max(0.0, min(began + job.interval, ends) - time.monotonic()))
            if time.monotonic() >= ends:
                break
        return totals

    def _count(self) -> None:
        self.totals["pending"], self.totals["open"] = len(self._place.pending), len(self._place.open)
        self.totals["reasons"] = dict(self._reasons.most_common(_MAX_REASONS))

    def _is_hopeless(self) -> bool:
        """Whether the source was never there: a wrong address or login is no reason to wait."""
        return (
            self._error is not None and self.totals["failed_polls"] == self.totals["polls"] and is_refused(self._error)
        )

    _error: BaseException | None = None

    def _poll(self) -> None:
        """One poll, with as many rounds as it takes to copy what it reports, and the table."""
        totals = self.totals
        try:
            more = True
            while more and not self._stopping.is_set():
                more = self._job.transfer is not None and self._poll_once()
            if self._refresh is not None and (self._refresh_is_due or self._job.transfer is None):
                self._write_table(self._refresh)
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
        totals["last_error"] = self._error = None

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
        place, given_up = self._round(place, changes, began)
        busy = totals["found"] > found
        totals["rounds"] += busy
        self._give_up(given_up)
        if self._place.cursor is None and job.start == "now":
            _say(f"what is there now is noted in {job.place.path}; what arrives from now on is copied")
        job.place.write(place)
        self._place = place
        self._refresh_is_due = self._refresh_is_due or bool(changes.references)
        self._count()
        if busy or given_up or changes.references:
            _say(progress_line(totals, job))
        return changes.more

    def _write_table(self, refresh: Refresh) -> None:
        """Writes the rows of what came or grew.

        Raises:
            RuntimeError: If rows are missing.
        """
        self._refresh_is_due = True
        summary = refresh()
        lost = summary["failed"] + summary["not_tried"]
        if lost:
            reason = next(iter(summary["reasons"]), "no reason was given")
            raise RuntimeError(f"the table is as it was, because {lost:,} of its rows failed: {reason}")
        self._refresh_is_due = False
        self.totals["rows"] += summary["rows"]
        if summary["rows"]:
            _say(progress_line(self.totals, self._job))

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
            summary = self._copy(
                replace(cast(TransferJob, self._job.transfer), wanted=lines, filters={}, failures=path)
            )
            with open(path, encoding="utf-8") as file:
                failures = [json.loads(line) for line in file]
        if not adds_up(summary):
            raise RuntimeError("the numbers of the round do not add up, so it is repeated")
        for name in _SUMS:
            self.totals[name] += summary[name]
        self._reasons.update(summary["reasons"])
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
    print(f"watch: {text}", file=sys.stderr, flush=True)


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
