"""Reports of what a command or a job did: a page for people (HTML), or a JSON document for programs.

A report is one file that only its owner can read. It holds UIDs, and paths and lines of the user's own, but no names of
patients, no secrets and no words of servers. The page needs nothing beside itself: no script, no other address; its
drawings are SVG, and it can be printed and read in the dark.

Both forms tell the same. The JSON document is an object:

- ``schema_version``: 1. It grows when something that is named here changes its meaning or goes; new names may be added.
- ``kind``: what was done, such as ``"transfer"``; ``software`` (``name``, ``version``), ``began`` and ``ended`` (ISO
  8601, UTC); ``complete``: whether everything that was asked for was done.
- ``source``, ``destination``: ``url`` (without secrets), and the ``profile`` if it was chosen; ``options``: those of
  the command. Of filters only values that tell nothing of a patient are shown.
- ``summary``: the numbers; see `dicomweb_io.account.make_summary`.
- ``failures``: ``reason``, ``number``, and up to five ``examples`` in the form of a failures file.
- ``timeline``: ``seconds`` of a slice, and ``slices``: ``at`` (when it begins, in seconds since 1970), ``transferred``,
  ``already_there``, ``failed`` and ``bytes``.
- ``sizes``: how many ``instances`` have ``from`` so many bytes, and are ``below`` so many (null for no limit).
- ``sop_classes``, ``transfer_syntaxes``: ``uid`` (null where unknown), ``name``, ``instances``, ``bytes``.
- ``slow_series``: those that took longest: ``reference``, ``instances``, ``bytes``, ``seconds``.
- ``requests``: for each server its ``archive`` (``"source"``, ``"destination"``, or ``"both"`` from a job's metrics,
  which count repeated work too), ``requests``, ``retries``, ``bytes_in``, ``bytes_out``, ``throttled_seconds``, and
  ``median_seconds``, ``slow_seconds`` (95 of 100 are quicker) and ``max_seconds`` of the latest requests, where known.
- ``verdict``: the outcome in a sentence, where it is not that of a transfer.
- ``tables``: further tables, each with ``title``, ``columns`` and ``rows``.

What a report does not concern is left out.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from dicomweb_io._version import __version__
from dicomweb_io.account import LINE_WORDS, PARTS, Facts, adds_up, exit_code, format_bytes
from dicomweb_io.client import DICOMClient
from dicomweb_io.dicom.attributes import resolve, vr_of
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import safe_url
from dicomweb_io.options import UsageError, atomic_file, check_spool_directory, check_writable

if TYPE_CHECKING:
    from dicomweb_io.transfer import TransferJob

SCHEMA_VERSION = 1

_HTML = (".html", ".htm")
_SHOWN_ON_PAGE = 100
# What took less than about a second, or is of one size, is not worth drawing.
_MIN_SLICES = 4
_MIN_BARS = 3
_SHOWN_IF_ANY = ("elsewhere", "other_patient", "unreadable", "conflicting", "lines_extra", "lines", *LINE_WORDS)
_SHOWN_IF_ANY += ("search_failures", "unwritten")
_SHOWN_VRS = ("UI", "DA", "TM", "DT", "CS", "IS", "US")
_PATIENT_GROUP = "0010"


def check_report(path: str, option: str = "--report") -> None:
    """Checks the address of a report before the work starts.

    Raises:
        UsageError: If its ending is unknown, it cannot be written, or what draws a page is not installed.
    """
    if not path.lower().endswith((*_HTML, ".json")):
        raise UsageError(f"{option} {path}: a report is a page (.html) or a JSON document (.json); name it so")
    check_writable(path, option)
    if path.lower().endswith(_HTML) and importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            f"{option} {path}: the drawings of a page need matplotlib: pip install 'dicomweb_io[report]'; "
            "a report in JSON (.json) needs nothing"
        )


def check_results(args: Any, *written_by_workers: str, elsewhere: bool = False) -> None:
    """Checks where a job of parsed arguments writes its results and temporary files, before the work starts.

    Args:
        args: The parsed arguments; ``summary``, ``report`` and ``spool_directory`` among them.
        written_by_workers: The names of the other options that name files.
        elsewhere: Whether these are written by workers on other machines.

    Raises:
        UsageError: If something cannot be written there.
    """
    for option in written_by_workers:
        if getattr(args, option):
            check_writable(getattr(args, option), f"--{option}", elsewhere=elsewhere)
    if args.summary:
        check_writable(args.summary, "--summary")
    for path in args.report or ():
        check_report(path)
    check_spool_directory(args.spool_directory, elsewhere=elsewhere)


def write_report(path: str, summary: Mapping[str, Any], facts: Mapping[str, Any]) -> str | None:
    """Writes a report; it appears complete or not at all.

    Args:
        path: A local path or an fsspec URL; its ending says the form.
        summary: The numbers.
        facts: What else the document is to hold, by the names of this module's docstring. ``failures``, ``began`` and
            ``ended`` are made of the summary's ``reasons`` and ``seconds`` if they are not given.

    Returns:
        Why it cannot be written; None if it is written.
    """
    try:
        document = make_document(summary, facts)
        text = render_page(document) if path.lower().endswith(_HTML) else json.dumps(document, indent=2) + "\n"
        with atomic_file(path) as file:
            file.write(text)
    except Exception as error:
        # Whatever fails here must not take the summary of long work with it.
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        return f"--report {safe_url(path)} cannot be written: {reason}"
    return None


def write_transfer_reports(
    job: TransferJob,
    summary: dict[str, Any],
    facts: Mapping[str, Any],
    requests: Sequence[Mapping[str, Any] | None] = (),
) -> None:
    """Writes the reports of a transfer; those that cannot be written are told and counted in the summary.

    Args:
        job: What was done.
        summary: See `dicomweb_io.account.make_summary`.
        facts: See `dicomweb_io.account.Facts.document`.
        requests: See `requests_of`.
    """
    told = {**describe(job), **facts, "requests": [item for item in requests if item is not None]}
    write_reports(job.report, summary, told)


class RoundsFacts:
    """The facts of work that is done in rounds, each of which is a transfer."""

    def __init__(self) -> None:
        self._facts = Facts()
        self._requests: dict[str, dict[str, Any]] = {}

    def add(self, document: Mapping[str, Any]) -> None:
        """Adds what the JSON report of a round tells."""
        examples = {failure["reason"]: failure["examples"] for failure in document["failures"]}
        self._facts.merge(Facts.of({**document, "examples": examples}))
        for item in document["requests"]:
            known = self._requests.setdefault(item["archive"], {"archive": item["archive"], "max_seconds": 0})
            for name in ("requests", "retries", "bytes_in", "bytes_out", "throttled_seconds"):
                known[name] = known.get(name, 0) + item[name]
            known["max_seconds"] = max(known["max_seconds"], item.get("max_seconds", 0))

    def document(self) -> dict[str, Any]:
        """What is known of all rounds, for `write_reports`."""
        return {**self._facts.document(), "requests": list(self._requests.values())}


def write_reports(paths: Sequence[str], summary: dict[str, Any], told: Mapping[str, Any]) -> None:
    """Writes reports; those that cannot be written are told and counted in the summary. See `write_report`."""
    # The message of an error may hold what a server wrote.
    shown = {**summary, "last_error": "…"} if summary.get("last_error") is not None else summary
    for path in paths:
        problem = write_report(path, shown, told)
        if problem is not None:
            summary["unwritten"] += 1
            print(problem, file=sys.stderr)


def describe(job: TransferJob) -> dict[str, Any]:
    """What a transfer was to do, without secrets and values that concern a patient."""
    options: dict[str, Any] = {"on_existing": job.on_existing, "verify": job.verify}
    flags = ("allow_transcoding", "allow_several_patients", "allow_other_patient", "dry_run")
    options |= {name: True for name in flags if getattr(job, name)}
    first = next(job.lines, None)
    if first is not None and " line " in first.place:
        options["input"] = first.place.rpartition(" line ")[0]
    if job.filters:
        options["filters"] = {name: value if _may_show(name) else "…" for name, value in job.filters.items()}
    return {
        "kind": "transfer",
        "source": describe_archive(job.source),
        "destination": describe_archive(job.destination),
        "options": options,
    }


def describe_archive(endpoint: Endpoint) -> dict[str, Any]:
    """An archive, without secrets."""
    profile = endpoint.profile if isinstance(endpoint.profile, str) else endpoint.profile.name
    return {"url": endpoint.safe_url, **({"profile": profile} if endpoint.is_web and profile != "auto" else {})}


def _may_show(attribute: str) -> bool:
    """Whether a filter's value tells nothing of a patient."""
    try:
        tag = resolve(attribute)[-1]
        return vr_of(tag) in _SHOWN_VRS and not tag.startswith(_PATIENT_GROUP)
    except (ValueError, LookupError):
        return False


