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
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dicomweb_io.client import DICOMClient
from dicomweb_io.elements import Exclusion, Failure, Resource, StoredInstance
from dicomweb_io.errors import plain_text, safe_url
from dicomweb_io.listing import DIFFERENT_LINE, InstanceGroup
from dicomweb_io.options import report_lines
from dicomweb_io.queries import make_query

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
LINES = {
    UNMATCHED_LINE: "lines_unmatched",
    UNREADABLE_LINE: "lines_unreadable",
    SEVERAL_PATIENTS: "lines_withheld",
    DIFFERENT_LINE: "lines_different",
}
EXCLUSIONS = "ListExclusions"
SEARCHES: dict[str, str] = {
    "study": "SearchForStudies",
    "series": "SearchForSeries",
    "instance": "SearchForInstances",
}
LINE_WORDS = {
    "lines_unmatched": "match nothing",
    "lines_unreadable": "cannot be read",
    "lines_withheld": "name several patients",
    "lines_different": "name what is there with other contents",
}
"""What is said of the lines of a list that name nothing."""

_BEFORE = (*SEARCHES.values(), EXCLUSIONS, ROW)
REASON = "reason: "
"""What the names of counts begin with that count the failures of one reason."""

_WARNING = "warning: "
_NAMES = re.compile(r"(?<!//)(?<![\d.])\d+(?:\.\d+){2,}")
_LISTS = ("duplicates", "ignored_files")
MAX_LISTED = 1000
"""The files left out that a summary lists."""

MAX_SLICES = 240
"""The slices of time that a report has at most."""

MAX_SLOW_SERIES = 20
MAX_EXAMPLES = 5
"""What a report names of the slowest series, and of the failures of one cause."""

SIZES = tuple(factor * 10**power for power in range(3, 11) for factor in (1, 2, 5))
"""Where the sizes of instances are divided in a report, in bytes."""

MAX_REASONS = 50
"""The reasons that a summary lists."""

_WIDE = 110
_MAX_KINDS = 500
_SHOWN = 3
_MAX_CAUSES = 1000


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
        yield {"exists": "already_there", "planned": "to_transfer"}.get(entry.outcome, "transferred"), 1
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
        yield f"{REASON}{reason_of(entry)}", 1


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


def place_of(failure: Failure) -> str | None:
    """Where a failure is, in the user's own words: a line of a list, a path, or what it concerns."""
    what = failure.source or (failure.reference.uri if failure.reference is not None else None)
    return f"{failure.line}: {what}" if failure.line and what and failure.line != what else failure.line or what


def told_of(failure: Failure) -> str:
    """A failure in one line, with its place."""
    where = place_of(failure)
    return plain_text(f"{where}: {failure.message}" if where else failure.message)


class Causes:
    """Tells failures as they come: of equal causes the first ones with their places, and in the end how many more.

    Args:
        prog: What the lines begin with.
        told: Shows a line; by default on standard error.
    """

    def __init__(self, prog: str, told: Callable[[str], None] | None = None) -> None:
        self._prog = prog
        self._told = told or (lambda line: print(line, file=sys.stderr))
        self._counts: Counter[str] = Counter()

    def add(self, failure: Failure) -> None:
        """Tells a failure, if its cause is not known well enough."""
        reason = reason_of(failure)
        if reason not in self._counts and len(self._counts) >= _MAX_CAUSES:
            reason = "other causes"
        self._counts[reason] += 1
        if self._counts[reason] <= _SHOWN:
            self._told(f"{self._prog}: {told_of(failure)}")

    def add_known(self, document: Mapping[str, Any]) -> None:
        """Tells the failures that an `Account` has counted; see `Account.document`."""
        for text, number in document["counts"].items():
            if text.startswith(REASON):
                self._counts[text[len(REASON) :]] += number
        for lines in document["examples"].values():
            for line in lines:
                self._told(f"{self._prog}: {line}")

    def finish(self, failures: str | None) -> None:
        """Tells how many there were of the causes that were shown in part.

        Args:
            failures: The file that lists all.
        """
        where = f"{failures} lists all" if failures else "--failures PATH lists all"
        for reason, number in self._counts.most_common():
            if number > _SHOWN:
                self._told(f"{self._prog}: {number:,} x {plain_text(reason)} (the first {_SHOWN} are above; {where})")


