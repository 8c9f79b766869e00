"""``dicomweb-io index``."""

from __future__ import annotations

import argparse
from collections import Counter

from dicomweb_io.cli.endpoints import connect, endpoint_from
from dicomweb_io.cli.output import print_line
from dicomweb_io.clients.queries import make_query


def command(args: argparse.Namespace) -> int:
    """Reads a folder and prints, as one JSON object, how much of what is in it."""
    client = connect(args, endpoint_from(args, args.path))
    try:
        found = {
            "studies": client.count(make_query("study")),
            "series": client.count(make_query("series")),
            "instances": client.count(make_query("instance")),
        }
        kinds: Counter[str] = Counter()
        for exclusion in client.iter_exclusions():
            kinds[exclusion.kind] += 1
            if args.list:
                print_line({"kind": exclusion.kind, "path": exclusion.path, "reason": exclusion.reason})
        print_line({**found, **{kind: kinds[kind] for kind in ("duplicate", "ignored", "unreadable")}})
    finally:
        client.close()
    return 1 if kinds["unreadable"] else 0
