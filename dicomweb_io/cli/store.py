"""``dicomweb-io store``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from dicomweb_io.account import READ, Account, format_bytes, make_summary, told_of
from dicomweb_io.cli.output import print_line, progress
from dicomweb_io.elements import Exclusion, Failure, StoredInstance
from dicomweb_io.errors import DICOMwebError
from dicomweb_io.failures import RECOVERABLE, not_tried
from dicomweb_io.files.local import folder_of
from dicomweb_io.files.places import Problem
from dicomweb_io.files.records import IGNORED, read_record
from dicomweb_io.options import connect, endpoint_from
from dicomweb_io.report import check_report, describe_archive, requests_of, write_reports
from dicomweb_io.store_items import TRANSFORM

_WORDS = {"exists": "already there"}
_ORDER = ("stored", "replaced", "exists", "ignored", "failed", "not tried")


def store(args: argparse.Namespace) -> int:
    """Stores files and prints the result of each as a JSON line; a person sees only what is odd."""
    for path in args.report or ():
        check_report(path)
    endpoint = endpoint_from(args)
    client = connect(args, endpoint)
    client.survive_outages(endpoint.timeouts.outage)
    files, found_in, problems = find_files(args.files)
    told = _Results(with_facts=bool(args.report))
    for problem in problems:
        told.add("failed", problem)
    done, started = 0, time.monotonic()
    try:
        with progress("files", len(files)) as shown:
            for result in client.iter_store_instances(
                files, study_instance_uid=args.study_instance_uid, on_existing=args.on_existing, verify=args.verify
            ):
                done += 1
                if isinstance(result, Failure):
                    path = result.source
                    reason = _ignored(path) if path is not None and path in found_in else None
                    if path is not None and reason is not None:
                        told.add("ignored", Exclusion("ignored", path, reason))
                    else:
                        told.add("failed", result)
                    shown.advance(0)
                else:
                    told.add(result.outcome, result)
                    shown.advance(result.size)
    except RECOVERABLE as error:
        reason = client.unavailable or (str(error) if isinstance(error, DICOMwebError) else None)
        if reason is None:
            raise
        print(f"dicomweb-io: {error}", file=sys.stderr)
        for path in files[done:]:
            told.add("not tried", not_tried(reason, TRANSFORM, source=path))
    finally:
        client.close()
    print(told.line(endpoint.safe_url), file=sys.stderr)
    unwritten = False
    if args.report:
        document = told.account.document()
        summary = make_summary(document, time.monotonic() - started)
        facts = {"kind": "store", "destination": describe_archive(endpoint), **document["facts"]}
        options = {"on_existing": args.on_existing, "verify": args.verify}
        requests = [item for item in (requests_of("destination", client),) if item is not None]
        write_reports(args.report, summary, {**facts, "options": options, "requests": requests})
        unwritten = summary["unwritten"] > 0
    return 1 if told.counts["failed"] or told.counts["not tried"] or unwritten or not told.counts else 0


class _Results:
    """Prints the results, and counts them.

    Args:
        with_facts: Whether a report is wanted.
    """

    def __init__(self, *, with_facts: bool) -> None:
        self.counts: Counter[str] = Counter()
        self.account = Account(with_facts)
        self._size = 0
        self._people = sys.stdout.isatty()

    def add(self, outcome: str, result: StoredInstance | Failure | Exclusion) -> None:
        """Takes one result."""
        self.counts[outcome] += 1
        if isinstance(result, Failure) and result.reference is None:
            # In an account it is the file that failed.
            self.account.add(replace(result, transform=READ))
        else:
            self.account.counts["found"] += not isinstance(result, Exclusion)
            self.account.add(result)
        if isinstance(result, StoredInstance) and outcome != "exists":
            self._size += result.size
        if not self._people:
            print_line({"outcome": outcome, **_as_json(result)})
        elif isinstance(result, Failure) and outcome == "failed":
            print(f"dicomweb-io: {told_of(result)}", file=sys.stderr)

    def line(self, destination: str) -> str:
        """All results in one line, whose numbers add up."""
        total = sum(self.counts.values())
        if not total:
            return "There are no files."
        parts = (f"{self.counts[name]:,} {_WORDS.get(name, name)}" for name in _ORDER if self.counts[name])
        noun = "file" if total == 1 else "files"
        return f"{total:,} {noun}: {', '.join(parts)}; {format_bytes(self._size)} → {destination}"


def _as_json(result: StoredInstance | Failure | Exclusion) -> dict[str, Any]:
    if isinstance(result, Failure):
        return result.to_dict()
    if isinstance(result, Exclusion):
        return {"source": result.path, "message": result.reason}
    warning = {"warning_reason": result.warning_reason} if result.warning_reason else {}
    return {"reference": result.reference.to_dict(), **warning}


def find_files(paths: Iterable[str]) -> tuple[list[str], set[str], list[Failure]]:
    """Finds what is to be stored.

    Args:
        paths: Files and folders.

    Returns:
        The files that are named and those below the folders; which of them are below folders, where files that are not
        DICOM are ignored; and what cannot be read. Folders are looked through as by all other commands.
    """
    files: list[str] = []
    found: set[str] = set()
    problems: list[Failure] = []
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        below = []
        for item in folder_of(path).walk():
            place = os.path.join(path, *item.path.split("/"))
            if isinstance(item, Problem):
                problems.append(Failure(TRANSFORM, item.reason, source=place))
            else:
                below.append(place)
        files += sorted(below)
        found.update(below)
    return files, found, problems


def _ignored(path: str) -> str | None:
    """Why a file is none that an archive takes: it is not DICOM, or a DICOMDIR. None if it is."""
    folder = folder_of(os.path.dirname(path) or ".")
    stat = folder.stat(os.path.basename(path))
    record = None if stat is None else read_record(folder, stat)
    return record.reason if record is not None and record.kind == IGNORED else None