def requests_of(archive: str, client: DICOMClient) -> dict[str, Any] | None:
    """What a client did on the network; None for a folder."""
    stats = client.stats
    if stats is None:
        return None
    names = ("requests", "retries", "bytes_in", "bytes_out")
    told: dict[str, Any] = {"archive": archive, **{name: getattr(stats, name) for name in names}}
    told["throttled_seconds"] = round(stats.throttled_seconds, 3)
    durations = sorted(stats.take_durations())
    if durations:
        last = len(durations) - 1
        for name, share in (("median_seconds", 0.5), ("slow_seconds", 0.95), ("max_seconds", 1)):
            told[name] = round(durations[round(share * last)], 3)
    return told


def make_document(summary: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON document; see `write_report`."""
    ended = datetime.now(timezone.utc)
    examples = facts.get("examples", {})
    document = {
        "schema_version": SCHEMA_VERSION,
        "kind": "run",
        "software": {"name": "dicomweb_io", "version": __version__},
        "began": _time(ended - timedelta(seconds=summary.get("seconds", 0))),
        "ended": _time(ended),
        **{name: value for name, value in facts.items() if name != "examples"},
        "summary": dict(summary),
    }
    if _is_transfer(summary):
        document.setdefault("complete", exit_code(summary) == 0)
    if "reasons" in summary:
        failures = [
            {"reason": reason, "number": number, "examples": examples.get(reason, [])}
            for reason, number in summary["reasons"].items()
        ]
        document.setdefault("failures", failures)
    for kind in ("sop_classes", "transfer_syntaxes"):
        if kind in facts:
            document[kind] = [{**item, "name": _name_of(item["uid"])} for item in facts[kind]]
    return document


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _name_of(uid: str | None) -> str | None:
    from pydicom.uid import UID

    return None if uid is None or UID(uid).name == uid else str(UID(uid).name)


# The page -------------------------------------------------------------------------------------------------------------


def render_page(document: Mapping[str, Any]) -> str:
    """The document as an HTML page."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("dicomweb_io"), autoescape=True, trim_blocks=True)
    environment.filters.update(
        size=format_bytes, number=lambda number: f"{number:,}", duration=_duration, moment=_moment, word=_word
    )
    summary = document["summary"]
    timeline, sizes = document.get("timeline"), document.get("sizes")
    return environment.get_template("report.html").render(
        document=document,
        summary=summary,
        numbers=_numbers(summary),
        adds_up=adds_up(summary) if _is_transfer(summary) else None,
        verdict=_verdict(document),
        line_words=LINE_WORDS,
        rate=_draw_rate(timeline) if timeline and len(timeline["slices"]) >= _MIN_SLICES else None,
        histogram=_draw_sizes(sizes) if sizes and len(sizes) >= _MIN_BARS else None,
        shown=_SHOWN_ON_PAGE,
    )


def _is_transfer(summary: Mapping[str, Any]) -> bool:
    return all(name in summary for name in ("found", *PARTS))


def _numbers(summary: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The numbers of a summary, with their names for people."""
    if _is_transfer(summary):
        return [(_word(name), summary[name]) for name in ("found", "to_transfer", *PARTS) if name in summary]
    numbers = []
    for name, value in summary.items():
        if not value and name in _SHOWN_IF_ANY:
            continue
        if type(value) is int and name not in ("bytes", "bytes_per_second"):
            numbers.append((_word(name), value))
        elif isinstance(value, Mapping) and name not in ("reasons", "warnings"):
            numbers += [
                (f"{_word(name)}, {_word(part)}", number) for part, number in value.items() if type(number) is int
            ]
    return numbers


def _verdict(document: Mapping[str, Any]) -> str:
    summary = document["summary"]
    if "verdict" in document:
        return str(document["verdict"])
    if "to_transfer" in summary and document.get("complete"):
        return f"This was a dry run, and nothing was written. {summary['to_transfer']:,} are to be transferred."
    if document.get("complete"):
        return "Everything that was asked for is done." if summary.get("found", 1) else "Nothing was found."
    words = {
        "failed": "failed",
        "not_tried": "not tried",
        "given_up": "given up",
        "pending": "to be tried again",
        "search_failures": "searches failed",
        "conflicting": "files differ from the one that was chosen",
        **LINE_WORDS,
        "unwritten": "reports could not be written",
    }
    left = [
        f"{summary[name]:,} {'lines ' if name in LINE_WORDS else ''}{text}"
        for name, text in words.items()
        if summary.get(name)
    ]
    what = "It was interrupted" if summary.get("interrupted") else "Not everything is done"
    return f"{what}: {', '.join(left)}." if left else f"{what}."


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms" if seconds else "0 s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _moment(moment: str | float) -> str:
    if isinstance(moment, str):
        return f"{moment[:10]} {moment[11:19]} UTC"
    return f"{datetime.fromtimestamp(moment, timezone.utc):%H:%M:%S}"


def _word(name: str) -> str:
    return name.replace("_", " ")


# Colours that the page replaces, so that drawings follow its light and dark ones.
_TEXT, _LINE, _BAR, _BAD = "#010101", "#020202", "#030303", "#040404"
_COLOURS = {_TEXT: "currentColor", _LINE: "var(--line)", _BAR: "var(--bar)", _BAD: "var(--bad)"}
_MAX_MARKS = 10
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _TEXT,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "axes.grid.axis": "y",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}


def _draw_rate(timeline: Mapping[str, Any]) -> Any:
    """Results and bytes per second over time, one above the other."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    slices, width = timeline["slices"], timeline["seconds"]
    unit, seconds = next(
        (item for item in (("hours", 3600), ("minutes", 60)) if len(slices) * width > 2 * item[1]), ("seconds", 1)
    )
    edges = [number * width / seconds for number in range(len(slices) + 1)]
    with rc_context(_STYLE):
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        for columns, colour in ((("transferred", "already_there"), _BAR), (("failed",), _BAD)):
            values = [sum(item[column] for column in columns) / width for item in slices]
            if any(values):
                above.stairs(values, edges, fill=True, color=colour)
        above.set_ylabel("instances/s")
        below.stairs([item["bytes"] / width for item in slices], edges, fill=True, color=_BAR)
        above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _edge(round(value))))
        below.set_ylabel("bytes/s")
        below.set_xlabel(f"{unit} since {_moment(slices[0]['at'])} UTC")
        for axes in (above, below):
            axes.set_ylim(bottom=0)
            axes.set_xlim(0, edges[-1])
            axes.locator_params(axis="y", nbins=4)
        figure.align_ylabels()
        return _svg(figure, "Instances and bytes per second over time")


