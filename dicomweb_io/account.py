"""The account of a transfer: what was found and with which result, in numbers that add up, for people and programs.

Found = transferred + already there + duplicate + ignored + failed + not tried. `counts_of` says what each thing adds;
an `Account` sums it up in this process, a job in Beam sums it up from its output collections, and `make_summary` and
`summary_lines` report it in the same words.
"""

from __future__ import annotations

import heapq
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dicomweb_io.elements import Exclusion, Failure, StoredInstance
from dicomweb_io.listing import InstanceGroup
from dicomweb_io.options import report_lines

if TYPE_CHECKING:
    from dicomweb_io.transfer import TransferJob

Entry = InstanceGroup | StoredInstance | Failure | Exclusion
"""What is counted: what was found, and the result for each part of it."""

PARTS = ("transferred", "already_there", "duplicate", "ignored", "failed", "not_tried")
"""The results for what was found."""

ROW = "Transfer"
"""The step that a row which names nothing fails in."""

READ = "ReadFile"
REPORT = "WriteReport"
UNREADABLE_LINE = "ReadLine"
UNMATCHED_LINE = "MatchLine"
SEVERAL_PATIENTS = "CheckPatients"
LINES = {UNMATCHED_LINE: "lines_unmatched", UNREADABLE_LINE: "lines_unreadable", SEVERAL_PATIENTS: "lines_withheld"}
EXCLUSIONS = "ListExclusions"
SEARCHES: dict[str, str] = {
    "study": "SearchForStudies",
    "series": "SearchForSeries",
    "instance": "SearchForInstances",
}
_LINE_WORDS = {
    "lines_unmatched": "match nothing",
    "lines_unreadable": "cannot be read",
    "lines_withheld": "name several patients",
    "lines_extra": "name what only the destination has",
}
_BEFORE = (*SEARCHES.values(), EXCLUSIONS, ROW)
_REASON = "reason: "
_WARNING = "warning: "
_NAMES = re.compile(r"(?<!//)(?<![\d.])\d+(?:\.\d+){2,}")
MAX_LISTED = 1000
"""The files left out that a summary lists."""

_MAX_REASONS = 50


def is_search_failure(failure: Failure) -> bool:
    """Whether a failure concerns what might have been found, rather than something that was.

    It is reported beside the numbers, because it is unknown how many instances it concerns.
    """
    return failure.transform not in (READ, REPORT, *LINES) and (
        failure.transform in _BEFORE or failure.reference is None or failure.reference.level in ("study", "series")
    )


def counts_of(entry: Entry) -> Iterator[tuple[str, int]]:
    """What something that was found, or a result, adds to the counts."""
    if isinstance(entry, InstanceGroup):
        yield "found", len(entry.sop_instance_uids)
    elif isinstance(entry, StoredInstance):
        yield ("already_there" if entry.outcome == "exists" else "transferred"), 1
        yield "bytes", entry.size
        for warning in entry.warnings:
            yield f"{_WARNING}{warning}", 1
    elif isinstance(entry, Exclusion):
        yield "found", 1
        yield entry.kind, 1
        if entry.conflicts:
            yield "conflicting", 1
    else:
        if entry.transform == REPORT:
            yield "unwritten", 1
        elif entry.transform in LINES:
            yield LINES[entry.transform], 1
        elif is_search_failure(entry):
            yield "search_failures", 1
        else:
            yield ("failed" if entry.attempts else "not_tried"), 1
            if entry.transform == READ:
                yield "found", 1
        yield f"{_REASON}{reason_of(entry)}", 1


def reason_of(failure: Failure) -> str:
    """A failure's reason without what belongs to the single case, so that equal reasons can be counted.

    What a server wrote is left out: it may name a patient.
    """
    text = failure.message.partition(":")[0] if failure.transform in LINES else failure.message
    for name in (failure.server_message, failure.source, failure.url):
        if name:
            text = text.replace(name, "…")
    return " ".join(_NAMES.sub("UID", text).split())[:300]


def conflicts_of(exclusion: Exclusion) -> Iterator[Failure]:
    """How a file is reported whose content is not at the destination, because another file of its instance is.

    It is counted as a duplicate, so this is no further result.
    """
    if exclusion.conflicts:
        what = exclusion.reference.uri if exclusion.reference is not None else "one instance"
        message = f"{exclusion.reason}: {exclusion.path} and {exclusion.chosen} are {what}, and the second was chosen"
        yield Failure(EXCLUSIONS, message, reference=exclusion.reference, source=exclusion.path)


