"""Parses the arguments, runs the command, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper

import requests

from dicomweb_io.cli.arguments import parse
from dicomweb_io.errors import DICOMError, DICOMwebError, plain_text
from dicomweb_io.options import UsageError
from dicomweb_io.servers import NAME


def run(argv: Sequence[str] | None = None) -> int:
    """Runs one command; see `dicomweb_io.cli.main`."""
    try:
        args = parse(argv)
    except UsageError as error:
        print(f"dicomweb-io: {error}", file=sys.stderr)
        return 2
    with _logging(args.verbosity), _any_text(), warnings.catch_warnings():
        # Its warnings show values; what is lost is told by the log, without them.
        warnings.filterwarnings("ignore", module="pydicom")
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    # Imported late: help and usage errors do not need the commands.
    from dicomweb_io.cli.commands import command

    try:
        code = command(args.command)(args)
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"dicomweb-io: {plain_text(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader closed the pipe, as `head` does. Without this, Python prints another error at exit.
        sys.stderr.close()
        return 1
    except (requests.RequestException, ValueError, TypeError, KeyError, OSError, OverflowError, ImportError) as error:
        if args.verbosity > 1:
            raise
        print(f"dicomweb-io: {plain_text(_told(error))}", file=sys.stderr)
        return 1


def _told(error: Exception) -> str:
    """An error in a sentence for people."""
    if isinstance(error, (DICOMError, DICOMwebError)):
        return str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        name = os.path.basename(str(error.filename))
        hint = " (dicomweb-io servers list shows the servers with names)" if NAME.fullmatch(name) else ""
        return f"{error.strerror}: {error.filename}{hint}"
    return f"{type(error).__name__}: {error}"


@contextmanager
def _any_text() -> Iterator[None]:
    """Lets standard output take any text while a command runs: names of patients are written in all alphabets.

    What goes into a file or pipe is UTF-8, as JSON has to be (RFC 8259 section 8.1); a terminal keeps its encoding.
    """
    stream = sys.stdout
    if not isinstance(stream, TextIOWrapper):
        yield
        return
    encoding, errors = stream.encoding, stream.errors
    stream.reconfigure(encoding=encoding if stream.isatty() else "utf-8", errors="backslashreplace")
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            stream.reconfigure(encoding=encoding, errors=errors)


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what standard error is now: a display of progress puts itself before it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record."""
        self.stream = sys.stderr
        super().emit(record)


class _Formatter(logging.Formatter):
    """Writes one line a record: what archives and files say is a part of it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line."""
        return plain_text(super().formatMessage(record))


@contextmanager
def _logging(verbosity: int) -> Iterator[None]:
    """Logs to standard error while a command runs. Programs that call `main` keep their logging."""
    # Partial answers and filters that a server may have ignored concern all users of what is printed.
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    handler = _Handler()
    handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("dicomweb_io")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
