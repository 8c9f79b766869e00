"""What the jobs share: their options, endpoints from a command line, reports that are written safely, and progress."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.auth import BasicCredentials, BearerToken, Credentials, GoogleCredentials
from dicomweb_io.transforms.metrics import TALLY

LOCAL_RUNNERS = ("FnApiRunner", "DirectRunner", "BundleBasedDirectRunner", "SwitchingDirectRunner", "PrismRunner")
"""Runners whose workers see this machine's files."""


class UsageError(Exception):
    """The command line is wrong; the text says how. The exit code is 2."""


class Arguments:
    """Adds arguments to a parser unless they are there: Beam puts those of all jobs of a process into one parser."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser

    def add_argument(self, name: str, **options: Any) -> None:
        """As `argparse.ArgumentParser.add_argument`."""
        if name not in self._parser._option_string_actions:
            self._parser.add_argument(name, **options)


def add_endpoint_arguments(parser: Arguments, role: str, description: str) -> None:
    """Adds ``--ROLE`` and the options of its endpoint.

    Secrets are never arguments: other users of a machine can read a command line.

    Args:
        parser: The parser's `Arguments`.
        role: ``"source"`` or ``"destination"``.
        description: What the archive is for.
    """
    parser.add_argument(
        f"--{role}", metavar="URL_OR_PATH", help=f"{description}: a DICOMweb service, a folder, or any fsspec URL"
    )
    parser.add_argument(
        f"--{role}-token-env",
        metavar="NAME",
        help=f"the environment variable (on the workers) that holds the bearer token of the {role}",
    )
    parser.add_argument(f"--{role}-user", metavar="NAME", help=f"the user name at the {role}")
    parser.add_argument(
        f"--{role}-password-env",
        metavar="NAME",
        help=f"the environment variable (on the workers) that holds the password of --{role}-user",
    )
    parser.add_argument(
        f"--{role}-google",
        action="store_true",
        default=False,
        help=f"use Google's application-default credentials at the {role}",
    )
    parser.add_argument(f"--{role}-ca", metavar="PATH", help=f"trust this CA bundle at the {role}")
    parser.add_argument(
        f"--{role}-profile", metavar="NAME", default="auto", help=f"the behaviour of the {role} (default: by its URL)"
    )
    parser.add_argument(
        f"--{role}-max-in-flight",
        metavar="NUMBER",
        type=int,
        default=8,
        help=f"requests at once to the {role} from each worker process (default: 8)",
    )


def endpoint_from(args: argparse.Namespace, role: str) -> Endpoint:
    """Makes the endpoint of a role from parsed arguments.

    Raises:
        UsageError: If it is missing, or its options contradict each other.
    """

    def option(name: str) -> Any:
        return getattr(args, f"{role}_{name}")

    url = getattr(args, role)
    if not url:
        raise UsageError(f"--{role} is required: a DICOMweb service (https://…), a folder, or an fsspec URL")
    options: dict[str, Any] = {"max_in_flight": option("max_in_flight")}
    if option("profile") != "auto":
        options["profile"] = option("profile")
    if option("ca"):
        options["verify"] = option("ca")
    credentials = _credentials(role, option)
    if credentials is not None:
        options["credentials"] = credentials
    try:
        return Endpoint(url, **options)
    except ValueError as error:
        raise UsageError(f"--{role}: {error}") from error


def _credentials(role: str, option: Callable[[str], Any]) -> Credentials | None:
    ways = [name for name in ("token_env", "user", "google") if option(name)]
    if len(ways) > 1:
        names = " and ".join(f"--{role}-{way.replace('_', '-')}" for way in ways)
        raise UsageError(f"give one way to authenticate at the {role}, not {names}")
    if option("password_env") and not option("user"):
        raise UsageError(f"--{role}-password-env needs --{role}-user")
    if option("user"):
        if not option("password_env"):
            raise UsageError(f"--{role}-user needs --{role}-password-env")
        return BasicCredentials(option("user"), password_env=option("password_env"))
    if option("token_env"):
        return BearerToken(env=option("token_env"))
    return GoogleCredentials() if option("google") else None


def filters_from(pairs: Sequence[str] | None) -> dict[str, str]:
    """Makes search filters of ``KEY=VALUE`` arguments; a repeated key becomes a list of values.

    Raises:
        UsageError: If one has no ``=``.
    """
    filters: dict[str, str] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"--filter {pair!r}: expected KEY=VALUE, for example Modality=CT")
        filters[key] = f"{filters[key]}\\{value}" if key in filters else value
    return filters


def parse(options_class: type[PipelineOptions], prog: str, description: str, argv: Sequence[str] | None) -> Any:
    """Parses the options of a job and those of Beam.

    Args:
        options_class: The job's options.
        prog: The name for messages.
        description: The help text.
        argv: The arguments, by default those of the process.

    Returns:
        The parsed options of the job, and Beam's. The runner is FnApiRunner, in process and without any download,
        unless ``--runner`` says otherwise.

    Raises:
        UsageError: If an option is unknown.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog=prog, description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options_class._add_argparse_args(cast(Any, parser))
    args, rest = parser.parse_known_args(arguments)
    options = PipelineOptions(rest)
    standard = options.view_as(StandardOptions)
    if standard.runner is None:
        standard.runner = "FnApiRunner"
    if is_local(options):
        # A local runner takes no options but Beam's own: what is left is a typing error.
        known = argparse.ArgumentParser(allow_abbrev=False, add_help=False, conflict_handler="resolve")
        for beam_options in PipelineOptions.__subclasses__():
            beam_options._add_argparse_args(cast(Any, known))
        _, unknown = known.parse_known_args(rest)
        if unknown:
            raise UsageError(f"unknown arguments: {' '.join(unknown)}")
    return args, options


