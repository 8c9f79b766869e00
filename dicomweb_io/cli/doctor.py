"""``dicomweb-io doctor``: what an archive supports, found out by reading only."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from dicomweb_io.cli.endpoints import connect, endpoint_from
from dicomweb_io.cli.output import print_line
from dicomweb_io.cli.search import LEVELS
from dicomweb_io.clients.queries import make_query
from dicomweb_io.clients.web.client import DICOMwebClient
from dicomweb_io.clients.web.probing import Finding

_WIDTH = 200
_WORDS = {True: "yes", False: "no", None: "unknown"}


def command(args: argparse.Namespace) -> int:
    """Prints a table (or a JSON object) of what the archive supports and which profile would be used."""
    endpoint = endpoint_from(args)
    client = connect(args, endpoint)
    try:
        if isinstance(client, DICOMwebClient):
            report = client.probe()
            profile, findings = report.profile.name, report.findings
            facts = asdict(report.profile)
        else:
            profile, facts = "folder", {}
            findings = tuple(
                Finding(f"search of {name}", True, f"{client.count(make_query(level))} found")
                for name, level in LEVELS.items()
            )
    finally:
        client.close()
    if args.json:
        print_line(
            {
                "url": endpoint.safe_url,
                "profile": profile,
                "findings": [asdict(finding) for finding in findings],
                "facts": facts,
            }
        )
    else:
        _print_table(endpoint.safe_url, profile, findings)
    return 0


def _print_table(url: str, profile: str, findings: tuple[Finding, ...]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for heading in ("feature", "supported", "what came back"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(finding.feature, _WORDS[finding.supported], finding.detail)
    sys.stdout.write(f"{url}\nprofile: {profile}\n")
    # In a file or pipe every finding has a line of its own, for grep and its like.
    width = None if sys.stdout.isatty() else _WIDTH
    Console(file=sys.stdout, highlight=False, width=width).print(table)
