"""Writes the table of engines in docs/runners/README.md from a run of the tests in this folder.

    python -m tests.runners.write_table [ENGINE …]

runs them on the engines named, or on all of them; what an engine needs (Go, Java, Maven) must be there. Columns of
other engines say that nothing was run.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
DOCUMENT = FOLDER.parents[1] / "docs/runners/README.md"
BEGIN, END = "<!-- engines: written by python -m tests.runners.write_table -->", "<!-- /engines -->"

FEATURES: dict[str, tuple[str, ...]] = {
    "search in parts, retrieve, metadata, store, copy, compare, watch with an end, in one pipeline": (
        "test_the_whole_connector",
    ),
    "frames, rendered images, bulk data, download, delete, typed rows": (
        "test_the_other_transforms_give_the_same_on_every_engine",
    ),
    "every transform behind every other that fits": ("test_all_that_fits_may_follow_at_once",),
    "failures as elements, error handlers, windows, timestamps": ("test_failures_windows_and_timestamps",),
    "sessions and accumulating panes": ("test_results_and_failures_are_where_their_elements_are",),
    "early and late panes": ("test_the_panes_of_an_accumulating_trigger",),
    "a failure ends the pipeline": ("test_without_a_handler_the_pipeline_fails",),
    "elements keep their class": (
        "test_elements_keep_their_class_through_shuffles",
        "test_classes_hold_after_reshuffle_and_group_by_key",
        "test_other_elements_hold_too",
    ),
    "credentials of every kind": ("test_transforms_reach_the_workers_with_every_kind_of_credentials",),
    "the job `transfer`": ("test_the_transfer_job", "test_a_search_and_a_transfer_both_ways_on_spark"),
    "the jobs give what the commands give": ("test_a_job_gives_what_the_command_gives",),
    "the pipelines of the documentation": ("test_the_pipelines_run",),
    "an unbounded watch streams": ("test_an_unbounded_watch_streams",),
    "stores wait for more (`max_batch_delay`)": (
        "test_paths_that_dribble_in_share_requests",
        "test_what_has_waited_is_sent_before_the_window_ends",
    ),
    "forced splits of a running search": ("test_a_search_that_is_split_while_it_runs_gives_every_row_once",),
    "Beam YAML": ("test_chains_in_yaml", "test_the_example_of_a_copy_runs", "test_the_example_of_a_watch_runs"),
}
"""What the rows say, and the tests that prove it: their names without parameters, and without the engine."""

OF_ONE_ENGINE = {"test_forced_splits.py": "in memory", "test_doors.py": "in memory", "test_spark.py": "spark"}
"""Tests that choose their engine themselves, by file."""


def base_name(name: str) -> str:
    """The name of a test without the engine that it names."""
    return name.removesuffix("_on_prism")


class Outcomes:
    """A plugin of pytest that runs the tests of the table on some engines, and keeps what each came to.

    Attributes:
        seen: The outcomes by feature and engine.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.seen: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._names = names
        self._places: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leaves out tests without a row, such as those of kills, which take half an hour, and other engines."""
        rows = {test: feature for feature, tests in FEATURES.items() for test in tests}
        items[:] = [item for item in items if base_name(item.originalname) in rows and engine_of(item) in self._names]
        self._places = {item.nodeid: (rows[base_name(item.originalname)], engine_of(item)) for item in items}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keeps the outcome, with the reason of a skip."""
        place = self._places.get(report.nodeid)
        if place is None or (report.when != "call" and report.passed):
            return
        skipped = report.skipped and isinstance(report.longrepr, tuple)
        self.seen[place].add(report.longrepr[2].removeprefix("Skipped: ") if skipped else report.outcome)


def engine_of(item: Any) -> str:
    """The engine that a test runs on."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    named = params.get("engine") or params.get("streaming_engine")
    return str(named or OF_ONE_ENGINE.get(item.path.name, "prism"))


def engines() -> list[str]:
    """All engines, as the columns are."""
    from tests.runners.conftest import ENGINES

    return [*ENGINES, "spark"]


def table_of(seen: dict[tuple[str, str], set[str]]) -> str:
    """The table: ✓ if all tests of a cell passed, a footnote if the engine cannot do it, a dash if nothing was run."""
    columns, notes = engines(), []
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for feature in FEATURES:
        cells = []
        for engine in columns:
            outcomes = seen.get((feature, engine), set())
            reasons = sorted(one.removeprefix(f"{engine}: ") for one in outcomes if one.startswith(f"{engine}: "))
            if "failed" in outcomes:
                cells.append("**fails**")
            elif reasons:
                notes += [reason for reason in reasons if reason not in notes]
                cells.append(" ".join(f"[{notes.index(reason) + 1}]" for reason in reasons))
            else:
                cells.append("✓" if "passed" in outcomes else "–")
        lines.append(f"| {feature} | {' | '.join(cells)} |")
    lines += ["", "✓ all its tests pass; – no test was run."]
    lines += [f"[{number}] {reason}." for number, reason in enumerate(notes, start=1)]
    return "\n".join(lines)


def versions() -> str:
    """What was measured with."""
    from tests.runners import flink, spark

    def of(artifact: str) -> str:
        return artifact.partition(":")[2].replace(":", " ")

    java = f"Flink 1.19 ({of(flink.PROGRAM.artifacts[0])}), Spark 3.5.0 ({of(spark.PROGRAM.artifacts[0])})"
    here = f"Python {platform.python_version()}, apache-beam {version('apache-beam')} (and its Prism)"
    return f"{time.strftime('%Y-%m-%d')}, {here}, {java}."


def write(seen: dict[tuple[str, str], set[str]]) -> None:
    """Replaces the table in the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    head = versions() if seen else "No run is recorded yet."
    DOCUMENT.write_text(f"{before}{BEGIN}\n{head}\n\n{table_of(seen)}\n{END}{after}", encoding="utf-8")


def main(names: list[str]) -> int:
    """Runs the tests and writes the table; returns 0 if none failed."""
    import pytest

    unknown = set(names) - set(engines())
    if unknown:
        sys.exit(f"no engine: {', '.join(sorted(unknown))} (there are: {', '.join(engines())})")
    names = names or engines()
    for engine in names:
        os.environ[f"DICOMWEB_IO_{engine.partition(' ')[0].upper()}"] = "1"
    outcomes = Outcomes(names)
    code = pytest.main(["-q", "-p", "no:cacheprovider", "--show-capture=no", str(FOLDER)], plugins=[outcomes])
    if code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        write(outcomes.seen)
    else:
        print("The table was not written: the tests did not come to their end.", file=sys.stderr)
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