def is_local(options: PipelineOptions) -> bool:
    """Whether the job's workers run on this machine."""
    runner = str(options.view_as(StandardOptions).runner).rpartition(".")[2]
    if runner in LOCAL_RUNNERS:
        return True
    values = options.get_all_options()
    return runner == "PortableRunner" and values.get("job_endpoint") in (None, "embed")


# Reports --------------------------------------------------------------------------------------------------------------


def check_writable(path: str, local: bool, option: str) -> None:
    """Checks the address of a report before the job starts.

    Raises:
        UsageError: If the folder does not exist, or workers elsewhere cannot write there.
    """
    if "://" in path:
        return
    if not local:
        raise UsageError(f"{option} {path}: workers of this runner cannot write to this machine; give an fsspec URL")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UsageError(f"{option} {path}: there is no folder {folder}")


def publish(path: str, lines: Iterable[str]) -> None:
    """Writes a text file for its owner only (mode 0600), which appears complete or not at all.

    Args:
        path: A local path, or an fsspec URL (where one completed upload is atomic by itself).
        lines: Texts; each becomes a line.
    """
    if "://" in path:
        import fsspec

        with fsspec.open(path, "w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
        return
    folder, name = os.path.split(os.path.abspath(path))
    descriptor, temporary = tempfile.mkstemp(prefix=f".{name}-", dir=folder)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(line + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def read_json(path: str) -> Any:
    """Reads a JSON document from a local path or an fsspec URL."""
    if "://" in path:
        import fsspec

        with fsspec.open(path, "r", encoding="utf-8") as file:
            return json.load(file)
    with open(path, encoding="utf-8") as local:
        return json.load(local)


def format_bytes(number: float) -> str:
    """A number of bytes for people, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


# Progress -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def progress(show: bool | None = None, interval: float = 0.5) -> Iterator[None]:
    """Shows on stderr what this process has done so far, while a job runs.

    Args:
        show: Whether to show it; by default if a terminal is watching.
        interval: Seconds between updates.
    """
    if show is None:
        show = sys.stderr.isatty()
    if not show:
        yield
        return
    before, started, done = TALLY.snapshot(), time.monotonic(), threading.Event()

    def watch() -> None:
        while not done.wait(interval):
            now = {name: number - before.get(name, 0) for name, number in TALLY.snapshot().items()}
            sys.stderr.write("\r\x1b[K" + progress_line(now, time.monotonic() - started))
            sys.stderr.flush()

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def progress_line(counts: dict[str, int], seconds: float) -> str:
    """One line of progress."""
    moved = counts.get("stored", 0) + counts.get("replaced", 0)
    size = counts.get("stored_bytes", 0)
    parts = [f"{counts.get('rows', 0):,} found", f"{moved:,} transferred", f"{counts.get('exists', 0):,} already there"]
    if counts.get("failures"):
        parts.append(f"{counts['failures']:,} failed")
    parts += [format_bytes(size), f"{format_bytes(size / max(seconds, 1e-3))}/s", f"{seconds:.0f} s"]
    return ", ".join(parts)
