"""``dicomweb-io serve``."""

from __future__ import annotations

import argparse
import os

from dicomweb_io.cli.endpoints import UsageError


def command(args: argparse.Namespace) -> int:
    """Serves a folder as a DICOMweb server until interrupted, or tells about the manners that it can have."""
    try:
        from dicomweb_io.testing.command import print_manners, run
    except ImportError as error:
        hint = "pip install 'dicomweb_io[testing]'"
        raise UsageError(f"serve needs the extra 'testing' (no {error.name} here): {hint}") from error
    try:
        if args.manners or args.describe:
            print_manners(args)
            return 0
        if args.path is None:
            raise UsageError("serve needs the folder to serve")
        if "://" not in args.path and not os.path.isdir(args.path):
            raise UsageError(f"there is no folder {args.path}")
        return run(args)
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