def _draw_sizes(sizes: Sequence[Mapping[str, Any]]) -> Any:
    """How many instances have which size."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(8, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.bar(range(len(sizes)), [item["instances"] for item in sizes], color=_BAR, width=0.9)
        # The marks stand between the bars: where the sizes are divided.
        edges = [sizes[0]["from"], *(item["below"] for item in sizes)]
        marks = [
            (number - 0.5, _edge(edge))
            for number, edge in enumerate(edges)
            if edge is not None and (len(sizes) <= _MAX_MARKS or str(edge)[0] in "01")
        ]
        axes.set_xticks(*zip(*marks, strict=True))
        axes.set_xlim(-0.6, max(len(sizes), 6) - 0.4)
        axes.set_ylabel("instances")
        axes.set_xlabel("size")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="y", nbins=4, integer=True)
        return _svg(figure, "Number of instances by size")


def _edge(size: int) -> str:
    return format_bytes(size).replace(".0 ", " ") if size else "0"


def _svg(figure: Any, title: str) -> Any:
    """A drawing as SVG inside of a page, without names that two drawings would share, and with the page's colours."""
    from markupsafe import Markup, escape

    for axes in figure.axes:
        for artist in axes.get_children():
            artist.set_clip_on(False)
        for line in (*axes.get_xgridlines(), *axes.get_ygridlines()):
            line.set_clip_on(False)
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<defs>.*?</defs>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' (?:id|clip-path|xmlns(?::xlink)?|version)="[^"]*"', "", text)
    text = re.sub(r"font-family: [^;\"]*;?", "", text)
    text = re.sub(r'<svg width="[^"]*" height="[^"]*"', f'<svg role="img" aria-label="{escape(title)}"', text)
    for colour, name in _COLOURS.items():
        text = text.replace(colour, name)
    return Markup(text)  # noqa: S704 - made here, of numbers and our own words
