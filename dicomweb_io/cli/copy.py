"""``dicomweb-io copy``: the transfer job without Beam, in threads of this process."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from dicomweb_io.cli.output import Progress, print_line, progress
from dicomweb_io.elements import Failure, Resource
from dicomweb_io.http.settings import Limits
from dicomweb_io.options import UsageError, connect, destination_from, endpoint_from, parse_filters
from dicomweb_io.queries import make_query
from dicomweb_io.transfer import CopyResult, InstanceCopier

_REFERENCES_AT_ONCE = 16


def copy(args: argparse.Namespace) -> int:
    """Copies what matches and prints a summary whose numbers add up, as a JSON object."""
    if args.url:
        raise UsageError("copy takes two archives, SOURCE and DESTINATION, and no --url")
    if args.jobs < 1:
        raise UsageError(f"--jobs must be 1 or more, not {args.jobs}")
    try:
        query = make_query("instance", search_filters=parse_filters(args.search_filters))
    except ValueError as error:
        raise UsageError(str(error)) from error
    source = connect(args, endpoint_from(args, args.source).replace(limits=Limits(args.jobs)))
    destination = connect(args, destination_from(args).replace(limits=Limits(args.jobs)))
    counts = Counts()
    started = time.monotonic()
    try:
        with InstanceCopier(source, destination, on_existing=args.on_existing, verify=args.verify) as copier:
            failures = open_failures(args.failures)
            with failures as sink, progress("instances") as shown:
                for result in copy_all(copier, references_of(source.iter_search(query), counts), args.jobs):
                    counts.add(result, shown)
                    if isinstance(result, Failure):
                        sink.write(result)
                for exclusion in source.iter_exclusions(query):
                    counts.exclude(exclusion.kind)
                    if exclusion.kind == "unreadable":
                        sink.write(Failure("copy", exclusion.reason, exclusion.reference, source=exclusion.path))
    finally:
        source.close()
        destination.close()
    print_line(counts.summary(time.monotonic() - started))
    return 1 if counts.failed else 0


class Counts:
    """What became of everything that was found."""

    def __init__(self) -> None:
        self._outcomes: Counter[str] = Counter()
        self._bytes = 0
        self.repeated = 0

    @property
    def failed(self) -> int:
        """Instances and files that did not arrive."""
        return self._outcomes["failed"]

    def add(self, result: CopyResult, shown: Progress) -> None:
        """Counts the result of one instance."""
        if isinstance(result, Failure):
            self._outcomes["failed"] += 1
            shown.advance()
            return
        self._outcomes["already_there" if result.outcome == "exists" else "transferred"] += 1
        self._bytes += result.size
        shown.advance(result.size)

    def exclude(self, kind: str) -> None:
        """Counts a file that no search returns."""
        self._outcomes["failed" if kind == "unreadable" else kind] += 1

    def summary(self, seconds: float) -> dict[str, float]:
        """The numbers; `found` is the sum of the rest."""
        parts = {
            name: self._outcomes[name] for name in ("transferred", "already_there", "duplicate", "ignored", "failed")
        }
        return {
            "found": sum(parts.values()),
            **parts,
            "bytes": self._bytes,
            "seconds": round(seconds, 3),
            "bytes_per_second": round(self._bytes / seconds) if seconds > 0 else 0,
        }


def references_of(rows: Iterable[dict[str, object]], counts: Counts) -> Iterator[Resource]:
    """The instances that the rows of a search name, each once."""
    seen: set[Resource] = set()
    for row in rows:
        reference = Resource.of(row)
        if reference in seen:
            counts.repeated += 1
            continue
        seen.add(reference)
        yield reference


def copy_all(copier: InstanceCopier, references: Iterable[Resource], jobs: int) -> Iterator[CopyResult]:
    """Copies references in threads, few of them in flight, and yields the result of each."""
    pending: deque[Future[list[CopyResult]]] = deque()
    executor = ThreadPoolExecutor(jobs, thread_name_prefix="copy")
    try:
        for group in _groups(references):
            if len(pending) > 2 * jobs:
                yield from pending.popleft().result()
            pending.append(executor.submit(copier.copy, group))
        while pending:
            yield from pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _groups(references: Iterable[Resource]) -> Iterator[list[Resource]]:
    """Neighbours of one series together: the destination is listed once for a series."""
    group: list[Resource] = []
    for reference in references:
        if group and (len(group) == _REFERENCES_AT_ONCE or group[0].series != reference.series):
            yield group
            group = []
        group.append(reference)
    if group:
        yield group


class FailureSink:
    """A dead-letter file: one JSON object a line, readable for its owner only."""

    def __init__(self, path: str | None) -> None:
        self._file = None
        if path is not None:
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8")

    def write(self, failure: Failure) -> None:
        """Writes one failure, and shows it on standard error."""
        where = failure.reference.uri if failure.reference is not None else failure.source
        print(f"dicomweb-io: {where}: {failure.message}", file=sys.stderr)
        if self._file is not None:
            self._file.write(json.dumps(failure.to_dict()) + "\n")

    def __enter__(self) -> FailureSink:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()


def open_failures(path: str | None) -> FailureSink:
    """Opens the dead-letter file, or a sink that only shows failures."""
    return FailureSink(path)
