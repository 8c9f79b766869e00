"""The command line: ``dicomweb-io``, also ``python -m dicomweb_io``."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        The exit code: 0 if everything asked for was done, 1 if not, 2 for a wrong use.
    """
    from dicomweb_io.cli.run import run

    return run(argv)
