"""The command line: ``dicomweb-io``, also ``python -m dicomweb_io``."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        The exit code: 0 if everything asked for was done, 1 if not, 2 for a wrong use, 130 after Ctrl-C.
    """
    from dicomweb_io.cli.run import run

    code = run(argv)
    if code == 130 and argv is None:
        from dicomweb_io.pool import end_process

        end_process(code)
    return code