class Timeline:
    """What happened when, in slices of equal width, which doubles when there are more than `MAX_SLICES` of them.

    The slices begin at multiples of the width since 1970, so that timelines of several processes can be merged, in any
    order.

    Attributes:
        width: Seconds of a slice.
        slices: By the number of the slice, since 1970: numbers in the order of `COLUMNS`.
    """

    COLUMNS = ("transferred", "already_there", "failed", "bytes")

    def __init__(self) -> None:
        self.width = 0.25
        self.slices: dict[int, list[int]] = {}

    def add(self, at: float, column: str, size: int = 0) -> None:
        """Counts one result at a time, in seconds since 1970."""
        if int(at // self.width) not in self.slices:
            self.slices[int(at // self.width)] = [0] * len(self.COLUMNS)
            self._fit()
        row = self.slices[int(at // self.width)]
        row[self.COLUMNS.index(column)] += 1
        row[-1] += size

    def merge(self, other: Timeline) -> None:
        """Adds what another timeline has counted."""
        width = max(self.width, other.width)
        self._widen(width)
        for number, row in other.slices.items():
            mine = self.slices.setdefault(int(number * other.width // width), [0] * len(row))
            mine[:] = map(sum, zip(mine, row, strict=True))
        self._fit()

    def _fit(self) -> None:
        while len(self.slices) > 1 and max(self.slices) - min(self.slices) >= MAX_SLICES:
            self._widen(2 * self.width)

    def _widen(self, width: float) -> None:
        if width > self.width:
            narrow, self.slices, before = self.slices, {}, self.width
            for number, row in narrow.items():
                wide = self.slices.setdefault(int(number * before // width), [0] * len(row))
                wide[:] = map(sum, zip(wide, row, strict=True))
            self.width = width

    def document(self) -> dict[str, Any]:
        """As a JSON object: ``seconds`` of a slice, and the ``slices`` from the first to the last, also empty ones."""
        numbers = range(min(self.slices), max(self.slices) + 1) if self.slices else ()
        empty = [0] * len(self.COLUMNS)
        return {
            "seconds": self.width,
            "slices": [
                {"at": number * self.width, **dict(zip(self.COLUMNS, self.slices.get(number, empty), strict=True))}
                for number in numbers
            ],
        }


class Facts:
    """What a report tells beyond numbers: when, how large, of which kind, what was slow, and examples of failures.

    It takes bounded memory, and holds UIDs, and paths of the user, but no words of servers.

    Attributes:
        timeline: Results and bytes over time.
    """

    def __init__(self) -> None:
        self.timeline = Timeline()
        self._sizes: Counter[int] = Counter()
        self._kinds: dict[str, dict[str, list[int]]] = {"sop_classes": {}, "transfer_syntaxes": {}}
        # By study and series: instances, bytes and seconds. The last one is the one that results came for last.
        self._series: dict[tuple[str, str], list[float]] = {}
        self._examples: dict[str, list[dict[str, Any]]] = {}

    def add(self, entry: Entry) -> None:
        """Notes an entry."""
        if isinstance(entry, StoredInstance):
            at = time.time() if entry.at is None else entry.at
            if entry.outcome == "exists":
                self.timeline.add(at, "already_there")
            elif entry.outcome != "planned":
                self.timeline.add(at, "transferred", entry.size)
                self._note(entry)
        elif isinstance(entry, Failure):
            if not is_search_failure(entry) and entry.transform not in (REPORT, *LINES):
                self.timeline.add(time.time(), "failed")
            examples = self._examples_of(reason_of(entry))
            if examples is not None and len(examples) < MAX_EXAMPLES:
                examples.append(_example_of(entry))

    def _examples_of(self, reason: str) -> list[dict[str, Any]] | None:
        if reason not in self._examples and len(self._examples) >= 2 * MAX_REASONS:
            return None
        return self._examples.setdefault(reason, [])

    def _note(self, stored: StoredInstance) -> None:
        self._sizes[bisect_right(SIZES, stored.size)] += 1
        for name, uid in (("sop_classes", stored.sop_class_uid), ("transfer_syntaxes", stored.transfer_syntax_uid)):
            kinds = self._kinds[name]
            key = uid or ""
            if key not in kinds and len(kinds) >= _MAX_KINDS:
                key = ""
            kind = kinds.setdefault(key, [0, 0])
            kind[0] += 1
            kind[1] += stored.size
        if stored.seconds is not None:
            series = str(stored.reference.study_instance_uid), str(stored.reference.series_instance_uid)
            known = self._series.pop(series, (0, 0, 0.0))
            self._series[series] = [known[0] + 1, known[1] + stored.size, max(known[2], stored.seconds)]
            if len(self._series) > 4 * MAX_SLOW_SERIES:
                self._drop_quick_series()

    def merge(self, other: Facts) -> None:
        """Adds the facts of another account."""
        self.timeline.merge(other.timeline)
        self._sizes.update(other._sizes)
        for name, kinds in other._kinds.items():
            for key, numbers in kinds.items():
                kind = self._kinds[name].setdefault(key, [0, 0])
                kind[:] = map(sum, zip(kind, numbers, strict=True))
        for series, (instances, size, seconds) in other._series.items():
            known = self._series.get(series, (0, 0, 0.0))
            self._series[series] = [known[0] + instances, known[1] + size, max(known[2], seconds)]
        if len(self._series) > 4 * MAX_SLOW_SERIES:
            self._drop_quick_series()
        for reason, examples in other._examples.items():
            mine = self._examples_of(reason)
            if mine is not None:
                mine[:] = sorted([*mine, *examples], key=json.dumps)[:MAX_EXAMPLES]

    def _drop_quick_series(self) -> None:
        # What came last is kept too: it is still going on.
        last = list(self._series)[-MAX_SLOW_SERIES:]
        kept = {*last, *heapq.nlargest(MAX_SLOW_SERIES, self._series, key=lambda name: self._series[name][2])}
        self._series = {name: numbers for name, numbers in self._series.items() if name in kept}

    def document(self) -> dict[str, Any]:
        """As a JSON object; `dicomweb_io.report` describes it."""
        slow = heapq.nlargest(MAX_SLOW_SERIES, self._series.items(), key=lambda item: (item[1][2], item[0]))
        edges = (0, *SIZES, None)
        buckets = range(min(self._sizes), max(self._sizes) + 1) if self._sizes else ()
        return {
            "timeline": self.timeline.document(),
            "sizes": [
                {"from": edges[number], "below": edges[number + 1], "instances": self._sizes[number]}
                for number in buckets
            ],
            **{
                name: [
                    {"uid": key or None, "instances": instances, "bytes": size}
                    for key, (instances, size) in sorted(kinds.items(), key=lambda item: (-item[1][0], item[0]))
                ]
                for name, kinds in self._kinds.items()
            },
            "slow_series": [
                {
                    "reference": {"study_instance_uid": study, "series_instance_uid": series},
                    "instances": int(instances),
                    "bytes": int(size),
                    "seconds": seconds,
                }
                for (study, series), (instances, size, seconds) in slow
            ],
            "examples": self._examples,
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Facts:
        """The facts of a `document`, to be merged with others."""
        facts = cls()
        facts.timeline.width = document["timeline"]["seconds"]
        for item in document["timeline"]["slices"]:
            row = [item[column] for column in Timeline.COLUMNS]
            if any(row):
                facts.timeline.slices[int(item["at"] // facts.timeline.width)] = row
        facts._sizes.update({bisect_right(SIZES, item["from"]): item["instances"] for item in document["sizes"]})
        for name, kinds in facts._kinds.items():
            kinds.update({item["uid"] or "": [item["instances"], item["bytes"]] for item in document[name]})
        for item in document["slow_series"]:
            study, series = item["reference"]["study_instance_uid"], item["reference"]["series_instance_uid"]
            facts._series[study, series] = [item["instances"], item["bytes"], item["seconds"]]
        facts._examples.update(document["examples"])
        return facts


def _example_of(failure: Failure) -> dict[str, Any]:
    """What an example of a failure tells: what it concerns and how it was answered, without a server's words."""
    told = ("transform", "reference", "rows", "source", "url", "status", "reason_code", "attempts", "retryable")
    return {name: value for name, value in failure.to_dict().items() if name in told}


class Account:
    """The account of a transfer, as it is written by one thread.

    Args:
        with_facts: Whether a report is wanted.

    Attributes:
        counts: Numbers by name.
        examples: Some failures of each cause, as lines for people.
        facts: What reports tell beyond them; None if nobody wants that.
    """

    def __init__(self, with_facts: bool = False) -> None:
        self.counts: Counter[str] = Counter()
        self.facts = Facts() if with_facts else None
        self.examples: dict[str, list[str]] = {}
        self._left_out: list[Exclusion] = []
        self._planned: set[Resource] = set()

    def add(self, entry: Entry) -> None:
        """Counts an entry."""
        for name, number in counts_of(entry):
            self.counts[name] += number
        if self.facts is not None:
            self.facts.add(entry)
        if isinstance(entry, Failure):
            self._show(reason_of(entry), [told_of(entry)])
        if isinstance(entry, StoredInstance) and entry.outcome == "planned":
            self._planned.add(entry.reference.series)
        if isinstance(entry, Exclusion):
            self._left_out.append(entry)
            if len(self._left_out) > 2 * MAX_LISTED:
                self._left_out = first_by_path(self._left_out)

    def _show(self, reason: str, lines: list[str]) -> None:
        known = self.examples.get(reason, [])
        if known or len(self.examples) < _MAX_CAUSES:
            self.examples[reason] = sorted([*known, *lines])[:_SHOWN]

    def merge(self, other: Account) -> None:
        """Adds what another account has counted."""
        for reason, lines in other.examples.items():
            self._show(reason, lines)
        self.counts.update(other.counts)
        if self.facts is not None and other.facts is not None:
            self.facts.merge(other.facts)
        self._left_out = first_by_path([*self._left_out, *other._left_out])
        self._planned |= other._planned

    def document(self) -> dict[str, Any]:
        """What `make_summary` and `Causes.add_known` take: counts, examples of failures, and files that were left out.

        It is a JSON object; it has the ``facts`` too, if a report is wanted.
        """
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
        planned = {"series": len(self._planned), "studies": len({one.study_instance_uid for one in self._planned})}
        document = {"counts": {**self.counts, **planned}, "examples": self.examples, "left_out": listed}
        return document if self.facts is None else {**document, "facts": self.facts.document()}


def first_by_path(exclusions: Iterable[Exclusion]) -> list[Exclusion]:
    """The first thousand files, by path."""
    return heapq.nsmallest(MAX_LISTED, exclusions, key=lambda item: item.path)


def make_summary(
    document: Mapping[str, Any], seconds: float, *, dry_run: bool = False, interrupted: bool = False
) -> dict[str, Any]:
    """Makes the summary of a transfer.

    Args:
        document: See `Account.document`.
        seconds: How long it took.
        dry_run: Whether nothing was to be written.
        interrupted: Whether it was ended before its time: what was found and has no result is then not tried.

    Returns:
        ``found``, ``transferred``, ``already_there``, ``duplicate``, ``ignored``, ``failed``, ``not_tried`` (an archive
        could not be asked any more), ``search_failures``, ``conflicting`` (duplicates whose content is not in the file
        that was chosen), ``lines`` of a list, and of them ``lines_repeated``, ``lines_unmatched``,
        ``lines_unreadable``, ``lines_withheld`` (they name several patients) and ``lines_different`` (the destination
        has what they name with other contents, and keeps it), ``lines_extra`` (of a comparison: what only the
        destination has, so that nothing is to be copied), ``unwritten`` (reports that could not be written), ``bytes``,
        ``seconds``, ``bytes_per_second``, ``reasons`` (of failures, most frequent first), ``warnings`` (what is odd
        about instances that were transferred, with their numbers), ``duplicates`` and ``ignored_files`` (the first
        thousand). That of a dry run has also ``to_transfer`` (instances), ``series`` and ``studies`` (which they belong
        to); its ``bytes`` are those that would be transferred, as far as they are known. After an interrupt
        ``interrupted`` is true.
    """
    counts: Mapping[str, int] = document["counts"]
    names = (
        "found",
        *PARTS,
        "search_failures",
        "conflicting",
        "lines",
        "lines_repeated",
        "lines_extra",
        *LINES.values(),
        "unwritten",
        "bytes",
    )
    names += ("to_transfer", "series", "studies") if dry_run else ()
    summary: dict[str, Any] = {name: counts.get(name, 0) for name in names}
    summary["seconds"] = round(seconds, 3)
    summary["bytes_per_second"] = round(summary["bytes"] / seconds) if seconds > 0 else 0
    summary["reasons"] = most_frequent(counts, REASON, MAX_REASONS)
    summary["warnings"] = most_frequent(counts, _WARNING, MAX_REASONS)
    if dry_run:
        summary["dry_run"] = True
    if interrupted:
        summary["interrupted"] = True
        summary["not_tried"] += max(0, summary["found"] - _results(summary))
        summary["found"] = _results(summary)
    summary["duplicates"] = [item for item in document["left_out"] if item["kind"] == "duplicate"]
    summary["ignored_files"] = [item for item in document["left_out"] if item["kind"] == "ignored"]
    return summary


def most_frequent(counts: Mapping[str, int], prefix: str, limit: int | None = None) -> dict[str, int]:
    """The counts whose names begin with a prefix, by the rest of their names: the highest first, at most so many."""
    found = {name[len(prefix) :]: number for name, number in counts.items() if name.startswith(prefix) and number}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))[:limit])


def write_summary(path: str | None, summary: dict[str, Any]) -> None:
    """Writes a summary as JSON; if that fails, the summary says so and goes to standard error."""
    if path is not None and report_lines(path, "--summary", [json.dumps(summary, indent=2)]) is not None:
        summary["unwritten"] += 1


def adds_up(summary: Mapping[str, Any]) -> bool:
    """Whether everything that was found has exactly one result."""
    return bool(summary["found"] == _results(summary))


def _results(summary: Mapping[str, Any]) -> int:
    return sum(summary.get(name, 0) for name in (*PARTS, "to_transfer"))


def exit_code(summary: Mapping[str, Any]) -> int:
    """0 if everything that was asked for was done and is accounted for, else 1.

    Conflicting files are not done: an image that was asked for is not at the destination.
    """
    return 0 if adds_up(summary) and _is_whole(summary) and not summary["unwritten"] else 1


def _is_whole(summary: Mapping[str, Any]) -> bool:
    return not summary.get("interrupted") and not any(
        summary[name] for name in ("failed", "not_tried", "search_failures", "conflicting", *LINES.values())
    )


def summary_lines(summary: Mapping[str, Any], job: TransferJob) -> Iterator[str]:
    """The summary for people."""
    what = "files" if job.counts_files else "instances"
    yield f"From {job.source.safe_url} to {job.destination.safe_url}{' (dry run: nothing was written)' * job.dry_run}"
    yield f"  found          {summary['found']:>10,} {what}"
    if job.dry_run:
        size = f", {format_bytes(summary['bytes'])}" if summary["bytes"] else ""
        of = f"{_counted(summary['series'], 'series', 'series')} of {_counted(summary['studies'], 'study', 'studies')}"
        yield f"  to transfer    {summary['to_transfer']:>10,} instances in {of}{size}"
    else:
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
    if not job.dry_run:
        rate = f"{format_bytes(summary['bytes_per_second'])}/s"
        yield f"  {format_bytes(summary['bytes'])} in {summary['seconds']:.1f} s, {rate}"
    if summary["search_failures"]:
        failed = summary["search_failures"]
        what = "search failed or was" if failed == 1 else "searches failed or were"
        yield f"  {failed:,} {what} incomplete, so some instances may not have been found."
    yield from line_words(summary)
    if summary["unwritten"]:
        yield f"  {summary['unwritten']} reports could not be written; standard error has what was to be in them."
    if not adds_up(summary):
        yield "  THE NUMBERS DO NOT ADD UP. Please report this; run the job again to be sure that nothing is missing."
        return
    whole = _is_whole(summary)
    if summary.get("interrupted"):
        yield "  It was interrupted: there may be more, which was not looked for."
    elif not summary["found"]:
        empty = job.wanted is not None and not summary["lines"]
        yield "  The list is empty: nothing was asked for." if empty else "  Nothing was found."
    elif job.dry_run:
        if whole and not summary["to_transfer"]:
            yield "  Everything is at the destination already."
    elif not summary["transferred"] and summary["already_there"]:
        rest = "everything" if whole else "all but what failed or was not tried"
        yield f"  Nothing was transferred: {rest} is already at the destination."
    elif whole:
        yield "  Everything is at the destination."


def line_words(summary: Mapping[str, Any]) -> Iterator[str]:
    """What became of the lines of a list, for people; nothing without a list."""
    if summary["lines"]:
        open_lines = [f"{summary[name]:,} {words}" for name, words in LINE_WORDS.items() if summary[name]]
        if summary["lines_extra"]:
            open_lines.append(f"{summary['lines_extra']:,} name what only the destination has")
        repeated = f" ({summary['lines_repeated']:,} repeat others)" if summary["lines_repeated"] else ""
        lines = _counted(summary["lines"], "line", "lines")
        if open_lines:
            yield f"  Of {lines} of the list{repeated}, {', '.join(open_lines)}."
        elif summary["lines"] == 1:
            yield "  The line of the list names something."
        else:
            yield f"  All {lines} of the list name something{repeated}."


def print_summary(lines: Iterable[str], summary: Mapping[str, Any], *, as_json: bool = True) -> None:
    """Prints a summary: for a person at a terminal its lines, else a JSON object, with the lines on standard error.

    Args:
        lines: What people read.
        summary: What programs read; long lists of files are left out.
        as_json: Whether there may be JSON; not if other results are on standard output.
    """
    watched = sys.stdout.isatty()
    for line in lines:
        print(plain_text(line), file=sys.stdout if watched else sys.stderr)
    if as_json and not watched:
        print(json.dumps({name: value for name, value in summary.items() if name not in _LISTS}))


def _counted(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def tell_unreadable(client: DICOMClient) -> int:
    """Says on standard error that a folder has files of which no search knows anything, and returns their number."""
    # Duplicates are not of interest, and they would be compared.
    nothing = make_query("instance", "0.0")
    number = sum(exclusion.kind == "unreadable" for exclusion in client.iter_exclusions(nothing))
    if number:
        what = "file cannot be read, so it is" if number == 1 else "files cannot be read, so they are"
        folder = safe_url(client.base_url)
        print(f"! {number:,} {what} left out: dicomweb-io index {folder} --list says why", file=sys.stderr)
    return number


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
def shown_progress(
    counts: Callable[[], Mapping[str, int]],
    show: bool | None = None,
    line: Callable[[Mapping[str, int], float], str] = progress_line,
) -> Iterator[None]:
    """Shows how far a transfer is, on standard error, while the block runs.

    Args:
        counts: Gives the numbers so far, by the names of an `Account`; asked from a thread.
        show: Whether to show it; by default if a terminal is watching.
        line: Says in one line what the numbers are, and how many seconds it took.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    started = time.monotonic()

    class Display(Progress):
        def get_renderables(self) -> Any:
            now = counts()
            done = sum(now.get(part, 0) for part in PARTS)
            text = line(now, time.monotonic() - started)
            for task in self.task_ids:
                self.update(task, total=now.get("found") or None, completed=done, description=text)
            return super().get_renderables()

    console = Console(stderr=True)
    wide = console.width >= _WIDE
    columns: tuple[Any, ...] = (
        SpinnerColumn(),
        *([BarColumn(bar_width=20)] if wide else []),
        TextColumn("{task.description}"),
        *([TimeElapsedColumn()] if wide else []),
        TimeRemainingColumn(table_column=Column(min_width=7)),
        TextColumn("left", table_column=Column(min_width=4)),
    )
    # Output that goes elsewhere must not be redirected to the terminal; what goes there is printed above the display.
    with Display(
        *columns, console=console, transient=True, refresh_per_second=4, redirect_stdout=sys.stdout.isatty()
    ) as display:
        display.add_task("", total=None)
        yield
