"""``dicomweb-io store``."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

from dicomweb_io.account import format_bytes
from dicomweb_io.cli.output import print_line, progress
from dicomweb_io.elements import Failure
from dicomweb_io.errors import DICOMwebError
from dicomweb_io.failures import RECOVERABLE, not_tried
from dicomweb_io.files.local import folder_of
from dicomweb_io.files.places import Problem
from dicomweb_io.files.records import IGNORED, read_record
from dicomweb_io.options import connect, endpoint_from
from dicomweb_io.store_items import TRANSFORM

_WORDS = {"exists": "already there"}
_ORDER = ("stored", "replaced", "exists", "ignored", "failed", "not tried")


def store(args: argparse.Namespace) -> int:
    """Stores files and prints the result of each as a JSON line; a person sees only what is odd."""
    endpoint = endpoint_from(args)
    client = connect(args, endpoint)
    client.survive_outages(endpoint.timeouts.outage)
    files, found_in, problems = find_files(args.files)
    told = _Results()
    for problem in problems:
        told.add("failed", problem.to_dict())
    done = 0
    try:
        with progress("files", len(files)) as shown:
            for result in client.iter_store_instances(
                files, study_instance_uid=args.study_instance_uid, on_existing=args.on_existing, verify=args.verify
            ):
                done += 1
                size = 0
                if isinstance(result, Failure):
                    path = result.source
                    reason = _ignored(path) if path is not None and path in found_in else None
                    if reason is not None:
                        told.add("ignored", {"source": path, "message": reason})
                    else:
                        told.add("failed", result.to_dict())
                else:
                    size = result.size
                    warning = {"warning_reason": result.warning_reason} if result.warning_reason else {}
                    told.add(result.outcome, {"reference": result.reference.to_dict(), **warning}, size)
                shown.advance(size)
    except RECOVERABLE as error:
        reason = client.unavailable or (str(error) if isinstance(error, DICOMwebError) else None)
        if reason is None:
            raise
        print(f"dicomweb-io: {error}", file=sys.stderr)
        for path in files[done:]:
            told.add("not tried", not_tried(reason, TRANSFORM, source=path).to_dict())
    finally:
        client.close()
    print(told.line(endpoint.safe_url), file=sys.stderr)
    return 1 if told.counts["failed"] or told.counts["not tried"] or not told.counts else 0


class _Results:
    """Prints the results, and counts them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._size = 0
        self._people = sys.stdout.isatty()

    def add(self, outcome: str, result: dict[str, Any], size: int = 0) -> None:
        """Takes one result."""
        self.counts[outcome] += 1
        if outcome != "exists":
            self._size += size
        if not self._people:
            print_line({"outcome": outcome, **result})
        elif outcome == "failed":
            where = f"{result['source']}: " if result.get("source") else ""
            print(f"dicomweb-io: {where}{result['message']}", file=sys.stderr)

    def line(self, destination: str) -> str:
        """All results in one line, whose numbers add up."""
        total = sum(self.counts.values())
        if not total:
            return "There are no files."
        parts = (f"{self.counts[name]:,} {_WORDS.get(name, name)}" for name in _ORDER if self.counts[name])
        noun = "file" if total == 1 else "files"
        return f"{total:,} {noun}: {', '.join(parts)}; {format_bytes(self._size)} → {destination}"


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
