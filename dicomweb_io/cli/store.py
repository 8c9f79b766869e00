"""``dicomweb-io store``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from dicomweb_io.cli.endpoints import connect, endpoint_from
from dicomweb_io.cli.output import print_line, progress
from dicomweb_io.cli.retrieve import expand_paths
from dicomweb_io.elements import Failure


def command(args: argparse.Namespace) -> int:
    """Stores files and prints the result of each as a JSON line."""
    client = connect(args, endpoint_from(args))
    counts: Counter[str] = Counter()
    try:
        with progress("instances") as shown:
            for result in client.iter_store_instances(
                expand_paths(args.files),
                study_instance_uid=args.study_instance_uid,
                on_existing=args.on_existing,
                verify=args.verify,
            ):
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
    finally:
        client.close()
    print(", ".join(f"{number} {name}" for name, number in sorted(counts.items())) or "no files", file=sys.stderr)
    return 1 if counts["failed"] or not counts else 0