def failure_line(failure: Failure) -> str:
    """A failure as a line of a failures file."""
    return json.dumps(failure.to_dict())


class Account:
    """The account of a transfer, as it is written by one thread.

    Attributes:
        counts: Numbers by name.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._left_out: list[Exclusion] = []

    def add(self, entry: Entry) -> None:
        """Counts an entry."""
        for name, number in counts_of(entry):
            self.counts[name] += number
        if isinstance(entry, Exclusion):
            self._left_out.append(entry)
            if len(self._left_out) > 2 * MAX_LISTED:
                self._left_out = first_by_path(self._left_out)

    def merge(self, other: Account) -> None:
        """Adds what another account has counted."""
        self.counts.update(other.counts)
        self._left_out = first_by_path([*self._left_out, *other._left_out])

    def document(self) -> dict[str, Any]:
        """What `make_summary` takes: counts, and the first files that were left out, as a JSON object."""
        listed = [
            {
                "kind": item.kind,
                "path": item.path,
                "reason": item.reason,
                "chosen": item.chosen,
                "conflicts": item.conflicts,
            }
            for item in first_by_path(self._left_out)
        ]
        return {"counts": dict(self.counts), "left_out": listed}


def first_by_path(exclusions: Iterable[Exclusion]) -> list[Exclusion]:
    """The first thousand files, by path."""
    return heapq.nsmallest(MAX_LISTED, exclusions, key=lambda item: item.path)


def make_summary(document: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Makes the summary of a transfer.

    Args:
        document: See `Account.document`.
        seconds: How long it took.

    Returns:
        ``found``, ``transferred``, ``already_there``, ``duplicate``, ``ignored``, ``failed``, ``not_tried`` (an archive
        could not be asked any more), ``search_failures``, ``conflicting`` (duplicates whose content is not in the file
        that was chosen), ``lines`` of a list, and of them ``lines_unmatched``, ``lines_unreadable`` and
        ``lines_withheld`` (they name several patients), ``lines_extra`` (of a comparison: what only the destination
        has, so that nothing is to be copied), ``unwritten`` (reports that could not be written), ``bytes``,
        ``seconds``, ``bytes_per_second``, ``reasons`` (of failures, most frequent first), ``warnings`` (what is odd
        about instances that were transferred, with their numbers), ``duplicates`` and ``ignored_files`` (the first
        thousand).
    """
    counts: Mapping[str, int] = document["counts"]
    names = (
        "found",
        *PARTS,
        "search_failures",
        "conflicting",
        "lines",
        "lines_extra",
        *LINES.values(),
        "unwritten",
        "bytes",
    )
    summary: dict[str, Any] = {name: counts.get(name, 0) for name in names}
    summary["seconds"] = round(seconds, 3)
    summary["bytes_per_second"] = round(summary["bytes"] / seconds) if seconds > 0 else 0
    for name, prefix in (("reasons", _REASON), ("warnings", _WARNING)):
        texts = {text[len(prefix) :]: number for text, number in counts.items() if text.startswith(prefix)}
        summary[name] = dict(sorted(texts.items(), key=lambda item: (-item[1], item[0]))[:_MAX_REASONS])
    summary["duplicates"] = [item for item in document["left_out"] if item["kind"] == "duplicate"]
    summary["ignored_files"] = [item for item in document["left_out"] if item["kind"] == "ignored"]
    return summary


def write_summary(path: str | None, summary: dict[str, Any]) -> None:
    """Writes a summary as JSON; if that fails, the summary says so and goes to standard error."""
    if path is not None and report_lines(path, "--summary", [json.dumps(summary, indent=2)]) is not None:
        summary["unwritten"] += 1


def adds_up(summary: Mapping[str, Any]) -> bool:
    """Whether everything that was found has exactly one result."""
    return bool(summary["found"] == sum(summary[name] for name in PARTS))


def exit_code(summary: Mapping[str, Any]) -> int:
    """0 if everything that was asked for was done and is accounted for, else 1.

    Conflicting files are not done: an image that was asked for is not at the destination.
    """
    return 0 if adds_up(summary) and _is_whole(summary) and not summary["unwritten"] else 1


