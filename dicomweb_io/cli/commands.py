"""The commands of ``dicomweb-io``: one table of them, and the short ones."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from itertools import tee
from typing import cast

from dicomweb_io.account import Account, exit_code, shown_progress, summary_lines
from dicomweb_io.cli.compare import compare
from dicomweb_io.cli.output import ANSWERS, print_line, print_table, progress
from dicomweb_io.cli.retrieve import expand_paths, retrieve
from dicomweb_io.cli.search import index, search, tree
from dicomweb_io.cli.servers import servers
from dicomweb_io.elements import Failure
from dicomweb_io.errors import DICOMwebError
from dicomweb_io.failures import RECOVERABLE, not_tried
from dicomweb_io.http.settings import Limits
from dicomweb_io.options import UsageError, connect, endpoint_from
from dicomweb_io.transfer import job_from, run_transfer


def store(args: argparse.Namespace) -> int:
    """Stores files and prints the result of each as a JSON line."""
    endpoint = endpoint_from(args)
    client = connect(args, endpoint)
    client.survive_outages(endpoint.timeouts.outage)
    counts: Counter[str] = Counter()
    files, left = tee(expand_paths(args.files))
    try:
        with progress("instances") as shown:
            for result in client.iter_store_instances(
                files,
                study_instance_uid=args.study_instance_uid,
                on_existing=args.on_existing,
                verify=args.verify,
            ):
                next(left)
                if isinstance(result, Failure):
                    counts["failed"] += 1
                    print_line({"outcome": "failed", **result.to_dict()})
                else:
                    counts[result.outcome] += 1
                    print_line(
                        {
                            "outcome": result.outcome,
                            "reference": result.reference.to_dict(),
                            **({"warning_reason": result.warning_reason} if result.warning_reason else {}),
                        }
                    )
                    shown.advance(result.size)
    except RECOVERABLE as error:
        reason = client.unavailable or (str(error) if isinstance(error, DICOMwebError) else None)
        if reason is None:
            raise
        print(f"dicomweb-io: {error}", file=sys.stderr)
        for path in left:
            counts["not tried"] += 1
            print_line({"outcome": "not tried", **not_tried(reason, "StoreInstances", source=str(path)).to_dict()})
    finally:
        client.close()
    print(", ".join(f"{number} {name}" for name, number in sorted(counts.items())) or "no files", file=sys.stderr)
    return 1 if counts["failed"] or counts["not tried"] or not counts else 0


def delete(args: argparse.Namespace) -> int:
    """Deletes a study, series or instance."""
    client = connect(args, endpoint_from(args))
    try:
        study = cast(str, args.study_instance_uid)
        if args.information_entity == "study":
            client.delete_study(study)
        elif args.information_entity == "series":
            client.delete_series(study, args.series_instance_uid)
        else:
            client.delete_instance(study, args.series_instance_uid, args.sop_instance_uid)
    finally:
        client.close()
    return 0


def doctor(args: argparse.Namespace) -> int:
    """Prints a table (or a JSON object) of what the archive supports and which profile would be used."""
    endpoint = endpoint_from(args)
    client = connect(args, endpoint)
    try:
        report = client.probe()
    finally:
        client.close()
    if args.json:
        print_line(
            {
                "url": endpoint.safe_url,
                "profile": report.profile.name,
                "findings": [asdict(finding) for finding in report.findings],
                "facts": asdict(report.profile),
            }
        )
    else:
        sys.stdout.write(f"{endpoint.safe_url}\nprofile: {report.profile.name}\n")
        print_table(
            ("feature", "supported", "answer"),
            [(found.feature, ANSWERS[found.supported], found.detail) for found in report.findings],
        )
    return 0


def serve(args: argparse.Namespace) -> int:
    """Serves a folder as a DICOMweb server until interrupted, or describes the behaviour that it can have."""
    try:
        from dicomweb_io.testing.server.command import print_behaviours, run
    except ImportError as error:
        hint = "pip install 'dicomweb_io[testing]'"
        raise UsageError(f"serve needs the extra 'testing' (no {error.name} here): {hint}") from error
    try:
        if args.behaviours or args.describe:
            print_behaviours(args)
            return 0
        if args.path is None:
            raise UsageError("serve needs the folder to serve")
        if "://" not in args.path and not os.path.isdir(args.path):
            raise UsageError(f"there is no folder {args.path}")
        return run(args)
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error


_LISTS = ("duplicates", "ignored_files")


def copy(args: argparse.Namespace) -> int:
    """Copies what matches; prints a summary whose numbers add up, as JSON unless a person reads it."""
    if args.url:
        raise UsageError("copy takes two archives, SOURCE and DESTINATION, and no --url")
    if args.jobs < 1:
        raise UsageError(f"--jobs must be 1 or more, not {args.jobs}")
    limits = Limits(args.jobs)
    source = endpoint_from(args, args.source).replace(limits=limits)
    job = job_from(args, source, endpoint_from(args, role="destination").replace(limits=limits))
    clients = connect(args, job.source), connect(args, job.destination)
    account = Account()
    try:
        with shown_progress(lambda: account.counts):
            summary = run_transfer(job, max_in_flight=args.jobs, account=account, on_failure=_show, clients=clients)
    finally:
        for client in clients:
            client.close()
    if sys.stdout.isatty():
        for line in summary_lines(summary, job):
            print(line)
    else:
        print_line({name: value for name, value in summary.items() if name not in _LISTS})
    return exit_code(summary)


def _show(failure: Failure) -> None:
    where = failure.source or (failure.reference.uri if failure.reference is not None else None)
    print(f"dicomweb-io: {where}: {failure.message}" if where else f"dicomweb-io: {failure.message}", file=sys.stderr)


def completion(args: argparse.Namespace) -> int:
    """Prints a script for the shell."""
    import shtab

    from dicomweb_io.cli.arguments import all_parsers, build_parser

    parser = build_parser(all_shown=True)
    for action in (action for each in all_parsers(parser) for action in each._actions):
        if action.metavar in ("PATH", "FILE", "SOURCE", "DESTINATION") or action.dest in (
            "url",
            "source",
            "destination",
        ):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, args.shell))
    return 0


Command = Callable[[argparse.Namespace], int]

COMMANDS: dict[str, Command] = {
    "compare": compare,
    "completion": completion,
    "copy": copy,
    "delete": delete,
    "doctor": doctor,
    "index": index,
    "retrieve": retrieve,
    "search": search,
    "serve": serve,
    "servers": servers,
    "store": store,
    "tree": tree,
}
"""What runs for the ``command`` that the parser sets: it takes the arguments and returns the exit code."""
