"""The commands of ``dicomweb-io``: one table of them, and the short ones."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from typing import cast

from dicomweb_io.cli.output import ANSWERS, print_line, print_table
from dicomweb_io.options import UsageError, connect, endpoint_from


def delete(args: argparse.Namespace) -> int:
    """Deletes a study, series or instance."""
    endpoint = endpoint_from(args)
    client = connect(args, endpoint)
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
    uid = getattr(args, "sop_instance_uid", None) or getattr(args, "series_instance_uid", None) or study
    print(f"The {args.information_entity} {uid} is deleted from {endpoint.safe_url}.", file=sys.stderr)
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
    answers = Counter(found.supported for found in report.findings)
    print(
        f"{answers[True]} of {sum(answers.values())} features work, {answers[False]} do not; "
        f"{answers[None]} could not be tried",
        file=sys.stderr,
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


COMMANDS = {
    "compare": "jobs.compare",
    "completion": "commands.completion",
    "copy": "jobs.copy",
    "delete": "commands.delete",
    "doctor": "commands.doctor",
    "export table": "jobs.export_table",
    "index": "search.index",
    "retrieve": "retrieve.retrieve",
    "search": "search.search",
    "serve": "commands.serve",
    "servers": "servers.servers",
    "store": "store.store",
    "tree": "search.tree",
    "watch": "jobs.watch",
}
"""Where the function is, in this package, that runs for the ``command`` that the parser sets.

It takes the arguments and returns the exit code. Its module is imported only then: jobs need many modules.
"""


def command(name: str) -> Callable[[argparse.Namespace], int]:
    """The function of a command."""
    module, _, function = COMMANDS[name].partition(".")
    found: Callable[[argparse.Namespace], int] = getattr(import_module(f"dicomweb_io.cli.{module}"), function)
    return found