def _is_whole(summary: Mapping[str, Any]) -> bool:
    return not any(summary[name] for name in ("failed", "not_tried", "search_failures", "conflicting", *LINES.values()))


def summary_lines(summary: Mapping[str, Any], job: TransferJob) -> Iterator[str]:
    """The summary for people."""
    what = "files" if job.counts_files else "instances"
    yield f"From {job.source.safe_url} to {job.destination.safe_url}"
    yield f"  found          {summary['found']:>10,} {what}"
    yield f"  transferred    {summary['transferred']:>10,}"
    for warning, number in summary["warnings"].items():
        yield f"    {number:,} x warning: {warning}"
    yield f"  already there  {summary['already_there']:>10,}"
    conflicting = (
        f"  ({summary['conflicting']:,} differ from the file that was chosen)" if summary["conflicting"] else ""
    )
    yield f"  duplicate      {summary['duplicate']:>10,}{conflicting}"
    conflicts = [item for item in summary["duplicates"] if item["conflicts"]]
    for item in conflicts[:10]:
        yield f"    {item['path']} is not at the destination: {item['chosen']} is the same instance ({item['reason']})"
    if summary["conflicting"] > len(conflicts[:10]):
        yield f"    and {summary['conflicting'] - len(conflicts[:10]):,} more, which --failures lists"
    yield f"  ignored        {summary['ignored']:>10,}"
    yield f"  failed         {summary['failed']:>10,}"
    yield f"  not tried      {summary['not_tried']:>10,}"
    for reason, number in list(summary["reasons"].items())[:10]:
        yield f"    {number:,} x {reason}"
    rate = f"{format_bytes(summary['bytes_per_second'])}/s"
    yield f"  {format_bytes(summary['bytes'])} in {summary['seconds']:.1f} s, {rate}"
    if summary["search_failures"]:
        failed = summary["search_failures"]
        yield f"  {failed:,} searches failed or were incomplete, so some instances may not have been found."
    yield from line_words(summary)
    if summary["unwritten"]:
        yield f"  {summary['unwritten']} reports could not be written; standard error has what was to be in them."
    if not adds_up(summary):
        yield "  THE NUMBERS DO NOT ADD UP. Please report this; run the job again to be sure that nothing is missing."
        return
    whole = _is_whole(summary)
    if not summary["found"]:
        yield "  Nothing was found."
    elif not summary["transferred"] and summary["already_there"]:
        rest = "everything" if whole else "all but what failed or was not tried"
        yield f"  Nothing was transferred: {rest} is already at the destination."
    elif whole:
        yield "  Everything is at the destination."


def line_words(summary: Mapping[str, Any]) -> Iterator[str]:
    """What became of the lines of a list, for people; nothing without a list."""
    if summary["lines"]:
        open_lines = [f"{summary[name]:,} {words}" for name, words in _LINE_WORDS.items() if summary.get(name)]
        yield (
            f"  Of {summary['lines']:,} lines of the list, {', '.join(open_lines)}."
            if open_lines
            else (f"  All {summary['lines']:,} lines of the list name something.")
        )


def format_bytes(number: float) -> str:
    """A number of bytes for people, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def progress_line(counts: Mapping[str, int], seconds: float) -> str:
    """What is known of a transfer that runs, in one line."""
    parts = [f"{counts.get(name, 0):,} {name.replace('_', ' ')}" for name in ("found", "transferred", "already_there")]
    parts += [f"{counts[name]:,} {name.replace('_', ' ')}" for name in ("failed", "not_tried") if counts.get(name)]
    size = counts.get("bytes", 0)
    return ", ".join([*parts, format_bytes(size), f"{format_bytes(size / max(seconds, 1e-3))}/s"])


@contextmanager
def shown_progress(counts: Callable[[], Mapping[str, int]], show: bool | None = None) -> Iterator[None]:
    """Shows how far a transfer is, on standard error, while the block runs.

    Args:
        counts: Gives the numbers so far, by the names of an `Account`; asked from a thread.
        show: Whether to show it; by default if a terminal is watching.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    started = time.monotonic()

    class Display(Progress):
        def get_renderables(self) -> Any:
            now = counts()
            done = sum(now.get(part, 0) for part in PARTS)
            line = progress_line(now, time.monotonic() - started)
            for task in self.task_ids:
                self.update(task, total=now.get("found") or None, completed=done, description=line)
            return super().get_renderables()

    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Display(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as display:
        display.add_task("", total=None)
        yield
