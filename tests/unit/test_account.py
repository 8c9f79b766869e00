"""The account of a transfer: numbers that add up, reasons that are grouped, and progress while a person watches."""

from __future__ import annotations

import io
import sys

import pytest

from dicomweb_io.account import (
    MAX_LISTED,
    PARTS,
    Account,
    adds_up,
    exit_code,
    format_bytes,
    make_summary,
    progress_line,
    reason_of,
    shown_progress,
    summary_lines,
)
from dicomweb_io.elements import Exclusion, Failure, Resource, StoredInstance
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.failures import not_tried
from dicomweb_io.listing import InstanceGroup
from dicomweb_io.transfer import TransferJob

SERIES = Resource("1.2", "1.2.3")
INSTANCE = Resource("1.2", "1.2.3", "1.2.3.4")


def account(*entries):
    made = Account()
    for entry in entries:
        made.add(entry)
    return make_summary(made.document(), 2.0)


def test_every_fate_is_counted_once():
    summary = account(
        InstanceGroup(SERIES, ("1.2.3.4", "1.2.3.5", "1.2.3.6", "1.2.3.7", "1.2.3.8")),
        StoredInstance(INSTANCE, "stored", size=100),
        StoredInstance(INSTANCE, "replaced", size=50),
        StoredInstance(INSTANCE, "exists"),
        Failure("CopyInstances", "refused", reference=INSTANCE),
        not_tried("the server is gone", "CopyInstances", reference=INSTANCE),
        Failure("ReadFile", "truncated", source="/a"),
        Exclusion("duplicate", "/b", "conflicting: other bytes"),
        Exclusion("ignored", "/c", "not DICOM"),
    )
    assert {name: summary[name] for name in ("found", *PARTS)} == {
        "found": 8,
        "transferred": 2,
        "already_there": 1,
        "duplicate": 1,
        "ignored": 1,
        "failed": 2,
        "not_tried": 1,
    }
    assert (summary["bytes"], summary["bytes_per_second"], summary["conflicting"]) == (150, 75, 1)
    assert adds_up(summary)
    assert exit_code(summary) == 1


def test_what_moved_with_a_warning_is_named_and_does_not_fail():
    warnings = ("without pixel data", "bytes that are no elements behind the pixel data")
    stored = [StoredInstance(INSTANCE, warnings=warnings), StoredInstance(INSTANCE, warnings=warnings[:1])]
    summary = account(InstanceGroup(SERIES, ("1.2.3.4", "1.2.3.5")), *stored)
    assert summary["warnings"] == {warnings[0]: 2, warnings[1]: 1}
    assert (adds_up(summary), exit_code(summary)) == (True, 0)
    lines = list(summary_lines(summary, TransferJob(Endpoint("/a"), Endpoint("/b"))))
    assert f"    2 x warning: {warnings[0]}" in lines


def test_conflicts_beyond_ten_are_counted():
    files = [Exclusion("duplicate", f"/a/{n}", "conflicting: other bytes", INSTANCE, "/a/chosen") for n in range(12)]
    lines = list(summary_lines(account(*files), TransferJob(Endpoint("/a"), Endpoint("/b"))))
    assert sum("is not at the destination" in line for line in lines) == 10
    assert "    and 2 more, which --failures lists" in lines


@pytest.mark.parametrize(
    "failure",
    [
        Failure("SearchForSeries", "refused", reference=SERIES),
        Failure("CopyInstances", "cannot be listed", reference=SERIES),
        Failure("CopyInstances", "names nothing"),
        Failure("ListExclusions", "no folder"),
    ],
)
def test_what_may_hide_more_is_told_beside_the_numbers(failure):
    summary = account(failure)
    assert (summary["found"], summary["failed"], summary["search_failures"]) == (0, 0, 1)
    assert adds_up(summary)
    assert exit_code(summary) == 1


def test_equal_reasons_are_one():
    failures = [
        Failure("CopyInstances", f"{number}: no answer for 1.2.{number}.3", reference=INSTANCE, source=f"{number}:")
        for number in range(64)
    ]
    assert account(*failures)["reasons"] == {"… no answer for UID": 64}
    assert reason_of(Failure("T", "not tried: GET http://127.0.0.1:9/studies/1.2.3")) == (
        "not tried: GET http://127.0.0.1:9/studies/UID"
    )
    assert len(reason_of(Failure("T", "x" * 1000))) == 300


def test_the_first_files_by_path_are_listed():
    files = [Exclusion("ignored", f"/{number:05}", "not DICOM") for number in range(3 * MAX_LISTED)]
    summary = account(*reversed(files))
    assert summary["ignored"] == 3 * MAX_LISTED
    assert [item["path"] for item in summary["ignored_files"]] == [item.path for item in files[:MAX_LISTED]]


def test_progress_is_shown_only_while_a_person_watches(monkeypatch, capsys):
    counts = {"found": 1200, "transferred": 300, "already_there": 5, "failed": 1, "bytes": 2_500_000}
    with shown_progress(lambda: counts):
        pass
    assert capsys.readouterr() == ("", "")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    with shown_progress(lambda: counts):
        pass
    assert "1,200 found, 300 transferred, 5 already there, 1 failed, 2.5 MB" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_numbers_for_people():
    assert [format_bytes(number) for number in (0, 999, 1500, 2e6, 3e9, 4e12)] == [
        "0 bytes",
        "999 bytes",
        "1.5 kB",
        "2.0 MB",
        "3.0 GB",
        "4.0 TB",
    ]
    assert progress_line({}, 0) == "0 found, 0 transferred, 0 already there, 0 bytes, 0 bytes/s"
