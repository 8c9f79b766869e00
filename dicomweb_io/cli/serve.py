"""``dicomweb-io serve``."""

from __future__ import annotations

import argparse
import os

from dicomweb_io.cli.endpoints import UsageError


def command(args: argparse.Namespace) -> int:
    """Serves a folder as a DICOMweb server until interrupted."""
    try:
        from dicomweb_io.testing.server import main
    except ImportError as error:
        hint = "pip install 'dicomweb_io[testing]'"
        raise UsageError(f"serve needs the extra 'testing' (no {error.name} here): {hint}") from error
    if not os.path.isdir(args.path):
        raise UsageError(f"there is no folder {args.path}")
    return main([args.path, "--host", args.host, "--port", str(args.port), "--manner", args.manner])
