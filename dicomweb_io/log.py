"""Logging to standard error, under an import path of the original library."""

from __future__ import annotations

import logging
import sys

__all__ = ["configure_logging"]

_LEVELS = (logging.CRITICAL + 1, logging.WARNING, logging.INFO, logging.DEBUG)


def configure_logging(verbosity: int) -> logging.Logger:
    """Lets a program log to standard error; programs that set up `logging` themselves do not need it.

    Args:
        verbosity: 0 for nothing, 1 for warnings and errors, 2 for information too, 3 or more for everything.

    Returns:
        The logger of this package.

    Raises:
        ValueError: If `verbosity` is negative.
    """
    if verbosity < 0:
        raise ValueError(f"verbosity must be 0 or more, not {verbosity}")
    root = logging.getLogger()
    if not any(isinstance(handler, _StandardError) for handler in root.handlers):
        handler = _StandardError(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s | %(levelname)-8s | %(name)-40s | %(message)s"))
        root.addHandler(handler)
    level = _LEVELS[min(verbosity, len(_LEVELS) - 1)]
    package = logging.getLogger("dicomweb_io")
    package.setLevel(level)
    # urllib3 warns of the headers of multipart answers, which are right (urllib3 issue 800).
    logging.getLogger("urllib3").setLevel(max(level, logging.ERROR))
    return package


class _StandardError(logging.StreamHandler):  # type: ignore[type-arg]
    """Ours, so that a second call adds no second one."""
